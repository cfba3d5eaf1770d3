"""The vector index of one tenant: a cache in RAM that recall reads and that the log feeds.

Rows stand in the order of their ids. The newest are searched exactly, as a NumPy matrix (the *tail*); once a
tenant has more than `EXACT` rows, a background thread moves the older ones into a usearch HNSW graph. Every
row's reward, time, task and agent are columns in RAM, so that filters and policies see all rows, exactly.

Readers take no lock: they work on a `View`, whose rows never change but for the `alive` flag, and which the
next change replaces. A graph is only ever added to; another one is swapped in whole, because usearch
crashes if one is cleared or loaded under a search.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedlab.hub import searching
from fedlab.hub.neighbours import Kept, Neighbours
from fedlab.hub.searching import Hit, View, rows_of, vectors_of
from fedlab.hub.sketches import unit
from fedlab.recall import SIMILARITY, Filter, best

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from usearch.index import Index as Graph

    from fedlab.hub.log import Stored
    from fedlab.recall import RecallPolicy

    Array = npt.NDArray[Any]

EXACT = 20_000
"""Up to here the matrix is as fast as a graph, and exact (0.12 ms for 10,000 rows of 384)."""
TAIL = 4_096
"""Rows beyond a graph that are searched exactly until they are moved into it."""
AHEAD = 20
"""How many times the memories that are compared are looked for: of most policies enough stay."""


class Columns(NamedTuple):
    """What some rows have in their columns: rewards and times (ms UTC) as they are, tasks and agents counted."""

    rewards: Array
    created_at: Array
    tasks: dict[str, int]
    agents: dict[str, int]


class TenantIndex:
    """The index of one tenant; `add` and `remove` are called by one thread at a time, `search` by any.

    Args:
        dimension: Of the vectors.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._lock = threading.Lock()
        self._tasks: dict[str, int] = {}
        self._agents: dict[str, int] = {}
        self.dead = 0
        self._neighbours = Neighbours()
        self._unread: tuple[Callable[[], tuple[Array, Kept] | None], Callable[[], None]] | None = None
        self._reading = threading.Lock()
        self._compared: tuple[tuple[Any, ...], list[list[Hit]]] | None = None
        self._view = View(
            n=0,
            first=0,
            ids=np.zeros(0, np.int64),
            rewards=np.zeros(0),
            created_at=np.zeros(0, np.int64),
            tasks=np.zeros(0, np.int32),
            agents=np.zeros(0, np.int32),
            alive=np.zeros(0, np.bool_),
            tail=np.zeros((0, dimension), np.float32),
            graph=None,
        )

    @property
    def view(self) -> View:
        """The rows as they are now."""
        return self._view

    def __len__(self) -> int:
        return int(self._view.n) - self.dead

    def add(self, rows: Sequence[Stored]) -> None:
        """Append rows with ascending ids.

        Rows that are there are passed over: a commit may be read from the database and heard of as well.
        """
        with self._lock:
            last = self._view.ids[self._view.n - 1] if self._view.n else 0
            if rows and rows[0].id <= last:
                rows = [row for row in rows if row.id > last]
            if rows:
                _, *columns, vectors, _, _ = zip(*rows, strict=True)
                self._append(columns, vectors)

    def add_known(self, rows: Sequence[tuple[int, float, int, str, str]]) -> None:
        """Append rows whose vectors are in a graph that comes with `adopt`: id, reward, time, task, agent of each."""
        with self._lock:
            self._append(list(zip(*rows, strict=True)))

    def numbers(self, end: int) -> dict[str, Array]:
        """The live rows before `end`: their columns, with tasks and agents as numbers."""
        view = self._view
        rows = np.flatnonzero(view.alive[:end])
        return {name: getattr(view, name)[rows] for name in ("ids", "rewards", "created_at", "tasks", "agents")}

    def take_over(self, numbers: dict[str, Any], tasks: Sequence[str], agents: Sequence[str]) -> None:
        """Begin with rows whose vectors are in a graph that comes with `adopt`: as from `numbers`, and the names."""
        self._tasks, self._agents = ({name: number for number, name in enumerate(each)} for each in (tasks, agents))
        n = len(numbers["ids"])
        self._view = replace(self._view, n=n, first=n, alive=np.ones(n, np.bool_), **numbers)

    def adopt(self, graph: Graph) -> None:
        """Take over a graph that has the vectors of all rows so far."""
        self._view = replace(self._view, graph=graph)

    def _append(self, columns: Sequence[Sequence[Any]], vectors: Sequence[Array] = ()) -> None:
        ids, rewards, created_at, tasks, agents = columns
        view = self._reserve(len(ids), len(vectors))
        n, end = view.n, view.n + len(ids)
        view.ids[n:end] = ids
        view.rewards[n:end] = rewards
        view.created_at[n:end] = created_at
        view.tasks[n:end] = [self._tasks.setdefault(task, len(self._tasks)) for task in tasks]
        view.agents[n:end] = [self._agents.setdefault(agent, len(self._agents)) for agent in agents]
        view.alive[n:end] = True
        if len(vectors):
            view.tail[n - view.first : end - view.first] = unit(vectors)
        self._view = replace(view, n=end, first=view.first if len(vectors) else end)

    def remove(self, ids: Sequence[int]) -> None:
        """Take rows out; ids that are not there do no harm."""
        with self._lock:
            view = self._view
            rows = rows_of(view, np.asarray(sorted(ids), np.int64))
            rows = rows[view.alive[rows]]
            view.alive[rows] = False
            # They stay in the graph until it is built anew: the first search after a removal from a graph of
            # 200,000 takes 8 ms (usearch 2.26), ten times the time of others, and the flag does it as well.
            self.dead += len(rows)

    def compacted(self) -> TenantIndex:
        """The same index without the rows that were taken out; there must be no graph."""
        view = self._view
        rows = np.flatnonzero(view.alive[: view.n])
        fresh = TenantIndex(self.dimension)
        fresh._tasks, tasks = _recoded(self._tasks, view.tasks[rows])
        fresh._agents, agents = _recoded(self._agents, view.agents[rows])
        kept = {name: getattr(view, name)[rows] for name in ("ids", "rewards", "created_at", "alive", "tail")}
        fresh._view = replace(view, n=len(rows), tasks=tasks, agents=agents, **kept)
        self._read_near()
        known = self._neighbours.kept(rows[rows < self.known], view.tasks)
        fresh._neighbours = Neighbours(known, tasks)
        return fresh

    def move_to_graph(self, graph_type: type[Graph], stop: threading.Event) -> None:
        """Move the tail into the graph, if it is long, and see what is near what; searches and changes go on."""
        while not stop.is_set():
            view = self._view
            self._follow(view, view.first, stop)
            if not _has_long_tail(view):
                return
            graph = view.graph or graph_type(
                ndim=self.dimension, metric="cos", dtype="f16", expansion_search=searching.EXPANSION
            )
            end = view.n
            for start in range(view.first, end, 1_000):
                if stop.is_set():
                    return
                rows = np.arange(start, min(start + 1_000, end))
                rows = rows[view.alive[rows]]
                graph.add(view.ids[rows], view.tail[rows - view.first].astype(np.float16), threads=1)
            with self._lock:
                now = self._view
                left = now.tail[end - now.first : now.n - now.first].copy()
                self._view = replace(now, first=end, tail=left, graph=graph)

    def search(self, query: Array | None, k: int, policy: RecallPolicy, where: Filter, now: int) -> list[Hit]:
        """As `search_many`, for one query of shape (dimension,)."""
        return self.search_many(None if query is None else query[None], k, policy, where, now)[0]

    def search_many(
        self, queries: Array | None, k: int, policy: RecallPolicy, where: Filter, now: int
    ) -> list[list[Hit]]:
        """The k best rows for each query, which do not depend on what else is asked with it.

        Args:
            queries: Shape (m, dimension); None if the policy needs none, and then there is one list of rows.
            k: How many; fewer come back only where fewer match.
            policy: Ranks them.
            where: What may be returned.
            now: Ms UTC.
        """
        dead, view = self.dead, self._view  # in this order: rows that come and go meanwhile are not missed among these
        if view.n == 0:
            return [[] for _ in ([0] if queries is None else queries)]
        vectors = None if queries is None else searching.unit_vectors(queries)
        if vectors is not None and where.passes_all and policy.only_similarity:
            # No column is looked at whole: with a graph, that would take ten times the time of the search.
            return searching.search(view, vectors, k, policy, None, view.n - dead)
        mask = self._mask(view, where)
        base = policy.base(view.ids[: view.n], view.rewards[: view.n], view.created_at[: view.n], now)
        if mask is not None:
            base[~mask] = -np.inf
        if vectors is None or not policy.similarity:
            top = best(base, view.created_at[: view.n], view.ids[: view.n], k)
            similar = (
                [np.zeros(len(top))]
                if vectors is None
                else [searching.similarities(view, top, each[None]) for each in vectors]
            )
            return [searching.hits_of(view, top, similarity, base[top]) for similarity in similar]
        return searching.search(view, vectors, k, policy, base, view.n if mask is None else int(np.count_nonzero(mask)))

    def compare(self, queries: Sequence[Array], k: int, without: Array) -> list[tuple[list[Hit], list[Hit]]]:
        """What each query finds by similarity, and what it would find if some rows (ascending ids) were gone.

        Who tries one policy after another asks the same again: more than k are found at first, and kept.
        """
        dead, view, vectors = self.dead, self._view, unit(queries)
        key = view.n, dead, k, vectors.tobytes()
        known = self._compared
        if known is None or known[0] != key:
            found = searching.search(view, vectors, AHEAD * k, SIMILARITY, None, view.n - dead)
            known = self._compared = key, found
        ids = np.array([hit.id for hits in known[1] for hit in hits], np.int64)
        gone = set(ids[np.isin(ids, without)].tolist())
        left = [[hit for hit in hits if hit.id not in gone] for hits in known[1]]
        short = [number for number, hits in enumerate(left) if len(hits) < k]
        if short:
            kept = view.alive[: view.n].copy()
            kept[rows_of(view, without)] = False
            rows = np.flatnonzero(kept)
            if len(rows) <= view.n // 10:
                others = searching.best_of_each(view, vectors[short], rows, k)
            else:
                others = searching.search(view, vectors[short], k, SIMILARITY, np.where(kept, 0.0, -np.inf), len(rows))
            for number, hits in zip(short, others, strict=True):
                left[number] = hits
        return [(before[:k], after[:k]) for before, after in zip(known[1], left, strict=True)]

    def describe(self, ids: Array) -> Columns:
        """What is known of rows (ascending ids); of those that are not there, nothing."""
        view = self._view
        rows = rows_of(view, ids)
        return Columns(
            view.rewards[rows],
            view.created_at[rows],
            dict(zip(self._tasks, np.bincount(view.tasks[rows]).tolist(), strict=False)),
            dict(zip(self._agents, np.bincount(view.agents[rows]).tolist(), strict=False)),
        )

    def columns(self, names: Sequence[str], ids: Array | None = None) -> tuple[Array, ...]:
        """The ids of rows and their columns, by the columns' names in the database; of all if `ids` is None.

        Args:
            names: Among reward, created_at, task and agent_id.
            ids: Ascending; those that are not there are left out.
        """
        view = self._view
        rows = rows_of(view, view.ids[: view.n] if ids is None else ids)
        rows = rows[view.alive[rows]]
        made = {
            "reward": lambda: view.rewards[rows],
            "created_at": lambda: view.created_at[rows],
            "task": lambda: np.array([*self._tasks], object)[view.tasks[rows]],
            "agent_id": lambda: np.array([*self._agents], object)[view.agents[rows]],
        }
        return view.ids[rows], *(made[name]() for name in names)

    @property
    def lags(self) -> bool:
        """Whether a long tail is not yet in the graph, or it is not yet known what is near what in there."""
        return _has_long_tail(self._view) or self._neighbours.n < self._view.first

    @property
    def known(self) -> int:
        """How many rows, from the first on, are known with what is near them."""
        self._read_near()
        return self._neighbours.n

    def remember(self, end: int | None = None) -> tuple[Array, Kept]:
        """What is known of the live rows before `end` that are known: their ids, and what is near what."""
        view = self._view
        rows = np.flatnonzero(view.alive[: min(self.known, view.n if end is None else end)])
        return view.ids[rows], self._neighbours.kept(rows, view.tasks)

    def recognize(self, ids: Array, known: Kept) -> bool:
        """Take over what another index of this tenant remembered; false if it lacks a row before its last."""
        view = self._view
        own = view.ids[: np.searchsorted(view.ids[: view.n], ids[-1], "right")] if len(ids) else ids
        rows = np.searchsorted(ids, own)
        if (ids[rows] != own).any():
            return False
        self._neighbours = Neighbours(known.part(rows), view.tasks)
        return True

    def recognize_later(self, read: Callable[[], tuple[Array, Kept] | None], refuse: Callable[[], None]) -> None:
        """As `recognize`, of what `read` gives when it is first asked what is near what: a recall does not wait for it.

        What lacks a row is refused.
        """
        self._unread = read, refuse

    def _read_near(self) -> None:
        with self._reading:
            if self._unread is not None:
                read, refuse = self._unread
                if (known := read()) is not None and not self.recognize(*known):
                    refuse()
                self._unread = None

    def near(self, ids: Array) -> tuple[Array, Array, Array]:
        """Which of some episodes are near each other, and which are known in full.

        Args:
            ids: Ascending.

        Returns:
            Pairs of positions among the ids, shape (2, m), their cosines up to `SLACK`, and a flag for each id: false
            where its near ones are not all among the pairs.
        """
        view = self._view
        self._follow(view, view.n)
        known, view = self._neighbours.near, self._view
        pairs = view.ids[known.pairs]
        places = np.minimum(np.searchsorted(ids, pairs), max(0, len(ids) - 1))
        meant = (ids[places] == pairs).all(axis=0) if len(ids) else np.zeros(0, np.bool_)
        rows = np.minimum(np.searchsorted(view.ids[: view.n], ids), view.n - 1)
        settled = ~np.isin(view.tasks[rows], list(known.open))
        return places[:, meant], known.cosines[meant], settled

    def sketches(self, ids: Array) -> Array:
        """Of episodes that `near` was asked for, ascending, shape (n, 32)."""
        self._read_near()
        return self._neighbours.sketches(rows_of(self._view, ids))

    def _follow(self, view: View, end: int, stop: threading.Event | None = None) -> None:
        self._read_near()
        self._neighbours.follow(view.tasks[:end], lambda rows: vectors_of(view, rows), stop)

    def holds(self, ids: Array, vectors: Array) -> Array:
        """Whether the index has these unit vectors under these ids (ascending), up to its precision."""
        view = self._view
        rows = rows_of(view, ids)
        if len(rows) != len(ids):
            return np.zeros(len(ids), np.bool_)
        return np.asarray(np.abs(vectors_of(view, rows) - vectors).max(axis=1) < 1e-3, np.bool_)

    def _mask(self, view: View, where: Filter) -> Array | None:
        """Which rows may be returned; None for all."""
        if where.passes_all and not self.dead:
            return None
        n = view.n
        mask = view.alive[:n].copy()
        if where.min_reward is not None:
            mask &= view.rewards[:n] >= where.min_reward
        if where.since is not None:
            mask &= view.created_at[:n] >= where.since
        if where.until is not None:
            mask &= view.created_at[:n] < where.until
        if where.task is not None:
            mask &= view.tasks[:n] == self._tasks.get(where.task, -1)
        if where.agent_id is not None:
            mask &= view.agents[:n] == self._agents.get(where.agent_id, -1)
        return mask

    def _reserve(self, rows: int, tail_rows: int) -> View:
        """The view with room for more rows; arrays that readers hold are copied, never resized."""
        view = self._view
        changed: dict[str, Any] = {}
        if view.n + rows > len(view.ids):
            for name in ("ids", "rewards", "created_at", "tasks", "agents", "alive"):
                changed[name] = _grown(getattr(view, name), view.n, rows)
        if view.n - view.first + tail_rows > len(view.tail):
            changed["tail"] = _grown(view.tail, view.n - view.first, tail_rows)
        return replace(view, **changed) if changed else view


def _has_long_tail(view: View) -> bool:
    return view.n - view.first > (EXACT if view.graph is None else TAIL)


def _recoded(names: dict[str, int], held: Array) -> tuple[dict[str, int], Array]:
    """The names that are held, with new numbers, and these in the place of the old ones."""
    used, held = np.unique(held, return_inverse=True)
    every = [*names]
    return {every[old]: new for new, old in enumerate(used.tolist())}, held.astype(np.int32)


def _grown(array: Array, used: int, more: int) -> Array:
    capacity = max(64, used + more, used + used // 2)
    grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown
