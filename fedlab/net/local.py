"""`LocalConnection`: an embedded `Hub` as a `HubConnection`. The server answers through this same class.

Small writes are committed on the event loop; what may take long runs in a thread; a recall by vector runs on the
loop itself, because it takes less time than a thread switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from fedlab.errors import HubUnavailable, InvalidRequest
from fedlab.hub.values import Life, Schedule
from fedlab.net import protocol
from fedlab.net.commits import Commits
from fedlab.net.connection import HubConnection
from fedlab.net.tokens import Identity
from fedlab.retention import RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from concurrent.futures import Future

    from fedlab.episode import Memory, Vector
    from fedlab.hub import Hub
    from fedlab.hub.manifest import BackupManifest, ForkReport
    from fedlab.hub.values import Change, HubInfo
    from fedlab.net.backups import Backups


OWNER = Identity(role="admin")
"""Who has the hub in its own process."""
INLINE_K = 100
"""Largest k of a recall by vector that runs on the event loop: about a millisecond."""


class LocalConnection(HubConnection):
    """An embedded hub, asynchronous.

    Args:
        hub: The hub.
        actor: How the change log names who works through this connection.
        identity: What whoever works through it may do; it is told so, and the server sees to it.
        commits: Of the event loop; shared by the connections of a server.
        holders: Which connection carries which living agent; shared by the connections of a server, so that
            an agent who resumed elsewhere is not released by the connection it left.
        backups: Where backups and forks go, if the hub is a server's that has such a place.
        schedule: Says what the hub's server does by itself.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        actor: str = "local",
        identity: Identity = OWNER,
        commits: Commits | None = None,
        holders: dict[tuple[str, str], LocalConnection] | None = None,
        backups: Backups | None = None,
        schedule: Callable[[], Schedule] | None = None,
    ) -> None:
        self.hub = hub
        self.actor = actor
        self.identity = identity
        self._closed = False
        self._commits = commits
        self._backups = backups
        self._schedule = schedule or Schedule
        self._holders = {} if holders is None else holders
        self._held: set[tuple[str, str]] = set()
        self._asked: list[_Asked] = []
        self._recalling: asyncio.Task[None] | None = None

    async def call(self, method: str, params: protocol.Params) -> Any:
        """Have the hub do it."""
        hub = self._open()
        if (begun := self.write_soon(params)) is not None:
            return self.written(params, await self._loop().wait(begun))
        if answer := _ANSWERS.get(type(params)):
            return await answer(self, params)
        if method == "info":
            return self._info()
        arguments = _fields(params)
        if isinstance(params, (protocol.Policy, protocol.Preview)) and params.policy is not None:
            arguments["policy"] = RetentionPolicy.from_json(params.policy)
        if method in _WITH_ACTOR:
            arguments["actor"] = self.actor
        if method == "schedule":
            return self._schedule()
        work: Callable[..., Any] = self._place().frame if method == "backups" else getattr(hub, method)
        result = await asyncio.to_thread(work, **arguments)
        return result.to_json() if isinstance(result, RetentionPolicy) else result

    def _info(self) -> HubInfo:
        """The hub as it is to whoever asks."""
        return msgspec.structs.replace(self.hub.info(), role=self.identity.role, tenant_id=self.identity.tenant_id)

    def is_quick(self, params: protocol.Recall) -> bool:
        """Whether a recall by vector takes about a millisecond, and so may run on the event loop."""
        # The first recall of a tenant may load its index.
        return params.text is None and params.k <= INLINE_K and self.hub.is_loaded(params.tenant_id)

    def recall_now(self, requests: Sequence[protocol.Recall]) -> list[list[Memory]]:
        """The answers to recalls by vector, or by nothing, that differ in their queries alone."""
        if not requests:
            return []
        arguments = {name: getattr(requests[0], name) for name in _RECALL}
        return self._open().recall_many(queries=[each.vector for each in requests], **arguments)

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end."""
        return self._follow(tenant_id, self._open().info().seq if after is None else after)

    async def close(self) -> None:
        """Let go of the hub, which stays open; from now the leases of the agents that it carried run. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._release()

    def _release(self) -> None:
        if self.hub.closed:
            return
        for agent in self._held:
            if self._holders.get(agent) is self:
                del self._holders[agent]
                with contextlib.suppress(HubUnavailable):
                    self.hub.release_agent(*agent)

    def __repr__(self) -> str:
        return f"LocalConnection({self.hub!r}{', closed' if self._closed else ''})"

    def _open(self) -> Hub:
        if self._closed:
            raise HubUnavailable("this connection is closed")
        return self.hub

    def _loop(self) -> Commits:
        if self._commits is None:
            self._commits = Commits(self.hub, asyncio.get_running_loop())
        return self._commits

    def write_soon(self, params: protocol.Params) -> Future[Any] | None:
        """Begin what a push, a spawn or a sync asks for; None if it is neither. `written` makes its answer of it."""
        hub, loop = self._open(), self._loop()
        if isinstance(params, protocol.Put):
            return hub.put_soon(params.episodes, actor=self.actor, wake=loop.wake(params.episodes))
        if isinstance(params, protocol.SyncAgent):
            return hub.sync_agent_soon(**_fields(params), wake=loop.wake(params.episodes))
        if isinstance(params, protocol.SpawnAgent):
            return hub.spawn_agent_soon(**_fields(params), wake=loop.wake())
        return None

    def written(self, params: protocol.Params, result: Any) -> Any:
        """The answer to what `write_soon` began: from a spawn on this connection carries the agent, until its end."""
        if isinstance(params, protocol.SpawnAgent):
            agent = params.tenant_id, params.agent_id
            self._held.add(agent)
            self._holders[agent] = self
            if self._closed:  # while it was committed
                self._release()
            return Life(agent=result, hub=self._info(), nonce=params.nonce)
        if isinstance(params, protocol.SyncAgent) and params.ending is not None:
            agent = params.tenant_id, params.agent_id
            self._held.discard(agent)
            if self._holders.get(agent) is self:
                del self._holders[agent]
        return result

    async def _embed(self, params: protocol.Embed) -> list[Vector]:
        return list(await self._loop().wait(self.hub.embed_soon(params.texts)))

    async def _recall(self, params: protocol.Recall) -> list[Memory]:
        return (await self.recall_each([params]))[0]

    async def recall_each(self, requests: Sequence[protocol.Recall]) -> list[list[Memory]]:
        """The answers to requests that differ in their queries alone."""
        requests = await self._with_vectors(requests)
        if len(requests) == 1 and self.is_quick(requests[0]):
            return self.recall_now(requests)
        answer: asyncio.Future[list[list[Memory]]] = asyncio.get_running_loop().create_future()
        self._asked.append((requests, answer))
        if len(self._asked) == 1:
            self._recalling = asyncio.create_task(self._recall_together())
        return await answer

    async def _recall_together(self) -> None:
        """Answer what was asked within one turn of the loop: to compare several queries takes less time."""
        asked, self._asked = self._asked, []
        alike: dict[tuple[Any, ...], list[_Asked]] = {}
        for each in asked:
            shared = tuple(getattr(each[0][0], name) for name in _RECALL) if each[0] else ()
            alike.setdefault(shared, []).append(each)
        for group in alike.values():
            await self._answer(group)

    async def _answer(self, group: list[_Asked]) -> None:
        every = [request for requests, _ in group for request in requests]
        quick = sum(each.k for each in every) <= INLINE_K and all(map(self.is_quick, every))
        try:
            found = iter(self.recall_now(every) if quick else await asyncio.to_thread(self.recall_now, every))
        except Exception as error:
            if len(group) > 1:  # one of them asks what can not be answered
                for each in group:
                    await self._answer([each])
            elif not group[0][1].done():
                group[0][1].set_exception(error)
            return
        for requests, answer in group:
            memories = list(itertools.islice(found, len(requests)))
            if not answer.done():
                answer.set_result(memories)

    async def _with_vectors(self, requests: Sequence[protocol.Recall]) -> Sequence[protocol.Recall]:
        """The requests with vectors in the place of texts, which are embedded together."""
        asking = [each for each in requests if each.text is not None]
        if not asking:
            return requests
        if any(each.vector is not None for each in asking):
            raise InvalidRequest("a query is a text or a vector, not both", field="vector")
        vectors: Iterator[Vector | None] = itertools.repeat(None)
        if asking[0].policy is None or asking[0].policy.similarity:
            texts = [each.text for each in asking if each.text is not None]
            vectors = iter(await self._loop().wait(self.hub.embed_soon(texts)))
        return [
            each if each.text is None else msgspec.structs.replace(each, text=None, vector=next(vectors))
            for each in requests
        ]

    def _place(self) -> Backups:
        self._open()
        if self._backups is None:
            raise InvalidRequest(
                "this hub has no directory for backups and forks: serve it with backup_dir (--backup-dir), or use"
                " Hub.backup and Hub.fork where its directory is"
            )
        return self._backups

    async def _backup(self, params: protocol.Backup) -> BackupManifest:
        return await asyncio.to_thread(self._place().make, params.name, params.base)

    async def _verify_backup(self, params: protocol.BackupName) -> BackupManifest:
        return await asyncio.to_thread(self._place().verify, params.name)

    async def _fork(self, params: protocol.Fork) -> ForkReport:
        return await asyncio.to_thread(self._place().fork, params.name, params.at)

    async def _watch(self, params: protocol.Watch) -> list[Change]:
        info = self._open().info()
        if params.epoch not in (0, info.epoch):
            raise InvalidRequest(
                f"the hub was restored and is in epoch {info.epoch}, where its change {params.after} is not that of"
                f" epoch {params.epoch}, if there is one (the last is {info.seq}): subscribe anew",
                field="after",
            )
        loop = asyncio.get_running_loop()
        committed = asyncio.Event()

        def wake(_seq: int) -> None:
            # Called by whoever commits, perhaps after this loop has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(committed.set)

        unsubscribe = self.hub.on_commit(wake)
        try:
            async with asyncio.timeout(params.wait):
                while True:
                    committed.clear()
                    changes = self._open().read_changes(params.after, tenant_id=params.tenant_id, limit=params.limit)
                    if changes:
                        return changes
                    await committed.wait()
        except TimeoutError:
            return []
        finally:
            unsubscribe()


_fields = msgspec.structs.asdict
_Asked: TypeAlias = "tuple[Sequence[protocol.Recall], asyncio.Future[list[list[Memory]]]]"
_WITH_ACTOR = ("forget", "set_retention", "hold", "release", "erase_tenant", "erase_agent", "erase_episodes")
_RECALL = [name for name in protocol.Recall.__struct_fields__ if name not in ("text", "vector")]
_ANSWERS: dict[type[protocol.Params], Callable[[LocalConnection, Any], Coroutine[Any, Any, Any]]] = {
    protocol.Recall: LocalConnection._recall,
    protocol.Embed: LocalConnection._embed,
    protocol.Watch: LocalConnection._watch,
    protocol.Backup: LocalConnection._backup,
    protocol.BackupName: LocalConnection._verify_backup,
    protocol.Fork: LocalConnection._fork,
}
