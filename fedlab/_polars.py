"""Polars, for whoever makes a frame; imported late, since it is slow to load.

Its import has system calls restarted after Ctrl-C, so that a main thread that waits would not notice
(pola-rs/polars#21739). Here that is undone.
"""

import signal

import polars as pl

__all__ = ["pl"]

if hasattr(signal, "siginterrupt"):  # not on Windows, where nothing is restarted
    signal.siginterrupt(signal.SIGINT, True)
