"""Fill rate based control in the site model: a storage, and the actuators that fill and empty it.

Levels are stored energy (kWh) above the start of the storage's range: electric energy times the efficiency of
charging (device.FillLevelEnergy).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import flexmeasures_api.flexible_devices as flexible_devices
import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.plan as frbc_plan
import flexmeasures_cem.control_types.operation_modes.model as operation_modes
import flexmeasures_cem.control_types.operation_modes.modes as modes_of
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.arrays as arrays
import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites
import flexmeasures_cem.optimisation.storage as storages
import flexmeasures_cem.optimisation.switching as switching

WATTS = 1000.0
"""W in a kW."""
JOULES = 3.6e6
"""J in a kWh."""
MAX_CUTS = 8
LEAD_SECONDS = 8.0
"""The first instruction of a device is executed this long after its state, at the latest."""
MAX_SEGMENTS = 4
"""Segments of fill levels with rates and powers of their own, at most."""
SAME_RATE = 0.01
"""Elements that differ by less than this part of the greatest rate and power are one segment."""
MEAN_POWER_WEIGHT = 0.005
"""The weight of a deviation from a scheduled power that no mode has: the level counts instead."""
EARLY_WEIGHT = 0.1
"""A deviation from a scheduled power counts this much more at the start than at the end."""
SAME_POWER = 0.01
"""Powers that differ by less than this part of the greatest are the same."""
MIN_SWING_HOURS = 0.25
"""A device with steps of power may alternate between two of them this slowly, at least."""
MIN_COVERED_SHARE = 0.5
"""A scheduled level counts at the end of steps of which the schedule covers this part, at least."""
LEVEL_PER_HOUR, LEVEL_FADES_SECONDS = 2.0, 3600.0
"""The weight of a deviation from the scheduled level for an hour, relative to one of energy; it decays
exponentially with this time constant."""
LEVEL_IN_ALL = 8.0
"""The weight added for all hours together: the sum stays below that of a missed target."""
PER_KWH, PER_IDLE_HOUR = 5e-4, 2e-4
"""The least saving (currency) for which a kWh is moved, and an hour is spent in a mode that could do so.

It is doubled at the start: of two equally good moments, the later one is chosen.
"""
EARLY_STOP = 0.25
"""The penalty for a kWh by which a step is cut short, as a part of the greatest price."""
MAX_EARLY_STOP_SECONDS = 7200.0
"""Modes that timers block for longer are left at the ends of steps only."""
MAX_STUCK_SECONDS = 86_400.0
"""The time after the plan that counts for modes that cannot be left."""
SAME_FACTOR = 1e-4
MAX_RANGES = 500
"""Combined ranges of power of several actuators, at most."""
SAME_LEVEL = 5e-3
"""Levels that differ by less than this part of the storage's range are the same."""
MIN_SECONDS = 1.0
"""Shorter times are left out."""
NEGLIGIBLE = 1e-9
"""Rates, powers (kW) and shares below this are rounding errors."""
SAME_MOMENT_SECONDS = 1e-3
Array = NDArray[np.float64]
BySegment = list[linear.Expression | None]
"""Values of a mode by segment of the storage; None where the mode does nothing."""
FactorsByStep = list[list[tuple[float, float]]]
"""The (moment, factor) pairs of the active mode, by step."""


@dataclass(frozen=True, kw_only=True)
class _Effect:
    """The rates and powers (kW) of a mode in a segment at a factor of 0 and of 1, and its cost (per hour)."""

    rates: tuple[float, float]
    powers: tuple[float, float]
    cost: float

    @property
    @pyscript_compile
    def is_fixed(self) -> bool:
        """Whether the factor changes nothing."""
        return self.rates[0] == self.rates[1] and self.powers[0] == self.powers[1]

    @property
    @pyscript_compile
    def least_rate(self) -> float:
        """The rate that moves the level least."""
        low, high = sorted(self.rates)
        return min(max(0.0, low), high)


Effect = _Effect


@pyscript_compile
def cuts(device: devices.Device, state: devices.State) -> list[float]:
    """Return moments (s since 1970) that should be edges of the grid.

    These are the ends of targets, and of timers that run or would run after an immediate start.
    """
    targets = [moment for start, end, *_levels in device.targets for moment in (start, end)]
    actives = [state.actuators[actuator.id] for actuator in device.actuators]
    blocked = operation_modes.cuts(device.actuators, actives)
    blocking = [
        state.moment + actuator.durations[timer] + LEAD_SECONDS
        for actuator in device.actuators
        for timer in operation_modes.blocking_timers(actuator)
        if actuator.durations.get(timer)
    ]
    coming = sorted({moment for moment in (*targets, *blocked, *blocking) if moment > state.moment})
    return coming[:MAX_CUTS]


@pyscript_compile
def borders(device: devices.Device, bottom: float, top: float) -> list[float]:
    """Return the borders of segments from `bottom` to `top`, in which rates and powers are about constant."""
    jumps: dict[float, float] = {}
    for actuator in device.actuators:
        for mode in actuator.modes.values():
            scales = [
                max(
                    NEGLIGIBLE, *[abs(value) for element in mode.elements for value in getattr(element, name)]
                )
                for name in ("rates", "powers")
            ]
            for before, after in zip(mode.elements[:-1], mode.elements[1:], strict=True):
                jump = max(
                    abs(first - second) / scale
                    for name, scale in zip(("rates", "powers"), scales, strict=True)
                    for first, second in zip(getattr(before, name), getattr(after, name), strict=True)
                )
                if jump > SAME_RATE and bottom < after.bottom < top:
                    jumps[after.bottom] = max(jumps.get(after.bottom, 0.0), jump)
    kept = sorted(jumps, key=lambda level: (-jumps[level], level))[: MAX_SEGMENTS - 1]
    return [bottom, *sorted(kept), top]


@pyscript_compile
def effect(mode: devices.Mode, low: float, high: float, unit: float) -> Effect:
    """Return the mean Effect of a mode between two fill levels."""
    starts = [low, *[min(max(element.bottom, low), high) for element in mode.elements[1:]], high]
    weights = np.diff(starts) / (high - low)

    def mean(of: Any) -> Any:
        return sum(
            weight * np.array(of(element)) for weight, element in zip(weights, mode.elements, strict=True)
        )

    rates = mean(lambda element: element.rates) * (unit * 3600)
    powers = mean(lambda element: element.powers) / WATTS
    cost = float(mean(lambda element: element.cost))
    return Effect(rates=tuple(rates.tolist()), powers=tuple(powers.tolist()), cost=cost)


@pyscript_compile
def leakage_of(device: devices.Device, low: float, high: float, unit: float) -> tuple[float, float]:
    """Return the leakage (kW) at the start of the range, and its increase per stored kWh.

    They are a least-squares fit between two fill levels.
    """
    pieces = [
        (max(bottom, low), min(top, high), rate) for bottom, top, rate in device.leakage if bottom < high
    ]
    pieces = [(first, last, rate) for first, last, rate in pieces if last > first]
    if not pieces:
        return 0.0, 0.0
    width, centre = high - low, (low + high) / 2
    mean = sum(rate * (last - first) for first, last, rate in pieces) / width
    moment = sum(rate * ((last - centre) ** 2 - (first - centre) ** 2) / 2 for first, last, rate in pieces)
    slope = max(moment / (width**3 / 12), 0.0)
    at_bottom = mean - slope * (centre - device.bottom)
    return at_bottom * unit * 3600, slope * 3600


@pyscript_compile
def fill_level_energy_of(
    device: devices.Device, energy_per_fill_level_j: float | None
) -> devices.FillLevelEnergy:
    """Return the FillLevelEnergy of a device; that of one without electric power is arbitrary."""
    value = devices.fill_level_energy(device, energy_per_fill_level_j)
    return value or devices.FillLevelEnergy(energy_per_fill_level_j or JOULES, 1.0, 1.0)


@dataclass(eq=False, repr=False)
class _Converter:
    """An actuator in the program: its power (kW), and its rates (kW) in each segment of the storage."""

    site: sites.Site
    actuator: devices.Actuator
    present: transitions.Active
    effects: list[list[Effect]]
    storage: storages.Storage

    @pyscript_compile
    def __post_init__(self) -> None:
        site, actuator, present, effects = self.site, self.actuator, self.present, self.effects
        self.numbers = {mode_id: number for number, mode_id in enumerate(actuator.modes)}
        idle = [mode for mode, of_mode in zip(actuator.modes, effects, strict=True) if is_nothing(of_mode)]
        self.model = operation_modes.ActuatorModel(site, actuator, present, idle)
        self.active = self.model.switching.active
        self.early: dict[int, linear.Expression] = {}
        self.rests: dict[int, transitions.Transition] = {}
        self.share = list(self.model.share)
        for number in range(len(effects)):
            self._stop_early(number)
        by_mode = [self._by_segment(number) for number in range(len(effects))]
        self.run = [run for run, _factors in by_mode]
        self.factor = [factors for _run, factors in by_mode]
        self.powers = [self._output(number, "powers") for number in range(len(effects))]
        self.power = linear.total(
            [power for by_segment in self.powers for power in by_segment], site.grid.count
        )
        self.model.keep_room([[end for effect in both for end in effect.powers] for both in effects])
        self._flows()
        self._pay()

    @pyscript_compile
    def _stop_early(self, number: int) -> None:
        """Allow a mode to end within a step, followed by one at rest, if that saves enough.

        So a mode that only has high rates can fill the storage exactly. `early[number]` is the part of the
        step that is cut off.
        """
        rates = [effect.least_rate for effect in self.effects[number]]
        is_filling, is_emptying = min(rates) > 0, max(rates) < 0
        rest = self._rest_after(number) if is_filling or is_emptying else None
        if rest is None:
            return
        (step, target), active = rest, self.present
        grid, program = self.site.grid, self.site.program
        blocked = max(
            [self.actuator.durations.get(timer, 0.0) for timer in step.blocking_timers], default=0.0
        )
        if blocked > MAX_EARLY_STOP_SECONDS:
            return
        ends = [active.timers.get(timer, 0.0) for timer in step.blocking_timers]
        free = grid.starts > max(ends, default=0.0) + transitions.MARGIN_SECONDS
        if blocked and active.mode != list(self.numbers)[number]:
            free &= grid.starts - blocked - transitions.MARGIN_SECONDS > grid.starts[0]
        early = program.variables(grid.count, 0.0, free.astype(float))
        follows = linear.joined([self.active[target][1:], linear.constant([1.0])])
        program.require(self.active[number] - early, 0.0)
        program.require(follows - early, 0.0)
        for lag in range(1, grid.count):
            bound = (
                grid.edges[1 : grid.count - lag + 1]
                > grid.starts[lag:] - blocked - transitions.MARGIN_SECONDS
            )
            if not bound.any() or not blocked:
                break
            program.require((self.active[number][: grid.count - lag] - early[lag:])[bound], 0.0)
        price = EARLY_STOP * self.site.greatest_price
        program.pay(early * (grid.hours * (price * min(abs(rate) for rate in rates))))
        for direction in (1, -1):
            greatest = max(direction * end for effect in self.effects[number] for end in effect.powers)
            if greatest > 0:
                self.site.exceed(direction, early * greatest)
        self.early[number], self.rests[number] = early, step
        self.share[number] = self.share[number] - early
        self.share[target] = self.share[target] + early

    @pyscript_compile
    def _rest_after(self, number: int) -> tuple[transitions.Transition, int] | None:
        """Return (Transition, number) of the mode at rest that follows a mode directly, or None."""
        ids = list(self.numbers)
        rests = []
        for step in self.actuator.transitions.get(ids[number], ()):
            effects = self.effects[self.numbers[step.to]]
            if not any(effect.least_rate for effect in effects):
                greatest = max(abs(end) for effect in effects for end in effect.powers)
                rests.append((greatest, self.numbers[step.to], step))
        return min(rests, key=lambda rest: rest[:2])[::-1][:2] if rests else None

    @pyscript_compile
    def _by_segment(self, number: int) -> tuple[BySegment, BySegment]:
        """Return, by segment, the part of each step in which a mode runs, and its factor times that part."""
        program, count = self.site.program, self.site.grid.count
        share, factor, effects = self.share[number], self.model.factor[number], self.effects[number]
        if factor is not None and number in self.early:
            program.require(share - factor, 0.0)
        if len(effects) == 1:
            return [share], [factor]
        if is_nothing(effects):
            return [None] * len(effects), [None] * len(effects)
        run = [program.variables(count, 0.0, 1.0) for _segment in effects]
        program.equate(linear.total(run, count), share)
        factors: BySegment = [None] * len(effects)
        if factor is not None:
            own_factors = [program.variables(count, 0.0, 1.0) for _segment in effects]
            program.equate(linear.total(own_factors, count), factor)
            for part, own_factor in zip(run, own_factors, strict=True):
                program.require(part - own_factor, 0.0)
            factors = [*own_factors]
        return [*run], factors

    @pyscript_compile
    def _output(self, number: int, name: str) -> list[linear.Expression]:
        """Return the rates or powers (kW) of a mode in each segment."""
        by_segment = []
        for run, factor, effect in zip(
            self.run[number], self.factor[number], self.effects[number], strict=True
        ):
            low, high = getattr(effect, name)
            parts = [run * low] if low else []
            if factor is not None and high != low:
                parts.append(factor * (high - low))
            by_segment.append(linear.total(parts, self.site.grid.count))
        return by_segment

    @pyscript_compile
    def _flows(self) -> None:
        """Sum the rates of filling and of emptying (kW), by segment."""
        program, count = self.site.program, self.site.grid.count
        filling, emptying, self.inflows = [], [], []
        for segment in range(len(self.storage.share)):
            of_segment = []
            for number, effects in enumerate(self.effects):
                low, high = sorted(effects[segment].rates)
                if not low and not high:
                    continue
                flow = self._output(number, "rates")[segment]
                of_segment.append(flow)
                if low >= 0:
                    filling.append(flow)
                elif high <= 0:
                    emptying.append(-flow)
                else:
                    more, less = program.variables(count, 0.0, high), program.variables(count, 0.0, -low)
                    program.equate(more - less, flow)
                    filling.append(more)
                    emptying.append(less)
            self.inflows.append(linear.total(of_segment, count))
        self.filling, self.emptying = linear.total(filling, count), linear.total(emptying, count)
        self.can_fill, self.can_empty = bool(filling), bool(emptying)
        if len(self.storage.share) > 1:
            for segment, share in enumerate(self.storage.share):
                runs = [part for run in self.run if (part := run[segment]) is not None]
                program.require(share - linear.total(runs, count), 0.0)

    @pyscript_compile
    def _pay(self) -> None:
        """Add the running costs, and a small cost of being in a mode that could have power."""
        program, hours = self.site.program, self.site.grid.hours
        for number, effects in enumerate(self.effects):
            for run, effect in zip(self.run[number], effects, strict=True):
                if run is not None and effect.cost:
                    program.pay(run * hours * effect.cost)
            if not is_nothing(effects):
                program.pay(self.active[number] * hours * PER_IDLE_HOUR)

    @pyscript_compile
    def greatest(self, direction: int) -> list[float]:
        """Return the greatest power (kW) of consumption (1) or production (-1) in each segment."""
        by_segment = zip(*self.effects, strict=True)
        return [
            max(0.0, *[direction * end for effect in effects for end in effect.powers])
            for effects in by_segment
        ]

    @pyscript_compile
    def stuck_after(self) -> tuple[linear.Expression, linear.Expression]:
        """Return the energy (kWh) of filling and emptying after the end, by modes that cannot be left."""
        filling = emptying = linear.constant([0.0])
        end = self.site.grid.edges[-1]
        for placement in self.model.switching.placements:
            effects = self.effects[placement.way.target]
            rate = max([effect.least_rate for effect in effects], key=abs)
            seconds = self._stuck_seconds(placement.way)
            if not rate or not seconds:
                continue
            hours = np.clip(placement.begins + seconds - end, 0.0, MAX_STUCK_SECONDS) / 3600
            if hours.any():
                if rate > 0:
                    filling = filling + (placement.taken * (hours * rate)).sum()
                else:
                    emptying = emptying - (placement.taken * (hours * rate)).sum()
        return filling, emptying

    @pyscript_compile
    def _stuck_seconds(self, way: switching.Way) -> float:
        """Return how long after a Way's begin its target can be left (s), 0 if never."""
        steps = self.actuator.transitions.get(list(self.numbers)[way.target], ())
        started = dict(way.starts)
        ends = [
            max([started.get(timer, 0.0) for timer in step.blocking_timers], default=0.0) for step in steps
        ]
        return min(ends, default=0.0)


Converter = _Converter


@pyscript_compile
def is_nothing(effects: Iterable[Effect]) -> bool:
    """Return whether a mode has no power, rate or cost."""
    return not any(any(effect.rates) or any(effect.powers) or effect.cost for effect in effects)


@pyscript_compile
def as_modelled(actuator: devices.Actuator, active: transitions.Active) -> devices.Actuator:
    """Return an actuator with its permitted modes and the present one, and transitions to the former."""
    modes = dict(actuator.modes)
    if active.mode is not None and active.mode not in modes:
        nothing = devices.Element(0.0, 0.0, (0.0, 0.0), (0.0, 0.0), 0.0)
        modes[active.mode] = devices.Mode(active.mode, "", (nothing,), (0.0,), True, False)
    ways = {
        origin: [transition for transition in listed if transition.to in actuator.modes]
        for origin, listed in actuator.transitions.items()
    }
    return replace(actuator, modes=modes, transitions=ways)


@dataclass(eq=False, repr=False)
class _StorageModel:
    """A device in the program of a site; makes the device's Plan of the solution."""

    site: sites.Site
    device: devices.Device
    state: devices.State
    terms: markets.StorageTerms

    @pyscript_compile
    def __post_init__(self) -> None:
        site, device, state = self.site, self.device, self.state
        energy_j, self.cycle_cost = self.terms.energy_per_fill_level_j, self.terms.cycle_cost
        self.fill_level_energy = fill_level_energy_of(device, energy_j)
        self.unit = self.fill_level_energy.energy / JOULES
        self.start, self.end = float(site.grid.edges[0]), float(site.grid.edges[-1])
        self.lines = [as_it_is(actuator, state) for actuator in device.actuators]
        self.first = devices.run(device, state.level, self.lines, state.moment, self.start).level
        bottom = min(device.floor, max(self.first, device.bottom))
        top = max(device.ceiling, min(self.first, device.top))
        self.levels = borders(device, bottom, top)
        self.storage = storages.Storage(
            site, self.of_level(self.first), [self.of_level(level) for level in self.levels]
        )
        self._aim()
        self._convert()
        self._flow()
        self._keep_room_at_borders()

    @pyscript_compile
    def of_level(self, level: float) -> float:
        """Return a fill level in kWh above the start of the storage's range."""
        return (level - self.device.bottom) * self.unit

    @pyscript_compile
    def _aim(self) -> None:
        """Add the targets at the edges within their time, or else at the next edge."""
        edges, storage = self.site.grid.edges[1:], self.storage
        self.lowest, self.highest = np.full(len(edges), np.nan), np.full(len(edges), np.nan)
        for start, end, low, high in self.device.targets:
            inside = (edges > start - MIN_SECONDS) & (edges < end + MIN_SECONDS)
            if not inside.any() and self.start < end <= self.end:
                inside[np.searchsorted(edges, end)] = True
            low, high = (min(max(self.of_level(level), storage.bottom), storage.top) for level in (low, high))
            if low > storage.bottom:
                self.lowest[inside] = np.fmax(self.lowest[inside], low)
            if high < storage.top:
                self.highest[inside] = np.fmin(self.highest[inside], high)
        storage.aim(self.lowest, self.highest)

    @pyscript_compile
    def _convert(self) -> None:
        """Add the actuators' modes."""
        device, storage = self.device, self.storage
        pairs = list(zip(self.levels[:-1], self.levels[1:], strict=True))
        self.leakage = [leakage_of(device, low, high, self.unit) for low, high in pairs]
        self.usage = self.site.grid.means(device.usage) * (self.unit * 3600)
        self.converters = []
        for described in device.actuators:
            active = self.state.actuators[described.id]
            actuator = as_modelled(described, active)
            if actuator.modes:
                effects = [
                    [effect(mode, low, high, self.unit) for low, high in pairs]
                    for mode in actuator.modes.values()
                ]
                self.converters.append(Converter(self.site, actuator, active, effects, storage))

    @pyscript_compile
    def _flow(self) -> None:
        """Balance the level with the rates, usage and leakage, and add the costs of moved energy."""
        site, storage = self.site, self.storage
        program, count, hours = site.program, site.grid.count, site.grid.hours
        inflows = []
        for segment, share in enumerate(storage.share):
            inflow = (
                linear.total([converter.inflows[segment] for converter in self.converters], count) * hours
            )
            lost = self.usage
            if len(storage.share) > 1:
                low, high = (self.of_level(level) for level in self.levels[segment : segment + 2])
                at_bottom, slope = self.leakage[segment]
                lost = lost + at_bottom + slope * (low + high) / 2
            inflows.append(inflow - share * (lost * hours))
        if (self.usage > 0).any():
            unserved = program.variables(count, 0.0, np.maximum(self.usage, 0.0) * hours)
            program.pay(unserved * site.priorities.range)
            inflows[0] = inflows[0] + unserved
        storage.flow(inflows, self.leakage[0] if len(storage.share) == 1 else (0.0, 0.0))
        self.power = linear.total([converter.power for converter in self.converters], count)
        site.add(self.power)
        filling = linear.total([converter.filling for converter in self.converters], count)
        emptying = linear.total([converter.emptying for converter in self.converters], count)
        sooner = 1.0 + (self.end - site.grid.starts) / (self.end - self.start)
        program.pay((filling + emptying) * (hours * (self.cycle_cost / 2 + PER_KWH * sooner)))
        if self._may_oppose():
            self._go_one_way(filling, emptying)
        stuck = [converter.stuck_after() for converter in self.converters]
        if stuck:
            storage.leave_room(*[linear.total(flows, 1) for flows in zip(*stuck, strict=True)])

    @pyscript_compile
    def _keep_room_at_borders(self) -> None:
        """Keep room within the site's limits for the change of power at a border within a step."""
        site = self.site
        for direction in (1, -1):
            if not site.is_limited(direction):
                continue
            for border, above in enumerate(self.storage.above):
                change = sum(
                    abs(np.diff(converter.greatest(direction)))[border] for converter in self.converters
                )
                if change > NEGLIGIBLE:
                    passes = site.program.variables(site.grid.count, 0.0, 1.0)
                    site.program.require(passes - (above[1:] - above[:-1]) * direction, 0.0)
                    site.exceed(direction, passes * float(change))

    @pyscript_compile
    def _may_oppose(self) -> bool:
        """Return whether one actuator can empty the storage while another fills it."""
        return any(
            filler.can_fill and emptier.can_empty
            for filler in self.converters
            for emptier in self.converters
            if filler is not emptier
        )

    @pyscript_compile
    def _go_one_way(self, filling: linear.Expression, emptying: linear.Expression) -> None:
        """Penalize emptying by one actuator while another one fills."""
        program, grid = self.site.program, self.site.grid
        most = [
            sum(
                max(
                    max(sign * end for part in effects for end in part.rates) for effects in converter.effects
                )
                for converter in self.converters
            )
            for sign in (1.0, -1.0)
        ]
        fills = program.variables(grid.count, 0.0, 1.0, whole=True)
        both = program.variables(grid.count)
        program.require(filling - fills * most[0] - both, upper=0.0)
        program.require(emptying + fills * most[1] - both, upper=most[1])
        program.pay(both * grid.hours * self.site.priorities.target)

    @pyscript_compile
    def keep_value(self) -> None:
        """Value the energy stored at the end at the cheapest price of charging it again.

        The value is at most what discharging it could save.
        """
        site, value = self.site, self.fill_level_energy
        load = np.broadcast_to(np.asarray(site.tariffs.load, float), (site.grid.count,))
        prices = np.where(load < 0, site.production_price, site.consumption_price)
        worth = max(float(prices.min()), 0.0) / value.charging + self.cycle_cost / 2
        if self.device.max_emptying_w:
            worth = min(worth, max(float(prices.max()) * value.discharging - self.cycle_cost / 2, 0.0))
        site.program.pay(self.storage.level[-1:] * -worth)
        self.value_per_kwh = worth

    @pyscript_compile
    def follow(self, schedule: Sequence[tuple[float, float, float]]) -> None:
        """Penalize deviations from the powers of a schedule (start, end, W), and from its level."""
        site, grid = self.site, self.site.grid
        price = site.priorities.schedule
        covered = grid.means([(start, end, 1.0) for start, end, _power in schedule])
        powers = (
            np.where(covered > NEGLIGIBLE, grid.means(schedule) / np.maximum(covered, NEGLIGIBLE), 0.0)
            / WATTS
        )
        load, most, least = (
            np.broadcast_to(np.asarray(values, float), (grid.count,))
            for values in (
                site.tariffs.load,
                site.tariffs.consumption_capacity,
                site.tariffs.production_capacity,
            )
        )
        ranges = self._ranges()
        bounds = min(low for low, _high in ranges), max(high for _low, high in ranges)
        hair = SAME_POWER * max(abs(end) for end in bounds)
        powers = np.clip(powers, *bounds)
        powers = np.clip(powers, np.minimum(-(least + load), 0.0), np.maximum(most - load, 0.0))
        if len(self.converters) == 1:
            [converter] = self.converters
            parts = [
                (sum(converter.powers[number]), converter.active[number] * powers)
                for number in range(len(converter.effects))
            ]
        else:
            parts = [(self.power, linear.constant(powers))]
        departures = [self._beyond(power - part) for power, part in parts]
        can_have = np.any([(powers > low - hair) & (powers < high + hair) for low, high in ranges], axis=0)
        sooner = 1.0 + EARLY_WEIGHT * (self.end - grid.starts) / (self.end - self.start)
        counts = np.where(can_have, sooner, MEAN_POWER_WEIGHT) * covered
        site.program.pay(linear.total(departures, grid.count) * (grid.hours * counts * price))
        levels, weights = self.levels_of(powers)
        weights = weights * (covered > MIN_COVERED_SHARE)
        swing = self.device.step_w / WATTS * max(float(grid.hours.max()), MIN_SWING_HOURS)
        span = self.storage.top - self.storage.bottom
        away = self._beyond(
            self.storage.reached - levels, swing / 2 * self.fill_level_energy.charging + SAME_LEVEL * span
        )
        per_hour = LEVEL_PER_HOUR * np.exp(-(grid.ends - self.start) / LEVEL_FADES_SECONDS)
        per_hour = per_hour + LEVEL_IN_ALL / float(grid.hours.sum())
        site.program.pay(away * (grid.hours * weights * (per_hour * price)))

    @pyscript_compile
    def _ranges(self) -> set[tuple[float, float]]:
        """Return the ranges of power (kW) that the actuators can have together."""
        ranges = {(0.0, 0.0)}
        for converter in self.converters:
            own = {
                (min(effect.powers), max(effect.powers))
                for effects in converter.effects
                for effect in effects
            }
            sums = {(low + first, high + last) for low, high in ranges for first, last in own}
            ranges = set(sorted(sums)[:MAX_RANGES])
        return ranges

    @pyscript_compile
    def _beyond(self, expression: linear.Expression, free: float = 0.0) -> linear.Expression:
        """Return by how much each function of an Expression exceeds `free`, in either direction."""
        if not len(expression.columns):
            return linear.constant(np.maximum(np.abs(expression.constant) - free, 0.0))
        beyond = self.site.program.variables(len(expression))
        self.site.program.require(beyond - expression, -free)
        self.site.program.require(beyond + expression, -free)
        return beyond

    @pyscript_compile
    def levels_of(self, powers: Array) -> tuple[Array, Array]:
        """Return the levels (kWh) that a schedule's powers (kW) lead to at each edge, and their weights.

        The levels are kept within the range and the targets; up to a target that the powers miss, the weight
        is 0.
        """
        keeps, levels, missed = self.storage, [], 0
        hair, stored = SAME_LEVEL * (keeps.top - keeps.bottom), self.of_level(self.first)
        hours = arrays.as_list(self.site.grid.hours)
        for place, (power, length) in enumerate(zip(arrays.as_list(powers), hours, strict=True)):
            stored = self._stored_after(stored, power, float(self.usage[place]), length)
            low, high = np.fmax(self.lowest[place], keeps.bottom), np.fmin(self.highest[place], keeps.top)
            if stored < self.lowest[place] - hair or stored > self.highest[place] + hair:
                missed = place + 1
            stored = min(max(stored, float(low)), float(high))
            levels.append(stored)
        weights = np.ones(len(levels))
        weights[:missed] = 0.0
        return np.array(levels), weights

    @pyscript_compile
    def _stored_after(self, stored: float, power: float, usage: float, hours: float) -> float:
        """Return the level (kWh) after some hours at a power (kW) and a usage (kW)."""
        borders = arrays.as_list(self.storage.borders)
        last = len(borders) - 2
        segment = min(max(int(np.searchsorted(borders, stored, "right")) - 1, 0), last)
        for _passed in borders:
            lost, more = self.leakage[segment]
            middle = stored if not last else (borders[segment] + borders[segment + 1]) / 2
            rate = self._rate_for(power, segment) - usage - lost - more * middle
            end = borders[segment + (rate > 0)]
            is_inside = segment == (last if rate > 0 else 0) or not rate
            if is_inside or (end - stored) / rate >= hours:
                return stored + rate * hours
            hours -= (end - stored) / rate
            stored, segment = end, segment + (1 if rate > 0 else -1)
        return stored

    @pyscript_compile
    def _rate_for(self, power: float, segment: int) -> float:
        """Return the rate (kW) of a power in a segment, with the most efficient actuators."""
        sign, left, total = (1 if power > 0 else -1), abs(power), 0.0
        for converter in self.converters:
            ends = [
                (sign * watts, sign * rate)
                for effects in converter.effects
                for rate, watts in zip(effects[segment].rates, effects[segment].powers, strict=True)
                if sign * rate > 0 and sign * watts > 0
            ]
            if ends and left > 0:
                most, rate = max(ends)
                taken = min(left, most)
                total, left = total + sign * rate * taken / most, left - taken
        return total

    @pyscript_compile
    def plan(self, solution: linear.Solution, market: Sequence[markets.Interval]) -> frbc_plan.Plan:
        """Return the plan of a solution, with its cost in a market."""
        events_by_converter = [
            events_of(converter, solution, self.site.grid, self.storage) for converter in self.converters
        ]
        lines, by_actuator = [], {}
        for converter, events in zip(self.converters, events_by_converter, strict=True):
            by_actuator[converter.actuator.id] = events
        for actuator, line in zip(self.device.actuators, self.lines, strict=True):
            lines.append([*line, *settings_of(actuator, by_actuator.get(actuator.id, ()))])
        run = devices.run(self.device, self.state.level, lines, self.state.moment, self.end)
        plan = frbc_plan.Plan(self.state.moment, self.end, [], run.pieces, [])
        changes = []
        for actuator in self.device.actuators:
            events = list(by_actuator.get(actuator.id, ()))
            events += resting(actuator, self.state.actuators[actuator.id], events, self.end, run.level)
            changes += [change_of(actuator, event, plan) for event in events]
        plan.changes = without_repeats(self.device, self.state, changes)
        plan.missed = frbc_plan.missed_targets(self.device, plan)
        plan.other_cost = self._other_cost(solution)
        plan.cost = self._electricity_cost(plan, market) + plan.other_cost
        plan.gained_kwh = self.of_level(run.level) - self.of_level(self.state.level)
        plan.value_per_kwh = self.value_per_kwh
        return plan

    @pyscript_compile
    def _electricity_cost(self, plan: frbc_plan.Plan, market: Sequence[markets.Interval]) -> float:
        """Return the electricity cost of a plan in a market (currency)."""
        cost, place = 0.0, 0
        for interval in market:
            while place < len(plan.pieces) and plan.pieces[place].end <= interval.start:
                place += 1
            at = place
            while at < len(plan.pieces) and plan.pieces[at].start < interval.end:
                piece = plan.pieces[at]
                seconds = min(piece.end, interval.end) - max(piece.start, interval.start)
                if seconds > 0:
                    cost += markets.cost(interval, piece.power_w, seconds)
                at += 1
        return cost

    @pyscript_compile
    def _other_cost(self, solution: linear.Solution) -> float:
        """Return the cost of running and of transitions (currency)."""
        cost = 0.0
        for converter in self.converters:
            for runs, effects in zip(converter.run, converter.effects, strict=True):
                for run, part in zip(runs, effects, strict=True):
                    if run is not None and part.cost:
                        cost += float((solution.of(run) * self.site.grid.hours).sum()) * part.cost
            cost += sum(move.cost for move in converter.model.moves(solution))
        return cost


StorageModel = _StorageModel


@pyscript_compile
def add(
    site: sites.Site,
    device: devices.Device,
    state: devices.State,
    schedule: Sequence[tuple[float, float, float]] | None,
    _tariffs: modes_of.Tariffs,
    storage: markets.StorageTerms = markets.AS_DESCRIBED,
) -> StorageModel:
    """Add a device to the program of a site.

    `schedule` has the powers (start, end, W) to follow, or is None.
    """
    part = StorageModel(site, device, state, storage)
    part.keep_value()
    if schedule is not None:
        part.follow(schedule)
    return part


@dataclass(frozen=True, kw_only=True)
class _Event:
    """A change of an actuator at `moment`, to a mode and factor that are reached at `ready`."""

    moment: float
    ready: float
    mode: str
    factor: float
    timers: transitions.Timers


Event = _Event


@pyscript_compile
def events_of(
    converter: Converter, solution: linear.Solution, grid: grids.TimeGrid, storage: storages.Storage
) -> list[Event]:
    """Return the Events of an actuator by a solution, in order."""
    actuator, active = converter.actuator, converter.model.active
    modes = np.argmax([solution.of(active_steps) for active_steps in converter.active], axis=0).tolist()
    ids, factors = list(actuator.modes), factors_of(converter, solution, grid, storage, modes)
    due: list[tuple[float, int, int, modes_of.Move | float]] = [
        (move.start, 0, 0, move) for move in moves_of(converter, solution, grid, modes)
    ]
    due += [(begin, 1, step, value) for step, listed in enumerate(factors) for begin, value in listed]
    events, timers, mode, factor, ready = [], dict(active.timers), active.mode, active.factor, active.ready
    for moment, _is_factor, step, value in sorted(due, key=lambda item: item[:3]):
        if isinstance(value, modes_of.Move):
            mode, ready, timers = value.to, value.end, dict(value.timers)
            factor = arrival_factor(actuator, factors, modes, grid, value)
        elif (
            mode is None
            or mode != ids[modes[step]]
            or actuator.modes[mode].is_fixed
            or abs(value - factor) <= SAME_FACTOR
        ):
            continue
        else:
            factor, moment = value, max(moment, ready)
            ready = moment
            if moment >= grid.edges[step + 1]:
                continue
        events.append(Event(moment=moment, ready=ready, mode=mode, factor=factor, timers=timers))
    return without_detours(actuator, active, events)


@pyscript_compile
def without_detours(
    actuator: devices.Actuator, active: transitions.Active, events: Iterable[Event]
) -> list[Event]:
    """Remove pairs of Events that go from one idle mode to another and back."""
    kept: list[Event] = []
    for event in events:
        before = kept[-2] if len(kept) > 1 else active
        if (
            kept
            and event.mode == before.mode
            and all(does_nothing(actuator, setting) for setting in (before, kept[-1], event))
        ):
            kept.pop()
        else:
            kept.append(event)
    return kept


@pyscript_compile
def does_nothing(actuator: devices.Actuator, setting: Event | transitions.Active) -> bool:
    """Return whether the mode of an Event or Active has no power or rate at its factor."""
    mode = transitions.mode_of(actuator.modes, setting.mode)
    return mode is not None and not any(
        devices.power_of(element, setting.factor) or devices.rate_of(element, setting.factor)
        for element in mode.elements
    )


@pyscript_compile
def arrival_factor(
    actuator: devices.Actuator,
    factors: FactorsByStep,
    modes: Sequence[int],
    grid: grids.TimeGrid,
    move: modes_of.Move,
) -> float:
    """Return the factor with which a Move reaches its mode; the mildest if the mode is only passed."""
    mode = actuator.modes[move.to]
    if mode.is_fixed:
        return devices.FIXED_FACTOR
    number = list(actuator.modes).index(move.to)
    first = grid.step_at(move.start)
    for step in range(first, min(grid.step_at(move.end) + 2, len(modes))):
        if modes[step] == number and factors[step]:
            return factors[step][0][1]
    return devices.mildest(mode, mode.elements[0].bottom)


@pyscript_compile
def moves_of(
    converter: Converter, solution: linear.Solution, grid: grids.TimeGrid, modes: Sequence[int]
) -> list[modes_of.Move]:
    """Return the Moves of an actuator, including those within a step (see `_stop_early`)."""
    moves = converter.model.moves(solution)
    for number, early in converter.early.items():
        for step in map(int, np.nonzero(solution.of(early) * grid.seconds > MIN_SECONDS)[0]):
            if modes[step] != number:
                continue
            begin, end = grid.edges[step], grid.edges[step + 1]
            sooner = float(min(solution.of(early)[step] * grid.seconds[step], end - begin))
            rest = converter.rests[number]
            leaving = [
                place
                for place, move in enumerate(moves)
                if move.to == rest.to
                and begin + SAME_MOMENT_SECONDS < move.end
                and move.start < end + SAME_MOMENT_SECONDS
            ]
            place = leaving[-1] if leaving else None
            if place is None and step == len(modes) - 1:
                durations = converter.actuator.durations
                timers = dict(moves[-1].timers if moves else converter.model.active.timers)
                timers |= {timer: end + durations[timer] for timer in rest.start_timers}
                start = float(end - sooner)
                moves.append(
                    modes_of.Move(start, start + rest.duration, rest.to, tuple(timers.items()), rest.cost)
                )
            elif place is not None:
                move = moves[place]
                start = float(max(move.start - sooner, begin))
                moves[place] = replace(move, start=start, end=start + move.end - move.start)
    return sorted(moves, key=lambda move: move.start)


@pyscript_compile
def factors_of(
    converter: Converter,
    solution: linear.Solution,
    grid: grids.TimeGrid,
    storage: storages.Storage,
    modes: Sequence[int],
) -> FactorsByStep:
    """Return the factors of the active mode by step; several in a step in which the segment changes."""
    by_step: FactorsByStep = [[] for _step in modes]
    rises = np.diff(solution.of(storage.level)) >= 0
    for number, (effects, runs, factors) in enumerate(
        zip(converter.effects, converter.run, converter.factor, strict=True)
    ):
        if all(factor is None for factor in factors):
            continue
        parts = [
            (solution.of(run), solution.of(factor))
            for run, factor in zip(runs, factors, strict=True)
            if run is not None and factor is not None
        ]
        for step in [place for place, mode in enumerate(modes) if mode == number]:
            passed = [
                (effects[segment], float(run[step]) * grid.seconds[step], float(factor[step] / run[step]))
                for segment, (run, factor) in enumerate(parts)
                if run[step] * grid.seconds[step] > MIN_SECONDS
            ]
            by_step[step] = evened(passed if rises[step] else passed[::-1], float(grid.edges[step]))
    return by_step


@pyscript_compile
def evened(passed: Sequence[tuple[Effect, float, float]], begin: float) -> list[tuple[float, float]]:
    """Return (moment, factor) for each segment passed in a step, with a power as constant as possible.

    `passed` has the Effect in a segment, the seconds in it by the solution, and the factor there.
    """
    if len(passed) == 1:
        return [(begin, clipped(passed[0][2]))]
    energy = sum(at(effect.powers, factor) * seconds for effect, seconds, factor in passed)
    power = energy / sum(seconds for _each, seconds, _factor in passed) if passed else 0.0
    for _try in passed:
        reached = [
            (min(max(power, min(effect.powers)), max(effect.powers)), seconds)
            for effect, seconds, _f in passed
        ]
        missing_energy = energy - sum(value * seconds for value, seconds in reached)
        free = sum(seconds for value, seconds in reached if value == power)
        power += missing_energy / free if free else 0.0
    moment = begin
    settings: list[tuple[float, float]] = []
    for effect, seconds, factor in passed:
        low, high = effect.powers
        value = clipped((power - low) / (high - low)) if high != low else clipped(factor)
        if not settings or abs(settings[-1][1] - value) > SAME_FACTOR:
            settings.append((moment, value))
        before, after = at(effect.rates, factor), at(effect.rates, value)
        moment += seconds * min(max(before / after, 0.1), 10.0) if before * after > 0 else seconds
    return [
        setting for setting in settings if setting[0] < begin + sum(seconds for _e, seconds, _f in passed)
    ]


@pyscript_compile
def at(ends: tuple[float, float], factor: float) -> float:
    """Interpolate between the values at a factor of 0 and of 1."""
    return ends[0] + factor * (ends[1] - ends[0])


@pyscript_compile
def clipped(factor: float) -> float:
    """Return a factor between 0 and 1, without rounding errors of the solver."""
    return float(min(max(round(factor, 6), 0.0), 1.0))


@pyscript_compile
def as_it_is(actuator: devices.Actuator, state: devices.State) -> list[devices.Setting]:
    """Return the Settings of an actuator without instructions; a transition under way is finished."""
    active = state.actuators[actuator.id]
    mode = transitions.mode_of(actuator.modes, active.mode)
    if active.ready <= state.moment:
        return [devices.Setting(state.moment, mode, active.factor)]
    ready = devices.Setting(active.ready, mode, active.factor)
    return [devices.Setting(state.moment, None, 0.0), ready]


@pyscript_compile
def settings_of(actuator: devices.Actuator, events: Iterable[Event]) -> list[devices.Setting]:
    """Return the Settings of Events, in order."""
    settings = []
    for event in events:
        if event.ready > event.moment:
            settings.append(devices.Setting(event.moment, None, 0.0))
        settings.append(devices.Setting(event.ready, actuator.modes[event.mode], event.factor))
    return settings


@pyscript_compile
def resting(
    actuator: devices.Actuator, active: transitions.Active, events: Sequence[Event], end: float, level: float
) -> list[Event]:
    """Return the Events that bring an actuator to rest after a plan, in the safest reachable mode.

    That has the smallest rate, then the smallest range of rates, then the smallest power, then the shortest
    route.
    """
    now = active
    if events:
        last = events[-1]
        now = transitions.Active(last.mode, last.factor, last.ready, last.timers)
    best = None
    for mode_id, route in routes_from(actuator, now, end).items():
        mode = actuator.modes.get(mode_id)
        if mode is None:
            continue
        factor = devices.mildest(mode, level)
        element = devices.element_at(mode, level)
        rates, power = [abs(rate) for rate in element.rates], abs(devices.power_of(element, factor))
        key = abs(devices.rate_of(element, factor)), max(rates), power, len(route.steps)
        if best is None or key < best[0]:
            best = key, mode, factor, route
    if best is None:
        return []
    _key, mode, factor, route = best
    if not route.steps:
        moment = max(end, now.ready)
        return [Event(moment=moment, ready=moment, mode=mode.id, factor=factor, timers=now.timers)]
    resting_events, timers, origin = [], now.timers, now.mode
    for step in route.steps:
        passed = actuator.modes[step.to]
        timers = timers | started(actuator, origin, step)
        value = factor if passed is mode else devices.mildest(passed, level)
        resting_events.append(
            Event(moment=max(step.start, end), ready=step.end, mode=step.to, factor=value, timers=timers)
        )
        origin = step.to
    return [event for event in resting_events if event.moment < end + MAX_STUCK_SECONDS]


@pyscript_compile
def routes_from(
    actuator: devices.Actuator, active: transitions.Active, moment: float
) -> dict[str, transitions.Route]:
    """Return the routes from an Active; from an unknown mode, all modes are reached at once."""
    if active.mode is None:
        return {
            mode_id: transitions.Route(
                (transitions.Step(moment, moment, mode_id),), moment, 0.0, active.timers
            )
            for mode_id in actuator.modes
        }
    return transitions.routes(
        actuator.transitions,
        actuator.durations,
        actuator.modes,
        active.mode,
        max(moment, active.ready),
        active.timers,
    )


@pyscript_compile
def started(actuator: devices.Actuator, origin: str | None, step: transitions.Step) -> transitions.Timers:
    """Return when the timers finish that a Step starts."""
    for transition in transitions.leaving(actuator, origin):
        if transition.to == step.to:
            return {timer: step.start + actuator.durations[timer] for timer in transition.start_timers}
    return {}


@pyscript_compile
def change_of(actuator: devices.Actuator, event: Event, plan: frbc_plan.Plan) -> transitions.Change:
    """Return the Change of an Event."""
    element = devices.element_at(actuator.modes[event.mode], frbc_plan.level_at(plan, event.moment))
    power = devices.power_of(element, event.factor)
    active = transitions.Active(event.mode, event.factor, event.ready, event.timers)
    return transitions.Change(event.moment, actuator.id, event.mode, event.factor, power, active)


@pyscript_compile
def without_repeats(
    device: devices.Device, state: devices.State, changes: Iterable[transitions.Change]
) -> list[transitions.Change]:
    """Return Changes in order of their moments, without those to the present mode and factor."""
    kept = []
    last: dict[str | None, tuple[str | None, float]] = {}
    for actuator in device.actuators:
        active = state.actuators[actuator.id]
        if mode := transitions.mode_of(actuator.modes, active.mode):
            last[actuator.id] = mode.id, devices.FIXED_FACTOR if mode.is_fixed else active.factor
    for change in sorted(changes, key=lambda change: change.moment):
        mode_id, factor = last.get(change.actuator, (None, 0.0))
        if mode_id != change.mode or abs(factor - change.factor) > SAME_FACTOR:
            last[change.actuator] = change.mode, change.factor
            kept.append(change)
    return kept


MAX_LEAKAGE_EXPONENT = 10.0
"""A leakage that leaves exp(-10) of the stored energy after a step counts as all of it."""
MAX_USAGE_SHARE = 0.98
"""A usage may take this part of the energy available at full power, so that a schedule exists."""


@pyscript_compile
def flex_model(
    device: devices.Device,
    state: devices.State,
    sensors: base.PlanningSensors,
    window: base.PlanningWindow,
) -> flexible_devices.Storage:
    """Return the flex-model of a device: a Storage.

    Powers of the first interval, of which only a part is left, are means over all of it; but not with
    operation modes, which are asked for where the power has steps.
    """
    value = fill_level_energy_of(device, sensors.energy)
    start, step, end = window.start, window.step, window.end
    energy = value.energy / 3600
    span = device.top - device.bottom
    max_filling_w, max_emptying_w = device.max_filling_w, device.max_emptying_w
    modes = power_ranges(device) if window.with_modes else []
    left = 1.0 if modes else window.left
    keeps = storage_efficiency(device, step)

    def of_level(level: float) -> float:
        return min(max(level - device.bottom, 0.0), span) * energy

    wishes = [
        (max(begin // step * step, start), min(-(-until // step) * step, end), lowest, highest)
        for begin, until, lowest, highest in device.targets
        if until > start and begin < end
    ]
    soc = max(state.level - device.bottom, 0.0) * energy
    used = soc_usage(device, value.energy, state.moment, start, step, end)
    gain = min(max_filling_w, window.share) * value.charging * step / 3600
    return flexible_devices.Storage(
        power_sensor=sensors.power_sensor,
        soc_sensor=sensors.soc_sensor,
        soc_at_start=soc,
        soc_min=0.0,
        soc_max=span * energy,
        soc_minima=[
            flexible_devices.SocEvent(plans.moment(begin), plans.moment(until), of_level(lowest))
            for begin, until, lowest, _highest in wishes
            if lowest > device.bottom
        ],
        soc_maxima=[
            flexible_devices.SocEvent(plans.moment(begin), plans.moment(until), of_level(highest))
            for begin, until, _lowest, highest in wishes
            if highest < device.top
        ],
        power_capacity=max(max_filling_w, max_emptying_w),
        charging_efficiency=value.charging,
        discharging_efficiency=value.discharging,
        storage_efficiency=keeps ** (sensors.resolution / step),
        consumption_capacity=less_at_first(max_filling_w, left, start, step, end),
        production_capacity=less_at_first(max_emptying_w, left, start, step, end),
        soc_usage=flexible_devices.as_spans(
            coverable(used, soc, gain, gain * left, keeps, span * energy, step), start, step
        ),
        operation_modes=modes,
    )


@pyscript_compile
def less_at_first(
    power: float, left: float, start: float, step: float, end: float
) -> float | list[flexible_devices.PowerSpan]:
    """Return a power (W), or PowerSpans if only the part `left` of the first interval is left."""
    if left >= 1.0 or not power:
        return power
    return [
        flexible_devices.PowerSpan(plans.moment(start), plans.moment(start + step), power * left),
        flexible_devices.PowerSpan(plans.moment(start + step), plans.moment(end), power),
    ]


@pyscript_compile
def storage_efficiency(device: devices.Device, step: float) -> float:
    """Return the storage-efficiency of FlexMeasures: the share of stored energy left after a step (s).

    S2 has a leakage rate by range of fill levels: the share is the least-squares fit over the whole range.
    """
    product = square = 0.0
    for bottom, top, rate in device.leakage:
        low, high = (min(max(level, device.bottom), device.top) - device.bottom for level in (bottom, top))
        product += rate * (high**2 - low**2) / 2
        square += (high**3 - low**3) / 3
    return math.exp(-min(max(product / square * step, 0.0), MAX_LEAKAGE_EXPONENT)) if square > 0 else 1.0


@pyscript_compile
def soc_usage(
    device: devices.Device, energy: float, now: float, start: float, step: float, end: float
) -> list[float]:
    """Return the mean power (W) of the usage forecast by step, from `now` on."""
    powers = []
    coming = [span for span in device.usage if span[1] > now and span[0] < end and span[2]]
    for place in range(round((end - start) / step) if coming else 0):
        begin = max(start + place * step, now)
        until = start + (place + 1) * step
        inside = [
            (min(until, last) - max(begin, first)) * rate
            for first, last, rate in coming
            if first < until and last > begin
        ]
        powers.append(sum(inside) / step * energy)
    return powers


@pyscript_compile
def coverable(
    powers: Iterable[float],
    soc: float,
    gain: float,
    first_gain: float,
    keeps: float,
    full: float,
    step: float,
) -> list[float]:
    """Return the usage (W) limited to what the device can serve, since more has no feasible schedule.

    `soc` is the state of charge (Wh) now, `gain` the energy (Wh) that a step at full power adds.
    """
    hours = step / 3600
    served: list[float] = []
    for power in powers:
        most = soc * keeps + (gain if served else first_gain)
        taken = min(power, MAX_USAGE_SHARE * most / hours)
        soc = min(most - taken * hours, full)
        served.append(taken)
    return served


@pyscript_compile
def power_ranges(device: devices.Device) -> list[tuple[float, float]]:
    """Return the ranges of power of a device whose power has steps, else nothing.

    That is so for one actuator with a gap between its powers; several share the power among them.
    """
    if len(device.actuators) != 1 or device.step_w < plans.MIN_POWER_W:
        return []
    middle = (device.bottom + device.top) / 2
    elements = [devices.element_at(mode, middle) for mode in device.actuators[0].modes.values()]
    return sorted({(min(element.powers), max(element.powers)) for element in elements})
