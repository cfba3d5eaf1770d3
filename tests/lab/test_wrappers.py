"""NoisyReward and Drift around real worlds."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fedlab.errors import InvalidRequest
from fedlab.lab import Outcome, ToolChoice
from fedlab.lab.world import attempt
from fedlab.lab.worlds import CumulativeCulture, Drift, Gymnasium, NoisyReward

WORLD = ToolChoice()


def answer(world, task, output, seed=0):
    """What comes of one answer."""
    walk = attempt(world, task, np.random.default_rng(seed))
    next(walk)
    with pytest.raises(StopIteration) as end:
        walk.send(output)
    return end.value.value


def test_noise_is_on_what_is_observed_and_the_truth_stays():
    world = NoisyReward(WORLD, sigma=0.5)
    task = WORLD.tasks(np.random.default_rng(0), 1)[0]
    outcomes = [answer(world, task, task.answer, seed) for seed in range(400)]
    assert {outcome.true_reward for outcome in outcomes} == {1.0}
    rewards = np.array([outcome.reward for outcome in outcomes])
    assert rewards.mean() == pytest.approx(1, abs=0.1)
    assert rewards.std() == pytest.approx(0.5, abs=0.05)
    assert answer(world, task, task.answer) == answer(world, task, task.answer)


def test_noise_on_noise_keeps_the_truth_and_comes_to_every_transition():
    task = WORLD.tasks(np.random.default_rng(0), 1)[0]
    assert answer(NoisyReward(NoisyReward(WORLD, 1), 1), task, "no module").true_reward == 0.0
    lake = NoisyReward(Gymnasium("FrozenLake-v1", is_slippery=False, max_steps=3), 0.1)
    walk = attempt(lake, lake.tasks(np.random.default_rng(0), 1, 0)[0], np.random.default_rng(0))
    next(walk)
    with pytest.raises(StopIteration) as end:
        while True:
            walk.send("0")
    assert len({outcome.reward for outcome in end.value.value}) == 3
    assert [outcome.true_reward for outcome in end.value.value] == [0, 0, 0]


def test_after_a_drift_a_part_of_the_answers_is_another():
    world = Drift(WORLD, at=3, fraction=0.5).seeded(np.random.default_rng(1))
    assert len(world.renamed) == round(0.5 * len(WORLD.options))
    assert set(world.renamed) == set(world.renamed.values())
    assert all(old != new for old, new in world.renamed.items())
    rng = np.random.default_rng
    inside = world.world.tasks(rng(0), 200, 3)
    assert world.world.tasks(rng(0), 200, 2) == world.tasks(rng(0), 200, 2)
    drifted = world.tasks(rng(0), 200, 3)
    assert [task.input for task in drifted] == [task.input for task in inside]
    for before, after in zip(inside, drifted, strict=True):
        right = world.renamed.get(before.answer, before.answer)
        assert answer(world, after, right) == Outcome(right, 1.0, answer=right)
        assert world.reward(after, before.answer) == float(before.answer not in world.renamed)


def test_the_drift_of_a_seed_is_drawn_from_it_alone():
    drift = Drift(WORLD, at=3, fraction=0.2)
    renamed = [drift.seeded(np.random.default_rng(seed)).renamed for seed in (1, 1, 2)]
    assert renamed[0] == renamed[1] != renamed[2]
    with pytest.raises(InvalidRequest, match="call seeded"):
        drift.tasks(np.random.default_rng(0), 5, 3)


def test_a_wrapper_has_what_the_world_inside_has_and_travels():
    world = Drift(NoisyReward(WORLD, 0.1), at=1, fraction=0.1)
    for each in (world, copy.deepcopy(world), pickle.loads(pickle.dumps(world))):
        assert each.options == WORLD.options
        assert each.data_hash == WORLD.data_hash
        assert not hasattr(each, "founders")
        assert repr(each) == f"Drift(NoisyReward({WORLD!r}, sigma=0.1), at=1, fraction=0.1)"
    assert NoisyReward(CumulativeCulture(), 1).theory(3) == CumulativeCulture().theory(3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NoisyReward(WORLD, -1), "sigma must be"),
        (lambda: NoisyReward(WORLD, float("nan")), "sigma must be"),
        (lambda: Drift(WORLD, at=-1, fraction=0.5), "at must be"),
        (lambda: Drift(WORLD, at=1, fraction=0), "fraction must be"),
        (lambda: Drift(CumulativeCulture(), at=1, fraction=0.5), "no options"),
        (
            lambda: (
                Drift(Gymnasium("FrozenLake-v1"), at=0, fraction=1)
                .seeded(np.random.default_rng(0))
                .tasks(np.random.default_rng(0), 1, 0)
            ),
            "without an answer",
        ),
    ],
)
def test_what_can_not_be_is_refused(make, says):
    with pytest.raises(InvalidRequest, match=says):
        make()
