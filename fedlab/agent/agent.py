"""`EphemeralAgent`: one short life. It pulls what earlier agents learned, works in RAM, pushes what it learned,
and dies. What it holds in RAM is in `memory.py`; what it asks of the hub is in `fedlab.net.connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

from fedlab._html import table
from fedlab._words import counted
from fedlab.agent.making import Maker, generator
from fedlab.agent.remains import bury
from fedlab.agent.session import Session
from fedlab.agent.spawning import Spawning, check_lifetime
from fedlab.agent.spool import push_spool
from fedlab.agent.transport import check_token_end, open_connection
from fedlab.agent.work import bind
from fedlab.clock import SystemClock
from fedlab.episode import Memories, check_name, embedding_text, to_vector
from fedlab.errors import AgentExpired, FedlabError, HubUnavailable, InvalidRequest
from fedlab.recall import SIMILARITY, Filter, check_k, check_queries

if TYPE_CHECKING:
    import os
    import random
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from fedlab.agent.values import SyncReport
    from fedlab.clock import Clock
    from fedlab.episode import Episode, Memory, Vector
    from fedlab.hub import Hub
    from fedlab.hub.values import Ending
    from fedlab.net import HubConnection
    from fedlab.recall import RecallPolicy

    Query: TypeAlias = str | Sequence[float] | npt.NDArray[Any] | None

LAST_CHANCE = 120.0
"""Seconds (of real time) that the final sync may take before an agent dies with what it could not send: an embedded hub
may have to load the model first, which took 40 s on a busy machine."""


class EphemeralAgent:
    """One short life: made by `spawn`, ended by `destroy`, by its lifetime, or by a crash.

    An agent belongs to the event loop in which it was spawned. Its episodes are its alone, in RAM, until a
    sync has returned; `unsynced` says how many there are.

    >>> async def live(hub):
    ...     async with EphemeralAgent.spawn(hub, tenant_id="acme-corp", lifetime=300) as agent:
    ...         await agent.store_episode(task="parse dates", input="1 May", output="05-01", reward=1.0)
    ...         return [memory.output for memory in await agent.query_memories("parse dates", k=5)]
    >>> from fedlab import Hub
    >>> with Hub(":memory:", embedder="hashing") as hub:
    ...     asyncio.run(live(hub))
    ['05-01']
    """

    def __init__(
        self,
        session: Session,
        maker: Maker,
        *,
        clock: Clock,
        expires_at: int,
        spool: str | os.PathLike[str] | None = None,
    ) -> None:
        self.tenant_id = maker.tenant_id
        self.agent_id = maker.agent_id
        self.session_id = session.name
        self.expires_at = expires_at
        """End of the lifetime, ms UTC by the agent's clock."""
        self._session = session
        self._memory = session.memory
        self._clock = clock
        self._spool = spool
        self._maker = maker
        self._works: set[asyncio.Timeout] = set()
        self._ending: asyncio.Task[FedlabError | None] | None = None
        self._how: Ending | None = None
        self._told = False
        self._erased: AgentExpired | None = None
        self._left: Sequence[Episode] = ()
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
        seed: int | str | random.Random | None = None,
        spool: str | os.PathLike[str] | None = None,
        any_lifetime: bool = False,
        pull_limit: int = 100,
    ) -> Spawning:
        """Begin a life: `agent = await EphemeralAgent.spawn(…)`, or `async with EphemeralAgent.spawn(…) as agent`.

        Args:
            hub: A URL, a `Hub`, or an open connection, which many agents may share and none closes.
            tenant_id: Whose memory the agent uses and adds to.
            lifetime: Seconds from now, 5 to 900.
            agent_id: Unique among the living agents of the tenant; made up if not given.
            token: For a URL; found by itself where hub and agent run as the same user of one machine.
            clock: Counts the lifetime and dates the episodes; without one the hub dates them, and the
                lifetime is counted by the clock of an embedded hub, or of the machine.
            seed: Makes `agent_id` and episode ids repeatable; give every agent a seed of its own. With a generator
                in its place, the ids depend on nothing else.
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
        check_lifetime(lifetime, any_lifetime)
        if agent_id is None:
            # No secret is made of the seed: it only has to give the same names again.
            agent_id = f"agent-{(generator(seed, tenant_id) or secrets.SystemRandom()).getrandbits(64):016x}"
        name = check_name(agent_id, "agent_id")
        rng = generator(seed, f"{tenant_id}/{name}")

        async def start() -> EphemeralAgent:
            until = SystemClock().now() / 1000 + lifetime if clock is None else None
            connection, owned = open_connection(hub, token, tenant_id, name, until)
            try:
                embedded = getattr(connection, "hub", None)
                time: Clock = clock or getattr(embedded, "clock", None) or SystemClock()
                expires_at = time.now() + max(1, round(lifetime * 1000))
                life = await connection.begin_life(tenant_id, name, lifetime=lifetime)
            except BaseException:
                if owned:
                    await connection.close()
                raise
            session = Session(connection, owned, life, tenant_id, name, time, pull_limit)
            if clock is None:
                check_token_end(connection, session.name, lifetime)
            maker = Maker(tenant_id, name, life.hub.dimension, stamps=clock is not None, rng=rng)
            return cls(session, maker, clock=time, expires_at=expires_at, spool=spool)

        return Spawning(start)

    push_spool = staticmethod(push_spool)

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
        policy = policy or SIMILARITY
        question = self._question(task if query is None else query, input, policy)
        where = Filter.of(min_reward, since, until, task, agent_id)
        return Memories((await self._recall([question], k, policy, where))[0])

    async def query_many(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        policy: RecallPolicy | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
    ) -> list[list[Memory]]:
        """As `query_memories`, for several queries at once, in less time: the memories of each.

        >>> async def live(hub):
        ...     async with EphemeralAgent.spawn(hub, tenant_id="acme-corp") as agent:
        ...         await agent.store_episode(task="parse dates", input="1 May", output="05-01", reward=1.0)
        ...         dates, names = await agent.query_many(["parse dates", "parse names"], k=1)
        ...         return dates[0].similarity > names[0].similarity
        >>> from fedlab import Hub
        >>> with Hub(":memory:", embedder="hashing") as hub:
        ...     asyncio.run(live(hub))
        True
        """
        policy = policy or SIMILARITY
        questions = [self._question(task if query is None else query, "", policy) for query in check_queries(queries)]
        return await self._recall(questions, k, policy, Filter.of(min_reward, since, until, task, agent_id))

    async def _recall(
        self, questions: Sequence[str | Vector | None], k: int, policy: RecallPolicy, where: Filter
    ) -> list[list[Memory]]:
        self._check_alive()
        found = await self._session.recall(questions, check_k(k), policy, where)
        self._check_alive()
        self._maker.recalled(found)
        return found

    def _question(self, query: Query, input: str, policy: RecallPolicy) -> str | Vector | None:
        if isinstance(query, str):
            return embedding_text(query, input)
        if input:
            raise InvalidRequest("input goes with a task as text, not with a vector or no query", field="input")
        if query is not None:
            return to_vector(query, self._memory.dimension)
        if policy.similarity:
            raise InvalidRequest(f"the policy '{policy}' ranks by similarity and needs a query", field="query")
        return None

    async def store_episode(
        self,
        *,
        task: str,
        input: str,
        output: str,
        reward: float,
        vector: Sequence[float] | npt.NDArray[Any] | None = None,
        sources: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
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
        episode = self._maker.make(
            now,
            task=task,
            input=input,
            output=output,
            reward=reward,
            vector=vector,
            sources=sources,
            metadata=metadata,
            created_at=created_at,
            expires_at=expires_at,
        )
        self._memory.store(episode, now)
        return episode

    async def sync_with_hub(self) -> SyncReport:
        """Push what the hub does not have, pull what others stored, drop what was forgotten.

        What was stored before the call is permanent when it returns. May be cancelled and repeated at will.

        Raises:
            HubUnavailable: If the hub is away; nothing is lost, and the agent goes on.
            IdConflict: If the hub has another episode of the same id; nothing is lost.
            AgentExpired: If the agent's life is over: also because the hub erased it or its tenant. Then what is
                in RAM goes too, and the error says how many unsynced episodes went with it.
        """
        self._check_alive()
        try:
            return await self._session.sync()
        except AgentExpired:
            await self.destroy()
            raise self._expired() from None

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
        call = bind(work, self, args)
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
                if self._erased is not None:
                    raise
            except HubUnavailable:
                if self.unsynced:
                    raise
            else:
                return
        if not self.alive:
            await self.destroy()

    async def destroy(self) -> None:
        """End the life: a final sync, and the RAM is freed. May be called again, and by several at once.

        Raises:
            UnsyncedEpisodes: If the hub could not be reached and there is no spool: the episodes are in the
                error, and in `unsynced_episodes`. It is raised once.
            AgentExpired: If the hub erased the agent or its tenant, and unsynced episodes went with it. Raised once.
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

    def _end(self, ending: Ending) -> asyncio.Task[FedlabError | None]:
        if self._ending is None:
            self._timer.cancel()
            self._how = ending
            self._ending = asyncio.get_running_loop().create_task(self._finish(ending))
        return self._ending

    async def _finish(self, ending: Ending) -> FedlabError | None:
        failure: BaseException | None = None
        error: FedlabError | None = None
        try:
            async with asyncio.timeout(LAST_CHANCE):
                await self._session.sync(ending)
        except BaseException as problem:
            failure = problem
            if not isinstance(problem, Exception):
                raise
        finally:
            error = self._bury(failure)
            await self._session.close()
        return error

    def _bury(self, failure: BaseException | None) -> FedlabError | None:
        """Free the RAM; what the hub does not have goes to the spool, or into the error."""
        left = self._memory.unsynced
        self._session.free()
        self._maker.clear()
        error, self._left, self._erased = bury(left, failure, self.session_id, self._spool)
        return error

    def _check_alive(self) -> None:
        if not self.alive:
            raise self._expired()

    def _expired(self) -> AgentExpired:
        if self._erased is not None:
            self._told = True
            return AgentExpired(self._erased.message, **self._erased.details)
        how = "was destroyed" if self._how == "destroyed" else "is at the end of its lifetime"
        return AgentExpired(f"agent {self.session_id!r} {how}: spawn another, the hub remembers what it learned")

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
                f"{self!r} was never destroyed, and its unsynced episodes are gone",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        return f"<EphemeralAgent {self.session_id}: {self._status()}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("state", "alive" if self.alive else self._how or "expired"),
            ("unsynced episodes", self.unsynced),
        ]
        if self.alive:
            rows += [("seconds left", self.time_left), ("memories in RAM", len(self._memory))]
        return table(f"EphemeralAgent {self.session_id}", rows)

    def _status(self) -> str:
        if self.alive:
            state = f"alive, {self.time_left:g} s left, {counted(len(self._memory), 'memory', 'memories')} in RAM"
        else:
            state = self._how or "expired"
        return f"{state}, {self.unsynced} unsynced" if self.unsynced else state
