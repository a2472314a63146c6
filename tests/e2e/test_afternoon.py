"""An afternoon at a home whose prices end at midnight, in a Home Assistant process with the real server."""

import asyncio
import contextlib
import sqlite3
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import pytest_socket

from tests.demo import battery
from tests.parts.home_assistant import HomeAssistant, ServiceFailed, install
from tests.parts.installations import installations
from tests.parts.s2_devices import Battery

pytestmark = pytest.mark.usefixtures("socket_enabled")
CALL = ("flexmeasures", "trigger_and_get_schedule")
SCHEDULE, STATUS, SOC = "sensor.flexmeasures_schedule", "sensor.flexmeasures_status", "sensor.battery"
AMSTERDAM = ZoneInfo("Europe/Amsterdam")
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
MESSAGES = 30
"""How many messages a device sends in as many seconds, after the burst that is shown at once."""
BURST_SECONDS = 15
MAX_BYTES_A_DAY = 2_000_000
BYTES_OF_A_STATE = 200
"""What a row of the recorder's states and its indices take."""


def blueprint(alias: str, name: str, **inputs: object) -> dict:
    """Return an automation of one of our blueprints."""
    path = f"flexmeasures/{name}.yaml"
    return {"id": alias.lower(), "alias": alias, "use_blueprint": {"path": path, "input": inputs}}


@pytest.fixture(scope="module")
def begin() -> datetime:
    """Return the next full hour, from which prices are known for some hours."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + HOUR


@pytest.fixture(scope="module")
def home_assistant(flexmeasures_server, begin, tmp_path_factory):
    """Run Home Assistant with a battery, prices of seven hours, and a setpoint that follows the schedule."""
    pytest_socket.enable_socket()
    prices = flexmeasures_server.add_sensor("EUR/kWh", 60)
    flexmeasures_server.post_hours(prices, begin, [0.30] * 7, "EUR/kWh", datetime.now(UTC) - HOUR)
    installation = installations()[0]
    config = tmp_path_factory.mktemp("home-assistant")
    install(config, installation.source)
    follower = {"setpoint": "input_number.setpoint", "factor": 1000, "resend": "/1"}
    sections = {
        "input_boolean": {"plugged_in": None},
        "input_number": {"setpoint": {"min": -5000, "max": 3000, "step": 1}},
        "automation": [blueprint("Follow", "follow_schedule", **follower)],
    }
    app = battery(flexmeasures_server) | {
        "consumption_price_sensor": prices,
        "soc_entity": SOC,
        "production_capacity": "0 kW",
        "schedule_duration": "PT4H",
        "s2": {},
    }
    home_assistant = HomeAssistant(config, app, sections=sections, python=installation.python)
    asyncio.run(home_assistant.start())
    yield home_assistant
    pytest_socket.enable_socket()
    asyncio.run(home_assistant.stop())


async def say(home_assistant, percent: str) -> None:
    """Set the battery's state of charge."""
    await home_assistant.set_state(SOC, percent, unit_of_measurement="%")


async def test_hours_without_a_price_are_not_free(home_assistant, begin):
    target = {"value": 9, "datetime": (begin + 20 * HOUR).isoformat()}
    call = {"soc_at_start": 5, "start": begin.isoformat(), "duration": "PT20H", "soc_targets": [target]}
    response = await home_assistant.call(*CALL, call, return_response=True)
    assert response["cost"] == pytest.approx(0.30 * 4 / 0.9**0.5, rel=0.01)
    assert datetime.fromisoformat(response["prices_known_until"]) == begin + 7 * HOUR
    shown = (await home_assistant.state(STATUS))["attributes"]
    assert shown["prices_known_until"] == response["prices_known_until"]


async def test_a_feed_in_tariff_above_the_price_still_gets_a_schedule(home_assistant):
    context = {"production-price": "0.31 EUR/kWh"}
    call = {"soc_at_start": 5, "duration": "PT4H", "flex_context": context}
    response = await home_assistant.call(*CALL, call, return_response=True)
    assert len(response["schedule"]) == 16
    assert "Feeding in pays more than consuming costs" in response["warnings"][-1]


async def test_a_forgotten_percent_sign_is_told_to_the_caller_alone(home_assistant):
    with pytest.raises(ServiceFailed, match="55 kWh is more than soc_max, 10 kWh: did you mean 55 %"):
        await home_assistant.call(*CALL, {"soc_at_start": 55})
    assert (await home_assistant.state(STATUS))["state"] == "ok"


async def test_one_odd_reading_is_not_planned_on(home_assistant):
    await say(home_assistant, "55")
    await asyncio.sleep(0.5)
    await say(home_assistant, "0")
    response = await home_assistant.call(*CALL, {"duration": "PT4H"}, return_response=True)
    await say(home_assistant, "55")
    assert response["soc"][0] > 5
    assert "which its power cannot explain" in response["warnings"][0]


async def test_the_charger_does_as_planned_and_the_car_is_charged_until_it_leaves(home_assistant):
    await say(home_assistant, "55")
    setpoint = "input_number.setpoint"
    now = datetime.now(UTC)
    quarter = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0).isoformat()
    minimum = {"value": 9, "start": quarter, "duration": "PT4H"}
    await home_assistant.call(*CALL, {"start": quarter, "duration": "PT4H", "soc_minima": [minimum]})
    await home_assistant.wait_for_state(SCHEDULE, lambda state: state["state"] == "5.0", within=5)
    await home_assistant.wait_for_state(setpoint, lambda state: float(state["state"]) == 3000)
    [notice] = [
        each["message"]
        for each in await home_assistant.notifications()
        if each["notification_id"] == "flexmeasures_input_number_setpoint"
    ]
    assert "outside the range of input_number.setpoint" in notice
    await home_assistant.call("input_number", "set_value", {"entity_id": setpoint, "value": 0})

    departure = (datetime.now(AMSTERDAM) + 80 * SECOND).replace(second=0, microsecond=0)
    plugged_in = "input_boolean.plugged_in"
    car = {"state_of_charge": SOC, "plugged_in": plugged_in, "target": "90 %"}
    automation = blueprint("Car", "plan_for_departure", departure=departure.strftime("%H:%M:%S"), **car)
    home_assistant.change_sections(automation=[*home_assistant.sections["automation"], automation])
    await home_assistant.call("automation", "reload")
    await home_assistant.call("input_boolean", "turn_on", {"entity_id": plugged_in})
    planned = await home_assistant.wait_for_state(
        SCHEDULE, lambda state: missed_fields(state) == ["soc_targets"], within=60
    )
    [missed] = planned["attributes"]["missed_targets"]
    assert missed["asked"] == 9
    assert departure <= datetime.fromisoformat(missed["datetime"]) < departure + 15 * MINUTE

    await asyncio.sleep((departure - datetime.now(UTC) + SECOND).total_seconds())
    await home_assistant.wait_for_state(setpoint, lambda state: float(state["state"]) == 3000, within=60)
    async with home_assistant.events("flexmeasures_schedule_updated") as events:
        await home_assistant.call("automation", "trigger", {"entity_id": "automation.car"})
        await asyncio.wait_for(anext(events), 60)
    late = await home_assistant.state(SCHEDULE)
    assert [entry["value"] for entry in late["attributes"]["schedule"][:2]] == [5.0, 5.0]
    assert "soc_minima" in missed_fields(late)


def missed_fields(schedule: dict) -> list[str]:
    """Return the fields of the targets that a schedule misses."""
    return [miss["field"] for miss in schedule["attributes"]["missed_targets"]]


async def test_a_device_that_speaks_each_second_costs_the_recorder_little(home_assistant):
    await home_assistant.wait_for_s2()
    async with Battery(home_assistant.s2_url, name="Garage", fill_level=61, every=1.0) as garage:
        await asyncio.wait_for(garage.active.wait(), 30)
        garage_state = "sensor.flexmeasures_s2_garage"
        await home_assistant.wait_for_state(
            garage_state, lambda state: state["attributes"].get("has_schedule"), within=60
        )
        await asyncio.sleep(BURST_SECONDS)
        before = recorded(home_assistant, garage_state)
        await asyncio.sleep(MESSAGES)
        after = recorded(home_assistant, garage_state)
    assert before > 0
    assert (after - before) * 86_400 / MESSAGES < MAX_BYTES_A_DAY


def recorded(home_assistant, entity_id: str) -> int:
    """Return how many bytes the recorder's database holds of an entity."""
    of_entity = "from states join states_meta using (metadata_id) where states_meta.entity_id = ?"
    with contextlib.closing(sqlite3.connect(home_assistant.config / "home-assistant_v2.db")) as database:
        [(states,)] = database.execute(f"select count(*) {of_entity}", (entity_id,))
        [(attributes,)] = database.execute(
            f"select sum(length(shared_attrs)) from state_attributes where attributes_id in "
            f"(select attributes_id {of_entity})",
            (entity_id,),
        )
    return BYTES_OF_A_STATE * states + (attributes or 0)
