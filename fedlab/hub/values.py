"""What a hub says: plain values that an embedded caller gets as they are and the wire carries unchanged."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fedlab._html import table
from fedlab._words import counted, one_line
from fedlab.clock import to_datetime
from fedlab.episode import FromHub

ERASURE = "erased on request"
"""The reason of an erasure that was given none."""

Ending = Literal["destroyed", "expired", "crashed"]
"""How a life ended: by `destroy()`, by its lifetime, or without a goodbye."""

CHANGE_KINDS = (
    "episode_stored",
    "episode_forgotten",
    "agent_spawned",
    "agent_resumed",
    "agent_ended",
    "retention_set",
    "tenant_created",
    "episode_held",
    "episode_released",
    "tenant_erased",
    "agent_erased",
    "episodes_erased",
    "erasure_finished",
    "hub_created",
    "hub_restored",
    "hub_forked",
)
"""What a change of the log may be; and `episode_erased` and `erased`, for what an erasure emptied."""


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of the change log.

    Args:
        seq: Position in the log: strictly increasing in commit order.
        tenant_id: Whose memory changed; empty for changes of the hub itself.
        kind: Of `CHANGE_KINDS`.
        subject: The id it concerns: of an episode or an agent.
        actor: Who asked for it.
        at: Ms UTC.
        reason: Why, where there is a reason to give.
    """

    seq: int
    tenant_id: str
    kind: str
    subject: str
    actor: str
    at: int
    reason: str = ""


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One life in the agent registry.

    Args:
        status: `alive`, `destroyed`, `expired` or `crashed`.
        spawned_at: Ms UTC.
        expires_at: Ms UTC: the end of the lifetime.
        ended_at: Ms UTC; None while it lives.
        pushed: Episodes it stored.
        pulled: Episodes it was given.
    """

    tenant_id: str
    agent_id: str
    status: str
    spawned_at: int
    expires_at: int
    ended_at: int | None
    pushed: int
    pulled: int


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent learns when it syncs.

    Args:
        seq: The log up to here is known now; give it as `after` next time.
        stored: New episodes of others, oldest first, with vectors.
        forgotten: Ids that were forgotten; drop them from RAM.
        skipped: How many more new episodes there are than were sent: recall finds them.
        erased: Hashes (`fedlab.hub.log.erased_id`) of ids that were erased; drop them from RAM.
        epoch: Of the hub, if it is another than the agent knows: the hub was restored, drop everything from RAM that
            is not yet to be pushed; 0 if it is not.
    """

    seq: int
    stored: list[FromHub]
    forgotten: list[str]
    skipped: int = 0
    erased: list[str] = []
    epoch: int = 0


class HubInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who a hub is: what a client has to know before it talks to it.

    Args:
        hub_id: Made once, when the directory was.
        epoch: Raised at each change of primary.
        seq: The last change of the log, which all tenants share.
        embedder: Name of the model that makes the vectors.
        dimension: Of the vectors.
        version: Of fedlab.
        schema: Of the database.
        opened_at: When the process that answers opened it, ms UTC.
        role: What whoever asks may do: `observer`, `agent` or `admin`.
        tenant_id: The only tenant that whoever asks may see; None for all.
    """

    hub_id: str
    epoch: int
    seq: int
    embedder: str
    dimension: int
    version: str
    schema: int = 0
    opened_at: int = 0
    role: str = "admin"
    tenant_id: str | None = None


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent has to know when its life begins.

    Args:
        agent: Its entry in the registry.
        hub: Who the hub is; a RAM that is empty now misses no change after its seq.
        nonce: What the spawn was asked with; syncs name it, so that none is taken for a namesake's.
    """

    agent: AgentRecord
    hub: HubInfo
    nonce: str = ""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A hub, or one tenant of it, in numbers.

    Args:
        tenants: How many there are.
        episodes: Live ones.
        forgotten: Episodes that were stored once and are not there any more.
        kept: Those of the forgotten whose content is kept for time travel.
        agents: Lives so far.
        agents_alive: Lives that have not ended.
        seq: The last change of the log, which all tenants share.
        bytes: Size of the files on disk (0 for one tenant of several).
    """

    tenants: int
    episodes: int
    forgotten: int
    kept: int = 0
    agents: int
    agents_alive: int
    seq: int
    bytes: int


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found; empty `problems` means that database, log and index agree.

    Args:
        episodes: How many were checked.
        changes: How many log rows were checked.
        problems: One sentence each, naming what and where.
    """

    episodes: int
    changes: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def __str__(self) -> str:
        if self.ok:
            return f"{counted(self.episodes, 'episode')} and {counted(self.changes, 'change')} agree"
        return "\n".join([f"{counted(len(self.problems), 'problem')}:", *(f"  {problem}" for problem in self.problems)])

    def _repr_html_(self) -> str:
        found = [("problem", problem) for problem in self.problems]
        rows = [("episodes checked", self.episodes), ("changes checked", self.changes), *found]
        return table("Verified: everything agrees" if self.ok else f"Verified: {counted(len(found), 'problem')}", rows)


class RecallEffect(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy would do to recall, tried with a tenant's last queries by similarity.

    Args:
        queries: How many were tried: the last ones, up to 100.
        changed: How many of a query's 10 best memories would be others, on average.
        reward_before: Mean reward of the memories that are recalled now; None if there are none.
        reward_after: Mean reward of those that would be recalled instead.
    """

    queries: int
    changed: float
    reward_before: float | None
    reward_after: float | None

    def __str__(self) -> str:
        rewards = ["none" if each is None else f"{each:.3f}" for each in (self.reward_before, self.reward_after)]
        return (
            f"of the last {counted(self.queries, 'query', 'queries')},"
            f" {self.changed:.2f} of the 10 best memories change;"
            f" mean reward of the recalled {rewards[0]} → {rewards[1]}"
        )


class RetentionPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy would do to a tenant now.

    Args:
        policy: In English.
        removed: How many would go.
        kept: How many would stay.
        expired: How many of the removed go because their own `expires_at` has come.
        held: How many would go, were they not held; they are among the kept.
        bytes: Contents (texts, metadata, vectors) that would go; above 10,000 episodes, from a sample. The file does
            not shrink: SQLite uses the room for what comes.
        by_task: Of the removed, the 10 largest groups, the largest first.
        by_agent: As `by_task`.
        by_age: Of the removed, by their age.
        by_reward: Of the removed, by their reward.
        kept_by_age: Of the kept, by their age, in the same steps; `kept_by_reward` likewise.
        recall: The effect on recall; None where no query by similarity is known.
    """

    tenant_id: str
    policy: str
    removed: int
    kept: int
    expired: int
    held: int
    bytes: int
    by_task: dict[str, int]
    by_agent: dict[str, int]
    by_age: dict[str, int]
    by_reward: dict[str, int]
    kept_by_age: dict[str, int] = {}
    kept_by_reward: dict[str, int] = {}
    recall: RecallEffect | None

    def __str__(self) -> str:
        lines = [
            f"{self.tenant_id}: {self.policy}",
            f"  {self.removed:,} of {self._all} would go ({self.bytes / 1e6:,.1f} MB;"
            f" {self.expired:,} by their own expires_at);"
            f" {counted(self.held, 'stays because it is held', 'stay because they are held')}",
            *(f"  {name}: {counts}" for name, counts in self._groups()),
        ]
        return "\n".join([*lines, *([f"  {self.recall}"] if self.recall else [])])

    def _repr_html_(self) -> str:
        rows = [
            ("would go", f"{self.removed:,} of {self._all}, {self.bytes / 1e6:,.1f} MB"),
            ("by their own expires_at", self.expired),
            ("stay because they are held", self.held),
            *self._groups(),
            *([("recall", self.recall)] if self.recall else []),
        ]
        return table(f"{self.tenant_id}: {self.policy}", rows)

    @property
    def _all(self) -> str:
        return counted(self.removed + self.kept, "episode")

    def _groups(self) -> list[tuple[str, str]]:
        groups = {
            "by task": self.by_task,
            "by agent": self.by_agent,
            "by age": self.by_age,
            "by reward": self.by_reward,
            "what stays, by age": self.kept_by_age,
            "what stays, by reward": self.kept_by_reward,
        }
        return [
            (name, ", ".join(f"{one_line(each)} {count:,}" for each, count in counts.items()))
            for name, counts in groups.items()
            if counts
        ]


class RetentionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What applying the stored policies did.

    Args:
        removed: Episodes forgotten, by tenant.
        seq: The log after it.
        failed: What went wrong, by tenant; empty if nothing did.
    """

    removed: dict[str, int]
    seq: int
    failed: dict[str, str] = {}

    def __str__(self) -> str:
        lines = [f"{tenant_id}: {counted(count, 'episode')} forgotten" for tenant_id, count in self.removed.items()]
        return "\n".join([*lines, *(f"{tenant_id}: failed: {why}" for tenant_id, why in self.failed.items())])

    def _repr_html_(self) -> str:
        rows = [*self.removed.items(), *((tenant_id, f"failed: {why}") for tenant_id, why in self.failed.items())]
        return table(f"Retention applied, up to change {self.seq:,}", rows, head=("tenant", "episodes forgotten"))


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What a hub's server does by itself, and when; an embedded hub does nothing by itself. Intervals are in seconds.

    Args:
        retention_interval: Between two applications of the policies; None: never.
        retention_next_at: When the next one begins, ms UTC.
        retention_last_at: When the last one was done; None before the first since the server started.
        retention_last: What it did.
        backup_directory: Where backups go, on the server's disk; None: nowhere.
        backup_interval: Between two scheduled backups; None: none are made by itself.
        backup_keep: So many full ones are kept, each with the incremental ones over it.
        backup_last_at: When the last good one was made, ms UTC.
    """

    retention_interval: float | None = None
    retention_next_at: int | None = None
    retention_last_at: int | None = None
    retention_last: RetentionReport | None = None
    backup_directory: str | None = None
    backup_interval: float | None = None
    backup_keep: int | None = None
    backup_last_at: int | None = None

    def __str__(self) -> str:
        if self.retention_interval is None:
            retention = "retention is not applied by itself"
        else:
            retention = f"retention is applied every {self.retention_interval:g} s"
        if self.backup_directory is None:
            return f"{retention}; there is no directory for backups"
        every = "on request" if self.backup_interval is None else f"every {self.backup_interval:g} s"
        return f"{retention}; backups go to {self.backup_directory}, {every}"


class ErasureReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure removed: the evidence for a data-protection officer, without a name of the erased.

    Args:
        id: Of the erasure in the ledger.
        hub_id: Of the hub.
        seq: Of the change in the log that began it.
        scope: `tenant`, `agent` or `episodes`.
        at: When it began, ms UTC.
        done_at: When everything was done.
        actor: Who asked.
        reason: Why.
        tenant_hash: BLAKE2b (16 bytes) of the tenant's name.
        agent_hash: The same of the agent's, where the scope is an agent.
        episodes: Removed now, or forgotten before and named by the log until now.
        vectors: Removed.
        sources: Rows of lineage removed.
        kept: Forgotten episodes whose content was kept for time travel, removed.
        holds: Of removed episodes, removed with them.
        agents: Lives removed from the registry.
        changes: Rows of the log that lost their content.
        pages: Of the database file that held bytes of moved or removed rows, overwritten.
        already: Of the ids that were asked for, those that had been erased before.
        unknown: Those that the tenant never had: mistyped, perhaps, and what was meant is still here.
    """

    id: str
    hub_id: str
    seq: int
    scope: str
    at: int
    done_at: int
    actor: str
    reason: str
    tenant_hash: str
    agent_hash: str | None
    episodes: int
    vectors: int
    sources: int
    kept: int
    holds: int
    agents: int
    changes: int
    pages: int
    already: list[str] = []
    unknown: list[str] = []

    def __str__(self) -> str:
        begun, done = _time(self.at), _time(self.done_at)
        agent = f", agent {self.agent_hash}" if self.agent_hash else ""
        others = "".join(f"\n  {label}: {', '.join(ids)}" for label, ids in self._others())
        removed = ", ".join(
            counted(number, noun)
            for number, noun in (
                (self.episodes, "episode"),
                (self.vectors, "vector"),
                (self.sources, "source"),
                (self.kept, "kept content"),
            )
        )
        held = f"{counted(self.holds, 'hold')}, {counted(self.agents, 'life', 'lives')} of agents"
        return f"""\
erasure {self.id} of hub {self.hub_id}
  asked for by {self.actor}: {one_line(self.reason)}
  begun {begun}, completed {done}
  scope: {self.scope}; tenant {self.tenant_hash}{agent} (BLAKE2b-128 of the names)
  removed: {removed},
           {held}; emptied: {counted(self.changes, "row")} of the log
  files: {counted(self.pages, "page")} of hub.db overwritten where nothing referred to them, write-ahead log emptied,
         index snapshot of the tenant, all cached embeddings and copies from before an upgrade deleted
  checked: no row of the log, of episodes, agents or kept contents in this scope is left
  remains: this entry of the ledger, and the hashes of the erased ids, so that none is stored again{others}"""

    def _repr_html_(self) -> str:
        rows = [
            ("asked for by", self.actor),
            ("reason", self.reason),
            ("begun", _time(self.at)),
            ("completed", _time(self.done_at)),
            ("scope", self.scope),
            ("tenant, BLAKE2b-128", self.tenant_hash),
            *([("agent, BLAKE2b-128", self.agent_hash)] if self.agent_hash else []),
            *((label, getattr(self, name)) for name, label in _ERASED.items()),
            *((label, ", ".join(ids)) for label, ids in self._others()),
        ]
        return table(f"Erasure {self.id} of hub {self.hub_id}", rows)

    def _others(self) -> list[tuple[str, list[str]]]:
        found = (("erased before", self.already), ("never here (spelled right?)", self.unknown))
        # As Python writes them: an id may hold anything, and the evidence nothing that is not so.
        return [(f"{label}, {len(ids):,} of the ids", [repr(uid) for uid in ids]) for label, ids in found if ids]


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an export or an import did.

    Args:
        what: Which of the two it was.
        path: The file.
        tenant_id: Whose episodes, in the hub.
        episodes: How many the file has.
        new: How many of them an import stored.
        known: How many the hub had already.
        refused: Which the hub did not take, by id, and why: `forgotten`, `erased` or `other content`.
    """

    what: Literal["exported", "imported"]
    path: str
    tenant_id: str
    episodes: int
    new: int = 0
    known: int = 0
    refused: dict[str, str] = {}

    def __str__(self) -> str:
        line = f"{self.what} {counted(self.episodes, 'episode')} of tenant {self.tenant_id}: {self.path}"
        if self.what == "exported":
            return line
        line += f"\n{self.new:,} are new, {self.known:,} were here, {len(self.refused):,} were refused"
        return "\n".join([line, *(f"  {uid}: {why}" for uid, why in self.refused.items())])

    def _repr_html_(self) -> str:
        rows = [("tenant", self.tenant_id), ("file", self.path), ("episodes", self.episodes)]
        if self.what == "imported":
            rows += [("new", self.new), ("were here", self.known), ("refused", len(self.refused))]
        return table(self.what.capitalize(), [*rows, *self.refused.items()])


_ERASED = {
    "episodes": "episodes removed",
    "vectors": "vectors removed",
    "sources": "rows of lineage removed",
    "kept": "kept contents removed",
    "holds": "holds removed",
    "agents": "lives of agents removed",
    "changes": "rows of the log emptied",
    "pages": "pages of hub.db overwritten",
}


def _time(ms: int) -> str:
    return to_datetime(ms).isoformat(" ", "seconds")


Frame = dict[str, list[Any]]
"""A table as columns: what a Polars frame is made of on the other side of the wire."""
