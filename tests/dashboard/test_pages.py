"""Every page of the application on every kind of hub: no exception, no error, and something that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import look
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
    assert "name one in the side bar" in said or "fedlab run" in said
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


def test_a_backup_is_looked_at_and_stays_as_it_is(look_at: Look, tmp_path: Path, lively_hub: Path):
    from fedlab import Hub

    with Hub(lively_hub) as hub:
        hub.backup(tmp_path / "backup")
    before = {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    app = look_at("overview", tmp_path / "backup")
    check(app)
    assert [each.value for each in app.metric if each.label == "Tenants"] == ["3"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
