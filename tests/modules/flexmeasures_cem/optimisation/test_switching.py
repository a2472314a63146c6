"""Modes and the ways between them, over time."""

import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parts.trials import trials

STEP = 900.0
TIMER = "timer"


def modules() -> SimpleNamespace:
    """Return the modules under test."""
    names = ("grid", "linear", "search", "switching")
    paths = {name: f"flexmeasures_cem.optimisation.{name}" for name in names}
    return SimpleNamespace(**{name: importlib.import_module(path) for name, path in paths.items()})


@pytest.fixture
def m():
    """Return the modules under test."""
    return modules()


def switched(m, worth, ways, mode=0, ready=0.0, timers=None, idle=(), edges=None):
    """Return (Solution, Switching) of the most worth, which `worth` has by mode and step (per hour)."""
    grid = m.grid.of(np.arange(len(worth[0]) + 1) * STEP if edges is None else edges)
    program = m.linear.Program()
    program.variables(1)
    present = m.switching.Present(mode=mode, ready=ready, timers=timers or {})
    found = m.switching.Switching(program, grid, len(worth), ways, present, idle)
    for share, values in zip(found.share, worth, strict=True):
        program.pay(share * (grid.hours * -np.asarray(values, float)))
    return program.solve(m.search.Effort(gap=1e-7, relative_gap=0.0)), found


def course(m, *arguments, **options) -> list:
    """Return (moment, mode) of each way that is taken."""
    solution, found = switched(m, *arguments, **options)
    return [(moment, way.target) for moment, way in found.course(solution)]


def both_ways(m, **options) -> list:
    """Return a Way from mode 0 to 1, and back."""
    return [m.switching.Way(origin=one, target=1 - one, **options) for one in (0, 1)]


def test_a_mode_is_kept_unless_another_is_worth_more(m):
    assert course(m, [[0] * 4, [0] * 4], both_ways(m)) == []
    assert course(m, [[0] * 4, [-1, 1, 1, -1]], both_ways(m)) == [(900, 1), (2700, 0)]


def test_a_way_that_costs_more_than_it_brings_is_not_taken(m):
    for cost, expected in ((0.12, [(900, 1), (1800, 0)]), (0.13, [])):
        assert course(m, [[0] * 3, [-1, 1, -1]], both_ways(m, cost=cost)) == expected


def test_of_two_moments_as_good_the_later_is_taken(m):
    assert course(m, [[0] * 4, [0, 0, 0, 1]], both_ways(m)) == [(2700, 1)]


@pytest.mark.parametrize("seconds", [30.0, 300.0, 1200.0])
def test_a_way_from_an_idle_mode_is_done_when_a_step_begins(m, seconds):
    worth = [[0] * 5, [-1, -1, 1, 1, -1]]
    assert course(m, worth, both_ways(m, seconds=seconds), idle={0}) == [(1800 - seconds, 1), (3600, 0)]


def test_a_way_that_could_not_be_done_before_begins_now(m):
    solution, found = switched(m, [[0] * 2, [1] * 2], both_ways(m, seconds=300.0), idle={0})
    assert [moment for moment, _way in found.course(solution)] == [0]
    assert solution.of(found.share[1]) == pytest.approx([2 / 3, 1])
    assert solution.of(found.running[1]) == pytest.approx([1, 1])


def test_on_a_long_way_nothing_runs(m):
    solution, found = switched(m, [[0] * 4, [1] * 4], both_ways(m, seconds=1200.0), idle={0})
    assert solution.of(found.share[0] + found.share[1]) == pytest.approx([0, 2 / 3, 1, 1])
    assert solution.of(found.running[1]) == pytest.approx([0, 1, 1, 1])


def test_a_timer_blocks_until_it_finishes(m):
    start = m.switching.Way(origin=0, target=1, starts=((TIMER, 1800.0),))
    stop = m.switching.Way(origin=1, target=0, blocked_by=((TIMER, 0.0),))
    worth = [[0] * 5, [-3, 1, -0.3, -3, -3]]
    assert course(m, worth, [start, stop]) == [(900, 1), (2700, 0)]
    assert course(m, [[0] * 5, [-3, 1, -2, -3, -3]], [start, stop]) == []


def test_a_timer_that_runs_now_is_waited_for_to_the_next_step(m):
    stop = m.switching.Way(origin=1, target=0, blocked_by=((TIMER, 0.0),))
    worth = [[1] * 4, [0] * 4]
    assert course(m, worth, [stop], mode=1, timers={TIMER: 1000.0}) == [(1800, 0)]
    assert course(m, worth, [stop], mode=1, timers={TIMER: 1000.0}, edges=[0, 900, 1001, 1800, 2700]) == [
        (1001, 0)
    ]


def test_a_way_that_is_under_way_is_ended_first(m):
    solution, found = switched(m, [[1] * 3, [0] * 3], both_ways(m), mode=1, ready=300.0)
    assert [moment for moment, _way in found.course(solution)] == [900]
    assert solution.of(found.share[1]) == pytest.approx([2 / 3, 0, 0])


def test_an_unknown_mode_is_replaced_at_once_by_the_best(m):
    ways = [m.switching.Way(origin=None, target=each) for each in (0, 1)] + both_ways(m)
    assert course(m, [[0] * 3, [-1, 2, 2]], ways, mode=None) == [(0, 0), (900, 1)]
    assert course(m, [[0] * 3, [1, 1, 1]], [], mode=None) == []


def test_a_way_that_another_replaces_is_left_out(m):
    def way(**options):
        return m.switching.Way(origin=0, target=1, **options)

    direct, slow = way(seconds=10.0), way(seconds=20.0, changes=2)
    free, blocked = way(seconds=30.0), way(seconds=10.0, blocked_by=((TIMER, 0.0),))
    cheap = way(seconds=30.0, cost=-1.0)
    assert m.switching.without_replaced([slow, direct, blocked, way(seconds=10.0)]) == [direct]
    assert m.switching.without_replaced([cheap, direct]) == [cheap, direct]
    assert m.switching.without_replaced([free, blocked]) == [free, blocked]


@st.composite
def random_ways(draw, m, modes):
    """Draw ways between modes, with timers."""
    pairs = [(one, other) for one in range(modes) for other in range(modes) if one != other]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=4, unique=True))
    timers = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([450.0, 900.0, 1800.0])), max_size=2)
    blocking = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 300.0])), max_size=2)
    return [
        m.switching.Way(
            origin=origin,
            target=target,
            seconds=draw(st.sampled_from([0.0, 0.0, 300.0, 900.0, 2000.0])),
            cost=draw(st.sampled_from([0.0, 0.05, -0.05])),
            starts=tuple(dict(draw(timers)).items()),
            blocked_by=tuple(dict(draw(blocking)).items()),
        )
        for origin, target in chosen
    ]


def most(worth, ways, mode):
    """Return the most worth, by trying all ways at all edges."""
    count = len(worth[0])

    def earned(chosen, start, end):
        parts = [min(end, STEP * (step + 1)) - max(start, STEP * step) for step in range(count)]
        return sum(max(part, 0.0) / 3600 * each for part, each in zip(parts, worth[chosen], strict=True))

    def best(step, now, ready, finishes):
        if step == count:
            return earned(now, ready, STEP * count)
        tried = [best(step + 1, now, ready, finishes)]
        for way in ways:
            if way.origin != now:
                continue
            for begin in {STEP * step, STEP * step - way.seconds}:
                is_blocked = any(
                    finishes.get(timer, 0.0) > begin + offset for timer, offset in way.blocked_by
                )
                if begin < max(ready, 0.0) or is_blocked:
                    continue
                started = {
                    timer: max(begin + seconds, finishes.get(timer, 0.0)) for timer, seconds in way.starts
                }
                after = best(step + 1, way.target, begin + way.seconds, finishes | started)
                tried.append(earned(now, ready, begin) - way.cost + after)
        return max(tried)

    return best(0, mode, -math.inf, {})


@trials(200)
@given(st.data())
def test_no_other_course_is_worth_more(data):
    m = modules()
    modes, count = data.draw(st.integers(2, 3)), data.draw(st.integers(2, 5))
    worths = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=count, max_size=count)
    worth = [data.draw(worths) for _mode in range(modes)]
    ways = data.draw(random_ways(m, modes))
    solution, found = switched(m, worth, ways)
    assert -solution.objective == pytest.approx(most(worth, ways, 0), abs=1e-4)
    shares = solution.of(m.linear.total(found.share, count))
    assert (shares <= 1 + 1e-6).all()
    assert all((solution.of(each) >= -1e-6).all() for each in found.share)
