"""What agent and spool share on the way to a hub: opening a connection."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    from fedlab.hub import Hub
    from fedlab.net import HubConnection, Role

log = logging.getLogger(__name__)


def open_connection(
    hub: str | Hub | HubConnection,
    token: str | None = None,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    until: float | None = None,
) -> tuple[HubConnection, bool]:
    """A connection to a hub, which reaches out when it is first used, and whether the caller has to close it.

    Args:
        hub: A URL, a `Hub`, or an open connection, which stays with whoever opened it.
        token: For a URL.
        tenant_id: For whom a token is made where the hub's key can be found.
        agent_id: The same; the token then allows what this agent may do, and without it what an admin may.
        until: When the agent's life ends, seconds since 1970, and soon after it such a token; None if that depends
            on a clock of its own.

    Raises:
        InvalidRequest: If `hub` is none of these.
    """
    if isinstance(hub, str) and "://" not in hub:
        raise InvalidRequest(
            f"hub is a URL, a Hub or an open connection, not {hub!r:.80}: open a directory once, with"
            " Hub(directory), and give that to its agents",
            field="hub",
        )
    if isinstance(hub, str):
        from fedlab.net import connect

        role: Role = "admin" if agent_id is None else "agent"
        return connect(hub, token, tenant_id=tenant_id, agent_id=agent_id, role=role, until=until), True
    if hasattr(hub, "put_soon"):
        from fedlab.net import connect

        return connect(hub), True
    if hasattr(hub, "subscribe"):
        return hub, False
    raise InvalidRequest(f"hub is a URL, a Hub or an open connection, not {type(hub).__name__}", field="hub")


def check_token_end(connection: HubConnection, session_id: str, lifetime: float) -> None:
    """Say it at once if an agent's token ends before the agent: what it learns after that no sync would take.

    Args:
        connection: The agent's.
        session_id: The agent.
        lifetime: Seconds from now.
    """
    end: float | None = getattr(connection, "token_end", None)
    if end is not None and (left := end - time.time()) < lifetime:
        log.warning(
            "the token of agent %s ends in %.0f s and its lifetime in %g s: what it has not synced until then can"
            " only be spooled or handed to you; `fedlab token --expires` makes one that outlives its agents",
            session_id,
            left,
            lifetime,
        )
