"""Commodities and their quantities, as S2 names them."""

from collections.abc import Mapping

ELECTRIC = "ELECTRIC.POWER."
ALL_PHASES = "ELECTRIC.POWER.3_PHASE_SYMMETRIC"
"""The power of all phases together, where a device loads them equally."""
COMMODITIES = {"ELECTRIC": "ELECTRICITY", "NATURAL_GAS": "GAS"}
"""The commodity by the first word of a quantity, where it is another word."""
TARIFFS = {
    "NATURAL_GAS.FLOW_RATE": ("GAS", 3.6),
    "HYDROGEN.FLOW_RATE": ("HYDROGEN", 3.6),
    "HEAT.THERMAL_POWER": ("HEAT", 0.001),
    "OIL.FLOW_RATE": ("OIL", 1.0),
}
"""The commodity a quantity is billed as, and the amount (m3, kg, kWh, litres) that 1 of it is in an hour."""


@pyscript_compile
def commodity_of(quantity: str) -> str:
    """Return the S2 Commodity that a CommodityQuantity belongs to."""
    first_word = quantity.split(".", maxsplit=1)[0]
    return COMMODITIES.get(first_word, first_word)


@pyscript_compile
def electric(powers: Mapping[str, float]) -> float | None:
    """Return the total electric power (W) of powers by CommodityQuantity, or None if none is electric.

    The power of all phases together takes precedence over those of single phases.
    """
    if ALL_PHASES in powers:
        return powers[ALL_PHASES]
    phases = [power for quantity, power in powers.items() if quantity.startswith(ELECTRIC)]
    return sum(phases) if phases else None
