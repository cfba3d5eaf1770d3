"""One cell of an experiment: one arm under one seed, generation after generation, through real agents on a real hub.

Within a generation all agents act before any of them pushes: each recalls what there was when the generation began, so
that the order inside a generation does not matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fedlab.agent import EphemeralAgent
from fedlab.clock import SimulatedClock
from fedlab.embedding import Hashing, get_embedder
from fedlab.episode import MAX_SOURCES, Episode, metadata_json, new_id, to_vector
from fedlab.errors import InvalidRequest
from fedlab.hub import Hub
from fedlab.lab.arm import Islands, NoisyEvaluator
from fedlab.lab.ledger import Ledger
from fedlab.lab.record import PHASES, Record
from fedlab.lab.store import open_store
from fedlab.lab.streams import id_stream, stream
from fedlab.lab.trial import Trial, Trials, queries
from fedlab.lab.vectors import Vectors
from fedlab.lab.world import Task
from fedlab.retention import KeepForever, MaxEpisodes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from fedlab.embedding import Embedder
    from fedlab.episode import Memory
    from fedlab.lab.arm import Arm
    from fedlab.lab.experiment import Experiment
    from fedlab.lab.ledger import Stumble
    from fedlab.lab.world import Outcome, World
    from fedlab.retention import RetentionPolicy

T = TypeVar("T")

START = datetime(2026, 1, 1)  # noqa: DTZ001  # taken as UTC
"""When the first generation lives."""
SUCCESS = 0.5
"""The smallest reward of a success."""
NO_MODEL = 16
"""Dimension of the vectors of a cell in which nobody asks for similarity."""


@dataclass
class Life:
    """One agent while it lives.

    Args:
        place: In its generation.
        rng: Its learner's.
        chance: Of the world it meets.
        trials: What came of its tasks: the step (counted over its life) and the trial.
        rewards: Of these, as the agent sees them.
    """

    agent: EphemeralAgent
    place: int
    rng: np.random.Generator
    chance: np.random.Generator
    trials: list[tuple[Task, Trial, Stumble, float | None]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


class Cell:
    """One arm under one seed.

    Args:
        experiment: Of which it is a part.
        arm: Its arm.
        seed: Its seed.
    """

    def __init__(self, experiment: Experiment, arm: Arm, seed: int) -> None:
        self.experiment = experiment
        self.arm = arm
        self.seed = seed
        self.generation = 0
        """That lives now."""
        self._clock = SimulatedClock(START - experiment.generation_interval)
        self._record = Record(arm.name, seed)
        self._ledger = Ledger()
        self._shadow: Hub | None = None
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._rewards: tuple[list[float], list[float]] = [], []  # observed and true, of this generation

    async def run(
        self, *, hub: str | None = None, keep: Path | None = None, progress: Callable[[], object] = lambda: None
    ) -> dict[str, bytes]:
        """Live through all generations.

        Args:
            hub: URL of a live hub; else the cell has one of its own.
            keep: The directory in which the cell's own hub stays.
            progress: Called after each generation.

        Returns:
            Each frame as the bytes of a Parquet file.
        """
        world = seeded(self.experiment.world, self.seed)
        learner = copy.copy(self.arm.learner)  # what `prepare` puts there is this cell's
        first = tasks_of(self.experiment, world, self.seed, 0)
        embedder, similar = embedder_of(self.experiment, self.arm, world, first, live=hub is not None)
        prefix = f"{self.arm.slug}.{self.seed}.{secrets.token_hex(4)}." if hub else ""
        agents = self.experiment.agents_per_generation
        self._forgets = (policy := _policy(self.arm)) != KeepForever()
        with Vectors(embedder) as vectors, self._open_shadow(embedder):
            async with open_store(embedder, self._clock, agents, url=hub, prefix=prefix, keep=keep) as store:
                if (prepare := getattr(learner, "prepare", None)) is not None:
                    prepare(world, vectors.embed)
                self._world, self._vectors, self._store = world, vectors, store
                self._trials = Trials(world, self.arm, learner, vectors, similar=similar)
                self._tenants = [prefix + name for name in self.arm.tenants(agents)]
                await self._found(first[0].task)
                if self._forgets:
                    await store.keep(self._tenants, policy)
                for generation in range(self.experiment.generations):
                    self.generation = generation
                    await self._live(tasks_of(self.experiment, world, self.seed, generation))
                    progress()
        return self._record.parquet()

    @contextlib.contextmanager
    def _open_shadow(self, embedder: Embedder) -> Iterator[None]:
        """A hub that forgets nothing, for the counterfactual."""
        if not (self.experiment.counterfactual and self._forgets):
            yield
            return
        with Hub(":memory:", self._clock, embedder) as hub:
            self._shadow = hub
            yield

    async def _remember(self, episodes: Sequence[Episode]) -> None:
        """Let those know of new episodes who keep account beside the agents' hub."""
        await self._store.stored(episodes)
        if self._shadow is not None:
            self._shadow.put(episodes)

    async def _found(self, task: str) -> None:
        """Put what is in memory before the first generation, into each tenant."""
        found: Callable[..., Sequence[Outcome]] = getattr(self._world, "founders", lambda _rng: ())
        outcomes = found(stream(self.seed, "founders"))
        for tenant_id in self._tenants if outcomes else ():
            seed = id_stream(self.seed, -1, 0)
            async with EphemeralAgent.spawn(
                self._store.connection, tenant_id, agent_id="founder", clock=self._clock, seed=seed
            ) as agent:
                for outcome in outcomes:
                    about = self._about(outcome, Task(task, "", None, outcome.vector), -1, {})
                    self._ledger.store(await agent.store_episode(**about, sources=()), self._told(outcome))
                founders = agent.unsynced_episodes
            await self._remember(founders)
        self._clock.advance(days=self.experiment.generation_interval / timedelta(days=1))

    async def _live(self, tasks: Sequence[Task]) -> None:
        """One generation: all are spawned and act, then all store, push and die; then some is forgotten."""
        experiment = self.experiment
        await self._vectors.learn_tasks(tasks)
        size = experiment.tasks_per_agent
        async with contextlib.AsyncExitStack() as alive:
            with self._timed("spawn"):
                lives = await _each(self._spawn(alive, place) for place in range(experiment.agents_per_generation))
            shares = [tasks[life.place * size : (life.place + 1) * size] for life in lives]
            with self._timed("recall"):
                ahead = await _each(
                    self._trials.recall_ahead(life.agent, own) for life, own in zip(lives, shares, strict=True)
                )
            for life, own, recalled in zip(lives, shares, ahead, strict=True):
                for task, memories in zip(own, recalled, strict=True):
                    await self._attempt(life, task, memories)
            with self._timed("store"):
                stored = [each for life in lives for each in await self._store_trials(life)]
            for life in lives:
                self._write_life(life)
            with self._timed("sync"):
                await _each(life.agent.destroy() for life in lives)
                await self._remember([episode for episode, _ in stored])
        for episode, outcome in stored:
            self._ledger.store(episode, outcome)
        await self._migrate(stored)
        await self._close_generation(lives, len(stored))

    async def _spawn(self, alive: contextlib.AsyncExitStack, place: int) -> Life:
        seed, generation = self.seed, self.generation
        spawning = EphemeralAgent.spawn(
            self._store.connection,
            self._tenants[place % len(self._tenants)],
            self.experiment.lifetime,
            f"g{generation}-a{place}",
            clock=self._clock,
            seed=id_stream(seed, generation, place),
            pull_limit=0,  # it dies when it has pushed: what others pushed meanwhile would be read by nobody
        )
        agent = await alive.enter_async_context(spawning)
        rng = stream(seed, "learner", generation, place)
        # A world draws in an `attempt` of its own; to make a stream takes as long as to act.
        chance = stream(seed, "world", generation, place) if hasattr(self._world, "attempt") else rng
        return Life(agent, place, rng, chance)

    async def _attempt(self, life: Life, task: Task, ahead: Sequence[Memory] | None) -> None:
        began, before = time.perf_counter(), self._trials.recall_seconds
        states = [copy.deepcopy(each.bit_generator.state) for each in (life.rng, life.chance)] if self._shadow else []
        trials = await self._trials.go(life.agent, task, life.rng, life.chance, ahead)
        recalling = self._trials.recall_seconds - before
        self._spent["recall"] += recalling
        self._spent["act"] += time.perf_counter() - began - recalling
        # Of several outcomes the first stands for the task.
        self._rewards[1].extend(_true_reward(trial.outcome) for trial in trials[:1])
        stages = [self._stage(life.agent.tenant_id, task, trial) for trial in trials]
        instead: list[float | None] = [None] * len(trials)
        if self._shadow is not None and any(stage == "forgotten" for stage, _ in stages):
            again = await self._try_again(self._shadow, life.agent.tenant_id, task, states)
            if len(again) == len(trials):
                pairs = zip(again, stages, strict=True)
                instead = [value if stage == "forgotten" else None for value, (stage, _) in pairs]
        life.trials += zip([task] * len(trials), trials, stages, instead, strict=True)

    async def _try_again(
        self, shadow: Hub, tenant_id: str, task: Task, states: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """What a task would have been worth, with the same luck, if nothing had been forgotten."""
        rng, chance = stream(self.seed, ""), stream(self.seed, "")
        rng.bit_generator.state, chance.bit_generator.state = states
        async with EphemeralAgent.spawn(shadow, tenant_id, agent_id="again", clock=self._clock) as agent:
            return [_true_reward(trial.outcome) for trial in await self._trials.go(agent, task, rng, chance)]

    def _stage(self, tenant_id: str, task: Task, trial: Trial) -> Stumble:
        helpful = getattr(self._world, "helpful", None)
        if helpful is None or _true_reward(trial.outcome) >= SUCCESS:
            return None, None
        return self._ledger.stage(helpful, task, tenant_id, trial.step.recalled)

    async def _store_trials(self, life: Life) -> list[tuple[Episode, Outcome]]:
        """Store what the arm writes; what was stored, each with its outcome."""
        noisy = isinstance(self.arm.write, NoisyEvaluator)
        evaluator = stream(self.seed, "evaluator", self.generation, life.place) if noisy else None
        stored = []
        for step, (task, trial, stage, counterfactual) in enumerate(life.trials):
            outcome = self._observed(trial.outcome, evaluator)
            episode = None
            if self._writes(outcome):
                about = self._about(outcome, trial.step.task, self.generation, trial.step.metadata)
                episode = await life.agent.store_episode(**about, sources=trial.step.used[:MAX_SOURCES])
                stored.append((episode, self._told(outcome)))
            life.rewards.append(float(outcome.reward))
            self._write_row(life, step, task, trial, outcome, episode, stage, counterfactual)
        self._rewards[0].extend(life.rewards)
        return stored

    def _write_life(self, life: Life) -> None:
        agent, now, rewards = life.agent, self._clock.now(), life.rewards
        mean = sum(rewards) / len(rewards) if rewards else None
        own = (self._logical(agent.tenant_id), life.place, agent.agent_id, self.experiment.tasks_per_agent)
        pulled = len(agent.memories) - agent.unsynced
        self._record.add("agents", self.generation, *own, pulled, agent.unsynced, mean, now, now, "destroyed")

    def _observed(self, outcome: Outcome, rng: np.random.Generator | None) -> Outcome:
        """The outcome as its agent sees it; the generator is a noisy evaluator's."""
        if rng is None or not isinstance(self.arm.write, NoisyEvaluator):
            return outcome
        seen = outcome.reward + self.arm.write.sigma * rng.standard_normal()
        return outcome._replace(reward=float(seen), true_reward=_true_reward(outcome))

    def _writes(self, outcome: Outcome) -> bool:
        write = self.arm.write
        if write == "everything":
            return True
        return outcome.reward >= (write.threshold if isinstance(write, NoisyEvaluator) else SUCCESS)

    def _told(self, outcome: Outcome) -> Outcome:
        """The outcome as the learner may know it."""
        return outcome if self.arm.feedback == "corrective" else outcome._replace(answer=None)

    def _about(self, outcome: Outcome, task: Task, generation: int, metadata: dict[str, Any]) -> dict[str, Any]:
        """What is stored of an outcome of a task."""
        told = outcome.answer if self.arm.feedback == "corrective" else None
        asked = task if outcome.input is None else Task(task.task, outcome.input, None, outcome.vector)
        own = {"generation": generation, **metadata, **outcome.metadata}
        return {
            "task": asked.task,
            "input": asked.input,
            "output": outcome.output,
            "reward": outcome.reward,
            "vector": self._vectors.of(asked),
            "metadata": own if told is None else {**own, "answer": told},
        }

    def _write_row(
        self,
        life: Life,
        number: int,
        task: Task,
        trial: Trial,
        outcome: Outcome,
        episode: Episode | None,
        stage: Stumble,
        counterfactual: float | None,
    ) -> None:
        tenant_id, step = life.agent.tenant_id, trial.step
        self._record.add(
            "episodes",
            self.generation,
            self._logical(tenant_id),
            life.place,
            life.agent.agent_id,
            number,
            None if episode is None else episode.id,
            step.task.task,
            step.task.input if outcome.input is None else outcome.input,
            outcome.output,
            task.answer if outcome.answer is None else outcome.answer,
            float(outcome.reward),
            _true_reward(outcome),
            episode is not None,
            self._ledger.origins(step.recalled),
            self._ledger.origins(step.used),
            step.similarity,
            self._clock.now(),
            *stage,
            counterfactual,
            metadata_json({**step.metadata, **outcome.metadata}),
        )

    async def _migrate(self, stored: Sequence[tuple[Episode, Outcome]]) -> None:
        """Copy a share of what a generation stored to the next island."""
        sharing = self.arm.sharing
        if not isinstance(sharing, Islands) or not sharing.migration or len(self._tenants) == 1:
            return
        rng = stream(self.seed, "migration", self.generation)
        ids = id_stream(self.seed, self.generation, -1)
        now = self._clock.now()
        for here, there in zip(self._tenants, [*self._tenants[1:], self._tenants[0]], strict=True):
            own = [each for each in stored if each[0].tenant_id == here]
            chosen = rng.choice(len(own), round(sharing.migration * len(own)), replace=False)
            copies = []
            for episode, outcome in (own[each] for each in sorted(chosen)):
                migrant = Episode(
                    tenant_id=there,
                    agent_id="migrant",
                    task=episode.task,
                    input=episode.input,
                    output=episode.output,
                    reward=episode.reward,
                    id=new_id(now, ids),
                    created_at=episode.created_at,
                    vector=episode.vector,
                    sources=(episode.id,),
                    metadata={**episode.metadata, "original": episode.id},
                )
                copies.append(migrant)
                self._ledger.store(migrant, outcome, episode.id)
            if copies:
                await self._store.connection.put(copies)
                await self._remember(copies)

    async def _close_generation(self, lives: Sequence[Life], stored: int) -> None:
        gone = []
        with self._timed("retention"):
            self._clock.advance(days=self.experiment.generation_interval / timedelta(days=1))
            if self._forgets:
                gone = await self._store.retain(self._tenants)
        self._ledger.forget(gone)
        self._record.forget(self.generation, gone, self._store.prefix)
        mean = [sum(each) / len(each) if each else None for each in self._rewards]
        tasks = len(lives) * self.experiment.tasks_per_agent
        numbers = (self._ledger.size, stored, len(gone), self._ledger.bytes)
        self._record.add("generations", self.generation, len(lives), tasks, *mean, *numbers)
        spent = [1000 * self._spent[name] for name in PHASES]
        self._record.add("costs", self.generation, *spent, self._store.bytes)
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._rewards = [], []

    def _logical(self, tenant_id: str) -> str:
        """A tenant's name without what makes it unique on a live hub."""
        return tenant_id.removeprefix(self._store.prefix)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._spent[phase] += time.perf_counter() - began


async def _each(work: Iterable[Awaitable[T]]) -> list[T]:
    """What each gives, all at once and in their order: what they ask of the hub is committed together."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for each in results:
        if isinstance(each, BaseException):
            raise each
    return results  # type: ignore[return-value]  # no errors are left


def seeded(world: World, seed: int) -> World:
    """The world of one seed."""
    own = getattr(world, "seeded", None)
    return world if own is None else own(stream(seed, "seeded"))


def tasks_of(experiment: Experiment, world: World, seed: int, generation: int) -> Sequence[Task]:
    """The tasks of one generation, for all its agents: the same for every arm.

    Raises:
        InvalidRequest: If the world gives fewer than are needed, or what is no task.
    """
    wanted = experiment.agents_per_generation * experiment.tasks_per_agent
    found = world.tasks(stream(seed, "tasks", generation), wanted, generation)
    given = list(found) if isinstance(found, Iterable) else [found]
    wrong = [f"{type(each).__name__} {each!r:.80}" for each in given if not isinstance(each, Task)]
    if wrong or len(given) != wanted:
        what = f"{wrong[0]}, which is no Task," if wrong else f"{len(given)} Tasks"
        raise InvalidRequest(f"{type(world).__name__}.tasks gave {what} where {wanted} Tasks are needed", field="tasks")
    return [each if each.vector is None else Task(*each[:3], to_vector(each.vector)) for each in given]


def embedder_of(
    experiment: Experiment, arm: Arm, world: World, tasks: Sequence[Task], *, live: bool = False
) -> tuple[Embedder, bool]:
    """What makes the vectors of a cell, and whether anyone compares them.

    Args:
        experiment: Says which model.
        arm: Says what is recalled.
        world: May have vectors of its own.
        tasks: Of the first generation, for which it is tried out who asks for similarity.
        live: Whether a live hub says which vectors there are.
    """
    dimension = getattr(world, "dimension", None)
    if dimension is not None:
        return Hashing(dimension), True
    if not live and not hasattr(arm.learner, "prepare") and "Distinct" not in repr(arm.retention):
        asked = (query for task in tasks for query in queries(arm, arm.learner, task))
        if all(query.policy is not None and not query.policy.similarity for query in asked):
            return Hashing(NO_MODEL), False
    return get_embedder(experiment.embedder), True


def _policy(arm: Arm) -> RetentionPolicy:
    if arm.capacity is None:
        return arm.retention
    newest = MaxEpisodes(arm.capacity)
    return newest if arm.retention == KeepForever() else arm.retention & newest


def _true_reward(outcome: Outcome) -> float:
    return float(outcome.reward if outcome.true_reward is None else outcome.true_reward)
