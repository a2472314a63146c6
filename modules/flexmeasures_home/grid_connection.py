"""The connection to the grid as configured: for the local plans, and for FlexMeasures."""

import flexmeasures_api.errors as errors
import flexmeasures_api.quantities as quantities
import flexmeasures_cem.market as markets
from flexmeasures_api.prices import Tariff
from flexmeasures_home.configuration import Configuration

FIELDS = {
    "power_capacity": "site-power-capacity",
    "consumption_capacity": "site-consumption-capacity",
    "production_capacity": "site-production-capacity",
}
"""The flex-context's field of each capacity of a Connection."""


@pyscript_compile
def of(given: Configuration) -> markets.Connection:
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
def fields(given: Configuration) -> dict[str, str]:
    """Return the flex-context's fields of the connection of a Configuration."""
    connection = of(given)
    capacities = {name: getattr(connection, key) for key, name in FIELDS.items()}
    context = {
        name: quantities.as_power(power_w) for name, power_w in capacities.items() if power_w is not None
    }
    if given.site_peak_consumption_price:
        context["site-peak-consumption"] = quantities.as_power(connection.peak_consumption)
        context["site-peak-consumption-price"] = quantities.as_power_price(given.site_peak_consumption_price)
    return context


@pyscript_compile
def refuse_other_currency(given: Configuration, tariff: Tariff | None) -> None:
    """Raise InvalidProblem if the price of a peak is in another currency than that of energy."""
    price = given.site_peak_consumption_price
    if price and tariff and price.currency != tariff.currency:
        raise errors.InvalidProblem(
            f"site_peak_consumption_price is in {price.currency}, and the price of energy in "
            f"{tariff.currency}: give one currency"
        )
