"""Ancestry and credit, on families small enough to work out by hand."""

from __future__ import annotations

import polars as pl
import pytest

from fedlab.lab.lineage import trace
from fedlab.lab.record import SCHEMAS
from tests.lab.runs import outcome


def family(*rows):
    """Outcomes of one cell: id, generation, reward, used."""
    outcomes = [
        dict.fromkeys(SCHEMAS["episodes"]) | outcome("a", 0, generation, reward, episode_id=name, used=used.split())
        for name, generation, reward, used in rows
    ]
    return pl.DataFrame(outcomes, schema=SCHEMAS["episodes"])


CHAIN = family(("one", 0, 1.0, ""), ("two", 1, 1.0, "one"), ("three", 2, 0.5, "two one"), ("four", 2, 0.5, ""))


def test_depth_is_one_more_than_that_of_the_deepest_ancestor():
    assert trace(CHAIN).episodes.select("episode_id", "depth").rows() == [
        ("one", 0),
        ("two", 1),
        ("three", 2),
        ("four", 0),
    ]


def test_credit_is_shared_equally_among_what_decided_an_answer():
    found = trace(CHAIN).top()
    assert found.select("episode_id", "uses", "credit").rows() == [("one", 2, 1.25), ("two", 1, 0.25)]


def test_all_credit_comes_from_rewards_and_goes_to_somebody():
    episodes = trace(CHAIN).episodes
    with_ancestors = episodes.filter(pl.col("used").list.len() > 0)
    assert episodes["credit"].sum() == with_ancestors["true_reward"].sum()


def test_what_of_the_reward_goes_back_to_the_dead():
    last = trace(CHAIN).generations.row(2, named=True)
    assert last == {
        "arm": "a",
        "seed": 0,
        "generation": 2,
        "depth": 1.0,
        "deepest": 2,
        "built": 0.5,
        "inherited": 0.5,
        "lag": 1.5,
    }


def test_a_founder_was_there_before_all_generations():
    first = trace(family(("one", 0, 1.0, "founder"))).generations.row(0, named=True)
    assert (first["depth"], first["built"], first["inherited"], first["lag"]) == (1.0, 1.0, 1.0, 1.0)


def test_a_loss_cannot_be_inherited():
    found = trace(family(("one", 0, -3.0, ""), ("two", 1, -1.0, "one"), ("three", 1, 1.0, "one")))
    assert found.generations["inherited"].to_list() == [None, None]
    assert found.generations["built"].to_list() == [0.0, 1.0]
    assert found.episodes["credit"].to_list() == [1.0, 0.0, 0.0]


def test_the_same_id_in_another_cell_is_another_episode():
    twice = [CHAIN, CHAIN.with_columns(arm=pl.lit("b")), CHAIN.with_columns(seed=pl.lit(1, pl.Int64))]
    found = trace(pl.concat(twice)).episodes
    assert found["credit"].to_list() == pytest.approx([1.25, 0.25, 0.0, 0.0] * 3)
    assert found["depth"].to_list() == [0, 1, 2, 0] * 3


def test_an_answer_that_was_not_stored_has_ancestors_and_no_heirs():
    found = trace(family(("one", 0, 1.0, ""), (None, 1, 1.0, "one"), (None, 1, 1.0, "")))
    assert found.episodes.select("depth", "uses").rows() == [(0, 1), (1, 0), (0, 0)]


def test_the_most_useful_are_named_for_each_arm():
    both = pl.concat([CHAIN, CHAIN.with_columns(arm=pl.lit("b"))])
    assert trace(both).top(1).select("arm", "episode_id").rows() == [("a", "one"), ("b", "one")]
    assert "Most useful episodes" in trace(both)._repr_html_()
