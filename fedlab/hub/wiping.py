"""What erased rows leave in the database's files: the write-ahead log, and bytes of pages that nothing refers to.

`secure_delete` overwrites a cell that is deleted, and a page that becomes free. But when SQLite moves cells from page
to page, to keep its trees balanced, copies stay behind in the unallocated middle of the page they left (measured:
names in 1 of 200 pages of an index). Only VACUUM would remove them, which holds the writer for about 20 seconds per
gigabyte; so these bytes are overwritten in place, some pages at a time. SQLite never reads them: whoever reads the page
at the same moment, and a crash between any two bytes, see the same rows.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from fedlab.errors import HubUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from fedlab.hub.writer import Writer

PATIENCE = 60.0
"""Seconds to wait for readers that hold the write-ahead log."""
PAGES = 1_000
"""Pages looked at in one turn of the writer: a few milliseconds."""
_HEADER = {0x02: 12, 0x05: 12, 0x0A: 8, 0x0D: 8}
"""Kind of a b-tree page (its first byte) to the length of its header (https://sqlite.org/fileformat.html, 1.6)."""


def wipe(writer: Writer, file: int) -> int:
    """Overwrite what is unallocated in the database, and empty the write-ahead log; returns the pages rewritten.

    Args:
        writer: Whose turns it takes.
        file: The database, open for reading and writing.

    Raises:
        HubUnavailable: If a reader holds the write-ahead log for too long.
    """
    first, rewritten = 0, 0
    more = writer.alone(_is_small)
    while more:

        def part(connection: sa.Connection, first: int = first) -> tuple[int, bool] | None:
            # In the file is what the log has: else a page's old copy in the log would come back over it.
            _, frames, done = _checkpoint(connection, "PASSIVE")
            if frames != done:
                return None
            found = overwrite(file, _page_size(connection), first, PAGES)
            # The writer's own copies of these pages still have the bytes, and would be written out some day.
            _driver(connection).execute("PRAGMA shrink_memory")
            return found

        number, more = _patiently(writer, part)
        rewritten += number
        first += PAGES
    os.fsync(file)
    _patiently(writer, lambda connection: None if _checkpoint(connection, "TRUNCATE")[0] else True)
    return rewritten


def overwrite(file: int, size: int, first: int, count: int) -> tuple[int, bool]:
    """Zero the unallocated bytes of some pages; returns how many pages had any, and whether more pages follow.

    A page that is no b-tree begins with the number of another page, or with zeros: its first byte is 0 in a small file.
    """
    data = os.pread(file, size * count, size * first)
    dirty = 0
    for start in range(0, len(data), size):
        header = start + (100 if first == 0 and start == 0 else 0)
        length = _HEADER.get(data[header])
        if length is None:
            continue
        cells = int.from_bytes(data[header + 3 : header + 5], "big")
        begin = header + length + 2 * cells
        end = start + (int.from_bytes(data[header + 5 : header + 7], "big") or 65_536)
        if begin < end <= start + size and data.count(0, begin, end) != end - begin:
            os.pwrite(file, bytes(end - begin), size * first + begin)
            dirty += 1
    return dirty, len(data) == size * count


def _is_small(connection: sa.Connection) -> bool:
    """Whether the kind of a page can be told by its first byte: below 2^24 pages. Larger ones are vacuumed here."""
    driver = _driver(connection)
    if driver.execute("PRAGMA page_count").fetchone()[0] < 1 << 24:
        return True
    driver.execute("VACUUM")
    return False


def _patiently(writer: Writer, work: Callable[[sa.Connection], Any]) -> Any:
    """Do something in a turn of the writer, again while readers keep it from being done (None)."""
    deadline = time.monotonic() + PATIENCE
    while (result := writer.alone(work)) is None:
        if time.monotonic() > deadline:
            raise HubUnavailable(
                f"everything is deleted, but something has been reading the database for {PATIENCE:g} s, so that the"
                " write-ahead log can not be emptied: the erasure is completed by the next one, or at the next start"
            )
        time.sleep(0.02)
    return result


def _checkpoint(connection: sa.Connection, mode: str) -> tuple[int, int, int]:
    """Whether it was kept from it, frames in the log, and how many of them are in the database."""
    driver = _driver(connection)
    (patience,) = driver.execute("PRAGMA busy_timeout").fetchone()
    # Whoever wants to write waits behind this: readers get a moment, and then another try.
    driver.execute("PRAGMA busy_timeout=20")
    try:
        busy, frames, done = driver.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        driver.execute(f"PRAGMA busy_timeout={patience}")
    return busy, frames, done


def _page_size(connection: sa.Connection) -> int:
    size: int = _driver(connection).execute("PRAGMA page_size").fetchone()[0]
    return size


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection
