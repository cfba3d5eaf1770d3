"""WebSocket frames past the library's parser and writer, and past its queue, which take a third of the time of a push:
a frame that comes whole is a message at once, and a message leaves as one frame. The library does all else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from websockets.asyncio.connection import Connection
from websockets.frames import Frame, Opcode, apply_mask  # type: ignore[attr-defined]  # in C where it was built
from websockets.protocol import State

if TYPE_CHECKING:
    from websockets.protocol import Event

BytesLike = bytes | bytearray | memoryview
MESSAGE = (Opcode.TEXT, Opcode.BINARY)
WHOLE = (0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY)
"""How a frame begins that is a whole message."""


class QuickConnection(Connection):
    """A connection that hands on a message as soon as it is there, without a task that is woken for it.

    Attributes:
        masked: Whether what arrives is masked, as all is that a client sends.
    """

    masked = False
    _aligned = True
    _missing = 0

    def takes(self, size: int) -> bool:
        """Whether a message of so many bytes can be taken now; if not, it waits for `recv`."""
        raise NotImplementedError

    def take(self, data: BytesLike) -> None:
        """Have a message."""
        raise NotImplementedError

    def leave(self) -> None:
        """Know that a message waits for `recv`."""

    def data_received(self, data: bytes) -> None:
        """Take the messages that come whole, and give all else to the library."""
        if self.protocol.state is not State.OPEN:
            # What comes with the handshake may be the beginning of a frame.
            self._aligned = data.find(b"\r\n\r\n") == len(data) - 4
            super().data_received(data)
            return
        start = 0
        while start < len(data) and self._aligned and self.protocol.state is State.OPEN:
            start = self._take_frame(data, start)
        if start < len(data):
            super().data_received(data[start:])

    def _take_frame(self, data: bytes, start: int) -> int:
        """Deal with the frame that begins at `start`, or with the rest of one; returns where the next begins."""
        if not self._missing:
            size, body = data[start + 1] & 0x7F if len(data) - start > 1 else 0, start + 2
            if size > 125:
                body += 2 if size == 126 else 8
                size = int.from_bytes(data[start + 2 : body])
            if self.masked:
                body += 4
            end = body + size
            if body > len(data) or (data[start + 1] > 127) is not self.masked:
                # From now on the library's parser alone knows where a frame begins.
                self._aligned = False
                return start
            if size and end <= len(data) and data[start] in WHOLE and self.takes(size):
                self.take(apply_mask(data[body:end], data[body - 4 : body]) if self.masked else data[body:end])
                return end
            self._missing = end - start
        end = min(len(data), start + self._missing)
        self._missing -= end - start
        super().data_received(data[start:end])
        return end

    def process_event(self, event: Event) -> None:
        """Process one incoming frame that went through the library's parser."""
        if isinstance(event, Frame) and event.opcode in MESSAGE:
            if event.fin and self.takes(len(event.data)):
                self.take(event.data)
                return
            self.leave()
        super().process_event(event)

    def send_now(self, data: bytes, *, text: bool) -> None:
        """Send a message, unless the connection is about to end; how much waits to be sent is the caller's business.

        The order of calls is the order on the wire, and a cancelled call can not stop half-way.
        """
        if self.protocol.state is not State.OPEN or self.transport.is_closing():
            return
        size, mask = len(data), 0 if self.masked else 0x80  # who gets masked messages sends others
        if size < 126:
            head = bytes((WHOLE[not text], mask | size))
        elif size < 1 << 16:
            head = bytes((WHOLE[not text], mask | 126)) + size.to_bytes(2)
        else:
            head = bytes((WHOLE[not text], mask | 127)) + size.to_bytes(8)
        if mask:
            key = os.urandom(4)
            head, data = head + key, apply_mask(data, key)
        self.transport.write(head + data)
