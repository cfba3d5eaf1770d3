"""What became of every outcome of a cell: where a task fails although somebody had learned what would have helped, the
ledger tells where memory failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from fedlab.episode import metadata_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fedlab.episode import Episode
    from fedlab.lab.store import Forgotten
    from fedlab.lab.world import Outcome, Task

    Helpful = Callable[[Task, Outcome], bool]

Stage = Literal["never stored", "forgotten", "not recalled", "not used"]
Stumble: TypeAlias = tuple[Stage | None, str | None]
"""Where memory failed, or None if it did not; and why the memory is gone, where one is."""


class Entry(NamedTuple):
    """One episode of one tenant.

    Args:
        outcome: As its learner was told of it: with the right answer under corrective feedback only.
        bytes: Texts, metadata and vector.
        reason: The sentence with which the log says why it is forgotten.
    """

    outcome: Outcome
    bytes: int
    reason: str | None = None


class Ledger:
    """Live and forgotten episodes by tenant."""

    def __init__(self) -> None:
        self.live: dict[str, dict[str, Entry]] = {}
        self.forgotten: dict[str, dict[str, Entry]] = {}
        self.bytes = 0
        """Of the contents of live episodes."""
        self._origins: dict[str, str] = {}  # of migrants

    @property
    def size(self) -> int:
        """Live episodes."""
        return sum(len(each) for each in self.live.values())

    def store(self, episode: Episode, outcome: Outcome, origin: str | None = None) -> None:
        """An episode is in memory; a migrant has an origin, the id under which it was stored first."""
        if origin is not None:
            self._origins[episode.id] = origin
        texts = (episode.task, episode.input, episode.output, metadata_json(episode.metadata))
        size = sum(len(each.encode()) for each in texts) + (0 if episode.vector is None else episode.vector.nbytes)
        # The world judges it by what it was an answer to, which an outcome says only where it is not the task's input.
        entry = Entry(outcome._replace(input=episode.input), size)
        self.live.setdefault(episode.tenant_id, {})[episode.id] = entry
        self.bytes += size

    def forget(self, gone: Iterable[Forgotten]) -> None:
        """Episodes are forgotten."""
        for each in gone:
            entry = self.live[each.tenant_id].pop(each.episode_id)
            self.bytes -= entry.bytes
            self.forgotten.setdefault(each.tenant_id, {})[each.episode_id] = entry._replace(reason=each.reason)

    def origins(self, ids: Iterable[str]) -> list[str]:
        """The ids under which episodes were stored first."""
        return [self._origins.get(each, each) for each in ids] if self._origins else [*ids]

    def stage(self, helpful: Helpful, task: Task, tenant_id: str, recalled: Sequence[str]) -> Stumble:
        """Where memory failed a task; and if what would have helped was forgotten, why the last of it was.

        Args:
            helpful: Of the world.
            task: What failed.
            tenant_id: Whose memory was asked.
            recalled: Ids of what was recalled.
        """
        live = self.live.get(tenant_id, {})
        if any(helpful(task, live[each].outcome) for each in recalled if each in live):
            return "not used", None
        if any(helpful(task, entry.outcome) for entry in live.values()):
            return "not recalled", None
        for entry in reversed(self.forgotten.get(tenant_id, {}).values()):
            if helpful(task, entry.outcome):
                return "forgotten", entry.reason
        return "never stored", None
