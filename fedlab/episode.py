"""What is remembered: an `Episode`, and a `Memory`, which is an episode as it was recalled.

`created_at` and `expires_at` are integer milliseconds UTC everywhere; lifetimes are seconds everywhere.
What is checked here needs no hub: types, lengths, names. The hub checks what only it knows (dimension).
"""

from __future__ import annotations

import base64
import json
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from fedlab._html import table
from fedlab.clock import LATEST_MS, to_datetime
from fedlab.errors import InvalidEpisode, InvalidRequest, InvalidVector

if TYPE_CHECKING:
    import random

MAX_TEXT = 1_000_000
"""Longest task, input or output, in characters, and the longest metadata as JSON."""
MAX_SOURCES = 1_000
"""Most sources of one episode."""

Vector: TypeAlias = np.ndarray[Any, Any]
"""A read-only array of shape (dimension,), dtype float16: the precision in which the hub keeps it."""

MAX_NOTE = 1_000
"""Longest reason or actor in the change log, in characters."""
MAX_DEPTH = 100
"""Deepest nesting of metadata."""

FLOAT16, FLOAT32 = np.dtype("<f2"), np.dtype(np.float32)
"""Found out of their names at each use, they took as long as what is done with them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_force = msgspec.structs.force_setattr


def new_id(now: int | None = None, rng: random.Random | None = None) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of ms UTC, then 74 random bits.

    Written by hand because an experiment needs the same ids from the same seed, which no library offers.

    Args:
        now: Ms UTC; the machine's clock if not given.
        rng: Where the random bits come from; the system's secure source if not given.
    """
    ms = time.time_ns() // 1_000_000 if now is None else now
    bits = secrets.randbits(74) if rng is None else rng.getrandbits(74)
    value = (ms & (1 << 48) - 1) << 80 | 7 << 76 | (bits >> 62) << 64 | 2 << 62 | bits & (1 << 62) - 1
    digits = f"{value:032x}"  # in a third of the time of `uuid`
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def check_name(name: object, what: str) -> str:
    """`name` if it can name a tenant or an agent.

    Names are ASCII, so that no two look alike, and hold no `/`, which separates tenant and agent in a session.

    Raises:
        InvalidRequest: If it is not 1 to 128 letters, digits, dots, dashes and underscores.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise InvalidRequest(
        f"{what} {name!r:.80} is no valid name: 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit",
        field=what,
    )


class _Checked(bytes):
    """The bytes of a vector that `to_vector` made: whoever is given it again needs not look at its numbers."""

    __slots__ = ()


def to_vector(values: Sequence[float] | npt.NDArray[Any] | bytes, dimension: int | None = None) -> Vector:
    """A vector in the hub's precision (float16), checked.

    Args:
        values: Numbers of shape (dimension,), or the bytes of a little-endian float16 array.
        dimension: What the shape must be, if it is known.

    Raises:
        InvalidVector: On another shape, NaN, infinity (also by overflow of float16) or all zeros.
    """
    try:
        if isinstance(values, np.ndarray) and values.dtype == FLOAT16 and isinstance(values.base, bytes):
            # Nobody can change it any more, but for its shape.
            if type(values.base) is _Checked and values.ndim == 1 and dimension in (None, len(values)):
                return values
            vector = values
        elif isinstance(values, bytes):
            vector = np.frombuffer(values, FLOAT16)
        else:
            given = np.asarray(values)
            if given.dtype.kind not in "fiu":
                raise TypeError(f"it holds {given.dtype}")
            with np.errstate(over="ignore"):
                vector = np.frombuffer(_Checked(given.astype(FLOAT16).tobytes()), FLOAT16)
            # One axis stays as it is: what is reshaped has no bytes as its base, and each caller would copy it.
            if given.ndim != 1:
                vector = vector.reshape(given.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidVector(f"a vector is a flat sequence of numbers: {error}", field="vector") from None
    if vector.ndim != 1 or not len(vector):
        raise InvalidVector(f"a vector has one axis, not shape {vector.shape}", field="vector")
    # One number tells NaN, infinity and all zeros, in a third of the time of looking for each.
    wide = vector.astype(FLOAT32)
    if 0 < wide.dot(wide) < np.inf and dimension in (None, len(vector)):
        return vector
    if not np.isfinite(vector).all():
        raise InvalidVector("the vector holds NaN or a number too large for float16", field="vector")
    if not vector.any():
        raise InvalidVector("the vector is all zeros and points nowhere", field="vector")
    if dimension is not None and len(vector) != dimension:
        raise InvalidVector(
            f"the vector has {len(vector)} dimensions and this hub's vectors have {dimension}", field="vector"
        )
    return vector


class Episode(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, omit_defaults=True, gc=False, forbid_unknown_fields=True
):
    """One attempt at a task: what was asked, what was answered, how well it went.

    Args:
        tenant_id: Who owns the memory.
        agent_id: Which agent made it.
        task: What was to be done; not empty.
        input: What it was to be done on.
        output: What came out.
        reward: How well it went; any finite number, 1.0 is a success by convention.
        session_id: `tenant_id/agent_id` unless given.
        id: UUIDv7, made here unless given. Pushing the same id again stores nothing twice.
        created_at: Ms UTC; the hub fills it in when it stores the episode.
        vector: Shape (dimension,); the hub embeds `text` if there is none.
        sources: Ids of the episodes that the agent had recalled when it made this one.
        metadata: Any JSON object.
        expires_at: Ms UTC from which on retention lets it go, whatever the tenant's policy.

    Raises:
        InvalidEpisode: If a field is missing its meaning; the message names it.

    >>> episode = Episode(tenant_id="acme", agent_id="a1", task="add", input="1 + 1", output="2", reward=1)
    >>> episode.session_id, episode.reward
    ('acme/a1', 1.0)
    """

    tenant_id: str
    agent_id: str
    task: str
    input: str
    output: str
    reward: float
    session_id: str = ""
    id: str = ""
    created_at: int | None = None
    vector: Vector | None = None
    sources: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    expires_at: int | None = None

    def __post_init__(self) -> None:
        try:
            check_name(self.tenant_id, "tenant_id")
            check_name(self.agent_id, "agent_id")
            if self.vector is not None:
                _force(self, "vector", to_vector(self.vector))
        except InvalidRequest as error:
            raise InvalidEpisode(error.message, **error.details) from None
        for field in ("task", "input", "output"):
            text = getattr(self, field)
            _check_text(text, field)
            if type(text) is not str:  # numpy's text, which no message carries
                _force(self, field, str(text))
        if not self.task.strip():
            raise InvalidEpisode("task is empty: an episode without a task can not be recalled", field="task")
        _check_reward(self)
        own_session = f"{self.tenant_id}/{self.agent_id}"
        if not self.session_id:
            _force(self, "session_id", own_session)
        elif self.session_id != own_session:
            raise InvalidEpisode(
                f"session_id {self.session_id!r:.80} is not tenant_id/agent_id, {own_session!r}", field="session_id"
            )
        if not self.id:
            _force(self, "id", new_id())
        elif not (isinstance(self.id, str) and _ID.fullmatch(self.id)):
            raise _wrong("id", "1 to 64 of A-Z a-z 0-9 . _ : -", self.id)
        _check_time(self.created_at, "created_at")
        _check_time(self.expires_at, "expires_at")
        if self.sources:
            _check_sources(self)
        if self.metadata:
            _check_metadata(self.metadata)

    @property
    def text(self) -> str:
        """What is embedded when the episode brings no vector: the task and its input."""
        return embedding_text(self.task, self.input)

    def __repr__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.vector is not None:
            fields["vector"] = f"<{len(self.vector)} x float16>"
        return f"Episode({', '.join(f'{name}={value!r:.200}' for name, value in fields.items() if value)})"

    def _repr_html_(self) -> str:
        return table(f"Episode {self.id}", _rows(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Episode):
            return NotImplemented
        return _comparable(self) == _comparable(other)

    def __hash__(self) -> int:
        return hash((self.tenant_id, self.id))


class StoredEpisode(
    Episode, frozen=True, kw_only=True, eq=False, omit_defaults=True, gc=False, forbid_unknown_fields=False
):
    """An episode as a hub gives it: it was checked when it was stored, and is not checked again.

    What is made of one with other values is checked when it is put into a hub. A newer hub may give more fields.
    """

    def __post_init__(self) -> None:
        pass


if TYPE_CHECKING:
    FromHub: TypeAlias = Episode
else:
    FromHub = StoredEpisode
"""How what comes from a hub is read: to its users it is an `Episode`."""


class Memory(msgspec.Struct, frozen=True, gc=False):
    """An episode as it was recalled; the episode's fields can be read directly: `memory.output`.

    Args:
        episode: What was recalled.
        similarity: Cosine between the query's vector and the episode's, -1 to 1; 0 if there was no query.
        score: What the recall policy ranked it by; larger is better.
    """

    episode: FromHub
    similarity: float
    score: float

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.episode, name)

    def _repr_html_(self) -> str:
        own = [("similarity", self.similarity), ("score", self.score)]
        return table(f"Memory of {self.episode.agent_id}", [*own, *_rows(self.episode)])


class Memories(list[Memory]):
    """What one query recalled, best first: a list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        names = ("similarity", "agent_id", "task", "input", "output", "reward")
        rows = [[getattr(memory, name) for name in names] for memory in self]
        return table(f"{len(self)} memories" if len(self) != 1 else "1 memory", rows, head=names)


def embedding_text(task: str, input: str = "") -> str:
    """The text whose vector stands for a task and its input."""
    return f"{task}\n{input}" if input else task


def encode_vector(value: object) -> bytes:
    """A vector as msgspec writes it (`enc_hook`): float16, little-endian, which JSON holds as base64."""
    if isinstance(value, np.ndarray):
        return value.astype(FLOAT16, copy=False).tobytes()
    raise TypeError(f"no {type(value).__name__} can be written")


def decode_vector(_type: object, value: Any) -> Vector:
    """A vector as msgspec reads it (`dec_hook`): what `encode_vector` wrote, or a list of numbers."""
    if isinstance(value, str):
        value = base64.b64decode(value, validate=True)
    if isinstance(value, bytes):
        return np.frombuffer(value, FLOAT16)  # whoever takes it looks at what it holds
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        raise TypeError("a vector is float16 bytes (in JSON: base64) or a list of numbers")
    with np.errstate(over="ignore"):
        return np.array(value, dtype=np.float16)


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as canonical JSON: the same object always gives the same text."""
    if not metadata:
        return "{}"
    return _canonical(metadata)


_canonical = json.JSONEncoder(sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def _rows(episode: Episode) -> list[tuple[str, object]]:
    """What a notebook shows of an episode."""
    shown = ("session_id", "task", "input", "output", "reward", "metadata")
    rows = [(name, value) for name in shown if (value := getattr(episode, name)) or name == "reward"]
    if episode.sources:
        rows.append(("sources", "\n".join(episode.sources)))
    times = [(name, getattr(episode, name)) for name in ("created_at", "expires_at")]
    return [*rows, *((name, to_datetime(ms).isoformat(" ", "seconds")) for name, ms in times if ms is not None)]


def _comparable(episode: Episode) -> tuple[Any, ...]:
    vector = None if episode.vector is None else episode.vector.tobytes()
    return tuple(vector if name == "vector" else getattr(episode, name) for name in Episode.__struct_fields__)


def _wrong(field: str, wanted: str, value: object) -> InvalidEpisode:
    return InvalidEpisode(f"{field} must be {wanted}, not {type(value).__name__} {value!r:.80}", field=field)


def check_note(value: object, what: str) -> str:
    """`value` if it can stand in the change log: short text with something in it.

    Raises:
        InvalidRequest: If it is not.
    """
    try:
        _check_text(value, what)
    except InvalidEpisode as error:
        raise InvalidRequest(error.message, field=what) from None
    if not str(value).strip() or len(str(value)) > MAX_NOTE:
        raise InvalidRequest(f"{what} is 1 to {MAX_NOTE:,} characters of text, not {value!r:.80}", field=what)
    return str(value)


def _check_text(value: object, field: str) -> None:
    if not isinstance(value, str):
        raise _wrong(field, "text (json.dumps makes text of anything)", value)
    if len(value) > MAX_TEXT:
        raise InvalidEpisode(
            f"{field} has {len(value):,} characters and at most {MAX_TEXT:,} fit: store a reference instead",
            field=field,
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidEpisode(
                f"{field} holds a lone surrogate at position {error.start}: it is no valid text", field=field
            ) from None
    if "\0" in value:
        raise InvalidEpisode(f"{field} holds a NUL character: it is no valid text", field=field)


def _check_reward(episode: Episode) -> None:
    if type(episode.reward) is not float:
        if not isinstance(episode.reward, Real) or isinstance(episode.reward, bool):
            raise _wrong("reward", "a number", episode.reward)
        try:
            _force(episode, "reward", float(episode.reward))
        except OverflowError:
            raise _wrong("reward", "a finite number", episode.reward) from None
    elif not episode.reward:
        _force(episode, "reward", 0.0)  # -0.0 does not survive the database
    if not math.isfinite(episode.reward):
        raise InvalidEpisode(f"reward is {episode.reward}: it must be a finite number", field="reward")


def _check_time(value: object, field: str) -> None:
    if value is None or (type(value) is int and 0 <= value <= LATEST_MS):
        return
    raise _wrong(field, "integer ms UTC between 1970 and 9999", value)


def _check_sources(episode: Episode) -> None:
    sources = episode.sources
    if isinstance(sources, str) or not isinstance(sources, Sequence) or len(sources) > MAX_SOURCES:
        raise _wrong("sources", f"a sequence of at most {MAX_SOURCES} episode ids", sources)
    for source in sources:
        if not (isinstance(source, str) and _ID.fullmatch(source)):
            raise _wrong("sources", "a sequence of episode ids", source)
    # A source names an influence once, in the order of recall.
    _force(episode, "sources", tuple(dict.fromkeys(sources)))


def _check_values(value: object, left: int) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidEpisode(
            f"metadata holds a whole number of {value.bit_length():,} bits, and messages carry -2^63 to 2^64 - 1:"
            " store it as text",
            field="metadata",
        )
    if left == 0:
        raise InvalidEpisode(f"metadata is nested more than {MAX_DEPTH} levels deep", field="metadata")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_values(each, left - 1)


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise _wrong("metadata", "a dict with text keys", metadata)
    _check_values(metadata, MAX_DEPTH)
    try:
        text = metadata_json(metadata)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEpisode(f"metadata is no JSON: {error}", field="metadata") from None
    if len(text) > MAX_TEXT:
        raise InvalidEpisode(
            f"metadata has {len(text):,} characters as JSON and at most {MAX_TEXT:,} fit", field="metadata"
        )
