"""A server's backups: the directory that they and forks go to, one now and then, and the old ones out of the way."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedlab.clock import to_datetime
from fedlab.errors import CorruptBackup, InvalidRequest
from fedlab.hub.backups import check_apart, check_empty, verify_backup
from fedlab.hub.manifest import MANIFEST, BackupManifest, read_manifest
from fedlab.hub.parts import new_part, remove_dead
from fedlab.hub.schema import being_written

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

    from fedlab.hub import Hub
    from fedlab.hub.manifest import ForkReport

logger = logging.getLogger("fedlab.net")

CHAIN = 24
"""Backups of a chain: a full one, and incremental ones over it."""
SCHEDULED = "hub-%Y%m%dT%H%M%S.%fZ"
"""The names of those that are made on schedule; only these are removed."""
_SCHEDULED = re.compile(r"hub-\d{8}T\d{6}\.\d{6}Z")


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
        remove_dead(self.directory)
        self.last_at = max((manifest.created_at for manifest in self._found().values()), default=None)

    def make(self, name: str, base: str | None = None) -> BackupManifest:
        """Back the hub up under a name in the directory, where it stays until someone removes it.

        Raises:
            InvalidRequest: If a name is no plain name, or one of the scheduled, or as `Hub.backup`.
        """
        if _is_scheduled(Path(name)):
            raise InvalidRequest(
                f"{name} is what a scheduled backup is called, and those are removed: take another name"
            )
        return self._make(name, base)

    def _make(self, name: str, base: str | None) -> BackupManifest:
        place, on = self._place(name), None if base is None else self._place(base)
        remove_dead(self.directory)
        manifest = self._hub.backup(place, base=on)
        self.last_at = manifest.created_at
        return manifest

    def verify(self, name: str) -> BackupManifest:
        """Read all of a backup in the directory, and of those that it builds on, and check everything.

        Raises:
            InvalidRequest: If the name is no plain name.
            CorruptBackup: Naming what is damaged or missing.
        """
        return verify_backup(self._place(name))

    def fork(self, name: str, at: datetime | int | None = None) -> ForkReport:
        """Make an independent hub under a name in the directory, as of now, a seq or a time.

        Raises:
            InvalidRequest: If the name is no plain name, or as `Hub.fork`.
            HubUnavailable: If it can not be written; then nothing is left of it.
        """
        place = self._place(name)
        check_empty(place)
        remove_dead(self.directory)
        with being_written(f"the fork {place}"):
            self.directory.mkdir(parents=True, exist_ok=True)
            with new_part(place) as part:
                report = self._hub.write_fork(part / name, at=at)
                (part / name).replace(place)
        return msgspec.structs.replace(report, path=str(place))

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
                _is_scheduled(path),
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
        name = to_datetime(self._hub.clock.now()).strftime(SCHEDULED)
        found = self._found()
        scheduled = sorted(filter(_is_scheduled, found), key=lambda path: path.name)
        last = scheduled[-1] if scheduled else None
        if last is not None and len(found[last].bases) + 1 >= CHAIN:
            last = None
        try:
            manifest = self._make(name, None if last is None else last.name)
        except (InvalidRequest, CorruptBackup) as error:
            if last is None:
                raise
            logger.warning("a full backup is made, because the last one is no base for the next: %s", error.message)
            manifest = self._make(name, None)
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
        ours = [root for root, paths in chains.items() if all(map(_is_scheduled, paths))]
        for root in sorted(ours, key=lambda path: path.name, reverse=True)[self.keep :]:
            for path in sorted(chains[root], key=lambda path: len(found[path].bases), reverse=True):
                _remove(path)
                logger.info("removed the old backup %s", path)


def _remove(path: Path) -> None:
    """The manifest last: what is left when this is killed is found, and removed, by the next."""
    for each in path.iterdir():
        if each.name != MANIFEST:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    shutil.rmtree(path)


def _is_scheduled(path: Path) -> bool:
    return _SCHEDULED.fullmatch(path.name) is not None
