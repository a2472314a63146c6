"""Operation mode based control: the cheapest way through a device's modes, and what it is told."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.modes_cases import (
    NOW,
    QUARTER,
    START,
    SimulatedActuator,
    bill,
    both_ways,
    costly,
    live,
    market,
    mode,
    modules,
    parsed,
    per_second,
    price,
    random_modes,
    random_prices,
    status,
    timer,
    timer_status,
    transition,
)
from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts.s2_messages import example
from tests.parts.trials import trials


@pytest.fixture
def m():
    """Return the modules under test."""
    return modules()


def description(modes, ways=None, timers=()) -> dict:
    """Return an OMBC.SystemDescription; without `ways` there is a transition from each mode to each other."""
    if ways is None:
        ways = [transition(one, other) for one in modes for other in modes if one is not other]
    return example(
        "OMBC.SystemDescription",
        valid_from=(START - timedelta(hours=1)).isoformat(),
        operation_modes=modes,
        transitions=ways,
        timers=list(timers),
    )


def memory(m, described, active=None, factor=0.0, running=None, **options) -> dict:
    """Return what a session remembers; `running` has when timers finish, by the timer's id."""
    found = {("OMBC.SystemDescription",): parsed(m, described)}
    if active:
        found["OMBC.Status",] = parsed(m, status("OMBC.Status", active, factor, **options))
    for each, ends in (running or {}).items():
        told = timer_status("OMBC.TimerStatus", {"id": each}, ends)
        found["OMBC.TimerStatus", each] = parsed(m, told)
    return found


def planned(m, described, intervals, active=None, factor=0.0, running=None, tariffs=None, **options):
    """Return (the device, the Plan) of a description and a market."""
    remembered = memory(m, described, active, factor, running, **options)
    device = m.ombc.read_device(remembered)
    assert m.ombc.why_not_plannable(device) is None
    state = m.ombc.read_state(device, remembered, {}, None, NOW)
    return device, plan_alone(m.ombc, device, state, None, intervals, tariffs or {})


def told(plan) -> list:
    """Return (seconds from the start, mode, factor) of each change."""
    return [(round(each.moment - NOW, 3), each.mode, each.factor) for each in plan.changes]


def switch(seconds=0, least_on=0, least_off=0, power=2000, cost=None):
    """Return (off, on, the description of a device with both)."""
    off, on = mode("off"), mode("on", (power, power), cost)
    running, resting = timer(least_on), timer(least_off)
    ways = [
        transition(off, on, seconds, [running], [resting]),
        transition(on, off, seconds, [resting], [running]),
    ]
    return off, on, description([off, on], ways, [running, resting])


def test_a_device_runs_where_that_pays(m):
    off, on, described = switch()
    _device, plan = planned(m, described, market(m, [0.2, -0.1, -0.1, 0.2]), off)
    assert told(plan) == [(900, on["id"], 1), (2700, off["id"], 1)]
    assert plan.cost == pytest.approx(-0.1)
    assert [round(piece.power_w) for piece in plan.pieces] == [0, 2000, 0]


def test_running_costs_are_in_the_middle_of_their_range(m):
    off, _on, described = switch(cost=(0.1, 0.31))
    _device, plan = planned(m, described, market(m, [-0.1] * 4), off)
    assert told(plan) == []
    off, on, described = switch(cost=(0.1, 0.29))
    _device, plan = planned(m, described, market(m, [-0.1] * 4), off)
    assert told(plan) == [(2, on["id"], 1)]


def test_a_switch_that_costs_more_than_it_saves_is_left_out(m):
    off, on = mode("off"), mode("on", (2000, 2000))
    for cost, count in ((0.11, 0), (0.09, 2)):
        ways = [costly(transition(off, on), cost), transition(on, off)]
        _device, plan = planned(m, description([off, on], ways), market(m, [0.2, -0.1, -0.1, 0.2]), off)
        assert len(plan.changes) == count


@pytest.mark.parametrize("length", [300.0, 900.0, 3600.0])
def test_minimum_on_and_off_times_are_kept(m, length):
    off, on, described = switch(least_on=length * 2, least_off=length * 2)
    _device, plan = planned(m, described, market(m, [0.1, -0.3, 0.1, -0.3, 0.1, 0.1], length), off)
    assert told(plan) == [(length, on["id"], 1), (length * 4, off["id"], 1)]


def test_a_timer_that_blocks_now_is_waited_for(m):
    off, on, described = switch(least_on=600)
    running = {described["timers"][0]["id"]: 400}
    _device, plan = planned(m, described, market(m, [0.2] * 4), on, running=running)
    assert told(plan) == [(401, off["id"], 1)]


def test_a_timer_follows_from_when_the_transition_began(m):
    off, on, described = switch(least_on=600)
    _device, plan = planned(m, described, market(m, [0.2] * 4), on, previous=off, since=-100)
    assert told(plan) == [(501, off["id"], 1)]


@pytest.mark.parametrize(("heard_at", "end"), [(-90, 200), (-110, 500)])
def test_what_is_told_of_a_timer_counts_unless_it_was_started_again(m, heard_at, end):
    off, on, described = switch(least_on=600)
    [timer_, _other] = [each["id"] for each in described["timers"]]
    remembered = memory(m, described, on, previous=off, since=-100, running={timer_: 200})
    device = m.ombc.read_device(remembered)
    heard = {None: NOW - 100, (None, timer_): NOW + heard_at}
    assert m.ombc.read_state(device, remembered, heard, None, NOW).actuators[None].timers == {
        timer_: NOW + end
    }


def test_a_transition_beyond_all_time_is_reckoned_with(m):
    off, on, described = switch(least_on=600)
    remembered = memory(m, described, on, previous=off, since=0)
    remembered["OMBC.Status",].transition_timestamp = datetime.max.replace(tzinfo=UTC)
    device = m.ombc.read_device(remembered)
    state = m.ombc.read_state(device, remembered, {}, None, NOW)
    assert state.actuators[None].ready < NOW + 32 * 86_400
    assert plan_alone(m.ombc, device, state, None, market(m, [0.2] * 4), {}).changes == []


def test_during_a_transition_there_is_no_power(m):
    off, on, described = switch(seconds=60)
    _device, plan = planned(m, described, market(m, [0.2, -0.1, -0.1, 0.2]), off)
    assert told(plan) == [(840, on["id"], 1), (2700, off["id"], 1)]
    assert (plan.pieces[1].start, plan.pieces[1].end) == (NOW + 900, NOW + 2700)
    assert plan.cost == pytest.approx(-0.2 * 1800 / 3600)


def test_a_transition_may_take_longer_than_an_interval(m):
    off, _on, described = switch(seconds=1200)
    _device, plan = planned(m, described, market(m, [0.0, -0.1, -0.1, -0.1, -0.1]), off)
    assert len(plan.changes) == 1
    assert plan.cost == pytest.approx(-0.2 * (4500 - max(900, 1202)) / 3600)


def test_modes_are_reached_through_others(m):
    off, standby, on = mode("off"), mode("standby", (50, 50)), mode("on", (2000, 2000))
    ways = [*both_ways(off, standby, seconds=10), *both_ways(standby, on, seconds=10)]
    _device, plan = planned(m, description([off, standby, on], ways), market(m, [0.2, -0.1, 0.2]), off)
    assert told(plan) == [
        (879, standby["id"], 1),
        (890, on["id"], 1),
        (1800, standby["id"], 1),
        (1811, off["id"], 1),
    ]


def test_what_is_for_an_abnormal_condition_is_not_used(m):
    off, boost, on = mode("off"), mode("boost", (9000, 9000), abnormal=True), mode("on", (2000, 2000))
    ways = [*both_ways(off, boost), *both_ways(off, on, abnormal=True)]
    _device, plan = planned(m, description([off, boost, on], ways), market(m, [-0.1] * 4), off)
    assert told(plan) == []


def test_a_mode_for_an_abnormal_condition_is_left_at_once(m):
    off, boost = mode("off"), mode("boost", (0, 9000), abnormal=True)
    _device, plan = planned(m, description([off, boost]), market(m, [-0.1] * 4), boost, 0.5)
    assert told(plan) == [(2, off["id"], 1)]
    assert m.plans.power_at(plan, NOW + 1) == 4500
    ways = both_ways(off, boost, abnormal=True)
    _device, plan = planned(m, description([off, boost], ways), market(m, [-0.1] * 4), boost, 0.5)
    assert told(plan) == []
    assert m.plans.power_at(plan, NOW + 1000) == 4500


def test_an_unknown_mode_is_replaced_at_once(m):
    off, _on, described = switch()
    _device, plan = planned(m, described, market(m, [0.2] * 4))
    assert told(plan) == [(2, off["id"], 1)]


def test_the_factor_follows_what_is_produced_at_the_site(m):
    off, on = mode("off"), mode("on", (500, 4500))
    intervals = market(m, [0.3] * 3, load=[0.0, -2500.0, -6000.0], production=0.1)
    ways = both_ways(off, on)
    _device, plan = planned(m, description([off, on], ways), intervals, off)
    assert told(plan) == []
    intervals = market(m, [0.3] * 3, load=[0.0, -2500.0, -6000.0], production=-0.1)
    _device, plan = planned(m, description([off, on], ways), intervals, off)
    assert told(plan) == [(900, on["id"], 0.5), (1800, on["id"], 1.0)]


def test_a_power_range_that_runs_downwards_is_planned_from_its_start_at_factor_0(m):
    off, on = mode("off"), mode("on", (4500, 500))
    intervals = market(m, [0.3] * 3, load=[0.0, -2500.0, -6000.0], production=-0.1)
    _device, plan = planned(m, description([off, on], both_ways(off, on)), intervals, off)
    assert told(plan) == [(900, on["id"], 0.5), (1800, on["id"], 0.0)]
    assert [each.power for each in plan.changes] == [2500, 4500]


def test_a_battery_whose_discharging_runs_downwards_feeds_in_at_factor_1(m):
    off, discharging = mode("off"), mode("discharging", (0, -5000))
    intervals = market(m, [0.3] * 3, load=[0.0, 2500.0, 6000.0], production=-0.1)
    _device, plan = planned(m, description([off, discharging]), intervals, off)
    assert told(plan) == [(900, discharging["id"], 0.5), (1800, discharging["id"], 1.0)]


def test_the_limit_of_the_site_comes_before_cost(m):
    off, on = mode("off"), mode("on", (1000, 5000))
    intervals = market(m, [-0.3] * 3, load=[0.0, 4000.0, 9500.0], limit=7000.0)
    _device, plan = planned(m, description([off, on]), intervals, off)
    assert told(plan) == [(2, on["id"], 1.0), (900, on["id"], 0.5), (1800, off["id"], 1)]


def test_what_it_takes_of_gas_is_paid_for(m):
    off, on = mode("off"), mode("on", (-1000, -1000), NATURAL_GAS__FLOW_RATE=(0.1, 0.1))
    intervals = market(m, [0.3] * 4)
    for tariff, count in ((0.8, 1), (0.9, 0)):
        _device, plan = planned(m, description([off, on]), intervals, off, tariffs={"GAS": tariff})
        assert len(plan.changes) == count
    assert len(planned(m, description([off, on]), intervals, off)[1].changes) == 1


def test_nothing_is_done_where_nothing_is_saved(m):
    _off, on, described = switch()
    _device, plan = planned(m, described, market(m, [0.0] * 8), on)
    assert told(plan) == []
    low, high = mode("low", (0, 100)), mode("high", (0, 200))
    _device, plan = planned(m, description([low, high]), market(m, [0.0] * 8), high, 0.7)
    assert told(plan) == []


@pytest.mark.parametrize("length", [300.0, 900.0])
@pytest.mark.parametrize("is_known", [True, False])
def test_of_two_modes_without_power_the_one_that_cannot_have_any_is_told(m, is_known, length):
    charge, idle = mode("charge", (0, 5000)), mode("idle")
    active = charge if is_known else None
    intervals = market(m, [0.2, -0.1, 0.2, 0.2], length)
    _device, plan = planned(m, description([charge, idle]), intervals, active, 1.0)
    assert told(plan) == [(2, idle["id"], 1), (length, charge["id"], 1), (2 * length, idle["id"], 1)]


def test_a_mode_whose_power_can_be_nothing_is_kept_where_none_other_is_at_hand(m):
    charge, idle = mode("charge", (0, 5000)), mode("idle")
    ways = [costly(transition(charge, idle), 0.001), transition(idle, charge)]
    _device, plan = planned(m, description([charge, idle], ways), market(m, [0.2] * 4), charge, 1.0)
    assert told(plan) == [(2, charge["id"], 0)]


def test_a_plan_made_a_minute_later_is_the_same(m):
    off, _on, described = switch(least_on=1800, least_off=1800, seconds=10)
    prices = [0.1, 0.0, 0.0, -0.1, 0.0, 0.0, 0.1, -0.2, 0.0, 0.1]
    _device, first = planned(m, described, market(m, prices), off)
    _device, second = planned(m, described, market(m, prices, begin=62.0), off)
    assert first.changes
    assert told(first) == told(second)


def test_what_was_told_later_than_the_status_counts(m):
    off, on, described = switch(seconds=30, least_on=600)
    remembered = memory(m, described, off)
    device = m.ombc.read_device(remembered)
    state = m.ombc.read_state(device, remembered, {}, None, NOW)
    assert state.moment == NOW
    plan = plan_alone(m.ombc, device, state, None, market(m, [-0.1] * 4), {})
    later = m.ombc.read_state(device, remembered, {None: NOW - 5}, plan, NOW + 10)
    assert later.actuators[None].mode == on["id"]
    assert later.actuators[None].ready == NOW + 32
    assert later.actuators[None].timers == {described["timers"][0]["id"]: NOW + 602}
    heard = m.ombc.read_state(device, remembered, {None: NOW + 5}, plan, NOW + 10)
    assert heard.actuators[None].mode == off["id"]


def test_a_status_of_another_mode_departs(m):
    off, on, described = switch()
    device, plan = planned(m, described, market(m, [-0.1] * 4), off)

    def departs(mode_, seconds):
        told_ = parsed(m, status("OMBC.Status", mode_))
        return m.ombc.deviation(device, plan, told_, NOW + seconds)

    assert departs(off, 20) is None
    assert departs(on, 100) is None
    assert departs(off, 100) == "off is active, expected was on"
    device, plan = planned(m, described, market(m, [0.1] * 4), off)
    assert departs(off, 100) is None
    assert departs(on, 100) == "on is active at 2000 W, expected was 0 W"


def test_a_timer_that_blocks_what_comes_next_departs(m):
    off, _on, described = switch(least_off=60)
    device, plan = planned(m, described, market(m, [0.1, -0.1]), off)
    for ends, departs in ((800, False), (1000, True)):
        told_ = parsed(m, timer_status("OMBC.TimerStatus", described["timers"][1], ends))
        assert bool(m.ombc.deviation(device, plan, told_, NOW + 100)) == departs


def test_a_measured_power_departs_beyond_a_tolerance(m):
    off, _on, described = switch()
    device, plan = planned(m, described, market(m, [-0.1] * 4), off)
    assert m.ombc.power_deviation(device, plan, 0, NOW + 10) is None
    assert m.ombc.power_deviation(device, plan, 1850, NOW + 100) is None
    assert "expected was 2000 W" in m.ombc.power_deviation(device, plan, 1700, NOW + 100)


def test_a_status_while_it_was_planned_tells_of_another_state(m):
    off, on, described = switch(least_on=60)
    remembered = memory(m, described, off)
    device = m.ombc.read_device(remembered)
    state = m.ombc.read_state(device, remembered, {}, None, NOW)
    assert not m.ombc.has_changed(device, state, parsed(m, status("OMBC.Status", off)))
    assert m.ombc.has_changed(device, state, parsed(m, status("OMBC.Status", on)))
    told_ = timer_status("OMBC.TimerStatus", described["timers"][0], 100)
    assert m.ombc.has_changed(device, state, parsed(m, told_))


def test_an_instruction_says_mode_and_factor(m):
    off, on = mode("off"), mode("on", (1000, 3000))
    intervals = market(m, [0.1, -0.1], load=-1000.0, limit=1500.0)
    device, plan = planned(m, description([off, on]), intervals, off)
    change = plan.changes[0]
    assert m.ombc.message_type(change) == "OMBC.Instruction"
    fields = {"operation_mode_id": on["id"], "operation_mode_factor": 0.75, "abnormal_condition": False}
    assert m.ombc.instruction_fields(change) == fields
    m.messages.new("OMBC.Instruction", id="i-1", execution_time=datetime.now(UTC), **fields)
    assert m.ombc.describe(device, change, NOW) == {**fields, "label": "on", "power": 2500}
    assert m.ombc.upcoming(plan, NOW) == plan.changes
    assert m.ombc.upcoming(plan, NOW + 1000) == []
    assert m.ombc.missed_targets(plan) == []
    assert m.ombc.planned_power(plan, NOW + 900, 900) == 2500
    assert m.ombc.planned_power(None, NOW, 900) == 0


def test_what_cannot_be_planned_is_told(m):
    boost = mode("boost", abnormal=True)
    device = m.ombc.read_device(memory(m, description([boost])))
    assert m.ombc.why_not_plannable(device) == "all its operation modes are for an abnormal condition only"
    device = m.ombc.read_device(memory(m, description([mode("huge", (0, 1e300))])))
    assert "huge" in m.ombc.why_not_plannable(device)


def test_the_example_is_planned(m):
    described = example("OMBC.SystemDescription")
    remembered = {
        ("OMBC.SystemDescription",): parsed(m, described),
        ("OMBC.Status",): parsed(m, example("OMBC.Status")),
    }
    assert m.ombc.missing_message({}) == "OMBC.SystemDescription"
    assert m.ombc.missing_message(remembered) is None
    assert m.ombc.valid_from(remembered) == NOW - 3600
    device = m.ombc.read_device(remembered)
    assert m.ombc.last_deadline(device) == 0.0
    state = m.ombc.read_state(device, remembered, {}, None, NOW)
    assert m.ombc.flex_model is None
    plan = plan_alone(m.ombc, device, state, None, market(m, [0.3, 0.3, -0.2, -0.2, -0.2, 0.3]), {})
    labels = [m.ombc.describe(device, each, NOW)["label"] for each in plan.changes]
    ways = ["off", "low", "high", "low", "off"]
    assert labels == ways, "by way of low, high is reached 4 s earlier, and left at less running costs"


@trials(150)
@given(st.data())
def test_a_device_accepts_every_instruction(data):
    m = modules()
    modes, ways, timers = data.draw(random_modes())
    described = description(modes, ways, timers)
    length = data.draw(st.sampled_from([300.0, 900.0, 3600.0]))
    count = data.draw(st.integers(1, 20))
    load = data.draw(st.sampled_from([0.0, 1500.0, -2500.0]))
    limit = data.draw(st.sampled_from([math.inf, 3000.0]))
    intervals = market(m, data.draw(random_prices(count)), length, load=load, limit=limit, production=0.07)
    active = data.draw(st.sampled_from(modes))
    running = {each["id"]: data.draw(st.sampled_from([-50, 100, 700, 2000])) for each in timers}
    _device, plan = planned(m, described, intervals, active, 0.5, running)
    ends = {each: NOW + seconds for each, seconds in running.items()}
    simulated = SimulatedActuator(described, active["id"], 0.5, ends)
    live({None: simulated}, plan)
    cost, excess = bill([simulated], intervals)
    assert cost == pytest.approx(plan.cost, abs=1e-6)
    for piece in plan.pieces:
        assert simulated.quantity((piece.start + piece.end) / 2) == pytest.approx(piece.power_w)
    if not active["abnormal_condition_only"]:
        stays = SimulatedActuator(described, active["id"], 0.5)
        same_cost, same_excess = bill([stays], intervals)
        on_the_way = sum(max(each.active.ready - each.moment, 0.0) + 2 for each in plan.changes)
        assert excess <= same_excess + 1 + 3000 * on_the_way, "the limit holds for the mean of a step"
        assert excess < same_excess - 1 or cost <= same_cost + 1e-5


def least_cost(described, intervals, active):
    """Return the least (excess, cost) by trying all ways through a device's modes."""
    modes = {each["id"]: each for each in described["operation_modes"]}
    durations = {each["id"]: each["duration"] / 1000 for each in described["timers"]}
    ways = {}
    for each in described["transitions"]:
        if not (each["abnormal_condition_only"] or modes[each["to"]]["abnormal_condition_only"]):
            ways.setdefault(each["from"], []).append(each)
    hourly = {}

    def spent(place, mode_id, seconds):
        if mode_id is None or seconds <= 0:
            return 0.0, 0.0
        if (place, mode_id) not in hourly:
            found, interval = modes[mode_id], intervals[place]
            power_range = found["power_ranges"][0]
            tried = []
            for part in range(41):
                low, high = power_range["start_of_range"], power_range["end_of_range"]
                power = low + (high - low) * part / 40
                most = max(interval.consumption_capacity, abs(interval.load))
                over = max(abs(power + interval.load) - most, 0)
                tried.append((round(over, 6), price(interval, power) + per_second(found)))
            hourly[place, mode_id] = min(tried)
        over, cost = hourly[place, mode_id]
        return over * seconds, cost * seconds

    def best(place, moment, mode_id, ready, timers, passed):
        """Return the least from a moment in an interval on."""
        if place == len(intervals):
            return 0.0, 0.0
        end = intervals[place].end
        free = max(moment, ready)
        key = place, moment, mode_id, ready, tuple(sorted(timers.items())), passed
        if key in known:
            return known[key]
        rest = best(place + 1, end, mode_id, ready, {k: v for k, v in timers.items() if v > end}, ())
        here = spent(place, mode_id, end - free)
        tried = [(here[0] + rest[0], here[1] + rest[1])]
        for way in ways.get(mode_id, ()):
            begin = max(moment, ready + 1.0)
            ends = [timers[each] + 1.0 for each in way["blocking_timers"] if timers.get(each, 0) > begin]
            begin = max([begin, *ends])
            if way["to"] in (mode_id, *passed) or begin >= end:
                continue
            started = {each: begin + durations[each] for each in way["start_timers"]}
            done = begin + way["transition_duration"] / 1000
            here = spent(place, mode_id, begin - free)
            after = best(place, begin, way["to"], done, {**timers, **started}, (*passed, mode_id))
            cost = here[1] + after[1] + way.get("transition_costs", 0)
            cost += max(per_second(modes[each]) for each in (mode_id, way["to"])) * (done - begin)
            tried.append((here[0] + after[0], cost))
        known[key] = min(tried)
        return known[key]

    known = {}
    return best(0, intervals[0].start, active["id"], -math.inf, {}, ())


@trials(150)
@given(st.data())
def test_no_other_way_through_the_modes_costs_less(data):
    m = modules()
    modes, ways, timers = data.draw(random_modes(most=4, grid=QUARTER))
    modes = [each | {"abnormal_condition_only": False} for each in modes]
    described = description(modes, ways, timers)
    prices = data.draw(random_prices(data.draw(st.integers(4, 6))))
    load = data.draw(st.sampled_from([0.0, 1500.0, -2500.0]))
    limit = data.draw(st.sampled_from([math.inf, 2500.0]))
    yields = {"production": data.draw(st.sampled_from([0.1, -0.1]))}
    yields["curtailable"] = data.draw(st.sampled_from([0.0, 1000.0, 2500.0])) if limit == math.inf else 0.0
    intervals = market(m, prices, begin=0.0, load=load, limit=limit, **yields)
    active = data.draw(st.sampled_from(modes))
    _device, plan = planned(m, described, intervals, active)
    simulated = SimulatedActuator(described, active["id"])
    live({None: simulated}, plan)
    cost, excess = bill([simulated], intervals)
    least_excess, least = least_cost(described, intervals, active)
    parts = sum(max(each.active.ready - each.moment, 0.0) % QUARTER + 2 for each in plan.changes)
    assert excess <= least_excess + 1 + 3000 * parts, "the limit holds for the mean of a step"
    assert cost <= least + 1e-4, "but for a second between transitions"
