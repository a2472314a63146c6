"""A device's state and limits become FlexMeasures' flex-model and flex-context."""

from datetime import UTC, datetime, timedelta

import pytest

import flexmeasures_api.flexible_devices as flexible_devices

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
END = START + timedelta(hours=24)


def battery(soc_at_start=5000, **more):
    """Return a battery of 1 to 10 kWh."""
    return flexible_devices.Storage(
        power_sensor=7, soc_at_start=soc_at_start, soc_min=1000, soc_max=10_000, **more
    )


def test_states_the_present_and_the_limits():
    assert flexible_devices.storage_entry(battery(), START, END) == {
        "sensor": 7,
        "soc-at-start": "5.0 kWh",
        "soc-min": "1.0 kWh",
        "soc-max": "10.0 kWh",
    }


def test_states_what_is_known_of_the_device():
    model = flexible_devices.storage_entry(
        battery(soc_sensor=8, power_capacity=10_000, roundtrip_efficiency=0.9), START, END
    )
    assert model["state-of-charge"] == {"sensor": 8}
    assert model["power-capacity"] == "10.0 kW"
    assert model["roundtrip-efficiency"] == "90.0 %"


def test_an_empty_battery_is_a_state_of_charge_too():
    assert flexible_devices.storage_entry(battery(soc_at_start=0), START, END)["soc-at-start"] == "0.0 kWh"


def test_below_the_minimum_the_hard_bound_gives_way_to_a_soft_one():
    model = flexible_devices.storage_entry(battery(soc_at_start=400), START, END)
    assert model["soc-min"] == "0.4 kWh"
    assert model["soc-minima"] == [
        {"start": "2026-06-01T12:00:00+00:00", "end": "2026-06-02T12:00:00+00:00", "value": "1.0 kWh"}
    ]
    assert "soc-maxima" not in model


@pytest.mark.parametrize(
    ("soc", "field", "back"), [(980, "soc-minima", "1.2"), (10_020, "soc-maxima", "9.8")]
)
def test_a_little_outside_the_way_back_is_left_to_the_best_hours(soc, field, back):
    model = flexible_devices.storage_entry(battery(soc_at_start=soc), START, END)
    bound = "1.0 kWh" if field == "soc-minima" else "10.0 kWh"
    there, later = "2026-06-01T16:00:00+00:00", "2026-06-02T12:00:00+00:00"
    assert model[field] == [
        {"datetime": there, "value": f"{back} kWh"},
        {"start": there, "end": later, "value": bound},
    ]
    soon = flexible_devices.storage_entry(battery(soc_at_start=soc), START, START + timedelta(hours=2))
    assert soon[field][0] == {"datetime": "2026-06-01T14:00:00+00:00", "value": f"{back} kWh"}


def test_above_the_maximum_the_hard_bound_gives_way_to_a_soft_one():
    model = flexible_devices.storage_entry(battery(soc_at_start=11_000), START, END)
    assert model["soc-max"] == "11.0 kWh"
    assert [each["value"] for each in model["soc-maxima"]] == ["10.0 kWh"]
    assert "soc-minima" not in model


def test_targets_are_moments_or_spans():
    targets = [flexible_devices.SocEvent(END, END, 9000), flexible_devices.SocEvent(START, END, 8000)]
    assert flexible_devices.storage_entry(battery(soc_targets=targets), START, END)["soc-targets"] == [
        {"datetime": "2026-06-02T12:00:00+00:00", "value": "9.0 kWh"},
        {"start": "2026-06-01T12:00:00+00:00", "end": "2026-06-02T12:00:00+00:00", "value": "8.0 kWh"},
    ]


def test_raw_fields_prevail():
    raw = {"soc-max": "12 kWh", "charging-efficiency": "95 %"}
    model = flexible_devices.storage_entry(battery(roundtrip_efficiency=0.9, flex_model=raw), START, END)
    assert model["soc-max"] == "12 kWh"
    assert model["charging-efficiency"] == "95 %"
    assert "roundtrip-efficiency" not in model


def test_a_raw_bound_prevails_wholly():
    model = flexible_devices.storage_entry(
        battery(soc_at_start=30_000, flex_model={"soc-max": "60 kWh"}), START, END
    )
    assert model["soc-max"] == "60 kWh"
    assert "soc-maxima" not in model
    model = flexible_devices.storage_entry(
        battery(soc_at_start=500, flex_model={"soc-min": "0 kWh"}), START, END
    )
    assert model["soc-min"] == "0 kWh"
    assert "soc-minima" not in model


def test_a_minimum_power_makes_operation_modes():
    car = battery(power_capacity=11_000.0, production_capacity=0.0, minimum_power=4140.0)
    model = flexible_devices.storage_entry(car, START, END)
    assert model["production-capacity"] == "0.0 kW"
    assert model["operation-modes"] == [
        {"consumption-range": ["0.0 kW", "0.0 kW"]},
        {"consumption-range": ["4.14 kW", "11.0 kW"]},
    ]
    both_ways = battery(power_capacity=11_000.0, consumption_capacity=7400.0, minimum_power=4140.0)
    assert flexible_devices.storage_entry(both_ways, START, END)["operation-modes"][1:] == [
        {"consumption-range": ["4.14 kW", "7.4 kW"]},
        {"production-range": ["0.0 kW", "11.0 kW"]},
    ]


def test_prices_are_sensors_in_the_flex_context_and_later_fields_prevail():
    sensors = {"consumption-price": {"sensor": 1}, "production-price": {"sensor": 2}}
    configured = {"site-power-capacity": "17.0 kW", "site-production-capacity": "0.0 kW"}
    raw = {"relax-constraints": False, "site-production-capacity": "5 kW"}
    assert flexible_devices.flex_context(sensors, configured, raw, None) == {
        "consumption-price": {"sensor": 1},
        "production-price": {"sensor": 2},
        "site-power-capacity": "17.0 kW",
        "site-production-capacity": "5 kW",
        "relax-constraints": False,
    }


def test_a_device_that_stores_nothing_has_capacities_alone():
    panels = flexible_devices.Flow(7, 0.0, [flexible_devices.PowerSpan(START, END, 3000.0)])
    assert flexible_devices.flex_model_entry(panels, START, END) == {
        "sensor": 7,
        "consumption-capacity": "0.0 kW",
        "production-capacity": [
            {"start": "2026-06-01T12:00:00+00:00", "end": "2026-06-02T12:00:00+00:00", "value": "3.0 kW"}
        ],
    }
