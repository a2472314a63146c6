"""What the loads that are given leave of the site's capacities, for FlexMeasures to plan with."""

import math

import pytest

import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.site as sites
from flexmeasures_cem.market import Connection

QUARTER = 900.0


def limits(connection, powers, known=(), left=1.0) -> dict:
    """Return the capacities that vary in two quarters; `powers` are (means, greatest) of devices (W)."""
    outlook = outlooks.new([], 0.0, 2 * QUARTER, QUARTER)
    for name, (means, most) in powers.items():
        outlooks.put(outlook, name, means, most)
    window = sites.Window(0.0, QUARTER, 2 * QUARTER, left, math.inf, False)
    found = loads.limits(connection, outlook, known, window)
    return {name: [power for _start, _end, power in spans] for name, spans in found.items()}


def test_without_a_limit_or_loads_there_is_nothing_to_tell():
    assert limits(Connection(peak_consumption=2000.0, peak_price=4.0), {"a": ([500.0, 0.0], None)}) == {}
    assert limits(Connection(power_capacity=9000.0, production_capacity=0.0), {}) == {}


def test_each_capacity_is_told_where_it_varies():
    connection = Connection(power_capacity=9000.0, consumption_capacity=6000.0, production_capacity=3000.0)
    machine = {"machine": ([1000.0, 0.0], [1500.0, 0.0])}
    assert limits(connection, machine, known={"machine"}) == {
        "power_capacity": [8500, 9000],
        "consumption_capacity": [5500, 6000],
        "production_capacity": [2500, 3000],
    }


def test_a_load_that_flexmeasures_does_not_know_counts_in_its_own_direction():
    connection = Connection(consumption_capacity=6000.0, production_capacity=3000.0)
    assert limits(connection, {"hidden": ([1000.0, -1000.0], None)}) == {
        "consumption_capacity": [5000, 6000],
        "production_capacity": [3000, 2000],
    }


def test_a_load_beyond_a_capacity_raises_that_alone():
    connection = Connection(consumption_capacity=6000.0, production_capacity=0.0)
    known = {"panels": ([-2000.0, 7000.0], None)}
    assert limits(connection, known, known={"panels"}) == {
        "consumption_capacity": [6000, pytest.approx(7000 * loads.ABOVE)],
        "production_capacity": [pytest.approx(2000 * loads.ABOVE), 0],
    }


def test_of_the_first_interval_a_part_is_left():
    """A mean power over all of it leaves as much room as the power in its rest does."""
    connection = Connection(power_capacity=9000.0, consumption_capacity=6000.0, production_capacity=3000.0)
    assert limits(connection, {"machine": ([1000.0, 1000.0], None)}, known={"machine"}, left=0.25) == {
        "power_capacity": [0.25 * 9000 + 0.75 * 1000, 9000],
        "consumption_capacity": [0.25 * 6000 + 0.75 * 1000, 6000],
        "production_capacity": [0.25 * 3000 - 0.75 * 1000, 3000],
    }


def test_in_the_rest_of_the_first_interval_each_direction_keeps_its_own_limit():
    connection = Connection(consumption_capacity=6000.0, production_capacity=1000.0)
    consume = [[(0.0, QUARTER, 5000.0)], [(0.0, QUARTER, 5000.0)]]
    loads.keep_limits_at_first(connection, consume, 1000.0)
    assert [powers[0][2] for powers in consume] == [2500, 2500]
    produce = [[(0.0, QUARTER, -5000.0)]]
    loads.keep_limits_at_first(connection, produce, 1000.0)
    assert produce[0][0][2] == -2000
    free = [[(0.0, QUARTER, 50_000.0)]]
    loads.keep_limits_at_first(Connection(), free, 1000.0)
    assert free[0][0][2] == 50_000
