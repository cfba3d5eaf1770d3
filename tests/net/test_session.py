"""However frames are cut on their way, and whatever stands between them, each message is received once and in order."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

import fedlab
from fedlab import Hub
from fedlab.net import HubServer, Settings
from fedlab.net.protocol import MSGPACK, Request
from fedlab.net.session import Connection

from .conftest import Raw

PING = Frame(Opcode.PING, b"still there?").serialize(mask=True)


def asked(number: int, size: int = 0) -> bytes:
    """A request of at least so many bytes."""
    return MSGPACK.encode(Request(number, "recall", {"tenant_id": "acme", "text": "x" * size}))


def frame(number: int, size: int = 0) -> bytes:
    return Frame(Opcode.BINARY, asked(number, size)).serialize(mask=True)


async def received(raw: Raw, count: int) -> list[int]:
    return [(await raw.answer())["id"] for _ in range(count)]


@pytest.fixture
def connection(raw: Raw, server: HubServer) -> Connection:
    """The server's end of `raw`."""
    (session,) = server._sessions
    return session.socket


@pytest.mark.parametrize("size", [0, 200, 70_000])
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6, 8, 9, 14, 40, -1])
async def test_a_message_in_two_pieces_is_one_message(raw: Raw, connection: Connection, size: int, cut: int):
    first, second = frame(1, size), frame(2, size)
    for piece in (first, second[:cut], second[cut:], frame(3, size)):
        connection.data_received(piece)
    assert sorted(await received(raw, 3)) == [1, 2, 3]


async def test_messages_in_one_piece_and_over_two_are_all_received(raw: Raw, connection: Connection):
    stream = b"".join(frame(number, 300) for number in range(1, 7))
    for piece in (stream[:1_000], stream[1_000:1_900], stream[1_900:]):
        connection.data_received(piece)
    assert sorted(await received(raw, 6)) == [1, 2, 3, 4, 5, 6]


async def test_control_frames_and_fragments_between_messages_do_no_harm(raw: Raw, connection: Connection):
    whole = asked(2)
    begun = Frame(Opcode.BINARY, whole[:9], fin=False).serialize(mask=True)
    ended = Frame(Opcode.CONT, whole[9:]).serialize(mask=True)
    for piece in (frame(1), PING, begun, PING, ended, frame(3), PING[:3], PING[3:], frame(4)):
        connection.data_received(piece)
    assert sorted(await received(raw, 4)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        Frame(Opcode.BINARY, asked(2)).serialize(mask=False),
        b"\xc2" + frame(2)[1:],
        b"\x83" + frame(2)[1:],
        Frame(Opcode.CONT, asked(2)).serialize(mask=True),
    ],
    ids=["not masked", "compressed", "of no kind", "the end of nothing"],
)
async def test_what_is_no_frame_of_a_client_ends_the_connection(raw: Raw, connection: Connection, wrong: bytes):
    connection.data_received(frame(1))
    connection.data_received(wrong)
    with pytest.raises(ConnectionClosed) as closed:
        await received(raw, 2)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1002


@pytest.mark.parametrize("size", [2_000, 70_000])
async def test_a_message_over_the_limit_is_not_received_either_way(hub: Hub, size: int):
    async with (
        fedlab.serve(hub, port=0, settings=Settings(max_message=1_024)) as server,
        fedlab.connect(server.url) as other,
    ):
        await other.info()
        (session,) = server._sessions
        session.socket.data_received(frame(1, size))
        said = session.socket.protocol.close_sent
        assert said is not None
        assert said.code == 1009
        assert session.under_way == 0


async def test_messages_in_pieces_and_many_at_once_do_not_end_the_quick_way(raw: Raw, connection: Connection):
    for piece in (frame(1, 70_000)[:300], frame(1, 70_000)[300:], b"".join(map(frame, range(2, 9))), PING, frame(9)):
        connection.data_received(piece)
        assert connection._aligned
    assert sorted(await received(raw, 9)) == [*range(1, 10)]
    connection.data_received(frame(10)[:1])  # not even its size is known
    connection.data_received(frame(10)[1:])
    assert not connection._aligned
    assert await received(raw, 1) == [10]


@pytest.mark.parametrize("size", [1, 200, 70_000])
async def test_answers_are_received_however_they_are_cut(hub: Hub, server: HubServer, episode, vector, size: int):
    hub.put([episode(n, output=str(n) * size, vector=vector(n)) for n in range(4)])
    async with fedlab.connect(server.url) as client:
        await client.info()
        socket = client._link._socket
        assert socket is not None
        whole = socket.data_received
        for cut in (1, 2, 3, 5, 9, 11, 130, 1_000):

            def in_pieces(data: bytes, cut: int = cut) -> None:
                for piece in (data[:cut], data[cut:]):
                    if piece:
                        whole(piece)

            socket.data_received = in_pieces  # type: ignore[method-assign]
            found = await asyncio.gather(*(client.recall("acme", vector(n), k=1) for n in range(4)))
            assert [each[0].output for each in found] == [str(n) * size for n in range(4)]
