"""How a program with whole variables is solved: by HiGHS, and part by part where it is large.

First the program is relaxed: whole variables may be any number. That costs no more than the optimum, so it
bounds how good a solution is. What is whole then can stay, mostly: the rest is a small program, whose
solution often is near enough. Of a large program that is done part by part (a device each), beside what all
others do; and again, also with two parts together, for as long as that saves something and there is time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from flexmeasures_cem.optimisation.arrays import Floats, Integers, Mask, sums

# How HiGHS is used
COST_SCALE = 1e3
"""What costs are multiplied by for HiGHS, which tells none apart below 1e-6."""
WITHOUT_PROBING = 1 << 15
"""HiGHS' option presolve_rule_off: to probe each whole variable takes longer than to solve what has many."""
OPTIONS: dict[str, bool | int] = {
    "output_flag": False,
    "threads": 1,
    "mip_heuristic_run_root_reduced_cost": False,  # it takes longer than all else, and finds nothing
    "presolve_rule_off": WITHOUT_PROBING,
}

# How long is searched, and how precisely
MIN_SEARCH_SECONDS = 0.05
"""The least time that is worth to begin a search for."""
PATIENCE_FACTOR = 4.0
"""How many times as long as for a good solution the search for any solution may take."""
PART_TIME_SHARE = 0.25
"""Which part of the time the search for a better solution of a part may take in any case."""
NEAR_TIME_FACTOR = 2.0
"""How many times as long as the whole search the rest of all devices together may take, at a limit."""
PART_GAP_SHARE = 0.5
"""Which part of the gap of all a part may have in any case."""
MAX_NEAR_GAP = 1e-7
"""How near to its optimum (currency) the rest is solved that is not whole, so that nothing is needless."""
MAX_PAIRED_PARTS = 4
"""How many parts are solved in pairs, too, where they share no limit: they may still share a price."""

# What counts as equal
FEASIBILITY_TOLERANCE = 1e-4
"""By how much what is given may be beyond a row's bounds."""
LIMIT_TOLERANCE = 1e-7
"""How near to a limit a row's sum is that reaches it."""
WHOLE_TOLERANCE = 1e-6
"""How far from an integer a value is that counts as one."""


class _NoSolution(Exception):
    """HiGHS found no solution in the time that it had, or there is none."""


NoSolution = _NoSolution


@dataclass(frozen=True, kw_only=True)
class _Effort:
    """How long HiGHS may search (s), and how far from the optimum it may stop (currency, part of it).

    What is missed has a price too, so a part of all is `max_gap` at most (currency).

    Until there is a solution that is no more than `poor` from it (currency), it may take `patience` (s), and
    PATIENCE_FACTOR times that until there is any.
    """

    seconds: float = 5.0
    gap: float = 1e-4
    relative_gap: float = 1e-6
    max_gap: float = math.inf
    poor: float = math.inf
    patience: float = 5.0

    @pyscript_compile
    def is_enough(self, objective: float, bound: float) -> bool:
        """Return whether a solution is near enough to a bound of all costs."""
        return objective - bound <= self.gap_of(objective)

    @pyscript_compile
    def gap_of(self, objective: float) -> float:
        """Return how far from the optimum a solution of some cost may be (currency)."""
        return max(self.gap, min(self.relative_gap * abs(objective), self.max_gap))


Effort = _Effort


@dataclass(frozen=True, eq=False, kw_only=True)
class _Problem:
    """A program as arrays: columns with costs and bounds, rows with bounds, and entries in order of rows."""

    costs: Floats
    offset: float
    lower: Floats
    upper: Floats
    whole: Mask
    row_lower: Floats
    row_upper: Floats
    rows: Integers
    columns: Integers
    factors: Floats

    @pyscript_compile
    def part(self, free: Mask, values: Floats) -> "Problem":
        """Return the Problem of the columns that are free, where all others have their values."""
        inside = free[self.columns]
        count = len(self.row_lower)
        given = sums(self.rows[~inside], (self.factors * values[self.columns])[~inside], count)
        is_below = given < self.row_lower - FEASIBILITY_TOLERANCE
        is_above = given > self.row_upper + FEASIBILITY_TOLERANCE
        kept = is_below | is_above
        kept[self.rows[inside]] = True
        return Problem(
            costs=self.costs[free],
            offset=self.offset + float((self.costs * values)[~free].sum()),
            lower=self.lower[free],
            upper=self.upper[free],
            whole=self.whole[free],
            row_lower=(self.row_lower - given)[kept],
            row_upper=(self.row_upper - given)[kept],
            rows=(np.cumsum(kept) - 1)[self.rows[inside]],
            columns=(np.cumsum(free) - 1)[self.columns[inside]],
            factors=self.factors[inside],
        )

    @pyscript_compile
    def without(self, absent: Mask) -> "Problem":
        """Return the Problem without some columns, and without the rows that have no other ones.

        The columns stay, at 0, so that all others have their places.
        """
        is_left = ~absent
        has_some = np.ones(len(self.row_lower), bool)
        has_some[self.rows[absent[self.columns]]] = False
        has_some[self.rows[is_left[self.columns]]] = True
        kept = has_some[self.rows] & is_left[self.columns]
        return replace(
            self,
            lower=np.where(absent, 0.0, self.lower),
            upper=np.where(absent, 0.0, self.upper),
            row_lower=self.row_lower[has_some],
            row_upper=self.row_upper[has_some],
            rows=(np.cumsum(has_some) - 1)[self.rows[kept]],
            columns=self.columns[kept],
            factors=self.factors[kept],
        )

    @pyscript_compile
    def relaxed(self) -> "Problem":
        """Return the Problem without the need to be whole."""
        return replace(self, whole=np.zeros_like(self.whole))

    @pyscript_compile
    def for_highs(self, highspy: Any) -> Any:
        """Return the Problem as HiGHS takes it, a HighsLp."""
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.costs), len(self.row_lower)
        lp.col_cost_, lp.offset_ = self.costs * COST_SCALE, self.offset * COST_SCALE
        lp.col_lower_, lp.col_upper_ = self.lower, self.upper
        lp.row_lower_, lp.row_upper_ = self.row_lower, self.row_upper
        if self.whole.any():
            continuous, integer = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
            lp.integrality_ = [integer if is_whole else continuous for is_whole in self.whole]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.searchsorted(self.rows, np.arange(lp.num_row_ + 1)).astype(np.int32)
        lp.a_matrix_.index_ = self.columns.astype(np.int32)
        lp.a_matrix_.value_ = self.factors
        return lp


Problem = _Problem


@dataclass(frozen=True, eq=False, kw_only=True)
class _Result:
    """The columns' values of a solution, its cost, and what no solution costs less than (currency)."""

    values: Floats
    objective: float
    bound: float


Result = _Result


@dataclass(eq=False)
class _Search:
    """A search for the least cost of a Problem, within the Effort's seconds of this thread's processor time.

    `blocks` has a mask of columns for each part that can be solved by itself: what is in none of them goes
    with all. `hinted` has values of some solution, or nan. `surcharges` has by how much each set of parts
    is at least dearer than if it is relaxed (currency), as far as that has shown.
    """

    problem: Problem
    effort: Effort
    blocks: Sequence[Mask]
    hinted: Floats
    surcharges: dict[tuple[int, ...], float] = field(default_factory=dict)

    @pyscript_compile
    def __post_init__(self) -> None:
        self.improved_by = time.thread_time() + self.effort.seconds
        self.better_by = self.improved_by + self.effort.patience
        self.deadline = self.improved_by + PATIENCE_FACTOR * self.effort.patience

    @pyscript_compile
    def run(self) -> Result:
        """Return the best solution; raise NoSolution, or ImportError without highspy."""
        problem, effort = self.problem, self.effort
        if len(self.blocks) < 2 or not problem.whole.any():
            return self._part(problem, effort, self.improved_by) or self._as_hinted()
        relaxed = solved(problem.relaxed(), effort, self.deadline)
        if relaxed is None:
            return self._as_hinted()
        is_tight = self._is_tight(relaxed.values)
        first = None
        if is_tight:
            first = self._in_room_left(relaxed.bound) or self._near_in_time(relaxed)
        first = first or self._in_turn(relaxed) or self._as_hinted()
        return self._improved(replace(first, bound=relaxed.bound), is_tight)

    @pyscript_compile
    def _part(
        self,
        problem: Problem,
        effort: Effort,
        by: float,
        numbers: tuple[int, ...] = (),
        max_cost: float = math.inf,
        is_needed: bool = True,
    ) -> Result | None:
        """Return a solution of a part of the program, or None: by what stays whole, else by all of it.

        The search is left off at a moment, but one that is needed not before there is any solution. None too
        where it would not cost less than `max_cost`, by the part's surcharge; `numbers` are its blocks.
        """
        longest = self.deadline if is_needed else by
        relaxed = solved(problem.relaxed(), effort, self.deadline)
        if relaxed is None or not problem.whole.any():
            return relaxed
        relaxed = replace(relaxed, bound=relaxed.bound + self.surcharges.get(numbers, 0.0))
        if relaxed.bound >= max_cost:
            return None
        precise = replace(effort, gap=min(effort.gap, MAX_NEAR_GAP), relative_gap=0.0)
        near = self._near(problem, relaxed, precise, longest)
        if near is not None:
            if effort.is_enough(near.objective, near.bound):
                return near
            by = self.better_by if is_needed and near.objective - near.bound > effort.poor else by
            if by - time.thread_time() < MIN_SEARCH_SECONDS:
                return near
        full = solved(problem, effort, longest if near is None else by)
        if full is None:
            return near
        self.surcharges[numbers] = max(full.bound - relaxed.objective, 0.0)
        is_kept = problem.whole & (np.abs(full.values - relaxed.values) <= WHOLE_TOLERANCE)
        refined = self._with(problem, is_kept, full, precise, longest)
        return best_of(near, best_of(full, refined))

    @pyscript_compile
    def _near(self, problem: Problem, relaxed: Result, effort: Effort, by: float) -> Result | None:
        """Return the best Result that has what is whole in a relaxed one, or None of none by a moment."""
        fraction = np.abs(relaxed.values - np.round(relaxed.values))
        return self._with(problem, problem.whole & (fraction <= WHOLE_TOLERANCE), relaxed, effort, by)

    @pyscript_compile
    def _near_in_time(self, relaxed: Result) -> Result | None:
        """Return a Result near a relaxed one of the whole program, after longer where it is poor, or None."""
        near = None
        for by in (time.thread_time() + NEAR_TIME_FACTOR * self.effort.seconds, self.deadline):
            near = self._near(self.problem, relaxed, self.effort, by)
            if near is not None and near.objective - relaxed.bound <= self.effort.poor:
                break
        return near

    @pyscript_compile
    def _with(
        self, problem: Problem, is_kept: Mask, result: Result, effort: Effort, by: float
    ) -> Result | None:
        """Return the best Result that keeps some whole variables of another, or None of none by a moment."""
        values: Floats = np.where(is_kept, np.round(result.values), result.values)
        rest = solved(problem.part(~is_kept, values), effort, by)
        if rest is None:
            return None
        values[~is_kept] = rest.values
        return replace(result, values=values, objective=rest.objective)

    @pyscript_compile
    def _is_tight(self, values: Floats) -> bool:
        """Return whether a limit that parts share is reached: so they cannot be solved in turn."""
        problem = self.problem
        shared = ~any_of(self.blocks)
        count = len(problem.row_lower)
        row_sums = sums(problem.rows, problem.factors * values[problem.columns], count)
        is_shared = np.zeros(count, bool)
        is_shared[problem.rows[shared[problem.columns]]] = True
        is_limit = is_shared & (problem.row_lower < problem.row_upper)
        is_at_lower = row_sums - problem.row_lower < LIMIT_TOLERANCE
        is_at_upper = problem.row_upper - row_sums < LIMIT_TOLERANCE
        return bool((is_limit & (is_at_lower | is_at_upper)).any())

    @pyscript_compile
    def _in_turn(self, relaxed: Result) -> Result | None:
        """Return a solution part by part: each beside those before it, and all others as they are relaxed."""
        result = replace(relaxed, values=relaxed.values.copy())
        for number in range(len(self.blocks)):
            free, by = self._free((number,)), self._share_of_time(len(self.blocks) - number)
            problem = self.problem.part(free, result.values)
            part = self._part(problem, self._share_of_effort(result), by, (number,))
            if part is None:
                return None
            result.values[free] = part.values
            result = replace(result, objective=part.objective)
        return result

    @pyscript_compile
    def _in_room_left(self, bound: float) -> Result | None:
        """Return a solution part by part: each beside those before it, and without those that follow.

        None where it is poor, by a bound of all costs: then those before have taken what others need.
        """
        problem, blocks = self.problem, self.blocks
        values, part = np.zeros(len(problem.costs)), None
        for number in range(len(blocks)):
            later = blocks[number + 1 :]
            absent = any_of(later) if later else np.zeros_like(blocks[0])
            free, by = self._free((number,)), self._share_of_time(len(blocks) - number)
            rest = problem.without(absent).part(free, values)
            part = self._part(rest, self._share_of_effort(part), by, is_needed=False)
            if part is None or part.objective - bound > self.effort.poor:
                return None
            values[free] = part.values
        return part and replace(part, values=values)

    @pyscript_compile
    def _free(self, numbers: tuple[int, ...]) -> Mask:
        """Return which columns are free where some parts are solved, and all others are as they are."""
        others = [block for number, block in enumerate(self.blocks) if number not in numbers]
        return ~any_of(others) if others else np.ones(len(self.problem.costs), bool)

    @pyscript_compile
    def _share_of_time(self, count: int) -> float:
        """Return by when one of several parts is to be solved."""
        now = time.thread_time()
        return now + max((self.improved_by - now) / count, PART_TIME_SHARE * self.effort.seconds)

    @pyscript_compile
    def _share_of_effort(self, result: Result | None) -> Effort:
        """Return the effort for a part: its share of the gap that is near enough for all."""
        gap = (self.effort.gap_of(result.objective) if result else self.effort.gap) / len(self.blocks)
        gap = max(gap, PART_GAP_SHARE * self.effort.gap)
        return replace(self.effort, gap=gap, relative_gap=0.0)

    @pyscript_compile
    def _improved(self, result: Result, is_tight: bool) -> Result:
        """Return a solution that is improved part by part, for as long as that saves something."""
        has_pairs = is_tight or len(self.blocks) <= MAX_PAIRED_PARTS
        rounds = neighbourhoods(len(self.blocks), 2 if has_pairs else 1)
        cost_before = math.inf
        while not self._is_done(result, cost_before):
            cost_before = result.objective
            for numbers in rounds:
                if self._is_done(result):
                    break
                effort, free = self._share_of_effort(result), self._free(numbers)
                max_cost, by = result.objective - effort.gap, self._share_of_time(2)
                problem = self.problem.part(free, result.values)
                part = self._part(problem, effort, by, numbers, max_cost, is_needed=False)
                if part is not None and part.objective < max_cost:
                    values = result.values.copy()
                    values[free] = part.values
                    result = replace(result, values=values, objective=part.objective)
        return result

    @pyscript_compile
    def _is_done(self, result: Result, cost_before: float = math.inf) -> bool:
        """Return whether there is no more time, or no need, or a round has saved next to nothing."""
        is_poor = result.objective - result.bound > self.effort.poor
        by = self.better_by if is_poor else self.improved_by
        if by - time.thread_time() < MIN_SEARCH_SECONDS:
            return True
        return self.effort.is_enough(result.objective, result.bound) or (
            cost_before < math.inf and self.effort.is_enough(cost_before, result.objective)
        )

    @pyscript_compile
    def _as_hinted(self) -> Result:
        """Return the best solution with what is hinted at."""
        is_hinted = ~np.isnan(self.hinted)
        values: Floats = np.where(is_hinted, self.hinted, 0.0)
        deadline = time.thread_time() + PATIENCE_FACTOR * self.effort.patience
        rest = solved(self.problem.part(~is_hinted, values), self.effort, deadline)
        if rest is None:
            raise NoSolution("no solution meets all constraints, or there was no time to find one")
        values[~is_hinted] = rest.values
        return Result(values=values, objective=rest.objective, bound=-math.inf)


Search = _Search


@pyscript_compile
def any_of(masks: Sequence[Mask]) -> Mask:
    """Return where any of some masks holds."""
    return np.asarray(np.any(masks, axis=0))


@pyscript_compile
def neighbourhoods(count: int, max_size: int) -> list[tuple[int, ...]]:
    """Return the numbers of the parts that are solved together: each alone, then pairs, up to a size."""
    return [numbers for size in range(1, max_size + 1) for numbers in combinations(range(count), size)]


@pyscript_compile
def best_of(first: Result | None, second: Result | None) -> Result | None:
    """Return the Result that costs less, the first of two as good, with the better bound; None of none."""
    if first is None or second is None:
        return first or second
    best = first if first.objective <= second.objective else second
    return replace(best, bound=max(first.bound, second.bound))


@pyscript_compile
def solved(problem: Problem, effort: Effort, deadline: float) -> Result | None:
    """Return the Result of a Problem by HiGHS, or None where there is none, or none by the deadline."""
    import highspy  # it takes a tenth of a second, and may be missing

    if not len(problem.costs):
        if len(problem.row_lower):
            return None
        return Result(values=np.zeros(0), objective=problem.offset, bound=problem.offset)
    solver = highspy.Highs()
    seconds = max(deadline - time.thread_time(), MIN_SEARCH_SECONDS)
    relative_gap = effort.relative_gap if math.isinf(effort.max_gap) else 0.0
    gaps = {"mip_abs_gap": effort.gap * COST_SCALE, "mip_rel_gap": relative_gap}
    for name, value in (OPTIONS | gaps | {"time_limit": seconds}).items():
        solver.setOptionValue(name, value)
    solver.passModel(problem.for_highs(highspy))
    solver.run()
    info = solver.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    objective = info.objective_function_value / COST_SCALE
    is_mixed = problem.whole.any()
    is_optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    bound = info.mip_dual_bound / COST_SCALE if is_mixed else objective if is_optimal else -math.inf
    values = np.array(solver.getSolution().col_value)
    return Result(values=np.where(problem.whole, np.round(values), values), objective=objective, bound=bound)
