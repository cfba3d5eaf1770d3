"""Lives, credit, lineage, samples and the end of the log: what is told of single episodes and agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fedlab import Episode, Hub, InvalidRequest, SimulatedClock

Make = Callable[..., Episode]
START = datetime(2026, 1, 1, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def hub(tmp_path: Path, clock: SimulatedClock) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", embedder="hashing", clock=clock) as hub:
        yield hub


def test_lives_tell_what_came_of_each_also_where_a_name_is_used_again(hub: Hub, clock: SimulatedClock, episode: Make):
    hub.spawn_agent("acme", "a", lifetime=60)
    hub.spawn_agent("rival", "a", lifetime=5)
    hub.put(episode(0, tenant_id="rival", agent_id="a", reward=-1))
    clock.advance(seconds=10)
    first = [episode(n, agent_id="a", reward=n, metadata={"generation": 3}) for n in range(3)]
    hub.sync_agent("acme", "a", first, after=0, ending="destroyed", recalled=7)
    clock.advance(seconds=10)
    hub.spawn_agent("acme", "a", lifetime=20)
    hub.put([episode(9, agent_id="a", reward=10), episode(10, agent_id="never-spawned")])
    hub.forget("acme", [first[2].id], reason="test")
    columns = ["tenant_id", "status", "lifetime", "lived", "pulled", "pushed", "episodes", "mean_reward", "generation"]
    assert hub.lives().select(columns).rows() == [
        ("acme", "alive", 20.0, None, 0, 0, 1, 10.0, None),
        ("rival", "alive", 5.0, None, 0, 0, 1, -1.0, None),
        ("acme", "destroyed", 60.0, 10.0, 7, 3, 2, 0.5, 3),
    ]
    assert set(hub.agents().columns) <= set(hub.lives().columns)
    assert hub.lives("acme")["session_id"].to_list() == ["acme/a"] * 2
    # What the second life pushed is not the first one's where only that is shown.
    assert hub.lives("acme", until=START_MS + 1)["mean_reward"].to_list() == [0.5]
    assert hub.lives("acme", since=START_MS + 10_001)["status"].to_list() == ["alive"]
    assert hub.lives(limit=1)["lifetime"].to_list() == [20.0]


def test_credit_counts_sources_by_generation_and_agent(hub: Hub, episode: Make):
    old = [episode(n, agent_id="old", metadata={"generation": 0}) for n in range(3)]
    ids = [each.id for each in old]
    new = [
        episode(n, agent_id="new", reward=n, metadata={"generation": 1}, sources=(*ids[: n + 1], "of-elsewhere"))
        for n in range(3)
    ]
    hub.put([*old, *new])
    assert hub.credit("acme").rows() == [(0, 1, 6, 3, 1.0), (None, 1, 3, 3, 1.0)]
    assert hub.credit("acme", by="agent").rows() == [("old", "new", 6, 3, 1.0), (None, "new", 3, 3, 1.0)]
    hub.forget("acme", [ids[0], new[2].id], reason="test")
    hub.put(episode(7, agent_id="third", metadata={"generation": 2}, sources=(new[0].id, new[2].id)))
    assert sorted(hub.credit("acme").rows(), key=str) == [
        (0, 1, 1, 1, 1.0),
        (1, 2, 1, 1, 0.7),
        (None, 1, 4, 2, 0.5),
        (None, 2, 1, 1, 0.7),
    ]
    assert hub.credit("acme", limit=1).height == 1


def test_credit_does_not_cross_tenants(hub: Hub, episode: Make):
    theirs = episode(0, tenant_id="rival", metadata={"generation": 5})
    hub.put([theirs, episode(1, metadata={"generation": 6}, sources=(theirs.id,))])
    assert hub.credit("acme").select("source", "target", "count").rows() == [(None, 6, 1)]
    assert hub.credit("rival").is_empty()


@pytest.fixture
def family(hub: Hub, clock: SimulatedClock, episode: Make) -> dict[str, str]:
    """a and b → c → d, e; e → f."""
    made: dict[str, str] = {}
    for name, sources in {"a": "", "b": "", "c": "ab", "d": "c", "e": "c", "f": "e"}.items():
        each = episode(ord(name), output=f"<b>{name}</b>" + "ü" * 500, sources=tuple(made[one] for one in sources))
        made[name] = each.id
        hub.put(each, actor="who-stored-it")
        clock.advance(seconds=1)
    return made


def test_lineage_goes_both_ways_as_far_as_it_is_told(hub: Hub, family: dict[str, str]):
    names = {value: name for name, value in family.items()}

    def links(start: str, **how: Any) -> list[tuple[str, int, str, str]]:
        rows = hub.lineage("acme", family[start], **how).select("direction", "depth", "id", "via").rows()
        return [(direction, depth, names[each], names.get(via, "")) for direction, depth, each, via in rows]

    assert links("c") == [
        ("self", 0, "c", ""),
        ("source", 1, "a", "c"),
        ("source", 1, "b", "c"),
        ("use", 1, "d", "c"),
        ("use", 1, "e", "c"),
        ("use", 2, "f", "e"),
    ]
    assert links("f", depth=1) == [("self", 0, "f", ""), ("source", 1, "e", "f")]
    assert links("c", depth=0) == [("self", 0, "c", "")]
    assert [link[2] for link in links("a", limit=2)] == ["a", "c", "d"]


def test_lineage_names_what_is_forgotten_erased_or_of_elsewhere(
    hub: Hub, clock: SimulatedClock, family: dict[str, str], episode: Make
):
    theirs = episode(50, tenant_id="rival")
    last = episode(51, metadata={"generation": 4}, sources=(family["a"], family["b"], theirs.id, "nowhere"))
    hub.put([theirs, last])
    hub.forget("acme", [family["a"]], reason="too old")
    hub.erase_episodes("acme", [family["b"]], reason="asked to")
    frame = hub.lineage("acme", last.id, depth=1)
    known = {row["id"]: row for row in frame.iter_rows(named=True)}
    assert [known[each]["status"] for each in (last.id, family["a"], family["b"], theirs.id, "nowhere")] == [
        "live",
        "forgotten",
        "unknown",
        "unknown",
        "unknown",
    ]
    own, gone, lost = known[last.id], known[family["a"]], known[theirs.id]
    assert (own["generation"], own["reward"], own["task"]) == (4, 0.1, "task 1")
    assert (gone["agent_id"], gone["reason"], gone["stored_at"]) == ("who-stored-it", "too old", START_MS)
    assert gone["forgotten_at"] == clock.now()
    assert gone["task"] is None
    assert {lost[name] for name in ("agent_id", "task", "reward", "stored_at", "reason")} == {None}
    assert hub.lineage("acme", family["a"]).height > 1
    for unknown in (family["b"], theirs.id, "nowhere", "' OR 1=1 --"):
        with pytest.raises(InvalidRequest, match="no trace"):
            hub.lineage("acme", unknown)


def test_a_loop_of_sources_ends(hub: Hub, episode: Make):
    hub.put([episode(0, id="x", sources=("y",)), episode(1, id="y", sources=("x",))])
    assert hub.lineage("acme", "x", depth=20)["id"].to_list() == ["x", "y", "x", "y", "x"]


def test_texts_of_frames_are_cut(hub: Hub, family: dict[str, str]):
    for frame in (hub.lineage("acme", family["c"]), hub.sample("acme")):
        assert frame["output"].str.len_chars().max() == 200


def test_a_sample_is_uniform_repeatable_and_with_vectors(hub: Hub, episode: Make, vector: Callable[[int], Any]):
    hub.put([episode(n, vector=vector(n), metadata={"generation": n}) for n in range(300)])
    every = hub.episodes("acme", vectors=True)
    sample = hub.sample("acme", 50)
    assert sample.height == 50
    assert sample.equals(hub.sample("acme", 50))
    assert not sample["id"].equals(hub.sample("acme", 50, seed=1)["id"])
    of_all = every.filter(pl.col("seq").is_in(sample["seq"].implode()))
    names = ["seq", "id", "tenant_id", "agent_id", "task", "output", "reward", "created_at", "vector"]
    assert sample.select(names).equals(of_all.select(names))
    assert sample["generation"].cast(pl.String).to_list() == of_all["input"].str.strip_prefix("input ").to_list()
    times = np.zeros(300)
    for seed in range(200):
        times[hub.sample("acme", 30, seed=seed, vectors=False)["generation"].to_numpy()] += 1
    # Each is in 20 of 200 samples on average; a standard deviation is 4.2.
    assert times.mean() == 20
    assert 0.7 < times.std() / np.sqrt(200 * 0.1 * 0.9) < 1.3
    assert hub.sample("acme", 1_000)["seq"].equals(every["seq"])
    assert hub.sample("acme", task="task 1", min_reward=0.5)["task"].unique().to_list() == ["task 1"]
    assert hub.sample("acme", task="nothing").schema == sample.schema


def test_the_end_of_the_log_is_filtered_and_paged(hub: Hub, clock: SimulatedClock, episode: Make):
    made = [episode(n) for n in range(6)]
    for each in made:
        hub.put(each, actor="alice")
        clock.advance(seconds=1)
    hub.put(episode(7, tenant_id="rival"), actor="bob")
    hub.forget("acme", [made[0].id], reason="test", actor="bob")
    every = hub.changes().reverse()
    assert hub.tail().equals(every)
    assert hub.tail("acme", limit=3).equals(every.filter(pl.col("tenant_id") == "acme").head(3))
    assert hub.tail(actor="bob", kinds="episode_forgotten")["subject"].to_list() == [made[0].id]
    assert hub.tail(kinds=["episode_stored", "tenant_created"])["kind"].unique().len() == 2
    assert hub.tail(kinds=[]).is_empty()
    middle = hub.tail(since=START_MS + 1_000, until=START_MS + 3_000, kinds="episode_stored")
    assert middle["subject"].to_list() == [made[2].id, made[1].id]
    pages, before = [], None
    while (page := hub.tail(limit=4, before=before)).height:
        pages.append(page)
        before = page["seq"][-1]
    assert pl.concat(pages).equals(every)


@pytest.mark.parametrize(
    "call",
    [
        lambda hub: hub.lives(limit=10**9),
        lambda hub: hub.credit("acme", by="tenant"),
        lambda hub: hub.lineage("acme", 5),
        lambda hub: hub.lineage("acme", "x", depth=99),
        lambda hub: hub.sample("acme", 0),
        lambda hub: hub.sample("acme", seed=-1),
        lambda hub: hub.tail(kinds=5),
        lambda hub: hub.tail(kinds=[None]),
        lambda hub: hub.tail(limit=10**9),
        lambda hub: hub.tail(actor=5),
    ],
)
def test_what_can_not_be_answered_is_refused(hub: Hub, episode: Make, call: Callable[[Hub], Any]):
    hub.put(episode())
    with pytest.raises(InvalidRequest):
        call(hub)
