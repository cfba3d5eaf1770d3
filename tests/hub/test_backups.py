"""A backup holds what was acknowledged before it began, and says so when it is damaged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from fedlab import CorruptBackup, Episode, Hub, HubUnavailable, IncompatibleHub, InvalidRequest, MaxAge
from fedlab.hub import backups
from fedlab.hub.backups import verify_backup
from fedlab.hub.manifest import read_manifest
from fedlab.hub.parts import remove_dead

EMBEDDER = "hashing-16"


@pytest.fixture
def hub(tmp_path, episode):
    """Two tenants, something forgotten, someone alive."""
    with Hub(tmp_path / "hub", embedder=EMBEDDER, durability="off", keep_forgotten=timedelta(days=1)) as hub:
        hub.put([episode(n, id=f"x{n}", sources=("s",), metadata={"n": n}) for n in range(20)])
        hub.put([episode(n, id=f"y{n}", tenant_id="other") for n in range(5)])
        hub.forget("acme", ["x1", "x2"], reason="because")
        hub.spawn_agent("acme", "a", lifetime=60)
        yield hub


def tables(directory: Path) -> dict[str, list]:
    """Everything that a hub's database holds, in an order of its own."""
    connection = sqlite3.connect(directory / "hub.db")
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    held = {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    connection.close()
    return held


def test_fifty_backups_under_32_pushing_clients_verify_and_hold_all_that_was_acknowledged_before(tmp_path, vector):
    direction, acknowledged, over = vector(1)[:16], [], threading.Event()
    permits = threading.Semaphore(0)

    with Hub(tmp_path / "hub", embedder=EMBEDDER, durability="normal") as hub:

        def push(client: int) -> None:
            while permits.acquire() and not over.is_set():
                fields = {"tenant_id": f"t{client % 4}", "agent_id": f"a{client}", "task": "push", "input": "i" * 100}
                episode = Episode(**fields, output="o" * 100, reward=1.0, vector=direction)
                hub.put(episode)
                acknowledged.append(episode.id)

        clients = [threading.Thread(target=push, args=(number,)) for number in range(32)]
        for client in clients:
            client.start()
        base = None
        for number in range(50):
            permits.release(32)
            before = set(acknowledged)
            path = tmp_path / f"backup-{number}"
            manifest = hub.backup(path, base=base)
            base = path if number % 10 == 0 else base
            with Hub.restore(path, tmp_path / "restored", durability="off") as restored:
                held = set(restored.episodes()["id"])
                assert before <= held
                assert len(held) == manifest.episodes
                report = restored.verify()
                assert report.ok, report.problems
                assert report.episodes == len(held)
            shutil.rmtree(tmp_path / "restored")
        over.set()
        permits.release(32)
        for client in clients:
            client.join()
    assert len(acknowledged) > 1_500


def test_a_backup_is_one_file_that_needs_no_other_and_says_what_it_is(hub, tmp_path):
    manifest = hub.backup(tmp_path / "backup")
    info = hub.info()
    assert (manifest.hub_id, manifest.epoch, manifest.seq) == (info.hub_id, info.epoch, info.seq)
    assert (manifest.episodes, manifest.tenants, manifest.agents, manifest.changes) == (23, 2, 1, info.seq)
    assert sorted(each.name for each in (tmp_path / "backup").iterdir()) == ["hub.db", "manifest.json"]
    assert read_manifest(tmp_path / "backup") == verify_backup(tmp_path / "backup") == manifest
    assert f"full backup of hub {info.hub_id}" in str(manifest)
    assert tables(tmp_path / "backup") == tables(tmp_path / "hub")
    # Also put in its place by hand.
    (tmp_path / "by-hand").mkdir()
    shutil.copy(tmp_path / "backup" / "hub.db", tmp_path / "by-hand")
    with Hub(tmp_path / "by-hand") as copied:
        assert copied.verify().ok
        assert copied.episodes().equals(hub.episodes())


def test_what_is_written_during_a_backup_does_not_wait_for_it(hub, tmp_path, episode, monkeypatch):
    stored = []
    describe = backups._describe

    def meanwhile(connection, now):
        found = describe(connection, now)
        stored.append(hub.put(episode(99, id="late")))
        return found

    monkeypatch.setattr(backups, "_describe", meanwhile)
    manifest = hub.backup(tmp_path / "full")
    assert stored == [manifest.seq + 1]
    monkeypatch.setattr(backups, "_describe", describe)
    assert verify_backup(tmp_path / "full").seq == manifest.seq


def test_a_backup_is_nobody_elses_to_read_unless_its_directory_was(hub, tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    for name, mode in (("new", 0o700), ("open", 0o755)):
        hub.backup(tmp_path / "place" / ".." / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_the_key_goes_along_with_its_mode(hub, tmp_path):
    (hub.path / "hub.key").write_text("secret")
    (hub.path / "hub.key").chmod(0o600)
    hub.backup(tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup/hub.key").stat().st_mode) == 0o600
    assert "hub.key" in verify_backup(tmp_path / "backup").files


def change(hub: Hub, step: int, episode) -> None:
    """Something of everything that can happen between two backups."""
    hub.put([episode(100 * step + n, id=f"s{step}-{n}", agent_id=f"a{n % 2}", sources=("q",)) for n in range(6)])
    hub.forget("acme", [f"s{step - 1}-1", f"s{step}-2", f"x{step + 2}"], reason="old")
    hub.spawn_agent("acme", f"agent-{step}", lifetime=60)
    hub.set_retention("acme", MaxAge(days=step))
    if step % 2:
        hub.erase_episodes("acme", [f"s{step}-3", f"x{step + 10}", f"x{step + 2}"], reason="asked to")


def test_a_chain_of_incremental_backups_restores_what_a_full_one_restores(hub, tmp_path, episode):
    hub.backup(tmp_path / "0")
    for step in range(1, 6):
        change(hub, step, episode)
        manifest = hub.backup(tmp_path / str(step), base=tmp_path / str(step - 1))
        assert len(manifest.bases) == step
        assert sorted(manifest.files) == ["changes.db"]
        assert verify_backup(tmp_path / str(step)) == manifest
        hub.backup(tmp_path / "full")
        for name, source in (("one", str(step)), ("other", "full")):
            Hub.restore(tmp_path / source, tmp_path / name, clock=hub.clock).close()
        one, other = tables(tmp_path / "one"), tables(tmp_path / "other")
        for held in (one, other):
            held["changes"] = [row[:5] for row in held["changes"]]  # when it was restored is no matter
        assert one == other
        for name in ("one", "other", "full"):
            shutil.rmtree(tmp_path / name)


def test_an_incremental_backup_is_as_small_as_what_is_new(hub, tmp_path, episode):
    hub.put([episode(n, id=f"big{n}", output="o" * 2_000) for n in range(500)])
    full = hub.backup(tmp_path / "full")
    hub.put(episode(1, id="new"))
    more = hub.backup(tmp_path / "more", base=tmp_path / "full")
    assert more.files["changes.db"].bytes < full.files["hub.db"].bytes / 10


def test_a_flipped_byte_is_refused_by_name(hub, tmp_path, episode):
    (hub.path / "hub.key").write_text("secret")
    hub.backup(tmp_path / "full")
    hub.put(episode(99))
    hub.backup(tmp_path / "more", base=tmp_path / "full")
    rng = random.Random(3)
    for file in ("full/hub.db", "full/hub.key", "full/manifest.json", "more/changes.db", "more/manifest.json"):
        whole = (tmp_path / file).read_bytes()
        for at in rng.sample(range(len(whole)), min(25, len(whole))):
            data = bytearray(whole)
            data[at] ^= 1 << rng.randrange(8)
            (tmp_path / file).write_bytes(data)
            with pytest.raises(CorruptBackup, match=file) as caught:
                verify_backup(tmp_path / "more")
            assert caught.value.details["file"] == str(tmp_path / file)
            with pytest.raises(CorruptBackup, match=file):
                Hub.restore(tmp_path / "more", tmp_path / "restored")
            assert not (tmp_path / "restored").exists()
        (tmp_path / file).write_bytes(whole)
    verify_backup(tmp_path / "more")


def test_a_missing_file_is_refused_by_name(hub, tmp_path, episode):
    hub.backup(tmp_path / "full")
    hub.put(episode(99))
    hub.backup(tmp_path / "more", base=tmp_path / "full")
    for file in ("full/hub.db", "full/manifest.json", "more/changes.db", "more/manifest.json", "full"):
        (tmp_path / file).rename(tmp_path / "away")
        with pytest.raises(CorruptBackup, match=f"{file}.* is missing"):
            verify_backup(tmp_path / "more")
        (tmp_path / "away").rename(tmp_path / file)
    with pytest.raises(CorruptBackup, match="nowhere"):
        verify_backup(tmp_path / "nowhere")


def test_a_damaged_database_is_refused_also_where_its_checksum_is_right(hub, tmp_path):
    connection = sqlite3.connect(hub.path / "hub.db")
    connection.execute("UPDATE episodes SET output = 'forged' WHERE uid = 'x7'")
    connection.commit()
    connection.close()
    hub.backup(tmp_path / "backup")
    with pytest.raises(CorruptBackup, match="x7") as caught:
        verify_backup(tmp_path / "backup")
    assert caught.value.details["problems"]


def test_backups_of_two_hubs_are_not_mixed(hub, tmp_path, episode):
    with Hub(tmp_path / "hub2", embedder=EMBEDDER, durability="off") as other:
        other.put([episode(n) for n in range(50)])
        other.backup(tmp_path / "other")
        with pytest.raises(InvalidRequest, match=f"{hub.info().hub_id}.*{other.info().hub_id}"):
            hub.backup(tmp_path / "more", base=tmp_path / "other")
    assert not (tmp_path / "more").exists()
    hub.backup(tmp_path / "full")
    hub.put(episode(99))
    hub.backup(tmp_path / "more", base=tmp_path / "full")
    shutil.rmtree(tmp_path / "full")
    (tmp_path / "other").rename(tmp_path / "full")
    with pytest.raises(CorruptBackup, match=r"full/manifest.json.*another backup"):
        verify_backup(tmp_path / "more")


def test_a_base_from_before_a_restore_to_an_older_state_is_none(hub, tmp_path, episode):
    hub.backup(tmp_path / "old")
    hub.put([episode(n) for n in range(100, 120)])
    hub.backup(tmp_path / "new")
    hub.close()
    with Hub.restore(tmp_path / "old", hub.path, overwrite=True) as restored:
        restored.put([episode(n) for n in range(200, 240)])
        with pytest.raises(InvalidRequest, match="restored from an older one"):
            restored.backup(tmp_path / "more", base=tmp_path / "new")
        restored.backup(tmp_path / "more", base=tmp_path / "old")
        verify_backup(tmp_path / "more")


def test_a_taken_path_is_left_as_it_is(hub, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("text")
    for name in ("file", "full"):
        with pytest.raises(InvalidRequest, match="taken"):
            hub.backup(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "letter").read_text() == "text"
    (tmp_path / "empty").mkdir()
    hub.backup(tmp_path / "empty")
    verify_backup(tmp_path / "empty")
    hub.backup(tmp_path / "new" / "deep" / "er")


def test_a_backup_is_not_opened_as_a_hub_which_would_be_its_end(hub, tmp_path, episode):
    full, more = tmp_path / "full", tmp_path / "more"
    hub.backup(full)
    hub.put(episode(99))
    hub.backup(more, base=full)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*") if path.parent in (full, more)}
    for path in (full, more):
        for open_it in (lambda path: Hub(path), lambda path: Hub.restore(full, path, overwrite=True)):
            with pytest.raises(InvalidRequest, match="backup"):
                open_it(path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*") if path.parent in (full, more)} == before
    verify_backup(more)
    # Another program's manifest makes no backup of a hub.
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text("{}")
    Hub(tmp_path / "app", embedder=EMBEDDER).close()


def test_a_copy_of_a_hub_inside_of_its_own_directory_is_refused(hub, tmp_path):
    """An erasure would leave what is in it."""
    (tmp_path / "link").symlink_to(hub.path)
    before = sorted(hub.path.rglob("*"))
    for path in (hub.path / "backup", hub.path / "index" / "backup", tmp_path / "link" / "backup"):
        for copy in (hub.backup, hub.fork):
            with pytest.raises(InvalidRequest, match="inside"):
                copy(path)
    assert sorted(hub.path.rglob("*")) == before


def test_a_disk_that_is_full_is_said_and_nothing_is_left(hub, tmp_path, monkeypatch):
    hub.backup(tmp_path / "backup")
    hub.close()
    before = sorted(tmp_path.rglob("*"))

    def full(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    for owner, what in ((shutil, "copyfile"), (backups.rawcopy, "copy"), (os, "fsync")):
        with monkeypatch.context() as patch, Hub(tmp_path / "hub") as opened:
            patch.setattr(owner, what, full)
            calls = {
                "copyfile": [lambda: Hub.restore(tmp_path / "backup", tmp_path / "new"),
                             lambda: verify_backup(tmp_path / "backup")],
                "copy": [lambda: opened.fork(tmp_path / "new"), lambda: opened.backup(tmp_path / "new")],
                "fsync": [lambda: Hub.restore(tmp_path / "backup", tmp_path / "new"),
                          lambda: opened.fork(tmp_path / "new"), lambda: opened.backup(tmp_path / "new")],
            }[what]  # fmt: skip
            for call in calls:
                with pytest.raises(HubUnavailable, match="No space left"):
                    call()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_backup_that_fails_leaves_nothing(hub, tmp_path, monkeypatch):
    fsync = os.fsync

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HubUnavailable, match="No space left"):
        hub.backup(tmp_path / "backup")
    monkeypatch.setattr(os, "fsync", fsync)
    assert [each.name for each in tmp_path.iterdir()] == ["hub"]
    hub.backup(tmp_path / "backup")


KILL = """
import os, signal, sys
from pathlib import Path
from fedlab.hub import backups, parts

def fatal(*_args, **_keywords):
    os.kill(os.getpid(), signal.SIGKILL)

source, place, step, *base = sys.argv[1:]
owner = Path if hasattr(Path, step) else parts if hasattr(parts, step) else backups
setattr(owner, step, fatal)
backups.write_backup(Path(source), Path(place), 1, *map(Path, base))
"""


@pytest.mark.parametrize("step", ["_lock", "copy_database", "_write_news", "_write_rest", "replace"])
def test_what_a_killed_backup_left_goes_with_the_next_one_there(hub, tmp_path, step, episode):
    base = []
    if step == "_write_news":
        hub.backup(tmp_path / "base")
        base = [tmp_path / "base"]
    place = tmp_path / "o[r]d.d*"
    command = [sys.executable, "-c", KILL, hub.path / "hub.db", place, step, *base]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.glob(".*.part")
    assert left.name.startswith(".o[r]d.d*.")
    for other in ("o", "o[r]d", "o[r]d.d"):
        hub.backup(tmp_path / other)
        assert left.exists()
    hub.put(episode(99))
    assert hub.backup(place).seq == hub.info().seq
    assert not list(tmp_path.glob(".*"))
    verify_backup(place)


def test_a_backup_that_was_killed_after_its_last_step_is_whole(hub, tmp_path):
    command = [sys.executable, "-c", KILL, hub.path / "hub.db", tmp_path / "backup", "unlink"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    remove_dead(tmp_path)
    manifest = verify_backup(tmp_path / "backup")
    hub.backup(tmp_path / "more", base=tmp_path / "backup")
    with Hub.restore(tmp_path / "backup", tmp_path / "restored") as restored:
        assert restored.stats().episodes == manifest.episodes


SLOW = """
import sys
from pathlib import Path
from fedlab.hub import backups

real = backups._write_rest

def slow(*args):
    print("copied", flush=True)
    sys.stdin.readline()
    real(*args)

backups._write_rest = slow
backups.write_backup(Path(sys.argv[1]), Path(sys.argv[2]), 1)
"""


def test_a_backup_that_another_process_is_writing_is_left_alone(hub, tmp_path):
    command = [sys.executable, "-c", SLOW, hub.path / "hub.db", tmp_path / "backup"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "copied\n"
        hub.backup(tmp_path / "backup")  # it was quicker
        remove_dead(tmp_path)
        assert len(list(tmp_path.glob(".backup.*.part/hub.db"))) == 1
        shutil.rmtree(tmp_path / "backup")
        other.communicate("go on\n")
    assert other.returncode == 0
    verify_backup(tmp_path / "backup")
    assert not list(tmp_path.glob(".*"))


def test_backups_that_were_moved_together_still_belong_together(hub, tmp_path, episode):
    hub.backup(tmp_path / "a" / "full")
    hub.put(episode(99))
    hub.backup(tmp_path / "a" / "more", base=tmp_path / "a" / "full")
    (tmp_path / "a").rename(tmp_path / "b")
    verify_backup(tmp_path / "b" / "more")


def test_a_database_of_another_schema_is_not_backed_up_before_it_is_brought_up_to_date(hub, tmp_path):
    hub.close()
    connection = sqlite3.connect(hub.path / "hub.db")
    connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    connection.commit()
    connection.close()
    with pytest.raises(IncompatibleHub, match="open it once"):
        backups.write_backup(hub.path / "hub.db", tmp_path / "backup", 1)
    assert not (tmp_path / "backup").exists()
