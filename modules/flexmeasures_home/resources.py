"""The S2 side of the app: Resource Managers connect here, and FlexMeasures gets to know them."""

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from homeassistant.core import valid_entity_id
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
import flexmeasures_home.measurements as measurements
import flexmeasures_home.relay as relays
import flexmeasures_home.resource_state as resource_state
import flexmeasures_home.site_plan as site_plan
import flexmeasures_home.site_state as site_state
import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks
import flexmeasures_s2.control_types as control_types
import flexmeasures_s2.errors as s2_errors
import flexmeasures_s2.listener as listeners
import flexmeasures_s2.messages as messages

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
MATTER = "s2"
NOT_LISTENING = "s2_not_listening"
SECONDS_BETWEEN_TRIES = 0.25
PATIENCE_TRIES = 20
"""How often to try at once: the listener before a reload may take a moment to let go of its port."""
SECONDS_BETWEEN_LATER_TRIES = 30
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10, 300
SAVING_SECONDS = 5
MOST_KNOWN = 1000
MOST_NEW = 256
"""How many assets are made in one life of the app, at most."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(repr=False)
    class Resources:
        """The listener, the CEM behind it, the site's planner, and a relay for each Resource Manager.

        `given` is the app's configuration. `learning` has the tasks that find the sensors, by resource_id;
        only one of them makes anything on the server at a time, and `new` counts the assets. `file` has
        what is kept, for all users of all servers; `meters` are the app's measurements, which remember what
        the server says of sensors.
        """

        hass: Any
        given: Any
        link: Any
        outbox: Any
        status: statuses.Status
        meters: Any
        store: Any
        cem: Any = None
        listener: Any = None
        asker: Any = None
        site: Any = None
        relays: dict = field(default_factory=dict)
        listening: Any = None
        learning: dict = field(default_factory=dict)
        provisioning: Any = field(default_factory=asyncio.Lock)
        urged: Any = field(default_factory=asyncio.Event)
        why_not_listening: str | None = None
        file: dict = field(default_factory=dict)
        is_to_be_saved: bool = False
        new: int = 0
        stopped: bool = False

    return Resources


Resources = record()


@pyscript_compile
async def start(hass, given, link, outbox, status, meters, planning, own_schedule):
    """Show the Resource Managers that are known, listen for them, and plan them.

    `planning` is the lock that all plans are made under, `own_schedule()` returns that of the app's own
    device, or None.
    """
    store = kept.KeptFile(hass, status, "resources", "the S2 devices, their sensors and control types")
    side = Resources(hass, given, link, outbox, status, meters, store)
    side.asker = site_plan.Asker(given, link, status, planning, own_schedule)
    side.site = site_plan.new(side.asker, partial(relay_of, side), partial(give_way, side))
    side.site.keep = lambda resource: save_soon(side)
    side.site.fault, side.site.run = partial(tasks.fault, status), partial(tasks.supervise, status)
    side.cem = cems.Cem(
        partial(changed, side),
        partial(received, side),
        given.s2.control_type,
        leaving=partial(triggers.leave, side.site),
        with_token=frozenset(name for name, each in given.s2.resources.items() if "token" in each),
    )
    found, _none = await asyncio.gather(store.async_load(), asyncio.to_thread(kept_plans.prepare))
    side.file = {"users": store.part(found, "users", dict)}
    for resource_id, each in store.part(found, "resources", dict).items():
        store.read(partial(recall, side, resource_id), each)
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
async def beside(side, start, end, step, raw):
    """Return the flex-context's fields that count the Resource Managers in: see site_plan.beside."""
    return await site_plan.beside(side.asker, start, end, step, raw)


@pyscript_compile
def give_way(side, resource, session, control_type):
    """Have another control type selected, since what a Resource Manager told does not fit this one."""
    session.spawn(cems.select_fallback(side.cem, resource, session, control_type))


@pyscript_compile
def recall(side, resource_id, found):
    """Make the relay of a Resource Manager that is known from before; raise what `found` has wrong."""
    name, choice = kept.text(found["name"]), kept.optional(kept.text, found["choice"])
    entity_id = kept.text(found["entity_id"])
    if not (entity_id.startswith(resource_state.PREFIX) and valid_entity_id(entity_id)):
        raise ValueError("expected an entity of an S2 device")
    resource = cems.Resource(resource_id, name, choice)
    relay = new_relay(side, resource, entity_id)
    side.cem.resources[resource_id] = resource
    side.relays[resource_id] = relay
    own = side.store.part(side.store.part(side.file["users"], side.outbox.user, dict), resource_id, dict)
    if own:
        side.store.read(partial(recall_relay, relay), own)
        if plan := side.store.part(own, "plan", dict):
            side.store.read(partial(kept_plans.recall, side.site, resource), plan)
    use_sensors(side, relay)
    relays.go_on(relay)


@pyscript_compile
def recall_relay(relay: Any, found: dict[str, Any]) -> None:
    """Have a relay remember what the file holds of it, once that is what it should be; else raise."""
    for made in found["made"].values():
        kept.optional(kept.whole_number, made)
    for start, length, mean in found["waiting"]:
        kept.moment(start)
        kept.length(length)
        kept.optional(kept.number, mean)
    relays.recall(relay, found)


@pyscript_compile
async def listens_at_once(side: Resources) -> bool:
    """Listen, and tell whether that was possible; what fails unexpectedly will do so again, and be told."""
    try:
        return await listen(side)
    except Exception:
        return False


@pyscript_compile
async def listen(side):
    """Listen, and tell whether that was possible."""
    s2 = side.given.s2
    try:
        await side.listener.start()
    except s2_errors.CannotListen as error:
        side.why_not_listening = str(error)
        return False
    secure = "wss" if s2.certificate else "ws"
    LOGGER.info("Listening for S2 Resource Managers on %s://%s:%s%s", secure, s2.host, s2.port, s2.path)
    statuses.settle(side.status, MATTER)
    return True


@pyscript_compile
async def keep_trying(side):
    """Try to listen again: often at first, then less so, and with notice."""
    tries = 0
    while not await listen(side):
        tries += 1
        if tries < PATIENCE_TRIES:
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            continue
        text = f"s2: {side.why_not_listening}. No device can connect; it is tried again each half minute"
        if side.given.s2.is_configured:
            statuses.fail(side.status, MATTER, text, cause=NOT_LISTENING)
        elif tries == PATIENCE_TRIES:
            LOGGER.warning("%s", text)
        await asyncio.sleep(SECONDS_BETWEEN_LATER_TRIES)


@pyscript_compile
async def stop(side):
    """Close all sessions, free the port, and keep what is known."""
    side.stopped = True
    running = [task for task in (side.listening, *side.learning.values()) if task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await planner.stop(side.site)
    await side.listener.stop()
    for relay in side.relays.values():
        relays.stop(relay)
    await save(side)


@pyscript_compile
def urge(side: Any, was_away: bool) -> None:
    """Look for sensors and plan now, since the server answers.

    Those with a schedule are planned too after an outage, or where the last question failed over the server.
    """
    side.urged.set()
    side.urged.clear()
    failed = side.status.problems.get(site_plan.MATTER)
    has_failed = failed is not None and failed.cause in statuses.OF_THE_SERVER
    if was_away or has_failed or triggers.are_awaited(side.site):
        triggers.plan_soon(side.site)


@pyscript_compile
def own_schedule_changed(side):
    """Plan the S2 devices anew where the schedule of the app's own device takes of the site's connection."""
    if side.site.connection.couples_devices:
        triggers.plan_soon(side.site)


@pyscript_compile
async def save(side: Resources) -> bool:
    """Write the file now, and return whether that was done; it is tried again each minute."""
    return await asyncio.shield(side.store.async_save(content(side)))


@pyscript_compile
def save_soon(side):
    """Write the file in a moment, with all that changes until then."""
    if not (side.stopped or side.is_to_be_saved):
        side.is_to_be_saved = True
        side.store.async_delay_save(partial(content, side), SAVING_SECONDS)


@pyscript_compile
def content(side):
    """Return the file's content: who is known and what was chosen, and what the user's server has of it."""
    side.is_to_be_saved = False
    resources = {
        resource_id: {
            "name": relay.resource.name,
            "choice": relay.resource.choice,
            "entity_id": relay.entity_id,
        }
        for resource_id, relay in side.relays.items()
    }
    own = {
        resource_id: relays.as_json(relay, stopped=side.stopped) | plan_as_json(side, resource_id)
        for resource_id, relay in side.relays.items()
    }
    return {"resources": resources, "users": side.file["users"] | {side.outbox.user: own}}


@pyscript_compile
def plan_as_json(side: Resources, resource_id: str) -> dict:
    """Return the plan that is kept for a Resource Manager, where there is one, as JSON's types.

    One that cannot be written is told, and keeps nothing else from being saved.
    """
    kept_plan, what = kept_plans.of(side.site, resource_id), f"writing of the plan of {resource_id}"
    try:
        written = {"plan": kept_plans.as_json(kept_plan)} if kept_plan else {}
    except Exception as error:
        tasks.fault(side.status, what, error)
        return {}
    tasks.fault(side.status, what, None)
    return written


@pyscript_compile
def relay_of(side, resource):
    """Return the relay of a Resource Manager; a new one is made where there is none."""
    if resource.resource_id not in side.relays:
        forget_longest_gone(side)
        taken = {relay.entity_id for relay in side.relays.values()}
        entity_id = resource_state.new_entity_id(resource.name, resource.resource_id, taken)
        relay = new_relay(side, resource, entity_id)
        side.relays[resource.resource_id] = relay
        use_sensors(side, relay)
    return side.relays[resource.resource_id]


@pyscript_compile
def new_relay(side, resource, entity_id):
    """Return a relay whose state tells of the plan too."""
    relay = relays.new(side.hass, side.outbox, resource, entity_id)
    relay.planned = partial(site_plan.attributes, side.site, resource)
    return relay


@pyscript_compile
def use_sensors(side, relay):
    """Have a Resource Manager use the sensors that are configured for it, else those made for it.

    One that is not listed in `s2.resources` has the app's own sensors without `auto_provision`.
    """
    given, made = side.given, relay.made
    listed = listed_for(side, relay)
    if not given.s2.auto_provision:
        made = provisioning.DeviceIds(None, given.power_sensor, given.soc_sensor)
    relay.energy_per_fill_level = listed.get("energy_per_fill_level")
    relay.instruction_lead = listed.get("instruction_lead")
    relay.cycle_cost = listed.get("cycle_cost", 0.0)
    relay.provision = provisioning.DeviceIds(
        made.asset,
        listed.get("power_sensor") or made.power_sensor,
        listed.get("soc_sensor") or made.soc_sensor,
    )
    relay.power_sensor = side.meters.sensors.get(relay.provision.power_sensor)
    relay.soc_sensor = side.meters.sensors.get(relay.provision.soc_sensor)


@pyscript_compile
def listed_for(side: Resources, relay: Any) -> dict[str, Any]:
    """Return what `s2.resources` has of a Resource Manager, by its resource_id, or by its name.

    What is listed by a name is for one at a time: of those that are connected under it, the one that has been
    known the longest. Anybody can say a name.
    """
    resources, resource = side.given.s2.resources, relay.resource
    if resource.resource_id in resources:
        return resources[resource.resource_id]
    namesakes = connected_namesakes_of(side, relay)
    return {} if namesakes and namesakes[0] is not relay else resources.get(resource.name, {})


@pyscript_compile
def connected_namesakes_of(side: Resources, relay: Any) -> list[Any]:
    """Return the relays of one name that are connected, the longest known first.

    Those that `s2.resources` lists by their resource_id are left out.
    """
    resources = [(other, other.resource) for other in side.relays.values()]
    return [
        other
        for other, resource in resources
        if resource.session
        and resource.name == relay.resource.name
        and resource.resource_id not in side.given.s2.resources
    ]


@pyscript_compile
def share_out(side: Resources, relay: Any) -> None:
    """Have one alone of those that are connected under a name use what is listed by it."""
    if relay.resource.name not in side.given.s2.resources:
        return
    namesakes = connected_namesakes_of(side, relay)
    for namesake in namesakes:
        before = namesake.provision
        use_sensors(side, namesake)
        if namesake.provision != before:
            namesake.are_sensors_checked = False
            learn_sensors(side, namesake)
    for namesake in namesakes[1:]:
        relays.complain(
            namesake,
            f"{namesakes[0].resource.resource_id} has the same name, and what s2.resources lists by that: "
            f"list each by its resource_id",
        )


@pyscript_compile
def forget_longest_gone(side):
    """Where too many are known, forget one that is not connected.

    It is one without a choice if possible, and one with a token of its own last.
    """
    if len(side.relays) < MOST_KNOWN:
        return
    gone = [each for each, relay in side.relays.items() if relay.resource.session is None]
    gone.sort(key=partial(sort_key_of_worth, side))
    for resource_id in gone[:1]:
        relay = side.relays.pop(resource_id)
        relays.stop(relay)
        del side.cem.resources[resource_id]
        side.site.kept.pop(resource_id, None)
        if task := side.learning.pop(resource_id, None):
            task.cancel()
        side.hass.states.async_remove(relay.entity_id)


@pyscript_compile
def sort_key_of_worth(side: Resources, resource_id: str) -> tuple[bool, bool]:
    """Sort key: what nobody would miss comes first."""
    resource = side.relays[resource_id].resource
    has_token = bool({resource_id, resource.name} & side.cem.with_token)
    return has_token, resource.choice is not None


@pyscript_compile
def changed(side, resource):
    """Take note that a Resource Manager connected, disconnected, or is under another control type."""
    relay = relay_of(side, resource)
    triggers.changed(side.site, resource)
    relays.changed(relay)
    if side.stopped:
        return
    if resource.session is not None:
        share_out(side, relay)
        learn_sensors(side, relay)
    save_soon(side)


@pyscript_compile
def received(side, resource, message):
    """Pass on what a Resource Manager said."""
    relay = relay_of(side, resource)
    before = len(relay.waiting)
    relays.received(relay, message)
    triggers.received(side.site, resource, message)
    if len(relay.waiting) > before:
        save_soon(side)


@pyscript_compile
def learn_sensors(side, relay):
    """Find the sensors of a Resource Manager in the background, unless they are known or being found."""
    resource_id = relay.resource.resource_id
    known = relay.are_sensors_checked and (relay.soc_sensor or not wants_soc(relay))
    if not known and resource_id not in side.learning:
        what = f"search for the sensors of {relay.resource.name} ({resource_id})"
        task = tasks.supervise(side.status, what, partial(find_sensors, side, relay))
        side.learning[resource_id] = task

        def forget(_task):
            if side.learning.get(resource_id) is task:
                del side.learning[resource_id]
            tasks.over(side.status, what)

        task.add_done_callback(forget)


@pyscript_compile
def wants_soc(relay):
    """Tell whether a Resource Manager that connected has a fill level to post."""
    return control_types.ABBREVIATIONS["FRBC"] in cems.offered(relay.resource.last_session)


@pyscript_compile
async def find_sensors(side, relay):
    """Find the sensors; while the server is away, try again with growing pauses."""
    matter, pause = f"{MATTER} {relay.resource.resource_id}", FIRST_PAUSE_SECONDS
    before = site_plan.means_of(relay)
    while relay.resource.session:
        try:
            async with side.provisioning:
                await make_what_is_missing(side, relay)
            await look_up(side, relay)
        except errors.FlexMeasuresError as error:
            text = f"{relay.resource.name} ({relay.resource.resource_id}): {error}"
            statuses.fail_with(side.status, matter, error, text)
            if isinstance(error, errors.UnknownSensor):
                relay.made = provisioning.DeviceIds()
            wait = max(pause, error.retry_after or 0)
        else:
            statuses.succeed(side.status, matter)
            complain_of_sharing(side, relay)
            relays.sensors_known(relay)
            if site_plan.means_of(relay) != before:
                triggers.plan_soon(side.site)
            save_soon(side)
            return
        try:
            await asyncio.wait_for(side.urged.wait(), wait)
        except TimeoutError:
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    statuses.settle(side.status, matter)


@pyscript_compile
def complain_of_sharing(side, relay):
    """Tell when another Resource Manager that is connected writes to the same sensor."""
    for other in side.relays.values():
        if other is not relay and other.resource.session and other.power_sensor == relay.power_sensor:
            relays.complain(
                relay,
                f"{other.resource.name} has the same power_sensor, {relay.power_sensor.id}: give each one "
                f"of its own under s2.resources",
            )


@pyscript_compile
async def look_up(side, relay):
    """Ask the server what the sensors are, and remember it for times when it is away."""
    found = relay.provision
    power = await sensor_data.power_sensor(side.link, found.power_sensor)
    soc = await sensor_data.soc_sensor(side.link, found.soc_sensor) if found.soc_sensor else None
    relay.power_sensor, relay.soc_sensor, relay.are_sensors_checked = power, soc, True
    await measurements.learn(side.meters, {each.id: each for each in (power, soc) if each})


@pyscript_compile
async def make_what_is_missing(side, relay):
    """Make the asset and sensors that a Resource Manager lacks; what is there already is found."""
    use_sensors(side, relay)
    given, resource, has = side.given, relay.resource, relay.provision
    if not given.s2.auto_provision or (has.power_sensor and (has.soc_sensor or not wants_soc(relay))):
        return
    if not relay.made.asset and side.new >= MOST_NEW:
        raise errors.NoAccess(
            f"{MOST_NEW} new Resource Managers connected since the start, so no more assets are made: see "
            f"that each keeps its resource_id, or name the sensors under s2.resources"
        )
    site = given.site or await provisioning.site_of(side.link, given.power_sensor)
    side.new += not relay.made.asset
    role = resource.last_session.details.roles[0].role.value
    relay.made = await provisioning.provide(
        side.link,
        site,
        resource_id=resource.resource_id,
        name=resource.name,
        role=role,
        has_soc=wants_soc(relay),
    )
    use_sensors(side, relay)


@pyscript_compile
async def change_control_type(side, call):
    """Do what `flexmeasures.change_control_type` asks, and keep the choice.

    Raise ServiceValidationError for what the caller did wrong, HomeAssistantError for what failed; also where
    the choice holds, but could not be written.
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
async def send_frbc_instruction(side, call):
    """Send what `flexmeasures.send_frbc_instruction` asks, once it fits what the device has told of itself.

    Raise ServiceValidationError for what the caller did wrong, HomeAssistantError for what failed.
    """
    with raised():
        resource = cems.connected(side.cem, call.get("resource_id"))
        sent = await instructions.send_instruction(side.site, resource, call)
    return {"resource_id": resource.resource_id} | site_plan.in_local_time(sent)


@pyscript_compile
async def call_cem_trigger_schedule(side, call):
    """Plan a Resource Manager again now, and return its instructions.

    Raise ServiceValidationError for what the caller did wrong, HomeAssistantError for what failed.
    """
    with raised():
        resource = cems.connected(side.cem, call.get("resource_id"))
        await triggers.plan_now(side.site, resource)
    told = site_plan.attributes(side.site, resource, None, None)
    return {"resource_id": resource.resource_id} | {
        name: told.get(name) for name in ("plan", "planned_until", "missed_targets")
    }


@pyscript_compile
@contextmanager
def raised():
    """Raise what cannot be done as Home Assistant's own errors."""
    try:
        yield
    except (cem_errors.NotConfirmed, cem_errors.NotPlanned) as error:
        raise HomeAssistantError(str(error)) from (error.__cause__ or error)
    except cem_errors.CemError as error:
        raise ServiceValidationError(str(error)) from error
