"""The persistent core: synchronous, thread-safe, no networking.

`put → log → consumers`: a change and its log row are one transaction (`log.py`, `writer.py`); the vector
index (`index.py`) and everything else follow the log and can be rebuilt from the database.
"""

from fedlab.hub.hub import Hub

__all__ = ["Hub"]
