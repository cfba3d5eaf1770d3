"""A server's backups: asked for over the wire, made on schedule, rotated, and their age told."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab import Episode, FedlabError, Hub, HubUnavailable, InvalidRequest, PermissionDenied, SimulatedClock
from fedlab.clock import to_datetime
from fedlab.hub import rawcopy
from fedlab.hub.backups import verify_backup
from fedlab.hub.parts import LOCK, new_part
from fedlab.net import backups
from fedlab.net.backups import Backups

from .conftest import until

Make = Callable[..., Episode]
HOUR = 3600.0


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(datetime(2026, 1, 1))


@pytest.fixture
def timed(tmp_path: Path, clock: SimulatedClock, episode: Make) -> Iterator[Hub]:
    with Hub(tmp_path / "timed", clock, "hashing", "off") as hub:
        hub.put(episode(1))
        yield hub


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


async def test_an_admin_backs_up_over_the_wire_by_name(hub: Hub, tmp_path: Path, episode: Make):
    hub.put(episode(1))
    async with fedlab.serve(hub, port=0, backup_dir=tmp_path / "backups") as server:
        for number, json in enumerate((False, True)):
            async with fedlab.connect(server.url, json=json) as connection:
                full = await connection.backup(f"full-{number}")
                await connection.put(episode(5 + number))
                more = await connection.backup(f"more-{number}", base=f"full-{number}")
                assert (full.hub_id, more.seq) == (hub.info().hub_id, hub.info().seq)
                assert verify_backup(tmp_path / "backups" / f"more-{number}") == more
                with pytest.raises(InvalidRequest, match="taken"):
                    await connection.backup("full-0")
                for name in ("", ".", "..", "../x", "a/b", "/etc/x", ".hidden", "a\\b", "nul\0"):
                    with pytest.raises(InvalidRequest):
                        await connection.backup(name)
                    with pytest.raises(fedlab.FedlabError):
                        await connection.backup("another", base=name)
    assert names(tmp_path / "backups") == ["full-0", "full-1", "more-0", "more-1"]
    assert names(tmp_path) == ["backups", "hub", "runtime"]


async def test_an_admin_forks_over_the_wire_by_name(hub: Hub, tmp_path: Path, episode: Make):
    place = tmp_path / "backups"
    hub.put([episode(n, id=f"x{n}") for n in range(6)])
    seq, then = hub.info().seq, to_datetime(hub.clock.now())
    hub.spawn_agent("acme", "a", lifetime=60)
    while to_datetime(hub.clock.now()) == then:
        pass
    hub.forget("acme", ["x0", "x1"], reason="why")
    hub.erase_episodes("acme", ["x2"], reason="asked to")
    async with fedlab.serve(hub, port=0, backup_dir=place) as server:
        for json in (False, True):
            async with fedlab.connect(server.url, json=json) as connection:
                for name, at, live, lost in (("now", None, 3, 0), ("seq", seq, 3, 2), ("time", then, 3, 2)):
                    made = await connection.fork(f"{name}-{json}", at=at)
                    assert (made.episodes, made.tenants, made.lost) == (live, 1, lost)
                    assert (made.origin, made.path) == (hub.info().hub_id, str(place / f"{name}-{json}"))
                    assert at is None or made.seq in (seq, seq + 1)
                    assert ("not kept" in str(made)) == bool(lost)
                    with Hub(made.path) as fork:
                        assert fork.info().hub_id == made.hub_id != made.origin
                        assert set(fork.episodes()["id"]) == {"x3", "x4", "x5"}
                        assert fork.stats().agents_alive == 0
                        assert fork.verify().ok
                before = names(place)
                for name in (
                    "now-False",
                    "",
                    ".",
                    "..",
                    "../x",
                    "a/b",
                    "/etc/x",
                    ".hidden",
                    "a\\b",
                    "nul\0",
                    "x" * 250,
                ):
                    with pytest.raises(FedlabError):
                        await connection.fork(name)
                for at in (0, -1, 1 << 40, 1 << 70, True, 1.5, "soon", datetime(1970, 1, 1), datetime(1, 1, 1)):
                    with pytest.raises(InvalidRequest):
                        await connection.fork("another", at=at)  # type: ignore[arg-type]
                assert names(place) == before
                # A fork is no backup, and none is written over it.
                assert (await connection.backups()).is_empty()
                with pytest.raises(InvalidRequest, match="taken"):
                    await connection.backup("now-False")
    with (
        fedlab.connect_sync(hub) as embedded,
        pytest.raises(InvalidRequest, match="no directory for backups and forks"),
    ):
        embedded.fork("fork")


async def test_backups_asked_for_while_32_sockets_push_verify_and_hold_all_that_was_acknowledged_before(
    hub: Hub, tmp_path: Path, episode: Make, vector: Callable[[int], Any]
):
    direction, acknowledged, during = vector(1), [], []
    pushing = asyncio.Event()

    async def push(url: str, client: int) -> None:
        async with fedlab.connect(url) as connection:
            while await pushing.wait():
                one = episode(client, tenant_id=f"t{client % 4}", agent_id=f"a{client}", vector=direction)
                await connection.put(one)
                acknowledged.append(one.id)

    def check(name: str, before: set[str], episodes: int) -> None:
        with Hub.restore(tmp_path / "backups" / name, tmp_path / name) as restored:
            report = restored.verify()
            assert report.ok, report.problems
            held = set(restored.episodes()["id"])
        assert before <= held
        assert len(held) == episodes

    async with (
        fedlab.serve(hub, port=0, backup_dir=tmp_path / "backups") as server,
        fedlab.connect(server.url) as admin,
    ):
        clients = [asyncio.create_task(push(server.url, number)) for number in range(32)]
        for number, base in enumerate([None, "backup-0", "backup-1", None, "backup-3"]):
            pushing.set()
            seen = len(acknowledged)
            await until(lambda: len(acknowledged) >= seen + 100)  # noqa: B023  # called in this turn alone
            before = set(acknowledged)
            manifest = await admin.backup(f"backup-{number}", base=base)
            during.append(len(acknowledged) - len(before))
            pushing.clear()
            await asyncio.to_thread(check, f"backup-{number}", before, manifest.episodes)
        for each in clients:
            each.cancel()
        assert {type(each) for each in await asyncio.gather(*clients, return_exceptions=True)} == {
            asyncio.CancelledError
        }
    assert min(during) > 0


async def test_the_backups_are_listed_and_checked_on_the_server(hub: Hub, tmp_path: Path, episode: Make):
    hub.put(episode(1))
    place = tmp_path / "backups"
    async with fedlab.serve(hub, port=0, backup_dir=place) as server:
        for json in (False, True):
            async with fedlab.connect(server.url, json=json) as connection:
                if not json:
                    assert (await connection.backups()).is_empty()
                    full = await connection.backup("full")
                    await connection.put([episode(5), episode(6)])
                    more = await connection.backup("more", base="full")
                frame = await connection.backups()
                assert frame["name"].to_list() == ["more", "full"]
                assert frame["base"].to_list() == ["full", None]
                assert frame["episodes"].to_list() == [3, 1]
                assert frame["seq"].to_list() == [more.seq, full.seq]
                assert frame["bytes"][1] == sum(file.bytes for file in full.files.values())
                assert frame["scheduled"].to_list() == [False, False]
                assert await connection.verify_backup("more") == more
                for name in ("../full", "", "nothing"):
                    with pytest.raises(fedlab.FedlabError):
                        await connection.verify_backup(name)
        (place / "full" / "hub.db").write_bytes(b"x" * (place / "full" / "hub.db").stat().st_size)
        async with fedlab.connect(server.url) as connection:
            with pytest.raises(fedlab.CorruptBackup, match="checksum"):
                await connection.verify_backup("more")


async def test_a_server_tells_its_schedule_to_an_admin(hub: Hub, tmp_path: Path, episode: Make, token: Any):
    hub.put([episode(n) for n in range(10)])
    hub.set_retention("acme", fedlab.MaxEpisodes(3))
    async with (
        fedlab.serve(
            hub, port=0, backup_dir=tmp_path / "b", backup_interval=3600, backup_keep=2, retention_interval=0.05
        ) as server,
        fedlab.connect(server.url) as connection,
    ):
        await until(lambda: hub.stats().episodes == 3 and server.schedule().retention_last_at is not None)
        told = await connection.schedule()
        assert (told.retention_interval, told.backup_interval, told.backup_keep) == (0.05, 3600, 2)
        assert told.backup_directory == str(tmp_path / "b")
        assert told.retention_last is not None
        assert told.retention_last_at is not None
        assert told.retention_next_at is not None
        assert told.retention_next_at - told.retention_last_at == 50
        assert str(told) == f"retention is applied every 0.05 s; backups go to {tmp_path / 'b'}, every 3600 s"
        async with fedlab.connect(server.url, token("acme", "admin")) as other:
            for call in (other.schedule(), other.backups(), other.verify_backup("x")):
                with pytest.raises(PermissionDenied):
                    await call
    async with fedlab.connect(hub) as connection:
        assert str(await connection.schedule()) == (
            "retention is not applied by itself; there is no directory for backups"
        )
        with pytest.raises(InvalidRequest, match="no directory for backups"):
            await connection.backups()


async def test_only_an_admin_of_the_whole_hub_may(hub: Hub, server: Any, token: Any, episode: Make):
    hub.put(episode(1))
    for tenant, role in (("acme", "observer"), ("acme", "agent"), ("acme", "admin")):
        async with fedlab.connect(server.url, token(tenant, role)) as connection:
            for call in (connection.backup("backup"), connection.fork("fork")):
                with pytest.raises(PermissionDenied):
                    await call
    for target in (server.url, hub):
        async with fedlab.connect(target) as connection:
            for call in (connection.backup("backup"), connection.fork("fork")):
                with pytest.raises(InvalidRequest, match="no directory for backups"):
                    await call


def test_scheduled_backups_are_chains_of_which_the_newest_are_kept(
    timed: Hub, clock: SimulatedClock, tmp_path: Path, episode: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backups, "CHAIN", 3)
    schedule = Backups(timed, tmp_path / "backups", HOUR, keep=2)
    made = []
    for number in range(11):
        timed.put(episode(10 + number))
        manifest = schedule.make_due()
        assert manifest is not None
        made.append(manifest)
        clock.advance(minutes=30)
        assert schedule.make_due() is None
        assert schedule.age() == HOUR / 2
        clock.advance(minutes=30)
    assert [len(each.bases) for each in made] == [0, 1, 2] * 3 + [0, 1]
    left = names(tmp_path / "backups")
    assert len(left) == 3 + 2
    for name in left:
        verify_backup(tmp_path / "backups" / name)
    with Hub.restore(tmp_path / "backups" / left[-1], tmp_path / "restored") as restored:
        assert restored.stats().episodes == timed.stats().episodes


def test_what_is_no_scheduled_backup_of_this_hub_is_never_removed(
    timed: Hub, clock: SimulatedClock, tmp_path: Path, episode: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backups, "CHAIN", 1)
    place = tmp_path / "backups"
    schedule = Backups(timed, place, HOUR, keep=1)
    schedule.make("by-hand")
    clock.advance(hours=1)
    schedule.make_due()
    (built_on,) = set(names(place)) - {"by-hand"}
    schedule.make("on-a-scheduled-one", base=built_on)
    with Hub(tmp_path / "other", SimulatedClock(datetime(2025, 1, 1)), "hashing", "off") as other:
        Backups(other, place, HOUR, keep=1).make_due()
    (place / "hub-letters").mkdir()
    (place / "hub-letters" / "letter").write_text("text")
    (place / "hub-damaged").mkdir()
    (place / "hub-damaged" / "manifest.json").write_text("{}")
    schedule.make("hub-before-the-move")
    with pytest.raises(InvalidRequest, match="another name"):
        schedule.make("hub-20260101T000000.000000Z")
    before = set(names(place))
    for _ in range(4):
        clock.advance(hours=1)
        schedule.make_due()
    assert before <= set(names(place))
    assert len(set(names(place)) - before) == 1


def test_what_a_killed_server_left_of_a_backup_is_removed_and_nothing_else(
    timed: Hub, clock: SimulatedClock, tmp_path: Path
):
    place = tmp_path / "backups"
    dead = {".hub-20250101T000000.000000Z.0123abcd.part": True, ".by-hand.0123abcd.part": True}
    kept = {".by-hand.0123abcd.part": False, ".letters.part": True, "by-hand.0123abcd.part": True}

    def leave(left: dict[str, bool], folder: Path) -> None:
        for name, locked in left.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "hub.db").write_text("text")
            if locked:
                (folder / name / LOCK).touch()

    leave(dead, place)
    schedule = Backups(timed, place, HOUR, keep=1)
    assert names(place) == []
    leave(kept, place)
    (place / ".empty.0123abcd.part").mkdir()
    (place / ".link.0123abcd.part").symlink_to(place / ".letters.part")
    with new_part(place / "alive") as alive:
        schedule.make_due()
        left = {".link.0123abcd.part", alive.name, *kept}
        assert left < set(names(place))
        assert len(names(place)) == len(left) + 1
        assert all((place / name / "hub.db").exists() for name in kept)


KILL = """
import os, signal, sys
from fedlab import Hub
from fedlab.hub import restoring
from fedlab.net.backups import Backups

real = restoring.copy_database

def fatal(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

restoring.copy_database = fatal
with Hub(sys.argv[1]) as hub:
    Backups(hub, sys.argv[2], None, 1).fork("fork")
"""


def test_what_a_killed_server_left_of_a_fork_is_removed(timed: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "backups"
    timed.close()
    done = subprocess.run([sys.executable, "-c", KILL, timed.path, place], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(place.glob(".fork.*.part/fork/*/hub.db"))
    with Hub(timed.path) as hub:
        schedule = Backups(hub, place, None, 1)
        assert names(place) == []

        def full(*_arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(HubUnavailable, match="No space"):
            patch.setattr(rawcopy, "copy", full)
            schedule.fork("fork")
        assert names(place) == []
        assert schedule.fork("fork").path == str(place / "fork")


def test_a_rotation_that_was_killed_is_finished_by_the_next(
    timed: Hub, clock: SimulatedClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backups, "CHAIN", 1)
    place = tmp_path / "backups"
    schedule = Backups(timed, place, HOUR, keep=1)
    schedule.make_due()

    for owner, what, name in ((Path, "unlink", "hub.db"), (shutil, "rmtree", "hub-")):
        real = getattr(owner, what)

        def killed(path: Path, real: Any = real, name: str = name, **keywords: Any) -> None:
            if path.name.startswith(name):
                raise KeyboardInterrupt
            real(path, **keywords)

        clock.advance(hours=1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, what, killed)
            schedule.make_due()
        assert len(names(place)) == 2
        clock.advance(hours=1)
        schedule.make_due()
        assert len(names(place)) == 1
        verify_backup(place / names(place)[0])


def test_after_a_restore_to_an_older_state_the_next_one_is_full(
    timed: Hub, clock: SimulatedClock, tmp_path: Path, episode: Make
):
    place = tmp_path / "backups"
    schedule = Backups(timed, place, HOUR, keep=3)
    schedule.make_due()
    timed.put([episode(n) for n in range(20, 30)])
    clock.advance(hours=1)
    schedule.make_due()
    timed.close()
    with Hub.restore(place / names(place)[0], timed.path, overwrite=True, clock=clock) as hub:
        hub.put([episode(n) for n in range(30, 60)])
        again = Backups(hub, place, HOUR, keep=3)
        assert again.age() == 0
        clock.advance(hours=1)
        manifest = again.make_due()
        assert manifest is not None
        assert manifest.bases == []


def test_a_backup_that_failed_is_made_when_it_can_be(
    timed: Hub, clock: SimulatedClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    schedule = Backups(timed, tmp_path / "backups", HOUR, keep=1)
    (tmp_path / "backups").write_text("a file where the directory should be")
    with pytest.raises(HubUnavailable, match="could not be written"):
        schedule.make_due()
    assert schedule.age() is None
    (tmp_path / "backups").unlink()
    assert schedule.make_due() is not None
    with pytest.raises(InvalidRequest, match="backup_keep"):
        Backups(timed, tmp_path / "backups", HOUR, keep=0)


async def test_a_server_makes_them_and_tells_their_age(hub: Hub, tmp_path: Path, episode: Make):
    hub.put(episode(1))
    place = tmp_path / "backups"
    async with fedlab.serve(hub, port=0, backup_dir=place, backup_interval=0.05, backup_keep=2) as server:
        await until(lambda: place.exists() and any(name.startswith("hub-") for name in names(place)))

        def metrics() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        await until(lambda: server.backups is not None and server.backups.age() is not None)
        assert "fedlab_backup_age_seconds" in await asyncio.to_thread(metrics)
    for wrong in ({"backup_interval": 5.0}, {"backup_interval": 0.0, "backup_dir": place}):
        with pytest.raises(InvalidRequest, match="backup_interval"):
            fedlab.serve(hub, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="inside"):
        await fedlab.serve(hub, port=0, backup_dir=hub.path / "backups").start()
