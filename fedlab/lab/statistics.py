"""Statistics of experiments: functions of arrays with one value for each seed. The seed is the unit of replication;
what cannot be said of so few or such values is left out, with a sentence that says why.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Values: TypeAlias = npt.NDArray[np.float64]
    Numbers: TypeAlias = Sequence[float] | npt.NDArray[Any]

CONFIDENCE = 0.95
RESAMPLES = 9_999
FEW = 7
"""From so many seeds on an interval is resampled: of 5 normal values an interval for 95 % covers 88 %, of 6 93 %, and
of 7 to 10 94 %, since resamples stay within the range of the values. Student's t covers 94 to 95 % of all of them."""


class Estimate(NamedTuple):
    """What the seeds say of one number.

    Args:
        n: Seeds with a value.
        mean: NaN if there is none.
        low: Lower end of the interval; None if none can be given.
        high: Its upper end.
        note: A sentence: why there is no interval, or how it was made; empty if there is nothing to say.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    note: str = ""


class Comparison(NamedTuple):
    """What the paired seeds say of the difference of two arms.

    Args:
        n: Pairs.
        diff: Mean of the differences; NaN if there is no pair.
        low: Lower end of its interval; None if none can be given.
        high: Its upper end.
        p: Two-sided, of a permutation test; None if there are fewer than two pairs.
        note: A sentence; empty if there is nothing to say.
    """

    n: int
    diff: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str = ""


class Forgetting(NamedTuple):
    """What a drift cost one seed.

    Args:
        before: Mean reward in the generations just before it.
        drop: How much less it was just after.
        regained: How much more it was at the end than just after.
        generations: How many after the drift the reward was back at what it was before; NaN if it never was.
    """

    before: float
    drop: float
    regained: float
    generations: float


def estimate(values: Numbers, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over seeds with a bootstrap interval.

    The bootstrap is bias-corrected and accelerated (BCa, Efron 1987), its level expanded for few values (Hesterberg
    2015, The American Statistician 69:371), without which the interval of ten normal values covers 89 % instead of
    95 %. Fewer than `FEW` values get Student's t interval instead.

    Args:
        values: One a seed; NaN where a seed has none.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    >>> estimate([0.5])
    Estimate(n=1, mean=0.5, low=None, high=None, note='one seed: no interval')
    """
    kept = _finite(values)
    missing = len(np.asarray(values)) - len(kept)
    without = f"{missing} of {missing + len(kept)} seeds have no value and are left out" if missing else ""
    n = len(kept)
    if n == 0:
        return Estimate(0, math.nan, note="no seed has a value")
    mean = float(kept.mean())
    if n == 1:
        return Estimate(1, mean, note=_sentences(without, "one seed: no interval"))
    # Values that differ by rounding alone are equal: an interval of their dust would look certain.
    if np.ptp(kept) <= 1e-12 * max(1.0, float(np.abs(kept).max())):
        return Estimate(n, mean, note=_sentences(without, f"all {n} seeds gave the same value: no interval"))
    if n < FEW:
        low, high = _student(kept, confidence)
        return Estimate(n, mean, low, high, _sentences(without, f"{n} seeds: Student's t, too few to resample"))
    low, high = _bootstrap(kept, confidence, resamples, seed)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(n, mean, note=_sentences(without, "the values are too alike to resample: no interval"))
    return Estimate(n, mean, low, high, without)


def interquartile_mean(values: Numbers) -> float:
    """The mean of the middle half, which single seeds do not move (Agarwal et al. 2021, NeurIPS 34).

    As SciPy trims, whole values go: of fewer than four none, and it is the mean.

    >>> interquartile_mean([0, 1, 2, 99])
    1.5
    """
    from scipy.stats import trim_mean

    kept = _finite(values)
    return float(trim_mean(kept, 0.25)) if len(kept) else math.nan


def compare(
    values: Numbers, baseline: Numbers, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """The paired difference to a baseline: its mean, an interval as of `estimate`, and a permutation p.

    The test swaps the two arms within seeds, in all 2^n ways for up to 13 seeds, else in `resamples` random ones.

    Args:
        values: One a seed; NaN where a seed has none.
        baseline: Of the same seeds in the same order.
        confidence: Of the interval.
        resamples: Of the bootstrap and of the test.
        seed: Of both.

    Raises:
        ValueError: If there are not as many values of the one as of the other.
    """
    one, other = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"values of shape {one.shape} cannot be paired with a baseline of shape {other.shape}")
    paired = np.isfinite(one) & np.isfinite(other)
    one, other = one[paired], other[paired]
    unpaired = "" if paired.all() else f"{(~paired).sum()} of {len(paired)} seeds are not in both arms and are left out"
    found = estimate(one - other, confidence=confidence, resamples=resamples, seed=seed)
    notes = [unpaired, found.note.replace("seed:", "pair:") if found.n == 1 else found.note]
    if found.n < 2:
        return Comparison(found.n, found.mean, note=_sentences(*notes))
    if not np.any(one != other):
        return Comparison(found.n, 0.0, p=1.0, note=_sentences(unpaired, "equal in every seed: no interval"))
    if 2.0 ** (1 - found.n) > 1 - confidence:
        notes.append(f"p cannot be below {2.0 ** (1 - found.n):.3g} with {found.n} pairs")
    return Comparison(
        found.n, found.mean, found.low, found.high, _swap(one, other, resamples, seed), _sentences(*notes)
    )


def holm(ps: Numbers) -> Values:
    """The p of several tests, corrected so that of all of them one is below a level by chance no oftener than that.

    The smallest counts as often as there are tests, the next once less, none less than the one before (Holm 1979,
    Scandinavian Journal of Statistics 6:65).

    Args:
        ps: One a test; NaN where there is none.

    >>> holm([0.02, 0.01, 0.6])
    array([0.04, 0.03, 0.6 ])
    """
    given = np.asarray(ps, dtype=float)
    tested = np.flatnonzero(np.isfinite(given))
    order = tested[np.argsort(given[tested])]
    corrected = np.full_like(given, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def area_under_curve(curves: npt.ArrayLike, generations: npt.ArrayLike | None = None) -> Values:
    """Mean height of each learning curve: the area by the trapezoidal rule over the generations it spans.

    Args:
        curves: Shape (seeds, generations).
        generations: Of the columns; 0, 1, 2, … if None.

    Returns:
        Shape (seeds,).

    >>> area_under_curve([[0, 1, 1]])
    array([0.75])
    """
    rows = _rows(curves)
    at = np.arange(rows.shape[1]) if generations is None else np.asarray(generations, dtype=float)
    if rows.shape[1] == 1:
        return rows[:, 0]
    area: Values = np.trapezoid(rows, at, axis=1) / (at[-1] - at[0])
    return area


def generations_to(curves: npt.ArrayLike, threshold: float, *, window: int = 1) -> Values:
    """How many generations it took each seed until the reward was at a threshold.

    Args:
        curves: Shape (seeds, generations).
        threshold: Reached by the mean of `window` generations.
        window: How many generations are taken together; one alone may be lucky.

    Returns:
        Shape (seeds,): 1 if the first generation (or window) was there already; NaN if it was never reached.

    >>> generations_to([[0.1, 0.8, 0.2], [0.1, 0.2, 0.3]], 0.7)
    array([ 2., nan])
    """
    rows = _rows(curves)
    if not 1 <= window <= rows.shape[1]:
        raise ValueError(f"window is {window}, and there are {rows.shape[1]} generations: give 1 to that many")
    reached = np.lib.stride_tricks.sliding_window_view(rows, window, axis=1).mean(axis=2) >= threshold
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + float(window), np.nan)


def forgetting(curve: Numbers, at: int, *, window: int = 1) -> Forgetting:
    """What a drift cost, and what was made good afterwards.

    Args:
        curve: The reward of one seed by generation.
        at: The first generation after the drift.
        window: Generations that are taken together before, just after and at the end.

    Raises:
        ValueError: If there are not `window` generations on both sides of the drift.
    """
    rewards = np.asarray(curve, dtype=float)
    if not window <= at <= len(rewards) - window or window < 1:
        raise ValueError(
            f"a drift in generation {at} of {len(rewards)} does not leave {window} on both sides: "
            f"give another at= or a smaller window="
        )
    before, after, end = (
        float(part.mean()) for part in (rewards[at - window : at], rewards[at:][:window], rewards[-window:])
    )
    drop = before - after
    back = generations_to(rewards[None, at:], before, window=window)[0]
    return Forgetting(before, drop, end - after, float(back))


def forward_transfer(curves: npt.ArrayLike, scratch: npt.ArrayLike, *, best: float = 1.0) -> Values:
    """What a memory adds, as a share of what could be added: (A - A₀) / (best - A₀), A the areas under the curves.

    After Wołczyk et al. 2021 (Continual World, NeurIPS 34), where A₀ is that of learning from scratch.

    Args:
        curves: Shape (seeds, generations).
        scratch: Of an arm without the memory, the same seeds.
        best: The highest reward there is.

    Returns:
        Shape (seeds,): 1 is all there is to gain, below 0 the memory hurts; NaN where there was nothing to gain.
    """
    area, without = area_under_curve(curves), area_under_curve(scratch)
    room = best - without
    return np.divide(area - without, room, out=np.full_like(area, np.nan), where=room > 0)


def _bootstrap(values: Values, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    from scipy import stats

    n = len(values)
    # Hesterberg's expanded level: what the normal distribution takes for the quantile of Student's t, and √(n/(n-1))
    # because the spread of the resamples is that of n, not n - 1, degrees of freedom.
    tail = float(stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf((1 - confidence) / 2, n - 1)))
    centre, scale = float(values.mean()), float(np.ptp(values))

    def mean(resample: Values, axis: int = -1) -> Any:
        # BCa counts the resamples below the estimate: those equal to it must not fall on a side by rounding.
        return np.round(np.mean(resample, axis=axis), 9)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the caller looks at what comes of it
        result = stats.bootstrap(
            ((values - centre) / scale,),
            mean,
            confidence_level=1 - 2 * tail,
            n_resamples=resamples,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    return centre + scale * float(low), centre + scale * float(high)


def _student(values: Values, confidence: float) -> tuple[float, float]:
    from scipy import stats

    low, high = stats.t.interval(confidence, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def _swap(one: Values, other: Values, resamples: int, seed: int) -> float:
    from scipy.stats import permutation_test

    def difference(x: Values, y: Values, axis: int = -1) -> Any:
        return np.mean(x - y, axis=axis)

    result = permutation_test(
        (one, other),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _finite(values: Numbers) -> Values:
    given = np.asarray(values, dtype=float)
    kept: Values = given[np.isfinite(given)]
    return kept


def _rows(curves: npt.ArrayLike) -> Values:
    rows = np.asarray(curves, dtype=float)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"learning curves have the shape (seeds, generations), not {rows.shape}")
    return rows


def _sentences(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
