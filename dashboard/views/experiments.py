"""Experiments: the runs that are open, their arms compared, theory against simulation, provenance, and downloads."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl
import streamlit as st

from dashboard import downloads, look, sources

if TYPE_CHECKING:
    from fedlab.lab import Results

METRICS = {"true_reward": "what an answer was worth", "reward": "what its agent saw"}
REFRESH = 5.0  # seconds between two looks at a run that is under way
SECTIONS = ["Arms", "Memory and cost", "Where memory fails", "Theory", "Provenance", "Download"]
CAPTIONS = {
    "Arms": "Means over seeds with 95 % intervals; differences are paired by seed, p is of a permutation test, and"
    " p_holm is corrected for the number of arms that are compared. Where nothing can be said, the note says why.",
    "Memory and cost": "Milliseconds are of the machine that ran it, and of what else it did: compare arms of one run"
    " only.",
}
MISSING = {
    "Where memory fails": "This world does not say which memories would have helped (its `helpful`), or no task failed:"
    " so nothing can be said of where memory failed.",
    "Theory": "No theory speaks of these arms. Two do of others: imitators in `CumulativeCulture` and Bayesian learners"
    " in `IteratedLearning`, under a memory of one generation or of everything, with one task an agent.",
}


def page() -> None:
    """All of it."""
    runs = sources.runs()
    if not runs:
        look.note(
            "No run is open. `fedlab run experiment.toml --output my-run` makes one, `fedlab dashboard my-run` shows"
            " it; or type its directory into the side bar under 'Open another'."
        )
        return
    source = runs[st.selectbox("Run", [*runs], key="run", **look.KEPT)]
    results = sources.results(source)
    cells = results.cells()
    if (cells["state"] == "finished").all():
        _run(results, cells)
    else:
        st.fragment(_under_way, run_every=REFRESH)(source)


def _under_way(source: sources.Source) -> None:
    """What there is of a run that has not ended."""
    with look.guarded():
        results = sources.results(source)
        cells = results.cells()
        count = dict(cells.group_by("state").len().rows())
        finished, failed = count.get("finished", 0), count.get("failed", 0)
        st.progress(finished / len(cells), f"{finished:,} of {len(cells):,} cells are finished, {failed:,} failed.")
        if finished < len(cells):
            look.note(
                "The others are under way, or the run was interrupted: `fedlab run` with the same experiment and"
                " directory goes on with what is missing. This page looks again by itself."
            )
        _run(results, cells)


def _run(results: Results, cells: pl.DataFrame) -> None:
    if not (cells["state"] == "finished").any():
        st.info("No cell is finished yet: there is nothing to compare.", icon=":material/hourglass:")
        _provenance(results, cells)
        return
    left, right = st.columns(2)
    metric = left.selectbox("Reward", [*METRICS], format_func=METRICS.__getitem__, key="metric", **look.KEPT)
    baseline = right.selectbox("Baseline", results.arms, key="baseline", **look.KEPT)
    chosen = look.choose("Show", SECTIONS, key="section")
    if chosen == "Provenance":
        _provenance(results, cells)
    elif chosen == "Download":
        _download(results, metric, baseline)
    else:
        _figures(results, metric, baseline, chosen)


def _figures(results: Results, metric: Any, baseline: str, section: str) -> None:
    """Those of one section; where there are none, why."""
    if section == "Arms":
        look.table(results.summary(baseline, metric=metric), key="run-summary")
    shown = [name for name in downloads.names(results) if downloads.FIGURES[name].section == section]
    for name in shown:
        drawn = downloads.FIGURES[name]
        figure, data = drawn.figure(results, metric, baseline), drawn.data(results, metric, baseline)
        look.chart(look.tamed(figure), data, f"run-{name}", drawn.about)
    if not shown:
        look.note(MISSING[section])
    elif section in CAPTIONS:
        st.caption(CAPTIONS[section])


def _provenance(results: Results, cells: pl.DataFrame) -> None:
    manifest = results.manifest
    platform = {**manifest.get("versions", {}), **manifest.get("platform", {})}
    facts = {
        "directory": results.directory,
        "hub": manifest.get("hub"),
        "hash of the world's data": manifest.get("data_hash") or "the world has no data of its own",
        "seeds": manifest["experiment"].get("seeds"),
        **platform,
    }
    left, right = st.columns(2)
    with left:
        st.subheader("Made of")
        table = pl.DataFrame([(name, str(value)) for name, value in facts.items()], ["what", "value"], orient="row")
        look.table(table, key="run-facts")
    with right:
        st.subheader("Cells")
        look.table(cells, key="run-cells")
    st.subheader("Configuration")
    st.json(manifest["experiment"], expanded=2)


def _download(results: Results, metric: Any, baseline: str) -> None:
    name = results.directory.name
    st.subheader("Frames")
    for frame in ("episodes", "generations", "agents", "costs"):
        left, right = st.columns(2)
        left.download_button(f"{frame}.parquet", partial(downloads.parquet, results, frame), f"{name}-{frame}.parquet")
        right.download_button(f"{frame}.csv", partial(downloads.csv, results, frame), f"{name}-{frame}.csv", "text/csv")
    st.download_button(
        "Summary as CSV",
        lambda: results.summary(baseline, metric=metric).write_csv(),
        f"{name}-summary.csv",
        "text/csv",
    )
    st.caption("Times in these files are ms since 1970, UTC.")
    st.subheader("Figures")
    st.download_button(
        "All figures as one HTML page", lambda: downloads.page(results, metric, baseline), f"{name}.html", "text/html"
    )
    st.caption(
        "The page works without a network. A figure as PNG: the camera above it, in any browser. All as a ZIP of PNG"
        " files: with `pip install 'fedlab-memory[images]'` and a Chrome or Chromium on the dashboard's machine."
    )
    if importlib.util.find_spec("kaleido") and st.button("Draw all figures as PNG"):
        try:
            with st.spinner("A browser draws them …"):
                pngs = downloads.pngs(results, metric, baseline)
            st.download_button("PNG files as ZIP", pngs, f"{name}-figures.zip", "application/zip", on_click="ignore")
        except RuntimeError as error:
            st.warning(look.literal(error))


page()
