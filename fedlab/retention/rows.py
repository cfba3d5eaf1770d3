"""The rows among which a policy chooses: those of one tenant, or a part of them, at one moment.

Conditions are left to the database. What has to be ordered comes as columns and is ordered with NumPy: SQLite's window
functions take 3 to 5 s for a million rows, reading the columns and sorting them 1 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from fedlab.hub.schema import changes, episode_sources, episodes, listed, vectors
from fedlab.hub.sketches import basis, sketch, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlab.hub.index import TenantIndex
    from fedlab.recall import Filter

Ids = npt.NDArray[np.int64]
"""Numbers of episodes (`episodes.c.id`), ascending."""

DAY = 86_400_000
IN_RAM = {"reward", "created_at", "task", "agent_id"}
"""Columns of `episodes` that an index has."""
_DTYPES = {sa.Text: "O", sa.Double: "f8"}


@dataclass(frozen=True)
class Rows:
    """Some episodes of a tenant.

    Args:
        connection: Sees one moment of the database.
        tenant_id: Whose episodes.
        now: Ms UTC.
        where: Which part of them; all if empty.
        index: The tenant's, if it is at hand: it has some columns in RAM.
    """

    connection: sa.Connection
    tenant_id: str
    now: int
    where: tuple[sa.ColumnElement[bool], ...] = ()
    index: TenantIndex | None = None

    def part(self, where: Filter) -> Rows:
        """Those of these rows that pass a filter."""
        return replace(self, where=(*self.where, *conditions(where)))

    def before(self, days: float) -> int:
        """The time so many days ago, ms UTC; the beginning of all times, if they are more than there were."""
        return self.now - round(min(days * DAY, self.now))

    def ids(self, chosen: sa.ColumnElement[bool] | Ids | None = None) -> Ids:
        """The chosen of these rows, or all: by a condition on `episodes`, or by what already are ids."""
        if isinstance(chosen, np.ndarray):
            return united(chosen)
        condition = () if chosen is None else (chosen,)
        return np.sort(self._read(sa.select(episodes.c.id).where(*self._own, *condition))["id"])

    def columns(self, *columns: sa.ColumnElement[Any]) -> tuple[npt.NDArray[Any], ...]:
        """The ids of these rows and the columns, each of shape (n,), in the order of the ids."""
        own = [column.name for column in columns if getattr(column, "table", None) is episodes]
        if self.index is not None and len(own) == len(columns) and set(own) <= IN_RAM:
            return self.index.columns(own, self.ids() if self.where else None)
        read = self._read(sa.select(episodes.c.id, *columns).where(*self._own))
        order = np.argsort(read["id"], kind="stable")  # which is quick, for they come nearly in order
        return tuple(read[name][order] for name in read.dtype.names or ())

    def uses(self, min_reward: float | None = None) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Which of the tenant's episodes are a source of its live ones, and how often: ids and counts.

        Args:
            min_reward: Count only uses by episodes with at least this reward.
        """
        # Counted by their text first; then only what is used at all is looked up, in the log's index.
        citing = [episodes.c.tenant_id == self.tenant_id]
        if min_reward is not None:
            citing.append(episodes.c.reward >= min_reward)
        used = (
            sa.select(episode_sources.c.source, sa.func.count().label("times"))
            .join(episodes, episodes.c.id == episode_sources.c.episode_id)
            .where(*citing)
            .group_by(episode_sources.c.source)
            .subquery()
        )
        query = sa.select(changes.c.seq.label("id"), used.c.times).join_from(
            used,
            changes,
            sa.and_(
                changes.c.tenant_id == self.tenant_id,
                changes.c.kind == sa.literal_column("'episode_stored'"),
                changes.c.subject == used.c.source,
            ),
        )
        read = self._read(query)
        order = np.argsort(read["id"])
        return read["id"][order], read["times"][order]

    def vectors(self, ids: Ids) -> npt.NDArray[np.float16]:
        """Of episodes, in their order, shape (n, dimension)."""
        query = sa.select(vectors.c.vector).where(listed(vectors.c.episode_id, ids.tolist()))
        packed = b"".join(self.connection.scalars(query.order_by(vectors.c.episode_id)))
        held = np.frombuffer(packed, dtype="<f2").reshape(len(ids), -1)
        return held[np.argsort(np.argsort(ids))]

    def sketches(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Short unit vectors of episodes, in their order, no less similar to each other than the vectors are."""
        if self.index is None:
            made = unit(self.vectors(ids))
            return sketch(made, basis(made))
        order = np.argsort(ids)
        return np.asarray(self.index.sketches(ids[order])[np.argsort(order)])

    @cached_property
    def vector_bytes(self) -> int:
        """Bytes of one vector: the same for all."""
        return self.connection.scalar(sa.select(sa.func.length(vectors.c.vector)).limit(1)) or 0

    @property
    def size(self) -> sa.ColumnElement[int]:
        """Bytes of an episode's content: its texts, its metadata and its vector."""
        texts = (episodes.c.task, episodes.c.input, episodes.c.output, episodes.c.metadata)
        total: Any = sum((sa.func.length(sa.cast(text, sa.LargeBinary)) for text in texts), sa.literal(0))
        return (total + self.vector_bytes).label("size")  # type: ignore[no-any-return]

    @property
    def _own(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (episodes.c.tenant_id == self.tenant_id, *self.where)

    def _read(self, query: sa.Select[Any]) -> npt.NDArray[Any]:
        """The result as a structured array. From the driver's cursor: a million `Row`s take longer than SQLite.

        Whole numbers are packed by SQLite into one JSON array for each column, which takes a third of the time.
        """
        dtype = [(column.name, _DTYPES.get(type(column.type), "i8")) for column in query.selected_columns]
        if all(kind == "i8" for _, kind in dtype):
            packed = sa.select(*(sa.func.json_group_array(column) for column in query.subquery().c))
            values = [msgspec.json.decode(each) for each in self.connection.execute(packed).one()]
            made = np.empty(len(values[0]), np.dtype(dtype))
            for (name, _), each in zip(dtype, values, strict=True):
                made[name] = each
            return made
        result: Any = self.connection.execute(query)
        read: npt.NDArray[Any] = np.fromiter(result.cursor, np.dtype(dtype))
        return read


def conditions(where: Filter) -> list[sa.ColumnElement[bool]]:
    """A filter as conditions on `episodes`."""
    c = episodes.c
    made: dict[str, Callable[[Any], sa.ColumnElement[bool]]] = {
        "min_reward": lambda value: c.reward >= value,
        "since": lambda value: c.created_at >= value,
        "until": lambda value: c.created_at < value,
        "task": lambda value: c.task == value,
        "agent_id": lambda value: c.agent_id == value,
    }
    given = msgspec.structs.asdict(where)
    return [make(given[name]) for name, make in made.items() if given[name] is not None]


def united(*parts: npt.NDArray[Any]) -> Ids:
    """The ids that are in any of the parts, ascending, each once (`np.unique` hashes: five times the time)."""
    ids = np.sort(np.concatenate(parts).astype(np.int64))
    return np.asarray(ids[np.diff(ids, prepend=ids[:1] - 1) != 0])


def newest_first(ids: Ids, created_at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions in this order; of what was made at once, the later stored first."""
    return np.lexsort((-ids, -created_at))


def codes(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Equal small numbers for equal values."""
    known: dict[Any, int] = {}
    return np.fromiter((known.setdefault(value, len(known)) for value in values), np.int64, len(values))
