"""The app's own device: it is planned, its schedule is kept and shown, its measurements are posted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import homeassistant.util.dt as dt_util
from homeassistant.core import CALLBACK_TYPE, HassJob, HomeAssistant, callback
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
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_home.kept as kept
import flexmeasures_home.measurements as measurements
import flexmeasures_home.new_prices as new_prices
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.resources as resources
import flexmeasures_home.schedule_state as schedule_state
import flexmeasures_home.schedule_store as schedule_store
import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks
from flexmeasures_api.connection import Connection
from flexmeasures_api.schedule import Schedule
from flexmeasures_home.backoff import Backoff
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.cron import Cron
from flexmeasures_home.kept import KeptFile
from flexmeasures_home.measurements import Measurements
from flexmeasures_home.outbox import Outbox
from flexmeasures_home.resources import Resources
from flexmeasures_home.schedule_call import ScheduleCall
from flexmeasures_home.state_of_charge import NoStateOfCharge, StateOfCharge
from flexmeasures_home.status import Status
from flexmeasures_home.throttle import Throttle

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
CLIENT_LOGGER = "custom_components.pyscript.flexmeasures.client"
UPDATED = "flexmeasures_schedule_updated"
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 10, 300
HEARTBEAT = timedelta(minutes=1)
SECONDS_BETWEEN_WAKES = 30
"""The time between retries of all that waits for the server, each of which a successful request triggers."""
ENTITIES_SECONDS = 30
"""How long after Home Assistant's start an entity must exist."""
PLAN = "plan"
NO_SOC = "no_soc"
Stop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(repr=False)
class _Device:
    """The device with its connection, the schedule in force and the one before it.

    `state_of_charge` is that of `soc_entity`. `last_call` has the fields of the call that the schedule in
    force was made for, if it is known. `stops` stop the parts that were started, the last one first. New
    prices are looked for at `prices_due`. `server_check` checks the server in the background, for the first
    time after `check_pause`; `answered` wakes it when the server does something for us. `waking` limits how
    often all that waits for the server is retried. `schedule_task` is the request under way, `replanning`
    plans with new prices.
    """

    hass: HomeAssistant
    configuration: Configuration
    status: Status
    store: KeptFile
    link: Connection = field(init=False)
    outbox: Outbox = field(init=False)
    measurements: Measurements = field(init=False)
    stops: list[Stop] = field(default_factory=list)
    cron: Cron | None = None
    resources: Resources | None = None
    state_of_charge: StateOfCharge | None = None
    last_call: dict[str, Any] | None = None
    prices_due: datetime | None = None
    are_entities_due: bool = False
    cancel_start: CALLBACK_TYPE | None = None
    cancel_entity_timer: CALLBACK_TYPE | None = None
    schedule: Schedule | None = None
    previous: Schedule | None = None
    cancel_boundary: CALLBACK_TYPE | None = None
    cancel_heartbeat: CALLBACK_TYPE | None = None
    server_check: asyncio.Task[None] | None = None
    check_pause: float = FIRST_PAUSE_SECONDS
    schedule_task: asyncio.Future[Schedule] | None = None
    replanning: asyncio.Task[None] | None = None
    attributes: dict[str, Any] | None = None
    stopped: bool = False
    planning: asyncio.Lock = field(default_factory=asyncio.Lock)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    waking: Throttle | None = None

    @pyscript_compile
    async def start(self) -> None:
        """Connect, continue where the app before stopped, and check the server in the background."""
        hass, given, status = self.hass, self.configuration, self.status
        self._connect()
        if not given.cron:
            status.untried.add(PLAN)
        statuses.dismiss(hass)
        self.schedule, self.previous = await schedule_store.load(self.store, given.power_sensor)
        until = self.schedule.prices_known_until if self.schedule else None
        status.show(last_success=self._last_success, prices_known_until=schedule_state.local(until))
        self.show()
        self.stops.append(self.end_schedule)
        if given.soc_entity:
            self.state_of_charge = self._follow_state_of_charge(given.soc_entity)
        self.outbox = await outboxes.start(hass, self.link, status, f"{given.username} {self.link.host}")
        self.stops.append(self.outbox.stop)
        self.measurements = await measurements.load(hass, self.outbox)
        self.stops.append(self._stop_measurements)
        self.measure()
        await self.measurements.save()
        if given.s2.enabled:
            self.resources = await resources.start(
                hass,
                given,
                link=self.link,
                outbox=self.outbox,
                status=status,
                meters=self.measurements,
                planning=self.planning,
                own_schedule=self._schedule_in_force,
            )
            self.stops.append(partial(resources.stop, self.resources))
        self._watch_server()
        if given.cron:
            self.cron = Cron(hass, status, given.cron, self._plan_by_cron)
            self.cron.start(self.schedule.updated_at if self.schedule else None)
        self._check_entities_soon()
        self._start_heartbeat()

    @pyscript_compile
    def _connect(self) -> None:
        """Connect with the server, without a request yet."""
        given = self.configuration
        tokens = [resource.get("token") for resource in given.s2.resources.values()]
        self.link = connection.connect(
            host=given.host,
            username=given.username,
            password=given.password,
            connector=async_get_clientsession(self.hass).connector,
            logger_name=CLIENT_LOGGER,
            secrets=(given.s2.token, *tokens),
            other_loggers=(LOGGER.name, f"{LOGGER.name}.s2"),
        )
        self.stops.append(self._close_connection)
        self.status.redact = self.link.redact

    @pyscript_compile
    def _watch_server(self) -> None:
        """Check the server now, and retry what failed whenever it answers again."""
        self.waking = Throttle(self.hass, self._wake, SECONDS_BETWEEN_WAKES)
        self.status.when_recovered = self._recovered
        self.status.when_answered = self.waking.request
        self.status.when_unreachable = self._check_server_again
        self.check_server_in_background(0)

    @pyscript_compile
    def _start_heartbeat(self) -> None:
        """Do each minute what is due then."""
        each_minute: dict[str, Callable[[], object] | None] = {
            "schedule's state": self.show,
            "state of charge": self.state_of_charge.look if self.state_of_charge else None,
            "check of the entities": self._check_entities,
            "look for new prices": partial(new_prices.look, self),
            "notices": self.status.expire_notices,
            "files": partial(kept.save_again, self.status),
            "measurements": self.measurements.look_at_all,
            "clock of cron": self.cron.clamp_to_clock if self.cron else None,
        }

        @callback
        def on_heartbeat(_now: datetime) -> None:
            for what, act in each_minute.items():
                if act:
                    tasks.guard(self.status, what, act)

        self.cancel_heartbeat = async_track_time_interval(
            self.hass, on_heartbeat, HEARTBEAT, cancel_on_shutdown=True
        )

    @pyscript_compile
    async def stop(self) -> None:
        """Cancel the timers, the checks and a plan under way, and stop all parts.

        The plan's caller is told to call again; nothing of it shows in the states.
        """
        self.stopped = True
        self.status.when_answered = None
        if self.waking:
            self.waking.cancel()
        if self.cron:
            self.cron.stop()
        if self.state_of_charge:
            self.state_of_charge.stop()
        for cancel in (self.cancel_heartbeat, self.cancel_start, self.cancel_entity_timer):
            if cancel:
                cancel()
        for task in (self.server_check, self.schedule_task, self.replanning):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        while self.stops:
            stop_part = self.stops.pop()
            try:
                await stop_part()
            except Exception:
                LOGGER.exception("Stopping failed in part: please report this")

    @pyscript_compile
    async def end_schedule(self) -> None:
        """Cancel the timer of the schedule's next value, once no plan is under way any more."""
        async with self.planning:
            self._cancel_boundary()

    @pyscript_compile
    async def _stop_measurements(self) -> None:
        """Stop the measurements, which remember what the server said of sensors."""
        self.measurements.sensors |= self.link.sensors
        await self.measurements.stop()

    @pyscript_compile
    async def _close_connection(self) -> None:
        self.link.close()

    @pyscript_compile
    def refuse_if_stopped(self) -> None:
        """Raise HomeAssistantError if a reload of the scripts has overtaken a call."""
        if self.stopped:
            raise HomeAssistantError("The scripts were reloaded meanwhile: call again")

    @pyscript_compile
    def _follow_state_of_charge(self, soc_entity: str) -> StateOfCharge:
        """Return the state of charge of `soc_entity`, followed from now on."""
        given = self.configuration
        powers = [given.power_capacity, given.consumption_capacity, given.production_capacity]
        meter = next((item for item in given.measurements if item["sensor"] == given.power_sensor), None)
        state_of_charge = StateOfCharge(
            hass=self.hass,
            entity=soc_entity,
            unit_if_none=given.soc_entity_unit,
            soc_unit=given.soc_unit,
            soc_min=given.soc_min,
            soc_max=given.soc_max,
            max_power=max([power for power in powers if power], default=None),
            max_age=given.soc_max_age,
            efficiency=(given.roundtrip_efficiency or 1.0) ** 0.5,
            change_planned=self.change_planned,
            power_measured=power_reader(self.hass, meter),
            when_known=self._state_of_charge_known,
        )
        state_of_charge.start()
        return state_of_charge

    @pyscript_compile
    def _state_of_charge_known(self) -> None:
        """Retry a plan that failed since the state of charge was not known."""
        if self.status.has_cause(PLAN, [NO_SOC]):
            if self.cron:
                self.cron.retry_now()
            else:
                self.status.resolve(PLAN)

    @pyscript_compile
    def change_planned(self, begin: datetime, end: datetime) -> float:
        """Return by how much (Wh) the schedules in force are to change the state of charge."""
        return schedules.change_planned(self.schedule, self.previous, begin, end)

    @pyscript_compile
    def _schedule_in_force(self) -> Schedule | None:
        """Return the schedule in force, or None after its end."""
        schedule = self.schedule
        return schedule if schedule and schedule.end > dt_util.utcnow() else None

    @pyscript_compile
    def _check_entities_soon(self) -> None:
        """Check the configured entities once Home Assistant and their integrations have started."""

        @callback
        def check(_now: datetime) -> None:
            self.cancel_entity_timer = None
            self.are_entities_due = True
            self._check_entities()

        @callback
        def started(hass: HomeAssistant) -> None:
            job = HassJob(check, cancel_on_shutdown=True)
            self.cancel_entity_timer = async_call_later(hass, ENTITIES_SECONDS, job)

        self.cancel_start = async_at_started(self.hass, started)

    @pyscript_compile
    def _check_entities(self) -> None:
        if self.are_entities_due:
            checks.check_entities(self.hass, self.configuration, self.status)

    @pyscript_compile
    def measure(self) -> None:
        """Post the configured measurements, and the state of charge."""
        given = self.configuration
        if given.soc_entity and given.soc_sensor:
            self.measurements.measure(
                given.soc_entity,
                given.soc_sensor,
                self._soc_reading,
                pacemaker=given.power_sensor,
                is_momentary=True,
                sign=None,
            )
        for item in given.measurements:
            self.measurements.measure(
                item["entity"],
                item["sensor"],
                reader(self.hass, item["entity"], item.get("unit")),
                pacemaker=given.power_sensor,
                step=item.get("resolution"),
                sign=measurements.sign_of(item),
            )

    @pyscript_compile
    def _soc_reading(self) -> tuple[float | None, str | None]:
        """Return the state of charge and its unit, % if that is the sensor's; None while it is unknown."""
        given = self.configuration
        soc = self.state_of_charge.now() if self.state_of_charge else None
        if soc is None:
            return None, None
        sensor = self.measurements.sensors.get(given.soc_sensor) if given.soc_sensor else None
        if sensor and sensor.unit == "%":
            return quantities.rounded(soc / given.soc_max * 100), "%"
        return quantities.rounded(soc / quantities.energy(1, given.soc_unit)), given.soc_unit

    @pyscript_compile
    def _recovered(self, *, was_away: bool = True) -> None:
        """Retry what has failed, since the server answers; plan anew if it did not before."""
        self.check_pause = FIRST_PAUSE_SECONDS
        self._wake(is_back=True, was_away=was_away)

    @pyscript_compile
    def _wake(self, *, is_back: bool = False, was_away: bool = False) -> bool:
        """Retry what waits for the server, since that does something for us; return True, for the throttle.

        `is_back` tells that the server answers, and `was_away` that it did not before: see
        resources.retry_now.
        """
        self.answered.set()
        self.outbox.retry_now()
        of_the_server = statuses.OF_THE_SERVER
        is_away = any(problem.cause in of_the_server for problem in self.status.problems.values())
        if self.resources and (is_away or is_back):
            resources.retry_now(self.resources, was_away)
        if self.cron and self.status.has_cause(PLAN, of_the_server):
            self.cron.retry_now()
        return True

    @pyscript_compile
    def _check_server_again(self) -> None:
        self.check_server_in_background(self.check_pause)

    @pyscript_compile
    def check_server_in_background(self, pause_seconds: float) -> None:
        """Check the server in the background, after a pause, unless that is under way."""
        if not self.stopped and (self.server_check is None or self.server_check.done()):
            work = partial(self._check_server, pause_seconds)
            self.server_check = tasks.supervise(self.status, "check of the server", work)

    @pyscript_compile
    async def _check_server(self, pause_seconds: float) -> None:
        """Check all that is configured, so that a wrong host, login or number shows at once.

        This is repeated, with growing pauses, until all is right. While the server answers this check, but
        fails all other requests, the next check comes later each time.
        """
        was_away = pause_seconds > 0
        backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        if was_away:
            backoff.seconds = pause_seconds
            backoff.grow()
        next_check_pause = backoff.seconds
        await asyncio.sleep(pause_seconds)
        while True:
            self.answered.clear()
            error = await checks.check_server(self.link, self.configuration)
            await self.measurements.remember(self.link.sensors)
            if error is None:
                break
            was_away = True
            text = checks.with_key(self.configuration, error)
            self.status.fail_with(statuses.SERVER, error, text)
            if not error.temporary:
                backoff.seconds = MAX_PAUSE_SECONDS
            backoff.seconds = max(backoff.seconds, error.retry_after or 0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.answered.wait(), backoff.seconds)
            backoff.grow()
        self.status.succeed(statuses.SERVER, server_version=self._server_version)
        self._recovered(was_away=was_away)
        self.check_pause = next_check_pause

    @property
    @pyscript_compile
    def _server_version(self) -> str | None:
        """Return the version that the server reported last, or None."""
        version: str | None = self.link.client.server_version
        return version

    @property
    @pyscript_compile
    def _last_success(self) -> str | None:
        """Return when the schedule in force was made, in Home Assistant's time zone, or None."""
        return schedule_state.local(self.schedule.updated_at if self.schedule else None)

    @pyscript_compile
    def _plan_by_cron(self, start: datetime) -> Coroutine[Any, Any, dict[str, Any] | None]:
        return self.plan({"start": start}, by_user=False)

    @pyscript_compile
    async def plan(
        self, call: dict[str, Any], *, by_user: bool = True, is_wanted: Callable[[], bool] | None = None
    ) -> dict[str, Any] | None:
        """Ask FlexMeasures for a schedule, show it, and return it as a response.

        `call` has the service's fields, checked. Only one plan is made at a time. Raise HomeAssistantError or
        ServiceValidationError; the previous schedule stays then. Mistakes in a user's call are raised, but
        not shown. Return None if the plan `is_wanted` no longer when it is its turn.
        """
        asked_at = dt_util.utcnow()
        async with self.planning:
            self.refuse_if_stopped()
            if is_wanted is not None and not is_wanted():
                return None
            with shown(self, call if by_user else None):
                schedule_call = ScheduleCall(
                    hass=self.hass,
                    configuration=self.configuration,
                    link=self.link,
                    state_of_charge=self.state_of_charge,
                    change_planned=self.change_planned,
                    other_loads=self._other_loads,
                    fields=call,
                    asked_at=asked_at,
                )
                self.schedule_task = asyncio.ensure_future(schedule_call.plan())
                schedule = await self.schedule_task
                self.refuse_if_stopped()
                self.last_call = call
                self._activate(schedule)
                power_sensor = self.configuration.power_sensor
                await schedule_store.save(self.store, power_sensor, self.schedule, self.previous)
        return schedule_state.response(schedule, dt_util.get_default_time_zone())

    @pyscript_compile
    async def _other_loads(
        self, start: datetime, end: datetime, step: timedelta, raw: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the flex-context's fields for the Resource Managers; none without S2."""
        return await resources.other_loads(self.resources, start, end, step, raw) if self.resources else {}

    @pyscript_compile
    def plan_failed(self, error: Exception) -> NoReturn:
        """Show a failed plan, and raise it as Home Assistant's own error."""
        if self.cron:
            self.cron.plan_failed(error)
        if isinstance(error, errors.FlexMeasuresError):
            text = checks.with_key(self.configuration, error)
            self.status.fail_with(PLAN, error, text)
            raise HomeAssistantError(text) from error
        if isinstance(error, ServiceValidationError):
            self.status.fail(PLAN, str(error), cause="failed")
            raise error
        if isinstance(error, NoStateOfCharge):
            self.status.fail(PLAN, str(error), cause=NO_SOC, temporary=True)
            raise error
        LOGGER.error("Planning failed unexpectedly", exc_info=error)
        what = fields.short(f"{type(error).__name__}: {error}")
        text = f"Planning failed unexpectedly ({what}): please report the log"
        self.status.fail(PLAN, text, cause="failed")
        raise HomeAssistantError(text) from error

    @pyscript_compile
    def is_fault_of_call(self, error: BaseException, call: dict[str, Any]) -> bool:
        """Tell whether a plan failed due to raw fields of the call, or a start after all known prices."""
        if isinstance(error, errors.PricesMissing):
            return "start" in call and call["start"] > dt_util.utcnow()
        if not ("flex_model" in call or "flex_context" in call):
            return False
        if isinstance(error, (errors.UnknownSensor, errors.NoAccess)):
            return checks.with_key(self.configuration, error) == str(error)
        return isinstance(error, (errors.InvalidProblem, errors.Infeasible))

    @pyscript_compile
    def _activate(self, schedule: Schedule) -> None:
        """Put a new schedule in force: remember it, show it, and fire the event."""
        before = self.schedule
        if before and before.unit == schedule.unit and before.covers(schedule.updated_at):
            self.previous = before
        elif self.previous and self.previous.unit != schedule.unit:
            self.previous = None
        self.schedule, self.attributes = schedule, None
        self.status.planning = False
        attributes = self.show()
        self.status.succeed(
            PLAN,
            last_success=self._last_success,
            server_version=self._server_version,
            prices_known_until=schedule_state.local(schedule.prices_known_until),
        )
        if self.cron:
            self.cron.plan_succeeded()
        if self.resources:
            resources.own_schedule_changed(self.resources)
        self.hass.bus.async_fire(
            UPDATED,
            {"entity_id": schedule_state.ENTITY_ID}
            | {name: attributes[name] for name in ("start", "duration", "resolution", "missed_targets")}
            | {"unit": schedule.unit},
        )

    @pyscript_compile
    def show(self) -> dict[str, Any]:
        """Show the value that is due now, come back at the next boundary, and return the attributes.

        The status rests at `stale` after the schedule's end.
        """
        now = dt_util.utcnow()
        attributes = self.attributes
        if attributes is None:
            attributes = {"schedule": [], **schedule_state.naming(self.configuration.schedule_unit)}
            if self.schedule is not None:
                attributes = schedule_state.attributes(self.schedule, dt_util.get_default_time_zone())
            self.attributes = attributes
        value = schedule_state.due(self.schedule, self.previous, now)
        self.hass.states.async_set(
            schedule_state.ENTITY_ID, str(value), attributes, state_info=schedule_state.STATE_INFO
        )
        has_ended = self.schedule is not None and self.schedule.end <= now
        self.status.resting = "stale" if has_ended else "ok"
        self.status.show()
        self._cancel_boundary()
        boundary = schedule_state.next_change(self.schedule, self.previous, now)
        if boundary is not None:

            @callback
            def at_boundary(_now: datetime) -> None:
                self.cancel_boundary = None
                self.show()

            job = HassJob(at_boundary, cancel_on_shutdown=True)
            self.cancel_boundary = async_track_point_in_utc_time(self.hass, job, boundary)
        return attributes

    @pyscript_compile
    def _cancel_boundary(self) -> None:
        if self.cancel_boundary:
            self.cancel_boundary()
            self.cancel_boundary = None


Device = _Device
Act = Callable[[Device, dict[str, Any]], Awaitable[dict[str, Any] | None]]
"""What a service does with the device and a call's fields, checked; it returns the response."""


@pyscript_compile
def new(hass: HomeAssistant, configuration: Configuration, status: Status) -> Device:
    """Return a device that is not yet started."""
    return Device(hass, configuration, status, schedule_store.new(hass, status))


@pyscript_compile
def reader(hass: HomeAssistant, entity: str, unit_if_none: str | None) -> measurements.Read:
    """Return a function that returns an entity's present value, or None, and its unit."""
    entity_id, attribute = entities.split(entity)

    def read() -> tuple[float | None, str | None]:
        state = hass.states.get(entity_id)
        if state is None:
            return None, None
        value, unit = entities.reading(state, attribute)
        return entities.number(value), unit or unit_if_none

    return read


@pyscript_compile
def power_reader(hass: HomeAssistant, meter: dict[str, Any] | None) -> Callable[[], float | None]:
    """Return a function that returns the power (W) of a configured measurement, or None."""
    if meter is None:
        return no_power
    read, sign = reader(hass, meter["entity"], meter.get("unit")), measurements.sign_of(meter)

    def read_power() -> float | None:
        value, unit = read()
        if value is None or unit not in quantities.POWER_UNITS:
            return None
        return sign * quantities.power(value, unit)

    return read_power


@pyscript_compile
def no_power() -> None:
    """Return None: the device's power is not measured."""


@pyscript_compile
def of_s2(act: Callable[[Resources, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Act:
    """Return what a service does with the device, by a function of its Resource Managers."""

    async def handle(device: Device, call: dict[str, Any]) -> dict[str, Any]:
        if device.resources is None:
            raise HomeAssistantError("S2 is switched off: set s2.enabled to true, and reload the scripts")
        return await act(device.resources, call)

    return handle


@pyscript_compile
@contextmanager
def shown(device: Device, call: dict[str, Any] | None) -> Iterator[None]:
    """Show `planning` meanwhile; show a failure, and raise it as Home Assistant's own error.

    Mistakes in a user's `call` are not shown, but raised as ServiceValidationError. Without a call, the
    mistake is in the configuration, or in the state of an entity.
    """
    status = device.status
    status.planning = True
    status.show()
    try:
        yield
    except BaseException as error:
        device.refuse_if_stopped()
        status.planning = False
        is_callers = isinstance(error, ServiceValidationError) and call is not None
        if is_callers or not isinstance(error, Exception):
            status.show()
            raise
        if call is not None and device.is_fault_of_call(error, call):
            status.show()
            raise ServiceValidationError(str(error)) from error
        device.plan_failed(error)
