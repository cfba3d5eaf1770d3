"""Figures of single memories: why they rank as they do, where they come from, and where they lie."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import polars as pl

from dashboard.figures import REST, in_order, line
from dashboard.look import plain
from fedlab.plots import OKABE_ITO, blank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

STATES: Mapping[str, str] = {"live": "circle", "forgotten": "x", "unknown": "circle-open"}
"""Whether an episode is still there, as a mark."""


def ranking(frame: pl.DataFrame, parts: Sequence[str]) -> go.Figure:
    """What made each score: a bar for each memory, stacked of the parts of the policy."""
    height = max(260, 120 + 22 * len(frame))
    figure = blank("Why they rank so", "score", "rank", "part", barmode="relative", hovermode="closest", height=height)
    for part, colour in zip(parts, OKABE_ITO, strict=False):
        figure.add_bar(
            x=frame[part].to_list(),
            y=frame["rank"].to_list(),
            name=plain(part),
            orientation="h",
            marker={"color": colour},
            customdata=[plain(each) for each in frame["output"]],
            hovertemplate="%{x:.3f}: %{customdata}",
        )
    return figure.update_yaxes(autorange="reversed", dtick=max(1, len(frame) // 20))


def lineage(frame: pl.DataFrame) -> go.Figure:
    """An episode between what it was made from (left) and what was made from it (right); high if it was rewarded."""
    sign = pl.col("direction").replace_strict({"self": 0, "source": -1, "use": 1}, return_dtype=pl.Int64)
    # An episode may be reached on several ways: it is drawn once, where it is nearest.
    points = frame.with_columns(x=sign * pl.col("depth")).unique("id", keep="first", maintain_order=True)
    places = {row["id"]: (row["x"], row["reward"] or 0.0) for row in points.to_dicts()}
    x_name = "generations of use (left: its sources, right: its uses)"
    figure = blank("Lineage", x_name, "reward", "episode", hovermode="closest")
    links: list[tuple[float | None, float | None]] = []
    for row in frame.to_dicts():
        if row["via"] in places:
            links += [places[row["via"]], places[row["id"]], (None, None)]
    x, y = zip(*links, strict=True) if links else ((), ())
    line(figure, x, y, "made from", REST, width=1, hoverinfo="skip", hovertemplate=None)
    for (status, mark), colour in zip(STATES.items(), (OKABE_ITO[0], OKABE_ITO[5], "#7F7F7F"), strict=True):
        rows = points.filter(pl.col("status") == status)
        if not rows.is_empty():
            figure.add_scatter(
                x=rows["x"].to_list(),
                y=rows["reward"].fill_null(0.0).to_list(),
                mode="markers",
                name=status,
                marker={"symbol": mark, "size": [16 if x == 0 else 10 for x in rows["x"]], "color": colour},
                customdata=[[plain(row["agent_id"] or "?"), plain(row["output"] or "?")] for row in rows.to_dicts()],
                hovertemplate="%{customdata[0]}: %{customdata[1]}<br>reward %{y:.3f}",
            )
    return figure.update_xaxes(dtick=1)


def memory_map(frame: pl.DataFrame, colour: str, way: str) -> go.Figure:
    """Episodes as points in two dimensions, made in some `way`, with the colour of a column."""
    name = colour.removesuffix("_id")
    style = {"hovermode": "closest", "dragmode": "lasso", "height": 560}
    figure = blank(f"Memory map, coloured by {name}", f"{way} 1 (no unit)", f"{way} 2 (no unit)", name, **style)
    common = {"mode": "markers", "hovertemplate": "%{customdata[1]}: %{customdata[2]}<br>reward %{customdata[3]:.3f}"}
    if colour == "agent_id":
        names = frame[colour].value_counts(sort=True)[colour].head(12).to_list()
        for place, each in enumerate(names):
            red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(place / len(names), 0.5, 0.65))
            own = OKABE_ITO[place] if place < len(OKABE_ITO) else f"rgb({red},{green},{blue})"
            _points(figure, frame.filter(pl.col(colour) == each), plain(each), {"color": own}, common)
        _points(figure, frame.filter(~pl.col(colour).is_in(names)), "others", {"color": REST}, common)
    else:
        bar = {"title": {"text": name}, "thickness": 12}
        shades = list(in_order(range(11)).values())
        scale = {"color": frame[colour].to_list(), "colorscale": shades, "showscale": True, "colorbar": bar}
        _points(figure, frame, "episodes", scale, common)
        figure.update_layout(showlegend=False)
    return figure.update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)


def _points(
    figure: go.Figure, rows: pl.DataFrame, name: str, marker: Mapping[str, object], common: Mapping[str, object]
) -> None:
    if rows.is_empty():
        return
    data = [[row["id"], plain(row["agent_id"]), plain(row["output"]), row["reward"]] for row in rows.to_dicts()]
    figure.add_scatter(
        x=rows["x"].to_list(),
        y=rows["y"].to_list(),
        name=name,
        marker={"size": 6, "opacity": 0.75, **marker},
        customdata=data,
        **common,
    )
