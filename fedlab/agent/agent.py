"""`EphemeralAgent`: one short life. It pulls what earlier agents learned, works in RAM, pushes what it learned,
and dies. What it holds in RAM is in `memory.py`; what it asks of the hub is in `fedlab.net.connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import html
import inspect
import logging
import math
import random
import secrets
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fedlab.agent.memory import LocalMemory
from fedlab.agent.spool import append_spool
from fedlab.agent.transport import batches, open_connection
from fedlab.agent.values import SyncReport
from fedlab.clock import SystemClock, to_ms
from fedlab.episode import MAX_SOURCES, Episode, check_name, embedding_text, new_id, to_vector
from fedlab.errors import (
    AgentExpired,
    FedlabError,
    HubUnavailable,
    IdConflict,
    InvalidEpisode,
    InvalidRequest,
    UnsyncedEpisodes,
)
from fedlab.recall import SIMILARITY, Filter, check_k

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from fedlab.clock import Clock
    from fedlab.episode import Memory, Vector
    from fedlab.hub import Hub
    from fedlab.hub.values import Ending, HubInfo
    from fedlab.net import HubConnection
    from fedlab.recall import RecallPolicy

    Query: TypeAlias = str | Sequence[float] | npt.NDArray[Any] | None

SHORTEST, LONGEST = 5.0, 900.0
"""Lifetimes in seconds, unless `any_lifetime=True`: then up to `UTMOST`."""
UTMOST = 10 * 365 * 86_400.0
LAST_CHANCE = 30.0
"""Seconds (of real time) that the final sync may take before an agent dies with what it could not send."""
AWAY = 5.0
"""Seconds (of real time) for which queries do not wait for a hub that was away a moment ago."""

log = logging.getLogger(__name__)


class EphemeralAgent:
    """One short life: made by `spawn`, ended by `destroy`, by its lifetime, or by a crash.

    An agent belongs to the event loop in which it was spawned. Its episodes are its alone, in RAM, until a
    sync has returned; `unsynced` says how many there are.

    Example::

        async with EphemeralAgent.spawn("ws://127.0.0.1:8443", tenant_id="acme-corp", lifetime=300) as agent:
            memories = await agent.query_memories("parse dates", k=5)
            await agent.store_episode(task="parse dates", input="1 May", output="2026-05-01", reward=1.0)
    """

    def __init__(
        self, connection: HubConnection, info: HubInfo, tenant_id: str, agent_id: str, *, clock: Clock, expires_at: int
    ) -> None:
        self.tenant_id = tenant_id
        self.agent_id = agent_id
        self.session_id = f"{tenant_id}/{agent_id}"
        self.expires_at = expires_at
        """End of the lifetime, ms UTC by the agent's clock."""
        self._hub = connection
        self._info = info
        self._clock = clock
        self._seq = info.seq
        self._memory = LocalMemory(info.dimension)
        self._lock = asyncio.Lock()
        self._recalled: dict[str, None] = {}
        self._recall_used = False
        self._works: set[asyncio.Timeout] = set()
        self._ending: asyncio.Task[UnsyncedEpisodes | None] | None = None
        self._how: Ending | None = None
        self._told = False
        self._left: list[Episode] = []
        self._away_until = -math.inf
        # What `spawn` may change:
        self._owns_connection = False
        self._stamps = False
        self._rng: random.Random | None = None
        self._spool: str | os.PathLike[str] | None = None
        self._pull_limit = 100
        self._timer = clock.call_at(expires_at, self._expire)

    @classmethod
    def spawn(
        cls,
        hub: str | Hub | HubConnection,
        tenant_id: str,
        lifetime: float = 300,
        agent_id: str | None = None,
        token: str | None = None,
        *,
        clock: Clock | None = None,
        seed: int | str | None = None,
        spool: str | os.PathLike[str] | None = None,
        any_lifetime: bool = False,
        pull_limit: int = 100,
    ) -> _Spawning:
        """Begin a life: `agent = await EphemeralAgent.spawn(…)`, or `async with EphemeralAgent.spawn(…) as agent`.

        Args:
            hub: A URL, a `Hub`, or an open connection, which many agents may share and none closes.
            tenant_id: Whose memory the agent uses and adds to.
            lifetime: Seconds from now, 5 to 900.
            agent_id: Unique among the living agents of the tenant; made up if not given.
            token: For a URL; found by itself where hub and agent run as the same user of one machine.
            clock: Counts the lifetime and dates the episodes; without one the hub dates them, and the
                lifetime is counted by the clock of an embedded hub, or of the machine.
            seed: Makes `agent_id` and episode ids repeatable; give every agent a seed of its own.
            spool: A file that takes the episodes if the agent must die while the hub is away;
                `push_spool(file, hub)` sends them later.
            any_lifetime: Allow any lifetime up to ten years.
            pull_limit: Most new episodes of others that one sync brings into RAM (the newest).

        Raises:
            InvalidRequest: If a name or the lifetime is not allowed.
            IdConflict: If an agent of this id is alive.
            HubUnavailable: If the hub cannot be reached.
            AuthenticationError: If the hub does not accept the token.
        """
        check_name(tenant_id, "tenant_id")
        shortest, longest = (0.0, UTMOST) if any_lifetime else (SHORTEST, LONGEST)
        if (
            isinstance(lifetime, bool)
            or not isinstance(lifetime, (int, float))
            or not (shortest <= lifetime <= longest and lifetime > 0)
        ):
            way_out = "" if any_lifetime else "; any_lifetime=True allows others"
            raise InvalidRequest(
                f"lifetime is {shortest:g} to {longest:g} seconds, not {lifetime!r:.40}{way_out}", field="lifetime"
            )
        if agent_id is None:
            source = None if seed is None else random.Random(f"{seed}/{tenant_id}")  # noqa: S311 - no secret
            agent_id = f"agent-{secrets.token_hex(8) if source is None else f'{source.getrandbits(64):016x}'}"
        check_name(agent_id, "agent_id")

        async def start(name: str = agent_id) -> EphemeralAgent:
            agent = await cls._register(hub, tenant_id, name, token, lifetime, clock)
            agent._stamps = clock is not None
            agent._spool = spool
            agent._pull_limit = pull_limit
            if seed is not None:
                agent._rng = random.Random(f"{seed}/{agent.session_id}")  # noqa: S311 - no secret
            return agent

        return _Spawning(start)

    @classmethod
    async def _register(
        cls,
        hub: str | Hub | HubConnection,
        tenant_id: str,
        agent_id: str,
        token: str | None,
        lifetime: float,
        clock: Clock | None,
    ) -> EphemeralAgent:
        connection, owned = await open_connection(hub, token, tenant_id, agent_id)
        try:
            now: Clock = clock or getattr(hub, "clock", None) or SystemClock()
            expires_at = now.now() + max(1, round(lifetime * 1000))
            # The seq before the life began: RAM starts empty, and no change after it is missed.
            info = await connection.info()
            await connection.spawn_agent(tenant_id, agent_id, lifetime=lifetime)
        except BaseException:
            if owned:
                await connection.close()
            raise
        agent = cls(connection, info, tenant_id, agent_id, clock=now, expires_at=expires_at)
        agent._owns_connection = owned
        return agent

    # --- what it knows -------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it has neither been destroyed nor reached the end of its lifetime."""
        return self._ending is None and self._clock.now() < self.expires_at

    @property
    def time_left(self) -> float:
        """Seconds until the end of the lifetime; 0 when it is over."""
        return max(0, self.expires_at - self._clock.now()) / 1000 if self.alive else 0.0

    @property
    def memories(self) -> list[Episode]:
        """What is in RAM: own episodes, and those that were recalled or pulled."""
        return self._memory.episodes

    @property
    def unsynced(self) -> int:
        """How many own episodes the hub has not acknowledged."""
        return self._memory.waiting or len(self._left)

    @property
    def unsynced_episodes(self) -> list[Episode]:
        """These episodes; after an end without the hub, those that were lost to it and are in no spool."""
        return self._memory.unsynced or list(self._left)

    async def query_memories(
        self,
        query: Query = None,
        k: int = 10,
        *,
        input: str = "",
        policy: RecallPolicy | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
    ) -> list[Memory]:
        """The k best memories for a query, of the hub and of the agent's own unsynced episodes together.

        What the hub sends is kept in RAM. While the hub is away, RAM alone is searched. The ids of what is
        returned become the `sources` of what the agent stores next.

        Args:
            query: A task as text, or a vector of shape (dimension,); `task` if not given.
            k: How many; fewer come back only where fewer match.
            input: What the task is to be done on; together they are compared with tasks and inputs.
            policy: Ranks the memories; by similarity if not given.
            min_reward: Smallest reward.
            since: Made at this time or later.
            until: Made before this time.
            task: Exactly this task.
            agent_id: Made by this agent.

        Raises:
            AgentExpired: If the agent's life is over.
            HubUnavailable: If the hub is away and its embedder cannot be loaded here.
        """
        self._check_alive()
        k = check_k(k)
        policy = policy or SIMILARITY
        where = Filter.of(min_reward, since, until, task, agent_id)
        question = self._question(task if query is None else query, input, policy)
        try:
            if asyncio.get_running_loop().time() < self._away_until:
                raise HubUnavailable("the hub was away a moment ago")
            found = await self._recall(question, k, policy, where)
        except HubUnavailable as error:
            self._note_away(error)
            found = await self._recall_here(question, k, policy, where)
        self._check_alive()
        if self._recall_used:
            self._recalled, self._recall_used = {}, False
        self._recalled.update(dict.fromkeys(memory.episode.id for memory in found))
        return found

    def _question(self, query: Query, input: str, policy: RecallPolicy) -> str | Vector | None:
        if isinstance(query, str):
            return embedding_text(query, input)
        if input:
            raise InvalidRequest("input goes with a task as text, not with a vector or no query", field="input")
        if query is not None:
            return to_vector(query, self._info.dimension)
        if policy.similarity:
            raise InvalidRequest(f"the policy '{policy}' ranks by similarity and needs a query", field="query")
        return None

    async def _recall(self, question: str | Vector | None, k: int, policy: RecallPolicy, where: Filter) -> list[Memory]:
        """The hub's memories, merged with the own ones it does not have."""
        own: list[Memory] = []
        if self._memory.waiting:
            # Before the hub is asked: what is pushed meanwhile is found in either place, or in both.
            vector = await self._vector_of(question, self._hub.embed, unsynced=True)
            own = self._memory.search(vector, k, policy, where, self._clock.now(), unsynced=True)
            question = vector
        recalled = await self._hub.recall(
            self.tenant_id,
            question,
            k,
            policy=policy,
            min_reward=where.min_reward,
            since=where.since,
            until=where.until,
            task=where.task,
            agent_id=where.agent_id,
            vectors=True,
        )
        self._away_until = -math.inf
        if not self.alive:
            return []
        found = [memory for memory in recalled if not self._memory.is_forgotten(memory.episode.id)]
        self._memory.hold(memory.episode for memory in found)
        if not own:
            return found
        known = {memory.episode.id for memory in found}
        own = [memory for memory in own if memory.episode.id not in known]
        order = {id(memory): self._memory.created_at(memory.episode) for memory in own}
        merged = sorted(
            own + found, key=lambda memory: (-memory.score, -order.get(id(memory), memory.episode.created_at or 0))
        )
        return merged[:k]

    async def _recall_here(
        self, question: str | Vector | None, k: int, policy: RecallPolicy, where: Filter
    ) -> list[Memory]:
        """The memories in RAM."""
        vector = await self._vector_of(question, self._embed_here)
        return self._memory.search(vector, k, policy, where, self._clock.now())

    async def _vector_of(
        self,
        question: str | Vector | None,
        embed: Callable[[Sequence[str]], Coroutine[Any, Any, npt.NDArray[Any]]],
        *,
        unsynced: bool = False,
    ) -> Vector | None:
        """The question's vector; on the way, RAM learns the vectors of episodes that have none."""
        if question is None:
            return None
        while True:  # episodes may be stored while texts are embedded
            texts = self._memory.missing(unsynced=unsynced)
            if isinstance(question, str) and self._memory.vector_of(question) is None:
                texts = list(dict.fromkeys([question, *texts]))
            if not texts:
                return self._memory.vector_of(question) if isinstance(question, str) else question
            self._memory.learn(texts, await embed(texts))

    async def _embed_here(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts by the hub's embedder, loaded in this process."""
        from fedlab.embedding import get_embedder

        def embed() -> npt.NDArray[Any]:
            return np.asarray(get_embedder(self._info.embedder).embed(texts))

        try:
            return await asyncio.to_thread(embed)
        except Exception as error:
            raise HubUnavailable(
                f"the hub is away and its embedder {self._info.embedder!r} cannot be used here ({error}):"
                " query with a vector, and store episodes with theirs"
            ) from error

    # --- what it does --------------------------------------------------------------------------------------

    async def store_episode(
        self,
        *,
        task: str,
        input: str,
        output: str,
        reward: float,
        vector: Sequence[float] | npt.NDArray[Any] | None = None,
        sources: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        created_at: datetime | int | None = None,
        expires_at: datetime | int | None = None,
    ) -> Episode:
        """Keep an episode in RAM; the next sync makes it permanent.

        Args:
            task: What was to be done; not empty.
            input: What it was to be done on.
            output: What came out.
            reward: How well it went; any finite number.
            vector: Shape (dimension,); the hub embeds task and input if there is none.
            sources: Ids of the episodes that this one builds on. If not given: what was recalled since the
                episode before it, or what that one built on, if nothing was. An agent that works on several
                tasks at a time had better say.
            metadata: Any JSON object; copied.
            created_at: When it was made, if not now.
            expires_at: When a retention policy may let it go.

        Raises:
            InvalidEpisode: If it cannot be stored; nothing was kept.
            AgentExpired: If the agent's life is over.
        """
        self._check_alive()
        now = self._clock.now()
        if sources is None:
            sources = tuple(self._recalled)[:MAX_SOURCES]
        if created_at is None and self._stamps:
            created_at = now
        episode = Episode(
            tenant_id=self.tenant_id,
            agent_id=self.agent_id,
            task=task,
            input=input,
            output=output,
            reward=reward,
            id=new_id(now if self._stamps else None, self._rng),
            vector=vector,  # type: ignore[arg-type]  # Episode makes an array of any sequence
            sources=sources,  # type: ignore[arg-type]  # Episode makes a tuple of any sequence
            metadata=copy.deepcopy(dict(metadata)) if isinstance(metadata, dict) else metadata or {},  # type: ignore[arg-type]  # Episode names what is wrong
            created_at=None if created_at is None else _time(created_at, "created_at"),
            expires_at=None if expires_at is None else _time(expires_at, "expires_at"),
        )
        if episode.vector is not None and len(episode.vector) != self._info.dimension:
            raise InvalidEpisode(
                f"the vector has {len(episode.vector)} dimensions and this hub's vectors have {self._info.dimension}",
                field="vector",
            )
        self._memory.store(episode, now)
        self._recall_used = True
        return episode

    async def sync_with_hub(self) -> SyncReport:
        """Push what the hub does not have, pull what others stored, drop what was forgotten.

        What was stored before the call is permanent when it returns. May be cancelled and repeated at will.

        Raises:
            HubUnavailable: If the hub is away; nothing is lost, and the agent goes on.
            IdConflict: If the hub has another episode of the same id; nothing is lost.
            AgentExpired: If the agent's life is over.
        """
        self._check_alive()
        async with self._lock:
            self._check_alive()
            return await self._exchange()

    async def _exchange(self, ending: Ending | None = None) -> SyncReport:
        """Push and pull. With `ending`, the last push ends the life, and what conflicts stays unsynced."""
        pushed = pulled = forgotten = 0
        refused: set[str] = set()
        while True:
            waiting = [each for each in self._memory.unsynced if each.id not in refused]
            batch = next(batches(waiting), [])
            last = len(batch) == len(waiting)
            try:
                delta = await self._hub.sync_agent(
                    self.tenant_id,
                    self.agent_id,
                    batch,
                    after=self._seq,
                    limit=self._pull_limit,
                    ending=ending if last else None,
                )
            except IdConflict as conflict:
                concerned = set(conflict.ids) & {each.id for each in batch}
                if conflict.forgotten and concerned:
                    forgotten += self._memory.release(concerned)
                elif ending and concerned:
                    refused |= concerned
                else:
                    raise
                continue
            except HubUnavailable as error:
                self._note_away(error)
                raise
            self._away_until = -math.inf
            self._seq = max(self._seq, delta.seq)
            pushed += self._memory.confirm(each.id for each in batch)
            pulled += self._memory.hold(delta.stored)
            forgotten += self._memory.release(delta.forgotten)
            if last:
                return SyncReport(pushed=pushed, pulled=pulled, forgotten=forgotten, seq=self._seq)

    async def execute(self, work: Callable[..., Any], *args: Any) -> Any:
        """Sync, do the work, sync again, also when the work fails or is cancelled.

        `work(agent, *args)` is a coroutine function; one that does not take the agent is called without it. A
        plain function runs in a thread, so that it does not keep the agent from its hub; what it returns is
        awaited if it can be. A hub that is away does not keep the work from beginning.

        Returns:
            What the work returned; all it stored is permanent then.

        Raises:
            AgentExpired: If the lifetime ended first: the work was cancelled, and what it had stored was synced.
            HubUnavailable: If the work is done and its episodes could not be synced; they are in RAM still.
        """
        self._check_alive()
        call = _bound(work, self, args)
        with contextlib.suppress(HubUnavailable):
            await self.sync_with_hub()
        self._check_alive()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._works.add(scope)
                try:
                    result = await call()
                finally:
                    self._works.discard(scope)
        except BaseException as error:
            try:
                await asyncio.shield(asyncio.ensure_future(self._settle()))
            except FedlabError as late:
                error.add_note(f"The sync after the work failed too: {late}")
            if isinstance(error, TimeoutError) and scope.expired():
                raise self._expired() from error
            raise
        await asyncio.shield(asyncio.ensure_future(self._settle()))
        return result

    async def _settle(self) -> None:
        """The sync after the work; the last one, if the life is over."""
        if self.alive:
            try:
                await self.sync_with_hub()
            except AgentExpired:
                pass
            except HubUnavailable:
                if self.unsynced:
                    raise
            else:
                return
        if not self.alive:
            await self.destroy()

    # --- how it ends ---------------------------------------------------------------------------------------

    async def destroy(self) -> None:
        """End the life: a final sync, and the RAM is freed. May be called again, and by several at once.

        Raises:
            UnsyncedEpisodes: If the hub could not be reached and there is no spool: the episodes are in the
                error, and in `unsynced_episodes`. It is raised once.
        """
        told = self._told
        expired = self._clock.now() >= self.expires_at
        error = await asyncio.shield(self._end("expired" if expired else "destroyed"))
        if error is not None and not told:
            self._told = True
            raise error

    def _expire(self) -> None:
        """The clock says that the lifetime is over."""
        self._end("expired")
        loop = asyncio.get_running_loop()
        for work in list(self._works):
            work.reschedule(loop.time())
        self._works.clear()

    def _end(self, ending: Ending) -> asyncio.Task[UnsyncedEpisodes | None]:
        if self._ending is None:
            self._timer.cancel()
            self._how = ending
            self._ending = asyncio.get_running_loop().create_task(self._finish(ending))
        return self._ending

    async def _finish(self, ending: Ending) -> UnsyncedEpisodes | None:
        failure: BaseException | None = None
        error: UnsyncedEpisodes | None = None
        try:
            async with asyncio.timeout(LAST_CHANCE), self._lock:
                await self._exchange(ending)
        except BaseException as problem:
            failure = problem
            if not isinstance(problem, Exception):
                raise
        finally:
            error = self._bury(failure)
            if self._owns_connection:
                await self._hub.close()
        return error

    def _bury(self, failure: BaseException | None) -> UnsyncedEpisodes | None:
        """Free the RAM; what the hub does not have goes to the spool, or into the error."""
        left = self._memory.unsynced
        self._memory.clear()
        self._recalled.clear()
        if not left:
            if failure is not None:
                log.info("agent %s ended without a goodbye: %s", self.session_id, failure)
            return None
        if self._spool is not None:
            try:
                append_spool(self._spool, left)
            except OSError as problem:
                failure = problem
            else:
                log.warning("agent %s left %d episodes in %s", self.session_id, len(left), self._spool)
                return None
        self._left = left
        reason = str(failure or "the hub has other episodes of the same ids") or type(failure).__name__
        error = UnsyncedEpisodes(
            f"agent {self.session_id!r} ended with {len(left)} episodes that the hub does not have ({reason}):"
            " they are in `episodes` of this error, and hub.put(error.episodes) stores them later",
            left,
        )
        error.__cause__ = failure
        log.warning("%s", error)
        return error

    def _check_alive(self) -> None:
        if not self.alive:
            raise self._expired()

    def _expired(self) -> AgentExpired:
        how = "was destroyed" if self._how == "destroyed" else "is at the end of its lifetime"
        return AgentExpired(f"agent {self.session_id!r} {how}: spawn another, the hub remembers what it learned")

    def _note_away(self, error: HubUnavailable) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._away_until:
            log.info("agent %s goes on without its hub: %s", self.session_id, error)
            self._away_until = now + AWAY

    # --- as a value ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.destroy()
        except FedlabError as late:
            if error is None:
                raise
            error.add_note(f"The agent's final sync failed too: {late}")

    def __del__(self) -> None:
        if getattr(self, "_ending", self) is None and self._memory.waiting:
            warnings.warn(
                f"{self!r} was never destroyed, and its unsynced episodes are gone", ResourceWarning, source=self
            )

    def __repr__(self) -> str:
        return f"<EphemeralAgent {self.session_id}: {self._status()}>"

    def _repr_html_(self) -> str:
        name, status = html.escape(self.session_id), html.escape(self._status())
        return f"<b>EphemeralAgent</b> <code>{name}</code><br>{status}"

    def _status(self) -> str:
        if self.alive:
            state = f"alive, {self.time_left:g} s left, {len(self._memory)} memories in RAM"
        else:
            state = self._how or "expired"
        return f"{state}, {self.unsynced} unsynced" if self.unsynced else state


class _Spawning:
    """An agent that is about to be spawned: `await` it, or enter it with `async with`."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, EphemeralAgent]]) -> None:
        self._start = start
        self._agent: EphemeralAgent | None = None

    def __await__(self) -> Generator[Any, Any, EphemeralAgent]:
        return self._start().__await__()

    async def __aenter__(self) -> EphemeralAgent:
        self._agent = await self._start()
        return self._agent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._agent is not None
        await self._agent.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return "<EphemeralAgent, not spawned yet: write 'await EphemeralAgent.spawn(…)' or 'async with'>"


def _bound(
    work: Callable[..., Any], agent: EphemeralAgent, args: tuple[Any, ...]
) -> Callable[[], Coroutine[Any, Any, Any]]:
    """The work with its arguments, as something to await."""
    if not callable(work):
        if inspect.iscoroutine(work):
            work.close()
        raise InvalidRequest(
            f"execute takes a function, not {type(work).__name__}: give `work`, not `work()`", field="work"
        )
    given: tuple[Any, ...] = (agent, *args)
    with contextlib.suppress(ValueError, TypeError):  # builtins may have no signature
        signature = inspect.signature(work)
        try:
            signature.bind(*given)
        except TypeError:
            signature.bind(*args)
            given = args

    async def call() -> Any:
        if inspect.iscoroutinefunction(work) or inspect.iscoroutinefunction(getattr(work, "__call__", None)):  # noqa: B004 - an object's own
            return await work(*given)
        result = await asyncio.to_thread(work, *given)
        return await result if inspect.isawaitable(result) else result

    return call


def _time(moment: datetime | int, field: str) -> int:
    try:
        return to_ms(moment)
    except InvalidRequest as error:
        raise InvalidEpisode(f"{field}: {error.message}", field=field) from None
