"""Do database, log and index agree? Reads everything, and names what is damaged and where."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from fedlab._words import counted
from fedlab.errors import CorruptHub
from fedlab.hub import attic
from fedlab.hub.ledger import being_erased
from fedlab.hub.log import MASK, REDACTED, chain_hash, episode_hash, erased_id, own_hash, unpack_vector, vector_hash
from fedlab.hub.schema import agents, begin, changes, episode_sources, episodes, erasures, tenants, vectors
from fedlab.hub.sketches import unit
from fedlab.hub.values import VerifyReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedlab.hub.index import TenantIndex
    from fedlab.hub.indexes import Indexes

MOST = 100
"""Problems named in one report; a database full of noise has millions."""
CHUNK = 2_000


class _Check(NamedTuple):
    engine: sa.Engine
    indexes: Indexes | None
    dimension: int
    settle: Callable[[], object]


def verify(
    engine: sa.Engine, indexes: Indexes | None, dimension: int, settle: Callable[[], object] = int
) -> VerifyReport:
    """Check everything, at one moment of the database.

    Args:
        engine: For reading.
        indexes: Brought up to the database by whoever asks, as for a recall; None where there are none, in a backup.
        dimension: Of the vectors.
        settle: Returns when the indexes have followed everything that was committed before the call.
    """
    check = _Check(engine, indexes, dimension, settle)
    with begin(engine) as connection:
        numbers = {
            "episodes": connection.scalar(sa.select(sa.func.count()).select_from(episodes)) or 0,
            "changes": connection.scalar(sa.select(sa.func.count()).select_from(changes)) or 0,
        }
        driver: Any = connection.connection.driver_connection
        driver.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        problems: list[str] = []
        try:
            problems.extend(islice(_problems(connection, check), MOST))
        except (sa.exc.DatabaseError, CorruptHub) as error:
            problems.append(f"database: it can not be read to its end ({getattr(error, 'orig', error)})")
        finally:
            driver.text_factory = str
    return VerifyReport(**numbers, problems=problems)


def _problems(connection: sa.Connection, check: _Check) -> Iterator[str]:
    # Not quick_check: it does not compare SQLite's own indexes with their tables, and a row that an index has
    # lost is found by no query of its tenant.
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"database: {line}"
    live: dict[int, bytes] = {}
    erased: set[str] = set()
    yield from _log_problems(connection, live, erased)
    yield from _episode_problems(connection, live, erased, check.dimension)
    yield from attic.problems(connection)
    if check.indexes is not None:
        yield from check.indexes.snapshots.check()
        for tenant_id in connection.scalars(sa.select(tenants.c.tenant_id)):
            yield from _index_problems(connection, check, check.indexes, tenant_id)


def _log_problems(connection: sa.Connection, live: dict[int, bytes], erased: set[str]) -> Iterator[str]:
    """Walk the chain, and replay the log into `live` (number to hash of what must be there) and `erased` (hashes of
    ids that must not).
    """
    before, expected = b"", 1
    emptied = Counter[str]()
    numbers: dict[tuple[str, str], int] = {}
    query = sa.select(changes).order_by(changes.c.seq)
    computed = before
    for row in connection.execute(query.execution_options(yield_per=CHUNK)):
        whole = row.seq == expected
        if not whole:
            yield f"log: changes {expected} to {row.seq - 1} are missing"
        expected = row.seq + 1
        own = _hash(own_hash, tuple(row)[:-1])
        # Where the row before has a damaged hash, its content still tells what it was: only it is named.
        follows = [_hash(chain_hash, link, own) for link in (before, computed)]
        if whole and (row.hash not in follows or not own):
            yield f"log: change {row.seq} ({row.kind} {row.subject!r:.80}) does not match its hash"
        before, computed = row.hash, _hash(chain_hash, computed, own) if whole else row.hash
        if row.kind == "episode_stored":
            numbers[row.tenant_id, row.subject] = row.seq
            live[row.seq] = row.digest
        elif row.kind == "episode_forgotten":
            live.pop(numbers.get((row.tenant_id, row.subject), 0), None)
        elif row.kind == REDACTED[0]:
            erased.add(row.subject)
        if row.kind in REDACTED or row.actor.startswith(MASK):
            emptied[row.reason] += 1
    yield from _ledger_problems(connection, emptied)
    alive = connection.scalar(sa.select(sa.func.max(agents.c.id))) or 0
    if alive >= expected:
        yield f"log: it ends at {expected - 1} and the registry knows change {alive}"


def _ledger_problems(connection: sa.Connection, emptied: Counter[str]) -> Iterator[str]:
    """Nothing but an erasure takes the content out of a row of the log."""
    ledger = {row.id: row.changes for row in connection.execute(sa.select(erasures))}
    for name in ledger.keys() | emptied.keys():
        if ledger.get(name, 0) != emptied[name]:
            yield (
                f"log: erasure {name!r:.80} emptied {counted(emptied[name], 'change')}, and the ledger says"
                f" {ledger.get(name, 'nothing of it')}"
            )


def _episode_problems(
    connection: sa.Connection, live: dict[int, bytes], erased: set[str], dimension: int
) -> Iterator[str]:
    content = [column for column in episodes.c if column.name not in ("id", "hash")]
    query = (
        sa.select(episodes.c.id, *content, episodes.c.hash, vectors.c.vector, vectors.c.hash)
        .outerjoin(vectors, vectors.c.episode_id == episodes.c.id)
        .order_by(episodes.c.id)
    )
    missing = dict(live)
    for rows in connection.execute(query.execution_options(yield_per=CHUNK)).partitions():
        sources = _sources(connection, rows[0][0], rows[-1][0])
        for number, *fields, held, vector, of_vector in rows:
            name = f"episode {fields[0]!r:.80} (number {number})"
            wanted = missing.pop(number, None)
            if wanted is None:
                yield f"{name}: the log does not know it, or says it was forgotten"
            if erased and erased_id(fields[1], fields[0]) in erased:
                yield f"{name}: it was erased, and is here again"
            if vector is None:
                yield f"{name}: its vector is missing"
                continue
            if _hash(vector_hash, fields[0], vector) != of_vector or len(vector) != 2 * dimension:
                yield f"{name}: its vector is damaged"
            if _hash(episode_hash, fields, sources.get(number, ()), of_vector) != held:
                yield f"{name}: its text or numbers are damaged"
            elif wanted is not None and wanted != held:
                yield f"{name}: it is not what the log says was stored"
    for number in sorted(missing.keys() - being_erased(connection)):
        yield f"episode number {number}: the log says it is here, and it is not"


def _hash(function: Callable[..., bytes], *values: Any) -> bytes:
    """A hash; empty, which matches none, where a value is no valid text any more."""
    try:
        return function(*values)
    except (UnicodeEncodeError, TypeError, ValueError):
        return b""


def _sources(connection: sa.Connection, first: int, last: int) -> dict[int, list[str]]:
    query = (
        sa.select(episode_sources.c.episode_id, episode_sources.c.source)
        .where(episode_sources.c.episode_id.between(first, last))
        .order_by(episode_sources.c.episode_id, episode_sources.c.position)
    )
    found: dict[int, list[str]] = {}
    for number, source in connection.execute(query):
        found.setdefault(number, []).append(source)
    return found


def _index_problems(connection: sa.Connection, check: _Check, indexes: Indexes, tenant_id: str) -> Iterator[str]:
    """Compare the index in RAM with the database as of this transaction; what differs is looked at again,
    because the index goes on to follow the log meanwhile.
    """
    try:
        index = indexes.get(tenant_id)
    except Exception as error:
        yield f"index of tenant {tenant_id!r}: it can not be built ({error})"
        return
    last = connection.scalar(sa.select(sa.func.max(changes.c.seq))) or 0
    held = _alive(index, last)
    query = (
        sa.select(episodes.c.id, vectors.c.vector)
        .join(vectors, vectors.c.episode_id == episodes.c.id)
        .where(episodes.c.tenant_id == tenant_id)
        .order_by(episodes.c.id)
    )
    seen, wrong = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows in connection.execute(query.execution_options(yield_per=CHUNK)).partitions():
        numbers = np.array([row[0] for row in rows], np.int64)
        seen.append(numbers)
        known = np.isin(numbers, held)
        stored = [unpack_vector(row[1]) for row, there in zip(rows, known, strict=True) if there]
        if stored and all(len(each) == index.dimension for each in stored):
            wrong.append(numbers[known][~index.holds(numbers[known], unit(stored))])
    inside, differs = np.concatenate(seen), np.concatenate(wrong)
    lacks, extra = np.setdiff1d(inside, held), np.setdiff1d(held, inside)
    if len(lacks) + len(extra) + len(differs):
        check.settle()
        index = indexes.get(tenant_id)
        now = _alive(index, last)
        live = _live(check.engine, tenant_id)
        lacks, extra = np.setdiff1d(np.intersect1d(lacks, live), now), np.intersect1d(extra, now)
        differs = np.intersect1d(differs, live)
    for what, numbers in (("lacks", lacks), ("still has", extra), ("has other vectors for", differs)):
        if len(numbers):
            which = f"{counted(len(numbers), 'episode')} ({numbers[:3].tolist()} …)"
            yield f"index of tenant {tenant_id!r}: it {what} {which}"


def _alive(index: TenantIndex, last: int) -> np.ndarray[Any, Any]:
    view = index.view
    ids = view.ids[: view.n]
    return np.asarray(ids[view.alive[: view.n] & (ids <= last)])


def _live(engine: sa.Engine, tenant_id: str) -> np.ndarray[Any, Any]:
    with begin(engine) as connection:
        query = sa.select(episodes.c.id).where(episodes.c.tenant_id == tenant_id)
        return np.array(connection.scalars(query).all(), np.int64)
