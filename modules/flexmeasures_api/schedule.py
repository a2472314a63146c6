"""A schedule: what FlexMeasures answers for one power sensor, and what follows from it."""

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import isodate

import flexmeasures_api.quantities as quantities

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOLERANCE = 0.001
PENALTY = re.compile(r"\b(breach|breaches|soc minima|soc maxima|soc targets)\b")
"""In the name of a commitment cost: what is not kept, such as "all soc minima"."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Schedule:
        """Values per interval, consumption positive.

        `unit` is the user's (W, kW, MW: mean power; Wh, kWh, MWh: energy of the interval). An interval
        without a value holds None. `soc` is the expected state of charge in `soc_unit` at each
        interval's start and, last, at the schedule's end; None where it cannot be told. `cost` is in the
        currency of the prices, which are known up to `prices_known_until`, but for gaps; `assumed_prices` has
        the [start, end] (s since 1970) of each time without. `warnings` are sentences for the user.
        """

        start: datetime
        resolution: timedelta
        unit: str
        values: list
        soc_unit: str
        soc: list | None
        missed_targets: list
        cost: Any
        updated_at: datetime
        prices_known_until: datetime | None = None
        assumed_prices: list = field(default_factory=list)
        warnings: list = field(default_factory=list)

    return Schedule


Schedule = record()


@pyscript_compile
def end(schedule):
    """Return the moment at which the last interval ends."""
    return schedule.start + len(schedule.values) * schedule.resolution


@pyscript_compile
def covers(schedule, moment):
    """Tell whether the moment lies in the schedule."""
    return schedule.start <= moment < end(schedule)


@pyscript_compile
def value_at(schedule, moment):
    """Return the value of the interval that the moment is in, or None."""
    if not covers(schedule, moment):
        return None
    return schedule.values[(moment - schedule.start) // schedule.resolution]


@pyscript_compile
def interval_start(schedule, moment):
    """Return when the interval that the moment is in began."""
    return schedule.start + (moment - schedule.start) // schedule.resolution * schedule.resolution


@pyscript_compile
def next_boundary(schedule, moment):
    """Return when the state changes next: the next interval's start, or the schedule's end; else None."""
    if moment < schedule.start:
        return schedule.start
    if moment < end(schedule):
        return interval_start(schedule, moment) + schedule.resolution
    return None


@pyscript_compile
def shift_up(moment, resolution, timezone):
    """Return the first tick of a sensor's clock that is not before the moment.

    The clock ticks in the sensor's own time zone, which matters for 60 minutes where the offset
    from UTC is not whole hours.
    """
    down = shift_down(moment, resolution, timezone)
    return down if down == moment else down + resolution


@pyscript_compile
def shift_down(moment, resolution, timezone):
    """Return the last tick of a sensor's clock that is not after the moment."""
    offset = moment.astimezone(ZoneInfo(timezone)).utcoffset()
    since = moment.astimezone(UTC) - EPOCH + offset
    return EPOCH + since // resolution * resolution - offset


@pyscript_compile
def from_reply(reply, unit, now, soc_unit):
    """Make a schedule of the server's reply (`start`, `duration`, `unit`, `values`; power).

    Raise AttributeError, ArithmeticError, TypeError or ValueError for an odd one.
    """
    values = [None if value is None or math.isnan(value) else value for value in reply["values"]]
    resolution = isodate.parse_duration(reply["duration"]) / len(values)
    if resolution <= timedelta(0):
        raise ValueError(f"a duration of {reply['duration']}")
    return Schedule(
        start=datetime.fromisoformat(reply["start"]).astimezone(UTC),
        resolution=resolution,
        unit=unit,
        values=[in_unit(value, reply["unit"], unit, resolution) for value in values],
        soc_unit=soc_unit,
        soc=None,
        missed_targets=[],
        cost=cost(reply),
        updated_at=now,
    )


@pyscript_compile
def in_unit(value, reply_unit, unit, resolution):
    """Convert an interval's mean power to the user's unit; energy is that of the whole interval."""
    if value is None or unit == reply_unit:
        return value
    watts = quantities.power(value, reply_unit)
    if unit in quantities.ENERGY_UNITS:
        return quantities.tidy(watts * (resolution / HOUR) / quantities.energy(1, unit))
    return quantities.tidy(watts / quantities.power(1, unit))


@pyscript_compile
def watts(schedule):
    """Return the mean power of each interval in W; an interval without a value counts as 0."""
    if schedule.unit in quantities.ENERGY_UNITS:
        factor = quantities.energy(1, schedule.unit) / (schedule.resolution / HOUR)
    else:
        factor = quantities.power(1, schedule.unit)
    return [(value or 0.0) * factor for value in schedule.values]


@pyscript_compile
def cost(reply):
    """Return the money that the schedule costs, in the server's currency, or None where that is not told.

    The server also reports what it counts for targets and limits that it cannot keep: that is no money.
    """
    costs = (reply.get("scheduler_info") or {}).get("commitment_costs")
    if not costs:
        return None
    return quantities.tidy(sum([cost for name, cost in costs.items() if not PENALTY.search(name)]))


@pyscript_compile
def expected_soc(schedule, flex_model):
    """Return the state of charge in Wh at each interval's start and at the end, as FlexMeasures reckons.

    The flex-model's soc-at-start, efficiencies, soc-gain and soc-usage count; a roundtrip-efficiency
    prevails over the other two. None where one of them is no fixed
    quantity but a sensor or a time series, since only the server knows its values.
    """
    try:
        charging = quantities.ratio(flex_model.get("charging-efficiency") or 1)
        discharging = quantities.ratio(flex_model.get("discharging-efficiency") or 1)
        if flex_model.get("roundtrip-efficiency"):
            charging = discharging = quantities.ratio(flex_model["roundtrip-efficiency"]) ** 0.5
        keeping = quantities.ratio(flex_model.get("storage-efficiency") or 1)
        soc = [quantities.energy(flex_model["soc-at-start"])]
        drift = sum(quantities.power(each, "MW") for each in flex_model.get("soc-gain") or [])
        drift -= sum(quantities.power(each, "MW") for each in flex_model.get("soc-usage") or [])
    except (TypeError, ValueError):
        return None
    if min(discharging, keeping) <= 0:
        return None
    hours = schedule.resolution / HOUR
    spread = 1 if keeping == 1 else (keeping - 1) / math.log(keeping)
    for power in watts(schedule):
        change = (power * charging if power > 0 else power / discharging) + drift
        soc.append(soc[-1] * keeping + change * hours * spread)
    return soc


@pyscript_compile
def soc_at(schedule, soc, moment):
    """Return the state of charge (Wh) at a moment within the schedule, between steps linearly."""
    steps = (moment - schedule.start) / schedule.resolution
    step = min(int(steps), len(soc) - 2)
    return soc[step] + (steps - step) * (soc[step + 1] - soc[step])


@pyscript_compile
def missed(schedule, soc, field, wishes, short_of):
    """Return the wishes (soc_targets, soc_minima, soc_maxima) that the schedule does not fulfil.

    `short_of(asked, reached)` is by how many Wh the state of charge fails. Of a wish that holds for
    a span, the worst moment in it is told. A wish outside the schedule is not judged.
    """
    found = []
    for wish in wishes:
        first, last = max(wish.start, schedule.start), min(wish.end, end(schedule))
        if first > last:
            continue
        steps = range(
            (first - schedule.start) // schedule.resolution + 1,
            -((schedule.start - last) // schedule.resolution),
        )
        moments = [first, *[schedule.start + step * schedule.resolution for step in steps], last]
        worst = max(moments, key=lambda moment: short_of(wish.value, soc_at(schedule, soc, moment)))
        reached = soc_at(schedule, soc, worst)
        if short_of(wish.value, reached) > TOLERANCE * max(1.0, abs(wish.value)):
            found.append({"field": field, "datetime": worst, "asked": wish.value, "reached": reached})
    return found


@pyscript_compile
def change_planned(schedule: Any, previous: Any, begin: datetime, until: datetime) -> float:
    """Return by how much (Wh) the state of charge is to change from one moment to another.

    Before the schedule's start the previous one counts; where no schedule reaches, nothing changes.
    """
    if schedule is None:
        return 0.0
    change = change_by(schedule, begin, until)
    if previous is not None and begin < schedule.start:
        change += change_by(previous, begin, min(until, schedule.start))
    return change


@pyscript_compile
def change_by(schedule: Any, begin: datetime, until: datetime) -> float:
    """Return by how much (Wh) a schedule changes the state of charge within a time."""
    first, last = max(begin, schedule.start), min(until, end(schedule))
    if first >= last:
        return 0.0
    if schedule.soc is not None:
        scale = quantities.energy(1, schedule.soc_unit)
        levels = [soc_at(schedule, schedule.soc, moment) for moment in (first, last)]
        return (levels[1] - levels[0]) * scale
    change = 0.0
    for start, power in zip(starts(schedule), watts(schedule), strict=True):
        seconds = (min(start + schedule.resolution, last) - max(start, first)).total_seconds()
        change += power * max(seconds, 0.0) / HOUR.total_seconds()
    return change


@pyscript_compile
def starts(schedule):
    """Return when each interval starts."""
    return [schedule.start + step * schedule.resolution for step in range(len(schedule.values))]
