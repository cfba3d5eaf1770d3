"""Every page of the application on every kind of hub: no exception, no error, and something that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

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


@each_page
def test_a_page_is_drawn_over_the_wire_and_without_torch(page: str, look_at: Look, tmp_path: Path, lively_hub: Path):
    with HubProcess(lively_hub) as process:
        check(look_at(page, process.url))


def test_a_backup_is_looked_at_and_stays_as_it_is(look_at: Look, tmp_path: Path, lively_hub: Path):
    from fedlab import Hub

    with Hub(lively_hub) as hub:
        hub.backup(tmp_path / "backup")
    before = {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    app = look_at("overview", tmp_path / "backup")
    check(app)
    assert [each.value for each in app.metric if each.label == "Tenants"] == ["3"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
