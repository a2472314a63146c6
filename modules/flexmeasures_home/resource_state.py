"""A Resource Manager as a state: `sensor.flexmeasures_s2_<slug of its name or id>`."""

import math
from collections.abc import Collection
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.helpers.entity import StateInfo
from homeassistant.util import slugify

import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_s2.control_types as control_types
from flexmeasures_api.provisioning import DeviceIds
from flexmeasures_s2.session import Session

PREFIX = "sensor.flexmeasures_s2_"
MAX_SLUG = 100
CONNECTED, DISCONNECTED = "connected", "disconnected"
STATES = [CONNECTED, DISCONNECTED, *control_types.NAMES]
READINGS = ("last_message", "last_message_type", "fill_level")
"""Attributes that change with any message of the Resource Manager."""
MIN_SPAN, MAX_SPAN = 1e-9, 1e12
"""The length of a fill level range for which a level is rounded."""
STEPS = 1000
"""A fill level is rounded such that the storage's range has at least this many steps."""
STATE_INFO: StateInfo = {
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
"""Attributes that the recorder leaves out: otherwise each fill level would store them again."""
NOTHING_PLANNED: dict[str, Any] = {
    "instruction": None,
    "plan": [],
    "missed_targets": [],
    "planned_until": None,
    "has_schedule": False,
    "energy_per_fill_level": None,
}


@pyscript_compile
def new_entity_id(name: str, resource_id: str, taken: Collection[str]) -> str:
    """Return an entity id of a Resource Manager's name, with its id where another has that name."""
    plain = PREFIX + slugify(name)[:MAX_SLUG]
    with_id = f"{plain}_{slugify(resource_id)}"
    candidates = [plain, with_id, *(f"{with_id}_{number}" for number in range(2, len(taken) + 3))]
    return next(entity_id for entity_id in candidates if entity_id not in taken)


@pyscript_compile
def value(resource: Any) -> str:
    """Return the state: the active control type, or whether it is connected."""
    session: Session | None = resource.session
    if session is None:
        return DISCONNECTED
    return session.control_type or CONNECTED


@pyscript_compile
def fill_level(resource: Any) -> float | None:
    """Return the fill level that is believed, in the Resource Manager's unit, rounded."""
    level: float | None = fill_levels.of(resource)
    limits: tuple[float, float] | None = fill_levels.range_of(resource)
    if level is None or limits is None or not MIN_SPAN < limits[1] - limits[0] < MAX_SPAN:
        return level
    return round(level, math.ceil(math.log10(STEPS / (limits[1] - limits[0]))))


@pyscript_compile
def attributes(resource: Any, ids: DeviceIds, plan_attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes; `plan_attributes` are those that describe the plan.

    Those of the last session remain after its end.
    """
    last: Session | None = resource.last_session
    details = last.details if last else None
    last_message_at = last.last_message_at if last else None
    return {
        "friendly_name": f"FlexMeasures S2 {resource.name}",
        "device_class": "enum",
        "options": STATES,
        "resource_id": resource.resource_id,
        "available_control_types": [
            control_type.value for control_type in (details.available_control_types if details else [])
        ],
        "version": last.version if last else None,
        "last_message": dt_util.as_local(last_message_at).isoformat() if last_message_at else None,
        "last_message_type": last.last_message_type if last else None,
        "fill_level": fill_level(resource),
        "power_sensor": ids.power_sensor,
        "soc_sensor": ids.soc_sensor,
        **NOTHING_PLANNED,
        **plan_attributes,
    }
