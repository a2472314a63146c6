"""The habits that simulated devices can have: what Resource Managers in the field do."""

from typing import Any
from uuid import uuid4

import pytest
from freezegun.api import FrozenDateTimeFactory

from tests.parts.s2_cem import Cem, introduced
from tests.parts.s2_device import HOUR, MINUTE, ControlledDevice, Device, Habit
from tests.parts.s2_devices import HomeBattery, Meter
from tests.parts.s2_envelope_devices import PvInverter
from tests.parts.s2_messages import NOW, Message, example
from tests.parts.s2_mode_devices import HybridHeatPump
from tests.parts.s2_profile_devices import WashingMachine
from tests.parts.s2_unconnected import constant


def revocation(instruction: Message) -> Message:
    """Return the RevokeObject of an instruction."""
    kind = instruction["message_type"]
    return example("RevokeObject", object_type=kind, object_id=instruction["id"])


def nulls(message: object) -> list[str]:
    """Return the names of the fields that are null in a message, or in a part of one."""
    if isinstance(message, list):
        return [name for part in message for name in nulls(part)]
    if not isinstance(message, dict):
        return []
    return [name for name, part in message.items() if part is None] + nulls(list(message.values()))


# Acts on receipt


async def test_it_acts_on_receipt_whatever_the_execution_time_says(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HomeBattery(cem.url, every=None, habits={Habit.ACTS_ON_RECEIPT}) as device:
        await introduced(device)
        assert await cem.ask(device.instruction("charge", at=NOW + HOUR)) == "OK"
        assert device.pending == []
        clock.tick(10)
        await device.tell()
        assert device.power == 5000
        assert await cem.ask(device.instruction("discharge", 0.5, at=NOW + MINUTE)) == "OK"
        clock.tick(10)
        await device.tell()
        assert device.power == -2500
        clock.tick(2 * HOUR)
        await device.tell()
        assert device.power == 0, "it is empty, and did not charge when the hour was over"


async def test_of_several_instructions_the_one_that_arrives_last_counts(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HomeBattery(cem.url, every=None, habits={Habit.ACTS_ON_RECEIPT}) as device:
        await introduced(device)
        later, sooner = (
            device.instruction(mode, at=NOW + delay)
            for mode, delay in (("discharge", 2 * HOUR), ("charge", HOUR))
        )
        for instruction in (later, sooner):
            assert await cem.ask(instruction) == "OK"
        clock.tick(10)
        await device.tell()
        assert device.power == 5000


async def test_an_envelope_that_is_acted_on_at_receipt_counts_from_then_on(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with PvInverter(
        cem.url, every=None, habits={Habit.ACTS_ON_RECEIPT}, production=constant(3000.0)
    ) as device:
        await introduced(device)
        limits = (MINUTE, -1000, 0), (HOUR, -5000, 0)
        assert await cem.ask(device.instruction(*limits, at=NOW + HOUR)) == "OK"
        assert device.power == -1000
        clock.tick(61)
        await device.tell()
        assert device.power == -3000


# Ignores RevokeObject


async def test_it_confirms_a_revocation_and_carries_the_instruction_out_all_the_same(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HomeBattery(cem.url, every=None, habits={Habit.IGNORES_REVOCATION}) as device:
        await introduced(device)
        instruction = device.instruction("charge", at=NOW + MINUTE)
        assert await cem.ask(instruction) == "OK"
        assert await cem.ask(revocation(instruction)) == "OK"
        assert [pending["id"] for pending in device.pending] == [instruction["id"]]
        assert device.revoked == set()
        clock.tick(120)
        await device.tell()
        assert device.power == 5000
        assert "REVOKED" not in [status for _, status in cem.updates()]


async def test_it_confirms_the_revocation_of_what_it_was_never_told(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HomeBattery(cem.url, every=None, habits={Habit.IGNORES_REVOCATION}) as device:
        await introduced(device)
        unknown = device.instruction("charge", id=str(uuid4()))
        assert await cem.ask(revocation(unknown)) == "OK"


# Sends null


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HomeBattery, {}),
        (Meter, {"name": "Meter", "every": 0.02}),
        (HybridHeatPump, {"official": True}),
        (HybridHeatPump, {"official": False}),
        (PvInverter, {}),
        (WashingMachine, {"deadline": NOW + 8 * HOUR}),
    ],
)
async def test_it_sends_null_in_place_of_what_it_leaves_out(
    cem: Cem, clock: FrozenDateTimeFactory, kind: type[Device], options: dict[str, Any]
) -> None:
    cem.takes_null = cem.takes_s2_python_for_the_schema = True
    async with kind(cem.url, habits={Habit.SENDS_NULL}, **{"every": None} | options) as device:
        await settled(cem, device)
    [handshake] = cem.of("Handshake")
    assert nulls(handshake) == []
    assert handshake["supported_protocol_versions"]
    [details] = cem.of("ResourceManagerDetails")
    assert {"manufacturer", "model", "serial_number", "firmware_version"} <= set(nulls(details))
    assert len(cem.received) > 4


async def settled(cem: Cem, device: Device) -> None:
    """Wait until a device has sent its introduction and a measurement."""
    await cem.until(device.active.is_set)
    if isinstance(device, ControlledDevice):
        await device.tell()
    await cem.until(lambda: cem.of("PowerMeasurement"))


async def test_null_is_in_the_parts_of_a_message_and_in_its_confirmations(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    cem.takes_null = True
    async with HomeBattery(cem.url, every=None, habits={Habit.SENDS_NULL}) as device:
        await introduced(device)
        assert await cem.ask(device.instruction("charge")) == "OK"
    [description] = cem.of("FRBC.SystemDescription")
    mode = description["actuators"][0]["operation_modes"][0]
    assert mode["elements"][0]["running_costs"] is None
    assert nulls(description["actuators"][0]["transitions"][0]) == ["transition_costs"]
    first = cem.of("FRBC.ActuatorStatus")[0]
    assert set(nulls(first)) == {"previous_operation_mode_id", "transition_timestamp"}


async def test_a_device_without_the_habit_sends_no_null(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HomeBattery(cem.url, every=None) as device:
        await introduced(device)
    assert nulls(cem.received) == []


# Reports under the message_id


async def test_it_reports_an_instruction_under_the_id_of_its_message(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HomeBattery(cem.url, every=None, habits={Habit.REPORTS_UNDER_MESSAGE_ID}) as device:
        await introduced(device)
        instruction = device.instruction("charge")
        assert instruction["id"] != instruction["message_id"]
        assert await cem.ask(instruction) == "OK"
        clock.tick(5)
        await device.tell()
        reported = instruction["message_id"]
        assert cem.updates() == [(reported, "ACCEPTED"), (reported, "STARTED"), (reported, "SUCCEEDED")]
