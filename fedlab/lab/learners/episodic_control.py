"""`EpisodicControl`: repeats the action that had the best return in the nearest states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Answer, Query
from fedlab.lab.learners.choosing import best
from fedlab.recall import Random, Reward, Similarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from fedlab.episode import Episode, Memory
    from fedlab.lab.learner import Embed
    from fedlab.lab.world import Task, World


@dataclass
class EpisodicControl:
    """Model-free episodic control: the value of an action is the return that it had where it was tried nearby.

    Sources: M. Lengyel, P. Dayan (2007), Hippocampal contributions to control: the third way, NIPS 20; C. Blundell et
    al. (2016), Model-free episodic control, arXiv:1606.04460.

    Args:
        k: How many memories are looked at. Among the equally near they are the best with the maximum, and a
            random choice with the mean, which needs many of them where success is rare.
        use: The value of an action is the "max" of its returns, or their "mean". Where chance has a part in the
            outcome, the maximum takes luck for skill.
        unknown: The return that is expected of an action that was never tried here. If None, the mean of what others
            brought. With 0, where all returns are negative, every action is tried once.
        explore: Probability of an action at random, as long as no action is known to be better than an unknown one:
            for ever, if `unknown` is the most that can be had.
        radius: Least similarity of a state that counts as the same (cosine).
    """

    k: int = 16
    use: Literal["max", "mean"] = "max"
    unknown: float | None = None
    explore: float = 0.1
    radius: float = 0.99
    _actions: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.use not in ("max", "mean") or not 0 <= self.explore <= 1:
            raise InvalidRequest(f"use is 'max' or 'mean', explore 0 to 1: not {self.use!r:.40} and {self.explore}")

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn the actions of the world.

        Raises:
            InvalidRequest: If it has no options.
        """
        actions = getattr(world, "options", None)
        if not actions:
            raise InvalidRequest(f"EpisodicControl chooses among options, and {world!r:.80} has none")
        self._actions = actions

    def queries(self, task: Task) -> list[Query]:
        """The nearest, and among equals the best, or any."""
        # So small a weight that it only orders what is equally near, for returns up to some thousand.
        return [Query(self.k, Similarity() + (1e-7 * Reward() if self.use == "max" else 1e-4 * Random()))]

    def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """The action of the highest value, or one to explore."""
        near = [memory.episode for memory in memories if memory.similarity >= self.radius]
        tried: dict[str, list[Episode]] = {}
        for episode in near:
            tried.setdefault(episode.output, []).append(episode)
        values = {action: self._value([episode.reward for episode in those]) for action, those in tried.items()}
        unknown = self.unknown
        if unknown is None:
            unknown = sum(episode.reward for episode in near) / len(near) if near else 0.0
        if max(values.values(), default=unknown) <= unknown and rng.random() < self.explore:
            actions = list(self._actions)
            return Answer(actions[int(rng.integers(len(actions)))], ())
        if len(near) < self.k:  # otherwise there may be more memories than these
            values |= {action: unknown for action in self._actions if action not in tried}
        action = best(values, rng)
        return Answer(action, [episode.id for episode in tried.get(action, ())])

    def _value(self, returns: list[float]) -> float:
        return max(returns) if self.use == "max" else sum(returns) / len(returns)
