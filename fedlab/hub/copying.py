"""Copies of a hub as its methods: back it up, restore it, fork it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.clock import SystemClock
from fedlab.errors import InvalidRequest
from fedlab.hub import backups, restoring
from fedlab.hub.core import HubCore

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Self

    from fedlab.hub.manifest import BackupManifest, ForkReport

logger = logging.getLogger("fedlab.hub")


class CopyMethods(HubCore):
    """How a hub comes to be somewhere else, or back."""

    def backup(self, path: str | Path, *, base: str | Path | None = None) -> BackupManifest:
        """Copy the hub as it is now to a new directory, while it works: everything acknowledged before is in it.

        Args:
            path: A directory that is not there yet, or empty.
            base: An earlier backup of this hub: then only what is new since is written, and the base is needed too.

        Raises:
            InvalidRequest: If `path` is taken or in the hub's directory, or `base` is no earlier backup of this hub.
            CorruptBackup: If `base` is not whole.
            HubUnavailable: If it can not be written; then nothing is left of it.
        """
        self._require_open()
        self._write_usage()
        return backups.write_backup(
            self._directory.database, Path(path), self.clock.now(), None if base is None else Path(base)
        )

    @classmethod
    def restore(
        cls,
        backup: str | Path,
        path: str | Path,
        *,
        at: datetime | int | None = None,
        overwrite: bool = False,
        ledger_from: str | Path | None = None,
        **hub_options: Any,
    ) -> Self:
        """Make a directory the hub that a backup holds, and open it. All of the backup is checked before.

        What was erased after the backup is erased again, as far as it is known: from the hub that is replaced, from
        the hub where it was when it was backed up, from the backups of the same hub beside this one (or beside those
        that it builds on), and from `ledger_from`. A warning says if none of these is newer than the backup. The hub
        goes on in its next epoch.

        Args:
            backup: What `backup` wrote.
            path: A directory that is not there yet, or empty.
            at: As of this seq or time (UTC) before the backup; what had been forgotten until the backup comes back
                as far as it was kept (`keep_forgotten`).
            overwrite: Whether an older or damaged state of the same hub may be in `path`, and is replaced.
            ledger_from: Another backup or hub directory that knows of later erasures.
            **hub_options: As for `Hub`.

        Raises:
            CorruptBackup: Naming what of the backup is damaged or missing.
            InvalidRequest: If `path` is not empty, or holds another hub; or the backup knows no such moment.
            HubLocked: If the hub in `path` is open.
            HubUnavailable: If it can not be written; then `path` is as it was.
        """
        for each in (backup, path, ledger_from or ""):
            if "://" in str(each):
                raise InvalidRequest(
                    f"{each} is a URL, and a hub is not restored while it runs: stop it, restore to its directory, on"
                    " its machine, from a backup there (`fedlab restore BACKUP DIRECTORY --overwrite`), and start it"
                )
        now = (hub_options.get("clock") or SystemClock()).now()
        ledger = None if ledger_from is None else Path(ledger_from)
        restoring.restore(Path(backup), Path(path), now, at=at, overwrite=overwrite, ledger_from=ledger)
        return cls(path, **hub_options)

    def fork(self, path: str | Path, *, at: datetime | int | None = None) -> Self:
        """Make a directory an independent hub with the memory of this one as of then, and open it.

        It has the log up to then, with its episodes, holds and retention policies. Agents that were alive have
        crashed. What was forgotten since comes back as far as it is kept (`keep_forgotten`); what is not is forgotten
        there too, and the log of the fork says so. What was erased stays erased.

        Args:
            path: A directory that is not there yet, or empty.
            at: A seq or a time (UTC); now if not given.

        Raises:
            InvalidRequest: If `path` is not empty or in the hub's directory, or this hub knows no such moment.
            HubUnavailable: If it can not be written; then nothing is left of it.
        """
        return self._fork(path, at)[0]

    def write_fork(self, path: str | Path, *, at: datetime | int | None = None) -> ForkReport:
        """As `fork`, but what it is is returned, and it is not open."""
        fork, report = self._fork(path, at)
        fork.close()
        return report

    def _fork(self, path: str | Path, at: datetime | int | None) -> tuple[Self, ForkReport]:
        self._require_open()
        self._write_usage()
        report = restoring.fork(self._directory.database, Path(path), self.clock.now(), at=at)
        (logger.warning if report.lost else logger.info)("fork: %s", report)
        # An erasure that was under way is completed there when it is opened.
        return type(self)(path, self.clock, self.embedder), report
