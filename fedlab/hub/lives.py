"""The lives of agents with what came of them, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from fedlab.hub import reading
from fedlab.hub.schema import agents

if TYPE_CHECKING:
    from collections.abc import Collection

    import polars as pl

    from fedlab.hub.columns import Columns

MOST = 20_000
"""Most lives at once."""


def lives(
    connection: sa.Connection,
    columns: Columns,
    tenant_id: str | None,
    *,
    since: int | None,
    until: int | None,
    limit: int,
    hidden: Collection[str],
) -> pl.DataFrame:
    """The frame of `Hub.lives`, whose arguments these are, but for `hidden` tenants."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    c = agents.c
    chosen = [] if tenant_id is None else [c.tenant_id == tenant_id]
    if since is not None:
        chosen.append(sa.or_(c.ended_at.is_(None), c.ended_at >= since))
    if until is not None:
        chosen.append(c.spawned_at < until)
    if hidden:
        chosen.append(c.tenant_id.not_in(hidden))
    shown = reading.frame_of(connection, sa.select(agents).where(*chosen).order_by(c.id.desc()).limit(limit))
    seconds = {"lifetime": "expires_at", "lived": "ended_at"}
    return (
        shown.join(_pushed(connection, columns, shown), on="id", how="left")
        .with_columns(
            pl.concat_str("tenant_id", "agent_id", separator="/").alias("session_id"),
            pl.col("episodes").fill_null(0),
            *(((pl.col(end) - pl.col("spawned_at")) / 1000).alias(name) for name, end in seconds.items()),
        )
        .select(
            *("tenant_id", "agent_id", "session_id", "status", "spawned_at", "expires_at", "ended_at"),
            *("lifetime", "lived", "pulled", "pushed", "episodes", "mean_reward", "generation"),
        )
    )


def _pushed(connection: sa.Connection, columns: Columns, shown: pl.DataFrame) -> pl.DataFrame:
    """By the number of a life: what was stored of the agent from there to its next life, and is live."""
    from fedlab._polars import pl

    names = ["tenant_id", "agent_id"]
    own = columns.episodes.join(shown.select(pl.col(names).cast(pl.Categorical)), on=names, how="semi")
    # Also lives that are not shown: what they pushed is not that of the one before.
    query = sa.select(agents.c.id, agents.c.tenant_id, agents.c.agent_id)
    query = query.where(agents.c.id >= (shown["id"].min() or 0))
    begun = reading.frame_of(connection, query.order_by(agents.c.id)).with_columns(pl.col(names).cast(pl.Categorical))
    of_life = own.sort("number").join_asof(
        begun, left_on="number", right_on="id", by=names, strategy="backward", check_sortedness=False
    )
    mean = pl.col("reward").mean()
    return (
        of_life.drop_nulls("id")
        .group_by("id")
        .agg(
            pl.len().cast(pl.Int64).alias("episodes"),
            pl.when(mean.is_finite()).then(mean).alias("mean_reward"),
            pl.col("generation").drop_nulls().first(),
        )
    )
