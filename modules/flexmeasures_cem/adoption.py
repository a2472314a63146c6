"""How a device's plan is made, of its schedule or by a choice made here, and put in force.

A plan that was made for a state that does not hold any more is not used. Moments are seconds since 1970.
"""

import asyncio
import logging
import math
from typing import Any

import flexmeasures_cem.control_types as control_types
import flexmeasures_cem.errors as errors
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.instructions as instructions
import flexmeasures_cem.kept_plans as kept_plans
import flexmeasures_cem.outlook as outlooks
import flexmeasures_cem.site as sites
import flexmeasures_s2.texts as texts

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
CONFIRMED_FACTOR = 0.1
"""By how much the factor of an active mode may differ from the instruction's, for that to be in force."""
MOST_DROPPED = 2
"""How many plans in a row are dropped because a state is past."""


@pyscript_compile
async def adopt(site, each, version, powers, outlook, is_fallback=False, last=math.inf):
    """Put a plan in force that comes nearest to powers (or is chosen here until `last`), and tell the device.

    That is not done where its state is another by now. What goes wrong with one device is told, and does
    not keep others from their plan.
    """
    try:
        if not stale(site, each, version):
            await put_in_force(site, each, version, powers, outlook, is_fallback, last)
    finally:
        each.asked = None


@pyscript_compile
def stale(site, each, version):
    """Tell whether a plan is for a state that does not hold any more; then another one is made.

    Where a state never holds for long, every third plan is used as it is.
    """
    if sites.is_gone(site, each):
        return True
    if each.version == version:
        return False
    LOGGER.debug("A plan of %s is for a state that is past: there was %s", each.resource.name, each.why)
    sites.hasten(site, site.now())
    site.is_urgent = site.is_urgent or bool(each.waiting and each.is_asked)
    if each.dropped >= MOST_DROPPED:
        return False
    each.dropped += 1
    return True


@pyscript_compile
async def put_in_force(site, each, version, powers, outlook, is_fallback, last):
    """Do what `adopt` says, once it is clear that the plan is for the present state."""
    now, before = site.now(), each.plan
    memory, heard = fill_levels.remembered(each.resource, each.session), dict(each.heard)
    found = await made_for(site, each, version, powers, outlook, site.limit, last)
    if (
        found is None
        or sites.is_gone(site, each)
        or each.plan is not before
        or site.now() < each.leaving_until
    ):
        return
    device, made, described = found
    plan_as_told = instructions.as_told(each, now)
    each.plan, each.device, each.is_fallback = made, device, is_fallback
    each.planned_version, each.dropped, each.chosen_at = version, 0, now
    each.manual = {instruction: span for instruction, span in each.manual.items() if span[0] > now}
    still_valid = [each.sent[instruction] for instruction in each.manual if instruction in each.sent]
    if each.type in control_types.BY_MODES:
        in_force = executed(plan_as_told, memory, heard, now)
        still_valid = [change for change in (*still_valid, *in_force) if has_mode(device, change)]
    planned = {id(change) for change in made.changes}
    still_valid = [change for change in still_valid if id(change) not in planned]
    made.changes = sorted([*made.changes, *still_valid], key=lambda change: change.moment)
    if not is_fallback:
        each.refused = None
        site.told(each.resource, None)
    site.shown(each.resource)
    each.replanned.set()
    each.is_returning, each.kept = False, kept_plans.new(site, each, described)
    if not is_fallback:
        for waiting in each.waiting:
            if not waiting.done():
                waiting.set_result(made)
        each.waiting.clear()


@pyscript_compile
async def made_for(site, each, version, powers, outlook, limit, last=math.inf):
    """Return (the device, the Plan that is made for it now, digests of what describes it), or None."""
    now, kind = site.now(), each.type
    memory, heard = fill_levels.remembered(each.resource, each.session), dict(each.heard)
    before = instructions.as_told(each, now)
    if kind.lacks(memory):
        return None
    begin = now + instructions.lead(each.session)
    tariffs, sent = site.tariffs, list(each.sent.values())
    times = spans(powers, outlook, begin, last)
    if not times:
        sites.hasten(site, now + site.settling)
        return None

    def make():
        device = kind.device(memory)
        if why := kind.unfit(device):
            raise errors.NotPlannable(why)
        state = kind.condition(device, memory, heard, before, now)
        market = outlooks.market(outlook, each, times, limit)
        wanted = powers and [(max(start, begin), end, power) for start, end, power in powers if end > begin]
        made = kind.follow(device, state, wanted, market, tariffs)
        if kind in control_types.BY_MODES:
            made.changes[:0] = unconfirmed(kind.present(device, state, begin), made, sent, begin)
        return device, made, kept_plans.digests(site, kind, memory)

    try:
        return await asyncio.to_thread(make)
    except errors.NotPlannable as error:
        sites.refuse(site, each, version, str(error))
    except Exception as error:
        LOGGER.exception("The schedule of %s cannot be followed: please report this", each.resource.name)
        reason = texts.quoted(repr(error))
        sites.refuse(site, each, version, f"its schedule cannot be followed ({reason})")
    return None


@pyscript_compile
def unconfirmed(present: list, made: Any, sent: list, begin: float) -> list:
    """Return the changes to what actuators do at present that are not what they were told last.

    A device learns by one that it is controlled, also where it is to go on. `sent` are the changes that it
    was told; one of these that it is about to make stays in the plan.
    """
    first = {change.actuator for change in made.changes if change.moment <= begin}
    found = []
    for change in present:
        told = [each for each in sent if each.actuator == change.actuator and each.moment <= begin]
        last = max(told, key=lambda each: each.moment, default=None)
        if change.actuator in first or last in made.changes:
            continue
        is_same = last and last.mode == change.mode and abs(last.factor - change.factor) < CONFIRMED_FACTOR
        found.append(last if is_same else change)
    return found


@pyscript_compile
def spans(powers, outlook, begin, last):
    """Return (start, end) of each interval between two moments: those of powers, or else of an Outlook."""
    if powers is None:
        starts = [outlook.start + place * outlook.step for place in range(len(outlook.total))]
        powers = [(start, start + outlook.step, None) for start in starts]
    return [(max(start, begin), end) for start, end, _power in powers if end > begin and start < last]


@pyscript_compile
def has_mode(device: Any, change: Any) -> bool:
    """Return whether a device, of a new description perhaps, has the operation mode of a change still."""
    actuators = {each.id: each for each in getattr(device, "actuators", [device])}
    return change.actuator in actuators and change.mode in actuators[change.actuator].modes


@pyscript_compile
def executed(made, memory, heard, now):
    """Return the last change that was due by now of each actuator that has not told of another mode since."""
    changes = [change for change in made.changes if change.moment <= now] if made else []
    told = {
        getattr(message, "actuator_id", None): message.active_operation_mode_id
        for message in memory.values()
        if hasattr(message, "active_operation_mode_id")
    }
    last = {change.actuator: change for change in changes}
    return [
        change
        for actuator, change in last.items()
        if change.moment > heard.get(actuator, 0.0) or told.get(actuator) == change.mode
    ]
