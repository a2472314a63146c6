"""A device under power envelope based control, read from its messages, and the arithmetic of limits.

Moments are seconds since 1970, power is W, consumption positive. An amount is the
power (W, positive) of one side of an envelope: of consumption on side 1 (UPPER_LIMIT), of production on side
-1 (LOWER_LIMIT).
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from s2python.pebc import PEBCPowerConstraints

import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.errors as errors
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_s2.commodities as commodities
import flexmeasures_s2.rules as rules
from flexmeasures_cem.control_types.memory import latest

POWER_CONSTRAINTS, ENERGY_CONSTRAINT = "PEBC.PowerConstraints", "PEBC.EnergyConstraint"
FORECAST = "PowerForecast"
UPPER, LOWER, DEFER = "UPPER_LIMIT", "LOWER_LIMIT", "DEFER"
SIDES = (1, -1)
ROUNDING = 1e-12
MAX_MESSAGES = 50
MIN_ELEMENT_SECONDS = 0.001
"""The shortest element (s)."""
Range = tuple[float, float]
Ranges = tuple[Range, ...]
"""A union of ranges (W): in order, without overlap."""
LimitRanges = Mapping[str, Mapping[str, Ranges]]
"""The Ranges of both limits (UPPER, LOWER), by commodity quantity."""
Limits = Mapping[str, tuple[float, float]]
"""The limits (upper, lower; W) by commodity quantity."""
Piece = tuple[float, float, float]
"""(start, end, power)."""


@dataclass(frozen=True)
class _Quantity:
    """The values (W) that the limits of a commodity quantity may take."""

    upper: Ranges
    lower: Ranges


Quantity = _Quantity


@dataclass(frozen=True)
class _Side:
    """The amounts (W) that one side of an envelope may have.

    `low` and `high` are the least and greatest amounts by commodity quantity; `ranges` are the possible sums
    over the quantities, in order.
    """

    low: dict[str, float]
    high: dict[str, float]
    ranges: Ranges


Side = _Side


@dataclass(frozen=True)
class _Constraints:
    """PEBC.PowerConstraints: their validity, and the allowed limits by quantity and by side (1, -1)."""

    id: str
    start: float
    end: float
    is_deferred: bool
    quantities: dict[str, Quantity]
    sides: dict[int, Side]


Constraints = _Constraints


@dataclass(frozen=True)
class _Energy:
    """A PEBC.EnergyConstraint: limits of the average power (W) of an electric quantity in a time."""

    start: float
    end: float
    upper: float
    lower: float
    quantity: str


Energy = _Energy


@dataclass(frozen=True)
class _Device:
    """A device by its messages; constraints are in the order of their arrival.

    `max_consumption_w` and `max_production_w` are its greatest powers (both positive), `forecast` has the
    pieces (start, end, power) of its PowerForecast within these, or None without one. `flaw` is why the
    device cannot be planned, or None.
    """

    constraints: list[Constraints]
    energies: list[Energy]
    forecast: list[Piece] | None
    max_consumption_w: float
    max_production_w: float
    flaw: str | None


Device = _Device


@dataclass(frozen=True)
class _Element:
    """The limits in a time."""

    start: float
    end: float
    limits: Limits


Element = _Element


@dataclass(frozen=True)
class _Need:
    """The energy (Wh) of a quantity that envelopes must allow on one side, in a time.

    `asked` is for all of the time, `left` the part that the plan must allow.
    """

    side: int
    quantity: str
    start: float
    end: float
    asked: float
    left: float


Need = _Need


@dataclass(frozen=True)
class _State:
    """The state of a device at a moment: the Elements that it was instructed to keep, also coming ones.

    `changes` (plan.Change) are those of the plan in force.
    """

    moment: float
    instructed: list[Element]
    changes: Sequence[Any]


State = _State


class _EnvelopeChange(Protocol):
    """An envelope that a plan has from a moment on (plan.Change)."""

    @property
    @pyscript_compile
    def moment(self) -> float:
        """Return the moment."""

    @property
    @pyscript_compile
    def elements(self) -> Sequence[Element]:
        """Return the limits of the envelope."""


EnvelopeChange = _EnvelopeChange


class _EnvelopePlan(Protocol):
    """A plan of envelopes (plan.Plan)."""

    @property
    @pyscript_compile
    def start(self) -> float:
        """Return the moment at which the plan begins."""

    @property
    @pyscript_compile
    def instructed(self) -> Sequence[Element]:
        """Return the limits that the device was instructed to keep before."""

    @property
    @pyscript_compile
    def changes(self) -> Sequence[EnvelopeChange]:
        """Return the changes, in order of their moments."""


EnvelopePlan = _EnvelopePlan


@pyscript_compile
def of_type(memory: rules.Memory, kind: str) -> list[Any]:
    """Return the messages of a type, in the order of their arrival."""
    return [message for key, message in memory.items() if key[0] == kind]


@pyscript_compile
def read(memory: rules.Memory) -> Device:
    """Return the device that the messages describe."""
    in_force: list[Constraints] = []
    flaws: list[str | None] = []
    for message in reversed(of_type(memory, POWER_CONSTRAINTS)):
        start, end = message.valid_from.timestamp(), until_of(message)
        if len(flaws) == MAX_MESSAGES:
            break
        if not any(constraints.start <= start and end <= constraints.end for constraints in in_force):
            ranges = ranges_of(message)
            flaws.append(flaw_of(str(message.id), ranges))
            if flaws[-1] is None:
                in_force.append(read_constraints(message, ranges, start, end))
    most, least = (
        max([constraints.sides[side].ranges[-1][1] for constraints in in_force], default=0.0)
        for side in SIDES
    )
    forecast = latest(memory, FORECAST)
    return Device(
        in_force[::-1],
        energies_of(memory),
        None if forecast is None else clipped(forecasts.pieces(forecast), -least, most),
        max(most, 0.0),
        max(least, 0.0),
        flaws[0] if flaws else None,
    )


@pyscript_compile
def clipped(pieces: Iterable[Piece], least: float, most: float) -> list[Piece]:
    """Return pieces with their powers limited to a range (W)."""
    return [(start, end, min(max(power, least), most)) for start, end, power in pieces]


@pyscript_compile
def until_of(message: PEBCPowerConstraints) -> float:
    """Return the end of the validity of constraints."""
    return math.inf if message.valid_until is None else message.valid_until.timestamp()


@pyscript_compile
def ranges_of(message: PEBCPowerConstraints) -> LimitRanges:
    """Return the ranges of both limits by quantity, without those for an abnormal condition.

    Some devices send ranges upside down, such as 0 to -2000.
    """
    by_quantity: dict[str, dict[str, list[Range]]] = {}
    for limit_range in message.allowed_limit_ranges:
        if not limit_range.abnormal_condition_only:
            limits = by_quantity.setdefault(limit_range.commodity_quantity.value, {UPPER: [], LOWER: []})
            boundary = limit_range.range_boundary
            ends = sorted((boundary.start_of_range, boundary.end_of_range))
            limits[limit_range.limit_type.value].append((ends[0], ends[1]))
    return {
        quantity: {kind: union(ranges) for kind, ranges in both.items()}
        for quantity, both in by_quantity.items()
    }


@pyscript_compile
def union(ranges: Iterable[Range]) -> Ranges:
    """Return ranges in order, with those that overlap or touch merged."""
    joined: list[Range] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


@pyscript_compile
def flaw_of(name: str, ranges: LimitRanges) -> str | None:
    """Return why constraints allow no envelope, or None."""
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
def read_constraints(
    message: PEBCPowerConstraints, ranges: LimitRanges, start: float, end: float
) -> Constraints:
    """Return Constraints, without limits for which the upper one would be below the lower one."""
    quantities = {}
    for name, both in ranges.items():
        highest, lowest = both[UPPER][-1][1], both[LOWER][0][0]
        quantities[name] = Quantity(
            tuple((max(low, lowest), high) for low, high in both[UPPER] if high >= lowest),
            tuple((low, min(high, highest)) for low, high in both[LOWER] if low <= highest),
        )
    sides = {side: side_of(side, quantities) for side in SIDES}
    return Constraints(
        str(message.id), start, end, message.consequence_type.value == DEFER, quantities, sides
    )


@pyscript_compile
def carriers(names: Collection[str]) -> list[str]:
    """Return the commodity quantities that add up to the total electric power."""
    if commodities.ALL_PHASES in names:
        return [commodities.ALL_PHASES]
    return [name for name in names if name.startswith(commodities.ELECTRIC)]


@pyscript_compile
def side_of(side: int, quantities: Mapping[str, Quantity]) -> Side:
    """Return one side of constraints; an amount is shared in proportion to the ranges of the quantities."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    shares: Ranges = ((0.0, 1.0),)
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
def mirrored(ranges: Ranges) -> Ranges:
    """Return ranges with the opposite sign, in order."""
    return tuple((-high, -low) for low, high in reversed(ranges))


@pyscript_compile
def shared(ranges: Iterable[Range], other_ranges: Sequence[Range]) -> Ranges:
    """Return the intersection of two unions of ranges, with a tolerance for rounding."""
    common = []
    for low, high in ranges:
        for begin, end in other_ranges:
            first, last = max(low, begin), min(high, end)
            if first <= last + ROUNDING:
                common.append((min(first, last), last))
    return union(common)


@pyscript_compile
def energies_of(memory: rules.Memory) -> list[Energy]:
    """Return the electric energy constraints; of several with the same end the newest holds."""
    energies = {}
    for message in of_type(memory, ENERGY_CONSTRAINT)[-MAX_MESSAGES:]:
        quantity = message.commodity_quantity.value
        start, end = message.valid_from.timestamp(), message.valid_until.timestamp()
        if quantity.startswith(commodities.ELECTRIC) and end > start:
            energies[quantity, end] = Energy(
                start, end, message.upper_average_power, message.lower_average_power, quantity
            )
    return list(energies.values())


@pyscript_compile
def valid(device: Device, moment: float) -> Constraints | None:
    """Return the newest of the constraints that are valid at a moment, or None."""
    return next(
        (
            constraints
            for constraints in reversed(device.constraints)
            if constraints.start <= moment < constraints.end
        ),
        None,
    )


@pyscript_compile
def boundaries(device: Device, start: float, end: float, more: Iterable[float]) -> list[float]:
    """Return the moments from `start` to `end`, both included, at which limits or the forecast change."""
    spans: list[Constraints | Energy] = [*device.constraints, *device.energies]
    moments = [*more]
    for span in spans:
        moments += [span.start, span.end]
    for begin, last, _power in device.forecast or ():
        moments += [begin, last]
    points = [start]
    for moment in sorted(moments):
        if points[-1] + MIN_ELEMENT_SECONDS < moment < end - MIN_ELEMENT_SECONDS:
            points.append(moment)
    return [*points, end]


@pyscript_compile
def limits_of(constraints: Constraints, amounts: Mapping[int, float]) -> Limits:
    """Return the limits by quantity that correspond to amounts (W) by side."""
    limits = {}
    for name, quantity in constraints.quantities.items():
        high = part(constraints.sides[1], name, amounts[1])
        low = part(constraints.sides[-1], name, amounts[-1])
        upper = quantity.upper[-1][1] if high is None else nearest(quantity.upper, high)
        lower = quantity.lower[0][0] if low is None else nearest(quantity.lower, -low)
        limits[name] = upper, lower if lower <= upper else down(quantity.lower, upper)
    return limits


@pyscript_compile
def part(side: Side, name: str, amount: float) -> float | None:
    """Return a quantity's part (W) of an amount, or None if the quantity does not count."""
    if name not in side.low:
        return None
    least, most = side.ranges[0][0], side.ranges[-1][1]
    share = 1.0 if amount >= most else (amount - least) / (most - least)
    return side.low[name] + share * (side.high[name] - side.low[name])


@pyscript_compile
def nearest(ranges: Ranges, value: float) -> float:
    """Return the value in a union of ranges that is nearest to `value`, without rounding errors."""
    low, high = min(ranges, key=lambda ends: max(ends[0] - value, value - ends[1]))
    return min(max(round(value, 6) + 0.0, low), high)


@pyscript_compile
def down(ranges: Ranges, value: float) -> float:
    """Round down to the nearest value in a union of ranges, or else to its least value."""
    return max([min(high, value) for low, high in ranges if low <= value], default=ranges[0][0])


@pyscript_compile
def up(ranges: Ranges, value: float, hair: float = 0.0) -> float:
    """Round up (with a tolerance) to the nearest value in a union of ranges, or else to its greatest."""
    fitting = [max(low, min(value, high)) for low, high in ranges if high >= value - hair]
    return min(fitting, default=ranges[-1][1])


@pyscript_compile
def allowed(limits: Limits, quantity: str, side: int) -> float | None:
    """Return the amount (W) of an electric quantity that limits allow on one side, or None if undefined.

    The amount of three symmetric phases is three times that of one.
    """
    place, all_phases = (0 if side > 0 else 1), commodities.ALL_PHASES
    if all_phases in limits:
        return side * limits[all_phases][place] / (1 if quantity == all_phases else 3)
    if quantity in limits:
        return side * limits[quantity][place]
    values = [limits[name][place] for name in carriers(limits)] if quantity == all_phases else []
    return side * sum(values) if values else None


@pyscript_compile
def between(elements: Iterable[Element], start: float, end: float) -> list[Element]:
    """Return the parts of Elements from `start` to `end`."""
    return [
        element if start <= element.start and element.end <= end else cut(element, start, end)
        for element in elements
        if element.start < end and element.end > start
    ]


@pyscript_compile
def cut(element: Element, start: float, end: float) -> Element:
    """Return the part of an Element from `start` to `end`."""
    return replace(element, start=max(element.start, start), end=min(element.end, end))


@pyscript_compile
def limits_at(elements: Sequence[Element], moment: float) -> Limits | None:
    """Return the limits at a moment, or None."""
    place = bisect_right(elements, moment, key=lambda element: element.start) - 1
    return elements[place].limits if place >= 0 and moment < elements[place].end else None


@pyscript_compile
def needs_of(device: Device, instructed: Iterable[Element], begin: float, end: float) -> list[Need]:
    """Return the Needs of a plan, ordered by their ends.

    Earlier instructions have allowed some of the energy. The energy of constraints that end after the plan is
    spread evenly over the time left.
    """
    needs = []
    for energy in device.energies:
        if energy.end <= begin or energy.start >= end:
            continue
        for side in SIDES:
            average = side * (energy.upper if side > 0 else energy.lower)
            if average <= 0:
                continue
            asked, first = average * (energy.end - energy.start) / 3600, max(begin, energy.start)
            before = between(instructed, energy.start, first)
            had = sum(
                (allowed(element.limits, energy.quantity, side) or 0.0) * (element.end - element.start)
                for element in before
            )
            share = min((end - first) / (energy.end - first), 1.0)
            left = max(asked - had / 3600, 0.0) * share
            needs.append(Need(side, energy.quantity, energy.start, energy.end, asked, left))
    return sorted(needs, key=lambda need: (need.end, need.start, need.quantity, -need.side))


@pyscript_compile
def counted(constraints: Constraints, need: Need, amount: float) -> float | None:
    """Return the power (W) of a need's quantity that an amount allows, or None if it is not limited."""
    limits = {}
    for name in constraints.sides[need.side].low:
        value = need.side * (part(constraints.sides[need.side], name, amount) or 0.0)
        limits[name] = value, value
    return allowed(limits, need.quantity, need.side)


@pyscript_compile
def governed(
    start: float, end: float, constraints: Constraints | None, needs: Iterable[Need], side: int
) -> bool:
    """Return whether deferred energy calls for limits on one side from `start` to `end`."""
    if constraints is None or not constraints.is_deferred:
        return False
    least, most = constraints.sides[side].ranges[0][0], constraints.sides[side].ranges[-1][1]
    for need in needs:
        if need.side == side and need.start < end and need.end > start:
            low, high = (counted(constraints, need, amount) for amount in (least, most))
            if low is not None and high is not None and high > low:
                return True
    return False


@pyscript_compile
def missing_message(memory: rules.Memory) -> str | None:
    """Return which message is still missing to plan on, or None."""
    return None if of_type(memory, POWER_CONSTRAINTS) else POWER_CONSTRAINTS


@pyscript_compile
def valid_from(memory: rules.Memory) -> float:
    """Return when the first constraints come into force."""
    return min(float(message.valid_from.timestamp()) for message in of_type(memory, POWER_CONSTRAINTS))


@pyscript_compile
def read_device(memory: rules.Memory) -> Device:
    """Return the device that is described."""
    return read(memory)


@pyscript_compile
def why_not_plannable(device: Device) -> str | None:
    """Return why a device cannot be planned, or None."""
    return device.flaw


@pyscript_compile
def last_deadline(device: Device) -> float:
    """Return the end of the last energy constraint, or 0."""
    return max([energy.end for energy in device.energies], default=0.0)


@pyscript_compile
def read_state(
    device: Device,
    memory: rules.Memory,
    _status_received_at: transitions.StatusTimes,
    plan: EnvelopePlan | None,
    now: float,
) -> State:
    """Return the state of a device; raise NotPlannable if no constraints are valid any more.

    `plan` is the one in force, or None. There is no status of an envelope.
    """
    if all(constraints.end <= now for constraints in device.constraints):
        raise errors.NotPlannable(f"its {POWER_CONSTRAINTS} are not valid any more: it has to send new ones")
    if plan is None:
        return State(now, [], [])
    return State(now, instructed_by(plan, now), plan.changes)


@pyscript_compile
def instructed_by(plan: EnvelopePlan, now: float) -> list[Element]:
    """Return the Elements of the instructions due by now; the last of them are still to come."""
    instructed, executed = list(plan.instructed), [change for change in plan.changes if change.moment <= now]
    for place, change in enumerate(executed):
        end = executed[place + 1].moment if place + 1 < len(executed) else math.inf
        instructed += between(change.elements, max(change.moment, plan.start), end)
    return instructed
