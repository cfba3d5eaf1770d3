"""One task of one agent: recall, act, and what came of it, checked. A task and its counterfactual go the same way."""

from __future__ import annotations

import inspect
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Answer, Query
from fedlab.lab.world import Outcome, Task, attempt
from fedlab.recall import SIMILARITY

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import numpy as np

    from fedlab.agent import EphemeralAgent
    from fedlab.episode import Memory
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

    async def go(
        self, agent: EphemeralAgent, task: Task, rng: np.random.Generator, chance: np.random.Generator
    ) -> list[Trial]:
        """Go through one task.

        Args:
            agent: Recalls.
            task: Of the world.
            rng: The learner's.
            chance: The world's.

        Raises:
            InvalidRequest: If learner or world give what is no answer or no outcome.
        """
        walk = attempt(self._world, task, chance)
        steps: list[Step] = []
        asked, outcomes = _advance(walk, None)
        while asked is not None:
            # What the world knows is told afterwards, if at all.
            question = asked._replace(answer=None)
            memories = await self._recall(agent, question)
            answer = self._learner.act(question, memories, rng)
            if inspect.isawaitable(answer):
                answer = await answer
            answer = _checked_answer(answer, self._learner)
            steps.append(_step(asked, memories, answer))
            asked, outcomes = _advance(walk, answer.output)
        return _paired(task, steps, _checked_outcomes(outcomes, self._world))

    async def _recall(self, agent: EphemeralAgent, task: Task) -> Sequence[Memory]:
        began = time.perf_counter()
        found: dict[str, Memory] = {}
        for query in queries(self._arm, self._learner, task):
            policy = query.policy or SIMILARITY
            vector = None
            if policy.similarity:
                if not self._similar:
                    raise InvalidRequest(
                        f"the learner of arm {self._arm.name!r} asks for similar memories of task {task.input!r:.80},"
                        " and for none of the first generation's: give the arm a recall=Query(policy=…)",
                        field="recall",
                    )
                vector = self._vectors.of(task)
            memories = await agent.query_memories(
                vector, query.k, policy=policy, task=query.task, min_reward=query.min_reward
            )
            for memory in memories:
                found.setdefault(memory.episode.id, memory)
        self.recall_seconds += time.perf_counter() - began
        return list(found.values())


def queries(arm: Arm, learner: Learner, task: Task) -> Sequence[Query]:
    """What is asked for a task: what the learner wants, or in its place what the arm says."""
    own = getattr(learner, "queries", None)
    wanted = (Query(),) if own is None else own(task)
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
    for each in several:
        for value in (each.reward, each.reward if each.true_reward is None else each.true_reward):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise InvalidRequest(
                    f"{name} gave {each.output!r:.80} the reward {value!r:.40}: a reward is a finite number",
                    field="reward",
                )
    return several


def _step(task: Task, memories: Sequence[Memory], answer: Answer) -> Step:
    recalled = tuple(memory.episode.id for memory in memories)
    return Step(
        task,
        recalled,
        recalled if answer.used is None else tuple(answer.used),
        max((memory.similarity for memory in memories), default=None),
        answer.metadata,
    )


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
