"""Retention at work: a policy removes exactly what it says, in a hub that goes on, and a preview says it before."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab import (
    Decay,
    Distinct,
    Episode,
    Hub,
    HubUnavailable,
    InvalidRequest,
    KeepForever,
    MaxAge,
    MaxBytes,
    MaxEpisodes,
    MinReward,
    RetentionPolicy,
    SimulatedClock,
    Unused,
)
from fedlab.hub import forgetting, operations
from fedlab.recall import uniform
from fedlab.retention.policy import Both, Either, Where

DAY = 86_400_000
START = datetime(2025, 1, 1, tzinfo=UTC)
NOW = round(START.timestamp() * 1000)
TASKS, AGENTS = ["parse", "plan"], ["a", "b"]
DIRECTIONS = np.eye(3, 8, dtype=np.float32)


# --- a policy in plain Python, one episode at a time -------------------------------------------------------


class Row(NamedTuple):
    number: int
    episode: Episode
    recalled: bool
    group: int


def newest(row: Row) -> tuple:
    return (-row.episode.created_at, -row.number)


def age(row: Row) -> float:
    return (NOW - row.episode.created_at) / DAY


def cited(rows: list[Row], row: Row, least: float = -math.inf) -> int:
    return sum(each.episode.sources.count(row.episode.id) for each in rows if each.episode.reward >= least)


def size(row: Row) -> int:
    texts = (row.episode.task, row.episode.input, row.episode.output, "{}")
    return sum(len(text.encode()) for text in texts) + 2 * 8


def below_the_quantile(rows: list[Row], row: Row, quantile: float) -> bool:
    rewards = [each.episode.reward for each in rows if each.episode.task == row.episode.task]
    return row.episode.reward < np.quantile(rewards, quantile, method="higher")


def near_a_better(rows: list[Row], row: Row) -> bool:
    same = [each for each in rows if each.episode.task == row.episode.task and each.group == row.group]
    return row != min(same, key=lambda each: (-each.episode.reward, *newest(each)))


def passes(row: Row, where: Any) -> bool:
    return (
        where.task in (None, row.episode.task)
        and where.agent_id in (None, row.episode.agent_id)
        and (where.min_reward is None or row.episode.reward >= where.min_reward)
    )


def gone(policy: RetentionPolicy, rows: list[Row], everyone: list[Row]) -> set[int]:
    """What a policy removes among some rows of all that the tenant has."""
    match policy:
        case Both(first, second):
            return gone(first, rows, everyone) | gone(second, rows, everyone)
        case Either(first, second):
            return gone(first, rows, everyone) & gone(second, rows, everyone)
        case Where(rule, where):
            return gone(rule, [row for row in rows if passes(row, where)], everyone)
        case MaxEpisodes(n, keep, seed):
            worth = {
                "newest": lambda row: 0,
                "best": lambda row: -row.episode.reward,
                "most_used": lambda row: -cited(everyone, row),
                "random": lambda row: -uniform(np.array([row.number]), seed)[0],
            }[keep]
            return {row.number for row in sorted(rows, key=lambda row: (worth(row), *newest(row)))[n:]}
        case MaxBytes(most):
            ordered = sorted(rows, key=newest)
            return {row.number for n, row in enumerate(ordered) if sum(map(size, ordered[: n + 1])) > most}
    says = {
        KeepForever: lambda row: False,
        MaxAge: lambda row: age(row) > policy.days,
        MinReward: lambda row: (
            row.episode.reward < policy.reward if policy.quantile is None else below_the_quantile(rows, row, policy.quantile)
        ),
        Decay: lambda row: row.episode.reward * 2 ** (-age(row) / policy.half_life) + cited(everyone, row) < policy.floor,
        Unused: lambda row: (
            age(row) > policy.after
            and not (row.recalled if policy.by == "recalled" else cited(everyone, row, policy.success))
        ),
        Distinct: lambda row: near_a_better(rows, row),
    }[type(policy)]  # fmt: skip
    return {row.number for row in rows if says(row)}


rewards = st.sampled_from([-0.5, 0.0, 0.3, 0.5, 0.7, 1.0])
days = st.sampled_from([1, 7, 30, 90])
policies = st.recursive(
    st.one_of(
        st.just(KeepForever()),
        st.builds(MaxAge, days),
        st.builds(MinReward, rewards),
        st.builds(MinReward, quantile=st.sampled_from([0, 0.25, 0.5, 0.9, 1])),
        st.builds(MaxEpisodes, st.integers(1, 12), st.sampled_from(["newest", "best", "most_used", "random"])),
        st.builds(MaxBytes, st.integers(1, 800)),
        st.builds(Decay, days, st.sampled_from([-0.2, 0.1, 0.4, 1.0, 2.5])),
        st.builds(Unused, days, st.sampled_from(["recalled", "source_of_success"])),
        st.just(Distinct()),
    ),
    lambda part: st.one_of(
        st.builds(lambda one, other: one & other, part, part),
        st.builds(lambda one, other: one | other, part, part),
        st.builds(lambda one, task: one.where(task=task), part, st.sampled_from([*TASKS, "none"])),
        st.builds(
            lambda one, agent, least: one.where(agent_id=agent, min_reward=least),
            part,
            st.sampled_from(AGENTS),
            rewards,
        ),
    ),
    max_leaves=4,
)
plans = st.lists(
    st.fixed_dictionaries(
        {
            "task": st.sampled_from(TASKS),
            "agent_id": st.sampled_from(AGENTS),
            "reward": rewards,
            "age": st.sampled_from([0, 1, 5, 20, 60, 200]),
            "expires": st.sampled_from([None, None, None, -1, 0, 1]),
            "group": st.integers(0, 2),
            "sources": st.lists(st.integers(0, 30), max_size=3),
            "held": st.sampled_from([False, False, False, True]),
            "output": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
        }
    ),
    max_size=14,
)


looks = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from([None, *TASKS])), max_size=2)


def fill(hub: Hub, plan: list[dict], looks: list[tuple]) -> list[Row]:
    made: list[Episode] = []
    for number, each in enumerate(plan):
        episode = Episode(
            tenant_id="acme",
            agent_id=each["agent_id"],
            task=each["task"],
            input="",
            output=each["output"],
            reward=each["reward"],
            created_at=NOW - each["age"] * DAY,
            expires_at=None if each["expires"] is None else NOW + each["expires"],
            vector=DIRECTIONS[each["group"]] * (1 + number),
            sources=[made[source].id for source in each["sources"] if source < number],
        )
        made.append(episode)
    # Another tenant has the same tasks, and names the same sources.
    other = {"tenant_id": "rival", "agent_id": "a", "task": "parse", "input": "", "output": "", "reward": 1.0}
    hub.put([*made, Episode(**other, vector=DIRECTIONS[0], created_at=NOW, sources=[each.id for each in made[:5]])])
    recalled = {
        memory.id for group, k, task in looks if made for memory in hub.recall("acme", DIRECTIONS[group], k, task=task)
    }
    numbers = dict(hub.episodes("acme")[["id", "seq"]].iter_rows()) if made else {}
    return [Row(numbers[own.id], own, own.id in recalled, each["group"]) for own, each in zip(made, plan, strict=True)]


@settings(max_examples=100, deadline=None)
@given(plans, looks, policies)
def test_any_policy_removes_exactly_what_it_says(plan, looks, policy):
    with Hub(":memory:", SimulatedClock(START), "hashing-8") as hub:
        rows = fill(hub, plan, looks)
        if not rows:
            return
        held = {row.episode.id for row, each in zip(rows, plan, strict=True) if each["held"]}
        if held:
            hub.hold("acme", sorted(held), reason="exemplars")
        expired = {row.number for row in rows if row.episode.expires_at is not None and row.episode.expires_at <= NOW}
        said = gone(policy, rows, rows)
        going = {row.episode.id for row in rows if row.number in said | expired} - held
        before = hub.read_changes(limit=None)
        preview = hub.preview_retention("acme", policy)
        assert (preview.removed, preview.kept) == (len(going), len(rows) - len(going))
        assert preview.held == len({row.episode.id for row in rows if row.number in said | expired} & held)
        assert hub.read_changes(limit=None) == before
        hub.set_retention("acme", policy)
        assert hub.apply_retention().removed == {"acme": len(going), "rival": 0}
        assert set(hub.episodes("acme")["id"]) == {row.episode.id for row in rows} - going
        assert {memory.id for memory in hub.recall("acme", DIRECTIONS[0], 100)} == {
            row.episode.id for row in rows
        } - going
        log = [each for each in hub.read_changes(limit=None) if each.kind == "episode_forgotten"]
        assert {each.subject for each in log} == going
        assert {each.reason for each in log} <= {
            "retention: its expires_at has come",
            *(f"retention: {part}" for part in policy.parts),
        }
        assert hub.stats("rival").episodes == 1
        assert hub.verify().ok


# --- the life of a policy ----------------------------------------------------------------------------------


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def hub(tmp_path, clock):
    with Hub(tmp_path / "hub", clock, "hashing", durability="off") as hub:
        yield hub


def old(hub, episode, vector, count: int, **fields) -> list[str]:
    """Episodes a year old; returns their ids."""
    made = [episode(n, vector=vector(n), created_at=NOW - 365 * DAY, **fields) for n in range(count)]
    hub.put(made)
    return [each.id for each in made]


def test_of_two_policies_the_log_names_the_one_that_removed(hub, episode, vector):
    recent = [episode(n, id=f"x{n}", reward=n / 10, vector=vector(n), created_at=NOW - DAY) for n in range(10)]
    hub.put([*recent, episode(0, id="old", reward=0.9, vector=vector(99), created_at=NOW - 99 * DAY)])
    hub.set_retention("acme", (MaxAge(30) & MinReward(0.3)) & MaxEpisodes(5))
    assert hub.preview_retention("acme").policy == str(hub.retention("acme"))
    hub.apply_retention("acme")
    reasons = {each.subject: each.reason for each in hub.read_changes(kind="episode_forgotten")}
    assert reasons == {
        "old": f"retention: {MaxAge(30)}",
        **{f"x{n}": f"retention: {MinReward(0.3)}" for n in range(3)},
        **{f"x{n}": f"retention: {MaxEpisodes(5)}" for n in (3, 4)},
    }
    assert hub.verify().ok


def test_an_episodes_own_expiry_is_asked_by_the_episode_and_holds_with_the_default(hub, clock, episode, vector):
    hub.put([episode(n, id=f"x{n}", vector=vector(n), expires_at=NOW + n * DAY) for n in range(1, 4)])
    assert hub.apply_retention().removed == {"acme": 0}
    clock.advance(days=2)
    preview = hub.preview_retention("acme")
    assert (preview.policy, preview.removed, preview.expired) == ("keep everything forever", 2, 2)
    assert hub.apply_retention().removed == {"acme": 2}
    assert hub.episodes("acme")["id"].to_list() == ["x3"]
    assert {each.reason for each in hub.read_changes(kind="episode_forgotten")} == {
        "retention: its expires_at has come"
    }


def test_nothing_is_removed_that_was_stored_or_held_after_it_began(hub, episode, vector, monkeypatch):
    ids = old(hub, episode, vector, 300)
    hub.set_retention("acme", MaxAge(30))
    late, real = [], forgetting.judge

    def decide(*arguments):
        verdict = real(*arguments)
        late.extend(old(hub, episode, vector, 5, task="late"))
        hub.hold("acme", ids[250:260], reason="a court's order")
        hub.forget("acme", ids[:3], reason="by hand")
        return verdict

    monkeypatch.setattr(forgetting, "judge", decide)
    assert hub.apply_retention("acme").removed == {"acme": 287}
    monkeypatch.undo()
    assert set(hub.episodes("acme")["id"]) == {*late, *ids[250:260]}
    assert hub.apply_retention("acme").removed == {"acme": 5}
    assert hub.verify().ok


def test_others_push_and_recall_between_its_batches_and_never_meet_what_is_gone(hub, episode, vector, monkeypatch):
    monkeypatch.setattr(forgetting, "MOST", 32)
    ids = old(hub, episode, vector, 1_000)
    fresh = [episode(n, vector=vector(n)) for n in range(50)]
    hub.put(fresh)
    hub.set_retention("acme", MaxAge(30))
    forgotten: set[str] = set()
    met, pushed, began = [], [], threading.Event()

    def follow(_seq: int) -> None:
        forgotten.update(each.subject for each in hub.read_changes(kind="episode_forgotten", limit=None))
        began.set()

    def work() -> None:
        began.wait(20)
        for n in range(50):
            gone_before = set(forgotten)
            found = {memory.id for memory in hub.recall("acme", vector(n), 200)}
            met.extend(found & gone_before)
            pushed.append(episode(1_000 + n, vector=vector(n)))
            hub.put(pushed[-1])

    undo = hub.on_commit(follow)
    thread = threading.Thread(target=work)
    thread.start()
    assert hub.apply_retention("acme").removed == {"acme": 1_000}
    thread.join()
    undo()
    assert met == []
    assert set(hub.episodes("acme")["id"]) == {each.id for each in fresh + pushed}
    assert forgotten == set(ids)
    assert hub.verify().ok


KILLED = """
import os, signal, sys
import numpy as np
from fedlab import Episode, Hub, MinReward
from fedlab.hub import forgetting, operations

forgetting.MOST = 50
hub = Hub(sys.argv[1], embedder="hashing-8", durability="off")
hub.put([Episode(tenant_id="acme", agent_id="a", task="t", input=str(n), output="", reward=n % 2, vector=[n + 1.0] * 8)
         for n in range(1000)])
hub.hold("acme", hub.episodes("acme")["id"].to_list()[:100], reason="exemplars")
hub.set_retention("acme", MinReward(1))
left, real = int(sys.argv[2]), operations.remove

def remove(*arguments, **named):
    global left
    left -= 1
    real(*arguments, **named)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

operations.remove = remove
hub.apply_retention()
"""


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_hub_that_is_killed_between_batches_goes_on_where_it_was(tmp_path, batch):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(batch)], check=False)
    assert done.returncode == -signal.SIGKILL
    with Hub(tmp_path) as hub:
        assert hub.verify().ok
        before = hub.stats("acme").forgotten
        assert 0 <= before < 450
        assert hub.apply_retention().removed == {"acme": 450 - before}
        assert hub.episodes("acme")["reward"].to_list().count(0.0) == 50
        assert len(hub.read_changes(kind="episode_forgotten", limit=None)) == 450
        assert hub.verify().ok


def test_a_tenant_whose_policy_fails_does_not_stop_the_others(hub, episode, vector, caplog):
    class Broken(RetentionPolicy, frozen=True):
        def condemned(self, rows):
            raise ZeroDivisionError("no such luck")

        def __str__(self) -> str:
            return "keep what is lucky"

    for tenant in ("a", "b", "c"):
        hub.put([episode(n, tenant_id=tenant, vector=vector(n)) for n in range(4)])
        hub.set_retention(tenant, Broken() if tenant == "b" else MaxEpisodes(1))
    report = hub.apply_retention()
    assert report.removed == {"a": 3, "c": 3}
    assert report.failed == {"b": "no such luck"}
    assert "'b' failed" in caplog.text
    assert str(report).endswith("b: failed: no such luck")
    with pytest.raises(ZeroDivisionError):
        hub.apply_retention("b")


def test_a_policy_that_was_stored_by_a_program_with_another_class_is_named(hub, episode, vector):
    hub.put([episode(n, vector=vector(n)) for n in range(3)])
    hub._writer.run(lambda tx: operations.set_retention(tx, "acme", '{"policy":"Foreign"}', actor="x"))
    for call in (hub.retention, hub.preview_retention, hub.apply_retention):
        with pytest.raises(InvalidRequest, match="'Foreign'"):
            call("acme")
    assert "'Foreign'" in hub.apply_retention().failed["acme"]
    assert hub.stats("acme").episodes == 3


def test_what_was_forgotten_and_kept_is_purged_when_its_time_is_over(tmp_path, clock, episode, vector):
    with Hub(tmp_path, clock, "hashing", keep_forgotten=timedelta(days=10)) as hub:
        old(hub, episode, vector, 5)
        hub.set_retention("acme", MaxAge(30))
        hub.apply_retention()
        assert hub.stats().kept == 5
        clock.advance(days=11)
        hub.apply_retention()
        assert hub.stats().kept == 0


def test_a_hub_that_closes_ends_it_between_batches(hub, episode, vector, monkeypatch):
    monkeypatch.setattr(forgetting, "MOST", 32)
    old(hub, episode, vector, 500)
    hub.set_retention("acme", MaxAge(30))
    threads: list[threading.Thread] = []

    def close(_seq: int) -> None:
        if not threads:
            threads.append(threading.Thread(target=hub.close))
            threads[0].start()

    hub.on_commit(close)
    with pytest.raises(HubUnavailable):
        while True:
            hub.apply_retention()
    threads[0].join()
    with Hub(hub.path, SimulatedClock(START)) as again:
        assert again.verify().ok


# --- what a preview says -----------------------------------------------------------------------------------


def test_a_preview_says_what_would_go_and_what_recall_would_be_and_changes_nothing(hub, episode):
    made = []
    for n in range(20):
        vector = np.zeros(384)
        vector[n // 10] = 1 + n
        age = NOW - (2 if n < 10 else 40) * DAY
        fields = {"task": f"task {n // 10}", "agent_id": f"a{n % 2}", "output": "o" * 100, "input": "", "metadata": {}}
        made.append(episode(n, vector=vector, created_at=age, reward=0.95 if n < 10 else 0.25, **fields))
    hub.put(made)
    assert hub.preview_retention("acme", KeepForever()).recall is None
    for axis in (0, 1):
        hub.recall("acme", np.eye(384)[axis], k=5)
    hub.hold("acme", [made[0].id, made[19].id], reason="exemplars")
    before, log = hub.episodes("acme"), hub.read_changes(limit=None)
    preview = hub.preview_retention("acme", MaxAge(30))
    assert (preview.removed, preview.kept, preview.held, preview.expired) == (9, 11, 1, 0)
    assert preview.by_task == {"task 1": 9}
    assert preview.by_agent == {"a0": 5, "a1": 4}
    assert preview.by_age == {"30 to 90 days": 9}
    assert preview.by_reward == {"0.2 to 0.3": 9}
    assert preview.kept_by_age == {"1 to 7 days": 10, "30 to 90 days": 1}
    assert preview.kept_by_reward == {"0.2 to 0.3": 1, "0.9 and above": 10}
    assert preview.bytes == 9 * (6 + 100 + 2 + 768)
    # Of the query along the first axis nothing changes; that along the second loses nine of ten.
    assert preview.recall.queries == 2
    assert preview.recall.changed == 4.5
    assert preview.recall.reward_before == pytest.approx(0.6)
    assert preview.recall.reward_after == pytest.approx((10 * 0.95 + 0.25 + 9 * 0.95) / 20)
    said = ("9 of 20 episodes would go", "task 1 9", "1 stays because it is held", "0.600 →", "stays, by age: 1 to 7")
    for sentence in said:
        assert sentence in str(preview)
    # What is held stays then, too; of the young ones none is as old in 27 days, and all but the held one in 29.
    later = [hub.preview_retention("acme", MaxAge(30), after=timedelta(days=days)) for days in (27, 29)]
    assert [each.removed for each in later] == [9, 18]
    assert later[1].kept_by_age == {"30 to 90 days": 2}
    for wrong in (timedelta(days=-1), 30, timedelta.max):
        with pytest.raises(InvalidRequest):
            hub.preview_retention("acme", MaxAge(30), after=wrong)
    assert hub.episodes("acme").equals(before)
    assert hub.read_changes(limit=None) == log


def test_a_preview_of_many_names_the_largest_groups_and_estimates_the_bytes(hub, episode, vector, monkeypatch):
    monkeypatch.setattr("fedlab.hub.preview.SAMPLE", 100)
    hub.put([episode(n, vector=vector(n), task=f"task {n % (1 + n % 30)}", output="o" * (n % 50)) for n in range(400)])
    hub.hold("acme", min_reward=0.9, reason="the best")
    preview = hub.preview_retention("acme", MinReward(2.0))
    assert preview.removed == 360
    assert len(preview.by_task) == len(set(preview.by_task)) == 10
    assert list(preview.by_task.values()) == sorted(preview.by_task.values(), reverse=True)
    exact = sum(
        len(row["task"]) + len(row["input"]) + len(row["output"]) + 2 + 768
        for row in hub.episodes("acme").to_dicts()
        if row["reward"] < 0.9
    )
    assert preview.bytes == pytest.approx(exact, rel=0.02)


def test_the_effect_on_recall_is_the_same_with_a_graph(hub, episode, vector, small_graphs):
    made = [episode(n, vector=vector(n), reward=n / 100) for n in range(100)]
    hub.put(made)
    for n in range(10):
        hub.recall("acme", vector(500 + n))
    exact = hub.preview_retention("acme", MinReward(0.5)).recall
    hub.put(episode(200, vector=vector(200), reward=-1.0))
    small_graphs(hub)
    assert hub.preview_retention("acme", MinReward(0.5)).recall.reward_after == pytest.approx(exact.reward_after)
    assert exact.reward_after > exact.reward_before


def test_a_recall_after_much_forgetting_is_still_exact_and_full(hub, episode, vector, small_graphs):
    made = [episode(n, vector=vector(n)) for n in range(150)]
    hub.put(made)
    small_graphs(hub)
    rng = random.Random(0)
    left = {each.id: each for each in made}
    while len(left) > 10:
        going = rng.sample(sorted(left), 10)
        hub.forget("acme", going, reason="r")
        for uid in going:
            del left[uid]
        query = vector(rng.randrange(1_000))
        units = {uid: each.vector / np.linalg.norm(each.vector.astype(float)) for uid, each in left.items()}
        ranked = sorted(left, key=lambda uid: -float(units[uid] @ query))
        found = [memory.id for memory in hub.recall("acme", query, 10)]
        assert len(found) == 10
        assert len(set(found) & set(ranked[:10])) >= 9


# --- time and chance ---------------------------------------------------------------------------------------


def test_a_random_choice_is_the_same_each_time_and_moves_only_as_new_ones_come(hub, episode, vector):
    hub.put([episode(n, vector=vector(n)) for n in range(100)])
    hub.set_retention("acme", MaxEpisodes(20, keep="random", seed=7))
    before = [hub.preview_retention("acme", MaxEpisodes(20, keep="random", seed=seed)) for seed in (7, 7, 8)]
    assert before[0] == before[1]
    hub.apply_retention()
    first = set(hub.episodes("acme")["id"])
    assert len(first) == 20
    assert hub.apply_retention().removed == {"acme": 0}
    hub.put([episode(n, vector=vector(n)) for n in range(100, 110)])
    hub.apply_retention()
    assert 10 <= len(first & set(hub.episodes("acme")["id"])) < 20


def test_near_duplicates_are_found_across_blocks(hub, episode, vector, monkeypatch):
    monkeypatch.setattr("fedlab.retention.near.LEAF", 8)
    rng = np.random.default_rng(0)
    made = [
        episode(n, vector=vector(n % 20) + 0.01 * rng.normal(size=384), reward=(n * 7 % 60) / 60, task="t")
        for n in range(60)
    ]
    hub.put(made)
    hub.set_retention("acme", Distinct(0.98))
    assert hub.apply_retention().removed == {"acme": 40}
    best = {group: max(made[group::20], key=lambda each: each.reward).id for group in range(20)}
    assert set(hub.episodes("acme")["id"]) == set(best.values())


@pytest.fixture
def small(tmp_path, clock):
    """A hub whose vectors are short, so that many are quickly stored."""
    with Hub(tmp_path / "small", clock, "hashing-8", durability="off") as hub:
        yield hub


def test_90_days_and_070_on_a_hub_of_100_000_while_others_push_and_recall(small):
    """The document's own policy at size: exact sets, index and database agree, and nobody is shown what is gone."""
    hub = small
    count = 100_000
    rng = np.random.default_rng(0)
    ages, rewards = rng.integers(0, 180 * DAY, count), rng.random(count).round(2)
    vectors = rng.normal(size=(count, 8)).astype(np.float16)
    ages[:4], rewards[:4] = [90 * DAY, 90 * DAY + 1, 0, 0], [0.7, 1.0, 0.69, 0.7]  # the edges
    names = {"tenant_id": "acme", "agent_id": "old", "task": "plan", "output": ""}
    for start in range(0, count, 20_000):
        hub.put([
            Episode(**names, id=f"e{n}", input="", reward=rewards[n], created_at=NOW - int(ages[n]), vector=vectors[n])
            for n in range(start, start + 20_000)
        ])  # fmt: skip
    stay = {f"e{n}" for n in np.flatnonzero((ages <= 90 * DAY) & (rewards >= 0.7))}
    assert {"e0", "e3"} <= stay
    assert not {"e1", "e2"} & stay
    policy = MaxAge(90) & MinReward(0.7)
    assert hub.preview_retention("acme", policy).removed == count - len(stay)
    hub.set_retention("acme", policy)

    gone: set[str] = set()
    known = hub.info().seq
    met, pushed, more, done = [], [], threading.Event(), threading.Event()

    def follow(_seq: int) -> None:
        nonlocal known
        for change in hub.read_changes(known, kind="episode_forgotten", limit=None):
            gone.add(change.subject)
            known = change.seq
        if len(gone) >= 2_000 * len(met):
            more.set()

    def work() -> None:
        """A push and a recall again and again; not without a pause, which would make the batches tiny."""
        while more.wait(60) and not done.is_set():
            more.clear()
            pushed.append(f"new{len(pushed)}")
            hub.put(Episode(**names, id=pushed[-1], input="new", reward=1, vector=DIRECTIONS[0]))
            before = set(gone)
            met.append({memory.id for memory in hub.recall("acme", vectors[len(met)], 10)} & before)

    undo = hub.on_commit(follow)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        removed = hub.apply_retention("acme").removed
    finally:
        done.set()
        more.set()
        thread.join()
        undo()
    assert removed == {"acme": count - len(stay)}
    assert gone == {f"e{n}" for n in range(count)} - stay
    assert set(hub.episodes("acme")["id"]) == stay | set(pushed)
    assert len(met) > 20
    assert not any(met)
    assert not {memory.id for memory in hub.recall("acme", DIRECTIONS[1], 10_000)} & gone
    assert hub.verify().ok


@pytest.mark.parametrize("days", [36_500, 1e12, 1e300])
def test_more_days_than_there_were_keep_everything(hub, episode, days):
    hub.put([episode(n) for n in range(3)])
    hub.set_retention("acme", MaxAge(days))
    assert (hub.preview_retention("acme").removed, hub.apply_retention("acme").removed) == (0, {"acme": 0})
