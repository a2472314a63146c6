"""Means over the intervals of a clock, weighted by the time in which a value was known."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import flexmeasures_home.kept as kept

JUMP_SECONDS = 5
"""By how much the clock and the time that passed may differ before the clock counts as set anew."""
LEAST_KNOWN = 0.1
"""The part of an interval in which a value must be known, for its mean to stand for the interval."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Interval:
        """The interval under way: value × seconds summed up so far, over the seconds with a value."""

        start: datetime
        step: timedelta
        at: datetime
        total: float = 0.0
        known: float = 0.0
        unit: str | None = None

    return Interval


Interval = record()


@pyscript_compile
def clocks(now):
    """Return the clock and the monotonic clock, for `jumped`."""
    return now, time.monotonic()


@pyscript_compile
def jumped(before, after):
    """Tell whether the clock was set anew, or the machine slept, between two looks at both clocks."""
    passed = (after[0] - before[0]).total_seconds()
    return abs(passed - (after[1] - before[1])) > JUMP_SECONDS


@pyscript_compile
def end(interval):
    """Return when an interval ends."""
    return interval.start + interval.step


@pyscript_compile
def elapse(interval, value, moment, tick):
    """Sum up a value (None: not known) until a moment; return the intervals that ended, and the new one.

    `tick` returns the last tick of the clock that is not after a moment: while no value is known,
    whole intervals are left out.
    """
    ended = []
    while True:
        until = max(interval.at, min(moment, end(interval)))
        if value is not None:
            seconds = (until - interval.at).total_seconds()
            interval.total += value * seconds
            interval.known += seconds
        interval.at = until
        if moment < end(interval):
            return ended, interval
        ended.append(interval)
        start = end(interval) if value is not None else max(end(interval), tick(moment))
        interval = Interval(start, interval.step, max(until, start), unit=interval.unit)


@pyscript_compile
def mean(interval):
    """Return an interval's mean, or None where hardly anything was known of it."""
    enough = interval.known >= LEAST_KNOWN * interval.step.total_seconds()
    return interval.total / interval.known if enough else None


@pyscript_compile
def as_json(interval):
    """Return an interval as JSON's types."""
    return {
        "start": interval.start.isoformat(),
        "step": interval.step.total_seconds(),
        "at": interval.at.isoformat(),
        "total": interval.total,
        "known": interval.known,
        "unit": interval.unit,
    }


@pyscript_compile
def recalled(found):
    """Return the interval that `as_json` wrote."""
    return Interval(
        start=kept.moment(found["start"]),
        step=kept.length(found["step"]),
        at=kept.moment(found["at"]),
        total=kept.number(found["total"]),
        known=kept.number(found["known"]),
        unit=kept.optional(kept.text, found["unit"]),
    )
