"""The site: its connection to the grid, what that costs, and what is kept to there."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.priorities as priorities

AT_TIMES = 0.1
"""What a kW beyond a limit counts, for the whole step, that is beyond it for a part of the step only."""


@dataclass(kw_only=True)
class _Tariffs:
    """What is given for each step of a grid: arrays, or one number for all.

    `consumption_price` and `production_price` are what a kWh from the grid costs, and to it yields; `load` is
    the power (kW) of all that is not planned, `headroom` how far that may be above its mean at times.
    `curtailable` is production (kW), part of the load, which may be left unused. `consumption_capacity` and
    `production_capacity` are the connection's limits (kW); what is beyond `peak_consumption` (kW) is paid by
    `peak_price` (currency per kW), once for the greatest.
    """

    consumption_price: Any
    production_price: Any
    load: Any = 0.0
    headroom: Any = 0.0
    curtailable: Any = 0.0
    consumption_capacity: Any = math.inf
    production_capacity: Any = math.inf
    peak_consumption: float = 0.0
    peak_price: float = 0.0


Tariffs = _Tariffs


@dataclass(eq=False)
class _Site:
    """A program in the making, to which devices add their power (kW)."""

    grid: Any
    tariffs: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        grid, tariffs, self.program = self.grid, self.tariffs, linear.Program()
        self.consumption_price, self.production_price = (
            np.broadcast_to(np.asarray(each, float), (grid.count,))
            for each in (tariffs.consumption_price, tariffs.production_price)
        )
        greatest = max(np.abs(self.consumption_price).max(), np.abs(self.production_price).max())
        self.greatest_price = max(greatest, priorities.LEAST_PRICE)
        self.priorities = priorities.scaled(max(greatest, tariffs.peak_price))
        self.powers, self.net = [], None
        self.spares, self.beyond = {1: [], -1: []}, {1: [], -1: []}

    @pyscript_compile
    def add(self, power, above=None, below=None):
        """Count a device's power (an Expression, kW, consumption positive) at the connection.

        `above` and `below` are how far it may go beyond its mean in a step, for the connection's limits.
        """
        self.powers.append(power)
        for direction, beyond in ((1, above), (-1, below)):
            if beyond is not None:
                self.exceed(direction, beyond)

    @pyscript_compile
    def exceed(self, direction, power):
        """Count how far (an Expression, kW) a device goes beyond its mean power for some part of a step.

        That is of consumption (direction 1) or production (-1).
        """
        self.beyond[direction].append(power)

    @pyscript_compile
    def is_limited(self, direction):
        """Return whether consumption (1) or production (-1) has a limit at any time."""
        tariffs = self.tariffs
        capacity = tariffs.consumption_capacity if direction > 0 else tariffs.production_capacity
        return bool(np.isfinite(capacity).any())

    @pyscript_compile
    def spare(self, direction, power):
        """Keep room within the connection's limits for what a device may do beyond its power.

        That is an amount (an Expression, kW) of consumption (direction 1) or production (-1).
        """
        self.spares[direction].append(power)

    @pyscript_compile
    def track(self, power, wanted):
        """Pay for what a power (kW) departs from what a schedule has for it (kW; nan: anything)."""
        [where] = np.nonzero(~np.isnan(wanted))
        more, less = (self.program.variables(len(where)) for _side in range(2))
        self.program.equate(power[where] - more + less, wanted[where])
        self.program.pay((more + less) * self.grid.hours[where] * self.priorities.schedule)

    @pyscript_compile
    def connect(self):
        """Balance the site's power, pay for it, and keep it within the connection's limits if possible.

        Return its net power (kW).
        """
        program, grid, tariffs = self.program, self.grid, self.tariffs
        net = linear.total(self.powers, grid.count) + tariffs.load
        curtailable = np.broadcast_to(np.asarray(tariffs.curtailable, float), (grid.count,))
        if curtailable.any():
            net = net + program.variables(grid.count, 0.0, curtailable)
        consumed, produced = (program.variables(grid.count) for _direction in range(2))
        self.net = consumed - produced
        program.equate(self.net, net)
        program.pay((consumed * self.consumption_price - produced * self.production_price) * grid.hours)
        self._go_one_way(consumed, produced)
        self._keep_within(consumed, tariffs.consumption_capacity, 1)
        self._keep_within(produced, tariffs.production_capacity, -1)
        if tariffs.peak_price > 0:
            peak = program.variables(1)
            program.require(peak.spread(grid.count) - consumed, -tariffs.peak_consumption)
            program.pay(peak * tariffs.peak_price)
        return self.net

    @pyscript_compile
    def _go_one_way(self, consumed, produced):
        """Let no power go through the meter and back where that would pay."""
        [where] = np.nonzero(self.production_price > self.consumption_price)
        if len(where):
            most = self._most()
            consumes = self.program.variables(len(where), 0.0, 1.0, whole=True)
            self.program.require(consumed[where] - consumes * most, upper=0.0)
            self.program.require(produced[where] + consumes * most, upper=most)

    @pyscript_compile
    def _most(self):
        """Return a power (kW) that is beyond all that the site can have."""
        program = self.program
        lower, upper = np.concatenate(program.lower), np.concatenate(program.upper)
        total = linear.total(self.powers, self.grid.count) + self.tariffs.load
        ends = np.array([total.factors * bound[total.columns] for bound in (lower, upper)])
        sums = [np.bincount(total.rows, each, len(total)) for each in (ends.min(axis=0), ends.max(axis=0))]
        curtailable = float(np.max(self.tariffs.curtailable))
        return float(max(np.abs(total.constant + each).max() for each in sums)) + curtailable + 1.0

    @pyscript_compile
    def _keep_within(self, power, capacity, sign):
        """Keep a direction's power (kW) within its capacity, or as near to that as can be.

        What the load alone exceeds it by is nobody's fault.
        """
        capacity = np.broadcast_to(np.asarray(capacity, float), (self.grid.count,))
        [where] = np.nonzero(np.isfinite(capacity))
        if len(where):
            alone = np.broadcast_to(sign * np.asarray(self.tariffs.load, float), (self.grid.count,))
            limit = np.maximum(capacity - self.tariffs.headroom, alone)
            excess = self.program.variables(len(where))
            self.program.require(power[where] - excess, upper=limit[where])
            self.program.pay(excess * self.priorities.site_limit * self.grid.hours[where])
            self._keep_within_at_times(sign, where, limit[where], excess)

    @pyscript_compile
    def _keep_within_at_times(self, sign, where, limit, excess):
        """Keep some steps of a direction within a limit (kW) by what devices may do beyond their means."""
        power = self.net * sign
        if self.spares[sign]:
            power = power + linear.total(self.spares[sign], self.grid.count)
            self.program.require(power[where] - excess, upper=limit)
        if self.beyond[sign]:
            at_times = self.program.variables(len(where))
            power = power + linear.total(self.beyond[sign], self.grid.count)
            self.program.require(power[where] - excess - at_times, upper=limit)
            price = AT_TIMES * self.priorities.site_limit
            self.program.pay(at_times * price * self.grid.hours[where])

    @pyscript_compile
    def solve(self, effort, blocks=()):
        """Return the linear.Solution of the least cost; raise search.NoSolution or ImportError.

        `blocks` has (first, last) columns of what can be solved by itself (see linear.Program.solve).
        """
        return self.program.solve(effort, blocks)


Site = _Site
