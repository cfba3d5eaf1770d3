"""Retention at work: what a policy would remove, and removing it in batches that never hold the writer long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from fedlab.hub import operations
from fedlab.hub.schema import episodes, tenants
from fedlab.hub.values import RetentionPreview
from fedlab.retention import KeepForever, RetentionPolicy

if TYPE_CHECKING:
    from fedlab.hub.log import Transaction
    from fedlab.hub.writer import Writer

BATCH = 500
"""Episodes forgotten in one transaction: about 10 ms of the writer."""


def read_policy(connection: sa.Connection, tenant_id: str) -> RetentionPolicy:
    """A tenant's stored policy; `KeepForever` where none is stored."""
    held = connection.scalar(sa.select(tenants.c.retention).where(tenants.c.tenant_id == tenant_id))
    return KeepForever() if held is None else RetentionPolicy.from_json(held)


def preview(connection: sa.Connection, tenant_id: str, policy: RetentionPolicy, now: int) -> RetentionPreview:
    """How many episodes a policy would remove at `now` (ms UTC), and how many would stay."""
    own = episodes.c.tenant_id == tenant_id
    count = sa.select(sa.func.count()).select_from(episodes)
    total = connection.scalar(count.where(own)) or 0
    removed = connection.scalar(count.where(own, policy.condemned(tenant_id, now))) or 0
    return RetentionPreview(tenant_id=tenant_id, policy=str(policy), removed=removed, kept=total - removed)


def condemned(connection: sa.Connection, tenant_id: str, policy: RetentionPolicy, now: int) -> list[str]:
    """Ids of what a policy removes at `now`, decided at one moment."""
    if isinstance(policy, KeepForever):
        return []
    query = sa.select(episodes.c.uid).where(episodes.c.tenant_id == tenant_id, policy.condemned(tenant_id, now))
    return list(connection.scalars(query))


def remove(writer: Writer, tenant_id: str, ids: list[str], policy: RetentionPolicy) -> int:
    """Forget episodes, each logged with the policy as the reason; returns how many were still there."""
    reason = f"retention: {policy}"
    removed = 0
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]

        def forget(tx: Transaction, part: list[str] = part) -> int:
            return operations.forget(tx, tenant_id, part, reason=reason, actor="retention")

        removed += writer.run(forget, weight=len(part))
    return removed
