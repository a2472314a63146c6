"""When a power profile's sequences run: as cheap as any way found by trying, and within what is demanded."""

import math
import random
from datetime import datetime

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.markets import starting_at
from tests.modules.flexmeasures_cem.ppbc_cases import (
    BEGIN,
    HOUR,
    MINUTE,
    NOW,
    QUARTER,
    cheapest,
    check,
    container,
    courses,
    element,
    market,
    memory,
    modules,
    planned,
    profile,
    random_definitions,
    sequence,
    status,
)
from tests.parts.trials import trials

MARKETS = st.tuples(
    st.sampled_from([5 * MINUTE, QUARTER, HOUR]),
    st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.3, -0.1]), min_size=6, max_size=12),
    st.sampled_from([None, 0.0, 0.08]),
    st.lists(st.sampled_from([0, -1000, 500, -3000]), min_size=12, max_size=12),
    st.sampled_from([math.inf, math.inf, 1000.0, 2000.0]),
)
"""The length of intervals, their prices, what is fed in yields, loads, and the site's limit."""
STEP = 5 * MINUTE
"""How far apart starts are, but for those when the container before ends."""
TIE = 2e-3
"""What earlier starts may cost more (currency)."""
SETTINGS = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}


def drawn(m, made, begin):
    """Return a market of four hours, the first instruction of which can be executed `begin` s from now."""
    length, prices, feed_in, loads, limit = made
    number = int(4 * HOUR // length)
    return market(
        m,
        (prices * number)[:number],
        length,
        begin=begin,
        loads=(loads * number)[:number],
        limit=limit,
        feed_in=feed_in,
    )


def moment(text):
    """Return a moment in seconds."""
    return datetime.fromisoformat(text).timestamp()


def earliest(definition, cells):
    """Return when a profile may start."""
    return max(cells[0].start, moment(definition["start_time"]))


def minutes(plan):
    """Return what a plan tells: minutes from the start, and the kind of instruction."""
    kinds = {
        "ScheduleInstruction": "start",
        "StartInterruptionInstruction": "pause",
        "EndInterruptionInstruction": "go on",
    }
    return [(round((each.moment - NOW) / 60, 2), kinds[each.kind]) for each in plan.changes]


@trials(150, **SETTINGS)
@given(random_definitions(), MARKETS)
def test_no_other_start_or_sequence_is_cheaper(definition, made):
    m = modules()
    cells = drawn(m, made, 0.0)
    _device, _state, plan = planned(m, [definition], cells)
    over, cost = check(definition, cells, plan, earliest(definition, cells))
    assert plan.cost == pytest.approx(cost, abs=1e-7)
    best_over, best = cheapest(definition, cells, earliest(definition, cells), step=STEP)
    assume(best_over < 1e-3)
    assert over < 1e-3
    assert plan.missed == []
    assert max(piece.end for piece in plan.pieces) <= moment(definition["end_time"]) + 1e-3
    assert cost <= best + TIE


@trials(100, **SETTINGS)
@given(random_definitions(interruptible=True), MARKETS)
def test_no_other_pauses_are_cheaper_that_save_enough(definition, made):
    m = modules()
    cells = drawn(m, made, 0.0)
    begin = earliest(definition, cells)
    _device, _state, plan = planned(m, [definition], cells)
    over, cost = check(definition, cells, plan, begin)
    _over, steady = cheapest(definition, cells, begin, step=STEP)
    fee = 0.01 * abs(steady)
    slot = min(made[0], QUARTER)
    best_over, best = cheapest(definition, cells, begin, pauses=2, step=STEP, fee=fee, slot=slot)
    number = sum(kind == "pause" for _minutes, kind in minutes(plan))
    assume(best_over < 1e-3)
    assert over < 1e-3
    assert plan.missed == []
    assert cost + fee * number <= best + TIE


@trials(100, **SETTINGS)
@given(random_definitions(), MARKETS, st.floats(0, 3000), st.booleans())
def test_every_plan_keeps_to_its_definition(definition, made, begin, is_interruptible):
    m = modules()
    for each in definition["power_sequences_containers"]:
        for one in each["power_sequences"]:
            one["is_interruptible"] = is_interruptible
            for part in one["elements"]:
                part["duration"] += 1234
    cells = drawn(m, made, begin)
    _device, _state, plan = planned(m, [definition], cells)
    check(definition, cells, plan, earliest(definition, cells))
    moments = [each.moment for each in plan.changes]
    assert moments == sorted(moments)
    end = max(piece.end for piece in plan.pieces)
    late = end - moment(definition["end_time"])
    assert [each.reached for each in plan.missed] == ([pytest.approx(late / 60)] if late > 1 else [])


@trials(100, **SETTINGS)
@given(
    st.booleans().flatmap(lambda each: random_definitions(interruptible=each)), MARKETS, st.integers(1, 90)
)
def test_a_plan_made_again_later_comes_to_the_same(definition, made, passed):
    m = modules()
    cells = drawn(m, made, 2.0)
    _device, _state, plan = planned(m, [definition], cells)
    now = NOW + passed * MINUTE
    assume(all(abs(each.moment - now) > 10 for each in plan.changes))
    later = starting_at(cells, now + BEGIN)
    _device, _state, again = planned(m, [definition], later, plan=plan, now=now)
    coming = m.ppbc.upcoming(plan, now)
    assert len(again.changes) == len(coming)
    assert all(m.ppbc.is_same_instruction(*each) for each in zip(again.changes, coming, strict=True))


def test_the_cheaper_of_two_programmes_runs():
    m = modules()
    quick, eco = sequence((60, 2000)), sequence((30, 1500), (90, 300))
    definition = profile(container(quick, eco), end=180)
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert courses(plan)[definition["id"], definition["power_sequences_containers"][0]["id"]][0] == eco["id"]
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 4 + [0.01] * 4 + [0.3] * 88))
    assert plan.changes[0].sequence == quick["id"]
    assert minutes(plan) == [(60, "start")]


def test_it_starts_at_once_where_nothing_is_cheaper_later():
    m = modules()
    _device, _state, plan = planned(m, [profile(container(sequence((45, 2000))))], market(m, [0.2] * 96))
    assert [each.moment for each in plan.changes] == [NOW + BEGIN]


def test_it_does_not_start_before_the_start_time():
    m = modules()
    definition = profile(container(sequence((45, 2000))), start=73.5)
    _device, _state, plan = planned(m, [definition], market(m, [0.2] * 96))
    assert minutes(plan) == [(73.5, "start")]


def test_a_boundary_within_the_sequence_meets_the_price():
    m = modules()
    definition = profile(container(sequence((7.25, 100), (10, 2000), (30, 100))))
    prices = [0.3] * 8 + [0.1] + [0.3] * 87
    _device, _state, plan = planned(m, [definition], market(m, prices))
    assert 120 <= minutes(plan)[0][0] + 7.25 <= 125


def test_two_containers_keep_the_pause_between():
    m = modules()
    cells = market(m, [0.1] * 2 + [0.3] * 10 + [0.05] * 2 + [0.3] * 82, begin=0.0)
    washing, drying = sequence((30, 2000)), sequence((30, 1000), pause=20)
    _device, _state, plan = planned(m, [profile(container(washing), container(drying), end=300)], cells)
    assert minutes(plan) == [(180, "start"), (210, "start")]
    del drying["max_pause_before"]
    _device, _state, plan = planned(m, [profile(container(washing), container(drying), end=300)], cells)
    assert minutes(plan) == [(0, "start"), (180, "start")]


def test_no_pause_at_all_is_allowed_where_it_is_zero():
    m = modules()
    definition = profile(container(sequence((30, 2000))), container(sequence((30, 100), pause=0)))
    prices = [0.3] * 4 + [0.1] * 2 + [0.4] * 10 + [0.1] * 80
    _device, _state, plan = planned(m, [definition], market(m, prices))
    first, second = plan.changes
    assert second.moment - first.moment == pytest.approx(30 * MINUTE)


def test_a_dryer_pauses_while_power_is_dear():
    m = modules()
    definition = profile(container(sequence((60, 2000), interruptible=True)), end=180)
    prices = [0.3] * 2 + [0.1] * 2 + [0.3] * 2 + [0.1] * 2 + [0.3] * 90
    _device, _state, plan = planned(m, [definition], market(m, prices))
    assert minutes(plan) == [(30, "start"), (60, "pause"), (90, "go on")]
    assert plan.cost == pytest.approx(2 * 0.1)
    assert m.plans.power_at(plan, NOW + 75 * MINUTE) == 0


@pytest.mark.parametrize(("dear", "number"), [(0.103, 1), (0.106, 3)])
def test_a_pause_has_to_save_one_percent(dear, number):
    m = modules()
    definition = profile(container(sequence((60, 2000), interruptible=True)), end=75)
    cells = market(m, [0.1, 0.1, dear, 0.1, 0.1, *[0.5] * 90], begin=0.0)
    _device, _state, plan = planned(m, [definition], cells)
    assert len(plan.changes) == number


def test_a_sequence_that_cannot_be_paused_is_not():
    m = modules()
    definition = profile(container(sequence((60, 2000))), end=180)
    prices = [0.3] * 2 + [0.1] * 2 + [0.3] * 2 + [0.1] * 2 + [0.3] * 90
    _device, _state, plan = planned(m, [definition], market(m, prices))
    assert len(plan.changes) == 1


def test_a_sequence_for_an_abnormal_condition_is_never_chosen():
    m = modules()
    free = sequence((60, 0), abnormal=True)
    definition = profile(container(free, sequence((60, 2000))))
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert plan.changes[0].sequence != free["id"]


def test_the_latest_start_is_now():
    m = modules()
    definition = profile(container(sequence((60, 2000), pause=5)), end=60 + BEGIN / 60)
    prices = [0.5] * 4 + [0.1] * 92
    _device, _state, plan = planned(m, [definition], market(m, prices))
    assert [each.moment for each in plan.changes] == [NOW + BEGIN]
    assert plan.missed == []


@pytest.mark.parametrize("end", [50, 0, -30])
def test_what_is_too_late_starts_and_ends_as_early_as_can_be(end):
    m = modules()
    long, short = sequence((90, 100)), sequence((60, 3000))
    definition = profile(container(long, short), container(sequence((30, 100))), start=-60, end=end)
    _device, _state, plan = planned(m, [definition], market(m, [0.5] * 8 + [0.1] * 88))
    assert plan.changes[0].sequence == short["id"]
    assert minutes(plan) == [(0.03, "start"), (60.03, "start")]
    (missed,) = m.ppbc.missed_targets(plan)
    assert missed["datetime"].timestamp() == NOW + end * MINUTE
    assert (missed["asked"], missed["reached"]) == (0, round(90 + BEGIN / 60 - end, 3))


def test_what_is_long_past_is_not_begun():
    m = modules()
    definition = profile(container(sequence((60, 2000))), start=-300, end=-61)
    _device, _state, plan = planned(m, [definition], market(m, [0.5] * 96))
    assert plan.changes == []
    assert plan.missed == []


def test_the_limit_of_the_site_comes_first():
    m = modules()
    definition = profile(container(sequence((60, 2000))), end=480)
    prices, loads = [0.1] * 8 + [0.4] * 88, [3000] * 8 + [500] * 88
    cells = market(m, prices, loads=loads, limit=4000.0)
    _device, _state, plan = planned(m, [definition], cells)
    assert minutes(plan) == [(120, "start")]
    assert check(definition, cells, plan)[0] == 0


def test_the_limit_of_the_site_comes_before_the_deadline():
    m = modules()
    definition = profile(container(sequence((60, 2000))), end=90)
    loads = [3000] * 8 + [500] * 88
    cells = market(m, [0.1] * 96, loads=loads, limit=4000.0)
    _device, _state, plan = planned(m, [definition], cells)
    assert minutes(plan) == [(120, "start")]
    assert [each.reached for each in plan.missed] == [pytest.approx(90)]


def test_the_deadline_is_kept_where_the_limit_cannot_be():
    m = modules()
    definition = profile(container(sequence((60, 5000))), end=90)
    cells = market(m, [0.3] * 2 + [0.1] * 94, limit=4000.0)
    _device, _state, plan = planned(m, [definition], cells)
    assert minutes(plan) == [(30, "start")]
    assert plan.missed == []


def test_a_pause_avoids_the_limit():
    m = modules()
    definition = profile(container(sequence((60, 2000), interruptible=True)), end=90)
    loads = [0, 0, 3000, 0, 0, 0, *[0] * 90]
    cells = market(m, [0.1] * 96, loads=loads, limit=4000.0)
    _device, _state, plan = planned(m, [definition], cells)
    assert check(definition, cells, plan)[0] == pytest.approx(0)
    assert plan.missed == []


def test_consumption_is_worth_having_at_negative_prices():
    m = modules()
    long, short = sequence((120, 2000)), sequence((60, 500))
    definition = profile(container(short, long))
    _device, _state, plan = planned(m, [definition], market(m, [0.1] * 8 + [-0.1] * 8 + [0.1] * 80))
    assert plan.changes[0].sequence == long["id"]
    assert minutes(plan) == [(120, "start")]
    assert plan.cost == pytest.approx(-0.4)


def test_own_power_is_used_that_would_be_fed_in():
    m = modules()
    definition = profile(container(sequence((60, 2000))))
    cells = market(m, [0.3] * 96, loads=[0] * 16 + [-3000] * 4 + [0] * 76, feed_in=0.05)
    _device, _state, plan = planned(m, [definition], cells)
    assert minutes(plan) == [(240, "start")]
    assert plan.cost == pytest.approx(0.1)


def test_gas_and_heat_cost_what_the_tariffs_say():
    m = modules()
    gas = sequence(element(60, 100, NATURAL_GAS__FLOW_RATE=0.1))
    heat = sequence(element(60, 100, HEAT__THERMAL_POWER=5000, HEAT__TEMPERATURE=60))
    definition = profile(container(gas, heat))
    for tariffs, wanted, cost in (
        ({"GAS": 1.0, "HEAT": 0.05}, heat, 0.25),
        ({"GAS": 0.5, "HEAT": 0.05}, gas, 0.18),
        ({"HEAT": 0.05}, gas, 0.0),
    ):
        _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96), tariffs=tariffs)
        assert plan.changes[0].sequence == wanted["id"]
        assert plan.cost == pytest.approx(cost + 0.03)


def test_three_phases_are_added_up():
    m = modules()
    phases = {"ELECTRIC__POWER__L2": 300, "ELECTRIC__POWER__L3": 500}
    definition = profile(container(sequence(element(60, 200, **phases))))
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert plan.changes[0].power == 1000


def test_a_profile_sees_the_power_of_the_one_that_ends_before():
    m = modules()
    first, second = (profile(container(sequence((60, 2000))), end=end) for end in (240, 480))
    cells = market(m, [0.3] * 4 + [0.1] * 4 + [0.2] * 88, limit=3000.0)
    _device, _state, plan = planned(m, [second, first], cells)
    assert [(each.profile, (each.moment - NOW) / 60) for each in plan.changes] == [
        (first["id"], 60),
        (second["id"], 120),
    ]
    cells = market(m, [0.3] * 4 + [0.1] * 4 + [0.2] * 88)
    _device, _state, plan = planned(m, [second, first], cells)
    assert [each.moment for each in plan.changes] == [NOW + HOUR] * 2
    assert plan.pieces == [m.plans.PowerPiece(NOW + HOUR, NOW + 2 * HOUR, 4000)]
    assert m.ppbc.planned_power(plan, NOW + HOUR - QUARTER, HOUR) == pytest.approx(3000)


def test_an_end_beyond_the_market_is_planned_within_it():
    m = modules()
    definition = profile(container(sequence((60, 2000))), end=5 * 24 * 60)
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 40 + [0.1] * 4 + [0.3] * 52))
    assert minutes(plan) == [(600, "start")]


def test_what_can_only_start_after_the_market_is_left_for_later():
    m = modules()
    definition = profile(container(sequence((60, 2000))), start=4 * 24 * 60, end=5 * 24 * 60)
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert plan.changes == []


def test_what_lasts_longer_than_the_market_starts_in_time():
    m = modules()
    definition = profile(container(sequence((30 * 60, 2000))), end=40 * 60)
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert len(plan.changes) == 1
    assert minutes(plan)[0][0] <= 600


def test_sequences_without_any_time_are_planned():
    m = modules()
    nothing = sequence((0, 500))
    definition = profile(
        container(nothing), container(sequence((0, 500), (30, 100), pause=0)), container(nothing)
    )
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert len(plan.changes) == 3
    check(definition, market(m, [0.3] * 96), plan)


@pytest.mark.parametrize("length", [5 * MINUTE, QUARTER, HOUR])
def test_durations_that_are_no_minutes_fit_any_market(length):
    m = modules()
    definition = profile(container(sequence((37.217, 2000), (11.1, 300))), end=311.7)
    chance = random.Random(1)
    cells = market(m, [chance.random() for _ in range(int(24 * HOUR / length))], length)
    _device, _state, plan = planned(m, [definition], cells)
    _over, cost = check(definition, cells, plan)
    _none, best = cheapest(definition, cells, cells[0].start, step=7.0)
    assert cost == pytest.approx(best, rel=0.05)


def test_long_descriptions_are_planned():
    m = modules()
    chance = random.Random(1)
    many = [(chance.uniform(0.5, 1.5), chance.randint(0, 3000)) for _ in range(288)]
    definition = profile(container(*[sequence(*many) for _ in range(3)]), end=24 * 60)
    cells = market(m, [chance.random() for _ in range(96)])
    _device, _state, plan = planned(m, [definition], cells)
    assert check(definition, cells, plan)[1] == pytest.approx(plan.cost)


def test_large_descriptions_are_planned():
    m = modules()
    many = [(1, power) for power in range(288)]
    definition = profile(*[container(*[sequence(*many) for _ in range(9)]) for _ in range(3)], end=48 * 60)
    cells = market(m, [0.3] * 96 + [0.1] * 96)
    _device, _state, plan = planned(m, [definition], cells)
    assert minutes(plan)[0][0] >= 24 * 60
    check(definition, cells, plan)


def test_one_profile_that_cannot_be_planned_does_not_hinder_another():
    m = modules()
    wrong = profile(container(sequence((60, 100), abnormal=True)), end=60)
    right = profile(container(sequence((60, 2000))))
    assert "abnormal condition" in m.ppbc.why_not_plannable(m.ppbc.read_device(memory(m, wrong)))
    _device, _state, plan = planned(m, [wrong, right], market(m, [0.3] * 96))
    assert [each.profile for each in plan.changes] == [right["id"]]


def test_an_instruction_that_waits_is_the_same_after_its_status():
    m = modules()
    definition = profile(container(sequence((60, 2000))))
    cells = market(m, [0.3] * 8 + [0.1] * 88)
    _device, _state, plan = planned(m, [definition], cells)
    told = status(definition, ("SCHEDULED", 0, None))
    later = starting_at(cells, NOW + 62)
    _device, _state, again = planned(
        m, [definition], later, told=told, heard={None: NOW + 5}, plan=plan, now=NOW + 60
    )
    assert [m.ppbc.is_same_instruction(*each) for each in zip(plan.changes, again.changes, strict=True)] == [
        True
    ]
