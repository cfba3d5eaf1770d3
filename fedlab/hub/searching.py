"""Searches over a view of a tenant's rows: exactly, or through its graph and then with exact scores.

Functions of their arguments: what may be found and how it is ranked comes as an array, see `index.py`.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedlab.hub.sketches import unit
from fedlab.recall import SIMILARITY, best

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from usearch.index import Index as Graph

    from fedlab.recall import RecallPolicy

    Array = npt.NDArray[Any]

EXPANSION = 144
"""Candidates that a walk through a graph keeps. Of the true 10 among 100,000 sentences it finds 98 %; with the 64 that
are the library's default 97 %, in 0.7 of the time."""
FEW = 2_000
"""Up to here the rows that pass a filter are all compared, whatever the graph would say."""
CHUNK = 5_000
"""Rows whose vectors are fetched at once."""
TOGETHER = 128
"""Queries that are compared with all rows at once."""
BLOCK = 8
"""Rows of which the best alone is looked at first, where the k-th best of all is sought."""
MARGIN = 1e-4
"""More than rounding can make of a cosine."""
_TINY = np.finfo(np.float32).tiny


class Hit(NamedTuple):
    """One row that a search found."""

    id: int
    similarity: float
    score: float


@dataclass(frozen=True, eq=False)
class View:
    """What a reader sees: the first `n` rows of the columns, the graph, and the tail's vectors.

    Args:
        n: Rows.
        first: Row at which the tail begins; those before are in the graph.
        ids: Ascending, shape (capacity,).
        alive: False where a row was forgotten.
        tail: Unit vectors of the rows from `first` on, shape (capacity, dimension), float32.
    """

    n: int
    first: int
    ids: Array
    rewards: Array
    created_at: Array
    tasks: Array
    agents: Array
    alive: Array
    tail: Array
    graph: Graph | None


def search(
    view: View, vectors: Array, k: int, policy: RecallPolicy, base: Array | None, matching: int
) -> list[list[Hit]]:
    """The k best rows for each of some unit vectors, by similarity and `base`, which is -inf where a row must not be
    found; None stands for zero where a row is alive.
    """
    if view.first:
        return [_search_graph(view, each, k, policy, base, matching) for each in vectors]
    n = view.n
    some_dead = base is None and matching < n
    hidden = np.where(view.alive[:n], np.float32(0), np.float32(-np.inf)) if some_dead else None
    found: list[list[Hit]] = []
    for start in range(0, len(vectors), TOGETHER):
        part = vectors[start : start + TOGETHER]
        score = part @ view.tail[:n].T
        if base is not None:
            score = base + policy.similarity * score
        elif hidden is not None:
            score += hidden
        # The last digits of a product of matrices depend on their shapes: it only says which rows are looked at.
        margin = MARGIN * (1 if base is None else abs(policy.similarity))
        least = _at_most_best(score, k) - margin
        which, rows = np.divmod(np.flatnonzero(score >= np.maximum(least, np.finfo(score.dtype).min)), n)
        similarity = similarities(view, rows, part, which)
        exact = policy.similarity * similarity
        if base is not None:
            exact += base[rows]
        order = np.lexsort((-view.ids[rows], -view.created_at[rows], -exact, which))
        counts = np.bincount(which, minlength=len(part))
        first = np.repeat(np.cumsum(counts) - counts, counts)
        order = order[np.arange(len(order)) - first < k]
        hits = iter(hits_of(view, rows[order], similarity[order], exact[order]))
        found += [list(itertools.islice(hits, count)) for count in np.minimum(counts, k).tolist()]
    return found


def _at_most_best(score: Array, k: int) -> Array:
    """For each row of scores, shape (m, n), what its k-th best is not below, shape (m, 1)."""
    m, n = score.shape
    if (blocks := n // BLOCK) > 4 * k:
        # So many blocks have a row that good, each another; among all rows it is found in five times the time.
        score = score[:, : blocks * BLOCK].reshape(m, BLOCK, blocks).max(axis=1)
    elif n <= k:
        return np.full((m, 1), -np.inf, score.dtype)
    place = score.shape[1] - k
    return np.partition(score, place, axis=1)[:, place, None]


def _search_graph(
    view: View, vector: Array, k: int, policy: RecallPolicy, base: Array | None, matching: int
) -> list[Hit]:
    """A search where most rows are in a graph: candidates first, then their exact scores.

    Candidates are the most similar rows and the rows with the largest `base`. Whatever is in neither group
    can score at most (smallest similarity of the first) + (smallest base of the second): when the k-th best
    reaches that bound, no better row is left (the threshold algorithm of Fagin, Lotem and Naor 2003).
    Otherwise four times as many are taken. Filtered rows have a base of -inf; None stands for zero where a row is
    alive.
    """
    k = min(k, matching)
    if k == 0:
        return []
    wanted = max(32, 2 * k * view.n // matching)
    while matching > FEW and policy.similarity > 0 and wanted < view.n // 4:
        rows, least = _most_similar(view, vector, wanted)
        bound = policy.similarity * least
        if base is not None and not policy.only_similarity:
            richest = np.argpartition(base, view.n - wanted)[-wanted:]
            rows = np.union1d(rows, richest)
            bound += float(base[richest].min())
        rows = rows[view.alive[rows] if base is None else np.isfinite(base[rows])]
        hits = _best_of(view, vector, rows, k, policy, base)
        # The graph's own distances are of lower precision than the exact ones: allow for that.
        if len(hits) == k and hits[-1].score >= bound - 1e-3 * policy.similarity:
            return hits
        wanted *= 4
    # A copy: NumPy counts first and fills afterwards, and another thread may forget a row in between.
    rows = np.flatnonzero(view.alive[: view.n].copy() if base is None else np.isfinite(base))
    return _best_of(view, vector, rows, k, policy, base)


def _most_similar(view: View, vector: Array, wanted: int) -> tuple[Array, float]:
    """About `wanted` most similar rows of graph and tail, ascending, and the similarity of the least."""
    assert view.graph is not None
    found = view.graph.search(vector.astype(np.float16), wanted, threads=1)
    rows = rows_of(view, np.sort(np.asarray(found.keys[: len(found)], np.int64)))
    least = 1.0 - float(found.distances[len(found) - 1]) if len(found) == wanted else -1.0
    tail = view.tail[: view.n - view.first] @ vector
    if len(tail) > wanted:
        top = np.argpartition(tail, len(tail) - wanted)[-wanted:]
        return np.union1d(rows, top + view.first), max(least, float(tail[top].min()))
    return np.union1d(rows, np.arange(view.first, view.n)), least


def _best_of(view: View, vector: Array, rows: Array, k: int, policy: RecallPolicy, base: Array | None) -> list[Hit]:
    """The k best of some rows, by their exact scores."""
    similarity = similarities(view, rows, vector[None])
    score = policy.similarity * similarity
    if base is not None:
        score += base[rows]
    top = best(score, view.created_at[rows], view.ids[rows], k)
    return hits_of(view, rows[top], similarity[top], score[top])


def best_of_each(view: View, vectors: Array, rows: Array, k: int) -> list[list[Hit]]:
    """The k of some rows that are most similar to each of the vectors; a row's vector is fetched once for all."""
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    rough = np.concatenate([vectors_of(view, part) @ vectors.T for part in [rows[:0], *parts]])
    least = np.partition(rough, len(rows) - k, axis=0)[len(rows) - k] if len(rows) > k else np.full(len(vectors), -1.0)
    near = [rows[score >= bound - MARGIN] for score, bound in zip(rough.T, least, strict=True)]
    return [_best_of(view, each, some, k, SIMILARITY, None) for each, some in zip(vectors, near, strict=True)]


def similarities(view: View, rows: Array, vectors: Array, which: Array | None = None) -> Array:
    """Exact cosines of rows, each with one of the vectors (by default the only one), in parts that fit the cache.

    Row by row: what comes out does not depend on what else is looked at.
    """
    which = np.zeros(len(rows), np.int64) if which is None else which
    similarity = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        similarity[part] = np.einsum("ij,ij->i", vectors_of(view, rows[part]), vectors[which[part]])
    return similarity


def vectors_of(view: View, rows: Array) -> Array:
    """Unit vectors of rows, in their order, from graph and tail."""
    if view.first == 0:
        return np.asarray(view.tail[rows])
    assert view.graph is not None
    vectors = np.empty((len(rows), view.tail.shape[1]), np.float32)
    in_graph = rows < view.first
    vectors[~in_graph] = view.tail[rows[~in_graph] - view.first]
    if in_graph.any():
        # A row that was forgotten before its turn has no vector in the graph; it can not be returned either.
        blank = np.zeros(vectors.shape[1], np.float16)
        got: Any = view.graph.get(view.ids[rows[in_graph]])
        got = [blank if each is None else each for each in got]
        vectors[in_graph] = unit(np.concatenate(got).reshape(len(got), -1))  # in a third of the time of `unit(got)`
    return vectors


def rows_of(view: View, ids: Array) -> Array:
    """Rows of ids, ascending; ids that are not there are left out."""
    rows = np.searchsorted(view.ids[: view.n], ids)
    inside = rows < view.n
    rows, ids = rows[inside], ids[inside]
    return np.asarray(rows[view.ids[rows] == ids], np.int64)


def hits_of(view: View, rows: Array, similarity: Array, score: Array) -> list[Hit]:
    """Rows as hits, with what was found for each."""
    columns = (view.ids[rows].tolist(), similarity.tolist(), score.tolist())
    return list(map(_hit, zip(*columns, strict=True)))


_hit: Callable[[tuple[int, float, float]], Hit] = functools.partial(tuple.__new__, Hit)
"""In a third of the time of calling `Hit`."""


def unit_vectors(vectors: Array) -> Array:
    """Queries at length 1, float32, shape (m, dimension); what comes of one does not depend on the others."""
    wide = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return np.asarray(wide / np.maximum(lengths, _TINY)[:, None])
