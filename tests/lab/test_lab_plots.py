"""Figures of a run: what they show is what the frames say, and they can be saved."""

from __future__ import annotations

import shutil
from itertools import product

import numpy as np
import polars as pl
import pytest

from fedlab.errors import InvalidRequest
from fedlab.lab.plots import against_theory, marks
from fedlab.lab.results import Results
from tests.lab.runs import outcome, write_run

ARMS = ["no memory", "forever", "90 days"]
FIGURES = ["learning_curves", "memory_growth", "reward_distribution", "paired_differences", "lineage", "stages", "cost"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Right or wrong, better with every generation where there is memory, with ancestors and stages."""
    rng = np.random.default_rng(0)
    rows = []
    for arm, seed, generation, step in product(ARMS, range(7), range(5), range(6)):
        right = rng.random() < 0.3 + 0.1 * generation * (arm != "no memory")
        used = [f"{generation - 1}-{step}"] if arm != "no memory" and generation else []
        stage = None if right else ["never stored", "not recalled", "forgotten"][step % 3]
        about = {"step": step, "episode_id": f"{generation}-{step}", "used": used, "stage": stage}
        rows.append(outcome(arm, seed, generation, float(right), **about))
    return Results(write_run(tmp_path_factory.mktemp("runs") / "run", rows))


def lines(figure):
    return {trace.name: trace for trace in figure.data if trace.name and trace.type == "scatter"}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows(results, name):
    figure = getattr(results.plot, name)()
    assert figure.data
    assert figure.layout.title.text
    axes = [axis for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    assert any(figure.layout[axis].title.text for axis in axes if axis.startswith("xaxis"))
    json = figure.to_json()
    assert "NaN" not in json


def test_an_arm_looks_the_same_in_all_figures(results):
    expected = {name: (mark.colour, mark.dash, mark.symbol) for name, mark in marks(ARMS).items()}
    for name in ("learning_curves", "memory_growth", "lineage", "cost"):
        for arm, trace in lines(getattr(results.plot, name)()).items():
            assert (trace.line.color, trace.line.dash, trace.marker.symbol) == expected[arm]
    for trace in results.plot.reward_distribution().data:
        assert trace.marker.color == expected[trace.name][0]
    for arm, trace in lines(results.plot.paired_differences()).items():
        assert (trace.marker.color, trace.marker.symbol) == expected[arm][::2]


def test_twenty_eight_arms_stay_apart_without_their_symbols():
    assert len({(mark.colour, mark.dash) for mark in marks([str(n) for n in range(28)]).values()}) == 28


def test_learning_curves_are_the_means_with_their_bands(results):
    curves = results.curves()
    figure = results.plot.learning_curves()
    for arm in ARMS:
        own = curves.filter(pl.col("arm") == arm)
        assert list(lines(figure)[arm].y) == own["mean"].to_list()
        (band,) = [trace for trace in figure.data if trace.fill == "toself" and trace.legendgroup == arm]
        known = own.drop_nulls("ci_low")
        assert set(band.y) - {None} == {*known["ci_low"], *known["ci_high"]}


def test_where_there_is_no_interval_there_is_no_band(tmp_path):
    lone = Results(write_run(tmp_path / "run", [outcome("a", 0, 0, 0.5), outcome("a", 0, 1, 1.0)]))
    assert [trace.fill for trace in lone.plot.learning_curves().data] == [None]
    figure = lone.plot.paired_differences()
    assert not figure.data


def test_rewards_of_few_values_are_bars_that_add_up(results):
    figure = results.plot.reward_distribution(last=2)
    assert [trace.type for trace in figure.data] == ["bar"] * 3
    assert [sum(trace.y) for trace in figure.data] == pytest.approx([1.0] * 3)
    assert figure.layout.title.text.endswith("last 2 generations")


def test_rewards_of_many_values_are_violins(tmp_path):
    rows = [outcome("a", 0, 0, number / 7, step=number) for number in range(20)]
    (violin,) = Results(write_run(tmp_path / "run", rows)).plot.reward_distribution().data
    assert (violin.type, len(violin.y)) == ("violin", 20)


def test_paired_differences_show_each_seed_and_the_mean(results):
    figure = results.plot.paired_differences("no memory")
    values = results.by_seed()
    row = results.summary("no memory").row(1, named=True)
    seeds, mean = figure.data[:2]
    assert list(seeds.x) == pytest.approx((values["forever"] - values["no memory"]).tolist())
    assert list(mean.x) == [row["diff"]]
    bar = mean.error_x
    assert (mean.x[0] - bar.arrayminus[0], mean.x[0] + bar.array[0]) == pytest.approx(
        (row["diff_low"], row["diff_high"])
    )
    assert mean.text[0] == f"p = {row['p']:.2g}"
    below, above = figure.layout.yaxis.range  # places of the arms count downwards from 0
    assert above <= -0.5  # room for the first one's p
    assert below > 1


@pytest.mark.parametrize("name", ["cost", "lineage"])
def test_panels_with_axes_of_their_own_stand_below_each_other(results, name):
    layout = getattr(results.plot, name)().layout
    assert layout.xaxis.domain == layout.xaxis2.domain == (0, 1)  # side by side, an axis is cut on a narrow screen
    assert layout.yaxis.title.text
    assert layout.yaxis2.title.text
    assert (layout.xaxis.title.text, layout.xaxis2.title.text) == ("", "generation")


def test_stages_fill_each_generation(results):
    figure = results.plot.stages()
    heights = {}
    for trace in figure.data:
        for x, y in zip(trace.x, trace.y, strict=True):
            heights[trace.xaxis, x] = heights.get((trace.xaxis, x), 0) + y
    assert len(heights) == 3 * 5
    assert list(heights.values()) == pytest.approx([1.0] * 15)
    assert sum(trace.showlegend for trace in figure.data) == 4


def test_theory_is_a_line_and_simulation_points_with_intervals():
    theory = pl.DataFrame({"series": ["a", "a", "b"], "x": [2, 1, 1], "y": [2.0, 1.0, 3.0]})
    points = pl.DataFrame(
        {"series": ["b", "a"], "x": [1, 1], "mean": [3.1, 1.0], "ci_low": [2.9, None], "ci_high": [3.4, None]}
    )
    figure = against_theory(theory, points, title="Growth", x="agents", y="skill", series=["b", "a"])
    assert [(trace.name, trace.mode, list(trace.x)) for trace in figure.data] == [
        ("b: theory", "lines", [1]),
        ("b: simulation", "markers", [1]),
        ("a: theory", "lines", [1, 2]),
        ("a: simulation", "markers", [1]),
    ]
    bars = figure.data[1].error_y
    assert (bars.array[0], bars.arrayminus[0]) == pytest.approx((0.3, 0.2))
    assert (figure.data[3].error_y.array[0], figure.data[3].error_y.arrayminus[0]) == (0, 0)
    assert figure.data[0].line.color == figure.data[1].marker.color != figure.data[2].line.color


def test_a_theory_of_some_arms_stands_beside_what_they_did(results):
    figure = results.plot.against_theory({"forever": np.linspace(0.3, 0.7, 5)})
    assert [trace.name for trace in figure.data] == ["forever: theory", "forever: simulation"]
    line, points = figure.data
    assert list(line.x) == list(points.x) == [0, 1, 2, 3, 4]
    assert list(line.y) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert list(points.y) == results.curves().filter(pl.col("arm") == "forever")["mean"].to_list()
    assert line.line.color == points.marker.color == marks(ARMS)["forever"].colour
    with pytest.raises(InvalidRequest, match="no arm 'for ever', but 'no memory', 'forever', '90 days'"):
        results.plot.against_theory({"for ever": [0.3]})
    with pytest.raises(InvalidRequest, match="'forever' has 2 values, and there are 5 generations"):
        results.plot.against_theory({"forever": [0.3, 0.4]})


def test_a_figure_is_saved_as_a_page(results, tmp_path):
    results.plot.learning_curves().write_html(tmp_path / "curves.html")
    assert "Reward by generation" in (tmp_path / "curves.html").read_text(encoding="utf-8")


def test_a_figure_is_saved_as_an_image(results, tmp_path):
    pytest.importorskip("kaleido")
    if not any(map(shutil.which, ("google-chrome", "chrome", "chromium", "chromium-browser"))):
        pytest.skip("no Chrome or Chromium is installed")
    results.plot.learning_curves().write_image(tmp_path / "curves.png", width=800, height=450)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
