"""What the README tells a user to write works as it stands there."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_socket
import yaml

from tests.demo import battery
from tests.parts.home_assistant import HomeAssistant, install

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("socket_enabled")
BATTERY = {
    "input_number": {"setpoint": {"min": -10, "max": 10, "step": 0.001, "initial": 9}},
    "template": [
        {"sensor": [{"name": "battery_energy", "state": "4", "unit_of_measurement": "kWh"}]},
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


class SecretsAsText(yaml.SafeLoader):
    """Reads `!secret name` as text."""


SecretsAsText.add_constructor("!secret", lambda loader, node: loader.construct_scalar(node))


def blocks() -> list:
    """Return the README's YAML."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^( *)```yaml\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [
        yaml.load(re.sub(f"^{indent}", "", block, flags=re.MULTILINE), SecretsAsText)
        for indent, block in found
    ]


@pytest.fixture(scope="module")
def home_assistant(flexmeasures_server, source, tmp_path_factory):
    """Run Home Assistant with the README's automations, and a battery for them."""
    pytest_socket.enable_socket()
    config = tmp_path_factory.mktemp("home-assistant")
    install(config, source)
    automations = next(block for block in blocks() if "automation" in block)
    home_assistant = HomeAssistant(config, battery(flexmeasures_server), sections=BATTERY | automations)
    asyncio.run(home_assistant.start())
    yield home_assistant
    pytest_socket.enable_socket()
    asyncio.run(home_assistant.stop())


def test_the_configuration_is_a_right_one(load):
    section = next(block["pyscript"] for block in blocks() if "pyscript" in block)
    assert section["allow_all_imports"] is True
    _configuration, mistakes = load("flexmeasures.configuration").read(section["apps"]["flexmeasures"])
    assert mistakes == []


async def test_the_calls_are_right_ones(home_assistant):
    calls = [block for block in blocks() if "action" in block]
    assert len(calls) == 2
    later = (datetime.now(UTC) + timedelta(hours=10)).isoformat()
    for call in calls:
        for target in call["data"].get("soc_targets", []):
            target["datetime"] = later
        response = await home_assistant.call(*call["action"].split("."), call["data"], return_response=True)
        assert response["soc"][0] == 4


async def test_the_automations_plan_and_follow(home_assistant):
    await home_assistant.call("automation", "trigger", {"entity_id": "automation.plan_the_battery"})
    planned = await home_assistant.wait_for_state(
        "sensor.flexmeasures_schedule", lambda state: len(state["attributes"].get("schedule", [])) > 0, 60
    )
    fullest = max(planned["attributes"]["soc"])
    assert fullest == pytest.approx(10, abs=0.01) or planned["attributes"]["missed_targets"]
    running = (datetime.now(UTC) - timedelta(minutes=16)).isoformat()
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
