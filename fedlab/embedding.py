"""How a hub embeds: `EmbeddingService` batches the texts of many callers and caches their vectors.

The embedders themselves live in `fedlab.embedders`; their names can be imported from here.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedlab._words import counted
from fedlab.embedders import (
    Embedder,
    Hashing,
    MiniLM,
    SentenceTransformerEmbedder,
    check_embedder,
    get_embedder,
    to_half,
    unusable,
)
from fedlab.errors import FedlabError, HubUnavailable, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Half = npt.NDArray[np.float16]

__all__ = [
    "Embedder",
    "EmbeddingService",
    "EmbeddingStats",
    "Hashing",
    "MiniLM",
    "SentenceTransformerEmbedder",
    "check_embedder",
    "get_embedder",
]

log = logging.getLogger(__name__)

BATCH = 64
"""Most texts of one call of the model: 256 are hardly faster per text and keep others waiting longer."""
PATIENCE = 0.05
"""Longest time in seconds that a call waits for more texts."""
RAM_VECTORS = 20_000
"""Vectors kept in RAM by a service: 15 MB at 384 dimensions."""
FILE_VECTORS = 200_000
"""Vectors kept in the cache file: 170 MB at 384 dimensions."""


class EmbeddingStats(NamedTuple):
    """What a service did since it was made: texts asked for, of these from a cache, calls of the model."""

    texts: int
    hits: int
    batches: int


class _Request:
    """A call of `submit` that waits for vectors."""

    def __init__(self, texts: dict[bytes, str], keys: list[bytes], found: dict[bytes, Half]) -> None:
        self.keys = keys
        self.found = found
        self.todo = deque((key, text) for key, text in texts.items() if key not in found)
        self.missing = len(self.todo)
        self.future: Future[Half] = Future()

    def give(self, key: bytes, vector: Half) -> bool:
        """Take a vector if it is one of ours; returns whether nothing is missing now."""
        self.found[key] = vector
        self.missing -= 1
        return not self.missing

    def finish(self) -> None:
        vectors = _stack(self.keys, self.found)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(vectors)

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class EmbeddingService:
    """An embedder for many callers: one thread that calls the model, shared batches, each text embedded once.

    A lone text goes to the model at once. What arrives while the model is busy shares its next call, one text of
    each request in turn, so that a query never waits behind a bulk load. Callers who were served together come
    back together: after a shared call the next one waits for half as many
    texts, at most a quarter as long as that one took; the other half is being answered meanwhile.

    Args:
        embedder: Makes the vectors.
        cache: File of the cache that survives restarts; None keeps vectors in RAM only. It holds hashes of
            texts, never texts, and may be deleted at any time.
    """

    def __init__(self, embedder: Embedder, cache: Path | None = None) -> None:
        self.embedder = embedder
        self._key = blake2b(embedder.name.encode() + b"\0", digest_size=16)
        self._ram: OrderedDict[bytes, Half] = OrderedDict()
        self._file = _CacheFile(cache) if cache is not None else None
        self._requests: dict[_Request, None] = {}
        self._waiting: dict[bytes, list[_Request]] = {}
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._answers = ThreadPoolExecutor(1, "fedlab-embedded")
        self._closed = False
        self._age = 0  # grows with each clear
        self._last = 0, 0.0  # texts and seconds of the last call
        self._texts = self._hits = self._batches = 0

    @property
    def stats(self) -> EmbeddingStats:
        """Counters since the service was made."""
        return EmbeddingStats(self._texts, self._hits, self._batches)

    def submit(self, texts: Sequence[str]) -> Future[Half]:
        """Vectors of texts, soon; a future that is done already when all are in RAM.

        Returns:
            A future of a read-only array of shape (len(texts), dimension), float16. It raises InvalidVector
            when the embedder made something unusable, and FedlabError when the embedder failed.

        Raises:
            InvalidRequest: If something is no valid text.
            HubUnavailable: If the service is closed.
        """
        keys = [self._key_of(text) for text in texts]
        named = dict(zip(keys, texts, strict=True))
        with self._wake:
            if self._closed:
                raise HubUnavailable("the embedding service is closed")
            found = {key: self._ram[key] for key in named if key in self._ram}
            for key in found:
                self._ram.move_to_end(key)
            self._texts += len(keys)
            self._hits += len(keys) - len(named) + len(found)
            request = _Request(named, keys, found)
            if request.missing:
                self._requests[request] = None
                for key, _ in request.todo:
                    self._waiting.setdefault(key, []).append(request)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fedlab-embedding", daemon=True)
                    self._thread.start()
                self._wake.notify()
                return request.future
        if keys:
            request.finish()
        else:
            request.future.set_result(np.empty((0, self.embedder.dimension), dtype=np.float16))
        return request.future

    def embed(self, texts: Sequence[str]) -> Half:
        """Vectors of texts; see `submit`."""
        return self.submit(texts).result()

    def clear(self) -> None:
        """Forget every cached vector; nothing is left in the file, and nothing under way is added to it."""
        with self._wake:
            self._age += 1
            self._ram.clear()
        if self._file is not None:
            self._file.clear()

    def close(self) -> None:
        """Stop after the model call that is under way; what waits fails with HubUnavailable. Idempotent."""
        with self._wake:
            self._closed = True
            waiting = list(self._requests)
            self._requests.clear()
            self._waiting.clear()
            self._wake.notify()
        for request in waiting:
            request.fail(HubUnavailable("the embedding service was closed before the text was embedded"))
        if self._thread is not None:
            self._thread.join(timeout=60)
        self._answers.shutdown()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> EmbeddingService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key_of(self, text: object) -> bytes:
        key = self._key.copy()
        try:
            if not isinstance(text, str):
                raise InvalidRequest(f"only text can be embedded, not {type(text).__name__} {text!r:.80}")
            key.update(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the text holds a lone surrogate at position {error.start}: it is no valid text"
            ) from None
        return key.digest()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._requests and not self._closed:
                    self._wake.wait()
                self._gather()
                if self._closed:
                    return
                batch, age = self._next_batch(), self._age
            if batch:
                began = time.monotonic()
                self._serve(batch, age)
                self._last = len(batch), time.monotonic() - began

    def _gather(self) -> None:
        """Wait a moment for those who shared the last call; with the lock held."""
        many, took = self._last
        until = time.monotonic() + min(took / 4, PATIENCE)
        while not self._closed and sum(len(request.todo) for request in self._requests) < many / 2:
            if (left := until - time.monotonic()) <= 0:
                return
            self._wake.wait(left)

    def _next_batch(self) -> dict[bytes, str]:
        """One text of each waiting request in turn; with the lock held."""
        for request in [request for request in self._requests if request.future.cancelled()]:
            self._drop(request)
        batch: dict[bytes, str] = {}
        turns = deque(self._requests)
        while turns and len(batch) < BATCH:
            request = turns.popleft()
            while request.todo:
                key, text = request.todo.popleft()
                if key not in batch and key not in request.found:
                    batch[key] = text
                    turns.append(request)
                    break
        return batch

    def _serve(self, batch: dict[bytes, str], age: int) -> None:
        # The file is trusted as far as its dimension goes: a file of another model of the same name is not.
        cached = self._file.get(batch) if self._file is not None else {}
        if cached:
            width = self.embedder.dimension
            cached = {key: vector for key, vector in cached.items() if len(vector) == width}
        texts = {key: text for key, text in batch.items() if key not in cached}
        made: dict[bytes, Half] = {}
        errors: dict[bytes, Exception] = {}
        if texts:
            made, errors = self._call_model(texts)
        with self._wake:
            self._hits += len(cached)
            done, failed = self._deliver({**cached, **made}, errors, keep=age == self._age)
        # Whoever is answered wants the interpreter now, and the next batch shall not wait for them.
        self._answers.submit(self._answer, done, failed, made, age)

    def _answer(
        self, done: list[_Request], failed: dict[_Request, Exception], made: dict[bytes, Half], age: int
    ) -> None:
        for request in done:
            request.finish()
        for request, error in failed.items():
            request.fail(error)
        if made and self._file is not None:
            self._file.put(made, still=lambda: age == self._age)

    def _call_model(self, texts: dict[bytes, str]) -> tuple[dict[bytes, Half], dict[bytes, Exception]]:
        self._batches += 1
        try:
            vectors, bad = to_half(self.embedder, list(texts.values()))
        except FedlabError as error:
            return {}, dict.fromkeys(texts, error)
        except Exception as error:
            log.exception("the embedder %r failed on a batch of %s", self.embedder.name, counted(len(texts), "text"))
            wrapped = FedlabError(f"the embedder {self.embedder.name!r} failed: {error!r:.500}")
            wrapped.__cause__ = error
            return {}, dict.fromkeys(texts, wrapped)
        made: dict[bytes, Half] = {}
        errors: dict[bytes, Exception] = {}
        for (key, text), vector, is_bad in zip(texts.items(), vectors, bad, strict=True):
            if is_bad:
                errors[key] = unusable(self.embedder, text)
            else:
                made[key] = vector.copy()  # a view would keep its whole batch alive in the cache
        return made, errors

    def _deliver(
        self, vectors: dict[bytes, Half], errors: dict[bytes, Exception], *, keep: bool
    ) -> tuple[list[_Request], dict[_Request, Exception]]:
        """Which requests are complete now, and which have failed; with the lock held."""
        failed: dict[_Request, Exception] = {}
        for key, error in errors.items():
            for request in self._waiting.get(key, ()):
                failed.setdefault(request, error)
        for request in failed:
            self._drop(request)
        done = []
        for key, vector in vectors.items():
            done += [request for request in self._waiting.pop(key, ()) if request.give(key, vector)]
            if keep:
                self._ram[key] = vector
        for request in done:
            self._requests.pop(request, None)
        while len(self._ram) > RAM_VECTORS:
            self._ram.popitem(last=False)
        return done, failed

    def _drop(self, request: _Request) -> None:
        self._requests.pop(request, None)
        for key in request.keys:
            if request in (waiting := self._waiting.get(key, [])):
                waiting.remove(request)
                if not waiting:
                    del self._waiting[key]


def _stack(keys: Iterable[bytes], vectors: dict[bytes, Half]) -> Half:
    stacked = np.stack([vectors[key] for key in keys])
    stacked.flags.writeable = False
    return stacked


class _CacheFile:
    """Vectors by key in a SQLite file that may be lost: it never raises, and a damaged one is made anew.

    Each value ends with a checksum, because SQLite does not notice a flipped byte.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._off = False

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Half]:
        """The vectors of the keys that are there and whole."""
        wanted = list(keys)
        marks = ",".join("?" * len(wanted))
        with self._lock, self._guard():
            if (db := self._open()) is not None:
                rows = db.execute(f"SELECT key, value FROM vectors WHERE key IN ({marks})", wanted)  # noqa: S608
                return {key: vector for key, value in rows if (vector := _unpack(key, value)) is not None}
        return {}

    def put(self, vectors: dict[bytes, Half], still: Callable[[], bool]) -> None:
        """Add vectors, if they are `still` wanted once the file is free; the oldest go when it is full."""
        with self._lock, self._guard():
            if still() and (db := self._open()) is not None:
                with db:
                    rows = [(key, _pack(key, vector)) for key, vector in vectors.items()]
                    db.executemany("INSERT OR REPLACE INTO vectors (key, value) VALUES (?, ?)", rows)
                    db.execute("DELETE FROM vectors WHERE id <= (SELECT max(id) FROM vectors) - ?", (FILE_VECTORS,))

    def clear(self) -> None:
        """Delete the file; the next use makes a new one."""
        with self._lock:
            self._disconnect()
            self._remove()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._off = True
            self._disconnect()

    def _open(self) -> sqlite3.Connection | None:
        if self._db is None and not self._off:
            db = sqlite3.connect(self._path, timeout=0.05, check_same_thread=False)
            self._db = db
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=OFF")  # what power loss takes is computed again
            db.execute(
                "CREATE TABLE IF NOT EXISTS vectors"
                " (id INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)"
            )
        return self._db

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and code & 0xFF in _DAMAGED:
                log.warning("the embedding cache %s is damaged (%s) and was deleted", self._path, error)
                self._remove()
            else:
                log.warning("the embedding cache %s is not used from now on: %s", self._path, error)
                self._off = True

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            try:
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            except OSError as error:
                log.warning("the embedding cache %s%s could not be deleted: %s", self._path, suffix, error)
                self._off = True


_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def _pack(key: bytes, vector: Half) -> bytes:
    value = vector.astype("<f2").tobytes()
    return value + zlib.crc32(key + value).to_bytes(4, "little")


def _unpack(key: object, packed: object) -> Half | None:
    if not isinstance(key, bytes) or not isinstance(packed, bytes) or len(packed) < 6 or len(packed) % 2:
        return None
    value = packed[:-4]
    if zlib.crc32(key + value).to_bytes(4, "little") != packed[-4:]:
        return None
    return np.frombuffer(value, dtype="<f2").astype(np.float16)
