"""A copied database, cut back to what it was as of a seq. Whoever copies it, and where to, is not of interest here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa

from fedlab.clock import LATEST_MS, to_datetime, to_ms
from fedlab.errors import InvalidRequest
from fedlab.hub import attic
from fedlab.hub.ledger import FILES, Erasure
from fedlab.hub.log import MASK, REDACTED, Head
from fedlab.hub.schema import agents, changes, episodes, erasures, holds, queries, recalls, tenants
from fedlab.hub.schema import attic as kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from fedlab.hub.log import Transaction


class Lost(NamedTuple):
    """An episode that was live as of the seq, and of which nothing is left."""

    tenant_id: str
    uid: str


def seq_of(connection: sa.Connection, at: datetime | int | None) -> int:
    """The change that a moment means: a seq, or the last change at or before a time; the last of all if None.

    Raises:
        InvalidRequest: If the log has no such change.
    """
    last = connection.execute(sa.select(changes.c.seq, changes.c.at).order_by(changes.c.seq.desc()).limit(1)).one()
    if at is None:
        return int(last.seq)
    if isinstance(at, int) and not isinstance(at, bool):
        if not 1 <= at <= last.seq:
            raise InvalidRequest(f"there is no change {at}: the log here has changes 1 to {last.seq}")
        return at
    moment = to_ms(at)
    seq = connection.scalar(sa.select(sa.func.max(changes.c.seq)).where(changes.c.at <= moment))
    if seq is None:
        first = connection.scalar(sa.select(sa.func.min(changes.c.at)))
        raise InvalidRequest(f"the log here begins at {to_datetime(first or 0)}, after {to_datetime(moment)}")
    return int(seq)


def cut(tx: Transaction, seq: int) -> list[Lost]:
    """Make a database what it was as of a seq, as far as its content is still there; returns what is not.

    What is counted and not logged (how often an episode was recalled, what an agent pushed) can not be taken back:
    it stays where it was last touched before, and goes where it was touched after.
    """
    tx.flush()
    connection, c = tx.connection, changes.c
    moment = connection.execute(sa.select(c.at, c.hash).where(c.seq == seq)).one()
    later = {
        kind: {(row.tenant_id, row.subject) for row in connection.execute(logged(kind).where(c.seq > seq))}
        for kind in ("agent_ended", "agent_resumed", "retention_set")
    }
    going = _forgotten_after(connection, seq)
    ledger = connection.execute(sa.select(erasures).where(erasures.c.seq > seq).order_by(erasures.c.seq)).all()
    ids = connection.execute(logged(REDACTED[0]).where(c.seq > seq)).all()
    back = attic.bring_back(connection, seq)
    # Holds stand in the way of deletion; they are made again from the log.
    for gone in (
        sa.delete(holds),
        sa.delete(recalls).where(recalls.c.last_at > moment.at),
        sa.delete(queries).where(queries.c.at > moment.at),
        sa.delete(kept).where(kept.c.id > seq),
        sa.delete(episodes).where(episodes.c.id > seq),
        sa.delete(agents).where(agents.c.id > seq),
        sa.delete(changes).where(c.seq > seq),
        sa.delete(tenants).where(
            tenants.c.tenant_id.not_in(sa.select(c.tenant_id).where(c.kind == "tenant_created").distinct())
        ),
    ):
        connection.execute(gone)
    _wake(connection, later["agent_ended"] | later["agent_resumed"])
    _set_policies(connection, later["retention_set"])
    _hold(connection)
    tx.head = Head(seq, moment.hash)
    tx.tenants = set(connection.scalars(sa.select(tenants.c.tenant_id)))
    _take_over(tx, ledger, ids)
    return [lost for number, lost in going.items() if number not in back]


def log_lost(tx: Transaction, lost: list[Lost], reason: str) -> None:
    """Say in the log that episodes are not there, so that it tells what is."""
    for each in lost:
        tx.log("episode_forgotten", each.tenant_id, each.uid, "hub", reason)


def logged(*kinds: str) -> sa.Select[Any]:
    """Changes of these kinds, oldest first."""
    return sa.select(changes).where(changes.c.kind.in_(kinds)).order_by(changes.c.seq)


def _forgotten_after(connection: sa.Connection, seq: int) -> dict[int, Lost]:
    """By number, what was stored up to a seq and forgotten after it."""
    stored = changes.alias("stored")
    query = (
        sa.select(stored.c.seq, changes.c.tenant_id, changes.c.subject)
        .select_from(changes)
        .join(
            stored,
            (stored.c.tenant_id == changes.c.tenant_id)
            & (stored.c.subject == changes.c.subject)
            & (stored.c.kind == sa.literal_column("'episode_stored'")),  # said so, the partial index is used
        )
        .where(changes.c.kind == "episode_forgotten", changes.c.seq > seq, stored.c.seq <= seq)
    )
    return {row.seq: Lost(row.tenant_id, row.subject) for row in connection.execute(query)}


def _take_over(tx: Transaction, ledger: Sequence[Any], ids: Sequence[Any]) -> None:
    """Log erasures again at the end of the shorter log: what was erased stays so."""
    for row in ledger:
        seq = tx.log(f"{row.scope}_erased", "", row.id, "hub", "erased before the hub was taken back to before it")
        pending = row.pending
        if pending in (None, FILES):
            tx.log("erasure_finished", "", row.id, "hub")
        else:  # it goes on when the hub is opened
            erasure = msgspec.structs.replace(msgspec.json.decode(pending, type=Erasure), seq=seq)
            pending = msgspec.json.encode(erasure).decode()
        values = {"seq": seq, "pending": pending}
        tx.connection.execute(sa.update(erasures).where(erasures.c.id == row.id).values(**values))
    lock_out(tx, ids, {row.id for row in ledger})


def lock_out(tx: Transaction, ids: Iterable[Any], concerned: set[str]) -> None:
    """Log erased ids of episodes that this log never had, so that they can not be stored again.

    Args:
        tx: The transaction.
        ids: Rows of a log: kind, subject, reason (the erasure) and digest.
        concerned: Erasures of which the log has other rows than before.
    """
    for row in ids:
        tx.log(row.kind, "", row.subject, "", row.reason, row.digest)
    tx.flush()
    emptied = changes.c.kind.in_(REDACTED) | changes.c.actor.startswith(MASK)
    for each in concerned:
        count = sa.select(sa.func.count()).where(changes.c.reason == each, emptied).scalar_subquery()
        tx.connection.execute(sa.update(erasures).where(erasures.c.id == each).values(changes=count))


def _wake(connection: sa.Connection, ended_later: set[tuple[str, str]]) -> None:
    """Give lives the state they had: those that ended, or came back, after the cut."""
    if not ended_later:
        return
    states: dict[int, dict[str, Any]] = {}
    living: dict[tuple[str, str], int] = {}
    for row in connection.execute(logged("agent_spawned", "agent_ended", "agent_resumed")):
        key = row.tenant_id, row.subject
        if key not in ended_later:
            continue
        if row.kind == "agent_spawned":
            living[key] = row.seq
        if key in living:
            over = row.kind == "agent_ended"
            states[living[key]] = {"status": row.reason if over else "alive", "ended_at": row.at if over else None}
    for number, state in states.items():
        connection.execute(sa.update(agents).where(agents.c.id == number).values(**state))


def _set_policies(connection: sa.Connection, set_later: set[tuple[str, str]]) -> None:
    """Give tenants the retention policy they had, where it was set after the cut."""
    for tenant_id, _ in set_later:
        query = logged("retention_set").where(changes.c.tenant_id == tenant_id)
        policies = [row.reason for row in connection.execute(query)]
        # Older versions logged a sentence: then everything is kept until a policy is set again.
        policy = policies[-1] if policies and policies[-1].startswith("{") else None
        connection.execute(sa.update(tenants).where(tenants.c.tenant_id == tenant_id).values(retention=policy))


def _hold(connection: sa.Connection) -> None:
    """Hold again what the log says is held."""
    held: dict[tuple[str, str], Any] = {}
    for row in connection.execute(logged("episode_held", "episode_released")):
        if row.kind == "episode_held":
            held[row.tenant_id, row.subject] = row
        else:
            held.pop((row.tenant_id, row.subject), None)
    for (tenant_id, uid), row in held.items():
        number = sa.select(episodes.c.id).where(episodes.c.id == _number(tenant_id, uid))
        if (found := connection.scalar(number)) is not None:
            values = {"episode_id": found, "tenant_id": tenant_id, "reason": row.reason, "actor": row.actor}
            connection.execute(sa.insert(holds), {**values, "at": row.at})


def _number(tenant_id: str, uid: str) -> sa.ScalarSelect[int]:
    stored = sa.select(changes.c.seq).where(
        changes.c.tenant_id == tenant_id,
        changes.c.subject == uid,
        changes.c.kind == sa.literal_column("'episode_stored'"),
    )
    return stored.scalar_subquery()


def describe(moment: int) -> str:
    """A time in ms UTC, as the log's reasons show it."""
    return to_datetime(min(moment, LATEST_MS)).isoformat(" ", "seconds")
