"""Makes the pictures of the dashboard in the README, from the hub that fills itself: `python docs/screenshots.py`."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGES = {
    "growth": "growth",
    "rewards": "rewards",
    "retention": "retention?tenants=keep-forever&policy=MinReward(reward%3D0.5)",
    "explorer": "explorer?tenant=keep-forever&q=read+lines+of+a+file&by_reward=0.5",
}
SHOWN = {"rewards": 1, "explorer": -1}
"""Which chart of a page is seen, if not the first."""
PORT = 8555


def main() -> None:
    """Start the dashboard, wait until the memory has grown, and take the pictures."""
    command = [sys.executable, "-m", "fedlab", "dashboard", "--no-browser", "--port", str(PORT)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])  # noqa: S603
    try:
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.set_default_timeout(120_000)
            _wait()
            page.goto(f"http://127.0.0.1:{PORT}/")
            page.get_by_test_id("stMetric").first.wait_for()
            time.sleep(120)
            for name, address in PAGES.items():
                page.goto(f"http://127.0.0.1:{PORT}/{address}")
                page.locator(".js-plotly-plot").first.wait_for()
                time.sleep(8)
                # What the picture is of: below the controls that lead to it.
                charts = page.locator(".js-plotly-plot")
                charts.nth(SHOWN.get(name, 0)).scroll_into_view_if_needed()
                time.sleep(1)
                page.screenshot(path=Path(__file__).with_name("screenshots") / f"{name}.png")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _wait() -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/_stcore/health").close()
            return
        except OSError:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
