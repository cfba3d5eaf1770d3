"""`Arm`: one experimental condition, a learner under one regime of memory."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fedlab.retention import KeepForever, RetentionPolicy

if TYPE_CHECKING:
    from fedlab.lab.learner import Learner, Query


@dataclass(frozen=True)
class NoisyEvaluator:
    """Agents write what they believe to be a success: they see the reward with noise.

    Args:
        sigma: Standard deviation of the noise.
        threshold: What is written has at least this observed reward.
    """

    sigma: float
    threshold: float = 0.5


@dataclass(frozen=True)
class Islands:
    """The agents of a generation live in several tenants, which share a part of what they store.

    Args:
        tenants: How many.
        migration: The share of a generation's episodes, 0 to 1, that is copied to the next tenant in a ring after it.
    """

    tenants: int
    migration: float = 0.0


@dataclass(frozen=True)
class Arm:
    """One experimental condition.

    Args:
        name: Unique in an experiment; it names the arm in frames, plots and files.
        learner: Answers the tasks.
        retention: What is forgotten, between generations.
        recall: What is recalled for a task, instead of what the learner asks for.
        write: What agents store: everything, successes (a reward of 0.5 or more), or what a noisy evaluator takes
            for one.
        sharing: Who shares a memory: all agents of a cell; nobody, so that each place in a generation hands on to
            its own successor alone; or islands.
        feedback: Whether agents learn only their reward, or also what would have been right.
        capacity: Most episodes of a memory; the newest stay.
    """

    name: str
    learner: Learner
    retention: RetentionPolicy = field(default_factory=KeepForever)
    recall: Query | None = None
    write: Literal["everything", "successes"] | NoisyEvaluator = "everything"
    sharing: Literal["all", "none"] | Islands = "all"
    feedback: Literal["bandit", "corrective"] = "bandit"
    capacity: int | None = None

    @property
    def slug(self) -> str:
        """The name as it stands in names of files and tenants: no two arms have the same."""
        return slug(self.name)

    def tenants(self, agents: int) -> list[str]:
        """Names of the tenants of a cell; place p of a generation lives in tenant p modulo their number.

        Args:
            agents: Of a generation.
        """
        if isinstance(self.sharing, Islands):
            return [f"island-{number}" for number in range(self.sharing.tenants)]
        return [f"place-{place}" for place in range(agents)] if self.sharing == "none" else ["all"]


def slug(name: str) -> str:
    """The name of an arm as it stands in names of files and tenants.

    >>> slug("forever"), slug("90 days!")
    ('forever', '90-days-ac1c1f04')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return plain if plain == name else f"{plain or 'arm'}-{zlib.crc32(name.encode()):08x}"
