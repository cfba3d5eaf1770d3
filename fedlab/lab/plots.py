"""Figures of a run. An arm has one colour, dash and symbol in all of them; shades are 95 % intervals over seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedlab import plots as shared
from fedlab._polars import pl
from fedlab.errors import InvalidRequest
from fedlab.lab.record import PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import plotly.graph_objects as go

    from fedlab.lab.results import Metric, Results

SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
STAGE_COLOURS = {"never stored": "#D9D9D9", "forgotten": "#FEE838", "not recalled": "#7C7B78", "not used": "#00224E"}
"""Of no arm; from dark to light in print, too (three of them from cividis)."""
ACROSS = 4
"""Panels side by side, at most."""
FEW_VALUES = 12
"""So many different rewards are shown as bars, more as a violin."""


class Mark(NamedTuple):
    """How an arm is drawn."""

    colour: str
    dash: str
    symbol: str


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """A mark for each arm, by its place in the experiment.

    >>> marks(["forever", "90 days"])["90 days"]
    Mark(colour='#E69F00', dash='dash', symbol='square')
    """
    colours, dashes = shared.OKABE_ITO, shared.DASHES
    return {
        # 28 arms differ in colour or dash: neither of the two repeats with the other.
        name: Mark(colours[i % 7], dashes[(i + i // 28) % 4], SYMBOLS[(i + i // 7) % 7])
        for i, name in enumerate(names)
    }


class Plots:
    """The figures of a run: `results.plot.learning_curves()`.

    Each is a Plotly figure: `.write_html(file)` saves it as a page, `.write_image(file)` as PNG, SVG or PDF.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._marks = marks(results.arms)

    def learning_curves(self, *, metric: Metric = "true_reward") -> go.Figure:
        """Mean reward by generation.

        Args:
            metric: What an answer was worth, or what its agent saw of that.
        """
        curves = self._results.curves(metric=metric)
        figure = shared.blank("Reward by generation", "generation", _reward(metric), "arm")
        self._lines(figure, curves, "%{y:.3f}")
        return figure

    def memory_growth(self) -> go.Figure:
        """Episodes that are live after each generation."""
        sizes = self._results.generations.with_columns(pl.col("memory_size").alias("value"))
        figure = shared.blank("Memory after each generation", "generation", "live episodes", "arm")
        self._lines(figure, self._results.by_generation(sizes), "%{y:,.0f}")
        figure.update_yaxes(rangemode="tozero")
        return figure

    def reward_distribution(self, *, metric: Metric = "true_reward", last: int | None = None) -> go.Figure:
        """The rewards of single tasks, of all seeds: a mean may hide that few do well.

        Args:
            metric: As of `learning_curves`.
            last: Only so many generations, from the end.
        """
        numbers = self._results.numbers(last)
        frame = self._results.scan("episodes").filter(pl.col("generation").is_in(numbers))
        rewards = frame.select("arm", metric).collect()
        title = f"Rewards of single tasks{_late(last)}"
        if rewards[metric].n_unique() > FEW_VALUES:
            figure = shared.blank(title, "arm", "reward of a task", "arm")
            for arm, mark in self._present(rewards):
                own = rewards.filter(pl.col("arm") == arm)[metric].to_list()
                figure.add_violin(y=own, name=arm, line_color=mark.colour, box_visible=True, meanline_visible=True)
        else:
            figure = shared.blank(title, "reward of a task", "share of tasks", "arm")
            counts = rewards.group_by("arm", metric).len("tasks").sort(metric)
            for arm, mark in self._present(rewards):
                own_counts = counts.filter(pl.col("arm") == arm)
                figure.add_bar(
                    x=[f"{each:g}" for each in own_counts[metric]],
                    y=(own_counts["tasks"] / own_counts["tasks"].sum()).to_list(),
                    name=arm,
                    marker={"color": mark.colour, "pattern": {"shape": _pattern(mark)}},
                    customdata=own_counts["tasks"].to_list(),
                    hovertemplate="%{y:.1%} of the tasks (%{customdata:,})",
                )
            figure.update_xaxes(
                type="category",
                categoryorder="array",
                categoryarray=[f"{each:g}" for each in counts[metric].unique().sort()],
            )
        return figure.update_layout(hovermode="closest")

    def paired_differences(
        self,
        baseline: str | None = None,
        *,
        metric: Metric = "true_reward",
        last: int | None = None,
        until: int | None = None,
    ) -> go.Figure:
        """The difference of each arm to a baseline: each seed, their mean with its interval, and p.

        Args:
            baseline: Name of an arm; the first if None.
            metric: As of `learning_curves`.
            last: As of `reward_distribution`.
            until: Only generations before this one.
        """
        base = self._results.arms[0] if baseline is None else baseline
        summary = self._results.summary(base, metric=metric, last=last, until=until)
        values = self._results.by_seed(metric=metric, last=last, until=until)
        figure = shared.blank(
            f"Difference to {base}, seed by seed{_late(last, until)}", f"difference in {_reward(metric)}", ""
        )
        for row in summary.filter(pl.col("arm") != base).iter_rows(named=True):
            self._differences(figure, row, values[row["arm"]] - values[base])
        figure.add_vline(x=0, line={"color": "#7F7F7F", "width": 1})
        figure.update_layout(hovermode="closest", showlegend=False, height=220 + 80 * len(summary))
        # The first arm stands at the top, with room for its p above it.
        return figure.update_yaxes(range=[len(summary) - 1.4, -0.6])

    def lineage(self, *, metric: Metric = "true_reward") -> go.Figure:
        """How deep answers go back, and how much of the reward is due to agents that were dead by then.

        Args:
            metric: As of `learning_curves`.
        """
        generations = self._results.lineage(metric=metric).generations
        figure = _panels("Who built on whom", ["depth of ancestry (answers)", "share of reward due to the dead"])
        for panel, column in enumerate(("depth", "inherited")):
            means = self._results.by_generation(generations.with_columns(pl.col(column).alias("value")))
            self._lines(figure, means, "%{y:.3f}", panel)
        figure.update_yaxes(rangemode="tozero")
        return figure

    def stages(self) -> go.Figure:
        """Where memory failed the failed tasks: one panel an arm, the four stages by generation."""
        stages = self._results.stages().group_by("arm", "generation", "stage").agg(pl.col("tasks", "share").sum())
        arms = [arm for arm, _ in self._present(stages)]
        figure = _panels("Where memory fails", ["share of the failed tasks"], arms)
        generations = stages["generation"].unique().sort()
        for panel, arm in enumerate(arms):
            for stage, colour in STAGE_COLOURS.items():
                own = stages.filter(pl.col("arm") == arm, pl.col("stage") == stage)
                rows = generations.to_frame().join(own, on="generation", how="left").fill_null(0).sort("generation")
                figure.add_bar(
                    x=rows["generation"].to_list(),
                    y=rows["share"].to_list(),
                    name=stage,
                    legendgroup=stage,
                    showlegend=panel == 0,
                    marker={"color": colour, "line": {"width": 0}},
                    customdata=rows["tasks"].to_list(),
                    hovertemplate="%{y:.0%} (%{customdata:,} tasks)",
                    row=panel // ACROSS + 1,
                    col=panel % ACROSS + 1,
                )
        figure.update_layout(barmode="stack", bargap=0, legend={"title": {"text": "stage"}})
        return figure.update_layout(height=170 + 330 * math.ceil(max(1, len(arms)) / ACROSS))

    def cost(self) -> go.Figure:
        """Milliseconds a task and bytes of memory, by generation. Milliseconds are of the machine that ran it."""
        results = self._results
        keys = ["arm", "seed", "generation"]
        spent = results.costs.join(results.generations.select(*keys, "tasks"), on=keys)
        figure = _panels("What a generation costs", ["ms per task", "bytes of live episodes"])
        each_task = spent.with_columns((pl.sum_horizontal(PHASES) / pl.col("tasks")).alias("value"))
        self._lines(figure, results.by_generation(each_task), "%{y:.2f} ms", 0)
        held = results.generations.with_columns(pl.col("bytes").alias("value"))
        self._lines(figure, results.by_generation(held), "%{y:.3s}B", 1)
        return figure.update_yaxes(rangemode="tozero").update_yaxes(tickformat="~s", ticksuffix="B", row=2)

    def against_theory(
        self, theory: Mapping[str, Sequence[float]] | None = None, *, metric: Metric = "true_reward"
    ) -> go.Figure:
        """What is predicted of arms by generation as lines, the simulation as points with intervals.

        Args:
            theory: For each arm that has a prediction, the expected mean reward of each generation:
                `world.theory(…).mean`, where the world has one. If None, `results.theory`.
            metric: As of `learning_curves`.

        Raises:
            InvalidRequest: If there is no such arm, or not a value for each generation.
        """
        numbers = self._results.numbers()
        theory = self._results.theory if theory is None else theory
        for arm, values in theory.items():
            if arm not in self._marks:
                known = ", ".join(map(repr, self._marks))
                raise InvalidRequest(f"there is no arm {arm!r}, but {known}", field="theory")
            if len(values) != len(numbers):
                raise InvalidRequest(
                    f"the theory of arm {arm!r} has {len(values)} values, and there are {len(numbers)} generations",
                    field="theory",
                )
        lines = [
            {"series": arm, "x": x, "y": float(y)}
            for arm, values in theory.items()
            for x, y in zip(numbers, values, strict=True)
        ]
        points = self._results.curves(metric=metric).filter(pl.col("arm").is_in(list(theory)))
        return against_theory(
            pl.DataFrame(lines, schema={"series": pl.String, "x": pl.Int64, "y": pl.Float64}),
            points.rename({"arm": "series", "generation": "x"}),
            title="Theory and simulation",
            x="generation",
            y=_reward(metric),
            series=list(self._marks),
        )

    def _lines(self, figure: go.Figure, means: pl.DataFrame, form: str, panel: int | None = None) -> None:
        """A line with a band for each arm; columns `arm`, `generation`, `mean`, `ci_low`, `ci_high`."""
        place = {} if panel is None else {"row": panel + 1, "col": 1}
        for arm, mark in self._present(means):
            rows = means.filter(pl.col("arm") == arm)
            x = rows["generation"].to_list()
            shared.add_band(figure, x, rows["ci_low"].to_list(), rows["ci_high"].to_list(), mark.colour, arm, **place)
            figure.add_scatter(
                x=x,
                y=rows["mean"].to_list(),
                name=arm,
                legendgroup=arm,
                showlegend=not panel,
                mode="lines+markers",
                line={"color": mark.colour, "dash": mark.dash, "width": 2.5},
                marker={"symbol": mark.symbol, "size": 7},
                hovertemplate=form,
                **place,
            )

    def _differences(self, figure: go.Figure, row: dict[str, Any], differences: npt.NDArray[np.float64]) -> None:
        """One arm: a dot a seed, the mean with its interval."""
        arm, mark = row["arm"], self._marks[row["arm"]]
        known = [(seed, each) for seed, each in zip(self._results.seeds, differences, strict=True) if np.isfinite(each)]
        figure.add_scatter(
            x=[each for _, each in known],
            y=[arm] * len(known),
            mode="markers",
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 9, "opacity": 0.4},
            customdata=[seed for seed, _ in known],
            hovertemplate="seed %{customdata}: %{x:+.3f}<extra></extra>",
        )
        p = "" if row["p"] is None else f"p = {row['p']:.2g}"
        figure.add_scatter(
            x=[row["diff"]],
            y=[arm],
            name=arm,
            mode="markers+text",
            text=[p],
            textposition="top center",
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 14, "line": {"color": "#222", "width": 1}},
            error_x=_errors([(row["diff"], row["diff_low"], row["diff_high"])], mark.colour),
            hovertemplate=f"%{{x:+.3f}} {p}<extra>%{{fullData.name}}</extra>",
        )

    def _present(self, frame: pl.DataFrame) -> list[tuple[str, Mark]]:
        """The arms in a frame, in the experiment's order."""
        there = set(frame["arm"])
        return [(arm, mark) for arm, mark in self._marks.items() if arm in there]


def against_theory(
    theory: pl.DataFrame, points: pl.DataFrame, *, title: str, x: str, y: str, series: Sequence[str] | None = None
) -> go.Figure:
    """What is predicted as a line, what was simulated as points with their intervals.

    Args:
        theory: Columns `x`, `y` and, for several lines, `series`.
        points: Columns `x`, `mean`, `ci_low`, `ci_high` (null where there is none) and, where theory has it, `series`.
        title: Stands above it.
        x: Name of the horizontal axis, with its unit.
        y: Name of the vertical axis, with its unit.
        series: Names in their order, which decides the colours; those of the theory if None.

    >>> theory = pl.DataFrame({"x": [1, 2], "y": [1.0, 2.0]})
    >>> points = pl.DataFrame({"x": [1, 2], "mean": [1.1, 1.9], "ci_low": [0.9, 1.7], "ci_high": [1.3, 2.1]})
    >>> [trace.mode for trace in against_theory(theory, points, title="Growth", x="agents", y="skill").data]
    ['lines', 'markers']
    """
    figure = shared.blank(title, x, y)
    whole = pl.lit("").alias("series")
    lines = theory if "series" in theory.columns else theory.with_columns(whole)
    found = points if "series" in points.columns else points.with_columns(whole)
    names = list(dict.fromkeys([*(series or ()), *lines["series"], *found["series"]]))
    for name, mark in marks(names).items():
        line = lines.filter(pl.col("series") == name).sort("x")
        if len(line):
            figure.add_scatter(
                x=line["x"].to_list(),
                y=line["y"].to_list(),
                name=f"{name}: theory" if name else "theory",
                mode="lines",
                line={"color": mark.colour, "dash": mark.dash, "width": 2},
            )
        own = found.filter(pl.col("series") == name).sort("x")
        if len(own):
            figure.add_scatter(
                x=own["x"].to_list(),
                y=own["mean"].to_list(),
                name=f"{name}: simulation" if name else "simulation (95 % interval)",
                mode="markers",
                marker={"color": mark.colour, "symbol": mark.symbol, "size": 9},
                error_y=_errors(own.select("mean", "ci_low", "ci_high").rows(), mark.colour),
            )
    return figure.update_layout(hovermode="closest")


def _panels(title: str, names: Sequence[str], panels: Sequence[str] = ()) -> go.Figure:
    """Panels over generations, each below the other with an axis of its own; or `panels` that share one."""
    from plotly.subplots import make_subplots

    number = max(1, len(panels) or len(names))
    rows, columns = (math.ceil(number / ACROSS), min(number, ACROSS)) if panels else (number, 1)
    figure = make_subplots(
        rows,
        columns,
        shared_xaxes=not panels,
        shared_yaxes="all" if panels else False,
        vertical_spacing=None if panels else 0.08,
        subplot_titles=list(panels) or None,
    ).update_layout(shared.blank(title, "", names[0], "arm").layout)
    figure.update_xaxes(title={"text": "generation"}, row=None if panels else rows)
    for row, name in enumerate(names, 1):
        figure.update_yaxes(title={"text": name}, **({"col": 1} if panels else {"row": row}))
    return figure if panels else figure.update_layout(height=140 + 210 * rows)


def _errors(points: Sequence[tuple[Any, Any, Any]], colour: str) -> dict[str, object]:
    """Error bars for means with intervals, which need not be symmetric; none where they are null."""
    return {
        "type": "data",
        "array": [0 if high is None else high - mean for mean, _, high in points],
        "arrayminus": [0 if low is None else mean - low for mean, low, _ in points],
        "color": colour,
        "thickness": 2,
    }


def _late(last: int | None, until: int | None = None) -> str:
    late = "" if last is None else f", last {last} generations" if last > 1 else ", last generation"
    return late if until is None else f"{late}, before generation {until}"


def _pattern(mark: Mark) -> str:
    """What a dash is in a bar."""
    return {"solid": "", "dash": "/", "dot": ".", "dashdot": "x"}[mark.dash]


def _reward(metric: str) -> str:
    return "mean reward per task" if metric == "true_reward" else "mean observed reward per task"
