"""How often an episode was recalled, and a tenant's last queries: gathered in RAM, written now and then."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from fedlab import Hub, Recency, Reward, Unused
from fedlab.hub import usage


def rows(hub: Hub, query: str) -> list[tuple]:
    with closing(sqlite3.connect(hub.path / "hub.db")) as database:
        return database.execute(query).fetchall()


def counted(hub: Hub) -> dict[str, int]:
    return dict(rows(hub, "SELECT uid, times FROM recalls JOIN episodes ON id = episode_id"))


@pytest.fixture
def lab(tmp_path, episode, vector) -> Hub:
    with Hub(tmp_path / "hub", embedder="hashing", durability="off") as hub:
        hub.put([episode(n, id=f"x{n}", vector=vector(n), created_at=1) for n in range(10)])
        yield hub


def test_recalls_are_counted_and_tell_what_nobody_uses(lab: Hub, vector):
    for n in (3, 3, 4):
        lab.recall("acme", vector(n), k=1)
    lab.recall("acme", None, k=2, policy=Reward())
    lab.recall("acme", "nothing of this task", k=5, task="none")
    lab.set_retention("acme", Unused(after=1))
    assert lab.apply_retention().removed == {"acme": 6}
    assert counted(lab) == {"x3": 2, "x4": 1, "x9": 1, "x8": 1}
    assert set(lab.episodes("acme")["id"]) == {"x3", "x4", "x8", "x9"}


def test_the_last_hundred_queries_by_similarity_are_kept(lab: Hub, vector):
    lab.recall("acme", vector(0), k=1, policy=Recency())
    for n in range(130):
        lab.recall("acme", vector(n), k=1)
        if n % 50 == 0:
            lab.preview_retention("acme", Unused(after=1))
    assert lab.preview_retention("acme", Unused(after=1)).recall.queries == 100
    kept = [np.frombuffer(row[0], "<f2") for row in rows(lab, "SELECT vector FROM queries ORDER BY id")]
    assert [int(np.argmax([float(each @ vector(n)) for n in range(130)])) for each in kept] == list(range(30, 130))


def test_a_thousand_recalls_are_written_without_being_asked_for(lab: Hub, vector):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: lab.recall("acme", vector(3), k=1), range(usage.MOST)))
    lab.put([])
    lab._writer.run(lambda _tx: None)
    assert counted(lab)["x3"] == pytest.approx(usage.MOST, abs=4)


def test_closing_writes_what_is_left_and_a_kill_loses_only_statistics(tmp_path, episode, vector):
    with Hub(tmp_path, embedder="hashing") as hub:
        hub.put([episode(n, id=f"x{n}", vector=vector(n)) for n in range(3)])
        hub.recall("acme", vector(1), k=1)
    killed = """
import os, sys
from fedlab import Hub
hub = Hub(sys.argv[1])
hub.recall("acme", "task", k=3)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", killed, tmp_path], check=False).returncode == -9
    with Hub(tmp_path) as hub:
        assert counted(hub) == {"x1": 1}
        assert hub.verify().ok


def test_what_was_forgotten_or_erased_meanwhile_is_not_counted(lab: Hub, episode, vector):
    lab.put([episode(n, tenant_id="gone", vector=vector(n)) for n in range(3)])
    lab.recall("gone", vector(1), k=3)
    lab.recall("acme", vector(1), k=3)
    lab.forget("acme", ["x1"], reason="r")
    lab.erase_tenant("gone", reason="request")
    lab.preview_retention("acme", Unused(after=1))
    assert sum(counted(lab).values()) == 2
    assert rows(lab, "SELECT DISTINCT tenant_id FROM queries") == [("acme",)]
    assert lab.verify().ok


def test_statistics_are_no_change_of_the_hub(lab: Hub, vector):
    before = lab.info().seq
    lab.recall("acme", vector(1))
    lab.preview_retention("acme", Unused(after=1))
    assert lab.info().seq == before


def test_a_backup_and_a_fork_have_the_recalls_up_to_them(lab: Hub, tmp_path, vector):
    lab.recall("acme", vector(3), k=1)
    lab.backup(tmp_path / "backup")
    with Hub.restore(tmp_path / "backup", tmp_path / "restored") as restored:
        assert counted(restored) == {"x3": 1}
    lab.recall("acme", vector(4), k=1)
    with lab.fork(tmp_path / "fork") as fork:
        assert counted(fork) == {"x3": 1, "x4": 1}


def test_a_tenant_made_anew_under_an_erased_name_has_none_of_the_queries_before(lab: Hub, episode, vector):
    lab.put(episode(0, tenant_id="gone", vector=vector(0)))
    lab.recall("gone", vector(7), k=1)
    lab.recall("acme", vector(3), k=1)
    lab.erase_tenant("gone", reason="request")
    lab.put(episode(1, tenant_id="gone", vector=vector(1)))
    lab.preview_retention("acme", Unused(after=1))
    assert rows(lab, "SELECT DISTINCT tenant_id FROM queries") == [("acme",)]
    assert counted(lab) == {"x3": 1}
