"""Random streams: which numbers are drawn depends on the seed, what for, the generation and the agent, and on nothing
else. Arms share them (common random numbers), so that a paired difference is not one of luck.
"""

from __future__ import annotations

import random
import zlib

import numpy as np


def stream(seed: int, purpose: str, generation: int = 0, agent: int = 0) -> np.random.Generator:
    """The generator for one purpose.

    Args:
        seed: Of the cell, not negative.
        purpose: What is drawn.
        generation: In which generation; counts from 0.
        agent: By which place in the generation; counts from 0.
    """
    key = (zlib.crc32(purpose.encode()), generation, agent)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def id_stream(seed: int, generation: int, agent: int) -> random.Random:
    """Of the ids that an agent gives its episodes."""
    return random.Random(f"{seed}/{generation}/{agent}")  # noqa: S311  # no secret: it has to give the same ids again
