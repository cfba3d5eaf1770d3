"""The spool: a file of JSON lines, one episode each, for agents that must die while their hub is away.

Agents append to it; `push_spool` sends what is in it and empties it. Several agents may share one file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedlab._words import counted
from fedlab.agent.transport import open_connection
from fedlab.batches import batches
from fedlab.episode import Episode, decode_vector, encode_vector
from fedlab.errors import FedlabError, IdConflict, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filelock import BaseFileLock

    from fedlab.hub import Hub
    from fedlab.net import HubConnection

log = logging.getLogger(__name__)


def append_spool(path: str | os.PathLike[str], episodes: Sequence[Episode]) -> None:
    """Append episodes to a spool file; they survive loss of power when this returns.

    Raises:
        OSError: If the file can not be written.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(_encoder.encode(episode) + b"\n" for episode in episodes)
    with _lock(file), file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # a process died while it wrote the last line
                lines = b"\n" + lines
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())


def read_spool(path: str | os.PathLike[str]) -> tuple[list[Episode], list[bytes]]:
    """The episodes of a spool file, and the lines that hold none."""
    episodes: list[Episode] = []
    damaged: list[bytes] = []
    file = Path(path)
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        if not line.strip():
            continue
        try:
            episodes.append(_decoder.decode(line))
        except (msgspec.DecodeError, InvalidRequest, ValueError):
            damaged.append(line)
    return episodes, damaged


async def push_spool(path: str | os.PathLike[str], hub: str | Hub | HubConnection, token: str | None = None) -> int:
    """Send the episodes of a spool file to a hub and empty the file; may be repeated at will.

    Episodes that the hub forgot meanwhile are left out. What the hub refuses, and lines that hold no episode
    (a process died while it wrote), stay in the file; a file of which nothing is left is deleted.

    Args:
        path: The spool file; one that does not exist is an empty one.
        hub: A URL, a `Hub` or an open connection.
        token: For a URL; it must allow writing for the agents of the file.

    Returns:
        How many episodes the hub has now.

    Raises:
        IdConflict: If the hub has another episode of the same id; the others were sent.
        HubUnavailable: If the hub is away; the file is as it was.
    """
    file = Path(path)
    with _lock(file):
        episodes, damaged = read_spool(file)
    if not episodes and not damaged:
        return 0
    connection, own = open_connection(hub, token)
    try:
        refused, problem = await _push(connection, episodes)
    finally:
        if own:
            await connection.close()
    stored = {episode.id for episode in episodes} - {episode.id for episode in refused}
    # The lock is not held while the hub is talked to: agents may die meanwhile, and append.
    with _lock(file):
        _remove(file, stored)
    if damaged:
        log.warning("%s of %s hold no episode, and stay there", counted(len(damaged), "line"), file)
    if problem is not None:
        raise problem
    return len(stored)


async def _push(connection: HubConnection, episodes: list[Episode]) -> tuple[list[Episode], FedlabError | None]:
    """Put episodes; returns those that the hub refused, and why."""
    refused: list[Episode] = []
    problem: FedlabError | None = None
    for each in batches(episodes):
        batch = each
        while batch:
            try:
                await connection.put(batch)
                break
            except IdConflict as conflict:
                concerned = {episode.id for episode in batch} & set(conflict.ids)
                if not concerned:
                    raise
                if not conflict.forgotten:
                    refused += [episode for episode in batch if episode.id in concerned]
                    problem = conflict
                batch = [episode for episode in batch if episode.id not in concerned]
    return refused, problem


def _remove(file: Path, ids: set[str]) -> None:
    """Take episodes out of the file, by way of a new one."""
    if not file.exists():
        return
    episodes, lines = read_spool(file)
    lines += [_encoder.encode(episode) for episode in episodes if episode.id not in ids]
    if not lines:
        file.unlink()
        return
    fresh = file.with_name(file.name + ".new")
    with fresh.open("wb") as stream:
        stream.write(b"".join(line + b"\n" for line in lines))
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def _lock(file: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(f"{file}.lock", timeout=10)


_encoder = msgspec.json.Encoder(enc_hook=encode_vector)
_decoder = msgspec.json.Decoder(Episode, dec_hook=decode_vector)
