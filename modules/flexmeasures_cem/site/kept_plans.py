"""Plans that outlive the connection of their device: over a reconnect, a reload and a restart.

On its return a device is told at once what is due now. FlexMeasures is asked only where something has changed
meanwhile. Moments are seconds since 1970.
"""

import asyncio
import hashlib
import logging
import math
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

import flexmeasures_cem.cem as cems
import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.registry as registry
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.site as sites

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
LONGEST_SECONDS = 366 * 86_400.0
"""How far ahead a plan that is read may reach: further than any that is made."""
STATUS_SECONDS = 0.3
"""How long is waited for the statuses that follow a description."""
LATER_SECONDS = 1.0
"""How much longer than for other changes is waited for all that a device tells on its return."""
QUARTER = 900.0
"""s."""
OF_A_CONNECTION = {"message_id", "valid_from"}
"""Fields that are others each time that a device connects, and change nothing of a plan."""


@dataclass(repr=False)
class _KeptPlan:
    """A plan that is kept for a device, under a control type.

    `described` has a digest of each message that the plan was made with, and of what holds for the site.
    `is_fallback`, `is_asked` and `obeys_at_once` are those of Controlled. What was to be executed until
    `sent_until` was sent, or all of it (None). With `is_chosen` the device gets this control type again.
    `round_at` is that of Controlled. `text` is the plan as JSON, once it is written.
    """

    control_type: str
    plan: Any
    is_fallback: bool
    is_asked: bool | None
    obeys_at_once: bool
    described: dict[str, str]
    sent_until: float | None
    is_chosen: bool = True
    round_at: float = 0.0
    text: str | None = None


KeptPlan = _KeptPlan


@dataclass
class _Return:
    """What a device tells on its return, at the moment `now`; it can be told something from `begin` on.

    `heard` is that of Controlled, and `sent_until` that of KeptPlan.
    """

    memory: dict[tuple[str, ...], Any]
    heard: dict[Any, float]
    now: float
    begin: float
    sent_until: float | None


Return = _Return


ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
"""What writes and reads the Plan of each control type, made when it is first asked for: see `adapter`."""
MAKING = threading.Lock()
BESIDE = ("is_fallback", "is_asked", "obeys_at_once", "described", "sent_until", "is_chosen", "round_at")
"""What is written of a KeptPlan beside the plan."""
IS_WRITTEN_BESIDE = tuple[bool, bool | None, bool, dict[str, str], float | None, bool, float]


@pyscript_compile
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what writes and reads a kind of data. To make one takes long: see `prepare`."""
    with MAKING:
        if kind not in ADAPTERS:
            ADAPTERS[kind] = TypeAdapter(kind)
        return ADAPTERS[kind]


@pyscript_compile
def prepare() -> None:
    """Make what writes and reads plans; it takes tenths of a second, and may be done in a thread."""
    for kind in registry.BY_NAME.values():
        adapter(kind.plan_class)
    adapter(IS_WRITTEN_BESIDE)


@pyscript_compile
def digests(site: sites.Site, kind: base.ControlType, memory: dict[tuple[str, ...], Any]) -> dict[str, str]:
    """Return a digest of each message that changes the problem, by its key, and of the site's own."""
    described = {
        " ".join(map(str, key)): digest(message)
        for key, message in memory.items()
        if key[0] in kind.describing_messages
    }
    return described | {"site": of_site(site)}


@pyscript_compile
def of_site(site: sites.Site) -> str:
    """Return a digest of what holds for the site: with another connection, no plan goes on as it is."""
    return hashlib.sha256(repr((site.connection, sorted(site.tariffs.items()))).encode()).hexdigest()[:16]


@pyscript_compile
def digest(message: Any) -> str:
    """Return what two messages have in common that say the same.

    Some of what is taken leniently has no JSON by s2-python's models, so it is their text that counts.
    """
    said = {name: value for name, value in message if name not in OF_A_CONNECTION}
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


@pyscript_compile
def new(site: sites.Site, controlled: sites.Controlled, described: dict[str, str]) -> Any:
    """Return the KeptPlan of the plan that is in force, and have it written beside the event loop."""
    ahead = instructions.send_ahead(site, controlled)
    kept = KeptPlan(
        controlled.type.name,
        controlled.plan,
        controlled.is_fallback,
        controlled.is_asked,
        controlled.obeys_at_once,
        described,
        None if math.isinf(ahead) else site.now() + ahead,
        not controlled.resource.unplannable,
        controlled.round_at,
    )
    task = asyncio.get_running_loop().create_task(write(site, controlled.resource, kept))
    site.writing.add(task)
    task.add_done_callback(site.writing.discard)
    return kept


@pyscript_compile
async def write(site: sites.Site, resource: cems.Resource, kept: KeptPlan) -> None:
    """Write a plan as JSON, and have it saved, which tells where it cannot be written."""
    plan = replace(kept.plan, changes=list(kept.plan.changes))
    with suppress(Exception):
        kept.text = await asyncio.to_thread(written, kept.control_type, plan)
    site.keep(resource)


@pyscript_compile
def written(control_type: str, plan: Any) -> str:
    """Return a plan as JSON."""
    return adapter(registry.BY_NAME[control_type].plan_class).dump_json(plan).decode()


@pyscript_compile
def as_json(kept: KeptPlan) -> dict[str, Any]:
    """Return a KeptPlan as JSON's types."""
    text = kept.text or written(kept.control_type, kept.plan)
    return {"control_type": kept.control_type, "plan": text} | {
        field: getattr(kept, field) for field in BESIDE
    }


@pyscript_compile
def recall(site: sites.Site, resource: cems.Resource, found: dict[str, Any]) -> None:
    """Keep the plan that `as_json` wrote for a device; raise what is wrong where it is no plan."""
    name, text = found["control_type"], found["plan"]
    plan = adapter(registry.BY_NAME[name].plan_class).validate_json(text)
    moments = [plan.start, *[change.moment for change in plan.changes], plan.end]
    if not all(math.isfinite(each) and 0 <= each <= site.now() + LONGEST_SECONDS for each in moments):
        raise ValueError("expected a plan of these days")
    found = {"round_at": 0.0} | found  # an earlier version of the scripts did not write it
    beside = adapter(IS_WRITTEN_BESIDE).validate_python([found[field] for field in BESIDE])
    keep(site, resource, KeptPlan(name, plan, **dict(zip(BESIDE, beside, strict=True)), text=text))


@pyscript_compile
def keep(site: sites.Site, resource: cems.Resource, kept: KeptPlan) -> None:
    """Keep a plan for the return of a device, and forget those that are over."""
    site.kept[resource.resource_id] = kept
    resource.planned_under = kept.control_type if kept.is_chosen else None
    for resource_id in [each for each, other in site.kept.items() if other.plan.end <= site.now()]:
        del site.kept[resource_id]


@pyscript_compile
def of(site: sites.Site, resource_id: str) -> Any:
    """Return the KeptPlan of a device, connected or not, or None where it has none that is not over."""
    found = site.controlled.get(resource_id)
    kept = found.kept if found else site.kept.get(resource_id)
    return kept if kept and kept.plan.end > site.now() else None


@pyscript_compile
def leave(site: sites.Site, old: sites.Controlled) -> None:
    """Keep the plan of a device whose connection is over; what a user told it by hand is over, too."""
    kept = old.kept
    if kept is None:
        return
    by_hand = {id(old.sent[instruction]) for instruction in old.manual if instruction in old.sent}
    if by_hand:
        kept.plan.changes = [change for change in kept.plan.changes if id(change) not in by_hand]
        kept.text = None
    ahead = instructions.send_ahead(site, old)
    kept.sent_until = None if math.isinf(ahead) else site.now() + ahead
    kept.obeys_at_once = old.obeys_at_once
    keep(site, old.resource, kept)


@pyscript_compile
def expire(site: sites.Site, resource: cems.Resource) -> None:
    """Forget the plan of a device that has connected, where that is over."""
    kept = site.kept.get(resource.resource_id)
    if kept is None or kept.plan.end <= site.now():
        site.kept.pop(resource.resource_id, None)
        resource.planned_under = None


@pyscript_compile
def come_back(site: sites.Site, controlled: sites.Controlled) -> None:
    """Have a device that is controlled again go on with its plan, once it has told of itself."""
    kept = site.kept.get(controlled.resource.resource_id)
    if kept and kept.control_type == controlled.type.name:
        controlled.kept, controlled.is_returning = site.kept.pop(controlled.resource.resource_id), True
        controlled.is_fallback, controlled.obeys_at_once = kept.is_fallback, kept.obeys_at_once
        controlled.round_at = kept.round_at
        if kept.is_asked and not kept.is_fallback:
            controlled.schedule = powers_of(controlled.type, kept.plan)


@pyscript_compile
def powers_of(kind: base.ControlType, plan: Any) -> list[tuple[float, float, float]]:
    """Return what a plan has for each quarter of an hour (start, end, W), as if it were a schedule."""
    first = plan.start // QUARTER * QUARTER
    starts = [first + place * QUARTER for place in range(math.ceil((plan.end - first) / QUARTER))]
    return [(start, start + QUARTER, kind.planned_power(plan, start, QUARTER)) for start in starts]


@pyscript_compile
def resume_when_described(site: sites.Site, controlled: sites.Controlled) -> None:
    """Resume the plan of a device that has come back, as soon as it has told what that needs."""
    if not controlled.is_resuming and not controlled.type.missing_message(controlled.session.memory):
        controlled.is_resuming = True
        controlled.session.spawn(resume(site, controlled))


@pyscript_compile
async def resume(site: sites.Site, controlled: sites.Controlled) -> None:
    """Put the plan in force that a device had, and make another where something has changed since."""
    await asyncio.sleep(STATUS_SECONDS)
    try:
        await put_in_force(site, controlled)
        if controlled.plan:
            await asyncio.sleep(site.settling + LATER_SECONDS)
    except Exception:
        LOGGER.exception("The plan of %s cannot be resumed: please report this", controlled.resource.name)
    if not controlled.is_returning or site.is_gone(controlled):
        return
    controlled.is_returning, version = False, controlled.version
    if controlled.plan is None:
        site.request_replan(controlled, "it goes on from another state than planned", 0.0)
        return
    why = await what_changed(site, controlled)
    if why and controlled.version == version and not site.is_gone(controlled):
        site.request_replan(controlled, why)


@pyscript_compile
async def put_in_force(site: sites.Site, controlled: sites.Controlled) -> None:
    """Put the plan in force that a device had, where the device can go on with it from its present state."""
    kept, kind, now = controlled.kept, controlled.type, site.now()
    memory = fill_levels.remembered(controlled.resource, controlled.session)
    told = Return(
        memory, dict(controlled.heard), now, now + instructions.lead(controlled.session), kept.sent_until
    )

    def fitted() -> tuple[Any, Any]:
        device = kind.read_device(memory)
        return device, None if kind.why_not_plannable(device) else kind.resumed(device, kept.plan, told)

    if kept.described.get("site") != of_site(site) or not is_beside_others(site, controlled):
        return
    if kind.valid_from(memory) > now + instructions.LEAD_SECONDS:
        return
    device, plan = await asyncio.to_thread(fitted)
    is_left = site.is_gone(controlled) or site.now() < controlled.leaving_until
    if plan is None or controlled.plan or is_left or not controlled.is_returning:
        return
    LOGGER.info("%s goes on with its plan", controlled.resource.name)
    controlled.plan, controlled.device, controlled.is_asked = plan, device, kept.is_asked
    controlled.planned_version, kept.plan = controlled.version, plan
    controlled.settles_at = told.begin + plans.LAG_SECONDS
    if not kind.keeps_mode:
        done = [change for change in plan.changes if change.moment <= now]
        controlled.sent |= {str(uuid.uuid4()): change for change in done}
    site.plan_no_later_than(sites.next_boundary(now, site.rolling))
    site.ask_no_later_than(sites.next_boundary(now, site.rolling))
    site.urged.set()
    controlled.replanned.set()
    site.shown(controlled.resource)


@pyscript_compile
def is_beside_others(site: sites.Site, controlled: sites.Controlled) -> bool:
    """Return whether a plan was made together with those of the others, where the connection couples them."""
    rounds = {
        each.round_at if each.plan else each.kept.round_at
        for each in site.controlled.values()
        if each.plan or each.kept
    }
    return rounds <= {controlled.kept.round_at} or not site.connection.couples_devices


@pyscript_compile
def cannot_go_on(controlled: sites.Controlled, now: float) -> bool:
    """Return whether what a device tells shortly after its return does not go with what it was told then."""
    told = Return(controlled.session.memory, dict(controlled.heard), now, now, None)
    return controlled.type.resumed(controlled.device, controlled.plan, told) is None


@pyscript_compile
async def what_changed(site: sites.Site, controlled: sites.Controlled) -> str | None:
    """Return why a device that goes on with its plan is to be planned anew, or None."""
    memory, now = fill_levels.remembered(controlled.resource, controlled.session), site.now()
    if await asyncio.to_thread(digests, site, controlled.type, memory) != controlled.kept.described:
        return "it describes itself in another way than before"
    if now - controlled.plan.start > site.rolling:
        return "its plan is from before the last interval"
    if controlled.is_fallback and controlled.is_asked is not False:
        return "it had no schedule"
    of_state = [
        message
        for message in memory.values()
        if not hasattr(message, "active_operation_mode_id") and not hasattr(message, "finished_at")
    ]
    departs = [
        controlled.type.deviation(controlled.device, controlled.plan, message, now) for message in of_state
    ]
    return next((why for why in departs if why), None)
