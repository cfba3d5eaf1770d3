"""Episodes as a hub's methods: put, recall, embed, forget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fedlab.episode import Episode, Memories, check_note, to_vector
from fedlab.errors import HubUnavailable, InvalidRequest
from fedlab.hub import operations, reading, usage
from fedlab.hub.core import HubCore
from fedlab.hub.futures import done, then
from fedlab.recall import SIMILARITY, Filter, RecallPolicy, check_ids, check_k, check_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from datetime import datetime

    import numpy.typing as npt

    from fedlab.episode import Memory, Vector
    from fedlab.hub.log import Transaction
    from fedlab.hub.recent import Raw
    from fedlab.hub.writer import Promise, Written


class EpisodeMethods(HubCore):
    """What a hub remembers."""

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
        return self._writer.run(lambda tx: _put(tx, batch, vectors, actor), weight=len(batch))

    def put_soon(
        self,
        episodes: Episode | Sequence[Episode],
        *,
        actor: str = "local",
        wake: Callable[[], None] | None = None,
        outcome: Promise | None = None,
    ) -> Future[int]:
        """As `put`, at once: the future is done when the episodes are durable.

        `wake`, here and in the other methods of this kind: see `write_waiting`. `outcome` takes the place of the future
        where all episodes bring their vectors.
        """
        batch = self._checked(episodes, actor)
        if not batch:
            return done(self._writer.head.seq)
        return self._embedded(
            batch,
            lambda vectors: self._writer.submit(
                lambda tx: _put(tx, batch, vectors, actor), weight=len(batch), wake=wake, promise=outcome
            ),
        )

    def write_waiting(self, most: int) -> Written | None:
        """Write, in this thread, what was asked with a `wake`, which only says that there is something to commit.

        Args:
            most: About how many episodes.

        Returns:
            What commits it, in whatever thread; then ask again. None if nothing waits, or if the writer's thread is
            at it, which does the rest.
        """
        return self._writer.write_waiting(most)

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
        filters: dict[str, Any] = {
            "min_reward": min_reward,
            "since": since,
            "until": until,
            "task": task,
            "agent_id": agent_id,
        }
        return Memories(self.recall_many(tenant_id, [query], k, policy=policy, vectors=vectors, **filters)[0])

    def recall_many(
        self,
        tenant_id: str,
        queries: Sequence[str | Sequence[float] | npt.NDArray[Any] | None],
        k: int = 10,
        *,
        policy: RecallPolicy | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
        vectors: bool = False,
    ) -> list[list[Memory]]:
        """As `recall`, for several queries at once, in less time: the memories of each.

        All see the same moment.
        """
        self._require(tenant_id)
        k = check_k(k)
        if policy is None:
            policy = SIMILARITY
        elif not isinstance(policy, RecallPolicy):
            raise InvalidRequest(f"policy must be a RecallPolicy, not {type(policy).__name__} {policy!r:.80}")
        where = Filter.of(min_reward, since, until, task, agent_id)
        queries = check_queries(queries)
        if not queries:
            return []
        asked = self._query_vectors(queries, policy)
        index = self._indexes.get(tenant_id)
        now = self.clock.now()
        gone = 0
        while True:
            with self._recalls:
                hits = index.search_many(asked, k + gone, policy, where, now)
                found = self._read([*{hit.id: None for each in hits for hit in each}])
            live = [[hit for hit in each if hit.id in found][:k] for each in hits]
            # What was forgotten between search and read leaves a gap: look further, by as much.
            if not any(len(some) < k <= len(each) - gone for some, each in zip(live, hits, strict=True)):
                break
            gone += k - min(len(each) for each in live)
        if asked is None:
            live *= len(queries)
        compared = asked if policy.similarity else None
        for place, each in enumerate(live):
            self._note(tenant_id, [hit.id for hit in each], None if compared is None else compared[place], k)
        return [reading.memories_of(found, each, with_vectors=vectors) for each in live]

    def _read(self, ids: list[int]) -> dict[int, Raw]:
        """Live episodes, from RAM where they were read or stored of late."""
        recent = self._indexes.recent
        age = recent.age
        found = recent.get(ids)
        if len(found) < len(ids):
            with self._reading_quickly() as run:
                fresh = reading.read_raw(run, [each for each in ids if each not in found])
            recent.put(age, fresh)
            found.update(fresh)
        return found

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

        Raises:
            HeldEpisodes: If one of them is held; then none is forgotten.
        """
        self._require(tenant_id)
        wanted = check_ids(ids, None)
        check_note(reason, "reason")
        check_note(actor, "actor")
        return self._writer.run(
            lambda tx: operations.forget(tx, tenant_id, wanted, reason=reason, actor=actor), len(wanted) + 1
        )

    def _note(self, tenant_id: str, ids: list[int], vector: npt.NDArray[Any] | None, k: int) -> None:
        """Count a recall, in RAM; every now and then the writer's thread writes what there is."""
        query = None if vector is None else np.asarray(vector, np.float16)
        if self._usage.add(usage.Recalled(tenant_id, ids, query, k, self.clock.now())):
            taken = self._usage.take()
            with contextlib.suppress(HubUnavailable):  # closed a moment ago
                self._writer.submit(lambda tx: usage.write(tx, taken))

    def _checked(self, episodes: Episode | Sequence[Episode], actor: str = "local") -> list[Episode]:
        self._require_open()
        check_note(actor, "actor")
        if not isinstance(episodes, (Episode, list, Iterable)):  # a list is told from others the soonest
            raise InvalidRequest(f"an Episode or a sequence of them is wanted, not {episodes!r:.80}")
        batch = [episodes] if isinstance(episodes, Episode) else list(episodes)
        for position, episode in enumerate(batch):
            if not isinstance(episode, Episode):
                raise InvalidRequest(f"an Episode is wanted, not {type(episode).__name__} {episode!r:.80}")
            if episode.vector is not None and len(episode.vector) != self.dimension:
                to_vector(episode.vector, self.dimension)  # raises, and says why
            if type(episode) is not Episode:
                batch[position] = Episode(**msgspec.structs.asdict(episode))
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

    def _query_vectors(
        self, queries: Sequence[str | Sequence[float] | npt.NDArray[Any] | None], policy: RecallPolicy
    ) -> npt.NDArray[Any] | None:
        """What is compared, shape (len(queries), dimension); None where nothing is."""
        if policy.similarity and any(query is None for query in queries):
            raise InvalidRequest("a recall by similarity needs a query: a text or a vector", field="query")
        # A policy that does not look at similarity does not need the model.
        texts = [query for query in queries if isinstance(query, str) and policy.similarity]
        made = iter(self.embed(texts) if texts else ())
        nothing = np.zeros(self.dimension, np.float16)
        vectors = [
            next(made, nothing) if query is None or isinstance(query, str) else to_vector(query, self.dimension)
            for query in queries
        ]
        return None if all(vector is nothing for vector in vectors) else np.array(vectors)


def _put(tx: Transaction, batch: Sequence[Episode], vectors: Sequence[Vector], actor: str) -> int:
    operations.put(tx, batch, vectors, actor)
    return tx.head.seq
