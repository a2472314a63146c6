"""Values are posted so that the server stores what was meant."""

from datetime import UTC, datetime, timedelta

import pytest

import flexmeasures_optimiser.sensor_data as sensor_data
from flexmeasures_optimiser.connection import Connection, Sensor
from flexmeasures_optimiser.errors import InvalidData

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER, HOUR, MINUTE = timedelta(minutes=15), timedelta(hours=1), timedelta(minutes=1)
ZERO = timedelta(0)


def sensor(unit="kW", resolution=QUARTER):
    """Return a sensor."""
    return Sensor(12, unit, resolution, "Europe/Amsterdam", 3)


@pytest.mark.parametrize(
    ("unit", "step", "sensor_unit", "resolution", "posted"),
    [
        ("kWh", HOUR, "kW", QUARTER, (1.0, "kW")),
        ("kWh", QUARTER, "kW", QUARTER, (4.0, "kW")),
        ("Wh", HOUR, "MW", QUARTER, (0.001, "kW")),
        ("kWh", HOUR, "kWh", QUARTER, (0.25, "kWh")),
        ("kWh", 5 * MINUTE, "kWh", QUARTER, (3.0, "kWh")),
        ("kWh", QUARTER, "kWh", QUARTER, (1.0, "kWh")),
        ("kW", HOUR, "kWh", QUARTER, (0.25, "kWh")),
        ("W", 5 * MINUTE, "kWh", HOUR, (0.001, "kWh")),
        ("W", HOUR, "kW", QUARTER, (1.0, "W")),
        ("kWh", ZERO, "kWh", ZERO, (1.0, "kWh")),
        ("kWh", HOUR, "MWh", ZERO, (1.0, "kWh")),
        ("°C", HOUR, "K", QUARTER, (1.0, "°C")),
        ("kWh", HOUR, "%", QUARTER, (1.0, "kWh")),
        ("EUR/kWh", HOUR, "EUR/kWh", QUARTER, (1.0, "EUR/kWh")),
    ],
)
def test_energy_and_power_are_told_apart(unit, step, sensor_unit, resolution, posted):
    values, found = sensor_data.converted([1.0, None], unit, step, sensor(sensor_unit, resolution))
    assert values == [pytest.approx(posted[0]), None]
    assert found == posted[1]


@pytest.mark.parametrize(
    ("sign", "sensor_sign", "unit", "resolution", "turned"),
    [
        (1, 1, "kW", QUARTER, [2.0, None]),
        (1, -1, "kW", QUARTER, [-2.0, None]),
        (-1, -1, "kW", QUARTER, [2.0, None]),
        (-1, 1, "Wh", HOUR, [-2.0, None]),
        (1, -1, "kWh", ZERO, [2.0, None]),
        (1, -1, "°C", QUARTER, [2.0, None]),
        (1, -1, "EUR/kWh", HOUR, [2.0, None]),
    ],
)
def test_powers_and_energies_have_the_sensors_sign(sign, sensor_sign, unit, resolution, turned):
    found = Sensor(12, unit, resolution, "Europe/Amsterdam", 3, sensor_sign)
    assert sensor_data.turned([2.0, None], sign, found) == turned


@pytest.mark.parametrize(
    ("step", "count", "resolution", "found"),
    [
        (None, 3, QUARTER, QUARTER),
        (HOUR, 3, QUARTER, HOUR),
        (5 * MINUTE, 3, QUARTER, 5 * MINUTE),
        (None, 1, ZERO, ZERO),
        (ZERO, 1, ZERO, ZERO),
        (MINUTE, 3, ZERO, MINUTE),
    ],
)
def test_a_value_stands_for_the_sensors_resolution_unless_told(step, count, resolution, found):
    run = sensor_data.Run(12, NOON, [1.0] * count, step=step)
    assert sensor_data.fitting_step(run, sensor(resolution=resolution)) == found


@pytest.mark.parametrize(
    ("step", "count", "resolution", "says"),
    [
        (ZERO, 1, QUARTER, "duration or resolution: each value would stand for 0:00:00"),
        (10 * MINUTE, 3, QUARTER, "neither a multiple nor a part of the 0:15:00 of sensor 12"),
        (None, 3, ZERO, "duration: sensor 12 is instantaneous"),
        (ZERO, 3, ZERO, "duration: sensor 12 is instantaneous"),
        (MINUTE / 3, 4, ZERO, "duration: FlexMeasures takes whole minutes, not 0:01:20"),
    ],
)
def test_a_duration_that_does_not_fit_is_named(step, count, resolution, says):
    run = sensor_data.Run(12, NOON, [1.0] * count, step=step)
    with pytest.raises(InvalidData, match=says):
        sensor_data.fitting_step(run, sensor(resolution=resolution))


@pytest.mark.parametrize(
    ("start", "step", "count", "resolution", "expected"),
    [
        (NOON + 7 * MINUTE, None, 2, QUARTER, (NOON, QUARTER)),
        (NOON + 7 * MINUTE, HOUR, 2, QUARTER, (NOON + 7 * MINUTE, HOUR)),
        (NOON, ZERO, 1, QUARTER, (NOON, ZERO)),
        (NOON + 7 * MINUTE, None, 1, ZERO, (NOON + 7 * MINUTE, MINUTE)),
        (NOON + 7 * MINUTE, ZERO, 1, ZERO, (NOON + 7 * MINUTE, MINUTE)),
        (NOON + MINUTE / 2, None, 1, ZERO, (NOON + MINUTE / 2, None)),
        (NOON, None, 2, ZERO, (NOON, None)),
    ],
)
def test_a_run_gets_the_sensors_clock(start, step, count, resolution, expected):
    run = sensor_data.Run(12, start, [1.0] * count, step=step)
    found = sensor_data.on_the_clock(run, sensor(resolution=resolution))
    assert (found.start, found.step) == expected


def test_what_is_finer_than_the_sensor_is_averaged_on_its_clock():
    start, values = sensor_data.averaged(
        NOON + 10 * MINUTE, [1.0, 2.0, None, 6.0, None, None, None], 5 * MINUTE, sensor()
    )
    assert start == NOON
    assert values == [1.0, 4.0, None]


class Client:
    """Answers as flexmeasures-client does, and remembers what it was asked."""

    async def get_sensor_data(self, sensor_id, **asked):
        """Return a value for each step."""
        self.asked = asked
        return {"values": [1.0] * int(asked["duration"] / asked["resolution"]), "unit": asked["unit"]}


@pytest.mark.parametrize(
    ("start", "duration", "resolution", "first", "count"),
    [
        (NOON, HOUR, None, NOON, 4),
        (NOON + 7 * MINUTE, HOUR, None, NOON, 5),
        (NOON + 7 * MINUTE, MINUTE, None, NOON, 1),
        (NOON + 20 * MINUTE, HOUR, HOUR, NOON, 2),
        (NOON, HOUR, 5 * MINUTE, NOON, 12),
    ],
)
async def test_what_is_read_covers_what_was_asked(start, duration, resolution, first, count):
    link = Connection("x", Client(), None, None, {12: sensor()})
    found = await sensor_data.read(link, 12, start, duration, resolution=resolution)
    assert (found["start"], len(found["values"])) == (first, count)
    assert link.client.asked["unit"] == "kW"
    assert found["start"] <= start
    assert found["start"] + found["duration"] >= start + duration
    assert "source" not in link.client.asked
