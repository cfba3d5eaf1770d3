"""Episodes to measure with: texts of about 120 characters, and vectors that lie in clusters as sentences do."""

from __future__ import annotations

import numpy as np

from fedlab import Episode


def vectors(count: int, seed: int = 0, clusters: int = 500) -> np.ndarray:
    """Directions around random centres, shape (count, 384): where real sentence vectors are not at hand."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 384))
    return (centres[rng.integers(clusters, size=count)] + 0.7 * rng.normal(size=(count, 384))).astype(np.float32)


def episodes(count: int, tenant_id: str = "bench", seed: int = 0) -> list[Episode]:
    """Episodes that bring their vectors."""
    return [
        Episode(
            tenant_id=tenant_id,
            agent_id=f"agent-{number % 20}",
            task=f"task {number % 50}",
            input=f"input {number} " + "of a length that real inputs have " * 3,
            output=f"output {number} " + "and what an agent may have answered " * 3,
            reward=number % 10 / 10,
            vector=vector,
        )
        for number, vector in enumerate(vectors(count, seed))
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
