"""Figures of lives: when agents lived, what they exchanged with the hub, and who learned from whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from dashboard.figures import REST, in_order, line, times
from dashboard.look import plain
from fedlab.plots import OKABE_ITO, blank, tenant_colours

if TYPE_CHECKING:
    import plotly.graph_objects as go

ENDS = {"alive": "#009E73", "destroyed": "#0072B2", "expired": "#E69F00", "crashed": "#D55E00"}
"""How a life ended, and its colour."""


def timeline(lives: pl.DataFrame, zone: str) -> go.Figure:
    """A line for each life, from its spawn to its end."""
    rows = lives.sort("spawned_at").with_row_index("place")
    style: dict[str, Any] = {"hovermode": "closest", "height": min(900, 320 + 3 * len(rows))}
    figure = blank("Lives, from spawn to death", f"time ({zone})", "agents, the first at the bottom", "end", **style)
    now = max(each for name in ("spawned_at", "ended_at") for each in rows[name].drop_nulls().to_list())
    begun, ended = times(rows["spawned_at"], zone), times(rows["ended_at"].fill_null(now), zone)
    for status, colour in ENDS.items():
        some = rows.filter(pl.col("status") == status)
        points: list[tuple[Any, Any, Any]] = []
        for place, agent_id in some.select("place", "agent_id").iter_rows():
            name = plain(agent_id)
            points += [(begun[place], place, name), (ended[place], place, name), (None, None, None)]
        if points:
            x, y, names = zip(*points, strict=True)
            told: dict[str, Any] = {"customdata": names, "hovertemplate": "%{customdata}: %{x}"}
            line(figure, x, y, status, colour, width=3, mode="lines+markers", marker={"size": 5}, **told)
    return figure.update_yaxes(showticklabels=False)


def exchange(lives: pl.DataFrame, zone: str) -> go.Figure:
    """What each life pulled (down) and pushed (up), at its beginning."""
    what = f"spawned, time ({zone})", "episodes", "direction"
    figure = blank("Pulled and pushed by each life", *what, hovermode="closest")
    rows = lives.sort("spawned_at")
    names = [plain(each) for each in rows["agent_id"]]
    for name, sign, colour in (("pushed", 1, OKABE_ITO[2]), ("pulled", -1, OKABE_ITO[3])):
        figure.add_scatter(
            x=times(rows["spawned_at"], zone),
            y=(sign * rows[name]).to_list(),
            name=name,
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.7},
            customdata=list(zip(names, rows[name], strict=True)),
            hovertemplate="%{customdata[0]}: %{customdata[1]:,}",
        )
    return figure.add_hline(y=0, line_width=1)


def credit(frame: pl.DataFrame, by: str) -> go.Figure:
    """Whose episodes others were made from, as flows; `by` is "generation" or "agent"."""
    import plotly.graph_objects as go

    names = sorted({*frame["source"].to_list(), *frame["target"].to_list()} - {None})
    order = {name: place for place, name in enumerate([*names, None])}
    label = [*map(plain, names), "not known"]
    colours = in_order(names) if by == "generation" else tenant_colours(names)  # as on the other pages
    rewards = frame["mean_reward"].fill_null(0.0)
    low, high = min(rewards.to_list()), max(rewards.to_list())
    shade = [0.15 + 0.6 * ((value - low) / (high - low) if high > low else 0.5) for value in rewards]
    sankey = go.Sankey(
        node={"label": label, "color": [*colours.values(), REST], "pad": 12},
        link={
            "source": [order[each] for each in frame["source"]],
            "target": [order[each] for each in frame["target"]],
            "value": frame["count"].to_list(),
            "color": [f"rgba(0,114,178,{alpha:.2f})" for alpha in shade],
            "customdata": list(zip(rewards, frame["episodes"], strict=True)),
            "hovertemplate": f"{by} %{{source.label}} → %{{target.label}}: "
            "%{value:,} sources of %{customdata[1]:,} episodes,"
            " mean reward %{customdata[0]:.3f}<extra></extra>",
        },
    )
    return go.Figure(sankey, {"title": {"text": f"Credit between {by}s"}, "height": min(700, 300 + 20 * len(label))})
