"""The laboratory: task steps through real agents and an embedded hub, and whether the hundredth generation is as quick.

The memory is held at 2,000 episodes, so that what grows is the log and not the search.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from fedlab import EphemeralAgent, Hub, MaxEpisodes
from fedlab.lab import Answer, Arm, Experiment, Outcome, Query, Task
from fedlab.lab.calm import calm
from fedlab.lab.cell import Cell

MEMORIES, GENERATIONS, AGENTS, TASKS = 2_000, 100, 10, 10


class Points:
    """Points around 40 centres, each with a vector of its own, and a memory that is full from the beginning."""

    dimension = 384
    task = "which centre?"
    centres = np.random.default_rng(0).normal(size=(40, dimension))

    def tasks(self, rng, n, generation):
        numbers = rng.integers(40, size=n)
        vectors = self.centres[numbers] + rng.normal(size=(n, self.dimension))
        texts = [f"point {generation}.{place}" for place in range(n)]
        return [Task(self.task, *each) for each in zip(texts, numbers.astype(str).tolist(), vectors, strict=True)]

    def reward(self, task, output):
        return float(output == task.answer)

    def founders(self, rng):
        tasks = self.tasks(rng, MEMORIES, -1)
        return [Outcome(each.answer, 1.0, input=each.input, vector=each.vector, answer=each.answer) for each in tasks]


class Nearest:
    def queries(self, task):
        return [Query(k=10)]

    def act(self, task, memories, rng):
        return Answer(memories[0].metadata["answer"], [memories[0].id])


async def measure_life() -> float:
    """Ms between the birth and the death of an agent that does nothing, on a hub like a cell's own."""
    times = []
    with Hub(":memory:", embedder="hashing") as hub:
        for _ in range(300):
            began = time.perf_counter()
            agent = await EphemeralAgent.spawn(hub, "acme")
            await agent.destroy()
            times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def main() -> list[tuple]:
    arm = Arm("nearest", Nearest(), feedback="corrective", retention=MaxEpisodes(MEMORIES))
    experiment = Experiment(
        Points(), [arm], generations=GENERATIONS, agents_per_generation=AGENTS, tasks_per_agent=TASKS, seeds=[0]
    )
    cell, marks = Cell(experiment, arm, 0), []
    with calm():  # as the runner does
        asyncio.run(cell.run(progress=lambda: marks.append(time.perf_counter())))
    seconds = np.diff(marks)
    steps = AGENTS * TASKS / np.median(seconds)
    growth = np.median(seconds[-11:]) / np.median(seconds[4:15])
    life = asyncio.run(measure_life())
    return [
        (f"lab: task steps, {MEMORIES:,} memories", steps, steps, "/s", 2_500, "/s"),
        ("lab: a step in generation 100 against 10", growth, growth, "x", -1.5, "x"),
        ("lab: spawn and destroy one agent", life, life, "ms", -1.0, "ms"),
    ]


if __name__ == "__main__":
    for row in main():
        print(*row)
