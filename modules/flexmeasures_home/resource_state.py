"""A Resource Manager as a state: `sensor.flexmeasures_s2_<slug of its name or id>`."""

import math
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.util import slugify

import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_s2.control_types as control_types

PREFIX = "sensor.flexmeasures_s2_"
LONGEST_SLUG = 100
CONNECTED, DISCONNECTED = "connected", "disconnected"
STATES = [CONNECTED, DISCONNECTED, *control_types.NAMES]
READINGS = ("last_message", "last_message_type", "fill_level")
"""Attributes that change with any message of the Resource Manager."""
LEAST_SPAN, MAX_SPAN = 1e-9, 1e12
"""Of fill level ranges outside these, a level is shown as it is told."""
STEPS = 1000
"""How many steps of a round number the storage's range has at least, where a fill level is shown."""
STATE_INFO = {
    "unrecorded_attributes": frozenset(
        {
            "available_control_types",
            "energy_per_fill_level",
            "instruction",
            "last_message",
            "last_message_type",
            "missed_targets",
            "options",
            "plan",
            "planned_until",
            "power_sensor",
            "resource_id",
            "soc_sensor",
            "version",
        }
    )
}
"""What the recorder leaves out: each fill level would have it written anew."""
NOTHING_PLANNED = {
    "instruction": None,
    "plan": [],
    "missed_targets": [],
    "planned_until": None,
    "has_schedule": False,
    "energy_per_fill_level": None,
}


@pyscript_compile
def new_entity_id(name, resource_id, taken):
    """Return an entity id of a Resource Manager's name, with its id where another has that name."""
    plain = PREFIX + slugify(name)[:LONGEST_SLUG]
    wanted = [plain, f"{plain}_{slugify(resource_id)}"]
    wanted += [f"{wanted[1]}_{number}" for number in range(2, len(taken) + 3)]
    return next(each for each in wanted if each not in taken)


@pyscript_compile
def value(resource):
    """Return the state: the active control type, or whether it is connected."""
    session = resource.session
    if session is None:
        return DISCONNECTED
    return session.control_type or CONNECTED


@pyscript_compile
def fill_level(resource: Any) -> float | None:
    """Return the fill level that is believed, in the Resource Manager's unit, in steps of a round number."""
    level, limits = fill_levels.of(resource), fill_levels.range_of(resource)
    if level is None or limits is None or not LEAST_SPAN < limits[1] - limits[0] < MAX_SPAN:
        return level
    return round(level, math.ceil(math.log10(STEPS / (limits[1] - limits[0]))))


@pyscript_compile
def attributes(resource, sensors, planned):
    """Return the attributes; `sensors` is the DeviceIds on FlexMeasures, `planned` what tells of the plan.

    After the session's end, what the last one was is still told.
    """
    last = resource.last_session
    details = last and last.details
    heard = last and last.last_message_at
    return {
        "friendly_name": f"FlexMeasures S2 {resource.name}",
        "device_class": "enum",
        "options": STATES,
        "resource_id": resource.resource_id,
        "available_control_types": [each.value for each in details.available_control_types]
        if details
        else [],
        "version": last and last.version,
        "last_message": dt_util.as_local(heard).isoformat() if heard else None,
        "last_message_type": last and last.last_message_type,
        "fill_level": fill_level(resource),
        "power_sensor": sensors.power_sensor,
        "soc_sensor": sensors.soc_sensor,
        **NOTHING_PLANNED,
        **planned,
    }
