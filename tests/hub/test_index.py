"""Recall against brute force, exactly and through a graph; loading, snapshots and their damage; races."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedlab import Episode, Hub, Random, Recency, Reward, Similarity, SimulatedClock
from fedlab.embedding import Hashing
from fedlab.hub import index as index_module
from fedlab.hub import indexes, snapshots
from fedlab.hub.indexes import Indexes
from fedlab.hub.log import Stored
from fedlab.recall import Filter

from .conftest import wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400_000
POLICIES = {
    "similarity": Similarity(),
    "unlike": Similarity(-1),
    "reward": Reward(),
    "worst": Reward(-1),
    "recency": Recency(half_life_days=5),
    "random": Random(seed=3),
    "similarity + reward": Similarity() + 0.5 * Reward(),
    "everything": Similarity() + Reward(0.3) + Recency(0.2, half_life_days=3) + Random(0.1, seed=5),
}
FILTERS = {
    "all": {},
    "min_reward": {"min_reward": 0.7},
    "window": {"since": NOW, "until": int(NOW.timestamp() * 1000) + 20 * DAY},
    "one task": {"task": "task 3"},
    "one agent": {"agent_id": "agent-2", "min_reward": 0.5},
    "none": {"task": "never done"},
}


def passes(episode: Episode, where: dict) -> bool:
    start = int(NOW.timestamp() * 1000)
    return (
        episode.reward >= where.get("min_reward", -np.inf)
        and ("since" not in where or start <= episode.created_at < where["until"])
        and where.get("task", episode.task) == episode.task
        and where.get("agent_id", episode.agent_id) == episode.agent_id
    )


def brute_force(rows: list[tuple[int, Episode]], query: np.ndarray, policy, where: dict, now: int) -> dict[str, float]:
    """The score of every episode that passes the filter, by id; rows are seq and episode."""
    rows = [(seq, each) for seq, each in rows if passes(each, where)]
    if not rows:
        return {}
    matrix = np.array([each.vector for _, each in rows], np.float64)
    cosine = matrix @ query / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)
    rewards = np.array([each.reward for _, each in rows])
    ages = now - np.array([each.created_at for _, each in rows], np.int64)
    score = policy.similarity * cosine + policy.reward * rewards
    score += policy.recency * 0.5 ** (ages / DAY / policy.half_life_days)
    if policy.random:
        seqs = np.array([seq for seq, _ in rows], np.int64)
        score += policy.random * Random(seed=policy.seed).base(seqs, rewards, ages, now)
    return {each.id: value for (_, each), value in zip(rows, score.tolist(), strict=True)}


def check(found: list, expected: dict[str, float], k: int, *, exact: bool = True) -> None:
    """Found is a correct answer: as many as there can be, each with its score, in order, and the best."""
    assert len(found) == len({each.id for each in found}) == min(k, len(expected))
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert np.allclose(scores, [expected[each.id] for each in found], atol=1e-3)
    if exact:
        assert np.allclose(scores, sorted(expected.values(), reverse=True)[:k], atol=1e-3)


@pytest.fixture(params=["exact", "graph"])
def filled(request, tmp_path, episode, small_graphs):
    """A hub of 600 episodes of one tenant, beside another tenant's, and what is in it."""
    clock = SimulatedClock(NOW)
    rng = np.random.default_rng(1)
    if request.param == "exact":
        index_module.EXACT = 10_000
    with Hub(tmp_path / "hub", clock, "hashing-32", durability="off") as hub:
        start = clock.now()
        rows = [
            episode(n, vector=rng.normal(size=32), agent_id=f"agent-{n % 7}", reward=float(rng.choice([0, 0.5, 0.7, 1])), created_at=start + int(rng.integers(-30, 40)) * DAY // 2)
            for n in range(600)
        ]  # fmt: skip
        hub.put([each for row in rows for each in (row, episode(1, tenant_id="other", vector=row.vector))])
        hub.recall("acme", None, policy=Random())
        if request.param == "graph":
            small_graphs(hub)
        clock.advance(days=20)
        seqs = dict(hub.episodes("acme").select("id", "seq").iter_rows())
        yield hub, [(seqs[each.id], each) for each in rows], request.param == "exact"


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_recall_is_what_brute_force_says(filled, policy, where):
    hub, rows, exact = filled
    query = np.random.default_rng(2).normal(size=32)
    expected = brute_force(rows, query, POLICIES[policy], FILTERS[where], hub.clock.now())
    for k in (1, 10, 100, 1_000):
        found = hub.recall("acme", query, k, policy=POLICIES[policy], **FILTERS[where])
        check(found, expected, k, exact=exact or policy != "similarity" or where != "all")
        if found and len(found) == min(k, len(expected)):
            best = sorted(expected, key=expected.get, reverse=True)[:k]
            worst = expected[best[-1]] - 1e-3
            assert sum(expected[each.id] >= worst for each in found) >= 0.9 * len(best) - 1


def test_filters_at_their_edges(hub, episode):
    hub.put([episode(n, created_at=n, reward=n / 10) for n in range(10)])

    def inputs(**where: object) -> list[int]:
        return sorted(int(each.input.split()[1]) for each in hub.recall("acme", "x", 100, **where))

    assert inputs(since=3) == [3, 4, 5, 6, 7, 8, 9]
    assert inputs(until=3) == [0, 1, 2]
    assert inputs(since=3, until=4) == [3]
    assert inputs(since=4, until=3) == inputs(since=3, until=3) == []
    assert inputs(min_reward=0.3) == [3, 4, 5, 6, 7, 8, 9]
    assert inputs(min_reward=0.9) == [9]
    assert inputs(min_reward=float("inf")) == []
    assert inputs(min_reward=-float("inf")) == list(range(10))
    assert inputs(task="task 3") == [3, 8]
    assert inputs(task="task") == inputs(task="") == inputs(agent_id="nobody") == []


@pytest.mark.parametrize(("copies", "graph"), [(200, False), (203, False), (3_000, True)])
def test_all_of_many_identical_memories_come_back_newest_first(tmp_path, episode, vector, small_graphs, copies, graph):
    if not graph:
        index_module.EXACT = 10_000
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        hub.put([episode(0, vector=vector(0), created_at=n, output=str(n)) for n in range(copies)])
        hub.put(episode(1, vector=-vector(0)))
        hub.recall("acme", vector(0), 1)
        if graph:
            small_graphs(hub)
        for k in (copies, 100):
            found = hub.recall("acme", vector(0), k)
            assert len({each.id for each in found}) == k
            assert all(each.similarity > 0.99 for each in found)
        if not graph:
            assert [each.output for each in found] == [str(n) for n in reversed(range(copies))][:100]
        assert len(hub.recall("acme", vector(0), copies, min_reward=0)) == copies
        hub.forget("acme", [each.id for each in found], reason="r")
        assert len(hub.recall("acme", vector(0), 10_000)) == copies - 99


@pytest.mark.parametrize("gone", [range(1_000), range(0, 1_500, 2), range(1_500)])
def test_a_graph_can_be_built_over_what_was_forgotten(tmp_path, episode, vector, small_graphs, gone):
    index_module.EXACT = 1_550
    with Hub(tmp_path, embedder="hashing-8", durability="off") as hub:
        batch = [episode(n, vector=vector(n)[:8]) for n in range(1_800)]
        hub.put(batch[:1_500])
        hub.recall("acme", vector(0)[:8], 1)
        hub.forget("acme", [batch[n].id for n in gone], reason="r")
        hub.put(batch[1_500:])
        left = {each.id for n, each in enumerate(batch) if n not in gone}
        for _ in range(3):
            assert {each.id for each in hub.recall("acme", vector(5)[:8], 2_000)} == left
            hub.put(extra := [episode(n, vector=vector(n)[:8]) for n in range(60)])
            left |= {each.id for each in extra}
        wait_until(lambda: not hub._indexes._slots["acme"].queued)
        assert {each.id for each in hub.recall("acme", vector(5)[:8], 3_000)} == left
        assert hub.verify().problems == []


# --- any sequence -------------------------------------------------------------------------------------------

directions = st.sampled_from([np.roll([3.0, 1, 0, 0, 0, 0, 0, 0], shift) for shift in range(8)] + [np.arange(8) - 3.5])


class AnySequence(RuleBasedStateMachine):
    """A hub, and the list that it has to agree with."""

    graph = False

    @initialize()
    def open(self) -> None:
        self.patch = pytest.MonkeyPatch()
        if self.graph:
            from fedlab.hub import indexes, searching

            for module in (index_module, indexes, searching):
                for name, value in {"EXACT": 12, "TAIL": 4, "FEW": 2}.items():
                    if hasattr(module, name):
                        self.patch.setattr(module, name, value)
        self.path = Path(tempfile.mkdtemp())
        self.clock = SimulatedClock(NOW)
        self.rows: dict[str, Episode] = {}
        self.gone: list[Episode] = []
        self.hub = Hub(self.path, self.clock, "hashing-8", "off")
        self.put([(np.ones(8), 0.5, "a", 0)])

    @rule(
        drafts=st.lists(
            st.tuples(directions, st.sampled_from([0, 0.5, 1]), st.sampled_from("abc"), st.integers(0, 5)),
            min_size=1,
            max_size=20,
        )
    )
    def put(self, drafts: list) -> None:
        batch = [
            Episode(tenant_id="acme", agent_id="x", task=task, input="", output="", reward=reward, vector=vector, created_at=self.clock.now() - age * DAY)
            for vector, reward, task, age in drafts
        ]  # fmt: skip
        self.hub.put(batch)
        self.rows |= {each.id: each for each in batch}

    @rule(share=st.floats(0, 0.6), data=st.randoms(use_true_random=False))
    def forget(self, share: float, data) -> None:
        going = data.sample(sorted(self.rows), int(share * len(self.rows)))
        assert self.hub.forget("acme", going, reason="r") == len(going)
        for uid in going:
            del self.rows[uid]

    @rule()
    def reopen(self) -> None:
        self.hub.close()
        self.hub = Hub(self.path, self.clock, durability="off")

    @rule()
    def snapshot(self) -> None:
        self.hub.snapshot()

    @rule(days=st.floats(0, 3))
    def wait(self, days: float) -> None:
        self.clock.advance(days=days)

    @rule(
        query=directions,
        policy=st.sampled_from(sorted(POLICIES)),
        k=st.integers(1, 30),
        task=st.sampled_from(["a", "b", None, None]),
    )
    def recall(self, query: np.ndarray, policy: str, k: int, task: str | None) -> None:
        where = {} if task is None else {"task": task}
        found = self.hub.recall("acme", query, k, policy=POLICIES[policy], **where)
        seqs = dict(self.hub.episodes("acme").select("id", "seq").iter_rows())
        rows = [(seqs[uid], each) for uid, each in self.rows.items()]
        check(found, brute_force(rows, query, POLICIES[policy], where, self.clock.now()), k, exact=not self.graph)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "hub"):
            assert {each.id for each in self.hub.recall("acme", None, 10_000, policy=Reward())} == set(self.rows)

    def teardown(self) -> None:
        try:
            assert self.hub.verify().problems == []
        finally:
            self.hub.close()
            self.patch.undo()
            shutil.rmtree(self.path)


class AnySequenceWithGraphs(AnySequence):
    graph = True


for machine in (AnySequence, AnySequenceWithGraphs):
    machine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestExact = AnySequence.TestCase
TestGraph = AnySequenceWithGraphs.TestCase


# --- loading, and racing with it ----------------------------------------------------------------------------


def test_a_recall_between_a_commit_and_the_index_sees_each_episode_once(hub, episode, vector, monkeypatch):
    hub.put([episode(n, vector=vector(n)) for n in range(3)])
    apply = Indexes.apply

    def load_first(self, events):
        """A reader comes just after the commit and before the index has heard of it."""
        self.get("acme")
        apply(self, events)

    monkeypatch.setattr(Indexes, "apply", load_first)
    hub.put(episode(3, id="new", vector=vector(3)))
    monkeypatch.undo()
    assert hub.verify().problems == []
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(hub.recall, "acme", vector(3), 10)
        try:
            assert [each.id for each in found.result(10)].count("new") == 1
        finally:
            hub.forget("acme", ["new"], reason="ends the search if it goes round in circles")


def test_many_first_recalls_at_once_while_others_put_lose_nothing_and_repeat_nothing(tmp_path, episode, vector):
    for round_ in range(12):
        path = tmp_path / str(round_)
        with Hub(path, embedder="hashing", durability="off") as hub:
            hub.put([episode(n, vector=vector(n)) for n in range(200)])
        with Hub(path, durability="off") as hub, ThreadPoolExecutor(10) as threads:
            start = threading.Barrier(10)

            def put(number: int, hub: Hub = hub, start: threading.Barrier = start) -> str:
                start.wait(20)
                hub.put([mine := episode(number, vector=vector(number))])
                return mine.id

            def recall(number: int, hub: Hub = hub, start: threading.Barrier = start) -> list[str]:
                start.wait(20)
                return [each.id for each in hub.recall("acme", vector(number), 1_000)]

            written = [threads.submit(put, number) for number in range(5)]
            read = [threads.submit(recall, number) for number in range(5)]
            for future in read:
                ids = future.result(20)
                assert len(ids) == len(set(ids)) >= 200
            made = {future.result(20) for future in written}
            ids = [each.id for each in hub.recall("acme", vector(0), 1_000)]
            assert len(ids) == 205
            assert made <= set(ids)
            assert hub.verify().problems == []


def test_recall_never_falters_while_others_put_and_forget(tmp_path, episode, vector, small_graphs):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        steady = [episode(n, vector=vector(n), task="steady") for n in range(100)]
        hub.put(steady)
        finished = threading.Event()

        def churn(number: int) -> None:
            for turn in range(40):
                batch = [
                    episode(turn * 7 + n, agent_id=f"a{number}", vector=vector(n), task="churn") for n in range(20)
                ]
                hub.put(batch)
                assert hub.forget("acme", [each.id for each in batch[:15]], reason="r") == 15

        def watch(number: int) -> int:
            rounds = 0
            while not finished.is_set():
                assert len({each.id for each in hub.recall("acme", vector(number), 100)}) == 100
                found = hub.recall("acme", vector(rounds % 100), 100, task="steady")
                assert {each.id for each in found} == {each.id for each in steady}
                assert found[0].id == steady[rounds % 100].id
                rounds += 1
            return rounds

        with ThreadPoolExecutor(4) as threads:
            watchers = [threads.submit(watch, number) for number in range(2)]
            churners = [threads.submit(churn, number) for number in range(2)]
            try:
                for future in churners:
                    future.result(60)
            finally:
                finished.set()
            assert all(future.result(20) for future in watchers)
        assert hub.stats("acme").episodes == len(hub.recall("acme", vector(0), 10_000)) == 500
        assert hub.verify().problems == []


def test_what_comes_and_goes_while_a_search_begins_makes_it_find_no_fewer(
    tmp_path, episode, vector, small_graphs, monkeypatch
):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        hub.put([episode(n, vector=vector(n)) for n in range(100)])
        hub.recall("acme", vector(0), 1)
        small_graphs(hub)
        prepare = index_module.searching.unit_vectors

        def meanwhile(queries: np.ndarray) -> np.ndarray:
            monkeypatch.undo()
            hub.put(fleeting := [episode(n, vector=vector(n)) for n in range(30)])
            hub.forget("acme", [each.id for each in fleeting], reason="r")
            return prepare(queries)

        monkeypatch.setattr(index_module.searching, "unit_vectors", meanwhile)
        assert len(hub.recall("acme", vector(0), 100)) == 100


def test_verify_is_not_fooled_by_what_happens_meanwhile(tmp_path, episode, vector):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        batch = [episode(n, vector=vector(n)) for n in range(2_000)]
        hub.put(batch)
        finished = threading.Event()

        def change() -> None:
            for number in range(0, 1_900, 10):
                if finished.is_set():
                    return
                hub.forget("acme", [each.id for each in batch[number : number + 10]], reason="r")
                hub.put([episode(n, vector=vector(n)) for n in range(3)])

        with ThreadPoolExecutor(1) as threads:
            changing = threads.submit(change)
            reports = []
            while not changing.done() and len(reports) < 8:
                reports.append(hub.verify())
            finished.set()
        assert [problem for report in reports for problem in report.problems] == []


# --- snapshots ----------------------------------------------------------------------------------------------


def of_another_dimension(path: Path) -> None:
    from usearch.index import Index as Graph

    graph = Graph(ndim=16, metric="cos", dtype="f16")
    graph.add(np.arange(1, 400), np.random.default_rng(0).normal(size=(399, 16)).astype(np.float16))
    graph.save(str(path))
    with_checksum_of(path)


def with_checksum_of(path: Path) -> None:
    manifest = json.loads((path.parent / "manifest.json").read_text())
    for snapshot in manifest["tenants"].values():
        snapshot["checksum"] = snapshots.checksum_of(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def rewritten(change):
    """Damage that comes with a checksum that fits."""
    return lambda path: (change(path), with_checksum_of(path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for position in range(40, len(data), len(data) // 20):
        data[position] ^= 0xFF
    path.write_bytes(bytes(data))


def manifest_says(text: bytes):
    return lambda path: (path.parent / "manifest.json").write_bytes(text)


DAMAGE = {
    "truncated": cut,
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5_000)),
    "missing": lambda path: path.unlink(),
    "empty with its checksum": rewritten(lambda path: path.write_bytes(b"")),
    "truncated with its checksum": rewritten(cut),
    "noise with its checksum": rewritten(lambda path: path.write_bytes(np.random.default_rng(0).bytes(5_000))),
    "other dimension": of_another_dimension,
    "manifest empty": manifest_says(b""),
    "manifest noise": manifest_says(b"\xff\x00\x80"),
    "manifest of another form": manifest_says(b'{"tenants": 5}'),
    "manifest deep": manifest_says(b"[" * 100_000),
    "index is a file": lambda path: (shutil.rmtree(path.parent), path.parent.write_text("not a directory")),
    "index is gone": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_snapshot_is_noticed_and_the_index_built_anew(tmp_path, episode, vector, small_graphs, name):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        hub.put([episode(n, vector=vector(n)) for n in range(200)])
        hub.recall("acme", vector(0), 1)
        small_graphs(hub)
    (snapshot,) = (tmp_path / "index").glob("*.usearch")
    DAMAGE[name](snapshot)
    for _ in range(2):
        with Hub(tmp_path, durability="off") as hub:
            found = [hub.recall("acme", vector(n), 1)[0].input for n in range(200)]
            assert found == [f"input {n}" for n in range(200)]
            small_graphs(hub)
            hub.snapshot() if "file" not in name else None
            assert hub.verify().problems == [] or "file" in name


def test_a_snapshot_is_used_and_follows_the_log(tmp_path, episode, vector, small_graphs, caplog):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        batch = [episode(n, vector=vector(n)) for n in range(200)]
        hub.put(batch)
        hub.recall("acme", vector(0), 1)
        small_graphs(hub)
    with Hub(tmp_path, durability="off") as hub:  # nobody recalls: the index is not even loaded
        hub.forget("acme", [each.id for each in batch[:50]], reason="r")
        hub.put([late := episode(7, vector=vector(777)), episode(8, tenant_id="other", vector=vector(1))])
    with Hub(tmp_path, durability="off") as hub:
        found = hub.recall("acme", vector(777), 1_000)
        assert found[0].id == late.id
        assert {each.id for each in found} == {late.id} | {each.id for each in batch[50:]}
        assert hub._indexes.get("acme").view.graph is not None
        assert hub.verify().problems == []
    assert caplog.records == []


def lacking(path: Path) -> None:
    """Every other row, with a checksum that fits."""
    with path.open("rb") as file:
        held = {name: np.load(file)[::2] for name in snapshots.COLUMNS}
    snapshots._save_arrays(path, held)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["tenants"]["acme"]["columns"]["checksum"] = snapshots.checksum_of(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


COLUMNS_DAMAGE = {
    "none": lambda path: None,
    "flipped": flip,
    "truncated": cut,
    "missing": lambda path: path.unlink(),
    "lacking": lacking,
}


@pytest.mark.parametrize("name", COLUMNS_DAMAGE)
def test_columns_of_a_snapshot_are_those_of_the_database(tmp_path, episode, vector, small_graphs, monkeypatch, name):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        made = [episode(n, task=f"task {n % 7}", agent_id=f"a{n % 11}", vector=vector(n)) for n in range(300)]
        hub.put(made)
        hub.recall("acme", vector(0), 1)
        small_graphs(hub)
        hub.forget("acme", [each.id for each in made if each.task == "task 0"], reason="r")
        hub.put([episode(n, task=f"new {n}", vector=vector(n)) for n in range(300, 310)])
    (file,) = (tmp_path / "index").glob("*.columns")
    assert b"task" not in file.read_bytes()
    COLUMNS_DAMAGE[name](file)
    read: list[int] = []
    known = indexes._read_known
    monkeypatch.setattr(indexes, "_read_known", lambda *given: (read.append(given[3]), known(*given)))
    for _ in range(2):  # and what is damaged is written anew when the hub is closed
        read.clear()
        with Hub(tmp_path, durability="off") as hub:
            index = hub._indexes.get("acme")
            ids, *columns = index.columns(("reward", "created_at", "task", "agent_id"))
            held = hub.episodes("acme")
            assert ids.tolist() == held["seq"].to_list()
            for column, kind in zip(columns, ("reward", "created_at", "task", "agent_id"), strict=True):
                assert column.tolist() == held[kind].to_list()
            assert len(hub.recall("acme", vector(1), 1_000, task="task 1")) == len(
                [n for n in range(300) if n % 7 == 1]
            )
            assert bool(read and read[0] == 0) == (name != "none")
            name = "none"


def test_a_snapshot_that_is_ahead_of_the_database_is_not_believed(tmp_path, episode, vector, small_graphs):
    """Power was lost with durability "normal", or hub.db alone was put back from a copy."""
    path = tmp_path / "hub"
    with Hub(path, embedder="hashing", durability="normal") as hub:
        hub.put([episode(n, vector=vector(n)) for n in range(100)])
    shutil.copy(path / "hub.db", tmp_path / "copy")
    with Hub(path) as hub:
        hub.put([episode(n, vector=vector(n)) for n in range(100, 200)])
        hub.recall("acme", vector(0), 1)
        small_graphs(hub)
    shutil.copy(tmp_path / "copy", path / "hub.db")
    with Hub(path) as hub:
        hub.put([episode(n, vector=vector(1_000 + n)) for n in range(100)])
        assert hub.recall("acme", vector(1_042), 1)[0].similarity == pytest.approx(1, abs=1e-2)
        assert hub.verify().problems == []


def test_closing_works_although_the_snapshot_can_not_be_written(tmp_path, episode, vector, small_graphs):
    hub = Hub(tmp_path, embedder="hashing", durability="off")
    hub.put([episode(n, vector=vector(n)) for n in range(100)])
    (tmp_path / "index").write_text("in the way")
    hub.recall("acme", vector(0), 1)
    small_graphs(hub)
    hub.close()
    with Hub(tmp_path) as again:
        assert again.stats().episodes == 100


def test_what_a_query_finds_does_not_depend_on_what_else_is_asked_nor_on_rows_that_are_gone():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(900, 24)).astype(np.float16)
    vectors[::10] = vectors[0]  # ties, of which the newest come first
    index = index_module.TenantIndex(24)
    index.add([Stored("t", n + 1, n % 7, n // 3, f"task {n % 5}", f"agent {n}", vectors[n]) for n in range(900)])
    gone = [n + 1 for n in range(900) if n % 3 == 2]
    index.remove(gone)
    compacted = index.compacted()
    queries = np.vstack([vectors[:1], rng.normal(size=(70, 24)).astype(np.float16)])
    for policy, where in itertools.product(POLICIES.values(), (Filter(), Filter(task="task 2"), Filter(min_reward=3))):
        many = index.search_many(queries, 12, policy, where, 0)
        assert many == [index.search(query, 12, policy, where, 0) for query in queries]
        assert many == compacted.search_many(queries, 12, policy, where, 0)
        assert not {hit.id for each in many for hit in each} & set(gone)
    tied = [n + 1 for n in range(0, 900, 10) if n % 3 != 2]
    assert [hit.id for hit in index.search(vectors[0], 12, Similarity(), Filter(), 0)] == tied[:-13:-1]
    assert compacted.describe(compacted.view.ids).agents == {f"agent {n}": 1 for n in range(900) if n % 3 != 2}


def test_much_forgetting_leaves_an_index_as_small_as_what_is_left(tmp_path):
    rng = np.random.default_rng(0)
    with Hub(tmp_path / "hub", embedder=Hashing(16), durability="off") as hub:
        common = {"tenant_id": "acme", "agent_id": "a", "task": "t", "input": "", "output": "", "reward": 1.0}
        made = [Episode(**common, vector=vector) for vector in rng.normal(size=(1_500, 16))]
        hub.put(made)
        hub.recall("acme", made[0].vector)
        hub.forget("acme", [each.id for each in made[:1_200]], reason="test")
        wait_until(lambda: hub._indexes.get("acme").view.n == 300)
        assert [hub.recall("acme", each.vector, k=1)[0].id for each in made[1_200:]] == [
            each.id for each in made[1_200:]
        ]
        hub.put(Episode(**common, id="new", vector=made[0].vector))
        assert hub.recall("acme", made[0].vector, k=1)[0].id == "new"
        assert hub.verify().ok


def test_policies_tried_one_after_another_are_compared_as_each_alone():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 16)).astype(np.float16)
    index = index_module.TenantIndex(16)
    index.add([Stored("t", n, n / 400, n, "task", "agent", vector) for n, vector in enumerate(vectors, 1)])
    queries = list(rng.normal(size=(5, 16)).astype(np.float16))
    for share in (0.0, 0.3, 0.97, 1.0, 0.5):
        if share == 0.5:
            index.remove([7, 8, 9])
        gone = np.flatnonzero(rng.random(400) < share) + 1
        there = np.array([n for n in range(1, 401) if share != 0.5 or n not in (7, 8, 9)])
        for query, (before, after) in zip(queries, index.compare(queries, 10, gone), strict=True):
            for hits, ids in ((before, there), (after, np.setdiff1d(there, gone))):
                similar = index_module.unit(vectors[ids - 1]) @ index_module.unit([query])[0]
                assert [hit.id for hit in hits] == ids[np.argsort(-similar)][:10].tolist()


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_a_script_that_ends_while_its_index_is_built_ends_as_it_says(tmp_path, end):
    script = f"""
import time
import numpy as np
from fedlab import Episode, Hub
hub = Hub({str(tmp_path)!r}, embedder="hashing-64", durability="off")
common = dict(tenant_id="acme", agent_id="a", task="t", input="", output="", reward=1.0)
rows = np.random.default_rng(0).normal(size=(30_000, 64))
for start in range(0, 30_000, 5_000):
    hub.put([Episode(**common, vector=row) for row in rows[start : start + 5_000]])
hub.recall("acme", rows[0])
while hub._indexes._worker is None:
    time.sleep(0.01)
time.sleep(0.3)  # in the middle of it
{end}
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (3 if end else 0, "")
    with Hub(tmp_path) as hub:
        assert hub.stats().episodes == 30_000
