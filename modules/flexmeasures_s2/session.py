"""One session with a Resource Manager: what it sends is checked, confirmed, remembered, acted on.

How a session is entered is not decided here: `handshake.enter` does it for a plain websocket. Where
the two have agreed on everything elsewhere, a session may begin at the stage DETAILS.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import flexmeasures_s2.control_types as control_types
import flexmeasures_s2.errors as errors
import flexmeasures_s2.messages as messages
import flexmeasures_s2.texts as texts

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
texts.guard(LOGGER)
HANDSHAKE, DETAILS, ESTABLISHED, ENDED = "handshake", "details", "established", "ended"
OK = "OK"
NORMAL, GOING_AWAY, PROTOCOL_ERROR = 1000, 1001, 1002
MOST_REMEMBERED = 20
"""How many of one message_type are remembered, where each has an id of its own."""
MOST_CHARACTERS = 2**22
"""How long those are all together."""
MOST_STATUSES = 200
"""How many of one message_type are remembered, where each is of something described."""
MOST_INSTRUCTIONS = 1000
"""How many instructions are remembered."""
MAX_COMING = 50
"""How many messages are remembered that are not valid yet."""
CLOCK_TOLERANCE_SECONDS = 1.0
"""How long before its valid_from a message is in force, since the Resource Manager has a clock of its own."""
MAX_SLEEP_SECONDS = 60.0
"""After how long the clock is read again, in case it was set."""
LONGEST_ID, LONGEST_NAME = 64, 80
PAUSES_BETWEEN_TRIES = (0.5, 2, 0)
"""Seconds after each TEMPORARY_ERROR."""
LONGEST_LOGGED = 4000
INSTRUCTION_FIELDS = {"InstructionStatusUpdate": "instruction_id", "RevokeObject": "object_id"}
"""Where a Resource Manager refers to an instruction."""
MEASURES_NOTHING = "a list of no quantities is taken: it measures no power"
BY_MESSAGE_ID = "an instruction is named by the message_id of its message"
LARGE = 65_536
"""From this many characters on, a message is read beside the event loop."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Events:
        """What the session's owner is told, each a plain function of the session (and the message).

        `details`: of new ResourceManagerDetails, before they are confirmed; what it returns becomes the
        confirmation's diagnostic_label, and it may raise InvalidContent. `established`: they are
        confirmed. `selected`: another control type is active. `message`: a message was confirmed, and
        done what it says.
        """

        details: Any
        established: Any
        selected: Any
        message: Any

    @dataclass
    class Pending:
        """A message that waits for its confirmation, and what to do at once when it comes."""

        future: asyncio.Future
        at_once: Any

    @dataclass
    class Taken:
        """A message that was accepted: what its confirmation says, and what to do (async) after it."""

        label: str | None = None
        then: Any = None

    @dataclass(eq=False, repr=False)
    class Session:
        """A connection to one Resource Manager.

        `send_text` and `close_transport` are the transport's. `memory` maps (message_type, ids...) to
        the latest such message that is in force; `coming` has those that replace one of them at their
        valid_from, as (key, message) in that order. `instructions` maps an instruction's id to it and to its
        last status.
        `measures` has the commodity quantities that the details announce.
        `holder` is the resource whose own token was given, if it has one. `entry` deals with the Handshake.
        `leniencies` are those that the log has been warned of. `replaced` tells that another connection of
        the resource came; `characters` has how long the messages are that were remembered by an id of their
        own, and `coming_characters` those that are coming, by message_id; `replacing` is the task that puts
        those in force.
        """

        peer: str
        send_text: Any
        close_transport: Any
        events: Any
        holder: str | None = None
        entry: Any = None
        deepest: int = 64
        confirmation_seconds: float = 10
        stage: str = HANDSHAKE
        version: str | None = None
        details: Any = None
        measures: frozenset = frozenset()
        control_type: str | None = None
        memory: dict = field(default_factory=dict)
        coming: list = field(default_factory=list)
        instructions: dict = field(default_factory=dict)
        pending: dict = field(default_factory=dict)
        tasks: set = field(default_factory=set)
        last_message: datetime | None = None
        last_message_type: str | None = None
        why_ended: str | None = None
        complained: bool = False
        leniencies: set = field(default_factory=set)
        selecting: asyncio.Lock = field(default_factory=asyncio.Lock)
        selection_is_due: bool = False
        replaced: bool = False
        characters: dict = field(default_factory=dict)
        coming_characters: dict = field(default_factory=dict)
        replacing: asyncio.Task | None = None

    return Events, Pending, Taken, Session


Events, Pending, Taken, Session = records()
NOTHING_MORE = Taken()


@pyscript_compile
def name_of(session):
    """Return what the log calls this Resource Manager."""
    return f"{name(session.details)} ({session.peer})" if session.details else session.peer


@pyscript_compile
def name(details):
    """Return a Resource Manager's name on one line, else its resource_id."""
    return texts.label(details.name, LONGEST_NAME) or details.resource_id[:LONGEST_NAME]


@pyscript_compile
def log(session, arrow, text):
    """Write a line of the conversation."""
    if LOGGER.isEnabledFor(logging.DEBUG):
        shown = text if len(text) <= LONGEST_LOGGED else f"{text[:LONGEST_LOGGED]}… ({len(text)} characters)"
        LOGGER.debug("%s %s %s", name_of(session), arrow, shown)


@pyscript_compile
def complain(session, text, *details):
    """Warn of what a Resource Manager does wrong: once in a session, so that it cannot fill the log."""
    level = logging.DEBUG if session.complained else logging.WARNING
    session.complained = True
    LOGGER.log(level, f"%s {text}", name_of(session), *details)


@pyscript_compile
def warn_once(session: Session, leniencies: dict) -> None:
    """Warn of what was taken though it is not as S2 has it: once of each in a session."""
    for leniency, where in leniencies.items():
        level = logging.DEBUG if leniency in session.leniencies else logging.WARNING
        session.leniencies.add(leniency)
        LOGGER.log(level, "%s: %s: %s", name_of(session), where, leniency)


@pyscript_compile
async def receive(session, text):
    """Deal with what the Resource Manager sent: check it, act on it, confirm it; and then go on."""
    if session.stage == ENDED:
        return
    log(session, "→", text)
    message, subject, status, label, then, fatal = None, errors.NIL, OK, None, None, False
    leniencies = {}
    try:
        if len(text) > LARGE:
            message = await asyncio.to_thread(messages.parse, text, session.deepest, leniencies)
            if session.stage == ENDED:
                return
        else:
            message = messages.parse(text, session.deepest, leniencies)
        if message.message_type in INSTRUCTION_FIELDS:
            message = by_instruction_id(session, message, leniencies)
        warn_once(session, leniencies)
        if message.message_type == "ReceptionStatus":
            on_reception_status(session, message)
            return
        subject = message.message_id
        taken = take(session, message) or NOTHING_MORE
        weigh(session, message, len(text))
        label, then = taken.label, taken.then
    except errors.Refused as refused:
        if refused.needs_no_answer:
            complain(session, "sent a wrong ReceptionStatus: %s", refused)
            return
        status, label, fatal = refused.status, str(refused), refused.is_fatal
        subject = refused.subject if message is None else subject
    except Exception:
        LOGGER.exception("Dealing with a message of %s failed: please report this", name_of(session))
        status, label = "TEMPORARY_ERROR", "The CEM failed to deal with this message"
    await send_message(session, messages.reception_status(subject, status, label))
    if status != OK:
        complain(session, "was answered %s: %s", status, label)
        if fatal:
            await close(session, PROTOCOL_ERROR, label)
        return
    session.last_message, session.last_message_type = datetime.now(UTC), message.message_type
    if then and session.stage != ENDED:
        await then()
    elif session.stage == ESTABLISHED:
        tell(session, session.events.message, message)


@pyscript_compile
def by_instruction_id(session: Session, message: object, leniencies: dict) -> object:
    """Return a message that refers to an instruction, by its id where it gives its message_id."""
    name = INSTRUCTION_FIELDS[message.message_type]
    wanted = getattr(message, name)
    if wanted in session.instructions:
        return message
    for instruction_id, instruction in session.instructions.items():
        if instruction["message"]["message_id"] == wanted:
            leniencies[BY_MESSAGE_ID] = name
            return message.model_copy(update={name: instruction_id})
    return message


@pyscript_compile
def tell(session, event, *details):
    """Tell the session's owner; what goes wrong there is not the Resource Manager's business."""
    try:
        event(session, *details)
    except Exception:
        LOGGER.exception("Acting on what %s sent failed: please report this", name_of(session))


@pyscript_compile
def take(session, message):
    """Do what a message asks for; raise InvalidContent where that is wrong here. Return Taken or None."""
    kind = message.message_type
    if session.stage == HANDSHAKE:
        if kind == "Handshake":
            return session.entry(session, message)
        raise errors.InvalidContent(f"message_type: expected Handshake first, got {kind}")
    if session.stage == DETAILS and kind not in ("ResourceManagerDetails", "SessionRequest"):
        raise errors.InvalidContent(f"message_type: expected ResourceManagerDetails first, got {kind}")
    if kind in HANDLERS:
        return HANDLERS[kind](session, message)
    replace_what_is_due(session)
    if kind not in control_types.CHECKS:
        raise errors.InvalidContent(f"message_type: {kind} is not for a Resource Manager to send")
    if control_types.CONTROL_TYPE_OF[kind] != session.control_type:
        raise errors.InvalidContent(
            f"message_type: {kind} belongs to {control_types.CONTROL_TYPE_OF[kind]}, but "
            f"{session.control_type or 'no control type'} is active"
        )
    if check := control_types.CHECKS[kind]:
        warn_once(session, check(session.memory, message) or {})
    if "valid_from" in vars(message):
        return remember_by_validity(session, message)
    remember(session, message)
    return None


@pyscript_compile
def remember_by_validity(session: Session, message: object) -> Taken | None:
    """Keep a message that counts from its valid_from on; until then, the one that is in force does.

    From then on it replaces also what was announced before it. The first of its kind is remembered at once,
    though it is not in force yet: its status may be told before. Leakage has none, so that waits.
    """
    key, begins = key_of(message), message.valid_from
    session.coming = [each for each in session.coming if each[0] != key or each[1].valid_from < begins]
    in_force = session.memory.get(key)
    is_future = seconds_until(message) > 0
    if in_force is None:
        waits = is_future and message.message_type in control_types.WITHOUT_STATUS
    else:
        waits = is_future and in_force.valid_from < begins
    if not waits:
        remember(session, message)
        return None
    session.coming = sorted([*session.coming, (key, message)], key=when_valid)[:MAX_COMING]

    async def then():
        if session.replacing is None or session.replacing.done():
            session.replacing = spawn(session, replace_when_due(session))

    return Taken(then=then)


@pyscript_compile
def when_valid(item: tuple) -> datetime:
    """Sort key: when a (key, message) that is not valid yet will be."""
    return item[1].valid_from


@pyscript_compile
def seconds_until(message: object) -> float:
    """Return in how many seconds a message is in force; 0 or less where it is."""
    return (message.valid_from - datetime.now(UTC)).total_seconds() - CLOCK_TOLERANCE_SECONDS


@pyscript_compile
async def replace_when_due(session: Session) -> None:
    """Put messages in force at their valid_from, for as long as any is to come."""
    while session.coming:
        wait = seconds_until(session.coming[0][1])
        if wait > 0:
            await asyncio.sleep(min(wait + 0.01, MAX_SLEEP_SECONDS))
        replace_what_is_due(session)


@pyscript_compile
def replace_what_is_due(session: Session) -> None:
    """Put messages in force whose valid_from has come, and tell the owner of each as if it came now."""
    while session.coming and seconds_until(session.coming[0][1]) <= 0:
        _key, message = session.coming.pop(0)
        remember(session, message)
        LOGGER.info("%s: its %s is valid now", name_of(session), message.message_type)
        tell(session, session.events.message, message)


@pyscript_compile
def key_of(message: object) -> tuple:
    """Return the key that a message is remembered by."""
    kind = message.message_type
    ids = control_types.KEYS.get(kind)
    return (kind, *[getattr(message, name) for name in ids]) if ids else (kind,)


@pyscript_compile
def remember(session, message):
    """Keep a message as the latest of its kind; forget what referred to the one before."""
    kind = message.message_type
    ids = control_types.KEYS.get(kind)
    key = key_of(message)
    replaces = session.memory.pop(key, None) is not None
    session.memory[key] = message
    if ids and not replaces:
        same = [each for each in session.memory if each[0] == kind]
        if len(same) > (MOST_REMEMBERED if ids == ("id",) else MOST_STATUSES):
            del session.memory[same[0]]
            replaces = True
    if replaces and kind in control_types.REFERENCED:
        forget_what_dangles(session)


@pyscript_compile
def weigh(session, message, characters):
    """Forget the first of what was remembered by an id of its own, where it is too much all together.

    Of what is coming, what comes last is forgotten.
    """
    if session.coming and any(message is each for _key, each in session.coming):
        weigh_coming(session, message, characters)
        return
    if control_types.KEYS.get(message.message_type) != ("id",):
        return
    session.characters[message.message_type, message.id] = characters
    held = {key: size for key, size in session.characters.items() if key in session.memory}
    session.characters = held
    while sum(held.values()) > MOST_CHARACTERS and len(held) > 1:
        oldest = next(iter(held))
        del held[oldest]
        session.memory.pop(oldest, None)
        forget_what_dangles(session)


@pyscript_compile
def weigh_coming(session: Session, message: object, characters: int) -> None:
    """Forget what comes last, where what is coming is too much all together."""
    sizes = session.coming_characters | {message.message_id: characters}
    while session.coming:
        held = {each.message_id: sizes.get(each.message_id, 0) for _key, each in session.coming}
        session.coming_characters = held
        if sum(held.values()) <= MOST_CHARACTERS:
            return
        session.coming.pop()


@pyscript_compile
def forget_what_dangles(session):
    """Forget what refers to something that is not there any more."""
    for key, message in list(session.memory.items()):
        check = control_types.CHECKS.get(key[0])
        try:
            if check:
                check(session.memory, message)
        except errors.InvalidContent:
            del session.memory[key]


@pyscript_compile
def on_details(session, message):
    """Take ResourceManagerDetails; others replace the first, but not with another resource."""
    if session.details and message.resource_id != session.details.resource_id:
        raise errors.InvalidContent(
            f"resource_id: this session belongs to {session.details.resource_id}: open another for "
            f"{message.resource_id}"
        )
    if len(message.resource_id) > LONGEST_ID:
        raise errors.InvalidContent(f"resource_id: expected at most {LONGEST_ID} characters")
    if not message.resource_id.isprintable() or not message.resource_id.strip():
        raise errors.InvalidContent("resource_id: expected characters that can be printed")
    offered = [each.value for each in message.available_control_types]
    if offered == [control_types.NO_SELECTION]:
        raise errors.InvalidContent("available_control_types: expected one besides NO_SELECTION")
    told = session.events.details(session, message)
    session.details = message
    session.measures = frozenset({each.value for each in message.provides_power_measurement_types})
    if not message.provides_power_measurement_types:
        warn_once(session, {MEASURES_NOTHING: messages.MEASURED_QUANTITIES})
    session.stage = ESTABLISHED

    async def then():
        tell(session, session.events.established)

    return Taken(told, then)


@pyscript_compile
def on_power_measurement(session: Session, message: object) -> None:
    """Remember a measurement; refuse quantities that were not announced, where any was."""
    announced = session.measures
    for number, measured in enumerate(message.values):
        quantity = measured.commodity_quantity.value
        if announced and quantity not in announced:
            raise errors.InvalidContent(
                f"values[{number}].commodity_quantity: {quantity} is not in the "
                f"{messages.MEASURED_QUANTITIES} of the details: {', '.join(sorted(announced))}"
            )
    remember(session, message)


@pyscript_compile
def on_session_request(session, message):
    """End the session, as the Resource Manager asks; it connects again where it asked for that."""

    async def then():
        await close(session, NORMAL, f"the Resource Manager asked to {message.request.value}")

    return Taken(then=then)


@pyscript_compile
def on_revoke_object(session, message):
    """Forget what is revoked, and what refers to it."""
    kind, wanted = message.object_type.value, message.object_id
    instruction = session.instructions.get(wanted)
    if instruction and instruction["message"]["message_type"] == kind:
        del session.instructions[wanted]
        return
    for key, found in session.memory.items():
        if key[0] == kind and wanted in (getattr(found, "id", None), found.message_id):
            del session.memory[key]
            forget_what_dangles(session)
            return
    for place, (key, found) in enumerate(session.coming):
        if key[0] == kind and wanted in (getattr(found, "id", None), found.message_id):
            del session.coming[place]
            return
    raise errors.InvalidContent(f"object_id: there is no {kind} {wanted}")


@pyscript_compile
def on_instruction_status_update(session, message):
    """Remember what became of an instruction."""
    if message.instruction_id not in session.instructions:
        raise errors.InvalidContent(f"instruction_id: there is no instruction {message.instruction_id}")
    session.instructions[message.instruction_id]["status"] = message.status_type.value


@pyscript_compile
def on_handshake(_session, _message):
    """Refuse a Handshake within the session."""
    raise errors.InvalidContent("message_type: the session has had its Handshake")


@pyscript_compile
def on_reception_status(session, message):
    """Give a confirmation to who waits for it."""
    pending = session.pending.pop(message.subject_message_id, None)
    if pending is None:
        if message.status.value != OK:
            label = texts.quoted(message.diagnostic_label)
            subject = message.subject_message_id
            complain(session, "answered %s to %s: %s", message.status.value, subject, label)
        return
    if pending.at_once:
        pending.at_once(message)
    if not pending.future.done():
        pending.future.set_result(message)


HANDLERS = {
    "Handshake": on_handshake,
    "InstructionStatusUpdate": on_instruction_status_update,
    "PowerForecast": remember,
    "PowerMeasurement": on_power_measurement,
    "ResourceManagerDetails": on_details,
    "RevokeObject": on_revoke_object,
    "SessionRequest": on_session_request,
}


@pyscript_compile
async def send(session, message_type, **fields):
    """Send a message, and return it. After the session's end nothing is sent."""
    message = messages.new(message_type, **fields)
    await send_message(session, message)
    return message


@pyscript_compile
async def send_message(session, message):
    """Send a message that was made by `messages`."""
    if session.stage == ENDED:
        return
    text = messages.text(message)
    log(session, "←", text)
    try:
        await session.send_text(text)
    except ConnectionError as error:
        end(session, str(error) or "the connection broke")


@pyscript_compile
async def request(session, message_type, at_once=None, **fields):
    """Send a message, and return its ReceptionStatus; `at_once` gets it before anything that follows.

    After a TEMPORARY_ERROR it is sent again; a PERMANENT_ERROR ends the session. Raise NoConfirmation:
    without a confirmation in time, the session is closed. Not to be awaited where messages are received.
    """
    message = messages.new(message_type, **fields)
    if message_type.endswith("Instruction"):
        session.instructions[message["id"]] = {"message": message, "status": None}
        while len(session.instructions) > MOST_INSTRUCTIONS:
            del session.instructions[next(iter(session.instructions))]
    for pause in PAUSES_BETWEEN_TRIES:
        status = await confirmed(session, message, at_once)
        if status.status.value != "TEMPORARY_ERROR":
            break
        await asyncio.sleep(pause)
    if status.status.value == "PERMANENT_ERROR":
        await close(session, NORMAL, f"the Resource Manager answered PERMANENT_ERROR to {message_type}")
    return status


@pyscript_compile
async def confirmed(session, message, at_once):
    """Send a message, and return its ReceptionStatus; raise NoConfirmation."""
    message_id, message_type = message["message_id"], message["message_type"]
    if session.stage == ENDED:
        raise errors.NoConfirmation(f"{name_of(session)}: {session.why_ended}")
    future = asyncio.get_running_loop().create_future()
    session.pending[message_id] = Pending(future, at_once)
    try:
        await send_message(session, message)
        return await asyncio.wait_for(future, session.confirmation_seconds)
    except TimeoutError:
        text = f"{message_type} was not confirmed within {session.confirmation_seconds:g} s"
        await close(session, PROTOCOL_ERROR, text)
        raise errors.NoConfirmation(f"{name_of(session)}: {text}") from None
    finally:
        session.pending.pop(message_id, None)


@pyscript_compile
async def select(session, control_type):
    """Select a control type, and return the confirmation: it is active once that is OK.

    What was remembered of the one before is forgotten. One selection at a time: hold `selecting`. Raise
    NoConfirmation.
    """

    def activate(status):
        if status.status.value == OK:
            session.control_type = control_type
            session.memory = {
                key: message
                for key, message in session.memory.items()
                if key[0] not in control_types.CONTROL_TYPE_OF
            }
            session.coming.clear()
            session.instructions.clear()
            tell(session, session.events.selected)

    return await request(session, "SelectControlType", activate, control_type=control_type)


@pyscript_compile
def spawn(session, work):
    """Run something beside the receiving, for as long as the session lasts at most; return its task."""

    async def run():
        try:
            await work
        except errors.NoConfirmation as error:
            LOGGER.warning("%s", error)
        except Exception:
            LOGGER.exception("The session with %s failed: please report this", name_of(session))

    task = asyncio.get_running_loop().create_task(run())
    session.tasks.add(task)
    task.add_done_callback(session.tasks.discard)
    task.add_done_callback(lambda _task: work.close())
    return task


@pyscript_compile
async def bid_farewell(session, why, code=NORMAL, reconnect=False):
    """Tell the Resource Manager by a SessionRequest why the session ends, and close it."""
    if session.stage not in (HANDSHAKE, ENDED):
        asked = "RECONNECT" if reconnect else "TERMINATE"
        await send(session, "SessionRequest", request=asked, diagnostic_label=why)
    await close(session, code, why)


@pyscript_compile
async def close(session, code, why):
    """Close the connection, and say why."""
    if session.stage != ENDED:
        LOGGER.info("%s: closing (%s): %s", name_of(session), code, why)
        end(session, why)
        with suppress(ConnectionError):
            await session.close_transport(code, why)


@pyscript_compile
def end(session, why):
    """End the session: nobody waits any longer, nothing runs any more, nothing is remembered."""
    if session.stage == ENDED:
        return
    session.stage, session.why_ended = ENDED, why
    for pending in session.pending.values():
        if not pending.future.done():
            pending.future.set_exception(errors.NoConfirmation(f"{name_of(session)}: {why}"))
            pending.future.exception()
    session.pending.clear()
    session.memory.clear()
    session.coming.clear()
    session.instructions.clear()
    current = asyncio.current_task()
    for task in list(session.tasks):
        if task is not current:
            task.cancel()
