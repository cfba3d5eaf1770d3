"""Ctrl-C while a command still imports what it needs."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once and without a word, for imports.

    They can not be interrupted tidily: a KeyboardInterrupt becomes a library's own error or, inside a callback, a stack
    trace after which the command goes on.
    """
    tidy = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not tidy:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, tidy)
