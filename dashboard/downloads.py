"""What can be taken home of a run: its frames, and its figures as one page or as pictures."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from dashboard.look import tamed
from fedlab.plots import write_page

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from fedlab.lab import Results
    from fedlab.lab.results import Metric


def figures(results: Results, metric: Metric, baseline: str) -> dict[str, go.Figure]:
    """All figures of a run that say something, by name."""
    plot = results.plot
    found = {"learning-curves": plot.learning_curves(metric=metric)}
    if len(results.arms) > 1:
        found["paired-differences"] = plot.paired_differences(baseline, metric=metric)
    found["rewards"] = plot.reward_distribution(metric=metric)
    found["memory"] = plot.memory_growth()
    found["cost"] = plot.cost()
    if len(results.stages()):
        found["stages"] = plot.stages()
    if results.theory:
        found["theory"] = plot.against_theory(metric=metric)
    return {name: tamed(figure) for name, figure in found.items()}


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
        RuntimeError: If there is no browser that draws them; ImportError or ValueError, if kaleido is missing.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, figure in figures(results, metric, baseline).items():
            archive.writestr(f"{name}.png", figure.to_image(format="png", width=1000, scale=2))
    return stream.getvalue()
