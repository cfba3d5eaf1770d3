"""fedlab: what happens when memory outlives the agents that made it?

A persistent hub keeps every episode; ephemeral agents pull what earlier ones learned, work, push and die.
Everything public is named here and loaded when it is first used, so that `import fedlab` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedlab.agent import EphemeralAgent, SyncReport
    from fedlab.clock import SimulatedClock, SystemClock
    from fedlab.embedding import Embedder, Hashing, MiniLM
    from fedlab.episode import Episode, Memory
    from fedlab.errors import (
        AgentExpired,
        AuthenticationError,
        CorruptBackup,
        CorruptHub,
        ExperimentFailed,
        FedlabError,
        HeldEpisodes,
        HubLocked,
        HubUnavailable,
        IdConflict,
        IncompatibleHub,
        InvalidEpisode,
        InvalidRequest,
        InvalidVector,
        NotPrimary,
        PermissionDenied,
        QuotaExceeded,
        UnknownTenant,
        UnsyncedEpisodes,
    )
    from fedlab.hub import Hub
    from fedlab.net import HubConnection, connect, connect_sync, serve
    from fedlab.recall import Random, RecallPolicy, Recency, Reward, Similarity
    from fedlab.retention import (
        Decay,
        Distinct,
        KeepForever,
        MaxAge,
        MaxBytes,
        MaxEpisodes,
        MinReward,
        RetentionPolicy,
        Unused,
    )

_MODULES = {
    "fedlab.agent": ("EphemeralAgent", "SyncReport"),
    "fedlab.clock": ("SimulatedClock", "SystemClock"),
    "fedlab.embedding": ("Embedder", "Hashing", "MiniLM"),
    "fedlab.episode": ("Episode", "Memory"),
    "fedlab.errors": (
        "AgentExpired",
        "AuthenticationError",
        "CorruptBackup",
        "CorruptHub",
        "ExperimentFailed",
        "FedlabError",
        "HeldEpisodes",
        "HubLocked",
        "HubUnavailable",
        "IdConflict",
        "IncompatibleHub",
        "InvalidEpisode",
        "InvalidRequest",
        "InvalidVector",
        "NotPrimary",
        "PermissionDenied",
        "QuotaExceeded",
        "UnknownTenant",
        "UnsyncedEpisodes",
    ),
    "fedlab.hub": ("Hub",),
    "fedlab.net": ("HubConnection", "connect", "connect_sync", "serve"),
    "fedlab.recall": ("Random", "RecallPolicy", "Recency", "Reward", "Similarity"),
    "fedlab.retention": (
        "Decay",
        "Distinct",
        "KeepForever",
        "MaxAge",
        "MaxBytes",
        "MaxEpisodes",
        "MinReward",
        "RetentionPolicy",
        "Unused",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
