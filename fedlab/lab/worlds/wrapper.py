"""`Wrapper`: a world that is another world but for what it changes; `NoisyReward` and `Drift` are such."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import numpy as np

    from fedlab.lab.world import Task, World


class Wrapper:
    """Has everything that the wrapped world has; a subclass changes a part.

    Args:
        world: The world inside.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def tasks(self, rng: np.random.Generator, n: int, generation: int) -> Sequence[Task]:
        """As the world inside."""
        return self.world.tasks(rng, n, generation)

    def reward(self, task: Task, output: str) -> float:
        """As the world inside."""
        return self.world.reward(task, output)

    def seeded(self, rng: np.random.Generator) -> Self:
        """The same around the world of a seed."""
        wrapper = copy.copy(self)
        seeded = getattr(self.world, "seeded", None)
        if seeded is not None:
            wrapper.world = seeded(rng)
        return wrapper

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "world":  # a copy is asked for these before it has a world
            raise AttributeError(name)
        return getattr(self.world, name)
