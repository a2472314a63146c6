"""What calls for another plan: who comes and goes, what a device says, new prices, and a user's call.

Moments are seconds since 1970.
"""

import asyncio
import logging
from functools import partial
from typing import Any

import flexmeasures_api.errors as api_errors
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.ppbc.device as profiles
import flexmeasures_cem.control_types.registry as registry
import flexmeasures_cem.errors as errors
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.kept_plans as kept_plans
import flexmeasures_cem.site.questions as questions
import flexmeasures_cem.site.site as sites

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
CALLING_SECONDS = 0.1
"""How long is waited for other calls."""
HOUR = 3600.0
"""The longest interval of a power sensor (s), the one under way of which has begun that long ago at most."""
PRICES_SECONDS = 300.0
"""How often is looked for new prices."""
AFTER_SELECTION_SECONDS = 30.0
PATIENCE_SECONDS, LONGEST_PATIENCE_SECONDS = 60.0, 900.0
"""How long a device that goes on telling the same is left at it: first, and at most; it doubles each time."""
FORECAST_SECONDS = 30.0
"""How often all are planned anew at most, because of what others forecast."""
FIRST_STATUS_SECONDS = 2.0
"""How long the first status of a power profile is waited for."""


@pyscript_compile
def changed(site, resource):
    """Take note that a Resource Manager connected, disconnected, or is under another control type."""
    session, found = resource.session, sites.of(site, resource)
    kind = registry.BY_NAME.get(session.control_type) if session else None
    if found and kind is found.type:
        return
    other = site.others.pop(resource.resource_id, None)
    if session and kind is None:
        kept_plans.expire(site, resource)
        site.others[resource.resource_id] = resource
    elif other and session is None and site.controlled:
        forecast_changed(site)
    old = site.controlled.pop(resource.resource_id, None)
    if old:
        why = f"is not under {old.type.name} any more" if session else "has disconnected"
        sites.give_up(old, errors.NotPlannable(f"{resource.name} {why}"))
        if session is not old.session:
            kept_plans.leave(site, old)
    if kind:
        found = sites.Controlled(resource, session, kind, since=site.now())
        found.is_asked = False if not kind.flex_model else None
        site.controlled[resource.resource_id] = found
        kept_plans.come_back(site, found)
        session.spawn(instructions.keep_instructing(site, found))
    if old:
        site.told(resource, None)
    site.urged.set()


@pyscript_compile
async def leave(site, resource):
    """End the control of a Resource Manager that is about to get another control type.

    Should it refuse that, it is planned again.
    """
    found = sites.of(site, resource)
    if found:
        found.plan = found.kept = None
        found.is_returning = False
        found.leaving_until = site.now() + AFTER_SELECTION_SECONDS
        sites.want(site, found, "another control type was to be selected", AFTER_SELECTION_SECONDS)
        await instructions.revoke_all(found, site.now())


@pyscript_compile
def received(site, resource, message):
    """Take note of what a Resource Manager said, and plan again where that matters."""
    found = sites.of(site, resource)
    if found is None:
        if message.message_type == "PowerForecast" and site.controlled:
            forecast_changed(site)
        return
    kind, memory, now = message.message_type, found.session.memory, site.now()
    if found.is_returning:
        kept_plans.resume_when_described(site, found)
    if kind in found.type.describing_messages:
        found.broken_at = None
        found.departures.clear()
        if not found.is_returning:
            sites.want(site, found, f"a new {kind}", pause_before(site, found, kind))
    elif kind == "RevokeObject":
        revoked(site, found, message)
    elif kind == "InstructionStatusUpdate":
        instructions.status_updated(site, found, message)
    elif found.type.missing_message(memory) or fill_levels.is_doubted(resource, message):
        return
    elif kind == "PowerMeasurement":
        power_measured(site, found, now)
    else:
        fields = vars(message)
        if "active_operation_mode_id" in fields or "sequence_container_status" in fields:
            found.heard[fields.get("actuator_id")] = now
        if "finished_at" in fields:
            found.heard[fields.get("actuator_id"), message.timer_id] = now
        if "active_operation_mode_id" in fields:
            instructions.detect_early_execution(site, found, message, now)
        if found.asked:
            if found.type.has_changed(*found.asked, message):
                found.asked = None
                sites.want(site, found, f"another {kind} while it was planned")
        elif found.plan is None:
            if found.planned_version < 0 and not found.is_returning:
                sites.want(site, found, f"its first {kind}")
        elif found.version == found.planned_version and not instructions.is_manual(found, now):
            departed(site, found, message, now)


@pyscript_compile
def forecast_changed(site: Any) -> None:
    """Plan all anew, since what others are to consume is another, but not at each message of theirs."""
    now = site.now()
    sites.renew(site, max(site.settling, site.renewed_at + FORECAST_SECONDS - now))
    sites.ask_no_later_than(site, max(now + site.settling, sites.may_ask_of_others_at(site)))


@pyscript_compile
def pause_before(site: Any, found: Any, kind: str) -> float:
    """Return how long a message that changes the problem waits for more of them (s)."""
    if kind == profiles.DESCRIPTION and profiles.STATUS not in found.session.memory:
        return max(site.settling, FIRST_STATUS_SECONDS)
    return site.settling


@pyscript_compile
def departed(site, found, message, now):
    """Plan again where a status departs from the plan; where it stays the same, ever less often.

    What a device tells shortly after an instruction does not show yet whether it follows it.
    """
    fields = vars(message)
    key = message.message_type, fields.get("actuator_id"), fields.get("timer_id")
    departs = partial(found.type.deviation, found.device, found.plan, message)
    deviation = departs(now)
    if deviation is None and key not in found.departures and now >= found.settles_at:
        return
    content = what_is_said(fields)
    before, count, patient_until = found.departures.get(key, (None, 0, 0.0))
    if now < found.settles_at:
        if kept_plans.cannot_go_on(found, now):
            sites.want(site, found, deviation or "it cannot go on with its plan")
        return
    if deviation is None:
        if content != before and not plans.is_settling(found.plan, now, key[1]):
            found.departures.pop(key, None)
        return
    if instructions.executes_early(site, found, departs, now):
        return
    if content != before or now >= patient_until + LONGEST_PATIENCE_SECONDS:
        count, patient_until = 0, 0.0
    if now < patient_until:
        return
    patience = min(PATIENCE_SECONDS * 2.0**count, LONGEST_PATIENCE_SECONDS)
    found.departures[key] = content, min(count + 1, 10), now + patience
    sites.want(site, found, deviation)


@pyscript_compile
def what_is_said(fields: dict[str, Any]) -> tuple:
    """Return what a status says of the device, but for how far it has come, and the factor of its mode.

    A device that goes its own way often does so at another power each time.
    """
    containers = fields.get("sequence_container_status") or []
    return (
        fields.get("present_fill_level"),
        fields.get("active_operation_mode_id"),
        fields.get("finished_at"),
        fields.get("present_demand_rate"),
        [(each.sequence_container_id, each.status.value, each.selected_sequence_id) for each in containers],
    )


@pyscript_compile
def revoked(site, found, message):
    """Stop what was planned on what a Resource Manager revokes; or plan again without it."""
    lacking = found.type.missing_message(found.session.memory)
    found.is_returning = False
    if lacking and found.plan:
        sites.give_up(found, errors.NotPlannable(f"{found.resource.name} has revoked its {lacking}"))
        found.plan = found.device = found.kept = None
        found.version += 1
        found.session.spawn(instructions.revoke_all(found, site.now()))
        site.shown(found.resource)
        return
    if message.object_id in found.sent:
        instructions.broken(site, found, message.object_id, "REVOKED")
    elif not lacking:
        sites.want(site, found, f"it revoked a {message.object_type.value}")


@pyscript_compile
def power_measured(site, found, now):
    """Plan again, once, when the measured power has departed from the plan."""
    if found.plan is None or instructions.is_manual(found, now) or found.version != found.planned_version:
        return
    power = site.power(found.resource)
    if power is None or now - found.plan.start < plans.LAG_SECONDS or now < found.settles_at:
        return
    departs_at = partial(found.type.power_deviation, found.device, found.plan, power)
    departs = departs_at(now)
    if departs is None or instructions.executes_early(site, found, departs_at, now):
        found.strange_power = None
    elif found.strange_power is None or plans.power_deviation(
        power, found.strange_power, found.type.power_tolerance(found.device)
    ):
        found.strange_power = power
        sites.want(site, found, departs)


@pyscript_compile
def are_awaited(site: Any) -> bool:
    """Return whether a device waits for a schedule; one that comes back may go on with its own."""
    return any(
        each.is_fallback or (each.plan is None and not each.is_returning) for each in site.controlled.values()
    )


@pyscript_compile
def plan_soon(site):
    """Plan all anew in a moment, since what they are planned with is another."""
    if site.controlled:
        site.pause, site.not_before = sites.FIRST_PAUSE_SECONDS, 0.0
        sites.renew(site)
        sites.ask_no_later_than(site, site.now() + site.settling)


@pyscript_compile
async def plan_now(site, resource):
    """Plan a Resource Manager again now, and return its Plan; raise NotPlannable or NotPlanned."""
    found = sites.of(site, resource)
    if found is None:
        raise errors.NotPlannable(
            f"resource_id: {resource.name} is under {resource.session.control_type}, which is not planned: "
            f"select {', '.join(registry.BY_NAME)} by change_control_type, if it offers that"
        )
    is_asked = found.is_asked is not False
    if is_asked and questions.left(site) <= 0:
        wait = questions.takes_more_at(site) - site.now()
        raise errors.NotPlanned(f"FlexMeasures takes no more plans for now: call in {wait:.0f} s")
    waiting = asyncio.get_running_loop().create_future()
    found.waiting.append(waiting)
    site.is_urgent = site.is_urgent or is_asked
    found.awaits_schedule = found.awaits_schedule or is_asked
    sites.want(site, found, "a call", CALLING_SECONDS)
    return await waiting


@pyscript_compile
async def look_at_prices(site, now):
    """Plan again when there are other prices than before for the same time."""
    site.prices_due = now + PRICES_SECONDS
    try:
        found = await site.prices(now - HOUR, now + questions.LONGEST_HORIZON)
    except api_errors.FlexMeasuresError as error:
        LOGGER.debug("The prices cannot be read: %s", error)
        if any(each.is_asked is False for each in site.controlled.values()):
            site.failed(error)
        return
    if all(each.is_asked is False for each in site.controlled.values()):
        site.succeeded()
    known, site.known_prices = site.known_prices, found
    if known is None or differ(known, found, now):
        LOGGER.info("There are new prices")
        sites.renew(site)
        sites.ask_no_later_than(site, now + site.settling)


@pyscript_compile
def differ(known, found, now):
    """Tell whether known prices of a time to come differ; that the time looked at goes on does not count."""

    def prices_of(interval: Any) -> tuple[float, float, bool]:
        return interval.consumption, interval.production, interval.is_known

    before = {interval.start: prices_of(interval) for interval in known}
    return any(
        interval.is_known and before.get(interval.start) != prices_of(interval)
        for interval in found[1:]
        if interval.end > now and interval.start < known[-1].end
    )
