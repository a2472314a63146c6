"""What is stored, step by step: a level that flows fill and empty, within a range, with targets.

The range may be cut into segments, in which what fills and empties the storage differs: the level fills one
after the other, and each step is shared among those that the level passes in it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites
from flexmeasures_cem.optimisation.arrays import Floats

MAX_FULL_AIMS = 50
"""How many edges of a target count in full at most, so that all together count less than a site's limit."""


@dataclass(eq=False, repr=False)
class _Storage:
    """A level (kWh) at each edge of the grid. What is outside of its range or targets is paid for.

    `initial_level` is that at the grid's start, `segment_borders` are the levels at which segments begin and
    end, the range's own included. `share[segment]` is the part of each step in which the level is in a
    segment, `above[border]` is 1 at each edge of the grid where the level is above one of the inner borders.
    """

    site: sites.Site
    initial_level: float
    segment_borders: Sequence[float]

    @pyscript_compile
    def __post_init__(self) -> None:
        self.borders: Floats = np.array(self.segment_borders, float)
        self.bottom, self.top = float(self.borders[0]), float(self.borders[-1])
        program, count = self.site.program, self.site.grid.count
        self.missing, self.surplus = program.variables(count), program.variables(count)
        program.pay((self.missing + self.surplus) * self.site.priorities.range)
        self.widths: Floats = np.diff(self.borders)
        self.parts = [self._part(number) for number in range(len(self.widths))]
        self.level = linear.total(self.parts, count + 1) + self.bottom
        self.reached = self.level[1:]
        self.share: list[linear.Expression] = []
        self.above: list[linear.Expression] = []
        self._fill_in_order()

    @pyscript_compile
    def _part(self, number: int) -> linear.Expression:
        """Return how far a segment is filled (kWh) at each edge: the first may lack more, the last exceed."""
        last = len(self.widths) - 1
        part = self.site.program.variables(self.site.grid.count, 0.0, self.widths[number])
        lowest = -np.inf if number == 0 else 0.0
        highest = np.inf if number == last else self.widths[number]
        if number == 0:
            part = part - self.missing
        if number == last:
            part = part + self.surplus
        at_first = min(max(self.initial_level - self.borders[number], lowest), highest)
        return linear.joined([linear.constant([at_first]), part])

    @pyscript_compile
    def _fill_in_order(self) -> None:
        """Fill no segment before the one below is full, and share each step among those it passes."""
        program, count = self.site.program, self.site.grid.count
        if len(self.widths) == 1:
            self.share = [linear.constant(np.ones(count))]
            return
        self.share = [program.variables(count, 0.0, 1.0) for _segment in self.widths]
        program.equate(linear.total(self.share, count), 1.0)
        for number, border in enumerate(self.borders[1:-1]):
            is_above = program.variables(count, 0.0, 1.0, whole=True)
            lower, upper = self.parts[number][1:], self.parts[number + 1][1:]
            if number == 0:
                lower = lower + self.missing
            if number == len(self.widths) - 2:
                upper = upper - self.surplus
            program.require(lower - is_above * self.widths[number], 0.0)
            program.require(upper - is_above * self.widths[number + 1], upper=0.0)
            above = linear.joined([linear.constant([float(self.initial_level > border)]), is_above])
            self.above.append(above)
            program.require(self.share[number] + above[:-1] + above[1:], upper=2.0)
            program.require(self.share[number + 1] - above[:-1] - above[1:], upper=0.0)

    @pyscript_compile
    def flow(self, inflows: Iterable[linear.Expression], leakage: tuple[float, float] = (0.0, 0.0)) -> None:
        """Have the level change by each segment's inflow (kWh in each step).

        `leakage` has what is lost (kW) at a level of nothing, and more for each kWh, in a storage of one
        segment.
        """
        hours, (lost, more) = self.site.grid.hours, leakage
        for part, inflow in zip(self.parts, inflows, strict=True):
            if lost or more:
                inflow = inflow - (self.level[:-1] + self.level[1:]) * (more / 2 * hours) - lost * hours
            self.site.program.equate(part[1:], part[:-1] + inflow)

    @pyscript_compile
    def aim(self, lowest: Floats, highest: Floats) -> None:
        """Pay for what the level lacks or exceeds (kWh), at each edge but the first, of targets (or nan)."""
        program, price = self.site.program, self.site.priorities.target
        for sign, bound in ((1.0, lowest), (-1.0, highest)):
            [where] = np.nonzero(~np.isnan(bound))
            if len(where):
                lack = program.variables(len(where))
                program.require(self.reached[where] * sign + lack, bound[where] * sign)
                program.pay(lack * (price * min(1.0, MAX_FULL_AIMS / len(where))))

    @pyscript_compile
    def leave_room(self, filling: linear.Expression, emptying: linear.Expression) -> None:
        """Keep room at the end for what goes on after it (kWh, an Expression of one function each)."""
        program, price = self.site.program, self.site.priorities.range
        for sign, flow, bound in ((1.0, filling, self.top), (-1.0, emptying, -self.bottom)):
            if len(flow.columns):
                excess = program.variables(1)
                program.require(self.level[-1:] * sign + flow - excess, upper=bound)
                program.pay(excess * price)


Storage = _Storage
