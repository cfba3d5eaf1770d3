"""`connect` and `connect_sync`: from an address or a `Hub` to a connection, and the token that it needs."""

from __future__ import annotations

import functools
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab.errors import InvalidRequest
from fedlab.hub import Hub
from fedlab.net.client import RemoteConnection
from fedlab.net.connection import HubConnection
from fedlab.net.discovery import check_url, find
from fedlab.net.local import LocalConnection
from fedlab.net.sync import SyncConnection
from fedlab.net.tokens import Role, load_key, make_token

if TYPE_CHECKING:
    from typing import Any

TOKEN_LIFETIME = 3600.0
"""Seconds that a token lives which a client made for itself; each connection attempt makes a new one."""
GRACE = 60.0
"""Seconds that such a token outlives the agent it is for: its last sync may have to wait for the hub."""


def connect(
    target: str | Hub | HubConnection,
    token: str | None = None,
    *,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    role: Role = "admin",
    timeout: float = 30.0,
    retry_for: float = 10.0,
    json: bool = False,
    tls_ca: str | Path | None = None,
    max_message: int | None = None,
    until: float | None = None,
) -> HubConnection:
    """Reach a hub from anywhere: for `async with`, or to be used directly and closed in the end.

    Without a token, $FEDLAB_TOKEN is used; without that, a hub that the same user runs on this machine is found
    and a token for it is made, for which `tenant_id`, `agent_id` and `role` say what it may do.

    Args:
        target: A URL (`ws://…`, `wss://…`), an embedded `Hub` (which stays open when the connection is closed),
            or a connection, which is returned as it is.
        token: As `fedlab token` prints it.
        tenant_id: The only tenant that a token made here allows.
        agent_id: The only agent that a token made here allows.
        role: What a token made here allows.
        timeout: Seconds to wait for an answer.
        retry_for: Seconds to go on trying to reach a hub that is away.
        json: Speak JSON instead of MessagePack.
        tls_ca: Certificates (PEM) to trust for `wss://`, instead of the system's.
        max_message: Largest message in bytes; not above the server's.
        until: When who needs the connection dies, seconds since 1970: a token made here ends a minute later, and
            otherwise an hour after it was made.

    Raises:
        InvalidRequest: If the target is none of these.
    """
    if isinstance(target, Hub):
        return LocalConnection(target)
    if isinstance(target, HubConnection):
        return target
    if not isinstance(target, str):
        raise InvalidRequest(f"connect() takes a URL or a Hub, not {type(target).__name__} {target!r:.80}")
    options: dict[str, Any] = {} if max_message is None else {"max_message": max_message}
    if tls_ca is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=str(tls_ca))
        except OSError as error:
            raise InvalidRequest(f"the certificates {tls_ca} can not be used: {error}") from None
    found = os.environ.get("FEDLAB_TOKEN", "").strip() or None
    given = found if token is None else token
    if given is not None:
        given = _plain(given)
        options["from_environment"] = given == found
    find_token = functools.partial(_found_token, check_url(target), tenant_id, agent_id, role, until)
    return RemoteConnection(
        target, find_token if given is None else given, timeout=timeout, retry_for=retry_for, json=json, **options
    )


def connect_sync(
    target: str | Hub,
    token: str | None = None,
    *,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    role: Role = "admin",
    timeout: float = 30.0,
    retry_for: float = 10.0,
    json: bool = False,
    tls_ca: str | Path | None = None,
    max_message: int | None = None,
) -> SyncConnection:
    """Reach a hub from code without an event loop, for `with`; the arguments are those of `connect`."""
    return SyncConnection(
        lambda: connect(
            target,
            token,
            tenant_id=tenant_id,
            agent_id=agent_id,
            role=role,
            timeout=timeout,
            retry_for=retry_for,
            json=json,
            tls_ca=tls_ca,
            max_message=max_message,
        )
    )


def _found_token(url: str, tenant_id: str | None, agent_id: str | None, role: Role, until: float | None) -> str | None:
    found = find(url)
    if found is None:
        return None
    expires_in = TOKEN_LIFETIME if until is None else max(0.0, until - time.time()) + GRACE
    return make_token(load_key(Path(found.key)), found.hub_id, tenant_id, role, agent_id, expires_in)


def _plain(token: str) -> str:
    """A token without the line end of the file that it was read from.

    Raises:
        InvalidRequest: If it can be none.
    """
    plain = token.strip() if isinstance(token, str) else ""
    if plain.isascii() and plain.isprintable() and plain and " " not in plain:
        return plain
    what = "the token is empty" if token == "" else "this is no token: it is what `fedlab token` prints"
    raise InvalidRequest(f"{what}; leave it out (None) to use your own rights on this machine", field="token")
