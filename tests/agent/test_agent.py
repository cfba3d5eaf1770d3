"""One life: how it begins, what it stores, and all the ways in which it ends."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from fedlab import (
    AgentExpired,
    EphemeralAgent,
    Hub,
    HubUnavailable,
    IdConflict,
    InvalidEpisode,
    InvalidRequest,
    SystemClock,
    UnsyncedEpisodes,
    connect,
    serve,
)
from fedlab.agent.spool import read_spool
from fedlab.net import load_key, make_token
from fedlab.net.tokens import KEY_FILE


async def ended(agent: EphemeralAgent) -> None:
    """Let the loop turn until the agent is through with its end."""
    async with asyncio.timeout(30):
        while agent.alive or agent._ending is None or not agent._ending.done():
            await asyncio.sleep(0)


async def test_spawn_is_awaited_or_entered(site):
    agent = await EphemeralAgent.spawn(site.target, tenant_id="acme-corp", lifetime=300)
    assert agent.alive
    assert agent.session_id == f"acme-corp/{agent.agent_id}"
    assert agent.memories == []
    await agent.destroy()
    async with EphemeralAgent.spawn(site.target, tenant_id="acme-corp", agent_id="agent-001") as agent:
        assert site.agent_status("agent-001") == "alive"
        async with agent:
            pass
    assert not agent.alive
    assert site.agent_status("agent-001") == "destroyed"
    with pytest.raises(AttributeError, match=r"not spawned yet: write 'await .* has no 'store_episode'"):
        EphemeralAgent.spawn(site.target, "acme-corp").store_episode()


async def test_agents_that_spawn_at_once_have_ids_of_their_own(site):
    agents = await asyncio.gather(*(site.spawn() for _ in range(20)))
    assert len({agent.agent_id for agent in agents}) == 20
    await asyncio.gather(*(agent.destroy() for agent in agents))


async def test_a_seed_repeats_the_ids(embedded, doing):
    runs = []
    for _ in range(2):
        with Hub(":memory:", clock=embedded.clock, embedder="hashing") as hub:
            async with EphemeralAgent.spawn(hub, "acme", seed=7, clock=embedded.clock) as agent:
                runs.append((agent.agent_id, (await agent.store_episode(**doing)).id))
            async with EphemeralAgent.spawn(hub, "acme", seed=8, clock=embedded.clock) as other:
                assert other.agent_id != agent.agent_id
    assert runs[0] == runs[1]


async def test_an_id_that_lives_is_taken_and_a_dead_ones_is_free(site):
    agent = await site.spawn(agent_id="a")
    with pytest.raises(IdConflict, match="alive"):
        await EphemeralAgent.spawn(site.target, "acme-corp", agent_id="a")
    async with EphemeralAgent.spawn(site.connection, "other-corp", agent_id="a"):
        pass
    await agent.destroy()
    await (await site.spawn(agent_id="a")).destroy()


@pytest.mark.parametrize("lifetime", [0, 4.9, 901, -5, float("nan"), float("inf"), True, "300", None])
async def test_a_lifetime_is_5_to_900_seconds(embedded, lifetime):
    with pytest.raises(InvalidRequest, match="any_lifetime=True"):
        EphemeralAgent.spawn(embedded.hub, "acme", lifetime)


@pytest.mark.parametrize("lifetime", [0, -1, float("nan"), float("inf"), 1e12])
async def test_no_override_allows_what_is_no_lifetime(embedded, lifetime):
    with pytest.raises(InvalidRequest, match="lifetime"):
        EphemeralAgent.spawn(embedded.hub, "acme", lifetime, any_lifetime=True)


async def test_a_lifetime_over_2_to_the_31_ms_does_not_end_at_once(doing):
    with Hub(":memory:", embedder="hashing") as hub:
        agent = await EphemeralAgent.spawn(hub, "acme", 2**31 / 1000 + 60, any_lifetime=True, clock=SystemClock())
        for _ in range(5):
            await agent.store_episode(**doing)
            await agent.sync_with_hub()
        assert agent.alive
        await agent.destroy()


@pytest.mark.parametrize("hub", ["some/directory", 5, None])
async def test_what_is_no_hub_is_refused_with_the_way_out(hub):
    with pytest.raises(InvalidRequest, match="hub is a URL"):
        await EphemeralAgent.spawn(hub, "acme")


@pytest.mark.parametrize("tenant_id", ["", "a/b", "..", "a\0b", "x" * 10_000, "\u0430cme"])
async def test_tenant_names_that_are_none_are_refused(embedded, tenant_id):
    with pytest.raises(InvalidRequest, match="tenant_id"):
        EphemeralAgent.spawn(embedded.hub, tenant_id)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reward": float("nan")},
        {"reward": "0.9"},
        {"task": " "},
        {"output": "\ud800"},
        {"vector": [1.0] * 385},
        {"vector": [0.0] * 384},
        {"metadata": {"x": object()}},
        {"metadata": ["x"]},
        {"sources": "abc"},
        {"created_at": "today"},
    ],
)
async def test_an_episode_that_cannot_be_stored_is_refused_at_once(embedded, doing, wrong):
    agent = await embedded.spawn()
    with pytest.raises(InvalidEpisode):
        await agent.store_episode(**doing | wrong)
    assert agent.unsynced == 0
    await agent.destroy()


async def test_an_episode_stays_in_ram_until_it_is_synced(site, doing):
    agent = await site.spawn(clock=None)
    metadata = {"n": 1}
    episode = await agent.store_episode(**doing, metadata=metadata)
    metadata["n"] = 2
    assert (episode.created_at, episode.metadata) == (None, {"n": 1})
    assert (agent.unsynced, agent.unsynced_episodes, len(site.hub.episodes("acme-corp"))) == (1, [episode], 0)
    await agent.sync_with_hub()
    assert (agent.unsynced, len(agent.memories)) == (0, 1)
    assert site.hub.episodes("acme-corp")["created_at"].dt.epoch("ms").to_list() == [site.clock.now()]
    await agent.destroy()


async def test_sources_are_what_was_recalled_unless_given(site, doing):
    one = {episode.id for episode in site.fill(3, task="alpha")}
    two = {episode.id for episode in site.fill(3, task="beta")}
    agent = await site.spawn()
    assert (await agent.store_episode(**doing)).sources == ()
    await agent.query_memories(task="alpha")
    first = await agent.store_episode(**doing)
    assert set(first.sources) == one
    assert (await agent.store_episode(**doing)).sources == first.sources
    await agent.query_memories(task="alpha")
    await agent.query_memories(task="beta")
    assert set((await agent.store_episode(**doing)).sources) == one | two
    await agent.query_memories(task="beta")
    assert set((await agent.store_episode(**doing)).sources) == two
    assert (await agent.store_episode(**doing, sources=[first.id])).sources == (first.id,)
    assert (await agent.store_episode(**doing, sources=[])).sources == ()
    await agent.destroy()


async def test_destroy_syncs_frees_and_may_be_repeated(site, doing):
    agent = await site.spawn()
    await agent.store_episode(**doing)
    await asyncio.gather(*(agent.destroy() for _ in range(5)))
    await agent.destroy()
    assert (agent.unsynced, agent.memories, agent.time_left) == (0, [], 0)
    assert len(site.hub.episodes("acme-corp")) == 1
    for call in (
        agent.sync_with_hub,
        lambda: agent.query_memories("x"),
        lambda: agent.store_episode(**doing),
        lambda: agent.execute(print),
    ):
        with pytest.raises(AgentExpired, match="was destroyed"):
            await call()


@pytest.mark.parametrize("turns", range(1, 5))
async def test_a_destroy_that_is_cancelled_goes_on(site, doing, turns):
    agent = await site.spawn(agent_id="a")
    await agent.store_episode(**doing)
    task = asyncio.create_task(agent.destroy())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await agent.destroy()
    assert (site.agent_status("a"), len(site.hub.episodes("acme-corp")), agent.unsynced) == ("destroyed", 1, 0)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancel_during_the_sync_after_the_work_lets_it_go_on(site, doing, turns):
    agent = await site.spawn()
    worked = asyncio.Event()

    async def work(agent):
        await agent.store_episode(**doing)
        worked.set()

    task = asyncio.create_task(agent.execute(work))
    await worked.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(10):
        while agent.unsynced:
            await asyncio.sleep(0)
    assert len(site.hub.episodes("acme-corp")) == 1
    await agent.destroy()


async def test_the_end_of_the_lifetime_syncs_and_destroys(site, doing):
    agent = await site.spawn(lifetime=300)
    await agent.store_episode(**doing)
    site.clock.advance(seconds=299)
    assert agent.time_left == 1
    site.clock.advance(seconds=1)
    assert not agent.alive
    with pytest.raises(AgentExpired, match="end of its lifetime"):
        await agent.store_episode(**doing)
    await ended(agent)
    assert len(site.hub.episodes("acme-corp")) == 1
    assert site.agent_status(agent.agent_id) == "expired"
    await agent.destroy()


async def test_a_lifetime_may_end_during_a_sync(site, doing):
    agent = await site.spawn()
    for _ in range(10):
        await agent.store_episode(**doing)
    sync = asyncio.create_task(agent.sync_with_hub())
    await asyncio.sleep(0)
    site.clock.advance(seconds=300)
    assert (await sync).pushed == 10
    await ended(agent)
    assert len(site.hub.episodes("acme-corp")) == 10
    assert site.agent_status(agent.agent_id) == "expired"


async def test_a_lifetime_that_ends_while_disconnected_keeps_the_episodes(embedded, doing, caplog):
    agent = await embedded.spawn()
    episode = await agent.store_episode(**doing)
    embedded.hub.close()
    embedded.clock.advance(seconds=300)
    await ended(agent)
    assert agent.unsynced_episodes == [episode]
    assert agent.unsynced == 1
    assert "1 episode that the hub does not have" in caplog.text
    with pytest.raises(UnsyncedEpisodes) as caught:
        await agent.destroy()
    assert caught.value.episodes == [episode]
    assert isinstance(caught.value.__cause__, HubUnavailable)
    await agent.destroy()  # it was told


async def test_destroy_without_a_hub_raises_once_to_all_who_wait(embedded, doing):
    agent = await embedded.spawn()
    await agent.store_episode(**doing)
    embedded.hub.close()
    outcomes = await asyncio.gather(*(agent.destroy() for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnsyncedEpisodes] * 3
    await agent.destroy()


async def test_an_agent_with_nothing_to_lose_dies_quietly_without_its_hub(embedded):
    agent = await embedded.spawn()
    embedded.hub.close()
    await agent.destroy()


async def test_a_spool_that_cannot_be_written_loses_nothing(embedded, doing, tmp_path):
    (tmp_path / "file").write_text("")
    agent = await embedded.spawn(spool=tmp_path / "file" / "spool")
    await agent.store_episode(**doing)
    embedded.hub.close()
    with pytest.raises(UnsyncedEpisodes):
        await agent.destroy()


async def test_a_lifetime_that_ends_while_disconnected_spools(embedded, doing, tmp_path):
    agent = await embedded.spawn(spool=tmp_path / "spool")
    episode = await agent.store_episode(**doing)
    embedded.hub.close()
    embedded.clock.advance(seconds=300)
    await ended(agent)
    assert (read_spool(tmp_path / "spool"), agent.unsynced) == (([episode], []), 0)
    await agent.destroy()


async def test_an_error_in_the_block_is_not_hidden_by_the_end(embedded, doing):
    with pytest.raises(ZeroDivisionError) as caught:
        async with EphemeralAgent.spawn(embedded.hub, "acme-corp") as agent:
            await agent.store_episode(**doing)
            embedded.hub.close()
            raise ZeroDivisionError
    assert "does not have" in caught.value.__notes__[0]
    assert agent.unsynced == 1


async def test_a_cancelled_block_is_left_tidy(site, doing):
    inside = asyncio.Event()
    agents = []

    async def cell():
        async with EphemeralAgent.spawn(site.target, "acme-corp", agent_id="a") as agent:
            agents.append(agent)
            await agent.store_episode(**doing)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(cell())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.agent_status("a") == "destroyed"
    assert len(site.hub.episodes("acme-corp")) == 1


@pytest.mark.parametrize("turns", range(6))
async def test_a_spawn_that_is_cancelled_leaves_no_life_behind(site, turns):
    site.fill(1)

    async def cell():
        async with EphemeralAgent.spawn(site.target, "acme-corp", agent_id="a"):
            await asyncio.Event().wait()

    task = asyncio.create_task(cell())
    for _ in range(turns):  # as far as it comes: before, while and after the hub hears of it
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.hub.agents("acme-corp").filter(status="alive").is_empty()
    async with EphemeralAgent.spawn(site.target, "acme-corp", agent_id="a") as another:
        assert another.alive


async def test_a_broken_off_connection_of_its_own_starts_the_lease(site, doing):
    connection = await connect(site.target).__aenter__()
    agent = await EphemeralAgent.spawn(connection, "acme-corp", agent_id="a", lifetime=900)
    await agent.store_episode(**doing)
    await agent.sync_with_hub()
    await connection.close()
    async with asyncio.timeout(30):
        while site.hub.agents("acme-corp")["status"].to_list() == ["alive"]:
            site.clock.advance(seconds=1)
            site.hub.expire_leases()
            await asyncio.sleep(0)
    assert site.agent_status("a") == "crashed"
    assert agent.alive
    await agent.destroy()


async def test_an_agent_that_is_dropped_with_unsynced_episodes_says_so(embedded, doing):
    agent = await embedded.spawn()
    await agent.store_episode(**doing)
    agent._timer.cancel()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del agent
    assert "never destroyed" in str(caught[0].message)


async def test_representations_tell_the_state(embedded, doing):
    agent = await embedded.spawn(agent_id="agent-001")
    await agent.store_episode(**doing)
    assert repr(agent) == ("<EphemeralAgent acme-corp/agent-001: alive, 300 s left, 1 memory in RAM, 1 unsynced>")
    assert agent._repr_html_().startswith("<b>EphemeralAgent acme-corp/agent-001</b>")
    await agent.destroy()
    assert repr(agent) == "<EphemeralAgent acme-corp/agent-001: destroyed>"


async def test_a_thousand_agents_live_at_once(site, doing):
    agents = await asyncio.gather(*(site.spawn() for _ in range(960)))
    # And some with connections of their own.
    agents += await asyncio.gather(
        *(EphemeralAgent.spawn(site.target, "acme-corp", clock=site.clock) for _ in range(40))
    )
    assert site.hub.stats("acme-corp").agents_alive == 1_000
    for agent in agents:
        await agent.store_episode(**doing)
    await asyncio.gather(*(agent.destroy() for agent in agents))
    stats = site.hub.stats("acme-corp")
    assert (stats.episodes, stats.agents, stats.agents_alive) == (1_000, 1_000, 0)


async def test_several_queries_at_once_search_hub_and_ram(site):
    stored = site.fill(3, task="alpha")
    agent = await site.spawn()
    own = await agent.store_episode(task="beta", input="", output="mine", reward=1.0)
    alpha, beta = await agent.query_many(["alpha\ninput 1", "beta"], k=1)
    assert [alpha[0].id, beta[0].id] == [stored[1].id, own.id]
    later = await agent.store_episode(task="gamma", input="", output="", reward=0.0)
    assert later.sources == (stored[1].id, own.id)
    with pytest.raises(InvalidRequest, match="sequence of texts or vectors"):
        await agent.query_many("alpha")
    await agent.destroy()


@pytest.mark.parametrize("lifetime", [60, 600, 7200])
async def test_a_token_that_an_agent_made_itself_ends_a_minute_after_the_agent(lifetime):
    with Hub(":memory:", embedder="hashing") as hub:
        async with (
            serve(hub, port=0) as server,
            EphemeralAgent.spawn(server.url, "acme", lifetime, any_lifetime=True) as agent,
        ):
            (session,) = server._sessions
            assert (session.identity.tenant_id, session.identity.agent_id) == ("acme", agent.agent_id)
            assert session.identity.expires_at == pytest.approx(agent.expires_at / 1000 + 60, abs=2)


async def test_a_token_that_ends_before_its_agent_is_said_at_once(caplog):
    with Hub(":memory:", embedder="hashing") as hub:
        async with serve(hub, port=0) as server:
            key, hub_id = load_key(hub.path / KEY_FILE), hub.info().hub_id
            short, long = (make_token(key, hub_id, "acme", "agent", expires_in=each) for each in (200, 400))
            for token in (None, long):
                async with EphemeralAgent.spawn(server.url, tenant_id="acme", token=token):
                    assert caplog.messages == []
            async with EphemeralAgent.spawn(server.url, tenant_id="acme", token=short) as agent:
                assert f"the token of agent {agent.session_id} ends in " in caplog.text
