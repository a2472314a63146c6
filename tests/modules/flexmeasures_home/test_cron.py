"""Cron times are those of Home Assistant's clock on the wall, over clock changes too."""

import asyncio
from datetime import UTC, datetime, timedelta

import homeassistant.util.dt as dt_util
import pytest
from homeassistant.exceptions import HomeAssistantError
from pytest_homeassistant_custom_component.common import async_fire_time_changed

import flexmeasures_api.errors as errors
import flexmeasures_home.cron as cron
from flexmeasures_home.cron import Cron
from flexmeasures_home.status import Status

BEFORE_SPRING = datetime(2027, 3, 28, 0, 20, tzinfo=UTC)
QUARTER = datetime(2026, 1, 15, 12, 15, tzinfo=UTC)
BEFORE_AUTUMN = datetime(2026, 10, 24, 23, 50, tzinfo=UTC)


@pytest.fixture(autouse=True)
def amsterdam():
    """Set Home Assistant's time zone, which differs from the process's."""
    before = dt_util.get_default_time_zone()
    dt_util.set_default_time_zone(dt_util.get_time_zone("Europe/Amsterdam"))
    yield
    dt_util.set_default_time_zone(before)


def times(expression, moment, count):
    """Return the next times in UTC."""
    found = []
    for _ in range(count):
        moment = cron.following(expression, moment)
        found.append(f"{moment:%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("*/15 * * * *", BEFORE_SPRING, ["28 00:30", "28 00:45", "28 01:00", "28 01:15"]),
        ("*/15 * * * *", BEFORE_AUTUMN, ["25 00:00", "25 00:15", "25 00:30", "25 00:45", "25 01:00"]),
        ("30 * * * *", BEFORE_AUTUMN, ["25 00:30", "25 01:30", "25 02:30"]),
        ("0 0 * * *", BEFORE_SPRING - timedelta(hours=3), ["27 23:00", "28 22:00", "29 22:00"]),
        ("0 0 * * *", BEFORE_AUTUMN - timedelta(hours=3), ["24 22:00", "25 23:00", "26 23:00"]),
        ("0 13 * * *", BEFORE_SPRING, ["28 11:00", "29 11:00"]),
        ("0 13 * * *", BEFORE_AUTUMN, ["25 12:00", "26 12:00"]),
        ("30 2 * * *", BEFORE_AUTUMN, ["25 00:30", "26 01:30"]),
    ],
)
def test_the_times_over_a_clock_change(expression, start, expected):
    assert times(expression, start, len(expected)) == expected


def test_a_time_lost_in_spring_comes_with_the_change():
    assert times("30 2 * * *", BEFORE_SPRING, 2) == ["28 01:00", "29 00:30"]


@pytest.mark.parametrize("night", [BEFORE_SPRING, BEFORE_AUTUMN])
@pytest.mark.parametrize("expression", ["30 2 * * *", "15 0-6 * * *", "0,30 0-23 * * *", "*/15 * * * *"])
def test_no_minute_of_a_change_has_its_next_time_behind_it(expression, night):
    for minute in range(240):
        moment = night + timedelta(minutes=minute, seconds=7)
        assert cron.preceding(expression, moment) <= moment < cron.following(expression, moment)


def test_the_time_before_a_moment():
    assert cron.preceding("*/15 * * * *", QUARTER) == QUARTER
    assert cron.preceding("*/15 * * * *", QUARTER - timedelta(seconds=1)) == QUARTER - timedelta(minutes=15)


async def test_the_time_of_the_next_try(hass, freezer):
    now = datetime(2026, 1, 15, 12, 1, tzinfo=UTC)
    quarter = now + timedelta(minutes=14)
    freezer.move_to(now)
    status = Status(hass)
    made = Cron(hass, status, "*/15 * * * *", None)
    made.schedule_for(quarter)
    waits = []
    for error in [
        errors.Unreachable("x"),
        errors.JobFailed("x"),
        errors.InvalidProblem("x"),
        errors.Unreachable("x"),
        errors.RateLimited("x", 3600),
        errors.Unauthorized("x"),
    ]:
        made.plan_failed(error)
        waits.append((made.next - now).total_seconds())
        made.clamp_to_clock()
        assert (made.next - now).total_seconds() == waits[-1]
    assert waits == [30, 60, 840, 30, 900, 840]
    freezer.move_to(now + timedelta(minutes=5))
    made.clamp_to_clock()
    assert made.next == quarter
    freezer.move_to(now - timedelta(hours=2))
    made.clamp_to_clock()
    assert made.next == quarter - timedelta(hours=2)
    made.stop()


class Planner:
    """A plan that takes as long as it is told to, and may fail."""

    def __init__(self, hass):
        """Plan each quarter of an hour."""
        self.planned_for, self.ends, self.error = [], asyncio.Event(), None
        self.cron = Cron(hass, Status(hass), "*/15 * * * *", self.plan)

    async def plan(self, moment):
        """Plan for a moment."""
        self.planned_for.append(moment)
        await self.ends.wait()
        self.ends.clear()
        if self.error:
            self.cron.plan_failed(self.error)
            raise HomeAssistantError("x")
        self.cron.plan_succeeded()

    async def end(self):
        """End the plan under way, and let the next begin."""
        self.ends.set()
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def planner(hass):
    """Return a cron and its plan, stopped afterwards."""
    made = Planner(hass)
    yield made
    made.cron.stop()
    made.cron.task.cancel()


async def turn(hass, freezer, moment):
    """Let a time come."""
    freezer.move_to(moment)
    async_fire_time_changed(hass, moment)
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_time_that_comes_while_a_plan_is_under_way_has_its_plan_afterwards(hass, freezer, planner):
    freezer.move_to(QUARTER)
    planner.cron.start(None)
    moments = [QUARTER + timedelta(minutes=15) * number for number in range(4)]
    await turn(hass, freezer, moments[0])
    await turn(hass, freezer, moments[1])
    assert planner.planned_for == moments[:1]
    await planner.end()
    assert planner.planned_for == moments[:2]
    await planner.end()
    assert planner.planned_for == moments[:2]
    assert planner.cron.task.done()
    await turn(hass, freezer, moments[2])
    late = moments[3] + timedelta(minutes=4)
    await turn(hass, freezer, moments[3])
    freezer.move_to(late)
    await planner.end()
    assert planner.planned_for == [*moments[:3], late]


async def test_of_the_times_that_come_during_a_long_plan_the_last_has_one(hass, freezer, planner):
    freezer.move_to(QUARTER)
    planner.cron.start(None)
    for number in range(4):
        await turn(hass, freezer, QUARTER + timedelta(minutes=15) * number)
    for _ in range(3):
        await planner.end()
    assert planner.planned_for == [QUARTER, QUARTER + timedelta(minutes=45)]


async def test_a_time_that_comes_during_a_plan_that_fails_does_not_cut_its_pause(hass, freezer, planner):
    freezer.move_to(QUARTER)
    planner.cron.start(None)
    await turn(hass, freezer, QUARTER)
    later = QUARTER + timedelta(minutes=15)
    await turn(hass, freezer, later)
    planner.error = errors.RateLimited("x", 120)
    await planner.end()
    assert planner.planned_for == [QUARTER]
    assert planner.cron.next == later + timedelta(seconds=120)


async def test_what_is_in_the_way_of_no_plan_any_more_makes_no_second_one_after_it(hass, freezer, planner):
    freezer.move_to(QUARTER)
    planner.cron.start(None)
    await turn(hass, freezer, QUARTER)
    planner.cron.has_failed = True
    planner.cron.retry_now()
    await planner.end()
    assert planner.planned_for == [QUARTER]
    assert not planner.cron.has_failed


@pytest.mark.parametrize("expression", ["", "often", "* * * *", "61 * * * *", "0 0 30 2 *", "* * * * * *"])
def test_what_means_no_time_is_refused(expression):
    with pytest.raises(ValueError):
        cron.following(expression, BEFORE_SPRING)
