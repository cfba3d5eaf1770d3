"""Near-duplicates among many vectors, found exactly and without comparing each with each.

A vector's *sketch* is a short unit vector: its first coordinates in an orthonormal basis, and the length of the rest.
The cosine of two sketches is never below that of their vectors (Cauchy-Schwarz for the rest), so that only what is near
as sketches has to be compared in full. Sketches are compared by cells: each lies in that of the most similar of some
leaders. The border between two cells is a plane, and a sketch that is further from it than near ones can be from each
other has no near one behind it.
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
"""Rows up to which each is compared with each: 4 MB of similarities fit the cache."""
CELLS = 512
"""Most cells."""
CHUNK = 16_384
"""Rows whose cells are found at once."""
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
        self._held = np.zeros(len(sketches), np.bool_)
        self._vectors: Array | None = None

    def distinct(self, rows: Rows) -> Rows:
        """The rows (ascending) that stay if, from the best on, each goes that a better one which stays is near to."""
        if len(rows) > LEAF and self._crowded(rows):
            better, worse = np.split(rows, [len(rows) // 2])
            better = self.distinct(better)
            near = np.concatenate([rows[:0], *(pairs[1] for pairs in self._pairs(better, worse))])
            return np.concatenate([better, self.distinct(worse[~np.isin(worse, near)])])
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *self._pairs(rows, rows)], axis=1)
        gone = bytearray(len(self._sketches))
        # By the better one: whether it stays is known when its turn comes.
        for one, other in pairs[:, np.argsort(pairs[0], kind="stable")].T.tolist():
            if not gone[one]:
                gone[other] = 1
        return rows[~np.frombuffer(gone, np.bool_)[rows]]

    def _crowded(self, rows: Rows) -> bool:
        some = rows[:: len(rows) // 64]
        near = self._sketches[some] @ self._sketches[rows].T >= self._loose
        return int(np.count_nonzero(near)) > (1 + CROWDED) * len(some)

    def _pairs(self, left: Rows, right: Rows) -> Iterator[Array]:
        """The near pairs of a row on the left and a worse one on the right, shape (2, m)."""
        waiting: list[Array] = []
        for some, others in self._blocks(left, right):
            near = self._sketches[some] @ self._sketches[others].T >= self._loose
            first, second = np.nonzero(near)
            if self._read is not None and len(first) > MANY * near.size:
                first, second = np.nonzero(self._full(some) @ self._full(others).T >= self._least)
            else:
                waiting.append(self._paired(some[first], others[second]))
                first = first[:0]
            if len(first):
                yield self._paired(some[first], others[second])
            if sum(each.shape[1] for each in waiting) > TOGETHER:
                yield self._compared(np.concatenate(waiting, axis=1))
                waiting = []
        if waiting:
            yield self._compared(np.concatenate(waiting, axis=1))

    def _paired(self, first: Rows, second: Rows) -> Array:
        """Those of some pairs whose second is the worse, and of the same group."""
        right = (first < second) & (self._groups[first] == self._groups[second])
        return np.stack([first[right], second[right]])

    def _blocks(self, left: Rows, right: Rows) -> Iterator[tuple[Rows, Rows]]:
        """Parts of left and right in which all near pairs are."""
        if len(left) * len(right) <= LEAF * LEAF:
            yield left, right
            return
        count = min(CELLS, int(np.sqrt(len(right))) + 1)
        leaders = self._sketches[right[:: max(1, len(right) // count)][:count]]
        between = np.linalg.norm(leaders[:, None] - leaders, axis=2) * self._apart
        parts = (self._sketches[right[start : start + CHUNK]] for start in range(0, len(right), CHUNK))
        cells = np.concatenate([(leaders @ part.T).argmax(axis=0) for part in parts])
        close: list[tuple[Array, Array]] = []
        for start in range(0, len(left), CHUNK):
            likeness = leaders @ self._sketches[left[start : start + CHUNK]].T
            own = likeness.argmax(axis=0)
            reach = likeness[own, np.arange(len(own))] - PRECISION - between[:, own]
            cell, row = np.nonzero(likeness >= reach)
            close.append((cell.astype(np.int32), (row + start).astype(np.int32)))
        yield from _by_cell(cells, close, left, right, len(leaders))

    def _compared(self, pairs: Array) -> Array:
        """Those of some pairs that are near in full."""
        if self._read is None:
            return pairs
        near = [pairs[:, :0]]
        for start in range(0, pairs.shape[1], TOGETHER):
            part = pairs[:, start : start + TOGETHER]
            rows, places = np.unique(part, return_inverse=True)
            full = self._full(rows)
            first, second = places.reshape(part.shape)
            near.append(part[:, np.einsum("ij,ij->i", full[first], full[second]) >= self._least])
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


def _by_cell(
    cells: Rows, close: list[tuple[Array, Array]], left: Rows, right: Rows, count: int
) -> Iterator[tuple[Rows, Rows]]:
    """For each cell the rows on the left that come close to it, and those on the right that lie in it."""
    own = np.argsort(cells, kind="stable")
    cell = np.concatenate([each for each, _ in close])
    row = np.concatenate([each for _, each in close])[np.argsort(cell, kind="stable")]
    ends = np.cumsum([np.bincount(cells, minlength=count), np.bincount(cell, minlength=count)], axis=1)
    for inside, near in zip(np.split(own, ends[0][:-1]), np.split(row, ends[1][:-1]), strict=True):
        for start in range(0, len(inside), LEAF):
            for begin in range(0, len(near), 4 * LEAF):
                yield left[near[begin : begin + 4 * LEAF]], right[inside[start : start + LEAF]]
