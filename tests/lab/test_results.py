"""What is said of a run: against numbers that can be worked out by hand, from a directory written by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import polars as pl
import pytest

from fedlab import InvalidRequest, MaxEpisodes
from fedlab.lab import Arm, Results, statistics
from tests.lab.runs import outcome, write_run
from tests.lab.small import Copier, Guesser, experiment

REWARDS = {"no memory": [0.2, 0.2, 0.2, 0.2], "forever": [0.2, 0.4, 0.6, 0.8], "90 days": [0.2, 0.4, 0.5, 0.5]}
SEEDS = range(8)


def reward(arm, seed, generation):
    """Seeds differ by a little, in another way for each arm."""
    return REWARDS[arm][generation] + 0.01 * seed + 0.002 * ((seed * len(arm)) % 5)


@pytest.fixture
def results(tmp_path):
    """Three arms that are neither in alphabetical order nor in that of their files, eight seeds, four generations."""
    rows = [outcome(*cell, reward(*cell), true_reward=reward(*cell) + 1) for cell in product(REWARDS, SEEDS, range(4))]
    return Results.open(write_run(tmp_path / "run", reversed(rows), arms=list(REWARDS)))


def test_frames_are_in_the_order_of_the_experiment(results):
    assert results.arms == list(REWARDS)
    for frame in (results.episodes, results.generations, results.agents, results.costs):
        assert frame["arm"].unique(maintain_order=True).to_list() == list(REWARDS)
        cells = frame.select("seed", "generation").head(4 * 8).rows()
        assert cells == sorted(cells)


def test_summary_is_the_contract(results):
    summary = results.summary(baseline="no memory", metric="reward")
    assert summary.columns == [
        *("arm", "seeds", "mean", "ci_low", "ci_high", "iqm", "diff", "diff_low", "diff_high", "p", "p_holm", "note")
    ]
    assert summary["arm"].to_list() == list(REWARDS)
    own = {arm: np.array([np.mean([reward(arm, s, g) for g in range(4)]) for s in SEEDS]) for arm in REWARDS}
    for row in summary.iter_rows(named=True):
        values = own[row["arm"]]
        expected = statistics.estimate(values)
        assert (row["seeds"], row["note"]) == (8, "")
        assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx(expected[1:4])
        assert row["iqm"] == pytest.approx(statistics.interquartile_mean(values))
    forever = summary.row(1, named=True)
    compared = statistics.compare(own["forever"], own["no memory"])
    assert [forever[name] for name in ("diff", "diff_low", "diff_high", "p")] == pytest.approx(compared[1:5])
    assert forever["p"] == pytest.approx(2 / 2**8)
    assert summary["p_holm"].to_list()[1:] == pytest.approx(statistics.holm(summary["p"].to_list()[1:]))
    assert forever["p_holm"] == pytest.approx(4 / 2**8), "two arms are compared"
    assert summary.row(0)[6:11] == (None,) * 5, "the baseline is not compared to itself"


def test_without_a_baseline_nothing_is_compared(results):
    assert results.summary().select("diff", "diff_low", "diff_high", "p").null_count().row(0) == (3,) * 4


def test_the_true_reward_counts_unless_the_observed_is_asked_for(results):
    difference = results.summary()["mean"] - results.summary(metric="reward")["mean"]
    assert difference.to_list() == pytest.approx([1.0] * 3)


def test_only_the_last_generations(results):
    last = results.summary(metric="reward", last=2)
    assert last["mean"][1] == pytest.approx(np.mean([reward("forever", s, g) for s in SEEDS for g in (2, 3)]))


def test_only_the_generations_before_a_drift(results):
    before = results.summary("no memory", metric="reward", until=3)
    assert before["mean"][1] == pytest.approx(np.mean([reward("forever", s, g) for s in SEEDS for g in (0, 1, 2)]))
    only = results.summary("no memory", metric="reward", last=1, until=3)
    assert only["mean"][1] == pytest.approx(np.mean([reward("forever", s, 2) for s in SEEDS]))
    assert f"{only['mean'][1]:.3f}" in results.table(metric="reward", last=1, until=3)
    figure = results.plot.paired_differences("no memory", metric="reward", last=1, until=3)
    assert figure.layout.title.text.endswith("last generation, before generation 3")
    assert figure.data[1].x[0] == pytest.approx(only["diff"][1])


def test_a_generation_weighs_as_much_as_it_has_tasks(tmp_path):
    rows = [outcome("a", 0, 0, 1.0), *[outcome("a", 0, 1, 0.0, step=step) for step in range(3)]]
    assert Results(write_run(tmp_path / "run", rows)).summary()["mean"].to_list() == [0.25]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.summary("memory"), "there is no arm 'memory', but 'no memory', 'forever', '90 days'"),
        (lambda r: r.measures(scratch="x"), "there is no arm 'x', but 'no memory', 'forever', '90 days'"),
        (lambda r: r.plot.paired_differences("x"), "there is no arm 'x', but 'no memory', 'forever', '90 days'"),
        (lambda r: r.summary(metric="score"), "metric is true_reward or reward, not 'score'"),
        (lambda r: r.lineage(metric="score"), "metric is true_reward or reward, not 'score'"),
        (lambda r: r.summary(last=5), "last is 5, and there are 4 generations"),
        (lambda r: r.summary(last=0), "last is 0, and there are 4 generations"),
        (lambda r: r.summary(until=5), "until is 5, and there are 4 generations"),
        (lambda r: r.summary(last=3, until=2), "last is 3, and there are 2 generations before generation 2"),
        (lambda r: r.plot.reward_distribution(last=9), "last is 9, and there are 4 generations"),
        (lambda r: r.scan("cells"), "there is no frame 'cells', but episodes, generations, agents, costs"),
        (lambda r: r.measures(drift_at=4), "a drift in generation 4 of 4 does not leave 1 on both sides"),
        (lambda r: r.measures(threshold=0.5, window=9), "window is 9, and there are 4 generations"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(results, call, message):
    with pytest.raises(InvalidRequest) as caught:
        call(results)
    assert message in str(caught.value)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="holds no run of an experiment"):
        Results.open(tmp_path)


def test_a_cell_that_is_not_finished_is_left_out_and_told(tmp_path):
    rows = [outcome(*cell, reward(*cell)) for cell in product(REWARDS, SEEDS, range(4)) if cell[:2] != ("forever", 3)]
    results = Results(write_run(tmp_path / "run", rows, arms=list(REWARDS)))
    forever = results.summary("no memory").row(1, named=True)
    assert forever["seeds"] == 7
    assert "1 of 8 seeds have no value and are left out" in forever["note"]
    assert "difference: 1 of 8 seeds are not in both arms and are left out" in forever["note"]
    assert forever["diff"] == pytest.approx(
        np.mean([reward("forever", s, g) - reward("no memory", s, g) for s in SEEDS if s != 3 for g in range(4)])
    )
    assert "23 of 24 cells finished" in repr(results)
    assert results.measures(threshold=0.5)["seeds"].to_list() == [8, 0, 7, 7, 8, 8]


def test_an_arm_without_a_finished_cell_has_a_row_without_numbers(tmp_path):
    results = Results(write_run(tmp_path / "run", [outcome("a", 0, 0, 1.0)], arms=["a", "b"]))
    row = results.summary("a").row(1, named=True)
    assert (row["seeds"], row["mean"], row["ci_low"], row["iqm"], row["diff"], row["p"]) == (0, *[None] * 5)
    assert row["note"].startswith("no seed has a value")


def test_a_run_that_has_just_begun_can_be_looked_at(tmp_path):
    results = Results(write_run(tmp_path / "run", [], arms=["a"], seeds=[0, 1]))
    assert results.summary("a")["seeds"].to_list() == [0]
    assert results.episodes.is_empty()
    assert results.stages().is_empty()
    assert results.lineage().top().is_empty()
    assert "0 of 2 cells finished" in results._repr_html_()
    for name in ("learning_curves", "memory_growth", "reward_distribution", "lineage", "stages", "cost"):
        assert not getattr(results.plot, name)().data


def test_curves_are_the_estimate_of_each_generation(results):
    curves = results.curves(metric="reward")
    assert curves.select("arm", "generation").rows() == list(product(REWARDS, range(4)))
    row = curves.row(5, named=True)
    expected = statistics.estimate([reward("forever", s, 1) for s in SEEDS], resamples=1_999)
    assert (row["seeds"], row["mean"], row["ci_low"], row["ci_high"]) == (8, *map(pytest.approx, expected[1:4]))


def test_measures_of_the_learning_curves(results):
    measures = results.measures(threshold=0.575, drift_at=2, scratch="no memory", metric="reward")
    found = {row[:2]: row[2:] for row in measures.rows()}
    curve = np.array([[reward("forever", s, g) for g in range(4)] for s in SEEDS])
    area = statistics.area_under_curve(curve)
    assert found["forever", "area under the curve"][1] == pytest.approx(area.mean())
    assert found["forever", "generations to 0.575"][:2] == (8, 3.0)
    assert found["no memory", "generations to 0.575"] == (0, None, None, None, "reached in 0 of 8 seeds: no mean")
    assert (
        found["90 days", "generations to 0.575"][-1]
        == "reached in 1 of 8 seeds, after 3 generations there (median): no mean"
    )
    assert found["forever", "drop after the drift"][1] == pytest.approx(-0.2)
    assert found["forever", "regained by the end"][1] == pytest.approx(0.2)
    assert found["no memory", "forward transfer"][1] == 0
    scratch = np.array([reward("no memory", s, 0) for s in SEEDS])
    assert found["forever", "forward transfer"][1] == pytest.approx(np.mean((area - scratch) / (1 - scratch)))


def test_stages_are_shares_of_the_failed_tasks(tmp_path):
    policy = "MaxAge(days=90)"
    rows = [
        outcome("a", 0, 0, 1.0, forgotten_generation=0, forgotten_reason=policy),
        outcome("a", 0, 1, 0.0, stage="forgotten", stage_reason=policy, counterfactual_reward=1.0),
        outcome("a", 0, 1, 0.0, stage="forgotten", stage_reason="by hand", counterfactual_reward=1.0),
        outcome("a", 0, 1, 0.0, stage="forgotten", stage_reason=policy, counterfactual_reward=0.0),
        outcome("a", 0, 1, 0.0, stage="not used"),
        outcome("a", 1, 1, 0.0, stage="never stored"),
        outcome("a", 1, 1, 1.0),
        outcome("b", 0, 1, 0.0, stage="not recalled"),
    ]
    assert Results(write_run(tmp_path / "run", rows)).stages().rows() == [
        ("a", 1, "never stored", None, 1, 0.2, None),
        ("a", 1, "forgotten", policy, 2, 0.4, 0.5),
        ("a", 1, "forgotten", "by hand", 1, 0.2, 1.0),
        ("a", 1, "not used", None, 1, 0.2, None),
        ("b", 1, "not recalled", None, 1, 1.0, None),
    ]


def test_cost_is_the_mean_of_the_seeds(results):
    cost = results.cost()
    assert cost.select("arm", "generation").rows() == list(product(REWARDS, range(4)))
    # 6 phases of 2 ms and one task
    assert cost.row(3, named=True) | {"ms_per_task": 12.0, "bytes": 400.0, "recall": 2.0} == cost.row(3, named=True)


def test_the_summary_as_text_fits_a_terminal_and_names_what_it_cannot_say(results, tmp_path):
    lines = results.table("no memory", metric="reward").splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) < 100
    assert lines[3].split()[0:2] == ["forever", "8"]
    assert lines[3].split()[-2:] == ["0.0078", "0.016"]
    assert "+0.3" in lines[3]
    lone = Results(write_run(tmp_path / "lone", [outcome("a", 0, 0, 0.5)]))
    assert str(lone).splitlines()[-2:] == ["a    1      0.500                 0.500", "a: one seed: no interval"]


def test_a_notebook_shows_the_summary_escaped(tmp_path):
    shown = Results(write_run(tmp_path / "run", [outcome("<b>", 0, 0, 0.5)]))._repr_html_()
    assert "<b>" not in shown.replace("<b>Results of", "")
    assert "&lt;b&gt;: one seed: no interval" in shown
    assert "1 arm, 1 of 1 cells finished" in shown


def test_what_is_shown_does_not_tell_where_its_author_keeps_it(tmp_path, monkeypatch):
    results = Results(write_run(tmp_path / "run", [outcome("a", 0, 0, 0.5)]))
    assert str(tmp_path / "run") in repr(results)
    monkeypatch.chdir(tmp_path)
    for shown in (repr(results), results._repr_html_()):
        assert "run: 1 arm" in shown
        assert str(tmp_path) not in shown


def test_frames_are_polars_and_lazy_where_asked(results):
    assert isinstance(results.scan("episodes"), pl.LazyFrame)
    assert results.scan("episodes").select("reward").collect().height == results.episodes.height == 96
    assert math.isclose(results.scan("agents").select(pl.col("pushed").sum()).collect().item(), 96)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run through real agents and hubs: who remembers, who forgets, and who guesses."""
    arms = [
        Arm("guesses", Guesser()),
        Arm("remembers", Copier(k=10)),
        Arm("forgets", Copier(k=10), retention=MaxEpisodes(6)),
    ]
    trial = experiment(*arms, generations=8, seeds=range(8))
    return trial, trial.run_sync(tmp_path_factory.mktemp("real") / "run", progress=False)


def test_in_a_real_run_memory_pays_and_forgetting_costs(real):
    _, results = real
    summary = results.summary("guesses", last=4)
    remembers, forgets = summary.row(1, named=True), summary.row(2, named=True)
    assert remembers["diff_low"] > 0
    assert remembers["p"] < 0.05
    assert forgets["mean"] < remembers["mean"]
    rewards = results.episodes.filter(pl.col("generation") >= 4).group_by("arm").agg(pl.col("true_reward").mean())
    assert dict(zip(summary["arm"], summary["mean"], strict=True)) == pytest.approx(dict(rewards.rows()))


def test_in_a_real_run_every_failure_has_a_stage_and_forgetting_a_policy(real):
    _, results = real
    stages = results.stages()
    failed = results.episodes.filter(pl.col("true_reward") < 0.5)
    assert stages["tasks"].sum() == failed.height
    shares = stages.group_by("arm", "generation").agg(pl.col("share").sum())["share"]
    assert shares.to_list() == pytest.approx([1.0] * len(shares))
    forgotten = stages.filter(pl.col("stage") == "forgotten")
    assert forgotten["arm"].unique().to_list() == ["forgets"]
    assert forgotten["policy"].unique().to_list() == ["retention: keep the newest 6 episodes"]


def test_in_a_real_run_reward_goes_back_to_the_dead(real):
    _, results = real
    lineage = results.lineage()
    late = (
        lineage.generations.filter(pl.col("generation") >= 4).group_by("arm").agg(pl.col("inherited", "depth").mean())
    )
    means = {arm: (inherited, depth) for arm, inherited, depth in late.rows()}
    assert means["guesses"] == (0, 0)
    assert means["remembers"][0] > 0.5
    assert means["remembers"][1] > 1
    assert set(lineage.top(3)["arm"]) == {"remembers", "forgets"}


def test_in_a_real_run_everything_can_be_looked_at(real):
    trial, results = real
    for name in (
        "learning_curves",
        "memory_growth",
        "reward_distribution",
        "paired_differences",
        "lineage",
        "stages",
        "cost",
    ):
        assert getattr(results.plot, name)().data
    assert results.cost()["ms_per_task"].min() > 0
    assert "Experiment in Parity: 3 arms under 8 seeds" in trial._repr_html_()
    assert "24 of 24 cells finished" in results._repr_html_()
