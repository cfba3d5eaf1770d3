"""A real hub in a real process, for tests that stop, kill and restart it."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

SERVER = Path(__file__).parents[1] / "hub_server.py"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HubProcess:
    """`hub_server.py` on one port, which can be stopped, killed and started again.

    Args:
        data: The hub's directory.
        embedder: `hashing` needs no model.
        options: More of the command line.
        tls_ca: Its certificate, if it has one.
    """

    def __init__(
        self, data: Path, embedder: str = "hashing", options: Sequence[str] = (), tls_ca: Path | None = None
    ) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"ws{'s' if tls_ca else ''}://127.0.0.1:{self.port}"
        self._tls = ssl.create_default_context(cafile=tls_ca) if tls_ca else None
        self.log = data.with_name(data.name + ".log")
        self._options = ["--embedder", embedder, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, str(SERVER), "--data", str(self.data), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log, cwd=self.data.parent)
        deadline = time.monotonic() + 60
        health = self.url.replace("ws", "http", 1) + "/health"
        while True:
            try:
                with urllib.request.urlopen(health, timeout=5, context=self._tls) as answer:
                    answer.read()
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the hub did not start:\n{self.log.read_text()}") from None
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait(timeout=60)

    def __enter__(self) -> HubProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
