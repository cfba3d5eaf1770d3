"""Whoever speaks nonsense gets a named error; nothing is stored, and others do not notice."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import fedlab
from fedlab import Episode, Hub, QuotaExceeded
from fedlab.net import HubServer, Settings
from fedlab.net.protocol import JSON, MSGPACK, Request
from fedlab.net.session import WRITE_LIMIT

from .conftest import Raw, until

Make = Callable[..., Episode]
GOOD: dict[str, Any] = {"tenant_id": "t", "agent_id": "a", "task": "x", "input": "i", "output": "o", "reward": 1.0}


@pytest.fixture(autouse=True)
async def nothing_happens_to_others(server: HubServer, hub: Hub, episode: Make) -> AsyncIterator[None]:
    hub.put([episode(n) for n in range(5)])
    before = hub.info().seq
    yield
    async with fedlab.connect(server.url) as other:
        assert len(await other.recall("acme", "x", k=5)) == 5
    assert set(hub.changes(before)["actor"]) <= {"local"}  # what the test itself put, past the wire
    assert hub.verify().ok


async def test_random_and_truncated_frames_get_an_error_frame(raw: Raw):
    whole = MSGPACK.encode(Request(1, "put", {"episodes": [GOOD]}))
    for data in (b"", b"\xff" * 100, os.urandom(2_000), whole[: len(whole) // 2], b"\x91" * 100_000, "text", "\x00"):
        await raw.send(data)
        assert (await raw.answer())["fault"]["code"] == "invalid_request"
    assert "result" in await raw.ask("info", {})


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "invalid_request"),
        ([1, 2], "invalid_request"),
        (None, "invalid_request"),
        ("x", "invalid_request"),
        ({"episodes": 7}, "invalid_request"),
        ({"episodes": [7]}, "invalid_episode"),
        ({"episodes": [{}]}, "invalid_episode"),
        ({"episodes": [GOOD], "extra": 1}, "invalid_request"),
        ({"episodes": [GOOD | {"metdata": {}}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"reward": "0.9"}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"reward": float("nan")}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"reward": float("inf")}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"reward": 10**400}]}, "invalid_request"),
        ({"episodes": [GOOD | {"task": ""}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"task": "  "}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"output": "x" * 5 * 2**20}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"vector": [1.0] * 385}]}, "invalid_vector"),
        ({"episodes": [GOOD | {"vector": [0.0] * 384}]}, "invalid_episode"),
        ({"episodes": [GOOD | {"tenant_id": "../x"}]}, "invalid_episode"),
        ({"episodes": [GOOD, GOOD | {"agent_id": "nul\0"}]}, "invalid_episode"),
    ],
)
async def test_a_bad_push_is_named_and_stores_nothing(raw: Raw, params: Any, code: str):
    try:
        data = MSGPACK.encode(Request(5, "put", params))
    except fedlab.InvalidRequest:
        pytest.skip("this can not be written at all")
    await raw.send(data)
    answer = await raw.answer()
    assert answer["id"] == 5
    assert answer["fault"]["code"] == code
    assert "Traceback" not in str(answer)


PUSH = '{"id":7,"method":"put","params":{"episodes":[{"tenant_id":"t","agent_id":"a","task":"x","input":%s,"output":"o","reward":%s}]}}'


@pytest.mark.parametrize(
    ("message", "number", "code", "said"),
    [
        (PUSH % ('"i"', "NaN"), 7, "invalid_episode", "nan is no number of JSON - at `$.episodes[0].reward`"),
        (PUSH % ('"i"', "-Infinity"), 7, "invalid_episode", "-inf is no number of JSON - at `$.episodes[0].reward`"),
        (PUSH % ('"i"', "1e999"), 7, "invalid_episode", "$.episodes[0].reward"),
        (
            PUSH % (r'"\ud800"', "1"),
            7,
            "invalid_episode",
            "lone surrogate: it is no valid text - at `$.episodes[0].input`",
        ),
        (PUSH % (r'"\udc00 x"', "1"), 7, "invalid_episode", "lone surrogate"),
        (
            '{"method":"recall","params":{"tenant_id":"t","text":"\\ud800","id":9},"id":8}',
            8,
            "invalid_request",
            "$.text",
        ),
        ('{"method":"recall","params":{"tenant_id":"t","k":NaN},"id":9}', 9, "invalid_request", "$.k"),
        (r'{"id":3,"method":"\ud800","params":{}}', 3, "invalid_request", "no request"),
        ('{"id":4,"method":"put","params":{"episodes":[', 4, "invalid_request", "no request"),
        ('{"id":5,"method":"put","params":' + "[" * 50_000, 5, "invalid_request", "no request"),
        ('{"id":NaN,"method":"info","params":{}}', None, "invalid_request", "no request"),
        ('{"id":-1,"method":"info","params":{}}', None, "invalid_request", "no request"),
        ('{"id":true,"method":"info","params":{}}', None, "invalid_request", "no request"),
        ('{"method":"info","params":{"id":6', None, "invalid_request", "no request"),
        ('[{"id":6,"method":"info"}]', None, "invalid_request", "no request"),
    ],
)
async def test_what_is_no_json_is_named_and_answered_under_its_id(
    json_raw: Raw, message: str, number: int | None, code: str, said: str
):
    await json_raw.send(message)
    answer = await json_raw.answer()
    assert answer["id"] == number
    assert answer["fault"]["code"] == code
    assert said in answer["fault"]["message"]


async def test_bytes_that_are_no_text_are_answered_under_their_id(json_raw: Raw):
    for wrong in (b"\xff", b"\xed\xa0\x80"):
        await json_raw.socket.send(PUSH.encode() % (b'"' + wrong + b'"', b"1"), text=True)
        answer = await json_raw.answer()
        assert (answer["id"], answer["fault"]["code"]) == (7, "invalid_request")


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("recall", {"tenant_id": "acme", "query": "x"}, "the fields are tenant_id, text, vector, k, policy"),
        ("put", {"episodes": [GOOD | {"metdata": {}}]}, "expires_at"),
        ("info", {"tenant_id": "acme"}, "the fields are none"),
    ],
)
async def test_a_field_that_does_not_exist_is_refused_with_those_that_do(raw: Raw, method: str, params: Any, says: str):
    await raw.send(MSGPACK.encode(Request(6, method, params)))
    assert says in (await raw.answer())["fault"]["message"]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("no_such_method", {}),
        ("__init__", {}),
        ("close", {}),
        ("recall", {"tenant_id": "acme", "k": "ten"}),
        ("recall", {"tenant_id": "acme", "k": -1, "text": "x"}),
        ("recall", {"tenant_id": "acme", "k": 2**70, "text": "x"}),
        ("recall", {"tenant_id": "acme", "text": "x", "vector": [1.0] * 384}),
        ("recall", {"tenant_id": "acme"}),
        ("recall", {"tenant_id": "acme", "text": "x", "policy": {"similrity": 1}}),
        ("recall", {"tenant_id": "acme", "text": "x", "policy": {"similarity": "much"}}),
        ("recall", {"tenant_id": "acme", "text": "x", "policy": {}}),
        ("episodes", {"after": -1}),
        ("episodes", {"limit": -1}),
        ("watch", {"after": 0, "wait": 1e9}),
        ("spawn_agent", {"tenant_id": "acme", "agent_id": "a", "lifetime": -1}),
        ("spawn_agent", {"tenant_id": "acme", "agent_id": "a" * 10_000, "lifetime": 9}),
        ("sync_agent", {"tenant_id": "acme", "agent_id": "a", "after": 0, "ending": "eaten"}),
        ("sync_agent", {"tenant_id": "acme", "agent_id": "a", "after": 0, "episodes": [GOOD]}),
        ("forget", {"tenant_id": "acme", "ids": "abc", "reason": "r"}),
        ("forget", {"tenant_id": "acme", "ids": []}),
        ("set_retention", {"tenant_id": "acme", "policy": "{}"}),
        ("set_retention", {"tenant_id": "acme", "policy": "["}),
        ("set_retention", {"tenant_id": "acme", "policy": "[" * 50_000}),
        ("embed", {"texts": [1]}),
    ],
)
async def test_a_bad_call_is_an_invalid_request(raw: Raw, method: str, params: Any):
    data = (
        JSON.encode(Request(6, method, params))
        if params.get("k") == 2**70
        else MSGPACK.encode(Request(6, method, params))
    )
    await raw.send(data)
    answer = await raw.answer()
    if params.get("k") != 2**70:  # JSON on a MessagePack connection: that has no id at all
        assert answer["id"] == 6
    assert answer["fault"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    "text",
    [
        '{"id":1,"method":"info","params":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"id":1,"method":"info","params":' + '{"a":' * 50_000,
        '{"id":1',
        '{"id":-1,"method":"info"}',
        '{"id":"1","method":"info"}',
        '{"id":1e400,"method":"info"}',
        '{"id":99999999999999999999999,"method":"info"}',
        "null",
        "[]",
        '"\\u0000"',
        "NaN",
    ],
)
async def test_bad_json_gets_an_error_frame(json_raw: Raw, text: str):
    await json_raw.send(text)
    assert (await json_raw.answer())["fault"]["code"] == "invalid_request"
    await json_raw.send('{"id":2,"method":"info"}')
    assert (await json_raw.answer())["id"] == 2


async def test_a_message_over_the_limit_is_a_named_error_for_its_sender(hub: Hub, episode: Make):
    # The client thinks that 16 MiB fit; the server says less and closes the connection with 1009.
    async with (
        fedlab.serve(hub, port=0, settings=Settings(max_message=50_000)) as server,
        fedlab.connect(server.url) as connection,
    ):
        with pytest.raises(QuotaExceeded, match="max_message"):
            await connection.put(episode(output="x" * 100_000))
        assert len(await connection.recall("acme", "x")) == 5


async def test_a_push_too_large_for_one_message_is_refused_before_it_is_sent(server: HubServer, episode: Make):
    async with fedlab.connect(server.url) as hub:
        with pytest.raises(fedlab.InvalidRequest, match="max_message"):
            await hub.put([episode(n, output="x" * 900_000) for n in range(20)])
        await hub.info()


async def test_a_client_that_sends_without_waiting_is_slowed_down_and_answered(raw: Raw, server: HubServer, hub: Hub):
    count = 3_000
    most = 0
    async with asyncio.TaskGroup() as group:

        async def flood() -> None:
            for number in range(count):
                await raw.send(
                    MSGPACK.encode(Request(number, "recall", {"tenant_id": "acme", "text": f"{number % 7}"}))
                )

        group.create_task(flood())
        seen = set()
        while len(seen) < count:
            seen.add((await raw.answer())["id"])
            most = max(most, *(session.under_way for session in server._sessions))
    assert most <= server.settings.max_requests


async def test_a_client_that_never_reads_is_bounded_and_cut_off(hub: Hub, token: Any, episode: Make, vector: Any):
    hub.put([episode(n, tenant_id="big", output="x" * 200_000, vector=vector(n)) for n in range(50)])
    limits = Settings(ping_interval=0.2, ping_timeout=0.5)
    async with fedlab.serve(hub, port=0, settings=limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: fedlab.v1.msgpack\r\n"
            f"Authorization: Bearer {token(None, 'admin')}\r\n\r\n".encode()
        )
        assert b"101" in await reader.readline()
        await until(lambda: server._sessions)
        [session] = server._sessions
        largest = 0
        message = MSGPACK.encode(Request(1, "recall", {"tenant_id": "big", "vector": vector(0).tolist(), "k": 50}))
        frame = b"\x82\xfe" + len(message).to_bytes(2, "big") + b"\0\0\0\0" + message  # masked with zeros
        writer.transport.set_write_buffer_limits(high=1)
        deadline = asyncio.get_running_loop().time() + 20
        while session in server._sessions:
            assert asyncio.get_running_loop().time() < deadline, "it was never cut off"
            largest = max(largest, session.socket.transport.get_write_buffer_size())
            if not writer.transport.is_closing() and writer.transport.get_write_buffer_size() < 1 << 20:
                writer.write(frame)
            await asyncio.sleep(0.005)
        assert largest <= WRITE_LIMIT + limits.max_message  # one answer more than may wait
        writer.close()
    hub.forget("big", hub.episodes("big")["id"].to_list(), reason="test")


async def test_an_answer_larger_than_a_message_is_an_error_that_says_what_to_do(hub: Hub, episode: Make):
    hub.put([episode(n, tenant_id="big", output="x" * 10_000) for n in range(50)])
    async with (
        fedlab.serve(hub, port=0, settings=Settings(max_message=100_000)) as server,
        fedlab.connect(server.url) as connection,
    ):
        with pytest.raises(QuotaExceeded, match="max_message"):
            await connection.recall("big", "x", k=50)
        assert len(await connection.recall("big", "x", k=5)) == 5
        assert (await connection.episodes("big")).height == 50
        delta = await connection.sync_agent("big", "reader", after=0)
        assert len(delta.stored) + delta.skipped == 50
        assert 0 < len(delta.stored) < 10
