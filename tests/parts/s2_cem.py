"""A minimal CEM, to test the simulated devices over a websocket."""

import asyncio
import json
from collections.abc import Callable

from aiohttp import web

from tests.parts import s2_schemas
from tests.parts.s2_device import ControlledDevice
from tests.parts.s2_messages import Message, example


class Cem:
    """A CEM that confirms everything, selects a control type, and sends messages for a test."""

    url: str

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.control_type: str | None = None
        self.invalid: list[str] = []
        self.takes_s2_python_for_the_schema = False
        self.takes_null = False

    async def session(self, request: web.Request) -> web.WebSocketResponse:
        """Serve the session of a device."""
        self.socket = web.WebSocketResponse()
        await self.socket.prepare(request)
        await self.socket.send_json(example("Handshake", role="CEM"))
        async for frame in self.socket:
            message = json.loads(frame.data)
            self.received.append(message)
            self._check(message)
            if "message_id" in message:
                subject = message["message_id"]
                await self.socket.send_json(example("ReceptionStatus", subject_message_id=subject))
            match message["message_type"]:
                case "Handshake":
                    await self.socket.send_json(example("HandshakeResponse"))
                case "ResourceManagerDetails":
                    await self.select(self.control_type or message["available_control_types"][0])
        return self.socket

    def _check(self, message: Message) -> None:
        differs = message["message_type"] == "DDBC.SystemDescription"
        if not (differs and self.takes_s2_python_for_the_schema):
            self.invalid.extend(s2_schemas.problems(without_nulls(message) if self.takes_null else message))

    async def select(self, control_type: str) -> None:
        """Select a control type."""
        await self.socket.send_json(example("SelectControlType", control_type=control_type))

    async def ask(self, message: Message) -> str:
        """Send a message, and return its reception status."""
        await self.socket.send_json(message)
        await self.until(lambda: self.statuses(message))
        return self.statuses(message)[0]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)

    def statuses(self, message: Message) -> list[str]:
        """Return the reception statuses of a message."""
        return [
            answer["status"]
            for answer in self.of("ReceptionStatus")
            if answer["subject_message_id"] == message["message_id"]
        ]

    def of(self, message_type: str) -> list[Message]:
        """Return the messages of a type."""
        return [message for message in self.received if message["message_type"] == message_type]

    def kinds(self) -> list[str]:
        """Return the types of the received messages, but for ReceptionStatus, and clear these."""
        kinds = [message["message_type"] for message in self.received]
        self.received.clear()
        return [kind for kind in kinds if kind != "ReceptionStatus"]

    def updates(self) -> list[tuple[str, str]]:
        """Return the (instruction id, status) of every InstructionStatusUpdate."""
        return [
            (update["instruction_id"], update["status_type"]) for update in self.of("InstructionStatusUpdate")
        ]


def without_nulls(value: object) -> object:
    """Return a message, or a part of one, without fields that are null."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return value


async def introduced(device: ControlledDevice) -> None:
    """Wait until a device has sent its introduction and one update."""
    await asyncio.wait_for(device.active.wait(), 5)
    await device.tell()
