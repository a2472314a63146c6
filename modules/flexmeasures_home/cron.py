"""Planning at the times of a cron expression, and again after a failure."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from cronsim import CronSim, CronSimError
from homeassistant.core import CALLBACK_TYPE, HassJob, HomeAssistant, callback
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.event import async_track_point_in_utc_time

import flexmeasures_home.tasks as tasks
from flexmeasures_home.backoff import Backoff
from flexmeasures_home.status import Status

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 30, 600
TOLERANCE = timedelta(seconds=5)
FIELDS = 5
TASK = "planning by cron"


@pyscript_compile
def following(expression: str, moment: datetime) -> datetime:
    """Return the first time after a moment, by Home Assistant's local time.

    Cronsim, which Home Assistant requires, is right at both clock changes, where croniter skips an hour;
    but in the hour that occurs twice it begins with times of the first. Raise ValueError for an expression
    that means no time, or has seconds, which newer releases of cronsim accept.
    """
    try:
        if len(expression.split()) != FIELDS:
            raise CronSimError("Wrong number of fields")
        times = CronSim(expression, dt_util.as_local(moment))
        return next(utc for local in times if (utc := local.astimezone(UTC)) > moment)
    except (CronSimError, StopIteration) as error:
        raise ValueError("expected a cron expression such as */15 * * * *") from error


@pyscript_compile
def preceding(expression: str, moment: datetime) -> datetime:
    """Return the last time that is not after a moment."""
    after = dt_util.as_local(moment + timedelta(hours=1))
    times = CronSim(expression, after, reverse=True)
    return next(utc for local in times if (utc := local.astimezone(UTC)) <= moment)


@pyscript_compile
def first_backoff() -> Backoff:
    """Return the pauses after failed plans."""
    return Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)


@dataclass(repr=False)
class _Cron:
    """Calls `plan(start)` at the times of an expression, the next time at `next`.

    After a failed plan, it may be tried again from `pause_ends` on, by the monotonic clock;
    `server_asked_to_wait` tells that the server asked for that pause. `missed` is the last time that came
    while a plan was under way.
    """

    hass: HomeAssistant
    status: Status
    expression: str
    plan: Callable[[datetime], Coroutine[Any, Any, object]]
    next: datetime | None = None
    has_failed: bool = False
    backoff: Backoff = field(default_factory=first_backoff)
    pause_ends: float = 0.0
    server_asked_to_wait: bool = False
    missed: datetime | None = None
    cancel_timer: CALLBACK_TYPE | None = None
    task: asyncio.Task[None] | None = None
    stopped: bool = False

    @pyscript_compile
    def start(self, last_planned: datetime | None) -> None:
        """Plan at the coming times; at once if one was missed since the last plan, or there was none."""
        now = dt_util.utcnow()
        was_missed = last_planned is None or last_planned < preceding(self.expression, now)
        self.schedule_for(now if was_missed else following(self.expression, now))

    @pyscript_compile
    def stop(self) -> None:
        """Plan no more."""
        self.stopped = True
        if self.cancel_timer:
            self.cancel_timer()

    @pyscript_compile
    def schedule_for(self, moment: datetime) -> None:
        """Plan at a moment, and show it."""
        if self.stopped:
            return
        if self.cancel_timer:
            self.cancel_timer()
        self.next = moment
        self.status.show(next_plan=dt_util.as_local(moment).isoformat(timespec="seconds"))

        @callback
        def at_moment(_now: datetime) -> None:
            self.plan_now()

        job = HassJob(at_moment, cancel_on_shutdown=True)
        self.cancel_timer = async_track_point_in_utc_time(self.hass, job, moment)

    @property
    @pyscript_compile
    def is_planning(self) -> bool:
        """Tell whether a plan is under way, or is in force but not yet saved."""
        return self.task is not None and not self.task.done()

    @pyscript_compile
    def clamp_to_clock(self) -> None:
        """Recalculate the timer after a clock change; to be called each minute."""
        now = dt_util.utcnow()
        if self.is_planning or self.next is None:
            return
        due = self._due(now)
        if now >= self.next:
            self.plan_now()
        elif abs(due - self.next) > TOLERANCE:
            self.schedule_for(due)

    @pyscript_compile
    def plan_now(self) -> None:
        """Plan for the time that was due; while another plan is under way, right after that."""
        if self.stopped:
            return
        now, moment = dt_util.utcnow(), self.next
        self.schedule_for(following(self.expression, now))
        if self.is_planning:
            self.missed = moment
        else:
            work = self._keep_planning(moment)
            self.task = self.hass.async_create_background_task(work, "flexmeasures cron")

    @pyscript_compile
    def retry_now(self) -> None:
        """Retry a failed plan now, since its obstacle is gone, unless one is under way already."""
        if self.has_failed and not self.is_planning:
            self.plan_now()

    @pyscript_compile
    def plan_failed(self, error: BaseException) -> None:
        """Set the time of the next try after a failed plan, be it by cron or by a call.

        It is not before the server wants, and not before the regular time where the user has to act first.
        """
        if self.stopped:
            return
        if getattr(error, "needs_user_action", False):
            self.plan_succeeded()
            return
        if self.has_failed:
            self.backoff.grow()
        self.has_failed = True
        asked_seconds: float | None = getattr(error, "retry_after", None)
        self.pause_ends = time.monotonic() + max(self.backoff.seconds, asked_seconds or 0)
        self.server_asked_to_wait = asked_seconds is not None
        self.schedule_for(self._due(dt_util.utcnow()))

    @pyscript_compile
    def plan_succeeded(self) -> None:
        """Go on with the regular times."""
        if self.has_failed:
            self.has_failed = self.server_asked_to_wait = False
            self.backoff.reset()
            self.schedule_for(self._due(dt_util.utcnow()))

    @pyscript_compile
    def _due(self, now: datetime) -> datetime:
        """Return when to plan next: at the next regular time, or after a failure at the end of the pause.

        A pause that the server asked for postpones the regular times too.
        """
        regular = following(self.expression, now)
        if not self.has_failed:
            return regular
        pause_end = now + timedelta(seconds=max(0.0, self.pause_ends - time.monotonic()))
        return pause_end if self.server_asked_to_wait else min(pause_end, regular)

    @pyscript_compile
    async def _keep_planning(self, moment: datetime | None) -> None:
        """Plan for a time, and then for the last one that came meanwhile; a failure has its own retry."""
        while moment and not self.stopped:
            self.missed = None
            await self._try_to_plan(moment)
            moment = None if self.has_failed else self.missed

    @pyscript_compile
    async def _try_to_plan(self, moment: datetime) -> None:
        """Plan for a time, if that is just now, else for now.

        `plan` calls `plan_failed` itself. An unexpected failure is reported, and retried at the next time.
        """
        now = dt_util.utcnow()
        start = moment if timedelta(0) <= now - moment < TOLERANCE else now
        try:
            with suppress(HomeAssistantError):
                await self.plan(start)
        except Exception as error:
            tasks.report(self.status, TASK, error)
        else:
            tasks.resolve(self.status, TASK)


Cron = _Cron
