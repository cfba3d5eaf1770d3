"""Statistics against known values, SciPy and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedlab.lab.statistics import (
    Estimate,
    area_under_curve,
    compare,
    estimate,
    forgetting,
    forward_transfer,
    generations_to,
    holm,
    interquartile_mean,
)

REWARDS = st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("n", "draw", "centre"),
    [
        (3, lambda rng, n: rng.normal(size=n), 0.0),
        (8, lambda rng, n: rng.normal(size=n), 0.0),
        (10, lambda rng, n: rng.normal(size=n), 0.0),
        (20, lambda rng, n: rng.normal(size=n), 0.0),
        (10, lambda rng, n: rng.binomial(100, 0.9, size=n) / 100, 0.9),
    ],
)
def test_an_interval_covers_the_truth_near_95_times_in_100(n, draw, centre):
    rng = np.random.default_rng(5)
    found = [estimate(draw(rng, n), resamples=999) for _ in range(400)]
    covered = np.mean([each.low <= centre <= each.high for each in found])
    # The standard error of a share of 400 is 0.011; a plain BCa interval covers 0.89 of ten.
    assert 0.915 <= covered <= 0.98


def test_a_large_sample_has_the_interval_of_the_textbook():
    values = np.random.default_rng(1).normal(0.5, 0.1, size=400)
    found = estimate(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.n, found.note) == (400, "")
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.06 * half)


def test_few_seeds_have_students_interval():
    found = estimate([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.3027 and the standard error is 1 / sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert found.note == "3 seeds: Student's t, too few to resample"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.25], Estimate(1, 0.25, note="one seed: no interval")),
        ([0.5] * 10, Estimate(10, 0.5, note="all 10 seeds gave the same value: no interval")),
        ([0.1 + 0.2, 0.3, 0.3], Estimate(3, pytest.approx(0.3), note="all 3 seeds gave the same value: no interval")),
        (
            [math.nan, 1.0, math.inf],
            Estimate(1, 1.0, note="2 of 3 seeds have no value and are left out; one seed: no interval"),
        ),
    ],
)
def test_where_no_interval_can_be_given_a_sentence_says_why(values, expected):
    assert estimate(values) == expected


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_no_value_is_no_mean(values):
    found = estimate(values)
    assert math.isnan(found.mean)
    assert found[0::2] == (0, None, "no seed has a value")


def test_nine_equal_seeds_and_one_other_have_an_interval_or_a_reason():
    found = estimate([1.0] * 9 + [0.0])
    assert (found.low is None) == bool(found.note)
    assert found.low is None or found.low < 0.9 < found.high


@given(REWARDS)
def test_an_interval_holds_the_mean_and_is_the_same_the_next_time(values):
    found = estimate(values, resamples=199)
    assert found == estimate(values, resamples=199)
    assert found.low is None or found.low <= found.mean <= found.high


@given(REWARDS, st.floats(-5, 5), st.floats(0.1, 10))
def test_an_interval_moves_and_stretches_with_the_values(values, shift, scale):
    plain, moved = estimate(values, resamples=199), estimate(np.array(values) * scale + shift, resamples=199)
    if plain.low is not None and moved.low is not None:
        expected = (plain.low * scale + shift, plain.high * scale + shift)
        assert (moved.low, moved.high) == pytest.approx(expected, abs=1e-6 * scale)


@given(REWARDS)
def test_the_interquartile_mean_is_that_of_scipy(values):
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_the_interquartile_mean_ignores_an_outlier():
    assert interquartile_mean([0.5, 0.5, 0.6, 0.6, 0.5, 0.6, 0.5, -100]) == pytest.approx(0.525)
    assert math.isnan(interquartile_mean([]))


def test_the_permutation_p_counts_the_signs():
    one, other = np.array([0.7, 0.8, 0.6, 0.9, 0.75, 0.5]), np.array([0.6, 0.6, 0.61, 0.7, 0.7, 0.4])
    differences = one - other
    means = [np.mean(differences * signs) for signs in product([1, -1], repeat=6)]
    expected = np.mean([abs(each) >= abs(differences.mean()) - 1e-12 for each in means])
    found = compare(one, other)
    assert found.p == pytest.approx(expected)
    assert (found.n, found.diff) == (6, pytest.approx(differences.mean()))
    assert found.low < found.diff < found.high


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(11)
    ps = [compare(rng.normal(size=10), rng.normal(size=10), resamples=1_100).p for _ in range(200)]
    assert stats.kstest(ps, "uniform").pvalue > 0.01


@given(st.integers(2, 10).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 50), min_size=n, max_size=n)] * 2)))
def test_a_paired_difference_is_antisymmetric(pair):
    one, other = (np.array(each) / 50 for each in pair)
    there, back = compare(one, other, resamples=1_100), compare(other, one, resamples=1_100)
    assert there.diff == pytest.approx(-back.diff)
    assert there.p == pytest.approx(back.p)
    if there.low is not None and back.low is not None:
        width = there.high - there.low
        # Not to the last digit: the percentiles of the resamples are taken from the other end.
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.05 * width)


def test_pairing_removes_what_the_seeds_have_in_common():
    rng = np.random.default_rng(2)
    common = rng.normal(0, 10, size=10)
    found = compare(common + 0.5 + rng.normal(0, 0.1, size=10), common + rng.normal(0, 0.1, size=10))
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    assert found.p == pytest.approx(2 / 2**10)


def test_seeds_that_are_not_in_both_arms_are_left_out():
    found = compare([1.0, 2.0, math.nan, 4.0], [0.0, 1.5, 9.0, math.nan])
    assert (found.n, found.diff) == (2, 0.75)
    assert found.note.startswith("2 of 4 seeds are not in both arms and are left out")


def test_equal_arms_have_no_interval_and_a_p_of_1():
    assert compare([0.2, 0.4, 0.3], [0.2, 0.4, 0.3]) == (3, 0.0, None, None, 1.0, "equal in every seed: no interval")


def test_a_lone_pair_has_a_difference_alone():
    assert compare([0.5], [0.25]) == (1, 0.25, None, None, None, "one pair: no interval")


def test_a_p_that_few_seeds_cannot_bring_below_the_level_is_told():
    found = compare([1.0, 1.1, 1.2, 1.3, 1.5], [0.0] * 5)
    assert found.p == pytest.approx(0.0625)
    assert found.note == "5 seeds: Student's t, too few to resample; p cannot be below 0.0625 with 5 pairs"


def test_arms_with_another_number_of_seeds_are_not_paired():
    with pytest.raises(ValueError, match=r"shape \(2,\) cannot be paired with a baseline of shape \(3,\)"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_area_lies_between_the_lowest_and_the_highest_reward(curve):
    (area,) = area_under_curve([curve])
    assert min(curve) - 1e-9 <= area <= max(curve) + 1e-9


def test_the_area_counts_unequal_steps():
    assert area_under_curve([[0.0, 1.0, 1.0]], [0, 1, 10]) == pytest.approx([0.95])
    assert area_under_curve([[0.3], [0.7]]) == pytest.approx([0.3, 0.7])


def test_generations_to_a_threshold_are_counted_from_one_and_a_lucky_one_can_be_ignored():
    curves = [[0.9, 0.1, 0.8, 0.8], [0.1, 0.2, 0.3, 0.4], [0.7, 0.7, 0.0, 0.0]]
    np.testing.assert_array_equal(generations_to(curves, 0.7), [1, np.nan, 1])
    np.testing.assert_array_equal(generations_to(curves, 0.7, window=2), [4, np.nan, 2])
    with pytest.raises(ValueError, match="window is 5, and there are 4 generations"):
        generations_to(curves, 0.7, window=5)


def test_forgetting_is_the_drop_and_what_was_made_good():
    found = forgetting([0.6, 0.8, 0.2, 0.4, 0.5, 0.8], at=2)
    assert found == pytest.approx((0.8, 0.6, 0.6, 4.0))
    half = forgetting([0.8, 0.8, 0.2, 0.2, 0.5, 0.5], at=2, window=2)
    assert half[:3] == pytest.approx((0.8, 0.6, 0.3))
    assert math.isnan(half.generations)


@pytest.mark.parametrize(("at", "window"), [(0, 1), (3, 1), (1, 2), (1, 0)])
def test_a_drift_needs_generations_on_both_sides(at, window):
    with pytest.raises(ValueError, match=f"a drift in generation {at} of 3"):
        forgetting([0.1, 0.2, 0.3], at, window=window)


def test_forward_transfer_is_a_share_of_what_could_be_gained():
    gained = forward_transfer([[0.4, 0.8], [1.0, 1.0], [0.1, 0.1], [1.0, 1.0]], [[0.2, 0.2]] * 3 + [[1.0, 1.0]])
    np.testing.assert_allclose(gained, [0.5, 1.0, -0.125, np.nan])


def test_a_curve_has_two_dimensions():
    with pytest.raises(ValueError, match=r"shape \(seeds, generations\), not \(3,\)"):
        area_under_curve([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("ps", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.001, 0.9, 0.8], [0.003, 1, 1]),
        ([np.nan, 0.02, np.nan], [np.nan, 0.02, np.nan]),
        ([], []),
    ],
)
def test_the_p_of_several_tests_are_corrected_step_by_step(ps, corrected):
    assert holm(ps) == pytest.approx(corrected, nan_ok=True)


def test_holms_correction_keeps_the_rate_of_any_false_alarm():
    ps = np.random.default_rng(0).uniform(size=(2_000, 5))
    alarms = [holm(each).min() <= 0.05 for each in ps]
    assert np.mean(alarms) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2_000))
