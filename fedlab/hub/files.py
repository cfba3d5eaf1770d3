"""Episodes in a file, by its suffix: Parquet, or JSON lines. Each carries the hash that its hub's log has of it,
so that no damage is taken for an episode. Which episodes, and what becomes of them, is `transfer.py`'s business.
"""

from __future__ import annotations

import contextlib
import re
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import numpy as np

from fedlab.batches import size_in_message
from fedlab.episode import Episode, decode_vector, encode_vector, metadata_json
from fedlab.errors import FedlabError, InvalidRequest
from fedlab.hub.directory import sync
from fedlab.hub.log import content_of, episode_hash, vector_hash
from fedlab.hub.parts import new_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    import polars as pl

GROUP_ROWS, GROUP_BYTES = 5_000, 1 << 23
"""Most rows of a group in Parquet, and about its bytes; a group is what is in memory at once."""


class Header(msgspec.Struct, frozen=True, kw_only=True, tag_field="fedlab", tag="episodes"):
    """What an export says of itself: the first line of JSON lines, the metadata `fedlab` of Parquet.

    Args:
        form: Of the file.
        hub_id: Where it was written.
        seq: The end of that hub's log then.
        tenant_id: Whose episodes these are.
        embedder: What made the vectors.
        dimension: Of the vectors.
        episodes: How many there are.
        group: Rows of a group in Parquet.
    """

    form: Literal[1] = 1
    hub_id: str
    seq: int
    tenant_id: str
    embedder: str
    dimension: int
    episodes: int = 0
    group: int = GROUP_ROWS


class _Row(Episode, frozen=True, kw_only=True, eq=False, omit_defaults=True, forbid_unknown_fields=False):
    hash: str


class _Format(Protocol):
    """A way to write episodes into a file and to read them again."""

    def write(self, path: Path, header: Header, rows: Iterator[_Row]) -> None: ...
    def header(self, path: Path) -> Header: ...
    def rows(self, path: Path, header: Header) -> Iterator[_Row]: ...


def write(path: Path, header: Header, episodes: Iterable[Episode]) -> int:
    """Write a file, which is there when it is whole; returns how many episodes it has."""
    form = _form(path)
    count = 0

    def rows() -> Iterator[_Row]:
        nonlocal count
        for episode in episodes:
            count += 1
            yield _Row(**_fields(episode), hash=_hash(episode))

    try:
        with new_part(path) as part:
            fresh = part / path.name
            form.write(fresh, header, rows())
            sync(fresh)
            fresh.replace(path)
    except OSError as error:
        if isinstance(error, FedlabError):  # HubUnavailable is both
            raise
        raise InvalidRequest(f"{path} can not be written: {error}") from None
    return count


def read_header(path: Path) -> Header:
    """What an export says of itself.

    Raises:
        InvalidRequest: If it is none, or is damaged.
    """
    if not path.is_file():
        raise InvalidRequest(f"there is no file {path}")
    with _damage(path, "its header can not be read"):
        return _form(path).header(path)


def read(path: Path, header: Header) -> Iterator[Episode]:
    """The episodes of an export, in its order.

    Raises:
        InvalidRequest: At the first that is damaged, and at the end if one is missing.
    """
    rows = _form(path).rows(path, header)
    for number in range(1, header.episodes + 1):
        with _damage(path, f"episode {number:,} of {header.episodes:,} can not be read"):
            row = next(rows, None)
            if row is None:
                raise ValueError("it ends before")
            if row.tenant_id != header.tenant_id or row.vector is None or row.hash != _hash(row):
                raise ValueError("it is not what was written")
            episode = Episode(**_fields(row))
        yield episode
    with _damage(path, f"there is more than its {header.episodes:,} episodes"):
        if next(rows, None) is not None:
            raise ValueError("this was written by something else")


def _fields(episode: Episode) -> dict[str, Any]:
    return {name: getattr(episode, name) for name in Episode.__struct_fields__}


def _hash(episode: Episode) -> str:
    assert episode.vector is not None
    of_vector = vector_hash(episode.id, episode.vector.tobytes())
    return episode_hash(content_of(episode, episode.created_at or 0), episode.sources, of_vector).hex()


def _form(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        raise InvalidRequest(f"an export ends in {' or '.join(_FORMATS)}, and not as {path.name!r} does", field="path")
    return _FORMATS[path.suffix]


@contextlib.contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Whatever a reader makes of noise is one error, which says where."""
    try:
        with np.errstate(all="ignore"):
            yield
    except BaseException as error:
        # A panic of polars is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = re.sub(r"\s+", " ", str(error))
        raise InvalidRequest(f"{path} is damaged, or no export of fedlab: {what} ({reason:.200})") from None


class _JsonLines:
    """A header, then an episode a line."""

    def write(self, path: Path, header: Header, rows: Iterator[_Row]) -> None:
        encoder = msgspec.json.Encoder(enc_hook=encode_vector)
        room = len(encoder.encode(header)) + 20
        count = 0
        with path.open("wb") as file:
            _write_line(file, b"", room)
            for row in rows:
                _write_line(file, encoder.encode(row))
                count += 1
            file.seek(0)
            _write_line(file, encoder.encode(msgspec.structs.replace(header, episodes=count)), room)

    def header(self, path: Path) -> Header:
        with path.open("rb") as file:
            return msgspec.json.decode(file.readline(100_000), type=Header)

    def rows(self, path: Path, _header: Header) -> Iterator[_Row]:
        decode = msgspec.json.Decoder(_Row, dec_hook=decode_vector).decode
        with path.open("rb") as file:
            file.readline()
            for line in file:
                yield decode(line)


def _write_line(file: BinaryIO, data: bytes, width: int = 0) -> None:
    file.write(data.ljust(width) + b"\n")


class _Parquet:
    """Columns as a frame of the hub has them. Polars streams them, a group of rows after the other."""

    def write(self, path: Path, header: Header, rows: Iterator[_Row]) -> None:
        from polars.io.plugins import register_io_source

        from fedlab._polars import pl

        schema = _schema(header.dimension)
        first = list(islice(rows, 100))
        mean = sum(map(size_in_message, first)) // max(1, len(first))
        size = max(10, min(GROUP_ROWS, GROUP_BYTES // max(1, mean)))
        whole = chain(first, rows)
        failed: list[FedlabError] = []  # Polars before 2.0 raises its own error instead of it

        def frames(*_pushed_down: object) -> Iterator[pl.DataFrame]:
            try:
                while group := list(islice(whole, size)):
                    yield _to_frame(group, schema)
            except FedlabError as error:
                failed.append(error)
                raise

        metadata = {"fedlab": msgspec.json.encode(msgspec.structs.replace(header, group=size)).decode()}
        try:
            register_io_source(frames, schema=schema).sink_parquet(path, row_group_size=size, metadata=metadata)
        except pl.exceptions.PolarsError as error:
            raise (failed[0] if failed else OSError(error)) from None

    def header(self, path: Path) -> Header:
        from fedlab._polars import pl

        header = msgspec.json.decode(pl.read_parquet_metadata(path)["fedlab"], type=Header)
        count = pl.scan_parquet(path).select(pl.len()).collect().item()
        return msgspec.structs.replace(header, episodes=count)

    def rows(self, path: Path, header: Header) -> Iterator[_Row]:
        from fedlab._polars import pl

        schema = _schema(header.dimension)
        for start in range(0, header.episodes, header.group):
            frame = pl.scan_parquet(path).slice(start, header.group).select(schema.keys()).cast(schema).collect()
            yield from _from_frame(frame)


def _schema(dimension: int) -> pl.Schema:
    from fedlab._polars import pl

    kinds: dict[str, Any] = {"reward": pl.Float64, "created_at": pl.Int64, "expires_at": pl.Int64}
    kinds |= {"vector": pl.Array(pl.Float32, dimension), "sources": pl.List(pl.String)}
    return pl.Schema({name: kinds.get(name, pl.String) for name in _Row.__struct_fields__})


def _to_frame(rows: list[_Row], schema: pl.Schema) -> pl.DataFrame:
    from fedlab._polars import pl

    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in schema}
    columns["metadata"] = [metadata_json(row.metadata) for row in rows]
    columns["vector"] = np.stack(columns["vector"]).astype(np.float32)
    return pl.DataFrame(columns, schema)


def _from_frame(frame: pl.DataFrame) -> Iterator[_Row]:
    vectors = frame["vector"].to_numpy().astype("<f2")
    for values, vector in zip(frame.drop("vector").iter_rows(named=True), vectors, strict=True):
        values["metadata"] = msgspec.json.decode(values["metadata"])
        yield _Row(**values, vector=vector)


_FORMATS: dict[str, _Format] = {".parquet": _Parquet(), ".jsonl": _JsonLines()}
