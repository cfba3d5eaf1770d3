"""What a hub's memory has to be, in plain Python: kept by hand beside a hub, one step at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fedlab import Episode, Hub, KeepForever, MaxAge, MaxEpisodes, MinReward

DAY = 86_400_000
Key = tuple[str, str]
"""Tenant and id of an episode."""
REDACTED = ("episode_erased", "erased")
_origins = itertools.count()


class Row(NamedTuple):
    """A row of the log; its origin tells it from the row with the same seq after a restore."""

    seq: int
    kind: str
    tenant_id: str
    subject: str
    actor: str
    at: int
    origin: int
    policy: Any = None

    def redacted(self) -> Row:
        kind = REDACTED[0] if self.kind == "episode_stored" else REDACTED[1]
        return self._replace(kind=kind, tenant_id="", subject="", actor="")


class Kept(NamedTuple):
    """What the attic has of a forgotten episode."""

    episode: Episode
    seq: int
    at: int


class Erasure(NamedTuple):
    scope: str
    tenant_id: str
    agent_id: str | None
    keys: frozenset[Key]


class Replay(NamedTuple):
    """What rows of a log say is there."""

    live: dict[Key, int]
    held: set[Key]
    policies: dict[str, Any]


def replay(rows: Iterable[Row]) -> Replay:
    live: dict[Key, int] = {}
    held: set[Key] = set()
    policies: dict[str, Any] = {}
    for row in rows:
        key = row.tenant_id, row.subject
        if row.kind == "tenant_created":
            policies[row.tenant_id] = KeepForever()
        elif row.kind == "retention_set":
            policies[row.tenant_id] = row.policy
        elif row.kind == "episode_stored":
            live[key] = row.seq
        elif row.kind == "episode_held":
            held.add(key)
        elif row.kind == "episode_released":
            held.discard(key)
        elif row.kind == "episode_forgotten":
            live.pop(key)
            held.discard(key)
    return Replay(live, held, policies)


@dataclasses.dataclass
class Model:
    """The memory of one hub."""

    hub_id: str
    keeps: bool
    live: dict[Key, Episode] = dataclasses.field(default_factory=dict)
    held: set[Key] = dataclasses.field(default_factory=set)
    attic: dict[Key, Kept] = dataclasses.field(default_factory=dict)
    erased: set[Key] = dataclasses.field(default_factory=set)
    erasures: dict[str, Erasure] = dataclasses.field(default_factory=dict)
    log: list[Row] = dataclasses.field(default_factory=list)
    going: dict[Key, Episode] = dataclasses.field(default_factory=dict)

    def copy(self) -> Model:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return Model(**{name: each.copy() if hasattr(each, "copy") else each for name, each in fields.items()})

    @property
    def stored(self) -> dict[Key, Row]:
        """Everything that the log knows."""
        return {(row.tenant_id, row.subject): row for row in self.log if row.kind == "episode_stored"}

    @property
    def policies(self) -> dict[str, Any]:
        """Of each tenant."""
        return replay(self.log).policies

    def of(self, tenant_id: str) -> list[Key]:
        return sorted(key for key in self.live if key[0] == tenant_id)

    def refusal(self, key: Key) -> str | None:
        """Why an episode that is not live can not be stored."""
        return "erased" if key in self.erased else "forgotten" if key in self.stored else None

    def forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.going[key] = self.live.pop(key)
            self.held.discard(key)

    def follow(self, hub: Hub, policy: Any = None) -> None:
        """Append to the log what the hub's has more."""
        for row in hub.read_changes(len(self.log), limit=None):
            self.log.append(
                Row(row.seq, row.kind, row.tenant_id, row.subject, row.actor, row.at, next(_origins), policy)
            )
            key = row.tenant_id, row.subject
            if row.kind == "episode_forgotten" and self.keeps and key in self.going:
                self.attic[key] = Kept(self.going[key], row.seq, row.at)
        self.going.clear()

    def purge(self, before: int) -> None:
        self.attic = {key: kept for key, kept in self.attic.items() if kept.at > before}

    def concerned(self, erasure: Erasure) -> set[Key]:
        """Which of the episodes that the log knows an erasure takes."""
        stored, found = self.stored, set(erasure.keys)
        if erasure.scope == "tenant":
            found |= {key for key in stored if key[0] == erasure.tenant_id}
        elif erasure.scope == "agent":
            for key, row in stored.items():
                kept = self.live.get(key) or (self.attic[key].episode if key in self.attic else None)
                # Of what was forgotten and not kept, the log knows only who pushed it.
                agent_id = row.actor if kept is None else kept.agent_id
                found |= {key} if (key[0], agent_id) == (erasure.tenant_id, erasure.agent_id) else set()
        return found & stored.keys()

    def erase(self, id_: str, erasure: Erasure) -> None:
        keys = self.concerned(erasure)
        for key in keys:
            self.live.pop(key, None)
            self.attic.pop(key, None)
        self.held -= keys
        self.erased |= keys | erasure.keys
        self.erasures[id_] = erasure._replace(keys=erasure.keys | keys)

        def goes(row: Row) -> bool:
            if erasure.scope == "tenant":
                return row.tenant_id == erasure.tenant_id
            return row.kind.startswith("episode_") and (row.tenant_id, row.subject) in keys

        self.log = [row.redacted() if goes(row) else row for row in self.log]

    def cut(self, seq: int) -> None:
        """Become what it was as of a seq, as far as it is kept."""
        then = replay(self.log[:seq])
        content = {key: kept.episode for key, kept in self.attic.items()} | self.live
        self.live = {key: content[key] for key in then.live if key in content}
        self.held = then.held & self.live.keys()
        self.attic = {key: kept for key, kept in self.attic.items() if kept.seq <= seq}
        self.log = self.log[:seq]

    def erase_again(self, later: Model) -> None:
        """Catch up with the erasures of a later state of the same hub."""
        for id_, erasure in later.erasures.items():
            if id_ not in self.erasures:
                self.erase(id_, erasure)
        self.erased |= later.erased

    def begins(self, other: Model) -> bool:
        """Whether its log is the beginning of the other's."""
        n = len(self.log)
        return self.hub_id == other.hub_id and n <= len(other.log) and self.log[-1].origin == other.log[n - 1].origin

    def check(self, hub: Hub) -> None:
        """Hub and model agree: the episodes, the log and its replay, holds, policies, what is kept."""
        rows = {(row["tenant_id"], row["id"]): row for row in hub.episodes().to_dicts()}
        assert rows.keys() == self.live.keys()
        assert not rows.keys() & self.erased
        for key, episode in self.live.items():
            assert all(rows[key][name] == getattr(episode, name) for name in ("agent_id", "task", "output", "reward"))
            assert all(rows[key][name] == getattr(episode, name) for name in ("created_at", "expires_at"))
        log = hub.read_changes(limit=None)
        shown = [(row.seq, row.kind, row.tenant_id) for row in log]
        assert shown == [row[:3] for row in self.log]
        assert [row.subject for row in log if row.tenant_id] == [row.subject for row in self.log if row.tenant_id]
        said = replay(self.log)
        assert (said.live.keys(), said.held) == (self.live.keys(), self.held)
        assert set(hub.tenants()["tenant_id"]) == said.policies.keys()
        for tenant_id, policy in said.policies.items():
            assert hub.retention(tenant_id) == policy
            assert {(tenant_id, uid) for uid in hub.holds(tenant_id)["id"]} == {
                key for key in self.held if key[0] == tenant_id
            }
        assert hub.stats().kept == len(self.attic)


def copy_as_killed(hub: Path, path: Path) -> None:
    """Copy the directory of an open hub: what `kill -9` would leave now."""
    path.mkdir()
    for source in hub.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a file that the index has just renamed
            target = path / source.relative_to(hub)
            target.mkdir(exist_ok=True) if source.is_dir() else shutil.copy(source, target)


Condemned = Callable[[list[tuple[int, Episode]], int], set[str]]
"""What a policy removes of episodes, given with their seqs, at a time: ids."""


def _old(rows: list[tuple[int, Episode]], now: int) -> set[str]:
    return {each.id for _, each in rows if each.created_at < now - 2 * DAY}


def _bad(rows: list[tuple[int, Episode]], now: int) -> set[str]:
    return {each.id for _, each in rows if each.reward < 0.5}


def _beyond(n: int, worth: Callable[[Episode], float]) -> Condemned:
    def condemned(rows: list[tuple[int, Episode]], now: int) -> set[str]:
        order = sorted(rows, key=lambda row: (worth(row[1]), row[1].created_at, row[0]), reverse=True)
        return {each.id for _, each in order[n:]}

    return condemned


_newest, _best = _beyond(5, lambda _: 0), _beyond(4, lambda each: each.reward)
POLICIES: dict[Any, Condemned] = {
    KeepForever(): lambda rows, now: set(),
    MaxAge(2): _old,
    MinReward(0.5): _bad,
    MaxEpisodes(5): _newest,
    MaxEpisodes(4, "best"): _best,
    MaxAge(2) & MinReward(0.5): lambda rows, now: _old(rows, now) | _bad(rows, now),
    MaxAge(2) | MaxEpisodes(4, "best"): lambda rows, now: _old(rows, now) & _best(rows, now),
}
