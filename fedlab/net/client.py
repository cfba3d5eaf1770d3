"""`RemoteConnection`: a hub behind a URL, as a `HubConnection`. The socket is `link.py`'s business.

Every request is repeatable, so what was not acknowledged when a connection broke is sent again on the next one:
episodes are known by their ids, a spawn is repeated as a resume, and reading or applying a policy twice does no
harm (only `forget` and `apply_retention` may then count what their first try removed as not there, and an erasure may
find that its first try has erased everything; `erasures` tells).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedlab.errors import AuthenticationError
from fedlab.net import protocol
from fedlab.net.connection import HubConnection
from fedlab.net.discovery import check_url
from fedlab.net.link import Link
from fedlab.net.pages import Page, to_frame
from fedlab.net.protocol import JSON, METHODS, MSGPACK
from fedlab.net.settings import Settings
from fedlab.net.tokens import token_end

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from fedlab.hub.values import Change

SECONDS_PER_TEXT = 0.1
"""What the hub's model may take for a text: added to the time-out of a push without vectors."""


class RemoteConnection(HubConnection):
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
        from_environment: Whether the token is that of $FEDLAB_TOKEN: then an error says so.

    Attributes:
        token_end: When the token ends, seconds since 1970; None if it can be made anew, or does not say.
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
        from_environment: bool = False,
    ) -> None:
        self.url = check_url(url)
        self.token_end = token_end(token) if isinstance(token, str) else None
        self._from_environment = from_environment
        self._link = Link(
            url,
            token,
            JSON if json else MSGPACK,
            timeout=timeout,
            retry_for=retry_for,
            tls=tls,
            max_message=max_message,
        )

    async def call(self, method: str, params: protocol.Params) -> Any:
        """Ask the hub; sent again on the next connection if this one breaks."""
        try:
            answer = await self._link.ask(method, params, extra=_extra_time(params))
        except AuthenticationError as error:
            if not self._from_environment:
                raise
            # Nobody who connects thinks of it, and on his own machine he would need none.
            raise AuthenticationError(f"{error.message} (the token is that of $FEDLAB_TOKEN)") from None
        if isinstance(params, protocol.SpawnAgent):
            self._link.hold(params)
        elif isinstance(params, protocol.SyncAgent) and params.ending is not None:
            self._link.drop(params.tenant_id, params.agent_id)
        return to_frame(answer) if METHODS[method].result is Page else answer

    def subscribe(self, tenant_id: str | None = None, *, after: int | None = None) -> AsyncIterator[Change]:
        """Changes as they are committed, from seq `after` on (from now on if None), without end.

        It goes on where it was after a lost connection, and raises `HubUnavailable` only when the hub stays away;
        `InvalidRequest` when it was restored, whose log is another one from some seq on.
        """
        if after is not None:
            return self._follow(tenant_id, after)
        # Sent now and not at the first step of the iteration: what is put after this line must be seen.
        return self._follow_from(tenant_id, self._link.submit("info", protocol.Params()))

    async def _follow_from(self, tenant_id: str | None, info: int) -> AsyncIterator[Change]:
        begun = await self._link.outcome(info)
        async for change in self._follow(tenant_id, begun.seq, begun.epoch):
            yield change

    async def close(self) -> None:
        """Let go of the hub; what waits for an answer raises HubUnavailable. Idempotent."""
        await self._link.close()

    def __repr__(self) -> str:
        state = "closed" if self._link.closed else "connected" if self._link.connected else "not connected"
        return f"RemoteConnection({self.url!r}, {state})"


def _extra_time(params: protocol.Params) -> float:
    """Seconds that a request may take beyond the usual, if it is in order."""
    if isinstance(params, (protocol.Put, protocol.SyncAgent)):
        return SECONDS_PER_TEXT * sum([episode.vector is None for episode in params.episodes])
    return params.wait if isinstance(params, protocol.Watch) else 0.0
