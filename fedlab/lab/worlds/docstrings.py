"""Prints the public docstrings of the standard library as JSON. It is run, not imported: in an interpreter of
its own (`python -I -S docstrings.py`) nothing that other packages change in the standard library is seen, and
the caller's process does not import two hundred modules.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

RUDE = frozenset(["__main__", "antigravity", "idlelib", "pip", "rlcompleter", "site", "test", "this", "turtledemo"])
"""They print, open windows or browsers, or change the interpreter."""
ELSEWHERE = frozenset(["curses", "msilib", "msvcrt", "nt", "ntpath", "posixpath", "pty", "readline", "tkinter"])
"""Not on every machine, or under another name there."""
SKIPPED = RUDE | ELSEWHERE | {"distutils", "ensurepip", "lib2to3", "turtle", "venv", "winreg", "winsound"}


def collect() -> dict[str, tuple[str, list[str]]]:
    """For each module the first paragraph of its own docstring, and the first sentences of what is in it."""
    found = {}
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in SKIPPED:
            continue
        module = _import_quietly(name)
        if module is not None:
            found[name] = (_paragraph(module.__doc__), list(_sentences(name, module)))
    return found


def _import_quietly(name: str) -> ModuleType | None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception:  # a module of another platform, or one that this Python was built without
            return None


def _sentences(name: str, module: ModuleType) -> Iterator[str]:
    for attribute, thing in _public(module):
        if not _is_described(thing) or getattr(thing, "__module__", None) not in {name, f"_{name}"}:
            continue
        if sentence := _first_sentence(thing, attribute):
            yield sentence
        if inspect.isclass(thing):
            for member_name, member in sorted(vars(thing).items()):
                unwrapped = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
                if member_name.startswith("_") or not _is_described(unwrapped):
                    continue
                if sentence := _first_sentence(unwrapped, member_name):
                    yield sentence


def _public(module: ModuleType) -> list[tuple[str, object]]:
    return [(name, thing) for name, thing in sorted(vars(module).items()) if not name.startswith("_")]


def _is_described(thing: object) -> bool:
    return inspect.isclass(thing) or inspect.isroutine(thing)


def _first_sentence(thing: object, name: str) -> str:
    """The first sentence of a docstring of its own, without the signature that C functions begin with."""
    doc = getattr(thing, "__doc__", None)
    if not isinstance(doc, str):
        return ""
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    first = paragraphs[0]
    if re.match(rf"[\w.]*{re.escape(name)}\(", first):
        # "name(arguments) -> result" alone, or followed by the description on the same or the next line.
        first = re.sub(r"^[^\n]*?\)(\s*->\s*[^\n]*?)?(\s+--?\s+|\n|$)", "", first, count=1)
        first = first or (paragraphs[1] if len(paragraphs) > 1 else "")
    text = " ".join(first.split())
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)[0]
    return sentence if len(sentence.split()) >= 3 else ""


def _paragraph(doc: str | None) -> str:
    return " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())


if __name__ == "__main__":
    json.dump(collect(), sys.stdout)
