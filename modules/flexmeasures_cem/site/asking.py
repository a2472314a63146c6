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
import flexmeasures_cem.site.outlook as outlooks
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
async def work(site: sites.Site) -> None:
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
            site.ask_no_later_than(site.now() + LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(SECONDS_AFTER_A_FAULT)
        finally:
            site.is_asking = False


@pyscript_compile
async def until_due(site: sites.Site) -> None:
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
async def ask(site: sites.Site) -> None:
    """Ask for the schedules of all devices that FlexMeasures can plan, and have them followed."""
    now = site.now()
    site.asking_due, site.is_urgent, site.splits = None, False, 0
    group = askable(site, now)
    refuse_others(site, group)
    if not group:
        return
    site.ask_no_later_than(sites.next_boundary(now, site.rolling))
    step = min(means.resolution for means in group.values())
    start = now // step * step
    versions, asked = {controlled: controlled.version for controlled in group}, {}
    for each, means in group.items():
        question = await questions.build_request(site, each, means, now, start, step, len(group))
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
def askable(site: sites.Site, now: float) -> dict[sites.Controlled, sites.PlanningSensors]:
    """Return the Controlled that FlexMeasures can be asked about now, with their Means."""
    found: dict[sites.Controlled, sites.PlanningSensors] = {}
    sensors: dict[int, sites.Controlled] = {}
    for controlled in site.controlled.values():
        means = site.means(controlled.resource)
        if means is None or why_not_askable(site, controlled, means, now):
            ask_again_when_valid(site, controlled, now)
            continue
        if means.power_sensor in sensors:
            other = sensors[means.power_sensor].resource.name
            why = f"{other} has the same power_sensor: give each one of its own"
            controlled.refused = why
            site.told(controlled.resource, f"FlexMeasures cannot plan it: {why}")
            continue
        found[controlled], sensors[means.power_sensor] = means, controlled
    return found


@pyscript_compile
def why_not_askable(
    site: sites.Site, controlled: sites.Controlled, means: sites.PlanningSensors | None, now: float
) -> str | None:
    """Return why FlexMeasures is not asked about a Resource Manager now, or None."""
    memory = controlled.session.memory
    missing = controlled.type.missing_message(memory)
    if not controlled.type.flex_model:
        return "it is planned here"
    if missing:
        return f"it has not sent {missing} yet"
    if (
        controlled.session.stage == sessions.ENDED
        or controlled.is_returning
        or now < controlled.leaving_until
    ):
        return "it is not there"
    if controlled.type.valid_from(memory) > now + instructions.LEAD_SECONDS:
        return "its description is not valid yet"
    if controlled.refused_version == controlled.version and now < controlled.refused_until:
        return controlled.refused
    if controlled.unfit_version == controlled.version:
        return controlled.unfit
    return None if means else controlled.refused or "its sensors are not known yet"


@pyscript_compile
def ask_again_when_valid(site: sites.Site, controlled: sites.Controlled, now: float) -> None:
    """Ask about a Resource Manager once its description is valid, where that is of later."""
    if controlled.type.flex_model and not controlled.type.missing_message(controlled.session.memory):
        begins = controlled.type.valid_from(controlled.session.memory)
        if begins > now:
            site.ask_no_later_than(begins)


@pyscript_compile
def refuse_others(site: sites.Site, group: dict[sites.Controlled, sites.PlanningSensors]) -> None:
    """Tell the callers that wait for a schedule that FlexMeasures is not asked for."""
    now = site.now()
    for controlled in site.controlled.values():
        if controlled.awaits_schedule and controlled not in group:
            why = (
                why_not_askable(site, controlled, site.means(controlled.resource), now) or controlled.refused
            )
            controlled.awaits_schedule = False
            controlled.fail_waiters(
                errors.NotPlannable(f"FlexMeasures cannot plan {controlled.resource.name}: {why}")
            )


@pyscript_compile
def is_planned_here(site: sites.Site, controlled: sites.Controlled) -> None:
    """Take note that FlexMeasures has nothing to plan of a device as it is now."""
    if controlled.schedule is not None or controlled.awaits_schedule or controlled.is_fallback:
        controlled.schedule, controlled.awaits_schedule, controlled.is_outdated = None, False, True
        site.plan_no_later_than(site.now())


@pyscript_compile
def follow(
    site: sites.Site,
    asked: dict[sites.Controlled, questions.Question],
    versions: dict[sites.Controlled, int],
    outlook: outlooks.Outlook,
    schedules: dict[sites.Controlled, Any],
    refusals: dict[sites.Controlled, Any],
) -> None:
    """Have devices follow the schedules that came, and leave out those that FlexMeasures refuses."""
    site.pause, site.not_before = sites.FIRST_PAUSE_SECONDS, 0.0
    site.succeeded()
    for each, error in refusals.items():
        site.refuse(each, versions[each], str(error), error)
    powers = {each: questions.powers_of(schedule, asked[each].left) for each, schedule in schedules.items()}
    loads.keep_limits_at_first(site.connection, powers.values(), outlook.most[0])
    for each, found in powers.items():
        if site.is_gone(each):
            continue
        if each.version != versions[each]:
            site.ask_no_later_than(site.now())
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
    site.plan_no_later_than(site.now())
    site.replan_all_once()


@pyscript_compile
def retry_later(site: sites.Site, asked: dict[sites.Controlled, questions.Question], error: Any) -> None:
    """Go on with the schedules that there are, and ask again after a pause, longer each time."""
    if not all(site.is_gone(controlled) for controlled in asked):
        site.failed(error)
    wait = max(site.pause, error.retry_after or 0)
    site.pause = min(2 * site.pause, LONGEST_PAUSE_SECONDS)
    site.not_before = site.now() + wait
    site.ask_no_later_than(site.not_before)
    site.replan_all_once()
    failure = errors.NotPlanned(str(error))
    failure.__cause__ = error
    give_up_on(site, failure)


@pyscript_compile
def give_up_on(site: sites.Site, failure: Exception) -> None:
    """Tell the callers that wait for a schedule that there will be none."""
    for controlled in site.controlled.values():
        if controlled.awaits_schedule:
            controlled.awaits_schedule = False
            controlled.fail_waiters(failure)
