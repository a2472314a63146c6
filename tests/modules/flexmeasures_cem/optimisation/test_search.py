"""How programs with whole variables are solved: near the optimum, part by part, and always with an answer."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.search as search
from tests.parts.trials import trials

EXACT = search.Effort(seconds=5.0, gap=1e-6, relative_gap=0.0)
STEPS = 4


def switches(prices, powers, limit, least):
    """Return (program, switches, blocks): devices that are on or off, each for some steps, within a limit."""
    program = linear.Program()
    on, blocks = [], []
    for power, steps in zip(powers, least, strict=True):
        first = program.count
        on.append(program.variables(STEPS, 0.0, 1.0, whole=True))
        lack = program.variables(1)
        program.require(on[-1].sum() + lack, steps)
        program.pay(lack * 50.0)
        program.pay(on[-1] * np.array(prices) * power)
        blocks.append((first, program.count))
    excess = program.variables(STEPS)
    total = linear.total([each * power for each, power in zip(on, powers, strict=True)], STEPS)
    program.require(total - excess, upper=limit)
    program.pay(excess * 1000.0)
    return program, on, blocks


def cost_of(choice, prices, powers, limit, least):
    """Return what a choice of on or off costs, by arithmetic of its own."""
    on = np.array(choice).reshape(len(powers), STEPS)
    lack = np.maximum(np.array(least) - on.sum(axis=1), 0).sum()
    excess = np.maximum(np.array(powers) @ on - limit, 0).sum()
    return float((np.array(powers) @ on) @ np.array(prices) + 50.0 * lack + 1000.0 * excess)


@trials(40)
@given(
    prices=st.lists(st.integers(-3, 9), min_size=STEPS, max_size=STEPS),
    powers=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    limit=st.integers(2, 8),
    data=st.data(),
)
def test_parts_that_share_a_limit_come_to_the_optimum_together(prices, powers, limit, data):
    least = [data.draw(st.integers(0, STEPS)) for _power in powers]
    program, on, blocks = switches(prices, powers, limit, least)
    found = program.solve(EXACT, blocks)
    choices = itertools.product((0, 1), repeat=STEPS * len(powers))
    best = min(cost_of(each, prices, powers, limit, least) for each in choices)
    chosen = np.concatenate([found.of(each) for each in on])
    assert chosen == pytest.approx(np.round(chosen), abs=1e-5)
    assert found.objective == pytest.approx(cost_of(np.round(chosen), prices, powers, limit, least), abs=1e-4)
    assert found.objective - found.gap <= best + 1e-4, "the bound is one"
    assert found.objective <= best + (1e-4 if len(powers) == 2 else 0.25 * abs(best) + 5.0)


def test_what_is_near_enough_is_not_searched_further(monkeypatch):
    program = linear.Program()
    on = program.variables(2, 0.0, 1.0, whole=True)
    program.require(on.sum() * 2.0, 3.0)
    program.pay(on * [1.0, 1.1])
    runs = []
    solved = search.solved

    def counted(problem, *others):
        runs.append(int(problem.whole.sum()))
        return solved(problem, *others)

    monkeypatch.setattr(search, "solved", counted)
    assert program.solve(search.Effort(gap=1.0)).objective == pytest.approx(2.1)
    assert runs == [0, 1], "it is relaxed, then what is not whole of that is searched"
    runs.clear()
    assert program.solve(EXACT).objective == pytest.approx(2.1)
    assert runs == [0, 1, 2, 1], "all is searched then, and again what of that is not as it is relaxed"


def test_a_part_of_a_problem_has_the_others_as_they_are():
    program = linear.Program()
    x, y = program.variables(1, 0.0, 9.0), program.variables(1, 0.0, 9.0)
    program.require(x + y * 2.0, 7.0)
    program.pay(x + y * 3.0 + 0.5)
    part = program.problem().part(np.array([True, False]), np.array([0.0, 2.0]))
    found = search.solved(part, EXACT, 1e9)
    assert found.values == pytest.approx([3])
    assert found.objective == pytest.approx(3 + 6 + 0.5)


@pytest.mark.parametrize(("given", "is_possible"), [(2.0, True), (1.0, False)])
def test_where_nothing_is_free_only_what_is_kept_counts(given, is_possible):
    program = linear.Program()
    x = program.variables(1, 0.0, 9.0)
    program.require(x, 2.0)
    program.pay(x)
    found = search.solved(program.problem().part(np.array([False]), np.array([given])), EXACT, 1e9)
    assert (found is not None) == is_possible
    if found:
        assert found.objective == pytest.approx(2)


def test_parts_that_cannot_be_solved_in_turn_fall_back_on_what_is_hinted_at():
    program = linear.Program()
    first, second = (program.variables(1, 0.0, 3.0, whole=True) for _part in range(2))
    program.equate(first * 2.0 + second * 2.0, 6.0)
    program.equate(first * 3.0 - second * 1.5, 0.0)
    program.pay(first + second)
    program.hint(first, [1.0])
    program.hint(second, [2.0])
    found = program.solve(EXACT, [(0, 1), (1, 2)])
    assert found.of(first) == pytest.approx([1])
    assert found.of(second) == pytest.approx([2])


def test_without_highspy_an_import_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    program = linear.Program()
    program.pay(program.variables(1))
    with pytest.raises(ImportError, match="highspy"):
        program.solve(EXACT)
