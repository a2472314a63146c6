"""Checks of the configuration: its sensors exist on the server, and its entities in Home Assistant."""

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

from homeassistant.core import HomeAssistant

import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.entities as entities
from flexmeasures_api.connection import Connection
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.outbox import OF_THE_SERVER
from flexmeasures_home.status import Status

SENSOR_KEYS = ("power_sensor", "consumption_price_sensor", "production_price_sensor", "soc_sensor")
MEASUREMENTS, FLEX_CONTEXT = "measurements", "flex_context"
INFLEXIBLE = {
    "inflexible-consumption": sensor_data.CONSUMPTION,
    "inflexible-production": sensor_data.PRODUCTION,
}
"""The sign of consumption that FlexMeasures assumes in the sensors of these fields of its flex-context."""
SENSOR_IN_TEXT = re.compile(r"\b[Ss]ensor (\d+)")
NO_ENTITY = "no_entity"


@pyscript_compile
async def check_server(link: Connection, given: Configuration) -> errors.FlexMeasuresError | None:
    """Read each sensor and the site from the server; return the first error, or None."""
    link.sensors.clear()
    price_sensors = {given.consumption_price_sensor, given.production_price_sensor}
    steps = {item["sensor"]: item.get("resolution") for item in given.measurements}
    first: errors.FlexMeasuresError | None = None
    checks: list[Callable[[], Awaitable[object]]] = [
        partial(sensor_data.power_sensor, link, given.power_sensor)
    ]
    checks += [partial(check_price_sensor, link, sensor) for sensor in sorted(price_sensors)]
    if given.soc_sensor:
        checks.append(partial(sensor_data.soc_sensor, link, given.soc_sensor))
    checks += [partial(check_resolution, link, sensor, step) for sensor, step in steps.items()]
    inflexible = [(name, sensor) for name in INFLEXIBLE for sensor in named_in(given.flex_context, name)]
    checks += [partial(check_sign, link, name, sensor) for name, sensor in inflexible if sensor in steps]
    if given.site:
        checks.append(partial(link.asset, given.site))
    for check in checks:
        try:
            await check()
        except OF_THE_SERVER as error:
            return error
        except errors.FlexMeasuresError as error:
            first = first or error
    return first


@pyscript_compile
def with_key(given: Configuration, error: BaseException) -> str:
    """Return an error's text; one about a sensor begins with the keys of the configuration that name it."""
    text = str(error)
    match = SENSOR_IN_TEXT.search(text)
    if match is None or any(key in text for key in (*SENSOR_KEYS, MEASUREMENTS, FLEX_CONTEXT)):
        return text
    sensor = int(match[1])
    keys = [key for key in SENSOR_KEYS if getattr(given, key) == sensor]
    keys += [MEASUREMENTS] if any(item["sensor"] == sensor for item in given.measurements) else []
    return f"{', '.join(keys)}: {text}" if keys else text


@pyscript_compile
async def check_price_sensor(link: Connection, sensor_id: int) -> None:
    """Refuse a sensor whose unit is not that of a price."""
    sensor = await link.sensor(sensor_id)
    if "/" not in sensor.unit:
        raise errors.UnknownSensor(
            f"consumption_price_sensor, production_price_sensor: sensor {sensor_id} is in {sensor.unit}: "
            f"expected a unit of price such as EUR/kWh. Check the number"
        )


@pyscript_compile
def named_in(flex_context: dict[str, Any] | None, name: str) -> list[int]:
    """Return the sensors that a raw field of the flex-context refers to."""
    items = (flex_context or {}).get(name)
    return [
        item["sensor"]
        for item in (items if isinstance(items, list) else [items])
        if isinstance(item, dict) and isinstance(item.get("sensor"), int)
    ]


@pyscript_compile
async def check_sign(link: Connection, name: str, sensor_id: int) -> None:
    """Refuse a measured sensor whose sign is not that of the flex-context's field, which has only one."""
    sensor = await link.sensor(sensor_id)
    if sensor.sign != INFLEXIBLE[name]:
        right_field = next(field for field in INFLEXIBLE if field != name)
        positive = "consumption" if sensor.sign > 0 else "production"
        raise errors.InvalidData(
            f"flex_context: sensor {sensor_id} under {name} holds {positive} as positive: name it under "
            f"{right_field}, or change its attribute consumption_is_positive on FlexMeasures"
        )


@pyscript_compile
async def check_resolution(link: Connection, sensor_id: int, step: timedelta | None) -> None:
    """Refuse a resolution of measurements that does not fit their sensor, or is finer."""
    sensor = await link.sensor(sensor_id)
    if step is not None:
        sensor_data.check_step(step, sensor)
        if step < sensor.resolution:
            raise errors.InvalidData(
                f"measurements: a resolution of {step} is finer than the {sensor.resolution} of sensor "
                f"{sensor_id}: leave it out for the sensor's own"
            )


@pyscript_compile
def check_entities(hass: HomeAssistant, given: Configuration, status: Status) -> None:
    """Show which configured entities do not exist, with the nearest name, or that they do now."""
    named = [("soc_entity", given.soc_entity)] if given.soc_entity else []
    named += [(MEASUREMENTS, item["entity"]) for item in given.measurements]
    for key, entity in named:
        problem_key = f"{key} {entity}"
        entity_id, _attribute = entities.split(entity)
        if hass.states.get(entity_id) is None:
            if problem_key not in status.problems:
                nearest = entities.nearest(hass, entity)
                text = f"{key}: {entity} does not exist in Home Assistant{nearest}"
                status.fail(problem_key, text, cause=NO_ENTITY)
        elif problem_key in status.problems:
            status.resolve(problem_key)
