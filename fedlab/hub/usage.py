"""What is asked of a memory: how often an episode was recalled, and a tenant's last queries.

These are statistics and no part of the log. They are gathered in RAM, because a recall must not wait for a disk, and
written now and then: a crash loses what was gathered last.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from fedlab.hub.schema import packed, queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fedlab.hub.log import Transaction

MOST = 1_000
"""Recalls that are gathered before they are written."""
QUERIES = 100
"""Queries that are kept of each tenant."""

_RECALLED = """
INSERT INTO recalls (episode_id, times, last_at)
SELECT episodes.id, json_extract(new.value, '$[1]'), json_extract(new.value, '$[2]')
FROM json_each(?) AS new CROSS JOIN episodes ON episodes.id = json_extract(new.value, '$[0]')
WHERE true
ON CONFLICT (episode_id) DO UPDATE SET times = times + excluded.times, last_at = max(last_at, excluded.last_at)
"""
_ASKED = """
INSERT INTO queries (tenant_id, at, k, vector)
SELECT ?1, json_extract(new.value, '$[0]'), json_extract(new.value, '$[1]'), substr(?3, 1 + new.key * ?4, ?4)
FROM json_each(?2) AS new
"""
_FADED = """
DELETE FROM queries WHERE tenant_id = ?1 AND id NOT IN (
    SELECT id FROM queries WHERE tenant_id = ?1 ORDER BY id DESC LIMIT ?2)
"""


class Recalled(NamedTuple):
    """One recall.

    Args:
        ids: The episodes that it gave.
        query: As a vector, float16; None where the recall looked at no similarity.
        at: Ms UTC.
    """

    tenant_id: str
    ids: Sequence[int]
    query: npt.NDArray[Any] | None
    k: int
    at: int


class Usage:
    """The recalls that are not written yet; any thread may add one."""

    def __init__(self) -> None:
        self._recalls: deque[Recalled] = deque()
        self._ids = 0

    def add(self, recalled: Recalled) -> bool:
        """Remember a recall; true when it is time to write what there is."""
        self._recalls.append(recalled)
        self._ids += len(recalled.ids)
        return len(self._recalls) >= MOST or self._ids >= 10 * MOST

    def take(self) -> list[Recalled]:
        """What there is, which from now on is the caller's to write."""
        self._ids = 0
        return [self._recalls.popleft() for _ in range(len(self._recalls))]

    def drop(self, tenant_id: str, *, whole: bool) -> None:
        """Forget the recalls of a tenant that is being erased: one that is made later under its name has none.

        Args:
            tenant_id: Whose.
            whole: If only a part of it is erased, the queries alone: whose each was is not known.
        """
        for each in self.take():
            if each.tenant_id != tenant_id:
                self.add(each)
            elif not whole:
                self.add(each._replace(query=None))


def write(tx: Transaction, taken: Sequence[Recalled]) -> None:
    """Add to the statistics; what was forgotten or erased meanwhile is left out."""
    tx.flush()
    times: Counter[int] = Counter()
    last_at: dict[int, int] = {}
    asked: dict[str, list[Recalled]] = {}
    for each in taken:
        times.update(each.ids)
        last_at.update(dict.fromkeys(each.ids, each.at))
        if each.query is not None and (each.tenant_id in tx.tenants or each.tenant_id in tx.new_tenants):
            asked.setdefault(each.tenant_id, []).append(each)
    # In one step each, see `log`.
    run = tx.cursor.execute
    run(_RECALLED, (packed((number, times[number], last_at[number]) for number in sorted(times)),))
    for tenant_id, recent in asked.items():
        last = recent[-QUERIES:]
        vectors = [np.asarray(each.query, "<f2").tobytes() for each in last]
        run(_ASKED, (tenant_id, packed((each.at, each.k) for each in last), b"".join(vectors), len(vectors[0])))
        run(_FADED, (tenant_id, QUERIES))


def read_queries(connection: sa.Connection, tenant_id: str) -> list[npt.NDArray[Any]]:
    """A tenant's last queries as vectors, the newest first."""
    query = sa.select(queries.c.vector).where(queries.c.tenant_id == tenant_id).order_by(queries.c.id.desc())
    return [np.frombuffer(vector, dtype="<f2") for vector in connection.scalars(query)]
