"""What a device is told, by its plan or by a user, and what comes of it.

Moments are seconds since 1970.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import flexmeasures_cem.cem as cems
import flexmeasures_cem.control_types.frbc.control_type as frbc
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.instructions as frbc_instructions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.errors as errors
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.site.site as sites
import flexmeasures_s2.errors as s2_errors
import flexmeasures_s2.session as sessions
import flexmeasures_s2.texts as texts

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
LEAD_SECONDS, LONGEST_LEAD = 2.0, 60.0
"""How far ahead an instruction is, at least and at most, for its way and the device's processing."""
MAX_SLEEP_SECONDS = 60.0
"""After how long the clock is read again, in case it was set."""
SECONDS_BETWEEN_TRIES, SECONDS_AFTER_A_FAULT = 1.0, 5.0
EARLY_SECONDS, MAX_EARLY_SECONDS = 5.0, 300.0
"""How much earlier than told a device does something where it does not wait for the execution_time."""
BROKEN_SECONDS = 900.0
"""How long after a rejection others call for no plan."""
MOST_SENT = 500
"""How many instructions of a device are remembered beside those that are still to be executed."""
BROKEN = ("REJECTED", "ABORTED")
DONE = ("STARTED", "SUCCEEDED")


@pyscript_compile
async def keep_instructing(site: sites.Site, controlled: sites.Controlled) -> None:
    """Send a device the instructions of its plans, each when it is due, for as long as it is controlled."""
    what = f"instructing of {controlled.resource.name} ({controlled.resource.resource_id})"
    try:
        while not site.is_gone(controlled):
            controlled.replanned.clear()
            try:
                if controlled.plan:
                    await instruct(site, controlled, controlled.plan)
                wait = until_next(site, controlled)
                site.fault(what, None)
                with suppress(TimeoutError):
                    await asyncio.wait_for(controlled.replanned.wait(), wait)
            except s2_errors.NoConfirmation:
                raise
            except Exception as error:
                site.fault(what, error)
                await asyncio.sleep(SECONDS_AFTER_A_FAULT)
    finally:
        site.fault(what, None)


@pyscript_compile
def until_next(site: sites.Site, controlled: sites.Controlled) -> float:
    """Return in how many seconds an instruction is due, or the clock is to be read again."""
    now, ahead = site.now(), send_ahead(site, controlled)
    due = (
        [change.moment - ahead for change in unsent(controlled, controlled.plan, now)]
        if controlled.plan
        else []
    )
    wait = min(due, default=math.inf) - now
    return min(wait, MAX_SLEEP_SECONDS) if wait > 0 else SECONDS_BETWEEN_TRIES


@pyscript_compile
def unsent(controlled: sites.Controlled, made: Any, soon: float) -> list[Any]:
    """Return the changes of a plan that the device was not told, and that none until `soon` has overtaken."""
    told = {id(change) for change in controlled.sent.values()}
    return [
        change for change in made.changes if id(change) not in told and not is_overtaken(made, change, soon)
    ]


@pyscript_compile
def as_told(controlled: sites.Controlled, now: float) -> Any:
    """Return a device's plan without what was to be executed by now but never sent, or None."""
    sent = {id(change) for change in controlled.sent.values()}
    return controlled.plan and replace(
        controlled.plan,
        changes=[one for one in controlled.plan.changes if one.moment > now or id(one) in sent],
    )


@pyscript_compile
def is_overtaken(made: Any, change: Any, moment: float) -> bool:
    """Return whether a plan has a later change for the same actuator that is to be made by a moment."""
    return change.moment <= moment and plans.last_instructed(made, moment, change.actuator) is not change


@pyscript_compile
def configured_lead(site: sites.Site, controlled: sites.Controlled) -> float:
    """Return how long before its time an instruction is to be sent (s); math.inf for when it is planned.

    An envelope (PEBC) has its own course of time, and of a profile (PPBC) the start is what is told: these
    are sent when they are planned, the latter unless its resource has a lead of its own.
    """
    own = None if controlled.type.has_own_timing else site.own_lead(controlled.resource)
    if own is not None:
        return own
    return math.inf if controlled.type.sent_when_planned else site.lead


@pyscript_compile
def send_ahead(site: sites.Site, controlled: sites.Controlled) -> float:
    """Return how long before its time an instruction is sent (s), as the device is known by now."""
    configured = configured_lead(site, controlled)
    if controlled.obeys_at_once and math.isfinite(configured):
        configured = 0.0
    return max(configured, lead(controlled.session))


@pyscript_compile
def executes_early(
    site: sites.Site, controlled: sites.Controlled, departs: Callable[[float], str | None], now: float
) -> bool:
    """Return whether a device does now what it was told to do next, since it does not wait for that.

    `departs(moment)` returns how what it tells departs from the plan at a moment, or None.
    """
    if math.isinf(configured_lead(site, controlled)):
        return False
    coming = [change for change in controlled.sent.values() if change.moment > now]
    following = {change.actuator: change for change in sorted(coming, key=lambda one: -one.moment)}
    for change in following.values():
        if change.moment <= now + MAX_EARLY_SECONDS:
            ready = max(change.moment, getattr(getattr(change, "active", None), "ready", 0.0))
            if departs(ready + plans.LAG_SECONDS) is None:
                return True
    return False


@pyscript_compile
def detect_early_execution(site: sites.Site, controlled: sites.Controlled, status: Any, now: float) -> None:
    """Take note where a status tells that the device does not wait for an instruction's execution_time.

    It was in the mode that it had been told before, and has gone on to the next one.
    """
    actuator, mode = vars(status).get("actuator_id"), status.active_operation_mode_id
    was_in = controlled.modes.get(actuator)
    controlled.modes[actuator] = mode
    if was_in == mode:
        return
    before = plans.last_instructed(controlled.plan, now, actuator)
    if before is None or was_in != before.mode:
        return
    is_early = before.mode != mode and any(
        change.actuator == actuator and change.mode == mode and change.moment > now + EARLY_SECONDS
        for change in controlled.sent.values()
    )
    if not is_early or controlled.obeys_at_once:
        return
    controlled.obeys_at_once = True
    if math.isinf(configured_lead(site, controlled)):
        LOGGER.warning(
            "%s executes instructions when it gets them: without instruction_lead: all it gets each in time",
            controlled.resource.name,
        )
    else:
        LOGGER.info(
            "%s executes instructions when it gets them, so each is sent at its time from now on",
            controlled.resource.name,
        )


@pyscript_compile
async def instruct(site: sites.Site, controlled: sites.Controlled, made: Any) -> None:
    """Revoke the instructions that a plan supersedes, and send those of its own that are due.

    Those that stay the same stay.
    """
    async with controlled.sending:
        if controlled.plan is not made or site.is_gone(controlled):
            return
        now, version = site.now(), controlled.version
        new = unsent(controlled, made, now + lead(controlled.session) / 2)
        for instruction, change in list(controlled.sent.items()):
            if change.moment <= now or any(change is other for other in made.changes):
                continue
            same = next((other for other in new if controlled.type.is_same_instruction(change, other)), None)
            if same:
                new.remove(same)
                controlled.sent[instruction] = same
            else:
                await revoke(controlled, instruction)
        for change in new:
            now = site.now()
            soon = now + lead(controlled.session) / 2
            is_broken = controlled.broken_at is not None and controlled.version != version
            if controlled.plan is not made or is_broken or controlled.session.stage == sessions.ENDED:
                return
            is_due = change.moment - send_ahead(site, controlled) <= now
            if is_due and change in made.changes and not is_overtaken(made, change, soon):
                await send(site, controlled, change, max(change.moment, soon))
    site.shown(controlled.resource)


@pyscript_compile
async def send(site: sites.Site, controlled: sites.Controlled, change: Any, moment: float) -> None:
    """Send an instruction, and plan again if it is refused."""
    instruction = str(uuid.uuid4())
    controlled.sent[instruction] = change
    follow_instructions(site, controlled, site.now())
    status = await controlled.session.request(
        controlled.type.message_type(change),
        id=instruction,
        execution_time=plans.moment(moment),
        **controlled.type.instruction_fields(change),
    )
    if status.status.value != sessions.OK and instruction in controlled.sent:
        broken(site, controlled, instruction, status.status.value)


@pyscript_compile
async def revoke(controlled: sites.Controlled, instruction: str) -> None:
    """Revoke an instruction that is not executed yet. Its confirmation is not waited for: some send none."""
    change = controlled.sent.pop(instruction)
    known = controlled.session.instructions.get(instruction)
    if known:
        known.status = "REVOKED"
    await controlled.session.send(
        "RevokeObject",
        object_type=controlled.type.message_type(change),
        object_id=instruction,
    )


@pyscript_compile
async def revoke_all(controlled: sites.Controlled, now: float) -> None:
    """Revoke all instructions that are not executed yet."""
    async with controlled.sending:
        for instruction, change in list(controlled.sent.items()):
            if change.moment > now:
                await revoke(controlled, instruction)


@pyscript_compile
def lead(session: sessions.Session) -> float:
    """Return how far ahead the first instruction is (s)."""
    processing_seconds: float = session.details.instruction_processing_delay.root / 1000
    return min(max(LEAD_SECONDS, processing_seconds), LONGEST_LEAD)


@pyscript_compile
async def send_instruction(site: sites.Site, resource: cems.Resource, call: dict[str, Any]) -> dict[str, Any]:
    """Send an instruction that a user asks for, and return it.

    It is in force until the plan's next one, or until another plan is made, at the next quarter at the
    latest; that the device departs from the plan meanwhile calls for none. Raise InvalidInstruction, or
    NotConfirmed.
    """
    session, found = resource.session, site.controlled_of(resource)
    if session is None:
        raise errors.InvalidInstruction(f"resource_id: {resource.name} is not connected: call again later")
    if found is None or found.type is not frbc.FRBC:
        raise errors.InvalidInstruction(
            f"resource_id: {resource.name} is under {session.control_type}, not {frbc.FRBC.name}: "
            f"select that by change_control_type, if it offers it"
        )
    async with found.sending:
        now, memory = site.now(), fill_levels.remembered(resource, session)
        frbc_instructions.refuse_without_description(memory)
        device = await asyncio.to_thread(devices.read_device, memory)
        state = (
            None
            if devices.missing_message(memory)
            else devices.read_state(device, memory, found.heard, found.plan, now)
        )
        fields = frbc_instructions.checked(memory, state, call, now)
        instruction = fields.pop("id")
        change, mode = frbc_instructions.change_of(device, state, fields) if state else (None, None)
        if instruction in session.instructions:
            raise errors.InvalidInstruction(f"id: {instruction} was sent before: leave it out")
        if site.controlled_of(resource) is not found or now < found.leaving_until:
            raise errors.InvalidInstruction(
                f"resource_id: {resource.name} gets another control type: call again once it has it"
            )
        if change:
            found.sent[instruction] = change
        try:
            status = await session.request(frbc_instructions.INSTRUCTION, id=instruction, **fields)
        except s2_errors.NoConfirmation as error:
            raise errors.NotConfirmed(str(error)) from error
        if status.status.value != sessions.OK:
            found.sent.pop(instruction, None)
            raise errors.NotConfirmed(
                f"{resource.name} answered {status.status.value} to the instruction: "
                f"{texts.quoted(status.diagnostic_label) or 'without a reason'}"
            )
        begin = fields["execution_time"].timestamp()
        following = [each.moment for each in upcoming(found, begin)]
        found.manual[instruction] = begin, min(following, default=begin + site.rolling)
        if change and found.plan:
            found.plan.changes = sorted([*found.plan.changes, change], key=lambda each: each.moment)
    site.urged.set()
    site.shown(resource)
    sent = {name: value for name, value in fields.items() if value is not None}
    shown = {"label": mode.label, "power": round(change.power)} if change and mode else {}
    return {"id": instruction} | sent | shown


@pyscript_compile
def is_manual(controlled: sites.Controlled, now: float) -> bool:
    """Tell whether a device follows an instruction of the user now."""
    return any(begin <= now < end for begin, end in controlled.manual.values())


@pyscript_compile
def status_updated(site: sites.Site, controlled: sites.Controlled, message: Any) -> None:
    """Plan again, once, when an instruction is rejected or aborted."""
    status = message.status_type.value
    if status in DONE:
        controlled.broken_at = None
    if status in BROKEN and message.instruction_id in controlled.sent:
        broken(site, controlled, message.instruction_id, status)
    site.shown(controlled.resource)


@pyscript_compile
def broken(site: sites.Site, controlled: sites.Controlled, instruction_id: str, status: str) -> None:
    """Take note of an instruction that the device will not follow."""
    forget(controlled, instruction_id)
    now = site.now()
    if controlled.broken_at is not None and 0 <= now - controlled.broken_at < BROKEN_SECONDS:
        LOGGER.debug("%s answered %s to an instruction again", controlled.resource.name, status)
        return
    controlled.broken_at = now
    LOGGER.warning("%s answered %s to an instruction: it is planned again", controlled.resource.name, status)
    site.request_replan(controlled, f"an instruction was {status}")


@pyscript_compile
def forget(controlled: sites.Controlled, instruction_id: str) -> None:
    """Take an instruction that will not be executed out of the plan."""
    change = controlled.sent.pop(instruction_id)
    if controlled.plan and change in controlled.plan.changes:
        controlled.plan.changes.remove(change)


@pyscript_compile
def follow_instructions(site: sites.Site, controlled: sites.Controlled, now: float) -> None:
    """Take note of the instruction that is in force now."""
    due = due_instructions(controlled, now)
    current = due[-1] if due else None
    if current != controlled.current:
        controlled.current = current
        site.shown(controlled.resource)
    for instruction in due[: max(0, len(controlled.sent) - MOST_SENT)]:
        del controlled.sent[instruction]


@pyscript_compile
def due_instructions(controlled: sites.Controlled, now: float) -> list[str]:
    """Return the ids of the instructions that were to be executed by now, in order."""
    due = [(each.moment, instruction) for instruction, each in controlled.sent.items() if each.moment <= now]
    return [instruction for _moment, instruction in sorted(due)]


@pyscript_compile
def upcoming(controlled: sites.Controlled, now: float) -> list[Any]:
    """Return the changes that a device is still to make."""
    return [each for each in controlled.plan.changes if each.moment > now] if controlled.plan else []


@pyscript_compile
def instruction_in_force(controlled: sites.Controlled, now: float) -> dict[str, Any] | None:
    """Return what the device was told last, with its status, or None."""
    due = due_instructions(controlled, now)
    if not due or controlled.device is None:
        return None
    change, known = controlled.sent[due[-1]], controlled.session.instructions.get(due[-1])
    return {
        "id": due[-1],
        **controlled.type.describe(controlled.device, change, now),
        "execution_time": plans.moment(change.moment),
        "status": known and known.status,
    }


@pyscript_compile
def next_instructions(controlled: sites.Controlled, now: float, most: int | None) -> list[dict[str, Any]]:
    """Return what the device is to do next, in order, so many at most."""
    if controlled.plan is None:
        return []
    return [
        {
            "execution_time": plans.moment(each.moment),
            **controlled.type.describe(controlled.device, each, each.moment),
        }
        for each in controlled.type.upcoming(controlled.plan, now)[:most]
    ]


@pyscript_compile
def missed_targets(controlled: sites.Controlled) -> list[dict[str, Any]]:
    """Return what the device needs and the plan does not reach: when, what was wanted, what is expected."""
    return controlled.type.missed_targets(controlled.plan) if controlled.plan else []
