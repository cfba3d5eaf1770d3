"""Learners, each with the memories that make the difference."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest

from fedlab import Episode
from fedlab.embedding import Hashing
from fedlab.episode import Memory
from fedlab.errors import InvalidRequest
from fedlab.lab import Answer, Outcome, Query, Task, ToolChoice, check_learner, check_world, learners, worlds
from fedlab.lab.learners import EpisodicControl, NearestNeighbour, SignedVote, ZeroShot

TASK = Task("pick", "a red apple")
EMBED = Hashing(256).embed


class Shop:
    """A world of three options."""

    options = MappingProxyType({"fruit": "an apple or a pear", "tool": "a hammer or a saw", "book": "pages to read"})

    def tasks(self, rng, n, generation):
        return [TASK._replace(answer="fruit")] * n

    def reward(self, task, output):
        return float(output == task.answer)


def memory(output, similarity, reward=1.0, answer=None):
    metadata = {} if answer is None else {"answer": answer}
    episode = Episode(
        tenant_id="t", agent_id="a", task="pick", input="", output=output, reward=reward, metadata=metadata
    )
    return Memory(episode, similarity, similarity)


def act(learner, memories=(), seed=0, world=None, task=TASK):
    learner.prepare(world or Shop(), EMBED)
    return learner.act(task, memories, np.random.default_rng(seed))


def test_without_memory_the_nearest_description_is_the_answer():
    assert act(ZeroShot()) == Answer("fruit", ())
    assert list(ZeroShot().queries(TASK)) == []


def test_without_descriptions_every_option_is_as_likely():
    class Bare(Shop):
        options = MappingProxyType(dict.fromkeys(Shop.options, ""))

    answers = Counter(act(ZeroShot(), seed=seed, world=Bare()).output for seed in range(300))
    assert set(answers) == set(Shop.options)
    assert min(answers.values()) > 70


def test_the_copier_does_what_the_nearest_did_for_good_or_bad():
    near, far = memory("tool", 0.9, reward=0.0), memory("fruit", 0.8)
    assert act(NearestNeighbour(), [near]) == Answer("tool", [near.id])
    assert act(NearestNeighbour(2), [near, far]).output == "tool"
    assert act(NearestNeighbour(), [memory("tool", 0.9, 0.0, answer="book")]).output == "book"
    assert act(NearestNeighbour()).output == "fruit"  # nothing remembered: zero-shot


def test_most_votes_win_and_the_nearest_among_equals():
    three = [memory("tool", 0.9), memory("book", 0.8), memory("book", 0.7)]
    assert act(NearestNeighbour(3), three) == Answer("book", [three[1].id, three[2].id])
    assert act(NearestNeighbour(3), three[:2]).output == "tool"
    tied = [memory("tool", 0.9), memory("book", 0.9)]
    assert {act(NearestNeighbour(2), tied, seed).output for seed in range(20)} == {"tool", "book"}
    assert act(NearestNeighbour(2), tied, 3) == act(NearestNeighbour(2), tied, 3)


def test_below_the_threshold_memories_do_not_count():
    far = memory("tool", 0.5)
    assert act(NearestNeighbour(threshold=0.6), [far]) == Answer("fruit", ())
    assert act(NearestNeighbour(threshold=0.5), [far]) == Answer("tool", [far.id])


def test_failures_speak_against_what_they_did():
    failures = [memory("fruit", 0.9, reward=0.0), memory("fruit", 0.9, reward=0.0)]
    assert act(SignedVote(), failures).output != "fruit"
    assert act(SignedVote(), [*failures, memory("fruit", 1.0), memory("fruit", 1.0)]).output == "fruit"
    assert act(SignedVote(), [memory("fruit", 0.9, 0.0, answer="book")]).output == "book"
    assert act(SignedVote()).output == "fruit"


def returns(*pairs):
    """Memories of the same state: pairs of action and return."""
    return [memory(action, 1.0, value) for action, value in pairs]


def test_control_by_the_maximum_takes_luck_for_skill_and_by_the_mean_does_not():
    tried = returns(("fruit", 0.9), ("fruit", 0.0), ("fruit", 0.0), ("tool", 0.5), ("tool", 0.5), ("book", 0.1))
    assert act(EpisodicControl(use="max"), tried).output == "fruit"
    assert act(EpisodicControl(use="mean"), tried).output == "tool"
    assert act(EpisodicControl(), [*tried, memory("book", 0.5, 99.0)]).output == "fruit"  # of another state


def test_control_tries_what_is_unknown_only_while_nothing_better_is_known():
    known = returns(("fruit", -3.0), ("fruit", -5.0))
    assert act(EpisodicControl(unknown=0.0, explore=0.0), known).output in {"tool", "book"}
    assert act(EpisodicControl(explore=0.0), known).output == "fruit"  # better than the mean of what was tried
    chosen = {act(EpisodicControl(), returns(("fruit", 0.0)), seed).output for seed in range(40)}
    assert chosen == set(Shop.options)
    # Where as many are recalled as were asked for, an action that is not among them may have been tried.
    full = returns(*[("fruit", -3.0), ("tool", -4.0)] * 2)
    assert act(EpisodicControl(k=4, unknown=0.0, explore=0.0), full).output == "fruit"


@pytest.mark.parametrize("make", [lambda: EpisodicControl(use="best"), lambda: EpisodicControl(explore=2)])
def test_a_setting_that_can_not_be_is_refused(make):
    with pytest.raises(InvalidRequest, match="use is 'max' or 'mean'"):
        make()


WORLDS = [
    ToolChoice(),
    worlds.Digits(),
    worlds.NoisyReward(ToolChoice(), 0.5),
    worlds.Drift(ToolChoice(), at=1, fraction=0.5),
    worlds.Gymnasium("FrozenLake-v1"),
    worlds.Gymnasium("CartPole-v1", episode="trajectory"),
    worlds.CumulativeCulture(),
    worlds.IteratedLearning(),
    Shop(),
]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: type(world).__name__)
def test_every_world_and_its_learners_pass_their_check(world):
    check_world(world)
    special = {worlds.CumulativeCulture: learners.GumbelImitator(), worlds.IteratedLearning: learners.BayesianSampler()}
    usual = [ZeroShot(), NearestNeighbour(3, 0.5), SignedVote(), EpisodicControl()]
    for learner in [special[type(world)]] if type(world) in special else usual:
        check_learner(learner, world)


def broken(**parts):
    return type("Broken", (Shop,), parts)()


@pytest.mark.parametrize(
    ("world", "says"),
    [
        (object(), "has no method tasks"),
        (broken(tasks=lambda self, rng, n, generation: [TASK]), "gave 2 tasks in two generations of 3"),
        (broken(tasks=lambda self, rng, n, generation: ["a task"] * n), "no Task"),
        (
            broken(tasks=lambda self, rng, n, generation: [Task("t", str(np.random.random())) for _ in range(n)]),
            "other tasks",
        ),
        (broken(options={"fruit": 1}), "options that are no text"),
        (broken(options={"tool": ""}), "no option 'fruit'"),
        (broken(reward=lambda self, task, output: float("nan")), "nan, which is no finite number"),
        (broken(reward=lambda self, task, output: None), "None, which is no finite number"),
        (broken(reward=lambda self, task, output: "0.5"), "'0.5', which is no finite number"),
        (broken(dimension=3), "brings no vector"),
        (broken(attempt=lambda self, task, rng: Outcome("fruit", 1.0)), "attempt that gave Outcome .* no generator"),
        (broken(attempt=lambda self, task, rng: (yield "a task")), "yields str 'a task' in attempt, and no Task"),
        (broken(founders=lambda self, rng: [Outcome("x", 1.0)]), "founders without an input"),
    ],
)
def test_what_an_experiment_would_stumble_over_is_said_of_a_world(world, says):
    with pytest.raises(InvalidRequest, match=says):
        check_world(world)


def learner(act, **parts):
    return type("Mine", (), {"act": act, **parts})()


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (object(), "no method act"),
        (learner(lambda self, task, memories, rng: 3), "act gave 3"),
        (learner(lambda self, task, memories, rng: Answer("fruit", ["x"])), "'x', which was not recalled"),
        (learner(lambda self, task, memories, rng: str(np.random.random())), "for one state of rng"),
        (learner(lambda self, task, memories, rng: Answer("fruit", 5)), "used 5, and not a sequence"),
        (learner(lambda self, task, memories, rng: Answer("fruit", (), None)), "metadata None, .* no JSON: not a dict"),
        (learner(lambda self, task, memories, rng: Answer("fruit", (), {"a": {1}})), "metadata .*, which are no JSON"),
        (learner(lambda self, task, memories, rng: "fruit", queries=lambda self, task: [5]), "sequence of Query"),
    ],
)
def test_what_an_experiment_would_stumble_over_is_said_of_a_learner(mine, says):
    with pytest.raises(InvalidRequest, match=says):
        check_learner(mine, Shop())


async def test_a_learner_that_awaits_is_checked_where_a_loop_is_running():
    async def answer(self, task, memories, rng):
        return Answer("fruit", [memory.id for memory in memories])

    check_learner(learner(answer, queries=lambda self, task: [Query(2)]), Shop())
