"""What theory expects of an arm, and of which arms it says nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fedlab import MaxAge, MaxEpisodes
from fedlab.lab import Arm, Experiment, Islands, learners, worlds
from fedlab.lab.theory import expected

IMITATOR = learners.GumbelImitator()
CULTURE = Experiment(
    worlds.CumulativeCulture(alpha=1.5, beta=1.0),
    [Arm("one generation", IMITATOR, retention=MaxAge(10)), Arm("forever", IMITATOR, sharing=Islands(4))],
    generations=3,
    agents_per_generation=8,
    tasks_per_agent=1,
    seeds=range(2),
)


def test_a_run_knows_what_theory_expects_of_its_arms(tmp_path: Path):
    other = Arm("keeps ten", IMITATOR, retention=MaxEpisodes(10))
    results = replace(CULTURE, arms=[*CULTURE.arms, other]).run_sync(tmp_path / "run", progress=False)
    assert results.theory == {
        "one generation": pytest.approx(CULTURE.world.theory(8, 3).mean),
        "forever": pytest.approx(CULTURE.world.theory(8, 3, memory="forever", tenants=4).mean),
    }
    names = [trace.name for trace in results.plot.against_theory().data]
    assert names == [f"{arm}: {what}" for arm in results.theory for what in ("theory", "simulation")]


def test_chains_of_bayesian_learners_have_a_theory():
    chain = worlds.IteratedLearning(a=5, n=5, s0=8, m0=8)
    arm = Arm("chain", learners.BayesianSampler(), retention=MaxAge(10), sharing="none")
    telephone = Experiment(chain, [arm], generations=4, agents_per_generation=3, tasks_per_agent=1, seeds=[0])
    assert expected(telephone, arm) == pytest.approx(chain.theory(4).mean)
    assert expected(telephone, replace(arm, sharing="all")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"retention": MaxAge(11)},
        {"retention": MaxEpisodes(5)},
        {"capacity": 5},
        {"write": "successes"},
        {"sharing": Islands(2, migration=0.5)},
        {"sharing": Islands(3)},
        {"learner": learners.BayesianSampler()},
    ],
)
def test_of_other_arms_nothing_is_said(change: dict[str, object]):
    assert expected(CULTURE, replace(CULTURE.arms[0], **change)) is None


def test_of_other_experiments_nothing_is_said():
    arm = CULTURE.arms[0]
    drifting = worlds.Drift(worlds.ToolChoice(), at=1, fraction=0.5)
    for change in ({"tasks_per_agent": 2}, {"generation_interval": timedelta(days=5)}, {"world": drifting}):
        assert expected(replace(CULTURE, **change), arm) is None
