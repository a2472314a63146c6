"""The main job from a user's side: Home Assistant as a process, real FlexMeasures, real scripts."""

import asyncio
from datetime import datetime

import aiohttp
import pytest
import pytest_socket
from flexmeasures_client import FlexMeasuresClient

from tests.demo import battery
from tests.parts.home_assistant import HomeAssistant, ServiceFailed, install

SCHEDULE = "sensor.flexmeasures_schedule"
STATUS = "sensor.flexmeasures_status"
CALL = ("flexmeasures", "trigger_and_get_schedule")
FOUR_HOURS = {"soc_at_start": 4, "duration": "PT4H"}


@pytest.fixture(scope="module")
def home_assistant(flexmeasures_server, installation, tmp_path_factory):
    """Run Home Assistant with the scripts installed as docs/install.md says."""
    pytest_socket.enable_socket()
    config = tmp_path_factory.mktemp("home-assistant")
    install(config, installation.source)
    home_assistant = HomeAssistant(config, battery(flexmeasures_server), python=installation.python)
    asyncio.run(home_assistant.start())
    yield home_assistant
    pytest_socket.enable_socket()
    asyncio.run(home_assistant.stop())


pytestmark = pytest.mark.usefixtures("socket_enabled")


async def test_the_sensor_equals_what_a_direct_client_gets(home_assistant, flexmeasures_server):
    async with home_assistant.events("flexmeasures_schedule_updated") as events:
        response = await home_assistant.call(*CALL, {"soc_at_start": 4}, return_response=True)
        event = await asyncio.wait_for(anext(events), 10)
    ids = flexmeasures_server.ids
    async with aiohttp.ClientSession() as session:
        client = FlexMeasuresClient(
            flexmeasures_server.password,
            flexmeasures_server.username,
            flexmeasures_server.url.removeprefix("http://"),
            session=session,
            job_polling_interval=0.25,
        )
        direct = await client.trigger_and_get_schedule(
            sensor_id=ids.power_sensor,
            start=response["start"],
            duration="PT24H",
            flex_model={
                "soc-at-start": "4 kWh",
                "soc-min": "1 kWh",
                "soc-max": "10 kWh",
                "power-capacity": "5 kW",
                "roundtrip-efficiency": "90 %",
            },
            flex_context={
                "consumption-price": {"sensor": ids.price_sensor},
                "production-price": {"sensor": ids.price_sensor},
            },
            unit="kW",
        )
    state = await home_assistant.state(SCHEDULE)
    shown = state["attributes"]
    assert [entry["value"] for entry in shown["schedule"]] == direct["values"]
    assert len(direct["values"]) == 96
    assert datetime.fromisoformat(shown["start"]) == datetime.fromisoformat(direct["start"])
    assert shown["schedule"] == response["schedule"]
    assert shown["unit_of_measurement"] == "kW"
    assert shown["friendly_name"] == "FlexMeasures Schedule"
    assert event["data"]["start"] == shown["start"]
    assert (await home_assistant.state(STATUS))["state"] == "ok"


async def test_a_mistake_reaches_the_caller_with_its_text(home_assistant):
    with pytest.raises(ServiceFailed, match="soc_at_start is missing"):
        await home_assistant.call(*CALL)
    with pytest.raises(ServiceFailed, match="duration: expected an ISO 8601 duration"):
        await home_assistant.call(*CALL, {"soc_at_start": 4, "duration": "a day"}, return_response=True)
    assert (await home_assistant.state(STATUS))["state"] == "ok"
    notifications = await home_assistant.notifications()
    assert not [each for each in notifications if "flexmeasures" in each["notification_id"]]


async def test_the_services_fields_are_described_to_the_user(home_assistant):
    services = await home_assistant.services()
    described = services["flexmeasures"]["trigger_and_get_schedule"]
    assert described["name"] == "Trigger and get schedule"
    assert set(described["fields"]) == {
        "soc_at_start",
        "soc_targets",
        "soc_minima",
        "soc_maxima",
        "start",
        "duration",
        "flex_model",
        "flex_context",
    }
    assert all(field["description"] and field["selector"] for field in described["fields"].values())
    assert described["response"] == {"optional": True}


async def test_an_edit_of_the_scripts_is_live(home_assistant):
    module = home_assistant.config / "pyscript" / "modules" / "flexmeasures_home" / "schedule_state.py"
    text = module.read_text()
    module.write_text(text.replace('"FlexMeasures Schedule"', '"Edited"'))
    try:
        await home_assistant.reload_scripts()
        named = await home_assistant.wait_for_state(
            SCHEDULE, lambda s: s["attributes"]["friendly_name"] == "Edited"
        )
        assert len(named["attributes"]["schedule"]) == 96
    finally:
        module.write_text(text)
        await home_assistant.reload_scripts()
    await home_assistant.wait_for_state(
        SCHEDULE, lambda state: state["attributes"]["friendly_name"] == "FlexMeasures Schedule"
    )
    await asyncio.sleep(4)  # pyscript's own watcher has seen the edit too, and reloads after a while


async def test_a_server_that_goes_away_costs_no_schedule(home_assistant, flexmeasures_server):
    await home_assistant.call(*CALL, FOUR_HOURS)
    before = await home_assistant.state(SCHEDULE)
    flexmeasures_server.stop_web()
    try:
        with pytest.raises(ServiceFailed, match="cannot be reached"):
            await home_assistant.call(*CALL, FOUR_HOURS)
        assert (await home_assistant.state(STATUS))["state"] == "unreachable"
        assert (await home_assistant.state(SCHEDULE))["attributes"] == before["attributes"]
    finally:
        flexmeasures_server.start_web()
    await home_assistant.call(*CALL, FOUR_HOURS)
    assert (await home_assistant.state(STATUS))["state"] == "ok"


async def test_a_restart_keeps_the_schedule(home_assistant):
    await home_assistant.call(*CALL, FOUR_HOURS)
    before = await home_assistant.state(SCHEDULE)
    await home_assistant.restart()
    after = await home_assistant.state(SCHEDULE)
    assert after["attributes"] == before["attributes"]
    assert errors(home_assistant.log) == ""


def errors(log: str) -> str:
    """Return the lines of a log at level ERROR that are pyscript's or of our scripts."""
    error_lines = [line for line in log.splitlines() if " ERROR " in line]
    ours = ("[custom_components.pyscript", "for integration: flexmeasures")
    return "\n".join(line for line in error_lines if any(mark in line for mark in ours))
