"""Backups: writing one while the hub works, and checking all of one. Putting one back is `restoring.py`.

A backup is a directory: the database (or, of an incremental one, what is new since another backup), the server's key,
and `manifest.json`, which says what it is and has a checksum of each file and of itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fedlab.errors import CorruptHub, FedlabError, HubUnavailable, IncompatibleHub, InvalidRequest
from fedlab.hub import rawcopy, schema
from fedlab.hub.directory import Directory, open_database, sync
from fedlab.hub.ledger import export_ledger
from fedlab.hub.log import MASK, REDACTED
from fedlab.hub.manifest import (
    DATABASE,
    KEY,
    MANIFEST,
    NEWS,
    NO_CHECKSUM,
    BackupFile,
    BackupManifest,
    Base,
    Part,
    corrupt,
    read_chain,
    read_manifest,
    sha256,
)
from fedlab.hub.parts import LOCK, new_part
from fedlab.hub.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROWING = {
    "changes": "seq",
    "episodes": "id",
    "vectors": "episode_id",
    "episode_sources": "episode_id",
    "attic": "forgotten_seq",
}
"""Tables of which an incremental backup has what is new, and the column that tells; it has the others whole."""
KEPT = "kept"
"""A table that only an incremental backup has: what of the base's attic was there still."""


# --- writing ------------------------------------------------------------------------------------------------------


def write_backup(database: Path, path: Path, now: int, base: Path | None = None) -> BackupManifest:
    """Copy a hub's database, which another process may be writing, to a new directory: whole, or not at all.

    Args:
        database: The hub's; its key is beside it.
        path: Not there yet, or empty.
        now: Ms UTC.
        base: An earlier backup of this hub; then only what is new since is written.

    Raises:
        InvalidRequest: If `path` is taken or in the hub's directory, or `base` is no earlier backup of this hub.
        IncompatibleHub: If another version of fedlab wrote the database, which is not open.
        CorruptBackup: If `base` is damaged, as far as its manifests and its files' sizes tell.
        HubUnavailable: If it can not be written.
    """
    path = path.absolute()
    check_apart(path, database.parent)
    check_empty(path)
    chain = [] if base is None else read_chain(base)
    with schema.being_written(f"the backup {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_part(path) as part:
            if path.exists():
                part.chmod(stat.S_IMODE(path.stat().st_mode))  # as open as its owner wants it
            with reading_only(database) as connection:
                if chain:
                    manifest = _write_news(connection, part, chain[-1], now)
                else:
                    manifest = _write_all(connection, database, part, now)
            manifest = msgspec.structs.replace(manifest, hub=str(database.absolute().parent))
            _write_rest(part, path, database.with_name(KEY), manifest, chain)
            part.replace(path)
            (path / LOCK).unlink()  # from now on it is nobody's to remove
            sync(path.parent)
    return read_manifest(path)


def check_empty(path: Path) -> None:
    """Refuse a path where something is.

    Raises:
        InvalidRequest: If it is a file, or a directory that is not empty.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise InvalidRequest(f"{path} is taken: give a directory that is empty, or not there yet")


def check_apart(path: Path, hub: Path) -> None:
    """Refuse a place for a copy of a hub inside of the hub's own directory.

    Raises:
        InvalidRequest: If it is.
    """
    if path.resolve().is_relative_to(hub.resolve()):
        raise InvalidRequest(
            f"{path} is inside of the hub's directory {hub}: what is erased would stay in its files, and the disk that"
            " takes the hub takes its copy too; give another place"
        )


@contextlib.contextmanager
def reading_only(database: Path) -> Iterator[sa.Connection]:
    """A connection of its own to a hub's database, which may be at work: its writer does not wait for a reader."""
    with schema.look(database) as driver:
        engine = sa.create_engine(
            "sqlite://", creator=lambda: driver, poolclass=sa.pool.StaticPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            yield connection


def _write_all(connection: sa.Connection, database: Path, part: Path, now: int) -> BackupManifest:
    """The database, and what the manifest says of it."""
    copied = part / DATABASE
    checksum = copy_database(connection, database, copied)
    with reading_only(copied) as its:
        manifest = _describe(its, now)
    return msgspec.structs.replace(manifest, files={DATABASE: BackupFile(bytes=copied.stat().st_size, sha256=checksum)})


def copy_database(connection: sa.Connection, database: Path, target: Path) -> str:
    """Copy a database, which another process may be writing, to a new file on disk; returns its SHA-256, hexadecimal.

    Raises:
        CorruptHub: If the copy lacks what the database has.
    """
    with schema.transaction(connection, "DEFERRED"):
        head = _head(connection)
        checksum = rawcopy.copy(database, target)
    held: bytes | None = None
    with contextlib.suppress(sa.exc.DatabaseError), reading_only(target) as copied:
        held = copied.scalar(sa.select(schema.changes.c.hash).where(schema.changes.c.seq == head.seq))
    if held != head.hash:
        raise CorruptHub(f"{database} or its write-ahead log is damaged, see `fedlab verify`: it was not copied")
    return checksum


def _write_news(connection: sa.Connection, part: Path, base: Part, now: int) -> BackupManifest:
    """What is new in the database, and what the manifest says of it: all of one moment."""
    driver: Any = connection.connection.driver_connection
    driver.execute("ATTACH ? AS part", (str(part / NEWS),))
    # It is synced when it is complete; if this process dies before, nobody uses it.
    driver.execute("PRAGMA part.journal_mode=OFF")
    driver.execute("PRAGMA part.synchronous=OFF")
    with schema.transaction(connection, "DEFERRED"):
        manifest = _describe(connection, now)
        _copy_news(connection, base, manifest)
    return manifest


def _head(connection: sa.Connection) -> sa.Row[Any]:
    """The last row of the log."""
    return connection.execute(sa.select(schema.changes).order_by(schema.changes.c.seq.desc()).limit(1)).one()


def _describe(connection: sa.Connection, now: int) -> BackupManifest:
    from fedlab import __version__  # the package imports this module lazily

    meta = {row.key: row.value for row in connection.execute(sa.select(schema.meta))}
    head = _head(connection)
    if meta["schema"] != str(schema.VERSION):
        raise IncompatibleHub(
            f"the hub has schema {meta['schema']} and this fedlab backs up {schema.VERSION}: open it once with this"
            " version, which brings it up to date and keeps a copy of it as it was"
        )

    def count(table: sa.Table) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    return BackupManifest(
        hub_id=meta["hub_id"],
        epoch=int(meta["epoch"]),
        seq=head.seq,
        chain=head.hash.hex(),
        created_at=now,
        fedlab=__version__,
        schema=int(meta["schema"]),
        embedder=meta["embedder"],
        dimension=int(meta["dimension"]),
        tenants=count(schema.tenants),
        agents=count(schema.agents),
        episodes=count(schema.episodes),
        changes=count(schema.changes),
        erasures=export_ledger(connection),
        files={},
    )


def _copy_news(connection: sa.Connection, base: Part, manifest: BackupManifest) -> None:
    """What an incremental backup holds: log and episodes after the base's seq, the log rows before that an erasure
    changed since, and the small tables.
    """
    old = base.manifest
    chain = connection.scalar(sa.select(schema.changes.c.hash).where(schema.changes.c.seq == old.seq))
    if old.hub_id != manifest.hub_id or chain is None or chain.hex() != old.chain:
        raise InvalidRequest(
            f"{base.path} is no earlier backup of this hub {manifest.hub_id}"
            + (f" but of {old.hub_id}" if old.hub_id != manifest.hub_id else ", which was restored from an older one")
            + ": make a full backup",
            base=str(base.path),
        )
    if old.schema != manifest.schema:
        raise InvalidRequest(f"{base.path} has schema {old.schema}, the hub {manifest.schema}: make a full backup")
    erased = f"kind IN {REDACTED} OR actor LIKE '{MASK}%'"
    for table in schema.metadata.tables:
        condition = f"{_GROWING[table]} > {old.seq}" if table in _GROWING else "true"
        if table == "changes":
            condition += f" OR {erased}"
        connection.exec_driver_sql(f"CREATE TABLE part.{table} AS SELECT * FROM main.{table} WHERE {condition}")  # noqa: S608
    # The log does not tell of what was kept a while, and is not any more.
    still = f"SELECT id FROM main.attic WHERE forgotten_seq <= {old.seq}"  # noqa: S608
    connection.exec_driver_sql(f"CREATE TABLE part.{KEPT} AS {still}")


def _write_rest(part: Path, path: Path, key: Path, manifest: BackupManifest, chain: list[Part]) -> None:
    """The key and the manifest; then everything is on disk."""
    if key.exists():
        shutil.copy(key, part / KEY)  # with its mode
    files = dict(manifest.files)
    for file in sorted(part.iterdir()):
        if file.name not in (*files, LOCK):
            sync(file)
            files[file.name] = BackupFile(bytes=file.stat().st_size, sha256=sha256(file))
    bases = [Base(path=os.path.relpath(each.path, path), checksum=each.manifest.checksum) for each in chain]
    data = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=files, bases=bases)))
    checksum = hashlib.sha256(data).hexdigest()
    with (part / MANIFEST).open("wb") as out:
        out.write(data.replace(NO_CHECKSUM.encode(), checksum.encode()))
    sync(part / MANIFEST)
    sync(part)


# --- checking ------------------------------------------------------------------------------------------------------


def verify_backup(path: str | Path) -> BackupManifest:
    """Read all of a backup, and of those that it builds on, and check everything: files, database, log, episodes.

    A copy of the database is made where temporary files go (`$TMPDIR`).

    Raises:
        CorruptBackup: Naming what is damaged or missing.
        IncompatibleHub: If a newer version of fedlab wrote it.
        HubUnavailable: If there is no room for the copy.
    """
    chain = read_chain(Path(path))
    try:
        with tempfile.TemporaryDirectory(prefix="fedlab-") as name:
            folder = Directory(name)
            try:
                put_together(chain, folder)
            finally:
                folder.close()
    except OSError as error:
        if isinstance(error, FedlabError):
            raise
        raise HubUnavailable(f"{path} could not be checked in {tempfile.gettempdir()} ($TMPDIR): {error}") from error
    return chain[-1].manifest


def put_together(chain: list[Part], folder: Directory) -> None:
    """Make the database of a chain of backups in a folder, brought up to the present schema, and check all of it.

    Raises:
        CorruptBackup: Naming what is damaged.
    """
    for part in chain:
        for name, file in part.manifest.files.items():
            if sha256(part.path / name) != file.sha256:
                raise corrupt(part.path / name, "does not match its checksum")
    shutil.copyfile(chain[0].path / DATABASE, folder.database)
    last = chain[-1]
    try:
        for part in chain[1:]:
            _add_news(folder.database, part.path / NEWS)
        engine = open_database(folder, "off")
    except (sqlite3.Error, CorruptHub) as error:
        raise corrupt(last.path, f"can not be read ({error})") from error
    try:
        with reading_only(folder.database) as connection:
            held = _describe(connection, 0)
        for name in ("hub_id", "seq", "chain", "episodes", "changes", "tenants", "agents"):
            if getattr(held, name) != getattr(last.manifest, name):
                raise corrupt(last.path / MANIFEST, f"says {name} {getattr(last.manifest, name)!r}, which is not so")
        if problems := verify(engine, None, held.dimension).problems:
            raise corrupt(last.path, f"is damaged: {problems[0]}", problems=problems)
    finally:
        engine.dispose()


def _add_news(database: Path, news: Path) -> None:
    """Bring the database of a base up to an incremental backup."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for pragma in ("foreign_keys=1", "secure_delete=1", "synchronous=OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("ATTACH ? AS part", (str(news),))
        connection.execute("BEGIN")
        tables = {name for (name,) in connection.execute("SELECT name FROM part.sqlite_master WHERE type = 'table'")}
        whole = sorted(tables - _GROWING.keys() - {KEPT})
        for table in whole:
            connection.execute(f"DELETE FROM main.{table}")  # noqa: S608
        for table in (*_GROWING, *whole):
            columns = ", ".join(f'"{row[1]}"' for row in connection.execute(f"PRAGMA part.table_info({table})"))
            connection.execute(
                f"INSERT OR REPLACE INTO main.{table} ({columns}) SELECT {columns} FROM part.{table}"  # noqa: S608
            )
            if table == "changes":
                # Before the new episodes and the holds come, those go that the new log forgot or erased.
                connection.execute(_GONE)
                connection.execute(f"DELETE FROM main.attic WHERE id NOT IN (SELECT id FROM part.{KEPT})")  # noqa: S608
        connection.execute("COMMIT")


_GONE = f"""
    DELETE FROM main.episodes WHERE id IN (
        SELECT seq FROM part.changes WHERE kind = '{REDACTED[0]}'
        UNION ALL
        SELECT stored.seq FROM part.changes AS gone JOIN main.changes AS stored
            ON stored.tenant_id = gone.tenant_id AND stored.subject = gone.subject AND stored.kind = 'episode_stored'
        WHERE gone.kind = 'episode_forgotten')
"""  # noqa: S608
