"""Sensor data: measurements and forecasts that are posted, and what the server holds."""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.schedule as schedules

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
FIRST_POLL_SECONDS = 0.1
SLOWEST_POLL_SECONDS = 4
STORING_SECONDS = 120
RESOLUTION_OF_INSTANTS = timedelta(minutes=5)
FLOW_UNITS = EnergyConverter.VALID_UNITS | PowerConverter.VALID_UNITS
MAX_STORED = 1_000
"""How many values FlexMeasures is to store of a request: it needs 13 ms for each, and ends a job at 180 s."""
CONSUMPTION, PRODUCTION = 1, -1
"""The sign of consumption, where consumption or production is positive."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Run:
        """Values of one sensor, one after the other; None is a gap.

        `step` is from one value to the next, None for the sensor's own resolution. `unit` is the
        values', None for the sensor's own. `prior` is when the values were known, None for when they
        arrive at the server. `sign` is that of consumption in powers and energies, None where the values are
        as the sensor holds them. Up to `stored_until`, if that is given, the server has stored it.
        """

        sensor: int
        start: datetime
        values: list
        unit: str | None = None
        step: timedelta | None = None
        prior: datetime | None = None
        sign: int | None = None
        stored_until: datetime | None = None

    @dataclass
    class Part:
        """What is posted of a Run in one request, as FlexMeasures takes it; all values last for `duration`.

        `end` is up to when it reaches, None for the Run's end. `rest` is where the Run's first value starts
        that is not, or not wholly, in it; `step` is that of the Run's values.
        """

        start: datetime
        values: list
        unit: str
        duration: timedelta
        step: timedelta
        rest: datetime
        end: datetime | None

    return Run, Part


Run, Part = records()


@pyscript_compile
def on_the_clock(run, sensor):
    """Return a run with its step told, so that others can continue it, as the server understands it.

    It floors starts to the sensor's clock. A single value of an instantaneous sensor counts as one of
    a minute.
    """
    if run.step:
        return run
    if sensor.resolution:
        start = schedules.shift_down(run.start, sensor.resolution, sensor.timezone)
        return run if run.step is not None else replace(run, start=start, step=sensor.resolution)
    if len(run.values) > 1 or run.start.second or run.start.microsecond:
        return run
    return replace(run, step=MINUTE)


@pyscript_compile
async def post(link: Any, run: Run) -> str | None:
    """Post a run; return the id of the job that will store its end, or None if it is stored.

    Raise a FlexMeasuresError; `InvalidData` names the field.
    """
    while True:
        job, part = await post_part(link, run)
        if part.end is None:
            return job
        if job is not None:
            await stored(link, job)
        run = without_stored(run, part)


@pyscript_compile
async def post_part(link: Any, run: Run) -> tuple[str | None, Part]:
    """Post what FlexMeasures takes of a run at once; return the id of the job that will store it, and it.

    The id is None if it is stored, or there was nothing but gaps. Raise a FlexMeasuresError; `InvalidData`
    names the field.
    """
    sensor = await connection.sensor(link, run.sensor)
    part = part_of(run, sensor)
    if all(value is None for value in part.values):
        return None, part
    answer, status = await connection.ask(
        link,
        link.client.post_sensor_data(
            sensor.id,
            start=part.start,
            duration=part.duration,
            values=part.values,
            unit=part.unit,
            prior=run.prior,
        ),
    )
    return answer.get("job") if status == 202 else None, part


@pyscript_compile
def without_stored(run: Run, part: Part) -> Run:
    """Return what remains of a run once a Part of it is stored: `end` was not None."""
    count = max((part.rest - run.start) // part.step, 0)
    return replace(run, start=run.start + count * part.step, values=run.values[count:], stored_until=part.end)


@pyscript_compile
def part_of(run: Run, sensor: Any) -> Part:
    """Return what is to be posted of a run next: no more than FlexMeasures stores in time."""
    step = fitting_step(run, sensor)
    if step and step < sensor.resolution:
        return averaged_part(run, sensor, step)
    stored_each = step // sensor.resolution if sensor.resolution else 1
    start, values, length, end = run.start, run.values, step, None
    if stored_each > MAX_STORED:
        start = max(run.stored_until or run.start, run.start)
        length = min(run.start + step - start, MAX_STORED * sensor.resolution)
        values = run.values[:1]
        end = start + length
    elif len(values) * stored_each > MAX_STORED:
        values = values[: whole_minutes(MAX_STORED // stored_each, step)]
        end = start + len(values) * step
    if end == run.start + len(run.values) * step:
        end = None
    rest = run.start if end is None else run.start + (end - run.start) // step * step
    values, unit = as_held(values, run, step, sensor)
    return Part(start, values, unit, length * len(values), step, rest, end)


@pyscript_compile
def averaged_part(run: Run, sensor: Any, step: timedelta) -> Part:
    """Return what is to be posted next of a run that is finer than its sensor: means."""
    in_reach = (MAX_STORED + 1) * sensor.resolution // step
    values, unit = as_held(run.values[:in_reach], run, step, sensor)
    start, values = averaged(run.start, values, step, sensor)
    end = start + MAX_STORED * sensor.resolution
    rest = run.start - (run.start - end) // step * step
    if rest >= run.start + len(run.values) * step:
        end = None
    values = values[:MAX_STORED]
    return Part(start, values, unit, sensor.resolution * len(values), step, rest, end)


@pyscript_compile
def as_held(
    values: list[float | None], run: Run, step: timedelta, sensor: Any
) -> tuple[list[float | None], str]:
    """Return values of a run, and their unit, in the quantity and the sign that the sensor holds."""
    values, unit = converted(values, run.unit or sensor.unit, step, sensor)
    return values if run.sign is None else turned(values, run.sign, sensor), unit


@pyscript_compile
def whole_minutes(count: int, step: timedelta) -> int:
    """Return the greatest number of steps, up to `count`, that come to whole minutes, or else `count`."""
    micro = timedelta(microseconds=1)
    unit = MINUTE // micro // math.gcd(MINUTE // micro, step // micro)
    return count // unit * unit or count


@pyscript_compile
def turned(values: list[float | None], sign: int, sensor: Any) -> list[float | None]:
    """Return values in the other of two signs, that of a sensor and another one, where those differ.

    A sensor of power, or of the energy of its intervals, holds consumption as positive if it has the
    attribute `consumption_is_positive`, else production. Others have no sign.
    """
    is_flow = sensor.resolution and sensor.unit in FLOW_UNITS
    if not is_flow or sign == sensor.sign:
        return values
    return [None if value is None else -value + 0.0 for value in values]


@pyscript_compile
async def stored(link, job):
    """Wait until a job has stored what was posted; raise a FlexMeasuresError."""
    await connection.ask(
        link,
        link.client.wait_for_job(
            job,
            timeout=STORING_SECONDS,
            polling_interval=FIRST_POLL_SECONDS,
            max_polling_interval=SLOWEST_POLL_SECONDS,
        ),
    )


@pyscript_compile
def fitting_step(run, sensor):
    """Return the time from one value to the next; refuse one that does not fit the sensor."""
    if run.step is None:
        step = sensor.resolution
    else:
        step = run.step
        check_step(step, sensor)
    is_averaged = step and step < sensor.resolution
    if not is_averaged and step * len(run.values) % MINUTE:
        raise errors.InvalidData(
            f"duration: FlexMeasures takes whole minutes, not {step * len(run.values)} (sensor {sensor.id})"
        )
    if not step and len(run.values) > 1:
        raise errors.InvalidData(
            f"duration: sensor {sensor.id} is instantaneous: give one value, or a duration over which "
            f"the {len(run.values)} values are spread"
        )
    return step


@pyscript_compile
def check_step(step, sensor):
    """Refuse a time from one value to the next that is not None and does not fit the sensor."""
    if step is None or not sensor.resolution:
        return
    if not step or (step % sensor.resolution and sensor.resolution % step):
        raise errors.InvalidData(
            f"duration or resolution: each value would stand for {step}, which is neither a multiple nor a "
            f"part of the {sensor.resolution} of sensor {sensor.id}: leave it out for the sensor's own"
        )


@pyscript_compile
def converted(values, unit, step, sensor):
    """Return values and unit as the server takes them rightly: power to power, energy to energy.

    The server repeats a coarse value before it converts it, so 1 kWh in an hour would become four
    times 4 kW on a sensor of 15 minutes; and it refuses a power on a sensor of energy.
    """
    is_energy, wants_energy = (each in EnergyConverter.VALID_UNITS for each in (unit, sensor.unit))
    if not sensor.resolution or not (is_energy or wants_energy) or not {unit, sensor.unit} <= FLOW_UNITS:
        return values, unit
    if is_energy and wants_energy and step == sensor.resolution:
        return values, unit
    to_kw = EnergyConverter.converter_factory(unit, "kWh") if is_energy else None
    to_kw = to_kw or PowerConverter.converter_factory(unit, "kW")
    factor = (HOUR / step if is_energy else 1) * (sensor.resolution / HOUR if wants_energy else 1)
    scaled = [None if value is None else to_kw(value) * factor for value in values]
    return scaled, "kWh" if wants_energy else "kW"


@pyscript_compile
def averaged(start, values, step, sensor):
    """Return the start and the means of values over the sensor's intervals, to which they are finer.

    The server would shift them as a whole to the beginning of the first interval.
    """
    parts = {}
    for number, value in enumerate(values):
        interval = schedules.shift_down(start + number * step, sensor.resolution, sensor.timezone)
        parts.setdefault(interval, []).append(value)
    known = [[value for value in part if value is not None] for part in parts.values()]
    return next(iter(parts)), [fmean(part) if part else None for part in known]


@pyscript_compile
async def read(link, sensor_id, start, duration, unit=None, resolution=None, source=None):
    """Return what the server holds: `values` (None for a gap), `start`, `duration`, `resolution`, `unit`.

    `start` is shifted down to the resolution's clock, without which the server finds nothing; the end
    stays within. An instantaneous sensor is read each 5 minutes unless `resolution` says otherwise.
    Powers, and energies of intervals, are positive for consumption, however the server holds them. Raise a
    FlexMeasuresError.
    """
    sensor = await connection.sensor(link, sensor_id)
    step = resolution or sensor.resolution or RESOLUTION_OF_INSTANTS
    first = schedules.shift_down(start, step, sensor.timezone)
    count = -((first - start - duration) // step)
    reply = await connection.ask(
        link,
        link.client.get_sensor_data(
            sensor_id,
            start=first,
            duration=count * step,
            unit=unit or sensor.unit,
            resolution=step,
            **({} if source is None else {"source": source}),
        ),
    )
    return {
        "values": turned(reply["values"], CONSUMPTION, sensor),
        "start": first,
        "duration": count * step,
        "resolution": step,
        "unit": reply["unit"],
    }


@pyscript_compile
async def spans(link: Any, sensor_id: int) -> list[tuple[datetime, datetime]]:
    """Return the first start and the last end of what each source has told of a sensor."""
    found, _status = await connection.ask(
        link, link.client.request(uri=f"sensors/{sensor_id}/stats", method="GET")
    )
    with connection.understood(link):
        return [
            (
                datetime.fromisoformat(told["First event start"]),
                datetime.fromisoformat(told["Last event end"]),
            )
            for told in found.values()
            if isinstance(told, dict)
        ]


@pyscript_compile
async def of_state_of_charge(link, sensor_id):
    """Return a sensor; refuse one that is of no state of charge."""
    found = await connection.sensor(link, sensor_id)
    if found.unit != "%" and found.unit not in EnergyConverter.VALID_UNITS:
        raise errors.UnknownSensor(
            f"soc_sensor: sensor {sensor_id} is in {found.unit}, which is no state of charge such as kWh or "
            f"%: check the number"
        )
    return found


@pyscript_compile
async def of_power(link, sensor_id):
    """Return a sensor; refuse one that takes no means of power."""
    found = await connection.sensor(link, sensor_id)
    if found.unit not in FLOW_UNITS or not found.resolution:
        each = f"each {found.resolution}" if found.resolution else "instantaneous"
        raise errors.UnknownSensor(
            f"power_sensor: sensor {sensor_id} is in {found.unit}, {each}: give one of "
            f"power, such as kW each 15 minutes"
        )
    return found
