"""What a Resource Manager forecasts of its own power.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import flexmeasures_s2.commodities as commodities

AGES = 30 * 86_400.0
"""Longer than any plan (s): what takes longer takes this long."""
MOST_WATTS = 1e12
"""What is more is no power."""


@pyscript_compile
def expected(element):
    """Return the electric power (W) that an element expects, or None where it says nothing of it."""
    values = {each.commodity_quantity.value: each.value_expected for each in element.power_values}
    power = commodities.electric(values)
    return power if power is not None and abs(power) < MOST_WATTS else None


@pyscript_compile
def pieces(message):
    """Return (start, end, power (W)) of each element that tells of electric power, in order."""
    found, end = [], message.start_time.timestamp()
    for element in message.elements:
        start, end = end, end + min(element.duration.root / 1000, AGES)
        power = expected(element)
        if power is not None and end > start:
            found.append((start, end, power))
    return found


@pyscript_compile
def mean(parts, start, end):
    """Return the mean power (W) of pieces in some time, 0 where there is none."""
    if end <= start:
        return 0.0
    inside = [(max(begin, start), min(until, end), power) for begin, until, power in parts]
    return sum((until - begin) * power for begin, until, power in inside if until > begin) / (end - start)


@pyscript_compile
def power(message, start, end):
    """Return the mean power (W) that a PowerForecast expects in some time, 0 where it says nothing."""
    return mean(pieces(message), start, end)
