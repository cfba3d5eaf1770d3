"""Holds as a hub's methods: what is held stays, whatever a policy says, until it is released."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab._words import named
from fedlab.episode import check_note
from fedlab.errors import InvalidRequest, UnknownEpisode
from fedlab.hub import operations, reading
from fedlab.hub.core import HubCore
from fedlab.hub.forgetting import in_batches
from fedlab.hub.schema import episodes, listed
from fedlab.recall import Filter, check_ids
from fedlab.retention import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import polars as pl

    from fedlab.hub.log import Transaction
    from fedlab.retention import Ids


class HoldMethods(HubCore):
    """What a hub must not forget: an exemplar set, a legal hold."""

    def hold(
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
        actor: str = "local",
    ) -> int:
        """Exempt episodes from every policy, and from `forget`, until they are released.

        Args:
            tenant_id: Whose episodes.
            ids: Which.
            reason: Kept with each, and in the log; not empty.
            task: Which: those of this task. With several conditions, those that meet them all.
            agent_id: Which: those made by this agent.
            min_reward: Which: those with at least this reward.
            since: Which: those made at this time or later; 0 for all.
            until: Which: those made before this time.
            actor: Who asked.

        Returns:
            How many are held now that were not before.

        Raises:
            UnknownEpisode: If one of the ids is of no live episode of the tenant; then none is held.
        """
        where = Filter.of(min_reward, since, until, task, agent_id)
        return self._each(tenant_id, ids, where, operations.hold, reason, actor, strict=True)

    def release(
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
        actor: str = "local",
    ) -> int:
        """End holds: the arguments are those of `hold`; returns how many were held. What is not held is no error."""
        where = Filter.of(min_reward, since, until, task, agent_id)
        return self._each(tenant_id, ids, where, operations.release, reason, actor)

    def holds(self, tenant_id: str) -> pl.DataFrame:
        """What is held, oldest episode first, with the reason, who asked and when."""
        self._require(tenant_id)
        with self._reading() as connection:
            return reading.holds_frame(connection, tenant_id)

    def _each(
        self,
        tenant_id: str,
        ids: Sequence[str] | None,
        where: Filter,
        operation: Callable[..., int],
        reason: str,
        actor: str,
        *,
        strict: bool = False,
    ) -> int:
        self._require(tenant_id)
        check_note(reason, "reason")
        check_note(actor, "actor")
        wanted = () if ids is None else check_ids(ids)
        if ids is None and where.passes_all:
            raise InvalidRequest(
                "say which episodes: ids, task, agent_id, min_reward, since or until (since=0 for all)"
            )
        with self._reading() as connection:
            rows = Rows(connection, tenant_id, self.clock.now())
            if ids is None:
                chosen = rows.part(where).ids()
            else:
                numbers = operations.numbers_of(connection, tenant_id, wanted)
                known = listed(episodes.c.id, numbers.values())
                if strict:
                    _check_live(wanted, numbers, rows.ids(known))
                chosen = rows.part(where).ids(known)

        def work(tx: Transaction, part: Ids) -> int:
            tx.erased.check_open([tenant_id])
            return operation(tx, tenant_id, part.tolist(), reason=reason, actor=actor)

        return in_batches(self._writer, chosen, lambda part: lambda tx: work(tx, part))


def _check_live(wanted: Sequence[str], numbers: dict[str, int], live: Ids) -> None:
    there = set(live.tolist())
    if unknown := [uid for uid in wanted if numbers.get(uid) not in there]:
        raise UnknownEpisode(
            f"{named(unknown, 'id')}: of no episode of this tenant, or forgotten; nothing was held; spelled right?",
            ids=unknown,
        )
