"""Futures of futures: an embedding, then a commit, then a read, without a thread that waits in between."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def done(value: Any) -> Future[Any]:
    """A future that has its result."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def then(first: Future[Any], step: Callable[[Any], Future[Any]]) -> Future[Any]:
    """The future that `step` makes of the first one's result."""
    result: Future[Any] = Future()

    def second_done(second: Future[Any]) -> None:
        if error := second.exception():
            result.set_exception(error)
        else:
            result.set_result(second.result())

    def first_done(ready: Future[Any]) -> None:
        try:
            step(ready.result()).add_done_callback(second_done)
        except Exception as error:
            # It belongs to whoever waits for the result.
            result.set_exception(error)

    result.set_running_or_notify_cancel()
    first.add_done_callback(first_done)
    return result
