"""Over outages of the server and of Home Assistant nothing is lost, and nothing is stored twice."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
import pytest_socket

from tests.demo import battery
from tests.e2e.test_main_job import errors
from tests.parts.home_assistant import HomeAssistant, install
from tests.parts.s2_devices import HomeBattery

SCHEDULE = "sensor.flexmeasures_schedule"
STATUS = "sensor.flexmeasures_status"
S2_BATTERY = "sensor.flexmeasures_s2_home_battery"
START = datetime(2026, 11, 20, 9, tzinfo=UTC)
QUARTER, MINUTE = timedelta(minutes=15), timedelta(minutes=1)
pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture(scope="module")
def sensors(flexmeasures_server):
    """Add a sensor of 15 minutes, and one of a minute, the finest that FlexMeasures knows."""
    pytest_socket.enable_socket()
    return flexmeasures_server.add_sensor("kW", 15), flexmeasures_server.add_sensor("kW", 1)


@pytest.fixture(scope="module")
def home_assistant(flexmeasures_server, sensors, source, tmp_path_factory):
    """Run Home Assistant, logging all that can be logged."""
    pytest_socket.enable_socket()
    config = tmp_path_factory.mktemp("home-assistant")
    install(config, source)
    section = battery(flexmeasures_server) | {
        "soc_entity": "sensor.battery",
        "measurements": [{"entity": "sensor.grid", "sensor": sensors[1]}],
        "cron": "7 13 * * *",
        "schedule_duration": "PT4H",
    }
    logger = {"logger": {"default": "debug"}}
    home_assistant = HomeAssistant(config, section, sections=logger)
    asyncio.run(home_assistant.start())
    yield home_assistant
    pytest_socket.enable_socket()
    asyncio.run(home_assistant.stop())


async def devices_speak(home_assistant):
    """Set what the user's devices say: a power that is another each time, so that no mean comes twice."""
    power = 1000 + datetime.now(UTC).timestamp() % 3600
    await home_assistant.set_state("sensor.battery", "4", unit_of_measurement="kWh")
    await home_assistant.set_state("sensor.grid", str(power), unit_of_measurement="W")


async def post(home_assistant, sensor, number):
    """Post one value of a quarter."""
    return await home_assistant.call(
        "flexmeasures",
        "post_measurements",
        {
            "sensor_id": sensor,
            "values": number,
            "start": (START + number * QUARTER).isoformat(),
            "duration": "PT15M",
        },
        return_response=True,
    )


async def s2_battery_planned(home_assistant) -> dict:
    """Let a battery that speaks S2 get its plan, and return the attributes that show it, once it is kept."""
    await home_assistant.wait_for_s2()
    async with HomeBattery(home_assistant.s2_url, every=0.2):
        state = await home_assistant.wait_for_state(
            S2_BATTERY,
            lambda state: state["attributes"]["has_schedule"] and state["attributes"]["instruction"],
        )
        file = home_assistant.config / ".storage" / "flexmeasures_for_pyscript.resources"
        async with asyncio.timeout(30):
            while '"described"' not in await asyncio.to_thread(file.read_text):
                await asyncio.sleep(0.5)
    return state["attributes"]


async def s2_battery_goes_on(home_assistant, shown) -> None:
    """Check that the battery is told at once what is due now, of the plan that it had before.

    That is not what was shown where it was told to rest at first, since the server took long.
    """
    file = home_assistant.config / ".storage" / "flexmeasures_for_pyscript.resources"
    kept = json.loads(await asyncio.to_thread(file.read_text))["data"]["users"]
    [plan] = [json.loads(each["plan"]["plan"]) for user in kept.values() for each in user.values()]
    await home_assistant.wait_for_s2()
    resource_id = shown["resource_id"]
    async with HomeBattery(home_assistant.s2_url, every=0.2, resource_id=resource_id) as s2_battery:
        async with asyncio.timeout(10):
            while not s2_battery.instructions:
                await asyncio.sleep(0.05)
        due = [each["mode"] for each in plan["changes"] if each["moment"] <= datetime.now(UTC).timestamp()]
        assert s2_battery.instructions[0]["operation_mode"] == due[-1]
        again = (await home_assistant.state(S2_BATTERY))["attributes"]
        assert again["planned_until"] == shown["planned_until"]
        assert again["has_schedule"] is True


async def test_nothing_is_lost_and_nothing_twice(home_assistant, flexmeasures_server, sensors):
    posted, measured = sensors
    await devices_speak(home_assistant)
    await home_assistant.call("flexmeasures", "trigger_and_get_schedule", {"soc_at_start": 4})
    shown = await s2_battery_planned(home_assistant)
    planned = await home_assistant.state(SCHEDULE)
    assert (await post(home_assistant, posted, 0))["delivered"] is True
    await asyncio.to_thread(flexmeasures_server.stop)
    for number in (1, 2, 3):
        assert (await post(home_assistant, posted, number))["delivered"] is False
        await devices_speak(home_assistant)
    waiting = await home_assistant.wait_for_state(
        STATUS, lambda state: state["attributes"]["outbox"] >= 4, 90
    )
    assert waiting["state"] == "unreachable"
    home_assistant.kill()
    await home_assistant.start()
    restored = await home_assistant.state(SCHEDULE)
    assert restored["attributes"] == planned["attributes"]
    await s2_battery_goes_on(home_assistant, shown)
    status = await home_assistant.state(STATUS)
    assert status["attributes"]["outbox"] >= waiting["attributes"]["outbox"]
    await devices_speak(home_assistant)
    assert (await post(home_assistant, posted, 4))["delivered"] is False
    await asyncio.to_thread(flexmeasures_server.start)
    await home_assistant.wait_for_state(
        STATUS, lambda state: state["state"] == "ok" and state["attributes"]["outbox"] == 0, 90
    )
    stored = await asyncio.to_thread(flexmeasures_server.beliefs, posted)
    assert stored == [(START + number * QUARTER, number) for number in range(5)]
    means = await asyncio.to_thread(flexmeasures_server.beliefs, measured)
    starts = [start for start, _value in means]
    assert len(set(starts)) == len(starts) >= 1
    assert all(1 <= value <= 4.6 for _start, value in means)


async def test_twenty_reloads_lose_nothing(home_assistant, flexmeasures_server, sensors):
    before = await home_assistant.state(SCHEDULE)
    for _ in range(20):
        await home_assistant.reload_scripts()
    await home_assistant.wait_for_state(STATUS, lambda state: state["state"] == "ok")
    after = await home_assistant.state(SCHEDULE)
    assert after["attributes"] == before["attributes"]
    assert (await post(home_assistant, sensors[0], 5))["delivered"] is True
    assert errors(home_assistant.log) == ""


@pytest.mark.long
async def test_seven_days_at_five_minutes_stay_under_the_recorders_limit(home_assistant, flexmeasures_server):
    ids = flexmeasures_server.ids
    await asyncio.to_thread(flexmeasures_server.post_prices, datetime.now(UTC), 9 * 24)
    home_assistant.app_config["power_sensor"] = ids.power_sensor_5min
    home_assistant.app_config.pop("soc_sensor")
    await home_assistant.restart()
    response = await home_assistant.call(
        "flexmeasures",
        "trigger_and_get_schedule",
        {"soc_at_start": 4, "duration": "P7D"},
        return_response=True,
    )
    assert len(response["schedule"]) == 7 * 24 * 12
    shown = (await home_assistant.state(SCHEDULE))["attributes"]
    assert shown["schedule"] == response["schedule"][: len(shown["schedule"])]
    assert len(shown["schedule"]) > 100
    assert shown["duration"] == "P7D"
    await asyncio.sleep(6)
    assert "exceed maximum size" not in home_assistant.log


async def test_no_secret_reaches_the_log_of_any_level(home_assistant, flexmeasures_server):
    await home_assistant.call("flexmeasures", "trigger_and_get_schedule", {"soc_at_start": 4})
    log = home_assistant.log
    assert "requestAuthToken" in log
    assert "'Authorization': **redacted**" in log
    assert flexmeasures_server.password not in log
    token = await asyncio.to_thread(flexmeasures_server.token)
    user_part = token.lstrip(".").split(".")[0]  # a token that was compressed begins with a point
    assert len(user_part) > len("user")
    assert user_part not in log
