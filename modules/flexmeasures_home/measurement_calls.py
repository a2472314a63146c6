"""What `flexmeasures.post_measurements` and `flexmeasures.get_measurements` do."""

from contextlib import contextmanager

import homeassistant.util.dt as dt_util
import isodate
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.util.unit_conversion import EnergyConverter

import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.device as devices
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_home.measurements as measurements
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.status as statuses


@pyscript_compile
async def post_measurements(device, call):
    """Post values to a FlexMeasures sensor; return whether they are `delivered`, or wait in the outbox.

    `call` holds the service's fields, checked: `values`, or the `entity_id` whose state they are now.
    Raise ServiceValidationError for what the server refuses, HomeAssistantError where what waits could not be
    written.
    """
    devices.refuse_if_stopped(device)
    run = run_of(device, call)
    if sensor := known_sensor(device, run.sensor):
        run = sensor_data.with_known_step(run, sensor)
    parcel = outboxes.add(device.outbox, run)
    with raised():
        delivered = await outboxes.delivered(device.outbox, parcel)
    if not delivered:
        unsaved = await outboxes.save(device.outbox)
        if any(each is parcel for each in unsaved):
            why = device.outbox.store.file.why_unsaved
            raise HomeAssistantError(f"The values wait for FlexMeasures, but in memory alone: {why}")
    return {"delivered": delivered, "values": len(run.values), "outbox": outboxes.waiting(device.outbox)}


@pyscript_compile
@contextmanager
def raised():
    """Raise an error of FlexMeasures as Home Assistant's own: what is refused for good lies in the call."""
    try:
        yield
    except errors.FlexMeasuresError as error:
        kind = ServiceValidationError if error.final else HomeAssistantError
        raise kind(str(error)) from error


@pyscript_compile
def run_of(device, call):
    """Return a call's values as a run; a single value without a start is of now."""
    if ("values" in call) == ("entity_id" in call):
        raise ServiceValidationError("values, entity_id: expected one of the two")
    values, unit = call.get("values"), call.get("unit")
    if values is None:
        value, own_unit = state_now(device, call["entity_id"], call["sensor_id"])
        if unit and own_unit and unit != own_unit:
            raise ServiceValidationError(f"unit: {call['entity_id']} is in {own_unit}: leave unit out")
        values, unit = [value], own_unit or unit
    if len(values) > 1 and "start" not in call:
        raise ServiceValidationError("start is missing: give the time of the first value")
    duration = call.get("duration")
    return sensor_data.SensorData(
        sensor=call["sensor_id"],
        start=call.get("start", dt_util.utcnow().replace(second=0, microsecond=0)),
        values=values,
        unit=unit,
        step=None if duration is None else duration / len(values),
        prior=call.get("prior"),
        sign=measurements.sign_of(call),
    )


@pyscript_compile
def known_sensor(device, sensor_id):
    """Return what the server says, or said once, of a sensor; None where that is not known."""
    return device.link.sensors.get(sensor_id) or device.measurements.sensors.get(sensor_id)


@pyscript_compile
def state_now(device, entity, sensor_id):
    """Return an entity's number now, and its unit or None; raise where it is no number, or a counter's."""
    entity_id, attribute = entities.split(entity)
    state = device.hass.states.get(entity_id)
    if state is None:
        raise ServiceValidationError(f"entity_id: {entity} does not exist in Home Assistant")
    value, unit = entities.reading(state, attribute)
    number = entities.number(value)
    if number is None:
        raise ServiceValidationError(
            f"entity_id: {entity} is {fields.quoted(value)}, which is no number: nothing was posted"
        )
    sensor = known_sensor(device, sensor_id)
    counts = state.attributes.get("state_class") in ("total", "total_increasing")
    if counts and unit in EnergyConverter.VALID_UNITS and (sensor is None or sensor.resolution):
        raise ServiceValidationError(
            f"entity_id: {entity} counts energy ({unit}): give an entity of power, or post values"
        )
    return number, unit


@pyscript_compile
async def get_measurements(device, call):
    """Return what FlexMeasures holds of a sensor; raise HomeAssistantError or ServiceValidationError."""
    devices.refuse_if_stopped(device)
    with raised():
        found = await sensor_data.read(device.link, **call)
    statuses.succeed(device.status, statuses.CALL)
    zone = dt_util.get_default_time_zone()
    return found | {
        "sensor_id": call["sensor_id"],
        "start": found["start"].astimezone(zone).isoformat(),
        "duration": isodate.duration_isoformat(found["duration"]),
        "resolution": isodate.duration_isoformat(found["resolution"]),
    }
