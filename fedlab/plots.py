"""Plotly figures, shared by notebooks, dashboard and demo, and a page that holds them and works offline.

A figure is a function of a frame. A tenant has the same colour in all of them.
"""

from __future__ import annotations

import html
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab._polars import pl

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    import plotly.graph_objects as go

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
"""Colours that the colour-blind can tell apart (Okabe and Ito 2008), without the yellow, which is faint on white,
and with a grey for the black, which is lost on a dark page."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""A second mark for tenants beyond the seventh."""


def tenant_colours(tenants: Iterable[str]) -> dict[str, str]:
    """One colour for each tenant, by alphabetical order.

    >>> tenant_colours(["globex", "acme"])
    {'acme': '#0072B2', 'globex': '#E69F00'}
    """
    return {tenant: OKABE_ITO[i % len(OKABE_ITO)] for i, tenant in enumerate(sorted(set(tenants)))}


def learning_curves(frame: pl.DataFrame, *, tenants: Iterable[str] | None = None) -> go.Figure:
    """Mean reward by generation, one line a tenant, with a 95 % interval of the mean.

    Args:
        frame: One row an episode; columns `tenant_id`, `generation`, `reward`.
        tenants: All tenants there are, if the frame does not hold them all: it decides the colours.
    """
    means = reward_by_generation(frame)
    figure = blank(
        "What memory buys: reward by generation", "generation", "mean reward per task (95 % interval)", "tenant"
    )
    for tenant, colour, dash in _marks(means["tenant_id"], tenants):
        rows = means.filter(pl.col("tenant_id") == tenant)
        x = rows["generation"].to_list()
        add_band(figure, x, rows["low"].to_list(), rows["high"].to_list(), colour, tenant)
        figure.add_scatter(
            x=x,
            y=rows["mean"].to_list(),
            name=tenant,
            legendgroup=tenant,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            customdata=rows["tasks"].to_list(),
            hovertemplate="generation %{x}: %{y:.2f} over %{customdata} tasks",
        )
    return figure


def reward_by_generation(frame: pl.DataFrame) -> pl.DataFrame:
    """Mean reward with a 95 % interval (normal approximation), cut to the range of the rewards.

    Args:
        frame: One row an episode; columns `tenant_id`, `generation`, `reward`.

    Returns:
        Columns `tenant_id`, `generation`, `tasks`, `mean`, `low`, `high`, sorted.
    """
    reward = pl.col("reward")
    half = 1.96 * reward.std().fill_null(0.0) / reward.count().sqrt()
    floor, ceiling = frame.select(reward.min().alias("low"), reward.max().alias("high")).row(0)
    return (
        frame.group_by("tenant_id", "generation")
        .agg(
            reward.count().alias("tasks"),
            reward.mean().alias("mean"),
            (reward.mean() - half).alias("low"),
            (reward.mean() + half).alias("high"),
        )
        .with_columns(pl.col("low", "high").clip(floor, ceiling))
        .sort("tenant_id", "generation")
    )


def memory_growth(changes: pl.DataFrame, *, tenants: Iterable[str] | None = None) -> go.Figure:
    """Episodes in the memory over time: stored minus forgotten, one line a tenant.

    Args:
        changes: The change log as a frame; columns `tenant_id`, `kind`, `at` (ms UTC).
        tenants: All tenants there are, if the frame does not hold them all: it decides the colours.
    """
    step = pl.col("kind").replace_strict(
        {"episode_stored": 1, "episode_forgotten": -1}, default=0, return_dtype=pl.Int64
    )
    size = (
        changes.with_columns(step.alias("step"))
        .filter(pl.col("step") != 0)
        # What one commit did is one point.
        .group_by("tenant_id", "at")
        .agg(pl.col("step").sum())
        .sort("at")
        .with_columns(pl.col("step").cum_sum().over("tenant_id").alias("episodes"), pl.from_epoch("at", time_unit="ms"))
    )
    figure = blank("How the memory grows: stored minus forgotten", "time (UTC)", "episodes in the memory", "tenant")
    for tenant, colour, dash in _marks(size["tenant_id"], tenants):
        rows = size.filter(pl.col("tenant_id") == tenant)
        figure.add_scatter(
            x=rows["at"].to_list(),
            y=rows["episodes"].to_list(),
            name=tenant,
            mode="lines",
            line={"color": colour, "dash": dash, "shape": "hv"},
            hovertemplate="%{x|%H:%M:%S}: %{y:,} episodes",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def write_page(path: str | os.PathLike[str], title: str, figures: Sequence[go.Figure], summary: str = "") -> Path:
    """One HTML file that holds everything, plotly.js too: it needs no network.

    Args:
        path: Where to; the folder is made if need be.
        title: Plain text.
        figures: From top to bottom.
        summary: HTML that stands above them, such as a table.

    Returns:
        The absolute path.
    """
    name = html.escape(title)
    parts = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>
<style>
body {{ font-family: system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
</style></head><body><h1>{name}</h1>
{summary}
{"".join(parts)}
</body></html>
"""
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def blank(title: str, x: str, y: str, legend: str = "", **layout: Any) -> go.Figure:
    """A figure without data, in the style of all: letters that can be read from the back of a room.

    Args:
        title: Stands above it.
        x: Name of the horizontal axis, with its unit.
        y: Name of the vertical axis, with its unit.
        legend: What its entries are.
        layout: More of it, or other than usual.
    """
    import plotly.graph_objects as go

    usual = {
        "title": {"text": title},
        "template": "plotly_white",
        "font": {"size": 15},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "legend": {"title": {"text": legend}},
        "showlegend": True,
        "hovermode": "x unified",
    }
    return go.Figure(layout=usual | layout)


def add_band(
    figure: go.Figure,
    x: Sequence[float],
    low: Sequence[float | None],
    high: Sequence[float | None],
    colour: str,
    group: str,
    **place: int,
) -> None:
    """Shade an interval; where it is null there is a gap.

    Args:
        figure: To which the band is added.
        x: Where, ascending.
        low: Lower ends.
        high: Upper ends.
        colour: As `#rrggbb`; the band is faint.
        group: Of the legend, with which it is shown and hidden.
        place: `row` and `col`, in a figure of several panels.
    """
    xs: list[float | None] = []
    ys: list[float | None] = []
    points = list(zip(x, low, high, strict=True))
    for known, run in itertools.groupby(points, key=lambda point: None not in point):
        if known:
            at, below, above = map(list, zip(*run, strict=True))
            xs += [*at, *at[::-1], None]
            ys += [*above, *below[::-1], None]
    if xs:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        figure.add_scatter(
            x=xs[:-1],
            y=ys[:-1],
            mode="lines",
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.15)",
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=group,
            showlegend=False,
            **place,
        )


def _marks(present: pl.Series, tenants: Iterable[str] | None) -> list[tuple[str, str, str]]:
    """Tenant, colour and dash, for the tenants that are present."""
    shown = set(present.to_list())
    colours: Mapping[str, str] = tenant_colours(shown.union(tenants or ()))
    marks = [
        (tenant, colour, DASHES[i // len(OKABE_ITO) % len(DASHES)])
        for i, (tenant, colour) in enumerate(colours.items())
    ]
    return [mark for mark in marks if mark[0] in shown]
