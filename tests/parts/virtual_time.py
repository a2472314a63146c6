"""Clocks for tests: one that never waits, and one that a test moves.

With the first, time passes only when nothing else can happen in the event loop.
"""

import asyncio
import math
import selectors
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from unittest.mock import patch

import pytest
from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

DELIVERY_SECONDS = 0.001
"""The time the system may take to deliver data between sockets of this process."""
THREAD_SECONDS = 0.1
"""The longest wait for a thread of the executor before another look at the selector."""
MICROSECOND = timedelta(microseconds=1)

type Events = list[tuple[selectors.SelectorKey, int]]


class VirtualTime:
    """The wall clock and the clock of an event loop, which jump from timer to timer.

    A jump waits for data on the sockets of this process, and for work in the executor. Nothing may depend on
    another process.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        selector: selectors.BaseSelector,
        start: float,
        wall: FrozenDateTimeFactory,
    ) -> None:
        self.wall = wall
        self._start = start
        self._elapsed = timedelta()
        self._in_executor = 0
        self._select = selector.select
        self._run_in_executor = loop.run_in_executor

    def time(self) -> float:
        """Return the loop's time (s)."""
        return self._start + self._elapsed / timedelta(seconds=1)

    def move_to(self, moment: datetime | str) -> None:
        """Set the wall clock, as a user does; it does not affect timers of the loop."""
        self.wall.move_to(moment)

    def run_in_executor[T](
        self, executor: Executor | None, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function in a thread, and count it as long as it runs."""
        future = self._run_in_executor(executor, function, *args)
        self._in_executor += 1
        future.add_done_callback(self._leave_executor)
        return future

    def select(self, timeout: float | None = None) -> Events:
        """Return the sockets that are ready; if there are none, jump to the next timer."""
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

    def _leave_executor(self, _future: asyncio.Future[Any]) -> None:
        self._in_executor -= 1


@contextmanager
def virtual_time(start: datetime | None = None) -> Iterator[VirtualTime]:
    """Give the running event loop a virtual clock that starts at a moment, by default now."""
    loop = asyncio.get_running_loop()
    selector: selectors.BaseSelector = cast(Any, loop)._selector
    # A frozen monotonic clock counts from 1970: as a float that is too coarse for the loop's timers.
    loop_start = loop.time()
    with freeze_time(start or datetime.now(UTC)) as wall:
        assert isinstance(wall, FrozenDateTimeFactory)
        clock = VirtualTime(loop, selector, loop_start, wall)
        with (
            patch.multiple(loop, time=clock.time, run_in_executor=clock.run_in_executor),
            patch.object(selector, "select", clock.select),
        ):
            yield clock


@contextmanager
def moved_by_hand(monkeypatch: pytest.MonkeyPatch, start: datetime) -> Iterator[FrozenDateTimeFactory]:
    """Stop the clock at a moment, but not that of asyncio; `move_to` moves it."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", time.monotonic)
    with freeze_time(start) as clock:
        assert isinstance(clock, FrozenDateTimeFactory)
        yield clock
