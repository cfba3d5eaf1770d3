"""Retention at work: what a policy would remove, and removing it in batches that never hold the writer long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import sqlalchemy as sa

from fedlab.hub import operations
from fedlab.hub.schema import episodes, holds, listed, tenants
from fedlab.retention import KeepForever, RetentionPolicy, Rows
from fedlab.retention.rows import united

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlab.hub.log import Transaction
    from fedlab.hub.writer import Writer
    from fedlab.retention import Ids

CALM, BUSY = 0.02, 0.003
"""Seconds that a batch should take: while nobody else writes, and while others wait for it."""
PATIENCE = 20
"""Batches in which nobody else wrote, after which nobody seems to."""
FEWEST, MOST = 32, 1_000
"""Episodes in one batch."""


class Verdict(NamedTuple):
    """What is to go, ids ascending.

    Args:
        expired: Whose own `expires_at` has come.
        condemned: What the policy removes beside that.
        held: What would go too, but is held.
    """

    expired: Ids
    condemned: Ids
    held: Ids


def read_policy(connection: sa.Connection, tenant_id: str) -> RetentionPolicy:
    """A tenant's stored policy; `KeepForever` where none is stored."""
    held = connection.scalar(sa.select(tenants.c.retention).where(tenants.c.tenant_id == tenant_id))
    return KeepForever() if held is None else RetentionPolicy.from_json(held)


def judge(connection: sa.Connection, tenant_id: str, policy: RetentionPolicy, now: int) -> Verdict:
    """What a policy removes at `now` (ms UTC), decided at one moment."""
    rows = Rows(connection, tenant_id, now)
    expired = rows.ids(episodes.c.expires_at <= now)
    condemned = rows.ids(policy.condemned(rows))
    query = sa.select(holds.c.episode_id).where(holds.c.tenant_id == tenant_id).order_by(holds.c.episode_id)
    exempt = np.array(connection.scalars(query).all(), np.int64)
    return Verdict(
        expired=np.setdiff1d(expired, exempt, assume_unique=True),
        condemned=np.setdiff1d(condemned, united(expired, exempt), assume_unique=True),
        held=np.intersect1d(united(expired, condemned), exempt, assume_unique=True),
    )


def carry_out(writer: Writer, tenant_id: str, verdict: Verdict, policy: RetentionPolicy) -> int:
    """Forget what is to go, each logged with the reason; returns how many were still there, and not held."""
    removed = 0
    reasons = ("retention: its expires_at has come", f"retention: {policy}")
    for ids, reason in zip((verdict.expired, verdict.condemned), reasons, strict=True):

        def forget(tx: Transaction, part: Ids, reason: str = reason) -> int:
            # Looked at again: since the decision, some may have been held, forgotten, or be on the way to be erased.
            if tenant_id in tx.erased.under_way:
                return 0
            held = sa.exists().where(holds.c.episode_id == episodes.c.id)
            query = sa.select(episodes.c.uid, episodes.c.id).where(listed(episodes.c.id, part.tolist()), ~held)
            going = {row.uid: row.id for row in tx.connection.execute(query)}
            operations.remove(tx, tenant_id, going, reason=reason, actor="retention")
            return len(going)

        removed += in_batches(writer, ids, forget)
    return removed


def in_batches(writer: Writer, ids: Ids, operation: Callable[[Transaction, Ids], int]) -> int:
    """Do something to many episodes, each batch in a transaction of its own; returns the sum of what it returns.

    A batch is as long as the time that the one before took allows.
    """
    total, start, size, busy = 0, 0, FEWEST, 0
    while start < len(ids):
        part = ids[start : start + size]
        began = 0.0

        def work(tx: Transaction, part: Ids = part) -> int:
            nonlocal began
            began = time.perf_counter()
            return operation(tx, part)

        writer.commit_waiting()  # who pushed during the batch before does not wait for this one too
        total += writer.run(work, weight=len(part))
        took = max(time.perf_counter() - began, 1e-6)
        start += len(part)
        busy = PATIENCE if writer.waiting else max(0, busy - 1)
        size = int(min(MOST, max(FEWEST, len(part) / took * (BUSY if busy else CALM))))
    return total
