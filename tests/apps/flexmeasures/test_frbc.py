"""Devices under fill rate based control are planned by the app, with the real FlexMeasures server."""

from datetime import UTC, datetime, timedelta

import pytest
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers.json import json_bytes

from tests.apps.flexmeasures.conftest import FRBC, METER, Side
from tests.parts.s2_devices import ElectricVehicle, HomeBattery
from tests.parts.s2_messages import example

CHARGE = example("FRBC.SystemDescription")["actuators"][0]["operation_modes"][1]["id"]
MOST_BYTES = 16_384


@pytest.fixture
def whole_day(socket_enabled, app_config) -> None:
    """Plan a whole day."""
    app_config["schedule_duration"] = "PT24H"


def instruction_in(side, slug="home_battery"):
    """Return the instruction that a state shows."""
    return side.state(slug) and side.state(slug).attributes["instruction"]


@pytest.mark.usefixtures("whole_day")
async def test_a_battery_is_told_its_plan_and_shown_with_it(side):
    async with HomeBattery(side.url, every=0.2) as battery:
        await side.home.until(lambda: battery.instructions)
        await side.home.until(lambda: side.state().attributes["has_schedule"])
        attributes = side.state().attributes
        assert attributes["plan"]
        assert attributes["missed_targets"] == []
        assert attributes["energy_per_fill_level"] == pytest.approx(0.1)
        until = datetime.fromisoformat(attributes["planned_until"])
        assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24)
        moments = [each["execution_time"] for each in attributes["plan"]]
        assert moments == sorted(moments)
        assert {each["label"] for each in attributes["plan"]} <= {"idle", "charge", "discharge"}
        assert len(json_bytes(attributes)) < MOST_BYTES
        assert battery.rejected == []


async def test_a_car_that_has_to_leave_soon_starts_at_once(side):
    departure = datetime.now(UTC) + timedelta(hours=2, minutes=30)
    async with ElectricVehicle(side.url, every=0.2, fill_level=40, departure=departure) as car:
        await side.home.until(lambda: car.power > 0)
        told = car.instructions[-1]
        assert datetime.fromisoformat(told["execution_time"]) < datetime.now(UTC) + timedelta(seconds=10)
        await side.home.until(lambda: instruction_in(side, "electric_vehicle"))
        shown = instruction_in(side, "electric_vehicle")
        assert (shown["label"], shown["operation_mode"]) == ("charge", told["operation_mode"])
        await side.home.until(
            lambda: instruction_in(side, "electric_vehicle")["status"] in ("STARTED", "SUCCEEDED")
        )
        missed = side.state("electric_vehicle").attributes["missed_targets"]
        assert missed == []


async def test_a_target_that_cannot_be_met_is_told(side):
    departure = datetime.now(UTC) + timedelta(hours=1)
    async with ElectricVehicle(side.url, every=0.2, fill_level=10, departure=departure) as car:
        await side.home.until(lambda: car.power > 10_000)
        name = "electric_vehicle"
        await side.home.until(lambda: side.state(name).attributes["missed_targets"])
        [missed] = side.state(name).attributes["missed_targets"]
        assert missed["asked"] == 80
        assert 20 < missed["reached"] < 40


@pytest.mark.usefixtures("whole_day")
async def test_a_sites_limit_holds_over_all_its_devices(start, app_config, flexmeasures_server):
    home = await start(app_config | {"site_power_capacity": "12 kW"})
    await home.checked()
    both = Side(home, app_config, flexmeasures_server)
    departure = datetime.now(UTC) + timedelta(hours=4)
    async with (
        HomeBattery(both.url, every=0.2, fill_level=20) as battery,
        ElectricVehicle(both.url, every=0.2, fill_level=40, departure=departure) as car,
    ):
        await home.until(lambda: battery.instructions and car.instructions)
        await home.call("call_cem_trigger_schedule", resource_id="Home battery")
        await home.until(lambda: not home.device.resources.site.is_planning)
        plans = [found.plan for found in home.device.resources.site.controlled.values()]
        starts = {piece.start for plan in plans for piece in plan.pieces}

        def power(plan, moment):
            inside = [piece for piece in plan.pieces if piece.start <= moment < piece.end]
            return inside[-1].power_w if inside else 0.0

        assert len(plans) == 2
        settled = max(plan.start for plan in plans) + 5
        assert max(sum(power(plan, at) for plan in plans) for at in starts if at > settled) <= 12_100


async def test_a_call_plans_again_and_returns_the_plan(side):
    async with side.rm() as rm:
        await rm.establish()
        await side.until(FRBC)
        with pytest.raises(ServiceValidationError, match=r"it has not sent FRBC\.SystemDescription yet"):
            await side.home.call("call_cem_trigger_schedule")
        await rm.ask(example("FRBC.SystemDescription"))
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=50))
        await side.sensors()
        found = await side.home.call("call_cem_trigger_schedule")
        assert found["resource_id"] == rm.details["resource_id"]
        assert found["plan"]
        assert found["planned_until"]
        assert found["missed_targets"] == []


async def test_an_instruction_of_the_user_is_checked_and_sent(side):
    async with HomeBattery(side.url, every=0.2) as battery:
        await side.home.until(lambda: battery.instructions)
        for wrong, why in [
            ({}, "operation_mode is missing"),
            ({"operation_mode": "nonsense"}, "operation_mode: there is no 'nonsense'"),
            ({"operation_mode": "charge", "operation_mode_factor": 2}, "expected a factor from 0 to 1"),
            ({"operation_mode": "charge", "actuator_id": "none"}, "actuator_id: there is no 'none'"),
            (
                {"operation_mode": "charge", "execution_time": "2020-01-01 00:00"},
                "execution_time: .* is past",
            ),
            ({"operation_mode": "charge", "id": "?"}, "id: expected a UUID"),
            ({"operation_mode": "charge", "resource_id": "none"}, "resource_id: there is none"),
        ]:
            with pytest.raises(ServiceValidationError, match=why):
                await side.home.call("send_frbc_instruction", **wrong)
        sent = await side.home.call(
            "send_frbc_instruction", operation_mode="charge", operation_mode_factor=0.25
        )
        assert (sent["operation_mode"], sent["operation_mode_factor"]) == (CHARGE, 0.25)
        await side.home.until(lambda: sent["id"] in [each["id"] for each in battery.instructions])


async def test_instructions_are_for_fill_rate_based_control_only(side):
    async with side.rm(types=(FRBC, METER)) as rm:
        await rm.establish()
        await side.until(FRBC)
        await side.home.call("change_control_type", control_type=METER)
        with pytest.raises(ServiceValidationError, match="is under NOT_CONTROLABLE, not FILL_RATE"):
            await side.home.call("send_frbc_instruction", operation_mode="charge")
        with pytest.raises(ServiceValidationError, match="is under NOT_CONTROLABLE, which is not planned"):
            await side.home.call("call_cem_trigger_schedule")


async def test_without_a_server_a_device_rests_and_is_planned_when_it_is_back(side, flexmeasures_server):
    async with HomeBattery(side.url, every=0.2) as battery:
        await side.home.until(lambda: battery.instructions)
        await side.home.until(lambda: side.state().attributes["has_schedule"])
        flexmeasures_server.stop_web()
        try:
            with pytest.raises(HomeAssistantError, match="FlexMeasures"):
                await side.home.call("call_cem_trigger_schedule")
            assert side.state().attributes["has_schedule"] is True
            assert side.home.status().state == "unreachable"
        finally:
            flexmeasures_server.start_web()
        found = await side.home.call("call_cem_trigger_schedule")
        assert found["planned_until"]
        assert battery.rejected == []


async def test_what_keeps_devices_from_their_plan_is_over_with_the_last_of_them(side, flexmeasures_server):
    problems = side.home.device.status.problems
    try:
        async with HomeBattery(side.url, every=0.2) as battery:
            await side.home.until(lambda: battery.instructions)
            await side.home.until(lambda: side.state().attributes["has_schedule"])
            flexmeasures_server.stop_web()
            with pytest.raises(HomeAssistantError, match="FlexMeasures"):
                await side.home.call("call_cem_trigger_schedule")
            assert "s2 plan" in problems
        await side.home.until(lambda: "s2 plan" not in problems)
    finally:
        flexmeasures_server.start_web()
