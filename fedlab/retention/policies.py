"""The retention policies themselves."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import sqlalchemy as sa

from fedlab._words import counted
from fedlab.errors import InvalidRequest
from fedlab.hub.neighbours import FLOOR, SLACK
from fedlab.hub.schema import episodes, recalls
from fedlab.hub.sketches import unit
from fedlab.recall import uniform
from fedlab.retention.near import PRECISION, Nearness, confirmed, outdone
from fedlab.retention.policy import RetentionPolicy
from fedlab.retention.rows import DAY, codes, newest_first

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from fedlab.retention.rows import Ids, Rows

FEW = 2_000
"""Episodes whose vectors `Distinct` compares without sketches."""
MOST = sys.float_info.max
"""What a policy's number may be, also a whole one."""
TOGETHER = 512
"""Episodes of small tasks that it compares at once."""


class KeepForever(RetentionPolicy, frozen=True):
    """Nothing goes: the default. Only what an episode asks for itself, by `expires_at`, is done with any policy."""

    def condemned(self, rows: Rows) -> sa.ColumnElement[bool]:
        """Nothing."""
        return sa.false()

    def __str__(self) -> str:
        return "keep everything forever"


class MaxAge(RetentionPolicy, frozen=True):
    """Episodes that were made more than so many days ago go."""

    days: float

    def __post_init__(self) -> None:
        _positive(self.days, "days")

    def condemned(self, rows: Rows) -> sa.ColumnElement[bool]:
        """Those made before the window."""
        return episodes.c.created_at < rows.before(self.days)

    def __str__(self) -> str:
        return f"keep what is at most {counted(self.days, 'day')} old"


class MinReward(RetentionPolicy, frozen=True):
    """Episodes with a smaller reward go.

    Args:
        reward: The smallest that stays; or else
        quantile: From 0 to 1: in each task, rewards below this quantile of the task's rewards (linear between two, as
            in `numpy.quantile`) go.
    """

    reward: float | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.quantile is None):
            raise InvalidRequest("MinReward takes a reward or a quantile: MinReward(0.7), MinReward(quantile=0.5)")
        if self.reward is not None:
            _finite(self.reward, "reward")
        elif not 0 <= _finite(self.quantile, "quantile") <= 1:
            raise InvalidRequest(f"quantile is a number from 0 to 1, not {self.quantile}")

    def condemned(self, rows: Rows) -> sa.ColumnElement[bool] | Ids:
        """Those below."""
        if self.quantile is None:
            return episodes.c.reward < self.reward
        ids, rewards, tasks = rows.columns(episodes.c.reward, episodes.c.task)
        tasks = codes(tasks)
        order = np.lexsort((rewards, tasks))
        first = np.flatnonzero(np.diff(tasks[order], prepend=-1))
        counts = np.diff(first, append=len(order))
        # What is below the quantile is below the next larger of the rewards themselves.
        threshold = rewards[order[first + np.ceil(self.quantile * (counts - 1)).astype(np.int64)]]
        return ids[order[rewards[order] < np.repeat(threshold, counts)]]

    def __str__(self) -> str:
        if self.quantile is not None:
            return f"keep, in each task, rewards of at least the {self.quantile:g} quantile"
        return f"keep rewards of at least {self.reward:g}"


class MaxEpisodes(RetentionPolicy, frozen=True):
    """All but n episodes go.

    Args:
        n: How many stay.
        keep: Which: the newest, the best rewarded, those that are the source of most others (newer ones first among
            equals), or a random choice, in which an episode that stayed once stays until better draws push it out.
        seed: Of the random choice.
    """

    n: int
    keep: Literal["newest", "best", "most_used", "random"] = "newest"
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self.n, "n", whole=True)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidRequest(f"seed must be a whole number, not {self.seed!r:.40}")
        if self.keep not in ("newest", "best", "most_used", "random"):
            raise InvalidRequest(f"keep is newest, best, most_used or random, not {self.keep!r:.40}")

    def condemned(self, rows: Rows) -> Ids:
        """Those beyond the first n."""
        ids, rewards, created_at = rows.columns(episodes.c.reward, episodes.c.created_at)
        worth = created_at
        if self.keep == "best":
            worth = rewards
        elif self.keep == "most_used":
            worth = _uses(rows, ids)
        elif self.keep == "random":
            worth = uniform(ids, self.seed)
        if self.n >= len(ids):
            return ids[:0]
        # To be sorted is only what is worth as much as the n-th: a fifth of the time of sorting all.
        least = np.partition(worth, len(ids) - self.n)[len(ids) - self.n]
        going = worth < least
        tied = np.flatnonzero(worth == least)
        room = self.n - (len(ids) - len(tied) - np.count_nonzero(going))
        going[tied[newest_first(ids[tied], created_at[tied])[room:]]] = True
        return np.asarray(ids[going])

    def __str__(self) -> str:
        if self.keep == "random":
            return f"keep {counted(self.n, 'episode')} at random (seed {self.seed})"
        return f"keep the {self.keep.replace('_', ' ')} {counted(self.n, 'episode')}"


class MaxBytes(RetentionPolicy, frozen=True):
    """The newest episodes stay as long as their contents (texts, metadata, vectors) fit into so many bytes."""

    bytes: int

    def __post_init__(self) -> None:
        _positive(self.bytes, "bytes", whole=True)

    def condemned(self, rows: Rows) -> Ids:
        """The first that does not fit, and all older ones."""
        ids, created_at, sizes = rows.columns(episodes.c.created_at, rows.size)
        order = newest_first(ids, created_at)
        return ids[order[np.cumsum(sizes[order]) > self.bytes]]

    def __str__(self) -> str:
        return f"keep the newest episodes that fit into {self.bytes:,} bytes"


class Decay(RetentionPolicy, frozen=True):
    """Episodes that have lost their worth go.

    An episode's worth is reward x 2^(-age / half-life) + uses, where uses is how many times it is named as a source by
    episodes of its tenant that are still there: one that is still a source of something stays while floor <= 1.

    Args:
        half_life: Days in which the reward loses half of its weight.
        floor: What is worth less goes.
    """

    half_life: float
    floor: float

    def __post_init__(self) -> None:
        _positive(self.half_life, "half_life")
        _finite(self.floor, "floor")

    def condemned(self, rows: Rows) -> Ids:
        """Those below the floor."""
        ids, rewards, created_at = rows.columns(episodes.c.reward, episodes.c.created_at)
        age = np.maximum(rows.now - created_at, 0) / DAY
        with np.errstate(over="ignore"):  # of the shortest half-life nothing is left, and that is right
            weight = np.exp2(-age / self.half_life)
        worth = rewards * weight + _uses(rows, ids)
        return np.asarray(ids[worth < self.floor])

    def __str__(self) -> str:
        return (
            f"keep what is worth at least {self.floor:g}, where a reward halves every {counted(self.half_life, 'day')}"
            " and each use as a source adds 1"
        )


class Unused(RetentionPolicy, frozen=True):
    """Episodes that nobody had a use for within so many days after they were made go.

    Args:
        after: Days.
        by: What counts as use: that it was ever `recalled` (as far as the hub's statistics know), or that it is a
            `source_of_success`: a source of a live episode with at least the reward `success`.
        success: The smallest reward of a success.
    """

    after: float
    by: Literal["recalled", "source_of_success"] = "recalled"
    success: float = 0.5

    def __post_init__(self) -> None:
        _positive(self.after, "after")
        _finite(self.success, "success")
        if self.by not in ("recalled", "source_of_success"):
            raise InvalidRequest(f"by is recalled or source_of_success, not {self.by!r:.40}")

    def condemned(self, rows: Rows) -> sa.ColumnElement[bool] | Ids:
        """The old ones that were never used."""
        old = episodes.c.created_at < rows.before(self.after)
        if self.by == "recalled":
            return old & ~sa.exists().where(recalls.c.episode_id == episodes.c.id)
        return np.setdiff1d(rows.ids(old), rows.uses(self.success)[0], assume_unique=True)

    @property
    def looks_at_recalls(self) -> bool:
        """Where recalls count."""
        return self.by == "recalled"

    def __str__(self) -> str:
        used = (
            "was ever recalled"
            if self.by == "recalled"
            else f"is a source of a success (a reward of at least {self.success:g})"
        )
        return f"keep what {used} or is at most {counted(self.after, 'day')} old"


class Distinct(RetentionPolicy, frozen=True):
    """Of near-duplicates in one task only the best stays.

    From the best rewarded on (newer ones first among equals), an episode stays unless one that stays is so similar.
    Vectors are compared within each task. The index knows which are near each other from a similarity of 0.9 on
    (`fedlab.hub.neighbours`). In tasks that are very large or in which much is near, below 0.9, and where no index is
    at hand, each is compared with each by a short sketch, which takes about 1e-9 s for each two; of duplicates, only
    those that stay count then.

    Args:
        similarity: Cosine of the vectors, above 0 to 1, from which two are near-duplicates.
    """

    similarity: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < _finite(self.similarity, "similarity") <= 1:
            raise InvalidRequest(f"similarity is a number above 0, up to 1, not {self.similarity}")

    def condemned(self, rows: Rows) -> Ids:
        """Those that are too similar to a better one."""
        ids, rewards, created_at, tasks = rows.columns(episodes.c.reward, episodes.c.created_at, episodes.c.task)
        few = len(ids) <= FEW
        pairs, settled = (
            self._known(rows, ids)
            if not few and rows.index
            else (np.zeros((2, 0), np.int64), np.zeros(len(ids), np.bool_))
        )
        some = np.unique(pairs)
        some = some[np.lexsort((-ids[some], -created_at[some], -rewards[some]))]
        place = np.zeros(len(ids), np.int64)
        place[some] = np.arange(len(some))
        gone = [ids[some[outdone(np.sort(place[pairs], axis=0), len(some))]]]

        some = np.flatnonzero(~settled)
        groups = codes(tasks[some])
        order = np.lexsort((-ids[some], -created_at[some], -rewards[some], groups))
        for start, end in _parts(groups[order]):
            part = ids[some[order[start:end]]]
            short = unit(rows.vectors(part)) if few else rows.sketches(part)
            read = None if few else functools.partial(_read, rows, part)
            kept = Nearness(short, read, self.similarity, groups[order[start:end]]).distinct(np.arange(len(part)))
            gone.append(np.delete(part, kept))
        return np.concatenate(gone)

    def _known(self, rows: Rows, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The near pairs that the index knows, as positions among the ids, and for which ids it knows all."""
        assert rows.index is not None
        pairs, cosines, settled = rows.index.near(ids)
        if self.similarity < FLOOR:
            return pairs[:, :0], np.zeros(len(ids), np.bool_)
        both = settled[pairs].all(axis=0)
        sure = both & (cosines >= self.similarity + SLACK)
        unsure = both & ~sure & (cosines >= self.similarity - SLACK)
        least = self.similarity - PRECISION
        rest = confirmed(pairs[:, unsure], lambda some: unit(rows.vectors(ids[some])), least)
        return np.concatenate([pairs[:, sure], rest], axis=1), settled

    def __str__(self) -> str:
        return f"keep, in each task, the best of those with a similarity of {self.similarity:g} or more"


def _parts(tasks: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where tasks, sorted, may be cut into parts of a task, or of some small ones, that are looked at together."""
    start = 0
    for end in [*(np.flatnonzero(np.diff(tasks)) + 1).tolist(), len(tasks)]:
        if end - start >= TOGETHER or start < end == len(tasks):
            yield start, end
            start = end


def _read(rows: Rows, part: Ids, some: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    return rows.vectors(part[some])


def _uses(rows: Rows, ids: Ids) -> npt.NDArray[np.float64]:
    """How often each of the episodes is a source."""
    used, times = rows.uses()
    uses = np.zeros(len(ids))
    held = np.isin(used, ids, assume_unique=True)
    uses[np.searchsorted(ids, used[held])] = times[held]
    return uses


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MOST <= value <= MOST:
        raise InvalidRequest(f"{what} must be a finite number, not {value!r:.40}")
    return value


def _positive(value: Any, what: str, *, whole: bool = False) -> None:
    if not _finite(value, what) > 0 or (whole and not isinstance(value, int)):
        raise InvalidRequest(f"{what} must be a positive {'whole ' if whole else ''}number, not {value!r:.40}")
