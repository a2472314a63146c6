"""A proxy between Home Assistant and FlexMeasures, with the faults of real proxies and networks."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Self

from tests.parts.home_assistant import free_port

SLOW_BYTES_PER_SECOND = 20
HUGE_BYTES = 50_000_000
DEPTH = 100_000
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
LOGIN_PAGE = b"<!DOCTYPE html><html><body><h1>Guest network</h1>Please accept our terms.</body></html>"


@dataclass(kw_only=True)
class Exchange:
    """A request, and the means to answer it; `number` counts requests since the fault began."""

    method: str
    path: str
    request: bytes
    writer: asyncio.StreamWriter
    upstream_port: int
    number: int
    earlier: dict[str, bytes] = field(repr=False)

    async def forward(self) -> bytes:
        """Return FlexMeasures' reply."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            writer.write(self.request)
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()

    async def send(self, reply: bytes) -> None:
        """Send a part of a reply."""
        self.writer.write(reply)
        await self.writer.drain()

    async def say(
        self, status: str, body: bytes = b"", kind: str = "application/json", **headers: str
    ) -> None:
        """Send a reply of our own."""
        lines = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"} | headers
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
        await self.send(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


Answer = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: the answer to every request, or None if connections are refused.

    `asks_to_wait` is whether the reply says how long to wait before the next request.
    """

    name: str
    answer: Answer | None
    asks_to_wait: bool = False


async def passed_on(exchange: Exchange) -> None:
    """Answer as FlexMeasures does."""
    try:
        reply = await exchange.forward()
    except OSError:
        reply = b""
    if reply:
        exchange.earlier[f"{exchange.method} {exchange.path}"] = reply
        await exchange.send(reply)
    else:
        await exchange.say("502 Bad Gateway", b"<h1>Bad Gateway</h1>", "text/html")


async def reset(exchange: Exchange) -> None:
    """Break the connection in the middle of the reply."""
    reply = await exchange.forward()
    await exchange.send(reply[: len(reply) // 2])
    break_off(exchange.writer)


def break_off(writer: asyncio.StreamWriter) -> None:
    """Reset a connection."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    writer.transport.abort()


async def slow(exchange: Exchange) -> None:
    """Answer a few bytes at a time."""
    for byte in await exchange.forward():
        await exchange.send(bytes([byte]))
        await asyncio.sleep(1 / SLOW_BYTES_PER_SECOND)


async def hanging(_exchange: Exchange) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def refused_once(exchange: Exchange) -> None:
    """Reject a token once, as when it has expired."""
    if exchange.number == 0:
        body = {
            "message": "You could not be properly authenticated.",
            "status": "UNAUTHORIZED",
        }
        await exchange.say("401 UNAUTHORIZED", json.dumps(body).encode())
    else:
        await passed_on(exchange)


async def cut(exchange: Exchange) -> None:
    """Send half of the JSON as a complete reply."""
    head, _, body = (await exchange.forward()).partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].decode().split(" ", 1)[1]
    await exchange.say(status, body[: len(body) // 2])


async def huge(exchange: Exchange) -> None:
    """Answer 200 with a list of 50 MB."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {HUGE_BYTES}\r\n\r\n"
    await exchange.send(head.encode() + b"[0")
    part = b",0" * 50_000
    for _ in range(HUGE_BYTES // len(part)):
        await exchange.send(part)


async def longer_than_it_is(exchange: Exchange) -> None:
    """Announce more bytes than are sent."""
    await exchange.say("200 OK", b"{}", Content_Length="1000")


async def shorter_than_it_is(exchange: Exchange) -> None:
    """Announce fewer bytes than are sent."""
    head, _, body = (await exchange.forward()).partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].decode().split(" ", 1)[1]
    await exchange.say(status, body, Content_Length=str(len(body) // 2))


async def mixed_up(exchange: Exchange) -> None:
    """Answer with an earlier reply to another request."""
    own = f"{exchange.method} {exchange.path}"
    reply = await exchange.forward()
    other = next((earlier for name, earlier in exchange.earlier.items() if name != own), None)
    exchange.earlier[own] = reply
    await exchange.send(other or b"")


def saying(status: str, body: bytes = b"", kind: str = "application/json", **headers: str) -> Answer:
    """Return an answer that is the same for all requests."""

    async def answer(exchange: Exchange) -> None:
        await exchange.say(status, body, kind, **headers)

    return answer


def redirecting(to: Callable[[Exchange], str]) -> Answer:
    """Return an answer that redirects all requests."""

    async def answer(exchange: Exchange) -> None:
        await exchange.say("302 Found", LOGIN_PAGE, "text/html", Location=to(exchange))

    return answer


def _busy(text: str) -> Answer:
    body = b'{"message": "Too many requests.", "status": 429}'
    return saying("429 TOO MANY REQUESTS", body, Retry_After=text)


def _statuses() -> list[Fault]:
    page = b"<html><body><h1>The server cannot answer now</h1></body></html>"
    statuses = (
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
    )
    return [
        Fault(name=f"{status[:3]} with a page", answer=saying(status, page, "text/html"))
        for status in statuses
    ]


def _waits() -> list[Fault]:
    tomorrow = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    texts = {
        "5": "5",
        "400 digits": "9" * 400,
        "-1": "-1",
        "a date": tomorrow,
        "86400": "86400",
        "soon": "soon",
    }
    return [
        Fault(name=f"429, Retry-After: {name}", answer=_busy(text), asks_to_wait=name not in ("-1", "soon"))
        for name, text in texts.items()
    ]


def _foreign() -> list[Fault]:
    bodies = {
        "`[]`": b"[]",
        "`null`": b"null",
        "`{}`": b"{}",
        "a text": b'"FlexMeasures"',
        "other JSON": b'{"status": "ok", "uptime": 12, "message": "welcome"}',
    }
    faults = [Fault(name=f"200 with {name}", answer=saying("200 OK", body)) for name, body in bodies.items()]
    page = Fault(name="200 with a login page", answer=saying("200 OK", LOGIN_PAGE, "text/html"))
    deep = Fault(name=f"200 nested {DEPTH:,} deep", answer=saying("200 OK", b"[" * DEPTH + b"]" * DEPTH))
    return [*faults, page, deep]


def _redirects() -> list[Fault]:
    return [
        Fault(name="redirects to itself", answer=redirecting(lambda exchange: exchange.path)),
        Fault(
            name="redirects to a port without a server", answer=redirecting(lambda _: "http://127.0.0.1:9/")
        ),
    ]


FAULTS: tuple[Fault, ...] = (
    Fault(name="connections refused", answer=None),
    Fault(name="reset in mid-reply", answer=reset),
    Fault(name=f"slow: {SLOW_BYTES_PER_SECOND} bytes/s", answer=slow),
    Fault(name="no answer", answer=hanging),
    *_statuses(),
    Fault(name="401 once", answer=refused_once),
    *_waits(),
    Fault(name="JSON cut in half", answer=cut),
    *_foreign(),
    Fault(name="a reply of 50 MB", answer=huge),
    *_redirects(),
    Fault(name="Content-Length too large", answer=longer_than_it_is),
    Fault(name="Content-Length too small", answer=shorter_than_it_is),
    Fault(name="the reply to another request", answer=mixed_up),
)


class MisbehavingProxy:
    """A proxy to FlexMeasures on the loopback address, with a fault or without."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.port = free_port()
        self.fault: Fault | None = None
        self.requests = 0
        self.earlier: dict[str, bytes] = {}
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._refuse()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def begin(self, fault: Fault) -> None:
        """Begin a fault."""
        self.fault, self.requests = fault, 0
        if fault.answer is None:
            await self._refuse()

    async def end(self) -> None:
        """End the fault; connections that hang are left hanging."""
        self.fault = None
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._server:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")[:-2]
        lengths = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0]) if lengths else 0)
        kept = [line for line in lines if not line.lower().startswith(("connection:", "accept-encoding:"))]
        request = "\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body
        method, target, _ = lines[0].split(" ")
        fault, number = self.fault, self.requests
        self.requests += 1
        exchange = Exchange(
            method=method,
            path=target,
            request=request,
            writer=writer,
            upstream_port=self.upstream_port,
            number=number,
            earlier=self.earlier,
        )
        await (fault.answer if fault and fault.answer else passed_on)(exchange)
