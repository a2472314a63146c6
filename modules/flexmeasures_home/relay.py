"""What one Resource Manager says, on its way: its state here, its power and fill level to FlexMeasures.

Power in S2 is W, and consumption is positive.
"""

import logging
import math
import zlib
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HassJob, callback
from homeassistant.helpers.event import async_call_later, async_track_point_in_utc_time

import flexmeasures_api.provisioning as provisioning
import flexmeasures_api.sensor_clock as sensor_clock
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_home.means as means
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.pace as paces
import flexmeasures_home.resource_state as resource_state
import flexmeasures_home.status as statuses
import flexmeasures_s2.commodities as commodities

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
STEP_UNTIL_KNOWN = timedelta(minutes=1)
"""The finest that FlexMeasures has: any other step is made of these."""
GRACE = timedelta(seconds=5)
"""How much later than its time a measurement may arrive."""
OLDEST = timedelta(days=1)
"""How old a measurement may be, before the Resource Manager's clock counts as wrong."""
LONGEST_WITHOUT_A_PHASE = timedelta(seconds=60)
"""How long the power of a phase counts that is not told any more, where others are."""
LONGEST_FORECAST = timedelta(days=7)
MOST_OF_A_FORECAST = 2880
"""How many values a forecast may come to, for a sensor with short intervals."""
AGES_MS = 10**14
"""More than the calendar has."""
MOST_WAITING = 10_000
SECONDS_BETWEEN_STATES = 1
BURST, SECONDS_BETWEEN_READINGS = 10, 60
"""How many readings are shown as they come, before there is one a minute: the recorder has a row for each."""
SECONDS_BETWEEN_SIGNS_OF_LIFE = 60
SECONDS_BETWEEN_FORECASTS = 2
SPREAD_MS = 500
"""Within what time the devices post that have a value at the same moment, one after the other."""
MINUTE = timedelta(minutes=1)
MINUTES_BETWEEN_SAME_LEVELS = 5
"""What get_measurements reads of an instantaneous sensor by default."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(eq=False, repr=False)
    class Relay:
        """A Resource Manager, its entity, and its sensors on FlexMeasures once those are known.

        `made` has the numbers of what was made for it, `provision` of what it uses, `power_sensor` and
        `soc_sensor` what the server says of that. `powers` maps each electric commodity quantity to its
        latest value (W) and when it was measured, `power` is their sum, and `measured` when that was.
        `interval` is the one under way, `waiting` the minutes that ended before the sensor was known, and
        `looked` has both clocks as they were when it was summed up last. `level_is_new` tells that the fill
        level was not posted yet. `forecast` waits to be posted, `forecast_parcel` was posted last. `shown` is
        the session, control type and fill level that were last made known, `state` the state and attributes
        that Home Assistant was last given. `armed_for` is the end of the interval that `forget_timer` waits
        for. `energy_per_fill_level` is in Wh. `instruction_lead` is how long
        before its time an instruction is sent (s), where that is configured for it, `cycle_cost` what a kWh
        through its storage costs in wear (currency). `planned()` returns the attributes that tell of its
        plan.
        """

        hass: Any
        outbox: Any
        resource: Any
        entity_id: str
        energy_per_fill_level: float | None = None
        instruction_lead: float | None = None
        cycle_cost: float = 0.0
        made: Any = None
        provision: Any = None
        power_sensor: Any = None
        soc_sensor: Any = None
        are_sensors_checked: bool = False
        powers: dict = field(default_factory=dict)
        power: float | None = None
        measured: datetime | None = None
        interval: Any = None
        looked: tuple | None = None
        waiting: list = field(default_factory=list)
        level_is_new: bool = False
        forget_level_timer: Any = None
        forecast: Any = None
        forecast_parcel: Any = None
        last_prior: datetime | None = None
        shown: Any = None
        state: tuple | None = None
        clock_was_wrong: bool = False
        forget_timer: Any = None
        armed_for: datetime | None = None
        paces: dict = field(default_factory=dict)
        planned: Any = dict

    return Relay


Relay = record()


@pyscript_compile
def new(hass, outbox, resource, entity_id):
    """Return a relay of which nothing is known yet."""
    nothing = provisioning.DeviceIds()
    relay = Relay(hass, outbox, resource, entity_id, made=nothing, provision=nothing)
    relay.paces = {
        "state": paces.Pace(hass, partial(show_change, relay), SECONDS_BETWEEN_STATES),
        "reading": paces.Pace(
            hass, partial(show_reading, relay), SECONDS_BETWEEN_STATES, BURST, SECONDS_BETWEEN_READINGS
        ),
        "sign of life": paces.Pace(hass, partial(show_sign_of_life, relay), SECONDS_BETWEEN_SIGNS_OF_LIFE),
        "forecast": paces.Pace(hass, partial(post_forecast, relay), SECONDS_BETWEEN_FORECASTS),
    }
    return relay


@pyscript_compile
def want(relay, name):
    """Have something done soon, but not too often."""
    paces.want(relay.paces[name])


@pyscript_compile
def show(relay: Any) -> bool:
    """Show the state as it is now, and return that it was done; readings that wait are shown with it."""
    relay.state = present_state(relay)
    relay.hass.states.async_set(relay.entity_id, *relay.state, state_info=resource_state.STATE_INFO)
    for name in ("reading", "sign of life"):
        paces.rest(relay.paces[name], paces.pause(relay.paces[name]))
    return True


@pyscript_compile
def present_state(relay: Any) -> tuple[str, dict]:
    """Return the state and its attributes as they are now."""
    resource = relay.resource
    return resource_state.value(resource), resource_state.attributes(
        resource, relay.provision, relay.planned()
    )


@pyscript_compile
def show_change(relay: Any) -> bool:
    """Show the state if it has changed but for its readings, and return whether that was done."""
    if relay.state and lasting(relay.state) == lasting(present_state(relay)):
        want(relay, "reading")
        return False
    return show(relay)


@pyscript_compile
def show_reading(relay: Any) -> bool:
    """Show the state if the fill level that it shows has changed; that sets the pause itself."""
    if relay.state is None or relay.state[1]["fill_level"] != resource_state.fill_level(relay.resource):
        show(relay)
    return False


@pyscript_compile
def show_sign_of_life(relay: Any) -> bool:
    """Show the state; that sets the pause itself."""
    show(relay)
    return False


@pyscript_compile
def lasting(state: tuple[str, dict]) -> tuple[str, dict]:
    """Return a state and its attributes without the readings, which change with any message."""
    value, attributes = state
    return value, {name: each for name, each in attributes.items() if name not in resource_state.READINGS}


@pyscript_compile
def changed(relay):
    """Take note that it connected, disconnected, is under another control type, or told of itself anew."""
    session = relay.resource.session
    if session is None:
        look(relay, dt_util.utcnow())
        relay.powers, relay.power = {}, None
        if matter(relay) in relay.outbox.status.problems:
            statuses.settle(relay.outbox.status, matter(relay))
    known = session, session and session.control_type, None
    if relay.shown and relay.shown[:2] == known[:2]:
        want(relay, "state")
    else:
        relay.shown = known
        show(relay)


@pyscript_compile
def received(relay, message):
    """Pass on what a message says."""
    kind = message.message_type
    if kind == "PowerMeasurement":
        take_power(relay, message)
    elif kind == "PowerForecast":
        relay.forecast = message, dt_util.utcnow()
        want(relay, "forecast")
    elif kind == "FRBC.StorageStatus" and fill_levels.of(relay.resource) != relay.shown[2]:
        relay.shown = *relay.shown[:2], fill_levels.of(relay.resource)
        tell_fill_level(relay)
        want(relay, "reading")
        want(relay, "sign of life")
    elif kind == "FRBC.SystemDescription":
        tell_fill_level(relay)
        want(relay, "state")
    else:
        want(relay, "sign of life")


@pyscript_compile
def take_power(relay, message):
    """Sum up the power until a measurement, and go on with the measured one.

    A value lasts until the next. One that arrives after a later one does not count; a clock that is
    more than a day slow, or fast, is not believed.
    """
    values = {each.commodity_quantity.value: each.value for each in message.values}
    electric = {
        quantity: value
        for quantity, value in values.items()
        if quantity.startswith(commodities.ELECTRIC) and abs(value) < forecasts.MAX_POWER_W
    }
    want(relay, "sign of life")
    if not electric:
        return
    now = dt_util.utcnow()
    moment = believable(relay, message.measurement_timestamp, now)
    if relay.measured and moment < relay.measured <= now:
        return
    relay.measured = moment
    elapse(relay, moment, now)
    still_valid = {
        quantity: measured
        for quantity, measured in relay.powers.items()
        if quantity in still_measured(relay, electric)
        and timedelta(0) <= moment - measured[1] <= LONGEST_WITHOUT_A_PHASE
    }
    relay.powers = still_valid | {quantity: (value, moment) for quantity, value in electric.items()}
    relay.power = commodities.electric({quantity: value for quantity, (value, _at) in relay.powers.items()})
    arm(relay, now)


@pyscript_compile
def still_measured(relay: Any, newest: dict) -> set[str]:
    """Return the commodity quantities that count on beside those of the newest measurement.

    By what its details say that it measures: if the newest has all of that, nothing else counts. A value of
    all phases together counts on beside that of one only where both are announced, and stands for both.
    """
    if relay.powers.keys() <= newest.keys():
        return set()
    details = relay.resource.session.details
    provided = {each.value for each in details.provides_power_measurement_types}
    announced = {each for each in provided if each.startswith(commodities.ELECTRIC)}
    if commodities.ALL_PHASES in newest or (announced and announced <= newest.keys()):
        return set()
    if commodities.ALL_PHASES in announced:
        return set(relay.powers)
    return relay.powers.keys() - {commodities.ALL_PHASES}


@pyscript_compile
def believable(relay, told, now):
    """Return when something was measured, in UTC."""
    if now - OLDEST <= told <= now + GRACE:
        return min(dt_util.as_utc(told), now)
    if not relay.clock_was_wrong:
        relay.clock_was_wrong = True
        LOGGER.warning(
            "%s says that it is %s: its clock is wrong, so its measurements count from when they arrive",
            relay.resource.name,
            told.isoformat(),
        )
    return now


@pyscript_compile
def step(relay):
    """Return the time between means: the sensor's resolution."""
    return relay.power_sensor.resolution if relay.power_sensor else STEP_UNTIL_KNOWN


@pyscript_compile
def tick(relay, moment):
    """Return the last tick of the sensor's clock that is not after a moment."""
    zone = relay.power_sensor.timezone if relay.power_sensor else "UTC"
    return sensor_clock.floor(moment, step(relay), zone)


@pyscript_compile
def elapse(relay, moment, now):
    """Sum up the power until a moment, and post the means of the intervals that ended.

    Where the clock was set anew, or the machine slept, nothing is known of the time in between.
    """
    before, relay.looked = relay.looked, means.clocks(now)
    if before and means.jumped(before, relay.looked):
        relay.power = None
    if relay.interval is None or relay.interval.at > now + GRACE:
        relay.interval = means.Interval(tick(relay, moment), step(relay), moment)
        return
    if relay.interval.step != step(relay):
        cut_anew(relay)
    ended, relay.interval = means.elapse(relay.interval, relay.power, moment, partial(tick, relay))
    take_means(relay, ended)


@pyscript_compile
def cut_anew(relay):
    """Put the minutes that wait, and the interval under way, into intervals of the sensor's length."""
    pieces = [(start, start + length, mean) for start, length, mean in relay.waiting]
    under_way = relay.interval
    if under_way and under_way.known:
        pieces.append((under_way.start, under_way.at, under_way.total / under_way.known))
    relay.waiting = []
    first = pieces[0][0] if pieces else under_way.at
    relay.interval = means.Interval(tick(relay, first), step(relay), first)
    for start, end, mean in pieces:
        for value, until in ((None, start), (mean, end)):
            if until > relay.interval.at:
                ended, relay.interval = means.elapse(relay.interval, value, until, partial(tick, relay))
                take_means(relay, ended)


@pyscript_compile
def take_means(relay, ended):
    """Post the means of intervals that ended, or keep them until the sensor is known."""
    for each in ended:
        mean = means.mean(each)
        if mean is not None:
            relay.waiting.append((each.start, each.step, mean))
    if relay.power_sensor is None:
        del relay.waiting[: max(0, len(relay.waiting) - MOST_WAITING)]
        return
    sensor = relay.power_sensor
    for start, length, mean in relay.waiting:
        run = sensor_data.SensorData(
            sensor=sensor.id,
            start=start,
            values=[mean],
            unit="W",
            step=length,
            sign=sensor_data.CONSUMPTION,
        )
        outboxes.add(relay.outbox, run)
    relay.waiting = []


@pyscript_compile
def arm(relay, now):
    """Come back when the interval under way has ended, and the last of its measurements may have arrived."""
    end = means.end(relay.interval)
    if relay.forget_timer:
        if relay.armed_for == end:
            return
        relay.forget_timer()
    relay.armed_for = end

    @callback
    def at_end(_now):
        relay.forget_timer = None
        later = dt_util.utcnow()
        look(relay, later - GRACE)
        if relay.power is not None or relay.interval.known:
            arm(relay, later)

    seconds = max((end - now).total_seconds(), 0) + (GRACE + spread(relay)).total_seconds()
    job = HassJob(at_end, cancel_on_shutdown=True)
    relay.forget_timer = async_call_later(relay.hass, seconds, job)


@pyscript_compile
def look(relay, moment):
    """Sum up the power until a moment, unless that is done."""
    if relay.interval is not None and moment > relay.interval.at:
        elapse(relay, moment, dt_util.utcnow())


@pyscript_compile
def post_forecast(relay):
    """Post the newest forecast, once the sensor is known, as known when it came; tell whether it was.

    One that still waits in the outbox is superseded. FlexMeasures counts in seconds, and refuses other
    values that were known at the same time.
    """
    if relay.power_sensor is None or relay.forecast is None:
        return False
    (message, came), relay.forecast = relay.forecast, None
    start, values = forecast_values(relay, message)
    if values:
        sensor, prior = relay.power_sensor, came.replace(microsecond=0)
        if relay.last_prior and prior <= relay.last_prior:
            prior = relay.last_prior + timedelta(seconds=1)
        relay.last_prior = prior
        run = sensor_data.SensorData(
            sensor=sensor.id,
            start=start,
            values=values,
            unit="W",
            step=sensor.resolution,
            prior=prior,
            sign=sensor_data.CONSUMPTION,
        )
        outboxes.withdraw(relay.outbox, relay.forecast_parcel)
        relay.forecast_parcel = outboxes.add(relay.outbox, run)
    return True


@pyscript_compile
def forecast_values(relay, message):
    """Return the start and the means of a PowerForecast over the sensor's intervals, consumption positive.

    What is over is left out, and what is more than 7 days ahead, or 2880 intervals.
    """
    first = tick(relay, dt_util.utcnow())
    longest = min(LONGEST_FORECAST, MOST_OF_A_FORECAST * step(relay))
    interval = means.Interval(first, step(relay), first)
    found, position = [], message.start_time - first
    for element in message.elements:
        begin, position = position, position + timedelta(milliseconds=min(element.duration.root, AGES_MS))
        start, end = (first + max(timedelta(0), min(each, longest)) for each in (begin, position))
        for value, until in ((None, start), (forecasts.expected(element), end)):
            if until > interval.at:
                ended, interval = means.elapse(interval, value, until, partial(tick, relay))
                found += ended
    values = {each.start: means.mean(each) for each in [*found, interval]}
    known = [start for start, value in values.items() if value is not None]
    if not known:
        return first, []
    start = min(known)
    starts = [start + number * interval.step for number in range((max(known) - start) // interval.step + 1)]
    return start, [values.get(each) for each in starts]


@pyscript_compile
def tell_fill_level(relay):
    """Post the fill level: at once where none was posted lately, else at the next full minute."""
    relay.level_is_new = True
    if relay.forget_level_timer is None:
        post_fill_level(relay)


@pyscript_compile
def post_fill_level(relay):
    """Post the present fill level as the state of charge of this minute, if it can be told; then come back.

    The same level again is posted each 5 minutes only.
    """
    session = relay.resource.session
    level = fill_levels.of(relay.resource) if relay.soc_sensor else None
    told = None if level is None else state_of_charge(relay, session, level)
    if level is not None and relay.soc_sensor.unit != "%" and relay.energy_per_fill_level is None:
        complain(
            relay,
            f"sensor {relay.soc_sensor.id} is in {relay.soc_sensor.unit}, and a fill level is no energy: "
            f"give energy_per_fill_level under s2.resources, or a sensor in %",
        )
    if told is None or not math.isfinite(told[0]):
        return
    now = dt_util.utcnow()
    if relay.level_is_new or now.minute % MINUTES_BETWEEN_SAME_LEVELS == 0:
        relay.level_is_new = False
        start = now.replace(second=0, microsecond=0)
        run = sensor_data.SensorData(
            sensor=relay.soc_sensor.id, start=start, values=[told[0]], unit=told[1], step=MINUTE
        )
        outboxes.add(relay.outbox, run)

    @callback
    def again(_now):
        relay.forget_level_timer = None
        post_fill_level(relay)

    job = HassJob(again, cancel_on_shutdown=True)
    next_minute = now.replace(second=0, microsecond=0) + MINUTE
    due = next_minute + spread(relay)
    relay.forget_level_timer = async_track_point_in_utc_time(relay.hass, job, due)


@pyscript_compile
def spread(relay: Any) -> timedelta:
    """Return how much later than others it posts, always the same, so that not all are due at once."""
    return timedelta(milliseconds=zlib.crc32(relay.entity_id.encode()) % SPREAD_MS)


@pyscript_compile
def complain(relay, what):
    """Tell what keeps a Resource Manager from being measured, if that lasts."""
    text = f"s2: {relay.resource.name} ({relay.resource.resource_id}): {what}"
    statuses.fail(relay.outbox.status, matter(relay), text, cause="no_measurements", temporary=True)


@pyscript_compile
def matter(relay):
    """Return the matter of a Resource Manager's measurements in the status."""
    return f"s2 measurements of {relay.resource.resource_id}"


@pyscript_compile
def state_of_charge(relay, session, level):
    """Return a fill level as (value, unit): of the storage's range (%), or as energy; or None.

    A % sensor gets the part of the storage's fill_level_range, one of energy what the level is worth by
    `energy_per_fill_level`, above the start of that range.
    """
    description = session.memory.get(("FRBC.SystemDescription",))
    if description is None:
        return None
    limits = description.storage.fill_level_range
    if relay.soc_sensor.unit != "%":
        above = level - limits.start_of_range
        return None if relay.energy_per_fill_level is None else (above * relay.energy_per_fill_level, "Wh")
    if limits.end_of_range <= limits.start_of_range:
        return None
    return 100 * (level - limits.start_of_range) / (limits.end_of_range - limits.start_of_range), "%"


@pyscript_compile
def sensors_known(relay):
    """Go on with what waited for the sensors."""
    if relay.waiting or (relay.interval and relay.interval.step != step(relay)):
        cut_anew(relay)
    if relay.interval:
        arm(relay, dt_util.utcnow())
    want(relay, "forecast")
    tell_fill_level(relay)
    show(relay)


@pyscript_compile
def stop(relay):
    """Sum up until now, post what waits for its turn, and end the timers."""
    look(relay, dt_util.utcnow())
    relay.power = None
    post_forecast(relay)
    if relay.forget_level_timer:
        relay.forget_level_timer()
        relay.forget_level_timer = None
    for each in relay.paces.values():
        paces.stop(each)
    if relay.forget_timer:
        relay.forget_timer()
        relay.forget_timer = None


@pyscript_compile
def as_json(relay, stopped=False):
    """Return what is kept of a Resource Manager for one user of one server, as JSON's types.

    The interval under way is in it only after the stop, while nobody goes on with it.
    """
    return {
        "made": asdict(relay.made),
        "interval": means.as_json(relay.interval) if stopped and relay.interval else None,
        "waiting": [
            [start.isoformat(), length.total_seconds(), mean] for start, length, mean in relay.waiting
        ],
    }


@pyscript_compile
def recall(relay, found):
    """Remember what `as_json` wrote."""
    relay.made = provisioning.DeviceIds(**found["made"])
    relay.waiting = [
        (datetime.fromisoformat(start), timedelta(seconds=length), mean)
        for start, length, mean in found["waiting"]
    ]
    relay.interval = found["interval"] and means.recalled(found["interval"])


@pyscript_compile
def go_on(relay):
    """Go on with what was recalled, now that the sensors are told; whether it connects again or not."""
    if relay.power_sensor:
        sensors_known(relay)
    elif relay.interval:
        arm(relay, dt_util.utcnow())
    changed(relay)
