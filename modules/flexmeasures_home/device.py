"""One configured device: it is planned, its schedule is kept and shown."""

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
import voluptuous as vol
from homeassistant.core import callback
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers.event import async_track_point_in_utc_time
from homeassistant.helpers.storage import Store

import flexmeasures_home.fields as fields
import flexmeasures_home.schedule_state as schedule_state
import flexmeasures_home.status as statuses
import flexmeasures_optimiser.connection as connection
import flexmeasures_optimiser.errors as errors
import flexmeasures_optimiser.planning as planning
import flexmeasures_optimiser.schedule as schedules
import flexmeasures_optimiser.storage as storages

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
CLIENT_LOGGER = "custom_components.pyscript.flexmeasures.client"
UPDATED = "flexmeasures_schedule_updated"
FIRST_PAUSE_SECONDS = 10
MOST_OVER_SOC_MAX = 2
LONGEST_PAUSE_SECONDS = 300


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Device:
        """A device with its connection, the schedule in force and the one before it."""

        hass: Any
        configuration: Any
        status: statuses.Status
        store: Any
        link: Any = None
        schedule: Any = None
        previous: Any = None
        cancel_timer: Any = None
        check: Any = None
        asking: Any = None
        attributes: dict | None = None
        stopped: bool = False
        planning: Any = field(default_factory=asyncio.Lock)

    return Device


Device = record()


@pyscript_compile
def new(hass, configuration, status):
    """Return a device that is not yet started."""
    return Device(hass, configuration, status, Store(hass, 1, "flexmeasures_for_pyscript.schedule"))


@pyscript_compile
async def start(device):
    """Connect, show the schedule that was in force before, and check the server in the background."""
    given = device.configuration
    device.link = connection.connect(given.host, given.username, given.password, CLIENT_LOGGER)
    kept = await device.store.async_load() or {}
    if kept.get("power_sensor") == given.power_sensor:
        device.schedule = recalled(kept.get("schedule"))
        device.previous = recalled(kept.get("previous"))
    statuses.show(device.status, "ok", last_success=last_success(device), last_error=None)
    statuses.dismiss(device.hass, ["misconfigured"])
    show(device)
    device.check = device.hass.async_create_background_task(check(device), "flexmeasures check")


@pyscript_compile
async def stop(device):
    """End the timer, the check, a plan under way and the session.

    The plan's caller is told to call again; nothing of it shows in the states.
    """
    device.stopped = True
    for task in (device.check, device.asking):
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    async with device.planning:
        if device.cancel_timer:
            device.cancel_timer()
            device.cancel_timer = None
    if device.link:
        await connection.close(device.link)


@pyscript_compile
async def check(device):
    """Ask the server for the power sensor, so that a wrong host, login or sensor shows at once.

    A server that is away is asked again until it answers.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            await planning.power_sensor(device.link, device.configuration.power_sensor)
        except errors.OptimiserError as error:
            fail(device, error)
            if not error.temporary:
                return
        else:
            async with device.planning:
                if device.status.state in ("ok", "stale", "unreachable"):
                    statuses.succeed(
                        device.status, resting_state(device), server_version=server_version(device)
                    )
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


@pyscript_compile
def server_version(device):
    """Return the version that the server told last, or None."""
    return device.link.client.server_version


@pyscript_compile
def last_success(device):
    """Return when the schedule in force was made, in Home Assistant's time zone, or None."""
    return device.schedule and dt_util.as_local(device.schedule.updated_at).isoformat()


@pyscript_compile
def resting_state(device):
    """Return the status when nothing is wrong: `stale` after the schedule's end."""
    ended = device.schedule is not None and schedules.end(device.schedule) <= dt_util.utcnow()
    return "stale" if ended else "ok"


@pyscript_compile
def fail(device, error):
    """Show an error of the optimiser; the schedule stays."""
    statuses.fail(device.status, str(error), error.status, error.cause, error.temporary)


@pyscript_compile
async def plan(device, call):
    """Ask FlexMeasures for a schedule, show it, and return it as a response.

    `call` holds the service's fields, checked. Plans of one device are made one after the other.
    Raise HomeAssistantError or ServiceValidationError; the schedule before stays then.
    """
    async with device.planning:
        refuse_if_stopped(device)
        with told(device):
            device.asking = asyncio.ensure_future(ask(device, call))
            schedule = await device.asking
            refuse_if_stopped(device)
            accept(device, schedule)
            await device.store.async_save(remembered(device))
    return schedule_state.response(schedule, dt_util.get_default_time_zone())


@pyscript_compile
def refuse_if_stopped(device):
    """Send a caller away whom a reload of the scripts has overtaken."""
    if device.stopped:
        raise HomeAssistantError("The scripts were reloaded meanwhile: call again")


@pyscript_compile
@contextmanager
def told(device):
    """Show `planning` meanwhile; show a failure, and raise it as Home Assistant's own."""
    before = device.status.state
    statuses.show(device.status, "planning")
    try:
        yield
    except BaseException as error:
        refuse_if_stopped(device)
        if isinstance(error, errors.OptimiserError):
            fail(device, error)
            raise HomeAssistantError(str(error)) from error
        if isinstance(error, HomeAssistantError):
            statuses.fail(device.status, str(error))
            raise
        if not isinstance(error, Exception):
            statuses.show(device.status, before)
            raise
        LOGGER.exception("Planning failed unexpectedly")
        text = f"Planning failed unexpectedly ({type(error).__name__}: {error}): please report the log"
        statuses.fail(device.status, text, cause="failed")
        raise HomeAssistantError(text) from error


@pyscript_compile
async def ask(device, call):
    """Return the schedule for the call's fields, the configuration filling in."""
    given, now = device.configuration, dt_util.utcnow()
    sensor = await planning.power_sensor(device.link, given.power_sensor)
    start = schedules.shift_up(call.get("start", now), sensor.resolution, sensor.timezone)
    soc_at_start = call.get("soc_at_start")
    storage = storages.Storage(
        power_sensor=given.power_sensor,
        soc_sensor=given.soc_sensor,
        soc_at_start=entity_soc(device) if soc_at_start is None else soc_at_start,
        soc_min=given.soc_min,
        soc_max=given.soc_max,
        soc_targets=upcoming(call, "soc_targets", start),
        soc_minima=upcoming(call, "soc_minima", start),
        soc_maxima=upcoming(call, "soc_maxima", start),
        power_capacity=given.power_capacity,
        roundtrip_efficiency=given.roundtrip_efficiency,
        flex_model=(given.flex_model or {}) | call.get("flex_model", {}),
    )
    return await planning.plan(
        device.link,
        storage,
        storages.flex_context(
            given.consumption_price_sensor,
            given.production_price_sensor,
            given.site_power_capacity,
            given.flex_context,
            call.get("flex_context"),
        ),
        start,
        call.get("duration", given.schedule_duration),
        given.schedule_unit,
        given.soc_unit,
        given.site,
        now,
    )


@pyscript_compile
def upcoming(call, field_name, start):
    """Return a call's wishes; refuse one that no schedule from this start on can fulfil."""
    wishes = call.get(field_name, [])
    zone = dt_util.get_default_time_zone()
    for number, wish in enumerate(wishes):
        if not start <= wish.end <= start + fields.LONGEST_SCHEDULE:
            raise ServiceValidationError(
                f"{field_name}[{number}]: {wish.end.astimezone(zone).isoformat()} is not within 31 days "
                f"from the schedule's start, {start.astimezone(zone).isoformat()}"
            )
    return wishes


@pyscript_compile
def entity_soc(device):
    """Return the state of charge (Wh) that `soc_entity` tells; a % is of soc_max."""
    given = device.configuration
    if given.soc_entity is None:
        raise ServiceValidationError(
            "soc_at_start is missing: give the state of charge, or configure soc_entity"
        )
    domain, name, *attribute = given.soc_entity.split(".")
    state = device.hass.states.get(f"{domain}.{name}")
    if state is None:
        raise HomeAssistantError(f"soc_entity: {given.soc_entity} does not exist in Home Assistant")
    value = state.attributes.get(attribute[0]) if attribute else state.state
    unit = state.attributes.get("unit_of_measurement", given.soc_unit)
    try:
        soc = fields.energy(given.soc_unit, given.soc_max)(value if attribute else f"{value} {unit}")
    except vol.Invalid as error:
        raise HomeAssistantError(
            f"soc_entity: {given.soc_entity} is {value!r}: {error.error_message}"
        ) from error
    if attribute and soc > MOST_OVER_SOC_MAX * given.soc_max:
        raise HomeAssistantError(
            f"soc_entity: {given.soc_entity} is {value!r}, taken as {given.soc_unit}, far above soc_max: "
            f"if it is a percentage, give a template sensor with % as its unit"
        )
    return soc


@pyscript_compile
def accept(device, schedule):
    """Put a new schedule in force: remember it, show it, tell it."""
    before = device.schedule
    if before and before.unit == schedule.unit and schedules.covers(before, schedule.updated_at):
        device.previous = before
    elif device.previous and device.previous.unit != schedule.unit:
        device.previous = None
    device.schedule, device.attributes = schedule, None
    show(device)
    statuses.succeed(
        device.status,
        last_success=last_success(device),
        server_version=server_version(device),
    )
    device.hass.bus.async_fire(
        UPDATED,
        {"entity_id": schedule_state.ENTITY_ID}
        | {name: device.attributes[name] for name in ("start", "duration", "resolution", "missed_targets")}
        | {"unit": schedule.unit},
    )


@pyscript_compile
def show(device):
    """Show the value that is due now, and come back at the next boundary."""
    now = dt_util.utcnow()
    if device.attributes is None:
        device.attributes = {"schedule": [], **schedule_state.naming(device.configuration.schedule_unit)}
        if device.schedule is not None:
            zone = dt_util.get_default_time_zone()
            device.attributes = schedule_state.attributes(device.schedule, zone)
    value = schedule_state.due(device.schedule, device.previous, now)
    device.hass.states.async_set(schedule_state.ENTITY_ID, value, device.attributes)
    if device.cancel_timer:
        device.cancel_timer()
        device.cancel_timer = None
    boundary = schedule_state.next_change(device.schedule, device.previous, now)
    if boundary is None:
        if device.status.state == "ok":
            statuses.show(device.status, resting_state(device))
        return

    @callback
    def renew(_now):
        device.cancel_timer = None
        show(device)

    device.cancel_timer = async_track_point_in_utc_time(device.hass, renew, boundary)


@pyscript_compile
def remembered(device):
    """Return what the store keeps: JSON's types only."""
    return {
        "power_sensor": device.configuration.power_sensor,
        "schedule": as_json(device.schedule),
        "previous": as_json(device.previous),
    }


@pyscript_compile
def as_json(schedule):
    """Return a schedule as JSON's types."""
    if schedule is None:
        return None
    return asdict(schedule) | {
        "start": schedule.start.isoformat(),
        "updated_at": schedule.updated_at.isoformat(),
        "resolution": schedule.resolution.total_seconds(),
        "missed_targets": [
            miss | {"datetime": miss["datetime"].isoformat()} for miss in schedule.missed_targets
        ],
    }


@pyscript_compile
def recalled(kept):
    """Return the schedule that `as_json` wrote."""
    if kept is None:
        return None
    return schedules.Schedule(
        **kept
        | {
            "start": datetime.fromisoformat(kept["start"]),
            "updated_at": datetime.fromisoformat(kept["updated_at"]),
            "resolution": timedelta(seconds=kept["resolution"]),
            "missed_targets": [
                miss | {"datetime": datetime.fromisoformat(miss["datetime"])}
                for miss in kept["missed_targets"]
            ],
        }
    )
