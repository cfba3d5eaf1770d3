"""Recall policies and filters as pure functions: what they are made of, and how they rank."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab import InvalidRequest, Random, RecallPolicy, Recency, Reward, Similarity
from fedlab.recall import MAX_K, Filter, best, check_k

DAY = 86_400_000
NOW = 1_000 * DAY

weights = st.floats(-1e6, 1e6).filter(lambda weight: abs(weight) > 1e-6)
policies = st.builds(
    RecallPolicy, similarity=weights, reward=weights, recency=weights, random=weights, seed=st.integers(0, 9)
)


def base(policy: RecallPolicy, rewards: list[float], ages: list[float], ids: list[int] | None = None) -> np.ndarray:
    """Scores without a query, of episodes of so many days' age."""
    numbers = np.arange(1, len(rewards) + 1) if ids is None else np.array(ids)
    created_at = NOW - (np.array(ages) * DAY).astype(np.int64)
    return policy.base(numbers, np.array(rewards, float), created_at, NOW)


# --- policies --------------------------------------------------------------------------------------------------


def test_each_part_scores_what_it_says():
    assert base(Reward(2.0), [0.5, -1.0], [0, 0]).tolist() == [1.0, -2.0]
    assert base(Recency(half_life_days=10), [0, 0, 0], [0, 10, 20]).tolist() == [1.0, 0.5, 0.25]
    assert base(Similarity(), [1.0], [5]).tolist() == [0.0], "the query adds its part elsewhere"
    draws = base(Random(seed=3), [0.0] * 10_000, [0] * 10_000)
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.02


def test_an_episode_of_the_future_is_as_recent_as_one_of_now():
    assert base(Recency(), [0, 0], [-3, 0]).tolist() == [1.0, 1.0]


def test_a_draw_depends_on_seed_and_episode_alone():
    ids = [7, 3, 10**15]
    draws = base(Random(seed=1), [0, 0, 0], [0, 1, 2], ids)
    assert base(Random(seed=1), [5, 5, 5], [9, 9, 9], ids).tolist() == draws.tolist()
    assert base(Random(seed=1), [0], [0], ids[:1]).tolist() == draws[:1].tolist()
    assert base(Random(seed=2), [0, 0, 0], [0, 1, 2], ids).tolist() != draws.tolist()


@given(policies, policies, st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 1000)), min_size=1, max_size=5))
def test_the_score_of_a_sum_is_the_sum_of_the_scores(one, other, rows):
    other = msgspec.structs.replace(other, seed=one.seed)
    try:
        both = one + other
    except InvalidRequest:
        assert not any((one.similarity + other.similarity, one.reward + other.reward, one.recency + other.recency))
        return
    rewards, ages = [row[0] for row in rows], [row[1] for row in rows]
    expected = base(one, rewards, ages) + base(other, rewards, ages)
    assert base(both, rewards, ages) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert both.similarity == one.similarity + other.similarity


@given(policies, st.floats(0.01, 100))
def test_a_factor_scales_every_part_from_either_side(policy, factor):
    assert policy * factor == factor * policy
    assert base(factor * policy, [0.5], [3]) == pytest.approx(factor * base(policy, [0.5], [3]), rel=1e-9)


@given(policies)
def test_a_policy_travels_as_plain_data(policy):
    assert msgspec.json.decode(msgspec.json.encode(policy), type=RecallPolicy) == policy
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=RecallPolicy) == policy


def test_a_policy_reads_as_a_sentence_and_knows_what_an_index_can_serve():
    policy = Similarity() + 0.5 * Reward() + 0.2 * Recency(half_life_days=7)
    assert str(policy) == "1 x similarity + 0.5 x reward + 0.2 x recency"
    assert policy.half_life_days == 7
    assert Similarity(3).only_similarity
    assert not policy.only_similarity
    assert not Similarity(-1).only_similarity, "the least similar first is not what an index finds"


@pytest.mark.parametrize(
    "make",
    [
        RecallPolicy,
        lambda: Similarity(0),
        lambda: Reward(math.nan),
        lambda: Reward(math.inf),
        lambda: Reward() * math.inf,
        lambda: Reward() + Reward(-1),
        lambda: Recency(half_life_days=0),
        lambda: Recency(half_life_days=-1),
        lambda: Recency(half_life_days=math.nan),
        lambda: Recency(half_life_days=1) + Recency(half_life_days=2),
    ],
)
def test_what_ranks_nothing_is_no_policy(make):
    with pytest.raises(InvalidRequest):
        make()


# --- the best k ------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 0.5, 1.0]), st.integers(0, 3)), min_size=0, max_size=60
    ),
    st.integers(1, 70),
)
def test_the_best_are_those_of_a_full_sort(rows, k):
    score = np.array([row[0] for row in rows], float)
    created_at = np.array([row[1] for row in rows], np.int64)
    ids = np.arange(len(rows), dtype=np.int64)[::-1].copy()
    allowed = [row for row in range(len(rows)) if math.isfinite(score[row])]
    expected = sorted(allowed, key=lambda row: (-score[row], -created_at[row], -ids[row]))[:k]
    assert best(score, created_at, ids, k).tolist() == expected


@given(st.lists(st.floats(-1.7e308, 1.7e308), min_size=1, max_size=20), weights)
def test_no_reward_is_too_large_to_be_ranked(rewards, weight):
    score = base(Reward(weight) + Similarity(), rewards, [0] * len(rewards))
    assert np.isfinite(score).all()
    order = best(score, np.zeros(len(rewards), np.int64), np.arange(len(rewards)), len(rewards))
    ranked = np.array(rewards)[order] * np.sign(weight)
    clipped = np.clip(ranked, -1.7e308 / max(abs(weight), 1) / 4, 1.7e308 / max(abs(weight), 1) / 4)
    assert (np.diff(clipped) <= 0).all()


# --- filters and numbers ---------------------------------------------------------------------------------------


def test_a_filter_takes_what_callers_write():
    where = Filter.of(min_reward=1, since=datetime(1970, 1, 2, tzinfo=UTC), until=2 * DAY, task="t", agent_id="a")
    assert where == Filter(min_reward=1.0, since=DAY, until=2 * DAY, task="t", agent_id="a")
    assert Filter.of().passes_all
    assert not where.passes_all
    assert Filter.of(min_reward=-math.inf) == Filter(min_reward=-math.inf), "everything has at least this reward"
    assert not Filter.of(min_reward=0.0).passes_all


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("min_reward", value) for value in ("0.9", True, math.nan, [], 1j)],
        *[("since", value) for value in ("yesterday", math.nan, True, [])],
        *[("until", value) for value in ("tomorrow", 1.5)],
        *[("task", value) for value in (7, b"t", "\ud800")],
        *[("agent_id", value) for value in (7, "\udfff")],
    ],
)
def test_what_is_no_filter_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest) as refused:
        Filter.of(**{field: value})
    assert refused.value.details.get("field", field) == field


def test_k_is_a_number_of_memories():
    assert check_k(np.int32(5)) == 5
    assert (check_k(1), check_k(MAX_K)) == (1, MAX_K)
    for k in (0, -1, MAX_K + 1, 1.0, "5", True, None):
        with pytest.raises(InvalidRequest, match="k must be"):
            check_k(k)
