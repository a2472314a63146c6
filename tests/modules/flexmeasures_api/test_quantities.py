"""Quantities are read and written in FlexMeasures' form."""

import math

import pytest

import flexmeasures_api.quantities as quantities


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 kWh", (10, "kWh")),
        ("10kWh", (10, "kWh")),
        (" -1.5e3 W ", (-1500, "W")),
        (".5 MW", (0.5, "MW")),
        ("95 %", (95, "%")),
        (3, (3, None)),
        ("7", (7, None)),
    ],
)
def test_reads_a_number_and_its_unit(text, expected):
    assert quantities.parse(text) == expected


@pytest.mark.parametrize("text", ["", "kWh", "1,5 kWh", "ten", "nan", math.nan, math.inf, True, None, [1]])
def test_refuses_what_is_no_finite_number(text):
    with pytest.raises(ValueError):
        quantities.parse(text)


@pytest.mark.parametrize(
    ("quantity", "unit", "full", "watt_hours"),
    [
        (5, "kWh", None, 5000),
        ("5 Wh", "kWh", None, 5),
        ("0.002 MWh", "kWh", None, 2000),
        ("80 %", "kWh", 10_000, 8000),
        (1, "MWh", None, 1_000_000),
    ],
)
def test_energy_is_in_watt_hours(quantity, unit, full, watt_hours):
    assert quantities.energy(quantity, unit, full) == pytest.approx(watt_hours)


@pytest.mark.parametrize(("quantity", "watts"), [("10 kW", 10_000), ("1 MW", 1e6), ("250 W", 250), (2, 2000)])
def test_power_is_in_watts(quantity, watts):
    assert quantities.power(quantity) == pytest.approx(watts)


def test_a_quantity_of_another_kind_is_refused():
    for refused in (lambda: quantities.energy("5 kW"), lambda: quantities.energy("50 %")):
        with pytest.raises(ValueError):
            refused()
    with pytest.raises(ValueError):
        quantities.power("5 kWh")
    with pytest.raises(ValueError):
        quantities.ratio("5 kWh")


def test_writes_without_the_noise_of_binary_fractions():
    assert quantities.as_energy(100 * 1.1) == "0.11 kWh"
    assert quantities.as_energy(0) == "0.0 kWh"
    assert quantities.as_power(10_000) == "10.0 kW"
    assert quantities.as_percentage(0.57) == "57.0 %"


@pytest.mark.parametrize(("unit", "factor"), [("EUR/kWh", 1), ("EUR/MWh", 0.001), ("ct/Wh", 1000)])
def test_a_price_is_turned_into_one_per_kilowatt_hour(unit, factor):
    assert quantities.per_kilowatt_hour(unit) == pytest.approx(factor)


@pytest.mark.parametrize("unit", ["kWh", "EUR", "EUR/m3", ""])
def test_what_is_no_price_of_energy_is_refused(unit):
    with pytest.raises(ValueError):
        quantities.per_kilowatt_hour(unit)


@pytest.mark.parametrize(
    ("text", "price", "written"),
    [("3.5 EUR/kW", 3.5, "3.5 EUR/kW"), ("260EUR/MW", 0.26, "0.26 EUR/kW"), ("1e-3 EUR/W", 1, "1.0 EUR/kW")],
)
def test_a_price_of_power_is_one_per_kilowatt(text, price, written):
    found = quantities.power_price(text)
    assert (found.per_kilowatt, found.currency) == (pytest.approx(price), "EUR")
    assert quantities.as_power_price(found) == written


@pytest.mark.parametrize(
    "text", ["3.5", 3.5, "EUR/kW", "3.5 /kW", "3.5 EUR/kWh", "3.5 EUR", "1e400 EUR/kW", "3.5 EUR/kW/h", None]
)
def test_what_is_no_price_of_power_is_refused(text):
    with pytest.raises(ValueError):
        quantities.power_price(text)
