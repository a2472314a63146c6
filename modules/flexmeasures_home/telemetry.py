"""The telemetry of a Resource Manager: its state in Home Assistant, its measurements on FlexMeasures.

Power is in W, and consumption is positive, as in S2.
"""

import logging
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import CALLBACK_TYPE, HassJob, HomeAssistant, callback
from homeassistant.helpers.event import async_call_later, async_track_point_in_utc_time
from s2python.common import PowerForecast, PowerMeasurement

import flexmeasures_api.sensor_clock as sensor_clock
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_home.averages as averages
import flexmeasures_home.kept as kept
import flexmeasures_home.resource_state as resource_state
import flexmeasures_s2.commodities as commodities
from flexmeasures_api.connection import Sensor
from flexmeasures_api.provisioning import DeviceIds
from flexmeasures_api.sensor_data import CONSUMPTION, SensorData
from flexmeasures_home.averages import ClockReading, Interval
from flexmeasures_home.outbox import Outbox, OutboxItem
from flexmeasures_home.throttle import Throttle
from flexmeasures_s2.session import Session

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
STEP_OF_UNKNOWN_SENSOR = timedelta(minutes=1)
"""The finest resolution of FlexMeasures: all others are multiples of it."""
MAX_DELAY = timedelta(seconds=5)
"""How much later than its time a measurement may arrive."""
MAX_AGE = timedelta(days=1)
"""A measurement that is older means that the Resource Manager's clock is wrong."""
MAX_PHASE_AGE = timedelta(seconds=60)
"""How long the power of a phase holds that is not measured any more, while others are."""
MAX_FORECAST = timedelta(days=7)
MAX_FORECAST_VALUES = 2880
"""The length of a forecast, for a sensor with short intervals."""
MAX_DURATION_MS = 10**14
"""A longer duration is beyond the calendar."""
MAX_WAITING_AVERAGES = 10_000
SECONDS_BETWEEN_STATES = 1
BURST, SECONDS_BETWEEN_READINGS = 10, 60
"""How many readings are shown at once, before there is one a minute: each is a row in the recorder."""
SECONDS_BETWEEN_SIGNS_OF_LIFE = 60
SECONDS_BETWEEN_FORECASTS = 2
SPREAD_MS = 500
"""Devices with values of the same moment post them one after the other within this time."""
MINUTE = timedelta(minutes=1)
MINUTES_BETWEEN_SAME_LEVELS = 5
"""The interval at which get_measurements reads an instantaneous sensor by default."""


@dataclass(frozen=True, kw_only=True)
class _PowerReading:
    """The power (W) of a commodity quantity, and when it was measured."""

    power_w: float
    measured_at: datetime


PowerReading = _PowerReading


@dataclass(frozen=True, kw_only=True)
class _AveragePower:
    """The average power (W) over an interval."""

    start: datetime
    step: timedelta
    power_w: float


AveragePower = _AveragePower


@dataclass(eq=False, repr=False)
class _Telemetry:
    """A Resource Manager (a `cem.Resource`), its entity, and its sensors on FlexMeasures once they are known.

    `provisioned` has the ids of what was created for it on FlexMeasures, `ids` of what it uses,
    `power_sensor` and `soc_sensor` what the server says of its sensors. `powers` maps each electric commodity
    quantity to its latest reading, `power_w` is their sum, and `measured_at` when that was measured.
    `interval` is the one under way, `waiting` are those that ended before the sensor was known, and `clocks`
    both clocks at the last update. `level_is_new` tells that the fill level was not posted yet. `forecast`
    was received at `forecast_received_at` and waits to be posted; `forecast_item` was posted last.

    `shown_session`, `shown_control_type` and `shown_fill_level` were processed last, `state` is the state
    with its attributes that was written last. `timer_end` is the end of the interval that `cancel_timer`
    waits for. `energy_per_fill_level` is in Wh. `instruction_lead` is how long before its time an instruction
    is sent (s), if that is configured for it, `cycle_cost` what a kWh through its storage costs in wear
    (currency). `plan_attributes()` returns the attributes that describe its plan.
    """

    hass: HomeAssistant
    outbox: Outbox
    resource: Any
    entity_id: str
    energy_per_fill_level: float | None = None
    instruction_lead: float | None = None
    cycle_cost: float = 0.0
    provisioned: DeviceIds = field(default_factory=DeviceIds)
    ids: DeviceIds = field(default_factory=DeviceIds)
    power_sensor: Sensor | None = None
    soc_sensor: Sensor | None = None
    are_sensors_checked: bool = False
    powers: dict[str, PowerReading] = field(default_factory=dict)
    power_w: float | None = None
    measured_at: datetime | None = None
    interval: Interval | None = None
    clocks: ClockReading | None = None
    waiting: list[AveragePower] = field(default_factory=list)
    level_is_new: bool = False
    cancel_level_timer: CALLBACK_TYPE | None = None
    forecast: PowerForecast | None = None
    forecast_received_at: datetime | None = None
    forecast_item: OutboxItem | None = None
    last_prior: datetime | None = None
    is_shown: bool = False
    shown_session: Session | None = None
    shown_control_type: str | None = None
    shown_fill_level: float | None = None
    state: tuple[str, dict[str, Any]] | None = None
    has_warned_of_clock: bool = False
    cancel_timer: CALLBACK_TYPE | None = None
    timer_end: datetime | None = None
    plan_attributes: Callable[[], dict[str, Any]] = dict
    state_throttle: Throttle = field(init=False)
    reading_throttle: Throttle = field(init=False)
    sign_of_life_throttle: Throttle = field(init=False)
    forecast_throttle: Throttle = field(init=False)

    @pyscript_compile
    def __post_init__(self) -> None:
        hass = self.hass
        self.state_throttle = Throttle(hass, self._show_change, SECONDS_BETWEEN_STATES)
        self.reading_throttle = Throttle(
            hass, self._show_reading, SECONDS_BETWEEN_STATES, BURST, SECONDS_BETWEEN_READINGS
        )
        self.sign_of_life_throttle = Throttle(hass, self._show_sign_of_life, SECONDS_BETWEEN_SIGNS_OF_LIFE)
        self.forecast_throttle = Throttle(hass, self._post_forecast, SECONDS_BETWEEN_FORECASTS)

    @pyscript_compile
    def show_soon(self) -> None:
        """Show the state soon, if it has changed."""
        self.state_throttle.request()

    @pyscript_compile
    def _show(self) -> None:
        """Write the present state; this includes readings that wait."""
        self.state = self._present_state()
        self.hass.states.async_set(self.entity_id, *self.state, state_info=resource_state.STATE_INFO)
        self.reading_throttle.act_was_done()
        self.sign_of_life_throttle.act_was_done()

    @pyscript_compile
    def _present_state(self) -> tuple[str, dict[str, Any]]:
        """Return the present state and its attributes."""
        attributes = resource_state.attributes(self.resource, self.ids, self.plan_attributes())
        return resource_state.value(self.resource), attributes

    @pyscript_compile
    def _show_change(self) -> bool:
        """Write the state if more than its readings has changed, and return whether that was done."""
        if self.state and without_readings(self.state) == without_readings(self._present_state()):
            self.reading_throttle.request()
            return False
        self._show()
        return True

    @pyscript_compile
    def _show_reading(self) -> bool:
        """Write the state if its fill level has changed; `_show` sets the pause itself."""
        if self.state is None or self.state[1]["fill_level"] != resource_state.fill_level(self.resource):
            self._show()
        return False

    @pyscript_compile
    def _show_sign_of_life(self) -> bool:
        """Write the state; `_show` sets the pause itself."""
        self._show()
        return False

    @pyscript_compile
    def session_changed(self) -> None:
        """Process that it connected, disconnected, described itself anew, or changed its control type."""
        session = self.resource.session
        if session is None:
            self._update(dt_util.utcnow())
            self.powers, self.power_w = {}, None
            if self.problem_key in self.outbox.status.problems:
                self.outbox.status.resolve(self.problem_key)
        control_type = session.control_type if session else None
        if self.is_shown and (self.shown_session, self.shown_control_type) == (session, control_type):
            self.show_soon()
            return
        self.is_shown = True
        self.shown_session, self.shown_control_type = session, control_type
        self.shown_fill_level = None
        self._show()

    @pyscript_compile
    def received(self, message: Any) -> None:
        """Process an S2 message."""
        kind = message.message_type
        if kind == "PowerMeasurement":
            self._receive_power(message)
        elif kind == "PowerForecast":
            self.forecast, self.forecast_received_at = message, dt_util.utcnow()
            self.forecast_throttle.request()
        elif kind == "FRBC.StorageStatus" and fill_levels.of(self.resource) != self.shown_fill_level:
            self.shown_fill_level = fill_levels.of(self.resource)
            self.fill_level_changed()
            self.reading_throttle.request()
            self.sign_of_life_throttle.request()
        elif kind == "FRBC.SystemDescription":
            self.fill_level_changed()
            self.show_soon()
        else:
            self.sign_of_life_throttle.request()

    @pyscript_compile
    def _receive_power(self, message: PowerMeasurement) -> None:
        """Add the previous power until a PowerMeasurement, and continue with the measured one.

        A value holds until the next. One that arrives after a later one is ignored; a clock that is more than
        a day slow, or fast, is not trusted.
        """
        electric = {
            value.commodity_quantity.value: value.value
            for value in message.values
            if value.commodity_quantity.value.startswith(commodities.ELECTRIC)
            and abs(value.value) < forecasts.MAX_POWER_W
        }
        self.sign_of_life_throttle.request()
        if not electric:
            return
        now = dt_util.utcnow()
        moment = self._believable_time(message.measurement_timestamp, now)
        if self.measured_at and moment < self.measured_at <= now:
            return
        self.measured_at = moment
        interval = self._add_until(moment, now)
        still_measured = self._still_measured(set(electric))
        still_valid = {
            quantity: reading
            for quantity, reading in self.powers.items()
            if quantity in still_measured and timedelta(0) <= moment - reading.measured_at <= MAX_PHASE_AGE
        }
        self.powers = still_valid | {
            quantity: PowerReading(power_w=power_w, measured_at=moment)
            for quantity, power_w in electric.items()
        }
        self.power_w = commodities.electric(
            {quantity: reading.power_w for quantity, reading in self.powers.items()}
        )
        self._start_timer(interval, now)

    @pyscript_compile
    def _still_measured(self, newest: set[str]) -> set[str]:
        """Return the commodity quantities that hold besides those of the newest measurement.

        According to `provides_power_measurement_types`: if the newest has all of them, no other holds. A
        value of all phases together holds besides that of one only if both are announced, and stands for
        both.
        """
        if self.powers.keys() <= newest:
            return set()
        provided = {
            quantity.value for quantity in self.resource.session.details.provides_power_measurement_types
        }
        announced = {quantity for quantity in provided if quantity.startswith(commodities.ELECTRIC)}
        if commodities.ALL_PHASES in newest or (announced and announced <= newest):
            return set()
        if commodities.ALL_PHASES in announced:
            return set(self.powers)
        return self.powers.keys() - {commodities.ALL_PHASES}

    @pyscript_compile
    def _believable_time(self, timestamp: datetime, now: datetime) -> datetime:
        """Return when something was measured, in UTC; now if the timestamp cannot be right."""
        if now - MAX_AGE <= timestamp <= now + MAX_DELAY:
            return min(dt_util.as_utc(timestamp), now)
        if not self.has_warned_of_clock:
            self.has_warned_of_clock = True
            LOGGER.warning(
                "%s says that it is %s: its clock is wrong, so the time when its measurements arrive is used",
                self.resource.name,
                timestamp.isoformat(),
            )
        return now

    @property
    @pyscript_compile
    def _step(self) -> timedelta:
        """Return the time between averages: the sensor's resolution."""
        return self.power_sensor.resolution if self.power_sensor else STEP_OF_UNKNOWN_SENSOR

    @pyscript_compile
    def _tick(self, moment: datetime) -> datetime:
        """Return the last tick of the sensor's clock that is not after a moment."""
        zone = self.power_sensor.timezone if self.power_sensor else "UTC"
        return sensor_clock.floor(moment, self._step, zone)

    @pyscript_compile
    def _new_interval(self, at: datetime) -> Interval:
        """Return an interval that begins at the last tick, of which nothing before `at` is known."""
        return Interval(start=self._tick(at), step=self._step, at=at)

    @pyscript_compile
    def _update(self, moment: datetime) -> None:
        """Add the power until a moment, unless that was done."""
        if self.interval is not None and moment > self.interval.at:
            self._add_until(moment, dt_util.utcnow())

    @pyscript_compile
    def _add_until(self, moment: datetime, now: datetime) -> Interval:
        """Add the power until a moment, post the averages that ended, and return the interval under way.

        Where the clock was set, or the machine slept, nothing is known of the time in between.
        """
        before, self.clocks = self.clocks, averages.read_clocks(now)
        if before and self.clocks.has_jumped_since(before):
            self.power_w = None
        if self.interval is None or self.interval.at > now + MAX_DELAY:
            self.interval = self._new_interval(moment)
            return self.interval
        interval = self.interval
        if interval.step != self._step:
            interval = self._divide_anew(interval)
        return self._advance(interval, self.power_w, moment)

    @pyscript_compile
    def _advance(self, interval: Interval, power_w: float | None, until: datetime) -> Interval:
        """Add a power until a moment, post the averages that ended, and return the interval under way."""
        ended, self.interval = averages.advance(interval, power_w, until, self._tick)
        self._add_averages(ended)
        return self.interval

    @pyscript_compile
    def _divide_anew(self, under_way: Interval | None) -> Interval:
        """Convert the averages that wait, and the interval under way, to the sensor's resolution."""
        pieces = [(average.start, average.start + average.step, average.power_w) for average in self.waiting]
        if under_way and under_way.known_seconds:
            power_w = under_way.total / under_way.known_seconds
            pieces.append((under_way.start, under_way.at, power_w))
        self.waiting = []
        starts = [start for start, _end, _power_w in pieces] + ([under_way.at] if under_way else [])
        interval = self.interval = self._new_interval(starts[0])
        for start, end, power_w in pieces:
            for value, until in ((None, start), (power_w, end)):
                if until > interval.at:
                    interval = self._advance(interval, value, until)
        return interval

    @pyscript_compile
    def _add_averages(self, ended: list[Interval]) -> None:
        """Post the averages of intervals that ended, or keep them until the sensor is known."""
        for interval in ended:
            power_w = interval.average
            if power_w is not None:
                self.waiting.append(AveragePower(start=interval.start, step=interval.step, power_w=power_w))
        sensor = self.power_sensor
        if sensor is None:
            del self.waiting[: max(0, len(self.waiting) - MAX_WAITING_AVERAGES)]
            return
        for average in self.waiting:
            self.outbox.add(
                SensorData(
                    sensor=sensor.id,
                    start=average.start,
                    values=[average.power_w],
                    unit="W",
                    step=average.step,
                    sign=CONSUMPTION,
                )
            )
        self.waiting = []

    @pyscript_compile
    def _start_timer(self, interval: Interval, now: datetime) -> None:
        """Come back when the interval has ended, and its last measurement may have arrived."""
        end = interval.end
        if self.cancel_timer:
            if self.timer_end == end:
                return
            self.cancel_timer()
        self.timer_end = end

        @callback
        def at_end(_now: datetime) -> None:
            self.cancel_timer = None
            later = dt_util.utcnow()
            self._update(later - MAX_DELAY)
            if self.interval and (self.power_w is not None or self.interval.known_seconds):
                self._start_timer(self.interval, later)

        seconds = max((end - now).total_seconds(), 0) + (MAX_DELAY + self._spread).total_seconds()
        job = HassJob(at_end, cancel_on_shutdown=True)
        self.cancel_timer = async_call_later(self.hass, seconds, job)

    @pyscript_compile
    def _post_forecast(self) -> bool:
        """Post the newest forecast, once the sensor is known; return whether that was done.

        Its prior is when it was received. It replaces one that still waits in the outbox. FlexMeasures counts
        in seconds, and refuses other values with the same prior.
        """
        message, received_at, sensor = self.forecast, self.forecast_received_at, self.power_sensor
        if sensor is None or message is None or received_at is None:
            return False
        self.forecast = self.forecast_received_at = None
        start, values = self._forecast_values(message)
        if values:
            prior = received_at.replace(microsecond=0)
            if self.last_prior and prior <= self.last_prior:
                prior = self.last_prior + timedelta(seconds=1)
            self.last_prior = prior
            self.outbox.withdraw(self.forecast_item)
            self.forecast_item = self.outbox.add(
                SensorData(
                    sensor=sensor.id,
                    start=start,
                    values=values,
                    unit="W",
                    step=sensor.resolution,
                    prior=prior,
                    sign=CONSUMPTION,
                )
            )
        return True

    @pyscript_compile
    def _forecast_values(self, message: PowerForecast) -> tuple[datetime, list[float | None]]:
        """Return the start and the averages (W) of a PowerForecast over the sensor's intervals.

        The past is left out, and what is more than 7 days ahead, or 2880 intervals.
        """
        first = self._tick(dt_util.utcnow())
        max_length = min(MAX_FORECAST, MAX_FORECAST_VALUES * self._step)
        interval = Interval(start=first, step=self._step, at=first)
        intervals: list[Interval] = []
        position = message.start_time - first
        for element in message.elements:
            duration = timedelta(milliseconds=min(element.duration.root, MAX_DURATION_MS))
            begin, position = position, position + duration
            start = first + max(timedelta(0), min(begin, max_length))
            end = first + max(timedelta(0), min(position, max_length))
            for value, until in ((None, start), (forecasts.expected(element), end)):
                if until > interval.at:
                    ended, interval = averages.advance(interval, value, until, self._tick)
                    intervals += ended
        values = {each.start: each.average for each in [*intervals, interval]}
        known = [start for start, value in values.items() if value is not None]
        if not known:
            return first, []
        start, count = min(known), (max(known) - min(known)) // self._step + 1
        return start, [values.get(start + number * self._step) for number in range(count)]

    @pyscript_compile
    def fill_level_changed(self) -> None:
        """Post the fill level: at once if none was posted lately, else at the next full minute."""
        self.level_is_new = True
        if self.cancel_level_timer is None:
            self._post_fill_level()

    @pyscript_compile
    def _post_fill_level(self) -> None:
        """Post the present fill level, if it is known, as the state of charge of this minute; then come back.

        The same level is posted every 5 minutes only.
        """
        sensor = self.soc_sensor
        level = fill_levels.of(self.resource)
        if sensor is None or level is None:
            return
        if sensor.unit != "%" and self.energy_per_fill_level is None:
            self.warn(
                f"sensor {sensor.id} is in {sensor.unit}, and a fill level is not an energy: "
                f"give energy_per_fill_level under s2.resources, or a sensor in %",
            )
        value, unit = self._state_of_charge(sensor, level)
        if value is None or not math.isfinite(value):
            return
        now = dt_util.utcnow()
        if self.level_is_new or now.minute % MINUTES_BETWEEN_SAME_LEVELS == 0:
            self.level_is_new = False
            start = now.replace(second=0, microsecond=0)
            self.outbox.add(SensorData(sensor=sensor.id, start=start, values=[value], unit=unit, step=MINUTE))

        @callback
        def at_next_minute(_now: datetime) -> None:
            self.cancel_level_timer = None
            self._post_fill_level()

        job = HassJob(at_next_minute, cancel_on_shutdown=True)
        due = now.replace(second=0, microsecond=0) + MINUTE + self._spread
        self.cancel_level_timer = async_track_point_in_utc_time(self.hass, job, due)

    @pyscript_compile
    def _state_of_charge(self, sensor: Sensor, level: float) -> tuple[float | None, str]:
        """Return a fill level as its sensor needs it: a share of its range (%), or an energy (Wh); or None.

        The energy is `energy_per_fill_level` times the level above the start of the fill_level_range.
        """
        session = self.resource.session
        description = session.memory.get(("FRBC.SystemDescription",)) if session else None
        if description is None:
            return None, sensor.unit
        limits = description.storage.fill_level_range
        above = level - limits.start_of_range
        if sensor.unit != "%":
            return None if self.energy_per_fill_level is None else above * self.energy_per_fill_level, "Wh"
        length = limits.end_of_range - limits.start_of_range
        return 100 * above / length if length > 0 else None, "%"

    @property
    @pyscript_compile
    def _spread(self) -> timedelta:
        """Return how much later than others it posts, always the same, so that not all are due at once."""
        return timedelta(milliseconds=zlib.crc32(self.entity_id.encode()) % SPREAD_MS)

    @pyscript_compile
    def warn(self, what: str) -> None:
        """Show what keeps a Resource Manager from being measured, if that lasts."""
        text = f"s2: {self.resource.name} ({self.resource.resource_id}): {what}"
        self.outbox.status.fail(self.problem_key, text, cause="no_measurements", temporary=True)

    @property
    @pyscript_compile
    def problem_key(self) -> str:
        """Return the problem key of its measurements in the status."""
        return f"s2 measurements of {self.resource.resource_id}"

    @pyscript_compile
    def sensors_known(self) -> None:
        """Continue with what waited for the sensors."""
        interval = self.interval
        if self.waiting or (interval and interval.step != self._step):
            interval = self._divide_anew(interval)
        if interval:
            self._start_timer(interval, dt_util.utcnow())
        self.forecast_throttle.request()
        self.fill_level_changed()
        self._show()

    @pyscript_compile
    def stop(self) -> None:
        """Add the power until now, post the forecast that waits, and cancel the timers."""
        self._update(dt_util.utcnow())
        self.power_w = None
        self._post_forecast()
        if self.cancel_level_timer:
            self.cancel_level_timer()
            self.cancel_level_timer = None
        for throttle in (
            self.state_throttle,
            self.reading_throttle,
            self.sign_of_life_throttle,
            self.forecast_throttle,
        ):
            throttle.cancel()
        if self.cancel_timer:
            self.cancel_timer()
            self.cancel_timer = None

    @pyscript_compile
    def as_json(self, *, is_stopped: bool = False) -> dict[str, Any]:
        """Return what is kept of it for one user of one server, as JSON's types.

        This has the interval under way only after the stop, while nothing continues it.
        """
        return {
            "made": kept.as_json(self.provisioned),
            "interval": self.interval.as_json() if is_stopped and self.interval else None,
            "waiting": [
                [average.start.isoformat(), average.step.total_seconds(), average.power_w]
                for average in self.waiting
            ],
        }

    @pyscript_compile
    def restore(self, data: dict[str, Any]) -> None:
        """Remember what `as_json` wrote; raise what is wrong with it."""
        ids = {name: kept.optional(kept.whole_number, made) for name, made in data["made"].items()}
        waiting = [
            AveragePower(start=kept.moment(start), step=kept.length(seconds), power_w=kept.number(power_w))
            for start, seconds, power_w in data["waiting"]
        ]
        self.provisioned, self.waiting = DeviceIds(**ids), waiting
        self.interval = averages.from_json(data["interval"]) if data["interval"] else None

    @pyscript_compile
    def resume(self) -> None:
        """Continue with what was restored, now that the sensors are set; whether it connects again or not."""
        if self.power_sensor:
            self.sensors_known()
        elif self.interval:
            self._start_timer(self.interval, dt_util.utcnow())
        self.session_changed()


Telemetry = _Telemetry


@pyscript_compile
def without_readings(state: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return a state and its attributes without the readings, which change with any message."""
    value, attributes = state
    return value, {
        name: attribute for name, attribute in attributes.items() if name not in resource_state.READINGS
    }
