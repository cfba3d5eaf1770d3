"""`execute`: sync, work, sync, however the work ends."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

from fedlab import AgentExpired, HubUnavailable, InvalidRequest


async def test_work_is_framed_by_syncs(site, doing):
    agent, other = await site.spawn(), await site.spawn()
    await other.store_episode(**doing)
    await other.sync_with_hub()

    async def work(worker, factor):
        assert worker is agent
        assert len(agent.memories) == 1
        await agent.store_episode(**doing)
        return 21 * factor

    assert await agent.execute(work, 2) == 42
    assert agent.unsynced == 0
    assert len(site.hub.episodes("acme-corp")) == 2
    await agent.destroy()
    await other.destroy()


async def test_work_comes_in_many_shapes(embedded):
    agent = await embedded.spawn()

    async def without():
        return "without"

    async def only(value):
        return value

    class Called:
        async def __call__(self, worker):
            return worker

    def in_a_thread(worker):
        return worker, threading.current_thread() is threading.main_thread()

    assert await agent.execute(without) == "without"
    assert await agent.execute(only) is agent
    assert await agent.execute(functools.partial(only, 5)) == 5
    assert await agent.execute(without) == "without"
    assert await agent.execute(Called()) is agent
    assert await agent.execute(in_a_thread) == (agent, False)
    assert await agent.execute(lambda worker: worker.query_memories("x")) == []
    assert await agent.execute(str) == repr(agent)
    with pytest.raises(TypeError):
        await agent.execute(without, 1, 2, 3)
    with pytest.raises(InvalidRequest, match="not `work\\(\\)`"):
        await agent.execute(without())
    await agent.destroy()


async def test_work_that_raises_is_synced_and_its_error_is_the_one_that_shows(site, doing):
    agent = await site.spawn()

    async def work(worker):
        await worker.store_episode(**doing)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await agent.execute(work)
    assert (agent.unsynced, agent.alive) == (0, True)
    assert len(site.hub.episodes("acme-corp")) == 1
    await agent.destroy()


async def test_cancelled_work_is_synced(site, doing):
    agent = await site.spawn()
    working = asyncio.Event()

    async def work(worker):
        await worker.store_episode(**doing)
        working.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(agent.execute(work))
    await working.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (agent.unsynced, agent.alive) == (0, True)
    await agent.destroy()


async def test_a_timeout_of_the_work_itself_stays_one(embedded):
    agent = await embedded.spawn()

    async def work():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await agent.execute(work)
    await agent.destroy()


async def test_the_end_of_the_lifetime_cancels_the_work_and_syncs(site, doing):
    agent = await site.spawn()
    cancelled = []

    async def work(worker):
        await worker.store_episode(**doing)
        site.clock.advance(seconds=300)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(AgentExpired, match="end of its lifetime"):
        await agent.execute(work)
    assert cancelled == [True]
    assert len(site.hub.episodes("acme-corp")) == 1
    assert site.agent_status(agent.agent_id) == "expired"
    assert asyncio.current_task().cancelling() == 0


async def test_work_that_ends_with_the_lifetime_is_synced_and_returns(site, doing):
    agent = await site.spawn()

    async def work(worker):
        await worker.store_episode(**doing)
        site.clock.advance(seconds=300)
        return "done"

    assert await agent.execute(work) == "done"
    assert len(site.hub.episodes("acme-corp")) == 1
    assert site.agent_status(agent.agent_id) == "expired"


async def test_work_that_uses_the_agent_after_its_lifetime_learns_that_it_is_over(site, doing):
    agent = await site.spawn()

    async def work(worker):
        await worker.store_episode(**doing)
        site.clock.advance(seconds=300)
        await worker.store_episode(**doing)

    with pytest.raises(AgentExpired):
        await agent.execute(work)
    assert len(site.hub.episodes("acme-corp")) == 1


async def test_work_may_destroy_its_agent(site, doing):
    agent = await site.spawn()

    async def work(worker):
        await worker.store_episode(**doing)
        await worker.destroy()
        return "done"

    assert await agent.execute(work) == "done"
    assert len(site.hub.episodes("acme-corp")) == 1


async def test_without_the_hub_work_goes_on_but_a_missing_sync_shows(embedded, doing):
    agent = await embedded.spawn()
    embedded.hub.close()

    async def work(worker):
        return len(await worker.query_memories([1.0] * 384))

    assert await agent.execute(work) == 0

    async def learn(worker):
        await worker.store_episode(**doing)

    with pytest.raises(HubUnavailable):
        await agent.execute(learn)
    assert (agent.unsynced, agent.alive) == (1, True)

    async def fail(worker):
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        await agent.execute(fail)
    assert "failed too" in caught.value.__notes__[0]
    with pytest.raises(Exception, match="does not have"):
        await agent.destroy()
