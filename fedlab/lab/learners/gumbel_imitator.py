"""`GumbelImitator`: imitates the best model, imperfectly. The learner of `CumulativeCulture`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Answer, Query
from fedlab.recall import Reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from fedlab.episode import Memory
    from fedlab.lab.learner import Embed
    from fedlab.lab.world import Task, World


@dataclass
class GumbelImitator:
    """Takes the model with the highest observed reward, and gets a skill z ~ Gumbel(z_model - alpha, beta).

    Alpha and beta are those of the world. Where there is no model, the skill of a model is 0. What is imitated is
    what the model really does, however its reward was observed.

    Source: J. Henrich (2004), American Antiquity 69:197.
    """

    _alpha: float = field(default=0.0, init=False, repr=False, compare=False)
    _beta: float = field(default=1.0, init=False, repr=False, compare=False)

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn how hard the skill of the world is.

        Raises:
            InvalidRequest: If the world has no alpha and beta.
        """
        try:
            self._alpha, self._beta = float(world.alpha), float(world.beta)  # type: ignore[attr-defined]
        except AttributeError:
            raise InvalidRequest(f"GumbelImitator needs a world with alpha and beta, not {world!r:.80}") from None

    def queries(self, task: Task) -> list[Query]:
        """The best."""
        return [Query(1, Reward())]

    def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """The skill that comes of it."""
        model = float(memories[0].output) if memories else 0.0
        return Answer(repr(float(rng.gumbel(model - self._alpha, self._beta))))
