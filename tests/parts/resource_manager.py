"""A Resource Manager that sends what a test wants, to test a CEM's every rule."""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self
from uuid import uuid4

import aiohttp

from tests.parts import s2_schemas
from tests.parts.s2_messages import Message, example

ANSWER_WITHIN = 5


class ResourceManager:
    """A websocket client that records, checks and confirms the CEM's messages.

    `answers` are the statuses by message type, where not OK, or None for no answer; without `confirm` no
    message is answered.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        resource_id: str | None = None,
        name: str = "Battery",
        control_types: Iterable[str] = ("FILL_RATE_BASED_CONTROL",),
        versions: Iterable[str] = ("0.0.2-beta",),
        confirm: bool = True,
        details: Message | None = None,
    ) -> None:
        self.url = url
        self.token = token
        self.versions = list(versions)
        self.confirm = confirm
        self.answers: dict[str, str | None] = {}
        self.details = example(
            "ResourceManagerDetails",
            resource_id=resource_id or str(uuid4()),
            name=name,
            available_control_types=list(control_types),
        ) | (details or {})
        self.received: list[Message] = []
        self.violations: list[str] = []
        self._untaken: list[Message] = []
        self._ended = False

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self._client = aiohttp.ClientSession()
        try:
            self._socket = await self._client.ws_connect(self.url, headers=headers)
        except BaseException:
            await self._client.close()
            raise
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        await self._socket.close()
        await self._client.close()
        await self._reader
        if exception_type is None:
            assert not self.violations, "\n".join(self.violations)

    async def establish(self) -> str:
        """Open a session, and return the control type that the CEM selects."""
        handshake = await self.next()
        assert (handshake["message_type"], handshake.get("role")) == ("Handshake", "CEM"), handshake
        await self._say(example("Handshake", supported_protocol_versions=self.versions))
        response = await self.next("HandshakeResponse")
        assert response["selected_protocol_version"] in self.versions, response
        await self._say(self.details)
        control_type: str = (await self.next("SelectControlType"))["control_type"]
        return control_type

    async def ask(self, message: Message) -> Message:
        """Send a message and return its ReceptionStatus."""
        await self.send(message)
        subject = message["message_id"]
        return await self._take(
            lambda answer: answer.get("subject_message_id") == subject,
            f"ReceptionStatus for {message['message_type']}",
            ANSWER_WITHIN,
        )

    async def send(self, message: Message | str | bytes) -> None:
        """Send a message, a text as it is, or a binary frame."""
        if isinstance(message, bytes):
            await self._socket.send_bytes(message)
        else:
            await self._socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def next(self, message_type: str | None = None, within: float = ANSWER_WITHIN) -> Message:
        """Return the next message of a type, or of any type, and remove it from the queue."""
        return await self._take(
            lambda message: message_type in (None, message.get("message_type")),
            message_type or "message",
            within,
        )

    async def closed(self, within: float = ANSWER_WITHIN) -> int | None:
        """Wait until the CEM closes the connection, and return the close code."""
        await self._wait(lambda: self._ended, "close", within)
        return self._socket.close_code

    def statuses(self, message_id: str) -> list[Message]:
        """Return the ReceptionStatuses of a message."""
        return [message for message in self.received if message.get("subject_message_id") == message_id]

    async def _say(self, message: Message) -> None:
        status = await self.ask(message)
        assert status["status"] == "OK", status

    async def _take(self, fits: Callable[[Message], bool], wanted: str, within: float) -> Message:
        def first() -> Message | None:
            return next(filter(fits, self._untaken), None)

        await self._wait(lambda: first() or self._ended, wanted, within)
        message = first()
        assert message, f"The connection closed ({self._socket.close_code}): no {wanted}. {self._account()}"
        self._untaken.remove(message)
        return message

    async def _wait(self, condition: Callable[[], object], wanted: str, within: float) -> None:
        try:
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"No {wanted} within {within} s. {self._account()}") from None

    def _account(self) -> str:
        return f"Received: {json.dumps(self.received, indent=1)}"

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                await self._receive(frame)
        finally:
            self._ended = True
            await self._tell()

    async def _receive(self, frame: aiohttp.WSMessage) -> None:
        if frame.type is not aiohttp.WSMsgType.TEXT:
            self.violations.append(f"The CEM sent a frame of type {frame.type.name}: {frame.data!r}")
            return
        try:
            message = json.loads(frame.data)
        except ValueError:
            self.violations.append(f"The CEM sent a text that is not JSON: {frame.data}")
            return
        self.violations += [f"{problem} in {frame.data}" for problem in s2_schemas.problems(message)]
        if not isinstance(message, dict):
            return
        self.received.append(message)
        await self._confirm(message)
        self._untaken.append(message)
        await self._tell()

    async def _confirm(self, message: Message) -> None:
        status = self.answers.get(message.get("message_type", ""), "OK")
        if not (self.confirm and "message_id" in message and status):
            return
        with suppress(ConnectionError):  # the CEM may close right after its message
            await self.send(
                {
                    "message_type": "ReceptionStatus",
                    "subject_message_id": message["message_id"],
                    "status": status,
                }
            )

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()
