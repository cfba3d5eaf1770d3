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
    return len(episodes) <= SMALL and all(episode.vector is not None for episode in episodes)


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
        self._done: collections.deque[tuple[Future[Any], Callable[[Future[Any]], object]]] = collections.deque()
        self._awake = False

    def wake(self, episodes: Sequence[Episode] = ()) -> Callable[[], None] | None:
        """What has a change that stores these episodes committed; None leaves it to the hub's writer thread."""
        return self._soon if is_small(episodes) else None

    def when_done(self, future: Future[Any], then: Callable[[Future[Any]], object]) -> None:
        """Call `then(future)` on the loop when the future is done."""
        future.add_done_callback(functools.partial(self._completed, then))

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

    def _soon(self) -> None:
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
        self._commit()  # first: answers are sent while it waits for the disk
        self._deliver()

    def _completed(self, then: Callable[[Future[Any]], object], future: Future[Any]) -> None:
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
