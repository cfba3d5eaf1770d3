"""A copy made beside SQLite is the copy that SQLite would make, and takes nothing from whoever is at work."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import threading

import pytest

from fedlab import CorruptHub, Hub
from fedlab.hub import rawcopy, schema

CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


@pytest.fixture
def database(tmp_path):
    """One in the mode of a hub's, with a table, and a connection that writes."""
    connection = sqlite3.connect(tmp_path / "some.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
    yield tmp_path / "some.db", connection
    connection.close()


@contextlib.contextmanager
def reader(path):
    with schema.look(path) as connection:
        connection.isolation_level = None
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM t").fetchone()
        yield connection


def content(path) -> list[bytes]:
    """The pages, without what says in the first which mode the file is in, and how often it was changed."""
    data = path.read_bytes()
    return [
        data[:18] + data[20:24] + data[28:92] + data[100:4096],
        *(data[at : at + 4096] for at in range(4096, len(data), 4096)),
    ]


def write(connection, rng: random.Random) -> None:
    """A transaction that may be so large that it is in the log before it is committed, and may be rolled back."""
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(rng.choice([1, 30, 900])):
        row = (rng.randrange(2_000), rng.randbytes(rng.randrange(1_500)))
        connection.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", row)
    if rng.random() < 0.2:
        connection.execute("DELETE FROM t WHERE a > ?", (rng.randrange(2_000),))
    connection.execute("ROLLBACK" if rng.random() < 0.3 else "COMMIT")


def test_the_copy_is_to_the_byte_what_sqlite_copies(database, tmp_path):
    path, connection = database
    connection.execute("PRAGMA cache_size=20")
    rng = random.Random(3)
    for number in range(60):
        for _ in range(rng.randrange(3)):
            write(connection, rng)
        with reader(path) as held:
            ours, theirs = tmp_path / f"ours-{number}", tmp_path / f"theirs-{number}"
            checksum = rawcopy.copy(path, ours)
            with contextlib.closing(sqlite3.connect(theirs)) as target:
                held.backup(target)
        assert content(ours) == content(theirs)
        assert hashlib.sha256(ours.read_bytes()).hexdigest() == checksum
        if rng.random() < 0.4:
            connection.execute(f"PRAGMA wal_checkpoint({rng.choice(CHECKPOINTS)})")


def test_a_file_that_is_given_in_pieces_is_read_whole(database, tmp_path, monkeypatch):
    path, connection = database
    for number in range(2):
        connection.executemany("INSERT INTO t (b) VALUES (?)", [(bytes([number]) * 3_000,) for _ in range(400)])
        if number == 0:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with reader(path):
        rawcopy.copy(path, tmp_path / "at-once")
        whole = os.preadv
        monkeypatch.setattr(os, "preadv", lambda file, parts, at: whole(file, [parts[0][:1_000]], at))
        rawcopy.copy(path, tmp_path / "in-pieces")
    assert (tmp_path / "in-pieces").read_bytes() == (tmp_path / "at-once").read_bytes()
    with contextlib.closing(sqlite3.connect(tmp_path / "in-pieces")) as copied:
        assert copied.execute("SELECT count(DISTINCT b), count(*) FROM t").fetchone() == (2, 800)


def test_a_copy_is_of_one_moment_while_others_write_and_checkpoint(database, tmp_path, monkeypatch):
    """Each transaction writes its number to rows all over the file: in a copy, all have the same."""
    monkeypatch.setattr(rawcopy, "CHUNK", 4_096)  # as slow as it can be
    path, connection = database
    rows = [(each, bytes(2_000)) for each in range(200)]
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    over, permits = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        rng, number = random.Random(5), 0
        while permits.acquire() and not over.is_set():
            number += 1
            connection.execute("UPDATE t SET b = ?", (number.to_bytes(2_000, "big"),))
            if rng.random() < 0.3:
                connection.execute(f"PRAGMA wal_checkpoint({rng.choice(CHECKPOINTS)})")

    connection.execute("PRAGMA busy_timeout=0")  # a checkpoint that is kept out goes on another time
    writer = threading.Thread(target=work)
    writer.start()
    seen = set()
    try:
        for number in range(60):
            with reader(path) as held:
                (before,) = held.execute("SELECT b FROM t LIMIT 1").fetchone()
                permits.release(3)
                rawcopy.copy(path, tmp_path / f"copy-{number}")
            with contextlib.closing(sqlite3.connect(tmp_path / f"copy-{number}")) as copied:
                assert copied.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                ((value,),) = copied.execute("SELECT DISTINCT b FROM t").fetchall()
                assert value >= before
                seen.add(value)
    finally:
        over.set()
        permits.release()
        writer.join()
    assert len(seen) > 30


def test_whoever_backs_up_keeps_the_locks_of_this_process(tmp_path, episode):
    """Without them, another process that closes the database takes the write-ahead log away from under the hub."""
    other = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM meta').fetchall(); c.close()"
    )
    with Hub(tmp_path / "hub", embedder="hashing-16") as hub:
        hub.put(episode(1))
        hub.backup(tmp_path / "backup")
        hub.fork(tmp_path / "fork").close()
        subprocess.run([sys.executable, "-c", other, tmp_path / "hub" / "hub.db"], check=True)
        assert (tmp_path / "hub" / "hub.db-wal").stat().st_size
        hub.put(episode(2))
        assert hub.verify().ok


def test_a_file_stays_open_until_the_last_in_this_process_is_done(database):
    path, _ = database
    with rawcopy.in_use(path):
        with rawcopy.in_use(path):
            file = rawcopy.opened(path)
        assert rawcopy.opened(path) == file
        assert os.fstat(file).st_ino == path.stat().st_ino
        assert rawcopy.opened(path, os.O_RDWR) != file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_a_damaged_write_ahead_log_is_not_passed_over(tmp_path, episode):
    with Hub(tmp_path / "hub", embedder="hashing-16") as hub:
        hub.put([episode(number) for number in range(50)])
        hub.put([episode(number) for number in range(50, 60)])
        log = tmp_path / "hub" / "hub.db-wal"
        data = bytearray(log.read_bytes())
        data[len(data) // 2] ^= 1
        log.write_bytes(data)
        with pytest.raises(CorruptHub, match="damaged"):
            hub.backup(tmp_path / "backup")
        assert {each.name for each in tmp_path.iterdir()} == {"hub"}
