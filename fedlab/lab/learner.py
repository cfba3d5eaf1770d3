"""What a learner is: it answers a task with the help of memories. The learners themselves are in `learners`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from fedlab.episode import Memory
    from fedlab.lab.world import Task
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
