"""Aggregates of a hub as its methods: what a dashboard draws, counted here, so that no client is sent every row."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from fedlab.clock import to_ms
from fedlab.errors import InvalidRequest
from fedlab.hub import growth as growing
from fedlab.hub import rewards as rewarding
from fedlab.hub.core import HubCore
from fedlab.recall import Filter, check_count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import polars as pl


class AggregateMethods(HubCore):
    """What a hub counts.

    In these frames `time` is a UTC datetime and the start of a stretch of time; other times are ms UTC, as
    everywhere. A `generation` is what episodes have under that name in their metadata, if it is a whole number; tasks
    are told apart by their first 200 characters. Asked again, the hub counts only if it has changed.
    """

    def growth(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        bins: int = 100,
        by: growing.By = "tenant",
        top: int = 20,
    ) -> pl.DataFrame:
        """How the memory grew: a row for each group and each of at most `bins` equal stretches of time.

        Args:
            tenant_id: Of this tenant; of all if not given.
            since: Where the first stretch begins; at the first change if not given.
            until: Where the last one ends; with the last change if not given.
            bins: How many stretches, of whole milliseconds.
            by: "tenant", "agent" (needs a tenant) or "generation".
            top: So many groups are told apart, those that stored most; the rest are one group, null.

        Returns:
            `time`, `tenant_id`, `agent_id` or `generation`, and episodes: `stored`, `forgotten` and `erased` in the
            stretch, `live` at its end; `bytes` (of texts and vectors) of those of the stored that are live now. Of
            what is forgotten the hub knows who stored it, and no generation (null); of what is erased only the tenant.
            What was forgotten first and erased later counts as erased.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        if by not in get_args(growing.By):
            raise InvalidRequest(f"by is one of {', '.join(get_args(growing.By))}, not {by!r:.80}", field="by")
        if by == "agent" and tenant_id is None:
            raise InvalidRequest("agents are those of one tenant: name it", field="tenant_id")
        since, until = None if since is None else to_ms(since), None if until is None else to_ms(until)
        bins = check_count(bins, "bins", least=1, most=growing.MOST_BINS)
        top = check_count(top, "top", least=1, most=growing.MOST_GROUPS)
        return self._columns.answer(
            ("growth", tenant_id, since, until, bins, by, top),
            lambda _connection, columns: growing.growth(
                columns, tenant_id, since=since, until=until, bins=bins, by=by, top=top, tenants={*self._tenants}
            ),
        )

    def rewards(
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
        """How the rewards of live episodes are distributed: a row for each group and each of `bins` equal bins.

        Args:
            tenant_id: Of this tenant; of all if not given.
            by: Some of "tenant", "task", "agent", "generation" and "time".
            bins: From the smallest reward that was found to the largest, the same for all groups.
            periods: Equal stretches of time, from `since` or the first episode to `until` or the last.
            limit: Most groups: those with most episodes.
            min_reward: Smallest reward.
            since: Made at this time or later.
            until: Made before this time.
            task: This task.
            agent_id: Made by this agent.

        Returns:
            What `by` names (`tenant_id`, `task`, `agent_id`, `generation`, `time`), `bin_low` (inclusive), `bin_high`
            (exclusive, but for the last) and `count`.
        """
        bins = check_count(bins, "bins", least=1, most=rewarding.MOST_BINS)
        return self._rewards(
            "rewards", tenant_id, by, periods, limit, Filter.of(min_reward, since, until, task, agent_id), bins=bins
        )

    def reward_summary(
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
        """The rewards of live episodes in numbers, a row for each group; by "generation" it is the learning curve.

        The arguments are those of `rewards`.

        Returns:
            What `by` names, `n` (episodes), `mean`, `std` (of a sample; null for one episode), `min`, `q25`,
            `median`, `q75` (interpolated) and `max`.
        """
        where = Filter.of(min_reward, since, until, task, agent_id)
        return self._rewards("reward_summary", tenant_id, by, periods, limit, where)

    def _rewards(
        self,
        what: str,
        tenant_id: str | None,
        by: str | Sequence[str],
        periods: int,
        limit: int,
        where: Filter,
        **more: int,
    ) -> pl.DataFrame:
        if tenant_id is not None:
            self._require(tenant_id)
        groups = rewarding.check_by(by)
        more["periods"] = check_count(periods, "periods", least=1, most=1_000)
        more["limit"] = check_count(limit, "limit", least=1, most=rewarding.MOST_GROUPS)
        make = rewarding.histogram if what == "rewards" else rewarding.summary
        return self._columns.answer(
            (what, tenant_id, groups, where, *more.values()),
            lambda _connection, columns: make(rewarding.select(columns, tenant_id, where), where, by=groups, **more),
        )
