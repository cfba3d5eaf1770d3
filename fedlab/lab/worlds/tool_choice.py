"""`ToolChoice`: which module of the standard library does this? It needs nothing but Python."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from collections import Counter

import msgspec
import numpy as np

from fedlab.lab.worlds import docstrings
from fedlab.lab.worlds.answered import Answered

MIN_TEXTS = 20
"""Fewest texts of a module that takes part."""


class _Data(msgspec.Struct, frozen=True):
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    module_docs: dict[str, str]
    hash: str


class ToolChoice(Answered):
    """Which module of the standard library does this? Real texts with a known answer, and no download.

    An input is the first sentence of the docstring of a public function, class or method of the standard
    library; its answer is the module it comes from. Modules with fewer than 20 texts do not take part. The
    data depends on the version of Python: `data_hash` says on which data a result was made.

    Args:
        seed: Of the order in which `texts` and `answers` stand; tasks are drawn with a generator of your own.

    >>> world = ToolChoice()
    >>> from fedlab.lab import Task
    >>> world.reward(Task(world.task, world.texts[0], world.answers[0]), world.answers[0])
    1.0
    """

    def __init__(self, seed: int = 0) -> None:
        data = _collect()
        order = np.random.default_rng(seed).permutation(len(data.texts))
        texts = [data.texts[i] for i in order]
        super().__init__("choose-module", texts, [data.answers[i] for i in order], data.module_docs, data.hash)
        self.seed = seed
        self.texts = self.inputs
        self.module_docs = self.options
        self.modules = tuple(self.options)


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
