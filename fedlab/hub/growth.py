"""How a memory grew: what was stored, forgotten (and why) and erased in each stretch of time. Pure: from columns to
frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fedlab.hub.columns import named

if TYPE_CHECKING:
    from collections.abc import Collection

    import polars as pl

    from fedlab.hub.columns import Columns

By = Literal["tenant", "agent", "generation"]
MOST_BINS, MOST_GROUPS = 1_000, 100
"""Most stretches of time, and groups, that are told apart."""
COLUMNS = {"tenant": "tenant_id", "agent": "agent_id", "generation": "generation"}


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

    events = _events(columns, tenant_id, by, tenants)
    if events.is_empty():
        return _result(events.clear(), by)
    stretch, until = _stretch(events["at"], since, until, bins)
    since = stretch.since
    sizes = events.group_by("group").agg(pl.col("stored").sum()).drop_nulls("group")
    largest = sizes.sort(["stored", "group"], descending=[True, False]).head(top)["group"]
    told_apart = pl.when(pl.col("group").is_in(largest.implode())).then("group").alias("group")
    place = ((pl.col("at") - since) // stretch.width).clip(lower_bound=-1).alias("bin")
    counted = (
        events.lazy()
        .filter(pl.col("at") < until)
        .group_by(told_apart, place)
        .agg(pl.col("stored", "forgotten", "erased", "bytes").sum())
        .collect()
    )
    places = pl.DataFrame({"bin": range(-1, stretch.bins)}, schema={"bin": pl.Int64})
    dense = (
        counted.select("group")
        .unique()
        .join(places, how="cross")
        .join(counted, on=["group", "bin"], how="left", nulls_equal=True)
        .with_columns(pl.col("stored", "forgotten", "erased", "bytes").fill_null(0))
        .sort("group", "bin", nulls_last=True)
        .with_columns((pl.col("stored") - pl.col("forgotten") - pl.col("erased")).cum_sum().over("group").alias("live"))
        .filter(pl.col("bin") >= 0)
        .with_columns((pl.col("bin") * stretch.width + since).alias("at"))
    )
    return _result(dense, by)


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


def _events(columns: Columns, tenant_id: str | None, by: By, tenants: Collection[str]) -> pl.DataFrame:
    """`group`, `at`, and 1 in one of `stored`, `forgotten`, `erased`; `bytes` of what was stored and is live."""
    from fedlab._polars import pl

    log, erased, held = columns.log, named(columns, tenants), columns.episodes
    if tenant_id is not None:
        log, erased, held = (each.filter(pl.col("tenant_id") == tenant_id) for each in (log, erased, held))
    log = log.join(held.select("number", "agent_id", "generation", "bytes"), on="number", how="left")
    nothing = pl.lit(None)
    group: pl.Expr = pl.col("tenant_id").cast(pl.String)
    lost: pl.Expr = pl.col("tenant_id")
    if by == "agent":
        # The log knows only who stored what is forgotten: nearly always the agent itself.
        stored_by = log.filter(~pl.col("forgotten")).select("number", stored_by="actor")
        log = log.join(stored_by, on="number", how="left")
        group, lost = pl.coalesce(pl.col("agent_id", "stored_by").cast(pl.String)), nothing.cast(pl.String)
    elif by == "generation":
        group, lost = pl.col("generation"), nothing.cast(pl.Int64)
    stored = ~pl.col("forgotten")
    one, none = pl.lit(1, pl.Int64), pl.lit(0, pl.Int64)
    parts = [
        log.select(
            group.alias("group"),
            "at",
            stored=stored.cast(pl.Int64),
            forgotten=pl.col("forgotten").cast(pl.Int64),
            erased=none,
            bytes=pl.when(stored).then(pl.col("bytes")).fill_null(0),
        )
    ]
    for at, is_stored in (("stored_at", one), ("at", none)):
        parts.append(
            erased.select(
                lost.alias("group"),
                pl.col(at).alias("at"),
                stored=is_stored,
                forgotten=none,
                erased=one - is_stored,
                bytes=none,
            )
        )
    return pl.concat(parts)


def _result(frame: pl.DataFrame, by: By) -> pl.DataFrame:
    from fedlab._polars import pl

    frame = frame if "live" in frame.columns else frame.with_columns(live=pl.lit(0, pl.Int64))
    time = pl.col("at").cast(pl.Datetime("ms", "UTC")).alias("time")
    return frame.select(time, pl.col("group").alias(COLUMNS[by]), "stored", "forgotten", "erased", "live", "bytes")
