"""The services `flexmeasures.post_measurements` and `flexmeasures.get_measurements`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import homeassistant.util.dt as dt_util
import isodate
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.util.unit_conversion import EnergyConverter

import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_home.measurements as measurements
from flexmeasures_api.connection import Sensor
from flexmeasures_api.sensor_data import SensorData
from flexmeasures_home.device import Device
from flexmeasures_home.status import CALL


@pyscript_compile
async def post_measurements(device: Device, call: dict[str, Any]) -> dict[str, Any]:
    """Post values to a FlexMeasures sensor; return whether they are `delivered`, or wait in the outbox.

    `call` has the service's fields, checked: `values`, or the `entity_id` whose present state is posted.
    Raise ServiceValidationError for values that the server refuses, HomeAssistantError if values that wait
    could not be written to the file.
    """
    device.refuse_if_stopped()
    data = data_of(device, call)
    if sensor := known_sensor(device, data.sensor):
        data = sensor_data.with_known_step(data, sensor)
    outbox = device.outbox
    item = outbox.add(data)
    with raised():
        is_delivered = await outbox.delivered(item)
    if not is_delivered and any(unsaved is item for unsaved in await outbox.save()):
        raise HomeAssistantError(
            f"The values wait for FlexMeasures, but only in memory: {outbox.store.file.why_unsaved}"
        )
    return {"delivered": is_delivered, "values": len(data.values), "outbox": outbox.waiting_values}


@pyscript_compile
@contextmanager
def raised() -> Iterator[None]:
    """Raise an error of FlexMeasures as Home Assistant's own: the call is wrong if the error is final."""
    try:
        yield
    except errors.FlexMeasuresError as error:
        kind = ServiceValidationError if error.final else HomeAssistantError
        raise kind(str(error)) from error


@pyscript_compile
def data_of(device: Device, call: dict[str, Any]) -> SensorData:
    """Return the values of a call; the start of a single value is now by default."""
    if ("values" in call) == ("entity_id" in call):
        raise ServiceValidationError("values, entity_id: expected one of the two")
    values, unit = call.get("values"), call.get("unit")
    if values is None:
        value, own_unit = present_state(device, call["entity_id"], call["sensor_id"])
        if unit and own_unit and unit != own_unit:
            raise ServiceValidationError(f"unit: {call['entity_id']} is in {own_unit}: leave unit out")
        values, unit = [value], own_unit or unit
    if len(values) > 1 and "start" not in call:
        raise ServiceValidationError("start is missing: give the time of the first value")
    duration = call.get("duration")
    return SensorData(
        sensor=call["sensor_id"],
        start=call.get("start", dt_util.utcnow().replace(second=0, microsecond=0)),
        values=values,
        unit=unit,
        step=None if duration is None else duration / len(values),
        prior=call.get("prior"),
        sign=measurements.sign_of(call),
    )


@pyscript_compile
def known_sensor(device: Device, sensor_id: int) -> Sensor | None:
    """Return a sensor as the server describes it, or did so before; None if it is unknown."""
    return device.link.sensors.get(sensor_id) or device.measurements.sensors.get(sensor_id)


@pyscript_compile
def present_state(device: Device, entity: str, sensor_id: int) -> tuple[float, str | None]:
    """Return an entity's present number, and its unit or None; refuse other states, and meter readings."""
    entity_id, attribute = entities.split(entity)
    state = device.hass.states.get(entity_id)
    if state is None:
        raise ServiceValidationError(f"entity_id: {entity} does not exist in Home Assistant")
    value, unit = entities.reading(state, attribute)
    number = entities.number(value)
    if number is None:
        raise ServiceValidationError(
            f"entity_id: {entity} is {fields.quoted(value)}, which is not a number: nothing was posted"
        )
    sensor = known_sensor(device, sensor_id)
    counts = state.attributes.get("state_class") in ("total", "total_increasing")
    if counts and unit in EnergyConverter.VALID_UNITS and (sensor is None or sensor.resolution):
        raise ServiceValidationError(
            f"entity_id: {entity} counts energy ({unit}): give an entity of power, or post values"
        )
    return number, unit


@pyscript_compile
async def get_measurements(device: Device, call: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a sensor on FlexMeasures; raise HomeAssistantError or ServiceValidationError."""
    device.refuse_if_stopped()
    with raised():
        series = await sensor_data.read(device.link, **call)
    device.status.succeed(CALL)
    zone = dt_util.get_default_time_zone()
    return series | {
        "sensor_id": call["sensor_id"],
        "start": series["start"].astimezone(zone).isoformat(),
        "duration": isodate.duration_isoformat(series["duration"]),
        "resolution": isodate.duration_isoformat(series["resolution"]),
    }
