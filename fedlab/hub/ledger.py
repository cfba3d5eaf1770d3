"""The ledger of erasures: what was erased and must not come back, what is to be erased, and which rows that concerns.

A row of the log is never deleted: it is *redacted* (nothing of its content stays), or *masked* where it is about
what stays and only its actor or reason names the erased. Both keep the hash chain whole. `eraser.py` does the erasing.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from fedlab.errors import AgentExpired, HubUnavailable, InvalidRequest
from fedlab.hub.log import MASK, REDACTED, Forgotten, Head, Statements, Transaction, erased_id, name_hash, own_hash
from fedlab.hub.schema import (
    agents,
    attic,
    changes,
    episode_sources,
    episodes,
    erasures,
    holds,
    listed,
    queries,
    tenants,
    vectors,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Scope = Literal["tenant", "agent", "episodes"]
FILES = "files"
"""`pending` of an erasure whose rows are gone, and whose traces in the files are not yet."""
_LIVES = ("agent_spawned", "agent_resumed", "agent_ended")


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be erased, in clear: known only until it is done.

    Args:
        id: Of the erasure.
        seq: Of the change that began it: what was written later is not concerned.
        scope: A whole tenant, one agent of it, or some episodes.
        numbers: Of the episodes, where the scope is episodes.
    """

    id: str
    seq: int
    scope: Scope
    tenant_id: str
    agent_id: str | None = None
    numbers: list[int] = []


class _Last(NamedTuple):
    seq: int
    at: int


class Erased:
    """Whose memory was erased, by the hashes of names; false while nothing was."""

    def __init__(self) -> None:
        self.under_way: set[str] = set()
        """Tenants (in clear) whose erasure has begun and is not finished."""
        self._tenants: set[str] = set()
        self._lives: dict[tuple[str, str | None], _Last] = {}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    @classmethod
    def read(cls, connection: sa.Connection) -> Erased:
        """From the ledger."""
        erased = cls()
        for row in connection.execute(sa.select(erasures).order_by(erasures.c.seq)):
            erased._add(row.scope, row.tenant_hash, row.agent_hash, row.seq, row.at)
        return erased

    def begin(self, erasure: Erasure, at: int) -> None:
        """An erasure has begun, at ms UTC."""
        agent = None if erasure.agent_id is None else name_hash(erasure.agent_id)
        if erasure.scope == "tenant":
            self.under_way.add(erasure.tenant_id)
        self._add(erasure.scope, name_hash(erasure.tenant_id), agent, erasure.seq, at)

    def _add(self, scope: str, tenant: str, agent: str | None, seq: int, at: int) -> None:
        self._tenants.add(tenant)
        if scope != "episodes":
            self._lives[tenant, agent] = _Last(seq, at)

    def concerns(self, tenant_id: str) -> bool:
        """Whether anything of a tenant of this name was erased."""
        return name_hash(tenant_id) in self._tenants

    def whole(self, tenant_id: str) -> bool:
        """Whether a tenant of this name was erased as a whole."""
        return (name_hash(tenant_id), None) in self._lives

    def agent(self, tenant_id: str, agent_id: str) -> bool:
        """Whether an agent of this name was erased."""
        return (name_hash(tenant_id), name_hash(agent_id)) in self._lives

    def check_open(self, tenant_ids: Iterable[str]) -> None:
        """Raise HubUnavailable where a tenant's erasure is under way: its name can be used again afterwards."""
        for each in self.under_way.intersection(tenant_ids):
            raise HubUnavailable(f"tenant {each!r} is being erased: try again in a moment")

    def check_life(self, tenant_id: str, agent_id: str, after: int) -> None:
        """Whether an agent that knows the log up to `after` may go on.

        Raises:
            AgentExpired: If it, or its tenant, was erased since: its life is over.
        """
        last = self._last(tenant_id, agent_id)
        if last is not None and 0 < after < last.seq:
            raise self._over(tenant_id, agent_id)

    def check_resume(self, tenant_id: str, agent_id: str, now: int, lifetime_ms: int) -> None:
        """As `check_life`, for a life of which the registry knows nothing: it may have begun before an erasure."""
        last = self._last(tenant_id, agent_id)
        if last is not None and now - last.at < lifetime_ms:
            raise self._over(tenant_id, agent_id)

    def _last(self, tenant_id: str, agent_id: str) -> _Last | None:
        if not self._lives:
            return None
        tenant = name_hash(tenant_id)
        found = [self._lives.get((tenant, None)), self._lives.get((tenant, name_hash(agent_id)))]
        return max((each for each in found if each is not None), default=None)

    def _over(self, tenant_id: str, agent_id: str) -> AgentExpired:
        what = "its tenant" if self.whole(tenant_id) else "it"
        return AgentExpired(
            f"agent {agent_id!r} of tenant {tenant_id!r} is over: {what} was erased, and nothing of this life is taken",
            erased=True,
        )


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One erasure, as another copy of the same hub needs it.

    The fields are the columns of `erasures`, and `seqs`: of the log rows that were redacted, packed.
    """

    id: str
    seq: int
    at: int
    scope: Scope
    tenant_hash: str
    agent_hash: str | None
    episodes: int
    agents: int
    changes: int
    done_at: int | None
    seqs: bytes


class Plan(NamedTuple):
    """The log rows that an erasure concerns: to be redacted (the newest first), and to be masked."""

    redact: list[int]
    mask: list[int]


def make_plan(connection: sa.Connection, erasure: Erasure) -> Plan:
    """What of an erasure is still to be done.

    The newest come first, so that the row that stored an episode is redacted after all others that name its id:
    after a crash the rest is found again.
    """
    c = changes.c
    within = (c.tenant_id == erasure.tenant_id, c.seq < erasure.seq)

    def seqs(*conditions: sa.ColumnElement[bool]) -> set[int]:
        return set(connection.scalars(sa.select(c.seq).where(*within, *conditions)))

    if erasure.scope == "tenant":
        found = seqs()
        for table in (episodes, attic, agents):
            own = sa.select(table.c.id).where(table.c.tenant_id == erasure.tenant_id, table.c.id < erasure.seq)
            found.update(connection.scalars(own))
        return Plan(sorted(found, reverse=True), [])
    found, mask = set(erasure.numbers), set()
    if erasure.agent_id is not None:
        found |= _episodes_of(connection, erasure)
    stored = sa.select(c.subject).where(*within, c.kind == "episode_stored", listed(c.seq, found))
    uids = connection.scalars(stored).all()
    found = seqs(c.kind.startswith("episode_"), listed(c.subject, uids))
    if erasure.agent_id is not None:
        found |= seqs(c.kind.in_(_LIVES), c.subject == erasure.agent_id)
        mask = _naming(connection, erasure) - found
    return Plan(sorted(found, reverse=True), sorted(mask))


def being_erased(connection: sa.Connection) -> set[int]:
    """The log rows that erasures under way have still to redact.

    They tell less than the truth: that an episode was stored may stand there when nothing says any more that it was
    forgotten before.
    """
    pending = connection.scalars(sa.select(erasures.c.pending).where(erasures.c.pending != FILES))  # which is not null
    plans = [make_plan(connection, msgspec.json.decode(each, type=Erasure)) for each in pending.all()]
    return {seq for plan in plans for seq in plan.redact}


def _episodes_of(connection: sa.Connection, erasure: Erasure) -> set[int]:
    """Numbers of an agent's episodes: live ones, kept ones, and forgotten ones that it had pushed itself."""
    tenant_id, agent_id = erasure.tenant_id, erasure.agent_id
    assert agent_id is not None
    own = sa.select(episodes.c.id).where(episodes.c.tenant_id == tenant_id, episodes.c.agent_id == agent_id)
    kept = sa.select(attic.c.id, attic.c.content).where(
        attic.c.tenant_id == tenant_id, sa.func.instr(attic.c.content, agent_id.encode()) > 0
    )
    gone = (
        sa.select(changes.c.seq)
        .outerjoin(episodes, episodes.c.id == changes.c.seq)
        .outerjoin(attic, attic.c.id == changes.c.seq)
        .where(
            changes.c.tenant_id == tenant_id,
            changes.c.kind == "episode_stored",
            changes.c.actor == agent_id,
            episodes.c.id.is_(None),
            attic.c.id.is_(None),
        )
    )
    found = {
        row.id for row in connection.execute(kept) if msgspec.msgpack.decode(row.content)[0]["agent_id"] == agent_id
    }
    found.update(*(connection.scalars(query) for query in (own, gone)))
    return {number for number in found if number < erasure.seq}


def names(text: str, name: str) -> bool:
    """Whether a text names someone: as a word of its own."""
    # An expression for each of 50,000 ids takes 3 s.
    return name in text and re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", text) is not None


def _naming(connection: sa.Connection, erasure: Erasure) -> set[int]:
    """Rows of the tenant's log whose actor is the agent, or whose reason names it."""
    c, name = changes.c, erasure.agent_id
    assert name is not None
    query = sa.select(c.seq, c.kind, c.actor, c.reason).where(
        c.tenant_id == erasure.tenant_id,
        c.seq < erasure.seq,
        sa.or_(c.actor == name, sa.func.instr(c.reason, name) > 0),
    )
    return {
        row.seq
        for row in connection.execute(query)
        if row.actor == name or (row.kind not in _LIVES and names(row.reason, name))
    }


def redact(tx: Transaction, erasure: Erasure, seqs: Sequence[int]) -> Counter[str]:
    """Take log rows, and what they stored, out of the hub; returns how many rows of each table went."""
    tx.flush()
    rows = tx.connection.execute(
        sa.select(changes).where(listed(changes.c.seq, seqs), changes.c.kind.not_in(REDACTED))
    ).all()
    if erasure.scope != "tenant":
        rows = [*rows, *_since(tx, erasure, [row.subject for row in rows if row.kind == "episode_stored"])]
    tally = Counter[str](changes=len(rows))
    for column in (holds.c.episode_id, vectors.c.episode_id, episode_sources.c.episode_id,
                   episodes.c.id, attic.c.id, agents.c.id):  # fmt: skip
        tally[column.table.name] += tx.connection.execute(sa.delete(column.table).where(listed(column, seqs))).rowcount
    blank = []
    for row in rows:
        stored = row.kind == "episode_stored"
        tally["stored"] += stored
        kind, subject = (REDACTED[0], erased_id(row.tenant_id, row.subject)) if stored else (REDACTED[1], "")
        blank.append((kind, subject, erasure.id, own_hash(tuple(row)[:-1]), row.seq))
    _rewrite(tx, "tenant_id = '', kind = ?, subject = ?, actor = '', reason = ?, digest = ?", blank)
    # What an erasure before this one had masked is now counted here.
    for before, number in Counter(row.reason for row in rows if row.actor.startswith(MASK)).items():
        _count(tx, before, changes=-number)
    _count(tx, erasure.id, episodes=tally["stored"], agents=tally["agents"], changes=len(rows))
    tx.note(Forgotten(erasure.tenant_id, list(seqs)))
    return tally


def _since(tx: Transaction, erasure: Erasure, uids: list[str]) -> Sequence[Any]:
    """What was done to episodes since their erasure began: a policy forgot them, say. With them the last trace of their
    ids goes, and from then on nothing can be done to them.
    """
    c = changes.c
    of_them = c.tenant_id == erasure.tenant_id, c.kind.startswith("episode_"), listed(c.subject, uids)
    return tx.connection.execute(sa.select(changes).where(c.seq > erasure.seq, *of_them)).all() if uids else ()


def mask(tx: Transaction, erasure: Erasure, seqs: Sequence[int]) -> int:
    """Take actor and reason out of rows that are about what stays, and of the holds that they tell of."""
    tx.flush()
    rows = tx.connection.execute(sa.select(changes).where(listed(changes.c.seq, seqs))).all()
    _rewrite(
        tx, "actor = ?, reason = ?", [(MASK + own_hash(tuple(row)[:-1]).hex(), erasure.id, row.seq) for row in rows]
    )
    _count(tx, erasure.id, changes=len(rows))
    assert erasure.agent_id is not None
    for hold in tx.connection.execute(sa.select(holds).where(holds.c.tenant_id == erasure.tenant_id)).all():
        if hold.actor == erasure.agent_id or names(hold.reason, erasure.agent_id):
            blank = sa.update(holds).where(holds.c.episode_id == hold.episode_id)
            tx.connection.execute(blank.values(actor="", reason=erasure.id))
    return len(rows)


def _rewrite(tx: Transaction, assignments: str, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        tx.cursor.executemany(f"UPDATE changes SET {assignments} WHERE seq = ?", rows)  # noqa: S608


def _count(tx: Transaction, erasure_id: str, **more: int) -> None:
    values = {name: erasures.c[name] + number for name, number in more.items()}
    tx.connection.execute(sa.update(erasures).where(erasures.c.id == erasure_id).values(**values))


def enter(tx: Transaction, erasure: Erasure, *, at: int, tenant: str, agent: str | None, pending: str) -> None:
    """Write an erasure into the ledger, and take out what is no row of the log: the tenant and its queries."""
    tx.flush()
    row = {"id": erasure.id, "seq": erasure.seq, "at": at, "scope": erasure.scope, "tenant_hash": tenant}
    row |= {"agent_hash": agent, "episodes": 0, "agents": 0, "changes": 0, "pending": pending}
    tx.connection.execute(sa.insert(erasures), row)
    # A query's vector tells of its text, and whose query it was is not known.
    tx.connection.execute(sa.delete(queries).where(queries.c.tenant_id == erasure.tenant_id))
    if erasure.scope == "tenant":
        tx.connection.execute(sa.delete(tenants).where(tenants.c.tenant_id == erasure.tenant_id))


def export_ledger(connection: sa.Connection) -> list[LedgerEntry]:
    """The ledger, oldest first, for an older copy of this hub."""
    redacted: dict[str, list[int]] = {}
    query = sa.select(changes.c.reason, changes.c.seq).where(changes.c.tenant_id == "", changes.c.kind.in_(REDACTED))
    for reason, seq in connection.execute(query.order_by(changes.c.seq)):
        redacted.setdefault(reason, []).append(seq)
    entries = []
    for row in connection.execute(sa.select(erasures).order_by(erasures.c.seq)).mappings():
        seqs = set(redacted.get(row["id"], ()))
        if row["pending"] not in (None, FILES):  # what is still to be done counts as done
            seqs.update(make_plan(connection, msgspec.json.decode(row["pending"], type=Erasure)).redact)
        fields = {name: row[name] for name in LedgerEntry.__struct_fields__ if name != "seqs"}
        entries.append(LedgerEntry(**fields, seqs=_pack(sorted(seqs))))
    return entries


def known_to(entry: LedgerEntry, seq: int, more: Iterable[int], other: LedgerEntry | None) -> LedgerEntry:
    """An entry for a log that is the same up to a seq, and whose own end may be anywhere.

    Args:
        entry: Of the ledger of another log.
        seq: The last change that both have.
        more: What this log has of the erased under other seqs, after that.
        other: What a third log knew of the same erasure, in terms of this one.
    """
    seqs = {*(each for each in _unpack(entry.seqs) if each <= seq), *more, *(_unpack(other.seqs) if other else ())}
    return msgspec.structs.replace(entry, seq=entry.seq + (1 << 60), seqs=_pack(sorted(seqs)))


def apply_ledger(target: Transaction | sa.Connection, entries: Sequence[LedgerEntry]) -> int:
    """Erase in this database what was erased in a later copy of the same hub; returns how many erasures were new.

    The rows are gone when the transaction is committed; what is left of them in the files goes when the hub is
    next opened.

    Args:
        target: A transaction of an open hub, or a connection of a writing engine inside a write transaction.
        entries: Of a copy whose log begins with this one's.

    Raises:
        InvalidRequest: If the log goes on after an erasure that it does not know: it is another hub's.
    """
    tx = target if isinstance(target, Transaction) else _transaction(target, entries)
    tx.flush()
    known = set(tx.connection.scalars(sa.select(erasures.c.id)))
    fresh = [entry for entry in sorted(entries, key=lambda each: each.seq) if entry.id not in known]
    if any(entry.seq <= tx.head.seq for entry in fresh):
        raise InvalidRequest("this ledger of erasures belongs to a log that went another way")
    for entry in fresh:
        tenant_id = _named(tx.connection, entry.tenant_hash, tenants.c.tenant_id) or ""
        own = episodes.c.tenant_id == tenant_id, agents.c.tenant_id == tenant_id
        agent_id = None
        if entry.agent_hash is not None:
            agent_id = _named(tx.connection, entry.agent_hash, episodes.c.agent_id, own[0])
            agent_id = agent_id or _named(tx.connection, entry.agent_hash, agents.c.agent_id, own[1])
        seqs = [seq for seq in _unpack(entry.seqs) if seq <= tx.head.seq]
        about = "" if entry.scope == "tenant" else tenant_id
        seq = tx.log(f"{entry.scope}_erased", about, entry.id, "hub", "erased in a later copy of this hub")
        erasure = Erasure(id=entry.id, seq=seq, scope=entry.scope, tenant_id=tenant_id, agent_id=agent_id, numbers=seqs)
        enter(tx, erasure, at=entry.at, tenant=entry.tenant_hash, agent=entry.agent_hash, pending=FILES)
        plan = make_plan(tx.connection, erasure) if tenant_id else Plan([], [])
        redact(tx, erasure, sorted({*plan.redact, *seqs}, reverse=True))
        if plan.mask:
            mask(tx, erasure, plan.mask)
        tx.log("erasure_finished", about, entry.id, "hub")
    tx.flush()
    return len(fresh)


def _named(connection: sa.Connection, hashed: str, column: Any, *conditions: sa.ColumnElement[bool]) -> str | None:
    """The name of which the ledger has the hash, if it is in this database."""
    found: Iterable[str] = connection.scalars(sa.select(column).where(*conditions).distinct())
    return next((name for name in found if name_hash(name) == hashed), None)


def _transaction(connection: sa.Connection, entries: Sequence[LedgerEntry]) -> Transaction:
    last = connection.execute(sa.select(changes).order_by(changes.c.seq.desc()).limit(1)).one()
    now = max([last.at, *(entry.at for entry in entries)])
    cursor, statements = connection.connection.cursor(), Statements(connection.engine)
    return Transaction(connection, cursor, statements, Head(last.seq, last.hash), now, set(), Erased())


def _pack(seqs: list[int]) -> bytes:
    return zlib.compress(np.diff(np.array(seqs, "<i8"), prepend=0).tobytes())


def _unpack(packed: bytes) -> list[int]:
    return list(map(int, np.cumsum(np.frombuffer(zlib.decompress(packed), "<i8"))))
