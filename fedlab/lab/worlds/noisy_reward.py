"""`NoisyReward`: agents see their rewards with noise, and the truth is kept beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedlab.errors import InvalidRequest
from fedlab.lab.world import Outcome, Task, World, attempt
from fedlab.lab.worlds.wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Generator


class NoisyReward(Wrapper):
    """Adds normal noise to every observed reward. What is best by observation is then not the best: the more that is
    compared, the more its reward flatters it (the winner's curse).

    Args:
        world: Any world.
        sigma: Standard deviation of the noise.

    Raises:
        InvalidRequest: If sigma is negative or not finite.
    """

    def __init__(self, world: World, sigma: float) -> None:
        if not 0 <= sigma < np.inf:
            raise InvalidRequest(f"sigma must be a number from 0, not {sigma!r:.40}")
        super().__init__(world)
        self.sigma = sigma

    def attempt(self, task: Task, rng: np.random.Generator) -> Generator[Task, str, Outcome | list[Outcome]]:
        """As the world inside, with noise on each reward."""
        outcome = yield from attempt(self.world, task, rng)
        return [self._noisy(each, rng) for each in outcome] if isinstance(outcome, list) else self._noisy(outcome, rng)

    def _noisy(self, outcome: Outcome, rng: np.random.Generator) -> Outcome:
        truth = outcome.reward if outcome.true_reward is None else outcome.true_reward
        return outcome._replace(reward=outcome.reward + self.sigma * rng.normal(), true_reward=truth)

    def __repr__(self) -> str:
        return f"NoisyReward({self.world!r}, sigma={self.sigma})"
