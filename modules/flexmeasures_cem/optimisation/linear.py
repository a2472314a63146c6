"""Linear programs: affine expressions over numpy, constraints that read like them, and HiGHS to solve them.

An Expression is a vector of affine functions of a program's columns (variables), one for each step mostly.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import flexmeasures_cem.optimisation.search as search


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


ROUND_DIGITS = 12
"""To how many digits bounds are rounded: a 1e-16 that is left of a difference is no bound."""


@dataclass(eq=False)
class _Solution:
    """The columns' values of a solved program; `gap` is what the optimum may be better by at most."""

    values: Any
    objective: float
    gap: float

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
    def __post_init__(self) -> None:
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
    def solve(self, effort, blocks=()):
        """Return the Solution of the least cost; raise search.NoSolution, or ImportError without highspy.

        `blocks` has (first, last) columns of each part that can be solved beside what all others do.
        """
        columns = np.arange(self.count)
        masks = [(columns >= first) & (columns < last) for first, last in blocks]
        found = search.Search(self.problem(), effort, masks, self._hinted()).run()
        gap = max(found.objective - found.bound, 0.0)
        return Solution(found.values, found.objective, gap)

    @pyscript_compile
    def _hinted(self):
        """Return the values that are hinted at, nan for all other columns."""
        values = np.full(self.count, np.nan)
        for columns, hinted in self.hints:
            values[columns] = hinted
        return values

    @pyscript_compile
    def problem(self):
        """Return the program as a search.Problem."""
        costs = np.zeros(self.count)
        for each in self.costs:
            np.add.at(costs, each.columns, each.factors)
        stacked = joined([each for each, _lower, _upper in self.constraints])
        bounds = [
            [np.broadcast_to(np.asarray(bound, float), (len(each),)) - each.constant for bound in both]
            for each, *both in self.constraints
        ]
        row_lower, row_upper = (
            np.round(np.concatenate(each), ROUND_DIGITS) for each in zip(*bounds, strict=True)
        )
        rows, columns, factors = merged(stacked, self.count)
        return search.Problem(
            costs=costs,
            offset=float(sum(each.constant[0] for each in self.costs)),
            lower=np.concatenate(self.lower),
            upper=np.concatenate(self.upper),
            whole=np.concatenate(self.whole),
            row_lower=row_lower,
            row_upper=row_upper,
            rows=rows,
            columns=columns,
            factors=factors,
        )


Program = _Program


@pyscript_compile
def merged(expression, count):
    """Return (rows, columns, factors) in order, with each column once in a row."""
    keys, places = np.unique(expression.rows * count + expression.columns, return_inverse=True)
    factors = np.bincount(places, expression.factors, len(keys))
    kept = factors != 0.0
    return keys[kept] // count, keys[kept] % count, factors[kept]
