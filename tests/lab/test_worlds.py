"""ToolChoice: real texts with a known answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from fedlab.lab import Task, ToolChoice
from fedlab.lab.worlds.tool_choice import MIN_TEXTS

WORLD = ToolChoice()


def test_there_are_about_two_thousand_texts_of_about_fifty_modules():
    assert len(WORLD.texts) == len(WORLD.answers) > 1_500
    assert 35 <= len(WORLD.modules) <= 70


def test_every_text_is_one_sentence_with_one_answer():
    assert len(set(WORLD.texts)) == len(WORLD.texts)
    assert set(WORLD.answers) == set(WORLD.modules) == set(WORLD.module_docs)
    assert all(text == " ".join(text.split()) and len(text.split()) >= 3 for text in WORLD.texts)
    assert all(WORLD.module_docs.values())


def test_a_module_takes_part_only_with_enough_texts():
    assert min(Counter(WORLD.answers).values()) >= MIN_TEXTS


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("zipfile", "Quickly see if a file is a ZIP file by checking the magic number."),
        ("math", "Return the fractional and integer parts of x."),
        ("ftplib", "Retrieve the size of a file."),
    ],
)
def test_the_answer_is_the_module_of_the_docstring(answer, text):
    assert dict(zip(WORLD.texts, WORLD.answers, strict=True))[text] == answer


def test_the_data_is_the_same_in_every_process_whatever_is_imported_or_patched_there():
    code = (
        "import inspect, logging, polars, pytest; inspect.getfile = logging.Logger.extra = lambda: None;"
        "from fedlab.lab import ToolChoice; print(ToolChoice().data_hash)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert (result.stdout, result.stderr) == (WORLD.data_hash + "\n", "")


def test_making_a_world_imports_nothing_into_this_process():
    code = (
        "import sys; from fedlab.lab import ToolChoice; ToolChoice(); print({'imaplib', 'cProfile'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "set()\n"


def test_the_same_generator_state_gives_the_same_tasks():
    first = WORLD.tasks(np.random.default_rng(3), 50)
    assert first == WORLD.tasks(np.random.default_rng(3), 50) != WORLD.tasks(np.random.default_rng(4), 50)
    assert len({task.input for task in first}) == 50
    assert {task.task for task in first} == {"choose-module"}


def test_no_more_tasks_are_drawn_than_there_are():
    assert len(WORLD.tasks(np.random.default_rng(0), 10**6)) == len(WORLD.texts)


def test_a_seed_changes_the_order_and_nothing_else():
    other = ToolChoice(seed=1)
    assert other.texts != WORLD.texts
    assert sorted(zip(other.texts, other.answers, strict=True)) == sorted(zip(WORLD.texts, WORLD.answers, strict=True))
    assert other.data_hash == WORLD.data_hash


def test_only_the_right_module_is_rewarded():
    task = Task("choose-module", "Retrieve the size of a file.", "ftplib")
    assert [WORLD.reward(task, output) for output in ("ftplib", "os", "")] == [1.0, 0.0, 0.0]
