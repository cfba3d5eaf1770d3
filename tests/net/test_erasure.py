"""Erasure over the wire: for admins alone, and no connection brings an erased tenant back by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fedlab
from fedlab import Hub, IdConflict, InvalidRequest, PermissionDenied, UnknownEpisode, UnknownTenant
from fedlab.net import HubConnection, HubServer
from tests.net.conftest import until


async def test_tenants_agents_and_episodes_are_erased_with_evidence(connection: HubConnection, hub: Hub, episode: Any):
    await connection.put([episode(n, id=f"x{n}", agent_id=f"a{n % 2}") for n in range(6)])
    await connection.put(episode(0, tenant_id="other"))
    report = await connection.erase_episodes("acme", ["x1", "none"], reason="one")
    assert (report.scope, report.episodes, report.reason, report.hub_id) == ("episodes", 1, "one", hub.info().hub_id)
    assert (report.already, report.unknown) == ([], ["none"])
    report = await connection.erase_episodes("acme", ["x1"], reason="one")
    assert (report.episodes, report.already, report.unknown) == (0, ["x1"], [])
    report = await connection.erase_agent("acme", "a1", reason="two")
    assert (report.scope, report.episodes, report.vectors) == ("agent", 2, 2)
    report = await connection.erase_tenant("acme", reason="three")
    assert (report.scope, report.episodes) == ("tenant", 3)
    ledger = await connection.erasures()
    assert ledger.equals(hub.erasures())
    assert ledger["scope"].to_list() == ["episodes", "episodes", "agent", "tenant"]
    assert "acme" not in str(ledger.rows())
    with pytest.raises(UnknownTenant, match="erased"):
        await connection.recall("acme", "x")
    with pytest.raises(UnknownTenant):
        await connection.erase_tenant("acme", reason="three")
    with pytest.raises(InvalidRequest):
        await connection.erase_episodes("other", "x0", reason="r")
    with pytest.raises(UnknownEpisode) as unknown:
        await connection.erase_episodes("other", ["x0", "x1"], reason="r")
    assert unknown.value.details["ids"] == ["x0", "x1"]
    with pytest.raises(IdConflict) as conflict:
        await connection.put(episode(1, id="x1"))
    assert conflict.value.details["erased"]
    assert (await connection.stats()).episodes == 1
    assert (await connection.verify()).ok


async def test_only_an_admin_erases_and_only_his_own(server: HubServer, token: Callable[..., str], episode: Any):
    server.hub.put([episode(0), episode(1, tenant_id="other")])
    for role in ("observer", "agent"):
        async with fedlab.connect(server.url, token("acme", role)) as hub:
            for call in (
                hub.erase_tenant("acme", reason="r"),
                hub.erase_agent("acme", "agent-1", reason="r"),
                hub.erase_episodes("acme", ["x"], reason="r"),
                hub.erasures(),
            ):
                with pytest.raises(PermissionDenied):
                    await call
    async with fedlab.connect(server.url, token("acme", "admin")) as hub:
        for call in (hub.erase_tenant("other", reason="r"), hub.erasures()):
            with pytest.raises(PermissionDenied):
                await call
        assert (await hub.erase_tenant("acme", reason="r")).actor == "admin"
    assert server.hub.tenants()["tenant_id"].to_list() == ["other"]


async def test_a_connection_that_takes_up_its_agents_again_does_not_bring_the_tenant_back(
    server: HubServer, episode: Any
):
    async with fedlab.connect(server.url) as hub:
        await hub.spawn_agent("acme", "a1", lifetime=60)
        await hub.put(episode(0))
        server.hub.erase_tenant("acme", reason="r")
        before = server.metrics.connections
        for session in list(server._sessions):
            session.socket.transport.abort()
        await until(lambda: server.metrics.connections != before or not server._sessions)
        await hub.info()
        await hub.info()
        assert server.hub.tenants().is_empty()
        await hub.put(episode(1))
        assert (await hub.stats("acme")).agents == 0
