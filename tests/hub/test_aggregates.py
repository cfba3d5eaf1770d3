"""Aggregates are what a reader of the whole log, or of all episodes, would count."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedlab import Episode, Hub, InvalidRequest, MinReward, SimulatedClock, UnknownTenant
from fedlab.hub import columns, growth

Make = Callable[..., Episode]
START = datetime(2026, 1, 1, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)
DAY_MS = 86_400_000
HOSTILE = [
    "<script>alert(1)</script>",
    "'; DROP TABLE episodes; --",
    "\U0001f600 \u202e مرحبا",
    '{"generation": 7}',
    "x" * 5_000,
]


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def hub(tmp_path: Path, clock: SimulatedClock) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", embedder="hashing", clock=clock) as hub:
        yield hub


def total(frame: pl.DataFrame, name: str) -> int:
    return int(frame[name].sum())


# --- growth ---------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "forget", "ask"]),
        st.sampled_from(["acme", "rival"]),
        st.integers(0, 4),
        st.integers(0, 5_000),
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(1, 12), st.sampled_from([2, columns.CHUNK]))
def test_growth_is_a_replay_of_the_log(steps: list[tuple[str, str, int, int]], bins: int, chunk: int):
    clock = SimulatedClock(START)
    live: dict[str, list[str]] = {"acme": [], "rival": []}
    with pytest.MonkeyPatch.context() as patch, Hub(":memory:", embedder="hashing", clock=clock) as hub:
        patch.setattr(columns, "CHUNK", chunk)
        for what, tenant, number, pause in steps:
            if what == "put":
                made = [_episode(tenant, f"agent-{n}", reward=n) for n in range(number)]
                hub.put(made)
                live[tenant] += [each.id for each in made]
            elif what == "forget" and live[tenant]:
                hub.forget(tenant, [live[tenant].pop(0)], reason="test")
            elif what == "ask":
                hub.growth()
            clock.advance(milliseconds=pause)
        frame = hub.growth(bins=bins)
        _check_against_the_log(frame, hub.changes(), bins)


def _episode(tenant: str, agent: str = "agent-1", *, reward: float = 0, **more: Any) -> Episode:
    return Episode(
        tenant_id=tenant, agent_id=agent, task="a task", input="", output="", reward=reward, vector=np.ones(384), **more
    )


def _check_against_the_log(frame: pl.DataFrame, log: pl.DataFrame, bins: int) -> None:
    events = log.filter(pl.col("kind").is_in(["episode_stored", "episode_forgotten"]))
    if events.is_empty():
        assert frame.is_empty()
        return
    starts = frame["time"].unique().sort().cast(pl.Int64).to_list()
    assert len(starts) <= bins
    width = starts[1] - starts[0] if len(starts) > 1 else events["at"].max() + 1 - starts[0]
    assert starts == [events["at"].min() + n * width for n in range(len(starts))]
    for row in frame.iter_rows(named=True):
        own = events.filter(pl.col("tenant_id") == row["tenant_id"])
        low = int(row["time"].timestamp() * 1000)
        for name in ("stored", "forgotten"):
            of_kind = own.filter(pl.col("kind") == f"episode_{name}", pl.col("at").is_between(low, low + width - 1))
            assert row[name] == of_kind.height
        until = own.filter(pl.col("at") < low + width)["kind"].to_list()
        assert row["live"] == until.count("episode_stored") - until.count("episode_forgotten")
    assert frame.height == len(starts) * events["tenant_id"].n_unique()


def test_growth_begins_with_what_was_there_before_and_ends_where_it_is_told_to(
    hub: Hub, clock: SimulatedClock, episode: Make
):
    for day in range(10):
        hub.put([episode(n) for n in range(day + 1)])
        clock.advance(days=1)
    frame = hub.growth("acme", since=datetime(2026, 1, 4, tzinfo=UTC), until=datetime(2026, 1, 7), bins=3)
    assert frame["time"].to_list() == [datetime(2026, 1, day, tzinfo=UTC) for day in (4, 5, 6)]
    assert frame["stored"].to_list() == [4, 5, 6]
    assert frame["live"].to_list() == [10, 15, 21]
    later = hub.growth(since=datetime(2027, 1, 1), until=datetime(2027, 1, 2), bins=2)
    assert later["live"].to_list() == [55, 55]
    assert hub.growth(since=datetime(2027, 1, 1)).select("stored", "forgotten", "live").rows() == [(0, 0, 55)]
    assert hub.growth(until=datetime(2025, 1, 1)).is_empty()


def test_growth_of_agents_tells_the_largest_apart_and_counts_the_rest_together(hub: Hub, episode: Make):
    for agent, number in (("a", 5), ("b", 3), ("c", 1), ("d", 1)):
        hub.sync_agent("acme", agent, [episode(n, agent_id=agent) for n in range(number)], after=0) if hub.spawn_agent(
            "acme", agent, lifetime=60
        ) else None
    gone = hub.episodes("acme", agent_id="b")["id"][0]
    hub.forget("acme", [gone], reason="test")
    frame = hub.growth("acme", by="agent", top=2, bins=1)
    assert frame["agent_id"].to_list() == ["a", "b", None]
    assert frame["stored"].to_list() == [5, 3, 2]
    assert frame["live"].to_list() == [5, 2, 2]


def test_growth_of_generations_has_null_for_what_has_none_or_is_forgotten(hub: Hub, episode: Make):
    kinds: list[Any] = [0, 0, 1, True, "1", 1.0, None, [1], 2**63, {"generation": 3}]
    made = [episode(n, metadata={"generation": kind}) for n, kind in enumerate(kinds)]
    hub.put([*made, episode(20), episode(21, metadata={"x": {"generation": 4}})])
    frame = hub.growth(by="generation", bins=1)
    assert dict(zip(frame["generation"], frame["stored"], strict=True)) == {0: 2, 1: 1, None: 9}
    hub.forget("acme", [made[0].id], reason="test")
    frame = hub.growth(by="generation", bins=1)
    assert dict(zip(frame["generation"], frame["live"], strict=True)) == {0: 1, 1: 1, None: 9}
    assert dict(zip(frame["generation"], frame["forgotten"], strict=True)) == {0: 0, 1: 0, None: 1}


def test_the_bytes_of_growth_are_those_that_a_policy_counts(hub: Hub, episode: Make):
    hub.put([episode(n, output="ü" * n, metadata={"n": n}) for n in range(30)])
    hub.put(episode(31, tenant_id="rival"))
    assert total(hub.growth("acme"), "bytes") == hub.preview_retention("acme", MinReward(5)).bytes


def test_what_is_erased_is_counted_and_no_longer_named(hub: Hub, clock: SimulatedClock, episode: Make):
    hub.put([episode(n, agent_id=f"a{n % 2}") for n in range(10)] + [episode(n, tenant_id="rival") for n in range(4)])
    before = hub.growth("acme")
    clock.advance(days=1)
    hub.erase_agent("acme", "a0", reason="asked to")
    after = hub.growth("acme")
    assert total(before, "erased") == 0
    assert (total(after, "stored"), total(after, "erased"), after["live"][-1]) == (10, 5, 5)
    assert after.filter(pl.col("erased") > 0)["time"][0] > before["time"][-1]
    hub.erase_tenant("rival", reason="asked to")
    frame = hub.growth()
    assert set(frame["tenant_id"]) == {"acme", None}
    assert frame.filter(pl.col("tenant_id").is_null())["erased"].sum() == 4
    assert total(hub.growth("acme"), "erased") == 5
    assert set(hub.rewards(by="agent")["agent_id"]) == {"a1"}


def test_what_was_forgotten_is_counted_by_reason(hub: Hub, clock: SimulatedClock, episode: Make):
    hub.put([episode(n, id=f"e{n}", reward=n) for n in range(10)])
    hub.put([episode(n, tenant_id="rival", reward=n) for n in range(10)])
    assert hub.forgetting().is_empty()
    clock.advance(days=1)
    hub.forget("acme", ["e9"], reason="<b>wrong</b>")
    hub.set_retention("acme", MinReward(3))
    hub.apply_retention()
    clock.advance(days=1)
    hub.set_retention("rival", MinReward(1))
    hub.apply_retention()
    frame = hub.forgetting(since=START, until=datetime(2026, 1, 4), bins=3)
    reasons = hub.changes(kind="episode_forgotten")
    assert frame.drop("time").rows() == [
        ("acme", "<b>wrong</b>", 1, START_MS + DAY_MS),
        ("acme", reasons["reason"][1], 3, START_MS + DAY_MS),
        ("rival", reasons["reason"][-1], 1, START_MS + 2 * DAY_MS),
    ]
    assert frame["time"].to_list() == [datetime(2026, 1, day, tzinfo=UTC) for day in (2, 2, 3)]
    assert hub.forgetting("acme", until=datetime(2026, 1, 2, tzinfo=UTC)).is_empty()
    hub.erase_tenant("rival", reason="asked to")
    assert set(hub.forgetting()["tenant_id"]) == {"acme"}


# --- rewards --------------------------------------------------------------------------------------------------------

rewards = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])
groups = st.lists(
    st.tuples(
        st.sampled_from(["acme", "rival"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["t1", *HOSTILE[:4]]),
        st.none() | st.integers(0, 2),
        rewards,
    ),
    max_size=30,
)
by = st.lists(st.sampled_from(["tenant", "task", "agent", "generation", "time"]), min_size=1, unique=True)
NAMES = {"tenant": "tenant_id", "agent": "agent_id"}


@settings(max_examples=40, deadline=None)
@example([("acme", "a", "t1", None, each) for each in (sys.float_info.max, -sys.float_info.max)], ["tenant"], 3)
@given(groups, by, st.integers(1, 10))
def test_rewards_are_a_group_by_over_all_episodes(made: list[Any], by: list[str], bins: int):
    clock = SimulatedClock(START)
    with Hub(":memory:", embedder="hashing", clock=clock) as hub:
        for tenant, agent, task, generation, reward in made:
            metadata = {} if generation is None else {"generation": generation}
            hub.put(
                Episode(tenant_id=tenant, agent_id=agent, task=task, input="", output="", reward=reward,
                        metadata=metadata, vector=np.ones(384))
            )  # fmt: skip
            clock.advance(seconds=1)
        every = hub.episodes()
        every = every.with_columns(generation=pl.col("metadata").str.json_path_match("$.generation").cast(pl.Int64))
        summary, histogram = hub.reward_summary(by=by, periods=3), hub.rewards(by=by, bins=bins, periods=3)
    keys = [NAMES.get(each, each) for each in by]
    if every.is_empty():
        assert summary.is_empty()
        assert histogram.is_empty()
        return
    first, last = every["created_at"].min(), every["created_at"].max()
    width = -(-(last + 1 - first) // 3)
    time = ((pl.col("created_at") - first) // width * width + first).cast(pl.Datetime("ms", "UTC"))
    every = every.with_columns(time=time)
    assert histogram["count"].sum() == every.height
    assert histogram["bin_low"].min() <= every["reward"].min()
    edges = [*histogram["bin_low"][:bins], histogram["bin_high"][bins - 1]]
    for key, own in every.group_by(keys):
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in zip(keys, key, strict=True)]
        (row,) = summary.filter(same).iter_rows(named=True)
        values = own["reward"].to_numpy()
        assert row["n"] == len(values)
        assert (row["min"], row["max"]) == (values.min(), values.max())
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(mean := values.mean()):
                assert row["mean"] == pytest.approx(mean)
                if np.abs(values).max() < 1e150:
                    assert row["median"] == pytest.approx(np.median(values))
                    assert row["q25"] == pytest.approx(np.quantile(values, 0.25))
        expected, _ = np.histogram(values, edges)
        assert histogram.filter(same)["count"].to_list() == expected.tolist()
    assert summary.height == every.select(keys).n_unique()


def test_rewards_take_the_filters_of_a_recall(hub: Hub, clock: SimulatedClock, episode: Make):
    for n in range(40):
        hub.put(episode(n, agent_id=f"a{n % 2}"))
        clock.advance(seconds=1)
    filters: dict[str, Any]
    for filters in (
        {"min_reward": 0.5},
        {"task": "task 3"},
        {"agent_id": "a1", "since": START_MS + 5_000},
        {"until": START_MS + 9_500},
        {"task": "no such task"},
    ):
        kept = hub.episodes("acme", **filters)["reward"]
        frame = hub.rewards("acme", bins=5, **filters)
        assert frame["count"].sum() == len(kept)
        assert hub.reward_summary("acme", **filters)["n"].sum() == len(kept)


def test_a_task_is_known_by_its_beginning_and_nothing_in_it_is_understood(hub: Hub, episode: Make):
    hub.put([episode(n, task=task) for n, task in enumerate(HOSTILE)])
    assert set(hub.reward_summary(by="task")["task"]) == {task[:200] for task in HOSTILE}
    for task in HOSTILE:
        assert hub.reward_summary(by="task", task=task)["n"].to_list() == [1]
    assert hub.reward_summary(by="generation")["generation"].to_list() == [None]


def test_more_groups_than_wanted_are_the_largest(hub: Hub, episode: Make):
    hub.put([episode(n, task=f"task {k}") for k in range(6) for n in range(k + 1)])
    assert hub.rewards(by="task", limit=2, bins=1)["task"].to_list() == ["task 4", "task 5"]


# --- all of them ----------------------------------------------------------------------------------------------------


def test_an_empty_hub_has_frames_of_the_usual_columns(hub: Hub, episode: Make):
    empty = [
        hub.growth(),
        hub.forgetting(),
        hub.growth(by="generation"),
        hub.rewards(by=("task", "time")),
        hub.reward_summary(by="time"),
    ]
    assert all(frame.is_empty() for frame in empty)
    hub.put(episode())
    full = [
        hub.growth(),
        hub.forgetting(),
        hub.growth(by="generation"),
        hub.rewards(by=("task", "time")),
        hub.reward_summary(by="time"),
    ]
    assert [frame.schema for frame in empty] == [frame.schema for frame in full]


def test_who_asks_for_what_is_not_there_is_told(hub: Hub, episode: Make):
    hub.put(episode())
    for call in (hub.growth, hub.forgetting, hub.rewards, hub.reward_summary):
        with pytest.raises(UnknownTenant, match="nobody"):
            call("nobody")
    wrong: list[Callable[[], Any]] = [
        lambda: hub.growth(by="agent"),
        lambda: hub.growth(by="task"),  # type: ignore[arg-type]
        lambda: hub.growth(bins=0),
        lambda: hub.growth(bins=10**9),
        lambda: hub.growth(since=5, until=5),
        lambda: hub.forgetting(since=5, until=5),
        lambda: hub.growth(since="yesterday"),  # type: ignore[arg-type]
        lambda: hub.rewards(by=()),
        lambda: hub.rewards(by=("task", "task")),
        lambda: hub.rewards(by="reward; DROP TABLE episodes"),
        lambda: hub.rewards(bins=10**9),
        lambda: hub.reward_summary(limit=10**9),
        lambda: hub.reward_summary(min_reward="x"),  # type: ignore[arg-type]
    ]
    for each in wrong:
        with pytest.raises(InvalidRequest):
            each()


def test_asked_again_the_hub_counts_only_what_is_new(hub: Hub, episode: Make, monkeypatch: pytest.MonkeyPatch):
    hub.put([episode(n) for n in range(20)])
    first = hub.growth()
    with monkeypatch.context() as patch:
        patch.setattr(growth, "growth", lambda *_, **__: pytest.fail("it was counted again"))
        again = hub.growth()
        again.insert_column(0, pl.lit("whoever has it may change it").alias("changed"))
        assert hub.growth().equals(first)
    hub.put(episode(21))
    with monkeypatch.context() as patch:
        patch.setattr(columns, "_read_all", lambda *_: pytest.fail("everything was read again"))
        assert total(hub.growth(), "stored") == 21
        assert hub.reward_summary()["n"].to_list() == [21]


@pytest.mark.parametrize("damage", ["none", "a byte", "the end", "all of it", "another log"])
def test_a_hub_that_starts_again_goes_on_from_the_columns_on_disk(
    damage: str, tmp_path: Path, clock: SimulatedClock, episode: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(columns, "CHUNK", 10)
    path, file = tmp_path / "saved", tmp_path / "saved" / "index" / "columns"
    copy = tmp_path / "copy"
    with Hub(path, clock, embedder="hashing") as hub:
        hub.put([episode(n, metadata={"generation": n}) for n in range(20)])
        hub.forget("acme", hub.episodes("acme")["id"][:5].to_list(), reason=HOSTILE[0])
        hub.backup(copy)
        hub.growth()
    with Hub(path, clock) as hub:
        hub.put(episode(21))  # which the file does not have
        wanted = [hub.growth(by="generation"), hub.forgetting(), hub.reward_summary()]
    data = file.read_bytes()
    if damage == "another log":
        Hub.restore(copy, tmp_path / "other").close()
        file = tmp_path / "other" / "index" / "columns"
        file.parent.mkdir(exist_ok=True)
    changed = bytes([data[-50] ^ 1])
    file.write_bytes(
        {"a byte": data[:-50] + changed + data[-49:], "the end": data[:-50], "all of it": b"{}"}.get(damage, data)
    )
    with Hub(file.parents[1], clock) as hub:
        if damage == "another log":
            hub.put([episode(n) for n in range(3)])
            assert total(hub.growth(), "stored") == 23
            return
        with monkeypatch.context() as patch:
            if damage == "none":
                patch.setattr(columns, "_read_all", lambda *_: pytest.fail("everything was read again"))
            found = [hub.growth(by="generation"), hub.forgetting(), hub.reward_summary()]
    assert all(one.equals(other) for one, other in zip(found, wanted, strict=True))


def test_what_is_counted_during_an_erasure_is_what_is_there(hub: Hub, episode: Make):
    hub.put(
        [episode(n, agent_id=f"a{n % 2}") for n in range(400)] + [episode(n, tenant_id="rival") for n in range(400)]
    )
    hub.reward_summary()
    seen: list[dict[str, int]] = []
    there: list[dict[str, int]] = []

    def look(_seq: int) -> None:
        seen.append(dict(hub.reward_summary().select("tenant_id", "n").iter_rows()))
        there.append(dict(Counter(hub.episodes()["tenant_id"])))

    undo = hub.on_commit(look)
    hub.erase_agent("acme", "a0", reason="asked to")
    hub.erase_tenant("rival", reason="asked to")
    undo()
    assert seen == there
    assert seen[0] == {"acme": 400, "rival": 400}
    assert {"acme": 200, "rival": 400} in seen
    assert seen[-1] == {"acme": 200}
    assert len(seen) > 5


def test_many_threads_count_while_others_write(hub: Hub, episode: Make):
    def write(agent: int) -> None:
        for n in range(20):
            made = [episode(n, agent_id=f"a{agent}") for _ in range(3)]
            hub.put(made)
            hub.forget("acme", [made[0].id], reason="test")

    def count(_: int) -> None:
        frame = hub.growth("acme", bins=1)
        assert frame["live"][0] == frame["stored"][0] - frame["forgotten"][0]
        assert hub.reward_summary("acme")["n"][0] <= 241

    hub.put(episode(0))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: write(n) if n < 4 else count(n), range(40)))
    assert hub.growth("acme", bins=1).select("stored", "forgotten", "live").rows() == [(241, 80, 161)]
    assert hub.reward_summary("acme")["n"].to_list() == [161]


def test_nothing_of_a_tenant_is_told_after_its_erasure(hub: Hub, episode: Make):
    hub.put([episode(n) for n in range(5)] + [episode(n, tenant_id="rival", agent_id="secret") for n in range(5)])
    hub.spawn_agent("rival", "secret", lifetime=60)
    asked: list[Callable[[], pl.DataFrame]] = [
        hub.growth,
        hub.lives,
        hub.tail,
        lambda: hub.rewards(by=("tenant", "agent")),
        lambda: hub.reward_summary(by=("tenant", "agent")),
    ]
    assert all("rival" in str(call().rows()) for call in asked)
    hub.erase_tenant("rival", reason="asked to")
    assert [call.__name__ for call in asked if "rival" in str(call().rows()) or "secret" in str(call().rows())] == []
    for call in (hub.lives, hub.credit, hub.sample, hub.tail):
        with pytest.raises(UnknownTenant):
            call("rival")
