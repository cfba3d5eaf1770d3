"""The page Memory growth: its numbers are the hub's, also of a part of the time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import figures_growth
from fedlab import Hub
from tests.dashboard.conftest import HOSTILE, Look, words

HALF = "2026-01-16T00:00:00+00:00"


def metrics(app: AppTest) -> dict[str, str]:
    assert not app.exception, app.exception
    return {each.label: each.value for each in app.metric}


def test_the_numbers_are_those_of_the_hub(look_at: Look, lively_hub: Path):
    with Hub(lively_hub) as hub:
        stats = hub.stats()
    shown = metrics(look_at("growth", lively_hub))
    assert shown["Live at the end"] == f"{stats.episodes:,}"
    assert shown["Forgotten"] == f"{stats.forgotten:,}"
    assert shown["Stored"] == f"{stats.episodes + stats.forgotten:,}"


def test_a_range_is_that_of_the_charts(look_at: Look, lively_hub: Path):
    app = look_at("growth", lively_hub)
    whole = metrics(app)
    app.text_input(key="to").set_value(HALF).run()
    shown = metrics(app)
    # Two generations of three tenants, three agents and six episodes had been stored by then.
    assert (shown["Stored"], shown["Forgotten"], shown["Live at the end"]) == ("108", "0", "108")
    app.button(key="all-time").click().run()
    assert metrics(app) == whole


def test_a_colleague_who_opens_the_address_sees_the_same(look_at: Look, lively_hub: Path, monkeypatch):
    monkeypatch.setattr("streamlit.testing.v1.app_test.AppTest.switch_page", with_address(HALF))
    shown = metrics(look_at("growth", lively_hub))
    assert shown["Stored"] == "108"


def with_address(to: str):
    """Opens a page at an address with a range: AppTest forgets the parameters where a page is changed."""
    original = AppTest.switch_page

    def switch(app: AppTest, path: str) -> AppTest:
        original(app, path)
        app.query_params["to"] = to
        return app

    return switch


def test_a_time_that_is_none_is_said(look_at: Look, lively_hub: Path):
    app = look_at("growth", lively_hub)
    app.text_input(key="from").set_value("<b>noon</b>").run()
    assert not app.exception
    assert "This is no time. Write it as 2026-01-01 00:00:00." in words(app)
    app.text_input(key="from").set_value("2027-01-01").run()
    assert "ends before it begins" in words(app)


@pytest.mark.parametrize("by", ["agent", "generation"])
def test_agents_and_generations_are_told_apart(by: str, look_at: Look, lively_hub: Path):
    app = look_at("growth", lively_hub)
    app.button_group(key="by").set_value(by).run()
    assert metrics(app)["Stored"] == ("72" if by == "agent" else "216")


def test_some_tenants_are_added_up(look_at: Look, lively_hub: Path):
    app = look_at("growth", lively_hub)
    app.multiselect(key="tenants").set_value(["acme", "globex"]).run()
    assert metrics(app)["Stored"] == "144"


def test_a_mark_says_how_many_were_forgotten_of_whom_and_why():
    frame = pl.DataFrame(
        {"tenant_id": ["acme", "<b>x</b>"], "reason": [HOSTILE[0], "too old"], "forgotten": [1, 2_000]}
    )
    frame = frame.with_columns(time=pl.datetime(2026, 1, 1, time_unit="ms", time_zone="UTC"))
    figure = figures_growth.mark(figures_growth.blank("", "", ""), frame, zone="UTC")
    text = figure.data[0].text[1]
    assert text.startswith("&lt;b&gt;x&lt;/b&gt; forgot 2,000: too old<br>acme forgot 1: &lt;script")
    assert not figures_growth.mark(figures_growth.blank("", "", ""), frame.clear(), zone="UTC").data
