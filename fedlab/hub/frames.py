"""A hub in tables and numbers: frames, the log as values, counts, and whether everything agrees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedlab.clock import to_ms
from fedlab.errors import InvalidRequest
from fedlab.hub import reading
from fedlab.hub import verify as verifying
from fedlab.hub.core import HubCore
from fedlab.hub.values import Change, HubInfo, Stats, VerifyReport
from fedlab.recall import Filter, check_count, check_ids, check_text

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        ids: Sequence[str] | None = None,
        after: int = 0,
        limit: int | None = None,
        vectors: bool = False,
        sources: bool = False,
    ) -> pl.DataFrame:
        """Live episodes, oldest first: the document's columns, `seq`, `expires_at` and `metadata` (JSON).

        Args:
            tenant_id: Only this tenant's.
            since: Made at this time or later.
            until: Made before this time.
            task: Exactly this task.
            agent_id: Made by this agent.
            min_reward: Smallest reward.
            ids: Only these, for example the `sources` of another; at most 10,000.
            after: Stored after this seq.
            limit: Most rows.
            vectors: Whether there is a column `vector`.
            sources: Whether there is a column `sources`.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        where = Filter.of(min_reward, since, until, task, agent_id)
        after = check_count(after, "after")
        limit = None if limit is None else check_count(limit, "limit")
        ids = None if ids is None else check_ids(ids)
        with self._reading() as connection:
            frame = reading.episodes_frame(
                connection, tenant_id, where, ids=ids, after=after, limit=limit, hidden=self._erased.under_way
            )
            if vectors:
                frame = reading.with_vectors(connection, frame, self.dimension)
            return reading.with_sources(connection, frame) if sources else frame

    def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The registry: one row for each life, oldest first."""
        if tenant_id is not None:
            self._require(tenant_id)
        with self._reading() as connection:
            return reading.agents_frame(connection, tenant_id, status, self._erased.under_way)

    def tenants(self) -> pl.DataFrame:
        """The tenants with their numbers, by name."""
        with self._reading() as connection:
            return reading.tenants_frame(connection, self._columns.at_hand(connection))

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

    def tail(
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
        """The end of the change log, newest first: the columns of `changes`.

        Args:
            tenant_id: Of this tenant; of all if not given.
            kinds: Only changes of this kind, or these kinds.
            actor: Only what this one asked for.
            since: Made at this time or later.
            until: Made before this time.
            before: Only those before this seq: the smallest of one page gives the next.
            limit: Most rows.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        with self._reading() as connection:
            rows = reading.tail(
                connection,
                tenant_id=tenant_id,
                kinds=check_kinds(kinds),
                actor=check_text(actor, "actor"),
                since=None if since is None else to_ms(since),
                until=None if until is None else to_ms(until),
                before=None if before is None else check_count(before, "before"),
                limit=check_count(limit, "limit", most=100_000),
                hidden=self._erased.under_way,
            )
        return reading.changes_frame(rows)

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
            schema=int(self._identity["schema"]),
            opened_at=self._opened_at,
        )

    def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""
        if tenant_id is not None:
            self._require(tenant_id)
        with self._reading() as connection:
            numbers = reading.counts(connection, tenant_id, self._columns.at_hand(connection))
        return Stats(**numbers, bytes=self._directory.bytes() if tenant_id is None else 0)

    def verify(self) -> VerifyReport:
        """Read everything and check that database, log and index agree."""
        self._require_open()
        return verifying.verify(
            self._read_engine, self._indexes, self.dimension, lambda: self._writer.run(lambda _tx: None)
        )


def check_kinds(kinds: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Kinds of changes; None for all.

    Raises:
        InvalidRequest: If they are no texts, or more than there are.
    """
    if kinds is None:
        return None
    wanted = (kinds,) if isinstance(kinds, str) else tuple(kinds) if isinstance(kinds, Iterable) else (kinds,)
    if len(wanted) > 50 or not all(isinstance(each, str) for each in wanted):
        raise InvalidRequest(
            f"kinds are kinds of changes, episode_stored for example, not {kinds!r:.80}", field="kinds"
        )
    return wanted
