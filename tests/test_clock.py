from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fedlab import InvalidRequest, SimulatedClock, SystemClock
from fedlab.clock import LATEST_MS, to_datetime, to_ms

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_system_clock_tells_milliseconds_utc():
    before = time.time_ns() // 1_000_000
    assert before <= SystemClock().now() <= time.time_ns() // 1_000_000


def test_a_simulated_clock_stands_still_until_it_is_moved():
    clock = SimulatedClock(NEW_YEAR)
    assert clock.now() == clock.now() == 1_767_225_600_000
    clock.advance(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)
    assert to_datetime(clock.now()) == NEW_YEAR + timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)


@pytest.mark.parametrize("days", [-1, float("nan"), float("inf"), 10_000_000, 1e12])
def test_a_step_that_leads_nowhere_is_refused_and_the_clock_stays(days):
    clock = SimulatedClock(NEW_YEAR)
    with pytest.raises(InvalidRequest):
        clock.advance(days=days)
    assert clock.now() == to_ms(NEW_YEAR)
    assert "2026-01-01" in repr(clock)


def test_a_naive_time_is_utc_and_other_zones_are_converted():
    assert to_ms(NEW_YEAR.replace(tzinfo=None)) == to_ms(NEW_YEAR)
    assert to_ms(NEW_YEAR.replace(tzinfo=timezone(timedelta(hours=2)))) == to_ms(NEW_YEAR) - 7_200_000


def test_milliseconds_survive_the_round_trip():
    for ms in (0, 1, 1_767_225_600_123, LATEST_MS):
        assert to_ms(to_datetime(ms)) == ms


@pytest.mark.parametrize("moment", [-1, LATEST_MS + 1, 1.5, "2026-01-01", None, True, 10**400, datetime(1969, 12, 31)])
def test_what_is_no_time_is_refused(moment):
    with pytest.raises(InvalidRequest):
        to_ms(moment)


async def test_timers_fire_in_the_order_of_their_time_and_cancelled_ones_never():
    clock, heard = SimulatedClock(NEW_YEAR), []
    now = clock.now()
    for delay in (3_000, 1_000, 2_000, 2_000, 9_000):
        clock.call_at(now + delay, lambda delay=delay: heard.append(delay))
    clock.call_at(now + 1_500, lambda: heard.append("cancelled")).cancel()
    clock.call_at(now, lambda: heard.append("at once"))
    await asyncio.sleep(0)
    assert heard == ["at once"]
    late = clock.call_at(now + 2_500, lambda: heard.append("cancelled late"))
    clock.advance(seconds=5)
    late.cancel()
    await asyncio.sleep(0)
    assert heard == ["at once", 1_000, 2_000, 2_000, 3_000]


async def test_a_clock_may_be_moved_from_another_thread():
    clock, rang = SimulatedClock(NEW_YEAR), asyncio.Event()
    clock.call_at(clock.now() + 1, rang.set)
    threading.Thread(target=lambda: clock.advance(seconds=1)).start()
    await asyncio.wait_for(rang.wait(), 10)


def test_a_timer_of_a_loop_that_is_gone_does_no_harm():
    clock = SimulatedClock(NEW_YEAR)

    async def wait() -> None:
        clock.call_at(clock.now() + 1, lambda: None)

    asyncio.run(wait())
    clock.advance(seconds=1)
