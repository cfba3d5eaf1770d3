"""Every notebook runs from its first cell to its last in a real kernel, and is saved with what it showed."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_A_MACHINE = re.compile(r"/(?:home|root|tmp|work|var|Users)/|[A-Z]:\\\\Users")
HEAD = re.compile("<th(?: [^>]*)?>(.*?)</th>", re.DOTALL)
VOLATILE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.timeout(900)
@each_notebook
def test_a_notebook_runs_in_a_fresh_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    saved = nbformat.read(path, as_version=4)
    fresh = copy.deepcopy(saved)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    folder = tmp_path / "here"
    folder.mkdir()
    # A cell takes some seconds on two free cores, and many times that where they are shared.
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    # What it shows now is of the same kinds as what it showed when it was saved.
    for now, then in zip(code_cells(fresh), code_cells(saved), strict=True):
        assert kinds(now) == kinds(then), now.source
        assert heads(now) == heads(then), f"saved before its tables were what they are: {now.source}"


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    """What a cell shows: kinds of content; what it says on the error stream may differ from run to run."""
    shown = {kind for output in cell.outputs for kind in output.get("data", ())}
    return shown | {"print" for output in cell.outputs if output.get("name") == "stdout"}


def heads(cell: nbformat.NotebookNode) -> list[str]:
    """The heads of its tables: names of columns, and the first line of a summary that is printed."""
    found = []
    for output in cell.outputs:
        page = "".join(output.get("data", {}).get("text/html", ""))
        found += [name for head in re.findall("<thead.*?</thead>", page, re.DOTALL) for name in HEAD.findall(head)]
        lines = output.text.splitlines() if output.get("name") == "stdout" else []
        found += [" ".join(line.split()) for line in lines if line.startswith("arm ")]
    return found


@each_notebook
def test_a_notebook_is_saved_as_it_ran(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert notebook.cells[0].cell_type == "markdown"


@each_notebook
def test_a_notebook_tells_nothing_of_the_machine_it_ran_on(path: Path):
    notebook = nbformat.read(path, as_version=4)
    assert OF_A_MACHINE.search(path.read_text()) is None
    for cell in notebook.cells:
        assert VOLATILE.search(cell.source) is None
