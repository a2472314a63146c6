"""Demand driven based control: what supplies the demand, at what cost, and what the actuators are told."""

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.modes_cases import (
    NOW,
    QUARTER,
    START,
    SimulatedActuator,
    between,
    beyond,
    bill,
    both_ways,
    costly,
    live,
    market,
    mode,
    modules,
    number_range,
    parsed,
    price,
    random_prices,
    status,
    timer,
    timer_status,
    transition,
)
from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts.s2_messages import example, turned
from tests.parts.trials import trials


@pytest.fixture
def m():
    """Return the modules under test."""
    return modules()


def supplying(made, supply) -> dict:
    """Return a DDBC operation mode of the official form."""
    changed = {"Id" if name == "id" else name: value for name, value in made.items()}
    return changed | {"supply_range": number_range(*supply)}


def actuator(label, modes, ways=None, timers=()) -> dict:
    """Return an actuator; `modes` has (mode, supply) of each, all of which are linked without `ways`."""
    if ways is None:
        ways = [transition(one, other) for one, _ in modes for other, _ in modes if one is not other]
    return {
        "id": f"{label}-1",
        "diagnostic_label": label,
        "supported_commodites": ["ELECTRICITY"],
        "operation_modes": [supplying(*each) for each in modes],
        "transitions": ways,
        "timers": list(timers),
    }


def description(*actuators, demand=(0, 0), begin=-3600.0) -> dict:
    """Return a DDBC.SystemDescription, valid from so many seconds after the start."""
    return example(
        "DDBC.SystemDescription",
        valid_from=(START + timedelta(seconds=begin)).isoformat(),
        actuators=list(actuators),
        present_demand_rate=number_range(*demand),
    )


def forecast(rates, length=QUARTER, begin=0.0) -> dict:
    """Return a DDBC.AverageDemandRateForecast."""
    return {
        "message_type": "DDBC.AverageDemandRateForecast",
        "message_id": "forecast",
        "start_time": (START + timedelta(seconds=begin)).isoformat(),
        "elements": [{"duration": round(length * 1000), "demand_rate_expected": each} for each in rates],
    }


def memory(m, described, active=None, expected=None, running=None) -> dict:
    """Return what a session remembers: `active` has each actuator's mode (and factor), by its label."""
    found = {("DDBC.SystemDescription",): parsed(m, described)}
    if expected:
        found["DDBC.AverageDemandRateForecast",] = parsed(m, expected)
    for each in described["actuators"]:
        made, factor = (active or {}).get(each["diagnostic_label"], (None, 0.0))
        if made:
            told_ = status("DDBC.ActuatorStatus", made, factor, actuator_id=each["id"])
            found["DDBC.ActuatorStatus", each["id"]] = parsed(m, told_)
        for which in each["timers"]:
            if which["id"] in (running or {}):
                ends = running[which["id"]]
                told_ = timer_status("DDBC.TimerStatus", which, ends, actuator_id=each["id"])
                found["DDBC.TimerStatus", each["id"], which["id"]] = parsed(m, told_)
    return found


def planned(m, described, intervals, active=None, expected=None, running=None, tariffs=None):
    """Return (the device, the Plan) of a description and a market."""
    remembered = memory(m, described, active, expected, running)
    device = m.ddbc.read_device(remembered)
    assert m.ddbc.why_not_plannable(device) is None
    state = m.ddbc.read_state(device, remembered, {}, None, NOW)
    return device, plan_alone(m.ddbc, device, state, None, intervals, tariffs or {})


def told(plan) -> list:
    """Return (seconds from the start, actuator, mode, factor) of each change."""
    return [
        (round(each.moment - NOW, 3), each.actuator, each.mode, round(each.factor, 6))
        for each in plan.changes
    ]


def hybrid(seconds=0, demand=(4000, 4000), **options) -> SimpleNamespace:
    """Return a hybrid heat pump: its modes, and its description."""
    off, on = mode("pump off"), mode("pump on", (500, 2500))
    idle = mode("boiler off", NATURAL_GAS__FLOW_RATE=(0, 0))
    burning = mode("boiler on", NATURAL_GAS__FLOW_RATE=(0.01, 0.51))
    pump = actuator("pump", [(off, (0, 0)), (on, (2000, 8000))], both_ways(off, on, seconds=seconds))
    ways = both_ways(idle, burning, seconds=seconds)
    boiler = actuator("boiler", [(idle, (0, 0)), (burning, (0, 20000))], ways)
    return SimpleNamespace(
        off=off,
        on=on,
        idle=idle,
        burning=burning,
        description=description(pump, boiler, demand=demand),
        pump_runs={"pump": (on, 1 / 3), "boiler": (idle, 0)},
        boiler_runs={"pump": (off, 0), "boiler": (burning, 0.2)},
    )


def simulated(described, active=None, timers=None) -> dict:
    """Return the actuators of a description, to follow a plan, by their ids."""
    return {
        each["id"]: SimulatedActuator(
            each,
            *(
                (active[each["diagnostic_label"]][0]["id"], active[each["diagnostic_label"]][1])
                if active
                else (None, 0.0)
            ),
            timers,
        )
        for each in described["actuators"]
    }


def test_the_cheaper_supplies_the_demand(m):
    made = hybrid()
    intervals = market(m, [0.1, 0.9, 0.9, 0.1])
    _device, plan = planned(m, made.description, intervals, made.pump_runs, tariffs={"GAS": 1.5})
    assert told(plan) == [
        (900, "pump-1", made.off["id"], 1),
        (900, "boiler-1", made.burning["id"], 0.2),
        (2700, "pump-1", made.on["id"], 0.333333),
        (2700, "boiler-1", made.idle["id"], 1),
    ]
    gas = 0.11 * 3.6 * 1.5 * 0.5
    power = (500 + 2000 / 3) / 1000 * 0.1 * (898 + 900) / 3600
    assert plan.cost == pytest.approx(gas + power)
    assert plan.missed == []


def test_supply_ranges_that_run_downwards_are_planned_with_the_factors_turned(m):
    made = hybrid()
    intervals = market(m, [0.1, 0.9, 0.9, 0.1])
    downwards = turned(made.description, "power_ranges", "supply_range", "running_costs")
    runs = {"pump": (made.on, 2 / 3), "boiler": (made.idle, 0)}
    device, plan = planned(m, downwards, intervals, runs, tariffs={"GAS": 1.5})
    assert m.ddbc.describe(device, plan.changes[0], NOW)["power"] == 0
    assert [each for each in told(plan) if each[2] in (made.burning["id"], made.on["id"])] == [
        (900, "boiler-1", made.burning["id"], 0.8),
        (2700, "pump-1", made.on["id"], 0.666667),
    ]
    assert plan.missed == []
    actuators = simulated(downwards, runs)
    live(actuators, plan)
    for second in range(10, 3600, 60):
        supply = sum(each.supply(NOW + second) for each in actuators.values())
        assert supply == pytest.approx(4000, rel=1e-6)


def test_one_takes_over_when_the_other_is_ready(m):
    made = hybrid(seconds=20)
    intervals = market(m, [0.1, 0.9, 0.9, 0.1])
    _device, plan = planned(m, made.description, intervals, made.pump_runs, tariffs={"GAS": 1.5})
    assert told(plan)[:2] == [
        (880, "boiler-1", made.burning["id"], 0.2),
        (900, "pump-1", made.off["id"], 1),
    ]
    assert plan.missed == []
    actuators = simulated(made.description, made.pump_runs)
    live(actuators, plan)
    for place in range(3598):
        supply = sum(each.supply(NOW + 2.5 + place) for each in actuators.values())
        assert supply == pytest.approx(4000, rel=1e-6)


def test_one_makes_room_once_a_transition_is_done_that_is_under_way(m):
    made = hybrid(seconds=20)
    remembered = memory(m, made.description, made.pump_runs)
    begun = status("DDBC.ActuatorStatus", made.burning, 0.2, made.idle, 0, actuator_id="boiler-1")
    remembered["DDBC.ActuatorStatus", "boiler-1"] = parsed(m, begun)
    device = m.ddbc.read_device(remembered)
    state = m.ddbc.read_state(device, remembered, {}, None, NOW)
    plan = plan_alone(m.ddbc, device, state, None, market(m, [0.9] * 2), {"GAS": 1.5})
    assert told(plan) == [(20, "pump-1", made.off["id"], 1)]
    assert plan.missed == []


def test_the_factor_follows_the_demand(m):
    made = hybrid()
    expected = forecast([4000, 5000, 6000, 6000, 6000, 5000], 300)
    intervals = market(m, [0.1] * 2)
    _device, plan = planned(m, made.description, intervals, made.pump_runs, expected, tariffs={"GAS": 2})
    assert told(plan) == [
        (300, "pump-1", made.on["id"], 0.5),
        (600, "pump-1", made.on["id"], 0.666667),
        (1500, "pump-1", made.on["id"], 0.5),
    ]


def test_what_changes_within_a_minute_is_taken_together(m):
    made = hybrid()
    expected = forecast([4000 + 100 * (each % 2) for each in range(60)], 30)
    _device, plan = planned(
        m, made.description, market(m, [0.1] * 2), made.pump_runs, expected, tariffs={"GAS": 2}
    )
    moments = [each.moment for each in plan.changes]
    assert all(later - before >= 60 for before, later in pairwise(moments))


def test_the_present_demand_keeps_the_forecast_in_its_range(m):
    off, on = mode("off"), mode("on", (500, 2500))
    pump = actuator("pump", [(off, (0, 0)), (on, (2000, 8000))])
    described = description(pump, demand=(3000, 4000), begin=1.0)
    device = m.ddbc.read_device(memory(m, described, expected=forecast([5000, 5000], 900)))
    assert device.demand(NOW + 2, NOW + 900, True) == 4000
    assert device.demand(NOW + 900, NOW + 1800, False) == 5000
    assert device.demand(NOW + 1800, NOW + 2700, False) == 3500
    assert device.demand(NOW + 1350, NOW + 2250, False) == 4250


def test_a_demand_that_was_told_before_what_is_forecast_now_is_not_the_present_one(m):
    made = hybrid(demand=(3000, 4000))
    expected = forecast([3500, 5000, 6000], begin=-QUARTER)
    intervals = market(m, [0.1] * 2)
    _device, plan = planned(m, made.description, intervals, made.pump_runs, expected, tariffs={"GAS": 2})
    assert told(plan) == [(2, "pump-1", made.on["id"], 0.5), (900, "pump-1", made.on["id"], 0.666667)]


def test_what_comes_of_tariffs_and_a_demand_both_must_supply(m):
    made = hybrid(demand=(10000, 10000))
    for price_, factor in ((0.1, 1.0), (0.9, 0.0)):
        _device, plan = planned(
            m, made.description, market(m, [price_] * 2), made.pump_runs, tariffs={"GAS": 1.5}
        )
        last = {each.actuator: each for each in plan.changes}
        assert last["boiler-1"].mode == made.burning["id"]
        if factor:
            assert last["pump-1"].factor == factor
            assert last["boiler-1"].factor == pytest.approx(0.1)
        else:
            assert last["pump-1"].mode == made.off["id"]
            assert last["boiler-1"].factor == pytest.approx(0.5)


def test_what_is_produced_at_the_site_is_used(m):
    made = hybrid(demand=(8000, 8000))
    intervals = market(m, [0.6] * 2, load=-1500.0, production=0.0)
    _device, plan = planned(m, made.description, intervals, made.boiler_runs, tariffs={"GAS": 1.0})
    power = m.plans.power_at(plan, NOW + 1000)
    assert power == pytest.approx(1500)
    assert plan.missed == []


def test_the_limit_of_the_site_comes_before_the_demand(m):
    made = hybrid(demand=(30000, 30000))
    intervals = market(m, [0.1] * 2, load=1000.0, limit=2500.0)
    device, plan = planned(m, made.description, intervals, made.pump_runs, tariffs={"GAS": 1})
    assert m.plans.power_at(plan, NOW + 1000) == pytest.approx(1500)
    missed = m.ddbc.missed_targets(plan)
    assert missed == [{"datetime": START + timedelta(seconds=2), "asked": 30000, "reached": 25000}]
    assert m.ddbc.planned_power(plan, NOW + 900, 900) == pytest.approx(1500)
    assert device.scale == 30000


def test_a_demand_that_is_too_small_is_exceeded_as_little_as_can_be(m):
    on = mode("on", (500, 2500))
    off = mode("off")
    described = description(actuator("pump", [(off, (0, 0)), (on, (2000, 8000))]), demand=(1000, 1000))
    _device, plan = planned(m, described, market(m, [0.3] * 2), {"pump": (off, 0)})
    assert told(plan) == [(2, "pump-1", on["id"], 0)]
    described = description(actuator("pump", [(off, (0, 0)), (on, (2000, 8000))]))
    _device, plan = planned(m, described, market(m, [0.3] * 2), {"pump": (on, 1)})
    assert told(plan) == [(2, "pump-1", off["id"], 1)]


def test_a_start_is_in_time_for_the_demand(m):
    off, on = mode("off"), mode("on", (500, 2500))
    ways = both_ways(off, on, seconds=60)
    described = description(actuator("pump", [(off, (0, 0)), (on, (0, 8000))], ways))
    expected = forecast([0, 4000, 4000, 0])
    _device, plan = planned(m, described, market(m, [0.3] * 4), {"pump": (off, 0)}, expected)
    assert told(plan) == [(840, "pump-1", on["id"], 0.5), (2700, "pump-1", off["id"], 1)]
    assert plan.missed == []


def test_timers_are_kept(m):
    off, on = mode("off"), mode("on", (500, 2500))
    running = timer(1800)
    ways = [transition(off, on, 0, [running]), transition(on, off, 0, [], [running])]
    described = description(actuator("pump", [(off, (0, 0)), (on, (0, 8000))], ways, [running]))
    expected = forecast([0, 4000, 0, 0, 0])
    _device, plan = planned(m, described, market(m, [0.3] * 5), {"pump": (off, 0)}, expected)
    assert told(plan) == [
        (900, "pump-1", on["id"], 0.5),
        (1800, "pump-1", on["id"], 0),
        (2700, "pump-1", off["id"], 1),
    ]
    _device, plan = planned(
        m, described, market(m, [0.3] * 5), {"pump": (on, 0)}, running={running["id"]: 1000}
    )
    assert told(plan) == [(1001, "pump-1", off["id"], 1)]


def test_unknown_modes_are_replaced_at_once(m):
    made = hybrid()
    _device, plan = planned(m, made.description, market(m, [0.1] * 4), tariffs={"GAS": 1.5})
    assert told(plan) == [
        (2, "pump-1", made.on["id"], 0.333333),
        (2, "boiler-1", made.idle["id"], 1),
    ]


def test_a_mode_for_an_abnormal_condition_is_left_at_once(m):
    off, on = mode("off"), mode("on", (500, 2500))
    backup = mode("backup", (6000, 6000), abnormal=True)
    modes = [(off, (0, 0)), (on, (2000, 8000)), (backup, (6000, 6000))]
    described = description(actuator("pump", modes), demand=(6000, 6000))
    _device, plan = planned(m, described, market(m, [0.1] * 4), {"pump": (backup, 0)})
    assert [each[2] for each in told(plan)] == [on["id"]]
    assert told(plan)[0][0] == 2


def test_a_plan_made_a_minute_later_is_the_same(m):
    made = hybrid(seconds=10)
    prices = [0.1, 0.2, 0.9, 0.9, 0.1, 0.1, 0.8, 0.1]
    expected = forecast([4000, 4000, 5000, 6000, 7000, 3000, 1000, 500])
    _device, first = planned(
        m, made.description, market(m, prices), made.pump_runs, expected, tariffs={"GAS": 1.5}
    )
    _device, second = planned(
        m, made.description, market(m, prices, begin=62.0), made.pump_runs, expected, tariffs={"GAS": 1.5}
    )
    assert len(told(first)) > 4
    assert told(first) == told(second)


def test_both_forms_of_the_description_come_to_the_same(m):
    official = example("DDBC.SystemDescription")
    other = example("DDBC.SystemDescription")
    for each in other["actuators"]:
        for made in each["operation_modes"]:
            made["id"] = made["Id"]
            made["supply_range"] = [made["supply_range"]]
    plans = []
    for described in (official, other):
        remembered = {
            ("DDBC.SystemDescription",): parsed(m, described),
            ("DDBC.AverageDemandRateForecast",): parsed(m, example("DDBC.AverageDemandRateForecast")),
        }
        told_ = example("DDBC.ActuatorStatus")
        remembered["DDBC.ActuatorStatus", told_["actuator_id"]] = parsed(m, told_)
        assert m.ddbc.missing_message({}) == "DDBC.SystemDescription"
        assert m.ddbc.missing_message(remembered) is None
        assert m.ddbc.valid_from(remembered) == NOW - 3600
        device = m.ddbc.read_device(remembered)
        assert m.ddbc.last_deadline(device) == 0.0
        state = m.ddbc.read_state(device, remembered, {}, None, NOW)
        assert m.ddbc.flex_model is None
        plans.append(plan_alone(m.ddbc, device, state, None, market(m, [0.3, 0.3, 0.1, 0.1]), {"GAS": 1.4}))
    assert told(plans[0]) == told(plans[1])
    assert plans[0].changes


def present_demand(rate) -> dict:
    """Return a DDBC.PresentDemandStatus."""
    return example("v1.0.0/DDBC.PresentDemandStatus", present_demand_rate=number_range(rate, rate))


def test_the_latest_demand_rate_counts_whichever_message_has_it(m):
    described, without = hybrid(demand=(4000, 4000)).description, hybrid().description
    del without["present_demand_rate"]
    first = memory(m, without)
    assert m.ddbc.missing_message(first) == "DDBC.PresentDemandStatus"
    later = first | {("DDBC.PresentDemandStatus",): parsed(m, present_demand(6000))}
    assert m.ddbc.missing_message(later) is None
    assert m.ddbc.read_device(later).present == (6000, 6000)
    both = memory(m, described) | {("DDBC.PresentDemandStatus",): parsed(m, present_demand(6000))}
    assert m.ddbc.read_device(both).present == (6000, 6000)
    both["DDBC.SystemDescription",] = both.pop(("DDBC.SystemDescription",))
    assert m.ddbc.read_device(both).present == (4000, 4000)


def test_a_present_demand_that_was_not_planned_with_departs(m):
    made = hybrid(demand=(4000, 4000))
    rates = [4000, 8000, 8000, 8000]
    device, plan = planned(m, made.description, market(m, [0.3] * 4), made.pump_runs, forecast(rates))

    def departs(rate, seconds):
        return m.ddbc.deviation(device, plan, parsed(m, present_demand(rate)), NOW + seconds)

    assert departs(4000, 60) is None
    assert departs(4100, 60) is None
    assert departs(6000, 60) == "the present demand rate is 6000 to 6000, expected was 4000"
    assert departs(8000, 1000) is None
    assert departs(4000, 1000) == "the present demand rate is 4000 to 4000, expected was 8000"
    state = m.ddbc.read_state(device, memory(m, made.description), {}, None, NOW)
    assert m.ddbc.has_changed(device, state, parsed(m, present_demand(6000)))
    assert not m.ddbc.has_changed(device, state, parsed(m, present_demand(4000)))


def test_an_instruction_says_actuator_mode_and_factor(m):
    made = hybrid()
    device, plan = planned(m, made.description, market(m, [0.9] * 2), made.pump_runs, tariffs={"GAS": 1.5})
    change = next(each for each in plan.changes if each.actuator == "boiler-1")
    fields = {
        "actuator_id": "boiler-1",
        "operation_mode_id": made.burning["id"],
        "operation_mode_factor": 0.2,
        "abnormal_condition": False,
    }
    assert m.ddbc.message_type(change) == "DDBC.Instruction"
    assert m.ddbc.instruction_fields(change) == fields
    m.messages.new("DDBC.Instruction", id="i-1", execution_time=datetime.now(UTC), **fields)
    assert m.ddbc.describe(device, change, NOW) == {**fields, "label": "boiler: boiler on", "power": 0}
    assert m.ddbc.upcoming(plan, NOW) == plan.changes
    assert m.ddbc.is_same_instruction(change, change)
    assert m.ddbc.planned_power(None, NOW, 900) == 0


def test_a_status_of_another_mode_or_factor_departs(m):
    made = hybrid()
    device, plan = planned(m, made.description, market(m, [0.9] * 2), made.pump_runs, tariffs={"GAS": 1.5})

    def departs(mode_, factor, seconds, actuator_id):
        told_ = parsed(m, status("DDBC.ActuatorStatus", mode_, factor, actuator_id=actuator_id))
        return m.ddbc.deviation(device, plan, told_, NOW + seconds)

    assert departs(made.idle, 0, 20, "boiler-1") is None
    assert departs(made.burning, 0.2, 100, "boiler-1") is None
    assert departs(made.idle, 0, 100, "boiler-1") == "boiler off is active, expected was boiler on"
    assert "expected was 0.2" in departs(made.burning, 0.5, 100, "boiler-1")
    assert departs(made.off, 0, 100, "pump-1") is None
    assert m.ddbc.power_deviation(device, plan, 2000, NOW + 100)
    assert m.ddbc.power_deviation(device, plan, 100, NOW + 100) is None


def test_what_was_told_later_than_the_status_counts(m):
    made = hybrid(seconds=20)
    remembered = memory(m, made.description, made.pump_runs)
    device = m.ddbc.read_device(remembered)
    state = m.ddbc.read_state(device, remembered, {}, None, NOW)
    plan = plan_alone(m.ddbc, device, state, None, market(m, [0.9] * 2), {"GAS": 1.5})
    later = m.ddbc.read_state(device, remembered, {"pump-1": NOW + 5}, plan, NOW + 10)
    assert later.actuators["boiler-1"].mode == made.burning["id"]
    assert later.actuators["boiler-1"].ready == NOW + 22
    assert later.actuators["pump-1"].mode == made.on["id"]
    told_ = status("DDBC.ActuatorStatus", made.burning, 0.5, actuator_id="boiler-1")
    assert m.ddbc.has_changed(device, state, parsed(m, told_))
    assert not m.ddbc.has_changed(device, later, parsed(m, told_))


def test_what_cannot_be_planned_is_told(m):
    modes = [(mode(f"mode {each}"), (0, each)) for each in range(30)]
    device = m.ddbc.read_device(memory(m, description(actuator("huge", modes))))
    assert "too many operation modes" in m.ddbc.why_not_plannable(device)
    device = m.ddbc.read_device(memory(m, description(actuator("a", modes[:1]), demand=(0, 1e200))))
    assert "outside the supported range" in m.ddbc.why_not_plannable(device)


def test_ten_actuators_are_planned_so_that_the_demand_is_met(m):
    actuators = []
    for place in range(10):
        off, on = mode("off"), mode("on", (500, 1000 + 100 * place))
        actuators.append(
            actuator(f"unit{place}", [(off, (0, 0)), (on, (1000, 3000))], both_ways(off, on, seconds=10))
        )
    described = description(*actuators)
    expected = forecast([0, 9000, 25000, 14000, 3000, 0])
    _device, plan = planned(m, described, market(m, [0.3] * 6), None, expected)
    assert [each for each in plan.missed if each.asked - each.reached > 1] == []


def steps_of_500(most):
    """Draw a demand."""
    return st.integers(0, most).map(lambda each: each * 500)


@st.composite
def random_actuators(draw, number, grid=None):
    """Draw an actuator: off, and one or two modes, of electricity or gas."""
    off = mode("off")
    modes, timers, ways = [(off, (0, 0))], [], []
    for place in range(draw(st.integers(1, 2))):
        low = draw(st.integers(0, 8)) * 500
        supply = (low, low + draw(st.sampled_from([0, 2000, 4000])))
        if draw(st.booleans()):
            factor = draw(st.sampled_from([0.25, 0.5, 1.0]))
            made = mode(f"mode {place}", tuple(each * factor for each in supply))
        else:
            flow = {"NATURAL_GAS__FLOW_RATE": tuple(each / 40000 for each in supply)}
            made = mode(f"mode {place}", (50, 50), **flow)
        seconds = [0, 0, grid, 2 * grid] if grid else [0, 60, 600, 1900]
        on, rest = timer(draw(st.sampled_from(seconds))), timer(draw(st.sampled_from(seconds)))
        timers += [on, rest]
        lasting = 0 if grid else draw(st.sampled_from([0, 0, 5, 45, 1200]))
        start = transition(off, made, lasting, [on], [rest])
        ways += [
            costly(start, draw(st.sampled_from([0, 0.01, 0.1]))),
            transition(made, off, 0 if grid else draw(st.sampled_from([0, 5])), [rest], [on]),
        ]
        modes.append((made, supply))
    return actuator(f"actuator{number}", modes, ways, timers)


@trials(100)
@given(st.data())
def test_a_device_accepts_every_instruction(data):
    m = modules()
    actuators = [data.draw(random_actuators(each)) for each in range(data.draw(st.integers(1, 3)))]
    described = description(*actuators, demand=(2000, 3000))
    count = data.draw(st.integers(1, 10))
    length = data.draw(st.sampled_from([300.0, 900.0, 3600.0]))
    load = data.draw(st.sampled_from([0.0, 1500.0, -2500.0]))
    limit = data.draw(st.sampled_from([math.inf, 3000.0]))
    yields = {"production": data.draw(st.sampled_from([0.07, -0.1]))}
    yields["curtailable"] = data.draw(st.sampled_from([0.0, 1000.0, 2500.0]))
    intervals = market(m, data.draw(random_prices(count)), length, load=load, limit=limit, **yields)
    rates = data.draw(st.lists(steps_of_500(20), min_size=1, max_size=12))
    expected = forecast(rates, data.draw(st.sampled_from([300, 900, 1000])))
    active, running = {}, {}
    for each in actuators:
        chosen = data.draw(st.sampled_from(each["operation_modes"]))
        active[each["diagnostic_label"]] = {"id": chosen["Id"]}, 0.5
        for which in each["timers"]:
            running[which["id"]] = data.draw(st.sampled_from([-50, 100, 700, 2000]))
    _device, plan = planned(m, described, intervals, active, expected, running, {"GAS": 0.9})
    ends = {each: NOW + seconds for each, seconds in running.items()}
    lived = simulated(described, active, ends)
    live(lived, plan)
    cost, _excess = bill(list(lived.values()), intervals, {"GAS": 0.9})
    assert cost == pytest.approx(plan.cost, abs=1e-6)
    for piece in plan.pieces:
        moment = (piece.start + piece.end) / 2
        power_w = sum(each.quantity(moment) for each in lived.values())
        assert power_w == pytest.approx(piece.power_w, abs=1e-6)
    for missed in plan.missed:
        assert sum(each.supply(missed.moment + 1e-3) for each in lived.values()) < missed.asked


def best_mix(interval, demand, modes, gas):
    """Return the best (excess, shortfall, surplus, cost) in an hour of some modes, by trying factors."""

    def outcome(factors):
        power = supply = cost = 0.0
        for each, factor in zip(modes, factors, strict=True):
            supply += between(each["supply_range"], factor)
            for ends in each["power_ranges"]:
                if ends["commodity_quantity"].startswith("ELECTRIC"):
                    power += between(ends, factor)
                else:
                    cost += between(ends, factor) * 3.6 * gas
        lack = round(demand - supply, 6)
        cost += price(interval, power) * 3600
        over = round(beyond(interval, power), 6)
        return over, max(lack, 0.0), max(-lack, 0.0), round(cost, 9)

    shares = [part / 40 for part in range(41)]
    tried = [outcome(each) for each in product(shares, repeat=len(modes))]
    return min(tried)


def least(m, actuators, intervals, demands, active, gas):
    """Return the least (excess, shortfall, surplus, cost) by trying all ways through all modes."""
    durations = {each["id"]: each["duration"] / 1000 for one in actuators for each in one["timers"]}
    by_id = [{each["Id"]: each for each in one["operation_modes"]} for one in actuators]
    mixes, known = {}, {}

    def mix(place, chosen):
        if (place, chosen) not in mixes:
            modes = [listed[each] for listed, each in zip(by_id, chosen, strict=True)]
            hours = (intervals[place].end - intervals[place].start) / 3600
            found = best_mix(intervals[place], demands[place], modes, gas)
            mixes[place, chosen] = tuple(each * hours for each in found)
        return mixes[place, chosen]

    def best(place, chosen, timers):
        if place == len(intervals):
            return (0.0, 0.0, 0.0, 0.0)
        start = intervals[place].start
        running = {each: end for each, end in timers if end > start}
        key = place, chosen, tuple(sorted(running.items()))
        if key in known:
            return known[key]
        options = []
        for one, at in zip(actuators, chosen, strict=True):
            free = [(at, 0.0, ())]
            for way in one["transitions"]:
                if way["from"] == at and not any(each in running for each in way["blocking_timers"]):
                    free.append((way["to"], way.get("transition_costs", 0), way["start_timers"]))
            options.append(free)
        tried = []
        for joint in product(*options):
            after = running | {each: start + durations[each] for way in joint for each in way[2]}
            here = mix(place, tuple(way[0] for way in joint))
            rest = best(place + 1, tuple(way[0] for way in joint), tuple(sorted(after.items())))
            total = [round(one + other, 7) for one, other in zip(here, rest, strict=True)]
            total[3] += sum(way[1] for way in joint)
            tried.append(tuple(total))
        known[key] = min(tried)
        return known[key]

    return best(0, tuple(active), ())


@trials(100, quick=6)
@given(st.data())
def test_no_other_way_meets_the_demand_at_less_cost(data):
    m = modules()
    actuators = [data.draw(random_actuators(each, QUARTER)) for each in range(data.draw(st.integers(1, 2)))]
    described = description(*actuators)
    count = data.draw(st.integers(2, 4))
    load = data.draw(st.sampled_from([0.0, -1000.0]))
    yields = {"production": data.draw(st.sampled_from([0.1, -0.1]))}
    yields["curtailable"] = data.draw(st.sampled_from([0.0, 1000.0, 2500.0]))
    intervals = market(m, data.draw(random_prices(count)), begin=0.0, load=load, **yields)
    demands = data.draw(st.lists(steps_of_500(16), min_size=count, max_size=count))
    described["present_demand_rate"] = number_range(demands[0], demands[0])
    active = [data.draw(st.sampled_from(each["operation_modes"]))["Id"] for each in actuators]
    labelled = {
        each["diagnostic_label"]: ({"id": mode_}, 0.0) for each, mode_ in zip(actuators, active, strict=True)
    }
    _device, plan = planned(m, described, intervals, labelled, forecast(demands), tariffs={"GAS": 0.9})
    lived = simulated(described, labelled)
    live(lived, plan)
    cost, _excess = bill(list(lived.values()), intervals, {"GAS": 0.9})
    lacking = exceeding = 0.0
    for start, end, _power in pieces_of(lived, intervals):
        demand = next(
            each for each, one in zip(demands, intervals, strict=True) if one.start <= start < one.end
        )
        lack = demand - sum(each.supply(start) for each in lived.values())
        lacking += max(lack, 0) * (end - start) / 3600
        exceeding += max(-lack, 0) * (end - start) / 3600
    _over, shortfall, surplus, cheapest = least(m, actuators, intervals, demands, active, 0.9)
    between_transitions = 2 / 3600 * max(*demands, 8000) + 0.01
    assert lacking <= shortfall + between_transitions
    if lacking > shortfall - 0.01:
        assert exceeding <= surplus + between_transitions
        if exceeding > surplus - 0.01:
            assert cost <= cheapest + 1e-4


def pieces_of(lived, intervals):
    """Return (start, end, 0) of each time in which no actuator changes."""
    edges = {each.start for each in intervals} | {intervals[-1].end}
    for each in lived.values():
        edges |= {moment for moment, *_ in each.course if intervals[0].start < moment < intervals[-1].end}
    return [(start, end, 0) for start, end in pairwise(sorted(edges))]


@trials(100)
@given(st.data())
def test_no_other_factors_are_better(data):
    m = modules()
    actuators, active = [], {}
    for place in range(data.draw(st.integers(1, 4))):
        low = data.draw(st.sampled_from([-500, 0, 200, 1000]))
        powers = low, low + data.draw(st.sampled_from([0, 500, 1500]))
        supply = data.draw(st.sampled_from([(0, 0), (0, 1000), (0, 3000), (500, 1500)]))
        gas = 0, data.draw(st.sampled_from([0, 0.03, 0.15]))
        runs = mode("runs", powers, NATURAL_GAS__FLOW_RATE=gas)
        actuators.append(actuator(f"unit{place}", [(runs, supply)]))
        active[f"unit{place}"] = runs, 0.5
    demand = data.draw(st.sampled_from([0.0, 700.0, 2500.0, 9000.0]))
    [interval] = market(
        m,
        [data.draw(st.sampled_from([0.3, -0.1, 0.05]))],
        load=data.draw(st.sampled_from([0.0, -900.0, 700.0])),
        limit=data.draw(st.sampled_from([math.inf, 1500.0])),
        production=data.draw(st.sampled_from([0.1, 0.3])),
    )
    described = description(*actuators, demand=(demand, demand))
    _device, plan = planned(m, described, [interval], active, tariffs={"GAS": 0.9})
    chosen = {each["id"]: 0.5 for each in actuators} | {each.actuator: each.factor for each in plan.changes}

    def rank(factors):
        found = [
            (each["operation_modes"][0], factor) for each, factor in zip(actuators, factors, strict=True)
        ]
        power = sum(between(described["power_ranges"][0], factor) for described, factor in found)
        flow = sum(between(described["power_ranges"][1], factor) for described, factor in found)
        lack = demand - sum(between(described["supply_range"], factor) for described, factor in found)
        excess, cost = beyond(interval, power), price(interval, power) * 3600 + flow * 3.6 * 0.9
        return round(excess, 2), round(max(lack, 0.0), 2), round(max(-lack, 0.0), 2), cost

    reached = rank(chosen.values())
    chance = random.Random(7)
    for _try in range(300):
        tried = [chance.choice([0.0, 1.0, chance.random()]) for _each in actuators]
        mixed = [0.99 * one + 0.01 * each for one, each in zip(chosen.values(), tried, strict=True)]
        for other in (rank(tried), rank(mixed)):
            assert reached <= (*other[:3], other[3] + 1e-5)


def test_of_two_modes_without_power_the_one_that_cannot_have_any_is_told(m):
    run, off = mode("run", (0, 5000)), mode("off")
    heater = actuator("heater", [(run, (0, 5)), (off, (0, 0))])
    expected = forecast([0, 5, 0])
    active = {"heater": (run, 1.0)}
    _device, plan = planned(m, description(heater), market(m, [0.2] * 3), active, expected)
    assert [each[2:] for each in told(plan)] == [(off["id"], 1), (run["id"], 1), (off["id"], 1)]
