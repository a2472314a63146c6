"""The Resource Managers of the tests, against a minimal CEM."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.parts import s2_schemas
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_devices import Battery, Meter
from tests.parts.s2_messages import Message, example

pytestmark = pytest.mark.usefixtures("socket_enabled")
TOKEN = "secret"


@dataclass
class Cem:
    """A CEM that confirms everything and selects the first control type, then sends `extra`."""

    received: list[Message] = field(default_factory=list)
    extra: list[Any] = field(default_factory=list)
    url: str = ""


@pytest.fixture
async def cem(socket_enabled: None) -> AsyncIterator[Cem]:
    """Run a CEM."""
    cem = Cem()

    async def session(request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json(example("Handshake", role="CEM"))
        async for frame in socket:
            if frame.type is web.WSMsgType.BINARY:
                await socket.close(code=1003)
                continue
            message = json.loads(frame.data)
            cem.received.append(message)
            if "message_id" in message:
                subject = message["message_id"]
                await socket.send_json(example("ReceptionStatus", subject_message_id=subject))
            match message["message_type"]:
                case "Handshake":
                    await socket.send_json(example("HandshakeResponse"))
                case "ResourceManagerDetails":
                    selected = message["available_control_types"][0]
                    await socket.send_json(example("SelectControlType", control_type=selected))
                    for extra in cem.extra:
                        await socket.send_str(extra if isinstance(extra, str) else json.dumps(extra))
        return socket

    app = web.Application()
    app.router.add_get("/", session)
    async with TestServer(app) as server:
        cem.url = str(server.make_url("/")).replace("http", "ws", 1)
        yield cem


async def received(cem: Cem, message_type: str, times: int = 1) -> list[Message]:
    """Wait until the CEM has received messages of a type."""
    async with asyncio.timeout(5):
        while True:
            messages = [message for message in cem.received if message["message_type"] == message_type]
            if len(messages) >= times:
                return messages
            await asyncio.sleep(0.01)


async def test_it_establishes_a_session_and_confirms(cem: Cem) -> None:
    """The CEM's Handshake, HandshakeResponse and SelectControlType are all confirmed."""
    async with ResourceManager(cem.url, TOKEN, name="EV", details={"model": "T"}) as rm:
        assert await rm.establish() == "FILL_RATE_BASED_CONTROL"
        await received(cem, "ReceptionStatus", times=3)
    [details] = await received(cem, "ResourceManagerDetails")
    assert (details["name"], details["model"]) == ("EV", "T")
    assert {message["subject_message_id"] for message in await received(cem, "ReceptionStatus")} == {
        message["message_id"] for message in rm.received if "message_id" in message
    }


async def test_a_message_gets_its_reception_status(cem: Cem) -> None:
    """Whatever else arrives meanwhile."""
    async with ResourceManager(cem.url, TOKEN) as rm:
        await rm.establish()
        message = example("FRBC.StorageStatus")
        status = await rm.ask(message)
        assert status["status"] == "OK"
        assert rm.statuses(message["message_id"]) == [status]


@pytest.mark.parametrize(
    ("confirm", "answers", "expected"),
    [
        (True, {"SelectControlType": "INVALID_CONTENT"}, {"OK", "INVALID_CONTENT"}),
        (True, {"SelectControlType": None}, {"OK"}),
        (False, {}, set()),
    ],
)
async def test_a_test_says_what_is_answered(
    cem: Cem, confirm: bool, answers: dict[str, str | None], expected: set[str]
) -> None:
    """By type, or nothing at all."""
    async with ResourceManager(cem.url, TOKEN, confirm=confirm) as rm:
        rm.answers = answers
        await rm.establish()
        await rm.ask(example("FRBC.StorageStatus"))
    assert {m["status"] for m in cem.received if m["message_type"] == "ReceptionStatus"} == expected


async def test_it_sends_text_as_it_is(cem: Cem) -> None:
    """Also what no dict can say."""
    async with ResourceManager(cem.url, TOKEN) as rm:
        await rm.send(json.dumps(example("SessionRequest")).replace("{", "{ ", 1))
        assert (await rm.next("ReceptionStatus"))["status"] == "OK"


async def test_it_returns_the_close_code(cem: Cem) -> None:
    """A binary frame is what this CEM does not bear."""
    async with ResourceManager(cem.url, TOKEN) as rm:
        await rm.send(b"\0")
        assert await rm.closed() == 1003
        with pytest.raises(AssertionError, match="connection closed"):
            await rm.next("SelectControlType")


async def test_it_says_what_it_received_instead(cem: Cem) -> None:
    """A test that waits in vain shows what came."""
    async with ResourceManager(cem.url, TOKEN) as rm:
        with pytest.raises(AssertionError, match=r"No FRBC.Instruction within 0.1 s(.|\n)*Handshake"):
            await rm.next("FRBC.Instruction", within=0.1)
        with pytest.raises(AssertionError, match="No close within"):
            await rm.closed(within=0.1)


async def test_it_is_refused_without_the_token(cem: Cem) -> None:
    """As by any HTTP server."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with ResourceManager(cem.url):
            pass
    assert refused.value.status == 401


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (example("FRBC.Instruction", operation_mode_factor=None), "operation_mode_factor"),
        ({"message_type": "Nonsense"}, "no message type"),
        ([1], "not \\[1\\]"),
        ("{", "not JSON"),
    ],
)
async def test_it_finds_what_the_cem_may_not_send(cem: Cem, extra: object, problem: str) -> None:
    """At the end of the session, whatever the test itself looks at."""
    if not s2_schemas.available() and not isinstance(extra, str):
        pytest.skip(s2_schemas.describe())
    cem.extra = [extra]

    async def session() -> None:
        async with ResourceManager(cem.url, TOKEN) as rm:
            await rm.establish()
            await rm.ask(example("FRBC.StorageStatus"))

    with pytest.raises(AssertionError, match=problem):
        await session()


async def test_a_meter_measures_and_forecasts(cem: Cem) -> None:
    """Over the connection of s2-python."""
    async with Meter(cem.url, token=TOKEN, name="House", every=0.01, power=lambda _: 321.0) as meter:
        await asyncio.wait_for(meter.active.wait(), 5)
        assert meter.control_type == "NOT_CONTROLABLE"
        measurement, *_ = await received(cem, "PowerMeasurement", times=3)
        assert measurement["values"] == [{"commodity_quantity": "ELECTRIC.POWER.L1", "value": 321.0}]
    [forecast] = await received(cem, "PowerForecast")
    assert len(forecast["elements"]) == 96
    assert meter.control_type is None
    assert [problem for message in cem.received for problem in s2_schemas.problems(message)] == []


async def test_a_battery_tells_its_state_and_keeps_instructions(cem: Cem) -> None:
    """Over the connection of s2-python."""
    instruction = example("FRBC.Instruction")
    cem.extra = [instruction]
    async with Battery(cem.url, token=TOKEN, name="Battery", every=0.01, fill_level=12.5) as battery:
        await received(cem, "FRBC.StorageStatus", times=3)
        assert battery.control_type == "FILL_RATE_BASED_CONTROL"
        assert [kept["message_id"] for kept in battery.instructions] == [instruction["message_id"]]
    types = [message["message_type"] for message in cem.received]
    assert [name for name in types if name.startswith("FRBC")][:3] == [
        "FRBC.SystemDescription",
        "FRBC.ActuatorStatus",
        "FRBC.StorageStatus",
    ]
    assert [problem for message in cem.received for problem in s2_schemas.problems(message)] == []
