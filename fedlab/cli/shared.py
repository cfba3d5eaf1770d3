"""What the commands share: the application, common arguments, and opening whatever HUB names."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.errors import HubLocked, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedlab.net import SyncConnection

app = typer.Typer(name="fedlab", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
PATIENCE, LONG_PATIENCE = 1.0, 10.0
"""Seconds to go on trying to reach a hub: a command can be typed again, but who follows a log awaits its return."""

HubArgument = Annotated[
    str, typer.Argument(metavar="HUB", help="A hub's directory, or the URL of a running one (ws://… or wss://…).")
]
Token = Annotated[str | None, typer.Option(envvar="FEDLAB_TOKEN", help="For a hub that is not this user's own.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from fedlab import __version__

        typer.echo(f"fedlab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """A persistent memory for agents that come and go."""


@contextlib.contextmanager
def open_hub(target: str, token: str | None, patience: float = PATIENCE) -> Iterator[SyncConnection]:
    """A connection to a URL, to a directory, or to the running hub that has that directory open."""
    from fedlab.hub import Hub
    from fedlab.net import connect_sync
    from fedlab.net.discovery import find_data

    if "://" in target:
        with connect_sync(target, token, retry_for=patience) as connection:
            yield connection
        return
    path = Path(target)
    if not (path / "hub.db").exists():
        raise InvalidRequest(
            f"{target} is no hub: a hub's directory has a hub.db, and a URL begins with ws:// or wss://"
        )
    try:
        hub = Hub(path)
    except HubLocked:
        running = find_data(path)
        if running is None:
            raise
        with connect_sync(running.url, token, retry_for=patience) as connection:
            yield connection
        return
    with hub, connect_sync(hub) as connection:
        yield connection
