"""Plans that outlive the connection of their device: over a reconnect, a reload and a restart.

On its return a device is told at once what is due now. FlexMeasures is asked only where something has changed
meanwhile. Moments are seconds since 1970.
"""

import asyncio
import hashlib
import logging
import math
import uuid
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ConfigDict, TypeAdapter

import flexmeasures_cem.control_types as control_types
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.instructions as instructions
import flexmeasures_cem.plans as plans
import flexmeasures_cem.site as sites
import flexmeasures_s2.session as sessions

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
LONGEST_SECONDS = 366 * 86_400.0
"""How far ahead a plan that is read may reach: further than any that is made."""
LATER_SECONDS = 1.0
"""How much longer than for other changes is waited for all that a device tells on its return."""
OF_A_CONNECTION = {"message_id", "valid_from"}
"""Fields that are others each time that a device connects, and change nothing of a plan."""


@pyscript_compile
def record() -> type:
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(repr=False)
    class KeptPlan:
        """A plan that is kept for a device, under a control type.

        `described` has a digest of each message that the plan was made with, `is_fallback` and `is_asked` are
        those of Controlled. `left_at` is when the connection ended, where that was seen. `text` is the plan
        as JSON, once it is written.
        """

        control_type: str
        plan: Any
        is_fallback: bool
        is_asked: bool | None
        described: dict[str, str]
        left_at: float | None = None
        text: str | None = None

    return KeptPlan


KeptPlan = record()
ADAPTERS = {name: TypeAdapter(kind.PLAN) for name, kind in control_types.MODULES.items()}
"""What writes and reads the Plan of each control type."""
WRITTEN_BESIDE = TypeAdapter(tuple[bool, bool | None, dict[str, str]], config=ConfigDict(strict=True))
"""What is written of a KeptPlan beside the plan: `is_fallback`, `is_asked` and `described`."""


@pyscript_compile
def digests(kind: Any, memory: dict) -> dict[str, str]:
    """Return a digest of each message that changes the problem, by what it is remembered by."""
    return {
        " ".join(map(str, key)): digest(message)
        for key, message in memory.items()
        if key[0] in kind.CALL_FOR_A_PLAN
    }


@pyscript_compile
def digest(message: Any) -> str:
    """Return what two messages have in common that say the same.

    Some of what is taken leniently has no JSON by s2-python's models, so it is their text that counts.
    """
    said = {name: value for name, value in message if name not in OF_A_CONNECTION}
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


@pyscript_compile
async def write(site: Any, each: Any) -> None:
    """Write the plan of a device as JSON beside the event loop, and have it saved."""
    kept = each.kept
    plan, adapter = replace(kept.plan, changes=list(kept.plan.changes)), ADAPTERS[kept.control_type]

    def text() -> str:
        return adapter.dump_json(plan).decode()

    kept.text = await asyncio.to_thread(text)
    site.keep(each.resource)


@pyscript_compile
def as_json(kept: Any) -> dict | None:
    """Return a KeptPlan as JSON's types, or None where it is not written yet."""
    if kept is None or kept.text is None:
        return None
    return {
        "control_type": kept.control_type,
        "plan": kept.text,
        "is_fallback": kept.is_fallback,
        "is_asked": kept.is_asked,
        "described": kept.described,
    }


@pyscript_compile
def recall(site: Any, resource: Any, written: dict) -> None:
    """Keep the plan that `as_json` wrote for a device; raise what is wrong where it is no plan."""
    name, text = written["control_type"], written["plan"]
    plan = ADAPTERS[name].validate_json(text)
    moments = [plan.start, *[change.moment for change in plan.changes], plan.end]
    if not all(math.isfinite(each) and 0 <= each <= site.now() + LONGEST_SECONDS for each in moments):
        raise ValueError("expected a plan of these days")
    beside = (written["is_fallback"], written["is_asked"], written["described"])
    kept = KeptPlan(name, plan, *WRITTEN_BESIDE.validate_python(beside), text=text)
    site.kept[resource.resource_id], resource.planned_under = kept, name
    expire(site, resource)


@pyscript_compile
def of(site: Any, resource_id: str) -> Any:
    """Return the KeptPlan of a device, connected or not, or None."""
    found = site.controlled.get(resource_id)
    return found.kept if found else site.kept.get(resource_id)


@pyscript_compile
def leave(site: Any, old: Any) -> None:
    """Keep the plan of a device whose connection is over."""
    if old.kept and old.kept.plan.end > site.now():
        old.kept.left_at = site.now()
        site.kept[old.resource.resource_id] = old.kept
        old.resource.planned_under = old.kept.control_type


@pyscript_compile
def expire(site: Any, resource: Any) -> None:
    """Forget the plan of a device that has connected, where that is over."""
    kept = site.kept.get(resource.resource_id)
    if kept is None or kept.plan.end <= site.now():
        site.kept.pop(resource.resource_id, None)
        resource.planned_under = None


@pyscript_compile
def come_back(site: Any, found: Any) -> None:
    """Have a device that is controlled again go on with its plan, once it has told of itself."""
    kept = site.kept.pop(found.resource.resource_id, None)
    if kept and kept.control_type == found.type.CONTROL_TYPE:
        found.kept, found.is_returning = kept, True


@pyscript_compile
async def resume(site: Any, found: Any) -> None:
    """Put the plan in force that a device had, and make another where something has changed since."""
    kept, version = found.kept, found.version
    try:
        await go_on(site, found)
        await asyncio.sleep(site.settling + LATER_SECONDS)
        if found.is_returning and not sites.is_gone(site, found):
            why = await what_changed(site, found, kept)
    except Exception as error:
        LOGGER.exception("The plan of %s cannot be resumed: please report this", found.resource.name)
        why = f"its plan cannot be resumed ({error!r})"
    if found.is_returning and not sites.is_gone(site, found):
        found.is_returning = False
        if why and found.version == version:
            sites.want(site, found, why)


@pyscript_compile
async def go_on(site: Any, found: Any) -> None:
    """Put the plan in force that a device had, where it fits what the device tells of itself."""
    kept, kind, now = found.kept, found.type, site.now()
    memory = fill_levels.remembered(found.resource, found.session)
    begin = now + instructions.lead(found.session)

    def fitted() -> tuple:
        device = kind.device(memory)
        return device, None if kind.unfit(device) else kind.resumed(device, kept.plan, begin)

    device, plan = await asyncio.to_thread(fitted)
    is_valid = kind.valid_from(memory) <= now + instructions.LEAD_SECONDS
    if plan is None or not is_valid or found.plan or sites.is_gone(site, found):
        return
    LOGGER.info("%s goes on with its plan", found.resource.name)
    found.plan, found.device, found.is_fallback = plan, device, kept.is_fallback
    found.is_asked, found.planned_version = kept.is_asked, found.version
    found.settles_at = begin + plans.LAG_SECONDS
    if kind not in control_types.BY_MODES:
        done = [change for change in plan.changes if change.moment <= now]
        found.sent |= {str(uuid.uuid4()): change for change in done}
    sites.hasten(site, sites.next_boundary(now, site.rolling))
    found.replanned.set()
    site.shown(found.resource)


@pyscript_compile
async def what_changed(site: Any, found: Any, kept: Any) -> str | None:
    """Return why a device that has come back is to be planned anew, or None."""
    if found.plan is None:
        return "its plan does not fit any more"
    memory, now = fill_levels.remembered(found.resource, found.session), site.now()
    if await asyncio.to_thread(digests, found.type, memory) != kept.described:
        return "it describes itself in another way than before"
    if now - found.plan.start > site.rolling:
        return "its plan is from before the last interval"
    if found.is_fallback and found.is_asked is not False:
        return "it had no schedule"
    others = [each.chosen_at for each in site.controlled.values() if each is not found]
    if site.limit is not None and kept.left_at is not None and max(others, default=0.0) > kept.left_at:
        return "others were planned without it"
    of_state = [
        message
        for message in memory.values()
        if not hasattr(message, "active_operation_mode_id") and not hasattr(message, "finished_at")
    ]
    departs = [found.type.departs(found.device, found.plan, message, now) for message in of_state]
    return next((why for why in departs if why), None)


@pyscript_compile
def expect(site: Any, found: Any) -> None:
    """Resume the plan of a device that has come back, as soon as it has told what that needs."""
    if not found.is_resuming and not found.type.lacks(found.session.memory):
        found.is_resuming = True
        sessions.spawn(found.session, resume(site, found))
