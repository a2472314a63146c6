"""A device under demand driven based control, as a part of the site model: its supply meets the demand."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import flexmeasures_cem.control_types.operation_modes.model as operation_modes
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.priorities as priorities

MIN_SHORTFALL, MAX_SHORTFALL = 100.0, 20_000.0
"""What a unit of supply too little costs, in multiples of what one costs at most: as much as leaves no less
for the site's limit. One too much costs the geometric mean of both."""
SMALL_SUPPLY = 0.01
"""Which part of the greatest supply or demand is too small to tell what a unit costs."""
STARTS_PER_HOUR = 4.0
"""How often in an hour the dearest transition is counted for what a unit of supply costs."""
FINEST_SECONDS = 60.0
"""How much time there is at least between changes that follow the demand."""
LEAD_SECONDS = 2.0
"""How long after the present the first change can be."""
NEARLY = 1e-6
"""Which part of the greatest supply or demand counts as nothing."""


@dataclass(eq=False, repr=False)
class _Part:
    """A device in a Site: its power (kW) there, and its Plan of a solution."""

    site: Any
    device: Any
    state: Any
    tariffs: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        site, device, state, tariffs = self.site, self.device, self.state, self.tariffs
        self.models = []
        for each in device.actuators:
            active = state.actuators[each.id]
            actuator = modes.as_it_is(each, active)
            idle = operation_modes.idle(actuator)
            self.models.append(operation_modes.ActuatorModel(site, actuator, active, idle, is_momentary=True))
        self.power = linear.total(
            [operation_modes.priced(each, tariffs) for each in self.models], site.grid.count
        )
        site.add(self.power)
        device.present_until = min(device.present_until, float(site.grid.edges[1]))
        until = device.present_until
        steps = zip(site.grid.starts.tolist(), site.grid.ends.tolist(), strict=True)
        self.demand = np.array([device.demand(start, end, start < until) for start, end in steps])
        self._meet_demand()

    @pyscript_compile
    def _meet_demand(self):
        """Have the supply be the demand at every moment, or as near to it as can be."""
        program, grid = self.site.program, self.site.grid
        supplies = [[mode.supply for mode in each.actuator.modes.values()] for each in self.models]
        supply = linear.total(
            [each.momentary_output(ends) for each, ends in zip(self.models, supplies, strict=True)],
            grid.count,
        )
        shortfall, surplus = program.variables(grid.count), program.variables(grid.count)
        program.equate(supply + shortfall - surplus, self.demand)
        shortfall_cost, surplus_cost = self._violation_costs()
        program.pay((shortfall * shortfall_cost + surplus * surplus_cost) * grid.hours)
        for model, ends in zip(self.models, supplies, strict=True):
            for lost, parts in model.losses(ends):
                [where] = np.nonzero(parts)
                missing = program.variables(len(where))
                program.require((surplus - lost)[where] + missing, 0.0)
                program.pay(missing * (shortfall_cost * grid.hours * parts)[where])

    @pyscript_compile
    def _violation_costs(self):
        """Return what a unit of supply too little, and too much, costs for an hour (currency)."""
        unit, times, tariffs = self._unit_cost(), MAX_SHORTFALL, self.site.tariffs
        if np.isfinite([np.min(tariffs.consumption_capacity), np.min(tariffs.production_capacity)]).any():
            times = self.site.priorities.site_limit / (2.0 * self._most_for_a_kilowatt() * unit)
        times = min(max(times, MIN_SHORTFALL), MAX_SHORTFALL)
        return unit * times, unit * math.sqrt(times)

    @pyscript_compile
    def _most_for_a_kilowatt(self):
        """Return how much supply a kW can bring at most."""
        listed = [mode for model in self.models for mode in model.actuator.modes.values()]
        settings = [pair for mode in listed for pair in zip(mode.powers, mode.supply, strict=True)]
        settings += [(mode.powers[1] - mode.powers[0], mode.supply[1] - mode.supply[0]) for mode in listed]
        found = [abs(supply / power) for power, supply in settings if power and supply]
        return max(found, default=1.0) * operation_modes.WATTS

    @pyscript_compile
    def _unit_cost(self):
        """Return what supplying a unit for an hour costs at most (currency)."""
        site, scale = self.site, self.device.scale
        price = max(np.abs([site.consumption_price, site.production_price]).max(), priorities.LEAST_PRICE)
        costs = [priorities.LEAST_PRICE / max(scale, 1.0)]
        for model in self.models:
            listed = [step.cost for steps in model.actuator.transitions.values() for step in steps]
            starts = STARTS_PER_HOUR * max(listed, default=0.0)
            for mode in model.actuator.modes.values():
                for place, supply in enumerate(mode.supply):
                    if abs(supply) > SMALL_SUPPLY * scale:
                        hourly = abs(mode.powers[place]) / operation_modes.WATTS * price
                        hourly += abs(modes.other_cost(mode, self.tariffs)[place])
                        costs.append((hourly + starts) / abs(supply))
        return max(costs)

    @pyscript_compile
    def plan(self, solution, market):
        """Return the Plan of a solution in a market (market.Intervals), with what is Missed of the demand."""
        plan, pieces = operation_modes.plan_of(self.state, self.models, self.tariffs, solution, market)
        plan.missed = self._missed(pieces)
        return plan

    @pyscript_compile
    def _missed(self, pieces):
        """Return what is Missed of the demand: the worst of each time in which the supply stays below."""
        found, worst, begin, end = [], 0.0, 0.0, None
        for piece in pieces:
            wanted = float(self.demand[self.site.grid.step_at(piece.start)])
            settings = operation_modes.settings_of(self.models, piece)
            supply = sum(modes.at(mode.supply, factor) for mode, factor in settings)
            if wanted - supply <= NEARLY * self.device.scale:
                continue
            if piece.start != end:
                found.append(None)
                worst, begin = 0.0, piece.start
            if wanted - supply > worst:
                worst = wanted - supply
                found[-1] = plans.Missed(begin, wanted, supply)
            end = piece.end
        return found


Part = _Part


@pyscript_compile
def cuts(device: Any, state: Any) -> list:
    """Return moments (s since 1970) at which an edge of the grid helps.

    These are when actuators can go on from what they do, when one is there that begins at once, so that
    others can make room then, and when the demand changes.
    """
    actives = [state.actuators[each.id] for each in device.actuators]
    begin = state.moment + LEAD_SECONDS
    steps = [step for each in device.actuators for steps in each.transitions.values() for step in steps]
    done = sorted({begin + step.duration for step in steps if step.duration})
    helpful = [*operation_modes.cuts(device.actuators, actives), *done]
    return sorted({*helpful[: operation_modes.MAX_CUTS], *demand_cuts(device, begin)})


@pyscript_compile
def demand_cuts(device: Any, begin: float) -> list:
    """Return when the demand changes, to the full minute, a minute after another moment at the earliest."""
    edges = [*device.starts[:1], *[end for _start, end, _rate in device.forecast]]
    rates = [device.usual, *[rate for _start, _end, rate in device.forecast], device.usual]
    found = set()
    for edge, before, after in zip(edges, rates, rates[1:], strict=False):
        moment = edge // FINEST_SECONDS * FINEST_SECONDS
        if before != after and moment >= begin + FINEST_SECONDS:
            found.add(moment)
    return sorted(found)


@pyscript_compile
def add(site: Any, device: Any, state: Any, _wanted: Any, tariffs: dict, _storage: Any = None) -> Part:
    """Add a device in a state (modes.State) to a Site; it follows no schedule, and has no storage."""
    return Part(site, device, state, tariffs)
