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
REASONS = 6
"""Most reasons that one mark tells."""


def stacked(
    frame: pl.DataFrame, value: pl.Expr, group: str, colours: Mapping[str, str], *, title: str, unit: str, zone: str
) -> go.Figure:
    """An area for each group, one on the other."""
    figure = blank(title, f"time ({zone})", unit, group.removesuffix("_id"))
    number = "%{y:.3s}B" if unit == "bytes" else "%{y:,}"
    style: dict[str, Any] = {"shape": "hv", "width": 1.5, "stackgroup": "all", "hovertemplate": number}
    for name, colour, rows in groups(frame, group, colours):
        line(figure, stretches(rows["time"], zone), rows.select(value).to_series(), name, colour, **style)
    return figure.update_yaxes(
        rangemode="tozero", tickformat="~s" if unit == "bytes" else ",", ticksuffix="B" if unit == "bytes" else ""
    )


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
    figure = blank("Stored against forgotten", f"time ({zone})", "episodes in a stretch", group.removesuffix("_id"))
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
                    marker={
                        "color": colour,
                        "line": {"width": 0},
                        "pattern": {"shape": {"stored": "", "forgotten": "/", "erased": "x"}[part]},
                    },
                    hovertemplate="%{y:+,}",
                )
    return figure.update_layout(barmode="relative", bargap=0).update_yaxes(tickformat=",")


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
    x, y, texts = [], [], []
    for at, (text, more) in zip(times(told["time"], zone), told.select("text", "more").rows(), strict=True):
        x += [at, at, None]
        y += [0, 1, None]
        texts += ["", text + (f"<br>and {more} more" if more > 0 else ""), ""]
    figure.add_scatter(
        x=x,
        y=y,
        yaxis="y2",
        name="forgotten, why",
        mode="lines",
        line={"color": "rgba(127,127,127,0.6)", "width": 1, "dash": "dot"},
        text=texts,
        hovertemplate="%{text}",
    )
    return figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})


def by_generation(frame: pl.DataFrame, colours: Mapping[str, str]) -> go.Figure:
    """How many episodes of each generation are live, by tenant; of a `reward_summary`."""
    figure = blank("What is remembered of each generation", "generation", "live episodes", "tenant")
    for name, colour, rows in groups(frame.drop_nulls("generation"), "tenant_id", colours):
        figure.add_bar(
            x=rows["generation"].to_list(),
            y=rows["n"].to_list(),
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="%{y:,}",
        )
    return figure.update_layout(barmode="stack").update_yaxes(tickformat=",")


def _told(row: dict[str, Any]) -> str:
    return f"{plain(row['tenant_id'])} forgot {row['forgotten']:,}: {plain(row['reason'])}"
