"""The tables of a hub, and how its database is opened. What is written into them is `log.py`'s business.

Times are ms UTC. An episode's `id` is the seq of the change that stored it: it is never used twice, and
"the memory as of a seq" is a comparison.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import msgspec
import sqlalchemy as sa

from fedlab.errors import CorruptHub, FedlabError, HubUnavailable, InvalidRequest
from fedlab.hub import rawcopy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

VERSION = 3
STRETCH = "episode_id >> 13"
"""Number of a stretch of the log: the index of sources lies in stretches, so that what is stored, or forgotten, one
after another is on the same few of its pages. By the source alone, two thirds of what forgetting wrote were its pages.
"""

metadata = sa.MetaData()

meta = sa.Table(
    "meta", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("retention", sa.Text),  # a policy as JSON; NULL keeps everything
)

episodes = sa.Table(
    "episodes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("uid", sa.Text, nullable=False),  # the id that the client made
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("reward", sa.Double, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("metadata", sa.Text, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),  # of the row, its sources and the vector's hash
    # With the reward, retention over a large tenant does not have to pass over the texts.
    sa.Index("episodes_tenant_created", "tenant_id", "created_at", "reward"),
    sa.Index("episodes_expiring", "tenant_id", "expires_at", sqlite_where=sa.text("expires_at IS NOT NULL")),
)

vectors = sa.Table(
    "vectors",
    metadata,
    sa.Column(
        "episode_id",
        sa.Integer,
        sa.ForeignKey("episodes.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # float16, little-endian
    sa.Column("hash", sa.LargeBinary, nullable=False),
)

episode_sources = sa.Table(
    "episode_sources",
    metadata,
    sa.Column(
        "episode_id",
        sa.Integer,
        sa.ForeignKey("episodes.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("source", sa.Text, nullable=False),  # a uid; no foreign key: it may be forgotten, or of elsewhere
    sa.Index("episode_sources_stretch", sa.text(STRETCH), "source"),
    sqlite_with_rowid=False,
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # seq of agent_spawned
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("spawned_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("pushed", sa.Integer, nullable=False, default=0),
    sa.Column("pulled", sa.Integer, nullable=False, default=0),
    sa.Index("agents_tenant_agent", "tenant_id", "agent_id"),
    sa.Index("agents_alive", "expires_at", sqlite_where=sa.text("status = 'alive'")),
)

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary),  # of the stored episode
    sa.Column("hash", sa.LargeBinary, nullable=False),  # chain: hash(hash of the row before, hash of this row)
    sa.Index("changes_tenant", "tenant_id", "seq"),
    # One id is stored once for ever, also after it was forgotten: a late resend can not bring it back.
    sa.Index("changes_stored", "tenant_id", "subject", unique=True, sqlite_where=sa.text("kind = 'episode_stored'")),
    sa.Index("changes_erased", "subject", sqlite_where=sa.text("kind = 'episode_erased'")),
)

holds = sa.Table(
    "holds",
    metadata,
    # RESTRICT: whatever the code above it does, the database itself does not let a held episode go.
    sa.Column(
        "episode_id",
        sa.Integer,
        sa.ForeignKey("episodes.id", ondelete="RESTRICT"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("holds_tenant", "tenant_id"),
)

attic = sa.Table(
    "attic",  # forgotten episodes whose content is kept a while, for time travel
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # of the episode
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("forgotten_seq", sa.Integer, nullable=False),  # the change that forgot it
    sa.Column("forgotten_at", sa.BigInteger, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),  # rows of episodes, vectors and sources, MessagePack
    sa.Index("attic_tenant", "tenant_id"),
    sa.Index("attic_forgotten", "forgotten_at"),
)

erasures = sa.Table(
    "erasures",  # the ledger: what remains of what was erased; no name and no text
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),  # of the change that began it
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),  # tenant, agent or episodes
    sa.Column("tenant_hash", sa.Text, nullable=False),
    sa.Column("agent_hash", sa.Text),
    sa.Column("episodes", sa.Integer, nullable=False),
    sa.Column("agents", sa.Integer, nullable=False),
    sa.Column("changes", sa.Integer, nullable=False),  # rows of the log that lost their content
    sa.Column("done_at", sa.BigInteger),  # NULL while it is under way
    sa.Column("pending", sa.Text),  # JSON: what a start after a crash needs to finish it; NULL when done
)

recalls = sa.Table(
    "recalls",  # how often an episode was recalled: statistics, written now and then
    metadata,
    sa.Column(
        "episode_id",
        sa.Integer,
        sa.ForeignKey("episodes.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("times", sa.Integer, nullable=False),
    sa.Column("last_at", sa.BigInteger, nullable=False),
)

queries = sa.Table(
    "queries",  # a tenant's last queries by similarity, on which a policy can be tried
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("k", sa.Integer, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # float16, little-endian
    sa.Index("queries_tenant", "tenant_id", "id"),
)

Durability = Literal["full", "normal", "off"]


def open_engine(database: Path, durability: Durability, *, writer: bool) -> sa.Engine:
    """An engine whose every connection has the pragmas that the promises rest on.

    Args:
        database: The SQLite file.
        durability: `full` survives loss of power; `normal` may lose the last commits then, and `off` may
            lose the database; all survive `kill -9`.
        writer: Whether to write (transactions begin IMMEDIATE), or only to read (`query_only`).
    """
    if durability not in ("full", "normal", "off"):
        raise InvalidRequest(f"durability is 'full', 'normal' or 'off', not {durability!r}")
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(database)),  # a URL by hand would read ? and % in a name
        connect_args={"check_same_thread": False, "timeout": 30},
        pool_size=1 if writer else 8,
        max_overflow=0 if writer else 32,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",  # `transaction` says where one begins and ends
    )
    pragmas = {
        "busy_timeout": 30_000,
        "foreign_keys": 1,
        "secure_delete": 1,  # a forgotten text is overwritten, not just unlinked
        "synchronous": {"off": 0, "normal": 1, "full": 2}[durability],
        "query_only": 0 if writer else 1,
    }

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        if writer:
            connection.execute("PRAGMA journal_mode=WAL")
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name}={value}")
            held = connection.execute(f"PRAGMA {name}").fetchone()[0]
            if held != value:
                raise RuntimeError(f"SQLite kept PRAGMA {name}={held} where {value} was asked for")

    return engine


@contextlib.contextmanager
def look(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes no byte of a database: even closing it leaves the write-ahead log alone."""
    with rawcopy.in_use(database):
        connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=30)
        with contextlib.closing(connection):
            yield connection


@contextlib.contextmanager
def transaction(connection: sa.Connection, mode: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[None]:
    """A transaction: all or nothing for a writer (IMMEDIATE), one moment's view for a reader (DEFERRED).

    Said to the driver and not through SQLAlchemy, whose own begin and commit take a tenth of the time of a
    durable put.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute(f"BEGIN {mode}")
    try:
        yield
        driver.execute("COMMIT")
    except BaseException:
        if driver.in_transaction:  # SQLite rolls back by itself when the disk is full
            driver.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def begin(engine: sa.Engine, mode: Literal["DEFERRED", "IMMEDIATE"] = "DEFERRED") -> Iterator[sa.Connection]:
    """A connection inside a transaction.

    Raises:
        CorruptHub: If the database can not be read because it is damaged.
        HubUnavailable: If it can not be read for another reason.
    """
    try:
        with engine.connect() as connection, transaction(connection, mode):
            yield connection
    except (sa.exc.DBAPIError, sqlite3.Error, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise as_hub_error(error) from error


def as_hub_error(error: Exception) -> FedlabError:
    """What a driver's error means to whoever uses the hub."""
    reason = str(getattr(error, "orig", None) or error)
    # A damaged schema is quoted in the driver's own error message, which then is no text itself.
    signs = ("malformed", "not a database", "decode to UTF-8", "no such table")
    # Nor is the JSON of metadata what was stored.
    if isinstance(error, (UnicodeDecodeError, msgspec.DecodeError)) or any(sign in reason for sign in signs):
        return CorruptHub(
            f"the database is damaged ({reason}): stop the hub, `fedlab restore BACKUP DIR --overwrite`, start it",
            reason=reason,
        )
    way_out = ": free space where the hub's directory lies, and try again" if "disk is full" in reason else ""
    return HubUnavailable(f"the database did not do this, and nothing was changed: {reason}{way_out}")


@contextlib.contextmanager
def being_written(what: str) -> Iterator[None]:
    """Where disk or database refuse something, say what could not be written, and why.

    Raises:
        HubUnavailable: Then.
    """
    try:
        yield
    except (OSError, sqlite3.Error, sa.exc.DBAPIError) as error:
        if isinstance(error, FedlabError):  # HubUnavailable is an OSError, too
            raise
        raise HubUnavailable(f"{what} could not be written: {getattr(error, 'orig', error)}") from error


def listed(column: sa.ColumnElement[Any], values: Iterable[Any] | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    """`column IN values`, however many there are: a statement may have only so many parameters.

    For a statement that stands in a module, the values are a parameter, which `packed` fills.
    """
    given = values if isinstance(values, sa.BindParameter) else packed(values)
    return column.in_(sa.select(sa.func.json_each(given).table_valued("value").c.value))


def packed(values: Iterable[Any]) -> str:
    """Many values as one parameter."""
    return msgspec.json.encode([*values]).decode()


def insert_sql(engine: sa.Engine, table: sa.Table) -> str:
    """The INSERT of all columns in their order, with the engine's positional parameters.

    Compiled once: on the way of a single put, compiling and binding per call costs as much as SQLite itself.
    """
    return str(sa.insert(table).compile(dialect=engine.dialect))
