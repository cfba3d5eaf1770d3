"""`Session`: one agent's dealings with its hub. It recalls, pushes and pulls, and keeps the agent's RAM in step.

It knows nothing of lifetimes: when an agent may ask is decided in `agent.py`.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlab.agent.memory import LocalMemory
from fedlab.agent.values import SyncReport
from fedlab.batches import batches
from fedlab.errors import AgentExpired, HubUnavailable, IdConflict, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import numpy.typing as npt

    from fedlab.clock import Clock
    from fedlab.episode import Memory, Vector
    from fedlab.hub.values import Delta, Ending, Life
    from fedlab.net import HubConnection
    from fedlab.recall import Filter, RecallPolicy

log = logging.getLogger(__name__)


class Session:
    """What an agent knows of its hub, and the hub of it.

    Args:
        connection: To the hub.
        owned: Whether to close the connection at the end.
        life: What the hub said when the agent was spawned; the log is known up to its hub's seq.
        tenant_id: The agent's tenant.
        agent_id: The agent.
        clock: Tells the age of what the hub has not dated yet.
        pull_limit: Most new episodes of others that one sync brings.
    """

    def __init__(
        self,
        connection: HubConnection,
        owned: bool,
        life: Life,
        tenant_id: str,
        agent_id: str,
        clock: Clock,
        pull_limit: int,
    ) -> None:
        self.name = f"{tenant_id}/{agent_id}"
        self.memory = LocalMemory(life.hub.dimension)
        self._hub = connection
        self._owned = owned
        self._life = life
        self._epoch = life.hub.epoch
        self._tenant_id = tenant_id
        self._agent_id = agent_id
        self._clock = clock
        self._pull_limit = pull_limit
        self._seq = life.hub.seq
        self._given = 0  # episodes that the hub gave, and has not counted yet
        self._lock = asyncio.Lock()
        self._closed = False
        self._over: AgentExpired | None = None

    async def recall(
        self, questions: Sequence[str | Vector | None], k: int, policy: RecallPolicy, where: Filter
    ) -> list[list[Memory]]:
        """For each question the k best memories of hub and RAM together; of RAM alone while the hub is away."""
        try:
            return await self._ask_hub(questions, k, policy, where)
        except HubUnavailable as error:
            log.info("agent %s searches its RAM alone: %s", self.name, error)
        vectors = await self._vectors_of(questions, self._embed_here)
        return [self.memory.search(vector, k, policy, where, self._clock.now()) for vector in vectors]

    async def _ask_hub(
        self, questions: Sequence[str | Vector | None], k: int, policy: RecallPolicy, where: Filter
    ) -> list[list[Memory]]:
        own: list[list[Memory]] = [[]] * len(questions)
        if self.memory.waiting:
            # Before the hub is asked: what is pushed meanwhile is found in either place, or in both.
            questions = vectors = await self._vectors_of(questions, self._hub.embed, unsynced=True)
            now = self._clock.now()
            own = [self.memory.search(vector, k, policy, where, now, unsynced=True) for vector in vectors]
        filters = {name: getattr(where, name) for name in where.__struct_fields__}
        recalled = await self._hub.recall_many(self._tenant_id, questions, k, policy=policy, vectors=True, **filters)
        if self._closed:
            return [[] for _ in questions]
        self._given += sum(map(len, recalled))
        found = recalled
        if self.memory.forgets:
            gone = self.memory.is_forgotten
            found = [[each for each in memories if not gone(each.episode.id)] for memories in recalled]
        self.memory.hold([each.episode for memories in found for each in memories])
        return [self._merged(*each, k) for each in zip(own, found, strict=True)]

    def _merged(self, own: list[Memory], found: list[Memory], k: int) -> list[Memory]:
        """What RAM and hub gave for one question."""
        if not own:
            return found
        known = {memory.episode.id for memory in found}
        both = [memory for memory in own if memory.episode.id not in known] + found
        # The sort is stable: what the hub ranks equal stays in its order.
        return sorted(both, key=lambda each: (-each.score, -self.memory.created_at(each.episode)))[:k]

    async def _vectors_of(
        self,
        questions: Sequence[str | Vector | None],
        embed: Callable[[Sequence[str]], Awaitable[npt.NDArray[Any]]],
        *,
        unsynced: bool = False,
    ) -> list[Vector | None]:
        """The questions' vectors; on the way, RAM learns the vectors of episodes that have none."""
        asked = [question for question in questions if isinstance(question, str)]
        # Where nothing is compared, nothing is needed.
        while any(question is not None for question in questions):  # episodes may be stored while texts are embedded
            missing = self.memory.missing(unsynced=unsynced)
            texts = list(dict.fromkeys([*(each for each in asked if self.memory.vector_of(each) is None), *missing]))
            if not texts:
                break
            self.memory.learn(texts, await embed(texts))
        return [self.memory.vector_of(each) if isinstance(each, str) else each for each in questions]

    async def _embed_here(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts by the hub's embedder, loaded in this process."""
        try:
            return await asyncio.to_thread(_embed, self._life.hub.embedder, texts)
        except Exception as error:
            raise HubUnavailable(
                f"the hub is away and its embedder {self._life.hub.embedder!r} cannot be used here ({error}):"
                " query with a vector, and store episodes with theirs"
            ) from error

    async def sync(self, ending: Ending | None = None) -> SyncReport:
        """Push and pull, one sync at a time.

        With `ending`, the last push ends the life, and what conflicts stays unsynced instead of being raised.

        Raises:
            AgentExpired: If the hub erased the agent or its tenant; also when it is asked again.
        """
        pushed = pulled = forgotten = 0
        refused: set[str] = set()
        async with self._lock:
            while True:
                if self._over is not None:
                    raise self._over
                waiting = [each for each in self.memory.unsynced if each.id not in refused]
                batch = next(batches(waiting), [])
                last = len(batch) == len(waiting)
                given = self._given
                try:
                    delta = await self._hub.sync_agent(
                        self._tenant_id,
                        self._agent_id,
                        batch,
                        after=self._seq,
                        limit=self._pull_limit,
                        ending=ending if last else None,
                        recalled=given,
                        nonce=self._life.nonce,
                        epoch=self._epoch,
                    )
                except AgentExpired as over:
                    self._over = over
                    continue
                except IdConflict as conflict:
                    concerned = set(conflict.ids) & {each.id for each in batch}
                    if conflict.forgotten and concerned:
                        forgotten += self.memory.release(concerned)
                    elif ending and concerned:
                        refused |= concerned
                    else:
                        raise
                    continue
                self._given += len(delta.stored) - given
                forgotten += self._follow(delta)
                pushed += self.memory.confirm(each.id for each in batch)
                pulled += self.memory.hold(delta.stored)
                forgotten += self.memory.release(delta.forgotten)
                forgotten += self.memory.erase(self._tenant_id, delta.erased)
                if last:
                    return SyncReport(pushed=pushed, pulled=pulled, forgotten=forgotten, seq=self._seq)

    def _follow(self, delta: Delta) -> int:
        """Know the log as far as a delta goes; returns how many episodes that cost."""
        if not delta.epoch:
            self._seq = max(self._seq, delta.seq)
            return 0
        # The hub was restored to an earlier state: what came from it may never have happened there.
        log.info("agent %s starts over: the hub was restored, and is in epoch %d", self.name, delta.epoch)
        self._seq, self._epoch = delta.seq, delta.epoch
        return self.memory.start_over()

    def free(self) -> None:
        """Empty the RAM, for good."""
        self._closed = True
        self.memory.clear()

    async def close(self) -> None:
        """Let go of the connection, if it is the agent's own."""
        if self._owned:
            await self._hub.close()


def _embed(name: str, texts: Sequence[str]) -> npt.NDArray[Any]:
    from fedlab.embedding import SentenceTransformerEmbedder, get_embedder

    embedder = get_embedder(name)
    # An agent without its hub must not spend its life on a download that may not come either.
    if type(embedder) is SentenceTransformerEmbedder and not Path(name).is_dir():
        raise InvalidRequest("it is not on this machine")
    return np.asarray(embedder.embed(texts))
