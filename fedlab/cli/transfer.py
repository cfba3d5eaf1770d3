"""Commands that move a tenant's episodes between hubs."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from fedlab.cli.shared import HubArgument, Token, app, open_hub


@app.command("export")
def export_command(
    hub: HubArgument,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose episodes.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .parquet or .jsonl; made on this machine.")],
    token: Token = None,
) -> None:
    """Write a tenant's episodes, with vectors and sources, to a file."""
    with open_hub(hub, token) as connection:
        typer.echo(str(connection.export_tenant(tenant, file)))


@app.command("import")
def import_command(
    hub: HubArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `fedlab export` wrote.")],
    token: Token = None,
    tenant: Annotated[str | None, typer.Option(help="Store them for this tenant.")] = None,
    embed_again: Annotated[bool, typer.Option("--embed-again", help="Let this hub make the vectors.")] = False,
) -> None:
    """Store the episodes of an exported file; those that are there already are not stored twice."""
    with open_hub(hub, token) as connection:
        typer.echo(str(connection.import_tenant(file, tenant, embed_again=embed_again)))
