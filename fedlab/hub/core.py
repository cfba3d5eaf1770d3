"""What a hub is made of and how it opens and closes. What can be asked of it is in the modules beside this one,
a noun each: each adds its methods to `HubCore`, and `hub.py` puts them together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from fedlab.clock import SystemClock
from fedlab.embedding import EmbeddingService, get_embedder
from fedlab.episode import check_name
from fedlab.errors import FedlabError, HubUnavailable, InvalidRequest, UnknownTenant
from fedlab.hub import attic, reading, schema, usage
from fedlab.hub.columns import ColumnCache
from fedlab.hub.directory import (
    Directory,
    check_identity,
    open_database,
    read_head,
    read_identity,
    write_identity,
    write_meta,
)
from fedlab.hub.eraser import Eraser
from fedlab.hub.indexes import Indexes
from fedlab.hub.leases import Leases
from fedlab.hub.ledger import Erased
from fedlab.hub.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from fedlab.clock import Clock
    from fedlab.embedding import Embedder
    from fedlab.hub.log import Transaction
    from fedlab.hub.schema import Durability

logger = logging.getLogger("fedlab.hub")

PARKED = 4
"""Connections that wait for the next recall: to take one from SQLAlchemy's pool, and to give it back, takes a quarter
of the time of a recall."""


class HubCore:
    """The parts of a `Hub`; its arguments are explained there."""

    def __init__(
        self,
        path: str | Path,
        clock: Clock | None = None,
        embedder: Embedder | str | None = None,
        durability: Durability = "full",
        *,
        max_agents_per_tenant: int = 10_000,
        lease: float = 30.0,
        keep_forgotten: timedelta | float | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        if not (Path(path) / "hub.db").exists():
            _ = get_embedder(embedder).dimension  # a name that means none leaves no directory behind
        self._directory = Directory(path)
        self.path = self._directory.path
        self._listeners: list[Callable[[int], object]] = []
        self._changed_at: dict[str, int] = {}
        self._usage = usage.Usage()
        # More at once than cores only take the interpreter from each other, and from the model: of 64 threads that
        # recall by text, each batch of the model waited a third longer.
        self._recalls = threading.Semaphore(os.cpu_count() or 2)
        self._opened_at = self.clock.now()
        self._parked: deque[sa.PoolProxiedConnection] = deque()
        self._closing = threading.Lock()
        self.closed = False
        with contextlib.ExitStack() as undo:
            undo.callback(self._directory.close)
            if self._directory.in_memory:
                durability = "off"
            self._write_engine = open_database(self._directory, durability)
            undo.callback(self._write_engine.dispose)
            self._read_engine = schema.open_engine(self._directory.database, durability, writer=False)
            undo.callback(self._read_engine.dispose)
            self._identity = self._identify(embedder)
            self.dimension = int(self._identity["dimension"])
            self.keep_forgotten = self._kept_for(keep_forgotten)
            self._embedding = EmbeddingService(self.embedder, self.path / "embeddings.db")
            undo.callback(self._embedding.close)
            self._indexes = Indexes(self._read_engine, self.path / "index", self._identity["embedder"], self.dimension)
            self._start(lease, max_agents_per_tenant)
            undo.callback(self._writer.close)
            # What was being erased when the hub was last killed is erased before anyone can ask for it.
            self._eraser.finish()
            undo.pop_all()

    def _identify(self, embedder: Embedder | str | None) -> dict[str, str]:
        held = read_identity(self._write_engine, self.path)
        if held:
            check_identity(held, embedder, self.path)
        self.embedder: Embedder = get_embedder(held["embedder"] if held and embedder is None else embedder)
        return held or write_identity(self._write_engine, self.embedder)

    def purge_forgotten(self) -> int:
        """Remove the content of what was forgotten longer than `keep_forgotten` ago; returns of how many episodes."""
        before = self.clock.now() - self.keep_forgotten // timedelta(milliseconds=1)
        with self._reading() as connection:
            if not attic.holds_older(connection, before):
                return 0
        purged = 0
        while number := self._writer.run(lambda tx: attic.purge(tx.connection, before), attic.BATCH):
            purged += number
        return purged

    def _kept_for(self, wanted: timedelta | float | None) -> timedelta:
        """How long forgotten episodes are kept: as asked, or as the hub was told when it was last asked."""
        held = int(self._identity.get("keep_forgotten", "0"))
        if wanted is None:
            return timedelta(milliseconds=held)
        try:
            kept = wanted if isinstance(wanted, timedelta) else timedelta(seconds=wanted)
        except (TypeError, ValueError, OverflowError):
            kept = timedelta(-1)
        if kept < timedelta(0):
            raise InvalidRequest(f"keep_forgotten is a timedelta or a number of seconds, not {wanted!r:.80}")
        with schema.begin(self._write_engine, "IMMEDIATE") as connection:
            write_meta(connection, keep_forgotten=str(kept // timedelta(milliseconds=1)))
        return kept

    def _start(self, lease: float, max_agents_per_tenant: int) -> None:
        head = read_head(self._write_engine, self._directory.database)
        with self._reading() as connection:
            self._tenants: set[str] = set(connection.scalars(sa.select(schema.tenants.c.tenant_id)))
            self._erased = Erased.read(connection)
            alive = reading.living_agents(connection)
        columns_file = None if self._directory.in_memory else self.path / "index" / "columns"
        self._columns = ColumnCache(self._reading, self._erased, columns_file)
        self._leases = Leases(self.clock, lease, max_agents_per_tenant, alive)
        self._writer = Writer(
            self._write_engine,
            self.clock,
            head,
            self._tenants,
            self._erased,
            self._committed,
            keep_forgotten=bool(self.keep_forgotten),
        )
        self._eraser = Eraser(
            self._writer,
            self._read_engine,
            self._directory,
            self._indexes,
            self._columns,
            self._embedding,
            self._erased,
            self._identity["hub_id"],
        )
        if head.seq == 0:
            hub_id = self._identity["hub_id"]
            self._writer.run(lambda tx: tx.log("hub_created", "", hub_id, "hub"))

    def snapshot(self) -> None:
        """Write indexes and columns to disk, so that the next start is quick."""
        self._require_open()
        self._save()

    def close(self) -> None:
        """Commit what is waiting, write indexes and columns to disk and give the directory free; idempotent."""
        with self._closing:
            if self.closed:
                return
            self.closed = True
        try:
            self._write_usage()
        except FedlabError as error:
            logger.warning("what was recalled last could not be written (%s)", error)
        self._writer.close()
        self._embedding.close()
        self._indexes.close()
        if not self._directory.in_memory:
            self._save()
        self._unpark()
        self._columns.clear()
        self._read_engine.dispose()
        self._write_engine.dispose()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_commit(self, callback: Callable[[int], object]) -> Callable[[], None]:
        """Have `callback(seq)` called in the writer thread after each commit; returns what undoes it."""
        self._require_open()
        self._listeners = [*self._listeners, callback]

        def undo() -> None:
            self._listeners = [each for each in self._listeners if each is not callback]

        return undo

    # --- inside --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._indexes.snapshot()
        with schema.begin(self._read_engine) as connection:
            self._columns.save(connection)

    def _committed(self, tx: Transaction) -> None:
        """Feed the consumers of the log; in the writer thread, before anyone is answered."""
        if tx.begun:
            self._columns.clear()
        for erasure in tx.begun:
            if erasure.scope == "tenant":
                self._tenants.discard(erasure.tenant_id)
                self._changed_at.pop(erasure.tenant_id, None)
            self._usage.drop(erasure.tenant_id, whole=erasure.scope == "tenant")
            self._erased.begin(erasure, tx.now)
            self._leases.end_all(erasure.tenant_id, erasure.agent_id)
        self._indexes.apply(tx.events)
        self._changed_at.update(dict.fromkeys(tx.touched, tx.head.seq))
        for listener in self._listeners:
            try:
                listener(tx.head.seq)
            except Exception:
                logger.exception("a listener failed at seq %d", tx.head.seq)

    def _write_usage(self) -> None:
        """Write down what was recalled so far, for whoever is about to read it."""
        if taken := self._usage.take():
            self._writer.run(lambda tx: usage.write(tx, taken))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database."""
        self._require_open()
        with schema.begin(self._read_engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _reading_quickly(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """As `_reading`, but the driver's `execute`."""
        self._require_open()
        try:
            connection = self._parked.pop() if self._parked else self._read_engine.raw_connection()
        except IndexError:  # another thread was quicker
            connection = self._read_engine.raw_connection()
        driver: sqlite3.Connection = connection.driver_connection  # type: ignore[assignment]
        try:
            driver.execute("BEGIN")
            yield driver.execute
        except (sqlite3.Error, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise schema.as_hub_error(error) from error
        finally:
            if driver.in_transaction:
                driver.execute("COMMIT")
            if len(self._parked) < PARKED and not self.closed:
                self._parked.append(connection)
            else:
                connection.close()
            if self.closed:
                self._unpark()

    def _unpark(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._parked.pop().close()

    def _require_open(self) -> None:
        if self.closed:
            raise HubUnavailable(f"the hub in {self.path} is closed")

    def _require(self, tenant_id: str) -> None:
        self._require_open()
        check_name(tenant_id, "tenant_id")
        if tenant_id not in self._tenants:
            if self._erased.whole(tenant_id):
                raise UnknownTenant(
                    f"tenant {tenant_id!r} was erased, and nothing was stored under this name since",
                    tenant_id=tenant_id,
                    erased=True,
                )
            raise UnknownTenant(
                f"nothing was ever stored for tenant {tenant_id!r}: is the name spelled right?", tenant_id=tenant_id
            )
