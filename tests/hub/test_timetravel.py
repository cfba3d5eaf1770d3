"""A fork has the memory as of then: what a replay of the log in plain Python says, as far as it was kept."""

from __future__ import annotations

import dataclasses
import sqlite3
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab import (
    CorruptHub,
    Episode,
    Hub,
    HubLocked,
    InvalidRequest,
    KeepForever,
    MaxAge,
    MaxEpisodes,
    MinReward,
    SimulatedClock,
    UnknownTenant,
)

EMBEDDER = "hashing-16"
START = datetime(2026, 1, 1)


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def hub(tmp_path, clock):
    with Hub(tmp_path / "hub", clock, EMBEDDER, "off", keep_forgotten=timedelta(days=30)) as hub:
        yield hub


def ids(hub: Hub) -> list[str]:
    return sorted(hub.episodes()["id"])


def edit(hub: Hub, statement: str) -> None:
    connection = sqlite3.connect(hub.path / "hub.db", isolation_level=None)
    assert connection.execute(statement).rowcount == 1
    connection.close()


@dataclasses.dataclass
class State:
    """What a hub's memory is, kept by hand."""

    live: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    policies: dict[str, object] = dataclasses.field(default_factory=dict)
    agents: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def copy(self) -> State:
        return State(dict(self.live), dict(self.policies), dict(self.agents))


TENANTS = ("acme", "other")
POLICIES = (KeepForever(), MaxAge(days=3), MinReward(0.5), MaxEpisodes(3))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(TENANTS), st.integers(1, 3)),
        st.tuples(st.just("forget"), st.sampled_from(TENANTS), st.integers(0, 20)),
        st.tuples(st.just("policy"), st.sampled_from(TENANTS), st.sampled_from(POLICIES)),
        st.tuples(st.just("retain"), st.sampled_from(TENANTS), st.none()),
        st.tuples(st.just("spawn"), st.sampled_from(TENANTS), st.sampled_from("ab")),
        st.tuples(st.just("end"), st.sampled_from(TENANTS), st.sampled_from("ab")),
        st.tuples(st.just("erase"), st.sampled_from(TENANTS), st.integers(0, 20)),
    ),
    min_size=4,
    max_size=16,
)


def play(hub: Hub, state: State, step: tuple, number: int, erased: set) -> None:
    """Do a step with the hub, and by hand."""
    kind, tenant, what = step
    known = tenant in hub._tenants
    own = [uid for each, uid in state.live if each == tenant]
    if kind == "put":
        batch = [f"{number}-{n}" for n in range(what)]
        fields = {"tenant_id": tenant, "agent_id": "x", "task": "t", "input": "i", "reward": number % 10 / 10}
        hub.put([Episode(**fields, output=f"o{uid}", id=uid, sources=(uid, "s")) for uid in batch])
        state.live.update({(tenant, uid): f"o{uid}" for uid in batch})
    elif kind == "forget" and own:
        hub.forget(tenant, [own[what % len(own)]], reason="why")
        state.live.pop((tenant, own[what % len(own)]))
    elif kind == "erase" and own:
        hub.erase_episodes(tenant, [own[what % len(own)]], reason="why")
        erased.add((tenant, own[what % len(own)]))
        state.live.pop((tenant, own[what % len(own)]))
    elif kind == "policy":
        hub.set_retention(tenant, what)
        state.policies[tenant] = what
    elif kind == "retain" and known:
        hub.apply_retention(tenant)
        left = {(tenant, uid) for uid in hub.episodes(tenant)["id"]}
        state.live = {key: out for key, out in state.live.items() if key[0] != tenant or key in left}
    elif kind == "spawn" and state.agents.get((tenant, what)) != "alive":
        hub.spawn_agent(tenant, what, lifetime=1e6)
        state.agents[tenant, what] = "alive"
    elif kind == "end" and state.agents.get((tenant, what)) == "alive":
        hub.sync_agent(tenant, what, after=0, ending="destroyed")
        state.agents[tenant, what] = "destroyed"


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@settings(max_examples=15, deadline=None)
@given(steps=steps, data=st.data())
def test_a_fork_is_what_a_replay_says(kept, steps, data):
    with tempfile.TemporaryDirectory() as name:
        folder, clock, state, erased = Path(name), SimulatedClock(START), State(), set()
        keep = timedelta(days=1_000 if kept else 0)
        with Hub(folder / "hub", clock, EMBEDDER, "off", keep_forgotten=keep) as hub:
            states = {hub.info().seq: state.copy()}
            for number, step in enumerate(steps):
                play(hub, state, step, number, erased)
                states[hub.info().seq] = state.copy()
                clock.advance(hours=7)
            for at in data.draw(st.lists(st.sampled_from(sorted(states)), min_size=1, max_size=3, unique=True)):
                with hub.fork(folder / str(at), at=at) as fork:
                    check(hub, fork, at, states[at], erased, set(state.live) if not kept else None)


def check(hub: Hub, fork: Hub, at: int, state: State, erased: set, left: set | None) -> None:
    assert fork.verify().ok, fork.verify()
    assert fork.info().hub_id != hub.info().hub_id
    rows = fork.episodes().to_dicts()
    held = {(row["tenant_id"], row["id"]): row["output"] for row in rows}
    there = state.live.keys() - erased
    assert held == {key: state.live[key] for key in (there if left is None else there & left)}
    # The log up to then is the same, and the rest tells what was not kept.
    assert fork.read_changes(limit=at) == hub.read_changes(limit=at)
    told = {(each.tenant_id, each.subject) for each in fork.read_changes(at) if each.kind == "episode_forgotten"}
    assert told == there - held.keys()
    known = {row["tenant_id"] for row in fork.tenants().to_dicts()}
    for tenant, policy in state.policies.items():
        assert fork.retention(tenant) == policy
    assert known == {each.tenant_id for each in hub.read_changes(limit=at) if each.kind == "tenant_created"}
    last = {(row["tenant_id"], row["agent_id"]): row["status"] for row in fork.agents().to_dicts()}
    assert last == {key: "crashed" if status == "alive" else status for key, status in state.agents.items()}


def test_a_fork_is_independent(hub, tmp_path, episode):
    hub.put([episode(n, id=f"x{n}") for n in range(3)])
    hub.spawn_agent("acme", "a", lifetime=60)
    with hub.fork(tmp_path / "fork") as fork:
        assert [memory.id for memory in fork.recall("acme", "task 1\ninput 1", k=1)] == ["x1"]
        fork.forget("acme", ["x1"], reason="only here")
        fork.put(episode(7, id="new"))
        assert (ids(hub), ids(fork)) == (["x0", "x1", "x2"], ["new", "x0", "x2"])
        assert (fork.info().epoch, fork.stats().agents_alive, hub.stats().agents_alive) == (1, 0, 1)
        forked = next(each for each in fork.read_changes(limit=None) if each.kind == "hub_forked")
        assert hub.info().hub_id in forked.reason
        assert forked.subject == fork.info().hub_id
        fork.spawn_agent("acme", "a", lifetime=60)
    with Hub(tmp_path / "fork") as again:
        assert again.keep_forgotten == timedelta(days=30)


def test_what_if_we_had_kept_everything_since_then(hub, tmp_path, clock, episode):
    generations = []
    for generation in range(6):
        hub.put([episode(n, id=f"g{generation}-{n}") for n in range(4)])
        hub.set_retention("acme", MaxEpisodes(6))
        hub.apply_retention()
        generations.append(clock.now())
        clock.advance(days=1)
    with hub.fork(tmp_path / "fork", at=datetime(2026, 1, 3, 12)) as fork:
        assert fork.stats().episodes == 6
        assert {each[:2] for each in ids(fork)} == {"g1", "g2"}
        fork.set_retention("acme", KeepForever())
    assert hub.stats().episodes == 6


def forget_two(hub, clock, episode) -> int:
    """Three episodes, of which one is forgotten, and twenty days later another; the seq before."""
    hub.put([episode(n, id=f"x{n}") for n in range(3)])
    seq: int = hub.info().seq
    hub.forget("acme", ["x0"], reason="first")
    clock.advance(days=20)
    hub.forget("acme", ["x1"], reason="second")
    return seq


def test_forgotten_content_is_kept_as_long_as_it_was_said_and_not_longer(hub, tmp_path, clock, episode):
    seq = forget_two(hub, clock, episode)
    assert (hub.stats().forgotten, hub.stats().kept) == (2, 2)
    # What is kept is out of everyone's reach.
    assert [each.id for each in hub.recall("acme", "task", k=5)] == ["x2"]
    clock.advance(days=15)
    assert hub.purge_forgotten() == 1
    assert hub.stats().kept == 1
    with hub.fork(tmp_path / "one", at=seq) as fork:
        assert ids(fork) == ["x1", "x2"]
    clock.advance(days=16)
    hub.apply_retention()
    assert hub.stats().kept == 0
    with hub.fork(tmp_path / "two", at=seq) as fork:
        assert ids(fork) == ["x2"]
        assert fork.verify().ok
    assert b"input 1" not in (hub.path / "hub.db").read_bytes()


def test_what_was_kept_and_is_not_any_more_is_in_no_later_backup(hub, tmp_path, clock, episode):
    seq = forget_two(hub, clock, episode)
    hub.backup(tmp_path / "full")
    clock.advance(days=15)
    hub.put(episode(3, id="x3"))
    assert hub.purge_forgotten() == 1
    hub.backup(tmp_path / "more", base=tmp_path / "full")
    hub.forget("acme", ["x3"], reason="third")
    hub.backup(tmp_path / "most", base=tmp_path / "more")
    for name, kept in [("full", 2), ("more", 1), ("most", 2)]:
        with Hub.restore(tmp_path / name, tmp_path / f"of-{name}", clock=clock) as restored:
            assert restored.stats().kept == kept
    with Hub.restore(tmp_path / "most", tmp_path / "then", clock=clock, at=seq) as then:
        assert ids(then) == ["x1", "x2"]
    for file in (tmp_path / "of-most").iterdir():
        assert b"input 0" not in file.read_bytes()
    assert b"input 1" in (tmp_path / "of-most" / "hub.db").read_bytes()


def test_a_hub_remembers_how_long_it_keeps_and_can_be_told_otherwise(tmp_path, episode):
    with Hub(tmp_path / "hub", embedder=EMBEDDER) as hub:
        assert hub.keep_forgotten == timedelta(0)
        hub.put(episode(1, id="x"))
        hub.forget("acme", ["x"], reason="why")
        assert hub.stats().kept == 0
    Hub(tmp_path / "hub", keep_forgotten=3600).close()
    with Hub(tmp_path / "hub") as hub:
        assert hub.keep_forgotten == timedelta(hours=1)
        hub.put(episode(2, id="y"))
        hub.forget("acme", ["y"], reason="why")
        assert hub.stats().kept == 1
    with Hub(tmp_path / "hub", keep_forgotten=0) as hub:
        assert hub.purge_forgotten() == 1
    for wrong in (-1, timedelta(-1), float("nan"), float("inf"), "long"):
        with pytest.raises(InvalidRequest, match="keep_forgotten"):
            Hub(tmp_path / "hub", keep_forgotten=wrong)


def test_damage_in_the_attic_is_found_and_does_not_come_back(hub, tmp_path, episode):
    hub.put([episode(n, id=f"x{n}") for n in range(2)])
    seq = hub.info().seq
    hub.forget("acme", ["x0", "x1"], reason="why")
    edit(hub, "UPDATE attic SET content = CAST(replace(content, 'input 1', 'input 7') AS BLOB) WHERE uid = 'x1'")
    assert [problem for problem in hub.verify().problems if "attic" in problem and "'x1'" in problem]
    with hub.fork(tmp_path / "fork", at=seq) as fork:
        assert ids(fork) == ["x0"]
        assert fork.verify().ok


def test_what_was_erased_does_not_come_back_by_going_back(hub, tmp_path, episode):
    hub.put([episode(n, id=f"x{n}") for n in range(4)])
    hub.put(episode(5, id="z", tenant_id="other"))
    seq = hub.info().seq
    hub.forget("acme", ["x1"], reason="why")
    hub.erase_episodes("acme", ["x0", "x1"], reason="asked to")
    hub.erase_tenant("other", reason="asked to")
    with hub.fork(tmp_path / "fork", at=seq) as fork:
        assert ids(fork) == ["x2", "x3"]
        assert fork.verify().ok
        assert fork.tenants()["tenant_id"].to_list() == ["acme"]
        with pytest.raises(UnknownTenant):
            fork.recall("other", "task")


def test_moments_that_the_log_does_not_have_and_taken_places_are_refused(hub, tmp_path, episode):
    hub.put(episode(1))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter").touch()
    for wrong in (0, hub.info().seq + 1, datetime(2025, 1, 1), "then", 1.5):
        with pytest.raises(InvalidRequest):
            hub.fork(tmp_path / "fork", at=wrong)
        assert not (tmp_path / "fork").exists()
    for place in (tmp_path / "taken", hub.path):
        with pytest.raises((InvalidRequest, HubLocked)):
            hub.fork(place)
    with hub.fork(tmp_path / "fork", at=1) as fork:
        assert fork.stats().episodes == 0
        assert fork.verify().ok


def test_a_fork_of_a_damaged_log_is_refused(hub, tmp_path, episode):
    hub.put(episode(1))
    edit(hub, "UPDATE changes SET actor = 'forged' WHERE seq = (SELECT max(seq) FROM changes)")
    with pytest.raises(CorruptHub):
        hub.fork(tmp_path / "fork")
    assert not (tmp_path / "fork").exists()
