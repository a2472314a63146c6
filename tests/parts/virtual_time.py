"""A clock of the event loop's own: it does not wait, and time passes only when nothing else can happen."""

import asyncio
import math
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

DELIVERY_SECONDS = 0.001
"""How long the system may take to deliver what was sent on a socket of this process."""
THREAD_SECONDS = 0.1
"""After what time it is looked again whether a thread of the executor has finished."""
MICROSECOND = timedelta(microseconds=1)


class VirtualTime:
    """The clock on the wall and that of an event loop, while the loop has them jump from timer to timer.

    A jump waits for what is on its way: data on the sockets of this process, and work in the executor.
    Nothing may depend on another process.
    """

    def __init__(self, loop: asyncio.SelectorEventLoop, start: float, wall: FrozenDateTimeFactory) -> None:
        self.wall = wall
        self._start = start
        self._elapsed = timedelta()
        self._in_executor = 0
        self._select = loop._selector.select
        self._run_in_executor = loop.run_in_executor

    def time(self) -> float:
        """Return the loop's time (s)."""
        return self._start + self._elapsed / timedelta(seconds=1)

    def move_to(self, moment: datetime | str) -> None:
        """Set the clock on the wall, as a user does: timers of the loop take no notice."""
        self.wall.move_to(moment)

    def run_in_executor(self, *args: object) -> asyncio.Future:
        """Count what runs in threads."""
        future = self._run_in_executor(*args)
        self._in_executor += 1
        future.add_done_callback(self._leave_executor)
        return future

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what can be read or written; else jump to the next timer."""
        ready = self._select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._in_executor or timeout is None:
            return self._select(THREAD_SECONDS)
        if ready := self._select(DELIVERY_SECONDS):
            return ready
        step = timedelta(microseconds=math.ceil(timeout * 1e6)) + MICROSECOND
        self._elapsed += step
        self.wall.tick(step)
        return []

    def _leave_executor(self, _future: asyncio.Future) -> None:
        self._in_executor -= 1


@contextmanager
def virtual_time(start: datetime | None = None) -> Iterator[VirtualTime]:
    """Give the running event loop a clock of its own, from a moment on, by default from now."""
    loop = asyncio.get_running_loop()
    # A frozen monotonic clock counts from 1970: as a float it is too coarse for the loop to tell "now".
    loop_start = loop.time()
    with freeze_time(start or datetime.now(UTC)) as wall:
        clock = VirtualTime(loop, loop_start, wall)
        loop.time, loop.run_in_executor = clock.time, clock.run_in_executor
        loop._selector.select = clock.select
        try:
            yield clock
        finally:
            del loop.time, loop.run_in_executor, loop._selector.select
