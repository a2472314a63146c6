"""What is requested at any time is throttled, and the last of it is never lost."""

from datetime import UTC, datetime, timedelta

import pytest
from pytest_homeassistant_custom_component.common import async_fire_time_changed

import flexmeasures_home.status as statuses
from flexmeasures_home.throttle import Throttle

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)


@pytest.fixture
def live(hass, freezer):
    """Return a function that lets time pass, and does something each second."""
    freezer.move_to(NOON)
    passed = [0]

    async def live(seconds: int, act=lambda: None) -> None:
        for _ in range(seconds):
            act()
            passed[0] += 1
            now = NOON + timedelta(seconds=passed[0])
            freezer.move_to(now)
            async_fire_time_changed(hass, now)
            await hass.async_block_till_done()

    return live


async def test_a_burst_is_done_at_once_and_then_one_in_a_while(hass, live):
    done = []
    throttle = Throttle(hass, lambda: done.append(datetime.now(UTC)) or True, 1, burst=3, slow_seconds=60)
    await live(200, lambda: throttle.request())
    seconds = [round((each - NOON).total_seconds()) for each in done]
    assert seconds[:3] == [0, 1, 2]
    assert seconds[3:] == [pytest.approx(each, abs=3) for each in (60, 120, 180)]
    await live(300)
    count = len(done)
    assert count == 7
    await live(5, lambda: throttle.request())
    assert len(done) == count + 3
    throttle.cancel()


async def test_what_does_nothing_takes_no_turn(hass, live):
    throttle = Throttle(hass, lambda: False, 1, burst=3, slow_seconds=60)
    await live(10, lambda: throttle.request())
    assert (throttle.cancel_timer, throttle.turns) == (None, None)


async def test_the_outbox_alone_is_shown_ten_times_and_then_each_minute(hass, live):
    writes = []
    hass.bus.async_listen("state_changed", writes.append)
    status = statuses.Status(hass)
    status.show(outbox=0)
    waiting = iter(range(1, 1000))
    await live(300, lambda: status.show(outbox=next(waiting)))
    assert 14 <= len(writes) <= 17
    status.fail("plan", "It failed", cause="failed")
    shown = hass.states.get(statuses.ENTITY_ID)
    assert (shown.attributes["last_error"], shown.attributes["outbox"]) == ("It failed", 300)
    status.show(outbox=0)
    await live(61)
    assert hass.states.get(statuses.ENTITY_ID).attributes["outbox"] == 0
    status.stop()
