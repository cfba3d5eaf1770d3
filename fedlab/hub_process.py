"""A hub in a process of its own, that can be killed and started again: what the demos and the tour run agents on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from fedlab.errors import HubUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self


class HubProcess:
    """A hub in a process of its own, on a free port that it keeps when it is started again.

    Args:
        data: The hub's directory.
        log: File that takes what the process says.
        embedder: Name of an embedder; the hub's default if None.
        port: A free one if None.
        options: More of `fedlab hub`.
    """

    def __init__(
        self, data: Path, log: Path, embedder: str | None = None, port: int | None = None, options: Sequence[str] = ()
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self._log = log
        self._options = [*options, *(["--embedder", embedder] if embedder else [])]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process, unless it is running, and wait until it answers.

        Raises:
            HubUnavailable: If it ends at once, or does not answer within a minute.
        """
        if self._process is not None and self._process.returncode is None:
            return
        command = ["-m", "fedlab", "hub", "--data", str(self.data), "--port", str(self.port), "--end-with-stdin"]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then ends the hub.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                *self._options,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(60):
                while not await asyncio.to_thread(_is_healthy, self.port):
                    if self._process.returncode is not None:
                        raise HubUnavailable(f"the hub ended at once: its last words are in {self._log}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise HubUnavailable(f"the hub did not answer within a minute: see {self._log}") from None

    def kill(self) -> None:
        """SIGKILL: no goodbye, no clean-up."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def wait(self) -> None:
        """Until the process is gone."""
        if self._process is not None:
            await self._process.wait()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None and self._process.returncode is None:
                self._process.terminate()
                async with asyncio.timeout(30):
                    await self.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()


def end_with_stdin() -> None:
    """End this process, as SIGTERM does, when its stdin ends: a pipe does when who holds its other end is gone, also if
    it was killed.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-stdin", daemon=True).start()


def free_port() -> int:
    """A port of loopback on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
