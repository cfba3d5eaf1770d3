"""Which memories a query returns, and in which order: recall policies and filters.

A policy is a weighted sum of four parts, so any mix of them is again a policy and travels on the wire as
plain data. Everything here is a pure function of arrays; the index in `fedlab.hub` feeds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fedlab.clock import to_ms
from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

MAX_K = 10_000
"""Most memories of one recall."""
MAX_IDS = 10_000
"""Most ids of one look at episodes."""


class RecallPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How memories are ranked: score = sum of weight times part, larger first, newer first among equals.

    Policies add and multiply: `Similarity() + 0.5 * Reward() + 0.2 * Recency(half_life_days=30)`.

    Args:
        similarity: Weight of the cosine to the query, -1 to 1.
        reward: Weight of the episode's reward, as stored.
        recency: Weight of 2^(-age / half-life), 0 to 1.
        random: Weight of a uniform draw from [0, 1) for each episode.
        half_life_days: Age at which recency is one half.
        seed: Of the random draws; the same seed gives an episode the same draw.

    Raises:
        InvalidRequest: On weights that are not finite, all zero, or a half-life that is not positive.
    """

    similarity: float = 0.0
    reward: float = 0.0
    recency: float = 0.0
    random: float = 0.0
    half_life_days: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        weights = (self.similarity, self.reward, self.recency, self.random)
        if not all(math.isfinite(weight) for weight in weights) or not any(weights):
            raise InvalidRequest(f"a recall policy needs finite weights that are not all zero, not {weights}")
        if not (math.isfinite(self.half_life_days) and self.half_life_days > 0):
            raise InvalidRequest(f"half_life_days must be positive, not {self.half_life_days}")

    def __add__(self, other: RecallPolicy) -> RecallPolicy:
        mine, theirs = self.half_life_days, other.half_life_days
        if self.recency and other.recency and mine != theirs:
            raise InvalidRequest(f"one policy has one half-life, and these have {mine} and {theirs} days")
        return RecallPolicy(
            similarity=self.similarity + other.similarity,
            reward=self.reward + other.reward,
            recency=self.recency + other.recency,
            random=self.random + other.random,
            half_life_days=mine if self.recency else theirs,
            seed=self.seed if self.random else other.seed,
        )

    def __mul__(self, factor: float) -> RecallPolicy:
        return msgspec.structs.replace(
            self,
            similarity=self.similarity * factor,
            reward=self.reward * factor,
            recency=self.recency * factor,
            random=self.random * factor,
        )

    __rmul__ = __mul__

    def __str__(self) -> str:
        parts = [
            f"{getattr(self, name):g} x {name}"
            for name in ("similarity", "reward", "recency", "random")
            if getattr(self, name)
        ]
        return " + ".join(parts)

    @property
    def only_similarity(self) -> bool:
        """Whether the order is that of the cosine alone, which an approximate index can serve."""
        return self.similarity > 0 and not (self.reward or self.recency or self.random)

    def base(self, ids: Integers, rewards: Floats, created_at: Integers, now: int) -> Floats:
        """The part of the score that needs no query.

        Args:
            ids: Hub-wide numbers of the episodes, shape (n,).
            rewards: Shape (n,).
            created_at: Ms UTC, shape (n,).
            now: Ms UTC.
        """
        score = np.zeros(len(ids))
        if self.reward:
            with np.errstate(over="ignore"):
                # A reward too large to be weighted still ranks, and infinity marks what is filtered out.
                score += np.clip(self.reward * rewards, -np.finfo(float).max / 4, np.finfo(float).max / 4)
        if self.recency:
            age_days = np.maximum(now - created_at, 0) / 86_400_000
            score += self.recency * np.exp2(-age_days / self.half_life_days)
        if self.random:
            score += self.random * uniform(ids, self.seed)
        return score


def Similarity(weight: float = 1.0) -> RecallPolicy:
    """The most similar first."""
    return RecallPolicy(similarity=weight)


def Reward(weight: float = 1.0) -> RecallPolicy:
    """The best rewarded first."""
    return RecallPolicy(reward=weight)


def Recency(weight: float = 1.0, *, half_life_days: float = 30.0) -> RecallPolicy:
    """The newest first."""
    return RecallPolicy(recency=weight, half_life_days=half_life_days)


def Random(weight: float = 1.0, *, seed: int = 0) -> RecallPolicy:
    """In an order that depends on the seed alone."""
    return RecallPolicy(random=weight, seed=seed)


SIMILARITY = Similarity()
"""What a recall uses when no policy is given."""


class Filter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which memories may be returned at all.

    Args:
        min_reward: Smallest reward.
        since: Ms UTC, inclusive.
        until: Ms UTC, exclusive.
        task: Exactly this task.
        agent_id: Made by this agent.
    """

    min_reward: float | None = None
    since: int | None = None
    until: int | None = None
    task: str | None = None
    agent_id: str | None = None

    @classmethod
    def of(
        cls,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        task: str | None = None,
        agent_id: str | None = None,
    ) -> Filter:
        """A filter from what callers write: times may be datetimes."""
        return cls(
            min_reward=_number(min_reward, "min_reward"),
            since=None if since is None else to_ms(since),
            until=None if until is None else to_ms(until),
            task=_text(task, "task"),
            agent_id=_text(agent_id, "agent_id"),
        )

    @property
    def passes_all(self) -> bool:
        """Whether nothing is filtered."""
        return self == _NOTHING

    def __str__(self) -> str:
        says = {"min_reward": "reward at least {:g}", "since": "made since {}", "until": "made before {}"}
        given = msgspec.to_builtins(self)
        parts = []
        for name, value in given.items():
            shown = datetime.fromtimestamp(value / 1000, UTC).isoformat() if name in ("since", "until") else value
            parts.append(says.get(name, name + " {!r}").format(shown))
        return " and ".join(parts) or "everything"


_NOTHING = Filter()


def check_k(k: object) -> int:
    """`k` if it is a number of memories.

    Raises:
        InvalidRequest: If it is not an integer from 1 to MAX_K.
    """
    if isinstance(k, (int, np.integer)) and not isinstance(k, bool) and 1 <= k <= MAX_K:
        return int(k)
    raise InvalidRequest(f"k must be an integer from 1 to {MAX_K:,}, not {k!r:.40}", field="k")


def check_ids(ids: object, most: int | None = MAX_IDS) -> list[str]:
    """`ids` as a list, if they are ids of episodes.

    Raises:
        InvalidRequest: If they are not, or are more than `most`.
    """
    wanted = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)) else None
    if wanted is not None and all(isinstance(each, str) for each in wanted) and (most is None or len(wanted) <= most):
        return wanted
    limit = "" if most is None else f"at most {most:,} "
    way_out = f": give [{ids!r:.80}]" if isinstance(ids, str) else f", not {ids!r:.80}"
    raise InvalidRequest(f"ids must be a sequence of {limit}episode ids{way_out}", field="ids")


def check_queries(queries: object) -> list[Any]:
    """`queries` as a list, if there may be several.

    Raises:
        InvalidRequest: If it is one text, or nothing that can be gone through.
    """
    if isinstance(queries, Iterable) and not isinstance(queries, (str, bytes)):
        return list(queries)
    raise InvalidRequest(f"queries are a sequence of texts or vectors, not {queries!r:.80}", field="queries")


def best(score: Floats, created_at: Integers, ids: Integers, k: int) -> Integers:
    """Positions of the k largest scores: larger first, then newer, then the larger id.

    Args:
        score: Shape (n,); -inf marks what must not be returned.
        created_at: Ms UTC, shape (n,).
        ids: Shape (n,).
        k: How many; fewer come back where fewer are finite.
    """
    if len(score) > 4 * k:
        # Everything that ties with the k-th stays in, so that the order among equals is exact.
        threshold = np.partition(score, len(score) - k)[len(score) - k]
        candidates = np.flatnonzero(score >= threshold)
    else:
        candidates = np.arange(len(score))
    candidates = candidates[np.isfinite(score[candidates])]
    order = np.lexsort((-ids[candidates], -created_at[candidates], -score[candidates]))
    return np.asarray(candidates[order[:k]], dtype=np.int64)


def uniform(ids: Integers, seed: int) -> Floats:
    """One draw from [0, 1) for each id: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.asarray((x >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, (str, bool)) or math.isnan(number):
        raise InvalidRequest(f"{what} must be a number, not {type(value).__name__} {value!r:.80}", field=what)
    return number


def _text(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be text, not {type(value).__name__} {value!r:.80}", field=what)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} {value!r:.80} holds a lone surrogate: it is no valid text", field=what) from None
    return value


def check_count(value: object, what: str, *, least: int = 0) -> int:
    """`value` if it is an integer of at least `least`.

    Raises:
        InvalidRequest: If it is not.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value < 2**63:
        return int(value)
    raise InvalidRequest(f"{what} must be an integer from {least}, not {value!r:.40}", field=what)
