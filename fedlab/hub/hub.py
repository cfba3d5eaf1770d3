"""The `Hub`: the persistent memory of many tenants, embedded. It checks what it is asked, hands writes to
the writer and answers reads; how things are stored, indexed and read is in the modules beside it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from fedlab.clock import SystemClock
from fedlab.embedding import EmbeddingService, get_embedder
from fedlab.episode import Episode, Memory, check_name, check_note, to_vector
from fedlab.errors import HubUnavailable, InvalidRequest, UnknownTenant
from fedlab.hub import forgetting, operations, reading, schema
from fedlab.hub import verify as verifying
from fedlab.hub.directory import Directory, check_identity, open_database, read_head, read_identity, write_identity
from fedlab.hub.futures import done, then
from fedlab.hub.indexes import Indexes
from fedlab.hub.leases import Leases
from fedlab.hub.values import (
    AgentRecord,
    Change,
    Delta,
    Ending,
    HubInfo,
    RetentionPreview,
    RetentionReport,
    Stats,
    VerifyReport,
)
from fedlab.hub.writer import Writer
from fedlab.recall import SIMILARITY, Filter, RecallPolicy, check_count, check_k
from fedlab.retention import RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from fedlab.clock import Clock
    from fedlab.embedding import Embedder
    from fedlab.episode import Vector
    from fedlab.hub.log import Transaction
    from fedlab.hub.schema import Durability

logger = logging.getLogger("fedlab.hub")

MAX_LIFETIME = 10 * 365 * 86_400.0
"""Longest lifetime of an agent in seconds, whatever it asks for."""


class Hub:
    """Keeps every episode of every tenant until someone asks for it to be forgotten.

    All methods are thread-safe, and what was written before a call began is seen by it. Writes are durable
    when they return; `*_soon` gives a future instead, so that many callers can share one fsync.

    Args:
        path: A directory (made if it is not there), or ":memory:" for a hub that is gone when it is closed.
        clock: Gives every change its time.
        embedder: Makes vectors of texts: an `Embedder`, or a name; MiniLM for a new hub. An existing hub
            opens with the one it was made with.
        durability: "full" survives loss of power, "normal" all but that, "off" is for throw-away runs.
        max_agents_per_tenant: How many may be alive at once.
        lease: Seconds after which an agent whose connection is lost counts as crashed.

    Raises:
        HubLocked: If another process has the directory open.
        IncompatibleHub: If it was made with another embedder or by another version.
        CorruptHub: If its database is damaged.

    >>> with Hub(":memory:", embedder="hashing") as hub:
    ...     seq = hub.put(Episode(tenant_id="acme", agent_id="a1", task="add", input="1+1", output="2", reward=1))
    ...     [memory.output for memory in hub.recall("acme", "add 1+1", k=1)]
    ['2']
    """

    def __init__(
        self,
        path: str | Path,
        clock: Clock | None = None,
        embedder: Embedder | str | None = None,
        durability: Durability = "full",
        *,
        max_agents_per_tenant: int = 10_000,
        lease: float = 30.0,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._directory = Directory(path)
        self.path = self._directory.path
        self._listeners: list[Callable[[int], object]] = []
        self._changed_at: dict[str, int] = {}
        self._closing = threading.Lock()
        self.closed = False
        with contextlib.ExitStack() as undo:
            undo.callback(self._directory.close)
            if self._directory.in_memory:
                durability = "off"
            self._write_engine = open_database(self._directory, durability)
            undo.callback(self._write_engine.dispose)
            self._read_engine = schema.open_engine(self._directory.database, durability, writer=False)
            undo.callback(self._read_engine.dispose)
            self._identity = self._identify(embedder)
            self.dimension = int(self._identity["dimension"])
            self._embedding = EmbeddingService(self.embedder, self.path / "embeddings.db")
            undo.callback(self._embedding.close)
            self._indexes = Indexes(self._read_engine, self.path / "index", self._identity["embedder"], self.dimension)
            self._start(lease, max_agents_per_tenant)
            undo.pop_all()

    def _identify(self, embedder: Embedder | str | None) -> dict[str, str]:
        held = read_identity(self._write_engine)
        if held:
            check_identity(held, embedder, self.path)
        self.embedder: Embedder = get_embedder(held["embedder"] if held and embedder is None else embedder)
        return held or write_identity(self._write_engine, self.embedder)

    def _start(self, lease: float, max_agents_per_tenant: int) -> None:
        head = read_head(self._write_engine, self._directory.database)
        with self._reading() as connection:
            self._tenants: set[str] = set(connection.scalars(sa.select(schema.tenants.c.tenant_id)))
            alive = reading.living_agents(connection)
        self._leases = Leases(self.clock, lease, max_agents_per_tenant, alive)
        self._writer = Writer(self._write_engine, self.clock, head, self._tenants, self._committed)
        if head.seq == 0:
            hub_id = self._identity["hub_id"]
            self._writer.run(lambda tx: tx.log("hub_created", "", hub_id, "hub"))

    # --- episodes ------------------------------------------------------------------------------------------

    def put(self, episodes: Episode | Sequence[Episode], *, actor: str = "local") -> int:
        """Store episodes, all or none; durable when it returns.

        An episode that is there already, with the same id and content, is not stored twice and is no error.

        Args:
            episodes: One or many, of any tenants; those without a vector are embedded.
            actor: Who asked; kept in the log.

        Returns:
            The seq of the last change.

        Raises:
            IdConflict: If an id was stored with other content, or was stored and forgotten.
            InvalidVector: If a vector has another dimension than the hub's.
        """
        batch = self._checked(episodes, actor)
        if any(episode.vector is None for episode in batch):
            return self.put_soon(batch, actor=actor).result()
        vectors = [episode.vector for episode in batch if episode.vector is not None]
        return self._writer.run(lambda tx: operations.put(tx, batch, vectors, actor), weight=len(batch))

    def put_soon(
        self, episodes: Episode | Sequence[Episode], *, actor: str = "local", wake: Callable[[], None] | None = None
    ) -> Future[int]:
        """As `put`, at once: the future is done when the episodes are durable.

        `wake`, here and in the other methods of this kind: see `commit_waiting`.
        """
        batch = self._checked(episodes, actor)
        if not batch:
            return done(self._writer.head.seq)
        return self._embedded(
            batch,
            lambda vectors: self._writer.submit(
                lambda tx: operations.put(tx, batch, vectors, actor), weight=len(batch), wake=wake
            ),
        )

    def commit_waiting(self, most: int) -> None:
        """Commit, in this thread, what was asked with a `wake`, which only says that there is something to commit.

        Args:
            most: About how many episodes; the writer's thread does the rest.
        """
        self._writer.commit_waiting(most)

    def recall(
        self,
        tenant_id: str,
        query: str | Sequence[float] | npt.NDArray[Any] | None,
        k: int = 10,
        *,
        policy: RecallPolicy | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
        vectors: bool = False,
    ) -> list[Memory]:
        """The k best memories of a tenant; never fewer while k match the filters.

        Args:
            tenant_id: Whose memory.
            query: A text, or a vector of shape (dimension,); None where the policy needs no similarity.
            k: How many.
            policy: Ranks them; by similarity if not given.
            min_reward: Smallest reward.
            since: Made at this time or later.
            until: Made before this time.
            task: Exactly this task.
            agent_id: Made by this agent.
            vectors: Whether the episodes come with their vectors.

        Raises:
            UnknownTenant: If nothing was ever stored for the tenant.
        """
        self._require(tenant_id)
        k = check_k(k)
        if policy is None:
            policy = SIMILARITY
        elif not isinstance(policy, RecallPolicy):
            raise InvalidRequest(f"policy must be a RecallPolicy, not {type(policy).__name__} {policy!r:.80}")
        where = Filter.of(min_reward, since, until, task, agent_id)
        vector = self._query_vector(query, policy)
        index = self._indexes.get(tenant_id)
        gone = 0
        while True:
            hits = index.search(vector, k + gone, policy, where, self.clock.now())
            with self._reading() as connection:
                found = reading.read_episodes(connection, [hit.id for hit in hits], with_vectors=vectors)
            live = [Memory(found[hit.id], hit.similarity, hit.score) for hit in hits if hit.id in found]
            # What was forgotten between search and read leaves a gap: look further, by as much.
            if len(live) >= k or len(hits) < k + gone:
                return live[:k]
            gone = len(hits) - len(live)

    def is_loaded(self, tenant_id: str) -> bool:
        """Whether the tenant's index is in memory; if not, the next recall reads it."""
        return self._indexes.is_loaded(tenant_id)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Vectors of texts, shape (len(texts), dimension); a text is embedded once."""
        return self.embed_soon(texts).result()

    def embed_soon(self, texts: Sequence[str]) -> Future[npt.NDArray[np.float16]]:
        """As `embed`, at once: requests that wait share a batch of the model."""
        self._require_open()
        return self._embedding.submit(texts)

    def forget(self, tenant_id: str, ids: Sequence[str], *, reason: str, actor: str = "local") -> int:
        """Remove episodes and their vectors; the log keeps who did it, when and why.

        Args:
            tenant_id: Whose episodes.
            ids: Ids that are not there are no error.
            reason: Kept in the log; not empty.
            actor: Who asked.

        Returns:
            How many were there.
        """
        self._require(tenant_id)
        wanted = [] if isinstance(ids, str) or not isinstance(ids, Iterable) else list(ids)
        if not all(isinstance(each, str) for each in wanted) or (not wanted and not isinstance(ids, Sized)):
            raise InvalidRequest(f"ids must be episode ids, not {ids!r:.80}", field="ids")
        if isinstance(ids, str):
            raise InvalidRequest(f"ids must be a sequence of ids: give [{ids!r:.80}]", field="ids")
        check_note(reason, "reason")
        check_note(actor, "actor")
        return self._writer.run(
            lambda tx: operations.forget(tx, tenant_id, wanted, reason=reason, actor=actor), len(wanted) + 1
        )

    # --- agents --------------------------------------------------------------------------------------------

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
        actor: str | None = None,
        wake: Callable[[], None] | None = None,
    ) -> Future[AgentRecord]:
        """As `spawn_agent`, at once."""
        check_name(tenant_id, "tenant_id")
        check_name(agent_id, "agent_id")
        number = isinstance(lifetime, (int, float)) and not isinstance(lifetime, bool)
        if not number or not 0 < lifetime <= MAX_LIFETIME:
            raise InvalidRequest(f"lifetime is a positive number of seconds, not {lifetime!r:.40}", field="lifetime")
        if actor is not None:
            check_note(actor, "actor")

        def spawn(tx: Transaction) -> AgentRecord:
            self._leases.check_room(tenant_id, agent_id, tx.granted)
            return operations.spawn(
                tx, tenant_id, agent_id, lifetime_ms=round(lifetime * 1000), resume=resume, actor=actor or agent_id
            )

        def granted(record: AgentRecord) -> Future[AgentRecord]:
            self._leases.grant(tenant_id, agent_id, record.expires_at)
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
            recalled: Memories the agent was given since its last sync, for the registry.
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
        wake: Callable[[], None] | None = None,
    ) -> Future[Delta]:
        """As `sync_agent`, at once; the delta is read in whatever thread completes the commit."""
        self._require(tenant_id)
        check_name(agent_id, "agent_id")
        after, limit = check_count(after, "after"), check_count(limit, "limit")
        recalled = check_count(recalled, "recalled")
        batch = self._checked(episodes)
        foreign = {each.tenant_id for each in batch} - {tenant_id}
        if foreign:
            raise InvalidRequest(f"agent {agent_id!r} of {tenant_id!r} pushed an episode of {min(foreign)!r}")
        if not batch and not ending and not recalled:
            return done(self._delta(tenant_id, agent_id, after, limit))

        def sync(tx: Transaction, vectors: list[Vector]) -> Delta | None:
            quiet = tenant_id not in tx.touched and after >= self._changed_at.get(tenant_id, tx.head.seq)
            operations.put(tx, batch, vectors, agent_id)
            operations.count_sync(tx, tenant_id, agent_id, pushed=len(batch), pulled=recalled)
            if ending is not None:
                operations.end(tx, tenant_id, agent_id, ending, actor=agent_id)
            # Where nothing but this push is new there is nothing to tell, and no need to read.
            return Delta(seq=tx.head.seq, stored=[], forgotten=[]) if quiet or ending else None

        def answer(nothing_new: Delta | None) -> Future[Delta]:
            if ending is not None:
                self._leases.end(tenant_id, agent_id)
            return done(nothing_new or self._delta(tenant_id, agent_id, after, limit))

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

    # --- frames --------------------------------------------------------------------------------------------

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
            return reading.episodes_frame(connection, tenant_id, where, after=after, limit=limit)

    def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The registry: one row for each life, oldest first."""
        if tenant_id is not None:
            self._require(tenant_id)
        with self._reading() as connection:
            return reading.agents_frame(connection, tenant_id, status)

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
            return reading.read_changes(connection, after, tenant_id=tenant_id, kind=kind, limit=limit)

    def on_commit(self, callback: Callable[[int], object]) -> Callable[[], None]:
        """Have `callback(seq)` called in the writer thread after each commit; returns what undoes it."""
        self._require_open()
        self._listeners = [*self._listeners, callback]

        def undo() -> None:
            self._listeners = [each for each in self._listeners if each is not callback]

        return undo

    # --- retention -----------------------------------------------------------------------------------------

    def set_retention(self, tenant_id: str, policy: RetentionPolicy, *, actor: str = "local") -> int:
        """Store a tenant's retention policy; it is applied by `apply_retention`. Returns the seq."""
        check_name(tenant_id, "tenant_id")
        if not isinstance(policy, RetentionPolicy):
            raise InvalidRequest(f"a retention policy is one of fedlab.retention, not {policy!r:.80}")
        return self._writer.run(
            lambda tx: operations.set_retention(tx, tenant_id, policy.to_json(), str(policy), actor=actor)
        )

    def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy; `KeepForever` unless another was set."""
        self._require(tenant_id)
        with self._reading() as connection:
            return forgetting.read_policy(connection, tenant_id)

    def preview_retention(self, tenant_id: str, policy: RetentionPolicy) -> RetentionPreview:
        """How many episodes a policy would remove now; changes nothing."""
        self._require(tenant_id)
        with self._reading() as connection:
            return forgetting.preview(connection, tenant_id, policy, self.clock.now())

    def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all, in small transactions.

        What is removed is decided once, at the start: an episode stored afterwards is never removed by
        this call.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        removed = {}
        for each in [tenant_id] if tenant_id is not None else sorted(self._tenants):
            with self._reading() as connection:
                policy = forgetting.read_policy(connection, each)
                going = forgetting.condemned(connection, each, policy, self.clock.now())
            removed[each] = forgetting.remove(self._writer, each, going, policy)
        return RetentionReport(removed=removed, seq=self._writer.head.seq)

    # --- the hub itself ------------------------------------------------------------------------------------

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

    def snapshot(self) -> None:
        """Write the indexes to disk, so that the next start is quick."""
        self._require_open()
        self._indexes.snapshot()

    def close(self) -> None:
        """Commit what is waiting, write the indexes to disk and give the directory free; idempotent."""
        with self._closing:
            if self.closed:
                return
            self.closed = True
        self._writer.close()
        self._embedding.close()
        self._indexes.close()
        if not self._directory.in_memory:
            self._indexes.snapshot()
        self._read_engine.dispose()
        self._write_engine.dispose()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"Hub({str(self.path)!r}, closed)"
        numbers = self.stats()
        return (
            f"Hub({str(self.path)!r}, {numbers.episodes:,} episodes of {numbers.tenants:,} tenants,"
            f" {numbers.agents_alive:,} agents alive)"
        )

    # --- inside --------------------------------------------------------------------------------------------

    def _committed(self, tx: Transaction) -> None:
        """Feed the consumers of the log; in the writer thread, before anyone is answered."""
        self._indexes.apply(tx.events)
        self._changed_at.update(dict.fromkeys(tx.touched, tx.head.seq))
        for listener in self._listeners:
            try:
                listener(tx.head.seq)
            except Exception:
                logger.exception("a listener failed at seq %d", tx.head.seq)

    def _checked(self, episodes: Episode | Sequence[Episode], actor: str = "local") -> list[Episode]:
        self._require_open()
        check_note(actor, "actor")
        if not isinstance(episodes, (Episode, Iterable)):
            raise InvalidRequest(f"an Episode or a sequence of them is wanted, not {episodes!r:.80}")
        batch = [episodes] if isinstance(episodes, Episode) else list(episodes)
        for episode in batch:
            if not isinstance(episode, Episode):
                raise InvalidRequest(f"an Episode is wanted, not {type(episode).__name__} {episode!r:.80}")
            if episode.vector is not None and len(episode.vector) != self.dimension:
                to_vector(episode.vector, self.dimension)  # raises, and says why
        return batch

    def _embedded(self, batch: list[Episode], submit: Callable[[list[Vector]], Future[Any]]) -> Future[Any]:
        """Submit a batch once every episode has a vector."""
        missing = [episode.text for episode in batch if episode.vector is None]
        if not missing:
            return submit([episode.vector for episode in batch if episode.vector is not None])

        def complete(made: npt.NDArray[np.float16]) -> Future[Any]:
            fresh = iter(made)
            return submit([next(fresh) if each.vector is None else each.vector for each in batch])

        return then(self._embedding.submit(missing), complete)

    def _query_vector(
        self, query: str | Sequence[float] | npt.NDArray[Any] | None, policy: RecallPolicy
    ) -> npt.NDArray[Any] | None:
        if query is None:
            if policy.similarity:
                raise InvalidRequest("a recall by similarity needs a query: a text or a vector", field="query")
            return None
        if isinstance(query, str):
            # A policy that does not look at similarity does not need the model.
            return self.embed([query])[0] if policy.similarity else None
        return to_vector(query, self.dimension)

    def _delta(self, tenant_id: str, agent_id: str, after: int, limit: int) -> Delta:
        with self._reading() as connection:
            return reading.read_delta(connection, tenant_id, agent_id, after=after, limit=limit)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database."""
        self._require_open()
        with schema.begin(self._read_engine) as connection:
            yield connection

    def _require_open(self) -> None:
        if self.closed:
            raise HubUnavailable(f"the hub in {self.path} is closed")

    def _require(self, tenant_id: str) -> None:
        self._require_open()
        check_name(tenant_id, "tenant_id")
        if tenant_id not in self._tenants:
            raise UnknownTenant(
                f"nothing was ever stored for tenant {tenant_id!r}: is the name spelled right?", tenant_id=tenant_id
            )
