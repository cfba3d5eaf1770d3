"""Which rows of a tenant's index are near each other within their tasks: kept in RAM, and found as the index grows.

So that near-duplicates are known when they are asked for: to compare each with each takes 30 s for a million episodes
in fifty tasks. A row's sketch takes 128 bytes, its near pairs at most about 100 more. What was found is never taken
back: whoever asks leaves out rows that were forgotten. A snapshot has all of it (`snapshots.py`), as `Kept`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedlab.hub.sketches import SHORT, alike, basis, cosines, sketch

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = npt.NDArray[Any]

FLOOR = 0.9
"""Cosine from which pairs are kept."""
SLACK = 1e-3
"""The graph holds unit vectors as float16, with an error of up to 2^-11 each: a cosine may be wrong by so much."""
CROWDED = 8
"""Near pairs of a new row, on average, above which its task is left out …"""
SPARE = 64
"""… and so many more at once."""
LARGE = 50_000
"""Rows of a task from which it is left out: each new one would take 50 µs and more."""
CHUNK = 16_384
"""Rows that are added at once."""
_ALONE = threading.Lock()
"""Held while BLAS has one thread, of the whole process: with two, small products are no quicker on cores that are free,
and ten times as slow on others, where they wait for each other."""


class Near(NamedTuple):
    """What is known.

    Args:
        pairs: Rows, shape (2, m).
        cosines: Of each pair, up to `SLACK`, from `FLOOR` on.
        open: Tasks that were left out, having too many rows or near pairs.
    """

    pairs: Array
    cosines: Array
    open: frozenset[int]


class Kept(NamedTuple):
    """What is known of some rows, as arrays.

    Args:
        basis: Of the sketches, shape (dimension, 31) or less.
        sketches: Shape (n, 32).
        pairs: Positions among the rows, shape (2, m), and their `cosines`.
        open: Of each row, whether its task was left out.
    """

    basis: Array
    sketches: Array
    pairs: Array
    cosines: Array
    open: Array

    def part(self, rows: Array) -> Kept:
        """The same of some of the rows (ascending)."""
        if len(rows) == len(self.sketches):
            return self
        place = np.full(len(self.sketches), -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        pairs = place[self.pairs]
        held = (pairs >= 0).all(axis=0)
        return Kept(self.basis, self.sketches[rows], pairs[:, held], self.cosines[held], self.open[rows])


class Neighbours:
    """The near pairs among the first `n` rows of an index; any thread may ask or `follow`.

    Args:
        known: Of these rows, from another index.
        tasks: Number of the task of each row.
    """

    def __init__(self, known: Kept | None = None, tasks: Array | None = None) -> None:
        self.n = 0
        self._lock = threading.Lock()
        self._basis: Array | None = None
        self._sketches = np.zeros((0, SHORT), np.float32)
        self._near = Near(np.zeros((2, 0), np.int32), np.zeros(0, np.float32), frozenset())
        if known is not None and tasks is not None and len(known.sketches):
            self.n, self._basis, self._sketches = len(known.sketches), known.basis, known.sketches
            left_out = frozenset(np.unique(tasks[: self.n][known.open]).tolist())
            self._near = Near(known.pairs, known.cosines, left_out)

    def kept(self, rows: Array, tasks: Array) -> Kept:
        """What is known of some rows before `n` (ascending), while others may follow; `tasks` are of all rows."""
        n = self.n
        near, basis = self._near, self._basis  # after `n`: they know all of these rows, and maybe more
        inside = (near.pairs < n).all(axis=0)
        known = Kept(
            np.zeros((0, 0), np.float32) if basis is None else basis,
            self._sketches[:n],
            near.pairs[:, inside],
            near.cosines[inside],
            np.isin(tasks[:n], list(near.open)),
        )
        return known.part(rows)

    @property
    def near(self) -> Near:
        """What is known by now."""
        return self._near

    def sketches(self, rows: Array) -> Array:
        """Of rows before `n`, shape (m, 32); zero where a row has no vector."""
        return np.asarray(self._sketches[rows])

    def follow(self, tasks: Array, read: Callable[[Array], Array], stop: threading.Event | None = None) -> None:
        """Go on until all rows are known.

        Args:
            tasks: Number of the task of each row from the first on, shape (rows,).
            read: Gives the unit vectors of rows; zeros where there is none.
            stop: Ends it early.
        """
        from threadpoolctl import threadpool_limits  # only hubs with many episodes need it

        with self._lock:
            while self.n < len(tasks) and not (stop is not None and stop.is_set()):
                with _ALONE, threadpool_limits(1, user_api="blas"):
                    self._extend(tasks[: self.n + CHUNK], read)

    def _extend(self, tasks: Array, read: Callable[[Array], Array]) -> None:
        old, n = self.n, len(tasks)
        vectors = read(np.arange(old, n))
        if self._basis is None:
            self._basis = basis(vectors)
        if n > len(self._sketches):
            grown = np.zeros((max(n, old + old // 2), SHORT), np.float32)
            grown[:old] = self._sketches[:old]
            self._sketches = grown
        self._sketches[old:n] = sketch(vectors, self._basis)
        self._sketches[old:n][~vectors.any(axis=1)] = 0  # near nothing
        found, left_out = self._candidates(tasks)
        near, values = [self._near.pairs], [self._near.cosines]
        for start in range(0, found.shape[1], CHUNK):
            part = found[:, start : start + CHUNK]
            rows, places = np.unique(part, return_inverse=True)
            value = cosines(places.reshape(part.shape), read(rows))
            near.append(part[:, value >= FLOOR - SLACK])
            values.append(value[value >= FLOOR - SLACK])
        self._near = Near(np.concatenate(near, axis=1), np.concatenate(values), self._near.open | left_out)
        self.n = n

    def _candidates(self, tasks: Array) -> tuple[Array, set[int]]:
        """Pairs of a new row and one before it whose sketches are near, and which tasks are left out from now on."""
        narrow = tasks.astype(np.uint16) if tasks.max() < 1 << 16 else tasks  # which NumPy sorts in a tenth of the time
        order = np.argsort(narrow, kind="stable")
        grown = np.unique(tasks[self.n :])
        bounds = np.searchsorted(tasks, grown, "left", order), np.searchsorted(tasks, grown, "right", order)
        found, left_out = [np.zeros((2, 0), np.int32)], set()
        for task, start, end in zip(grown.tolist(), *(each.tolist() for each in bounds), strict=True):
            if end - start == 1 or task in self._near.open:
                continue
            pairs = self._of_task(order[start:end].astype(np.int32))
            if pairs is None:
                left_out.add(task)
            else:
                found.append(pairs)
        return np.concatenate(found, axis=1), left_out

    def _of_task(self, rows: Array) -> Array | None:
        """The candidates among the rows (ascending) of one task; None if there are too many."""
        if len(rows) > LARGE:
            return None
        old = int(np.searchsorted(rows, self.n))
        most = CROWDED * (len(rows) - old) + SPARE
        sketches = self._sketches[rows]
        found, count = [np.zeros((2, 0), np.int32)], 0
        for _, _, first, second in alike(sketches[old:], sketches, FLOOR - 2 * SLACK):
            before = second < first + old
            found.append(np.stack([rows[first[before] + old], rows[second[before]]]))
            count += found[-1].shape[1]
            if count > most:
                return None
        return np.concatenate(found, axis=1)
