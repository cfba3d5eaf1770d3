"""What an agent reports."""

from __future__ import annotations

import msgspec

from fedlab._html import table


class SyncReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one sync did.

    Args:
        pushed: Own episodes that the hub now has for good.
        pulled: Episodes of others that are new in RAM.
        forgotten: Episodes that left RAM because the hub forgot them.
        seq: The hub's log up to here is known to the agent.
    """

    pushed: int
    pulled: int
    forgotten: int
    seq: int

    def _repr_html_(self) -> str:
        rows = [(name, getattr(self, name)) for name in ("pushed", "pulled", "forgotten")]
        return table(f"Synced with the hub, up to change {self.seq:,}", rows)
