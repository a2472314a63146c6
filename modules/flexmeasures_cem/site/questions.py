"""What FlexMeasures is asked: the devices of a site as one question, and how often that may be.

Moments are seconds since 1970, power is W.
"""

import asyncio
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import flexmeasures_api.errors as api_errors
import flexmeasures_api.flexible_devices as storages
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.site as sites
import flexmeasures_s2.texts as texts
from flexmeasures_api.schedule import Schedule

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
MOST_PLANS, MOST_WITH_CALLS, PLANS_SECONDS = 8, 10, 300.0
"""How many plans FlexMeasures takes in some time where it does not tell, without and with a user's calls."""
RESERVED = MOST_WITH_CALLS - MOST_PLANS
"""How many plans are left for a user's calls, of those that FlexMeasures takes."""
LONGEST_HORIZON = 172_800.0
"""FlexMeasures plans no more than two days ahead, unless its owner has set another horizon."""
MOST_SPLITS = 5
MOST_WITH_MODES = 2
"""Of how many devices FlexMeasures is asked to choose operation modes: that takes it twice the time."""
KWH = 3_600_000.0
"""J."""
OF_A_PROBLEM = (
    api_errors.InvalidProblem,
    api_errors.Infeasible,
    api_errors.JobFailed,
    api_errors.NoAccess,
    api_errors.UnknownSensor,
)
"""Errors that one device of several may be the cause of."""


@dataclass
class _Question:
    """A device as FlexMeasures' problem, planned until `end`; without one, it is planned here.

    `left` is which part is left of the first interval.
    """

    problem: Any
    end: float
    left: float


Question = _Question


@pyscript_compile
async def build_request(
    site: sites.Site,
    controlled: sites.Controlled,
    means: sites.PlanningSensors,
    now: float,
    start: float,
    step: float,
    sharers: int,
) -> Any:
    """Return the Question that a Resource Manager's state is, or None where it cannot be planned."""
    memory, kind = fill_levels.remembered(controlled.resource, controlled.session), controlled.type
    heard, plan_before = dict(controlled.heard), instructions.as_told(controlled, now)
    share = site.connection.max_consumption / max(sharers, 1)

    def read() -> tuple[Any, Any, sites.Window] | None:
        device = kind.read_device(memory)
        if kind.why_not_plannable(device):
            return None
        longest = min(math.ceil((kind.last_deadline(device) - start) / step) * step, LONGEST_HORIZON)
        end = start + max(site.horizon, longest)
        state = kind.read_state(device, memory, heard, plan_before, now)
        left = (start + step - now) / step
        window = sites.Window(start, step, end, left, share, sharers <= MOST_WITH_MODES)
        flex_model = kind.flex_model(device, state, means, window) if kind.flex_model else None
        return device, flex_model, window

    try:
        found = await asyncio.to_thread(read)
    except Exception as error:
        LOGGER.error(
            "%s cannot be put as a problem: please report this", controlled.resource.name, exc_info=error
        )
        site.refuse(
            controlled,
            controlled.version,
            f"what it told cannot be planned ({texts.quoted(repr(error))})",
            error,
        )
        return None
    if found is None:
        return None
    device, problem, window = found
    controlled.is_asked = problem is not None
    if kind.energy_per_fill_level:
        tell_worth(controlled, kind.energy_per_fill_level(device, means.energy), means)
    has_modes = isinstance(problem, storages.Storage) and problem.operation_modes
    return Question(problem, window.end, 1.0 if has_modes else window.left)


@pyscript_compile
def warn_of_prices(site: sites.Site, controlled: sites.Controlled, used: Collection[str]) -> None:
    """Warn, once, of a commodity that a device takes and that counts as free, since it has no price."""
    unknown = ", ".join(sorted([name.lower() for name in used if name not in site.tariffs]))
    if unknown and not controlled.was_warned:
        controlled.was_warned = True
        LOGGER.warning(
            "%s takes %s, which counts as free: give its price under s2.prices",
            controlled.resource.name,
            unknown,
        )


@pyscript_compile
def tell_worth(controlled: sites.Controlled, value: Any, means: sites.PlanningSensors) -> None:
    """Log what a unit of fill level is taken to be worth, once it is another."""
    if controlled.worth is None or abs(controlled.worth.energy - value.energy) > 0.001 * value.energy:
        LOGGER.info(
            "%s: a unit of fill level is taken as %.4g kWh (%s), charging as %.1f %%, discharging as %.1f %%",
            controlled.resource.name,
            value.energy / KWH,
            "configured" if means.energy else "by its power and fill rate",
            100 * value.charging,
            100 * value.discharging,
        )
    controlled.worth = value


@pyscript_compile
async def ask(
    site: sites.Site, asked: dict[sites.Controlled, Question], outlook: outlooks.Outlook, window: sites.Window
) -> Any:
    """Ask FlexMeasures for the schedules of all whom it can plan; return what `solve` does, or its error."""
    site.made.append(site.now())
    reasons = [f"{controlled.resource.name}: {controlled.why or 'its time'}" for controlled in asked]
    outlook = replace(outlook, powers=dict(outlook.powers))
    for controlled in asked:
        controlled.why = None
        loads.remove_load(outlook, controlled)
    LOGGER.debug("Planning %s", "; ".join(reasons))
    given, known = await loads.given(site, asked, window)
    limits = await asyncio.to_thread(loads.limits, site.connection, outlook, known, window)
    try:
        return await solve(site, list(asked), asked, window, given, limits)
    except api_errors.FlexMeasuresError as error:
        return error


@pyscript_compile
async def solve(
    site: sites.Site,
    group: list[sites.Controlled],
    asked: dict[sites.Controlled, Question],
    window: sites.Window,
    given: dict[int, list[tuple[float, float, float]] | None],
    limits: dict[str, list[tuple[float, float, float]]],
) -> tuple[dict[sites.Controlled, Schedule], dict[sites.Controlled, api_errors.FlexMeasuresError]]:
    """Return (the schedule of each, the error of each that FlexMeasures refuses).

    Where it refuses several together, it is asked for each half, so that one does not keep the others from
    their plan.
    """
    problems = [asked[controlled].problem for controlled in group]
    try:
        found = await site.solve(problems, window, given, limits)
    except OF_A_PROBLEM as error:
        if len(group) == 1 or site.splits >= MOST_SPLITS or left_without_calls(site) < 2:
            if len(group) < len(asked):
                return {}, dict.fromkeys(group, error)
            raise
        site.splits += 1
        LOGGER.warning(
            "FlexMeasures cannot plan %s devices together, so less are tried: %s", len(group), error
        )
        middle = len(group) // 2
        schedules: dict[sites.Controlled, Schedule] = {}
        refusals: dict[sites.Controlled, api_errors.FlexMeasuresError] = {}
        for half in (group[:middle], group[middle:]):
            site.made.append(site.now())
            some, refused = await solve(site, half, asked, window, given, limits)
            schedules |= some
            refusals |= refused
        return schedules, refusals
    return {each: found[problem.power_sensor] for each, problem in zip(group, problems, strict=True)}, {}


@pyscript_compile
def powers_of(schedule: Any, left: float) -> list[tuple[float, float, float]]:
    """Return (start, end, power (W)) of each interval; of the first one only a part is left."""
    first, step = schedule.start.timestamp(), schedule.resolution.total_seconds()
    return [
        (first + place * step, first + (place + 1) * step, (value or 0.0) / (1.0 if place else left))
        for place, value in enumerate(schedule.values)
    ]


@pyscript_compile
def may_ask_at(site: sites.Site, now: float) -> float:
    """Return when FlexMeasures may be asked: not too often, unless somebody waits for it."""
    if site.is_urgent:
        return now
    moment = max(now, site.not_before)
    return moment if left_without_calls(site) > 0 else max(moment, takes_more_at(site))


@pyscript_compile
def left_without_calls(site: sites.Site) -> int:
    """Return how many plans may still be asked for without a user's call."""
    limit = site.rate_limit.limit
    return left(site) - (RESERVED if limit is None else min(RESERVED, limit // 2))


@pyscript_compile
def left(site: sites.Site) -> int:
    """Return how many plans FlexMeasures still takes, as it told, or else by its default limit."""
    told, lately = site.rate_limit, lately_made(site)
    if told.limit is None:
        return MOST_WITH_CALLS - lately
    is_over = site.now() >= told.resets_at
    since = told.resets_at if is_over else told.updated_at
    left_then: int = told.limit if is_over else told.remaining
    return left_then - sum(moment > since for moment in site.made)


@pyscript_compile
def takes_more_at(site: sites.Site) -> float:
    """Return when FlexMeasures takes more plans than now."""
    now, told = site.now(), site.rate_limit
    if told.limit is not None and now < told.resets_at:
        return told.resets_at
    return site.made[0] + PLANS_SECONDS if lately_made(site) else now


@pyscript_compile
def lately_made(site: sites.Site) -> int:
    """Return how many plans were asked for in the time that the server's default limit is about."""
    now = site.now()
    while site.made and not now - PLANS_SECONDS < site.made[0] <= now:
        site.made.popleft()
    return len(site.made)
