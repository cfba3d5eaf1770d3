from __future__ import annotations

import pytest

from fedlab import EphemeralAgent, Episode, Hub, IdConflict
from fedlab.agent import push_spool
from fedlab.agent.spool import append_spool, read_spool


def some(n: int, **fields: object) -> list[Episode]:
    values = {"tenant_id": "acme", "agent_id": "a", "task": "t", "output": "ö\n", "reward": 0.5, **fields}
    return [Episode(input=str(i), **values) for i in range(n)]


def test_a_spool_gives_back_what_was_put_into_it(tmp_path):
    first = some(2, vector=[1.0, 0.5], sources=("x", "y"), metadata={"a": [1, None]}, created_at=5)
    append_spool(tmp_path / "new" / "spool", first)
    second = some(1)
    append_spool(tmp_path / "new" / "spool", second)
    assert read_spool(tmp_path / "new" / "spool") == (first + second, [])


async def test_the_spool_of_an_agent_that_died_without_its_hub_is_sent_once(tmp_path, doing):
    file = tmp_path / "spool"
    data = tmp_path / "hub"
    hub = Hub(data, embedder="hashing")
    agent = await EphemeralAgent.spawn(hub, "acme", spool=file)
    stored = [await agent.store_episode(**doing) for _ in range(3)]
    hub.close()
    await agent.destroy()
    assert agent.unsynced == 0
    assert read_spool(file)[0] == stored
    with Hub(data) as hub:
        copy = file.read_bytes()
        assert await push_spool(file, hub) == 3
        assert not file.exists()
        file.write_bytes(copy)
        assert await EphemeralAgent.push_spool(file, hub) == 3
        assert await push_spool(file, hub) == 0
        assert sorted(hub.episodes("acme")["id"]) == sorted(each.id for each in stored)


async def test_a_torn_line_stays_and_harms_no_other(tmp_path):
    file = tmp_path / "spool"
    one, two = some(2)
    append_spool(file, [one])
    file.write_bytes(file.read_bytes() + b'{"tenant_id": "acm')
    append_spool(file, [two])
    with Hub(":memory:", embedder="hashing") as hub:
        assert await push_spool(file, hub) == 2
        assert len(hub.episodes("acme")) == 2
    assert file.read_bytes() == b'{"tenant_id": "acm\n'


async def test_what_the_hub_refuses_stays_in_the_spool(tmp_path):
    file = tmp_path / "spool"
    taken, forgotten, fine = some(3)
    append_spool(file, [taken, forgotten, fine])
    with Hub(":memory:", embedder="hashing") as hub:
        hub.put([*some(1, id=taken.id, output="other"), forgotten])
        hub.forget("acme", [forgotten.id], reason="wrong")
        with pytest.raises(IdConflict):
            await push_spool(file, hub)
        assert set(hub.episodes("acme")["id"]) == {taken.id, fine.id}
    assert read_spool(file) == ([taken], [])
