"""Whatever is sent, the session answers and lives on; whoever comes and goes leaves nothing behind."""

import asyncio
import gc
import json
import re
import struct
import tracemalloc
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.modules.flexmeasures_s2.conftest import connected, running, until
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_messages import TYPES, example
from tests.parts.trials import trials

pytestmark = pytest.mark.usefixtures("socket_enabled")
NIL = "00000000-0000-0000-0000-000000000000"
THOROUGH = {"suppress_health_check": [*HealthCheck]}
ENDS = ("SessionRequest", "ReceptionStatus", "ResourceManagerDetails")
"""What ends a session, gets no answer, or makes it another resource's."""
SENT = [kind for kind in TYPES if kind not in ENDS]
ID = re.compile(r"[a-zA-Z0-9\-_:]{2,64}")
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from([*TYPES, "2026-03-02T10:00:00Z", "ab", "message_id", 10**400, 1e308, -1, "\ud800"])
)
names = texts | st.sampled_from(["message_type", "message_id", "elements", "id", "actuators", "values"])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
garbage = texts | anything.map(json.dumps) | st.integers(1, 3000).map(lambda depth: '{"a":[' * depth)


def places(value, path=()):
    """Return the path of each part of a message, but for its type and id."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    kept = [(step, each) for step, each in inner if path or step not in ("message_type", "message_id")]
    return [place for step, each in kept for place in ((*path, step), *places(each, (*path, step)))]


@st.composite
def mutated(draw):
    """Return a message with something else in some places, under an id of its own."""
    message = json.loads(json.dumps(example(draw(st.sampled_from(SENT)))))
    message["message_id"] = str(draw(st.uuids()))
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from(places(message)))
        part = message
        for step in path:
            part = part[step]
        if draw(st.booleans()):
            part[last] = draw(anything)
        else:
            del part[last]
            if not places(message):
                break
    return message


class Trial:
    """An established session that lasts over the examples of a test, in a loop of its own."""

    def __init__(self, control_type):
        self.runner = asyncio.Runner()
        self.runner.get_loop()
        self.running = running()
        self.cem = self.runner.run(self.running.__aenter__())
        self.connection = connected(self.cem, control_types=[control_type])
        self.rm = self.runner.run(self.connection.__aenter__())

    def send(self, batch):
        """Send messages and texts, then have a valid exchange; check what was answered to each."""
        self.runner.run(self._send(batch))

    async def _send(self, batch):
        rm = self.rm
        rm.received.clear()
        rm._untaken.clear()
        for each in batch:
            await rm.send(each)
        assert (await rm.ask(example("PowerMeasurement")))["status"] == "OK"
        answered = Counter(each["subject_message_id"] for each in rm.received)
        ids = [id_of(each) for each in batch]
        wanted = Counter(each for each in ids if each)
        assert {each: answered[each] for each in wanted} == dict(wanted)
        assert len(rm.received) == len([each for each in ids if each]) + 1
        assert not [each for each in rm.received if each["status"] == "TEMPORARY_ERROR"], rm.received
        assert not rm.violations, rm.violations

    def close(self):
        """End the session and the CEM."""
        self.runner.run(self.connection.__aexit__(None, None, None))
        self.runner.run(self.running.__aexit__(None, None, None))
        self.runner.close()


def id_of(message):
    """Return the subject of the answer that is due, or None if none is."""
    if isinstance(message, str):
        try:
            message = json.loads(message)
        except (ValueError, RecursionError):
            return NIL
    if not isinstance(message, dict):
        return NIL
    if message.get("message_type") == "ReceptionStatus":
        return None
    found = message.get("message_id")
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except ValueError:
        return NIL
    return found if isinstance(found, str) and ID.search(found) else NIL


@pytest.fixture
def trial(socket_enabled):
    """Return a function that begins a trial."""
    trials = []

    def begin(control_type="FILL_RATE_BASED_CONTROL"):
        trials.append(Trial(control_type))
        return trials[-1]

    yield begin
    for each in trials:
        each.close()


def test_garbage_is_answered_and_the_session_lives_on(trial):
    begun = trial()

    @trials(300, **THOROUGH)
    @given(st.lists(garbage, min_size=1, max_size=10))
    def send(batch):
        begun.send(batch)

    send()


@pytest.mark.parametrize(
    "control_type",
    [
        "FILL_RATE_BASED_CONTROL",
        "OPERATION_MODE_BASED_CONTROL",
        "DEMAND_DRIVEN_BASED_CONTROL",
        "POWER_PROFILE_BASED_CONTROL",
        "POWER_ENVELOPE_BASED_CONTROL",
    ],
)
def test_mutated_messages_are_answered_and_the_session_lives_on(trial, control_type):
    begun = trial(control_type)

    @trials(200, **THOROUGH)
    @given(st.lists(mutated(), min_size=1, max_size=10))
    def send(batch):
        begun.send(batch)

    send()


async def abort_before_the_upgrade(cem, _):
    """Connect, begin a request, and go."""
    _, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(UPGRADE[:30])
    await writer.drain()
    writer.transport.abort()


async def abort_in_the_handshake(cem, _):
    """Go as soon as the websocket is there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(UPGRADE)
    await reader.readline()
    writer.transport.abort()


async def abort_in_a_message(cem, _):
    """Go within a frame."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(UPGRADE + struct.pack("!BBH4x", 0x81, 0x80 | 126, 5000) + b"{" * 100)
    await reader.readline()
    writer.transport.abort()


async def abort_a_session(cem, resource_id):
    """Go without a word."""
    async with connected(cem, resource_id=resource_id) as rm:
        await rm.ask(example("FRBC.SystemDescription"))
        await rm.send(example("FRBC.StorageStatus"))
        rm._socket._response.connection.transport.abort()


async def leave_half_entered(cem, _):
    """Close in order, between Handshake and ResourceManagerDetails."""
    async with ResourceManager(cem.url) as rm:
        await rm.next("Handshake")
        await rm.ask(example("Handshake"))


async def leave(cem, resource_id):
    """Close in order."""
    async with connected(cem, resource_id=resource_id) as rm:
        await rm.ask(example("FRBC.SystemDescription"))


async def ask_to_end(cem, resource_id):
    """Have the session ended."""
    async with connected(cem, resource_id=resource_id) as rm:
        await rm.ask(example("SessionRequest"))
        await rm.closed()


WAYS = [
    abort_before_the_upgrade,
    abort_in_the_handshake,
    abort_in_a_message,
    abort_a_session,
    leave_half_entered,
    leave,
    ask_to_end,
]


def sockets():
    """Return how many sockets this process has open."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += each.readlink().name.startswith("socket:")
        except FileNotFoundError:
            continue
    return found


async def come_and_go(cem, rounds, resource_id):
    """Connect and leave in every way, several at a time, until all are gone."""
    for _ in range(rounds):
        await asyncio.gather(*(way(cem, resource_id()) for way in WAYS))
    await until(lambda: not cem.listener.sessions)


@pytest.mark.parametrize("ids", ["of the same resources", "of others each time"])
async def test_a_hundred_who_come_and_go_leave_nothing_behind(ids):
    numbers = iter(range(10**6))

    def resource_id():
        return f"device:{next(numbers) % 4}" if ids == "of the same resources" else str(uuid4())

    async with running(limits={"handshake": 1, "heartbeat": 1}) as cem:
        cem.listener.events.message = lambda *_: None
        await come_and_go(cem, 3, resource_id)
        before = (len(asyncio.all_tasks()), sockets())
        tracemalloc.start()
        try:
            gc.collect()
            start = tracemalloc.get_traced_memory()[0]
            await come_and_go(cem, 15, resource_id)
            cem.changes.clear()
            await until(lambda: (len(asyncio.all_tasks()), sockets()) <= before)
            await until(lambda: not cem.listener.idle)
            await asyncio.sleep(1.5)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - start < 1_000_000
        finally:
            tracemalloc.stop()
        assert len(asyncio.all_tasks()) <= before[0]
        assert sockets() <= before[1]
        async with connected(cem) as rm:
            assert (await rm.ask(example("PowerMeasurement")))["status"] == "OK"
