"""`Link`: requests over a socket that may break. They are pipelined by id, and sent again on the next connection.

What the requests mean is `client.py`'s business, which makes them all repeatable.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import ssl
from typing import TYPE_CHECKING, Any

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.client import backoff
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State

from fedlab import errors
from fedlab.errors import AuthenticationError, FedlabError, HubUnavailable, InvalidRequest, QuotaExceeded
from fedlab.net import protocol
from fedlab.net.discovery import is_loopback
from fedlab.net.frames import QuickConnection
from fedlab.net.pages import Page
from fedlab.net.protocol import METHODS
from fedlab.net.session import EXPIRED

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlab.net.frames import BytesLike

logger = logging.getLogger("fedlab.net")

IN_FLIGHT = 128
"""Requests under way on one connection; others wait here. Below the server's `max_requests`, so that the server
never has to stop reading us: then it would not see our pongs."""
SLOW = 10
"""How many time-outs a slow method gets."""
TRIES = 5
"""How often one request is sent, on so many connections that broke."""


class _Pending:
    """A request that waits for its answer."""

    __slots__ = ("data", "future", "method", "pages", "params", "patience", "tries", "until")

    def __init__(self, method: str, params: protocol.Params, data: bytes, future: asyncio.Future[Any]) -> None:
        self.method = method
        self.params = params
        self.data = data
        self.future = future
        self.pages: list[Page] = []
        self.tries = 0
        self.patience = self.until = math.inf

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            # Seen: where the caller is gone it is nobody's business, and asyncio shall not log it.
            self.future.exception()


class _Connection(QuickConnection, ClientConnection):
    """Hands each answer on as soon as it is there, once it was told to whom."""

    receive: Callable[[BytesLike], None] | None = None

    def takes(self, size: int) -> bool:
        return self.receive is not None

    def take(self, data: BytesLike) -> None:
        assert self.receive is not None
        self.receive(data)

    def say_goodbye(self) -> None:
        """Close without waiting for the hub's goodbye: what mattered was acknowledged, and a life ends with this."""
        if self.protocol.state is State.OPEN:
            self.protocol.send_close(1000)
            self.send_data()
        self.transport.close()


class Link:
    """Gets requests answered.

    Args:
        url: `ws://host:port` or `wss://host:port`.
        token: The token, or what gives one for each connection attempt (None where there is none).
        form: How messages are written.
        timeout: Seconds to wait for an answer.
        retry_for: Seconds to go on trying to reach a hub that is away.
        tls: How to check the hub's certificate; the system's authorities if not given.
        max_message: Largest message in bytes.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None,
        form: protocol.Format[Any],
        *,
        timeout: float,
        retry_for: float,
        tls: ssl.SSLContext | None,
        max_message: int,
    ) -> None:
        self.url = url
        self.closed = False
        self._token = token
        self._timeout = timeout
        self._retry_for = retry_for
        self._form = form
        self._tls = tls
        self._max_message = max_message
        self._socket: _Connection | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._agents: dict[tuple[str, str], tuple[protocol.SpawnAgent, float]] = {}  # and the end on our clock
        self._away = False
        self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._socket is not None

    def hold(self, spawn: protocol.SpawnAgent) -> None:
        """Take up this agent's life again on each new connection, until `drop` or its end."""
        until = asyncio.get_running_loop().time() + spawn.lifetime
        self._agents[spawn.tenant_id, spawn.agent_id] = (msgspec.structs.replace(spawn, resume=True), until)

    def drop(self, tenant_id: str, agent_id: str) -> None:
        """The agent's life has ended."""
        self._agents.pop((tenant_id, agent_id), None)

    async def close(self) -> None:
        """Let go of the hub; what waits for an answer raises HubUnavailable. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._look_at(math.inf)
        self._fail_all(HubUnavailable(f"the connection to {self.url} is closed"))
        if self._socket is not None:
            self._socket.say_goodbye()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def ask(self, method: str, params: protocol.Params, *, extra: float = 0.0) -> Any:
        """The answer to a request.

        Args:
            method: A name in `METHODS`.
            params: Its params.
            extra: Seconds that its time-out is longer than usual.
        """
        patience = self._timeout * (SLOW if METHODS[method].slow else 1) + extra
        # A watch waits without work for the server, and must not take the place of what has some.
        if method == "watch":
            return await self.outcome(self.submit(method, params), patience)
        await self._slots.acquire()
        try:
            return await self.outcome(self.submit(method, params), patience)
        finally:
            self._slots.release()

    async def outcome(self, number: int, patience: float | None = None) -> Any:
        """The answer to a request that was submitted, within `patience` seconds (the usual time-out if None)."""
        pending = self._pending[number]
        pending.patience = self._timeout if patience is None else patience
        pending.until = asyncio.get_running_loop().time() + pending.patience
        if pending.until < self._looks_at:
            self._look_at(pending.until)
        try:
            return await pending.future
        finally:
            self._pending.pop(number, None)

    def _look_at(self, when: float) -> None:
        """See then who waits too long: one timer for all, since nearly every answer comes long before."""
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = when
        self._timer = None if when == math.inf else asyncio.get_running_loop().call_at(when, self._give_up)

    def _give_up(self) -> None:
        now, waiting = asyncio.get_running_loop().time(), list(self._pending.values())
        for pending in waiting:
            if pending.until <= now:
                late = f"{self.url} did not answer {pending.method} within {pending.patience:g} s"
                pending.fail(HubUnavailable(late))
        self._look_at(min((each.until for each in waiting if each.until > now), default=math.inf))

    def submit(self, method: str, params: protocol.Params) -> int:
        """Send a request, or have it sent by the next connection; returns its id."""
        if self.closed:
            raise HubUnavailable(f"the connection to {self.url} is closed")
        number = next(self._ids)
        data = self._form.encode(protocol.Request(number, method, params))
        if len(data) > self._max_message:
            raise InvalidRequest(
                f"{method} makes a message of {len(data):,} bytes and max_message allows {self._max_message:,}:"
                " send fewer episodes a call (each call is all or none)"
            )
        future = asyncio.get_running_loop().create_future()
        pending = self._pending[number] = _Pending(method, params, data, future)
        if self._socket is not None:
            self._send(self._socket, pending)
        elif self._supervisor is None or self._supervisor.done():
            self._supervisor = asyncio.get_running_loop().create_task(self._supervise())
        return number

    def _send(self, socket: _Connection, pending: _Pending) -> None:
        pending.tries += 1
        socket.send_now(pending.data, text=self._form.text)

    def _receive(self, data: BytesLike) -> None:
        try:
            number, result, fault, more = self._form.decode_answer(data)
        except InvalidRequest as error:
            self._fail_all(HubUnavailable(f"{self.url} does not speak our protocol: {error}"))
            return
        pending = self._pending.get(number) if number is not None else None
        if pending is None or pending.future.done():
            if number is None and fault is not None:
                logger.warning("%s could not read a request: %s", self.url, fault.message)
            return  # of a call that was cancelled or timed out
        if fault is not None:
            pending.fail(fault.to_error())
            return
        try:
            value = self._form.decode_result(pending.method, result)
        except FedlabError as error:
            pending.fail(error)
            return
        if isinstance(value, Page):
            pending.pages.append(value)
            value = pending.pages
        if not more:
            pending.future.set_result(value)

    # --- the connection ------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Keep a connection while something waits for it; give up with what says why."""
        try:
            while not self.closed:
                socket = await self._reach()
                self._away = False
                began = asyncio.get_running_loop().time()
                await self._talk(socket)
                if not (self._pending or self._agents):
                    return  # the next call connects
                if asyncio.get_running_loop().time() - began < 1.0:
                    await asyncio.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - jitter
        except FedlabError as error:
            self._away = isinstance(error, HubUnavailable)
            self._fail_all(error)
        except Exception as error:
            logger.exception("the connection to %s failed", self.url)
            self._fail_all(HubUnavailable(f"the connection to {self.url} failed: {error!r}"))
        finally:
            self._supervisor = None

    async def _talk(self, socket: _Connection) -> None:
        """Send what waits, then hand out answers until the connection is lost."""
        try:
            self._take_up(socket)
            self._socket = socket
            socket.receive = self._receive
            while True:
                self._receive(await socket.recv(decode=False))  # in fragments, or before this line
        except ConnectionClosed as closed:
            self._socket = None
            if closed.rcvd is not None and closed.rcvd.code == EXPIRED and not callable(self._token):
                raise AuthenticationError(f"{self.url} closed the connection: {closed.rcvd.reason}") from None
            if closed.rcvd is not None and closed.rcvd.code == 1009:
                raise QuotaExceeded(
                    f"{self.url} takes no message of this size (its max_message is below {self._max_message:,}):"
                    " send fewer episodes a call, or connect with its max_message"
                ) from None
        finally:
            self._socket = None
            await socket.close()

    def _take_up(self, socket: _Connection) -> None:
        # A resume after the end would begin another life.
        now = asyncio.get_running_loop().time()
        self._agents = {agent: life for agent, life in self._agents.items() if life[1] > now}
        for resume, _ in self._agents.values():
            data = self._form.encode(protocol.Request(next(self._ids), "spawn_agent", resume))
            socket.send_now(data, text=self._form.text)
        for number, pending in list(self._pending.items()):
            if pending.tries >= TRIES:
                pending.fail(HubUnavailable(f"{pending.method} broke {TRIES} connections to {self.url}"))
                continue
            if pending.tries and isinstance(pending.params, protocol.SpawnAgent):
                again = msgspec.structs.replace(pending.params, resume=True)
                pending.data = self._form.encode(protocol.Request(number, pending.method, again))
            pending.pages.clear()
            self._send(socket, pending)

    async def _reach(self) -> _Connection:
        """A connection, as soon as there is one.

        Raises:
            HubUnavailable: If there is none for `retry_for` seconds.
            AuthenticationError: If the hub does not take the token.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (0 if self._away else self._retry_for)
        looked_again = False
        for delay in backoff(initial_delay=0.1, min_delay=0.1, max_delay=2.0, factor=1.6):
            try:
                return await self._dial()
            except InvalidStatus as refused:
                error = _refusal(refused, self.url)
                # A token that was looked up while the hub was away may be that of the process that died, or none:
                # a hub announces itself before it answers, so what is found now is its own.
                stale = refused.response.status_code == 401 and callable(self._token) and not looked_again
                if stale:
                    looked_again = True
                    continue
                if refused.response.status_code != 503:
                    raise error from None
                reason = error.message
            except ssl.SSLError as failed:
                unknown = isinstance(failed, ssl.SSLCertVerificationError)
                own = ". An authority of your own is trusted with tls_ca=… or $SSL_CERT_FILE" if unknown else ""
                raise HubUnavailable(f"{self.url}: the TLS connection failed: {failed}{own}") from None
            except (OSError, TimeoutError, WebSocketException, EOFError) as failed:
                reason = str(failed) or type(failed).__name__
            wait = delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            if loop.time() + wait > deadline:
                raise HubUnavailable(f"no hub answers at {self.url}: {reason}")
            await asyncio.sleep(wait)
        raise AssertionError("the delays do not end")

    async def _dial(self) -> _Connection:
        token = self._token() if callable(self._token) else self._token
        loopback = is_loopback(self.url.split("//", 1)[1].rsplit(":", 1)[0].strip("[]"))
        # For wss:// the library takes no None.
        secure: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls}
        socket = await dial(
            self.url,
            create_connection=_Connection,
            subprotocols=[self._form.subprotocol],  # type: ignore[list-item]  # Subprotocol is a NewType of str
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            compression=None,
            max_size=None,  # the hub is trusted, and bounds its messages itself
            open_timeout=10,
            close_timeout=2,
            proxy=None if loopback else True,
            **secure,
        )
        assert isinstance(socket, _Connection)
        return socket

    def _fail_all(self, error: FedlabError) -> None:
        for pending in self._pending.values():
            # Each its own exception: one object raised in many tasks would mix up their tracebacks.
            pending.fail(type(error)(error.message, **error.details))


def _refusal(refused: InvalidStatus, url: str) -> FedlabError:
    """What the hub said when it refused the handshake."""
    status = refused.response.status_code
    try:
        said = msgspec.json.decode(refused.response.body or b"", type=protocol.Fault)
    except msgspec.DecodeError:
        return HubUnavailable(f"{url} answers with HTTP {status}: is this a hub?")
    return errors.BY_CODE.get(said.code, HubUnavailable)(f"{url}: {said.message}")
