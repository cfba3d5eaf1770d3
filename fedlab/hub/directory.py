"""A hub's directory: its files, the lock that keeps a second process out, and whether it can be opened at all.

`hub.db` holds everything; `index/` and `embeddings.db` are caches; `hub.key` is the server's and `hub.lock`
says who has the directory open. `before-upgrade/` has databases as they were before a newer fedlab opened them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import sqlalchemy as sa

from fedlab.embedding import get_embedder
from fedlab.errors import CorruptHub, HubLocked, IncompatibleHub, InvalidRequest
from fedlab.hub import migrations, rawcopy, schema
from fedlab.hub.log import Head, chain_hash, own_hash
from fedlab.hub.manifest import is_backup

if TYPE_CHECKING:
    from fedlab.embedding import Embedder
    from fedlab.hub.schema import Durability

MEMORY = ":memory:"
STAGE = "being-made"
"""The folder inside a hub's directory where a restore or a fork makes its next database."""
_WAY_BACK = (
    "Put a backup in its place: stop the hub, `fedlab restore BACKUP {path} --overwrite`, start it again. A copy"
    " made with `cp` goes back over an empty directory: `cp -a COPY/. {path}` (database, write-ahead log and key belong"
    " together)."
)


class Directory:
    """An opened directory, locked until `close`.

    Args:
        path: A directory, made if it is not there; `":memory:"` for one that lives until `close`, in RAM
            where the system has a RAM disk.

    Raises:
        HubLocked: If another process (or this one) has it open.
        InvalidRequest: If no hub can live there.
    """

    def __init__(self, path: str | Path) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._in_use = contextlib.ExitStack()
        if str(path) == MEMORY:
            shm = Path("/dev/shm")  # noqa: S108 - a fresh private directory is made inside
            where = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
            self._temporary = tempfile.TemporaryDirectory(prefix="fedlab-", dir=where, ignore_cleanup_errors=True)
            path = self._temporary.name
        elif "://" in str(path):
            raise InvalidRequest(f"{path} is no directory; fedlab.connect() opens a hub by its URL")
        # Absolute: a notebook may change its working directory while the hub is open.
        self.path = Path(path).absolute()
        if is_backup(self.path):
            raise InvalidRequest(
                f"{path} is a backup, and would be none any more, nor what builds on it, once it had been opened:"
                " `fedlab restore` makes a hub of it in another directory, `fedlab backup --verify` checks it"
            )
        try:
            # A directory that is there is as open as its owner wants it; a new one is nobody else's to read.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InvalidRequest(f"{path} is a file; a hub lives in a directory") from None
        self._lock = filelock.FileLock(self.path / "hub.lock", blocking=False, is_singleton=False, thread_local=False)
        self._take_lock()
        self._in_use.enter_context(rawcopy.in_use(self.database))
        # A restore holds the lock: what is staged here now is what one that was killed has left, erased text perhaps.
        shutil.rmtree(self.path / STAGE, ignore_errors=True)

    def has_caches(self) -> bool:
        """Whether something is here that only a hub with a database makes."""
        return (self.path / "embeddings.db").exists() or (self.path / "index").exists()

    @property
    def in_memory(self) -> bool:
        """Whether it goes away on close."""
        return self._temporary is not None

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / "hub.db"

    @property
    def file(self) -> int:
        """The SQLite file, open for reading and writing until `close`, after the engines."""
        return rawcopy.opened(self.database, os.O_RDWR)

    def bytes(self) -> int:
        """Size of all files."""
        size = 0
        for each in self.path.rglob("*"):
            # The index may rename or remove a file at any moment.
            with contextlib.suppress(FileNotFoundError):
                size += each.stat().st_size if each.is_file() else 0
        return size

    def close(self) -> None:
        """Give the lock back, and remove what lived in memory; idempotent."""
        self._in_use.close()
        if self._lock.is_locked:
            (self.path / "hub.pid").unlink(missing_ok=True)
            self._lock.release()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _take_lock(self) -> None:
        pid_file = self.path / "hub.pid"
        try:
            self._lock.acquire()
        except filelock.Timeout:
            holder = pid_file.read_text().strip() if pid_file.exists() else "unknown"
            raise HubLocked(
                f"{self.path} is open in the process with pid {holder}: connect to that hub with its URL, or"
                " stop it first (one directory, one writing process)",
                pid=holder,
            ) from None
        pid_file.write_text(f"{os.getpid()}\n")


def open_database(directory: Directory, durability: Durability) -> sa.Engine:
    """The engine that writes, over a database whose file is whole.

    Raises:
        CorruptHub: If it is damaged in a way that shows without reading it all (`verify` reads it all).
        IncompatibleHub: If a newer version of fedlab wrote it. What an older one wrote is brought up to date.
    """
    path = directory.database
    way_back = _WAY_BACK.format(path=directory.path)
    try:
        # Looked at by a reader first: what is no hub's, or a newer one's, is left as it is, to the byte.
        tables, version = _look(path) if path.exists() and path.stat().st_size else (set(), schema.VERSION)
        if not tables and directory.has_caches():
            raise CorruptHub(f"{path} is empty or gone, and other files of a hub are here. {way_back}")
        missing = set(schema.metadata.tables) - tables
        if tables and missing and version == schema.VERSION:
            raise CorruptHub(f"{path} is no hub's database: it lacks {', '.join(sorted(missing))}. {way_back}")
        with contextlib.ExitStack() as undo:
            engine = schema.open_engine(path, durability, writer=True)
            undo.callback(engine.dispose)
            if version < schema.VERSION:
                migrations.upgrade(engine, path, version)
            with schema.begin(engine, "IMMEDIATE") as connection:
                if not tables:
                    schema.metadata.create_all(connection)
            undo.pop_all()
        return engine
    except (CorruptHub, sa.exc.DatabaseError, sqlite3.Error, UnicodeDecodeError) as error:
        if isinstance(error, CorruptHub) and way_back in error.message:
            raise
        said = error.details.get("reason", error) if isinstance(error, CorruptHub) else getattr(error, "orig", error)
        raise CorruptHub(f"{path} is damaged ({said}). {way_back}") from error


def _look(path: Path) -> tuple[set[str], int]:
    """Names of the tables in an existing file, whose end is there, and its schema (ours if it does not say).

    Raises:
        IncompatibleHub: If it is one that this version does not know.
    """
    try:
        with schema.look(path) as connection:
            _check_pages(connection, path)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            query = "SELECT value FROM meta WHERE key = 'schema'"
            held = connection.execute(query).fetchone() if "meta" in tables else None
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise schema.as_hub_error(error) from error
    if held is None or not str(held[0]).isdecimal():
        return tables, schema.VERSION  # a damaged one, which `read_identity` sees
    if not 1 <= int(held[0]) <= schema.VERSION:
        raise IncompatibleHub(
            f"{path.parent} has schema {held[0]} and this fedlab reads 1 to {schema.VERSION}: open it with the"
            " version of fedlab that wrote it, or a newer one"
        )
    return tables, int(held[0])


def sync(path: Path) -> None:
    """See to it that a file is on disk, or a directory's entries: what was deleted there does not come back."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_identity(engine: sa.Engine, path: Path) -> dict[str, str]:
    """The rows of `meta`; empty for a hub that was just made.

    Raises:
        CorruptHub: If they are gone or senseless, and the hub is not new.
    """
    with schema.begin(engine) as connection:
        held = {row.key: row.value for row in connection.execute(sa.select(schema.meta))}
        used = connection.scalar(sa.select(sa.func.count()).select_from(schema.changes)) if not held else 0
    whole = {"schema", "hub_id", "epoch", "embedder", "dimension"} <= held.keys()
    if used or (held and not (whole and all(held[name].isdecimal() for name in ("schema", "dimension", "epoch")))):
        found = ", ".join(f"{key} {value!r:.80}" for key, value in held.items()) or "nothing"
        raise CorruptHub(
            f"the table meta in {path / 'hub.db'}, which says what this hub is, is damaged: it holds {found}. "
            + _WAY_BACK.format(path=path)
        )
    return held


def read_hub_id(path: Path) -> str:
    """The id of the hub in a directory, which another process may have open.

    Raises:
        InvalidRequest: If there is no hub.
    """
    database = path / "hub.db"
    if not database.exists():
        raise InvalidRequest(f"{path} is no hub's directory: start one with `fedlab hub --data {path}`")
    try:
        with schema.look(database) as connection:
            (hub_id,) = connection.execute("SELECT value FROM meta WHERE key = 'hub_id'").fetchone()
            return str(hub_id)
    except (sqlite3.Error, TypeError) as error:
        if not (os.access(database, os.R_OK) and os.access(path, os.W_OK)):
            raise InvalidRequest(
                f"{database} can not be read by this user, for which it must be allowed to write in {path}, too: ask"
                " the hub's own user"
            ) from None
        raise CorruptHub(f"{database} is damaged ({error}). {_WAY_BACK.format(path=path)}") from error


def new_hub_id() -> str:
    """An id that no other hub has."""
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def write_identity(engine: sa.Engine, embedder: Embedder) -> dict[str, str]:
    """Name a new hub."""
    values = {
        "schema": str(schema.VERSION),
        "hub_id": new_hub_id(),
        "epoch": "1",
        "embedder": embedder.name,
        "dimension": str(embedder.dimension),
    }
    with schema.begin(engine, "IMMEDIATE") as connection:
        write_meta(connection, **values)
    return values


def write_meta(connection: sa.Connection, **values: str) -> None:
    """Set rows of `meta`."""
    rows = [{"key": key, "value": value} for key, value in values.items()]
    connection.execute(sa.insert(schema.meta).prefix_with("OR REPLACE"), rows)


def check_identity(held: dict[str, str], embedder: Embedder | str | None, path: Path) -> None:
    """Whether a hub may be opened with this embedder.

    Raises:
        IncompatibleHub: If not.
    """
    name = held["embedder"] if embedder is None else get_embedder(embedder).name
    if name != held["embedder"]:
        raise IncompatibleHub(
            f"{path} holds vectors of {held['embedder']!r} and {name!r} was asked for; vectors of two models can"
            f" not be compared. Open it without an embedder or with {held['embedder']!r}, or put its episodes,"
            " without their vectors, into a new hub.",
            held=held["embedder"],
        )


def read_head(engine: sa.Engine, path: Path) -> Head:
    """The end of the log, its last link checked.

    Raises:
        CorruptHub: If the last row does not follow from the one before.
    """
    query = sa.select(schema.changes).order_by(schema.changes.c.seq.desc()).limit(2)
    with schema.begin(engine) as connection:
        rows = [tuple(row) for row in connection.execute(query)]
    if not rows:
        return Head(0, b"")
    *last, held = rows[0]
    before = rows[1][-1] if len(rows) == 2 else b""
    if chain_hash(before, own_hash(last)) != held:
        raise CorruptHub(
            f"{path}: change {last[0]} does not follow from the one before it, so the log is damaged. "
            + _WAY_BACK.format(path=path.parent)
        )
    return Head(last[0], held)


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    """A file that lost its end is not noticed by SQLite until someone reads there."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    log = path.with_name(path.name + "-wal")
    if path.stat().st_size < pages * size and not (log.exists() and log.stat().st_size):
        raise CorruptHub(
            f"{path} has {path.stat().st_size:,} bytes where {pages * size:,} belong. "
            + _WAY_BACK.format(path=path.parent)
        )
