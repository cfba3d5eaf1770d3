"""What a server counts, as Prometheus text: requests by method and outcome, their latency, the hub's numbers."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from fedlab.hub.values import Stats

BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Upper bounds of the latency histogram, in seconds."""
GAUGES = {
    "tenants": "Tenants of the hub.",
    "episodes": "Live episodes.",
    "forgotten": "Episodes that were stored once and forgotten since.",
    "agents_alive": "Agents whose life has not ended.",
    "seq": "The last change of the log.",
    "bytes": "Size of the hub's files.",
}
"""Numbers of `Stats` that are shown, and what they mean."""


class Metrics(Collector):
    """One server's numbers, in a registry of its own.

    Counted in plain numbers on the event loop and made into metrics when someone looks: the library's own
    counters take locks, which costs a twentieth of a push.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.backup_age: float | None = None
        self.refused: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._latency: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()
        self._stats: Stats | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count(self, method: str, outcome: str, seconds: float) -> None:
        """One request was answered.

        Args:
            method: A name in `METHODS`, or "unknown".
            outcome: "ok", or the code of the error.
            seconds: How long it took.
        """
        self._requests[method, outcome] += 1
        self._seconds[method] += seconds  # type: ignore[assignment]  # a Counter adds floats as well
        latency = self._latency.get(method)
        if latency is None:
            latency = self._latency[method] = [0] * (len(BUCKETS) + 1)
        latency[bisect.bisect_left(BUCKETS, seconds)] += 1

    def render(self, stats: Stats) -> str:
        """Everything as text, with the hub's numbers as they are now."""
        self._stats = stats
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """The metrics, for the registry."""
        requests = CounterMetricFamily(
            "fedlab_requests", "Requests by method and outcome.", labels=["method", "outcome"]
        )
        for labels, value in self._requests.items():
            requests.add_metric(labels, value)
        yield requests
        latency = HistogramMetricFamily("fedlab_request_seconds", "From the message to its answer.", labels=["method"])
        bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
        for method, counts in self._latency.items():
            buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
            latency.add_metric([method], buckets, self._seconds[method])
        yield latency
        refused = CounterMetricFamily("fedlab_refused", "Connections refused, by HTTP status.", labels=["status"])
        for status, value in self.refused.items():
            refused.add_metric([status], value)
        yield refused
        yield GaugeMetricFamily("fedlab_connections", "Open connections.", self.connections)
        if self.backup_age is not None:
            yield GaugeMetricFamily("fedlab_backup_age_seconds", "Since the last good backup.", self.backup_age)
        for name, meaning in GAUGES.items():
            if self._stats is not None:
                yield GaugeMetricFamily(f"fedlab_{name}", meaning, getattr(self._stats, name))
