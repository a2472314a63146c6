"""Devices of several control types in one program: no other course of all of them together is better."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.site.site_model as site_model
from flexmeasures_cem.market import Connection
from tests.modules.flexmeasures_cem.site_cases import (
    NOW,
    QUARTER,
    Surroundings,
    battery,
    heat_pump,
    houses,
    least_of_all,
    lived,
    machine,
    outcome,
    planned,
    sites,
)
from tests.parts.trials import trials

TIE = 6e-3
"""What a plan may cost more (currency): for each kWh that is moved, and each later start, a little."""
SOME_WATT_HOURS = 0.1
COUNT = 5
"""For how many quarters of an hour is planned."""


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Have programs solved to their optimum, as a whole."""
    solve = linear.Program.solve
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(site_model, "EFFORT", search.Effort(seconds=20.0, gap=1e-6, relative_gap=0.0))
        monkeypatch.setattr(
            linear.Program, "solve", lambda program, effort, _blocks=(): solve(program, effort)
        )
        yield


def powers_of(devices, plans, count) -> list:
    """Return the mean powers (W) of each device in quarters of an hour."""
    edges = NOW + np.arange(count + 1) * QUARTER
    found = []
    for device, plan in zip(devices, plans, strict=True):
        pieces, _cost = lived(device, plan, edges[-1])
        spans = [
            sum(power * max(min(until, last) - max(start, first), 0.0) for start, until, power in pieces)
            for first, last in pairwise(edges)
        ]
        found.append([each / QUARTER for each in spans])
    return found


@trials(150)
@given(st.data())
def test_no_other_course_of_all_devices_is_better(data):
    """The limits can be kept, and are kept by the mean of each quarter of an hour."""
    site = data.draw(sites(COUNT))
    devices = data.draw(houses(2, COUNT))
    beyond, cost = least_of_all(devices, site)
    assume(beyond == 0.0)
    found = outcome(devices, planned(devices, site), site)
    assert found.mean_beyond <= SOME_WATT_HOURS
    assert found.late <= 1.0
    assert found.cost <= cost + TIE


@trials(150)
@given(st.data())
def test_devices_that_consume_keep_the_limit_at_each_moment(data):
    devices = data.draw(houses(2, COUNT, consume=True))
    site = data.draw(sites(COUNT))
    beyond, _cost = least_of_all(devices, site)
    assume(beyond == 0.0)
    assert outcome(devices, planned(devices, site), site).beyond <= SOME_WATT_HOURS


@pytest.mark.parametrize("other", [heat_pump(), machine(end=COUNT), machine(800, end=2)])
def test_a_battery_that_is_full_within_a_step_leaves_others_room_for_all_of_its_power(other):
    devices, site = [battery(5, is_stepped=True), other], Surroundings([-0.1] * COUNT)
    site.connection = Connection(consumption_capacity=2500.0)
    assert outcome(devices, planned(devices, site), site).beyond == pytest.approx(0.0, abs=SOME_WATT_HOURS)


def test_a_site_may_be_limited_in_its_production_alone():
    devices = [battery(5), battery(5)]
    site = Surroundings([0.1, 0.4, 0.4, 0.4], connection=Connection(production_capacity=1500.0))
    powers = np.sum(powers_of(devices, planned(devices, site), 4), axis=0)
    assert powers[0] > 3500
    assert powers[1:] == pytest.approx([-1500, -1500, -1500])


def test_a_site_may_be_limited_in_its_consumption_alone():
    devices = [battery(5), battery(5)]
    site = Surroundings([0.1, 0.1, 0.4, 0.4], connection=Connection(consumption_capacity=1500.0))
    powers = np.sum(powers_of(devices, planned(devices, site), 4), axis=0)
    assert powers[:2] == pytest.approx([1500, 1500])
    assert powers[2:].sum() < -3000
    assert powers[2:].min() < -1600


def test_where_nothing_may_be_fed_in_a_battery_serves_the_load_alone():
    site = Surroundings([0.1, 0.4], load=700.0, connection=Connection(production_capacity=0.0))
    devices = [battery(55)]
    [powers] = powers_of(devices, planned(devices, site), 2)
    assert powers[1] == pytest.approx(-700)


def test_the_price_of_a_peak_flattens_what_devices_take_together():
    prices, peak = [0.1, 0.12, 0.14, 0.5], Connection(peak_consumption=1000.0, peak_price=1.0)
    devices = [battery(5), battery(5, power=1000.0)]
    free, flat = (
        np.sum(powers_of(devices, planned(devices, Surroundings(prices, connection=each)), 4), axis=0)
        for each in (Connection(), peak)
    )
    assert free.max() == pytest.approx(3000)
    assert flat.max() == pytest.approx(1000)
    assert flat[3] == free[3] == pytest.approx(-3000)


@pytest.mark.parametrize("peak_price", [0.02, 0.05, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("load", [0.0, 900.0])
def test_a_peak_is_as_high_as_it_pays(peak_price, load):
    devices = [battery(5), machine(1500, 1, 3)]
    site = Surroundings(
        [0.1, 0.2, 0.1, 0.4, 0.3], 0.05, load, Connection(peak_consumption=1200.0, peak_price=peak_price)
    )
    _beyond, cost = least_of_all(devices, site)
    assert outcome(devices, planned(devices, site), site).cost <= cost + TIE


@pytest.mark.parametrize(("cycle_cost", "works"), [(0.0, True), (0.15, True), (0.25, False)])
def test_a_battery_works_only_where_that_pays_for_its_wear(cycle_cost, works):
    devices = [battery(5, cycle_cost), heat_pump()]
    powers, _pump = powers_of(devices, planned(devices, Surroundings([0.1, 0.1, 0.3, 0.3])), 4)
    assert any(powers) is works


def test_each_battery_has_wear_of_its_own():
    devices = [battery(5, 0.25), battery(5, 0.02)]
    worn, lasting = powers_of(devices, planned(devices, Surroundings([0.1, 0.3])), 2)
    assert worn == [0, 0]
    assert lasting[0] > 1500
    assert lasting[1] == pytest.approx(-2000)
