"""Commands that erase for good, and the ledger of what was erased."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from fedlab._words import counted, one_line
from fedlab.cli.shared import AsJson, HubArgument, Ids, OfTenant, Token, app, open_hub
from fedlab.errors import InvalidRequest


@app.command()
def erase(
    hub: HubArgument,
    tenant: OfTenant,
    reason: Annotated[str, typer.Option(help="Kept in the log; leave the names of what is erased out.")],
    ids: Ids = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent of the tenant, with its episodes.")] = None,
    even_held: Annotated[bool, typer.Option("--even-held", help="Held episodes too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the tenant's name again.")] = False,
    token: Token = None,
) -> None:
    """Erase a tenant, an agent or episodes from every file of a hub, and print the evidence."""
    if agent is not None and ids:
        raise typer.BadParameter("erase an agent or some episodes, not both", param_hint="--agent")
    what = f"agent {agent} of " if agent else f"{counted(len(ids), 'episode')} of " if ids else ""
    if not yes and typer.prompt(f"{what}{tenant} will be erased, and nothing brings it back. Its name?") != tenant:
        raise InvalidRequest("that is another name: nothing was erased")
    with open_hub(hub, token) as connection:
        if agent is not None:
            report = connection.erase_agent(tenant, agent, reason=reason, even_held=even_held)
        elif ids:
            report = connection.erase_episodes(tenant, ids, reason=reason, even_held=even_held)
        else:
            report = connection.erase_tenant(tenant, reason=reason, even_held=even_held)
    typer.echo(str(report))
    if report.unknown:
        typer.echo(f"never here: {', '.join(map(repr, report.unknown))}; spelled right?", err=True)


@app.command()
def erasures(hub: HubArgument, token: Token = None, as_json: AsJson = False) -> None:
    """Print the ledger of erasures: hashes and numbers."""
    import msgspec

    with open_hub(hub, token) as connection:
        rows = connection.erasures().to_dicts()
    for row in rows:
        if as_json:
            typer.echo(msgspec.json.encode(row))
            continue
        at = datetime.fromtimestamp(row["at"] / 1000, UTC).isoformat(" ", "seconds")
        whose = row["tenant_hash"] + (f"/{row['agent_hash']}" if row["agent_hash"] else "")
        by = f"  by {row['actor']} ({one_line(row['reason'])})" if row["actor"] else ""
        counts = counted(row["episodes"], "episode"), counted(row["agents"], "life", "lives")
        what = ", ".join([*counts, counted(row["changes"], "change")]) + ("" if row["done_at"] else "  under way")
        typer.echo(f"{row['id']}  {at}  {row['scope']} {whose}  {what}{by}")
