"""Linear programs: expressions, constraints, and what HiGHS makes of them."""

import importlib
import math

import numpy as np
import pytest

import flexmeasures_cem.optimisation.search as search


@pytest.fixture
def linear():
    """Return the module under test."""
    return importlib.import_module("flexmeasures_cem.optimisation.linear")


def values_of(linear, expression, values):
    """Return what an Expression comes to where the columns have some values."""
    return linear.Solution(np.array(values, float), 0.0, 0.0).of(expression).tolist()


def test_expressions_are_reckoned_with_as_vectors(linear):
    program = linear.Program()
    x, y = program.variables(3), program.variables(3)
    values = [1, 2, 3, 10, 20, 30]
    for expression, expected in (
        (x + y * 2 - 1, [20, 41, 62]),
        (5 - x * [1, 0, 2], [4, 5, -1]),
        (x[1:], [2, 3]),
        (y[np.array([True, False, True])], [10, 30]),
        ((x + 1)[0], [2]),
        (x.sum() + y[:1], [16]),
        (x.sum().spread(2), [6, 6]),
        (x.times([[1, 1, 0], [0, 0, 2]]), [3, 6]),
        (linear.joined([linear.constant([7.0]), x[:-1]]), [7, 1, 2]),
        (linear.total([], 2), [0, 0]),
    ):
        assert values_of(linear, expression, values) == expected


def test_functions_are_gathered_with_weights(linear):
    x = linear.Program().variables(3)
    both = x + linear.joined([linear.constant([4.0]), x[:-1]])
    gathered = both.gathered(np.array([0, 2, 2]), np.array([1, 0, 2]), np.array([1.0, 2.0, 10.0]), 4)
    assert values_of(linear, both, [1, 2, 3]) == [5, 3, 5]
    assert values_of(linear, gathered, [1, 2, 3]) == [3, 0, 2 * 5 + 10 * 5, 0]


def test_the_least_cost_is_found(linear):
    program = linear.Program()
    x, y = program.variables(2, 0.0, [4.0, 1.0]), program.variables(2)
    program.equate(x + y, np.array([5.0, 3.0]))
    program.require(x[:1] - y[:1], upper=1.0)
    program.pay(x * 1.0 + y * [2.0, 3.0] + 0.5)
    solution = program.solve(search.Effort())
    assert solution.of(x) == pytest.approx([3, 1])
    assert solution.of(y) == pytest.approx([2, 2])
    assert solution.objective == pytest.approx(3 + 1 + 4 + 6 + 1)
    assert solution.gap == 0.0


def test_whole_variables_are_whole(linear):
    program = linear.Program()
    count = program.variables(1, 0.0, math.inf, whole=True)
    program.require(count * 3.0, 7.0)
    program.pay(count)
    solution = program.solve(search.Effort())
    assert solution.of(count) == pytest.approx([3])
    assert solution.gap == pytest.approx(0.0)


def test_a_column_that_is_named_twice_counts_twice(linear):
    program = linear.Program()
    x = program.variables(1)
    program.require(x + x + x * -1.0, 2.0)
    program.pay(x)
    assert program.solve(search.Effort()).of(x) == pytest.approx([2])


def test_a_millionth_is_told_apart(linear):
    program = linear.Program()
    on = program.variables(2, 0.0, 1.0, whole=True)
    program.equate(on.sum(), 1.0)
    program.pay(on * [1.0 + 2e-7, 1.0])
    effort = search.Effort(gap=1e-8, relative_gap=0.0)
    assert program.solve(effort).of(on) == pytest.approx([0, 1])


def test_what_cannot_be_has_no_solution(linear):
    program = linear.Program()
    x = program.variables(1, 0.0, 1.0)
    program.require(x, 2.0)
    with pytest.raises(search.NoSolution):
        program.solve(search.Effort())


def test_what_is_hinted_at_is_taken_where_nothing_is_found_in_time(linear):
    program, chance = linear.Program(), np.random.default_rng(1)
    on, hinted = program.variables(60, 0.0, 1.0, whole=True), chance.integers(0, 2, 60)
    for _constraint in range(20):
        weights = chance.integers(1, 50, 60)
        program.require((on * weights).sum(), *[(weights * hinted).sum()] * 2)
    program.pay(on * chance.integers(1, 50, 60))
    at_once = search.Effort(seconds=0.0, patience=0.0)
    with pytest.raises(search.NoSolution):
        program.solve(at_once)
    program.hint(on, hinted)
    assert program.solve(at_once).of(on) == pytest.approx(hinted)
