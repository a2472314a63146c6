"""Averages over the intervals of a sensor's clock, weighted by the time in which a value was known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import flexmeasures_home.kept as kept

MAX_CLOCK_DIFFERENCE_SECONDS = 5
"""If the clock and the monotonic clock differ by more, the clock was set, or the machine slept."""
MIN_KNOWN_FRACTION = 0.1
"""The part of an interval in which a value must be known, for its average to stand for the interval."""


@dataclass(frozen=True, kw_only=True)
class _ClockReading:
    """The clock, and the monotonic clock (s) at the same moment."""

    now: datetime
    monotonic: float

    @pyscript_compile
    def has_jumped_since(self, before: "ClockReading") -> bool:
        """Tell whether the clock was set, or the machine slept, since another reading."""
        seconds = (self.now - before.now).total_seconds()
        return abs(seconds - (self.monotonic - before.monotonic)) > MAX_CLOCK_DIFFERENCE_SECONDS


ClockReading = _ClockReading


@pyscript_compile
def read_clocks(now: datetime) -> ClockReading:
    """Return both clocks."""
    return ClockReading(now=now, monotonic=time.monotonic())


@dataclass(kw_only=True)
class _Interval:
    """The interval under way: value × seconds summed up to `at`, and the seconds with a known value."""

    start: datetime
    step: timedelta
    at: datetime
    total: float = 0.0
    known_seconds: float = 0.0
    unit: str | None = None

    @property
    @pyscript_compile
    def end(self) -> datetime:
        """Return when it ends."""
        return self.start + self.step

    @property
    @pyscript_compile
    def average(self) -> float | None:
        """Return its average, or None where too little is known."""
        is_enough = self.known_seconds >= MIN_KNOWN_FRACTION * self.step.total_seconds()
        return self.total / self.known_seconds if is_enough else None

    @pyscript_compile
    def add(self, value: float | None, until: datetime) -> None:
        """Add a value (None: not known), which lasted from `at` until another moment."""
        if value is not None:
            seconds = (until - self.at).total_seconds()
            self.total += value * seconds
            self.known_seconds += seconds
        self.at = until

    @pyscript_compile
    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return {
            "start": self.start.isoformat(),
            "step": self.step.total_seconds(),
            "at": self.at.isoformat(),
            "total": self.total,
            "known": self.known_seconds,
            "unit": self.unit,
        }


Interval = _Interval


@pyscript_compile
def advance(
    interval: Interval, value: float | None, moment: datetime, tick: Callable[[datetime], datetime]
) -> tuple[list[Interval], Interval]:
    """Add a value (None: not known) until a moment; return the intervals that ended, and the new one.

    `tick` returns the last tick of the clock that is not after a moment: while no value is known,
    whole intervals are left out.
    """
    ended: list[Interval] = []
    while True:
        until = max(interval.at, min(moment, interval.end))
        interval.add(value, until)
        if moment < interval.end:
            return ended, interval
        ended.append(interval)
        start = interval.end if value is not None else max(interval.end, tick(moment))
        interval = Interval(start=start, step=interval.step, at=max(until, start), unit=interval.unit)


@pyscript_compile
def from_json(data: dict[str, Any]) -> Interval:
    """Return the interval that `as_json` wrote; raise what is wrong with it."""
    return Interval(
        start=kept.moment(data["start"]),
        step=kept.length(data["step"]),
        at=kept.moment(data["at"]),
        total=kept.number(data["total"]),
        known_seconds=kept.number(data["known"]),
        unit=kept.optional(kept.text, data["unit"]),
    )
