"""The agent registry as a hub's methods: lives begin, sync and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab.episode import Episode, check_name, check_note
from fedlab.errors import InvalidRequest
from fedlab.hub import operations, reading
from fedlab.hub.episodes import EpisodeMethods
from fedlab.hub.futures import done, then
from fedlab.hub.values import AgentRecord, Delta, Ending
from fedlab.recall import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from fedlab.episode import Vector
    from fedlab.hub.log import Transaction

MAX_LIFETIME = 10 * 365 * 86_400.0
"""Longest lifetime of an agent in seconds, whatever it asks for."""


class AgentMethods(EpisodeMethods):
    """What a hub does for ephemeral agents."""

    def spawn_agent(
        self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False, actor: str | None = None
    ) -> AgentRecord:
        """Register a life.

        Args:
            tenant_id: Made if it is new.
            agent_id: Unique among the living agents of the tenant.
            lifetime: Seconds.
            resume: Take up this agent's running life, after a lost connection.
            actor: Who asked; the agent itself if not given.

        Raises:
            IdConflict: If the agent lives already.
            QuotaExceeded: If the tenant has as many living agents as it may have.
        """
        return self.spawn_agent_soon(tenant_id, agent_id, lifetime=lifetime, resume=resume, actor=actor).result()

    def spawn_agent_soon(
        self,
        tenant_id: str,
        agent_id: str,
        *,
        lifetime: float,
        resume: bool = False,
        nonce: str = "",
        actor: str | None = None,
        wake: Callable[[], None] | None = None,
    ) -> Future[AgentRecord]:
        """As `spawn_agent`, at once; `nonce` is the spawn's own: another's resume is refused."""
        check_name(tenant_id, "tenant_id")
        check_name(agent_id, "agent_id")
        number = isinstance(lifetime, (int, float)) and not isinstance(lifetime, bool)
        if not number or not 0 < lifetime <= MAX_LIFETIME:
            raise InvalidRequest(f"lifetime is a positive number of seconds, not {lifetime!r:.40}", field="lifetime")
        if actor is not None:
            check_note(actor, "actor")

        def spawn(tx: Transaction) -> AgentRecord:
            self._leases.check_room(tenant_id, agent_id, tx.granted)
            mine = resume and self._leases.is_life(tenant_id, agent_id, nonce)
            return operations.spawn(
                tx, tenant_id, agent_id, lifetime_ms=round(lifetime * 1000), resume=mine, actor=actor or agent_id
            )

        def granted(record: AgentRecord) -> Future[AgentRecord]:
            self._leases.grant(tenant_id, agent_id, record.expires_at, nonce)
            return done(record)

        return then(self._writer.submit(spawn, wake=wake), granted)

    def sync_agent(
        self,
        tenant_id: str,
        agent_id: str,
        episodes: Sequence[Episode] = (),
        *,
        after: int,
        limit: int = 100,
        ending: Ending | None = None,
        recalled: int = 0,
    ) -> Delta:
        """Push an agent's episodes and tell it what changed since `after`.

        Args:
            tenant_id: The agent's tenant.
            agent_id: The agent; its own episodes are not sent back.
            episodes: To store, as with `put`, all or none.
            after: The seq up to which the agent knows the log.
            limit: Most new episodes to send (the newest); recall finds the others.
            ending: Ends the life in the same transaction; then nothing is sent.
            recalled: Episodes the agent was given since it last said so, for the registry.
        """
        return self.sync_agent_soon(
            tenant_id, agent_id, episodes, after=after, limit=limit, ending=ending, recalled=recalled
        ).result()

    def sync_agent_soon(
        self,
        tenant_id: str,
        agent_id: str,
        episodes: Sequence[Episode] = (),
        *,
        after: int,
        limit: int = 100,
        ending: Ending | None = None,
        recalled: int = 0,
        nonce: str = "",
        epoch: int = 0,
        wake: Callable[[], None] | None = None,
    ) -> Future[Delta]:
        """As `sync_agent`, at once; the delta is read in whatever thread completes the commit.

        `nonce` is the spawn's own: a late goodbye does not end the life of a successor with the same id. `epoch` is the
        hub's when `after` was its seq: in another one `after` says nothing, and the delta is empty but for its own.
        """
        check_name(tenant_id, "tenant_id")
        check_name(agent_id, "agent_id")
        after, limit = check_count(after, "after"), check_count(limit, "limit")
        if epoch not in (0, self._epoch):
            after = 1  # any erasure may have come since
        self._erased.check_life(tenant_id, agent_id, after)
        self._require(tenant_id)
        recalled = check_count(recalled, "recalled")
        batch = self._checked(episodes)
        foreign = {each.tenant_id for each in batch} - {tenant_id}
        if foreign:
            raise InvalidRequest(f"agent {agent_id!r} of {tenant_id!r} pushed an episode of {min(foreign)!r}")
        if not batch and not ending and not recalled:
            return done(self._delta(tenant_id, agent_id, after, limit, epoch))

        mine = False  # not where a namesake lives by now

        def sync(tx: Transaction, vectors: list[Vector]) -> Delta | None:
            nonlocal mine
            tx.erased.check_life(tenant_id, agent_id, after)
            quiet = tenant_id not in tx.touched and after >= self._changed_at.get(tenant_id, tx.head.seq)
            new = operations.put(tx, batch, vectors, agent_id)
            fresh = bool(nonce) and (tenant_id, agent_id) in tx.granted  # who asks now heard of its own spawn before
            mine = not fresh and self._leases.is_life(tenant_id, agent_id, nonce)
            if mine and ending is None:
                operations.count_sync(tx, tenant_id, agent_id, pushed=new, pulled=recalled)
            elif mine and ending is not None:
                operations.end(tx, tenant_id, agent_id, ending, actor=agent_id, pushed=new, pulled=recalled)
            # Where nothing but this push is new there is nothing to tell, and no need to read.
            told = quiet and epoch in (0, self._epoch)
            return Delta(seq=tx.head.seq, stored=[], forgotten=[]) if told or ending else None

        def answer(nothing_new: Delta | None) -> Future[Delta]:
            if mine and ending is not None:
                self._leases.end(tenant_id, agent_id)
            return done(nothing_new or self._delta(tenant_id, agent_id, after, limit, epoch))

        committed = self._embedded(
            batch, lambda vectors: self._writer.submit(lambda tx: sync(tx, vectors), weight=len(batch) + 1, wake=wake)
        )
        return then(committed, answer)

    def release_agent(self, tenant_id: str, agent_id: str) -> None:
        """The agent's connection is gone: from now on its lease runs."""
        self._require_open()
        self._leases.release(tenant_id, agent_id)

    def expire_leases(self) -> list[AgentRecord]:
        """Mark agents whose lease has ended as crashed; returns them."""
        self._require_open()
        if not self._leases.over():
            return []

        def expire(tx: Transaction) -> list[AgentRecord]:
            # Looked up again: an agent may have come back while this waited for its turn.
            ended = [
                operations.end(tx, *key, "crashed", actor="hub") for key in self._leases.over() if key not in tx.granted
            ]
            return [record for record in ended if record is not None]

        crashed = self._writer.run(expire)
        for record in crashed:
            self._leases.end(record.tenant_id, record.agent_id)
        return crashed

    @property
    def _epoch(self) -> int:
        return int(self._identity["epoch"])

    def _delta(self, tenant_id: str, agent_id: str, after: int, limit: int, epoch: int) -> Delta:
        if epoch not in (0, self._epoch):
            return Delta(seq=self._writer.head.seq, stored=[], forgotten=[], epoch=self._epoch)
        with self._reading() as connection:
            return reading.read_delta(connection, tenant_id, agent_id, after=after, limit=limit)
