"""A hub that is alive: generations of four tenants under four retention policies, for ever. `fedlab dashboard` without
anything to look at runs it.

The tenants meet the same tasks (to which module of the standard library does a docstring belong?) and copy the answer
to the most similar task that they remember; they differ only in what they may keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedlab import Decay, Distinct, EphemeralAgent, KeepForever, MaxEpisodes, MinReward, connect
from fedlab.errors import AgentExpired, FedlabError, HubUnavailable
from fedlab.hub_process import HubProcess, end_with_stdin
from fedlab.lab import ToolChoice

if TYPE_CHECKING:
    from typing import Any

    from fedlab.lab import Task
    from fedlab.net import HubConnection

TENANTS = {
    "keep-forever": KeepForever(),
    "newest-150": MaxEpisodes(150),
    "successes": MinReward(0.5) & Distinct(0.98),
    "fading": Decay(half_life=1 / 480, floor=0.3),  # 3 minutes
}
AGENTS, TASKS, TASKS_AT_ONCE = 4, 6, 2
PAUSE = 0.5
"""Seconds between two tasks of an agent: a life is long enough to be seen."""
CRASHES, EXPIRES = 0.06, 0.06
"""The share of agents that vanish without a goodbye, and of those that live on until their lifetime ends."""
LIFETIME = 8


class Live:
    """The generations of one demo.

    Args:
        connection: To the hub, as admin.
        url: Of the hub.
    """

    def __init__(self, connection: HubConnection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._world = ToolChoice()
        self._rng = np.random.default_rng(0)

    async def run(self) -> None:
        """Generation after generation, until it is cancelled."""
        await self._connection.embed(["hello"])  # the model takes seconds to load, and a life has no more
        for tenant, policy in TENANTS.items():
            async with EphemeralAgent.spawn(self._connection, tenant_id=tenant, agent_id="founder"):
                await self._connection.set_retention(tenant, policy)
        for generation in itertools.count():
            tasks = self._world.tasks(np.random.default_rng([0, generation]), AGENTS * TASKS)
            async with asyncio.TaskGroup() as group:
                for tenant in TENANTS:
                    for place in range(AGENTS):
                        own = tasks[place * TASKS : (place + 1) * TASKS]
                        group.create_task(self._mortal(tenant, generation, place, own))

    async def _mortal(self, *life: Any) -> None:
        """A life that a hub that is away, or a machine that slept, may end: the others and the next ones go on."""
        with contextlib.suppress(HubUnavailable, AgentExpired):
            await self._life(*life)

    async def _life(self, tenant: str, generation: int, place: int, tasks: list[Task]) -> None:
        """Recall, answer, store, push; and one of several ends."""
        fate = self._rng.random()
        await asyncio.sleep(self._rng.random() * PAUSE)
        connection = connect(self._url)
        agent = await EphemeralAgent.spawn(
            connection, tenant_id=tenant, lifetime=LIFETIME, agent_id=f"generation-{generation:04}-{place}"
        )
        try:
            for number, task in enumerate(tasks, 1):
                await self._attempt(agent, task, generation)
                if number % TASKS_AT_ONCE == 0:
                    await agent.sync_with_hub()
                await asyncio.sleep(PAUSE)
            if fate < CRASHES:
                await connection.close()
            if fate < CRASHES + EXPIRES:
                await asyncio.sleep(LIFETIME)
        finally:
            with contextlib.suppress(FedlabError):  # who crashed has no connection for a goodbye
                await agent.destroy()
            await connection.close()

    async def _attempt(self, agent: EphemeralAgent, task: Task, generation: int) -> None:
        memories = await agent.query_memories(task.task, 1, input=task.input)
        modules = list(self._world.module_docs)
        output = memories[0].metadata["answer"] if memories else modules[self._rng.integers(len(modules))]
        await agent.store_episode(
            task=task.task,
            input=task.input,
            output=output,
            reward=self._world.reward(task, output),
            metadata={"answer": task.answer, "generation": generation},
        )


async def main(data: Path, port: int) -> None:
    """Run a hub in a directory on a port, and fill it until SIGTERM or Ctrl-C."""
    data.parent.mkdir(parents=True, exist_ok=True)
    hub = HubProcess(
        data,
        data.parent / "hub.log",
        port=port,
        options=["--retention-interval", "10", "--backup-dir", str(data.parent / "backups")],
    )
    async with hub, connect(hub.url, timeout=120, retry_for=60) as connection:
        await Live(connection, hub.url).run()


if __name__ == "__main__":
    end_with_stdin()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
