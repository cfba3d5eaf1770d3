"""The source document, phase by phase and day by day, against real hub processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from fedlab import EphemeralAgent, Episode, Hub, SimulatedClock, connect, serve

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))


@asynccontextmanager
async def hub_process(data, *options):
    """A hub in a process of its own; gives its URL, and shuts it down with SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    command = [sys.executable, str(ROOT / "hub_server.py"), "--data", str(data), "--port", str(port), *options]
    with (data.parent / "hub.log").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                except OSError:
                    assert process.poll() is None, (data.parent / "hub.log").read_text()
                    await asyncio.sleep(0.05)
        # On a machine with much else to do, loading the model may take longer than an agent waits.
        async with connect(url, timeout=300) as connection:
            await connection.embed([f"{url} at {time.monotonic()}"])  # a text that it does not know
        yield url
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0, (data.parent / "hub.log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("over", ["embedded", "socket"])
async def test_phases_1_to_6_leave_the_storage_that_the_document_prints(over):
    clock = SimulatedClock(datetime(2026, 1, 1))
    async with AsyncExitStack() as stack:
        hub = stack.enter_context(Hub(":memory:", clock=clock, embedder="hashing"))
        target = hub
        if over == "socket":
            target = (await stack.enter_async_context(serve(hub, port=0))).url
        hub.put(
            [
                Episode(
                    tenant_id="acme-corp",
                    agent_id=f"agent-{i // 100}",
                    task="task-name" if i < 9 else f"chore {i}",
                    input="data" if i < 9 else f"number {i}",
                    output="result",
                    reward=0.8,
                )
                for i in range(1_000)
            ]
        )

        def stored():
            return len(hub.episodes("acme-corp"))

        # Phase 1: the agent spawns.
        agent = await EphemeralAgent.spawn(target, tenant_id="acme-corp", lifetime=300, agent_id="agent-001")
        assert (stored(), len(agent.memories)) == (1_000, 0)

        # Phase 2: it pulls.
        async def pull(agent):
            return await agent.query_memories("task-name", 10)

        assert len(await agent.execute(pull)) == 10
        assert (stored(), len(agent.memories)) == (1_000, 10)

        # Phase 3: it works and learns.
        async def work(agent):
            context = await agent.query_memories("task-name")
            await agent.store_episode(task="task-name", input="data", output="better", reward=0.95)
            assert (stored(), len(agent.memories), agent.unsynced) == (1_000, 11, 1)
            return len(context)

        assert await agent.execute(work) == 10

        # Phase 4: it syncs (execute has; a second time there is nothing to push).
        assert (await agent.sync_with_hub()).pushed == 0
        assert (stored(), len(agent.memories), agent.unsynced) == (1_001, 11, 0)

        # Phase 5: it is destroyed.
        await agent.destroy()
        assert (stored(), agent.memories) == (1_001, [])
        assert hub.agents("acme-corp", status="alive").is_empty()

        # Phase 6: days later, another one finds what it left.
        clock.advance(days=3)
        async with EphemeralAgent.spawn(target, tenant_id="acme-corp", lifetime=300) as new_agent:
            memories = await new_agent.execute(lambda agent: agent.query_memories("task-name", 10, input="data"))
            assert len(memories) == 10
            assert "agent-001" in [memory.agent_id for memory in memories]
            assert (stored(), len(new_agent.memories)) == (1_001, 10)


async def test_day_1_day_2_and_day_30(tmp_path):
    data = tmp_path / "hub"
    clock = SimulatedClock(datetime(2026, 10, 1, 10))

    # Day 1, 10:00
    async with hub_process(data) as hub:
        agent1 = await EphemeralAgent.spawn(
            hub, tenant_id="research-team", lifetime=300, agent_id="agent-001", clock=clock
        )

        async def first():
            await agent1.store_episode(task="analyze-data", input="dataset-v1", output="Found pattern X", reward=0.92)

        await agent1.execute(first)
        clock.advance(minutes=4)
        await agent1.destroy()
        async with connect(hub) as connection:
            assert (await connection.stats("research-team")).episodes == 1

    # Day 2, 9:00
    clock.advance(hours=23)
    async with hub_process(data) as hub:
        agent2 = await EphemeralAgent.spawn(
            hub, tenant_id="research-team", lifetime=300, agent_id="agent-002", clock=clock
        )

        async def second():
            memories = await agent2.query_memories("analyze-data")
            assert memories[0].output == "Found pattern X"
            assert memories[0].agent_id == "agent-001"
            return await agent2.store_episode(
                task="refine-pattern", input="pattern-x", output="Confirmed pattern X, found pattern Y", reward=0.96
            )

        refined = await agent2.execute(second)
        assert len(refined.sources) == 1
        await agent2.destroy()

        # The days between: agents 3 to 9 refine on.
        for number in range(3, 10):
            clock.advance(days=4)
            async with EphemeralAgent.spawn(
                hub, tenant_id="research-team", lifetime=300, agent_id=f"agent-{number:03}", clock=clock
            ) as agent:
                for step in range(8):
                    await agent.store_episode(
                        task="refine-pattern",
                        input=f"pattern-{number}-{step}",
                        output=f"pattern {number}.{step}",
                        reward=0.85 + step / 50,
                    )

    # Day 30
    async with hub_process(data) as hub:
        agent10 = await EphemeralAgent.spawn(
            hub, tenant_id="research-team", lifetime=300, agent_id="agent-010", clock=clock
        )
        memories = await agent10.execute(lambda: agent10.query_memories("pattern", 100))
        assert len(memories) == 58 > 50
        assert len({memory.agent_id for memory in memories}) == 9
        best_patterns = [memory.output for memory in memories if memory.reward > 0.90]
        assert "Found pattern X" in best_patterns
        assert all(memory.created_at <= clock.now() for memory in memories)
        await agent10.destroy()
        async with connect(hub) as connection:
            assert (await connection.verify()).ok


CLIENT = """
import asyncio, sys
from fedlab import EphemeralAgent

async def main():
    agent = await EphemeralAgent.spawn(sys.argv[1], tenant_id="acme-corp", lifetime=300, agent_id="agent-001")
    for i in range(8):
        await agent.store_episode(task="task", input=str(i), output="done", reward=1.0)
        if i == 4:
            await agent.sync_with_hub()
    print(agent.unsynced, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_replacement_sees_what_a_killed_agent_had_synced(tmp_path):
    async with hub_process(tmp_path / "hub", "--embedder", "hashing", "--set", "lease=0.5") as url:
        client = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CLIENT), url], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ
        )
        with client:
            assert await asyncio.to_thread(client.stdout.readline) == b"3\n"
            client.kill()
        async with connect(url) as hub, EphemeralAgent.spawn(url, tenant_id="acme-corp") as replacement:
            memories = await replacement.execute(lambda agent: agent.query_memories("task", 100))
            assert sorted(memory.input for memory in memories) == ["0", "1", "2", "3", "4"]
            async with asyncio.timeout(60):
                while (await hub.agents("acme-corp", status="crashed")).is_empty():
                    await asyncio.sleep(0.05)
            crashed = await hub.agents("acme-corp", status="crashed")
            assert crashed["agent_id"].to_list() == ["agent-001"]
            assert crashed["pushed"].to_list() == [5]
            async with EphemeralAgent.spawn(url, tenant_id="acme-corp", agent_id="agent-001") as again:
                assert again.alive


async def test_agents_outlive_a_restart_of_their_hub(tmp_path):
    """What an agent holds while its hub is away is pushed when the hub is back at the same address."""
    data = tmp_path / "hub"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(data, port=0, embedder="hashing"))
        agent = await EphemeralAgent.spawn(server.url, tenant_id="acme-corp")
        await agent.store_episode(task="t", input="before", output="o", reward=1)
        await agent.sync_with_hub()
        port = server.port
    await agent.store_episode(task="t", input="while away", output="o", reward=1)
    async with serve(data, port=port) as server:
        assert (await agent.sync_with_hub()).pushed == 1
        assert server.hub.agents("acme-corp")["status"].to_list() == ["alive"]
        await agent.destroy()
        assert server.hub.agents("acme-corp")["status"].to_list() == ["destroyed"]
        assert len(server.hub.episodes("acme-corp")) == 2
