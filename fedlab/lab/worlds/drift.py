"""`Drift`: from some generation on, a part of what was right is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab.errors import InvalidRequest
from fedlab.lab.worlds.wrapper import Wrapper
from fedlab.recall import check_count

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    import numpy as np

    from fedlab.lab.world import Task, World


class Drift(Wrapper):
    """Part of the answers change places: where one of them was right, another one is from then on.

    Which ones is drawn for each seed. What describes the options stays as it was, as an old manual does.

    Args:
        world: A world with `options`, whose tasks have an answer.
        at: First generation, counted from 0, in which the new answers are right.
        fraction: Share of the options that change, above 0, to 1; two at least.

    Raises:
        InvalidRequest: If the world has no options, or a number is out of range.
    """

    def __init__(self, world: World, *, at: int, fraction: float) -> None:
        options: Mapping[str, str] | None = getattr(world, "options", None)
        if options is None or len(options) < 2:
            raise InvalidRequest(f"answers of {world!r:.80} can not drift: it has no options to change")
        if not 0 < fraction <= 1:
            raise InvalidRequest(f"fraction must be above 0 and at most 1, not {fraction!r:.40}")
        super().__init__(world)
        self.at = check_count(at, "at")
        self.fraction = fraction
        self.renamed: dict[str, str] = {}
        """What each answer that changed became; drawn by `seeded`."""

    def seeded(self, rng: np.random.Generator) -> Self:
        """The same around the world of a seed, with the answers drawn that will change."""
        world = super().seeded(rng)
        names = sorted(self.options)
        drawn = rng.permutation(names).tolist()[: max(2, round(self.fraction * len(names)))]
        # Each takes the name of the next: none keeps its own.
        world.renamed = dict(zip(drawn, [*drawn[1:], drawn[0]], strict=True))
        return world

    def tasks(self, rng: np.random.Generator, n: int, generation: int) -> list[Task]:
        """The tasks of the world inside, from generation `at` on with the new answers.

        Raises:
            InvalidRequest: If the world was not made for a seed, or gives tasks without an answer.
        """
        tasks = self.world.tasks(rng, n, generation)
        if generation < self.at:
            return list(tasks)
        if not self.renamed:
            raise InvalidRequest("which answers drift is drawn for each seed: call seeded(rng) first")
        if any(task.answer is None for task in tasks):
            raise InvalidRequest(f"{self.world!r:.80} gives tasks without an answer, which can not drift")
        return [task._replace(answer=self.renamed.get(str(task.answer), task.answer)) for task in tasks]

    def __repr__(self) -> str:
        return f"Drift({self.world!r}, at={self.at}, fraction={self.fraction})"
