"""A session with a Resource Manager: its messages are checked, remembered, acted on and confirmed.

How a session is entered is up to the transport: `handshake.begin` does it for a plain websocket. Where CEM
and Resource Manager have agreed on a version in another way, a session may begin at the stage DETAILS.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from s2python.common import (
    Handshake,
    InstructionStatusUpdate,
    PowerMeasurement,
    ReceptionStatus,
    ResourceManagerDetails,
    RevokeObject,
    SessionRequest,
)

import flexmeasures_s2.control_types as control_types
import flexmeasures_s2.errors as errors
import flexmeasures_s2.messages as messages
import flexmeasures_s2.texts as texts
from flexmeasures_s2.message_store import MessageStore
from flexmeasures_s2.rules import Key, Leniencies

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
texts.guard(LOGGER)
HANDSHAKE, DETAILS, ESTABLISHED, ENDED = "handshake", "details", "established", "ended"
"""The stages of a session: which message is expected first, or whether any may come."""
OK = "OK"
NORMAL, GOING_AWAY, PROTOCOL_ERROR = 1000, 1001, 1002
"""Status codes that a websocket is closed with (RFC 6455, 7.4.1)."""
PAUSES_BETWEEN_TRIES = (0.5, 2, 0)
"""Seconds after each TEMPORARY_ERROR; so many times a message is sent in all."""
MAX_SLEEP_SECONDS = 60.0
"""The clock is read again after this long, in case it was set while a message is waited for to be valid."""
MAX_INSTRUCTIONS = 1000
"""Instructions whose status is remembered."""
MAX_LOGGED_CHARACTERS = 4000
"""Of a message that is logged at level debug."""
MAX_RESOURCE_ID_CHARACTERS, MAX_NAME_CHARACTERS = 64, 80
LARGE_CHARACTERS = 65_536
"""A message this long is parsed in a thread, since that would hold up the event loop."""
INSTRUCTION_FIELDS = {"InstructionStatusUpdate": "instruction_id", "RevokeObject": "object_id"}
"""The fields that may refer to an instruction."""
MEASURES_NOTHING = "an empty list is accepted: the device measures no power"
BY_MESSAGE_ID = "the message_id of an instruction is accepted in place of its id"


class _Transport(Protocol):
    """What a session sends its texts over."""

    @pyscript_compile
    async def send(self, text: str) -> None:
        """Send a text; raise ConnectionError."""

    @pyscript_compile
    async def close(self, code: int, reason: str) -> None:
        """Close the connection, with a status code of RFC 6455; raise ConnectionError."""


Transport = _Transport


@dataclass(kw_only=True)
class _Events:
    """Functions of the session's owner, called with the session (and the message)."""

    details: Callable[["Session", ResourceManagerDetails], str | None]
    """New ResourceManagerDetails, not confirmed yet: return a diagnostic_label, or raise InvalidContent."""
    established: Callable[["Session"], None]
    """ResourceManagerDetails were confirmed."""
    selected: Callable[["Session"], None]
    """Another control type is active."""
    message: Callable[["Session", Any], None]
    """A message was confirmed and remembered, or one that was remembered before comes into force."""


Events = _Events


@dataclass(frozen=True, kw_only=True)
class _Accepted:
    """A message is accepted: the diagnostic_label of its confirmation, and what to do after that."""

    label: str | None = None
    then: Callable[[], Awaitable[None]] | None = None


Accepted = _Accepted
ACCEPTED = Accepted()
Handler = Callable[[Any, Any], Accepted | None]
"""Acts on a message of a session; raises InvalidContent. None stands for ACCEPTED."""


@dataclass(eq=False, kw_only=True)
class _Pending:
    """A message whose ReceptionStatus is awaited; `on_status` is called before anything that follows it."""

    future: asyncio.Future[ReceptionStatus]
    on_status: Callable[[ReceptionStatus], None] | None


Pending = _Pending


@dataclass(kw_only=True)
class _SentInstruction:
    """An instruction as it was sent, and its latest InstructionStatus."""

    message: messages.Json
    status: str | None = None


SentInstruction = _SentInstruction


@dataclass(eq=False, repr=False, kw_only=True)
class _Session:
    """A session over a transport, which is None once the session has ended."""

    peer: str
    """The address of the Resource Manager."""
    transport: Transport | None
    events: Events
    token_holder: str | None = None
    """The resource (a name or resource_id) whose own token was given."""
    on_handshake: Handler | None = None
    max_depth: int = messages.MAX_DEPTH
    """Nesting of a message's JSON."""
    confirmation_seconds: float = 10
    """How long a ReceptionStatus is waited for."""

    stage: str = HANDSHAKE
    why_ended: str | None = None
    is_replaced: bool = False
    """Whether another connection of the same resource came."""
    version: str | None = None
    """The protocol version that was selected."""
    details: Any = None
    """The latest ResourceManagerDetails."""
    measured_quantities: frozenset[str] = frozenset()
    """The CommodityQuantity of each power that the details announce."""
    control_type: str | None = None
    """The control type that is active."""
    selection_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    selection_is_due: bool = False
    """Whether a task is about to select a control type."""

    store: MessageStore = field(default_factory=MessageStore)
    instructions: dict[str, SentInstruction] = field(default_factory=dict)
    """The instructions sent, by id."""
    last_message_at: datetime | None = None
    """When the latest message was accepted."""
    last_message_type: str | None = None

    pending: dict[str, Pending] = field(default_factory=dict)
    """By message_id."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    activation: asyncio.Task[None] | None = None
    """Puts upcoming messages in force."""
    has_warned: bool = False
    warned_leniencies: set[str] = field(default_factory=set)

    @property
    @pyscript_compile
    def memory(self) -> dict[Key, Any]:
        """Return the messages in force, by message_type and ids."""
        return self.store.in_force

    @property
    @pyscript_compile
    def log_name(self) -> str:
        """Return the name and address of the Resource Manager, for the log."""
        return f"{display_name(self.details)} ({self.peer})" if self.details else self.peer

    @pyscript_compile
    def log(self, arrow: str, text: str) -> None:
        """Log a message at level debug."""
        if LOGGER.isEnabledFor(logging.DEBUG):
            if len(text) > MAX_LOGGED_CHARACTERS:
                text = f"{text[:MAX_LOGGED_CHARACTERS]}… ({len(text)} characters)"
            LOGGER.debug("%s %s %s", self.log_name, arrow, text)

    @pyscript_compile
    def warn_once(self, text: str, *args: object) -> None:
        """Log a mistake of the Resource Manager: as a warning once in a session, lest it fill the log."""
        level = logging.DEBUG if self.has_warned else logging.WARNING
        self.has_warned = True
        LOGGER.log(level, f"%s {text}", self.log_name, *args)

    @pyscript_compile
    def warn_of_leniencies(self, leniencies: Mapping[str, str]) -> None:
        """Log what was accepted although S2 does not allow it: each as a warning once in a session."""
        for leniency, where in leniencies.items():
            level = logging.DEBUG if leniency in self.warned_leniencies else logging.WARNING
            self.warned_leniencies.add(leniency)
            LOGGER.log(level, "%s: %s: %s", self.log_name, where, leniency)

    # Receiving

    @pyscript_compile
    async def receive(self, text: str) -> None:
        """Check, act on and confirm a message of the Resource Manager."""
        if self.stage == ENDED:
            return
        self.log("→", text)
        subject = None
        leniencies: Leniencies = {}
        try:
            if len(text) > LARGE_CHARACTERS:
                message = await asyncio.to_thread(messages.parse, text, self.max_depth, leniencies)
                if self.stage == ENDED:
                    return
            else:
                message = messages.parse(text, self.max_depth, leniencies)
            if message.message_type in INSTRUCTION_FIELDS:
                message = self.with_instruction_id(message, leniencies)
            self.warn_of_leniencies(leniencies)
            if message.message_type == "ReceptionStatus":  # isinstance takes longer for pydantic's models
                self.on_reception_status(cast(ReceptionStatus, message))
                return
            subject = str(message.message_id)
            accepted = self.dispatch(message) or ACCEPTED
            self.store.limit_size(message, len(text))
        except errors.Refused as refused:
            await self.refuse(subject or refused.subject, refused)
            return
        except Exception:
            LOGGER.exception("Dealing with a message of %s failed: please report this", self.log_name)
            failure = errors.TemporaryError("The CEM failed to deal with this message")
            await self.refuse(subject or errors.NIL, failure)
            return
        await self.send_message(messages.reception_status(subject, OK, accepted.label))
        self.last_message_at, self.last_message_type = datetime.now(UTC), message.message_type
        if accepted.then and self.stage != ENDED:
            await accepted.then()
        elif self.stage == ESTABLISHED:
            self.notify(self.events.message, message)

    @pyscript_compile
    async def refuse(self, subject: str, refused: errors.Refused) -> None:
        """Answer a message that is refused, with its message_id as subject."""
        if refused.needs_no_answer:
            self.warn_once("sent a wrong ReceptionStatus: %s", refused)
            return
        label = str(refused)
        await self.send_message(messages.reception_status(subject, refused.status, label))
        self.warn_once("was answered %s: %s", refused.status, label)
        if refused.is_fatal:
            await self.close(PROTOCOL_ERROR, label)

    @pyscript_compile
    def with_instruction_id(self, message: messages.Message, leniencies: Leniencies) -> messages.Message:
        """Return a message that refers to an instruction by its id, where it gives the message_id."""
        name = INSTRUCTION_FIELDS[message.message_type]
        referenced = getattr(message, name)
        if referenced in self.instructions:
            return message
        for instruction_id, instruction in self.instructions.items():
            if instruction.message["message_id"] == referenced:
                leniencies[BY_MESSAGE_ID] = name
                return message.model_copy(update={name: instruction_id})
        return message

    @pyscript_compile
    def notify(self, event: Callable[..., object], *args: object) -> None:
        """Call a function of the session's owner; log what it raises, since the session goes on."""
        try:
            event(self, *args)
        except Exception:
            LOGGER.exception("Acting on what %s sent failed: please report this", self.log_name)

    @pyscript_compile
    def dispatch(self, message: messages.Message) -> Accepted | None:
        """Act on a message; raise InvalidContent if it is wrong in this state of the session."""
        message_type = message.message_type
        if self.stage == HANDSHAKE:
            if message_type == "Handshake" and self.on_handshake:
                return self.on_handshake(self, message)
            raise errors.InvalidContent(f"message_type: expected Handshake first, got {message_type}")
        if self.stage == DETAILS and message_type not in ("ResourceManagerDetails", "SessionRequest"):
            raise errors.InvalidContent(
                f"message_type: expected ResourceManagerDetails first, got {message_type}"
            )
        if message_type in HANDLERS:
            return HANDLERS[message_type](self, message)
        return self.on_control_type_message(message)

    @pyscript_compile
    def on_control_type_message(self, message: messages.Message) -> Accepted | None:
        """Check and remember a message of the control type that is active."""
        message_type = message.message_type
        self.activate_due_messages()
        if message_type not in control_types.CHECKS:
            raise errors.InvalidContent(f"message_type: {message_type} is not for a Resource Manager to send")
        control_type = control_types.CONTROL_TYPE_OF[message_type]
        if control_type != self.control_type:
            raise errors.InvalidContent(
                f"message_type: {message_type} belongs to {control_type}, but "
                f"{self.control_type or 'no control type'} is active"
            )
        if check := control_types.CHECKS[message_type]:
            self.warn_of_leniencies(check(self.memory, message) or {})
        is_upcoming = self.store.add(message)
        return Accepted(then=self.ensure_activation) if is_upcoming else None

    @pyscript_compile
    async def ensure_activation(self) -> None:
        """Have upcoming messages put in force, and the session's owner notified of them then."""
        if self.activation is None or self.activation.done():
            self.activation = self.spawn(self.activate_messages())

    @pyscript_compile
    async def activate_messages(self) -> None:
        """Put messages in force at their valid_from, as long as there are upcoming ones."""
        while (seconds := self.store.seconds_to_next()) is not None:
            if seconds > 0:
                await asyncio.sleep(min(seconds + 0.01, MAX_SLEEP_SECONDS))
            self.activate_due_messages()

    @pyscript_compile
    def activate_due_messages(self) -> None:
        """Put messages in force whose valid_from has come, and notify the session's owner as of new ones."""
        while (message := self.store.activate_next()) is not None:
            LOGGER.info("%s: its %s is valid now", self.log_name, message.message_type)
            self.notify(self.events.message, message)

    # Messages of all control types

    @pyscript_compile
    def on_second_handshake(self, _message: Handshake) -> None:
        """Refuse a Handshake within the session."""
        raise errors.InvalidContent("message_type: the session has had its Handshake")

    @pyscript_compile
    def on_details(self, message: ResourceManagerDetails) -> Accepted:
        """Accept ResourceManagerDetails; later ones replace the first, if they are of the same resource."""
        resource_id = str(message.resource_id)
        if self.details and resource_id != self.details.resource_id:
            raise errors.InvalidContent(
                f"resource_id: this session belongs to {self.details.resource_id}: open another for "
                f"{resource_id}"
            )
        if len(resource_id) > MAX_RESOURCE_ID_CHARACTERS:
            raise errors.InvalidContent(
                f"resource_id: expected at most {MAX_RESOURCE_ID_CHARACTERS} characters, "
                f"got {len(resource_id)}"
            )
        if not resource_id.isprintable() or not resource_id.strip():
            raise errors.InvalidContent("resource_id: expected printable characters")
        offered = [control_type.value for control_type in message.available_control_types]
        if offered == [control_types.NO_SELECTION]:
            raise errors.InvalidContent("available_control_types: expected one besides NO_SELECTION")
        label = self.events.details(self, message)
        self.details = message
        self.measured_quantities = frozenset(
            quantity.value for quantity in message.provides_power_measurement_types
        )
        if not self.measured_quantities:
            self.warn_of_leniencies({MEASURES_NOTHING: messages.MEASURED_QUANTITIES})
        self.stage = ESTABLISHED

        async def notify_established() -> None:
            self.notify(self.events.established)

        return Accepted(label=label, then=notify_established)

    @pyscript_compile
    def on_power_forecast(self, message: messages.Message) -> None:
        """Remember a PowerForecast."""
        self.store.put_in_force(message)

    @pyscript_compile
    def on_power_measurement(self, message: PowerMeasurement) -> None:
        """Remember a PowerMeasurement; refuse quantities that were not announced, if any was."""
        announced = self.measured_quantities
        for number, measured in enumerate(message.values):
            quantity = measured.commodity_quantity.value
            if announced and quantity not in announced:
                raise errors.InvalidContent(
                    f"values[{number}].commodity_quantity: {quantity} is not in the "
                    f"{messages.MEASURED_QUANTITIES} of the details: {', '.join(sorted(announced))}"
                )
        self.store.put_in_force(message)

    @pyscript_compile
    def on_session_request(self, message: SessionRequest) -> Accepted:
        """End the session, as the Resource Manager asks; it connects again if it asks for RECONNECT."""

        async def close() -> None:
            await self.close(NORMAL, f"the Resource Manager asked to {message.request.value}")

        return Accepted(then=close)

    @pyscript_compile
    def on_revoke_object(self, message: RevokeObject) -> None:
        """Forget the message or instruction that is revoked."""
        message_type, object_id = message.object_type.value, str(message.object_id)
        instruction = self.instructions.get(object_id)
        if instruction and instruction.message["message_type"] == message_type:
            del self.instructions[object_id]
        elif not self.store.revoke(message_type, object_id):
            raise errors.InvalidContent(f"object_id: there is no {message_type} {object_id}")

    @pyscript_compile
    def on_instruction_status_update(self, message: InstructionStatusUpdate) -> None:
        """Remember the status of an instruction."""
        instruction = self.instructions.get(str(message.instruction_id))
        if instruction is None:
            raise errors.InvalidContent(f"instruction_id: there is no instruction {message.instruction_id}")
        instruction.status = message.status_type.value

    @pyscript_compile
    def on_reception_status(self, message: ReceptionStatus) -> None:
        """Hand a ReceptionStatus to the request that waits for it; log one that is not OK if none does."""
        subject, status = str(message.subject_message_id), message.status.value
        pending = self.pending.pop(subject, None)
        if pending is None:
            if status != OK:
                self.warn_once(
                    "answered %s to %s: %s", status, subject, texts.quoted(message.diagnostic_label)
                )
            return
        if pending.on_status:
            pending.on_status(message)
        if not pending.future.done():
            pending.future.set_result(message)

    # Sending

    @pyscript_compile
    async def send(self, message_type: str, **fields: Any) -> messages.Json:
        """Send a message, and return it; once the session has ended, nothing is sent."""
        message = messages.new(message_type, **fields)
        await self.send_message(message)
        return message

    @pyscript_compile
    async def send_message(self, message: messages.Json) -> None:
        """Send a message of `messages.new` or `messages.reception_status`."""
        if self.stage == ENDED or self.transport is None:
            return
        text = messages.text(message)
        self.log("←", text)
        try:
            await self.transport.send(text)
        except ConnectionError as error:
            self.end(str(error) or "the connection broke")

    @pyscript_compile
    async def request(
        self,
        message_type: str,
        on_status: Callable[[ReceptionStatus], None] | None = None,
        **fields: Any,
    ) -> ReceptionStatus:
        """Send a message, and return its ReceptionStatus; `on_status` gets it before anything that follows.

        After a TEMPORARY_ERROR it is sent again; a PERMANENT_ERROR closes the session, and so does a missing
        confirmation, which raises NoConfirmation. Not to be awaited where messages are received.
        """
        message = messages.new(message_type, **fields)
        if message_type.endswith("Instruction"):
            self.instructions[message["id"]] = SentInstruction(message=message)
            while len(self.instructions) > MAX_INSTRUCTIONS:
                del self.instructions[next(iter(self.instructions))]
        for pause in PAUSES_BETWEEN_TRIES:
            status = await self.send_and_wait(message, on_status)
            if status.status.value != "TEMPORARY_ERROR":
                break
            await asyncio.sleep(pause)
        if status.status.value == "PERMANENT_ERROR":
            await self.close(NORMAL, f"the Resource Manager answered PERMANENT_ERROR to {message_type}")
        return status

    @pyscript_compile
    async def send_and_wait(
        self, message: messages.Json, on_status: Callable[[ReceptionStatus], None] | None
    ) -> ReceptionStatus:
        """Send a message, and return its ReceptionStatus; raise NoConfirmation."""
        message_id = message["message_id"]
        if self.stage == ENDED:
            raise errors.NoConfirmation(f"{self.log_name}: {self.why_ended}")
        future: asyncio.Future[ReceptionStatus] = asyncio.get_running_loop().create_future()
        self.pending[message_id] = Pending(future=future, on_status=on_status)
        try:
            await self.send_message(message)
            return await asyncio.wait_for(future, self.confirmation_seconds)
        except TimeoutError:
            why = f"{message['message_type']} was not confirmed within {self.confirmation_seconds:g} s"
            await self.close(PROTOCOL_ERROR, why)
            raise errors.NoConfirmation(f"{self.log_name}: {why}") from None
        finally:
            self.pending.pop(message_id, None)

    @pyscript_compile
    async def select(self, control_type: str) -> ReceptionStatus:
        """Select a control type, and return the ReceptionStatus: it is active once that is OK.

        Messages and instructions of the control type before are forgotten. Hold `selection_lock`. Raise
        NoConfirmation.
        """

        def activate(status: ReceptionStatus) -> None:
            if status.status.value == OK:
                self.control_type = control_type
                self.store.forget_control_type()
                self.instructions.clear()
                self.notify(self.events.selected)

        return await self.request("SelectControlType", activate, control_type=control_type)

    # The end

    @pyscript_compile
    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        """Run a coroutine in a task that is cancelled when the session ends; log what it raises."""

        async def run() -> None:
            try:
                await work
            except errors.NoConfirmation as error:
                LOGGER.warning("%s", error)
            except Exception:
                LOGGER.exception("The session with %s failed: please report this", self.log_name)

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _task: work.close())
        return task

    @pyscript_compile
    async def send_session_request(self, why: str, code: int = NORMAL, *, reconnect: bool = False) -> None:
        """End the session: send a SessionRequest with the reason, and close the connection."""
        if self.stage not in (HANDSHAKE, ENDED):
            request = "RECONNECT" if reconnect else "TERMINATE"
            await self.send("SessionRequest", request=request, diagnostic_label=why)
        await self.close(code, why)

    @pyscript_compile
    async def close(self, code: int, why: str) -> None:
        """End the session, and close the connection."""
        transport = self.transport
        if self.stage == ENDED:
            return
        LOGGER.info("%s: closing (%s): %s", self.log_name, code, why)
        self.end(why)
        if transport is not None:
            with suppress(ConnectionError):
                await transport.close(code, why)

    @pyscript_compile
    def end(self, why: str) -> None:
        """End the session: fail the requests that wait, cancel its tasks, and forget its messages."""
        if self.stage == ENDED:
            return
        self.stage, self.why_ended, self.transport = ENDED, why, None
        for pending in self.pending.values():
            if not pending.future.done():
                pending.future.set_exception(errors.NoConfirmation(f"{self.log_name}: {why}"))
                pending.future.exception()  # so that asyncio does not log it as never retrieved
        self.pending.clear()
        self.store.clear()
        self.instructions.clear()
        current = asyncio.current_task()
        for task in list(self.tasks):
            if task is not current:
                task.cancel()


Session = _Session
HANDLERS: dict[str, Handler] = {
    "Handshake": Session.on_second_handshake,
    "InstructionStatusUpdate": Session.on_instruction_status_update,
    "PowerForecast": Session.on_power_forecast,
    "PowerMeasurement": Session.on_power_measurement,
    "ResourceManagerDetails": Session.on_details,
    "RevokeObject": Session.on_revoke_object,
    "SessionRequest": Session.on_session_request,
}


@pyscript_compile
def display_name(details: ResourceManagerDetails) -> str:
    """Return a Resource Manager's name on one line, or its resource_id if it has none."""
    return texts.label(details.name, MAX_NAME_CHARACTERS) or str(details.resource_id)[:MAX_NAME_CHARACTERS]
