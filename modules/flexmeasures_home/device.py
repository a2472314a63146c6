"""One configured device: it is planned, its schedule is kept and shown, its measurements are posted."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HassJob, callback
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers.aiohttp_client import async_get_clientsession
from homeassistant.helpers.event import (
    async_call_later,
    async_track_point_in_utc_time,
    async_track_time_interval,
)
from homeassistant.helpers.start import async_at_started

import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule as schedules
import flexmeasures_home.checks as checks
import flexmeasures_home.cron as crons
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_home.kept as kept
import flexmeasures_home.measurements as measurements
import flexmeasures_home.new_prices as new_prices
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.pace as paces
import flexmeasures_home.question as question
import flexmeasures_home.resources as resources
import flexmeasures_home.schedule_state as schedule_state
import flexmeasures_home.schedule_store as schedule_store
import flexmeasures_home.state_of_charge as states_of_charge
import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
CLIENT_LOGGER = "custom_components.pyscript.flexmeasures.client"
UPDATED = "flexmeasures_schedule_updated"
FIRST_PAUSE_SECONDS = 10
LONGEST_PAUSE_SECONDS = 300
HEARTBEAT = timedelta(minutes=1)
SECONDS_BETWEEN_WAKES = 30
"""How often a success makes all else that waits for the server try again, while that goes on to fail."""
ENTITIES_SECONDS = 30
"""How long after Home Assistant's start an entity must exist."""
PLAN = "plan"
NO_SOC = "no_soc"


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(repr=False)
    class Device:
        """A device with its connection, the schedule in force and the one before it.

        `state_of_charge` is that of `soc_entity`. `last_call` has the fields of the call that the schedule in
        force was made for, where it is known, and `prices_due` is when new prices are looked for next.
        `answered` tells the check that the server does something for us, and `waking` is how often all else
        that waits for the server is told so.
        """

        hass: Any
        configuration: Any
        status: statuses.Status
        store: Any
        link: Any = None
        outbox: Any = None
        measurements: Any = None
        cron: Any = None
        resources: Any = None
        state_of_charge: Any = None
        last_call: dict | None = None
        prices_due: datetime | None = None
        are_entities_due: bool = False
        forget_start: Any = None
        forget_entity_timer: Any = None
        schedule: Any = None
        previous: Any = None
        forget_boundary: Any = None
        forget_heartbeat: Any = None
        check: Any = None
        check_pause: float = FIRST_PAUSE_SECONDS
        asking: Any = None
        replanning: Any = None
        attributes: dict | None = None
        stopped: bool = False
        planning: Any = field(default_factory=asyncio.Lock)
        answered: Any = field(default_factory=asyncio.Event)
        waking: Any = None

    return Device


Device = record()


@pyscript_compile
def new(hass, configuration, status):
    """Return a device that is not yet started."""
    return Device(hass, configuration, status, schedule_store.new(hass, status))


@pyscript_compile
async def start(device):
    """Connect, go on where the one before stopped, and check the server in the background."""
    hass, given, status = device.hass, device.configuration, device.status
    device.link = connection.connect(
        host=given.host,
        username=given.username,
        password=given.password,
        connector=async_get_clientsession(hass).connector,
        logger_name=CLIENT_LOGGER,
        secrets=(given.s2.token, *[each.get("token") for each in given.s2.resources.values()]),
        other_loggers=(LOGGER.name, f"{LOGGER.name}.s2"),
    )
    status.redact = device.link.redact
    if not given.cron:
        status.untried.add(PLAN)
    statuses.dismiss(hass)
    device.schedule, device.previous = await schedule_store.load(device.store, given.power_sensor)
    until = device.schedule and device.schedule.prices_known_until
    statuses.show(status, last_success=last_success(device), prices_known_until=schedule_state.local(until))
    show(device)
    if given.soc_entity:
        device.state_of_charge = follow_state_of_charge(device)
    device.outbox = await outboxes.start(hass, device.link, status, f"{given.username} {device.link.host}")
    device.measurements = await measurements.load(hass, device.outbox)
    measure(device)
    await measurements.save(device.measurements)
    if given.s2.enabled:
        device.resources = await resources.start(
            hass,
            given,
            device.link,
            device.outbox,
            status,
            device.measurements,
            device.planning,
            lambda: own_schedule(device),
        )
    status.when_recovered = lambda: recovered(device)
    device.waking = paces.Pace(hass, partial(wake, device), SECONDS_BETWEEN_WAKES)
    status.when_answered = partial(paces.want, device.waking)
    status.when_unreachable = lambda: look_for_server(device, device.check_pause)
    look_for_server(device, 0)
    if given.cron:
        device.cron = crons.Cron(
            hass, status, given.cron, lambda start: plan(device, {"start": start}, by_user=False)
        )
        crons.start(device.cron, device.schedule and device.schedule.updated_at)

    each_minute = {
        "schedule's state": partial(show, device),
        "state of charge": device.state_of_charge and device.state_of_charge.look,
        "check of the entities": partial(checks.check_entities, device),
        "look for new prices": partial(new_prices.look, device, partial(plan, device, by_user=False)),
        "notices": partial(statuses.forget_notices, status),
        "files": partial(kept.save_again, status),
        "measurements": partial(measurements.look_at_all, device.measurements),
        "clock of cron": device.cron and partial(crons.look, device.cron),
    }

    @callback
    def beat(_now):
        for what, act in each_minute.items():
            if act:
                tasks.guard(status, what, act)

    check_entities_soon(device)
    device.forget_heartbeat = async_track_time_interval(hass, beat, HEARTBEAT, cancel_on_shutdown=True)


@pyscript_compile
def follow_state_of_charge(device: Any) -> Any:
    """Return the state of charge of `soc_entity`, followed from now on."""
    given = device.configuration
    powers = [given.power_capacity, given.consumption_capacity, given.production_capacity]
    meters = [item for item in given.measurements if item["sensor"] == given.power_sensor]
    read = reader(device.hass, meters[0]["entity"], meters[0].get("unit")) if meters else None

    def power_measured() -> float | None:
        value, unit = read() if read else (None, None)
        if value is None or unit not in quantities.POWER_UNITS:
            return None
        return measurements.sign_of(meters[0]) * quantities.power(value, unit)

    def when_known() -> None:
        plan_problem = device.status.problems.get(PLAN)
        if plan_problem is None or plan_problem.cause != NO_SOC:
            return
        if device.cron:
            crons.hurry(device.cron)
        else:
            statuses.settle(device.status, PLAN)

    state_of_charge = states_of_charge.StateOfCharge(
        hass=device.hass,
        entity=given.soc_entity,
        unit_if_none=given.soc_entity_unit,
        soc_unit=given.soc_unit,
        soc_min=given.soc_min,
        soc_max=given.soc_max,
        max_power=max([power for power in powers if power], default=None),
        max_age=given.soc_max_age,
        efficiency=(given.roundtrip_efficiency or 1.0) ** 0.5,
        change_planned=partial(change_planned, device),
        power_measured=power_measured,
        when_known=when_known,
    )
    state_of_charge.start()
    return state_of_charge


@pyscript_compile
def change_planned(device: Any, begin: datetime, end: datetime) -> float:
    """Return by how much (Wh) the schedules in force are to change the state of charge."""
    return schedules.change_planned(device.schedule, device.previous, begin, end)


@pyscript_compile
def check_entities_soon(device: Any) -> None:
    """Look whether the configured entities exist, once Home Assistant and their integrations have started."""

    @callback
    def check(_now: datetime) -> None:
        device.forget_entity_timer = None
        device.are_entities_due = True
        checks.check_entities(device)

    @callback
    def started(hass: Any) -> None:
        job = HassJob(check, cancel_on_shutdown=True)
        device.forget_entity_timer = async_call_later(hass, ENTITIES_SECONDS, job)

    device.forget_start = async_at_started(device.hass, started)


@pyscript_compile
def own_schedule(device):
    """Return the schedule in force, or None after its end."""
    schedule = device.schedule
    return schedule if schedule and schedule.end > dt_util.utcnow() else None


@pyscript_compile
def measure(device):
    """Post what is configured, and the state of charge."""
    given = device.configuration
    if given.soc_entity and given.soc_sensor:
        measurements.measure(
            device.measurements,
            given.soc_entity,
            given.soc_sensor,
            lambda: soc_reading(device),
            given.power_sensor,
            as_it_is=True,
            sign=None,
        )
    for item in given.measurements:
        measurements.measure(
            device.measurements,
            item["entity"],
            item["sensor"],
            reader(device.hass, item["entity"], item.get("unit")),
            given.power_sensor,
            item.get("resolution"),
            sign=measurements.sign_of(item),
        )


@pyscript_compile
def soc_reading(device):
    """Return the state of charge in the unit that suits its sensor, or None while it is not known."""
    given = device.configuration
    soc = device.state_of_charge.now()
    if soc is None:
        return None, None
    sensor = device.measurements.sensors.get(given.soc_sensor)
    if sensor and sensor.unit == "%":
        return quantities.rounded(soc / given.soc_max * 100), "%"
    return quantities.rounded(soc / quantities.energy(1, given.soc_unit)), given.soc_unit


@pyscript_compile
def reader(hass, entity, unit_if_none):
    """Return a function that returns an entity's value now, or None, and its unit."""
    entity_id, attribute = entities.split(entity)

    def read():
        state = hass.states.get(entity_id)
        if state is None:
            return None, None
        value, unit = entities.reading(state, attribute)
        return entities.number(value), unit or unit_if_none

    return read


@pyscript_compile
async def stop(device):
    """End the timers, the checks, a plan under way, the delivery and the session.

    The plan's caller is told to call again; nothing of it shows in the states.
    """
    device.stopped = True
    if device.forget_heartbeat:
        device.forget_heartbeat()
    if device.waking:
        paces.stop(device.waking)
    device.status.when_answered = None
    if device.cron:
        crons.stop(device.cron)
    if device.state_of_charge:
        device.state_of_charge.stop()
    for forget in (device.forget_start, device.forget_entity_timer):
        if forget:
            forget()
    for task in (device.check, device.asking, device.replanning):
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await stop_each(
        partial(resources.stop, device.resources) if device.resources else None,
        partial(end_schedule, device),
        partial(stop_measurements, device) if device.measurements else None,
        partial(outboxes.stop, device.outbox) if device.outbox else None,
    )
    if device.link:
        device.link.close()


@pyscript_compile
async def stop_each(*stops: Any) -> None:
    """Stop one part after the other; one that fails keeps none of the others from it."""
    for stop_part in stops:
        try:
            if stop_part:
                await stop_part()
        except Exception:
            LOGGER.exception("Stopping failed in part: please report this")


@pyscript_compile
async def end_schedule(device: Device) -> None:
    """End the timer of the schedule's next value, once no plan is under way any more."""
    async with device.planning:
        if device.forget_boundary:
            device.forget_boundary()
            device.forget_boundary = None


@pyscript_compile
async def stop_measurements(device: Device) -> None:
    """End the measurements, which remember what the server said of sensors."""
    device.measurements.sensors |= device.link.sensors
    await measurements.stop_all(device.measurements)


@pyscript_compile
def recovered(device: Any, was_away: bool = True) -> None:
    """Do now what has failed, since the server answers, and make plans anew where it did not before."""
    device.check_pause = FIRST_PAUSE_SECONDS
    wake(device, is_back=True, was_away=was_away)


@pyscript_compile
def wake(device: Any, is_back: bool = False, was_away: bool = False) -> bool:
    """Do now what waits for the server, since that does something for us; return True: not again at once.

    `is_back` tells that it answers as such, and `was_away` that it did not before: see resources.urge.
    """
    device.answered.set()
    outboxes.urge(device.outbox)
    is_away = any(problem.cause in statuses.OF_THE_SERVER for problem in device.status.problems.values())
    if device.resources and (is_away or is_back):
        resources.urge(device.resources, was_away)
    plan_problem = device.status.problems.get(PLAN)
    if device.cron and plan_problem and plan_problem.cause in statuses.OF_THE_SERVER:
        crons.hurry(device.cron)
    return True


@pyscript_compile
def look_for_server(device, pause):
    """Check the server in the background, after a pause (s), unless that is under way."""
    if not device.stopped and (device.check is None or device.check.done()):
        device.check = tasks.supervise(device.status, "check of the server", partial(check, device, pause))


@pyscript_compile
async def check(device, pause):
    """Ask the server for all that is configured, so that a wrong host, login or number shows at once.

    It is asked again, with growing pauses, until all is right. Of a server that answers here, but fails
    over all that follows, the next check comes later each time.
    """
    next_check_pause = min(2 * pause, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS
    was_away = pause > 0
    await asyncio.sleep(pause)
    while True:
        device.answered.clear()
        pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        error = await checks.look_up(device)
        await measurements.learn(device.measurements, device.link.sensors)
        if error is None:
            break
        was_away = True
        statuses.fail_with(device.status, statuses.SERVER, error, checks.with_key(device, error))
        pause = max(pause if error.temporary else LONGEST_PAUSE_SECONDS, error.retry_after or 0)
        with suppress(TimeoutError):
            await asyncio.wait_for(device.answered.wait(), pause)
    statuses.succeed(device.status, statuses.SERVER, server_version=server_version(device))
    recovered(device, was_away)
    device.check_pause = next_check_pause


@pyscript_compile
def server_version(device):
    """Return the version that the server told last, or None."""
    return device.link.client.server_version


@pyscript_compile
def last_success(device):
    """Return when the schedule in force was made, in Home Assistant's time zone, or None."""
    return device.schedule and dt_util.as_local(device.schedule.updated_at).isoformat()


@pyscript_compile
async def plan(device, call, by_user: bool = True, is_wanted: Callable[[], bool] = lambda: True):
    """Ask FlexMeasures for a schedule, show it, and return it as a response.

    `call` holds the service's fields, checked. Plans of one device are made one after the other. Raise
    HomeAssistantError or ServiceValidationError; the schedule before stays then. What a user's call has wrong
    is told to the caller alone. Nothing is done, and None returned, where it is not wanted any more once it
    is its turn.
    """
    asked_at = dt_util.utcnow()
    given = device.configuration
    async with device.planning:
        refuse_if_stopped(device)
        if not is_wanted():
            return None
        with told(device, call if by_user else None):
            device.asking = asyncio.ensure_future(
                question.ask(
                    device.hass,
                    given,
                    device.link,
                    device.state_of_charge,
                    partial(change_planned, device),
                    partial(beside, device),
                    call,
                    asked_at,
                )
            )
            schedule = await device.asking
            refuse_if_stopped(device)
            device.last_call = call
            accept(device, schedule)
            await schedule_store.save(device.store, given.power_sensor, device.schedule, device.previous)
    return schedule_state.response(schedule, dt_util.get_default_time_zone())


@pyscript_compile
async def beside(device, start, end, step, raw):
    """Return the flex-context's fields that count the Resource Managers in; none without S2."""
    return await resources.beside(device.resources, start, end, step, raw) if device.resources else {}


@pyscript_compile
def of_s2(act):
    """Return what a service does with the device's Resource Managers, by a function of those."""

    async def handle(device, call):
        if device.resources is None:
            raise HomeAssistantError("S2 is switched off: set s2.enabled to true, and reload the scripts")
        return await act(device.resources, call)

    return handle


@pyscript_compile
def refuse_if_stopped(device):
    """Send a caller away whom a reload of the scripts has overtaken."""
    if device.stopped:
        raise HomeAssistantError("The scripts were reloaded meanwhile: call again")


@pyscript_compile
@contextmanager
def told(device, call: dict[str, Any] | None):
    """Show `planning` meanwhile; show a failure, and raise it as Home Assistant's own.

    What lies in a user's `call` is not shown, but raised as ServiceValidationError. Without one, it lies in
    the configuration, or in what an entity tells.
    """
    status = device.status
    status.planning = True
    statuses.show(status)
    try:
        yield
    except BaseException as error:
        refuse_if_stopped(device)
        status.planning = False
        is_callers = isinstance(error, ServiceValidationError) and call is not None
        if is_callers or not isinstance(error, Exception):
            statuses.show(status)
            raise
        if call is not None and lies_in_call(device, error, call):
            statuses.show(status)
            raise ServiceValidationError(str(error)) from error
        if device.cron:
            crons.failed(device.cron, error)
        if isinstance(error, errors.FlexMeasuresError):
            text = checks.with_key(device, error)
            statuses.fail_with(status, PLAN, error, text)
            raise HomeAssistantError(text) from error
        if isinstance(error, ServiceValidationError):
            statuses.fail(status, PLAN, str(error), cause="failed")
            raise
        if isinstance(error, states_of_charge.NoStateOfCharge):
            statuses.fail(status, PLAN, str(error), cause=NO_SOC, temporary=True)
            raise
        LOGGER.exception("Planning failed unexpectedly")
        what = fields.short(f"{type(error).__name__}: {error}")
        text = f"Planning failed unexpectedly ({what}): please report the log"
        statuses.fail(status, PLAN, text, cause="failed")
        raise HomeAssistantError(text) from error


@pyscript_compile
def lies_in_call(device: Any, error: BaseException, call: dict[str, Any]) -> bool:
    """Tell whether a plan failed over raw fields of the call, or over a start beyond all prices."""
    if isinstance(error, errors.PricesMissing):
        return "start" in call and call["start"] > dt_util.utcnow()
    if not ("flex_model" in call or "flex_context" in call):
        return False
    if isinstance(error, (errors.UnknownSensor, errors.NoAccess)):
        return checks.with_key(device, error) == str(error)
    return isinstance(error, (errors.InvalidProblem, errors.Infeasible))


@pyscript_compile
def accept(device, schedule):
    """Put a new schedule in force: remember it, show it, tell it."""
    before = device.schedule
    if before and before.unit == schedule.unit and before.covers(schedule.updated_at):
        device.previous = before
    elif device.previous and device.previous.unit != schedule.unit:
        device.previous = None
    device.schedule, device.attributes = schedule, None
    device.status.planning = False
    show(device)
    statuses.succeed(
        device.status,
        PLAN,
        last_success=last_success(device),
        server_version=server_version(device),
        prices_known_until=schedule_state.local(schedule.prices_known_until),
    )
    if device.cron:
        crons.planned(device.cron)
    if device.resources:
        resources.own_schedule_changed(device.resources)
    device.hass.bus.async_fire(
        UPDATED,
        {"entity_id": schedule_state.ENTITY_ID}
        | {name: device.attributes[name] for name in ("start", "duration", "resolution", "missed_targets")}
        | {"unit": schedule.unit},
    )


@pyscript_compile
def show(device):
    """Show the value that is due now, and come back at the next boundary.

    The status rests at `stale` after the schedule's end.
    """
    now = dt_util.utcnow()
    if device.attributes is None:
        device.attributes = {"schedule": [], **schedule_state.naming(device.configuration.schedule_unit)}
        if device.schedule is not None:
            zone = dt_util.get_default_time_zone()
            device.attributes = schedule_state.attributes(device.schedule, zone)
    value = schedule_state.due(device.schedule, device.previous, now)
    device.hass.states.async_set(
        schedule_state.ENTITY_ID, value, device.attributes, state_info=schedule_state.STATE_INFO
    )
    ended = device.schedule is not None and device.schedule.end <= now
    device.status.resting = "stale" if ended else "ok"
    statuses.show(device.status)
    if device.forget_boundary:
        device.forget_boundary()
        device.forget_boundary = None
    boundary = schedule_state.next_change(device.schedule, device.previous, now)
    if boundary is None:
        return

    @callback
    def renew(_now):
        device.forget_boundary = None
        show(device)

    job = HassJob(renew, cancel_on_shutdown=True)
    device.forget_boundary = async_track_point_in_utc_time(device.hass, job, boundary)
