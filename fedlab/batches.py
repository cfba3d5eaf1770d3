"""Episodes cut into lists that fit a message, for whoever sends many: agents, spools, imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab.episode import metadata_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fedlab.episode import Episode

BATCH_EPISODES = 500
BATCH_BYTES = 1 << 20
"""A message of episodes ends before it grows over this; an episode that is larger travels alone."""


def batches(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Cut episodes into lists that fit a message, in order; nothing for no episodes."""
    batch: list[Episode] = []
    room = BATCH_BYTES
    for episode in episodes:
        size = size_in_message(episode)
        if batch and (size > room or len(batch) == BATCH_EPISODES):
            yield batch
            batch, room = [], BATCH_BYTES
        batch.append(episode)
        room -= size
    if batch:
        yield batch


def size_in_message(episode: Episode) -> int:
    """Bytes of an episode in a message, rather too many than too few."""
    texts = [episode.task, episode.input, episode.output]
    if episode.metadata:
        texts.append(metadata_json(episode.metadata))
    size = 400 + 70 * len(episode.sources) + sum([len(each) if each.isascii() else 4 * len(each) for each in texts])
    # As base64, which is the longer of the two forms.
    return size if episode.vector is None else size + episode.vector.nbytes * 4 // 3
