"""What is expected of a site, and what a device's power costs it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexmeasures_cem.market as markets
import flexmeasures_cem.site.outlook as outlooks
from flexmeasures_cem.control_types.plans import PowerPiece
from tests.parts.local_optimum import priced

HOUR, QUARTER, DAY = 3600.0, 900.0, 86_400.0


def hourly(*prices):
    """Return prices of one hour each, from 0 on."""
    return [priced(hour * HOUR, (hour + 1) * HOUR, *pair) for hour, pair in enumerate(prices)]


def test_power_costs_what_the_site_takes_from_the_grid_for_it():
    interval = markets.Interval(0.0, HOUR, 0.3, 0.1, load=-1000.0)
    assert markets.cost(interval, 1000) == pytest.approx(0.1)
    assert markets.cost(interval, 3000) == pytest.approx(0.1 + 0.6)
    assert markets.cost(interval, -1000) == pytest.approx(-0.1)
    assert markets.cost(interval, 3000, seconds=QUARTER) == pytest.approx(0.7 / 4)


def test_a_time_has_part_in_the_intervals_of_a_market():
    market = [markets.Interval(place * HOUR, (place + 1) * HOUR, place, place) for place in range(3)]
    parts = markets.overlapping(market, 5400.0, 2.5 * HOUR)
    assert [(begin, until) for _interval, begin, until in parts] == [
        (5400.0, 2 * HOUR),
        (2 * HOUR, 2.5 * HOUR),
    ]


def test_beyond_the_prices_those_of_the_day_before_are_gone_on_with():
    known = hourly(*[(hour / 10, hour / 100) for hour in range(24)])
    found = outlooks.new(known, 12 * HOUR, 12 * HOUR + 2 * DAY, HOUR)
    assert found.prices[0] == (1.2, 0.12)
    assert found.prices[12] == (0.0, 0.0)
    assert found.prices[24] == found.prices[0]
    assert found.prices[47] == found.prices[23] == (1.1, 0.11)


def test_before_and_after_prices_of_less_than_a_day_the_nearest_one_holds():
    found = outlooks.new(hourly((0.2, 0.1), (0.4, 0.3)), -HOUR, 4 * HOUR, HOUR)
    assert found.prices == [(0.2, 0.1), (0.2, 0.1), (0.4, 0.3), (0.4, 0.3), (0.4, 0.3)]


def test_prices_on_another_clock_than_the_full_hour_are_found():
    known = [priced(1800.0, 5400.0, 0.2, 0.2), priced(5400.0, 9000.0, 0.5, 0.5)]
    found = outlooks.new(known, 1800.0, 9000.0, 1800.0)
    assert [each[0] for each in found.prices] == [0.2, 0.2, 0.5, 0.5]


def test_without_any_price_one_is_assumed():
    found = outlooks.new([], 0.0, HOUR, QUARTER)
    assert set(found.prices) == {(outlooks.NOMINAL_PRICE, outlooks.NOMINAL_PRICE)}


def test_the_load_of_a_device_is_that_of_all_others():
    found = outlooks.new([], 0.0, HOUR, QUARTER)
    outlooks.put(found, "car", [1000.0, 2000.0, 0.0, 0.0])
    outlooks.put(found, "panels", [-500.0] * 4)
    outlooks.put(found, "car", [3000.0, 2000.0, 0.0, 0.0])
    car = outlooks.market(found, "car", [(0.0, QUARTER), (QUARTER, HOUR)], markets.Connection())
    assert [each.load for each in car] == [-500, -500]
    assert (car[0].consumption_capacity, car[0].production_capacity) == (math.inf, math.inf)
    [other] = outlooks.market(found, "other", [(0.0, 2 * QUARTER)], markets.Connection(power_capacity=4000.0))
    assert other.load == 2000
    assert other.consumption_capacity - other.load == 1500


def test_powers_are_taken_at_each_sample():
    found = outlooks.new([], 0.0, HOUR, QUARTER)
    assert outlooks.sampled(found, lambda start, length: start + length) == [900, 1800, 2700, 3600]


def test_of_a_plan_the_greatest_power_in_a_sample_counts_for_the_limit():
    found = outlooks.new([], 0.0, HOUR, QUARTER)
    means, most = outlooks.of_pieces(
        found,
        [PowerPiece(-100.0, 450.0, 2000.0), PowerPiece(450.0, 450.5, 9000.0), PowerPiece(450.5, 1000.0, 0.0)],
    )
    assert means == pytest.approx([1000, 0, 0, 0])
    assert most == [2000, 0, 0, 0]
    outlooks.put(found, "machine", means, most)
    [first, second] = outlooks.market(
        found, "other", [(0.0, QUARTER), (QUARTER, HOUR)], markets.Connection(power_capacity=3000.0)
    )
    assert (first.load, first.consumption_capacity, first.production_capacity) == (1000, 2000, 2000)
    assert (second.load, second.consumption_capacity, second.production_capacity) == (0, 3000, 3000)


def test_each_direction_has_its_own_limit():
    found = outlooks.new([], 0.0, HOUR, HOUR)
    outlooks.put(found, "machine", [1000.0], [1500.0])
    connection = markets.Connection(
        power_capacity=9000.0, consumption_capacity=6000.0, production_capacity=400.0
    )
    [other] = outlooks.market(found, "other", [(0.0, HOUR)], connection)
    assert (other.consumption_capacity, other.production_capacity) == (5500, 0)
    whole = markets.Connection(power_capacity=5000.0, production_capacity=7000.0)
    assert (whole.max_consumption, whole.max_production) == (5000, 5000)


@pytest.mark.parametrize(
    ("given", "couples"),
    [
        ({}, False),
        ({"peak_consumption": 2500.0}, False),
        ({"power_capacity": 17_000.0}, True),
        ({"consumption_capacity": 17_000.0}, True),
        ({"production_capacity": 0.0}, True),
        ({"peak_price": 4.0}, True),
    ],
)
def test_a_limit_or_the_price_of_a_peak_couples_the_devices_of_a_site(given, couples):
    assert markets.Connection(**given).couples_devices is couples


@given(
    st.sampled_from([(0.2, -0.1), (0.2, 0.05), (-0.1, -0.2), (0.0, -0.1), (0.2, 0.0)]),
    st.integers(-50, 50),
    st.integers(0, 50),
    st.integers(-50, 50),
)
def test_what_would_be_curtailed_is_not_paid_for(prices, load, curtailable, power):
    interval = markets.Interval(0.0, HOUR, *prices, load=100.0 * load, curtailable=100.0 * curtailable)

    def paid(net):
        ways = range(curtailable + 1) if prices[1] < 0 else [0]
        return min(prices[net + 100 * way < 0] * (net + 100 * way) / 1000 for way in ways)

    expected = paid(100 * (load + power)) - paid(100 * load)
    assert markets.cost(interval, 100.0 * power) == pytest.approx(expected)


def test_of_a_time_to_come_all_of_the_first_sample_counts():
    found = outlooks.new([], HOUR, 2 * HOUR, QUARTER, HOUR - 840.0)
    means, _most = outlooks.of_pieces(found, [PowerPiece(0.0, DAY, -8000.0)])
    assert means == [-8000] * 4
