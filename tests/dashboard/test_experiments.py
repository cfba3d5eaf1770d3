"""The page Experiments: what it shows of runs that are finished, under way, or failed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import downloads
from dashboard.look import tamed
from fedlab import MaxAge
from fedlab.lab import Arm, Experiment, Results, learners, worlds
from tests.dashboard.conftest import HOSTILE, Look, words
from tests.lab.runs import outcome, write_run
from tests.lab.small import Copier, Guesser, experiment

SECTIONS = ["Arms", "Memory and cost", "Where memory fails", "Theory", "Provenance", "Download"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One in a world with a theory, and one with arms of hostile names."""
    folder = tmp_path_factory.mktemp("runs")
    imitator = learners.GumbelImitator()
    culture = Experiment(
        worlds.CumulativeCulture(),
        [Arm("one generation", imitator, retention=MaxAge(days=10)), Arm("forever", imitator)],
        generations=3,
        agents_per_generation=4,
        tasks_per_agent=1,
        seeds=range(3),
    )
    culture.run_sync(folder / "culture", progress=False)
    hostile = experiment(Arm(HOSTILE[0], Copier()), Arm(HOSTILE[5], Guesser()))
    hostile.run_sync(folder / "hostile", progress=False)
    return [folder / "culture", folder / "hostile"]


def opened(app: AppTest, run: str, section: str) -> AppTest:
    app.selectbox(key="run").set_value(f"run {run}").run()
    app.button_group(key="section").set_value(section).run()
    assert not app.exception, app.exception
    assert not app.error, [each.value for each in app.error]
    return app


@pytest.mark.parametrize("run", ["culture", "hostile"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_run_is_shown(run: str, section: str, look_at: Look, runs: list[Path]):
    app = opened(look_at("experiments", *runs), run, section)
    charts = app.get("plotly_chart")
    wanted = {"Arms": 3, "Memory and cost": 2, "Where memory fails": run == "hostile", "Theory": run == "culture"}
    assert len(charts) == wanted.get(section, 0)
    for chart in charts:
        assert "<script" not in chart.proto.spec


def test_the_summary_is_that_of_the_results(look_at: Look, runs: list[Path]):
    app = opened(look_at("experiments", *runs), "culture", "Arms")
    app.selectbox(key="baseline").set_value("forever").run()
    shown = pl.from_pandas(app.dataframe[0].value)
    ours = Results.open(runs[0]).summary("forever")
    assert shown["mean"].to_list() == ours["mean"].to_list()
    assert shown["diff"].to_list()[0] == ours["diff"][0]


def test_a_run_that_is_under_way_says_how_far_it_is(look_at: Look, tmp_path: Path):
    run = write_run(tmp_path / "begun", [outcome("a", 0, 0, 1.0), outcome("b", 0, 0, 0.0)], seeds=[0, 1])
    (run / "failed").mkdir()
    (run / "failed" / "a.1.txt").write_text("arm 'a', seed 1, generation 0: ValueError: <b>no</b>\n\ntrace")
    app = look_at("experiments", run)
    assert not app.exception
    assert "goes on with what is missing" in words(app)
    cells = Results.open(run).cells()
    assert cells["state"].to_list() == ["finished", "finished", "failed", "missing"]
    assert cells["failure"][2] == "arm 'a', seed 1, generation 0: ValueError: <b>no</b>"


def test_a_run_without_a_finished_cell_has_its_configuration(look_at: Look, tmp_path: Path):
    manifest = {"experiment": {"arms": [{"name": "a"}], "seeds": [0, 1]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    app = look_at("experiments", tmp_path)
    assert not app.exception
    assert "No cell is finished yet" in words(app)
    assert json.loads(app.json[0].value) == manifest["experiment"]


def test_what_is_downloaded_is_what_is_there(look_at: Look, runs: list[Path]):
    app = opened(look_at("experiments", *runs), "hostile", "Download")
    results = Results.open(runs[1])
    assert pl.read_parquet(io.BytesIO(downloads.parquet(results, "episodes"))).equals(results.episodes)
    assert pl.read_csv(io.StringIO(downloads.csv(results, "episodes"))).height == results.episodes.height
    assert b"<script>document.title" not in downloads.page(results, "true_reward", HOSTILE[0])
    assert len(app.get("download_button")) == 10


def test_text_in_a_figure_is_no_markup():
    import plotly.graph_objects as go

    figure = go.Figure(layout={"title": {"text": "<b>x</b>"}}).add_scatter(y=["<i>a</i>"], hovertemplate="<b>%{y}</b>")
    plain = tamed(figure)
    assert plain.layout.title.text == "&lt;b&gt;x&lt;/b&gt;"
    assert plain.data[0].y == ("&lt;i&gt;a&lt;/i&gt;",)
    assert plain.data[0].hovertemplate == "<b>%{y}</b>"


def test_the_data_of_theory_has_what_is_expected_beside_what_was_simulated(runs: list[Path]):
    results = Results.open(runs[0])
    data = downloads.FIGURES["theory"].data(results, "true_reward", results.arms[0])
    for (arm,), rows in data.sort("generation").partition_by("arm", as_dict=True).items():
        assert rows["theory"].to_list() == results.theory[arm]
        assert rows["mean"].null_count() == 0
