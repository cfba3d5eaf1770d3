"""The log and the live episodes as columns in RAM: what aggregates are counted from.

A consumer of the log like any other: it is read when it is first asked for, follows the log whenever it is asked
again, and can be thrown away. An erasure empties rows that were read long ago: then everything is read anew. What took
long to read is kept in a file (`columns_file.py`) for the next start.

SQLite packs each column into one JSON array, some thousands of rows at a time. Row by row, the driver takes as long for
one column, several times as long for many, and takes the interpreter from everyone else for each row.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa

from fedlab.hub import columns_file
from fedlab.hub.ledger import FILES
from fedlab.hub.log import name_hash
from fedlab.hub.schema import changes, erasures
from fedlab.retention.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable
    from contextlib import AbstractContextManager
    from pathlib import Path

    import polars as pl

    from fedlab.hub.ledger import Erased

    Reading = Callable[[], AbstractContextManager[sa.Connection]]
    Make = Callable[[sa.Connection, "Columns"], pl.DataFrame]

CHUNK = 50_000
"""Changes that are read at once."""
TASK = 200
"""Characters of a task by which it is told from others."""
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that read at first: SQLite packs a column without the interpreter."""
PATIENCE = 0.5
"""Seconds that who could count in the database waits for columns: in that time they come from a file."""
RESULTS = 64
"""Results that are kept until the hub changes."""

logger = logging.getLogger("fedlab.hub")


def generation_sql() -> str:
    """The generation of an episode as SQL: null where its metadata has no whole number under that name."""
    value = "json_extract(metadata, '$.generation')"
    whole = f"json_type(metadata, '$.generation') = 'integer' AND typeof({value}) = 'integer'"
    return f"CASE WHEN {whole} THEN {value} END"


_EPISODES = f"""
SELECT json_group_array(id), json_group_array(tenant_id), json_group_array(agent_id),
    json_group_array(substr(task, 1, {TASK})), json_group_array(created_at),
    '[' || coalesce(group_concat(printf('%!.20g', reward)), '') || ']', json_group_array({generation_sql()}),
    json_group_array(length(CAST(task AS BLOB)) + length(CAST(input AS BLOB)) + length(CAST(output AS BLOB))
        + length(CAST(metadata AS BLOB)))
FROM episodes WHERE id > ? AND id <= ?
"""  # noqa: S608 - a number. A double is exact in 20 digits, and not in the 15 that JSON gets from SQLite.
_LOG = """
SELECT json_group_array(seq), json_group_array(tenant_id), json_group_array(kind = 'episode_forgotten'),
    json_group_array(actor), json_group_array(at),
    json_group_array(CASE WHEN kind = 'episode_forgotten' THEN reason END)
FROM changes WHERE seq > ? AND seq <= ? AND kind IN ('episode_stored', 'episode_forgotten')
"""
_FORGOTTEN = """
SELECT json_group_array(gone.seq), json_group_array(stored.seq)
FROM json_each(?) AS wanted CROSS JOIN changes AS gone ON gone.seq = wanted.value CROSS JOIN changes AS stored
    ON stored.tenant_id = gone.tenant_id AND stored.subject = gone.subject AND stored.kind = 'episode_stored'
"""
_ERASED = """
SELECT json_group_array(changes.at), json_group_array(erasures.at), json_group_array(erasures.tenant_hash)
FROM changes JOIN erasures ON erasures.id = changes.reason WHERE changes.kind = 'episode_erased'
"""


class State(NamedTuple):
    """What columns are good for: the last change, and how many erasures have emptied their rows."""

    seq: int
    erasures: int


def state_of(connection: sa.Connection) -> State | None:
    """The state of the database; None while an erasure is emptying rows, which changes them and not the log."""
    seq = connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0
    pending = connection.scalars(sa.select(erasures.c.pending)).all()
    done = [each in (None, FILES) for each in pending]
    return State(seq, len(done)) if all(done) else None


@dataclass(frozen=True)
class Columns:
    """One moment of a hub.

    Args:
        seq: The last change.
        log: `number` (of the episode), `tenant_id`, `forgotten` (or stored), `actor`, `at` (ms UTC), `reason` (of what
            was forgotten), as in the log.
        erased: `stored_at`, `at` (both ms UTC) and `tenant_hash` of what was erased.
        episodes: The live ones: `number`, `tenant_id`, `agent_id`, `task` (its beginning), `created_at` and `stored_at`
            (ms UTC), `reward`, `generation` (from the metadata, if it is a whole number there), `bytes` (of texts and
            vector).
        links: Which are whose sources, by tenant, up to a seq: `lineage.py` fills it.
    """

    seq: int
    log: pl.DataFrame
    erased: pl.DataFrame
    episodes: pl.DataFrame
    links: dict[str, tuple[int, pl.DataFrame]] = field(default_factory=dict)

    def live(self) -> dict[str, int]:
        """How many episodes of each tenant are live."""
        return _by_tenant(self.episodes)

    def forgotten(self) -> dict[str, int]:
        """How many episodes of each tenant were forgotten, and not erased since."""
        return _by_tenant(self.log.filter("forgotten"))


class ColumnCache:
    """The columns of a hub, and what was counted of them last; any thread may ask.

    Args:
        reading: Gives a connection that sees one moment of the database.
        erased: Whose memory was erased.
        file: Where the columns of a large hub are kept from one start to the next; nowhere if None.
    """

    def __init__(self, reading: Reading, erased: Erased, file: Path | None = None) -> None:
        self._reading = reading
        self._erased = erased
        self._file = file
        self._saved = 0
        self._lock = threading.Lock()
        self._columns: Columns | None = None
        self._erasures = 0
        self._results: OrderedDict[Hashable, tuple[State, pl.DataFrame]] = OrderedDict()

    def answer(self, key: Hashable, make: Make) -> pl.DataFrame:
        """What `make` gives, or gave the last time if the hub has not changed since.

        Args:
            key: Says what is asked.
            make: Called with a moment of the database and the columns of that moment.
        """
        # One at a time: ten pages that show the same have it counted once.
        with self._lock:
            while True:
                with self._reading() as connection:
                    state = state_of(connection)
                    if state is None:
                        self.clear()
                        columns = _read_all(lambda: contextlib.nullcontext(connection), workers=1)
                        return make(connection, _without(columns, self._erased.under_way))
                    if key in self._results and self._results[key][0] == state:
                        return self._results[key][1].clone()
                    held = self._columns or self._from_file(connection, state)
                    if held is not None and self._erasures == state.erasures:
                        self._columns = columns = _follow(connection, held)
                        result = make(connection, columns)
                        self._keep(key, state, result)
                        return result.clone()  # whoever has it may change it in place
                self._columns, self._erasures = _read_all(self._reading), state.erasures

    def at_hand(self, connection: sa.Connection) -> Columns | None:
        """The columns of the moment that a connection sees, if they are in RAM and nobody is about to read them all."""
        if not self._lock.acquire(timeout=PATIENCE):
            return None
        try:
            state, held = state_of(connection), self._columns
            if held is None or state is None or state.erasures != self._erasures or state.seq < held.seq:
                return None
            self._columns = columns = _follow(connection, held)
            return columns
        finally:
            self._lock.release()

    def clear(self) -> None:
        """Let go of everything in RAM."""
        self._columns = None
        self._results.clear()

    def save(self, connection: sa.Connection) -> None:
        """Write a large hub's columns to disk, if they are in RAM and go further than those that are there."""
        with self._lock:
            held, state = self._columns, state_of(connection)
            # During an erasure, and after one that these columns do not know of, nothing is written.
            if self._file is None or held is None or state is None or state.erasures != self._erasures:
                return
            if len(held.log) <= CHUNK or held.seq == self._saved:
                return
            frames = [held.log, held.erased, held.episodes]
            try:
                columns_file.write(self._file, connection, frames, held.seq, self._erasures)
                self._saved = held.seq
            except OSError as error:
                logger.warning("the columns could not be written (%s); they are read again", error)

    def drop(self) -> None:
        """Let go of everything, on disk too."""
        with self._lock:
            self.clear()
            if self._file is not None:
                columns_file.drop(self._file)
                self._saved = 0

    def _from_file(self, connection: sa.Connection, state: State) -> Columns | None:
        found = None if self._file is None else columns_file.read(self._file, connection, state.erasures)
        if found is None:
            return None
        self._saved, frames = found
        self._erasures = state.erasures
        log, erased, episodes = frames
        return Columns(self._saved, log, erased, episodes)

    def _keep(self, key: Hashable, state: State, result: pl.DataFrame) -> None:
        self._results.pop(key, None)
        self._results[key] = state, result
        while len(self._results) > RESULTS:
            self._results.popitem(last=False)


def named(columns: Columns, tenants: Collection[str]) -> pl.DataFrame:
    """What was erased, with the names of the tenants that are still there instead of hashes; null for others."""
    from fedlab._polars import pl

    names = {name_hash(each): each for each in tenants}
    tenant = pl.col("tenant_hash").replace_strict(names, default=None, return_dtype=pl.String)
    return columns.erased.select("stored_at", "at", tenant.alias("tenant_id"))


def _by_tenant(frame: pl.DataFrame) -> dict[str, int]:
    return dict(frame["tenant_id"].value_counts().iter_rows())


def _read_all(reading: Reading, workers: int = WORKERS) -> Columns:
    """The columns as of some moment after this call began, but for what was stored since it began.

    Each part is of a moment of its own. What is forgotten meanwhile is missing in those read later, which is what
    `_follow` makes of it anyway.
    """
    from fedlab._polars import pl  # imported when the first frame is asked for

    def part(start: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        with reading() as connection:
            return _read(connection, start, min(start + CHUNK, last))

    with reading() as connection:
        last = _last(connection)
        erased = packed(connection, _ERASED, {"stored_at": pl.Int64, "at": pl.Int64, "tenant_hash": pl.String})
    with ThreadPoolExecutor(workers, "fedlab-columns") as pool:
        logs, episodes = zip(*pool.map(part, range(0, max(last, 1), CHUNK)), strict=True)
    return Columns(last, pl.concat(logs, rechunk=True), erased, pl.concat(episodes, rechunk=True))


def _follow(connection: sa.Connection, columns: Columns) -> Columns:
    """The columns with what was stored and forgotten since."""
    from fedlab._polars import pl

    last = _last(connection)
    if last == columns.seq:
        return columns
    log, episodes = _read(connection, columns.seq, last)
    gone = log.filter("forgotten")["number"]
    held = columns.episodes
    if len(gone):
        held = held.filter(~pl.col("number").is_in(gone.implode()))
    return Columns(last, joined(columns.log, log), columns.erased, joined(held, episodes), columns.links)


def _without(columns: Columns, tenants: Collection[str]) -> Columns:
    from fedlab._polars import pl

    shown = ~pl.col("tenant_id").cast(pl.String).is_in([*tenants])
    return Columns(columns.seq, columns.log.filter(shown), columns.erased, columns.episodes.filter(shown))


def _last(connection: sa.Connection) -> int:
    return connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0


def _read(connection: sa.Connection, after: int, last: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Log and episodes after a seq, up to another."""
    from fedlab._polars import pl

    of_log = {"number": pl.Int64, "tenant_id": pl.Categorical, "forgotten": pl.Int64}
    of_log |= {"actor": pl.Categorical, "at": pl.Int64, "reason": pl.Categorical}
    of_episodes = {"number": pl.Int64, "tenant_id": pl.Categorical, "agent_id": pl.Categorical}
    of_episodes |= {"task": pl.Categorical, "created_at": pl.Int64, "reward": pl.Float64}
    of_episodes |= {"generation": pl.Int64, "bytes": pl.Int64}
    log = packed(connection, _LOG, of_log, (after, last)).with_columns(pl.col("forgotten").cast(pl.Boolean))
    wanted = msgspec.json.encode(log.filter("forgotten")["number"].to_list()).decode()
    gone = packed(connection, _FORGOTTEN, {"number": pl.Int64, "stored": pl.Int64}, (wanted,))
    log = log.join(gone, on="number", how="left", maintain_order="left")
    log = log.with_columns(pl.coalesce("stored", "number").alias("number")).drop("stored")
    episodes = packed(connection, _EPISODES, of_episodes, (after, last))
    stored = log.filter(~pl.col("forgotten")).select("number", stored_at="at")
    episodes = episodes.join(stored, on="number", how="left", maintain_order="left")
    of_vector = Rows(connection, "", 0).vector_bytes
    return log, episodes.with_columns(pl.col("bytes") + of_vector)


def packed(
    connection: sa.Connection, statement: str, columns: dict[str, Any], parameters: tuple[Any, ...] = ()
) -> pl.DataFrame:
    """A frame from a statement that gives each column as one JSON array."""
    from fedlab._polars import pl

    (row,) = connection.exec_driver_sql(statement, parameters)
    values = [msgspec.json.decode(each) for each in row]
    return pl.DataFrame(
        [pl.Series(name, each, kind) for each, (name, kind) in zip(values, columns.items(), strict=True)]
    )


def joined(held: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """One frame; in one piece again where it has many."""
    if new.is_empty():
        return held
    joined = held.vstack(new)
    return joined.rechunk() if joined.n_chunks() > 64 else joined
