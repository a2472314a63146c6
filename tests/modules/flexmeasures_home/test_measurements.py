"""Entities become values on their sensor's clock: averages weighted by time, or states as they are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from homeassistant.helpers.json import json_bytes
from homeassistant.util.json import json_loads
from pytest_homeassistant_custom_component.common import async_fire_time_changed

import flexmeasures_home.device as devices
from flexmeasures_api.connection import Sensor
from flexmeasures_home.measurements import Measurements
from flexmeasures_home.outbox import Outbox
from flexmeasures_home.status import Status

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER, MINUTE = timedelta(minutes=15), timedelta(minutes=1)
GRID = "sensor.grid"
KW = {"unit_of_measurement": "kW"}


class House:
    """Home Assistant with an outbox that nobody empties, and a clock."""

    def __init__(self, hass, freezer) -> None:
        """Start at noon."""
        self.hass, self.freezer = hass, freezer
        self.status = Status(hass)
        self.outbox = Outbox(
            hass, SimpleNamespace(host="http://x"), self.status, SimpleNamespace(new_key=lambda: 0), "me"
        )
        self.all = Measurements(hass=hass, outbox=self.outbox, store=None)
        self.know(9, "kW", QUARTER)
        freezer.move_to(NOON)

    def know(self, sensor, unit, resolution):
        """Know a FlexMeasures sensor."""
        self.all.sensors[sensor] = Sensor(
            id=sensor, unit=unit, resolution=resolution, timezone="Europe/Amsterdam", asset=1
        )

    def measure(self, sensor=9, entity=GRID, **options):
        """Start measuring an entity."""
        reader = devices.reader(self.hass, entity, options.pop("unit", None))
        self.all.measure(entity, sensor, reader, pacemaker=9, **options)
        return self.all.meters[-1]

    def keep(self, meter):
        """Stop a meter, and keep its interval as over a reload."""
        kept = json_loads(json_bytes(meter.stop()))
        self.all.meters.clear()
        self.all.intervals = {meter.problem_key: kept}

    def say(self, state, attributes=KW, entity=GRID):
        """Set the entity."""
        self.hass.states.async_set(entity, state, attributes)

    async def at(self, minutes, state=None, attributes=KW):
        """Let the clock go to some minutes past noon, and set the entity then."""
        moment = NOON + timedelta(minutes=minutes)
        self.freezer.move_to(moment)
        async_fire_time_changed(self.hass, moment)
        await self.hass.async_block_till_done()
        if state is not None:
            self.say(state, attributes)
            await self.hass.async_block_till_done()

    @property
    def posted(self):
        """Return what was posted: minutes past noon and value, by the step."""
        return [
            ((item.data.start - NOON) / MINUTE + number * (item.data.step / MINUTE), value)
            for item in self.outbox.items
            for number, value in enumerate(item.data.values)
        ]

    @property
    def units(self):
        """Return the units that were posted."""
        return {item.data.unit for item in self.outbox.items}


@pytest.fixture
async def house(hass, freezer):
    """Return a house at noon."""
    house = House(hass, freezer)
    yield house
    for meter in house.all.meters:
        meter.stop()


async def test_a_power_is_the_average_weighted_by_time(house):
    house.say("1")
    house.measure()
    await house.at(5, "4")
    await house.at(10, "-2")
    await house.at(15)
    await house.at(30)
    assert house.posted == [(0, pytest.approx(1)), (15, -2)]
    assert house.units == {"kW"}


async def test_a_power_is_posted_in_kw_whatever_the_entitys_unit(house):
    house.say("1000", {"unit_of_measurement": "W"})
    house.measure()
    await house.at(5, "4", {"unit_of_measurement": "kW"})
    await house.at(15)
    assert house.posted == [(0, pytest.approx(3))]
    assert house.units == {"kW"}


@pytest.mark.parametrize("gone", ["unknown", "unavailable"])
async def test_what_is_not_known_is_a_gap_and_no_zero(house, gone):
    house.say("3")
    house.measure()
    await house.at(5, gone)
    await house.at(50, "1")
    await house.at(60)
    assert house.posted == [(0, 3), (15, None), (30, None), (45, 1)]
    assert house.status.problems == {}


async def test_an_interval_in_which_hardly_anything_is_known_is_a_gap(house):
    house.say("3")
    house.measure()
    await house.at(16, "unknown")
    await house.at(31.6, "5")
    await house.at(43.4, "unknown")
    await house.at(60)
    assert house.posted == [(0, 3), (15, None), (30, 5)]


async def test_an_entity_that_goes_away_is_a_gap(house):
    house.say("3")
    house.measure()
    await house.at(5)
    house.hass.states.async_remove(GRID)
    await house.hass.async_block_till_done()
    await house.at(30)
    assert house.posted == [(0, 3)]


async def test_measuring_begins_in_the_middle_of_an_interval(house):
    house.freezer.move_to(NOON + 7 * MINUTE)
    house.say("3")
    house.measure()
    await house.at(15)
    assert house.posted == [(0, 3)]


async def test_a_coarser_resolution_and_a_unit_can_be_configured(house):
    house.say("3", {})
    house.measure(step=2 * QUARTER, unit="W")
    await house.at(30)
    await house.at(60)
    assert house.posted == [(0, 0.003), (30, 0.003)]


async def test_a_resolution_finer_than_the_sensors_is_the_sensors(house):
    house.say("3")
    house.measure(step=5 * MINUTE)
    await house.at(15)
    assert house.posted == [(0, 3)]


async def test_a_kept_interval_of_a_clock_that_was_ahead_is_let_go(house):
    house.say("3")
    meter = house.measure()
    house.keep(meter)
    house.freezer.move_to(NOON - 60 * MINUTE)
    house.measure()
    await house.at(-45)
    assert house.posted == [(-60, 3)]
    assert house.all.intervals == {}


async def test_a_state_is_not_posted_for_a_tick_long_gone(house):
    house.know(4, "kWh", timedelta(0))
    house.say("3")
    house.measure(4)
    await house.at(20)
    assert house.posted == []
    await house.at(31)
    assert house.posted == [(30, 3)]


async def test_an_instantaneous_sensor_gets_the_state_as_it_is_at_each_tick(house):
    house.know(4, "kWh", timedelta(0))
    kwh = {"unit_of_measurement": "kWh"}
    house.say("3", kwh)
    house.measure(4)
    await house.at(5, "7", kwh)
    await house.at(15)
    await house.at(20, "8", kwh)
    await house.at(30)
    assert house.posted == [(15, 7), (30, 8)]
    assert house.units == {"kWh"}


async def test_an_attribute_is_measured(house):
    house.say("on", {"power": 2})
    house.measure(entity="sensor.grid.power", unit="kW")
    await house.at(5, "on", {"power": 5})
    await house.at(15)
    assert house.posted == [(0, pytest.approx(4))]


@pytest.mark.parametrize(
    ("state", "attributes", "says"),
    [
        ("on", {}, "sensor.grid is 'on', which is not a number"),
        (None, {}, "sensor.grid does not exist"),
        ("5", {"unit_of_measurement": "kWh"}, "sensor.grid counts energy (kWh): give an entity of power"),
    ],
)
async def test_what_can_never_be_measured_is_told(house, state, attributes, says):
    if state:
        house.say(state, attributes)
    house.measure()
    await house.at(15)
    assert house.posted == []
    [problem] = house.status.problems.values()
    assert says in problem.text
    await house.at(20, "5")
    await house.at(30)
    assert house.posted == [(15, 5)]
    assert house.status.problems == {}


async def test_a_sensor_that_is_not_known_yet_gets_values_of_five_minutes(house):
    house.say("3")
    del house.all.sensors[9]
    house.measure()
    await house.at(5)
    house.know(9, "kW", QUARTER)
    await house.at(10)
    await house.at(15)
    assert house.posted == [(0, 3), (0, 3)]
    assert [item.data.step for item in house.outbox.items] == [5 * MINUTE, QUARTER]


async def test_a_change_of_which_it_hears_late_counts_from_when_it_was(house):
    house.say("3")
    house.measure()
    house.freezer.move_to(NOON + 5 * MINUTE)
    house.say("6")
    await house.at(15)
    assert house.posted == [(0, pytest.approx(5))]


async def test_an_interval_goes_on_after_a_reload(house):
    house.say("3")
    meter = house.measure()
    await house.at(5)
    house.keep(meter)
    house.freezer.move_to(NOON + 10 * MINUTE)
    house.say("9")
    house.measure()
    await house.at(15)
    assert house.posted == [(0, pytest.approx(6))]


async def test_an_interval_that_ended_meanwhile_is_posted(house):
    house.say("3")
    meter = house.measure()
    await house.at(5)
    house.keep(meter)
    house.freezer.move_to(NOON + 100 * MINUTE)
    house.measure()
    assert house.posted == [(0, 3)]


async def test_a_clock_that_was_set_forward_makes_a_gap(house, monkeypatch):
    house.say("3")
    meter = house.measure()
    await house.at(5)
    meter.look()
    meter.clocks = replace(meter.clocks, monotonic=meter.clocks.monotonic + 3 * 3600)
    await house.at(5 + 180)
    await house.at(195)
    assert house.posted == [(0, 3), *[(15 * n, None) for n in range(1, 12)], (180, 3)]


async def test_a_clock_that_was_set_back_starts_an_interval_anew(house):
    house.say("3")
    meter = house.measure()
    await house.at(5)
    house.freezer.move_to(NOON - 100 * MINUTE)
    meter.look()
    assert meter.interval.start == NOON - 105 * MINUTE
    house.freezer.move_to(NOON - 90 * MINUTE)
    meter.look()
    assert house.posted == [(-105, 3)]


@pytest.mark.parametrize(("day", "quarters"), [((2027, 3, 28), 92), ((2026, 10, 25), 100)])
async def test_a_day_over_a_clock_change_has_all_its_quarters(house, day, quarters):
    zone = house.hass.config.time_zone
    await house.hass.config.async_set_time_zone("Europe/Amsterdam")
    midnight = datetime(*day, tzinfo=UTC) - timedelta(hours=1 if quarters == 92 else 2)
    house.freezer.move_to(midnight)
    house.say("3")
    house.measure()
    for number in range(1, quarters + 1):
        await house.at((midnight - NOON) / MINUTE + 15 * number)
    [item] = house.outbox.items
    assert item.data.start == midnight
    assert item.data.values == [3.0] * quarters
    await house.hass.config.async_set_time_zone(zone)
