"""What a process is spared while a cell lives in it. Nothing here changes what comes of the cell."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """One thread for a product of matrices, and no search for garbage in what was there before."""
    # What was imported and made before stays anyway: to go through it again and again took a tenth of a run's time.
    freeze = not gc.get_freeze_count()  # else someone did, and `unfreeze` would undo it
    if freeze:
        gc.freeze()
    try:
        # A search of 2,000 vectors is too short for two threads: where others want the cores, it takes 6 ms, not 0.1.
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        if freeze:
            gc.unfreeze()
