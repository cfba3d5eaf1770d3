"""`open_hub`: a connection to whatever a person named: a URL, a directory, or the running hub that has it open."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab.errors import HubLocked, InvalidRequest
from fedlab.hub import Hub
from fedlab.net.connecting import connect_sync
from fedlab.net.discovery import find_data

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from fedlab.net.sync import SyncConnection


@contextlib.contextmanager
def open_hub(
    target: str | os.PathLike[str], token: str | None = None, *, retry_for: float = 1.0
) -> Iterator[SyncConnection]:
    """Reach a hub by URL or directory; a directory that a running hub of this user has open is reached through it.

    Args:
        target: `ws://…`, `wss://…`, or a directory, which is open until the end of the `with`.
        token: As `fedlab token` prints it; see `connect`.
        retry_for: Seconds to go on trying to reach a hub that is away.

    Raises:
        InvalidRequest: If it is neither.
        HubLocked: If another process has the directory open and is no hub of this user.
    """
    name = str(target)
    if "://" in name:
        with connect_sync(name, token, retry_for=retry_for) as connection:
            yield connection
        return
    path = Path(name)
    if not (path / "hub.db").exists():
        raise InvalidRequest(f"{name} is no hub: a hub's directory has a hub.db, and a URL begins with ws:// or wss://")
    try:
        hub = Hub(path)
    except HubLocked:
        running = find_data(path)
        if running is None:
            raise
        with connect_sync(running.url, token, retry_for=retry_for) as connection:
            yield connection
        return
    with hub, connect_sync(hub) as connection:
        yield connection
