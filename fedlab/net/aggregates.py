"""The aggregates of a hub from anywhere: the methods of `fedlab.hub.aggregates`, and `tail`, asynchronous."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fedlab.clock import to_ms
from fedlab.hub.frames import check_kinds
from fedlab.hub.rewards import check_by
from fedlab.net import protocol
from fedlab.recall import Filter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import polars as pl

    from fedlab.hub.growth import By


class AggregateCalls(abc.ABC):
    """What a hub counts for those who look at it; `Hub` says what each frame holds."""

    @abc.abstractmethod
    async def call(self, method: str, params: protocol.Params) -> Any:
        """The answer to a request."""

    async def growth(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        bins: int = 100,
        by: By = "tenant",
        top: int = 20,
    ) -> pl.DataFrame:
        """How the memory grew: episodes stored, forgotten, erased and live, by group and stretch of time."""
        params = protocol.Growth(tenant_id=tenant_id, since=_time(since), until=_time(until), bins=bins, by=by, top=top)
        frame: pl.DataFrame = await self.call("growth", params)
        return frame

    async def forgetting(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        bins: int = 100,
    ) -> pl.DataFrame:
        """What was forgotten when, and why."""
        params = protocol.Forgetting(tenant_id=tenant_id, since=_time(since), until=_time(until), bins=bins)
        frame: pl.DataFrame = await self.call("forgetting", params)
        return frame

    async def rewards(
        self,
        tenant_id: str | None = None,
        *,
        by: str | Sequence[str] = ("tenant",),
        bins: int = 40,
        periods: int = 20,
        limit: int = 1_000,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
    ) -> pl.DataFrame:
        """How the rewards of live episodes are distributed: a histogram of each group."""
        where = msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id))
        groups = check_by(by)
        params = protocol.Rewards(tenant_id=tenant_id, by=groups, bins=bins, periods=periods, limit=limit, **where)
        frame: pl.DataFrame = await self.call("rewards", params)
        return frame

    async def reward_summary(
        self,
        tenant_id: str | None = None,
        *,
        by: str | Sequence[str] = ("tenant",),
        periods: int = 20,
        limit: int = 1_000,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
    ) -> pl.DataFrame:
        """The rewards of live episodes in numbers, a row for each group; by "generation" it is the learning curve."""
        where = msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id))
        groups = check_by(by)
        params = protocol.RewardSummary(tenant_id=tenant_id, by=groups, periods=periods, limit=limit, **where)
        frame: pl.DataFrame = await self.call("reward_summary", params)
        return frame

    async def lives(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        limit: int = 2_000,
    ) -> pl.DataFrame:
        """The lives of agents with what came of them, the last that began first."""
        params = protocol.Lives(tenant_id=tenant_id, since=_time(since), until=_time(until), limit=limit)
        frame: pl.DataFrame = await self.call("lives", params)
        return frame

    async def credit(
        self, tenant_id: str, *, by: Literal["generation", "agent"] = "generation", limit: int = 1_000
    ) -> pl.DataFrame:
        """How often live episodes of one generation, or agent, were made from episodes of another."""
        frame: pl.DataFrame = await self.call("credit", protocol.Credit(tenant_id=tenant_id, by=by, limit=limit))
        return frame

    async def lineage(self, tenant_id: str, episode_id: str, *, depth: int = 3, limit: int = 200) -> pl.DataFrame:
        """What an episode was made from and what was made from it: a row for each link, the nearest first."""
        params = protocol.Lineage(tenant_id=tenant_id, episode_id=episode_id, depth=depth, limit=limit)
        frame: pl.DataFrame = await self.call("lineage", params)
        return frame

    async def sample(
        self,
        tenant_id: str,
        n: int = 2_000,
        *,
        seed: int = 0,
        vectors: bool = True,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
    ) -> pl.DataFrame:
        """A uniform sample of a tenant's live episodes, with vectors; the same for the same seed."""
        where = msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id))
        params = protocol.Sample(tenant_id=tenant_id, n=n, seed=seed, vectors=vectors, **where)
        frame: pl.DataFrame = await self.call("sample", params)
        return frame

    async def tail(
        self,
        tenant_id: str | None = None,
        *,
        kinds: str | Sequence[str] | None = None,
        actor: str | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> pl.DataFrame:
        """The end of the change log as a frame, newest first."""
        params = protocol.Tail(
            tenant_id=tenant_id,
            kinds=check_kinds(kinds),
            actor=actor,
            since=_time(since),
            until=_time(until),
            before=before,
            limit=limit,
        )
        frame: pl.DataFrame = await self.call("tail", params)
        return frame


def _time(moment: datetime | int | None) -> int | None:
    return None if moment is None else to_ms(moment)
