"""What a hub reads from its database: episodes by number, frames, the log. Reads see one moment each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fedlab.episode import Episode, Memory, StoredEpisode
from fedlab.hub.log import unpack_vector
from fedlab.hub.recent import Raw
from fedlab.hub.schema import agents, attic, changes, episodes, erasures, holds, packed, tenants
from fedlab.hub.values import Change, Delta
from fedlab.retention.rows import conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    import polars as pl

    from fedlab.hub.columns import Columns
    from fedlab.hub.searching import Hit
    from fedlab.recall import Filter

_FIELDS = ["id", "tenant_id", "agent_id", "session_id", "task", "input", "output", "reward", "created_at", "expires_at"]
_EPISODES = f"""
SELECT episodes.id, u{", ".join(_FIELDS)}, metadata, vector
FROM json_each(?) AS wanted CROSS JOIN episodes ON episodes.id = wanted.value
    CROSS JOIN vectors ON vectors.episode_id = wanted.value
"""  # noqa: S608 - names of columns
_SOURCES = """
SELECT episode_id, source FROM json_each(?) AS wanted CROSS JOIN episode_sources ON episode_id = wanted.value
ORDER BY wanted.key, position
"""
_VECTORS = "SELECT episode_id, vector FROM json_each(?) AS wanted CROSS JOIN vectors ON episode_id = wanted.value"
_force, _decode = msgspec.structs.force_setattr, msgspec.json.Decoder().decode


def read_raw(run: Callable[..., Any], ids: Sequence[int]) -> dict[int, Raw]:
    """Live episodes by number; those that are gone are left out.

    Straight to the driver (`run` is its `execute`), with a fixed number of statements: this stands on the way of every
    recall, and what SQLAlchemy does for a result takes a quarter of its time.
    """
    sources = _by_number(run, _SOURCES, ids)
    found: dict[int, Raw] = {}
    for number, *values, metadata, vector in run(_EPISODES, (packed(ids),)):
        if metadata != "{}":
            _decode(metadata)  # damage is noticed here, where it is known what it means
        fields = dict(zip(_FIELDS, values, strict=True))
        of_it = tuple(sources.get(number, ()))
        found[number] = Raw(StoredEpisode(**fields, sources=of_it, vector=unpack_vector(vector)), metadata)
    return found


def _by_number(run: Callable[..., Any], query: str, ids: Sequence[int]) -> dict[int, list[Any]]:
    """What a query has of episodes, by their numbers."""
    found: dict[int, list[Any]] = {}
    for number, value in run(query, (packed(ids),)):
        found.setdefault(number, []).append(value)
    return found


def episode_of(raw: Raw, *, with_vector: bool) -> Episode:
    """The episode that was read, for whoever asked: nobody else has its metadata."""
    # A copy, and the metadata of its own: in an eighth of the time of making an episode.
    # `copy.copy` takes three times as long to find the same.
    episode: Episode = raw.episode.__copy__()  # type: ignore[attr-defined]
    _force(episode, "metadata", _decode(raw.metadata) if raw.metadata != "{}" else {})
    if not with_vector:
        _force(episode, "vector", None)
    return episode


def memories_of(found: Mapping[int, Raw], hits: Iterable[Hit], *, with_vectors: bool) -> list[Memory]:
    """What a search found as memories, of the episodes that were read."""
    return [
        Memory(episode_of(found[number], with_vector=with_vectors), similarity, score)
        for number, similarity, score in hits
    ]


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
    run: Any = connection.connection.driver_connection.execute  # type: ignore[union-attr]
    found = read_raw(run, ids)
    return Delta(
        seq=seq,
        stored=[episode_of(found[number], with_vector=True) for number in sorted(found)],
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
    columns = (changes.c[name] for name in Change.__struct_fields__)
    query = sa.select(*columns).where(changes.c.seq > after).order_by(changes.c.seq).limit(limit)
    if tenant_id is not None:
        query = query.where(changes.c.tenant_id == tenant_id)
    if kind is not None:
        query = query.where(changes.c.kind == kind)
    if hidden:
        query = query.where(changes.c.tenant_id.not_in(hidden))
    return _changes(connection, query)


def tail(
    connection: sa.Connection,
    *,
    tenant_id: str | None,
    kinds: Sequence[str] | None,
    actor: str | None,
    since: int | None,
    until: int | None,
    before: int | None,
    limit: int,
    hidden: Collection[str] = (),
) -> list[Change]:
    """Rows of the log that pass all filters, newest first, but for those of `hidden` tenants."""
    c = changes.c
    made: list[tuple[Any, Callable[[Any], sa.ColumnElement[bool]]]] = [
        (tenant_id, c.tenant_id.__eq__),
        (kinds, c.kind.in_),
        (actor, c.actor.__eq__),
        (since, c.at.__ge__),
        (until, c.at.__lt__),
        (before, c.seq.__lt__),
        (hidden or None, c.tenant_id.not_in),
    ]
    chosen = [make(value) for value, make in made if value is not None]
    query = sa.select(*(c[name] for name in Change.__struct_fields__)).where(*chosen)
    return _changes(connection, query.order_by(c.seq.desc()).limit(limit))


def _changes(connection: sa.Connection, query: sa.Select[Any]) -> list[Change]:
    """The rows of a query of all columns of `Change`. From the driver's cursor: `Row`s take three times as long."""
    names = Change.__struct_fields__
    result: Any = connection.execute(query)
    return [Change(**dict(zip(names, row, strict=True))) for row in result.cursor]


def episodes_frame(
    connection: sa.Connection,
    tenant_id: str | None,
    where: Filter,
    *,
    ids: Sequence[str] | None,
    after: int,
    limit: int | None,
    hidden: Collection[str] = (),
) -> pl.DataFrame:
    """Live episodes, oldest first; `seq` is the change that stored each, and the place to go on after."""
    c = episodes.c
    chosen = [c.id > after, *conditions(where)]
    if hidden:
        chosen.append(c.tenant_id.not_in(hidden))
    if tenant_id is not None:
        chosen.append(c.tenant_id == tenant_id)
    if ids is not None:
        # By the log's unique index: an episode's number is the seq of the change that stored it.
        stored = [changes.c.kind == sa.literal_column("'episode_stored'"), changes.c.subject.in_(ids)]
        if tenant_id is not None:
            stored.append(changes.c.tenant_id == tenant_id)
        chosen.append(c.id.in_(sa.select(changes.c.seq).where(*stored)))
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
        .where(*chosen)
        .order_by(c.id)
        .limit(limit)
    )
    return frame_of(connection, query)


def with_vectors(connection: sa.Connection, frame: pl.DataFrame, dimension: int) -> pl.DataFrame:
    """A frame of episodes with the column `vector`: as float32, in which the hub's float16 are exact."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    held = _by_number(connection.exec_driver_sql, _VECTORS, frame["seq"].to_list())
    packed = b"".join(held[number][0] for number in frame["seq"])
    values = unpack_vector(packed).astype("<f4").reshape(-1, dimension)
    return frame.with_columns(pl.Series("vector", values, pl.Array(pl.Float32, dimension)))


def with_sources(connection: sa.Connection, frame: pl.DataFrame) -> pl.DataFrame:
    """A frame of episodes with the column `sources`: a list of ids."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    held = _by_number(connection.exec_driver_sql, _SOURCES, frame["seq"].to_list())
    values = [held.get(number, []) for number in frame["seq"]]
    return frame.with_columns(pl.Series("sources", values, pl.List(pl.String)))


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
    return frame_of(connection, query)


def holds_frame(connection: sa.Connection, tenant_id: str) -> pl.DataFrame:
    """What is held, oldest episode first."""
    c = episodes.c
    query = (
        sa.select(
            c.id.label("seq"),
            c.uid.label("id"),
            c.tenant_id,
            c.agent_id,
            c.task,
            c.reward,
            holds.c.reason,
            holds.c.actor,
            holds.c.at,
        )
        .join(holds, holds.c.episode_id == c.id)
        .where(holds.c.tenant_id == tenant_id)
        .order_by(c.id)
    )
    return frame_of(connection, query)


def living_agents(connection: sa.Connection) -> list[tuple[str, str]]:
    """Tenant and agent of every life that has not ended."""
    query = sa.select(agents.c.tenant_id, agents.c.agent_id).where(agents.c.status == "alive")
    return [(row.tenant_id, row.agent_id) for row in connection.execute(query)]


def tenants_frame(connection: sa.Connection, columns: Columns | None = None) -> pl.DataFrame:
    """The tenants with their numbers, by name; their episodes are counted in the columns, if these are there."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    count = sa.select(episodes.c.tenant_id, sa.func.count()).group_by(episodes.c.tenant_id)
    live = columns.live() if columns else dict(tuple(row) for row in connection.execute(count))
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
            sa.func.coalesce(lives.c.agents, 0).label("agents"),
            sa.func.coalesce(lives.c.agents_alive, 0).label("agents_alive"),
            tenants.c.retention,
        )
        .outerjoin(lives, lives.c.tenant_id == tenants.c.tenant_id)
        .order_by(tenants.c.tenant_id)
    )
    frame = frame_of(connection, query)
    counted = pl.col("tenant_id").replace_strict(live, default=0, return_dtype=pl.Int64).alias("episodes")
    return frame.select("tenant_id", "created_at", counted, "agents", "agents_alive", "retention")


def erasures_frame(connection: sa.Connection) -> pl.DataFrame:
    """The ledger of erasures, oldest first, with who asked and why, where the log has it still."""
    ledger = [column for column in erasures.c if column.name != "pending"]
    began = sa.and_(changes.c.seq == erasures.c.seq, changes.c.subject == erasures.c.id)
    query = sa.select(*ledger, changes.c.actor, changes.c.reason).outerjoin(changes, began).order_by(erasures.c.seq)
    return frame_of(connection, query)


def changes_frame(rows: Sequence[Change]) -> pl.DataFrame:
    """Rows of the log as a frame."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    schema = {name: pl.Int64 if name in ("seq", "at") else pl.String for name in Change.__struct_fields__}
    return pl.DataFrame([msgspec.structs.astuple(row) for row in rows], schema=schema, orient="row")


def counts(connection: sa.Connection, tenant_id: str | None, columns: Columns | None = None) -> Mapping[str, int]:
    """The numbers of `Stats` that the database knows; episodes are counted in the columns, if these are there."""

    def count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        own = [table.c.tenant_id == tenant_id] if tenant_id is not None else []
        return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*own, *conditions)) or 0

    def counted(by_tenant: Mapping[str, int]) -> int:
        return sum(by_tenant.values()) if tenant_id is None else by_tenant.get(tenant_id, 0)

    return {
        "tenants": count(tenants),
        "episodes": counted(columns.live()) if columns else count(episodes),
        "forgotten": counted(columns.forgotten()) if columns else count(changes, changes.c.kind == "episode_forgotten"),
        "kept": count(attic),
        "agents": count(agents),
        "agents_alive": count(agents, agents.c.status == "alive"),
        "seq": connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0,
    }


_POLARS = {sa.Text: "String", sa.Integer: "Int64", sa.BigInteger: "Int64", sa.Double: "Float64"}


def frame_of(connection: sa.Connection, query: sa.Select[Any]) -> pl.DataFrame:
    """The result of a query, with types also where it is empty."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    schema = {column.name: getattr(pl, _POLARS.get(type(column.type), "Int64")) for column in query.selected_columns}
    return pl.DataFrame([tuple(row) for row in connection.execute(query)], schema=schema, orient="row")
