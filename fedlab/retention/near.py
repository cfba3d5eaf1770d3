"""Near-duplicates among many vectors, found exactly: what is near as sketches (`fedlab.hub.sketches`) is compared in
full, and of many near ones most are never looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedlab.hub.sketches import alike, cosines, unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = npt.NDArray[Any]
    Rows = npt.NDArray[np.int64]

LEAF = 1_024
"""Rows up to which all near pairs are looked at, however many."""
CROWDED = 16
"""Near ones of a row, on average, above which the better half is decided first: most of the others need not be looked
at then."""
MANY = 0.02
"""Of the pairs of a block, how many near ones make it quicker to compare all of them in full."""
TOGETHER = 50_000
"""Pairs compared in full at once."""
PRECISION = 1e-6
"""float32 gives a vector's similarity to itself only so precisely, and that of sketches likewise."""


class Nearness:
    """Rows, the best first, and which of them are near each other.

    Args:
        sketches: Unit vectors, shape (n, short), float32; the vectors themselves if `read` is None.
        read: Gives the vectors of some rows, shape (m, dimension), float16.
        similarity: Cosine of two vectors from which they are near.
        groups: Of each row a number; only rows of one group are near. All are of one if it is None.
    """

    def __init__(
        self, sketches: Array, read: Callable[[Rows], Array] | None, similarity: float, groups: Array | None = None
    ) -> None:
        self._sketches = sketches
        self._groups = np.zeros(len(sketches), np.int64) if groups is None else groups
        self._read = read
        self._least = similarity - PRECISION
        self._loose = similarity - (PRECISION if read is None else 3 * PRECISION)
        self._held = np.zeros(len(sketches), np.bool_)
        self._vectors: Array | None = None

    def distinct(self, rows: Rows) -> Rows:
        """The rows (ascending) that stay if, from the best on, each goes that a better one which stays is near to."""
        pairs = self._few_pairs(rows)
        if pairs is None:
            better, worse = np.split(rows, [len(rows) // 2])
            better = self.distinct(better)
            near = np.concatenate([rows[:0], *(pairs[1] for pairs in self._pairs(better, worse))])
            return np.concatenate([better, self.distinct(worse[~np.isin(worse, near)])])
        return rows[~outdone(pairs, len(self._sketches))[rows]]

    def _few_pairs(self, rows: Rows) -> Array | None:
        """All near pairs, shape (2, m); None if there are too many."""
        if len(rows) > LEAF:
            some = rows[:: -(-len(rows) // 64)]
            near = self._sketches[some] @ self._sketches[rows].T >= self._loose
            if np.count_nonzero(near) > (1 + CROWDED) * len(some):
                return None
        found, count = [np.zeros((2, 0), np.int64)], 0
        for pairs in self._pairs(rows, rows):
            found.append(pairs)
            count += pairs.shape[1]
            if len(rows) > LEAF and count > CROWDED * len(rows):
                return None
        return np.concatenate(found, axis=1)

    def _pairs(self, left: Rows, right: Rows) -> Iterator[Array]:
        """The near pairs of a row on the left and a worse one on the right, shape (2, m)."""
        waiting, count = [np.zeros((2, 0), np.int64)], 0
        sketches = self._sketches[left]
        others = sketches if left is right else self._sketches[right]
        for some, more, first, second in alike(sketches, others, self._loose):
            pairs = self._paired(left[first], right[second])
            if self._read is None:
                yield pairs
                continue
            if pairs.shape[1] > MANY * (some.stop - some.start) * (more.stop - more.start):
                one, other = np.nonzero(self._full(left[some]) @ self._full(right[more]).T >= self._least)
                yield self._paired(left[some][one], right[more][other])
                continue
            waiting.append(pairs)
            count += pairs.shape[1]
            if count > TOGETHER:
                yield confirmed(np.concatenate(waiting, axis=1), self._full, self._least)
                waiting, count = waiting[:1], 0
        yield confirmed(np.concatenate(waiting, axis=1), self._full, self._least)

    def _paired(self, first: Rows, second: Rows) -> Array:
        """Some pairs, the better one first, without those of a row with itself and those of two groups."""
        right = (first != second) & (self._groups[first] == self._groups[second])
        first, second = first[right], second[right]
        return np.stack([np.minimum(first, second), np.maximum(first, second)])

    def _full(self, rows: Rows) -> Array:
        """The vectors of some rows at length 1; each is read once."""
        assert self._read is not None
        missing = rows[~self._held[rows]]
        if len(missing):
            read = self._read(missing)
            if self._vectors is None:
                self._vectors = np.empty((len(self._sketches), read.shape[1]), np.float16)
            self._vectors[missing] = read
            self._held[missing] = True
        assert self._vectors is not None or not len(rows)
        return unit(self._vectors[rows]) if self._vectors is not None else np.zeros((0, 1), np.float32)


def confirmed(pairs: Array, full: Callable[[Rows], Array], least: float) -> Array:
    """Those of some pairs of rows, shape (2, m), whose cosine is at least so large in full.

    Args:
        pairs: Of rows.
        full: Gives the unit vectors of rows.
        least: The cosine.
    """
    found = [pairs[:, :0]]
    for start in range(0, pairs.shape[1], TOGETHER):
        part = pairs[:, start : start + TOGETHER]
        rows, places = np.unique(part, return_inverse=True)
        found.append(part[:, cosines(places.reshape(part.shape), full(rows)) >= least])
    return np.concatenate(found, axis=1)


def outdone(pairs: Array, n: int) -> npt.NDArray[np.bool_]:
    """Which of n rows, the best first, go if each goes that is near a better one which stays.

    Args:
        pairs: Near ones, the better one first, shape (2, m).
        n: Of rows.
    """
    gone = bytearray(n)
    # By the better one: whether it stays is known when its turn comes.
    for one, other in pairs[:, np.argsort(pairs[0], kind="stable")].T.tolist():
        if not gone[one]:
            gone[other] = 1
    return np.frombuffer(gone, np.bool_)
