from __future__ import annotations

import random
import uuid

import numpy as np
import pytest

from fedlab import Episode, InvalidEpisode, InvalidVector
from fedlab.episode import MAX_TEXT, new_id, to_vector
from fedlab.errors import InvalidRequest


def frozen(values: object) -> np.ndarray:
    """An array of the hub's own kind that the hub has not made."""
    array = np.array(values, np.float16)
    array.flags.writeable = False
    return array


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


GOOD_NAMES = ["a", "0", "acme-corp", "A.b_c-9", "a..b", "x" * 128]
BAD_NAMES = [
    "",
    " ",
    "a b",
    "a/b",
    "..",
    ".",
    "/",
    "a\0b",
    "x" * 129,
    "x" * 10_000,
    "аcme",
    "ａcme",
    "a\n",
    "-a",
    "\ud800",
    None,
    7,
    b"a",
]
BAD = [
    *[("tenant_id", name) for name in BAD_NAMES],
    *[("agent_id", name) for name in BAD_NAMES],
    *[("reward", value) for value in (float("nan"), float("inf"), -float("inf"), "0.9", None, True, 1j, 10**400, [1])],
    *[("task", value) for value in ("", "  \n\t", None, 7, b"x", "\ud800", "a\0b", "x" * (MAX_TEXT + 1), "é" * 5_000_000)],
    *[("input", value) for value in (None, {"a": 1}, "\udfff", "\0", "x" * (MAX_TEXT + 1))],
    *[("output", value) for value in (None, 7, "\ud800", "x" * 5_242_880)],
    *[("id", value) for value in (7, "a b", "a/b", "x" * 65, "\0", "é")],
    *[("session_id", value) for value in ("acme", "acme/other", "other/agent-1", 7)],
    *[("created_at", value) for value in (-1, 1.5, "0", True, 253_402_300_800_000)],
    *[("expires_at", value) for value in (-1, 1.5, "0", True)],
    *[("sources", value) for value in ("abc", [1], [""], ["a b"], ["x"] * 1_001, 5)],
    *[("metadata", value) for value in ({"x": float("nan")}, {"x": {1, 2}}, {1: 2}, {"x": "\ud800"}, [1], "{}", nested(100_000), {"x": "y" * MAX_TEXT}, {"x": [2**64]}, {"x": -(2**63) - 1}, {"x": 10**400})],
]  # fmt: skip
BAD_VECTORS = [
    [], [0.0] * 384, [float("nan")] * 384, [float("inf")] * 384, [1e9] * 384, [1e-9] * 384, [[1.0] * 384], "x" * 384,
    [None] * 384, ["1.0"] * 384, [10**400] * 384, [1j] * 384, 5, b"odd", frozen([0.0] * 384), frozen([np.nan] * 384),
    frozen([np.inf] * 384), frozen([[1.0, 2.0]] * 384),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD, ids=[f"{field}-{number}" for number, (field, _) in enumerate(BAD)])
def test_what_can_not_be_stored_is_refused_by_name(episode, field, value):
    with pytest.raises(InvalidEpisode) as caught:
        episode(**{field: value})
    assert caught.value.details["field"] == field
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("values", BAD_VECTORS, ids=range(len(BAD_VECTORS)))
def test_what_is_no_vector_is_refused(episode, values):
    with pytest.raises(InvalidVector):
        to_vector(values)
    with pytest.raises(InvalidEpisode) as caught:
        episode(vector=values)
    assert caught.value.details["field"] == "vector"


@pytest.mark.parametrize("missing", ["tenant_id", "agent_id", "task", "input", "output", "reward"])
def test_a_missing_field_is_named(episode, missing):
    fields = {"tenant_id": "a", "agent_id": "b", "task": "c", "input": "", "output": "", "reward": 0}
    del fields[missing]
    with pytest.raises(TypeError, match=missing):
        type(episode())(**fields)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_are_allowed(episode, name):
    assert episode(tenant_id=name, agent_id=name).session_id == f"{name}/{name}"


def test_a_vector_is_kept_as_the_caller_gave_it_then(episode):
    given = np.ones(384, np.float32)
    made = episode(vector=given)
    given[:] = 7
    assert made.vector.dtype == np.float16
    assert (made.vector == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        made.vector[0] = 2


def test_a_read_only_view_of_an_array_that_changes_is_copied(episode):
    base = np.ones(384, np.float16)
    view = base.view()
    view.flags.writeable = False
    made = episode(vector=view)
    base[:] = 7
    assert (made.vector == 1).all()


def test_the_dimension_is_checked_where_it_is_known():
    with pytest.raises(InvalidVector, match="385.*384"):
        to_vector([1.0] * 385, 384)
    assert to_vector(np.ones(384, ">f2").tobytes()[::-1], 384).shape == (384,)


def test_numbers_of_other_libraries_are_rewards(episode):
    assert [type(episode(reward=value).reward) for value in (1, np.float32(0.5), np.int64(2))] == [float] * 3


def test_sources_name_an_influence_once(episode):
    assert episode(sources=["b", "a", "b"]).sources == ("b", "a")


def test_an_episode_can_not_be_changed(episode):
    with pytest.raises(AttributeError):
        episode().output = "other"


def test_equal_episodes_are_equal_and_hash_alike(episode):
    one, two = episode(id="x", vector=[1.0] * 3), episode(id="x", vector=[1.0] * 3)
    assert (one, hash(one)) == (two, hash(two))
    assert one != episode(id="x", vector=[2.0] * 3)
    assert one != "x"


def test_ids_are_uuid7_in_the_order_of_time_and_repeat_with_a_seed():
    ids = [new_id(now) for now in (0, 1, 1_767_225_600_000, 2**48 - 1)]
    assert ids == sorted(ids)
    assert all(uuid.UUID(each).version == 7 for each in ids)
    assert uuid.UUID(ids[0]).variant == uuid.RFC_4122
    assert new_id(5, random.Random(1)) == new_id(5, random.Random(1)) != new_id(5, random.Random(2))
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_the_text_that_is_embedded_is_task_and_input(episode):
    assert episode(task="add", input="1 + 1").text == "add\n1 + 1"
    assert episode(task="add", input="").text == "add"


def test_an_error_about_a_tenant_is_an_invalid_request(episode):
    with pytest.raises(InvalidRequest, match="tenant_id"):
        episode(tenant_id="../etc")


def test_text_of_numpy_is_text():
    episode = Episode(
        tenant_id="t", agent_id="a", task=np.str_("t"), input=np.str_("i"), output=np.str_("o"), reward=np.float32(0.5)
    )
    assert [type(each) for each in (episode.task, episode.input, episode.output, episode.reward)] == [
        str,
        str,
        str,
        float,
    ]
