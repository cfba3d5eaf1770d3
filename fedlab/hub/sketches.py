"""Sketches: short unit vectors by which near-duplicates are found without comparing whole vectors.

A vector's sketch is its first coordinates in an orthonormal basis, and the length of the rest. The cosine of two
sketches is never below that of their vectors (Cauchy-Schwarz for the rest), so that only what is near as sketches has
to be compared in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Array = npt.NDArray[Any]

SHORT = 32
"""Numbers of a sketch: 31 coordinates and the length of the rest."""
SAMPLE = 4_096
"""Vectors of which the directions that differ most make the basis."""
REST = 1e-6
"""Added to the square of the rest, so that rounding never makes it too short."""
BLOCK = 512
"""Rows on either side that are multiplied at once: the products stay in the cache."""


def unit(vectors: Sequence[Array] | Array) -> Array:
    """Vectors at length 1, float32, shape (n, dimension)."""
    matrix = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def basis(vectors: Array) -> Array:
    """The directions in which unit vectors differ most, shape (dimension, 31) or less."""
    some = vectors[:: max(1, len(vectors) // SAMPLE)]
    _, directions = np.linalg.eigh(some.T @ some)
    return np.ascontiguousarray(directions[:, ::-1][:, : SHORT - 1])


def sketch(vectors: Array, directions: Array) -> Array:
    """Sketches of unit vectors, shape (n, 32), in a `basis`."""
    sketched = np.zeros((len(vectors), SHORT), np.float32)
    first = sketched[:, : directions.shape[1]]
    np.matmul(vectors, directions, out=first)
    sketched[:, -1] = np.sqrt(np.maximum(1 - np.einsum("ij,ij->i", first, first), 0) + REST)
    return sketched


def alike(left: Array, right: Array, least: float) -> Iterator[tuple[slice, slice, Array, Array]]:
    """Pairs of a row on the left and one on the right whose product is at least so large.

    Yields:
        The rows of a block on either side, and in them the pairs: positions on the left and on the right, of shape
        (m,). If both sides are the same, every block is met at least one way round.
    """
    room = np.empty(BLOCK * BLOCK, np.float32)
    for start in range(0, len(left), BLOCK):
        some = slice(start, min(start + BLOCK, len(left)))
        for at in range(start if left is right else 0, len(right), BLOCK):
            others = slice(at, min(at + BLOCK, len(right)))
            shape = (some.stop - start, others.stop - at)
            product = room[: shape[0] * shape[1]].reshape(shape)  # memory anew for each takes as long as the product
            np.matmul(left[some], right[others].T, out=product)
            if product.max() >= least:
                first, second = np.divmod(np.flatnonzero(product >= least), shape[1])
                yield some, others, first + start, second + at


def cosines(pairs: Array, vectors: Array) -> Array:
    """Of pairs of rows, shape (2, m), of unit vectors."""
    return np.asarray(np.einsum("ij,ij->i", vectors[pairs[0]], vectors[pairs[1]]))
