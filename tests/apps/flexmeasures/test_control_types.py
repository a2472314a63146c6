"""Devices of every control type are planned by the app, with the real FlexMeasures server."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.json import json_bytes
from homeassistant.util import slugify

from tests.apps.flexmeasures.conftest import METER, Side
from tests.parts.s2_catalogue import DEVICES
from tests.parts.s2_devices import HomeBattery, Meter
from tests.parts.s2_envelope_devices import EnvelopeCharger, PvInverter, VersatileBattery
from tests.parts.s2_mode_devices import HeatPump, HybridHeatPump
from tests.parts.s2_profile_devices import WashingMachine

MOST_BYTES = 16_384
OMBC, PEBC, FRBC = "OPERATION_MODE_BASED_CONTROL", "POWER_ENVELOPE_BASED_CONTROL", "FILL_RATE_BASED_CONTROL"
CONTROLLED = [name for name in DEVICES if name != "meter"]
HAIR = 150
"""By how much the limit may be exceeded for a part of a step (W), which keeps it in the mean."""


@pytest.fixture
def whole_day(socket_enabled, app_config) -> None:
    """Plan a whole day."""
    app_config["schedule_duration"] = "PT24H"


def now():
    """Return the present moment."""
    return datetime.now(UTC)


def attributes(side, name) -> dict:
    """Return the attributes of a device's state, or none."""
    state = side.state(slugify(name))
    return dict(state.attributes) if state else {}


async def restarted(start, app_config, server, **changes) -> Side:
    """Return the S2 side of an app with other keys."""
    home = await start(app_config | changes)
    await home.checked()
    return Side(home, app_config | changes, server)


def planner(side):
    """Return the site's planner."""
    return side.home.device.resources.site


def planned_at(side, moment) -> dict:
    """Return what each controlled device is planned to have at a moment (W), by its name."""
    return {
        found.resource.name: round(found.type.planned_power(found.plan, moment, 1.0))
        for found in planner(side).controlled.values()
        if found.plan
    }


@pytest.mark.usefixtures("whole_day")
@pytest.mark.parametrize("name", CONTROLLED)
async def test_each_device_is_told_its_plan_and_shown_with_it(side, name):
    async with DEVICES[name](side.url, every=0.2) as device:
        await side.home.until(lambda: device.instructions)
        label = device._details.name
        await side.home.until(lambda: attributes(side, label).get("planned_until"))
        shown = attributes(side, label)
        assert len(json_bytes(shown)) < MOST_BYTES
        assert side.state(slugify(label)).state == device.control_type
        told = [datetime.fromisoformat(each["execution_time"]) for each in shown["plan"]]
        assert told == sorted(told)
        for each in [*shown["plan"], *([shown["instruction"]] if shown["instruction"] else [])]:
            assert {"execution_time", "label", "power"} <= each.keys()
        await side.home.until(
            lambda: not any(each.sending.locked() for each in planner(side).controlled.values())
        )
        assert device.rejected == []
        assert device.violations == []


async def test_a_washing_machine_announced_late_starts_in_time(side):
    last_start = now() + timedelta(seconds=20)
    async with WashingMachine(side.url, every=0.2, deadline=last_start + timedelta(hours=1)) as machine:
        await side.home.until(lambda: machine.power > 0)
        assert machine.doing
        assert datetime.fromisoformat(machine.instructions[0]["execution_time"]) <= last_start
        await side.home.until(lambda: attributes(side, "Washing machine")["instruction"])
        assert attributes(side, "Washing machine")["missed_targets"] == []


async def test_a_deadline_that_is_past_keeping_is_told(side):
    async with WashingMachine(side.url, every=0.2, deadline=now() + timedelta(minutes=20)) as machine:
        await side.home.until(lambda: machine.power > 0)
        await side.home.until(lambda: attributes(side, "Washing machine")["missed_targets"])


async def test_panels_are_curtailed_only_while_feeding_in_costs(start, app_config, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "EUR/kWh", 60)
    hour = now().replace(minute=0, second=0, microsecond=0)
    values = [0.05, -0.10, 0.0, 0.05, -0.10, *[0.05] * 25]
    body = {"start": hour.isoformat(), "duration": f"PT{len(values)}H", "values": values, "unit": "EUR/kWh"}
    token = flexmeasures_server.token()
    await asyncio.to_thread(
        flexmeasures_server.request, "POST", f"/api/v3_0/sensors/{sensor}/data", body, token
    )
    side = await restarted(
        start, app_config, flexmeasures_server, production_price_sensor=sensor, schedule_duration="PT6H"
    )
    async with PvInverter(side.url, every=0.2, production=lambda _moment: 3000.0) as panels:
        await side.home.until(lambda: panels.instructions)
        await side.home.until(lambda: attributes(side, "Solar panels").get("has_schedule"))
        plan = next(iter(planner(side).controlled.values())).plan

        def expected(hours):
            moment = (hour + timedelta(hours=hours, minutes=30)).timestamp()
            return round(next(iter(planner(side).controlled.values())).type.planned_power(plan, moment, 60))

        assert [expected(each) for each in (1, 2, 3, 4, 5)] == [0, -3000, -3000, 0, -3000]
        assert panels.rejected == []


async def test_a_car_with_a_charger_of_its_own_is_charged_in_time(side):
    departure = now() + timedelta(hours=2)
    async with EnvelopeCharger(side.url, every=0.2, departure=departure, energy=20_000) as charger:
        await side.home.until(lambda: charger.power > 0)
        await side.home.until(lambda: attributes(side, "Envelope charger").get("has_schedule"))
        assert attributes(side, "Envelope charger")["missed_targets"] == []
        assert charger.rejected == []


@pytest.mark.usefixtures("whole_day")
async def test_the_limit_of_the_site_holds_over_all_control_types(start, app_config, flexmeasures_server):
    side = await restarted(start, app_config, flexmeasures_server, site_power_capacity="9 kW")
    async with (
        Meter(side.url, every=0.2, name="Kitchen meter", power=lambda _moment: 2000.0),
        HomeBattery(side.url, every=0.2, fill_level=10) as battery,
        HeatPump(side.url, every=0.2, comfort=5.0) as pump,
        WashingMachine(side.url, every=0.2, deadline=now() + timedelta(hours=12)) as machine,
        EnvelopeCharger(side.url, every=0.2, departure=now() + timedelta(hours=10), energy=25_000) as car,
    ):
        devices = battery, pump, machine, car
        await side.home.until(lambda: all(each.instructions for each in devices), seconds=90)
        await side.home.until(lambda: all(found.plan for found in planner(side).controlled.values()))
        await side.stored((await side.sensors("kitchen_meter"))[0], 90)
        found = await side.home.call("call_cem_trigger_schedule", resource_id="Home battery")
        assert found["planned_until"]
        await side.home.until(lambda: not planner(side).is_planning)
        first = max(each.plan.start for each in planner(side).controlled.values()) + 30
        moments = [first + 300 * place for place in range(250)]
        over = [found for each in moments if sum((found := planned_at(side, each)).values()) > 7000 + HAIR]
        assert over == []
        pump_plan = next(each for each in planner(side).controlled.values() if each.type.name == OMBC).plan
        assert sum(piece.power_w * (piece.end - piece.start) for piece in pump_plan.pieces) / 3.6e6 > 50
        for device in devices:
            assert device.rejected == []


@pytest.mark.usefixtures("whole_day")
async def test_the_site_is_shown_with_what_it_costs_with_its_plans_and_without(side):
    async with (
        HomeBattery(side.url, every=0.2),
        EnvelopeCharger(side.url, every=0.2, departure=now() + timedelta(hours=9), energy=20_000),
        HybridHeatPump(side.url, every=0.2),
        WashingMachine(side.url, every=0.2, deadline=now() + timedelta(hours=12)),
        PvInverter(side.url, every=0.2, production=lambda _moment: 1000.0),
    ):

        def site():
            return side.home.hass.states.get("sensor.flexmeasures_site")

        def compared():
            return all(found.without_plan for found in planner(side).controlled.values())

        await side.home.until(lambda: len(planner(side).controlled) == 5 and compared() and site())
        await side.home.until(lambda: site().attributes["cost_without"])
        shown = site().attributes
        assert shown["cost"] < shown["cost_without"]
        assert datetime.fromisoformat(shown["costs_until"]) > now() + timedelta(hours=20)
        assert shown["why"]
        assert float(site().state) == round(planner(side).costs.power_w)


async def test_a_change_of_the_control_type_in_mid_life_is_clean(starting):
    side = await starting(instruction_lead="all")
    async with VersatileBattery(side.url, every=0.2) as battery:
        await side.until(FRBC, "versatile_battery")
        await side.home.until(lambda: len(battery.instructions) > 1 and battery.pending)
        for wanted in (PEBC, METER, FRBC):
            told = len(battery.instructions)
            await side.home.call("change_control_type", resource_id="Versatile battery", control_type=wanted)
            await side.until(wanted, "versatile_battery")
            assert [each for each in battery.pending if each not in battery.instructions[told:]] == []
            if wanted != METER:
                await side.home.until(lambda told=told: len(battery.instructions) > told, seconds=15)
        assert battery.violations == []
        assert battery.rejected == []


async def test_a_preferred_control_type_prevails_over_the_best(starting):
    side = await starting(control_type=PEBC)
    async with VersatileBattery(side.url, every=0.2):
        await side.until(PEBC, "versatile_battery")


@pytest.mark.parametrize(("price", "is_burnt"), [(0.05, True), (5.0, False)])
async def test_gas_is_burnt_where_it_is_cheaper_than_electricity(starting, price, is_burnt):
    side = await starting(prices={"gas": price})
    async with HybridHeatPump(side.url, every=0.2, demand=lambda _moment: 5.0) as pump:
        await side.home.until(lambda: planner(side).controlled)
        [found] = planner(side).controlled.values()
        await side.home.until(lambda: found.plan)
        moments = [found.plan.start + 900 * quarter for quarter in range(2, 15)]
        powers = [found.type.planned_power(found.plan, each, 60) for each in moments]
        assert (max(powers) < 100) is is_burnt
        assert (min(powers) > 1000) is not is_burnt
        assert pump.rejected == []


async def test_a_device_planned_here_is_planned_while_the_server_is_away(side, flexmeasures_server):
    await asyncio.to_thread(flexmeasures_server.stop_web)
    try:
        async with WashingMachine(side.url, every=0.2, deadline=now() + timedelta(hours=1)) as machine:
            await side.home.until(lambda: machine.power > 0, seconds=30)
            with pytest.raises(HomeAssistantError):
                await side.home.call("call_cem_trigger_schedule")
    finally:
        await asyncio.to_thread(flexmeasures_server.start_web)


def most(answer) -> float:
    """Return the greatest power of an answered schedule (kW)."""
    return max(each["value"] for each in answer["schedule"])


@pytest.mark.usefixtures("whole_day")
@pytest.mark.parametrize(
    "limits",
    [
        {"site_power_capacity": "4 kW"},
        {"site_consumption_capacity": "4 kW", "site_production_capacity": "9 kW"},
    ],
)
async def test_the_apps_own_device_is_planned_beside_the_others(
    start, app_config, flexmeasures_server, limits
):
    side = await restarted(start, app_config, flexmeasures_server, **limits)
    async with (
        HeatPump(side.url, every=0.2, comfort=5.0) as pump,
        Meter(side.url, every=0.2, name="Kitchen meter", power=lambda _moment: 500.0),
    ):
        await side.home.until(lambda: pump.instructions)
        await side.stored((await side.sensors("kitchen_meter"))[0], 90)
        await side.sensors("heat_pump")
        beside = await side.home.plan(soc_at_start=1, duration="PT24H")
        assert 0.9 < most(beside) <= 1.01
    alone = await side.home.plan(soc_at_start=1, duration="PT24H")
    assert most(alone) == pytest.approx(4, abs=0.01)
