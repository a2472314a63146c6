"""A device's plan outlives its connection and the scripts, with the real FlexMeasures server."""

import asyncio
from dataclasses import asdict

from homeassistant.helpers.json import json_bytes

from tests.apps.flexmeasures.conftest import FRBC
from tests.parts import in_process
from tests.parts.s2_devices import HomeBattery

SECONDS = 4.0
"""Longer than a question that came of something would wait before it is asked."""


def asked(side) -> list:
    """Return when FlexMeasures was asked for a plan of the S2 devices, since the scripts were loaded."""
    return list(side.home.device.resources.site.made)


def in_force(side) -> dict | None:
    """Return the instruction that the battery's state shows."""
    return side.state() and side.state().attributes["instruction"]


def plan_of(side) -> dict:
    """Return the plan of the only device, whose classes are others after a reload."""
    [found] = side.home.device.resources.site.controlled.values()
    return asdict(found.plan)


async def test_a_battery_goes_on_with_its_plan_after_a_reconnect_and_after_a_reload(side, caplog):
    async with HomeBattery(side.url, every=0.2) as battery:
        await side.home.until(lambda: in_force(side) and side.state().attributes["has_schedule"])
        resource_id = str(battery._details.resource_id)
        await asyncio.sleep(1)
        before, first = asked(side), in_force(side)
        until = side.state().attributes["planned_until"]
    async with HomeBattery(side.url, every=0.2, resource_id=resource_id) as battery:
        await side.home.until(lambda: battery.instructions, seconds=4)
        assert battery.instructions[0]["operation_mode"] == first["operation_mode"]
        await asyncio.sleep(SECONDS)
        assert asked(side) == before
        assert side.state().attributes["planned_until"] == until
        assert side.state().attributes["has_schedule"] is True
        plan = plan_of(side)
        await in_process.reload(side.home.hass, global_ctx="*")
    await side.listening()
    async with HomeBattery(side.url, every=0.2, resource_id=resource_id) as battery:
        await side.until(FRBC)
        await side.home.until(lambda: battery.instructions, seconds=4)
        assert battery.instructions[0]["operation_mode"] == first["operation_mode"]
        await asyncio.sleep(SECONDS)
        assert asked(side) == []
        assert plan_of(side) == plan
        assert side.state().attributes["planned_until"] == until
        assert json_bytes(side.state().attributes["plan"])
        assert battery.rejected == []
    assert "please report this" not in caplog.text
