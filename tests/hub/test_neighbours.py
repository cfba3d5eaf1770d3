"""What an index knows of near episodes is what comparing each with each finds, however the episodes came."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab import Distinct, Episode, Hub
from fedlab.hub import neighbours
from fedlab.hub.neighbours import FLOOR, SLACK, Neighbours
from fedlab.hub.sketches import unit
from fedlab.retention import policies
from fedlab.retention.near import PRECISION


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
