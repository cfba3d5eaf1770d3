"""Frames on the wire: `Page`s of columns. No I/O."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fedlab.episode import FLOAT16, encode_vector
from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    import polars as pl


class Page(msgspec.Struct, frozen=True):
    """Some rows of a frame, as columns.

    Args:
        columns: The values by column; times are ms UTC.
        types: The columns' Polars types by column.
    """

    columns: dict[str, list[Any]]
    types: dict[str, str]


def to_page(frame: pl.DataFrame) -> Page:
    """Rows of a frame as data; a vector as the bytes of its float16 numbers."""
    from fedlab._polars import pl  # imported when the first frame is asked for

    def values(column: pl.Series) -> list[Any]:
        if isinstance(column.dtype, pl.Array):
            return [encode_vector(row) for row in column.to_numpy()]
        return (column.cast(pl.Int64) if isinstance(column.dtype, pl.Datetime) else column).to_list()

    return Page({each.name: values(each) for each in frame}, {name: str(kind) for name, kind in frame.schema.items()})


_ARRAY = re.compile(r"Array\(Float32, shape=\((\d{1,5}),\)\)")


def to_frame(pages: list[Page]) -> pl.DataFrame:
    """The frame of which these are the pages.

    Raises:
        InvalidRequest: On a column of a type that no frame of a hub has.
    """
    from fedlab._polars import pl

    time = pl.Datetime("ms", "UTC")
    known = {str(kind): kind for kind in (pl.String, pl.Int64, pl.Float64, pl.Boolean, pl.List(pl.String), time)}

    def series(name: str, values: list[Any], kind: str) -> pl.Series:
        if array := _ARRAY.fullmatch(kind):
            shape = (len(values), int(array[1]))
            rows = np.array([read_vector(None, value) for value in values], np.float32).reshape(shape)
            return pl.Series(name, rows, pl.Array(pl.Float32, shape[1]))
        if known[kind] == time:
            return pl.Series(name, values, pl.Int64).cast(time)
        return pl.Series(name, values, known[kind])

    try:
        frames = [pl.DataFrame([series(n, page.columns[n], kind) for n, kind in page.types.items()]) for page in pages]
    except (KeyError, pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise InvalidRequest(f"this is no frame of a hub: {error}") from None
    return pl.concat(frames)


def read_vector(_type: Any, value: Any) -> Any:
    """A vector from the hub, which has checked it (`dec_hook`)."""
    return np.frombuffer(base64.b64decode(value) if isinstance(value, str) else value, FLOAT16)
