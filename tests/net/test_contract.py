"""What every `HubConnection` promises: the same tests embedded, over MessagePack and over JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from fedlab import (
    Distinct,
    Episode,
    HeldEpisodes,
    Hub,
    IdConflict,
    InvalidEpisode,
    InvalidRequest,
    InvalidVector,
    KeepForever,
    MaxAge,
    MaxEpisodes,
    MinReward,
    Random,
    Recency,
    Reward,
    Similarity,
    UnknownEpisode,
    UnknownTenant,
)
from fedlab.net import HubConnection

Make = Callable[..., Episode]


async def test_what_was_put_is_recalled_with_all_its_fields(connection: HubConnection, episode: Make, vector: Any):
    made = episode(
        1,
        input="ünï 中 \U0001f600",
        metadata={"a": [1, {"b": None}]},
        sources=("s1", "s2"),
        expires_at=2_000_000_000_000,
        created_at=5,
        vector=vector(1),
    )
    assert await connection.put(made) == (await connection.info()).seq
    [memory] = await connection.recall("acme", vector(1), k=5, vectors=True)
    assert memory.episode == made
    assert memory.similarity == pytest.approx(1, abs=1e-3)


async def test_a_text_is_found_and_vectors_stay_home_unless_asked_for(connection: HubConnection, episode: Make):
    await connection.put([episode(n) for n in range(20)])
    memories = await connection.recall("acme", "task 3\ninput 3", k=3)
    assert memories[0].input == "input 3"
    assert all(memory.episode.vector is None for memory in memories)


async def test_recall_filters_and_policies_travel(connection: HubConnection, episode: Make):
    await connection.put([episode(n, created_at=1_000 + n) for n in range(30)])
    best = await connection.recall("acme", None, k=4, policy=Reward(), min_reward=0.5, since=1_005, until=1_025)
    assert [memory.reward for memory in best] == [0.9, 0.9, 0.8, 0.8]
    assert len(await connection.recall("acme", None, k=99, policy=Random(seed=3), task="task 2")) == 6
    assert await connection.recall("acme", "x", k=5, agent_id="nobody") == []


async def test_the_score_of_a_memory_is_the_sum_of_its_parts(connection: HubConnection, episode: Make, vector: Any):
    now = time.time_ns() // 1_000_000
    await connection.put([episode(n, vector=vector(n), created_at=now - n * 86_400_000) for n in range(1, 30)])
    policy = Similarity(3) + 2 * Reward() + 0.5 * Recency(half_life_days=10)
    for memory in await connection.recall("acme", vector(3), k=30, policy=policy):
        parts = policy.parts(memory)
        assert sum(parts.values()) == pytest.approx(memory.score)
        assert parts["similarity"] == 3 * memory.similarity
        assert parts["reward"] == 2 * memory.reward
        assert parts["recency"] == pytest.approx(0.5 * 2 ** -((now - memory.created_at) / 864_000_000), rel=1e-4)
    [memory] = await connection.recall("acme", vector(3), k=1)
    assert Similarity().parts(memory) == {"similarity": memory.score}
    either = Random(seed=1) + Recency()
    [memory] = await connection.recall("acme", None, k=1, policy=either)
    assert either.parts(memory) == {"recency + random": memory.score}


async def test_several_queries_at_once_find_what_each_finds_alone(
    connection: HubConnection, episode: Make, vector: Any
):
    await connection.put([episode(n, vector=vector(n), metadata={"n": [n]}) for n in range(40)])
    queries = [vector(3), vector(8), vector(3)]
    alone = [await connection.recall("acme", query, k=4, vectors=True) for query in queries]
    many = await connection.recall_many("acme", queries, k=4, vectors=True)
    assert many == alone
    # What is found twice is given twice: who changes the one does not change the other.
    many[0][0].metadata["n"].append("mine")
    assert many[2][0].metadata == {"n": [3]}
    texts = ["task 1\ninput 1", "task 2\ninput 2"]
    alone = [await connection.recall("acme", text, k=2) for text in texts]
    assert await connection.recall_many("acme", texts, k=2) == alone
    assert [len(each) for each in await connection.recall_many("acme", [None, None], k=3, policy=Reward())] == [3, 3]
    assert await connection.recall_many("acme", [], k=3) == []
    with pytest.raises(InvalidRequest, match="sequence of texts or vectors"):
        await connection.recall_many("acme", "task 1")


async def test_who_asks_at_once_gets_his_own_answer_and_his_own_error(connection: HubConnection, episode: Make, vector):
    await connection.put([episode(n, vector=vector(n)) for n in range(40)])
    await connection.recall("acme", vector(0))
    asked = [
        connection.recall_many("acme", [vector(1), vector(2)], k=2),
        connection.recall_many("acme", [vector(1), np.ones(3)], k=2),
        connection.recall_many("nobody", [vector(1)] * 2, k=2),
        connection.recall_many("acme", [vector(3)] * 60, k=2),
    ]
    first, second, third, fourth = await asyncio.gather(*asked, return_exceptions=True)
    assert [each[0].input for each in first] == ["input 1", "input 2"]
    assert isinstance(second, InvalidVector)
    assert isinstance(third, UnknownTenant)
    assert [each[0].input for each in fourth] == ["input 3"] * 60


async def test_two_hundred_equal_episodes_all_come_back(connection: HubConnection, episode: Make):
    await connection.put([episode(0) for _ in range(200)])
    assert len(await connection.recall("acme", "task 0\ninput 0", k=200)) == 200


async def test_an_unknown_tenant_is_an_error_and_not_an_empty_list(connection: HubConnection, episode: Make):
    await connection.put(episode())
    with pytest.raises(UnknownTenant, match="acmee"):
        await connection.recall("acmee", "x")
    with pytest.raises(UnknownTenant):
        await connection.episodes("acmee")


async def test_pushing_twice_stores_once_and_other_content_is_a_conflict(connection: HubConnection, episode: Make):
    made = episode(1)
    await connection.put(made)
    await connection.put(made)
    with pytest.raises(IdConflict) as conflict:
        await connection.put([episode(2), episode(3, id=made.id)])
    assert conflict.value.ids == [made.id]
    assert not conflict.value.forgotten
    assert (await connection.stats("acme")).episodes == 1


async def test_a_forgotten_id_does_not_come_back(connection: HubConnection, episode: Make):
    made = episode(1)
    await connection.put(made)
    assert await connection.forget("acme", [made.id, "never-there"], reason="test") == 1
    assert await connection.recall("acme", "task 1") == []
    with pytest.raises(IdConflict) as conflict:
        await connection.put(made)
    assert conflict.value.forgotten


async def test_wrong_calls_raise_the_same_errors_everywhere(connection: HubConnection, episode: Make, vector: Any):
    await connection.put(episode())
    with pytest.raises(InvalidVector, match="384"):
        await connection.recall("acme", [1.0] * 385)
    with pytest.raises(InvalidVector):
        await connection.recall("acme", [float("nan")] * 384)
    with pytest.raises(InvalidVector):
        await connection.put(episode(vector=np.ones(385)))
    with pytest.raises(InvalidRequest):
        await connection.recall("acme", "x", k=0)
    with pytest.raises(InvalidRequest):
        await connection.recall("acme", "x", min_reward="0.9")  # type: ignore[arg-type]  # the point
    with pytest.raises(InvalidRequest):
        await connection.put("no episode")  # type: ignore[arg-type]  # the point
    with pytest.raises(InvalidRequest):
        await connection.forget("acme", ["x"], reason=" ")
    with pytest.raises(InvalidRequest):
        await connection.recall("a/b", "x")
    with pytest.raises(InvalidRequest):
        await connection.spawn_agent("acme", "a", lifetime=float("nan"))
    with pytest.raises(InvalidEpisode):
        episode(reward=float("inf"))
    assert (await connection.stats()).episodes == 1


async def test_embed_gives_the_hubs_vectors(connection: HubConnection, hub: Hub):
    texts = ["one", "two", "three"]
    vectors = await connection.embed(texts)
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, hub.embed(texts))
    assert (await connection.embed([])).shape == (0, 384)


async def test_an_agents_life_is_in_the_registry(connection: HubConnection, episode: Make):
    await connection.put([episode(n, agent_id="elder") for n in range(3)])
    record = await connection.spawn_agent("acme", "a1", lifetime=60)
    assert record.status == "alive"
    assert record.expires_at - record.spawned_at == 60_000
    with pytest.raises(IdConflict):
        await connection.spawn_agent("acme", "a1", lifetime=60)
    delta = await connection.sync_agent("acme", "a1", [episode(9, agent_id="a1")], after=0, limit=2)
    assert [each.agent_id for each in delta.stored] == ["elder", "elder"]
    assert all(each.vector is not None for each in delta.stored)
    assert delta.skipped == 1
    await connection.sync_agent("acme", "a1", after=delta.seq, ending="destroyed")
    lives = await connection.agents("acme")
    assert lives["status"].to_list() == ["destroyed"]
    assert lives["pushed"].to_list() == [1]
    assert (await connection.agents("acme", status="alive")).is_empty()


async def test_frames_are_the_hubs_own(connection: HubConnection, hub: Hub, episode: Make):
    await connection.put([episode(n) for n in range(1_500)])
    await connection.spawn_agent("acme", "a1", lifetime=60)
    for theirs, ours in [
        (await connection.episodes(), hub.episodes()),
        (await connection.episodes("acme", min_reward=0.8, limit=123), hub.episodes("acme", min_reward=0.8, limit=123)),
        (await connection.episodes("acme", agent_id="nobody"), hub.episodes("acme", agent_id="nobody")),
        (await connection.agents(), hub.agents()),
        (await connection.tenants(), hub.tenants()),
        (await connection.changes(), hub.changes()),
        (await connection.changes(1_000, tenant_id="acme", limit=400), hub.changes(1_000, tenant_id="acme", limit=400)),
    ]:
        assert theirs.equals(ours)
        assert theirs.schema == ours.schema


async def test_a_subscription_sees_everything_after_its_start_once_and_in_order(
    connection: HubConnection, episode: Make
):
    await connection.put(episode(0))
    seen = []
    changes = connection.subscribe("acme")
    for n in range(1, 30):
        await connection.put(episode(n))
    async with asyncio.timeout(10):
        async for change in changes:
            seen.append(change)
            if len(seen) == 29:
                break
    assert [change.kind for change in seen] == ["episode_stored"] * 29
    assert [change.seq for change in seen] == list(range(seen[0].seq, seen[0].seq + 29))
    async with asyncio.timeout(10), aclosing(connection.subscribe(after=0)) as again:  # type: ignore[type-var]
        assert (await anext(again)).kind == "hub_created"


async def test_a_subscriber_that_waits_is_woken_by_a_commit(connection: HubConnection, episode: Make):
    await connection.put(episode(0))
    waiting = asyncio.ensure_future(anext(connection.subscribe("acme")))
    await connection.info()
    made = episode(1)
    await connection.put(made)
    async with asyncio.timeout(10):
        assert (await waiting).subject == made.id


async def test_retention_is_set_previewed_and_applied(connection: HubConnection, episode: Make):
    await connection.put([episode(n) for n in range(10)])
    assert (await connection.preview_retention("acme", MinReward(0.5))).removed == 5
    later = await connection.preview_retention("acme", MaxAge(0.5), after=timedelta(days=1, microseconds=1))
    assert (later.removed, later.kept) == (10, 0)
    await connection.set_retention("acme", MinReward(0.5))
    assert await connection.retention("acme") == MinReward(0.5)
    assert (await connection.apply_retention()).removed == {"acme": 5}
    assert (await connection.stats("acme")).forgotten == 5
    assert (await connection.verify()).ok


async def test_a_preview_is_of_the_stored_policy_unless_another_is_given(connection: HubConnection, episode: Make):
    await connection.put([episode(n) for n in range(10)])
    await connection.recall("acme", "task 1")
    await connection.set_retention("acme", MaxEpisodes(3, keep="best").where(task="task 1") & Distinct(0.5))
    own, other = await connection.preview_retention("acme"), await connection.preview_retention("acme", KeepForever())
    assert own.policy == str(await connection.retention("acme"))
    assert own.removed + own.kept == 10
    assert sum(own.by_task.values()) == sum(own.by_age.values()) == sum(own.by_reward.values()) == own.removed > 0
    assert sum(own.kept_by_age.values()) == sum(own.kept_by_reward.values()) == own.kept
    assert own.recall is not None
    assert own.recall.queries == 1
    assert (other.removed, other.policy) == (0, "keep everything forever")


async def test_episodes_are_held_and_released(connection: HubConnection, episode: Make, hub: Hub):
    made = [episode(n) for n in range(10)]
    await connection.put(made)
    assert (await connection.holds("acme")).is_empty()
    assert await connection.hold("acme", [made[0].id], reason="exemplar") == 1
    assert await connection.hold("acme", reason="the best", min_reward=0.8, since=0) == 2
    with pytest.raises(UnknownEpisode) as unknown:
        await connection.hold("acme", [made[1].id, "nobody"], reason="exemplar")
    assert unknown.value.details["ids"] == ["nobody"]
    frame = await connection.holds("acme")
    assert frame["id"].to_list() == [made[n].id for n in (0, 8, 9)]
    assert frame.equals(hub.holds("acme"))
    with pytest.raises(HeldEpisodes) as raised:
        await connection.forget("acme", [made[0].id, made[1].id], reason="r")
    assert raised.value.details["ids"] == [made[0].id]
    await connection.set_retention("acme", MinReward(5))
    assert (await connection.preview_retention("acme")).held == 3
    assert (await connection.apply_retention("acme")).removed == {"acme": 7}
    assert await connection.release("acme", reason="enough", task="task 0") == 1
    assert (await connection.apply_retention("acme")).removed == {"acme": 1}
    for call in (connection.hold("acme", reason="r"), connection.release("acme", "x1", reason="r")):
        with pytest.raises(InvalidRequest):
            await call


async def test_fifty_calls_at_once_get_each_its_own_answer(connection: HubConnection, episode: Make):
    await asyncio.gather(*(connection.put(episode(n, tenant_id=f"t{n}")) for n in range(50)))
    found = await asyncio.gather(*(connection.recall(f"t{n}", "x", k=5) for n in range(50)))
    assert [memories[0].output for memories in found] == [f"output {n}" for n in range(50)]


async def test_a_cancelled_call_leaves_the_connection_whole(connection: HubConnection, episode: Make):
    for n in range(20):
        call = asyncio.ensure_future(connection.put(episode(n)))
        await asyncio.sleep(0)
        call.cancel()
    await connection.put(episode(99))
    assert (await connection.recall("acme", "task 4\ninput 99", k=1))[0].output == "output 99"


async def test_after_close_every_call_says_so(connection: HubConnection, episode: Make):
    await connection.close()
    await connection.close()
    with pytest.raises(ConnectionError, match="closed"):
        await connection.put(episode())
