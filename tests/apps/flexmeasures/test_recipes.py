"""The manual's recipes, on the real server: it takes their fields, and plans as they say."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
import pytest
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component

from tests.apps.flexmeasures.conftest import Home, in_hours
from tests.parts import readme
from tests.parts.flexmeasures_server import AMSTERDAM, DAY_AHEAD

BATTERY, PRICE, HOUSE, ROOF = 2, 4, 6, 7
"""The numbers of the sensors in the recipes."""
HOUSE_KW, ROOF_KW = 1, 4
SUN = range(10, 15)
TAXES = 0.10
DAY, HOUR = timedelta(days=1), timedelta(hours=1)

Recipe = Callable[[str], Awaitable[Home]]


@pytest.fixture
async def sensors(flexmeasures_server) -> dict[int, int]:
    """Return the numbers of real sensors by those in the recipes."""
    add = flexmeasures_server.add_sensor
    return {
        BATTERY: flexmeasures_server.ids.power_sensor,
        PRICE: await asyncio.to_thread(add, "EUR/kWh", 60),
        HOUSE: await asyncio.to_thread(add, "kW", 15, consumption_is_positive=True),
        ROOF: await asyncio.to_thread(add, "kW", 15, consumption_is_positive=False),
    }


@pytest.fixture
def recipe(hass, start, app_config, sensors) -> Recipe:
    """Give a function that starts the app with the recipe under a heading, for an empty battery or car.

    It is not planned by itself, and the prices that are paid include taxes.
    """

    async def recipe(heading: str) -> Home:
        await hass.config.async_set_time_zone(str(AMSTERDAM))
        hass.states.async_set("sensor.battery_energy", "1", {"unit_of_measurement": "kWh"})
        hass.states.async_set("sensor.car_soc", "20", {"unit_of_measurement": "%"})
        hass.states.async_set("sensor.boiler_energy", "3", {"unit_of_measurement": "kWh"})
        hass.states.async_set("sensor.buffer_energy", "3", {"unit_of_measurement": "kWh"})
        [given] = readme.app_configurations(heading)
        given.pop("cron", None)
        real = {name: app_config[name] for name in ("host", "username", "password", "s2")}
        home = await start(with_sensors(given, sensors) | real)
        await home.checked()
        midnight = dt_util.start_of_local_day().isoformat()
        prices = {"values": [price + TAXES for price in 3 * DAY_AHEAD], "duration": "PT72H"}
        await home.call("post_measurements", sensor_id=sensors[PRICE], start=midnight, **prices)
        return home

    return recipe


def with_sensors(given: Any, sensors: dict[int, int]) -> Any:
    """Return a part of the configuration with the real numbers of its sensors."""
    if isinstance(given, list):
        return [with_sensors(each, sensors) for each in given]
    if not isinstance(given, dict):
        return given
    return {
        key: sensors[value] if key == "sensor" or key.endswith("_sensor") else with_sensors(value, sensors)
        for key, value in given.items()
    }


LAST_MINUTES = 57


def this_hour() -> datetime:
    """Return the full hour."""
    return dt_util.now().replace(minute=0, second=0, microsecond=0)


async def post(home: Home, sensor: int, values: list[float], start: datetime) -> None:
    """Post powers of quarters of an hour, positive for consumption."""
    length = {"start": start.isoformat(), "duration": f"PT{15 * len(values)}M", "unit": "kW"}
    answer = await home.call("post_measurements", sensor_id=sensor, values=values, **length)
    assert answer["delivered"]


async def forecast(home: Home, sensor: int) -> list[float]:
    """Return what FlexMeasures expects of a sensor in the next two days, positive for consumption."""
    fields = {"sensor_id": sensor, "start": this_hour().isoformat(), "duration": "PT48H"}
    return (await home.call("get_measurements", **fields))["values"]


async def run(hass: HomeAssistant, automations: dict[str, list[dict]]) -> None:
    """Run the actions of an automation of a recipe."""
    assert await async_setup_component(hass, "automation", automations)
    target = {"entity_id": hass.states.async_entity_ids("automation")}
    await hass.services.async_call("automation", "trigger", target, blocking=True)
    await hass.services.async_call("automation", "turn_off", target, blocking=True)


def powers(answer: dict) -> list[float]:
    """Return the planned powers."""
    return [entry["value"] for entry in answer["schedule"]]


async def test_the_battery_stores_what_the_house_does_not_need(hass, recipe, sensors, clock):
    if dt_util.utcnow().minute >= LAST_MINUTES:  # the forecasts are for the hour under way
        clock.move_to(dt_util.utcnow() - timedelta(minutes=5))
    home = await recipe("Self-consumption")
    yesterday = [this_hour() - DAY + quarter * timedelta(minutes=15) for quarter in range(96)]
    sunny = [-ROOF_KW if moment.hour in SUN else 0 for moment in yesterday]
    await post(home, sensors[ROOF], sunny, yesterday[0])
    await post(home, sensors[HOUSE], 96 * [HOUSE_KW], yesterday[0])

    automations = readme.automations("Self-consumption")
    [[automation]] = automations.values()
    automation["actions"][0]["repeat"]["for_each"] = [sensors[HOUSE], sensors[ROOF]]
    await run(hass, automations)
    assert await forecast(home, sensors[HOUSE]) == 192 * [HOUSE_KW]
    assert await forecast(home, sensors[ROOF]) == 2 * sunny

    tomorrow = dt_util.start_of_local_day() + DAY
    answer = await home.plan(start=tomorrow.isoformat(), duration="PT24H")
    in_the_sun = [
        entry["value"] for entry in answer["schedule"] if datetime.fromisoformat(entry["start"]).hour in SUN
    ]
    assert sum(in_the_sun) / 4 > 8
    assert max(in_the_sun) <= ROOF_KW - HOUSE_KW + 0.01
    assert min(powers(answer)) >= -HOUSE_KW - 0.01


async def test_the_car_charges_with_its_minimum_power_or_not_at_all(recipe):
    home = await recipe("An electric car")
    answer = await home.plan(soc_targets={"value": "80 %", "datetime": in_hours(10)})
    assert answer["missed_targets"] == []
    assert all(power == 0 or 4.14 - 0.01 <= power <= 11 + 0.01 for power in powers(answer))


async def test_the_car_that_has_not_left_in_time_is_charged_at_once(recipe):
    home = await recipe("An electric car")
    due = {"value": "80 %", "start": in_hours(-3), "end": in_hours(21)}
    target = {"value": "80 %", "datetime": in_hours(21)}
    answer = await home.plan(soc_at_start="sensor.car_soc", soc_minima=due, soc_targets=target)
    assert powers(answer)[:12] == pytest.approx(12 * [11], abs=0.01)


@pytest.mark.parametrize(
    ("heading", "most_kw", "least_kwh"), [("A boiler", 3, 2), ("A heat pump with a buffer", 2, 2)]
)
async def test_heat_is_made_in_the_cheap_hours(recipe, heading, most_kw, least_kwh):
    home = await recipe(heading)
    answer = await home.plan()
    assert min(powers(answer)) >= 0
    assert max(powers(answer)) == pytest.approx(most_kw, abs=0.01)
    assert min(answer["soc"]) >= least_kwh - 0.01
    assert answer["missed_targets"] == []
    times = [datetime.fromisoformat(entry["start"]).astimezone(AMSTERDAM) for entry in answer["schedule"]]
    prices = [DAY_AHEAD[moment.hour] for moment in times]
    paid = sum(price * power for price, power in zip(prices, powers(answer), strict=True))
    assert paid / sum(powers(answer)) < sum(prices) / len(prices)


async def test_an_automation_sends_the_prices(hass, recipe, sensors):
    home = await recipe("A fixed feed-in tariff")
    today = dt_util.start_of_local_day()
    raw = [
        {"start": today + hour * HOUR, "end": today + (hour + 1) * HOUR, "value": hour / 100}
        for hour in range(24)
    ]
    hass.states.async_set("sensor.electricity_price", "0.1", {"raw_today": raw, "raw_tomorrow": []})
    automations = readme.automations("Prices from Home Assistant")
    [[automation]] = automations.values()
    action = automation["actions"][0]["repeat"]["sequence"][0]["then"][0]
    action["data"]["sensor_id"] = sensors[PRICE]
    await run(hass, automations)
    fields = {"sensor_id": sensors[PRICE], "start": today.isoformat(), "duration": "PT24H"}
    answer = await home.call("get_measurements", **fields)
    assert answer["values"] == [hour / 100 for hour in range(24)]


async def test_a_fixed_tariff_pays_for_no_trade_with_the_grid(recipe):
    home = await recipe("A fixed feed-in tariff")
    assert set(powers(await home.plan())) == {0}
    answer = await home.plan(soc_at_start=10)
    assert answer["cost"] == pytest.approx(-0.08 * 9 * 0.9**0.5, abs=0.01)


async def test_a_tariff_above_the_price_counts_as_the_price(recipe):
    home = await recipe("A fixed feed-in tariff")
    answer = await home.plan(flex_context={"production-price": "0.50 EUR/kWh"})
    assert min(powers(answer)) < 0 < max(powers(answer))


async def test_the_peak_stays_where_it_is_paid_for(recipe, sensors):
    home = await recipe("A capacity tariff")
    await post(home, sensors[HOUSE], 96 * [HOUSE_KW], this_hour())
    full = {"soc_targets": {"value": "100 %", "datetime": in_hours(12)}}
    free = await home.plan(**full, flex_context={"site-peak-consumption-price": "0 EUR/kW"})
    assert max(powers(free)) > 1.5
    answer = await home.plan(**full)
    assert answer["missed_targets"] == []
    assert max(powers(answer)) == pytest.approx(1.5, abs=0.01)
    higher = await home.plan(**full, flex_context={"site-peak-consumption": "3 kW"})
    assert max(powers(higher)) > 1.5
    assert max(powers(higher)) <= 2.01


async def test_an_automation_gives_the_peak_of_the_month(hass, recipe, sensors):
    home = await recipe("A capacity tariff")
    await post(home, sensors[HOUSE], 96 * [HOUSE_KW], this_hour())
    hass.states.async_set("sensor.peak_of_this_month", "3.4")
    asked = []
    hass.bus.async_listen("call_service", lambda event: asked.append(event.data))
    await run(hass, readme.automations("A capacity tariff"))
    await home.until(lambda: home.updates)
    [data] = [each["service_data"] for each in asked if each["service"] == "trigger_and_get_schedule"]
    assert data["flex_context"] == {"site-peak-consumption": "3.4 kW"}
