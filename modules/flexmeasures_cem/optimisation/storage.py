"""What is stored, step by step: a level that flows fill and empty, within a range, with targets."""

from typing import Any

import numpy as np

import flexmeasures_cem.optimisation.linear as linear


class _Storage:
    """A level (kWh) at each edge of the grid. What is outside of its range or targets is paid for."""

    @pyscript_compile
    def __init__(self, site, level, bottom, top):
        self.site, self.bottom, self.top = site, bottom, top
        count = site.grid.count
        below, above = min(bottom, level), max(top, level)
        self.reached = site.program.variables(count, -np.inf, np.inf)
        self.level = linear.joined([linear.constant([level]), self.reached])
        self._keep_in_range(below, above)

    @pyscript_compile
    def _keep_in_range(self, _below, _above):
        """Pay for each kWh outside of the range, for as long as it is."""
        program, grid = self.site.program, self.site.grid
        price = self.site.priorities.range
        missing, surplus = (program.variables(grid.count) for _side in range(2))
        program.require(self.reached + missing, self.bottom)
        program.require(self.reached - surplus, upper=self.top)
        program.pay((missing + surplus) * grid.hours * price)

    @pyscript_compile
    def flow(self, inflow: Any, keeps: Any = 1.0) -> None:
        """Have the level change by an inflow (kWh in each step), of what a step leaves of it."""
        self.site.program.equate(self.reached, self.level[:-1] * keeps + inflow)


Storage = _Storage
