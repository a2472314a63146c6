"""What power costs a site, interval by interval: prices, what else is consumed there, and its limit.

Moments are seconds since 1970, power is W of electricity, consumption positive, prices are currency per kWh.
"""

import math
from dataclasses import dataclass

import flexmeasures_s2.commodities as commodities


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(frozen=True)
    class Interval:
        """Some time in which prices and loads stay the same.

        `consumption_price` is what a kWh costs that the site takes from the grid, `production_price` what one
        yields that it feeds in. `load` is the power (W) of all else at the site, `limit` the greatest power
        (W) of the site, in either direction. As much production as `curtailable` (W) is not made where that
        costs.
        """

        start: float
        end: float
        consumption_price: float
        production_price: float
        load: float = 0.0
        limit: float = math.inf
        curtailable: float = 0.0

    return Interval


Interval = record()


@pyscript_compile
def cost(interval, power, seconds=None):
    """Return what a device's power costs the site (currency), in the whole interval or so many seconds."""
    seconds = interval.end - interval.start if seconds is None else seconds
    hourly = grid_cost(interval, interval.load + power) - grid_cost(interval, interval.load)
    return hourly * seconds / 3600


@pyscript_compile
def grid_cost(interval, power):
    """Return what the site pays in an hour (currency) for its power, of which some may be curtailed."""
    if interval.production_price < 0 and interval.curtailable:
        curtailed = power + interval.curtailable
        power = curtailed if interval.consumption_price < 0 else min(curtailed, max(power, 0.0))
    price = interval.consumption_price if power > 0 else interval.production_price
    return price * power / 1000


@pyscript_compile
def slopes(interval):
    """Return (the site's powers at which its price per kWh changes, the prices below, between and above)."""
    low, high = interval.production_price, interval.consumption_price
    if low < 0 and interval.curtailable:
        return [-interval.curtailable, 0.0], [low, min(high, 0.0), high]
    return [0.0], [low, high]


@pyscript_compile
def other_cost(quantity, value, tariffs):
    """Return what another commodity costs in an hour (currency), 0 where its price is not known."""
    commodity, units = commodities.TARIFFS[quantity]
    return tariffs.get(commodity, 0.0) * units * value


@pyscript_compile
def excess(interval, power):
    """Return how far (W) a device's power makes the site exceed its limit, beyond what the load does."""
    return max(abs(interval.load + power) - max(interval.limit, abs(interval.load)), 0.0)


@pyscript_compile
def overlapping(market, start, end):
    """Return (interval, begin, until) for each interval of a market that a time has part in."""
    return [
        (each, max(each.start, start), min(each.end, end))
        for each in market
        if each.start < end and each.end > start
    ]
