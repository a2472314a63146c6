"""The question to FlexMeasures: a call's fields, with the configuration filling in."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.exceptions import ServiceValidationError

import flexmeasures_api.flexible_devices as storages
import flexmeasures_api.prices as prices
import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule as schedules
import flexmeasures_api.schedule_requests as schedule_requests
import flexmeasures_api.sensor_clock as sensor_clock
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.fields as fields
import flexmeasures_home.grid_connection as grid_connection
import flexmeasures_home.state_of_charge as states_of_charge

DAYS_AHEAD = 8
"""How many days are looked through for the next time of a daily target."""


@pyscript_compile
async def ask(
    hass: Any,
    given: Any,
    link: Any,
    state_of_charge: Any,
    change_planned: Callable[[datetime, datetime], float],
    beside: Callable[..., Awaitable[dict]],
    call: dict[str, Any],
    asked_at: datetime,
) -> Any:
    """Return the schedule for the call's fields, the configuration (`given`) filling in.

    `state_of_charge` is that of `soc_entity`, or None without one; `change_planned(begin, end)` returns by
    how much (Wh) the schedules in force change it. `beside(start, end, step, raw)` returns the flex-context's
    fields that count other devices in, where `raw` are the user's own. Raise a FlexMeasuresError,
    NoStateOfCharge or ServiceValidationError. It was `asked_at` a moment before its turn.
    """
    now = dt_util.utcnow()
    sensor = await sensor_data.power_sensor(link, given.power_sensor)
    start = sensor_clock.ceil(call.get("start", now), sensor.resolution, sensor.timezone)
    refuse_the_past(call, start, sensor.resolution, asked_at)
    start = max(start, sensor_clock.floor(now, sensor.resolution, sensor.timezone))
    flex_model = (given.flex_model or {}) | call.get("flex_model", {})
    soc_max = bound(flex_model, "soc-max", given.soc_max)
    asked, assumed = call.get("soc_at_start"), []
    if asked is None or asked == given.soc_entity:
        if state_of_charge is None:
            raise ServiceValidationError(
                "soc_at_start is missing: give the state of charge, or configure soc_entity"
            )
        soc_at_start, assumed = state_of_charge.at(start)
    elif isinstance(asked, str):
        present = soc_of_other(hass, given, asked)
        soc_at_start = min(max(present + change_planned(now, start), 0.0), max(present, soc_max))
    else:
        soc_at_start = asked
    most = soc_max * states_of_charge.MAX_OVER_SOC_MAX
    refuse_more_than_full(
        "soc_at_start", soc_at_start, most, soc_max, may_be_percent=isinstance(asked, float)
    )
    if not given.soc_min <= soc_at_start <= soc_max and not {"soc-min", "soc-max"} & flex_model.keys():
        level, least, full = (f"{energy / 1000:.2f}" for energy in (soc_at_start, given.soc_min, soc_max))
        assumed = [
            *assumed,
            f"The state of charge, {level} kWh, is outside soc_min and soc_max ({least} to {full} kWh): "
            f"until it is back, what is present is the limit",
        ]
    targets = call.get("soc_targets")
    if targets is None:
        targets = daily_targets(given.soc_targets, start, call.get("duration", given.schedule_duration))
    storage = storages.Storage(
        power_sensor=given.power_sensor,
        soc_sensor=given.soc_sensor,
        soc_at_start=soc_at_start,
        soc_min=given.soc_min,
        soc_max=given.soc_max,
        soc_targets=upcoming("soc_targets", targets, start, now),
        soc_minima=upcoming("soc_minima", call.get("soc_minima", []), start, now),
        soc_maxima=upcoming("soc_maxima", call.get("soc_maxima", []), start, now),
        soc_at_end=given.soc_at_end,
        **capacities(given),
        roundtrip_efficiency=given.roundtrip_efficiency,
        flex_model=flex_model,
    )
    for name in ("soc_targets", "soc_minima"):
        for number, wish in enumerate(getattr(storage, name)):
            refuse_more_than_full(f"{name}[{number}]", wish.value, soc_max, soc_max)
    duration = schedule_requests.duration_to_last_target(
        storage, sensor, start, call.get("duration", given.schedule_duration)
    )
    raw = (given.flex_context or {}) | call.get("flex_context", {})
    tariff, price_fields = await prices.for_plan(
        link,
        consumption_sensor=given.consumption_price_sensor,
        production_sensor=given.production_price_sensor,
        flex_context=raw,
        start=start,
        end=start + duration,
    )
    grid_connection.refuse_other_currency(given, tariff)
    schedule = await schedule_requests.schedule_storage(
        link,
        storage,
        flex_context=storages.flex_context(
            price_fields,
            grid_connection.fields(given),
            await beside(start, start + duration, sensor.resolution, raw),
            raw,
        ),
        start=start,
        duration=duration,
        unit=given.schedule_unit,
        soc_unit=given.soc_unit,
        site_id=given.site,
        now=now,
    )
    if tariff is None:
        return replace(schedule, warnings=assumed)
    until = tariff.known_until
    return replace(
        schedule,
        prices_known_until=None if until is None else datetime.fromtimestamp(until, UTC),
        assumed_prices=tariff.assumed_spans,
        warnings=assumed + prices.warnings(tariff, dt_util.get_default_time_zone()),
    )


@pyscript_compile
def refuse_the_past(call: dict[str, Any], start: datetime, resolution: timedelta, asked_at: datetime) -> None:
    """Refuse a start that was over by more than the interval under way when it was asked for."""
    if start <= asked_at - resolution:
        asked = dt_util.as_local(call["start"]).isoformat(timespec="minutes")
        raise ServiceValidationError(f"start: {asked} lies in the past: leave it out, to plan from now on")


@pyscript_compile
def bound(flex_model: dict[str, Any], name: str, configured: float) -> float:
    """Return a raw field's energy (Wh), or what is configured where there is none that can be read."""
    try:
        return quantities.energy(flex_model[name])
    except (KeyError, ValueError):
        return configured


@pyscript_compile
def soc_of_other(hass: Any, given: Any, entity: str) -> float:
    """Return the present state of charge (Wh) of an entity that only a call names."""
    if given.soc_entity is not None:
        raise ServiceValidationError(
            f"soc_at_start: {entity} is not soc_entity ({given.soc_entity}): the service plans the one "
            f"device that is configured, and another's plan would replace its own"
        )
    try:
        return states_of_charge.of_entity(
            hass, entity, given.soc_entity_unit, given.soc_unit, given.soc_max, "soc_at_start"
        )
    except states_of_charge.NoStateOfCharge as error:
        raise ServiceValidationError(str(error)) from error


@pyscript_compile
def refuse_more_than_full(
    name: str, asked: float, most: float, full: float, may_be_percent: bool = True
) -> None:
    """Refuse a state of charge (Wh) of more than a device can hold: mostly a % that was forgotten."""
    if asked > most * (1 + schedules.SOC_TOLERANCE):
        kilowatt_hours = f"{quantities.rounded(asked / 1000):g}"
        is_likely = may_be_percent and 2 * full < asked <= 100_000
        hint = f": did you mean {kilowatt_hours} %?" if is_likely else ""
        raise ServiceValidationError(
            f"{name}: {kilowatt_hours} kWh is more than soc_max, "
            f"{quantities.rounded(full / 1000):g} kWh{hint}"
        )


@pyscript_compile
def capacities(given: Any) -> dict[str, float | None]:
    """Return the Storage's capacities (W): a direction that is not configured has the power_capacity.

    Without a production capacity beside one of consumption, FlexMeasures plans no production at all.
    """
    consumption, production = given.consumption_capacity, given.production_capacity
    power = given.power_capacity
    if power is None and None not in (consumption, production):
        power = max(consumption, production)
    if consumption is not None and production is None:
        production = power
    return {
        "power_capacity": power,
        "consumption_capacity": consumption,
        "production_capacity": production,
        "minimum_power": given.minimum_power,
    }


@pyscript_compile
def daily_targets(targets: list[dict[str, Any]], start: datetime, duration: timedelta) -> list:
    """Return the configured daily targets from a start on: those within the schedule, or within a day."""
    zone, wishes = dt_util.get_default_time_zone(), []
    first_day = start.astimezone(zone).date()
    last = start + max(duration, timedelta(days=1))
    for target in targets:
        for day in range(max(DAYS_AHEAD, duration.days + 2)):
            date = first_day + timedelta(days=day)
            moment = datetime.combine(date, target["time"], zone).astimezone(UTC)
            if date.weekday() in target["weekdays"] and start < moment <= last:
                wishes.append(storages.SocEvent(moment, moment, target["value"]))
    return wishes


@pyscript_compile
def upcoming(field_name: str, wishes: list, start: datetime, now: datetime) -> list:
    """Return wishes, none before the schedule's start; refuse one that no schedule from there on can fulfil.

    What was due from now until the start is due at the start.
    """
    zone = dt_util.get_default_time_zone()
    for number, wish in enumerate(wishes):
        if not min(now, start) <= wish.end <= start + fields.LONGEST_SCHEDULE:
            wrong = "before" if wish.end < start else "more than 31 days after"
            raise ServiceValidationError(
                f"{field_name}[{number}]: {wish.end.astimezone(zone).isoformat()} is {wrong} the schedule's "
                f"start, {start.astimezone(zone).isoformat()}"
            )
    return [replace(wish, start=max(wish.start, start), end=max(wish.end, start)) for wish in wishes]
