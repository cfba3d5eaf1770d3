"""`python -m benchmarks.notebooks`: how long each notebook takes, and the effects on ToolChoice that the tests look for.

About six minutes, therefore not a part of `make bench`. The embeddings are taken to be in the cache of this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TOOLS = ("beats_no_memory", "helps_a_copier", "a_window_hurts")
"""Tests of 9 arms under 10 seeds, 20 generations of 100 tasks each."""


def measure_notebook(path: Path) -> float:
    """Seconds from the start of the kernel to the end of the last cell."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(nbformat.read(path, 4), kernel_name="python3", timeout=600, resources=place).execute()
    return time.perf_counter() - began


def measure_tools() -> float:
    """Seconds of the whole set, with the start of pytest."""
    began = time.perf_counter()
    tests = ["tests/lab/test_effects.py", "-k", " or ".join(TOOLS)]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> Iterator[tuple]:
    os.environ |= {"PYTHONPATH": str(ROOT), "FEDLAB_RUNTIME_DIR": tempfile.mkdtemp()}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        seconds = measure_notebook(path)
        yield f"notebook {path.stem}", seconds, seconds, "s", -60, "s"
    seconds = measure_tools()
    yield "lab: all effects on ToolChoice", seconds, seconds, "s", -180, "s"


if __name__ == "__main__":
    from benchmarks.__main__ import report

    report(main())
