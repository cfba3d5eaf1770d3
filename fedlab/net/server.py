"""A hub as a server: the listening socket, who may connect, health and metrics, and a clean shutdown.

What a client may ask and how it is answered is in `session.py` and `protocol.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import ssl
import weakref
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from websockets.asyncio.server import serve as listen

from fedlab._words import counted
from fedlab.errors import AuthenticationError, HubLocked, HubUnavailable, InvalidRequest, PermissionDenied
from fedlab.hub import Hub
from fedlab.hub.leases import LONGEST
from fedlab.hub.values import Schedule
from fedlab.net.backups import Backups
from fedlab.net.commits import Commits
from fedlab.net.discovery import Announcement, announce, find_data, is_loopback
from fedlab.net.metrics import Metrics
from fedlab.net.protocol import FORMATS
from fedlab.net.session import WRITE_LIMIT, Connection, Session
from fedlab.net.settings import Settings
from fedlab.net.tokens import KEY_FILE, load_key, read_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta
    from types import TracebackType
    from typing import Any, Self

    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

    from fedlab.embedding import Embedder
    from fedlab.errors import FedlabError
    from fedlab.hub.values import RetentionReport
    from fedlab.net.local import LocalConnection
    from fedlab.net.tokens import Identity

logger = logging.getLogger("fedlab.net")

GOING_AWAY = 1001
CLOSE_TIMEOUT = 5.0
"""Seconds a client gets to answer our goodbye."""
PURGE_INTERVAL = 600.0
"""Seconds between looks for forgotten episodes whose time in the attic is over."""
BACKUP_LOOK = 30.0
"""Most seconds between looks whether a backup is due."""
TOKEN_PROTOCOL = "fedlab.token."  # noqa: S105 - what stands before one
"""Before the token, in the list of subprotocols of a client that can not set `Authorization`."""
WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - recognised here, not bound


class HubServer:
    """Serves a hub over WebSocket; made by `serve`.

    Attributes:
        hub: The hub, once started.
        url: Where clients on this machine reach it.
        port: The port it listens on.
    """

    def __init__(
        self,
        hub: str | Path | Hub,
        host: str,
        port: int,
        *,
        embedder: Embedder | str | None,
        tls: ssl.SSLContext | None,
        retention_interval: float | None,
        backups: Callable[[Hub], Backups] | None,
        keep_forgotten: timedelta | float | None,
        settings: Settings,
    ) -> None:
        self.host = host
        self.port = port
        self.settings = settings
        self.metrics = Metrics()
        self.closing = False
        self.holders: dict[tuple[str, str], LocalConnection] = {}
        self.hub: Hub
        self.commits: Commits
        self.backups: Backups | None = None
        self._given = hub
        self._embedder = embedder
        self._tls = tls
        self._retention_interval = retention_interval
        self._schedule = Schedule()
        self._make_backups = backups
        self._keep_forgotten = keep_forgotten
        self._identities: weakref.WeakKeyDictionary[ServerConnection, Identity] = weakref.WeakKeyDictionary()
        self._sessions: set[Session] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: Server | None = None
        self._announced: Path | None = None
        self._hub_id = ""
        self._key = b""

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        host = "127.0.0.1" if self.host in WILDCARDS else self.host
        return f"{'wss' if self._tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Open the hub and listen.

        Raises:
            InvalidRequest: If the address can not be listened on.
        """
        if isinstance(self._given, Hub):
            self.hub = self._given
        else:
            try:
                self.hub = await asyncio.to_thread(
                    Hub,
                    self._given,
                    embedder=self._embedder,
                    max_agents_per_tenant=self.settings.max_agents_per_tenant,
                    lease=self.settings.lease,
                    keep_forgotten=self._keep_forgotten,
                )
            except HubLocked as locked:
                running = find_data(Path(self._given))
                if running is None:
                    raise
                raise HubLocked(f"{locked.message}. It listens at {running.url}", **locked.details) from None
        try:
            if self._make_backups is not None:
                self.backups = await asyncio.to_thread(self._make_backups, self.hub)
            await self._listen()
        except BaseException:
            await self._close_hub()
            raise

    async def _listen(self) -> None:
        key_file = Path(self.hub.path) / KEY_FILE
        self._key = load_key(key_file, create=True)
        self._hub_id = self.hub.info().hub_id
        self.commits = Commits(self.hub, asyncio.get_running_loop())
        settings = self.settings
        try:
            self._listener = await listen(
                self._serve,
                self.host or None,
                self.port,
                process_request=self._process_request,
                subprotocols=list(FORMATS),  # type: ignore[arg-type]  # Subprotocol is a NewType of str
                compression=None,
                server_header=None,
                max_size=settings.max_message,
                ping_interval=settings.ping_interval,
                ping_timeout=settings.ping_timeout,
                close_timeout=CLOSE_TIMEOUT,
                write_limit=WRITE_LIMIT,
                ssl=self._tls,
                create_connection=Connection,
                start_serving=False,
                logger=logging.getLogger("fedlab.net.websockets"),
            )
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                why = "address already in use. Is another hub running there? Port 0 takes a free one"
            raise InvalidRequest(f"can not listen on {self.host}:{self.port}: {why}") from None
        self.port = next(iter(self._listener.sockets)).getsockname()[1]
        # Announced before the first client can come, and after the port is ours.
        if self.host in WILDCARDS or is_loopback(self.host):
            self._announced = announce(
                Announcement(
                    url=self.url,
                    pid=os.getpid(),
                    data=str(self.hub.path),
                    hub_id=self._hub_id,
                    key=str(key_file.resolve()),
                )
            )
        await self._listener.start_serving()
        self._every(1.0, self.hub.expire_leases)
        self._every(PURGE_INTERVAL, self.hub.purge_forgotten)
        if self.backups is not None and self.backups.interval is not None:
            # Looked at often: one that failed is tried again soon.
            self._every(min(BACKUP_LOOK, self.backups.interval), self.backups.make_due)
        if self._retention_interval is not None:
            # As if it had run on: a server that is started again more often than this applies them, too.
            left = self._retention_interval
            if self.hub.retained_at is not None:
                left = min(max(left - (self.hub.clock.now() - self.hub.retained_at) / 1000, 0), left)
            self._retained(None, left)
            self._every(self._retention_interval, self._apply_retention, left)

    def schedule(self) -> Schedule:
        """What this server does by itself, and when."""
        if self.backups is None:
            return self._schedule
        return msgspec.structs.replace(
            self._schedule,
            backup_directory=str(self.backups.directory),
            backup_interval=self.backups.interval,
            backup_keep=self.backups.keep,
            backup_last_at=self.backups.last_at,
        )

    def _apply_retention(self) -> None:
        try:
            self._retained(self.hub.apply_retention())
        except BaseException:
            self._retained(None)  # when it is tried again
            raise

    def _retained(self, report: RetentionReport | None, left: float | None = None) -> None:
        """Note what the last application of the policies did, and in how many seconds the next one begins."""
        interval, now = self._retention_interval, self.hub.clock.now()
        assert interval is not None
        following = now + int((interval if left is None else left) * 1000)
        self._schedule = msgspec.structs.replace(
            self._schedule, retention_interval=interval, retention_next_at=following
        )
        if report is not None:
            self._schedule = msgspec.structs.replace(self._schedule, retention_last_at=now, retention_last=report)

    async def close(self) -> None:
        """Stop accepting, finish what is under way, say goodbye, close the hub if it was opened here; idempotent."""
        if self.closing or self._listener is None:
            return
        self.closing = True
        self._listener.close(close_connections=False)
        if self._announced is not None:
            self._announced.unlink(missing_ok=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_timeout):
                while any(session.under_way for session in self._sessions):  # noqa: ASYNC110 - rare, and short
                    await asyncio.sleep(0.01)
        goodbyes = [
            asyncio.create_task(session.socket.close(GOING_AWAY, "the hub is shutting down"))
            for session in self._sessions
        ]
        if goodbyes:
            await asyncio.wait(goodbyes)
        await self._listener.wait_closed()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_hub()

    async def _close_hub(self) -> None:
        if not isinstance(self._given, Hub):
            await asyncio.to_thread(self.hub.close)

    async def until_signal(self) -> None:
        """Wait for SIGTERM or SIGINT; then leave `async with serve(…)` to shut down."""
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, came.set)
        await came.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = counted(len(self._sessions), "connection") if self._listener else "not started"
        state = "closed" if self.closing else state
        return f"HubServer({self.url!r}, {state})"

    # --- who may connect -----------------------------------------------------------------------------------

    def _process_request(  # noqa: PLR0911 - one return for each refusal
        self, connection: ServerConnection, request: Request
    ) -> Response | Awaitable[Response | None] | None:
        path = urlsplit(request.path).path
        try:
            self._check_browser(request)
            if path == "/health":
                return self._json(connection, 200, self._health())
            if path == "/metrics":
                return self._metrics(connection)
            if path != "/":
                return self._json(connection, 404, {"code": "not_found", "message": "there are /, /health, /metrics"})
            if self.closing or len(self._sessions) >= self.settings.max_connections:
                reason = "the hub is shutting down" if self.closing else "max_connections is reached"
                return self._refuse(connection, 503, HubUnavailable(reason))
            self._identities[connection] = self._identify(request)
        except PermissionDenied as error:
            return self._refuse(connection, 403, error)
        except AuthenticationError as error:
            return self._refuse(connection, 401, error)
        return None

    def _check_browser(self, request: Request) -> None:
        """A web page must not reach a loopback hub, neither as itself nor by a name that it made resolve to us."""
        hosts = request.headers.get_all("Host")
        host = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 and hosts[0] else None
        if is_loopback(self.host) and not (is_loopback(host) or host == self.host):
            raise PermissionDenied(f"this hub is reached by a loopback name and not by {host!r:.100}")
        for origin in request.headers.get_all("Origin"):
            if origin not in self.settings.origins:
                raise PermissionDenied(f"pages of {origin!r:.100} may not connect: see the setting `origins`")

    def _identify(self, request: Request) -> Identity:
        given = request.headers.get_all("Authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if not given:
            # A page in a browser can set no header but this one.
            offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol")).split(",")
            tokens = [each.strip() for each in offered if each.strip().startswith(TOKEN_PROTOCOL)]
            scheme, token = "bearer", tokens[0].removeprefix(TOKEN_PROTOCOL) if len(tokens) == 1 else ""
        if scheme.lower() != "bearer" or not token.strip():
            raise AuthenticationError(
                "a token is needed, as `Authorization: Bearer …`; `fedlab token --data DIR --tenant T --role R`"
                " makes one, and fedlab.connect(url, token) or $FEDLAB_TOKEN brings it"
            )
        return read_token(self._key, self._hub_id, token.strip())

    def _refuse(self, connection: ServerConnection, status: int, error: FedlabError) -> Response:
        self.metrics.refused[str(status)] += 1
        return self._json(connection, status, {"code": error.code, "message": error.message})

    def _json(self, connection: ServerConnection, status: int, body: dict[str, Any]) -> Response:
        return self._answer(connection, status, msgspec.json.encode(body).decode(), "application/json")

    def _answer(self, connection: ServerConnection, status: int, text: str, kind: str) -> Response:
        response = connection.respond(status, text)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind
        return response

    def _health(self) -> dict[str, Any]:
        info = self.hub.info()
        return {
            "status": "closing" if self.closing else "ok",
            "hub_id": info.hub_id,
            "seq": info.seq,
            "embedder": info.embedder,
            "version": info.version,
        }

    async def _metrics(self, connection: ServerConnection) -> Response:
        self.metrics.backup_age = None if self.backups is None else self.backups.age()
        text = self.metrics.render(await asyncio.to_thread(self.hub.stats))
        return self._answer(connection, 200, text, CONTENT_TYPE_LATEST)

    # --- what runs -----------------------------------------------------------------------------------------

    async def _serve(self, socket: ServerConnection) -> None:
        assert isinstance(socket, Connection)
        session = Session(self, socket, self._identities.pop(socket))
        self._sessions.add(session)
        self.metrics.connections += 1
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
            self.metrics.connections -= 1

    def _every(self, seconds: float, work: Callable[[], object], first: float | None = None) -> None:
        async def repeat() -> None:
            left = seconds if first is None else first
            while not self.hub.closed:
                await asyncio.sleep(left)
                left = seconds
                try:
                    await asyncio.to_thread(work)
                except Exception:
                    if self.hub.closed:
                        return
                    logger.exception("%s failed; it is tried again in %g s", work.__name__, seconds)

        self._tasks.append(asyncio.create_task(repeat()))


def serve(
    data: str | Path | Hub,
    host: str = "127.0.0.1",
    port: int = 8443,
    *,
    embedder: Embedder | str | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    insecure: bool = False,
    retention_interval: float | None = None,
    backup_dir: str | Path | None = None,
    backup_interval: float | None = None,
    backup_keep: int = 7,
    keep_forgotten: timedelta | float | None = None,
    settings: Settings | None = None,
) -> HubServer:
    """Make a hub a server, for `async with`; it listens from there to the end of the block.

    Args:
        data: The hub's directory, or a `Hub`, which then stays open.
        host: Address to listen on.
        port: 0 takes a free one.
        embedder: Of the hub, if it is opened here.
        tls_cert: Certificate chain (PEM).
        tls_key: Its private key (PEM), if it is not in the same file.
        insecure: Listen on other than loopback addresses without TLS.
        retention_interval: Seconds between two applications of the retention policies, also where the server was
            started again since the last; never if None.
        backup_dir: Where backups go, those that an admin asks for over the wire too.
        backup_interval: Seconds between two backups; none on schedule if None.
        backup_keep: So many full backups are kept, each with the incremental ones over it.
        keep_forgotten: As for `Hub`, if it is opened here.
        settings: Limits.

    Raises:
        InvalidRequest: If tokens would travel a network in clear text, or the certificate can not be read.
    """
    for name, interval in {"retention_interval": retention_interval, "backup_interval": backup_interval}.items():
        if interval is not None and not 0 < interval <= LONGEST:
            raise InvalidRequest(f"{name} is a number of seconds above 0, up to {LONGEST:,.0f}, not {interval}")
    if backup_interval is not None and backup_dir is None:
        raise InvalidRequest("backup_interval needs backup_dir: where are the backups to go?")
    tls = None
    if tls_cert is not None:
        try:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(tls_cert, tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequest(f"the TLS certificate {tls_cert} can not be used: {error}") from None
    elif tls_key is not None:
        raise InvalidRequest("tls_key needs tls_cert")
    elif not insecure and not is_loopback(host):
        raise InvalidRequest(
            f"listening on {host or 'all addresses'} without TLS would send tokens in clear text over the network:"
            " give a certificate (tls_cert, tls_key), or say that it is meant (insecure), behind a proxy that ends TLS"
        )
    return HubServer(
        data,
        host,
        port,
        embedder=embedder,
        tls=tls,
        retention_interval=retention_interval,
        backups=None if backup_dir is None else lambda hub: Backups(hub, backup_dir, backup_interval, backup_keep),
        keep_forgotten=keep_forgotten,
        settings=settings or Settings(),
    )
