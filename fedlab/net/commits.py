"""How code on an event loop writes: small changes that arrive together are one transaction, written on the loop itself
and committed in a thread, where it waits for the disk, unless it is short. Large changes, and those that need the
model, go to the hub's writer thread.

Two threads that take the interpreter's lock from each other at every system call cost a fifth of the pushes of 64
clients (measured by turns in one run: 5,600 to 7,700 a second with the writer thread, 7,000 to 9,700 without). A commit
is one call without the lock, and a quarter of the time of a push, most of it spent waiting.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from fedlab.episode import Episode
    from fedlab.hub import Hub
    from fedlab.hub.writer import Written

logger = logging.getLogger("fedlab.net")

SMALL = 8
"""Most episodes of a change that is committed on the event loop."""
TOGETHER = 128
"""About how many episodes share a commit: the loop writes them in about five milliseconds."""
FEW = 4
"""Changes of which the commit is not worth two switches between threads …"""
SLOW_COMMIT = 0.01
"""… unless the disk usually takes longer than so many seconds: it must not hold up the loop."""
WEIGHT = 0.2
"""Of the last commit in what is usual: one that waits for a checkpoint of the database is no slow disk."""


def is_small(episodes: Sequence[Episode]) -> bool:
    """Whether storing these is quick: they are few and bring their vectors."""
    if len(episodes) > SMALL:
        return False
    for episode in episodes:  # noqa: SIM110 - a generator for each push takes longer
        if episode.vector is None:
            return False
    return True


class Outcome:
    """What becomes of a small change: a future without locks, for `Commits` alone takes it from thread to thread.

    Args:
        commits: Bring it back to the loop.
        then: Called there with this, when it is known.
    """

    __slots__ = ("_commits", "_error", "_then", "_value")

    def __init__(self, commits: Commits, then: Callable[[Outcome], object]) -> None:
        self._commits = commits
        self._then = then
        self._value: Any = None
        self._error: Exception | None = None

    def set_running_or_notify_cancel(self) -> bool:
        """It is not cancelled."""
        return True

    def set_result(self, value: Any) -> None:
        """It is committed."""
        self._value = value
        self._commits.completed(self._then, self)

    def set_exception(self, error: Exception) -> None:
        """It is refused, or failed."""
        self._error = error
        self._commits.completed(self._then, self)

    def cancelled(self) -> bool:
        """It is not."""
        return False

    def result(self) -> Any:
        """What the change returned; raises why it is not committed."""
        if self._error is not None:
            raise self._error
        return self._value


class Commits:
    """Between a hub and an event loop: has changes committed, and brings their outcomes back to the loop.

    Args:
        hub: Where the changes go.
        loop: The event loop; all methods are called on it.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._usual = 0.0
        self._thread: ThreadPoolExecutor | None = None
        self._busy = False
        self._hub = hub
        self._here = threading.get_ident()
        self._due = False
        self._done: collections.deque[tuple[Any, Callable[[Any], object]]] = collections.deque()
        self._awake = False

    def wake(self, episodes: Sequence[Episode] = ()) -> Callable[[], None] | None:
        """What has a change that stores these episodes committed; None leaves it to the hub's writer thread."""
        return self.soon if is_small(episodes) else None

    def when_done(self, future: Future[Any], then: Callable[[Future[Any]], object]) -> None:
        """Call `then(future)` on the loop when the future is done."""
        future.add_done_callback(functools.partial(self.completed, then))

    async def wait(self, future: Future[Any]) -> Any:
        """The result of a future; if this is cancelled, so is a change that was not begun."""
        waiter = self.loop.create_future()

        def settle(done: Future[Any]) -> None:
            if waiter.done():
                return
            if error := done.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())

        self.when_done(future, settle)
        try:
            return await waiter
        except asyncio.CancelledError:
            future.cancel()
            raise

    def soon(self) -> None:
        """Commit what waits."""
        # What else has arrived is read before the loop comes to this.
        if not self._due:
            self._due = True
            self.loop.call_soon(self._commit)

    def _commit(self) -> None:
        self._due = False
        # While a commit is under way, more gathers for the next.
        if self._busy or (written := self._hub.write_waiting(TOGETHER)) is None:
            return
        if written.weight <= FEW and self._usual < SLOW_COMMIT:
            self._finish(written)
            self._deliver()
            return
        self._busy = True
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fedlab-commit")
        self._thread.submit(self._finish_there, written)

    def _finish(self, written: Written) -> None:
        began, worked = time.monotonic(), time.thread_time()
        written.finish()
        # What it works is not the disk's.
        waited = time.monotonic() - began - (time.thread_time() - worked)
        self._usual += WEIGHT * (waited - self._usual)

    def _finish_there(self, written: Written) -> None:
        try:
            self._finish(written)
        finally:
            self._call(self._go_on)

    def _go_on(self) -> None:
        self._busy = False
        try:
            self._deliver()  # first: what those who are answered send next can still join the commit after this one
        finally:
            self._commit()

    def completed(self, then: Callable[[Any], object], future: Future[Any] | Outcome) -> None:
        """In whatever thread completes a future: one wake-up of the loop for all that are ready."""
        self._done.append((future, then))
        # No lock: what was added under a raised flag is seen, for they are lowered before `_deliver` looks.
        if self._awake or self._busy:
            return
        self._awake = True
        if threading.get_ident() == self._here:
            self.loop.call_soon(self._deliver)
        else:
            self._call(self._deliver)

    def _call(self, work: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(work)
        except RuntimeError:
            logger.debug("a change was committed after the event loop had ended")

    def _deliver(self) -> None:
        self._awake = False
        while self._done:
            future, then = self._done.popleft()
            if not future.cancelled():
                then(future)
