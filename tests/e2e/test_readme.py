"""What the manual tells a user to write works as it stands there."""

import asyncio
import contextlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_socket
import yaml

import flexmeasures_home.services as services
from tests.demo import battery
from tests.parts import readme
from tests.parts.home_assistant import HomeAssistant, install
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_catalogue import DEVICES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("socket_enabled")
BATTERY = {
    "input_number": {
        "setpoint": {"min": -10, "max": 10, "step": 0.001, "initial": 9},
        "watts": {"min": -10000, "max": 10000, "step": 0.001, "initial": 9},
        "car": {"min": 0, "max": 100, "initial": 20, "unit_of_measurement": "%"},
    },
    "input_boolean": {"plugged_in": {"initial": False}},
    "template": [
        {
            "sensor": [
                {"name": "battery_energy", "state": "4", "unit_of_measurement": "kWh"},
                {"name": "battery_power", "state": "1500", "unit_of_measurement": "W"},
            ]
        },
        {
            "number": [
                {
                    "name": "battery_setpoint",
                    "state": "{{ states('input_number.setpoint') }}",
                    "min": -10,
                    "max": 10,
                    "step": 0.001,
                    "set_value": [
                        {
                            "action": "input_number.set_value",
                            "target": {"entity_id": "input_number.setpoint"},
                            "data": {"value": "{{ value }}"},
                        }
                    ],
                }
            ]
        },
    ],
}


A_QUARTER_KWH = 1.3
"""By how much the state of charge may change from now until the schedule starts."""
BLUEPRINTS = [
    {
        "alias": "Follow by blueprint",
        "use_blueprint": {
            "path": "flexmeasures/follow_schedule.yaml",
            "input": {"setpoint": "input_number.watts", "factor": 1000},
        },
    },
    {
        "alias": "Car by blueprint",
        "use_blueprint": {
            "path": "flexmeasures/plan_for_departure.yaml",
            "input": {"state_of_charge": "input_number.car", "plugged_in": "input_boolean.plugged_in"},
        },
    },
]


@pytest.fixture(scope="module")
def home_assistant(flexmeasures_server, source, tmp_path_factory):
    """Run Home Assistant with the manual's automations, and a battery for them."""
    pytest_socket.enable_socket()
    config = tmp_path_factory.mktemp("home-assistant")
    install(config, source)
    of_the_user_interface = {"automation": BLUEPRINTS}
    written = readme.automations("First automation") | readme.automations("States and events")
    logs = [block["logger"]["logs"] for block in readme.blocks() if "logger" in block]
    logger = {"logger": {"logs": logs[0] | logs[1]}}
    sections = BATTERY | of_the_user_interface | written | logger
    app = battery(flexmeasures_server) | {"schedule_duration": "PT4H"}
    home_assistant = HomeAssistant(config, app, sections=sections)
    asyncio.run(home_assistant.start())
    yield home_assistant
    pytest_socket.enable_socket()
    asyncio.run(home_assistant.stop())


def test_no_block_of_automations_replaces_the_users_own():
    assert len(readme.automations()) == 5
    assert all(re.fullmatch(r"automation \w+", key) for key in readme.automations())


@pytest.mark.parametrize("number", range(10))
def test_the_configurations_are_right_ones(configuration, number):
    assert len(readme.app_configurations()) == 10
    _configuration, mistakes = configuration.read(readme.app_configurations()[number])
    assert mistakes == []


def test_the_part_on_resources_is_right(configuration):
    [part] = [block["s2"] for block in readme.blocks() if "s2" in block]
    settings, mistakes = configuration.read(readme.app_configurations()[0] | {"s2": part})
    assert mistakes == []
    listed = {"power_sensor": 12, "soc_sensor": 13, "energy_per_fill_level": 100, "cycle_cost": 0.04}
    assert settings.s2.resources == {"Home battery": listed}


def test_every_key_field_and_attribute_is_in_the_reference(configuration):
    text = readme.text_of_manual()
    keys = [
        *configuration.SCHEMA.schema,
        *configuration.MEASUREMENT,
        *configuration.DAILY_TARGET,
        *configuration.S2_SCHEMA.schema,
        *configuration.LIMITS_SCHEMA.schema,
        *configuration.RESOURCE,
    ]
    for schema_of, _act in services.SERVICES.values():
        given = SimpleNamespace(soc_unit="kWh", soc_max=1, soc_entity=None)
        keys += list(schema_of(given).schema)
    assert [key for key in keys if f"`{key}`" not in text] == []


async def test_the_calls_are_right_ones(home_assistant, flexmeasures_server):
    calls = [block for block in readme.blocks() if "action" in block]
    names = [call["action"].removeprefix("flexmeasures.") for call in calls]
    assert set(names) == {
        "trigger_and_get_schedule",
        "post_measurements",
        "get_measurements",
        "change_control_type",
    }
    later = (datetime.now(UTC) + timedelta(hours=10)).isoformat()
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    answers = []
    types = ("FILL_RATE_BASED_CONTROL", "NOT_CONTROLABLE")
    await home_assistant.wait_for_s2()
    async with ResourceManager(home_assistant.s2_url, name="Home battery", control_types=types) as rm:
        assert await rm.establish() == types[0]
        for call in calls:
            data = call["data"] | ({"sensor_id": sensor} if "sensor_id" in call["data"] else {})
            for target in data.get("soc_targets", []):
                target["datetime"] = later
            answers.append(await home_assistant.call(*call["action"].split("."), data, return_response=True))
    for name, answer in zip(names, answers, strict=True):
        match name:
            case "trigger_and_get_schedule":
                assert answer["soc"][0] == 4
            case "post_measurements":
                assert answer["delivered"] is True
            case "get_measurements":
                assert answer["values"] == [1.5, 1.2, None, 0.8]
            case "change_control_type":
                assert answer == {"resource_id": rm.details["resource_id"], "control_type": "NOT_CONTROLABLE"}
    assert (await asyncio.to_thread(flexmeasures_server.beliefs, sensor))[-1][1] == 1.5


async def test_missed_targets_are_told_by_the_automation(home_assistant):
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    call = {"soc_at_start": 1, "soc_targets": [{"value": 10, "datetime": soon}]}
    await home_assistant.call("flexmeasures", "trigger_and_get_schedule", call)
    for _ in range(100):
        told = {each["notification_id"]: each["message"] for each in await home_assistant.notifications()}
        if "missed_targets" in told:
            break
        await asyncio.sleep(0.1)
    assert told["missed_targets"].startswith("10.0 is asked, and")


async def test_the_second_configuration_plans_and_measures_by_itself(home_assistant, flexmeasures_server):
    ids = flexmeasures_server.ids
    power = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 1)
    numbers = {2: ids.power_sensor, 3: ids.soc_sensor, 4: ids.price_sensor, 5: power}
    section = readme.app_configurations("Plan automatically")[0]
    section |= {name: numbers[section[name]] for name in section if name.endswith("_sensor")}
    section["measurements"] = [item | {"sensor": numbers[item["sensor"]]} for item in section["measurements"]]
    server = {"host": flexmeasures_server.url, "username": ids.username, "password": ids.password}
    before = home_assistant.app_config
    home_assistant.app_config = section | server
    (home_assistant.config / ".storage" / "flexmeasures_for_pyscript.schedule").unlink()
    await home_assistant.restart()
    try:
        await home_assistant.wait_for_state(
            "sensor.flexmeasures_schedule", lambda state: len(state["attributes"].get("soc") or []) == 97, 60
        )
        status = await home_assistant.state("sensor.flexmeasures_status")
        due = datetime.fromisoformat(status["attributes"]["next_plan"])
        assert timedelta(0) < due - datetime.now(UTC) <= timedelta(minutes=15)
        stored = []
        while not stored:
            await asyncio.sleep(1)
            stored = await asyncio.to_thread(flexmeasures_server.beliefs, power)
        assert stored[0][1] == 1.5
    finally:
        home_assistant.app_config = before
        await home_assistant.restart()


def this_quarter() -> str:
    """Return when the interval under way began."""
    now = datetime.now(UTC)
    return now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0).isoformat()


async def test_the_automations_plan_and_follow(home_assistant):
    await home_assistant.call("automation", "trigger", {"entity_id": "automation.plan_the_battery"})
    planned = await home_assistant.wait_for_state(
        "sensor.flexmeasures_schedule", lambda state: len(state["attributes"].get("schedule", [])) > 0, 60
    )
    fullest = max(planned["attributes"]["soc"])
    assert fullest == pytest.approx(10, abs=0.01) or planned["attributes"]["missed_targets"]
    running = this_quarter()
    response = await home_assistant.call(
        "flexmeasures",
        "trigger_and_get_schedule",
        {"soc_at_start": 4, "start": running},
        return_response=True,
    )
    due = (await home_assistant.state("sensor.flexmeasures_schedule"))["state"]
    assert float(due) in {entry["value"] for entry in response["schedule"][:2]}
    setpoint = await home_assistant.wait_for_state(
        "number.battery_setpoint", lambda state: float(state["state"]) == pytest.approx(float(due), abs=0.001)
    )
    assert setpoint["state"] != "9.0"


async def test_the_blueprints_plan_a_car_and_follow(home_assistant):
    async with home_assistant.events("flexmeasures_schedule_updated") as events:
        await home_assistant.call("input_boolean", "turn_on", {"entity_id": "input_boolean.plugged_in"})
        await asyncio.wait_for(anext(events), 60)
    await home_assistant.call("input_boolean", "turn_off", {"entity_id": "input_boolean.plugged_in"})
    planned = (await home_assistant.state("sensor.flexmeasures_schedule"))["attributes"]
    assert planned["soc"][0] == pytest.approx(2, abs=A_QUARTER_KWH)
    assert max(planned["soc"]) >= 8 - 0.01 or planned["missed_targets"]
    running = this_quarter()
    call = {"soc_at_start": 4, "start": running}
    await home_assistant.call("flexmeasures", "trigger_and_get_schedule", call)
    due = float((await home_assistant.state("sensor.flexmeasures_schedule"))["state"])
    await home_assistant.wait_for_state(
        "input_number.watts", lambda state: float(state["state"]) == pytest.approx(1000 * due, abs=1)
    )


async def test_a_car_that_is_plugged_in_twice_is_planned_as_it_is_then(home_assistant):
    plug = {"entity_id": "input_boolean.plugged_in"}
    for soc in (30, 60):
        await home_assistant.call("input_boolean", "turn_off", plug)
        await home_assistant.call(
            "input_number", "set_value", {"entity_id": "input_number.car", "value": soc}
        )
        await home_assistant.call("input_boolean", "turn_on", plug)
    await home_assistant.wait_for_state(
        "sensor.flexmeasures_schedule",
        lambda state: state["attributes"]["soc"][0] == pytest.approx(6, abs=A_QUARTER_KWH),
        60,
    )
    await home_assistant.wait_for_state("sensor.flexmeasures_status", lambda state: state["state"] == "ok")
    await home_assistant.wait_for_state(
        "automation.car_by_blueprint", lambda s: s["attributes"]["current"] == 0
    )
    await home_assistant.call("input_boolean", "turn_off", plug)


async def test_the_dashboard_shows_what_comes_next(home_assistant):
    await home_assistant.call("flexmeasures", "trigger_and_get_schedule", {"soc_at_start": 4})
    dashboard = yaml.safe_load((ROOT / "dashboards" / "flexmeasures.yaml").read_text())
    [upcoming, missed] = [
        card["content"] for card in dashboard["views"][0]["cards"] if card["type"] == "markdown"
    ]
    table = (await home_assistant.render(upcoming)).splitlines()
    assert table[0] == "| From | Planned | State of charge |"
    assert all(
        re.fullmatch(r"\| \w{3} \d\d:\d\d \| -?\d+\.\d+ kW \| \d+\.\d kWh \|", row) for row in table[2:]
    )
    assert len(table) > 4
    assert await home_assistant.render(missed) == "None."


async def test_the_dashboard_shows_devices_of_every_control_type(home_assistant):
    names = ("battery", "heat-pump", "hybrid-heat-pump", "washing-machine", "pv")
    dashboard = yaml.safe_load((ROOT / "dashboards" / "flexmeasures.yaml").read_text())
    [card] = dashboard["views"][1]["cards"]
    limited = {"label": "limited", "lower_limit": -1500.4, "upper_limit": 0, "power": -1500}
    limited["execution_time"] = "2026-03-02T12:00:00+01:00"
    attributes = {"friendly_name": "FlexMeasures S2 Roof | south", "instruction": limited, "plan": []}
    await home_assistant.set_state(
        "sensor.flexmeasures_s2_roof", "POWER_ENVELOPE_BASED_CONTROL", **attributes
    )
    async with contextlib.AsyncExitStack() as stack:
        devices = [DEVICES[name](home_assistant.s2_url, name=name, every=0.5) for name in names]
        for device in devices:
            await stack.enter_async_context(device)
        for name in names:
            entity = f"sensor.flexmeasures_s2_{name.replace('-', '_')}"
            await home_assistant.wait_for_state(entity, lambda state: state["attributes"]["has_schedule"], 90)
        table = (await home_assistant.render(card["content"])).splitlines()
    assert table[0] == "| Device | State | Fill level | Instruction in force | Next instruction |"
    told = r"none|[^|]+, -?\d+ W, from \w{3} \d\d:\d\d"
    for name, device in zip(names, devices, strict=True):
        [row] = [row for row in table if row.startswith(f"| {name} |")]
        level = r"\d+\.\d" if name == "battery" else ""
        kind = next(iter(device.offers)).replace("_", " ").lower()
        assert re.fullmatch(rf"\| {name} \| {kind} \| {level} \| ({told}) \| ({told}) \|", row), row
    assert (
        "| Roof &#124; south | power envelope based control |  "
        "| limited to -1500 … 0 W, -1500 W, from Mon 12:00 | none |"
    ) in table
