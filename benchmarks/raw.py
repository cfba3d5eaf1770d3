"""The raw limits: what SQLite, a bare WebSocket echo, usearch and the model do without fedlab."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import time
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import websockets.asyncio.client
import websockets.asyncio.server

from fedlab.hub import schema


class Sqlite:
    """The hub's own tables and indexes, filled by hand through the standard library's sqlite3."""

    def __init__(self, path: Path) -> None:
        engine = sa.create_engine(f"sqlite:///{path}")
        schema.metadata.create_all(engine)
        self.inserts = {
            name: str(sa.insert(schema.metadata.tables[name]).compile(dialect=engine.dialect))
            for name in ("changes", "episodes", "vectors")
        }
        engine.dispose()
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.execute("PRAGMA foreign_keys=1")
        self.connection.execute("PRAGMA secure_delete=1")

    def rows(self, episodes: list, first: int) -> dict[str, list[tuple]]:
        """The rows the hub would write, hashes of the same length included."""
        blank = bytes(32)
        return {
            "changes": [
                (first + i, e.tenant_id, "episode_stored", e.id, "bench", 0, "", blank, blank)
                for i, e in enumerate(episodes)
            ],
            "episodes": [
                (first + i, e.id, e.tenant_id, e.agent_id, e.session_id, e.task, e.input, e.output, e.reward)
                + (0, None, "{}", blank)
                for i, e in enumerate(episodes)
            ],
            "vectors": [(first + i, e.vector.tobytes(), blank) for i, e in enumerate(episodes)],
        }

    def write(self, rows: dict[str, list[tuple]]) -> None:
        """One transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        for name, statement in self.inserts.items():
            self.connection.executemany(statement, rows[name])
        self.connection.execute("COMMIT")


def _echo_server(ready, port) -> None:
    async def echo(connection) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0, compression=None) as server:
            port.value = server.sockets[0].getsockname()[1]
            ready.set()
            await asyncio.Future()

    asyncio.run(main())


class Echo:
    """A bare WebSocket echo in its own process."""

    def __enter__(self) -> str:
        context = multiprocessing.get_context("spawn")
        ready, port = context.Event(), context.Value("i", 0)
        self.process = context.Process(target=_echo_server, args=(ready, port), daemon=True)
        self.process.start()
        ready.wait(30)
        return f"ws://127.0.0.1:{port.value}"

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join()


async def echo_p50(url: str, size: int = 900, rounds: int = 2_000) -> float:
    """Seconds of the median round trip of one message."""
    async with websockets.asyncio.client.connect(url, compression=None) as connection:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            await connection.send(bytes(size))
            await connection.recv()
            times.append(time.perf_counter() - start)
    return float(np.median(times))


async def connects_per_second(url: str, rounds: int = 200) -> float:
    """Connect, one echo, close; one after the other."""
    start = time.perf_counter()
    for _ in range(rounds):
        async with websockets.asyncio.client.connect(url, compression=None) as connection:
            await connection.send(b"x")
            await connection.recv()
    return rounds / (time.perf_counter() - start)
