"""An erasure takes a while: it is killed, it is copied, and others work meanwhile. What was erased is in no file."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import timedelta
from random import Random

import pytest

from fedlab import Episode, Hub, HubUnavailable, MinReward, UnknownTenant
from fedlab.hub import eraser, ledger, restoring
from fedlab.hub.backups import verify_backup, write_backup

from .test_erasure import A, M, T, V, fill, marked, traces

KILL = """
import os, signal, sys
from tests.hub.test_erasure import A, T, Hub, Random, fill
from fedlab.hub import eraser, ledger

module, name, times, after, scope, *base = sys.argv[2:]
owner = {"Eraser": eraser.Eraser, "eraser": eraser, "ledger": ledger}[module]
real, left = getattr(owner, name), int(times)

def fatal(*args):
    global left
    left -= 1
    result = real(*args) if left or after == "after" else None
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

hub = Hub(sys.argv[1], embedder="hashing")
ids = fill(hub, Random(4), tenant_id=T if scope == "tenant" else "acme", agent_id="b" if scope == "episodes" else A)
setattr(owner, name, fatal)
eraser.TURN, eraser.STEP = 0, 16
for path in base:
    hub.backup(path)
if scope == "tenant":
    hub.erase_tenant(T, reason="r")
elif scope == "agent":
    hub.erase_agent("acme", A, reason="r")
else:
    hub.erase_episodes("acme", ids, reason="r")
"""


@pytest.mark.parametrize(
    ("step", "scope"),
    [
        ("Eraser _remove_rows 1 before", "tenant"),
        ("ledger redact 2 after", "tenant"),
        ("ledger redact 3 after", "agent"),
        ("ledger redact 3 after", "episodes"),
        ("Eraser _drop_caches 1 before", "tenant"),
        ("Eraser _finish_rows 1 before", "agent"),
        ("Eraser _finish_files 1 before", "tenant"),
        ("eraser overwrite 1 after", "tenant"),
        ("eraser wipe 1 after", "episodes"),
    ],
)
def test_an_erasure_that_was_killed_is_completed_at_the_next_start(tmp_path, step, scope):
    done = subprocess.run(
        [sys.executable, "-c", KILL, tmp_path, *step.split(), scope], check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Hub(tmp_path) as hub:
        assert traces(tmp_path) == {}
        assert hub.verify().ok, hub.verify()
        (row,) = hub.erasures().to_dicts()
        assert row["done_at"]
        assert row["episodes"] > 90
        assert hub.stats("acme").episodes == hub.episodes("acme").height
        assert hub.changes(kind="erasure_finished").height == 1
    assert traces(tmp_path) == {}


@pytest.mark.parametrize("scope", ["tenant", "agent", "episodes"])
@pytest.mark.parametrize(
    "step", ["Eraser _remove_rows 1 before", "ledger redact 2 after", "Eraser _finish_files 1 before"]
)
def test_every_copy_of_a_hub_that_was_killed_in_an_erasure_completes_it(tmp_path, step, scope):
    dead, base = tmp_path / "hub", tmp_path / "base"
    command = [sys.executable, "-c", KILL, dead, *step.split(), scope, base]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert traces(dead)
    before = verify_backup(base).seq
    write_backup(dead / "hub.db", tmp_path / "full", 1)
    write_backup(dead / "hub.db", tmp_path / "news", 1, base)
    copies = [tmp_path / f"copy-{number}" for number in range(7)]
    restoring.fork(dead / "hub.db", copies[0], 1)
    restoring.fork(dead / "hub.db", copies[1], 1, at=before)
    Hub.restore(tmp_path / "full", copies[2]).close()
    Hub.restore(tmp_path / "news", copies[3]).close()
    Hub.restore(tmp_path / "news", copies[4], at=before).close()
    Hub.restore(base, copies[5], ledger_from=tmp_path / "news").close()
    shutil.rmtree(tmp_path / "news")
    shutil.rmtree(tmp_path / "full")
    Hub.restore(base, copies[6], ledger_from=dead).close()
    left: set[str] = set()
    for copy in copies:
        with Hub(copy) as hub:
            assert traces(copy) == {}
            assert hub.verify().ok, hub.verify()
            assert None not in hub.erasures()["done_at"]
            left = left or set(hub.episodes()["id"])
            assert set(hub.episodes()["id"]) == left
    with Hub(dead) as hub:
        assert set(hub.episodes()["id"]) == left


def test_while_an_erasure_is_under_way_nothing_shows_and_nobody_writes_there(tmp_path, monkeypatch):
    with Hub(tmp_path, embedder="hashing") as hub:
        fill(hub, Random(5))
        reached, go_on = threading.Event(), threading.Event()
        real = ledger.redact

        def slow(*args):
            reached.set()
            assert go_on.wait(20)
            return real(*args)

        monkeypatch.setattr(ledger, "redact", slow)
        thread = threading.Thread(target=hub.erase_tenant, args=(T,), kwargs={"reason": "r"})
        thread.start()
        try:
            assert reached.wait(20)
            assert M not in str(
                hub.episodes().rows() + hub.agents().rows() + hub.changes().rows() + hub.tenants().rows()
            )
            for call in (lambda: hub.recall(T, V), lambda: hub.sync_agent(T, A, after=0)):
                with pytest.raises(UnknownTenant):
                    call()
            late = hub.put_soon(marked(), actor="late")
        finally:
            go_on.set()
            thread.join()
        with pytest.raises(HubUnavailable, match="being erased"):
            late.result()
        assert traces(tmp_path) == {}


@pytest.mark.parametrize("scope", ["agent", "episodes"])
@pytest.mark.parametrize("what", ["forget", "retain", "hold", "release", "recall"])
def test_what_is_done_to_episodes_while_they_are_being_erased_leaves_no_trace_of_them(
    tmp_path, monkeypatch, scope, what
):
    with Hub(tmp_path, embedder="hashing", keep_forgotten=timedelta(days=1)) as hub:
        ids = [f"{M}-{n}" for n in range(20)]
        hub.put([marked(tenant_id="acme", id=uid, reward=n / 20) for n, uid in enumerate(ids)])
        hub.hold("acme", ids[:3], reason="kept")
        hub.set_retention("acme", MinReward(0.5))
        meanwhile = {
            "forget": lambda: hub.forget("acme", ids[4:8], reason="why"),
            "retain": lambda: hub.apply_retention("acme"),
            "hold": lambda: hub.hold("acme", ids[4:8], reason="kept, too"),
            "release": lambda: hub.release("acme", ids[:3], reason="not any more"),
            "recall": lambda: (hub.recall("acme", V), hub.preview_retention("acme")),
        }[what]
        planned, plan = [], eraser.Eraser._plan

        def slow(self, erasure):
            found = plan(self, erasure)
            if not planned:
                planned.append(found)
                meanwhile()
            return found

        monkeypatch.setattr(eraser.Eraser, "_plan", slow)
        if scope == "agent":
            hub.erase_agent("acme", A, reason="r", even_held=True)
        else:
            hub.erase_episodes("acme", ids, reason="r", even_held=True)
        assert planned
        assert traces(tmp_path) == {}
        assert hub.verify().ok, hub.verify()
        assert hub.stats("acme").episodes == hub.stats("acme").kept == 0


def test_others_go_on_during_an_erasure_and_the_end_is_the_same_in_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(eraser, "TURN", 0)
    monkeypatch.setattr(eraser, "STEP", 2)
    monkeypatch.setattr(eraser, "PAGES", 7)
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        fill(hub, Random(6))
        before, stop, stored = hub.stats("acme").episodes, threading.Event(), []

        def push() -> None:
            while not stop.is_set():
                stored.append(
                    hub.put(Episode(tenant_id="acme", agent_id="b", task="t", input="", output="", reward=0, vector=-V))
                )
                hub.recall("acme", -V)

        others = [threading.Thread(target=push) for _ in range(2)]
        for each in others:
            each.start()
        hub.erase_tenant(T, reason="r")
        assert traces(tmp_path) == {}
        stop.set()
        for each in others:
            each.join()
        assert hub.stats("acme").episodes == before + len(stored)
        assert hub.verify().ok, hub.verify()
    assert traces(tmp_path) == {}


def test_a_reader_that_stays_holds_an_erasure_up_and_does_not_stop_it(tmp_path, monkeypatch):
    monkeypatch.setattr(eraser, "PATIENCE", 0.1)
    with Hub(tmp_path, embedder="hashing") as hub:
        fill(hub, Random(7), 3)
        with closing(sqlite3.connect(tmp_path / "hub.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM episodes").fetchone()[0]
            with pytest.raises(HubUnavailable, match="reading"):
                hub.erase_tenant(T, reason="r")
            assert hub.erasures()["done_at"].to_list() == [None]
            hub.put(marked(tenant_id="acme"))
        hub.erase_episodes("acme", [hub.episodes("acme", agent_id=A)["id"][0]], reason="r")
        assert traces(tmp_path) == {}
        assert None not in hub.erasures()["done_at"].to_list()
