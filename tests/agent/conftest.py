"""A hub to which agents connect, embedded or over a socket: one fixture, so that a test covers both."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from fedlab import EphemeralAgent, Episode, Hub, SimulatedClock, connect, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fedlab.net import HubConnection

TENANT = "acme-corp"


@dataclass
class Site:
    """A hub, the way to it, and the clock that both it and the agents go by."""

    hub: Hub
    target: Any
    connection: HubConnection
    clock: SimulatedClock
    server: Any = None

    async def spawn(self, **options: Any) -> EphemeralAgent:
        """An agent on the shared connection."""
        options = {"tenant_id": TENANT, "clock": self.clock, **options}
        return await EphemeralAgent.spawn(self.connection, **options)

    def fill(self, n: int, task: str = "task-name", tenant_id: str = TENANT, **fields: Any) -> list[Episode]:
        """Episodes of earlier agents, stored in the hub."""
        defaults = {"agent_id": "earlier", "task": task, "output": "done", "reward": 0.8, **fields}
        episodes = [Episode(tenant_id=tenant_id, input=f"input {i}", **defaults) for i in range(n)]
        self.hub.put(episodes)
        return episodes

    def agent_status(self, agent_id: str, tenant_id: str = TENANT) -> str:
        """What the registry says of an agent's latest life."""
        frame = self.hub.agents(tenant_id)
        return frame.filter(frame["agent_id"] == agent_id)["status"].to_list()[-1]


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of tests tell their address to nobody else."""
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture(params=["embedded", "socket"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with AsyncExitStack() as stack:
        hub = stack.enter_context(Hub(":memory:", clock=clock, embedder="hashing"))
        target, server = hub, None
        if request.param == "socket":
            server = await stack.enter_async_context(serve(hub, port=0))
            target = server.url
        connection = await stack.enter_async_context(connect(target))
        yield Site(hub, target, connection, clock, server)


@pytest.fixture
async def embedded() -> AsyncIterator[Site]:
    clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
    with Hub(":memory:", clock=clock, embedder="hashing") as hub:
        async with connect(hub) as connection:
            yield Site(hub, hub, connection, clock)


@pytest.fixture
def doing() -> dict[str, Any]:
    """The fields of an episode, for tests that do not care."""
    return {"task": "task-name", "input": "data", "output": "result", "reward": 0.95}
