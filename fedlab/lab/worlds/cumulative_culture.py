"""`CumulativeCulture`: a skill that is learned by imperfect imitation of the best (Henrich 2004)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fedlab.errors import InvalidRequest
from fedlab.lab.world import Outcome, Task
from fedlab.recall import check_count

if TYPE_CHECKING:
    import numpy.typing as npt

HERE = np.ones(1, np.float32)
"""Where everything in a world without texts lies."""


class Growth(NamedTuple):
    """What the theory says of the skill.

    Args:
        per_generation: Growth of the mean in a generation.
        mean: Expected mean skill of each generation, shape (generations,).
        best: Expected skill of the best that is remembered after each generation, shape (generations,).
        critical_agents: How many agents of one tenant keep the skill from decaying under a memory of one generation.
    """

    per_generation: float
    mean: npt.NDArray[np.floating]
    best: npt.NDArray[np.floating]
    critical_agents: float


@dataclass(frozen=True)
class CumulativeCulture:
    """An agent imitates the most skilled model it remembers, most often badly and now and then better.

    The skill that it gets is z ~ Gumbel(z_model - alpha, beta), drawn by the learner (`GumbelImitator`), and the
    reward is z. Before the first generation there is a model of skill 0. One task an agent is meant.

    Source: J. Henrich (2004), Demography and cultural evolution, American Antiquity 69:197.

    Args:
        alpha: How hard the skill is: what a typical imitation loses.
        beta: How much imitations differ.
    """

    alpha: float = 1.0
    beta: float = 1.0

    task = "imitate"
    dimension = 1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.alpha) and 0 < self.beta < np.inf):
            raise InvalidRequest(f"not alpha {self.alpha} and beta {self.beta}: finite, and beta above 0")

    def tasks(self, rng: np.random.Generator, n: int, generation: int) -> list[Task]:
        """The same task each time."""
        return [Task(self.task, "", vector=HERE)] * n

    def reward(self, task: Task, output: str) -> float:
        """The skill itself."""
        return float(output)

    def founders(self, rng: np.random.Generator) -> list[Outcome]:
        """One model of skill 0."""
        return [Outcome("0.0", 0.0, input="", vector=HERE)]

    def theory(
        self,
        agents: int,
        generations: int = 1,
        *,
        memory: Literal["one generation", "forever"] = "one generation",
        tenants: int = 1,
    ) -> Growth:
        """What the skill becomes.

        With a memory of one generation it grows by -alpha + beta (euler_gamma + ln N) a generation (Henrich 2004,
        equation 2), N the agents of a tenant. If all is remembered, only a new record moves the model, and a
        generation's record exceeds it by a Gumbel(-alpha + beta ln N, beta) where that is positive: on average by
        beta Ein(N exp(-alpha / beta)), Ein(x) = E1(x) + ln x + euler_gamma.

        Args:
            agents: Of a generation, in all tenants together; a multiple of `tenants`.
            generations: How many.
            memory: What is remembered.
            tenants: That share nothing; the price is beta ln(tenants) a generation under a memory of one generation.

        Raises:
            InvalidRequest: If the agents are not a positive multiple of the tenants, or the memory is another one.
        """
        check_count(tenants, "tenants", least=1)
        if check_count(agents, "agents", least=1) % tenants:
            raise InvalidRequest(f"{agents} agents are no multiple of {tenants} tenants")
        if memory not in ("one generation", "forever"):
            raise InvalidRequest(f"memory is 'one generation' or 'forever', not {memory!r:.40}")
        log_n = np.log(agents / tenants)
        if memory == "one generation":
            growth = float(-self.alpha + self.beta * (np.euler_gamma + log_n))
        else:
            from scipy.special import exp1

            x = np.exp(log_n - self.alpha / self.beta)
            growth = float(self.beta * (exp1(x) + np.log(x) + np.euler_gamma))
        best = growth * np.arange(1, generations + 1)
        mean = best - growth - self.alpha + self.beta * np.euler_gamma
        return Growth(growth, mean, best, float(np.exp(self.alpha / self.beta - np.euler_gamma)))
