"""What a device is told, by its plan or by a user, and what comes of it.

Moments are seconds since 1970.
"""

import asyncio
import logging
import math
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Any

import flexmeasures_cem.control_types.frbc.control_type as frbc
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.instructions as frbc_instructions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.registry as registry
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
async def keep_instructing(site: Any, each: Any) -> None:
    """Send a device the instructions of its plans, each when it is due, for as long as it is controlled."""
    what = f"instructing of {each.resource.name} ({each.resource.resource_id})"
    try:
        while not sites.is_gone(site, each):
            each.replanned.clear()
            try:
                if each.plan:
                    await instruct(site, each, each.plan)
                wait = until_next(site, each)
                site.fault(what, None)
                with suppress(TimeoutError):
                    await asyncio.wait_for(each.replanned.wait(), wait)
            except s2_errors.NoConfirmation:
                raise
            except Exception as error:
                site.fault(what, error)
                await asyncio.sleep(SECONDS_AFTER_A_FAULT)
    finally:
        site.fault(what, None)


@pyscript_compile
def until_next(site: Any, each: Any) -> float:
    """Return in how many seconds an instruction is due, or the clock is to be read again."""
    now, ahead = site.now(), send_ahead(site, each)
    due = [change.moment - ahead for change in unsent(each, each.plan, now)] if each.plan else []
    wait = min(due, default=math.inf) - now
    return min(wait, MAX_SLEEP_SECONDS) if wait > 0 else SECONDS_BETWEEN_TRIES


@pyscript_compile
def unsent(each: Any, made: Any, soon: float) -> list:
    """Return the changes of a plan that the device was not told, and that none until `soon` has overtaken."""
    told = {id(change) for change in each.sent.values()}
    return [
        change for change in made.changes if id(change) not in told and not is_overtaken(made, change, soon)
    ]


@pyscript_compile
def as_told(each: Any, now: float) -> Any:
    """Return a device's plan without what was to be executed by now but never sent, or None."""
    sent = {id(change) for change in each.sent.values()}
    return each.plan and replace(
        each.plan, changes=[one for one in each.plan.changes if one.moment > now or id(one) in sent]
    )


@pyscript_compile
def is_overtaken(made: Any, change: Any, moment: float) -> bool:
    """Return whether a plan has a later change for the same actuator that is to be made by a moment."""
    return change.moment <= moment and plans.last_instructed(made, moment, change.actuator) is not change


@pyscript_compile
def configured_lead(site: Any, each: Any) -> float:
    """Return how long before its time an instruction is to be sent (s); math.inf for when it is planned.

    An envelope (PEBC) has its own course of time, and of a profile (PPBC) the start is what is told: these
    are sent when they are planned, the latter unless its resource has a lead of its own.
    """
    own = None if each.type.has_own_timing else site.own_lead(each.resource)
    if own is not None:
        return own
    return math.inf if each.type.sent_when_planned else site.lead


@pyscript_compile
def send_ahead(site: Any, each: Any) -> float:
    """Return how long before its time an instruction is sent (s), as the device is known by now."""
    configured = configured_lead(site, each)
    if each.obeys_at_once and math.isfinite(configured):
        configured = 0.0
    return max(configured, lead(each.session))


@pyscript_compile
def executes_early(site: Any, each: Any, departs: Any, now: float) -> bool:
    """Return whether a device does now what it was told to do next, since it does not wait for that.

    `departs(moment)` returns how what it tells departs from the plan at a moment, or None.
    """
    if math.isinf(configured_lead(site, each)):
        return False
    coming = [change for change in each.sent.values() if change.moment > now]
    following = {change.actuator: change for change in sorted(coming, key=lambda one: -one.moment)}
    for change in following.values():
        if change.moment <= now + MAX_EARLY_SECONDS:
            ready = max(change.moment, getattr(getattr(change, "active", None), "ready", 0.0))
            if departs(ready + plans.LAG_SECONDS) is None:
                return True
    return False


@pyscript_compile
def detect_early_execution(site: Any, each: Any, status: Any, now: float) -> None:
    """Take note where a status tells that the device does not wait for an instruction's execution_time.

    It was in the mode that it had been told before, and has gone on to the next one.
    """
    actuator, mode = vars(status).get("actuator_id"), status.active_operation_mode_id
    was_in = each.modes.get(actuator)
    each.modes[actuator] = mode
    if was_in == mode:
        return
    before = plans.last_instructed(each.plan, now, actuator)
    if before is None or was_in != before.mode:
        return
    is_early = before.mode != mode and any(
        change.actuator == actuator and change.mode == mode and change.moment > now + EARLY_SECONDS
        for change in each.sent.values()
    )
    if not is_early or each.obeys_at_once:
        return
    each.obeys_at_once = True
    if math.isinf(configured_lead(site, each)):
        LOGGER.warning(
            "%s executes instructions when it gets them: without instruction_lead: all it gets each in time",
            each.resource.name,
        )
    else:
        LOGGER.info(
            "%s executes instructions when it gets them, so each is sent at its time from now on",
            each.resource.name,
        )


@pyscript_compile
async def instruct(site, each, made):
    """Revoke the instructions that a plan supersedes, and send those of its own that are due.

    Those that stay the same stay.
    """
    async with each.sending:
        if each.plan is not made or sites.is_gone(site, each):
            return
        now, version = site.now(), each.version
        new = unsent(each, made, now + lead(each.session) / 2)
        for instruction, change in list(each.sent.items()):
            if change.moment <= now or any(change is other for other in made.changes):
                continue
            same = next((other for other in new if each.type.is_same_instruction(change, other)), None)
            if same:
                new.remove(same)
                each.sent[instruction] = same
            else:
                await revoke(each, instruction)
        for change in new:
            now = site.now()
            soon = now + lead(each.session) / 2
            is_broken = each.broken_at is not None and each.version != version
            if each.plan is not made or is_broken or each.session.stage == sessions.ENDED:
                return
            is_due = change.moment - send_ahead(site, each) <= now
            if is_due and change in made.changes and not is_overtaken(made, change, soon):
                await send(site, each, change, max(change.moment, soon))
    site.shown(each.resource)


@pyscript_compile
async def send(site, each, change, moment):
    """Send an instruction, and plan again if it is refused."""
    instruction = str(uuid.uuid4())
    each.sent[instruction] = change
    follow_instructions(site, each, site.now())
    status = await each.session.request(
        each.type.message_type(change),
        id=instruction,
        execution_time=plans.moment(moment),
        **each.type.instruction_fields(change),
    )
    if status.status.value != sessions.OK and instruction in each.sent:
        broken(site, each, instruction, status.status.value)


@pyscript_compile
async def revoke(each, instruction):
    """Revoke an instruction that is not executed yet. Its confirmation is not waited for: some send none."""
    change = each.sent.pop(instruction)
    known = each.session.instructions.get(instruction)
    if known:
        known.status = "REVOKED"
    await each.session.send(
        "RevokeObject",
        object_type=each.type.message_type(change),
        object_id=instruction,
    )


@pyscript_compile
async def revoke_all(each, now):
    """Revoke all instructions that are not executed yet."""
    async with each.sending:
        for instruction, change in list(each.sent.items()):
            if change.moment > now:
                await revoke(each, instruction)


@pyscript_compile
def lead(session):
    """Return how far ahead the first instruction is (s)."""
    told = session.details.instruction_processing_delay.root / 1000
    return min(max(LEAD_SECONDS, told), LONGEST_LEAD)


@pyscript_compile
async def send_instruction(site, resource, call):
    """Send an instruction that a user asks for, and return it.

    It is in force until the plan's next one, or until another plan is made, at the next quarter at the
    latest; that the device departs from the plan meanwhile calls for none. Raise InvalidInstruction, or
    NotConfirmed.
    """
    session = resource.session
    kind = registry.BY_NAME.get(session.control_type)
    if kind is not frbc.FRBC:
        raise errors.InvalidInstruction(
            f"resource_id: {resource.name} is under {session.control_type}, not {frbc.FRBC.name}: "
            f"select that by change_control_type, if it offers it"
        )
    found = sites.of(site, resource)
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
        if sites.of(site, resource) is not found or now < found.leaving_until:
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
    return (
        {"id": instruction} | sent | ({"label": mode.label, "power": round(change.power)} if change else {})
    )


@pyscript_compile
def is_manual(found, now):
    """Tell whether a device follows an instruction of the user now."""
    return any(begin <= now < end for begin, end in found.manual.values())


@pyscript_compile
def status_updated(site, found, message):
    """Plan again, once, when an instruction is rejected or aborted."""
    status = message.status_type.value
    if status in DONE:
        found.broken_at = None
    if status in BROKEN and message.instruction_id in found.sent:
        broken(site, found, message.instruction_id, status)
    site.shown(found.resource)


@pyscript_compile
def broken(site, found, instruction_id, status):
    """Take note of an instruction that the device will not follow."""
    forget(found, instruction_id)
    now = site.now()
    if found.broken_at is not None and 0 <= now - found.broken_at < BROKEN_SECONDS:
        LOGGER.debug("%s answered %s to an instruction again", found.resource.name, status)
        return
    found.broken_at = now
    LOGGER.warning("%s answered %s to an instruction: it is planned again", found.resource.name, status)
    sites.want(site, found, f"an instruction was {status}")


@pyscript_compile
def forget(found, instruction_id):
    """Take an instruction that will not be executed out of the plan."""
    change = found.sent.pop(instruction_id)
    if found.plan and change in found.plan.changes:
        found.plan.changes.remove(change)


@pyscript_compile
def follow_instructions(site, found, now):
    """Take note of the instruction that is in force now."""
    due = due_instructions(found, now)
    current = due[-1] if due else None
    if current != found.current:
        found.current = current
        site.shown(found.resource)
    for instruction in due[: max(0, len(found.sent) - MOST_SENT)]:
        del found.sent[instruction]


@pyscript_compile
def due_instructions(found, now):
    """Return the ids of the instructions that were to be executed by now, in order."""
    due = [(each.moment, instruction) for instruction, each in found.sent.items() if each.moment <= now]
    return [instruction for _moment, instruction in sorted(due)]


@pyscript_compile
def upcoming(found, now):
    """Return the changes that a device is still to make."""
    return [each for each in found.plan.changes if each.moment > now] if found.plan else []


@pyscript_compile
def instruction_in_force(found, now):
    """Return what the device was told last, with its status, or None."""
    due = due_instructions(found, now)
    if not due or found.device is None:
        return None
    change, known = found.sent[due[-1]], found.session.instructions.get(due[-1])
    return {
        "id": due[-1],
        **found.type.describe(found.device, change, now),
        "execution_time": plans.moment(change.moment),
        "status": known and known.status,
    }


@pyscript_compile
def next_instructions(found, now, most):
    """Return what the device is to do next, in order, so many at most."""
    if found.plan is None:
        return []
    return [
        {
            "execution_time": plans.moment(each.moment),
            **found.type.describe(found.device, each, each.moment),
        }
        for each in found.type.upcoming(found.plan, now)[:most]
    ]


@pyscript_compile
def missed_targets(found):
    """Return what the device needs and the plan does not reach: when, what was wanted, what is expected."""
    return found.type.missed_targets(found.plan) if found.plan else []
