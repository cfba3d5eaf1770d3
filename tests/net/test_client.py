"""A lost connection is taken up again, and what was not acknowledged is sent again and stored once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab import AuthenticationError, Episode, Hub, HubUnavailable, IdConflict, InvalidRequest, connect
from fedlab.net import HubServer, LocalConnection
from fedlab.net.client import RemoteConnection

from .conftest import until

Make = Callable[..., Episode]


class Proxy:
    """A TCP proxy that can cut what goes through it: at once, or when the hub's next answer comes."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.cut_at_answer = False
        self.connections = 0
        self.writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.cut()
        await self.server.wait_closed()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self.writers |= {writer, up_writer}
        with contextlib.suppress(OSError):
            await asyncio.gather(self.pump(reader, up_writer), self.pump(up_reader, writer, answers=True))
        for each in (writer, up_writer):
            each.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        while data := await reader.read(1 << 16):
            if answers and self.cut_at_answer:
                self.cut_at_answer = False
                self.cut()
                return
            writer.write(data)
        writer.transport.abort()


@pytest.fixture
async def proxy(server: HubServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as proxy:
        yield proxy


async def test_a_push_whose_acknowledgement_was_lost_is_sent_again_and_stored_once(
    proxy: Proxy, hub: Hub, token: Any, episode: Make
):
    async with fedlab.connect(proxy.url, token(None, "admin")) as connection:
        for n in range(5):
            proxy.cut_at_answer = True
            await connection.put(episode(n))
        assert proxy.connections == 6
    assert hub.stats().episodes == 5
    assert hub.verify().ok


async def test_many_calls_survive_a_connection_that_breaks_again_and_again(
    proxy: Proxy, hub: Hub, token: Any, episode: Make
):
    async with fedlab.connect(proxy.url, token(None, "admin")) as connection:

        async def work(n: int) -> None:
            for m in range(20):
                await connection.put(episode(n * 100 + m))
                assert await connection.recall("acme", "x", k=1)

        works = asyncio.gather(*(work(n) for n in range(10)))
        for stored in (20, 80, 140):
            await until(lambda stored=stored: hub.info().seq > stored)
            proxy.cut()
        await works
    assert hub.stats().episodes == 200


async def test_an_agent_keeps_its_life_over_a_lost_connection(proxy: Proxy, hub: Hub, token: Any, episode: Make):
    async with fedlab.connect(proxy.url, token(None, "admin")) as connection:
        proxy.cut_at_answer = True
        await connection.info()
        proxy.cut_at_answer = True  # the spawn passes, its answer does not
        record = await connection.spawn_agent("acme", "a1", lifetime=60)
        assert record.status == "alive"
        proxy.cut()
        await connection.sync_agent("acme", "a1", [episode(agent_id="a1")], after=0, ending="destroyed")
    assert hub.agents()["status"].to_list() == ["destroyed"]


async def test_the_life_of_an_agent_that_asks_nothing_is_taken_up_again_too(
    proxy: Proxy, server: HubServer, token: Any
):
    async with fedlab.connect(proxy.url, token(None, "admin")) as connection:
        await connection.spawn_agent("acme", "a1", lifetime=60)
        left = server.holders["acme", "a1"]
        proxy.cut()
        await until(lambda: server.holders.get(("acme", "a1")) not in (None, left))


async def test_a_repeated_goodbye_does_not_end_the_life_of_a_namesake(hub: Hub, token: Any, server: Any, episode: Make):
    async with fedlab.connect(server.url, token(None, "admin")) as connection:
        first = await connection.begin_life("acme", "a1", lifetime=60)
        goodbye = {"after": 0, "ending": "destroyed", "nonce": first.nonce}
        await connection.sync_agent("acme", "a1", **goodbye)
        second = await connection.begin_life("acme", "a1", lifetime=60)
        assert second.nonce != first.nonce
        late = episode(agent_id="a1")
        await connection.sync_agent("acme", "a1", [late], **goodbye)
        assert hub.agents()["status"].to_list() == ["destroyed", "alive"]
        assert hub.agents()["pushed"].to_list() == [0, 0]
        assert hub.stats().episodes == 1, "what it pushed late is stored nevertheless"
        await connection.sync_agent("acme", "a1", after=0, ending="destroyed", nonce=second.nonce)
        await connection.sync_agent("acme", "a1", after=0, ending="destroyed", nonce=second.nonce)
    assert hub.agents()["status"].to_list() == ["destroyed", "destroyed"]
    assert len(hub.read_changes(kind="agent_ended")) == 2


async def test_a_push_whose_answer_was_lost_counts_once(proxy: Proxy, hub: Hub, token: Any, episode: Make):
    async with fedlab.connect(proxy.url, token(None, "admin")) as connection:
        await connection.spawn_agent("acme", "a1", lifetime=60)
        proxy.cut_at_answer = True
        await connection.sync_agent("acme", "a1", [episode(n, agent_id="a1") for n in range(3)], after=0)
        assert proxy.connections == 2
    assert hub.agents()["pushed"].to_list() == [3]


async def test_a_repeated_spawn_does_not_slip_into_the_life_of_another(proxy: Proxy, hub: Hub, token: Any):
    async with fedlab.connect(proxy.url, token(None, "admin")) as connection:
        await connection.info()
        hub.spawn_agent_soon("acme", "a1", lifetime=60, nonce="another's").result()
        proxy.cut_at_answer = True  # the refusal is lost: the client has to ask again, as if for a life of its own
        with pytest.raises(IdConflict, match="is alive"):
            await connection.spawn_agent("acme", "a1", lifetime=60)
        assert proxy.connections == 2
        proxy.cut_at_answer = True
        assert (await connection.spawn_agent("acme", "a2", lifetime=60)).status == "alive"
        assert proxy.connections == 3
    assert hub.agents()["agent_id"].to_list() == ["a1", "a2"]


async def test_an_agent_that_came_back_is_not_released_by_the_connection_it_left(server: HubServer, hub: Hub):
    async with fedlab.connect(server.url) as first, fedlab.connect(server.url) as second:
        await first.spawn_agent("acme", "a1", lifetime=60)
        await second.spawn_agent("acme", "a1", lifetime=60, resume=True)
        await first.close()
        await until(lambda: len(server._sessions) == 1)
        assert [holder for agent, holder in server.holders.items() if agent == ("acme", "a1")]


async def test_a_restarted_hub_is_found_again_and_subscriptions_go_on(tmp_path: Path, episode: Make):
    async with fedlab.serve(tmp_path / "lab", port=0, embedder="hashing") as server:
        port = server.port
        connection = fedlab.connect(server.url)
        await connection.put(episode(0))
        changes = connection.subscribe("acme", after=0)
        seen = [(await anext(changes)).seq, (await anext(changes)).seq]
        waiting = asyncio.ensure_future(anext(changes))
        await connection.info()
    async with fedlab.serve(tmp_path / "lab", port=port) as server:
        async with asyncio.timeout(20):
            await connection.put(episode(1))
            seen.append((await waiting).seq)
            await connection.put(episode(2))
            seen.append((await anext(changes)).seq)
        assert seen == server.hub.changes(tenant_id="acme")["seq"].to_list()
        await connection.close()


async def test_a_subscription_to_a_hub_that_was_restored_ends_and_says_so(tmp_path: Path, episode: Make):
    """What came after the backup has numbers that mean other changes now: to go on after them would leave some out."""
    path = tmp_path / "lab"
    async with fedlab.serve(path, port=0, embedder="hashing") as server:
        port = server.port
        connection = fedlab.connect(server.url)
        await connection.put(episode(0))
        await asyncio.to_thread(server.hub.backup, tmp_path / "backup")
        await connection.put([episode(n) for n in range(1, 4)])
        changes = connection.subscribe("acme", after=0)
        seen = [await anext(changes) for _ in range(5)]
        waiting = asyncio.ensure_future(anext(changes))
        await connection.info()
    Hub.restore(tmp_path / "backup", path, overwrite=True).close()
    async with fedlab.serve(path, port=port) as server:
        await connection.put([episode(n) for n in range(10, 30)])
        assert server.hub.info().seq > seen[-1].seq
        async with asyncio.timeout(30):
            with pytest.raises(InvalidRequest, match="restored"):
                await waiting
            again = connection.subscribe("acme", after=0)
            assert [(await anext(again)).seq for _ in range(22)] == server.hub.changes(tenant_id="acme")[
                "seq"
            ].to_list()
        await connection.close()


async def test_a_hub_that_is_away_is_named_and_then_tried_once(token: Any, server: HubServer):
    async with Proxy(server.port) as proxy:
        url = proxy.url
        connection = fedlab.connect(url, token(None, "admin"), retry_for=0.3)
        await connection.info()
    with pytest.raises(HubUnavailable, match=url):
        await connection.info()
    async with asyncio.timeout(5):
        for _ in range(20):
            with pytest.raises(HubUnavailable, match=url):
                await connection.info()
    await connection.close()


async def test_a_hub_that_does_not_answer_is_given_up_after_the_time_out(token: Any, server: HubServer):
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server.port)
        up_writer.write(await reader.readuntil(b"\r\n\r\n"))
        writer.write(await up_reader.readuntil(b"\r\n\r\n"))
        await reader.read()  # and nothing after the handshake
        up_writer.close()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        connection = fedlab.connect(url, token(None, "admin"), timeout=0.2)
        with pytest.raises(HubUnavailable, match=r"within 0\.2 s"):
            await connection.retention("acme")
        await connection.close()


async def test_a_server_that_is_no_hub_is_named():
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as listener:
        url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        with pytest.raises(HubUnavailable, match="is this a hub"):
            async with fedlab.connect(url):
                pass


async def test_a_forged_token_is_not_tried_again(server: HubServer):
    connection = fedlab.connect(server.url, "forged")
    async with asyncio.timeout(5):
        with pytest.raises(AuthenticationError):
            await connection.info()
    assert server.metrics.refused["401"] == 1
    await connection.close()


async def test_closing_ends_the_calls_that_wait(server: HubServer, episode: Make):
    connection = fedlab.connect(server.url)
    await connection.put(episode())
    waiting = asyncio.ensure_future(anext(connection.subscribe("acme")))
    await connection.info()
    await connection.close()
    with pytest.raises(HubUnavailable, match="closed"):
        await waiting


@pytest.mark.parametrize("target", ["http://x:1", "lab-data", "ws://", "ws://host:port", "127.0.0.1:8443", "", None, 7])
def test_what_is_no_address_is_refused(target: Any):
    with pytest.raises(InvalidRequest, match="hub|Hub"):
        fedlab.connect(target)


async def test_connect_takes_a_hub_and_leaves_it_open(hub: Hub):
    async with fedlab.connect(hub) as connection:
        assert isinstance(connection, LocalConnection)
        assert fedlab.connect(connection) is connection
    assert not hub.closed
    assert "closed" in repr(connection)


@pytest.mark.parametrize("found", [None, "of.another.hub"])
async def test_a_token_that_was_found_before_the_hub_came_back_is_looked_up_again(server, token, found):
    looks = iter([found, token(None, "admin")])
    async with RemoteConnection(server.url, lambda: next(looks)) as hub:
        assert (await hub.info()).hub_id == server.hub.info().hub_id
    assert list(looks) == []


async def test_a_found_token_that_stays_wrong_is_refused_and_not_tried_for_ever(server):
    looks = []
    with pytest.raises(AuthenticationError):
        async with RemoteConnection(server.url, lambda: looks.append(1)) as hub:
            await hub.info()
    assert len(looks) == 2


async def test_a_token_that_was_given_is_refused_at_once(server):
    with pytest.raises(AuthenticationError):
        async with RemoteConnection(server.url, "a.b.c") as hub:
            await hub.info()


@pytest.mark.parametrize("token", ["", " \n", "two words", "two\nlines", "é", 7])
def test_what_can_be_no_token_is_refused_before_anything_is_sent(token: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InvalidRequest, match="token"):
        connect("ws://127.0.0.1:1", token=token)
    if isinstance(token, str) and token.strip():
        monkeypatch.setenv("FEDLAB_TOKEN", token)
        with pytest.raises(InvalidRequest, match="token"):
            connect("ws://127.0.0.1:1")


async def test_a_token_may_come_with_the_line_end_of_its_file(server: HubServer, token: Any, monkeypatch):
    good = token(None, "admin") + "\n"
    async with connect(server.url, good) as hub:
        await hub.info()
    monkeypatch.setenv("FEDLAB_TOKEN", good)
    async with connect(server.url) as hub:
        await hub.info()


async def test_a_token_of_the_environment_that_is_refused_is_named(server: HubServer, monkeypatch):
    monkeypatch.setenv("FEDLAB_TOKEN", "stale")
    for given in (None, "stale"):  # the command line finds it by itself, and gives it
        with pytest.raises(AuthenticationError, match=r"\$FEDLAB_TOKEN"):
            async with connect(server.url, given):
                pass
    with pytest.raises(AuthenticationError, match="no valid token: [^$]*$"):
        async with connect(server.url, "another"):
            pass
