"""Small worlds and learners, which need no model and no data."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from fedlab.lab import Answer, Arm, Experiment, Query, Task


class Parity:
    """Is a number even or odd? Who has seen the number knows."""

    task = "parity"

    def __init__(self, most: int = 30) -> None:
        self.most = most

    def tasks(self, rng, n, generation):
        return [Task("parity", str(each), "odd" if each % 2 else "even") for each in rng.integers(self.most, size=n)]

    def reward(self, task, output):
        return float(output == task.answer)

    def helpful(self, task, outcome):
        return outcome.input == task.input and outcome.reward == 1


class Copier:
    """Says what was right for the same number before, and guesses otherwise."""

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def queries(self, task):
        return [Query(self.k)]

    def act(self, task, memories, rng):
        assert task.answer is None
        known = [each for each in memories if each.input == task.input and each.reward == 1]
        return Answer(known[0].output, [known[0].id]) if known else rng.choice(["odd", "even"]).item()


class Guesser:
    """Recalls nothing."""

    def queries(self, task):
        return ()

    def act(self, task, memories, rng):
        assert not memories
        return rng.choice(["odd", "even"]).item()


def experiment(*arms, **options):
    """Two seeds of three generations of two agents with four tasks each, unless told otherwise."""
    usual = {
        "world": Parity(),
        "arms": arms or [Arm("copier", Copier()), Arm("Guesses only!", Guesser())],
        "generations": 3,
        "agents_per_generation": 2,
        "tasks_per_agent": 4,
        "generation_interval": timedelta(days=10),
        "seeds": [0, 7],
        "embedder": "hashing",
    }
    return Experiment(**{**usual, **options})


def files(directory: Path) -> dict[str, bytes]:
    """The finished cells of a run, byte for byte."""
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.glob("cells/*/*.parquet")}
