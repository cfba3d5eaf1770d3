"""`SignedVote`: learns from failures as well as from successes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedlab.lab.learner import Answer, Query
from fedlab.lab.learners.choosing import best, revealed
from fedlab.lab.learners.zero_shot import ZeroShot

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from fedlab.episode import Memory
    from fedlab.lab.learner import Embed
    from fedlab.lab.world import Task, World


@dataclass
class SignedVote:
    """Near successes speak for what they did, near failures against it, on top of what the options say themselves.

    The score of an option is prior x its similarity to the task, plus the sum over the memories that chose it of
    similarity^sharpness, positive for a success (a reward of 0.5 or more) and negative for a failure. A failure that
    knows what would have been right speaks for that, too.

    Args:
        k: How many memories vote.
        prior: Weight of the options' own descriptions.
        sharpness: How much more the nearest memories count.
    """

    k: int = 8
    prior: float = 1.0
    sharpness: float = 4.0
    _zero_shot: ZeroShot = field(default_factory=ZeroShot, init=False, repr=False, compare=False)

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn the options of the world."""
        self._zero_shot = ZeroShot()  # a copy of a learner must not share it
        self._zero_shot.prepare(world, embed)

    def queries(self, task: Task) -> list[Query]:
        """The k nearest."""
        return [Query(self.k)]

    def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """The option with the highest score."""
        scores = {name: self.prior * each for name, each in self._zero_shot.similarities(task).items()}
        for memory in memories:
            weight = max(memory.similarity, 0.0) ** self.sharpness
            sign = 1.0 if memory.reward >= 0.5 else -1.0
            scores[memory.output] = scores.get(memory.output, 0.0) + sign * weight
            right = revealed(memory)
            if right is not None and right != memory.output:
                scores[right] = scores.get(right, 0.0) + weight
        # Those against the others decided as much as those for the winner.
        return Answer(best(scores, rng), [memory.id for memory in memories])
