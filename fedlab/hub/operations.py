"""What can be written: each function is an operation of one transaction, run in the writer thread.

An operation checks first and writes afterwards: a `FedlabError` it raises has changed nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fedlab._words import named
from fedlab.errors import HeldEpisodes, IdConflict
from fedlab.hub import attic, schema
from fedlab.hub.log import Forgotten, Transaction, content_of, episode_hash, erased_id, unpack_vector, vector_hash
from fedlab.hub.schema import agents, changes, episodes, holds, listed, tenants, vectors
from fedlab.hub.values import AgentRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedlab.episode import Episode, Vector
    from fedlab.hub.values import Ending

_PARAMETERS = 500


def put(tx: Transaction, batch: Sequence[Episode], embedded: Sequence[Vector], actor: str) -> int:
    """Store episodes, all or none; returns how many of them are new.

    Args:
        tx: The transaction.
        batch: The episodes.
        embedded: A vector for each: its own, or the one the hub made.
        actor: Who asked.

    Raises:
        IdConflict: If an id was stored before with other content, or was forgotten or erased since.
        HubUnavailable: If the tenant is being erased.
    """
    if tx.erased:
        _check_not_erased(tx, batch)
    known = _known(tx, batch, embedded) if tx.careful else set()
    new = 0
    for episode, vector in zip(batch, embedded, strict=True):
        if (episode.tenant_id, episode.id) not in known:
            tx.store(episode, vector, actor)
            new += 1
            if tx.careful:
                known.add((episode.tenant_id, episode.id))
    return new


def _check_not_erased(tx: Transaction, batch: Sequence[Episode]) -> None:
    """What was erased does not come back; asked only for tenants of which something was."""
    tenant_ids = {episode.tenant_id for episode in batch}
    tx.erased.check_open(tenant_ids)
    concerned = {each for each in tenant_ids if tx.erased.concerns(each)}
    ids = {erased_id(each.tenant_id, each.id): each.id for each in batch if each.tenant_id in concerned}
    if found := erased_of(tx.connection, ids):
        raise IdConflict(
            f"{named(found, 'episode')}: erased, and can not come back; nothing was stored",
            ids=found,
            forgotten=True,
            erased=True,
        )


def _known(tx: Transaction, batch: Sequence[Episode], embedded: Sequence[Vector]) -> set[tuple[str, str]]:
    """Which of the episodes the hub has already, with the same content."""
    tx.flush()
    first: dict[tuple[str, str], tuple[Episode, Vector]] = {}
    for episode, vector in zip(batch, embedded, strict=True):
        key = (episode.tenant_id, episode.id)
        if key in first and _hash(episode, vector) != _hash(*first[key]):
            raise IdConflict(f"id {episode.id!r} stands twice in one call, with different content", ids=[episode.id])
        first[key] = (episode, vector)
    known: set[tuple[str, str]] = set()
    by_tenant: dict[str, list[str]] = {}
    for tenant_id, uid in first:
        by_tenant.setdefault(tenant_id, []).append(uid)
    for tenant_id, uids in by_tenant.items():
        numbers = numbers_of(tx.connection, tenant_id, uids)
        held = {row.id: row for row in _rows(tx.connection, list(numbers.values()))}
        gone = [uid for uid, number in numbers.items() if number not in held]
        if gone:
            raise IdConflict(
                f"{named(gone, 'episode')}: stored before, and forgotten since;"
                " nothing was stored; give an episode a new id to remember it again",
                ids=gone,
                forgotten=True,
            )
        other = [uid for uid, number in numbers.items() if not _same(held[number], *first[tenant_id, uid])]
        if other:
            raise IdConflict(
                f"{named(other, 'id')}: taken by other content;"
                " nothing was stored; an episode never changes, give the new one a new id",
                ids=other,
                forgotten=False,
            )
        known.update((tenant_id, uid) for uid in numbers)
    return known


def _same(row: Any, episode: Episode, vector: Vector) -> bool:
    """Whether a push says what is stored; what the hub filled in the first time counts as said."""
    created_at = row.created_at if episode.created_at is None else episode.created_at
    if episode.vector is None:
        vector = unpack_vector(row.vector)
    return _hash(episode, vector, created_at) == bytes(row.hash)


def _hash(episode: Episode, vector: Vector, created_at: int = 0) -> bytes:
    content = content_of(episode, created_at)
    return episode_hash(content, episode.sources, vector_hash(episode.id, vector.tobytes()))


def _rows(connection: sa.Connection, numbers: Sequence[int]) -> list[Any]:
    query = sa.select(episodes.c.id, episodes.c.created_at, episodes.c.hash, vectors.c.vector).join(
        vectors, vectors.c.episode_id == episodes.c.id
    )
    rows: list[Any] = []
    for start in range(0, len(numbers), _PARAMETERS):
        part = numbers[start : start + _PARAMETERS]
        rows.extend(connection.execute(query.where(episodes.c.id.in_(part))))
    return rows


def erased_of(connection: sa.Connection, ids: dict[str, str]) -> list[str]:
    """Of ids by their `erased_id`, those that were erased, in the order that they are given in."""
    hashes, found = list(ids), set[str]()
    for start in range(0, len(hashes), _PARAMETERS):
        query = sa.select(changes.c.subject).where(
            changes.c.kind == "episode_erased", changes.c.subject.in_(hashes[start : start + _PARAMETERS])
        )
        found.update(connection.scalars(query))
    return [uid for each, uid in ids.items() if each in found]


def numbers_of(connection: sa.Connection, tenant_id: str, uids: Sequence[str]) -> dict[str, int]:
    """Ids to numbers, of everything that was ever stored."""
    numbers: dict[str, int] = {}
    for start in range(0, len(uids), _PARAMETERS):
        query = sa.select(changes.c.subject, changes.c.seq).where(
            changes.c.tenant_id == tenant_id,
            changes.c.kind == "episode_stored",
            changes.c.subject.in_(uids[start : start + _PARAMETERS]),
        )
        numbers.update({row.subject: row.seq for row in connection.execute(query)})
    return numbers


def forget(tx: Transaction, tenant_id: str, uids: Sequence[str], *, reason: str, actor: str) -> int:
    """Remove episodes and their vectors, and log each; returns how many there were.

    Raises:
        HeldEpisodes: If one of them is held.
    """
    tx.flush()
    numbers = numbers_of(tx.connection, tenant_id, list(dict.fromkeys(uids)))
    live = {row.id for row in _rows(tx.connection, list(numbers.values()))}
    going = {uid: number for uid, number in numbers.items() if number in live}
    query = sa.select(holds.c.episode_id).where(listed(holds.c.episode_id, going.values()))
    if held := set(tx.connection.scalars(query)):
        ids = [uid for uid, number in going.items() if number in held]
        raise HeldEpisodes(
            f"{named(ids, 'episode')}: held; nothing was forgotten; `release` what is held first", ids=ids
        )
    remove(tx, tenant_id, going, reason=reason, actor=actor)
    return len(going)


def remove(
    tx: Transaction,
    tenant_id: str,
    going: dict[str, int],
    *,
    reason: str,
    actor: str,
    packed: dict[int, bytes] | None = None,
) -> None:
    """Remove live episodes, given as id to number.

    Args:
        tx: The transaction.
        tenant_id: Whose episodes.
        going: Which.
        reason: For the log, like `actor`.
        actor: Who asked.
        packed: Their contents for the attic, if they were packed before.
    """
    numbers = list(going.values())
    kept: dict[int, bytes] = {}
    if tx.keep_forgotten:
        kept = attic.pack(tx.connection, numbers) if packed is None else packed
    seqs = tx.log_forgotten(tenant_id, going, actor, reason)
    tx.run(_DELETE, numbers=schema.packed(numbers))
    rows = zip(going.items(), seqs, strict=True)
    attic.keep(
        tx.connection,
        [(number, tenant_id, uid, seq, tx.now, kept[number]) for (uid, number), seq in rows if number in kept],
    )
    if numbers:
        tx.note(Forgotten(tenant_id, numbers))


_DELETE = sa.delete(episodes).where(listed(episodes.c.id, sa.bindparam("numbers")))


def hold(tx: Transaction, tenant_id: str, numbers: Sequence[int], *, reason: str, actor: str) -> int:
    """Hold live episodes, given by number, and log each; returns how many were not held before."""
    tx.flush()
    held = sa.exists().where(holds.c.episode_id == episodes.c.id)
    query = sa.select(episodes.c.id, episodes.c.uid).where(listed(episodes.c.id, numbers), ~held)
    new = tx.connection.execute(query.order_by(episodes.c.id)).all()
    if new:
        common = {"tenant_id": tenant_id, "reason": reason, "actor": actor, "at": tx.now}
        tx.connection.execute(sa.insert(holds), [{"episode_id": row.id, **common} for row in new])
    for row in new:
        tx.log("episode_held", tenant_id, row.uid, actor, reason)
    return len(new)


def release(tx: Transaction, tenant_id: str, numbers: Sequence[int], *, reason: str, actor: str) -> int:
    """End the holds of episodes, given by number, and log each; returns how many were held."""
    query = sa.select(episodes.c.id, episodes.c.uid).join(holds, holds.c.episode_id == episodes.c.id)
    held = tx.connection.execute(query.where(listed(holds.c.episode_id, numbers)).order_by(episodes.c.id)).all()
    tx.connection.execute(sa.delete(holds).where(listed(holds.c.episode_id, [row.id for row in held])))
    for row in held:
        tx.log("episode_released", tenant_id, row.uid, actor, reason)
    return len(held)


def spawn(tx: Transaction, tenant_id: str, agent_id: str, *, lifetime_ms: int, resume: bool, actor: str) -> AgentRecord:
    """Register a life, or take up the one that goes on."""
    tx.erased.check_open([tenant_id])
    lives = tx.run(_LAST_LIFE, tenant=tenant_id, agent=agent_id)
    held = _record(lives[0]) if lives else None
    if held is not None and resume and held.expires_at > tx.now and held.status in ("alive", "crashed"):
        # After a lost connection the lease may have run out before the agent was back.
        tx.granted.add((tenant_id, agent_id))
        if held.status == "crashed":
            revived = sa.update(agents).where(agents.c.id == lives[0]["id"]).values(status="alive", ended_at=None)
            tx.connection.execute(revived)
            tx.log("agent_resumed", tenant_id, agent_id, actor)
        return msgspec.structs.replace(held, status="alive", ended_at=None)
    if held is None and resume:
        tx.erased.check_resume(tenant_id, agent_id, tx.now, lifetime_ms)
    if held is not None and held.status == "alive" and held.expires_at > tx.now:
        raise IdConflict(
            f"agent {agent_id!r} of tenant {tenant_id!r} is alive: wait until it is destroyed or its lease"
            " ends, or spawn under another id",
            ids=[agent_id],
        )
    tx.granted.add((tenant_id, agent_id))
    tx.ensure_tenant(tenant_id, actor)
    if held is not None and held.status == "alive":
        end(tx, tenant_id, agent_id, "crashed", actor="hub")
    number = tx.log("agent_spawned", tenant_id, agent_id, actor)
    record = AgentRecord(
        tenant_id=tenant_id,
        agent_id=agent_id,
        status="alive",
        spawned_at=tx.now,
        expires_at=tx.now + lifetime_ms,
        ended_at=None,
        pushed=0,
        pulled=0,
    )
    tx.run(_INSERT_LIFE, id=number, **msgspec.structs.asdict(record))
    return record


def count_sync(tx: Transaction, tenant_id: str, agent_id: str, *, pushed: int, pulled: int) -> None:
    """Add to what the registry knows of a life."""
    if pushed or pulled:
        tx.run(_COUNT, tenant=tenant_id, agent=agent_id, more_pushed=pushed, more_pulled=pulled)


def end(
    tx: Transaction, tenant_id: str, agent_id: str, ending: Ending, *, actor: str, pushed: int = 0, pulled: int = 0
) -> AgentRecord | None:
    """End a life, and add to what the registry knows of it; None if it has ended."""
    more = {"more_pushed": pushed, "more_pulled": pulled}
    ended = tx.run(_END, tenant=tenant_id, agent=agent_id, ending=ending, at=tx.now, **more)
    if not ended:
        return None
    tx.log("agent_ended", tenant_id, agent_id, actor, ending)
    return _record(ended[0])


_OF_AGENT = (agents.c.tenant_id == sa.bindparam("tenant"), agents.c.agent_id == sa.bindparam("agent"))
_LAST_LIFE = sa.select(agents).where(*_OF_AGENT).order_by(agents.c.id.desc()).limit(1)
_INSERT_LIFE = sa.insert(agents)
_MORE = {
    "pushed": agents.c.pushed + sa.bindparam("more_pushed"),
    "pulled": agents.c.pulled + sa.bindparam("more_pulled"),
}
_COUNT = sa.update(agents).where(*_OF_AGENT, agents.c.ended_at.is_(None)).values(_MORE)
_END = (
    sa.update(agents)
    .where(*_OF_AGENT, agents.c.status == "alive")
    .values({**_MORE, "status": sa.bindparam("ending"), "ended_at": sa.bindparam("at")})
    .returning(agents)
)


def set_retention(tx: Transaction, tenant_id: str, policy: str, *, actor: str) -> int:
    """Store a tenant's policy (JSON); the log has it as the reason, where time travel reads what it was."""
    tx.erased.check_open([tenant_id])
    tx.ensure_tenant(tenant_id, actor)
    tx.flush()
    tx.connection.execute(sa.update(tenants).where(tenants.c.tenant_id == tenant_id).values(retention=policy))
    return tx.log("retention_set", tenant_id, tenant_id, actor, policy)


def _record(row: dict[str, Any]) -> AgentRecord:
    return AgentRecord(**{name: row[name] for name in AgentRecord.__struct_fields__})
