"""The wire as data: nothing but InvalidRequest comes of bytes from anyone, and what is written is read back."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab.episode import Episode, Memory
from fedlab.errors import IdConflict, InvalidEpisode, InvalidRequest, InvalidVector
from fedlab.net import HubConnection
from fedlab.net.pages import to_frame, to_page
from fedlab.net.protocol import JSON, METHODS, MSGPACK, Answer, Fault, Format, Params, Put, Recall, Request
from fedlab.recall import Similarity

both = pytest.mark.parametrize("form", [MSGPACK, JSON], ids=["msgpack", "json"])
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
vectors = st.lists(st.floats(-100, 100, width=16).filter(bool), min_size=1, max_size=8)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    return Episode(
        tenant_id="t",
        agent_id="a",
        task=draw(texts.filter(str.strip)),
        input=draw(texts),
        output=draw(texts),
        reward=draw(st.floats(allow_nan=False, allow_infinity=False)),
        vector=draw(st.none() | vectors),
        metadata=draw(st.dictionaries(texts, plain, max_size=3)),
        created_at=draw(st.none() | st.integers(0, 10**12)),
    )


def decode(form: Format[Any], data: bytes) -> Any:
    number, method, raw = form.decode_request(data)
    return number, method, form.decode_params(method, raw) if method in METHODS else raw


@both
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_an_invalid_request_and_nothing_else(form: Format[Any], data: bytes):
    for read in (lambda: decode(form, data), lambda: form.decode_answer(data)):
        try:
            read()
        except InvalidRequest:
            pass


@both
@given(st.sampled_from(sorted(METHODS)), plain)
def test_arbitrary_params_are_an_invalid_request_and_nothing_else(form: Format[Any], method: str, params: Any):
    try:
        decode(form, form.encode(Request(1, method, params)))
    except InvalidRequest:
        pass


@both
@given(episodes(), st.data())
def test_a_truncated_message_is_an_invalid_request(form: Format[Any], episode: Episode, data: st.DataObject):
    whole = form.encode(Request(1, "put", Put(episodes=[episode])))
    with pytest.raises(InvalidRequest):
        decode(form, whole[: data.draw(st.integers(0, len(whole) - 1))])


@both
@given(st.lists(episodes(), max_size=3))
def test_episodes_are_read_back_as_they_were_written(form: Format[Any], batch: list[Episode]):
    number, method, params = decode(form, form.encode(Request(7, "put", Put(episodes=batch))))
    assert (number, method, params.episodes) == (7, "put", batch)
    memories = [Memory(episode, 0.5, 0.25) for episode in batch]
    _, raw, fault, more = form.decode_answer(form.encode(Answer(7, memories)))
    assert (form.decode_result("recall", raw), fault, more) == (memories, None, False)


@both
def test_vectors_travel_as_float16_and_may_come_as_numbers(form: Format[Any]):
    query = Recall(tenant_id="t", vector=np.array([0.5, -1.0], dtype=np.float16), policy=Similarity(2))
    _, _, params = decode(form, form.encode(Request(1, "recall", query)))
    assert params.vector.tolist() == [0.5, -1.0]
    assert params.policy == Similarity(2)
    _, _, params = decode(form, form.encode(Request(1, "recall", {"tenant_id": "t", "vector": [1, 0.5]})))
    assert params.vector.tolist() == [1.0, 0.5]


@both
@pytest.mark.parametrize(
    "vector",
    [["1", "2"], [True], [[1.0], [2.0]], "not base64!", b"odd", {"a": 1}, 7, [1e9] * 3, [float("nan")], [0, 0]],
)
def test_what_is_no_vector_is_named(form: Format[Any], vector: Any):
    values = {"tenant_id": "t", "agent_id": "a", "task": "x", "input": "", "output": "", "reward": 1, "vector": vector}
    if vector == [float("nan")] and form is JSON:
        pytest.skip("JSON has no NaN")
    with pytest.raises((InvalidEpisode, InvalidVector)):
        decode(form, form.encode(Request(1, "put", {"episodes": [values]})))


@both
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reward": "0.9"}, "reward"),
        ({"reward": None}, "reward"),
        ({"reward": True}, "reward"),
        ({"task": ""}, "task"),
        ({"task": 7}, "task"),
        ({"tenant_id": "a/b"}, "tenant_id"),
        ({"tenant_id": ".."}, "tenant_id"),
        ({"agent_id": "a" * 10_000}, "agent_id"),
        ({"input": "nul \0"}, "input"),
        ({"metadata": [1]}, "metadata"),
        ({"session_id": "t/other"}, "session_id"),
        ({"created_at": -1}, "created_at"),
        ({"output": ...}, "output"),
        ({"output": "x" * 5_000_000}, "output"),
    ],
)
def test_a_bad_episode_is_an_invalid_episode_that_names_the_field(
    form: Format[Any], change: dict[str, Any], field: str
):
    values = {"tenant_id": "t", "agent_id": "a", "task": "x", "input": "i", "output": "o", "reward": 1.0} | change
    values = {name: value for name, value in values.items() if value is not ...}
    with pytest.raises(InvalidEpisode) as error:
        decode(form, form.encode(Request(1, "put", {"episodes": [values]})))
    assert error.value.details["field"] == field
    assert len(error.value.message) < 1_000


def test_deeply_nested_messages_are_refused():
    for data in (b'{"id":1,"method":"info","params":' + b"[" * 100_000, b"\x91" * 100_000):
        for form in (MSGPACK, JSON):
            with pytest.raises(InvalidRequest):
                decode(form, data)


@both
def test_an_error_arrives_as_the_exception_it_was(form: Format[Any]):
    error = IdConflict("taken \ud800", ids=["a"], forgotten=True, unsendable=object())
    _, _, fault, _ = form.decode_answer(form.encode(Answer(1, fault=Fault.of(error))))
    assert fault is not None
    back = fault.to_error()
    assert isinstance(back, IdConflict)
    assert (back.ids, back.forgotten, "taken" in back.message) == (["a"], True, True)
    assert "unsendable" not in back.details
    assert Fault("a_code_of_the_future", "?", {"self": 1, "message": 2}).to_error().message == "?"


@both
def test_a_frame_keeps_its_types_also_where_it_is_empty(form: Format[Any]):
    frame = pl.DataFrame({"n": [1, None], "x": [0.5, 2.0], "s": ["a", None], "b": [True, False]})
    frame = frame.with_columns(pl.Series("t", [0, None], pl.Int64).cast(pl.Datetime("ms", "UTC")))
    for each in (frame, frame.clear()):
        _, raw, _, _ = form.decode_answer(form.encode(Answer(1, to_page(each))))
        back = to_frame([form.decode_result("episodes", raw)])
        assert back.equals(each)
        assert back.schema == each.schema


def test_the_methods_are_those_of_the_interface():
    public = {name for name in dir(HubConnection) if not name.startswith("_")}
    made_of_others = {"subscribe", "begin_life", "export_tenant", "import_tenant", "recall_many", "recall_each"}
    assert set(METHODS) == public - made_of_others - {"call", "close", "url"}
    assert all(issubclass(method.params, Params) for method in METHODS.values())
    assert all(method.role != "observer" for method in METHODS.values() if method.writes)


def test_a_message_that_can_not_be_written_says_so():
    with pytest.raises(InvalidRequest, match="sent"):
        MSGPACK.encode(Request(1, "recall", Recall(tenant_id="\ud800")))
    with pytest.raises(InvalidRequest, match="sent"):
        MSGPACK.encode(Request(1, "recall", msgspec.structs.replace(Recall(tenant_id="t"), task=object())))  # type: ignore[arg-type]
