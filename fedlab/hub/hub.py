"""The `Hub`: the persistent memory of many tenants, embedded. Its methods are in the modules beside this one:
`episodes.py`, `registry.py`, `frames.py`, `aggregates.py`, `retaining.py`, `holding.py`, `erasure.py`, `copying.py`,
`transfer.py`; how it opens and closes is in `core.py`.
"""

from __future__ import annotations

from fedlab._html import table
from fedlab._words import counted
from fedlab.episode import Episode  # noqa: F401 - for the docstring
from fedlab.hub.aggregates import AggregateMethods
from fedlab.hub.copying import CopyMethods
from fedlab.hub.erasure import ErasureMethods
from fedlab.hub.frames import FrameMethods
from fedlab.hub.holding import HoldMethods
from fedlab.hub.registry import AgentMethods
from fedlab.hub.retaining import RetentionMethods
from fedlab.hub.transfer import TransferMethods


class Hub(
    AgentMethods,
    FrameMethods,
    AggregateMethods,
    RetentionMethods,
    HoldMethods,
    ErasureMethods,
    CopyMethods,
    TransferMethods,
):
    """Keeps every episode of every tenant until someone asks for it to be forgotten.

    All methods are thread-safe, and what was written before a call began is seen by it. Writes are durable
    when they return; `*_soon` gives a future instead, so that many callers can share one fsync.

    Args:
        path: A directory (made if it is not there), or ":memory:" for a hub that is gone when it is closed.
        clock: Gives every change its time.
        embedder: Makes vectors of texts: an `Embedder`, or a name; MiniLM for a new hub. An existing hub
            opens with the one it was made with.
        durability: "full" survives loss of power, "normal" all but that, "off" is for throw-away runs.
        max_agents_per_tenant: How many may be alive at once.
        lease: Seconds after which an agent whose connection is lost counts as crashed.
        keep_forgotten: How long the content of forgotten episodes is kept, out of reach of everyone, so that
            `fork` and `restore` can bring it back: a timedelta or seconds. A hub remembers what it was told; a
            new one does not keep it at all.

    Raises:
        HubLocked: If another process has the directory open.
        IncompatibleHub: If it was made with another embedder or by another version.
        CorruptHub: If its database is damaged.

    >>> with Hub(":memory:", embedder="hashing") as hub:
    ...     seq = hub.put(Episode(tenant_id="acme", agent_id="a1", task="add", input="1+1", output="2", reward=1))
    ...     [memory.output for memory in hub.recall("acme", "add 1+1", k=1)]
    ['2']
    """

    def __repr__(self) -> str:
        if self.closed:
            return f"Hub({str(self.path)!r}, closed)"
        numbers = self.stats()
        return (
            f"Hub({str(self.path)!r}, {counted(numbers.episodes, 'episode')} of {counted(numbers.tenants, 'tenant')},"
            f" {counted(numbers.agents_alive, 'agent')} alive)"
        )

    def _repr_html_(self) -> str:
        if self.closed:
            return table(f"Hub {self.path}", [("state", "closed")])
        numbers = self.stats()
        rows = [
            ("tenants", numbers.tenants),
            ("episodes", numbers.episodes),
            ("forgotten", f"{numbers.forgotten:,}, {numbers.kept:,} of them kept for time travel"),
            ("agents", f"{numbers.agents:,}, {numbers.agents_alive:,} of them alive"),
            ("changes", numbers.seq),
            ("on disk", f"{numbers.bytes / 1e6:,.1f} MB"),
            ("embedder", self.embedder.name),
        ]
        return table(f"Hub {self.path}", rows)
