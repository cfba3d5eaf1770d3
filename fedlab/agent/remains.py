"""`Remains`: what is left of an agent that has ended, and where it goes: to the spool, or into an error."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from fedlab._words import counted
from fedlab.agent.spool import append_spool
from fedlab.errors import AgentExpired, FedlabError, UnsyncedEpisodes

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from fedlab.episode import Episode

log = logging.getLogger(__name__)


class Remains(NamedTuple):
    """What an agent leaves.

    Args:
        error: To be raised once, to whoever ended it.
        episodes: What neither hub nor spool has.
        erased: Why the hub took its life, if it did.
    """

    error: FedlabError | None = None
    episodes: Sequence[Episode] = ()
    erased: AgentExpired | None = None


def bury(
    left: list[Episode], failure: BaseException | None, session_id: str, spool: str | os.PathLike[str] | None
) -> Remains:
    """Keep what the hub does not have in the spool, if there is one; else it is in what is returned.

    Args:
        left: The agent's unsynced episodes.
        failure: Why the final sync failed, if it did.
        session_id: Whose they are.
        spool: The file, if there is one.
    """
    if isinstance(failure, AgentExpired):
        # It belongs to what was erased: a spool, or whoever gets the error, would bring it back.
        lost = f"; {len(left)} unsynced episodes went with it" if left else ""
        erased = AgentExpired(f"{failure.message}{lost}", erased=True, lost=len(left))
        log.warning("%s", erased)
        return Remains(erased if left else None, erased=erased)
    if not left:
        if failure is not None:
            log.info("agent %s ended without a goodbye: %s", session_id, failure)
        return Remains()
    if spool is not None:
        try:
            append_spool(spool, left)
        except OSError as problem:
            failure = problem
        else:
            log.warning("agent %s left %s in %s", session_id, counted(len(left), "episode"), spool)
            return Remains()
    reason = str(failure or "the hub has other episodes of the same ids") or type(failure).__name__
    error = UnsyncedEpisodes(
        f"agent {session_id!r} ended with {counted(len(left), 'episode')} that the hub does not have ({reason}):"
        " they are in `episodes` of this error, and hub.put(error.episodes) stores them later",
        left,
    )
    error.__cause__ = failure
    log.warning("%s", error)
    return Remains(error, left)
