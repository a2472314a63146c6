"""A configuration is read once; each of its mistakes is named, all at once."""

from datetime import timedelta

import pytest

GIVEN = {
    "host": "http://localhost:5000",
    "username": "battery@example.org",
    "password": "geheim",
    "power_sensor": "2",
    "consumption_price_sensor": 4,
    "soc_min": 1,
    "soc_max": "10",
}


@pytest.fixture
def configuration(load):
    """Return the module."""
    return load("flexmeasures.configuration")


def test_fills_in_the_defaults(configuration):
    found, mistakes = configuration.read(GIVEN)
    assert mistakes == []
    assert (found.power_sensor, found.consumption_price_sensor, found.production_price_sensor) == (2, 4, 4)
    assert (found.soc_min, found.soc_max, found.soc_unit) == (1000, 10_000, "kWh")
    assert found.schedule_duration == timedelta(hours=24)
    assert found.schedule_unit == "kW"
    for name in ("soc_sensor", "rm_discharge_sensor", "power_capacity", "roundtrip_efficiency", "site"):
        assert getattr(found, name) is None


def test_reads_what_is_given(configuration):
    found, _mistakes = configuration.read(
        GIVEN
        | {
            "production_price_sensor": 5,
            "soc_sensor": 3,
            "soc_unit": "MWh",
            "soc_min": "10 %",
            "soc_max": 0.01,
            "schedule_duration": "PT12H",
            "schedule_unit": "kWh",
            "power_capacity": "10 kW",
            "roundtrip_efficiency": "90 %",
            "site": 1,
            "site_power_capacity": "17 kW",
            "soc_entity": "sensor.car.battery_level",
            "flex_model": {"prefer-charging-sooner": False},
            "flex_context": {"relax-constraints": True},
        }
    )
    assert (found.production_price_sensor, found.soc_sensor, found.site) == (5, 3, 1)
    assert (found.soc_min, found.soc_max) == (1000, 10_000)
    assert found.schedule_duration == timedelta(hours=12)
    assert (found.power_capacity, found.site_power_capacity) == (10_000, 17_000)
    assert found.roundtrip_efficiency == 0.9
    assert found.flex_model == {"prefer-charging-sooner": False}


@pytest.mark.parametrize(("given", "ratio"), [(0.9, 0.9), (90, 0.9), ("90 %", 0.9), (1, 1), ("0.85", 0.85)])
def test_an_efficiency_is_a_ratio_or_a_percentage(configuration, given, ratio):
    found, _mistakes = configuration.read(GIVEN | {"roundtrip_efficiency": given})
    assert found.roundtrip_efficiency == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("wrong", "mistake"),
    [
        ({"host": "localhost:5000/api"}, "host: expected an address"),
        ({"host": 5}, "host: expected an address"),
        (
            {"host": "https://me:geheim@x"},
            "host: expected an address such as flexmeasures.io or http://localhost:5000, without a path",
        ),
        ({"username": "battery"}, "username: expected the e-mail address"),
        ({"password": ""}, "password: expected a text"),
        ({"power_sensor": "two"}, "power_sensor: expected the number of a FlexMeasures sensor, such as 12, "),
        ({"soc_unit": "km"}, "soc_unit: expected one of Wh, kWh, MWh, but got 'km'"),
        ({"schedule_unit": "kVA"}, "schedule_unit: expected one of W, kW, MW, Wh, kWh, MWh"),
        ({"schedule_duration": "a day"}, "schedule_duration: expected an ISO 8601 duration"),
        ({"soc_min": 10}, "soc_min, soc_max: expected 0 <= soc_min < soc_max, but got 10 and '10'"),
        ({"soc_min": -1}, "soc_min, soc_max: expected 0 <= soc_min"),
        ({"soc_max": "10 km"}, "soc_min, soc_max: expected Wh, kWh, MWh"),
        ({"soc_max": "full"}, "soc_max: expected a number in soc_unit, but got 'full'"),
        ({"power_capacity": "0 kW"}, "power_capacity: expected a power above zero"),
        ({"roundtrip_efficiency": 120}, "roundtrip_efficiency: expected an efficiency"),
        ({"roundtrip_efficiency": 0}, "roundtrip_efficiency: expected an efficiency"),
        ({"soc_entity": "battery"}, "soc_entity: expected an entity"),
        ({"flex_model": ["soc-max"]}, "flex_model: expected FlexMeasures' own fields"),
        ({"power_senzor": 2}, "power_senzor is no key of this app: did you mean power_sensor?"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_expected(configuration, wrong, mistake):
    found, mistakes = configuration.read(GIVEN | wrong)
    assert found is None
    assert len(mistakes) == 1
    assert mistakes[0].startswith(mistake)
    assert "geheim" not in mistakes[0]


def test_every_mistake_is_told_at_once(configuration):
    _found, mistakes = configuration.read({"host": "flexmeasures.io", "soc_unit": "km", "password": 12345})
    assert sorted(mistakes) == [
        "consumption_price_sensor is missing",
        "password: expected a text that is not empty",
        "power_sensor is missing",
        "soc_max is missing",
        "soc_min is missing",
        "soc_unit: expected one of Wh, kWh, MWh, but got 'km'",
        "username is missing",
    ]


@pytest.mark.parametrize("section", [None, {}])
def test_an_empty_section_misses_every_required_key(configuration, section):
    _found, mistakes = configuration.read(section)
    assert len(mistakes) == 7


def test_a_section_that_is_no_mapping_is_refused(configuration):
    _found, mistakes = configuration.read("flexmeasures.io")
    assert mistakes == ["expected keys and values under apps: flexmeasures:"]
