"""What was read of late comes from RAM, and what was forgotten or erased does not."""

from __future__ import annotations

import gc

import pytest

from fedlab import Episode
from fedlab.hub.recent import LARGE, MOST, Raw, Recent


@pytest.fixture
def asked(hub, episode, vector):
    """A hub whose two episodes were recalled."""
    hub.put(
        [episode(number, id=f"id-{number}", vector=vector(number), metadata={"n": [number]}) for number in range(2)]
    )
    assert len(hub.recall("acme", vector(0), vectors=True)) == 2
    return hub


def test_a_second_recall_gives_the_same(asked, vector):
    first = asked.recall("acme", vector(0), vectors=True)
    assert first == asked.recall("acme", vector(0), vectors=True)
    assert [memory.vector for memory in asked.recall("acme", vector(0))] == [None, None]


def test_who_changes_the_metadata_of_a_memory_changes_it_for_nobody_else(asked, vector):
    asked.recall("acme", vector(0), vectors=True)[0].metadata["n"].append("mine")
    assert asked.recall("acme", vector(0), vectors=True)[0].metadata == {"n": [0]}


@pytest.mark.parametrize("how", ["forgotten", "erased", "tenant erased"])
def test_what_is_gone_is_gone_from_ram(asked, vector, how):
    if how == "forgotten":
        asked.forget("acme", ["id-0"], reason="test")
    elif how == "erased":
        asked.erase_episodes("acme", ["id-0"], reason="test")
    else:
        asked.erase_tenant("acme", reason="test")
    gc.collect()
    assert "id-0" not in {each.episode.id for each in gc.get_objects() if type(each) is Raw}
    if how != "tenant erased":
        assert [memory.id for memory in asked.recall("acme", vector(0), vectors=True)] == ["id-1"]


def raw(text="x"):
    return Raw(Episode(tenant_id="acme", agent_id="a", task=text, input="", output="", reward=1), "{}")


def test_what_was_dropped_while_it_was_read_does_not_come_back():
    recent = Recent()
    age = recent.age
    recent.drop([1])
    recent.put(age, {1: raw()})
    assert recent.get([1]) == {}


def test_the_oldest_make_room_and_large_ones_are_not_kept():
    recent = Recent()
    for number in range(MOST + 1):
        recent.put(0, {number: raw("x" * (LARGE + 1) if number == 7 else "x")})
    assert set(range(MOST + 2)) - set(recent.get(range(MOST + 2))) == {7, MOST + 1}
    recent.put(0, {MOST + 1: raw()})
    assert set(range(MOST + 2)) - set(recent.get(range(MOST + 2))) == {0, 7}
