"""How learners choose: the best of what has a score, and what a memory says was right."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from fedlab.episode import Memory


def best(scores: Mapping[str, float], rng: np.random.Generator) -> str:
    """The name with the highest score; one of them at random where several have it."""
    highest = max(scores.values())
    names = [name for name, score in scores.items() if score == highest]
    return names[0] if len(names) == 1 else names[int(rng.integers(len(names)))]


def revealed(memory: Memory) -> str | None:
    """What would have been right, where the agent was told it (corrective feedback)."""
    answer = memory.metadata.get("answer")
    return None if answer is None else str(answer)
