"""Retention of one large tenant: previews of every policy, and an application while others recall and push.

`python -m benchmarks.retention 1000000` is the full size. Its graph is a coarse one, built in a fraction of the time:
what is measured is how long things take, not what recall finds.
"""

from __future__ import annotations

import functools
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import usearch.index

from benchmarks import data
from fedlab import Decay, Distinct, Episode, Hub, MaxAge, MaxBytes, MaxEpisodes, MinReward, Unused
from fedlab.hub import index

DAY = 86_400_000
POLICIES = [
    MaxAge(50),
    MinReward(0.5),
    MinReward(quantile=0.5),
    *(MaxEpisodes(50_000, keep=keep) for keep in ("newest", "best", "most_used", "random")),
    MaxBytes(50_000_000),
    Decay(half_life=30, floor=0.2),
    Unused(after=10),
    Unused(after=10, by="source_of_success"),
    MaxAge(50) & MinReward(0.5) | MaxEpisodes(1_000).where(task="task 7"),
]


def lying(count: int, seed: int) -> np.ndarray:
    """As sentences, but every ninth is a near-duplicate (cosine 0.995) of the one before it in its task."""
    vectors = data.sentence_vectors(count, seed)
    again = np.arange(54, count, 9)
    noise = np.random.default_rng(seed).normal(size=(len(again), vectors.shape[1]))
    vectors[again] = vectors[again - 50] + 0.1 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return vectors


def build(folder: Path, rows: int) -> Hub:
    """A hub with one tenant whose episodes were made over the last 100 days, its graph built."""
    hub = Hub(folder / "retention", embedder="hashing")
    now, uids = hub.clock.now(), []
    for part in range(0, rows, 2_000):
        batch = []
        for number, each in enumerate(data.episodes(2_000, seed=1 + part, lying=lying), part):
            fields = {name: getattr(each, name) for name in ("agent_id", "task", "input", "output", "reward", "vector")}
            sources = tuple({uids[number * step % len(uids)] for step in (3, 7)}) if uids and number % 3 == 0 else ()
            created_at = now - (rows - number) * 100 * DAY // rows
            batch.append(Episode(tenant_id="bench", created_at=created_at, sources=sources, **fields))
        uids += [each.id for each in batch[::10]]
        hub.put(batch)
    hub.recall("bench", batch[0].vector)
    tenant = hub._indexes.get("bench")
    while rows > index.EXACT and (
        (view := tenant.view).graph is None or view.n - view.first > index.TAIL or tenant.lags
    ):
        time.sleep(0.5)
    return hub


def previews(hub: Hub) -> list[tuple]:
    """Seconds of each policy, with 100 queries to compare."""
    for query in data.sentence_vectors(100, seed=7):
        hub.recall("bench", query)
    rows = []
    for policy in [*POLICIES, Distinct()]:
        start = time.perf_counter()
        hub.preview_retention("bench", policy)
        seconds = time.perf_counter() - start
        rows.append((f"preview, {policy.to_json()[:70]}", seconds, seconds, "s", -2.0, "s"))
    return rows


def first_preview(hub: Hub) -> list[tuple]:
    """Seconds of the first recall after a start, which loads the index, and of `Distinct` as the first preview."""
    start = time.perf_counter()
    hub.recall("bench", data.sentence_vectors(1, seed=7)[0])
    loaded = time.perf_counter()
    hub.preview_retention("bench", Distinct())
    previewed = time.perf_counter()
    return [
        ("first recall after a start", loaded - start, loaded - start, "s", -10.0, "s"),
        ("  then at once a preview of Distinct", previewed - loaded, previewed - loaded, "s", -2.0, "s"),
    ]


class Turns:
    """The writer's lock, which also tells how long each of its turns took."""

    def __init__(self, hub: Hub) -> None:
        self.seconds: list[float] = []
        self._lock, hub._writer._turn = hub._writer._turn, self

    def acquire(self, blocking: bool = True) -> bool:
        got = self._lock.acquire(blocking)
        if got:
            self._began = time.perf_counter()
        return got

    def release(self) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def taken(self) -> np.ndarray:
        """Milliseconds of the turns since this was last asked."""
        taken, self.seconds = np.array(self.seconds) * 1e3, []
        return taken


def during(hub: Hub, work: Callable[[int], object]) -> tuple[float, float, float, int]:
    """The p95 (s) of something done again and again, quiet and while a tenth is removed; seconds and number of that."""

    def p95(until: Callable[[], bool]) -> float:
        times: list[float] = []
        while not until():
            start = time.perf_counter()
            work(len(times))
            times.append(time.perf_counter() - start)
            time.sleep(0.001)
        return float(np.percentile(times, 95))

    end = time.perf_counter() + 3
    quiet = p95(lambda: time.perf_counter() > end)
    oldest = int(hub.episodes("bench", limit=1)["created_at"][0])
    hub.set_retention("bench", MaxAge((hub.clock.now() - oldest) / DAY - 10))
    done: list[tuple[float, int]] = []

    def apply() -> None:
        start = time.perf_counter()
        done.append((hub.apply_retention("bench").removed["bench"], time.perf_counter() - start))

    thread = threading.Thread(target=apply)
    thread.start()
    busy = p95(lambda: bool(done))
    thread.join()
    removed, seconds = done[0]
    return quiet, busy, seconds, int(removed)


def applications(hub: Hub) -> list[tuple]:
    """A tenth of the episodes goes while one client recalls, and another tenth while one pushes."""
    turns = Turns(hub)
    queries = data.sentence_vectors(1_000, seed=8)
    quiet, busy, seconds, removed = during(hub, lambda n: hub.recall("bench", queries[n % 1_000], k=10))
    calm = turns.taken()
    pushes = data.episodes(20_000, seed=9, lying=data.sentence_vectors)
    quiet_push, busy_push, seconds_push, removed_push = during(hub, lambda n: hub.put(pushes[n]))
    return [
        (f"apply MaxAge to {removed:,}, one recalls", removed / seconds, removed / seconds, "/s", 20_000, "/s"),
        ("  p95 of the recalls meanwhile", busy * 1e3, busy / quiet, "ms", -3.0, "x quiet"),
        (f"  99 % of {len(calm)} turns of the writer", *[np.percentile(calm, 99)] * 2, "ms", -50.0, "ms"),
        ("  the longest", *[calm.max()] * 2, "ms", -100.0, "ms"),
        (f"apply MaxAge to {removed_push:,}, one pushes", removed_push / seconds_push, removed_push / seconds_push)
        + ("/s", 1_000, "/s"),
        ("  p95 of the pushes meanwhile", busy_push * 1e3, busy_push / quiet_push, "ms", -5.0, "x quiet"),
        ("  the longest turn of the writer", *[turns.taken().max()] * 2, "ms", -50.0, "ms"),
    ]


def main(rows: int = 200_000) -> list[tuple]:
    fine = usearch.index.Index
    usearch.index.Index = functools.partial(fine, connectivity=6, expansion_add=8)
    with tempfile.TemporaryDirectory() as name:
        with build(Path(name), rows) as hub:
            usearch.index.Index = fine
            measured = previews(hub)
        # As a server does: to look through half a million objects of the model's libraries takes a quarter of a second.
        gc.freeze()
        with Hub(hub.path, embedder="hashing") as again:
            return [*measured, *first_preview(again), *applications(again)]


if __name__ == "__main__":
    for row in main(*map(int, sys.argv[1:])):
        print(row)
