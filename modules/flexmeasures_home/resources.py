"""The S2 side of the app: Resource Managers connect here, and FlexMeasures gets to know them."""

import asyncio
import logging
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers.storage import Store

import flexmeasures_cem.cem as cems
import flexmeasures_cem.errors as cem_errors
import flexmeasures_home.kept as kept
import flexmeasures_home.relay as relays
import flexmeasures_home.resource_state as resource_state
import flexmeasures_home.status as statuses
import flexmeasures_optimiser.errors as errors
import flexmeasures_optimiser.provisioning as provisioning
import flexmeasures_optimiser.sensor_data as sensor_data
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


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Resources:
        """The listener, the CEM behind it, and a relay for each Resource Manager by its resource_id.

        `given` is the app's configuration. `learning` has the tasks that find the sensors, by resource_id;
        only one of them makes anything on the server at a time.
        """

        hass: Any
        given: Any
        link: Any
        outbox: Any
        status: statuses.Status
        store: Any
        cem: Any = None
        listener: Any = None
        relays: dict = field(default_factory=dict)
        listening: Any = None
        learning: dict = field(default_factory=dict)
        provisioning: Any = field(default_factory=asyncio.Lock)
        urged: Any = field(default_factory=asyncio.Event)
        why_not_listening: str | None = None
        stopped: bool = False

    return Resources


Resources = record()


@pyscript_compile
async def start(hass, given, link, outbox, status):
    """Show the Resource Managers that are known, and listen for them."""
    store = Store(hass, 1, "flexmeasures_for_pyscript.resources", atomic_writes=True)
    side = Resources(hass, given, link, outbox, status, store)
    side.cem = cems.Cem(partial(changed, side), partial(received, side), given.s2.control_type)
    found = await store.async_load() or {}
    if found.get("user") == outbox.user:
        for resource_id, each in found["resources"].items():
            kept.read(partial(recall, side, resource_id), each)
    s2 = given.s2
    side.listener = listeners.Listener(
        s2.host,
        s2.port,
        s2.path,
        cems.events(side.cem),
        partial(cems.ended, side.cem),
        token=s2.token,
        certificate=s2.certificate,
        key=s2.key,
        limits=s2.limits,
    )
    await asyncio.to_thread(messages.prepare)
    if not await listen(side):
        side.listening = hass.async_create_background_task(keep_trying(side), "flexmeasures s2 listener")
    return side


@pyscript_compile
def recall(side, resource_id, found):
    """Make the relay of a Resource Manager that is known from before."""
    resource = cems.Resource(resource_id, found["name"])
    relay = relays.new(side.hass, side.outbox, resource, found["entity_id"])
    relays.recall(relay, found)
    side.cem.resources[resource_id] = resource
    side.relays[resource_id] = relay
    relays.show(relay)


@pyscript_compile
async def listen(side):
    """Listen, and tell whether that was possible."""
    s2 = side.given.s2
    try:
        await listeners.start(side.listener)
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
        statuses.fail(side.status, MATTER, text, cause=NOT_LISTENING)
        await asyncio.sleep(SECONDS_BETWEEN_LATER_TRIES)


@pyscript_compile
async def stop(side):
    """Close all sessions, free the port, and keep what is known."""
    side.stopped = True
    tasks = [side.listening, *side.learning.values()]
    for task in tasks:
        if task:
            task.cancel()
    await asyncio.gather(*[task for task in tasks if task], return_exceptions=True)
    await listeners.stop(side.listener)
    for relay in side.relays.values():
        relays.stop(relay)
    await save(side)


@pyscript_compile
def urge(side):
    """Look for sensors now, since the server answers again."""
    side.urged.set()
    side.urged.clear()


@pyscript_compile
async def save(side):
    """Write the file now."""
    await asyncio.shield(side.store.async_save(content(side)))


@pyscript_compile
def save_soon(side):
    """Write the file in a moment, with all that changes until then."""
    if not side.stopped:
        side.store.async_delay_save(partial(content, side), SAVING_SECONDS)


@pyscript_compile
def content(side):
    """Return the file's content."""
    known = {resource_id: relays.as_json(relay) for resource_id, relay in side.relays.items()}
    return {"user": side.outbox.user, "resources": known}


@pyscript_compile
def relay_of(side, resource):
    """Return the relay of a Resource Manager; a new one is made where there is none."""
    if resource.resource_id not in side.relays:
        forget_longest_gone(side)
        taken = {relay.entity_id for relay in side.relays.values()}
        entity_id = resource_state.new_entity_id(resource.name, resource.resource_id, taken)
        side.relays[resource.resource_id] = relays.new(side.hass, side.outbox, resource, entity_id)
    return side.relays[resource.resource_id]


@pyscript_compile
def forget_longest_gone(side):
    """Forget the one that was known first of those that are not connected, where there are too many."""
    gone = [each for each, relay in side.relays.items() if relay.resource.session is None]
    if len(side.relays) >= MOST_KNOWN and gone:
        relay = side.relays.pop(gone[0])
        relays.stop(relay)
        del side.cem.resources[gone[0]]
        side.hass.states.async_remove(relay.entity_id)


@pyscript_compile
def changed(side, resource):
    """Take note that a Resource Manager connected, disconnected, or is under another control type."""
    relay = relay_of(side, resource)
    relays.changed(relay)
    if side.stopped:
        return
    if resource.session is not None:
        learn_sensors(side, relay)
    save_soon(side)


@pyscript_compile
def received(side, resource, message):
    """Pass on what a Resource Manager said."""
    relay = relay_of(side, resource)
    before = len(relay.waiting)
    relays.received(relay, message)
    if len(relay.waiting) > before:
        save_soon(side)


@pyscript_compile
def learn_sensors(side, relay):
    """Find the sensors of a Resource Manager in the background, unless they are known or being found."""
    resource_id = relay.resource.resource_id
    under_way = side.learning.get(resource_id)
    known = relay.power_sensor and (relay.soc_sensor or not wants_soc(relay))
    if not known and (under_way is None or under_way.done()):
        work = find_sensors(side, relay)
        side.learning[resource_id] = side.hass.async_create_background_task(work, "flexmeasures s2 sensors")


@pyscript_compile
def wants_soc(relay):
    """Tell whether a Resource Manager has a fill level to post."""
    session = relay.resource.session
    return bool(session) and control_types.ABBREVIATIONS["FRBC"] in cems.offered(session)


@pyscript_compile
async def find_sensors(side, relay):
    """Find the sensors; while the server is away, try again with growing pauses."""
    matter, pause = f"{MATTER} {relay.resource.resource_id}", FIRST_PAUSE_SECONDS
    while relay.resource.session:
        try:
            async with side.provisioning:
                relay.provision = await provision(side, relay)
            await look_up(side, relay)
        except errors.OptimiserError as error:
            text = f"{relay.resource.name} ({relay.resource.resource_id}): {error}"
            statuses.fail(side.status, matter, text, error.status, error.cause, error.temporary)
            if isinstance(error, errors.UnknownSensor):
                relay.provision = provisioning.Provision()
            try:
                await asyncio.wait_for(side.urged.wait(), max(pause, error.retry_after or 0))
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            statuses.succeed(side.status, matter)
            relays.sensors_known(relay)
            save_soon(side)
            return
    statuses.settle(side.status, matter)


@pyscript_compile
async def look_up(side, relay):
    """Ask the server what the sensors are."""
    found = relay.provision
    power = await sensor_data.of_power(side.link, found.power_sensor)
    soc = await sensor_data.of_state_of_charge(side.link, found.soc_sensor) if found.soc_sensor else None
    relay.power_sensor, relay.soc_sensor = power, soc


@pyscript_compile
async def provision(side, relay):
    """Return the numbers of a Resource Manager's sensors: as configured, as kept, or made for it now.

    One that is not listed in `s2.resources` has the app's own sensors without `auto_provision`.
    """
    given, resource = side.given, relay.resource
    listed = given.s2.resources.get(resource.resource_id) or given.s2.resources.get(resource.name) or {}
    relay.energy_per_fill_level = listed.get("energy_per_fill_level")
    own = provisioning.Provision(None, listed.get("power_sensor"), listed.get("soc_sensor"))
    if not given.s2.auto_provision:
        return provisioning.Provision(
            None, own.power_sensor or given.power_sensor, own.soc_sensor or given.soc_sensor
        )
    if own.power_sensor and (own.soc_sensor or not wants_soc(relay)):
        return own
    made = relay.provision
    if not made.asset or (wants_soc(relay) and not made.soc_sensor):
        site = given.site or await provisioning.site_of(side.link, given.power_sensor)
        role = resource.session.details.roles[0].role.value
        made = await provisioning.provide(
            side.link, site, resource.resource_id, resource.name, role, wants_soc(relay)
        )
    configured = {name: number for name, number in asdict(own).items() if number}
    return provisioning.Provision(**asdict(made) | configured)


@pyscript_compile
async def change_control_type(side, call):
    """Do what `flexmeasures.change_control_type` asks, and keep the choice.

    Raise ServiceValidationError for what the caller did wrong, HomeAssistantError for what failed.
    """
    try:
        resource = cems.connected(side.cem, call.get("resource_id"))
        await cems.change_control_type(side.cem, resource, call["control_type"])
    except cem_errors.NotConfirmed as error:
        raise HomeAssistantError(str(error)) from error
    except cem_errors.CemError as error:
        raise ServiceValidationError(str(error)) from error
    await save(side)
    return {"resource_id": resource.resource_id, "control_type": cems.control_type(resource)}
