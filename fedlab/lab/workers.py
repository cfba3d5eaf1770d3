"""Processes for the cells of a run, which end with it.

After Ctrl-C, and when the process that made them is gone, each has its cell end its agents before it ends itself. A
process is deaf to a Ctrl-C of its own: a terminal sends it to all of them, and who is told twice stops tidying.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from multiprocessing.connection import Connection
    from typing import Any

T = TypeVar("T")

GRACE = 5.0
"""Seconds that a cell has to end its agents in."""
PATIENCE = 1.0
"""Seconds after which a world or a learner that does not come back is interrupted."""


class Workers:
    """An executor of processes.

    Args:
        number: How many.
    """

    def __init__(self, number: int) -> None:
        from loky import ProcessPoolExecutor

        # A process that has grown since its first cell is replaced by a new one, and the run goes on. Cells differ in
        # size, so that it is no sign of a leak, and nobody has anything to do about it.
        warnings.filterwarnings("ignore", "A worker (was restarted|stopped) while some jobs were given to the executor")
        # Nothing is ever sent: what they hear is that our end is closed, by `close` or by our death.
        reader, self._end = multiprocessing.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(number, initializer=_listen, initargs=(reader, os.getpid()))
        self._futures: list[Future[Any]] = []

    def submit(self, work: Callable[..., T], *args: object) -> Future[T]:
        """Have a process do it."""
        future: Future[T] = self._pool.submit(work, *args)
        self._futures.append(future)
        return future

    async def close(self) -> None:
        """End the processes; those that are at work first get `GRACE` seconds."""
        self._end.close()
        running = [asyncio.wrap_future(each) for each in self._futures if not each.cancel()]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    # On the loop: it may be that of the hub to which their agents say goodbye.
                    await asyncio.gather(*running, return_exceptions=True)
        finally:
            self._pool.shutdown(wait=True, kill_workers=True)


def run_leashed(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`; in a worker of an ended run, what was begun is cancelled, and nothing begins.

    Raises:
        asyncio.CancelledError: If the run ended.
        KeyboardInterrupt: If it ended while the work kept the event loop for more than `PATIENCE` seconds.
    """
    return asyncio.run(work if _leash is None else _leash.hold(work))


class _Leash:
    """In a worker: what it is at, and whether the run ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._task: asyncio.Task[Any] | None = None
        self._told = False
        self._loud = False

    @property
    def busy(self) -> bool:
        return self._task is not None

    async def hold(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._ended:
                work.close()
                raise asyncio.CancelledError
            self._task = asyncio.current_task()
        try:
            return await work
        finally:
            with self._lock:
                self._task = None

    def end(self) -> None:
        """The run ended: cancel what is under way, or interrupt it where it does not come back to the event loop."""
        with self._lock:
            self._ended = True
            if self._task is not None:
                self._task.get_loop().call_soon_threadsafe(self._tell)
        time.sleep(PATIENCE)
        if self.busy and not self._told:
            self._loud = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _tell(self) -> None:
        if self._task is not None and not self._told:
            self._told = True
            self._task.cancel()

    def interrupt(self, *_: object) -> None:
        """On SIGINT, which others send too."""
        if self._loud and not self._told:
            self._told = True
            raise KeyboardInterrupt


_leash: _Leash | None = None


def _listen(end: Connection, parent: int) -> None:
    """In a new worker: hear of the end of the run, or of the process that made this one."""
    global _leash
    _leash = _Leash()
    signal.signal(signal.SIGINT, _leash.interrupt)
    threading.Thread(target=_await_end, args=(_leash, end, parent), name="fedlab-leash", daemon=True).start()


def _await_end(leash: _Leash, end: Connection, parent: int) -> None:
    end.poll(None)
    deadline = time.monotonic() + GRACE
    leash.end()
    # A parent that is alive ends this process as soon as all cells have come to their end.
    while time.monotonic() < deadline and (leash.busy or os.getppid() == parent):
        time.sleep(0.05)
    os._exit(1)
