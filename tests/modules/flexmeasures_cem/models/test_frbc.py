"""Storages in the site model without a schedule: what they do for cost alone."""

import importlib
from datetime import timedelta
from itertools import product

import pytest

import flexmeasures_cem.market as markets
from tests.modules.flexmeasures_cem.frbc_cases import (
    QUARTER,
    START,
    activate,
    actuator,
    description,
    element,
    intervals,
    live,
    market,
    memory,
    mode,
    modules,
    number_range,
)
from tests.modules.flexmeasures_cem.planning import STORAGE_EFFORT
from tests.parts.s2_messages import example

NOW = START.timestamp()
IDLE = mode("idle", element((0, 0)))
BATTERY = description(
    actuator("inverter", [IDLE, mode("charge", element((0, 5000))), mode("discharge", element((-5000, 0)))])
)
HEATER = description(
    actuator("heater", [mode("off", element((0, 0))), mode("on", element((2000, 2000), efficiency=1.0))])
)


def planned(described, level, prices, rooms=None, terms=None, **others):
    """Return the Plan of least cost by prices per quarter; each actuator is in its first mode."""
    m = modules()
    alone = importlib.import_module("flexmeasures_cem.site.alone")
    model = importlib.import_module("flexmeasures_cem.control_types.frbc.model")
    remembered = memory(m, described, level, **others)
    activate(m, remembered, described)
    device = m.frbc.read_device(remembered)
    state = m.frbc.read_state(device, remembered, {}, None, NOW)
    spans = market(intervals(prices, 0.0), prices, rooms)
    site = alone.site_of(spans, model.cuts(device, state))
    part = model.add(site, device, state, None, {}, terms or markets.AS_DESCRIBED)
    return part.plan(alone.solved(site, STORAGE_EFFORT), spans)


def level_after(plan, quarters):
    """Return the fill level that a plan has after some quarters of an hour."""
    return modules().plans.level_at(plan, NOW + quarters * QUARTER)


def mean_powers(plan, count):
    """Return the mean power (W) in each quarter of an hour."""
    starts = [NOW + place * QUARTER for place in range(count)]
    return [modules().all_plans.mean_power(plan, start, start + QUARTER) for start in starts]


def told_each(plan, actuator_id, count):
    """Return the Change that an actuator was told last by each quarter of an hour, in order."""
    return [
        modules().all_plans.last_instructed(plan, NOW + place * QUARTER + 60, actuator_id)
        for place in range(count)
    ]


def usage(*rates):
    """Return a usage forecast of rates per hour, each for a quarter."""
    elements = [{"duration": round(QUARTER * 1000), "usage_rate_expected": rate / 3600} for rate in rates]
    return example("FRBC.UsageForecast", start_time=START.isoformat(), elements=elements)


@pytest.mark.parametrize("described", [BATTERY, HEATER])
@pytest.mark.parametrize("level", [10, 50, 95])
def test_at_one_price_it_rests(described, level):
    assert planned(described, level, [0.3] * 16).changes == []


def test_a_battery_charges_when_it_is_cheap_and_discharges_when_it_is_dear():
    plan = planned(BATTERY, 20, [0.1] * 4 + [0.2] * 4 + [0.4] * 4)
    assert level_after(plan, 4) == pytest.approx(20 + 47.5, abs=0.5)
    assert level_after(plan, 8) > 52
    assert level_after(plan, 12) < 1
    assert mean_powers(plan, 12)[8:] == pytest.approx([-5000] * 4, abs=50)
    assert plan.cost == pytest.approx(0.1 * 5 - 0.2 * 1.4 - 0.4 * 5, abs=0.02)


def test_what_is_stored_is_kept_at_the_end_where_it_could_not_be_filled_again_for_less():
    plan = planned(BATTERY, 60, [0.3] * 4 + [0.295] * 8)
    assert plan.changes == []


def test_no_more_is_stored_than_pays():
    """At the end it is worth no more than it costs now: it is not filled for its own sake."""
    assert planned(BATTERY, 30, [0.1] * 4 + [0.102] * 8).changes == []
    assert planned(HEATER, 30, [0.1] * 4 + [0.4] * 8).changes == []


@pytest.mark.parametrize(("cycle_cost", "works"), [(0.0, True), (0.05, True), (0.25, False)])
def test_wear_is_paid_for(cycle_cost, works):
    plan = planned(BATTERY, 20, [0.1] * 4 + [0.3] * 4, terms=markets.StorageTerms(cycle_cost=cycle_cost))
    assert bool(plan.changes) == works


def test_running_costs_are_paid_for():
    running = element((3000, 3000), efficiency=1.0) | {"running_costs": number_range(0.2 / 3600, 0.2 / 3600)}
    dear = actuator("dear", [IDLE, mode("dear", running)])
    cheap = actuator(
        "cheap", [mode("idle", element((0, 0))), mode("cheap", element((3000, 3000), efficiency=0.97))]
    )
    profile = example(
        "FRBC.FillLevelTargetProfile",
        start_time=START.isoformat(),
        elements=[
            {"duration": 7_200_000, "fill_level_range": number_range(0, 100)},
            {"duration": 900_000, "fill_level_range": number_range(55, 100)},
        ],
    )
    described = description(dear, cheap)
    plan = planned(described, 30, [0.3] * 12, FillLevelTargetProfile=profile)
    assert {each.actuator for each in plan.changes} == {cheap["id"]}
    assert plan.missed == []


def test_an_on_off_heater_fills_to_the_top_when_it_is_cheap():
    forecast = usage(*[0.0] * 4, *[40.0] * 12)
    plan = planned(HEATER, 85, [0.1] * 4 + [0.4] * 12, UsageForecast=forecast)
    assert 99.5 < level_after(plan, 4) <= 100
    lived = live(HEATER, plan, 85, START + timedelta(hours=1))
    assert (lived.rejected, lived.violations) == ([], [])


def test_where_power_is_paid_for_nothing_is_charged_to_be_discharged_meanwhile():
    fill = actuator("fill", [IDLE, mode("fill", element((0, 3000)))])
    empty = actuator("empty", [mode("idle", element((0, 0))), mode("empty", element((-3000, 0)))])
    plan = planned(description(fill, empty), 90, [-0.2] * 8)
    filled, emptied = (
        [each.power if each else 0.0 for each in told_each(plan, one["id"], 8)] for one in (fill, empty)
    )
    assert any(filled) and any(emptied)
    assert not any(one and other for one, other in zip(filled, emptied, strict=True))


def test_the_site_has_its_limit():
    plan = planned(BATTERY, 20, [0.1] * 4 + [0.4] * 4, rooms=[(-1000.0, 2000.0)] * 8)
    powers = mean_powers(plan, 8)
    assert max(powers) <= 2001
    assert min(powers) >= -1001


def test_what_is_used_is_kept_in_store():
    plan = planned(HEATER, 12, [0.3] * 16, UsageForecast=usage(*[10.0] * 16))
    assert plan.missed == []


def test_more_usage_than_can_be_served_is_served_as_far_as_can_be():
    plan = planned(HEATER, 12, [0.3] * 8, UsageForecast=usage(*[50.0] * 8))
    assert mean_powers(plan, 8) == pytest.approx([2000.0] * 8)


@pytest.mark.parametrize("level", [5, 15, 60, 95])
def test_a_stepped_battery_has_the_cheapest_course(level):
    """Search all courses by brute force, with what is stored at the end worth what it costs at the least."""
    modes = [IDLE, mode("charge", element((4000, 4000))), mode("discharge", element((-4000, -4000)))]
    prices = [0.3, 0.1, 0.25, 0.4, 0.2, 0.35]
    gain, loss, best = 4000 * 0.95 / 400, 4000 / 0.95 / 400, None
    worth = min(0.1 / 0.95, 0.4 * 0.95) / 10
    for course in product((0, 1, -1), repeat=6):
        levels = [level]
        for step in course:
            levels.append(levels[-1] + (gain if step > 0 else -loss if step < 0 else 0))
        if min(levels) >= 0.2 and max(levels) <= 99.8:
            cost = sum(step * price for step, price in zip(course, prices, strict=True))
            cost -= worth * levels[-1]
            best = cost if best is None else min(best, cost)
    described = description(actuator("inverter", modes))
    plan = planned(described, level, prices)
    lived = live(described, plan, level, START + timedelta(hours=1.5))
    assert (lived.rejected, lived.violations) == ([], [])
    assert plan.cost - worth * lived.fill_level <= best + 0.005


def test_a_detour_through_a_mode_that_does_nothing_either_is_not_told():
    m = modules()
    model = importlib.import_module("flexmeasures_cem.control_types.frbc.model")
    transitions = importlib.import_module("flexmeasures_cem.control_types.operation_modes.transitions")
    remembered = memory(m, BATTERY, 50.0)
    [inverter] = m.frbc.read_device(remembered).actuators
    idle, charge, discharge = inverter.modes

    def event(moment, mode, factor=1.0):
        return model.Event(moment=moment, ready=moment, mode=mode, factor=factor, timers={})

    def kept(*events):
        active = transitions.Active(idle, 1.0, 0.0, {})
        return [each.moment for each in model.without_detours(inverter, active, list(events))]

    assert kept(event(0, discharge), event(60, idle)) == []
    assert kept(event(0, discharge), event(60, idle), event(900, charge)) == [900]
    assert kept(event(0, discharge, 0.5), event(60, idle)) == [0, 60]
    assert kept(event(0, charge), event(60, idle), event(90, discharge), event(120, idle)) == [0, 60]
    assert kept(event(0, discharge), event(60, charge, 0.0)) == [0, 60]
