"""From what a device tells to FlexMeasures' problem: what it is worth, what it can do, what it needs."""

import json
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexmeasures_api.flexible_devices as storages
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.instructions as instructions
import flexmeasures_cem.errors as errors
import flexmeasures_cem.site.site as sites
from tests.modules.flexmeasures_cem.frbc_cases import (
    QUARTER,
    START,
    activate,
    actuator,
    description,
    element,
    market,
    memory,
    mode,
    modules,
    number_range,
    random_descriptions,
)
from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts.s2_messages import example
from tests.parts.trials import trials

NOW = START.timestamp()
DAY = 96 * QUARTER


def battery(efficiency=0.95, unit=100.0, levels=(0, 100)):
    """Return the description of a battery of 5 kW."""
    modes = [
        mode("idle", element((0, 0), levels)),
        mode("charge", element((0, 5000), levels, unit, efficiency)),
        mode("discharge", element((-5000, 0), levels, unit, efficiency)),
    ]
    return description(actuator("inverter", modes), levels=levels)


def problem(described, level, energy=None, now=NOW, with_modes=True, resolution=QUARTER, **others):
    """Return FlexMeasures' problem of a device, from the start on for a day."""
    m = modules()
    remembered = memory(m, described, level, **others)
    activate(m, remembered, described)
    device = m.frbc.read_device(remembered)
    state = m.frbc.read_state(device, remembered, {}, None, now)
    left = (NOW + QUARTER - now) / QUARTER
    window = sites.Window(NOW, QUARTER, NOW + DAY, left, math.inf, with_modes)
    return m.frbc.flex_model(device, state, sites.PlanningSensors(7, resolution, 8, energy), window)


def test_a_unit_of_fill_level_is_worth_what_power_and_fill_rate_say():
    m = modules()
    value = m.frbc.energy_per_fill_level(m.frbc.read_device(memory(m, battery())))
    assert value.energy == pytest.approx(100 * 3600)
    assert (value.charging, value.discharging) == pytest.approx((0.95, 0.95))


def test_what_can_only_be_charged_is_worth_what_it_costs():
    m = modules()
    modes = [mode("off", element((0, 0))), mode("on", element((2000, 2000), efficiency=3.0))]
    value = m.frbc.energy_per_fill_level(m.frbc.read_device(memory(m, description(actuator("pump", modes)))))
    assert value.energy == pytest.approx(100 * 3600 / 3)
    assert value.charging == 1.0


def test_a_configured_worth_gives_the_efficiencies():
    m = modules()
    modes = [mode("off", element((0, 0))), mode("on", element((2000, 2000), efficiency=3.0))]
    device = m.frbc.read_device(memory(m, description(actuator("pump", modes))))
    assert m.frbc.energy_per_fill_level(device, 100 * 3600.0).charging == pytest.approx(3.0)
    device = m.frbc.read_device(memory(m, battery()))
    value = m.frbc.energy_per_fill_level(device, 98 * 3600.0)
    assert value.charging * value.discharging == pytest.approx(0.95**2)


def test_what_no_electric_power_moves_cannot_be_planned():
    m = modules()
    device = m.frbc.read_device(memory(m, description(actuator("idle", [mode("off", element((0, 0)))]))))
    assert m.frbc.energy_per_fill_level(device) is None


@trials(80)
@given(random_descriptions(), st.floats(0, 100))
def test_a_problem_never_creates_energy_and_round_trips(described, level):
    m = modules()
    device = m.frbc.read_device(memory(m, described, level))
    value = m.frbc.energy_per_fill_level(device)
    if value is None:
        return
    found = problem(described, level)
    assert 0 < value.discharging <= 1
    if device.max_emptying_w:
        assert value.charging * value.discharging <= 1 + 1e-9
    assert found.soc_at_start * 3600 / value.energy + device.bottom == pytest.approx(level)
    assert found.soc_max * 3600 / value.energy + device.bottom == pytest.approx(device.top)


def test_the_state_of_charge_counts_from_the_start_of_the_range():
    found = problem(battery(levels=(20, 60)), 30)
    assert found.soc_at_start == pytest.approx(1000)
    assert (found.soc_min, found.soc_max) == (0, pytest.approx(4000))
    assert (found.power_sensor, found.soc_sensor) == (7, 8)


def test_only_what_is_left_of_the_first_interval_counts():
    found = problem(battery(), 50, now=NOW + 600)
    first, rest = found.consumption_capacity
    assert first.value == pytest.approx(5000 / 3)
    assert (first.start, first.end) == (START, START + timedelta(minutes=15))
    assert (rest.value, rest.end) == (5000, START + timedelta(days=1))
    assert found.power_capacity == 5000
    assert found.production_capacity[0].value == pytest.approx(5000 / 3)


def test_what_cannot_discharge_has_no_production():
    modes = [mode("off", element((0, 0))), mode("on", element((0, 2000)))]
    found = problem(description(actuator("charger", modes)), 50)
    assert found.production_capacity == 0


def test_targets_are_minima_and_maxima_on_the_clock():
    profile = example(
        "FRBC.FillLevelTargetProfile",
        start_time=(START + timedelta(minutes=10)).isoformat(),
        elements=[
            {"duration": 3_600_000, "fill_level_range": number_range(0, 100)},
            {"duration": 1_200_000, "fill_level_range": number_range(60, 90)},
        ],
    )
    found = problem(battery(), 50, FillLevelTargetProfile=profile)
    [least], [most] = found.soc_minima, found.soc_maxima
    assert (least.start, least.end) == (START + timedelta(minutes=60), START + timedelta(minutes=90))
    assert (least.value, most.value) == (pytest.approx(6000), pytest.approx(9000))


def test_usage_is_a_mean_power_per_step():
    usage = example(
        "FRBC.UsageForecast",
        start_time=(START + timedelta(minutes=10)).isoformat(),
        elements=[{"duration": 900_000, "usage_rate_expected": 0.001}],
    )
    first, second, *rest = problem(battery(), 50, UsageForecast=usage).soc_usage
    assert first.value == pytest.approx(360 / 3)
    assert second.value == pytest.approx(360 * 2 / 3)
    assert [each.value for each in rest] == [0]


def test_no_more_usage_is_asked_for_than_the_device_can_serve():
    usage = example(
        "FRBC.UsageForecast",
        start_time=START.isoformat(),
        elements=[{"duration": 86_400_000, "usage_rate_expected": 1.0}],
    )
    spans = problem(battery(), 0, UsageForecast=usage).soc_usage
    assert all(0 <= each.value <= 5000 * 0.95 for each in spans)


def test_leakage_is_a_share_per_step_of_the_sensor():
    leakage = example(
        "FRBC.LeakageBehaviour",
        valid_from=START.isoformat(),
        elements=[
            {"fill_level_range": number_range(0, 50), "leakage_rate": 0.00025},
            {"fill_level_range": number_range(50, 100), "leakage_rate": 0.00075},
        ],
    )
    found = problem(battery(), 50, LeakageBehaviour=leakage)
    share = (0.00025 * 50**2 / 2 + 0.00075 * (100**2 - 50**2) / 2) / (100**3 / 3)
    assert found.storage_efficiency == pytest.approx(math.exp(-share * QUARTER))
    finer = problem(battery(), 50, LeakageBehaviour=leakage, resolution=300.0)
    assert finer.storage_efficiency**3 == pytest.approx(found.storage_efficiency)


def test_operation_modes_are_asked_for_where_power_has_steps():
    modes = [mode("off", element((0, 0))), mode("on", element((1400, 7000)))]
    described = description(actuator("charger", modes))
    assert problem(described, 50).operation_modes == [(0, 0), (1400, 7000)]
    assert problem(described, 50, with_modes=False).operation_modes == []
    assert problem(battery(), 50).operation_modes == []


def test_a_flex_model_of_it_is_as_flexmeasures_reads_it():
    modes = [mode("off", element((0, 0))), mode("on", element((1400, 7000)))]
    found = problem(description(actuator("charger", modes)), 50)
    model = storages.storage_entry(found, START, START + timedelta(days=1))
    assert model["soc-at-start"] == "5.263157895 kWh"
    assert model["soc-max"] == "10.526315789 kWh"
    assert model["operation-modes"] == [
        {"consumption-range": ["0.0 kW", "0.0 kW"]},
        {"consumption-range": ["1.4 kW", "7.0 kW"]},
    ]
    assert (model["consumption-capacity"], model["production-capacity"]) == ("7.0 kW", "0.0 kW")
    assert model["charging-efficiency"] == "100.0 %"
    assert "roundtrip-efficiency" not in model
    json.dumps(model)


def test_a_range_of_production_is_told_as_such():
    assert storages.operation_mode_field(-5000, -1000) == {"production-range": ["1.0 kW", "5.0 kW"]}
    assert storages.operation_mode_field(-5000, 2000) == {
        "consumption-range": ["0.0 kW", "2.0 kW"],
        "production-range": ["0.0 kW", "5.0 kW"],
    }


def test_a_transition_under_way_ends_later():
    m = modules()
    described = battery()
    moves = described["actuators"][0]["transitions"]
    moves[0]["transition_duration"] = 60_000
    remembered = memory(m, described, 50)
    status = {
        "message_type": "FRBC.ActuatorStatus",
        "message_id": "status",
        "actuator_id": described["actuators"][0]["id"],
        "active_operation_mode_id": moves[0]["to"],
        "operation_mode_factor": 1.0,
        "previous_operation_mode_id": moves[0]["from"],
        "transition_timestamp": START.isoformat(),
    }
    key = "FRBC.ActuatorStatus", described["actuators"][0]["id"]
    remembered[key] = m.messages.parse(json.dumps(status))
    state = m.frbc.read_state(m.frbc.read_device(remembered), remembered, {}, None, NOW + 10)
    [active] = state.actuators.values()
    assert active.ready == NOW + 60


def test_what_was_told_later_than_a_status_counts():
    m = modules()
    described = battery()
    remembered = memory(m, described, 50)
    activate(m, remembered, described)
    device = m.frbc.read_device(remembered)
    state = m.frbc.read_state(device, remembered, {}, None, NOW)
    wanted = [(NOW + 2, NOW + QUARTER, 2500.0)]
    plan = plan_alone(m.frbc, device, state, wanted, market(wanted), {})
    actuator_id = described["actuators"][0]["id"]
    [active] = m.frbc.read_state(device, remembered, {actuator_id: NOW}, plan, NOW + 60).actuators.values()
    assert active.factor == pytest.approx(0.5)
    heard = {actuator_id: NOW + 30}
    [active] = m.frbc.read_state(device, remembered, heard, plan, NOW + 60).actuators.values()
    assert active.factor == 0


def test_moments_are_in_utc():
    assert modules().all_plans.moment(NOW) == datetime(2026, 3, 2, 10, tzinfo=UTC)


@pytest.mark.parametrize("wrong", [{"operation_mode": "x" * 255}, {"actuator_id": "x" * 255}])
def test_an_error_tells_little_of_what_a_device_says(wrong):
    label = "\x1b[31m\n" + "y" * 100_000
    modes = [SimpleNamespace(id="z" * 100_000, diagnostic_label=label) for _number in range(50)]
    actuators = [SimpleNamespace(id=f"{n}", diagnostic_label=label, operation_modes=modes) for n in range(50)]
    memory = {(devices.DESCRIPTION,): SimpleNamespace(actuators=actuators)}
    with pytest.raises(errors.InvalidInstruction) as caught:
        instructions.checked(memory, None, {"actuator_id": "0", "operation_mode": "charge"} | wrong, 0.0)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()
