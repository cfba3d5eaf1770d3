"""Aggregates are the hub's own, embedded and over the wire, and of the tenant that a token names."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

import fedlab
from fedlab import Episode, Hub, InvalidRequest, PermissionDenied, UnknownTenant
from fedlab.net import HubConnection, HubServer

Make = Callable[..., Episode]

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("growth", {}),
    ("growth", {"by": "generation", "bins": 7, "top": 2}),
    ("growth", {"since": datetime(2020, 1, 1), "until": datetime(2035, 1, 1)}),
    ("forgetting", {}),
    ("forgetting", {"since": 0, "until": datetime(2035, 1, 1), "bins": 3}),
    ("rewards", {}),
    ("rewards", {"by": ["task", "generation"], "bins": 3, "min_reward": 0.3}),
    ("reward_summary", {"by": "time", "periods": 4}),
    ("reward_summary", {"by": ("tenant", "agent"), "since": 0, "limit": 3}),
    ("lives", {}),
    ("lives", {"since": 0, "until": datetime(2035, 1, 1), "limit": 1}),
    ("tail", {}),
    ("tail", {"kinds": "episode_stored", "actor": "local", "since": 0, "until": 2**42, "before": 30, "limit": 20}),
    ("tail", {"kinds": ["agent_spawned", "tenant_created"]}),
]
OF_ONE: list[tuple[str, dict[str, Any]]] = [
    ("credit", {}),
    ("credit", {"by": "agent", "limit": 1}),
    ("lineage", {"episode_id": "e7"}),
    ("lineage", {"episode_id": "e20", "depth": 1, "limit": 1}),
    ("sample", {}),
    ("sample", {"n": 3, "seed": 7, "vectors": False, "task": "task 1"}),
]


@pytest.fixture(autouse=True)
def two_tenants(hub: Hub, episode: Make) -> None:
    hub.put([episode(n, id=f"e{n}", metadata={"generation": n // 10}, sources=(f"e{n - 10}",)) for n in range(50)])
    hub.put([episode(n, tenant_id="rival", reward=-5) for n in range(7)])
    hub.forget("acme", ["e49"], reason="asked to")
    for tenant_id in ("acme", "rival"):
        hub.spawn_agent(tenant_id, "agent-1", lifetime=60)


@pytest.mark.parametrize(("method", "arguments"), [*CALLS, *OF_ONE])
async def test_aggregates_are_the_hubs_own(connection: HubConnection, hub: Hub, method: str, arguments: dict[str, Any]):
    for tenant_id in (None, "acme") if (method, arguments) in CALLS else ("acme",):
        theirs = await getattr(connection, method)(tenant_id, **arguments)
        ours = getattr(hub, method)(tenant_id, **arguments)
        assert theirs.equals(ours)
        assert theirs.schema == ours.schema
        assert not ours.is_empty()
    with pytest.raises(UnknownTenant):
        await getattr(connection, method)("nobody", **arguments)


async def test_wrong_questions_are_refused_everywhere(connection: HubConnection):
    for call in (
        connection.growth(by="agent"),
        connection.growth(by="<b>"),  # type: ignore[arg-type]
        connection.growth(bins=-1),
        connection.rewards(by=["nothing"]),
        connection.rewards(bins=0),
        connection.reward_summary(limit=10**12),
        connection.growth("../acme"),
        connection.credit("acme", by="task"),  # type: ignore[arg-type]
        connection.lineage("acme", "not-there"),
        connection.sample("acme", 10**6),
        connection.tail(kinds=[5]),  # type: ignore[list-item]
    ):
        with pytest.raises(InvalidRequest):
            await call


@pytest.mark.parametrize("role", ["observer", "agent", "admin"])
async def test_a_token_counts_its_own_tenant_only(server: HubServer, hub: Hub, token: Any, role: Any):
    async with fedlab.connect(server.url, token("acme", role)) as connection:
        for method, arguments in [*CALLS, *OF_ONE]:
            of_one = {} if (method, arguments) in CALLS else {"tenant_id": "acme"}
            own = await getattr(connection, method)(**of_one, **arguments)
            assert own.equals(getattr(hub, method)("acme", **arguments))
            for tenant_id in ("rival", "Acme", "acm\u0435", ""):
                with pytest.raises(PermissionDenied):
                    await getattr(connection, method)(tenant_id, **arguments)
