"""Values are posted so that the server stores what was meant."""

from datetime import UTC, datetime, timedelta

import pytest

import flexmeasures_api.sensor_data as sensor_data
from flexmeasures_api.connection import Connection, Sensor
from flexmeasures_api.errors import InvalidData

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER, HOUR, MINUTE = timedelta(minutes=15), timedelta(hours=1), timedelta(minutes=1)
ZERO = timedelta(0)


def sensor(unit="kW", resolution=QUARTER, sign=-1):
    """Return a sensor."""
    return Sensor(id=12, unit=unit, resolution=resolution, timezone="Europe/Amsterdam", asset=3, sign=sign)


def data(values, step, start=NOON):
    """Return data of the sensor."""
    return sensor_data.SensorData(sensor=12, start=start, values=values, step=step)


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
    found = sensor(unit, resolution, sensor_sign)
    assert sensor_data.with_sign([2.0, None], sign, found) == turned


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
    run = data([1.0] * count, step)
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
    run = data([1.0] * count, step)
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
    run = data([1.0] * count, step, start=start)
    found = sensor_data.with_known_step(run, sensor(resolution=resolution))
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
    link = Connection(host="x", client=Client(), sensors={12: sensor()})
    found = await sensor_data.read(link, 12, start, duration, resolution=resolution)
    assert (found["start"], len(found["values"])) == (first, count)
    assert link.client.asked["unit"] == "kW"
    assert found["start"] <= start
    assert found["start"] + found["duration"] >= start + duration
    assert "source" not in link.client.asked


class Storing:
    """Answers posts as flexmeasures-client does, and stores a value for each step, as FlexMeasures does."""

    def __init__(self, resolution):
        """Store nothing yet."""
        self.resolution, self.posts, self.jobs, self.held = resolution, [], [], {}

    async def post_sensor_data(self, _sensor_id, *, start, duration, values, unit, prior):
        """Repeat a value that is coarser than the sensor, and store it under the time of each step."""
        assert duration % MINUTE == ZERO
        step = duration / len(values)
        if self.resolution:
            start = sensor_data.sensor_clock.floor(start, self.resolution, "UTC")
            values = [value for value in values for _ in range(step // self.resolution)]
            step = self.resolution
        self.posts.append(len(values))
        for number, value in enumerate(values):
            assert start + number * step not in self.held
            if value is not None:
                self.held[start + number * step] = value
        return {"job": f"job {len(self.posts)}"}, 202

    async def wait_for_job(self, job, **_named):
        """Remember who waited."""
        self.jobs.append(job)


@pytest.mark.parametrize(
    ("count", "step", "resolution", "posts", "held"),
    [
        (10_000, QUARTER, QUARTER, 10, 10_000),
        (1_000, QUARTER, QUARTER, 1, 1_000),
        (1_001, None, QUARTER, 2, 1_001),
        (10_000, 5 * MINUTE, QUARTER, 4, 3_334),
        (9_600, MINUTE / 4, QUARTER, 1, 161),
        (2_000, HOUR, QUARTER, 8, 8_000),
        (3, timedelta(days=30), QUARTER, 9, 8_640),
        (1, timedelta(days=2), MINUTE, 3, 2_880),
        (6_000, MINUTE / 60, ZERO, 7, 6_000),
        (10_000, MINUTE, ZERO, 10, 10_000),
    ],
)
async def test_a_request_has_no_more_than_the_server_stores_in_time(count, step, resolution, posts, held):
    start = NOON + 7 * MINUTE if step in (5 * MINUTE, MINUTE / 4) else NOON
    run = data([float(number % 7) for number in range(count)], step, start=start)
    link = Connection(host="x", client=Storing(resolution), sensors={12: sensor(resolution=resolution)})
    last = await sensor_data.post(link, run)
    client = link.client
    assert max(client.posts) <= 1_000
    assert (len(client.posts), len(client.held)) == (posts, held)
    assert [*client.jobs, last] == [f"job {number}" for number in range(1, posts + 1)]
    whole = Storing(resolution)
    sensor_data.MAX_STORED_VALUES = 10**6
    try:
        await sensor_data.post(Connection(host="x", client=whole, sensors=link.sensors), run)
    finally:
        sensor_data.MAX_STORED_VALUES = 1_000
    assert client.held == whole.held


async def test_a_part_of_gaps_alone_is_not_posted():
    run = data([1.0] + [None] * 2_500 + [2.0], QUARTER)
    link = Connection(host="x", client=Storing(QUARTER), sensors={12: sensor()})
    await sensor_data.post(link, run)
    assert link.client.posts == [1_000, 502]
    assert link.client.held == {NOON: 1.0, NOON + 2_501 * QUARTER: 2.0}
