"""Power envelope based control: between which limits a device is to keep its power.

Nothing is limited without a reason, which is the site's limit, a price at which production costs, or cheaper
hours for what is deferred. First comes the site's limit, then the room for the energy that is needed, and
cost comes last. The power of both sides of an envelope is counted as an amount (W): of consumption by
side 1 (UPPER_LIMIT), of production by side -1 (LOWER_LIMIT).
"""

import math
import uuid
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import flexmeasures_cem.errors as errors
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_cem.market as markets
import flexmeasures_cem.plans as plans
import flexmeasures_optimiser.storage as storages
import flexmeasures_s2.commodities as commodities

CONTROL_TYPE = "POWER_ENVELOPE_BASED_CONTROL"
INSTRUCTION = "PEBC.Instruction"
POWER_CONSTRAINTS, ENERGY_CONSTRAINT = "PEBC.PowerConstraints", "PEBC.EnergyConstraint"
FORECAST = ("PowerForecast",)
CALL_FOR_A_PLAN = (POWER_CONSTRAINTS, ENERGY_CONSTRAINT, *FORECAST)
"""The messages that change the problem."""
UPPER, LOWER, DEFER = "UPPER_LIMIT", "LOWER_LIMIT", "DEFER"
SIDES = (1, -1)
HAIR = 0.01
"""By which part of a forecast a schedule has to produce less, so that it means to curtail."""
FEW = 0.02
"""Which part of the energy is allowed next to other such times, rather than for some seconds elsewhere."""
SAME = 0.001
"""By which part two limits may differ and still say the same."""
EPSILON = 1e-6
LEAST_ENERGY, LEAST_MISSED = 1e-3, 1.0
"""Wh: what is as good as none, and what is not worth telling."""
MOST_ELEMENTS, MOST_UPCOMING, MOST_MESSAGES = 288, 100, 50
TAIL_SECONDS = 3600.0
"""How much longer a limited envelope has to be than the one in force, to be told for that."""
SHORTEST, SLIVER = 0.001, 2.0
"""The shortest element (s), and what is too short to tell envelopes apart."""
HISTORY_SECONDS = 172_800.0
"""How long is remembered what a device was told, where no energy constraint asks for longer."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(frozen=True)
    class Quantity:
        """The values that the limits of a commodity quantity may take: ranges in order, without overlap."""

        upper: tuple
        lower: tuple

    @dataclass(frozen=True)
    class Side:
        """What one side of an envelope allows: amounts (W) of electric power in all.

        `low` and `high` are the least and greatest amounts by quantity, between which the amount in all is
        shared; `ranges` are the amounts in all that can be, in order.
        """

        low: dict
        high: dict
        ranges: tuple

    @dataclass(frozen=True)
    class Constraints:
        """PEBC.PowerConstraints: when they are valid, and what they allow. `sides` are by 1 and -1."""

        id: str
        start: float
        end: float
        is_deferred: bool
        quantities: dict
        sides: dict

    @dataclass(frozen=True)
    class Energy:
        """A PEBC.EnergyConstraint of electric power: average powers (W) of a quantity in a time."""

        start: float
        end: float
        upper: float
        lower: float
        quantity: str

    @dataclass(frozen=True)
    class Device:
        """What is told of a device; constraints are in the order they came. `flaw` is why it is unfit.

        `most` and `least` are the greatest consumption and production (W), `forecast` the pieces (start,
        end, power) of its PowerForecast, inside that, or None without one.
        """

        constraints: list
        energies: list
        forecast: list | None
        most: float
        least: float
        flaw: str | None

    @dataclass(frozen=True)
    class Element:
        """The limits (upper, lower) by quantity in some time."""

        start: float
        end: float
        limits: dict

    @dataclass(frozen=True)
    class Condition:
        """What the device was told by a moment, as Elements; the last of them are still to come.

        `changes` are those of the plan in force.
        """

        moment: float
        told: list
        changes: list

    @dataclass(frozen=True, eq=False)
    class Change:
        """An envelope from a moment on, under the constraints of this id.

        `elements` are its limits, `widest` those of an envelope that limits nothing, `pieces` the power that
        is expected, `power` what is expected at first.
        """

        moment: float
        power: float
        constraints: str
        elements: list
        widest: dict
        pieces: list
        actuator: str | None = None

    @dataclass(frozen=True)
    class Step:
        """One element of a Change: the limits from a moment on, and the power expected then."""

        moment: float
        power: float
        constraints: str
        limits: dict
        widest: dict
        actuator: str | None = None

    @dataclass
    class Plan(plans.Plan):
        """A Plan that remembers what the device was told before its start, as Elements."""

        told: list = field(default_factory=list)

    @dataclass(frozen=True)
    class Need:
        """Energy (Wh) of a quantity that an envelope has to allow on one side, in a time.

        `asked` is for all of that time, `left` what is to be allowed of it in the plan.
        """

        side: int
        quantity: str
        start: float
        end: float
        asked: float
        left: float

    @dataclass
    class Slot:
        """Some time of the plan: `wanted` is the schedule's power (W) or None, `forecast` what is expected.

        `amounts` are what is allowed by side, `ceilings` what the site's limit leaves of it.
        """

        start: float
        end: float
        constraints: Any
        interval: Any
        wanted: float | None
        forecast: float
        is_curtailed: bool
        amounts: dict = field(default_factory=dict)
        ceilings: dict = field(default_factory=dict)

    @dataclass(frozen=True, order=True)
    class Offer:
        """Room that a Slot can give: from one amount to another; the least are taken first.

        What the schedule wants comes first (`rank`), then what costs least (`slope`, currency per kWh).
        """

        rank: int
        slope: float
        start: float
        low: float
        high: float = field(compare=False)
        slot: Any = field(compare=False)

    return (
        Quantity,
        Side,
        Constraints,
        Energy,
        Device,
        Element,
        Condition,
        Change,
        Step,
        Plan,
        Need,
        Slot,
        Offer,
    )


(
    Quantity,
    Side,
    Constraints,
    Energy,
    Device,
    Element,
    Condition,
    Change,
    Step,
    Plan,
    Need,
    Slot,
    Offer,
) = records()


@pyscript_compile
def of_type(memory, kind):
    """Return the messages of a type, in the order they came."""
    return [message for key, message in memory.items() if key[0] == kind]


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    return None if of_type(memory, POWER_CONSTRAINTS) else POWER_CONSTRAINTS


@pyscript_compile
def valid_from(memory):
    """Return from when on the first of its constraints hold."""
    return min(each.valid_from.timestamp() for each in of_type(memory, POWER_CONSTRAINTS))


@pyscript_compile
def device(memory):
    """Return the device that is described."""
    found, flaws = [], []
    for message in reversed(of_type(memory, POWER_CONSTRAINTS)):
        start, end = message.valid_from.timestamp(), until_of(message)
        if len(flaws) == MOST_MESSAGES:
            break
        if not any(each.start <= start and end <= each.end for each in found):
            ranges = ranges_of(message)
            flaws.append(flaw_of(message.id, ranges))
            if flaws[-1] is None:
                found.append(read_constraints(message, ranges, start, end))
    most, least = (max([each.sides[side].ranges[-1][1] for each in found], default=0.0) for side in SIDES)
    forecast = memory.get(FORECAST)
    return Device(
        found[::-1],
        energies_of(memory),
        None if forecast is None else clipped(forecasts.pieces(forecast), -least, most),
        max(most, 0.0),
        max(least, 0.0),
        flaws[0] if flaws else None,
    )


@pyscript_compile
def clipped(pieces, least, most):
    """Return pieces with their power kept between two powers (W)."""
    return [(start, end, min(max(power, least), most)) for start, end, power in pieces]


@pyscript_compile
def until_of(message):
    """Return until when constraints are valid."""
    return math.inf if message.valid_until is None else message.valid_until.timestamp()


@pyscript_compile
def ranges_of(message):
    """Return the ranges of both limits by quantity, without those for an abnormal condition only."""
    found = {}
    for each in message.allowed_limit_ranges:
        if not each.abnormal_condition_only:
            limits = found.setdefault(each.commodity_quantity.value, {UPPER: [], LOWER: []})
            boundary = each.range_boundary
            limits[each.limit_type.value].append((boundary.start_of_range, boundary.end_of_range))
    return {quantity: {kind: union(each) for kind, each in both.items()} for quantity, both in found.items()}


@pyscript_compile
def union(ranges):
    """Return ranges in order, those that meet as one."""
    found = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return tuple(found)


@pyscript_compile
def flaw_of(name, ranges):
    """Return why no envelope fits constraints, or None."""
    if not ranges:
        return f"its {POWER_CONSTRAINTS} {name} allow no limit but in an abnormal condition"
    for quantity, both in ranges.items():
        for kind in (UPPER, LOWER):
            if not both[kind]:
                return f"its {POWER_CONSTRAINTS} {name} have no range for the {kind} of {quantity}"
        upper, lower = both[UPPER][-1][1], both[LOWER][0][0]
        if upper < lower:
            return (
                f"its {POWER_CONSTRAINTS} {name} allow no envelope for {quantity}: every {LOWER} ({lower:g} "
                f"or more) is above every {UPPER} ({upper:g} or less)"
            )
    return None


@pyscript_compile
def read_constraints(message, ranges, start, end):
    """Return PEBC.PowerConstraints with the values that leave the upper limit above the lower one."""
    quantities = {}
    for name, both in ranges.items():
        highest, lowest = both[UPPER][-1][1], both[LOWER][0][0]
        quantities[name] = Quantity(
            tuple((max(low, lowest), high) for low, high in both[UPPER] if high >= lowest),
            tuple((low, min(high, highest)) for low, high in both[LOWER] if low <= highest),
        )
    sides = {side: side_of(side, quantities) for side in SIDES}
    return Constraints(message.id, start, end, message.consequence_type.value == DEFER, quantities, sides)


@pyscript_compile
def carriers(names):
    """Return which of the commodity quantities tell of the electric power in all."""
    if commodities.ALL_PHASES in names:
        return [commodities.ALL_PHASES]
    return [each for each in names if each.startswith(commodities.ELECTRIC)]


@pyscript_compile
def side_of(side, quantities):
    """Return one side of constraints: its power in all is shared by each quantity's range."""
    low, high, shares = {}, {}, ((0.0, 1.0),)
    for name in carriers(quantities):
        ranges = quantities[name].upper if side > 0 else mirrored(quantities[name].lower)
        inside = [(max(begin, 0.0), end) for begin, end in ranges if end >= 0] or [(ranges[-1][1],) * 2]
        low[name], high[name] = inside[0][0], inside[-1][1]
        if span := high[name] - low[name]:
            own = [((begin - low[name]) / span, (end - low[name]) / span) for begin, end in inside]
            shares = shared(shares, own)
    least, most = sum(low.values()), sum(high.values())
    amounts = [(least + begin * (most - least), least + end * (most - least)) for begin, end in shares]
    return Side(low, high, (*amounts[:-1], (amounts[-1][0], most)))


@pyscript_compile
def mirrored(ranges):
    """Return ranges with the other sign, in order."""
    return tuple((-high, -low) for low, high in reversed(ranges))


@pyscript_compile
def shared(some, others):
    """Return what is in both of two unions, but for rounding."""
    found = []
    for low, high in some:
        for begin, end in others:
            first, last = max(low, begin), min(high, end)
            if first <= last + EPSILON**2:
                found.append((min(first, last), last))
    return union(found)


@pyscript_compile
def energies_of(memory):
    """Return the constraints on electric energy; of those until the same moment the newest holds."""
    found = {}
    for each in of_type(memory, ENERGY_CONSTRAINT)[-MOST_MESSAGES:]:
        quantity = each.commodity_quantity.value
        start, end = each.valid_from.timestamp(), each.valid_until.timestamp()
        if quantity.startswith(commodities.ELECTRIC) and end > start:
            found[quantity, end] = Energy(
                start, end, each.upper_average_power, each.lower_average_power, quantity
            )
    return list(found.values())


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None."""
    return found.flaw


@pyscript_compile
def until(found):
    """Return the last moment that the plan has to look ahead to, or 0.0."""
    return max([each.end for each in found.energies], default=0.0)


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return what the device was told by now; raise NotPlannable where no constraints hold any more.

    `heard` is not needed: a device tells nothing of its envelope.
    """
    if all(each.end <= now for each in found.constraints):
        raise errors.NotPlannable(f"its {POWER_CONSTRAINTS} are not valid any more: it has to send new ones")
    if plan is None:
        return Condition(now, [], [])
    told, executed = list(plan.told), [each for each in plan.changes if each.moment <= now]
    for place, change in enumerate(executed):
        end = executed[place + 1].moment if place + 1 < len(executed) else math.inf
        told += between(change.elements, max(change.moment, plan.start), end)
    return Condition(now, told, plan.changes)


@pyscript_compile
def between(elements, start, end):
    """Return what of Elements is in some time."""
    return [
        each if start <= each.start and each.end <= end else cut(each, start, end)
        for each in elements
        if each.start < end and each.end > start
    ]


@pyscript_compile
def cut(element, start, end):
    """Return the part of an Element that is in some time."""
    return replace(element, start=max(element.start, start), end=min(element.end, end))


@pyscript_compile
def allowed(limits, quantity, side):
    """Return the power (W) of an electric quantity that limits allow on one side, None where they do not say.

    All phases together have three times the power of each.
    """
    place, all_phases = (0 if side > 0 else 1), commodities.ALL_PHASES
    if all_phases in limits:
        return side * limits[all_phases][place] / (1 if quantity == all_phases else 3)
    if quantity in limits:
        return side * limits[quantity][place]
    found = [limits[each][place] for each in carriers(limits)] if quantity == all_phases else []
    return side * sum(found) if found else None


@pyscript_compile
def limits_of(constraints, amounts):
    """Return the limits (upper, lower) by quantity that amounts (W) by side come to."""
    found = {}
    for name, quantity in constraints.quantities.items():
        high = part(constraints.sides[1], name, amounts[1])
        low = part(constraints.sides[-1], name, amounts[-1])
        upper = quantity.upper[-1][1] if high is None else nearest(quantity.upper, high)
        lower = quantity.lower[0][0] if low is None else nearest(quantity.lower, -low)
        found[name] = upper, lower if lower <= upper else down(quantity.lower, upper)
    return found


@pyscript_compile
def part(side, name, amount):
    """Return a quantity's part (W) of an amount, or None where it has none."""
    if name not in side.low:
        return None
    least, most = side.ranges[0][0], side.ranges[-1][1]
    share = 1.0 if amount >= most else (amount - least) / (most - least)
    return side.low[name] + share * (side.high[name] - side.low[name])


@pyscript_compile
def nearest(ranges, value):
    """Return the value of a union that is nearest to one, without the noise of binary fractions."""
    low, high = min(ranges, key=lambda each: max(each[0] - value, value - each[1]))
    return min(max(round(value, 6) + 0.0, low), high)


@pyscript_compile
def down(ranges, value):
    """Return the greatest value of a union that is not above one, else its least."""
    return max([min(high, value) for low, high in ranges if low <= value], default=ranges[0][0])


@pyscript_compile
def up(ranges, value, hair=0.0):
    """Return the least value of a union that is not below one (but for a hair), else its greatest."""
    fitting = [max(low, min(value, high)) for low, high in ranges if high >= value - hair]
    return min(fitting, default=ranges[-1][1])


@pyscript_compile
def valid(found, moment):
    """Return the constraints that are in force at a moment: those that came last, or None."""
    return next((each for each in reversed(found.constraints) if each.start <= moment < each.end), None)


@pyscript_compile
def boundaries(found, start, end, others):
    """Return the moments in some time, ends included, at which anything of a device may change."""
    moments = [*others]
    for each in (*found.constraints, *found.energies):
        moments += [each.start, each.end]
    for begin, last, _power in found.forecast or ():
        moments += [begin, last]
    points = [start]
    for each in sorted(moments):
        if points[-1] + SHORTEST < each < end - SHORTEST:
            points.append(each)
    return [*points, end]


@pyscript_compile
def needs_of(found, told, begin, end):
    """Return the Needs of a plan, by when they end.

    What the device was told before has allowed some of it. What is needed beyond the plan's end is spread
    evenly over the time that is left.
    """
    needs = []
    for each in found.energies:
        if each.end <= begin or each.start >= end:
            continue
        for side in SIDES:
            average = side * (each.upper if side > 0 else each.lower)
            if average <= 0:
                continue
            asked, first = average * (each.end - each.start) / 3600, max(begin, each.start)
            before = between(told, each.start, first)
            had = sum((allowed(it.limits, each.quantity, side) or 0.0) * (it.end - it.start) for it in before)
            share = min((end - first) / (each.end - first), 1.0)
            left = max(asked - had / 3600, 0.0) * share
            needs.append(Need(side, each.quantity, each.start, each.end, asked, left))
    return sorted(needs, key=lambda each: (each.end, each.start, each.quantity, -each.side))


@pyscript_compile
def counted(constraints, need, amount):
    """Return the power (W) that an amount allows of a need's quantity, or None where it is not limited."""
    limits = {}
    for name in constraints.sides[need.side].low:
        value = need.side * part(constraints.sides[need.side], name, amount)
        limits[name] = value, value
    return allowed(limits, need.quantity, need.side)


@pyscript_compile
def governed(start, end, constraints, needs, side):
    """Tell whether the energy that a device defers calls for limits on one side in some time."""
    if constraints is None or not constraints.is_deferred:
        return False
    least, most = constraints.sides[side].ranges[0][0], constraints.sides[side].ranges[-1][1]
    for each in needs:
        if each.side == side and each.start < end and each.end > start:
            high = counted(constraints, each, most)
            if high is not None and high > counted(constraints, each, least):
                return True
    return False


@pyscript_compile
def problem(found, state, means, window):
    """Return what FlexMeasures is asked, or None where nothing can be gained by it.

    That is a Storage of the energy that is deferred in one direction, or a Flow of production that can be
    curtailed.
    """
    needs = needs_of(found, state.told, state.moment, window.end)
    sides = [side for side in SIDES if any(capacities(found, needs, window, side, window.left))]
    if len(sides) == 1:
        return deferred(found, needs, means, window, sides[0])
    return None if sides else curtailable(found, means, window)


@pyscript_compile
def capacities(found, needs, window, side, left):
    """Return the mean power (W) that can be deferred in each step; of the first one a part is left."""
    begin = window.start + (1 - left) * window.step
    powers = [0.0] * round((window.end - window.start) / window.step)
    grid = [window.start + place * window.step for place in range(1, len(powers))]
    for start, end in pairwise(boundaries(found, begin, window.end, grid)):
        constraints = valid(found, (start + end) / 2)
        if governed(start, end, constraints, needs, side):
            place = min(int(((start + end) / 2 - window.start) / window.step), len(powers) - 1)
            powers[place] += constraints.sides[side].ranges[-1][1] * (end - start) / window.step
    return [max(each, 0.0) for each in powers]


@pyscript_compile
def deferred(found, needs, means, window, side):
    """Return what a device defers as a Storage, to be filled in time or emptied; None where that is done."""
    modes = gap(found, needs, window, side) if window.with_modes else []
    powers = capacities(found, needs, window, side, 1.0 if modes else window.left)
    wishes = deadlines(found, [each for each in needs if each.side == side], powers, window)
    full = max([energy for _at, energy in wishes], default=0.0)
    if full <= LEAST_MISSED:
        return None
    spans = storages.as_spans(powers, window.start, window.step)
    consumes = side > 0
    made = [
        storages.Wish(plans.moment(at), plans.moment(at), energy if consumes else full - energy)
        for at, energy in wishes
    ]
    return storages.Storage(
        power_sensor=means.power_sensor,
        soc_at_start=0.0 if consumes else full,
        soc_min=0.0,
        soc_max=full,
        soc_minima=made if consumes else [],
        soc_maxima=[] if consumes else made,
        power_capacity=found.most if consumes else found.least,
        charging_efficiency=1.0,
        discharging_efficiency=1.0,
        storage_efficiency=1.0,
        consumption_capacity=spans if consumes else 0.0,
        production_capacity=0.0 if consumes else spans,
        operation_modes=modes,
    )


@pyscript_compile
def deadlines(found, needs, powers, window):
    """Return (moment on the grid, energy (Wh) that is to be allowed by then), as far as that can be."""
    reached, wishes = [(-math.inf, 0.0)], {}
    for each in needs:
        constraints = valid(found, max(each.start, window.start)) or found.constraints[-1]
        most = constraints.sides[each.side].ranges[-1][1]
        own = counted(constraints, each, most)
        left = each.left * most / own if own and own > 0 else 0.0
        before = max(energy for at, energy in reached if at <= each.start)
        total = max(before + left, max(energy for _at, energy in reached))
        reached.append((each.end, total))
        at = min(max(each.end // window.step * window.step, window.start + window.step), window.end)
        possible = sum(powers[: round((at - window.start) / window.step)]) * window.step / 3600
        wishes[at] = min(total, possible)
    return sorted(wishes.items())


@pyscript_compile
def gap(found, needs, window, side):
    """Return the ranges of power (W) that can be deferred, where they have gaps between them."""
    for start, end in pairwise(boundaries(found, window.start, window.end, [])):
        constraints = valid(found, (start + end) / 2)
        if governed(start, end, constraints, needs, side):
            ranges = constraints.sides[side].ranges
            if len(ranges) == 1 and ranges[0][0] < plans.LEAST_WATTS:
                return []
            return sorted({(0.0, 0.0), *ranges} if side > 0 else {(0.0, 0.0), *mirrored(ranges)})
    return []


@pyscript_compile
def curtailable(found, means, window):
    """Return the production that is forecast as a Flow, or None where none of it can be curtailed."""
    begin = window.start + (1 - window.left) * window.step
    powers = []
    for place in range(round((window.end - window.start) / window.step)):
        start = max(window.start + place * window.step, begin)
        end = window.start + (place + 1) * window.step
        power = forecasts.mean(found.forecast or (), start, end)
        powers.append(max(-power, 0.0) * (end - start) / window.step)
    can = [
        each
        for each in found.constraints
        if not each.is_deferred and each.start < window.end and each.end > begin
        if each.sides[-1].ranges[0][0] < each.sides[-1].ranges[-1][1]
    ]
    if not can or not any(powers):
        return None
    return storages.Flow(means.power_sensor, 0.0, storages.as_spans(powers, window.start, window.step))


@pyscript_compile
def follow(found, state, wanted, market, tariffs):
    """Return the Plan of a schedule, or of the market alone where `wanted` is None.

    Where what the device was told still says the same, the plan has that Change itself; the moment of the one
    in force is past. `tariffs` are not needed: only electric power is limited.
    """
    begin, end = market[0].start, market[-1].end
    told = between(state.told, -math.inf, begin)
    needs = needs_of(found, told, begin, end)
    slots = slots_of(found, wanted, market)
    for each in slots:
        if each.constraints:
            hold_back(found, each, needs)
    missed, last = [], limits_at(told, begin - SHORTEST)
    for need in needs:
        short = leave_room(slots, need, last)
        if short > max(LEAST_MISSED, SAME * need.asked):
            missed.append(plans.Missed(need.end, need.asked, need.asked - short))
    powers = [expected(each, needs) for each in slots]
    pieces = [(each.start, each.end, power) for each, power in zip(slots, powers, strict=True)]
    paid = [
        markets.cost(each.interval, power, each.end - each.start)
        for each, power in zip(slots, powers, strict=True)
    ]
    changes = [kept(state.changes, each, begin) for each in changes_of(slots, joined(pieces))]
    return Plan(begin, end, changes, joined(pieces), missed, sum(paid), remembered(found, told, begin))


@pyscript_compile
def kept(changes, change, begin):
    """Return the Change that was told and says the same as another one, else that one.

    At the plan's start the one counts that is in force then, else the one that begins at the same moment.
    """
    before = [each for each in changes if each.moment <= change.moment + 1.0]
    if before and (change.moment == begin or before[-1].moment > change.moment - 1.0):
        return before[-1] if alike(before[-1], change) else change
    return change


@pyscript_compile
def slots_of(found, wanted, market):
    """Return the Slots of a plan."""
    begin, end = market[0].start, market[-1].end
    schedule = [(*each, is_less(found, *each)) for each in wanted or ()]
    others = [each.start for each in market] + [at for each in schedule for at in each[:2]]
    starts, firsts = [each.start for each in market], [each[0] for each in schedule]
    slots = []
    for start, last in pairwise(boundaries(found, begin, end, others)):
        middle = (start + last) / 2
        interval = market[max(bisect_right(starts, middle) - 1, 0)]
        place = bisect_right(firsts, middle) - 1
        its = schedule[place] if place >= 0 and middle < schedule[place][1] else (0, 0, None, False)
        forecast = forecasts.mean(found.forecast or (), start, last)
        slots.append(Slot(start, last, valid(found, middle), interval, its[2], forecast, its[3]))
    return slots


@pyscript_compile
def is_less(found, start, end, power):
    """Tell whether a schedule's power (W) is less production than is forecast, by more than a hair."""
    forecast = forecasts.mean(found.forecast or (), start, end)
    return forecast < 0 and power > forecast + max(plans.LEAST_WATTS, HAIR * -forecast)


@pyscript_compile
def hold_back(found, slot, needs):
    """Set what a Slot allows before any room is left for energy: the site's limit and prices are reasons."""
    load, limit = slot.interval.load, slot.interval.limit
    for side in SIDES:
        ranges = slot.constraints.sides[side].ranges
        most, room = ranges[-1][1], max(limit - side * load, 0.0)
        may = most
        if side < 0 and not slot.constraints.is_deferred and found.forecast is not None:
            may = min(most, -slot.forecast)
        slot.ceilings[side] = down(ranges, room) if may > room else most
        slot.amounts[side] = slot.ceilings[side]
        if governed(slot.start, slot.end, slot.constraints, needs, side):
            slot.amounts[side] = ranges[0][0]
        elif side < 0 and curtails(slot, may > room):
            slot.amounts[side] = min(up(ranges, -slot.wanted, plans.LEAST_WATTS / 2), slot.ceilings[side])


@pyscript_compile
def curtails(slot, is_too_much):
    """Tell whether a schedule means to curtail, and has a reason for it."""
    has_reason = is_too_much or slot.interval.production_price < 0
    return slot.is_curtailed and has_reason and not slot.constraints.is_deferred


@pyscript_compile
def leave_room(slots, need, last):
    """Allow a need's energy where the schedule wants it, then where it costs least; return the rest (Wh).

    The last amount that is needed lies inside the ranges, or is allowed for a part of its Slot. `last` are
    the limits that were told for the moment before, or None.
    """
    inside = [
        each
        for each in slots
        if each.constraints and each.start < need.end and each.end > need.start
        if counted(each.constraints, need, each.amounts[need.side]) is not None
    ]
    if not inside:
        return 0.0
    left = need.left - sum(energy(each, need, each.amounts[need.side]) for each in inside)
    if left <= LEAST_ENERGY:
        return 0.0
    offered, are_few = sorted([offer for each in inside for offer in offers(each, need)]), False
    while offered and left > LEAST_ENERGY:
        if left <= FEW * need.asked and not are_few:
            near, are_few = places(slots, need, last), True
            offered.sort(key=lambda offer: (offer.rank, near[id(offer.slot)], offer))
        offer = offered.pop(0)
        gain = energy(offer.slot, need, offer.high) - energy(offer.slot, need, offer.low)
        if 0 < gain <= left:
            offer.slot.amounts[need.side] = offer.high
        elif gain > left:
            take_part(slots, need, offer, left / gain)
        left -= min(max(gain, 0.0), left)
    return max(left, 0.0)


@pyscript_compile
def places(slots, need, last):
    """Return how far each Slot is, by its id(), from those that allow more than they have to: 0, 1 or 2."""
    gives = [is_given(each, need.side) for each in slots]
    first = slots[0].constraints
    if first and last:
        now, least = allowed(last, need.quantity, need.side), first.sides[need.side].ranges[0][0]
        low = counted(first, need, least)
        before = now is not None and low is not None and now > low + plans.LEAST_WATTS
    else:
        before = False
    around = [before, *gives, False]
    return {
        id(slot): 0 if around[place + 1] else 1 if around[place] or around[place + 2] else 2
        for place, slot in enumerate(slots)
    }


@pyscript_compile
def is_given(slot, side):
    """Tell whether a Slot allows more on a side than it has to."""
    if slot.constraints is None:
        return False
    return slot.amounts[side] > slot.constraints.sides[side].ranges[0][0] + plans.LEAST_WATTS


@pyscript_compile
def energy(slot, need, amount):
    """Return the energy (Wh) of a need's quantity that an amount allows in a Slot."""
    return counted(slot.constraints, need, amount) * (slot.end - slot.start) / 3600


@pyscript_compile
def take_part(slots, need, offer, share):
    """Allow a part of an Offer: by a lower amount, else for a part of the time, next to what follows."""
    slot, side = offer.slot, need.side
    ranges = slot.constraints.sides[side].ranges
    amount = offer.low + share * (offer.high - offer.low)
    higher = up(ranges, amount)
    if higher - amount <= plans.LEAST_WATTS:
        slot.amounts[side] = higher
        return
    seconds = (amount - offer.low) / (higher - offer.low) * (slot.end - slot.start)
    if slot.end - slot.start - seconds <= SHORTEST or seconds <= SHORTEST:
        slot.amounts[side] = higher
        return
    place = next(number for number, each in enumerate(slots) if each is slot)
    following = slots[place + 1] if place + 1 < len(slots) else None
    is_late = following and following.constraints and following.amounts[side] > offer.low + plans.LEAST_WATTS
    at = slot.end - seconds if is_late else slot.start + seconds
    rest = replace(slot, start=at, amounts=dict(slot.amounts))
    slot.end = at
    slots.insert(place + 1, rest)
    (rest if is_late else slot).amounts[side] = higher


@pyscript_compile
def offers(slot, need):
    """Return the Offers of a Slot: what it can allow beyond its amount, the cheapest first.

    A kWh costs the same on either side of the amount at which the site neither takes nor feeds in.
    """
    side = need.side
    ranges, now, ceiling = slot.constraints.sides[side].ranges, slot.amounts[side], slot.ceilings[side]
    wanted, balance, found = side * (slot.wanted or 0.0), -side * slot.interval.load, []
    target = min(up(ranges, wanted, plans.LEAST_WATTS / 2), ceiling) if wanted > plans.LEAST_WATTS else now
    for rank, low, high in ((0, now, target), (1, max(now, target), ceiling)):
        if high > low:
            edges = {down(ranges, balance), up(ranges, balance)}
            amounts = [low, *sorted([each for each in edges if low < each < high]), high]
            for before, after in hull([(each, price(slot, side * each)) for each in amounts]):
                slope = (after[1] - before[1]) / (after[0] - before[0]) * 1000
                found.append(Offer(rank, round(slope, 9), slot.start, before[0], after[0], slot))
    return found


@pyscript_compile
def price(slot, power):
    """Return what a power (W) costs in an hour of a Slot (currency)."""
    return markets.cost(slot.interval, power, 3600.0)


@pyscript_compile
def hull(points):
    """Return the edges (point, point) below points (amount, cost): the cheapest way from each to the next."""
    found = []
    for x, y in points:
        while len(found) > 1 and (found[-1][1] - found[-2][1]) * (x - found[-2][0]) > (y - found[-2][1]) * (
            found[-1][0] - found[-2][0]
        ):
            found.pop()
        found.append((x, y))
    return list(pairwise(found))


@pyscript_compile
def expected(slot, needs):
    """Return the power (W) that is expected: what is deferred, else the forecast inside the limits."""
    if slot.constraints is None:
        return slot.forecast
    sides = [each for each in SIDES if governed(slot.start, slot.end, slot.constraints, needs, each)]
    if sides:
        return sum(side * slot.amounts[side] for side in sides)
    return min(max(slot.forecast, -slot.amounts[-1]), slot.amounts[1])


@pyscript_compile
def joined(pieces):
    """Return pieces (start, end, value), neighbours of the same value as one."""
    found = []
    for start, end, value in pieces:
        if found and found[-1][2] == value and found[-1][1] == start:
            found[-1] = found[-1][0], end, value
        else:
            found.append((start, end, value))
    return found


@pyscript_compile
def changes_of(slots, pieces):
    """Return a Change for each time in which the same constraints are in force."""
    runs = []
    for each in slots:
        if each.constraints is None:
            continue
        if runs and runs[-1][-1].constraints is each.constraints and runs[-1][-1].end == each.start:
            runs[-1].append(each)
        else:
            runs.append([each])
    return [change_of(run, pieces) for run in runs]


@pyscript_compile
def change_of(run, pieces):
    """Return the Change that Slots under the same constraints come to."""
    constraints, start, end = run[0].constraints, run[0].start, run[-1].end
    inside = [
        (max(begin, start), min(last, end), power)
        for begin, last, power in pieces
        if begin < end and last > start
    ]
    most = {side: constraints.sides[side].ranges[-1][1] for side in SIDES}
    limits = [(each.start, each.end, limits_of(constraints, each.amounts)) for each in coarse(run)]
    elements = [Element(*each) for each in joined(limits)]
    return Change(start, inside[0][2], constraints.id, elements, limits_of(constraints, most), inside)


@pyscript_compile
def coarse(slots):
    """Return Slots joined to as many as an envelope may have elements: the far ones are taken together."""
    found = []
    for each in slots:
        if found and found[-1].amounts == each.amounts:
            found[-1] = together([found[-1], each])
        else:
            found.append(each)
    if len(found) <= MOST_ELEMENTS:
        return found
    near = MOST_ELEMENTS // 2
    far, size = found[near:], -(-(len(found) - near) // near)
    return found[:near] + [together(far[place : place + size]) for place in range(0, len(far), size)]


@pyscript_compile
def together(slots):
    """Return Slots as one, which allows as much as any of them did and the site's limit leaves."""
    amounts, ceilings = {}, {}
    for side in SIDES:
        ceilings[side] = min(each.ceilings[side] for each in slots)
        amounts[side] = min(max(each.amounts[side] for each in slots), ceilings[side])
    return replace(slots[0], end=slots[-1].end, amounts=amounts, ceilings=ceilings)


@pyscript_compile
def remembered(found, told, now):
    """Return what has to be remembered of what a device was told, neighbours of the same limits as one."""
    first = min([now - HISTORY_SECONDS, *[each.start for each in found.energies if each.end > now]])
    pieces = [(each.start, each.end, each.limits) for each in between(told, first, now)]
    return [Element(*each) for each in joined(pieces)]


@pyscript_compile
def alike(one, other):
    """Tell whether an envelope that was told says the same as another that begins then or later.

    It does as long as it lasts for half of the other's time at least, and where the other lasts for more than
    an hour longer, that time is without limits.
    """
    begin, last = other.moment, other.elements[-1].end
    end = one.elements[-1].end
    if one.constraints != other.constraints or one.moment > begin + 1.0 or end > last + TAIL_SECONDS:
        return False
    if end - begin < (last - begin) / 2:
        return False
    tail = between(other.elements, end, last)
    if last - end > TAIL_SECONDS and not all(same(each.limits, other.widest) for each in tail):
        return False
    points = sorted(
        {each.start for change in (one, other) for each in change.elements} | {begin, min(end, last)}
    )
    return all(
        same(limits_at(one.elements, (start + until) / 2), limits_at(other.elements, (start + until) / 2))
        for start, until in pairwise(points)
        if start >= begin and until <= min(end, last) and until - start > SLIVER
    )


@pyscript_compile
def same(some, others):
    """Tell whether limits by quantity say the same."""
    if some is None or others is None or some.keys() != others.keys():
        return some is others
    return all(
        abs(value - other) <= max(plans.LEAST_WATTS, SAME * abs(other))
        for name in some
        for value, other in zip(some[name], others[name], strict=True)
    )


@pyscript_compile
def limits_at(elements, moment):
    """Return the limits at a moment, or None where there are none."""
    place = bisect_right(elements, moment, key=lambda each: each.start) - 1
    return elements[place].limits if place >= 0 and moment < elements[place].end else None


@pyscript_compile
def limits_told(plan, moment):
    """Return the limits that a plan tells, or told, for a moment, or None."""
    change = plans.last_told(plan, moment)
    return limits_at(change.elements if change else plan.told, moment)


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return None: no status tells of an envelope."""


@pyscript_compile
def moved(found, state, message):
    """Return False: a device has no other state than what it was told."""
    return False


@pyscript_compile
def tolerance(found):
    """Return by how much (W) a power may depart."""
    return plans.tolerance(max(found.most, found.least))


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is outside the limits, and was so a moment before."""
    told = None
    for share in (1, 0.5, 0):
        limits = limits_told(plan, now - plans.LAG_SECONDS * share)
        upper, lower = (allowed(limits or {}, commodities.ALL_PHASES, side) for side in SIDES)
        if upper is None:
            return None
        if power > upper + tolerance(found):
            told = f"the power is {power:.0f} W, above the upper limit of {upper:.0f} W"
        elif power < -lower - tolerance(found):
            told = f"the power is {power:.0f} W, below the lower limit of {-lower:.0f} W"
        else:
            return None
    return told


@pyscript_compile
def message_type(change):
    """Return the type of the instruction that a Change calls for."""
    return INSTRUCTION


@pyscript_compile
def fields(change):
    """Return the fields of the PEBC.Instruction that a Change calls for, but for its ids."""
    return {
        "power_constraints_id": change.constraints,
        "abnormal_condition": False,
        "power_envelopes": [
            {
                "id": str(uuid.uuid4()),
                "commodity_quantity": name,
                "power_envelope_elements": envelope(change, name),
            }
            for name in change.widest
        ],
    }


@pyscript_compile
def envelope(change, name):
    """Return the elements of a quantity's envelope; durations are in ms."""
    found = []
    for start, end, (upper, lower) in joined([(it.start, it.end, it.limits[name]) for it in change.elements]):
        duration = round(end * 1000) - round(start * 1000)
        found.append({"duration": duration, "upper_limit": upper, "lower_limit": lower})
    return found


@pyscript_compile
def step_of(change, moment):
    """Return the Step that a Change is in at a moment."""
    limits = limits_at(change.elements, moment) or change.elements[-1].limits
    return Step(moment, plans.power_at(change, moment), change.constraints, limits, change.widest)


@pyscript_compile
def describe(found, change, now):
    """Return what a Change says now, or from its moment on, or what a Step of it says."""
    step = step_of(change, max(now, change.moment)) if hasattr(change, "elements") else change
    names = carriers(step.limits) or list(step.limits)[:1]
    return {
        "power_constraints_id": step.constraints,
        "commodity_quantity": " + ".join(names),
        "upper_limit": sum(step.limits[name][0] for name in names),
        "lower_limit": sum(step.limits[name][1] for name in names),
        "label": "unlimited" if same(step.limits, step.widest) else "limited",
        "power": round(step.power),
    }


@pyscript_compile
def upcoming(plan, now):
    """Return the Steps that are still to come, in order."""
    found = []
    for place, change in enumerate(plan.changes):
        end = plan.changes[place + 1].moment if place + 1 < len(plan.changes) else math.inf
        for each in change.elements:
            if now < each.start < end and len(found) < MOST_UPCOMING:
                found.append(step_of(change, each.start))
    return found


@pyscript_compile
def missed(plan):
    """Return the energy (kWh) that the plan leaves less room for than is asked: by when, and how much."""
    return [
        {
            "datetime": plans.moment(each.moment),
            "asked": round(each.asked / 1000, 3),
            "reached": round(each.reached / 1000, 3),
        }
        for each in plan.missed
    ]
