"""What is written down of a cell, as the rows of its frames. The columns are a contract with `results.py`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from fedlab._polars import pl
from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from fedlab.lab.store import Forgotten

_NAMES = {"arm": pl.String, "seed": pl.Int64, "generation": pl.Int64}
SCHEMAS: dict[str, dict[str, Any]] = {
    "episodes": {
        **_NAMES,
        "tenant_id": pl.String,
        "agent": pl.Int64,
        "agent_id": pl.String,
        "step": pl.Int64,
        "episode_id": pl.String,
        "task": pl.String,
        "input": pl.String,
        "output": pl.String,
        "answer": pl.String,
        "reward": pl.Float64,
        "true_reward": pl.Float64,
        "stored": pl.Boolean,
        "recalled": pl.List(pl.String),
        "used": pl.List(pl.String),
        "similarity": pl.Float64,
        "created_at": pl.Int64,
        "forgotten_generation": pl.Int64,
        "forgotten_reason": pl.String,
        "stage": pl.String,
        "stage_reason": pl.String,
        "counterfactual_reward": pl.Float64,
        "metadata": pl.String,
    },
    "generations": {
        **_NAMES,
        "agents": pl.Int64,
        "tasks": pl.Int64,
        "reward_mean": pl.Float64,
        "true_reward_mean": pl.Float64,
        "memory_size": pl.Int64,
        "stored": pl.Int64,
        "forgotten": pl.Int64,
        "bytes": pl.Int64,
    },
    "agents": {
        **_NAMES,
        "tenant_id": pl.String,
        "agent": pl.Int64,
        "agent_id": pl.String,
        "tasks": pl.Int64,
        "pulled": pl.Int64,
        "pushed": pl.Int64,
        "reward_mean": pl.Float64,
        "spawned_at": pl.Int64,
        "ended_at": pl.Int64,
        "ending": pl.String,
    },
    "costs": {
        **_NAMES,
        "spawn": pl.Float64,
        "recall": pl.Float64,
        "act": pl.Float64,
        "store": pl.Float64,
        "sync": pl.Float64,
        "retention": pl.Float64,
        "disk_bytes": pl.Int64,
    },
}
"""Columns of each frame with their types. `costs` differs from run to run, the others do not. Costs are ms."""
PHASES = ("spawn", "recall", "act", "store", "sync", "retention")


class Record:
    """The rows of one cell.

    Args:
        arm: Its name.
        seed: Its seed.
    """

    def __init__(self, arm: str, seed: int) -> None:
        self._cell = (arm, seed)
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SCHEMAS}
        self._forgotten: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, frame: str, generation: int, *values: Any) -> None:
        """A row, without arm and seed; of an episode without what only forgetting will tell."""
        self._rows[frame].append((*self._cell, generation, *values))

    def forget(self, generation: int, gone: Sequence[Forgotten], prefix: str) -> None:
        """Note what was forgotten after a generation."""
        for each in gone:
            self._forgotten[each.tenant_id.removeprefix(prefix), each.episode_id] = generation, each.reason

    def parquet(self) -> dict[str, bytes]:
        """Each frame as the bytes of a Parquet file: the same rows give the same bytes."""
        tenant, episode, place = (list(SCHEMAS["episodes"]).index(n) for n in ("tenant_id", "episode_id", "stage"))
        nothing = (None, None)
        rows = [
            (*row[: place - 2], *self._forgotten.get((row[tenant], row[episode]), nothing), *row[place - 2 :])
            for row in self._rows["episodes"]
        ]
        files = {}
        for name, schema in SCHEMAS.items():
            buffer = io.BytesIO()
            own = rows if name == "episodes" else self._rows[name]
            pl.DataFrame(own, schema=schema, orient="row").write_parquet(buffer)
            files[name] = buffer.getvalue()
        return files


def check_files(files: Iterable[Path]) -> None:
    """Look for one that is not as it was written.

    Raises:
        InvalidRequest: If there is one; it names the file, and the way to have it again.
    """
    for file in files:
        try:
            pl.read_parquet(file)
        except pl.exceptions.PolarsError as error:
            cell = file.parents[1] / "cells" / file.stem if file.parent.name == "costs" else file.parent
            raise InvalidRequest(
                f"{file} is damaged ({error}): delete {cell}, and run the experiment again to have it anew"
            ) from None
