"""One client's connection at the server: read a request, check it, have the `LocalConnection` do it, answer.

A put or a recall by vector needs no task of its own: the first is answered when the hub's future is done, the
second at once. Everything else runs as a task, so that slow requests do not hold up quick ones.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from websockets.asyncio.server import broadcast
from websockets.exceptions import ConnectionClosed

from fedlab.errors import FedlabError, InvalidRequest, PermissionDenied, QuotaExceeded
from fedlab.hub.values import Delta
from fedlab.net.local import LocalConnection
from fedlab.net.protocol import (
    FORMATS,
    METHODS,
    Answer,
    Fault,
    ForAnyTenant,
    ForTenant,
    Page,
    Policy,
    Put,
    Recall,
    SpawnAgent,
    SyncAgent,
    Watch,
    to_page,
)
from fedlab.retention import RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Future

    import polars as pl
    from websockets.asyncio.server import ServerConnection

    from fedlab.net.protocol import Method, Params
    from fedlab.net.server import HubServer
    from fedlab.net.tokens import Identity

logger = logging.getLogger("fedlab.net")

EXPIRED = 3000
"""The close code of a connection whose token has expired ("unauthorized" in the IANA registry)."""
INLINE_K = 100
"""Largest k of a recall by vector that runs on the event loop: about a millisecond."""
FIRST_PAGE = 200
"""Rows in the first page of a frame; the next ones are sized by the bytes of those before."""
PAGE_BYTES = 1 << 20


class Call(NamedTuple):
    """A request under way."""

    session: Session
    id: int
    method: str
    size: int
    started: float


class Completions:
    """Takes the hub's finished futures to the event loop, all that are ready at one wake-up.

    A wake-up for each would cost a system call and a switch of threads for each acknowledged push.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: collections.deque[tuple[Call, Future[Any]]] = collections.deque()
        self._lock = threading.Lock()
        self._awake = False

    def add(self, call: Call, future: Future[Any]) -> None:
        """Have `call` answered with the future's outcome; called in any thread."""
        with self._lock:
            self._done.append((call, future))
            if self._awake:
                return
            self._awake = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            logger.debug("a request was done after the server had ended")

    def _drain(self) -> None:
        with self._lock:
            ready, self._done = self._done, collections.deque()
            self._awake = False
        for call, future in ready:
            error = future.exception()
            if error is None:
                call.session.answer(call, future.result())
            else:
                call.session.fail(call, error)


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

    def __init__(self, server: HubServer, socket: ServerConnection, identity: Identity) -> None:
        self.server = server
        self.socket = socket
        self.identity = identity
        self.under_way = 0
        self._bytes = 0
        self._watches = 0
        self._room = asyncio.Event()
        self._form = FORMATS[str(socket.subprotocol)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._local = LocalConnection(server.hub, actor=identity.name, holders=server.holders)

    async def run(self) -> None:
        """Serve until the connection ends."""
        loop = asyncio.get_running_loop()
        left = min(self.identity.expires_at - time.time(), 1e7)
        expiry = loop.call_later(left, self._start, self.socket.close(EXPIRED, "the token has expired")) if left < 1e7 else None
        try:
            while True:
                data = await self.socket.recv(decode=False)
                if self.server.closing:
                    continue  # not acknowledged: the client sends it again, to whoever comes after us
                if time.time() >= self.identity.expires_at:
                    await self.socket.close(EXPIRED, "the token has expired")
                self._receive(data)
                await self._wait_for_room()
        except ConnectionClosed:
            pass
        finally:
            if expiry is not None:
                expiry.cancel()
            for task in self._tasks:
                task.cancel()
            await self._local.close()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait_for_room(self) -> None:
        # Not reading is how a client is slowed down: its TCP window fills.
        settings = self.server.settings
        while self.under_way >= settings.max_requests or self._bytes >= settings.max_bytes:
            self._room.clear()
            await self._room.wait()
        if self.socket.transport.get_write_buffer_size():
            await self.socket.drain()

    def _receive(self, data: bytes) -> None:
        started = time.perf_counter()
        call = Call(self, -1, "unknown", len(data), started)
        self.under_way += 1
        self._bytes += len(data)
        try:
            number, name, raw = self._form.decode_request(data)
            call = Call(self, number, "unknown", len(data), started)
            method = METHODS.get(name)
            if method is None:
                raise InvalidRequest(f"there is no method {name!r:.60}: {', '.join(METHODS)} are")
            call = Call(self, number, name, len(data), started)
            params = authorize(self.identity, name, method, self._form.decode_params(name, raw))
            self._begin(call, params)
        except Exception as error:
            self.fail(call, error)

    def _begin(self, call: Call, params: Any) -> None:
        if type(params) is Put:
            future = self.server.hub.put_soon(params.episodes, actor=self.identity.name)
            future.add_done_callback(functools.partial(self.server.completions.add, call))
            return
        if type(params) is Recall and params.text is None and params.k <= INLINE_K and params.tenant_id in self.server.warm:
            self.answer(call, self.server.hub.recall(**_recall_arguments(params)))
            return
        if type(params) is Watch:
            # It waits and does nothing: it takes no room from the requests.
            self.under_way -= 1
            self._bytes -= call.size
            if self._watches >= self.server.settings.max_watches:
                self.under_way += 1
                self._bytes += call.size
                raise QuotaExceeded(f"max_watches allows {self._watches} subscriptions on one connection")
        self._start(self._work(call, params))

    async def _work(self, call: Call, params: Any) -> None:
        watching = type(params) is Watch
        self._watches += watching
        try:
            if METHODS[call.method].result is Page:
                await self._send_pages(call, params)
            else:
                result = await self._perform(call.method, params)
                if watching:
                    self.under_way += 1
                    self._bytes += call.size
                    watching = False
                    self._watches -= 1
                await self.socket.drain()
                self.answer(call, result)
        except Exception as error:
            if watching:
                self.under_way += 1
                self._bytes += call.size
            self.fail(call, error)
        finally:
            self._watches -= watching
