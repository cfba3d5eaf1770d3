"""What a backup or a fork says of itself, and whether a backup's files are those it speaks of; opens no database."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from fedlab._html import table
from fedlab._words import counted
from fedlab.clock import to_datetime
from fedlab.errors import CorruptBackup
from fedlab.hub.ledger import LedgerEntry

MANIFEST = "manifest.json"
DATABASE = "hub.db"
NEWS = "changes.db"
"""The file of an incremental backup."""
KEY = "hub.key"
NO_CHECKSUM = "0" * 64


class BackupFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a backup: its size in bytes and its SHA-256, hexadecimal."""

    bytes: int
    sha256: str


class Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backup that an incremental one builds on.

    Args:
        path: Relative to the backup that names it.
        checksum: Of its manifest.
    """

    path: str
    checksum: str


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup is.

    Args:
        hub_id: Of which hub.
        epoch: Of the hub then.
        seq: The last change in it.
        chain: Hash of the log at `seq`, hexadecimal.
        created_at: Ms UTC.
        fedlab: The version that wrote it, and `schema` of its tables.
        embedder: Name of the model, and `dimension` of its vectors.
        tenants: How many there are; the other numbers likewise.
        files: By name.
        bases: The backups that this one builds on, the full one first; none for a full one.
        erasures: What was erased so far: older backups do not know it yet.
        hub: The directory of the hub then, absolute: a restore looks there for what was erased since.
        checksum: SHA-256 of the manifest as written, with zeros in this place.
    """

    hub_id: str
    epoch: int
    seq: int
    chain: str
    created_at: int
    fedlab: str
    schema: int
    embedder: str
    dimension: int
    tenants: int
    agents: int
    episodes: int
    changes: int
    files: dict[Annotated[str, msgspec.Meta(pattern=r"\A[a-z.]+\Z")], BackupFile]
    bases: list[Base] = []
    erasures: list[LedgerEntry] = []
    hub: str = ""
    checksum: str = NO_CHECKSUM

    def __str__(self) -> str:
        kind, made, size = self._said()
        return (
            f"{kind} backup of hub {self.hub_id}, made {made} at change {self.seq:,} (epoch {self.epoch}):"
            f" {counted(self.episodes, 'episode')} of {counted(self.tenants, 'tenant')}, {size}"
        )

    def _repr_html_(self) -> str:
        kind, made, size = self._said()
        rows = [
            ("made", made),
            ("at change", self.seq),
            ("epoch", self.epoch),
            ("tenants", self.tenants),
            ("episodes", self.episodes),
            ("embedder", f"{self.embedder}, {counted(self.dimension, 'dimension')}"),
            ("size", size),
            *((name, f"SHA-256 {file.sha256}") for name, file in self.files.items()),
            *(("builds on", base.path) for base in self.bases),
        ]
        return table(f"{kind.capitalize()} backup of hub {self.hub_id}", rows)

    def _said(self) -> tuple[str, str, str]:
        kind = "incremental" if self.bases else "full"
        size = sum(file.bytes for file in self.files.values()) / 1e6
        return kind, to_datetime(self.created_at).isoformat(" ", "seconds"), f"{size:,.1f} MB"


class ForkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a fork is.

    Args:
        path: Its directory, absolute, on the machine of the hub that it was made from.
        hub_id: Its own.
        origin: The id of the hub that it was made from.
        seq: The last change of that hub's log that it has.
        tenants: How many it has.
        episodes: How many are live in it.
        lost: How many were live at `seq` and are not in it: they were forgotten since, and not kept.
    """

    path: str
    hub_id: str
    origin: str
    seq: int
    tenants: int
    episodes: int
    lost: int

    def __str__(self) -> str:
        held = f"{counted(self.episodes, 'episode')} of {counted(self.tenants, 'tenant')}"
        lost = f"; {counted(self.lost, 'episode')}, live then and not kept since, not in it" if self.lost else ""
        return f"hub {self.hub_id} in {self.path}: {held}, as of change {self.seq:,} of hub {self.origin}{lost}"

    def _repr_html_(self) -> str:
        rows = [
            ("in", self.path),
            ("made from hub", self.origin),
            ("as of change", self.seq),
            ("tenants", self.tenants),
            ("episodes", self.episodes),
            ("live then, and not kept", self.lost),
        ]
        return table(f"Fork: hub {self.hub_id}", rows)


class Part(NamedTuple):
    """One backup of a chain."""

    path: Path
    manifest: BackupManifest


def is_backup(path: Path) -> bool:
    """Whether a directory is a backup, whole or not; other things have a `manifest.json`, too."""
    with contextlib.suppress(OSError):
        return b'"hub_id"' in (path / MANIFEST).read_bytes()
    return False


def read_manifest(path: Path) -> BackupManifest:
    """What a backup says it is.

    Raises:
        CorruptBackup: If its manifest is missing or damaged.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        manifest = msgspec.json.decode(data, type=BackupManifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise corrupt(file, "is missing" if missing else f"is damaged ({error})") from error
    blank = data.replace(manifest.checksum.encode(), NO_CHECKSUM.encode())
    if hashlib.sha256(blank).hexdigest() != manifest.checksum:
        raise corrupt(file, "does not match its own checksum")
    return manifest


def read_chain(path: Path) -> list[Part]:
    """A backup and those that it builds on, the full one first; their files are there, in their sizes.

    Raises:
        CorruptBackup: If one of them is missing or not what it was.
    """
    path = path.absolute()
    manifest = read_manifest(path)
    chain = []
    for base in manifest.bases:
        where = Path(os.path.normpath(path / base.path))
        part = Part(where, read_manifest(where))
        if part.manifest.checksum != base.checksum:
            raise corrupt(where / MANIFEST, f"is of another backup than the one that {path} builds on")
        chain.append(part)
    chain.append(Part(path, manifest))
    for number, part in enumerate(chain):
        files = part.manifest.files
        if (NEWS if number else DATABASE) not in files:
            raise corrupt(part.path / MANIFEST, "names no database")
        for name, file in files.items():
            if not (part.path / name).is_file():
                raise corrupt(part.path / name, "is missing")
            if (size := (part.path / name).stat().st_size) != file.bytes:
                raise corrupt(part.path / name, f"has {size:,} bytes where {file.bytes:,} belong")
    return chain


def sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def corrupt(file: Path, what: str, **details: Any) -> CorruptBackup:
    """The error that names a file of a backup."""
    return CorruptBackup(f"{file} {what}: this backup can not be trusted, take another", file=str(file), **details)
