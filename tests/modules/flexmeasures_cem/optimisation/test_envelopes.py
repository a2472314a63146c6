"""Envelopes in the site model: unions of ranges, what is curtailed, and what is deferred."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexmeasures_cem.optimisation.envelopes as envelopes
import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.optimisation.site as sites
from tests.parts.trials import trials

EFFORT = search.Effort(seconds=20.0, gap=1e-7)
NAN = float("nan")


def site_of(prices, production=None, **given):
    """Return a Site of hours with these prices."""
    grid = grids.of([3600.0 * place for place in range(len(prices) + 1)])
    production = prices if production is None else production
    return sites.Site(
        grid,
        sites.Tariffs(consumption_price=np.array(prices), production_price=np.array(production), **given),
    )


def union_of(*ranges, count):
    """Return the Union of the same ranges in each step."""
    return envelopes.Union(
        *(np.tile([[each[end]] for each in ranges], (1, count)).astype(float) for end in (0, 1))
    )


def steps_of(site):
    """Return the numbers of all steps."""
    return np.arange(site.grid.count)


def solved(site):
    """Return the Solution of a Site."""
    site.connect()
    return site.solve(EFFORT)


def in_ranges(ranges, value):
    """Tell whether a value is in one of some ranges."""
    return any(low - 1e-5 <= value <= high + 1e-5 for low, high in ranges)


# Unions of ranges


@pytest.mark.parametrize(
    ("value", "up", "down"), [(-1, 0, 0), (0, 0, 0), (1, 2, 0), (2.5, 2.5, 2.5), (4, 6, 3), (9, 6, 6)]
)
def test_the_nearest_amounts_of_a_union(value, up, down):
    union = union_of((0, 0), (2, 3), (6, 6), count=2)
    assert union.up(np.array([value, value])).tolist() == [up, up]
    assert union.down(np.array([value, value])).tolist() == [down, down]


def test_what_is_above_a_top_counts_as_that():
    capped = union_of((0, 0), (2, 3), (6, 8), count=4).capped(np.array([1.0, 2.5, 5.0, 9.0]))
    ranges = np.stack([capped.low, capped.high], axis=2).swapaxes(0, 1)
    found = [[tuple(each) for each in its if not np.isnan(each).any()] for its in ranges.tolist()]
    assert found == [
        [(0, 0), (1, 1)],
        [(0, 0), (2, 2.5)],
        [(0, 0), (2, 3), (5, 5)],
        [(0, 0), (2, 3), (6, 8)],
    ]


def test_binaries_are_made_only_where_there_are_several_ranges():
    program = linear.Program()
    union = envelopes.Union(np.array([[0.0, 0, 1], [NAN, 4, 4]]), np.array([[3.0, 0, 2], [NAN, 6, 4]]))
    envelopes.chosen(program, union)
    assert int(np.concatenate(program.whole).sum()) == 2


@trials(100)
@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=8, unique=True),
    st.lists(st.integers(-15, 15), min_size=1, max_size=4),
)
def test_an_amount_is_in_the_union_and_as_near_as_can_be(ends, wanted):
    ends = sorted(ends)
    ranges = list(zip(ends[::2], ends[1::2], strict=False))
    site = site_of([0.0] * len(wanted))
    union = union_of(*ranges, count=len(wanted))
    amount, raised = envelopes.chosen(site.program, union)
    envelopes.follow(site, amount, np.array(wanted, float), site.grid.hours)
    site.add(amount)
    solution = solved(site)
    for value, target, above in zip(solution.of(amount), wanted, solution.of(raised), strict=True):
        assert in_ranges(ranges, value)
        nearest = min(abs(min(max(low, target), high) - target) for low, high in ranges)
        assert abs(value - target) == pytest.approx(nearest, abs=1e-5)
        assert above == pytest.approx(float(value > ranges[0][1] + 1e-5))


# What is not limited without a reason


def test_a_device_that_does_as_it_likes_is_limited_by_the_site_alone():
    site = site_of([9.0, 9.0, -9.0], consumption_capacity=np.array([10.0, 4.0, 4.0]))
    made = envelopes.Allowance(site, steps_of(site), union_of((0, 6), count=3), np.array([2.0, 5.0, 1.0]))
    site.add(made.power)
    site.spare(1, made.may - made.power)
    solution = solved(site)
    assert solution.of(made.amount) == pytest.approx([6, 4, 4])
    assert solution.of(made.power) == pytest.approx([2, 4, 1])


def test_two_devices_share_the_room_and_what_is_expected_goes_before_what_may_be():
    site = site_of([0.2], consumption_capacity=8.0)
    likely = envelopes.Allowance(site, steps_of(site), union_of((0, 6), count=1), np.array([6.0]))
    idle = envelopes.Allowance(site, steps_of(site), union_of((0, 6), count=1), np.array([0.0]))
    for each in (idle, likely):
        site.add(each.power)
        site.spare(1, each.may - each.power)
    solution = solved(site)
    assert solution.of(likely.amount) == pytest.approx([6])
    assert solution.of(idle.amount) == pytest.approx([2])


# Curtailed


def curtailed(site, union, forecast, wanted=None, **options):
    """Return what is left of production, which is added to a Site, and its Solution."""
    forecast = np.array(forecast, float)
    wanted = np.full(len(forecast), NAN) if wanted is None else np.array(wanted, float)
    made = envelopes.Curtailable(site, steps_of(site), union, forecast, forecast, wanted, **options)
    site.add(-made.power)
    return made, solved(site)


def test_production_is_curtailed_where_it_costs():
    site = site_of([0.3] * 4, [0.1, 0.0, -0.1, -0.1], load=np.array([0.0, 0, 0, 2]))
    made, solution = curtailed(site, union_of((0, 5), count=4), [3, 3, 3, 3])
    assert solution.of(made.power) == pytest.approx([3, 3, 0, 2])


def test_a_schedule_is_followed_rather_than_a_price():
    site = site_of([0.3] * 3, [0.1, -0.1, -0.1])
    made, solution = curtailed(site, union_of((0, 5), count=3), [3, 3, 3], [1, 3, NAN])
    assert solution.of(made.power) == pytest.approx([1, 3, 0])


def test_production_is_kept_within_the_limit_whatever_is_wanted():
    site = site_of([0.3] * 2, production_capacity=3.5)
    made, solution = curtailed(site, union_of((1, 3), (4, 5), count=2), [4.8, 2], [4.8, 2])
    assert solution.of(made.power) == pytest.approx([3, 2])


def test_energy_that_has_to_be_allowed_is_where_it_costs_least():
    site = site_of([0.3] * 3, [-0.3, -0.1, -0.2])
    forecast = np.full(3, 2.0)
    made = envelopes.Curtailable(
        site, steps_of(site), union_of((0, 5), count=3), forecast, forecast, np.full(3, NAN), is_needed=True
    )
    site.add(-made.power)
    envelopes.fill(site, made.amount.sum(), 6.0)
    solution = solved(site)
    assert solution.of(made.power) == pytest.approx([0, 2, 1])
    assert solution.of(made.amount) == pytest.approx([0, 5, 1])


# Deferred


def deferred(site, union, needed, was_on=False):
    """Return what is deferred, of which so much energy is needed in all, added to a Site."""
    made = envelopes.Deferred(site, steps_of(site), union, was_on)
    made.allow_parts(1)
    site.add(made.power)
    site.spare(1, made.may - made.power)
    envelopes.fill(site, made.power.sum(), needed)
    envelopes.confine(site, made.power.sum(), needed)
    return made


@trials(100)
@given(
    st.lists(st.integers(-20, 40), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from([3.0, 5.0, 9.0]),
)
def test_what_is_deferred_costs_what_the_cheapest_hours_cost(prices, needed, capacity):
    site = site_of([each / 100 for each in prices], consumption_capacity=capacity)
    made = deferred(site, union_of((0, 8), count=len(prices)), float(needed))
    solution = solved(site)
    most, left, least = min(capacity, 8.0), min(needed, len(prices) * min(capacity, 8.0)), 0.0
    for price in sorted(prices):
        least, left = least + price / 100 * min(most, left), left - min(most, left)
    power = solution.of(made.power)
    assert sum(power * prices) / 100 == pytest.approx(least, abs=0.1)
    assert sum(power) == pytest.approx(min(needed, len(prices) * most))
    assert sum(power) == pytest.approx(sum(solution.of(made.amount)))


@trials(60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    st.sampled_from([(3.0,), (2.0, 5.0), (1.0, 4.0, 6.0)]),
    st.integers(1, 20),
)
def test_amounts_of_a_few_values_cost_what_the_best_of_all_choices_does(prices, values, needed):
    count = len(prices)
    site = site_of([each / 100 for each in prices])
    made = deferred(site, union_of((0, 0), *[(each, each) for each in values], count=count), float(needed))
    solution = solved(site)
    possible = min(needed, count * values[-1])
    best = np.inf
    for chosen in itertools.product((0.0, *values), repeat=count):
        full = sum(chosen)
        for part in range(count):
            below = max([each for each in (0.0, *values) if each < chosen[part]], default=0.0)
            if full - (chosen[part] - below) <= possible <= full:
                cost = (
                    sum(a * b for a, b in zip(chosen, prices, strict=True)) - (full - possible) * prices[part]
                )
                best = min(best, cost / 100)
    power = solution.of(made.power)
    assert sum(power) == pytest.approx(possible, abs=1e-5)
    assert all(
        in_ranges([(0, 0), *[(each, each) for each in values]], each) for each in solution.of(made.amount)
    )
    assert sum(power * prices) / 100 <= best + 0.01


def test_all_of_an_amount_is_allowed_for_a_part_of_one_step_only():
    site = site_of([0.1, 0.2, 0.3, 0.4], [0.0] * 4, load=-2.0)
    made = deferred(site, union_of((0, 0), (4, 8), count=4), 6.0)
    solution = solved(site)
    parts = solution.of(made.amount) - solution.of(made.power)
    assert sum(parts > 1e-5) <= 1


def test_one_starts_no_more_often_than_pays():
    prices = [0.2, 0.2001, 0.2, 0.2001]
    for was_on, expected in ((False, [4, 4, 0, 0]), (True, [4, 4, 0, 0])):
        site = site_of(prices)
        made = deferred(site, union_of((0, 0), (4, 4), count=4), 8.0, was_on)
        assert solved(site).of(made.amount) == pytest.approx(expected)
    site = site_of([0.2, 0.25, 0.2, 0.25])
    made = deferred(site, union_of((0, 0), (4, 4), count=4), 8.0)
    assert solved(site).of(made.amount) == pytest.approx([4, 0, 4, 0])


@trials(40)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=3, unique=True),
    st.integers(1, 10),
    st.integers(1, 10),
    st.sampled_from([3.0, 5.0, 7.0, 20.0]),
)
def test_two_devices_under_one_limit_cost_what_the_best_of_all_choices_does(prices, one, other, capacity):
    count = len(prices)
    site = site_of([each / 100 for each in prices], consumption_capacity=capacity)
    first = deferred(site, union_of((0, 0), (2, 4), count=count), float(one))
    second = deferred(site, union_of((0, 3), count=count), float(other))
    solution = solved(site)
    powers = solution.of(first.power), solution.of(second.power)
    assert max(solution.of(first.amount) + powers[1]) <= capacity + 1e-5
    possible, best = 0.0, np.inf
    for is_on in itertools.product((0, 1), repeat=count):
        for a in itertools.product((2.0, 2.5, 3.0, 3.5, 4.0), repeat=count):
            taken = [
                min(on * x, capacity) if on * x <= capacity else 0.0 for on, x in zip(is_on, a, strict=True)
            ]
            if sum(taken) < one and sum(taken) < count * min(4.0, capacity):
                continue
            room = [min(3.0, capacity - each) for each in taken]
            got = min(sum(room), other)
            reached = min(sum(taken), one) + got
            left, cost = got, 0.0
            for price, most in sorted(zip(prices, room, strict=True)):
                cost, left = cost + price * min(most, left), left - min(most, left)
            cost += sum(x * y for x, y in zip(taken, prices, strict=True))
            if (-reached, cost) < (-possible, best):
                possible, best = reached, cost
    assert sum(powers[0]) + sum(powers[1]) >= possible - 1e-4
    if sum(powers[0]) + sum(powers[1]) <= possible + 1e-4:
        assert sum(sum(each * prices) for each in powers) / 100 <= best / 100 + 0.02
