"""What a world is: it gives tasks and says what an answer is worth. The worlds themselves are in `worlds`."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fedlab.episode import to_vector
from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

    Raises:
        InvalidRequest: If the world's own is no generator, or yields what is no Task.
    """
    own = getattr(world, "attempt", None)
    if own is None:
        output = yield task
        return Outcome(output, world.reward(task, output), answer=task.answer)
    walk, given = own(task, rng), None
    _must(
        isinstance(walk, Generator),
        world,
        f"has an attempt that gave {type(walk).__name__} {walk!r:.80} and is no generator: it must yield each Task"
        " that is to be answered, and return what came of it",
    )
    while True:
        try:
            asked = walk.send(given)
        except StopIteration as end:
            outcome: Outcome | list[Outcome] = end.value
            return outcome
        if not isinstance(asked, Task):  # a text that is made for each step takes as long as the step
            _must(False, world, f"yields {type(asked).__name__} {asked!r:.80} in attempt, and no Task")
        given = yield asked


def finite(value: object) -> float | None:
    """A reward as a number, True being 1; None if it is no finite one.

    >>> finite(True), finite("0.5"), finite(float("nan"))
    (1.0, None, None)
    """
    if type(value) is not float:
        import numpy as np

        if not isinstance(value, (Real, np.bool_)):
            return None
        value = float(value)
    return value if math.isfinite(value) else None


def check_world(world: World) -> None:
    """Go through some tasks of a world of your own, and say what an experiment would stumble over.

    Raises:
        InvalidRequest: The first thing that is wrong, by name.
    """
    import numpy as np

    def draw() -> tuple[World, list[Task]]:
        seeded = getattr(world, "seeded", None)
        own: World = world if seeded is None else seeded(np.random.default_rng(1))
        return own, [
            task for generation in (0, 1) for task in own.tasks(np.random.default_rng(generation), 3, generation)
        ]

    for verb in ("tasks", "reward"):
        _must(callable(getattr(world, verb, None)), world, f"has no method {verb}")
    own, tasks = draw()
    _must(len(tasks) == 6, world, f"gave {len(tasks)} tasks in two generations of 3")
    _must(all(isinstance(task, Task) for task in tasks), world, f"gives tasks that are no Task: {tasks[:1]!r:.80}")
    again = [task[:3] for task in draw()[1]]
    _must([task[:3] for task in tasks] == again, world, "gives other tasks for the same generator")
    options: Mapping[str, str] = getattr(own, "options", None) or {}
    pairs = [text for pair in dict(options).items() for text in pair]
    _must(all(isinstance(text, str) for text in pairs), world, "has options that are no text")
    founders = list(own.founders(np.random.default_rng(0))) if hasattr(own, "founders") else []
    for founder in founders:
        _must(isinstance(founder, Outcome) and founder.input is not None, world, "has founders without an input")
        _check_outcome(own, founder)
    for task in tasks:
        _must(not options or task.answer is None or task.answer in options, world, f"has no option {task.answer!r}")
        answers = list(options) or [task.answer or "0", *(founder.output for founder in founders)]
        _check_walk(own, task, answers)


def _check_walk(world: World, task: Task, answers: Sequence[str]) -> None:
    """Answer at random until the task is over."""
    import numpy as np

    rng = np.random.default_rng(0)
    walk = attempt(world, task, rng)
    try:
        asked = next(walk)
        while True:
            _must(asked.task.strip() != "", world, f"asks a task without a name, on {asked.input!r:.40}")
            _check_vector(world, asked.vector)
            asked = walk.send(answers[int(rng.integers(len(answers)))])
    except StopIteration as end:
        outcomes = end.value if isinstance(end.value, list) else [end.value]
    for outcome in outcomes:
        _check_outcome(world, outcome)


def _check_outcome(world: World, outcome: Outcome) -> None:
    _must(isinstance(outcome, Outcome), world, f"returned {outcome!r:.80}, which is no Outcome")
    for reward in (outcome.reward, outcome.reward if outcome.true_reward is None else outcome.true_reward):
        is_number = finite(reward) is not None
        _must(is_number, world, f"gave {outcome.output!r:.40} the reward {reward!r:.40}, which is no finite number")
    try:
        json.dumps(outcome.metadata)
    except (TypeError, ValueError) as error:
        _must(False, world, f"has metadata that are no JSON: {error}")
    if outcome.input is not None:
        _check_vector(world, outcome.vector)


def _check_vector(world: World, vector: npt.NDArray[Any] | None) -> None:
    dimension = getattr(world, "dimension", None)
    if dimension is None:
        _must(vector is None, world, "brings vectors and has no dimension")
    else:
        _must(vector is not None, world, f"has dimension {dimension} and brings no vector")
        to_vector(vector, dimension)  # type: ignore[arg-type]


def _must(holds: bool, world: object, wrong: str) -> None:
    if not holds:
        raise InvalidRequest(f"the world {type(world).__name__} {wrong}")
