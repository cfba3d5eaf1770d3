from __future__ import annotations

import subprocess
import sys

import pytest

import fedlab

HEAVY = [
    "alembic",
    "torch",
    "sentence_transformers",
    "transformers",
    "polars",
    "plotly",
    "usearch",
    "streamlit",
    "websockets",
]


def loaded_after(code: str, *modules: str) -> list[str]:
    """Which of the modules a fresh interpreter has after it ran the code."""
    program = f"import sys\n{code}\nprint(*(name for name in {list(modules)!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_public_name_is_there_and_the_list_is_sorted():
    assert fedlab.__all__ == sorted(set(fedlab.__all__))
    assert [name for name in fedlab.__all__ if not hasattr(fedlab, name)] == []
    assert set(fedlab.__all__) <= set(dir(fedlab))


def test_the_names_of_the_design_are_public():
    wanted = [
        "Hub",
        "EphemeralAgent",
        "Episode",
        "Memory",
        "SimulatedClock",
        "SystemClock",
        "KeepForever",
        "MaxAge",
        "MinReward",
        "MaxEpisodes",
        "connect",
        "connect_sync",
        "serve",
        "FedlabError",
        "InvalidEpisode",
        "IdConflict",
        "UnknownTenant",
        "AuthenticationError",
        "PermissionDenied",
        "QuotaExceeded",
        "HubUnavailable",
        "NotPrimary",
        "IncompatibleHub",
        "CorruptHub",
        "AgentExpired",
        "UnsyncedEpisodes",
    ]
    assert set(wanted) <= set(fedlab.__all__)


def test_a_public_name_says_where_it_lives():
    foreign = [
        name
        for name in fedlab.__all__
        if not getattr(getattr(fedlab, name), "__module__", "fedlab").startswith("fedlab")
    ]
    assert foreign == []


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Hubb"):
        fedlab.Hubb  # noqa: B018


def test_import_loads_nothing_heavy():
    assert loaded_after("import fedlab", *HEAVY, "numpy", "sqlalchemy", "msgspec", "asyncio") == []


def test_a_hub_that_is_given_vectors_loads_no_model_and_no_frames():
    use = """
import fedlab
with fedlab.Hub(":memory:") as hub:
    fields = dict(tenant_id="t", agent_id="a", task="x", input="", output="", reward=1, vector=[1.0] * 384)
    hub.put(fedlab.Episode(**fields))
    assert hub.recall("t", [1.0] * 384)[0].similarity > 0.99
    assert hub.verify().ok"""
    assert loaded_after(use, *HEAVY) == []
