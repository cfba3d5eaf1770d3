"""Commands of the laboratory: run an experiment, look at what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.shared import AsJson, app


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(metavar="CONFIG.toml|MODULE:NAME", help="What to run.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The run's directory; one that was begun goes on.",
            show_default="runs/CONFIG or runs/NAME",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    hub: Annotated[str | None, typer.Option(help="URL of a live hub, of which the cells become tenants.")] = None,
    keep_hubs: Annotated[bool, typer.Option("--keep-hubs", help="Keep the hub of each cell, in hub/.")] = False,
) -> None:
    """Run an experiment, or what is missing of it."""
    from fedlab.lab.config import load

    loaded = load(experiment)
    if output is None:
        name = Path(experiment).stem if experiment.endswith(".toml") else experiment.partition(":")[2]
        output = Path("runs", name)
    typer.echo(f"The run is in {output}", err=True)
    loaded.run_sync(output, workers=workers, hub=hub, keep_hubs=keep_hubs)
    results(output)


@app.command()
def results(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
    baseline: Annotated[str | None, typer.Option(help="The arm to which the others are compared.")] = None,
    last: Annotated[int | None, typer.Option(help="Only so many generations, from the end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what came of an experiment, one line for each arm."""
    from fedlab.lab.results import Results

    held = Results.open(run)
    if as_json:
        typer.echo(held.summary(baseline, last=last).write_ndjson(), nl=False)
    else:
        typer.echo(held.table(baseline, last=last))
