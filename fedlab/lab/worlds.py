"""Worlds: where tasks come from, and what an answer to one is worth. `ToolChoice` needs nothing but Python."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from fedlab.lab import docstrings
from fedlab.lab.world import Task

if TYPE_CHECKING:
    import numpy as np

MIN_TEXTS = 20
"""Fewest texts of a module that takes part."""


class _Data(msgspec.Struct, frozen=True):
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    module_docs: dict[str, str]
    hash: str


class ToolChoice:
    """Which module of the standard library does this? Real texts with a known answer, and no download.

    An input is the first sentence of the docstring of a public function, class or method of the standard
    library; its answer is the module it comes from. Modules with fewer than 20 texts do not take part. The
    data depends on the version of Python: `data_hash` says on which data a result was made.

    Args:
        seed: Of the order in which `texts` and `answers` stand; tasks are drawn with a generator of your own.

    >>> world = ToolChoice()
    >>> world.reward(Task(world.task, world.texts[0], world.answers[0]), world.answers[0])
    1.0
    """

    task = "choose-module"
    """The `task` of every episode of this world."""

    def __init__(self, seed: int = 0) -> None:
        # NumPy here and not above: importing the worlds must stay cheap for those who only look at names.
        import numpy as np

        data = _collect()
        order = np.random.default_rng(seed).permutation(len(data.texts))
        self.seed = seed
        self.texts = tuple(data.texts[i] for i in order)
        self.answers = tuple(data.answers[i] for i in order)
        self.module_docs = dict(data.module_docs)
        self.modules = tuple(self.module_docs)
        self.options = self.module_docs
        self.data_hash = data.hash

    def tasks(self, rng: np.random.Generator, n: int, generation: int = 0) -> list[Task]:
        """`n` different tasks, or as many as there are; of all generations alike."""
        chosen = rng.choice(len(self.texts), size=min(n, len(self.texts)), replace=False)
        return [Task(self.task, self.texts[i], self.answers[i]) for i in chosen]

    def reward(self, task: Task, output: str) -> float:
        """1.0 for the module that the text comes from, else 0.0."""
        return float(output == task.answer)

    def __repr__(self) -> str:
        return f"ToolChoice({len(self.texts)} texts, {len(self.modules)} modules, {self.data_hash[:12]})"


@functools.cache
def _collect() -> _Data:
    """Every text with its module, in alphabetical order; the same in every process of one Python version."""
    command = [sys.executable, "-I", "-S", "-W", "ignore", docstrings.__file__]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout  # noqa: S603
    modules = msgspec.json.decode(output, type=dict[str, tuple[str, list[str]]])
    answers: dict[str, set[str]] = {}
    for name, (_, sentences) in modules.items():
        for text in sentences:
            answers.setdefault(text, set()).add(name)
    # A text of two modules has no one right answer.
    pairs = sorted((text, min(names)) for text, names in answers.items() if len(names) == 1)
    sizes = Counter(name for _, name in pairs)
    docs = {name: doc for name, (doc, _) in modules.items() if doc and sizes[name] >= MIN_TEXTS}
    pairs = [(text, name) for text, name in pairs if name in docs]
    texts, names = zip(*pairs, strict=True)
    digest = hashlib.sha256(msgspec.json.encode([pairs, sorted(docs.items())])).hexdigest()
    return _Data(texts=texts, answers=names, module_docs=docs, hash=digest)
