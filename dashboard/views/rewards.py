"""Rewards: how they are distributed, how they change with the generations, and which tenant does better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import streamlit as st

from dashboard import figures_rewards as figures
from dashboard import look, sources
from dashboard.figures import in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = {"tenant": "tenant_id", "task": "task", "generation": "generation"}
FORMS = {
    "ridgeline": figures.ridges,
    "heat map": figures.heat_map,
    "histogram": figures.histogram,
    "ECDF": figures.ecdf,
}
MOST_ROWS, MOST_SHOWN, MOST_IN_HEAT_MAP = 2_000, 16, 100  # groups: that a hub tells apart, that an eye does
INTERVAL = (
    "Only live episodes count: a tenant that forgets its failures looks better than its agents were."
    " The 95 % interval of a mean is Student's: mean ± t · s / √n, with s the standard deviation of its n episodes,"
    " and t of n - 1 degrees of freedom. It takes episodes for independent; those that copied each other are not, and"
    " then it is too narrow. For a claim, compare seeds on the page Experiments."
)


def page() -> None:
    """All of it."""
    tenants = look.choose_tenants("There are no rewards yet: this hub is empty. Let an agent store its first episode.")
    summary = _summary(tenants, "tenant")
    if summary.is_empty():
        look.note("No episode is live here. Choose other tenants, or let an agent store an episode.")
        return
    best = summary.sort("mean", "tenant_id", descending=[True, False]).row(0, named=True)
    look.metrics(
        {
            "Live episodes": f"{summary['n'].sum():,}",
            "Mean reward": f"{np.average(summary['mean'], weights=summary['n']):,.3f}",
            "Highest mean of a tenant": f"{best['mean']:,.3f}",
        },
        {"Highest mean of a tenant": f"Of {look.literal(best['tenant_id'])}."},
    )
    _distribution(tenants)
    _learning(tenants)
    look.chart(
        figures.comparison(summary, look.colours()),
        summary,
        "rewards-tenants",
        "Of each tenant the quartiles of its rewards, the smallest and the largest, and the mean.",
    )
    st.caption(INTERVAL)


def _distribution(tenants: Sequence[str]) -> None:
    left, right = st.columns(2)
    with left:
        across = look.choose("Groups", COLUMNS, key="groups")
    with right:
        form = look.choose("Shown as", FORMS, key="form")
    group = COLUMNS[across]
    frame = _histograms(tenants, across)
    shown = _largest(frame, group, MOST_IN_HEAT_MAP if form == "heat map" else MOST_SHOWN)
    names = [str(each) for each in shown[group].drop_nulls().unique().sort()]
    colours = (
        look.colours() if across == "tenant" else in_order(names) if across == "generation" else look.colours(names)
    )
    look.chart(
        FORMS[form](shown, group, colours),
        shown,
        "rewards-distribution",
        f"How the rewards of live episodes are distributed, for each {across}.",
    )
    there, here = frame[group].n_unique(), shown[group].n_unique()
    rest = "" if here == there else f" The {here} largest of {there:,} groups are shown."
    st.caption(f"{frame['count'].sum():,} live episodes, in 40 bins from the smallest reward to the largest.{rest}")


def _histograms(tenants: Sequence[str], across: str) -> pl.DataFrame:
    """Histograms of the groups over some tenants, all in the same bins."""
    group = COLUMNS[across]
    if len(tenants) in (1, len(sources.tenants())) or across == "tenant":
        frame: pl.DataFrame = sources.ask("rewards", look.scope(tenants), by=across, limit=MOST_ROWS)
        return frame if across != "tenant" else frame.filter(pl.col("tenant_id").is_in(tenants))
    frame = sources.ask("rewards", None, by=("tenant", across), limit=MOST_ROWS)
    own = frame.filter(pl.col("tenant_id").is_in(tenants))
    summed = own.group_by(group, "bin_low", "bin_high").agg(pl.col("count").sum())
    return summed.sort(group, "bin_low", nulls_last=True)


def _largest(frame: pl.DataFrame, group: str, most: int) -> pl.DataFrame:
    """The rows of the groups with most episodes, in their order."""
    sizes = frame.group_by(group, maintain_order=True).agg(pl.col("count").sum())
    largest = sizes.sort("count", descending=True, maintain_order=True).head(most)
    return frame.join(largest.select(group), on=group, how="semi", nulls_equal=True, maintain_order="left")


def _learning(tenants: Sequence[str]) -> None:
    x = "generation"
    frame = _summary(tenants, "tenant", x)
    if frame[x].is_null().all():
        x = "time"
        frame = _summary(tenants, "tenant", x)
        st.caption("No episode says which generation it is of (`metadata={'generation': 3}`): time takes its place.")
    look.chart(
        figures.learning(frame, x, look.colours(), zone=look.zone().key),
        frame,
        "rewards-learning",
        f"Mean reward of each tenant by {x}, with a 95 % interval.",
    )


def _summary(tenants: Sequence[str], *by: str) -> pl.DataFrame:
    """Rewards in numbers, with a 95 % interval of the mean where there are two episodes or more."""
    from scipy.special import stdtrit  # the quantile of Student's t, in a fifth of the time of `scipy.stats`

    frame: pl.DataFrame = sources.ask("reward_summary", look.scope(tenants), by=by, limit=MOST_ROWS)
    frame = frame.filter(pl.col("tenant_id").is_in(tenants))
    factor = pl.Series("t", stdtrit(frame["n"].clip(2).to_numpy() - 1, 0.975))
    half = factor * frame["std"] / frame["n"].sqrt()
    return frame.with_columns(ci_low=frame["mean"] - half, ci_high=frame["mean"] + half)


page()
