"""Plotly figures of what a hub counts: functions of a frame, and of the colours that its groups have everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboard.look import plain
from fedlab.plots import blank

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import plotly.graph_objects as go
    import polars as pl

REST = "#B0B0B0"
"""Of the groups that are not told apart."""


def growth(frame: pl.DataFrame, group: str, colours: Mapping[str, str], *, zone: str = "UTC") -> go.Figure:
    """Live episodes over time, a line for each group, and dotted what had been forgotten or erased by then.

    Args:
        frame: As `growth` gives it.
        group: The column that tells the groups apart.
        colours: By group.
        zone: The reader's time zone.
    """
    figure = blank("Memory growth", f"time ({zone})", "episodes", group.removesuffix("_id"))
    for name, colour, rows in groups(frame, group, colours):
        x = rows["time"].dt.convert_time_zone(zone).to_list()
        gone = (rows["forgotten"] + rows["erased"]).cum_sum()
        line = {"color": colour, "shape": "hv"}
        figure.add_scatter(
            x=x, y=rows["live"].to_list(), name=name, legendgroup=name, line=line, mode="lines", hovertemplate="%{y:,}"
        )
        if gone[-1]:
            figure.add_scatter(
                x=x,
                y=gone.to_list(),
                name=f"{name}, gone",
                legendgroup=name,
                line={**line, "dash": "dot", "width": 1.5},
                mode="lines",
                hovertemplate="%{y:,}",
            )
    figure.update_yaxes(rangemode="tozero", tickformat=",")
    return figure


def groups(
    frame: pl.DataFrame, group: str, colours: Mapping[str, str], *, rest: str = "others"
) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Name, colour and rows of each group; those without a name come last."""
    parts = frame.partition_by(group, as_dict=True, maintain_order=True)
    for (key,), rows in sorted(parts.items(), key=lambda part: (part[0][0] is None, part[0][0])):
        yield (rest if key is None else plain(key)), colours.get(str(key), REST), rows


def in_order(names: Sequence[object]) -> dict[str, str]:
    """Colours of groups that have an order, such as generations: from dark to light."""
    from plotly.colors import sample_colorscale

    places = [each / max(1, len(names) - 1) * 0.9 for each in range(len(names))]
    return dict(zip(map(str, names), sample_colorscale("Viridis", places, colortype="rgb"), strict=True))
