"""How a client on the same machine finds a hub's key by itself, as Jupyter does.

The server writes a file into the user's runtime directory; who can read it is the same user, and could
read the hub's files anyway.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import platformdirs

from fedlab.errors import InvalidRequest


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a running server tells the clients of its user.

    Args:
        url: Where it listens.
        pid: Its process.
        data: The hub's directory.
        hub_id: The hub it serves.
        key: The file with the hub's key.
    """

    url: str
    pid: int
    data: str
    hub_id: str
    key: str


_announcement = msgspec.json.Decoder(Announcement).decode


def runtime_directory(*, create: bool = False) -> Path:
    """Where announcements lie: `$FEDLAB_RUNTIME_DIR`, or one in the user's own state directory."""
    path = Path(os.environ.get("FEDLAB_RUNTIME_DIR") or platformdirs.user_state_path("fedlab") / "runtime")
    if create:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def announce(announcement: Announcement) -> Path | None:
    """Write the file for the clients of this user; None if the place is not this user's own."""
    directory = runtime_directory(create=True)
    if not _private(directory):
        return None
    path = directory / f"{urlsplit(announcement.url).port}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(announcement))
    temporary.replace(path)
    return path


def find(url: str) -> Announcement | None:
    """The announcement of the server behind a loopback URL, if this user runs one there."""
    if not is_loopback(urlsplit(url).hostname):
        return None
    return _read(runtime_directory() / f"{_port(url)}.json")


def find_data(data: Path) -> Announcement | None:
    """The announcement of the server that has a hub's directory open, if this user runs one."""
    for path in sorted(runtime_directory().glob("*.json")):
        found = _read(path)
        if found is not None and Path(found.data).resolve() == data.resolve():
            return found
    return None


def _read(path: Path) -> Announcement | None:
    """An announcement that only this user can have written, of a process that still runs."""
    try:
        if not (_private(path.parent) and _private(path)):
            return None
        found = _announcement(path.read_bytes())
        return found if _is_running(found.pid) and _private(found.key) else None
    except (OSError, msgspec.MsgspecError):
        return None


@functools.lru_cache(maxsize=64)
def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine itself."""
    if host is None:
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(url: str) -> str:
    """`url`, if it is one of a hub.

    Raises:
        InvalidRequest: If it is not ws://host:port or wss://host:port.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss") and parts.hostname and _port(url):
            return url
    except ValueError:
        pass
    raise InvalidRequest(
        f"{url!r:.200} is no address of a hub: it looks like ws://127.0.0.1:8443 or wss://host:8443;"
        " for a directory give Hub(directory)"
    )


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "wss" else 80)


def _private(path: str | Path) -> bool:
    """Whether a path is this user's, and nobody else can write or read it."""
    info = os.stat(path)  # noqa: PTH116 - a life begins with three of these
    return os.name != "posix" or (info.st_uid == os.getuid() and not stat.S_IMODE(info.st_mode) & 0o077)


def _is_running(pid: int) -> bool:
    # A file left by a killed hub must not make us send a token to whoever listens on its port now.
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
