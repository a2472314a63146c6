"""What a site pays with its plans, and what it would pay without them.

Without a plan, a device takes what it needs without regard to prices and to the site's limits: as soon as it
needs it. That is the plan of the same model where the price of consumption is the same at all times, but for
a small rise that makes the first of two moments the better one, and feeding in yields nothing. Moments are
seconds since 1970, costs are in the currency of the prices.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.site.alone as alone
import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.planner as planner
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.site_model as site_model

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
COMPARING = "comparison of costs"
PRICE_RISE = 0.02
"""By which part of the mean price the price rises over the whole time, where no price is known."""
EFFORT = search.Effort(seconds=0.3, gap=0.01, relative_gap=0.005, patience=1.0)
"""How near to the optimum a device is planned without prices."""
SETTLING_SECONDS = 2.0
"""How long after a plan its costs are computed, so that devices get their instructions first."""
UPDATE_SECONDS, REST_SECONDS = 300.0, 20.0
"""How often the site's power and costs are computed: while no plan changes, and at most."""
SAME_PLAN_SECONDS, SAME_STATE_SECONDS = 600.0, 60.0
"""How long what a device would do without its plan is used: as it is, and where its problem has changed."""


@dataclass(frozen=True, kw_only=True)
class _SiteCosts:
    """What a site is expected to pay from `start` to `end` (currency), and its power (W) at `start`.

    What is stored at the end beyond what was stored at the start counts as paid back, at the cheapest price
    at which it could be stored again.
    """

    start: float
    end: float
    power_w: float
    cost: float
    cost_without: float


SiteCosts = _SiteCosts


@pyscript_compile
async def work(site: sites.Site) -> None:
    """Compute the costs after each plan, and now and then in between."""
    while True:
        site.has_new_plans.clear()
        try:
            await update(site)
            site.fault(COMPARING, None)
        except Exception as error:
            site.fault(COMPARING, error)
        await asyncio.sleep(REST_SECONDS if site.costs else 0.0)
        with suppress(TimeoutError):
            await asyncio.wait_for(site.has_new_plans.wait(), UPDATE_SECONDS)
            await asyncio.sleep(SETTLING_SECONDS)


@pyscript_compile
async def update(site: sites.Site) -> None:
    """Compute what devices would do without plans, and the site's costs, unless some wait for a plan."""
    for controlled in list(site.controlled.values()):
        if site.queue:
            return
        if needs_comparison(controlled) and not site.is_gone(controlled):
            await compare(site, controlled)
    site.costs = await site_costs(site)
    site.costs_changed()


@pyscript_compile
def needs_comparison(controlled: sites.Controlled) -> bool:
    """Return whether what a device would do without its plan is not known, or of a former state or time."""
    plan, without = controlled.plan, controlled.without_plan
    if plan is None or without is None:
        return plan is not None
    is_same = controlled.without_version == controlled.planned_version
    longest = SAME_PLAN_SECONDS if is_same else SAME_STATE_SECONDS
    return bool(abs(plan.start - without.start) > longest)


@pyscript_compile
async def compare(site: sites.Site, controlled: sites.Controlled) -> None:
    """Compute what a device would do without its plan."""
    now, version = site.now(), controlled.planned_version
    step = planner.step_of(site, {controlled})
    start, end = now // step * step, controlled.plan.end
    if end - now < step:
        return
    outlook = outlooks.new(site.known_prices or [], start, end, step, now)
    spans = site_model.spans(outlook, now, site_model.COARSE)
    task, kind = planner.task_of(site, controlled, now, now), controlled.type

    def planned() -> Any:
        device = kind.read_device(task.memory)
        state = kind.read_state(device, task.memory, task.heard, task.before, now)
        market = flat_market(outlooks.market(outlook, None, spans, markets.Connection()))
        return alone.planned(kind, device, state, None, market, site.tariffs, EFFORT, task.storage)

    try:
        controlled.without_plan = await asyncio.get_running_loop().run_in_executor(site.solver, planned)
    except (ImportError, search.NoSolution) as error:
        LOGGER.debug("No cost without a plan of %s: %r", controlled.resource.name, error)
        controlled.without_plan = None
    controlled.without_version = version


@pyscript_compile
def flat_market(market: list[markets.Interval]) -> list[markets.Interval]:
    """Return a market with the mean price at all times, less at first, and no yield of feeding in."""
    price = max(fmean([interval.consumption_price for interval in market]), 0.0) or outlooks.NOMINAL_PRICE
    first, last = market[0].start, market[-1].end
    return [
        replace(
            interval,
            consumption_price=price * (1.0 + PRICE_RISE * (interval.start - first) / (last - first)),
            production_price=0.0,
        )
        for interval in market
    ]


@pyscript_compile
async def site_costs(site: sites.Site) -> SiteCosts | None:
    """Return the SiteCosts from now until the first plan ends, or None without prices or plans."""
    now, step = site.now(), planner.STEP_SECONDS
    compared = [
        controlled for controlled in site.controlled.values() if controlled.plan and controlled.without_plan
    ]
    ends = [plan.end for each in compared for plan in (each.plan, each.without_plan)]
    end = min(ends, default=now) // step * step
    if site.known_prices is None or end - now < step:
        return None
    window = sites.Window(now // step * step, step, end, 1.0, 0.0, False)
    outlook = await loads.expected(site, (), window)
    return await asyncio.to_thread(partial(compared_costs, compared, outlook, end, site.connection))


@pyscript_compile
def compared_costs(
    compared: list[sites.Controlled], outlook: outlooks.Outlook, end: float, connection: markets.Connection
) -> SiteCosts:
    """Return the SiteCosts of an Outlook with all plans, until an end; `compared` have both plans."""
    power_w = outlook.total[0]
    values = [getattr(controlled.plan, "value_per_kwh", 0.0) for controlled in compared]
    cost = bill(outlook, end, connection)
    cost += others_than_electricity([controlled.plan for controlled in compared], values, outlook.begin, end)
    for each in compared:
        loads.add_load(outlook, each, each.without_plan)
    cost_without = bill(outlook, end, connection)
    without = [controlled.without_plan for controlled in compared]
    cost_without += others_than_electricity(without, values, outlook.begin, end)
    return SiteCosts(start=outlook.begin, end=end, power_w=power_w, cost=cost, cost_without=cost_without)


@pyscript_compile
def bill(outlook: outlooks.Outlook, end: float, connection: markets.Connection) -> float:
    """Return what the electricity of a site costs (currency), a peak's price included."""
    edges = [outlook.start + place * outlook.step for place in range(len(outlook.total))]
    spans = [(max(edge, outlook.begin), edge + outlook.step) for edge in edges if edge < end]
    market = outlooks.market(outlook, None, spans, connection)
    peak_w = max([interval.load for interval in market])
    paid: float = sum(markets.grid_cost(each, each.load) * (each.end - each.start) / 3600 for each in market)
    peak_cost: float = connection.peak_price * max(peak_w - connection.peak_consumption, 0.0) / 1000
    return paid + peak_cost


@pyscript_compile
def others_than_electricity(plans: list[Any], values: list[float], begin: float, end: float) -> float:
    """Return what Plans cost beside electricity (currency), less what their storages gain by their values."""
    found = 0.0
    for plan, value in zip(plans, values, strict=True):
        share = min((end - begin) / (plan.end - plan.start), 1.0)
        found += plan.other_cost * share - getattr(plan, "gained_kwh", 0.0) * value
    return found
