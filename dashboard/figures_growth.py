"""Plotly figures of how a memory grows and shrinks: functions of what `growth` and `forgetting` of a hub give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from dashboard.figures import groups, line, stretches, times
from dashboard.look import plain
from fedlab.plots import blank

if TYPE_CHECKING:
    from collections.abc import Mapping

    import plotly.graph_objects as go

ACROSS = 2
"""Panels side by side: a phone shows them, too."""
PATTERNS = {"stored": "", "forgotten": "/", "erased": "x"}
COUNTS = {"tickformat": ","}
REASONS = 6
"""Most reasons that one mark tells."""


def stacked(
    frame: pl.DataFrame, value: pl.Expr, group: str, colours: Mapping[str, str], *, title: str, unit: str, zone: str
) -> go.Figure:
    """An area for each group, one on the other."""
    figure = blank(title, f"time ({zone})", unit, group.removesuffix("_id"))
    hover, ticks = ("%{y:.3s}B", {"tickformat": "~s", "ticksuffix": "B"}) if unit == "bytes" else ("%{y:,}", COUNTS)
    style: dict[str, Any] = {"shape": "hv", "width": 1.5, "stackgroup": "all", "hovertemplate": hover}
    for name, colour, rows in groups(frame, group, colours):
        line(figure, stretches(rows["time"], zone), rows.select(value).to_series(), name, colour, **style)
    return figure.update_yaxes(rangemode="tozero", **ticks)


def selectable(figure: go.Figure, frame: pl.DataFrame, *, zone: str) -> go.Figure:
    """Let a box be drawn on a figure over time: what has no points can't be selected, and these are not seen."""
    at = times(frame["time"].unique().sort(), zone)
    points = {"mode": "markers", "marker": {"opacity": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=at, y=[0] * len(at), name="", **points)
    return figure.update_layout(dragmode="select", selectdirection="h")


def panels(frame: pl.DataFrame, group: str, colours: Mapping[str, str], *, zone: str) -> go.Figure:
    """A panel for each group: live episodes, and dotted what was stored and what had gone since the time begins."""
    from plotly.subplots import make_subplots

    parts = list(groups(frame, group, colours))
    rows = math.ceil(len(parts) / ACROSS)
    titles = [name for name, _, _ in parts]
    figure = make_subplots(rows, ACROSS, shared_yaxes="all", shared_xaxes="all", subplot_titles=titles)
    figure.update_layout(blank("Each on its own", "", "", "episodes").layout)
    for number, (_, colour, own) in enumerate(parts):
        place = {"row": number // ACROSS + 1, "col": number % ACROSS + 1}
        lines: list[tuple[str, pl.Series, dict[str, Any]]] = [
            ("live", own["live"], {"fill": "tozeroy"}),
            ("stored so far", own["stored"].cum_sum(), {"width": 1.5, "dash": "dash"}),
            ("forgotten or erased so far", (own["forgotten"] + own["erased"]).cum_sum(), {"width": 1.5, "dash": "dot"}),
        ]
        for name, values, style in lines:
            style |= {"shape": "hv", "showlegend": number == 0, **place}
            line(figure, stretches(own["time"], zone), values, name, colour, **style)
    figure.update_xaxes(title={"text": f"time ({zone})"}, row=rows)
    figure.update_yaxes(title={"text": "episodes"}, col=1)
    figure.update_yaxes(rangemode="tozero", tickformat=",")
    return figure.update_layout(height=180 + 210 * rows)


def turnover(frame: pl.DataFrame, group: str, colours: Mapping[str, str], *, zone: str) -> go.Figure:
    """What was stored in each stretch of time upwards, and what was forgotten or erased downwards."""
    what = "episodes in a stretch", group.removesuffix("_id")
    figure = blank("Stored against forgotten", f"time ({zone})", *what, barmode="relative", bargap=0)
    for name, colour, rows in groups(frame, group, colours):
        parts = {"stored": rows["stored"], "forgotten": -rows["forgotten"], "erased": -rows["erased"]}
        for part, values in parts.items():
            if part == "stored" or (values != 0).any():
                figure.add_bar(
                    x=times(rows["time"], zone),
                    y=values.to_list(),
                    name=name if part == "stored" else f"{name}, {part}",
                    legendgroup=name,
                    showlegend=part == "stored",
                    marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": PATTERNS[part]}},
                    hovertemplate="%{y:+,}",
                )
    return figure.update_yaxes(**COUNTS)


def mark(figure: go.Figure, forgetting: pl.DataFrame, *, zone: str) -> go.Figure:
    """Add a vertical mark where episodes were forgotten; it says how many, of whom and why."""
    told = (
        forgetting.sort("forgotten", descending=True)
        .with_columns(text=pl.struct("tenant_id", "reason", "forgotten").map_elements(_told, return_dtype=pl.String))
        .group_by("time", maintain_order=True)
        .agg(pl.col("text").head(REASONS).str.join("<br>"), more=pl.len() - REASONS)
        .sort("time")
    )
    if told.is_empty():
        return figure
    x: list[str | None] = []
    texts: list[str] = []
    for at, (text, more) in zip(times(told["time"], zone), told.select("text", "more").rows(), strict=True):
        x += [at, at, None]
        texts += ["", text + (f"<br>and {more} more" if more > 0 else ""), ""]
    marks: dict[str, Any] = {"yaxis": "y2", "text": texts, "hovertemplate": "%{text}"}
    grey = "rgba(127,127,127,0.6)"
    line(figure, x, [0, 1, None] * len(told), "forgotten, why", grey, width=1, dash="dot", **marks)
    return figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})


def by_generation(frame: pl.DataFrame, colours: Mapping[str, str]) -> go.Figure:
    """How many episodes of each generation are live, by tenant; of a `reward_summary`."""
    figure = blank("What is remembered of each generation", "generation", "live episodes", "tenant")
    for name, colour, rows in groups(frame.drop_nulls("generation"), "tenant_id", colours):
        x, y, marker = rows["generation"].to_list(), rows["n"].to_list(), {"color": colour, "line": {"width": 0}}
        figure.add_bar(x=x, y=y, name=name, marker=marker, hovertemplate="%{y:,}")
    return figure.update_layout(barmode="stack").update_yaxes(**COUNTS)


def _told(row: dict[str, Any]) -> str:
    return f"{plain(row['tenant_id'])} forgot {row['forgotten']:,}: {plain(row['reason'])}"
