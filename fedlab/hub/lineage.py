"""What episodes were made from: credit between groups of a tenant's episodes, and the lineage of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import sqlalchemy as sa

from fedlab.errors import InvalidRequest
from fedlab.hub.columns import TASK, generation_sql, joined, packed
from fedlab.hub.operations import numbers_of
from fedlab.hub.schema import STRETCH, changes, episode_sources, episodes, listed

if TYPE_CHECKING:
    from collections.abc import Collection

    import polars as pl

    from fedlab.hub.columns import Columns

By = Literal["generation", "agent"]
MOST_LINKS = 10_000
MAX_DEPTH = 20

_LINKS = """
SELECT json_group_array(held.id), json_group_array(stored.seq)
FROM episodes AS held CROSS JOIN episode_sources ON episode_sources.episode_id = held.id
LEFT JOIN changes AS stored ON stored.tenant_id = held.tenant_id AND stored.subject = episode_sources.source
    AND stored.kind = 'episode_stored'
WHERE held.tenant_id = ? AND held.id > ? AND held.id <= ?
"""


def credit(connection: sa.Connection, columns: Columns, tenant_id: str, *, by: By, limit: int) -> pl.DataFrame:
    """The frame of `Hub.credit`, whose arguments these are."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    column = {"generation": "generation", "agent": "agent_id"}[by]
    own = columns.episodes.filter(pl.col("tenant_id") == tenant_id)
    of_target = own.select("number", "reward", target=column)
    of_source = own.select(source_number="number", source=column)
    if by == "agent":
        stored = columns.log.filter(pl.col("tenant_id") == tenant_id, ~pl.col("forgotten"))
        of_source = (
            stored.select("number", "actor")
            .join(own.select("number", "agent_id"), on="number", how="left")
            .select(source_number="number", source=pl.coalesce("agent_id", "actor"))
        )
    pairs = ["source", "target"]
    counted = (
        _links(connection, columns, tenant_id)
        .join(of_target, on="number")
        .join(of_source, on="source_number", how="left")
        .group_by(*pairs, "number")
        .agg(pl.len(), pl.col("reward").first())
        .group_by(pairs)
        .agg(
            pl.col("len").sum().cast(pl.Int64).alias("count"),
            pl.len().cast(pl.Int64).alias("episodes"),
            pl.col("reward").mean().alias("mean_reward"),
        )
        .with_columns(pl.when(pl.col("mean_reward").is_finite()).then("mean_reward").alias("mean_reward"))
    )
    if by == "agent":
        counted = counted.with_columns(pl.col(pairs).cast(pl.String))
    return counted.sort("count", *pairs, descending=[True, False, False], nulls_last=True).head(limit)


def _links(connection: sa.Connection, columns: Columns, tenant_id: str) -> pl.DataFrame:
    """`number` of an episode and `source_number` of one of its sources: null for one that was never stored here.

    Those that were looked up are kept: to find a source by its id takes the most time. Some are of episodes that are
    forgotten since.
    """
    from fedlab._polars import pl

    after, held = columns.links.get(tenant_id, (0, None))
    if held is None or after < columns.seq:
        names = {"number": pl.Int64, "source_number": pl.Int64}
        new = packed(connection, _LINKS, names, (tenant_id, after, columns.seq))
        held = new if held is None else joined(held, new)
        columns.links[tenant_id] = columns.seq, held
    return held


class Link(NamedTuple):
    """An episode that was reached, and from which."""

    direction: str
    depth: int
    id: str
    via: str | None


def lineage(connection: sa.Connection, tenant_id: str, episode_id: str, *, depth: int, limit: int) -> pl.DataFrame:
    """The frame of `Hub.lineage`, whose arguments these are."""
    from fedlab._polars import pl

    if not numbers_of(connection, tenant_id, [episode_id]):
        raise InvalidRequest(
            f"tenant {tenant_id!r} has no episode {episode_id!r:.80}, and no trace of one that was forgotten",
            field="episode_id",
        )
    links = [Link("self", 0, episode_id, None)]
    for direction in ("source", "use"):
        links += _reached(connection, tenant_id, episode_id, direction, depth, limit)
    facts = _facts(connection, tenant_id, {link.id for link in links})
    frame = pl.DataFrame(
        links, schema={"direction": pl.String, "depth": pl.Int64, "id": pl.String, "via": pl.String}, orient="row"
    )
    return frame.join(facts, on="id", how="left", maintain_order="left")


def _reached(
    connection: sa.Connection, tenant_id: str, episode_id: str, direction: str, depth: int, limit: int
) -> list[Link]:
    """The nearest links in one direction, breadth first; what was reached before is not followed again."""
    found: list[Link] = []
    seen, frontier = {episode_id}, [episode_id]
    for distance in range(1, depth + 1):
        if not frontier or len(found) >= limit:
            break
        near = _neighbours(connection, tenant_id, frontier, direction, limit - len(found))
        found += [Link(direction, distance, reached, via) for via, reached in near]
        frontier = [each for each in dict.fromkeys(reached for _, reached in near) if each not in seen]
        seen.update(frontier)
    return found


def _neighbours(
    connection: sa.Connection, tenant_id: str, ids: Collection[str], direction: str, limit: int
) -> list[tuple[str, str]]:
    """Pairs of one of the ids and its source, or of one of the ids and what was made from it; oldest first."""
    link, own = episode_sources.c, episodes.c.tenant_id == tenant_id
    if direction == "source":
        numbers = numbers_of(connection, tenant_id, [*ids]).values()
        query = sa.select(episodes.c.uid, link.source).where(own, listed(episodes.c.id, numbers))
    else:
        last = connection.scalar(sa.select(sa.func.max(episodes.c.id))) or 0
        stretches = listed(sa.literal_column(STRETCH), range((last >> 13) + 1))
        query = sa.select(link.source, episodes.c.uid).where(own, stretches, listed(link.source, ids))
    query = query.join_from(episode_sources, episodes, episodes.c.id == link.episode_id)
    rows = connection.execute(query.order_by(link.episode_id, link.position).limit(limit))
    return list(dict.fromkeys((row[0], row[1]) for row in rows))


def _facts(connection: sa.Connection, tenant_id: str, ids: Collection[str]) -> pl.DataFrame:
    """What is known of episodes, also of those that are forgotten."""
    from fedlab._polars import pl

    c, e = changes.c, episodes.c
    numbers = numbers_of(connection, tenant_id, [*ids])
    columns: dict[str, Any] = {
        "status": pl.String, "agent_id": pl.String, "task": pl.String, "output": pl.String, "reward": pl.Float64,
        "generation": pl.Int64, "created_at": pl.Int64, "stored_at": pl.Int64, "forgotten_at": pl.Int64,
        "reason": pl.String,
    }  # fmt: skip
    facts: dict[str, dict[str, Any]] = {each: dict.fromkeys(columns) | {"status": "unknown"} for each in ids}
    stored = sa.select(c.subject, c.at, c.actor).where(listed(c.seq, numbers.values()))
    for subject, at, actor in connection.execute(stored):
        facts[subject] |= {"status": "forgotten", "stored_at": at, "agent_id": actor}
    texts = [sa.func.substr(column, 1, TASK, type_=sa.Text).label(column.name) for column in (e.task, e.output)]
    live = sa.select(
        e.uid, e.agent_id, *texts, e.reward, e.created_at, sa.literal_column(generation_sql()).label("generation")
    ).where(listed(e.id, numbers.values()))
    for uid, *values in connection.execute(live):
        names = ("agent_id", "task", "output", "reward", "created_at", "generation")
        facts[uid] |= dict(zip(names, values, strict=True)) | {"status": "live"}
    if gone := [each for each in numbers if facts[each]["status"] == "forgotten"]:
        # By the tenant's part of the log: no index has what forgot an episode.
        after = min(numbers[each] for each in gone)
        own = (c.tenant_id == tenant_id, c.seq > after, c.kind == "episode_forgotten", listed(c.subject, gone))
        for subject, at, reason in connection.execute(sa.select(c.subject, c.at, c.reason).where(*own)):
            facts[subject] |= {"forgotten_at": at, "reason": reason}
    rows = [(each, *known.values()) for each, known in facts.items()]
    return pl.DataFrame(rows, schema={"id": pl.String, **columns}, orient="row")
