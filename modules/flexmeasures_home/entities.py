"""The states and attributes of Home Assistant's entities, as numbers."""

import difflib
import math
from typing import Any

from homeassistant.const import ATTR_UNIT_OF_MEASUREMENT, STATE_UNAVAILABLE, STATE_UNKNOWN
from homeassistant.core import HomeAssistant, State


@pyscript_compile
def split(name: str) -> tuple[str, str | None]:
    """Return the entity's id and the attribute, or None, of "sensor.x" or "sensor.x.attribute"."""
    domain, object_id, *attribute = name.split(".")
    return f"{domain}.{object_id}", attribute[0] if attribute else None


@pyscript_compile
def reading(state: State, attribute: str | None) -> tuple[Any, str | None]:
    """Return the value of a state, or of its attribute, and the unit; an attribute has none."""
    if attribute:
        return state.attributes.get(attribute), None
    return state.state, state.attributes.get(ATTR_UNIT_OF_MEASUREMENT)


@pyscript_compile
def nearest(hass: HomeAssistant, name: str) -> str:
    """Return ": did you mean sensor.x?" for a name that no entity has, or "" where none is near."""
    entity_id, attribute = split(name)
    names = difflib.get_close_matches(entity_id, hass.states.async_entity_ids(), 1)
    return f": did you mean {names[0]}{f'.{attribute}' if attribute else ''}?" if names else ""


@pyscript_compile
def is_known(value: object) -> bool:
    """Tell whether there is a value at all."""
    return value not in (None, "", STATE_UNKNOWN, STATE_UNAVAILABLE)


@pyscript_compile
def number(value: Any) -> float | None:
    """Return a finite number, or None where the value is not one."""
    try:
        converted = float(value)
    except (TypeError, ValueError):
        return None
    return converted if math.isfinite(converted) else None
