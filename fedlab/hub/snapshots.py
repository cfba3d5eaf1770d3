"""Snapshots of indexes on disk: of each large tenant its graph, and what is known of its near pairs (`neighbours.py`).

`manifest.json` names the files, with their checksums and the seq that they are good for. A file is written under a name
of its own, synced, and then named; it is checked before anyone reads it, because a damaged one can crash usearch.
Whatever is missing, damaged or of another version is made again from the database.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from fedlab.hub.directory import sync
from fedlab.hub.neighbours import Kept
from fedlab.hub.searching import EXPANSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt
    from usearch.index import Index as Graph

    Array = npt.NDArray[Any]

logger = logging.getLogger("fedlab.hub")

NEAR = 1
"""Version of the files of near pairs: another when their arrays, or numbers in `neighbours.py`, mean other things."""


class NearFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is near what, on disk: name in the index directory, BLAKE2b, rows that are known, and the `NEAR` of then."""

    file: str
    checksum: str
    rows: int
    version: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A graph on disk, and what belongs to it.

    Args:
        file: Name in the index directory.
        seq: The log up to here is in it.
        checksum: BLAKE2b of the file, hexadecimal.
        rows: Keys in it.
        chain: Hash of the log at `seq`, hexadecimal: a database that was put back from a copy has another.
        near: Good for the same seq.
    """

    file: str
    seq: int
    checksum: str
    rows: int
    chain: str
    near: NearFile | None = None


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
        empty = Manifest(embedder=self._embedder, dimension=self._dimension, tenants={})
        try:
            held = msgspec.json.decode((self.directory / "manifest.json").read_bytes(), type=Manifest)
        except FileNotFoundError:
            return empty
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("the index manifest is damaged (%s); indexes are rebuilt from the database", error)
            return empty
        return held if (held.embedder, held.dimension) == (self._embedder, self._dimension) else empty

    def check(self) -> Iterator[str]:
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
        with self.lock:  # one that is being written is not damaged
            faults = [
                (tenant_id, file.file, self._fault(file))
                for tenant_id, held in self.manifest().tenants.items()
                for file in (held, held.near)
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

    def read_near(self, tenant_id: str, snapshot: Snapshot) -> tuple[Array, Kept] | None:
        """The ids of the rows whose near pairs are known, and these; or None if they are not at hand."""
        held = snapshot.near
        if held is None or held.version != NEAR:
            return None
        fault = self._fault(held)
        if not fault:
            try:
                # Opened here: of a file that is none of NumPy's, `load` leaves its own open.
                with (self.directory / held.file).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    known = Kept(*(arrays[name] for name in Kept._fields))
                    if len(arrays["ids"]) == len(known.sketches) and len(known.basis) == self._dimension:
                        return arrays["ids"], known
                fault = "is of another shape"
            except Exception as error:
                fault = f"can not be read ({error})"
        self.refuse_near(tenant_id, held, fault)
        return None

    def refuse_near(self, tenant_id: str, held: NearFile, why: str) -> None:
        """Have what is near what written anew at the next occasion, although the file is what it was."""
        logger.warning("the snapshot of the near pairs of %r %s; they are looked for anew", tenant_id, why)
        self._useless.add(held.file)

    def save(
        self, tenant_id: str, graph: Graph, near: Callable[[], tuple[Array, Kept]], known: int, seq: int, chain: str
    ) -> None:
        """Write what is not on disk yet: files, and then the manifest that names them.

        Args:
            tenant_id: Whose.
            graph: Its graph.
            near: Gives the ids of the rows whose near pairs are known, up to `seq`, and these.
            known: How many rows that may be.
            seq: The log up to here is in the graph.
            chain: Its hash there.
        """
        with self.lock:
            self.directory.mkdir(exist_ok=True)
            held = self.manifest()
            old = snapshot = held.tenants.get(tenant_id)
            if snapshot is None or (snapshot.seq, snapshot.rows) != (seq, len(graph)) or self._fault(snapshot):
                name, checksum = self._write(tenant_id, "usearch", lambda path: graph.save(str(path)))
                snapshot = Snapshot(file=name, seq=seq, checksum=checksum, rows=len(graph), chain=chain)
            if known and not self._is_known(snapshot.near, known):
                ids, kept = near()
                arrays = {"ids": ids, **kept._asdict()}
                name, checksum = self._write(tenant_id, "near", lambda path: _save_arrays(path, arrays))
                written = NearFile(file=name, checksum=checksum, rows=known, version=NEAR)
                snapshot = msgspec.structs.replace(snapshot, near=written)
            if snapshot is old:
                return
            self._write_manifest(msgspec.structs.replace(held, tenants={**held.tenants, tenant_id: snapshot}))
            named = {snapshot.file, snapshot.near.file if snapshot.near else ""}
            for other in self.directory.glob(f"{_stem(tenant_id)}*"):
                if other.name not in named:
                    other.unlink()

    def _is_known(self, held: NearFile | None, rows: int) -> bool:
        if held is None or held.version != NEAR or held.file in self._useless:
            return False
        return held.rows >= rows and not self._fault(held)

    def _write(self, tenant_id: str, kind: str, save: Callable[[Path], object]) -> tuple[str, str]:
        """A file under a name of its own: until the manifest names it, the one before it is in force."""
        temporary = self.directory / f"{_stem(tenant_id)}.new"
        save(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
            checksum = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
        name = f"{_stem(tenant_id)}-{checksum[:16]}.{kind}"
        temporary.replace(self.directory / name)
        return name, checksum

    def _fault(self, held: Snapshot | NearFile) -> str:
        """What is wrong with a file; empty if nothing is."""
        path = self.directory / held.file
        if not path.exists():
            return "is missing"
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
        return "" if checksum == held.checksum else "does not match its checksum"

    def _write_manifest(self, manifest: Manifest) -> None:
        new = self.directory / "manifest.json.new"
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.directory / "manifest.json")


def _save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    with path.open("wb") as file:  # to a name, `savez` would add its own ending
        np.savez(file, allow_pickle=False, **arrays)


def _stem(tenant_id: str) -> str:
    """How the names of a tenant's files begin."""
    return hashlib.blake2b(tenant_id.encode(), digest_size=12).hexdigest()
