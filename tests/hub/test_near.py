"""Near-duplicates: what is found by sketches is what is found by comparing each with each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.hub import sketches
from fedlab.hub.sketches import basis, sketch, unit
from fedlab.retention import near
from fedlab.retention.near import Nearness


def by_definition(vectors: np.ndarray, similarity: float) -> list[int]:
    """From the first on, a row stays unless one that stays is near."""
    units = unit(vectors)
    kept: list[int] = []
    for row in range(len(units)):
        if not kept or (units[kept] @ units[row]).max() < similarity - near.PRECISION:
            kept.append(row)
    return kept


def scattered(rng: np.random.Generator, n: int, dimension: int) -> np.ndarray:
    return rng.normal(size=(n, dimension))


def clustered(rng: np.random.Generator, n: int, dimension: int) -> np.ndarray:
    noise = rng.choice([0.0, 0.01, 0.1, 0.3])
    return rng.normal(size=(10, dimension))[rng.integers(10, size=n)] + noise * rng.normal(size=(n, dimension))


def drifting(rng: np.random.Generator, n: int, dimension: int) -> np.ndarray:
    return np.cumsum(rng.normal(size=(n, dimension)), axis=0)


def half_the_same(rng: np.random.Generator, n: int, dimension: int) -> np.ndarray:
    same = rng.normal(size=(3, dimension))[rng.integers(3, size=n)]
    return np.where(rng.random((n, 1)) < 0.5, same, rng.normal(size=(n, dimension)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 600),
    st.sampled_from([8, 48, 384]),
    st.sampled_from([scattered, clustered, drifting, half_the_same]),
    st.sampled_from([0.5, 0.8, 0.9, 0.98, 0.999, 1.0]),
)
def test_what_stays_is_what_the_definition_says(seed, n, dimension, lying, similarity):
    vectors = lying(np.random.default_rng(seed), n, dimension).astype(np.float16)
    short = sketch(unit(vectors), basis(unit(vectors[::2])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "LEAF", 64)
        patch.setattr(sketches, "BLOCK", 16)
        kept = Nearness(short, lambda rows: vectors[rows], similarity).distinct(np.arange(n))
    assert kept.tolist() == by_definition(vectors, similarity)


def test_rows_of_two_groups_are_not_near(monkeypatch):
    monkeypatch.setattr(near, "LEAF", 8)
    vectors = unit(np.tile(np.eye(3), (10, 1)))
    groups = np.arange(30) // 15
    assert Nearness(vectors, None, 0.98, groups).distinct(np.arange(30)).tolist() == [0, 1, 2, 15, 16, 17]


def test_few_vectors_are_read_where_few_are_near():
    rng = np.random.default_rng(0)
    # Directions of unequal weight, as those of sentences are.
    vectors = (rng.normal(size=(5_000, 384)) / np.sqrt(1 + np.arange(384))).astype(np.float16)
    vectors[4_000:] = vectors[:1_000] + (0.001 * rng.normal(size=(1_000, 384))).astype(np.float16)
    read: list[int] = []

    def give(rows: np.ndarray) -> np.ndarray:
        read.extend(rows.tolist())
        return vectors[rows]

    short = sketch(unit(vectors), basis(unit(vectors)))
    assert Nearness(short, give, 0.98).distinct(np.arange(5_000)).tolist() == list(range(4_000))
    assert {*range(1_000), *range(4_000, 5_000)} <= set(read)
    assert len(read) == len(set(read)) < 2_500
