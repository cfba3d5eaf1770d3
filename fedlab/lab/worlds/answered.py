"""`Answered`: a world of inputs that each have one right answer. `ToolChoice`, `LabelledText` and `Digits` are such."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlab.lab.world import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import numpy.typing as npt

    from fedlab.lab.world import Outcome


class Answered:
    """Inputs with their answers. The world of a seed gives each input once before any comes again.

    Args:
        task: The `task` of every episode.
        inputs: What the tasks are on.
        answers: What is right, one for each input.
        options: Every possible answer with a text that describes it, which may be empty.
        data_hash: Says which data this is.
        vectors: Shape (inputs, dimension), where the inputs are no texts.
    """

    def __init__(
        self,
        task: str,
        inputs: Sequence[str],
        answers: Sequence[str],
        options: Mapping[str, str],
        data_hash: str,
        vectors: npt.NDArray[Any] | None = None,
    ) -> None:
        self.task = task
        self.inputs = tuple(inputs)
        self.answers = tuple(answers)
        self.options = dict(options)
        self.data_hash = data_hash
        self.vectors = vectors
        self.dimension = None if vectors is None else vectors.shape[1]
        self._seed: int | None = None

    def seeded(self, rng: np.random.Generator) -> Self:
        """This world in an order of its own, in which its generations go through the inputs.

        Args:
            rng: Draws the order, and another one for each time that all inputs were given.
        """
        world = copy.copy(self)
        world._seed = int(rng.integers(2**63))
        return world

    def tasks(self, rng: np.random.Generator, n: int, generation: int = 0) -> list[Task]:
        """`n` different tasks, or as many as there are. In the world of a seed, the next n of its order.

        Args:
            rng: Draws them, where the world is not that of a seed.
            n: How many, the same in each generation.
            generation: Counts from 0.
        """
        size = len(self.inputs)
        if self._seed is None:
            return [self._item(i) for i in rng.choice(size, size=min(n, size), replace=False).tolist()]
        chosen: list[int] = []
        while len(chosen) < n:
            turn, first = divmod(generation * n + len(chosen), size)
            order = np.random.default_rng([self._seed, turn]).permutation(size)
            chosen += order[first : first + n - len(chosen)].tolist()
        return [self._item(i) for i in chosen]

    def _item(self, number: int) -> Task:
        vector = None if self.vectors is None else self.vectors[number]
        return Task(self.task, self.inputs[number], self.answers[number], vector)

    def reward(self, task: Task, output: str) -> float:
        """1.0 for the right answer, else 0.0."""
        return float(output == task.answer)

    def helpful(self, task: Task, outcome: Outcome) -> bool:
        """Whether the outcome tells something of the answer: it was right with it, or was told it afterwards."""
        return task.answer in (outcome.answer, outcome.output if outcome.reward >= 0.5 else None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.inputs):,} inputs, {len(self.options)} options, {self.data_hash[:12]})"
