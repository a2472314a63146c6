"""Quantities as FlexMeasures writes them ("10 kWh", "95 %"), and our own unit system (W, Wh)."""

import math
import re
from dataclasses import dataclass

from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

POWER_UNITS = ("W", "kW", "MW")
ENERGY_UNITS = ("Wh", "kWh", "MWh")
MAX_NUMBER = 1e15
MAX_LENGTH = 64
"""A larger number, or a longer text of a quantity (characters), is a mistake."""
QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|[A-Za-z]+)?\s*")
PRICE = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\s/]+)/([A-Za-z]+)\s*")


@dataclass(frozen=True, kw_only=True)
class _PowerPrice:
    """A price per kW of peak power, in a currency such as EUR."""

    per_kilowatt: float
    currency: str


PowerPrice = _PowerPrice


@pyscript_compile
def parse(text: object) -> tuple[float, str | None]:
    """Return (number, unit or None) of "10 kWh", "95 %" or 3; raise ValueError for anything else."""
    if isinstance(text, bool):
        raise ValueError("expected a number")
    if isinstance(text, (int, float)):
        number, unit = float(text) if abs(text) <= MAX_NUMBER else math.inf, None
    else:
        match = QUANTITY.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_LENGTH else None
        if not match:
            raise ValueError("expected a number, with or without a unit")
        number, unit = float(match[1]), match[2]
    if not abs(number) <= MAX_NUMBER:
        raise ValueError("expected a finite number of at most 1e15")
    return number, unit


@pyscript_compile
def energy(quantity: object, unit: str = "kWh", full_wh: float | None = None) -> float:
    """Return a quantity in Wh; `unit` is that of a bare number, `full_wh` what "100 %" means.

    Raise ValueError for anything else.
    """
    number, own_unit = parse(quantity)
    if own_unit == "%" and full_wh is not None:
        return number / 100 * full_wh
    if (own_unit or unit) not in ENERGY_UNITS:
        raise ValueError(f"expected {', '.join(ENERGY_UNITS)}{' or %' if full_wh is not None else ''}")
    return EnergyConverter.convert(number, own_unit or unit, "Wh")


@pyscript_compile
def power(quantity: object, unit: str = "kW") -> float:
    """Return a quantity in W; `unit` is that of a bare number. Raise ValueError for anything else."""
    number, own_unit = parse(quantity)
    if (own_unit or unit) not in POWER_UNITS:
        raise ValueError(f"expected {', '.join(POWER_UNITS)}")
    return PowerConverter.convert(number, own_unit or unit, "W")


@pyscript_compile
def ratio(quantity: object) -> float:
    """Return "95 %" as 0.95; a bare number is a ratio already. Raise ValueError for anything else."""
    number, own_unit = parse(quantity)
    if own_unit not in (None, "%"):
        raise ValueError("expected a ratio such as 0.95, or a percentage such as 95 %")
    return number / 100 if own_unit == "%" else number


@pyscript_compile
def power_price(text: str) -> PowerPrice:
    """Return the PowerPrice of "3.5 EUR/kW" or "3500 EUR/MW"; raise ValueError for anything else."""
    number, currency, unit = parse_price(text)
    if unit not in POWER_UNITS:
        raise ValueError(f"expected a price per {', '.join(POWER_UNITS)}")
    return PowerPrice(per_kilowatt=number / PowerConverter.convert(1, unit, "kW"), currency=currency)


@pyscript_compile
def energy_price(text: str) -> tuple[float, str]:
    """Return (price per kWh, currency) of "0.3 EUR/kWh"; raise ValueError for anything else."""
    number, currency, unit = parse_price(text)
    return number * per_kilowatt_hour(f"{currency}/{unit}"), currency


@pyscript_compile
def parse_price(text: str) -> tuple[float, str, str]:
    """Return (number, currency, unit) of "3.5 EUR/kW"; raise ValueError for anything else."""
    match = PRICE.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_LENGTH else None
    if not match or abs(float(match[1])) > MAX_NUMBER:
        raise ValueError("expected a number, a currency and a unit")
    return float(match[1]), match[2], match[3]


@pyscript_compile
def as_power_price(price: PowerPrice) -> str:
    """Write a PowerPrice as FlexMeasures reads it."""
    return f"{rounded(price.per_kilowatt)} {price.currency}/kW"


@pyscript_compile
def as_energy(watt_hours: float) -> str:
    """Write Wh as FlexMeasures reads it."""
    return f"{rounded(watt_hours / 1000)} kWh"


@pyscript_compile
def as_power(watts: float) -> str:
    """Write W as FlexMeasures reads it."""
    return f"{rounded(watts / 1000)} kW"


@pyscript_compile
def as_percentage(fraction: float) -> str:
    """Write a ratio as FlexMeasures reads it."""
    return f"{rounded(fraction * 100)} %"


@pyscript_compile
def rounded(number: float) -> float:
    """Return a number at 9 decimals, without the noise of binary fractions, and 0.0 for -0.0."""
    return round(number, 9) + 0.0


@pyscript_compile
def per_kilowatt_hour(unit: str) -> float:
    """Return the factor from a price in a unit such as EUR/MWh to one per kWh; raise ValueError."""
    _currency, slash, energy_unit = unit.rpartition("/")
    if not slash or energy_unit not in ENERGY_UNITS:
        raise ValueError(f"expected a price such as EUR/kWh, not {unit}")
    return 1 / EnergyConverter.convert(1, energy_unit, "kWh")
