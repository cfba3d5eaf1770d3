"""What the hub erased leaves the agents' RAM too, and a life that was erased is over."""

from __future__ import annotations

import asyncio

import pytest

from fedlab import AgentExpired, UnknownTenant
from tests.agent.conftest import TENANT


async def test_an_erased_episode_leaves_ram_at_the_next_sync_and_a_replacement_never_sees_it(site, doing):
    gone, stays = site.fill(2)
    agent = await site.spawn()
    mine = await agent.store_episode(**doing)
    await agent.query_memories("task-name", 5)
    await agent.sync_with_hub()
    await site.connection.erase_episodes(TENANT, [gone.id, mine.id], reason="r")
    report = await agent.sync_with_hub()
    assert report.forgotten == 2
    assert [each.id for each in agent.memories] == [stays.id]
    assert [each.id for each in await agent.query_memories("task-name", 5)] == [stays.id]
    heir = await site.spawn()
    await heir.sync_with_hub()
    assert [each.id for each in await heir.query_memories("task-name", 5)] == [stays.id]
    await agent.destroy()
    await heir.destroy()


async def test_the_episodes_of_an_erased_agent_leave_the_ram_of_the_others(site, doing):
    gone = site.fill(3)
    agent = await site.spawn()
    kept = await agent.store_episode(**doing)
    await agent.query_memories("task-name", 5)
    report = await site.connection.erase_agent(TENANT, "earlier", reason="r")
    assert report.episodes == len(gone)
    assert (await agent.sync_with_hub()).forgotten == 3
    assert [each.id for each in agent.memories] == [kept.id]
    await agent.destroy()


@pytest.mark.parametrize("whole", [True, False])
async def test_an_erased_agent_drops_everything_ends_and_says_what_went_with_it(site, doing, whole):
    site.fill(3)
    agent = await site.spawn(agent_id="old")
    await agent.store_episode(**doing)
    await agent.sync_with_hub()
    await agent.query_memories("task-name", 5)
    await agent.store_episode(**doing)
    await agent.store_episode(**doing)
    if whole:
        await site.connection.erase_tenant(TENANT, reason="r")
        site.fill(1)  # the name is used again
    else:
        await site.connection.erase_agent(TENANT, "old", reason="r")
    with pytest.raises(AgentExpired, match="was erased.*2 unsynced episodes went with it") as over:
        await agent.sync_with_hub()
    assert over.value.details == {"erased": True, "lost": 2}
    assert (agent.alive, agent.memories, agent.unsynced) == (False, [], 0)
    await agent.destroy()
    with pytest.raises(AgentExpired, match="erased"):
        await agent.store_episode(**doing)
    assert (await site.connection.stats(TENANT)).episodes == (1 if whole else 3)


async def test_an_erased_agent_says_at_its_end_what_was_lost_whoever_ends_it(site, doing, tmp_path):
    quiet, loud, working = [await site.spawn(spool=tmp_path / "spool") for _ in range(3)]
    for agent in (quiet, loud, working):
        await agent.store_episode(**doing)
        await agent.sync_with_hub()
    await loud.store_episode(**doing)
    await asyncio.to_thread(site.hub.erase_tenant, TENANT, reason="r")
    await quiet.destroy()
    with pytest.raises(AgentExpired, match="1 unsynced"):
        await loud.destroy()
    await loud.destroy()
    with pytest.raises(AgentExpired, match="erased"):
        await working.execute(lambda: None)
    assert not (tmp_path / "spool").exists()
    with pytest.raises(UnknownTenant):
        site.hub.stats(TENANT)


async def test_a_tenant_that_is_erased_during_the_work_is_no_silent_end(site, doing):
    agent = await site.spawn()
    await agent.store_episode(**doing)
    await agent.sync_with_hub()

    async def work(agent):
        await site.connection.erase_tenant(TENANT, reason="r")
        await agent.store_episode(**doing)

    with pytest.raises(AgentExpired, match="1 unsynced"):
        await agent.execute(work)
