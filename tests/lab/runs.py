"""Run directories written by hand: what an experiment would leave, with numbers that are known."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from fedlab.lab.record import PHASES, SCHEMAS


def outcome(arm, seed, generation, reward, **fields):
    """A row of `episodes`, of an answer that was stored and forgot nothing, unless told otherwise."""
    usual = {
        "arm": arm,
        "seed": seed,
        "generation": generation,
        "tenant_id": "all",
        "agent": 0,
        "agent_id": f"g{generation}-a0",
        "step": 0,
        "task": "parity",
        "input": "3",
        "output": "odd",
        "answer": "odd",
        "reward": reward,
        "true_reward": reward,
        "stored": True,
        "recalled": [],
        "used": [],
        "created_at": 1_000 * generation,
        "metadata": "{}",
    }
    unknown = set(fields) - set(SCHEMAS["episodes"])
    assert not unknown
    return usual | fields


def write_run(directory: Path, outcomes, *, arms=None, seeds=None, sizes=None) -> Path:
    """A run directory with these outcomes; memory grows by what is stored unless `sizes` says otherwise."""
    rows = [{name: each.get(name) for name in SCHEMAS["episodes"]} for each in outcomes]
    episodes = pl.DataFrame(rows, schema=SCHEMAS["episodes"], orient="row")
    arms = arms or list(dict.fromkeys(episodes["arm"]))
    seeds = seeds or sorted(set(episodes["seed"]))
    for (arm, seed), own in episodes.group_by("arm", "seed", maintain_order=True):
        cell = directory / "cells" / f"{arms.index(arm)}.{seed}"
        cell.mkdir(parents=True)
        own.write_parquet(cell / "episodes.parquet")
        means = own.group_by("generation", maintain_order=True).agg(
            pl.len().alias("tasks"),
            pl.col("reward").mean().alias("reward_mean"),
            pl.col("true_reward").mean().alias("true_reward_mean"),
            pl.col("stored").sum(),
        )
        generations = means.sort("generation").with_columns(
            arm=pl.lit(arm),
            seed=seed,
            agents=1,
            memory_size=pl.col("stored").cum_sum() if sizes is None else pl.Series(sizes),
            forgotten=0,
            bytes=100 * pl.col("stored").cum_sum(),
        )
        _write(generations, cell, "generations")
        costs = generations.select("arm", "seed", "generation", **dict.fromkeys(PHASES, 2.0), disk_bytes=4096)
        (directory / "costs").mkdir(exist_ok=True)
        costs.cast(SCHEMAS["costs"]).write_parquet(directory / "costs" / f"{arms.index(arm)}.{seed}.parquet")
        lives = generations.with_columns(
            tenant_id=pl.lit("all"),
            agent=0,
            agent_id=pl.format("g{}-a0", "generation"),
            pulled=0,
            pushed=pl.col("stored"),
            spawned_at=0,
            ended_at=0,
            ending=pl.lit("destroyed"),
        )
        _write(lives, cell, "agents")
    experiment = {"arms": [{"name": arm} for arm in arms], "seeds": seeds}
    directory.mkdir(exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps({"experiment": experiment}))
    return directory


def _write(frame, cell, name):
    schema = SCHEMAS[name]
    frame.select(pl.col(each).cast(kind) for each, kind in schema.items()).write_parquet(cell / f"{name}.parquet")
