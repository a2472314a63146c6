"""What is expected of a site: prices, and the power of each device there, sampled over the time to plan.

Moments are seconds since 1970, power is W of electricity, consumption positive, prices are currency per kWh.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
from flexmeasures_api.prices import PriceInterval

DAY = 86_400.0
SHORTEST = 1.0
"""Pieces that are shorter (s) do not count."""
NOMINAL_PRICE = 0.25
"""What a kWh is taken to cost while no price is known."""


@dataclass
class _Outlook:
    """Samples from `start` on, `step` (s) apart: (consumption price, production price), and powers.

    The first is of what is left of it after `begin`. `powers` has (mean, greatest) of each device by a
    key of its own, `total` and `most` are their sums.
    """

    start: float
    step: float
    prices: list[tuple[float, float]]
    total: list[float]
    most: list[float]
    begin: float
    powers: dict[Any, tuple[list[float], list[float]]] = field(default_factory=dict)


Outlook = _Outlook


@pyscript_compile
def new(
    known_prices: list[PriceInterval],
    start: float,
    end: float,
    step: float,
    begin: float | None = None,
) -> Outlook:
    """Return an Outlook without any power.

    `known_prices` are flexmeasures_api.prices.PriceIntervals, in order and without a gap.
    """
    count = max(1, math.ceil((end - start) / step))
    begin = start if begin is None else min(max(begin, start), start + step - 1.0)
    return Outlook(start, step, prices(known_prices, start, step, count), [0.0] * count, [0.0] * count, begin)


@pyscript_compile
def prices(known: list[PriceInterval], start: float, step: float, count: int) -> list[tuple[float, float]]:
    """Return the prices at each sample: beyond those given, those of the day before, or else the nearest."""
    if not known:
        return [(NOMINAL_PRICE, NOMINAL_PRICE)] * count
    starts = [interval.start for interval in known]
    found = []
    for place in range(count):
        moment = start + place * step
        while moment >= known[-1].end and moment - DAY >= starts[0]:
            moment -= DAY
        interval = known[max(bisect_right(starts, moment) - 1, 0)]
        found.append((interval.consumption, interval.production))
    return found


@pyscript_compile
def put(outlook: Outlook, who: Any, powers: list[float], most: list[float] | None = None) -> None:
    """Take in what a device is expected to have at each sample, its mean and its greatest power."""
    none = [0.0] * len(outlook.total)
    before, most_before = outlook.powers.get(who, (none, none))
    most = powers if most is None else most
    outlook.powers[who] = powers, most
    outlook.total = [total - old + new for total, old, new in zip(outlook.total, before, powers, strict=True)]
    outlook.most = [
        total - old + new for total, old, new in zip(outlook.most, most_before, most, strict=True)
    ]


@pyscript_compile
def sampled(outlook: Outlook, power: Callable[[float, float], float]) -> list[float]:
    """Return a power at each sample; `power(start, length)` is its mean in some time."""
    return [power(outlook.start + place * outlook.step, outlook.step) for place in range(len(outlook.total))]


@pyscript_compile
def of_pieces(outlook: Outlook, pieces: list[plans.PowerPiece]) -> tuple[list[float], list[float]]:
    """Return means and greatest powers at each sample, of the plans.PowerPieces of a plan."""
    energies = [0.0] * len(outlook.total)
    greatest: list[float | None] = [None] * len(outlook.total)
    for piece in pieces:
        start, end, power = piece.start, piece.end, piece.power_w
        if end - start < SHORTEST or end <= outlook.begin:
            continue
        for sample in samples(outlook, start, end):
            begin = max(outlook.start + sample * outlook.step, outlook.begin)
            length = min(end, outlook.start + (sample + 1) * outlook.step) - max(start, begin)
            if length > 0:
                energies[sample] += power * length
                most = greatest[sample]
                greatest[sample] = power if most is None else max(most, power)
    means = [energy / outlook.step for energy in energies]
    means[0] = energies[0] / (outlook.start + outlook.step - outlook.begin)
    return means, [mean if most is None else most for mean, most in zip(means, greatest, strict=True)]


@pyscript_compile
def samples(outlook: Outlook, start: float, end: float) -> range:
    """Return the numbers of the samples that a time has part in, or of the nearest."""
    last = len(outlook.total) - 1
    first = min(max(int((start - outlook.start) // outlook.step), 0), last)
    return range(first, min(max(math.ceil((end - outlook.start) / outlook.step), first + 1), last + 1))


@pyscript_compile
def market(
    outlook: Outlook, who: Any, spans: list[tuple[float, float]], connection: markets.Connection
) -> list[markets.Interval]:
    """Return a market.Interval for each (start, end) of a device, with the load of all others.

    The limits of the Connection are lower by how far the load may exceed its mean.
    """
    none = [0.0] * len(outlook.total)
    own, own_most = outlook.powers.get(who, (none, none))
    found = []
    for start, end in spans:
        inside = samples(outlook, start, end)
        loads = [outlook.total[each] - own[each] for each in inside]
        most = max([outlook.most[each] - own_most[each] for each in inside])
        tariffs = [outlook.prices[each] for each in inside]
        load = fmean(loads)
        peak = max(most - load, 0.0)
        found.append(
            markets.Interval(
                start,
                end,
                fmean([each[0] for each in tariffs]),
                fmean([each[1] for each in tariffs]),
                load,
                max(connection.max_consumption - peak, 0.0),
                max(connection.max_production - peak, 0.0),
            )
        )
    return found
