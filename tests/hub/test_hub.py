"""What a hub keeps, returns, forgets and refuses; agents are in test_agents.py, the order of recall in test_index.py."""

from __future__ import annotations

import contextlib
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedlab import (
    Episode,
    FedlabError,
    Hub,
    HubUnavailable,
    IdConflict,
    InvalidEpisode,
    InvalidRequest,
    InvalidVector,
    MaxAge,
    Random,
    RecallPolicy,
    Reward,
    SimulatedClock,
    UnknownTenant,
)
from fedlab.hub import schema


def contents(hub: Hub) -> tuple:
    """Everything that a refused call must leave as it was."""
    return hub.info().seq, hub.episodes().rows(), hub.agents().rows(), hub.tenants().rows()


# --- put ----------------------------------------------------------------------------------------------------


def test_an_episode_comes_back_as_it_was_put(hub, episode, vector):
    put = episode(
        1,
        vector=vector(1),
        sources=("a", "b"),
        metadata={"z": [1, None, {"é": 2.5}], "n": 2**64 - 1},
        created_at=5,
        expires_at=9,
    )
    hub.put(put)
    assert hub.recall("acme", put.vector, vectors=True)[0].episode == put
    assert hub.recall("acme", put.vector)[0].vector is None


def test_the_hub_fills_in_time_and_vector(hub, episode):
    before = hub.clock.now()
    hub.put(episode(1))
    memory = hub.recall("acme", "task 1\ninput 1", vectors=True)[0]
    assert before <= memory.created_at <= hub.clock.now()
    assert memory.similarity == pytest.approx(1, abs=1e-3)
    assert (memory.vector == hub.embed(["task 1\ninput 1"])[0]).all()


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
json = st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=text.filter(str.strip), input=text, output=text, metadata=st.dictionaries(text, json, max_size=3),
    reward=st.floats(allow_nan=False, allow_infinity=False), created_at=st.integers(0, 253_402_300_799_999),
)  # fmt: skip
@example(task="x", input="", output="", metadata={}, reward=-0.0, created_at=0)
@example(task="x", input="", output="", metadata={"": -0.0}, reward=5e-324, created_at=1)
def test_whatever_can_be_stored_comes_back_and_verifies(hub, **fields):
    put = Episode(tenant_id="t", agent_id="a", vector=np.ones(384), **fields)
    hub.put(put)
    hub.put(put)
    found = [each for each in hub.recall("t", None, 10_000, policy=Random(), vectors=True) if each.id == put.id]
    assert [each.episode for each in found] == [put]
    assert hub.verify().problems == []


def test_the_same_put_again_stores_nothing_twice(hub, episode, vector):
    batch = [episode(n, vector=vector(n) if n % 2 else None) for n in range(6)]
    seq = hub.put(batch)
    before = contents(hub)
    assert hub.put(batch) == hub.put(batch[0]) == seq
    assert contents(hub) == before
    assert hub.put([*batch, episode(7)]) == seq + 1
    assert len(hub.recall("acme", "task", 100)) == 7


def test_the_same_episode_twice_in_one_call_is_stored_once(hub, episode):
    hub.put([episode(1, id="x"), episode(2), episode(1, id="x")])
    assert hub.stats().episodes == 2


OTHER = {
    "task": "other", "input": "other", "output": "other", "reward": 0.123, "agent_id": "agent-2", "created_at": 7,
    "expires_at": 7, "metadata": {"a": 1}, "sources": ("s",), "vector": np.arange(384) + 1.0,
}  # fmt: skip


@pytest.mark.parametrize("field", OTHER)
def test_an_id_with_other_content_is_refused_and_nothing_changes(hub, episode, vector, field):
    hub.put([episode(1, id="x", vector=vector(1)), episode(2)])
    before = contents(hub)
    with pytest.raises(IdConflict) as caught:
        hub.put(
            [episode(3), episode(1, id="x", **{"vector": vector(1), field: OTHER[field]}), episode(4, tenant_id="new")]
        )
    assert (caught.value.ids, caught.value.forgotten) == (["x"], False)
    assert contents(hub) == before
    assert len(hub.recall("acme", vector(1), 100)) == 2


def test_one_id_with_two_contents_in_one_call_is_refused(hub, episode):
    with pytest.raises(IdConflict):
        hub.put([episode(1, id="x"), episode(2, id="x")])
    with pytest.raises(UnknownTenant):
        hub.recall("acme", "task")


def test_a_resend_does_not_bring_back_what_was_forgotten(hub, episode):
    gone = episode(1, id="x")
    hub.put([gone, episode(2)])
    assert hub.forget("acme", ["x"], reason="wrong") == 1
    before = contents(hub)
    for resent in (gone, episode(9, id="x")):
        with pytest.raises(IdConflict) as caught:
            hub.put([episode(3), resent])
        assert (caught.value.ids, caught.value.forgotten) == (["x"], True)
    assert contents(hub) == before
    assert [each.input for each in hub.recall("acme", "task 1")] == ["input 2"]


def test_tenants_with_the_same_ids_do_not_touch_each_other(hub, episode, vector):
    for tenant in ("one", "two"):
        hub.put(episode(1, tenant_id=tenant, id="x", output=tenant, vector=vector(1)))
    assert hub.forget("one", ["x"], reason="r") == 1
    assert hub.recall("one", vector(1)) == []
    assert [each.output for each in hub.recall("two", vector(1))] == ["two"]
    assert hub.episodes("two")["tenant_id"].unique().to_list() == ["two"]
    assert {change.tenant_id for change in hub.read_changes(tenant_id="two")} == {"two"}


def test_one_put_of_several_tenants_is_all_or_nothing(hub, episode):
    hub.put(episode(1, id="x"))
    with pytest.raises(IdConflict):
        hub.put([episode(5, tenant_id="two"), episode(2, id="x")])
    assert hub.tenants()["tenant_id"].to_list() == ["acme"]


def test_every_thread_reads_what_another_was_told_is_written(hub, episode, vector):
    def write_then_read(number: int) -> bool:
        tenant = f"tenant-{number % 3}"
        mine = episode(number, tenant_id=tenant, vector=vector(number))
        hub.put(mine)
        with ThreadPoolExecutor(1) as other:
            return other.submit(lambda: hub.recall(tenant, vector(number), 1)).result()[0].id == mine.id

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(write_then_read, range(200)))


# --- what is refused ----------------------------------------------------------------------------------------

BAD_CALLS = {
    "put nothing known": lambda hub: hub.put(None),
    "put a number": lambda hub: hub.put(5),
    "put a dict": lambda hub: hub.put({"task": "x"}),
    "put text": lambda hub: hub.put("episode"),
    "put a mixture": lambda hub: hub.put([Episode(tenant_id="t", agent_id="a", task="x", input="", output="", reward=0), 5]),
    "actor surrogate": lambda hub: hub.put(Episode(tenant_id="t", agent_id="a", task="x", input="", output="", reward=0), actor="\ud800"),
    "actor number": lambda hub: hub.put(Episode(tenant_id="t", agent_id="a", task="x", input="", output="", reward=0), actor=5),
    "k 0": lambda hub: hub.recall("acme", "x", 0),
    "k -1": lambda hub: hub.recall("acme", "x", -1),
    "k 1.5": lambda hub: hub.recall("acme", "x", 1.5),
    "k many": lambda hub: hub.recall("acme", "x", 10_001),
    "k true": lambda hub: hub.recall("acme", "x", True),
    "k text": lambda hub: hub.recall("acme", "x", "10"),
    "no query": lambda hub: hub.recall("acme", None),
    "query number": lambda hub: hub.recall("acme", 5),
    "query surrogate": lambda hub: hub.recall("acme", "\ud800"),
    "query 385": lambda hub: hub.recall("acme", [1.0] * 385),
    "query NaN": lambda hub: hub.recall("acme", [float("nan")] * 384),
    "query zero": lambda hub: hub.recall("acme", [0.0] * 384),
    "query texts": lambda hub: hub.recall("acme", ["a"] * 384),
    "min_reward NaN": lambda hub: hub.recall("acme", "x", min_reward=float("nan")),
    "min_reward text": lambda hub: hub.recall("acme", "x", min_reward="0.9"),
    "min_reward huge": lambda hub: hub.recall("acme", "x", min_reward=10**400),
    "since text": lambda hub: hub.recall("acme", "x", since="2026-01-01"),
    "since seconds": lambda hub: hub.recall("acme", "x", since=1.7e9),
    "task number": lambda hub: hub.recall("acme", "x", task=5),
    "policy text": lambda hub: hub.recall("acme", "x", policy="best"),
    "frame of a surrogate": lambda hub: hub.episodes("acme", task="\ud800"),
    "frame limit": lambda hub: hub.episodes("acme", limit="x"),
    "frame limit -1": lambda hub: hub.episodes("acme", limit=-1),
    "frame after": lambda hub: hub.episodes("acme", after="x"),
    "changes after": lambda hub: hub.changes("x"),
    "changes limit": lambda hub: hub.changes(limit=-1),
    "forget text": lambda hub: hub.forget("acme", "x", reason="r"),
    "forget None": lambda hub: hub.forget("acme", None, reason="r"),
    "forget numbers": lambda hub: hub.forget("acme", [5], reason="r"),
    "no reason": lambda hub: hub.forget("acme", ["x"], reason=" "),
    "reason surrogate": lambda hub: hub.forget("acme", [hub.episodes("acme")["id"][0]], reason="\ud800"),
    "reason None": lambda hub: hub.forget("acme", ["x"], reason=None),
    "retention text": lambda hub: hub.set_retention("acme", "MaxAge"),
    "lifetime 0": lambda hub: hub.spawn_agent("acme", "a", lifetime=0),
    "lifetime NaN": lambda hub: hub.spawn_agent("acme", "a", lifetime=float("nan")),
    "lifetime inf": lambda hub: hub.spawn_agent("acme", "a", lifetime=float("inf")),
    "lifetime text": lambda hub: hub.spawn_agent("acme", "a", lifetime="5"),
    "sync limit": lambda hub: hub.sync_agent("acme", "a", after=0, limit=-1),
    "sync after": lambda hub: hub.sync_agent("acme", "a", after="x"),
    "sync of another tenant": lambda hub: hub.sync_agent("acme", "a", [Episode(tenant_id="t", agent_id="a", task="x", input="", output="", reward=0)], after=0),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_call_without_sense_is_refused_and_changes_nothing(hub, episode, name):
    hub.put([episode(n) for n in range(3)])
    before = contents(hub)
    with pytest.raises(InvalidRequest):
        BAD_CALLS[name](hub)
    assert contents(hub) == before
    assert hub.verify().problems == []


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0", "x" * 10_000, "аcme", "\ud800", None, 5])
def test_a_tenant_name_that_can_not_be_is_refused_everywhere(hub, name):
    for call in (
        lambda: hub.recall(name, "x"),
        lambda: hub.spawn_agent(name, "a", lifetime=5),
        lambda: hub.spawn_agent("acme", name, lifetime=5),
        lambda: hub.set_retention(name, MaxAge(days=1)),
        lambda: hub.forget(name, ["x"], reason="r"),
    ):
        with pytest.raises(InvalidRequest):
            call()
    assert hub.tenants().height == 0


NEEDS_A_TENANT = {
    "recall": lambda hub: hub.recall("acne", "x"),
    "forget": lambda hub: hub.forget("acne", ["x"], reason="r"),
    "episodes": lambda hub: hub.episodes("acne"),
    "agents": lambda hub: hub.agents("acne"),
    "changes": lambda hub: hub.changes(tenant_id="acne"),
    "stats": lambda hub: hub.stats("acne"),
    "retention": lambda hub: hub.retention("acne"),
    "preview": lambda hub: hub.preview_retention("acne", MaxAge(days=1)),
    "apply": lambda hub: hub.apply_retention("acne"),
    "sync": lambda hub: hub.sync_agent("acne", "a", after=0),
}


@pytest.mark.parametrize("name", NEEDS_A_TENANT)
def test_a_mistyped_tenant_is_an_error_and_never_an_empty_answer(hub, episode, name):
    hub.put(episode(1))
    with pytest.raises(UnknownTenant, match="acne"):
        NEEDS_A_TENANT[name](hub)
    assert hub.tenants()["tenant_id"].to_list() == ["acme"]


def test_a_tenant_without_episodes_has_no_memories(hub):
    hub.spawn_agent("acme", "a", lifetime=5)
    assert hub.recall("acme", "x") == []


def test_a_vector_of_another_dimension_is_refused(hub, episode):
    with pytest.raises(InvalidVector, match="385"):
        hub.put([episode(1), episode(2, vector=[1.0] * 385)])
    assert hub.stats().episodes == 0


def test_rewards_near_the_largest_float_are_ranked_and_none_is_lost(hub, episode):
    hub.put([episode(n, reward=(n - 1) * 1.7e308) for n in range(3)])
    found = hub.recall("acme", "x", policy=Reward(10) + RecallPolicy(similarity=1))
    assert [memory.reward for memory in found] == [1.7e308, 0, -1.7e308]


def test_metadata_that_is_too_deep_to_read_is_refused_when_it_is_put(hub, episode):
    depths = (20, 200, 500, 900)
    with contextlib.suppress(InvalidEpisode):
        for depth in depths:
            hub.put(episode(depth, metadata=functools.reduce(lambda inner, _: {"a": inner}, range(depth), {})))

    def recall(frames: int) -> int:
        return recall(frames - 1) if frames else len(hub.recall("acme", "x"))

    assert recall(300) == hub.stats().episodes > 0


# --- forget -------------------------------------------------------------------------------------------------


def test_forgotten_is_gone_for_good_and_the_log_says_why(tmp_path, episode, vector):
    with Hub(tmp_path, embedder="hashing") as hub:
        batch = [episode(n, vector=vector(n)) for n in range(1200)]
        ids = [each.id for each in batch]
        hub.put(batch)
        assert hub.forget("acme", [*ids[:700], ids[0], "never-there"], reason="too old", actor="me") == 700
        assert hub.forget("acme", ids[:700], reason="again") == 0
        assert {each.id for each in hub.recall("acme", vector(0), 1200)} == set(ids[700:])
    with Hub(tmp_path) as hub:
        assert {each.id for each in hub.recall("acme", vector(0), 1200)} == set(ids[700:])
        log = hub.read_changes(kind="episode_forgotten", limit=None)
        assert sorted((each.subject, each.reason, each.actor) for each in log) == sorted(
            (each, "too old", "me") for each in ids[:700]
        )
        assert hub.stats().forgotten == 700
        assert hub.verify().problems == []


def test_ids_may_come_from_any_iterable(hub, episode):
    hub.put([episode(n, id=f"x{n}") for n in range(6)])
    assert hub.forget("acme", {"x0", "x1"}, reason="r") == 2
    assert hub.forget("acme", hub.episodes("acme")["id"].head(2), reason="r") == 2
    assert hub.forget("acme", (f"x{n}" for n in (4, 5)), reason="r") == 2


def test_the_space_of_forgotten_episodes_is_used_again(hub, episode, vector):
    sizes = []
    for round_ in range(3):
        batch = [episode(n, output="x" * 2_000, vector=vector(n)) for n in range(500)]
        hub.put(batch)
        hub.forget("acme", [each.id for each in batch], reason=f"round {round_}")
        sizes.append((hub.path / "hub.db").stat().st_size + (hub.path / "hub.db-wal").stat().st_size)
    assert sizes[2] < 1.6 * sizes[0]


# --- frames and the rest ------------------------------------------------------------------------------------


def test_frames_have_their_columns_and_types_also_when_empty(hub, episode):
    columns = {name: getattr(hub, name)().schema for name in ("episodes", "agents", "tenants", "changes")}
    document = [
        "tenant_id",
        "agent_id",
        "session_id",
        "task",
        "input",
        "output",
        "reward",
        "created_at",
        "expires_at",
        "metadata",
        "id",
        "seq",
    ]
    assert set(columns["episodes"]) == set(document)
    hub.put(episode(1, metadata={"a": 1}))
    hub.spawn_agent("acme", "a", lifetime=5)
    assert {name: getattr(hub, name)().schema for name in columns} == columns
    assert hub.episodes()["metadata"].to_list() == ['{"a":1}']


def test_a_frame_can_be_filtered_and_read_in_pages(hub, episode):
    hub.put([episode(n, created_at=n, agent_id=f"a{n % 3}", tenant_id=f"t{n % 2}") for n in range(20)])
    assert hub.episodes(since=5, until=9)["input"].to_list() == [f"input {n}" for n in range(5, 9)]
    assert hub.episodes("t0", agent_id="a1", min_reward=0.4)["input"].to_list() == ["input 4", "input 16"]
    assert hub.episodes(task="task 3").height == 4
    pages, after = [], 0
    while (page := hub.episodes(after=after, limit=7)).height:
        pages += page["input"].to_list()
        after = page["seq"][-1]
    assert pages == [f"input {n}" for n in range(20)]


def test_the_numbers_count_a_hub_and_one_tenant(hub, episode):
    hub.put([episode(n, tenant_id=tenant, id=f"x{n}") for tenant in ("one", "two") for n in range(3)])
    hub.forget("one", ["x0"], reason="r")
    hub.spawn_agent("two", "a", lifetime=5)
    whole, one = hub.stats(), hub.stats("one")
    assert (whole.tenants, whole.episodes, whole.forgotten, whole.agents, whole.agents_alive) == (2, 5, 1, 1, 1)
    assert (one.tenants, one.episodes, one.forgotten, one.agents, one.agents_alive) == (1, 2, 1, 0, 0)
    assert whole.bytes > 0
    assert whole.seq == hub.info().seq == hub.changes()["seq"].max()


def test_the_clock_gives_every_change_its_time(tmp_path, episode):
    clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
    with Hub(":memory:", clock, "hashing") as hub:
        for _ in range(3):
            hub.put(episode(1))
            clock.advance(days=10)
        days = [(each - hub.changes()["at"][0]) // 86_400_000 for each in hub.episodes()["created_at"]]
        assert days == [0, 10, 20]


def test_a_closed_hub_answers_nothing_and_closes_again(tmp_path, episode):
    hub = Hub(tmp_path, embedder="hashing")
    hub.put(episode(1, id="x"))
    hub.close()
    hub.close()
    calls = {
        **{name: call for name, call in NEEDS_A_TENANT.items()},
        "put": lambda hub: hub.put(episode(1)),
        "put_soon": lambda hub: hub.put_soon(episode(1)).result(),
        "embed": lambda hub: hub.embed(["x"]),
        "spawn": lambda hub: hub.spawn_agent("acme", "a", lifetime=5),
        "set_retention": lambda hub: hub.set_retention("acme", MaxAge(days=1)),
        **{name: lambda hub, name=name: getattr(hub, name)() for name in ["tenants", "info", "verify", "snapshot", "expire_leases"]},
        "release": lambda hub: hub.release_agent("acme", "a"),
        "on_commit": lambda hub: hub.on_commit(print),
    }  # fmt: skip
    answered = []
    for name, call in calls.items():
        try:
            call(hub)
            answered.append(name)
        except HubUnavailable:
            pass
    assert answered == []
    assert "closed" in repr(hub)


def test_closing_under_load_ends_calls_well_or_with_hub_unavailable(tmp_path, episode, vector):
    hub = Hub(tmp_path, embedder="hashing")
    acknowledged, odd, started = [], [], threading.Barrier(9)

    def work(number: int) -> None:
        for turn in range(10_000):
            try:
                put = episode(turn, agent_id=f"a{number}", vector=vector(number))
                hub.put(put)
                acknowledged.append(put.id)
                assert hub.recall("acme", vector(number), 1)
            except HubUnavailable:
                return
            except Exception as error:
                odd.append(error)
                return
            finally:
                if turn == 20:
                    started.wait(20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    started.wait(20)
    hub.close()
    for thread in threads:
        thread.join(20)
    assert odd == []
    with Hub(tmp_path) as hub:
        assert set(acknowledged) <= set(hub.episodes()["id"])
        assert hub.verify().problems == []


@pytest.mark.parametrize(
    "options",
    [{"lease": 0}, {"lease": float("nan")}, {"lease": float("inf")}, {"lease": "5"}, {"max_agents_per_tenant": 0}],
)
def test_a_limit_that_is_none_is_refused_by_name(options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        Hub(":memory:", embedder="hashing", **options)


def test_a_hub_tells_its_state(hub, episode):
    hub.put(episode(1))
    assert "1 episode of 1 tenant" in repr(hub)
    assert issubclass(HubUnavailable, FedlabError)
    info = hub.info()
    assert (info.embedder, info.dimension, info.epoch, len(info.hub_id)) == ("hashing-384", 384, 1, 36)
    assert info.schema == schema.VERSION
    assert 0 < info.opened_at <= hub.read_changes(limit=None)[-1].at
