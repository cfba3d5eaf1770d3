"""What the commands share: the application, common arguments, and opening whatever HUB names."""

from __future__ import annotations

import importlib
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab._interrupts import ended_by_ctrl_c
from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    import contextlib

    from fedlab.net import SyncConnection

app = typer.Typer(name="fedlab", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
MOST_DAYS = 1_000_000
PATIENCE, LONG_PATIENCE = 1.0, 10.0
"""Seconds to go on trying to reach a hub: a command can be typed again, but who follows a log awaits its return."""

HubArgument = Annotated[
    str, typer.Argument(metavar="HUB", help="A hub's directory, or the URL of a running one (ws://… or wss://…).")
]
Token = Annotated[str | None, typer.Option(envvar="FEDLAB_TOKEN", help="For a hub that is not this user's own.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant.")]
OfTenant = Annotated[str, typer.Argument(metavar="TENANT", help="Whose episodes.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Which episodes.")]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE", help="Import it first: it has retention policies of your own. Repeatable."
    ),
]
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


def open_hub(
    target: str, token: str | None, patience: float = PATIENCE
) -> contextlib.AbstractContextManager[SyncConnection]:
    """See `fedlab.net.open_hub`, which is imported when it is needed: `--help` is quick."""
    with ended_by_ctrl_c():
        from fedlab import net

    return net.open_hub(target, token, retry_for=patience)


def import_modules(names: list[str] | None) -> None:
    """Import what a user named.

    Raises:
        InvalidRequest: If one can not be imported.
    """
    # As `python -m` does it: a command that is installed does not look into the working directory.
    if names and (here := os.getcwd()) not in sys.path:  # noqa: PTH109
        sys.path.insert(0, here)
    for name in names or ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InvalidRequest(f"{name} can not be imported: {error}") from None


def moment(text: str | None, option: str) -> datetime | int | None:
    """What a user typed behind an option that takes a number or a time.

    Raises:
        InvalidRequest: If it is neither.
    """
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{option} is a number or a time as 2026-11-30T12:00, not {text!r:.80}") from None
