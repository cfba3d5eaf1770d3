"""The hub over a real socket, server in its own process, beside a bare WebSocket echo and raw sqlite3."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import data, raw
from fedlab import EphemeralAgent, Episode, connect


@contextlib.contextmanager
def hub_process(folder: Path) -> Iterator[str]:
    """A hub server; yields its URL."""
    log = folder / "hub.log"
    command = [sys.executable, "-m", "fedlab", "hub", "--data", str(folder / "hub"), "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--embedder", "hashing"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while " at ws://" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        yield log.read_text().split(" at ")[1].split(",")[0]
    finally:
        process.terminate()
        process.wait()


CLIENTS = 64
TENANTS = [f"tenant-{number}" for number in range(8)]


async def pushes(url: str, episodes: list[Episode]) -> float:
    """Acknowledged pushes a second: every client sends one episode a message and waits for its answer.

    Episodes are pushed about in the order in which they were made, as by clients that push what they make. An id tells
    when it was made: were all of one client made before those of the next, a commit would touch twice as many pages.
    """
    async with contextlib.AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(connect(url)) for _ in range(CLIENTS)]

        async def push(number: int) -> None:
            for episode in episodes[number::CLIENTS]:
                await hubs[number].put(episode)

        await asyncio.gather(*(hub.info() for hub in hubs))
        start = time.perf_counter()
        await asyncio.gather(*(push(number) for number in range(CLIENTS)))
        return len(episodes) / (time.perf_counter() - start)


def raw_puts(sqlite: raw.Sqlite, episodes: list[Episode], first: int) -> float:
    """Raw sqlite3, the same rows, one transaction each; the first has this number."""
    rows = [sqlite.rows([each], number) for number, each in enumerate(episodes, first)]
    start = time.perf_counter()
    for each in rows:
        sqlite.write(each)
    return len(rows) / (time.perf_counter() - start)


def push_pairs(url: str, folder: Path, count: int = 7) -> Iterator[tuple[float, float]]:
    """Pushes to the hub a second, and to raw sqlite3 one at a time, by turns, into databases that hold the same.

    A commit into a larger database touches more pages. Before the first turn, both warm up.
    """
    sqlite, part, first = raw.Sqlite(folder / "raw.db"), 750, 1
    for number in range(count + 1):
        episodes = data.episodes((150 if number else 20) * CLIENTS, *TENANTS, seed=number)
        before = raw_puts(sqlite, episodes[:part], first)
        ours = asyncio.run(pushes(url, episodes))
        # After it once more, of other episodes; the rest at once.
        after = raw_puts(sqlite, episodes[part : part + 500], first + part)
        sqlite.write(sqlite.rows(episodes[part + 500 :], first + part + 500))
        first += len(episodes)
        if number:
            yield ours, (before + after) / 2


async def recall_p50(url: str, rounds: int = 1_000) -> float:
    """Seconds of the median recall by vector, k = 10, rows included, 10 tenants of 1,000."""
    async with connect(url) as hub:
        for number in range(10):
            await hub.put(data.episodes(1_000, f"recall-{number}", seed=number))
        queries = data.vectors(rounds, seed=99)
        for number in range(10):
            await hub.recall(f"recall-{number}", queries[0], k=10)
        times = []
        for number in range(rounds):
            start = time.perf_counter()
            memories = await hub.recall(f"recall-{number % 10}", queries[number], k=10)
            times.append(time.perf_counter() - start)
            assert len(memories) == 10
    return float(np.median(times))


async def lives_per_second(url: str, rounds: int = 100) -> float:
    """Spawn with an own connection, pull 10, push 1, destroy; one after the other."""
    vectors = data.vectors(rounds, seed=5)
    start = time.perf_counter()
    for number in range(rounds):
        agent = await EphemeralAgent.spawn(url, tenant_id="recall-0", lifetime=60)
        assert len(await agent.query_memories(vectors[number], k=10)) == 10
        await agent.store_episode(task="t", input="i", output="o", reward=1.0, vector=vectors[number])
        await agent.destroy()
    return rounds / (time.perf_counter() - start)


def main() -> list[tuple]:
    with tempfile.TemporaryDirectory() as name, raw.Echo() as echo:
        folder = Path(name)
        with hub_process(folder) as url:
            pairs = list(push_pairs(url, folder))
            recalls = [(asyncio.run(recall_p50(url)), asyncio.run(raw.echo_p50(echo))) for _ in range(3)]
            lives = [(asyncio.run(lives_per_second(url)), asyncio.run(raw.connects_per_second(echo))) for _ in range(9)]
    median = lambda values: float(np.median(list(values)))  # noqa: E731
    return [
        ("64 clients, one episode a message", median(a for a, _ in pairs), median(a / b for a, b in pairs))
        + ("/s", 3.0, "x raw sqlite3"),
        ("recall by vector over the socket, p50", median(a for a, _ in recalls) * 1e3)
        + (median(a / b for a, b in recalls), "ms", -8.0, "x a bare echo"),
        ("spawn, pull 10, push 1, destroy", median(a for a, _ in lives), median(a / b for a, b in lives))
        + ("/s", 0.25, "x connect-echo-close"),
    ]


if __name__ == "__main__":
    os.environ.setdefault("FEDLAB_RUNTIME_DIR", tempfile.mkdtemp())
    for row in main():
        print(row)
