"""`NearestNeighbour`: does what was done in the nearest case."""

from __future__ import annotations

from collections import Counter
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
class NearestNeighbour:
    """The answer of the nearest memories: what would have been right, where they know it, otherwise what was done.

    It copies without looking at rewards: bad examples mislead it, and a retention policy that removes them helps.

    Args:
        k: How many memories vote; the nearest decides among equals.
        threshold: Memories less similar than this do not vote (cosine, -1 to 1). Where none votes, `ZeroShot`
            answers.
    """

    k: int = 1
    threshold: float | None = None
    _fallback: ZeroShot = field(default_factory=ZeroShot, init=False, repr=False, compare=False)

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn the options of the world, for when there are no memories."""
        self._fallback = ZeroShot()  # a copy of a learner must not share it
        self._fallback.prepare(world, embed)

    def queries(self, task: Task) -> list[Query]:
        """The k nearest."""
        return [Query(self.k)]

    def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """The answer with most votes."""
        floor = -2.0 if self.threshold is None else self.threshold
        voters = [(revealed(memory) or memory.output, memory) for memory in memories if memory.similarity >= floor]
        if not voters:
            return self._fallback.act(task, (), rng)
        votes = Counter(vote for vote, _ in voters)
        most = max(votes.values())
        nearest: dict[str, float] = {}
        for vote, memory in voters:
            if votes[vote] == most:
                nearest[vote] = max(nearest.get(vote, -2.0), memory.similarity)
        winner = best(nearest, rng)
        return Answer(winner, [memory.id for vote, memory in voters if vote == winner])
