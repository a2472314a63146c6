"""Linear programs: affine expressions over numpy, constraints that read like them, and HiGHS to solve them.

An Expression is a vector of affine functions of a program's columns (variables), mostly one for each step.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

import flexmeasures_cem.optimisation.search as search
from flexmeasures_cem.optimisation.arrays import Floats, Integers, Mask, Numbers, sums


@dataclass(eq=False)
class _Expression:
    """A vector of affine functions: for each entry `factors` times the column is added to its row."""

    rows: Integers
    columns: Integers
    factors: Floats
    constant: Floats

    @pyscript_compile
    def __len__(self) -> int:
        return len(self.constant)

    @pyscript_compile
    def __add__(self, term: "Expression | Numbers") -> "Expression":
        if not isinstance(term, Expression):
            return Expression(self.rows, self.columns, self.factors, self.constant + np.asarray(term, float))
        return Expression(
            np.concatenate([self.rows, term.rows]),
            np.concatenate([self.columns, term.columns]),
            np.concatenate([self.factors, term.factors]),
            self.constant + term.constant,
        )

    @pyscript_compile
    def __mul__(self, factor: Numbers) -> "Expression":
        by_row = np.broadcast_to(np.asarray(factor, float), self.constant.shape)
        return Expression(self.rows, self.columns, self.factors * by_row[self.rows], self.constant * by_row)

    @pyscript_compile
    def __neg__(self) -> "Expression":
        return self * -1.0

    @pyscript_compile
    def __sub__(self, term: "Expression | Numbers") -> "Expression":
        return self + (-term if isinstance(term, Expression) else -np.asarray(term, float))

    @pyscript_compile
    def __rsub__(self, term: Numbers) -> "Expression":
        return -self + term

    @pyscript_compile
    def __getitem__(self, places: int | slice | Integers | Mask) -> "Expression":
        """Return the functions at a place, in a slice, or where a mask holds."""
        chosen = np.atleast_1d(np.arange(len(self))[places])
        renumbered = np.full(len(self), -1)
        renumbered[chosen] = np.arange(len(chosen))
        rows = renumbered[self.rows]
        kept = rows >= 0
        return Expression(rows[kept], self.columns[kept], self.factors[kept], self.constant[chosen])

    @pyscript_compile
    def sum(self) -> "Expression":
        """Return the sum of all functions, as a vector of one."""
        none = np.zeros_like(self.rows)
        return Expression(none, self.columns, self.factors, self.constant.sum(keepdims=True))

    @pyscript_compile
    def spread(self, count: int) -> "Expression":
        """Return a vector of one as one of `count` equal functions."""
        rows = np.repeat(np.arange(count), len(self.columns))
        return Expression(
            rows,
            np.tile(self.columns, count),
            np.tile(self.factors, count),
            np.repeat(self.constant, count),
        )

    @pyscript_compile
    def times(self, matrix: Numbers) -> "Expression":
        """Return a matrix times the vector: a row of the matrix makes one function."""
        weights = np.asarray(matrix, float)
        factors = weights[:, self.rows] * self.factors
        rows, entries = np.nonzero(factors)
        return Expression(rows, self.columns[entries], factors[rows, entries], weights @ self.constant)

    @pyscript_compile
    def gathered(self, rows: Integers, places: Integers, weights: Numbers, count: int) -> "Expression":
        """Return `count` functions: to each of some rows the function at a place is added, times a weight."""
        order = np.argsort(self.rows, kind="stable")
        starts = np.searchsorted(self.rows[order], np.arange(len(self) + 1))
        lengths = (starts[1:] - starts[:-1])[places]
        of = np.repeat(np.arange(len(places)), lengths)
        entries = order[starts[:-1][places][of] + np.arange(len(of)) - (np.cumsum(lengths) - lengths)[of]]
        weight = np.broadcast_to(np.asarray(weights, float), (len(places),))
        constant = sums(rows, self.constant[places] * weight, count)
        return Expression(rows[of], self.columns[entries], self.factors[entries] * weight[of], constant)

    __radd__ = __add__
    __rmul__ = __mul__
    __array_ufunc__ = None


Expression = _Expression


@pyscript_compile
def constant(values: Numbers) -> Expression:
    """Return an Expression without any column."""
    none = np.zeros(0, int)
    return Expression(none, none, np.zeros(0), np.array(values, float))


@pyscript_compile
def total(expressions: Iterable[Expression], count: int) -> Expression:
    """Return the sum of Expressions of a length, of none too."""
    return sum(expressions, constant(np.zeros(count)))


@pyscript_compile
def joined(expressions: Sequence[Expression]) -> Expression:
    """Return Expressions one after the other, as one vector."""
    offsets = np.cumsum([0, *[len(expression) for expression in expressions]])
    rows = [expression.rows + offset for expression, offset in zip(expressions, offsets[:-1], strict=True)]
    return Expression(
        np.concatenate(rows),
        np.concatenate([expression.columns for expression in expressions]),
        np.concatenate([expression.factors for expression in expressions]),
        np.concatenate([expression.constant for expression in expressions]),
    )


ROUND_DIGITS = 12
"""To how many digits bounds are rounded: a 1e-16 that is left of a difference is no bound."""


@dataclass(eq=False)
class _Solution:
    """The columns' values of a solved program; `gap` is what the optimum may be better by at most."""

    values: Floats
    objective: float
    gap: float

    @pyscript_compile
    def of(self, expression: Expression) -> Floats:
        """Return the values of an Expression's functions."""
        products = expression.factors * self.values[expression.columns]
        return expression.constant + sums(expression.rows, products, len(expression))


Solution = _Solution


@dataclass(eq=False)
class _Program:
    """A program in the making: columns, constraints, and the cost that is minimised."""

    @pyscript_compile
    def __post_init__(self) -> None:
        none = np.zeros(0)
        self.count = 0
        self.lower: list[Floats] = [none]
        self.upper: list[Floats] = [none]
        self.whole: list[Mask] = [none.astype(bool)]
        self.constraints: list[tuple[Expression, Numbers, Numbers]] = [(constant(none), 0.0, 0.0)]
        self.costs: list[Expression] = []
        self.hints: list[tuple[Integers, Floats]] = []

    @pyscript_compile
    def variables(
        self, count: int, lower: Numbers = 0.0, upper: Numbers = math.inf, whole: bool = False
    ) -> Expression:
        """Return new variables between two bounds, as an Expression; `whole` has them be integers."""
        self.lower.append(np.broadcast_to(np.asarray(lower, float), (count,)))
        self.upper.append(np.broadcast_to(np.asarray(upper, float), (count,)))
        self.whole.append(np.full(count, whole))
        columns = np.arange(self.count, self.count + count)
        self.count += count
        return Expression(np.arange(count), columns, np.ones(count), np.zeros(count))

    @pyscript_compile
    def require(self, expression: Expression, lower: Numbers = -math.inf, upper: Numbers = math.inf) -> None:
        """Keep each function of an Expression between two bounds."""
        self.constraints.append((expression, lower, upper))

    @pyscript_compile
    def equate(self, left: Expression, right: Expression | Numbers) -> None:
        """Have each function of an Expression equal that of another one, or a number."""
        self.require(left - right, 0.0, 0.0)

    @pyscript_compile
    def pay(self, expression: Expression) -> None:
        """Add the sum of an Expression's functions to the cost that is minimised (currency)."""
        self.costs.append(expression.sum())

    @pyscript_compile
    def hint(self, expression: Expression, values: Numbers) -> None:
        """Give values of variables that some solution has, for when no solution is found in time."""
        self.hints.append((expression.columns, np.asarray(values, float)))

    @pyscript_compile
    def solve(self, effort: search.Effort, blocks: Sequence[tuple[int, int]] = ()) -> Solution:
        """Return the Solution of the least cost; raise search.NoSolution, or ImportError without highspy.

        `blocks` has the (first, last) columns of each part that can be solved by itself.
        """
        columns = np.arange(self.count)
        masks = [(columns >= first) & (columns < last) for first, last in blocks]
        result = search.Search(self.problem(), effort, masks, self._hinted()).run()
        return Solution(result.values, result.objective, max(result.objective - result.bound, 0.0))

    @pyscript_compile
    def _hinted(self) -> Floats:
        """Return the values that are hinted at, nan for all other columns."""
        values = np.full(self.count, np.nan)
        for columns, hinted in self.hints:
            values[columns] = hinted
        return values

    @pyscript_compile
    def problem(self) -> search.Problem:
        """Return the program as a search.Problem."""
        costs = np.zeros(self.count)
        for cost in self.costs:
            np.add.at(costs, cost.columns, cost.factors)
        stacked = joined([expression for expression, _lower, _upper in self.constraints])
        rows, columns, factors = merged(stacked, self.count)
        return search.Problem(
            costs=costs,
            offset=float(sum(cost.constant[0] for cost in self.costs)),
            lower=np.concatenate(self.lower),
            upper=np.concatenate(self.upper),
            whole=np.concatenate(self.whole),
            row_lower=row_bounds([(expression, lower) for expression, lower, _upper in self.constraints]),
            row_upper=row_bounds([(expression, upper) for expression, _lower, upper in self.constraints]),
            rows=rows,
            columns=columns,
            factors=factors,
        )


Program = _Program


@pyscript_compile
def row_bounds(bounded: Iterable[tuple[Expression, Numbers]]) -> Floats:
    """Return the bounds of the rows that Expressions come to, whose constants go to the other side."""
    bounds: list[Floats] = [
        np.broadcast_to(np.asarray(bound, float), (len(expression),)) - expression.constant
        for expression, bound in bounded
    ]
    return np.concatenate(bounds).round(ROUND_DIGITS)


@pyscript_compile
def merged(expression: Expression, count: int) -> tuple[Integers, Integers, Floats]:
    """Return (rows, columns, factors) in order, with each column once in a row."""
    keys, places = np.unique(expression.rows * count + expression.columns, return_inverse=True)
    factors = sums(places, expression.factors, len(keys))
    kept = factors != 0.0
    return keys[kept] // count, keys[kept] % count, factors[kept]
