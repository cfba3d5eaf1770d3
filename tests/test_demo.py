"""The demo, small but whole: a real hub process, real sockets, a real SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedlab import Hub
from fedlab.demo import run_demo
from fedlab.errors import HubUnavailable, InvalidRequest
from fedlab.hub_process import HubProcess

SMALL = {"generations": 4, "agents": 2, "tasks": 8, "embedder": "hashing", "progress": False}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"), seed=1, **SMALL)


def hubs_of(folder):
    """Processes whose command line names the folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command and b"hub" in command:
                found.append(int(process.name))
    return found


def until(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
    return found


def test_the_hub_is_killed_and_nothing_is_lost(report):
    assert (report.kills, report.lost, report.repeated, report.acknowledged) == (1, 0, 0, 3 * 4 * 2 * 8)
    assert report.ok
    assert report.verified.ok


def test_every_life_and_every_episode_is_in_the_hub(report):
    assert set(report.stored.values()) == {4 * 2 * 8}
    assert set(report.lives.values()) == {4 * 2}
    with Hub(report.data) as hub:
        assert hub.stats().episodes == report.acknowledged
        episodes = hub.episodes("acme")
        assert episodes["created_at"].n_unique() == 4, "the days between the generations are simulated"


def test_memory_is_worth_something(report):
    means = {(row["tenant_id"], row["generation"]): row["mean"] for row in report.rewards.to_dicts()}
    assert means["acme", 0] == means["no-memory", 0], "the first generation has nothing to remember, on the same tasks"
    late = [sum(means[tenant, generation] for generation in (1, 2, 3)) for tenant in ("acme", "no-memory")]
    assert late[0] != late[1]


def test_the_same_seed_gives_the_same_rewards(report, tmp_path):
    again = run_demo(tmp_path, seed=1, **SMALL)
    assert again.rewards.equals(report.rewards)


def test_the_report_is_a_table_and_the_page_is_saved(report):
    text = str(report)
    for part in ("generation", "acme", "globex", "no-memory", "episodes stored", "agents lived", "exactly once"):
        assert part in text
    page = report.page.read_text(encoding="utf-8")
    assert "exactly once" in page
    assert page.count("Plotly.newPlot(") == 2


def test_an_earlier_demo_is_replaced_and_nothing_else_is(report, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="no demo has made"):
        run_demo(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(InvalidRequest, match="the data has"):
        run_demo(report.page.parent, **(SMALL | {"tasks": 1000}))
    assert report.page.exists(), "it stays until it is certain that there will be another"


@pytest.mark.parametrize("numbers", [{"generations": 1}, {"agents": 0}, {"tasks": 0}, {"tasks": 1000}])
def test_numbers_that_make_no_demo_are_refused(tmp_path, numbers):
    with pytest.raises(InvalidRequest):
        run_demo(tmp_path, **(SMALL | numbers))
    assert not hubs_of(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path, stop):
    code = f"from fedlab.demo import run_demo; run_demo({str(tmp_path)!r}, generations=20, embedder='hashing')"
    demo = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: (tmp_path / "hub" / "hub.db").exists())
        assert hubs_of(tmp_path / "hub")
        os.killpg(demo.pid, stop)
        assert demo.wait(60) != 0
        until(lambda: not hubs_of(tmp_path / "hub"))
    finally:
        demo.kill()
        demo.wait()


async def test_a_hub_that_can_not_start_is_an_error_that_says_where_to_look(tmp_path):
    (tmp_path / "hub").write_text("a file is in the way")
    with pytest.raises(HubUnavailable, match=r"hub\.log"):
        async with asyncio.timeout(60), HubProcess(tmp_path / "hub", tmp_path / "hub.log"):
            pass
    assert not hubs_of(tmp_path)


async def test_a_hub_that_was_started_and_is_then_entered_is_one_process(tmp_path):
    process = HubProcess(tmp_path / "hub", tmp_path / "log", embedder="hashing")
    await process.start()
    assert len(hubs_of(tmp_path)) == 1
    async with process:
        assert len(hubs_of(tmp_path)) == 1
    assert hubs_of(tmp_path) == []
