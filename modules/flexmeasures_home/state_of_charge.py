"""The state of charge that an entity tells: what of it is believed, and how it is carried on.

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
from homeassistant.core import callback
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.event import async_track_state_change_event

import flexmeasures_cem.plausibility as plausibility
import flexmeasures_home.entities as entities
import flexmeasures_home.fields as fields

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
TOLERANCE = 0.1
"""By which part of soc_max a reading may be off what power and time explain, since some have coarse steps."""
POWER_MARGIN = 1.5
"""How many times the device's power a change may come to."""
HOURS_TO_FILL = 0.5
"""How fast a device of unknown power is taken to be filled or emptied."""
STALE_CHANGE = 0.05
"""What part of soc_max must have been due before an entity that does not change is not believed any more."""
LONGEST_MEASURED = timedelta(minutes=2)
"""For how long the power that is measured now is taken to have been the same."""
MAX_OVER_SOC_MAX = 1.1
"""How many times soc_max a state of charge may be."""
HOUR = timedelta(hours=1)
BETWEEN_WARNINGS = timedelta(hours=1)
"""How often the log has a warning of a reading that is not believed."""


@pyscript_compile
def error() -> type:
    """Define the error: natively, so that compiled code can raise it."""

    class NoStateOfCharge(HomeAssistantError):
        """An entity does not tell a state of charge."""

    return NoStateOfCharge


NoStateOfCharge = error()


@pyscript_compile
def of_entity(
    hass: Any, entity: str, unit_if_none: str | None, soc_unit: str, soc_max: float, key: str = "soc_entity"
) -> float:
    """Return the state of charge (Wh) that an entity, or an attribute of it, tells now; a % is of soc_max.

    `unit_if_none` is the unit of one that tells none; a state without any is in `soc_unit`. Raise
    NoStateOfCharge, naming the `key` that the entity was given by.
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
        soc = fields.energy(soc_unit, soc_max, max_percent=None)(quantity)
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
    """Tell whether a value is a text with a unit of its own, such as "45 %"."""
    return isinstance(value, str) and value.strip()[-1:] not in (*"0123456789.", "")


@dataclass(eq=False, kw_only=True)
class _StateOfCharge:
    """What an entity tells of a device's state of charge, from when the app starts.

    `max_power` is the device's, or None. `change_planned(begin, end)` returns by how much the schedules in
    force change the state of charge; `power_measured()` returns the power now, or None. After `max_age` in
    which the entity has said nothing, not even the same again, the value is carried on by those, where they
    say that it must have changed; until it has been full or empty by that for as long: then no power flows.
    `when_known()` is called once the entity has a value again.

    `gained` is what power has brought since the value `changed_at`, up to `looked_at`.
    """

    hass: Any
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
    level: Any = field(default_factory=plausibility.BelievedLevel)
    changed_at: datetime | None = None
    looked_at: datetime | None = None
    gained: float = 0.0
    was_known: bool = True
    bound_since: datetime | None = None
    warned_at: datetime | None = None
    was_stale: bool = False
    forget_changes: Callable[[], None] | None = None

    @pyscript_compile
    def start(self) -> None:
        """Follow the entity from now on."""
        power = self.max_power or self.soc_max / HOURS_TO_FILL
        self.level.tolerance = TOLERANCE * self.soc_max
        self.level.greatest_rise = self.level.greatest_fall = POWER_MARGIN * power / HOUR.total_seconds()

        @callback
        def changed(_event: Any) -> None:
            self.look()

        entity_id, _attribute = entities.split(self.entity)
        self.forget_changes = async_track_state_change_event(self.hass, entity_id, changed)
        self.look()
        state = self.hass.states.get(entity_id)
        if state is not None and self.changed_at is not None:
            self.gained = self.change_planned(state.last_changed, self.changed_at)
            self.changed_at = min(state.last_changed, self.changed_at)

    @pyscript_compile
    def stop(self) -> None:
        """Follow the entity no more."""
        self.was_known = True
        if self.forget_changes:
            self.forget_changes()
            self.forget_changes = None

    @pyscript_compile
    def look(self) -> None:
        """Reckon until now, and take the entity's value as it is; to be called each minute."""
        now = dt_util.utcnow()
        self._reckon(now)
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
        self._give_up(now)
        if self.level.is_suspect and (self.warned_at is None or now - self.warned_at > BETWEEN_WARNINGS):
            self.warned_at = now
            LOGGER.warning(
                "soc_entity: %s says %.2f kWh after %.2f kWh, which its power cannot explain: it is believed "
                "if it lasts for a minute",
                self.entity,
                soc / 1000,
                self.level.value / 1000,
            )
        if not self.was_known:
            self.was_known = True
            self.when_known()

    @pyscript_compile
    def at(self, start: datetime) -> tuple[float, list[str]]:
        """Return the state of charge (Wh) at a schedule's start, and sentences that say what was assumed.

        Raise NoStateOfCharge while the entity tells none.
        """
        self.look()
        told = self._read()
        now, soc = dt_util.utcnow(), self.level.value
        assumed = []
        if self.level.is_suspect:
            confirmed = dt_util.utc_from_timestamp(self.level.moment)
            soc += self.change_planned(confirmed, now)
            assumed.append(
                f"soc_entity: {self.entity} says {told / 1000:.2f} kWh, which its power cannot explain: "
                f"planned on with {soc / 1000:.2f} kWh"
            )
        elif self._is_stale(now):
            soc += self.gained
            since = dt_util.as_local(self.changed_at).isoformat(timespec="minutes")
            assumed.append(
                f"soc_entity: {self.entity} has not changed since {since}, though power was due: its "
                f"{told / 1000:.2f} kWh are carried on to {self._within(soc) / 1000:.2f} kWh"
            )
            if not self.was_stale:
                LOGGER.warning("%s", assumed[0])
        self.was_stale = self._is_stale(now)
        return self._within(soc + self.change_planned(now, start)), assumed

    @pyscript_compile
    def now(self) -> float | None:
        """Return the state of charge (Wh) to be posted, or None while it is not known, or not believed."""
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
        """Tell whether what power has brought since the last change explains a state of charge (Wh)."""
        low, high = sorted((self.level.value, self.level.value + self.gained))
        return low - self.level.tolerance <= soc <= high + self.level.tolerance

    @pyscript_compile
    def _is_stale(self, now: datetime) -> bool:
        """Tell whether the entity has said nothing for so long that power must have changed its value."""
        state = self.hass.states.get(entities.split(self.entity)[0])
        if state is None or now - max(state.last_reported, self.changed_at) <= self.max_age:
            return False
        return abs(self.gained) > STALE_CHANGE * self.soc_max

    @pyscript_compile
    def _give_up(self, now: datetime) -> None:
        """Believe the entity again once it would have been full or empty for long: power does not flow."""
        carried = self.level.value + self.gained
        if not self._is_stale(now) or self._within(carried) == carried:
            self.bound_since = None
        elif self.bound_since is None:
            self.bound_since = now
        elif now - self.bound_since > self.max_age:
            self.changed_at, self.gained, self.bound_since = now, 0.0, None

    @pyscript_compile
    def _reckon(self, now: datetime) -> None:
        """Sum up what power has brought since the last look."""
        before, self.looked_at = self.looked_at or now, now
        if now <= before:
            return
        power = self.power_measured()
        if power is None or now - before > LONGEST_MEASURED:
            self.gained += self.change_planned(before, now)
        else:
            stored = power * self.efficiency if power > 0 else power / self.efficiency
            self.gained += stored * ((now - before) / HOUR)

    @pyscript_compile
    def _within(self, soc: float) -> float:
        """Return a state of charge that was carried on, within the range, or where it was told to be."""
        return min(max(soc, min(self.soc_min, self.level.value)), max(self.soc_max, self.level.value))


StateOfCharge = _StateOfCharge
