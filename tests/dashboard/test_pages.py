"""Every page of the application on every kind of hub: no exception, no error, and something that says what to do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import figures, look
from fedlab import Episode, Hub, connect_sync
from tests.dashboard.conftest import PAGES, Look, words
from tests.processes import HubProcess

each_page = pytest.mark.parametrize("page", PAGES)


def check(app: AppTest) -> None:
    assert not app.exception, app.exception
    assert not app.error, [each.value for each in app.error]


@each_page
def test_without_a_hub_a_page_says_how_to_name_one(page: str, look_at: Look):
    app = look_at(page)
    assert not app.exception
    said = words(app)
    assert "No hub is open" in said or "No run is open" in said
    assert "into the side bar" in said
    assert not app.error
    assert app.text_input(key="target").label == "URL of a hub, or a directory"


@each_page
@pytest.mark.parametrize("kind", ["empty_hub", "one_episode", "hostile_hub", "lively_hub"])
def test_a_page_is_drawn(page: str, kind: str, look_at: Look, request: pytest.FixtureRequest):
    check(look_at(page, request.getfixturevalue(kind)))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, lively_hub: Path) -> Iterator[tuple[str, str]]:
    """The URL of a running hub, and the directory in which clients find its key."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(lively_hub, folder / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLAB_RUNTIME_DIR", str(folder / "runtime"))
        process = HubProcess(folder / "hub")
        process.start()
    yield process.url, str(folder / "runtime")
    process.stop()


@each_page
def test_a_page_is_drawn_over_the_wire(
    page: str, look_at: Look, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    url, runtime = served
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", runtime)
    check(look_at(page, url))


def test_a_time_in_a_table_says_its_zone_in_the_name_of_its_column(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(look, "zone", lambda: ZoneInfo("Asia/Tokyo"))
    frame = pl.DataFrame({"created_at": [0], "time": [datetime(1970, 1, 1, tzinfo=UTC)], "episodes": [3]})
    shown = look.local(frame)
    assert shown.columns == ["created_at (Asia/Tokyo)", "time (Asia/Tokyo)", "episodes"]
    assert shown.row(0) == (datetime(1970, 1, 1, 9), datetime(1970, 1, 1, 9), 3)


def test_whole_numbers_of_a_table_have_separators_of_thousands(look_at: Look, lively_hub: Path):
    shown = look_at("overview", lively_hub).dataframe[0]
    columns = json.loads(shown.proto.columns)
    assert columns["episodes"]["type_config"]["format"] == "localized"
    assert "created_at" not in columns


def test_the_overview_says_what_the_hub_is_and_since_when(look_at: Look, lively_hub: Path):
    with Hub(lively_hub) as hub:
        info = hub.info()
    said = words(look_at("overview", lively_hub)).replace("\\", "")
    assert (
        f"**Healthy** · fedlab {info.version} · schema {info.schema} · hashing-384, 384 dimensions · up since" in said
    )


def test_a_policy_of_a_class_of_ones_own_is_shown_and_what_fails_of_it_is_said(look_at: Look, tmp_path: Path):
    from fedlab.hub import operations

    with Hub(tmp_path / "hub", embedder="hashing") as hub:
        hub.put(Episode(tenant_id="acme", agent_id="a", task="t", input="i", output="o", reward=1.0))
        hub._writer.run(lambda tx: operations.set_retention(tx, "acme", '{"policy":"Foreign"}', actor="x"))
    with HubProcess(tmp_path / "hub", options=["--retention-interval", "0.1"]) as process:
        with connect_sync(process.url) as connection:
            while connection.schedule().retention_last is None:
                time.sleep(0.05)
        app = look_at("overview", process.url)
        check(app)
        assert "**Fails in part**" in words(app)
        assert "'Foreign'" in app.warning[0].value
        assert app.dataframe[0].value["retention"].to_list() == ['{"policy":"Foreign"}']
        for page in ("retention", "operations"):
            check(look_at(page, process.url, section="Retention"))


def test_one_episode_is_seen_in_the_growth(one_episode: Path):
    with Hub(one_episode) as hub:
        frame = hub.growth()
    (line,) = figures.growth(frame, {}, zone="UTC").data
    assert len(line.x) == len(line.y) == 2  # a line of one point would not be drawn


def test_a_source_that_has_gone_does_not_hide_the_others_nor_one_of_the_same_name(
    look_at: Look, tmp_path: Path, lively_hub: Path
):
    (tmp_path / "hub").mkdir()
    shutil.copytree(lively_hub, tmp_path / "other" / "hub")
    app = look_at("overview", lively_hub, tmp_path / "hub", tmp_path / "other" / "hub")
    check(app)
    names = app.selectbox(key="hub").options
    assert names == ["directory hub", str(tmp_path / "hub"), str(tmp_path / "other" / "hub")]
    assert "is no hub" in app.selectbox(key="hub").set_value(names[1]).run().error[0].value
    check(app.selectbox(key="hub").set_value(names[2]).run())
    assert app.metric[0].value == "3"


def test_what_a_visitor_opened_is_in_the_address_and_opened_by_it(
    look_at: Look, one_episode: Path, lively_hub: Path, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    url, runtime = served
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", runtime)
    app = look_at("overview", "ws://127.0.0.1:1")
    assert "does not answer" in app.warning[0].value
    for target, tenants in ((url, "3"), (str(one_episode), "1")):
        app.text_input(key="target").set_value(target)
        app.button(key="FormSubmitter:open-Open").click().run()
        check(app)
        assert app.metric[0].value == tenants
    assert app.query_params["open"] == [url, str(one_episode)]
    again = look_at("overview", "ws://127.0.0.1:1", open=app.query_params["open"], hub=app.query_params["hub"])
    check(again)
    assert again.metric[0].value == "1"


def test_who_did_not_start_it_opens_no_directory_and_no_hub_without_a_token(
    look_at: Look, lively_hub: Path, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    url, runtime = served
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", runtime)
    app = look_at("overview", own_rights=False, open=[str(lively_hub), url])
    assert "open only to who started" in words(app)
    assert app.selectbox(key="hub").options == [url]
    assert "a token is needed" in words(app)
    assert not app.metric
    # Nor is a hub on another machine told the token of who started it because an address says so.
    app = look_at("overview", lively_hub, open=["wss://elsewhere.example:1"], hub="wss://elsewhere.example:1")
    assert "a token is needed" in app.error[0].value


def test_a_backup_is_looked_at_and_stays_as_it_is(look_at: Look, tmp_path: Path, lively_hub: Path):
    with Hub(lively_hub) as hub:
        hub.backup(tmp_path / "backup")
    before = {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    app = look_at("overview", tmp_path / "backup")
    check(app)
    assert [each.value for each in app.metric if each.label == "Tenants"] == ["3"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
