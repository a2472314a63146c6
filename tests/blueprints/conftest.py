"""The blueprints as automations of a real Home Assistant, on a clock that is set by the test."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import freezegun
import pytest
from freezegun.api import FrozenDateTimeFactory
from homeassistant.components import persistent_notification
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
from pytest_homeassistant_custom_component.common import async_fire_time_changed

ROOT = Path(__file__).parents[2]
ZONE = ZoneInfo("Europe/Amsterdam")
MONDAY = "2030-01-07"
TESTED = "automation.tested"
ROUNDS_TO_SETTLE = 50
"""How often the event loop turns until an automation has acted; one that waits is no task to wait for."""


class House:
    """Home Assistant with one automation, made from a blueprint."""

    def __init__(self, hass: HomeAssistant, clock: FrozenDateTimeFactory) -> None:
        """Take Home Assistant and the clock."""
        self.hass = hass
        self.clock = clock

    async def automate(self, blueprint: str, **inputs: object) -> None:
        """Make an automation from a blueprint."""
        use = {"path": f"flexmeasures/{blueprint}.yaml", "input": inputs}
        automation = {"id": "tested", "alias": "Tested", "use_blueprint": use}
        assert await async_setup_component(self.hass, "automation", {"automation": automation})
        await self.settle()
        assert self.hass.states.get(TESTED).state == "on"

    async def at(self, time: str, date: str = MONDAY) -> datetime:
        """Let it be a time of day, and return the moment."""
        moment = datetime.fromisoformat(f"{date} {time}").replace(tzinfo=ZONE)
        self.clock.move_to(moment)
        async_fire_time_changed(self.hass, moment)
        await self.settle()
        return moment

    async def set(self, entity_id: str, state: object, **attributes: object) -> None:
        """Set a state, and let the automation act on it."""
        self.hass.states.async_set(entity_id, str(state), attributes)
        await self.settle()

    async def start(self) -> None:
        """Start Home Assistant, after it was set to not running."""
        await self.hass.async_start()
        await self.settle()

    async def settle(self) -> None:
        """Let the automation act."""
        for _ in range(ROUNDS_TO_SETTLE):
            await asyncio.sleep(0)

    def notifications(self) -> dict[str, str]:
        """Return the texts of the persistent notifications by their ids."""
        shown = persistent_notification._async_get_or_create_notifications(self.hass)
        return {name: notification["message"] for name, notification in shown.items()}


@pytest.fixture
def clock(hass: HomeAssistant) -> Iterator[FrozenDateTimeFactory]:
    """Return a clock that stands at Monday noon, and goes on from wherever it is moved to."""
    noon = datetime.fromisoformat(f"{MONDAY} 12:00:01").replace(tzinfo=ZONE)
    with freezegun.freeze_time(noon, tick=True) as frozen:
        yield frozen


@pytest.fixture
async def house(hass: HomeAssistant, clock: FrozenDateTimeFactory, tmp_path: Path) -> AsyncIterator[House]:
    """Return a house in the Netherlands with our blueprints."""
    shutil.copytree(ROOT / "blueprints", tmp_path / "blueprints")
    hass.config.config_dir = str(tmp_path)
    await hass.config.async_set_time_zone(ZONE.key)
    for component in ("homeassistant", "persistent_notification"):
        assert await async_setup_component(hass, component, {})
    yield House(hass, clock)
    await hass.services.async_call("automation", "turn_off", {"entity_id": TESTED}, blocking=True)


@pytest.fixture
def moment() -> Callable[..., datetime]:
    """Return a function that returns a moment by its time of day and date."""

    def moment(time: str, date: str = MONDAY) -> datetime:
        return datetime.fromisoformat(f"{date} {time}").replace(tzinfo=ZONE)

    return moment
