"""The app in Home Assistant, against the real FlexMeasures server."""

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import freezegun
import pytest
from flexmeasures_client import FlexMeasuresClient
from homeassistant.components import persistent_notification
from homeassistant.core import callback
from pytest_homeassistant_custom_component.common import async_fire_time_changed

from tests.parts import in_process
from tests.parts.home_assistant import free_port
from tests.parts.resource_manager import ResourceManager

SCHEDULE = "sensor.flexmeasures_schedule"
STATUS = "sensor.flexmeasures_status"
Test = Callable[..., Awaitable[None]]
FRBC, METER = "FILL_RATE_BASED_CONTROL", "NOT_CONTROLABLE"


@pytest.fixture
def app_config(flexmeasures_server) -> dict:
    """Return a right configuration of the seeded battery, without earlier plans: 1 to 10 kWh, 5 kW.

    It plans four hours: a day takes FlexMeasures four times as long.
    """
    ids = flexmeasures_server.ids
    flexmeasures_server.forget(ids.power_sensor, ids.soc_sensor)
    return {
        "host": flexmeasures_server.url,
        "username": ids.username,
        "password": ids.password,
        "power_sensor": ids.power_sensor,
        "soc_sensor": ids.soc_sensor,
        "consumption_price_sensor": ids.price_sensor,
        "soc_min": 1,
        "soc_max": 10,
        "power_capacity": "5 kW",
        "roundtrip_efficiency": 0.9,
        "schedule_duration": "PT4H",
        "s2": {"port": free_port()},
    }


class Home:
    """What a user sees and does in Home Assistant."""

    def __init__(self, hass) -> None:
        """Remember the events of new schedules."""
        self.hass = hass
        self.updates = []
        hass.bus.async_listen("flexmeasures_schedule_updated", callback(lambda e: self.updates.append(e)))

    async def call(self, service: str, **data) -> dict:
        """Call one of our services, and return its response."""
        return await self.hass.services.async_call(
            "flexmeasures", service, data, blocking=True, return_response=True
        )

    async def plan(self, **data) -> dict:
        """Call the main service, and return its response."""
        return await self.call("trigger_and_get_schedule", **data)

    async def until(self, condition, seconds: float = 90) -> None:
        """Wait until a condition holds."""
        real_time = asyncio.get_running_loop().time
        deadline = real_time() + seconds
        while not condition():
            assert real_time() < deadline, f"never: {self.status()} {self.schedule()}"
            await asyncio.sleep(0.02)

    async def tick_to(self, clock, moment: datetime) -> None:
        """Set the clock, and let the timers that are due run."""
        clock.move_to(moment)
        async_fire_time_changed(self.hass, moment)
        await in_process.settle(self.hass)

    def schedule(self):
        """Return the schedule's state."""
        return self.hass.states.get(SCHEDULE)

    def status(self):
        """Return the status."""
        return self.hass.states.get(STATUS)

    def notifications(self) -> dict[str, str]:
        """Return the texts of our persistent notifications by their ids."""
        found = persistent_notification._async_get_or_create_notifications(self.hass)
        return {
            name: notification["message"]
            for name, notification in found.items()
            if name.startswith("flexmeasures_")
        }

    @property
    def device(self):
        """Return the app's only device."""
        return self.hass.data["flexmeasures_for_pyscript"].running.device

    async def checked(self) -> None:
        """Wait until the check that follows a start has told of the server."""
        while not {"server_version", "last_error"} & {k for k, v in self.status().attributes.items() if v}:
            await asyncio.sleep(0.02)


@pytest.fixture
async def start(pyscript_hass, socket_enabled):
    """Return a function that starts the app with a configuration."""

    async def start(app_config: dict) -> Home:
        return Home(await pyscript_hass(app_config))

    return start


@pytest.fixture
async def home(start, app_config) -> Home:
    """Return a home whose app runs and has found its server."""
    home = await start(app_config)
    await home.checked()
    return home


class Side:
    """What a user sees of the Resource Managers at a home, and where those connect."""

    def __init__(self, home, config, server) -> None:
        """Take the home, its configuration, and its FlexMeasures server."""
        self.home, self.config, self.server = home, config, server
        self.url = f"ws://127.0.0.1:{config['s2']['port']}/s2"

    def rm(self, name="Home battery", types=(FRBC, METER), **given) -> ResourceManager:
        """Return a Resource Manager, not yet connected."""
        return ResourceManager(self.url, name=name, control_types=types, **given)

    def state(self, slug="home_battery"):
        """Return the state of a Resource Manager."""
        return self.home.hass.states.get(f"sensor.flexmeasures_s2_{slug}")

    async def listening(self) -> None:
        """Wait until a Resource Manager can connect."""
        stage = self.home.hass.data["flexmeasures_for_pyscript"]
        await self.home.until(lambda: stage.running and stage.running.device)
        await self.home.until(lambda: self.home.device.resources.listener.runner)

    async def until(self, state, slug="home_battery") -> None:
        """Wait until a Resource Manager has a state."""
        await self.home.until(lambda: self.state(slug) and self.state(slug).state == state)

    async def sensors(self, slug="home_battery") -> tuple:
        """Wait until a Resource Manager has its sensors on FlexMeasures, and return them."""
        await self.home.until(lambda: self.state(slug) and self.state(slug).attributes["power_sensor"])
        attributes = self.state(slug).attributes
        return attributes["power_sensor"], attributes["soc_sensor"]

    async def stored(self, sensor, count) -> list:
        """Wait until the server holds as many values of a sensor, and return them."""
        deadline = asyncio.get_running_loop().time() + 30
        while len(found := await asyncio.to_thread(self.server.beliefs, sensor)) < count:
            assert asyncio.get_running_loop().time() < deadline, found
            await asyncio.sleep(0.1)
        return found


@pytest.fixture
async def side(home, app_config, flexmeasures_server) -> Side:
    """Return the S2 side of a home whose app runs."""
    return Side(home, app_config, flexmeasures_server)


@pytest.fixture
def starting(start, app_config, flexmeasures_server):
    """Return a function that starts the app with keys under s2, and returns its S2 side."""

    async def starting(**keys) -> Side:
        config = app_config | {"s2": app_config["s2"] | keys}
        home = await start(config)
        await home.checked()
        return Side(home, config, flexmeasures_server)

    return starting


@pytest.fixture
def clock(hass):
    """Return a clock that can be moved, and goes on from there: sleeping works."""
    with freezegun.freeze_time(datetime.now(UTC), tick=True) as frozen:
        yield frozen


@pytest.fixture
def early_in_a_quarter(clock):
    """Begin a test a second into a quarter of an hour, so that no schedule steps on while it runs."""
    clock.move_to(datetime.fromtimestamp((datetime.now(UTC).timestamp() // 900 + 1) * 900 + 1, UTC))


@pytest.fixture
async def client(flexmeasures_server, socket_enabled):
    """Return a client of the user's own."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        host = flexmeasures_server.url.removeprefix("http://")
        yield FlexMeasuresClient(
            flexmeasures_server.password,
            flexmeasures_server.username,
            host,
            session=session,
            request_retry_interval=0.2,
        )


def at_one_home(names: Sequence[str], cases: Sequence[tuple]) -> Callable[[Test], Test]:
    """Parametrize a test like `pytest.mark.parametrize`, with all cases at one home, whose start takes long.

    Each case is tried, and all that fail are named.
    """
    assert cases

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        async def test_each(**fixtures: Any) -> None:
            failures = []
            for case in cases:
                try:
                    await test(**fixtures, **dict(zip(names, case, strict=True)))
                except (Exception, pytest.fail.Exception) as failure:
                    failure.add_note(f"The case: {case!r}")
                    failures.append(failure)
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases failed", failures)

        signature = inspect.signature(test)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in names]
        test_each.__signature__ = signature.replace(parameters=kept)
        return test_each

    return decorate


def in_hours(hours: float) -> str:
    """Return a time some hours after the next full quarter."""
    quarter = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=15)
    return (quarter - timedelta(minutes=quarter.minute % 15) + timedelta(hours=hours)).isoformat()
