"""Retention at work: what a policy would remove, and removing it in batches that never hold the writer long."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from fedlab.hub import attic, operations, schema
from fedlab.hub.schema import episodes, holds, listed, tenants
from fedlab.retention import KeepForever, RetentionPolicy, Rows
from fedlab.retention.rows import united

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlab.hub.index import TenantIndex
    from fedlab.hub.log import Transaction
    from fedlab.hub.writer import Writer
    from fedlab.retention import Ids

CALM = 0.04
"""Seconds that a batch should take while nobody else writes."""
BUSY = 1.5
"""What it should take while others write, in the time of their small commits, so that none of them waits for long …"""
SHORTEST = 0.001
"""… and in seconds at least."""
PATIENCE = 0.5
"""Seconds in which nobody else wrote, after which nobody seems to."""
FEWEST, FIRST, MOST = 16, 128, 1_000
"""Episodes in one batch: while others write, at first, and while nobody does."""


class Verdict(NamedTuple):
    """What is to go, ids ascending.

    Args:
        expired: Whose own `expires_at` has come.
        condemned: What each part of the policy removes beside that, and beside what those before it remove.
        held: What would go too, but is held.
    """

    expired: Ids
    condemned: list[tuple[RetentionPolicy, Ids]]
    held: Ids

    @property
    def going(self) -> Ids:
        """All that is to go."""
        return united(self.expired, *(ids for _, ids in self.condemned))


def read_policy(connection: sa.Connection, tenant_id: str) -> RetentionPolicy:
    """A tenant's stored policy; `KeepForever` where none is stored."""
    held = connection.scalar(_POLICY, {"tenant": tenant_id})
    return KeepForever() if held is None else RetentionPolicy.from_json(held)


def read_concerned(connection: sa.Connection, now: int) -> set[str]:
    """The tenants of which something may have to go at `now` (ms UTC): most of a hub's many have no policy."""
    with_policy = sa.select(tenants.c.tenant_id).where(tenants.c.retention.is_not(None))
    with_expired = sa.select(episodes.c.tenant_id).where(episodes.c.expires_at <= now)
    return set(connection.scalars(with_policy.union(with_expired)))


def judge(
    connection: sa.Connection, index: TenantIndex | None, tenant_id: str, policy: RetentionPolicy, now: int
) -> Verdict:
    """What a policy removes at `now` (ms UTC), decided at one moment; with the tenant's index it takes less time."""
    rows = Rows(connection, tenant_id, now, index=index)
    expired, exempt = (
        np.sort(np.array(msgspec.json.decode(connection.execute(query, own).scalar_one()), np.int64))
        for query, own in ((_EXPIRED, {"tenant": tenant_id, "now": now}), (_HELD, {"tenant": tenant_id}))
    )
    removing = [(part, part.chosen(rows)) for part in policy.parts]
    condemned, settled = [], united(expired, exempt)
    for part, ids in removing:
        condemned.append((part, np.setdiff1d(ids, settled, assume_unique=True)))
        settled = united(settled, ids)
    return Verdict(
        expired=np.setdiff1d(expired, exempt, assume_unique=True),
        condemned=condemned,
        held=np.intersect1d(united(expired, *(ids for _, ids in removing)), exempt, assume_unique=True),
    )


_POLICY = sa.select(tenants.c.retention).where(tenants.c.tenant_id == sa.bindparam("tenant"))
# Packed by SQLite, see `Rows`.
_EXPIRED = sa.select(sa.func.json_group_array(episodes.c.id)).where(
    episodes.c.tenant_id == sa.bindparam("tenant"), episodes.c.expires_at <= sa.bindparam("now")
)
_HELD = sa.select(sa.func.json_group_array(holds.c.episode_id)).where(holds.c.tenant_id == sa.bindparam("tenant"))


def carry_out(writer: Writer, engine: sa.Engine, tenant_id: str, verdict: Verdict, *, keep: bool) -> int:
    """Forget what is to go, each logged with the reason; returns how many were still there, and not held.

    Args:
        writer: Commits.
        engine: For reading.
        tenant_id: Whose episodes.
        verdict: What is to go.
        keep: Whether what is forgotten goes to the attic.
    """
    removed = 0
    for why, ids in [("its expires_at has come", verdict.expired), *verdict.condemned]:

        def prepare(part: Ids, reason: str = f"retention: {why}") -> Callable[[Transaction], int]:
            # What an episode is never changes: it is packed before anyone has to wait for it.
            packed: dict[int, bytes] = {}
            if keep:
                with schema.begin(engine) as connection:
                    packed = attic.pack(connection, part.tolist())
            return lambda tx: _forget(tx, tenant_id, part, packed, reason)

        removed += in_batches(writer, ids, prepare)
    return removed


def _forget(tx: Transaction, tenant_id: str, part: Ids, packed: dict[int, bytes], reason: str) -> int:
    # Looked at again: since the decision, some may have been held, forgotten, or be on the way to be erased.
    if tenant_id in tx.erased.under_way:
        return 0
    # In one step, see `log`.
    (columns,) = tx.run(_STILL_THERE, numbers=schema.packed(part.tolist()))
    going = dict(zip(*map(msgspec.json.decode, columns.values()), strict=True))
    operations.remove(tx, tenant_id, going, reason=reason, actor="retention", packed=packed)
    return len(going)


_STILL_THERE = sa.select(
    sa.func.json_group_array(episodes.c.uid).label("uids"), sa.func.json_group_array(episodes.c.id).label("ids")
).where(listed(episodes.c.id, sa.bindparam("numbers")), ~sa.exists().where(holds.c.episode_id == episodes.c.id))


def in_batches(writer: Writer, ids: Ids, prepare: Callable[[Ids], Callable[[Transaction], int]]) -> int:
    """Do something to many episodes, each batch in a transaction of its own; returns the sum of what these return.

    While nobody else writes, batches are long and follow each other. While others do, a batch takes about one and a
    half times as long as a commit of theirs, and as long again nothing is done: most of them find the writer free.

    Args:
        writer: Commits.
        ids: Of the episodes.
        prepare: Makes the operation of a batch, outside of its transaction.
    """
    total, start, size = 0, 0, FIRST
    seen, others = writer.asked, -math.inf
    while start < len(ids):
        part = ids[start : start + size]
        operation, began = prepare(part), 0.0

        def work(tx: Transaction, operation: Callable[[Transaction], int] = operation) -> int:
            nonlocal began
            began = time.perf_counter()
            return operation(tx)

        writer.commit_waiting()  # who pushed meanwhile does not wait for this batch too
        total += writer.run(work, weight=len(part))
        ended = time.perf_counter()
        took = max(ended - began, 1e-6)
        start += len(part)
        if writer.asked > seen + 1:
            others = ended
        seen = writer.asked
        goal = CALM
        if ended - others < PATIENCE:
            goal = min(CALM, max(SHORTEST, BUSY * writer.usual))
            time.sleep(took)
        size = int(min(MOST, max(FEWEST, len(part) / took * goal)))
    return total
