"""Aggregates of a hub as its methods: what a dashboard draws, counted here, so that no client is sent every row."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from fedlab.clock import to_ms
from fedlab.errors import InvalidRequest
from fedlab.hub import growth as growing
from fedlab.hub import lineage as tracing
from fedlab.hub import lives as living
from fedlab.hub import rewards as rewarding
from fedlab.hub import samples
from fedlab.hub.core import HubCore
from fedlab.recall import Filter, check_count, check_ids

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
        since, until = _stretch(since, until)
        bins = check_count(bins, "bins", least=1, most=growing.MOST_BINS)
        top = check_count(top, "top", least=1, most=growing.MOST_GROUPS)
        return self._columns.answer(
            ("growth", tenant_id, since, until, bins, by, top),
            lambda _connection, columns: growing.growth(
                columns, tenant_id, since=since, until=until, bins=bins, by=by, top=top, tenants={*self._tenants}
            ),
        )

    def forgetting(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        bins: int = 100,
    ) -> pl.DataFrame:
        """What was forgotten when, and why: a row for each tenant, reason and stretch of time in which there was any.

        Args:
            tenant_id: As of `growth`.
            since: As of `growth`.
            until: As of `growth`.
            bins: As of `growth`.

        Returns:
            `time`, `tenant_id`, `reason` (the sentence in the log, which retention takes from the policy) and
            `forgotten` (episodes), and `last_at` (ms UTC) of the last of them. What was erased later is not there.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        since, until = _stretch(since, until)
        bins = check_count(bins, "bins", least=1, most=growing.MOST_BINS)
        return self._columns.answer(
            ("forgetting", tenant_id, since, until, bins),
            lambda _connection, columns: growing.forgetting(columns, tenant_id, since=since, until=until, bins=bins),
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

    def lives(
        self,
        tenant_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        limit: int = 2_000,
    ) -> pl.DataFrame:
        """The lives of agents with what came of them, the last that began first.

        Args:
            tenant_id: Of this tenant; of all if not given.
            since: Those that had not ended at this time.
            until: Those that had begun before this time.
            limit: Most lives.

        Returns:
            The columns of `agents` (times in ms UTC; `status` is alive, destroyed, expired or crashed), `session_id`,
            `lifetime` that was asked for and time `lived` (seconds; null while alive), and of the episodes stored
            between its beginning and that of the next life of the same agent: how many `episodes` are live, their
            `mean_reward`, and the `generation` of the first of them.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        since, until = None if since is None else to_ms(since), None if until is None else to_ms(until)
        limit = check_count(limit, "limit", most=living.MOST)
        return self._columns.answer(
            ("lives", tenant_id, since, until, limit),
            lambda connection, columns: living.lives(
                connection, columns, tenant_id, since=since, until=until, limit=limit, hidden=self._erased.under_way
            ),
        )

    def credit(self, tenant_id: str, *, by: tracing.By = "generation", limit: int = 1_000) -> pl.DataFrame:
        """How often live episodes of one generation, or agent, were made from episodes of another.

        Args:
            tenant_id: Whose episodes.
            by: "generation" or "agent".
            limit: Most pairs.

        Returns:
            A row for each pair, the largest count first: `source` and `target` (Int64 for generations, String for
            agents; null where it is not known: see `growth`), `count` of sources, the `episodes` of the target that
            have them, and their `mean_reward`.
        """
        self._require(tenant_id)
        if by not in get_args(tracing.By):
            raise InvalidRequest(f"by is one of {', '.join(get_args(tracing.By))}, not {by!r:.80}", field="by")
        limit = check_count(limit, "limit", most=tracing.MOST_LINKS)
        return self._columns.answer(
            ("credit", tenant_id, by, limit),
            lambda connection, columns: tracing.credit(connection, columns, tenant_id, by=by, limit=limit),
        )

    def lineage(self, tenant_id: str, episode_id: str, *, depth: int = 3, limit: int = 200) -> pl.DataFrame:
        """What an episode was made from and what was made from it: a row for each link, the nearest first.

        Args:
            tenant_id: Whose episode.
            episode_id: Live or forgotten: what a forgotten one was made from is forgotten with it.
            depth: How many links away.
            limit: Most links in each direction.

        Returns:
            `direction` (self, source or use), `depth`, `id`, `via` (the episode whose source, or use, it is), `status`
            (live, forgotten, or unknown where this tenant's log has nothing of it), `agent_id` (of what is forgotten:
            who stored it), the beginnings of `task` and `output` (200 characters), `reward`, `generation`,
            `created_at`, `stored_at`, `forgotten_at` (ms UTC) and the `reason` for which it was forgotten; null where
            it is not known.

        Raises:
            InvalidRequest: If there is no such episode and never was.
        """
        self._require(tenant_id)
        (episode_id,) = check_ids([episode_id])
        depth = check_count(depth, "depth", most=tracing.MAX_DEPTH)
        limit = check_count(limit, "limit", most=tracing.MOST_LINKS)
        with self._reading() as connection:
            return tracing.lineage(connection, tenant_id, episode_id, depth=depth, limit=limit)

    def sample(
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
        """A uniform sample of a tenant's live episodes, the oldest first; the same for the same seed.

        Args:
            tenant_id: Whose episodes.
            n: How many; all that match where they are fewer.
            seed: Of the draw that each episode has of its own: most of a sample stays when the memory grows.
            vectors: Whether there is a column `vector`.
            min_reward: Smallest reward.
            since: Made at this time or later.
            until: Made before this time.
            task: This task.
            agent_id: Made by this agent.

        Returns:
            `seq`, `id`, `tenant_id`, `agent_id`, the beginnings of `task` and `output` (200 characters), `reward`,
            `created_at` (ms UTC), `generation`, and `vector` (an array of Float32, in which the hub's float16 are
            exact).
        """
        self._require(tenant_id)
        n = check_count(n, "n", least=1, most=samples.MOST)
        seed = check_count(seed, "seed")
        where = Filter.of(min_reward, since, until, task, agent_id)
        return self._columns.answer(
            ("sample", tenant_id, n, seed, vectors, where),
            lambda connection, columns: samples.sample(
                connection,
                rewarding.select(columns, tenant_id, where),
                n,
                seed=seed,
                dimension=self.dimension,
                vectors=vectors,
            ),
        )

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


def _stretch(since: datetime | int | None, until: datetime | int | None) -> tuple[int | None, int | None]:
    """The ends of a stretch of time, ms UTC, in which there is any.

    Raises:
        InvalidRequest: If it ends before it begins.
    """
    since, until = None if since is None else to_ms(since), None if until is None else to_ms(until)
    if since is not None and until is not None and since >= until:
        raise InvalidRequest(f"since is before until, and {since} is not before {until} (ms UTC)", field="since")
    return since, until
