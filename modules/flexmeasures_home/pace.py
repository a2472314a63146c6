"""How often something is done that is wanted at any time, such as a state that is renewed."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HassJob, callback
from homeassistant.helpers.event import async_call_later


@pyscript_compile
def pace_kind() -> type:
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(repr=False)
    class Pace:
        """At most one act in some seconds: the first at once, the last of the others afterwards.

        With `burst`, so many are done at that pace, and then one in `slow_seconds`; a `turn` comes back in
        that time. `act` returns whether to pause now; `counted_at` is when the turns were counted.
        """

        hass: Any
        act: Callable[[], bool]
        seconds: float
        burst: int | None = None
        slow_seconds: float = 0.0
        turns: float | None = None
        counted_at: datetime | None = None
        forget_timer: Callable[[], None] | None = None
        wanted: bool = False

    return Pace


Pace = pace_kind()


@pyscript_compile
def want(pace: Pace) -> None:
    """Have it done soon, but not too often."""
    if pace.forget_timer:
        pace.wanted = True
    elif pace.act():
        rest(pace, pause(pace))


@pyscript_compile
def rest(pace: Pace, seconds: float) -> None:
    """Do it again in some seconds at the earliest, and then only if that is wanted meanwhile."""
    stop(pace)
    pace.wanted = False
    if seconds <= 0:
        return

    @callback
    def again(_now: datetime) -> None:
        pace.forget_timer = None
        if pace.wanted:
            want(pace)

    pace.forget_timer = async_call_later(pace.hass, seconds, HassJob(again, cancel_on_shutdown=True))


@pyscript_compile
def stop(pace: Pace) -> None:
    """End the timer."""
    if pace.forget_timer:
        pace.forget_timer()
        pace.forget_timer = None


@pyscript_compile
def pause(pace: Pace) -> float:
    """Take a turn; return how long to wait for the next (s)."""
    if pace.burst is None:
        return pace.seconds
    now = dt_util.utcnow()
    if pace.turns is None:
        pace.turns = float(pace.burst)
    else:
        elapsed = max((now - pace.counted_at).total_seconds(), 0.0)
        pace.turns = min(pace.turns + elapsed / pace.slow_seconds, float(pace.burst))
    pace.counted_at, pace.turns = now, max(pace.turns - 1.0, 0.0)
    return pace.seconds if pace.turns >= 1 else max(pace.seconds, (1.0 - pace.turns) * pace.slow_seconds)
