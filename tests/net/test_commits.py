"""Pushes that share a commit get each its own answer, and a slow disk does not hold up the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fedlab
from fedlab import Episode, Hub, IdConflict
from fedlab.net import HubServer
from fedlab.net.commits import FEW, SLOW_COMMIT, SMALL, Commits, is_small

Make = Callable[..., Episode]


async def test_one_bad_push_among_many_fails_alone(server: HubServer, hub: Hub, episode: Make, vector: Any):
    taken = episode(0, vector=vector(0))
    hub.put(taken)
    pushes = [episode(n, vector=vector(n)) for n in range(1, 60)]
    pushes[30] = episode(30, id=taken.id, vector=vector(30))
    async with fedlab.connect(server.url) as connection:
        outcomes = await asyncio.gather(*(connection.put(each) for each in pushes), return_exceptions=True)
    assert isinstance(outcomes[30], IdConflict)
    assert all(isinstance(outcome, int) for n, outcome in enumerate(outcomes) if n != 30)
    assert hub.stats().episodes == 59
    assert hub.verify().ok


async def test_an_acknowledged_push_is_recalled_at_once(server: HubServer, episode: Make, vector: Any):
    async with fedlab.connect(server.url) as one, fedlab.connect(server.url) as other:
        for n in range(50):
            made = episode(n, vector=vector(n))
            await one.put(made)
            assert (await other.recall("acme", vector(n), k=1))[0].id == made.id


async def test_the_log_names_who_pushed(server: HubServer, hub: Hub, token: Any, episode: Make, vector: Any):
    async with (
        fedlab.connect(server.url, token("acme", "agent", "a1")) as one,
        fedlab.connect(server.url, token("acme", "agent", "a2")) as two,
    ):
        await one.info()
        await two.info()
        await asyncio.gather(
            *(one.put(episode(n, agent_id="a1", vector=vector(n))) for n in range(10)),
            *(two.put(episode(n, agent_id="a2", vector=vector(n))) for n in range(10)),
        )
    stored = hub.changes(kind="episode_stored").join(hub.episodes(), left_on="subject", right_on="id")
    assert stored["actor"].to_list() == stored["agent_id"].to_list()
    assert stored.height == 20


async def test_a_slow_disk_is_waited_for_elsewhere_than_on_the_event_loop(
    server: HubServer, hub: Hub, episode: Make, vector: Any
):
    here, threads = threading.get_ident(), []
    hub.on_commit(lambda seq: threads.append(threading.get_ident() == here))
    async with fedlab.connect(server.url) as connection:
        await connection.put(episode(0, vector=vector(0)))
        slow = hub.on_commit(lambda seq: time.sleep(6 * SLOW_COMMIT))  # a disk that takes its time
        await connection.put(episode(1, vector=vector(1)))
        slow()
        await connection.put(episode(2, vector=vector(2)))
        await connection.spawn_agent("acme", "a1", lifetime=60)
        assert threads[:3] == [True, True, False]
        pushed = 3
        while not any(threads[4:]) and pushed < 1_000:  # the disk may be slow in earnest
            made = episode(pushed, agent_id="a1", vector=vector(pushed))
            await connection.sync_agent("acme", "a1", [made], after=0, limit=0)
            pushed += 1
        assert any(threads[4:])
        await connection.put([episode(n, vector=vector(n)) for n in range(2_000, 2_001 + SMALL)])  # not small
    assert not threads[-1]
    assert hub.stats().episodes == pushed + SMALL + 1


async def test_what_comes_while_a_commit_waits_for_the_disk_shares_the_next_one(
    server: HubServer, hub: Hub, episode: Make, vector: Any
):
    began, go_on, commits = threading.Event(), threading.Event(), []

    def wait(seq: int) -> None:
        commits.append(seq)
        began.set()
        assert go_on.wait(10)

    async with fedlab.connect(server.url) as connection:
        await connection.info()
        undo = hub.on_commit(wait)
        first = [asyncio.ensure_future(connection.put(episode(n, vector=vector(n)))) for n in range(FEW + 1)]
        await asyncio.to_thread(began.wait, 10)
        later = [asyncio.ensure_future(connection.put(episode(n, vector=vector(n)))) for n in range(10, 30)]
        await connection.info()  # the loop goes on, and nothing is acknowledged
        assert not any(each.done() for each in (*first, *later))
        go_on.set()
        await asyncio.gather(*first, *later)
        undo()
    assert len(commits) == 2
    assert hub.verify().ok


async def test_a_blocking_write_on_the_loop_while_a_commit_waits_for_the_disk_is_made(
    hub: Hub, episode: Make, vector: Any
):
    async with fedlab.connect(hub) as connection:
        for round_ in range(20):
            numbers = range(100 * round_, 100 * round_ + FEW + 1)
            waiting = [asyncio.ensure_future(connection.put(episode(n, vector=vector(n)))) for n in numbers]
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # written, and perhaps not committed yet
            assert hub.put(episode(100 * round_ + 99, vector=vector(1))) > 0
            await asyncio.gather(*waiting)
    assert hub.stats().episodes == 20 * (FEW + 2)


async def test_changes_that_come_in_one_turn_of_the_loop_share_a_commit(hub: Hub, episode: Make, vector: Any):
    commits = []
    hub.on_commit(commits.append)
    async with fedlab.connect(hub) as one, fedlab.connect(hub) as other:
        await asyncio.gather(
            *(one.put(episode(n, vector=vector(n))) for n in range(10)),
            *(other.spawn_agent("acme", f"a{n}", lifetime=60) for n in range(10)),
        )
    assert len(commits) == 1
    assert hub.stats().agents_alive == 10


async def test_a_change_that_is_cancelled_before_its_commit_is_not_made(hub: Hub, episode: Make, vector: Any):
    hub.put(episode(0, vector=vector(0)))
    commits = Commits(hub, asyncio.get_running_loop())
    waiting = asyncio.ensure_future(commits.wait(hub.put_soon(episode(1, vector=vector(1)), wake=lambda: None)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hub.put(episode(2, vector=vector(2)))
    assert hub.stats().episodes == 2


async def test_a_blocking_write_on_the_loop_takes_what_waits_along(hub: Hub, episode: Make, vector: Any):
    async with fedlab.connect(hub) as connection:
        waiting = asyncio.ensure_future(connection.put(episode(0, vector=vector(0))))
        await asyncio.sleep(0)
        assert hub.put(episode(1, vector=vector(1))) > 0
        assert hub.stats().episodes == 2
        assert await waiting > 0


def test_small_is_few_and_with_vectors(episode: Make, vector: Any):
    with_vectors = [episode(n, vector=vector(n)) for n in range(SMALL + 1)]
    assert is_small([])
    assert is_small(with_vectors[:SMALL])
    assert not is_small(with_vectors)
    assert not is_small([episode(0)])
