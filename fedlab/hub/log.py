"""The change log: what a transaction of the hub writes, and the hashes that make damage visible.

A `Transaction` gathers rows and writes them with one statement per table. Nothing here decides when a
transaction begins or ends; that is `writer.py`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from fedlab.episode import FLOAT16, metadata_json
from fedlab.hub import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine.interfaces import DBAPICursor

    from fedlab.episode import Episode, Vector
    from fedlab.hub.ledger import Erased, Erasure

_pack = msgspec.msgpack.Encoder().encode

REDACTED = ("episode_erased", "erased")
"""Kinds of log rows that lost their content to an erasure; their `digest` is the hash of what they were."""
MASK = "erased:"
"""Begins the actor of a row that stays and lost its actor and reason; the hash of what the row was follows."""
_MASKED = re.compile(MASK + "([0-9a-f]{64})")


class Head(NamedTuple):
    """The end of the log."""

    seq: int
    hash: bytes


class Stored(NamedTuple):
    """An episode that a commit made visible, as the index needs it; with what was pushed and its metadata as JSON."""

    tenant_id: str
    id: int
    reward: float
    created_at: int
    task: str
    agent_id: str
    vector: Vector
    episode: Episode | None = None
    metadata: str = ""


class Forgotten(NamedTuple):
    """Episodes that a commit removed."""

    tenant_id: str
    ids: list[int]


def digest(data: bytes) -> bytes:
    """32 bytes that change when the data does (BLAKE2b: as safe as SHA-2, and faster on short rows)."""
    return hashlib.blake2b(data, digest_size=32).digest()


def vector_hash(uid: str, vector: bytes) -> bytes:
    """Of an episode's vector."""
    return digest(uid.encode() + vector)


def episode_hash(content: Sequence[Any], sources: Sequence[str], of_vector: bytes) -> bytes:
    """Of an episode's columns from `uid` to `metadata`, its sources and its vector's hash."""
    return digest(_pack((*content, tuple(sources), of_vector)))


def row_hash(row: Sequence[Any]) -> bytes:
    """Of a log row's columns from `seq` to `digest`."""
    return digest(_pack(tuple(row)))


def own_hash(row: Sequence[Any]) -> bytes:
    """What a log row (its columns from `seq` to `digest`) adds to the chain: also after it was redacted or masked."""
    if row[2] in REDACTED:
        return bytes(row[7])
    masked = _MASKED.fullmatch(row[4])
    return bytes.fromhex(masked[1]) if masked else row_hash(row)


@lru_cache(maxsize=4096)
def name_hash(name: str) -> str:
    """What the ledger of erasures keeps of a name: BLAKE2b of 16 bytes, hexadecimal."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def erased_id(tenant_id: str, uid: str) -> str:
    """What the log keeps of the id of an erased episode."""
    return hashlib.blake2b(f"{tenant_id}/{uid}".encode(), digest_size=16).hexdigest()


def chain_hash(before: bytes, row: bytes) -> bytes:
    """Of the log up to and with a row."""
    return digest(before + row)


def content_of(episode: Episode, created_at: int) -> tuple[Any, ...]:
    """The columns of `episodes` from `uid` to `metadata`."""
    return (
        episode.id,
        episode.tenant_id,
        episode.agent_id,
        episode.session_id,
        episode.task,
        episode.input,
        episode.output,
        episode.reward,
        created_at,
        episode.expires_at,
        metadata_json(episode.metadata),
    )


class Statements:
    """Core statements as the driver takes them, each compiled once.

    On the way of a push or a life, what SQLAlchemy does at each call takes longer than the statement.
    """

    def __init__(self, engine: sa.Engine) -> None:
        tables = {
            "tenants": schema.tenants,
            "changes": schema.changes,
            "episodes": schema.episodes,
            "vectors": schema.vectors,
            "sources": schema.episode_sources,
        }
        self.inserts = {name: schema.insert_sql(engine, table) for name, table in tables.items()}
        """In the order that foreign keys need."""
        self._dialect = engine.dialect
        self._known: dict[int, tuple[str, list[str], dict[str, Any], sa.ClauseElement]] = {}

    def run(self, cursor: DBAPICursor, statement: sa.ClauseElement, values: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a statement that stands in a module: it is known by its identity."""
        if id(statement) not in self._known:
            ready: Any = statement.compile(dialect=self._dialect)
            self._known[id(statement)] = (str(ready), list(ready.positiontup), dict(ready.params), statement)
        sql, names, usual, _ = self._known[id(statement)]
        cursor.execute(sql, [values[name] if name in values else usual[name] for name in names])
        columns = [each[0] for each in cursor.description or ()]
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


@dataclass
class Transaction:
    """The rows of one commit.

    Args:
        connection: Inside a write transaction.
        cursor: Of its driver: for one row, SQLAlchemy's way to executemany takes longer than SQLite.
        statements: As its driver takes them.
        head: The end of the log before this transaction.
        now: Ms UTC: the time of every change in it.
        tenants: Those that exist.
        erased: What must not come back.
        careful: Whether ids may have been stored before and must be looked up. A first try is not
            careful: the unique index of the log stops it if an id is known.
        keep_forgotten: Whether what is forgotten goes to the attic.
    """

    connection: sa.Connection
    cursor: DBAPICursor
    statements: Statements
    head: Head
    now: int
    tenants: set[str]
    erased: Erased
    careful: bool = False
    keep_forgotten: bool = False
    new_tenants: set[str] = field(default_factory=set)
    events: list[Stored | Forgotten] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    granted: set[tuple[str, str]] = field(default_factory=set)
    begun: list[Erasure] = field(default_factory=list)
    _rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    def log(
        self, kind: str, tenant_id: str, subject: str, actor: str, reason: str = "", content: bytes | None = None
    ) -> int:
        """Append one change to the log; returns its seq."""
        seq = self.head.seq + 1
        row = (seq, tenant_id, kind, subject, actor, self.now, reason, content)
        # What says of itself that it is erased is one of those rows taken over from a log that was cut.
        own = content if kind in REDACTED and content is not None else row_hash(row)
        self.head = Head(seq, chain_hash(self.head.hash, own))
        self._add("changes", (*row, self.head.hash))
        return seq

    def log_forgotten(self, tenant_id: str, going: dict[str, int], actor: str, reason: str) -> range:
        """Append the end of live episodes, given as id to number, to the log; returns the seqs.

        With one statement: at each row of several the driver lets go of the interpreter, and beside a busy thread it
        may wait 5 ms until it is back.
        """
        first, hashes = self.head.seq + 1, bytearray()
        for seq, uid in enumerate(going, first):
            own = row_hash((seq, tenant_id, "episode_forgotten", uid, actor, self.now, reason, None))
            self.head = Head(seq, chain_hash(self.head.hash, own))
            hashes += self.head.hash
        same = {"tenant_id": tenant_id, "actor": actor, "at": self.now, "reason": reason}
        numbers = msgspec.json.encode([*going.values()]).decode()
        self.run(_LOG_FORGOTTEN, **same, first=first, numbers=numbers, hashes=bytes(hashes))
        return range(first, self.head.seq + 1)

    def ensure_tenant(self, tenant_id: str, actor: str) -> None:
        """Create the tenant if this is the first that is heard of it."""
        if tenant_id in self.tenants or tenant_id in self.new_tenants:
            return
        self.log("tenant_created", tenant_id, tenant_id, actor)
        self._add("tenants", (tenant_id, self.now, None))
        self.new_tenants.add(tenant_id)

    def store(self, episode: Episode, vector: Vector, actor: str) -> int:
        """Store an episode that is not there yet; returns its seq, which is its number in the database."""
        self.ensure_tenant(episode.tenant_id, actor)
        created_at = self.now if episode.created_at is None else episode.created_at
        content = content_of(episode, created_at)
        packed = vector.tobytes()
        of_vector = vector_hash(episode.id, packed)
        whole = episode_hash(content, episode.sources, of_vector)
        seq = self.log("episode_stored", episode.tenant_id, episode.id, actor, "", whole)
        self._add("episodes", (seq, *content, whole))
        self._add("vectors", (seq, packed, of_vector))
        for position, source in enumerate(episode.sources):
            self._add("sources", (seq, position, source))
        own = (episode.tenant_id, seq, episode.reward, created_at, episode.task, episode.agent_id, vector)
        self.note(Stored(*own, episode, content[-1]))
        return seq

    def note(self, event: Stored | Forgotten) -> None:
        """Tell the consumers of the log about this when it is committed."""
        self.events.append(event)
        self.touched.add(event.tenant_id)

    def run(self, statement: sa.ClauseElement, **values: Any) -> list[dict[str, Any]]:
        """The rows of a statement that stands in a module."""
        return self.statements.run(self.cursor, statement, values)

    def flush(self) -> None:
        """Write the gathered rows, in the order that foreign keys need."""
        if not self._rows:
            return
        for name, statement in self.statements.inserts.items():
            if rows := self._rows.pop(name, None):
                self.cursor.executemany(statement, rows)

    def _add(self, table: str, row: tuple[Any, ...]) -> None:
        rows = self._rows.get(table)
        if rows is None:
            rows = self._rows[table] = []
        rows.append(row)


_LOG_FORGOTTEN = sa.text("""
INSERT INTO changes (seq, tenant_id, kind, subject, actor, at, reason, hash)
SELECT :first + going.key, :tenant_id, 'episode_forgotten', episodes.uid, :actor, :at, :reason,
    substr(:hashes, 32 * going.key + 1, 32)
FROM json_each(:numbers) AS going CROSS JOIN episodes ON episodes.id = going.value
""")


def unpack_vector(data: bytes) -> np.ndarray[Any, Any]:
    """A stored vector, read-only float16."""
    return np.frombuffer(data, FLOAT16)
