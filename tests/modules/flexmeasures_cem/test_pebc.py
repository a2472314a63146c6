"""Power envelopes: what is limited, for which reason, and that nothing else is."""

import math
from itertools import pairwise
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexmeasures_cem.control_types.pebc.model as model
import flexmeasures_cem.site.alone as alone
from tests.modules.flexmeasures_cem.markets import starting_at
from tests.modules.flexmeasures_cem.pebc_cases import (
    ALL,
    CHARGER,
    HOUR,
    INVERTER,
    L1,
    L2,
    L3,
    LOWER,
    NOW,
    QUARTER,
    UPPER,
    constraints,
    energy,
    forecast,
    instruction,
    market,
    memory,
    modules,
    planned,
    profile,
    random_constraints,
    room,
    schedule,
    told,
)
from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts import s2_schemas
from tests.parts.trials import trials

MEANS = SimpleNamespace(power_sensor=7, resolution=QUARTER, soc_sensor=None)
STEPLESS = {L1: ([(0, 5000)], [(-5000, 0)])}


@pytest.fixture
def m():
    """Return the modules under test."""
    return modules()


def window(hours=4, step=HOUR, left=1.0, with_modes=True):
    """Return the time that FlexMeasures plans."""
    return SimpleNamespace(
        start=NOW, step=step, end=NOW + hours * HOUR, left=left, with_modes=with_modes, share=math.inf
    )


def posed(m, remembered, asked, now=NOW):
    """Return what FlexMeasures is asked."""
    device = m.pebc.read_device(remembered)
    return m.pebc.flex_model(device, m.pebc.read_state(device, remembered, {}, None, now), MEANS, asked)


def values(spans) -> list:
    """Return (hours, W) of Spans."""
    return [(round((each.end - each.start).total_seconds() / HOUR, 3), each.value) for each in spans]


# What a device tells


def test_needs_power_constraints(m):
    assert m.pebc.missing_message({}) == "PEBC.PowerConstraints"
    assert m.pebc.missing_message(memory(m, energy(1000), forecast([-1]))) == "PEBC.PowerConstraints"
    assert m.pebc.missing_message(memory(m, constraints(INVERTER))) is None


def test_holds_from_when_the_first_constraints_do(m):
    remembered = memory(m, constraints(INVERTER, since=3), constraints(INVERTER, since=1, until=2))
    assert m.pebc.valid_from(remembered) == NOW + HOUR


@pytest.mark.parametrize(
    ("ranges", "abnormal", "why"),
    [
        (([], [(0, 0)]), [UPPER], "no range for the UPPER_LIMIT of ELECTRIC.POWER.L1"),
        (([(0, 0)], []), [LOWER], "no range for the LOWER_LIMIT of ELECTRIC.POWER.L1"),
        (([(0, 5)], [(6, 7)]), [], "allow no envelope for ELECTRIC.POWER.L1"),
    ],
)
def test_refuses_constraints_that_no_envelope_fits(m, ranges, abnormal, why):
    made = constraints(
        {L1: ranges, L2: ([(0, 1)], [(0, 0)])}, abnormal=[(L1, each, 0, 0) for each in abnormal]
    )
    assert why in m.pebc.why_not_plannable(m.pebc.read_device(memory(m, made)))
    assert m.pebc.why_not_plannable(m.pebc.read_device(memory(m, made, constraints(INVERTER)))) is None


def test_refuses_constraints_for_an_abnormal_condition_only(m):
    abnormal = [(L1, UPPER, 0, 0), (L1, LOWER, 0, 0)]
    assert "abnormal" in m.pebc.why_not_plannable(
        m.pebc.read_device(memory(m, constraints({}, abnormal=abnormal)))
    )


def test_refuses_constraints_that_are_over(m):
    remembered = memory(m, constraints(INVERTER, since=-2, until=-1))
    with pytest.raises(m.errors.NotPlannable, match="not valid any more"):
        m.pebc.read_state(m.pebc.read_device(remembered), remembered, {}, None, NOW)


def test_looks_ahead_to_the_end_of_the_last_energy_constraint(m):
    assert m.pebc.last_deadline(m.pebc.read_device(memory(m, constraints(CHARGER, "DEFER")))) == 0
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(1, until=9), energy(1, until=5))
    assert m.pebc.last_deadline(m.pebc.read_device(remembered)) == NOW + 9 * HOUR


# Nothing is limited without a reason


@pytest.mark.parametrize("kind", ["VANISH", "DEFER"])
@pytest.mark.parametrize("price", [-0.1, 0, 0.3])
def test_a_device_is_not_limited_without_a_reason(m, kind, price):
    intervals = market(m, [price] * 24, load=3000)
    for wanted in (None, [0] * 24, [5000] * 24):
        _device, plan = planned(m, memory(m, constraints(STEPLESS, kind)), intervals, wanted)
        assert told(plan) == [(0.001, 5000, -5000)]
        assert plan.changes[0].elements[-1].end == intervals[-1].end


def test_consumption_that_vanishes_is_limited_for_no_price(m):
    remembered = memory(m, constraints(STEPLESS), forecast([3000] * 4))
    _device, plan = planned(m, remembered, market(m, [9.0] * 4), [0] * 4)
    assert told(plan) == [(0.001, 5000, -5000)]
    assert [piece.power_w for piece in plan.pieces] == [3000]


def test_takes_no_range_for_an_abnormal_condition(m):
    made = constraints(STEPLESS, abnormal=[(L1, UPPER, 0, 9000), (L1, LOWER, -9000, 0)])
    assert told(planned(m, memory(m, made), market(m, [1] * 4))[1]) == [(0.001, 5000, -5000)]


def test_limit_ranges_upside_down_are_put_in_order(m):
    made, turned_around = constraints(INVERTER), constraints({L1: ([(0, 0)], [(0, -5000)])})
    intervals = market(m, [0.3] * 4, [0.1, -0.1, -0.2, -0.1])
    plans = [
        planned(
            m, memory(m, each, forecast([-1000, -3000, -4000, -2000])), intervals, [-1000, -500, 0, -2000]
        )
        for each in (made, turned_around)
    ]
    assert told(plans[0][1]) == told(plans[1][1])
    assert (2, 0, 0) in told(plans[1][1])


# Production


def test_curtails_where_production_costs_and_the_schedule_says_so(m):
    remembered = memory(m, constraints(INVERTER), forecast([-1000, -3000, -4000, -2000]))
    intervals = market(m, [0.3] * 4, [0.1, -0.1, -0.2, -0.1])
    _device, plan = planned(m, remembered, intervals, [-1000, -500, 0, -1999.5])
    assert told(plan) == [(0.001, 0, -5000), (1, 0, -500), (2, 0, 0), (3, 0, -5000)]
    assert [round(piece.power_w, 3) for piece in plan.pieces] == [-1000, -500, 0, -2000]
    expected = 0.1 * -1 * (HOUR - 2) / HOUR + 0.1 * 0.5 + 0 + 0.1 * 2
    assert plan.cost == pytest.approx(expected)


@pytest.mark.parametrize("price", [0, 0.1])
def test_curtails_for_no_price_from_zero_on(m, price):
    remembered = memory(m, constraints(INVERTER), forecast([-3000] * 4))
    _device, plan = planned(m, remembered, market(m, [0.3] * 4, price), [0] * 4)
    assert told(plan) == [(0.001, 0, -5000)]


def test_curtails_where_production_costs_without_a_schedule_too(m):
    remembered = memory(m, constraints(INVERTER), forecast([-3000] * 4))
    intervals = market(m, [0.3] * 4, [0.1, -0.1, -0.2, 0], load=[0, 0, 1000, 0])
    _device, plan = planned(m, remembered, intervals)
    assert told(plan) == [(0.001, 0, -5000), (1, 0, 0), (2, 0, -1000), (3, 0, -5000)]
    assert [round(piece.power_w, 3) for piece in plan.pieces] == [-3000, 0, -1000, -3000]


def test_curtails_nothing_where_the_schedule_does_not(m):
    remembered = memory(m, constraints(INVERTER), forecast([-3000] * 4))
    _device, plan = planned(m, remembered, market(m, [-0.3] * 4), [-3000, -5000, 0, -3000])
    assert told(plan) == [(0.001, 0, -5000), (2, 0, 0), (3, 0, -5000)]


def test_curtails_nothing_without_a_forecast(m):
    intervals = market(m, [-0.3] * 4)
    for wanted in (None, [0] * 4):
        _device, plan = planned(m, memory(m, constraints(INVERTER)), intervals, wanted)
        assert told(plan) == [(0.001, 0, -5000)]


def test_never_curtails_more_than_is_wanted(m):
    ranges = {L1: ([(0, 0)], [(-5000, -4000), (-3000, -1000)])}
    remembered = memory(m, constraints(ranges), forecast([-4800] * 4))
    _device, plan = planned(m, remembered, market(m, [-0.1] * 4), [-4500, -3500, -2000, 0])
    assert told(plan) == [(0.001, 0, -4500), (1, 0, -4000), (2, 0, -2000), (3, 0, -1000)]


def test_curtails_at_least_what_is_beyond_the_limit_of_the_site(m):
    ranges = {L1: ([(0, 0)], [(-5000, -4000), (-3000, -1000)])}
    remembered = memory(m, constraints(ranges), forecast([-2000, -4800, -4800, -4800]))
    intervals = market(m, [0.1] * 4, load=[0, 0, -500, 1000], limit=3500)
    for wanted in (None, [-2000, -3500, -3000, -4500]):
        _device, plan = planned(m, remembered, intervals, wanted)
        assert told(plan) == [(0.001, 0, -5000), (1, 0, -3000), (3, 0, -4500)]


def test_production_that_nothing_is_known_of_is_kept_inside_the_limit_of_the_site(m):
    _device, plan = planned(m, memory(m, constraints(INVERTER)), market(m, [0.1] * 2, load=500, limit=3000))
    assert told(plan) == [(0.001, 0, -3500)]


def test_means_no_curtailment_where_the_forecast_is_finer_than_the_schedule(m):
    remembered = memory(m, constraints(INVERTER), forecast([-3000, -1000, -3000, -1000], hours=0.5))
    _device, plan = planned(m, remembered, market(m, [-0.1] * 2), [-2000 - 2 / 3, -2000])
    assert told(plan) == [(0.001, 0, -5000)]


def test_leaves_room_for_production_that_is_asked_for_before_it_curtails(m):
    asked = energy(0, until=4, quantity=L1, lower=-1000)
    remembered = memory(m, constraints(INVERTER), asked, forecast([-3000] * 4))
    _device, plan = planned(m, remembered, market(m, [0.3] * 4, [-0.4, -0.1, -0.3, -0.2]), [0] * 4)
    assert [each[2] for each in told(plan)] == [0, -5000, 0]
    assert [piece.power_w for piece in plan.pieces] == [0, -3000, 0]
    assert plan.missed == []


# The limit of the site


@pytest.mark.parametrize("kind", ["VANISH", "DEFER"])
def test_consumption_is_kept_inside_the_limit_of_the_site(m, kind):
    intervals = market(m, [0.1] * 5, load=[0, 2000, 4000, 7000, 12_000], limit=10_000)
    _device, plan = planned(m, memory(m, constraints(CHARGER, kind)), intervals)
    assert told(plan) == [(0.001, 10_000, 0), (1, 8000, 0), (2, 6000, 0), (3, 0, 0)]


def test_goes_as_low_as_is_allowed_where_the_limit_of_the_site_leaves_less(m):
    made = constraints({L1: ([(1400, 3700)], [(0, 0)])}, "DEFER")
    _device, plan = planned(m, memory(m, made), market(m, [0.1], load=9000, limit=10_000))
    assert told(plan) == [(0.001, 1400, 0)]


# Consumption that is deferred


def test_charges_where_the_schedule_says(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(2760, until=4))
    wanted = [0, 5520, 0, 5520]
    _device, plan = planned(m, remembered, market(m, [0.1, 0.4, 0.2, 0.3]), wanted)
    assert told(plan) == [(0.001, 0, 0), (1, 5520, 0), (2, 0, 0), (3, 5520, 0)]
    assert [piece.power_w for piece in plan.pieces] == wanted


def test_allows_what_the_schedule_is_short_of_next_to_what_it_wants(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(5520, until=4))
    _device, plan = planned(m, remembered, market(m, [0.1, 0.4, 0.2, 0.3]), [0, 11_040, 0, 10_900])
    assert told(plan) == [(0.001, 0, 0), (0.966, 4140, 0), (1, 11_040, 0), (2, 0, 0), (3, 10_900, 0)]
    _device, plan = planned(m, remembered, market(m, [0.4, 0.1, 0.3, 0.2, 0.1]), [11_040, 0, 11_040, 0, 0])
    assert told(plan) == [
        (0.001, 11_040, 0),
        (1, 0, 0),
        (1.999, 4140, 0),
        (2, 11_040, 0),
        (3, 0, 0),
        (4, 11_040, 0),
    ]


def test_charges_in_the_cheapest_hours_without_a_schedule(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(5520, until=4))
    _device, plan = planned(m, remembered, market(m, [0.4, 0.1, 0.3, 0.2, 0.05]))
    assert told(plan) == [(0.001, 0, 0), (1, 11040, 0), (2, 0, 0), (3, 11040, 0)]
    assert [piece.power_w for piece in plan.pieces] == [0, 11040, 0, 11040, 0]
    assert m.pebc.missed_targets(plan) == []


def test_takes_the_last_part_of_the_energy_for_a_part_of_the_time_where_there_is_a_gap(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy((11040 + 2070) / 4, until=4))
    _device, plan = planned(m, remembered, market(m, [0.4, 0.2, 0.1, 0.3]))
    assert told(plan) == [(0.001, 0, 0), (1.5, 4140, 0), (2, 11040, 0), (3, 0, 0)]


def test_snaps_what_is_wanted_up_but_allows_no_more_than_is_needed(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(2070, until=4))
    _device, plan = planned(m, remembered, market(m, [0.4, 0.1, 0.3, 0.2]), [2070] * 4)
    assert told(plan) == [(0.001, 0, 0), (1, 4140, 0), (2, 0, 0), (3, 4140, 0)]


def test_counts_what_was_allowed_before(m):
    remembered = memory(m, constraints(CHARGER, "DEFER", since=-3), energy(5520, since=-2, until=2))
    first = market(m, [0.1, 0.4, 0.2, 0.3], since=NOW - 2 * HOUR)
    _device, before = planned(m, remembered, first, now=NOW - 2 * HOUR)
    assert [piece.power_w for piece in before.pieces] == [11040, 0, 11040, 4140, 0]
    _device, plan = planned(m, remembered, market(m, [0.2, 0.3]), plan=before, now=NOW)
    assert plan.changes == before.changes
    dearer = market(m, [0.3, 0.2])
    _device, other = planned(m, remembered, dearer, plan=before, now=NOW)
    elements = profile(instruction(m, other.changes[0]))[ALL]
    assert room(elements, NOW + HOUR, NOW + 2 * HOUR) == pytest.approx(11040, abs=20)
    assert other.instructed[0].limits == {ALL: (11040, 0)}


def test_allows_all_of_it_in_what_is_left_of_the_time_where_nothing_was_allowed_before(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(5000, since=-4, until=4))
    _device, plan = planned(m, remembered, market(m, [0.4, 0.1, 0.3, 0.2]))
    elements = profile(instruction(m, plan.changes[0]))[ALL]
    assert room(elements, NOW, NOW + 4 * HOUR) == pytest.approx(40_000, abs=1)


def test_tells_what_the_limit_of_the_site_leaves_no_room_for(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(10_000, until=2))
    _device, plan = planned(m, remembered, market(m, [0.1] * 3, load=5000, limit=10_000, begin=0))
    assert told(plan) == [(0, 5000, 0)]
    assert m.pebc.missed_targets(plan) == [
        {"datetime": m.plans.moment(NOW + 2 * HOUR), "asked": 20.0, "reached": 10.0}
    ]


def test_takes_what_the_sun_gives_before_what_is_cheap(m):
    remembered = memory(m, constraints(STEPLESS, "DEFER"), energy(1500, until=2, quantity=L1))
    intervals = market(m, [0.2, 0.3], [0.05, 0.05], load=[0, -2000], begin=0)
    _device, plan = planned(m, remembered, intervals)
    assert told(plan) == [(0, 1000, -5000), (1, 2000, -5000), (2, 5000, -5000)][:2]
    assert plan.cost == pytest.approx(0.2 + 0.1)


def test_spreads_what_is_needed_after_the_end_of_the_plan(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(5520, until=8))
    _device, plan = planned(m, remembered, market(m, [0.1, 0.2, 0.3, 0.4], begin=0))
    assert told(plan) == [(0, 11040, 0), (2, 0, 0)]


def test_production_that_is_deferred_is_allowed_when_it_yields_most(m):
    made = constraints({L1: ([(0, 0)], [(-4000, -2000), (0, 0)])}, "DEFER")
    remembered = memory(m, made, energy(0, until=4, quantity=L1, lower=-2000))
    _device, plan = planned(m, remembered, market(m, [0.1, 0.4, 0.2, 0.3], begin=0))
    assert told(plan) == [(0, 0, 0), (1, 0, -4000), (2, 0, 0), (3, 0, -4000)]
    assert [piece.power_w for piece in plan.pieces] == [0, -4000, 0, -4000]


def test_energy_that_is_not_electric_limits_nothing(m):
    quantities = STEPLESS | {"HEAT.THERMAL_POWER": ([(0, 9000)], [(0, 0)])}
    asked = energy(100, quantity="HEAT.THERMAL_POWER")
    _device, plan = planned(m, memory(m, constraints(quantities, "DEFER"), asked), market(m, [0.1] * 4))
    assert told(plan, L1) == [(0.001, 5000, -5000)]
    assert told(plan, "HEAT.THERMAL_POWER") == [(0.001, 9000, 0)]


def test_of_energy_constraints_until_the_same_moment_the_newest_holds(m):
    asked = [energy(9000, until=2), energy(5520, since=0, until=2)]
    _device, plan = planned(
        m, memory(m, constraints(CHARGER, "DEFER"), *asked), market(m, [0.1, 0.2], begin=0)
    )
    assert told(plan) == [(0, 11040, 0), (1, 0, 0)]


# Several quantities


def test_phases_share_the_power_by_their_ranges(m):
    phases = {L1: ([(0, 3000)], [(0, 0)]), L2: ([(0, 3000)], [(0, 0)]), L3: ([(0, 6000)], [(0, 0)])}
    made = memory(m, constraints(phases | {"HEAT.FLOW_RATE": ([(0, 5)], [(0, 0)])}))
    _device, plan = planned(m, made, market(m, [0.1], load=4000, limit=10_000))
    assert plan.changes[0].elements[0].limits == {
        L1: (1500, 0),
        L2: (1500, 0),
        L3: (3000, 0),
        "HEAT.FLOW_RATE": (5, 0),
    }


def test_all_phases_together_prevail(m):
    made = memory(m, constraints({L1: ([(0, 9000)], [(0, 0)]), ALL: ([(0, 9000)], [(0, 0)])}))
    _device, plan = planned(m, made, market(m, [0.1], load=4000, limit=10_000))
    assert plan.changes[0].elements[0].limits == {L1: (9000, 0), ALL: (6000, 0)}


@pytest.mark.parametrize(("quantity", "average"), [(ALL, 6000), (L2, 2000)])
def test_leaves_room_for_energy_of_phases_or_of_all(m, quantity, average):
    phases = {each: ([(0, 0), (1380, 4000)], [(0, 0)]) for each in (L1, L2, L3)}
    for made in (phases, {ALL: ([(0, 0), (4140, 12_000)], [(0, 0)])}):
        asked = energy(average, until=2, quantity=quantity)
        remembered = memory(m, constraints(made, "DEFER"), asked)
        _device, plan = planned(m, remembered, market(m, [0.1, 0.2], begin=0))
        share = 1 if ALL in made else 3
        assert told(plan) == [(0, 12_000 / share, 0), (1, 0, 0)]


# Validity


def test_tells_each_constraints_when_they_begin_to_hold(m):
    early = constraints({L1: ([(0, 1000)], [(0, 0)])}, until=2, name="early")
    late = constraints({L1: ([(0, 2000)], [(0, 0)])}, since=2, until=3, name="late")
    newest = constraints({L1: ([(0, 3000)], [(0, 0)])}, since=2.5, name="newest")
    _device, plan = planned(m, memory(m, early, late, newest), market(m, [0.1] * 4))
    spans = [(each.constraints, each.moment - NOW, each.elements[-1].end - NOW) for each in plan.changes]
    assert spans == [
        ("early", 2, 2 * HOUR),
        ("late", 2 * HOUR, 2.5 * HOUR),
        ("newest", 2.5 * HOUR, 4 * HOUR),
    ]
    assert told(plan) == [(0.001, 1000, 0), (2, 2000, 0), (2.5, 3000, 0)]


def test_tells_nothing_while_no_constraints_hold(m):
    made = [constraints(INVERTER, until=1), constraints(INVERTER, since=2)]
    _device, plan = planned(m, memory(m, *made, forecast([-100] * 4)), market(m, [0.1] * 4))
    assert [(each.moment - NOW, each.elements[-1].end - NOW) for each in plan.changes] == [
        (2, HOUR),
        (2 * HOUR, 4 * HOUR),
    ]
    assert plan.pieces == [m.plans.PowerPiece(NOW + 2, NOW + 4 * HOUR, -100)]


def test_the_newest_constraints_hold_even_where_they_came_under_an_old_id(m):
    one, other = constraints(INVERTER, name="one"), constraints(STEPLESS, name="other")
    again = constraints({L1: ([(0, 1)], [(0, 0)])}, name="one")
    _device, plan = planned(m, memory(m, one, other, again), market(m, [0.1] * 4))
    assert told(plan) == [(0.001, 1, 0)]


# An envelope that is in force


def test_a_device_that_is_not_limited_is_told_so_again_only_when_half_of_its_time_is_over(m):
    remembered = memory(m, constraints(INVERTER))
    _device, plan = planned(m, remembered, market(m, [0.1] * 24))
    first, renewals = plan.changes[0], []
    for quarter in range(1, 96):
        now = NOW + quarter * QUARTER
        intervals = market(m, [0.1] * 24, since=now)
        _device, plan = planned(m, remembered, intervals, plan=plan, now=now)
        if plan.changes[0] is not first:
            renewals.append(quarter / 4)
            first = plan.changes[0]
    assert renewals == [12.0]


def test_a_limit_that_comes_at_the_end_of_the_horizon_is_told_within_the_hour(m):
    ranges = memory(m, constraints(STEPLESS))
    _device, plan = planned(m, ranges, market(m, [0.1] * 96, length=QUARTER))
    first = plan.changes[0]
    for quarters, is_kept in ((2, True), (4, True), (5, False)):
        loads = [0] * (96 - quarters) + [2000] * quarters
        now = NOW + quarters * QUARTER
        intervals = market(m, [0.1] * 96, load=loads, limit=5000, length=QUARTER, since=now)
        _device, other = planned(m, ranges, intervals, plan=plan, now=now)
        assert (other.changes[0] is first) is is_kept


def test_a_limit_that_is_near_is_told_at_once(m):
    remembered = memory(m, constraints(STEPLESS))
    _device, plan = planned(m, remembered, market(m, [0.1] * 24))
    now = NOW + QUARTER
    intervals = market(m, [0.1] * 24, load=[0, 2000] + [0] * 22, limit=5000, since=now)
    _device, other = planned(m, remembered, intervals, plan=plan, now=now)
    assert other.changes[0] is not plan.changes[0]
    assert [upper for _at, upper, _lower in told(other)] == [5000, 3000, 5000]


def test_an_envelope_that_is_still_to_begin_stays_as_it_was_told(m):
    made = memory(m, constraints(STEPLESS, until=5), constraints(STEPLESS, since=5))
    _device, plan = planned(m, made, market(m, [0.1] * 24))
    for hours in range(1, 5):
        now = NOW + hours * HOUR
        _device, other = planned(m, made, market(m, [0.1] * 24, since=now), plan=plan, now=now)
        assert other.changes == plan.changes
        plan = other


@trials(100)
@given(
    st.lists(st.integers(5, 40), min_size=8, max_size=8),
    st.integers(500, 9000),
    st.lists(st.integers(1, 8 * 60 - 5), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_plan_made_again_later_tells_the_same(prices, average, minutes, is_stepless):
    m = modules()
    ranges = {ALL: ([(0, 11040)], [(0, 0)])} if is_stepless else CHARGER
    remembered = memory(m, constraints(ranges, "DEFER"), energy(average, until=8))
    prices = [each / 100 for each in prices] + [0.5] * 16
    whole = market(m, prices)
    device, plan = planned(m, remembered, whole)
    [first] = plan.changes
    for minute in sorted(minutes):
        now = NOW + 60 * minute
        left = starting_at(whole, now + 2)
        state = m.pebc.read_state(device, remembered, {}, plan, now)
        plan = plan_alone(m.pebc, device, state, None, left, {})
        assert plan.changes == [first]


# Instructions


def test_an_envelope_has_no_more_elements_than_it_may(m):
    loads = [4000 + place % 5 * 1000 for place in range(289)]
    intervals = market(m, [0.1] * 289, load=loads, limit=9000, length=300)
    for count, most in ((288, 288), (289, 288)):
        _device, plan = planned(m, memory(m, constraints(STEPLESS)), intervals[:count])
        sent = instruction(m, plan.changes[0])
        elements = profile(sent)[L1]
        assert 144 < len(elements) <= most
        assert elements[-1][1] == pytest.approx(intervals[count - 1].end)
        assert s2_schemas.problems(sent) == []
        for each in intervals[:count]:
            inside = [it for it in elements if it[0] < each.end - 1 and it[1] > each.start + 1]
            assert all(it[2] + each.load <= 9000 for it in inside)


def test_an_instruction_names_every_quantity_and_fits_the_schema(m):
    quantities = STEPLESS | {"HEAT.THERMAL_POWER": ([(0, 9000)], [(0, 0)])}
    _device, plan = planned(m, memory(m, constraints(quantities, name="these")), market(m, [0.1] * 4))
    sent = instruction(m, plan.changes[0])
    assert s2_schemas.problems(sent) == []
    assert (sent["power_constraints_id"], sent["abnormal_condition"]) == ("these", False)
    assert list(profile(sent)) == [L1, "HEAT.THERMAL_POWER"]
    assert len({each["id"] for each in sent["power_envelopes"]}) == 2


def test_describes_what_a_change_says_now_and_next(m):
    remembered = memory(m, constraints(CHARGER, "DEFER", name="these"), energy(5520, until=4))
    device, plan = planned(m, remembered, market(m, [0.4, 0.1, 0.3, 0.2] + [0.5] * 4))
    [change] = plan.changes
    assert m.pebc.describe(device, change, NOW) == {
        "power_constraints_id": "these",
        "commodity_quantity": ALL,
        "upper_limit": 0,
        "lower_limit": 0,
        "label": "limited",
        "power": 0,
    }
    now = m.pebc.describe(device, change, NOW + 1.5 * HOUR)
    assert (now["upper_limit"], now["label"], now["power"]) == (11040, "unlimited", 11040)
    steps = m.pebc.upcoming(plan, NOW + 0.5 * HOUR)
    assert [(each.moment - NOW) / HOUR for each in steps] == [1, 2, 3]
    assert [m.pebc.describe(device, each, NOW)["upper_limit"] for each in steps] == [11040, 0, 11040]


def test_describes_phases_by_their_sum(m):
    phases = {each: ([(0, 4000)], [(-1000, 0)]) for each in (L1, L2)}
    device, plan = planned(m, memory(m, constraints(phases)), market(m, [0.1] * 4))
    found = m.pebc.describe(device, plan.changes[0], NOW)
    assert (found["upper_limit"], found["lower_limit"]) == (8000, -2000)
    assert found["commodity_quantity"] == f"{L1} + {L2}"


def test_only_a_power_outside_the_limits_departs_and_only_after_a_while(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(5520, until=4))
    device, plan = planned(m, remembered, market(m, [0.4, 0.1, 0.3, 0.2]))
    departs = m.pebc.power_deviation
    assert "above the upper limit of 0 W" in departs(device, plan, 5000, NOW + 600)
    assert departs(device, plan, 1000, NOW + 600) is None
    assert departs(device, plan, 0, NOW + 1.5 * HOUR) is None
    assert departs(device, plan, 11_000, NOW + 2 * HOUR + 10) is None
    assert departs(device, plan, 11_000, NOW + 2 * HOUR + 40)
    assert "below the lower limit" in departs(device, plan, -3000, NOW + 600)
    assert departs(device, plan, 5000, NOW - 600) is None
    assert m.pebc.planned_power(plan, NOW + HOUR, HOUR) == 11040
    assert m.pebc.planned_power(None, NOW, HOUR) == 0


# Several devices in one program


def planned_together(m, remembered, intervals):
    """Return the Plans of devices that are planned as one."""
    found = [m.pebc.read_device(each) for each in remembered]
    states = [
        m.pebc.read_state(each, its, {}, None, NOW) for each, its in zip(found, remembered, strict=True)
    ]
    cuts = [moment for each in zip(found, states, strict=True) for moment in model.cuts(*each)]
    site = alone.site_of(intervals, cuts)
    parts = [model.add(site, *each, None, {}) for each in zip(found, states, strict=True)]
    solution = alone.solved(site)
    return [each.plan(solution, intervals) for each in parts]


def test_a_car_takes_what_would_be_curtailed(m):
    panels = memory(m, constraints(INVERTER), forecast([-1000, -4000, -5000, -3000]))
    car = memory(m, constraints({L1: ([(0, 0), (1400, 3000)], [(0, 0)])}, "DEFER"), energy(1500, 0, 4, L1))
    intervals = market(m, [0.3] * 4, [0.05, -0.1, -0.2, 0.1], begin=0)
    production, charging = planned_together(m, [panels, car], intervals)
    assert told(charging) == [(0, 0, 0), (1, 3000, 0), (3, 0, 0)]
    assert told(production) == [(0, 0, -5000), (1, 0, -3000), (3, 0, -5000)]
    assert [piece.power_w for piece in production.pieces] == [-1000, -3000]


def test_two_chargers_are_never_allowed_more_than_the_site_can_take(m):
    cars = [memory(m, constraints(CHARGER, "DEFER"), energy(5000, until=4)) for _car in range(2)]
    intervals = market(m, [0.1, 0.2, 0.4, 0.3], load=[0, 2000, 4000, 0], limit=14_000, begin=0)
    charging = planned_together(m, cars, intervals)
    for each in intervals:
        inside = [
            element.limits[ALL][0]
            for plan in charging
            for element in plan.changes[0].elements
            if element.start <= (each.start + each.end) / 2 < element.end
        ]
        assert sum(inside) + each.load <= 14_000
    assert [m.pebc.missed_targets(each) for each in charging] == [[], []]


# What FlexMeasures is asked


def test_asks_for_production_that_can_be_curtailed_as_a_flow(m):
    remembered = memory(m, constraints(INVERTER), forecast([-1000, -3000, 200, -9000]))
    flow = posed(m, remembered, window(hours=5, left=0.5), now=NOW + HOUR / 2)
    assert isinstance(flow, m.storages.Flow)
    assert (flow.power_sensor, flow.consumption_capacity) == (7, 0)
    assert values(flow.production_capacity) == [(1, 500), (1, 3000), (1, 0), (1, 5000), (1, 0)]


def test_asks_nothing_where_nothing_can_be_gained(m):
    fixed = {L1: ([(0, 0)], [(-5000, -5000)])}
    for made in (
        [constraints(INVERTER)],
        [constraints(INVERTER), forecast([0, 0])],
        [constraints(fixed), forecast([-1000])],
        [constraints(STEPLESS), forecast([1000])],
        [constraints(CHARGER, "DEFER")],
        [constraints(CHARGER, "DEFER"), energy(0)],
        [constraints(CHARGER, "DEFER"), energy(1000, since=5, until=6)],
        [constraints(STEPLESS, "DEFER"), energy(1000, lower=-1000, quantity=L1)],
    ):
        assert posed(m, memory(m, *made), window()) is None


def test_asks_for_energy_that_is_deferred_as_a_storage(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(3000, since=0, until=3.5))
    storage = posed(m, remembered, window(left=0.5, with_modes=False), now=NOW + HOUR / 2)
    assert (storage.soc_at_start, storage.soc_max) == (0, pytest.approx(10_500))
    assert [(each.start, each.end, round(each.value)) for each in storage.soc_minima] == [
        (m.plans.moment(NOW + 3 * HOUR), m.plans.moment(NOW + 3 * HOUR), 10_500)
    ]
    assert values(storage.consumption_capacity) == [(1, 5520), (2, 11040), (1, 5520)]
    assert storage.production_capacity == 0
    assert storage.operation_modes == []
    with_modes = posed(m, remembered, window(left=0.5), now=NOW + HOUR / 2)
    assert with_modes.operation_modes == [(0, 0), (4140, 11040)]
    assert values(with_modes.consumption_capacity) == [(3, 11040), (1, 5520)]


def test_asks_for_production_that_is_deferred_as_a_storage_that_is_emptied(m):
    made = constraints({L1: ([(0, 0)], [(-4000, -2000), (0, 0)])}, "DEFER")
    asked = energy(0, until=2, quantity=L1, lower=-2000)
    storage = posed(m, memory(m, made, asked), window())
    assert (storage.soc_at_start, storage.soc_max) == (pytest.approx(4000), pytest.approx(4000))
    assert [(each.start, each.value) for each in storage.soc_maxima] == [(m.plans.moment(NOW + 2 * HOUR), 0)]
    assert values(storage.production_capacity) == [(2, 4000), (2, 0)]
    assert storage.operation_modes == [(-4000, -2000), (0, 0)]


def test_asks_for_no_more_energy_than_can_be(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(20_000, until=2))
    [wish] = posed(m, remembered, window()).soc_minima
    assert wish.value == 22_080


def test_asks_for_the_energy_of_windows_one_after_the_other(m):
    asked = [energy(1000, until=1), energy(2000, since=2, until=3)]
    storage = posed(m, memory(m, constraints(CHARGER, "DEFER"), *asked), window())
    assert [round(each.value) for each in storage.soc_minima] == [1000, 3000]
    assert values(storage.consumption_capacity) == [(1, 11040), (1, 0), (1, 11040), (1, 0)]


# Whatever a device tells


def fits(ranges, value) -> bool:
    """Tell whether a value is in one of some ranges."""
    return any(low - 1e-6 <= value <= high + 1e-6 for low, high in ranges)


def ranges_by_kind(made) -> dict:
    """Return the ranges of constraints by (quantity, limit_type), without those of an abnormal condition."""
    found = {}
    for each in made["allowed_limit_ranges"]:
        if not each["abnormal_condition_only"]:
            boundary = each["range_boundary"]
            key = each["commodity_quantity"], each["limit_type"]
            found.setdefault(key, []).append((boundary["start_of_range"], boundary["end_of_range"]))
    return found


def check(sent, made, end):
    """Check an instruction against the constraints that it refers to."""
    assert s2_schemas.problems(sent) == []
    assert sent["power_constraints_id"] == made["id"]
    allowed = ranges_by_kind(made)
    found = profile(sent)
    assert found.keys() == {quantity for quantity, _kind in allowed}
    for quantity, elements in found.items():
        assert len(elements) <= 288
        assert all(first[1] == second[0] for first, second in pairwise(elements))
        assert elements[-1][1] == pytest.approx(end, abs=0.002)
        for start, until, upper, lower in elements:
            assert until > start
            assert upper >= lower
            assert fits(allowed[quantity, UPPER], upper)
            assert fits(allowed[quantity, LOWER], lower)


MARKETS = st.lists(
    st.tuples(st.integers(-20, 40), st.integers(-20, 40), st.integers(-9000, 9000)), min_size=1, max_size=12
)


@trials(200)
@given(
    random_constraints(until=5.5),
    random_constraints(since=5.5),
    MARKETS,
    st.sampled_from([math.inf, 3000, 8000]),
    st.one_of(st.none(), st.lists(st.integers(-9000, 9000), min_size=12, max_size=12)),
    st.lists(st.tuples(st.integers(-6000, 9000), st.floats(-3, 8), st.floats(0.1, 9)), max_size=3),
    st.lists(st.integers(-9000, 9000), max_size=6),
)
def test_any_envelope_is_inside_what_is_allowed(one, other, intervals, limit, wanted, energies, expected):
    m = modules()
    names = {each["commodity_quantity"] for each in one["allowed_limit_ranges"]} - {"HEAT.THERMAL_POWER"}
    asked = [
        energy(upper, since, since + hours, sorted(names)[0], lower=upper - 2000)
        for upper, since, hours in energies
    ]
    messages = [one, other, *asked, *([forecast(expected)] if expected else [])]
    remembered = memory(m, *messages)
    device = m.pebc.read_device(remembered)
    assert m.pebc.why_not_plannable(device) is None
    prices, production, loads = (list(each) for each in zip(*intervals, strict=True))
    made = market(m, [each / 100 for each in prices], [each / 100 for each in production], loads, limit)
    powers = wanted and wanted[: len(made)]
    _device, plan = planned(m, remembered, made, powers)
    posed(m, remembered, window(hours=len(made), left=0.7))
    end = made[-1].end
    by_id = {one["id"]: (one, min(end, NOW + 5.5 * HOUR)), other["id"]: (other, end)}
    assert plan.changes[0].moment == NOW + 2
    for change in plan.changes:
        check(instruction(m, change), *by_id[change.constraints])
    assert plan.pieces[0].start == made[0].start
    assert plan.pieces[-1].end == end
    for before, after in pairwise(plan.pieces):
        assert before.end == after.start


@trials(150)
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=6),
    st.booleans(),
    MARKETS,
    st.sampled_from([math.inf, 6000]),
    st.integers(1, 120),
    st.tuples(st.integers(-3, 6), st.integers(1, 12)),
    st.one_of(st.none(), st.lists(st.integers(0, 12_000), min_size=12, max_size=12)),
    st.sampled_from([1, -1]),
)
def test_leaves_room_for_energy_wherever_that_is_possible(
    edges, has_zero, intervals, limit, share, hours, wanted, sign
):
    m = modules()
    ranges = [(300 * low, 300 * high) for low, high in zip(*[iter(sorted(edges))] * 2, strict=False)]
    ranges += [(0, 0)] if has_zero else []
    own = [(0, 0)]
    mine = ranges if sign > 0 else [(-high, -low) for low, high in ranges]
    most = max(high for _low, high in ranges)
    average = most * share / 100
    asked = energy(*((average, hours[0]) if sign > 0 else (0, hours[0])), sum(hours), L1)
    asked |= {"lower_average_power": 0 if sign > 0 else -average}
    made = constraints({L1: (mine, own) if sign > 0 else (own, mine)}, "DEFER")
    prices, production, loads = (list(each) for each in zip(*intervals, strict=True))
    given = market(m, [it / 100 for it in prices], [it / 100 for it in production], loads, limit)
    powers = wanted and [sign * each for each in wanted[: len(given)]]
    _device, plan = planned(m, memory(m, made, asked), given, powers)
    elements = profile(instruction(m, plan.changes[0]))[L1]
    first, last = NOW + hours[0] * HOUR, NOW + sum(hours) * HOUR
    begin, end = max(first, given[0].start), min(last, given[-1].end)
    if end <= begin:
        return
    needed = average * (last - first) / HOUR * (end - begin) / (last - begin)
    possible, floor = 0.0, 0.0
    for each in given:
        inside = max(0.0, min(each.end, end) - max(each.start, begin)) / HOUR
        left = max(limit - sign * each.load, 0)
        fitting = [min(high, left) for low, high in ranges if low <= left]
        possible += inside * max(fitting, default=min(low for low, _high in ranges))
        floor += inside * min(low for low, _high in ranges)
    allowed = sign * room(elements, begin, end, 2 if sign > 0 else 3)
    assert allowed >= min(needed, possible) - 0.5
    assert allowed <= max(needed * 1.002, floor) + 2.5 * (end - begin) / HOUR
    if needed > possible * 1.01 + 2 and last <= given[-1].end:
        assert plan.missed
    if needed * 1.002 < possible:
        assert not plan.missed


@trials(100)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(-4, 4)), min_size=1, max_size=6),
    st.integers(1, 99),
)
def test_takes_the_cheapest_hours_but_for_a_few_percent(intervals, share):
    m = modules()
    prices = [max(each[:2]) / 100 for each in intervals]
    production = [min(each[:2]) / 100 for each in intervals]
    loads = [1000 * each[2] for each in intervals]
    average = 40 * share
    remembered = memory(
        m,
        constraints({L1: ([(0, 4000)], [(0, 0)])}, "DEFER"),
        energy(average, until=len(intervals), quantity=L1),
    )
    made = market(m, prices, production, loads, begin=0)
    _device, plan = planned(m, remembered, made)
    pieces = []
    for each in made:
        surplus = min(max(-each.load, 0), 4000)
        pieces += [(each.production_price, surplus), (each.consumption_price, 4000 - surplus)]
    left, least = 40 * share * len(intervals), 0.0
    few = 0.02 * left * (max(prices) - min(production)) / 1000
    for price, power in sorted(pieces):
        least, left = least + price * min(power, left) / 1000, left - min(power, left)
    assert least - 1e-6 <= plan.cost <= least + few + 1e-6


@trials(40)
@given(
    st.lists(st.integers(0, 40), min_size=24, max_size=24),
    st.integers(5, 90),
    st.one_of(st.none(), st.integers(0, 2**32)),
    st.booleans(),
)
def test_a_car_that_charges_as_fast_as_it_may_has_its_energy_in_time(prices, share, seed, is_stepless):
    m = modules()
    asked = 11_040 * 6 * share / 100
    ranges = {ALL: ([(0, 11040)], [(0, 0)])} if is_stepless else CHARGER
    remembered = memory(m, constraints(ranges, "DEFER"), energy(asked / 6, until=6))
    chance = Random(seed or 0)
    plan, told_to_it, charged = None, [], 0.0
    for quarter in range(24):
        now = NOW + quarter * QUARTER
        left = [each / 100 for each in prices[quarter:]] + [0.5] * 24
        intervals = market(m, left, length=QUARTER, begin=chance.uniform(2, 20), since=now)
        wanted = None if seed is None else [chance.choice([0, 3000, 11_040]) for _ in intervals]
        _device, plan = planned(m, remembered, intervals, wanted, plan, now)
        [change] = plan.changes
        if change not in told_to_it:
            told_to_it.append(change)
    lines = [profile(instruction(m, each))[ALL] for each in told_to_it]
    for place, line in enumerate(lines):
        end = lines[place + 1][0][0] if place + 1 < len(lines) else NOW + 6 * HOUR
        for start, until, upper, _lower in line:
            seconds = max(0.0, min(until, end, NOW + 6 * HOUR) - start) if start < end else 0.0
            charged += min(upper * seconds / HOUR, asked - charged)
    assert charged == pytest.approx(asked, abs=1)
    if seed is None:
        assert len(told_to_it) <= 3


def test_a_schedule_of_the_wrong_times_does_no_harm(m):
    remembered = memory(m, constraints(CHARGER, "DEFER"), energy(2000, until=2))
    intervals = market(m, [0.1] * 4)
    device = m.pebc.read_device(remembered)
    state = m.pebc.read_state(device, remembered, {}, None, NOW)
    for wanted in (
        [],
        schedule(market(m, [0.1], since=NOW - 9 * HOUR), [5000]),
        schedule(intervals, [-9e9] * 4),
    ):
        plan = plan_alone(m.pebc, device, state, wanted, intervals, {})
        assert room(profile(instruction(m, plan.changes[0]))[ALL], NOW, NOW + 2 * HOUR) >= 4000


def test_many_constraints_are_read_and_planned(m):
    made = [constraints(CHARGER, "DEFER", since=each / 10, until=each / 10 + 2) for each in range(120)]
    asked = [energy(500, since=each / 7, until=each / 7 + 3) for each in range(120)]
    _device, plan = planned(m, memory(m, *made, *asked), market(m, [0.1, 0.3] * 96, length=QUARTER))
    assert len(plan.changes) >= 40


# What a device is told that comes back


def test_an_envelope_that_is_told_again_is_what_is_left_of_it(m):
    remembered = memory(m, constraints(INVERTER, name="c1"), forecast([-4000] * 8))
    intervals = market(m, [0.1, -0.2, 0.1, -0.2])
    device, plan = planned(m, remembered, intervals)
    [before] = profile(instruction(m, plan.changes[0])).values()
    begin = NOW + 1.5 * HOUR
    resumed = m.pebc.resumed(device, plan, SimpleNamespace(begin=begin))
    [after] = profile(instruction(m, resumed.changes[0])).values()
    assert after[0][0] == begin
    assert [each[1:] for each in after] == [pytest.approx(each[1:]) for each in before if each[1] > begin]
    assert resumed.changes[0].power == m.plans.power_at(plan, begin)
    assert resumed.instructed[-1].end == begin


def test_an_envelope_under_constraints_that_are_gone_is_not_told_again(m):
    _device, plan = planned(m, memory(m, constraints(INVERTER, name="c1")), market(m, [0.1] * 4))
    other = m.pebc.read_device(memory(m, constraints(INVERTER, name="c2")))
    assert m.pebc.resumed(other, plan, SimpleNamespace(begin=NOW + HOUR)) is None
