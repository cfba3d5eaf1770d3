"""`Eraser`: has an erasure done from its first row to its last byte, in steps of which each survives `kill -9`.

begin → rows, in small transactions → caches → rows finished → files → done. Up to "finished" the ledger holds in
clear what is to be erased (`pending`); whatever was reached, the next start goes on from there.

What erased rows leave in the files is the write-ahead log, and bytes of pages that nothing refers to. `secure_delete`
overwrites a cell that is deleted, and a page that becomes free. But when SQLite moves cells from page to page, to keep
its trees balanced, copies stay behind in the unallocated middle of the page they left (measured: names in 1 of 200
pages of an index). VACUUM removes them too, but holds the writer all the while and needs room for a second database:
9 seconds for a gigabyte with 325,000 episodes, where overwriting these bytes in place took 2, some pages at a time,
with others writing in between. SQLite never reads these bytes: whoever reads the page at the same moment, and a crash
between any two bytes, see the same rows.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fedlab._words import named
from fedlab.episode import new_id
from fedlab.errors import HeldEpisodes, HubUnavailable, InvalidRequest, UnknownEpisode, UnknownTenant
from fedlab.hub import ledger, migrations, operations
from fedlab.hub.directory import sync
from fedlab.hub.ledger import Erasure
from fedlab.hub.log import erased_id, name_hash
from fedlab.hub.schema import agents, begin, episodes, erasures, holds, listed, queries
from fedlab.hub.values import ErasureReport
from fedlab.hub.writer import MAX_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedlab.embedding import EmbeddingService
    from fedlab.hub.columns import ColumnCache
    from fedlab.hub.directory import Directory
    from fedlab.hub.indexes import Indexes
    from fedlab.hub.ledger import Erased, Scope
    from fedlab.hub.log import Transaction
    from fedlab.hub.writer import Writer

TURN = 0.01
"""Seconds that a transaction goes on: with its commit, about 15 to 40 ms of the writer."""
STEP = 64
"""Log rows of one statement: between two looks at the time."""
PATIENCE = 60.0
"""Seconds to wait for readers that hold the write-ahead log."""
PAGES = 1_000
"""Pages looked at in one turn of the writer: a few milliseconds."""
_HEADER = {0x02: 12, 0x05: 12, 0x0A: 8, 0x0D: 8}
"""Kind of a b-tree page (its first byte) to the length of its header (https://sqlite.org/fileformat.html, 1.6)."""


class Eraser:
    """Erases, one thing at a time.

    Args:
        writer: Commits.
        engine: For reading.
        directory: With the files.
        indexes: A cache of vectors; `columns` one of names and texts, `embedding` one of both.
        erased: What must not come back; told when an erasure is finished.
        hub_id: For the reports.
    """

    def __init__(
        self,
        writer: Writer,
        engine: sa.Engine,
        directory: Directory,
        indexes: Indexes,
        columns: ColumnCache,
        embedding: EmbeddingService,
        erased: Erased,
        hub_id: str,
    ) -> None:
        self._writer = writer
        self._engine = engine
        self._directory = directory
        self._indexes = indexes
        self._columns = columns
        self._embedding = embedding
        self._erased = erased
        self._hub_id = hub_id
        self._lock = threading.Lock()

    def erase(
        self,
        scope: Scope,
        tenant_id: str,
        *,
        agent_id: str | None = None,
        ids: Sequence[str] = (),
        reason: str,
        actor: str,
        even_held: bool,
    ) -> ErasureReport:
        """Erase a tenant, an agent of it, or some of its episodes; everything is done when it returns."""
        for name in (tenant_id,) if scope == "tenant" else (agent_id,) if agent_id else ids:
            for what, note in (("reason", reason), ("actor", actor)):
                if ledger.names(note, name):
                    raise InvalidRequest(
                        f"the {what} stays in the log and names {name!r}, which is to be erased: leave the name out",
                        field=what,
                    )
        erasure = Erasure(id="", seq=1 << 62, scope=scope, tenant_id=tenant_id, agent_id=agent_id)
        with self._lock:
            self._complete_all()
            already: list[str] = []
            unknown: list[str] = []
            if scope == "episodes":
                erasure, already, unknown = self._found(erasure, ids)
            elif scope == "agent":
                self._check_agent(erasure)
            # The last of its commit: whoever comes after it sees that it has begun.
            erasure = self._writer.run(lambda tx: _begin(tx, erasure, reason, actor, even_held), MAX_WEIGHT)
            tally = self._complete(erasure)
            report = self._report(erasure.id, reason, actor, tally)
            return msgspec.structs.replace(report, already=already, unknown=unknown)

    def finish(self) -> None:
        """Complete what was begun and not done."""
        with self._lock:
            self._complete_all()

    def _complete_all(self) -> None:
        with begin(self._engine) as connection:
            rows = connection.execute(sa.select(erasures).where(erasures.c.pending.is_not(None))).all()
        for row in rows:
            if row.pending == ledger.FILES:
                self._finish_files(row.id)
            else:
                self._complete(msgspec.json.decode(row.pending, type=Erasure))

    def _complete(self, erasure: Erasure) -> Counter[str]:
        if erasure.scope == "tenant":
            self._indexes.drop(erasure.tenant_id)
        tally = self._remove_rows(erasure)
        self._drop_caches(erasure)
        self._finish_rows(erasure)
        tally["pages"] = self._finish_files(erasure.id)
        return tally

    def _remove_rows(self, erasure: Erasure) -> Counter[str]:
        """Redact, and delete, in transactions of about `TURN` seconds, until there is nothing left to do."""
        tally = Counter[str]()
        while any(plan := self._plan(erasure)):
            parts = [plan.redact[start : start + STEP] for start in range(0, len(plan.redact), STEP)]
            at = 0
            while at < len(parts):

                def work(tx: Transaction, at: int = at, parts: list[list[int]] = parts) -> tuple[Counter[str], int]:
                    done, until = Counter[str](), time.monotonic() + TURN
                    while True:
                        done.update(ledger.redact(tx, erasure, parts[at]))
                        at += 1
                        if at == len(parts) or time.monotonic() >= until:
                            return done, at

                done, at = self._writer.run(work, MAX_WEIGHT)
                tally.update(done)
            for start in range(0, len(plan.mask), STEP):
                part = plan.mask[start : start + STEP]
                tally["masked"] += self._writer.run(lambda tx, part=part: ledger.mask(tx, erasure, part))  # type: ignore[misc]
        return tally

    def _plan(self, erasure: Erasure) -> ledger.Plan:
        with begin(self._engine) as connection:
            return ledger.make_plan(connection, erasure)

    def _drop_caches(self, erasure: Erasure) -> None:
        """A cached vector tells of its text, and so does a removed one in a saved graph; columns have names."""
        self._columns.drop()
        self._indexes.drop(erasure.tenant_id)
        self._embedding.clear()

    def _finish_rows(self, erasure: Erasure) -> None:
        """From here on nothing is known in clear."""

        def finish(tx: Transaction) -> None:
            tx.flush()
            # Again: some may have been on their way to be written down when the erasure began.
            tx.connection.execute(sa.delete(queries).where(queries.c.tenant_id == erasure.tenant_id))
            _set(tx, erasure.id, pending=ledger.FILES)
            tenant_id = "" if erasure.scope == "tenant" else erasure.tenant_id
            tx.log("erasure_finished", tenant_id, erasure.id, "hub")
            tx.touched.add(tenant_id)

        self._writer.run(finish)
        self._erased.under_way.discard(erasure.tenant_id)

    def _finish_files(self, erasure_id: str) -> int:
        migrations.delete_copies(self._directory.path)
        sync(self._directory.path)
        pages = wipe(self._writer, self._directory.file)
        self._writer.run(lambda tx: _set(tx, erasure_id, pending=None, done_at=tx.now))
        return pages

    def _found(self, erasure: Erasure, ids: Sequence[str]) -> tuple[Erasure, list[str], list[str]]:
        """The erasure with the numbers of its episodes; the ids that were erased before; those that nothing had.

        A request that is made again, because nobody knows whether it was done, does no harm and is no error.
        """
        with begin(self._engine) as connection:
            numbers = operations.numbers_of(connection, erasure.tenant_id, ids)
            left = {erased_id(erasure.tenant_id, uid): uid for uid in ids if uid not in numbers}
            already = operations.erased_of(connection, left)
        known = set(already)
        unknown = [uid for uid in left.values() if uid not in known]
        if not numbers and not already:
            raise UnknownEpisode(
                f"none of the {len(unknown):,} ids was ever of an episode of tenant {erasure.tenant_id!r}"
                f" ({unknown[0]!r:.80} …): nothing was erased; is the id spelled right?",
                ids=unknown,
            )
        return msgspec.structs.replace(erasure, numbers=sorted(numbers.values())), already, unknown

    def _check_agent(self, erasure: Erasure) -> None:
        """Whether there is, or was, anything of an agent."""
        tenant_id, agent_id = erasure.tenant_id, erasure.agent_id or ""
        with begin(self._engine) as connection:
            if not (any(ledger.make_plan(connection, erasure)) or self._erased.agent(tenant_id, agent_id)):
                raise InvalidRequest(
                    f"tenant {tenant_id!r} has nothing of agent {agent_id!r}: is the name spelled right?"
                )

    def _report(self, erasure_id: str, reason: str, actor: str, tally: Counter[str]) -> ErasureReport:
        with begin(self._engine) as connection:
            row = connection.execute(sa.select(erasures).where(erasures.c.id == erasure_id)).one()
        return ErasureReport(
            id=row.id,
            hub_id=self._hub_id,
            seq=row.seq,
            scope=row.scope,
            at=row.at,
            done_at=row.done_at,
            actor=actor,
            reason=reason,
            tenant_hash=row.tenant_hash,
            agent_hash=row.agent_hash,
            episodes=tally["stored"],
            vectors=tally["vectors"],
            sources=tally["episode_sources"],
            kept=tally["attic"],
            holds=tally["holds"],
            agents=tally["agents"],
            changes=row.changes,
            pages=tally["pages"],
        )


def _begin(tx: Transaction, erasure: Erasure, reason: str, actor: str, even_held: bool) -> Erasure:
    """The first transaction: from its commit on nothing shows the tenant, and the lives that are concerned are over."""
    tx.flush()
    tenant_id = erasure.tenant_id
    if tenant_id not in tx.tenants and tenant_id not in tx.new_tenants:
        raise UnknownTenant(f"tenant {tenant_id!r} is not here (any more)", tenant_id=tenant_id)
    if not even_held:
        _check_holds(tx, erasure)
    about = "" if erasure.scope == "tenant" else tenant_id
    erasure_id = new_id(tx.now)
    seq = tx.log(f"{erasure.scope}_erased", about, erasure_id, actor, reason)
    erasure = msgspec.structs.replace(erasure, id=erasure_id, seq=seq)
    agent = None if erasure.agent_id is None else name_hash(erasure.agent_id)
    pending = msgspec.json.encode(erasure).decode()
    ledger.enter(tx, erasure, at=tx.now, tenant=name_hash(tenant_id), agent=agent, pending=pending)
    if erasure.scope != "episodes":
        lives = [agents.c.tenant_id == tenant_id, agents.c.status == "alive"]
        if erasure.agent_id is not None:
            lives.append(agents.c.agent_id == erasure.agent_id)
        tx.connection.execute(sa.update(agents).where(*lives).values(status="destroyed", ended_at=tx.now))
    tx.begun.append(erasure)
    return erasure


def _check_holds(tx: Transaction, erasure: Erasure) -> None:
    query = sa.select(episodes.c.uid).join(holds, holds.c.episode_id == episodes.c.id)
    query = query.where(holds.c.tenant_id == erasure.tenant_id)
    if erasure.scope == "agent":
        query = query.where(episodes.c.agent_id == erasure.agent_id)
    elif erasure.scope == "episodes":
        query = query.where(listed(episodes.c.id, erasure.numbers))
    if held := tx.connection.scalars(query).all():
        raise HeldEpisodes(
            f"{named(held, 'episode')}: held; nothing was erased; release what is held first, or"
            " erase it with even_held=True (--even-held)",
            ids=list(held),
        )


def _set(tx: Transaction, erasure_id: str, **values: object) -> None:
    tx.connection.execute(sa.update(erasures).where(erasures.c.id == erasure_id).values(**values))


# --- what is left in the files --------------------------------------------------------------------------------------


def wipe(writer: Writer, file: int) -> int:
    """Overwrite what is unallocated in the database, and empty the write-ahead log; returns the pages rewritten.

    Args:
        writer: Whose turns it takes.
        file: The database, open for reading and writing.

    Raises:
        HubUnavailable: If a reader holds the write-ahead log for too long.
    """
    first, rewritten = 0, 0
    more = writer.alone(_is_small)
    while more:

        def part(connection: sa.Connection, first: int = first) -> tuple[int, bool] | None:
            # In the file is what the log has: else a page's old copy in the log would come back over it.
            _, frames, done = _checkpoint(connection, "PASSIVE")
            if frames != done:
                return None
            found = overwrite(file, _page_size(connection), first, PAGES)
            # The writer's own copies of these pages still have the bytes, and would be written out some day.
            _driver(connection).execute("PRAGMA shrink_memory")
            return found

        number, more = _patiently(writer, part)
        rewritten += number
        first += PAGES
    os.fsync(file)
    _patiently(writer, lambda connection: None if _checkpoint(connection, "TRUNCATE")[0] else True)
    return rewritten


def overwrite(file: int, size: int, first: int, count: int) -> tuple[int, bool]:
    """Zero the unallocated bytes of some pages; returns how many pages had any, and whether more pages follow.

    A page that is no b-tree begins with the number of another page, or with zeros: its first byte is 0 in a small file.
    """
    data = os.pread(file, size * count, size * first)
    dirty = 0
    for start in range(0, len(data), size):
        header = start + (100 if first == 0 and start == 0 else 0)
        length = _HEADER.get(data[header])
        if length is None:
            continue
        cells = int.from_bytes(data[header + 3 : header + 5], "big")
        begin = header + length + 2 * cells
        end = start + (int.from_bytes(data[header + 5 : header + 7], "big") or 65_536)
        if begin < end <= start + size and data.count(0, begin, end) != end - begin:
            os.pwrite(file, bytes(end - begin), size * first + begin)
            dirty += 1
    return dirty, len(data) == size * count


def _is_small(connection: sa.Connection) -> bool:
    """Whether the kind of a page can be told by its first byte: below 2^24 pages. Larger ones are vacuumed here."""
    driver = _driver(connection)
    if driver.execute("PRAGMA page_count").fetchone()[0] < 1 << 24:
        return True
    driver.execute("VACUUM")
    return False


def _patiently(writer: Writer, work: Callable[[sa.Connection], Any]) -> Any:
    """Do something in a turn of the writer, again while readers keep it from being done (None)."""
    deadline = time.monotonic() + PATIENCE
    while (result := writer.alone(work)) is None:
        if time.monotonic() > deadline:
            raise HubUnavailable(
                f"everything is deleted, but something has been reading the database for {PATIENCE:g} s, so that the"
                " write-ahead log can not be emptied: the erasure is completed by the next one, or at the next start"
            )
        time.sleep(0.02)
    return result


def _checkpoint(connection: sa.Connection, mode: str) -> tuple[int, int, int]:
    """Whether it was kept from it, frames in the log, and how many of them are in the database."""
    driver = _driver(connection)
    (patience,) = driver.execute("PRAGMA busy_timeout").fetchone()
    # Whoever wants to write waits behind this: readers get a moment, and then another try.
    driver.execute("PRAGMA busy_timeout=20")
    try:
        busy, frames, done = driver.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        driver.execute(f"PRAGMA busy_timeout={patience}")
    return busy, frames, done


def _page_size(connection: sa.Connection) -> int:
    size: int = _driver(connection).execute("PRAGMA page_size").fetchone()[0]
    return size


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection
