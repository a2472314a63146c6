"""Whether what is configured exists, and is what it is taken for: sensors on the server, entities here."""

import re
from datetime import timedelta
from functools import partial
from typing import Any

import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.entities as entities
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.status as statuses

SENSOR_KEYS = ("power_sensor", "consumption_price_sensor", "production_price_sensor", "soc_sensor")
MEASUREMENTS, FLEX_CONTEXT = "measurements", "flex_context"
INFLEXIBLE = {
    "inflexible-consumption": sensor_data.CONSUMPTION,
    "inflexible-production": sensor_data.PRODUCTION,
}
"""The sign of consumption that FlexMeasures takes for granted in the sensors of its flex-context."""
OF_SENSOR = re.compile(r"\b[Ss]ensor (\d+)")
NO_ENTITY = "no_entity"


@pyscript_compile
async def look_up(device: Any) -> errors.FlexMeasuresError | None:
    """Ask for each sensor, and the site; return the first error, or None. All that is right is learnt."""
    given, link = device.configuration, device.link
    link.sensors.clear()
    price_sensors = {given.consumption_price_sensor, given.production_price_sensor}
    steps = {item["sensor"]: item.get("resolution") for item in given.measurements}
    first = None
    questions = [partial(sensor_data.power_sensor, link, given.power_sensor)]
    questions += [partial(priced, link, sensor) for sensor in sorted(price_sensors)]
    if given.soc_sensor:
        questions.append(partial(sensor_data.soc_sensor, link, given.soc_sensor))
    questions += [partial(fitting, link, sensor, step) for sensor, step in steps.items()]
    inflexible = [(name, sensor) for name in INFLEXIBLE for sensor in named_in(given.flex_context, name)]
    questions += [partial(in_sign, link, name, sensor) for name, sensor in inflexible if sensor in steps]
    if given.site:
        questions.append(partial(link.asset, given.site))
    for ask in questions:
        try:
            await ask()
        except outboxes.OF_THE_SERVER as error:
            return error
        except errors.FlexMeasuresError as error:
            first = first or error
    return first


@pyscript_compile
def with_key(device: Any, error: Exception) -> str:
    """Return an error's text; one about a sensor begins with the keys of the configuration that name it."""
    text, given = str(error), device.configuration
    match = OF_SENSOR.search(text)
    if match is None or any(key in text for key in (*SENSOR_KEYS, MEASUREMENTS, FLEX_CONTEXT)):
        return text
    sensor = int(match[1])
    keys = [key for key in SENSOR_KEYS if getattr(given, key) == sensor]
    keys += [MEASUREMENTS] if any(item["sensor"] == sensor for item in given.measurements) else []
    return f"{', '.join(keys)}: {text}" if keys else text


@pyscript_compile
async def priced(link: Any, sensor: int) -> None:
    """Refuse a price sensor that is of no price."""
    found = await link.sensor(sensor)
    if "/" not in found.unit:
        raise errors.UnknownSensor(
            f"consumption_price_sensor, production_price_sensor: sensor {sensor} is in {found.unit}: "
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
async def in_sign(link: Any, name: str, sensor: int) -> None:
    """Refuse a measured sensor whose sign is not that of the flex-context's field, which knows no other."""
    found = await link.sensor(sensor)
    if found.sign != INFLEXIBLE[name]:
        other = next(field for field in INFLEXIBLE if field != name)
        held = "consumption" if found.sign > 0 else "production"
        raise errors.InvalidData(
            f"flex_context: sensor {sensor} under {name} holds {held} as positive: name it under {other}, or "
            f"change its attribute consumption_is_positive on FlexMeasures"
        )


@pyscript_compile
async def fitting(link: Any, sensor: int, step: timedelta | None) -> None:
    """Refuse a resolution of measurements that does not fit their sensor, or is finer."""
    found = await link.sensor(sensor)
    if step is not None:
        sensor_data.check_step(step, found)
        if step < found.resolution:
            raise errors.InvalidData(
                f"measurements: a resolution of {step} is finer than the {found.resolution} of sensor "
                f"{sensor}: leave it out for the sensor's own"
            )


@pyscript_compile
def check_entities(device: Any) -> None:
    """Tell of configured entities that do not exist, with the nearest name; and when they do."""
    if not device.are_entities_due:
        return
    given, status = device.configuration, device.status
    named = [("soc_entity", given.soc_entity)] if given.soc_entity else []
    named += [(MEASUREMENTS, item["entity"]) for item in given.measurements]
    for key, entity in named:
        matter = f"{key} {entity}"
        entity_id, _attribute = entities.split(entity)
        if device.hass.states.get(entity_id) is None:
            if matter not in status.problems:
                nearest = entities.nearest(device.hass, entity)
                text = f"{key}: {entity} does not exist in Home Assistant{nearest}"
                statuses.fail(status, matter, text, cause=NO_ENTITY)
        elif matter in status.problems:
            statuses.settle(status, matter)
