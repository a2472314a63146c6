"""From wanted powers to instructions: what every plan keeps to, and what particular devices need."""

from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    random_descriptions,
    timer,
    transition,
)
from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts.s2_messages import example, turned
from tests.parts.trials import trials

NOW = START.timestamp()
CONTINUOUS = [
    mode("idle", element((0, 0))),
    mode("charge", element((0, 5000))),
    mode("discharge", element((-5000, 0))),
]


def planned(m, described, level, powers, modes=None, begin=2.0, prices=None, rooms=None, **others):
    """Return (the device, the Plan) of wanted powers (W per quarter), from the first modes on."""
    remembered = memory(m, described, level, **others)
    activate(m, remembered, described, modes)
    device = m.frbc.read_device(remembered)
    state = m.frbc.read_state(device, remembered, {}, None, NOW)
    wanted = intervals(powers, begin)
    return device, plan_alone(m.frbc, device, state, wanted, market(wanted, prices, rooms), {})


def after(quarters):
    """Return the moment some quarters after the start."""
    return START + timedelta(seconds=quarters * QUARTER)


def told(device, plan):
    """Return what a plan tells: seconds from the start, the mode's label, and the factor."""
    labels = {each.id: each.label for actuator in device.actuators for each in actuator.modes.values()}
    return [(round(each.moment - NOW, 1), labels[each.mode], round(each.factor, 3)) for each in plan.changes]


@trials(150)
@given(
    random_descriptions(),
    st.floats(0, 100),
    st.lists(st.sampled_from([-4000, -1500, 0, 0, 700, 2000, 5000]), min_size=1, max_size=16),
)
def test_any_device_can_follow_its_instructions_within_its_range(described, level, powers):
    m = modules()
    _device, plan = planned(m, described, level, powers)
    known = {each["id"]: each for each in described["actuators"]}
    moments = [each.moment for each in plan.changes]
    assert moments == sorted(moments)
    assert all(moment >= NOW + 2 for moment in moments)
    for change in plan.changes:
        modes = {each["id"]: each for each in known[change.actuator]["operation_modes"]}
        assert not modes[change.mode]["abnormal_condition_only"]
        assert 0 <= change.factor <= 1
    lived = live(described, plan, level, after(len(powers)))
    assert lived.rejected == []
    assert lived.violations == []
    assert lived.fill_level == pytest.approx(m.plans.level_at(plan, plan.end), abs=0.3)


@trials(60)
@given(st.lists(st.integers(-5000, 5000), min_size=1, max_size=12), st.floats(30, 70))
def test_a_continuous_battery_does_what_is_wanted(powers, level):
    m = modules()
    small = [power / 20 for power in powers]
    described = description(actuator("inverter", CONTINUOUS))
    _device, plan = planned(m, described, level, small, begin=0.0)
    lived = live(described, plan, level, after(len(powers)))
    for place, power in enumerate(small):
        energy = lived.energy(after(place), after(place + 1))
        assert energy == pytest.approx(power / 4, abs=5000 * 0.006 / 4)


@trials(100)
@given(
    random_descriptions(),
    st.floats(0, 100),
    st.lists(st.sampled_from([-4000, -1500, 0, 0, 700, 2000, 5000]), min_size=1, max_size=8),
)
def test_ranges_that_run_downwards_are_planned_like_others_with_the_factors_turned(described, level, powers):
    m = modules()
    _device, plan = planned(m, described, level, powers)
    downwards = turned(described, "fill_rate", "power_ranges")
    _device, other = planned(m, downwards, level, powers)
    assert [each.mode for each in other.changes] == [each.mode for each in plan.changes]
    assert [each.power for each in other.changes] == pytest.approx([each.power for each in plan.changes])
    lived = live(downwards, other, level, after(len(powers)))
    assert (lived.rejected, lived.violations) == ([], [])


def test_in_a_gap_between_fill_levels_the_element_below_holds():
    m = modules()
    idle = mode("idle", element((0, 0)))
    charge = mode("charge", element((0, 5000), (0, 40)), element((0, 2000), (50, 100)))
    described = description(actuator("inverter", [idle, charge]))
    device, plan = planned(m, described, 38, [5000, 5000, 5000], begin=0.0)
    assert told(device, plan)[0] == (0.0, "charge", 1.0)
    [reached] = [piece.end for piece in plan.pieces if piece.end_level == 50]
    assert reached - NOW == pytest.approx(12 * 100 / (5000 * 0.95) * 3600)
    assert {round(piece.power_w) for piece in plan.pieces} == {5000, 2000}


def test_a_stepped_device_makes_up_in_one_interval_for_another():
    m = modules()
    described = description(
        actuator("boiler", [mode("off", element((0, 0))), mode("on", element((2500, 2500)))])
    )
    powers = [900] * 12
    _device, plan = planned(m, described, 10, powers, begin=0.0)
    lived = live(described, plan, 10, after(12))
    assert lived.energy(START, after(12)) == pytest.approx(sum(powers) / 4, abs=2500 / 8)
    assert 6 <= len(plan.changes) <= 12


def test_takes_the_way_over_an_intermediate_mode_where_there_is_no_other():
    m = modules()
    idle, charge, discharge = modes = [
        mode("idle", element((0, 0))),
        mode("charge", element((3000, 3000))),
        mode("discharge", element((-3000, -3000))),
    ]
    moves = [
        transition(idle, charge, 5),
        transition(charge, idle, 5),
        transition(idle, discharge, 5),
        transition(discharge, idle, 5),
    ]
    described = description(actuator("big", modes, moves))
    device, plan = planned(m, described, 50, [3000, -3000, 0])
    assert told(device, plan) == [
        (2.0, "charge", 1.0),
        (900.0, "idle", 1.0),
        (906.0, "discharge", 1.0),
        (1800.0, "idle", 1.0),
    ]
    assert live(described, plan, 50, after(3)).rejected == []


@pytest.mark.parametrize(("level", "room"), [(50, 0), (99.9, 5000)])
def test_of_two_modes_without_power_the_one_that_cannot_have_any_is_told(level, room):
    m = modules()
    charge, idle = mode("charge", element((0, 5000))), mode("idle", element((0, 0)))
    described = description(actuator("charger", [charge, idle]))
    device, plan = planned(m, described, level, [3000] * 4, rooms=[(-room, room)] * 4)
    assert told(device, plan) == [(2.0, "idle", 1.0)]


def test_the_factor_of_a_range_that_is_one_power_is_1_and_none_is_told_again():
    m = modules()
    modes = [mode("off", element((0, 0))), mode("on", element((3000, 3000)))]
    described = description(actuator("boiler", modes))
    device, plan = planned(m, described, 50, [0, 3000, 3000, 0], begin=0.0)
    assert told(device, plan) == [(900.0, "on", 1.0), (2700.0, "off", 1.0)]


def test_waits_for_a_timer_that_blocks_a_transition():
    m = modules()
    off, on = modes = [mode("off", element((0, 0))), mode("on", element((2000, 4000)))]
    least = timer(1200)
    moves = [transition(off, on, starts=[least]), transition(on, off, blocked_by=[least])]
    described = description(actuator("charger", modes, moves, [least]))
    device, plan = planned(m, described, 50, [4000, 0, 0])
    assert told(device, plan)[:2] == [(2.0, "on", 1.0), (900.0, "on", 0.0)]
    [(end, label, _factor)] = told(device, plan)[2:]
    assert (label, 1203 <= end <= 1212) == ("off", True)
    assert live(described, plan, 50, after(3)).rejected == []


def test_never_uses_what_is_for_an_abnormal_condition():
    m = modules()
    modes = [
        mode("idle", element((0, 0))),
        mode("charge", element((0, 1000))),
        mode("backup charge", element((6000, 6000)), abnormal=True),
    ]
    device, plan = planned(m, description(actuator("inverter", modes)), 10, [6000, 6000])
    assert told(device, plan) == [(2.0, "charge", 1.0), (1800.0, "idle", 1.0)]


@pytest.mark.parametrize(("ways_out", "labels"), [(None, ["charge", "idle"]), ([], [])])
def test_a_mode_for_an_abnormal_condition_is_left_where_there_is_a_way(ways_out, labels):
    m = modules()
    modes = [
        mode("idle", element((0, 0))),
        mode("charge", element((0, 3000))),
        mode("backup", element((6000, 6000)), abnormal=True),
    ]
    described = description(actuator("inverter", modes, ways_out))
    device, plan = planned(m, described, 50, [2000, 2000, 0], modes={"inverter": "backup"})
    assert [each[1] for each in told(device, plan)] == labels


def test_an_actuator_that_has_not_told_its_mode_is_told_one():
    m = modules()
    described = description(actuator("inverter", CONTINUOUS))
    remembered = memory(m, described, 50)
    device = m.frbc.read_device(remembered)
    state = m.frbc.read_state(device, remembered, {}, None, NOW)
    wanted = intervals([2000, 0])
    plan = plan_alone(m.frbc, device, state, wanted, market(wanted), {})
    assert told(device, plan) == [(2.0, "charge", 0.4), (900.0, "idle", 1.0)]


def test_does_not_start_what_cannot_be_stopped_before_the_storage_is_full():
    m = modules()
    off, on = modes = [mode("off", element((0, 0))), mode("on", element((2000, 2000)))]
    least = timer(3600)
    moves = [transition(off, on, starts=[least]), transition(on, off, blocked_by=[least])]
    described = description(actuator("charger", modes, moves, [least]))
    _device, plan = planned(m, described, 90, [2000] * 4)
    assert plan.changes == []
    _device, plan = planned(m, described, 70, [2000] * 4)
    lived = live(described, plan, 70, after(4))
    assert lived.violations == []
    assert lived.fill_level == pytest.approx(70 + 19, abs=0.1)


def test_stops_in_time_where_a_step_would_overfill():
    m = modules()
    described = description(
        actuator("boiler", [mode("off", element((0, 0))), mode("on", element((4000, 4000)))])
    )
    device, plan = planned(m, described, 95, [4000, 0])
    labels = [each[1] for each in told(device, plan)]
    assert labels == ["on", "off"]
    lived = live(described, plan, 95, after(2))
    assert lived.violations == []
    assert 99 < lived.fill_level <= 100


def target_profile(*elements):
    """Return a target profile from the start on: (quarters, lowest, highest)."""
    return example(
        "FRBC.FillLevelTargetProfile",
        start_time=START.isoformat(),
        elements=[
            {"duration": round(quarters * QUARTER * 1000), "fill_level_range": number_range(low, high)}
            for quarters, low, high in elements
        ],
    )


def charger(power=4000):
    """Return the description of a charger of one continuous mode, above a least power."""
    modes = [mode("off", element((0, 0))), mode("charge", element((power / 3, power)))]
    return description(actuator("charger", modes))


def test_charges_on_top_where_a_target_would_be_missed():
    m = modules()
    profile, described = target_profile((8, 0, 100), (1, 60, 100)), charger()
    _device, plan = planned(m, described, 30, [0] * 12, FillLevelTargetProfile=profile)
    assert plan.missed == []
    assert live(described, plan, 30, after(8)).fill_level == pytest.approx(60, abs=1)


def test_charges_on_top_when_that_is_cheapest():
    m = modules()
    profile = target_profile((8, 0, 100), (1, 48, 100))
    prices = [0.3, 0.3, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
    _device, plan = planned(m, charger(), 30, [0] * 12, prices=prices, FillLevelTargetProfile=profile)
    assert plan.missed == []
    assert m.plans.level_at(plan, after(2).timestamp()) == pytest.approx(30, abs=0.1)
    assert m.plans.level_at(plan, after(4).timestamp()) > 47


def test_starts_at_once_where_a_target_takes_all_the_time_there_is():
    m = modules()
    profile = target_profile((4, 0, 100), (1, 90, 100))
    device, plan = planned(m, charger(), 30, [0] * 8, FillLevelTargetProfile=profile)
    assert told(device, plan)[0] == (2.0, "charge", 1.0)
    [missed] = plan.missed
    assert missed.reached == pytest.approx(30 + 38, abs=1)
    assert missed.lowest == 90


def test_keeps_the_site_within_its_limit_when_it_charges_on_top():
    m = modules()
    profile = target_profile((8, 0, 100), (1, 48, 100))
    rooms = [(-2000.0, 2000.0)] * 12
    _device, plan = planned(m, charger(), 30, [0] * 12, rooms=rooms, FillLevelTargetProfile=profile)
    assert plan.missed == []
    assert max(each.power for each in plan.changes) <= 2001


def test_keeps_the_site_within_its_limit_whichever_way_the_power_flows():
    m = modules()
    rooms = [(-50.0, 100.0), (-50.0, 0.0), (-50.0, 100.0), (0.0, 100.0)]
    described = description(actuator("inverter", CONTINUOUS))
    _device, plan = planned(m, described, 50, [200, 200, -200, -200], begin=0.0, rooms=rooms)
    lived = live(described, plan, 50, after(4))
    found = [lived.energy(after(place), after(place + 1)) * 4 for place in range(4)]
    assert found == pytest.approx([100, 0, -50, 0], abs=5000 * 0.006)


def test_two_actuators_share_the_power():
    m = modules()
    big = actuator("big", [mode("idle", element((0, 0))), mode("charge", element((3000, 3000)))])
    small = actuator("small", [mode("idle", element((0, 0))), mode("charge", element((0, 1000)))])
    described = description(big, small)
    _device, plan = planned(m, described, 10, [3600, 800, 3000, 0], begin=0.0)
    lived = live(described, plan, 10, after(4))
    found = [lived.energy(after(place), after(place + 1)) * 4 for place in range(4)]
    assert found == pytest.approx([3600, 800, 3000, 0], abs=40)
    device = m.frbc.read_device(memory(m, described, 10))
    labels = {m.frbc.describe(device, each, NOW)["label"] for each in plan.changes}
    assert {"big: charge", "small: charge"} <= labels


def test_the_only_actuator_is_not_named_in_a_label():
    m = modules()
    device, plan = planned(m, charger(), 30, [4000] * 2)
    assert m.frbc.describe(device, plan.changes[0], NOW)["label"] == "charge"


def test_one_actuator_never_discharges_what_another_charges():
    m = modules()
    least = timer(3600)
    idle, charge = mode("idle", element((0, 0))), mode("charge", element((3000, 3000)))
    moves = [transition(idle, charge, starts=[least]), transition(charge, idle, blocked_by=[least])]
    big = actuator("big", [idle, charge], moves, [least])
    small = actuator("small", [mode("idle", element((0, 0))), mode("discharge", element((-1000, 0)))])
    device, plan = planned(m, description(big, small), 10, [3000, 0, 0, 0, 0, 0])
    assert "discharge" not in [each[1] for each in told(device, plan)]


def test_usage_and_leakage_are_reckoned_with():
    m = modules()
    usage = example(
        "FRBC.UsageForecast",
        start_time=START.isoformat(),
        elements=[{"duration": 7_200_000, "usage_rate_expected": 0.004}],
    )
    leakage = example(
        "FRBC.LeakageBehaviour",
        valid_from=START.isoformat(),
        elements=[{"fill_level_range": number_range(0, 100), "leakage_rate": 0.0005}],
    )
    described = charger()
    _device, plan = planned(m, described, 20, [0] * 8, UsageForecast=usage, LeakageBehaviour=leakage)
    assert plan.missed == []
    lived = live(described, plan, 20, after(8), usage=lambda _: 0.004, leakage=[(0, 100, 0.0005)])
    assert sum(missing for _moment, missing in lived.shortfalls) < 0.5
    assert lived.fill_level == pytest.approx(m.plans.level_at(plan, plan.end), abs=0.3)


def test_rests_at_the_end_in_the_mode_that_moves_least():
    m = modules()
    modes = [
        mode("standby", element((20, 20), efficiency=0.0)),
        mode("charge", element((0, 5000))),
        mode("off", element((0, 0))),
    ]
    device, plan = planned(m, description(actuator("inverter", modes)), 10, [5000])
    assert told(device, plan)[-1] == (900.0, "off", 1.0)


def test_a_feasible_optimum_is_followed_exactly():
    """Search all courses of a stepped device by brute force; the cheapest is kept to, at its cost."""
    m = modules()
    modes = [
        mode("idle", element((0, 0))),
        mode("charge", element((4000, 4000))),
        mode("discharge", element((-4000, -4000))),
    ]
    described = description(actuator("inverter", modes))
    prices = [0.3, 0.1, 0.25, 0.4, 0.2, 0.35]
    gain, loss = 4000 * 0.95 / 400, 4000 / 0.95 / 400
    best = None
    for course in product((0, 4000, -4000), repeat=6):
        levels = [15.0]
        for power in course:
            levels.append(levels[-1] + (gain if power > 0 else -loss if power < 0 else 0))
        if min(levels) >= 0 and max(levels) <= 100 and levels[-1] >= 15:
            cost = sum(power / 4000 * price for power, price in zip(course, prices, strict=True))
            best = min(best or (cost, course), (cost, course))
    _device, plan = planned(m, described, 15, list(best[1]), begin=0.0)
    lived = live(described, plan, 15, after(6))
    cost = sum(
        lived.energy(after(place), after(place + 1)) / 1000 * price for place, price in enumerate(prices)
    )
    assert cost == pytest.approx(best[0], abs=0.001)


@pytest.mark.parametrize("level", [-5, 105])
def test_a_fill_level_outside_the_range_is_brought_back(level):
    m = modules()
    modes = [
        mode("idle", element((0, 0))),
        mode("charge", element((0, 5000))),
        mode("discharge", element((-5000, 0))),
    ]
    _device, plan = planned(m, description(actuator("inverter", modes)), level, [0] * 4)
    assert 0 <= round(m.plans.level_at(plan, plan.end), 1) <= 100


def test_what_one_actuator_cannot_stop_another_makes_room_for():
    m = modules()
    least = timer(7200)
    off, on = mode("off", element((0, 0))), mode("on", element((1000, 1000)))
    moves = [transition(off, on, starts=[least]), transition(on, off, blocked_by=[least])]
    slow = actuator("slow", [off, on], moves, [least])
    fast = actuator("fast", [mode("idle", element((0, 0))), mode("charge", element((0, 5000)))])
    described = description(slow, fast)
    _device, plan = planned(m, described, 70, [6000] * 12)
    lived = live(described, plan, 70, after(12))
    assert lived.violations == []
    assert max(piece.end_level for piece in plan.pieces) <= 100


def test_a_device_that_has_steps_at_some_levels_only_makes_up_for_them():
    m = modules()
    modes = [
        mode("off", element((0, 0))),
        mode("on", element((0, 3000), (0, 20)), element((3000, 3000), (20, 100))),
    ]
    described = description(actuator("heater", modes))
    _device, plan = planned(m, described, 30, [1000] * 12, begin=0.0)
    lived = live(described, plan, 30, after(12))
    assert lived.energy(START, after(12)) == pytest.approx(3000, abs=400)


def test_what_is_too_large_to_be_planned_is_told():
    m = modules()
    modes = [mode(f"mode {place}", element((100 * place, 100 * place))) for place in range(100)]
    moves = [transition(modes[0], each) for each in modes[1:]] * 10
    for number, move in enumerate(moves):
        move["id"] = f"move-{number}"
    device = m.frbc.read_device(memory(m, description(actuator("large", modes, moves))))
    assert m.frbc.why_not_plannable(device) == "it has too many operation modes and transitions"


@pytest.mark.parametrize("levels", [(50, 50), (0, 1e12)])
def test_a_storage_without_a_sensible_range_is_told(levels):
    m = modules()
    modes = [mode("off", element((0, 0))), mode("on", element((1000, 1000)))]
    device = m.frbc.read_device(memory(m, description(actuator("odd", modes), levels=levels)))
    assert m.frbc.why_not_plannable(device)
