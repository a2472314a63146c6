"""Stages of a task in the site model: when they start, in which order, with which pauses."""

import math
import random

import numpy as np
import pytest

import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.optimisation.sequences as sequences
import flexmeasures_cem.optimisation.site as sites

START, MINUTE, QUARTER, HOUR = 1_772_445_600.0, 60.0, 900.0, 3600.0
EXACT = search.Effort(seconds=20.0, gap=1e-7, relative_gap=0.0)


def site(prices, **tariffs):
    """Return a Site of quarters of an hour at some prices of consumption."""
    grid = grids.of(START + np.arange(len(prices) + 1) * QUARTER)
    prices = np.array(prices)
    tariffs = {"production_price": prices, **tariffs}
    return sites.Site(grid, sites.Tariffs(consumption_price=prices, **tariffs))


def sequence(*elements, wait=math.inf, interruptible=False):
    """Return a Sequence of (minutes, kW); `wait` is in minutes."""
    minutes, powers = np.array(elements, float).T
    return sequences.Sequence(
        seconds=minutes * MINUTE,
        powers=powers,
        rates=np.zeros(len(powers)),
        longest_wait=wait * MINUTE,
        is_interruptible=interruptible,
    )


def task(*stages, end, begin=0.0, **fields):
    """Return a Task from one minute to another."""
    return sequences.Task(
        stages=stages, earliest=START + begin * MINUTE, deadline=START + end * MINUTE, **fields
    )


def solved(place, *tasks):
    """Return the Solution for tasks at a site, and their Chains."""
    chains = [sequences.Chain(place, each, rank) for rank, each in enumerate(tasks)]
    place.connect()
    return place.solve(EXACT), chains


def courses(place, *tasks):
    """Return the courses of tasks at a site: (number, [(start, end)...] in minutes) by stage."""
    solution, chains = solved(place, *tasks)
    return [
        [
            (number, [(round((a - START) / 60, 3), round((b - START) / 60, 3)) for a, b in spans])
            for number, spans in chain.course(solution)
        ]
        for chain in chains
    ]


def test_power_is_spread_exactly_over_the_steps():
    place = site([0.1] * 4)
    solution, [chain] = solved(place, task((sequence((5, 1), (20, 3), (5, 0)),), begin=10, end=40))
    assert solution.of(chain.power) == pytest.approx([1 / 3, 3, 1, 0])


def test_a_stage_waits_for_the_one_before_and_not_too_long():
    prices = [0.1] * 2 + [0.3] * 4 + [0.1] * 2 + [0.3] * 4
    first, second = (sequence((27, 2)),), (sequence((30, 1), wait=20),)
    [[(_first, [one]), (_second, [other])]] = courses(site(prices), task(first, second, end=180))
    assert 0 <= other[0] - one[1] <= 20
    [[(_first, [one]), (_second, [other])]] = courses(
        site(prices), task(first, (sequence((30, 1)),), end=180)
    )
    assert (one, other) == ((0, 27), (90, 120))


def test_how_long_a_stage_may_wait_depends_on_its_sequence():
    prices = [0.1] * 2 + [0.3] * 4 + [0.1] * 2 + [0.3] * 4
    soon, later = sequence((30, 1), wait=0), sequence((30, 1.5), wait=60)
    assert courses(site(prices), task((sequence((30, 2)),), (soon, later), end=180)) == [
        [(0, [(0, 30)]), (1, [(90, 120)])]
    ]
    assert courses(site([0.1] * 12), task((sequence((30, 2)),), (later, soon), end=180)) == [
        [(0, [(0, 30)]), (1, [(30, 60)])]
    ]


def test_a_limit_holds_for_what_power_is_at_times():
    limited = site([0.1] * 2 + [0.3] * 2, consumption_capacity=3.0, load=np.array([2.0, 2.0, 0.0, 0.0]))
    assert courses(limited, task((sequence((5, 2)),), end=60)) == [[(0, [(30, 35)])]]


def test_two_tasks_do_not_meet_for_a_part_of_a_step_beyond_the_limit():
    limited = site([0.1] * 3 + [0.3] * 5, consumption_capacity=3.0)
    tasks = [task((sequence((20, 2)),), end=120) for _number in range(2)]
    [[(_one, [first])], [(_other, [second])]] = courses(limited, *tasks)
    assert first[1] <= second[0] or second[1] <= first[0]


def test_own_production_is_used_as_it_is_and_not_in_the_mean():
    sunny = site([0.3] * 8, production_price=np.full(8, 0.1), load=np.array([-1.0] * 4 + [-2.0] * 4))
    assert courses(sunny, task((sequence((5, 2)),), end=120)) == [[(0, [(60, 65)])]]


def test_a_pause_is_worth_its_fee():
    prices = [0.1, 0.1, 0.3, 0.1, 0.1, 0.3]
    long = sequence((60, 2), interruptible=True)
    assert courses(site(prices), task((long,), end=90, fee=0.05)) == [[(0, [(0, 30), (45, 75)])]]
    assert courses(site(prices), task((long,), end=90, fee=0.15)) == [[(0, [(0, 60)])]]
    assert courses(site(prices), task((sequence((60, 2)),), end=90, fee=0.05)) == [[(0, [(0, 60)])]]


def test_what_runs_goes_on_and_what_is_paused_may_wait():
    prices = [0.3, 0.3, 0.1, 0.1, 0.3, 0.3]
    left = sequence((20, 2), interruptible=True)
    running = task((left,), end=90, begin=7, held=sequences.RUNNING, fee=0.01)
    assert courses(site(prices), running) == [[(0, [(7, 15), (30, 42)])]]
    paused = task((left,), end=90, begin=7, held=sequences.PAUSED, fee=0.01)
    assert courses(site(prices), paused) == [[(0, [(30, 50)])]]


def test_the_wait_counts_from_a_stage_that_is_over():
    over = task((sequence((30, 2), wait=22),), end=120, begin=5, previous=START)
    assert courses(site([0.4] * 2 + [0.1] * 6), over) == [[(0, [(22, 52)])]]


def test_to_be_late_comes_after_the_limit_and_before_the_cost():
    prices = [0.5] * 4 + [0.1] * 8
    late = task((sequence((60, 1)),), end=20)
    assert courses(site(prices), late) == [[(0, [(0, 60)])]]
    limited = site(prices, consumption_capacity=2.0, load=np.array([1.5] * 2 + [0.0] * 10))
    assert courses(limited, late) == [[(0, [(30, 90)])]]


def test_many_sequences_have_a_relaxation_that_is_nearly_whole():
    chance = random.Random(1)
    gaps = []
    for _number in range(5):
        prices = [round(chance.uniform(0.1, 0.4), 2) for _step in range(48)]
        stages = [
            tuple(
                sequence(
                    *[(chance.choice([7, 10, 15, 35]), chance.uniform(0, 2)) for _each in range(4)], wait=wait
                )
                for wait in (30, 60, math.inf)
            )
            for _stage in range(3)
        ]
        place = site(prices)
        solution, _chains = solved(place, task(*stages, end=12 * 60))
        place.program.whole = [np.zeros_like(each) for each in place.program.whole]
        gaps.append(solution.objective - place.solve(EXACT).objective)
    assert max(gaps) < 0.01
