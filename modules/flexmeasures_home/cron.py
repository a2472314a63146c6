"""Planning without being asked: at the times of a cron expression, and again after a failure."""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from cronsim import CronSim, CronSimError
from homeassistant.core import HassJob, callback
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.event import async_track_point_in_utc_time

import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=10)
TOLERANCE = timedelta(seconds=5)
FIELDS = 5


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(repr=False)
    class Cron:
        """When `plan` is called next, with the time for which it is; `failures` counts those since a success.

        After one, `pause_ends` is when it may be tried again, by the monotonic clock, and `asked_to_wait`
        tells that the server said so. `missed` is the last time that came while a plan was under way.
        """

        hass: Any
        status: statuses.Status
        expression: str
        plan: Any
        next: datetime | None = None
        failures: int = 0
        pause_ends: float = 0.0
        asked_to_wait: bool = False
        missed: datetime | None = None
        forget_timer: Any = None
        task: Any = None
        stopped: bool = False

    return Cron


Cron = record()


@pyscript_compile
def following(expression, moment):
    """Return the first time after a moment, by Home Assistant's clock on the wall.

    Cronsim, which Home Assistant brings, is right over both clock changes, where croniter skips an hour;
    but in the hour that comes twice it begins with times of the first. Raise ValueError for an
    expression that means no time, or has seconds, which newer releases of cronsim know.
    """
    try:
        if len(expression.split()) != FIELDS:
            raise CronSimError("Wrong number of fields")
        times = CronSim(expression, dt_util.as_local(moment))
        return next(found for each in times if (found := each.astimezone(UTC)) > moment)
    except (CronSimError, StopIteration) as error:
        raise ValueError("expected a cron expression such as */15 * * * *") from error


@pyscript_compile
def preceding(expression, moment):
    """Return the last time that is not after a moment."""
    after = dt_util.as_local(moment + timedelta(hours=1))
    times = CronSim(expression, after, reverse=True)
    return next(found for each in times if (found := each.astimezone(UTC)) <= moment)


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
    if cron.stopped:
        return
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
def due(cron, now):
    """Return when to plan next: at the next regular time, or after a failure once the pause is over.

    A pause that the server asked for also puts off the regular times.
    """
    regular = following(cron.expression, now)
    if not cron.failures:
        return regular
    over = now + timedelta(seconds=max(0.0, cron.pause_ends - time.monotonic()))
    return over if cron.asked_to_wait else min(over, regular)


@pyscript_compile
def is_planning(cron: Cron) -> bool:
    """Return whether a plan is under way; that it is in force already, but not yet saved, counts as well."""
    return cron.task is not None and not cron.task.done()


@pyscript_compile
def look(cron):
    """Put right what a clock that was set has put wrong."""
    now = dt_util.utcnow()
    if is_planning(cron):
        return
    if now >= cron.next:
        plan_now(cron)
    elif abs(due(cron, now) - cron.next) > TOLERANCE:
        arm(cron, due(cron, now))


@pyscript_compile
def plan_now(cron):
    """Plan for the time that was due; while the plan before is still under way, right after that."""
    if cron.stopped:
        return
    now, moment = dt_util.utcnow(), cron.next
    arm(cron, following(cron.expression, now))
    if is_planning(cron):
        cron.missed = moment
    else:
        cron.task = cron.hass.async_create_background_task(keep_planning(cron, moment), "flexmeasures cron")


@pyscript_compile
async def keep_planning(cron: Cron, moment: datetime | None) -> None:
    """Plan for a time, and then for the last one that came meanwhile; a failure has its own next try."""
    while moment and not cron.stopped:
        cron.missed = None
        await attempt(cron, moment)
        moment = None if cron.failures else cron.missed


@pyscript_compile
async def attempt(cron: Any, moment: datetime) -> None:
    """Plan for a time, if that is just now, else for now.

    A failure is told by `failed`, and an unexpected one here: it is tried again at the next time.
    """
    now = dt_util.utcnow()
    planned_for = moment if timedelta(0) <= now - moment < TOLERANCE else now
    try:
        with suppress(HomeAssistantError):
            await cron.plan(planned_for)
    except Exception as error:
        tasks.tell(cron.status, "planning by cron", error)
    else:
        tasks.over(cron.status, "planning by cron")


@pyscript_compile
def failed(cron, error):
    """Set the time of the next try after a failed plan, whoever asked for it.

    It is not before the server wants, and not before the regular time where another try is no use.
    """
    if cron.stopped:
        return
    if getattr(error, "needs_user_action", False):
        planned(cron)
        return
    asked = getattr(error, "retry_after", None)
    cron.failures += 1
    pause = min(FIRST_PAUSE * 2 ** min(cron.failures - 1, 10), LONGEST_PAUSE).total_seconds()
    cron.pause_ends = time.monotonic() + max(pause, asked or 0)
    cron.asked_to_wait = asked is not None
    arm(cron, due(cron, dt_util.utcnow()))


@pyscript_compile
def hurry(cron):
    """Try again now what failed, since what was in its way is over, unless that is under way already."""
    if cron.failures and not is_planning(cron):
        plan_now(cron)


@pyscript_compile
def planned(cron):
    """Go on with the regular times."""
    if cron.failures:
        cron.failures, cron.asked_to_wait = 0, False
        arm(cron, due(cron, dt_util.utcnow()))
