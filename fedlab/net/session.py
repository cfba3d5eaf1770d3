"""One client's connection at the server: read a request, check it, have the `LocalConnection` do it, answer.

What writes episodes or lives (`commits.py`) and recalls by vector need no task. Everything else runs as a task, so that
slow requests do not hold up quick ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from fedlab._words import counted
from fedlab.errors import FedlabError, InvalidRequest, PermissionDenied, QuotaExceeded
from fedlab.hub.values import Delta
from fedlab.net.commits import Outcome, is_small
from fedlab.net.frames import QuickConnection
from fedlab.net.local import LocalConnection
from fedlab.net.pages import Page, to_page
from fedlab.net.protocol import (
    FORMATS,
    METHODS,
    Answer,
    Changes,
    Episodes,
    Fault,
    ForAnyTenant,
    ForTenant,
    Put,
    Recall,
    SpawnAgent,
    SyncAgent,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from concurrent.futures import Future

    import polars as pl

    from fedlab.net.frames import BytesLike
    from fedlab.net.protocol import Method, Params
    from fedlab.net.server import HubServer
    from fedlab.net.tokens import Identity

logger = logging.getLogger("fedlab.net")

EXPIRED = 3000
"""The close code of a connection whose token has expired ("unauthorized" in the IANA registry)."""
FIRST_PAGE = 100
"""Rows in the first page of a frame; the next ones are sized by the bytes of those before."""
PAGE_BYTES = 1 << 20
WRITE_LIMIT = 1 << 18
"""Bytes of replies that may wait for a client before no more of its requests are begun."""


class Call:
    """A request under way."""

    __slots__ = ("id", "method", "params", "session", "size", "started")

    def __init__(self, session: Session, size: int) -> None:
        self.session = session
        self.id: int | None = None
        self.method = "unknown"
        self.params: Params | None = None
        self.size = size
        self.started = time.perf_counter()

    def finish(self, future: Future[Any] | Outcome) -> None:
        """Answer with what became of a write."""
        try:
            result = future.result()
            if self.params is not None:
                result = self.session.written(self.params, result)
        except Exception as error:
            self.session.fail(self, error)
        else:
            self.session.answer(self, result)


class Connection(QuickConnection, ServerConnection):
    """A connection that hands a message to its session as soon as it is there.

    Where the session has no room, messages wait for `recv`; while some do, none overtakes them.
    """

    masked = True
    session: Session | None = None
    backlog = 0

    def takes(self, size: int) -> bool:
        """Whether the session has room for a message of so many bytes."""
        session = self.session
        return session is not None and not self.backlog and size <= session.largest and session.has_room()

    def take(self, data: BytesLike) -> None:
        """Have the session begin what a message asks for."""
        assert self.session is not None
        self.session.receive(data)

    def leave(self) -> None:
        """Count a message that waits for `recv`."""
        self.backlog += self.session is not None


def authorize(identity: Identity, name: str, method: Method, params: Params) -> Any:
    """The params as this identity may use them, its own tenant filled in where none is named.

    Raises:
        PermissionDenied: If it may not ask this at all, or not for this tenant or agent.
    """
    identity.check_role(method.role, name)
    if identity.tenant_id is None:
        return params
    if method.whole_hub:
        raise PermissionDenied(f"{name} is about all tenants, and this token is for {identity.tenant_id!r}")
    if isinstance(params, ForTenant):
        identity.check_tenant(params.tenant_id)
    elif isinstance(params, ForAnyTenant):
        params = msgspec.structs.replace(params, tenant_id=identity.check_tenant(params.tenant_id))
    if isinstance(params, (SpawnAgent, SyncAgent)):
        identity.check_agent(params.agent_id)
    if isinstance(params, (Put, SyncAgent)):
        for episode in params.episodes:
            identity.check_tenant(episode.tenant_id)
            identity.check_agent(episode.agent_id)
    return params


class Session:
    """A connection from its handshake to its end.

    Args:
        server: Whose hub it talks to.
        socket: The connection.
        identity: Who talks, as its token says.
    """

    def __init__(self, server: HubServer, socket: Connection, identity: Identity) -> None:
        self.server = server
        self.socket = socket
        self.identity = identity
        self.under_way = 0
        self.largest = server.settings.max_message
        self._bytes = 0
        self._watches = 0
        self._room = asyncio.Event()
        self._form = FORMATS[str(socket.subprotocol)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._local = LocalConnection(
            server.hub,
            actor=identity.name,
            identity=identity,
            commits=server.commits,
            holders=server.holders,
            backups=server.backups,
            schedule=server.schedule,
        )
        self.written = self._local.written

    async def run(self) -> None:
        """Serve until the connection ends."""
        left = min(self.identity.expires_at - time.time(), 1e8)  # further off, a timer may not be set
        expiry = asyncio.get_running_loop().call_later(left, self._expire)
        self.socket.session = self
        try:
            while True:
                data = await self.socket.recv(decode=False)
                # What came before it may have taken the last place; while it counts as backlog, none overtakes it.
                await self._wait_for_room()
                self.socket.backlog -= 1
                self.receive(data)
        except (ConnectionClosed, OSError):
            pass
        finally:
            self.socket.session = None
            expiry.cancel()
            for task in self._tasks:
                task.cancel()
            await self._local.close()

    def answer(self, call: Call, result: Any, *, more: bool = False) -> None:
        """Send a result; one that is larger than a message may be becomes an error, or a shorter one."""
        try:
            data = self._form.encode(Answer(call.id, result, more=more))
            limit = self.server.settings.max_message
            while len(data) > limit and isinstance(result, Delta) and result.stored:
                result = _shorter(result)
                data = self._form.encode(Answer(call.id, result))
            if len(data) > limit:
                raise QuotaExceeded(
                    f"the answer has {len(data):,} bytes and max_message allows {limit:,}: ask for fewer at once"
                )
        except FedlabError as error:
            self.fail(call, error)
            return
        self._send(data)
        if not more:
            self._leave(call, "ok")

    def fail(self, call: Call, error: BaseException) -> None:
        """Send an error; what was not raised on purpose stays in our log."""
        if not isinstance(error, FedlabError):
            logger.error("%s by %s failed", call.method, self.identity.name, exc_info=error)
            error = FedlabError(f"{call.method} failed inside the hub ({type(error).__name__}): its log says why")
        self._send(self._form.encode(Answer(call.id, fault=Fault.of(error))))
        self._leave(call, error.code)

    def _send(self, data: bytes) -> None:
        # Written at once, without a task; what bounds it is that no more is read while replies wait.
        self.socket.send_now(data, text=self._form.text)
        if self.socket.transport.get_write_buffer_size() > self.server.settings.max_unsent:
            self._cut_off()

    def _cut_off(self) -> None:
        logger.warning("cutting off %s: it does not read its replies", self.identity.name)
        self.socket.transport.abort()

    def receive(self, data: BytesLike) -> None:
        """Begin what a message asks for; whatever it holds, an answer is all that comes of it."""
        if self.server.closing:
            return  # not acknowledged: the client sends it again, to whoever comes after us
        if time.time() >= self.identity.expires_at:
            self._expire()
            return
        call = Call(self, len(data))
        try:
            call.id, name, raw = self._form.decode_request(data)
            method = METHODS.get(name)
            if method is None:
                raise InvalidRequest(f"there is no method {name!r:.60}: {', '.join(METHODS)} are")
            call.method = name
            self._enter(call)
            self._begin(call, authorize(self.identity, name, method, self._form.decode_params(name, raw)))
        except Exception as error:
            reason = error
            if call.id is None:
                call.id, reason = self._form.explain(data, error)
            self.fail(call, reason)

    def has_room(self) -> bool:
        """Whether another request may begin; if not, the client is slowed down by not reading from it."""
        settings = self.server.settings
        return (
            self.under_way < settings.max_requests
            and self._bytes < settings.max_bytes
            and self.socket.transport.get_write_buffer_size() <= WRITE_LIMIT
        )

    def _enter(self, call: Call) -> None:
        if call.method != "watch":
            self.under_way += 1
            self._bytes += call.size
            return
        # It waits and does nothing: it takes no room from the requests.
        self._watches += 1
        if self._watches > self.server.settings.max_watches:
            raise QuotaExceeded(f"max_watches allows {counted(self._watches - 1, 'subscription')} on one connection")

    def _leave(self, call: Call, outcome: str) -> None:
        if call.method == "watch":
            self._watches -= 1
        elif call.method != "unknown":
            self.under_way -= 1
            self._bytes -= call.size
            self._room.set()
        self.server.metrics.count(call.method, outcome, time.perf_counter() - call.started)

    async def _wait_for_room(self) -> None:
        while not self.has_room():
            await self._drain()
            self._room.clear()
            if self.under_way and not self.has_room():
                await self._room.wait()

    async def _drain(self) -> None:
        """Wait until the client has read most of its replies; one that reads nothing at all is cut off.

        The pings would not notice it: they wait here too, behind the replies.
        """
        while self.socket.paused:
            unsent = self.socket.transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self.server.settings.ping_timeout):
                    await self.socket.drain()
                return
            except TimeoutError:
                if self.socket.transport.get_write_buffer_size() >= unsent:
                    self._cut_off()
                    return
            except OSError:
                return  # a connection that breaks meanwhile is noticed where it is read

    def _begin(self, call: Call, params: Any) -> None:
        kind, commits = type(params), self.server.commits
        if kind is Put and params.episodes and is_small(params.episodes):
            outcome = Outcome(commits, call.finish)
            self.server.hub.put_soon(params.episodes, actor=self.identity.name, wake=commits.soon, outcome=outcome)
        elif kind is Recall and self._local.is_quick(params):
            self.answer(call, self._local.recall_now([params])[0])
        elif (begun := self._local.write_soon(params)) is not None:
            call.params = params
            commits.when_done(begun, call.finish)
        else:
            self._start(self._work(call, params))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _expire(self) -> None:
        self._start(self.socket.close(EXPIRED, "the token has expired"))

    async def _work(self, call: Call, params: Any) -> None:
        try:
            if METHODS[call.method].result is Page:
                await self._send_pages(call, params)
            else:
                result = await self._local.call(call.method, params)
                await self._drain()
                self.answer(call, result)
        except Exception as error:
            self.fail(call, error)

    async def _send_pages(self, call: Call, params: Any) -> None:
        held: Page | None = None
        # Text may grow sixfold in JSON.
        room = self.server.settings.max_message // 8
        async for frame in self._pages(call.method, params):
            for part in _parts(frame, room):
                if held is not None:
                    await self._drain()
                    self.answer(call, held, more=True)
                held = to_page(part)
        self.answer(call, held)

    async def _pages(self, name: str, params: Any) -> AsyncIterator[pl.DataFrame]:
        """A frame in parts of about `PAGE_BYTES`, at least one; the log's order is the place to go on from."""
        most = self.server.settings.page_rows
        if not isinstance(params, (Episodes, Changes)):
            frame = await self._local.call(name, params)
            if name == "tenants" and self.identity.tenant_id is not None:
                frame = frame.filter(frame["tenant_id"] == self.identity.tenant_id)
            for start in range(0, max(1, frame.height), most):
                yield frame.slice(start, most)
            return
        left, rows = params.limit, min(FIRST_PAGE, most)
        while True:
            limit = rows if left is None else min(rows, left)
            frame = await self._local.call(name, msgspec.structs.replace(params, limit=limit))
            yield frame
            left = None if left is None else left - frame.height
            if frame.height < limit or left == 0:
                return
            params = msgspec.structs.replace(params, after=frame["seq"][-1])
            rows = max(1, min(most, int(rows * PAGE_BYTES / max(1, frame.estimated_size()))))


def _parts(frame: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    """A frame, halved until each part has at most `size` bytes or one row."""
    if frame.height <= 1 or frame.estimated_size() <= size:
        yield frame
        return
    half = frame.height // 2
    yield from _parts(frame[:half], size)
    yield from _parts(frame[half:], size)


def _shorter(delta: Delta) -> Delta:
    """Without the older half of the new episodes: recall finds those."""
    cut = (len(delta.stored) + 1) // 2
    return msgspec.structs.replace(delta, stored=delta.stored[cut:], skipped=delta.skipped + cut)
