"""`Experiment`: arms that meet the same tasks, seed by seed, and its runs. A run's directory is in `running.py`, what
happens inside one cell (one arm under one seed) in `cell.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fedlab import _html
from fedlab._words import counted
from fedlab.agent.spawning import check_lifetime
from fedlab.errors import InvalidRequest
from fedlab.lab.arm import NO_WORLD, Arm, Islands, check_object, wrong
from fedlab.recall import check_count

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from fedlab.embedding import Embedder
    from fedlab.lab.results import Results
    from fedlab.lab.world import World


@dataclass(frozen=True)
class Experiment:
    """Arms that meet the same tasks in the same order, under each of some seeds.

    Args:
        world: Where the tasks come from.
        arms: What is compared.
        generations: How many follow each other.
        agents_per_generation: How many live at once.
        tasks_per_agent: In its life.
        generation_interval: From one generation to the next; retention is applied at its end. No time passes within a
            generation.
        seeds: The replications, each a number from 0.
        lifetime: Of an agent, in seconds.
        embedder: Makes vectors of texts; not used where the world brings vectors, or where nobody asks for similarity.
        counterfactual: Whether a task that failed for a forgotten memory is tried again with all memories.

    Raises:
        InvalidRequest: If one of these is not what it should be.
    """

    world: World
    arms: Sequence[Arm]
    generations: int = 20
    agents_per_generation: int = 10
    tasks_per_agent: int = 10
    generation_interval: timedelta = timedelta(days=10)
    seeds: Sequence[int] = range(10)
    lifetime: float = 300
    embedder: Embedder | str = "minilm"
    counterfactual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))
        for name in ("generations", "agents_per_generation", "tasks_per_agent"):
            check_count(getattr(self, name), name, least=1)
        if not isinstance(self.generation_interval, timedelta) or self.generation_interval <= timedelta(0):
            raise wrong("generation_interval", "a timedelta above zero", self.generation_interval)
        if not isinstance(self.seeds, Iterable) or isinstance(self.seeds, str):
            raise wrong("seeds", "numbers from 0, such as range(10)", self.seeds)
        object.__setattr__(self, "seeds", tuple(check_count(seed, "seeds") for seed in self.seeds))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise wrong("seeds", "different numbers, at least one", self.seeds)
        check_lifetime(self.lifetime, any_lifetime=False)
        if isinstance(self.world, Islands):
            raise InvalidRequest(NO_WORLD, field="world")
        check_object(self.world, "world", ("tasks", "reward"))
        _check_arms(self.arms, self.agents_per_generation)

    async def run(
        self,
        directory: str | os.PathLike[str],
        *,
        workers: int | Executor = 1,
        hub: str | None = None,
        keep_hubs: bool = False,
        progress: bool = True,
    ) -> Results:
        """Run what is not finished in a directory, and read the results.

        Args:
            directory: Made if it is not there. One in which this experiment was begun is continued.
            workers: How many processes; 1 stays in this one. Or any executor with `submit`, such as those of
                `concurrent.futures` or `dask.distributed.Client.get_executor()`.
            hub: URL of a live hub, of which the cells become tenants that stay there; else each cell has a hub of its
                own. A live hub ranks and forgets by its own clock: a recall by recency means nothing there.
            keep_hubs: Whether the cells' own hubs stay, in `hub/`.
            progress: Whether to show a bar.

        Raises:
            InvalidRequest: If the directory holds another experiment; the message says what differs.
            ExperimentFailed: If cells failed; the others are finished, and what failed is tried again next time.
        """
        from fedlab.lab.running import Run

        return await Run(self, directory, hub=hub, keep_hubs=keep_hubs).go(workers, progress=progress)

    def run_sync(self, directory: str | os.PathLike[str], **options: Any) -> Results:
        """As `run`, where no event loop is running: in a script, or on the shell.

        Raises:
            InvalidRequest: In a notebook, where one is.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.run(directory, **options))
        raise InvalidRequest("an event loop is running here, as in a notebook: await experiment.run(…) instead")

    def _repr_html_(self) -> str:
        title = (
            f"Experiment in {type(self.world).__name__}: {counted(len(self.arms), 'arm')} under"
            f" {counted(len(self.seeds), 'seed')}, {counted(self.generations, 'generation')} of"
            f" {counted(self.agents_per_generation, 'agent')} with {counted(self.tasks_per_agent, 'task')}"
        )
        rows = [
            (arm.name, type(arm.learner).__name__, arm.retention, arm.write, arm.sharing, arm.feedback, arm.capacity)
            for arm in self.arms
        ]
        return _html.table(
            title, rows, head=("arm", "learner", "retention", "write", "sharing", "feedback", "capacity")
        )


def _check_arms(arms: Sequence[object], agents: int) -> None:
    names: set[str] = set()
    for arm in arms:
        if not isinstance(arm, Arm):
            raise wrong("arms", "Arms", arm)
        if arm.name in names:
            raise wrong("arms", "of different names", arm.name)
        names.add(arm.name)
        if isinstance(arm.sharing, Islands) and not 1 <= arm.sharing.tenants <= agents:
            raise wrong("sharing", f"1 to {agents} tenants, as many as there are agents", arm.sharing.tenants)
    if not names:
        raise wrong("arms", "at least one Arm", arms)
