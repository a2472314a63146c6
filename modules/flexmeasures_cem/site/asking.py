"""When FlexMeasures is asked for schedules: for all devices of the site that it can plan, in one question.

It knows what is not known here, so its schedules are followed (see planner). What changes the problem of a
device asks for another one, as often as the server takes that. Moments are seconds since 1970.
"""

import asyncio
import math
from contextlib import suppress
from typing import Any

import flexmeasures_api.errors as api_errors
import flexmeasures_cem.errors as errors
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.questions as questions
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.triggers as triggers
import flexmeasures_s2.session as sessions
import flexmeasures_s2.texts as texts

ASKING = "asking for schedules of S2 devices"
SECONDS_AFTER_A_FAULT = 5.0
MAX_SLEEP_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 900.0
MAX_DROPPED = 2
"""How many schedules in a row are dropped because the device's problem is another by then."""


@pyscript_compile
async def work(site: Any) -> None:
    """Ask whenever that is due."""
    while True:
        try:
            await until_due(site)
            site.is_asking = True
            await ask(site)
            site.fault(ASKING, None)
        except Exception as error:
            site.fault(ASKING, error)
            reason = texts.quoted(repr(error))
            give_up_on(
                site, errors.NotPlanned(f"Planning failed unexpectedly ({reason}): please report this")
            )
            sites.ask_no_later_than(site, site.now() + LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(SECONDS_AFTER_A_FAULT)
        finally:
            site.is_asking = False


@pyscript_compile
async def until_due(site: Any) -> None:
    """Wait until FlexMeasures is to be asked, and may be; meanwhile look for new prices."""
    while True:
        site.asking_urged.clear()
        now = site.now()
        if site.controlled and now >= site.prices_due:
            await triggers.look_at_prices(site, now)
            now = site.now()
        moments = [site.prices_due] if site.controlled else []
        if site.asking_due is not None:
            moments.append(max(site.asking_due, questions.may_ask_at(site, now)))
            if moments[-1] <= now:
                return
        wait = min(moments, default=math.inf) - now
        with suppress(TimeoutError):
            await asyncio.wait_for(site.asking_urged.wait(), min(max(wait, 0.01), MAX_SLEEP_SECONDS))


@pyscript_compile
async def ask(site: Any) -> None:
    """Ask for the schedules of all devices that FlexMeasures can plan, and have them followed."""
    now = site.now()
    site.asking_due, site.is_urgent, site.splits = None, False, 0
    group = askable(site, now)
    refuse_others(site, group)
    if not group:
        return
    sites.ask_no_later_than(site, sites.next_boundary(now, site.rolling))
    step = min(means.resolution for means in group.values())
    start = now // step * step
    versions, asked = {each: each.version for each in group}, {}
    for each, means in group.items():
        question = await questions.pose(site, each, means, now, start, step, len(group))
        if question and question.problem is not None:
            asked[each] = question
        elif question:
            is_planned_here(site, each)
        else:
            each.awaits_schedule = False
    if not asked:
        return
    end = max(start + site.horizon, *[question.end for question in asked.values()])
    left = max(question.left for question in asked.values())
    window = sites.Window(start, step, end, left, math.inf, False)
    outlook = await loads.expected(site, asked, window)
    answer = await questions.ask(site, asked, outlook, window)
    if isinstance(answer, api_errors.FlexMeasuresError):
        retry_later(site, asked, answer)
    else:
        follow(site, asked, versions, outlook, *answer)


@pyscript_compile
def askable(site: Any, now: float) -> dict:
    """Return the Controlled that FlexMeasures can be asked about now, with their Means."""
    found, sensors = {}, {}
    for each in site.controlled.values():
        means = site.means(each.resource)
        if why_not_askable(site, each, means, now):
            ask_again_when_valid(site, each, now)
            continue
        if means.power_sensor in sensors:
            other = sensors[means.power_sensor].resource.name
            why = f"{other} has the same power_sensor: give each one of its own"
            each.refused = why
            site.told(each.resource, f"FlexMeasures cannot plan it: {why}")
            continue
        found[each], sensors[means.power_sensor] = means, each
    return found


@pyscript_compile
def why_not_askable(site: Any, each: Any, means: Any, now: float) -> str | None:
    """Return why FlexMeasures is not asked about a Resource Manager now, or None."""
    memory = each.session.memory
    missing = each.type.missing_message(memory)
    if not each.type.flex_model:
        return "it is planned here"
    if missing:
        return f"it has not sent {missing} yet"
    if each.session.stage == sessions.ENDED or each.is_returning or now < each.leaving_until:
        return "it is not there"
    if each.type.valid_from(memory) > now + instructions.LEAD_SECONDS:
        return "its description is not valid yet"
    if each.refused_version == each.version and now < each.refused_until:
        return each.refused
    if each.unfit_version == each.version:
        return each.unfit
    return None if means else each.refused or "its sensors are not known yet"


@pyscript_compile
def ask_again_when_valid(site: Any, each: Any, now: float) -> None:
    """Ask about a Resource Manager once its description is valid, where that is of later."""
    if each.type.flex_model and not each.type.missing_message(each.session.memory):
        begins = each.type.valid_from(each.session.memory)
        if begins > now:
            sites.ask_no_later_than(site, begins)


@pyscript_compile
def refuse_others(site: Any, group: dict) -> None:
    """Tell the callers that wait for a schedule that FlexMeasures is not asked for."""
    now = site.now()
    for each in site.controlled.values():
        if each.awaits_schedule and each not in group:
            why = why_not_askable(site, each, site.means(each.resource), now) or each.refused
            each.awaits_schedule = False
            sites.give_up(each, errors.NotPlannable(f"FlexMeasures cannot plan {each.resource.name}: {why}"))


@pyscript_compile
def is_planned_here(site: Any, each: Any) -> None:
    """Take note that FlexMeasures has nothing to plan of a device as it is now."""
    if each.schedule is not None or each.awaits_schedule or each.is_fallback:
        each.schedule, each.awaits_schedule, each.is_outdated = None, False, True
        sites.hasten(site, site.now())


@pyscript_compile
def follow(site: Any, asked: dict, versions: dict, outlook: Any, schedules: dict, refusals: dict) -> None:
    """Have devices follow the schedules that came, and leave out those that FlexMeasures refuses."""
    site.pause, site.not_before = sites.FIRST_PAUSE_SECONDS, 0.0
    site.succeeded()
    for each, error in refusals.items():
        sites.refuse(site, each, versions[each], str(error), error)
    powers = {each: questions.powers_of(schedule, asked[each].left) for each, schedule in schedules.items()}
    loads.keep_limits_at_first(site.connection, powers.values(), outlook.most[0])
    for each, found in powers.items():
        if sites.is_gone(site, each):
            continue
        if each.version != versions[each]:
            sites.ask_no_later_than(site, site.now())
            site.is_urgent = site.is_urgent or each.awaits_schedule
            each.schedules_dropped += 1
            if each.schedules_dropped <= MAX_DROPPED:
                continue
        each.schedule, each.asked_version, each.schedules_dropped = found, versions[each], 0
        each.awaits_schedule, each.is_outdated = False, True
        if each.refused:
            each.refused = None
        if not each.unfit:
            site.told(each.resource, None)
    sites.hasten(site, site.now())
    sites.renew_once(site)


@pyscript_compile
def retry_later(site: Any, asked: dict, error: Any) -> None:
    """Go on with the schedules that there are, and ask again after a pause, longer each time."""
    if not all(sites.is_gone(site, each) for each in asked):
        site.failed(error)
    wait = max(site.pause, error.retry_after or 0)
    site.pause = min(2 * site.pause, LONGEST_PAUSE_SECONDS)
    site.not_before = site.now() + wait
    sites.ask_no_later_than(site, site.not_before)
    sites.renew_once(site)
    failure = errors.NotPlanned(str(error))
    failure.__cause__ = error
    give_up_on(site, failure)


@pyscript_compile
def give_up_on(site: Any, failure: Exception) -> None:
    """Tell the callers that wait for a schedule that there will be none."""
    for each in site.controlled.values():
        if each.awaits_schedule:
            each.awaits_schedule = False
            sites.give_up(each, failure)
