"""Planning without being asked: at the times of a cron expression, and again after a failure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from cronsim import CronSim, CronSimError
from homeassistant.core import HassJob, callback
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.event import async_track_point_in_utc_time

import flexmeasures_home.status as statuses

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=10)


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Cron:
        """When `plan` is called next; `failures` counts those since the last success."""

        hass: Any
        status: statuses.Status
        expression: str
        plan: Any
        next: datetime | None = None
        failures: int = 0
        forget_timer: Any = None
        task: Any = None
        stopped: bool = False

    return Cron


Cron = record()


@pyscript_compile
def following(expression, moment):
    """Return the first time after a moment, by Home Assistant's clock on the wall.

    Cronsim, which Home Assistant brings, is right over both clock changes, where croniter skips an hour.
    Raise ValueError for an expression that means no time.
    """
    try:
        return next(CronSim(expression, dt_util.as_local(moment))).astimezone(UTC)
    except (CronSimError, StopIteration) as error:
        raise ValueError("expected a cron expression such as */15 * * * *") from error


@pyscript_compile
def preceding(expression, moment):
    """Return the last time that is not after a moment."""
    after = dt_util.as_local(moment) + timedelta(minutes=1)
    return next(CronSim(expression, after, reverse=True)).astimezone(UTC)


@pyscript_compile
def start(cron, last_planned):
    """Plan at the times to come; at once if one was missed since the last plan, or there was none."""
    now = dt_util.utcnow()
    missed = last_planned is None or last_planned < preceding(cron.expression, now)
    arm(cron, now if missed else following(cron.expression, now))


@pyscript_compile
def stop(cron):
    """Plan no more."""
    cron.stopped = True
    cron.forget_timer()


@pyscript_compile
def arm(cron, moment):
    """Plan at a moment, and show it."""
    if cron.forget_timer:
        cron.forget_timer()
    cron.next = moment
    statuses.show(cron.status, next_plan=dt_util.as_local(moment).isoformat(timespec="seconds"))

    @callback
    def at_moment(_now):
        plan_now(cron)

    job = HassJob(at_moment, cancel_on_shutdown=True)
    cron.forget_timer = async_track_point_in_utc_time(cron.hass, job, moment)


@pyscript_compile
def look(cron):
    """Put right what a clock that was set has put wrong."""
    now = dt_util.utcnow()
    if now >= cron.next:
        plan_now(cron)
    elif not cron.failures and cron.next != following(cron.expression, now):
        arm(cron, following(cron.expression, now))


@pyscript_compile
def plan_now(cron):
    """Plan, unless the plan before is still under way."""
    arm(cron, following(cron.expression, dt_util.utcnow()))
    if cron.task is None or cron.task.done():
        cron.task = cron.hass.async_create_background_task(attempt(cron), "flexmeasures cron")


@pyscript_compile
async def attempt(cron):
    """Plan, and after a failure set the time of the next try."""
    try:
        await cron.plan()
    except HomeAssistantError as error:
        if not cron.stopped:
            cron.failures += 1
            try_again(cron, error.__cause__ or error)


@pyscript_compile
def try_again(cron, error):
    """Set the time of the next try: not before the server wants, and not at all where that is no use."""
    if getattr(error, "final", False) or getattr(error, "status", "") == "unauthorized":
        return
    pause = min(FIRST_PAUSE * 2 ** min(cron.failures - 1, 10), LONGEST_PAUSE)
    asked = getattr(error, "retry_after", None)
    now = dt_util.utcnow()
    if asked is not None:
        arm(cron, now + max(pause, timedelta(seconds=asked)))
    elif now + pause < cron.next:
        arm(cron, now + pause)


@pyscript_compile
def planned(cron):
    """Go on with the regular times after a success."""
    if cron.failures:
        cron.failures = 0
        arm(cron, following(cron.expression, dt_util.utcnow()))
