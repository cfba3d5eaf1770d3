"""A backup beside copying the same files with `shutil.copy` and fsync, as anyone would who has to be sure of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import data
from fedlab import Hub
from fedlab.hub.backups import verify_backup

ROUNDS = 7
COPIED = "x copy and fsync of the files"


def copy_files(source: Path, target: Path) -> None:
    """The document's way, made durable; the hub stands still."""
    target.mkdir()
    for file in source.glob("hub.db*"):
        shutil.copy(file, target)
        with (target / file.name).open("rb+") as copied:
            os.fsync(copied.fileno())


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def backups(folder: Path, rows: int = 100_000) -> list[tuple]:
    """Full ones, turn about with copies, and an incremental one of 1,000 more episodes."""
    with Hub(folder / "hub", embedder="hashing") as hub:
        episodes = data.episodes(rows + 1_000)
        for part in range(0, rows, 1_000):
            hub.put(episodes[part : part + 1_000])
        plain, ours = [], []
        for number in range(ROUNDS):
            copied, made = folder / "copy", folder / f"backup-{number}"
            plain.append(seconds(lambda c=copied: copy_files(hub.path, c)))
            shutil.rmtree(copied)
            ours.append(seconds(lambda m=made: hub.backup(m)))
            if number:
                shutil.rmtree(made)
        size = (folder / "backup-0" / "hub.db").stat().st_size / 1e6
        hub.put(episodes[rows:])
        more = seconds(lambda: hub.backup(folder / "more", base=folder / "backup-0"))
    full = float(np.median(ours))
    whole = seconds(lambda: verify_backup(folder / "backup-0"))
    back = seconds(lambda: Hub.restore(folder / "more", folder / "restored", embedder="hashing").close())
    return [
        (f"backup, {rows:,} episodes", size / full, float(np.median(np.divide(plain, ours))), "MB/s", 0.5, COPIED),
        ("  incremental, 1,000 new", more * 1e3, more / full, "ms", -0.5, "x a full one"),
        ("  verified", size / whole, whole, "MB/s", -30.0, "s"),
        ("  restored with the incremental one", size / back, back, "MB/s", -30.0, "s"),
    ]


def main() -> list[tuple]:
    with tempfile.TemporaryDirectory() as name:
        return backups(Path(name))


if __name__ == "__main__":
    for row in main():
        print(row)
