"""LabelledText and Digits: data of one's own, from every kind of table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from fedlab.errors import InvalidRequest
from fedlab.lab import Outcome, Task
from fedlab.lab.worlds import Digits, LabelledText, ToolChoice

ROWS = {
    "says": ["two plus two", "a red rose", "ten minus one", "an oak tree", "two plus two"],
    "kind": ["sum", "plant", "sum", "plant", "sum"],
    "number": [1, 2, 1, 2, 1],
}


def table(kind, folder):
    frame = pl.DataFrame(ROWS)
    if kind == "csv":
        frame.write_csv(folder / "rows.csv")
        return str(folder / "rows.csv")
    if kind == "parquet":
        frame.write_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    return {"polars": frame, "lazy": frame.lazy(), "pandas": pd.DataFrame(ROWS)}[kind]


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "csv", "parquet"])
def test_every_kind_of_table_makes_the_same_world(kind, tmp_path):
    world = LabelledText(table(kind, tmp_path), text="says", label="kind")
    assert world.inputs == ("two plus two", "a red rose", "ten minus one", "an oak tree")
    assert world.answers == ("sum", "plant", "sum", "plant")
    assert world.options == {"plant": "plant", "sum": "sum"}
    assert world.data_hash == LabelledText(pl.DataFrame(ROWS), text="says", label="kind").data_hash
    numbered = LabelledText(
        table(kind, tmp_path), text="says", label="number", descriptions={"1": "a sum"}, task="which?"
    )
    assert numbered.options == {"1": "a sum", "2": "2"}
    assert numbered.tasks(np.random.default_rng(0), 1)[0].task == "which?"
    assert numbered.data_hash != world.data_hash


@pytest.mark.parametrize(
    ("frame", "names", "says"),
    [
        (pl.DataFrame(ROWS), ("text", "kind"), "no column 'text': the columns are says, kind, number"),
        (pd.DataFrame({"a": ["x", None], "b": ["1", "2"]}), ("a", "b"), "row 1 of column 'a' is empty"),
        (pd.DataFrame({"a": ["x", "y"], "b": [1.0, float("nan")]}), ("a", "b"), "row 1 of column 'b' is empty"),
        (pl.DataFrame({"a": ["x", "  "], "b": ["1", "2"]}), ("a", "b"), "row 1 of column 'a' is empty"),
        (pl.DataFrame({"a": [], "b": []}), ("a", "b"), "no rows"),
        (pl.DataFrame({"a": ["x", "y"], "b": ["1", "1"]}), ("a", "b"), "has 1 label"),
        (pl.DataFrame({"a": ["x", "x"], "b": ["1", "2"]}), ("a", "b"), "'x' has two labels, '1' and '2'"),
        ("nowhere.csv", ("a", "b"), "nowhere.csv can not be read"),
        ("nowhere.xlsx", ("a", "b"), "no path that ends in .csv or .parquet"),
        (7, ("a", "b"), "7 is no Polars or pandas frame"),
    ],
)
def test_a_table_that_can_not_be_used_is_refused_by_name(frame, names, says):
    with pytest.raises(InvalidRequest, match=says):
        LabelledText(frame, text=names[0], label=names[1])


def test_a_description_of_no_label_is_refused():
    with pytest.raises(InvalidRequest, match="'rock', which is no label"):
        LabelledText(pl.DataFrame(ROWS), text="says", label="kind", descriptions={"rock": "a stone"})


def test_the_world_of_a_seed_gives_every_input_once_before_any_comes_again():
    world = ToolChoice().seeded(np.random.default_rng(5))
    rng = np.random.default_rng(0)
    size = len(world.inputs)
    drawn = [task for generation in range(size // 100 + 1) for task in world.tasks(rng, 100, generation)]
    assert len({task.input for task in drawn[:size]}) == size
    assert world.tasks(rng, 100, 3) == drawn[300:400]
    again = ToolChoice().seeded(np.random.default_rng(5))
    assert again.tasks(np.random.default_rng(9), 100, 3) == drawn[300:400]
    assert ToolChoice().seeded(np.random.default_rng(6)).tasks(rng, 100, 3) != drawn[300:400]
    second = [task.input for task in world.tasks(rng, 2 * size, 0)[size:]]
    assert len(set(second)) == size
    assert second != [task.input for task in drawn[:size]]


def test_what_helps_is_a_right_answer_of_the_same_module():
    task = Task("choose-module", "Open a file.", "io")
    world = ToolChoice()
    assert world.helpful(task, Outcome("io", 1.0))
    assert world.helpful(task, Outcome("os", 0.0, answer="io"))
    assert not world.helpful(task, Outcome("io", 0.0))
    assert not world.helpful(task, Outcome("os", 1.0, answer="os"))


def test_digits_bring_their_own_vectors_by_which_the_same_digit_is_near():
    world = Digits()
    tasks = world.tasks(np.random.default_rng(0), 400)
    vectors = np.stack([task.vector for task in tasks]).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T - 2 * np.eye(400)
    right = [tasks[i].answer == tasks[j].answer for i, j in enumerate(near.argmax(axis=1))]
    assert np.mean(right) > 0.9
    assert world.dimension == 64
    assert set(world.options) == {task.answer for task in tasks}
