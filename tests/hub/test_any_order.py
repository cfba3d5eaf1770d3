"""Any sequence of what can be done to a hub's memory leaves it as a model in plain Python says (`model.py`)."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedlab import Episode, HeldEpisodes, Hub, IdConflict, InvalidRequest, Reward, SimulatedClock
from fedlab.clock import to_datetime
from fedlab.hub import index, indexes, searching
from fedlab.retention import RetentionPolicy

from .model import DAY, POLICIES, Erasure, Key, Model, copy_as_killed

TENANTS = ("acme", "other")
AGENTS = ("agent-a", "agent-b")
DIRECTIONS = [np.roll([3.0, 1, 0, 0, 0, 0, 0, 0], shift) for shift in range(8)]
tenants = st.sampled_from(TENANTS)
choices = st.integers(0, 1 << 16)
"""Picks one of something by its remainder."""
drafts = st.tuples(
    tenants,
    st.sampled_from(AGENTS),
    st.sampled_from("ab"),
    st.sampled_from([0, 0.3, 0.7, 1]),
    st.integers(0, 4),
    st.sampled_from([None, None, None, 1]),
    st.integers(0, 7),
)


class AnyOrder(RuleBasedStateMachine):
    """A hub in a directory, its backups beside it, and what all of them hold."""

    keeps = False
    graphs = False

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        if self.graphs:
            for module in (index, indexes, searching):
                for name, value in {"EXACT": 12, "TAIL": 4, "FEW": 2}.items():
                    if hasattr(module, name):
                        self.patch.setattr(module, name, value)
        self.folder = Path(tempfile.mkdtemp())
        self.places = 0
        self.clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.made: list[Episode] = []
        self.backups: list[tuple[Path, Model]] = []
        self.exports: list[tuple[Path, list[Key]]] = []
        self.hub = self.opened(
            self.place("hub"), embedder="hashing-8", keep_forgotten=timedelta(days=2 if self.keeps else 0)
        )
        self.model = Model(self.hub.info().hub_id, self.keeps)
        self.model.follow(self.hub)
        self.put([(tenant, AGENTS[n % 2], "ab"[n % 2], n / 6, n % 3, None, n) for tenant in TENANTS for n in range(6)])
        for tenant in TENANTS:
            self.hold_or_release(tenant, 0.5, 0, released=False)

    def opened(self, path: Path, **options: Any) -> Hub:
        return Hub(path, self.clock, durability="off", **options)

    def place(self, name: str) -> Path:
        self.places += 1
        return self.folder / f"{name}-{self.places}"

    def known(self, tenant_id: str) -> bool:
        """Asked in the rules, and no `assume`: that would throw away all steps of the example."""
        return tenant_id in self.model.policies

    # --- what agents do -------------------------------------------------------------------------------------

    @rule(batch=st.lists(drafts, min_size=1, max_size=8))
    def put(self, batch: list[tuple[Any, ...]]) -> None:
        episodes = [self.make(*draft) for draft in batch]
        for agent_id in AGENTS:
            self.hub.put([each for each in episodes if each.agent_id == agent_id], actor=agent_id)
        self.model.live.update({(each.tenant_id, each.id): each for each in episodes})
        self.model.follow(self.hub)

    def make(
        self, tenant: str, agent: str, task: str, reward: float, age: int, expires: int | None, way: int
    ) -> Episode:
        number = len(self.made)
        episode = Episode(
            tenant_id=tenant,
            agent_id=agent,
            task=task,
            input="i",
            output=f"secret-{number:06}",
            reward=reward,
            id=f"e{number}",
            sources=[f"e{number // 2}"],
            vector=DIRECTIONS[way],
            created_at=self.clock.now() - age * DAY // 2,
            expires_at=expires and self.clock.now() + expires * DAY,
        )
        self.made.append(episode)
        return episode

    @rule(seed=choices)
    def put_again(self, seed: int) -> None:
        """Agents that did not hear of an acknowledgement, or of a restore: what was lost comes back, nothing else."""
        for episode in Random(seed).sample(self.made, len(self.made)):
            key = episode.tenant_id, episode.id
            if key not in self.model.live and (why := self.model.refusal(key)):
                with pytest.raises(IdConflict) as caught:
                    self.hub.put(episode, actor=episode.agent_id)
                assert bool(caught.value.details.get("erased")) == (why == "erased")
            else:
                self.hub.put(episode, actor=episode.agent_id)
                self.model.live[key] = episode
        self.model.follow(self.hub)

    @rule(tenant=tenants, k=st.integers(1, 30), way=st.integers(0, 7), task=st.sampled_from(["a", None]))
    def recall(self, tenant: str, k: int, way: int, task: str | None) -> None:
        if not self.known(tenant):
            return
        there = {uid for _, uid in self.model.of(tenant) if task in (None, self.model.live[tenant, uid].task)}
        found = [each.id for each in self.hub.recall(tenant, DIRECTIONS[way], k, task=task)]
        assert len(found) == len(set(found)) == min(k, len(there))
        assert set(found) <= there

    # --- what removes, and what keeps from it ----------------------------------------------------------------

    @rule(tenant=tenants, share=st.floats(0, 0.5), seed=choices)
    def forget(self, tenant: str, share: float, seed: int) -> None:
        if not self.known(tenant):
            return
        chosen = self.some(tenant, share, seed)
        uids = [uid for _, uid in chosen]
        if self.model.held & set(chosen):
            with pytest.raises(HeldEpisodes):
                self.hub.forget(tenant, uids, reason="why")
        else:
            assert self.hub.forget(tenant, uids, reason="why") == len(uids)
            self.model.forget(chosen)
        self.model.follow(self.hub)

    def some(self, tenant: str, share: float, seed: int) -> list[Key]:
        keys = self.model.of(tenant)
        # At least one: of steps that do nothing there are enough.
        return Random(seed).sample(keys, min(len(keys), max(1, round(share * len(keys)))))

    @rule(tenant=tenants, share=st.floats(0, 0.5), seed=choices, released=st.sampled_from([False, False, True]))
    def hold_or_release(self, tenant: str, share: float, seed: int, *, released: bool) -> None:
        if not self.known(tenant):
            return
        chosen = self.some(tenant, share, seed)
        change = self.hub.release if released else self.hub.hold
        before = self.model.held.copy()
        self.model.held = before - set(chosen) if released else before | set(chosen)
        assert change(tenant, [uid for _, uid in chosen], reason="why") == len(before ^ self.model.held)
        self.model.follow(self.hub)

    @rule(tenant=tenants, policy=st.sampled_from(list(POLICIES)))
    def set_retention(self, tenant: str, policy: RetentionPolicy) -> None:
        self.hub.set_retention(tenant, policy)
        self.model.follow(self.hub, policy)

    @rule(tenant=st.sampled_from([*TENANTS, None]), dies_at=st.sampled_from([None, None, 1, 2]))
    def retain(self, tenant: str | None, dies_at: int | None) -> None:
        if tenant is not None and not self.known(tenant):
            return
        going: set[Key] = set()
        stored = self.model.stored
        for each, policy in self.model.policies.items():
            if tenant in (None, each):
                rows = [(stored[key].seq, self.model.live[key]) for key in self.model.of(each)]
                going |= {(each, uid) for uid in POLICIES[policy](rows, self.clock.now())}
                going |= {(each, one.id) for _, one in rows if one.expires_at and one.expires_at <= self.clock.now()}
        going -= self.model.held
        with self.dying_at(dies_at) as died:
            report = self.hub.apply_retention(tenant)
            assert sum(report.removed.values()) == len(going)
            self.hub.purge_forgotten()
        if died:  # some batches were committed, and the next run does the rest
            left = {(row["tenant_id"], row["id"]) for row in self.hub.episodes().to_dicts()}
            assert self.model.live.keys() - going <= left
            self.model.forget(self.model.live.keys() - left)
            self.model.follow(self.hub)
            self.retain(tenant, None)
        else:
            self.model.forget(going)
            self.model.follow(self.hub)
            self.model.purge(self.clock.now() - 2 * DAY)

    @rule(
        scope=st.sampled_from(["tenant", "agent", "episodes", "episodes"]),
        tenant=tenants,
        agent=st.sampled_from(AGENTS),
        pick=choices,
        even_held=st.booleans(),
        dies_at=st.sampled_from([None, None, 1, 2, 3]),
    )
    def erase(self, scope: str, tenant: str, agent: str, pick: int, dies_at: int | None, *, even_held: bool) -> None:
        if not self.known(tenant):
            return
        known = sorted(key for key in self.model.stored if key[0] == tenant)
        chosen = frozenset([known[pick % len(known)], known[pick // 7 % len(known)]] if known else [])
        erasure = Erasure(
            scope, tenant, agent if scope == "agent" else None, chosen if scope == "episodes" else frozenset()
        )
        concerned = self.model.concerned(erasure)
        if not concerned and scope != "tenant":
            return
        names: dict[str, list[Any]] = {"tenant": [], "agent": [agent], "episodes": [[uid for _, uid in chosen]]}
        call, what = getattr(self.hub, f"erase_{scope}"), [tenant, *names[scope]]
        if concerned & self.model.held and not even_held:
            with pytest.raises(HeldEpisodes):
                call(*what, reason="asked to")
            self.model.follow(self.hub)
            return
        with self.dying_at(dies_at):
            report = call(*what, reason="asked to", even_held=even_held)
            assert report.episodes == len(concerned)
        self.model.erase(report.id, erasure)
        self.model.follow(self.hub)
        self.erased_is_in_no_file()

    def erased_is_in_no_file(self) -> None:
        secrets = {self.episode(key).output.encode() for key in self.model.erased}
        for file in self.hub.path.rglob("*.db*"):
            assert not secrets & set(re.findall(rb"secret-\d{6}", file.read_bytes())), file.name

    def episode(self, key: Key) -> Episode:
        return self.made[int(key[1][1:])]

    @rule()
    def purge(self) -> None:
        before = len(self.model.attic)
        self.model.purge(self.clock.now() - 2 * DAY)
        assert self.hub.purge_forgotten() == before - len(self.model.attic)

    # --- what happens to its directory ------------------------------------------------------------------------

    @rule()
    def kill(self) -> None:
        with self.dying_at(None) as died:
            died.append(self.copied())

    def copied(self) -> Path:
        path = self.place("killed")
        copy_as_killed(self.hub.path, path)
        return path

    @contextlib.contextmanager
    def dying_at(self, commit: int | None) -> Iterator[list[Path]]:
        """Kill the hub after so many commits; what it left is in the list, and is what goes on."""
        died: list[Path] = []
        commits: list[int] = []

        def note(seq: int) -> None:
            commits.append(seq)
            if len(commits) == commit:
                died.append(self.copied())

        undo = self.hub.on_commit(note)
        yield died
        undo()
        if died:
            self.go_on_with(lambda: self.opened(died[0]))

    def go_on_with(self, open_: Callable[[], Hub]) -> None:
        self.hub.close()
        before = self.hub.path
        self.hub = open_()
        if self.hub.path != before:
            shutil.rmtree(before)

    @rule()
    def reopen(self) -> None:
        self.go_on_with(lambda: self.opened(self.hub.path))

    @rule()
    def snapshot(self) -> None:
        self.hub.snapshot()

    @rule(hours=st.integers(1, 40))
    def wait(self, hours: int) -> None:
        self.clock.advance(hours=hours)

    # --- copies -----------------------------------------------------------------------------------------------

    @rule(on=st.none() | choices)
    def backup(self, on: int | None) -> None:
        path, base = self.place("backup"), None
        if on is not None and self.backups:
            base, model = self.backups[on % len(self.backups)]
            if not model.begins(self.model):
                with pytest.raises(InvalidRequest, match="no earlier backup"):
                    self.hub.backup(path, base=base)
                return
        self.hub.backup(path, base=base)
        self.backups.append((path, self.model.copy()))

    @precondition(lambda self: self.keeps)
    @rule(seed=choices, again=st.booleans(), dies=st.booleans(), at=st.none() | choices, elsewhere=st.booleans())
    def purge_between_a_backup_and_the_next(
        self, seed: int, at: int | None, *, again: bool, dies: bool, elsewhere: bool
    ) -> None:
        """The log does not tell of it, and what is built on the first must not bring it back."""
        self.put([(tenant, AGENTS[0], "a", 0.7, 0, None, way) for tenant in TENANTS for way in range(4)])
        for tenant in TENANTS:
            self.forget(tenant, 0.3, seed)
        self.backup(None)
        base = len(self.backups) - 1
        self.wait(40)
        self.forget(TENANTS[0], 0.3, seed)  # this stays a while
        if again:
            self.backup(base)
            base += 1
        self.wait(8)
        self.purge()
        if dies:
            self.kill()
        self.backup(base)
        self.restore(-1, at, by_time=False, elsewhere=elsewhere)

    @precondition(lambda self: any(model.hub_id == self.model.hub_id for _, model in self.backups))
    @rule(pick=choices, at=st.none() | choices, by_time=st.booleans(), elsewhere=st.booleans())
    def restore(self, pick: int, at: int | None, *, by_time: bool, elsewhere: bool) -> None:
        own = [(path, model) for path, model in self.backups if model.hub_id == self.model.hub_id]
        backup, of_then = own[pick % len(own)]
        model = of_then.copy()
        moment = self.moment(model, at, by_time=by_time)
        model.erase_again(self.model)
        path = self.place("restored") if elsewhere else self.hub.path
        options: dict[str, Any] = {"ledger_from": self.hub.path} if elsewhere else {"overwrite": True}
        self.go_on_with(lambda: Hub.restore(backup, path, at=moment, clock=self.clock, durability="off", **options))
        self.model = model
        self.model.follow(self.hub)
        self.erased_is_in_no_file()

    def moment(self, model: Model, at: int | None, *, by_time: bool) -> datetime | int | None:
        """Cut a model back to a moment of its log; the moment as a hub takes it."""
        if at is None:
            return None
        row = model.log[at % len(model.log)]
        model.cut(max(each.seq for each in model.log if each.at <= row.at) if by_time else row.seq)
        return to_datetime(row.at) if by_time else row.seq

    @rule(at=st.none() | choices, by_time=st.booleans(), stays=st.booleans())
    def fork(self, at: int | None, *, by_time: bool, stays: bool) -> None:
        model = self.model.copy()
        moment = self.moment(model, at, by_time=by_time)
        fork = self.hub.fork(self.place("fork"), at=moment)
        model.hub_id = fork.info().hub_id
        model.follow(fork)
        model.check(fork)
        assert fork.verify().problems == []
        fork.close()
        if stays:
            shutil.rmtree(fork.path)
        else:
            self.go_on_with(lambda: self.opened(fork.path))
            self.model = model
            self.erased_is_in_no_file()

    @rule(tenant=tenants, kind=st.sampled_from(["parquet", "jsonl"]))
    def export(self, tenant: str, kind: str) -> None:
        if not self.known(tenant):
            return
        path = self.place("export").with_suffix(f".{kind}")
        assert self.hub.export_tenant(tenant, path).episodes == len(self.model.of(tenant))
        self.exports.append((path, self.model.of(tenant)))
        self.import_(-1)
        assert self.model.log[-1].seq == self.hub.info().seq

    @precondition(lambda self: self.exports)
    @rule(pick=choices)
    def import_(self, pick: int) -> None:
        path, keys = self.exports[pick % len(self.exports)]
        refused = {key[1]: why for key in keys if key not in self.model.live and (why := self.model.refusal(key))}
        new = [key for key in keys if key not in self.model.live and key[1] not in refused]
        report = self.hub.import_tenant(path)
        assert (report.new, report.known, report.refused) == (len(new), len(keys) - len(new) - len(refused), refused)
        self.model.live.update({key: self.episode(key) for key in new})
        self.model.follow(self.hub)

    # --- always -------------------------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "model"):
            return
        self.model.check(self.hub)
        for tenant in self.model.policies:
            found = [each.id for each in self.hub.recall(tenant, None, 10_000, policy=Reward())]
            assert sorted((tenant, uid) for uid in found) == self.model.of(tenant)

    def teardown(self) -> None:
        if hasattr(self, "hub"):
            try:
                assert self.hub.verify().problems == []
            finally:
                self.hub.close()
                self.patch.undo()
                shutil.rmtree(self.folder)


class AnyOrderKept(AnyOrder):
    keeps = True


class AnyOrderWithGraphs(AnyOrder):
    keeps = graphs = True


for machine in (AnyOrder, AnyOrderKept, AnyOrderWithGraphs):
    machine.TestCase.settings = settings(
        max_examples=10,
        stateful_step_count=35,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
TestForgotten = AnyOrder.TestCase
TestKept = AnyOrderKept.TestCase
TestGraphs = AnyOrderWithGraphs.TestCase
