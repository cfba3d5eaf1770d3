"""All tenants' indexes: loaded when first used, fed by the writer, moved into graphs in the background, and written to
snapshots (`snapshots.py`), from which the next start loads them.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from fedlab.errors import HubUnavailable
from fedlab.hub.index import TenantIndex
from fedlab.hub.log import Forgotten, Stored, unpack_vector
from fedlab.hub.recent import Recent
from fedlab.hub.schema import begin, changes, episodes, listed, vectors
from fedlab.hub.snapshots import Snapshot, Snapshots
from fedlab.retention.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

logger = logging.getLogger("fedlab.hub")

CHUNK = 5_000
"""Rows read from the database at once while loading."""


class _Slot:
    """One tenant's place: the index in service, and what was committed while another is being loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loading = threading.Lock()
        self.index: TenantIndex | None = None
        self.pending: list[Stored | Forgotten] | None = None
        self.queued = False


class Indexes:
    """The indexes of a hub.

    Args:
        engine: For reading.
        directory: Where snapshots are kept.
        embedder: Name of the model, and `dimension` of its vectors: a snapshot of another is not used.
    """

    def __init__(self, engine: sa.Engine, directory: Path, embedder: str, dimension: int) -> None:
        self.dimension = dimension
        self.snapshots = Snapshots(directory, embedder, dimension)
        self.recent = Recent()
        """Rows of the episodes that were recalled of late."""
        self._engine = engine
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def get(self, tenant_id: str) -> TenantIndex:
        """The tenant's index, with everything that was committed before this call."""
        slot = self._slots.get(tenant_id)
        if slot is not None and slot.index is not None:
            return slot.index
        with self._lock:
            slot = self._slots.setdefault(tenant_id, _Slot())
        with slot.loading:
            if slot.index is None:
                self._load(tenant_id, slot, use_snapshot=True)
            assert slot.index is not None
            return slot.index

    def is_loaded(self, tenant_id: str) -> bool:
        """Whether `get` returns at once."""
        slot = self._slots.get(tenant_id)
        return slot is not None and slot.index is not None

    def apply(self, events: Sequence[Stored | Forgotten]) -> None:
        """Follow a commit; called in the writer thread before the commit is acknowledged."""
        by_tenant: dict[str, list[Stored | Forgotten]] = {}
        for event in events:
            by_tenant.setdefault(event.tenant_id, []).append(event)
        for tenant_id, own in by_tenant.items():
            with self._lock:
                slot = self._slots.get(tenant_id)
            if slot is None:
                continue  # nobody asked yet; loading reads the database
            try:
                with slot.lock:
                    if slot.pending is not None:
                        slot.pending.extend(own)
                    if slot.index is not None:
                        _feed(slot.index, own)
                        self.recent.add([event for event in own if isinstance(event, Stored)])
                self._tend(tenant_id, slot)
            except Exception:
                # The commit stands. The index is only a cache: the next recall makes another.
                logger.exception("the index of %r failed and is rebuilt", tenant_id)
                with self._lock:
                    self._slots.pop(tenant_id, None)
        for event in events:  # last: what was stored in the same commit goes too
            if isinstance(event, Forgotten):
                self.recent.drop(event.ids)

    def drop(self, tenant_id: str) -> None:
        """Let go of a tenant's index and its snapshot, byte for byte: the next `get` makes another from the database.

        Removed vectors stay in a saved graph, and a search under way keeps the index that it has.
        """
        self.recent.clear()
        with self._lock:
            self._slots.pop(tenant_id, None)
        self.snapshots.drop(tenant_id)

    def snapshot(self) -> None:
        """Write the graphs that changed to disk."""
        with self._lock:
            slots = dict(self._slots)
        for tenant_id, slot in slots.items():
            if slot.index is not None and slot.index.view.graph is not None:
                try:
                    self._save(tenant_id, slot)
                except OSError as error:
                    logger.warning("the index of %r could not be written (%s); it is rebuilt", tenant_id, error)

    def close(self) -> None:
        """End the background thread; snapshots are the caller's business."""
        self._stop.set()
        if self._worker is not None:
            self._work.put(None)
            self._worker.join()
        atexit.unregister(self.close)

    def _load(self, tenant_id: str, slot: _Slot, *, use_snapshot: bool) -> None:
        """Build an index from snapshot and database, and put it in service."""
        with slot.lock:
            slot.pending = []
        try:
            with begin(self._engine) as connection:
                seq = connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0
                fresh = self._from_snapshot(connection, tenant_id) if use_snapshot else None
                if fresh is None:
                    fresh = TenantIndex(self.dimension)
                    _read_rows(connection, tenant_id, fresh, after=0)
                    if slot.index is not None:
                        fresh.recognize(*slot.index.remember())
            with slot.lock:
                _feed(fresh, [event for event in slot.pending if isinstance(event, Forgotten) or event.id > seq])
                slot.index, slot.pending = fresh, None
        finally:
            with slot.lock:
                slot.pending = None
        self._tend(tenant_id, slot)

    def _from_snapshot(self, connection: sa.Connection, tenant_id: str) -> TenantIndex | None:
        """The index from its snapshot and what the database has more; None if it must be rebuilt."""
        snapshot = self.snapshots.manifest().tenants.get(tenant_id)
        if snapshot is None:
            return None
        if _chain_at(connection, snapshot.seq) != snapshot.chain:
            logger.warning("the index snapshot of %r is of another log; it is rebuilt", tenant_id)
            return None
        fresh = TenantIndex(self.dimension)
        with ThreadPoolExecutor(1, "fedlab-index") as disk:
            reading = disk.submit(self.snapshots.read_graph, tenant_id, snapshot)
            self._read_columns(connection, tenant_id, fresh, snapshot)
            graph = reading.result()
        if graph is None:
            return None
        keys = np.sort(np.asarray(graph.keys, np.int64))
        last = int(keys[-1]) if len(keys) else 0
        _read_known(connection, tenant_id, fresh, snapshot.seq, last)  # which were added while it was written
        fresh.adopt(graph)
        live = fresh.view.ids[: fresh.view.n]
        same = np.array_equal(live, keys)  # as usual, and quicker to see
        if not same and len(np.setdiff1d(live, keys, assume_unique=True)):
            logger.warning("the index snapshot of %r lacks episodes; it is rebuilt", tenant_id)
            return None
        if not same and len(gone := np.setdiff1d(keys, live, assume_unique=True)):
            graph.remove(gone)
        fresh.recognize_later(
            lambda: self.snapshots.read_near(tenant_id, snapshot),
            lambda: self.snapshots.refuse(tenant_id, snapshot.near, "lacks episodes"),
        )
        _read_rows(connection, tenant_id, fresh, after=max(last, snapshot.seq))
        return fresh

    def _read_columns(self, connection: sa.Connection, tenant_id: str, fresh: TenantIndex, snapshot: Snapshot) -> None:
        """The rows that are in a snapshot's graph: from its columns, or a third as quickly from the database."""
        columns = self.snapshots.read_columns(tenant_id, snapshot)
        if columns is not None:
            if _take_over(connection, tenant_id, fresh, columns, snapshot.seq):
                return
            self.snapshots.refuse(tenant_id, snapshot.columns, "lacks episodes")
        _read_known(connection, tenant_id, fresh, 0, snapshot.seq)

    def _save(self, tenant_id: str, slot: _Slot) -> None:
        with self.snapshots.lock:
            index = slot.index
            view = index.view if index is not None else None
            if index is None or view is None or view.graph is None or self._slots.get(tenant_id) is not slot:
                return  # dropped meanwhile
            seq = int(view.ids[view.first - 1]) if view.first else 0
            with begin(self._engine) as connection:
                chain = _chain_at(connection, seq)
            self.snapshots.save(tenant_id, index, view, seq, chain)

    def _tend(self, tenant_id: str, slot: _Slot) -> None:
        """Have the background thread move a long tail into the graph, or see what is near what, or rebuild after
        much forgetting.
        """
        index = slot.index
        if index is None or slot.queued:
            return
        if index.lags or _much_dead(index):
            slot.queued = True
            with self._lock:
                if self._worker is None:
                    # A process that ends without closing its hub would be aborted: the interpreter unwinds a thread
                    # that comes back from usearch then, which C++ does not allow.
                    atexit.register(self.close)
                    self._worker = threading.Thread(target=self._tend_all, name="fedlab-index", daemon=True)
                    self._worker.start()
            self._work.put(tenant_id)

    def _tend_all(self) -> None:
        from usearch.index import Index as Graph  # only hubs with a large tenant need it

        while (tenant_id := self._work.get()) is not None and not self._stop.is_set():
            slot = self._slots.get(tenant_id) or _Slot()
            try:
                if slot.index is not None and _much_dead(slot.index):
                    with slot.loading:
                        if slot.index.view.graph is not None:
                            self._load(tenant_id, slot, use_snapshot=False)
                        else:
                            with slot.lock:  # some milliseconds
                                slot.index = slot.index.compacted()
                if slot.index is not None:
                    slot.index.move_to_graph(Graph, self._stop)
                    if self._has_grown(tenant_id, slot.index):
                        self._save(tenant_id, slot)
            except Exception:
                logger.exception("the index of %r could not be tended; exact search goes on", tenant_id)
                slot.queued = False
            else:
                slot.queued = False
                self._tend(tenant_id, slot)  # what was committed after the graph had grown found it queued

    def _has_grown(self, tenant_id: str, index: TenantIndex) -> bool:
        """Whether so much is new since the last snapshot that a crash should not cost it."""
        saved = self.snapshots.manifest().tenants.get(tenant_id)
        graph = index.view.graph
        if graph is None:
            return False
        rows, known = (0, 0) if saved is None else (saved.rows, saved.near.rows if saved.near else 0)
        return len(graph) > 1.5 * rows or index.known > 1.5 * known


def _chain_at(connection: sa.Connection, seq: int) -> str:
    held = connection.scalar(sa.select(changes.c.hash).where(changes.c.seq == seq))
    return "" if held is None else held.hex()


def _much_dead(index: TenantIndex) -> bool:
    return index.dead > max(1_000, 0.3 * index.view.n)


def _feed(index: TenantIndex, events: Sequence[Stored | Forgotten]) -> None:
    """Changes in their order: runs of stored episodes at once."""
    run: list[Stored] = []
    for event in events:
        if isinstance(event, Stored):
            run.append(event)
        else:
            index.add(run)
            run = []
            index.remove(event.ids)
    index.add(run)


def _take_over(
    connection: sa.Connection, tenant_id: str, index: TenantIndex, columns: dict[str, Array], last: int
) -> bool:
    """Add the tenant's episodes up to `last` by their columns in a snapshot; false if one of them is not there.

    Which they are, and the names of tasks and agents, only the database says: as many as there are different ones.
    """
    live = Rows(connection, tenant_id, 0, (episodes.c.id <= last,)).ids()
    rows = np.searchsorted(columns["ids"], live)
    if not len(live) or rows[-1] == len(columns["ids"]) or (columns["ids"][rows] != live).any():
        return not len(live)
    taken = {name: each[rows] for name, each in columns.items()}
    names = {}
    for name, column in (("tasks", episodes.c.task), ("agents", episodes.c.agent_id)):
        some, taken[name] = _firsts(taken[name])
        query = sa.select(column).where(listed(episodes.c.id, live[some].tolist())).order_by(episodes.c.id)
        names[name] = connection.scalars(query).all()
    index.take_over(taken, **names)
    return True


def _firsts(numbers: Array) -> tuple[Array, Array]:
    """Where each of some small numbers stands first, ascending, and these numbers anew, in this order."""
    first = np.full(int(numbers.max()) + 1, -1, np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]  # of several, the last that is written stays
    some = np.sort(first[first >= 0])
    place = np.empty(len(first), np.int32)
    place[numbers[some]] = np.arange(len(some), dtype=np.int32)
    return some, place[numbers]


def _read_known(connection: sa.Connection, tenant_id: str, index: TenantIndex, after: int, last: int) -> None:
    """Add the tenant's episodes beyond `after`, up to `last`, whose vectors a graph has."""
    c = episodes.c
    query = sa.select(c.id, c.reward, c.created_at, c.task, c.agent_id)
    query = query.where(c.tenant_id == tenant_id, c.id > after, c.id <= last).order_by(c.id)
    result: Any = connection.execute(query)
    while rows := result.cursor.fetchmany(CHUNK):  # a million of SQLAlchemy's own rows take twice as long
        index.add_known(rows)


def _read_rows(connection: sa.Connection, tenant_id: str, index: TenantIndex, after: int) -> None:
    """Add the tenant's episodes beyond `after`, with their vectors, from the database."""
    query = (
        sa.select(
            episodes.c.id,
            episodes.c.reward,
            episodes.c.created_at,
            episodes.c.task,
            episodes.c.agent_id,
            vectors.c.vector,
        )
        .join(vectors, vectors.c.episode_id == episodes.c.id)
        .where(episodes.c.tenant_id == tenant_id, episodes.c.id > after)
        .order_by(episodes.c.id)
    )
    for rows in connection.execute(query).partitions(CHUNK):
        if any(len(row.vector) != 2 * index.dimension for row in rows):
            raise HubUnavailable(f"a vector of tenant {tenant_id!r} is damaged: run `fedlab verify`")
        index.add([Stored(tenant_id, *row[:5], unpack_vector(row.vector)) for row in rows])
