"""Sketches of a tenant's vectors, kept in RAM, by which near-duplicates are found without reading the vectors.

See `fedlab.retention.near`. A row takes 128 bytes; its sketch is made when it goes into the graph, or when it is asked
for first.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Array = npt.NDArray[Any]

SHORT = 32
"""Numbers of a sketch: 31 coordinates and the length of the rest."""
SAMPLE = 4_096
"""Vectors of which the directions that differ most make the basis."""
CHUNK = 8_192
REST = 1e-6
"""Added to the square of the rest, so that rounding never makes it too short."""


class Sketches:
    """Short unit vectors, by the ids of their episodes; any thread may ask or add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._basis: Array | None = None
        self._ids = np.zeros(0, np.int64)
        self._rows = np.zeros((0, SHORT), np.float32)

    def add(self, ids: Array, vectors: Array) -> None:
        """Sketch vectors, shape (n, dimension), of rows that have no sketch yet."""
        if not len(ids):
            return
        with self._lock:
            if self._basis is None:
                self._basis = _basis(unit(vectors[:: max(1, len(vectors) // SAMPLE)]))
            parts = [_sketch(unit(vectors[at : at + CHUNK]), self._basis) for at in range(0, len(ids), CHUNK)]
            known, rows = np.concatenate([self._ids, ids]), np.concatenate([self._rows, *parts])
            if len(self._ids) and ids.min() <= self._ids[-1]:
                order = np.argsort(known, kind="stable")
                known, rows = known[order], rows[order]
            self._ids, self._rows = known, rows

    def of(self, ids: Array, read: Callable[[Array], Array]) -> Array:
        """Sketches of ids, ascending, shape (n, 32); what is missing is read."""
        with self._lock:
            known = self._ids
        missing = np.setdiff1d(ids, known, assume_unique=True)
        for start in range(0, len(missing), 4 * CHUNK):
            part = missing[start : start + 4 * CHUNK]
            self.add(part, read(part))
        with self._lock:
            return self._rows[np.searchsorted(self._ids, ids)]


def _basis(vectors: Array) -> Array:
    """The directions in which vectors differ most, shape (dimension, 31) or less."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return np.ascontiguousarray(directions[:, ::-1][:, : SHORT - 1])


def _sketch(vectors: Array, basis: Array) -> Array:
    sketched = np.zeros((len(vectors), SHORT), np.float32)
    first = sketched[:, : basis.shape[1]]
    np.matmul(vectors, basis, out=first)
    sketched[:, -1] = np.sqrt(np.maximum(1 - np.einsum("ij,ij->i", first, first), 0) + REST)
    return sketched


def unit(vectors: Sequence[Array] | Array) -> Array:
    """Vectors at length 1, float32, shape (n, dimension)."""
    matrix = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)
