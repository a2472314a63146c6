"""Prices as they are in real homes: known until midnight, with gaps, or lower than what feeding in yields."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError

from tests.apps.flexmeasures.conftest import in_hours

HOUR, QUARTER = timedelta(hours=1), timedelta(minutes=15)


@pytest.fixture
def begin() -> datetime:
    """Return the next full hour, from which prices are known."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + HOUR


@pytest.fixture
def post(flexmeasures_server, begin):
    """Return a function that posts hourly prices (EUR/kWh) to a new sensor, or another, and returns it."""

    async def post(*prices, start=begin, sensor=None) -> int:
        sensor = sensor or await asyncio.to_thread(flexmeasures_server.add_sensor, "EUR/kWh", 60)
        known_at = datetime.now(UTC) - HOUR
        await asyncio.to_thread(flexmeasures_server.post_hours, sensor, start, prices, "EUR/kWh", known_at)
        return sensor

    return post


@pytest.fixture
def priced(start, app_config):
    """Return a function that starts the app with price sensors, and other keys."""

    async def priced(consumption, production=None, **keys):
        prices = {
            "consumption_price_sensor": consumption,
            "production_price_sensor": production or consumption,
        }
        home = await start(app_config | prices | keys)
        await home.checked()
        return home

    return priced


async def planned(home, begin, hours, soc, target) -> dict:
    """Plan from one state of charge to another within some hours."""
    wanted = {"value": target, "datetime": (begin + hours * HOUR).isoformat()}
    duration = f"PT{hours}H"
    return await home.plan(soc_at_start=soc, start=begin.isoformat(), duration=duration, soc_targets=[wanted])


def charged(response) -> dict[datetime, float]:
    """Return the power (kW) of each interval in which something is consumed."""
    return {
        datetime.fromisoformat(entry["start"]): entry["value"]
        for entry in response["schedule"]
        if entry["value"] > 0.001
    }


async def test_hours_after_the_last_price_are_not_free(priced, post, begin):
    home = await priced(await post(*[0.30] * 7))
    wanted = {"value": 9, "datetime": (begin + 20 * HOUR).isoformat()}
    response = await home.plan(
        soc_at_start=5, start=begin.isoformat(), duration="PT20H", soc_targets=[wanted]
    )
    assert response["missed_targets"] == []
    assert response["cost"] == pytest.approx(0.30 * 4 / 0.9**0.5, rel=0.01)
    assert datetime.fromisoformat(response["prices_known_until"]) == begin + 7 * HOUR
    assert "known for 35% of the schedule" in response["warnings"][0]
    for shown in (home.schedule(), home.status()):
        assert shown.attributes["prices_known_until"] == response["prices_known_until"]


async def test_a_gap_between_prices_is_not_free(priced, post, begin):
    home = await priced(await post(*[0.30] * 4, None, None, *[0.10] * 4))
    wanted = {"value": 8, "datetime": (begin + 10 * HOUR).isoformat()}
    response = await home.plan(
        soc_at_start=5, start=begin.isoformat(), duration="PT10H", soc_targets=[wanted]
    )
    assert min(charged(response)) >= begin + 6 * HOUR
    assert response["cost"] == pytest.approx(-0.30 * 4 * 0.9**0.5 + 0.10 * 7 / 0.9**0.5, rel=0.01)


async def test_unknown_hours_have_the_prices_of_the_day_before(priced, post, begin):
    yesterday = [0.30] * 24
    yesterday[10] = 0.05
    sensor = await post(*yesterday, start=begin - 24 * HOUR)
    home = await priced(await post(0.30, 0.30, sensor=sensor), production_capacity="0 kW")
    wanted = {"value": 5, "datetime": (begin + 20 * HOUR).isoformat()}
    response = await home.plan(
        soc_at_start=2, start=begin.isoformat(), duration="PT20H", soc_targets=[wanted]
    )
    assert {start.replace(minute=0) for start in charged(response)} == {begin + 10 * HOUR}


async def test_a_schedule_is_found_where_feeding_in_pays_more(priced, post, begin):
    consumption = await post(*[0.30] * 6, *[0.20] * 6)
    home = await priced(consumption, await post(*[0.31] * 6, *[0.20] * 6))
    response = await home.plan(soc_at_start=5, start=begin.isoformat(), duration="PT12H")
    powers = [entry["value"] for entry in response["schedule"]]
    assert min(powers) < -1
    assert max(map(abs, powers)) <= 5
    assert "Feeding in pays more than consuming costs" in response["warnings"][0]


async def test_a_fixed_feed_in_tariff_beside_prices_that_end(priced, post, begin):
    home = await priced(await post(0.30, 0.05, 0.30, 0.40))
    context = {"production-price": "0.08 EUR/kWh"}
    response = await home.plan(
        soc_at_start=2, start=begin.isoformat(), duration="PT12H", flex_context=context
    )
    assert len(response["schedule"]) == 48
    assert home.status().state == "ok"


async def test_a_plan_is_made_again_when_prices_arrive(priced, post, begin, clock):
    sensor = await post(*[0.30] * 4)
    home = await priced(sensor, production_capacity="0 kW")
    wanted = {"value": 9, "datetime": (begin + 12 * HOUR).isoformat()}
    await home.plan(soc_at_start=5, duration="PT12H", soc_targets=[wanted])
    assert len(home.updates) == 1
    await post(*[0.02] * 10, start=begin + 4 * HOUR, sensor=sensor)
    await home.tick_to(clock, datetime.now(UTC) + timedelta(minutes=6))
    await home.until(lambda: len(home.updates) == 2)
    assert datetime.fromisoformat(home.schedule().attributes["prices_known_until"]) > begin + 10 * HOUR
    planned = home.schedule().attributes["schedule"]
    assert min(charged({"schedule": planned})) >= begin + 4 * HOUR
    assert home.schedule().attributes["soc"][0] == pytest.approx(5, abs=1.3)


async def test_a_call_beyond_all_prices_is_told_to_its_caller_alone(home):
    with pytest.raises(ServiceValidationError) as caught:
        await home.plan(soc_at_start=4, start=in_hours(24 * 20))
    said = str(caught.value)
    assert "no prices for the planning window on sensor" in said
    assert "it has some from" in said
    assert home.status().state == "ok"
    assert home.notifications() == {}


async def test_prices_that_do_not_arrive_are_told_in_the_status(start, app_config, flexmeasures_server):
    home = await start(app_config | {"consumption_price_sensor": flexmeasures_server.ids.empty_price_sensor})
    with pytest.raises(HomeAssistantError) as caught:
        await home.plan(soc_at_start=4)
    assert "consumption_price_sensor, production_price_sensor: " in str(caught.value)
    assert "it has none at all" in str(caught.value)
    assert home.status().state == "error"
    assert "flexmeasures_prices_missing" in home.notifications()
