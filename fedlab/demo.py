"""The demo: generations of short-lived agents of three tenants on one hub, which is killed half-way.

It uses what every user has: a hub process, agents over the socket, the ToolChoice data, and simulated days.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from tqdm import tqdm

from fedlab.agent import EphemeralAgent
from fedlab.clock import SimulatedClock
from fedlab.episode import embedding_text
from fedlab.errors import HubUnavailable, InvalidRequest, UnsyncedEpisodes
from fedlab.hub.process import HubProcess
from fedlab.lab import Task, ToolChoice
from fedlab.net import connect

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import polars as pl
    import plotly.graph_objects as go

    from fedlab.net import HubConnection

MEMORYLESS = "no-memory"
TENANTS = ("acme", "globex", MEMORYLESS)
"""Two that remember, each on tasks of its own, and one without memory on the tasks of the first."""
DAYS = 10
"""Simulated days between two generations."""
PUSH = 4
"""Episodes of one push."""
