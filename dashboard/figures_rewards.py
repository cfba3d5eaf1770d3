"""Plotly figures of rewards: functions of what `rewards` and `reward_summary` of a hub give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from dashboard.figures import groups, line, times
from fedlab.plots import add_band, blank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

REST = {"generation": "no generation said"}
"""What those are called that have no group."""
TITLE = "Distribution of rewards"
PEAK = 0.9
"""Height of the highest ridge, of the distance of two."""


def ridges(frame: pl.DataFrame, group: str, colours: Mapping[str, str]) -> go.Figure:
    """A histogram of each group above the other, all of the same area."""
    figure = blank(TITLE, "reward", group.removesuffix("_id"))
    parts = list(_shares(frame, group, colours))
    highest = max(max(shares) for _, _, _, shares in parts)
    for place, (name, colour, rows, shares) in enumerate(parts):
        x, y = _steps(rows, [place + PEAK * share / highest for share in shares], floor=place)
        line(figure, x, y, name, colour, width=1.5, fill="toself", opacity=0.8, hovertemplate=None)
    _name(figure, parts)
    figure.update_traces(hoverinfo="name")
    return figure.update_layout(hovermode="closest", showlegend=False, height=200 + 45 * len(parts))


def heat_map(frame: pl.DataFrame, group: str, colours: Mapping[str, str]) -> go.Figure:
    """The share of each group's episodes in each bin as a colour."""
    figure = blank(TITLE, "reward", group.removesuffix("_id"))
    parts = list(_shares(frame, group, colours))
    rows = parts[0][2]
    figure.add_heatmap(
        x=[*rows["bin_low"], rows["bin_high"][-1]],
        y=list(range(len(parts))),
        z=[shares for *_, shares in parts],
        customdata=[own["count"].to_list() for _, _, own, _ in parts],
        text=[[name] * len(own) for name, _, own, _ in parts],
        colorscale="Cividis",
        colorbar={"title": {"text": "share"}, "tickformat": ".0%"},
        hovertemplate="%{text}, reward from %{x:.4g}: %{z:.1%} (%{customdata:,})<extra></extra>",
    )
    _name(figure, parts)
    return figure.update_layout(hovermode="closest", height=220 + 22 * len(parts))


def histogram(frame: pl.DataFrame, group: str, colours: Mapping[str, str]) -> go.Figure:
    """The share of each group's episodes in each bin as an outline."""
    figure = blank(TITLE, "reward", "share of the group's episodes", group.removesuffix("_id"))
    for name, colour, rows, shares in _shares(frame, group, colours):
        told: dict[str, Any] = {
            "customdata": [*rows["count"], rows["count"][-1]],
            "hovertemplate": "%{y:.1%} (%{customdata:,})",
        }
        x = [*rows["bin_low"], rows["bin_high"][-1]]
        line(figure, x, [*shares, shares[-1]], name, colour, shape="hv", **told)
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def ecdf(frame: pl.DataFrame, group: str, colours: Mapping[str, str]) -> go.Figure:
    """The share of each group's episodes with at most a reward; it is exact where a bin ends."""
    figure = blank(TITLE, "reward", "share of episodes with at most this reward", group.removesuffix("_id"))
    for name, colour, rows, _ in _shares(frame, group, colours):
        shares = rows["count"].cum_sum() / rows["count"].sum()
        x = [rows["bin_low"][0], *rows["bin_high"]]
        line(figure, x, [0, *shares], name, colour, hovertemplate="%{y:.1%}")
    return figure.update_yaxes(tickformat=".0%", range=[-0.02, 1.02])


def learning(frame: pl.DataFrame, x: str, colours: Mapping[str, str], *, zone: str) -> go.Figure:
    """Mean reward of each tenant by `x`, generation or time, with its interval: of a `reward_summary` with `ci_…`."""
    name_of_x = "generation" if x == "generation" else f"time ({zone})"
    figure = blank("Learning curve", name_of_x, "mean reward (95 % interval)", "tenant")
    for name, colour, rows in groups(frame.drop_nulls(x), "tenant_id", colours):
        own = rows.sort(x)
        at: Any = own[x].to_list() if x == "generation" else times(own[x], zone)
        add_band(figure, at, own["ci_low"].to_list(), own["ci_high"].to_list(), colour, name)
        told: dict[str, Any] = {"customdata": own["n"].to_list(), "hovertemplate": "%{y:.4g} over %{customdata:,}"}
        line(figure, at, own["mean"], name, colour, mode="lines+markers", **told)
    if x == "generation" and frame["generation"].n_unique() <= 20:
        figure.update_xaxes(dtick=1)
    low, high = frame.select(pl.col("min").min(), pl.col("max").max()).row(0)
    if frame.select(((pl.col("ci_low") < low) | (pl.col("ci_high") > high)).any()).item():
        # The interval of two episodes may be wider than all rewards there are, and leave nothing else to see.
        pad = high / 20 - low / 20
        figure.update_yaxes(range=[low - pad, high + pad])
    return figure


def comparison(frame: pl.DataFrame, colours: Mapping[str, str]) -> go.Figure:
    """Each tenant: quartiles as a box, from the smallest reward to the largest, and the mean with its interval."""
    figure = blank("Tenants compared", "reward", "tenant")
    parts = list(groups(frame, "tenant_id", colours))
    for place, (name, colour, rows) in enumerate(parts):
        row = rows.row(0, named=True)
        figure.add_box(
            y=[place],
            q1=[row["q25"]],
            median=[row["median"]],
            q3=[row["q75"]],
            lowerfence=[row["min"]],
            upperfence=[row["max"]],
            orientation="h",
            name=name,
            marker={"color": colour},
            width=0.5,
        )
        known = row["ci_low"] is not None
        figure.add_scatter(
            x=[row["mean"]],
            y=[place],
            name=f"{name}, mean",
            mode="markers",
            marker={"color": colour, "symbol": "diamond", "size": 10, "line": {"color": "#222", "width": 1}},
            error_x={"array": [row["ci_high"] - row["mean"]], "color": colour, "thickness": 3} if known else None,
            hovertemplate=f"mean %{{x:.4g}} of {row['n']:,}",
        )
    _name(figure, parts)
    return figure.update_layout(hovermode="closest", showlegend=False, height=200 + 60 * len(parts))


def _shares(
    frame: pl.DataFrame, group: str, colours: Mapping[str, str]
) -> list[tuple[str, str, pl.DataFrame, list[float]]]:
    """Name, colour, rows and the share of each bin, of each group."""
    parts = groups(frame, group, colours, rest=REST.get(group, "others"))
    return [(name, colour, rows, (rows["count"] / rows["count"].sum()).to_list()) for name, colour, rows in parts]


def _steps(rows: pl.DataFrame, heights: Sequence[float], *, floor: float) -> tuple[list[float], list[float]]:
    """The outline of a histogram, closed along its floor."""
    x, y = [rows["bin_low"][0]], [floor]
    for low, high, height in zip(rows["bin_low"], rows["bin_high"], heights, strict=True):
        x += [low, high]
        y += [height, height]
    return [*x, x[-1], x[0]], [*y, floor, floor]


def _name(figure: go.Figure, parts: Sequence[tuple[str, Any, Any] | tuple[str, Any, Any, Any]]) -> None:
    """Names at whole numbers: two groups stay two, if their names look the same once they are cut."""
    names = [name for name, *_ in parts]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, automargin=True)
