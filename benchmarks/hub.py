"""The embedded hub beside raw sqlite3, usearch and the model."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import data, raw
from fedlab import Hub, MiniLM
from fedlab.hub import index

Row = tuple[str, str, float, float]
"""What, unit of the measured value, measured value, ratio to the raw limit (or the limit itself)."""


def rate(work, count: int) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def puts(folder: Path) -> list[tuple]:
    """One at a time and 1,000 a call, the raw and the hub's turn about, so that a noisy machine hits both."""
    episodes = data.episodes(6_000)
    single, rest = episodes[:1_500], episodes[1_500:]
    sqlite = raw.Sqlite(folder / "raw.db")
    ratios, bulk_ratios = [], []
    with Hub(folder / "hub", embedder="hashing") as hub:
        hub.put(data.episodes(10, "warm"))
        rows = [sqlite.rows([each], number) for number, each in enumerate(single)]
        for part in range(0, len(single), 250):
            theirs = rate(lambda p=part: [sqlite.write(each) for each in rows[p : p + 250]], 250)
            ours = rate(lambda p=part: [hub.put(each) for each in single[p : p + 250]], 250)
            ratios.append((ours, theirs))
        for part in range(0, len(rest), 1_000):
            batch = rest[part : part + 1_000]
            raw_rows = sqlite.rows(batch, 10_000 + part)
            theirs = rate(lambda r=raw_rows: sqlite.write(r), len(batch))
            ours = rate(lambda b=batch: hub.put(b), len(batch))
            bulk_ratios.append((ours, theirs))
    return [
        ("durable puts one at a time", *_median(ratios), "/s", 0.7, "x raw sqlite3"),
        ("bulk put, 1,000 a call", *_median(bulk_ratios), "/s", 0.3, "x raw sqlite3 bulk"),
    ]


def _median(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The median of ours, and the median ratio."""
    return float(np.median([a for a, _ in pairs])), float(np.median([a / b for a, b in pairs]))


AT_ONCE = 6 * 64
"""Texts that 64 clients recall at once, six each one after the other: with fewer, it is the start of 64 threads, and
the end of the last batches, that is measured."""
BATCHES = range(0, AT_ONCE, 64)


def texts(folder: Path) -> list[tuple]:
    """Recall by text beside the model's own time, one at a time and 64 at once."""
    model = MiniLM()
    sentences = data.sentences(300 + 6 * AT_ONCE)
    model.embed(sentences[-64:])
    with Hub(folder / "texts", embedder=model) as hub:
        hub.put(data.episodes(1_000))
        hub.recall("bench", sentences[-1], k=10)
        ours, theirs = [], []
        for number in range(0, 120, 2):
            start = time.perf_counter()
            model.embed([sentences[number]])
            middle = time.perf_counter()
            hub.recall("bench", sentences[number + 1], k=10)
            theirs.append(middle - start)
            ours.append(time.perf_counter() - middle)
        alone = float(np.median(ours)), float(np.median(ours) / np.median(theirs))
        pairs = []
        for part in range(200, 200 + 6 * AT_ONCE, 2 * AT_ONCE):
            middle = part + AT_ONCE
            theirs_rate = rate(lambda p=part: [model.embed(sentences[p + n : p + n + 64]) for n in BATCHES], AT_ONCE)
            ours_rate = rate(lambda m=middle: _at_once(hub, sentences[m : m + AT_ONCE]), AT_ONCE)
            pairs.append((ours_rate, theirs_rate))
    return [
        ("recall by text, alone", alone[0] * 1e3, alone[1], "ms", -1.2, "x the model's time"),
        ("recall by text, 64 at once", *_median(pairs), "/s", 0.8, "x the model's batches"),
    ]


def _at_once(hub: Hub, sentences: list[str]) -> None:
    """Each of 64 threads recalls its share."""

    def work(own: list[str]) -> None:
        for sentence in own:
            hub.recall("bench", sentence, k=10)

    threads = [threading.Thread(target=work, args=(sentences[each::64],)) for each in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def large_tenant(folder: Path, rows: int = 100_000) -> list[tuple]:
    """Recall in one tenant of 100,000, beside bare usearch on the same vectors, and opening that hub."""
    from usearch.index import Index

    episodes = data.episodes(rows, lying=data.sentence_vectors)
    vectors = np.stack([each.vector for each in episodes]).astype(np.float32)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    bare = Index(ndim=384, metric="cos", dtype="f16")
    bare.add(np.arange(1, rows + 1), vectors.astype(np.float16))
    rng = np.random.default_rng(1)
    queries = units[rng.integers(rows, size=300)] + 0.02 * rng.normal(size=(300, 384))
    with Hub(folder / "large", embedder="hashing") as hub:
        for part in range(0, rows, 1_000):
            hub.put(episodes[part : part + 1_000])
        hub.recall("bench", queries[0], k=10)
        tenant = hub._indexes.get("bench")
        while (view := tenant.view).graph is None or view.n - view.first > index.TAIL:
            time.sleep(0.5)
        number = {each.id: position for position, each in enumerate(episodes)}
        # The truth first, apart from the timed loops: a 150 MB product would sweep the caches between them.
        truths = [set(np.argpartition(-(units @ query), 10)[:10].tolist()) for query in queries.astype(np.float32)]
        ours, theirs, found = [], [], []
        for query, truth in zip(queries, truths, strict=True):
            start = time.perf_counter()
            bare.search(query.astype(np.float16), 10)
            middle = time.perf_counter()
            memories = hub.recall("bench", query, k=10)
            theirs.append(middle - start)
            ours.append(time.perf_counter() - middle)
            found.append(len({number[each.id] for each in memories} & truth) / 10)
    start = time.perf_counter()
    with Hub(folder / "large") as hub:
        opened = time.perf_counter() - start
        hub.recall("bench", queries[0], k=10)
        first = time.perf_counter() - start
    p50 = float(np.median(ours))
    return [
        ("recall@10, 100,000 in one tenant", float(np.mean(found)), float(np.mean(found)), "", 0.98, "of the true 10"),
        ("  its p50", p50 * 1e3, p50 / float(np.median(theirs)), "ms", -3.0, "x bare usearch"),
        ("open a hub of 100,000", opened, opened, "s", -1.0, "s"),
        ("  with its first recall", first, first, "s", -1.0, "s"),
    ]


def main() -> list[tuple]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*puts(folder), *texts(folder), *large_tenant(folder)]


if __name__ == "__main__":
    for row in main():
        print(row)
