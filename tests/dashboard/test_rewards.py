"""The page Rewards: every form of every group, and intervals that are Student's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from streamlit.testing.v1 import AppTest

from fedlab import Episode, Hub
from tests.dashboard.conftest import Look


def table(app: AppTest, chart: str) -> pl.DataFrame:
    """The data of a chart, which is there as soon as it is opened."""
    assert not app.dataframe
    app.session_state[f"{chart}-open"] = True
    app.run()
    assert not app.exception, app.exception
    assert not app.error
    (found,) = app.dataframe
    return pl.from_pandas(found.value)


@pytest.fixture
def odd_hub(tmp_path: Path) -> Path:
    """A hub with rewards below zero and huge ones, one tenant with a single episode, and no generations."""
    path = tmp_path / "odd"
    rewards = {"negative": [-3.5, -2.0, -1.0], "huge": [-1e308, 0.0, 1e308], "single": [0.5]}
    with Hub(path, embedder="hashing") as hub:
        for tenant, values in rewards.items():
            hub.put([Episode(tenant_id=tenant, agent_id="a", task="t", input="", output="", reward=r) for r in values])
    return path


@pytest.mark.parametrize("across", ["tenant", "task", "generation"])
@pytest.mark.parametrize("form", ["ridgeline", "heat map", "histogram", "ECDF"])
def test_each_form_shows_every_episode_of_the_chosen_tenants(across: str, form: str, look_at: Look, lively_hub: Path):
    with Hub(lively_hub) as hub:
        there = sum(hub.stats(each).episodes for each in ("acme", "globex"))
    app = look_at("rewards", lively_hub)
    app.button_group(key="groups").set_value(across)
    app.button_group(key="form").set_value(form)
    app.multiselect(key="tenants").set_value(["acme", "globex"]).run()
    assert table(app, "rewards-distribution")["count"].sum() == there


@pytest.mark.parametrize("form", ["ridgeline", "heat map", "histogram", "ECDF"])
def test_rewards_may_be_any_number(form: str, look_at: Look, odd_hub: Path):
    app = look_at("rewards", odd_hub)
    app.button_group(key="form").set_value(form).run()
    assert table(app, "rewards-distribution")["count"].sum() == 7
    assert any("time takes its place" in each.value for each in app.caption)


def test_the_interval_of_a_mean_is_students(look_at: Look, odd_hub: Path):
    summary = table(look_at("rewards", odd_hub), "rewards-tenants")
    row = summary.row(by_predicate=pl.col("tenant_id") == "negative", named=True)
    values = np.array([-3.5, -2.0, -1.0])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high))
    single = summary.row(by_predicate=pl.col("tenant_id") == "single", named=True)
    assert single["ci_low"] is None or math.isnan(single["ci_low"])
