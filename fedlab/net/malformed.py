"""JSON that is none: what many languages write without a complaint, NaN and halves of surrogate pairs; whose request it
was in. It is looked at only once a message could not be read.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlab.net.frames import BytesLike

LONGEST = 1 << 22
"""Most bytes that are read this slowly."""
_HEAD = re.compile(rb'\s*\{\s*"id"\s*:\s*(\d{1,16})\s*,')


def examine(data: BytesLike) -> tuple[int | None, tuple[str, str] | None]:
    """Of a request that can not be read: its id, in what is JSON but for its values, or where it comes first; and where
    in its params (`$`) the first value is that JSON can not hold, and what it is. None for what is not found.
    """
    request = _read(data)
    if request is None:
        head = _HEAD.match(bytes(data[:200]))
        return int(head[1]) if head else None, None
    number = request.get("id")
    known = number if type(number) is int and 0 <= number < 1 << 53 else None
    try:
        return known, next(_faults(request.get("params"), "$"), None)
    except RecursionError:
        return known, None


def _read(data: BytesLike) -> dict[str, Any] | None:
    if len(data) > LONGEST:
        return None
    try:
        request = json.loads(bytes(data).decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def _faults(value: Any, place: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, f"{value} is no number of JSON"
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        yield place, "the text holds a lone surrogate: it is no valid text"
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _faults(each, f"{place}[{number}]")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _faults(key, place)
            yield from _faults(each, f"{place}.{key}")
