"""What was read or stored of late: rows of episodes in RAM, because many recalls give the same memories, or new ones.

Like the index it follows the log: what is forgotten or erased leaves it before anyone is told so.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fedlab.episode import StoredEpisode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from fedlab.episode import Episode
    from fedlab.hub.log import Stored

MOST = 4_096
"""Episodes that are kept: some 10 MB."""
NEWEST = 1_024
"""Those that nobody has asked for yet."""
LARGE = 16_384
"""Characters of an episode that is too large to be kept."""


class Raw(NamedTuple):
    """An episode as it was read.

    Args:
        episode: But for its metadata.
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
        self._new: dict[int, Stored] = {}
        self._lock = threading.Lock()

    def get(self, ids: Collection[int]) -> dict[int, Raw]:
        """Those of the episodes that are here."""
        held = self._held
        found = {each: raw for each in ids if (raw := held.get(each)) is not None}
        if self._new and len(found) < len(ids):
            with self._lock:
                rows = {each: _raw(self._new.pop(each)) for each in ids if each in self._new}
                self._keep(rows)
            found.update(rows)
        return found

    def put(self, age: int, read: Mapping[int, Raw]) -> None:
        """Keep what was read, unless something was dropped since.

        Args:
            age: As it was before it was read: what was dropped meanwhile must not come back.
            read: Episodes by number.
        """
        with self._lock:
            if age == self.age:
                self._keep(read)

    def add(self, stored: Iterable[Stored]) -> None:
        """Keep what a commit made visible."""
        with self._lock:
            self._new.update((each.id, each) for each in stored if each.episode and _fits(each.episode, each.metadata))
            while len(self._new) > NEWEST:
                del self._new[next(iter(self._new))]

    def drop(self, ids: Iterable[int]) -> None:
        """Let go of episodes."""
        with self._lock:
            self.age += 1
            for each in ids:
                self._held.pop(each, None)
                self._new.pop(each, None)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self.age += 1
            self._held.clear()
            self._new.clear()

    def _keep(self, rows: Mapping[int, Raw]) -> None:
        self._held.update((number, raw) for number, raw in rows.items() if _fits(*raw))
        while len(self._held) > MOST:
            del self._held[next(iter(self._held))]


def _fits(episode: Episode, metadata: str) -> bool:
    return len(episode.task) + len(episode.input) + len(episode.output) + len(metadata) <= LARGE


def _raw(stored: Stored) -> Raw:
    """What would be read of it."""
    assert stored.episode is not None
    own = msgspec.structs.asdict(stored.episode)
    own |= {"created_at": stored.created_at, "vector": stored.vector, "metadata": {}}
    return Raw(StoredEpisode(**own), stored.metadata)
