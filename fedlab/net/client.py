"""`RemoteConnection`: a hub behind a URL, as a `HubConnection`. The socket is `link.py`'s business.

Every request is repeatable, so what was not acknowledged when a connection broke is sent again on the next one:
episodes are known by their ids, a spawn is repeated as a resume, and reading or applying a policy twice does no
harm (only `forget` and `apply_retention` may then count what their first try removed as not there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fedlab.episode import Episode, to_vector
from fedlab.errors import InvalidRequest
from fedlab.net import protocol
from fedlab.net.discovery import check_url
from fedlab.net.link import Link
from fedlab.net.local import follow
from fedlab.net.protocol import JSON, MSGPACK
from fedlab.net.settings import Settings
from fedlab.recall import Filter, RecallPolicy, check_k
from fedlab.retention import RetentionPolicy

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt
    import polars as pl

    from fedlab.episode import Memory
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

SECONDS_PER_TEXT = 0.1
"""What the hub's model may take for a text: added to the time-out of a push without vectors."""


class RemoteConnection:
    """A hub behind a URL; connects when it is first used.

    Args:
        url: `ws://host:port` or `wss://host:port`.
        token: The token, or what gives one for each connection attempt (None where there is none).
        timeout: Seconds to wait for an answer; slow methods (frames, verify, retention) get ten times as long.
        retry_for: Seconds to go on trying to reach a hub that is away. While it is known to be away, a call
            tries once.
        json: Speak JSON instead of MessagePack.
        tls: How to check the hub's certificate; the system's authorities if not given.
        max_message: Largest message in bytes; not above the server's.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None = None,
        *,
        timeout: float = 30.0,
        retry_for: float = 10.0,
        json: bool = False,
        tls: ssl.SSLContext | None = None,
        max_message: int = Settings().max_message,
    ) -> None:
        self.url = check_url(url)
        self._link = Link(
            url,
            token,
            JSON if json else MSGPACK,
            timeout=timeout,
            retry_for=retry_for,
            tls=tls,
            max_message=max_message,
        )

    async def info(self) -> HubInfo:
        """Who the hub is."""
        answer: HubInfo = await self._link.ask("info", protocol.Params())
        return answer

    async def put(self, episodes: Episode | Sequence[Episode]) -> int:
        """Store episodes; durable when it returns. All or none, so they must fit in one message."""
        batch = _episodes(episodes)
        answer: int = await self._link.ask("put", protocol.Put(episodes=batch), extra=_embedding_time(batch))
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
        where = Filter.of(min_reward, since, until, task, agent_id)
        text = isinstance(query, str)
        params = protocol.Recall(
            tenant_id=tenant_id,
            text=query if text else None,  # type: ignore[arg-type]  # checked in the line above
            vector=None if text or query is None else to_vector(query),  # type: ignore[arg-type]
            k=check_k(k),
            policy=policy,
            vectors=vectors,
            **msgspec.structs.asdict(where),
        )
        answer: list[Memory] = await self._link.ask("recall", params)
        return answer

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts, shape (len(texts), dimension), float16."""
        vectors = await self._link.ask("embed", protocol.Embed(texts=list(texts)))
        return (
            np.array(vectors, dtype=np.float16) if vectors else np.empty((0, (await self.info()).dimension), np.float16)
        )

    async def spawn_agent(self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False) -> AgentRecord:
        """Register a life of `lifetime` seconds; the connection holds its lease, and takes it up again if it breaks."""
        params = protocol.SpawnAgent(tenant_id=tenant_id, agent_id=agent_id, lifetime=lifetime, resume=resume)
        record: AgentRecord = await self._link.ask("spawn_agent", params)
        self._link.hold(tenant_id, agent_id, lifetime)
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
        batch = _episodes(episodes)
        params = protocol.SyncAgent(
            tenant_id=tenant_id, agent_id=agent_id, episodes=batch, after=after, limit=limit, ending=ending
        )
        delta: Delta = await self._link.ask("sync_agent", params, extra=_embedding_time(batch))
        if ending is not None:
            self._link.drop(tenant_id, agent_id)
        return delta

    async def forget(self, tenant_id: str, ids: Sequence[str], *, reason: str) -> int:
        """Forget episodes by id; returns how many there were."""
        if isinstance(ids, str):
            raise InvalidRequest(f"ids must be a sequence of episode ids, not {ids!r:.80}", field="ids")
        params = protocol.Forget(tenant_id=tenant_id, ids=list(ids), reason=reason)
        answer: int = await self._link.ask("forget", params)
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
        after: int = 0,
        limit: int | None = None,
    ) -> pl.DataFrame:
        """Live episodes as a frame, oldest first."""
        where = msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id))
        return await self._frame("episodes", protocol.Episodes(tenant_id=tenant_id, after=after, limit=limit, **where))

    async def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The agent registry as a frame."""
        return await self._frame("agents", protocol.Agents(tenant_id=tenant_id, status=status))

    async def tenants(self) -> pl.DataFrame:
        """The tenants as a frame, with their numbers."""
        return await self._frame("tenants", protocol.Params())

    async def changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """The change log as a frame, oldest first."""
        return await self._frame("changes", protocol.Changes(tenant_id=tenant_id, after=after, kind=kind, limit=limit))

    async def watch(
        self, after: int, *, tenant_id: str | None = None, limit: int = 1_000, wait: float = 20.0
    ) -> list[Change]:
        """The next changes after seq `after`; none if there is none within `wait` seconds."""
        params = protocol.Watch(tenant_id=tenant_id, after=after, limit=limit, wait=wait)
        answer: list[Change] = await self._link.ask("watch", params, extra=wait)
        return answer

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end.

        It goes on where it was after a lost connection, and raises `HubUnavailable` only when the hub stays away.
        """
        # Sent now and not at the first step of the iteration: what is put after this line must be seen.
        start = self._link.submit("info", protocol.Params()) if after is None else None
        return self._follow(tenant_id, after or 0, start)

    async def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""
        answer: Stats = await self._link.ask("stats", protocol.ForAnyTenant(tenant_id=tenant_id))
        return answer

    async def verify(self) -> VerifyReport:
        """Check that database, log and index agree."""
        answer: VerifyReport = await self._link.ask("verify", protocol.Params())
        return answer

    async def set_retention(self, tenant_id: str, policy: RetentionPolicy) -> int:
        """Store a tenant's retention policy; returns the seq."""
        answer: int = await self._link.ask("set_retention", _policy(tenant_id, policy))
        return answer

    async def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy."""
        return RetentionPolicy.from_json(await self._link.ask("retention", protocol.ForTenant(tenant_id=tenant_id)))

    async def preview_retention(self, tenant_id: str, policy: RetentionPolicy) -> RetentionPreview:
        """What a policy would do now; changes nothing."""
        answer: RetentionPreview = await self._link.ask("preview_retention", _policy(tenant_id, policy))
        return answer

    async def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all."""
        answer: RetentionReport = await self._link.ask("apply_retention", protocol.ForAnyTenant(tenant_id=tenant_id))
        return answer

    async def close(self) -> None:
        """Let go of the hub; what waits for an answer raises HubUnavailable. Idempotent."""
        await self._link.close()

    async def __aenter__(self) -> Self:
        """Connect, so that a wrong address or token shows here."""
        await self.info()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._link.closed else "connected" if self._link.connected else "not connected"
        return f"RemoteConnection({self.url!r}, {state})"

    async def _frame(self, method: str, params: protocol.Params) -> pl.DataFrame:
        return protocol.to_frame(await self._link.ask(method, params))

    async def _follow(self, tenant_id: str | None, after: int, start: int | None) -> AsyncIterator[Change]:
        if start is not None:
            after = (await self._link.outcome(start)).seq
        async for change in follow(self, tenant_id, after):
            yield change


def _episodes(episodes: Episode | Sequence[Episode]) -> list[Episode]:
    batch = [episodes] if isinstance(episodes, Episode) else list(episodes)
    for episode in batch:
        if not isinstance(episode, Episode):
            raise InvalidRequest(f"an Episode is wanted, not {type(episode).__name__} {episode!r:.80}")
    return batch


def _embedding_time(batch: list[Episode]) -> float:
    return SECONDS_PER_TEXT * sum(episode.vector is None for episode in batch)


def _policy(tenant_id: str, policy: RetentionPolicy) -> protocol.Policy:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidRequest(f"a retention policy is one of fedlab.retention, not {policy!r:.80}")
    return protocol.Policy(tenant_id=tenant_id, policy=policy.to_json())
