"""A device under demand driven based control, as a part of the site model: its supply meets the demand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import flexmeasures_cem.control_types.ddbc.device as devices
import flexmeasures_cem.control_types.operation_modes.model as operation_modes
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.site_part as site_parts
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.priorities as priorities
import flexmeasures_cem.optimisation.site as sites
from flexmeasures_cem.optimisation.arrays import Floats, as_list

MIN_SHORTFALL_FACTOR, MAX_SHORTFALL_FACTOR = 100.0, 20_000.0
"""What a unit of supply too little costs, in multiples of what one costs at most: as much as leaves no less
for the site's limit. One too much costs the geometric mean of both."""
MIN_SUPPLY_SHARE = 0.01
"""From which part of the greatest supply or demand on a supply shows what a unit of it costs."""
STARTS_PER_HOUR = 4.0
"""How often in an hour the dearest transition is counted for what a unit of supply costs."""
MISSED_SHARE = 1e-6
"""Which part of the greatest supply or demand counts as missed."""
MIN_SECONDS_BETWEEN_CHANGES = 60.0
"""How much time there is at least between changes that follow the demand."""
LEAD_SECONDS = 2.0
"""How long after the present the first change can be."""


@dataclass(eq=False, repr=False)
class _DemandPart:
    """A device in a Site, whose actuators' supply is the `demand` (the mean rate of each step)."""

    site: sites.Site
    device: devices.Device
    state: modes.State
    tariffs: markets.Tariffs

    @pyscript_compile
    def __post_init__(self) -> None:
        site, device = self.site, self.device
        self.part = site_parts.SitePart(site, device.actuators, self.state, self.tariffs, is_momentary=True)
        device.present_until = min(device.present_until, float(site.grid.edges[1]))
        steps = zip(as_list(site.grid.starts), as_list(site.grid.ends), strict=True)
        self.demand: Floats = np.array(
            [device.demand(start, end, start < device.present_until) for start, end in steps]
        )
        self._meet_demand()

    @property
    @pyscript_compile
    def all_modes(self) -> list[modes.Mode]:
        """The modes of all actuators."""
        return [mode for actuator in self.part.possible for mode in actuator.modes.values()]

    @pyscript_compile
    def _meet_demand(self) -> None:
        """Have the supply be the demand at every moment, or as near to it as can be."""
        program, grid, models = self.site.program, self.site.grid, self.part.models
        supplies = [[mode.supply for mode in actuator.modes.values()] for actuator in self.part.possible]
        supply = linear.total(
            [model.momentary_output(ends) for model, ends in zip(models, supplies, strict=True)], grid.count
        )
        shortfall, surplus = program.variables(grid.count), program.variables(grid.count)
        program.equate(supply + shortfall - surplus, self.demand)
        shortfall_cost, surplus_cost = self._violation_costs()
        program.pay((shortfall * shortfall_cost + surplus * surplus_cost) * grid.hours)
        for model, ends in zip(models, supplies, strict=True):
            for lost, parts in model.losses(ends):
                [where] = np.nonzero(parts)
                missing = program.variables(len(where))
                program.require((surplus - lost)[where] + missing, 0.0)
                program.pay(missing * (shortfall_cost * grid.hours * parts)[where])

    @pyscript_compile
    def _violation_costs(self) -> tuple[float, float]:
        """Return what a unit of supply too little, and too much, costs for an hour (currency)."""
        unit_cost, factor, tariffs = self._unit_cost(), MAX_SHORTFALL_FACTOR, self.site.tariffs
        if np.isfinite([np.min(tariffs.consumption_capacity), np.min(tariffs.production_capacity)]).any():
            factor = self.site.priorities.site_limit / (2.0 * self._max_supply_per_kw() * unit_cost)
        factor = min(max(factor, MIN_SHORTFALL_FACTOR), MAX_SHORTFALL_FACTOR)
        return unit_cost * factor, unit_cost * math.sqrt(factor)

    @pyscript_compile
    def _max_supply_per_kw(self) -> float:
        """Return how much supply a kW can bring at most."""
        settings = [pair for mode in self.all_modes for pair in zip(mode.powers, mode.supply, strict=True)]
        settings += [
            (mode.powers[1] - mode.powers[0], mode.supply[1] - mode.supply[0]) for mode in self.all_modes
        ]
        per_watt = [abs(supply / power) for power, supply in settings if power and supply]
        return max(per_watt, default=1.0) * operation_modes.WATTS

    @pyscript_compile
    def _unit_cost(self) -> float:
        """Return what supplying a unit for an hour costs at most (currency)."""
        site, scale = self.site, self.device.scale
        price = max(np.abs([site.consumption_price, site.production_price]).max(), priorities.MIN_PRICE)
        costs = [priorities.MIN_PRICE / max(scale, 1.0)]
        for actuator in self.part.possible:
            listed = [step.cost for steps in actuator.transitions.values() for step in steps]
            starts_cost = STARTS_PER_HOUR * max(listed, default=0.0)
            for mode in actuator.modes.values():
                other_costs = modes.other_cost(mode, self.tariffs)
                for power, other_cost, supply in zip(mode.powers, other_costs, mode.supply, strict=True):
                    if abs(supply) > MIN_SUPPLY_SHARE * scale:
                        hourly = abs(power) / operation_modes.WATTS * price + abs(other_cost)
                        costs.append((hourly + starts_cost) / abs(supply))
        return float(max(costs))

    @pyscript_compile
    def plan(self, solution: linear.Solution, market: Sequence[markets.Interval]) -> plans.Plan:
        """Return the Plan of a solution in a market, with what is Missed of the demand."""
        plan, pieces = self.part.plan_and_pieces(solution, market)
        plan.missed = self._missed(pieces)
        return plan

    @pyscript_compile
    def _missed(self, pieces: Sequence[operation_modes.Piece]) -> list[plans.Missed]:
        """Return what is Missed of the demand: the worst of each time in which the supply stays below."""
        missed: list[plans.Missed] = []
        worst, begin, end = 0.0, 0.0, -math.inf
        for piece in pieces:
            demand = float(self.demand[self.site.grid.step_at(piece.start)])
            settings = operation_modes.settings_of(self.part.models, piece)
            supply = sum(modes.at(mode.supply, factor) for mode, factor in settings)
            if demand - supply <= MISSED_SHARE * self.device.scale:
                continue
            if piece.start != end:
                worst, begin = 0.0, piece.start
                missed.append(plans.Missed(begin, demand, supply))
            if demand - supply > worst:
                worst = demand - supply
                missed[-1] = plans.Missed(begin, demand, supply)
            end = piece.end
        return missed


DemandPart = _DemandPart


@pyscript_compile
def grid_edges(device: devices.Device, state: modes.State) -> list[float]:
    """Return moments (s since 1970) at which an edge of the grid helps.

    These are when actuators can go on from what they do, when one is there that begins at once, so that
    others can make room then, and when the demand changes.
    """
    actives = [state.actuators[actuator.id] for actuator in device.actuators]
    begin = state.moment + LEAD_SECONDS
    durations = {
        step.duration
        for actuator in device.actuators
        for steps in actuator.transitions.values()
        for step in steps
    }
    arrivals = sorted({begin + duration for duration in durations if duration})
    edges = [*operation_modes.cuts(device.actuators, actives), *arrivals]
    return sorted({*edges[: operation_modes.MAX_CUTS], *demand_edges(device, begin)})


@pyscript_compile
def demand_edges(device: devices.Device, begin: float) -> list[float]:
    """Return when the demand changes, to the full minute, a minute after `begin` at the earliest."""
    ends = [*device.starts[:1], *[end for _start, end, _rate in device.forecast]]
    rates = [device.usual, *[rate for _start, _end, rate in device.forecast], device.usual]
    edges = set()
    for end, before, after in zip(ends, rates, rates[1:], strict=False):
        moment = end // MIN_SECONDS_BETWEEN_CHANGES * MIN_SECONDS_BETWEEN_CHANGES
        if before != after and moment >= begin + MIN_SECONDS_BETWEEN_CHANGES:
            edges.add(moment)
    return sorted(edges)


@pyscript_compile
def add_to_site(
    site: sites.Site,
    device: devices.Device,
    state: modes.State,
    _schedule: Sequence[tuple[float, float, float]] | None,
    tariffs: markets.Tariffs,
    _storage_terms: markets.StorageTerms = markets.AS_DESCRIBED,
) -> DemandPart:
    """Add a device to a Site; it follows no schedule, and has no storage."""
    return DemandPart(site, device, state, tariffs)
