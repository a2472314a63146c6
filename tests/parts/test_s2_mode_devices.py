"""The simulated devices of operation modes without a storage: their physics, and their messages to a CEM."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from freezegun.api import FrozenDateTimeFactory

from tests.parts.s2_cem import Cem, introduced
from tests.parts.s2_device import DAY, HOUR, MINUTE, NOT_CONTROLABLE, SECOND
from tests.parts.s2_messages import NOW, example
from tests.parts.s2_mode_devices import (
    DDBC,
    HEAT,
    OMBC,
    DemandDevice,
    DistrictHeat,
    HeatPump,
    HybridHeatPump,
    OperationModeDevice,
    StepCharger,
    heating,
)
from tests.parts.s2_unconnected import constant, instructed, reasons, rejection, unconnected

pytestmark = pytest.mark.long


# Operation mode based control


def test_a_heat_pump_runs_once_it_has_started() -> None:
    device = unconnected(HeatPump)
    instructed(device, "on", at=NOW + MINUTE)
    device.advance(NOW + 1.4 * MINUTE)
    assert (device.mode, device.power) == ("on", 0)
    device.advance(NOW + 1.5 * MINUTE)
    assert device.power == 2500
    device.advance(NOW + HOUR)
    assert device.energy(NOW, NOW + HOUR) == pytest.approx(2500 * 58.5 / 60)
    assert device.cost(lambda _: 0.2) == pytest.approx(0.5 * 58.5 / 60)
    assert device.violations == []


def test_to_be_off_costs_comfort_and_to_be_on_wears() -> None:
    device = unconnected(HeatPump)
    instructed(device, "on", at=NOW + HOUR)
    device.advance(NOW + 3 * HOUR)
    assert device.running_costs == pytest.approx(0.35 + 2 * 0.02)


def test_a_heat_pump_stays_on_and_off_for_some_time() -> None:
    device = unconnected(HeatPump)
    instructed(device, "on")
    instructed(device, "off", at=NOW + 30 * MINUTE - SECOND)
    instructed(device, "off", at=NOW + 30 * MINUTE)
    instructed(device, "on", at=NOW + 50 * MINUTE - SECOND)
    instructed(device, "on", at=NOW + 50 * MINUTE)
    device.advance(NOW + HOUR)
    first, second = reasons(device)
    assert "timer blocks the transition from on to off" in first
    assert "timer blocks the transition from off to on" in second
    assert device.power == 2500


def test_emergency_heat_is_for_an_emergency() -> None:
    device = unconnected(HeatPump)
    instructed(device, "emergency heat")
    assert (device.power, len(device.rejected)) == (0, 1)
    instructed(device, "emergency heat", abnormal_condition=True)
    assert device.power == 6000
    instructed(device, "off")
    assert device.power == 0


def test_a_heat_pump_with_a_boost_comes_to_it_from_on() -> None:
    device = unconnected(HeatPump, boost=4000)
    instructed(device, "boost")
    assert reasons(device) == ["no transition from off to boost"]
    instructed(device, "on")
    instructed(device, "boost", at=NOW + MINUTE)
    device.advance(NOW + 2 * MINUTE)
    assert device.power == 4000


def test_a_charger_goes_from_step_to_step() -> None:
    device = unconnected(StepCharger)
    instructed(device, "7.4 kW")
    assert reasons(device) == ["no transition from off to 7.4 kW"]
    powers = []
    for number, mode in enumerate(["3.7 kW", "7.4 kW", "11 kW", "7.4 kW"]):
        instructed(device, mode, at=NOW + number * MINUTE)
        device.advance(NOW + number * MINUTE + 9 * SECOND)
        powers.append(device.power)
        device.advance(NOW + number * MINUTE + 10 * SECOND)
        powers.append(device.power)
    assert powers == [0, 3700, 0, 7400, 0, 11000, 0, 7400]


def test_each_step_is_worth_its_price() -> None:
    [off, *_, most] = unconnected(StepCharger).description["operation_modes"]
    assert most["running_costs"]["start_of_range"] == 0
    assert off["running_costs"]["start_of_range"] * 3600 == pytest.approx(
        3.7 * 0.30 + 3.7 * 0.25 + 3.6 * 0.20
    )


def test_transitions_that_cost_something_add_up() -> None:
    device = unconnected(OperationModeDevice, description=example("OMBC.SystemDescription"), name="Example")
    instructed(device, "low")
    instructed(device, "high", 0.5, at=NOW + MINUTE)
    device.advance(NOW + 2 * MINUTE)
    assert device.transition_costs == pytest.approx(0.01)
    assert device.power == 2250


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"operation_mode_id": str(uuid4())}, "operation_mode_id"),
        ({"operation_mode_factor": 1.01}, "operation_mode_factor"),
    ],
)
def test_an_instruction_that_refers_to_nothing_is_not_accepted(changes: dict[str, Any], field: str) -> None:
    device = unconnected(HeatPump)
    instruction = device.instruction("on", **changes)
    assert field in rejection(device, instruction)
    assert (device.rejected[0][0], device.pending) == (instruction["id"], [])


# Demand driven based control


def test_a_house_needs_more_in_the_morning_and_the_same_for_a_quarter() -> None:
    demands = [heating(NOW + quarter * 15 * MINUTE) for quarter in range(96)]
    assert 2.5 < min(demands) < max(demands) < 9.1
    assert heating(NOW) == heating(NOW + 14 * MINUTE)


@pytest.mark.parametrize(("demand", "power", "gas"), [(2, 500, 0), (5, 1500, 0), (8, 2500, 0), (12, 2550, 4)])
def test_a_hybrid_heat_pump_meets_its_demand_by_itself(demand: float, power: float, gas: float) -> None:
    device = unconnected(HybridHeatPump, demand=constant(demand))
    device.advance(NOW + HOUR)
    assert device.power == pytest.approx(power)
    assert device.gas == pytest.approx(gas / 9.77 / 0.95)
    assert device.unmet == pytest.approx(0)
    assert device.violations == []


def test_a_boiler_burns_gas_and_some_electricity() -> None:
    device = unconnected(HybridHeatPump, demand=constant(6))
    instructed(device, "on", 3 / 17, actuator="gas boiler")
    instructed(device, "off", at=NOW + 10 * SECOND, actuator="heat pump")
    device.advance(NOW + 10 * SECOND + HOUR)
    assert device.supply == pytest.approx(6)
    assert device.power == pytest.approx(50)
    assert device.gas == pytest.approx(6 / 9.77 / 0.95, rel=0.01)
    assert device.cost(constant(0.3), gas_price=1.5) == pytest.approx(0.05 * 0.3 + 1.5 * device.gas, rel=0.01)
    assert (device.violations, device.unmet) == ([], 0)


def test_a_boiler_burns_for_some_time() -> None:
    device = unconnected(HybridHeatPump)
    instructed(device, "on", actuator="gas boiler")
    instructed(device, "off", actuator="gas boiler", at=NOW + 14 * MINUTE)
    instructed(device, "off", actuator="gas boiler", at=NOW + 15 * MINUTE)
    device.advance(NOW + 20 * MINUTE)
    assert len(device.rejected) == 1
    assert device.surplus > 0


@pytest.mark.parametrize(("minutes", "count"), [(1, 0), (1.1, 1), (30, 1)])
def test_a_demand_that_is_not_met_for_more_than_a_minute_is_a_violation(minutes: float, count: int) -> None:
    device = unconnected(HybridHeatPump, demand=lambda now: 5 if now < NOW + HOUR else 0)
    instructed(device, "on", 0.5, actuator="heat pump")
    instructed(device, "on", 0.45, actuator="heat pump", at=NOW + HOUR - minutes * MINUTE)
    device.advance(NOW + 2 * HOUR)
    assert [moment for moment, _ in device.violations] == [NOW + HOUR - minutes * MINUTE] * count
    assert device.unmet == pytest.approx(0.3 * minutes / 60)
    assert device.surplus == pytest.approx(4.7)


def test_a_hair_too_little_is_no_violation() -> None:
    device = unconnected(HybridHeatPump, demand=constant(5))
    instructed(device, "on", 0.49, actuator="heat pump")
    device.advance(NOW + HOUR)
    assert device.violations == []
    assert device.unmet == pytest.approx(0.06)


def test_district_heat_comes_from_the_grid_or_from_a_boiler() -> None:
    device = unconnected(DistrictHeat, demand=constant(6))
    assert (device.supply, device.power) == (6, 0)
    device.advance(NOW + HOUR)
    assert device.heat == pytest.approx(6)
    instructed(device, "closed", actuator="heat exchanger")
    instructed(device, "6 kW", actuator="electric boiler")
    device.advance(NOW + 2 * HOUR)
    assert (device.power, device.supply) == (6000, 6)
    assert device.heat == pytest.approx(6, rel=0.01)
    assert device.cost(constant(0.3), heat_price=0.1) == pytest.approx(0.6 + 1.8, rel=0.01)
    assert device.violations == []


def test_how_often_time_passes_makes_no_difference() -> None:
    at_once, by_and_by = unconnected(HybridHeatPump), unconnected(HybridHeatPump)
    for device in (at_once, by_and_by):
        instructed(device, "on", 0.3, at=NOW + 77.7 * SECOND)
        instructed(device, "off", at=NOW + HOUR)
        instructed(device, "on", 0.1, at=NOW + HOUR, actuator="gas boiler")
    at_once.advance(NOW + DAY)
    for steps in range(1, 721):
        by_and_by.advance(NOW + steps * 2 * MINUTE)
    assert at_once.energy(NOW, NOW + DAY) == pytest.approx(by_and_by.energy(NOW, NOW + DAY))
    for name in ("gas", "unmet", "surplus"):
        assert getattr(at_once, name) == pytest.approx(getattr(by_and_by, name))


# Over a websocket


@pytest.mark.parametrize("kind", [HeatPump, StepCharger])
async def test_a_device_of_operation_modes_introduces_itself(
    cem: Cem, clock: FrozenDateTimeFactory, kind: Callable[..., OperationModeDevice]
) -> None:
    async with kind(cem.url, every=None) as device:
        await introduced(device)
        assert device.control_type == OMBC
    [details] = cem.of("ResourceManagerDetails")
    assert details["available_control_types"] == [OMBC, NOT_CONTROLABLE]
    assert cem.kinds() == [
        "Handshake",
        "ResourceManagerDetails",
        "OMBC.SystemDescription",
        "OMBC.Status",
        "PowerMeasurement",
    ]


async def test_only_what_it_is_to_offer_is_offered(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HeatPump(cem.url, every=None, also=()) as device:
        await introduced(device)
    [details] = cem.of("ResourceManagerDetails")
    assert details["available_control_types"] == [OMBC]


async def test_a_heat_pump_tells_its_status_its_timers_and_what_became_of_an_instruction(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HeatPump(cem.url, every=None) as device:
        await introduced(device)
        cem.kinds()
        instruction = device.instruction("on")
        assert await cem.ask(instruction) == "OK"
        rejected = device.instruction("off", at=NOW + MINUTE)
        assert await cem.ask(rejected) == "OK"
        clock.tick(60)
        await device.tell()
        [status] = cem.of("OMBC.Status")
        assert status["active_operation_mode_id"] == instruction["operation_mode_id"]
        assert status["previous_operation_mode_id"] == rejected["operation_mode_id"]
        assert datetime.fromisoformat(status["transition_timestamp"]) == NOW
        [timer] = cem.of("OMBC.TimerStatus")
        assert datetime.fromisoformat(timer["finished_at"]) == NOW + 30 * MINUTE
        assert sorted(cem.updates()) == sorted(
            [(instruction["id"], status) for status in ("ACCEPTED", "STARTED", "SUCCEEDED")]
            + [(rejected["id"], status) for status in ("ACCEPTED", "REJECTED")]
        )
        assert cem.of("PowerMeasurement")[-1]["values"][0]["value"] == 2500


async def test_what_is_done_by_hand_is_told(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HeatPump(cem.url, every=None) as device:
        await introduced(device)
        cem.received.clear()
        device.switch("on")
        await device.tell()
        [status] = cem.of("OMBC.Status")
        assert status["active_operation_mode_id"] == device.machine.labelled("on")
        assert (device.power, device.doing) == (2500, "on, factor 1.00")


async def test_content_that_refers_to_nothing_is_refused(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HeatPump(cem.url, every=None) as device:
        await introduced(device)
        for message in (
            device.instruction("on", operation_mode_id=str(uuid4())),
            device.instruction("on", 2),
            example("RevokeObject", object_type="OMBC.Instruction", object_id=str(uuid4())),
            example("RevokeObject", object_type="OMBC.SystemDescription", object_id=str(uuid4())),
        ):
            assert await cem.ask(message) == "INVALID_CONTENT"


async def test_an_instruction_left_behind_by_another_control_type_is_a_violation(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HeatPump(cem.url, every=None) as device:
        await introduced(device)
        revoked, left = device.instruction("on", at=NOW + HOUR), device.instruction("off", at=NOW + 2 * HOUR)
        for instruction in (revoked, left):
            assert await cem.ask(instruction) == "OK"
        revocation = example("RevokeObject", object_type="OMBC.Instruction", object_id=revoked["id"])
        assert await cem.ask(revocation) == "OK"
        await cem.select(NOT_CONTROLABLE)
        await cem.until(lambda: device.control_type == NOT_CONTROLABLE)
        assert device.violations == [(NOW, f"OMBC.Instruction {left['id']} was left behind")]
        assert device.pending == []
        assert await cem.ask(device.instruction("on")) == "INVALID_CONTENT"


async def test_an_instruction_of_another_session_is_forgotten(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    device = HeatPump(cem.url, every=None)
    async with device:
        await introduced(device)
        assert await cem.ask(device.instruction("on", at=NOW + HOUR)) == "OK"
    async with device:
        await introduced(device)
        assert (device.pending, device.violations) == ([], [])


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("kind", [HybridHeatPump, DistrictHeat])
async def test_a_device_with_a_demand_introduces_itself_in_both_forms(
    cem: Cem, clock: FrozenDateTimeFactory, kind: Callable[..., DemandDevice], official: bool
) -> None:
    cem.takes_s2_python_for_the_schema = not official
    async with kind(cem.url, every=None, official=official) as device:
        await introduced(device)
        assert device.control_type == DDBC
    [description] = cem.of("DDBC.SystemDescription")
    modes = [mode for actuator in description["actuators"] for mode in actuator["operation_modes"]]
    assert {type(mode["supply_range"]) for mode in modes} == {dict if official else list}
    assert description["present_demand_rate"]["start_of_range"] == heating(NOW)
    [forecast] = cem.of("DDBC.AverageDemandRateForecast")
    assert [element["demand_rate_expected"] for element in forecast["elements"]] == pytest.approx(
        [heating(NOW + quarter * 15 * MINUTE) for quarter in range(96)]
    )
    assert cem.kinds() == [
        "Handshake",
        "ResourceManagerDetails",
        "DDBC.SystemDescription",
        "DDBC.ActuatorStatus",
        "DDBC.ActuatorStatus",
        "DDBC.AverageDemandRateForecast",
        "PowerMeasurement",
    ]


async def test_a_demand_is_told_anew_each_hour(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    cem.takes_s2_python_for_the_schema = True
    async with HybridHeatPump(cem.url, every=None) as device:
        await introduced(device)
        assert await cem.ask(device.instruction("on", 0.5)) == "OK"
        await device.tell()
        cem.kinds()
        clock.tick(3590)
        await device.tell()
        assert cem.kinds() == ["PowerMeasurement"]
        clock.tick(10)
        await device.tell()
        assert cem.kinds() == [
            "DDBC.SystemDescription",
            "DDBC.ActuatorStatus",
            "DDBC.ActuatorStatus",
            "DDBC.AverageDemandRateForecast",
            "PowerMeasurement",
        ]


async def test_without_a_forecast_the_present_demand_is_told_when_it_changes(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    cem.takes_s2_python_for_the_schema = True
    async with HybridHeatPump(cem.url, every=None, foretells=False, demand=constant(5)) as device:
        await introduced(device)
        assert cem.of("DDBC.AverageDemandRateForecast") == []
        cem.kinds()
        await device.tell()
        assert cem.kinds() == ["PowerMeasurement"]
        device.demand = constant(6)
        await device.tell()
        assert cem.of("DDBC.SystemDescription")[0]["present_demand_rate"]["end_of_range"] == 6


async def test_another_demand_is_told_at_once(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    cem.takes_s2_python_for_the_schema = True
    async with DistrictHeat(cem.url, every=None) as device:
        await introduced(device)
        cem.received.clear()
        await device.set_demand(constant(4), forecast=constant(3))
        assert cem.of("DDBC.SystemDescription")[0]["present_demand_rate"]["end_of_range"] == 4
        [forecast] = cem.of("DDBC.AverageDemandRateForecast")
        assert forecast["elements"][0]["demand_rate_expected"] == 3


async def test_all_that_flows_is_measured(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    cem.takes_s2_python_for_the_schema = True
    async with DistrictHeat(cem.url, every=None, demand=constant(6)) as device:
        await introduced(device)
    [measurement] = cem.of("PowerMeasurement")
    assert {value["commodity_quantity"]: value["value"] for value in measurement["values"]} == {
        "ELECTRIC.POWER.3_PHASE_SYMMETRIC": 0,
        HEAT.value: 6000,
    }
