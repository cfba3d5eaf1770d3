"""Commands of the laboratory: run an experiment, look at what came of it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer

from fedlab.cli.shared import AsJson, app


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(metavar="CONFIG.toml|MODULE:NAME", help="What to run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's directory; one that was begun goes on.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    hub: Annotated[str | None, typer.Option(help="URL of a live hub, of which the cells become tenants.")] = None,
    keep_hubs: Annotated[bool, typer.Option("--keep-hubs", help="Keep the hub of each cell, in hub/.")] = False,
) -> None:
    """Run an experiment, or what is missing of it."""
    from fedlab.lab.config import load

    load(experiment).run_sync(output, workers=workers, hub=hub, keep_hubs=keep_hubs)
    results(output)


@app.command()
def results(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")], as_json: AsJson = False
) -> None:
    """Print what came of an experiment, one line for each arm."""
    from fedlab._polars import pl
    from fedlab.lab.results import Results

    held = Results(run)
    frame = held.generations
    last = frame["generation"].max()
    numbers = frame.group_by("arm", maintain_order=True).agg(
        pl.col("seed").n_unique().alias("seeds"),
        pl.col("true_reward_mean").mean().alias("mean"),
        pl.col("true_reward_mean").filter(pl.col("generation") == last).mean().alias("last"),
        pl.col("memory_size").filter(pl.col("generation") == last).mean().alias("memory"),
    )
    if as_json:
        typer.echo(numbers.write_ndjson(), nl=False)
        return
    width = max([3, *(len(name) for name in numbers["arm"])])
    typer.echo(f"{'arm':{width}}  {'seeds':>5}  {'mean reward':>11}  {'in the last generation':>22}  {'memories':>9}")
    for row in numbers.to_dicts():
        typer.echo(
            f"{row['arm']:{width}}  {row['seeds']:>5}  {row['mean']:>11.3f}  {row['last']:>22.3f}"
            f"  {row['memory']:>9,.0f}"
        )
