"""The site of all S2 devices as a state: `sensor.flexmeasures_site`."""

from datetime import UTC, datetime
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity import StateInfo

ENTITY_ID = "sensor.flexmeasures_site"
STATE_INFO: StateInfo = {"unrecorded_attributes": frozenset({"costs_until", "updated_at", "why"})}
"""What the recorder leaves out."""
DECIMALS = 4
"""How exact costs are shown: to a hundredth of a cent."""


@pyscript_compile
def show(hass: HomeAssistant, site: Any) -> None:
    """Show the planned power of the site (W), and what its plans cost, from the first plan on."""
    costs = site.costs
    if costs is None and hass.states.get(ENTITY_ID) is None:
        return
    state = "unknown" if costs is None else str(round(costs.power_w))
    hass.states.async_set(ENTITY_ID, state, attributes(site), state_info=STATE_INFO)


@pyscript_compile
def attributes(site: Any) -> dict[str, Any]:
    """Return the attributes of the state."""
    costs = site.costs
    return {
        "friendly_name": "FlexMeasures Site",
        "unit_of_measurement": "W",
        "device_class": "power",
        "cost": costs and round(costs.cost, DECIMALS),
        "cost_without": costs and round(costs.cost_without, DECIMALS),
        "costs_until": costs and local_time(costs.end),
        "updated_at": costs and local_time(costs.start),
        "why": site.why,
    }


@pyscript_compile
def local_time(moment: float) -> str:
    """Return a moment (s since 1970) as ISO 8601 text in Home Assistant's time zone."""
    return dt_util.as_local(datetime.fromtimestamp(round(moment), UTC)).isoformat()
