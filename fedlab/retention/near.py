"""Near-duplicates among many vectors, found exactly and without comparing each with each.

A vector's *sketch* is a short unit vector: its first coordinates in an orthonormal basis, and the length of the rest.
The cosine of two sketches is never below that of their vectors (Cauchy-Schwarz for the rest), so that only what is near
as sketches has to be compared in full; and so on with a sketch of the sketch. Rows are split into boxes by their first
coordinates: only boxes that are close enough are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedlab.hub.sketches import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = npt.NDArray[Any]
    Rows = npt.NDArray[np.int64]

LEAF = 1_024
"""Rows up to which each is compared with each."""
COARSE = 8
"""Numbers of a sketch that are compared first."""
BOX = 256
"""Most rows of a box, which are compared with at most …"""
ACROSS = 2_048
"""… so many rows at once: their similarities stay in the cache."""
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
        self._least = np.float32(similarity - PRECISION)
        self._loose = np.float32(similarity - (PRECISION if read is None else 3 * PRECISION))
        self._apart = np.float32(np.sqrt(2 - 2 * (similarity - 8 * PRECISION)))
        self._coarse = sketches
        if sketches.shape[1] > COARSE and read is not None:
            rest = np.linalg.norm(sketches[:, COARSE - 1 :], axis=1, keepdims=True)
            self._coarse = np.concatenate([sketches[:, : COARSE - 1], rest], axis=1)
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
        gone = bytearray(len(self._sketches))
        # By the better one: whether it stays is known when its turn comes.
        for one, other in pairs[:, np.argsort(pairs[0], kind="stable")].T.tolist():
            if not gone[one]:
                gone[other] = 1
        return rows[~np.frombuffer(gone, np.bool_)[rows]]

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
        for some, others in self._blocks(left, right):
            alike = np.flatnonzero(self._coarse[some] @ self._coarse[others].T >= self._loose)
            pairs = self._paired(some[alike // len(others)], others[alike % len(others)])
            if self._read is None:
                yield pairs
                continue
            pairs = pairs[:, _alike(pairs, self._sketches) >= self._loose]
            if pairs.shape[1] > MANY * len(some) * len(others):
                first, second = np.nonzero(self._full(some) @ self._full(others).T >= self._least)
                yield self._paired(some[first], others[second])
                continue
            waiting.append(pairs)
            count += pairs.shape[1]
            if count > TOGETHER:
                yield self._compared(np.concatenate(waiting, axis=1))
                waiting, count = waiting[:1], 0
        yield self._compared(np.concatenate(waiting, axis=1))

    def _paired(self, first: Rows, second: Rows) -> Array:
        """Some pairs, the better one first, without those of a row with itself and those of two groups."""
        right = (first != second) & (self._groups[first] == self._groups[second])
        first, second = first[right], second[right]
        return np.stack([np.minimum(first, second), np.maximum(first, second)])

    def _blocks(self, left: Rows, right: Rows) -> Iterator[tuple[Rows, Rows]]:
        """Parts of left and right in which all near pairs are; if they are the same, each pair at least one way."""
        if len(left) * len(right) <= LEAF * LEAF:
            yield left, right
            return
        boxes = self._boxes(left)
        others = boxes if left is right else self._boxes(right)
        low, high = self._bounds(boxes)
        lows, highs = (low, high) if left is right else self._bounds(others)
        for number, box in enumerate(boxes):
            gap = np.maximum(0, np.maximum(lows - high[number], low[number] - highs))
            close = np.flatnonzero(np.einsum("ij,ij->i", gap, gap) <= self._apart**2)
            if left is right:
                close = close[close >= number]
            near = np.concatenate([right[:0], *(others[each] for each in close)])
            for start in range(0, len(near), ACROSS):
                yield box, near[start : start + ACROSS]

    def _boxes(self, rows: Rows) -> list[Rows]:
        """Rows cut in halves, again and again, where they differ most."""
        if len(rows) <= BOX:
            return [rows]
        points = self._coarse[rows]
        order = np.argpartition(points[:, points.var(axis=0).argmax()], len(rows) // 2)
        return [part for half in np.split(rows[order], [len(rows) // 2]) for part in self._boxes(half)]

    def _bounds(self, boxes: list[Rows]) -> tuple[Array, Array]:
        points = [self._coarse[box] for box in boxes]
        return np.stack([each.min(axis=0) for each in points]), np.stack([each.max(axis=0) for each in points])

    def _compared(self, pairs: Array) -> Array:
        """Those of some pairs that are near in full."""
        near = [pairs[:, :0]]
        for start in range(0, pairs.shape[1], TOGETHER):
            part = pairs[:, start : start + TOGETHER]
            rows, places = np.unique(part, return_inverse=True)
            near.append(part[:, _alike(places.reshape(part.shape), self._full(rows)) >= self._least])
        return np.concatenate(near, axis=1)

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


def _alike(pairs: Array, vectors: Array) -> Array:
    """The cosine of each pair."""
    return np.asarray(np.einsum("ij,ij->i", vectors[pairs[0]], vectors[pairs[1]]))
