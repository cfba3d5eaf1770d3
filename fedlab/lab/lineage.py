"""Who built on whom: answers, the memories that decided them, and to whom their reward is owed."""

from __future__ import annotations

from dataclasses import dataclass

from fedlab import _html
from fedlab._polars import pl

CELL = ("arm", "seed")


@dataclass(frozen=True)
class Lineage:
    """What `trace` found.

    Args:
        episodes: One row an outcome, with `depth` (0 where no memory decided it, else one more than the deepest of
            those that did), `uses` (how many later answers it helped to decide) and `credit` (their reward, shared
            equally among all that decided each; nothing where it is below zero).
        generations: One row for each generation of each cell: `depth` (mean), `deepest`, `built` (share of tasks that
            a memory of an earlier generation decided), `inherited` (share of the reward that goes back to agents of
            earlier generations, all dead by then; null where a reward is below zero) and `lag` (how many generations
            it goes back, on average over the reward).
    """

    episodes: pl.DataFrame
    generations: pl.DataFrame

    def top(self, n: int = 10) -> pl.DataFrame:
        """The n most useful episodes of each arm, best first."""
        shown = ("seed", "generation", "agent_id", "task", "input", "output", "uses", "credit", "depth", "episode_id")
        best = self.episodes.filter(pl.col("uses") > 0).sort("credit", descending=True, maintain_order=True)
        return best.group_by("arm", maintain_order=True).head(n).select("arm", *shown)

    def _repr_html_(self) -> str:
        best = self.top(3).select("arm", "seed", "generation", "input", "output", "uses", "credit")
        return _html.table("Most useful episodes", best.rows(), head=best.columns)


def trace(episodes: pl.DataFrame, *, metric: str = "true_reward") -> Lineage:
    """Follow what each answer was made of.

    Args:
        episodes: As a run has them, each after those it used; columns `arm`, `seed`, `generation`, `episode_id`, `used`
            and the metric. What is used and not among them was there before the first generation.
        metric: Which reward is shared out.
    """
    traced = episodes.with_columns(
        pl.Series("depth", _depths(episodes), dtype=pl.Int64),
        pl.col(metric).clip(0).alias("_reward"),  # a part of a loss would count as a merit
    ).with_row_index("_row")
    edges = _edges(traced)
    given = edges.group_by(*CELL, pl.col("used").alias("episode_id")).agg(
        pl.len().cast(pl.Int64).alias("uses"), pl.col("share").sum().alias("credit")
    )
    useful = traced.join(given, on=[*CELL, "episode_id"], how="left", maintain_order="left").with_columns(
        pl.col("uses").fill_null(0), pl.col("credit").fill_null(0.0)
    )
    return Lineage(useful.drop("_row", "_reward"), _generations(traced, edges, metric))


def _depths(episodes: pl.DataFrame) -> list[int]:
    known: dict[tuple[str, int, str], int] = {}
    depths = []
    for arm, seed, episode_id, used in episodes.select(*CELL, "episode_id", "used").iter_rows():
        depth = 1 + max(known.get((arm, seed, each), 0) for each in used) if used else 0
        depths.append(depth)
        if episode_id is not None:
            known[arm, seed, episode_id] = depth
    return depths


def _edges(traced: pl.DataFrame) -> pl.DataFrame:
    """One row for each answer and memory that decided it: its share of the reward, and how many generations back."""
    homes = traced.filter(pl.col("episode_id").is_not_null()).select(
        *CELL, pl.col("episode_id").alias("used"), pl.col("generation").alias("home")
    )
    return (
        traced.select(
            *CELL, "generation", "_row", "used", (pl.col("_reward") / pl.col("used").list.len()).alias("share")
        )
        .filter(pl.col("used").list.len() > 0)
        .explode("used")
        .join(homes, on=[*CELL, "used"], how="left", maintain_order="left")
        .with_columns((pl.col("generation") - pl.col("home").fill_null(-1)).alias("lag"))
    )


def _generations(traced: pl.DataFrame, edges: pl.DataFrame, metric: str) -> pl.DataFrame:
    keys = [*CELL, "generation"]
    older = edges.filter(pl.col("lag") > 0)
    back = older.group_by(keys).agg(
        pl.col("_row").n_unique().alias("_built"),
        pl.col("share").sum().alias("_share"),
        (pl.col("share") * pl.col("lag")).sum().alias("_lag"),
    )
    losses = (pl.col(metric) < 0).any()
    return (
        traced.group_by(keys, maintain_order=True)
        .agg(
            pl.len().alias("tasks"),
            pl.col("depth").mean(),
            pl.col("depth").max().alias("deepest"),
            pl.col("_reward").sum(),
            losses.alias("_losses"),
        )
        .join(back, on=keys, how="left", maintain_order="left")
        .with_columns(pl.col("_built", "_share", "_lag").fill_null(0))
        .select(
            *keys,
            "depth",
            "deepest",
            (pl.col("_built") / pl.col("tasks")).alias("built"),
            pl.when(~pl.col("_losses") & (pl.col("_reward") > 0))
            .then(pl.col("_share") / pl.col("_reward"))
            .alias("inherited"),
            pl.when(pl.col("_share") > 0).then(pl.col("_lag") / pl.col("_share")).alias("lag"),
        )
    )
