"""What a world is: it gives tasks and says what an answer is worth. The worlds themselves are in `worlds`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import numpy as np
    import numpy.typing as npt


class Task(NamedTuple):
    """One task of a world.

    Args:
        task: What is to be done; the same for all tasks of a kind.
        input: What it is to be done on.
        answer: What is right, where the world knows it. No learner sees it: it is told afterwards, and only under
            corrective feedback.
        vector: Shape (dimension,), of a world whose inputs are no texts.
    """

    task: str
    input: str
    answer: str | None = None
    vector: npt.NDArray[Any] | None = None


class Outcome(NamedTuple):
    """What came of one answer; an agent stores one episode of it. Of several outcomes of one task, the first stands
    for the task: its true reward is what the task was worth.

    Args:
        output: What was answered.
        reward: What the agent observes.
        true_reward: What it was really worth, where the observation is noisy; `reward` if None.
        input: What was answered, where it is not the input of the task: a state on the way, for one.
        vector: Of that input.
        answer: What would have been right.
        metadata: More about it, JSON.
    """

    output: str
    reward: float
    true_reward: float | None = None
    input: str | None = None
    vector: npt.NDArray[Any] | None = None
    answer: str | None = None
    metadata: dict[str, Any] = {}  # noqa: RUF012  # never changed


class World(Protocol):
    """Gives tasks and says what an answer is worth: `tasks` and `reward` are all that a world needs.

    What else it may have, each with a default where it is missing:

    - `attempt(task, rng)`, a generator that yields a `Task` for each answer that it needs, receives the answer,
      and returns an `Outcome` or a list of them: for tasks of several steps, for noise, for copying with error.
    - `seeded(rng)`: the world of one seed, the same for all arms, where something is drawn once for all generations
      (an order without repetition, which answers will drift).
    - `options`: a mapping of every possible answer to a text that describes it, for learners that choose.
    - `founders(rng)`: `Outcome`s that are in memory before the first generation, each with its `input`.
    - `helpful(task, outcome)`: whether having seen this outcome of another task would have helped with this one.
    - `theory(…)`: what the literature predicts.
    - `dimension`: of its vectors, where its tasks bring them.
    - `data_hash`: says on which data a result was made.

    >>> class Parity:
    ...     def tasks(self, rng, n, generation):
    ...         return [Task("even or odd?", str(number)) for number in rng.integers(100, size=n)]
    ...     def reward(self, task, output):
    ...         return float(output == ("odd" if int(task.input) % 2 else "even"))
    >>> Parity().reward(Task("even or odd?", "3"), "odd")
    1.0
    """

    def tasks(self, rng: np.random.Generator, n: int, generation: int) -> Sequence[Task]:
        """The tasks of one generation, for all its agents.

        Args:
            rng: One for each generation; the same state gives the same tasks.
            n: How many; the same in each generation.
            generation: Counts from 0.
        """
        ...

    def reward(self, task: Task, output: str) -> float:
        """What an answer is worth."""
        ...


def attempt(world: World, task: Task, rng: np.random.Generator) -> Generator[Task, str, Outcome | list[Outcome]]:
    """Go through one task: yields what is to be answered, receives the answers, returns what came of them.

    Args:
        world: Its own `attempt`, if it has one; otherwise one answer and its reward.
        task: Of this world.
        rng: For what is random in the world.
    """
    own = getattr(world, "attempt", None)
    if own is not None:
        outcome: Outcome | list[Outcome] = yield from own(task, rng)
        return outcome
    output = yield task
    return Outcome(output, world.reward(task, output), answer=task.answer)
