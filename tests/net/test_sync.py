"""The same hub without `await`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import Any

import pytest

import fedlab
from fedlab import Episode, Hub, HubUnavailable, UnknownTenant
from fedlab.net import HubConnection, HubServer, SyncConnection

Make = Callable[..., Episode]


@pytest.fixture(params=["embedded", "socket"])
def connection(request: pytest.FixtureRequest, hub: Hub) -> Iterator[SyncConnection]:
    if request.param == "embedded":
        with fedlab.connect_sync(hub) as connection:
            yield connection
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server: HubServer = fedlab.serve(hub, port=0)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    with fedlab.connect_sync(server.url) as connection:
        yield connection
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_calls_wait_for_their_results(connection: SyncConnection, episode: Make):
    connection.put([episode(n) for n in range(10)])
    assert connection.recall("acme", "task 3\ninput 3", k=1)[0].output == "output 3"
    assert connection.episodes("acme").height == 10
    assert connection.verify().ok
    with pytest.raises(UnknownTenant):
        connection.recall("nobody", "x")


def test_aggregates_are_the_hubs_own(connection: SyncConnection, hub: Hub, episode: Make):
    connection.put([episode(n, id=f"e{n}", sources=(f"e{n - 1}",), metadata={"generation": n}) for n in range(10)])
    hub.spawn_agent("acme", "a", lifetime=60)
    for name, arguments in {
        "growth": {"by": "generation"},
        "rewards": {"by": ("task", "time")},
        "reward_summary": {"by": "generation"},
        "lives": {},
        "tail": {"kinds": "episode_stored"},
        "credit": {"by": "generation"},
        "lineage": {"episode_id": "e4"},
        "sample": {"n": 3},
    }.items():
        theirs, ours = (getattr(each, name)("acme", **arguments) for each in (connection, hub))
        assert theirs.equals(ours)
        assert not ours.is_empty()


def test_a_subscription_is_a_plain_iterator(connection: SyncConnection, episode: Make):
    changes = connection.subscribe()
    made = episode(1)
    connection.put(made)
    assert [next(changes).kind, next(changes).subject] == ["tenant_created", made.id]


def test_many_threads_may_share_one_connection(connection: SyncConnection, hub: Hub, episode: Make):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: connection.put(episode(n)), range(100)))
    assert hub.stats().episodes == 100


def test_closing_is_idempotent_and_final(connection: SyncConnection, episode: Make):
    waiting: list[Any] = []
    connection.put(episode())
    changes = connection.subscribe()
    thread = threading.Thread(target=lambda: waiting.extend(_until_error(changes)))
    thread.start()
    connection.close()
    connection.close()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(HubUnavailable, match="closed"):
        connection.info()


def _until_error(changes: Iterator[Any]) -> list[Any]:
    try:
        return list(changes)
    except BaseException as error:  # whatever ends it, in a thread that must end
        return [error]


def test_a_hub_that_is_not_there_leaves_no_thread_behind():
    before = threading.active_count()
    with pytest.raises(HubUnavailable):
        fedlab.connect_sync("ws://127.0.0.1:9", retry_for=0)
    assert threading.active_count() == before


def test_every_method_of_the_interface_is_there_with_its_signature():
    for name in dir(HubConnection):
        method = getattr(HubConnection, name)
        if not name.startswith("_") and name not in ("close", "url"):
            assert list(signature(getattr(SyncConnection, name)).parameters) == list(signature(method).parameters)
