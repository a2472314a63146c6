"""The setpoint is what the schedule says, also where a device has lost it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from homeassistant.core import CoreState, ServiceCall
from pytest_homeassistant_custom_component.common import async_mock_service

from tests.blueprints.conftest import House

SCHEDULE, SETPOINT = "sensor.flexmeasures_schedule", "number.setpoint"
RANGE = {"min": -5000, "max": 5000, "step": 10}
NOTICE = "flexmeasures_number_setpoint"

Automate = Callable[..., Awaitable[list[ServiceCall]]]


@pytest.fixture
def automate(house: House) -> Automate:
    """Give a function that makes the automation for a setpoint of 0 W, and returns the calls to come."""

    async def automate(**inputs: object) -> list[ServiceCall]:
        calls = async_mock_service(house.hass, "number", "set_value")
        await house.set(SETPOINT, 0, **RANGE)
        await house.automate("follow_schedule", setpoint=SETPOINT, **({"factor": 1000} | inputs))
        return calls

    return automate


def values(calls: list[ServiceCall]) -> list[float]:
    """Return the values that were sent."""
    assert all(call.data["entity_id"] == [SETPOINT] for call in calls)
    return [call.data["value"] for call in calls]


async def test_sends_what_is_due_when_it_changes(house, automate):
    calls = await automate()
    await house.set(SCHEDULE, 1.5)
    await house.set(SCHEDULE, -2)
    assert values(calls) == [1500, -2000]


async def test_an_attribute_alone_is_no_change(house, automate):
    calls = await automate()
    await house.set(SCHEDULE, 1.5)
    await house.set(SETPOINT, 1500, **RANGE)
    await house.set(SCHEDULE, 1.5, updated_at="now")
    assert values(calls) == [1500]


@pytest.mark.parametrize("state", ["unknown", "unavailable"])
async def test_the_device_rests_where_nothing_is_due(house, automate, state):
    calls = await automate()
    await house.set(SCHEDULE, 1.5)
    await house.set(SCHEDULE, state)
    assert values(calls) == [1500, 0]


async def test_what_the_device_lost_is_sent_again(house, automate):
    calls = await automate()
    await house.set(SCHEDULE, 1.5)
    await house.at("12:05:01")
    assert values(calls) == [1500, 1500]
    await house.set(SETPOINT, 1500, **RANGE)
    await house.at("12:10:01")
    assert len(calls) == 2
    await house.set(SETPOINT, 0, **RANGE)
    await house.at("12:15:01")
    assert values(calls) == [1500, 1500, 1500]


async def test_it_is_compared_as_often_as_chosen(house, automate):
    calls = await automate(resend="/15")
    await house.set(SCHEDULE, 1.5)
    await house.at("12:05:01")
    await house.at("12:10:01")
    assert len(calls) == 1
    await house.at("12:15:01")
    assert len(calls) == 2


@pytest.mark.parametrize(("due", "present"), [(1.505, 1501), (0.004, 0), (4.5, 4460)])
async def test_a_value_that_the_device_rounds_is_in_force(house, automate, due, present):
    calls = await automate()
    await house.set(SCHEDULE, due)
    await house.set(SETPOINT, present, **RANGE)
    await house.at("12:05:01")
    assert len(calls) == 1


async def test_the_smallest_step_counts(house, automate):
    calls = await automate()
    await house.set(SCHEDULE, 0.01)
    await house.at("12:05:01")
    assert values(calls) == [10, 10]


async def test_a_setpoint_without_a_value_gets_one(house, automate):
    calls = await automate()
    await house.set(SCHEDULE, 1.5)
    await house.set(SETPOINT, "unknown", **RANGE)
    await house.at("12:05:01")
    assert values(calls) == [1500, 1500]


async def test_sends_when_home_assistant_starts(house, automate):
    house.hass.set_state(CoreState.not_running)
    await house.set(SCHEDULE, 1.5)
    calls = await automate()
    await house.start()
    assert values(calls) == [1500]


async def test_at_the_start_nothing_is_sent_before_the_schedule_is_there(house, automate):
    house.hass.set_state(CoreState.not_running)
    calls = await automate()
    await house.set(SETPOINT, 1000, **RANGE)
    await house.start()
    await house.set(SCHEDULE, 1.5)
    assert set(values(calls)) == {1500}


async def test_the_device_rests_if_there_is_no_schedule_at_the_start(house, automate):
    house.hass.set_state(CoreState.not_running)
    calls = await automate()
    await house.set(SETPOINT, 1000, **RANGE)
    await house.start()
    assert calls == []
    await house.at("12:01:30")
    assert values(calls) == [0]


async def test_an_unavailable_setpoint_is_skipped_until_it_is_back(house, automate):
    calls = await automate()
    await house.set(SETPOINT, "unavailable")
    await house.set(SCHEDULE, 1.5)
    await house.at("12:05:01")
    assert calls == []
    await house.set(SETPOINT, 0, **RANGE)
    assert values(calls) == [1500]


async def test_a_value_out_of_range_is_limited_and_told_until_it_is_within(house, automate):
    calls = await automate()
    await house.set(SCHEDULE, 7.4)
    assert values(calls) == [5000]
    assert list(house.notifications()) == [NOTICE]
    assert "7400.0 is outside the range of number.setpoint" in house.notifications()[NOTICE]
    await house.set(SETPOINT, 5000, **RANGE)
    await house.at("12:05:01")
    assert len(calls) == 1
    assert list(house.notifications()) == [NOTICE]
    await house.set(SCHEDULE, -7.4)
    assert values(calls)[-1] == -5000
    await house.set(SCHEDULE, 5)
    assert values(calls)[-1] == 5000
    assert house.notifications() == {}


async def test_a_changed_value_is_not_lost_while_the_device_is_slow(house, automate):
    await automate()
    calls = []
    is_free = asyncio.Event()

    async def set_value(call: ServiceCall) -> None:
        calls.append(call)
        await is_free.wait()

    house.hass.services.async_register("number", "set_value", set_value)
    for value in (1, 2, 3, 4):
        await house.set(SCHEDULE, value)
    assert values(calls) == [1000]
    is_free.set()
    await house.settle()
    assert values(calls) == [1000, 4000]
