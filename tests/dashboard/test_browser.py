"""The dashboard in a real Chromium, on real hubs in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Browser, expect

from dashboard import PAGES
from fedlab import Episode, MaxEpisodes, RetentionPolicy, connect_sync
from fedlab.net import load_key, make_token
from fedlab.recall import RecallPolicy
from tests.dashboard import browsers
from tests.dashboard.browsers import PATIENCE, Served, Visitor, wait_for_health
from tests.dashboard.conftest import ROOT
from tests.lab.runs import outcome, write_run
from tests.processes import HubProcess, free_port

pytestmark = pytest.mark.timeout(600)

LATE = Episode(tenant_id="acme", agent_id="late", task="t", input="i", output="o", reward=0.5)
"""Stored while a page is looked at."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.browser() as chromium:
        yield chromium


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lively_hub: Path) -> Iterator[HubProcess]:
    """A running hub in which four generations of three tenants lived."""
    browsers.require()
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    shutil.copytree(lively_hub, tmp_path / "hub")
    with HubProcess(tmp_path / "hub", options=["--backup-dir", str(tmp_path / "backups")]) as process:
        yield process


@pytest.fixture
def url(hub: HubProcess, tmp_path: Path) -> Iterator[str]:
    with browsers.dashboard(tmp_path, hub.url) as url:
        yield url


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory, lively_hub: Path) -> Iterator[Served]:
    """Of a dashboard on a hub that no test changes."""
    browsers.require()
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(lively_hub, folder / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLAB_RUNTIME_DIR", str(folder / "runtime"))
        with (
            HubProcess(folder / "hub", options=["--backup-dir", str(folder / "backups")]) as process,
            browsers.dashboard(folder, process.url) as url,
        ):
            yield url


def test_every_page_opens_without_an_error_and_without_torch(browser: Browser, shared_url: Served):
    visitor = Visitor(browser, shared_url)
    visitor.go()
    for name, (title, _) in PAGES.items():
        visitor.click(title)
        visitor.keep(name)
        visitor.check()
    if (maps := Path(f"/proc/{shared_url.pid}/maps")).exists():
        assert "libtorch" not in maps.read_text()


def test_every_page_opens_by_its_address_narrow_and_dark(browser: Browser, shared_url: Served):
    width = 390
    visitor = Visitor(browser, shared_url, width=width, dark=True)
    for name in PAGES:
        visitor.go("" if name == "overview" else name)
        visitor.keep(f"{name}-narrow-and-dark")
        visitor.check()
        # Nothing is wider than the window: no page is pushed sideways.
        assert visitor.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width


def test_growth_is_seen_while_agents_push_in_two_windows(browser: Browser, url: str, hub: HubProcess):
    one, other = Visitor(browser, url), Visitor(browser, url)
    for visitor in (one, other):
        visitor.go()
    before = one.metric("Episodes")
    with connect_sync(hub.url) as connection:
        for number in range(3):
            connection.put(
                Episode(tenant_id="acme", agent_id="late", task="t", input=str(number), output="o", reward=0.5)
            )
    for visitor in (one, other):
        value = visitor.page.get_by_test_id("stMetric").filter(has_text="Episodes").get_by_test_id("stMetricValue")
        expect(value.first).to_have_text(f"{before + 3:,}", timeout=PATIENCE)
        visitor.check()


def test_the_data_of_a_live_chart_is_there_when_it_is_opened_and_stays(browser: Browser, shared_url: Served):
    visitor = Visitor(browser, shared_url)
    with visitor.page.expect_websocket() as socket:
        page = visitor.go()
    popover = page.get_by_test_id("stPopoverBody")
    page.get_by_role("button", name="Data").click()
    popover.get_by_test_id("stDataFrame").wait_for()
    for _ in range(2):  # the page is drawn again below it
        socket.value.wait_for_event("framereceived")
        expect(popover.get_by_test_id("stDataFrame")).to_be_visible()
    visitor.check()


def test_the_episode_that_was_chosen_is_the_one_that_was_seen_also_when_a_newer_one_came(
    browser: Browser, url: str, hub: HubProcess
):
    visitor = Visitor(browser, url)
    page = visitor.go("explorer?tenant=acme")
    with connect_sync(hub.url) as connection:
        newest = connection.recall("acme", None, 1, policy=RecallPolicy(recency=1.0))[0].id
        connection.put(LATE)
        box = page.get_by_test_id("stDataFrame").first.locator("canvas").first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 15, box["y"] + 52)  # of the first row
        page.get_by_text("The episode", exact=True).wait_for()
        visitor.settle()
    assert page.get_by_test_id("stCode").last.inner_text().strip() == newest
    assert f"episode={newest}" in page.url
    visitor.check()


def test_a_lasso_chooses_also_when_the_hub_has_changed_since_the_map_was_drawn(
    browser: Browser, url: str, hub: HubProcess
):
    visitor = Visitor(browser, url)
    page = visitor.go("explorer?tenant=acme")
    with connect_sync(hub.url) as connection:
        connection.put(LATE)
    page.set_viewport_size({"width": 1280, "height": 2400})
    area = page.locator(".js-plotly-plot").last.locator(".nsewdrag")
    area.wait_for()
    box = area.bounding_box()
    assert box is not None
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.04)]
    for number, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if not number:
            page.mouse.down()
    page.mouse.up()
    chosen = page.get_by_text("chosen, mean reward")
    chosen.wait_for()
    visitor.check()
    # A colleague who is sent the address sees the same.
    colleague = Visitor(browser, url).go(page.url.removeprefix(f"{url}/"))
    expect(colleague.get_by_text("chosen, mean reward")).to_have_text(chosen.inner_text(), timeout=PATIENCE)


def test_a_box_on_the_growth_is_the_time_of_what_stands_below_it(browser: Browser, shared_url: Served):
    visitor = Visitor(browser, shared_url)
    page = visitor.go("growth")
    before = visitor.metric("Stored")
    box = page.locator(".js-plotly-plot").first.locator(".nsewdrag").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 90, steps=8)
    page.mouse.up()
    expect(page.get_by_role("textbox", name="From")).not_to_have_value("", timeout=PATIENCE)
    visitor.settle()
    assert 0 < visitor.metric("Stored") < before
    assert "from=" in page.url
    visitor.check()


def test_a_hub_that_is_killed_and_comes_back_does_not_end_the_session(browser: Browser, url: str, hub: HubProcess):
    visitor = Visitor(browser, url)
    visitor.go()
    before = visitor.metric("Episodes")
    hub.kill()
    visitor.page.get_by_text("The hub does not answer").first.wait_for()
    visitor.keep("hub-away")
    hub.start()
    expect(visitor.page.get_by_text("The hub does not answer")).to_have_count(0, timeout=PATIENCE)
    visitor.page.get_by_test_id("stMetric").first.wait_for()
    assert visitor.metric("Episodes") == before
    visitor.check()


def test_the_what_if_equals_the_preview_and_applies_only_by_the_typed_name(browser: Browser, url: str, hub: HubProcess):
    visitor = Visitor(browser, url)
    page = visitor.go("retention?tenants=acme&policy=MaxEpisodes(n=20)")
    with connect_sync(hub.url) as connection:
        first = connection.preview_retention("acme", MaxEpisodes(20)).removed
        assert visitor.metric("Would go") == first > 0
        text = page.get_by_role("textbox", name="Policy")
        page.get_by_role("slider").first.press("ArrowRight")
        expect(text).not_to_have_value("MaxEpisodes(n=20)", timeout=PATIENCE)
        second = connection.preview_retention("acme", RetentionPolicy.parse(text.input_value())).removed
        assert second != first
        expect(page.get_by_test_id("stMetricValue").first).to_have_text(f"{second:,}", timeout=PATIENCE)
        visitor.settle()
        page.get_by_role("button", name="Apply now").click()
        sure = page.get_by_role("button", name=f"Forget {second:,} episodes")
        expect(sure).to_be_disabled(timeout=PATIENCE)
        name = page.get_by_label("Type the tenant's name")
        name.fill("globex")
        expect(sure).to_be_disabled()
        name.fill("acme")
        expect(sure).to_be_enabled(timeout=PATIENCE)
        visitor.keep("retention-question")
        before = connection.stats("acme").episodes
        sure.click()
        page.get_by_text("episodes were forgotten").wait_for()
        assert connection.stats("acme").episodes == before - second
    visitor.check()


def test_an_observer_sees_its_tenant_and_no_other(browser: Browser, tmp_path: Path, hub: HubProcess):
    with connect_sync(hub.url) as connection:
        hub_id = connection.info().hub_id
    token = make_token(load_key(hub.data / "hub.key"), hub_id, "acme", "observer", None, 3600)
    with browsers.dashboard(tmp_path, hub.url, own_rights=False) as url:
        visitor = Visitor(browser, url)
        page = visitor.go()
        page.get_by_text("a token is needed").first.wait_for()
        field = page.get_by_role("textbox", name="Token")
        field.fill(token)
        field.press("Enter")
        page.get_by_test_id("stMetric").first.wait_for()
        assert visitor.metric("Episodes") == 72
        for name, (title, _) in PAGES.items():
            page = visitor.click(title)
            assert "globex" not in page.locator("body").inner_text(), name
            assert page.get_by_role("button", name="Apply now").count() == 0
            visitor.check()
        # The address of a view of another tenant, in the same session: the token is kept by the session alone.
        page.evaluate("history.pushState({}, '', '/rewards?tenants=globex&tenant=globex')")
        page.evaluate("window.dispatchEvent(new PopStateEvent('popstate'))")
        visitor.settle()
        assert "globex" not in page.locator("[data-testid=stMain]").inner_text()


def test_a_stored_script_shows_as_text(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile_hub: Path
):
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    with browsers.dashboard(tmp_path, hostile_hub) as url:
        visitor = Visitor(browser, url)
        visitor.go()
        for title, _ in PAGES.values():
            page = visitor.click(title)
            assert page.title() != "broken into"
            assert page.locator("[data-testid=stMain] script").count() == 0
            visitor.check()
        # Tasks are the groups of this chart: what was stored stands there, letter for letter.
        page = visitor.go("rewards?groups=task")
        page.locator(".js-plotly-plot text").first.wait_for()
        assert "<script>" in page.locator("[data-testid=stMain]").inner_html().replace("&lt;", "<").replace("&gt;", ">")


def test_what_was_opened_in_the_side_bar_is_still_open_after_a_reload(browser: Browser, url: str, tmp_path: Path):
    write_run(tmp_path / "my-run", [outcome(arm, 0, 0, 1.0) for arm in "ab"])
    visitor = Visitor(browser, url)
    page = visitor.go()
    page.get_by_text("Open another").click()
    page.get_by_role("textbox", name="URL of a hub").fill(str(tmp_path / "my-run"))
    page.keyboard.press("Enter")
    page.get_by_text("run my-run is open").wait_for()
    page = visitor.click("Experiments")
    for _ in range(2):
        page.get_by_text("Reward by generation").first.wait_for()
        page.reload()
    visitor.check()


def test_a_figure_is_saved_as_a_picture_and_a_frame_as_a_file(browser: Browser, tmp_path: Path):
    write_run(tmp_path / "my-run", [outcome(arm, 0, 0, 1.0) for arm in "ab"])
    with browsers.dashboard(tmp_path, tmp_path / "my-run") as url:
        visitor = Visitor(browser, url)
        page = visitor.go("experiments?section=Memory+and+cost")
        chart = page.locator(".js-plotly-plot").first
        chart.hover()
        with page.expect_download() as picture:
            chart.locator("[data-title*=PNG i]").click()
        assert picture.value.path().read_bytes().startswith(b"\x89PNG")
        page = visitor.go("experiments?section=Download")
        with page.expect_download() as frame:
            page.get_by_role("button", name="episodes.parquet").click()
        assert pl.read_parquet(frame.value.path()).height == 2
        visitor.check()


def test_the_keyboard_reaches_and_moves_what_the_mouse_does(browser: Browser, shared_url: Served):
    visitor = Visitor(browser, shared_url)
    page = visitor.go("retention?tenants=acme&policy=MaxEpisodes(n=20)")

    def until(told: str) -> None:
        """Press Tab until something that tells this has the focus."""
        for _ in range(60):
            page.keyboard.press("Tab")
            if told in page.evaluate("(e => `${e.type} ${e.innerText}`)(document.activeElement)"):
                return
        raise AssertionError(f"Tab never comes to {told}")

    before = visitor.metric("Would go")
    until("range")  # the slider
    page.keyboard.press("ArrowRight")
    value = page.get_by_test_id("stMetricValue").first
    expect(value).not_to_have_text(f"{before:,}", timeout=PATIENCE)
    visitor.settle()
    until("Apply now")
    page.keyboard.press("Enter")
    page.get_by_label("Type the tenant's name").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Type the tenant's name")).to_have_count(0)
    until("Data")
    visitor.check()


def test_without_a_target_there_is_a_hub_that_fills_itself(browser: Browser, tmp_path: Path):
    port = free_port()
    command = [sys.executable, "-m", "fedlab", "dashboard", "--no-browser", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "FEDLAB_RUNTIME_DIR": str(tmp_path / "runtime")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        wait_for_health(port)
        visitor = Visitor(browser, f"http://127.0.0.1:{port}")
        page = visitor.go()
        tenants = page.get_by_test_id("stMetric").filter(has_text="Tenants").get_by_test_id("stMetricValue")
        expect(tenants.first).to_have_text("4", timeout=3 * PATIENCE)
        assert visitor.metric("Agents alive") > 0
        visitor.check()
    finally:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    assert process.wait(60) == 0
    assert not list(tmp_path.glob("fedlab-dashboard-*"))  # the hub has ended, and its directory is gone
