"""The connection to the grid as it is configured: for the plans that are made here, and for FlexMeasures."""

from typing import Any

import flexmeasures_api.errors as errors
import flexmeasures_api.quantities as quantities
import flexmeasures_cem.market as markets

FIELDS = {
    "power_capacity": "site-power-capacity",
    "consumption_capacity": "site-consumption-capacity",
    "production_capacity": "site-production-capacity",
}
"""The flex-context's field of each capacity of a Connection."""


@pyscript_compile
def of(given: Any) -> markets.Connection:
    """Return the Connection of a Configuration."""
    price = given.site_peak_consumption_price
    return markets.Connection(
        power_capacity=given.site_power_capacity,
        consumption_capacity=given.site_consumption_capacity,
        production_capacity=given.site_production_capacity,
        peak_consumption=given.site_peak_consumption or 0.0,
        peak_price=price.per_kilowatt if price else 0.0,
    )


@pyscript_compile
def fields(given: Any) -> dict[str, str]:
    """Return the flex-context's fields of the connection of a Configuration."""
    connection = of(given)
    capacities = {name: getattr(connection, key) for key, name in FIELDS.items()}
    found = {name: quantities.as_power(watts) for name, watts in capacities.items() if watts is not None}
    if given.site_peak_consumption_price:
        found["site-peak-consumption"] = quantities.as_power(connection.peak_consumption)
        found["site-peak-consumption-price"] = quantities.as_power_price(given.site_peak_consumption_price)
    return found


@pyscript_compile
def refuse_other_currency(given: Any, tariff: Any) -> None:
    """Raise InvalidProblem where a peak costs another currency than energy does (a Tariff, or None)."""
    price = given.site_peak_consumption_price
    if price and tariff and price.currency != tariff.currency:
        raise errors.InvalidProblem(
            f"site_peak_consumption_price is in {price.currency}, and the price of energy in "
            f"{tariff.currency}: give one currency"
        )
