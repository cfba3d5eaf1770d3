"""The limits of a hub server: one table of names, defaults and help, for the server, the CLI and the docs."""

from __future__ import annotations

import typing
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from fedlab.errors import InvalidRequest

MIB = 1 << 20

Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1024)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server allows; see `SETTINGS` for what each one means.

    Raises:
        InvalidRequest: On a value that is out of its range, or of another type.
    """

    max_message: Annotated[Bytes, Meta(description="largest message, either way, in bytes")] = 16 * MIB
    max_requests: Annotated[Count, Meta(description="requests under way on one connection")] = 256
    max_bytes: Annotated[Bytes, Meta(description="bytes of requests under way on one connection")] = 32 * MIB
    max_unsent: Annotated[Bytes, Meta(description="bytes of replies that wait for a client before it is cut off")] = (
        64 * MIB
    )
    max_watches: Annotated[Count, Meta(description="subscriptions on one connection")] = 64
    max_connections: Annotated[Count, Meta(description="connections at once")] = 4096
    max_agents_per_tenant: Annotated[Count, Meta(description="agents of one tenant alive at once")] = 10_000
    lease: Annotated[
        Seconds, Meta(description="seconds after which an agent whose connection was lost is marked crashed")
    ] = 30.0
    page_rows: Annotated[Count, Meta(description="most rows in one message of a frame")] = 5_000
    ping_interval: Annotated[Seconds, Meta(description="seconds between pings to a client")] = 20.0
    ping_timeout: Annotated[Seconds, Meta(description="seconds that a client may be silent and read nothing")] = 60.0
    shutdown_timeout: Annotated[
        Seconds, Meta(description="seconds that requests under way get at a clean shutdown")
    ] = 10.0
    origins: Annotated[tuple[str, ...], Meta(description="origins of web pages that may connect; none by default")] = ()

    def __post_init__(self) -> None:
        for name, value in _declared().items():
            try:
                msgspec.convert(getattr(self, name), value)
            except msgspec.ValidationError as error:
                raise InvalidRequest(f"setting {name}: {error}", field=name) from None


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    default: Any
    help: str


def _declared() -> dict[str, Any]:
    global _types
    if not _types:
        _types = typing.get_type_hints(Settings, include_extras=True)
    return _types


def _help(annotated: Any) -> str:
    return next(str(meta.description) for meta in annotated.__metadata__ if getattr(meta, "description", None))


_types: dict[str, Any] = {}
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(name, getattr(Settings(), name), _help(annotated)) for name, annotated in _declared().items()
)
"""Every setting with its default and what it means."""
