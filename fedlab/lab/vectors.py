"""Vectors of the texts of one cell: each text is embedded once, and what was embedded in an earlier run is read from a
cache in the user's cache directory.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from fedlab.embedding import EmbeddingService, Hashing
from fedlab.episode import embedding_text, to_vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from fedlab.embedding import Embedder
    from fedlab.episode import Vector
    from fedlab.lab.world import Task


class Vectors:
    """Vectors by text.

    Args:
        embedder: Makes them.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        cache = None
        if not isinstance(embedder, Hashing):  # which is as quick as the cache
            cache = Path(platformdirs.user_cache_dir("fedlab", ensure_exists=True)) / "embeddings.db"
        self._service = EmbeddingService(embedder, cache)
        self._known: dict[str, Vector] = {}

    async def learn(self, texts: Iterable[str]) -> None:
        """Have the texts embedded that are not known yet."""
        # In one order, whoever asks first: a model's last digits depend on what shares a batch.
        if missing := sorted({text for text in texts if text not in self._known}):
            self._keep(missing, await asyncio.wrap_future(self._service.submit(missing)))

    async def learn_tasks(self, tasks: Iterable[Task]) -> None:
        """Have the texts of tasks embedded, but of those that bring vectors."""
        await self.learn(embedding_text(each.task, each.input) for each in tasks if each.vector is None)

    def of(self, task: Task) -> Vector:
        """The vector of a task: its own, or that of its texts."""
        if task.vector is not None:
            return task.vector  # whoever takes it looks at it
        text = embedding_text(task.task, task.input)
        if text not in self._known:
            self._keep([text], self._service.embed([text]))
        return self._known[text]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of texts at length 1, shape (n, dimension): what `Learner.prepare` is given."""
        if missing := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._keep(missing, self._service.embed(missing))
        matrix = np.array([self._known[text] for text in texts], np.float32).reshape(-1, self.embedder.dimension)
        return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.close()

    def _keep(self, texts: Sequence[str], vectors: npt.NDArray[Any]) -> None:
        for text, vector in zip(texts, vectors, strict=True):
            self._known[text] = to_vector(vector)
