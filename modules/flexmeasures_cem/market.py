"""What power costs a site, interval by interval: prices, what else is consumed there, and its limits.

Moments are seconds since 1970, power is W of electricity, consumption positive, prices are currency per kWh.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import flexmeasures_s2.commodities as commodities

Tariffs = Mapping[str, float]
"""The price (currency per unit) of each commodity but electricity."""


@dataclass(frozen=True, kw_only=True)
class _Connection:
    """A site's connection to the grid (W), and what a peak costs there.

    `power_capacity` limits both directions, the other capacities one each; None where there is no such limit.
    `peak_price` (currency per kW) is paid once, for the greatest consumption beyond `peak_consumption`.
    """

    power_capacity: float | None = None
    consumption_capacity: float | None = None
    production_capacity: float | None = None
    peak_consumption: float = 0.0
    peak_price: float = 0.0

    @property
    @pyscript_compile
    def max_consumption(self) -> float:
        """The greatest power (W) that the site may consume, math.inf without a limit."""
        return least(self.power_capacity, self.consumption_capacity)

    @property
    @pyscript_compile
    def max_production(self) -> float:
        """The greatest power (W) that the site may produce, math.inf without a limit."""
        return least(self.power_capacity, self.production_capacity)

    @property
    @pyscript_compile
    def couples_devices(self) -> bool:
        """Whether what one device may do, or costs, depends on the others: by a limit, or a peak's price."""
        is_limited = math.isfinite(min(self.max_consumption, self.max_production))
        return is_limited or self.peak_price > 0


Connection = _Connection


@dataclass(frozen=True, kw_only=True)
class _StorageTerms:
    """What is configured of a device's storage.

    `cycle_cost` is what a kWh that goes through it costs in wear (currency), `energy_per_fill_level_j` what a
    unit of its fill level is worth (J), or None where that follows from its powers and fill rates.
    """

    cycle_cost: float = 0.0
    energy_per_fill_level_j: float | None = None


StorageTerms = _StorageTerms
AS_DESCRIBED = StorageTerms()


@dataclass(frozen=True)
class _Interval:
    """Some time in which prices and loads stay the same.

    `consumption_price` is what a kWh costs that the site takes from the grid, `production_price` what one
    yields that it feeds in. `load` is the power (W) of all else at the site, `consumption_capacity` and
    `production_capacity` are the greatest powers (W) of the site in each direction. As much production as
    `curtailable` (W) is not made where that costs.
    """

    start: float
    end: float
    consumption_price: float
    production_price: float
    load: float = 0.0
    consumption_capacity: float = math.inf
    production_capacity: float = math.inf
    curtailable: float = 0.0


Interval = _Interval


@pyscript_compile
def least(*capacities: float | None) -> float:
    """Return the least of some capacities (W), math.inf where there is none."""
    return min([capacity for capacity in capacities if capacity is not None], default=math.inf)


@pyscript_compile
def cost(interval: Interval, power: float, seconds: float | None = None) -> float:
    """Return what a device's power (W) costs the site (currency), in the whole interval or some seconds."""
    seconds = interval.end - interval.start if seconds is None else seconds
    hourly = grid_cost(interval, interval.load + power) - grid_cost(interval, interval.load)
    return hourly * seconds / 3600


@pyscript_compile
def grid_cost(interval: Interval, power: float) -> float:
    """Return what the site pays in an hour (currency) for its power (W), of which some may be curtailed."""
    if interval.production_price < 0 and interval.curtailable:
        curtailed = power + interval.curtailable
        power = curtailed if interval.consumption_price < 0 else min(curtailed, max(power, 0.0))
    price = interval.consumption_price if power > 0 else interval.production_price
    return price * power / 1000


@pyscript_compile
def other_cost(quantity: str, value: float, tariffs: Tariffs) -> float:
    """Return what a CommodityQuantity that is not electric costs in an hour (currency), 0 without a price."""
    commodity, units = commodities.TARIFFS[quantity]
    return tariffs.get(commodity, 0.0) * units * value


@pyscript_compile
def overlapping(market: Iterable[Interval], start: float, end: float) -> list[tuple[Interval, float, float]]:
    """Return (interval, start, end) of what each Interval of a market has between two moments."""
    return [
        (interval, max(interval.start, start), min(interval.end, end))
        for interval in market
        if interval.start < end and interval.end > start
    ]
