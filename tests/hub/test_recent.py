"""What was read or stored of late comes from RAM, and what was forgotten or erased does not."""

from __future__ import annotations

import gc

import msgspec
import numpy as np
import pytest

from fedlab import Episode
from fedlab.hub.log import Stored
from fedlab.hub.recent import LARGE, MOST, NEWEST, Raw, Recent


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


def test_what_was_stored_a_moment_ago_comes_from_ram_as_it_would_from_disk(asked, episode, vector):
    asked.put(episode(7, id="id-7", vector=vector(7), metadata={"b": [1], "a": None}, sources=("id-0",)))
    first = asked.recall("acme", vector(7), k=1)[0]
    asked._indexes.recent.clear()
    read = asked.recall("acme", vector(7), k=1)[0]
    assert (first.id, first) == ("id-7", read)
    assert msgspec.json.encode(first.episode) == msgspec.json.encode(read.episode)


def test_what_was_stored_and_is_gone_before_it_was_asked_for_is_gone_from_ram(asked, episode, vector):
    asked.put(episode(7, id="id-7", vector=vector(7)))
    asked.erase_episodes("acme", ["id-7"], reason="test")
    gc.collect()
    assert "id-7" not in {each.episode.id for each in gc.get_objects() if type(each) is Stored and each.episode}


def stored(number, text="x"):
    return Stored("acme", number, 1.0, 0, text, "a", np.ones(4, np.float16), raw(text).episode, "{}")


def test_of_what_nobody_asked_for_the_newest_are_kept():
    recent = Recent()
    recent.add([stored(number) for number in range(NEWEST + 2)])
    recent.add([stored(5_000, "x" * (LARGE + 1))])
    assert set(recent.get(range(5_001))) == set(range(2, NEWEST + 2))
    recent.add([stored(number) for number in range(6_000, 6_000 + 2 * NEWEST)])
    assert set(recent.get(range(NEWEST + 2))) == set(range(2, NEWEST + 2))
