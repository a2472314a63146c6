"""When to plan the Resource Managers of a site, and how: all in one question.

What FlexMeasures cannot express is chosen here first, and enters its question as given. Everything that
changes the problem asks for another plan: those wishes are collected for a moment, and at most a few
questions are asked in some minutes, one after the other. Moments are seconds since 1970.
"""

import asyncio
import math
from contextlib import suppress
from functools import partial
from typing import Any

import flexmeasures_cem.adoption as adoption
import flexmeasures_cem.control_types as control_types
import flexmeasures_cem.errors as errors
import flexmeasures_cem.instructions as instructions
import flexmeasures_cem.loads as loads
import flexmeasures_cem.outlook as outlooks
import flexmeasures_cem.plans as plans
import flexmeasures_cem.questions as questions
import flexmeasures_cem.site as sites
import flexmeasures_cem.triggers as triggers
import flexmeasures_optimiser.errors as optimiser_errors
import flexmeasures_s2.session as sessions
import flexmeasures_s2.texts as texts

PLANNING = "planning of S2 devices"
MEANS_SECONDS = 3.0
"""How long the sensors of a device may be unknown before it has a plan of our own."""
SECONDS_AFTER_A_FAULT = 5.0
LONGEST_SLEEP = 60.0
LONGEST_PAUSE_SECONDS = 900.0
STEP_SECONDS = 900.0
CHOICE_SECONDS = 5.0
"""How long a choice that is made here holds at least."""
FIRST_PLAN_SECONDS, LOOK_SECONDS = 2.0, 0.25
"""How long a device waits for its first plan while FlexMeasures is asked, and how often that is looked at."""


@pyscript_compile
def start(site):
    """Plan from now on, in a task of its own; return it."""
    site.task = site.run("planner of S2 devices", partial(work, site))
    return site.task


@pyscript_compile
async def stop(site):
    """Plan no more; what the devices were told stays."""
    if site.task:
        site.task.cancel()
        await asyncio.gather(site.task, return_exceptions=True)
    for found in site.controlled.values():
        sites.give_up(found, errors.NotPlanned("The scripts were reloaded meanwhile: call again"))


@pyscript_compile
async def work(site):
    """Plan whenever that is due."""
    while True:
        try:
            await until_due(site)
            site.is_planning = True
            await plan(site)
            site.fault(PLANNING, None)
        except Exception as error:
            site.fault(PLANNING, error)
            reason = texts.quoted(repr(error))
            failure = errors.NotPlanned(f"Planning failed unexpectedly ({reason}): please report this")
            for found in site.controlled.values():
                found.asked = None
                sites.give_up(found, failure)
            sites.hasten(site, site.now() + LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(SECONDS_AFTER_A_FAULT)
        finally:
            site.is_planning = False


@pyscript_compile
async def until_due(site):
    """Wait until a plan is due; meanwhile follow the instructions that are, and look for new prices."""
    while True:
        site.urged.clear()
        now = site.now()
        mind_the_clock(site, now)
        for found in site.controlled.values():
            instructions.follow_instructions(site, found, now)
        if site.controlled and now >= site.prices_due:
            await triggers.look_at_prices(site, now)
        moment = site.due
        if moment is not None and moment <= site.now():
            return
        moments = [
            each for each in (moment, site.prices_due if site.controlled else None) if each is not None
        ]
        moments += [
            each.moment
            for found in site.controlled.values()
            for each in instructions.upcoming(found, now)[:1]
        ]
        wait = min([each - now for each in moments], default=LONGEST_SLEEP)
        with suppress(TimeoutError):
            await asyncio.wait_for(site.urged.wait(), min(max(wait, 0.01), LONGEST_SLEEP))


@pyscript_compile
def mind_the_clock(site, now):
    """Wait for nothing longer than it ever takes, since the clock may have been put back."""
    site.prices_due = min(site.prices_due, now + triggers.PRICES_SECONDS)
    if site.renewal is not None:
        site.renewal = min(site.renewal, now + CHOICE_SECONDS)
    site.not_before = min(site.not_before, now + sites.REFUSED_SECONDS)
    site.rate_limit.told_at = min(site.rate_limit.told_at, now)
    site.rate_limit.resets_at = min(site.rate_limit.resets_at, now + site.rate_limit.seconds)
    if site.due is not None:
        site.due = min(site.due, now + max(site.rolling, sites.REFUSED_SECONDS) + 1.0)
    for sensor, until in site.unusable.items():
        site.unusable[sensor] = min(until, now + sites.REFUSED_SECONDS)
    for found in site.controlled.values():
        found.refused_until = min(found.refused_until, now + sites.REFUSED_SECONDS)
        found.chosen_at = min(found.chosen_at, now)
        found.leaving_until = min(found.leaving_until, now + triggers.AFTER_SELECTION_SECONDS)
        found.heard = {actuator: min(moment, now) for actuator, moment in found.heard.items()}
        found.departures = {
            key: (said, count, min(until, now + triggers.LONGEST_PATIENCE_SECONDS))
            for key, (said, count, until) in found.departures.items()
        }
        found.since = min(found.since, now)
        found.settles_at = min(found.settles_at, now + instructions.LONGEST_LEAD + plans.LAG_SECONDS)


@pyscript_compile
async def plan(site):
    """Plan all who can be planned, and tell them: who is planned here, then the others in one question."""
    now = site.now()
    site.due, site.splits = None, 0
    group = ready(site, now)
    may_ask_from = questions.may_ask_at(site, group, now)
    asks = may_ask_from <= now
    site.is_urgent, site.is_eager = False, site.is_eager and not asks
    refuse_others(site, group)
    await rest_without_means(site, now)
    if not group:
        return
    sites.hasten(site, sites.next_boundary(now, site.rolling) if asks else may_ask_from)
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
        question = await questions.pose(site, each, means, now, start, step, sharers)
        if question:
            posed[each] = question
    chose_before = any(each.is_asked is False and each.planned_version >= 0 for each in group)
    if chose_before and any(each.planned_version < 0 for each in posed):
        site.renewal = now + CHOICE_SECONDS
        sites.hasten(site, site.renewal)
    end = max([start + site.horizon, *[each.end for each in posed.values()]])
    asked = {each: question for each, question in posed.items() if question.problem is not None}
    order = sorted(
        [each for each in posed if each not in asked],
        key=lambda each: (
            control_types.LEAST_FLEXIBLE_FIRST.index(each.type.CONTROL_TYPE),
            each.resource.resource_id,
        ),
    )
    here = {each: posed[each] for each in order}
    waiting = {}
    if not asks:
        waiting, asked = asked, {}
    left = max([each.left for each in asked.values()], default=1.0)
    window = sites.Window(start, step, end, left, math.inf, False)
    outlook = await loads.expected(site, asked, window)
    if not asked:
        await tell_here(site, here, versions, outlook)
        for each in waiting:
            await go_on(site, each, versions[each])
            site.is_eager = True
    elif site.limit is None:
        await tell_here(site, here, versions, outlook)
        question = asyncio.create_task(questions.ask(site, asked, {}, outlook, window))
        try:
            await until_answered(site, question, asked)
            await answered(site, asked, versions, outlook, await question)
        finally:
            question.cancel()
    else:
        await ask_first(site, asked, here, versions, outlook, window)


@pyscript_compile
def ready(site, now):
    """Return those who can be planned now, with their Means, or None where those are not known."""
    found, by_sensor = {}, {}
    for each in site.controlled.values():
        if each.session.stage == sessions.ENDED or each.type.lacks(each.session.memory):
            continue
        if now < each.leaving_until:
            sites.hasten(site, each.leaving_until)
            continue
        if each.refused_version == each.version and now < each.refused_until:
            continue
        begins = each.type.valid_from(each.session.memory)
        if begins > now + instructions.LEAD_SECONDS:
            sites.hasten(site, begins)
            continue
        means = site.means(each.resource)
        other = by_sensor.setdefault(means.power_sensor, each) if means else each
        if each.type in control_types.PLANNED_HERE:
            found[each] = means if other is each else None
        elif other is not each:
            why = f"{other.resource.name} has the same power_sensor: give each one of its own"
            each.refused = why
            site.told(each.resource, f"it cannot be planned: {why}")
        elif means:
            found[each] = means
    return found


@pyscript_compile
def why_not_ready(site, each):
    """Return why a Resource Manager cannot be planned now."""
    lacking = each.type.lacks(each.session.memory)
    if lacking:
        return f"it has not sent {lacking} yet"
    if each.type.valid_from(each.session.memory) > site.now() + instructions.LEAD_SECONDS:
        return "its description is not valid yet"
    return each.refused or "its sensors are not known yet"


@pyscript_compile
def refuse_others(site, group):
    """Tell those who wait for the plan of a Resource Manager that cannot be planned now."""
    for each in site.controlled.values():
        if each not in group and each.waiting:
            why = why_not_ready(site, each)
            sites.give_up(each, errors.NotPlannable(f"{each.resource.name} cannot be planned: {why}"))


@pyscript_compile
def may_wait(site, each, asks, now):
    """Tell whether a Resource Manager is not planned now, since it was a moment ago, or has its plan."""
    is_same = each.version == each.planned_version
    goes_on = each.is_asked and not asks and has_plan(each, now)
    if goes_on and is_same:
        return True
    is_chosen_here = each.is_asked is False or goes_on
    if is_chosen_here and not each.waiting and now < each.chosen_at + CHOICE_SECONDS:
        if not is_same:
            sites.hasten(site, each.chosen_at + CHOICE_SECONDS)
        return True
    return not asks and is_same and (each.is_asked is False or has_plan(each, now))


@pyscript_compile
async def ask_first(site, asked, here, versions, outlook, window):
    """Plan within the site's limit: who is planned here is told after FlexMeasures has answered.

    It then has planned the others around them. Without an answer soon, they are planned around the plans
    that the others have.
    """
    tried = {}
    for each in here:
        found = await adoption.made_for(site, each, versions[each], None, outlook, site.limit, here[each].end)
        if found:
            tried[each] = found[1]
            loads.take_in(outlook, each, found[1])
    question = asyncio.create_task(questions.ask(site, asked, tried, outlook, window))
    try:
        await until_answered(site, question, asked, site.soon)
        has_answer = question.done() and not isinstance(question.result(), optimiser_errors.OptimiserError)
        in_force = outlook if has_answer else await loads.expected(site, {}, window)
        await tell_here(site, here, versions, in_force)
        for each in here:
            if each.plan:
                loads.take_in(outlook, each, each.plan)
        await until_answered(site, question, asked)
        await answered(site, asked, versions, outlook, await question)
    finally:
        question.cancel()


@pyscript_compile
async def until_answered(site: Any, question: asyncio.Task, group: dict, seconds: float = math.inf) -> None:
    """Wait for FlexMeasures' answer on a group, or so long; plan here who waits for its first plan meanwhile.

    FlexMeasures is asked for those that are not of the group as soon as may be.
    """
    begin, waiting = site.now(), {}
    while not question.done() and site.now() - begin < seconds:
        await asyncio.wait({question}, timeout=LOOK_SECONDS)
        now = site.now()
        has_unplanned = any(not has_plan(each, now) for each in site.controlled.values())
        plannable = ready(site, now) if has_unplanned else {}
        waiting = {each: waiting.get(each, now) for each in plannable if not has_plan(each, now)}
        for each, since in waiting.items():
            is_late = now - since >= FIRST_PLAN_SECONDS or now - each.since >= MEANS_SECONDS
            if is_late and not question.done():
                asked, site.is_eager = each.asked, site.is_eager or each not in group
                await go_on(site, each, each.version)
                each.asked = asked


@pyscript_compile
def has_plan(each: Any, now: float) -> bool:
    """Return whether a Resource Manager has a plan that is not over."""
    return each.plan is not None and each.plan.end > now


@pyscript_compile
async def tell_here(site, here, versions, outlook):
    """Plan those whom FlexMeasures cannot express, one beside the other, and tell them.

    `here` has their Questions.
    """
    for each, question in here.items():
        await adoption.adopt(
            site, each, versions[each], None, outlook, site.known_prices is None, question.end
        )
        if each.plan and not sites.is_gone(site, each):
            loads.take_in(outlook, each, each.plan)
        if site.known_prices is None:
            sites.give_up(each, errors.NotPlanned("The prices are not known: see sensor.flexmeasures_status"))


@pyscript_compile
async def answered(site, asked, versions, outlook, answer):
    """Tell those whom FlexMeasures has planned; where it has not, their plans go on."""
    if isinstance(answer, optimiser_errors.OptimiserError):
        await without_schedule(site, asked, versions, answer)
        return
    schedules, refusals = answer
    site.pause, site.not_before = sites.FIRST_PAUSE_SECONDS, 0.0
    site.succeeded()
    sites.hasten(site, sites.next_boundary(site.now(), site.rolling))
    for each, error in refusals.items():
        await go_on(site, each, versions[each])
        sites.refuse(site, each, versions[each], str(error), error)
    powers = {each: questions.powers_of(schedule, asked[each].left) for each, schedule in schedules.items()}
    for each in asked:
        loads.take_out(outlook, each)
    loads.keep_limit_at_first(site.limit, powers.values(), outlook.most[0])

    def take_in():
        for each, found in powers.items():
            outlooks.put(outlook, each, outlooks.of_spans(outlook, found))

    await asyncio.to_thread(take_in)
    order = sorted(powers, key=lambda each: last_to_fit(each, powers[each]))
    if site.limit is not None and len(order) > 1:
        await rehearse(site, order, versions, powers, outlook)
    for each in order:
        await adoption.adopt(site, each, versions[each], powers[each], outlook)
        if each.plan and not sites.is_gone(site, each):
            await asyncio.to_thread(loads.take_in, outlook, each, each.plan)


@pyscript_compile
async def rehearse(site, order, versions, powers, outlook):
    """Count what each device would do in place of its schedule, so that the first know it of the last."""
    for each in order:
        if sites.is_gone(site, each):
            loads.take_out(outlook, each)
            continue
        found = await adoption.made_for(site, each, versions[each], powers[each], outlook, site.limit)
        if found:
            await asyncio.to_thread(loads.take_in, outlook, each, found[1])


@pyscript_compile
def last_to_fit(each, powers):
    """Return the key that puts last who can best make room, within the site's limit, for what others do.

    A storage may have less to give than its schedule says: those that give come first.
    """
    least = min([power for _start, _end, power in powers])
    return -control_types.LEAST_FLEXIBLE_FIRST.index(each.type.CONTROL_TYPE), least


@pyscript_compile
async def without_schedule(site, asked, versions, error):
    """Go on with the plans in force, and try again later; who has none is brought to rest."""
    if not all(sites.is_gone(site, each) for each in asked):
        site.failed(error)
    wait = max(site.pause, error.retry_after or 0)
    site.pause = min(2 * site.pause, LONGEST_PAUSE_SECONDS)
    site.not_before = site.now() + wait
    sites.hasten(site, site.not_before)
    for each in asked:
        failure = errors.NotPlanned(str(error))
        failure.__cause__ = error
        sites.give_up(each, failure)
        await go_on(site, each, versions[each])


@pyscript_compile
async def go_on(site, each, version):
    """Have a device go on with its last plan, or rest where that is over, as its state is now.

    Its targets and the storage's range are kept to, within what the others leave of the site's limit.
    """
    now, before = site.now(), each.plan or (each.kept and each.kept.plan)
    each.asked = None
    if has_plan(each, now) and each.planned_version == version:
        return
    wanted, end = None, now + site.horizon
    if before and before.end > now:
        starts = [now + place * STEP_SECONDS for place in range(math.ceil(site.horizon / STEP_SECONDS))]
        wanted = [
            (start, start + STEP_SECONDS, each.type.planned_power(before, start, STEP_SECONDS))
            for start in starts
        ]
        end = wanted[-1][1]
    outlook = await loads.expected(site, {}, sites.Window(now, STEP_SECONDS, end, 1.0, math.inf, False))
    await adoption.adopt(site, each, version, wanted, outlook, wanted is None or each.is_fallback)


@pyscript_compile
async def rest_without_means(site, now):
    """Bring those to rest whose sensors are not known for long, so that they cannot be planned."""
    for each in list(site.controlled.values()):
        if has_plan(each, now) or each.type.lacks(each.session.memory) or site.means(each.resource):
            continue
        if each.type in control_types.PLANNED_HERE or now < each.leaving_until:
            continue
        if now < each.since + MEANS_SECONDS:
            sites.hasten(site, each.since + MEANS_SECONDS)
            continue
        await go_on(site, each, each.version)
        sites.hasten(site, now + site.horizon)
