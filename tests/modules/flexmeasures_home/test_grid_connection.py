"""The connection to the grid: what is configured is what the plan keeps to and what FlexMeasures is told."""

from types import SimpleNamespace

import flexmeasures_home.grid_connection as grid_connection
from flexmeasures_api.quantities import PowerPrice
from flexmeasures_cem.market import Connection

NOTHING = {
    "site_power_capacity": None,
    "site_consumption_capacity": None,
    "site_production_capacity": None,
    "site_peak_consumption": None,
    "site_peak_consumption_price": None,
}


def test_what_is_not_configured_limits_nothing():
    given = SimpleNamespace(**NOTHING)
    assert grid_connection.of(given) == Connection()
    assert grid_connection.fields(given) == {}
    grid_connection.refuse_other_currency(given, SimpleNamespace(currency="EUR"))


def test_a_site_that_may_not_feed_in_says_so():
    given = SimpleNamespace(**NOTHING | {"site_production_capacity": 0.0})
    assert grid_connection.of(given) == Connection(production_capacity=0.0)
    assert grid_connection.fields(given) == {"site-production-capacity": "0.0 kW"}


def test_a_peak_has_its_price():
    price = PowerPrice(per_kilowatt=3.5, currency="EUR")
    peak = {"site_peak_consumption": 2500.0, "site_peak_consumption_price": price}
    given = SimpleNamespace(**NOTHING | peak)
    assert grid_connection.of(given) == Connection(peak_consumption=2500.0, peak_price=3.5)
    assert grid_connection.fields(given) == {
        "site-peak-consumption": "2.5 kW",
        "site-peak-consumption-price": "3.5 EUR/kW",
    }
