"""The schedule of the app's own device: a call's fields, completed by the configuration."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HomeAssistant
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
from flexmeasures_api.connection import Connection
from flexmeasures_api.flexible_devices import SocEvent, Storage
from flexmeasures_api.schedule import Schedule
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.state_of_charge import StateOfCharge

DAYS_AHEAD = 8
"""How many days are searched for the next time of a daily target."""
Call = dict[str, Any]
"""The fields of `flexmeasures.trigger_and_get_schedule`, checked."""
OtherLoads = Callable[[datetime, datetime, timedelta, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Returns the flex-context's fields for other devices, of (start, end, step, the user's raw fields)."""


@dataclass(kw_only=True)
class _ScheduleCall:
    """A call that is being planned.

    `state_of_charge` is that of `soc_entity`, or None without one; `change_planned(begin, end)` returns by
    how much (Wh) the schedules in force change it. The call was received at `asked_at`, before its turn.
    """

    hass: HomeAssistant
    configuration: Configuration
    link: Connection
    state_of_charge: StateOfCharge | None
    change_planned: Callable[[datetime, datetime], float]
    other_loads: OtherLoads
    fields: Call
    asked_at: datetime

    @property
    @pyscript_compile
    def flex_model(self) -> dict[str, Any]:
        """Return the raw fields of the flex-model: those of the call take precedence."""
        own: dict[str, Any] = self.fields.get("flex_model", {})
        return (self.configuration.flex_model or {}) | own

    @property
    @pyscript_compile
    def flex_context(self) -> dict[str, Any]:
        """Return the raw fields of the flex-context: those of the call take precedence."""
        own: dict[str, Any] = self.fields.get("flex_context", {})
        return (self.configuration.flex_context or {}) | own

    @property
    @pyscript_compile
    def duration(self) -> timedelta:
        """Return how long the schedule is to be, without targets after that."""
        duration: timedelta = self.fields.get("duration", self.configuration.schedule_duration)
        return duration

    @pyscript_compile
    async def plan(self) -> Schedule:
        """Return the schedule; raise a FlexMeasuresError, NoStateOfCharge or ServiceValidationError."""
        given, now = self.configuration, dt_util.utcnow()
        sensor = await sensor_data.power_sensor(self.link, given.power_sensor)
        start = sensor_clock.ceil(self.fields.get("start", now), sensor.resolution, sensor.timezone)
        refuse_the_past(self.fields, start, sensor.resolution, self.asked_at)
        start = max(start, sensor_clock.floor(now, sensor.resolution, sensor.timezone))
        soc_at_start, assumed = self._soc_at_start(start, now)
        storage = self._storage(soc_at_start, start, now)
        duration = schedule_requests.duration_to_last_target(storage, sensor, start, self.duration)
        tariff, price_fields = await prices.for_plan(
            self.link,
            consumption_sensor=given.consumption_price_sensor,
            production_sensor=given.production_price_sensor,
            flex_context=self.flex_context,
            start=start,
            end=start + duration,
        )
        grid_connection.refuse_other_currency(given, tariff)
        schedule = await schedule_requests.schedule_storage(
            self.link,
            storage,
            flex_context=storages.flex_context(
                price_fields,
                grid_connection.fields(given),
                await self.other_loads(start, start + duration, sensor.resolution, self.flex_context),
                self.flex_context,
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
    def _soc_at_start(self, start: datetime, now: datetime) -> tuple[float, list[str]]:
        """Return the state of charge (Wh) at the start, and sentences that say what was assumed."""
        given, asked = self.configuration, self.fields.get("soc_at_start")
        soc_max = energy_field(self.flex_model, "soc-max", given.soc_max)
        assumed: list[str] = []
        if asked is None or asked == given.soc_entity:
            if self.state_of_charge is None:
                raise ServiceValidationError(
                    "soc_at_start is missing: give the state of charge, or configure soc_entity"
                )
            soc, assumed = self.state_of_charge.at(start)
        elif isinstance(asked, str):
            present = soc_of_entity(self.hass, given, asked)
            soc = min(max(present + self.change_planned(now, start), 0.0), max(present, soc_max))
        else:
            soc = asked
        refuse_more_than_full(
            "soc_at_start",
            soc,
            limit_wh=soc_max * states_of_charge.MAX_OVER_SOC_MAX,
            soc_max_wh=soc_max,
            may_be_percent=isinstance(asked, float),
        )
        if not given.soc_min <= soc <= soc_max and not {"soc-min", "soc-max"} & self.flex_model.keys():
            level, least, full = (f"{energy / 1000:.2f}" for energy in (soc, given.soc_min, soc_max))
            assumed = [
                *assumed,
                f"The state of charge, {level} kWh, is outside soc_min and soc_max ({least} to {full} kWh): "
                f"until it is back in this range, the present level is the limit",
            ]
        return soc, assumed

    @pyscript_compile
    def _storage(self, soc_at_start: float, start: datetime, now: datetime) -> Storage:
        """Return the device as a Storage; refuse targets that no schedule can reach."""
        given, soc_max = (
            self.configuration,
            energy_field(self.flex_model, "soc-max", self.configuration.soc_max),
        )
        targets = self.fields.get("soc_targets")
        if targets is None:
            targets = daily_targets(given.soc_targets, start, self.duration)
        soc_targets = upcoming("soc_targets", targets, start, now)
        soc_minima = upcoming("soc_minima", self.fields.get("soc_minima", []), start, now)
        soc_maxima = upcoming("soc_maxima", self.fields.get("soc_maxima", []), start, now)
        for name, events in (("soc_targets", soc_targets), ("soc_minima", soc_minima)):
            for number, event in enumerate(events):
                refuse_more_than_full(f"{name}[{number}]", event.value, limit_wh=soc_max, soc_max_wh=soc_max)
        power, consumption, production = capacities(given)
        return Storage(
            power_sensor=given.power_sensor,
            soc_sensor=given.soc_sensor,
            soc_at_start=soc_at_start,
            soc_min=given.soc_min,
            soc_max=given.soc_max,
            soc_targets=soc_targets,
            soc_minima=soc_minima,
            soc_maxima=soc_maxima,
            soc_at_end=given.soc_at_end,
            power_capacity=power,
            consumption_capacity=consumption,
            production_capacity=production,
            roundtrip_efficiency=given.roundtrip_efficiency,
            minimum_power=given.minimum_power,
            flex_model=self.flex_model,
        )


ScheduleCall = _ScheduleCall


@pyscript_compile
def refuse_the_past(call: Call, start: datetime, resolution: timedelta, asked_at: datetime) -> None:
    """Refuse a start that was before the interval under way when it was asked for."""
    if start <= asked_at - resolution:
        asked = dt_util.as_local(call["start"]).isoformat(timespec="minutes")
        raise ServiceValidationError(f"start: {asked} is in the past: leave it out, to plan from now on")


@pyscript_compile
def energy_field(flex_model: dict[str, Any], name: str, configured: float) -> float:
    """Return the energy of a raw field (Wh), or what is configured if it is missing or cannot be read."""
    try:
        return quantities.energy(flex_model[name])
    except (KeyError, ValueError):
        return configured


@pyscript_compile
def soc_of_entity(hass: HomeAssistant, given: Configuration, entity: str) -> float:
    """Return the present state of charge (Wh) of an entity that only a call names."""
    if given.soc_entity is not None:
        raise ServiceValidationError(
            f"soc_at_start: {entity} is not soc_entity ({given.soc_entity}): the service plans only the "
            f"device that is configured, and the plan of another device would replace its own"
        )
    try:
        return states_of_charge.of_entity(
            hass, entity, given.soc_entity_unit, given.soc_unit, given.soc_max, "soc_at_start"
        )
    except states_of_charge.NoStateOfCharge as error:
        raise ServiceValidationError(str(error)) from error


@pyscript_compile
def refuse_more_than_full(
    name: str, asked: float, *, limit_wh: float, soc_max_wh: float, may_be_percent: bool = True
) -> None:
    """Refuse a state of charge (Wh) above a limit: mostly a forgotten %."""
    if asked > limit_wh * (1 + schedules.SOC_TOLERANCE):
        kilowatt_hours = f"{quantities.rounded(asked / 1000):g}"
        is_likely = may_be_percent and 2 * soc_max_wh < asked <= 100_000
        hint = f": did you mean {kilowatt_hours} %?" if is_likely else ""
        raise ServiceValidationError(
            f"{name}: {kilowatt_hours} kWh is more than soc_max, "
            f"{quantities.rounded(soc_max_wh / 1000):g} kWh{hint}"
        )


@pyscript_compile
def capacities(given: Configuration) -> tuple[float | None, float | None, float | None]:
    """Return the power, consumption and production capacity (W) of the device.

    A direction that is not configured has the power_capacity. With a consumption capacity alone,
    FlexMeasures would plan no production at all.
    """
    consumption, production = given.consumption_capacity, given.production_capacity
    power = given.power_capacity
    if power is None and consumption is not None and production is not None:
        power = max(consumption, production)
    if consumption is not None and production is None:
        production = power
    return power, consumption, production


@pyscript_compile
def daily_targets(targets: list[dict[str, Any]], start: datetime, duration: timedelta) -> list[SocEvent]:
    """Return the configured daily targets within the schedule, or within a day if that is longer."""
    zone = dt_util.get_default_time_zone()
    events: list[SocEvent] = []
    first_day = start.astimezone(zone).date()
    last = start + max(duration, timedelta(days=1))
    for target in targets:
        for day in range(max(DAYS_AHEAD, duration.days + 2)):
            date = first_day + timedelta(days=day)
            moment = datetime.combine(date, target["time"], zone).astimezone(UTC)
            if date.weekday() in target["weekdays"] and start < moment <= last:
                events.append(SocEvent(moment, moment, target["value"]))
    return events


@pyscript_compile
def upcoming(field_name: str, events: Sequence[SocEvent], start: datetime, now: datetime) -> list[SocEvent]:
    """Return events as of the schedule's start; refuse one that no schedule from there on can reach.

    An event between now and the start is moved to the start.
    """
    zone = dt_util.get_default_time_zone()
    for number, event in enumerate(events):
        if not min(now, start) <= event.end <= start + fields.MAX_SCHEDULE:
            wrong = "before" if event.end < start else "more than 31 days after"
            raise ServiceValidationError(
                f"{field_name}[{number}]: {event.end.astimezone(zone).isoformat()} is {wrong} the schedule's "
                f"start, {start.astimezone(zone).isoformat()}"
            )
    return [replace(event, start=max(event.start, start), end=max(event.end, start)) for event in events]
