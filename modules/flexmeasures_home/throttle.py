"""How often something is done that may be requested at any time, such as writing a state."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import homeassistant.util.dt as dt_util
from homeassistant.core import CALLBACK_TYPE, HassJob, HomeAssistant, callback
from homeassistant.helpers.event import async_call_later


@dataclass(repr=False)
class _Throttle:
    """At most one act in `seconds`: the first request at once, the last one after the pause.

    With `burst`, so many are done at that rate, and then one in `slow_seconds`; a turn of the burst comes
    back in that time. `act` returns whether to pause now; `turns` are left of the burst, as of `counted_at`.
    """

    hass: HomeAssistant
    act: Callable[[], bool]
    seconds: float
    burst: int | None = None
    slow_seconds: float = 0.0
    turns: float | None = None
    counted_at: datetime | None = None
    cancel_timer: CALLBACK_TYPE | None = None
    is_requested: bool = False

    @pyscript_compile
    def request(self) -> None:
        """Have it done soon, but not too often."""
        if self.cancel_timer:
            self.is_requested = True
        elif self.act():
            self._pause(self._take_turn())

    @pyscript_compile
    def act_was_done(self) -> None:
        """Count an act that was done elsewhere: it takes a turn, and starts the pause."""
        self._pause(self._take_turn())

    @pyscript_compile
    def cancel(self) -> None:
        """Cancel the timer."""
        if self.cancel_timer:
            self.cancel_timer()
            self.cancel_timer = None

    @pyscript_compile
    def _pause(self, seconds: float) -> None:
        """Act again in some seconds at the earliest, and then only if that is requested meanwhile."""
        self.cancel()
        self.is_requested = False
        if seconds <= 0:
            return

        @callback
        def at_end(_now: datetime) -> None:
            self.cancel_timer = None
            if self.is_requested:
                self.request()

        job = HassJob(at_end, cancel_on_shutdown=True)
        self.cancel_timer = async_call_later(self.hass, seconds, job)

    @pyscript_compile
    def _take_turn(self) -> float:
        """Take a turn; return how long to wait for the next (s)."""
        if self.burst is None:
            return self.seconds
        now = dt_util.utcnow()
        if self.turns is None or self.counted_at is None:
            turns = float(self.burst)
        else:
            elapsed = max((now - self.counted_at).total_seconds(), 0.0)
            turns = min(self.turns + elapsed / self.slow_seconds, float(self.burst))
        self.counted_at, self.turns = now, max(turns - 1.0, 0.0)
        if self.turns >= 1:
            return self.seconds
        return max(self.seconds, (1.0 - self.turns) * self.slow_seconds)


Throttle = _Throttle
