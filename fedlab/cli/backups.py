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
_HUB = typer.Argument(metavar="HUB", help="A hub's directory, which may be running, or the URL of a running one.")
_DEST = typer.Argument(
    metavar="DEST", help="A directory that is not there yet, or empty; for a URL a name in the server's --backup-dir."
)


@app.command()
def backup(
    hub: Annotated[str | None, _HUB] = None,
    destination: Annotated[str | None, _DEST] = None,
    base: Annotated[
        str | None, typer.Option(metavar="PREV", help="An earlier backup: write only what is new since.")
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Check a backup, and those that it builds on, instead; for a URL its name."),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the backups in the --backup-dir of a URL's server instead.")
    ] = False,
    token: Token = None,
) -> None:
    """Copy a hub to a new directory, while it works; or check such a copy."""
    from fedlab.clock import SystemClock
    from fedlab.hub.backups import verify_backup, write_backup

    if hub is not None and "://" in hub:
        _backup_there(hub, destination, base, verify, token, listed=listed)
        return
    if listed:
        raise typer.BadParameter("it is a server that has a directory of backups: give its URL", param_hint="--list")
    if verify is not None:
        if hub is not None:
            raise typer.BadParameter("--verify PATH stands alone")
        typer.echo(f"{verify} is whole: {verify_backup(verify)}")
        return
    if hub is None or destination is None:
        raise typer.BadParameter("give HUB and DEST, or --verify PATH")
    # A second process may read the database of a running hub: nothing has to go over the wire.
    manifest = write_backup(_database(hub), Path(destination), SystemClock().now(), Path(base) if base else None)
    typer.echo(str(manifest))


def _backup_there(
    url: str, name: str | None, base: str | None, verify: str | None, token: str | None, *, listed: bool
) -> None:
    """Of a hub behind a URL: its server has the backups."""
    from fedlab.clock import to_datetime
    from fedlab.net import connect_sync

    if sum((name is not None, verify is not None, listed)) != 1:
        raise typer.BadParameter("with a URL give a name to back up to, --verify NAME or --list")
    with connect_sync(url, token) as connection:
        if verify is not None:
            typer.echo(f"{verify} is whole: {connection.verify_backup(verify)}")
        elif name is not None:
            typer.echo(str(connection.backup(name, base=base)))
        else:
            for row in connection.backups().to_dicts():
                kind = f"on {row['base']}" if row["base"] else "full"
                made = to_datetime(row["created_at"]).isoformat(" ", "seconds")
                typer.echo(f"{row['name']}  {made}  change {row['seq']:,}  {row['episodes']:,} episodes  {kind}")


@app.command()
def restore(
    source: Annotated[str, typer.Argument(metavar="BACKUP", help="A backup's directory.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A directory that is not there yet, or empty.")],
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
def fork(hub: Annotated[str, _HUB], destination: Annotated[str, _DEST], at: At = None, token: Token = None) -> None:
    """Make a directory an independent hub with the memory of another, now or as of then."""
    from fedlab.clock import SystemClock
    from fedlab.hub import Hub
    from fedlab.hub.restoring import fork as make_fork
    from fedlab.net import connect_sync

    then = moment(at, "--at")
    if "://" in hub:
        with connect_sync(hub, token) as connection:
            typer.echo(str(connection.fork(destination, at=then)))
        return
    report = make_fork(_database(hub), Path(destination), SystemClock().now(), at=then)
    Hub(destination).close()  # an erasure that was under way is completed there, too
    typer.echo(str(report))


def _database(hub: str) -> Path:
    database = Path(hub) / "hub.db"
    if not database.exists():
        raise InvalidRequest(f"{hub} is no hub: a hub's directory has a hub.db, and a URL begins with ws:// or wss://")
    return database
