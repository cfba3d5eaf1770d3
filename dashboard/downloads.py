"""What can be taken home of a run: its frames, and its figures as one page or as pictures."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from dashboard.look import tamed
from fedlab.plots import write_page

if TYPE_CHECKING:
    from collections.abc import Callable

    import plotly.graph_objects as go

    from fedlab.lab import Results
    from fedlab.lab.results import Metric


class Drawn(NamedTuple):
    """A figure of a run.

    Args:
        section: Where it is shown.
        about: What it shows, in a sentence.
        figure: Draws it, of a run, a metric and a baseline.
        data: What is drawn.
    """

    section: str
    about: str
    figure: Callable[[Results, Metric, str], go.Figure]
    data: Callable[[Results, Metric, str], pl.DataFrame]


FIGURES = {
    "learning-curves": Drawn(
        "Arms",
        "Mean reward by generation, a line for each arm, with shaded 95 % intervals over seeds.",
        lambda run, metric, _: run.plot.learning_curves(metric=metric),
        lambda run, metric, _: run.curves(metric=metric),
    ),
    "paired-differences": Drawn(
        "Arms",
        "The difference of each arm to the baseline, seed by seed, with mean, interval and p.",
        lambda run, metric, baseline: run.plot.paired_differences(baseline, metric=metric),
        lambda run, metric, baseline: run.summary(baseline, metric=metric),
    ),
    "rewards": Drawn(
        "Arms",
        "How the rewards of single tasks are distributed in each arm.",
        lambda run, metric, _: run.plot.reward_distribution(metric=metric),
        lambda run, metric, _: run.scan("episodes").group_by("arm", metric).len("tasks").sort("arm", metric).collect(),
    ),
    "memory": Drawn(
        "Memory and cost",
        "Live episodes after each generation, a line for each arm.",
        lambda run, *_: run.plot.memory_growth(),
        lambda run, *_: run.generations,
    ),
    "cost": Drawn(
        "Memory and cost",
        "Milliseconds for a task and bytes of memory, by generation.",
        lambda run, *_: run.plot.cost(),
        lambda run, *_: run.cost(),
    ),
    "stages": Drawn(
        "Where memory fails",
        "Of the failed tasks of each arm and generation, the share at each stage: never stored, forgotten, not"
        " recalled, not used.",
        lambda run, *_: run.plot.stages(),
        lambda run, *_: run.stages(),
    ),
    "theory": Drawn(
        "Theory",
        "What theory expects of each generation as lines, what was simulated as points with 95 % intervals.",
        lambda run, metric, _: run.plot.against_theory(metric=metric),
        lambda run, metric, _: _against_theory(run, metric),
    ),
}


def _against_theory(results: Results, metric: Metric) -> pl.DataFrame:
    """What was simulated, with what theory expects beside it."""
    rows = [
        (arm, number, float(value))
        for arm, values in results.theory.items()
        for number, value in zip(results.numbers(), values, strict=True)
    ]
    expected = pl.DataFrame(rows, ["arm", "generation", "theory"], orient="row")
    return results.curves(metric=metric).join(expected, on=["arm", "generation"])


def names(results: Results) -> list[str]:
    """The figures that say something of a run."""
    silent = {
        "paired-differences": len(results.arms) < 2,
        "stages": results.stages().is_empty(),
        "theory": not results.theory,
    }
    return [name for name in FIGURES if not silent.get(name)]


def figures(results: Results, metric: Metric, baseline: str) -> dict[str, go.Figure]:
    """All figures of a run that say something, by name."""
    return {name: tamed(FIGURES[name].figure(results, metric, baseline)) for name in names(results)}


def parquet(results: Results, frame: str) -> bytes:
    """A frame as it is."""
    stream = io.BytesIO()
    results.scan(frame).collect().write_parquet(stream)
    return stream.getvalue()


def csv(results: Results, frame: str) -> str:
    """A frame as text; a list of ids is one text, with spaces between them."""
    return results.scan(frame).with_columns(pl.col(pl.List(pl.String)).list.join(" ")).collect().write_csv()


def page(results: Results, metric: Metric, baseline: str) -> bytes:
    """One HTML file that works without a network."""
    drawn = [*figures(results, metric, baseline).values()]
    with tempfile.TemporaryDirectory() as folder:
        file = write_page(Path(folder) / "run.html", results.directory.name, drawn, results._repr_html_())
        return file.read_bytes()


def pngs(results: Results, metric: Metric, baseline: str) -> bytes:
    """A ZIP of pictures.

    Raises:
        RuntimeError: If there is no browser that draws them.
    """
    import plotly.io

    drawn, stream = figures(results, metric, baseline), io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(stream, "w") as archive:
        files = [Path(folder) / f"{name}.png" for name in drawn]
        plotly.io.write_images(
            [*drawn.values()], files, width=1000, scale=2
        )  # all in one browser: in a quarter of the time
        for file in files:
            archive.write(file, file.name)
    return stream.getvalue()
