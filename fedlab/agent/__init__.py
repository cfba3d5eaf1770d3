"""Ephemeral agents: one short life each, everything in RAM, what was learned pushed to the hub before it ends.

`agent.py` is the life, `memory.py` the RAM, `spool.py` the file for episodes of an agent that died without its hub.
"""

from fedlab.agent.agent import EphemeralAgent
from fedlab.agent.spool import push_spool
from fedlab.agent.values import SyncReport

__all__ = ["EphemeralAgent", "SyncReport", "push_spool"]
