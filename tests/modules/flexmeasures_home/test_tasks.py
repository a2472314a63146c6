"""Work in the background that fails unexpectedly is told, and started again."""

import asyncio
from itertools import pairwise

import pytest

import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks


@pytest.fixture
def status(hass):
    """Return a status."""
    return statuses.Status(hass)


def told(hass):
    """Return the text of the notification of a failed task, or None."""
    found = hass.data.get("persistent_notification", {}).get("flexmeasures_task_failed")
    return found and found["message"]


async def test_work_that_ends_is_left_at_that(hass, status, clock):
    done = []

    async def work():
        done.append(1)

    await tasks.supervise(status, "delivery", work)
    await asyncio.sleep(1000)
    assert done == [1]
    assert told(hass) is None


@pytest.mark.parametrize(
    "error", [RuntimeError("a fault"), OverflowError("a fault"), asyncio.CancelledError()]
)
async def test_work_that_dies_is_told_and_started_again(hass, status, clock, error):
    begun = []

    async def work():
        begun.append(clock.time())
        if len(begun) < 4:
            raise error
        await asyncio.sleep(10_000)

    task = tasks.supervise(status, "delivery", work)
    await asyncio.sleep(1)
    assert told(hass).startswith(f"The delivery failed unexpectedly ({type(error).__name__}: ")
    assert status.problems["task delivery"].text == told(hass)
    await asyncio.sleep(50)
    assert [round(later - earlier) for earlier, later in pairwise(begun)] == [5, 10, 20]
    assert told(hass)
    await asyncio.sleep(60)
    assert told(hass) is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(1000)
    assert len(begun) == 4


async def test_work_under_way_ends_when_it_is_cancelled(hass, status, clock):
    ended = []

    async def work():
        try:
            await asyncio.sleep(10_000)
        finally:
            ended.append(1)

    task = tasks.supervise(status, "delivery", work)
    await asyncio.sleep(100)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert ended == [1]
    assert told(hass) is None


async def test_what_is_done_each_minute_fails_alone(hass, status):
    def fail():
        raise KeyError("x" * 1000)

    tasks.guard(status, "measurements", fail)
    assert "The measurements failed unexpectedly (KeyError: 'xxx" in told(hass)
    assert len(told(hass)) < 250
    tasks.guard(status, "measurements", lambda: None)
    assert told(hass) is None
