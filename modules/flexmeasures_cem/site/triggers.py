"""What calls for another plan: who comes and goes, what a device says, new prices, and a user's call.

Moments are seconds since 1970.
"""

import asyncio
import logging
from functools import partial
from typing import Any

import flexmeasures_api.errors as api_errors
import flexmeasures_api.prices as prices
import flexmeasures_cem.cem as cems
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.ppbc.device as profiles
import flexmeasures_cem.control_types.registry as registry
import flexmeasures_cem.errors as errors
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.kept_plans as kept_plans
import flexmeasures_cem.site.questions as questions
import flexmeasures_cem.site.site as sites
import flexmeasures_s2.messages as messages

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
def changed(site: sites.Site, resource: cems.Resource) -> None:
    """Take note that a Resource Manager connected, disconnected, or is under another control type."""
    session, found = resource.session, site.controlled_of(resource)
    kind = registry.BY_NAME.get(session.control_type or "") if session else None
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
        old.fail_waiters(errors.NotPlannable(f"{resource.name} {why}"))
        if session is not old.session:
            kept_plans.leave(site, old)
    if session and kind:
        found = sites.Controlled(resource, session, kind, since=site.now())
        found.is_asked = False if not kind.flex_model else None
        site.controlled[resource.resource_id] = found
        kept_plans.come_back(site, found)
        session.spawn(instructions.keep_instructing(site, found))
    if old:
        site.told(resource, None)
    site.urged.set()


@pyscript_compile
async def leave(site: sites.Site, resource: cems.Resource) -> None:
    """End the control of a Resource Manager that is about to get another control type.

    Should it refuse that, it is planned again.
    """
    found = site.controlled_of(resource)
    if found:
        found.plan = found.kept = None
        found.is_returning = False
        found.leaving_until = site.now() + AFTER_SELECTION_SECONDS
        site.request_replan(found, "another control type was to be selected", AFTER_SELECTION_SECONDS)
        await instructions.revoke_all(found, site.now())


@pyscript_compile
def received(site: sites.Site, resource: cems.Resource, message: Any) -> None:
    """Take note of what a Resource Manager said, and plan again where that matters."""
    found = site.controlled_of(resource)
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
            site.request_replan(found, f"a new {kind}", pause_before(site, found, kind))
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
                site.request_replan(found, f"another {kind} while it was planned")
        elif found.plan is None:
            if found.planned_version < 0 and not found.is_returning:
                site.request_replan(found, f"its first {kind}")
        elif found.version == found.planned_version and not instructions.is_manual(found, now):
            departed(site, found, message, now)


@pyscript_compile
def forecast_changed(site: sites.Site) -> None:
    """Plan all anew, since what others are to consume is another, but not at each message of theirs."""
    now = site.now()
    site.replan_all(max(site.settling, site.renewed_at + FORECAST_SECONDS - now))
    site.ask_no_later_than(max(now + site.settling, site.may_ask_of_others_at()))


@pyscript_compile
def pause_before(site: sites.Site, controlled: sites.Controlled, kind: str) -> float:
    """Return how long a message that changes the problem waits for more of them (s)."""
    if kind == profiles.DESCRIPTION and profiles.STATUS not in controlled.session.memory:
        return max(site.settling, FIRST_STATUS_SECONDS)
    return site.settling


@pyscript_compile
def departed(site: sites.Site, controlled: sites.Controlled, message: messages.Message, now: float) -> None:
    """Plan again where a status departs from the plan; where it stays the same, ever less often.

    What a device tells shortly after an instruction does not show yet whether it follows it.
    """
    fields = vars(message)
    key = message.message_type, fields.get("actuator_id"), fields.get("timer_id")
    departs = partial(controlled.type.deviation, controlled.device, controlled.plan, message)
    deviation = departs(now)
    if deviation is None and key not in controlled.departures and now >= controlled.settles_at:
        return
    content = what_is_said(fields)
    before, count, patient_until = controlled.departures.get(key, (None, 0, 0.0))
    if now < controlled.settles_at:
        if kept_plans.cannot_go_on(controlled, now):
            site.request_replan(controlled, deviation or "it cannot go on with its plan")
        return
    if deviation is None:
        if content != before and not plans.is_settling(controlled.plan, now, key[1]):
            controlled.departures.pop(key, None)
        return
    if instructions.executes_early(site, controlled, departs, now):
        return
    if content != before or now >= patient_until + LONGEST_PATIENCE_SECONDS:
        count, patient_until = 0, 0.0
    if now < patient_until:
        return
    patience = min(PATIENCE_SECONDS * 2.0**count, LONGEST_PATIENCE_SECONDS)
    controlled.departures[key] = content, min(count + 1, 10), now + patience
    site.request_replan(controlled, deviation)


@pyscript_compile
def what_is_said(fields: dict[str, Any]) -> tuple[Any, ...]:
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
def revoked(site: sites.Site, controlled: sites.Controlled, message: Any) -> None:
    """Stop what was planned on what a Resource Manager revokes; or plan again without it."""
    lacking = controlled.type.missing_message(controlled.session.memory)
    controlled.is_returning = False
    if lacking and controlled.plan:
        controlled.fail_waiters(errors.NotPlannable(f"{controlled.resource.name} has revoked its {lacking}"))
        controlled.plan = controlled.device = controlled.kept = None
        controlled.version += 1
        controlled.session.spawn(instructions.revoke_all(controlled, site.now()))
        site.shown(controlled.resource)
        return
    if message.object_id in controlled.sent:
        instructions.broken(site, controlled, message.object_id, "REVOKED")
    elif not lacking:
        site.request_replan(controlled, f"it revoked a {message.object_type.value}")


@pyscript_compile
def power_measured(site: sites.Site, controlled: sites.Controlled, now: float) -> None:
    """Plan again, once, when the measured power has departed from the plan."""
    if (
        controlled.plan is None
        or instructions.is_manual(controlled, now)
        or controlled.version != controlled.planned_version
    ):
        return
    power = site.power(controlled.resource)
    if power is None or now - controlled.plan.start < plans.LAG_SECONDS or now < controlled.settles_at:
        return
    departs_at = partial(controlled.type.power_deviation, controlled.device, controlled.plan, power)
    departs = departs_at(now)
    if departs is None or instructions.executes_early(site, controlled, departs_at, now):
        controlled.strange_power = None
    elif controlled.strange_power is None or plans.power_deviation(
        power, controlled.strange_power, controlled.type.power_tolerance(controlled.device)
    ):
        controlled.strange_power = power
        site.request_replan(controlled, departs)


@pyscript_compile
def are_awaited(site: sites.Site) -> bool:
    """Return whether a device waits for a schedule; one that comes back may go on with its own."""
    return any(
        controlled.is_fallback or (controlled.plan is None and not controlled.is_returning)
        for controlled in site.controlled.values()
    )


@pyscript_compile
def plan_soon(site: sites.Site) -> None:
    """Plan all anew in a moment, since what they are planned with is another."""
    if site.controlled:
        site.pause, site.not_before = sites.FIRST_PAUSE_SECONDS, 0.0
        site.replan_all()
        site.ask_no_later_than(site.now() + site.settling)


@pyscript_compile
async def plan_now(site: sites.Site, resource: cems.Resource) -> Any:
    """Plan a Resource Manager again now, and return its Plan; raise NotPlannable or NotPlanned."""
    found = site.controlled_of(resource)
    if found is None:
        name = resource.session.control_type if resource.session else "no control type"
        raise errors.NotPlannable(
            f"resource_id: {resource.name} is under {name}, which is not planned: "
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
    site.request_replan(found, "a call", CALLING_SECONDS)
    return await waiting


@pyscript_compile
async def look_at_prices(site: sites.Site, now: float) -> None:
    """Plan again when there are other prices than before for the same time."""
    site.prices_due = now + PRICES_SECONDS
    try:
        found = await site.prices(now - HOUR, now + questions.LONGEST_HORIZON)
    except api_errors.FlexMeasuresError as error:
        LOGGER.debug("The prices cannot be read: %s", error)
        if any(controlled.is_asked is False for controlled in site.controlled.values()):
            site.failed(error)
        return
    if all(controlled.is_asked is False for controlled in site.controlled.values()):
        site.succeeded()
    known, site.known_prices = site.known_prices, found
    if known is None or differ(known, found, now):
        LOGGER.info("There are new prices")
        site.replan_all()
        site.ask_no_later_than(now + site.settling)


@pyscript_compile
def differ(known: list[prices.PriceInterval], found: list[prices.PriceInterval], now: float) -> bool:
    """Tell whether known prices of a time to come differ; that the time looked at goes on does not count."""

    def prices_of(interval: prices.PriceInterval) -> tuple[float, float, bool]:
        return interval.consumption, interval.production, interval.is_known

    before = {interval.start: prices_of(interval) for interval in known}
    return any(
        interval.is_known and before.get(interval.start) != prices_of(interval)
        for interval in found[1:]
        if interval.end > now and interval.start < known[-1].end
    )
