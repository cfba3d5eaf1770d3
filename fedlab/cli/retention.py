"""Commands that decide what a hub forgets: retention policies and holds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from fedlab._words import counted, one_line
from fedlab.cli.shared import (
    MOST_DAYS,
    AsJson,
    HubArgument,
    Ids,
    Import,
    OfTenant,
    Token,
    app,
    import_modules,
    moment,
    open_hub,
)
from fedlab.errors import InvalidRequest

Reason = Annotated[str | None, typer.Option(help="Kept in the log.")]
Task = Annotated[str | None, typer.Option(help="Episodes of this task.")]
Agent = Annotated[str | None, typer.Option(help="Episodes made by this agent.")]
MinReward = Annotated[float | None, typer.Option(help="Episodes with at least this reward.")]
Since = Annotated[str | None, typer.Option(help="Episodes made at this time or later (2026-11-30T12:00, or ms UTC).")]
Until = Annotated[str | None, typer.Option(help="Episodes made before this time.")]
All = Annotated[bool, typer.Option("--all", help="All episodes of the tenant.")]


@app.command()
def retention(
    hub: HubArgument,
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Whose policy; all tenants' if none.")
    ] = None,
    token: Token = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--set",
            metavar="POLICY",
            help="Store a policy (with --preview: only look at it): MaxAge(90) & MinReward(0.7), or JSON.",
        ),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Say what would go, and change nothing.")] = False,
    after: Annotated[
        float, typer.Option(metavar="DAYS", min=0, max=MOST_DAYS, help="With --preview: so many days from now.")
    ] = 0,
    apply: Annotated[bool, typer.Option("--apply", help="Remove what the stored policy removes, now.")] = False,
    imports: Import = None,
    as_json: AsJson = False,
) -> None:
    """Print a tenant's retention policy, or set, preview or apply one; without a TENANT print or apply all."""
    from fedlab.retention import RetentionPolicy

    if preview and apply:
        raise typer.BadParameter("--preview changes nothing: leave --apply out")
    if tenant is None and (preview or policy is not None):
        raise typer.BadParameter("whose policy? --set and --preview take a TENANT")
    import_modules(imports)
    try:
        given = None if policy is None else RetentionPolicy.parse(policy)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="--set") from None
    with open_hub(hub, token) as connection:
        if preview and tenant is not None:
            _print(connection.preview_retention(tenant, given, after=timedelta(days=after)), as_json=as_json)
            return
        if given is not None and tenant is not None:
            connection.set_retention(tenant, given)
        if apply:
            report = connection.apply_retention(tenant)
            _print(report, as_json=as_json)
            if report.failed:
                raise typer.Exit(1)
            return
        for each in connection.tenants()["tenant_id"] if tenant is None else [tenant]:
            stored = connection.retention(each)
            typer.echo(stored.to_json() if as_json else f"{each}: {stored}\n{stored!r}")


def _print(result: object, *, as_json: bool) -> None:
    import msgspec

    typer.echo(msgspec.json.encode(result) if as_json else str(result))


@app.command()
def forget(
    hub: HubArgument,
    tenant: OfTenant,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Which episodes.")],
    reason: Annotated[str, typer.Option(help="Kept in the log.")],
    token: Token = None,
) -> None:
    """Remove episodes; the log keeps their ids and why. What must be in no file any more takes `fedlab erase`."""
    with open_hub(hub, token) as connection:
        forgotten = connection.forget(tenant, ids, reason=reason)
    typer.echo(f"{counted(forgotten, 'episode')} forgotten")
    if nothing := len({*ids}) - forgotten:
        typer.echo(f"of {nothing} of the ids nothing was here: are they spelled right?", err=True)


@app.command()
def hold(
    hub: HubArgument,
    tenant: OfTenant,
    ids: Ids = None,
    reason: Reason = None,
    task: Task = None,
    agent: Agent = None,
    min_reward: MinReward = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Exempt episodes from every policy until they are released; without a --reason, list what is held."""
    import msgspec

    chosen = ids or everything or any(each is not None for each in (task, agent, min_reward, since, until))
    if chosen and reason is None:
        raise typer.BadParameter("nothing was held: a hold takes a --reason")
    with open_hub(hub, token) as connection:
        if reason is not None:
            new = connection.hold(
                tenant,
                ids or None,
                reason=reason,
                task=task,
                agent_id=agent,
                min_reward=min_reward,
                since=0 if everything else moment(since, "--since"),
                until=moment(until, "--until"),
            )
            typer.echo(f"{counted(new, 'episode')} held now and not before")
            return
        for row in connection.holds(tenant).to_dicts():
            task, reason = one_line(row["task"]), one_line(row["reason"])
            line = f"{row['id']}  {task}  {row['reward']:g}  by {row['actor']}  ({reason})"
            typer.echo(msgspec.json.encode(row) if as_json else line)


@app.command()
def release(
    hub: HubArgument,
    tenant: OfTenant,
    reason: Annotated[str, typer.Option(help="Kept in the log.")],
    ids: Ids = None,
    task: Task = None,
    agent: Agent = None,
    min_reward: MinReward = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    token: Token = None,
) -> None:
    """End holds: from now on policies apply to these episodes again."""
    with open_hub(hub, token) as connection:
        released = connection.release(
            tenant,
            ids or None,
            reason=reason,
            task=task,
            agent_id=agent,
            min_reward=min_reward,
            since=0 if everything else moment(since, "--since"),
            until=moment(until, "--until"),
        )
    typer.echo(f"{counted(released, 'episode')} released")
