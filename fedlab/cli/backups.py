"""Commands that copy a hub and bring it back: backup, restore, fork."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.shared import Token, app, moment
from fedlab.errors import InvalidRequest

At = Annotated[
    str | None, typer.Option(help="As of a change (its number) or a time (2026-11-30T12:00, UTC if it says no offset).")
]
HubDirectory = Annotated[str, typer.Argument(metavar="HUB", help="A hub's directory; the hub may be running.")]
Backup = Annotated[Path, typer.Argument(metavar="BACKUP", help="A backup's directory.")]
Destination = Annotated[Path, typer.Argument(metavar="DEST", help="A directory that is not there yet, or empty.")]


@app.command()
def backup(
    hub: Annotated[
        str | None,
        typer.Argument(metavar="HUB", help="A hub's directory, which may be running, or the URL of a running one."),
    ] = None,
    destination: Annotated[
        str | None, typer.Argument(metavar="DEST", help="A directory; for a URL a name in the server's --backup-dir.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="PREV", help="An earlier backup: write only what is new since.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Check a backup instead, and those that it builds on.")
    ] = None,
    token: Token = None,
) -> None:
    """Copy a hub to a new directory, while it works; or check such a copy."""
    from fedlab.clock import SystemClock
    from fedlab.hub.backups import verify_backup, write_backup
    from fedlab.net import connect_sync

    if verify is not None:
        if hub is not None:
            raise typer.BadParameter("--verify PATH stands alone")
        typer.echo(f"{verify} is whole: {verify_backup(verify)}")
        return
    if hub is None or destination is None:
        raise typer.BadParameter("give HUB and DEST, or --verify PATH")
    if "://" in hub:
        with connect_sync(hub, token) as connection:
            typer.echo(str(connection.backup(destination, base=base)))
        return
    # A second process may read the database of a running hub: nothing has to go over the wire.
    manifest = write_backup(_database(hub), Path(destination), SystemClock().now(), Path(base) if base else None)
    typer.echo(str(manifest))


@app.command()
def restore(
    source: Backup,
    destination: Destination,
    at: At = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older or damaged state of the same hub.")
    ] = False,
    ledger_from: Annotated[
        Path | None, typer.Option(help="Another backup or hub directory that knows of later erasures.")
    ] = None,
) -> None:
    """Make a directory the hub that a backup holds, after checking all of it."""
    from fedlab.hub import Hub

    with Hub.restore(source, destination, at=moment(at, "--at"), overwrite=overwrite, ledger_from=ledger_from) as hub:
        typer.echo(f"{hub!r}, change {hub.info().seq:,}, epoch {hub.info().epoch}")


@app.command()
def fork(hub: HubDirectory, destination: Destination, at: At = None) -> None:
    """Make a directory an independent hub with the memory of another, now or as of then."""
    from fedlab.clock import SystemClock
    from fedlab.hub import Hub
    from fedlab.hub.restoring import fork as make_fork

    make_fork(_database(hub), destination, SystemClock().now(), at=moment(at, "--at"))
    with Hub(destination) as forked:
        typer.echo(f"{forked!r}, change {forked.info().seq:,}")


def _database(hub: str) -> Path:
    database = Path(hub) / "hub.db"
    if "://" in hub:
        raise InvalidRequest(f"{hub} is a URL: a fork is made where the hub's directory is")
    if not database.exists():
        raise InvalidRequest(f"{hub} is no hub: a hub's directory has a hub.db, and a URL begins with ws:// or wss://")
    return database
