"""What the hub's tests share: graphs of few rows, a writer that stands still, waiting for a condition."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest

from fedlab import Hub


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub, str], None]:
    """Tenants of more than 40 rows get a graph; the function waits until the tenant's is up to date."""
    from fedlab.hub import index, indexes, searching

    for name, value in {"EXACT": 40, "TAIL": 16, "FEW": 8}.items():
        for module in (index, indexes, searching):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)

    def settled(hub: Hub, tenant_id: str) -> bool:
        view = hub._indexes.get(tenant_id).view
        return view.graph is not None and view.n - view.first <= 16

    return lambda hub, tenant_id="acme": wait_until(lambda: settled(hub, tenant_id))


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def stalled(episode: Callable[..., Any], vector: Callable[[int], Any]) -> Callable[[Hub], Any]:
    """`with stalled(hub):` what is submitted inside waits, and shares one commit at the end."""

    @contextlib.contextmanager
    def stall(hub: Hub) -> Iterator[None]:
        reached, go_on = Event(), Event()

        def hold(_seq: int) -> None:
            reached.set()
            go_on.wait(20)

        undo = hub.on_commit(hold)
        first = hub.put_soon(episode(tenant_id="stall", vector=vector(0)))
        assert reached.wait(20)
        undo()
        try:
            yield
        finally:
            go_on.set()
            first.result()

    return stall
