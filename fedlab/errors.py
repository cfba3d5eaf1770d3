"""The one family of exceptions. Each has a stable `code` that also travels on the wire.

FedlabError
├── InvalidRequest          a call or a message that cannot be understood
│   ├── InvalidEpisode      an episode that cannot be stored
│   └── InvalidVector       wrong dimension, NaN, infinity or all zeros
├── IdConflict              the id is taken: other content, a forgotten episode, or a living agent
├── UnknownTenant           nothing was ever stored for this tenant
├── UnknownEpisode          no episode of the tenant has this id (any more)
├── AuthenticationError     no token, or one that is forged, expired or for another hub
├── PermissionDenied        a good token that does not allow this
├── HeldEpisodes            episodes that are held would have been forgotten or erased
├── QuotaExceeded           a limit of the hub was reached
├── HubUnavailable          the hub cannot be reached, is closed, or did not answer in time
├── HubLocked               another process has this hub directory open
├── NotPrimary              a replica was asked to write
├── IncompatibleHub         the directory was made by another schema or embedder
├── CorruptHub              the database is damaged
├── CorruptBackup           a backup is damaged or incomplete
├── AgentExpired            the agent's lifetime is over, or it was destroyed or erased
├── UnsyncedEpisodes        an agent died with episodes that the hub does not have
└── ExperimentFailed        cells of an experiment failed; the others are finished
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedlab.episode import Episode


class FedlabError(Exception):
    """Base of every error that fedlab raises on purpose.

    Args:
        message: What was wrong, with the value, and the way out.
        details: JSON-serialisable facts for programs; they travel on the wire with the code.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(FedlabError, ValueError):
    """A call or a message that cannot be understood."""

    code = "invalid_request"


class InvalidEpisode(InvalidRequest):
    """An episode that cannot be stored; `details["field"]` names what was wrong."""

    code = "invalid_episode"


class InvalidVector(InvalidRequest):
    """A vector of another dimension than the hub's, or with NaN, infinity, or no direction."""

    code = "invalid_vector"


class IdConflict(FedlabError):
    """The id is taken; `details["ids"]` lists the ids concerned, and nothing was changed.

    `details["forgotten"]` is true where the episode was stored once and then forgotten or erased, `details["erased"]`
    where it was erased.
    """

    code = "id_conflict"

    @property
    def ids(self) -> list[str]:
        """The ids concerned."""
        return list(self.details.get("ids", ()))

    @property
    def forgotten(self) -> bool:
        """Whether the ids belong to episodes that were forgotten."""
        return bool(self.details.get("forgotten", False))


class UnknownTenant(FedlabError, LookupError):
    """Nothing was ever stored for this tenant: most often a mistyped name."""

    code = "unknown_tenant"


class UnknownEpisode(FedlabError, LookupError):
    """No episode of the tenant has this id (any more); `details["ids"]` lists them, and nothing was changed."""

    code = "unknown_episode"


class AuthenticationError(FedlabError):
    """No token, or one that is forged, expired or meant for another hub."""

    code = "authentication"


class PermissionDenied(FedlabError):
    """A good token that does not allow this."""

    code = "permission_denied"


class HeldEpisodes(FedlabError):
    """Held episodes would have been forgotten or erased; `details["ids"]` lists them, and nothing was changed."""

    code = "held_episodes"


class QuotaExceeded(FedlabError):
    """A limit of the hub was reached; the message names the setting."""

    code = "quota_exceeded"


class HubUnavailable(FedlabError, ConnectionError):
    """The hub cannot be reached, is closed, or did not answer in time."""

    code = "hub_unavailable"


class HubLocked(FedlabError):
    """Another process has this hub directory open; `details["pid"]` says which."""

    code = "hub_locked"


class NotPrimary(FedlabError):
    """A replica was asked to write; `details["primary"]` is the address that accepts writes."""

    code = "not_primary"


class IncompatibleHub(FedlabError):
    """The directory was made by another schema version or another embedder."""

    code = "incompatible_hub"


class CorruptHub(FedlabError):
    """The database is damaged. The message names the way back to a good copy."""

    code = "corrupt_hub"


class CorruptBackup(FedlabError):
    """A backup is damaged or incomplete; `details["file"]` names what of it."""

    code = "corrupt_backup"


class AgentExpired(FedlabError):
    """The agent's lifetime is over, or it was destroyed, or erased with what it had learned (`details["erased"]`)."""

    code = "agent_expired"


class UnsyncedEpisodes(FedlabError):
    """An agent died with episodes that the hub does not have; they are in `episodes`."""

    code = "unsynced_episodes"

    def __init__(self, message: str, episodes: Sequence[Episode] = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.episodes = list(episodes)


class ExperimentFailed(FedlabError):
    """Cells of an experiment failed, the others are finished; `details["cells"]` has a line for each."""

    code = "experiment_failed"


def _family(cls: type[FedlabError]) -> list[type[FedlabError]]:
    return [cls, *(error for child in cls.__subclasses__() for error in _family(child))]


BY_CODE: dict[str, type[FedlabError]] = {error.code: error for error in _family(FedlabError)}
"""Wire code to exception class, so that a client raises what the hub raised."""
