"""A process that does one thing after another to a hub, killed at any moment: what it had been told is done, is done."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedlab import Hub

# Says what it is about to do, with the ids that may come and may go, and `null` when it is done.
BUSY = """
import json, random, sys
from datetime import timedelta
from pathlib import Path
from fedlab import Episode, Hub, MaxEpisodes, MinReward

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
hub = Hub(folder / "hub", embedder="hashing-8", durability="normal", keep_forgotten=3600 * (seed % 2))
live = {row["id"]: row["reward"] for row in hub.episodes("acme").to_dicts()} if hub.stats().tenants else {}
held = set(hub.holds("acme")["id"]) if live else set()

def say(what, comes=(), goes=()):
    print(json.dumps({"what": what, "comes": sorted(comes), "goes": sorted(goes)}), flush=True)

number = 0
while True:
    what = rng.choice(["put", "put", "put", "forget", "hold", "release", "retain", "erase", "backup", "recall"])
    ids = sorted(live)
    some = set(rng.sample(ids, min(len(ids), 7)))
    number += 1
    if what == "put":
        batch = [Episode(tenant_id="acme", agent_id=f"a{n % 3}", task="t", input="i", output=f"secret {seed} {number} {n}",
                         reward=rng.random(), id=f"e{seed}-{number}-{n}", vector=[1.0, n] * 4) for n in range(20)]
        say(what, [each.id for each in batch])
        hub.put(batch)
        live |= {each.id: each.reward for each in batch}
    elif not ids:
        continue
    elif what in ("forget", "erase"):
        going = some if what == "erase" else some - held
        say(what, (), going)
        if what == "forget":
            hub.forget("acme", going, reason="why")
        else:
            hub.erase_episodes("acme", sorted(going), reason="asked to", even_held=True)
            held -= going
        live = {uid: reward for uid, reward in live.items() if uid not in going}
    elif what == "retain":
        least = rng.random() / 3
        going = {uid for uid, reward in live.items() if reward < least} - held
        hub.set_retention("acme", MinReward(least))
        say(what, (), going)
        hub.apply_retention("acme")
        live = {uid: reward for uid, reward in live.items() if uid not in going}
    elif what in ("hold", "release"):
        say(what, *((some - held, ()) if what == "hold" else ((), some & held)))
        (hub.hold if what == "hold" else hub.release)("acme", sorted(some), reason="why")
        held = held | some if what == "hold" else held - some
    elif what == "backup":
        name = f"backup-{seed}-{number}"
        say(what, [name])
        hub.backup(folder / name)
    else:
        say(what)
        hub.recall("acme", [1.0, 2] * 4, k=5)
    print("null", flush=True)
"""


class Told:
    """What is known of a hub from what the process said."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.held: set[str] = set()
        self.erased: set[str] = set()
        self.backups: set[str] = set()

    def of(self, what: str) -> set[str]:
        return {"hold": self.held, "release": self.held, "backup": self.backups}.get(what, self.live)

    def done(self, step: dict) -> None:
        changed = self.of(step["what"])
        changed |= set(step["comes"])
        changed -= set(step["goes"])
        if step["what"] == "erase":
            self.held -= set(step["goes"])
            self.erased |= set(step["goes"])

    def check(self, hub: Hub, last: dict | None) -> None:
        """Whether a hub is as told, where the last thing may be done, or not, or in part."""
        before = (self.live.copy(), self.held.copy())
        if last is not None:
            self.done(last)
        live, held = set(hub.episodes()["id"]), set(hub.holds("acme")["id"])
        for found, then, now in zip((live, held), before, (self.live, self.held), strict=True):
            assert then & now <= found <= then | now
        if last is not None and last["what"] != "retain":  # which alone is done in parts
            assert live in (before[0], self.live)
        begun = last is None or last["what"] != "erase" or live == self.live
        if not begun:
            self.erased -= set(last["goes"])
        assert not live & self.erased
        assert held <= live
        self.live, self.held = live, held


def test_whatever_a_hub_is_doing_when_it_is_killed_it_has_done_what_it_said(tmp_path: Path) -> None:
    told, rng = Told(), random.Random(1)
    for seed in range(10):
        last = None
        command = [sys.executable, "-c", BUSY, str(tmp_path), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(2 * rng.randint(3, 40) - rng.randint(0, 1)):
                last = follow(told, last, process.stdout.readline())
            time.sleep(rng.random() / 100)  # into the middle of what it does
            process.send_signal(signal.SIGKILL)
            for line in process.stdout:
                last = follow(told, last, line) if line.endswith("\n") else last
        with Hub(tmp_path / "hub") as hub:
            told.check(hub, last)
            assert hub.verify().problems == []
            for file in hub.path.rglob("*.db*"):
                texts = re.findall(rb"secret (\d+) (\d+) (\d+)", file.read_bytes())
                assert not told.erased & {"e" + b"-".join(each).decode() for each in texts}
    for name in sorted(told.backups)[-5:]:
        if (tmp_path / name).exists():
            with Hub.restore(tmp_path / name, tmp_path / "again" / name, ledger_from=tmp_path / "hub") as hub:
                assert not set(hub.episodes()["id"]) & told.erased
                assert hub.verify().problems == []


def follow(told: Told, last: dict | None, line: str) -> dict | None:
    step = json.loads(line)
    if step is None and last is not None:
        told.done(last)
    return step
