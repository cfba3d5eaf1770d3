"""`Spawning`: an agent that is about to be, to be awaited or entered; and which lifetimes it may have."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from fedlab.errors import FedlabError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from types import TracebackType

    from fedlab.agent.agent import EphemeralAgent

SHORTEST, LONGEST = 5.0, 900.0
"""Lifetimes in seconds, unless any lifetime is asked for: then up to `UTMOST`."""
UTMOST = 10 * 365 * 86_400.0
STILLBIRTH = 2.0
"""Seconds that a hub has to answer a spawn that was cancelled meanwhile."""


class Spawning:
    """What `EphemeralAgent.spawn` returns: nothing has happened until it is awaited or entered."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, EphemeralAgent]]) -> None:
        self._start = start
        self._agent: EphemeralAgent | None = None

    def __await__(self) -> Generator[Any, Any, EphemeralAgent]:
        return self._live().__await__()

    async def __aenter__(self) -> EphemeralAgent:
        self._agent = await self._live()
        return self._agent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._agent is not None
        await self._agent.__aexit__(kind, error, trace)

    async def _live(self) -> EphemeralAgent:
        birth = asyncio.ensure_future(self._start())
        try:
            await asyncio.wait([birth])  # which goes on if this is cancelled
        except asyncio.CancelledError:
            # The hub may have heard of a life that nobody will live: it would count as alive until its lease ends.
            with contextlib.suppress(FedlabError, TimeoutError):
                await (await asyncio.wait_for(birth, STILLBIRTH)).destroy()
            raise
        return birth.result()

    if not TYPE_CHECKING:  # a type checker is to see what is missing

        def __getattr__(self, name):
            # Only what is not there comes here: most often an `await` was left out.
            raise AttributeError(f"{self!r} has no {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        return "<EphemeralAgent, not spawned yet: write 'await EphemeralAgent.spawn(…)' or 'async with'>"


def check_lifetime(lifetime: object, any_lifetime: bool) -> None:
    """Refuse what is no lifetime.

    Raises:
        InvalidRequest: If it is not a number of seconds from 5 to 900; with `any_lifetime`, from above 0 to ten years.
    """
    shortest, longest = (0.0, UTMOST) if any_lifetime else (SHORTEST, LONGEST)
    number = isinstance(lifetime, (int, float)) and not isinstance(lifetime, bool)
    if number and lifetime > 0 and shortest <= lifetime <= longest:  # type: ignore[operator]  # it is a number
        return
    way_out = "" if any_lifetime else "; any_lifetime=True allows others"
    raise InvalidRequest(
        f"lifetime is {shortest:g} to {longest:g} seconds, not {lifetime!r:.40}{way_out}", field="lifetime"
    )
