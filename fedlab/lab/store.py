"""Where the agents of one cell leave their memories: a hub of the cell's own, or tenants of a live one."""

from __future__ import annotations

import abc
import contextlib
from typing import TYPE_CHECKING, NamedTuple

from fedlab.errors import InvalidRequest
from fedlab.hub import Hub
from fedlab.net import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from fedlab.clock import Clock
    from fedlab.embedding import Embedder
    from fedlab.episode import Episode
    from fedlab.net import HubConnection
    from fedlab.retention import RetentionPolicy


class Forgotten(NamedTuple):
    """One episode that retention removed, and the sentence with which the log says why."""

    tenant_id: str
    episode_id: str
    reason: str


class Store(abc.ABC):
    """The memory of a cell.

    Args:
        connection: For its agents.
        prefix: Begins the name of each of its tenants.
    """

    def __init__(self, connection: HubConnection, prefix: str = "") -> None:
        self.connection = connection
        self.prefix = prefix

    @abc.abstractmethod
    async def keep(self, tenants: Sequence[str], policy: RetentionPolicy) -> None:
        """Set the retention of these tenants."""

    @abc.abstractmethod
    async def stored(self, episodes: Sequence[Episode]) -> None:
        """Hear of episodes that agents have pushed."""

    @abc.abstractmethod
    async def retain(self, tenants: Sequence[str]) -> list[Forgotten]:
        """Apply retention; what was forgotten, in the order of the log."""

    @property
    @abc.abstractmethod
    def bytes(self) -> int | None:
        """On disk; None for a hub that others use too."""


class OwnStore(Store):
    """A hub of the cell's own, embedded."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(connect(hub))
        self.hub = hub

    async def keep(self, tenants: Sequence[str], policy: RetentionPolicy) -> None:
        """Set the retention of these tenants."""
        for each in tenants:
            self.hub.set_retention(each, policy)

    async def stored(self, episodes: Sequence[Episode]) -> None:
        """The hub has heard of them."""

    async def retain(self, tenants: Sequence[str]) -> list[Forgotten]:
        """Apply retention; what was forgotten, in the order of the log."""
        before = self.hub.info().seq
        for each in tenants:
            self.hub.apply_retention(each)
        changes = self.hub.read_changes(before, kind="episode_forgotten", limit=None)
        return [Forgotten(each.tenant_id, each.subject, each.reason) for each in changes]

    @property
    def bytes(self) -> int | None:
        """On disk, or in RAM where the hub is a throw-away one."""
        return sum(file.stat().st_size for file in self.hub.path.rglob("*") if file.is_file())


class LiveStore(Store):
    """Tenants of a live hub, whose clock is not the experiment's.

    What a policy removes is therefore decided by a hub of the cell's own, on the experiment's clock, to which every
    episode is copied; the live hub is told to forget it, with the reason.
    """

    def __init__(self, connection: HubConnection, prefix: str, judge: OwnStore) -> None:
        super().__init__(connection, prefix)
        self.judge = judge

    async def keep(self, tenants: Sequence[str], policy: RetentionPolicy) -> None:
        """Set the retention of these tenants."""
        await self.judge.keep(tenants, policy)

    async def stored(self, episodes: Sequence[Episode]) -> None:
        """Copy episodes to where their retention is decided."""
        self.judge.hub.put(episodes)

    async def retain(self, tenants: Sequence[str]) -> list[Forgotten]:
        """Apply retention; what was forgotten, in the order of the log."""
        gone = await self.judge.retain(tenants)
        by_reason: dict[tuple[str, str], list[str]] = {}
        for each in gone:
            by_reason.setdefault((each.tenant_id, each.reason), []).append(each.episode_id)
        for (tenant_id, reason), ids in by_reason.items():
            await self.connection.forget(tenant_id, ids, reason=reason)
        return gone

    @property
    def bytes(self) -> int | None:
        """Unknown."""
        return None


@contextlib.asynccontextmanager
async def open_store(
    embedder: Embedder, clock: Clock, agents: int, *, url: str | None = None, prefix: str = "", keep: Path | None = None
) -> AsyncIterator[Store]:
    """The memory of one cell, empty.

    Args:
        embedder: Whose vectors the cell uses.
        clock: The cell's.
        agents: How many live at once.
        url: Of a live hub.
        prefix: Of the names of the tenants there.
        keep: The directory of a hub of the cell's own that stays; else it is gone afterwards.

    Raises:
        InvalidRequest: If the vectors of the live hub are of another embedder.
    """
    where = ":memory:" if keep is None else keep
    with Hub(where, clock, embedder, "normal", max_agents_per_tenant=max(10_000, agents)) as hub:
        own = OwnStore(hub)
        if url is None:
            yield own
            return
        async with connect(url) as connection:
            info = await connection.info()
            if (info.embedder, info.dimension) != (embedder.name, embedder.dimension):
                raise InvalidRequest(
                    f"the hub at {url} has vectors of {info.embedder} ({info.dimension} dimensions), and this"
                    f" experiment has those of {embedder.name} ({embedder.dimension}): run a hub with that embedder",
                    field="hub",
                )
            yield LiveStore(connection, prefix, own)
