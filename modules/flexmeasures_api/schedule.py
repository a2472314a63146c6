"""A schedule: FlexMeasures' answer for one power sensor, and what follows from it."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import isodate

import flexmeasures_api.quantities as quantities
from flexmeasures_api.flexible_devices import SocEvent

HOUR = timedelta(hours=1)
SOC_TOLERANCE = 0.001
"""A state of charge this close to a target (part of the target, or Wh if that is more) reaches it."""
PENALTY = re.compile(r"\b(breach|breaches|soc minima|soc maxima|soc targets)\b")
"""In the name of a commitment cost: a violation that is priced, such as "all soc minima", not money."""


@dataclass(kw_only=True)
class _Schedule:
    """Values per interval, consumption positive; None for an interval without one.

    `unit` is the user's (W, kW, MW: mean power; Wh, kWh, MWh: energy of the interval). `soc` is the expected
    state of charge in `soc_unit` at each interval's start and, last, at the schedule's end; None where only
    the server can know it. `missed_targets` has the `field`, `datetime`, `asked` and `reached` (`soc_unit`)
    of each. `cost` is in the currency of the prices, which are known up to `prices_known_until`, but for
    gaps; `assumed_prices` has the [start, end] (s since 1970) of each time without. `warnings` are sentences
    for the user.
    """

    start: datetime
    resolution: timedelta
    unit: str
    values: list[float | None]
    soc_unit: str
    soc: list[float] | None
    missed_targets: list[dict[str, Any]]
    cost: float | None
    updated_at: datetime
    prices_known_until: datetime | None = None
    assumed_prices: list[list[float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    @pyscript_compile
    def end(self) -> datetime:
        """Return when the last interval ends."""
        return self.start + len(self.values) * self.resolution

    @property
    @pyscript_compile
    def starts(self) -> list[datetime]:
        """Return when each interval starts."""
        return [self.start + step * self.resolution for step in range(len(self.values))]

    @property
    @pyscript_compile
    def powers_w(self) -> list[float]:
        """Return the mean power of each interval; one without a value counts as 0."""
        if self.unit in quantities.ENERGY_UNITS:
            factor = quantities.energy(1, self.unit) / (self.resolution / HOUR)
        else:
            factor = quantities.power(1, self.unit)
        return [(value or 0.0) * factor for value in self.values]

    @pyscript_compile
    def covers(self, moment: datetime) -> bool:
        """Tell whether the moment lies within the schedule."""
        return self.start <= moment < self.end

    @pyscript_compile
    def value_at(self, moment: datetime) -> float | None:
        """Return the value of the interval that contains the moment, or None."""
        if not self.covers(moment):
            return None
        return self.values[(moment - self.start) // self.resolution]

    @pyscript_compile
    def interval_start(self, moment: datetime) -> datetime:
        """Return the start of the interval that contains the moment."""
        return self.start + (moment - self.start) // self.resolution * self.resolution

    @pyscript_compile
    def next_boundary(self, moment: datetime) -> datetime | None:
        """Return when the value changes next: the next interval's start, or the schedule's end; else None."""
        if moment < self.start:
            return self.start
        if moment < self.end:
            return self.interval_start(moment) + self.resolution
        return None


Schedule = _Schedule


@pyscript_compile
def from_answer(answer: Mapping[str, Any], *, unit: str, now: datetime, soc_unit: str) -> Schedule:
    """Return the schedule of an answer (`start`, `duration`, `unit`, `values`), which is in a unit of power.

    Raise AttributeError, ArithmeticError, TypeError or ValueError for an answer in another form.
    """
    values = [None if value is None or math.isnan(value) else value for value in answer["values"]]
    resolution = isodate.parse_duration(answer["duration"]) / len(values)
    if resolution <= timedelta(0):
        raise ValueError(f"a duration of {answer['duration']}")
    return Schedule(
        start=datetime.fromisoformat(answer["start"]).astimezone(UTC),
        resolution=resolution,
        unit=unit,
        values=[in_unit(value, answer["unit"], unit, resolution) for value in values],
        soc_unit=soc_unit,
        soc=None,
        missed_targets=[],
        cost=cost(answer),
        updated_at=now,
    )


@pyscript_compile
def in_unit(value: float | None, answer_unit: str, unit: str, resolution: timedelta) -> float | None:
    """Convert the mean power of an interval to the user's unit; energy is that of the whole interval."""
    if value is None or unit == answer_unit:
        return value
    power_w = quantities.power(value, answer_unit)
    if unit in quantities.ENERGY_UNITS:
        return quantities.rounded(power_w * (resolution / HOUR) / quantities.energy(1, unit))
    return quantities.rounded(power_w / quantities.power(1, unit))


@pyscript_compile
def cost(answer: Mapping[str, Any]) -> float | None:
    """Return the cost of the schedule in the server's currency, without penalties; None if not reported."""
    costs = (answer.get("scheduler_info") or {}).get("commitment_costs")
    if not costs:
        return None
    return quantities.rounded(sum([cost for name, cost in costs.items() if not PENALTY.search(name)]))


@pyscript_compile
def expected_soc(schedule: Schedule, flex_model: Mapping[str, Any]) -> list[float] | None:
    """Return the state of charge (Wh) at each interval's start and at the end, as FlexMeasures computes it.

    The flex-model's soc-at-start, efficiencies, soc-gain and soc-usage count; a roundtrip-efficiency prevails
    over the other two. None where one of them is a sensor or a time series, whose values only the server
    knows.
    """
    try:
        charging = quantities.ratio(flex_model.get("charging-efficiency") or 1)
        discharging = quantities.ratio(flex_model.get("discharging-efficiency") or 1)
        if flex_model.get("roundtrip-efficiency"):
            charging = discharging = quantities.ratio(flex_model["roundtrip-efficiency"]) ** 0.5
        remaining = quantities.ratio(flex_model.get("storage-efficiency") or 1)
        soc = [quantities.energy(flex_model["soc-at-start"])]
        drift_w = sum(quantities.power(gain, "MW") for gain in flex_model.get("soc-gain") or [])
        drift_w -= sum(quantities.power(usage, "MW") for usage in flex_model.get("soc-usage") or [])
    except (TypeError, ValueError):
        return None
    if min(discharging, remaining) <= 0:
        return None
    hours = schedule.resolution / HOUR
    decay = 1 if remaining == 1 else (remaining - 1) / math.log(remaining)
    for power_w in schedule.powers_w:
        stored_w = (power_w * charging if power_w > 0 else power_w / discharging) + drift_w
        soc.append(soc[-1] * remaining + stored_w * hours * decay)
    return soc


@pyscript_compile
def soc_at(schedule: Schedule, soc: Sequence[float], moment: datetime) -> float:
    """Return the state of charge (unit of `soc`) at a moment within the schedule, linear between steps."""
    steps = (moment - schedule.start) / schedule.resolution
    step = min(int(steps), len(soc) - 2)
    return soc[step] + (steps - step) * (soc[step + 1] - soc[step])


@pyscript_compile
def missed_events(
    schedule: Schedule,
    soc_wh: Sequence[float],
    field_name: str,
    events: Iterable[SocEvent],
    shortfall: Callable[[float, float], float],
) -> list[dict[str, Any]]:
    """Return the events (targets, minima, maxima) that the schedule misses, each at its worst moment.

    `shortfall(asked, reached)` is by how many Wh an event is missed. An event outside the schedule is not
    judged.
    """
    missed = []
    for event in events:
        first, last = max(event.start, schedule.start), min(event.end, schedule.end)
        if first > last:
            continue
        steps = range(
            (first - schedule.start) // schedule.resolution + 1,
            -((schedule.start - last) // schedule.resolution),
        )
        moments = [first, *[schedule.start + step * schedule.resolution for step in steps], last]
        shortfalls = [shortfall(event.value, soc_at(schedule, soc_wh, moment)) for moment in moments]
        worst = shortfalls.index(max(shortfalls))
        if shortfalls[worst] > SOC_TOLERANCE * max(1.0, abs(event.value)):
            missed.append(
                {
                    "field": field_name,
                    "datetime": moments[worst],
                    "asked": event.value,
                    "reached": soc_at(schedule, soc_wh, moments[worst]),
                }
            )
    return missed


@pyscript_compile
def change_planned(
    schedule: Schedule | None, previous: Schedule | None, start: datetime, end: datetime
) -> float:
    """Return the planned change (Wh) of the state of charge from `start` to `end`.

    Before the schedule's start the previous one counts; where no schedule reaches, nothing changes.
    """
    if schedule is None:
        return 0.0
    change = change_within(schedule, start, end)
    if previous is not None and start < schedule.start:
        change += change_within(previous, start, min(end, schedule.start))
    return change


@pyscript_compile
def change_within(schedule: Schedule, start: datetime, end: datetime) -> float:
    """Return by how much (Wh) one schedule changes the state of charge from `start` to `end`."""
    first, last = max(start, schedule.start), min(end, schedule.end)
    if first >= last:
        return 0.0
    if schedule.soc is not None:
        scale = quantities.energy(1, schedule.soc_unit)
        return (soc_at(schedule, schedule.soc, last) - soc_at(schedule, schedule.soc, first)) * scale
    change = 0.0
    for interval_start, power_w in zip(schedule.starts, schedule.powers_w, strict=True):
        overlap = min(interval_start + schedule.resolution, last) - max(interval_start, first)
        change += power_w * max(overlap.total_seconds(), 0.0) / HOUR.total_seconds()
    return change
