"""A STAND-IN for pyscript, for tests on machines that cannot reach the real one.

It runs an app and its modules as native Python, with the part of pyscript's documented
interface that they use. Whatever else pyscript offers raises an error that says so here.
"""

import logging

import voluptuous as vol
from homeassistant.config import async_hass_config_yaml
from homeassistant.const import (
    EVENT_HOMEASSISTANT_STARTED,
    EVENT_HOMEASSISTANT_STOP,
    SERVICE_RELOAD,
)
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers import config_validation as cv
from homeassistant.helpers.typing import ConfigType

from .scripts import Scripts

DOMAIN = "pyscript"
CONFIG_SCHEMA = vol.Schema(
    {
        DOMAIN: vol.Schema(
            {
                vol.Optional("allow_all_imports", default=False): cv.boolean,
                vol.Optional("apps", default=dict): dict,
            },
            extra=vol.ALLOW_EXTRA,
        )
    },
    extra=vol.ALLOW_EXTRA,
)

_LOGGER = logging.getLogger(__name__)


async def async_setup(hass: HomeAssistant, config: ConfigType) -> bool:
    """Load the configured apps now, and start them when Home Assistant has started."""
    _LOGGER.warning("This is a STAND-IN for pyscript: for tests only, scripts run as plain Python")
    scripts = hass.data[DOMAIN] = Scripts(hass)
    await scripts.load(config[DOMAIN])

    async def start(_event):
        scripts.start()

    async def stop(_event):
        await scripts.unload()

    async def reload(call: ServiceCall):
        """Do as pyscript: only what changed, or all with global_ctx "*"."""
        section = await _section(hass, scripts.section)
        if call.data.get("global_ctx") or await scripts.changed(section):
            await scripts.unload()
            await scripts.load(section)
            scripts.start()

    hass.bus.async_listen_once(EVENT_HOMEASSISTANT_STARTED, start)
    hass.bus.async_listen_once(EVENT_HOMEASSISTANT_STOP, stop)
    hass.services.async_register(DOMAIN, SERVICE_RELOAD, reload)
    return True


async def _section(hass: HomeAssistant, default: dict) -> dict:
    """Read our section of the configuration again; an unreadable one changes nothing."""
    try:
        return CONFIG_SCHEMA(await async_hass_config_yaml(hass))[DOMAIN]
    except (HomeAssistantError, KeyError) as error:
        _LOGGER.error("Keeping the configuration: %s", error)
        return default
