"""Hubs to look at, and the application without a browser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from fedlab import Episode, Hub, MaxEpisodes, MinReward
from fedlab.clock import SimulatedClock

pytest.importorskip("streamlit")
import streamlit as st
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).parents[2]
APP = ROOT / "dashboard" / "app.py"
PAGES = sorted(path.stem for path in (APP.parent / "views").glob("*.py"))
HOSTILE = (
    "<script>document.title='broken into'</script>",
    "<img src=x onerror=\"document.title='broken into'\">",
    "**bold** $x^2$ [link](javascript:alert(1)) :red[x] `code`",
    "long " * 2_000,
    "🧠👩‍👩‍👧‍👦 emoji 🏴‍☠️",
    "שלום עולם \u202eevil\u202c مرحبا",
    '"; DROP TABLE episodes; --',
)
Look = Callable[..., AppTest]


@pytest.fixture
def look_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Look]:
    """`look_at("rewards", hub_directory)`: a page as it is drawn when the dashboard was started with these targets."""
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.delenv("FEDLAB_TOKEN", raising=False)

    def look(page: str, *targets: object, own_rights: bool = True, **parameters: str) -> AppTest:
        start = {"targets": [str(each) for each in targets], "own_rights": own_rights}
        monkeypatch.setenv("FEDLAB_DASHBOARD", msgspec.json.encode(start).decode())
        app = AppTest.from_file(str(APP), default_timeout=120)
        for name, value in parameters.items():
            app.query_params[name] = value
        app.run()
        if page != "overview":
            app.switch_page(f"views/{page}.py").run()
        return app

    # AppTest leaves its page behind as the main module, which process pools of later tests would run again.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    yield look
    st.cache_data.clear()
    st.cache_resource.clear()  # which closes the hubs


def words(app: AppTest) -> str:
    """All that a page says in words."""
    parts = [*app.markdown, *app.info, *app.warning, *app.error, *app.caption, *app.title, *app.subheader, *app.metric]
    return "\n".join(str(part.value) for part in parts)


@pytest.fixture(scope="session")
def empty_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a hub in which nothing was ever stored."""
    path = tmp_path_factory.mktemp("empty") / "hub"
    Hub(path, embedder="hashing").close()
    return path


@pytest.fixture(scope="session")
def one_episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a hub with one episode."""
    path = tmp_path_factory.mktemp("one") / "hub"
    with Hub(path, embedder="hashing") as hub:
        hub.put(Episode(tenant_id="acme", agent_id="a1", task="add", input="1+1", output="2", reward=1.0))
    return path


@pytest.fixture(scope="session")
def hostile_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a hub whose strings would do harm on a careless page."""
    path = tmp_path_factory.mktemp("hostile") / "hub"
    with Hub(path, embedder="hashing") as hub:
        for tenant in ("hostile", "x" * 128):
            hub.put(
                [
                    Episode(
                        tenant_id=tenant,
                        agent_id=f"agent-{number % 2}",
                        task=text,
                        input=text,
                        output=text,
                        reward=number - 4.0,
                        metadata={"generation": number % 3, text: text},
                    )
                    for number, text in enumerate(HOSTILE)
                ]
            )
    return path


@pytest.fixture(scope="session")
def lively_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a hub in which four generations of three tenants lived, and of which two forget."""
    path = tmp_path_factory.mktemp("lively") / "hub"
    fill(path)
    return path


def fill(path: Path) -> None:
    """Four generations of three tenants, of which two forget."""
    clock = SimulatedClock(datetime(2026, 1, 1))
    tenants = {"acme": None, "globex": MaxEpisodes(20), "initech": MinReward(0.4)}
    with Hub(path, clock, embedder="hashing") as hub:
        made: dict[str, list[str]] = {tenant: [] for tenant in tenants}
        for generation in range(4):
            for tenant, policy in tenants.items():
                for agent in range(3):
                    name = f"g{generation}-a{agent}"
                    hub.spawn_agent(tenant, name, lifetime=300)
                    batch = [
                        Episode(
                            tenant_id=tenant,
                            agent_id=name,
                            task=f"task {number % 2}",
                            input=f"input {generation} {agent} {number}",
                            output=f"output {number}",
                            reward=min(1.0, (number % 5) / 5 + generation / 10),
                            sources=tuple(made[tenant][-2:]) if generation else (),
                            metadata={"generation": generation},
                        )
                        for number in range(6)
                    ]
                    # One is destroyed, one expires, and one of the last generation lives on.
                    ending = "destroyed" if agent == 0 else "expired" if agent == 1 or generation < 3 else None
                    hub.sync_agent(tenant, name, batch, after=0, limit=0, ending=ending, recalled=2)
                    made[tenant] += [each.id for each in batch]
                if policy is not None and generation == 1:
                    hub.set_retention(tenant, policy)
            clock.advance(days=10)
            hub.apply_retention()
        for tenant in tenants:
            hub.recall(tenant, "input 1", k=5)
