"""A retention policy as parts that can be set one by one: where each stands in it, its controls, and the policy with
another in its place. Its text, as `repr` writes it, is all that is kept of it.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import msgspec
import streamlit as st

from fedlab.recall import Filter
from fedlab.retention import (
    Both,
    Decay,
    Distinct,
    Either,
    MaxAge,
    MaxBytes,
    MaxEpisodes,
    MinReward,
    RetentionPolicy,
    Unused,
    Where,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Path = tuple[str, ...]
    """From the whole to a part: `first`, `second`, `rule`."""

NEW = {
    "Age": MaxAge(30),
    "Reward": MinReward(0.5),
    "Reward, as a quantile": MinReward(quantile=0.5),
    "Number": MaxEpisodes(1_000),
    "Size": MaxBytes(10_000_000),
    "Worth that decays": Decay(half_life=30, floor=0.25),
    "Use": Unused(after=30),
    "Near-duplicates": Distinct(0.98),
}
"""What can be added, as it is at first."""
DAYS = {"days": "Days", "half_life": "Half-life, days", "after": "Days until then"}
COUNTS = {"n": "Episodes", "bytes": "Bytes"}
REWARDS = {"reward": "Least reward", "floor": "Least worth", "success": "Least reward of a success"}
SHARES = {"quantile": "Quantile of the task's rewards", "similarity": "Similarity of near-duplicates"}
CHOICES = {
    "keep": ("Which stay", ("newest", "best", "most_used", "random")),
    "by": ("What counts as use", ("recalled", "source_of_success")),
}
STEPS = (1, 1.5, 2, 3, 4, 5, 7)
"""A slider's stops within a factor of ten."""


def parts(policy: RetentionPolicy, path: Path = ()) -> Iterator[tuple[Path, RetentionPolicy]]:
    """Each part that is set by itself, with its place."""
    below = [name for name in ("first", "second", "rule") if isinstance(getattr(policy, name, None), RetentionPolicy)]
    if isinstance(policy, Where) and not isinstance(policy.rule, (Both, Either, Where)):
        below = []  # it is shown as one part, with the task that it is about
    if not below:
        yield path, policy
    for name in below:
        yield from parts(getattr(policy, name), (*path, name))


def replaced(policy: RetentionPolicy, path: Path, new: RetentionPolicy | None) -> RetentionPolicy | None:
    """The policy with another part in a place, or without it."""
    if not path:
        return new
    name, *rest = path
    part = replaced(getattr(policy, name), tuple(rest), new)
    if part is not None:
        return msgspec.structs.replace(policy, **{name: part})
    return None if name == "rule" else getattr(policy, "second" if name == "first" else "first")


def controls(part: RetentionPolicy, key: str, change: Callable[[RetentionPolicy], None]) -> None:
    """Widgets for the numbers and choices of a part.

    Args:
        part: Of `parts`.
        key: Begins the widgets' keys.
        change: Is called with the part as it was set.
    """
    rule = part.rule if isinstance(part, Where) else part
    fields = msgspec.structs.asdict(rule)
    shown = [name for name, value in fields.items() if value is not None and _is_shown(name, fields)]
    columns = st.columns([*(2 for _ in shown), 2], vertical_alignment="bottom")
    for column, name in zip(columns, shown, strict=False):
        with column:
            _control(
                name, fields[name], f"{key} {type(rule).__name__} {name}", functools.partial(_set, part, name, change)
            )
    if not isinstance(part, Where) or part.filter == Filter(task=part.filter.task):
        with columns[-1]:
            _task(part, f"{key} task", change)


def _is_shown(name: str, fields: dict[str, Any]) -> bool:
    if name == "seed":
        return fields.get("keep") == "random"
    if name == "success":
        return fields.get("by") == "source_of_success"
    return any(name in known for known in (DAYS, COUNTS, REWARDS, SHARES, CHOICES))


def _set(part: RetentionPolicy, name: str, change: Callable[[RetentionPolicy], None], value: Any) -> None:
    change(_with(part, name, value))


def _with(part: RetentionPolicy, name: str, value: Any) -> RetentionPolicy:
    if isinstance(part, Where):
        return msgspec.structs.replace(part, rule=_with(part.rule, name, value))
    return msgspec.structs.replace(part, **{name: value})


def _control(name: str, value: Any, key: str, change: Callable[[Any], None]) -> None:
    # The policy says what the widget shows; what a visitor does to the widget changes the policy.
    st.session_state[key] = value
    options: dict[str, Any] = {"key": key, "on_change": lambda: change(_tidy(st.session_state[key]))}
    if name in DAYS:
        st.select_slider(DAYS[name], _stops(1e-3, 3_000, value), format_func=duration, **options)
    elif name in COUNTS:
        low, high = (1e4, 1e10) if name == "bytes" else (1, 1e6)
        stops = sorted({int(each) for each in _stops(low, high, value)})
        st.select_slider(COUNTS[name], stops, format_func="{:,}".format, **options)
    elif name in REWARDS:
        st.session_state[key] = float(value)
        low, high = min(0.0, math.floor(value)), max(1.0, math.ceil(value))
        st.slider(REWARDS[name], float(low), float(high), step=0.01, **options)
    elif name in SHARES:
        st.session_state[key] = float(value)
        st.slider(SHARES[name], 0.01 if name == "similarity" else 0.0, 1.0, step=0.01, **options)
    elif name in CHOICES:
        label, choices = CHOICES[name]
        st.selectbox(label, choices, format_func=lambda each: each.replace("_", " "), **options)
    else:
        st.number_input("Seed", step=1, **options)


def _task(part: RetentionPolicy, key: str, change: Callable[[RetentionPolicy], None]) -> None:
    rule, task = (part.rule, part.filter.task) if isinstance(part, Where) else (part, None)

    def set_task() -> None:
        typed = st.session_state[key]
        change(rule.where(task=typed) if typed else rule)

    st.session_state[key] = task or ""
    st.text_input("Only for the task", key=key, placeholder="all tasks", on_change=set_task)


def _stops(low: float, high: float, value: float) -> list[float]:
    """Where a slider stops, evenly in factors, and at a value that is none of these."""
    powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
    stops = {_tidy(step * 10.0**power) for power in powers for step in STEPS}
    return sorted({each for each in stops if low <= each <= high} | {value})


def _tidy(value: Any) -> Any:
    """A number without the noise of binary fractions."""
    if not isinstance(value, float):
        return value
    short = round(value, 9)
    return int(short) if short.is_integer() and abs(short) >= 1 else short


def duration(days: float) -> str:
    """A number of days in words.

    >>> duration(0.05), duration(30)
    ('1.2 hours', '30 days')
    """
    for unit, many in (("days", 1.0), ("hours", 24.0), ("minutes", 1_440.0)):
        if days * many >= 1 or unit == "minutes":
            break
    return (
        f"{days * many:,.3g} {unit if days * many != 1 else unit[:-1]}" if days * many < 1_000 else f"{days:,.0f} days"
    )
