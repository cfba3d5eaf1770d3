"""Commands that run something: a hub, the demo; and what a running hub needs: settings, tokens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedlab._interrupts import ended_by_ctrl_c
from fedlab._words import counted
from fedlab.cli.shared import MOST_DAYS, Import, app, import_modules
from fedlab.errors import FedlabError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedlab.hub import Hub
    from fedlab.net import Settings
    from fedlab.net.server import HubServer

logger = logging.getLogger("fedlab")


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
        float,
        typer.Option(
            min=0, max=1e9, help="Seconds between applications of the tenants' retention policies; 0 for never."
        ),
    ] = 3600,
    backup_dir: Annotated[Path | None, typer.Option(help="Where backups go; none are made if not given.")] = None,
    backup_interval: Annotated[
        float, typer.Option(min=0, max=1e9, help="Seconds between two backups; 0 for never.")
    ] = 3600,
    backup_keep: Annotated[
        int, typer.Option(min=1, help="Keep so many full backups, each with the incremental ones over it.")
    ] = 7,
    keep_forgotten: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            max=MOST_DAYS,
            help="Keep what is forgotten, for time travel; as before if not given.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A limit; `fedlab settings` lists them. Repeatable."),
    ] = None,
    imports: Import = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="The least that is logged.")
    ] = "info",
    end_with_stdin: Annotated[
        bool, typer.Option("--end-with-stdin", help="End when stdin does: a pipe, when who began this is gone.")
    ] = False,
) -> None:
    """Run a hub until SIGTERM or Ctrl-C, and shut it down cleanly."""
    if end_with_stdin:
        from fedlab import hub_process

        hub_process.end_with_stdin()
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    # Only our own: what libraries say of themselves is nothing to whoever runs a hub, until it is a warning.
    logger.setLevel(log_level.upper())
    with ended_by_ctrl_c():
        from fedlab.net import serve

    logging.getLogger("fedlab.net.websockets").setLevel(logging.WARNING)
    import_modules(imports)
    server = serve(
        data.resolve(),
        host,
        port,
        embedder=embedder,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
        retention_interval=retention_interval or None,
        backup_dir=backup_dir and backup_dir.resolve(),
        backup_interval=(backup_interval or None) if backup_dir else None,
        backup_keep=backup_keep,
        keep_forgotten=None if keep_forgotten is None else timedelta(days=keep_forgotten),
        settings=_settings(setting or []),
    )
    with asyncio.Runner(loop_factory=_event_loop()) as runner:
        runner.run(_serve(server))


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one: a tenth of the time of a push."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def _serve(server: HubServer) -> None:
    from threadpoolctl import threadpool_limits

    # A product of a matrix and a vector is too short to share: threads that wait for the next one in a busy loop
    # took more time than all the rest of a recall.
    threadpool_limits(1, user_api="blas")
    async with server:
        stopped = asyncio.create_task(server.until_signal())
        await asyncio.sleep(0)  # from here on, which is before anybody is told that it runs, a signal ends it tidily
        info, data = server.hub.info(), server.hub.path
        logger.info("hub %s at %s, data in %s, change %d", info.hub_id, server.url, data, info.seq)
        logger.info("embedder %s, %s", info.embedder, counted(info.dimension, "dimension"))
        # What is here now stays: looking through it again and again for garbage took a twelfth of the time of a push.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        # A thread that comes back from a commit waits for the interpreter's lock no longer than this.
        sys.setswitchinterval(0.0005)
        # The model takes seconds to load: begin now, so that the first agent does not wait for it.
        warming = threading.Thread(target=warm_up, args=(server.hub,), daemon=True)
        warming.start()
        await stopped
        logger.info("shutting down: finishing what is under way")
    logger.info("the hub is closed; everything acknowledged is in %s", data)
    if warming.is_alive():
        # Nothing ends an import, and the interpreter must not end under it: nobody waits for either.
        logging.shutdown()
        os._exit(0)


def warm_up(hub: Hub) -> None:
    """Have the hub's model loaded, before somebody waits for it."""
    try:
        hub.embedder.embed(["hello"])  # not the hub, which may know the text and spare the model
    except FedlabError as error:
        logger.warning("only episodes and queries with vectors will be accepted: %s", error.message)


@app.command()
def settings() -> None:
    """List the limits of a hub server, with their defaults."""
    from fedlab.net import SETTINGS

    for each in SETTINGS:
        typer.echo(f"{each.name:24} {each.default!s:>12}  {each.help}")


@app.command()
def token(
    data: Annotated[Path, typer.Option(help="The hub's directory.")],
    role: Annotated[
        Literal["observer", "agent", "admin"],
        typer.Option(help="An observer reads, an agent also writes, an admin may do everything."),
    ],
    tenant: Annotated[str | None, typer.Option(help="Its tenant; only an admin's token may have none.")] = None,
    agent: Annotated[str | None, typer.Option(help="Its agent id; any of the tenant if not given.")] = None,
    expires: Annotated[float, typer.Option(min=1, help="Seconds until it ends.")] = 3600,
) -> None:
    """Print one token for a hub, which may be running."""
    from fedlab.hub.directory import read_hub_id
    from fedlab.net.tokens import KEY_FILE, load_key, make_token

    hub_id = read_hub_id(data)
    key = load_key(data / KEY_FILE, create=True)
    typer.echo(make_token(key, hub_id, tenant, role, agent, expires))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the hub's data and the page with the plots go.")] = Path(
        "demo-output"
    ),
    generations: Annotated[int, typer.Option(min=2, help="Generations of agents.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same rewards.")] = 0,
) -> None:
    """Run generations of agents on a real hub that is killed half-way, and show what memory did for them."""
    with ended_by_ctrl_c():
        from fedlab.demo import run_demo

    run_demo(output, generations=generations, seed=seed)


def _settings(pairs: Sequence[str]) -> Settings:
    import msgspec

    from fedlab.net import SETTINGS, Settings

    defaults = {each.name: each.default for each in SETTINGS}
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if equals and name not in defaults:
            raise typer.BadParameter(f"there is no setting {name!r}: `fedlab settings` lists them")
        if not equals:
            raise typer.BadParameter(f"{pair!r} sets nothing: write NAME=VALUE; `fedlab settings` lists the names")
        # A list is written with commas.
        given[name] = value.split(",") if isinstance(defaults[name], tuple) else value
    try:
        return msgspec.convert(given, Settings, strict=False)
    except (msgspec.ValidationError, InvalidRequest) as error:
        raise typer.BadParameter(f"--set: {error}") from None
