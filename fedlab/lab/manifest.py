"""What a run was made of: the experiment in plain words that can be compared, versions, platform. Not its timings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import platform
import re
import sys
import sysconfig
import types
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fedlab import __version__
from fedlab.lab.theory import expected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedlab.lab.experiment import Experiment

PACKAGES = ("numpy", "polars", "sqlalchemy", "usearch", "sentence-transformers", "torch")
SECRET = re.compile(r"(api_?key|(api|auth|access)_?token|password|secret)$", re.IGNORECASE)
"""Ends of names of what is nobody else's business: who is given a run is not given a key."""
LONGEST = 500
"""Characters of a value that is written down as it is; of a longer one there is the hash."""


def manifest(experiment: Experiment, hub: str | None) -> dict[str, Any]:
    """What a run directory says of itself, as JSON takes it."""
    return {
        "experiment": describe(experiment),
        "hub": "live" if hub else "own",
        "theory": {arm.name: means for arm in experiment.arms if (means := expected(experiment, arm)) is not None},
        "data_hash": getattr(experiment.world, "data_hash", None),
        "code": code_of(experiment),
        "versions": {
            "fedlab": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": {"system": platform.platform(), "machine": platform.machine(), "byteorder": sys.byteorder},
    }


def describe(value: object) -> Any:
    """A world, a learner, a policy or a whole experiment, as JSON takes it: classes by name, and what they hold.

    >>> describe(timedelta(days=1)), describe((1, "a"))
    ('1 day, 0:00:00', [1, 'a'])
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, bytes)):
        plain = value if isinstance(value, str) else value.hex()
        return plain if len(plain) <= LONGEST else f"sha256 {hashlib.sha256(plain.encode()).hexdigest()}"
    if isinstance(value, (timedelta, np.generic)):
        return str(value)
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"array {value.dtype} {value.shape} sha256 {digest}"
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    return _shortened(_described(value))


def differences(old: Any, new: Any) -> list[str]:
    """Where two descriptions differ, one line each: where, what was, what is.

    >>> differences({"seeds": [0, 1]}, {"seeds": [0, 2]})
    ['seeds[1]: 1 → 2']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    missing = "nothing"
    return [
        f"{name}: {before.get(name, missing)!r:.120} → {after.get(name, missing)!r:.120}".replace("'nothing'", missing)
        for name in dict.fromkeys([*before, *after])
        if before.get(name, missing) != after.get(name, missing)
    ]


def _described(value: object) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {"class": _name(value), **{name: describe(each) for name, each in value._asdict().items()}}
    if isinstance(value, dict):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [describe(each) for each in value]
    if isinstance(value, functools.partial):
        return [describe(each) for each in (value.func, *value.args, value.keywords)]
    if isinstance(value, (set, frozenset)):
        return sorted(describe(each) for each in value)
    if isinstance(value, msgspec.Struct):
        held: dict[str, Any] = {name: getattr(value, name) for name in value.__struct_fields__}
    elif dataclasses.is_dataclass(value):
        held = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    else:
        held = dict(getattr(value, "__dict__", {}))
        if not held:
            # What says nothing of itself; an address in memory is no configuration.
            held = {} if " at 0x" in repr(value) else {"value": repr(value)}
    # A private name is what was worked out from the others, unless it is that of an argument.
    given = _arguments(type(value))
    return {
        "class": _name(value),
        **{
            name: describe(each)
            for name, each in held.items()
            if not SECRET.search(name) and (not name.startswith("_") or name.lstrip("_") in given)
        },
    }


def _arguments(kind: type) -> set[str]:
    """What an object of a class of one's own is made with."""
    if kind.__module__.startswith("fedlab."):
        return set()
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):  # of a class that says nothing of it
        return set()


def code_of(experiment: Experiment) -> dict[str, str]:
    """A hash of each method and function of one's own that a run depends on, by where it stands: the world's, and those
    of each arm's learner. What stands in the library, or is installed, the versions tell.

    Comments, and where it stands in its file, make no difference.
    """
    parts = {"world": experiment.world, **{f"arms[{arm.name}].learner": arm.learner for arm in experiment.arms}}
    return {
        f"{where}.{name}": hashlib.sha256(_instructions(each.__code__).encode()).hexdigest()[:16]
        for where, value in parts.items()
        for name, each in _functions(value).items()
    }


def _functions(value: object) -> dict[str, types.FunctionType]:
    """Methods of an object's class and functions that it holds, and those of what it wraps."""
    held = dict(getattr(value, "__dict__", {}))
    found = {name: each for kind in reversed(type(value).__mro__) for name, each in vars(kind).items()} | held
    own = {name: each for name, each in found.items() if isinstance(each, types.FunctionType) and _is_own(each)}
    if (inside := held.get("world")) is not None:
        own |= {f"world.{name}": each for name, each in _functions(inside).items()}
    return own


def _is_own(function: types.FunctionType) -> bool:
    file = Path(function.__code__.co_filename)
    elsewhere = (Path(__file__).parents[1], *map(Path, (sysconfig.get_path(each) for each in ("stdlib", "purelib"))))
    return not any(file.is_relative_to(each) for each in elsewhere) and not file.name.startswith("<string>")


def _instructions(code: types.CodeType) -> str:
    """What a function does, as text that is the same in every process of one Python version."""
    held = [_instructions(each) if isinstance(each, types.CodeType) else _constant(each) for each in code.co_consts]
    return repr((code.co_code, held, code.co_names, code.co_varnames, code.co_freevars))


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _shortened(value: Any) -> Any:
    """Long lists and tables, such as a world's texts, as their hash."""
    if isinstance(value, dict) and "class" in value:
        return value
    packed = msgspec.json.encode(value)
    return value if len(packed) <= LONGEST or _has_class(value) else f"sha256 {hashlib.sha256(packed).hexdigest()}"


def _has_class(value: Any) -> bool:
    each = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(isinstance(one, dict) and "class" in one for one in each)


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for place, each in enumerate(value):
            own = each.get("name", place) if isinstance(each, dict) else place
            yield from _flat(each, f"{name}[{own}]")
    else:
        yield name, value
