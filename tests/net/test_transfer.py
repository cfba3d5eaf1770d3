"""Export and import from anywhere: the file is on the client's machine, and the server's rules hold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedlab
from fedlab import Hub, HubUnavailable, PermissionDenied, UnknownTenant
from fedlab.net import HubConnection, HubServer

from .conftest import until

FORMS = ["jsonl", "parquet"]


async def test_frames_with_vectors_and_sources_are_the_hubs_own(connection: HubConnection, hub: Hub, episode, vector):
    batch = [episode(n, vector=vector(n), sources=("a", "b")[: n % 3]) for n in range(1_500)]
    await connection.put(batch)
    for wanted in ({}, {"ids": [each.id for each in batch[::100]]}, {"ids": []}, {"after": 1_400}):
        theirs = await connection.episodes("acme", vectors=True, sources=True, **wanted)
        ours = hub.episodes("acme", vectors=True, sources=True, **wanted)
        assert theirs.schema == ours.schema
        assert theirs.equals(ours)
    with pytest.raises(fedlab.InvalidRequest, match="ids"):
        await connection.episodes("acme", ids="abc")


@pytest.mark.parametrize("form", FORMS)
async def test_a_tenant_goes_out_and_comes_in_under_another_name(connection: HubConnection, episode, vector, tmp_path: Path, form):  # fmt: skip
    path = tmp_path / f"x.{form}"
    # Some are larger than a page, all together larger than a message.
    batch = [episode(n, vector=vector(n), input="é" * (n % 7 == 0) * 400_000, sources=("s",)) for n in range(40)]
    for each in batch:
        await connection.put(each)
    report = await connection.export_tenant("acme", path)
    assert report.episodes == 40
    report = await connection.import_tenant(path, "lab")
    assert (report.new, report.known, report.refused) == (40, 0, {})
    assert (await connection.import_tenant(path, "lab")).known == 40
    assert (await connection.import_tenant(path)).known == 40
    acme, lab = [await connection.episodes(name, vectors=True, sources=True) for name in ("acme", "lab")]
    assert acme.drop("seq", "tenant_id", "session_id").equals(lab.drop("seq", "tenant_id", "session_id"))
    assert (await connection.verify()).problems == []
    with pytest.raises(UnknownTenant):
        await connection.export_tenant("acmee", path)


@pytest.mark.parametrize("form", FORMS)
async def test_a_file_is_the_same_from_the_hub_and_from_afar(connection: HubConnection, hub: Hub, episode, tmp_path: Path, form):  # fmt: skip
    hub.put([episode(n, metadata={"n": n, "text": "ünï"}) for n in range(250)])
    hub.export_tenant("acme", tmp_path / f"hub.{form}")
    await connection.export_tenant("acme", tmp_path / f"wire.{form}")
    assert (tmp_path / f"hub.{form}").read_bytes() == (tmp_path / f"wire.{form}").read_bytes()


async def test_a_token_exports_what_it_may_read_and_imports_what_it_may_write(server: HubServer, hub: Hub, token: Any, episode, tmp_path: Path):  # fmt: skip
    hub.put([episode(n, agent_id=f"agent-{n % 2}") for n in range(4)])
    hub.put(episode(tenant_id="other"))
    path = tmp_path / "x.jsonl"
    async with fedlab.connect(server.url, token("acme", "observer")) as observer:
        assert (await observer.export_tenant("acme", path)).episodes == 4
        with pytest.raises(PermissionDenied):
            await observer.export_tenant("other", tmp_path / "y.jsonl")
        with pytest.raises(PermissionDenied):
            await observer.import_tenant(path)
    async with fedlab.connect(server.url, token("acme", "agent", "agent-1")) as agent:
        with pytest.raises(PermissionDenied, match=r"agent-0.*\(0 of 4 episodes"):
            await agent.import_tenant(path)
    async with fedlab.connect(server.url, token("acme", "agent")) as anyone:
        assert (await anyone.import_tenant(path)).known == 4
        with pytest.raises(PermissionDenied):
            await anyone.import_tenant(path, "other")


async def test_an_export_that_nobody_waits_for_ends_and_leaves_nothing(connection: HubConnection, hub: Hub, episode, tmp_path: Path, monkeypatch):  # fmt: skip
    hub.put([episode(n, vector=np.ones(384)) for n in range(300)])
    asked, go_on = asyncio.Event(), asyncio.Event()
    ask = connection.episodes

    async def slow(*args: Any, **keywords: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await ask(*args, **keywords)

    monkeypatch.setattr(connection, "episodes", slow)
    export = asyncio.create_task(connection.export_tenant("acme", tmp_path / "x.jsonl"))
    await asked.wait()
    export.cancel()
    with pytest.raises(asyncio.CancelledError):
        await export
    go_on.set()
    await until(lambda: not list(tmp_path.glob(".x.jsonl*")))
    assert not (tmp_path / "x.jsonl").exists()


async def test_a_hub_that_is_away_is_said_to_be_away(server: HubServer, hub: Hub, episode, tmp_path: Path):
    hub.put([episode(n) for n in range(3)])
    path = tmp_path / "x.parquet"
    hub.export_tenant("acme", path)
    before = path.read_bytes()
    async with fedlab.connect(server.url, retry_for=0.2) as connection:
        await server.close()
        with pytest.raises(HubUnavailable):
            await connection.export_tenant("acme", path)
        with pytest.raises(HubUnavailable):
            await connection.import_tenant(path)
    assert path.read_bytes() == before


def test_without_await(hub: Hub, episode, tmp_path: Path):
    hub.put(episode())
    with fedlab.connect_sync(hub) as connection:
        assert connection.export_tenant("acme", tmp_path / "x.jsonl").episodes == 1
        assert connection.import_tenant(tmp_path / "x.jsonl", "lab").new == 1
