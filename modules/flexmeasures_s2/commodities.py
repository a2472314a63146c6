"""Commodities and their quantities, as S2 names them."""

ELECTRIC = "ELECTRIC.POWER."
ALL_PHASES = "ELECTRIC.POWER.3_PHASE_SYMMETRIC"
"""The power of all phases together, where a device loads them alike."""
KINDS = {"ELECTRIC": "ELECTRICITY", "NATURAL_GAS": "GAS"}
TARIFFS = {
    "NATURAL_GAS.FLOW_RATE": ("GAS", 3.6),
    "HYDROGEN.FLOW_RATE": ("HYDROGEN", 3.6),
    "HEAT.THERMAL_POWER": ("HEAT", 0.001),
    "OIL.FLOW_RATE": ("OIL", 1.0),
}
"""The commodity that a quantity is paid as, and how much of it (m3, kg, kWh, litres) one is in an hour."""


@pyscript_compile
def commodity_of(quantity):
    """Return the commodity of a commodity quantity."""
    kind = quantity.split(".")[0]
    return KINDS.get(kind, kind)


@pyscript_compile
def electric(powers):
    """Return the electric power in all (W) of powers by their commodity quantity, or None without any.

    What is told of all phases together prevails over what is told of one.
    """
    if ALL_PHASES in powers:
        return powers[ALL_PHASES]
    found = [value for quantity, value in powers.items() if quantity.startswith(ELECTRIC)]
    return sum(found) if found else None
