"""What a retention policy would do: how many would go, which, and what recall would be without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from fedlab.hub.schema import episodes, listed
from fedlab.hub.usage import read_queries
from fedlab.hub.values import RecallEffect, RetentionPreview
from fedlab.retention import Rows
from fedlab.retention.rows import DAY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import numpy.typing as npt

    from fedlab.hub.forgetting import Verdict
    from fedlab.hub.index import TenantIndex
    from fedlab.hub.searching import Hit
    from fedlab.retention import Ids, RetentionPolicy

TOP = 10
"""Tasks and agents that a preview names, and memories of a recall that it compares."""
SAMPLE = 10_000
"""Episodes whose sizes are read; of more, so many evenly spaced ones stand for all."""
AGES = {
    "under 1 minute": 1 / 1440,
    "1 to 60 minutes": 1 / 24,
    "1 to 24 hours": 1,
    "1 to 7 days": 7,
    "7 to 30 days": 30,
    "30 to 90 days": 90,
    "90 to 365 days": 365,
}
AGE_NAMES = [*AGES, "over 365 days"]
REWARDS = np.arange(10) / 10
REWARD_NAMES = ["below 0", *(f"{low:.1f} to {low + 0.1:.1f}" for low in REWARDS[:-1]), "0.9 and above"]


def preview(
    connection: sa.Connection, index: TenantIndex, tenant_id: str, policy: RetentionPolicy, verdict: Verdict, now: int
) -> RetentionPreview:
    """Describe a verdict.

    Args:
        connection: The one that the verdict was made with.
        index: The tenant's: its columns in RAM are counted in a moment, those on disk in seconds.
        tenant_id: Whose episodes.
        policy: Which it was.
        verdict: What would go.
        now: Ms UTC.
    """
    going = verdict.going
    total = connection.scalar(sa.select(sa.func.count()).where(episodes.c.tenant_id == tenant_id)) or 0
    columns = index.describe(going)
    _, made_at, rewards = index.columns(("created_at", "reward"))
    by_age, by_reward = _counts(columns.created_at, columns.rewards, now)
    # Who stores or forgets meanwhile is in the index before the verdict could know.
    all_by_age, all_by_reward = _counts(made_at, rewards, now)
    return RetentionPreview(
        tenant_id=tenant_id,
        policy=str(policy),
        removed=len(going),
        kept=total - len(going),
        expired=len(verdict.expired),
        held=len(verdict.held),
        bytes=_bytes(connection, tenant_id, going, now),
        by_task=_top(columns.tasks),
        by_agent=_top(columns.agents),
        by_age=_named(AGE_NAMES, by_age),
        by_reward=_named(REWARD_NAMES, by_reward),
        kept_by_age=_named(AGE_NAMES, np.maximum(all_by_age - by_age, 0)),
        kept_by_reward=_named(REWARD_NAMES, np.maximum(all_by_reward - by_reward, 0)),
        recall=_effect(index, read_queries(connection, tenant_id), going),
    )


def _bytes(connection: sa.Connection, tenant_id: str, ids: Ids, now: int) -> int:
    if not len(ids):
        return 0
    some = ids[np.linspace(0, len(ids) - 1, min(SAMPLE, len(ids))).astype(np.int64)]
    size = Rows(connection, tenant_id, now).size
    read = connection.scalar(sa.select(sa.func.sum(size)).where(listed(episodes.c.id, some.tolist()))) or 0
    return int(read * len(ids) / len(some))


def _effect(index: TenantIndex, queries: list[npt.NDArray[Any]], going: Ids) -> RecallEffect | None:
    """Compare the memories that the queries find with those that they would find."""
    if not queries:
        return None
    pairs = index.compare(queries, TOP, going)
    lost = [len({hit.id for hit in before} - {hit.id for hit in after}) for before, after in pairs]
    rewards = [_mean_reward(index, [each[side] for each in pairs]) for side in (0, 1)]
    return RecallEffect(
        queries=len(pairs), changed=sum(lost) / len(pairs), reward_before=rewards[0], reward_after=rewards[1]
    )


def _mean_reward(index: TenantIndex, found: list[list[Hit]]) -> float | None:
    ids, times = np.unique([hit.id for hits in found for hit in hits], return_counts=True)
    return float(np.average(index.describe(ids).rewards, weights=times)) if len(ids) else None


def _top(counts: Mapping[str, int]) -> dict[str, int]:
    named = sorted(((count, name) for name, count in counts.items() if count), key=lambda each: (-each[0], each[1]))
    return {name: count for count, name in named[:TOP]}


def _counts(
    created_at: npt.NDArray[Any], rewards: npt.NDArray[Any], now: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many episodes there are of each age and of each reward."""
    age = np.maximum(now - created_at, 0) / DAY
    return _buckets(age, list(AGES.values())), _buckets(rewards, REWARDS)


def _buckets(values: npt.NDArray[Any], edges: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """How many values lie below the first edge, from there to the next, and so on."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(np.atleast_1d(edges)) + 1)


def _named(names: list[str], counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """Counts with their names; without those of nothing."""
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
