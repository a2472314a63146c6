"""From a wanted power per interval to what a device under power envelope based control is told, and when.

Nothing is limited without a reason, which is the site's limit, a price at which production costs, or cheaper
hours for what is deferred. First comes the site's limit, then the room for the energy that is needed, and
cost comes last.

Moments are seconds since 1970, power is W, consumption positive; amounts are of one side of an envelope, as
pebc_device has them.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import flexmeasures_cem.forecasts as forecasts
import flexmeasures_cem.market as markets
import flexmeasures_cem.pebc_device as devices
import flexmeasures_cem.plans as plans

HAIR = 0.01
"""By which part of a forecast a schedule has to produce less, so that it means to curtail."""
FEW = 0.02
"""Which part of the energy is allowed next to other such times, rather than for some seconds elsewhere."""
SAME = 0.001
"""By which part two limits may differ and still say the same."""
LEAST_ENERGY, LEAST_MISSED = 1e-3, 1.0
"""Wh: what is as good as none, and what is not worth telling."""
MOST_ELEMENTS = 288
TAIL_SECONDS = 3600.0
"""How much longer a limited envelope has to be than the one in force, to be told for that."""
SLIVER = 2.0
"""What is too short to tell envelopes apart (s)."""
HISTORY_SECONDS = 172_800.0
"""How long is remembered what a device was told, where no energy constraint asks for longer."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

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
        elements: list[devices.Element]
        widest: dict[str, tuple[float, float]]
        pieces: list[tuple[float, float, float]]
        actuator: str | None = None

    @dataclass
    class Plan(plans.Plan):
        """A Plan that remembers what the device was told before its start, as Elements."""

        changes: list[Change]
        told: list[devices.Element] = field(default_factory=list)

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

    return Condition, Change, Plan, Slot, Offer


Condition, Change, Plan, Slot, Offer = records()


@pyscript_compile
def follow(found, state, wanted, market):
    """Return the Plan of a schedule, or of the market alone where `wanted` is None.

    Where what the device was told still says the same, the plan has that Change itself; the moment of the one
    in force is past.
    """
    begin, end = market[0].start, market[-1].end
    told = devices.between(state.told, -math.inf, begin)
    needs = devices.needs_of(found, told, begin, end)
    slots = slots_of(found, wanted, market)
    for each in slots:
        if each.constraints:
            hold_back(found, each, needs)
    missed, last = [], devices.limits_at(told, begin - devices.SHORTEST)
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
    tail = devices.between(other.elements, end, last)
    if last - end > TAIL_SECONDS and not all(same(each.limits, other.widest) for each in tail):
        return False
    points = sorted(
        {each.start for change in (one, other) for each in change.elements} | {begin, min(end, last)}
    )
    return all(
        same(
            devices.limits_at(one.elements, (start + until) / 2),
            devices.limits_at(other.elements, (start + until) / 2),
        )
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
def slots_of(found, wanted, market):
    """Return the Slots of a plan."""
    begin, end = market[0].start, market[-1].end
    schedule = [(*each, is_less(found, *each)) for each in wanted or ()]
    others = [each.start for each in market] + [at for each in schedule for at in each[:2]]
    starts, firsts = [each.start for each in market], [each[0] for each in schedule]
    slots = []
    for start, last in pairwise(devices.boundaries(found, begin, end, others)):
        middle = (start + last) / 2
        interval = market[max(bisect_right(starts, middle) - 1, 0)]
        place = bisect_right(firsts, middle) - 1
        its = schedule[place] if place >= 0 and middle < schedule[place][1] else (0, 0, None, False)
        forecast = forecasts.mean(found.forecast or (), start, last)
        slots.append(Slot(start, last, devices.valid(found, middle), interval, its[2], forecast, its[3]))
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
    for side in devices.SIDES:
        ranges = slot.constraints.sides[side].ranges
        most, room = ranges[-1][1], max(limit - side * load, 0.0)
        may = most
        if side < 0 and not slot.constraints.is_deferred and found.forecast is not None:
            may = min(most, -slot.forecast)
        slot.ceilings[side] = devices.down(ranges, room) if may > room else most
        slot.amounts[side] = slot.ceilings[side]
        if devices.governed(slot.start, slot.end, slot.constraints, needs, side):
            slot.amounts[side] = ranges[0][0]
        elif side < 0 and curtails(slot, may > room):
            slot.amounts[side] = min(
                devices.up(ranges, -slot.wanted, plans.LEAST_WATTS / 2), slot.ceilings[side]
            )


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
        if devices.counted(each.constraints, need, each.amounts[need.side]) is not None
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
        now, least = devices.allowed(last, need.quantity, need.side), first.sides[need.side].ranges[0][0]
        low = devices.counted(first, need, least)
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
    return devices.counted(slot.constraints, need, amount) * (slot.end - slot.start) / 3600


@pyscript_compile
def take_part(slots, need, offer, share):
    """Allow a part of an Offer: by a lower amount, else for a part of the time, next to what follows."""
    slot, side = offer.slot, need.side
    ranges = slot.constraints.sides[side].ranges
    amount = offer.low + share * (offer.high - offer.low)
    higher = devices.up(ranges, amount)
    if higher - amount <= plans.LEAST_WATTS:
        slot.amounts[side] = higher
        return
    seconds = (amount - offer.low) / (higher - offer.low) * (slot.end - slot.start)
    if slot.end - slot.start - seconds <= devices.SHORTEST or seconds <= devices.SHORTEST:
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
    target = (
        min(devices.up(ranges, wanted, plans.LEAST_WATTS / 2), ceiling) if wanted > plans.LEAST_WATTS else now
    )
    for rank, low, high in ((0, now, target), (1, max(now, target), ceiling)):
        if high > low:
            edges = {devices.down(ranges, balance), devices.up(ranges, balance)}
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
    sides = [
        each
        for each in devices.SIDES
        if devices.governed(slot.start, slot.end, slot.constraints, needs, each)
    ]
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
    most = {side: constraints.sides[side].ranges[-1][1] for side in devices.SIDES}
    limits = [(each.start, each.end, devices.limits_of(constraints, each.amounts)) for each in coarse(run)]
    elements = [devices.Element(*each) for each in joined(limits)]
    return Change(start, inside[0][2], constraints.id, elements, devices.limits_of(constraints, most), inside)


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
    for side in devices.SIDES:
        ceilings[side] = min(each.ceilings[side] for each in slots)
        amounts[side] = min(max(each.amounts[side] for each in slots), ceilings[side])
    return replace(slots[0], end=slots[-1].end, amounts=amounts, ceilings=ceilings)


@pyscript_compile
def remembered(found, told, now):
    """Return what has to be remembered of what a device was told, neighbours of the same limits as one."""
    first = min([now - HISTORY_SECONDS, *[each.start for each in found.energies if each.end > now]])
    pieces = [(each.start, each.end, each.limits) for each in devices.between(told, first, now)]
    return [devices.Element(*each) for each in joined(pieces)]
