"""What a hub reads from its database: episodes by number, frames, the log. Reads see one moment each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fedlab.episode import Episode, StoredEpisode
from fedlab.hub.log import unpack_vector
from fedlab.hub.schema import agents, changes, episodes, erasures, tenants
from fedlab.hub.values import Change, Delta

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import polars as pl

    from fedlab.recall import Filter

_EPISODE_COLUMNS = (
    "id, uid, tenant_id, agent_id, session_id, task, input, output, reward, created_at, expires_at, metadata"
)
_PARAMETERS = 500
"""Most values of one IN (…)."""


def read_episodes(connection: sa.Connection, ids: Sequence[int], *, with_vectors: bool) -> dict[int, Episode]:
    """Live episodes by number; those that are gone are left out.

    Straight to the driver, with a fixed number of statements: this stands on the way of every recall, and what
    SQLAlchemy does for a result takes a quarter of its time.
    """
    run: Any = connection.connection.driver_connection.execute  # type: ignore[union-attr]
    found: dict[int, Episode] = {}
    for start in range(0, len(ids), _PARAMETERS):
        part = tuple(ids[start : start + _PARAMETERS])
        marks = f"({','.join('?' * len(part))})"
        rows = run(f"SELECT {_EPISODE_COLUMNS} FROM episodes WHERE id IN {marks}", part).fetchall()  # noqa: S608
        sources: dict[int, list[str]] = {}
        for number, source in run(
            f"SELECT episode_id, source FROM episode_sources WHERE episode_id IN {marks}"  # noqa: S608
            " ORDER BY episode_id, position",
            part,
        ):
            sources.setdefault(number, []).append(source)
        held: dict[int, bytes] = {}
        if with_vectors:
            held = dict(run(f"SELECT episode_id, vector FROM vectors WHERE episode_id IN {marks}", part))  # noqa: S608
        for row in rows:
            found[row[0]] = _episode(row, sources.get(row[0], ()), held.get(row[0]))
    return found


def _episode(row: Sequence[Any], sources: Sequence[str], vector: bytes | None) -> Episode:
    return StoredEpisode(
        id=row[1],
        tenant_id=row[2],
        agent_id=row[3],
        session_id=row[4],
        task=row[5],
        input=row[6],
        output=row[7],
        reward=row[8],
        created_at=row[9],
        expires_at=row[10],
        metadata=msgspec.json.decode(row[11]) if row[11] != "{}" else {},
        sources=tuple(sources),
        vector=None if vector is None else unpack_vector(vector),
    )


def read_delta(connection: sa.Connection, tenant_id: str, agent_id: str, *, after: int, limit: int) -> Delta:
    """What an agent has not heard of: others' newest episodes up to `limit`, and everything forgotten."""
    seq = connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0
    since = (changes.c.tenant_id == tenant_id, changes.c.seq > after, changes.c.seq <= seq)
    gone = connection.execute(
        sa.select(changes.c.kind, changes.c.subject).where(
            *since, changes.c.kind.in_(("episode_forgotten", "erasure_finished"))
        )
    ).all()
    forgotten = [subject for kind, subject in gone if kind == "episode_forgotten"]
    erased: Sequence[str] = []
    if len(forgotten) < len(gone):
        finished = [subject for kind, subject in gone if kind == "erasure_finished"]
        erased = connection.scalars(
            sa.select(changes.c.subject).where(changes.c.kind == "episode_erased", changes.c.reason.in_(finished))
        ).all()
    new = (
        sa.select(episodes.c.id)
        .join(changes, changes.c.seq == episodes.c.id)
        .where(*since, changes.c.kind == "episode_stored", episodes.c.agent_id != agent_id)
    )
    ids = connection.scalars(new.order_by(changes.c.seq.desc()).limit(limit + 1)).all()
    skipped = 0
    if len(ids) > limit:
        ids = ids[:limit]
        skipped = (connection.scalar(sa.select(sa.func.count()).select_from(new.subquery())) or 0) - limit
    found = read_episodes(connection, ids, with_vectors=True)
    return Delta(
        seq=seq,
        stored=[found[number] for number in sorted(found)],
        forgotten=forgotten,
        skipped=skipped,
        erased=list(erased),
    )


def read_changes(
    connection: sa.Connection,
    after: int,
    *,
    tenant_id: str | None = None,
    kind: str | None = None,
    limit: int | None = None,
    hidden: Collection[str] = (),
) -> list[Change]:
    """Rows of the log after a seq, oldest first, but for those of `hidden` tenants."""
    query = (
        sa.select(
            changes.c.seq,
            changes.c.tenant_id,
            changes.c.kind,
            changes.c.subject,
            changes.c.actor,
            changes.c.at,
            changes.c.reason,
        )
        .where(changes.c.seq > after)
        .order_by(changes.c.seq)
        .limit(limit)
    )
    if tenant_id is not None:
        query = query.where(changes.c.tenant_id == tenant_id)
    if kind is not None:
        query = query.where(changes.c.kind == kind)
    if hidden:
        query = query.where(changes.c.tenant_id.not_in(hidden))
    return [Change(**row) for row in connection.execute(query).mappings()]


def episodes_frame(
    connection: sa.Connection,
    tenant_id: str | None,
    where: Filter,
    *,
    after: int,
    limit: int | None,
    hidden: Collection[str] = (),
) -> pl.DataFrame:
    """Live episodes, oldest first; `seq` is the change that stored each, and the place to go on after."""
    c = episodes.c
    conditions = [c.id > after]
    if hidden:
        conditions.append(c.tenant_id.not_in(hidden))
    if tenant_id is not None:
        conditions.append(c.tenant_id == tenant_id)
    if where.min_reward is not None:
        conditions.append(c.reward >= where.min_reward)
    if where.since is not None:
        conditions.append(c.created_at >= where.since)
    if where.until is not None:
        conditions.append(c.created_at < where.until)
    if where.task is not None:
        conditions.append(c.task == where.task)
    if where.agent_id is not None:
        conditions.append(c.agent_id == where.agent_id)
    query = (
        sa.select(
            c.id.label("seq"),
            c.uid.label("id"),
            c.tenant_id,
            c.agent_id,
            c.session_id,
            c.task,
            c.input,
            c.output,
            c.reward,
            c.created_at,
            c.expires_at,
            c.metadata,
        )
        .where(*conditions)
        .order_by(c.id)
        .limit(limit)
    )
    return _frame(connection, query)


def agents_frame(
    connection: sa.Connection, tenant_id: str | None, status: str | None, hidden: Collection[str] = ()
) -> pl.DataFrame:
    """The registry, oldest life first."""
    query = sa.select(*(column for column in agents.c if column.name != "id")).order_by(agents.c.id)
    if tenant_id is not None:
        query = query.where(agents.c.tenant_id == tenant_id)
    if status is not None:
        query = query.where(agents.c.status == status)
    if hidden:
        query = query.where(agents.c.tenant_id.not_in(hidden))
    return _frame(connection, query)


def living_agents(connection: sa.Connection) -> list[tuple[str, str]]:
    """Tenant and agent of every life that has not ended."""
    query = sa.select(agents.c.tenant_id, agents.c.agent_id).where(agents.c.status == "alive")
    return [(row.tenant_id, row.agent_id) for row in connection.execute(query)]


def tenants_frame(connection: sa.Connection) -> pl.DataFrame:
    """The tenants with their numbers, by name."""
    live = sa.select(episodes.c.tenant_id, sa.func.count().label("episodes")).group_by(episodes.c.tenant_id).subquery()
    lives = (
        sa.select(
            agents.c.tenant_id,
            sa.func.count().label("agents"),
            sa.func.count().filter(agents.c.status == "alive").label("agents_alive"),
        )
        .group_by(agents.c.tenant_id)
        .subquery()
    )
    query = (
        sa.select(
            tenants.c.tenant_id,
            tenants.c.created_at,
            sa.func.coalesce(live.c.episodes, 0).label("episodes"),
            sa.func.coalesce(lives.c.agents, 0).label("agents"),
            sa.func.coalesce(lives.c.agents_alive, 0).label("agents_alive"),
            tenants.c.retention,
        )
        .outerjoin(live, live.c.tenant_id == tenants.c.tenant_id)
        .outerjoin(lives, lives.c.tenant_id == tenants.c.tenant_id)
        .order_by(tenants.c.tenant_id)
    )
    return _frame(connection, query)


def erasures_frame(connection: sa.Connection) -> pl.DataFrame:
    """The ledger of erasures, oldest first, with who asked and why, where the log has it still."""
    ledger = [column for column in erasures.c if column.name != "pending"]
    began = sa.and_(changes.c.seq == erasures.c.seq, changes.c.subject == erasures.c.id)
    query = sa.select(*ledger, changes.c.actor, changes.c.reason).outerjoin(changes, began).order_by(erasures.c.seq)
    return _frame(connection, query)


def changes_frame(rows: Sequence[Change]) -> pl.DataFrame:
    """Rows of the log as a frame."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    schema = {name: pl.Int64 if name in ("seq", "at") else pl.String for name in Change.__struct_fields__}
    return pl.DataFrame([msgspec.structs.astuple(row) for row in rows], schema=schema, orient="row")


def counts(connection: sa.Connection, tenant_id: str | None) -> Mapping[str, int]:
    """The numbers of `Stats` that the database knows."""

    def count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        own = [table.c.tenant_id == tenant_id] if tenant_id is not None else []
        return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*own, *conditions)) or 0

    return {
        "tenants": count(tenants),
        "episodes": count(episodes),
        "forgotten": count(changes, changes.c.kind == "episode_forgotten"),
        "agents": count(agents),
        "agents_alive": count(agents, agents.c.status == "alive"),
        "seq": connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0,
    }


_POLARS = {sa.Text: "String", sa.Integer: "Int64", sa.BigInteger: "Int64", sa.Double: "Float64"}


def _frame(connection: sa.Connection, query: sa.Select[Any]) -> pl.DataFrame:
    """The result of a query, with types also where it is empty."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    schema = {column.name: getattr(pl, _POLARS.get(type(column.type), "Int64")) for column in query.selected_columns}
    return pl.DataFrame([tuple(row) for row in connection.execute(query)], schema=schema, orient="row")
