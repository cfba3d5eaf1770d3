"""`fedlab …`: a hub and its tools from the shell. Each command is a few lines over the public API.

Exit codes: 0 done, 1 it failed (the reason is on stderr), 2 wrong usage, 3 `verify` found damage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlab.errors import FedlabError, HubLocked, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedlab.hub.values import Change
    from fedlab.net import SyncConnection

app = typer.Typer(
    name="fedlab",
    help="A persistent memory for agents that come and go.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

HubArgument = Annotated[
    str, typer.Argument(metavar="HUB", help="A hub's directory, or the URL of a running one (ws://… or wss://…).")
]
Token = Annotated[str | None, typer.Option(envvar="FEDLAB_TOKEN", help="For a hub that is not this user's own.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what goes wrong is one line on stderr, not a stack trace."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="fedlab")
    except FedlabError as error:
        typer.echo(f"fedlab: {error.message}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # `fedlab tail … | head` has read enough.
        sys.stderr.close()


@app.command("hub")
def hub_command(
    data: Annotated[Path, typer.Option(help="The hub's directory; made if it is not there.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8443,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need TLS.")] = "127.0.0.1",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without TLS.")] = False,
    embedder: Annotated[
        str | None,
        typer.Option(help="MiniLM if not given; `hashing` needs no model; or a sentence-transformers name or path."),
    ] = None,
    retention_interval: Annotated[
        float, typer.Option(min=0, help="Seconds between applications of the tenants' retention policies; 0 for never.")
    ] = 3600,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A limit; `fedlab settings` lists them. Repeatable."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a hub until SIGTERM or Ctrl-C, and shut it down cleanly."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    logging.getLogger("fedlab.net.websockets").setLevel(logging.WARNING)
    asyncio.run(
        _serve(
            data.resolve(),
            host,
            port,
            embedder=embedder,
            tls_cert=tls_cert,
            tls_key=tls_key,
            insecure=insecure,
            retention_interval=retention_interval or None,
            settings=_settings(setting or []),
        )
    )


async def _serve(data: Path, host: str, port: int, **options: Any) -> None:
    from fedlab.net import serve

    logger = logging.getLogger("fedlab")
    async with serve(data, host, port, **options) as server:
        info = server.hub.info()
        logger.info("hub %s at %s, data in %s, change %d", info.hub_id, server.url, data, info.seq)
        logger.info("embedder %s, %d dimensions", info.embedder, info.dimension)
        # The model takes seconds to load: begin now, so that the first agent does not wait for it.
        warm = asyncio.create_task(asyncio.to_thread(server.hub.embed, ["hello"]))
        await server.until_signal()
        logger.info("shutting down: finishing what is under way")
        with contextlib.suppress(FedlabError):
            await warm
    logger.info("the hub is closed; everything acknowledged is in %s", data)


@app.command()
def settings() -> None:
    """List the limits of a hub server, with their defaults."""
    from fedlab.net import SETTINGS

    for each in SETTINGS:
        typer.echo(f"{each.name:24} {each.default!s:>12}  {each.help}")


@app.command()
def token(
    data: Annotated[Path, typer.Option(help="The hub's directory.")],
    role: Annotated[str, typer.Option(help="observer (reads), agent (reads and writes), admin (everything).")],
    tenant: Annotated[str | None, typer.Option(help="Its tenant; only an admin's token may have none.")] = None,
    agent: Annotated[str | None, typer.Option(help="Its agent id; any of the tenant if not given.")] = None,
    expires: Annotated[float, typer.Option(min=1, help="Seconds until it ends.")] = 3600,
) -> None:
    """Print one token for a hub, which may be running."""
    from fedlab.hub.directory import read_hub_id
    from fedlab.net.tokens import KEY_FILE, load_key, make_token

    hub_id = read_hub_id(data)
    key = load_key(data / KEY_FILE, create=True)
    typer.echo(make_token(key, hub_id, tenant, role, agent, expires))  # type: ignore[arg-type]  # it checks the role


@app.command()
def stats(hub: HubArgument, token: Token = None, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Print a hub's numbers, and one line for each tenant."""
    import msgspec

    with _open(hub, token) as connection:
        info, numbers, tenants = connection.info(), connection.stats(tenant), connection.tenants()
    rows = [row for row in tenants.to_dicts() if tenant in (None, row["tenant_id"])]
    if as_json:
        typer.echo(
            msgspec.json.encode({**msgspec.to_builtins(info), **msgspec.to_builtins(numbers), "by_tenant": rows})
        )
        return
    typer.echo(f"hub {info.hub_id}, change {info.seq:,}, {numbers.bytes / 1e6:,.1f} MB, embedder {info.embedder}")
    typer.echo(
        f"{numbers.episodes:,} episodes ({numbers.forgotten:,} forgotten), {numbers.tenants:,} tenants,"
        f" {numbers.agents:,} agents lived, {numbers.agents_alive:,} alive"
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
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many of the last changes first.")] = 10,
    follow: Annotated[bool, typer.Option(help="Go on as changes are committed, until Ctrl-C.")] = True,
    as_json: AsJson = False,
) -> None:
    """Print the end of the change log, and follow it."""
    import msgspec

    with _open(hub, token) as connection, contextlib.suppress(KeyboardInterrupt):
        last = connection.info().seq
        after = last - lines if tenant is None else 0
        rows = connection.changes(max(0, after), tenant_id=tenant).tail(lines).to_dicts()
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
    reason = f"  ({change.reason})" if change.reason else ""
    typer.echo(f"{change.seq:>8}  {at}  {change.tenant_id}  {change.kind}  {change.subject}  by {change.actor}{reason}")


@app.command()
def verify(hub: HubArgument, token: Token = None) -> None:
    """Read everything and check that database, log and index agree; exit code 3 if they do not."""
    with _open(hub, token) as connection:
        report = connection.verify()
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(3)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the hub's data and the page with the plots go.")] = Path(
        "demo-output"
    ),
    generations: Annotated[int, typer.Option(min=2, help="Generations of agents.")] = 10,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rewards.")] = 0,
) -> None:
    """Run generations of agents on a real hub that is killed half-way, and show what memory did for them."""
    from fedlab.demo import run_demo

    run_demo(output, generations=generations, seed=seed)


@contextlib.contextmanager
def _open(target: str, token: str | None) -> Iterator[SyncConnection]:
    """A connection to a URL, to a directory, or to the running hub that has that directory open."""
    from fedlab.hub import Hub
    from fedlab.net import connect_sync
    from fedlab.net.discovery import find_data

    if "://" in target:
        with connect_sync(target, token) as connection:
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
        with connect_sync(running.url, token) as connection:
            yield connection
        return
    with hub, connect_sync(hub) as connection:
        yield connection


def _settings(pairs: Sequence[str]) -> Any:
    import msgspec

    from fedlab.net import SETTINGS, Settings

    given = dict(pair.partition("=")[::2] for pair in pairs)
    if unknown := sorted(set(given) - {each.name for each in SETTINGS}):
        raise InvalidRequest(f"there is no setting {unknown[0]!r}: `fedlab settings` lists them")
    try:
        return msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"--set: {error}") from None
