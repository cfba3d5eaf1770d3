"""The attic: what was forgotten and is kept for a while, so that time travel can bring it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fedlab.hub.log import episode_hash, vector_hash
from fedlab.hub.schema import attic, changes, episode_sources, episodes, listed, vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH = 500
"""Episodes purged or brought back with one statement."""
_CONTENT = [column.name for column in episodes.c if column.name not in ("id", "hash")]


def pack(connection: sa.Connection, numbers: Sequence[int]) -> dict[int, bytes]:
    """The content of live episodes, by number."""
    sources: dict[int, list[str]] = {}
    query = sa.select(episode_sources.c.episode_id, episode_sources.c.source)
    query = query.where(listed(episode_sources.c.episode_id, numbers)).order_by(episode_sources.c.position)
    for number, source in connection.execute(query):
        sources.setdefault(number, []).append(source)
    rows = connection.execute(
        sa.select(*(episodes.c[name] for name in _CONTENT), episodes.c.id, vectors.c.vector)
        .join(vectors, vectors.c.episode_id == episodes.c.id)
        .where(listed(episodes.c.id, numbers))
    )
    packed = {}
    for *content, number, vector in rows:
        # With the names: a later version of the tables may have more columns.
        fields = dict(zip(_CONTENT, content, strict=True))
        packed[number] = msgspec.msgpack.encode([fields, vector, sources.get(number, [])])
    return packed


def keep(connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Put packed episodes into the attic: rows of its table."""
    if rows:
        names = [column.name for column in attic.c]
        connection.execute(sa.insert(attic), [dict(zip(names, row, strict=True)) for row in rows])


def bring_back(connection: sa.Connection, seq: int) -> set[int]:
    """Take out of the attic, and make live again, what was live at a seq; returns the numbers."""
    back: set[int] = set()
    wanted = (attic.c.id <= seq, attic.c.forgotten_seq > seq)
    query = sa.select(attic.c.id, attic.c.content, changes.c.digest).join(changes, changes.c.seq == attic.c.id)
    while rows := connection.execute(query.where(*wanted).limit(BATCH)).all():
        whole = {number: fields for number, content, wanted in rows if (fields := _unpack(content, wanted))}
        for number, (content, vector, sources) in whole.items():
            of_vector = vector_hash(content["uid"], vector)
            digest = _digest(content, vector, sources)
            connection.execute(sa.insert(episodes), {"id": number, **content, "hash": digest})
            connection.execute(sa.insert(vectors), {"episode_id": number, "vector": vector, "hash": of_vector})
            for position, source in enumerate(sources):
                row = {"episode_id": number, "position": position, "source": source}
                connection.execute(sa.insert(episode_sources), row)
        back.update(whole)
        connection.execute(sa.delete(attic).where(attic.c.id.in_([row.id for row in rows])))
    return back


def holds_older(connection: sa.Connection, before: int) -> bool:
    """Whether `purge` would find something."""
    return connection.scalar(_OLDER, {"before": before}) is not None


_OLDER = sa.select(attic.c.id).where(attic.c.forgotten_at <= sa.bindparam("before")).limit(1)


def purge(connection: sa.Connection, before: int) -> int:
    """Remove up to `BATCH` episodes that were forgotten at or before a time (ms UTC); returns how many."""
    old = sa.select(attic.c.id).where(attic.c.forgotten_at <= before).limit(BATCH)
    return connection.execute(sa.delete(attic).where(attic.c.id.in_(old))).rowcount


def problems(connection: sa.Connection) -> Iterator[str]:
    """What is damaged in the attic, one sentence each."""
    query = (
        sa.select(attic, changes.c.digest, episodes.c.id.label("live"))
        .outerjoin(changes, changes.c.seq == attic.c.id)
        .outerjoin(episodes, episodes.c.id == attic.c.id)
    )
    for row in connection.execute(query.execution_options(yield_per=BATCH)):
        if _unpack(row.content, row.digest) is None:
            yield f"attic: episode {row.uid!r:.80} (number {row.id}) is not what the log says was stored"
        if row.live is not None:
            yield f"attic: episode {row.uid!r:.80} (number {row.id}) is live as well"


def _unpack(content: bytes, digest: bytes | None) -> tuple[dict[str, Any], bytes, list[str]] | None:
    """The columns, the vector and the sources; None if they are not what was stored."""
    try:
        fields, vector, sources = msgspec.msgpack.decode(content)
        return (fields, vector, sources) if _digest(fields, vector, sources) == digest else None
    except (msgspec.MsgspecError, TypeError, ValueError, KeyError, AttributeError):
        return None


def _digest(fields: dict[str, Any], vector: bytes, sources: list[str]) -> bytes:
    return episode_hash([fields[name] for name in _CONTENT], sources, vector_hash(fields["uid"], vector))
