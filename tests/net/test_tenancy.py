"""Tenants are walls, for every method of the wire; agents write as themselves, observers not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

import fedlab
from fedlab import AuthenticationError, Episode, Hub, MinReward, PermissionDenied, UnknownTenant
from fedlab.net import HubServer
from fedlab.net.protocol import MSGPACK, Request
from fedlab.net.session import EXPIRED

from .conftest import dialled

Make = Callable[..., Episode]


@pytest.fixture(autouse=True)
def two_tenants(hub: Hub, episode: Make) -> None:
    hub.put([episode(n) for n in range(5)] + [episode(n, tenant_id="rival") for n in range(7)])
    hub.spawn_agent("rival", "agent-1", lifetime=60)


@pytest.mark.parametrize("role", ["observer", "agent", "admin"])
async def test_a_token_opens_its_own_tenant_only(server: HubServer, token: Any, role: Any):
    async with fedlab.connect(server.url, token("acme", role)) as hub:
        for tenant in ("rival", "Acme", "acm\u0435", "acme/../rival", "x" * 10_000, ""):
            for call in (
                hub.recall(tenant, "x"),
                hub.episodes(tenant),
                hub.agents(tenant),
                hub.stats(tenant),
                hub.changes(tenant_id=tenant),
                hub.retention(tenant),
                hub.preview_retention(tenant, MinReward(1)),
                hub.preview_retention(tenant),
                hub.holds(tenant),
                hub.hold(tenant, since=0, reason="r"),
            ):
                with pytest.raises(PermissionDenied):
                    await call
            with pytest.raises(PermissionDenied):
                await anext(hub.subscribe(tenant, after=0))


async def test_calls_without_a_tenant_are_about_the_tokens_own(server: HubServer, token: Any):
    async with fedlab.connect(server.url, token("acme", "observer")) as hub:
        assert set((await hub.episodes())["tenant_id"]) == {"acme"}
        assert set((await hub.changes())["tenant_id"]) == {"acme"}
        assert (await hub.tenants())["tenant_id"].to_list() == ["acme"]
        stats, info, last = await hub.stats(), await hub.info(), (await hub.changes())["seq"].max()
        assert stats.episodes == 5
        # The log's numbers are the hub's: whoever reads on after them misses nothing of their own.
        assert stats.seq == info.seq == server.hub.info().seq > last
        assert (await hub.agents()).is_empty()
        async with aclosing(hub.subscribe(after=0)) as changes:  # type: ignore[type-var]  # it is a generator
            assert (await anext(changes)).tenant_id == "acme"


async def test_an_observer_writes_nothing(server: HubServer, token: Any, episode: Make, hub: Hub):
    before = hub.info().seq
    async with fedlab.connect(server.url, token("acme", "observer")) as connection:
        for call in (
            connection.put(episode(50)),
            connection.spawn_agent("acme", "a", lifetime=9),
            connection.sync_agent("acme", "a", after=0),
            connection.forget("acme", ["x"], reason="r"),
            connection.set_retention("acme", MinReward(1)),
            connection.apply_retention("acme"),
            connection.hold("acme", since=0, reason="r"),
            connection.release("acme", since=0, reason="r"),
            connection.verify(),
        ):
            with pytest.raises(PermissionDenied, match="role"):
                await call
    assert hub.info().seq == before


async def test_an_agent_writes_as_itself_only(server: HubServer, token: Any, episode: Make, hub: Hub):
    before = hub.info().seq
    async with fedlab.connect(server.url, token("acme", "agent", "me")) as connection:
        for call in (
            connection.put(episode(50)),
            connection.put([episode(51, agent_id="me"), episode(52)]),
            connection.put(episode(53, agent_id="me", tenant_id="rival")),
            connection.spawn_agent("acme", "you", lifetime=9),
            connection.spawn_agent("rival", "me", lifetime=9),
            connection.sync_agent("acme", "you", after=0),
            connection.sync_agent("acme", "me", [episode(54)], after=0),
            connection.forget("acme", ["x"], reason="r"),
        ):
            with pytest.raises(PermissionDenied):
                await call
        assert hub.info().seq == before
        life = await connection.begin_life("acme", "me", lifetime=9)
        assert life.hub == await connection.info(), "who spawns is told what it may do, and no more"
        assert (life.hub.role, life.hub.tenant_id) == ("agent", "acme")
        await connection.sync_agent("acme", "me", [episode(55, agent_id="me")], after=0, ending="destroyed")
        await connection.put(episode(56, agent_id="me"))


async def test_a_token_without_an_agent_writes_as_any_of_its_tenant(server: HubServer, token: Any, episode: Make):
    async with fedlab.connect(server.url, token("acme", "agent")) as hub:
        await hub.put([episode(60, agent_id="a"), episode(61, agent_id="b")])
        with pytest.raises(PermissionDenied):
            await hub.put([episode(62), episode(63, tenant_id="rival")])


async def test_an_admin_of_one_tenant_has_no_say_over_the_whole_hub(server: HubServer, token: Any):
    async with fedlab.connect(server.url, token("acme", "admin")) as hub:
        with pytest.raises(PermissionDenied, match="all tenants"):
            await hub.verify()
        assert set((await hub.apply_retention()).removed) == {"acme"}


async def test_two_tenants_may_use_the_same_agent_id(server: HubServer, token: Any, hub: Hub):
    async with fedlab.connect(server.url, token(None, "admin")) as connection:
        await connection.spawn_agent("acme", "agent-1", lifetime=60)
        await connection.sync_agent("acme", "agent-1", after=0, ending="destroyed")
    assert hub.agents("rival")["status"].to_list() == ["alive"]


async def test_a_mistyped_tenant_is_unknown_to_an_admin(server: HubServer, token: Any):
    async with fedlab.connect(server.url, token(None, "admin")) as hub:
        with pytest.raises(UnknownTenant):
            await hub.recall("acmee", "x")


async def test_forged_expired_and_missing_tokens_do_not_connect(
    server: HubServer, token: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "elsewhere"))
    good = token("acme", "agent")
    for bad, says in [(good[:-3] + "AAA", "signature"), ("nonsense", "valid token"), (None, "fedlab token")]:
        with pytest.raises(AuthenticationError, match=says):
            async with fedlab.connect(server.url, bad):
                pass
    monkeypatch.setenv("FEDLAB_TOKEN", good)
    async with fedlab.connect(server.url) as hub:
        await hub.recall("acme", "x")


async def test_a_token_of_another_hub_is_refused(server: HubServer, token: Any):
    with Hub(":memory:", embedder="hashing") as other:
        async with fedlab.serve(other, port=0) as elsewhere:
            with pytest.raises(AuthenticationError):
                async with fedlab.connect(elsewhere.url, token("acme", "agent")):
                    pass


async def test_a_connection_that_only_listens_ends_with_its_token_too(server: HubServer, token: Any):
    async with dialled(server, token("acme", "observer", expires_in=1), "fedlab.v1.msgpack") as raw:
        await raw.send(MSGPACK.encode(Request(1, "watch", {"after": 10**6, "wait": 60.0})))
        await raw.socket.wait_closed()
        assert (raw.socket.close_code, raw.socket.close_reason) == (EXPIRED, "the token has expired")


async def test_nothing_is_taken_with_a_token_that_has_just_expired(
    server: HubServer, hub: Hub, token: Any, episode: Make
):
    before = hub.info().seq
    async with dialled(server, token("acme", "agent"), "fedlab.v1.msgpack") as raw:
        assert (await raw.ask("info", {}))["result"]
        (session,) = server._sessions
        session.identity = msgspec.structs.replace(session.identity, expires_at=time.time())  # its timer is late
        await raw.send(MSGPACK.encode(Request(2, "put", {"episodes": [episode(70)]})))
        await raw.socket.wait_closed()
        assert raw.socket.close_code == EXPIRED
    assert hub.info().seq == before


async def test_a_token_that_expires_ends_the_connection(server: HubServer, token: Any):
    async with fedlab.connect(server.url, token("acme", "agent", expires_in=1)) as hub:
        with pytest.raises(AuthenticationError, match="expired"):
            while True:
                await hub.recall("acme", "x")
