"""The life of a device: how its parts are stopped."""

import asyncio
import functools

import flexmeasures_home.app as apps
import flexmeasures_home.device as devices
from flexmeasures_home.status import Status

MAX_REPR = 200


def new(hass):
    """Return a device that was not started."""
    return devices.Device(hass, None, Status(hass), None)


async def test_sessions_close_before_a_plan_under_way_is_waited_for(hass):
    stopped = asyncio.Event()

    async def stop():
        stopped.set()

    device = new(hass)
    device.stops = [device.end_schedule, stop]
    async with device.planning:
        stopping = asyncio.create_task(device.stop())
        await asyncio.wait_for(stopped.wait(), 10)
        assert not stopping.done()
    await stopping


async def test_a_part_that_cannot_be_stopped_keeps_no_other_from_it(hass):
    stopped = []

    async def stop(part):
        stopped.append(part)
        raise RuntimeError("a fault of ours")

    device = new(hass)
    device.stops = [functools.partial(stop, "outbox"), functools.partial(stop, "S2")]
    await device.stop()
    assert stopped == ["S2", "outbox"]


async def test_what_the_interpreted_edge_is_given_says_little_of_itself(hass):
    device = devices.Device(hass, "x" * 1000, Status(hass, attributes={"x": "x" * 1000}), "x" * 1000)
    app = apps.App(configuration="x" * 1000, mistakes=["x" * 1000], device=device)
    for each in (app, device, device.status, apps.Stage(running=app)):
        assert len(repr(each)) < MAX_REPR
