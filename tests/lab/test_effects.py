"""Effects of memory on real data and in environments, paired by seed, through agents on a hub."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
from scipy import stats

from fedlab.lab import Arm, Experiment, ToolChoice, learners, worlds
from fedlab.lab.config import load
from fedlab.retention import MaxAge, MinReward

pytestmark = pytest.mark.timeout(900)

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SEEDS = range(10)
FIVE_GENERATIONS = MaxAge(days=50)


def run(folder, world, arms, seeds=SEEDS, **sizes):
    """Mean true reward by arm, shape (seeds, generations)."""
    experiment = Experiment(world, arms, generation_interval=timedelta(days=10), seeds=seeds, **sizes)
    frame = experiment.run_sync(folder, workers=2, progress=False).generations.sort("seed", "generation")
    shape = (len(seeds), sizes["generations"])
    means = {arm.name: frame.filter(pl.col("arm") == arm.name)["true_reward_mean"] for arm in arms}
    return {name: each.to_numpy().reshape(shape) for name, each in means.items()}


def gain(arm, baseline):
    """The 95 % interval of the mean paired difference, over the seeds."""
    difference = (arm - baseline).mean(axis=1)
    return stats.t.interval(0.95, len(difference) - 1, difference.mean(), stats.sem(difference))


@pytest.fixture(scope="module")
def stationary(tmp_path_factory):
    copier, voter = learners.NearestNeighbour(), learners.SignedVote()
    told = {"feedback": "corrective"}
    arms = [
        Arm("no memory", learners.ZeroShot()),
        Arm("forever", copier, **told),
        Arm("five generations", copier, retention=FIVE_GENERATIONS, **told),
        Arm("copier", copier),
        Arm("copier, successes", copier, retention=MinReward(0.7)),
        Arm("voter", voter),
        Arm("voter, successes", voter, retention=MinReward(0.7)),
    ]
    return run(tmp_path_factory.mktemp("tools"), ToolChoice(), arms, generations=20)


def test_memory_beats_no_memory(stationary):
    low, _ = gain(stationary["forever"], stationary["no memory"])
    assert low > 0
    assert stationary["forever"][:, -5:].mean() >= 0.70


def test_what_helps_a_copier_hurts_who_learns_from_failures(stationary):
    assert gain(stationary["copier, successes"], stationary["copier"])[0] > 0
    assert gain(stationary["voter, successes"], stationary["voter"])[1] < 0


def test_a_window_hurts_where_nothing_changes_and_wins_after_a_drift(stationary, tmp_path):
    assert gain(stationary["five generations"], stationary["forever"])[1] < 0
    copier, told = learners.NearestNeighbour(), {"feedback": "corrective"}
    arms = [Arm("forever", copier, **told), Arm("window", copier, retention=FIVE_GENERATIONS, **told)]
    drifted = run(tmp_path, worlds.Drift(ToolChoice(), at=10, fraction=0.5), arms, generations=20)
    assert gain(drifted["window"][:, 10:], drifted["forever"][:, 10:])[0] > 0


def test_a_shared_memory_finds_the_way_over_the_frozen_lake(tmp_path):
    lake = worlds.Gymnasium("FrozenLake-v1", is_slippery=False)
    arms = [Arm("shared", learners.EpisodicControl(unknown=0.0))]
    sizes = {"generations": 15, "agents_per_generation": 10, "tasks_per_agent": 5}
    rewards = run(tmp_path, lake, arms, range(5), **sizes)["shared"]
    assert (rewards.max(axis=1) == 1.0).all()
    assert rewards[:, -1].mean() == 1.0


@pytest.mark.timeout(1200)
def test_on_slippery_ice_the_maximum_takes_luck_for_skill_and_the_mean_does_better(tmp_path):
    results = load(str(NOTEBOOKS / "slippery_lake.toml")).run_sync(tmp_path / "run", workers=2, progress=False)
    maximum, mean = results.summary("maximum", last=5).to_dicts()
    assert mean["diff_low"] > 0
    assert maximum["mean"] < 0.05 < mean["mean"]
    told = "".join(cell.source for cell in nbformat.read(NOTEBOOKS / "06_reinforcement.ipynb", 4).cells)
    assert results.table("maximum", last=5) in told


@pytest.mark.parametrize("id", ["CliffWalking-v1", "Taxi-v4", "CartPole-v1"])
def test_control_with_memory_beats_chance(id, tmp_path):
    world = worlds.Gymnasium(id, max_steps=40, discount=0.9)
    arms = [Arm("no memory", learners.ZeroShot()), Arm("memory", learners.EpisodicControl())]
    rewards = run(tmp_path, world, arms, generations=4, agents_per_generation=3, tasks_per_agent=2)
    assert np.isfinite(rewards["memory"]).all()
    assert gain(rewards["memory"], rewards["no memory"])[0] > 0
