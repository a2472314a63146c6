"""The websocket that a session sends over."""

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

MAX_REASON_BYTES = 123
"""What a websocket's close frame has room for (RFC 6455, 5.5)."""
MAX_BUFFERED_CHARACTERS = 4096
"""A shorter text is sent without waiting for the peer to read, if no earlier one waits for that."""
TEXT_FRAME, EXTENDED_LENGTH = 0x81, 126
"""The first byte of the frame of a whole text, and the second if the length has two bytes of its own."""


@dataclass(eq=False, repr=False, kw_only=True)
class _WebsocketTransport:
    """Sends texts over a websocket: short ones together, once the event loop has its next turn.

    To write takes longer than all else that is done about a message. A peer that reads nothing for
    `reading_seconds` is disconnected.
    """

    request: web.Request
    websocket: web.WebSocketResponse
    reading_seconds: float
    frames: list[bytes] = field(default_factory=list)

    @pyscript_compile
    async def send(self, text: str) -> None:
        """Send a text; raise ConnectionError."""
        transport = self.open_transport()
        is_short = len(text) < MAX_BUFFERED_CHARACTERS
        if is_short and transport is not None and not transport.get_write_buffer_size():
            if not self.frames:
                asyncio.get_running_loop().call_soon(self.flush)
            self.frames.append(text_frame(text.encode()))
            return
        self.flush()
        try:
            async with asyncio.timeout(self.reading_seconds):
                await self.websocket.send_str(text)
        except TimeoutError:
            if self.request.transport:
                self.request.transport.abort()
            raise ConnectionResetError(f"it read nothing for {self.reading_seconds:g} s") from None

    @pyscript_compile
    async def close(self, code: int, reason: str) -> None:
        """Close the websocket, with a status code of RFC 6455 and a reason, which is cut."""
        self.flush()
        cut = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
        await self.websocket.close(code=code, message=cut)

    @pyscript_compile
    def flush(self) -> None:
        """Write the frames that wait, unless the connection is over."""
        transport = self.open_transport()
        if self.frames and transport is not None:
            transport.write(b"".join(self.frames))
        self.frames.clear()

    @pyscript_compile
    def open_transport(self) -> asyncio.Transport | None:
        """Return the transport of the connection, or None once it is closing."""
        transport = self.request.transport
        is_closed = transport is None or transport.is_closing() or self.websocket.closed
        return None if is_closed else transport


WebsocketTransport = _WebsocketTransport


@pyscript_compile
def text_frame(payload: bytes) -> bytes:
    """Return the unmasked frame of a text of less than 65,536 bytes (RFC 6455, 5.2)."""
    length = len(payload)
    if length < EXTENDED_LENGTH:
        return bytes((TEXT_FRAME, length)) + payload
    return bytes((TEXT_FRAME, EXTENDED_LENGTH)) + length.to_bytes(2) + payload
