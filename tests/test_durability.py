"""Promise 1 over the socket: what was acknowledged survives `kill -9` of the hub, each once."""

from __future__ import annotations

import asyncio
import collections
import random
from pathlib import Path

from fedlab import Episode, Hub, connect
from fedlab.errors import HubUnavailable
from tests.processes import HubProcess

ROUNDS = 20
CLIENTS = 32


async def test_every_acknowledged_episode_survives_sigkill_of_the_hub(tmp_path: Path, vector) -> None:
    process = HubProcess(tmp_path / "hub")
    acknowledged: set[str] = set()
    rng = random.Random(7)
    direction = vector(1)

    async def push(client: int) -> None:
        try:
            async with connect(process.url, retry_for=0.2) as hub:
                while True:
                    episode = Episode(
                        tenant_id=f"tenant-{client % 4}",
                        agent_id=f"agent-{client}",
                        task="endure",
                        input="x" * 200,
                        output="y" * 200,
                        reward=1.0,
                        vector=direction,
                    )
                    await hub.put(episode)
                    acknowledged.add(episode.id)
        except HubUnavailable:
            pass

    for _ in range(ROUNDS):
        process.start()
        clients = [asyncio.create_task(push(number)) for number in range(CLIENTS)]
        enough = len(acknowledged) + rng.randrange(1, 600)
        while len(acknowledged) < enough:
            await asyncio.sleep(0)
        process.kill()
        await asyncio.gather(*clients)

    with Hub(tmp_path / "hub") as hub:
        stored = collections.Counter(hub.episodes()["id"].to_list())
        assert acknowledged <= stored.keys()
        assert set(stored.values()) == {1}
        report = hub.verify()
        assert report.ok, report
        for tenant_id in hub.tenants()["tenant_id"]:
            held = hub.stats(tenant_id).episodes
            assert len(hub.recall(tenant_id, direction, k=10_000)) == min(held, 10_000)


async def test_a_put_under_way_during_a_restart_is_stored_once(tmp_path: Path, episode) -> None:
    process = HubProcess(tmp_path / "hub")
    process.start()
    async with connect(process.url, retry_for=30) as hub:
        await hub.put(episode(1))
        process.kill()
        under_way = asyncio.create_task(hub.put(episode(2)))
        again = await asyncio.to_thread(process.start)
        assert again is None
        await under_way
        assert (await hub.stats("acme")).episodes == 2
    assert process.stop() == 0
