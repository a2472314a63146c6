"""The site: its connection to the grid, what that costs, and what is kept to there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.priorities as priorities
import flexmeasures_cem.optimisation.search as search
from flexmeasures_cem.optimisation.arrays import Floats, Integers, Numbers, sums

CONSUMPTION, PRODUCTION = 1, -1
"""The directions of power."""
PART_STEP_SHARE = 0.1
"""What a kW beyond a limit counts, for the whole step, that is beyond it for a part of the step only."""
MIN_MARGIN_KW = 1.0
"""By how much the bound of all powers is beyond them."""


@dataclass(kw_only=True)
class _Tariffs:
    """What is given for each step of a grid: arrays, or one number for all.

    `consumption_price` and `production_price` are what a kWh from the grid costs, and to it yields; `load` is
    the power (kW) of all that is not planned, `headroom` how far that may be above its mean at times.
    `curtailable` is production (kW), part of the load, which may be left unused. `consumption_capacity` and
    `production_capacity` are the connection's limits (kW); what is beyond `peak_consumption` (kW) is paid by
    `peak_price` (currency per kW), once for the greatest.
    """

    consumption_price: Floats | float
    production_price: Floats | float
    load: Floats | float = 0.0
    headroom: Floats | float = 0.0
    curtailable: Floats | float = 0.0
    consumption_capacity: Floats | float = math.inf
    production_capacity: Floats | float = math.inf
    peak_consumption: float = 0.0
    peak_price: float = 0.0


Tariffs = _Tariffs


@dataclass(eq=False)
class _Site:
    """A program in the making, to which devices add their power (kW).

    `powers` are those of all devices so far, `spares` and `beyond` have for each direction
    what devices may do beyond their power: always, or for some part of a step.
    """

    grid: grids.TimeGrid
    tariffs: Tariffs

    @pyscript_compile
    def __post_init__(self) -> None:
        self.program = linear.Program()
        self.consumption_price = self.by_step(self.tariffs.consumption_price)
        self.production_price = self.by_step(self.tariffs.production_price)
        greatest = max(np.abs(self.consumption_price).max(), np.abs(self.production_price).max())
        self.greatest_price = max(greatest, priorities.MIN_PRICE)
        self.priorities = priorities.scaled(max(greatest, self.tariffs.peak_price))
        self.powers: list[linear.Expression] = []
        self.spares: dict[int, list[linear.Expression]] = {CONSUMPTION: [], PRODUCTION: []}
        self.beyond: dict[int, list[linear.Expression]] = {CONSUMPTION: [], PRODUCTION: []}

    @pyscript_compile
    def by_step(self, values: Numbers) -> Floats:
        """Return numbers, or one that holds for all, as an array over the steps."""
        return np.broadcast_to(np.asarray(values, float), (self.grid.count,))

    @pyscript_compile
    def add(
        self,
        power: linear.Expression,
        above: linear.Expression | None = None,
        below: linear.Expression | None = None,
    ) -> None:
        """Count a device's power (kW, consumption positive) at the connection.

        `above` and `below` are how far it may go beyond its mean in a step, for the connection's limits.
        """
        self.powers.append(power)
        for direction, beyond in ((CONSUMPTION, above), (PRODUCTION, below)):
            if beyond is not None:
                self.exceed(direction, beyond)

    @pyscript_compile
    def exceed(self, direction: int, power: linear.Expression) -> None:
        """Count how far (kW) a device goes beyond its mean power in a direction, for some part of a step."""
        self.beyond[direction].append(power)

    @pyscript_compile
    def is_limited(self, direction: int) -> bool:
        """Return whether a direction has a limit at any time."""
        tariffs = self.tariffs
        capacity = tariffs.consumption_capacity if direction > 0 else tariffs.production_capacity
        return bool(np.isfinite(capacity).any())

    @pyscript_compile
    def spare(self, direction: int, power: linear.Expression) -> None:
        """Keep room within the connection's limits for what a device may do beyond its power (kW)."""
        self.spares[direction].append(power)

    @pyscript_compile
    def track(self, power: linear.Expression, scheduled: Floats) -> None:
        """Pay for what a power (kW) departs from what a schedule has for it (kW; nan: anything)."""
        [where] = np.nonzero(~np.isnan(scheduled))
        more, less = (self.program.variables(len(where)) for _side in range(2))
        self.program.equate(power[where] - more + less, scheduled[where])
        self.program.pay((more + less) * self.grid.hours[where] * self.priorities.schedule)

    @pyscript_compile
    def connect(self) -> linear.Expression:
        """Balance the site's power, pay for it, and keep it within the connection's limits if possible.

        Return its net power (kW).
        """
        program, grid, tariffs = self.program, self.grid, self.tariffs
        net = linear.total(self.powers, grid.count) + tariffs.load
        curtailable = self.by_step(tariffs.curtailable)
        if curtailable.any():
            net = net + program.variables(grid.count, 0.0, curtailable)
        consumed, produced = (program.variables(grid.count) for _direction in range(2))
        balance = consumed - produced
        program.equate(balance, net)
        program.pay((consumed * self.consumption_price - produced * self.production_price) * grid.hours)
        self._go_one_way(consumed, produced)
        self._keep_within(balance, consumed, tariffs.consumption_capacity, CONSUMPTION)
        self._keep_within(balance, produced, tariffs.production_capacity, PRODUCTION)
        if tariffs.peak_price > 0:
            peak = program.variables(1)
            program.require(peak.spread(grid.count) - consumed, -tariffs.peak_consumption)
            program.pay(peak * tariffs.peak_price)
        return balance

    @pyscript_compile
    def _go_one_way(self, consumed: linear.Expression, produced: linear.Expression) -> None:
        """Let no power go through the meter and back where that would pay."""
        [where] = np.nonzero(self.production_price > self.consumption_price)
        if len(where):
            bound = self._power_bound()
            consumes = self.program.variables(len(where), 0.0, 1.0, whole=True)
            self.program.require(consumed[where] - consumes * bound, upper=0.0)
            self.program.require(produced[where] + consumes * bound, upper=bound)

    @pyscript_compile
    def _power_bound(self) -> float:
        """Return a power (kW) that is beyond all that the site can have."""
        program = self.program
        lower, upper = np.concatenate(program.lower), np.concatenate(program.upper)
        total = linear.total(self.powers, self.grid.count) + self.tariffs.load
        ends = np.array([total.factors * bound[total.columns] for bound in (lower, upper)])
        extremes = [
            total.constant + sums(total.rows, products, len(total))
            for products in (ends.min(axis=0), ends.max(axis=0))
        ]
        curtailable = float(np.max(self.tariffs.curtailable))
        return float(max(np.abs(powers).max() for powers in extremes)) + curtailable + MIN_MARGIN_KW

    @pyscript_compile
    def _keep_within(
        self, net: linear.Expression, power: linear.Expression, capacity: Numbers, direction: int
    ) -> None:
        """Keep a direction's power (kW) within its capacity, or as near to that as can be.

        What the load alone exceeds it by is nobody's fault.
        """
        capacities = self.by_step(capacity)
        [where] = np.nonzero(np.isfinite(capacities))
        if len(where):
            alone = direction * self.by_step(self.tariffs.load)
            limit = np.maximum(capacities - self.tariffs.headroom, alone)[where]
            excess = self.program.variables(len(where))
            self.program.require(power[where] - excess, upper=limit)
            self.program.pay(excess * self.priorities.site_limit * self.grid.hours[where])
            self._keep_extremes_within(net * direction, direction, where, limit, excess)

    @pyscript_compile
    def _keep_extremes_within(
        self,
        power: linear.Expression,
        direction: int,
        where: Integers,
        limit: Floats,
        excess: linear.Expression,
    ) -> None:
        """Keep some steps of a direction within a limit (kW) by what devices may do beyond their means."""
        program, count = self.program, self.grid.count
        if self.spares[direction]:
            power = power + linear.total(self.spares[direction], count)
            program.require(power[where] - excess, upper=limit)
        if self.beyond[direction]:
            at_times = program.variables(len(where))
            power = power + linear.total(self.beyond[direction], count)
            program.require(power[where] - excess - at_times, upper=limit)
            price = PART_STEP_SHARE * self.priorities.site_limit
            program.pay(at_times * price * self.grid.hours[where])

    @pyscript_compile
    def solve(self, effort: search.Effort, blocks: Sequence[tuple[int, int]] = ()) -> linear.Solution:
        """Return the linear.Solution of the least cost; raise search.NoSolution or ImportError.

        `blocks` has (first, last) columns of what can be solved by itself (see linear.Program.solve).
        """
        return self.program.solve(effort, blocks)


Site = _Site
