"""The data of sensors: measurements and forecasts that are posted, and values that the server holds."""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

import flexmeasures_api.error_mapping as error_mapping
import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_clock as sensor_clock
from flexmeasures_api.connection import Connection, Sensor

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
FIRST_POLL_SECONDS = 0.1
STORING_SECONDS = 120
"""How soon a job that stores values is polled, and how long it may take."""
MAX_STORED_VALUES = 1_000
"""Per request: FlexMeasures needs 13 ms for each value that it stores, and ends a job at 180 s."""
INSTANT_RESOLUTION = timedelta(minutes=5)
"""At which an instantaneous sensor is read, unless the caller says otherwise."""
FLOW_UNITS = EnergyConverter.VALID_UNITS | PowerConverter.VALID_UNITS
CONSUMPTION, PRODUCTION = 1, -1
"""The sign of consumption, where consumption or production is positive."""


@dataclass(kw_only=True)
class _SensorData:
    """Consecutive values of one sensor, by its id; None is a gap.

    `step` is the time from one value to the next, None for the sensor's own resolution. `unit` is the
    values', None for the sensor's own. `prior` is when the values became known, None for when they arrive at
    the server. `sign` is that of consumption in powers and energies, None where the values are as the sensor
    holds them. The server has stored the values up to `stored_until`.
    """

    sensor: int
    start: datetime
    values: list[float | None]
    unit: str | None = None
    step: timedelta | None = None
    prior: datetime | None = None
    sign: int | None = None
    stored_until: datetime | None = None


SensorData = _SensorData


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """What is posted of SensorData in one request, as FlexMeasures takes it.

    `duration` is that of all values together. `end` is up to when the chunk reaches, None for the end of the
    data. `rest` is the start of the first value that the chunk does not contain, or not wholly; `step` is
    that of the data.
    """

    start: datetime
    values: list[float | None]
    unit: str
    duration: timedelta
    step: timedelta
    rest: datetime
    end: datetime | None


Chunk = _Chunk


@pyscript_compile
def with_known_step(data: SensorData, sensor: Sensor) -> SensorData:
    """Return the data with their step filled in, as the server reads them, so that values can be appended.

    The server floors starts to the sensor's clock. A single value of an instantaneous sensor stands for a
    minute.
    """
    if data.step:
        return data
    if sensor.resolution:
        start = sensor_clock.floor(data.start, sensor.resolution, sensor.timezone)
        return data if data.step is not None else replace(data, start=start, step=sensor.resolution)
    if len(data.values) > 1 or data.start.second or data.start.microsecond:
        return data
    return replace(data, step=MINUTE)


@pyscript_compile
async def post(connection: Connection, data: SensorData) -> str | None:
    """Post data; return the id of the job that will store their end, or None if they are stored.

    Raise a FlexMeasuresError; `InvalidData` names the field.
    """
    while True:
        job, chunk = await post_chunk(connection, data)
        if chunk.end is None:
            return job
        if job is not None:
            await wait_until_stored(connection, job)
        data = without_stored(data, chunk)


@pyscript_compile
async def post_chunk(connection: Connection, data: SensorData) -> tuple[str | None, Chunk]:
    """Post as much of the data as FlexMeasures takes at once; return the storing job's id, and the Chunk.

    The id is None if the values are stored, or all of them are gaps. Raise a FlexMeasuresError; `InvalidData`
    names the field.
    """
    sensor = await connection.sensor(data.sensor)
    chunk = next_chunk(data, sensor)
    if all(value is None for value in chunk.values):
        return None, chunk
    answer, status = await connection.request(
        connection.client.post_sensor_data(
            sensor.id,
            start=chunk.start,
            duration=chunk.duration,
            values=chunk.values,
            unit=chunk.unit,
            prior=data.prior,
        )
    )
    return answer.get("job") if status == 202 else None, chunk


@pyscript_compile
def without_stored(data: SensorData, chunk: Chunk) -> SensorData:
    """Return what remains of the data once a Chunk of them, which has an `end`, is stored."""
    count = max((chunk.rest - data.start) // chunk.step, 0)
    return replace(
        data, start=data.start + count * chunk.step, values=data.values[count:], stored_until=chunk.end
    )


@pyscript_compile
def next_chunk(data: SensorData, sensor: Sensor) -> Chunk:
    """Return what is to be posted of the data next: no more than FlexMeasures stores in time."""
    step = fitting_step(data, sensor)
    if step and step < sensor.resolution:
        return averaged_chunk(data, sensor, step)
    stored_per_value = step // sensor.resolution if sensor.resolution else 1
    start, values, length = data.start, data.values, step
    end: datetime | None = None
    if stored_per_value > MAX_STORED_VALUES:
        start = max(data.stored_until or data.start, data.start)
        length = min(data.start + step - start, MAX_STORED_VALUES * sensor.resolution)
        values = data.values[:1]
        end = start + length
    elif len(values) * stored_per_value > MAX_STORED_VALUES:
        values = values[: whole_minutes(MAX_STORED_VALUES // stored_per_value, step)]
        end = start + len(values) * step
    if end == data.start + len(data.values) * step:
        end = None
    rest = data.start if end is None else data.start + (end - data.start) // step * step
    values, unit = as_held(values, data, step, sensor)
    return Chunk(
        start=start,
        values=values,
        unit=unit,
        duration=length * len(values),
        step=step,
        rest=rest,
        end=end,
    )


@pyscript_compile
def averaged_chunk(data: SensorData, sensor: Sensor, step: timedelta) -> Chunk:
    """Return what is to be posted next of data that are finer than their sensor: averages."""
    in_reach = (MAX_STORED_VALUES + 1) * sensor.resolution // step
    values, unit = as_held(data.values[:in_reach], data, step, sensor)
    start, values = averaged(data.start, values, step, sensor)
    end: datetime | None = start + MAX_STORED_VALUES * sensor.resolution
    rest = data.start - (data.start - start - MAX_STORED_VALUES * sensor.resolution) // step * step
    if rest >= data.start + len(data.values) * step:
        end = None
    values = values[:MAX_STORED_VALUES]
    return Chunk(
        start=start,
        values=values,
        unit=unit,
        duration=sensor.resolution * len(values),
        step=step,
        rest=rest,
        end=end,
    )


@pyscript_compile
def as_held(
    values: list[float | None], data: SensorData, step: timedelta, sensor: Sensor
) -> tuple[list[float | None], str]:
    """Return values of the data, and their unit, in the quantity and with the sign that the sensor holds."""
    values, unit = converted(values, data.unit or sensor.unit, step, sensor)
    return values if data.sign is None else with_sign(values, data.sign, sensor), unit


@pyscript_compile
def whole_minutes(count: int, step: timedelta) -> int:
    """Return the greatest number of steps, up to `count`, that last whole minutes, or else `count`."""
    micro = timedelta(microseconds=1)
    divisor = MINUTE // micro // math.gcd(MINUTE // micro, step // micro)
    return count // divisor * divisor or count


@pyscript_compile
def with_sign(values: list[float | None], sign: int, sensor: Sensor) -> list[float | None]:
    """Return values negated where the sensor's sign of consumption differs from `sign`, either way.

    Only a sensor of power, or of the energy of its intervals, has such a sign.
    """
    is_flow = sensor.resolution and sensor.unit in FLOW_UNITS
    if not is_flow or sign == sensor.sign:
        return values
    return [None if value is None else -value + 0.0 for value in values]


@pyscript_compile
async def wait_until_stored(connection: Connection, job: str) -> None:
    """Wait until a job has stored what was posted; raise a FlexMeasuresError."""
    await connection.wait_for_job(job, seconds=STORING_SECONDS, first_poll_seconds=FIRST_POLL_SECONDS)


@pyscript_compile
def fitting_step(data: SensorData, sensor: Sensor) -> timedelta:
    """Return the time from one value to the next; raise InvalidData where it does not fit the sensor."""
    if data.step is None:
        step = sensor.resolution
    else:
        step = data.step
        check_step(step, sensor)
    is_averaged = step and step < sensor.resolution
    if not is_averaged and step * len(data.values) % MINUTE:
        raise errors.InvalidData(
            f"duration: FlexMeasures takes whole minutes, not {step * len(data.values)} (sensor {sensor.id})"
        )
    if not step and len(data.values) > 1:
        raise errors.InvalidData(
            f"duration: sensor {sensor.id} is instantaneous: give one value, or a duration over which "
            f"the {len(data.values)} values are spread"
        )
    return step


@pyscript_compile
def check_step(step: timedelta | None, sensor: Sensor) -> None:
    """Raise InvalidData for a time from one value to the next that does not fit the sensor."""
    if step is None or not sensor.resolution:
        return
    if not step or (step % sensor.resolution and sensor.resolution % step):
        raise errors.InvalidData(
            f"duration or resolution: each value would stand for {step}, which is neither a multiple nor a "
            f"part of the {sensor.resolution} of sensor {sensor.id}: leave it out for the sensor's own"
        )


@pyscript_compile
def converted(
    values: list[float | None], unit: str, step: timedelta, sensor: Sensor
) -> tuple[list[float | None], str]:
    """Return values and their unit as the server converts them correctly: power to power, energy to energy.

    The server repeats a coarse value before it converts it, so 1 kWh in an hour would become four times 4 kW
    on a sensor of 15 minutes; and it refuses a power on a sensor of energy.
    """
    is_energy, holds_energy = (name in EnergyConverter.VALID_UNITS for name in (unit, sensor.unit))
    if not sensor.resolution or not (is_energy or holds_energy) or not {unit, sensor.unit} <= FLOW_UNITS:
        return values, unit
    if is_energy and holds_energy and step == sensor.resolution:
        return values, unit
    if is_energy:
        to_kilo = EnergyConverter.converter_factory(unit, "kWh")
    else:
        to_kilo = PowerConverter.converter_factory(unit, "kW")
    factor = (HOUR / step if is_energy else 1) * (sensor.resolution / HOUR if holds_energy else 1)
    scaled = [None if value is None else to_kilo(value) * factor for value in values]
    return scaled, "kWh" if holds_energy else "kW"


@pyscript_compile
def averaged(
    start: datetime, values: list[float | None], step: timedelta, sensor: Sensor
) -> tuple[datetime, list[float | None]]:
    """Return the first start and the averages of finer values over the sensor's intervals.

    The server would shift finer values as a whole to the beginning of the first interval.
    """
    intervals: dict[datetime, list[float | None]] = {}
    for number, value in enumerate(values):
        interval = sensor_clock.floor(start + number * step, sensor.resolution, sensor.timezone)
        intervals.setdefault(interval, []).append(value)
    numbers = [[value for value in interval if value is not None] for interval in intervals.values()]
    return next(iter(intervals)), [fmean(interval) if interval else None for interval in numbers]


@pyscript_compile
async def read(
    connection: Connection,
    sensor_id: int,
    start: datetime,
    duration: timedelta,
    unit: str | None = None,
    resolution: timedelta | None = None,
    source: int | None = None,
) -> dict[str, Any]:
    """Return what the server holds: `values` (None for a gap), `start`, `duration`, `resolution`, `unit`.

    `start` is floored to the clock of the resolution, without which the server returns nothing; the end is
    not before that of `duration`. Powers, and energies of intervals, are positive for consumption, however
    the server holds them. Raise a FlexMeasuresError.
    """
    sensor = await connection.sensor(sensor_id)
    step = resolution or sensor.resolution or INSTANT_RESOLUTION
    first = sensor_clock.floor(start, step, sensor.timezone)
    count = -((first - start - duration) // step)
    answer = await connection.request(
        connection.client.get_sensor_data(
            sensor_id,
            start=first,
            duration=count * step,
            unit=unit or sensor.unit,
            resolution=step,
            **({} if source is None else {"source": source}),
        )
    )
    return {
        "values": with_sign(answer["values"], CONSUMPTION, sensor),
        "start": first,
        "duration": count * step,
        "resolution": step,
        "unit": answer["unit"],
    }


@pyscript_compile
async def recorded_spans(connection: Connection, sensor_id: int) -> list[tuple[datetime, datetime]]:
    """Return the start of the first and the end of the last value of each source of a sensor."""
    statistics, _status = await connection.request(
        connection.client.request(uri=f"sensors/{sensor_id}/stats", method="GET")
    )
    with error_mapping.reading_answer(connection.host):
        return [
            (
                datetime.fromisoformat(source["First event start"]),
                datetime.fromisoformat(source["Last event end"]),
            )
            for source in statistics.values()
            if isinstance(source, dict)
        ]


@pyscript_compile
async def power_sensor(connection: Connection, sensor_id: int) -> Sensor:
    """Return a sensor of power, or of energy, per interval; raise UnknownSensor for another one."""
    sensor = await connection.sensor(sensor_id)
    if not sensor.resolution:
        raise errors.UnknownSensor(
            f"Sensor {sensor_id} is instantaneous: give a power sensor with a resolution such as 15 minutes"
        )
    if sensor.unit not in FLOW_UNITS:
        raise errors.UnknownSensor(
            f"power_sensor: sensor {sensor_id} is in {sensor.unit}: expected a unit of power such as kW. "
            f"Give the number of the device's power sensor"
        )
    return sensor


@pyscript_compile
async def soc_sensor(connection: Connection, sensor_id: int) -> Sensor:
    """Return a sensor of a state of charge; raise UnknownSensor for another unit."""
    sensor = await connection.sensor(sensor_id)
    if sensor.unit != "%" and sensor.unit not in EnergyConverter.VALID_UNITS:
        raise errors.UnknownSensor(
            f"soc_sensor: sensor {sensor_id} is in {sensor.unit}: expected a unit of a state of charge such "
            f"as kWh or %. Check the number"
        )
    return sensor
