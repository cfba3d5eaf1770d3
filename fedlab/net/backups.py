"""A server's backups: the directory that they go to, one now and then, and the old ones out of the way."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab.clock import to_datetime
from fedlab.errors import CorruptBackup, InvalidRequest
from fedlab.hub.backups import check_apart, verify_backup
from fedlab.hub.manifest import MANIFEST, BackupManifest, read_manifest

if TYPE_CHECKING:
    import polars as pl

    from fedlab.hub import Hub

logger = logging.getLogger("fedlab.net")

CHAIN = 24
"""Backups of a chain: a full one, and incremental ones over it."""
SCHEDULED = "hub-"
"""Begins the names of those that are made on schedule; only these are removed."""


class Backups:
    """The backups of a hub in one directory.

    Args:
        hub: The hub.
        directory: Made if it is not there.
        interval: Seconds between two scheduled ones; none are made if None.
        keep: So many chains of scheduled ones are kept, the newest.

    Raises:
        InvalidRequest: If none would be kept, or the directory is the hub's own.
    """

    def __init__(self, hub: Hub, directory: str | Path, interval: float | None, keep: int) -> None:
        self.directory = Path(directory).absolute()
        check_apart(self.directory, hub.path)
        self._hub = hub
        self.interval = interval
        if keep < 1:
            raise InvalidRequest(f"backup_keep is 1 or more, not {keep}")
        self.keep = keep
        self.last_at = max((manifest.created_at for manifest in self._found().values()), default=None)

    def make(self, name: str, base: str | None = None) -> BackupManifest:
        """Back the hub up under a name in the directory.

        Raises:
            InvalidRequest: If a name is no plain name, or as `Hub.backup`.
        """
        manifest = self._hub.backup(self._place(name), base=None if base is None else self._place(base))
        self.last_at = manifest.created_at
        return manifest

    def verify(self, name: str) -> BackupManifest:
        """Read all of a backup in the directory, and of those that it builds on, and check everything.

        Raises:
            InvalidRequest: If the name is no plain name.
            CorruptBackup: Naming what is damaged or missing.
        """
        return verify_backup(self._place(name))

    def frame(self) -> pl.DataFrame:
        """The backups of this hub that are there, the newest first; `base` is null for a full one."""
        from fedlab._polars import pl

        whole = ("created_at", "seq", "epoch", "episodes", "tenants", "bytes")
        schema = {"name": pl.String, **dict.fromkeys(whole, pl.Int64), "base": pl.String, "scheduled": pl.Boolean}
        rows = [
            (
                path.name,
                manifest.created_at,
                manifest.seq,
                manifest.epoch,
                manifest.episodes,
                manifest.tenants,
                sum(file.bytes for file in manifest.files.values()),
                Path(manifest.bases[-1].path).name if manifest.bases else None,
                path.name.startswith(SCHEDULED),
            )
            for path, manifest in self._found().items()
        ]
        return pl.DataFrame(rows, schema, orient="row").sort("created_at", "name", descending=True)

    def age(self) -> float | None:
        """Seconds since the last good backup; None where there is none."""
        return None if self.last_at is None else (self._hub.clock.now() - self.last_at) / 1000

    def make_due(self) -> BackupManifest | None:
        """Make one, and remove what is too old, if it is time for the next."""
        age = self.age()
        if self.interval is None or (age is not None and age < self.interval):
            return None
        name = SCHEDULED + to_datetime(self._hub.clock.now()).strftime("%Y%m%dT%H%M%S.%fZ")
        found = self._found()
        scheduled = sorted((path for path in found if path.name.startswith(SCHEDULED)), key=lambda path: path.name)
        last = scheduled[-1] if scheduled else None
        if last is not None and len(found[last].bases) + 1 >= CHAIN:
            last = None
        try:
            manifest = self.make(name, None if last is None else last.name)
        except (InvalidRequest, CorruptBackup) as error:
            if last is None:
                raise
            logger.warning("a full backup is made, because the last one is no base for the next: %s", error.message)
            manifest = self.make(name)
        logger.info("backup %s: %s", self.directory / name, manifest)
        self._remove_old()
        return manifest

    def _place(self, name: str) -> Path:
        if name != Path(name).name or name.startswith(".") or "\\" in name or "\0" in name:
            raise InvalidRequest(f"a backup's name is a plain name in the server's directory, not {name!r:.80}")
        return self.directory / name

    def _found(self) -> dict[Path, BackupManifest]:
        """The backups of this hub; what is none, or can not be read, is none of our business."""
        hub_id, found = self._hub.info().hub_id, {}
        for path in self.directory.glob(f"*/{MANIFEST}"):
            try:
                manifest = read_manifest(path.parent)
            except CorruptBackup as error:
                logger.warning("%s", error.message)
                continue
            if manifest.hub_id == hub_id and not path.parent.name.startswith("."):
                found[path.parent] = manifest
        return found

    def _remove_old(self) -> None:
        """Remove whole chains, from their ends; one that someone has built on by hand stays."""
        found = self._found()
        chains: dict[Path, list[Path]] = {}
        for path, manifest in found.items():
            root = path if not manifest.bases else (path / manifest.bases[0].path).resolve()
            chains.setdefault(root, []).append(path)
        ours = [root for root, paths in chains.items() if all(path.name.startswith(SCHEDULED) for path in paths)]
        for root in sorted(ours, key=lambda path: path.name, reverse=True)[self.keep :]:
            for path in sorted(chains[root], key=lambda path: len(found[path].bases), reverse=True):
                shutil.rmtree(path)
                logger.info("removed the old backup %s", path)
        for part in self.directory.glob(f".{SCHEDULED}*.part"):
            shutil.rmtree(part)  # of a server that was killed
