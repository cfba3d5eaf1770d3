"""The dashboard on a large hub, in a real Chromium: first paint of each page, a slider, memory, and what it costs others.

`python -m benchmarks.dashboard 1000000 FOLDER` is the full size: 20 tenants. The hub takes some minutes to build; in a
folder that is named it is kept for the next time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks import data
from dashboard import PAGES
from fedlab import Episode, Hub, MaxEpisodes, SimulatedClock, connect_sync
from tests.dashboard import browsers
from tests.processes import HubProcess

TENANTS, SESSIONS, RECALLS, BATCH = 20, 10, 400, 2_000
RECALL = "recall"
"""Says that this process is the one that recalls."""
CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
HUB_CPUS = set(sorted(CPUS)[: max(1, len(CPUS) // 2)])
PAINTED = ", ".join(
    f"[data-testid=stMain] {each}"
    for each in (".js-plotly-plot .main-svg", "[data-testid=stMetricValue]", "[data-testid=stDataFrame] canvas")
)
"""The first chart, number or table of a page; where it has none, the box that says why."""


def build(folder: Path, rows: int) -> Path:
    """A hub of 20 tenants, whose episodes were made in 50 generations over the last 100 days; one of them forgets."""
    target = folder / "hub"
    if target.exists():
        return target
    shutil.rmtree(folder / "building", ignore_errors=True)  # of a build that was ended
    clock = SimulatedClock(datetime.now(UTC) - timedelta(days=100))
    with Hub(folder / "building", clock, embedder="hashing") as hub:
        before: dict[str, list[str]] = {}
        for part in range(0, rows, BATCH):
            tenant = f"tenant-{part // BATCH % TENANTS:02}"
            made = []
            for number, each in enumerate(data.episodes(BATCH, tenant, seed=part), part):
                fields = {name: getattr(each, name) for name in ("task", "input", "output", "reward", "vector")}
                made.append(
                    Episode(
                        tenant_id=tenant,
                        agent_id=f"agent-{part // BATCH:04}",
                        metadata={"generation": number * 50 // rows},
                        sources=before[tenant][number % BATCH :][:1] if number % 2 and tenant in before else (),
                        **fields,
                    )
                )
            clock.advance(days=100 * BATCH / rows)
            hub.spawn_agent(tenant, made[0].agent_id, lifetime=300)
            hub.sync_agent(tenant, made[0].agent_id, made, after=0, ending="destroyed", recalled=10)
            before[tenant] = [each.id for each in made]
        hub.set_retention("tenant-00", MaxEpisodes(rows * 9 // 10 // TENANTS))
        hub.apply_retention()
    return (folder / "building").rename(target)


def paint(visitor: browsers.Visitor, path: str) -> tuple[float, float]:
    """Seconds from the address to the first chart or number, and to a page that stands still."""
    start = time.perf_counter()
    visitor.page.goto(f"{visitor.url}/{path}")
    visitor.page.locator(PAINTED if path != "experiments" else "[data-testid=stAlert]").first.wait_for()
    first = time.perf_counter() - start
    visitor.settle()
    return first, time.perf_counter() - start


def recall_p95(url: str, seconds: float = 20) -> float:
    """Of recalls by vector over the socket, seconds; in a process of its own, beside the hub."""
    command = [sys.executable, "-m", "benchmarks.dashboard", RECALL, url, str(seconds), *map(str, HUB_CPUS)]
    return float(subprocess.check_output(command))


def recall(url: str, seconds: float, cpus: set[int]) -> float:
    """As `recall_p95`, of a hub that changes twice a second: what is watched has to be counted again."""
    queries, times, number = data.vectors(RECALLS, seed=3), [], 0
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)  # named: those that this process begins with may be the browsers'
    with connect_sync(url) as connection:
        end = (now := time.perf_counter()) + seconds
        while (start := time.perf_counter()) < end:
            if start > now + number / 2:
                connection.put(data.episodes(1, "tenant-01", seed=time.time_ns() % 2**32))
                number += 1
                start = time.perf_counter()
            connection.recall("tenant-00", queries[len(times) % RECALLS])
            times.append(time.perf_counter() - start)
    return float(np.percentile(times[len(times) // 10 :], 95))


def apart(hub: int) -> None:
    """Give the hub some CPUs, and the others to all else: neither dashboard nor browsers are on the hub's machine."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for process in Path("/proc").glob("[0-9]*"):
        line = [pid := int(process.name)]
        with contextlib.suppress(OSError):
            while line[-1] > 1:
                line.append(int(Path(f"/proc/{line[-1]}/stat").read_text().rsplit(")", 1)[1].split()[1]))
            if os.getpid() in line:
                for task in (process / "task").iterdir():
                    os.sched_setaffinity(int(task.name), HUB_CPUS if pid == hub else CPUS - HUB_CPUS or CPUS)


def memory(pid: int) -> float:
    """Bytes of a process that are in RAM and its own."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return float(fields["VmRSS"].split()[0]) * 1024


def main(rows: int = 100_000, folder: str | None = None) -> list[tuple]:
    with tempfile.TemporaryDirectory() as name, browsers.browser() as chromium:
        process = HubProcess(build(Path(folder or name), rows))
        other = HubProcess(build(Path(name) / "other", TENANTS * BATCH))
        firsts = []
        for _ in range(2):  # a hub that perhaps nobody has looked at yet, and one that was looked at and started again
            with process, browsers.dashboard(Path(name), process.url) as url:
                visitor = browsers.Visitor(chromium, url)
                firsts.append(paint(visitor, "")[0])
                visitor.page.close()  # or it goes on looking for a dashboard that has ended
        with process, other, browsers.dashboard(Path(name), process.url, other.url) as url:
            visitor = browsers.Visitor(chromium, url)
            paint(visitor, "")
            recall_p95(process.url, 2)  # the retention lab tries a policy with recent queries
            paints = {page: paint(visitor, "" if page == "overview" else page) for page in PAGES}
            for page, (first, settled) in paints.items():
                print(f"{page:12} {first:6.2f} s to the first chart or number, {settled:6.2f} s to the last")
            slowest = max(paints, key=paints.__getitem__)
            first = paints[slowest][0]
            slider = move_slider(visitor, rows // TENANTS // 2)
            visitor.page.close()
            apart(process.pid)
            quiet = recall_p95(process.url)
            windows = [browsers.Visitor(chromium, url) for _ in range(SESSIONS)]
            # What browsers cost a hub that nobody looks at: of that, no dashboard can do anything.
            elsewhere, busy = (while_watched(windows, f"{url}/?hub={hub}", process) for hub in (other.url, process.url))
            used = memory(url.pid)
    return [
        ("dashboard: the very first page of a hub", firsts[0], firsts[0], "s", -2.0, "s"),
        ("dashboard: the first page after a start", firsts[1], firsts[1], "s", -2.0, "s"),
        (f"dashboard: first paint, the slowest ({slowest})", first, first, "s", -2.0, "s"),
        ("dashboard: a slider move", slider * 1e3, slider * 1e3, "ms", -500.0, "ms"),
        ("dashboard: its memory", used / 1e6, used / 1e6, "MB", -600.0, "MB"),
        (f"recall p95 while {SESSIONS} sessions watch", busy * 1e3, busy / quiet, "ms", -1.5, "x quiet"),
        (
            "  of which watching costs",
            (busy - elsewhere) * 1e3,
            busy / elsewhere,
            "ms",
            -1.5,
            "x if they watch another",
        ),
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


def while_watched(windows: list[browsers.Visitor], address: str, hub: HubProcess) -> float:
    """The recall's p95 while sessions look at a live page."""
    for window in windows:
        window.page.goto(address)
        window.page.locator(PAINTED).first.wait_for()
    apart(hub.pid)  # the browsers' new processes, too
    return recall_p95(hub.url)


if __name__ == "__main__":
    if sys.argv[1:2] == [RECALL]:
        print(recall(sys.argv[2], float(sys.argv[3]), {*map(int, sys.argv[4:])}))
    else:
        for row in main(*map(int, sys.argv[1:2]), *sys.argv[2:]):
            print(row)
