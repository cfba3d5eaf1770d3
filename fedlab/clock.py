"""Where every "now" of the system comes from: the machine's clock, or one that an experiment moves.

Times are integer milliseconds UTC since 1970, everywhere.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

LATEST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: the latest time that `datetime` can show."""


class Timer(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None:
        """Forget the callback; harmless when it has run."""


@runtime_checkable
class Clock(Protocol):
    """Tells the time and calls back when it has come."""

    def now(self) -> int:
        """The time in ms UTC."""

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        """Run `callback` in the running event loop once the clock shows `when` (ms UTC)."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """The time in ms UTC."""
        return time.time_ns() // 1_000_000

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        """Run `callback` in the running event loop at `when` (ms UTC)."""
        delay = max(0, when - self.now()) / 1000
        return asyncio.get_running_loop().call_later(delay, callback)

    def __repr__(self) -> str:
        return "SystemClock()"


class _SimulatedTimer:
    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self.loop = loop
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        # Through the loop and not at once: `advance` may be called from any thread.
        if self.callback is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        if self.callback is not None:
            self.callback()


class SimulatedClock:
    """A clock that stands still until an experiment moves it.

    Args:
        start: The first "now"; a naive datetime is taken as UTC.

    >>> clock = SimulatedClock(datetime(2026, 1, 1))
    >>> clock.advance(days=10)
    >>> clock
    SimulatedClock('2026-01-11T00:00:00+00:00')
    """

    def __init__(self, start: datetime) -> None:
        self._now = to_ms(start)
        self._timers: list[tuple[int, int, _SimulatedTimer]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()

    def now(self) -> int:
        """The simulated time in ms UTC."""
        return self._now

    def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0, milliseconds: float = 0
    ) -> None:
        """Move the clock forward and wake the timers whose time has come, earliest first.

        Raises:
            InvalidRequest: If the step is negative: time that ran backwards would reorder the log.
        """
        try:
            step = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)
            to_ms(max(0, self._now + round(step / timedelta(milliseconds=1))))
        except (ValueError, OverflowError) as error:
            raise InvalidRequest(f"the clock can not be moved there: {error}") from None
        if step < timedelta(0):
            raise InvalidRequest(f"a clock moves forward only, and {step} is negative")
        with self._lock:
            self._now += round(step / timedelta(milliseconds=1))
            due = []
            while self._timers and self._timers[0][0] <= self._now:
                due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            timer.fire()

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        """Run `callback` in the running event loop once `advance` has reached `when` (ms UTC)."""
        timer = _SimulatedTimer(asyncio.get_running_loop(), callback)
        with self._lock:
            if when > self._now:
                heapq.heappush(self._timers, (when, next(self._order), timer))
                return timer
        timer.fire()
        return timer

    def __repr__(self) -> str:
        return f"SimulatedClock('{to_datetime(self._now).isoformat()}')"


def to_ms(moment: datetime | int) -> int:
    """A datetime (naive is taken as UTC) or ms UTC, as ms UTC.

    >>> to_ms(datetime(1970, 1, 2))
    86400000

    Raises:
        InvalidRequest: If it is neither, or lies before 1970 or after 9999.
    """
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if not isinstance(moment, int) or isinstance(moment, bool):
        raise InvalidRequest(f"a time is a datetime or integer ms UTC, not {type(moment).__name__} {moment!r:.80}")
    if not 0 <= moment <= LATEST_MS:
        raise InvalidRequest(
            f"{moment} is no time between the years 1970 and 9999 in ms UTC; seconds or nanoseconds by mistake?"
        )
    return moment


def to_datetime(ms: int) -> datetime:
    """Ms UTC as an aware datetime."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
