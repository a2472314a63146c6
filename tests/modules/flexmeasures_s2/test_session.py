"""The rules of a session, each over a real websocket; what is sent is checked against the schemas."""

import asyncio
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

import flexmeasures_cem.cem as cems
import flexmeasures_s2.message_store as message_store
import flexmeasures_s2.messages as messages
import flexmeasures_s2.session as sessions
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_devices import Battery, Meter
from tests.parts.s2_messages import example

NIL = "00000000-0000-0000-0000-000000000000"
FRBC, OMBC, PEBC = "FILL_RATE_BASED_CONTROL", "OPERATION_MODE_BASED_CONTROL", "POWER_ENVELOPE_BASED_CONTROL"
DDBC, PPBC = "DEMAND_DRIVEN_BASED_CONTROL", "POWER_PROFILE_BASED_CONTROL"
UNKNOWN = "no:such:thing"
CONVERSATIONS = {
    FRBC: [
        "FRBC.SystemDescription",
        "FRBC.ActuatorStatus",
        "FRBC.StorageStatus",
        "FRBC.TimerStatus",
        "FRBC.LeakageBehaviour",
        "FRBC.UsageForecast",
        "FRBC.FillLevelTargetProfile",
    ],
    OMBC: ["OMBC.SystemDescription", "OMBC.Status", "OMBC.TimerStatus"],
    DDBC: [
        "DDBC.SystemDescription",
        "DDBC.ActuatorStatus",
        "DDBC.TimerStatus",
        "DDBC.AverageDemandRateForecast",
    ],
    PPBC: ["PPBC.PowerProfileDefinition", "PPBC.PowerProfileStatus"],
    PEBC: ["PEBC.PowerConstraints", "PEBC.EnergyConstraint"],
    "NOT_CONTROLABLE": ["PowerMeasurement", "PowerForecast"],
}


def session_of(cem):
    """Return the only session there is."""
    [session] = cem.listener.sessions
    return session


def remembered(session):
    """Return which message types are remembered."""
    return sorted(key[0] for key in session.memory)


async def say(rm, *message_types):
    """Send examples, each of which is to be accepted; return them."""
    messages = [example(each) for each in message_types]
    for message in messages:
        assert (await rm.ask(message))["status"] == "OK", message["message_type"]
    return messages


async def greet(rm):
    """Exchange the Handshakes."""
    await rm.next("Handshake")
    await say(rm, "Handshake")
    await rm.next("HandshakeResponse")


async def refused(rm, message, status="INVALID_CONTENT"):
    """Send a message that is to be refused; return the diagnostic label."""
    answer = await rm.ask(message)
    assert answer["status"] == status, answer
    return answer["diagnostic_label"]


def reception(message, status="OK", **fields):
    """Return a ReceptionStatus for a message."""
    return {
        "message_type": "ReceptionStatus",
        "subject_message_id": message["message_id"],
        "status": status,
    } | fields


# How a session is entered


async def test_our_handshake_comes_first_and_at_once(cem):
    async with ResourceManager(cem.url) as rm:
        handshake = await rm.next()
        assert handshake["message_type"] == "Handshake"
        assert handshake["role"] == "CEM"
        assert handshake["supported_protocol_versions"] == ["1.0.0", "0.0.2-beta"]
        await say(rm, "Handshake")
        await rm.next("HandshakeResponse")
        kinds = [each["message_type"] for each in rm.received]
        assert kinds == ["Handshake", "ReceptionStatus", "HandshakeResponse"]


@pytest.mark.parametrize(
    ("theirs", "chosen"),
    [
        (["0.0.2-beta"], "0.0.2-beta"),
        (["0.0.2-beta", "1.0.0"], "1.0.0"),
        (["v0.0.2-beta"], "v0.0.2-beta"),
        (["v1.0.0", "0.0.2-beta"], "v1.0.0"),
        (["3.0.0", "1.0.0-rc1", "0.0.2-beta", ""], "0.0.2-beta"),
    ],
)
async def test_the_version_is_chosen_from_their_list(cem, theirs, chosen):
    async with ResourceManager(cem.url) as rm:
        await rm.next("Handshake")
        await rm.ask(example("Handshake", supported_protocol_versions=theirs))
        assert (await rm.next("HandshakeResponse"))["selected_protocol_version"] == chosen


@pytest.mark.parametrize("theirs", [["2.0.0", "1.0"], [], None])
async def test_without_a_common_version_it_says_so_and_closes(cem, theirs):
    async with ResourceManager(cem.url) as rm:
        handshake = example("Handshake", supported_protocol_versions=theirs)
        if theirs is None:
            del handshake["supported_protocol_versions"]
        label = await refused(rm, handshake, "INVALID_MESSAGE" if theirs == [] else "INVALID_CONTENT")
        assert "supported_protocol_versions" in label
        if theirs != []:
            assert all(each in label for each in ["1.0.0", "0.0.2-beta", *(theirs or [])])
            assert await rm.closed() == 1002


async def test_a_handshake_of_another_cem_is_refused(cem):
    async with ResourceManager(cem.url) as rm:
        assert "role" in await refused(rm, example("Handshake", role="CEM"))
        await greet(rm)


@pytest.mark.parametrize("kind", ["ResourceManagerDetails", "PowerMeasurement", "SessionRequest"])
async def test_nothing_is_taken_before_the_handshake(cem, kind):
    async with ResourceManager(cem.url) as rm:
        assert "Handshake" in await refused(rm, example(kind))
        assert await rm.establish() == FRBC


@pytest.mark.parametrize("kind", ["Handshake", "PowerMeasurement", "FRBC.SystemDescription", "RevokeObject"])
async def test_nothing_is_taken_before_the_details(cem, kind):
    async with ResourceManager(cem.url) as rm:
        await greet(rm)
        assert "ResourceManagerDetails" in await refused(rm, example(kind))
        assert (await rm.ask(rm.details))["status"] == "OK"
        assert (await rm.next("SelectControlType"))["control_type"] == FRBC


@pytest.mark.parametrize(("length", "status"), [(64, "OK"), (65, "INVALID_CONTENT")])
async def test_a_resource_id_has_up_to_64_characters(cem, length, status):
    async with ResourceManager(cem.url, resource_id="x" * length) as rm:
        await greet(rm)
        assert (await rm.ask(rm.details))["status"] == status


async def test_what_is_of_another_type_is_not_revoked(cem):
    async with connected(cem) as rm:
        [description] = await say(rm, "FRBC.SystemDescription")
        revoke = {"object_type": "OMBC.SystemDescription", "object_id": description["message_id"]}
        assert "object_id" in await refused(rm, example("RevokeObject", **revoke))
        assert "FRBC.SystemDescription" in remembered(session_of(cem))


async def test_a_second_handshake_is_refused(cem):
    async with connected(cem) as rm:
        assert "Handshake" in await refused(rm, example("Handshake"))
        await say(rm, "PowerMeasurement")


async def test_a_session_may_be_ended_before_its_details(cem):
    async with ResourceManager(cem.url) as rm:
        await greet(rm)
        await say(rm, "SessionRequest")
        assert await rm.closed() == 1000


@pytest.mark.parametrize("stage", ["Handshake", "ResourceManagerDetails"])
async def test_who_does_not_establish_a_session_is_sent_away(serve, stage):
    cem = await serve(limits={"handshake": 0.3})
    async with ResourceManager(cem.url) as rm:
        if stage == "ResourceManagerDetails":
            await greet(rm)
        assert await rm.closed() == 1008
    await until(lambda: not cem.listener.sessions)


async def test_who_has_established_a_session_stays(serve):
    cem = await serve(limits={"handshake": 0.2})
    async with connected(cem) as rm:
        await asyncio.sleep(0.3)
        await say(rm, "PowerMeasurement")


async def test_only_no_selection_is_nothing_to_offer(cem):
    async with ResourceManager(cem.url, control_types=["NO_SELECTION"]) as rm:
        await greet(rm)
        assert "available_control_types" in await refused(rm, rm.details)


# What is confirmed


@pytest.mark.parametrize("control_type", CONVERSATIONS)
async def test_a_whole_dialogue_is_taken_told_and_remembered(cem, control_type):
    async with connected(cem, control_types=[control_type], name="Device") as rm:
        assert rm.selected == control_type
        said = await say(rm, *CONVERSATIONS[control_type], "PowerMeasurement", "PowerForecast")
        told = await until(lambda: cem.received if len(cem.received) == len(said) else None)
        assert [(name, message.message_id) for name, message in told] == [
            ("Device", message["message_id"]) for message in said
        ]
        assert set(remembered(session_of(cem))) == {message["message_type"] for message in said}


async def test_every_message_gets_exactly_one_reception_status(cem):
    async with connected(cem) as rm:
        said = await say(rm, *CONVERSATIONS[FRBC], "PowerMeasurement")
        wrong = [
            example("Handshake"),
            example("OMBC.Status"),
            example("FRBC.ActuatorStatus", actuator_id=UNKNOWN),
            example("PowerMeasurement", values=[]),
            {"message_type": "Nonsense", "message_id": str(uuid4())},
            example("SelectControlType"),
        ]
        for message in wrong:
            assert (await rm.ask(message))["status"].startswith("INVALID_")
        said += wrong
        await say(rm, "PowerMeasurement")
        answered = Counter(message.get("subject_message_id") for message in rm.received)
        assert [answered[message["message_id"]] for message in said] == [1] * len(said)


async def test_the_same_message_again_is_confirmed_again(cem):
    async with connected(cem) as rm:
        message = example("PowerMeasurement")
        for _ in range(2):
            assert (await rm.ask(message))["status"] == "OK"
        assert len(rm.statuses(message["message_id"])) == 2


@pytest.mark.parametrize(
    "message",
    [
        example("ReceptionStatus", subject_message_id=UNKNOWN),
        example("ReceptionStatus", status="WEIRD"),
        example("ReceptionStatus", message_id=str(uuid4())),
        {"message_type": "ReceptionStatus"},
        {"message_type": "ReceptionStatus", "message_id": UNKNOWN, "subject_message_id": 7},
    ],
)
async def test_a_reception_status_gets_none(cem, message):
    async with connected(cem) as rm:
        before = len(rm.received)
        await rm.send(message)
        await say(rm, "PowerMeasurement")
        assert len(rm.received) == before + 1


async def test_answers_keep_the_order_of_the_messages(cem):
    async with connected(cem) as rm:
        large = example("PowerMeasurement", values=example("PowerMeasurement")["values"] * 2000)
        messages = [large, *[example("PowerMeasurement") for _ in range(5)]]
        for message in messages:
            await rm.send(message)
        await until(lambda: rm.statuses(messages[-1]["message_id"]))
        answered = [each["subject_message_id"] for each in rm.received if "subject_message_id" in each]
        assert answered[-6:] == [message["message_id"] for message in messages]


async def test_who_listens_and_fails_does_not_harm_the_session(cem):
    cem.cem.received = lambda *_: 1 / 0
    async with connected(cem) as rm:
        await say(rm, "PowerMeasurement", "PowerMeasurement")


# Selecting a control type


async def test_a_control_type_is_active_once_it_is_confirmed(cem):
    async with ResourceManager(cem.url, name="Battery") as rm:
        rm.answers["SelectControlType"] = None
        await rm.establish()
        label = await refused(rm, example("FRBC.SystemDescription"))
        assert "no control type is active" in label
        [selection] = [each for each in rm.received if each["message_type"] == "SelectControlType"]
        await rm.send(reception(selection))
        await say(rm, "FRBC.SystemDescription")
        assert cem.changes == [("Battery", True, None), ("Battery", True, FRBC)]


async def test_a_message_right_after_the_confirmation_is_taken(cem):
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = None
        await rm.establish()
        [selection] = [each for each in rm.received if each["message_type"] == "SelectControlType"]
        description = example("FRBC.SystemDescription")
        await asyncio.gather(rm.send(reception(selection)), rm.send(description))
        await until(lambda: rm.statuses(description["message_id"]))
        assert [each["status"] for each in rm.statuses(description["message_id"])] == ["OK"]


@pytest.mark.parametrize("status", ["INVALID_CONTENT", "INVALID_MESSAGE", "INVALID_DATA"])
async def test_a_refused_selection_is_not_active_and_the_session_lives_on(cem, status, caplog):
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = status
        await rm.establish()
        await refused(rm, example("FRBC.StorageStatus"))
        await say(rm, "PowerMeasurement")
        assert session_of(cem).control_type is None
        await until(lambda: status in caplog.text)


async def test_after_a_temporary_error_the_same_message_comes_again(cem, monkeypatch):
    monkeypatch.setitem(sessions.Session.request.__globals__, "PAUSES_BETWEEN_TRIES", (0, 0, 0))
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = None
        await rm.establish()
        [first] = [each for each in rm.received if each["message_type"] == "SelectControlType"]
        for _ in range(2):
            await rm.send(reception(first, "TEMPORARY_ERROR"))
            assert await rm.next("SelectControlType") == first
        await rm.send(reception(first))
        await say(rm, "FRBC.StorageStatus")


async def test_temporary_errors_end_at_some_time(cem, monkeypatch):
    monkeypatch.setitem(sessions.Session.request.__globals__, "PAUSES_BETWEEN_TRIES", (0, 0, 0))
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = "TEMPORARY_ERROR"
        await rm.establish()
        await until(lambda: len([e for e in rm.received if e["message_type"] == "SelectControlType"]) == 3)
        await say(rm, "PowerMeasurement")
        assert session_of(cem).control_type is None


async def test_a_permanent_error_ends_the_session(cem):
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = "PERMANENT_ERROR"
        await rm.establish()
        assert await rm.closed() == 1000


async def test_an_unconfirmed_selection_ends_the_session(serve):
    cem = await serve(limits={"confirmation": 0.3})
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = None
        await rm.establish()
        assert await rm.closed() == 1002


async def test_an_unconfirmed_handshake_ends_nothing(serve):
    cem = await serve(limits={"confirmation": 0.3})
    async with ResourceManager(cem.url) as rm:
        rm.answers |= {"Handshake": None, "HandshakeResponse": None}
        await rm.establish()
        await say(rm, "PowerMeasurement")


async def test_another_control_type_forgets_what_belonged_to_the_one_before(cem):
    async with connected(cem, control_types=[FRBC, PEBC]) as rm:
        await say(rm, *CONVERSATIONS[FRBC], "PowerMeasurement")
        session = session_of(cem)
        await session.select(PEBC)
        assert remembered(session) == ["PowerMeasurement"]
        assert "FILL_RATE" in await refused(rm, example("FRBC.StorageStatus"))
        await say(rm, *CONVERSATIONS[PEBC])


# SessionRequest, ResourceManagerDetails, replacement


@pytest.mark.parametrize("request_type", ["RECONNECT", "TERMINATE"])
async def test_a_session_request_is_confirmed_and_honoured(cem, request_type):
    async with connected(cem, name="Battery") as rm:
        assert (await rm.ask(example("SessionRequest", request=request_type)))["status"] == "OK"
        assert await rm.closed() == 1000
        await until(lambda: cem.changes[-1] == ("Battery", False, None))


async def test_other_details_replace_the_first(cem):
    async with connected(cem, name="Old") as rm:
        await rm.ask(rm.details | {"message_id": str(uuid4()), "name": "New"})
        await say(rm, "PowerMeasurement")
        await until(lambda: cem.received)
        [resource] = cem.cem.resources.values()
        assert (resource.name, cem.received[0][0]) == ("New", "New")
        assert len([each for each in rm.received if each["message_type"] == "SelectControlType"]) == 1


async def test_other_control_types_lead_to_another_selection(cem):
    async with connected(cem) as rm:
        details = rm.details | {"message_id": str(uuid4()), "available_control_types": [OMBC]}
        assert (await rm.ask(details))["status"] == "OK"
        assert (await rm.next("SelectControlType"))["control_type"] == OMBC
        await say(rm, *CONVERSATIONS[OMBC])


async def test_details_of_another_resource_are_refused(cem):
    async with connected(cem, resource_id="battery:1") as rm:
        details = rm.details | {"message_id": str(uuid4()), "resource_id": "battery:2"}
        assert "resource_id" in await refused(rm, details)
        await say(rm, "FRBC.SystemDescription")
        assert [*cem.cem.resources] == ["battery:1"]


async def test_a_second_connection_of_a_resource_replaces_the_first_and_both_are_told(cem):
    async with connected(cem, resource_id="battery:1") as first:
        await say(first, "FRBC.SystemDescription")
        async with ResourceManager(cem.url, resource_id="battery:1", name="Again") as second:
            await greet(second)
            told = await second.ask(second.details)
            assert (told["status"], "replaces" in told["diagnostic_label"]) == ("OK", True)
            await second.next("SelectControlType")
            farewell = await first.next("SessionRequest")
            assert (farewell["request"], "replaces" in farewell["diagnostic_label"]) == ("TERMINATE", True)
            assert await first.closed() == 1000
            await say(second, "PowerMeasurement")
            await until(lambda: len(cem.listener.sessions) == 1)
            assert remembered(session_of(cem)) == ["PowerMeasurement"]
            assert cem.changes[-1] == ("Again", True, FRBC)


async def test_a_connection_that_is_replaced_is_closed_even_if_the_new_one_ends_at_once():
    cem = cems.Cem(lambda _: None, lambda *_: None)
    details = messages.parse(json.dumps(example("ResourceManagerDetails")))
    closed = []

    class Transport:
        """Remember the code that a peer's connection is closed with."""

        def __init__(self, peer):
            self.peer = peer

        async def send(self, _text):
            await asyncio.sleep(0)

        async def close(self, code, _reason):
            closed.append((self.peer, code))

    def make(peer):
        events, stage = cems.events(cem), sessions.DETAILS
        session = sessions.Session(peer=peer, transport=Transport(peer), events=events, stage=stage)
        session.details = details
        return session

    old, new = make("old"), make("new")
    cems.on_details(cem, old, details)
    old.stage = sessions.ESTABLISHED
    cems.on_details(cem, new, details)
    new.end("gone")
    await until(lambda: closed)
    assert closed == [("old", 1000)]


async def test_what_is_left_of_an_ended_session_is_not_taken():
    cem = cems.Cem(lambda _: None, lambda *_: None)

    events = cems.events(cem)
    session = sessions.Session(peer="peer", transport=None, events=events, stage=sessions.DETAILS)
    session.end("gone")
    await session.receive(json.dumps(example("ResourceManagerDetails")))
    assert session.stage == sessions.ENDED
    assert cem.resources == {}


async def test_two_resource_managers_do_not_see_each_other(cem):
    async with connected(cem, name="A") as first, connected(cem, name="B", control_types=[OMBC]) as second:
        for kind in CONVERSATIONS[FRBC]:
            await say(first, kind)
            if kind in CONVERSATIONS[FRBC][:3]:
                await say(second, CONVERSATIONS[OMBC][CONVERSATIONS[FRBC].index(kind)])
        await refused(second, example("FRBC.StorageStatus"))
        await refused(first, example("OMBC.Status"))
        memories = {session.details.name: remembered(session) for session in cem.listener.sessions}
        assert memories == {"A": sorted(CONVERSATIONS[FRBC]), "B": sorted(CONVERSATIONS[OMBC])}
        ids = [{each.get("subject_message_id") for each in rm.received} - {None} for rm in (first, second)]
        assert not ids[0] & ids[1]


async def test_the_end_of_one_session_leaves_the_other(cem):
    async with connected(cem) as first:
        async with connected(cem) as second:
            await second.ask(example("SessionRequest"))
            await second.closed()
        await say(first, "FRBC.SystemDescription")


# Bad input


def without(message, field):
    """Return a message without a field."""
    return {name: value for name, value in message.items() if name != field}


def described(change):
    """Return a system description that `change` has been at work on."""
    message = example("FRBC.SystemDescription")
    change(message)
    return message


def actuator(message):
    """Return the first actuator of a description."""
    return message["actuators"][0]


def upside_down(message):
    """Turn a range upside down."""
    message["storage"]["fill_level_range"] = {"start_of_range": 100, "end_of_range": 0}


def overlapping(message):
    """Have an operation mode two elements for the same fill levels."""
    elements = actuator(message)["operation_modes"][1]["elements"]
    levels = [{"start_of_range": 0, "end_of_range": 60}, {"start_of_range": 50, "end_of_range": 100}]
    elements[:] = [elements[0] | {"fill_level_range": each} for each in levels]


BAD = {
    "no JSON": ("hello", "INVALID_DATA", "JSON"),
    "half a JSON": ('{"message_type": "Handshake", ', "INVALID_DATA", "JSON"),
    "no object": ("[1, 2]", "INVALID_DATA", "object"),
    "a text": ('"hello"', "INVALID_DATA", "object"),
    "deep": ("[" * 100_000, "INVALID_DATA", "JSON"),
    "no id": (without(example("FRBC.StorageStatus"), "message_id"), "INVALID_DATA", "message_id"),
    "a number for an id": (example("FRBC.StorageStatus", message_id=7), "INVALID_MESSAGE", "message_id"),
    "no type": (without(example("FRBC.StorageStatus"), "message_type"), "INVALID_MESSAGE", "message_type"),
    "an unknown type": (example("Handshake") | {"message_type": "Hello"}, "INVALID_MESSAGE", "message_type"),
    "a missing field": (
        without(example("FRBC.StorageStatus"), "present_fill_level"),
        "INVALID_MESSAGE",
        "present_fill_level",
    ),
    "a text for a number": (
        example("FRBC.StorageStatus", present_fill_level="12"),
        "INVALID_MESSAGE",
        "present_fill_level",
    ),
    "NaN": (
        example("FRBC.StorageStatus", present_fill_level=float("nan")),
        "INVALID_MESSAGE",
        "present_fill_level",
    ),
    "null for what is required": (
        example("FRBC.StorageStatus", present_fill_level=None),
        "INVALID_MESSAGE",
        "present_fill_level",
    ),
    "an unknown field": (example("FRBC.StorageStatus", soc=1), "INVALID_MESSAGE", "soc"),
    "a range upside down": (described(upside_down), "INVALID_CONTENT", "storage.fill_level_range"),
    "two actuators of one id": (
        described(lambda message: message["actuators"].append(actuator(message))),
        "INVALID_CONTENT",
        "actuators",
    ),
    "elements that overlap": (described(overlapping), "INVALID_CONTENT", "elements"),
    "a transition to nowhere": (
        described(lambda message: actuator(message)["transitions"][0].update(to=UNKNOWN)),
        "INVALID_CONTENT",
        "actuators[0]",
    ),
    "an unknown actuator": (
        example("FRBC.ActuatorStatus", actuator_id=UNKNOWN),
        "INVALID_CONTENT",
        "actuator_id",
    ),
    "an unknown mode": (
        example("FRBC.ActuatorStatus", active_operation_mode_id=UNKNOWN),
        "INVALID_CONTENT",
        "active_operation_mode_id",
    ),
    "an unknown previous mode": (
        example("FRBC.ActuatorStatus", previous_operation_mode_id=UNKNOWN),
        "INVALID_CONTENT",
        "previous_operation_mode_id",
    ),
    "a factor of 2": (
        example("FRBC.ActuatorStatus", operation_mode_factor=2),
        "INVALID_CONTENT",
        "operation_mode_factor",
    ),
    "an unknown timer": (example("FRBC.TimerStatus", timer_id=UNKNOWN), "INVALID_CONTENT", "timer_id"),
    "another control type": (example("PEBC.PowerConstraints"), "INVALID_CONTENT", "message_type"),
    "what a CEM sends": (example("SelectControlType"), "INVALID_CONTENT", "message_type"),
    "an instruction": (example("FRBC.Instruction"), "INVALID_CONTENT", "message_type"),
    "an unknown instruction": (example("InstructionStatusUpdate"), "INVALID_CONTENT", "instruction_id"),
    "an unknown object": (example("RevokeObject", object_id=UNKNOWN), "INVALID_CONTENT", "object_id"),
}


@pytest.mark.parametrize(("message", "status", "word"), BAD.values(), ids=BAD)
async def test_bad_input_is_answered_and_the_session_lives_on(cem, message, status, word):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription", "FRBC.ActuatorStatus")
        before = len(rm.received)
        await rm.send(message)
        await until(lambda: len(rm.received) > before)
        answer = rm.received[before]
        given = message.get("message_id") if isinstance(message, dict) else None
        assert answer["subject_message_id"] == (given if isinstance(given, str) else NIL)
        assert (answer["status"], word in answer["diagnostic_label"]) == (status, True), answer
        await say(rm, "FRBC.SystemDescription", "FRBC.ActuatorStatus", "FRBC.StorageStatus")
        assert len(rm.received) == before + 4


OTHER_BAD = {
    "OMBC: an unknown mode": (
        OMBC,
        "OMBC.Status",
        {"active_operation_mode_id": UNKNOWN},
        "operation_mode_id",
    ),
    "OMBC: a factor of -1": (OMBC, "OMBC.Status", {"operation_mode_factor": -1}, "operation_mode_factor"),
    "OMBC: an unknown timer": (OMBC, "OMBC.TimerStatus", {"timer_id": UNKNOWN}, "timer_id"),
    "DDBC: an unknown actuator": (DDBC, "DDBC.ActuatorStatus", {"actuator_id": UNKNOWN}, "actuator_id"),
    "DDBC: an unknown timer": (DDBC, "DDBC.TimerStatus", {"timer_id": UNKNOWN}, "timer_id"),
    "DDBC: demand upside down": (
        DDBC,
        "DDBC.SystemDescription",
        {"present_demand_rate": {"start_of_range": 2, "end_of_range": 1}},
        "present_demand_rate",
    ),
    "PEBC: an end before its start": (
        PEBC,
        "PEBC.PowerConstraints",
        {"valid_until": "2020-01-01T00:00:00Z"},
        "valid_until",
    ),
    "PEBC: energy upside down": (
        PEBC,
        "PEBC.EnergyConstraint",
        {"lower_average_power": 9e9},
        "average_power",
    ),
    "PPBC: an end before its start": (
        PPBC,
        "PPBC.PowerProfileDefinition",
        {"end_time": "2020-01-01T00:00:00Z"},
        "end_time",
    ),
    "PPBC: an unknown profile": (
        PPBC,
        "PPBC.PowerProfileStatus",
        {
            "sequence_container_status": [
                {"power_profile_id": UNKNOWN, "sequence_container_id": UNKNOWN, "status": "FINISHED"}
            ]
        },
        "sequence_container_status[0].power_profile_id",
    ),
}


@pytest.mark.parametrize(("control_type", "kind", "changes", "word"), OTHER_BAD.values(), ids=OTHER_BAD)
async def test_what_refers_to_nothing_is_invalid_content(cem, control_type, kind, changes, word):
    async with connected(cem, control_types=[control_type]) as rm:
        await say(rm, *CONVERSATIONS[control_type])
        assert word in await refused(rm, example(kind, **changes))
        await say(rm, *CONVERSATIONS[control_type])


@pytest.mark.parametrize(
    ("control_type", "kind"),
    [
        (FRBC, "FRBC.ActuatorStatus"),
        (FRBC, "FRBC.TimerStatus"),
        (OMBC, "OMBC.Status"),
        (OMBC, "OMBC.TimerStatus"),
        (DDBC, "DDBC.ActuatorStatus"),
        (PPBC, "PPBC.PowerProfileStatus"),
    ],
)
async def test_what_comes_before_its_description_is_invalid_content(cem, control_type, kind):
    async with connected(cem, control_types=[control_type]) as rm:
        await refused(rm, example(kind))
        await say(rm, *CONVERSATIONS[control_type])


# What is remembered


async def test_the_latest_is_remembered_of_each(cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription", "FRBC.StorageStatus")
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=77))
        memory = session_of(cem).memory
        assert memory["FRBC.StorageStatus",].present_fill_level == 77
        assert len(memory) == 2


async def test_another_description_forgets_what_referred_to_the_one_before(cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription", "FRBC.ActuatorStatus", "FRBC.StorageStatus")
        text = json.dumps(example("FRBC.SystemDescription"))
        old = example("FRBC.ActuatorStatus")["actuator_id"]
        assert (await rm.ask(json.loads(text.replace(old, "inverter:2"))))["status"] == "OK"
        assert remembered(session_of(cem)) == ["FRBC.StorageStatus", "FRBC.SystemDescription"]


@pytest.mark.parametrize(
    ("control_type", "kind", "id_field", "left"),
    [
        (
            FRBC,
            "FRBC.SystemDescription",
            "message_id",
            {
                "FRBC.StorageStatus",
                "FRBC.LeakageBehaviour",
                "FRBC.UsageForecast",
                "FRBC.FillLevelTargetProfile",
            },
        ),
        (OMBC, "OMBC.SystemDescription", "message_id", set()),
        (DDBC, "DDBC.SystemDescription", "message_id", {"DDBC.AverageDemandRateForecast"}),
        (PEBC, "PEBC.PowerConstraints", "id", {"PEBC.EnergyConstraint"}),
        (PEBC, "PEBC.EnergyConstraint", "id", {"PEBC.PowerConstraints"}),
        (PPBC, "PPBC.PowerProfileDefinition", "id", set()),
    ],
)
async def test_what_is_revoked_is_forgotten_and_what_refers_to_it(cem, control_type, kind, id_field, left):
    async with connected(cem, control_types=[control_type]) as rm:
        said = await say(rm, *CONVERSATIONS[control_type])
        [revoked] = [message for message in said if message["message_type"] == kind]
        revoke = {"object_type": kind, "object_id": revoked[id_field]}
        assert (await rm.ask(example("RevokeObject", **revoke)))["status"] == "OK"
        assert set(remembered(session_of(cem))) == left
        assert "object_id" in await refused(rm, example("RevokeObject", **revoke))


def of_later(message_type, minutes, **changes):
    """Return an example with a valid_from in some minutes, and ids of its own but for its actuators'."""
    text = json.dumps(example(message_type))
    for identity in set(re.findall(r'"(?:Id|id)": "([^"]+)"', text)):
        text = text.replace(identity, f"later:{identity[:20]}")
    begins = datetime.now(UTC) + timedelta(minutes=minutes)
    return json.loads(text) | {"message_id": str(uuid4()), "valid_from": begins.isoformat()} | changes


@pytest.mark.parametrize(
    ("control_type", "status"),
    [(FRBC, "FRBC.ActuatorStatus"), (OMBC, "OMBC.Status"), (DDBC, "DDBC.ActuatorStatus")],
)
async def test_a_description_replaces_the_one_in_force_once_it_is_valid(clock, cem, control_type, status):
    kind = status.split(".")[0] + ".SystemDescription"
    async with connected(cem, control_types=[control_type]) as rm:
        [first, _status] = await say(rm, kind, status)
        later = of_later(kind, 60)
        assert (await rm.ask(later))["status"] == "OK"
        await say(rm, status)
        memory, told = session_of(cem).memory, len(cem.received)
        assert memory[kind,].message_id == first["message_id"]
        await asyncio.sleep(3590)
        await say(rm, status)
        assert [message for _name, message in cem.received[told:] if message.message_type == kind] == []
        await asyncio.sleep(10)
        assert memory[kind,].message_id == later["message_id"]
        assert cem.received[-1][1] is memory[kind,]
        assert remembered(session_of(cem)) == [kind]
        await refused(rm, example(status))


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        ([60, 30], {0: None, 30: 1, 60: 1}),
        ([30, 60], {0: None, 30: 0, 60: 1}),
        ([60, 60], {0: None, 60: 1}),
        ([60, -5], {0: 1, 60: 1}),
        ([30, 60, 0], {0: 2, 30: 2, 60: 2}),
        ([60, 30, 45], {0: None, 30: 1, 45: 2, 60: 2}),
    ],
)
async def test_the_description_that_came_last_replaces_the_others_from_its_valid_from_on(
    clock, cem, minutes, expected
):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        start = asyncio.get_running_loop().time()
        later = [of_later("FRBC.SystemDescription", each) for each in minutes]
        for message in later:
            assert (await rm.ask(message))["status"] == "OK"
        for minute, number in expected.items():
            await asyncio.sleep(max(start + minute * 60 + 1 - asyncio.get_running_loop().time(), 0))
            [found] = session_of(cem).memory.values()
            ids = [message["message_id"] for message in later]
            assert (found.message_id in ids) is (number is not None)
            assert number is None or found.message_id == ids[number]


async def test_a_first_description_of_later_gives_way_to_one_of_now(clock, cem):
    async with connected(cem) as rm:
        first = of_later("FRBC.SystemDescription", 60)
        assert (await rm.ask(first))["status"] == "OK"
        [now] = await say(rm, "FRBC.SystemDescription")
        await asyncio.sleep(3700)
        [found] = session_of(cem).memory.values()
        assert found.message_id == now["message_id"]


async def test_a_description_of_later_can_be_revoked(clock, cem):
    async with connected(cem) as rm:
        [first] = await say(rm, "FRBC.SystemDescription")
        later = of_later("FRBC.SystemDescription", 60)
        assert (await rm.ask(later))["status"] == "OK"
        revoke = {"object_type": "FRBC.SystemDescription", "object_id": later["message_id"]}
        assert (await rm.ask(example("RevokeObject", **revoke)))["status"] == "OK"
        await refused(rm, example("RevokeObject", **revoke))
        await asyncio.sleep(3700)
        [found] = session_of(cem).memory.values()
        assert found.message_id == first["message_id"]


async def test_one_of_later_is_forgotten_with_its_control_type(clock, cem):
    async with connected(cem, control_types=[FRBC, PEBC]) as rm:
        await say(rm, "FRBC.SystemDescription")
        assert (await rm.ask(of_later("FRBC.SystemDescription", 60)))["status"] == "OK"
        await cems.change_control_type(cem.cem, cems.connected(cem.cem), PEBC)
        await asyncio.sleep(3700)
        assert remembered(session_of(cem)) == []


@pytest.mark.parametrize("kind", ["PEBC.PowerConstraints", "PEBC.EnergyConstraint"])
async def test_constraints_of_the_same_id_replace_those_in_force_once_they_are_valid(clock, cem, kind):
    async with connected(cem, control_types=[PEBC]) as rm:
        now, later = datetime.now(UTC), datetime.now(UTC) + timedelta(hours=1)
        span = {"valid_until": (now + timedelta(hours=3)).isoformat()}
        first = example(kind, valid_from=now.isoformat(), **span)
        second = example(kind, valid_from=later.isoformat(), **span)
        other = example(kind, valid_from=later.isoformat(), id="another:one", **span)
        for message in (first, second, other):
            assert (await rm.ask(message))["status"] == "OK"
        memory = session_of(cem).memory
        found = [each.message_id for each in memory.values()]
        assert found == [first["message_id"], other["message_id"]]
        await asyncio.sleep(3601)
        assert {each.message_id for each in memory.values()} == {
            second["message_id"],
            other["message_id"],
        }


async def test_leakage_of_later_does_not_count_before(clock, cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        begins = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        assert (await rm.ask(example("FRBC.LeakageBehaviour", valid_from=begins)))["status"] == "OK"
        assert remembered(session_of(cem)) == ["FRBC.SystemDescription"]
        await asyncio.sleep(3601)
        assert remembered(session_of(cem)) == ["FRBC.LeakageBehaviour", "FRBC.SystemDescription"]


async def test_a_description_of_later_follows_a_clock_that_is_set(clock, cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        later = of_later("FRBC.SystemDescription", 24 * 60)
        assert (await rm.ask(later))["status"] == "OK"
        clock.move_to(datetime.now(UTC) + timedelta(days=2))
        await asyncio.sleep(sessions.MAX_SLEEP_SECONDS + 1)
        [found] = session_of(cem).memory.values()
        assert found.message_id == later["message_id"]


async def test_how_many_descriptions_of_later_are_remembered_is_bounded(clock, cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        for number in range(message_store.MAX_UPCOMING + 5):
            assert (await rm.ask(of_later("FRBC.SystemDescription", 60 + number)))["status"] == "OK"
        assert len(session_of(cem).store.upcoming) == message_store.MAX_UPCOMING


async def test_how_long_descriptions_of_later_are_all_together_is_bounded(clock, cem, monkeypatch):
    monkeypatch.setattr(message_store, "MAX_CHARACTERS", 25_000)
    async with connected(cem) as rm:
        [first] = await say(rm, "FRBC.SystemDescription")
        sent = [of_later("FRBC.SystemDescription", 60 + number) for number in range(10)]
        for message in sent:
            assert (await rm.ask(message))["status"] == "OK"
        session = session_of(cem)
        ids = [message.message_id for _key, message in session.store.upcoming]
        assert 2 <= len(ids) < 10
        assert ids == [message["message_id"] for message in sent[: len(ids)]]
        assert list(session.store.upcoming_sizes) == ids
        [in_force] = session.memory.values()
        assert in_force.message_id == first["message_id"]


async def test_what_became_of_an_instruction_is_remembered_until_it_is_revoked(cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        session = session_of(cem)
        fields = without(without(example("FRBC.Instruction"), "message_type"), "message_id")
        status = await session.request("FRBC.Instruction", **fields)
        assert status.status.value == "OK"
        sent = await rm.next("FRBC.Instruction")
        update = {"instruction_id": sent["id"], "status_type": "REJECTED"}
        assert (await rm.ask(example("InstructionStatusUpdate", **update)))["status"] == "OK"
        assert session.instructions[sent["id"]].status == "REJECTED"
        revoke = {"object_type": "FRBC.Instruction", "object_id": sent["id"]}
        assert (await rm.ask(example("RevokeObject", **revoke)))["status"] == "OK"
        assert session.instructions == {}
        assert "instruction_id" in await refused(rm, example("InstructionStatusUpdate", **update))


async def test_how_much_is_remembered_is_bounded(cem):
    most = message_store.MAX_OBJECTS
    async with connected(cem, control_types=[PEBC]) as rm:
        for number in range(most + 5):
            await rm.send(example("PEBC.PowerConstraints", id=f"constraints:{number}"))
        await say(rm, "PEBC.EnergyConstraint")
        ids = [key[1] for key in session_of(cem).memory if key[0] == "PEBC.PowerConstraints"]
        assert ids == [f"constraints:{number}" for number in range(5, most + 5)]


# Devices


async def test_a_meter_is_selected_and_its_powers_arrive(cem):
    async with Meter(cem.url, name="Meter", every=0.05) as meter:
        await asyncio.wait_for(meter.active.wait(), 5)
        assert meter.control_type == "NOT_CONTROLABLE"
        await until(lambda: len(cem.received) >= 3)
    kinds = [message.message_type for _, message in cem.received]
    assert kinds[:3] == ["PowerForecast", "PowerMeasurement", "PowerMeasurement"]
    assert cem.received[1][1].values[0].value == 500


async def test_a_battery_is_selected_and_its_state_arrives(cem):
    async with Battery(cem.url, name="Battery", fill_level=42, every=0.05) as battery:
        await asyncio.wait_for(battery.active.wait(), 5)
        assert battery.control_type == FRBC
        await until(lambda: len(cem.received) >= 3)
    kinds = [message.message_type for _, message in cem.received]
    assert kinds[:3] == ["FRBC.SystemDescription", "FRBC.ActuatorStatus", "FRBC.StorageStatus"]
    assert cem.received[2][1].present_fill_level == 42


async def test_a_battery_gets_its_instructions(cem):
    async with Battery(cem.url, name="Battery", every=0.05) as battery:
        await until(lambda: len(cem.received) >= 2)
        fields = without(without(example("FRBC.Instruction"), "message_type"), "message_id")
        session = session_of(cem)
        status = await session.request("FRBC.Instruction", **fields)
        assert status.status.value == "OK"
        await until(lambda: battery.instructions)
    assert battery.instructions[0]["id"] == fields["id"]
