"""What `execute` is given: a function in one of the shapes people write, made into something to await."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any

from fedlab.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def bind(work: Callable[..., Any], agent: object, args: tuple[Any, ...]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """The work with its arguments: `work(agent, *args)`, or `work(*args)` where it does not take the agent.

    Plain functions run in a thread; what they return is awaited if it can be.

    Raises:
        InvalidRequest: If `work` is no function.
    """
    if not callable(work):
        if inspect.iscoroutine(work):
            work.close()
        raise InvalidRequest(
            f"execute takes a function, not {type(work).__name__}: give `work`, not `work()`", field="work"
        )
    given: tuple[Any, ...] = (agent, *args)
    with contextlib.suppress(ValueError, TypeError):  # builtins may have no signature
        signature = inspect.signature(work)
        try:
            signature.bind(*given)
        except TypeError:
            signature.bind(*args)
            given = args
    is_async = inspect.iscoroutinefunction(work) or inspect.iscoroutinefunction(type(work).__call__)

    async def call() -> Any:
        if is_async:
            return await work(*given)
        result = await asyncio.to_thread(work, *given)
        return await result if inspect.isawaitable(result) else result

    return call
