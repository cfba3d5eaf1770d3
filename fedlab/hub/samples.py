"""A uniform sample of a tenant's live episodes, the same for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from fedlab.hub import reading
from fedlab.hub.columns import TASK, generation_sql
from fedlab.hub.schema import episodes, listed
from fedlab.recall import uniform

if TYPE_CHECKING:
    import polars as pl

MOST = 20_000
"""Episodes of the largest sample."""


def sample(
    connection: sa.Connection, selected: pl.DataFrame, n: int, *, seed: int, dimension: int, vectors: bool
) -> pl.DataFrame:
    """The frame of `Hub.sample`, whose arguments these are, of selected episodes."""
    numbers = np.sort(selected["number"].to_numpy())
    if len(numbers) > n:
        # Each episode has its own draw: where one comes or goes, the others stay in the sample.
        numbers = np.sort(numbers[np.argpartition(uniform(numbers, seed), n)[:n]])
    c = episodes.c
    query = sa.select(
        c.id.label("seq"),
        c.uid.label("id"),
        c.tenant_id,
        c.agent_id,
        *(sa.func.substr(column, 1, TASK, type_=sa.Text).label(column.name) for column in (c.task, c.output)),
        c.reward,
        c.created_at,
        sa.literal_column(generation_sql(), sa.BigInteger).label("generation"),
    )
    query = query.where(listed(c.id, numbers.tolist())).order_by(c.id)
    frame = reading.frame_of(connection, query)
    return reading.with_vectors(connection, frame, dimension) if vectors else frame
