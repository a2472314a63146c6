"""Demand driven based control: which modes supply a demand, and how much each, at the least cost.

The demand has no unit in S2: it is that of the supply. It is met at every moment where that can be; the
choice is made here, by FlexMeasures' prices and the tariffs of other commodities.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import flexmeasures_cem.market as markets
import flexmeasures_cem.modes as modes
import flexmeasures_cem.plans as plans
import flexmeasures_cem.transitions as transitions
import flexmeasures_s2.ddbc as messages

CONTROL_TYPE = "DEMAND_DRIVEN_BASED_CONTROL"
INSTRUCTION = "DDBC.Instruction"
DESCRIPTION, FORECAST = messages.DESCRIPTION, "DDBC.AverageDemandRateForecast"
ACTUATOR_STATUS, TIMER_STATUS = "DDBC.ActuatorStatus", "DDBC.TimerStatus"
CALL_FOR_A_PLAN = (DESCRIPTION, FORECAST)
"""The messages that change the problem; a DDBC.PresentDemandStatus does where it departs from the plan."""
PLAN = plans.Plan
DEMAND_TOLERANCE = 0.02
"""By which part of the greatest supply or demand the present demand may differ from what was planned with."""
FINEST_SECONDS = 60.0
"""How much time there is at least between changes that follow the demand."""
MOST_WAYS = 60
"""How many transitions its actuators may have together, counting each one's mode of the most."""
NEARLY = 1e-9
"""Which part of the greatest supply counts as nothing."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Device:
        """Actuators, and the demand: (least, most) at present, and (start, end, rate) as it is forecast.

        `told` is of when the present demand is, and `present_until` the end of the interval for which it
        was planned with. `starts` is when each of the forecast's elements starts; `scale` is the greatest
        supply or demand.
        """

        actuators: list
        present: tuple
        told: float
        forecast: list = field(default_factory=list)
        starts: list = field(default_factory=list)
        scale: float = 0.0
        present_until: float = math.inf

    return Device


Device = record()
alike, upcoming, missed = transitions.alike, plans.upcoming, plans.missed


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    if (DESCRIPTION,) not in memory:
        return DESCRIPTION
    return None if messages.present_demand(memory) else messages.PRESENT_DEMAND


@pyscript_compile
def valid_from(memory):
    """Return from when on the description holds."""
    return memory[DESCRIPTION,].valid_from.timestamp()


@pyscript_compile
def device(memory):
    """Return the device that is described, with its demand."""
    description, latest = memory[DESCRIPTION,], messages.present_demand(memory)
    present = latest.present_demand_rate
    told = description.valid_from if latest is description else latest.received_at
    found = Device(
        [modes.read(each, each.id) for each in description.actuators],
        (present.start_of_range, present.end_of_range),
        told.timestamp(),
        read_forecast(memory.get((FORECAST,))),
    )
    found.starts = [each[0] for each in found.forecast]
    supplies = [
        max((abs(end) for mode in each.modes.values() for end in mode.supply), default=0.0)
        for each in found.actuators
    ]
    demands = [abs(each) for each in (*found.present, *[each[2] for each in found.forecast])]
    found.scale = max(sum(supplies), max(demands))
    return found


@pyscript_compile
def read_forecast(message):
    """Return (start, end, demand rate) of each element of a forecast, which may be None."""
    found = []
    start = message.start_time.timestamp() if message else 0.0
    for element in message.elements if message else ():
        end = start + min(element.duration.root / 1000, transitions.AGES)
        if end > start:
            found.append((start, end, element.demand_rate_expected))
        start = end
    return found


@pyscript_compile
def commodities_of(found):
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of(found.actuators)


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None."""
    ways = sum(
        max((len(listed) for listed in each.transitions.values()), default=0) for each in found.actuators
    )
    if len(found.actuators) > 1 and ways > MOST_WAYS:
        return f"its actuators have too many operation modes to be planned together ({ways} transitions)"
    if found.scale > modes.GREATEST:
        return "its demand is beyond all sense"
    return modes.unfit(found.actuators)


@pyscript_compile
def until(_found):
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return what the device is now: as it told, or as it was told later.

    `heard` has when each actuator told its status last; `plan` is the one in force, or None.
    """
    actives = {}
    for each in found.actuators:
        status = memory.get((ACTUATOR_STATUS, each.id))
        finished = transitions.finished(memory, (TIMER_STATUS, each.id), now)
        told = plans.last_told(plan, now, each.id)
        actives[each.id] = transitions.active(each, status, finished, told, heard, now)
    return modes.Condition(now, actives)


@pyscript_compile
def problem(_found, _state, _means, _window):
    """Return what FlexMeasures is asked: nothing."""


@pyscript_compile
def follow(found, state, _wanted, market, tariffs):
    """Return the Plan that meets the demand at the least cost, with the tariffs of other commodities.

    A transition that is under way ends a step, so that others can make room for what it supplies then.
    """
    actuators = [modes.as_it_is(each, state.actuators[each.id]) for each in found.actuators]
    costs = [{mode.id: modes.other_cost(mode, tariffs) for mode in each.modes.values()} for each in actuators]
    ready = [each.ready for each in state.actuators.values()]
    found.present_until = market[0].end
    steps = modes.spans(market, sorted({*cuts(found, market), *ready}), is_punctual=True)
    for step in steps:
        step.demand = demand(found, step.start, step.end, step.interval is market[0])

    def outputs(chosen):
        return [
            (actuator.modes[mode], listed[mode])
            for actuator, listed, mode in zip(actuators, costs, chosen, strict=True)
            if mode is not None
        ]

    def rate(span, chosen, factors):
        running = [factor for factor, mode in zip(factors, chosen, strict=True) if mode is not None]
        return rated(span, outputs(chosen), running, tuple(factors), found.scale)

    def settle(span, chosen):
        shares = iter(dispatch(span, outputs(chosen), found.scale))
        return rate(span, chosen, tuple(0.0 if mode is None else next(shares) for mode in chosen))

    plan, pieces = modes.plan(actuators, state, steps, settle, rate, found.scale)
    plan.missed = unmet(pieces, found.scale)
    return plan


@pyscript_compile
def cuts(found, market):
    """Return when the demand changes within the market's intervals, no finer than FINEST_SECONDS."""
    edges = sorted({each.start for each in market} | {market[-1].end})
    made = []
    for place, (start, end, rate) in enumerate(found.forecast):
        following = found.forecast[place + 1][2] if place + 1 < len(found.forecast) else middle(found)
        before = [start] if place == 0 and rate != middle(found) else []
        for each in [*before, *([end] if following != rate else [])]:
            after = bisect_right(edges, each)
            near = [edges[after - 1], *edges[after : after + 1], *made[-1:]]
            if 0 < after < len(edges) and min(abs(each - edge) for edge in near) >= FINEST_SECONDS:
                made.append(each)
    return made


@pyscript_compile
def middle(found):
    """Return the middle of the present demand rate."""
    return (found.present[0] + found.present[1]) / 2


@pyscript_compile
def demand(found, start, end, is_present):
    """Return the mean demand rate of some time: as forecast, or else as it is at present.

    For the present, the forecast is kept within what is told of it, but where another of its elements has
    begun since.
    """
    total, covered = 0.0, 0.0
    first = max(bisect_right(found.starts, start) - 1, 0)
    for begin, until_, rate in found.forecast[first : bisect_left(found.starts, end)]:
        length = min(end, until_) - max(start, begin)
        if length > 0:
            if is_present and begin <= found.told:
                rate = min(max(rate, found.present[0]), found.present[1])
            total, covered = total + rate * length, covered + length
    rest = end - start - covered
    return (total + middle(found) * max(rest, 0.0)) / (end - start)


@pyscript_compile
def rated(span, outputs, running, factors, scale):
    """Return the Rates of outputs, each a mode and its other costs (at 0, at 1), with their factors."""
    power = sum(modes.at(mode.powers, factor) for (mode, _cost), factor in zip(outputs, running, strict=True))
    supply = sum(
        modes.at(mode.supply, factor) for (mode, _cost), factor in zip(outputs, running, strict=True)
    )
    others = sum(modes.at(cost, factor) for (_mode, cost), factor in zip(outputs, running, strict=True))
    lack = span.demand - supply
    if abs(lack) < NEARLY * scale:
        lack = 0.0
    hourly = markets.cost(span.interval, power, 3600) + others
    excess = markets.excess(span.interval, power)
    return modes.Rates(excess, max(lack, 0.0), max(-lack, 0.0), hourly, power, supply, factors)


@pyscript_compile
def dispatch(span, outputs, scale):
    """Return the best factor of each output: the site's limit first, then the demand, then cost."""
    supplies = [mode.supply[1] - mode.supply[0] for mode, _cost in outputs]
    powers = [mode.powers[1] - mode.powers[0] for mode, _cost in outputs]
    costs = [cost[1] - cost[0] for _mode, cost in outputs]
    if not any((*supplies, *powers, *costs)):
        return [0.0] * len(outputs)
    base = sum(mode.powers[0] for mode, _cost in outputs)
    wanted = span.demand - sum(mode.supply[0] for mode, _cost in outputs)
    interval = span.interval
    limit = max(interval.limit, abs(interval.load))
    zero = -interval.load - base
    low, high = zero - limit, zero + limit
    edges, prices = markets.slopes(interval)
    edges = [edge - interval.load - base for edge in edges]
    least, most = reach(supplies)
    target = min(max(wanted, least), most)
    for price in sorted({*prices}) if prices == sorted(prices) else ():
        factors = filled(supplies, hourly(costs, powers, price), target)
        power = total(powers, factors)
        is_its_price = prices[bisect_left(edges, power)] <= price <= prices[bisect_right(edges, power)]
        if is_its_price and low <= power <= high:
            return factors
    low, high = within(low, high, *reach(powers))
    least, most = (farthest(supplies, powers, low, high, sign) for sign in (-1, 1))
    target = min(max(wanted, least), most)
    ends = [total(powers, filled(supplies, [sign * each for each in powers], target)) for sign in (1, -1)]
    low, high = within(low, high, *ends)
    tried = []
    for start, end, price in zip([-math.inf, *edges], [*edges, math.inf], prices, strict=True):
        bottom, top = max(start, low), min(end, high)
        if bottom <= top:
            priced = hourly(costs, powers, price)
            factors = filled(supplies, priced, target)
            power = total(powers, factors)
            if not bottom <= power <= top:
                factors = pinned(supplies, powers, priced, target, min(max(power, bottom), top))
            rates = rated(span, outputs, factors, (), scale)
            tried.append((round(rates.excess, 3), round(rates.cost, 9), len(tried), factors))
    return min(tried)[3]


@pyscript_compile
def hourly(costs, powers, price):
    """Return costs (currency per hour) with the price (per kWh) of the power added."""
    return [cost + price * power / 1000 for cost, power in zip(costs, powers, strict=True)]


@pyscript_compile
def within(low, high, least, most):
    """Return the part of a range (least, most) that is between two bounds, or comes nearest."""
    return min(max(low, least), most), max(min(high, most), least)


@pyscript_compile
def reach(gains):
    """Return the least and the most of what factors can add up to."""
    return sum(min(each, 0.0) for each in gains), sum(max(each, 0.0) for each in gains)


@pyscript_compile
def total(gains, factors):
    """Return what factors add up to."""
    return sum(gain * factor for gain, factor in zip(gains, factors, strict=True))


@pyscript_compile
def farthest(supplies, powers, low, high, sign):
    """Return the most (1) or least (-1) supply with the power in a range."""
    best = [1.0 if sign * each > 0 else 0.0 for each in supplies]
    free = [power for supply, power in zip(supplies, powers, strict=True) if not supply]
    least, most = reach(free)
    fixed = sum(power * each for supply, power, each in zip(supplies, powers, best, strict=True) if supply)
    if fixed + least <= high and fixed + most >= low:
        return total(supplies, best)
    bound = high if fixed + least > high else low
    return total(supplies, filled(powers, [-sign * each for each in supplies], bound))


@pyscript_compile
def filled(gains, costs, target):
    """Return the factors that add up to a target at the least cost: the cheapest per gain come first."""
    factors = [
        1.0 if gain < 0 or (gain == 0 and cost < 0) else 0.0 for gain, cost in zip(gains, costs, strict=True)
    ]
    left = target - total(gains, factors)
    order = sorted(
        (cost / gain, place) for place, (gain, cost) in enumerate(zip(gains, costs, strict=True)) if gain
    )
    for _unit, place in order:
        if left <= 0:
            break
        gain = abs(gains[place])
        part = min(left / gain, 1.0)
        factors[place] = part if gains[place] > 0 else 1.0 - part
        left -= part * gain
    return factors


@pyscript_compile
def pinned(supplies, powers, costs, target, bound):
    """Return the factors of the least cost for a supply and a power, both given.

    A price on top of the power's makes it less, step by step; of the two steps about the power that is
    wanted, a mixture has it.
    """
    marks = set()
    count = range(len(supplies))
    for one in count:
        if supplies[one] == 0 and powers[one]:
            marks.add(-costs[one] / powers[one])
        for other in range(one) if supplies[one] else ():
            slope = powers[one] * supplies[other] - powers[other] * supplies[one]
            if supplies[other] and slope:
                marks.add((costs[other] * supplies[one] - costs[one] * supplies[other]) / slope)
    ordered = sorted(marks)
    if not ordered:
        return filled(supplies, costs, target)
    levels = [
        ordered[0] - 1.0 - abs(ordered[0]),
        *[(low + high) / 2 for low, high in pairwise(ordered)],
        ordered[-1] + 1.0 + abs(ordered[-1]),
    ]
    before = None
    for level in levels:
        priced = [cost + level * power for cost, power in zip(costs, powers, strict=True)]
        factors = filled(supplies, priced, target)
        power = total(powers, factors)
        if power <= bound:
            break
        before = factors, power
    if before is None or before[1] == power or power > bound:
        return factors
    share = (bound - power) / (before[1] - power)
    return [share * more + (1 - share) * less for more, less in zip(before[0], factors, strict=True)]


@pyscript_compile
def unmet(pieces, scale):
    """Return what is Missed of the demand: the worst of each time in which the supply stays below."""
    found, worst, end = [], None, None
    for piece in pieces:
        lack = piece.rates.shortfall
        if lack <= 1e-6 * scale:
            continue
        if worst is None or piece.start > end:
            found.append(None)
            worst, begin = 0.0, piece.start
        if lack > worst:
            worst = lack
            found[-1] = plans.Missed(begin, piece.span.demand, piece.rates.supply)
        end = piece.end
    return found


@pyscript_compile
def present(found: Device, state: modes.Condition, moment: float) -> list:
    """Return what each actuator does, as the Change at a moment that tells it to go on."""
    return modes.present(found.actuators, state, moment)


@pyscript_compile
def resumed(found: Device, plan: plans.Plan, told: Any) -> plans.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot."""
    state = condition(found, told.memory, told.heard, None, told.now)
    return plans.resumed(plan, found.actuators, state.actuators, told.begin)


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return how a status departs from what the plan expects of the device now, or None."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_departs(found, message, now)
    actuator = actuator_of(found, getattr(message, "actuator_id", None))
    if actuator and message.message_type == ACTUATOR_STATUS:
        alone = tolerance(found) if len(found.actuators) == 1 else None
        return modes.status_departs(actuator, message, plan, now, alone)
    if actuator and message.message_type == TIMER_STATUS:
        return modes.timer_departs(actuator, message, plan, now)
    return None


@pyscript_compile
def demand_departs(found: Device, message: object, now: float) -> str | None:
    """Return how the present demand departs from the one that was planned with, or None."""
    present = message.present_demand_rate
    planned = demand(found, now, now + 1.0, now < found.present_until)
    allowed = DEMAND_TOLERANCE * found.scale
    if present.start_of_range - allowed <= planned <= present.end_of_range + allowed:
        return None
    told = f"{present.start_of_range:g} to {present.end_of_range:g}"
    return f"the present demand rate is {told}, expected was {planned:g}"


@pyscript_compile
def actuator_of(found, actuator_id):
    """Return an actuator by its id, or None."""
    return next((each for each in found.actuators if each.id == actuator_id), None)


@pyscript_compile
def tolerance(found):
    """Return by how much a power may depart from the plan (W)."""
    return plans.tolerance(modes.greatest_power(found.actuators))


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_departs(plan, power, now, tolerance(found))


@pyscript_compile
def moved(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_departs(found, message, state.moment) is not None
    actuator = actuator_of(found, getattr(message, "actuator_id", None))
    if actuator is None or message.message_type not in (ACTUATOR_STATUS, TIMER_STATUS):
        return False
    return modes.is_elsewhere(actuator, state.actuators[actuator.id], message, state.moment)


@pyscript_compile
def message_type(_change):
    """Return the message that a change is told with."""
    return INSTRUCTION


@pyscript_compile
def fields(change):
    """Return the fields of the DDBC.Instruction that a Change calls for, but for its ids and time."""
    return {"actuator_id": change.actuator, **modes.fields(change)}


@pyscript_compile
def describe(found, change, _now):
    """Return what a Change says, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of(found.actuators, change)
    return {**fields(change), "label": label, "power": round(change.power)}
