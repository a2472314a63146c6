"""How many messages per second Home Assistant confirms over S2, and how soon: `make bench` runs it.

"Ours" is a real Home Assistant process with real pyscript and the scripts, "bare" an aiohttp server that
parses every message with s2-python and confirms it. Another process sends both the same FRBC.StorageStatus
messages, with different ids and changing fill levels: first with many in flight, to measure the throughput,
then one at a time, to measure the round trip.
"""

import argparse
import asyncio
import functools
import gc
import json
import multiprocessing
import platform
import signal
import socket
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self
from uuid import NAMESPACE_URL, uuid4, uuid5

from aiohttp import web
from rich.table import Table
from s2python.common import ReceptionStatus, ReceptionStatusValues
from s2python.s2_parser import S2Parser

from tests.demo_terminal import console, step
from tests.parts import pyscript_source
from tests.parts.home_assistant import HomeAssistant, free_port, install
from tests.parts.s2_messages import Message, example

PATH = "/s2"
WINDOW = 64
"""Messages in flight while the throughput is measured."""
ROUND_TRIP_SHARE = 0.6
"""The time that round trips are measured, as a fraction of that for the throughput."""
MAX_PER_SECOND = 50_000
"""The number of messages built beforehand per second; a server that confirms more is measured for less."""
NEIGHBOURS = 20
HEAD_START_SECONDS = 0.5
"""The time for the neighbours to connect, before the flood begins."""
WARM_UP_SECONDS = 1
SPAWN = multiprocessing.get_context("spawn")
UPGRADE = (
    f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
FRBC = "FILL_RATE_BASED_CONTROL"
TEXT, PING, PONG, MASKED = 0x81, 0x89, 0x8A, 0x80
"""The first bytes of websocket frames, and the bit of a masked payload."""
type Framed = tuple[bytes, bytes]
"""A message's id, and its frame."""


@dataclass(frozen=True)
class Measured:
    """Confirmed messages per second, each round trip in ms, and the sender's share of a core."""

    throughput: float
    round_trips: list[float]
    sender: float

    @property
    def p50(self) -> float:
        """Return the median round trip."""
        return statistics.median(self.round_trips)

    @property
    def p99(self) -> float:
        """Return the round trip that one in a hundred exceeds."""
        return statistics.quantiles(self.round_trips, n=100, method="inclusive")[98]


class Sender:
    """A websocket client that needs little processor time: it blocks, and sends prepared frames."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self.socket.sendall(f"{UPGRADE}{authorization}\r\n".encode())
        self.unread = b""
        while b"\r\n\r\n" not in self.unread:
            self.read()
        answer, _, self.unread = self.unread.partition(b"\r\n\r\n")
        if b" 101 " not in answer:
            raise ConnectionError(answer.decode())
        self.texts: deque[bytes] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self) -> None:
        """Read the bytes that have arrived, or wait for some."""
        if not (received := self.socket.recv(2**16)):
            raise ConnectionError("The connection was closed")
        self.unread += received

    def receive(self) -> None:
        """Wait until there are texts."""
        self.take_frames()
        while not self.texts:
            self.read()
            self.take_frames()

    def take_frames(self) -> None:
        """Take the frames that have arrived: keep texts, and answer pings."""
        at, unread = 0, self.unread
        while len(unread) >= at + 2:
            kind, length, begins = unread[at], unread[at + 1], at + 2
            if length == 126:
                length, begins = int.from_bytes(unread[begins : begins + 2]), begins + 2
            if len(unread) < begins + length:
                break
            at, payload = begins + length, unread[begins : begins + length]
            if kind == PING:
                self.socket.sendall(framed(payload, PONG))
            elif kind == TEXT:
                self.texts.append(payload)
            else:
                raise ConnectionError(f"Received a frame of kind {kind:#x}: {payload!r}")
        self.unread = unread[at:]

    def establish(self, name: str, control_type: str = FRBC) -> None:
        """Open a session, and describe the battery if it is one."""
        self.open_session(name, control_type)
        if control_type == FRBC:
            self.say(example("FRBC.SystemDescription"))
            self.hear("ReceptionStatus")

    def open_session(self, name: str, control_type: str = FRBC) -> None:
        """Open a session as a device of a control type, and wait until it is selected."""
        self.hear("Handshake")
        self.say(example("Handshake"))
        self.hear("HandshakeResponse")
        resource_id = str(uuid5(NAMESPACE_URL, name))
        offered = [control_type]
        details = {"name": name, "resource_id": resource_id, "available_control_types": offered}
        self.say(example("ResourceManagerDetails", **details))
        selected = self.hear("SelectControlType")["control_type"]
        if selected != control_type:
            raise ValueError(f"{selected} was selected")

    def say(self, message: Message) -> None:
        """Send a message."""
        self.socket.sendall(framed(json.dumps(message).encode()))

    def hear(self, message_type: str) -> Message:
        """Confirm messages until one of a type arrives, and return that."""
        while True:
            self.receive()
            message: Message = json.loads(self.texts.popleft())
            if "message_id" in message:
                self.confirm(message)
            elif message["status"] != "OK":
                raise ValueError(f"A message was refused: {message}")
            if message["message_type"] == message_type:
                return message

    def confirm(self, message: Message) -> None:
        """Confirm a message."""
        self.say(example("ReceptionStatus", subject_message_id=message["message_id"]))

    def receive_confirmations(self) -> None:
        """Wait until there are confirmations; confirm the instructions that arrive in between."""
        while True:
            self.receive()
            received, self.texts = self.texts, deque()
            for text in received:
                if b'"subject_message_id"' in text:
                    self.texts.append(text)
                else:
                    self.confirm(json.loads(text))
            if self.texts:
                return

    def send(self, messages: Iterable[Framed]) -> None:
        """Send messages at once."""
        self.socket.sendall(b"".join([frame for _, frame in messages]))

    def confirmed(self, message: Framed) -> None:
        """Wait for the confirmation of a message."""
        if not self.texts:
            self.receive_confirmations()
        answer = self.texts.popleft()
        if message[0] not in answer or b'"OK"' not in answer:
            raise ValueError(f"This does not confirm {message}: {answer!r}")

    def flood(self, messages: Iterator[Framed], seconds: float) -> tuple[float, float]:
        """Keep messages in flight; return those confirmed per second, and this process's share of a core."""
        in_flight = deque(islice(messages, WINDOW))
        number, began, worked = 0, time.perf_counter(), time.process_time()
        self.send(in_flight)
        while time.perf_counter() < began + seconds:
            self.receive_confirmations()
            arrived = len(self.texts)
            while self.texts:
                self.confirmed(in_flight.popleft())
            number += arrived
            if not (following := list(islice(messages, arrived))):
                break
            in_flight.extend(following)
            self.send(following)
        elapsed = time.perf_counter() - began
        worked = time.process_time() - worked
        while in_flight:
            self.confirmed(in_flight.popleft())
        return number / elapsed, worked / elapsed

    def one_at_a_time(self, messages: Iterator[Framed], seconds: float, pause: float = 0) -> list[float]:
        """Send messages one at a time, with pauses; return the round trips in ms."""
        round_trips, ends = [], time.perf_counter() + seconds
        for message in messages:
            began = time.perf_counter()
            self.send([message])
            self.confirmed(message)
            round_trips.append(1000 * (time.perf_counter() - began))
            if began > ends:
                break
            time.sleep(pause)
        return round_trips


def framed(payload: bytes, kind: int = TEXT) -> bytes:
    """Return a client's frame, masked with zeros."""
    length = len(payload)
    size = bytes([MASKED | length]) if length < 126 else bytes([MASKED | 126]) + length.to_bytes(2)
    return bytes([kind]) + size + bytes(4) + payload


@functools.cache
def storage_statuses(number: int) -> list[Framed]:
    """Build messages, once for all measurements."""
    frames = []
    status = example("FRBC.StorageStatus")
    for count in range(number):
        message_id = str(uuid4())
        message = status | {"message_id": message_id, "present_fill_level": count % 1000 / 10}
        frames.append((message_id.encode(), framed(json.dumps(message).encode())))
    gc.freeze()
    return frames


def load(port: int, seconds: float, name: str | None) -> Measured:
    """Measure a server, in a separate process; with a name, open a session first."""
    round_trip_seconds = ROUND_TRIP_SHARE * seconds
    many = iter(storage_statuses(int(MAX_PER_SECOND * (seconds + round_trip_seconds))))
    with Sender(port) as sender:
        if name:
            sender.establish(name)
        throughput, worked = sender.flood(islice(many, int(MAX_PER_SECOND * seconds)), seconds)
        return Measured(throughput, sender.one_at_a_time(many, round_trip_seconds), worked)


def neighbours(port: int, seconds: float) -> list[float]:
    """Have several devices send a message per second, and return the round trips in ms."""

    def neighbour(number: int) -> list[float]:
        with Sender(port) as sender:
            sender.establish(f"Neighbour {number}")
            time.sleep(number / NEIGHBOURS)
            return sender.one_at_a_time(iter(storage_statuses(int(seconds) + 2)), seconds, pause=1)

    with ThreadPoolExecutor(NEIGHBOURS) as threads:
        return list(chain.from_iterable(threads.map(neighbour, range(NEIGHBOURS))))


def serve_bare(port: int) -> None:
    """Parse every message with s2-python, and confirm it."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for frame in websocket:
            message = S2Parser.parse_as_any_message(frame.data)
            assert not isinstance(message, ReceptionStatus)
            status = ReceptionStatus(
                subject_message_id=message.message_id, status=ReceptionStatusValues.OK, diagnostic_label=None
            )
            await websocket.send_str(status.to_json())
        return websocket

    app = web.Application()
    app.router.add_get(PATH, serve)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


async def until_listening(port: int) -> None:
    """Wait until a server accepts connections."""
    async with asyncio.timeout(30):
        while True:
            with suppress(OSError):
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)


def app_configuration(port: int) -> dict[str, Any]:
    """Return the app's configuration, without a server, and without a limit of a device's messages."""
    return {
        "host": "http://127.0.0.1:9",
        "username": "bench@example.com",
        "password": "bench",
        "power_sensor": 1,
        "consumption_price_sensor": 2,
        "soc_min": 1,
        "soc_max": 10,
        "s2": {"port": port, "path": PATH, "limits": {"rate": 100_000}},
    }


async def main(seconds: float, pairs: int) -> None:
    """Start both servers, measure them in turn, and print the results."""
    ours, bare = free_port(), free_port()
    source = await asyncio.to_thread(pyscript_source.source)
    run = asyncio.get_running_loop().run_in_executor
    with ExitStack() as stack:
        sender, others = (stack.enter_context(ProcessPoolExecutor(1, mp_context=SPAWN)) for _ in range(2))
        await asyncio.gather(run(sender, ignore_interrupt), run(others, ignore_interrupt))
        config = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="home-assistant-")))
        server = SPAWN.Process(target=serve_bare, args=(bare,), daemon=True)
        server.start()
        stack.callback(server.join)
        stack.callback(server.terminate)
        install(config, source)

        with step("Starting Home Assistant with the scripts, and the bare server"):
            home_assistant = HomeAssistant(config, app_configuration(ours))
            await home_assistant.start()
        try:
            with step("Warming up"):
                for port in (ours, bare):
                    await until_listening(port)
                await run(sender, load, ours, WARM_UP_SECONDS, "Battery")
                await run(sender, load, bare, WARM_UP_SECONDS, None)
                await run(others, neighbours, ours, 0)
            measured = []
            for number in range(1, pairs + 1):
                with step(f"Measuring ours, then bare: {number} of {pairs}"):
                    with_session = await run(sender, load, ours, seconds, "Battery")
                    measured.append((with_session, await run(sender, load, bare, seconds, None)))
            with step(f"Measuring ours beside {NEIGHBOURS} devices that send a message a second"):
                round_trips = run(others, neighbours, ours, seconds - HEAD_START_SECONDS)
                await asyncio.sleep(HEAD_START_SECONDS)
                flooded = await run(sender, load, ours, seconds, "Battery")
                with_neighbours = Measured(flooded.throughput, await round_trips, flooded.sender)
        finally:
            await home_assistant.stop()
    console.print(table(measured, with_neighbours))
    console.print(
        f"Home Assistant {version('homeassistant')}, {source.description}, "
        f"Python {platform.python_version()}, aiohttp {version('aiohttp')}, "
        f"s2-python {version('s2-python')}.\n"
        f"{seconds:g} s with {WINDOW} messages in flight, then {ROUND_TRIP_SHARE * seconds:g} s one by one. "
        f"Sending took at most {max(result.sender for pair in measured for result in pair):.0%} of a core."
    )


def table(measured: list[tuple[Measured, Measured]], with_neighbours: Measured) -> Table:
    """Return a table of the results, the pairs first."""
    table = Table(title="FRBC.StorageStatus, confirmed")
    for name in ("", "ours /s", "bare /s", "ratio", "ours p50", "ours p99", "bare p50", "bare p99"):
        table.add_column(name, justify="right" if name else "left")
    rows = []
    for ours, bare in measured:
        ratio = ours.throughput / bare.throughput
        rows.append((ours.throughput, bare.throughput, ratio, ours.p50, ours.p99, bare.p50, bare.p99))
    for number, row in enumerate(rows, start=1):
        table.add_row(f"pair {number}", *formatted(row))
    table.add_section()
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    table.add_row("median", *formatted(medians), style="bold")
    table.add_section()
    table.add_row(
        f"one floods, {NEIGHBOURS} others\nsend one a second",
        f"{with_neighbours.throughput:,.0f}", "", "",
        f"{with_neighbours.p50:.2f} ms", f"{with_neighbours.p99:.2f} ms",
    )  # fmt: skip
    table.caption = "The last row's round trips are those of the others."
    return table


def formatted(row: Iterable[float]) -> list[str]:
    """Return the cells of a row."""
    ours, bare, ratio, *round_trips = row
    return [
        f"{ours:,.0f}",
        f"{bare:,.0f}",
        f"{ratio:.2f}",
        *(f"{milliseconds:.2f} ms" for milliseconds in round_trips),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement of the throughput (5)")
    parser.add_argument("--pairs", type=int, default=5, help="how often each is measured (5)")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(main(arguments.seconds, arguments.pairs))
