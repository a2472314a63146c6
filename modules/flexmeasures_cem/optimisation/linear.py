"""Linear programs: affine expressions over numpy, constraints that read like them, and HiGHS to solve them.

An Expression is a vector of affine functions of a program's columns (variables), one for each step mostly.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

WITHOUT_PROBING = 1 << 15
"""HiGHS' option presolve_rule_off: to probe each whole variable takes longer than to solve what has many."""


@dataclass(eq=False)
class _Expression:
    """A vector of affine functions: for each entry `factors` times the column is added to its row."""

    rows: Any
    columns: Any
    factors: Any
    constant: Any

    @pyscript_compile
    def __len__(self):
        return len(self.constant)

    @pyscript_compile
    def __add__(self, other):
        if not isinstance(other, Expression):
            return Expression(self.rows, self.columns, self.factors, self.constant + other)
        return Expression(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.columns, other.columns]),
            np.concatenate([self.factors, other.factors]),
            self.constant + other.constant,
        )

    @pyscript_compile
    def __mul__(self, factor):
        each = np.broadcast_to(np.asarray(factor, float), self.constant.shape)
        return Expression(self.rows, self.columns, self.factors * each[self.rows], self.constant * each)

    @pyscript_compile
    def __neg__(self):
        return self * -1.0

    @pyscript_compile
    def __sub__(self, other):
        return self + -other

    @pyscript_compile
    def __rsub__(self, other):
        return -self + other

    @pyscript_compile
    def __getitem__(self, places):
        """Return the functions at a place, in a slice, or where a mask holds."""
        chosen = np.atleast_1d(np.arange(len(self))[places])
        renumbered = np.full(len(self), -1)
        renumbered[chosen] = np.arange(len(chosen))
        rows = renumbered[self.rows]
        kept = rows >= 0
        return Expression(rows[kept], self.columns[kept], self.factors[kept], self.constant[chosen])

    @pyscript_compile
    def sum(self):
        """Return the sum of all functions, as a vector of one."""
        none = np.zeros_like(self.rows)
        return Expression(none, self.columns, self.factors, self.constant.sum(keepdims=True))

    @pyscript_compile
    def spread(self, count):
        """Return a vector of one as one of `count` equal functions."""
        rows = np.repeat(np.arange(count), len(self.columns))
        return Expression(
            rows,
            np.tile(self.columns, count),
            np.tile(self.factors, count),
            np.repeat(self.constant, count),
        )

    @pyscript_compile
    def times(self, matrix):
        """Return a matrix times the vector: a row of the matrix makes one function."""
        matrix = np.asarray(matrix, float)
        factors = matrix[:, self.rows] * self.factors
        rows, entries = np.nonzero(factors)
        return Expression(rows, self.columns[entries], factors[rows, entries], matrix @ self.constant)

    @pyscript_compile
    def gathered(self, rows, places, weights, count):
        """Return `count` functions: to each of some rows the function at a place is added, times a weight."""
        order = np.argsort(self.rows, kind="stable")
        starts = np.searchsorted(self.rows[order], np.arange(len(self) + 1))
        lengths = (starts[1:] - starts[:-1])[places]
        of = np.repeat(np.arange(len(places)), lengths)
        entries = order[starts[:-1][places][of] + np.arange(len(of)) - (np.cumsum(lengths) - lengths)[of]]
        weights = np.broadcast_to(np.asarray(weights, float), (len(places),))
        constant = np.bincount(rows, self.constant[places] * weights, count)
        return Expression(rows[of], self.columns[entries], self.factors[entries] * weights[of], constant)

    __radd__ = __add__
    __rmul__ = __mul__
    __array_ufunc__ = None


Expression = _Expression


@pyscript_compile
def constant(values):
    """Return an Expression without any column."""
    none = np.zeros(0, int)
    return Expression(none, none, np.zeros(0), np.array(values, float))


@pyscript_compile
def total(expressions, count):
    """Return the sum of Expressions of a length, of none too."""
    return sum(expressions, constant(np.zeros(count)))


@pyscript_compile
def joined(expressions):
    """Return Expressions one after the other, as one vector."""
    offsets = np.cumsum([0, *[len(each) for each in expressions]])
    return Expression(
        np.concatenate([each.rows + offset for each, offset in zip(expressions, offsets[:-1], strict=True)]),
        np.concatenate([each.columns for each in expressions]),
        np.concatenate([each.factors for each in expressions]),
        np.concatenate([each.constant for each in expressions]),
    )


COST_SCALE = 1e3
"""What costs are multiplied by for HiGHS, which tells none apart below 1e-6."""

HINT_SECONDS = 5.0
"""How long HiGHS may take with all that is hinted at given (s)."""
ROUND_DIGITS = 12
"""To how many digits bounds are rounded: a 1e-16 that is left of a difference is no bound."""


class _NoSolution(Exception):
    """HiGHS found no solution in the time that it had, or there is none."""


NoSolution = _NoSolution


@dataclass(frozen=True, kw_only=True)
class _Effort:
    """How long HiGHS may search (s), and how far from the optimum it may stop (currency, part of it)."""

    seconds: float = 5.0
    gap: float = 1e-4
    relative_gap: float = 1e-6


Effort = _Effort


@dataclass(eq=False)
class _Solution:
    """The columns' values of a solved program; `gap` is what the optimum may be better by at most."""

    values: Any
    objective: float
    gap: float
    is_optimal: bool

    @pyscript_compile
    def of(self, expression):
        """Return the values of an Expression's functions."""
        products = expression.factors * self.values[expression.columns]
        return expression.constant + np.bincount(expression.rows, products, len(expression))


Solution = _Solution


@dataclass(eq=False)
class _Program:
    """A program in the making: columns, constraints, and the cost that is to be least."""

    @pyscript_compile
    def __post_init__(self):
        self.count, none = 0, np.zeros(0)
        self.lower, self.upper, self.whole = [none], [none], [none.astype(bool)]
        self.constraints, self.costs, self.hints = [(constant(none), 0.0, 0.0)], [], []

    @pyscript_compile
    def variables(self, count, lower=0.0, upper=math.inf, whole=False):
        """Return new variables between two bounds, as an Expression; `whole` has them be integers."""
        self.lower.append(np.broadcast_to(np.asarray(lower, float), (count,)))
        self.upper.append(np.broadcast_to(np.asarray(upper, float), (count,)))
        self.whole.append(np.full(count, whole))
        columns = np.arange(self.count, self.count + count)
        self.count += count
        return Expression(np.arange(count), columns, np.ones(count), np.zeros(count))

    @pyscript_compile
    def require(self, expression, lower=-math.inf, upper=math.inf):
        """Keep each function of an Expression between two bounds."""
        self.constraints.append((expression, lower, upper))

    @pyscript_compile
    def equate(self, one, other):
        """Have each function of an Expression equal another's, or a number."""
        self.require(one - other, 0.0, 0.0)

    @pyscript_compile
    def pay(self, expression):
        """Add the sum of an Expression's functions to the cost that is to be least (currency)."""
        self.costs.append(expression.sum())

    @pyscript_compile
    def hint(self, expression, values):
        """Tell values of variables that some solution has: it is taken where none is found in time."""
        self.hints.append((expression.columns, np.asarray(values, float)))

    @pyscript_compile
    def solve(self, effort):
        """Return the Solution of the least cost; raise NoSolution, or ImportError without highspy."""
        import highspy  # it takes a tenth of a second, and may be missing

        lp = self._highs_lp(highspy)
        solver = run(highspy, lp, effort)
        if not has_solution(highspy, solver) and self.hints:
            # HiGHS is not given them to begin with: 1.16 may return such a start in place of its solution
            columns, values = (np.concatenate(each) for each in zip(*self.hints, strict=True))
            lower, upper = np.array(lp.col_lower_), np.array(lp.col_upper_)
            lower[columns] = upper[columns] = values
            lp.col_lower_, lp.col_upper_ = lower, upper
            solver = run(highspy, lp, replace(effort, seconds=HINT_SECONDS))
        status = solver.getModelStatus()
        if not has_solution(highspy, solver):
            raise NoSolution(solver.modelStatusToString(status))
        info = solver.getInfo()
        values = np.array(solver.getSolution().col_value)
        objective = info.objective_function_value / COST_SCALE
        gap = abs(objective - info.mip_dual_bound / COST_SCALE) if np.concatenate(self.whole).any() else 0.0
        return Solution(values, objective, gap, status == highspy.HighsModelStatus.kOptimal)

    @pyscript_compile
    def _highs_lp(self, highspy):
        """Return the program as HiGHS takes it, row by row."""
        lp = highspy.HighsLp()
        cost = np.zeros(self.count)
        for each in self.costs:
            np.add.at(cost, each.columns, each.factors)
        lp.offset_ = float(sum(each.constant[0] for each in self.costs)) * COST_SCALE
        lp.num_col_ = self.count
        lp.col_cost_ = cost * COST_SCALE
        lp.col_lower_, lp.col_upper_ = np.concatenate(self.lower), np.concatenate(self.upper)
        whole = np.concatenate(self.whole)
        if whole.any():
            kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
            lp.integrality_ = [kinds[each] for each in whole.astype(int).tolist()]
        stacked = joined([each for each, _lower, _upper in self.constraints])
        bounds = [
            [np.broadcast_to(np.asarray(bound, float), (len(each),)) - each.constant for bound in both]
            for each, *both in self.constraints
        ]
        lp.num_row_ = len(stacked)
        lp.row_lower_, lp.row_upper_ = (
            np.round(np.concatenate(each), ROUND_DIGITS) for each in zip(*bounds, strict=True)
        )
        rows, columns, factors = merged(stacked, self.count)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.searchsorted(rows, np.arange(len(stacked) + 1)).astype(np.int32)
        lp.a_matrix_.index_ = columns.astype(np.int32)
        lp.a_matrix_.value_ = factors
        return lp


Program = _Program


@pyscript_compile
def run(highspy, lp, effort):
    """Return the solver that has searched for an LP's least cost."""
    solver = highspy.Highs()
    options = {
        "output_flag": False,
        "threads": 1,
        "time_limit": effort.seconds,
        "mip_abs_gap": effort.gap * COST_SCALE,
        "mip_rel_gap": effort.relative_gap,
        "mip_heuristic_run_root_reduced_cost": False,  # it takes longer than all else, and finds nothing
        "presolve_rule_off": WITHOUT_PROBING,
    }
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(lp)
    solver.run()
    return solver


@pyscript_compile
def has_solution(highspy, solver):
    """Return whether a solver has found a solution."""
    return solver.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible


@pyscript_compile
def merged(expression, count):
    """Return (rows, columns, factors) in order, with each column once in a row."""
    keys, places = np.unique(expression.rows * count + expression.columns, return_inverse=True)
    factors = np.bincount(places, expression.factors, len(keys))
    kept = factors != 0.0
    return keys[kept] // count, keys[kept] % count, factors[kept]
