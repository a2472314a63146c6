"""S2 devices at a Home Assistant that runs as a process, and what reaches the real FlexMeasures of them."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from tests.demo import battery
from tests.parts.home_assistant import HomeAssistant, ServiceFailed, install
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_devices import Battery, Meter
from tests.parts.s2_messages import example

pytestmark = pytest.mark.usefixtures("socket_enabled")
TOKEN = "a token that nobody guesses"
FRBC, METER = "FILL_RATE_BASED_CONTROL", "NOT_CONTROLABLE"
GARAGE, KITCHEN, ROOF = (f"sensor.flexmeasures_s2_{name}" for name in ("garage", "kitchen", "roof"))


@pytest.fixture
async def home_assistant(tmp_path, installation, flexmeasures_server):
    """Run Home Assistant with a listener that asks for a token, and everything logged."""
    app = battery(flexmeasures_server) | {"schedule_duration": "PT4H", "s2": {"token": TOKEN}}
    logger = {"logger": {"logs": {"custom_components.pyscript": "debug"}}}
    install(tmp_path, installation.source)
    python = installation.python
    async with HomeAssistant(tmp_path, app, sections=logger, python=python) as home_assistant:
        await home_assistant.wait_for_s2()
        yield home_assistant


async def stored(server, sensor: int) -> list:
    """Wait until the server holds values of a sensor, and return them."""
    async with asyncio.timeout(60):
        while not (found := await asyncio.to_thread(server.beliefs, sensor)):
            await asyncio.sleep(0.5)
    return found


async def test_devices_connect_are_measured_and_come_back(home_assistant, flexmeasures_server):
    url = home_assistant.s2_url
    power = {"power": lambda _now: 750.0, "forecast": lambda _now: 600.0}
    async with contextlib.AsyncExitStack() as stack:
        kitchen = await stack.enter_async_context(Meter(url, token=TOKEN, name="Kitchen", every=0.2, **power))
        garage = await stack.enter_async_context(
            Battery(url, token=TOKEN, name="Garage", fill_level=61, every=0.2)
        )
        await asyncio.wait_for(asyncio.gather(kitchen.active.wait(), garage.active.wait()), 30)
        assert (kitchen.control_type, garage.control_type) == (METER, FRBC)
        seen = await home_assistant.wait_for_state(
            GARAGE,
            lambda state: state["attributes"]["fill_level"] == 61 and state["attributes"]["soc_sensor"],
        )
        assert seen["state"] == FRBC
        meter = await home_assistant.wait_for_state(
            KITCHEN, lambda state: state["attributes"]["power_sensor"]
        )
        forecast = await stored(flexmeasures_server, meter["attributes"]["power_sensor"])
        assert {value for _start, value in forecast[1:-1]} == {0.6}
        levels = await stored(flexmeasures_server, seen["attributes"]["soc_sensor"])
        assert levels[0][1] == 61
        with pytest.raises(ServiceFailed, match="several are connected"):
            await home_assistant.call("flexmeasures", "change_control_type", {"control_type": METER})
        call = {"control_type": METER, "resource_id": "Garage"}
        await home_assistant.call("flexmeasures", "change_control_type", call)
        await home_assistant.wait_for_state(GARAGE, lambda state: state["state"] == METER)
    await home_assistant.wait_for_state(GARAGE, lambda state: state["state"] == "disconnected")

    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    async with ResourceManager(url, token=TOKEN, name="Roof", control_types=(METER,)) as roof:
        await roof.establish()
        for minutes in (0, 15, 30):
            values = [{"commodity_quantity": "ELECTRIC.POWER.L1", "value": -1000 - 10 * minutes}]
            moment = (begin + timedelta(minutes=minutes)).isoformat()
            await roof.ask(example("PowerMeasurement", measurement_timestamp=moment, values=values))
        sensor = (await home_assistant.wait_for_state(ROOF, lambda s: s["attributes"]["power_sensor"]))[
            "attributes"
        ]["power_sensor"]
        assert (await stored(flexmeasures_server, sensor))[0] == (begin, pytest.approx(-1))
        await home_assistant.reload_scripts(global_ctx="*")
        assert await roof.closed() == 1001
        assert roof.received[-1]["request"] == "RECONNECT"

    await home_assistant.wait_for_s2()
    async with ResourceManager(
        url,
        token=TOKEN,
        name="Garage",
        resource_id=seen["attributes"]["resource_id"],
        control_types=(FRBC, METER),
    ) as again:
        assert await again.establish() == METER
        stopping = asyncio.create_task(home_assistant.stop())
        assert await again.closed(within=30) == 1001
        await stopping
    log = home_assistant.log
    assert '"message_type":"SelectControlType"' in log
    assert TOKEN not in log
    assert "please report this" not in log

    await home_assistant.start(entity=GARAGE)
    assert (await home_assistant.state(GARAGE))["attributes"]["soc_sensor"] == seen["attributes"][
        "soc_sensor"
    ]
