"""Episodes to measure with: texts of about 120 characters, and vectors that lie as those of sentences do."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedlab.lab
from fedlab import Episode, MiniLM

TEXTS = 5_000
"""Real texts that are embedded: at 100 to 300 a second, a hundred thousand would take longer than all else together."""


@functools.cache
def _real() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of real texts, of shape (n, 384) each: of sentences, of pairs of them as one text, and what the vector of
    a pair has beside the direction between those of its sentences.
    """
    script = Path(fedlab.lab.__file__).with_name("worlds") / "docstrings.py"
    described = json.loads(subprocess.check_output([sys.executable, "-I", "-S", "-W", "ignore", str(script)]))
    single = sorted({each for _, sentences in described.values() for each in sentences})
    pairs = np.random.default_rng(0).integers(len(single), size=(TEXTS - len(single), 2))
    texts = [*single, *(f"{single[a]} {single[b]}" for a, b in pairs)]
    model, vectors = MiniLM(), np.empty((TEXTS, 384), np.float32)
    by_length = sorted(range(TEXTS), key=lambda number: len(texts[number]))  # texts embedded at once are as long
    for start in range(0, TEXTS, 64):
        part = by_length[start : start + 64]
        vectors[part] = model.embed([texts[number] for number in part])
    of_single, of_pairs = np.split(vectors, [len(single)])
    between = _unit(of_single[pairs[:, 0]] + of_single[pairs[:, 1]])
    return of_single, of_pairs, of_pairs - between


def sentence_vectors(count: int, seed: int = 0) -> np.ndarray:
    """Like vectors of texts of two sentences, shape (count, 384), float32.

    Each is the direction between the vectors of two docstrings' sentences, embedded by MiniLM, and beside that what a
    real text of two other sentences has beside this direction. The first 5,000 of seed 0 are embedded texts themselves.
    """
    single, pairs, beside = _real()
    rng = np.random.default_rng(seed)
    real = np.concatenate([single, pairs])[:count] if seed == 0 else single[:0]
    a, b = rng.integers(len(single), size=(2, count - len(real)))
    made = _unit(single[a] + single[b]) + beside[rng.integers(len(beside), size=len(a))]
    return np.concatenate([real, _unit(made)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors(count: int, seed: int = 0, clusters: int = 500) -> np.ndarray:
    """Directions around random centres, shape (count, 384): where the speed does not depend on where vectors lie."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 384))
    return (centres[rng.integers(clusters, size=count)] + 0.7 * rng.normal(size=(count, 384))).astype(np.float32)


def episodes(
    count: int, *tenants: str, seed: int = 0, lying: Callable[[int, int], np.ndarray] = vectors
) -> list[Episode]:
    """Episodes of the tenants in turn that bring their vectors: `lying(count, seed)`."""
    tenants = tenants or ("bench",)
    return [
        Episode(
            tenant_id=tenants[number % len(tenants)],
            agent_id=f"agent-{number % 20}",
            task=f"task {number % 50}",
            input=f"input {number} " + "of a length that real inputs have " * 3,
            output=f"output {number} " + "and what an agent may have answered " * 3,
            reward=(number + number // 50) % 10 / 10,  # so that those of a task differ
            vector=vector,
        )
        for number, vector in enumerate(lying(count, seed))
    ]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different texts of about 120 characters, made of words."""
    rng = np.random.default_rng(seed)
    words = [
        "agent",
        "memory",
        "episode",
        "reward",
        "tenant",
        "parse",
        "dates",
        "open",
        "socket",
        "read",
        "file",
        "write",
        "table",
        "index",
        "search",
        "vector",
        "graph",
        "policy",
        "retain",
        "forget",
        "merge",
        "sort",
        "plan",
        "step",
        "error",
        "retry",
        "token",
        "batch",
        "stream",
        "cache",
        "commit",
    ]
    return [" ".join(rng.choice(words, size=19)) + f" {number}" for number in range(count)]
