"""How a memory grew: what was stored, forgotten (and why) and erased in each stretch of time. Pure: from columns to
frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedlab.hub.columns import named

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt
    import polars as pl

    from fedlab.hub.columns import Columns

    Array = npt.NDArray[Any]

By = Literal["tenant", "agent", "generation"]
MOST_BINS, MOST_GROUPS = 1_000, 100
"""Most stretches of time, and groups, that are told apart."""
COLUMNS = {"tenant": "tenant_id", "agent": "agent_id", "generation": "generation"}
KINDS = ("stored", "forgotten", "erased", "bytes")


class Part(NamedTuple):
    """Some events, or episodes, that are counted.

    Args:
        kind: As what: one of `KINDS`.
        group: Whose each is, or null.
        at: When each was, ms UTC.
        bytes: How many each has, if that is to be counted, too.
    """

    kind: str
    group: pl.Series
    at: pl.Series
    bytes: pl.Series | None = None

    def counted(self, names: pl.Series, edges: Array) -> dict[str, Array]:
        """How many there are, and how many bytes, by kind: tables of names (the last row: none) and times (the first
        column: before the first edge).
        """
        group, known = (each.to_physical() if each.dtype == names.dtype else each for each in (self.group, names))
        order = known.arg_sort().to_numpy()
        place = np.full(len(group), len(names))
        told = group.is_not_null().to_numpy()
        if len(names):
            place[told] = order[np.searchsorted(known.to_numpy()[order], group.drop_nulls().to_numpy())]
        width = len(edges) + 1
        cell = place * width + np.searchsorted(edges, self.at.to_numpy(), side="right")
        weights = {self.kind: None} | ({} if self.bytes is None else {"bytes": self.bytes.to_numpy()})
        # Of bytes, doubles hold sums up to 9 PB exactly.
        return {
            kind: np.bincount(cell, weight, (len(names) + 1) * width).reshape(-1, width).astype(np.int64)
            for kind, weight in weights.items()
        }


class Stretch(NamedTuple):
    """Some bins of equal width.

    Args:
        since: Ms UTC: the start of the first.
        width: Ms.
        bins: How many.
    """

    since: int
    width: int
    bins: int

    @classmethod
    def of(cls, since: int, until: int, bins: int) -> Stretch:
        """From one time up to another, in at most so many bins of whole milliseconds."""
        span = max(1, until - since)
        width = -(-span // bins)
        return cls(since, width, -(-span // width))


def growth(
    columns: Columns,
    tenant_id: str | None,
    *,
    since: int | None,
    until: int | None,
    bins: int,
    by: By,
    top: int,
    tenants: Collection[str],
) -> pl.DataFrame:
    """The frame of `Hub.growth`, whose arguments these are; `tenants` are those that are still there."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    parts = _parts(columns, tenant_id, by, tenants)
    held = [part for part in parts if len(part.at)]
    if not held:
        return _result({}, [], Stretch(0, 1, 1), by)
    times = pl.concat([part.at for part in held])
    stretch, until = _stretch(times, since, until, bins)
    edges = np.append(stretch.since + stretch.width * np.arange(stretch.bins), until)
    named = pl.concat([part.group.drop_nulls().unique() for part in held]).unique()
    counts = {kind: np.zeros((len(named) + 1, len(edges) + 1), np.int64) for kind in KINDS}
    for part in held:
        for kind, table in part.counted(named, edges).items():
            counts[kind] += table
    names: list[Any] = named.cast(pl.String).to_list() if by != "generation" else named.to_list()
    sizes = counts["stored"].sum(axis=1)
    # The last column is what came later, the last row what has no name; those that are not told apart go with it.
    told = sorted(sorted(range(len(names)), key=lambda each: (-sizes[each], names[each]))[:top], key=names.__getitem__)
    rest = np.setdiff1d(np.arange(len(names) + 1), told)
    rows = {
        kind: np.vstack([table[told], table[rest].sum(axis=0, keepdims=True)])[:, :-1] for kind, table in counts.items()
    }
    return _result(rows, [*(names[each] for each in told), None], stretch, by)


def forgetting(
    columns: Columns, tenant_id: str | None, *, since: int | None, until: int | None, bins: int
) -> pl.DataFrame:
    """The frame of `Hub.forgetting`, whose arguments these are."""
    from fedlab._polars import pl

    log = columns.log if tenant_id is None else columns.log.filter(pl.col("tenant_id") == tenant_id)
    gone = log.filter("forgotten").with_columns(last_at="at")
    if len(log):
        stretch, until = _stretch(log["at"], since, until, bins)
        gone = gone.filter(pl.col("at") >= stretch.since, pl.col("at") < until).with_columns(
            (pl.col("at") - stretch.since) // stretch.width * stretch.width + stretch.since
        )
    names = pl.col("tenant_id", "reason").cast(pl.String)
    time = pl.col("at").cast(pl.Datetime("ms", "UTC")).alias("time")
    counted = gone.group_by(time, names).agg(pl.len().cast(pl.Int64).alias("forgotten"), pl.col("last_at").max())
    return counted.sort("time", "tenant_id", "reason")


def _stretch(at: pl.Series, since: int | None, until: int | None, bins: int) -> tuple[Stretch, int]:
    """The bins, and where the last ends; from the first change to the last if it is not said."""
    first, last = at.min(), at.max()
    assert isinstance(first, int)
    assert isinstance(last, int)
    since = min(first, first if until is None else until - 1) if since is None else since
    # Where nothing happened since, there is one stretch in which nothing did.
    until = max(last, since) + 1 if until is None else until
    return Stretch.of(since, until, bins), until


def _parts(columns: Columns, tenant_id: str | None, by: By, tenants: Collection[str]) -> list[Part]:
    """What counts as what: events of the log, episodes that are live with their bytes, and what was erased."""
    from fedlab._polars import pl

    log, erased, live = columns.log, named(columns, tenants), columns.episodes
    if tenant_id is not None:
        log, erased, live = (each.filter(pl.col("tenant_id") == tenant_id) for each in (log, erased, live))
    name = COLUMNS[by]
    forgotten = log.filter("forgotten")
    once = log.filter(~pl.col("forgotten")).join(forgotten, on="number", how="semi")
    # The log knows only who stored what is forgotten: nearly always the agent itself; and no generation.
    known = {"tenant": pl.col("tenant_id"), "agent": pl.col("actor"), "generation": pl.lit(None, pl.Int64)}[by]
    once = once.select("number", "at", group=known)
    forgotten = forgotten.select("number", "at").join(once.select("number", "group"), on="number", how="left")
    lost = (erased["tenant_id"] if by == "tenant" else pl.Series([None] * len(erased))).cast(live[name].dtype)
    return [
        Part("stored", live[name], live["stored_at"], live["bytes"]),
        Part("stored", once["group"], once["at"]),
        Part("stored", lost, erased["stored_at"]),
        Part("forgotten", forgotten["group"], forgotten["at"]),
        Part("erased", lost, erased["at"]),
    ]


def _result(rows: Mapping[str, Array], names: Sequence[object], stretch: Stretch, by: By) -> pl.DataFrame:
    """A row for each group in which anything happened before the end, and each stretch; the first column is before."""
    from fedlab._polars import pl

    zone = pl.Datetime("ms", "UTC")
    schema = {"time": zone, COLUMNS[by]: pl.Int64 if by == "generation" else pl.String}
    schema |= dict.fromkeys(("stored", "forgotten", "erased", "live", "bytes"), pl.Int64)
    if not rows:
        return pl.DataFrame(schema=schema)
    live = (rows["stored"] - rows["forgotten"] - rows["erased"]).cumsum(axis=1)
    there: list[int] = np.flatnonzero(sum(table.sum(axis=1) for table in rows.values())).tolist()
    table = {kind: each[there, 1:].ravel() for kind, each in {**rows, "live": live}.items()}
    table["time"] = np.tile(stretch.since + stretch.width * np.arange(stretch.bins), len(there))
    groups = [names[each] for each in there for _ in range(stretch.bins)]
    frame = pl.DataFrame({**table, COLUMNS[by]: pl.Series(groups, dtype=schema[COLUMNS[by]])})
    return frame.select(pl.col(name).cast(kind) for name, kind in schema.items())
