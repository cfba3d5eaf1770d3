"""The persistent core: synchronous, thread-safe, no networking.

`put → log → consumers`: a change and its log row are one transaction (`log.py`, `writer.py`); the vector
index (`index.py`) and everything else follow the log and can be rebuilt from the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlab.hub.hub import Hub

__all__ = ["Hub"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the policies are written over `schema.py`, and the hub needs the policies.
    if name == "Hub":
        from fedlab.hub.hub import Hub

        return Hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
