"""The documentation names every command and shows the error tree as it is; its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from websockets.asyncio.client import connect as dial

from fedlab import Hub, errors, serve
from fedlab.cli import app
from fedlab.hub.values import Stats
from fedlab.net import SETTINGS, load_key, make_token
from fedlab.net.metrics import Metrics
from fedlab.net.protocol import METHODS
from fedlab.net.server import TOKEN_PROTOCOL
from fedlab.net.tokens import KEY_FILE

ROOT = Path(__file__).parents[1]


def test_every_command_is_documented():
    reference = (ROOT / "docs/reference.md").read_text()
    names = [each.name or each.callback.__name__ for each in app.registered_commands]
    assert [name for name in names if f"`fedlab {name}`" not in reference] == []


def test_every_setting_metric_and_method_of_the_wire_is_documented():
    reference = (ROOT / "docs/reference.md").read_text()
    for setting in SETTINGS:
        assert f"| `{setting.name}` |" in reference
        assert f"| {setting.help} |" in reference
    metrics = Metrics()
    metrics.render(Stats(tenants=0, episodes=0, forgotten=0, agents=0, agents_alive=0, seq=0, bytes=0, kept=0))
    names = [*METHODS, *(metric.name for metric in metrics.collect())]
    assert [name for name in names if not re.search(rf"`{name}(_total)?`", reference)] == []


async def test_the_conversation_of_the_reference_goes_as_it_is_written():
    reference = (ROOT / "docs/reference.md").read_text()
    lines = re.findall(r"^([<>]) (.*)", reference, re.MULTILINE)
    assert [side for side, _ in lines] == [">", "<"] * 4
    with Hub(":memory:", embedder="hashing") as hub:
        async with serve(hub, port=0) as server:
            key = load_key(hub.path / KEY_FILE)
            token = make_token(key, hub.info().hub_id, "acme", "agent")
            protocols = ["fedlab.v1.json", TOKEN_PROTOCOL + token]
            async with dial(server.url, subprotocols=protocols, proxy=None) as socket:
                for (_, said), (_, answer) in zip(lines[::2], lines[1::2], strict=True):
                    await socket.send(said)
                    expected = ".*".join(map(re.escape, answer.replace(": ", ":").replace(", ", ",").split("…")))
                    assert re.fullmatch(expected, str(await socket.recv()).replace(": ", ":").replace(", ", ","))


def test_the_error_tree_of_the_documentation_is_the_one_of_the_code():
    reference = (ROOT / "docs/reference.md").read_text()
    tree = [line.strip() for line in errors.__doc__.splitlines()[2:] if line.strip()]
    assert [line for line in tree if line not in reference] == []


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_world_and_the_learner_of_the_guide_pass_their_checks():
    guide = (ROOT / "docs/guide.md").read_text()
    (code,) = re.findall(r"```python\n(from fedlab.lab import Answer.*?)```", guide, re.DOTALL)
    assert len(code.splitlines()) <= 20 + 2  # with the checks
    exec(code, {})
