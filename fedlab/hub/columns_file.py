"""The columns on disk: a hub that starts again need not read everything before it can count.

`index/columns` is a line of JSON that says what it is good for, and then the frames as Arrow. It is a cache: whatever
is missing, damaged, of another version or of another log is read from the database.
"""

from __future__ import annotations

import hashlib
import io
import logging
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from fedlab.hub.directory import sync
from fedlab.hub.schema import changes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import polars as pl

VERSION = 1
"""Another when the frames of `Columns` are others."""

logger = logging.getLogger("fedlab.hub")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of the file.

    Args:
        version: `VERSION` of then.
        seq: The log up to here is in it.
        chain: Hash of the log at `seq`, hexadecimal: a database that was put back from a copy has another.
        erasures: How many had emptied their rows.
        sizes: Bytes of each frame.
        checksum: BLAKE2b of what follows, hexadecimal: Arrow is not made to be read from a damaged file.
    """

    version: int
    seq: int
    chain: str
    erasures: int
    sizes: list[int]
    checksum: str


def write(path: Path, connection: sa.Connection, frames: Sequence[pl.DataFrame], seq: int, erasures: int) -> None:
    """Put frames in the place of those of an earlier moment.

    Args:
        path: The file.
        connection: To the database that they are of.
        frames: Log, erased and episodes, as in `Columns`.
        seq: The log up to here is in them.
        erasures: How many had emptied their rows.
    """
    parts = []
    for frame in frames:
        stream = io.BytesIO()
        frame.write_ipc(stream, compression="lz4")
        parts.append(stream.getbuffer())
    checksum = hashlib.blake2b()
    for part in parts:
        checksum.update(part)
    sizes, chain = [len(part) for part in parts], _chain(connection, seq)
    head = Head(version=VERSION, seq=seq, chain=chain, erasures=erasures, sizes=sizes, checksum=checksum.hexdigest())
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.writelines([msgspec.json.encode(head), b"\n", *parts])
    sync(new)
    new.replace(path)


def read(path: Path, connection: sa.Connection, erasures: int) -> tuple[int, list[pl.DataFrame]] | None:
    """The seq of the frames, and these; None if there are none that are good for a database.

    Args:
        path: The file.
        connection: To the database.
        erasures: How many have emptied their rows there.
    """
    from fedlab._polars import pl

    try:
        with path.open("rb") as file:
            head = msgspec.json.decode(file.readline(), type=Head)
            if (head.version, head.erasures, head.chain) != (VERSION, erasures, _chain(connection, head.seq)):
                return None
            content = memoryview(file.read())
        if hashlib.blake2b(content).hexdigest() != head.checksum:
            raise ValueError("it does not match its checksum")
        frames = []
        for size in head.sizes:
            frames.append(pl.read_ipc(io.BytesIO(content[:size])))
            content = content[size:]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        logger.warning("the columns on disk are damaged (%s); they are read from the database", error)
        return None
    return head.seq, frames


def drop(path: Path) -> None:
    """Remove them: they name who is to be erased."""
    for each in (path, path.with_suffix(".new")):
        each.unlink(missing_ok=True)


def _chain(connection: sa.Connection, seq: int) -> str:
    held = connection.scalar(sa.select(changes.c.hash).where(changes.c.seq == seq))
    return "" if held is None else held.hex()
