"""Gymnasium environments as worlds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fedlab.errors import InvalidRequest
from fedlab.lab.world import attempt
from fedlab.lab.worlds import Gymnasium

RIGHT, DOWN = "2", "1"
PATH = [DOWN, DOWN, RIGHT, RIGHT, DOWN, RIGHT]
"""The shortest way over the frozen lake."""


def run(world, actions, task=None, seed=0):
    """The states of one run, and its outcomes; the last action goes on to the end."""
    task = task or world.tasks(np.random.default_rng(seed), 1, 0)[0]
    walk = attempt(world, task, np.random.default_rng(seed))
    asked = [next(walk)]
    try:
        while True:
            asked.append(walk.send(actions[min(len(asked), len(actions)) - 1]))
    except StopIteration as end:
        return asked, end.value


def test_each_transition_has_the_discounted_return_from_there_on():
    world = Gymnasium("FrozenLake-v1", is_slippery=False, discount=0.9)
    asked, outcomes = run(world, PATH)
    assert [outcome.output for outcome in outcomes] == PATH
    assert [outcome.input for outcome in outcomes] == [task.input for task in asked]
    assert [task.input for task in asked] == [f"state {state}" for state in (0, 4, 8, 9, 10, 14)]
    assert [outcome.reward for outcome in outcomes] == pytest.approx([0.9**left for left in (5, 4, 3, 2, 1, 0)])
    assert {outcome.true_reward for outcome in outcomes} == {1.0}
    assert [outcome.metadata["step"] for outcome in outcomes] == [0, 1, 2, 3, 4, 5]


def test_a_run_may_be_one_episode():
    world = Gymnasium("FrozenLake-v1", is_slippery=False, discount=0.9, episode="trajectory")
    (outcome,) = run(world, PATH)[1]
    assert (outcome.input, outcome.output) == ("state 0", " ".join(PATH))
    assert outcome.reward == pytest.approx(0.9**5)
    assert outcome.metadata == {"steps": 6}


@pytest.mark.parametrize("id", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", "CartPole-v1"])
def test_the_seed_of_a_task_decides_its_run(id):
    world = Gymnasium(id, max_steps=20)
    tasks = world.tasks(np.random.default_rng(3), 2, 0)
    runs = [[task.input for task in run(world, ["1", "0"], task)[0]] for task in (tasks[0], tasks[0], tasks[1])]
    assert runs[0] == runs[1]
    if id in {"FrozenLake-v1", "Taxi-v4", "CartPole-v1"}:  # where chance has a part
        assert runs[0] != runs[2]
    assert all(len(each) <= 20 for each in runs)


def test_two_runs_at_once_do_not_meet():
    world = Gymnasium("FrozenLake-v1", is_slippery=False)
    alone = [task.input for task in run(world, PATH)[0]]
    task = world.tasks(np.random.default_rng(0), 1, 0)[0]
    walks = [attempt(world, task, np.random.default_rng(0)) for _ in range(2)]
    seen = [[next(walk).input] for walk in walks]
    for action in PATH[:-1]:
        for states, walk in zip(seen, walks, strict=True):
            states.append(walk.send(action).input)
    assert seen == [alone, alone]


@pytest.mark.parametrize(("id", "states", "dimension"), [("CliffWalking-v1", 48, 48), ("Taxi-v4", 500, 64)])
def test_discrete_states_have_unit_vectors_that_tell_them_apart(id, states, dimension):
    world = Gymnasium(id)
    vectors = np.stack([world.vector(state) for state in range(states)])
    assert vectors.shape == (states, dimension)
    similar = vectors @ vectors.T
    assert np.diag(similar) == pytest.approx(1)
    assert (similar - np.eye(states)).max() < 0.8


def test_near_observations_have_near_vectors():
    world = Gymnasium("CartPole-v1")
    assert world.dimension == 5
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (200, 4)) * [4.8, 1, 0.418, 1]
    vectors = np.stack([world.vector(state) for state in states])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    scaled = states / [4.8, 1, 0.4188790, 1]
    nearest = np.argsort(np.linalg.norm(scaled - scaled[0], axis=1))[:10]
    assert len(set(nearest) & set(np.argsort(-vectors @ vectors[0])[:20])) >= 8


def test_what_is_no_action_is_replaced_and_noted():
    world = Gymnasium("FrozenLake-v1", is_slippery=False)
    outcomes = run(world, ["go left!", *PATH])[1]
    assert outcomes[0].metadata == {"step": 0, "invalid": "go left!"}
    assert outcomes[0].output in world.options
    assert "invalid" not in outcomes[1].metadata


def test_a_world_travels_with_its_settings():
    world = Gymnasium("FrozenLake-v1", is_slippery=False, discount=0.9)
    run(world, PATH)
    other = pickle.loads(pickle.dumps(world))
    assert repr(other) == "Gymnasium('FrozenLake-v1', episode='step', is_slippery=False)"
    assert run(other, PATH)[1][0].reward == run(world, PATH)[1][0].reward
    assert other.data_hash == world.data_hash != Gymnasium("FrozenLake-v1").data_hash


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gymnasium("NoSuchLake-v1"), "cannot make 'NoSuchLake-v1'"),
        (lambda: Gymnasium("FrozenLake-v1", slippery=True), "cannot make 'FrozenLake-v1'"),
        # An old version is not replaced in silence: other rules are another world.
        (lambda: Gymnasium("Taxi-v0"), r"cannot make 'Taxi-v0': .* use `Taxi-v\d` instead"),
        (lambda: Gymnasium("Pendulum-v1"), "discrete"),
        (lambda: Gymnasium("Blackjack-v1"), "discrete, and discrete or box"),
        (lambda: Gymnasium("FrozenLake-v1", episode="run"), "'run'"),
        (lambda: Gymnasium("FrozenLake-v1", discount=2), "discount of 2"),
        (lambda: Gymnasium("FrozenLake-v1").reward(None, "0"), "one answer is no run"),
    ],
)
def test_what_can_not_be_is_refused(make, says):
    with pytest.raises(InvalidRequest, match=says):
        make()
