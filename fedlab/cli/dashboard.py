"""`fedlab dashboard`: the Streamlit application, with a hub that fills itself if there is nothing to look at."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.shared import app
from fedlab.errors import FedlabError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = (Path(__file__).parents[2] / "dashboard", Path(__file__).parents[1] / "_app" / "dashboard")
"""Where the application lies: in the source tree, or in an installed package."""


@app.command()
def dashboard(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HUB|RUN]…",
            help="Hubs (URLs, directories), backups, runs of experiments; a hub that fills itself if none is given.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback each visitor has to bring a token.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Look at memory that grows, rewards that move, and what forgetting does, in a browser. Ctrl-C ends it."""
    from fedlab.net.discovery import is_loopback

    if importlib.util.find_spec("streamlit") is None:
        raise InvalidRequest("the dashboard needs Streamlit: pip install 'fedlab-memory[dashboard]'")
    place = next((each for each in PLACES if each.exists()), None)
    if place is None:
        raise InvalidRequest(f"the dashboard's files are not installed: neither {PLACES[0]} nor {PLACES[1]} is there")
    given = targets or []
    _check(given)
    with _demo(place) if not given else contextlib.nullcontext(given) as shown:
        settings = {"targets": shown, "own_rights": is_loopback(host)}
        _run_streamlit(streamlit_command(place / "app.py", host, port, browser=browser), settings)


def _check(targets: list[str]) -> None:
    """A mistyped path is said at once, and not in the browser."""
    from fedlab.net.discovery import check_url

    for target in targets:
        if "://" in target:
            check_url(target)
        elif not Path(target).expanduser().is_dir():
            raise InvalidRequest(f"{target} is no directory, and no URL of a hub (ws://… or wss://…)")


@contextlib.contextmanager
def _demo(place: Path) -> Iterator[list[str]]:
    """A hub that generations of agents fill as long as it is looked at; its URL."""
    from fedlab.hub_process import free_port

    with tempfile.TemporaryDirectory(prefix="fedlab-dashboard-") as folder:
        port = free_port()
        typer.echo(f"no hub was named: four tenants under four policies live in {folder}")
        command = [sys.executable, "-m", "dashboard.demo", f"{folder}/hub", str(port)]
        with subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, cwd=place.parent, start_new_session=True
        ) as process:
            try:
                yield [f"ws://127.0.0.1:{port}"]
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


def streamlit_command(script: Path, host: str, port: int, *, browser: bool) -> list[str]:
    """How Streamlit is started: quiet, without calling home, without looking for changes of files."""
    options = {
        "server.address": host,
        "server.port": port,
        "server.headless": str(not browser).lower(),
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "server.fileWatcherType": "none",
        "runner.magicEnabled": "false",
        "runner.postScriptGC": "false",  # it takes more time than a page that is drawn again
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
    }
    command = [sys.executable, str(script.with_name("serve.py")), str(script)]
    return [*command, *(f"--{name}={value}" for name, value in options.items())]


def _run_streamlit(command: list[str], settings: dict[str, object]) -> None:
    import msgspec

    environment = {**os.environ, "FEDLAB_DASHBOARD": msgspec.json.encode(settings).decode()}
    # SIGTERM ends it as Ctrl-C does: nothing that was started goes on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:  # noqa: S603
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # of a Ctrl-C it knows already
            status = 0
    if status not in (0, -signal.SIGINT, 130):
        raise FedlabError(f"the dashboard ended with status {status}; is the port taken? --port takes another")
