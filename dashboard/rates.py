"""What a server's metrics say of the time between two looks at them: requests a second, their latencies."""

from __future__ import annotations

from collections import defaultdict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LOOKS = 30
"""Looks between whose first and last the numbers are."""
STEPS = 300
"""Looks of which a chart tells."""


class Look(NamedTuple):
    """What was counted up to a moment.

    Args:
        at: When, in seconds.
        outcomes: Requests by method and outcome.
        buckets: By method, how many were answered within each bound in seconds, cumulative.
        connections: Open ones.
        refused: Connections refused, by HTTP status.
    """

    at: float
    outcomes: Mapping[tuple[str, str], float]
    buckets: Mapping[str, Mapping[float, float]]
    connections: int
    refused: Mapping[str, float]


def look(samples: Iterable[tuple[str, Mapping[str, str], float]], at: float) -> Look:
    """A look at a server's metrics.

    Args:
        samples: Name, labels, value.
        at: When, in seconds.
    """
    outcomes: dict[tuple[str, str], float] = {}
    buckets: dict[str, dict[float, float]] = defaultdict(dict)
    refused, connections = {}, 0.0
    for name, labels, value in samples:
        if name == "fedlab_requests_total":
            outcomes[labels["method"], labels["outcome"]] = value
        elif name == "fedlab_request_seconds_bucket":
            buckets[labels["method"]][float(labels["le"])] = value
        elif name == "fedlab_refused_total":
            refused[labels["status"]] = value
        elif name == "fedlab_connections":
            connections = value
    return Look(at, outcomes, buckets, int(connections), refused)


def between(first: Look, last: Look) -> pl.DataFrame:
    """What happened between two looks: a row for each method that was asked, the most asked first.

    Returns:
        `method`; `per_second`, `p50_ms`, `p95_ms` of the time between; `failed`, how many then; `requests` since the
        server began.
    """
    elapsed = max(last.at - first.at, 1e-3)
    rows = []
    for method in sorted({method for method, _ in last.outcomes}):
        counts = {outcome: value for (name, outcome), value in last.outcomes.items() if name == method}
        new = {outcome: value - first.outcomes.get((method, outcome), 0.0) for outcome, value in counts.items()}
        known = first.buckets.get(method, {})
        within = {bound: value - known.get(bound, 0.0) for bound, value in last.buckets.get(method, {}).items()}
        p50, p95 = (quantile(share, list(within), list(within.values())) for share in (0.5, 0.95))
        failed = sum(value for outcome, value in new.items() if outcome != "ok")
        rows.append((method, sum(new.values()) / elapsed, p50, p95, int(failed), int(sum(counts.values()))))
    schema = {"method": pl.String, "per_second": pl.Float64, "p50_ms": pl.Float64, "p95_ms": pl.Float64}
    frame = pl.DataFrame(rows, {**schema, "failed": pl.Int64, "requests": pl.Int64}, orient="row")
    return frame.sort("per_second", "requests", descending=True)


def quantile(share: float, bounds: Sequence[float], within: Sequence[float]) -> float | None:
    """A quantile in milliseconds, even within a bucket, as Prometheus' `histogram_quantile` has it; None of nothing.

    Args:
        share: From 0 to 1.
        bounds: Of the buckets, ascending, in seconds; the last is infinite.
        within: How many took at most so long.

    >>> quantile(0.5, [0.001, 0.002, float("inf")], [0, 10, 10])
    1.5
    """
    if not within or not within[-1]:
        return None
    rank = share * within[-1]
    low, before = 0.0, 0.0
    for bound, count in zip(bounds, within, strict=True):
        if count >= rank and count > before:
            # Of what took longer than the last bound, that bound is all that is known.
            return 1000 * (low if bound == float("inf") else low + (bound - low) * (rank - before) / (count - before))
        low, before = bound, count
    return None


class History:
    """What a session has seen of a server: metrics of the last minute, and what happened between each two looks."""

    def __init__(self) -> None:
        self.looks: deque[Look] = deque(maxlen=LOOKS)
        self._steps: deque[pl.DataFrame] = deque(maxlen=STEPS)

    def add(self, new: Look) -> None:
        """One look more."""
        if self.looks:
            if any(new.outcomes.get(key, 0) < value for key, value in self.looks[-1].outcomes.items()):
                self.looks.clear()  # the server began anew
            else:
                step = between(self.looks[-1], new).select("method", "per_second", "p95_ms")
                self._steps.append(step.with_columns(at=pl.lit(datetime.fromtimestamp(new.at, UTC))))
        self.looks.append(new)

    def steps(self, most: int = 6) -> pl.DataFrame:
        """Each look's `at`, `method`, `per_second` and `p95_ms`; of the methods that were asked most."""
        if not self._steps:
            return pl.DataFrame(schema={"method": pl.String, "per_second": pl.Float64})
        steps = pl.concat(self._steps)
        asked = steps.group_by("method").agg(pl.col("per_second").sum()).filter(pl.col("per_second") > 0)
        shown = asked.sort("per_second", "method", descending=True)["method"].head(most)
        return steps.filter(pl.col("method").is_in(shown.implode())).sort("at", "method")
