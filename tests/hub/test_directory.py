"""What a hub opens, what it refuses, and that a refusal says what to do."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedlab import CorruptHub, FedlabError, Hub, HubLocked, IncompatibleHub, InvalidRequest


@pytest.fixture
def closed(tmp_path, episode) -> Path:
    """The directory of a closed hub with some pages of content."""
    with Hub(tmp_path / "hub", embedder="hashing-16") as hub:
        hub.put([episode(n, output="output " * 60, sources=("s",), metadata={"n": n}) for n in range(60)])
        hub.spawn_agent("acme", "a", lifetime=5)
    return tmp_path / "hub"


def contents(hub: Hub) -> tuple:
    memories = hub.recall("acme", "task", 100, vectors=True)
    return hub.episodes().rows(), sorted((each.id, each.vector.tobytes(), each.sources) for each in memories)


def test_a_closed_hub_is_whole_in_its_database_file(closed, tmp_path):
    assert not list(closed.glob("hub.db-*"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/hub.db").write_bytes((closed / "hub.db").read_bytes())
    with Hub(tmp_path / "copy") as copy, Hub(closed) as hub:
        assert contents(copy) == contents(hub)
        assert copy.verify().ok


def test_a_second_process_is_refused_and_told_who_has_it(closed):
    with Hub(closed):
        code = f"import fedlab\ntry: fedlab.Hub({str(closed)!r})\nexcept fedlab.HubLocked as error: print(error.details['pid'], error)"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"{os.getpid()} ")
        assert "URL" in said
    assert (
        subprocess.run(
            [sys.executable, "-c", f"import fedlab; fedlab.Hub({str(closed)!r}).close()"], check=False
        ).returncode
        == 0
    )


def test_the_same_process_is_refused_too_also_by_another_name(closed, tmp_path):
    (tmp_path / "link").symlink_to(closed)
    with Hub(closed) as hub:
        for path in (closed, tmp_path / "link", closed / ".." / "hub"):
            with pytest.raises(HubLocked):
                Hub(path)
        assert hub.stats().episodes == 60
    Hub(tmp_path / "link").close()


def test_a_refused_opening_leaves_the_directory_free(closed):
    for wrong in ({"embedder": "hashing-17"}, {"durability": "maybe"}):
        with pytest.raises(FedlabError):
            Hub(closed, **wrong)
    with Hub(closed) as hub:
        assert hub.verify().problems == []


def test_another_embedder_is_refused_with_the_way_out(closed):
    with pytest.raises(IncompatibleHub, match="hashing-16.*hashing-32.*without an embedder") as caught:
        Hub(closed, embedder="hashing-32")
    assert caught.value.details["held"] == "hashing-16"
    with Hub(closed, embedder="hashing-16") as hub:
        assert hub.dimension == 16


def test_another_schema_is_refused(closed):
    edit(closed, "UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(IncompatibleHub, match="99"):
        Hub(closed)


@pytest.mark.parametrize("path", ["ws://127.0.0.1:8443", "postgresql://host/db", "https://example.org"])
def test_a_url_is_no_directory(path):
    with pytest.raises(InvalidRequest, match="connect"):
        Hub(path)


def test_a_path_that_is_or_goes_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "hub"):
        with pytest.raises(InvalidRequest, match="file"):
            Hub(path)


@pytest.mark.parametrize("name", ["what? 100% #1", "é%20 x", "a&b=c", "new\nline", "':memory:'", "file:x?mode=ro"])
def test_any_name_of_a_directory_will_do(tmp_path, episode, name):
    for number in (1, 2):
        with Hub(tmp_path / name, embedder="hashing") as hub:
            hub.put(episode(number))
            assert hub.stats().episodes == number
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "hub.db").exists()


def test_a_relative_path_means_the_same_place_after_chdir(tmp_path, episode, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Hub("lab", embedder="hashing") as hub:
        (tmp_path / "elsewhere" / "lab").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        hub.put(episode(1))
        assert hub.recall("acme", "task")
        assert hub.verify().problems == []
        hub.snapshot()
    assert list((tmp_path / "elsewhere" / "lab").iterdir()) == []


def test_hubs_in_memory_are_apart_and_leave_nothing(episode):
    with Hub(":memory:", embedder="hashing") as one, Hub(":memory:", embedder="hashing") as two:
        one.put(episode(1))
        assert (one.stats().episodes, two.stats().episodes) == (1, 0)
        paths = [one.path, two.path]
    assert [path.exists() for path in paths] == [False, False]
    assert not Path(":memory:").exists()


# --- damage -------------------------------------------------------------------------------------------------


def edit(directory: Path, *statements: str) -> None:
    connection = sqlite3.connect(directory / "hub.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def overwrite(at: int, data: bytes):
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return change


def another_database(path: Path) -> None:
    path.unlink()
    edit(path.parent, "CREATE TABLE notes (text)")


REFUSED = {
    "header of noise": overwrite(0, b"\xde\xad" * 50),
    "all noise": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
    "text": lambda path: path.write_text("this is no database\n" * 1_000),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "last page gone": lambda path: os.truncate(path, path.stat().st_size - 4096),
    "not on a page's end": lambda path: os.truncate(path, path.stat().st_size - 1000),
    "one page left": lambda path: os.truncate(path, 4096),
    "a few bytes left": lambda path: os.truncate(path, 10),
    "nothing left": lambda path: os.truncate(path, 0),
    "schema page of zeros": overwrite(100, b"\0" * 3_900),
    "another database": another_database,
    "a table gone": lambda path: edit(path.parent, "DROP TABLE vectors"),
    "log shortened in the middle": lambda path: edit(path.parent, "DELETE FROM changes WHERE seq = (SELECT max(seq) - 1 FROM changes)"),
    "last log row changed": lambda path: edit(path.parent, "UPDATE changes SET actor = 'x' WHERE seq = (SELECT max(seq) FROM changes)"),
    "identity gone": lambda path: edit(path.parent, "DELETE FROM meta"),
    "identity broken": lambda path: edit(path.parent, "UPDATE meta SET value = 'many' WHERE key = 'dimension'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_database_is_refused_with_the_way_back(closed, name):
    REFUSED[name](closed / "hub.db")
    before = (closed / "hub.db").read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptHub, match=r"(?i)backup.*cp -a|fedlab .*backup|restore"):
            Hub(closed)
    assert (closed / "hub.db").read_bytes() == before


def test_a_hub_that_died_while_it_was_being_made_is_made_again(tmp_path, episode):
    tmp_path.joinpath("hub.db").touch()
    with Hub(tmp_path, embedder="hashing") as hub:
        hub.put(episode(1))
    header_only = tmp_path / "header-only"
    header_only.mkdir()
    edit(header_only, "PRAGMA journal_mode=WAL", "VACUUM")
    with Hub(header_only, embedder="hashing") as hub:
        hub.put(episode(1))
        assert hub.verify().problems == []


def outcome(directory: Path, expected: tuple) -> str:
    """What became of a damaged hub; only what is a fault of the program fails."""
    try:
        with Hub(directory) as hub:
            report = hub.verify()
            if report.ok:
                assert contents(hub) == expected, "verify said ok and something is different"
                return "harmless"
            for look in (lambda: contents(hub), hub.stats, hub.agents, hub.read_changes):
                with contextlib.suppress(FedlabError):
                    look()
            return "found"
    except FedlabError:
        return "refused"


@pytest.mark.parametrize("kind", ["a page of zeros", "flipped bits"])
def test_damage_anywhere_is_refused_or_found_or_harmless_and_never_a_stack_trace(closed, kind):
    with Hub(closed) as hub:
        expected = contents(hub)
    whole = (closed / "hub.db").read_bytes()
    rng = random.Random(5)
    outcomes, in_content = [], []
    places = range(0, len(whole), 4096) if kind == "a page of zeros" else sorted(rng.sample(range(len(whole)), 120))
    for at in places:
        data = bytearray(whole)
        data[at : at + 4096 if "zeros" in kind else at + 1] = (
            b"\0" * 4096 if "zeros" in kind else bytes([data[at] ^ 1 << rng.randrange(8)])
        )
        (closed / "hub.db").write_bytes(bytes(data))
        outcomes.append(outcome(closed, expected))
        if any(whole[at : at + 4096 if "zeros" in kind else at + 1]):
            in_content.append(outcomes[-1])
        for name in ("hub.db-wal", "hub.db-shm"):
            (closed / name).unlink(missing_ok=True)
    # Zero bytes are mostly unused space, where damage harms nothing; a byte that says something is missed.
    assert len(in_content) >= 25
    assert in_content.count("found") + in_content.count("refused") >= 0.9 * len(in_content)


def test_the_size_of_a_hub_can_be_asked_while_its_index_renames_and_removes_files(hub):
    (hub.path / "index").mkdir(exist_ok=True)
    finished = threading.Event()

    def churn() -> None:
        while not finished.is_set():
            for work in (Path.touch, Path.unlink):
                for number in range(50):
                    work(hub.path / f"index/{number}.new")

    with ThreadPoolExecutor(1) as thread:
        churning = thread.submit(churn)
        try:
            assert all(hub.stats().bytes for _ in range(200))
        finally:
            finished.set()
        churning.result(20)
