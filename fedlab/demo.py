"""The demo: generations of short-lived agents of three tenants on one hub, which is killed half-way.

It uses what every user has: a hub process, agents over the socket, the ToolChoice data, and simulated days.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from fedlab._words import counted
from fedlab.agent import EphemeralAgent
from fedlab.clock import SimulatedClock, to_datetime
from fedlab.episode import embedding_text
from fedlab.errors import HubUnavailable, InvalidRequest
from fedlab.hub_process import HubProcess
from fedlab.lab import Task, ToolChoice
from fedlab.net import connect

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Iterable, Sequence
    from typing import Any

    import numpy.typing as npt
    import polars as pl

    from fedlab.hub.values import VerifyReport
    from fedlab.net import HubConnection

T = TypeVar("T")

WITHOUT_MEMORY = "no-memory"
TENANTS = ("acme", "globex", WITHOUT_MEMORY)
"""Two that remember, each with tasks of its own, and one without memory that meets the tasks of the first."""
DAYS = 10
"""Simulated days between two generations."""
PUSH = 4
"""Episodes that an agent stores between two syncs."""
MARKER = ".fedlab-demo"
"""Says that a folder was made by the demo, which may then replace it."""


class DemoReport(NamedTuple):
    """What happened in a demo.

    Args:
        rewards: Columns `tenant_id`, `generation`, `tasks`, `mean`, `low`, `high`, read from the hub.
        stored: Live episodes by tenant.
        lives: Agents that lived, by tenant.
        acknowledged: Episodes that the hub acknowledged.
        lost: Acknowledged episodes that the hub does not have.
        repeated: Episodes that the hub has more than once.
        kills: How often the hub was killed.
        away: Seconds that the hub was away then.
        verified: What the hub says of itself at the end.
        page: The saved page.
        data: The hub's directory.
        seconds: That the demo took.
    """

    rewards: pl.DataFrame
    stored: dict[str, int]
    lives: dict[str, int]
    acknowledged: int
    lost: int
    repeated: int
    kills: int
    away: float
    verified: VerifyReport
    page: Path
    data: Path
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the hub kept its promises."""
        return not self.lost and not self.repeated and self.verified.ok

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: mean reward by generation and tenant, then episodes and lives."""
        tenants = sorted(self.stored)
        means = {(row["tenant_id"], row["generation"]): row["mean"] for row in self.rewards.to_dicts()}
        numbers = sorted({generation for _, generation in means})
        rows = [[str(n), *(f"{means.get((tenant, n), float('nan')):.2f}" for tenant in tenants)] for n in numbers]
        rows.append(["episodes stored", *(f"{self.stored[tenant]:,}" for tenant in tenants)])
        rows.append(["agents lived", *(f"{self.lives[tenant]:,}" for tenant in tenants)])
        return ["generation", *tenants], rows

    @property
    def verdict(self) -> str:
        """What became of the episodes, in one sentence."""
        times = {1: "once"}.get(self.kills, f"{self.kills} times")
        fate = (
            "each is there exactly once"
            if not self.lost and not self.repeated
            else f"{self.lost:,} are lost and {self.repeated:,} are there more than once"
        )
        return (
            f"The hub was killed {times} (SIGKILL) and was away for {self.away:.1f} s. It acknowledged"
            f" {counted(self.acknowledged, 'episode')}: {fate}. Its own check: {self.verified}."
        )

    def __str__(self) -> str:
        header, rows = self.table
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
        ]
        body = "\n".join(lines)
        return (
            f"Mean reward by generation and tenant ({DAYS} simulated days apart)\n\n{body}\n\n{self.verdict}\n"
            f"Plots: {self.page}\nThe hub's data: {self.data} (try: fedlab stats {self.data})\n"
            f"{self.seconds:.0f} seconds"
        )


class Attempt(NamedTuple):
    """What an agent answered, before it stores it."""

    task: Task
    output: str
    sources: tuple[str, ...]


class Demo:
    """One run; see `run_demo` for the arguments."""

    def __init__(
        self, hub: HubProcess, *, generations: int, agents: int, tasks: int, seed: int, bar: tqdm[None] | None
    ) -> None:
        self.hub = hub
        self.generations = generations
        self.agents = agents
        self.seed = seed
        self.clock = SimulatedClock(datetime(2026, 1, 1))  # noqa: DTZ001 - the clock takes it as UTC
        self.acknowledged: set[str] = set()
        self.killed_at = 0.0
        self.back_at = 0.0
        self._bar = bar
        self._up = asyncio.Event()
        self._up.set()
        self._world = world = ToolChoice(seed)
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}
        self._tasks: dict[str, list[Task]] = {}
        need = generations * agents * tasks
        if need > len(world.texts):
            raise InvalidRequest(f"{need:,} tasks for a tenant are needed and the data has {len(world.texts):,}")
        for stream, tenant in enumerate(TENANTS):
            rng = np.random.default_rng([seed, 0 if tenant == WITHOUT_MEMORY else stream])
            self._tasks[tenant] = world.tasks(rng, need)

    async def run(self) -> None:
        """All generations, with the crash in the middle of one's pushes."""
        async with connect(self.hub.url, timeout=120, retry_for=60) as connection:
            await self._learn_vectors(connection, self._world.module_docs.values())
            if self._bar is not None:
                self._bar.reset()  # how long the model took to load says nothing of the lives
            for generation in range(self.generations):
                await self._generation(connection, generation)
                self.clock.advance(days=DAYS)

    async def _generation(self, connection: HubConnection, generation: int) -> None:
        shares = {tenant: self._share(tenant, generation) for tenant in TENANTS}
        inputs = (task.input for share in shares.values() for tasks in share for task in tasks)
        await self._learn_vectors(connection, inputs)
        lives = [(tenant, number) for tenant in TENANTS for number in range(self.agents)]
        agents = [await self._spawn(tenant, generation, number) for tenant, number in lives]
        try:
            # Everybody recalls before anybody pushes: who is quicker than whom must not change a reward.
            attempts = await _all(
                self._work(agent, shares[tenant][number]) for agent, (tenant, number) in zip(agents, lives, strict=True)
            )
            half = None
            if generation == self.generations // 2:
                half = len(self.acknowledged) + sum(map(len, attempts)) // 2
            async with asyncio.TaskGroup() as group:
                crash = asyncio.Event()
                if half is not None:
                    group.create_task(self._crash(crash))
                for agent, attempted in zip(agents, attempts, strict=True):
                    group.create_task(self._report(agent, attempted, generation, crash, half))
        finally:
            for agent in agents:
                with contextlib.suppress(Exception):
                    await agent.destroy()

    def _share(self, tenant: str, generation: int) -> list[list[Task]]:
        """The tasks of each agent of a generation."""
        tasks = self._tasks[tenant]
        size = len(tasks) // (self.generations * self.agents)
        starts = (size * (generation * self.agents + number) for number in range(self.agents))
        return [tasks[start : start + size] for start in starts]

    async def _learn_vectors(self, connection: HubConnection, inputs: Iterable[str]) -> None:
        """Let the hub embed a generation's texts in one go: quicker than one by one, and repeatable to the bit."""
        texts = [text for text in dict.fromkeys(map(self._text, inputs)) if text not in self._vectors]
        if texts:
            vectors = np.asarray(await connection.embed(texts), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            self._vectors.update(zip(texts, vectors, strict=True))

    def _text(self, input: str) -> str:
        return embedding_text(self._world.task, input)

    async def _spawn(self, tenant: str, generation: int, number: int) -> EphemeralAgent:
        return await EphemeralAgent.spawn(
            self.hub.url,
            tenant_id=tenant,
            lifetime=300,
            agent_id=f"generation-{generation:02}-agent-{number:02}",
            clock=self.clock,
            seed=f"{self.seed}/{generation}/{number}",
        )

    async def _work(self, agent: EphemeralAgent, tasks: Sequence[Task]) -> list[Attempt]:
        """Answer with what was right for the nearest memory, or with the module whose docstring is nearer."""
        modules = list(self._world.module_docs)
        docs = np.stack([self._vectors[self._text(doc)] for doc in self._world.module_docs.values()])
        attempts = []
        for task in tasks:
            near = docs @ self._vectors[self._text(task.input)]
            attempt = Attempt(task, modules[int(near.argmax())], ())
            if agent.tenant_id != WITHOUT_MEMORY:
                memories = await agent.query_memories(task.task, k=1, input=task.input)
                if memories and memories[0].similarity >= near.max():
                    attempt = Attempt(task, memories[0].metadata["answer"], (memories[0].id,))
            attempts.append(attempt)
        return attempts

    async def _report(
        self, agent: EphemeralAgent, attempts: list[Attempt], generation: int, crash: asyncio.Event, half: int | None
    ) -> None:
        """Store what was learned, a few episodes a push, and die."""
        for start in range(0, len(attempts), PUSH):
            for task, output, sources in attempts[start : start + PUSH]:
                await agent.store_episode(
                    task=task.task,
                    input=task.input,
                    output=output,
                    reward=self._world.reward(task, output),
                    sources=sources,
                    metadata={"answer": task.answer, "generation": generation},
                )
            await self._push(agent)
            if half is not None and len(self.acknowledged) >= half and not crash.is_set():
                self.killed_at = time.time()
                self._up.clear()
                self.hub.kill()
                crash.set()
        await self._up.wait()
        await agent.destroy()
        if self._bar is not None:
            self._bar.set_postfix_str(f"generation {generation}, {to_datetime(self.clock.now()):%d %b %Y}")
            self._bar.update()

    async def _push(self, agent: EphemeralAgent) -> None:
        """Sync, and when the hub is away, wait until it is back and sync again."""
        async with asyncio.timeout(90):
            while True:
                pushed = {episode.id for episode in agent.unsynced_episodes}
                try:
                    await agent.sync_with_hub()
                except HubUnavailable:
                    await asyncio.sleep(0.05)
                    await self._up.wait()
                else:
                    self.acknowledged |= pushed
                    return

    async def _crash(self, killed: asyncio.Event) -> None:
        await killed.wait()
        self._say(
            f"The hub was killed after {len(self.acknowledged):,} acknowledged episodes, in the middle of pushes."
        )
        await self.hub.wait()
        await self.hub.start()
        self.back_at = time.time()
        self._up.set()
        self._say(f"The hub is back after {self.back_at - self.killed_at:.1f} s; the agents go on.")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)


def run_demo(
    output: str | os.PathLike[str] = "demo-output",
    *,
    generations: int = 10,
    agents: int = 5,
    tasks: int = 16,
    seed: int = 0,
    embedder: str | None = None,
    progress: bool = True,
) -> DemoReport:
    """Run generations of agents on a real hub that is killed half-way, and show what memory did for them.

    Args:
        output: Folder for the hub's data, its log and the page; an earlier demo's there is replaced.
        generations: At least 2.
        agents: Agents of one tenant in one generation.
        tasks: Tasks of one agent.
        seed: The same seed gives the same rewards.
        embedder: Name of the hub's embedder; MiniLM if None.
        progress: Show a progress bar, and print the report at the end.

    Raises:
        InvalidRequest: If the folder holds something that no demo has made, or a number is out of range.
    """
    if min(agents, tasks) < 1 or generations < 2:
        raise InvalidRequest(
            f"not {generations} generations of {agents} agents with {tasks} tasks: 2, 1 and 1 at least"
        )
    folder = _ours(Path(output).absolute())
    with tqdm(total=generations * agents * len(TENANTS), unit="life", disable=not progress, leave=False) as bar:
        try:
            report = asyncio.run(
                _run(folder, embedder, bar, generations=generations, agents=agents, tasks=tasks, seed=seed)
            )
        except asyncio.CancelledError:  # SIGTERM; the hub's process has ended
            raise SystemExit(128 + signal.SIGTERM) from None
    if progress:
        tqdm.write(str(report))
    return report


async def _run(
    folder: Path, embedder: str | None, bar: tqdm[None], *, generations: int, agents: int, tasks: int, seed: int
) -> DemoReport:
    began = time.monotonic()
    hub = HubProcess(folder / "hub", folder / "hub.log", embedder)
    demo = Demo(hub, generations=generations, agents=agents, tasks=tasks, seed=seed, bar=bar)
    _empty(folder)  # not before it is certain that there will be another
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    bar.set_postfix_str("the hub starts and loads its model")
    async with hub:
        await demo.run()
        async with connect(hub.url, timeout=120) as connection:
            return await _look(connection, demo, folder, began)


async def _look(connection: HubConnection, demo: Demo, folder: Path, began: float) -> DemoReport:
    """Ask the hub what it has, and save the page."""
    from fedlab import _html, plots
    from fedlab._polars import pl

    episodes = await connection.episodes()
    lives = await connection.agents()
    changes = await connection.changes()
    episodes = episodes.with_columns(
        pl.col("metadata").str.json_path_match("$.generation").cast(pl.Int64).alias("generation")
    )
    ids = episodes["id"]
    report = DemoReport(
        rewards=plots.reward_by_generation(episodes),
        stored={tenant: episodes.filter(pl.col("tenant_id") == tenant).height for tenant in TENANTS},
        lives={tenant: lives.filter(pl.col("tenant_id") == tenant).height for tenant in TENANTS},
        acknowledged=len(demo.acknowledged),
        lost=len(demo.acknowledged.difference(ids)),
        repeated=len(ids) - ids.n_unique(),
        kills=int(demo.killed_at > 0),
        away=demo.back_at - demo.killed_at,
        verified=await connection.verify(),
        page=folder / "demo.html",
        data=demo.hub.data,
        seconds=time.monotonic() - began,
    )
    growth = plots.memory_growth(changes, tenants=TENANTS)
    growth.add_vrect(
        x0=to_datetime(int(demo.killed_at * 1000)),
        x1=to_datetime(int(demo.back_at * 1000)),
        fillcolor="#888",
        opacity=0.3,
        line_width=0,
        annotation_text="the hub is dead",
    )
    curves = plots.learning_curves(episodes, tenants=TENANTS)
    head, rows = report.table
    summary = f"<p>{report.verdict}</p>{_html.table('', rows, head=head)}"
    plots.write_page(report.page, "fedlab: what happens when memory outlives the agents", [curves, growth], summary)
    return report


def _ours(folder: Path) -> Path:
    """The folder, if it is empty or not there yet, or an earlier demo's.

    Raises:
        InvalidRequest: If there is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder: give another --output")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise InvalidRequest(f"{folder} holds something that no demo has made: give another --output")
    return folder


def _empty(folder: Path) -> None:
    """Make the folder, and remove from it what an earlier demo has left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for name in ("hub", "hub.log", "demo.html"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; one failure cancels the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]
