"""`flexmeasures.trigger_and_get_schedule` in Home Assistant, answered by the real server."""

import asyncio
from datetime import UTC, datetime, timedelta

import homeassistant.util.dt as dt_util
import pytest
from homeassistant.exceptions import ServiceValidationError
from pytest_homeassistant_custom_component.common import async_fire_time_changed

from tests.apps.flexmeasures.conftest import at_one_home, in_hours
from tests.parts import in_process
from tests.parts.flexmeasures_server import DAY_AHEAD

QUARTER = timedelta(minutes=15)


def starts(response) -> list[datetime]:
    """Return when the intervals of a response start."""
    return [datetime.fromisoformat(entry["start"]) for entry in response["schedule"]]


def values(response) -> list[float]:
    """Return the values of a response."""
    return [entry["value"] for entry in response["schedule"]]


async def test_the_schedule_equals_a_direct_clients(home, client, flexmeasures_server):
    response = await home.plan(soc_at_start=4, duration="PT24H")
    ids = flexmeasures_server.ids
    direct = await client.trigger_and_get_schedule(
        asset_id=ids.site,
        start=response["start"],
        duration="PT24H",
        flex_model=[
            {
                "sensor": ids.power_sensor,
                "soc-at-start": "4 kWh",
                "soc-min": "1 kWh",
                "soc-max": "10 kWh",
                "power-capacity": "5 kW",
                "roundtrip-efficiency": "90 %",
            }
        ],
        flex_context={
            "consumption-price": {"sensor": ids.price_sensor},
            "production-price": {"sensor": ids.price_sensor},
        },
        unit="kW",
    )
    assert values(response) == direct[0]["values"]
    assert len(values(response)) == 96
    assert set(map(type, values(response))) == {float}
    assert min(values(response)) < 0 < max(values(response))
    assert datetime.fromisoformat(direct[0]["start"]) == starts(response)[0]
    shown = home.schedule().attributes
    assert home.schedule().state_info == {"unrecorded_attributes": {"schedule", "soc"}}
    assert shown["schedule"] == response["schedule"]
    for name in ("start", "duration", "resolution", "soc", "missed_targets"):
        assert shown[name] == response[name]
    assert response["unit"] == shown["unit_of_measurement"] == "kW"
    assert response["duration"] == "P1D"
    assert response["cost"] == pytest.approx(sum(direct[0]["scheduler_info"]["commitment_costs"].values()))
    assert home.status().state == "ok"
    assert home.status().attributes["server_version"] == "1.0.1"
    assert home.status().attributes["last_success"] == shown["updated_at"]
    assert [event.data["start"] for event in home.updates] == [response["start"]]


async def test_the_expected_soc_is_the_servers_own(home, client, flexmeasures_server):
    response = await home.plan(soc_at_start=4, duration="PT24H")
    ids = flexmeasures_server.ids
    told = await client.get_sensor_data(
        ids.soc_sensor, start=response["start"], duration="PT24H", unit="kWh", resolution="PT15M"
    )
    assert response["soc"][:96] == pytest.approx(told["values"], abs=0.01)
    assert min(response["soc"]) >= 1 - 1e-6
    assert max(response["soc"]) <= 10 + 1e-6


@pytest.mark.parametrize("minutes", [5, 15, 60])
async def test_the_start_is_shifted_up_to_the_power_sensors_resolution(
    start, app_config, flexmeasures_server, minutes
):
    ids = flexmeasures_server.ids
    sensors = {5: ids.power_sensor_5min, 15: ids.power_sensor, 60: ids.power_sensor_60min}
    home = await start(app_config | {"power_sensor": sensors[minutes], "schedule_duration": "PT6H"})
    before = datetime.now(UTC)
    response = await home.plan(soc_at_start=4)
    first = starts(response)[0]
    assert first.timestamp() % (minutes * 60) == 0
    assert timedelta(0) <= first - before < timedelta(minutes=minutes) + timedelta(seconds=5)
    assert len(response["schedule"]) == 360 / minutes


async def test_a_new_plan_knows_new_prices(home, flexmeasures_server):
    question = {"soc_at_start": 4, "start": in_hours(1), "duration": "PT6H"}
    first = await home.plan(**question)
    upside_down = tuple(0.5 - price for price in DAY_AHEAD)
    post = flexmeasures_server.post_prices
    await asyncio.to_thread(post, datetime.now(UTC), prices=upside_down, prior=datetime.now(UTC))
    try:
        second = await home.plan(**question)
    finally:
        await asyncio.to_thread(post, datetime.now(UTC), prior=datetime.now(UTC))
    assert values(second) != values(first)
    assert values(await home.plan(**question)) == values(first)


@at_one_home(("soc", "towards"), [(0.4, 1), (10.6, -1)])
async def test_a_soc_outside_the_limits_is_brought_back(home, soc, towards):
    response = await home.plan(soc_at_start=soc)
    assert values(response)[0] * towards > 0
    assert all(1 - 1e-3 <= each <= 10 + 1e-3 for each in response["soc"][4:])
    assert response["missed_targets"] == []


async def test_a_target_that_can_be_reached_is_reached(home):
    when = in_hours(3)
    response = await home.plan(soc_at_start=2, soc_targets=[{"value": 9, "datetime": when}])
    step = starts(response).index(datetime.fromisoformat(when))
    assert response["soc"][step] == pytest.approx(9, abs=0.01)
    assert response["missed_targets"] == []


async def test_a_target_that_is_missed_is_listed_with_what_will_be_reached(home):
    when = in_hours(1)
    response = await home.plan(soc_at_start=2, soc_targets=[{"value": 10, "datetime": when}])
    [missed] = response["missed_targets"]
    assert missed["field"] == "soc_targets"
    assert datetime.fromisoformat(missed["datetime"]) == datetime.fromisoformat(when)
    assert missed["asked"] == 10
    assert 5 < missed["reached"] < 8
    assert home.schedule().attributes["missed_targets"] == [missed]


async def test_a_target_beyond_the_duration_lengthens_the_schedule(home):
    when = in_hours(8)
    response = await home.plan(soc_at_start=2, duration="PT2H", soc_targets=[{"value": 9, "datetime": when}])
    assert starts(response)[-1] + QUARTER == datetime.fromisoformat(when)
    assert response["soc"][-1] == pytest.approx(9, abs=0.01)


@pytest.mark.parametrize(("unit", "factor"), [("W", 1000), ("MW", 0.001), ("kWh", 0.25), ("Wh", 250)])
async def test_the_schedule_is_in_the_users_unit(start, app_config, unit, factor):
    home = await start(app_config | {"schedule_unit": unit})
    response = await home.plan(soc_at_start=4, duration="PT4H")
    assert response["unit"] == home.schedule().attributes["unit_of_measurement"] == unit
    powers = [value / factor for value in values(response)]
    assert max(map(abs, powers)) == pytest.approx(5, abs=0.01)
    energy = "energy" if unit.endswith("h") else "power"
    assert home.schedule().attributes["device_class"] == energy


@pytest.mark.parametrize(
    ("entity", "state", "attributes", "soc"),
    [
        ("sensor.battery", "40", {"unit_of_measurement": "%"}, 4),
        ("sensor.battery", "4.2", {"unit_of_measurement": "kWh"}, 4.2),
        ("sensor.battery", "4200", {"unit_of_measurement": "Wh"}, 4.2),
        ("sensor.battery", "4.2", {}, 4.2),
        ("sensor.battery.level", "on", {"level": 30}, 3),
    ],
)
async def test_the_soc_is_taken_from_an_entity(start, app_config, entity, state, attributes, soc):
    unit = {"soc_entity_unit": "%"} if entity.count(".") > 1 else {}
    home = await start(app_config | {"soc_entity": entity} | unit)
    home.hass.states.async_set("sensor.battery", state, attributes)
    response = await home.plan(duration="PT2H")
    assert response["soc"][0] == pytest.approx(soc)
    assert (await home.plan(duration="PT2H", soc_at_start=6))["soc"][0] == 6


@pytest.fixture
def car(app_config) -> dict:
    """Return the configuration of a car: 6 to 60 kWh, charged with 4.14 to 11 kW, never discharged."""
    return app_config | {
        "soc_min": 6,
        "soc_max": 60,
        "power_capacity": "11 kW",
        "production_capacity": "0 kW",
        "minimum_power": "4.14 kW",
        "soc_entity": "sensor.car.battery_level",
        "soc_entity_unit": "%",
    }


async def test_a_car_is_charged_with_what_its_charger_can(start, car):
    home = await start(car)
    home.hass.states.async_set("sensor.car", "on", {"battery_level": 45})
    target = {"value": "62 %", "datetime": in_hours(8)}
    response = await home.plan(duration="PT8H", soc_targets=[target])
    assert response["soc"][0] == 27
    assert response["soc"][-1] == pytest.approx(37.2, abs=0.05)
    assert all(value == 0 or 4.14 - 1e-6 <= value <= 11 + 1e-6 for value in values(response))


async def test_something_is_left_at_the_end_if_it_is_wanted(start, app_config):
    home = await start(app_config | {"soc_at_end": "50 %"})
    response = await home.plan(soc_at_start=4, duration="PT6H")
    assert response["soc"][-1] == pytest.approx(5, abs=0.01)


async def test_the_present_state_is_carried_on_to_the_start(start, app_config):
    home = await start(app_config | {"soc_entity": "sensor.battery"})
    home.hass.states.async_set("sensor.battery", "2", {"unit_of_measurement": "kWh"})
    due_at_once = {"value": 6, "datetime": in_hours(1)}
    start_at = (datetime.now(UTC) - timedelta(seconds=30)).isoformat()
    first = await home.plan(start=start_at, duration="PT2H", soc_targets=[due_at_once])
    later = starts(first)[4]
    second = await home.plan(start=later.isoformat(), duration="PT2H")
    change = first["soc"][4] - first["soc"][0]
    assert change > 1
    assert second["soc"][0] == pytest.approx(2 + change, abs=0.9)
    assert second["soc"][0] > 2.5


async def test_an_entity_is_a_state_of_charge_of_a_call(home):
    home.hass.states.async_set("sensor.battery", "45", {"unit_of_measurement": "%"})
    response = await home.plan(soc_at_start="sensor.battery", duration="PT2H")
    assert response["soc"][0] == 4.5


async def test_another_devices_entity_does_not_replace_the_schedule(start, app_config):
    home = await start(app_config | {"soc_entity": "sensor.battery"})
    home.hass.states.async_set("sensor.car", "45", {"unit_of_measurement": "%"})
    with pytest.raises(ServiceValidationError, match=r"sensor\.car is not soc_entity \(sensor\.battery\)"):
        await home.plan(soc_at_start="sensor.car", duration="PT2H")


@pytest.mark.usefixtures("early_in_a_quarter")
async def test_a_target_before_the_start_is_due_at_the_start(home):
    soon = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    response = await home.plan(soc_at_start=4, duration="PT2H", soc_targets=[{"value": 9, "datetime": soon}])
    [missed] = response["missed_targets"]
    assert (missed["datetime"], missed["reached"]) == (response["start"], 4)


async def test_a_little_under_the_minimum_is_made_good_in_one_go(home):
    response = await home.plan(soc_at_start=0.98, duration="PT24H")
    charging = [value for value in values(response) if value > 0]
    assert min(charging) > 0.5
    assert max(response["soc"]) > 1
    assert response["missed_targets"] == []


async def test_an_expired_token_is_renewed(home):
    await home.plan(soc_at_start=4, duration="PT2H")
    home.device.link.client.access_token = "WyJleHBpcmVkIl0.expired"
    await home.plan(soc_at_start=4, duration="PT2H")
    assert home.status().state == "ok"


async def test_raw_fields_of_the_call_reach_the_server(home):
    response = await home.plan(
        soc_at_start=4, duration="PT6H", flex_model={"production-capacity": "0 kW", "soc-max": "6 kWh"}
    )
    assert min(values(response)) >= 0
    assert max(response["soc"]) <= 6 + 1e-6


async def test_the_state_is_renewed_at_each_boundary_without_the_server(home, clock):
    response = await home.plan(soc_at_start=4, duration="PT2H")
    asked = home.updates[:]
    home.device.link.client.session.detach()
    first = starts(response)[0]
    for start, value in zip(starts(response), values(response), strict=True):
        clock.move_to(start + timedelta(seconds=1))
        async_fire_time_changed(home.hass)
        await in_process.settle(home.hass)
        assert float(home.schedule().state) == value
    clock.move_to(first + timedelta(hours=2, seconds=1))
    async_fire_time_changed(home.hass)
    await in_process.settle(home.hass)
    assert home.schedule().state == "unknown"
    assert home.schedule().attributes["schedule"] == response["schedule"]
    assert home.status().state == "stale"
    assert home.updates == asked


async def test_before_its_start_the_state_is_unknown(home):
    await home.plan(soc_at_start=4, start=in_hours(1), duration="PT2H")
    assert home.schedule().state == "unknown"


@pytest.mark.usefixtures("early_in_a_quarter")
async def test_a_reload_keeps_the_schedule_and_closes_the_session(home):
    response = await home.plan(soc_at_start=4)
    before = home.device
    state = home.schedule()
    await in_process.reload(home.hass, global_ctx="*")
    assert before.link.client.session.closed
    assert home.device is not before
    assert not home.device.link.client.session.closed
    assert home.schedule().state == state.state
    assert home.schedule().attributes == state.attributes
    again = await home.plan(soc_at_start=4)
    assert len(again["schedule"]) == len(response["schedule"])


async def test_calls_at_the_same_time_are_answered_one_after_the_other(home):
    socs = [2, 4, 6]
    responses = await asyncio.gather(*(home.plan(soc_at_start=soc, duration="PT2H") for soc in socs))
    assert [response["soc"][0] for response in responses] == socs


async def test_a_day_over_a_clock_change_is_planned_whole(home, flexmeasures_server):
    zone = dt_util.get_time_zone("Europe/Amsterdam")
    change = datetime(2027, 3, 28, tzinfo=zone)
    flexmeasures_server.post_prices(change, prior=datetime.now(UTC))
    response = await home.plan(soc_at_start=4, start=change.isoformat(), duration="PT23H")
    assert len(set(starts(response))) == 92
    assert starts(response)[-1] + QUARTER == datetime(2027, 3, 29, tzinfo=zone)
