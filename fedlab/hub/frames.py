"""A hub in tables and numbers: frames, the log as values, counts, and whether everything agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab.hub import reading
from fedlab.hub import verify as verifying
from fedlab.hub.core import HubCore
from fedlab.hub.values import Change, HubInfo, Stats, VerifyReport
from fedlab.recall import Filter, check_count

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl


class FrameMethods(HubCore):
    """What a hub tells about itself."""

    def episodes(
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
        """Live episodes, oldest first: the document's columns, `seq`, `expires_at` and `metadata` (JSON).

        Args:
            tenant_id: Only this tenant's.
            since: Made at this time or later.
            until: Made before this time.
            task: Exactly this task.
            agent_id: Made by this agent.
            min_reward: Smallest reward.
            after: Stored after this seq.
            limit: Most rows.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        where = Filter.of(min_reward, since, until, task, agent_id)
        after = check_count(after, "after")
        limit = None if limit is None else check_count(limit, "limit")
        with self._reading() as connection:
            return reading.episodes_frame(
                connection, tenant_id, where, after=after, limit=limit, hidden=self._erased.under_way
            )

    def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The registry: one row for each life, oldest first."""
        if tenant_id is not None:
            self._require(tenant_id)
        with self._reading() as connection:
            return reading.agents_frame(connection, tenant_id, status, self._erased.under_way)

    def tenants(self) -> pl.DataFrame:
        """The tenants with their numbers, by name."""
        with self._reading() as connection:
            return reading.tenants_frame(connection)

    def changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """The change log, oldest first."""
        return reading.changes_frame(self.read_changes(after, tenant_id=tenant_id, kind=kind, limit=limit))

    def read_changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = 1_000
    ) -> list[Change]:
        """The change log after a seq, as values: what a consumer of the log reads."""
        if tenant_id is not None:
            self._require(tenant_id)
        after = check_count(after, "after")
        limit = None if limit is None else check_count(limit, "limit")
        with self._reading() as connection:
            return reading.read_changes(
                connection, after, tenant_id=tenant_id, kind=kind, limit=limit, hidden=self._erased.under_way
            )

    def info(self) -> HubInfo:
        """Who the hub is."""
        from fedlab import __version__  # the package imports this module lazily

        self._require_open()
        return HubInfo(
            hub_id=self._identity["hub_id"],
            epoch=int(self._identity["epoch"]),
            seq=self._writer.head.seq,
            embedder=self._identity["embedder"],
            dimension=self.dimension,
            version=__version__,
        )

    def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""
        if tenant_id is not None:
            self._require(tenant_id)
        with self._reading() as connection:
            numbers = reading.counts(connection, tenant_id)
        return Stats(**numbers, bytes=self._directory.bytes() if tenant_id is None else 0)

    def verify(self) -> VerifyReport:
        """Read everything and check that database, log and index agree."""
        self._require_open()
        return verifying.verify(
            self._read_engine, self._indexes, self.dimension, lambda: self._writer.run(lambda _tx: None)
        )
