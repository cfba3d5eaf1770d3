"""How code on an event loop writes: small changes that arrive together are one commit, made on the loop itself while
commits are quick. Large ones, those that need the model, and all of them on a slow disk, go to the hub's writer thread.

Two threads that take the interpreter's lock from each other at every system call cost a fifth of the pushes of 64
clients (measured by turns in one run: 5,600 to 7,700 a second with the writer thread, 7,000 to 9,700 without).
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from fedlab.episode import Episode
    from fedlab.hub import Hub

logger = logging.getLogger("fedlab.net")

SMALL = 8
"""Most episodes of a change that is committed on the event loop."""
TOGETHER = 128
"""About how many episodes share a commit on the event loop: about five milliseconds."""
SLOW_COMMIT = 0.01
"""Seconds: when commits on the event loop usually wait longer for the disk, the next go to the writer thread …"""
SLOW_FOR = 1.0
"""… for so many seconds, so that a slow disk holds up the loop for a hundredth of the time at most."""
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
        self.slow_until = 0.0
        self._usual = 0.0
        self._hub = hub
        self._thread = threading.get_ident()
        self._due = False
        self._done: collections.deque[tuple[Future[Any], Callable[[Future[Any]], object]]] = collections.deque()
        self._awake = False

    def wake(self, episodes: Sequence[Episode] = ()) -> Callable[[], None] | None:
        """What has a change that stores these episodes committed; None leaves it to the hub's writer thread."""
        return self._soon if time.monotonic() >= self.slow_until and is_small(episodes) else None

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
        began, worked = time.monotonic(), time.thread_time()
        self._hub.commit_waiting(TOGETHER)
        now = time.monotonic()
        # What it works is not the disk's: on a slow processor the writer thread only takes more of it.
        waited = now - began - (time.thread_time() - worked)
        self._usual += WEIGHT * (waited - self._usual)
        if self._usual > SLOW_COMMIT:
            self.slow_until = now + SLOW_FOR
            self._usual = 0.0
        self._deliver()

    def _completed(self, then: Callable[[Future[Any]], object], future: Future[Any]) -> None:
        """In whatever thread completes a future: one wake-up of the loop for all that are ready."""
        self._done.append((future, then))
        # No lock: `_deliver` lowers the flag before it looks, so what was added under a raised flag is seen.
        if self._awake:
            return
        self._awake = True
        if threading.get_ident() == self._thread:
            self.loop.call_soon(self._deliver)
            return
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            logger.debug("a change was committed after the event loop had ended")

    def _deliver(self) -> None:
        self._awake = False
        while self._done:
            future, then = self._done.popleft()
            if not future.cancelled():
                then(future)
