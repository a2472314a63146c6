"""Devices live through a day, planned by the real planner with a local optimiser, in virtual time."""

import asyncio
import functools
import logging
import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID

import pytest
from s2python.connection.async_.medium import websocket

import flexmeasures_cem.site.planner as planner
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.site_model as site_model
import flexmeasures_cem.site.triggers as triggers
import flexmeasures_s2.commodities as commodities
from tests.parts import s2_device
from tests.parts.local_optimum import Optimiser, priced
from tests.parts.s2_day import BEGIN, DAY, consumed, report
from tests.parts.s2_day_cases import (
    GAS_PRICE,
    HAIR,
    HEAT_PRICE,
    check_household,
    check_obedience,
    check_storages,
    fed_in,
    home_battery,
    household,
    judged,
    level_at,
    storages,
    worth,
)
from tests.parts.s2_device import HOUR, Habit
from tests.parts.s2_devices import HomeBattery
from tests.parts.virtual_time import virtual_time

QUARTER = 900.0
"""How often a device tells what is new (s)."""
ANSWER_SECONDS = 3.0
"""How long an answer of the optimiser takes."""
EFFORT_SECONDS = 0.3
"""How long a plan is improved (s): less than on a real day, which has the time."""
ROLLING = 3600.0
"""How long a plan is used (s): what departs from it is planned anew at once."""
SELDOM = 7200.0
"""How often a connection is tried (s), so that a day is not spent on that."""
EVERY_MINUTE = 60.0
"""How often a device tells what is new that is to be watched closely (s)."""
MAX_INSTRUCTIONS_OF_A_MINUTE = 60
"""How many instructions a battery gets in its first minute, at most: twice those of a whole plan."""
A_MINUTE_OF_CHARGE = 1.0
"""What a home battery charges or discharges at full power in a minute, at most (% of its capacity)."""


@pytest.fixture
async def clock():
    """Let time pass at once, from an evening in winter on, so that the day is always the same."""
    with virtual_time(datetime(2026, 1, 14, BEGIN, tzinfo=UTC)) as clock:
        yield clock


@pytest.fixture
async def day(clock, serve, monkeypatch, caplog):
    """Run a CEM with a site's planner, and devices with ids that are always the same, and so their order.

    `price` is what a kWh is worth at the site, `fed_in` what feeding in yields.
    """
    caplog.set_level(logging.WARNING)
    random_bits = random.Random(0).getrandbits
    monkeypatch.setattr(s2_device, "uuid4", lambda: UUID(int=random_bits(128), version=4))
    monkeypatch.setattr(site_model, "EFFORT", replace(site_model.EFFORT, seconds=EFFORT_SECONDS))
    plain = functools.partial(websocket.ws_connect, ping_interval=None, compression=None)
    monkeypatch.setattr(websocket, "ws_connect", plain)
    cem = await serve(limits={"heartbeat": SELDOM})
    made = SimpleNamespace(
        begin=datetime.now(UTC), url=cem.url, price=consumed, fed_in=consumed, told={}, failures=[]
    )
    sensors = {}

    async def prices(start, end):
        hours = [
            datetime.fromtimestamp(each, UTC) for each in range(int(start) // 3600 * 3600, int(end), 3600)
        ]
        return [
            priced(each.timestamp(), each.timestamp() + 3600, consumed(each), made.fed_in(each))
            for each in hours
        ]

    optimiser = Optimiser(prices)

    async def solve(*question):
        await asyncio.sleep(ANSWER_SECONDS)
        return await optimiser.solve(*question)

    def means(resource):
        sensor = sensors.setdefault(resource.resource_id, len(sensors) + 1)
        return sites.PlanningSensors(sensor, QUARTER, None, None)

    def power(resource):
        measured = resource.session.memory.get(("PowerMeasurement",))
        values = measured.values if measured else ()
        return commodities.electric({each.commodity_quantity.value: each.value for each in values})

    made.site = sites.Site(
        solve,
        prices,
        means,
        power,
        lambda moment: 0.0,
        lambda resource: None,
        lambda resource, text: made.told.__setitem__(resource.name, text),
        lambda resource, session, control_type: made.failures.append(f"{resource.name}: {control_type}"),
        made.failures.append,
        lambda: None,
        DAY.total_seconds(),
        now=time.time,
        tariffs={"GAS": GAS_PRICE, "HEAT": HEAT_PRICE},
    )
    cem.cem.changed = lambda resource: triggers.changed(made.site, resource)
    cem.cem.received = lambda resource, message: triggers.received(made.site, resource, message)
    cem.cem.leaving = lambda resource: triggers.leave(made.site, resource)
    made.site.rolling = ROLLING
    planner.start(made.site)
    yield made
    await planner.stop(made.site)
    assert made.failures == []
    assert not any(made.told.values())
    told = caplog.get_records("call")
    assert [each.getMessage() for each in told if each.levelno >= logging.ERROR] == []


async def lived(day, devices) -> None:
    """Have devices live through the day, and tell at its end what became of it."""
    await asyncio.sleep((day.begin + DAY - datetime.now(UTC)).total_seconds())
    for device in devices:
        await device.tell()


async def test_four_storages_live_through_a_day(day, record_property):
    async with storages(day, QUARTER) as devices:
        await lived(day, devices.all)
        check_storages(day, devices, record_property)


async def test_devices_of_each_other_control_type_live_through_a_day(day, record_property):
    day.price, day.fed_in = worth, fed_in
    async with household(day, QUARTER) as devices:
        await lived(day, devices.all)
        check_household(day, devices, record_property)


@pytest.mark.parametrize(
    "habits",
    [
        pytest.param(frozenset(Habit), id="all habits"),
        pytest.param(frozenset(Habit) - {Habit.ACTS_ON_RECEIPT}, id="all but on receipt"),
    ],
)
async def test_a_battery_with_habits_of_the_field_does_as_well_as_one_without(day, habits, record_property):
    first, second = day.begin + 12 * HOUR, day.begin + 10 * HOUR
    batteries = {
        name: HomeBattery(
            day.url,
            name=name,
            habits=of_it,
            every=EVERY_MINUTE,
            target=[(first, first + HOUR, 80, 100)],
            overshoot=A_MINUTE_OF_CHARGE / 100,
        )
        for name, of_it in {"by the letter": frozenset(), "of the field": habits}.items()
    }
    async with batteries["by the letter"], batteries["of the field"]:
        await asyncio.sleep(60)
        for name, battery in batteries.items():
            assert len(battery.instructions) < MAX_INSTRUCTIONS_OF_A_MINUTE, f"{name} is told again and again"
        await asyncio.sleep((5.5 * HOUR).total_seconds())
        for battery in batteries.values():
            await battery.set_target([(second, second + HOUR, 90, 100)])
        await lived(day, batteries.values())
    gains = {}
    for name, battery in batteries.items():
        cost, nothing, optimum = judged(day, home_battery(name, battery))
        report(record_property, name, cost=cost, nothing=nothing, optimum=optimum)
        gains[name] = nothing - cost
    check_obedience(batteries.values())
    for name, battery in batteries.items():
        assert level_at(battery, second) >= 90 - A_MINUTE_OF_CHARGE, name
    assert gains["of the field"] > 0.95 * gains["by the letter"] - HAIR
