"""`LabelledText`: which label does this text have? On data of your own."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fedlab.errors import InvalidRequest
from fedlab.lab.worlds.answered import Answered

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import polars as pl


class LabelledText(Answered):
    """Texts with labels, from a table.

    Args:
        frame: A Polars or pandas frame, or the path of a CSV or Parquet file.
        text: Column of the texts. A text that comes again with the same label counts once.
        label: Column of the labels, which become text.
        task: The `task` of every episode.
        descriptions: For labels that do not speak for themselves, texts that describe them.

    Raises:
        InvalidRequest: If a file or a column is missing, a text or label is missing or blank, a text has two
            labels, or there is but one label.

    >>> import polars as pl
    >>> frame = pl.DataFrame({"says": ["two plus two", "a red rose", "ten minus one"], "is": ["sum", "flower", "sum"]})
    >>> LabelledText(frame, text="says", label="is")
    LabelledText(3 inputs, 2 options, ...)
    """

    def __init__(
        self,
        frame: pl.DataFrame | pl.LazyFrame | str | os.PathLike[str] | Any,
        *,
        text: str,
        label: str,
        task: str = "label",
        descriptions: Mapping[str, str] | None = None,
    ) -> None:
        texts, labels = _columns(frame, text, label)
        pairs: dict[str, str] = {}
        for each, its in zip(texts, labels, strict=True):
            if pairs.setdefault(each, its) != its:
                raise InvalidRequest(f"the text {each!r:.80} has two labels, {pairs[each]!r} and {its!r}: keep one")
        names = sorted(set(labels))
        if len(names) < 2:
            raise InvalidRequest(f"column {label!r} has {len(names)} label, and a choice needs two or more")
        if unknown := sorted(set(descriptions or ()) - set(names)):
            raise InvalidRequest(f"descriptions has {unknown[0]!r}, which is no label of column {label!r}")
        options = {name: name for name in names} | dict(descriptions or {})
        digest = hashlib.sha256(msgspec.json.encode([list(pairs.items()), options, task])).hexdigest()
        super().__init__(task, list(pairs), list(pairs.values()), options, digest)


def _columns(frame: Any, text: str, label: str) -> tuple[list[str], list[str]]:
    """Texts and labels, checked."""
    table = _read(frame)
    names = [str(name) for name in table.columns]
    for name in (text, label):
        if name not in names:
            raise InvalidRequest(f"there is no column {name!r}: the columns are {', '.join(names)}")
    if not len(table):
        raise InvalidRequest("the table has no rows")
    return tuple([_text(value, name, row) for row, value in enumerate(table[name])] for name in (text, label))  # type: ignore[return-value]


def _read(frame: Any) -> Any:
    """The frame as it is, or that of a file; with `columns`, a length, and columns by name."""
    import polars as pl

    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if hasattr(frame, "columns") and hasattr(frame, "__getitem__"):
        return frame
    readers: dict[str, Any] = {".csv": pl.read_csv, ".parquet": pl.read_parquet}
    try:
        path = Path(frame)
        reader = readers[path.suffix.lower()]
    except (TypeError, KeyError):
        raise InvalidRequest(
            f"{frame!r:.80} is no Polars or pandas frame and no path that ends in .csv or .parquet"
        ) from None
    try:
        return reader(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidRequest(f"{path} can not be read: {error}") from error


def _text(value: Any, column: str, row: int) -> str:
    # pandas has a float NaN where a text is missing.
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise InvalidRequest(f"row {row} of column {column!r} is empty: fill it or drop it")
    return str(value)
