"""Plotly figures of what a hub counts: functions of a frame, and of the colours that its groups have everywhere.

Here and in the modules beside it, `frame` is what the hub's method of that name gives, `group` the column that tells
groups apart, `colours` those of the groups by name, and `zone` the reader's time zone.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from dashboard.look import plain
from fedlab.hub.preview import AGE_NAMES, REWARD_NAMES
from fedlab.plots import OKABE_ITO, blank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import plotly.graph_objects as go

    from fedlab.hub.values import RetentionPreview

REST = "#B0B0B0"
"""Of the groups that are not told apart."""
SEEN = 0.25, 0.9
"""The part of a scale of colours that is seen on a dark page and on a light one."""
NOW = "as it is now"
SHORTER = {" to ": "-", "under ": "&lt; ", "below ": "&lt; ", "over ": "&gt; ", " and above": "+", "minutes": "min"}
SHORTER |= {"minute": "min", " days": " d", " hours": " h"}
SHORT = re.compile("|".join(SHORTER))
"""The names of bins, for an axis on a narrow screen."""


def growth(frame: pl.DataFrame, colours: Mapping[str, str], *, zone: str) -> go.Figure:
    """Live episodes over time, a line for each tenant; dashed what it had stored by then, dotted what had gone."""
    figure = blank("Memory growth", f"time ({zone})", "episodes", "tenant")
    marks = {"stored so far": "dash", "forgotten or erased so far": "dot"}
    lost = False
    for name, colour, rows in groups(frame, "tenant_id", colours):
        x, gone = stretches(rows["time"], zone), (rows["forgotten"] + rows["erased"]).cum_sum()
        line(figure, x, rows["live"], name, colour, shape="hv")
        if gone[-1]:
            lost = True
            for (what, dash), values in zip(marks.items(), (rows["stored"].cum_sum(), gone), strict=True):
                thin: dict[str, Any] = {"shape": "hv", "dash": dash, "width": 1.5, "showlegend": False}
                line(figure, x, values, f"{name}, {what}", colour, legendgroup=name, **thin)
    for what, dash in marks.items() if lost else ():  # once in the legend, and not once for each tenant
        line(figure, [None], [None], what, REST, dash=dash, width=1.5)
    return figure.update_yaxes(rangemode="tozero", tickformat=",")


def line(
    figure: go.Figure,
    x: Iterable[Any],
    y: Iterable[Any],
    name: str,
    colour: str,
    *,
    shape: str = "linear",
    dash: str = "solid",
    width: float = 2,
    **more: Any,
) -> None:
    """Add a line; what has the same name is shown and hidden together.

    Args:
        figure: To which it is added.
        x: Where.
        y: How much; what was last goes on to the end, if that is named.
        name: In the legend.
        colour: Of the line.
        shape: "hv" for steps.
        dash: "dot" or "dash" for a broken one.
        width: In pixels.
        more: Of a scatter.
    """
    style = {"color": colour, "shape": shape, "dash": dash, "width": width}
    usual = {"mode": "lines", "legendgroup": name, "hovertemplate": "%{y:,}"}
    at, values = list(x), list(y)
    values += values[-1:] * (len(at) - len(values))
    figure.add_scatter(x=at, y=values, name=name, line=style, **(usual | more))


def groups(
    frame: pl.DataFrame, group: str, colours: Mapping[str, str], *, rest: str = "others"
) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Name, colour and rows of each group; those without a name come last."""
    parts = frame.partition_by(group, as_dict=True, maintain_order=True)
    for (key,), rows in sorted(parts.items(), key=lambda part: (part[0][0] is None, part[0][0])):
        yield (rest if key is None else plain(key)), colours.get(str(key), REST), rows


def times(column: pl.Series, zone: str) -> list[str]:
    """Moments, or whole ms UTC, as text in a time zone: a chart has it in a tenth of the time that datetimes take."""
    if column.dtype == pl.Int64:
        column = pl.from_epoch(column, time_unit="ms").dt.replace_time_zone("UTC")
    return column.dt.convert_time_zone(zone).dt.to_string("%Y-%m-%d %H:%M:%S%.3f").to_list()


def stretches(column: pl.Series, zone: str) -> list[str]:
    """Where stretches of time of one length begin, and where the last one ends; see `times`."""
    ends = column[-1:] + (column[1] - column[0] if len(column) > 1 else timedelta(seconds=1))
    return times(pl.concat([column, ends]), zone)


def before_and_after(
    previews: Mapping[tuple[str, str], RetentionPreview], names: Mapping[str, str], what: str
) -> pl.DataFrame:
    """What previews (by label and tenant) say of live episodes, now and after: a row a tenant, policy and bin."""
    bins = REWARD_NAMES if what == "reward" else AGE_NAMES
    rows = []
    for (label, tenant), preview in previews.items():
        gone, kept = getattr(preview, f"by_{what}"), getattr(preview, f"kept_by_{what}")
        counts = {name: (gone.get(name, 0), kept.get(name, 0)) for name in bins}
        if label == next(iter(names)):
            rows += [(tenant, NOW, name, went + stays, 0) for name, (went, stays) in counts.items()]
        rows += [(tenant, names[label], name, stays, went) for name, (went, stays) in counts.items()]
    frame = pl.DataFrame(rows, ["tenant_id", "policy", what, "episodes", "would_go"], orient="row")
    filled = [at for at, name in enumerate(bins) if frame.filter(pl.col(what) == name)["episodes"].sum()]
    return frame.filter(pl.col(what).is_in(bins[filled[0] : filled[-1] + 1])) if filled else frame.clear()


def what_if(frame: pl.DataFrame, title: str, x: str) -> go.Figure:
    """Bars of what is there now and would be after, side by side; a row for each tenant."""
    tenants = frame["tenant_id"].unique(maintain_order=True).to_list()
    policies = frame["policy"].unique(maintain_order=True).to_list()
    colours = dict(zip(policies, (REST, *OKABE_ITO), strict=False))
    style: dict[str, Any] = {"height": 200 + 180 * len(tenants), "barmode": "group", "bargap": 0.25}
    figure = blank(title, x, "episodes", "policy", **style)
    titles = [plain(tenant) for tenant in tenants] if len(tenants) > 1 else None
    spacing = 0.3 / (len(tenants) + 1)
    figure.set_subplots(len(tenants), 1, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles)
    for (tenant, policy), rows in frame.partition_by("tenant_id", "policy", as_dict=True, maintain_order=True).items():
        figure.add_bar(
            x=[SHORT.sub(lambda found: SHORTER[found[0]], name) for name in rows[x]],
            y=rows["episodes"].to_list(),
            name=plain(policy),
            legendgroup=policy,
            showlegend=tenant == tenants[0],
            marker={"color": colours[policy]},
            hovertemplate="%{y:,}",
            row=tenants.index(tenant) + 1,
            col=1,
        )
    figure.update_xaxes(title=None, type="category").update_xaxes(title=x, row=len(tenants))
    return figure.update_yaxes(title="episodes", tickformat=",", rangemode="tozero")


def later(frame: pl.DataFrame) -> go.Figure:
    """How many would go as days pass: a colour for each policy, a dash for each tenant."""
    figure = blank("What would go, and when", "days from now", "episodes", "policy")
    policies, tenants = (frame[name].unique(maintain_order=True).to_list() for name in ("policy", "tenant_id"))
    colours = dict(zip(policies, OKABE_ITO, strict=False))
    dashes = dict(zip(tenants, ("solid", "dash", "dot", "dashdot"), strict=False))
    for (tenant, policy), rows in frame.partition_by("tenant_id", "policy", as_dict=True, maintain_order=True).items():
        name = plain(policy if len(tenants) == 1 else f"{policy}, {tenant}")
        style: dict[str, Any] = {"mode": "lines+markers", "legendgroup": name}
        line(figure, rows["days"], rows["would_go"], name, colours[policy], dash=dashes[tenant], **style)
    return figure.update_yaxes(rangemode="tozero", tickformat=",")


def requests(frame: pl.DataFrame, *, zone: str) -> go.Figure:
    """Requests a second, and below them the latency that 95 % of them stayed under; a line for each method."""
    figure = blank("Requests and their latency", "", "", "method", height=480)
    figure.set_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    methods = sorted(frame["method"].unique())
    for method, colour in zip(methods, OKABE_ITO, strict=False):
        rows = frame.filter(pl.col("method") == method)
        for row, column in enumerate(("per_second", "p95_ms"), 1):
            place: dict[str, Any] = {"row": row, "col": 1, "showlegend": row == 1, "hovertemplate": "%{y:,.2f}"}
            place |= {"mode": "lines+markers", "marker": {"size": 4}}  # the first look is a point
            line(figure, times(rows["at"], zone), rows[column], plain(method), colour, **place)
    figure.update_yaxes(title="requests a second", row=1).update_yaxes(title="p95, ms", row=2)
    return figure.update_yaxes(rangemode="tozero").update_xaxes(title=f"time ({zone})", row=2)


def in_order(names: Sequence[object]) -> dict[str, str]:
    """Colours of groups that have an order, such as generations: from dark to light."""
    from plotly.colors import sample_colorscale

    low, high = SEEN
    places = [low + each / max(1, len(names) - 1) * (high - low) for each in range(len(names))]
    return dict(zip(map(str, names), sample_colorscale("Viridis", places, colortype="rgb"), strict=True))
