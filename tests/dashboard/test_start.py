"""`fedlab dashboard` as a process: what it starts, and that it leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dashboard.browsers import wait_for_health
from tests.dashboard.conftest import ROOT
from tests.processes import free_port


def processes_of(folder: Path) -> list[int]:
    """Those whose environment names the folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(folder).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_first_start_asks_nothing_and_killed_it_leaves_no_process_behind(tmp_path: Path):
    port = free_port()
    home = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "FEDLAB_RUNTIME_DIR")}
    # Of who never used Streamlit, which then asks for an address of mail; and with a browser, if only by name.
    environment = {**os.environ, **home, "BROWSER": "true"}
    command = [sys.executable, "-m", "fedlab", "dashboard", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    try:
        wait_for_health(port)
        deadline = time.monotonic() + 60
        while len(processes_of(tmp_path)) < 4:  # itself, Streamlit, the demo and its hub
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    while processes_of(tmp_path):
        assert time.monotonic() < deadline + 60, processes_of(tmp_path)
        time.sleep(0.05)
