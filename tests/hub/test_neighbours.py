"""What an index knows of near episodes is what comparing each with each finds, however the episodes came."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab import Distinct, Episode, Hub
from fedlab.hub import neighbours, snapshots
from fedlab.hub.neighbours import FLOOR, SLACK, Neighbours
from fedlab.hub.sketches import unit
from fedlab.retention import policies
from fedlab.retention.near import PRECISION

from .conftest import wait_until


def crowds(rng: np.random.Generator, n: int, dimension: int) -> np.ndarray:
    """Vectors at all distances from each other, a few of them zero."""
    centres = rng.normal(size=(max(1, n // 3), dimension))
    noise = rng.choice([0.0, 0.05, 0.2, 0.5], size=(n, 1))
    vectors = unit(centres[rng.integers(len(centres), size=n)] + noise * rng.normal(size=(n, dimension)))
    vectors[rng.random(n) < 0.02] = 0
    return vectors


def followed(vectors: np.ndarray, tasks: np.ndarray, steps: list[int]) -> Neighbours:
    known = Neighbours()
    for end in [*steps, len(tasks)]:
        known.follow(tasks[:end], lambda rows: vectors[rows])
    return known


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 300), st.sampled_from([8, 48, 384]), st.integers(1, 8), st.data())
def test_all_near_pairs_within_tasks_are_known(seed, n, dimension, kinds, data):
    rng = np.random.default_rng(seed)
    vectors, tasks = crowds(rng, n, dimension), rng.integers(kinds, size=n).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "CHUNK", 64)
        patch.setattr(neighbours, "CROWDED", n)
        near = followed(vectors, tasks, sorted(data.draw(st.lists(st.integers(1, n), max_size=3)))).near
    cosines = vectors @ vectors.T
    first, second = np.nonzero(np.tril((cosines >= FLOOR) & (tasks[:, None] == tasks), -1))
    known = {(one, other): value for (one, other), value in zip(near.pairs.T.tolist(), near.cosines, strict=True)}
    assert len(known) == near.pairs.shape[1]
    assert not near.open
    assert set(zip(first.tolist(), second.tolist(), strict=True)) <= set(known)
    for (one, other), value in known.items():
        assert value == pytest.approx(cosines[one, other], abs=1e-5)
        assert value >= FLOOR - SLACK
        assert other < one
        assert tasks[one] == tasks[other]


def test_a_crowd_and_a_large_task_are_left_out_and_cost_no_memory(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 128)
    monkeypatch.setattr(neighbours, "LARGE", 700)
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(3_000, 48)))
    tasks = rng.choice(4, p=[0.3, 0.2, 0.2, 0.3], size=3_000).astype(np.int32)
    vectors[tasks == 1] = vectors[0]
    near = followed(vectors, tasks, []).near
    assert near.open == {0, 1, 3}  # two are large, one is all alike
    assert near.pairs.shape[1] < 500 * neighbours.CROWDED


def test_who_follows_can_be_stopped():
    stop = threading.Event()
    stop.set()
    known = Neighbours()
    known.follow(np.zeros(10, np.int32), lambda rows: np.eye(10, dtype=np.float32)[rows], stop)
    assert known.n == 0


def staying(rows: list[Episode], similarity: float) -> set[str]:
    """By definition: from the best on (the newer among equals), an episode stays unless one that stays is near."""
    kept: list[Episode] = []
    for _, row in sorted(enumerate(rows), key=lambda each: (-each[1].reward, -each[1].created_at, -each[0])):
        others = unit([each.vector for each in kept if each.task == row.task] or [np.zeros_like(row.vector)])
        if (others @ unit([row.vector])[0]).max() < similarity - PRECISION:
            kept.append(row)
    return {each.id for each in kept}


@pytest.mark.parametrize("similarity", [0.8, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("left_out", [False, True])
def test_a_hub_keeps_the_best_of_near_ones(tmp_path, small_graphs, similarity, left_out, monkeypatch):
    """With some episodes in a graph, some after it, and some forgotten; then once more without an index."""
    monkeypatch.setattr(policies, "FEW", 10)
    monkeypatch.setattr(neighbours, "CHUNK", 100)
    if left_out:
        monkeypatch.setattr(neighbours, "CROWDED", 0)
        monkeypatch.setattr(neighbours, "SPARE", 3)
    rng = np.random.default_rng(1)
    rows = [
        Episode(
            tenant_id="acme",
            agent_id="a",
            task=f"task {number % 3}",
            input=f"{number}",
            output="",
            reward=float(rng.integers(4)),
            created_at=int(rng.integers(1, 5)),
            vector=vector.astype(np.float16) if vector.any() else np.eye(48)[number % 48],
        )
        for number, vector in enumerate(crowds(rng, 300, 48))
    ]
    with Hub(tmp_path, embedder="hashing-48") as hub:
        hub.put(rows[:290])
        hub.recall("acme", rows[0].vector)
        small_graphs(hub)
        hub.forget("acme", [row.id for row in rows[:290:7]], reason="test")
        hub.put(rows[290:])
        rows = [row for number, row in enumerate(rows) if number % 7 or number >= 290]
        kept = staying(rows, similarity)
        assert 100 < len(kept) < len(rows)
        assert hub.preview_retention("acme", Distinct(similarity)).kept == len(kept)
        part = hub.preview_retention("acme", Distinct(similarity).where(min_reward=2))
        better = [row for row in rows if row.reward >= 2]
        assert part.removed == len(better) - len(staying(better, similarity))
        hub.set_retention("acme", Distinct(similarity))
    with Hub(tmp_path, embedder="hashing-48") as hub:
        assert not hub._indexes.is_loaded("acme")
        hub.apply_retention("acme")
        assert set(hub.episodes("acme")["id"]) == kept


# --- remembered --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 300), st.integers(1, 6), st.sampled_from([0.0, 0.4, 1.0]), st.data())
def test_what_is_kept_of_some_rows_and_followed_is_as_if_the_others_had_never_been(seed, n, kinds, gone, data):
    rng = np.random.default_rng(seed)
    vectors, tasks = crowds(rng, n, 16), rng.integers(kinds, size=n).astype(np.int32)
    end = data.draw(st.integers(0, n))
    left = np.flatnonzero(rng.random(n) >= gone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "CHUNK", 64)
        patch.setattr(neighbours, "CROWDED", n)
        known = followed(vectors[:end], tasks[:end], [])
        again = Neighbours(known.kept(left[left < end], tasks), tasks[left])
        assert again.n == np.count_nonzero(left < end)
        again.follow(tasks[left], lambda rows: vectors[left[rows]])
        fresh = followed(vectors[left], tasks[left], [])
    assert set(zip(*again.near.pairs.tolist(), strict=True)) == set(zip(*fresh.near.pairs.tolist(), strict=True))
    order, other = (np.lexsort(each.near.pairs) for each in (again, fresh))
    assert np.allclose(again.near.cosines[order], fresh.near.cosines[other], atol=1e-5)
    assert again.near.open == fresh.near.open == frozenset()


def test_tasks_that_were_left_out_stay_left_out_under_new_numbers(monkeypatch):
    monkeypatch.setattr(neighbours, "SPARE", 3)
    monkeypatch.setattr(neighbours, "CROWDED", 0)
    tasks = np.repeat(np.arange(3, dtype=np.int32), 20)
    vectors = unit(np.random.default_rng(0).normal(size=(60, 48)))
    vectors[tasks == 1] = vectors[0]
    known = followed(vectors, tasks, [])
    assert known.near.open == {1}
    left = np.flatnonzero(tasks)
    assert Neighbours(known.kept(left, tasks), tasks[left] - 1).near.open == {0}
    assert Neighbours(known.kept(np.flatnonzero(tasks != 1), tasks), np.zeros(40, np.int32)).near.open == frozenset()


def lying(n: int, seed: int = 3) -> list[Episode]:
    vectors = crowds(np.random.default_rng(seed), n, 48)
    return [
        Episode(tenant_id="acme", agent_id=f"a{number % 9}", task=f"task {number % 3}", input=f"{number}", output="",
                reward=number * 7 % 10, created_at=1, vector=each if each.any() else np.eye(48)[number % 48])
        for number, each in enumerate(vectors)
    ]  # fmt: skip


def grown(path: Path, small_graphs, rows: list[Episode]) -> None:
    with Hub(path, embedder="hashing-48", durability="off") as hub:
        hub.put(rows)
        hub.recall("acme", rows[0].vector)
        small_graphs(hub)
        wait_until(lambda: not hub._indexes.get("acme").lags)


def with_checksum_of(path: Path) -> None:
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["tenants"]["acme"]["near"]["checksum"] = snapshots.checksum_of(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_version(path: Path) -> None:
    manifest = path.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 0'))


def of_other_rows(path: Path) -> None:
    """Which lack every other one of those that the graph has."""
    with path.open("rb") as file:
        held = {name: np.load(file) for name in ("ids", *neighbours.Kept._fields)}
    half = np.arange(0, len(held["ids"]), 2)
    fewer = neighbours.Kept(*(held[name] for name in neighbours.Kept._fields)).part(half)
    snapshots._save_arrays(path, {"ids": held["ids"][half], **fewer._asdict()})
    with_checksum_of(path)


DAMAGE = {
    "none": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
    "missing": lambda path: path.unlink(),
    "empty with its checksum": lambda path: (path.write_bytes(b""), with_checksum_of(path)),
    "truncated with its checksum": lambda path: (path.write_bytes(path.read_bytes()[:-900]), with_checksum_of(path)),
    "another version": of_another_version,
    "other rows": of_other_rows,
}
SEEN = {"empty", "truncated", "flipped", "missing"}
"""What `verify` tells without reading what the file says."""


@pytest.mark.parametrize("name", DAMAGE)
def test_what_was_known_is_taken_from_a_snapshot_if_it_is_whole(tmp_path, small_graphs, caplog, name):
    rows = lying(300)
    grown(tmp_path, small_graphs, rows)
    (file,) = (tmp_path / "index").glob("*.near")
    DAMAGE[name](file)
    whole = name == "none"
    for _ in range(2):  # and what is damaged is written anew when the hub is closed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(neighbours.Neighbours, "follow", lambda *_: None)
            with Hub(tmp_path, durability="off") as hub:
                assert (hub._indexes.get("acme").known > 200) == whole
                problems = hub.verify().problems
        assert len(problems) == (not whole and name in SEEN)
        assert all(file.name in problem for problem in problems)
        with Hub(tmp_path, durability="off") as hub, pytest.MonkeyPatch.context() as patch:
            patch.setattr(policies, "FEW", 10)
            assert hub.preview_retention("acme", Distinct(0.95)).kept == len(staying(rows, 0.95))
            wait_until(lambda hub=hub: not hub._indexes.get("acme").lags)
        whole = True
    assert bool(caplog.records) == (name not in ("none", "another version"))
    with Hub(tmp_path, durability="off") as hub:
        assert hub.verify().ok


def test_what_was_stored_and_forgotten_since_a_snapshot_is_followed(tmp_path, small_graphs, monkeypatch):
    """The snapshot is older than the index: what the hub does without it, it does with it."""
    monkeypatch.setattr(policies, "FEW", 10)
    rows = lying(400)
    grown(tmp_path, small_graphs, rows[:200])
    with Hub(tmp_path, durability="off") as hub:  # nobody recalls: the index is not even loaded
        hub.forget("acme", [row.id for row in rows[:200:3]], reason="test")
        hub.put(rows[200:])
    left = [row for number, row in enumerate(rows) if number % 3 or number >= 200]
    for without in (False, True):
        with Hub(tmp_path, durability="off") as hub:
            if without:
                for file in (tmp_path / "index").glob("*.near"):
                    file.unlink()
            assert (hub._indexes.get("acme").known > 100) != without or not hub._indexes.get("acme").lags
            assert hub.preview_retention("acme", Distinct(0.95)).kept == len(staying(left, 0.95))


def test_much_forgetting_costs_nothing_that_was_known_of_the_rest(tmp_path, small_graphs):
    rows = lying(3_000)
    grown(tmp_path, small_graphs, rows)
    with Hub(tmp_path, durability="off") as hub:
        before = hub._indexes.get("acme")
        hub.forget("acme", [row.id for row in rows[:2_000]], reason="test")
        wait_until(lambda: hub._indexes.get("acme").view.n == 1_000)
        index = hub._indexes.get("acme")
        assert index is not before
        assert index._neighbours._basis is before._neighbours._basis  # not made anew
        assert hub.preview_retention("acme", Distinct(0.95)).kept == len(staying(rows[2_000:], 0.95))


@pytest.mark.parametrize("scope", ["tenant", "agent", "episodes"])
def test_no_sketch_of_what_was_erased_is_in_any_byte_of_any_file(tmp_path, small_graphs, scope):
    rng = np.random.default_rng(4)  # no two are the same, or what stays would have the same bytes
    rows = [msgspec.structs.replace(row, vector=rng.normal(size=48)) for row in lying(300)]
    grown(tmp_path, small_graphs, rows)
    with Hub(tmp_path, durability="off") as hub:
        going = [row for row in rows if row.agent_id == "a4"][: 5 if scope == "episodes" else None]
        found = hub.episodes("acme", ids=[row.id for row in going])
        index = hub._indexes.get("acme")
        sketched = index.sketches(np.sort(found["seq"].to_numpy()))
        needles = [each.tobytes()[start : start + 16] for each in sketched for start in range(0, 128, 16)]
        needles += [row.vector.astype("<f2").tobytes()[:32] for row in going]

        def traces() -> int:
            data = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
            return sum(needle in data for needle in needles)

        assert traces() == len(needles)
        if scope == "tenant":
            hub.erase_tenant("acme", reason="request")
        elif scope == "agent":
            hub.erase_agent("acme", "a4", reason="request")
        else:
            hub.erase_episodes("acme", [row.id for row in going], reason="request")
        assert traces() == 0
        if scope != "tenant":
            hub.recall("acme", rows[0].vector)
            small_graphs(hub)
            hub.snapshot()
    assert traces() == 0
    assert len(list((tmp_path / "index").glob("*.near"))) == (scope != "tenant")


def test_a_file_of_near_pairs_is_written_when_more_is_known_and_not_before(tmp_path, small_graphs, monkeypatch):
    rows = lying(300)
    grown(tmp_path, small_graphs, rows[:200])
    written: list[list[str]] = []
    save = snapshots._save_arrays
    monkeypatch.setattr(
        snapshots, "_save_arrays", lambda path, arrays: (written.append(list(arrays)), save(path, arrays))
    )
    with Hub(tmp_path, durability="off") as hub:
        hub.recall("acme", rows[0].vector)
        hub.snapshot()
    assert written == []
    with Hub(tmp_path, durability="off") as hub:
        hub.recall("acme", rows[0].vector)
        hub.put(rows[200:])
        small_graphs(hub)
        wait_until(lambda: not hub._indexes.get("acme").lags)
    assert ["sketches" in each for each in written] == [False, True]  # the columns, and what is near
    assert {each.suffix for each in (tmp_path / "index").iterdir()} == {".json", ".usearch", ".columns", ".near"}
