"""`RemoteConnection`: a hub behind a URL. Requests are pipelined by id; a lost connection is taken up again.

Every request is repeatable, so what was not acknowledged when a connection broke is sent again on the next one:
episodes are known by their ids, a spawn is repeated as a resume, and reading or applying a policy twice does no
harm (only `forget` and `apply_retention` may then count what their first try removed as not there).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import ssl
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.asyncio.server import broadcast
from websockets.client import backoff
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode

from fedlab import errors
from fedlab.episode import Episode, to_vector
from fedlab.errors import AuthenticationError, FedlabError, HubUnavailable, InvalidRequest, QuotaExceeded
from fedlab.net import protocol
from fedlab.net.discovery import check_url, is_loopback
from fedlab.net.local import follow
from fedlab.net.protocol import JSON, METHODS, MSGPACK, Page
from fedlab.net.session import EXPIRED
from fedlab.net.settings import Settings
from fedlab.recall import Filter, RecallPolicy, check_k
from fedlab.retention import RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt
    import polars as pl
    from websockets.protocol import Event

    from fedlab.episode import Memory
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

logger = logging.getLogger("fedlab.net")

IN_FLIGHT = 128
"""Requests under way on one connection; others wait here. Below the server's `max_requests`, so that the server
never has to stop reading us: then it would not see our pongs."""
SLOW = 10
"""How many time-outs a slow method gets."""
SECONDS_PER_TEXT = 0.1
"""What the hub's model may take for a text: added to the time-out of a push without vectors."""
TRIES = 5
"""How often one request is sent, on so many connections that broke."""


class _Pending:
    """A request that waits for its answer."""

    __slots__ = ("data", "future", "method", "pages", "params", "tries")

    def __init__(self, method: str, params: protocol.Params, data: bytes, future: asyncio.Future[Any]) -> None:
        self.method = method
        self.params = params
        self.data = data
        self.future = future
        self.pages: list[Page] = []
        self.tries = 0

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            # Seen: where the caller is gone it is nobody's business, and asyncio shall not log it.
            self.future.exception()


class _Connection(ClientConnection):
    """Hands each answer on as soon as it is there: without a task that is woken for it."""

    take: Callable[[bytes | bytearray | memoryview], None] | None = None

    def process_event(self, event: Event) -> None:
        if (
            self.take is not None
            and isinstance(event, Frame)
            and event.fin
            and event.opcode in (Opcode.TEXT, Opcode.BINARY)
        ):
            self.take(event.data)
        else:
            super().process_event(event)


class RemoteConnection:
    """A hub behind a URL; connects when it is first used.

    Args:
        url: `ws://host:port` or `wss://host:port`.
        token: The token, or what gives one for each connection attempt (None where there is none).
        timeout: Seconds to wait for an answer; slow methods (frames, verify, retention) get ten times as long.
        retry_for: Seconds to go on trying to reach a hub that is away. While it is known to be away, a call
            tries once.
        json: Speak JSON instead of MessagePack.
        tls: How to check the hub's certificate; the system's authorities if not given.
        max_message: Largest message in bytes; not above the server's.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None = None,
        *,
        timeout: float = 30.0,
        retry_for: float = 10.0,
        json: bool = False,
        tls: ssl.SSLContext | None = None,
        max_message: int = Settings().max_message,
    ) -> None:
        self.url = check_url(url)
        self._token = token
        self._timeout = timeout
        self._retry_for = retry_for
        self._form: protocol.Format[Any] = JSON if json else MSGPACK
        self._tls = tls
        self._max_message = max_message
        self._socket: _Connection | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._agents: dict[tuple[str, str], tuple[float, float]] = {}  # lifetime, and its end on our clock
        self._away = False
        self._closed = False

    async def info(self) -> HubInfo:
        """Who the hub is."""
        return await self._ask("info", protocol.Params())  # type: ignore[no-any-return]

    async def put(self, episodes: Episode | Sequence[Episode]) -> int:
        """Store episodes; durable when it returns. All or none, so they must fit in one message."""
        batch = _episodes(episodes)
        return await self._ask("put", protocol.Put(episodes=batch), extra=_embedding_time(batch))  # type: ignore[no-any-return]

    async def recall(
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
        """The k best memories for a query; `vectors=True` brings each episode's vector along."""
        where = Filter.of(min_reward, since, until, task, agent_id)
        text = isinstance(query, str)
        params = protocol.Recall(
            tenant_id=tenant_id,
            text=query if text else None,  # type: ignore[arg-type]  # checked in the line above
            vector=None if text or query is None else to_vector(query),  # type: ignore[arg-type]
            k=check_k(k),
            policy=policy,
            vectors=vectors,
            **msgspec.structs.asdict(where),
        )
        return await self._ask("recall", params)  # type: ignore[no-any-return]

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of texts, shape (len(texts), dimension), float16."""
        vectors = await self._ask("embed", protocol.Embed(texts=list(texts)))
        return (
            np.array(vectors, dtype=np.float16) if vectors else np.empty((0, (await self.info()).dimension), np.float16)
        )

    async def spawn_agent(self, tenant_id: str, agent_id: str, *, lifetime: float, resume: bool = False) -> AgentRecord:
        """Register a life of `lifetime` seconds; the connection holds its lease, and takes it up again if it breaks."""
        params = protocol.SpawnAgent(tenant_id=tenant_id, agent_id=agent_id, lifetime=lifetime, resume=resume)
        record: AgentRecord = await self._ask("spawn_agent", params)
        self._agents[tenant_id, agent_id] = (lifetime, asyncio.get_running_loop().time() + lifetime)
        return record

    async def sync_agent(
        self,
        tenant_id: str,
        agent_id: str,
        episodes: Sequence[Episode] = (),
        *,
        after: int,
        limit: int = 100,
        ending: Ending | None = None,
    ) -> Delta:
        """Push episodes and learn what others stored and what was forgotten after seq `after`."""
        batch = _episodes(episodes)
        params = protocol.SyncAgent(
            tenant_id=tenant_id, agent_id=agent_id, episodes=batch, after=after, limit=limit, ending=ending
        )
        delta: Delta = await self._ask("sync_agent", params, extra=_embedding_time(batch))
        if ending is not None:
            self._agents.pop((tenant_id, agent_id), None)
        return delta

    async def forget(self, tenant_id: str, ids: Sequence[str], *, reason: str) -> int:
        """Forget episodes by id; returns how many there were."""
        if isinstance(ids, str):
            raise InvalidRequest(f"ids must be a sequence of episode ids, not {ids!r:.80}", field="ids")
        params = protocol.Forget(tenant_id=tenant_id, ids=list(ids), reason=reason)
        return await self._ask("forget", params)  # type: ignore[no-any-return]

    async def episodes(
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
        """Live episodes as a frame, oldest first."""
        where = msgspec.structs.asdict(Filter.of(min_reward, since, until, task, agent_id))
        return await self._frame("episodes", protocol.Episodes(tenant_id=tenant_id, after=after, limit=limit, **where))

    async def agents(self, tenant_id: str | None = None, *, status: str | None = None) -> pl.DataFrame:
        """The agent registry as a frame."""
        return await self._frame("agents", protocol.Agents(tenant_id=tenant_id, status=status))

    async def tenants(self) -> pl.DataFrame:
        """The tenants as a frame, with their numbers."""
        return await self._frame("tenants", protocol.Params())

    async def changes(
        self, after: int = 0, *, tenant_id: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """The change log as a frame, oldest first."""
        return await self._frame("changes", protocol.Changes(tenant_id=tenant_id, after=after, kind=kind, limit=limit))

    async def watch(
        self, after: int, *, tenant_id: str | None = None, limit: int = 1_000, wait: float = 20.0
    ) -> list[Change]:
        """The next changes after seq `after`; none if there is none within `wait` seconds."""
        params = protocol.Watch(tenant_id=tenant_id, after=after, limit=limit, wait=wait)
        return await self._ask("watch", params, extra=wait)  # type: ignore[no-any-return]

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end.

        It goes on where it was after a lost connection, and raises `HubUnavailable` only when the hub stays away.
        """
        # Sent now and not at the first step of the iteration: what is put after this line must be seen.
        start = self._submit("info", protocol.Params()) if after is None else None
        return self._follow(tenant_id, after or 0, start)

    async def stats(self, tenant_id: str | None = None) -> Stats:
        """The hub, or one tenant, in numbers."""
        return await self._ask("stats", protocol.ForAnyTenant(tenant_id=tenant_id))  # type: ignore[no-any-return]

    async def verify(self) -> VerifyReport:
        """Check that database, log and index agree."""
        return await self._ask("verify", protocol.Params())  # type: ignore[no-any-return]

    async def set_retention(self, tenant_id: str, policy: RetentionPolicy) -> int:
        """Store a tenant's retention policy; returns the seq."""
        return await self._ask("set_retention", _policy(tenant_id, policy))  # type: ignore[no-any-return]

    async def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy."""
        return RetentionPolicy.from_json(await self._ask("retention", protocol.ForTenant(tenant_id=tenant_id)))

    async def preview_retention(self, tenant_id: str, policy: RetentionPolicy) -> RetentionPreview:
        """What a policy would do now; changes nothing."""
        return await self._ask("preview_retention", _policy(tenant_id, policy))  # type: ignore[no-any-return]

    async def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all."""
        return await self._ask("apply_retention", protocol.ForAnyTenant(tenant_id=tenant_id))  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Let go of the hub; what waits for an answer raises HubUnavailable. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._fail_all(HubUnavailable(f"the connection to {self.url} is closed"))
        if self._socket is not None:
            await self._socket.close()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def __aenter__(self) -> Self:
        """Connect, so that a wrong address or token shows here."""
        await self.info()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._socket else "not connected"
        return f"RemoteConnection({self.url!r}, {state})"

    # --- requests ------------------------------------------------------------------------------------------

    async def _ask(self, method: str, params: protocol.Params, *, extra: float = 0.0) -> Any:
        patience = self._timeout * (SLOW if METHODS[method].slow else 1) + extra
        # A watch waits without work for the server, and must not take the place of what has some.
        async with contextlib.nullcontext() if method == "watch" else self._slots:
            return await self._outcome(self._submit(method, params), patience)

    async def _outcome(self, number: int, patience: float) -> Any:
        pending = self._pending[number]
        try:
            async with asyncio.timeout(patience):
                return await pending.future
        except TimeoutError:
            raise HubUnavailable(f"{self.url} did not answer {pending.method} within {patience:g} s") from None
        finally:
            self._pending.pop(number, None)

    async def _frame(self, method: str, params: protocol.Params) -> pl.DataFrame:
        return protocol.to_frame(await self._ask(method, params))

    async def _follow(self, tenant_id: str | None, after: int, start: int | None) -> AsyncIterator[Change]:
        if start is not None:
            after = (await self._outcome(start, self._timeout)).seq
        async for change in follow(self, tenant_id, after):
            yield change

    def _submit(self, method: str, params: protocol.Params) -> int:
        """Send a request, or have it sent by the next connection; returns its id."""
        if self._closed:
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
        # Written at once: the order of calls is the order on the wire, and a cancelled call can not stop half-way.
        broadcast([socket], pending.data.decode() if self._form.text else pending.data)

    def _receive(self, data: bytes | bytearray | memoryview) -> None:
        number, result, fault, more = self._form.decode_answer(data)
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
            while not self._closed:
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
            socket.take = self._receive
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
        for (tenant_id, agent_id), (lifetime, _) in self._agents.items():
            resume = protocol.SpawnAgent(tenant_id=tenant_id, agent_id=agent_id, lifetime=lifetime, resume=True)
            data = self._form.encode(protocol.Request(next(self._ids), "spawn_agent", resume))
            broadcast([socket], data.decode() if self._form.text else data)
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
        for delay in backoff(initial_delay=0.1, min_delay=0.1, max_delay=2.0, factor=1.6):
            try:
                return await self._dial()
            except InvalidStatus as refused:
                error = _refusal(refused, self.url)
                if refused.response.status_code != 503:
                    raise error from None
                reason = error.message
            except ssl.SSLError as failed:
                raise HubUnavailable(f"{self.url}: the TLS connection failed: {failed}") from None
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
            ssl=self._tls,
        )
        assert isinstance(socket, _Connection)
        return socket

    def _fail_all(self, error: FedlabError) -> None:
        for pending in self._pending.values():
            # Each its own exception: one object raised in many tasks would mix up their tracebacks.
            pending.fail(type(error)(error.message, **error.details))


def _episodes(episodes: Episode | Sequence[Episode]) -> list[Episode]:
    batch = [episodes] if isinstance(episodes, Episode) else list(episodes)
    for episode in batch:
        if not isinstance(episode, Episode):
            raise InvalidRequest(f"an Episode is wanted, not {type(episode).__name__} {episode!r:.80}")
    return batch


def _embedding_time(batch: list[Episode]) -> float:
    return SECONDS_PER_TEXT * sum(episode.vector is None for episode in batch)


def _policy(tenant_id: str, policy: RetentionPolicy) -> protocol.Policy:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidRequest(f"a retention policy is one of fedlab.retention, not {policy!r:.80}")
    return protocol.Policy(tenant_id=tenant_id, policy=policy.to_json())


def _refusal(refused: InvalidStatus, url: str) -> FedlabError:
    """What the hub said when it refused the handshake."""
    status = refused.response.status_code
    try:
        said = msgspec.json.decode(refused.response.body or b"", type=protocol.Fault)
    except msgspec.DecodeError:
        return HubUnavailable(f"{url} answers with HTTP {status}: is this a hub?")
    return errors.BY_CODE.get(said.code, HubUnavailable)(f"{url}: {said.message}")
