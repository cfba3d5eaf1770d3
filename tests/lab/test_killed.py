"""A run that is killed or cannot write goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedlab import ExperimentFailed, Hub, connect_sync
from fedlab.lab import Arm
from tests.lab.small import Copier, experiment, files
from tests.processes import HubProcess

ROOT = Path(__file__).parents[2]
RUN = "from tests.lab.small import experiment; experiment(generations=6, seeds=range(4)).run_sync({!r}, progress=False)"


def started(directory: Path, code: str = RUN) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code.format(str(directory))], cwd=ROOT, stderr=subprocess.PIPE)


def finished(directory: Path) -> int:
    return len(list(directory.glob("cells/*")))


def test_killed_three_times_at_a_random_moment_it_ends_with_the_same_bytes(tmp_path):
    experiment(generations=6, seeds=range(4)).run_sync(tmp_path / "whole", progress=False)
    moments = random.Random(1)
    for number in (1, 3, 5):
        process = started(tmp_path / "run")
        while finished(tmp_path / "run") < number:
            assert process.poll() is None, process.stderr.read()
        # Somewhere inside the next cell, which takes about a tenth of a second.
        moment = time.monotonic() + moments.uniform(0, 0.1)
        while time.monotonic() < moment:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert number <= finished(tmp_path / "run") < 8
    experiment(generations=6, seeds=range(4)).run_sync(tmp_path / "run", progress=False)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert sorted(each.name for each in (tmp_path / "run").iterdir()) == sorted(
        each.name for each in (tmp_path / "whole").iterdir()
    )


def test_ctrl_c_ends_a_run_that_can_go_on(tmp_path):
    process = started(tmp_path / "run", RUN.replace("progress", "workers=2, progress"))
    while not finished(tmp_path / "run"):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert finished(tmp_path / "run") < 8
    experiment(generations=6, seeds=range(4)).run_sync(tmp_path / "run", progress=False)
    assert finished(tmp_path / "run") == 8


class Interrupted(Copier):
    """Somebody presses Ctrl-C while the agents of a later generation live."""

    def act(self, task, memories, rng):
        if memories:
            os.kill(os.getpid(), signal.SIGINT)
        return super().act(task, memories, rng)


def test_ctrl_c_leaves_a_live_hub_without_agents_and_what_they_had_pushed(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    with HubProcess(tmp_path / "hub") as hub:
        with pytest.raises(KeyboardInterrupt):
            experiment(Arm("stops", Interrupted())).run_sync(tmp_path / "run", hub=hub.url, progress=False)
        with connect_sync(hub.url) as connection:
            agents = connection.agents()
            assert connection.verify().ok
            held = connection.episodes()
        # Two lived through the first generation, two were interrupted.
        assert agents["status"].to_list() == ["destroyed"] * 4
        assert held["agent_id"].to_list() == ["g0-a0"] * 4 + ["g0-a1"] * 4


def test_ctrl_c_leaves_the_hub_of_a_cell_closed_and_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        experiment(Arm("stops", Interrupted())).run_sync(tmp_path / "run", keep_hubs=True, progress=False)
    assert not finished(tmp_path / "run")
    with Hub(tmp_path / "run/hub/stops.0") as hub:
        assert hub.verify().ok
        assert set(hub.agents()["status"]) == {"destroyed"}
        assert len(hub.episodes()) == 8


FULL = """
import resource, signal, sys
from concurrent.futures import Executor, ThreadPoolExecutor
from tests.lab.small import experiment

class FullAfterwards(Executor):
    # The cell is lived through; only then may no file be larger than 3,000 bytes.
    def submit(self, *work):
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(*work)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
        return future

experiment(generations=6, seeds=range(4)).run_sync({!r}, workers=FullAfterwards(), progress=False)
"""


def test_a_disk_that_is_full_from_the_beginning_is_named_and_leaves_nothing(tmp_path):
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, allowed[1]))
    try:
        with pytest.raises(ExperimentFailed, match=f"nothing was run: .*run can not be written: .*{os.strerror(27)}"):
            experiment().run_sync(tmp_path / "run", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    experiment().run_sync(tmp_path / "run", progress=False)
    assert finished(tmp_path / "run") == 4


def test_a_full_disk_is_named_and_what_was_finished_is_kept(tmp_path):
    tried = experiment(generations=6, seeds=range(4))
    tried.run_sync(tmp_path / "run", progress=False)
    whole = files(tmp_path / "run")
    lost = tmp_path / "run/cells/copier.2"
    for each in lost.iterdir():
        each.unlink()
    lost.rmdir()
    process = started(tmp_path / "run", FULL)
    said = process.communicate()[1].decode()
    assert "ExperimentFailed: 1 of 8 cells failed" in said
    assert "arm 'copier', seed 2, generation 5: its results can not be written" in said
    assert os.strerror(27) in said  # EFBIG: File too large
    kept = files(tmp_path / "run")
    assert len(kept) == 3 * 7
    assert kept.items() <= whole.items()
    tried.run_sync(tmp_path / "run", progress=False)
    assert files(tmp_path / "run") == whole
    assert list((tmp_path / "run/failed").iterdir()) == []
