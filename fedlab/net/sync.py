"""`SyncConnection`: a `HubConnection` without `await`, for plain scripts and Streamlit."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from fedlab.errors import HubUnavailable
from fedlab.net.connection import HubConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import TracebackType
    from typing import Self

    from fedlab.hub.values import Change

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[HubConnection, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncConnection, P], T]:
    """The same method, which waits for its result."""

    @functools.wraps(method)
    def wait(self: SyncConnection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._wait(getattr(self._connection, method.__name__)(*args, **kwargs))  # type: ignore[no-any-return]

    return wait


class SyncConnection:
    """The methods of `HubConnection`, each of which waits for its result; may be used from many threads.

    The connection lives in an event loop in a thread of its own.

    Args:
        make: Makes the connection.
    """

    def __init__(self, make: Callable[[], HubConnection]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fedlab-connection", daemon=True)
        self._thread.start()
        self._closing = threading.Lock()
        self._closed = False
        self._connection: HubConnection

        async def enter() -> HubConnection:
            return await make().__aenter__()

        try:
            self._connection = self._wait(enter())
        except BaseException:
            self._stop()
            raise

    call = _blocking(HubConnection.call)
    info = _blocking(HubConnection.info)
    put = _blocking(HubConnection.put)
    recall = _blocking(HubConnection.recall)
    recall_many = _blocking(HubConnection.recall_many)
    recall_each = _blocking(HubConnection.recall_each)
    embed = _blocking(HubConnection.embed)
    spawn_agent = _blocking(HubConnection.spawn_agent)
    begin_life = _blocking(HubConnection.begin_life)
    sync_agent = _blocking(HubConnection.sync_agent)
    forget = _blocking(HubConnection.forget)
    episodes = _blocking(HubConnection.episodes)
    agents = _blocking(HubConnection.agents)
    tenants = _blocking(HubConnection.tenants)
    changes = _blocking(HubConnection.changes)
    watch = _blocking(HubConnection.watch)
    stats = _blocking(HubConnection.stats)
    backup = _blocking(HubConnection.backup)
    backups = _blocking(HubConnection.backups)
    verify_backup = _blocking(HubConnection.verify_backup)
    fork = _blocking(HubConnection.fork)
    schedule = _blocking(HubConnection.schedule)
    verify = _blocking(HubConnection.verify)
    set_retention = _blocking(HubConnection.set_retention)
    retention = _blocking(HubConnection.retention)
    preview_retention = _blocking(HubConnection.preview_retention)
    apply_retention = _blocking(HubConnection.apply_retention)
    erase_tenant = _blocking(HubConnection.erase_tenant)
    erase_agent = _blocking(HubConnection.erase_agent)
    erase_episodes = _blocking(HubConnection.erase_episodes)
    erasures = _blocking(HubConnection.erasures)
    export_tenant = _blocking(HubConnection.export_tenant)
    import_tenant = _blocking(HubConnection.import_tenant)
    hold = _blocking(HubConnection.hold)
    release = _blocking(HubConnection.release)
    holds = _blocking(HubConnection.holds)
    growth = _blocking(HubConnection.growth)
    forgetting = _blocking(HubConnection.forgetting)
    rewards = _blocking(HubConnection.rewards)
    reward_summary = _blocking(HubConnection.reward_summary)
    lives = _blocking(HubConnection.lives)
    credit = _blocking(HubConnection.credit)
    lineage = _blocking(HubConnection.lineage)
    sample = _blocking(HubConnection.sample)
    tail = _blocking(HubConnection.tail)

    @property
    def url(self) -> str | None:
        """Of the hub's server; None for an embedded hub."""
        return self._connection.url

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> Iterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end."""

        async def start() -> AsyncIterator[Change]:
            return self._connection.subscribe(tenant_id, after=after)

        return self._iterate(self._wait(start()))

    def _iterate(self, changes: AsyncIterator[Change]) -> Iterator[Change]:
        async def step() -> Change:
            return await anext(changes)

        while True:
            yield self._wait(step())

    def close(self) -> None:
        """Let go of the hub; idempotent."""
        with self._closing:
            if self._closed:
                return
            try:
                self._wait(self._connection.close())
            finally:
                self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SyncConnection({self._connection!r})"

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise HubUnavailable("this connection is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C, or Streamlit that stops a script
            raise

    def _stop(self) -> None:
        self._closed = True

        async def finish() -> None:
            # Subscriptions that were not read to their end are generators that still wait.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
