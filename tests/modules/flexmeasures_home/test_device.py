"""The life of a device: how its parts are stopped."""

import asyncio

import flexmeasures_home.app as apps
import flexmeasures_home.device as devices
import flexmeasures_home.status as statuses

MAX_REPR = 200


async def test_sessions_close_before_a_plan_under_way_is_waited_for(hass, monkeypatch):
    stopped = asyncio.Event()

    async def stop(_resources):
        stopped.set()

    monkeypatch.setattr(devices.resources, "stop", stop)
    device = devices.Device(hass, None, statuses.Status(hass), None, resources="the S2 side")
    async with device.planning:
        stopping = asyncio.create_task(devices.stop(device))
        await asyncio.wait_for(stopped.wait(), 10)
        assert not stopping.done()
    await stopping


async def test_a_part_that_cannot_be_stopped_keeps_no_other_from_it(hass, monkeypatch):
    stopped = []

    async def stop(part):
        stopped.append(part)
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(devices.resources, "stop", stop)
    monkeypatch.setattr(devices.outboxes, "stop", stop)
    device = devices.Device(hass, None, statuses.Status(hass), None, resources="S2", outbox="outbox")
    await devices.stop(device)
    assert stopped == ["S2", "outbox"]


async def test_what_the_interpreted_edge_is_given_says_little_of_itself(hass):
    device = devices.Device(hass, "x" * 1000, statuses.Status(hass, attributes={"x": "x" * 1000}), "x" * 1000)
    app = apps.App("x" * 1000, ["x" * 1000], devices=[device])
    for each in (app, device, device.status, apps.Stage(running=app)):
        assert len(repr(each)) < MAX_REPR
