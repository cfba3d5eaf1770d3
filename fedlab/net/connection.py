"""`HubConnection`: a hub from anywhere, asynchronous. What can be asked is here, once; how it gets its answer is in
`LocalConnection` (an embedded `Hub`, in `local.py`) and in `RemoteConnection` (a socket, in `client.py`).
"""

from __future__ import annotations

import abc
import asyncio
import functools
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from fedlab.episode import Episode, Memories, to_vector
from fedlab.errors import HubUnavailable, InvalidRequest
from fedlab.hub import transfer
from fedlab.hub.values import ERASURE
from fedlab.net import protocol
from fedlab.net.aggregates import AggregateCalls
from fedlab.recall import Filter, check_ids, check_k, check_queries
from fedlab.retention import RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt
    import polars as pl

    from fedlab.episode import Memory
    from fedlab.hub.manifest import BackupManifest, ForkReport
    from fedlab.hub.values import (
        AgentRecord,
        Change,
        Delta,
        Ending,
        ErasureReport,
        HubInfo,
        Life,
        RetentionPreview,
        RetentionReport,
        Schedule,
        Stats,
        TransferReport,
        VerifyReport,
    )
    from fedlab.recall import RecallPolicy

T = TypeVar("T")


class HubConnection(AggregateCalls):
    """What can be asked of a hub. Every method raises what the same method of `Hub` raises,
    and `HubUnavailable` where the hub cannot be reached in time.

    Attributes:
        url: Of the hub's server; None for an embedded hub.
    """

    url: str | None = None

    @abc.abstractmethod
    async def call(self, method: str, params: protocol.Params) -> Any:
        """The answer to a request: a method of `fedlab.net.protocol.METHODS`, with its params."""

    @abc.abstractmethod
    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end.

        It ends with InvalidRequest when the hub was restored, whose log is another one from some seq on.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of the hub: the leases of the agents that this connection carries run from now on. Idempotent."""

    async def info(self) -> HubInfo:
        """Who the hub is."""
        answer: HubInfo = await self.call("info", protocol.Params())
        return answer

    async def put(self, episodes: Episode | Sequence[Episode]) -> int:
        """Store episodes; durable when it returns. All or none. Returns the seq of the last change."""
        answer: int = await self.call("put", protocol.Put(episodes=_episodes(episodes)))
        return answer

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
        filters: dict[str, Any] = {
            "min_reward": min_reward,
            "since": since,
            "until": until,
            "task": task,
            "agent_id": agent_id,
        }
        found = await self.recall_many(tenant_id, [query], k, policy=policy, vectors=vectors, **filters)
        return Memories(found[0])

    async def recall_many(
        self,
        tenant_id: str,
        queries: Sequence[str | Sequence[float] | npt.NDArray[Any] | None],
        k: int = 10,
        *,
        policy: RecallPolicy | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
        vectors: bool = False,
    ) -> list[list[Memory]]:
        """As `recall`, for several queries at once: the memories of each."""
        shared = {
            "tenant_id": tenant_id,
            "k": check_k(k),
            "policy": policy,
            "vectors": vectors,
            **msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id)),
        }
        return await self.recall_each(
            [
                protocol.Recall(text=query, **shared)
                if isinstance(query, str)
                else protocol.Recall(vector=None if query is None else to_vector(query), **shared)
                for query in check_queries(queries)
            ]
        )

    async def recall_each(self, requests: Sequence[protocol.Recall]) -> list[list[Memory]]:
        """The answers to requests that differ in their queries alone."""
        if len(requests) == 1:
            return [await self.call("recall", requests[0])]
        return list(await asyncio.gather(*(self.call("recall", each) for each in requests)))

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts, shape (len(texts), dimension), float16."""
        vectors = await self.call("embed", protocol.Embed(texts=list(texts)))
        return np.array(vectors, dtype=np.float16).reshape(len(texts), -1 if vectors else (await self.info()).dimension)

    async def spawn_agent(self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False) -> AgentRecord:
        """Register a life of `lifetime` seconds. `resume` takes up the running life after a lost connection.

        The agent's lease is held by the connection: an agent whose connection is lost, and who does not
        resume, is marked `crashed` when the lease has run out.
        """
        return (await self.begin_life(tenant_id, agent_id, lifetime=lifetime, resume=resume)).agent

    async def begin_life(self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False) -> Life:
        """As `spawn_agent`, with who the hub is: one message instead of two."""
        params = protocol.SpawnAgent(
            tenant_id=tenant_id,
            agent_id=agent_id,
            lifetime=lifetime,
            resume=resume,
            nonce="" if resume else secrets.token_hex(8),
        )
        life: Life = await self.call("spawn_agent", params)
        return life

    async def sync_agent(
        self,
        tenant_id: str,
        agent_id: str,
        episodes: Sequence[Episode] = (),
        *,
        after: int,
        limit: int = 100,
        ending: Ending | None = None,
        recalled: int = 0,
        nonce: str = "",
        epoch: int = 0,
    ) -> Delta:
        """Push episodes and learn what others stored and what was forgotten after seq `after`.

        One transaction stores the episodes and, with `ending`, ends the agent's life. `nonce` is that of its `Life`,
        `epoch` that of the hub when `after` was its seq: without them it is not noticed that a namesake lives now, or
        that the hub was restored.
        """
        params = protocol.SyncAgent(
            tenant_id=tenant_id,
            agent_id=agent_id,
            episodes=_episodes(episodes),
            after=after,
            limit=limit,
            ending=ending,
            recalled=recalled,
            nonce=nonce,
            epoch=epoch,
        )
        delta: Delta = await self.call("sync_agent", params)
        return delta

    async def forget(self, tenant_id: str, ids: Sequence[str], *, reason: str) -> int:
        """Forget episodes by id; returns how many there were. Ids that are not there are no error."""
        answer: int = await self.call(
            "forget", protocol.Forget(tenant_id=tenant_id, ids=check_ids(ids, None), reason=reason)
        )
        return answer

    async def episodes(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
        min_reward: float | None = None,
        ids: Sequence[str] | None = None,
        after: int = 0,
        limit: int | None = None,
        vectors: bool = False,
        sources: bool = False,
    ) -> pl.DataFrame:
        """Live episodes as a frame, oldest first; `vectors` and `sources` bring a column each."""
        where = msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id))
        wanted = None if ids is None else check_ids(ids)
        params = protocol.Episodes(
            tenant_id=tenant_id, ids=wanted, after=after, limit=limit, vectors=vectors, sources=sources, **where
        )
        frame: pl.DataFrame = await self.call("episodes", params)
        return frame

    async def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The agent registry as a frame."""
        frame: pl.DataFrame = await self.call("agents", protocol.Agents(tenant_id=tenant_id, status=status))
        return frame

    async def tenants(self) -> pl.DataFrame:
        """The tenants as a frame, with their numbers."""
        frame: pl.DataFrame = await self.call("tenants", protocol.Params())
        return frame

    async def changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """The change log as a frame, oldest first."""
        params = protocol.Changes(tenant_id=tenant_id, after=after, kind=kind, limit=limit)
        frame: pl.DataFrame = await self.call("changes", params)
        return frame

    async def watch(
        self, after: int, *, tenant_id: str | None = None, limit: int = 1_000, wait: float = 20.0, epoch: int = 0
    ) -> list[Change]:
        """The next changes after seq `after`, in this `epoch` if one is given; none if there is none within `wait`
        seconds.

        Raises:
            InvalidRequest: If the hub was restored since: it is in another epoch, in which `after` means nothing.
        """
        params = protocol.Watch(tenant_id=tenant_id, after=after, limit=limit, wait=wait, epoch=epoch)
        answer: list[Change] = await self.call("watch", params)
        return answer

    async def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""
        answer: Stats = await self.call("stats", protocol.ForAnyTenant(tenant_id=tenant_id))
        return answer

    async def backup(self, name: str, *, base: str | None = None) -> BackupManifest:
        """Back the hub up, on the server's disk.

        Args:
            name: In the directory that the server was given for backups.
            base: The name of an earlier one there: then only what is new since is written.
        """
        answer: BackupManifest = await self.call("backup", protocol.Backup(name=name, base=base))
        return answer

    async def backups(self) -> pl.DataFrame:
        """The backups in the server's directory as a frame, the newest first."""
        frame: pl.DataFrame = await self.call("backups", protocol.Params())
        return frame

    async def verify_backup(self, name: str) -> BackupManifest:
        """Have the server read all of a backup in its directory, and of those that it builds on, and check it.

        Args:
            name: As for `backup`.
        """
        answer: BackupManifest = await self.call("verify_backup", protocol.BackupName(name=name))
        return answer

    async def fork(self, name: str, *, at: datetime | int | None = None) -> ForkReport:
        """Make an independent hub with the memory as of then, on the server's disk; see `Hub.fork`.

        Args:
            name: In the directory that the server was given for backups; a server of its own opens it there.
            at: A seq or a time (UTC); now if not given.
        """
        answer: ForkReport = await self.call("fork", protocol.Fork(name=name, at=at))
        return answer

    async def schedule(self) -> Schedule:
        """What the hub's server does by itself, and when."""
        answer: Schedule = await self.call("schedule", protocol.Params())
        return answer

    async def verify(self) -> VerifyReport:
        """Check that database, log and index agree."""
        answer: VerifyReport = await self.call("verify", protocol.Params())
        return answer

    async def set_retention(self, tenant_id: str, policy: RetentionPolicy) -> int:
        """Store a tenant's retention policy; returns the seq."""
        answer: int = await self.call("set_retention", protocol.Policy(tenant_id=tenant_id, policy=_json(policy)))
        return answer

    async def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy."""
        return RetentionPolicy.from_json(await self.call("retention", protocol.ForTenant(tenant_id=tenant_id)))

    async def preview_retention(
        self, tenant_id: str, policy: RetentionPolicy | None = None, *, after: timedelta = timedelta(0)
    ) -> RetentionPreview:
        """What a policy (the tenant's own if none is given) would do, now or so much later; changes nothing."""
        text = None if policy is None else _json(policy)
        params = protocol.Preview(tenant_id=tenant_id, policy=text, after=after)
        answer: RetentionPreview = await self.call("preview_retention", params)
        return answer

    async def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all."""
        answer: RetentionReport = await self.call("apply_retention", protocol.ForAnyTenant(tenant_id=tenant_id))
        return answer

    async def erase_tenant(self, tenant_id: str, *, reason: str = ERASURE, even_held: bool = False) -> ErasureReport:
        """Erase a tenant; the answer, which comes when everything is done, is the evidence."""
        params = protocol.EraseTenant(tenant_id=tenant_id, reason=reason, even_held=even_held)
        answer: ErasureReport = await self.call("erase_tenant", params)
        return answer

    async def erase_agent(
        self, tenant_id: str, agent_id: str, *, reason: str = ERASURE, even_held: bool = False
    ) -> ErasureReport:
        """Erase an agent of a tenant with its episodes."""
        params = protocol.EraseAgent(tenant_id=tenant_id, agent_id=agent_id, reason=reason, even_held=even_held)
        answer: ErasureReport = await self.call("erase_agent", params)
        return answer

    async def erase_episodes(
        self, tenant_id: str, ids: Sequence[str], *, reason: str = ERASURE, even_held: bool = False
    ) -> ErasureReport:
        """Erase episodes by their ids, live or forgotten."""
        params = protocol.EraseEpisodes(
            tenant_id=tenant_id, ids=check_ids(ids, None), reason=reason, even_held=even_held
        )
        answer: ErasureReport = await self.call("erase_episodes", params)
        return answer

    async def erasures(self) -> pl.DataFrame:
        """The ledger of erasures as a frame."""
        frame: pl.DataFrame = await self.call("erasures", protocol.Params())
        return frame

    async def export_tenant(self, tenant_id: str, path: str | Path) -> TransferReport:
        """Write a tenant's live episodes to a file on this machine, `.parquet` or `.jsonl`."""
        return await self._in_thread(transfer.export_tenant, tenant_id, path)

    async def import_tenant(
        self, path: str | Path, tenant_id: str | None = None, *, embed_again: bool = False
    ) -> TransferReport:
        """Store the episodes of an exported file on this machine; the token must allow to write for their agents."""
        return await self._in_thread(transfer.import_tenant, path, tenant_id, embed_again=embed_again)

    async def _in_thread(self, work: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Work that reads or writes files in a thread of its own, and this connection from there."""
        waiting = _Waiting(self, asyncio.get_running_loop())
        pool = ThreadPoolExecutor(1, "fedlab-transfer")
        try:
            return await waiting.loop.run_in_executor(pool, functools.partial(work, waiting, *args, **keywords))
        finally:
            waiting.ended = True
            pool.shutdown(wait=False)

    async def hold(
        self,
        tenant_id: str,
        ids: Sequence[str] | None = None,
        *,
        reason: str,
        task: str | None = None,
        agent_id: str | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
    ) -> int:
        """Exempt episodes from every policy and from `forget` until they are released; returns how many are new."""
        where = Filter.of(min_reward, since, until, task, agent_id)
        answer: int = await self.call("hold", _hold(tenant_id, ids, reason, where))
        return answer

    async def release(
        self,
        tenant_id: str,
        ids: Sequence[str] | None = None,
        *,
        reason: str,
        task: str | None = None,
        agent_id: str | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
    ) -> int:
        """End holds; returns how many were held."""
        where = Filter.of(min_reward, since, until, task, agent_id)
        answer: int = await self.call("release", _hold(tenant_id, ids, reason, where))
        return answer

    async def holds(self, tenant_id: str) -> pl.DataFrame:
        """What is held as a frame, with the reasons."""
        frame: pl.DataFrame = await self.call("holds", protocol.ForTenant(tenant_id=tenant_id))
        return frame

    async def __aenter__(self) -> Self:
        """Connect, so that a wrong address or token shows here."""
        await self.info()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def _follow(self, tenant_id: str | None, after: int, epoch: int = 0) -> AsyncIterator[Change]:
        """A subscription: one `watch` after another. The log itself is the queue, so none can overflow."""
        epoch = epoch or (await self.info()).epoch
        while True:
            for change in await self.watch(after, tenant_id=tenant_id, epoch=epoch):
                after = change.seq
                yield change


class _Waiting:
    """A connection's methods for another thread, where each waits for its answer."""

    def __init__(self, connection: HubConnection, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended = False
        self._connection = connection

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def wait(*args: Any, **keywords: Any) -> Any:
            if self.ended:
                raise HubUnavailable("whoever waited for this is gone")
            work = getattr(self._connection, name)(*args, **keywords)
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()

        return wait


def _episodes(episodes: Episode | Sequence[Episode]) -> list[Episode]:
    batch = [episodes] if isinstance(episodes, Episode) else list(episodes) if isinstance(episodes, Iterable) else None
    for episode in [episodes] if batch is None else batch:
        if not isinstance(episode, Episode):
            raise InvalidRequest(f"an Episode is wanted, not {type(episode).__name__} {episode!r:.80}")
    return batch or []


def _json(policy: RetentionPolicy) -> str:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidRequest(f"a retention policy is one of fedlab.retention, not {policy!r:.80}")
    return policy.to_json()


def _hold(tenant_id: str, ids: Sequence[str] | None, reason: str, where: Filter) -> protocol.Hold:
    given = None if ids is None else check_ids(ids)
    return protocol.Hold(tenant_id=tenant_id, ids=given, reason=reason, **msgspec.structs.asdict(where))
