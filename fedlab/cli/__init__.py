"""`fedlab …`: a hub and its tools from the shell. Each command is a few lines over the public API.

Exit codes: 0 done, 1 it failed (the reason is on stderr), 2 wrong usage, 3 `verify` found damage, 130 Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import typer

from fedlab.cli import (
    backups,  # noqa: F401
    dashboard,  # noqa: F401
    erasure,  # noqa: F401
    lab,  # noqa: F401
    looking,  # noqa: F401
    retention,  # noqa: F401
    serving,  # noqa: F401 - each adds its commands to the app, in this order
    transfer,  # noqa: F401
)
from fedlab.cli.shared import app
from fedlab.errors import FedlabError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what goes wrong is one line on stderr, not a stack trace."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a text that the terminal's encoding lacks
    try:
        app(args=None if arguments is None else list(arguments), prog_name="fedlab")
    except (FedlabError, OSError) as error:
        typer.echo(f"fedlab: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:  # between the commands that typer guards
        sys.exit(130)
