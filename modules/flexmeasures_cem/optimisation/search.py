"""How a program with whole variables is solved: by HiGHS, and part by part where it is large.

First the program is relaxed: whole variables may be any number. That costs no more than the optimum, so it
tells how good a solution is. What is whole then can stay, mostly: the rest is a small program, whose solution
often is near enough. Of a large program that is done part by part (a device each), beside what all others do;
and again, also with two parts together, for as long as that saves something and there is time.
"""

import math
import time
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

COST_SCALE = 1e3
"""What costs are multiplied by for HiGHS, which tells none apart below 1e-6."""
WITHOUT_PROBING = 1 << 15
"""HiGHS' option presolve_rule_off: to probe each whole variable takes longer than to solve what has many."""
OPTIONS = {
    "output_flag": False,
    "threads": 1,
    "mip_heuristic_run_root_reduced_cost": False,  # it takes longer than all else, and finds nothing
    "presolve_rule_off": WITHOUT_PROBING,
}
PATIENCE = 4.0
"""How many times as long as for a good solution the search for any solution may take."""
PART_SHARE = 0.25
"""Which part of the time the search for a better solution of a part may take in any case."""
PART_GAP = 0.5
"""Which part of the gap of all a part may have in any case."""
LEAST_SECONDS = 0.05
"""What is not worth to begin a search for (s)."""
NEAR_SECONDS = 2.0
"""How many times as long as the whole search the rest of all devices together may take, at a limit."""
NEAR_GAP = 1e-7
"""How near to its optimum (currency) the rest is solved that is not whole, so that nothing is needless."""
FEASIBLE = 1e-4
"""By how much what is given may be beyond a row's bounds."""
REACHED = 1e-7
"""How near to a limit something is that reaches it."""
MAX_PAIRED = 4
"""How many parts are solved in pairs, too, where they share no limit: they may still share a price."""
WHOLE = 1e-6
"""How far from an integer a value is that counts as one."""


class _NoSolution(Exception):
    """HiGHS found no solution in the time that it had, or there is none."""


NoSolution = _NoSolution


@dataclass(frozen=True, kw_only=True)
class _Effort:
    """How long HiGHS may search (s), and how far from the optimum it may stop (currency, part of it).

    What is missed has a price too, so a part of all is `most_gap` at most (currency).

    Until there is a solution that is no more than `poor` from it (currency), it may take `patience` (s), and
    PATIENCE times that until there is any.
    """

    seconds: float = 5.0
    gap: float = 1e-4
    relative_gap: float = 1e-6
    most_gap: float = math.inf
    poor: float = math.inf
    patience: float = 5.0

    @pyscript_compile
    def is_enough(self, objective: float, bound: float) -> bool:
        """Return whether a solution is near enough to a bound of all costs."""
        return objective - bound <= self.gap_of(objective)

    @pyscript_compile
    def gap_of(self, objective: float) -> float:
        """Return how far from the optimum a solution of some cost may be (currency)."""
        return max(self.gap, min(self.relative_gap * abs(objective), self.most_gap))


Effort = _Effort


@dataclass(frozen=True, eq=False, kw_only=True)
class _Problem:
    """A program as arrays: columns with costs and bounds, rows with bounds, and entries in order of rows."""

    costs: Any
    offset: float
    lower: Any
    upper: Any
    whole: Any
    row_lower: Any
    row_upper: Any
    rows: Any
    columns: Any
    factors: Any

    @pyscript_compile
    def part(self, free: Any, values: Any) -> Any:
        """Return the Problem of those columns that are free, where all others have their values."""
        inside = free[self.columns]
        count = len(self.row_lower)
        given = np.bincount(self.rows[~inside], (self.factors * values[self.columns])[~inside], count)
        kept = (given < self.row_lower - FEASIBLE) | (given > self.row_upper + FEASIBLE)
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
    def without(self, absent: Any) -> Any:
        """Return the Problem without some columns, and without the rows that have none but those.

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
    def relaxed(self) -> Any:
        """Return the Problem without the need to be whole."""
        return replace(self, whole=np.zeros_like(self.whole))

    @pyscript_compile
    def for_highs(self, highspy: Any) -> Any:
        """Return the Problem as HiGHS takes it."""
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.costs), len(self.row_lower)
        lp.col_cost_, lp.offset_ = self.costs * COST_SCALE, self.offset * COST_SCALE
        lp.col_lower_, lp.col_upper_ = self.lower, self.upper
        lp.row_lower_, lp.row_upper_ = self.row_lower, self.row_upper
        if self.whole.any():
            kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
            lp.integrality_ = [kinds[each] for each in self.whole.astype(int).tolist()]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.searchsorted(self.rows, np.arange(lp.num_row_ + 1)).astype(np.int32)
        lp.a_matrix_.index_ = self.columns.astype(np.int32)
        lp.a_matrix_.value_ = self.factors
        return lp


Problem = _Problem


@dataclass(frozen=True, eq=False, kw_only=True)
class _Found:
    """The columns' values of a solution, its cost, and what no solution costs less than (currency)."""

    values: Any
    objective: float
    bound: float


Found = _Found


@dataclass(eq=False)
class _Search:
    """A search for the least cost of a Problem, within so many seconds of this thread's processor time.

    `blocks` has a mask of columns for each part that can be solved by itself: what is in none of them goes
    with each. `hinted` has values of some solution, or nan.
    """

    problem: Any
    effort: Any
    blocks: Any = ()
    hinted: Any = None

    @pyscript_compile
    def __post_init__(self) -> None:
        self.improved_by = time.thread_time() + self.effort.seconds
        self.better_by = self.improved_by + self.effort.patience
        self.deadline = self.improved_by + PATIENCE * self.effort.patience
        self.dearer = {}

    @pyscript_compile
    def run(self) -> Found:
        """Return the best that was found; raise NoSolution, or ImportError without highspy."""
        problem, effort = self.problem, self.effort
        if len(self.blocks) < 2 or not problem.whole.any():
            return self._part(problem, effort, self.improved_by) or self._as_hinted()
        relaxed = solved(problem.relaxed(), effort, self.deadline)
        if relaxed is None:
            return self._as_hinted()
        is_tight = self._is_tight(relaxed.values)
        found = None
        if is_tight:
            found = self._in_room_left(relaxed.bound) or self._near_in_time(relaxed)
        found = found or self._in_turn(relaxed) or self._as_hinted()
        found = replace(found, bound=relaxed.bound)
        return self._improved(found, is_tight)

    @pyscript_compile
    def _part(
        self,
        problem: Any,
        effort: Any,
        by: float,
        key: tuple = (),
        most: float = math.inf,
        is_needed: bool = True,
    ) -> Any:
        """Return what is found for a part of the program, or None: by what stays whole, else by all of it.

        The search is left off at a moment, but one that is needed not before anything is found. None too
        where it would not cost less than `most`, as far as is known of the part by its `key`: by how much it
        is dearer at least than if it is relaxed.
        """
        longest = self.deadline if is_needed else by
        relaxed = solved(problem.relaxed(), effort, self.deadline)
        if relaxed is None or not problem.whole.any():
            return relaxed
        relaxed = replace(relaxed, bound=relaxed.bound + self.dearer.get(key, 0.0))
        if relaxed.bound >= most:
            return None
        precise = replace(effort, gap=min(effort.gap, NEAR_GAP), relative_gap=0.0)
        found = self._near(problem, relaxed, precise, longest)
        if found is not None and effort.is_enough(found.objective, found.bound):
            return found
        if found is not None:
            by = self.better_by if is_needed and found.objective - found.bound > effort.poor else by
            if by - time.thread_time() < LEAST_SECONDS:
                return found
        other = solved(problem, effort, longest if found is None else by)
        if other is not None:
            self.dearer[key] = max(other.bound - relaxed.objective, 0.0)
            is_kept = problem.whole & (np.abs(other.values - relaxed.values) <= WHOLE)
            better = self._with(problem, is_kept, other, precise, longest)
            other = best_of([each for each in (other, better) if each is not None])
        return best_of([each for each in (found, other) if each is not None])

    @pyscript_compile
    def _near(self, problem: Any, relaxed: Any, effort: Any, by: float) -> Any:
        """Return the best Found that has what is whole in a relaxed one, or None of none by a moment."""
        is_whole = problem.whole & (np.abs(relaxed.values - np.round(relaxed.values)) <= WHOLE)
        return self._with(problem, is_whole, relaxed, effort, by)

    @pyscript_compile
    def _near_in_time(self, relaxed: Found) -> Any:
        """Return a Found near a relaxed one of the whole program, after longer where it is poor, or None."""
        for by in (time.thread_time() + NEAR_SECONDS * self.effort.seconds, self.deadline):
            found = self._near(self.problem, relaxed, self.effort, by)
            if found is not None and found.objective - relaxed.bound <= self.effort.poor:
                break
        return found

    @pyscript_compile
    def _with(self, problem: Any, is_kept: Any, found: Any, effort: Any, by: float) -> Any:
        """Return the best Found that keeps some whole variables of another, or None of none by a moment."""
        values = np.where(is_kept, np.round(found.values), found.values)
        rest = solved(problem.part(~is_kept, values), effort, by)
        if rest is None:
            return None
        values[~is_kept] = rest.values
        return replace(found, values=values, objective=rest.objective)

    @pyscript_compile
    def _is_tight(self, values: Any) -> bool:
        """Return whether a limit that parts share is reached: so they cannot be solved in turn."""
        problem = self.problem
        shared = ~np.any(self.blocks, axis=0)
        count = len(problem.row_lower)
        sums = np.bincount(problem.rows, problem.factors * values[problem.columns], count)
        is_shared = np.zeros(count, bool)
        is_shared[problem.rows[shared[problem.columns]]] = True
        is_limit = is_shared & (problem.row_lower < problem.row_upper)
        is_reached = (sums - problem.row_lower < REACHED) | (problem.row_upper - sums < REACHED)
        return bool((is_limit & is_reached).any())

    @pyscript_compile
    def _in_turn(self, relaxed: Found) -> Any:
        """Return a solution part by part: each beside those before it, and all others as they are relaxed."""
        found = replace(relaxed, values=relaxed.values.copy())
        for number in range(len(self.blocks)):
            free, by = self._free((number,)), self._share_of_time(len(self.blocks) - number)
            part = self.problem.part(free, found.values)
            part = self._part(part, self._share_of_effort(found), by, (number,))
            if part is None:
                return None
            found.values[free] = part.values
            found = replace(found, objective=part.objective)
        return found

    @pyscript_compile
    def _in_room_left(self, bound: float) -> Any:
        """Return a solution part by part: each beside those before it, and without those that follow.

        None where it is poor, by a bound of all costs: then those before have taken what others need.
        """
        problem, blocks = self.problem, self.blocks
        values, found = np.zeros(len(problem.costs)), None
        for number in range(len(blocks)):
            later = (
                np.any(blocks[number + 1 :], axis=0) if number + 1 < len(blocks) else np.zeros_like(blocks[0])
            )
            free, by = self._free((number,)), self._share_of_time(len(blocks) - number)
            part = problem.without(later).part(free, values)
            found = self._part(part, self._share_of_effort(found), by, is_needed=False)
            if found is None or found.objective - bound > self.effort.poor:
                return None
            values[free] = found.values
        return replace(found, values=values)

    @pyscript_compile
    def _free(self, numbers: tuple) -> Any:
        """Return which columns are free where some parts are solved, and all others are as they are."""
        others = [block for number, block in enumerate(self.blocks) if number not in numbers]
        return ~np.any(others, axis=0) if others else np.ones(len(self.problem.costs), bool)

    @pyscript_compile
    def _share_of_time(self, count: int) -> float:
        """Return by when one of several parts is to be solved."""
        now = time.thread_time()
        return now + max((self.improved_by - now) / count, PART_SHARE * self.effort.seconds)

    @pyscript_compile
    def _share_of_effort(self, found: Any) -> Any:
        """Return the effort for a part: its share of what is near enough for all, as far as it is known."""
        gap = (self.effort.gap_of(found.objective) if found else self.effort.gap) / len(self.blocks)
        gap = max(gap, PART_GAP * self.effort.gap)
        return replace(self.effort, gap=gap, relative_gap=0.0)

    @pyscript_compile
    def _improved(self, found: Found, is_tight: bool) -> Found:
        """Return a solution that is improved part by part, for as long as that saves something."""
        has_pairs = is_tight or len(self.blocks) <= MAX_PAIRED
        rounds = neighbourhoods(len(self.blocks), 2 if has_pairs else 1)
        before = math.inf
        while not self._is_done(found, before):
            before = found.objective
            for numbers in rounds:
                if self._is_done(found):
                    break
                effort, free = self._share_of_effort(found), self._free(numbers)
                most, by = found.objective - effort.gap, self._share_of_time(2)
                part = self.problem.part(free, found.values)
                better = self._part(part, effort, by, numbers, most, is_needed=False)
                if better is not None and better.objective < most:
                    values = found.values.copy()
                    values[free] = better.values
                    found = replace(found, values=values, objective=better.objective)
        return found

    @pyscript_compile
    def _is_done(self, found: Found, before: float = math.inf) -> bool:
        """Return whether there is no more time, or no need, or a round has saved next to nothing."""
        is_poor = found.objective - found.bound > self.effort.poor
        until = self.better_by if is_poor else self.improved_by
        if until - time.thread_time() < LEAST_SECONDS:
            return True
        return self.effort.is_enough(found.objective, found.bound) or (
            before < math.inf and self.effort.is_enough(before, found.objective)
        )

    @pyscript_compile
    def _as_hinted(self) -> Found:
        """Return the best solution with what is hinted at."""
        is_hinted = ~np.isnan(self.hinted)
        values = np.where(is_hinted, self.hinted, 0.0)
        part = self.problem.part(~is_hinted, values)
        found = solved(part, self.effort, time.thread_time() + PATIENCE * self.effort.patience)
        if found is None:
            raise NoSolution("no solution meets all constraints, or there was no time to find one")
        values[~is_hinted] = found.values
        return Found(values=values, objective=found.objective, bound=-math.inf)


Search = _Search


@pyscript_compile
def neighbourhoods(count: int, most: int) -> list[tuple]:
    """Return the numbers of the parts that are solved together: each by itself, then pairs, up to `most`."""
    return [numbers for size in range(1, most + 1) for numbers in combinations(range(count), size)]


@pyscript_compile
def best_of(several: list) -> Any:
    """Return the Found that costs least, with the best bound of several, or None of none."""
    if not several:
        return None
    costs = [each.objective for each in several]
    return replace(several[costs.index(min(costs))], bound=max(each.bound for each in several))


@pyscript_compile
def solved(problem: Problem, effort: Any, deadline: float) -> Any:
    """Return the Found of a Problem by HiGHS, or None where there is none, or none was found in time."""
    import highspy  # it takes a tenth of a second, and may be missing

    if not len(problem.costs):
        if len(problem.row_lower):
            return None
        return Found(values=np.zeros(0), objective=problem.offset, bound=problem.offset)
    solver = highspy.Highs()
    seconds = max(deadline - time.thread_time(), LEAST_SECONDS)
    relative = effort.relative_gap if math.isinf(effort.most_gap) else 0.0
    gaps = {"mip_abs_gap": effort.gap * COST_SCALE, "mip_rel_gap": relative}
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
    return Found(values=np.where(problem.whole, np.round(values), values), objective=objective, bound=bound)
