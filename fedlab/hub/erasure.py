"""Erasure as a hub's methods: a tenant, an agent or episodes, gone from every file, and the ledger that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab.episode import check_name, check_note
from fedlab.errors import InvalidRequest
from fedlab.hub import reading
from fedlab.hub.core import HubCore
from fedlab.hub.values import ERASURE
from fedlab.recall import check_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from fedlab.hub.values import ErasureReport


class ErasureMethods(HubCore):
    """What a hub erases for good."""

    def erase_tenant(
        self, tenant_id: str, *, reason: str = ERASURE, even_held: bool = False, actor: str = "local"
    ) -> ErasureReport:
        """Erase a tenant: no file of the hub holds anything of it when this returns.

        From its first moment no call shows the tenant, and its agents' lives are over. Other tenants go on
        meanwhile. If the hub is killed, the erasure is completed when it is next opened. The name may be used again
        afterwards; the erased ids may not.

        Args:
            tenant_id: Whose memory. Copies elsewhere (backups, exports) are as they were; a backup that is restored
                loses what was erased since.
            reason: Kept in the log with the actor, the number of the request perhaps; it must not name the tenant.
            even_held: Whether to erase held episodes too.
            actor: Who asked.

        Returns:
            The evidence.

        Raises:
            UnknownTenant: If there is none of this name.
            HeldEpisodes: If there are holds and `even_held` is false; nothing was erased.
            HubUnavailable: If something has been reading the database for a minute, so that its write-ahead log can
                not be emptied: all rows are deleted, and the rest is done by the next erasure or start.
        """
        self._check_erasure(tenant_id, reason, actor)
        return self._eraser.erase("tenant", tenant_id, reason=reason, actor=actor, even_held=even_held)

    def erase_agent(
        self, tenant_id: str, agent_id: str, *, reason: str = ERASURE, even_held: bool = False, actor: str = "local"
    ) -> ErasureReport:
        """Erase an agent: its episodes, its lives in the registry, and its name in the tenant's log.

        As `erase_tenant`. Episodes of other agents stay as they are, also where they name the agent or its episodes'
        ids; rows of the log about them lose actor and reason where those name the agent. To ask again does no harm.
        """
        self._check_erasure(tenant_id, reason, actor)
        check_name(agent_id, "agent_id")
        return self._eraser.erase(
            "agent", tenant_id, agent_id=agent_id, reason=reason, actor=actor, even_held=even_held
        )

    def erase_episodes(
        self,
        tenant_id: str,
        ids: Sequence[str],
        *,
        reason: str = ERASURE,
        even_held: bool = False,
        actor: str = "local",
    ) -> ErasureReport:
        """Erase episodes, live or forgotten, by their ids.

        As `erase_tenant`. Other episodes that name one of them as a source go on doing so: an episode never changes.
        The report names the ids that were erased before (to ask again does no harm) and those that were never here.

        Raises:
            UnknownEpisode: If the tenant never had any of them.
        """
        self._check_erasure(tenant_id, reason, actor)
        wanted = check_ids(ids, None)
        if not wanted:
            raise InvalidRequest("ids are empty: which episodes are to be erased?", field="ids")
        return self._eraser.erase("episodes", tenant_id, ids=wanted, reason=reason, actor=actor, even_held=even_held)

    def erasures(self) -> pl.DataFrame:
        """The ledger: one row for each erasure, oldest first, with hashes in the place of names."""
        with self._reading() as connection:
            return reading.erasures_frame(connection)

    def _check_erasure(self, tenant_id: str, reason: str, actor: str) -> None:
        self._require(tenant_id)
        check_note(reason, "reason")
        check_note(actor, "actor")
