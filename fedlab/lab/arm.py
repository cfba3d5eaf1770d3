"""`Arm`: one experimental condition, a learner under one regime of memory."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Query
from fedlab.recall import check_count
from fedlab.retention import KeepForever, RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedlab.lab.learner import Learner


NO_WORLD = "Islands are how the agents of an arm share, and no world: Arm(…, sharing=Islands(tenants=4, migration=0.1))"
"""What is said to whoever would wrap a world in them."""


@dataclass(frozen=True)
class NoisyEvaluator:
    """Agents write what they believe to be a success: they see the reward with noise.

    Args:
        sigma: Standard deviation of the noise.
        threshold: What is written has at least this observed reward.

    Raises:
        InvalidRequest: If one of these is no such number.
    """

    sigma: float
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _check_number(self.sigma, "sigma", least=0)
        _check_number(self.threshold, "threshold")


@dataclass(frozen=True)
class Islands:
    """The agents of a generation live in several tenants, which share a part of what they store.

    Args:
        tenants: How many.
        migration: The share of a generation's episodes, 0 to 1, that is copied to the next tenant in a ring after it.

    Raises:
        InvalidRequest: If one of these is no such number.
    """

    tenants: int = 2
    migration: float = 0.0

    def __post_init__(self) -> None:
        if hasattr(self.tenants, "tasks"):
            raise InvalidRequest(NO_WORLD, field="tenants")
        check_count(self.tenants, "tenants", least=1)
        _check_number(self.migration, "migration", least=0, most=1)


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

    Raises:
        InvalidRequest: If one of these is not what it should be.
    """

    name: str
    learner: Learner
    retention: RetentionPolicy = field(default_factory=KeepForever)
    recall: Query | None = None
    write: Literal["everything", "successes"] | NoisyEvaluator = "everything"
    sharing: Literal["all", "none"] | Islands = "all"
    feedback: Literal["bandit", "corrective"] = "bandit"
    capacity: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise wrong("name", "a text that is not empty", self.name, of="of an Arm ")
        own = f"of arm {self.name!r} "
        check_object(self.learner, "learner", ("act",), own)
        policy = "a RetentionPolicy, such as MaxAge(90) or RetentionPolicy.parse('MaxAge(90)')"
        allowed: tuple[tuple[str, tuple[str | None, ...], tuple[type, ...], str], ...] = (
            ("retention", (), (RetentionPolicy,), policy),
            ("recall", (None,), (Query,), "a Query or None"),
            ("write", ("everything", "successes"), (NoisyEvaluator,), "'everything', 'successes' or a NoisyEvaluator"),
            ("sharing", ("all", "none"), (Islands,), "'all', 'none' or Islands"),
            ("feedback", ("bandit", "corrective"), (), "'bandit' or 'corrective'"),
        )
        for name, words, kinds, wanted in allowed:
            value = getattr(self, name)
            if value not in words and not isinstance(value, kinds):
                raise wrong(name, wanted, value, of=own)
        most = self.capacity
        if most is not None and (not isinstance(most, Integral) or isinstance(most, bool) or most < 1):
            raise wrong("capacity", "an integer from 1, or None", most, of=own)

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


def wrong(field: str, wanted: str, value: object, *, of: str = "") -> InvalidRequest:
    """The error that says what an argument must be, and what it is.

    Args:
        field: Name of the argument.
        wanted: What would be right.
        value: What was given.
        of: Whose argument it is, with a space at its end.
    """
    return InvalidRequest(f"{field} {of}must be {wanted}, not {type(value).__name__} {value!r:.80}", field=field)


def check_object(value: object, field: str, verbs: Sequence[str], of: str = "") -> None:
    """Refuse what lacks a method, and a class where an object of it is meant.

    Raises:
        InvalidRequest: If it is one of these.
    """
    for verb in verbs:
        if not callable(getattr(value, verb, None)):
            raise wrong(field, f"an object with {' and '.join(verbs)} (this one has no {verb})", value, of=of)
    if isinstance(value, type):
        raise wrong(field, f"an object, such as {value.__name__}(…), and no class", value, of=of)


def _check_number(value: object, what: str, *, least: float = -math.inf, most: float = math.inf) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not math.isfinite(value)
        or not least <= float(value) <= most
    ):
        limits = f" from {least:g}" if least > -math.inf else ""
        raise wrong(what, f"a finite number{limits}{f' to {most:g}' if most < math.inf else ''}", value)


def slug(name: str) -> str:
    """The name of an arm as it stands in names of files and tenants.

    >>> slug("forever"), slug("90 days!")
    ('forever', '90-days-ac1c1f04')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return plain if plain == name else f"{plain or 'arm'}-{zlib.crc32(name.encode()):08x}"
