"""The application in a process of its own, and a real Chromium in front of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from fedlab.cli.dashboard import streamlit_command
from tests.dashboard.conftest import APP, ROOT
from tests.processes import free_port

ARTEFACTS = ROOT / "test-artefacts"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000
"""Ms that a page may need on a busy machine."""


def require() -> str:
    """Where Chromium is; without one the test is skipped, unless $FEDLAB_BROWSER says that it is required."""
    if CHROMIUM is None:
        if os.environ.get("FEDLAB_BROWSER") == "required":
            pytest.fail("no Chromium is installed, and $FEDLAB_BROWSER says that it is required")
        pytest.skip("no Chromium is installed: the dashboard is not tried in a browser (apt install chromium)")
    return CHROMIUM


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    path = require()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


class Served(str):
    """The address of a dashboard that runs.

    Args:
        url: Of its first page.
        pid: Its process.
    """

    def __new__(cls, url: str, pid: int) -> Served:
        self = super().__new__(cls, url)
        self.pid = pid
        return self


@contextmanager
def dashboard(folder: Path, *targets: object, own_rights: bool = True) -> Iterator[Served]:
    """Its address, as `fedlab dashboard` serves it."""
    port = free_port()
    start = {"targets": [str(each) for each in targets], "own_rights": own_rights}
    environment = {**os.environ, "FEDLAB_DASHBOARD": msgspec.json.encode(start).decode()}
    environment.pop("FEDLAB_TOKEN", None)
    log = folder / "dashboard.log"
    command = streamlit_command(APP, "127.0.0.1", port, browser=False)
    with (
        log.open("ab") as file,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=file, cwd=folder
        ) as process,
    ):
        try:
            wait_for_health(port, log)
            yield Served(f"http://127.0.0.1:{port}", process.pid)
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(30)


def wait_for_health(port: int, log: Path | None = None) -> None:
    """Until Streamlit answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "" if log is None else log.read_text()
            time.sleep(0.05)


class Visitor:
    """One browser window, and what went wrong in it.

    Args:
        browser: Whose window.
        url: Of the dashboard.
        width: Of the window, in pixels.
        dark: Whether the visitor likes it dark.
    """

    def __init__(self, browser: Browser, url: str, *, width: int = 1280, dark: bool = False) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", timezone_id="Asia/Tokyo"
        )
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.problems: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.url = url

    def go(self, path: str = "") -> Page:
        """Open a page by its address."""
        self.page.goto(f"{self.url}/{path}")
        self.settle()
        return self.page

    def click(self, title: str) -> Page:
        """Open a page from the side bar."""
        self.page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True).click()
        expect(self.page.locator("h1")).to_have_text(title, timeout=PATIENCE)
        self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until the page is drawn."""
        self.page.locator("h1").first.wait_for()
        self.page.wait_for_function("!document.querySelector('[data-testid=stApp][data-test-script-state=running]')")
        self.page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")

    def check(self) -> None:
        """Nothing went wrong: no box with an exception, no error in the console."""
        assert self.page.get_by_test_id("stException").count() == 0
        assert self.problems == []

    def keep(self, name: str) -> None:
        """A picture of the window, as an artefact."""
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")

    def metric(self, label: str) -> int:
        """A number that the page shows under a label."""
        box = self.page.get_by_test_id("stMetric").filter(has_text=label).get_by_test_id("stMetricValue").first
        return int(box.inner_text().replace(",", ""))

    def _heard(self, message: ConsoleMessage) -> None:
        # Streamlit looks for its own server below the path of a page that was opened by its address.
        if message.type == "error" and "/_stcore/" not in message.location.get("url", ""):
            self.problems.append(f"{message.text} {message.location}")
