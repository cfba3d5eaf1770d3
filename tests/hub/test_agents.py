"""The registry of lives, their leases, and what an agent learns when it syncs."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from fedlab import Hub, IdConflict, QuotaExceeded, SimulatedClock

from .conftest import wait_until

MINUTE = 60


@pytest.fixture
def clock():
    return SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def hub(tmp_path, clock):
    with Hub(tmp_path / "hub", clock, "hashing", max_agents_per_tenant=30) as hub:
        yield hub


def status(hub: Hub, agent_id: str = "a") -> list[str]:
    """Of every life of the agent, oldest first."""
    rows = hub.agents().rows(named=True)
    return [row["status"] for row in rows if row["agent_id"] == agent_id]


def kinds(hub: Hub) -> list[str]:
    return [change.kind for change in hub.read_changes() if change.kind.startswith("agent")]


def test_a_life_is_in_the_registry_from_spawn_to_end(hub, clock):
    record = hub.spawn_agent("acme", "a", lifetime=5 * MINUTE)
    assert (record.status, record.expires_at - record.spawned_at, record.ended_at) == ("alive", 300_000, None)
    clock.advance(seconds=7)
    hub.sync_agent("acme", "a", after=0, ending="destroyed")
    row = hub.agents("acme").row(0, named=True)
    assert (row["status"], row["ended_at"] - row["spawned_at"]) == ("destroyed", 7_000)
    assert kinds(hub) == ["agent_spawned", "agent_ended"]


def test_an_id_belongs_to_one_living_agent_of_the_tenant(hub):
    hub.spawn_agent("acme", "a", lifetime=5)
    with pytest.raises(IdConflict, match="'a'"):
        hub.spawn_agent("acme", "a", lifetime=5)
    hub.spawn_agent("other", "a", lifetime=5)
    hub.sync_agent("acme", "a", after=0, ending="expired")
    hub.spawn_agent("acme", "a", lifetime=5)
    assert status(hub) == ["expired", "alive", "alive"]


def test_of_twenty_spawns_of_one_id_at_once_one_wins(hub):
    def spawn(_: int) -> bool:
        try:
            return hub.spawn_agent("acme", "a", lifetime=5).status == "alive"
        except IdConflict:
            return False

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(spawn, range(20))) == 1
    assert status(hub) == ["alive"]


def test_a_life_may_be_longer_than_two_to_the_31_milliseconds(hub, clock):
    record = hub.spawn_agent("acme", "a", lifetime=30 * 86_400)
    assert record.expires_at - record.spawned_at == 30 * 86_400_000
    clock.advance(days=29)
    assert hub.expire_leases() == []


def test_a_tenant_has_no_more_living_agents_than_it_may(hub):
    for number in range(30):
        hub.spawn_agent("acme", f"a{number}", lifetime=5)
    with pytest.raises(QuotaExceeded, match="max_agents_per_tenant"):
        hub.spawn_agent("acme", "one-more", lifetime=5)
    hub.spawn_agent("other", "one-more", lifetime=5)
    hub.spawn_agent("acme", "a3", lifetime=5, resume=True)
    hub.sync_agent("acme", "a3", after=0, ending="destroyed")
    hub.spawn_agent("acme", "one-more", lifetime=5)


def test_a_crowd_that_comes_at_once_does_not_pass_the_quota(hub, stalled):
    spawned = []
    with stalled(hub):
        for number in range(60):
            with contextlib.suppress(QuotaExceeded):
                spawned.append(hub.spawn_agent_soon("acme", f"a{number}", lifetime=5))
    assert sum(future.exception(20) is None for future in spawned) == 30
    assert hub.stats("acme").agents_alive == 30


def test_an_agent_crashes_when_its_lease_ends_and_not_before(hub, clock):
    hub.spawn_agent("acme", "a", lifetime=5 * MINUTE)
    clock.advance(seconds=100)
    assert hub.expire_leases() == []
    hub.release_agent("acme", "a")
    clock.advance(milliseconds=29_999)
    assert hub.expire_leases() == []
    clock.advance(milliseconds=1)
    assert [(each.agent_id, each.status, each.ended_at) for each in hub.expire_leases()] == [
        ("a", "crashed", clock.now())
    ]
    assert hub.expire_leases() == []
    assert status(hub) == ["crashed"]


def test_an_agent_without_a_goodbye_crashes_after_its_lifetime(hub, clock):
    hub.spawn_agent("acme", "a", lifetime=60)
    clock.advance(seconds=60 + 30)
    assert [each.status for each in hub.expire_leases()] == ["crashed"]


def test_an_agent_that_comes_back_goes_on_living(hub, clock):
    first = hub.spawn_agent("acme", "a", lifetime=5 * MINUTE)
    hub.release_agent("acme", "a")
    clock.advance(seconds=20)
    assert hub.spawn_agent("acme", "a", lifetime=5 * MINUTE, resume=True) == first
    clock.advance(seconds=20)
    assert hub.expire_leases() == []
    hub.release_agent("acme", "a")
    clock.advance(seconds=31)
    assert len(hub.expire_leases()) == 1
    assert hub.spawn_agent("acme", "a", lifetime=5 * MINUTE, resume=True).expires_at == first.expires_at
    assert (status(hub), kinds(hub)) == (["alive"], ["agent_spawned", "agent_ended", "agent_resumed"])


def test_an_agent_that_came_back_in_time_is_not_marked_by_a_sweep_that_began_before(hub, clock, stalled):
    hub.spawn_agent("acme", "a", lifetime=5 * MINUTE)
    hub.release_agent("acme", "a")
    clock.advance(seconds=31)
    with ThreadPoolExecutor(1) as other, stalled(hub):
        back = hub.spawn_agent_soon("acme", "a", lifetime=5 * MINUTE, resume=True)
        sweep = other.submit(hub.expire_leases)
        wait_until(sweep.running)
    assert back.result(20).status == "alive"
    assert sweep.result(20) == []
    assert status(hub) == ["alive"]


def test_a_late_push_of_a_crashed_agent_is_stored(hub, clock, episode):
    hub.spawn_agent("acme", "a", lifetime=60)
    clock.advance(seconds=120)
    hub.expire_leases()
    hub.sync_agent("acme", "a", [episode(1, agent_id="a")], after=0)
    assert hub.recall("acme", "task")[0].agent_id == "a"
    assert status(hub) == ["crashed"]


def test_after_a_restart_every_agent_has_one_lease_to_come_back(tmp_path, clock):
    with Hub(tmp_path, clock, "hashing") as hub:
        for name in ("back", "gone"):
            hub.spawn_agent("acme", name, lifetime=15 * MINUTE)
    with Hub(tmp_path, clock) as hub:
        clock.advance(seconds=29)
        hub.spawn_agent("acme", "back", lifetime=15 * MINUTE, resume=True)
        assert hub.expire_leases() == []
        clock.advance(seconds=1)
        assert [each.agent_id for each in hub.expire_leases()] == ["gone"]


# --- sync ---------------------------------------------------------------------------------------------------


def test_a_sync_tells_what_others_stored_and_what_was_forgotten(hub, episode):
    hub.put([episode(n, id=f"x{n}", agent_id="other") for n in range(3)])
    hub.spawn_agent("acme", "a", lifetime=5)
    first = hub.sync_agent("acme", "a", [episode(9, id="mine", agent_id="a")], after=0)
    assert ([each.id for each in first.stored], first.forgotten) == (["x0", "x1", "x2"], [])
    assert all(each.vector is not None for each in first.stored)
    hub.forget("acme", ["x1", "mine"], reason="r")
    hub.put([episode(n, tenant_id="elsewhere", agent_id="other") for n in range(3)])
    second = hub.sync_agent("acme", "a", after=first.seq)
    assert ([each.id for each in second.stored], sorted(second.forgotten)) == ([], ["mine", "x1"])
    third = hub.sync_agent("acme", "a", after=second.seq)
    assert (third.stored, third.forgotten) == ([], [])
    row = hub.agents("acme").row(0, named=True)
    assert row["pushed"] == 1


@pytest.mark.parametrize("limit", [0, 1, 4, 10])
def test_a_sync_sends_the_newest_and_says_how_many_it_left_out(hub, episode, limit):
    hub.put([episode(n, agent_id="other") for n in range(10)])
    delta = hub.sync_agent("acme", "a", after=0, limit=limit)
    assert [each.input for each in delta.stored] == [f"input {n}" for n in range(10 - limit, 10)]
    assert delta.skipped == 10 - limit


def test_a_push_that_shares_a_commit_still_learns_of_the_others(hub, episode, vector, stalled):
    known = hub.put(episode(0, agent_id="old"))
    with stalled(hub):
        one = hub.sync_agent_soon("acme", "a", [episode(1, agent_id="a", vector=vector(1))], after=known)
        two = hub.sync_agent_soon("acme", "b", [episode(2, agent_id="b", vector=vector(2))], after=known)
    for agent, delta, other in (("a", one.result(20), "b"), ("b", two.result(20), "a")):
        later = hub.sync_agent("acme", agent, after=delta.seq)
        assert [each.agent_id for each in (*delta.stored, *later.stored)] == [other]


def test_agents_that_sync_all_at_once_miss_nothing_and_hear_nothing_twice(hub, episode, vector):
    heard: dict[str, list[str]] = {}
    start = threading.Barrier(8)
    hub.put(episode(0, agent_id="old"))

    def live(number: int) -> None:
        me, after, mine = f"a{number}", 0, heard.setdefault(f"a{number}", [])
        start.wait(20)
        for turn in range(25):
            delta = hub.sync_agent(
                "acme", me, [episode(turn, agent_id=me, vector=vector(number))], after=after, limit=1_000
            )
            after = delta.seq
            mine += [each.id for each in delta.stored]
        start.wait(20)
        mine += [each.id for each in hub.sync_agent("acme", me, after=after, limit=1_000).stored]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(live, range(8)))
    rows = hub.episodes("acme").rows(named=True)
    for me, ids in heard.items():
        assert sorted(ids) == sorted(row["id"] for row in rows if row["agent_id"] != me)
