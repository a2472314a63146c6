"""When the Resource Managers of a site are planned, and how: all in one model, here and at once.

What changes the problem asks for another plan; such wishes are collected for a moment. Where FlexMeasures has
a schedule for a device (see asking), its plan follows that, else it costs least. Moments are seconds since
1970.
"""

import asyncio
import logging
import math
import os
import sys
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.errors as errors
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.market as markets
import flexmeasures_cem.site.activation as activation
import flexmeasures_cem.site.asking as asking
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.kept_plans as kept_plans
import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.questions as questions
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.site_model as site_model
import flexmeasures_cem.site.triggers as triggers
import flexmeasures_s2.session as sessions
import flexmeasures_s2.texts as texts

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
PLANNING = "planning of S2 devices"
SECONDS_AFTER_A_FAULT = 5.0
MAX_SLEEP_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 900.0
MIN_STEP_SECONDS, STEP_SECONDS = 300.0, 900.0
"""How long a step of the plan is: at least, and where no device has a sensor of a finer resolution."""
NEWCOMER_SECONDS = 5.0
"""How long after another device has joined all are planned anew, together with it."""
NO_SOLVER = (
    "the package highspy, which makes plans, cannot be imported: add the lines of our requirements.txt to "
    "<config>/pyscript/requirements.txt and restart Home Assistant"
)
MAX_TOGETHER = 12
"""How many devices are planned in one program at most, so that it is solved in time."""
STOP_SECONDS = 5.0
"""How long the end of what is being solved is waited for."""
NICENESS = 5
"""How much less the threads that solve want the processor than others."""
AT_ONCE = 2
"""How many programs are solved at once, where no device matters to another."""


@pyscript_compile
def start(site: sites.Site) -> asyncio.Task[None]:
    """Plan, and ask for schedules, from now on, in tasks of their own; return the first."""
    site.solver = ThreadPoolExecutor(AT_ONCE, "flexmeasures plans", step_back)
    site.task = site.run("planner of S2 devices", partial(work, site))
    site.asking = site.run("schedules of S2 devices", partial(asking.work, site))
    return site.task


@pyscript_compile
def step_back() -> None:
    """Let the event loop have the processor before this thread: on Linux, which can tell threads apart."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@pyscript_compile
async def stop(site: sites.Site) -> None:
    """Plan no more; what the devices were told stays."""
    tasks = [task for task in (site.task, site.asking, site.comparing) if task]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if site.solver:
        ending = asyncio.to_thread(partial(site.solver.shutdown, cancel_futures=True))
        with suppress(TimeoutError):
            await asyncio.wait_for(ending, STOP_SECONDS)
    for controlled in site.controlled.values():
        controlled.fail_waiters(errors.NotPlanned("The scripts were reloaded meanwhile: call again"))


@pyscript_compile
async def work(site: sites.Site) -> None:
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
            for controlled in site.controlled.values():
                controlled.asked = None
                controlled.fail_waiters(failure)
            site.plan_no_later_than(site.now() + LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(SECONDS_AFTER_A_FAULT)
        finally:
            site.is_planning = False


@pyscript_compile
async def until_due(site: sites.Site) -> None:
    """Wait until a plan is due, and meanwhile take note of the instructions that come into force."""
    while True:
        site.urged.clear()
        now = site.now()
        clamp_to_clock(site, now)
        for controlled in site.controlled.values():
            instructions.follow_instructions(site, controlled, now)
        if site.due is not None and site.due <= site.now():
            return
        moments = [] if site.due is None else [site.due]
        moments += [
            change.moment
            for controlled in site.controlled.values()
            for change in instructions.upcoming(controlled, now)[:1]
        ]
        wait = min(moments, default=math.inf) - now
        with suppress(TimeoutError):
            await asyncio.wait_for(site.urged.wait(), min(max(wait, 0.01), MAX_SLEEP_SECONDS))


@pyscript_compile
def clamp_to_clock(site: sites.Site, now: float) -> None:
    """Clamp deadlines, in case the system clock was set back."""
    site.prices_due = min(site.prices_due, now + triggers.PRICES_SECONDS)
    site.not_before = min(site.not_before, now + sites.REFUSED_SECONDS)
    site.renew_at = min(site.renew_at, site.replans_all_at(now))
    site.rate_limit.updated_at = min(site.rate_limit.updated_at, now)
    site.rate_limit.resets_at = min(site.rate_limit.resets_at, now + site.rate_limit.reset_seconds)
    for name in ("due", "asking_due"):
        moment = getattr(site, name)
        if moment is not None:
            setattr(site, name, min(moment, now + max(site.rolling, sites.REFUSED_SECONDS) + 1.0))
    for sensor, until in site.unusable.items():
        site.unusable[sensor] = min(until, now + sites.REFUSED_SECONDS)
    for controlled in site.controlled.values():
        controlled.refused_until = min(controlled.refused_until, now + sites.REFUSED_SECONDS)
        controlled.leaving_until = min(controlled.leaving_until, now + triggers.AFTER_SELECTION_SECONDS)
        controlled.heard = {actuator: min(moment, now) for actuator, moment in controlled.heard.items()}
        controlled.departures = {
            key: (said, count, min(until, now + triggers.LONGEST_PATIENCE_SECONDS))
            for key, (said, count, until) in controlled.departures.items()
        }
        controlled.since = min(controlled.since, now)
        settles_at = now + instructions.LONGEST_LEAD + plans.LAG_SECONDS
        controlled.settles_at = min(controlled.settles_at, settles_at)


@pyscript_compile
async def plan(site: sites.Site) -> None:
    """Plan the devices whose problem is another, or all where the site's is, and tell them."""
    now = site.now()
    site.due = None
    renews = now >= site.renew_at
    group = plannable(site, now)
    refuse_others(site, group)
    if renews:
        site.renewed_at, site.renew_at = now, math.inf
    site.renew_at = min(site.renew_at, site.replans_all_at(now))
    if group:
        site.plan_no_later_than(site.renew_at)
    wanting = [controlled for controlled in group if renews or needs_plan(controlled, now)]
    if wanting:
        site.why = why_planned(wanting, renews)
    enqueue(site, group, wanting)
    waiting = len(site.queue)
    next_blocks = blocks(site.queue, MAX_TOGETHER if is_coupled(site) else 1)[:AT_ONCE]
    if is_coupled(site):
        next_blocks = next_blocks[:1]
    taken = [each for block in next_blocks for each in block]
    site.queue = [controlled for controlled in site.queue if controlled not in taken]
    if site.queue:
        site.plan_no_later_than(now)
    found = await asyncio.gather(
        *[plan_together(site, each, site_model.effort(len(each) / waiting)) for each in next_blocks],
        return_exceptions=True,
    )
    for error in found:
        if error is not None:
            raise error


@pyscript_compile
def why_planned(wanting: list[sites.Controlled], renews: bool) -> str:
    """Return why devices are planned now."""
    if renews:
        return "prices, schedules or the time have moved on: all devices are planned anew"
    return texts.few(
        [f"{controlled.resource.name}: {why_planned_anew(controlled)}" for controlled in wanting]
    )


@pyscript_compile
def why_planned_anew(controlled: sites.Controlled) -> str:
    """Return why a device is planned now."""
    if controlled.plan is None:
        return "its first plan"
    if controlled.is_outdated and controlled.schedule:
        return "a new schedule by FlexMeasures"
    return controlled.why or "its plan has ended"


@pyscript_compile
def enqueue(site: sites.Site, group: list[sites.Controlled], wanting: list[sites.Controlled]) -> None:
    """Have devices wait for their turn to be planned: who has no plan first.

    Where the connection couples devices, all are planned when one is.
    """
    site.queue = [controlled for controlled in site.queue if controlled in group]
    fresh = [controlled for controlled in wanting if controlled not in site.queue]
    newcomers = [controlled for controlled in fresh if controlled.plan is None]
    if fresh:
        site.round_at = site.now()
    if fresh and site.connection.couples_devices:
        fresh = [controlled for controlled in group if controlled not in site.queue]
    others = [controlled for controlled in fresh if controlled not in newcomers]
    waiting_first = [controlled for controlled in site.queue if controlled.plan is None]
    waiting = [controlled for controlled in site.queue if controlled.plan is not None]
    site.queue = [*waiting_first, *newcomers, *waiting, *others]


@pyscript_compile
def is_coupled(site: sites.Site) -> bool:
    """Return whether what one device takes matters to others: by the connection, or by what they pay."""
    if site.connection.couples_devices:
        return True
    return any(each.consumption != each.production for each in site.known_prices or ())


@pyscript_compile
def plannable(site: sites.Site, now: float) -> list[sites.Controlled]:
    """Return the Controlled that can be planned now, least flexible first."""
    found = []
    for controlled in site.controlled.values():
        if (
            controlled.session.stage == sessions.ENDED
            or controlled.is_returning
            or why_not_plannable(site, controlled, now)
        ):
            continue
        if now < controlled.leaving_until:
            site.plan_no_later_than(controlled.leaving_until)
            continue
        begins = controlled.type.valid_from(controlled.session.memory)
        if begins > now + instructions.LEAD_SECONDS:
            site.plan_no_later_than(begins)
            continue
        found.append(controlled)
    return sorted(found, key=flexibility)


@pyscript_compile
def flexibility(controlled: sites.Controlled) -> tuple[int, str]:
    """Sort key: who has the least choice is planned first."""
    return controlled.type.flexibility, controlled.resource.resource_id


@pyscript_compile
def why_not_plannable(site: sites.Site, controlled: sites.Controlled, now: float) -> str | None:
    """Return why a Resource Manager cannot be planned now, but for its description being of later."""
    missing = controlled.type.missing_message(controlled.session.memory)
    if missing:
        return f"it has not sent {missing} yet"
    return controlled.unfit if controlled.unfit_version == controlled.version else None


@pyscript_compile
def refuse_others(site: sites.Site, group: list[sites.Controlled]) -> None:
    """Tell the callers that wait for the plan of a Resource Manager that cannot be planned now."""
    now = site.now()
    for controlled in site.controlled.values():
        if controlled not in group and controlled.waiting and not controlled.is_returning:
            why = why_not_plannable(site, controlled, now) or "its description is not valid yet"
            controlled.fail_waiters(
                errors.NotPlannable(f"{controlled.resource.name} cannot be planned: {why}")
            )


@pyscript_compile
def needs_plan(controlled: sites.Controlled, now: float) -> bool:
    """Return whether a device has no plan, or one for another problem."""
    has_plan = controlled.plan is not None and controlled.plan.end > now
    return not has_plan or controlled.is_outdated or controlled.version != controlled.planned_version


@pyscript_compile
def blocks(chosen: list[sites.Controlled], most: int) -> list[list[sites.Controlled]]:
    """Return devices in groups that are planned in one program each, and told from the same moment on."""
    found: list[list[sites.Controlled]] = []
    for each in chosen:
        lead = instructions.lead(each.session)
        if not found or len(found[-1]) >= most or instructions.lead(found[-1][0].session) != lead:
            found.append([])
        found[-1].append(each)
    return found


@pyscript_compile
async def plan_together(site: sites.Site, block: list[sites.Controlled], effort: Any) -> None:
    """Plan some devices beside what is expected of all others, and put their plans in force."""
    now = site.now()
    begin = now + instructions.lead(block[0].session)
    for controlled in block:
        controlled.is_outdated = False
    tasks = await read(site, [task_of(site, controlled, now, begin) for controlled in block], now)
    for task in tasks:
        task.controlled.asked = task.device, task.state
    try:
        made, failures = await solve(site, tasks, now, begin, effort)
        for task, error in failures.items():
            refuse(site, task, error)
        for task in tasks:
            if task.controlled in made and not activation.is_stale(site, task):
                is_new = task.controlled.plan is None
                activation.put_in_force(site, task, made[task.controlled], now)
                if is_new and len(site.controlled) > 1 and is_coupled(site):
                    site.replan_all(NEWCOMER_SECONDS)
    except ImportError as error:
        for task in tasks:
            leave_out(site, task, f"{NO_SOLVER} ({error})")
    except Exception:
        for task in tasks:
            task.controlled.is_outdated = True
        raise
    finally:
        for task in tasks:
            task.controlled.asked = None


@pyscript_compile
def task_of(site: sites.Site, controlled: sites.Controlled, now: float, begin: float) -> Any:
    """Return the Task that a device is now; of its schedule counts what is left from `begin` on."""
    wanted = [
        (max(start, begin), end, power) for start, end, power in controlled.schedule or () if end > begin
    ]
    means = site.means(controlled.resource)
    terms = markets.StorageTerms(
        cycle_cost=site.cycle_cost(controlled.resource),
        energy_per_fill_level_j=means.energy if means else None,
    )
    return site_model.Task(
        controlled=controlled,
        version=controlled.version,
        memory=fill_levels.remembered(controlled.resource, controlled.session),
        heard=dict(controlled.heard),
        before=instructions.as_told(controlled, now),
        wanted=wanted or None,
        storage=terms,
    )


@pyscript_compile
async def read(site: sites.Site, tasks: list[site_model.Task], now: float) -> list[site_model.Task]:
    """Read what the devices told, and return the Tasks that can be planned; tell why others cannot."""

    def read_all() -> tuple[list[site_model.Task], dict[site_model.Task, Exception]]:
        good, failures = [], {}
        for task in tasks:
            kind = task.controlled.type
            try:
                task.device = kind.read_device(task.memory)
                if why := kind.why_not_plannable(task.device):
                    raise errors.NotPlannable(why)
                if kind.commodities_of:
                    questions.warn_of_prices(site, task.controlled, kind.commodities_of(task.device))
                task.state = kind.read_state(task.device, task.memory, task.heard, task.before, now)
                task.described = kept_plans.digests(site, kind, task.memory)
                good.append(task)
            except Exception as error:
                failures[task] = error
        return good, failures

    good, failures = await asyncio.to_thread(read_all)
    for task, error in failures.items():
        refuse(site, task, error)
    return good


@pyscript_compile
def refuse(site: sites.Site, task: site_model.Task, error: Exception) -> None:
    """Leave a device out until it tells something else, and tell why; another control type may fit it."""
    controlled, resource = task.controlled, task.controlled.resource
    if not isinstance(error, errors.NotPlannable):
        LOGGER.error("What %s told cannot be planned: please report this", resource.name, exc_info=error)
        leave_out(site, task, f"what it told cannot be planned ({texts.quoted(repr(error))})")
    elif leave_out(site, task, str(error)):
        site.unfit(resource, controlled.session, controlled.type.name)


@pyscript_compile
def leave_out(site: sites.Site, task: site_model.Task, why: str) -> bool:
    """Leave a device out until it tells something else, and tell why; return whether that still counts."""
    controlled, resource = task.controlled, task.controlled.resource
    if site.is_gone(controlled) or controlled.version != task.version:
        return False
    controlled.unfit, controlled.unfit_version = why, task.version
    site.told(resource, f"it cannot be planned: {why}")
    controlled.fail_waiters(errors.NotPlannable(f"{resource.name} cannot be planned: {why}"))
    return True


@pyscript_compile
async def solve(
    site: sites.Site, tasks: list[site_model.Task], now: float, begin: float, effort: Any
) -> tuple[dict[sites.Controlled, Any], dict[site_model.Task, Exception]]:
    """Return (the Plan of each Controlled, why a Task has none).

    Where they cannot be planned together, each is by itself. Raise ImportError without HiGHS.
    """
    if not tasks:
        return {}, {}
    chosen = {task.controlled for task in tasks}
    step = step_of(site, chosen)
    start = now // step * step
    end = max(start + site.horizon, *[task.controlled.type.last_deadline(task.device) for task in tasks])
    window = sites.Window(start, step, min(end, start + questions.LONGEST_HORIZON), 1.0, math.inf, False)
    left_out = chosen if is_coupled(site) else site.controlled.values()
    outlook = await loads.expected(site, left_out, window)
    is_crowded = len(site.queue) > MAX_TOGETHER
    coarser = site_model.COARSE if is_crowded else site_model.COARSER
    times = site_model.spans(outlook, begin, coarser)

    def planned() -> tuple[dict[sites.Controlled, Any], dict[site_model.Task, Exception]]:
        if len(tasks) > 1:
            try:
                return site_model.planned(tasks, outlook, times, site.connection, site.tariffs, effort), {}
            except ImportError:
                raise
            except Exception as error:
                LOGGER.info("%s devices are planned one by one, since together: %r", len(tasks), error)
        made: dict[sites.Controlled, Any] = {}
        failures: dict[site_model.Task, Exception] = {}
        for task in tasks:
            try:
                made |= site_model.planned([task], outlook, times, site.connection, site.tariffs, effort)
                loads.add_load(outlook, task.controlled, made[task.controlled])
            except ImportError:
                raise
            except Exception as error:
                failures[task] = error
        return made, failures

    return await asyncio.get_running_loop().run_in_executor(site.solver, planned)


@pyscript_compile
def step_of(site: sites.Site, chosen: Collection[sites.Controlled]) -> float:
    """Return how long a step of the plan of devices is (s)."""
    means = [site.means(controlled.resource) for controlled in chosen]
    finest = min([each.resolution for each in means if each], default=STEP_SECONDS)
    return min(max(finest, MIN_STEP_SECONDS), STEP_SECONDS)
