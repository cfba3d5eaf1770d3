"""How a server writes: small pushes that arrive together are one commit, made on the event loop while commits are
quick. Large ones, those that need the model, and all of them on a slow disk go through the hub's writer thread.

Two threads that take the interpreter's lock from each other at every system call cost a fifth of the pushes of 64
clients (measured by turns in one run: 5,600 to 7,700 a second with the writer thread, 7,000 to 9,700 without).
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from fedlab.episode import Episode
    from fedlab.hub import Hub
    from fedlab.net.session import Call

T = TypeVar("T")
logger = logging.getLogger("fedlab.net")

SMALL = 8
"""Most episodes of a push that is committed on the event loop."""
TOGETHER = 128
"""Most episodes in one commit on the event loop: about five milliseconds."""
SLOW_COMMIT = 0.01
"""Seconds: a commit on the event loop that took longer sends the next ones to the writer thread …"""
SLOW_FOR = 1.0
"""… for so many seconds, so that a slow disk holds up the loop for a hundredth of the time at most."""


def is_small(episodes: Sequence[Episode]) -> bool:
    """Whether storing these is quick: they are few and bring their vectors."""
    return len(episodes) <= SMALL and all(episode.vector is not None for episode in episodes)


class Writes:
    """Answers pushes; one for a server.

    Args:
        hub: Where they go.
        loop: The server's event loop.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._slow_until = 0.0
        self._waiting: list[tuple[Call, list[Episode]]] = []
        self._done: collections.deque[tuple[Call, Future[Any]]] = collections.deque()
        self._lock = threading.Lock()
        self._awake = False

    @property
    def quick(self) -> bool:
        """Whether commits may be made on the event loop now."""
        return time.monotonic() >= self._slow_until

    def timed(self, write: Callable[[], T]) -> T:
        """Make a commit on the event loop, and remember if it was slow."""
        began = time.monotonic()
        try:
            return write()
        finally:
            now = time.monotonic()
            if now - began > SLOW_COMMIT:
                self._slow_until = now + SLOW_FOR

    def put(self, call: Call, episodes: list[Episode]) -> None:
        """Have a push stored and answered."""
        if not (self.quick and is_small(episodes)):
            self._submit(call, episodes)
            return
        # What else has arrived is read before the loop comes to this.
        if not self._waiting:
            self._loop.call_soon(self._commit)
        self._waiting.append((call, episodes))

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        by_actor: dict[str, list[tuple[Call, list[Episode]]]] = {}
        for call, episodes in waiting:
            by_actor.setdefault(call.session.identity.name, []).append((call, episodes))
        for actor, pushes in by_actor.items():
            for start in range(0, len(pushes), TOGETHER // SMALL):
                self._put_together(actor, pushes[start : start + TOGETHER // SMALL])

    def _put_together(self, actor: str, pushes: list[tuple[Call, list[Episode]]]) -> None:
        batch = [episode for _, episodes in pushes for episode in episodes]
        try:
            seq = self.timed(lambda: self._hub.put(batch, actor=actor))
        except Exception:
            # One of them can not be stored, and so none was: each for itself, so that each gets its own answer.
            for call, episodes in pushes:
                self._submit(call, episodes)
            return
        for call, _ in pushes:
            call.session.answer(call, seq)

    def _submit(self, call: Call, episodes: list[Episode]) -> None:
        try:
            future = self._hub.put_soon(episodes, actor=call.session.identity.name)
        except Exception as error:
            call.session.fail(call, error)
            return
        future.add_done_callback(functools.partial(self._completed, call))

    def _completed(self, call: Call, future: Future[Any]) -> None:
        """In whatever thread completes a future: one wake-up of the loop for all that are ready."""
        with self._lock:
            self._done.append((call, future))
            if self._awake:
                return
            self._awake = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            logger.debug("a push was done after the server had ended")

    def _drain(self) -> None:
        with self._lock:
            ready, self._done = self._done, collections.deque()
            self._awake = False
        for call, future in ready:
            error = future.exception()
            if error is None:
                call.session.answer(call, future.result())
            else:
                call.session.fail(call, error)
