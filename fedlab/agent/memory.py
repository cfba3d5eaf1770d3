"""`LocalMemory`: what one agent holds in RAM, its own episodes and those it pulled, with exact search.

It does no I/O: texts without a vector are named by `missing`, and whoever has an embedder gives them to `learn`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedlab.episode import Episode, Memory, Vector, to_vector
from fedlab.hub.log import erased_id
from fedlab.recall import best

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from fedlab.recall import Filter, RecallPolicy


class _Columns(NamedTuple):
    """The episodes as arrays, for search; `matrix` holds unit vectors, shape (n, dimension)."""

    episodes: list[Episode]
    created_at: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float64]
    matrix: npt.NDArray[np.float32] | None


class LocalMemory:
    """Episodes in RAM, by id.

    Args:
        dimension: Of the hub's vectors.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._episodes: dict[str, Episode] = {}
        self._unsynced: dict[str, Episode] = {}
        self._created_at: dict[str, int] = {}  # of episodes whose time the hub has yet to set
        self._vectors: dict[str, Vector] = {}  # by text: of queries, and of episodes that brought none
        self._forgotten: set[str] = set()
        self._erased: set[str] = set()  # hashes of ids of this tenant
        self._tenant_id = ""
        self._columns: dict[bool, _Columns] = {}  # what `search` made of the episodes; emptied at each change

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def episodes(self) -> list[Episode]:
        """Everything in RAM, in the order it came."""
        return list(self._episodes.values())

    @property
    def unsynced(self) -> list[Episode]:
        """Own episodes that the hub has not acknowledged, oldest first."""
        return list(self._unsynced.values())

    @property
    def waiting(self) -> int:
        """How many own episodes the hub has not acknowledged."""
        return len(self._unsynced)

    def store(self, episode: Episode, now: int) -> None:
        """Take in an episode of the agent's own; it is unsynced until it is confirmed.

        Args:
            episode: What the agent made.
            now: Ms UTC; its age counts from here where it has no `created_at` yet.
        """
        self._episodes[episode.id] = self._unsynced[episode.id] = episode
        self._created_at[episode.id] = now
        self._columns.clear()

    def confirm(self, ids: Iterable[str]) -> int:
        """The hub has these episodes; returns how many were unsynced."""
        confirmed = sum(self._unsynced.pop(each, None) is not None for each in ids)
        self._columns.clear()
        return confirmed

    def hold(self, episodes: Iterable[Episode]) -> int:
        """Take in episodes from the hub, but for forgotten ones; returns how many were new."""
        before = len(self._episodes)
        for episode in episodes:
            uid = episode.id
            # An unsynced one stays as it is: it may be pushed again, and must be the same then.
            if uid not in self._unsynced and not (self.forgets and self.is_forgotten(uid)):
                self._episodes[uid] = episode
        self._columns.clear()
        return len(self._episodes) - before

    def release(self, ids: Iterable[str]) -> int:
        """The hub forgot these episodes: they leave, and do not come back. Returns how many were here."""
        before = len(self._episodes)
        for each in ids:
            self._forgotten.add(each)
            self._episodes.pop(each, None)
            self._unsynced.pop(each, None)
            self._created_at.pop(each, None)
        self._columns.clear()
        return before - len(self._episodes)

    def erase(self, tenant_id: str, hashes: Iterable[str]) -> int:
        """As `release`, of episodes of which the hub has but the hashes of their ids: it erased them."""
        self._tenant_id = tenant_id
        self._erased.update(hashes)
        return self.release([each for each in self._episodes if self.is_forgotten(each)]) if self._erased else 0

    def start_over(self) -> int:
        """Nothing is known of the hub any more: all leave but the unsynced, returns how many."""
        before = len(self._episodes)
        self._episodes = dict(self._unsynced)
        for each in (self._forgotten, self._erased, self._columns):
            each.clear()
        return before - len(self._episodes)

    def clear(self) -> None:
        """Free the RAM."""
        pools = (self._episodes, self._unsynced, self._created_at, self._vectors, self._columns)
        for each in (*pools, self._forgotten, self._erased):
            each.clear()

    @property
    def forgets(self) -> bool:
        """Whether the hub is known to have forgotten or erased any."""
        return bool(self._forgotten or self._erased)

    def is_forgotten(self, episode_id: str) -> bool:
        """Whether the hub is known to have forgotten or erased the episode."""
        if episode_id in self._forgotten:
            return True
        return bool(self._erased) and erased_id(self._tenant_id, episode_id) in self._erased

    def vector_of(self, text: str) -> Vector | None:
        """The vector of a text, where it was learned."""
        return self._vectors.get(text)

    def learn(self, texts: Sequence[str], vectors: Iterable[npt.NDArray[Any]]) -> None:
        """Keep the vectors of texts, each of shape (dimension,)."""
        for text, vector in zip(texts, vectors, strict=True):
            self._vectors[text] = to_vector(vector, self.dimension)
        self._columns.clear()

    def missing(self, *, unsynced: bool = False) -> list[str]:
        """Texts of episodes (of the unsynced only, if asked) that `search` would need vectors of."""
        pool = self._unsynced if unsynced else self._episodes
        texts = (episode.text for episode in pool.values() if episode.vector is None)
        return [text for text in dict.fromkeys(texts) if text not in self._vectors]

    def search(
        self, query: Vector | None, k: int, policy: RecallPolicy, where: Filter, now: int, *, unsynced: bool = False
    ) -> list[Memory]:
        """The k best episodes in RAM, ranked as the hub ranks them; exact.

        Random draws depend on the seed and the id, but are other ones than the hub's, whose numbers the agent
        does not know. Episodes whose vector is `missing` are left out where there is a query.

        Args:
            query: Shape (dimension,); None if the policy needs none.
            k: How many at most.
            policy: Ranks them.
            where: What may be returned.
            now: Ms UTC.
            unsynced: Only among own episodes that the hub does not have.
        """
        columns = self._table(unsynced)
        rows = np.flatnonzero(_mask(columns, where))
        if not len(rows):
            return []
        episodes = [columns.episodes[row] for row in rows]
        created_at = columns.created_at[rows]
        numbers = np.array([_number(episode.id) for episode in episodes]) if policy.random else rows
        score = policy.base(numbers, columns.rewards[rows], created_at, now)
        similarity = np.zeros(len(rows))
        if query is not None:
            assert columns.matrix is not None
            vectors = columns.matrix[rows]
            similarity = (vectors @ _unit(query[None])[0]).astype(np.float64)
            score = score + policy.similarity * similarity
            score[~vectors.any(axis=1)] = -np.inf
        top = best(score, created_at, rows, k)
        return [Memory(episodes[row], float(similarity[row]), float(score[row])) for row in top]

    def _table(self, unsynced: bool) -> _Columns:
        """The episodes as arrays, made once between two changes."""
        if unsynced not in self._columns:
            episodes = self.unsynced if unsynced else self.episodes
            blank = np.zeros(self.dimension, np.float16)
            rows = [
                self._vectors.get(episode.text, blank) if episode.vector is None else episode.vector
                for episode in episodes
            ]
            self._columns[unsynced] = _Columns(
                episodes,
                np.array([self.created_at(episode) for episode in episodes], np.int64),
                np.array([episode.reward for episode in episodes], np.float64),
                _unit(np.stack(rows)) if rows else None,
            )
        return self._columns[unsynced]

    def created_at(self, episode: Episode) -> int:
        """When an episode in RAM was made, ms UTC: by the agent's clock until the hub has set the time."""
        return self._created_at.get(episode.id, 0) if episode.created_at is None else episode.created_at


def _mask(columns: _Columns, where: Filter) -> npt.NDArray[np.bool_]:
    mask = np.ones(len(columns.episodes), np.bool_)
    if where.min_reward is not None:
        mask &= columns.rewards >= where.min_reward
    if where.since is not None:
        mask &= columns.created_at >= where.since
    if where.until is not None:
        mask &= columns.created_at < where.until
    if where.task is not None:
        mask &= np.array([episode.task == where.task for episode in columns.episodes], np.bool_)
    if where.agent_id is not None:
        mask &= np.array([episode.agent_id == where.agent_id for episode in columns.episodes], np.bool_)
    return mask


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Vectors at length 1, zeros left as they are, shape (n, dimension)."""
    matrix = vectors.astype(np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _number(episode_id: str) -> int:
    """A number that depends on the id alone, where the hub's own number is not known."""
    return int.from_bytes(blake2b(episode_id.encode(), digest_size=8).digest(), "big") >> 1
