"""What devices in the field do that is not as S2 has it: it is taken, and the log tells once in a session."""

from uuid import uuid4

import pytest

import flexmeasures_s2.frbc as frbc
import flexmeasures_s2.messages as messages
import flexmeasures_s2.pebc as pebc
import flexmeasures_s2.session as sessions
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.modules.flexmeasures_s2.test_session import (
    DDBC,
    FRBC,
    OMBC,
    PEBC,
    reception,
    refused,
    remembered,
    say,
    session_of,
)
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_messages import example, turned


def warnings(caplog, words):
    """Return the warnings that have these words."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.levelname == "WARNING" and words in each.getMessage()
    ]


# null


async def test_null_counts_as_left_out(cem, caplog):
    nulls = {"manufacturer": None, "model": None, "serial_number": None, "firmware_version": None}
    async with connected(cem, control_types=[PEBC], details={"name": None, **nulls}) as rm:
        await until(lambda: session_of(cem).control_type)
        assert (await rm.ask(example("PEBC.PowerConstraints", valid_until=None)))["status"] == "OK"
        [constraints] = session_of(cem).memory.values()
        assert constraints.valid_until is None
    [warning] = warnings(caplog, messages.NULL)
    assert ": name: " in warning


async def test_null_within_a_list_counts_as_left_out_too(cem, caplog):
    description = example("FRBC.SystemDescription")
    description["actuators"][0]["diagnostic_label"] = None
    async with connected(cem) as rm:
        assert (await rm.ask(description))["status"] == "OK"
    [warning] = warnings(caplog, messages.NULL)
    assert ": actuators[0].diagnostic_label: " in warning


async def test_a_confirmation_with_a_label_of_null_selects_the_control_type(serve):
    cem = await serve(limits={"confirmation": 1})
    async with ResourceManager(cem.url) as rm:
        rm.answers["SelectControlType"] = None
        await rm.establish()
        selection = next(each for each in rm.received if each["message_type"] == "SelectControlType")
        await rm.send(reception(selection, diagnostic_label=None))
        await until(lambda: session_of(cem).control_type == FRBC)
        await say(rm, "FRBC.SystemDescription")


@pytest.mark.parametrize("field", ["message_id", "present_fill_level"])
async def test_null_for_what_is_required_is_refused(cem, field):
    async with connected(cem) as rm:
        await rm.send(example("FRBC.StorageStatus", **{field: None}))
        await until(lambda: rm.received[-1].get("status") in ("INVALID_DATA", "INVALID_MESSAGE"))
        assert field in rm.received[-1]["diagnostic_label"]


# Instructions


async def instructed(rm, session, **fields):
    """Have the CEM send an instruction, and return it as it arrived."""
    instruction = {
        name: value for name, value in example("FRBC.Instruction").items() if name[:7] != "message"
    }
    await session.request("FRBC.Instruction", **instruction | fields)
    return await rm.next("FRBC.Instruction")


async def test_the_id_of_an_instruction_is_its_messages_too(cem):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        sent = await instructed(rm, session_of(cem))
        assert sent["id"] == sent["message_id"] == example("FRBC.Instruction")["id"]


async def test_an_instruction_may_be_named_by_its_message_id(cem, caplog):
    async with connected(cem) as rm:
        await say(rm, "FRBC.SystemDescription")
        session = session_of(cem)
        sent = await instructed(rm, session, message_id="another:id")
        assert sent["message_id"] == "another:id"
        for status in ("ACCEPTED", "STARTED"):
            update = example("InstructionStatusUpdate", instruction_id="another:id", status_type=status)
            assert (await rm.ask(update))["status"] == "OK"
        assert session.instructions[sent["id"]].status == "STARTED"
        assert {each.instruction_id for _, each in cem.received if hasattr(each, "instruction_id")} == {
            sent["id"]
        }
        revocation = example("RevokeObject", object_type="FRBC.Instruction", object_id="another:id")
        assert (await rm.ask(revocation))["status"] == "OK"
        assert session.instructions == {}
    assert len(warnings(caplog, sessions.BY_MESSAGE_ID)) == 1


# Measurements


async def test_who_announces_no_quantities_is_let_in_and_may_measure_any(cem, caplog):
    async with connected(cem, details={"provides_power_measurement_types": []}) as rm:
        assert rm.selected == FRBC
        await say(rm, "FRBC.SystemDescription", "PowerMeasurement")
        assert (await rm.ask(rm.details | {"message_id": "again"}))["status"] == "OK"
    assert len(warnings(caplog, sessions.MEASURES_NOTHING)) == 1


async def test_a_measurement_of_what_was_not_announced_is_invalid_content(cem):
    values = [{"commodity_quantity": f"ELECTRIC.POWER.L{phase}", "value": 700} for phase in (1, 2)]
    async with connected(cem) as rm:
        label = await refused(rm, example("PowerMeasurement", values=values))
        assert label.startswith("values[1].commodity_quantity: ELECTRIC.POWER.L2 is not in")
        assert session_of(cem).memory == {}
        announced = [each["commodity_quantity"] for each in values]
        details = {"message_id": "again", "provides_power_measurement_types": announced}
        assert (await rm.ask(rm.details | details))["status"] == "OK"
        assert (await rm.ask(example("PowerMeasurement", values=values)))["status"] == "OK"


# The demand rate of demand driven based control: in the description, or from version 1.0.0 on in a message


@pytest.mark.parametrize("version", ["1.0.0", "v1.0.0", "0.0.2-beta"])
async def test_the_demand_rate_may_come_in_either_way_under_both_versions(cem, version):
    async with connected(cem, control_types=[DDBC], versions=[version]) as rm:
        await say(rm, "v1.0.0/DDBC.SystemDescription", "v1.0.0/DDBC.PresentDemandStatus")
        await say(rm, "DDBC.ActuatorStatus", "DDBC.TimerStatus")
        await say(rm, "DDBC.SystemDescription", "v1.0.0/DDBC.PresentDemandStatus")
        assert remembered(session_of(cem)) == [
            "DDBC.ActuatorStatus",
            "DDBC.PresentDemandStatus",
            "DDBC.SystemDescription",
            "DDBC.TimerStatus",
        ]


@pytest.mark.parametrize(
    ("rate", "status"),
    [
        ({"start_of_range": 2, "end_of_range": 1}, "INVALID_CONTENT"),
        ({"start_of_range": 2}, "INVALID_MESSAGE"),
        ({"start_of_range": "2", "end_of_range": 3}, "INVALID_MESSAGE"),
        (4000, "INVALID_MESSAGE"),
        (None, "INVALID_MESSAGE"),
    ],
)
async def test_a_present_demand_that_is_none_is_refused(cem, rate, status):
    async with connected(cem, control_types=[DDBC], versions=["1.0.0"]) as rm:
        await say(rm, "v1.0.0/DDBC.SystemDescription")
        message = example("v1.0.0/DDBC.PresentDemandStatus", present_demand_rate=rate)
        assert "present_demand_rate" in await refused(rm, message, status)
        message = example("v1.0.0/DDBC.PresentDemandStatus", valid_from="2026-03-02T10:00:00Z")
        assert "valid_from" in await refused(rm, message, "INVALID_MESSAGE")


async def test_a_present_demand_is_for_demand_driven_based_control(cem):
    async with connected(cem) as rm:
        assert "belongs to" in await refused(rm, example("v1.0.0/DDBC.PresentDemandStatus"))


# Ranges upside down


async def test_a_limit_range_upside_down_is_put_in_order(cem, caplog):
    ends = {"UPPER_LIMIT": (0, 0), "LOWER_LIMIT": (0, -2000)}
    limits = [
        {
            "commodity_quantity": "ELECTRIC.POWER.L1",
            "limit_type": kind,
            "range_boundary": {"start_of_range": start, "end_of_range": end},
            "abnormal_condition_only": False,
        }
        for kind, (start, end) in ends.items()
    ]
    async with connected(cem, control_types=[PEBC]) as rm:
        for _ in range(2):
            constraints = example("PEBC.PowerConstraints", allowed_limit_ranges=limits)
            assert (await rm.ask(constraints))["status"] == "OK"
    [warning] = warnings(caplog, pebc.UPSIDE_DOWN)
    assert ": allowed_limit_ranges[1].range_boundary: " in warning


@pytest.mark.parametrize("control_type", [FRBC, OMBC, DDBC])
async def test_a_range_may_run_downwards_since_its_start_belongs_to_factor_0(cem, control_type, caplog):
    kind = f"{''.join(word[0] for word in control_type.split('_'))}.SystemDescription"
    ranges = ("power_ranges", "supply_range", "fill_rate", "running_costs")
    async with connected(cem, control_types=[control_type]) as rm:
        assert (await rm.ask(turned(example(kind), *ranges)))["status"] == "OK"
    assert warnings(caplog, "range") == []


# Descriptions that leave something open


async def test_elements_may_leave_a_gap_between_fill_levels(cem, caplog):
    description = example("FRBC.SystemDescription")
    mode = description["actuators"][0]["operation_modes"][1]
    levels = [{"start_of_range": 0, "end_of_range": 40}, {"start_of_range": 50, "end_of_range": 100}]
    mode["elements"] = [mode["elements"][0] | {"fill_level_range": each} for each in levels]
    async with connected(cem) as rm:
        for _ in range(2):
            assert (await rm.ask(description | {"message_id": str(uuid4())}))["status"] == "OK"
    [warning] = warnings(caplog, frbc.GAP)
    assert f"operation mode {mode['id']}: elements: " in warning


async def test_a_commodity_may_have_no_power_range(cem, caplog):
    description = example("FRBC.SystemDescription")
    description["actuators"][0]["supported_commodities"] = ["ELECTRICITY", "GAS"]
    async with connected(cem) as rm:
        assert (await rm.ask(description))["status"] == "OK"
    [warning] = warnings(caplog, frbc.NO_POWER_RANGE)
    assert "elements[0].power_ranges: " in warning
