"""The question to FlexMeasures: a call's fields, with the configuration filling in."""

import homeassistant.util.dt as dt_util
import voluptuous as vol
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError

import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields
import flexmeasures_optimiser.planning as planning
import flexmeasures_optimiser.schedule as schedules
import flexmeasures_optimiser.storage as storages

MOST_OVER_SOC_MAX = 2


@pyscript_compile
def error():
    """Define the error: natively, so that compiled code can raise it."""

    class NoStateOfCharge(HomeAssistantError):
        """`soc_entity` does not tell a state of charge."""

    return NoStateOfCharge


NoStateOfCharge = error()


@pyscript_compile
async def ask(hass, given, link, beside, call):
    """Return the schedule for the call's fields, the configuration (`given`) filling in.

    `beside(start, end, step, raw)` returns the flex-context's fields that count other devices in, where
    `raw` are the user's own.
    """
    now = dt_util.utcnow()
    sensor = await planning.power_sensor(link, given.power_sensor)
    start = schedules.shift_up(call.get("start", now), sensor.resolution, sensor.timezone)
    soc_at_start = call.get("soc_at_start")
    storage = storages.Storage(
        power_sensor=given.power_sensor,
        soc_sensor=given.soc_sensor,
        soc_at_start=state_of_charge(hass, given) if soc_at_start is None else soc_at_start,
        soc_min=given.soc_min,
        soc_max=given.soc_max,
        soc_targets=upcoming(call, "soc_targets", start),
        soc_minima=upcoming(call, "soc_minima", start),
        soc_maxima=upcoming(call, "soc_maxima", start),
        power_capacity=given.power_capacity,
        roundtrip_efficiency=given.roundtrip_efficiency,
        flex_model=(given.flex_model or {}) | call.get("flex_model", {}),
    )
    duration = planning.lasting(storage, sensor, start, call.get("duration", given.schedule_duration))
    raw = (given.flex_context or {}) | call.get("flex_context", {})
    return await planning.plan(
        link,
        storage,
        storages.flex_context(
            given.consumption_price_sensor,
            given.production_price_sensor,
            given.site_power_capacity,
            await beside(start, start + duration, sensor.resolution, raw),
            raw,
        ),
        start,
        duration,
        given.schedule_unit,
        given.soc_unit,
        given.site,
        now,
    )


@pyscript_compile
def upcoming(call, field_name, start):
    """Return a call's wishes; refuse one that no schedule from this start on can fulfil."""
    wishes = call.get(field_name, [])
    zone = dt_util.get_default_time_zone()
    for number, wish in enumerate(wishes):
        if not start <= wish.end <= start + fields.LONGEST_SCHEDULE:
            wrong = "before" if wish.end < start else "more than 31 days after"
            raise ServiceValidationError(
                f"{field_name}[{number}]: {wish.end.astimezone(zone).isoformat()} is {wrong} the schedule's "
                f"start, {start.astimezone(zone).isoformat()}"
            )
    return wishes


@pyscript_compile
def state_of_charge(hass, given):
    """Return the state of charge (Wh) that `soc_entity` tells; a % is of soc_max."""
    if given.soc_entity is None:
        raise ServiceValidationError(
            "soc_at_start is missing: give the state of charge, or configure soc_entity"
        )
    entity_id, attribute = entities.split(given.soc_entity)
    state = hass.states.get(entity_id)
    if state is None:
        raise NoStateOfCharge(f"soc_entity: {given.soc_entity} does not exist in Home Assistant")
    value, unit = entities.reading(state, attribute)
    try:
        soc = fields.energy(given.soc_unit, given.soc_max)(
            value if attribute else f"{value} {unit or given.soc_unit}"
        )
    except vol.Invalid as error:
        raise NoStateOfCharge(
            f"soc_entity: {given.soc_entity} is {value!r}: {error.error_message}"
        ) from error
    if attribute and soc > MOST_OVER_SOC_MAX * given.soc_max:
        raise NoStateOfCharge(
            f"soc_entity: {given.soc_entity} is {value!r}, taken as {given.soc_unit}, far above soc_max: "
            f"if it is a percentage, give a template sensor with % as its unit"
        )
    return soc
