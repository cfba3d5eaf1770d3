"""`ZeroShot`: answers without memory, from what the options say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedlab.episode import embedding_text
from fedlab.errors import InvalidRequest
from fedlab.lab.learner import Answer
from fedlab.lab.learners.choosing import best

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from fedlab.episode import Memory
    from fedlab.lab.learner import Embed, Query
    from fedlab.lab.world import Task, World


@dataclass
class ZeroShot:
    """The option whose description is nearest to the task; any option where there are no descriptions.

    It is the baseline without memory, and what other learners fall back on.
    """

    _options: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _embed: Embed | None = field(default=None, init=False, repr=False, compare=False)
    _described: dict[str, npt.NDArray[np.floating]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn the options of the world.

        Raises:
            InvalidRequest: If it has none.
        """
        options = getattr(world, "options", None)
        if not options:
            raise InvalidRequest(f"{type(self).__name__} chooses among options, and {world!r:.80} has none")
        self._options, self._embed, self._described = options, embed, {}
        if isinstance(task := getattr(world, "task", None), str) and getattr(world, "dimension", None) is None:
            self._describe(task)

    def _describe(self, task: str) -> None:
        """Embed the descriptions as tasks are, so that the two are alike but for what they say."""
        if any(self._options.values()) and self._embed is not None and task not in self._described:
            texts = [embedding_text(task, text or name) for name, text in self._options.items()]
            self._described[task] = np.asarray(self._embed(texts))

    def queries(self, task: Task) -> Sequence[Query]:
        """None."""
        return ()

    def similarities(self, task: Task) -> dict[str, float]:
        """The cosine of each option's description with the task; 0 where there are none to compare."""
        if task.vector is not None or self._embed is None or not any(self._options.values()):
            return dict.fromkeys(self._options, 0.0)
        self._describe(task.task)
        vector = np.asarray(self._embed([embedding_text(task.task, task.input)]))[0]
        return dict(zip(self._options, (self._described[task.task] @ vector).tolist(), strict=True))

    def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """The nearest option."""
        return Answer(best(self.similarities(task), rng), ())
