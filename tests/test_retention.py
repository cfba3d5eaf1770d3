"""Retention policies as values: how they compose, read and travel. What they remove from a hub is in tests/hub."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab import InvalidRequest, KeepForever, MaxAge, MaxEpisodes, MinReward
from fedlab.retention import RetentionPolicy

policies = st.recursive(
    st.one_of(
        st.just(KeepForever()),
        st.builds(MaxAge, st.floats(0.001, 1e6)),
        st.builds(MinReward, st.floats(-1e9, 1e9)),
        st.builds(MaxEpisodes, st.integers(1, 10**9), st.sampled_from(["newest", "best", "most_used"])),
    ),
    lambda part: st.builds(lambda one, other, both: one & other if both else one | other, part, part, st.booleans()),
    max_leaves=6,
)


@given(policies)
def test_a_policy_comes_back_from_its_json(policy):
    assert RetentionPolicy.from_json(policy.to_json()) == policy


def test_a_policy_reads_as_a_sentence():
    assert str(KeepForever()) == "keep everything forever"
    policy = MaxAge(days=90) & MinReward(0.7) | MaxEpisodes(1_000, keep="most_used")
    assert str(policy) == (
        "((keep what is at most 90 days old) and (keep rewards of at least 0.7)) or (keep the most used 1,000 episodes)"
    )


@pytest.mark.parametrize(
    "make",
    [
        *[lambda days=days: MaxAge(days) for days in (0, -1, math.nan, math.inf, "90", True)],
        *[lambda reward=reward: MinReward(reward) for reward in (math.nan, math.inf, "0.7", None)],
        *[lambda n=n: MaxEpisodes(n) for n in (0, -1, 1.5, "10", True)],
        lambda: MaxEpisodes(5, keep="oldest"),
        lambda: MaxAge(1) & "MinReward(0.7)",
        lambda: MaxAge(1) | None,
    ],
)
def test_what_is_no_policy_is_refused_when_it_is_made(make):
    with pytest.raises((InvalidRequest, TypeError)):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        '{"policy": "Nothing"}',
        '{"policy": "MaxAge"}',
        '{"policy": "MaxAge", "days": -1}',
        '{"policy": "MaxEpisodes", "n": 5, "keep": "oldest"}',
        '{"policy": "Both", "first": {"policy": "KeepForever"}}',
        '{"policy":"Both","first":' * 5_000,
    ],
)
def test_what_is_no_policy_is_refused_as_json(text):
    with pytest.raises(InvalidRequest, match="no retention policy"):
        RetentionPolicy.from_json(text)
