"""How a plan that was made is put in force.

A plan that was made for a state that does not hold any more is not used. Moments are seconds since 1970.
"""

import logging
from typing import Any

import flexmeasures_cem.errors as errors
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.kept_plans as kept_plans
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.site_model as site_model

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
CONFIRMED_FACTOR = 0.1
"""By how much the factor of an active mode may differ from the instruction's, for that to be in force."""
MOST_DROPPED = 2
"""How many plans in a row are dropped because a state is past."""


@pyscript_compile
def is_stale(site: sites.Site, task: site_model.Task) -> bool:
    """Return whether a plan is for a problem that is past; then another one is made.

    Where a device never tells the same for long, every third plan is used as it is.
    """
    controlled = task.controlled
    if site.is_gone(controlled) or site.now() < controlled.leaving_until:
        return True
    if controlled.version == task.version:
        return False
    LOGGER.debug("A plan of %s is outdated: there was %s", controlled.resource.name, controlled.why)
    site.plan_no_later_than(site.now())
    if controlled.dropped >= MOST_DROPPED:
        return False
    controlled.dropped += 1
    return True


@pyscript_compile
def put_in_force(site: sites.Site, task: site_model.Task, made: Any, now: float) -> None:
    """Put the Plan in force that was made of a Task at a moment, and wake what sends its instructions."""
    controlled, device = task.controlled, task.device
    if controlled.type.keeps_mode:
        begin = now + instructions.lead(controlled.session)
        present = controlled.type.present_changes(device, task.state, begin)
        made.changes[:0] = unconfirmed(present, made, list(controlled.sent.values()), begin)
    is_first = controlled.plan is None
    if controlled.is_asked is False and (is_first or controlled.planned_version != task.version):
        site.ask_no_later_than(now if is_first else max(now, site.may_ask_of_others_at()))
    controlled.plan, controlled.device, controlled.round_at = made, device, site.round_at
    controlled.is_fallback = is_without_schedule(site, task)
    controlled.planned_version, controlled.dropped = task.version, 0
    controlled.manual = {
        instruction: span for instruction, span in controlled.manual.items() if span[0] > now
    }
    still_valid = [
        controlled.sent[instruction] for instruction in controlled.manual if instruction in controlled.sent
    ]
    if controlled.type.keeps_mode:
        in_force = executed(task.before, task.memory, task.heard, now)
        still_valid = [change for change in (*still_valid, *in_force) if has_mode(device, change)]
    planned = {id(change) for change in made.changes}
    still_valid = [change for change in still_valid if id(change) not in planned]
    made.changes = sorted([*made.changes, *still_valid], key=lambda change: change.moment)
    if controlled.unfit:
        controlled.unfit = None
        site.told(controlled.resource, None)
    site.shown(controlled.resource)
    controlled.replanned.set()
    site.has_new_plans.set()
    controlled.is_returning, controlled.kept = False, kept_plans.new(site, controlled, task.described or {})
    if not controlled.waiting or controlled.awaits_schedule:
        return
    if controlled.is_fallback and controlled.is_asked is False:
        controlled.fail_waiters(errors.NotPlanned("The prices are not known: see sensor.flexmeasures_status"))
    else:
        for waiting in controlled.waiting:
            if not waiting.done():
                waiting.set_result(made)
        controlled.waiting.clear()


@pyscript_compile
def is_without_schedule(site: sites.Site, task: site_model.Task) -> bool:
    """Return whether a plan was made without what it should be made with: a schedule, or prices."""
    if not task.controlled.type.flex_model or task.controlled.is_asked is False:
        return site.known_prices is None
    return task.wanted is None


@pyscript_compile
def unconfirmed(present: list[Any], made: Any, sent: list[Any], begin: float) -> list[Any]:
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
def has_mode(device: Any, change: Any) -> bool:
    """Return whether a device, of a new description perhaps, has the operation mode of a change still."""
    actuators = {each.id: each for each in getattr(device, "actuators", [device])}
    return change.actuator in actuators and change.mode in actuators[change.actuator].modes


@pyscript_compile
def executed(made: Any, memory: dict[tuple[str, ...], Any], heard: dict[Any, float], now: float) -> list[Any]:
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
