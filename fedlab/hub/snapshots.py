"""Snapshots of indexes on disk: of each large tenant its graph, the numbers of its rows (times, rewards), and what is
known of its near pairs (`neighbours.py`). No text is in any of them.

`manifest.json` names the files, with their checksums and the seq that they are good for. A file is written under a name
of its own, synced, and then named; it is checked before anyone reads it, because a damaged one can crash usearch.
Whatever is missing, damaged or of another version is made again from the database.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from fedlab.hub.directory import sync
from fedlab.hub.neighbours import Kept
from fedlab.hub.searching import EXPANSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt
    from usearch.index import Index as Graph

    from fedlab.hub.index import TenantIndex
    from fedlab.hub.searching import View

    Array = npt.NDArray[Any]

logger = logging.getLogger("fedlab.hub")

VERSION = 2
"""Of the files of arrays: another when these, or numbers in `neighbours.py`, mean other things."""
COLUMNS = ("ids", "rewards", "created_at", "tasks", "agents")
"""What is kept of the rows. Tasks and agents are numbers: their names are in the database alone."""
_PART = 1 << 24
"""Bytes of a file that are hashed by themselves, so that all cores take part."""


class ArraysFile(msgspec.Struct, frozen=True, kw_only=True):
    """Arrays on disk: name in the index directory, checksum, rows that are known, and the `VERSION` of then."""

    file: str
    checksum: str
    rows: int
    version: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A graph on disk, and what belongs to it.

    Args:
        file: Name in the index directory.
        seq: The log up to here is in it.
        checksum: Of the file, see `checksum_of`.
        rows: Keys in it.
        chain: Hash of the log at `seq`, hexadecimal: a database that was put back from a copy has another.
        columns: Of the rows, good for the same seq.
        near: Likewise.
    """

    file: str
    seq: int
    checksum: str
    rows: int
    chain: str
    columns: ArraysFile | None = None
    near: ArraysFile | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `manifest.json` in the index directory holds: the snapshot of each tenant that has one."""

    embedder: str
    dimension: int
    tenants: dict[str, Snapshot]


class Snapshots:
    """The snapshots of a hub's indexes.

    Args:
        directory: Where they are kept.
        embedder: Name of the model, and `dimension` of its vectors: a snapshot of another is not used.
    """

    def __init__(self, directory: Path, embedder: str, dimension: int) -> None:
        self.directory = directory
        self.lock = threading.RLock()
        """Held by whoever writes, and who decides that something is to be written."""
        self._embedder = embedder
        self._dimension = dimension
        self._useless: set[str] = set()

    def manifest(self) -> Manifest:
        """What is on disk; empty where it is missing, damaged or of another embedder."""
        try:
            return self._read_manifest()
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("the index manifest is damaged (%s); indexes are rebuilt from the database", error)
            return self._of({})

    def check(self) -> Iterator[str]:
        """What is wrong with the snapshots on disk, one sentence each."""
        if not self.directory.exists():
            return
        with self.lock:  # one that is being written is not damaged
            try:
                manifest = self._read_manifest()
            except (OSError, msgspec.MsgspecError) as error:
                yield f"index: the manifest is damaged ({error})"
                return
            faults = [
                (tenant_id, file.file, self._fault(file))
                for tenant_id, held in manifest.tenants.items()
                for file in (held, held.columns, held.near)
                if file is not None
            ]
        for tenant_id, name, fault in faults:
            if fault:
                yield f"index: the snapshot {name} of tenant {tenant_id!r} {fault}"

    def drop(self, tenant_id: str) -> None:
        """Remove everything of a tenant: removed vectors stay in a saved graph, and sketches tell of vectors."""
        with self.lock:
            if not self.directory.exists():
                return
            held = self.manifest()
            kept = {name: snapshot for name, snapshot in held.tenants.items() if name != tenant_id}
            # Always: the file that is there may be damaged, and name the tenant all the same.
            self._write_manifest(msgspec.structs.replace(held, tenants=kept))
            for file in self.directory.glob(f"{_stem(tenant_id)}*"):
                file.unlink()
            sync(self.directory)

    def read_graph(self, tenant_id: str, snapshot: Snapshot) -> Graph | None:
        """The graph, or None if it is damaged."""
        from usearch.index import Index as Graph  # 0.1 s that small hubs never need

        if fault := self._fault(snapshot):
            logger.warning("the index snapshot of %r %s; it is rebuilt", tenant_id, fault)
            return None
        path = str(self.directory / snapshot.file)
        try:
            # `restore` takes over whatever dimension and metric the file has: look before.
            held: Any = Graph.metadata(path)
            if held and held["dimensions"] == self._dimension and str(held["kind_metric"]).endswith("Cos"):
                graph: Any = Graph.restore(path)
                graph.expansion_search = EXPANSION  # it is not in the file
                return cast("Graph", graph)
        except Exception as error:
            logger.warning("the index snapshot of %r can not be read (%s)", tenant_id, error)
        logger.warning("the index snapshot of %r is of another shape; it is rebuilt", tenant_id)
        return None

    def read_columns(self, tenant_id: str, snapshot: Snapshot) -> dict[str, Array] | None:
        """The columns of the rows, by `COLUMNS`; or None if they are not at hand."""
        arrays = self._read_arrays(tenant_id, snapshot.columns, COLUMNS)
        if arrays is None or {len(each) for each in arrays.values()} == {len(arrays["ids"])}:
            return arrays
        self.refuse(tenant_id, snapshot.columns, "is of another shape")
        return None

    def read_near(self, tenant_id: str, snapshot: Snapshot) -> tuple[Array, Kept] | None:
        """The ids of the rows whose near pairs are known, and these; or None if they are not at hand."""
        arrays = self._read_arrays(tenant_id, snapshot.near, ("ids", *Kept._fields))
        if arrays is None:
            return None
        ids, known = arrays.pop("ids"), Kept(**arrays)
        if len(ids) == len(known.sketches) and len(known.basis) == self._dimension:
            return ids, known
        self.refuse(tenant_id, snapshot.near, "is of another shape")
        return None

    def refuse(self, tenant_id: str, held: ArraysFile | None, why: str) -> None:
        """Have arrays written anew at the next occasion, although the file is what it was."""
        if held is not None:
            logger.warning("the snapshot %s of %r %s; it is made anew", held.file, tenant_id, why)
            self._useless.add(held.file)

    def _read_arrays(self, tenant_id: str, held: ArraysFile | None, names: Iterable[str]) -> dict[str, Array] | None:
        if held is None or held.version != VERSION:
            return None
        fault = self._fault(held)
        if not fault:
            try:
                with (self.directory / held.file).open("rb") as file:
                    return {name: np.load(file, allow_pickle=False) for name in names}
            except Exception as error:
                fault = f"can not be read ({error})"
        self.refuse(tenant_id, held, fault)
        return None

    def save(self, tenant_id: str, index: TenantIndex, view: View, seq: int, chain: str) -> None:
        """Write what is not on disk yet: files, and then the manifest that names them.

        Args:
            tenant_id: Whose.
            index: Its index.
            view: What it has seen so far, with a graph.
            seq: The log up to here is in the graph.
            chain: Its hash there.
        """
        graph, known = view.graph, min(index.known, view.first)
        assert graph is not None
        with self.lock:
            self.directory.mkdir(exist_ok=True)
            held = self.manifest()
            old = snapshot = held.tenants.get(tenant_id)
            if snapshot is None or (snapshot.seq, snapshot.rows) != (seq, len(graph)) or self._fault(snapshot):
                name, checksum = self._write(tenant_id, "usearch", lambda path: graph.save(str(path)))
                snapshot = Snapshot(file=name, seq=seq, checksum=checksum, rows=len(graph), chain=chain)
            if not self._is_known(snapshot.columns, view.first):
                columns = self._write_arrays(tenant_id, "columns", index.numbers(view.first), view.first)
                snapshot = msgspec.structs.replace(snapshot, columns=columns)
            if known and not self._is_known(snapshot.near, known):
                ids, kept = index.remember(view.first)
                near = self._write_arrays(tenant_id, "near", {"ids": ids, **kept._asdict()}, known)
                snapshot = msgspec.structs.replace(snapshot, near=near)
            if snapshot is old:
                return
            self._write_manifest(msgspec.structs.replace(held, tenants={**held.tenants, tenant_id: snapshot}))
            named = {each.file for each in (snapshot, snapshot.columns, snapshot.near) if each is not None}
            for other in self.directory.glob(f"{_stem(tenant_id)}*"):
                if other.name not in named:
                    other.unlink()

    def _is_known(self, held: ArraysFile | None, rows: int) -> bool:
        if held is None or held.version != VERSION or held.file in self._useless:
            return False
        return held.rows >= rows and not self._fault(held)

    def _write_arrays(self, tenant_id: str, kind: str, arrays: dict[str, Array], rows: int) -> ArraysFile:
        name, checksum = self._write(tenant_id, kind, lambda path: _save_arrays(path, arrays))
        return ArraysFile(file=name, checksum=checksum, rows=rows, version=VERSION)

    def _write(self, tenant_id: str, kind: str, save: Callable[[Path], object]) -> tuple[str, str]:
        """A file under a name of its own: until the manifest names it, the one before it is in force."""
        temporary = self.directory / f"{_stem(tenant_id)}.new"
        save(temporary)
        sync(temporary)
        checksum = checksum_of(temporary)
        name = f"{_stem(tenant_id)}-{checksum[:16]}.{kind}"
        temporary.replace(self.directory / name)
        return name, checksum

    def _fault(self, held: Snapshot | ArraysFile) -> str:
        """What is wrong with a file; empty if nothing is."""
        path = self.directory / held.file
        if not path.exists():
            return "is missing"
        return "" if checksum_of(path) == held.checksum else "does not match its checksum"

    def _of(self, tenants: dict[str, Snapshot]) -> Manifest:
        return Manifest(embedder=self._embedder, dimension=self._dimension, tenants=tenants)

    def _read_manifest(self) -> Manifest:
        try:
            held = msgspec.json.decode((self.directory / "manifest.json").read_bytes(), type=Manifest)
        except FileNotFoundError:
            return self._of({})
        return held if (held.embedder, held.dimension) == (self._embedder, self._dimension) else self._of({})

    def _write_manifest(self, manifest: Manifest) -> None:
        new = self.directory / "manifest.json.new"
        new.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        sync(new)
        new.replace(self.directory / "manifest.json")


def _save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """One after another: `savez` makes a ZIP of them, which takes four times as long to read."""
    with path.open("wb") as file:
        for each in arrays.values():
            np.save(file, each, allow_pickle=False)


def checksum_of(path: Path) -> str:
    """SHA-256 of the SHA-256s of a file's parts, hexadecimal."""

    def part(start: int) -> bytes:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 18))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            for _ in range(0, _PART, len(buffer)):
                digest.update(buffer[: file.readinto(buffer)])
        return digest.digest()

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "fedlab-checksum") as pool:
        return hashlib.sha256(b"".join(pool.map(part, range(0, path.stat().st_size, _PART)))).hexdigest()


def _stem(tenant_id: str) -> str:
    """How the names of a tenant's files begin."""
    return hashlib.blake2b(tenant_id.encode(), digest_size=12).hexdigest()
