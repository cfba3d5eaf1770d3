"""Until when each living agent may be silent. Leases live in RAM: after a restart every agent has one lease's
time to come back, and the registry in the database says who was alive.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fedlab._words import counted
from fedlab.errors import InvalidRequest, QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedlab.clock import Clock

LONGEST = 1e9
"""Seconds."""


class Leases:
    """The leases of the living agents; changed in the writer thread, but for `release`.

    Args:
        clock: Tells when a lease is over.
        seconds: Length of a lease after a lost connection.
        most: Living agents that one tenant may have.
        alive: Tenant and agent of those who were alive when the hub was opened.
    """

    def __init__(self, clock: Clock, seconds: float, most: int, alive: Iterable[tuple[str, str]]) -> None:
        if not (isinstance(seconds, (int, float)) and 0 < seconds <= LONGEST):
            raise InvalidRequest(f"lease is a positive number of seconds, up to 30 years, not {seconds!r:.40}")
        if not (isinstance(most, int) and most > 0):
            raise InvalidRequest(f"max_agents_per_tenant is a positive whole number, not {most!r:.40}")
        self._clock = clock
        self._milliseconds = round(seconds * 1000)
        self._most = most
        until = clock.now() + self._milliseconds
        self._until = dict.fromkeys(alive, until)
        self._nonces: dict[tuple[str, str], str] = {}
        self._alive = Counter(tenant_id for tenant_id, _ in self._until)

    def check_room(self, tenant_id: str, agent_id: str, granted: set[tuple[str, str]]) -> None:
        """Whether the tenant may have this agent too, beside those who get a lease in the same transaction.

        Raises:
            QuotaExceeded: If it may not.
        """
        alive = self._alive[tenant_id] + sum(key[0] == tenant_id and key not in self._until for key in granted)
        if alive >= self._most and (tenant_id, agent_id) not in self._until:
            raise QuotaExceeded(
                f"tenant {tenant_id!r} has {counted(alive, 'living agent')}, as many as"
                f" max_agents_per_tenant={self._most:,} allows"
            )

    def is_life(self, tenant_id: str, agent_id: str, nonce: str) -> bool:
        """Whether the life of this agent, if there is one, can be the one that began with `nonce`.

        A client that did not hear whether its spawn, or its goodbye, arrived repeats it, and must not slip into the
        life of another agent of the same id, or end it. After a restart no nonce is known until agents have resumed,
        and everyone is believed: at worst a life counts as destroyed that goes on in a new entry of the registry when
        its agent resumes; no episode is lost by it.
        """
        held = self._nonces.get((tenant_id, agent_id))
        return not held or not nonce or held == nonce

    def grant(self, tenant_id: str, agent_id: str, expires_at: int, nonce: str = "") -> None:
        """A life began or was resumed: it may be silent to its end, and a little longer."""
        if nonce:
            self._nonces[tenant_id, agent_id] = nonce
        self._alive[tenant_id] += (tenant_id, agent_id) not in self._until
        self._until[tenant_id, agent_id] = expires_at + self._milliseconds

    def end(self, tenant_id: str, agent_id: str) -> None:
        """A life ended."""
        self._nonces.pop((tenant_id, agent_id), None)
        if self._until.pop((tenant_id, agent_id), None) is not None:
            self._alive[tenant_id] -= 1

    def end_all(self, tenant_id: str, agent_id: str | None) -> None:
        """The lives of an agent, or of all agents of a tenant, were erased."""
        for key in [key for key in self._until if key[0] == tenant_id and agent_id in (None, key[1])]:
            self.end(*key)

    def release(self, tenant_id: str, agent_id: str) -> None:
        """The agent's connection is gone: its lease runs from now."""
        if (tenant_id, agent_id) in self._until:
            self._until[tenant_id, agent_id] = self._clock.now() + self._milliseconds

    def over(self) -> list[tuple[str, str]]:
        """Those whose lease has ended."""
        now = self._clock.now()
        return [key for key, until in list(self._until.items()) if until <= now]
