"""Devices that connect one after another to a Home Assistant process, each with a description of its own."""

import asyncio
import contextlib
import copy
import time

import pytest

from tests.demo import battery
from tests.parts.home_assistant import HomeAssistant, install
from tests.parts.s2_devices import HomeBattery

pytestmark = [pytest.mark.usefixtures("socket_enabled"), pytest.mark.long]
DEVICES, SECONDS_BETWEEN, WITHIN = 30, 20.0, 5.0


def battery_of(share: float) -> type[HomeBattery]:
    """Return a battery with so many times the power of the usual one, so that its description is another."""
    description = copy.deepcopy(HomeBattery.description)
    for mode in description["actuators"][0]["operation_modes"]:
        for element in mode["elements"]:
            for each in [element["fill_rate"], *element["power_ranges"]]:
                each["start_of_range"] *= share
                each["end_of_range"] *= share
    return type("BatteryOfItsOwn", (HomeBattery,), {"description": description})


@pytest.fixture
async def home_assistant(tmp_path, source, flexmeasures_server):
    """Run Home Assistant with a listener for S2 devices."""
    install(tmp_path, source)
    async with HomeAssistant(tmp_path, battery(flexmeasures_server)) as home_assistant:
        await home_assistant.wait_for_s2()
        yield home_assistant


async def test_each_new_device_has_its_first_instruction_within_five_seconds(home_assistant, record_property):
    waits = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(DEVICES):
            begin = time.monotonic()
            url, name = home_assistant.s2_url, f"Battery {number}"
            rm = battery_of(1 + number / 10)(url, name=name, every=5.0, fill_level=20 + 2 * number)
            await stack.enter_async_context(rm)
            while not rm.instructions and time.monotonic() - begin < SECONDS_BETWEEN:
                await asyncio.sleep(0.02)
            waits.append(round(time.monotonic() - begin, 2))
            await asyncio.sleep(max(0.0, begin + SECONDS_BETWEEN - time.monotonic()))
    record_property("seconds to the first instruction", str(waits))
    print("Seconds to the first instruction:", waits)
    assert max(waits) < WITHIN, waits
    assert "please report this" not in home_assistant.log
