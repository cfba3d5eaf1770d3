"""All tenants' indexes: loaded when first used, fed by the writer, moved into graphs in the background,
and snapshots of the graphs on disk, which are checked before usearch reads them and rebuilt if damaged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import sqlalchemy as sa

from fedlab.errors import HubUnavailable
from fedlab.hub.directory import sync
from fedlab.hub.index import EXACT, TAIL, TenantIndex
from fedlab.hub.log import Forgotten, Stored, unpack_vector
from fedlab.hub.recent import Recent
from fedlab.hub.schema import begin, changes, episodes, vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from usearch.index import Index as Graph

logger = logging.getLogger("fedlab.hub")

CHUNK = 5_000
"""Rows read from the database at once while loading."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A graph on disk.

    Args:
        file: Name in the index directory.
        seq: The log up to here is in it.
        checksum: BLAKE2b of the file, hexadecimal.
        rows: Keys in it.
        chain: Hash of the log at `seq`, hexadecimal: a database that was put back from a copy has another.
    """

    file: str
    seq: int
    checksum: str
    rows: int
    chain: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `manifest.json` in the index directory holds: the snapshot of each tenant that has one."""

    embedder: str
    dimension: int
    tenants: dict[str, Snapshot]


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
        self.directory = directory
        self.dimension = dimension
        self.recent = Recent()
        """Rows of the episodes that were recalled of late."""
        self._engine = engine
        self._embedder = embedder
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._manifest_lock = threading.Lock()

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
            if isinstance(event, Forgotten):
                self.recent.drop(event.ids)
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
                self._tend(tenant_id, slot)
            except Exception:
                # The commit stands. The index is only a cache: the next recall makes another.
                logger.exception("the index of %r failed and is rebuilt", tenant_id)
                with self._lock:
                    self._slots.pop(tenant_id, None)

    def drop(self, tenant_id: str) -> None:
        """Let go of a tenant's index and its snapshot, byte for byte: the next `get` makes another from the database.

        Removed vectors stay in a saved graph, and a search under way keeps the index that it has.
        """
        self.recent.clear()
        with self._lock:
            self._slots.pop(tenant_id, None)
        with self._manifest_lock:
            if not self.directory.exists():
                return
            held = self.manifest()
            kept = {name: snapshot for name, snapshot in held.tenants.items() if name != tenant_id}
            # Always: the file that is there may be damaged, and name the tenant all the same.
            self._write_manifest(msgspec.structs.replace(held, tenants=kept))
            for file in self.directory.glob(f"{_stem(tenant_id)}*"):
                file.unlink()
            sync(self.directory)

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

    def manifest(self) -> Manifest:
        """What is on disk; empty where it is missing, damaged or of another embedder."""
        empty = Manifest(embedder=self._embedder, dimension=self.dimension, tenants={})
        try:
            held = msgspec.json.decode((self.directory / "manifest.json").read_bytes(), type=Manifest)
        except FileNotFoundError:
            return empty
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("the index manifest is damaged (%s); indexes are rebuilt from the database", error)
            return empty
        return held if (held.embedder, held.dimension) == (self._embedder, self.dimension) else empty

    def check_files(self) -> Iterator[str]:
        """What is wrong with the snapshots on disk, one sentence each."""
        if not self.directory.exists():
            return
        try:
            msgspec.json.decode((self.directory / "manifest.json").read_bytes(), type=Manifest)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            yield f"index: the manifest is damaged ({error})"
            return
        with self._manifest_lock:  # one that is being written is not damaged
            faults = [(each, held.file, self._fault(held)) for each, held in self.manifest().tenants.items()]
        for tenant_id, name, fault in faults:
            if fault:
                yield f"index: the snapshot {name} of tenant {tenant_id!r} {fault}"

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
            with slot.lock:
                _feed(fresh, [event for event in slot.pending if isinstance(event, Forgotten) or event.id > seq])
                slot.index, slot.pending = fresh, None
        finally:
            with slot.lock:
                slot.pending = None
        self._tend(tenant_id, slot)

    def _from_snapshot(self, connection: sa.Connection, tenant_id: str) -> TenantIndex | None:
        """The index from its snapshot and what the database has more; None if it must be rebuilt."""
        snapshot = self.manifest().tenants.get(tenant_id)
        if snapshot is None:
            return None
        if _chain_at(connection, snapshot.seq) != snapshot.chain:
            logger.warning("the index snapshot of %r is of another log; it is rebuilt", tenant_id)
            return None
        graph = self._read_graph(tenant_id, snapshot)
        if graph is None:
            return None
        keys = np.sort(np.asarray(graph.keys, np.int64))
        last = int(keys[-1]) if len(keys) else 0
        fresh = TenantIndex(self.dimension, graph)
        query = (
            sa.select(episodes.c.id, episodes.c.reward, episodes.c.created_at, episodes.c.task, episodes.c.agent_id)
            .where(episodes.c.tenant_id == tenant_id, episodes.c.id <= last)
            .order_by(episodes.c.id)
        )
        blank = np.zeros(self.dimension, np.float16)
        for rows in connection.execute(query).partitions(CHUNK):
            fresh.add([Stored(tenant_id, *row, blank) for row in rows], in_graph=len(rows))
        live = fresh.view.ids[: fresh.view.n]
        if len(np.setdiff1d(live, keys, assume_unique=True)):
            logger.warning("the index snapshot of %r lacks episodes; it is rebuilt", tenant_id)
            return None
        if len(gone := np.setdiff1d(keys, live, assume_unique=True)):
            graph.remove(gone)
        _read_rows(connection, tenant_id, fresh, after=last)
        return fresh

    def _read_graph(self, tenant_id: str, snapshot: Snapshot) -> Graph | None:
        from usearch.index import Index as Graph  # 0.1 s that small hubs never need

        if fault := self._fault(snapshot):
            logger.warning("the index snapshot of %r %s; it is rebuilt", tenant_id, fault)
            return None
        path = str(self.directory / snapshot.file)
        try:
            # `restore` takes over whatever dimension and metric the file has: look before.
            held: Any = Graph.metadata(path)
            if held and held["dimensions"] == self.dimension and str(held["kind_metric"]).endswith("Cos"):
                return Graph.restore(path)
        except Exception as error:
            logger.warning("the index snapshot of %r can not be read (%s)", tenant_id, error)
        logger.warning("the index snapshot of %r is of another shape; it is rebuilt", tenant_id)
        return None

    def _fault(self, snapshot: Snapshot) -> str:
        """What is wrong with a snapshot's file; empty if nothing is."""
        path = self.directory / snapshot.file
        if not path.exists():
            return "is missing"
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
        return "" if checksum == snapshot.checksum else "does not match its checksum"

    def _save(self, tenant_id: str, slot: _Slot) -> None:
        """One graph to disk: temporary file, sync, rename; then the manifest, in the same way."""
        stem = _stem(tenant_id)
        with self._manifest_lock:
            view = slot.index.view if slot.index is not None else None
            graph = view.graph if view is not None else None
            if view is None or graph is None or self._slots.get(tenant_id) is not slot:
                return  # dropped meanwhile
            self.directory.mkdir(exist_ok=True)
            seq = int(view.ids[view.first - 1]) if view.first else 0
            held = self.manifest()
            old = held.tenants.get(tenant_id)
            if old is not None and (old.seq, old.rows) == (seq, len(graph)) and not self._fault(old):
                return
            temporary = self.directory / f"{stem}.new"
            graph.save(str(temporary))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
                checksum = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
            # Under a name of its own: until the manifest names it, the one before it is in force.
            name = f"{stem}-{checksum[:16]}.usearch"
            temporary.replace(self.directory / name)
            with begin(self._engine) as connection:
                chain = _chain_at(connection, seq)
            snapshot = Snapshot(file=name, seq=seq, checksum=checksum, rows=len(graph), chain=chain)
            manifest = msgspec.structs.replace(held, tenants={**held.tenants, tenant_id: snapshot})
            self._write_manifest(manifest)
            for other in self.directory.glob(f"{stem}-*.usearch"):
                if other.name != name:
                    other.unlink()

    def _write_manifest(self, manifest: Manifest) -> None:
        new = self.directory / "manifest.json.new"
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.directory / "manifest.json")

    def _tend(self, tenant_id: str, slot: _Slot) -> None:
        """Have the background thread move a long tail into the graph, or rebuild after much forgetting."""
        index = slot.index
        if index is None or slot.queued:
            return
        view = index.view
        long_tail = view.n - view.first > (EXACT if view.graph is None else TAIL)
        if long_tail or _much_dead(index):
            slot.queued = True
            with self._lock:
                if self._worker is None:
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
                index = slot.index
                if index is None:
                    continue
                index.move_to_graph(Graph, self._stop)
                saved = self.manifest().tenants.get(tenant_id)
                graph = index.view.graph
                if graph is not None and len(graph) > 1.5 * (saved.rows if saved else 0):
                    self._save(tenant_id, slot)
            except Exception:
                logger.exception("the index of %r could not be tended; exact search goes on", tenant_id)
            finally:
                slot.queued = False


def _stem(tenant_id: str) -> str:
    """How the names of a tenant's files begin."""
    return hashlib.blake2b(tenant_id.encode(), digest_size=12).hexdigest()


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
