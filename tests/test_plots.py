"""Figures, and the page that holds them."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest

from fedlab.plots import learning_curves, memory_growth, reward_by_generation, tenant_colours, write_page

EPISODES = pl.DataFrame(
    {
        "tenant_id": ["acme"] * 6 + ["globex"] * 2,
        "generation": [0, 0, 0, 0, 1, 1, 0, 1],
        "reward": [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0],
    }
)
CHANGES = pl.DataFrame(
    [
        ("acme", "tenant_created", 1_000),
        ("acme", "episode_stored", 1_000),
        ("acme", "episode_stored", 1_000),
        ("globex", "episode_stored", 2_000),
        ("acme", "episode_forgotten", 3_000),
    ],
    schema=["tenant_id", "kind", "at"],
    orient="row",
)


def lines(figure):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data if trace.name}


def test_reward_by_generation_is_the_mean_with_an_interval():
    first = reward_by_generation(EPISODES).row(0, named=True)
    assert (first["tenant_id"], first["generation"], first["tasks"], first["mean"]) == ("acme", 0, 4, 0.5)
    # 1.96 * 0.57735 / sqrt(4) = 0.5658, cut to the range of the rewards
    assert (first["low"], first["high"]) == (0.0, 1.0)


def test_a_lone_task_has_a_mean_and_no_width():
    last = reward_by_generation(EPISODES).row(-1, named=True)
    assert (last["mean"], last["low"], last["high"]) == (1.0, 1.0, 1.0)


def test_learning_curves_have_a_line_and_a_band_for_each_tenant():
    figure = learning_curves(EPISODES)
    assert lines(figure) == {"acme": ([0, 1], [0.5, 1.0]), "globex": ([0, 1], [0.0, 1.0])}
    assert [trace.fill for trace in figure.data] == ["toself", None, "toself", None]


def test_memory_growth_is_stored_minus_forgotten():
    sizes = {name: y for name, (_, y) in lines(memory_growth(CHANGES)).items()}
    assert sizes == {"acme": [2, 1], "globex": [1]}


def test_a_tenant_has_one_colour_in_all_figures():
    colours = tenant_colours(["acme", "globex", "zeta"])
    only_globex = EPISODES.filter(pl.col("tenant_id") == "globex")
    for figure in (learning_curves(only_globex, tenants=colours), memory_growth(CHANGES, tenants=colours)):
        shown = {trace.name: trace.line.color for trace in figure.data if trace.name}
        assert shown.items() <= colours.items()


def test_many_tenants_stay_apart():
    frame = pl.DataFrame({"tenant_id": [f"t{n:02}" for n in range(20)], "generation": 0, "reward": 1.0})
    marks = {(trace.line.color, trace.line.dash) for trace in learning_curves(frame).data if trace.name}
    assert len(marks) == 20


@pytest.mark.parametrize("figure", [learning_curves(EPISODES), memory_growth(CHANGES)])
def test_a_figure_says_what_it_shows(figure):
    layout = figure.layout
    assert all([layout.title.text, layout.xaxis.title.text, layout.yaxis.title.text, layout.legend.title.text])


@pytest.mark.parametrize("figure", [learning_curves(EPISODES.clear()), memory_growth(CHANGES.clear())])
def test_an_empty_hub_has_an_empty_figure(figure):
    assert not figure.data


def test_a_page_holds_everything_and_loads_nothing(tmp_path):
    figures = [learning_curves(EPISODES), memory_growth(CHANGES)]
    path = write_page(tmp_path / "new" / "page.html", "a <title>", figures, "<table><td>1</td></table>")
    page = path.read_text(encoding="utf-8")
    assert "a &lt;title&gt;" in page
    assert "a <title>" not in page
    assert "<td>1</td>" in page
    assert page.count("Plotly.newPlot(") == 2
    assert len(page) > 1_000_000, "plotly.js is in the page"
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert json.dumps("generation") in page
