"""fedlab: what happens when memory outlives the agents that made it?

A persistent hub keeps every episode; ephemeral agents pull what earlier ones learned, work, push and die.
Everything public is named here and loaded when it is first used, so that `import fedlab` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # `as`: type checkers take these names for ours, too
    from fedlab.agent import EphemeralAgent as EphemeralAgent
    from fedlab.agent import SyncReport as SyncReport
    from fedlab.clock import SimulatedClock as SimulatedClock
    from fedlab.clock import SystemClock as SystemClock
    from fedlab.embedding import Embedder as Embedder
    from fedlab.embedding import Hashing as Hashing
    from fedlab.embedding import MiniLM as MiniLM
    from fedlab.episode import Episode as Episode
    from fedlab.episode import Memory as Memory
    from fedlab.errors import AgentExpired as AgentExpired
    from fedlab.errors import AuthenticationError as AuthenticationError
    from fedlab.errors import CorruptBackup as CorruptBackup
    from fedlab.errors import CorruptHub as CorruptHub
    from fedlab.errors import ExperimentFailed as ExperimentFailed
    from fedlab.errors import FedlabError as FedlabError
    from fedlab.errors import HeldEpisodes as HeldEpisodes
    from fedlab.errors import HubLocked as HubLocked
    from fedlab.errors import HubUnavailable as HubUnavailable
    from fedlab.errors import IdConflict as IdConflict
    from fedlab.errors import IncompatibleHub as IncompatibleHub
    from fedlab.errors import InvalidEpisode as InvalidEpisode
    from fedlab.errors import InvalidRequest as InvalidRequest
    from fedlab.errors import InvalidVector as InvalidVector
    from fedlab.errors import NotPrimary as NotPrimary
    from fedlab.errors import PermissionDenied as PermissionDenied
    from fedlab.errors import QuotaExceeded as QuotaExceeded
    from fedlab.errors import UnknownEpisode as UnknownEpisode
    from fedlab.errors import UnknownTenant as UnknownTenant
    from fedlab.errors import UnsyncedEpisodes as UnsyncedEpisodes
    from fedlab.hub import Hub as Hub
    from fedlab.net import HubConnection as HubConnection
    from fedlab.net import connect as connect
    from fedlab.net import connect_sync as connect_sync
    from fedlab.net import serve as serve
    from fedlab.recall import Random as Random
    from fedlab.recall import RecallPolicy as RecallPolicy
    from fedlab.recall import Recency as Recency
    from fedlab.recall import Reward as Reward
    from fedlab.recall import Similarity as Similarity
    from fedlab.retention import Decay as Decay
    from fedlab.retention import Distinct as Distinct
    from fedlab.retention import KeepForever as KeepForever
    from fedlab.retention import MaxAge as MaxAge
    from fedlab.retention import MaxBytes as MaxBytes
    from fedlab.retention import MaxEpisodes as MaxEpisodes
    from fedlab.retention import MinReward as MinReward
    from fedlab.retention import RetentionPolicy as RetentionPolicy
    from fedlab.retention import Unused as Unused

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
        "UnknownEpisode",
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
