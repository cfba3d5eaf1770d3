"""What a learner is: it answers a task with the help of memories. The learners themselves are in `learners`."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from fedlab.episode import metadata_json
from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from fedlab.episode import Memory
    from fedlab.lab.world import Task, World
    from fedlab.recall import RecallPolicy


Embed: TypeAlias = "Callable[[Sequence[str]], npt.NDArray[Any]]"
"""Gives the vectors of texts, shape (n, dimension), at length 1."""


class Answer(NamedTuple):
    """An answer that says what it was made of.

    Args:
        output: The answer.
        used: Ids of the memories that decided it. A learner that gives a plain text is taken to have used all.
        metadata: Kept with the episode, JSON: tokens and cost of a language model, for one.
    """

    output: str
    used: Sequence[str] | None = None
    metadata: dict[str, Any] = {}  # noqa: RUF012  # never changed


class Query(NamedTuple):
    """One recall: the memories most like a task, or the best by another policy.

    Args:
        k: How many.
        policy: Ranks them; by similarity if None.
        task: Only memories of this `task`.
        min_reward: Only memories of at least this reward.
    """

    k: int = 10
    policy: RecallPolicy | None = None
    task: str | None = None
    min_reward: float | None = None


class Learner(Protocol):
    """Answers tasks with the help of memories: `act` is all that a learner needs. It keeps nothing between two
    tasks but what it was made with: what is learned is in the hub.

    What else it may have:

    - `queries(task)`: a sequence of `Query`; none, and nothing is recalled. Without it `Query()` is asked, or that
      of the arm.
    - `prepare(world, embed)`: called once for each cell before the first task. `embed` gives the vectors of a
      sequence of texts, shape (n, dimension), at length 1.

    Under corrective feedback a memory's `metadata["answer"]` is what would have been right.

    >>> class Copier:
    ...     def act(self, task, memories, rng):
    ...         return memories[0].output if memories else "no idea"
    """

    def act(
        self, task: Task, memories: Sequence[Memory], rng: np.random.Generator
    ) -> str | Answer | Awaitable[str | Answer]:
        """The answer to a task.

        Args:
            task: Without its answer.
            memories: What was recalled, best first.
            rng: One stream for each agent; the only source of chance.
        """
        ...


def check_learner(learner: Learner, world: World) -> None:
    """Let a learner of your own answer tasks of a world, first without and then with memories, and say what an
    experiment would stumble over. A copy is used: the learner stays as it is.

    Raises:
        InvalidRequest: The first thing that is wrong, by name.
    """
    import numpy as np

    from fedlab.embedders import Hashing

    name = type(learner).__name__
    if not callable(getattr(learner, "act", None)):
        raise InvalidRequest(f"the learner {name} has no method act")
    learner = copy.copy(learner)
    seeded = getattr(world, "seeded", None)
    world = world if seeded is None else seeded(np.random.default_rng(0))
    if hasattr(learner, "prepare"):
        learner.prepare(world, Hashing(64).embed)
    memories: list[Memory] = []
    for task in world.tasks(np.random.default_rng(0), 3, 0):
        memories += _check_task(learner, world, task, memories)


def _check_task(learner: Learner, world: World, task: Task, memories: Sequence[Memory]) -> list[Memory]:
    """Go through one task; what came of it, as memories for the next."""
    import numpy as np

    from fedlab.episode import Episode, Memory
    from fedlab.lab.world import attempt

    name = type(learner).__name__
    walk = attempt(world, task, np.random.default_rng(0))
    try:
        asked = next(walk)
        while True:
            question = asked._replace(answer=None)
            queries = list(learner.queries(question)) if hasattr(learner, "queries") else [Query()]
            if not all(isinstance(query, Query) for query in queries):
                raise InvalidRequest(f"{name}.queries gave {queries!r:.80}, and not a sequence of Query")
            recalled = memories[: sum(query.k for query in queries)]
            answers = [_act(learner, question, recalled, np.random.default_rng(0)) for _ in range(2)]
            if answers[0] != answers[1]:
                raise InvalidRequest(f"{name}.act gave {answers[0]!r:.80} and {answers[1]!r:.80} for one state of rng")
            used = answers[0].used or ()
            if not isinstance(used, Iterable):
                raise InvalidRequest(f"{name}.act used {used!r:.40}, and not a sequence of ids")
            if unknown := set(used) - {memory.id for memory in recalled}:
                raise InvalidRequest(f"{name}.act used {sorted(unknown)[0]!r:.40}, which was not recalled")
            _check_metadata(name, answers[0].metadata)
            asked = walk.send(answers[0].output)
    except StopIteration as end:
        outcomes = end.value if isinstance(end.value, list) else [end.value]
    return [
        Memory(
            Episode(
                tenant_id="check",
                agent_id="check",
                task=task.task,
                input=each.input or task.input,
                output=each.output,
                reward=float(each.reward),
                metadata={**each.metadata, "answer": each.answer} if each.answer else each.metadata,
            ),
            similarity=1.0,
            score=1.0,
        )
        for each in outcomes[-100:]
    ]


def _check_metadata(name: str, metadata: object) -> None:
    try:
        if not isinstance(metadata, dict):
            raise TypeError("not a dict")
        metadata_json(metadata)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name}.act gave metadata {metadata!r:.80}, which are no JSON: {error}") from None


def _act(learner: Learner, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
    given = learner.act(task, memories, rng)
    if inspect.isawaitable(given):
        with ThreadPoolExecutor(1) as thread:  # of its own: in a notebook an event loop is running in this one
            given = thread.submit(asyncio.run, _wait(given)).result()
    if isinstance(given, str):
        return Answer(given)
    if not isinstance(given, Answer) or not isinstance(given.output, str):
        raise InvalidRequest(f"{type(learner).__name__}.act gave {given!r:.80}: a text, or an Answer with one, is due")
    return given


async def _wait(given: Awaitable[str | Answer]) -> str | Answer:
    return await given
