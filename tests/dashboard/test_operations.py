"""Operations: rates as the server counted them, the log as it is, backups and schedules for who may see them."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import rates
from fedlab import Hub
from fedlab.hub.backups import verify_backup
from fedlab.hub.values import Stats
from fedlab.net import connect_sync, load_key, make_token
from fedlab.net.metrics import Metrics
from fedlab.net.tokens import KEY_FILE
from tests.dashboard.conftest import Look, words
from tests.processes import HubProcess

STATS = Stats(tenants=1, episodes=1, forgotten=0, agents=0, agents_alive=0, seq=1, bytes=1)


@pytest.fixture
def hub(lively_hub: Path, tmp_path: Path) -> Path:
    """A copy of the lively hub that may be changed."""
    return Path(shutil.copytree(lively_hub, tmp_path / "hub"))


def look_at_metrics(metrics: Metrics, at: float) -> rates.Look:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(metrics.render(STATS))
    return rates.look(((each.name, each.labels, each.value) for family in families for each in family.samples), at)


def test_rates_are_what_was_counted_between_two_looks():
    metrics = Metrics()
    metrics.count("recall", "ok", 60)
    metrics.count("put", "ok", 0.001)
    metrics.connections, metrics.refused["401"] = 3, 2
    first = look_at_metrics(metrics, 100.0)
    for number in range(20):
        metrics.count("recall", "ok" if number else "unknown_tenant", 0.0015 if number < 18 else 0.2)
    last = look_at_metrics(metrics, 110.0)
    assert (last.connections, last.refused) == (3, {"401": 2.0})
    frame = rates.between(first, last)
    assert frame["method"].to_list() == ["recall", "put"]
    assert frame["per_second"].to_list() == [2.0, 0.0]
    assert frame["failed"].to_list() == [1, 0]
    assert frame["requests"].to_list() == [21, 1]
    # 18 of 20 lie between 1 and 2 ms, and 2 between 100 and 250 ms.
    assert frame["p50_ms"].to_list() == [pytest.approx(1 + 10 / 18), None]
    assert frame["p95_ms"][0] == pytest.approx(100 + 150 / 2)


def test_a_history_tells_of_the_methods_asked_most_and_begins_anew_with_the_server():
    metrics, history = Metrics(), rates.History()
    history.add(look_at_metrics(metrics, 100.0))
    assert history.steps().is_empty()
    for second in (101.0, 102.0):
        metrics.count("recall", "ok", 0.001)
        metrics.count("recall", "ok", 0.001)
        metrics.count("put", "ok", 0.001)
        history.add(look_at_metrics(metrics, second))
    steps = history.steps(most=1)
    assert steps["method"].to_list() == ["recall", "recall"]
    assert steps["per_second"].to_list() == [2.0, 2.0]
    assert steps["at"].to_list() == [datetime.fromtimestamp(each, UTC) for each in (101, 102)]
    again = Metrics()
    again.count("recall", "ok", 0.001)
    history.add(look_at_metrics(again, 103.0))
    assert len(history.looks) == 1


def frame(app: AppTest, column: str) -> list[object]:
    (found,) = [each.value for each in app.dataframe if column in each.value.columns]
    return found[column].to_list()  # type: ignore[no-any-return]


def test_requests_are_counted_and_backups_taken_and_verified(look_at: Look, hub: Path, tmp_path: Path):
    options = ["--backup-dir", str(tmp_path / "backups"), "--retention-interval", "3600"]
    with HubProcess(hub, options=options) as process:
        app = look_at("operations", process.url)
        assert not app.exception
        assert {each.label for each in app.metric} >= {"Requests a second", "Connections"}
        assert "info" in frame(app, "method")
        app.button_group(key="section").set_value("Retention").run()
        assert not app.exception
        assert "every **3,600 s**" in words(app)
        assert frame(app, "tenant") == ["acme", "globex", "initech"]
        assert frame(app, "policy")[1] == "keep the newest 20 episodes"
        app.button_group(key="section").set_value("Backups").run()
        assert "There is no backup yet" in words(app)
        app.text_input(key="backup-name 0").set_value("first")
        next(each for each in app.button if each.label == "Back up").click().run()
        assert not app.exception
        assert "was made: full backup" in app.success[0].value.replace("\\", "")
        assert verify_backup(tmp_path / "backups" / "first").episodes > 0
        assert frame(app, "name") == ["first"]
        assert app.text_input(key="backup-name 1").value.startswith("by-hand-")  # not the name that is taken
        check = next(each for each in app.button if each.label == "Read and check all of it")
        check.click().run()
        assert "is whole" in app.success[0].value.replace("\\", "")
        database = tmp_path / "backups" / "first" / "hub.db"
        database.write_bytes(bytes(database.stat().st_size))
        next(each for each in app.button if each.label == "Read and check all of it").click().run()
        assert not app.exception
        assert "does not match its checksum" in app.error[0].value.replace("\\", "")


def test_who_may_not_see_all_of_a_hub_sees_his_tenants_log(look_at: Look, hub: Path):
    with HubProcess(hub) as process:
        with connect_sync(process.url) as connection:
            hub_id = connection.info().hub_id
        for role in ("observer", "admin"):
            token = make_token(load_key(hub / KEY_FILE), hub_id, "globex", role, None, 60)
            app = look_at("operations", process.url, section="Log")
            app.text_input(key=f"token {process.url}").set_value(token).run()
            assert not app.exception
            assert app.button_group(key="section").options == ["Requests", "Log", "Retention"]
            assert set(frame(app, "kind")) >= {"episode_stored", "episode_forgotten"}
            assert set(frame(app, "tenant_id")) == {"globex"}


def test_the_log_is_newest_first_and_filtered(look_at: Look, hub: Path):
    app = look_at("operations", hub)
    assert app.button_group(key="section").options == ["Log", "Retention", "Backups", "Erasures"]
    newest = frame(app, "seq")
    assert newest == sorted(newest, reverse=True)  # type: ignore[type-var]
    app.multiselect(key="log-kinds").set_value(["episode_forgotten"]).run()
    assert set(frame(app, "kind")) == {"episode_forgotten"}
    app.selectbox(key="log-tenant").set_value("initech").run()
    assert set(frame(app, "tenant_id")) == {"initech"}
    app.text_input(key="log-text").set_value("REWARDS of at least").run()
    assert set(frame(app, "actor")) == {"retention"}
    app.text_input(key="log-text").set_value("(no such words").run()
    assert "No change passes these filters" in words(app)


def test_a_directory_says_how_backups_are_made_and_shows_its_erasures(look_at: Look, hub: Path):
    with Hub(hub) as opened:
        opened.erase_agent("acme", "g0-a0", reason="asked for it")
    app = look_at("operations", hub, section="Backups")
    assert "fedlab backup HUB DEST" in words(app)
    app = look_at("operations", hub, section="Erasures")
    assert frame(app, "reason") == ["asked for it"]


def test_each_section_says_that_there_are_no_replicas(look_at: Look, hub: Path):
    for section in ("Log", "Retention", "Backups", "Erasures"):
        assert "no replicas" in words(look_at("operations", hub, section=section))
