"""Recall, push and pull, with the hub there, away, and back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fedlab import EphemeralAgent, Episode, Hub, HubUnavailable, IdConflict, Reward, connect, serve
from tests.agent.conftest import TENANT


async def test_own_unsynced_episodes_are_recalled_and_ranked_among_the_others(site, doing):
    site.fill(20, reward=0.5)
    agent = await site.spawn()
    mine = await agent.store_episode(**doing | {"input": "input 3"})
    (best, *_) = await agent.query_memories("task-name", 5, input="input 3", policy=Reward())
    assert best.id == mine.id
    found = await agent.query_memories("task-name", 3, input="input 3")
    assert len(found) == 3
    assert mine.id in [memory.id for memory in found]
    assert [memory.score for memory in found] == sorted((memory.score for memory in found), reverse=True)
    assert await agent.query_memories("task-name", min_reward=0.99) == []
    await agent.sync_with_hub()
    again = await agent.query_memories("task-name", 30, input="input 3")
    assert len(again) == len({memory.id for memory in again}) == 21
    await agent.destroy()


async def test_a_vector_an_exact_task_and_no_query_at_all_are_queries(site, doing):
    site.fill(5, task="one")
    site.fill(5, task="two", reward=0.9)
    agent = await site.spawn()
    assert {memory.task for memory in await agent.query_memories(task="two")} == {"two"}
    assert len(await agent.query_memories(np.ones(384), 7)) == 7
    assert (await agent.query_memories(policy=Reward()))[0].task == "two"
    with pytest.raises(ValueError, match="needs a query"):
        await agent.query_memories()
    with pytest.raises(ValueError, match="k must be"):
        await agent.query_memories("one", 0)
    with pytest.raises(ValueError, match="3 dimensions"):
        await agent.query_memories([1, 2, 3])
    await agent.destroy()


async def test_a_sync_pushes_pulls_and_says_so(site, doing):
    agent, other = await site.spawn(), await site.spawn()
    await other.store_episode(**doing)
    pushed = await other.sync_with_hub()
    assert (pushed.pushed, pushed.pulled) == (1, 0)
    report = await agent.sync_with_hub()
    assert (report.pushed, report.pulled, report.forgotten) == (0, 1, 0)
    assert report.seq == site.hub.info().seq
    assert [episode.agent_id for episode in agent.memories] == [other.agent_id]
    assert (await agent.sync_with_hub()).pulled == 0
    await agent.destroy()
    await other.destroy()


async def test_the_registry_counts_what_an_agent_was_given_and_what_it_gave(site, doing):
    def counted():
        frame = site.hub.agents("acme-corp")
        return frame.filter(frame["agent_id"] == agent.agent_id).select("pushed", "pulled").row(0)

    site.fill(20)
    agent, other = await site.spawn(), await site.spawn()
    await agent.query_memories("task-name", 7)
    await other.store_episode(**doing)
    await other.destroy()
    assert (await agent.sync_with_hub()).pulled == 1
    assert counted() == (0, 7), "the sync that brought the other's episode had told its count before"
    await agent.sync_with_hub()
    assert counted() == (0, 8)
    await agent.sync_with_hub()
    assert counted() == (0, 8)
    await agent.query_memories("task-name", 3)
    await agent.store_episode(**doing)
    await agent.destroy()
    assert counted() == (1, 11)


async def test_a_forgotten_episode_leaves_ram_at_the_next_sync(site):
    (one, two) = site.fill(2)
    agent = await site.spawn()
    await agent.query_memories("task-name")
    site.hub.forget("acme-corp", [one.id], reason="wrong")
    report = await agent.sync_with_hub()
    assert report.forgotten == 1
    assert [episode.id for episode in agent.memories] == [two.id]
    assert [memory.id for memory in await agent.query_memories("task-name")] == [two.id]
    await agent.destroy()


async def test_a_resent_episode_that_was_forgotten_meanwhile_is_dropped_and_the_rest_is_pushed(site, doing):
    agent = await site.spawn()
    lost = await agent.store_episode(**doing)
    kept = await agent.store_episode(**doing)
    site.hub.put(lost)  # the push whose acknowledgement was lost
    site.hub.forget("acme-corp", [lost.id], reason="wrong")
    report = await agent.sync_with_hub()
    assert (report.pushed, report.forgotten, agent.unsynced) == (1, 1, 0)
    assert site.hub.episodes("acme-corp")["id"].to_list() == [kept.id]
    await agent.destroy()


async def test_an_id_with_other_content_is_an_error_and_loses_nothing(site, doing):
    agent = await site.spawn()
    mine = await agent.store_episode(**doing)
    other = Episode(tenant_id="acme-corp", agent_id="x", id=mine.id, **doing | {"output": "something else"})
    site.hub.put(other)
    with pytest.raises(IdConflict):
        await agent.sync_with_hub()
    assert agent.unsynced == 1
    assert agent.alive
    with pytest.raises(Exception, match="1 episode that the hub does not have") as caught:
        await agent.destroy()
    assert [episode.id for episode in caught.value.episodes] == [mine.id]
    assert site.agent_status(agent.agent_id) == "destroyed"


async def test_an_episode_whose_acknowledgement_was_lost_is_recalled_once(site, doing):
    agent = await site.spawn()
    episode = await agent.store_episode(**doing)
    site.hub.put(episode)
    assert [memory.episode.id for memory in await agent.query_memories(doing["task"])] == [episode.id]
    assert agent.unsynced == 1
    await agent.destroy()
    assert len(site.hub.episodes("acme-corp")) == 1


async def test_a_cancelled_sync_can_be_repeated_and_stores_once(site, doing):
    agent = await site.spawn()
    for _ in range(20):
        await agent.store_episode(**doing)
        sync = asyncio.create_task(agent.sync_with_hub())
        await asyncio.sleep(0)
        sync.cancel()
        await asyncio.gather(sync, return_exceptions=True)
    await agent.sync_with_hub()
    assert agent.unsynced == 0
    assert len(site.hub.episodes("acme-corp")) == 20
    await agent.destroy()


async def test_syncs_at_the_same_time_push_each_episode_once(site, doing):
    agent = await site.spawn()
    for _ in range(10):
        await agent.store_episode(**doing)
    reports = await asyncio.gather(*(agent.sync_with_hub() for _ in range(8)))
    assert sum(report.pushed for report in reports) == 10
    assert len(site.hub.episodes("acme-corp")) == 10
    await agent.destroy()


async def test_more_than_a_message_holds_is_pushed_in_several(site, doing):
    agent = await site.spawn()
    for _ in range(1_200):
        await agent.store_episode(**doing)
    for _ in range(4):
        await agent.store_episode(**doing | {"output": "x" * 900_000})
    report = await agent.sync_with_hub()
    assert report.pushed == 1_204
    assert len(site.hub.episodes("acme-corp")) == 1_204
    await agent.destroy()


async def test_without_its_hub_an_agent_searches_its_ram_by_meaning(embedded, doing):
    server = serve(embedded.hub, port=0)
    async with server:
        url = server.url
        connection = await connect(url).__aenter__()
        embedded.fill(30, task="parse a date")
        embedded.fill(30, task="open a socket")
        agent = await EphemeralAgent.spawn(connection, "acme-corp", clock=embedded.clock)
        await agent.query_memories("parse a date", 3)
        await agent.query_memories("open a socket", 3)
        mine = await agent.store_episode(**doing | {"task": "parse a date string", "input": "1 May"})
    await connection.close()  # what a hub that is away for longer than the client tries looks like
    found = await agent.query_memories("parse a date string", 4, input="1 May")
    assert found[0].id == mine.id
    assert {memory.task for memory in found[1:]} == {"parse a date"}
    assert len(await agent.query_memories("anything", 100)) == 7
    assert await agent.query_memories("anything", 100, agent_id="nobody") == []
    with pytest.raises(HubUnavailable):
        await agent.sync_with_hub()
    assert agent.unsynced == 1
    with pytest.raises(Exception, match="does not have"):
        await agent.destroy()


async def test_an_embedder_that_is_not_here_is_named_when_the_hub_is_away(doing):
    class Private:
        name = "hashing-of-nobody/else"
        dimension = 4

        def embed(self, texts):
            return np.ones((len(texts), 4), np.float32)

    hub = Hub(":memory:", embedder=Private())
    agent = await EphemeralAgent.spawn(hub, "acme-corp")
    await agent.store_episode(**doing, vector=[1, 0, 0, 0])
    hub.close()
    assert len(await agent.query_memories([1, 0, 0, 0])) == 1
    with pytest.raises(HubUnavailable, match="of-nobody"):
        await agent.query_memories("by text")
    with pytest.raises(Exception, match="does not have"):
        await agent.destroy()


async def test_tenants_are_walls_for_agents_too(site, doing):
    site.fill(5, tenant_id="other-corp")
    site.fill(5)
    agent = await site.spawn()
    assert {memory.tenant_id for memory in await agent.query_memories("task-name", 100)} == {"acme-corp"}
    site.fill(3, tenant_id="other-corp")
    assert (await agent.sync_with_hub()).pulled == 0
    await agent.destroy()


async def test_an_agent_starts_over_when_its_hub_was_restored(tmp_path, doing):
    """Its place in the log is of a history that the hub does not have any more, or not yet again."""
    path, options = tmp_path / "hub", {"embedder": "hashing"}

    def made(name: str) -> Episode:
        return Episode(tenant_id=TENANT, agent_id="earlier", task=name, input="", output="", reward=1)

    before, lost, other, newer = map(made, ("before", "lost", "other", "newer"))
    with Hub(path, **options) as hub:
        hub.put(before)
        hub.backup(tmp_path / "backup")
        async with serve(hub, port=0) as server:
            agent = await EphemeralAgent.spawn(server.url, tenant_id=TENANT)
            hub.put([lost, *(made(f"lost {n}") for n in range(5))])
            mine = await agent.store_episode(**doing)
            await agent.sync_with_hub()
            assert {lost.id, mine.id} <= {each.id for each in agent.memories}
    with Hub.restore(tmp_path / "backup", path, overwrite=True, **options) as hub:
        hub.put(other)
        waiting = await agent.store_episode(**doing)
        async with serve(hub, port=server.port) as server:
            report = await agent.sync_with_hub()
            assert [each.id for each in agent.memories] == [waiting.id]
            assert (report.pushed, report.forgotten, report.seq) == (1, 7, hub.info().seq)
            assert {memory.id for memory in await agent.query_memories("other", 9)} >= {before.id, other.id}
            hub.put(newer)
            hub.forget(TENANT, [other.id], reason="r")
            report = await agent.sync_with_hub()
            assert (report.pulled, report.forgotten) == (1, 1)
            assert {each.id for each in agent.memories} == {before.id, waiting.id, newer.id}
            await agent.destroy()
