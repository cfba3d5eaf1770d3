"""What a server counts, as Prometheus text: requests by method and outcome, their latency, and the hub's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from fedlab.hub.values import Stats

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_GAUGES = {
    "tenants": "Tenants of the hub.",
    "episodes": "Live episodes.",
    "forgotten": "Episodes that were stored once and forgotten since.",
    "agents_alive": "Agents whose life has not ended.",
    "seq": "The last change of the log.",
    "bytes": "Size of the hub's files.",
}


class Metrics:
    """One server's numbers, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "fedlab_requests", "Requests by method and outcome.", ["method", "outcome"], registry=self.registry
        )
        self._latency = Histogram(
            "fedlab_request_seconds",
            "From the message to its answer.",
            ["method"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.connections = Gauge("fedlab_connections", "Open connections.", registry=self.registry)
        self.refused = Counter(
            "fedlab_connections_refused", "Refused, by HTTP status.", ["status"], registry=self.registry
        )
        self._hub = {name: Gauge(f"fedlab_{name}", help_, registry=self.registry) for name, help_ in _GAUGES.items()}
        # Looking up a child by its labels costs more than counting.
        self._outcomes: dict[tuple[str, str], Counter] = {}
        self._latencies: dict[str, Histogram] = {}

    def count(self, method: str, outcome: str, seconds: float) -> None:
        """One request was answered.

        Args:
            method: A name in `METHODS`, or "unknown".
            outcome: "ok", or the code of the error.
            seconds: How long it took.
        """
        key = (method, outcome)
        counter = self._outcomes.get(key)
        if counter is None:
            counter = self._outcomes[key] = self._requests.labels(method, outcome)
            self._latencies[method] = self._latency.labels(method)
        counter.inc()
        self._latencies[method].observe(seconds)

    def render(self, stats: Stats) -> str:
        """Everything as text, with the hub's numbers as they are now."""
        for name, gauge in self._hub.items():
            gauge.set(getattr(stats, name))
        return generate_latest(self.registry).decode()
