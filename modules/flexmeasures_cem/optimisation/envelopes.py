"""Envelopes: what a device may consume or produce, step by step, and the power that it then has.

Amounts are kW of one direction (1: consumption, -1: production), positive there. They are out of a union of
ranges in each step; binary variables are made only where that has several ranges.
"""

from dataclasses import dataclass

import numpy as np

import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites
from flexmeasures_cem.optimisation.arrays import Floats, Integers, Mask

# Costs that decide between what is as good otherwise (currency)
WITHHELD_COST_PER_KWH = 1e-3
"""What is not allowed, though nothing is expected of it."""
CURTAILED_COST_PER_KWH = 1e-4
"""What is curtailed of production."""
UNUSED_COST_PER_KWH = 1e-4
"""What is allowed for a part of a step only."""
DEFERRAL_COST_PER_KWH_AND_DAY = 1e-3
"""What is deferred."""
START_COST = 1e-3
"""The start of a device that can be off, where it is for us to choose."""

SURPLUS_FACTOR = 2.0
"""How much more a kWh counts that is not needed than one by which a schedule is not followed."""
MIN_POWER_KW = 1e-9
"""What is less is no power."""
AMOUNT_TOLERANCE_KW = 5e-4
"""By how much an amount may be below what is scheduled."""


@dataclass(frozen=True, eq=False)
class _Union:
    """The values (kW) that an amount may take in each step: ranges in order, `low[k]` to `high[k]`.

    Where there is no such range both are nan; the first range is there in every step.
    """

    low: Floats
    high: Floats

    @property
    @pyscript_compile
    def count(self) -> int:
        """The number of steps."""
        return self.low.shape[1]

    @property
    @pyscript_compile
    def least(self) -> Floats:
        """The least amount of each step (kW)."""
        least: Floats = self.low[0]
        return least

    @property
    @pyscript_compile
    def most(self) -> Floats:
        """The greatest amount of each step (kW)."""
        return np.asarray(np.nanmax(self.high, axis=0))

    @property
    @pyscript_compile
    def gap(self) -> Floats:
        """How far the ranges of each step are apart at most (kW)."""
        return np.asarray(np.nan_to_num(self.low[1:] - self.high[:-1]).max(axis=0))

    @property
    @pyscript_compile
    def jump(self) -> Floats:
        """The least amount of the last range of each step (kW)."""
        return np.asarray(np.nanmax(self.low, axis=0))

    @pyscript_compile
    def at(self, steps: Integers) -> "Union":
        """Return the Union of some steps."""
        return Union(self.low[:, steps], self.high[:, steps])

    @pyscript_compile
    def up(self, values: Floats, tolerance_kw: float = 0.0) -> Floats:
        """Return the least amount that is not below a value (but for a tolerance), else the greatest."""
        fitting = np.maximum(self.low, np.minimum(values, self.high))
        nearest = np.where(self.high >= values - tolerance_kw, fitting, np.inf).min(axis=0)
        return np.where(np.isinf(nearest), self.most, nearest)

    @pyscript_compile
    def down(self, values: Floats) -> Floats:
        """Return the greatest amount that is not above a value, else the least."""
        fitting = np.where(self.low <= values, np.minimum(self.high, values), -np.inf).max(axis=0)
        return np.asarray(np.maximum(fitting, self.least))

    @pyscript_compile
    def capped(self, tops: Floats) -> "Union":
        """Return the Union of the amounts, of which those above a top count as that."""
        low: Floats = np.minimum(self.low, tops)
        high: Floats = np.minimum(self.high, tops)
        reached = self.high[:-1] >= tops
        low[1:][reached], high[1:][reached] = np.nan, np.nan
        return Union(low, high)


Union = _Union


@pyscript_compile
def placed(expression: linear.Expression, places: Integers, count: int) -> linear.Expression:
    """Return a vector of functions at some places of a longer one, which is 0 elsewhere."""
    constant = np.zeros(count)
    constant[places] = expression.constant
    rows = np.asarray(places)[expression.rows]
    return linear.Expression(rows, expression.columns, expression.factors, constant)


@pyscript_compile
def chosen(program: linear.Program, union: Union) -> tuple[linear.Expression, linear.Expression]:
    """Return an amount (kW) in each step of a Union, and 1 where that is above the first range."""
    count, width = union.count, union.high - union.low
    raised = linear.constant(np.zeros(count))
    amount = linear.constant(union.least)
    for place in range(1, len(width)):
        [where] = np.nonzero(~np.isnan(width[place]))
        if not len(where):
            continue
        picked = program.variables(len(where), 0.0, 1.0, whole=True)
        raised = raised + placed(picked, where, count)
        amount = amount + placed(picked * (union.low[place] - union.least)[where], where, count)
        picked = placed(picked, where, count)
        [where] = np.nonzero(width[place] > 0)
        if len(where):
            within = program.variables(len(where), 0.0, width[place][where])
            program.require(within - picked[where] * width[place][where], upper=0.0)
            amount = amount + placed(within, where, count)
    [where] = np.nonzero(width[0] > 0)
    if len(where):
        within = program.variables(len(where), 0.0, width[0][where])
        amount = amount + placed(within, where, count)
        if len(raised.columns):
            program.require(within + raised[where] * width[0][where], upper=width[0][where])
    [where] = np.nonzero((~np.isnan(width)).sum(axis=0) > 2)
    if len(where):
        program.require(raised[where], upper=1.0)
    return amount, raised


@dataclass(eq=False)
class _Allowance:
    """A device that does as it likes: nothing is limited but for the site's limits.

    `amount` is what is allowed, `power` what is expected of it: so much, or what is allowed. What it may do
    is all that is allowed.
    """

    site: sites.Site
    steps: Integers
    union: Union
    expected: Floats

    @pyscript_compile
    def __post_init__(self) -> None:
        site, steps, union = self.site, self.steps, self.union
        program, hours = site.program, site.grid.hours[steps]
        self.amount, _raised = chosen(program, union)
        self.may = self.amount
        self.power = linear.constant(np.zeros(len(steps)))
        program.pay((union.most - self.amount) * hours * WITHHELD_COST_PER_KWH)
        expected = np.minimum(self.expected, union.most)
        [where] = np.nonzero(expected > MIN_POWER_KW)
        if len(where):
            power = program.variables(len(where), 0.0, expected[where])
            program.require(self.amount[where] - power, 0.0)
            program.pay((expected[where] - power) * hours[where] * site.priorities.target)
            self.power = placed(power, where, len(steps))


Allowance = _Allowance


@dataclass(eq=False)
class _Curtailable:
    """Production (kW) that is forecast, and is lost where it is limited.

    `forecast` is its mean in each step, `peak` its greatest, or the mean too where that is of no importance:
    a limit below that lessens it in proportion.
    `scheduled` is what a schedule leaves of it (nan: what costs least). Where feeding in costs, it may be
    more: what others consume meanwhile.
    """

    site: sites.Site
    steps: Integers
    union: Union
    forecast: Floats
    peak: Floats
    scheduled: Floats
    is_needed: bool = False

    @pyscript_compile
    def __post_init__(self) -> None:
        site, steps, union = self.site, self.steps, self.union
        forecast, peak = self.forecast, self.peak
        program, hours = site.program, site.grid.hours[steps]
        self.may, _raised = chosen(program, union.capped(peak))
        self.power = self.may * (forecast / peak)
        self.amount = self.may
        program.pay((forecast - self.power) * hours * CURTAILED_COST_PER_KWH)
        if not np.isnan(self.scheduled).all():
            limit = np.nan_to_num(self.scheduled) * peak / forecast
            target = union.capped(peak).up(limit, AMOUNT_TOLERANCE_KW)
            wanted = np.where(np.isnan(self.scheduled), np.nan, target * forecast / peak)
            follow(site, self.power, wanted, hours, site.production_price[steps] < 0)
        if self.is_needed:
            self._free()

    @pyscript_compile
    def _free(self) -> None:
        """Allow all where the forecast is: what counts for energy that has to be allowed."""
        most = self.union.most
        free = self.site.program.variables(len(most), 0.0, 1.0, whole=True)
        self.site.program.require(self.may - free * self.peak, 0.0)
        self.amount = self.may + free * np.maximum(most - self.peak, 0.0)


Curtailable = _Curtailable


@dataclass(eq=False)
class _Deferred:
    """What a device makes up for later: it takes what it may until it has what it needs.

    `amount` is what is allowed, `power` the mean of that in a step: it is less where all is allowed for a
    part of the step only. `was_on` is whether more than the least is allowed before the first step.
    """

    site: sites.Site
    steps: Integers
    union: Union
    was_on: bool = False

    @pyscript_compile
    def __post_init__(self) -> None:
        site, steps, union = self.site, self.steps, self.union
        program, hours = site.program, site.grid.hours[steps]
        self.amount, raised = chosen(program, union)
        self.may = self.power = self.amount
        self.parted = linear.constant(np.zeros(len(steps)))
        days = (site.grid.starts[steps] - site.grid.edges[0]) / 86_400
        [where] = np.nonzero(union.jump > union.least)
        if len(where):
            widest = union.gap[where]
            unused = program.variables(len(where), 0.0, widest)
            self.parted = program.variables(len(where), 0.0, 1.0, whole=True)
            program.require(unused - self.parted * widest, upper=0.0)
            program.require(self.amount[where] - unused, union.least[where])
            program.pay(unused * hours[where] * UNUSED_COST_PER_KWH)
            unused = placed(unused, where, len(steps))
            self.power = self.amount - unused
            jump = np.maximum(union.jump - union.least, MIN_POWER_KW)
            self._pay_starts(raised, raised - unused * (1.0 / jump), where)
        program.pay(self.power * hours * days * DEFERRAL_COST_PER_KWH_AND_DAY)

    @pyscript_compile
    def _pay_starts(self, raised: linear.Expression, share: linear.Expression, where: Integers) -> None:
        """Pay for each step in which more than the least is allowed and was not in the one before.

        One in which it was for a `share` of the time only saves no more than that of the start.
        """
        steps = self.steps
        before = linear.joined([linear.constant([float(self.was_on and steps[0] == 0)]), share[:-1]])
        is_next = np.concatenate([[True], np.diff(steps) == 1])
        start = self.site.program.variables(len(where), 0.0, 1.0)
        self.site.program.require(start - raised[where] + (before * is_next)[where], 0.0)
        self.site.program.pay(start * START_COST)

    @pyscript_compile
    def allow_parts(self, count: int) -> None:
        """Allow an amount for a part of a step only so often: once for each need, say."""
        if len(self.parted.columns):
            self.site.program.require(self.parted.sum(), upper=count)


Deferred = _Deferred


@pyscript_compile
def follow(
    site: sites.Site,
    power: linear.Expression,
    scheduled: Floats,
    hours: Floats,
    may_be_more: Mask | bool = False,
) -> None:
    """Pay for what a power (kW) departs from what is scheduled (kW; nan: anything) in steps of some hours."""
    [where] = np.nonzero(~np.isnan(scheduled))
    if len(where):
        more, less = (site.program.variables(len(where)) for _side in range(2))
        counts = np.broadcast_to(~np.asarray(may_be_more), scheduled.shape)[where]
        site.program.equate(power[where] - more + less, scheduled[where])
        site.program.pay((more * counts + less) * hours[where] * site.priorities.schedule)


@pyscript_compile
def fill(site: sites.Site, energy: linear.Expression, needed: float) -> None:
    """Have an energy (a vector of one, kWh) be as much as is needed, as far as that can be."""
    if len(energy.columns):
        missing = site.program.variables(1)
        site.program.require(energy + missing, needed)
        site.program.pay(missing * site.priorities.target)


@pyscript_compile
def confine(site: sites.Site, energy: linear.Expression, needed: float) -> None:
    """Have an energy (a vector of one, kWh) be no more than is needed, as far as that can be."""
    if len(energy.columns):
        surplus = site.program.variables(1)
        site.program.require(energy - surplus, upper=needed)
        site.program.pay(surplus * site.priorities.schedule * SURPLUS_FACTOR)
