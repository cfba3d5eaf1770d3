"""`HubConnection`: a hub from anywhere, asynchronous. One interface with two implementations,
`LocalConnection` (an embedded `Hub`, in `local.py`) and `RemoteConnection` (a socket, in `client.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Any, Self

    import numpy.typing as npt
    import polars as pl

    from fedlab.episode import Episode, Memory
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


@runtime_checkable
class HubConnection(Protocol):
    """What can be asked of a hub. Every method raises what the same method of `Hub` raises,
    and `HubUnavailable` where the hub cannot be reached in time.
    """

    async def info(self) -> HubInfo:
        """Who the hub is."""

    async def put(self, episodes: Episode | Sequence[Episode]) -> int:
        """Store episodes; durable when it returns. All or none. Returns the seq of the last change."""

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

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts, shape (len(texts), dimension), float16."""

    async def spawn_agent(self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False) -> AgentRecord:
        """Register a life of `lifetime` seconds. `resume` takes up the running life after a lost connection.

        The agent's lease is held by the connection: an agent whose connection is lost, and who does not
        resume, is marked `crashed` when the lease has run out.
        """

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
        """Push episodes and learn what others stored and what was forgotten after seq `after`.

        One transaction stores the episodes and, with `ending`, ends the agent's life.
        """

    async def forget(self, tenant_id: str, ids: Sequence[str], *, reason: str) -> int:
        """Forget episodes by id; returns how many there were. Ids that are not there are no error."""

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

    async def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The agent registry as a frame."""

    async def tenants(self) -> pl.DataFrame:
        """The tenants as a frame, with their numbers."""

    async def changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """The change log as a frame, oldest first."""

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end."""

    async def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""

    async def verify(self) -> VerifyReport:
        """Check that database, log and index agree."""

    async def set_retention(self, tenant_id: str, policy: RetentionPolicy) -> int:
        """Store a tenant's retention policy; returns the seq."""

    async def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy."""

    async def preview_retention(self, tenant_id: str, policy: RetentionPolicy) -> RetentionPreview:
        """What a policy would do now; changes nothing."""

    async def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all."""

    async def close(self) -> None:
        """Let go of the hub; idempotent."""

    async def __aenter__(self) -> Self:
        """Connect."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
