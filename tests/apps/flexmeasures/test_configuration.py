"""A configuration is read once; each of its mistakes is named, all at once."""

import math
from datetime import time, timedelta

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

PEAK = {"site_peak_consumption": "2.5 kW", "site_peak_consumption_price": "3.5 EUR/kW"}


def test_fills_in_the_defaults(configuration):
    found, mistakes = configuration.read(GIVEN)
    assert mistakes == []
    assert (found.power_sensor, found.consumption_price_sensor, found.production_price_sensor) == (2, 4, 4)
    assert (found.soc_min, found.soc_max, found.soc_unit) == (1000, 10_000, "kWh")
    assert found.schedule_duration == timedelta(hours=24)
    assert found.schedule_unit == "kW"
    for name in ("soc_sensor", "rm_discharge_sensor", "power_capacity", "roundtrip_efficiency", "site"):
        assert getattr(found, name) is None
    for name in ("consumption_capacity", "production_capacity", "peak_consumption", "peak_consumption_price"):
        assert getattr(found, f"site_{name}") is None


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
            "site_consumption_capacity": 12,
            "site_production_capacity": "0 kW",
            "site_peak_consumption": "2500 W",
            "site_peak_consumption_price": "3500 EUR/MW",
            "soc_entity": "sensor.car.battery_level",
            "soc_entity_unit": "%",
            "soc_max_age": "PT30M",
            "soc_at_end": "50 %",
            "soc_targets": {"value": "80 %", "time": 1020, "weekdays": ["mon", "Friday"]},
            "consumption_capacity": "11 kW",
            "production_capacity": "0 kW",
            "minimum_power": "4.14 kW",
            "flex_model": {"prefer-charging-sooner": False},
            "flex_context": {"relax-constraints": True},
        }
    )
    assert (found.production_price_sensor, found.soc_sensor, found.site) == (5, 3, 1)
    assert (found.soc_min, found.soc_max) == (1000, 10_000)
    assert found.schedule_duration == timedelta(hours=12)
    assert (found.power_capacity, found.site_power_capacity) == (10_000, 17_000)
    assert (found.site_consumption_capacity, found.site_production_capacity) == (12_000, 0)
    assert found.site_peak_consumption == 2500
    price = found.site_peak_consumption_price
    assert (price.per_kilowatt, price.currency) == (3.5, "EUR")
    assert found.roundtrip_efficiency == 0.9
    assert found.flex_model == {"prefer-charging-sooner": False}
    assert (found.consumption_capacity, found.production_capacity) == (11_000, 0)
    assert (found.minimum_power, found.soc_at_end) == (4140, 5000)
    assert (found.soc_entity_unit, found.soc_max_age) == ("%", timedelta(minutes=30))
    assert found.soc_targets == [{"value": 8000, "time": time(17), "weekdays": [0, 4]}]


@pytest.mark.parametrize(
    ("given", "found"), [("07:00", time(7)), (1020, time(17)), (61_230, time(17, 0, 30))]
)
def test_a_time_that_yaml_reads_as_a_number_is_a_time(configuration, given, found):
    target = {"value": 8, "time": given}
    [read] = configuration.read(GIVEN | {"soc_targets": [target]})[0].soc_targets
    assert read == {"value": 8000, "time": found, "weekdays": list(range(7))}


def test_s2_devices_are_served_on_this_machine_without_a_word(configuration):
    for given in ({}, {"s2": None}, {"s2": {}}):
        s2 = configuration.read(GIVEN | given)[0].s2
        assert (s2.enabled, s2.host, s2.port, s2.path) == (True, "127.0.0.1", 8765, "/s2")
        assert (s2.token, s2.control_type, s2.auto_provision, s2.resources) == (None, None, True, {})
        assert (s2.limits.connections, s2.limits.message, s2.limits.depth) == (256, 2**20, 64)
        assert s2.prices == {}
        assert s2.instruction_lead == 60


def test_reads_what_is_given_for_s2(configuration):
    found, mistakes = configuration.read(
        GIVEN
        | {
            "s2": {
                "host": "::",
                "port": "9000",
                "token": "geheim",
                "certificate": "/ssl/fullchain.pem",
                "control_type": "pebc",
                "instruction_lead": "PT2M",
                "resources": {
                    "EV": {"power_sensor": "7", "energy_per_fill_level": "500 Wh", "instruction_lead": "all"},
                    "Pump": {"token": "eigen", "cycle_cost": "40 EUR/MWh"},
                },
                "prices": {"gas": 1.35, "heat": "0.11", "oil": 1, "hydrogen": -2},
                "limits": {"message": "64 KiB", "heartbeat": "20 s", "handshake": 5, "rate": 100},
            }
        }
    )
    assert mistakes == []
    s2 = found.s2
    assert (s2.port, s2.control_type) == (9000, "POWER_ENVELOPE_BASED_CONTROL")
    assert s2.instruction_lead == 120
    assert s2.resources == {
        "EV": {"power_sensor": 7, "energy_per_fill_level": 500, "instruction_lead": math.inf},
        "Pump": {"token": "eigen", "cycle_cost": 0.04},
    }
    assert s2.prices == {"GAS": 1.35, "HEAT": 0.11, "OIL": 1, "HYDROGEN": -2}
    assert (s2.limits.message, s2.limits.heartbeat, s2.limits.handshake) == (65_536, 20, 5)
    assert "geheim" not in repr(found)
    assert "eigen" not in repr(found)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_needs_no_token(configuration, host):
    assert configuration.read(GIVEN | {"s2": {"host": host}})[1] == []


def test_anyone_may_be_let_in(configuration):
    assert configuration.read(GIVEN | {"s2": {"host": "0.0.0.0", "allow_anonymous": True}})[1] == []


@pytest.mark.parametrize(("given", "ratio"), [(0.9, 0.9), (90, 0.9), ("90 %", 0.9), (1, 1), ("0.85", 0.85)])
def test_an_efficiency_is_a_ratio_or_a_percentage(configuration, given, ratio):
    found, _mistakes = configuration.read(GIVEN | {"roundtrip_efficiency": given})
    assert found.roundtrip_efficiency == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("given", "cost"), [(0.04, 0.04), ("0.04", 0.04), ("0 EUR/kWh", 0), ("0.4 SEK/kWh", 0.4)]
)
def test_wear_is_a_price_per_kwh(configuration, given, cost):
    found, _mistakes = configuration.read(GIVEN | {"s2": {"resources": {"EV": {"cycle_cost": given}}}})
    assert found.s2.resources["EV"]["cycle_cost"] == cost


def test_the_price_of_a_peak_may_count_from_the_first_watt_on(configuration):
    found, _mistakes = configuration.read(GIVEN | PEAK | {"site_peak_consumption": "0 kW"})
    assert found.site_peak_consumption == 0


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
        ({"power_capacity": 5000}, "power_capacity: 5000 kW would fill the device within a minute: give a"),
        ({"power_capacity": "0 kW"}, "power_capacity: expected a power above zero"),
        ({"roundtrip_efficiency": 120}, "roundtrip_efficiency: expected an efficiency"),
        ({"roundtrip_efficiency": 0}, "roundtrip_efficiency: expected an efficiency"),
        ({"soc_entity": "battery"}, "soc_entity: expected an entity"),
        ({"soc_entity": "sensor.car.level"}, "soc_entity_unit is missing: sensor.car.level is an attribute"),
        ({"soc_entity_unit": "km"}, "soc_entity_unit: expected one of Wh, kWh, MWh, %"),
        ({"soc_at_end": 11}, "soc_at_end: expected at most soc_max, and not below 0, but got 11 kWh"),
        ({"soc_at_end": "5 km"}, "soc_at_end: expected Wh, kWh, MWh or %, but got 5 km"),
        ({"soc_targets": [{"value": 5}]}, "soc_targets[0].time is missing"),
        (
            {"soc_targets": [{"value": 5, "time": "25:00"}]},
            "soc_targets[0].time: expected a time of the day, such as '07:00'",
        ),
        (
            {"soc_targets": [{"value": "80", "time": "07:00"}]},
            "soc_targets[0].value: expected at most soc_max, and not below 0, but got 80 kWh",
        ),
        (
            {"soc_targets": [{"value": 5, "time": "07:00", "weekdays": ["mo"]}]},
            "soc_targets[0].weekdays: expected days of the week, such as [mon, tue]",
        ),
        ({"minimum_power": "2 kW"}, "minimum_power: expected consumption_capacity or power_capacity too"),
        (
            {"minimum_power": "12 kW", "power_capacity": "11 kW"},
            "minimum_power: expected at most what the device can consume, 11 kW, but got 12 kW",
        ),
        ({"consumption_capacity": "11 kW"}, "consumption_capacity: expected production_capacity too"),
        ({"production_capacity": "0 kW"}, "production_capacity: expected consumption_capacity or power_"),
        (
            {"measurements": [{"entity": "sensor.roof", "sensor": 5, "positive": "up"}]},
            "measurements[0].positive: expected consumption or production, but got 'up'",
        ),
        (
            {"site_consumption_capacity": "0 kW"},
            "site_consumption_capacity: expected a power above zero, such as '10 kW', but got '0 kW'",
        ),
        ({"site_production_capacity": "-1 kW"}, "site_production_capacity: expected a power such as '10 kW'"),
        (
            {"site_power_capacity": "17 kW", "site_consumption_capacity": "20 kW"},
            "site_consumption_capacity: expected at most site_power_capacity, 17 kW, but got 20 kW",
        ),
        (
            {"site_power_capacity": "17 kW", "site_production_capacity": "20 kW"},
            "site_production_capacity: expected at most site_power_capacity, 17 kW, but got 20 kW",
        ),
        (
            {"site_peak_consumption": "2.5 kW"},
            "site_peak_consumption: expected site_peak_consumption_price too",
        ),
        (
            {"site_peak_consumption_price": "3.5 EUR/kW"},
            "site_peak_consumption_price: expected site_peak_consumption too",
        ),
        (
            PEAK | {"site_consumption_capacity": "2 kW"},
            "site_peak_consumption: expected at most what the site can consume, 2 kW, but got 2.5 kW",
        ),
        (
            PEAK | {"site_peak_consumption_price": 3.5},
            "site_peak_consumption_price: expected a price per kW above zero, such as '3.5 EUR/kW', but got",
        ),
        (
            PEAK | {"site_peak_consumption_price": "3.5 EUR/kWh"},
            "site_peak_consumption_price: expected a price per kW above zero",
        ),
        (
            PEAK | {"site_peak_consumption_price": "0 EUR/kW"},
            "site_peak_consumption_price: expected a price per kW above zero",
        ),
        ({"flex_model": ["soc-max"]}, "flex_model: expected FlexMeasures' own fields"),
        ({"s2": "geheim"}, "s2: expected keys and values"),
        ({"s2": {"host": "0.0.0.0"}}, "s2.token: expected a token, which Resource Managers send as a Bearer"),
        ({"s2": {"host": "house.example"}}, "s2.token: expected a token"),
        ({"s2": {"token": ["geheim"]}}, "s2.token: expected a text, in quotes where it is all digits"),
        ({"s2": {"key": "key.pem"}}, "s2.certificate: expected the certificate that belongs to s2.key"),
        ({"s2": {"port": 0}}, "s2.port: expected a port from 1 to 65535, but got 0"),
        ({"s2": {"path": "s2"}}, "s2.path: expected a path such as /s2, but got 's2'"),
        ({"s2": {"control_type": "FRCB"}}, "s2.control_type: expected one of FILL_RATE_BASED_CONTROL"),
        ({"s2": {"enabled": "perhaps"}}, "s2.enabled: expected true or false, but got 'perhaps'"),
        ({"s2": {"limits": {"message": "1 km"}}}, "s2.limits.message: expected a size from 4 KiB to 64 MiB"),
        (
            {"s2": {"limits": {"heartbeat": "-3 s"}}},
            "s2.limits.heartbeat: expected seconds from 1 up to a day",
        ),
        ({"s2": {"limits": {"connection": 3}}}, "s2.limits.connection is not a key of this app"),
        ({"s2": {"resources": {"EV": {"power": 3}}}}, "s2.resources.EV.power is not a key of this app"),
        (
            {"s2": {"resources": {"EV": {"energy_per_fill_level": 0}}}},
            "s2.resources.EV.energy_per_fill_level: expected the energy of one unit of fill level",
        ),
        (
            {"s2": {"resources": {"EV": {"cycle_cost": "0.04 EUR/kW"}}}},
            "s2.resources.EV.cycle_cost: expected a price per kWh such as '0.04 EUR/kWh', not below zero",
        ),
        (
            {"s2": {"resources": {"EV": {"cycle_cost": -0.04}}}},
            "s2.resources.EV.cycle_cost: expected a price per kWh such as '0.04 EUR/kWh', not below zero",
        ),
        (
            {"s2": {"prices": {"gas": "1.35 EUR"}}},
            "s2.prices.gas: expected a price such as 1.35, without a unit",
        ),
        (
            {"s2": {"instruction_lead": "soon"}},
            "s2.instruction_lead: expected seconds from 1 up to a day, such as 60 s, or all, but got 'soon'",
        ),
        ({"s2": {"prices": {"steam": 1}}}, "s2.prices.steam is not a key of this app"),
        ({"s2": {"prices": 1.35}}, "s2.prices: expected keys and values"),
        ({"power_senzor": 2}, "power_senzor is not a key of this app: did you mean power_sensor?"),
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
