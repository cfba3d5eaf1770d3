"""`IteratedLearning`: a chain of Bayesian learners, each of which learns from what others said before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedlab.errors import InvalidRequest
from fedlab.lab.world import Outcome, Task
from fedlab.lab.worlds.cumulative_culture import HERE
from fedlab.recall import check_count

if TYPE_CHECKING:
    import numpy.typing as npt


class Chain(NamedTuple):
    """What the theory says of a chain of learners that sample.

    Args:
        mean: Expected share of the first variant in each generation, shape (generations,).
        decay: By which its distance from one half shrinks in a generation.
        limit: A frozen distribution of scipy.stats: with a memory of one generation, of the count of the first variant
            among n; with all of memory, of the share of the first variant at last.
    """

    mean: npt.NDArray[np.floating]
    decay: float
    limit: Any


@dataclass(frozen=True)
class IteratedLearning:
    """Two variants of a word. A learner hears the tokens in memory, infers their rate, and says n tokens itself.

    Its prior of the rate is Beta(a/2, a/2); `BayesianSampler` is the learner. An episode is one utterance, n letters
    of "1" (the first variant) and "0"; its reward is the share of the first variant, which is no merit but shows in
    every plot of rewards. One agent a generation (of a tenant) and one task an agent are meant.

    Sources: T. L. Griffiths, M. L. Kalish (2007), Language evolution by iterated learning with Bayesian agents,
    Cognitive Science 31:441; F. Reali, T. L. Griffiths (2009), The evolution of frequency distributions, Cognition
    111:317.

    Args:
        a: Weight of the prior, above 0.
        n: Tokens of an utterance.
        s0: Tokens of the first variant among the founder's.
        m0: Tokens of the founder.
    """

    a: float = 2.0
    n: int = 10
    s0: int = 10
    m0: int = 10

    task = "say"
    dimension = 1

    def __post_init__(self) -> None:
        if not 0 < self.a < np.inf:
            raise InvalidRequest(f"a must be a positive number, not {self.a!r:.40}")
        check_count(self.n, "n", least=1)
        if check_count(self.s0, "s0") > check_count(self.m0, "m0"):
            raise InvalidRequest(f"s0 is a part of m0, and {self.s0} is more than {self.m0}")

    def tasks(self, rng: np.random.Generator, n: int, generation: int) -> list[Task]:
        """The same task each time."""
        return [Task(self.task, "", vector=HERE)] * n

    def reward(self, task: Task, output: str) -> float:
        """The share of the first variant."""
        return output.count("1") / self.n

    def founders(self, rng: np.random.Generator) -> list[Outcome]:
        """The founder's utterance, of m0 tokens."""
        if not self.m0:
            return []
        said = "1" * self.s0 + "0" * (self.m0 - self.s0)
        return [Outcome(said, self.s0 / self.m0, input="", vector=HERE)]

    def theory(self, generations: int = 1, *, memory: Literal["one generation", "forever"] = "one generation") -> Chain:
        """What the chain becomes.

        With a memory of one generation it forgets its founder: E[p_t] - 1/2 shrinks by n / (n + a) a generation, and
        counts are BetaBinomial(n, a/2, a/2) at last (Reali & Griffiths 2009). If all is remembered, the chain is a
        Pólya urn that begins with the prior and the founder's tokens: E[p_t] stays, and p_t goes to a draw from
        Beta(a/2 + s0, a/2 + m0 - s0).

        Args:
            generations: How many.
            memory: What is remembered.

        Raises:
            InvalidRequest: If the memory is another one.
        """
        from scipy import stats

        first = (self.a / 2 + self.s0) / (self.a + self.m0)
        if memory == "one generation":
            decay = self.n / (self.n + self.a)
            mean = 0.5 + (first - 0.5) * decay ** np.arange(generations)
            return Chain(mean, decay, stats.betabinom(self.n, self.a / 2, self.a / 2))
        if memory != "forever":
            raise InvalidRequest(f"memory is 'one generation' or 'forever', not {memory!r:.40}")
        limit = stats.beta(self.a / 2 + self.s0, self.a / 2 + self.m0 - self.s0)
        return Chain(np.full(generations, first), 1.0, limit)
