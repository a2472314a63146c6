"""What a Resource Manager forecasts of its own power.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

from collections.abc import Iterable

from s2python.common import PowerForecast, PowerForecastElement

import flexmeasures_s2.commodities as commodities

MAX_SECONDS = 30 * 86_400.0
"""Longer than any plan: what takes longer takes this long."""
MAX_POWER_W = 1e12
"""What is more is no power."""
Piece = tuple[float, float, float]
"""From when until when a power (W) is expected: start, end, power."""


@pyscript_compile
def expected(element: PowerForecastElement) -> float | None:
    """Return the electric power (W) that an element expects, or None where it has none."""
    powers = {value.commodity_quantity.value: value.value_expected for value in element.power_values}
    power = commodities.electric(powers)
    return power if power is not None and abs(power) < MAX_POWER_W else None


@pyscript_compile
def pieces(forecast: PowerForecast) -> list[Piece]:
    """Return a Piece for each element of a PowerForecast that has an electric power, in order."""
    listed: list[Piece] = []
    end = forecast.start_time.timestamp()
    for element in forecast.elements:
        start, end = end, end + min(element.duration.root / 1000, MAX_SECONDS)
        power = expected(element)
        if power is not None and end > start:
            listed.append((start, end, power))
    return listed


@pyscript_compile
def mean(parts: Iterable[Piece], start: float, end: float) -> float:
    """Return the mean power (W) of Pieces between two moments; it is 0 where there is none."""
    if end <= start:
        return 0.0
    inside = [(max(begin, start), min(until, end), power) for begin, until, power in parts]
    return sum((until - begin) * power for begin, until, power in inside if until > begin) / (end - start)


@pyscript_compile
def power(forecast: PowerForecast, start: float, end: float) -> float:
    """Return the mean power (W) that a PowerForecast expects between two moments."""
    return mean(pieces(forecast), start, end)
