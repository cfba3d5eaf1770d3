"""What is not whole yet: a folder beside the place where it is to be, until one rename puts it there.

Whoever writes into a part holds its lock, and the system gives a lock back when a process dies, however it dies: so
what the dead have left is known from what the living are writing.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import shutil
from typing import TYPE_CHECKING

import filelock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger("fedlab.hub")

LOCK = "being-written.lock"
_NAME = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")


@contextlib.contextmanager
def new_part(path: Path) -> Iterator[Path]:
    """A folder for what is to be at a path, for its owner alone, locked; what is still in it at the end is removed.

    What others left of the same path because they were killed is removed before.
    """
    remove_dead(path.parent, path.name)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(mode=0o700)
        with _lock(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_dead(directory: Path, name: str | None = None) -> None:
    """Remove the parts in a directory (of one name in it) of which the writers were killed."""
    for part in directory.glob(".*.part"):
        match = _NAME.fullmatch(part.name)
        if match is None or name not in (None, match[1]):
            continue
        with contextlib.suppress(OSError, filelock.Timeout):  # someone is writing it, or it is none of ours
            if not (part / LOCK).exists():
                part.rmdir()  # killed before it had written anything; what has files and no lock is none of ours
                continue
            with _lock(part):
                shutil.rmtree(part)
            logger.warning("removed %s, which was left when its writer was killed", part)


def _lock(part: Path) -> filelock.FileLock:
    return filelock.FileLock(part / LOCK, blocking=False, is_singleton=False, thread_local=False)
