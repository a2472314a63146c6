"""Measurements that are posted regularly: averages of entities, and states of charge."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import homeassistant.util.dt as dt_util
from homeassistant.core import CALLBACK_TYPE, Event, EventStateChangedData, HassJob, HomeAssistant, callback
from homeassistant.helpers.event import async_track_point_in_utc_time, async_track_state_change_event
from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

import flexmeasures_api.sensor_clock as sensor_clock
import flexmeasures_home.averages as averages
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_home.kept as kept
from flexmeasures_api.connection import Sensor
from flexmeasures_api.sensor_data import CONSUMPTION, PRODUCTION, SensorData
from flexmeasures_home.averages import ClockReading, Interval
from flexmeasures_home.outbox import Outbox

STEP_OF_UNKNOWN_SENSOR = timedelta(minutes=5)
MAX_DELAY_FRACTION = 0.1
"""By which part of an interval a value may be late for its tick."""
Read = Callable[[], tuple[float | None, str | None]]
"""Returns the value of an entity as it is now, or None, and its unit."""


@dataclass(repr=False, kw_only=True)
class _Meter:
    """An entity whose values go to a FlexMeasures sensor.

    `is_momentary` posts the value as it is at each tick; otherwise it is the average over each interval,
    weighted by the time in which it was known. `sign` is that of consumption in the entity's values. Where
    neither `step` nor the sensor has a resolution, that of the sensor `pacemaker` holds. `sensors` are those
    that are known, by their ids. `clocks` are both clocks at the last update.
    """

    hass: HomeAssistant
    outbox: Outbox
    sensors: dict[int, Sensor]
    entity: str
    sensor: int
    read: Read
    pacemaker: int
    configured_step: timedelta | None = None
    is_momentary: bool = False
    sign: int | None = CONSUMPTION
    interval: Interval = field(init=False)
    clocks: ClockReading = field(init=False)
    value: float | None = None
    cancel_timer: CALLBACK_TYPE | None = None
    stop_listening: CALLBACK_TYPE | None = None

    @pyscript_compile
    def start(self, kept_interval: dict[str, Any] | None = None) -> None:
        """Measure from now on; an interval that was kept over a reload goes on."""
        now = dt_util.utcnow()
        interval = averages.from_json(kept_interval) if kept_interval else None
        if interval is None or interval.at > now:
            interval = self._new_interval(now)
        self.interval = interval
        self.clocks = averages.read_clocks(now)
        self.look()

        @callback
        def changed(_event: Event[EventStateChangedData]) -> None:
            self._update()

        entity_id, _attribute = entities.split(self.entity)
        self.stop_listening = async_track_state_change_event(self.hass, entity_id, changed)

    @pyscript_compile
    def stop(self) -> dict[str, Any]:
        """Measure no more, and return the interval under way as JSON's types."""
        for cancel in (self.stop_listening, self.cancel_timer):
            if cancel:
                cancel()
        self._update()
        return self.interval.as_json()

    @pyscript_compile
    def look(self) -> None:
        """Update until now, and come back at the next tick."""
        if self.cancel_timer:
            self.cancel_timer()
        self._update()

        @callback
        def at_tick(_now: datetime) -> None:
            self.look()

        job = HassJob(at_tick, cancel_on_shutdown=True)
        self.cancel_timer = async_track_point_in_utc_time(self.hass, job, self.interval.end)

    @property
    @pyscript_compile
    def problem_key(self) -> str:
        """Return its problem key in the status."""
        return f"measurements of {self.entity} for sensor {self.sensor}"

    @property
    @pyscript_compile
    def _step(self) -> timedelta:
        """Return the time between values: as configured, else the sensor's own, else its pacemaker's."""
        sensors = [self.sensors.get(self.sensor), self.sensors.get(self.pacemaker)]
        resolutions = [sensor.resolution for sensor in sensors if sensor and sensor.resolution]
        sensor = self.sensors.get(self.sensor)
        if self.configured_step and (sensor is None or self.configured_step >= sensor.resolution):
            return self.configured_step
        return resolutions[0] if resolutions else STEP_OF_UNKNOWN_SENSOR

    @pyscript_compile
    def _tick(self, moment: datetime) -> datetime:
        """Return the last tick of the sensor's clock that is not after the moment."""
        sensor = self.sensors.get(self.sensor)
        return sensor_clock.floor(moment, self._step, sensor.timezone if sensor else "UTC")

    @pyscript_compile
    def _new_interval(self, now: datetime) -> Interval:
        """Return an interval that begins at the last tick, of which nothing before now is known."""
        return Interval(start=self._tick(now), step=self._step, at=now)

    @property
    @pyscript_compile
    def _posts_as_it_is(self) -> bool:
        """Tell whether values are posted as they are: states of charge, or for an instantaneous sensor."""
        sensor = self.sensors.get(self.sensor)
        return self.is_momentary or (sensor is not None and not sensor.resolution)

    @pyscript_compile
    def _take_value(self) -> None:
        """Remember the present value; a power is converted to kW."""
        value, unit = self.read()
        if value is not None and unit in PowerConverter.VALID_UNITS:
            value, unit = PowerConverter.convert(value, unit, "kW"), "kW"
        if value is not None and unit in EnergyConverter.VALID_UNITS and not self._posts_as_it_is:
            self._warn(f"counts energy ({unit}): give an entity of power")
            value = None
        if value is not None and unit != self.interval.unit:
            self.interval.total = self.interval.known_seconds = 0.0
            self.interval.unit = unit
        self.value = value

    @pyscript_compile
    def _update(self) -> None:
        """Add the value until now, and take the present one.

        Where the clock was set, or the machine slept, nothing is known of the time in between.
        """
        now = dt_util.utcnow()
        before, self.clocks = self.clocks, averages.read_clocks(now)
        has_jumped = self.clocks.has_jumped_since(before)
        if has_jumped:
            self.value = None
        was_set_back = (now - before.now).total_seconds() < -averages.MAX_CLOCK_DIFFERENCE_SECONDS
        if self._step != self.interval.step or was_set_back:
            self.interval = self._new_interval(now)
        state = self.hass.states.get(entities.split(self.entity)[0])
        if state and not has_jumped and self.interval.at < state.last_updated < now:
            self._add_until(state.last_updated)
            self._take_value()
        self._add_until(now)
        self._take_value()

    @pyscript_compile
    def _add_until(self, moment: datetime) -> None:
        """Add the value until a moment, and post each interval that has ended."""
        ended, self.interval = averages.advance(self.interval, self.value, moment, self._tick)
        for interval in ended:
            self._post(interval, moment)

    @pyscript_compile
    def _post(self, interval: Interval, moment: datetime) -> None:
        """Post the value of an interval; one in which too little was known is a gap."""
        unit, start = interval.unit, interval.start
        if not self._posts_as_it_is:
            value = interval.average
        elif moment - interval.end < MAX_DELAY_FRACTION * interval.step:
            (value, unit), start = self.read(), interval.end
        else:
            return
        if value is None:
            self._warn_of_missing_value()
            return
        self.outbox.status.resolve(self.problem_key)
        self.outbox.add(
            SensorData(
                sensor=self.sensor,
                start=start,
                values=[value],
                unit=unit,
                step=interval.step,
                sign=self.sign,
            )
        )

    @pyscript_compile
    def _warn_of_missing_value(self) -> None:
        """Warn if the entity cannot have a value; not if it is only `unavailable`."""
        entity_id, attribute = entities.split(self.entity)
        state = self.hass.states.get(entity_id)
        if state is None:
            self._warn("does not exist in Home Assistant")
            return
        value, _unit = entities.reading(state, attribute)
        if entities.is_known(value) and entities.number(value) is None:
            self._warn(f"is {fields.quoted(value)}, which is not a number")

    @pyscript_compile
    def _warn(self, what: str) -> None:
        """Show what keeps the entity from being measured, if that lasts."""
        text = f"measurements: {self.entity} {what}. Sensor {self.sensor} gets no values from it"
        self.outbox.status.fail(self.problem_key, text, cause="no_measurements", temporary=True)


Meter = _Meter


@dataclass(repr=False, kw_only=True)
class _Measurements:
    """All meters, the outbox that takes their values, and what is kept of them in a file.

    `sensors` has what the server said last of each sensor, by id, also before a restart. `intervals` has the
    intervals under way of an earlier life, as JSON's types, by the meter's problem key.
    """

    hass: HomeAssistant
    outbox: Outbox
    store: kept.KeptFile
    sensors: dict[int, Sensor] = field(default_factory=dict)
    intervals: dict[str, dict[str, Any]] = field(default_factory=dict)
    meters: list[Meter] = field(default_factory=list)

    @pyscript_compile
    async def remember(self, sensors: dict[int, Sensor]) -> None:
        """Remember what the server says of sensors, for times when it is away."""
        if any(self.sensors.get(sensor_id) != sensor for sensor_id, sensor in sensors.items()):
            self.sensors |= sensors
            self.look_at_all()
            await self.save()

    @pyscript_compile
    async def save(self) -> None:
        """Write the file: it has an interval only while no meter continues it."""
        content = {
            "user": self.outbox.user,
            "sensors": kept.as_json(list(self.sensors.values())),
            "intervals": self.intervals,
        }
        await asyncio.shield(self.store.async_save(content))

    @pyscript_compile
    def measure(
        self,
        entity: str,
        sensor: int,
        read: Read,
        *,
        pacemaker: int,
        step: timedelta | None = None,
        is_momentary: bool = False,
        sign: int | None = CONSUMPTION,
    ) -> None:
        """Measure an entity for a sensor from now on; a `step` of None is the sensor's own resolution."""
        meter = Meter(
            hass=self.hass,
            outbox=self.outbox,
            sensors=self.sensors,
            entity=entity,
            sensor=sensor,
            read=read,
            pacemaker=pacemaker,
            configured_step=step,
            is_momentary=is_momentary,
            sign=sign,
        )
        meter.start(self.intervals.pop(meter.problem_key, None))
        self.meters.append(meter)

    @pyscript_compile
    def look_at_all(self) -> None:
        """Update all meters until now."""
        for meter in self.meters:
            meter.look()

    @pyscript_compile
    async def stop(self) -> None:
        """Measure no more; the intervals under way are kept."""
        self.intervals = {meter.problem_key: meter.stop() for meter in self.meters}
        await self.save()


Measurements = _Measurements


@pyscript_compile
async def load(hass: HomeAssistant, outbox: Outbox) -> Measurements:
    """Return the measurements without a meter yet, with the content of the file."""
    store = kept.KeptFile(hass, outbox.status, "measurements", "the sensors and the averages under way")
    content = await store.async_load()
    measurements = Measurements(hass=hass, outbox=outbox, store=store)
    if content.get("user") == outbox.user:
        items = store.part(content, "sensors", list)
        sensors = [store.convert_or_report(sensor_from_json, item) for item in items]
        measurements.sensors = {sensor.id: sensor for sensor in sensors if sensor}
        measurements.intervals = {
            problem_key: interval
            for problem_key, interval in store.part(content, "intervals", dict).items()
            if store.convert_or_report(averages.from_json, interval)
        }
    return measurements


@pyscript_compile
def sign_of(item: dict[str, Any]) -> int:
    """Return the sign of consumption in the values of a configured measurement, or of a call."""
    return PRODUCTION if item.get("positive") == "production" else CONSUMPTION


@pyscript_compile
def sensor_from_json(item: dict[str, Any]) -> Sensor:
    """Return the sensor that `save` wrote; raise KeyError, TypeError or ValueError."""
    resolution, sign = timedelta(seconds=kept.number(item["resolution"])), item.get("sign", -1)
    if resolution < timedelta(0) or sign not in (CONSUMPTION, PRODUCTION):
        raise ValueError("expected a resolution, and a sign of 1 or -1")
    return Sensor(
        id=kept.whole_number(item["id"]),
        unit=kept.text(item["unit"]),
        resolution=resolution,
        timezone=ZoneInfo(kept.text(item["timezone"])).key,
        asset=kept.whole_number(item["asset"]),
        sign=sign,
    )
