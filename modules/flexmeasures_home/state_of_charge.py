"""The state of charge of an entity: which readings are believed, and how it is extrapolated.

Energies are Wh, powers W, consumption positive. `flexmeasures_cem.plausibility` says which readings are
believed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
import voluptuous as vol
from homeassistant.core import CALLBACK_TYPE, Event, EventStateChangedData, HomeAssistant, callback
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.event import async_track_state_change_event

import flexmeasures_cem.plausibility as plausibility
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
TOLERANCE = 0.1
"""The part of soc_max by which a reading may differ from what power explains: some have coarse steps."""
POWER_MARGIN = 1.5
"""A change is explained by at most this multiple of the device's power."""
HOURS_TO_FILL = 0.5
"""The assumed time to fill or empty a device of unknown power."""
STALE_CHANGE = 0.05
"""The part of soc_max by which plans must have changed it before an entity that does not change is stale."""
MAX_MEASURED = timedelta(minutes=2)
"""The time for which the present measured power is assumed to have been the same."""
MAX_OVER_SOC_MAX = 1.1
"""The greatest possible state of charge, as a multiple of soc_max."""
HOUR = timedelta(hours=1)
BETWEEN_WARNINGS = timedelta(hours=1)
"""The time between warnings of readings that are not believed."""


class _NoStateOfCharge(HomeAssistantError):
    """An entity has no state of charge."""


NoStateOfCharge = _NoStateOfCharge


@pyscript_compile
def of_entity(
    hass: HomeAssistant,
    entity: str,
    unit_if_none: str | None,
    soc_unit: str,
    soc_max: float,
    key: str = "soc_entity",
) -> float:
    """Return the state of charge (Wh) of an entity, or of its attribute; a % is of `soc_max` (Wh).

    `unit_if_none` is the unit where the entity has none, else it is `soc_unit`. Raise NoStateOfCharge, whose
    text names the `key` with which the entity was given.
    """
    entity_id, attribute = entities.split(entity)
    state = hass.states.get(entity_id)
    if state is None:
        raise NoStateOfCharge(
            f"{key}: {entity} does not exist in Home Assistant{entities.nearest(hass, entity)}"
        )
    value, unit = entities.reading(state, attribute)
    if attribute and value is None:
        raise NoStateOfCharge(f"{key}: {entity_id} has no attribute {attribute!r}")
    unit = unit or unit_if_none
    if attribute and not unit and not has_unit(value):
        raise NoStateOfCharge(
            f"{key}: {entity} is {fields.quoted(value)}, without a unit: give soc_entity_unit, such as "
            f"'%' or kWh"
        )
    try:
        quantity = value if has_unit(value) else f"{value} {unit or soc_unit}"
        soc: float = fields.energy(soc_unit, soc_max, max_percent=None)(quantity)
    except vol.Invalid as invalid:
        raise NoStateOfCharge(
            f"{key}: {entity} is {fields.quoted(value)}: {invalid.error_message}"
        ) from invalid
    if soc > MAX_OVER_SOC_MAX * soc_max:
        raise NoStateOfCharge(
            f"{key}: {entity} is {value} {unit or soc_unit}, far above soc_max: check its unit, and soc_max"
        )
    return soc


@pyscript_compile
def has_unit(value: Any) -> bool:
    """Tell whether a value is a text with a unit, such as "45 %"."""
    return isinstance(value, str) and value.strip()[-1:] not in (*"0123456789.", "")


@dataclass(eq=False, kw_only=True)
class _StateOfCharge:
    """The state of charge of a device by its entity, from the start of the app on.

    `max_power` is the device's, or None. `change_planned(begin, end)` returns by how much the schedules in
    force change the state of charge; `power_measured()` returns the present power, or None. If the entity has
    reported nothing for `max_age`, not even the same value, though these say that it must have changed, the
    value is extrapolated by them; until it would have been full or empty for as long: then no power flows.
    `when_known()` is called once the entity has a value again.

    `gained` is the energy of the power since the value changed at `changed_at`, up to `looked_at`.
    """

    hass: HomeAssistant
    entity: str
    unit_if_none: str | None
    soc_unit: str
    soc_min: float
    soc_max: float
    max_power: float | None
    max_age: timedelta
    efficiency: float
    change_planned: Callable[[datetime, datetime], float]
    power_measured: Callable[[], float | None]
    when_known: Callable[[], None]
    level: plausibility.BelievedLevel = field(default_factory=plausibility.BelievedLevel)
    changed_at: datetime | None = None
    looked_at: datetime | None = None
    gained: float = 0.0
    was_known: bool = True
    bound_since: datetime | None = None
    warned_at: datetime | None = None
    was_stale: bool = False
    stop_listening: CALLBACK_TYPE | None = None

    @pyscript_compile
    def start(self) -> None:
        """Follow the entity from now on."""
        power = self.max_power or self.soc_max / HOURS_TO_FILL
        self.level.tolerance = TOLERANCE * self.soc_max
        self.level.greatest_rise = self.level.greatest_fall = POWER_MARGIN * power / HOUR.total_seconds()

        @callback
        def changed(_event: Event[EventStateChangedData]) -> None:
            self.look()

        entity_id, _attribute = entities.split(self.entity)
        self.stop_listening = async_track_state_change_event(self.hass, entity_id, changed)
        self.look()
        state = self.hass.states.get(entity_id)
        if state is not None and self.changed_at is not None:
            self.gained = self.change_planned(state.last_changed, self.changed_at)
            self.changed_at = min(state.last_changed, self.changed_at)

    @pyscript_compile
    def stop(self) -> None:
        """Stop following the entity."""
        self.was_known = True
        if self.stop_listening:
            self.stop_listening()
            self.stop_listening = None

    @pyscript_compile
    def look(self) -> None:
        """Add the power until now, and take the entity's present value; to be called each minute."""
        now = dt_util.utcnow()
        self._add_power(now)
        try:
            soc = self._read()
        except NoStateOfCharge:
            self.was_known = False
            return
        before = self.level.value
        if before is not None and self._is_explained(soc):
            self.level.forget()
        self.level.update(soc, now.timestamp())
        if self.level.value != before:
            self.changed_at, self.gained = now, 0.0
        self._trust_if_bound(now)
        if self.level.is_suspect and (self.warned_at is None or now - self.warned_at > BETWEEN_WARNINGS):
            self.warned_at = now
            LOGGER.warning(
                "soc_entity: %s says %.2f kWh after %.2f kWh, which its power cannot explain: it is used "
                "only if it lasts for a minute",
                self.entity,
                soc / 1000,
                self.level.believed / 1000,
            )
        if not self.was_known:
            self.was_known = True
            self.when_known()

    @pyscript_compile
    def at(self, start: datetime) -> tuple[float, list[str]]:
        """Return the state of charge (Wh) at a schedule's start, and sentences that say what was assumed.

        Raise NoStateOfCharge while the entity has none.
        """
        self.look()
        reading = self._read()
        now, soc = dt_util.utcnow(), self.level.believed
        assumed: list[str] = []
        if self.level.is_suspect:
            confirmed = dt_util.utc_from_timestamp(self.level.moment)
            soc += self.change_planned(confirmed, now)
            assumed.append(
                f"soc_entity: {self.entity} says {reading / 1000:.2f} kWh, which its power cannot explain: "
                f"planned with {soc / 1000:.2f} kWh"
            )
        elif self._is_stale(now):
            soc += self.gained
            since = dt_util.as_local(self.changed_at or now).isoformat(timespec="minutes")
            assumed.append(
                f"soc_entity: {self.entity} has not changed since {since}, though power was planned: its "
                f"{reading / 1000:.2f} kWh are extrapolated to {self._within(soc) / 1000:.2f} kWh"
            )
            if not self.was_stale:
                LOGGER.warning("%s", assumed[0])
        self.was_stale = self._is_stale(now)
        return self._within(soc + self.change_planned(now, start)), assumed

    @pyscript_compile
    def now(self) -> float | None:
        """Return the state of charge (Wh) to be posted, or None while it is unknown, or not believed."""
        self.look()
        try:
            self._read()
        except NoStateOfCharge:
            return None
        is_believed = not self.level.is_suspect and not self._is_stale(dt_util.utcnow())
        return self.level.value if is_believed else None

    @pyscript_compile
    def _read(self) -> float:
        return of_entity(self.hass, self.entity, self.unit_if_none, self.soc_unit, self.soc_max)

    @pyscript_compile
    def _is_explained(self, soc: float) -> bool:
        """Tell whether the energy of the power since the last change explains a state of charge (Wh)."""
        low, high = sorted((self.level.believed, self.level.believed + self.gained))
        return bool(low - self.level.tolerance <= soc <= high + self.level.tolerance)

    @pyscript_compile
    def _is_stale(self, now: datetime) -> bool:
        """Tell whether the entity has reported nothing for so long that its value must have changed."""
        state = self.hass.states.get(entities.split(self.entity)[0])
        changed_at = self.changed_at or now
        if state is None or now - max(state.last_reported, changed_at) <= self.max_age:
            return False
        return abs(self.gained) > STALE_CHANGE * self.soc_max

    @pyscript_compile
    def _trust_if_bound(self, now: datetime) -> None:
        """Trust the entity again once it would have been full or empty for long: no power flows."""
        carried = self.level.believed + self.gained
        if not self._is_stale(now) or self._within(carried) == carried:
            self.bound_since = None
        elif self.bound_since is None:
            self.bound_since = now
        elif now - self.bound_since > self.max_age:
            self.changed_at, self.gained, self.bound_since = now, 0.0, None

    @pyscript_compile
    def _add_power(self, now: datetime) -> None:
        """Add the energy of the power since the last look."""
        before, self.looked_at = self.looked_at or now, now
        if now <= before:
            return
        power = self.power_measured()
        if power is None or now - before > MAX_MEASURED:
            self.gained += self.change_planned(before, now)
        else:
            stored = power * self.efficiency if power > 0 else power / self.efficiency
            self.gained += stored * ((now - before) / HOUR)

    @pyscript_compile
    def _within(self, soc: float) -> float:
        """Clamp an extrapolated state of charge (Wh) to the range, widened to the last believed value."""
        value = self.level.believed
        return min(max(soc, min(self.soc_min, value)), max(self.soc_max, value))


StateOfCharge = _StateOfCharge
