"""Putting a backup, or a copy of a hub as of a seq, where a hub can be opened: whole, or not at all.

The database is made in a folder inside the directory and takes its place with one rename. A hub that is replaced is
folded into one file before: a write-ahead log that stayed behind would undo it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from fedlab._words import counted
from fedlab.errors import FedlabError, HubLocked, InvalidRequest
from fedlab.hub import operations, reading, schema, timetravel
from fedlab.hub.backups import check_apart, check_empty, copy_database, put_together, reading_only
from fedlab.hub.directory import (
    MEMORY,
    STAGE,
    Directory,
    new_hub_id,
    open_database,
    read_head,
    read_hub_id,
    sync,
    write_meta,
)
from fedlab.hub.ledger import Erased, LedgerEntry, apply_ledger, export_ledger, known_to
from fedlab.hub.log import REDACTED, Statements, Transaction, erased_id
from fedlab.hub.manifest import DATABASE, KEY, MANIFEST, NEWS, ForkReport, is_backup, read_chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from fedlab.hub.manifest import BackupManifest, Part

logger = logging.getLogger("fedlab.hub")


def restore(
    backup: Path,
    path: Path,
    now: int,
    *,
    at: datetime | int | None = None,
    overwrite: bool = False,
    ledger_from: Path | None = None,
) -> None:
    """Make a directory the hub that a backup holds; see `Hub.restore`."""
    chain = read_chain(backup)
    manifest = chain[-1].manifest
    check_place(path, manifest, overwrite)
    with _staged(path) as (directory, stage):
        put_together(chain, stage)
        ledgers = _ledgers(chain, directory.database, ledger_from)
        with _rewriting(stage, now) as tx:
            _bring_to(tx, chain[-1], at, ledgers)
        key = chain[-1].path / KEY
        # A key that was changed since is not brought back.
        if key.exists() and not (directory.path / KEY).exists():
            shutil.copy(key, directory.path / KEY)
            sync(directory.path / KEY)


def _bring_to(tx: Transaction, part: Part, at: datetime | int | None, ledgers: Sequence[_Ledger]) -> None:
    """Cut a restored database, erase what was erased since, and name its next epoch."""
    manifest = part.manifest
    seq = timetravel.seq_of(tx.connection, at)
    entries, ids = _fitting(tx, ledgers, seq)
    lost = timetravel.cut(tx, seq) if seq < tx.head.seq else []
    epoch = max([manifest.epoch, *(each.epoch for each in ledgers)]) + 1
    write_meta(tx.connection, epoch=str(epoch))
    made = timetravel.describe(manifest.created_at)
    tx.log("hub_restored", "", manifest.hub_id, "local", f"change {seq} of the backup of {made}; epoch {epoch}")
    timetravel.log_lost(tx, lost, f"not restored: it was forgotten after change {seq}, and not kept")
    erased = apply_ledger(tx, entries)
    timetravel.lock_out(tx, ids, {entry.id for entry in entries} | {row.reason for row in ids})
    if lost:
        logger.warning("%s, live at change %d, not kept since and not restored", counted(len(lost), "episode"), seq)
    if erased:
        logger.warning("the backup of %s did not know of %s: done again", made, counted(erased, "erasure"))


def fork(database: Path, path: Path, now: int, *, at: datetime | int | None = None) -> ForkReport:
    """Make a directory an independent hub with the memory of another as of then; see `Hub.fork`."""
    check_apart(path, database.parent)
    _check_free(path)
    with _staged(path) as (_, stage):
        with reading_only(database) as connection:
            copy_database(connection, database, stage.database)
        with _rewriting(stage, now) as tx:
            of_origin = sa.select(schema.meta.c.value).where(schema.meta.c.key == "hub_id")
            origin: str = tx.connection.execute(of_origin).scalar_one()
            seq = timetravel.seq_of(tx.connection, at)
            lost = timetravel.cut(tx, seq) if seq < tx.head.seq else []
            hub_id = new_hub_id()
            write_meta(tx.connection, hub_id=hub_id, epoch="1")
            tx.log("hub_forked", "", hub_id, "local", f"from hub {origin} as of change {seq}; {len(lost)} not kept")
            timetravel.log_lost(tx, lost, f"not in this fork: it was forgotten after change {seq}, and not kept")
            tx.flush()
            for agent in reading.living_agents(tx.connection):
                operations.end(tx, *agent, "crashed", actor="hub")
            tenants, episodes = (
                tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (schema.tenants, schema.episodes)
            )
    counts = {"tenants": tenants, "episodes": episodes, "lost": len(lost)}
    return ForkReport(path=str(path.absolute()), hub_id=hub_id, origin=origin, seq=seq, **counts)


# --- the place ----------------------------------------------------------------------------------------------------


def check_place(path: Path, manifest: BackupManifest, overwrite: bool) -> None:
    """Whether a backup may be put here.

    Raises:
        InvalidRequest: If something is here and may not be overwritten, or is no earlier state of the same hub.
    """
    try:
        _check_free(path)
        return
    except InvalidRequest as error:
        if not overwrite:
            raise InvalidRequest(
                f"{error.message}, or say that what is there may be overwritten (overwrite=True, --overwrite)"
            ) from None
    if not path.is_dir() or not any((path / name).exists() for name in (DATABASE, "index", "embeddings.db")):
        raise InvalidRequest(f"{path} holds other things than a hub, and only a hub is overwritten")
    try:
        there = read_hub_id(path)
    except FedlabError:
        return  # so damaged that it does not say which hub it was
    if there != manifest.hub_id:
        raise InvalidRequest(
            f"the hub in {path} is {there}, and the backup is of another one, {manifest.hub_id}: restore it to an"
            " empty directory",
            hub_id=there,
            backup_of=manifest.hub_id,
        )


def _check_free(path: Path) -> None:
    # What is left when a restore to an empty directory was killed is as good as empty.
    if not path.is_dir() or not {each.name for each in path.iterdir()} <= {STAGE, KEY, "hub.lock", "hub.pid"}:
        check_empty(path)


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[tuple[Directory, Directory]]:
    """A hub's directory, locked, and a folder in it: the database made there becomes the hub's if all goes well."""
    if str(path) == MEMORY:
        raise InvalidRequest("a hub is restored or forked to a directory, and not to memory")
    fresh = not path.exists()
    directory = Directory(path)
    done = False
    try:
        with schema.being_written(f"the hub in {path}"):
            stage = Directory(directory.path / STAGE)
            try:
                yield directory, stage
            finally:
                stage.close()
            _install(stage.database, directory)
            done = True
    finally:
        shutil.rmtree(directory.path / STAGE, ignore_errors=True)
        directory.close()
        if fresh and not done:
            shutil.rmtree(directory.path, ignore_errors=True)


@contextlib.contextmanager
def _rewriting(stage: Directory, now: int) -> Iterator[Transaction]:
    """A transaction over a staged database, which is one file on disk afterwards."""
    engine = open_database(stage, "off")  # it is synced as a whole
    try:
        head = read_head(engine, stage.database)
        with schema.begin(engine, "IMMEDIATE") as connection:
            known = set(connection.scalars(sa.select(schema.tenants.c.tenant_id)))
            with contextlib.closing(connection.connection.cursor()) as cursor:
                tx = Transaction(connection, cursor, Statements(engine), head, now, known, Erased())
                yield tx
                tx.flush()
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    finally:
        engine.dispose()
    sync(stage.database)


def _install(database: Path, directory: Directory) -> None:
    """Put a database in the place of the one that is there, with one rename."""
    old = directory.database
    if old.exists():
        try:
            with contextlib.closing(sqlite3.connect(old, timeout=5)) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")  # all that is committed is in the one file now
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise HubLocked(f"{old} is being read by another process: stop it, and try again") from error
        except sqlite3.DatabaseError:
            logger.warning("%s is damaged, and replaced", old)
    for suffix in ("-wal", "-shm", "-journal"):
        old.with_name(old.name + suffix).unlink(missing_ok=True)
    sync(directory.path)
    database.replace(old)
    sync(directory.path)
    # Caches of what was here before: they are made again.
    shutil.rmtree(directory.path / "index", ignore_errors=True)
    for cache in directory.path.glob("embeddings.db*"):
        cache.unlink()


# --- erasures that came after a backup ----------------------------------------------------------------------------


class _Ledger(NamedTuple):
    """What another copy of the hub knows of erasures: from its databases, the newest first."""

    place: Path
    epoch: int
    seq: int
    entries: Sequence[LedgerEntry]
    databases: list[Path]


def _ledgers(chain: list[Part], replaced: Path, extra: Path | None) -> list[_Ledger]:
    """Of the hub that is replaced, of the hub where it was when it was backed up, of all backups of the same hub beside
    this one and those that it builds on, and of where the caller says.
    """
    manifest = chain[-1].manifest
    hubs = [replaced.parent, *([Path(manifest.hub)] if manifest.hub else [])]
    places = dict.fromkeys(place.absolute() for place in [*hubs, *_siblings(chain)])
    ledgers = [ledger for place in places if (ledger := _ledger(place, manifest.hub_id)) is not None]
    if extra is not None:
        found = _ledger(extra, manifest.hub_id)
        if found is None:
            raise InvalidRequest(f"{extra} is no hub and no backup of hub {manifest.hub_id} whose erasures can be read")
        ledgers.append(found)
    for each in ledgers:
        if each.place == replaced.parent and (each.epoch, each.seq) > (manifest.epoch, manifest.seq):
            logger.warning(
                "the hub in %s had come to change %d (epoch %d): what it has after the backup, of change %d (epoch %d),"
                " is replaced",
                *(each.place, each.seq, each.epoch, manifest.seq, manifest.epoch),
            )
    _say_how_far(manifest, ledgers, places, extra)
    return ledgers


def _say_how_far(manifest: BackupManifest, ledgers: list[_Ledger], places: Iterable[Path], extra: Path | None) -> None:
    """Up to when it is known what was erased: a hub knows it up to now, a backup up to its own time."""
    newest = max(ledgers, key=lambda each: (each.epoch, each.seq), default=None)
    if newest is not None and (newest.epoch, newest.seq) >= (manifest.epoch, manifest.seq):
        is_hub = not (newest.place / MANIFEST).exists()
        if is_hub or (newest.epoch, newest.seq) > (manifest.epoch, manifest.seq):
            logger.info("what was erased is known from %s, up to change %d", newest.place, newest.seq)
            return
    if extra is not None:
        return
    logger.warning(
        "nothing newer than this backup, of %s at change %d, tells what was erased since (looked at: %s; and for other"
        " backups beside this one): if anything was, it is back. Erase it again, or restore with a newer backup or the"
        " hub's directory as ledger_from (--ledger-from)",
        timetravel.describe(manifest.created_at),
        manifest.seq,
        ", ".join(map(str, places)),
    )


def _siblings(chain: list[Part]) -> Iterable[Path]:
    """Other backups beside those of a chain; other things may have a manifest, too."""
    folders = dict.fromkeys(part.path.parent for part in reversed(chain))
    beside = (each.parent for folder in folders for each in sorted(folder.glob(f"*/{MANIFEST}")))
    return (each for each in beside if each != chain[-1].path and is_backup(each))


def _ledger(place: Path, hub_id: str) -> _Ledger | None:
    """The ledger of a hub or a backup; None if it is of another hub, or can not be read."""
    try:
        if (place / MANIFEST).exists():
            chain = read_chain(place)
            manifest = chain[-1].manifest
            databases = [part.path / (NEWS if part.manifest.bases else DATABASE) for part in reversed(chain)]
            found = _Ledger(place, manifest.epoch, manifest.seq, manifest.erasures, databases)
            return found if manifest.hub_id == hub_id else None
        database = place / DATABASE
        if not database.exists() or read_hub_id(place) != hub_id:
            return None
        with reading_only(database) as connection:
            epoch = connection.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "epoch"))
            seq = timetravel.seq_of(connection, None)
            return _Ledger(place, int(epoch or 0), seq, export_ledger(connection), [database])
    except (FedlabError, OSError, ValueError, TypeError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
        logger.warning("what was erased according to %s is not known, it can not be read: %s", place, error)
        return None


def _fitting(tx: Transaction, ledgers: Sequence[_Ledger], seq: int) -> tuple[list[LedgerEntry], list[Any]]:
    """The erasures that a copy does not know yet, in terms of its own log up to a seq; and log rows of erased episodes
    that it never had.

    Logs of one hub part where one was restored from a backup: from there on the same seq means different changes, and
    an episode that was pushed to both has two numbers.
    """
    known = set(tx.connection.scalars(sa.select(schema.erasures.c.id)))
    gone = set(tx.connection.scalars(sa.select(schema.changes.c.subject).where(schema.changes.c.kind == REDACTED[0])))
    entries: dict[str, LedgerEntry] = {}
    ids: dict[str, Any] = {}
    for ledger in ledgers:
        if not ledger.entries:
            continue
        common = min(seq, _common(tx, ledger))
        with reading_only(ledger.databases[0]) as connection:
            erased = connection.execute(timetravel.logged(REDACTED[0]).where(schema.changes.c.seq > common)).all()
        own = _numbers_after(tx, common, seq) if erased else {}
        for entry in ledger.entries:
            if entry.id not in known:
                more = [own[row.subject] for row in erased if row.reason == entry.id and row.subject in own]
                entries[entry.id] = known_to(entry, common, more, entries.get(entry.id))
        ids |= {row.subject: row for row in erased if row.subject not in gone and row.subject not in own}
    return list(entries.values()), list(ids.values())


def _numbers_after(tx: Transaction, common: int, seq: int) -> dict[str, int]:
    """The episodes that a part of the log stored, by what would be kept of their ids."""
    c = schema.changes.c
    rows = tx.connection.execute(timetravel.logged("episode_stored").where(c.seq > common, c.seq <= seq))
    return {erased_id(row.tenant_id, row.subject): row.seq for row in rows}


def _common(tx: Transaction, ledger: _Ledger) -> int:
    """The last change up to which two logs are the same: the hash of one stands for all before it."""

    def same(seq: int) -> bool:
        ours = tx.connection.scalar(sa.select(schema.changes.c.hash).where(schema.changes.c.seq == seq))
        for database in ledger.databases:
            with schema.look(database) as connection:
                theirs = connection.execute("SELECT hash FROM changes WHERE seq = ?", (seq,)).fetchone()
            if theirs is not None:
                return bool(theirs[0] == ours)
        return False

    low, high = 0, min(tx.head.seq, ledger.seq)
    middle = high
    while low < high:
        if same(middle):
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low
