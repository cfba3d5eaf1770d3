"""Commits: shared by who waits, all or nothing for each, whole under failure and interruption."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from fedlab import Hub, HubUnavailable, IdConflict


@pytest.fixture
def connections():
    """The connections of the driver that are opened during the test."""
    opened: list[sqlite3.Connection] = []

    def note(connection: sqlite3.Connection, _record: object) -> None:
        opened.append(connection)

    sa.event.listen(sa.pool.Pool, "connect", note)
    yield opened
    sa.event.remove(sa.pool.Pool, "connect", note)


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_what_waits_shares_one_commit(hub, episode, vector, stalled):
    commits: list[int] = []
    with stalled(hub):
        hub.on_commit(commits.append)
        futures = [hub.put_soon(episode(n, vector=vector(n))) for n in range(50)]
    seqs = [future.result(20) for future in futures]
    assert seqs == sorted(set(seqs))
    assert len(commits) == 1
    assert hub.stats("acme").episodes == 50


def test_many_threads_share_commits_and_each_gets_its_own_answer(hub, episode, vector):
    commits: list[int] = []
    hub.on_commit(commits.append)
    with ThreadPoolExecutor(32) as threads:
        seqs = list(threads.map(lambda n: hub.put(episode(n, vector=vector(n))), range(400)))
    assert sorted(seqs) == sorted(set(seqs))
    assert len(commits) < 400
    assert commits == sorted(set(commits))


def test_a_put_that_is_refused_does_not_fail_those_who_share_its_commit(hub, episode, vector, stalled):
    hub.put(episode(0, id="taken", vector=vector(0)))
    with stalled(hub):
        good = [hub.put_soon(episode(n, id=f"x{n}", vector=vector(n))) for n in range(5)]
        bad = hub.put_soon([episode(9, vector=vector(9)), episode(9, id="taken", vector=vector(9))])
        twice = hub.put_soon(episode(3, id="x3", output="other", vector=vector(3)))
        resent = hub.put_soon(episode(0, id="taken", vector=vector(0)))
    assert all(future.exception(20) is None for future in (*good, resent))
    assert [type(future.exception(20)) for future in (bad, twice)] == [IdConflict] * 2
    assert sorted(hub.episodes("acme")["id"]) == ["taken", "x0", "x1", "x2", "x3", "x4"]
    assert len(hub.recall("acme", vector(0), 100)) == 6
    assert hub.verify().problems == []


def test_a_change_whose_caller_gave_up_is_left_out(hub, episode, vector, stalled):
    with stalled(hub):
        futures = [hub.put_soon(episode(n, id=f"x{n}", vector=vector(n))) for n in range(3)]
        assert futures[1].cancel()
    assert futures[2].result(20)
    assert hub.episodes("acme")["id"].to_list() == ["x0", "x2"]


def test_a_full_disk_refuses_and_changes_nothing_and_goes_on_when_there_is_room(tmp_path, connections, episode, vector):
    with Hub(tmp_path, embedder="hashing") as hub:
        seq = hub.put(episode(0, vector=vector(0)))
        writer = next(each for each in connections if not pragma(each, "query_only"))
        writer.execute(f"PRAGMA max_page_count={pragma(writer, 'page_count') + 5}")
        with pytest.raises(HubUnavailable, match="full"):
            hub.put([episode(n, vector=vector(n)) for n in range(500)])
        assert (hub.info().seq, len(hub.recall("acme", vector(1), 100))) == (seq, 1)
        writer.execute("PRAGMA max_page_count=1073741823")
        hub.put([episode(n, vector=vector(n)) for n in range(500)])
        assert hub.stats().episodes == 501
        assert hub.verify().problems == []


def test_every_connection_keeps_what_the_promises_rest_on(tmp_path, connections, episode, vector):
    with Hub(tmp_path, embedder="hashing") as hub:
        hub.put(episode(0, vector=vector(0)))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: hub.episodes(), range(16)))
        wanted = {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1, "secure_delete": 1}
        assert len(connections) > 1
        assert [{name: pragma(each, name) for name in wanted} for each in connections] == [wanted] * len(connections)
        assert sum(not pragma(each, "query_only") for each in connections) == 1


@pytest.mark.parametrize(("durability", "synchronous"), [("normal", 1), ("off", 0)])
def test_less_durability_is_what_was_asked_for(tmp_path, connections, durability, synchronous):
    with Hub(tmp_path, embedder="hashing", durability=durability):
        assert {pragma(each, "synchronous") for each in connections} == {synchronous}


def test_a_listener_that_fails_harms_neither_the_commit_nor_the_other_listeners(hub, episode):
    heard: list[int] = []

    def fail(_seq: int) -> None:
        raise RuntimeError("listener")

    hub.on_commit(fail)
    undo = hub.on_commit(heard.append)
    seq = hub.put(episode(0))
    assert hub.recall("acme", "task")
    undo()
    hub.put(episode(1))
    assert heard == [seq]


def test_ctrl_c_in_the_middle_of_a_put_leaves_a_hub_that_works(tmp_path, episode, vector):
    rng, acknowledged = random.Random(7), []
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with Hub(tmp_path, embedder="hashing", durability="off") as hub:
            for turn in range(150):
                mine = episode(turn, vector=vector(turn), output="x" * 5_000)
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1.5e-3))
                    hub.put(mine)
                    acknowledged.append(mine.id)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                other = episode(turn, agent_id="other", vector=vector(turn))
                hub.put_soon(other).result(20)
                acknowledged.append(other.id)
                assert len(hub.recall("acme", vector(turn), 10_000)) == hub.stats("acme").episodes
            assert set(acknowledged) <= set(hub.episodes()["id"])
            assert hub.verify().problems == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
