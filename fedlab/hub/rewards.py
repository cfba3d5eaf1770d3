"""How rewards are distributed: histograms and summaries of groups of live episodes. Pure: from columns to frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from fedlab.errors import InvalidRequest
from fedlab.hub.columns import TASK
from fedlab.hub.growth import Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from fedlab.hub.columns import Columns
    from fedlab.recall import Filter

By = Literal["tenant", "task", "agent", "generation", "time"]
MOST_BINS, MOST_GROUPS = 200, 2_000
COLUMNS: dict[str, str] = {"tenant": "tenant_id", "agent": "agent_id"}


def check_by(by: str | Sequence[str]) -> tuple[By, ...]:
    """Names of groups, each once, in the order in which they were given.

    Raises:
        InvalidRequest: If one is none, or there is none.
    """
    wanted = (by,) if isinstance(by, str) else tuple(by)
    known = get_args(By)
    if not wanted or len({*wanted}) < len(wanted) or not {*wanted} <= {*known}:
        raise InvalidRequest(f"by is some of {', '.join(known)}, each at most once, not {by!r:.80}", field="by")
    return wanted  # type: ignore[return-value]


def select(columns: Columns, tenant_id: str | None, where: Filter) -> pl.DataFrame:
    """The live episodes that pass a filter."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    task = None if where.task is None else where.task[:TASK]
    tests = {
        "tenant_id": (tenant_id, pl.Expr.eq),
        "task": (task, pl.Expr.eq),
        "agent_id": (where.agent_id, pl.Expr.eq),
        "reward": (where.min_reward, pl.Expr.ge),
    }
    chosen = [test(pl.col(name), pl.lit(value)) for name, (value, test) in tests.items() if value is not None]
    if where.since is not None:
        chosen.append(pl.col("created_at") >= where.since)
    if where.until is not None:
        chosen.append(pl.col("created_at") < where.until)
    return columns.episodes.filter(chosen) if chosen else columns.episodes


def histogram(
    episodes: pl.DataFrame, where: Filter, *, by: tuple[By, ...], bins: int, periods: int, limit: int
) -> pl.DataFrame:
    """The frame of `Hub.rewards`, whose arguments these are, of selected episodes."""
    from fedlab._polars import pl

    grouped, keys = _grouped(episodes, where, by, periods, limit)
    values = grouped["reward"].to_numpy()
    edges = _edges(values, bins)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    counted = grouped.with_columns(pl.Series("bin", place, pl.Int64)).group_by(*keys, "bin").agg(count=pl.len())
    table = pl.DataFrame(
        {"bin": range(bins), "bin_low": edges[:-1], "bin_high": edges[1:]},
        schema={"bin": pl.Int64, "bin_low": pl.Float64, "bin_high": pl.Float64},
    )
    return (
        grouped.select(keys)
        .unique()
        .join(table, how="cross")
        .join(counted, on=[*keys, "bin"], how="left", nulls_equal=True)
        .sort(*keys, "bin", nulls_last=True)
        .select(*keys, "bin_low", "bin_high", pl.col("count").fill_null(0).cast(pl.Int64))
    )


def summary(episodes: pl.DataFrame, where: Filter, *, by: tuple[By, ...], periods: int, limit: int) -> pl.DataFrame:
    """The frame of `Hub.reward_summary`, whose arguments these are, of selected episodes."""
    from fedlab._polars import pl

    grouped, keys = _grouped(episodes, where, by, periods, limit)
    reward = pl.col("reward")
    # Rewards near the largest float overflow: then there is no number.
    finite = [pl.when(each.is_finite()).then(each).alias(name) for name, each in
              {"mean": reward.mean(), "std": reward.std()}.items()]  # fmt: skip
    quartiles = {"q25": 0.25, "median": 0.5, "q75": 0.75}
    return (
        grouped.group_by(keys)
        .agg(
            pl.len().cast(pl.Int64).alias("n"),
            *finite,
            reward.min().alias("min"),
            *(reward.quantile(share, "linear").alias(name) for name, share in quartiles.items()),
            reward.max().alias("max"),
        )
        .sort(keys, nulls_last=True)
    )


def _grouped(
    episodes: pl.DataFrame, where: Filter, by: tuple[By, ...], periods: int, limit: int
) -> tuple[pl.DataFrame, list[str]]:
    """Rewards with the keys of their groups, of the largest groups; and the names of the keys."""
    from fedlab._polars import pl

    keys = [COLUMNS.get(each, each) for each in by]
    if "time" in by:
        episodes = episodes.with_columns(_period(episodes, where, periods))
    frame = episodes.select(*keys, "reward")
    sizes = frame.group_by(keys).agg(n=pl.len())
    names = [name for name in keys if frame.schema[name] == pl.Categorical]
    if sizes.height > limit:
        order = sizes.with_columns(pl.col(names).cast(pl.String)).sort(
            "n", *keys, descending=[True, *[False] * len(keys)]
        )
        kept = order.head(limit).drop("n").with_columns(pl.col(names).cast(pl.Categorical))
        frame = frame.join(kept, on=keys, how="semi", nulls_equal=True)
    return frame.with_columns(pl.col(names).cast(pl.String)), keys


def _period(episodes: pl.DataFrame, where: Filter, periods: int) -> pl.Expr:
    """The start of the stretch of time in which an episode was made."""
    from fedlab._polars import pl

    made = episodes["created_at"]
    if made.is_empty():
        return pl.lit(None, pl.Datetime("ms", "UTC")).alias("time")
    since = int(made.min()) if where.since is None else where.since  # type: ignore[arg-type]
    until = int(made.max()) + 1 if where.until is None else where.until  # type: ignore[arg-type]
    width = Stretch.of(since, until, periods).width
    at = (pl.col("created_at") - since) // width * width + since
    return at.cast(pl.Datetime("ms", "UTC")).alias("time")


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """The edges of bins of equal width from the smallest value to the largest."""
    if not len(values):
        return np.linspace(0.0, 1.0, bins + 1)
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    scale = 4.0 if max(-low, high) > 1e300 else 1.0  # the span of two floats may be none
    return np.asarray(np.linspace(low / scale, high / scale, bins + 1) * scale)
