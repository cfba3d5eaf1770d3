"""`LocalConnection`: an embedded `Hub` as a `HubConnection`. The server answers through this same class.

Writes wait for the hub's writer without a thread; what may take long runs in a thread; a recall by vector runs
on the loop itself, because it takes less time than a thread switch.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from fedlab.errors import HubUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Any, Self

    import numpy.typing as npt
    import polars as pl

    from fedlab.episode import Episode, Memory
    from fedlab.hub import Hub
    from fedlab.hub.values import (
        AgentRecord,
        Change,
        Delta,
        Ending,
        HubInfo,
        RetentionPreview,
        RetentionReport,
        Stats,
        VerifyReport,
    )
    from fedlab.recall import RecallPolicy
    from fedlab.retention import RetentionPolicy


class LocalConnection:
    """An embedded hub, asynchronous.

    Args:
        hub: The hub.
        close_hub: Whether closing the connection closes the hub.
        actor: How the change log names who works through this connection.
        holders: Which connection carries which living agent; shared by the connections of a server, so that
            an agent who resumed elsewhere is not released by the connection it left.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        close_hub: bool = False,
        actor: str = "local",
        holders: dict[tuple[str, str], LocalConnection] | None = None,
    ) -> None:
        self.hub = hub
        self.actor = actor
        self._close_hub = close_hub
        self._closed = False
        self._holders = {} if holders is None else holders
        self._held: set[tuple[str, str]] = set()

    async def info(self) -> HubInfo:
        """Who the hub is."""
        return self._open().info()

    async def put(self, episodes: Episode | Sequence[Episode]) -> int:
        """Store episodes; durable when it returns. All or none. Returns the seq of the last change."""
        return await asyncio.wrap_future(self._open().put_soon(episodes, actor=self.actor))

    async def recall(
        self,
        tenant_id: str,
        query: str | Sequence[float] | npt.NDArray[Any] | None,
        k: int = 10,
        *,
        policy: RecallPolicy | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
        vectors: bool = False,
    ) -> list[Memory]:
        """The k best memories for a query; `vectors=True` brings each episode's vector along."""
        hub = self._open()
        if isinstance(query, str) and (policy is None or policy.similarity):
            query = (await asyncio.wrap_future(hub.embed_soon([query])))[0]
        return hub.recall(
            tenant_id,
            query,
            k,
            policy=policy,
            min_reward=min_reward,
            since=since,
            until=until,
            task=task,
            agent_id=agent_id,
            vectors=vectors,
        )

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts, shape (len(texts), dimension), float16."""
        return await asyncio.wrap_future(self._open().embed_soon(texts))

    async def spawn_agent(self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False) -> AgentRecord:
        """Register a life of `lifetime` seconds; the connection holds its lease."""
        spawned = self._open().spawn_agent_soon(tenant_id, agent_id, lifetime=lifetime, resume=resume)
        record = await asyncio.wrap_future(spawned)
        self._held.add((tenant_id, agent_id))
        self._holders[tenant_id, agent_id] = self
        return record

    async def sync_agent(
        self,
        tenant_id: str,
        agent_id: str,
        episodes: Sequence[Episode] = (),
        *,
        after: int,
        limit: int = 100,
        ending: Ending | None = None,
    ) -> Delta:
        """Push episodes and learn what others stored and what was forgotten after seq `after`."""
        delta = await asyncio.wrap_future(
            self._open().sync_agent_soon(tenant_id, agent_id, episodes, after=after, limit=limit, ending=ending)
        )
        if ending is not None:
            self._held.discard((tenant_id, agent_id))
            self._holders.pop((tenant_id, agent_id), None)
        return delta

    async def forget(self, tenant_id: str, ids: Sequence[str], *, reason: str) -> int:
        """Forget episodes by id; returns how many there were."""
        return await asyncio.to_thread(self._open().forget, tenant_id, ids, reason=reason, actor=self.actor)

    async def episodes(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
        min_reward: float | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> pl.DataFrame:
        """Live episodes as a frame, oldest first."""
        return await asyncio.to_thread(
            self._open().episodes,
            tenant_id,
            since=since,
            until=until,
            task=task,
            agent_id=agent_id,
            min_reward=min_reward,
            after=after,
            limit=limit,
        )

    async def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The agent registry as a frame."""
        return await asyncio.to_thread(self._open().agents, tenant_id, status=status)

    async def tenants(self) -> pl.DataFrame:
        """The tenants as a frame, with their numbers."""
        return await asyncio.to_thread(self._open().tenants)

    async def changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """The change log as a frame, oldest first."""
        return await asyncio.to_thread(self._open().changes, after, tenant_id=tenant_id, kind=kind, limit=limit)

    async def watch(
        self, after: int, *, tenant_id: str | None = None, limit: int = 1_000, wait: float = 20.0
    ) -> list[Change]:
        """The next changes after seq `after`; none if there is none within `wait` seconds."""
        hub = self._open()
        loop = asyncio.get_running_loop()
        committed = asyncio.Event()

        def wake(_seq: int) -> None:
            # Called by the writer thread, perhaps after this loop has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(committed.set)

        unsubscribe = hub.on_commit(wake)
        try:
            async with asyncio.timeout(wait):
                while True:
                    committed.clear()
                    changes = hub.read_changes(after, tenant_id=tenant_id, limit=limit)
                    if changes:
                        return changes
                    await committed.wait()
                    self._open()
        except TimeoutError:
            return []
        finally:
            unsubscribe()

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end."""
        return follow(self, tenant_id, self._open().info().seq if after is None else after)

    async def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""
        return await asyncio.to_thread(self._open().stats, tenant_id)

    async def verify(self) -> VerifyReport:
        """Check that database, log and index agree."""
        return await asyncio.to_thread(self._open().verify)

    async def set_retention(self, tenant_id: str, policy: RetentionPolicy) -> int:
        """Store a tenant's retention policy; returns the seq."""
        return await asyncio.to_thread(self._open().set_retention, tenant_id, policy, actor=self.actor)

    async def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy."""
        return await asyncio.to_thread(self._open().retention, tenant_id)

    async def preview_retention(self, tenant_id: str, policy: RetentionPolicy) -> RetentionPreview:
        """What a policy would do now; changes nothing."""
        return await asyncio.to_thread(self._open().preview_retention, tenant_id, policy)

    async def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all."""
        return await asyncio.to_thread(self._open().apply_retention, tenant_id)

    async def close(self) -> None:
        """Let go of the hub; from now the leases of the agents that it carried run. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self.hub.closed:
            for agent in self._held:
                if self._holders.get(agent) is self:
                    del self._holders[agent]
                    with contextlib.suppress(HubUnavailable):
                        self.hub.release_agent(*agent)
        if self._close_hub:
            await asyncio.to_thread(self.hub.close)

    async def __aenter__(self) -> Self:
        """Connect."""
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def __repr__(self) -> str:
        return f"LocalConnection({self.hub!r}{', closed' if self._closed else ''})"

    def _open(self) -> Hub:
        if self._closed:
            raise HubUnavailable("this connection is closed")
        return self.hub


async def follow(connection: Any, tenant_id: str | None, after: int) -> AsyncIterator[Change]:
    """A subscription: one `watch` after another. The log itself is the queue, so none can overflow."""
    while True:
        for change in await connection.watch(after, tenant_id=tenant_id):
            after = change.seq
            yield change
