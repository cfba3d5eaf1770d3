from __future__ import annotations

import numpy as np
import pytest

from fedlab import Episode, Hub, Random, Recency, Reward, Similarity
from fedlab.agent.memory import LocalMemory
from fedlab.embedding import Hashing
from fedlab.recall import Filter

DAY = 86_400_000
EVERYTHING = Filter()


def episodes(n: int, **fields: object) -> list[Episode]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        values = {
            "tenant_id": "acme",
            "agent_id": f"a{i % 3}",
            "task": f"task {i % 5}",
            "input": str(i),
            "output": "x",
            "reward": (i * 7 % 10) / 10,
            "created_at": (1 + i % 20) * DAY,
            "vector": rng.normal(size=16),
        }
        made.append(Episode(**(values | fields)))
    return made


@pytest.mark.parametrize(
    "policy", [Similarity(), Reward(), Recency(), Similarity() + 0.5 * Reward() + 0.3 * Recency(half_life_days=3)]
)
@pytest.mark.parametrize(
    "where",
    [
        {},
        {"min_reward": 0.5},
        {"since": 5 * DAY, "until": 12 * DAY},
        {"task": "task 3"},
        {"agent_id": "a1", "min_reward": 0.3},
    ],
)
def test_ram_ranks_and_filters_as_the_hub_does(policy, where):
    held = episodes(200)
    query = np.random.default_rng(1).normal(size=16)
    memory = LocalMemory(16)
    memory.hold(held)
    with Hub(":memory:", embedder=Hashing(16)) as hub:
        hub.put(held)
        expected = hub.recall("acme", query, 15, policy=policy, **where)
        found = memory.search(query.astype(np.float16), 15, policy, Filter.of(**where), hub.clock.now())
    assert [each.episode.id for each in found] == [each.episode.id for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-3)


def test_a_random_order_depends_on_the_seed_alone():
    held = episodes(50)
    orders = []
    for seed, given in [(1, held), (1, held[::-1]), (2, held)]:
        memory = LocalMemory(16)
        memory.hold(given)
        found = memory.search(None, 50, Random(seed=seed), EVERYTHING, 0)
        orders.append([each.episode.id for each in found])
    assert orders[0] == orders[1] != orders[2]


def test_episodes_without_a_vector_are_found_once_their_text_is_learned():
    memory = LocalMemory(16)
    own = Episode(tenant_id="acme", agent_id="a", task="t", input="i", output="o", reward=1)
    memory.store(own, 5)
    assert memory.missing() == memory.missing(unsynced=True) == ["t\ni"]
    assert memory.search(np.ones(16, np.float16), 5, Similarity(), EVERYTHING, 9) == []
    memory.learn(["t\ni"], [np.ones(16)])
    assert memory.missing() == []
    (found,) = memory.search(np.ones(16, np.float16), 5, Similarity(), EVERYTHING, 9)
    assert found.episode == own
    assert found.similarity == pytest.approx(1)
    assert memory.search(None, 5, Recency(), Filter(until=5), 9) == []


def test_what_was_forgotten_does_not_come_back():
    memory = LocalMemory(16)
    one, two = episodes(2)
    assert memory.hold([one, two]) == 2
    assert memory.release([one.id, "never-seen"]) == 1
    assert memory.hold([one, two]) == 0
    assert memory.episodes == [two]
    assert memory.is_forgotten(one.id)


def test_an_unsynced_episode_stays_as_it_was_made_until_it_is_confirmed():
    memory = LocalMemory(16)
    (own,) = episodes(1, created_at=None)
    memory.store(own, 7)
    (from_hub,) = episodes(1, id=own.id, created_at=DAY)
    memory.hold([from_hub])
    assert memory.unsynced[0].created_at is None
    assert memory.confirm([own.id, "other"]) == 1
    assert (memory.waiting, len(memory)) == (0, 1)
    memory.hold([from_hub])
    assert memory.episodes[0].created_at == DAY


def test_clear_leaves_nothing():
    memory = LocalMemory(16)
    memory.store(episodes(1)[0], 0)
    memory.learn(["x"], [np.ones(16)])
    memory.release(["y"])
    memory.clear()
    assert (len(memory), memory.waiting, memory.vector_of("x"), memory.is_forgotten("y")) == (0, 0, None, False)
