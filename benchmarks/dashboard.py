"""The dashboard on a large hub, in a real Chromium: first paint of each page, a slider, memory, and what it costs others.

`python -m benchmarks.dashboard 1000000` is the full size: 20 tenants; the hub takes a quarter of an hour to build.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import data
from dashboard import PAGES
from fedlab import Episode, Hub, connect_sync
from tests.dashboard import browsers
from tests.processes import HubProcess

TENANTS, SESSIONS, RECALLS = 20, 10, 400
DAY = 86_400_000


def build(folder: Path, rows: int) -> Path:
    """A hub of 20 tenants, whose episodes were made in 50 generations over the last 100 days."""
    with Hub(folder / "hub", embedder="hashing") as hub:
        now = hub.clock.now()
        for part in range(0, rows, 2_000):
            tenant = f"tenant-{part // 2_000 % TENANTS:02}"
            batch = []
            for number, each in enumerate(data.episodes(2_000, tenant, seed=part), part):
                fields = {
                    name: getattr(each, name) for name in ("agent_id", "task", "input", "output", "reward", "vector")
                }
                made = now - (rows - number) * 100 * DAY // rows
                about = {"generation": number * 50 // rows}
                batch.append(Episode(tenant_id=tenant, created_at=made, metadata=about, **fields))
            hub.put(batch)
    return folder / "hub"


def paint(visitor: browsers.Visitor, path: str) -> float:
    """Seconds from the click to a page that stands still."""
    start = time.perf_counter()
    visitor.go(path)
    return time.perf_counter() - start


def recall_p95(url: str, until: threading.Event | None = None) -> float:
    """Of recalls by vector over the socket, seconds; so many, or until something is over."""
    queries, times = data.vectors(RECALLS, seed=3), []
    with connect_sync(url) as connection:
        for number in range(RECALLS * 100):
            start = time.perf_counter()
            connection.recall("tenant-00", queries[number % RECALLS])
            times.append(time.perf_counter() - start)
            if until.is_set() if until else number >= RECALLS:
                break
    return float(np.percentile(times, 95))


def memory(pid: int) -> float:
    """Bytes of a process that are in RAM and its own."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return float(fields["VmRSS"].split()[0]) * 1024


def main(rows: int = 100_000) -> list[tuple]:
    with tempfile.TemporaryDirectory() as name, browsers.browser() as chromium:
        folder = Path(name)
        process = HubProcess(build(folder, rows))
        with process, browsers.dashboard(folder, process.url) as url:
            visitor = browsers.Visitor(chromium, url)
            first = paint(visitor, "")
            paints = {page: paint(visitor, "" if page == "overview" else page) for page in PAGES}
            slowest = max(paints, key=paints.__getitem__)
            slider = move_slider(visitor, rows // TENANTS // 2)
            quiet = recall_p95(process.url)
            busy = while_watched(chromium, url, process.url)
            used = memory(url.pid)
    return [
        ("dashboard: the very first page after a start", first, first, "s", -2.0, "s"),
        (f"dashboard: first paint, the slowest ({slowest})", paints[slowest], paints[slowest], "s", -2.0, "s"),
        ("dashboard: a slider move", slider * 1e3, slider * 1e3, "ms", -500.0, "ms"),
        ("dashboard: its memory", used / 1e6, used / 1e6, "MB", -600.0, "MB"),
        (f"recall p95 while {SESSIONS} sessions watch", busy * 1e3, busy / quiet, "ms", -1.5, "x quiet"),
    ]


def move_slider(visitor: browsers.Visitor, kept: int) -> float:
    """Seconds until the numbers of the what-if have followed, the median of ten moves."""
    page = visitor.go(f"retention?tenants=tenant-00&policy=MaxEpisodes(n={kept})")
    times = []
    for _ in range(10):
        shown = page.get_by_test_id("stMetricValue").first.inner_text()
        start = time.perf_counter()
        page.get_by_role("slider").first.press("ArrowLeft")
        page.wait_for_function(
            "shown => document.querySelector('[data-testid=stMetricValue]').innerText !== shown", arg=shown
        )
        times.append(time.perf_counter() - start)
        visitor.settle()
        time.sleep(1)  # a key pressed while the page is still at work may go unheard
    return float(np.median(times))


def while_watched(chromium: browsers.Browser, url: str, hub: str) -> float:
    """The recall's p95 while sessions look at the live page."""
    windows = [browsers.Visitor(chromium, url) for _ in range(SESSIONS)]
    for window in windows:
        window.go()
    over, found = threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(recall_p95(hub, over)))
    thread.start()
    time.sleep(20)
    over.set()
    thread.join()
    return found[0]


if __name__ == "__main__":
    for row in main(*map(int, sys.argv[1:])):
        print(row)
