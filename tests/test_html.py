"""What a notebook shows: tables whose content stays text."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from fedlab import EphemeralAgent, Hub, MinReward, SimulatedClock, connect_sync
from fedlab._html import LONGEST, table
from fedlab.hub.values import RetentionReport, TransferReport, VerifyReport

HOSTILE = "<script>alert('x')</script>&\""


def test_a_hostile_text_is_shown_and_not_run():
    shown = table(HOSTILE, [(HOSTILE, HOSTILE)], head=[HOSTILE, HOSTILE])
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;") == 5


def test_numbers_read_well_and_long_texts_are_cut():
    shown = table("", [(1_234_567, 0.123456, None, True, "x" * (LONGEST + 1))], head=list("abcde"))
    for cell in (">1,234,567<", ">0.1235<", ">none<", ">yes<", f">{'x' * LONGEST} …<", ">e</th>"):
        assert cell in shown
    assert not shown.startswith("<b>")


class Page(HTMLParser):
    """Which tags a piece of HTML has, which text, and whether each opened tag is closed."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(value._repr_html_())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def harmless(value: object, *wanted: str) -> str:
    page = Page(value)
    assert set(page.tags) <= {"b", "table", "tr", "th", "td"}
    for text in wanted:
        assert text in page.text
    return page.text


async def test_a_hub_and_all_that_it_reports_are_shown_with_hostile_texts_as_text(tmp_path, episode):
    path = tmp_path / "<b onload=x>"
    with Hub(
        path, embedder="hashing", clock=SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC)), keep_forgotten=3600
    ) as hub:
        text = dict.fromkeys(("task", "input", "output"), HOSTILE)
        hub.put([episode(n, reward=n / 10, metadata={HOSTILE: HOSTILE}, sources=["a:b"], **text) for n in range(10)])
        memory = hub.recall("acme", HOSTILE, k=1)[0]
        assert harmless(memory, HOSTILE, "similarity", "agent-1").count("<script>") == 5
        harmless(memory.episode, HOSTILE, "a:b", "created_at", "2026-01-01 00:00:00+00:00")
        harmless(hub, "<b onload=x>", "hashing")

        policy = MinReward(0.5).where(task=HOSTILE)
        preview = hub.preview_retention("acme", policy)
        harmless(preview, HOSTILE, "5 of 10 episodes", "by reward", "of the last 1 query")
        hub.set_retention("acme", policy)
        harmless(hub.apply_retention(), "acme", "\n5\n")
        harmless(RetentionReport(removed={}, seq=1, failed={"acme": HOSTILE}), f"failed: {HOSTILE}")

        harmless(hub.backup(tmp_path / "one"), "Full backup", "SHA-256")
        harmless(hub.backup(tmp_path / "two", base=tmp_path / "one"), "Incremental backup", "../one")
        file = tmp_path / "<i>.jsonl"
        harmless(hub.export_tenant("acme", file), "Exported", "<i>.jsonl")
        harmless(hub.import_tenant(file), "Imported", "were here")
        harmless(TransferReport(what="imported", path="p", tenant_id="t", episodes=1, refused={"id": HOSTILE}), HOSTILE)

        agent = await EphemeralAgent.spawn(hub, tenant_id="acme", agent_id="agent-2")
        harmless(agent, "EphemeralAgent acme/agent-2", "memories in RAM")
        harmless(hub.recall("acme", HOSTILE, k=3), HOSTILE, "3 memories", "similarity", "agent-1")
        with connect_sync(hub) as connection:
            harmless(connection.recall("acme", HOSTILE, k=1), HOSTILE, "1 memory")
        harmless(await agent.query_memories(HOSTILE, k=2), HOSTILE, "2 memories")
        await agent.store_episode(task="t", input="i", output="o", reward=1)
        harmless(await agent.sync_with_hub(), "pushed\n1\n")
        await agent.destroy()
        harmless(agent, "destroyed")

        harmless(hub.erase_agent("acme", "agent-2", reason=HOSTILE), HOSTILE, "agent, BLAKE2b-128", "lives of agents")
        harmless(hub.verify(), "everything agrees")
    harmless(hub, "closed")
    harmless(VerifyReport(episodes=1, changes=1, problems=[HOSTILE]), "1 problem", HOSTILE)
