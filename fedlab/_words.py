"""How a number of things is said to a person, in whatever the commands, the log and the reprs print."""


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "episode"), counted(1_234, "episode"), counted(0, "memory", "memories"), counted(0.5, "day")
    ('1 episode', '1,234 episodes', '0 memories', '0.5 days')
    """
    shown = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"
