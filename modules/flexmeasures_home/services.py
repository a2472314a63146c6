"""The services' schemas and handlers.

Pyscript's decorator describes a service to the user; the handler of this module is registered in its place,
so that the schema is enforced and an error reaches the caller.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import voluptuous as vol
from homeassistant.const import EVENT_SERVICE_REGISTERED
from homeassistant.core import CALLBACK_TYPE, Event, HomeAssistant, ServiceCall, SupportsResponse, callback
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers.service import async_set_service_schema

import flexmeasures_api.errors as errors
import flexmeasures_api.redaction as redaction
import flexmeasures_home.device as devices
import flexmeasures_home.fields as fields
import flexmeasures_home.measurement_calls as measurement_calls
import flexmeasures_home.resources as resources
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.device import Act, Device
from flexmeasures_home.status import CALL

if TYPE_CHECKING:
    from flexmeasures_home.app import App

DOMAIN = "flexmeasures"
STARTING_SECONDS = 30
PYSCRIPTS_OWN = ("trigger_type", "context")
"""Fields that pyscript adds to those of a decorated service."""


@pyscript_compile
def trigger_and_get_schedule(configuration: Configuration) -> vol.Schema:
    """Return the schema of `flexmeasures.trigger_and_get_schedule`."""
    soc = fields.energy(configuration.soc_unit, configuration.soc_max)
    targets = fields.many(fields.target(soc))
    soc_at_start = fields.energy_or_entity(soc)
    required = vol.Optional if configuration.soc_entity else vol.Required
    return vol.Schema(
        {
            required("soc_at_start"): soc_at_start,
            vol.Optional("soc_targets"): targets,
            vol.Optional("soc_minima"): targets,
            vol.Optional("soc_maxima"): targets,
            vol.Optional("start"): fields.MOMENT,
            vol.Optional("duration"): fields.SCHEDULE_DURATION,
            vol.Optional("flex_model"): fields.RAW_FIELDS,
            vol.Optional("flex_context"): fields.RAW_FIELDS,
        }
    )


@pyscript_compile
def post_measurements(_configuration: Configuration) -> vol.Schema:
    """Return the schema of `flexmeasures.post_measurements`."""
    return vol.Schema(
        {
            vol.Required("sensor_id"): fields.SENSOR,
            vol.Optional("values"): fields.values,
            vol.Optional("entity_id"): fields.ENTITY,
            vol.Optional("start"): fields.MOMENT,
            vol.Optional("duration"): fields.DATA_DURATION,
            vol.Optional("unit"): fields.UNIT,
            vol.Optional("prior"): fields.MOMENT,
            vol.Optional("positive"): fields.SIGN,
        }
    )


@pyscript_compile
def get_measurements(_configuration: Configuration) -> vol.Schema:
    """Return the schema of `flexmeasures.get_measurements`."""
    return vol.Schema(
        {
            vol.Required("sensor_id"): fields.SENSOR,
            vol.Required("start"): fields.MOMENT,
            vol.Optional("duration", default="PT24H"): fields.SCHEDULE_DURATION,
            vol.Optional("unit"): fields.UNIT,
            vol.Optional("resolution"): fields.RESOLUTION,
            vol.Optional("source"): fields.SOURCE,
        }
    )


@pyscript_compile
def change_control_type(_configuration: Configuration) -> vol.Schema:
    """Return the schema of `flexmeasures.change_control_type`."""
    return vol.Schema(
        {vol.Required("control_type"): fields.CONTROL_TYPE, vol.Optional("resource_id"): fields.TEXT}
    )


@pyscript_compile
def send_frbc_instruction(_configuration: Configuration) -> vol.Schema:
    """Return the schema of `flexmeasures.send_frbc_instruction`."""
    return vol.Schema(
        {
            vol.Optional("resource_id"): fields.TEXT,
            vol.Optional("actuator_id"): fields.TEXT,
            vol.Required("operation_mode"): fields.TEXT,
            vol.Optional("operation_mode_factor"): fields.FACTOR,
            vol.Optional("execution_time"): fields.MOMENT,
            vol.Optional("abnormal_condition"): fields.BOOLEAN,
            vol.Optional("id"): fields.S2_ID,
            vol.Optional("message_id"): fields.S2_ID,
        }
    )


@pyscript_compile
def call_cem_trigger_schedule(_configuration: Configuration) -> vol.Schema:
    """Return the schema of `flexmeasures.call_cem_trigger_schedule`."""
    return vol.Schema({vol.Optional("resource_id"): fields.TEXT})


SERVICES: dict[str, tuple[Callable[[Configuration], vol.Schema], Act]] = {
    "trigger_and_get_schedule": (trigger_and_get_schedule, Device.plan),
    "post_measurements": (post_measurements, measurement_calls.post_measurements),
    "get_measurements": (get_measurements, measurement_calls.get_measurements),
    "change_control_type": (change_control_type, devices.of_s2(resources.change_control_type)),
    "send_frbc_instruction": (send_frbc_instruction, devices.of_s2(resources.send_frbc_instruction)),
    "call_cem_trigger_schedule": (
        call_cem_trigger_schedule,
        devices.of_s2(resources.call_cem_trigger_schedule),
    ),
}


@pyscript_compile
def register(hass: HomeAssistant, app: "App") -> CALLBACK_TYPE:
    """Replace the handlers of the decorated services by native ones; return a function that stops this.

    Pyscript registers and describes its own again whenever it starts the decorators; pyscript 2 does so when
    Home Assistant has started. Until then the services have a description of our own, since Home Assistant
    would look for a file without one.
    """
    handlers = {name: handler(app, name) for name in SERVICES}

    def put_in_place(name: str) -> None:
        hass.services.async_register(
            DOMAIN, name, handlers[name], supports_response=SupportsResponse.OPTIONAL
        )

    @callback
    def keep_in_place(event: Event[Any]) -> None:
        domain, name = event.data["domain"], event.data["service"]
        if domain == DOMAIN and name in handlers:
            present = hass.services.async_services_for_domain(DOMAIN).get(name)
            if present is not None and present.job.target is not handlers[name]:
                put_in_place(name)

    for name in handlers:
        is_described = hass.services.has_service(DOMAIN, name)
        put_in_place(name)
        if not is_described:
            title = name.replace("_", " ").capitalize()
            text = "Described when Home Assistant has started."
            async_set_service_schema(hass, DOMAIN, name, {"name": title, "description": text, "fields": {}})
    return hass.bus.async_listen(EVENT_SERVICE_REGISTERED, keep_in_place)


@pyscript_compile
def handler(app: "App", name: str) -> Callable[[ServiceCall], Coroutine[Any, Any, Any]]:
    """Return the native handler of a service."""

    async def handle(call: ServiceCall) -> Any:
        return await run(app, name, call.data)

    return handle


@pyscript_compile
async def run(app: "App", name: str, data: Mapping[str, Any]) -> Any:
    """Check a call's fields and execute it; raise ServiceValidationError or HomeAssistantError."""
    if app.mistakes:
        raise HomeAssistantError("FlexMeasures is misconfigured: " + "; ".join(fields.listed(app.mistakes)))
    with suppress(TimeoutError):
        await asyncio.wait_for(app.started.wait(), STARTING_SECONDS)
    if app.failure:
        raise HomeAssistantError(app.failure)
    device = app.device
    if device is None:
        raise HomeAssistantError("FlexMeasures is still starting: call again in a minute")
    schema_for, act = SERVICES[name]
    given = {field: value for field, value in data.items() if field not in PYSCRIPTS_OWN}
    redact = device.link.redact
    try:
        return redaction.redacted_response(
            redact, await act(device, checked(schema_for(device.configuration), given))
        )
    except HomeAssistantError as error:
        is_callers = isinstance(error, ServiceValidationError) or act is Device.plan
        if not is_callers and isinstance(error.__cause__, errors.FlexMeasuresError):
            device.status.fail_with(CALL, error.__cause__)
        if (safe := redact(str(error))) != str(error):
            raise type(error)(safe) from None
        raise


@pyscript_compile
def checked(schema: vol.Schema, data: dict[str, Any]) -> dict[str, Any]:
    """Return a call's fields, converted; raise ServiceValidationError, which names the wrong fields."""
    try:
        call: dict[str, Any] = schema(data)
    except vol.Invalid as invalid:
        names = [str(key) for key in schema.schema]
        text = "; ".join(fields.mistakes(invalid, data, names, "field of this service"))
        raise ServiceValidationError(text) from invalid
    return call
