"""What counts how much: violations are paid for, so that there is always a plan.

Each tier costs a multiple of what the next could ever save, so that none is traded for cost: first no mode
for an abnormal condition, then the site's limits, a device's range, its targets or demand, the schedule that
is followed, cost, and at last fewer and earlier changes. A multiple of 10 apart keeps the program's numbers
within what HiGHS can tell apart.
"""

from dataclasses import dataclass

ABNORMAL, SITE_LIMIT, RANGE, TARGET, SCHEDULE = 30_000.0, 10_000.0, 1_000.0, 100.0, 10.0
"""What a kWh (or an hour) of each violation costs, in multiples of the greatest price."""
MIN_PRICE = 0.1
"""The least price (currency per kWh) that violations are multiples of, where all prices are lower."""


@dataclass(frozen=True, kw_only=True)
class _Priorities:
    """What a kWh of each violation costs (currency)."""

    abnormal: float
    site_limit: float
    range: float
    target: float
    schedule: float


Priorities = _Priorities


@pyscript_compile
def scaled(greatest_price: float) -> Priorities:
    """Return the Priorities where no kWh costs more than a price (currency)."""
    price = max(greatest_price, MIN_PRICE)
    return Priorities(
        abnormal=ABNORMAL * price,
        site_limit=SITE_LIMIT * price,
        range=RANGE * price,
        target=TARGET * price,
        schedule=SCHEDULE * price,
    )
