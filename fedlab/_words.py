"""How numbers, ids and the texts of others are said to a person: in errors, the log, reprs and what commands print."""

from collections.abc import Sequence


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "episode"), counted(1_234, "episode"), counted(0, "memory", "memories"), counted(0.5, "day")
    ('1 episode', '1,234 episodes', '0 memories', '0.5 days')
    """
    shown = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"


def named(ids: Sequence[object], noun: str) -> str:
    """Which things these are, as far as a sentence has room.

    >>> named(["x1"], "episode"), named(["x1", "x2"], "episode")
    ("episode 'x1'", "2 episodes ('x1' …)")
    """
    return f"{noun} {ids[0]!r:.80}" if len(ids) == 1 else f"{counted(len(ids), noun)} ({ids[0]!r:.80} …)"


def one_line(text: str) -> str:
    r"""A text that somebody gave, without what would end the line or command the terminal.

    >>> print(one_line("grün\n  99  forged \x1b[31m"))
    grün\n  99  forged \x1b[31m
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
