"""The car has its state of charge at the departure, and keeps it until it leaves."""

from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest
from homeassistant.core import ServiceCall
from pytest_homeassistant_custom_component.common import async_mock_service

from tests.blueprints.conftest import TESTED, House

CAR, PLUG = "sensor.car_soc", "binary_sensor.car_plugged_in"
FRIDAY, SATURDAY, SUNDAY, TUESDAY = "2030-01-11", "2030-01-12", "2030-01-13", "2030-01-08"
NEXT_MONDAY = "2030-01-14"

Automate = Callable[..., Awaitable[list[ServiceCall]]]


@pytest.fixture
def automate(house: House) -> Automate:
    """Give a function that makes the automation, and returns the calls that it will make."""

    async def automate(**inputs: object) -> list[ServiceCall]:
        calls = async_mock_service(house.hass, "flexmeasures", "trigger_and_get_schedule")
        given = {"departure": "17:45:00"} | inputs
        await house.automate("plan_for_departure", state_of_charge=CAR, plugged_in=PLUG, **given)
        return calls

    return automate


def targets(call: ServiceCall) -> list[tuple]:
    """Return the targets of a call."""
    return [(wish["value"], datetime.fromisoformat(wish["datetime"])) for wish in call.data["soc_targets"]]


def minima(call: ServiceCall) -> list[tuple]:
    """Return the minima of a call."""
    return [
        (wish["value"], datetime.fromisoformat(wish["start"]), datetime.fromisoformat(wish["end"]))
        for wish in call.data["soc_minima"]
    ]


async def plug_in(house: House) -> None:
    """Plug the car in."""
    await house.set(PLUG, "off")
    await house.set(PLUG, "on")


async def test_plans_from_the_entity_when_the_car_is_plugged_in(house, automate, moment):
    calls = await automate()
    await house.set(CAR, 40, unit_of_measurement="%")
    await house.at("12:03:20")
    await plug_in(house)
    [call] = calls
    assert call.data["soc_at_start"] == CAR
    assert datetime.fromisoformat(call.data["start"]) == moment("12:03")
    assert targets(call) == [("80 %", moment("17:45"))]
    assert call.data["soc_minima"] == []


async def test_the_target_holds_until_the_departure(house, automate, moment):
    calls = await automate()
    await house.set(CAR, 74, unit_of_measurement="%")
    await plug_in(house)
    for time in ("17:15:01", "17:30:01", "17:44:59"):
        await house.at(time)
        assert targets(calls[-1]) == [("80 %", moment("17:45"))]
        assert minima(calls[-1]) == []
    assert len(calls) == 3


async def test_a_car_that_has_not_left_is_still_to_be_charged(house, automate, moment):
    calls = await automate()
    await house.set(CAR, 74, unit_of_measurement="%")
    await plug_in(house)
    for time in ("17:45:01", "21:00:01"):
        await house.at(time)
        assert targets(calls[-1]) == [("80 %", moment("17:45", TUESDAY))]
        assert minima(calls[-1]) == [("80 %", moment("17:45"), moment("17:45", TUESDAY))]


async def test_a_car_that_comes_back_has_until_the_next_departure(house, automate, moment):
    calls = await automate()
    await house.set(CAR, 30, unit_of_measurement="%")
    await house.set(PLUG, "off")
    await house.at("18:20:10")
    await plug_in(house)
    await house.at("18:30:01")
    assert len(calls) == 2
    for call in calls:
        assert targets(call) == [("80 %", moment("17:45", TUESDAY))]
        assert minima(call) == []


async def test_the_car_leaves_on_the_chosen_weekdays(house, automate, moment):
    calls = await automate(weekdays=["mon", "fri"], departure="07:00:00")
    await house.set(CAR, 30, unit_of_measurement="%")
    await house.set(PLUG, "off")
    await house.at("18:00:10")
    await plug_in(house)
    assert targets(calls[-1]) == [("80 %", moment("07:00", FRIDAY))]
    await house.at("07:00:01", FRIDAY)
    assert targets(calls[-1]) == [("80 %", moment("07:00", NEXT_MONDAY))]
    await house.at("09:00:01", SUNDAY)
    assert minima(calls[-1]) == [("80 %", moment("07:00", FRIDAY), moment("07:00", NEXT_MONDAY))]


async def test_no_chosen_weekday_means_every_day(house, automate, moment):
    calls = await automate(weekdays=[])
    await house.set(CAR, 30, unit_of_measurement="%")
    await plug_in(house)
    assert targets(calls[-1]) == [("80 %", moment("17:45"))]


async def test_the_departure_is_by_the_clock_when_that_changes(house, automate, moment):
    calls = await automate(departure="07:00:00", target="40 kWh")
    await house.set(CAR, 20, unit_of_measurement="kWh")
    await house.set(PLUG, "off")
    await house.at("22:00:10", "2030-03-30")
    await plug_in(house)
    [(value, departure)] = targets(calls[-1])
    assert (value, departure.isoformat()) == ("40 kWh", "2030-03-31T07:00:00+02:00")


async def test_waits_for_a_state_of_charge_that_is_not_known_yet(house, automate):
    calls = await automate()
    await house.set(CAR, "unknown")
    await house.at("12:03:20")
    await plug_in(house)
    assert calls == []
    await house.at("12:04:00")
    await house.set(CAR, 40, unit_of_measurement="%")
    assert len(calls) == 1


async def test_the_call_tells_of_a_state_of_charge_that_stays_unknown(house, automate):
    calls = await automate()
    await house.set(CAR, "unavailable")
    await house.at("12:16:00")
    await plug_in(house)
    assert calls == []
    await house.at("12:29:59")
    await house.at("12:30:01")
    await house.at("12:44:02")
    assert [call.data["soc_at_start"] for call in calls] == [CAR]


async def test_a_car_that_was_unplugged_meanwhile_is_not_planned(house, automate):
    calls = await automate()
    await house.set(CAR, "unknown")
    await plug_in(house)
    await house.set(PLUG, "off")
    await house.set(CAR, 40, unit_of_measurement="%")
    assert calls == []


async def test_the_last_time_that_the_car_is_plugged_in_counts(house, automate):
    calls = await automate()
    await house.set(CAR, "unknown")
    await plug_in(house)
    await plug_in(house)
    await house.set(CAR, 40, unit_of_measurement="%")
    assert len(calls) == 1
    await house.settle()
    assert house.hass.states.get(TESTED).attributes["current"] == 0


async def test_without_a_car_nothing_is_planned(house, automate):
    calls = await automate()
    await house.set(CAR, 40, unit_of_measurement="%")
    await house.set(PLUG, "off")
    await house.at("12:15:01")
    assert calls == []
