"""Measurements that are posted without being asked for: means of entities, and states of charge."""

import asyncio
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import homeassistant.util.dt as dt_util
from homeassistant.core import HassJob, callback
from homeassistant.helpers.event import async_track_point_in_utc_time, async_track_state_change_event
from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

import flexmeasures_api.connection as connection
import flexmeasures_api.sensor_clock as sensor_clock
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_home.kept as kept
import flexmeasures_home.means as means
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.status as statuses

UNTIL_THE_SENSOR_IS_KNOWN = timedelta(minutes=5)
LATEST = 0.1
"""By which part of an interval a value may be late for its tick."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(repr=False)
    class Measurements:
        """All meters, the outbox that takes their values, and what is kept in a file of them.

        `sensors` maps a sensor's id to what the server said of it last, here or in an earlier life.
        """

        hass: Any
        outbox: Any
        store: Any
        sensors: dict
        intervals: dict
        meters: list = field(default_factory=list)

    @dataclass(repr=False)
    class Meter:
        """An entity whose values go to a FlexMeasures sensor.

        `read` returns (value or None, unit) of the entity as it is now. `as_it_is` posts the value at each
        tick, else it is the mean over each interval, weighted by the time in which it was known. `sign` is
        that of consumption in what the entity says. `pace` is the sensor whose resolution holds where this
        one has none. `seen` has both clocks as they were when it was looked at last.
        """

        hass: Any
        outbox: Any
        sensors: Any
        entity: str
        sensor: int
        read: Any
        pace: int
        step: timedelta | None = None
        as_it_is: bool = False
        sign: int | None = sensor_data.CONSUMPTION
        interval: Any = None
        value: float | None = None
        seen: tuple | None = None
        forget_timer: Any = None
        forget_changes: Any = None

    return Measurements, Meter


Measurements, Meter = records()


@pyscript_compile
async def load(hass, outbox):
    """Return the measurements without a meter yet, with what the file holds of those before."""
    store = kept.KeptFile(hass, outbox.status, "measurements", "the sensors and the means under way")
    found = await store.async_load()
    if found.get("user") != outbox.user:
        return Measurements(hass, outbox, store, {}, {})
    sensors = [store.read(recalled_sensor, each) for each in store.part(found, "sensors", list)]
    known = {each.id: each for each in sensors if each}
    intervals = {
        name: each
        for name, each in store.part(found, "intervals", dict).items()
        if store.read(means.recalled, each)
    }
    return Measurements(hass, outbox, store, known, intervals)


@pyscript_compile
async def learn(measurements, sensors):
    """Remember what the server says of sensors, for times when it is away."""
    if any(measurements.sensors.get(each) != sensors[each] for each in sensors):
        measurements.sensors |= sensors
        look_at_all(measurements)
        await save(measurements)


@pyscript_compile
async def save(measurements):
    """Write the file: an interval is in it only while nobody goes on with it."""
    content = {
        "user": measurements.outbox.user,
        "sensors": [
            asdict(each) | {"resolution": each.resolution.total_seconds()}
            for each in measurements.sensors.values()
        ],
        "intervals": measurements.intervals,
    }
    await asyncio.shield(measurements.store.async_save(content))


@pyscript_compile
def sign_of(item: dict[str, Any]) -> int:
    """Return the sign of consumption in what a configured measurement's entity says, or a call's values."""
    is_production = item.get("positive") == "production"
    return sensor_data.PRODUCTION if is_production else sensor_data.CONSUMPTION


@pyscript_compile
def measure(
    measurements, entity, sensor, read, pace, step=None, as_it_is=False, sign=sensor_data.CONSUMPTION
):
    """Measure an entity for a sensor from now on; a `step` of None is the sensor's own resolution."""
    hass, outbox, sensors = measurements.hass, measurements.outbox, measurements.sensors
    meter = Meter(hass, outbox, sensors, entity, sensor, read, pace, step, as_it_is, sign)
    start(meter, measurements.intervals.pop(matter(meter), None))
    measurements.meters.append(meter)


@pyscript_compile
def look_at_all(measurements):
    """Reckon all meters until now."""
    for meter in measurements.meters:
        look(meter)


@pyscript_compile
async def stop_all(measurements):
    """Measure no more; the intervals under way are kept."""
    measurements.intervals = {matter(meter): stop(meter) for meter in measurements.meters}
    await save(measurements)


@pyscript_compile
def start(meter, found=None):
    """Measure from now on; an interval that was kept over a reload goes on."""
    now = dt_util.utcnow()
    interval = means.recalled(found) if found else None
    if interval is None or interval.at > now:
        interval = means.Interval(tick(meter, now), step(meter), now)
    meter.interval = interval
    meter.seen = means.clocks(now)
    look(meter)

    @callback
    def changed(_event):
        keep_up(meter)

    entity_id, _attribute = entities.split(meter.entity)
    meter.forget_changes = async_track_state_change_event(meter.hass, entity_id, changed)


@pyscript_compile
def stop(meter):
    """Measure no more, and return the interval under way as JSON's types."""
    meter.forget_changes()
    meter.forget_timer()
    keep_up(meter)
    return means.as_json(meter.interval)


@pyscript_compile
def look(meter):
    """Keep up, and come back at the next tick."""
    if meter.forget_timer:
        meter.forget_timer()
    keep_up(meter)

    @callback
    def at_tick(_now):
        look(meter)

    job = HassJob(at_tick, cancel_on_shutdown=True)
    meter.forget_timer = async_track_point_in_utc_time(meter.hass, job, means.end(meter.interval))


@pyscript_compile
def step(meter):
    """Return the time between values: as configured, else the sensor's own, else its pacemaker's."""
    known = [meter.sensors[each].resolution for each in (meter.sensor, meter.pace) if each in meter.sensors]
    fits = meter.step and (meter.sensor not in meter.sensors or meter.step >= known[0])
    return next(each for each in [meter.step if fits else None, *known, UNTIL_THE_SENSOR_IS_KNOWN] if each)


@pyscript_compile
def tick(meter, moment):
    """Return the last tick of the sensor's clock that is not after the moment."""
    sensor = meter.sensors.get(meter.sensor)
    return sensor_clock.floor(moment, step(meter), sensor.timezone if sensor else "UTC")


@pyscript_compile
def posts_as_it_is(meter):
    """Tell whether a value is posted as it is: a state of charge, and what an instantaneous sensor takes."""
    sensor = meter.sensors.get(meter.sensor)
    return meter.as_it_is or (sensor is not None and not sensor.resolution)


@pyscript_compile
def take(meter):
    """Remember the value from now on; a power in kW, whatever the entity's unit."""
    value, unit = meter.read()
    if value is not None and unit in PowerConverter.VALID_UNITS:
        value, unit = PowerConverter.convert(value, unit, "kW"), "kW"
    if value is not None and unit in EnergyConverter.VALID_UNITS and not posts_as_it_is(meter):
        complain(meter, f"counts energy ({unit}): give an entity of power")
        value = None
    if value is not None and unit != meter.interval.unit:
        meter.interval.total = meter.interval.known = 0.0
        meter.interval.unit = unit
    meter.value = value


@pyscript_compile
def keep_up(meter):
    """Reckon until now, and take the value as it is now.

    Where the clock was set anew, or the machine slept, nothing is known of the time in between.
    """
    now = dt_util.utcnow()
    before, meter.seen = meter.seen, means.clocks(now)
    jumped = means.jumped(before, meter.seen)
    if jumped:
        meter.value = None
    if step(meter) != meter.interval.step or (now - before[0]).total_seconds() < -means.JUMP_SECONDS:
        meter.interval = means.Interval(tick(meter, now), step(meter), now)
    state = meter.hass.states.get(entities.split(meter.entity)[0])
    if state and not jumped and meter.interval.at < state.last_updated < now:
        reckon(meter, state.last_updated)
        take(meter)
    reckon(meter, now)
    take(meter)


@pyscript_compile
def reckon(meter, moment):
    """Sum up until a moment with the value so far, and post each interval that has ended."""
    ended, meter.interval = means.elapse(meter.interval, meter.value, moment, partial(tick, meter))
    for interval in ended:
        close(meter, interval, moment)


@pyscript_compile
def close(meter, interval, moment):
    """Post what an interval came to; one in which hardly anything was known is a gap."""
    end, unit = means.end(interval), interval.unit
    if not posts_as_it_is(meter):
        value, start = means.mean(interval), interval.start
    elif moment - end < LATEST * interval.step:
        (value, unit), start = meter.read(), end
    else:
        return
    if value is None:
        tell_why(meter)
        return
    statuses.settle(meter.outbox.status, matter(meter))
    run = sensor_data.SensorData(
        sensor=meter.sensor, start=start, values=[value], unit=unit, step=interval.step, sign=meter.sign
    )
    outboxes.add(meter.outbox, run)


@pyscript_compile
def tell_why(meter):
    """Complain of an entity that cannot have a value; `unavailable` is no reason to."""
    entity_id, attribute = entities.split(meter.entity)
    state = meter.hass.states.get(entity_id)
    if state is None:
        complain(meter, "does not exist in Home Assistant")
        return
    value, _unit = entities.reading(state, attribute)
    if entities.is_known(value) and entities.number(value) is None:
        complain(meter, f"is {fields.quoted(value)}, which is no number")


@pyscript_compile
def complain(meter, what):
    """Tell what keeps an entity from being measured, if that lasts."""
    text = f"measurements: {meter.entity} {what}. Sensor {meter.sensor} gets no values from it"
    statuses.fail(meter.outbox.status, matter(meter), text, cause="no_measurements", temporary=True)


@pyscript_compile
def matter(meter):
    """Return the matter of this meter in the status."""
    return f"measurements of {meter.entity} for sensor {meter.sensor}"


@pyscript_compile
def recalled_sensor(found):
    """Return the sensor that `save` wrote; raise KeyError, TypeError or ValueError."""
    resolution, sign = timedelta(seconds=kept.number(found["resolution"])), found.get("sign", -1)
    if resolution < timedelta(0) or sign not in (1, -1):
        raise ValueError("expected a resolution, and a sign of 1 or -1")
    return connection.Sensor(
        id=kept.whole_number(found["id"]),
        unit=kept.text(found["unit"]),
        resolution=resolution,
        timezone=ZoneInfo(kept.text(found["timezone"])).key,
        asset=kept.whole_number(found["asset"]),
        sign=sign,
    )
