"""What was erased and must not come back, in RAM: the part of the ledger that every write has to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from fedlab.errors import AgentExpired, HubUnavailable
from fedlab.hub.log import name_hash
from fedlab.hub.schema import erasures

if TYPE_CHECKING:
    from collections.abc import Iterable

Scope = Literal["tenant", "agent", "episodes"]


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be erased, in clear: known only until it is done.

    Args:
        id: Of the erasure.
        seq: Of the change that began it: what was written later is not concerned.
        scope: A whole tenant, one agent of it, or some episodes.
        numbers: Of the episodes, where the scope is episodes.
    """

    id: str
    seq: int
    scope: Scope
    tenant_id: str
    agent_id: str | None = None
    numbers: list[int] = []


class _Last(NamedTuple):
    seq: int
    at: int


class Erased:
    """Whose memory was erased, by the hashes of names; false while nothing was."""

    def __init__(self) -> None:
        self.under_way: set[str] = set()
        """Tenants (in clear) whose erasure has begun and is not finished."""
        self._tenants: set[str] = set()
        self._lives: dict[tuple[str, str | None], _Last] = {}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    @classmethod
    def read(cls, connection: sa.Connection) -> Erased:
        """From the ledger."""
        erased = cls()
        for row in connection.execute(sa.select(erasures).order_by(erasures.c.seq)):
            erased._add(row.scope, row.tenant_hash, row.agent_hash, row.seq, row.at)
        return erased

    def begin(self, erasure: Erasure, at: int) -> None:
        """An erasure has begun, at ms UTC."""
        agent = None if erasure.agent_id is None else name_hash(erasure.agent_id)
        if erasure.scope == "tenant":
            self.under_way.add(erasure.tenant_id)
        self._add(erasure.scope, name_hash(erasure.tenant_id), agent, erasure.seq, at)

    def _add(self, scope: str, tenant: str, agent: str | None, seq: int, at: int) -> None:
        self._tenants.add(tenant)
        if scope != "episodes":
            self._lives[tenant, agent] = _Last(seq, at)

    def concerns(self, tenant_id: str) -> bool:
        """Whether anything of a tenant of this name was erased."""
        return name_hash(tenant_id) in self._tenants

    def whole(self, tenant_id: str) -> bool:
        """Whether a tenant of this name was erased as a whole."""
        return (name_hash(tenant_id), None) in self._lives

    def check_open(self, tenant_ids: Iterable[str]) -> None:
        """Raise HubUnavailable where a tenant's erasure is under way: its name can be used again afterwards."""
        for each in self.under_way.intersection(tenant_ids):
            raise HubUnavailable(f"tenant {each!r} is being erased: try again in a moment")

    def check_life(self, tenant_id: str, agent_id: str, after: int) -> None:
        """Whether an agent that knows the log up to `after` may go on.

        Raises:
            AgentExpired: If it, or its tenant, was erased since: its life is over.
        """
        last = self._last(tenant_id, agent_id)
        if last is not None and 0 < after < last.seq:
            raise self._over(tenant_id, agent_id)

    def check_resume(self, tenant_id: str, agent_id: str, now: int, lifetime_ms: int) -> None:
        """As `check_life`, for a life of which the registry knows nothing: it may have begun before an erasure."""
        last = self._last(tenant_id, agent_id)
        if last is not None and now - last.at < lifetime_ms:
            raise self._over(tenant_id, agent_id)

    def _last(self, tenant_id: str, agent_id: str) -> _Last | None:
        if not self._lives:
            return None
        tenant = name_hash(tenant_id)
        found = [self._lives.get((tenant, None)), self._lives.get((tenant, name_hash(agent_id)))]
        return max((each for each in found if each is not None), default=None)

    def _over(self, tenant_id: str, agent_id: str) -> AgentExpired:
        what = "its tenant" if self.whole(tenant_id) else "it"
        return AgentExpired(
            f"agent {agent_id!r} of tenant {tenant_id!r} is over: {what} was erased, and nothing of this life is taken",
            erased=True,
        )
