"""When to plan the Resource Managers of a site, all in one question, and what each of them is told.

What FlexMeasures cannot express is chosen here first, and enters its question as given. Everything that
changes the problem asks for another plan: those wishes are collected for a moment, and at most a few
questions are asked in some minutes, one after the other. A plan that was asked for a state that does not
hold any more is not used. Moments are seconds since 1970.
"""

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import flexmeasures_cem.ddbc as ddbc
import flexmeasures_cem.errors as errors
import flexmeasures_cem.frbc as frbc
import flexmeasures_cem.loads as loads
import flexmeasures_cem.ombc as ombc
import flexmeasures_cem.outlook as outlooks
import flexmeasures_cem.pebc as pebc
import flexmeasures_cem.plans as plans
import flexmeasures_cem.ppbc as ppbc
import flexmeasures_optimiser.errors as optimiser_errors
import flexmeasures_optimiser.storage as storages
import flexmeasures_s2.errors as s2_errors
import flexmeasures_s2.session as sessions

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
CONTROL_TYPES = {each.CONTROL_TYPE: each for each in (frbc, ombc, ddbc, ppbc, pebc)}
"""The module of each control type that can be planned; all have the same public names."""
PLANNED_HERE = (ombc, ddbc, ppbc)
"""Those that FlexMeasures is never asked about, so that they are planned without a sensor too."""
BY_MODES = (frbc, ombc, ddbc)
"""Those whose devices stay in the operation mode that they were told, until they are told another."""
LEAST_FLEXIBLE_FIRST = [each.CONTROL_TYPE for each in (ppbc, ddbc, ombc, pebc, frbc)]
"""In which order choices are made here: each takes those before it as given."""
SETTLING_SECONDS = 1.0
"""How long other messages are waited for, before a change is planned."""
CALLING_SECONDS = 0.1
"""How long is waited for other calls."""
MOST_PLANS, MOST_WITH_CALLS, PLANS_SECONDS = 8, 10, 300.0
"""How many plans are made in some time, at most, and with calls for more: FlexMeasures takes 10."""
ROLLING_SECONDS = 900.0
"""How long a plan is used before it is made anew, at most."""
PRICES_SECONDS = 300.0
"""How often is looked for new prices."""
AFTER_SELECTION_SECONDS = 30.0
REFUSED_SECONDS = 3600.0
"""How long who is refused by FlexMeasures is left out."""
MEANS_SECONDS = 60.0
"""How long the sensors of a device may be unknown before it is brought to rest."""
SECONDS_AFTER_A_FAULT = 5.0
BETWEEN_GIVEN_SECONDS = 120.0
"""How long FlexMeasures is not asked again only because of devices that it does not plan."""
SOON_SECONDS = 10.0
"""How long those who are planned here wait for FlexMeasures' answer, where the site has a limit."""
BROKEN_SECONDS = 900.0
"""How long after a rejection others call for no plan."""
PATIENCE_SECONDS, LONGEST_PATIENCE_SECONDS = 60.0, 900.0
"""How long a device is left at what it tells over again: twice as long each time."""
FIRST_STATUS_SECONDS = 2.0
"""How long the first status of a power profile is waited for."""
LONGEST_SLEEP = 60.0
KWH = 3_600_000.0
"""J."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 900.0
LONGEST_HORIZON = 172_800.0
"""FlexMeasures plans no more than two days ahead, unless its owner has set another horizon."""
LEAD_SECONDS, LONGEST_LEAD = 2.0, 60.0
"""How far ahead an instruction is, at least and at most, for its way and the device's processing."""
MOST_SPLITS = 5
MOST_DROPPED = 2
"""How many plans in a row are dropped because a state is past."""
MOST_WITH_MODES = 2
"""Of how many devices FlexMeasures is asked to choose operation modes: that takes it twice the time."""
STEP_SECONDS = 900.0
CHOICE_SECONDS = 5.0
"""How long a choice that is made here holds at least."""
MOST_SENT = 500
"""How many instructions of a device are remembered beside those that are still to be executed."""
OF_A_PROBLEM = (
    optimiser_errors.InvalidProblem,
    optimiser_errors.Infeasible,
    optimiser_errors.JobFailed,
    optimiser_errors.NoAccess,
    optimiser_errors.UnknownSensor,
)
"""Errors that one device of several may be the cause of."""
BROKEN = ("REJECTED", "ABORTED")
DONE = ("STARTED", "SUCCEEDED")


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Means:
        """What a Resource Manager is planned with: its power sensor's number and resolution (s).

        `soc_sensor` gets the planned state of charge; `energy` is what one unit of fill level is
        configured to be worth (J).
        """

        power_sensor: int
        resolution: float
        soc_sensor: int | None
        energy: float | None

    @dataclass(frozen=True)
    class Window:
        """The time that FlexMeasures plans: from `start` to `end` in steps (s).

        `left` is which part of the first step is left, `share` how much of the site's limit each device has
        (W), and `with_modes` tells whether operation modes may be asked for.
        """

        start: float
        step: float
        end: float
        left: float
        share: float
        with_modes: bool

    @dataclass(eq=False)
    class Controlled:
        """A Resource Manager under a control type that can be planned, for as long as that is active.

        `version` counts what changed its problem, `why` says what did last. `plan` is in force, and `device`
        what it was made for; without a schedule it is one of our own (`is_fallback`). `worth` is what a unit
        of its fill level is taken to be worth. `sent` maps the ids of instructions that were sent to their
        Changes, `current` is the last that is due. `heard` tells when each actuator told its status.
        `refused` is why FlexMeasures cannot plan it, for `refused_version` and until `refused_until`. `since`
        is when its control began, `manual` maps the ids of a user's instructions to when they begin and end.
        `asked` is the device and state that a plan is being asked for, `dropped` how many plans in a row came
        too late. `is_asked` tells whether FlexMeasures plans it, as far as that is known, `chosen_at` when
        it was last planned here. `executed` are changes that were told under an earlier plan and still hold.
        `broken_at` is when an instruction was rejected, `departures` has by message_type what was said last
        that departs from the plan, how often, and until when that is left at it. `was_warned` tells whether a
        missing price was told. Until `leaving_until`
        another control type is being selected.
        """

        resource: Any
        session: Any
        type: Any
        version: int = 0
        why: str | None = None
        plan: Any = None
        device: Any = None
        is_fallback: bool = False
        worth: Any = None
        planned_version: int = -1
        sent: dict = field(default_factory=dict)
        current: str | None = None
        heard: dict = field(default_factory=dict)
        refused: str | None = None
        refused_version: int = -1
        refused_until: float = 0.0
        since: float = 0.0
        manual: dict = field(default_factory=dict)
        asked: tuple | None = None
        is_asked: bool | None = None
        chosen_at: float = 0.0
        dropped: int = 0
        executed: list = field(default_factory=list)
        broken_at: float | None = None
        departures: dict = field(default_factory=dict)
        leaving_until: float = 0.0
        was_warned: bool = False
        strange_power: float | None = None
        waiting: list = field(default_factory=list)
        sending: Any = field(default_factory=asyncio.Lock)

    @dataclass
    class Site:
        """Who is controlled, by resource_id, and how the site's plan is made.

        `solve(problems, window, loads, limits)` (async) returns a Schedule by power sensor, and may raise an
        OptimiserError. `loads` maps the power sensors of other devices to their powers (start, end, W), or to
        None where the server has them; `limits` are the site's (start, end, W) where those vary.
        `prices(start, end)` (async) returns (start, end, consumption price, production price) per kWh, in
        order; `tariffs` are those of other commodities. `means(resource)` returns its
        Means, or None while they are not known, `power(resource)` the power that it measures (W), or None.
        `own(moment)` is what the app's own device is to have (W). `shown(resource)` is called when a plan or
        instruction has changed, `told(resource, text)` with what keeps it from being planned, or None;
        `unfit(resource, session, control_type)` when what it told cannot be planned under that, and
        `failed(error)` and `succeeded()` with what became of the site's plan. `horizon` is how long a plan is
        (s), `limit` the site's greatest power (W), `settling` how long is waited for further changes (s),
        `rolling` how long a plan is used at most (s), `soon` how long FlexMeasures' answer is waited for (s)
        before those are told who are planned here, `due` when the next one is to be made, and `not_before`
        when FlexMeasures may be asked at the earliest; `is_eager` has it asked as soon as that. `renewal` is
        when those who are planned here choose again, since another has joined. `others` are
        the Resource Managers that are connected and not controlled; `unusable` has until when the sensors of
        some are left out, since they cannot be posted to.
        """

        solve: Any
        prices: Any
        means: Any
        power: Any
        own: Any
        shown: Any
        told: Any
        unfit: Any
        failed: Any
        succeeded: Any
        horizon: float
        limit: float | None = None
        now: Any = time.time
        settling: float = SETTLING_SECONDS
        rolling: float = ROLLING_SECONDS
        soon: float = SOON_SECONDS
        tariffs: dict = field(default_factory=dict)
        others: dict = field(default_factory=dict)
        unusable: dict = field(default_factory=dict)
        is_eager: bool = False
        renewal: float | None = None
        controlled: dict = field(default_factory=dict)
        due: float | None = None
        is_urgent: bool = False
        urged: asyncio.Event = field(default_factory=asyncio.Event)
        made: deque = field(default_factory=deque)
        known_prices: list | None = None
        prices_due: float = 0.0
        pause: float = FIRST_PAUSE_SECONDS
        splits: int = 0
        not_before: float = 0.0
        task: Any = None

    return Means, Window, Controlled, Site


Means, Window, Controlled, Site = records()


@pyscript_compile
def of(site, resource):
    """Return what is controlled of a resource in its present session, or None."""
    found = site.controlled.get(resource.resource_id)
    return found if found and found.session is resource.session else None


@pyscript_compile
def changed(site, resource):
    """Take note that a Resource Manager connected, disconnected, or is under another control type."""
    session, found = resource.session, of(site, resource)
    kind = CONTROL_TYPES.get(session.control_type) if session else None
    if found and kind is found.type:
        return
    other = site.others.pop(resource.resource_id, None)
    if session and kind is None:
        site.others[resource.resource_id] = resource
    elif other and site.controlled:
        hasten(site, site.now() + site.settling)
    old = site.controlled.pop(resource.resource_id, None)
    if old:
        why = f"is not under {old.type.CONTROL_TYPE} any more" if session else "has disconnected"
        give_up(old, errors.NotPlannable(f"{resource.name} {why}"))
        site.told(resource, None)
    if kind:
        site.controlled[resource.resource_id] = Controlled(resource, session, kind, since=site.now())
    site.urged.set()


@pyscript_compile
def give_up(controlled, error):
    """Tell those who wait for a plan that there will be none."""
    for waiting in controlled.waiting:
        if not waiting.done():
            waiting.set_exception(error)
    controlled.waiting.clear()


@pyscript_compile
def received(site, resource, message):
    """Take note of what a Resource Manager said, and plan again where that matters."""
    found = of(site, resource)
    if found is None:
        if message.message_type == "PowerForecast" and site.controlled:
            last = site.made[-1] if site.made else 0.0
            hasten(site, max(site.now() + site.settling, last + BETWEEN_GIVEN_SECONDS))
        return
    kind, memory, now = message.message_type, found.session.memory, site.now()
    if kind in found.type.CALL_FOR_A_PLAN:
        found.broken_at = None
        found.departures.clear()
        want(site, found, f"a new {kind}", pause_before(site, found, kind, now))
    elif kind == "RevokeObject":
        revoked(site, found, message)
    elif kind == "InstructionStatusUpdate":
        status_updated(site, found, message)
    elif found.type.lacks(memory):
        return
    elif kind == "PowerMeasurement":
        power_measured(site, found, now)
    else:
        if hasattr(message, "active_operation_mode_id") or hasattr(message, "sequence_container_status"):
            found.heard[getattr(message, "actuator_id", None)] = now
        if found.asked:
            if found.type.moved(*found.asked, message):
                found.asked = None
                want(site, found, f"another {kind} while it was planned")
        elif found.plan is None:
            if found.planned_version < 0:
                want(site, found, f"its first {kind}")
        elif found.version == found.planned_version and not is_manual(found, now):
            departed(site, found, message, now)


@pyscript_compile
def pause_before(site, found, kind, now):
    """Return how long a message that changes the problem waits for more of them (s)."""
    if kind == "PowerForecast" and found.plan and site.made:
        return max(site.settling, site.made[-1] + BETWEEN_GIVEN_SECONDS - now)
    if kind == ppbc.DESCRIPTION and ppbc.STATUS not in found.session.memory:
        return max(site.settling, FIRST_STATUS_SECONDS)
    return site.settling


@pyscript_compile
def departed(site, found, message, now):
    """Plan again where a status departs from the plan; where it stays the same, ever less often."""
    kind = message.message_type
    departs = found.type.departs(found.device, found.plan, message, now)
    if departs is None:
        found.departures.pop(kind, None)
        return
    before, count, patient_until = found.departures.get(kind, (None, 0, 0.0))
    said = what_is_said(message)
    if said != before:
        count, patient_until = 0, 0.0
    if now < patient_until:
        return
    patience = min(PATIENCE_SECONDS * 2.0**count, LONGEST_PATIENCE_SECONDS) if count else 0.0
    found.departures[kind] = said, min(count + 1, 10), now + patience
    want(site, found, departs)


@pyscript_compile
def what_is_said(message):
    """Return what a status says of the device, but for how far it has come."""
    containers = getattr(message, "sequence_container_status", None) or []
    return (
        getattr(message, "present_fill_level", None),
        getattr(message, "active_operation_mode_id", None),
        getattr(message, "operation_mode_factor", None),
        getattr(message, "finished_at", None),
        [(each.sequence_container_id, each.status.value, each.selected_sequence_id) for each in containers],
    )


@pyscript_compile
def want(site, found, why, pause=None):
    """Plan a Resource Manager anew in a moment, since its state is another."""
    found.version += 1
    found.why = why
    hasten(site, site.now() + (site.settling if pause is None else pause))


@pyscript_compile
def hasten(site, moment):
    """Make the site's next plan no later than at a moment."""
    if site.due is None or moment < site.due:
        site.due = moment
    site.urged.set()


@pyscript_compile
def plan_soon(site):
    """Plan all anew in a moment, since what they are planned with is another."""
    if site.controlled:
        site.pause, site.not_before, site.is_eager = FIRST_PAUSE_SECONDS, 0.0, True
        hasten(site, site.now() + site.settling)


@pyscript_compile
def revoked(site, found, message):
    """Stop what was planned on what a Resource Manager revokes; or plan again without it."""
    lacking = found.type.lacks(found.session.memory)
    if lacking and found.plan:
        give_up(found, errors.NotPlannable(f"{found.resource.name} has revoked its {lacking}"))
        found.plan = found.device = None
        found.version += 1
        sessions.spawn(found.session, revoke_all(found, site.now()))
        site.shown(found.resource)
        return
    if message.object_id in found.sent:
        broken(site, found, message.object_id, "REVOKED")
    elif not lacking:
        want(site, found, f"it revoked a {message.object_type.value}")


@pyscript_compile
def forget(found, instruction_id):
    """Take an instruction that will not be executed out of the plan."""
    change = found.sent.pop(instruction_id)
    if found.plan and change in found.plan.changes:
        found.plan.changes.remove(change)


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
    want(site, found, f"an instruction was {status}")


@pyscript_compile
def power_measured(site, found, now):
    """Plan again, once, when the measured power has departed from the plan."""
    if found.plan is None or is_manual(found, now) or found.version != found.planned_version:
        return
    power = site.power(found.resource)
    if power is None or now - found.plan.start < plans.LAG_SECONDS:
        return
    departs = found.type.measured_power_departs(found.device, found.plan, power, now)
    if departs is None:
        found.strange_power = None
    elif found.strange_power is None or plans.power_departs(
        power, found.strange_power, found.type.tolerance(found.device)
    ):
        found.strange_power = power
        want(site, found, departs)


@pyscript_compile
def start(site):
    """Plan from now on, in a task of its own; return it."""
    site.task = asyncio.get_running_loop().create_task(work(site), name="flexmeasures s2 planner")
    return site.task


@pyscript_compile
async def stop(site):
    """Plan no more; what the devices were told stays."""
    if site.task:
        site.task.cancel()
        await asyncio.gather(site.task, return_exceptions=True)
    for found in site.controlled.values():
        give_up(found, errors.NotPlanned("The scripts were reloaded meanwhile: call again"))


@pyscript_compile
async def work(site):
    """Plan whenever that is due."""
    while True:
        try:
            await until_due(site)
            await plan(site)
        except Exception as error:
            LOGGER.exception("Planning the site failed: please report this")
            failure = errors.NotPlanned(f"Planning failed unexpectedly ({error!r}): please report this")
            for found in site.controlled.values():
                found.asked = None
                give_up(found, failure)
            hasten(site, site.now() + LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(SECONDS_AFTER_A_FAULT)


@pyscript_compile
async def until_due(site):
    """Wait until a plan is due; meanwhile follow the instructions that are, and look for new prices."""
    while True:
        site.urged.clear()
        now = site.now()
        mind_the_clock(site, now)
        for found in site.controlled.values():
            follow_instructions(site, found, now)
        if site.controlled and now >= site.prices_due:
            await look_at_prices(site, now)
        moment = site.due
        if moment is not None and moment <= site.now():
            return
        moments = [
            each for each in (moment, site.prices_due if site.controlled else None) if each is not None
        ]
        moments += [each.moment for found in site.controlled.values() for each in upcoming(found, now)[:1]]
        wait = min([each - now for each in moments], default=LONGEST_SLEEP)
        with suppress(TimeoutError):
            await asyncio.wait_for(site.urged.wait(), min(max(wait, 0.01), LONGEST_SLEEP))


@pyscript_compile
def mind_the_clock(site, now):
    """Wait for nothing longer than it ever takes, since the clock may have been put back."""
    site.prices_due = min(site.prices_due, now + PRICES_SECONDS)
    if site.renewal is not None:
        site.renewal = min(site.renewal, now + CHOICE_SECONDS)
    site.not_before = min(site.not_before, now + REFUSED_SECONDS)
    if site.due is not None:
        site.due = min(site.due, now + max(site.rolling, REFUSED_SECONDS) + 1.0)
    for found in site.controlled.values():
        found.refused_until = min(found.refused_until, now + REFUSED_SECONDS)
        found.chosen_at = min(found.chosen_at, now)
        found.leaving_until = min(found.leaving_until, now + AFTER_SELECTION_SECONDS)
        found.heard = {actuator: min(moment, now) for actuator, moment in found.heard.items()}
        found.departures = {
            kind: (said, count, min(until, now + LONGEST_PATIENCE_SECONDS))
            for kind, (said, count, until) in found.departures.items()
        }
        found.since = min(found.since, now)


@pyscript_compile
def may_ask_at(site, group, now):
    """Return when FlexMeasures may be asked: not too often, unless somebody waits for it."""
    if site.is_urgent:
        return now
    moment = max(now, site.not_before)
    if lately_made(site) >= MOST_PLANS:
        moment = max(moment, site.made[0] + PLANS_SECONDS)
    is_wanted = site.is_eager or any(
        each.is_asked is not False and each.version != each.planned_version for each in group
    )
    if site.made and not is_wanted:
        moment = max(moment, site.made[-1] + BETWEEN_GIVEN_SECONDS)
    return moment


@pyscript_compile
def lately_made(site):
    """Return how many plans were asked for in the time that the server's limit is about."""
    now = site.now()
    while site.made and not now - PLANS_SECONDS < site.made[0] <= now:
        site.made.popleft()
    return len(site.made)


@pyscript_compile
def upcoming(found, now):
    """Return the changes that a device is still to make."""
    return [each for each in found.plan.changes if each.moment > now] if found.plan else []


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
async def look_at_prices(site, now):
    """Plan again when there are other prices than before for the same time."""
    site.prices_due = now + PRICES_SECONDS
    try:
        found = await site.prices(now, now + LONGEST_HORIZON)
    except optimiser_errors.OptimiserError as error:
        LOGGER.debug("The prices cannot be read: %s", error)
        if any(each.is_asked is False for each in site.controlled.values()):
            site.failed(error)
        return
    if all(each.is_asked is False for each in site.controlled.values()):
        site.succeeded()
    known, site.known_prices = site.known_prices, found
    if known is None or differ(known, found, now):
        LOGGER.info("There are new prices")
        hasten(site, now)


@pyscript_compile
def differ(known, found, now):
    """Tell whether prices differ; that the time known goes on by itself does not count."""
    last = max([end for _start, end, price, _production in known if price is not None], default=now)
    before = {start: prices for start, _end, *prices in known}
    for start, end, *prices in found:
        if prices[0] is not None and end > now and before.get(start) != prices:
            return not known or start < known[-1][1] or last < start
    return False


@pyscript_compile
def ready(site, now):
    """Return those who can be planned now, with their Means, or None where those are not known."""
    found = {}
    for each in site.controlled.values():
        if each.session.stage == sessions.ENDED or each.type.lacks(each.session.memory):
            continue
        if now < each.leaving_until:
            hasten(site, each.leaving_until)
            continue
        if each.refused_version == each.version and now < each.refused_until:
            continue
        begins = each.type.valid_from(each.session.memory)
        if begins > now + LEAD_SECONDS:
            hasten(site, begins)
            continue
        means = site.means(each.resource)
        others = [
            other for other, its in found.items() if means and its and its.power_sensor == means.power_sensor
        ]
        if each.type in PLANNED_HERE:
            found[each] = None if others else means
        elif others:
            why = f"{others[0].resource.name} has the same power_sensor: give each one of its own"
            each.refused = why
            site.told(each.resource, f"it cannot be planned: {why}")
        elif means:
            found[each] = means
    return found


@pyscript_compile
async def plan(site):
    """Plan all who can be planned, and tell them: who is planned here, then the others in one question."""
    now = site.now()
    site.due, site.splits = None, 0
    group = ready(site, now)
    may_ask_from = may_ask_at(site, group, now)
    asks = may_ask_from <= now
    site.is_urgent, site.is_eager = False, site.is_eager and not asks
    refuse_others(site, group)
    await rest_without_means(site, now)
    if not group:
        return
    hasten(site, next_boundary(now, site.rolling) if asks else may_ask_from)
    step = min([means.resolution for means in group.values() if means], default=STEP_SECONDS)
    start = now // step * step
    sharers = sum([each.is_asked is not False for each in group])
    versions, posed = {each: each.version for each in group}, {}
    renews = site.renewal is not None and now >= site.renewal
    if renews:
        site.renewal = None
    for each, means in group.items():
        if not (renews and each.is_asked is False) and may_wait(site, each, asks, now):
            continue
        question = await pose(site, each, means, now, start, step, sharers)
        if question:
            posed[each] = question
    chose_before = any(each.is_asked is False and each.planned_version >= 0 for each in group)
    if chose_before and any(each.planned_version < 0 for each in posed):
        site.renewal = now + CHOICE_SECONDS
        hasten(site, site.renewal)
    end = max([start + site.horizon, *[each.end for each in posed.values()]])
    asked = {each: question for each, question in posed.items() if question.problem is not None}
    order = sorted(
        [each for each in posed if each not in asked],
        key=lambda each: (LEAST_FLEXIBLE_FIRST.index(each.type.CONTROL_TYPE), each.resource.resource_id),
    )
    here = {each: posed[each] for each in order}
    if not asks:
        for each in asked:
            each.asked = None
        asked = {}
    left = max([each.left for each in asked.values()], default=1.0)
    window = Window(start, step, end, left, math.inf, False)
    outlook = await loads.expected(site, asked, window)
    if not asked:
        await tell_here(site, here, versions, outlook)
    elif site.limit is None:
        await tell_here(site, here, versions, outlook)
        await answered(site, asked, versions, outlook, await ask(site, asked, {}, outlook, window))
    else:
        await ask_first(site, asked, here, versions, outlook, window)


@pyscript_compile
async def ask_first(site, asked, here, versions, outlook, window):
    """Plan within the site's limit: who is planned here is told after FlexMeasures has answered.

    It then has planned the others around them. Without an answer soon, they are planned around the plans
    that the others have.
    """
    tried = {}
    for each in here:
        found = await made_for(site, each, versions[each], None, outlook, site.limit, here[each].end)
        if found:
            tried[each] = found[1]
            loads.take_in(outlook, each, found[1])
    question = asyncio.create_task(ask(site, asked, tried, outlook, window))
    try:
        await asyncio.wait({question}, timeout=site.soon)
        has_answer = question.done() and not isinstance(question.result(), optimiser_errors.OptimiserError)
        in_force = outlook if has_answer else await loads.expected(site, {}, window)
        await tell_here(site, here, versions, in_force)
        for each in here:
            if each.plan:
                loads.take_in(outlook, each, each.plan)
        await answered(site, asked, versions, outlook, await question)
    finally:
        question.cancel()


@pyscript_compile
async def tell_here(site, here, versions, outlook):
    """Plan those whom FlexMeasures cannot express, one beside the other, and tell them.

    `here` has their Questions.
    """
    for each, question in here.items():
        await adopt(site, each, versions[each], None, outlook, site.known_prices is None, question.end)
        if each.plan and not is_gone(site, each):
            loads.take_in(outlook, each, each.plan)
        if site.known_prices is None:
            give_up(each, errors.NotPlanned("The prices are not known: see sensor.flexmeasures_status"))


@pyscript_compile
def may_wait(site, each, asks, now):
    """Tell whether a Resource Manager is not planned now, since it was a moment ago, or cannot be."""
    if not asks and each.is_asked:
        return True
    is_same = each.version == each.planned_version
    if each.is_asked is False and not each.waiting and now < each.chosen_at + CHOICE_SECONDS:
        if not is_same:
            hasten(site, each.chosen_at + CHOICE_SECONDS)
        return True
    return not asks and is_same


@pyscript_compile
async def ask(site, asked, tried, outlook, window):
    """Ask FlexMeasures for the schedules of all whom it can plan; return what `solve` does, or its error.

    `tried` has the plans that those are to have who are planned here.
    """
    site.made.append(site.now())
    reasons = [f"{each.resource.name}: {each.why or 'its time'}" for each in asked]
    for each in asked:
        each.why = None
        loads.take_out(outlook, each)
    LOGGER.debug("Planning %s", "; ".join(reasons))
    given, known = await loads.given(site, asked, tried, window)
    most = await asyncio.to_thread(loads.limits, site.limit, outlook, known, window)
    try:
        return await solve(site, list(asked), asked, window, given, most)
    except optimiser_errors.OptimiserError as error:
        return error


@pyscript_compile
async def answered(site, asked, versions, outlook, answer):
    """Tell those whom FlexMeasures has planned; where it has not, their plans go on."""
    if isinstance(answer, optimiser_errors.OptimiserError):
        await without_schedule(site, asked, versions, answer)
        return
    schedules, refusals = answer
    site.pause, site.not_before = FIRST_PAUSE_SECONDS, 0.0
    site.succeeded()
    hasten(site, next_boundary(site.now(), site.rolling))
    for each, error in refusals.items():
        await go_on(site, each, versions[each])
        refuse(site, each, versions[each], str(error), error)
    powers = {each: powers_of(schedule, asked[each].left) for each, schedule in schedules.items()}
    loads.keep_limit_at_first(site.limit, powers.values(), outlook.most[0])

    def take_in():
        for each, found in powers.items():
            outlooks.put(outlook, each, outlooks.of_spans(outlook, found))

    await asyncio.to_thread(take_in)
    for each in sorted(powers, key=lambda each: last_to_fit(each, powers[each])):
        await adopt(site, each, versions[each], powers[each], outlook)
        if each.plan and not is_gone(site, each):
            await asyncio.to_thread(loads.take_in, outlook, each, each.plan)


@pyscript_compile
def last_to_fit(each, powers):
    """Return the key that puts last who can best make room, within the site's limit, for what others do.

    A storage may have less to give than its schedule says: those that give come first.
    """
    least = min([power for _start, _end, power in powers])
    return -LEAST_FLEXIBLE_FIRST.index(each.type.CONTROL_TYPE), least


@pyscript_compile
def next_boundary(now, step):
    """Return when the next interval begins, and a moment more."""
    return now // step * step + step + 0.5


@pyscript_compile
def why_not_ready(site, each):
    """Return why a Resource Manager cannot be planned now."""
    lacking = each.type.lacks(each.session.memory)
    if lacking:
        return f"it has not sent {lacking} yet"
    if each.type.valid_from(each.session.memory) > site.now() + LEAD_SECONDS:
        return "its description is not valid yet"
    return each.refused or "its sensors are not known yet"


@pyscript_compile
def refuse_others(site, group):
    """Tell those who wait for the plan of a Resource Manager that cannot be planned now."""
    for each in site.controlled.values():
        if each not in group and each.waiting:
            why = why_not_ready(site, each)
            give_up(each, errors.NotPlannable(f"{each.resource.name} cannot be planned: {why}"))


@pyscript_compile
def question_kind():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Question:
        """A device as FlexMeasures' problem, planned until `end`; without one, it is planned here.

        `left` is which part is left of the first interval.
        """

        problem: Any
        end: float
        left: float

    return Question


Question = question_kind()


@pyscript_compile
async def pose(site, each, means, now, start, step, sharers):
    """Return the question that a Resource Manager's state is, or None where it is refused."""
    version, memory, kind = each.version, dict(each.session.memory), each.type
    heard, plan_before = dict(each.heard), each.plan
    share = math.inf if site.limit is None else site.limit / max(sharers, 1)

    def read():
        device = kind.device(memory)
        if why := kind.unfit(device):
            raise errors.NotPlannable(why)
        longest = min(math.ceil((kind.until(device) - start) / step) * step, LONGEST_HORIZON)
        end = start + max(site.horizon, longest)
        state = kind.condition(device, memory, heard, plan_before, now)
        left = (start + step - now) / step
        window = Window(start, step, end, left, share, sharers <= MOST_WITH_MODES)
        return device, state, kind.problem(device, state, means, window), window

    try:
        device, state, problem, window = await asyncio.to_thread(read)
    except errors.NotPlannable as error:
        refuse(site, each, version, str(error))
        if not is_gone(site, each):
            site.unfit(each.resource, each.session, kind.CONTROL_TYPE)
        return None
    except Exception as error:
        LOGGER.exception("What %s told cannot be planned: please report this", each.resource.name)
        refuse(site, each, version, f"what it told cannot be planned ({error!r})")
        return None
    each.asked, each.is_asked = (device, state), problem is not None
    if kind in (ombc, ddbc):
        warn_of_prices(site, each, kind.commodities_of(device))
    if kind is frbc:
        tell_worth(each, frbc.worth(device, means.energy), means)
    has_modes = isinstance(problem, storages.Storage) and problem.operation_modes
    return Question(problem, window.end, 1.0 if has_modes else window.left)


@pyscript_compile
def warn_of_prices(site, each, used):
    """Warn, once, of a commodity that a device takes and that counts as free, since it has no price."""
    unknown = ", ".join(sorted([name.lower() for name in used if name not in site.tariffs]))
    if unknown and not each.was_warned:
        each.was_warned = True
        LOGGER.warning(
            "%s takes %s, which counts as free: give its price under s2.prices", each.resource.name, unknown
        )


@pyscript_compile
def tell_worth(each, value, means):
    """Log what a unit of fill level is taken to be worth, once it is another."""
    if each.worth is None or abs(each.worth.energy - value.energy) > 0.001 * value.energy:
        LOGGER.info(
            "%s: a unit of fill level is taken as %.4g kWh (%s), charging as %.1f %%, discharging as %.1f %%",
            each.resource.name,
            value.energy / KWH,
            "configured" if means.energy else "by its power and fill rate",
            100 * value.charging,
            100 * value.discharging,
        )
    each.worth = value


@pyscript_compile
def refuse(site, each, version, why, error=None):
    """Leave a Resource Manager out, until its state is another, or for an hour."""
    each.asked = None
    if each.version != version:
        return
    each.refused, each.refused_version, each.planned_version = why, version, version
    each.refused_until = site.now() + REFUSED_SECONDS
    hasten(site, each.refused_until)
    site.told(each.resource, f"it cannot be planned: {why}")
    failure = errors.NotPlannable(f"{each.resource.name} cannot be planned: {why}")
    failure.__cause__ = error
    give_up(each, failure)


@pyscript_compile
async def solve(site, group, asked, window, given, most):
    """Return (the schedule of each, the error of each that FlexMeasures refuses).

    Where it refuses several together, it is asked for each half, so that one does not keep the others from
    their plan.
    """
    problems = [asked[each].problem for each in group]
    try:
        found = await site.solve(problems, window, given, most)
    except OF_A_PROBLEM as error:
        if len(group) == 1 or site.splits >= MOST_SPLITS or lately_made(site) + 2 > MOST_PLANS:
            if len(group) < len(asked):
                return {}, dict.fromkeys(group, error)
            raise
        site.splits += 1
        LOGGER.warning(
            "FlexMeasures cannot plan %s devices together, so less are tried: %s", len(group), error
        )
        middle = len(group) // 2
        schedules, refusals = {}, {}
        for half in (group[:middle], group[middle:]):
            site.made.append(site.now())
            some, refused = await solve(site, half, asked, window, given, most)
            schedules |= some
            refusals |= refused
        return schedules, refusals
    return {each: found[problem.power_sensor] for each, problem in zip(group, problems, strict=True)}, {}


@pyscript_compile
async def without_schedule(site, asked, versions, error):
    """Go on with the plans in force, and try again later; who has none is brought to rest."""
    site.failed(error)
    wait = max(site.pause, error.retry_after or 0)
    site.pause = min(2 * site.pause, LONGEST_PAUSE_SECONDS)
    site.not_before = site.now() + wait
    hasten(site, site.not_before)
    for each in asked:
        failure = errors.NotPlanned(str(error))
        failure.__cause__ = error
        give_up(each, failure)
        await go_on(site, each, versions[each])


@pyscript_compile
async def go_on(site, each, version):
    """Have a device go on with the last schedule, or rest where that is over, as its state is now.

    Its targets and the storage's range are kept to, within what the others leave of the site's limit.
    """
    now, before = site.now(), each.plan
    each.asked = None
    if before and before.end > now and each.planned_version == version:
        return
    wanted, end = None, now + site.horizon
    if before and before.end > now:
        starts = [now + place * STEP_SECONDS for place in range(math.ceil(site.horizon / STEP_SECONDS))]
        wanted = [
            (start, start + STEP_SECONDS, each.type.planned_power(before, start, STEP_SECONDS))
            for start in starts
        ]
        end = wanted[-1][1]
    outlook = await loads.expected(site, {}, Window(now, STEP_SECONDS, end, 1.0, math.inf, False))
    await adopt(site, each, version, wanted, outlook, wanted is None or each.is_fallback)


@pyscript_compile
async def rest_without_means(site, now):
    """Bring those to rest whose sensors are not known for long, so that they cannot be planned."""
    for each in list(site.controlled.values()):
        has_plan = each.plan and each.plan.end > now
        if has_plan or each.type.lacks(each.session.memory) or site.means(each.resource):
            continue
        if each.type in PLANNED_HERE or now < each.leaving_until:
            continue
        if now < each.since + MEANS_SECONDS:
            hasten(site, each.since + MEANS_SECONDS)
            continue
        await go_on(site, each, each.version)
        hasten(site, now + site.horizon)


@pyscript_compile
def powers_of(schedule, left):
    """Return (start, end, power (W)) of each interval; of the first one only a part is left."""
    first, step = schedule.start.timestamp(), schedule.resolution.total_seconds()
    return [
        (first + place * step, first + (place + 1) * step, (value or 0.0) / (1.0 if place else left))
        for place, value in enumerate(schedule.values)
    ]


@pyscript_compile
def lead(session):
    """Return how far ahead the first instruction is (s)."""
    told = session.details.instruction_processing_delay.root / 1000
    return min(max(LEAD_SECONDS, told), LONGEST_LEAD)


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
async def made_for(site, each, version, powers, outlook, limit, last=math.inf):
    """Return (the device, the Plan) that is made for a Resource Manager now, or None."""
    now, kind = site.now(), each.type
    memory, heard, before = dict(each.session.memory), dict(each.heard), each.plan
    if kind.lacks(memory):
        return None
    begin = now + lead(each.session)
    tariffs = site.tariffs
    times = spans(powers, outlook, begin, last)
    if not times:
        hasten(site, now + site.settling)
        return None

    def make():
        device = kind.device(memory)
        if why := kind.unfit(device):
            raise errors.NotPlannable(why)
        state = kind.condition(device, memory, heard, before, now)
        market = outlooks.market(outlook, each, times, limit)
        wanted = powers and [(max(start, begin), end, power) for start, end, power in powers if end > begin]
        return device, kind.follow(device, state, wanted, market, tariffs)

    try:
        return await asyncio.to_thread(make)
    except errors.NotPlannable as error:
        refuse(site, each, version, str(error))
    except Exception as error:
        LOGGER.exception("The schedule of %s cannot be followed: please report this", each.resource.name)
        refuse(site, each, version, f"its schedule cannot be followed ({error!r})")
    return None


@pyscript_compile
async def put_in_force(site, each, version, powers, outlook, is_fallback, last):
    """Do what `adopt` says, once it is clear that the plan is for the present state."""
    now, before = site.now(), each.plan
    memory, heard = dict(each.session.memory), dict(each.heard)
    found = await made_for(site, each, version, powers, outlook, site.limit, last)
    if found is None or is_gone(site, each) or each.plan is not before or site.now() < each.leaving_until:
        return
    device, made = found
    each.plan, each.device, each.is_fallback = made, device, is_fallback
    each.planned_version, each.dropped, each.chosen_at = version, 0, now
    each.manual = {instruction: span for instruction, span in each.manual.items() if span[0] > now}
    by_hand = [each.sent[instruction] for instruction in each.manual if instruction in each.sent]
    each.executed = executed(before, memory, heard, now) if each.type in BY_MODES else []
    made.changes = sorted([*made.changes, *by_hand, *each.executed], key=lambda change: change.moment)
    if not is_fallback:
        each.refused = None
        site.told(each.resource, None)
    site.shown(each.resource)
    sessions.spawn(each.session, instruct(site, each, made))
    if not is_fallback:
        for waiting in each.waiting:
            if not waiting.done():
                waiting.set_result(made)
        each.waiting.clear()


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


@pyscript_compile
def spans(powers, outlook, begin, last):
    """Return (start, end) of each interval between two moments: those of powers, or else of an Outlook."""
    if powers is None:
        starts = [outlook.start + place * outlook.step for place in range(len(outlook.total))]
        powers = [(start, start + outlook.step, None) for start in starts]
    return [(max(start, begin), end) for start, end, _power in powers if end > begin and start < last]


@pyscript_compile
def is_gone(site, each):
    """Tell whether a Resource Manager is not connected, or not controlled like this, any more."""
    return of(site, each.resource) is not each or each.session.stage == sessions.ENDED


@pyscript_compile
def stale(site, each, version):
    """Tell whether a plan is for a state that does not hold any more; then another one is made.

    Where a state never holds for long, every third plan is used as it is.
    """
    if is_gone(site, each):
        return True
    if each.version == version:
        return False
    LOGGER.debug("A plan of %s is for a state that is past: there was %s", each.resource.name, each.why)
    hasten(site, site.now())
    site.is_urgent = site.is_urgent or bool(each.waiting and each.is_asked)
    if each.dropped >= MOST_DROPPED:
        return False
    each.dropped += 1
    return True


@pyscript_compile
async def instruct(site, each, made):
    """Revoke the instructions that a plan supersedes, and send its own; those that stay the same stay."""
    async with each.sending:
        if each.plan is not made or is_gone(site, each):
            return
        now, version = site.now(), each.version
        told = [*each.sent.values(), *each.executed]
        new = [change for change in made.changes if not any(change is other for other in told)]
        for instruction, change in list(each.sent.items()):
            if change.moment <= now or any(change is other for other in made.changes):
                continue
            same = next((other for other in new if each.type.alike(change, other)), None)
            if same:
                new.remove(same)
                each.sent[instruction] = same
            else:
                await revoke(each, instruction)
        for place, change in enumerate(new):
            soon = site.now() + lead(each.session) / 2
            overtaken = any(
                other.actuator == change.actuator and other.moment <= soon for other in new[place + 1 :]
            )
            is_broken = each.broken_at is not None and each.version != version
            if each.plan is not made or is_broken or each.session.stage == sessions.ENDED:
                return
            if not overtaken and change in made.changes:
                await send(site, each, change, max(change.moment, soon))
    site.shown(each.resource)


@pyscript_compile
async def send(site, each, change, moment):
    """Send an instruction, and plan again if it is refused."""
    instruction = str(uuid.uuid4())
    each.sent[instruction] = change
    follow_instructions(site, each, site.now())
    status = await sessions.request(
        each.session,
        each.type.message_type(change),
        id=instruction,
        execution_time=plans.moment(moment),
        **each.type.fields(change),
    )
    if status.status.value != sessions.OK and instruction in each.sent:
        broken(site, each, instruction, status.status.value)


@pyscript_compile
async def revoke(each, instruction):
    """Revoke an instruction that is not executed yet. Its confirmation is not waited for: some send none."""
    change = each.sent.pop(instruction)
    known = each.session.instructions.get(instruction)
    if known:
        known["status"] = "REVOKED"
    await sessions.send(
        each.session,
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
async def leave(site, resource):
    """End the control of a Resource Manager that is about to get another control type.

    Should it refuse that, it is planned again.
    """
    found = of(site, resource)
    if found:
        found.plan = None
        found.leaving_until = site.now() + AFTER_SELECTION_SECONDS
        want(site, found, "another control type was to be selected", AFTER_SELECTION_SECONDS)
        await revoke_all(found, site.now())


@pyscript_compile
async def plan_now(site, resource):
    """Plan a Resource Manager again now, and return its Plan; raise NotPlannable or NotPlanned."""
    found = of(site, resource)
    if found is None:
        raise errors.NotPlannable(
            f"resource_id: {resource.name} is under {resource.session.control_type}, which is not planned: "
            f"select {', '.join(CONTROL_TYPES)} by change_control_type, if it offers that"
        )
    is_asked = found.is_asked is not False
    if is_asked and lately_made(site) >= MOST_WITH_CALLS:
        wait = site.made[0] + PLANS_SECONDS - site.now()
        raise errors.NotPlanned(
            f"FlexMeasures takes {MOST_WITH_CALLS} plans in 5 minutes: call in {wait:.0f} s"
        )
    waiting = asyncio.get_running_loop().create_future()
    found.waiting.append(waiting)
    site.is_urgent = site.is_urgent or is_asked
    want(site, found, "a call", CALLING_SECONDS)
    return await waiting


@pyscript_compile
async def send_instruction(site, resource, call):
    """Send an instruction that a user asks for, and return it.

    It is in force until the plan's next one, or until another plan is made, at the next quarter at the
    latest; that the device departs from the plan meanwhile calls for none. Raise InvalidInstruction, or
    NotConfirmed.
    """
    session = resource.session
    kind = CONTROL_TYPES.get(session.control_type)
    if kind is not frbc:
        raise errors.InvalidInstruction(
            f"resource_id: {resource.name} is under {session.control_type}, not {frbc.CONTROL_TYPE}: select "
            f"that by change_control_type, if it offers it"
        )
    found = of(site, resource)
    async with found.sending:
        now, memory = site.now(), dict(session.memory)
        frbc.refuse_without_description(memory)
        device = await asyncio.to_thread(frbc.device, memory)
        state = None if frbc.lacks(memory) else frbc.condition(device, memory, found.heard, found.plan, now)
        fields = frbc.checked(memory, state, call, now)
        instruction = fields.pop("id")
        change, mode = frbc.change_of(device, state, fields) if state else (None, None)
        if instruction in session.instructions:
            raise errors.InvalidInstruction(f"id: {instruction} was sent before: leave it out")
        if change:
            found.sent[instruction] = change
        try:
            status = await sessions.request(session, frbc.INSTRUCTION, id=instruction, **fields)
        except s2_errors.NoConfirmation as error:
            raise errors.NotConfirmed(str(error)) from error
        if status.status.value != sessions.OK:
            found.sent.pop(instruction, None)
            raise errors.NotConfirmed(
                f"{resource.name} answered {status.status.value} to the instruction: "
                f"{status.diagnostic_label or 'without a reason'}"
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
        "status": known and known["status"],
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
    return found.type.missed(found.plan) if found.plan else []
