"""In a real Jupyter kernel: the README's example as it stands, and cells that are interrupted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[1]

Cell = Callable[..., str]


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """`cell(code)` runs a cell and returns what it printed and its value, or the name of what it raised.

    With `interrupt=True` Ctrl-C comes as soon as the cell prints something.
    """
    folder = tmp_path_factory.mktemp("notebook")
    manager = KernelManager()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FEDLAB_RUNTIME_DIR": str(folder / "runtime")}
    manager.start_kernel(cwd=str(folder), env=environment, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    def run(code: str, interrupt: bool = False) -> str:
        asked = client.execute(dedent(code))
        shown: list[str] = []
        while True:
            message = client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != asked:
                continue
            if kind == "stream":
                shown.append(content["text"])
                if interrupt:
                    manager.interrupt_kernel()
            elif kind == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif kind == "error":
                shown.append(content["ename"])
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(shown)

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_ten_lines_of_the_readme_run_as_they_stand(cell: Cell):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert re.fullmatch(r"Found pattern X agent-\w+\n", cell(code))


RUN = """
import sys
sys.modules["ipywidgets"] = None  # the bar is text
from tests.lab.small import experiment
{}
"""


def test_a_run_shows_how_far_it_is_in_a_notebook(cell: Cell):
    shown = cell(RUN.format("results = await experiment().run('bar')"))
    assert "100%" in shown
    assert "12/12" in shown
    assert "12/12" not in cell("results = await experiment().run('none', progress=False)")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_shows_how_far_it_is_in_a_terminal_and_not_in_a_file(tmp_path: Path, terminal: bool):
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    command = [sys.executable, "-c", RUN.format("experiment().run_sync(sys.argv[1])"), str(tmp_path / "run")]
    with (tmp_path / "said").open("wb") as file:
        subprocess.run(command, cwd=ROOT, stderr=theirs if terminal else file, check=True)
    os.write(theirs, b"THE END")
    seen = b""
    while not seen.endswith(b"THE END"):
        seen += os.read(ours, 4_096)
    os.close(ours)
    os.close(theirs)
    assert terminal == (b"12/12" in seen)
    assert b"12/12" not in (tmp_path / "said").read_bytes()


@pytest.fixture(scope="module")
def lab(cell: Cell) -> Cell:
    """The kernel with a hub in it, and `count()`: lives by their status, and episodes."""
    said = cell("""
        import asyncio, time
        from fedlab import EphemeralAgent, Hub, connect_sync
        hub = Hub("interrupted", embedder="hashing")
        def count():
            return hub.agents()["status"].to_list()[-1], len(hub.episodes())
        async def forever():
            # The kernel looks for an interrupt when its loop wakes up.
            print("working", flush=True)
            while True:
                await asyncio.sleep(0.01)
    """)
    assert said == ""
    return cell


def test_an_interrupted_block_syncs_and_destroys_its_agent(lab: Cell):
    code = """
        async with EphemeralAgent.spawn(hub, tenant_id="acme") as agent:
            await agent.store_episode(task="t", input="block", output="o", reward=1)
            await forever()
    """
    assert lab(code, interrupt=True) == "working\nCancelledError"
    assert lab("count()") == "('destroyed', 1)"


def test_interrupted_work_is_synced_and_its_agent_goes_on(lab: Cell):
    code = """
        agent = await EphemeralAgent.spawn(hub, tenant_id="acme")
        async def work(agent):
            await agent.store_episode(task="t", input="work", output="o", reward=1)
            await forever()
        await agent.execute(work)
    """
    assert lab(code, interrupt=True) == "working\nCancelledError"
    assert lab("agent.unsynced, agent.alive, count()") == "(0, True, ('alive', 2))"
    assert lab("await agent.destroy(); count()") == "('destroyed', 2)"


def test_a_plain_cell_that_waits_for_a_hub_is_interrupted(lab: Cell):
    """Also after a frame: polars, once imported, would have the wait go on."""
    code = """
        connection = connect_sync(hub)
        connection.episodes()
        print("working", flush=True)
        for change in connection.subscribe():
            pass
    """
    assert lab(code, interrupt=True) == "working\nKeyboardInterrupt"
    assert lab("connection.stats().episodes") == "2"
    assert lab("connection.close(); hub.close(); Hub('interrupted').verify().ok") == "True"
