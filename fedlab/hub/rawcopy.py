"""A copy of a hub's database from its files, beside SQLite, whose own way takes four times as long.

The file alone is no moment of the database: what was committed last is in the write-ahead log, and is moved into the
file now and then, also while this reads. But a reader's transaction keeps SQLite from moving anything newer than it,
and from beginning the log anew with what it needs: so a page that may change in the file meanwhile is in the log, too,
and is taken from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]

CHUNK = 1 << 18
"""Bytes that are copied at once: whole pages, whatever their size …"""
AHEAD = 16
"""… so many chunks may wait to be hashed …"""
SYNC = 32
"""… and after so many they are sent to the disk: with one fsync at the end, the disk waits for the processor first."""
_HEADER, _FRAME = 32, 24
"""Bytes of the header of a log, and of each frame in it, before the page."""
_FRAMES = 256
"""Frames that are checked at once."""


# --- the file, open beside SQLite ---------------------------------------------------------------------------------


class _Use:
    """A database that connections of this process have open, and its file as it was opened beside them."""

    def __init__(self) -> None:
        self.users = 0
        self.files: list[tuple[int, int]] = []


_uses: dict[str, _Use] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def in_use(database: Path) -> Iterator[None]:
    """Around every connection to a hub's database: what `opened` gave stays open as long.

    Whoever closes a file loses all locks that the process has on it (POSIX), SQLite's too; another process would take
    the database for one that nobody reads.
    """
    name = os.path.realpath(database)
    with _lock:
        use = _uses.setdefault(name, _Use())
        use.users += 1
    try:
        yield
    finally:
        with _lock:
            use.users -= 1
            if not use.users:
                del _uses[name]
                for _, file in use.files:
                    os.close(file)


def opened(database: Path, flags: int = os.O_RDONLY) -> int:
    """The file of a database, for whoever is inside of `in_use`; never to be closed."""
    with _lock:
        files = _uses[os.path.realpath(database)].files
        there = database.stat()
        for held, file in files:
            if held == flags and os.path.samestat(os.fstat(file), there):
                return file
        file = os.open(database, flags)
        files.append((flags, file))
        return file


# --- copying ------------------------------------------------------------------------------------------------------


def copy(database: Path, target: Path) -> str:
    """Copy a database to a new file, and have it on disk; returns the SHA-256 of the copy, hexadecimal.

    It is of a moment between the begin of the transaction and the return. The copy is one file that needs no log.

    Args:
        database: The caller has a connection to it, with a transaction in which it has read something.
        target: Not there yet.
    """
    log = _read_log(database.with_name(database.name + "-wal"))
    source = opened(database)
    size = log.size or os.fstat(source).st_size
    digest = hashlib.sha256()
    buffers = [bytearray(min(CHUNK, size)) for _ in range(AHEAD)]  # new ones for all chunks take a third of the time
    # To hash takes as long as to copy, and so does the disk: they go on beside each other.
    with (
        target.open("xb") as out,
        ThreadPoolExecutor(1, "fedlab-hash") as hasher,
        ThreadPoolExecutor(1, "fedlab-disk") as disk,
    ):
        hashing, syncing = deque[Any](), deque[Any]()
        for number, start in enumerate(range(0, size, CHUNK)):
            if number >= AHEAD:
                hashing.popleft().result()
            part = memoryview(buffers[number % AHEAD])[: size - start]
            _fill(part, source, start, log)
            out.write(part)
            hashing.append(hasher.submit(digest.update, part))
            if number % SYNC == SYNC - 1:
                out.flush()
                syncing.append(disk.submit(os.fdatasync, out.fileno()))
            while syncing and syncing[0].done():
                syncing.popleft().result()  # an error is told only once
        out.flush()
        for each in syncing:
            each.result()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _fill(part: memoryview, source: int, start: int, log: _Log) -> None:
    """Some pages: of the file, and of the log where it has them."""
    read = _read(source, part, start)
    part[read:] = bytes(len(part) - read)  # behind the end of the file are pages that only the log has
    if log.pages:
        for at in range(0, len(part), log.page_size):
            if (page := log.pages.get((start + at) // log.page_size + 1)) is not None:
                part[at : at + log.page_size] = page
    if start == 0:
        part[18:20] = b"\1\1"  # the mode: without a write-ahead log


def _read(file: int, part: memoryview, start: int) -> int:
    """Read as much as is there, which a file system may give in pieces; returns how many bytes."""
    done = 0
    while read := os.preadv(file, [part[done:]], start + done):
        done += read
    return done


# --- the write-ahead log (sqlite.org/fileformat2.html, "The Write-Ahead Log") -------------------------------------


class _Log(NamedTuple):
    """What was committed in a write-ahead log.

    Args:
        pages: By their numbers, as they were last.
        page_size: Bytes.
        size: Of the database in bytes, after the last commit; 0 if there was none.
    """

    pages: dict[int, bytes]
    page_size: int = 0
    size: int = 0


def _read_log(path: Path) -> _Log:
    """The log as it is now.

    It may be begun anew while it is read, if nobody needs what it has: that is written over its header first.
    """
    while True:
        try:
            with path.open("rb", buffering=0) as file:  # read anew when it is read again
                header = file.read(_HEADER)
                log = _read_frames(file.fileno(), header, os.fstat(file.fileno()).st_size - len(header))
                file.seek(0)
                if file.read(_HEADER) == header:
                    return log
        except FileNotFoundError:
            return _Log({})


def _read_frames(file: int, header: bytes, length: int) -> _Log:
    """All frames up to the last that ends a commit; what does not have the sum of all before it is none of this log.

    Args:
        file: With the log.
        header: Of the log.
        length: Bytes that are read behind the header: it may grow as quickly as it is read.
    """
    magic, page_size = int.from_bytes(header[:4], "big"), int.from_bytes(header[8:12], "big")
    if len(header) < _HEADER or magic & ~1 != 0x377F0682:
        return _Log({})
    words = ">u4" if magic & 1 else "<u4"
    sums = _sums(np.frombuffer(header[:24], words)[None], (0, 0))[0]
    pages: dict[int, bytes] = {}
    pending: dict[int, bytes] = {}
    size = 0
    if header[24:] != _packed(sums):
        return _Log({})
    frame = _FRAME + page_size
    for start in range(0, length // frame, _FRAMES):
        frames = bytearray(frame * min(_FRAMES, length // frame - start))
        read = _read(file, memoryview(frames), _HEADER + frame * start)
        rows = np.frombuffer(frames, np.uint8, read // frame * frame).reshape(-1, frame)
        summed = np.concatenate([rows[:, :8], rows[:, _FRAME:]], axis=1).view(words)
        for row, expected in zip(rows, _sums(summed, sums), strict=True):
            head, sums = row[:_FRAME].tobytes(), expected
            if head[8:16] != header[16:24] or head[16:] != _packed(sums):
                return _Log(pages, page_size, size)
            pending[int.from_bytes(head[:4], "big")] = row[_FRAME:].tobytes()
            if commit := int.from_bytes(head[4:8], "big"):
                size = commit * page_size
                pages |= pending
                pending = {}
    return _Log(pages, page_size, size)


def _packed(sums: tuple[int, int]) -> bytes:
    return sums[0].to_bytes(4, "big") + sums[1].to_bytes(4, "big")


def _sums(words: Words, before: tuple[int, int]) -> list[tuple[int, int]]:
    """The checksums after each row of words, of all rows before it, too.

    For each two words a and b, s0 += a + s1 and then s1 += b + s0, all modulo 2^32: what each word adds at the end of
    its row does not depend on the others.
    """
    (m00, m01, m10, m11), weights = _weights(words.shape[1])
    added = [(words * each).sum(axis=1, dtype=np.uint32).tolist() for each in weights]
    made, (s0, s1) = [], before
    for one, two in zip(*added, strict=True):
        s0, s1 = (m00 * s0 + m01 * s1 + one) % (1 << 32), (m10 * s0 + m11 * s1 + two) % (1 << 32)
        made.append((s0, s1))
    return made


@cache
def _weights(count: int) -> tuple[tuple[int, int, int, int], Words]:
    """What becomes of the two sums in so many words (a matrix), and the factors of each word in both, shape (2, n)."""
    weights = np.empty((2, count), np.uint32)
    m00, m01, m10, m11 = 1, 0, 0, 1
    for at in range(count - 2, -1, -2):
        # The first word goes into both sums, as the first sum goes into the second; the other into the second alone.
        weights[:, at] = (m00 + m01) % (1 << 32), (m10 + m11) % (1 << 32)
        weights[:, at + 1] = m01, m11
        m00, m01 = (m00 + m01) % (1 << 32), (m00 + 2 * m01) % (1 << 32)
        m10, m11 = (m10 + m11) % (1 << 32), (m10 + 2 * m11) % (1 << 32)
    return (m00, m01, m10, m11), weights
