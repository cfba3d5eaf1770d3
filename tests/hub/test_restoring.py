"""A restore puts back what the backup holds, or leaves what is there; what was erased stays erased."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedlab import CorruptBackup, FedlabError, Hub, HubLocked, IdConflict, InvalidRequest, SimulatedClock, UnknownTenant
from fedlab.hub.directory import STAGE

EMBEDDER = "hashing-16"


def ids(hub: Hub) -> set[str]:
    return set(hub.episodes()["id"])


def opened(path: Path, **options: object) -> Hub:
    return Hub(path, embedder=EMBEDDER, durability="off", **options)


@pytest.fixture
def closed(tmp_path, episode) -> Path:
    """The directory of a hub that was backed up and went on; the backup is beside it."""
    with opened(tmp_path / "hub") as hub:
        hub.put([episode(n, id=f"x{n}") for n in range(5)])
        hub.backup(tmp_path / "backup")
        hub.put(episode(9, id="later"))
    return tmp_path / "hub"


def test_a_restored_hub_is_the_hub_of_then_in_its_next_epoch(closed, tmp_path, episode):
    with Hub.restore(tmp_path / "backup", tmp_path / "new") as hub:
        assert ids(hub) == {f"x{n}" for n in range(5)}
        assert hub.verify().ok
        last = hub.read_changes(limit=None)[-1]
        assert (last.kind, last.subject) == ("hub_restored", hub.info().hub_id)
        assert hub.info().epoch == 2
        assert len(hub.recall("acme", "task 1", k=10)) == 5
        hub.put(episode(10))
        hub.backup(tmp_path / "second")
    with Hub.restore(tmp_path / "second", tmp_path / "newer") as hub:
        assert hub.info().epoch == 3
    # The epoch is beyond that of everyone who has ever been this hub.
    with Hub.restore(tmp_path / "backup", tmp_path / "newer", overwrite=True) as hub:
        assert hub.info().epoch == 4


def test_a_copy_of_a_stopped_hubs_directory_is_the_hub(closed, tmp_path, episode):
    """The document's plain way: stop, `cp`, start."""
    subprocess.run(["cp", "-a", str(closed), str(tmp_path / "copy")], check=True)
    with opened(closed) as hub:
        hub.put(episode(10, id="after"))
    with opened(tmp_path / "copy") as hub:
        assert ids(hub) == {f"x{n}" for n in range(5)} | {"later"}
        assert hub.verify().ok
    shutil.rmtree(closed)
    subprocess.run(["cp", "-a", str(tmp_path / "copy"), str(closed)], check=True)
    with opened(closed) as hub:
        assert ids(hub) == {f"x{n}" for n in range(5)} | {"later"}
        assert hub.verify().ok


def test_what_is_there_is_refused_and_left_as_it_is(closed, tmp_path):
    before = {path: path.read_bytes() for path in closed.rglob("*") if path.is_file()}
    with pytest.raises(InvalidRequest, match="overwritten"):
        Hub.restore(tmp_path / "backup", closed)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a").write_text("text")
    (tmp_path / "file").write_text("text")
    for name in ("letters", "file"):
        with pytest.raises(InvalidRequest, match="other things than a hub"):
            Hub.restore(tmp_path / "backup", tmp_path / name, overwrite=True)
    with opened(closed) as hub, pytest.raises(HubLocked):
        Hub.restore(tmp_path / "backup", closed, overwrite=True)
    assert "later" in str(hub.path.joinpath("hub.db").read_bytes())
    assert {path: path.read_bytes() for path in before} == before
    assert [each.name for each in (tmp_path / "letters").iterdir()] == ["a"]


def test_nothing_is_restored_or_forked_to_memory(closed, tmp_path):
    """It would be gone before anyone could look."""
    with opened(closed) as hub:
        for call in (lambda: hub.fork(":memory:"), lambda: Hub.restore(tmp_path / "backup", ":memory:")):
            with pytest.raises(InvalidRequest, match="memory"):
                call()


def test_a_restore_over_a_hub_that_went_on_says_what_is_replaced(closed, tmp_path, caplog):
    Hub.restore(tmp_path / "backup", closed, overwrite=True).close()
    assert "had come to change 8 (epoch 1): what it has after the backup, of change 7 (epoch 1)" in caplog.text
    with opened(closed) as hub:
        hub.backup(tmp_path / "second")
    caplog.clear()
    Hub.restore(tmp_path / "second", closed, overwrite=True).close()
    assert "had come to" not in caplog.text


def test_a_backup_of_another_hub_is_refused_by_name(closed, tmp_path, episode):
    with opened(tmp_path / "other") as other:
        other.put(episode(1))
        other.backup(tmp_path / "of-other")
        name = other.info().hub_id
    with pytest.raises(InvalidRequest, match=name) as caught:
        Hub.restore(tmp_path / "of-other", closed, overwrite=True)
    assert caught.value.details["backup_of"] == name
    with opened(closed) as hub:
        assert "later" in ids(hub)


def test_a_backup_that_is_damaged_replaces_nothing(closed, tmp_path):
    (tmp_path / "backup" / "hub.db").write_bytes((tmp_path / "backup" / "hub.db").read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptBackup, match=r"backup/hub.db"):
        Hub.restore(tmp_path / "backup", closed, overwrite=True)
    with opened(closed) as hub:
        assert "later" in ids(hub)


DIE = """
import os, sys
import fedlab
hub = fedlab.Hub(sys.argv[1])
episode = {"tenant_id": "acme", "agent_id": "a", "task": "t", "input": "i", "output": "o", "reward": 1}
hub.put([fedlab.Episode(**episode, id=f"wal{n}") for n in range(50)])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("damage", ["none", "database gone", "database of noise", "log of noise"])
def test_a_restore_over_a_stale_log_is_not_undone_by_it(closed, tmp_path, damage):
    subprocess.run([sys.executable, "-c", DIE, str(closed)], check=False)
    assert (closed / "hub.db-wal").stat().st_size
    if damage == "database gone":
        (closed / "hub.db").unlink()
        (closed / "index").mkdir()
    elif damage != "none":
        (closed / ("hub.db" if "database" in damage else "hub.db-wal")).write_bytes(b"noise " * 10_000)
    for _ in range(2):
        with Hub.restore(tmp_path / "backup", closed, overwrite=True) as hub:
            assert ids(hub) == {f"x{n}" for n in range(5)}
            assert hub.verify().ok
    with opened(closed) as hub:
        assert ids(hub) == {f"x{n}" for n in range(5)}
        assert hub.verify().ok


def test_caches_of_the_old_hub_do_not_answer_for_the_new_one(closed, tmp_path, episode):
    (closed / "index").mkdir(exist_ok=True)
    (closed / "index" / "manifest.json").write_text("{}")
    (closed / "embeddings.db-wal").write_bytes(b"noise")
    Hub.restore(tmp_path / "backup", closed, overwrite=True).close()
    assert not (closed / "index").exists()
    assert not (closed / "embeddings.db-wal").exists()


def test_the_key_of_the_hub_that_is_replaced_stays_and_a_new_place_gets_the_backups(tmp_path, episode):
    with opened(tmp_path / "hub") as hub:
        (hub.path / "hub.key").write_text("old key")
        hub.put(episode(1))
        hub.backup(tmp_path / "backup")
        (hub.path / "hub.key").write_text("new key")
    Hub.restore(tmp_path / "backup", tmp_path / "hub", overwrite=True).close()
    Hub.restore(tmp_path / "backup", tmp_path / "new").close()
    assert ((tmp_path / "hub/hub.key").read_text(), (tmp_path / "new/hub.key").read_text()) == ("new key", "old key")


# Kills itself at the nth thing that it does to a file, for every n, and looks at what is left each time.
KILLED = """
import os, shutil, sys, logging
from pathlib import Path
import polars
from fedlab import Hub
from fedlab.hub import restoring
logging.disable()
folder, fresh = Path(sys.argv[1]), sys.argv[2] == "fresh"
TOUCHES = ("os.rename", "os.remove", "os.mkdir", "shutil.copyfile", "shutil.rmtree", "sqlite3.connect")

def apart(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except BaseException:
            import traceback; traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def restore_and_die(number):
    left = number
    def hook(event, arguments):
        nonlocal left
        if event in TOUCHES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
    sys.addaudithook(hook)
    restoring.restore(folder / "backup", folder / "target", 1, overwrite=not fresh)

def look():
    if fresh and not (folder / "target/hub.db").exists():
        return 10
    with Hub(folder / "target") as hub:
        assert hub.verify().ok, hub.verify()
        held = set(hub.episodes()["id"])
        new = {f"x{n}" for n in range(5)}
        old = new | {"later"} | {f"wal{n}" for n in range(50)}
        assert held in (new, old), held
        return 11 if held == new else 10

outcomes = []
for number in range(1, 1000):
    shutil.rmtree(folder / "target", ignore_errors=True)
    if not fresh:
        shutil.copytree(folder / "hub", folder / "target")
    code = apart(lambda: restore_and_die(number))
    outcomes.append(apart(look))
    assert outcomes[-1] in (10, 11), outcomes[-1]
    if outcomes[-1] == 10:  # it can be done again
        assert apart(lambda: restore_and_die(0)) == 0
        assert apart(look) == 11
    if code == 0:
        break
    assert code == -9, code
print(outcomes.count(10), outcomes.count(11))
assert outcomes == sorted(outcomes)
"""


@pytest.mark.parametrize("place", ["fresh", "over a hub that was killed"])
def test_a_restore_that_is_killed_anywhere_leaves_the_old_hub_or_the_new_one(closed, tmp_path, place):
    if place != "fresh":
        subprocess.run([sys.executable, "-c", DIE, str(closed)], check=False)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), place.split()[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    old, new = map(int, done.stdout.split())
    assert old > 10
    assert new > 2


# --- erasures that came after the backup ------------------------------------------------------------------------------

MARKER = "Zaphod Beeblebrox"


def holds_marker(directory: Path) -> list[str]:
    return [
        str(path)
        for path in directory.rglob("*")
        if path.is_file() and any(mark.encode() in path.read_bytes() for mark in (MARKER, MARKER.split()[1]))
    ]


@pytest.fixture
def erased_since(tmp_path, episode) -> Path:
    """A hub that was backed up, and erased an episode, an agent and a tenant since."""
    with opened(tmp_path / "hub") as hub:
        hub.put([episode(n, id=f"x{n}", agent_id=f"agent-{n % 3}") for n in range(9)])
        hub.put(episode(90, id="secret", output=MARKER, agent_id="quiet"))
        hub.put(episode(91, id="of-agent", output="o", agent_id="agent-Beeblebrox"))
        hub.put([episode(n, id=f"z{n}", tenant_id="Beeblebrox", output=MARKER) for n in range(3)])
        hub.backup(tmp_path / "backups" / "old")
        hub.put(episode(92, id="younger", agent_id="quiet", output=MARKER))
        hub.erase_episodes("acme", ["secret", "younger"], reason="asked to")
        hub.erase_agent("acme", "agent-Beeblebrox", reason="asked to")
        hub.erase_tenant("Beeblebrox", reason="asked to")
        hub.put(episode(93, id="after"))
    return tmp_path / "hub"


def check_erased(hub: Hub, episode) -> None:
    assert ids(hub) >= {f"x{n}" for n in range(9)}
    assert ids(hub) - {"after"} == {f"x{n}" for n in range(9)}
    assert hub.verify().ok, hub.verify()
    assert holds_marker(hub.path) == []
    with pytest.raises(UnknownTenant):
        hub.recall("Beeblebrox", "task", k=3)
    for name, fields in {"secret": {}, "younger": {}, "z1": {"tenant_id": "Beeblebrox"}}.items():
        with pytest.raises(IdConflict, match="erased"):
            hub.put(episode(1, id=name, **fields))


def test_what_a_restore_that_was_killed_had_staged_goes_when_the_hub_is_opened(closed, tmp_path):
    """It may be a copy from before an erasure, which no erasure of the hub would reach."""
    staged = closed / STAGE
    staged.mkdir()
    (staged / "hub.db").write_bytes(b"what was erased since")
    with opened(closed):
        assert not staged.exists()


def test_erasures_are_done_again_as_the_replaced_hub_knows_them(erased_since, tmp_path, episode):
    with Hub.restore(tmp_path / "backups" / "old", erased_since, overwrite=True) as hub:
        check_erased(hub, episode)
    with opened(erased_since) as hub:
        check_erased(hub, episode)


@pytest.mark.parametrize("incremental", [False, True])
def test_erasures_are_done_again_as_a_backup_beside_knows_them(erased_since, tmp_path, episode, incremental):
    with opened(erased_since) as hub:
        hub.backup(tmp_path / "backups" / "young", base=tmp_path / "backups" / "old" if incremental else None)
    with Hub.restore(tmp_path / "backups" / "old", tmp_path / "new") as hub:
        check_erased(hub, episode)
    with Hub.restore(tmp_path / "backups" / "young", tmp_path / "newer") as hub:
        check_erased(hub, episode)
        assert "after" in ids(hub)


def test_erasures_are_done_again_as_it_is_told(erased_since, tmp_path, episode):
    shutil.move(tmp_path / "backups" / "old", tmp_path / "elsewhere" / "old")
    erased_since = erased_since.rename(tmp_path / "moved")
    for source in (erased_since, tmp_path / "young"):
        with opened(erased_since) as hub:
            if source.name == "young":
                hub.backup(source)
        with Hub.restore(tmp_path / "elsewhere" / "old", tmp_path / source.name[1:], ledger_from=source) as hub:
            check_erased(hub, episode)
    with opened(tmp_path / "another") as other:
        other.backup(tmp_path / "of-another")
    for wrong in (tmp_path / "of-another", tmp_path / "nowhere"):
        with pytest.raises(InvalidRequest, match="whose erasures"):
            Hub.restore(tmp_path / "elsewhere" / "old", tmp_path / "last", ledger_from=wrong)
    assert not (tmp_path / "last").exists()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_erasures_are_done_again_as_the_hub_knows_them_where_it_was_when_it_was_backed_up(
    erased_since, tmp_path, episode, caplog
):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "backups" / "old", tmp_path / "elsewhere" / "old")
    with (
        opened(erased_since),
        Hub.restore(tmp_path / "elsewhere" / "old", tmp_path / "new") as hub,
    ):  # it may be at work
        check_erased(hub, episode)
    assert "nothing newer" not in caplog.text


def test_erasures_are_done_again_as_a_backup_beside_the_base_knows_them(tmp_path, episode, caplog):
    """The incremental one lies in a folder of its own, and the hub is gone."""
    with opened(tmp_path / "hub") as hub:
        hub.put(episode(1, id="secret", output=MARKER))
        hub.backup(tmp_path / "backups" / "base")
        hub.put(episode(2, id="more"))
        hub.backup(tmp_path / "daily" / "old", base=tmp_path / "backups" / "base")
        hub.erase_episodes("acme", ["secret"], reason="asked to")
        hub.backup(tmp_path / "backups" / "young")
    shutil.rmtree(tmp_path / "hub")
    with Hub.restore(tmp_path / "daily" / "old", tmp_path / "new") as hub:
        assert ids(hub) == {"more"}
        assert holds_marker(hub.path) == []
    assert "nothing newer" not in caplog.text


@pytest.mark.parametrize("there", ["nothing", "an older backup", "an older state", "another hub"])
def test_a_restore_says_where_it_looked_if_nothing_newer_tells_what_was_erased(tmp_path, episode, caplog, there):
    with opened(tmp_path / "hub") as hub:
        hub.put(episode(1, id="secret"))
        hub.backup(tmp_path / "backups" / "older")
        hub.put(episode(2, id="more"))
        hub.backup(tmp_path / "backups" / "old")
        hub.erase_episodes("acme", ["secret"], reason="asked to")
    shutil.rmtree(tmp_path / "hub")
    if there == "an older state":
        (tmp_path / "hub").mkdir()
        shutil.copy(tmp_path / "backups" / "older" / "hub.db", tmp_path / "hub" / "hub.db")
    if there == "another hub":
        opened(tmp_path / "hub").close()
    if there != "an older backup":
        shutil.rmtree(tmp_path / "backups" / "older")
    caplog.clear()
    with Hub.restore(tmp_path / "backups" / "old", tmp_path / "new") as hub:
        assert ids(hub) == {"secret", "more"}
    (said,) = warnings(caplog)
    assert "nothing newer than this backup" in said
    assert "--ledger-from" in said
    for place in (tmp_path / "hub", tmp_path / "new"):
        assert str(place) in said
    caplog.clear()
    Hub.restore(tmp_path / "backups" / "old", tmp_path / "newer", ledger_from=tmp_path / "new").close()
    assert warnings(caplog) == []


def test_a_log_that_went_another_way_since_is_not_erased_in_by_number(tmp_path, episode):
    with opened(tmp_path / "hub") as hub:
        hub.put(episode(1, id="common"))
        hub.backup(tmp_path / "fork-point")
        hub.put([episode(n, id=f"one{n}") for n in range(10)])
        hub.backup(tmp_path / "one-way")
    with Hub.restore(tmp_path / "fork-point", tmp_path / "hub", overwrite=True) as hub:
        hub.put([episode(n, id=f"other{n}", output=MARKER) for n in range(10)])
        hub.erase_episodes("acme", ["other3", "common"], reason="asked to")
    with Hub.restore(tmp_path / "one-way", tmp_path / "hub", overwrite=True) as hub:
        assert ids(hub) == {f"one{n}" for n in range(10)}
        assert hub.verify().ok
        for name in ("other3", "common"):
            with pytest.raises(IdConflict, match="erased"):
                hub.put(episode(1, id=name))


def test_an_episode_that_was_pushed_again_after_a_restore_is_erased_in_the_logs_of_before_and_after(tmp_path, episode):
    with opened(tmp_path / "hub") as hub:
        hub.put(episode(0, id="common"))
        hub.backup(tmp_path / "fork-point")
        hub.put(episode(1, id="twice", output=MARKER))
        hub.backup(tmp_path / "one-way")
    with Hub.restore(tmp_path / "fork-point", tmp_path / "hub", overwrite=True) as hub:
        hub.put([episode(2, id="first"), episode(1, id="twice", output=MARKER)])
        hub.erase_episodes("acme", ["twice"], reason="asked to")
    with Hub.restore(tmp_path / "one-way", tmp_path / "hub", overwrite=True) as hub:
        assert ids(hub) == {"common"}
        assert hub.verify().ok, hub.verify()
        assert holds_marker(hub.path) == []
        with pytest.raises(IdConflict, match="erased"):
            hub.put(episode(1, id="twice", output=MARKER))


def test_what_an_erasure_took_when_it_was_done_again_does_not_come_back_in_a_log_that_knew_it_before(tmp_path, episode):
    with opened(tmp_path / "hub") as hub:
        hub.backup(tmp_path / "fork-point")
        hub.put(episode(1, id="only-here"))
        hub.backup(tmp_path / "one-way")
    with Hub.restore(tmp_path / "fork-point", tmp_path / "hub", overwrite=True) as hub:
        hub.put(episode(2))
        hub.erase_tenant("acme", reason="asked to")
        hub.backup(tmp_path / "other-way")
    Hub.restore(tmp_path / "one-way", tmp_path / "hub", overwrite=True).close()
    with Hub.restore(tmp_path / "other-way", tmp_path / "hub", overwrite=True) as hub:
        with pytest.raises(IdConflict, match="erased"):
            hub.put(episode(1, id="only-here"))
        assert hub.verify().ok, hub.verify()


# --- a point in time --------------------------------------------------------------------------------------------------


def test_a_backup_can_be_restored_as_of_a_change_or_a_time_before_it(tmp_path, episode):
    clock = SimulatedClock(datetime(2026, 1, 1))
    with opened(tmp_path / "hub", clock=clock, keep_forgotten=86_400) as hub:
        for day in range(5):
            hub.put(episode(day, id=f"day{day}"))
            clock.advance(hours=1)
        seq = hub.info().seq
        hub.forget("acme", ["day0", "day3"], reason="old")
        hub.backup(tmp_path / "backup")
    moments = {
        2: set(),
        seq - 2: {"day0", "day1", "day2"},
        seq: {f"day{n}" for n in range(5)},
        datetime(2026, 1, 1, 2, 30): {"day0", "day1", "day2"},
        datetime(2026, 1, 1, 2, tzinfo=UTC): {"day0", "day1", "day2"},
        datetime(2027, 1, 1): {"day1", "day2", "day4"},
    }
    for moment, expected in moments.items():
        with Hub.restore(tmp_path / "backup", tmp_path / "hub", at=moment, overwrite=True, clock=clock) as hub:
            assert ids(hub) == expected
            assert hub.verify().ok
    for wrong in (0, -1, seq + 3, datetime(2025, 1, 1), "yesterday", True):
        with pytest.raises(FedlabError):
            Hub.restore(tmp_path / "backup", tmp_path / "new", at=wrong)
    assert not (tmp_path / "new").exists()


def test_other_things_with_a_manifest_beside_a_backup_are_passed_over(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    hub.backup(tmp_path / "backup")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text('{"experiment": {}}')
    Hub.restore(tmp_path / "backup", tmp_path / "again").close()
    assert warnings(caplog) == []
