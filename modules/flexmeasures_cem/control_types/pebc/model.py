"""Power envelope based control in the site model: the allowed amounts of each side, and the expected power.

Nothing is limited without a reason, which is the site's limit, a negative price of production, or cheaper
hours for deferred energy. Amounts are those of one side of an envelope (see device.py); in the program they
are kW, and not negative.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

import flexmeasures_api.flexible_devices as storages
import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.pebc.device as devices
import flexmeasures_cem.control_types.pebc.plan as pebc_plan
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.arrays as arrays
import flexmeasures_cem.optimisation.envelopes as envelopes
import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites

WATTS, NOISE_WATTS = 1000.0, 0.05
"""W in a kW, and the accuracy of a solution (W)."""
MAX_CUTS = 8
SMALLER_SHARE = 0.01
"""A schedule curtails if it produces less than the forecast by more than this share of it."""
MIN_MISSED_WH, MIN_MISSED_SHARE = 1.0, 0.001
"""Smaller shortfalls of a need (Wh, and share of it) are not reported."""
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]
Counting = tuple[Array, Array]
"""(offset, factor) by which amounts (kW) count for a need (kW)."""
Course = tuple[list[float], list[float]]
"""(starts, amounts (W)) of one side of an envelope."""


class _Amounts(Protocol):
    """The common part of envelopes.Allowance, Curtailable and Deferred: powers (kW) of some steps."""

    @property
    @pyscript_compile
    def amount(self) -> linear.Expression:
        """Return the allowed amount."""

    @property
    @pyscript_compile
    def may(self) -> linear.Expression:
        """Return the greatest power of the device within the allowed amount."""

    @property
    @pyscript_compile
    def power(self) -> linear.Expression:
        """Return the expected power of the device."""


Amounts = _Amounts


@pyscript_compile
def cuts(device: devices.Device, state: devices.State) -> list[float]:
    """Return the next moments (s since 1970) at which constraints or needs begin or end."""
    spans: list[devices.Constraints | devices.Energy] = [*device.constraints, *device.energies]
    moments = {moment for span in spans for moment in (span.start, span.end)}
    return sorted(moment for moment in moments if state.moment < moment < math.inf)[:MAX_CUTS]


@dataclass(frozen=True, eq=False)
class _Span:
    """A time in which a device takes the energy (kWh, on one side) that it needs, and no more."""

    side: int
    start: float
    end: float
    needed: float


Span = _Span


@dataclass(eq=False)
class _EnvelopeModel:
    """A device's envelope in a Site's program.

    By side: `amount` is allowed, `may` the greatest power of the device within that, `power` the expected
    one, and `room` the amount that counts for energy constraints.
    """

    site: sites.Site
    device: devices.Device
    state: devices.State
    schedule: Sequence[devices.Piece] | None

    @pyscript_compile
    def __post_init__(self) -> None:
        site, device, state = self.site, self.device, self.state
        edges = site.grid.edges
        self.begin, self.end = float(edges[0]), float(edges[-1])
        self.instructed = devices.between(state.instructed, -math.inf, self.begin)
        self.needs = devices.needs_of(device, self.instructed, self.begin, self.end)
        middles = (edges[:-1] + edges[1:]) / 2
        self.constraints = [devices.valid(device, moment) for moment in arrays.as_list(middles)]
        self.is_deferred = np.array(
            [bool(constraints and constraints.is_deferred) for constraints in self.constraints]
        )
        self.unions = {side: union_of(self.constraints, side) for side in devices.SIDES}
        which = numbers(device, self.constraints)
        self.counts = [counting(device, need) for need in self.needs]
        self.counting = [(offset[which], factor[which]) for offset, factor in self.counts]
        self.governed = {side: self._governed(side) for side in devices.SIDES}
        self.wanted = (
            means_where_known(site.grid, self.schedule) / WATTS if self.schedule is not None else None
        )
        self._expect()
        self.amount: dict[int, linear.Expression] = {}
        self.may: dict[int, linear.Expression] = {}
        self.power: dict[int, linear.Expression] = {}
        self.room: dict[int, linear.Expression] = {}
        self._set_curtailed()
        for side in devices.SIDES:
            self._add_side(side)
        self._add_needs()
        site.add(self.power[1] - self.power[-1] + self.free)
        for side in devices.SIDES:
            site.spare(side, self.may[side] - self.power[side])

    @pyscript_compile
    def _governed(self, side: int) -> Mask:
        """Return in which steps deferred energy calls for limits on one side."""
        governed = np.zeros(self.site.grid.count, bool)
        for need, (_base, factor) in zip(self.needs, self.counting, strict=True):
            if need.side == side:
                inside = (self.site.grid.starts < need.end) & (self.site.grid.ends > need.start)
                governed |= inside & self.is_deferred & (factor > 0)
        return governed

    @pyscript_compile
    def _expect(self) -> None:
        """Set the forecast (kW) within the limits, by side, and the power without any limits."""
        grid, pieces = self.site.grid, self.device.forecast or []
        forecast = grid.means(pieces) / WATTS
        has_none = np.array([constraints is None for constraints in self.constraints])
        self.free = np.where(has_none, forecast, 0.0)
        is_free = has_none | self.governed[1] | self.governed[-1]
        inside = np.clip(forecast, -self.unions[-1].most, self.unions[1].most)
        inside = np.where(is_free, 0.0, inside)
        self.expected = {side: np.maximum(side * inside, 0.0) for side in devices.SIDES}
        self.peak = np.minimum(
            np.maximum(peaks(grid, pieces) / WATTS, self.expected[-1]), self.unions[-1].most
        )

    @pyscript_compile
    def _room(self, side: int) -> Array:
        """Return the power (kW) that the site's limit leaves on a side, beside the given load."""
        tariffs = self.site.tariffs
        capacity = tariffs.consumption_capacity if side > 0 else tariffs.production_capacity
        room = np.maximum(capacity - tariffs.headroom - side * np.asarray(tariffs.load, float), 0.0)
        return np.broadcast_to(room, (self.site.grid.count,))

    @pyscript_compile
    def _add_side(self, side: int) -> None:
        """Set the amounts of one side: fixed in steps without a reason to limit, variable in others."""
        union, room, expected = self.unions[side], self._room(side), self.expected[side]
        governed = self.governed[side]
        curtails = self.curtails if side < 0 else np.zeros_like(governed)
        allows = np.isfinite(room) & ~governed & ~(self.is_lost & (side < 0))
        fixed = ~curtails & ~allows & ~governed
        self.amount[side] = linear.constant(np.where(fixed, union.most, 0.0))
        self.power[side] = linear.constant(np.where(fixed, expected, 0.0))
        self.may[side], self.room[side] = self.power[side], self.amount[side]
        [steps] = np.nonzero(allows)
        if len(steps):
            allowance = envelopes.Allowance(self.site, steps, union.at(steps), expected[steps])
            self._place(side, steps, allowance, allowance.amount)
        [steps] = np.nonzero(curtails)
        if len(steps):
            self._curtail(steps, union.at(steps), room[steps])
        [steps] = np.nonzero(governed)
        if len(steps):
            self._defer(side, steps, union.at(steps), room[steps])

    @pyscript_compile
    def _place(self, side: int, steps: Places, part: Amounts, room: linear.Expression) -> None:
        """Set the amounts of some steps; `room` counts for energy constraints."""
        count = self.site.grid.count
        for name, value in (
            ("amount", part.amount),
            ("may", part.may),
            ("power", part.power),
            ("room", room),
        ):
            kept = getattr(self, name)
            kept[side] = kept[side] + envelopes.placed(value, steps, count)

    @pyscript_compile
    def _defer(self, side: int, steps: Places, union: envelopes.Union, room: Array) -> None:
        """Set the amounts of the steps with deferred energy."""
        part = envelopes.Deferred(self.site, steps, union, self._was_on(side))
        part.allow_parts(len([need for need in self.needs if need.side == side]))
        self._place(side, steps, part, part.power)
        if self.wanted is not None:
            planned = side * self.wanted[steps]
            target = union.up(np.nan_to_num(planned), envelopes.AMOUNT_TOLERANCE_KW)
            target = np.where(union.most > room, np.minimum(target, union.down(room)), target)
            target = np.where(np.isnan(planned), np.nan, target)
            envelopes.follow(self.site, part.power, target, self.site.grid.hours[steps])

    @pyscript_compile
    def _was_on(self, side: int) -> bool:
        """Return whether the instructed amount of a side was above the least one just before the plan."""
        before = devices.limits_at(self.instructed, self.begin - devices.MIN_ELEMENT_SECONDS)
        for need, (offset, factor) in zip(self.needs, self.counting, strict=True):
            if before and need.side == side and not np.isnan(offset[0]):
                allowed = devices.allowed(before, need.quantity, side)
                least = (offset[0] + factor[0] * self.unions[side].least[0]) * WATTS
                return allowed is not None and allowed > least + plans.MIN_POWER_W
        return False

    @pyscript_compile
    def _curtail(self, steps: Places, union: envelopes.Union, room: Array) -> None:
        """Set the amounts of the steps in which production may be curtailed."""
        expected, peak = self.expected[-1][steps], self.peak[steps]
        is_needed = any(need.side < 0 for need in self.needs)
        peak = np.where(peak > room, peak, expected)
        part = envelopes.Curtailable(
            self.site, steps, union, expected, peak, self.left[steps], is_needed=is_needed
        )
        self._place(-1, steps, part, part.amount)

    @pyscript_compile
    def _set_curtailed(self) -> None:
        """Set in which steps production may be curtailed, and what a schedule leaves of it (kW; nan: any).

        These are steps with forecast production that is not deferred, and a reason: the site's limit, or a
        negative price.
        """
        forecast, room = self.expected[-1], self._room(-1)
        costs = np.minimum(self.site.production_price, self.site.consumption_price) < 0
        self.left: arrays.Floats = np.full(self.site.grid.count, np.nan)
        if self.wanted is not None:
            hair = np.maximum(plans.MIN_POWER_W / WATTS, SMALLER_SHARE * forecast)
            is_less = (-self.wanted < forecast - hair) & (costs | (self.peak > room))
            left = np.where(is_less, np.maximum(-self.wanted, 0.0), forecast)
            self.left = np.where(np.isnan(self.wanted), np.nan, left)
        self.is_lost = ~self.is_deferred & ~self.governed[-1] & (self.device.forecast is not None)
        is_open = np.where(np.isnan(self.left), costs, self.left < forecast)
        self.curtails = self.is_lost & (forecast > envelopes.MIN_POWER_KW) & (np.isfinite(room) | is_open)

    @pyscript_compile
    def _add_needs(self) -> None:
        """Allow the needed energy by its deadline, and no more of deferred energy."""
        grid = self.site.grid
        for need, counted in zip(self.needs, self.counting, strict=True):
            share = grid.shares(max(need.start, self.begin), need.end) * grid.hours
            envelopes.fill(self.site, energy(self.room[need.side], counted, share), need.left / WATTS)
        for side in devices.SIDES:
            for group in groups([span for span in self._spans() if span.side == side]):
                self._confine(side, group)

    @pyscript_compile
    def _spans(self) -> list[Span]:
        """Return the Spans of deferred energy."""
        grid, spans = self.site.grid, []
        for need, (offset, factor) in zip(self.needs, self.counting, strict=True):
            start = max(need.start, self.begin)
            inside = self.governed[need.side] & (factor > 0) & (grid.shares(start, need.end) > 0)
            if inside.any():
                hours = (grid.shares(start, need.end) * grid.hours)[inside]
                least = float((offset[inside] * hours).sum())
                needed = (need.left / WATTS - least) / float(factor[inside].mean())
                spans.append(Span(need.side, start, need.end, max(needed, 0.0)))
        return spans

    @pyscript_compile
    def _confine(self, side: int, group: Sequence[Span]) -> None:
        """Allow no more energy than is needed in overlapping Spans."""
        grid = self.site.grid
        share = grid.shares(min(span.start for span in group), max(span.end for span in group))
        hours = np.where(self.governed[side], share * grid.hours, 0.0)
        envelopes.confine(self.site, (self.power[side] * hours).sum(), needed_at_most(group))

    @pyscript_compile
    def plan(self, solution: linear.Solution, market: Sequence[markets.Interval]) -> pebc_plan.Plan:
        """Return the Plan of a solution, with its cost in a market.

        Changes that are the same as those of the plan in force are kept as they are; the moment of the one in
        force is past.
        """
        courses = {side: self._course(side, solution) for side in devices.SIDES}
        slots = self._slots(courses, market)
        pieces = plans.merged([plans.PowerPiece(slot.start, slot.end, slot.power) for slot in slots])
        changes = [
            pebc_plan.kept(self.state.changes, change, self.begin)
            for change in pebc_plan.changes_of(slots, pieces)
        ]
        cost = sum(markets.cost(slot.interval, slot.power, slot.end - slot.start) for slot in slots)
        instructed = pebc_plan.remembered(self.device, self.instructed, self.begin)
        return pebc_plan.Plan(
            self.begin,
            market[-1].end,
            changes,
            pieces,
            self._missed(slots),
            float(cost),
            instructed=instructed,
        )

    @pyscript_compile
    def _course(self, side: int, solution: linear.Solution) -> Course:
        """Return the amounts (W) of one side, with their starts; a step may have two."""
        edges = arrays.as_list(self.site.grid.edges)
        amounts = arrays.as_list(solution.of(self.amount[side]) * WATTS)
        means = arrays.as_list(solution.of(self.room[side]) * WATTS)
        governed = cast(list[bool], self.governed[side].tolist())
        starts: list[float] = []
        course: list[float] = []
        unlimited = self._unlimited(side, solution)
        for place, constraints in enumerate(self.constraints):
            start, end = edges[place], edges[place + 1]
            if constraints is None:
                parts = [(start, 0.0)]
            elif governed[place]:
                following = means[place + 1] if place + 1 < len(means) and governed[place + 1] else None
                parts = split(constraints.sides[side].ranges, start, end, means[place], following)
            else:
                ranges = constraints.sides[side].ranges
                parts = [(start, ranges[-1][1] if unlimited[place] else settled(ranges, amounts[place]))]
            starts += [at for at, _amount in parts]
            course += [amount for _at, amount in parts]
        return starts, course

    @pyscript_compile
    def _unlimited(self, side: int, solution: linear.Solution) -> list[bool]:
        """Return in which steps of a solution production is not curtailed."""
        if side > 0:
            return [False] * self.site.grid.count
        power = solution.of(self.power[side])
        is_whole = power > self.expected[side] - 1e-5 - 1e-6 * self.expected[side]
        return cast(list[bool], (self.curtails & is_whole).tolist())

    @pyscript_compile
    def _slots(
        self, courses: Mapping[int, Course], market: Sequence[markets.Interval]
    ) -> list[pebc_plan.Slot]:
        """Return the Slots of a plan: times of constant amounts, forecast, constraints and prices."""
        edges, end = self.site.grid.edges, market[-1].end
        inner = {moment for starts, _amounts in courses.values() for moment in starts[1:]}
        points = np.array(devices.boundaries(self.device, self.begin, end, inner))
        middles = (points[:-1] + points[1:]) / 2
        forecast = grids.TimeGrid(edges=points).means(self.device.forecast or [])
        steps = np.clip(np.searchsorted(edges, middles, "right") - 1, 0, len(edges) - 2).tolist()
        intervals = np.searchsorted([interval.start for interval in market], middles, "right") - 1
        amounts = {
            side: np.array(values)[np.searchsorted(starts, middles, "right") - 1].tolist()
            for side, (starts, values) in courses.items()
        }
        slots = []
        changing = self._changing()
        for place, (start, until) in enumerate(zip(points[:-1].tolist(), points[1:].tolist(), strict=True)):
            step, interval = steps[place], market[max(int(intervals[place]), 0)]
            constraints = self.constraints[step]
            if step in changing:
                constraints = devices.valid(self.device, float(middles[place]))
            slot = pebc_plan.Slot(start, until, constraints, interval, float(forecast[place]))
            if constraints:
                slot.amounts = {
                    side: fitted(constraints, self.constraints[step], side, values[place])
                    for side, values in amounts.items()
                }
                slot.deferred = tuple(side for side in devices.SIDES if self.governed[side][step])
            slot.power = pebc_plan.expected(slot)
            slots.append(slot)
        return slots

    @pyscript_compile
    def _changing(self) -> set[int]:
        """Return the steps within which constraints change."""
        moments = np.array(
            [[constraints.start, constraints.end] for constraints in self.device.constraints]
        ).ravel()
        edges = self.site.grid.edges
        inside = moments[(moments > edges[0]) & (moments < edges[-1]) & ~np.isin(moments, edges)]
        return set((np.searchsorted(edges, inside, "right") - 1).tolist())

    @pyscript_compile
    def _missed(self, slots: Sequence[pebc_plan.Slot]) -> list[plans.Missed]:
        """Return the needs that Slots do not meet."""
        missed, which = [], numbers(self.device, [slot.constraints for slot in slots])
        starts, ends = np.array([[slot.start, slot.end] for slot in slots]).T
        for need, (offsets, factors) in zip(self.needs, self.counts, strict=True):
            offset, factor = offsets[which], factors[which]
            amounts = np.array([slot.amounts.get(need.side, 0.0) for slot in slots]) / WATTS
            inside = np.clip(np.minimum(ends, need.end) - np.maximum(starts, need.start), 0.0, None) / 3600
            counts = ~np.isnan(offset) & (inside > 0)
            room = float(((offset + factor * amounts) * inside)[counts].sum()) * WATTS
            if counts.any() and need.left - room > max(MIN_MISSED_WH, MIN_MISSED_SHARE * need.asked):
                missed.append(plans.Missed(need.end, need.asked, need.asked - need.left + room))
        return missed


EnvelopeModel = _EnvelopeModel


@pyscript_compile
def add(
    site: sites.Site,
    device: devices.Device,
    state: devices.State,
    schedule: Sequence[devices.Piece] | None,
    _tariffs: Mapping[str, float],
    _storage: markets.StorageTerms | None = None,
) -> EnvelopeModel:
    """Add a device to the program of a site.

    `schedule` has the powers (start, end, W) to follow, or is None. Tariffs of other commodities and the
    storage do not matter.
    """
    return EnvelopeModel(site, device, state, schedule)


@pyscript_compile
def union_of(constraints: Sequence[devices.Constraints | None], side: int) -> envelopes.Union:
    """Return the Union (kW) of one side by the constraints of each step; 0 without constraints."""
    ranges = [of_step.sides[side].ranges if of_step else ((0.0, 0.0),) for of_step in constraints]
    most = max(len(of_step) for of_step in ranges)
    low, high = np.full((2, most, len(ranges)), np.nan)
    for its in set(ranges):
        where = np.array([of_step == its for of_step in ranges])
        for place, (begin, end) in enumerate(its):
            low[place, where], high[place, where] = max(begin, 0.0) / WATTS, max(end, 0.0) / WATTS
    return envelopes.Union(low, high)


@pyscript_compile
def counting(device: devices.Device, need: devices.Need) -> Counting:
    """Return (offset, factor): under each constraints, offset + factor * amount (kW) counts for a need.

    The offset is nan where an amount does not count, and for the last entry, which is without constraints.
    """
    offset, factor = np.full(len(device.constraints) + 1, np.nan), np.zeros(len(device.constraints) + 1)
    for place, constraints in enumerate(device.constraints):
        least, most = constraints.sides[need.side].ranges[0][0], constraints.sides[need.side].ranges[-1][1]
        low, high = (devices.counted(constraints, need, amount) for amount in (least, most))
        if low is not None and high is not None:
            factor[place] = (high - low) / (most - least) if most > least else 0.0
            offset[place] = (high - factor[place] * most) / WATTS
    return offset, factor


@pyscript_compile
def numbers(device: devices.Device, constraints: Iterable[devices.Constraints | None]) -> Places:
    """Return the indexes of constraints in a device's list, -1 for None."""
    places = {id(own): place for place, own in enumerate(device.constraints)}
    return np.array([places.get(id(of_step), -1) for of_step in constraints])


@pyscript_compile
def settled(ranges: devices.Ranges, amount: float) -> float:
    """Return the amount (W) in ranges that corresponds to that of a solution."""
    for low, high in ranges:
        if low - NOISE_WATTS <= amount <= high + NOISE_WATTS:
            near = [end for end in (low, high) if abs(end - amount) <= NOISE_WATTS]
            return near[0] if near else round(amount, 3)
    return devices.down(ranges, amount)


@pyscript_compile
def split(
    ranges: devices.Ranges, start: float, end: float, mean: float, following: float | None
) -> list[tuple[float, float]]:
    """Return (start, amount (W)) of the parts of a step with a mean amount (W).

    If the mean is in a gap between ranges, the step has a part above and a part below the gap: the former
    comes last if the following step has more.
    """
    mean = settled(ranges, mean) if devices.up(ranges, mean) - mean <= NOISE_WATTS else mean
    lower, higher = devices.down(ranges, mean), devices.up(ranges, mean)
    if higher - mean <= plans.MIN_POWER_W:
        return [(start, higher)]
    if mean - lower <= NOISE_WATTS:
        return [(start, lower)]
    seconds = (mean - lower) / (higher - lower) * (end - start)
    if min(seconds, end - start - seconds) <= devices.MIN_ELEMENT_SECONDS:
        return [(start, higher)]
    if following is not None and following > lower + plans.MIN_POWER_W:
        return [(start, lower), (end - seconds, higher)]
    return [(start, higher), (start + seconds, lower)]


@pyscript_compile
def fitted(
    constraints: devices.Constraints, own: devices.Constraints | None, side: int, amount: float
) -> float:
    """Translate an amount (W) under the constraints of its step (`own`) to other constraints."""
    ranges = constraints.sides[side].ranges
    if constraints is own:
        return amount
    if own is None or amount >= own.sides[side].ranges[-1][1]:
        return ranges[-1][1]
    return devices.down(ranges, amount)


@pyscript_compile
def energy(amount: linear.Expression, counted: Counting, hours: Array) -> linear.Expression:
    """Return the energy (a vector of one, kWh) that counts of an amount (kW) in some hours of each step."""
    offset, factor = counted
    return (amount * (factor * hours)).sum() + float((np.nan_to_num(offset) * hours).sum())


@pyscript_compile
def groups(spans: Iterable[Span]) -> list[list[Span]]:
    """Return Spans in groups that overlap."""
    end = -math.inf
    grouped: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start):
        if span.start < end:
            grouped[-1].append(span)
        else:
            grouped.append([span])
        end = max(end, span.end)
    return grouped


@pyscript_compile
def needed_at_most(spans: Iterable[Span]) -> float:
    """Return the total energy (kWh) of Spans; one within a longer Span counts for that, too."""
    left, needed = sorted(spans, key=lambda span: span.start - span.end), 0.0
    while left:
        first = left[0]
        inside = [span for span in left[1:] if first.start <= span.start and span.end <= first.end]
        needed += max(first.needed, needed_at_most(inside))
        left = [span for span in left[1:] if span not in inside]
    return needed


@pyscript_compile
def means_where_known(grid: grids.TimeGrid, pieces: Sequence[devices.Piece]) -> Array:
    """Return the mean of pieces (start, end, value) in the covered part of each step, nan without any."""
    covered = grid.means([(start, end, 1.0) for start, end, _value in pieces])
    sums = grid.means(pieces)
    return np.where(covered > 1e-6, sums / np.maximum(covered, 1e-6), np.nan)


@pyscript_compile
def peaks(grid: grids.TimeGrid, pieces: Sequence[devices.Piece]) -> Array:
    """Return the greatest production (W) of pieces (start, end, power) in each step, or 0."""
    if not pieces:
        return np.zeros(grid.count)
    starts, ends, powers = np.array(pieces).T
    meets = (starts[:, None] < grid.ends - 0.5) & (ends[:, None] > grid.starts + 0.5)
    return cast(Array, np.where(meets, -powers[:, None], 0.0).max(axis=0))


@pyscript_compile
def flex_model(
    device: devices.Device,
    state: devices.State,
    sensors: base.PlanningSensors,
    window: base.PlanningWindow,
) -> storages.Storage | storages.Flow | None:
    """Return the flex-model of a device, or None if there is nothing to optimize.

    That is a Storage for energy deferred on one side, or a Flow for production that can be curtailed.
    """
    needs = devices.needs_of(device, state.instructed, state.moment, window.end)
    sides = [side for side in devices.SIDES if any(capacities(device, needs, window, side, window.left))]
    if len(sides) == 1:
        return deferred(device, needs, sensors, window, sides[0])
    return None if sides else curtailable(device, sensors, window)


@pyscript_compile
def capacities(
    device: devices.Device, needs: Sequence[devices.Need], window: base.PlanningWindow, side: int, left: float
) -> list[float]:
    """Return the greatest mean power (W) of deferred energy by step; of the first, a part is left."""
    begin = window.start + (1 - left) * window.step
    powers = [0.0] * round((window.end - window.start) / window.step)
    grid = [window.start + place * window.step for place in range(1, len(powers))]
    for start, end in pairwise(devices.boundaries(device, begin, window.end, grid)):
        constraints = devices.valid(device, (start + end) / 2)
        if constraints and devices.governed(start, end, constraints, needs, side):
            place = min(int(((start + end) / 2 - window.start) / window.step), len(powers) - 1)
            powers[place] += constraints.sides[side].ranges[-1][1] * (end - start) / window.step
    return [max(power, 0.0) for power in powers]


@pyscript_compile
def deferred(
    device: devices.Device,
    needs: Sequence[devices.Need],
    sensors: base.PlanningSensors,
    window: base.PlanningWindow,
    side: int,
) -> storages.Storage | None:
    """Return deferred energy as a Storage with deadlines; None if no energy is left to be deferred."""
    modes = gap(device, needs, window, side) if window.with_modes else []
    powers = capacities(device, needs, window, side, 1.0 if modes else window.left)
    wishes = deadlines(device, [need for need in needs if need.side == side], powers, window)
    full = max([energy for _at, energy in wishes], default=0.0)
    if full <= MIN_MISSED_WH:
        return None
    spans = storages.as_spans(powers, window.start, window.step)
    consumes = side > 0
    events = [
        storages.SocEvent(plans.moment(at), plans.moment(at), energy if consumes else full - energy)
        for at, energy in wishes
    ]
    return storages.Storage(
        power_sensor=sensors.power_sensor,
        soc_at_start=0.0 if consumes else full,
        soc_min=0.0,
        soc_max=full,
        soc_minima=events if consumes else [],
        soc_maxima=[] if consumes else events,
        power_capacity=device.max_consumption_w if consumes else device.max_production_w,
        charging_efficiency=1.0,
        discharging_efficiency=1.0,
        storage_efficiency=1.0,
        consumption_capacity=spans if consumes else 0.0,
        production_capacity=0.0 if consumes else spans,
        operation_modes=modes,
    )


@pyscript_compile
def deadlines(
    device: devices.Device,
    needs: Iterable[devices.Need],
    powers: Sequence[float],
    window: base.PlanningWindow,
) -> list[tuple[float, float]]:
    """Return (moment on the grid, energy (Wh) to allow by then), limited to the possible."""
    reached, wishes = [(-math.inf, 0.0)], {}
    for need in needs:
        constraints = devices.valid(device, max(need.start, window.start)) or device.constraints[-1]
        most = constraints.sides[need.side].ranges[-1][1]
        own = devices.counted(constraints, need, most)
        left = need.left * most / own if own and own > 0 else 0.0
        before = max(energy for at, energy in reached if at <= need.start)
        total = max(before + left, max(energy for _at, energy in reached))
        reached.append((need.end, total))
        at = min(max(need.end // window.step * window.step, window.start + window.step), window.end)
        possible = sum(powers[: round((at - window.start) / window.step)]) * window.step / 3600
        wishes[at] = min(total, possible)
    return sorted(wishes.items())


@pyscript_compile
def gap(
    device: devices.Device, needs: Sequence[devices.Need], window: base.PlanningWindow, side: int
) -> Sequence[devices.Range]:
    """Return the ranges of power (W) of deferred energy if there are gaps between them, else nothing."""
    for start, end in pairwise(devices.boundaries(device, window.start, window.end, [])):
        constraints = devices.valid(device, (start + end) / 2)
        if constraints and devices.governed(start, end, constraints, needs, side):
            ranges = constraints.sides[side].ranges
            if len(ranges) == 1 and ranges[0][0] < plans.MIN_POWER_W:
                return []
            return sorted({(0.0, 0.0), *ranges} if side > 0 else {(0.0, 0.0), *devices.mirrored(ranges)})
    return []


@pyscript_compile
def curtailable(
    device: devices.Device, sensors: base.PlanningSensors, window: base.PlanningWindow
) -> storages.Flow | None:
    """Return the forecast production as a Flow, or None if none of it can be curtailed."""
    begin = window.start + (1 - window.left) * window.step
    powers = []
    for place in range(round((window.end - window.start) / window.step)):
        start = max(window.start + place * window.step, begin)
        end = window.start + (place + 1) * window.step
        power = forecasts.mean(device.forecast or (), start, end)
        powers.append(max(-power, 0.0) * (end - start) / window.step)
    can = [
        constraints
        for constraints in device.constraints
        if not constraints.is_deferred and constraints.start < window.end and constraints.end > begin
        if constraints.sides[-1].ranges[0][0] < constraints.sides[-1].ranges[-1][1]
    ]
    if not can or not any(powers):
        return None
    return storages.Flow(sensors.power_sensor, 0.0, storages.as_spans(powers, window.start, window.step))
