"""What was read of late: rows of episodes in RAM, because many recalls give the same memories.

Like the index it follows the log: what is forgotten or erased leaves it before anyone is told so.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fedlab.episode import Episode

MOST = 4_096
"""Episodes that are kept: some 10 MB."""
LARGE = 16_384
"""Characters of an episode that is too large to be kept."""


class Raw(NamedTuple):
    """An episode as it was read.

    Args:
        episode: But for its metadata, and for its vector where that was not asked for.
        metadata: JSON.
    """

    episode: Episode
    metadata: str


class Recent:
    """Episodes by number; any thread may ask, add and drop."""

    def __init__(self) -> None:
        self.age = 0
        """Grows whenever something is dropped."""
        self._held: dict[int, Raw] = {}
        self._lock = threading.Lock()

    def get(self, ids: Iterable[int]) -> dict[int, Raw]:
        """Those of the episodes that are here."""
        held = self._held
        return {each: raw for each in ids if (raw := held.get(each)) is not None}

    def put(self, age: int, read: Mapping[int, Raw]) -> None:
        """Keep what was read, unless something was dropped since.

        Args:
            age: As it was before it was read: what was dropped meanwhile must not come back.
            read: Episodes with their vectors, by number.
        """
        with self._lock:
            if age != self.age:
                return
            for number, raw in read.items():
                episode = raw.episode
                if sum(map(len, (episode.task, episode.input, episode.output, raw.metadata))) <= LARGE:
                    self._held[number] = raw
            while len(self._held) > MOST:
                del self._held[next(iter(self._held))]

    def drop(self, ids: Iterable[int]) -> None:
        """Let go of episodes."""
        with self._lock:
            self.age += 1
            for each in ids:
                self._held.pop(each, None)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self.age += 1
            self._held.clear()
