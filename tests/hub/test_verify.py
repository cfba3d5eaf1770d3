"""`verify` finds what SQLite's own check does not, and names it."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fedlab import Hub


@pytest.fixture
def closed(tmp_path, episode, vector) -> Path:
    with Hub(tmp_path, embedder="hashing") as hub:
        hub.put([episode(n, id=f"x{n}", vector=vector(n), sources=("s1", "s2"), metadata={"a": 1}) for n in range(20)])
        hub.put([episode(n, id=f"y{n}", tenant_id="other", vector=vector(n)) for n in range(3)])
        hub.forget("acme", ["x3"], reason="because")
        hub.spawn_agent("acme", "a", lifetime=5)
        hub.put(episode(99, id="last", vector=vector(99)))
        assert hub.verify().ok
    return tmp_path


def damage(directory: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(directory / "hub.db")
    connection.create_function("flip", 1, flipped)
    assert connection.execute(sql, values).rowcount == 1
    connection.commit()
    connection.close()


def flipped(value):
    """With one bit of the middle byte turned over; the text stays text."""
    if isinstance(value, str):
        middle = len(value) // 2
        return value[:middle] + chr(ord(value[middle]) ^ 1) + value[middle + 1 :]
    data = bytearray(value)
    data[len(data) // 2] ^= 1
    return bytes(data)


NUMBER = "(SELECT id FROM episodes WHERE uid = 'x7')"
STORED = "(SELECT seq FROM changes WHERE subject = 'x7' AND kind = 'episode_stored')"
FOUND = {
    **{f"{column} of an episode": (f"UPDATE episodes SET {column} = flip({column}) WHERE uid = 'x7'", "'x7'.*text or numbers")
       for column in ("task", "input", "output", "agent_id", "session_id", "metadata", "hash")},
    "id of an episode": ("UPDATE episodes SET uid = 'z' WHERE uid = 'x7'", "'z'"),
    "tenant of an episode": ("UPDATE episodes SET tenant_id = 'other' WHERE uid = 'x7'", "'x7'.*text or numbers"),
    "reward of an episode": ("UPDATE episodes SET reward = reward + 1e-9 WHERE uid = 'x7'", "'x7'.*text or numbers"),
    "time of an episode": ("UPDATE episodes SET created_at = created_at + 1 WHERE uid = 'x7'", "'x7'.*text or numbers"),
    "text that became bytes": ("UPDATE episodes SET output = CAST(output AS BLOB) WHERE uid = 'x7'", "'x7'"),
    "text that is no UTF-8": ("UPDATE episodes SET output = CAST(X'6F75E474' AS TEXT) WHERE uid = 'x7'", "'x7'"),
    "text that became nothing": ("UPDATE episodes SET metadata = '' WHERE uid = 'x7'", "'x7'"),
    "a vector": (f"UPDATE vectors SET vector = flip(vector) WHERE episode_id = {NUMBER}", "'x7'.*vector is damaged"),
    "a shorter vector": (f"UPDATE vectors SET vector = X'0102' WHERE episode_id = {NUMBER}", "'x7'.*vector is damaged"),
    "a vector gone": (f"DELETE FROM vectors WHERE episode_id = {NUMBER}", "'x7'.*vector is missing"),
    "a vector's hash": (f"UPDATE vectors SET hash = flip(hash) WHERE episode_id = {NUMBER}", "'x7'"),
    "a source": (f"UPDATE episode_sources SET source = 'q' WHERE episode_id = {NUMBER} AND position = 0", "'x7'"),
    "a source gone": (f"DELETE FROM episode_sources WHERE episode_id = {NUMBER} AND position = 1", "'x7'"),
    "an episode gone": ("DELETE FROM episodes WHERE uid = 'x7'", "the log says it is here"),
    **{f"{column} of a log row": (f"UPDATE changes SET {column} = flip({column}) WHERE seq = {STORED}", r"log: change \d+")
       for column in ("actor", "tenant_id", "digest", "hash")},
    "subject of a log row": (f"UPDATE changes SET subject = 'q7' WHERE seq = {STORED}", r"log: change \d+"),
    "kind of a log row": (f"UPDATE changes SET kind = 'episode_storex' WHERE seq = {STORED}", r"log: change \d+"),
    "log text that is no UTF-8": (f"UPDATE changes SET actor = CAST(X'E4E4' AS TEXT) WHERE seq = {STORED}", r"log: change \d+"),
    "log digest gone": (f"UPDATE changes SET digest = NULL WHERE seq = {STORED}", r"log: change \d+"),
    "time of a log row": (f"UPDATE changes SET at = at + 1 WHERE seq = {STORED}", r"log: change \d+"),
    "reason of a log row": ("UPDATE changes SET reason = flip(reason) WHERE kind = 'episode_forgotten'", "log: change .*'x3'"),
    "a log row gone": (f"DELETE FROM changes WHERE seq = {STORED}", "log: changes .* missing"),
    "the forgetting undone": ("DELETE FROM changes WHERE kind = 'episode_forgotten'", "log: changes .* missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_damage_is_found_and_named(closed, name):
    sql, named = FOUND[name]
    damage(closed, sql)
    with Hub(closed) as hub:
        report = hub.verify()
        assert not report.ok
        assert [problem for problem in report.problems if re.search(named, problem)], report.problems
        # Only what was damaged is named: everything else is still there and well.
        assert not [problem for problem in report.problems if "'x8'" in problem or "'y1'" in problem]
        assert str(report).startswith(f"{len(report.problems)} problem")


def test_a_flipped_byte_in_the_file_itself_is_found_and_named(closed):
    path = closed / "hub.db"
    data = bytearray(path.read_bytes())
    at = data.find(b"output 11")
    for bit in (0x01, 0x80):
        data[at + 3] ^= bit
        path.write_bytes(bytes(data))
        with Hub(closed) as hub:
            assert [problem for problem in hub.verify().problems if "'x11'" in problem]
        data[at + 3] ^= bit


def test_a_flipped_byte_in_a_vector_in_the_file_itself_is_found_and_named(closed, vector):
    path = closed / "hub.db"
    data = bytearray(path.read_bytes())
    at = data.find(vector(11).astype(np.float16).tobytes()[:300])
    assert at > 0
    data[at + 100] ^= 0x10
    path.write_bytes(bytes(data))
    with Hub(closed) as hub:
        assert [problem for problem in hub.verify().problems if "'x11'" in problem and "vector" in problem]


def test_a_flipped_byte_in_the_index_snapshot_is_found_and_named(tmp_path, episode, vector, small_graphs):
    with Hub(tmp_path, embedder="hashing", durability="off") as hub:
        hub.put([episode(n, vector=vector(n)) for n in range(100)])
        hub.recall("acme", vector(0), 1)
        small_graphs(hub)
    (snapshot,) = (tmp_path / "index").glob("*.usearch")
    data = bytearray(snapshot.read_bytes())
    data[len(data) // 2] ^= 1
    snapshot.write_bytes(bytes(data))
    with Hub(tmp_path) as hub:
        (problem,) = hub.verify().problems
        assert snapshot.name in problem
        assert "'acme'" in problem


def test_a_vector_that_is_wrong_in_ram_alone_is_found(hub, episode, vector):
    hub.put([episode(n, vector=vector(n)) for n in range(10)])
    hub.recall("acme", vector(0))
    hub._indexes.get("acme").view.tail[4] = hub._indexes.get("acme").view.tail[5]
    (problem,) = hub.verify().problems
    assert "index of tenant 'acme'" in problem


def test_a_healthy_hub_of_every_kind_of_change_is_ok_and_says_how_much_was_checked(closed):
    with Hub(closed) as hub:
        report = hub.verify()
        assert report.ok
        assert str(report) == "23 episodes and 29 changes agree"
        assert (report.episodes, report.changes) == (hub.stats().episodes, hub.info().seq)
