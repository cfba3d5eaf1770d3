"""`make bench`: every measurement, beside the raw limit of this machine in the same run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

from benchmarks import backup, hub, lab, retention, wire


def import_seconds() -> float:
    """Of `import fedlab` in a fresh interpreter, without the interpreter's own start."""
    code = "import time; t = time.perf_counter(); import fedlab; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5))


def report(rows: Iterable[tuple]) -> None:
    """Print rows of what, measured value, its ratio to a limit, unit, goal (an upper bound if negative) and its unit."""
    print(f"{'what':40} {'measured':>14}  {'ratio':>8}  goal")
    for what, value, ratio, unit, goal, beside in rows:
        met = ratio <= -goal if goal < 0 else ratio >= goal
        bound = f"{'at most' if goal < 0 else 'at least'} {abs(goal):g} {beside}"
        print(f"{what:40} {value:>11,.2f} {unit:>2}  {ratio:>8.2f}  {bound}{'' if met else '   NOT MET'}", flush=True)


def main() -> None:
    os.environ["FEDLAB_RUNTIME_DIR"] = tempfile.mkdtemp()
    start = time.perf_counter()
    seconds = import_seconds()
    rows = [
        ("import fedlab", seconds, seconds, "s", -0.3, "s"),
        *wire.main(),
        *hub.main(),
        *backup.main(),
        *retention.main(),
        *lab.main(),
    ]
    report(rows)
    print(f"{time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
