"""The S2 side of the app: Resource Managers connect, and get their sensors on FlexMeasures."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from homeassistant.core import HomeAssistant, valid_entity_id
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError

import flexmeasures_api.errors as errors
import flexmeasures_api.provisioning as provisioning
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_cem.cem as cems
import flexmeasures_cem.errors as cem_errors
import flexmeasures_cem.site.costs as costs
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.kept_plans as kept_plans
import flexmeasures_cem.site.planner as planner
import flexmeasures_cem.site.triggers as triggers
import flexmeasures_home.kept as kept
import flexmeasures_home.resource_state as resource_state
import flexmeasures_home.site_plan as site_plan
import flexmeasures_home.site_state as site_state
import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks
import flexmeasures_s2.control_types as control_types
import flexmeasures_s2.errors as s2_errors
import flexmeasures_s2.listener as listeners
import flexmeasures_s2.messages as messages
from flexmeasures_api.connection import Connection, Sensor
from flexmeasures_api.provisioning import DeviceIds
from flexmeasures_api.schedule import Schedule
from flexmeasures_home.backoff import Backoff
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.kept import KeptFile
from flexmeasures_home.measurements import Measurements
from flexmeasures_home.outbox import Outbox
from flexmeasures_home.site_plan import SitePlanRequest
from flexmeasures_home.status import Status
from flexmeasures_home.telemetry import Telemetry
from flexmeasures_s2.session import Session

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
PROBLEM_KEY = "s2"
NOT_LISTENING = "s2_not_listening"
SECONDS_BETWEEN_TRIES = 0.25
QUICK_TRIES = 20
"""How often to try in quick succession: the listener before a reload may take a moment to free its port."""
SECONDS_BETWEEN_LATER_TRIES = 30
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 10, 300
SAVING_SECONDS = 5
MAX_KNOWN = 1000
MAX_NEW_ASSETS = 256
"""How many assets are created in one life of the app."""


@dataclass(repr=False, kw_only=True)
class _Resources:
    """The listener, the CEM behind it, the site's planner, and the telemetry of each Resource Manager.

    `given` is the app's configuration, `telemetry` is by resource_id, and `learning` has the tasks that find
    the sensors, by resource_id; only one of them creates anything on the server at a time, and `new_assets`
    counts the assets. `users` is the content of the file by user, for all users of all servers; `meters` are
    the app's measurements, which remember what the server says of sensors.
    """

    hass: HomeAssistant
    given: Configuration
    link: Connection
    outbox: Outbox
    status: Status
    meters: Measurements
    store: KeptFile
    plan_request: SitePlanRequest
    cem: cems.Cem = field(init=False)
    listener: listeners.Listener = field(init=False)
    site: Any = field(init=False)
    telemetry: dict[str, Telemetry] = field(default_factory=dict)
    listening: asyncio.Task[None] | None = None
    learning: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    provisioning: asyncio.Lock = field(default_factory=asyncio.Lock)
    retry: asyncio.Event = field(default_factory=asyncio.Event)
    why_not_listening: str | None = None
    users: dict[str, Any] = field(default_factory=dict)
    is_to_be_saved: bool = False
    new_assets: int = 0
    stopped: bool = False


Resources = _Resources


@pyscript_compile
async def start(
    hass: HomeAssistant,
    given: Configuration,
    *,
    link: Connection,
    outbox: Outbox,
    status: Status,
    meters: Measurements,
    planning: asyncio.Lock,
    own_schedule: Callable[[], Schedule | None],
) -> Resources:
    """Show the Resource Managers that are known, listen for them, and plan them.

    `planning` is the lock that all plans are made under, `own_schedule()` returns that of the app's own
    device, or None.
    """
    side = Resources(
        hass=hass,
        given=given,
        link=link,
        outbox=outbox,
        status=status,
        meters=meters,
        store=KeptFile(hass, status, "resources", "the S2 devices, their sensors and control types"),
        plan_request=SitePlanRequest(
            given=given, link=link, status=status, planning=planning, own_schedule=own_schedule
        ),
    )
    side.site = site_plan.new(side.plan_request, partial(telemetry_of, side), partial(select_fallback, side))
    side.site.keep = lambda resource: save_soon(side)
    side.site.fault, side.site.run = partial(tasks.report_outcome, status), partial(tasks.supervise, status)
    side.cem = cems.Cem(
        partial(changed, side),
        partial(received, side),
        given.s2.control_type,
        leaving=partial(triggers.leave, side.site),
        with_token=frozenset(name for name, each in given.s2.resources.items() if "token" in each),
    )
    content, _none = await asyncio.gather(side.store.async_load(), asyncio.to_thread(kept_plans.prepare))
    side.users = side.store.part(content, "users", dict)
    for resource_id, item in side.store.part(content, "resources", dict).items():
        side.store.convert_or_report(partial(restore, side, resource_id), item)
    await save(side)
    s2 = given.s2
    side.listener = listeners.Listener(
        host=s2.host,
        port=s2.port,
        path=s2.path,
        events=cems.events(side.cem),
        ended=partial(cems.ended, side.cem),
        token=s2.token,
        tokens={name: each["token"] for name, each in s2.resources.items() if "token" in each},
        certificate=s2.certificate and hass.config.path(s2.certificate),
        key=s2.key and hass.config.path(s2.key),
        limits=s2.limits,
    )
    await asyncio.to_thread(messages.prepare)
    planner.start(side.site)
    side.site.costs_changed = partial(site_state.show, hass, side.site)
    side.site.comparing = side.site.run("costs of S2 devices", partial(costs.work, side.site))
    if not await listens_at_once(side):
        side.listening = tasks.supervise(status, "start of the S2 listener", partial(keep_trying, side))
    return side


@pyscript_compile
async def other_loads(
    side: Resources, start: datetime, end: datetime, step: timedelta, raw: dict[str, Any]
) -> dict[str, Any]:
    """Return the flex-context's fields for the Resource Managers: see site_plan.other_loads."""
    return await site_plan.other_loads(side.plan_request, start, end, step, raw)


@pyscript_compile
def select_fallback(side: Resources, resource: cems.Resource, session: Session, control_type: str) -> None:
    """Select another control type, since a Resource Manager cannot be planned under this one."""
    session.spawn(cems.select_fallback(side.cem, resource, session, control_type))


@pyscript_compile
def restore(side: Resources, resource_id: str, item: dict[str, Any]) -> None:
    """Restore a Resource Manager from the file; raise what is wrong with its `item`."""
    name, choice = kept.text(item["name"]), kept.optional(kept.text, item["choice"])
    entity_id = kept.text(item["entity_id"])
    if not (entity_id.startswith(resource_state.PREFIX) and valid_entity_id(entity_id)):
        raise ValueError("expected an entity of an S2 device")
    resource = cems.Resource(resource_id, name, choice)
    telemetry = new_telemetry(side, resource, entity_id)
    side.cem.resources[resource_id] = resource
    side.telemetry[resource_id] = telemetry
    own = side.store.part(side.store.part(side.users, side.outbox.user, dict), resource_id, dict)
    if own:
        side.store.convert_or_report(telemetry.restore, own)
        if plan := side.store.part(own, "plan", dict):
            side.store.convert_or_report(partial(kept_plans.recall, side.site, resource), plan)
    use_sensors(side, telemetry)
    telemetry.resume()


@pyscript_compile
async def listens_at_once(side: Resources) -> bool:
    """Listen, and return whether that succeeded; an unexpected failure is reported by the next try."""
    try:
        return await listen(side)
    except Exception:
        return False


@pyscript_compile
async def listen(side: Resources) -> bool:
    """Listen, and return whether that succeeded."""
    s2 = side.given.s2
    try:
        await side.listener.start()
    except s2_errors.CannotListen as error:
        side.why_not_listening = str(error)
        return False
    secure = "wss" if s2.certificate else "ws"
    LOGGER.info("Listening for S2 Resource Managers on %s://%s:%s%s", secure, s2.host, s2.port, s2.path)
    side.status.resolve(PROBLEM_KEY)
    return True


@pyscript_compile
async def keep_trying(side: Resources) -> None:
    """Retry to listen: often at first, then each half minute, with a notification."""
    tries = 0
    while not await listen(side):
        tries += 1
        if tries < QUICK_TRIES:
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            continue
        text = f"s2: {side.why_not_listening}. No device can connect; this is retried every half minute"
        if side.given.s2.is_configured:
            side.status.fail(PROBLEM_KEY, text, cause=NOT_LISTENING)
        elif tries == QUICK_TRIES:
            LOGGER.warning("%s", text)
        await asyncio.sleep(SECONDS_BETWEEN_LATER_TRIES)


@pyscript_compile
async def stop(side: Resources) -> None:
    """Close all sessions, free the port, and save the file."""
    side.stopped = True
    running = [task for task in (side.listening, *side.learning.values()) if task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await planner.stop(side.site)
    await side.listener.stop()
    for telemetry in side.telemetry.values():
        telemetry.stop()
    await save(side)


@pyscript_compile
def retry_now(side: Resources, was_away: bool) -> None:
    """Look for sensors and plan now, since the server answers.

    Devices with a schedule are planned too after an outage, or if the last request failed over the server.
    """
    side.retry.set()
    side.retry.clear()
    has_failed = side.status.has_cause(site_plan.PROBLEM_KEY, statuses.OF_THE_SERVER)
    if was_away or has_failed or triggers.are_awaited(side.site):
        triggers.plan_soon(side.site)


@pyscript_compile
def own_schedule_changed(side: Resources) -> None:
    """Plan the S2 devices anew if the schedule of the app's own device takes part of the site's capacity."""
    if side.site.connection.couples_devices:
        triggers.plan_soon(side.site)


@pyscript_compile
async def save(side: Resources) -> bool:
    """Write the file now, and return whether that succeeded; it is retried each minute."""
    return await asyncio.shield(side.store.async_save(content(side)))


@pyscript_compile
def save_soon(side: Resources) -> None:
    """Write the file in a moment, with all changes until then."""
    if not (side.stopped or side.is_to_be_saved):
        side.is_to_be_saved = True
        side.store.async_delay_save(partial(content, side), SAVING_SECONDS)


@pyscript_compile
def content(side: Resources) -> dict[str, Any]:
    """Return the file's content: the Resource Managers, and what there is of them on each user's server."""
    side.is_to_be_saved = False
    resources = {
        resource_id: {
            "name": telemetry.resource.name,
            "choice": telemetry.resource.choice,
            "entity_id": telemetry.entity_id,
        }
        for resource_id, telemetry in side.telemetry.items()
    }
    own = {
        resource_id: telemetry.as_json(is_stopped=side.stopped) | plan_as_json(side, resource_id)
        for resource_id, telemetry in side.telemetry.items()
    }
    return {"resources": resources, "users": side.users | {side.outbox.user: own}}


@pyscript_compile
def plan_as_json(side: Resources, resource_id: str) -> dict[str, Any]:
    """Return the plan that is kept for a Resource Manager, if there is one, as JSON's types.

    A plan that cannot be written is reported, and all else is saved.
    """
    kept_plan, what = kept_plans.of(side.site, resource_id), f"writing of the plan of {resource_id}"
    try:
        written = {"plan": kept_plans.as_json(kept_plan)} if kept_plan else {}
    except Exception as error:
        tasks.report_outcome(side.status, what, error)
        return {}
    tasks.report_outcome(side.status, what, None)
    return written


@pyscript_compile
def telemetry_of(side: Resources, resource: cems.Resource) -> Telemetry:
    """Return the telemetry of a Resource Manager, which is created if necessary."""
    if resource.resource_id not in side.telemetry:
        forget_longest_gone(side)
        taken = {telemetry.entity_id for telemetry in side.telemetry.values()}
        entity_id = resource_state.new_entity_id(resource.name, resource.resource_id, taken)
        telemetry = new_telemetry(side, resource, entity_id)
        side.telemetry[resource.resource_id] = telemetry
        use_sensors(side, telemetry)
    return side.telemetry[resource.resource_id]


@pyscript_compile
def new_telemetry(side: Resources, resource: cems.Resource, entity_id: str) -> Telemetry:
    """Return a telemetry whose state describes the plan too."""
    telemetry = Telemetry(side.hass, side.outbox, resource, entity_id)
    telemetry.plan_attributes = partial(site_plan.attributes, side.site, resource)
    return telemetry


@pyscript_compile
def use_sensors(side: Resources, telemetry: Telemetry) -> None:
    """Have a Resource Manager use the sensors that are configured for it, else those created for it.

    Without `auto_provision`, one that is not listed in `s2.resources` has the app's own sensors.
    """
    given, default = side.given, telemetry.provisioned
    listed = listed_for(side, telemetry)
    if not given.s2.auto_provision:
        default = DeviceIds(None, given.power_sensor, given.soc_sensor)
    telemetry.energy_per_fill_level = listed.get("energy_per_fill_level")
    telemetry.instruction_lead = listed.get("instruction_lead")
    telemetry.cycle_cost = listed.get("cycle_cost", 0.0)
    telemetry.ids = DeviceIds(
        default.asset,
        listed.get("power_sensor") or default.power_sensor,
        listed.get("soc_sensor") or default.soc_sensor,
    )
    telemetry.power_sensor = known_sensor(side, telemetry.ids.power_sensor)
    telemetry.soc_sensor = known_sensor(side, telemetry.ids.soc_sensor)


@pyscript_compile
def known_sensor(side: Resources, sensor_id: int | None) -> Sensor | None:
    """Return a sensor as the server described it last, or None."""
    return None if sensor_id is None else side.meters.sensors.get(sensor_id)


@pyscript_compile
def listed_for(side: Resources, telemetry: Telemetry) -> dict[str, Any]:
    """Return the item of `s2.resources` for a Resource Manager, by its resource_id, or by its name.

    An item by name is for one Resource Manager at a time: of those connected with the name, the one that has
    been known the longest, since any device can use a name.
    """
    resources, resource = side.given.s2.resources, telemetry.resource
    if resource.resource_id in resources:
        return resources[resource.resource_id]
    namesakes = connected_namesakes_of(side, telemetry)
    return {} if namesakes and namesakes[0] is not telemetry else resources.get(resource.name, {})


@pyscript_compile
def connected_namesakes_of(side: Resources, telemetry: Telemetry) -> list[Telemetry]:
    """Return the telemetry of each connected Resource Manager of one name, the longest known first.

    Resource Managers that `s2.resources` lists by their resource_id are left out.
    """
    return [
        namesake
        for namesake in side.telemetry.values()
        if namesake.resource.session
        and namesake.resource.name == telemetry.resource.name
        and namesake.resource.resource_id not in side.given.s2.resources
    ]


@pyscript_compile
def assign_listed(side: Resources, telemetry: Telemetry) -> None:
    """Assign an item of `s2.resources` by name to one alone of the Resource Managers with that name."""
    if telemetry.resource.name not in side.given.s2.resources:
        return
    namesakes = connected_namesakes_of(side, telemetry)
    for namesake in namesakes:
        before = namesake.ids
        use_sensors(side, namesake)
        if namesake.ids != before:
            namesake.are_sensors_checked = False
            learn_sensors(side, namesake)
    for namesake in namesakes[1:]:
        namesake.warn(
            f"{namesakes[0].resource.resource_id} has the same name, and the item of s2.resources with that "
            f"name: list both by their resource_id",
        )


@pyscript_compile
def forget_longest_gone(side: Resources) -> None:
    """Forget one Resource Manager that is not connected, if too many are known.

    It is one without a chosen control type if possible, and one with a token of its own last.
    """
    if len(side.telemetry) < MAX_KNOWN:
        return
    gone = [key for key, telemetry in side.telemetry.items() if telemetry.resource.session is None]
    gone.sort(key=partial(forget_order, side))
    for resource_id in gone[:1]:
        telemetry = side.telemetry.pop(resource_id)
        telemetry.stop()
        del side.cem.resources[resource_id]
        side.site.kept.pop(resource_id, None)
        if task := side.learning.pop(resource_id, None):
            task.cancel()
        side.hass.states.async_remove(telemetry.entity_id)


@pyscript_compile
def forget_order(side: Resources, resource_id: str) -> tuple[bool, bool]:
    """Sort key: the Resource Manager that is needed least comes first."""
    resource = side.telemetry[resource_id].resource
    has_token = bool({resource_id, resource.name} & side.cem.with_token)
    return has_token, resource.choice is not None


@pyscript_compile
def changed(side: Resources, resource: cems.Resource) -> None:
    """Process that a Resource Manager connected, disconnected, or is under another control type."""
    telemetry = telemetry_of(side, resource)
    triggers.changed(side.site, resource)
    telemetry.session_changed()
    if side.stopped:
        return
    if resource.session is not None:
        assign_listed(side, telemetry)
        learn_sensors(side, telemetry)
    save_soon(side)


@pyscript_compile
def received(side: Resources, resource: cems.Resource, message: Any) -> None:
    """Pass on an S2 message of a Resource Manager."""
    telemetry = telemetry_of(side, resource)
    before = len(telemetry.waiting)
    telemetry.received(message)
    triggers.received(side.site, resource, message)
    if len(telemetry.waiting) > before:
        save_soon(side)


@pyscript_compile
def learn_sensors(side: Resources, telemetry: Telemetry) -> None:
    """Find the sensors of a Resource Manager in the background, unless they are known or searched for."""
    resource_id = telemetry.resource.resource_id
    are_known = telemetry.are_sensors_checked and (telemetry.soc_sensor or not needs_soc_sensor(telemetry))
    if not are_known and resource_id not in side.learning:
        what = f"search for the sensors of {telemetry.resource.name} ({resource_id})"
        task = tasks.supervise(side.status, what, partial(find_sensors, side, telemetry))
        side.learning[resource_id] = task

        def forget(_task: asyncio.Task[None]) -> None:
            if side.learning.get(resource_id) is task:
                del side.learning[resource_id]
            tasks.resolve(side.status, what)

        task.add_done_callback(forget)


@pyscript_compile
def needs_soc_sensor(telemetry: Telemetry) -> bool:
    """Tell whether a Resource Manager that connected has a fill level to post."""
    return bool(control_types.ABBREVIATIONS["FRBC"] in cems.offered(telemetry.resource.last_session))


@pyscript_compile
async def find_sensors(side: Resources, telemetry: Telemetry) -> None:
    """Find the sensors; while the server is away, retry after growing pauses."""
    problem_key = f"{PROBLEM_KEY} {telemetry.resource.resource_id}"
    backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
    before = site_plan.planning_sensors_of(telemetry)
    while telemetry.resource.session:
        try:
            async with side.provisioning:
                await create_missing(side, telemetry)
            await look_up(side, telemetry)
        except errors.FlexMeasuresError as error:
            text = f"{telemetry.resource.name} ({telemetry.resource.resource_id}): {error}"
            side.status.fail_with(problem_key, error, text)
            if isinstance(error, errors.UnknownSensor):
                telemetry.provisioned = DeviceIds()
            pause_seconds = max(backoff.seconds, error.retry_after or 0)
        else:
            side.status.succeed(problem_key)
            warn_of_shared_sensor(side, telemetry)
            telemetry.sensors_known()
            if site_plan.planning_sensors_of(telemetry) != before:
                triggers.plan_soon(side.site)
            save_soon(side)
            return
        try:
            await asyncio.wait_for(side.retry.wait(), pause_seconds)
        except TimeoutError:
            backoff.grow()
    side.status.resolve(problem_key)


@pyscript_compile
def warn_of_shared_sensor(side: Resources, telemetry: Telemetry) -> None:
    """Warn if another connected Resource Manager posts to the same power sensor."""
    sensor = telemetry.power_sensor
    for other in side.telemetry.values():
        is_shared = sensor is not None and other.power_sensor == sensor and other is not telemetry
        if sensor is not None and is_shared and other.resource.session:
            telemetry.warn(
                f"{other.resource.name} has the same power_sensor, {sensor.id}: give each a power_sensor of "
                f"its own under s2.resources"
            )


@pyscript_compile
async def look_up(side: Resources, telemetry: Telemetry) -> None:
    """Read the sensors from the server, and remember them for times when it is away."""
    ids = telemetry.ids
    if ids.power_sensor is None:
        raise errors.UnknownSensor("there is no power sensor: give power_sensor under s2.resources")
    power = await sensor_data.power_sensor(side.link, ids.power_sensor)
    soc = await sensor_data.soc_sensor(side.link, ids.soc_sensor) if ids.soc_sensor else None
    telemetry.power_sensor, telemetry.soc_sensor, telemetry.are_sensors_checked = power, soc, True
    await side.meters.remember({sensor.id: sensor for sensor in (power, soc) if sensor})


@pyscript_compile
async def create_missing(side: Resources, telemetry: Telemetry) -> None:
    """Create the asset and sensors that a Resource Manager lacks; those that exist are reused."""
    use_sensors(side, telemetry)
    given, resource, ids = side.given, telemetry.resource, telemetry.ids
    is_complete = ids.power_sensor and (ids.soc_sensor or not needs_soc_sensor(telemetry))
    if not given.s2.auto_provision or is_complete:
        return
    if not telemetry.provisioned.asset and side.new_assets >= MAX_NEW_ASSETS:
        raise errors.NoAccess(
            f"{MAX_NEW_ASSETS} new Resource Managers connected since the start, so no more assets are "
            f"created: check that each keeps its resource_id, or name the sensors under s2.resources"
        )
    site = given.site or await provisioning.site_of(side.link, given.power_sensor)
    side.new_assets += not telemetry.provisioned.asset
    role = resource.last_session.details.roles[0].role.value
    telemetry.provisioned = await provisioning.provide(
        side.link,
        site,
        resource_id=resource.resource_id,
        name=resource.name,
        role=role,
        has_soc=needs_soc_sensor(telemetry),
    )
    use_sensors(side, telemetry)


@pyscript_compile
async def change_control_type(side: Resources, call: dict[str, Any]) -> dict[str, Any]:
    """Execute `flexmeasures.change_control_type`, and keep the choice.

    Raise ServiceValidationError for a mistake of the caller, HomeAssistantError for a failure; also if the
    choice holds, but could not be written.
    """
    with raised():
        resource = cems.connected(side.cem, call.get("resource_id"))
        await cems.change_control_type(side.cem, resource, call["control_type"])
    if not await save(side):
        raise HomeAssistantError(
            f"control_type: {resource.name} is under {call['control_type']} now, over reconnects too, but "
            f"only until a restart or reload: {side.store.why_unsaved}"
        )
    return {"resource_id": resource.resource_id, "control_type": cems.control_type(resource)}


@pyscript_compile
async def send_frbc_instruction(side: Resources, call: dict[str, Any]) -> dict[str, Any]:
    """Execute `flexmeasures.send_frbc_instruction`, if it fits the device's FRBC.SystemDescription.

    Raise ServiceValidationError for a mistake of the caller, HomeAssistantError for a failure.
    """
    with raised():
        resource = cems.connected(side.cem, call.get("resource_id"))
        sent = await instructions.send_instruction(side.site, resource, call)
    return {"resource_id": resource.resource_id} | site_plan.in_local_time(sent)


@pyscript_compile
async def call_cem_trigger_schedule(side: Resources, call: dict[str, Any]) -> dict[str, Any]:
    """Plan a Resource Manager again now, and return its instructions.

    Raise ServiceValidationError for a mistake of the caller, HomeAssistantError for a failure.
    """
    with raised():
        resource = cems.connected(side.cem, call.get("resource_id"))
        await triggers.plan_now(side.site, resource)
    attributes = site_plan.attributes(side.site, resource, None, None)
    return {"resource_id": resource.resource_id} | {
        name: attributes.get(name) for name in ("plan", "planned_until", "missed_targets")
    }


@pyscript_compile
@contextmanager
def raised() -> Iterator[None]:
    """Raise errors of the CEM as Home Assistant's own."""
    try:
        yield
    except (cem_errors.NotConfirmed, cem_errors.NotPlanned) as error:
        raise HomeAssistantError(str(error)) from (error.__cause__ or error)
    except cem_errors.CemError as error:
        raise ServiceValidationError(str(error)) from error
