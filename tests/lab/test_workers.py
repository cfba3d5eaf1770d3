"""Ctrl-C, and the death of the process that runs an experiment in others: nobody is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from fedlab import Hub, connect_sync
from fedlab.lab import Arm
from fedlab.lab.workers import Workers
from tests.lab.small import Copier, experiment, files
from tests.processes import HubProcess

ROOT = Path(__file__).parents[2]
RUN = """
from tests.lab.test_workers import waiting
waiting({folder!r}, {deaf}).run_sync({run!r}, workers=2, progress=False, **{options})
"""


class Waits(Copier):
    """Once it knows something, it waits in a file's place, for ever, until somebody interrupts it there."""

    def __init__(self, folder, deaf):
        super().__init__()
        self.folder = folder
        self._deaf = deaf

    async def act(self, task, memories, rng):
        if memories and not (Path(self.folder) / "open").exists():
            (Path(self.folder) / f"{os.getpid()}.pid").touch()
            if self._deaf:
                threading.Event().wait()
            await asyncio.Event().wait()
        return super().act(task, memories, rng)


def waiting(folder, deaf=False):
    return experiment(Arm("waits", Waits(str(folder), deaf)), seeds=range(5))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDLAB_RUNTIME_DIR", str(folder / "runtime"))
    with HubProcess(folder / "hub") as hub:
        yield hub.url
    patch.undo()


def started(tmp_path, *, deaf=False, **options):
    """A process that runs the experiment, when agents of two of its cells live; and the processes of these."""
    code = RUN.format(folder=str(tmp_path), deaf=deaf, run=str(tmp_path / "run"), options=options)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    while len(found := list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None, process.stderr.read()
    workers = [int(each.stem) for each in found]
    assert psutil.Process(workers[0]).ppid() == process.pid
    return process, workers


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def await_end_of(pids):
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, pids


def check_goes_on(tmp_path, *, deaf=False, **options):
    """Begun again, it ends as if nothing had happened."""
    (tmp_path / "open").touch()
    waiting(tmp_path, deaf).run_sync(tmp_path / "whole", progress=False)
    waiting(tmp_path, deaf).run_sync(tmp_path / "run", progress=False, **options)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert len(files(tmp_path / "run")) == 15


@pytest.mark.parametrize(
    ("send", "deaf"),
    [(os.kill, False), (os.killpg, False), (os.killpg, True)],
    ids=["to the process", "to all processes", "to all while they block"],
)
def test_ctrl_c_ends_all_processes_and_leaves_a_live_hub_without_agents(tmp_path, live, send, deaf):
    process, workers = started(tmp_path, deaf=deaf, hub=live)
    with connect_sync(live) as connection:
        before = connection.agents().filter(status="alive")
        assert before.height == 4
        send(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert said.count(b"\nKeyboardInterrupt") == 1, said.decode()
        assert not any(map(is_running, workers))
        agents = connection.agents()
        assert agents.filter(status="alive").is_empty()
        assert agents.filter(tenant_id=before["tenant_id"].to_list()[0])["status"].to_list() == ["destroyed"] * 4
    check_goes_on(tmp_path, deaf=deaf, hub=live)


def test_ctrl_c_leaves_the_hubs_of_cells_closed_and_whole(tmp_path):
    process, workers = started(tmp_path, keep_hubs=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not any(map(is_running, workers))
    kept = list((tmp_path / "run/hub").iterdir())
    assert len(kept) == 2
    for each in kept:
        with Hub(each) as hub:
            assert hub.verify().ok
            assert hub.agents()["status"].to_list() == ["destroyed"] * 4
    check_goes_on(tmp_path)


def test_when_the_process_is_killed_its_workers_say_goodbye_and_end(tmp_path, live):
    process, workers = started(tmp_path, hub=live)
    process.kill()
    await_end_of(workers)
    process.communicate(timeout=60)
    with connect_sync(live) as connection:
        assert connection.agents().filter(status="alive").is_empty()
    check_goes_on(tmp_path, hub=live)


def impatient():
    """In a worker: from now on it is looked at after each piece of work how much it has grown."""
    from loky import process_executor

    process_executor._MEMORY_LEAK_CHECK_DELAY = -1.0
    return os.getpid()


async def test_a_worker_that_has_grown_is_replaced_without_a_word(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_MEMORY_LEAK_SIZE", "-1e12")  # whatever it has is more
    workers = Workers(1)
    futures = [workers.submit(impatient) for _ in range(6)]
    processes = [await asyncio.wrap_future(each) for each in futures]
    await workers.close()
    assert len(set(processes)) > 1
