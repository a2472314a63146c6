"""The Home Assistant process that the end-to-end tests and the demo use."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_socket

from tests.parts.home_assistant import HomeAssistant, ServiceFailed, install
from tests.parts.pyscript_source import source

APP = '''
import sample_module.answer as answer

@service("flexmeasures.echo", supports_response="optional")
async def echo(**data):
    """yaml
name: Echo
"""

@time_trigger("startup")
async def startup():
    answer.expose("flexmeasures", "echo")
    state.set("sensor.flexmeasures_status", "ok", new_attributes=pyscript.app_config)
'''
MODULE = """
import voluptuous as vol
from homeassistant.components import persistent_notification
from homeassistant.core import SupportsResponse, async_get_hass
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError

@pyscript_compile
async def echo(call):
    if call.data["value"] == 1:
        raise ServiceValidationError("value is 1: give another")
    if call.data["value"] == 2:
        raise HomeAssistantError("the server is away")
    async_get_hass().bus.async_fire("echoed", dict(call.data))
    persistent_notification.async_create(async_get_hass(), "hello", notification_id="echo")
    return dict(call.data)

@pyscript_compile
def expose(domain, name):
    async_get_hass().services.async_register(
        domain,
        name,
        echo,
        schema=vol.Schema({vol.Required("value"): int}),
        supports_response=SupportsResponse.OPTIONAL,
    )
"""


@pytest.fixture(scope="module")
def home_assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeAssistant]:
    """Run one Home Assistant with a small app for all tests of this file."""
    pytest_socket.enable_socket()
    repository = tmp_path_factory.mktemp("repository")
    for name, text in {
        "pyscript/apps/flexmeasures/__init__.py": APP,
        "modules/sample_module/__init__.py": '"""A sample."""\n',
        "modules/sample_module/answer.py": MODULE,
        "requirements.txt": "aiohttp\n",
        "dashboards/sample.yaml": "views: []\n",
    }.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = tmp_path_factory.mktemp("config")
    install(config, source(), repository=repository)
    instance = HomeAssistant(config, {"host": "example"})
    asyncio.run(instance.start())
    yield instance
    asyncio.run(instance.stop())


@pytest.fixture(autouse=True)
def _sockets(socket_enabled: None) -> None:
    """Let these tests use the network."""


async def test_gives_the_app_its_configuration(home_assistant: HomeAssistant) -> None:
    state = await home_assistant.state("sensor.flexmeasures_status")
    assert state is not None
    given = {"host": "example", "s2": {"port": home_assistant.s2_port}}
    assert (state["state"], state["attributes"]) == ("ok", given)


async def test_returns_a_service_response(home_assistant: HomeAssistant) -> None:
    answer = await home_assistant.call("flexmeasures", "echo", {"value": 3}, return_response=True)
    assert answer == {"value": 3}


pytestmark = pytest.mark.xdist_group("test_home_assistant")
"""The tests share a Home Assistant, and build on one another."""
NOT_INSTALLED = ("Unable to import component", "No such file or directory: 'ffmpeg'")
"""The errors of components of Home Assistant whose requirements the tests do not install."""


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ({"value": 1}, "service_validation_error", "value is 1: give another"),
        ({"value": 2}, "home_assistant_error", "the server is away"),
        ({"value": "x"}, "invalid_format", "expected int"),
    ],
)
async def test_raises_what_the_user_would_read(
    home_assistant: HomeAssistant, data: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(ServiceFailed) as failure:
        await home_assistant.call("flexmeasures", "echo", data)
    assert failure.value.code == code
    assert message in failure.value.message


async def test_delivers_events_and_notifications(home_assistant: HomeAssistant) -> None:
    async with home_assistant.events("echoed") as events:
        await home_assistant.call("flexmeasures", "echo", {"value": 4})
        assert (await anext(events))["data"] == {"value": 4}
    assert "echo" in [shown["notification_id"] for shown in await home_assistant.notifications()]


async def test_waits_for_a_state(home_assistant: HomeAssistant) -> None:
    with pytest.raises(TimeoutError, match="flexmeasures_status stayed at"):
        await home_assistant.wait_for_state(
            "sensor.flexmeasures_status", lambda state: state["state"] == "never", within=0.2
        )


async def test_reloads_an_edited_script(home_assistant: HomeAssistant) -> None:
    app = home_assistant.config / "pyscript" / "apps" / "flexmeasures" / "__init__.py"
    app.write_text(app.read_text().replace('"ok"', '"edited"'))
    await home_assistant.reload_scripts()
    await home_assistant.wait_for_state(
        "sensor.flexmeasures_status", lambda state: state["state"] == "edited"
    )


async def test_starts_again_after_a_power_failure(home_assistant: HomeAssistant) -> None:
    home_assistant.kill()
    await home_assistant.start()
    state = await home_assistant.state("sensor.flexmeasures_status")
    assert state is not None
    assert state["state"] == "edited"


async def test_stops_within_seconds_and_logs_no_error(home_assistant: HomeAssistant) -> None:
    assert await home_assistant.stop(within=20) == 0
    errors = [
        line
        for line in home_assistant.log.splitlines()
        if " ERROR " in line and not any(reason in line for reason in NOT_INSTALLED)
    ]
    assert not errors, "\n".join(errors)
