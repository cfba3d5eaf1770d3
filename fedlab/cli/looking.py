"""Commands that look at a hub: its numbers, its log, whether it is whole."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab._words import counted, one_line
from fedlab.cli.shared import LONG_PATIENCE, PATIENCE, AsJson, HubArgument, Tenant, Token, app, open_hub
from fedlab.errors import CorruptHub

if TYPE_CHECKING:
    from fedlab.hub.values import Change


@app.command()
def stats(hub: HubArgument, token: Token = None, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Print a hub's numbers, and one line for each tenant."""
    import msgspec

    with open_hub(hub, token) as connection:
        info, numbers, tenants = connection.info(), connection.stats(tenant), connection.tenants()
    rows = [row for row in tenants.to_dicts() if tenant in (None, row["tenant_id"])]
    if as_json:
        typer.echo(
            msgspec.json.encode({**msgspec.to_builtins(info), **msgspec.to_builtins(numbers), "by_tenant": rows})
        )
        return
    typer.echo(f"hub {info.hub_id}, change {info.seq:,}, {numbers.bytes / 1e6:,.1f} MB, embedder {info.embedder}")
    kept = f", {numbers.kept:,} of them kept" if numbers.kept else ""
    typer.echo(
        f"{counted(numbers.episodes, 'episode')} ({numbers.forgotten:,} forgotten{kept}),"
        f" {counted(numbers.tenants, 'tenant')}, {counted(numbers.agents, 'agent')} lived,"
        f" {numbers.agents_alive:,} alive"
    )
    width = max([6, *(len(row["tenant_id"]) for row in rows)])
    typer.echo(f"{'tenant':{width}}  {'episodes':>10}  {'agents':>8}  {'alive':>6}  retention")
    for row in rows:
        typer.echo(
            f"{row['tenant_id']:{width}}  {row['episodes']:>10,}  {row['agents']:>8,}  {row['agents_alive']:>6,}"
            f"  {row['retention'] or 'keep everything forever'}"
        )


@app.command()
def tail(
    hub: HubArgument,
    token: Token = None,
    tenant: Tenant = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=1_000_000_000, help="So many of the last changes first.")
    ] = 10,
    follow: Annotated[bool, typer.Option(help="Go on as changes are committed, until Ctrl-C.")] = True,
    as_json: AsJson = False,
) -> None:
    """Print the end of the change log, and follow it."""
    import msgspec

    patience = LONG_PATIENCE if follow else PATIENCE
    with open_hub(hub, token, patience) as connection, contextlib.suppress(KeyboardInterrupt):
        last = connection.info().seq
        # A tenant's last changes may lie far back: look further until there are enough, or nothing is before.
        span = lines
        while len(frame := connection.changes(max(0, last - span), tenant_id=tenant)) < lines and span < last:
            span *= 8
        rows = frame.tail(lines).to_dicts()
        for row in rows:
            _print_change(msgspec.convert(row, _change_type()), as_json=as_json)
        if follow:
            for change in connection.subscribe(tenant, after=rows[-1]["seq"] if rows else last):
                _print_change(change, as_json=as_json)


def _change_type() -> type[Change]:
    from fedlab.hub.values import Change

    return Change


def _print_change(change: Change, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        typer.echo(msgspec.json.encode(change))
        return
    at = datetime.fromtimestamp(change.at / 1000).astimezone().isoformat(" ", "milliseconds")
    reason = f"  ({one_line(change.reason)})" if change.reason else ""
    typer.echo(f"{change.seq:>8}  {at}  {change.tenant_id}  {change.kind}  {change.subject}  by {change.actor}{reason}")


@app.command()
def verify(hub: HubArgument, token: Token = None) -> None:
    """Read everything and check that database, log and index agree; exit code 3 if they do not."""
    try:
        with open_hub(hub, token) as connection:
            report = connection.verify()
    except CorruptHub as error:
        typer.echo(f"fedlab: {error.message}", err=True)
        raise typer.Exit(3) from None
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(3)
