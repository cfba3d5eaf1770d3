"""Each limit of a server is kept, named to whoever reaches it, and felt by nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab import Episode, FedlabError, Hashing, Hub, QuotaExceeded
from fedlab.net import Settings
from fedlab.net.protocol import MSGPACK, Request

from .conftest import dialled, until

Make = Callable[..., Episode]


class Stalled(Hashing):
    """An embedder that takes as long as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def embed(self, texts):
        self.begun.set()
        assert self.go_on.wait(60)
        return super().embed(texts)


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Hub]:
    embedder = Stalled()
    with Hub(tmp_path / "stalled", embedder=embedder) as hub:
        yield hub
        embedder.go_on.set()


async def test_more_subscriptions_than_allowed_are_refused_and_the_others_go_on(hub: Hub, token: Any, episode: Make):
    hub.put(episode(0))
    settings = Settings(max_watches=2)
    async with (
        fedlab.serve(hub, port=0, settings=settings) as server,
        dialled(server, token(None, "admin"), "fedlab.v1.msgpack") as raw,
    ):
        watch = {"after": hub.info().seq, "wait": 60.0}
        for number in (1, 2):
            await raw.send(MSGPACK.encode(Request(number, "watch", watch)))
        refused = await raw.ask("watch", watch, 3)
        assert (refused["id"], refused["fault"]["code"]) == (3, "quota_exceeded")
        assert "max_watches allows 2" in refused["fault"]["message"]
        assert (await raw.ask("info", {}, 4))["id"] == 4
        hub.put(episode(1))
        assert {(await raw.answer())["id"], (await raw.answer())["id"]} == {1, 2}
        assert (await raw.ask("watch", {"after": 0}, 5))["result"], "the places of those that were answered are free"


async def test_the_bytes_under_way_on_a_connection_are_bounded(stalled: Hub, episode: Make):
    big = [episode(number, input=f"{number} " + "x" * 100_000) for number in range(20)]
    limits = Settings(max_bytes=500_000, max_message=200_000)
    async with (
        fedlab.serve(stalled, port=0, settings=limits) as server,
        fedlab.connect(server.url, max_message=200_000) as pusher,
        fedlab.connect(server.url) as other,
    ):
        pushes = [asyncio.ensure_future(pusher.put(each)) for each in big]
        await asyncio.to_thread(stalled.embedder.begun.wait, 10)
        busy = next(session for session in server._sessions if session.under_way)
        await until(lambda: not busy.has_room())
        assert busy.under_way == 5, "as many as fit, and the one that goes over"
        await other.info()
        stalled.embedder.go_on.set()
        assert len(set(await asyncio.gather(*pushes))) == 20, "the rest was read when there was room"


async def test_a_client_whose_replies_wait_beyond_the_limit_is_cut_off(
    hub: Hub, token: Any, episode: Make, vector: Any
):
    hub.put([episode(n, output="x" * 900_000, vector=vector(n)) for n in range(14)])
    async with (
        fedlab.serve(hub, port=0, settings=Settings(max_unsent=1_000_000)) as server,
        dialled(server, token(None, "admin"), "fedlab.v1.msgpack") as raw,
        fedlab.connect(server.url) as other,
    ):
        raw.socket.transport.pause_reading()
        await raw.send(
            MSGPACK.encode(Request(1, "recall", {"tenant_id": "acme", "vector": vector(0).tolist(), "k": 14}))
        )
        await until(lambda: len(server._sessions) == 1)
        await other.info()


async def test_a_request_that_never_ends_does_not_keep_a_server_from_closing(stalled: Hub, episode: Make):
    async with fedlab.serve(stalled, port=0, settings=Settings(shutdown_timeout=0.1)) as server:
        connection = fedlab.connect(server.url, retry_for=0)
        put = asyncio.ensure_future(connection.put(episode()))
        await asyncio.to_thread(stalled.embedder.begun.wait, 10)
        async with asyncio.timeout(60):
            await server.close()
        with pytest.raises(FedlabError):
            await put
    assert stalled.stats().episodes == 0
    await connection.close()


async def test_a_tenant_has_as_many_living_agents_as_the_server_allows(tmp_path: Path):
    limits = Settings(max_agents_per_tenant=2)
    async with (
        fedlab.serve(tmp_path / "lab", port=0, embedder="hashing", settings=limits) as server,
        fedlab.connect(server.url) as hub,
    ):
        for number in range(2):
            await hub.spawn_agent("acme", f"agent-{number}", lifetime=60)
        with pytest.raises(QuotaExceeded, match="max_agents_per_tenant=2"):
            await hub.spawn_agent("acme", "agent-2", lifetime=60)
        await hub.spawn_agent("globex", "agent-2", lifetime=60)
        await hub.sync_agent("acme", "agent-0", after=0, ending="destroyed")
        await hub.spawn_agent("acme", "agent-2", lifetime=60)
