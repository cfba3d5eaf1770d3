"""One task of one agent: recall, act, and what came of it, checked. A task and its counterfactual go the same way."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Answer, Query
from fedlab.lab.world import Outcome, Task, attempt, finite
from fedlab.recall import SIMILARITY

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import numpy as np

    from fedlab.agent import EphemeralAgent
    from fedlab.episode import Memory, Vector
    from fedlab.lab.arm import Arm
    from fedlab.lab.learner import Learner
    from fedlab.lab.vectors import Vectors
    from fedlab.lab.world import World

    Walk = Generator[Task, str, Outcome | list[Outcome]]


class Step(NamedTuple):
    """One answer: to what, from which memories (ids, best first), and which of them decided it."""

    task: Task
    recalled: tuple[str, ...]
    used: tuple[str, ...]
    similarity: float | None
    metadata: dict[str, Any]


class Trial(NamedTuple):
    """One outcome with the step, or all steps together, that led to it."""

    outcome: Outcome
    step: Step


class Trials:
    """Goes through tasks as one arm does.

    Args:
        world: Of the seed.
        arm: Says what is recalled.
        learner: Answers; prepared.
        vectors: Of the tasks.
        similar: Whether they mean anything: where nobody asked for similarity, no model made them.
    """

    def __init__(self, world: World, arm: Arm, learner: Learner, vectors: Vectors, *, similar: bool) -> None:
        self._world = world
        self._arm = arm
        self._learner = learner
        self._vectors = vectors
        self._similar = similar
        self.recall_seconds = 0.0
        """Spent in recall so far."""

    async def recall_ahead(self, agent: EphemeralAgent, tasks: Sequence[Task]) -> Sequence[Sequence[Memory] | None]:
        """What `go` would recall for each task, all asked at once; None where the world decides what is asked."""
        if hasattr(self._world, "attempt"):
            return [None] * len(tasks)
        return await self._recall(agent, [_question(task) for task in tasks])

    async def go(
        self,
        agent: EphemeralAgent,
        task: Task,
        rng: np.random.Generator,
        chance: np.random.Generator,
        ahead: Sequence[Memory] | None = None,
    ) -> list[Trial]:
        """Go through one task.

        Args:
            agent: Recalls.
            task: Of the world.
            rng: The learner's.
            chance: The world's.
            ahead: What was recalled for it.

        Raises:
            InvalidRequest: If learner or world give what is no answer or no outcome.
        """
        walk = attempt(self._world, task, chance)
        steps: list[Step] = []
        asked, outcomes = _advance(walk, None)
        while asked is not None:
            question = _question(asked)
            memories = (await self._recall(agent, [question]))[0] if ahead is None else ahead
            answer = self._learner.act(question, memories, rng)
            if inspect.isawaitable(answer):
                answer = await answer
            answer = _checked_answer(answer, self._learner)
            steps.append(_step(asked, memories, answer, self._learner))
            asked, outcomes = _advance(walk, answer.output)
        return _paired(task, steps, _checked_outcomes(outcomes, self._world))

    async def _recall(self, agent: EphemeralAgent, tasks: Sequence[Task]) -> list[list[Memory]]:
        """What is recalled for each task, by one query after the other, each memory once."""
        began = time.perf_counter()
        asked = [list(queries(self._arm, self._learner, task)) for task in tasks]
        alike: dict[Query, list[int]] = {}
        for place, wanted in enumerate(asked):
            for query in dict.fromkeys(wanted):
                alike.setdefault(query, []).append(place)
        found: dict[tuple[Query, int], list[Memory]] = {}
        for query, places in alike.items():
            policy = query.policy or SIMILARITY
            vectors = [self._vector(tasks[place]) if policy.similarity else None for place in places]
            given = await agent.query_many(
                vectors, query.k, policy=policy, task=query.task, min_reward=query.min_reward
            )
            found.update(zip([(query, place) for place in places], given, strict=True))
        self.recall_seconds += time.perf_counter() - began
        return [_once([found[query, place] for query in wanted]) for place, wanted in enumerate(asked)]

    def _vector(self, task: Task) -> Vector:
        if not self._similar:
            raise InvalidRequest(
                f"the learner of arm {self._arm.name!r} asks for similar memories of task {task.input!r:.80},"
                " and for none of the first generation's: give the arm a recall=Query(policy=…)",
                field="recall",
            )
        return self._vectors.of(task)


def _question(task: Task) -> Task:
    """A task as a learner sees it: what the world knows is told afterwards, if at all."""
    return Task(task.task, task.input, None, task.vector)


def _once(lists: Sequence[list[Memory]]) -> list[Memory]:
    if len(lists) == 1:
        return lists[0]
    found: dict[str, Memory] = {}
    for memories in lists:
        for memory in memories:
            found.setdefault(memory.episode.id, memory)
    return list(found.values())


def queries(arm: Arm, learner: Learner, task: Task) -> Sequence[Query]:
    """What is asked for a task: what the learner wants, or in its place what the arm says.

    Raises:
        InvalidRequest: If the learner wants what is no sequence of Query.
    """
    own = getattr(learner, "queries", None)
    given = (Query(),) if own is None else own(task)
    wanted = tuple(given) if isinstance(given, Iterable) else (given,)
    if isinstance(given, Query) or not all(isinstance(each, Query) for each in wanted):
        raise InvalidRequest(
            f"{type(learner).__name__}.queries gave {type(given).__name__} {given!r:.80}: a sequence of Query is due,"
            " such as [Query(k=10)], or () to recall nothing",
            field="queries",
        )
    return (arm.recall,) if arm.recall is not None and wanted else wanted


def _advance(walk: Walk, output: str | None) -> tuple[Task | None, Any]:
    """The next task that is to be answered; or None, and what the world returned."""
    try:
        return (next(walk) if output is None else walk.send(output)), None
    except StopIteration as end:
        return None, end.value


def _checked_answer(answer: object, learner: Learner) -> Answer:
    if isinstance(answer, str):
        return Answer(answer)
    if isinstance(answer, Answer) and isinstance(answer.output, str):
        if not isinstance(answer.metadata, dict):
            raise InvalidRequest(
                f"{type(learner).__name__}.act answered with metadata {answer.metadata!r:.80}: a dict is due",
                field="metadata",
            )
        return answer
    given = answer.output if isinstance(answer, Answer) else answer
    raise InvalidRequest(
        f"{type(learner).__name__}.act answered with {type(given).__name__} {given!r:.80}: an answer is text, or an"
        " Answer with text in it",
        field="act",
    )


def _checked_outcomes(outcomes: object, world: World) -> list[Outcome]:
    name = type(world).__name__
    several = [outcomes] if isinstance(outcomes, Outcome) else outcomes
    if not isinstance(several, list) or not all(isinstance(each, Outcome) for each in several):
        raise InvalidRequest(f"{name}.attempt returned {outcomes!r:.80}: an Outcome or a list of them", field="attempt")
    return [_checked_outcome(each, name) for each in several]


def _checked_outcome(outcome: Outcome, name: str) -> Outcome:
    """The outcome with rewards that are floats."""
    given = [outcome.reward] if outcome.true_reward is None else [outcome.reward, outcome.true_reward]
    rewards = []
    for value in given:
        if (number := finite(value)) is None:
            raise InvalidRequest(
                f"{name} gave {outcome.output!r:.80} the reward {value!r:.40}: a reward is a finite number",
                field="reward",
            )
        rewards.append(number)
    return outcome._replace(reward=rewards[0], true_reward=rewards[1] if len(rewards) > 1 else None)


def _step(task: Task, memories: Sequence[Memory], answer: Answer, learner: Learner) -> Step:
    recalled = tuple([memory.episode.id for memory in memories])
    used = recalled if answer.used is None else answer.used
    given = (used,) if isinstance(used, str) or not isinstance(used, Iterable) else tuple(used)
    known = set(recalled)  # of a thousand there may be
    if unknown := [each for each in given if each not in known]:
        raise InvalidRequest(
            f"{type(learner).__name__}.act used {unknown[0]!r:.80}, which is none of the {len(recalled)} memories that"
            " were recalled: used is a sequence of their ids",
            field="used",
        )
    return Step(task, recalled, given, max([memory.similarity for memory in memories], default=None), answer.metadata)


def _paired(task: Task, steps: Sequence[Step], outcomes: Sequence[Outcome]) -> list[Trial]:
    """Each outcome with its step, if there is one for each; else with all steps of the task together."""
    if len(steps) == len(outcomes):
        return [Trial(outcome, step) for outcome, step in zip(outcomes, steps, strict=True)]
    similar = [step.similarity for step in steps if step.similarity is not None]
    together = Step(
        task,
        tuple(dict.fromkeys(each for step in steps for each in step.recalled)),
        tuple(dict.fromkeys(each for step in steps for each in step.used)),
        max(similar, default=None),
        {name: value for step in steps for name, value in step.metadata.items()},
    )
    return [Trial(outcome, together) for outcome in outcomes]
