"""A client of the same user finds the key of a hub on this machine; nobody else's files are believed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fedlab
from fedlab import AuthenticationError, PermissionDenied
from fedlab.net import HubServer
from fedlab.net.discovery import Announcement, announce, find, is_loopback


async def test_no_token_is_needed_on_the_same_machine(server: HubServer, runtime_directory: Path):
    async with fedlab.connect(server.url) as hub:
        assert (await hub.verify()).ok
    async with fedlab.connect(f"ws://localhost:{server.port}", tenant_id="acme", agent_id="a", role="agent") as hub:
        await hub.spawn_agent("acme", "a", lifetime=9)
        with pytest.raises(PermissionDenied):
            await hub.spawn_agent("acme", "b", lifetime=9)
    [path] = runtime_directory.iterdir()
    assert stat.S_IMODE(runtime_directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (
        "key" not in path.read_text() or server.hub.path.joinpath("hub.key").read_bytes().hex() not in path.read_text()
    )


async def test_files_that_others_could_have_written_are_not_believed(server: HubServer, runtime_directory: Path):
    [path] = runtime_directory.iterdir()
    for each, mode in [(path, 0o666), (runtime_directory, 0o777), (server.hub.path / "hub.key", 0o644)]:
        held = stat.S_IMODE(each.stat().st_mode)
        each.chmod(mode)
        assert find(server.url) is None
        each.chmod(held)
    assert find(server.url) is not None


async def test_a_file_of_a_process_that_is_gone_is_not_believed(server: HubServer, runtime_directory: Path):
    found = find(server.url)
    assert found is not None
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    announce(msgspec.structs.replace(found, pid=gone.pid))
    with pytest.raises(AuthenticationError, match="fedlab token"):
        async with fedlab.connect(server.url):
            pass


async def test_a_damaged_announcement_is_none(server: HubServer, runtime_directory: Path):
    [path] = runtime_directory.iterdir()
    path.write_bytes(b'{"url"')
    assert find(server.url) is None


def test_nothing_is_announced_in_a_directory_that_is_not_private(runtime_directory: Path):
    runtime_directory.mkdir(mode=0o777)
    runtime_directory.chmod(0o777)
    here = Announcement(url="ws://127.0.0.1:8443", pid=os.getpid(), data="d", hub_id="h", key="k")
    assert announce(here) is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("LOCALHOST", True),
        (None, False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("", False),
        ("127.0.0.1.nip.io", False),
    ],
)
def test_loopback_is_recognised(host: Any, loopback: bool):
    assert is_loopback(host) is loopback
