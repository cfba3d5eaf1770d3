"""The one writer: it commits whatever is waiting at once, so that one fsync serves many agents.

An operation is a function of a `Transaction`. It raises a `FedlabError` only before it has written
anything; then it alone fails, and those who share the commit are not touched.
"""

from __future__ import annotations

import _signal  # what `signal` wraps in enums, which takes longer than all else a lone put does around SQLite
import contextlib
import functools
import logging
import sqlite3
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa

from fedlab.errors import FedlabError, HubUnavailable
from fedlab.hub import schema
from fedlab.hub.log import Head, Statements, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from fedlab.clock import Clock
    from fedlab.hub.ledger import Erased

T = TypeVar("T")
logger = logging.getLogger("fedlab.hub")

MAX_WEIGHT = 2_000
"""About how many episodes share a commit: bounds how long the first waits for the last."""


SMALL = 8
"""Rows of a commit of which the time is that of the disk, and not that of the rows."""


class Promise(Protocol):
    """What is told how an operation ended: a future, or the half of one that is used here."""

    def set_running_or_notify_cancel(self) -> bool:
        """Whether it is still wanted; from now on it is."""

    def set_result(self, result: Any, /) -> None:
        """It is durable and visible."""

    def set_exception(self, error: Any, /) -> None:
        """It changed nothing."""


class _Job(NamedTuple):
    operation: Callable[[Transaction], Any]
    weight: int
    future: Promise


class _Transaction(NamedTuple):
    batch: list[_Job]
    tx: Transaction
    outcomes: list[tuple[_Job, Any, FedlabError | None]]
    began: float
    error: Exception | None
    undo: contextlib.ExitStack
    """Commits; rolls back on an exception."""


class Written(NamedTuple):
    """What was written and waits for its commit.

    Args:
        weight: About how many rows.
        finish: Commits it and answers those who asked; anyone may call it, once, in any thread.
    """

    weight: int
    finish: Callable[[], None]


class Writer:
    """Owns the write connection and the head of the log.

    Who has the *turn* commits everything that waits. A caller who waits for the result anyway takes the turn
    itself if it is free (two thread switches less: a quarter of the time of a lone put); else, and for those
    who do not wait, the writer's thread takes it.

    Args:
        engine: For writing.
        clock: Gives each commit its time.
        head: The end of the log now.
        tenants: Those that exist; kept up to date here.
        erased: What must not come back.
        committed: Called after each commit, before its callers are answered: what it does is visible to
            whoever was acknowledged.
        keep_forgotten: Whether what is forgotten goes to the attic.
    """

    def __init__(
        self,
        engine: sa.Engine,
        clock: Clock,
        head: Head,
        tenants: set[str],
        erased: Erased,
        committed: Callable[[Transaction], None],
        *,
        keep_forgotten: bool = False,
    ) -> None:
        self.head = head
        self.asked = 0
        """How many operations were ever brought: others write while it grows by itself."""
        self.usual = 0.0
        """Seconds that a small commit takes nowadays."""
        self._connection = engine.connect()
        self._cursor = self._connection.connection.cursor()
        self._statements = Statements(engine)
        self._clock = clock
        self._tenants = tenants
        self._erased = erased
        self._committed = committed
        self._keep_forgotten = keep_forgotten
        self._waiting: deque[_Job] = deque()
        self._turn = threading.Lock()
        self._wake = threading.Semaphore(0)
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fedlab-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        operation: Callable[[Transaction], T],
        weight: int = 1,
        wake: Callable[[], None] | None = None,
        promise: Promise | None = None,
    ) -> Future[T]:
        """Have an operation committed; the future is done when it is durable and visible.

        Args:
            operation: What to write.
            weight: About how many rows it writes.
            wake: Sees to it that `write_waiting` is called, instead of the writer's thread.
            promise: Told in the place of the future.
        """
        future: Future[T] = self._enqueue(operation, weight, promise)
        (wake or self._wake.release)()
        return future

    def commit_waiting(self) -> None:
        """Commit what waits; if a commit is under way, the thread does it."""
        with _uninterrupted():
            self._take_turn()

    def write_waiting(self, most: int) -> Written | None:
        """Take the turn and write what waits, up to about `most` rows; None if nothing does or the turn is taken.

        The turn ends with `finish`, in whatever thread. What is left, and what comes meanwhile with a `wake`, is the
        caller's, who asks again.
        """
        with _uninterrupted():
            if not self._turn.acquire(blocking=False):
                return None
            return self._write_waiting(most)

    @property
    def waiting(self) -> bool:
        """Whether something waits to be committed."""
        return bool(self._waiting)

    def run(self, operation: Callable[[Transaction], T], weight: int = 1) -> T:
        """As `submit`, and wait for it."""
        future: Future[T] = self._enqueue(operation, weight)
        with _uninterrupted():
            while not future.done() and self._take_turn():
                pass
        if self._waiting:
            self._wake.release()
        return future.result()

    def alone(self, work: Callable[[sa.Connection], T]) -> T:
        """Do something with the write connection that is no transaction, while nothing is committed."""
        with _uninterrupted(), self._turn:
            if self._closed:
                raise HubUnavailable("the hub is closed")
            result = work(self._connection)
        if self._waiting:
            self._wake.release()
        return result

    def close(self) -> None:
        """Commit what is waiting and end the thread; idempotent."""
        with self._closing:
            self._closed = True
        self._wake.release()
        self._thread.join()
        with self._turn:
            # A cursor left open keeps SQLite's own connection open, and the last to close moves the log into the file.
            self._cursor.close()
            self._connection.close()

    def _enqueue(self, operation: Callable[[Transaction], T], weight: int, promise: Promise | None = None) -> Any:
        future = promise or Future()
        with self._closing:
            if self._closed:
                raise HubUnavailable("the hub is closed")
            self._waiting.append(_Job(operation, weight, future))
            self.asked += 1
        return future

    def _run(self) -> None:
        while not (self._closed and not self._waiting):
            self._wake.acquire()
            while self._waiting:
                self._take_turn(wait=True)

    def _take_turn(self, *, wait: bool = False) -> bool:
        """Commit what waits, unless someone else is at it: who has the turn looks again when it has ended."""
        if not self._turn.acquire(blocking=wait):
            return False
        if written := self._write_waiting(MAX_WEIGHT):
            written.finish()
        if self._waiting:
            self._wake.release()
        return True

    def _write_waiting(self, most: int) -> Written | None:
        batch: list[_Job] = []
        weight = 0
        try:
            while self._waiting and weight < most:
                job = self._waiting.popleft()
                if job.future.set_running_or_notify_cancel():
                    batch.append(job)
                    weight += job.weight
            if batch:
                return Written(weight, functools.partial(self._finish, self._write(batch, careful=False)))
        except BaseException:
            self._turn.release()
            raise
        self._turn.release()
        return None

    def _write(self, batch: list[_Job], *, careful: bool) -> _Transaction:
        """Do everything but commit; what goes wrong is raised by the commit."""
        began = time.perf_counter()
        outcomes: list[tuple[_Job, Any, FedlabError | None]] = []
        tx = Transaction(
            self._connection,
            self._cursor,
            self._statements,
            self.head,
            self._clock.now(),
            self._tenants,
            self._erased,
            careful,
            self._keep_forgotten,
        )
        with contextlib.ExitStack() as undo:
            try:
                undo.enter_context(schema.transaction(self._connection, "IMMEDIATE"))
                for job in batch:
                    try:
                        outcomes.append((job, job.operation(tx), None))
                    except FedlabError as error:
                        outcomes.append((job, None, error))
                tx.flush()
            except Exception as error:
                return _Transaction(batch, tx, outcomes, began, error, undo.pop_all())
            return _Transaction(batch, tx, outcomes, began, None, undo.pop_all())

    def _finish(self, written: _Transaction) -> None:
        try:
            if not self._commit(written):
                # Someone in the batch pushes again what is known, or the disk is full: one by one, so that
                # each gets its own answer.
                for job in written.batch:
                    self._commit(self._write([job], careful=True))
        finally:
            self._turn.release()

    def _commit(self, written: _Transaction) -> bool:
        """End a transaction; False if a first try failed and nothing was changed or answered."""
        tx = written.tx
        try:
            with written.undo:
                if written.error is not None:
                    raise written.error
        except Exception as error:
            if not tx.careful:
                return False
            driver = isinstance(error, (sa.exc.DBAPIError, sqlite3.Error))
            logger.error("a change could not be committed: %s", error, exc_info=None if driver else error)
            failure = schema.as_hub_error(error) if driver else error
            for job in written.batch:
                job.future.set_exception(failure)
            return True
        self.head = tx.head
        self._tenants |= tx.new_tenants
        try:
            self._committed(tx)
        except Exception:
            # The commit stands; a consumer that fails must not make it look lost.
            logger.exception("a consumer of the log failed at seq %d", tx.head.seq)
        if sum(job.weight for job in written.batch) <= SMALL:
            self.usual += 0.1 * (time.perf_counter() - written.began - self.usual)
        for job, result, refused in written.outcomes:
            if refused is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(refused)
        return True


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the commit is done: between commit and index it would leave one without the other."""
    if threading.get_ident() != _MAIN:
        yield
        return
    before = _signal.getsignal(_signal.SIGINT)
    if not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    _signal.signal(_signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        _signal.signal(_signal.SIGINT, before)
        if came:
            before(*came[0])


_MAIN = threading.main_thread().ident
