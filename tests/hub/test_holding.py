"""What is held stays: no policy and no `forget` takes it until it is released, and the log tells who held it and why."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from fedlab import HeldEpisodes, Hub, InvalidRequest, MaxEpisodes, MinReward, UnknownEpisode, UnknownTenant


@pytest.fixture
def ids(hub: Hub, episode, vector) -> list[str]:
    hub.put([episode(n, id=f"x{n}", vector=vector(n), agent_id=f"a{n % 2}") for n in range(10)])
    hub.put([episode(n, id=f"x{n}", vector=vector(n), tenant_id="rival") for n in range(3)])
    return [f"x{n}" for n in range(10)]


def held(hub: Hub) -> set[str]:
    return set(hub.holds("acme")["id"])


def test_what_is_held_stays_and_counts_until_it_is_released(hub: Hub, ids: list[str]):
    assert hub.hold("acme", ["x0", "x1"], reason="exemplars", actor="ada") == 2
    hub.set_retention("acme", MinReward(0.5) & MaxEpisodes(4))
    preview = hub.preview_retention("acme")
    assert (preview.removed, preview.held) == (4, 2)
    assert hub.apply_retention("acme").removed == {"acme": 4}
    assert held(hub) == {"x0", "x1"}
    assert hub.stats("acme").episodes == 6
    assert hub.release("acme", ["x0"], reason="enough") == 1
    assert hub.apply_retention("acme").removed == {"acme": 1}
    assert "x0" not in set(hub.episodes("acme")["id"])
    assert held(hub) == {"x1"}
    log = [
        (each.kind, each.subject, each.actor, each.reason)
        for each in hub.read_changes()
        if "_held" in each.kind or "released" in each.kind
    ]
    assert log == [
        ("episode_held", "x0", "ada", "exemplars"),
        ("episode_held", "x1", "ada", "exemplars"),
        ("episode_released", "x0", "local", "enough"),
    ]  # fmt: skip
    assert hub.verify().ok


def test_forgetting_what_is_held_is_refused_and_nothing_is_forgotten(hub: Hub, ids: list[str]):
    hub.hold("acme", ["x1", "x2"], reason="a court's order")
    seq = hub.info().seq
    with pytest.raises(HeldEpisodes, match="release") as raised:
        hub.forget("acme", ids, reason="spring cleaning")
    assert set(raised.value.details["ids"]) == {"x1", "x2"}
    assert hub.info().seq == seq
    assert hub.forget("rival", ["x1"], reason="another tenant's") == 1
    hub.release("acme", since=0, reason="settled")
    assert hub.forget("acme", ids, reason="spring cleaning") == 10


def test_episodes_are_chosen_by_ids_or_by_what_they_are(hub: Hub, ids: list[str]):
    assert hub.hold("acme", task="task 1", reason="r") == 2
    assert held(hub) == {"x1", "x6"}
    assert hub.hold("acme", ids, agent_id="a1", min_reward=0.5, reason="r") == 3
    assert held(hub) == {"x1", "x6", "x5", "x7", "x9"}
    assert hub.hold("acme", ["x1"], reason="again") == 0
    assert hub.release("acme", min_reward=0.6, reason="r") == 3
    assert held(hub) == {"x1", "x5"}
    assert hub.hold("acme", since=0, reason="all") == 8
    assert hub.release("acme", [], reason="none") == 0
    assert hub.release("acme", until=2**42, reason="all") == 10
    assert hub.holds("acme").is_empty()
    assert hub.holds("rival").is_empty()


def test_the_frame_of_holds_says_what_who_when_and_why(hub: Hub, ids: list[str]):
    hub.hold("acme", ["x7"], reason="exemplar", actor="ada")
    (row,) = hub.holds("acme").to_dicts()
    assert row["at"] == hub.read_changes(kind="episode_held")[0].at
    del row["at"]
    number = hub.episodes("acme", ids=["x7"])["seq"][0]
    assert row == {"seq": number, "id": "x7", "tenant_id": "acme", "agent_id": "a1", "task": "task 2",
                   "reward": 0.7, "reason": "exemplar", "actor": "ada"}  # fmt: skip


@pytest.mark.parametrize("what", ["hold", "release"])
def test_a_hold_says_of_what_and_why(hub: Hub, ids: list[str], what: str):
    ask = getattr(hub, what)
    for arguments in (
        {"reason": "r"},
        {"ids": "x1", "reason": "r"},
        {"ids": [1], "reason": "r"},
        {"ids": 5, "reason": "r"},
        {"ids": ["x1"], "reason": " "},
        {"ids": ["x1"], "reason": "r", "actor": ""},
        {"task": 5, "reason": "r"},
    ):
        with pytest.raises(InvalidRequest):
            ask("acme", **arguments)
    with pytest.raises(UnknownTenant):
        ask("acne", ["x1"], reason="r")
    assert held(hub) == set()


def test_holds_survive_a_restart_and_the_database_itself_keeps_what_is_held(tmp_path, episode, vector):
    with Hub(tmp_path, embedder="hashing") as hub:
        hub.put([episode(n, id=f"x{n}", vector=vector(n)) for n in range(3)])
        hub.hold("acme", ["x1"], reason="exemplar")
    with closing(sqlite3.connect(tmp_path / "hub.db")) as database:
        database.execute("PRAGMA foreign_keys=1")
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("DELETE FROM episodes")
    with Hub(tmp_path) as hub:
        hub.set_retention("acme", MinReward(5.0))
        assert hub.apply_retention().removed == {"acme": 2}
        assert held(hub) == set(hub.episodes("acme")["id"]) == {"x1"}


def test_what_is_not_there_can_not_be_held_and_is_named(hub: Hub, ids: list[str]):
    hub.forget("acme", ["x4"], reason="gone")
    seq = hub.info().seq
    for wanted, unknown in ((["x1", "nobody"], ["nobody"]), (["x4", "x5"], ["x4"])):
        with pytest.raises(UnknownEpisode, match=unknown[0]) as raised:
            hub.hold("acme", wanted, reason="exemplars")
        assert raised.value.details["ids"] == unknown
    assert hub.holds("acme").is_empty()
    assert hub.info().seq == seq
    assert hub.release("acme", ["nobody"], reason="settled") == 0
