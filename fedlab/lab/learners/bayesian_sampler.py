"""`BayesianSampler`: infers a rate from the tokens it heard, and speaks. The learner of `IteratedLearning`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Answer, Query
from fedlab.recall import MAX_K, Recency

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from fedlab.episode import Memory
    from fedlab.lab.learner import Embed
    from fedlab.lab.world import Task, World


@dataclass
class BayesianSampler:
    """Counts the tokens of all memories, and says n tokens at a rate from its posterior Beta(a/2 + ones, a/2 + zeros).

    Args:
        choose: The rate is drawn from the posterior ("sample"), or is its mode ("map"), which exaggerates the prior.
            A posterior without a single mode inside gives its mean.

    Source: T. L. Griffiths, M. L. Kalish (2007), Cognitive Science 31:441.
    """

    choose: Literal["sample", "map"] = "sample"
    _a: float = field(default=2.0, init=False, repr=False, compare=False)
    _n: int = field(default=1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.choose not in ("sample", "map"):
            raise InvalidRequest(f"a hypothesis is chosen by 'sample' or 'map', not {self.choose!r:.40}")

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn the prior and the length of an utterance.

        Raises:
            InvalidRequest: If the world has no a and n.
        """
        try:
            self._a, self._n = float(world.a), int(world.n)  # type: ignore[attr-defined]
        except AttributeError:
            raise InvalidRequest(f"BayesianSampler needs a world with a and n, not {world!r:.80}") from None

    def queries(self, task: Task) -> list[Query]:
        """Everything, up to what one recall gives."""
        return [Query(MAX_K, Recency())]

    def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """The utterance."""
        heard = "".join(memory.output for memory in memories)
        ones = self._a / 2 + heard.count("1")
        zeros = self._a / 2 + heard.count("0")
        if self.choose == "sample":
            rate = float(rng.beta(ones, zeros))
        elif min(ones, zeros) > 1:
            rate = (ones - 1) / (ones + zeros - 2)
        else:
            rate = ones / (ones + zeros)
        said = rng.random(self._n) < rate
        return Answer("".join("1" if one else "0" for one in said))
