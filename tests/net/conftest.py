"""A served hub, and the three ways to it: embedded, MessagePack and JSON."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial

import fedlab
from fedlab import Hub
from fedlab.net import HubConnection, HubServer, load_key, make_token
from fedlab.net.protocol import MSGPACK, Request
from fedlab.net.tokens import KEY_FILE


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runtime"
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(path))
    monkeypatch.delenv("FEDLAB_TOKEN", raising=False)
    return path


@pytest.fixture
async def server(hub: Hub) -> AsyncIterator[HubServer]:
    async with fedlab.serve(hub, port=0) as server:
        yield server


@pytest.fixture(params=["embedded", "msgpack", "json"])
async def connection(request: pytest.FixtureRequest, hub: Hub, server: HubServer) -> AsyncIterator[HubConnection]:
    target: Hub | str = hub if request.param == "embedded" else server.url
    async with fedlab.connect(target, json=request.param == "json") as connection:
        yield connection


@pytest.fixture
def token(server: HubServer) -> Callable[..., str]:
    """`token("acme", "agent")`: a token of the served hub."""

    def make(tenant_id: str | None, role: Any, agent_id: str | None = None, expires_in: float = 60) -> str:
        return make_token(
            load_key(server.hub.path / KEY_FILE), server.hub.info().hub_id, tenant_id, role, agent_id, expires_in
        )

    return make


class Raw:
    """A socket that may send anything."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, data: bytes | str) -> None:
        await self.socket.send(data)

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            data = await self.socket.recv(decode=False)
        return msgspec.msgpack.decode(data) if data[:1] != b"{" else msgspec.json.decode(data)

    async def ask(self, method: str, params: Any, number: int = 1) -> dict[str, Any]:
        await self.send(MSGPACK.encode(Request(number, method, params)))
        return await self.answer()


@contextlib.asynccontextmanager
async def dialled(server: HubServer, token: str, subprotocol: str) -> AsyncIterator[Raw]:
    async with dial(
        server.url,
        subprotocols=[subprotocol],
        additional_headers={"Authorization": f"Bearer {token}"},
        compression=None,
        max_size=None,
        proxy=None,
    ) as socket:
        yield Raw(socket)


@pytest.fixture
async def raw(server: HubServer, token: Callable[..., str]) -> AsyncIterator[Raw]:
    async with dialled(server, token(None, "admin"), "fedlab.v1.msgpack") as raw:
        yield raw


@pytest.fixture
async def json_raw(server: HubServer, token: Callable[..., str]) -> AsyncIterator[Raw]:
    async with dialled(server, token(None, "admin"), "fedlab.v1.json") as raw:
        yield raw


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until a condition holds that another process or task brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)
