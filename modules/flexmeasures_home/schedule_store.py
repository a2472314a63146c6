"""The schedule in a file, so that it outlives restarts and reloads."""

from typing import Any

from homeassistant.core import HomeAssistant

import flexmeasures_api.quantities as quantities
import flexmeasures_home.kept as kept
from flexmeasures_api.schedule import Schedule
from flexmeasures_home.kept import KeptFile
from flexmeasures_home.status import Status

UNITS = (*quantities.POWER_UNITS, *quantities.ENERGY_UNITS)


@pyscript_compile
def new(hass: HomeAssistant, status: Status) -> KeptFile:
    """Return the store."""
    return KeptFile(hass, status, "schedule", "the schedule")


@pyscript_compile
async def load(store: KeptFile, power_sensor: int) -> tuple[Schedule | None, Schedule | None]:
    """Return the schedule in force and the one before it, if they are for this power sensor."""
    content = await store.async_load()
    if content.get("power_sensor") != power_sensor:
        return None, None
    schedule = store.convert_or_report(from_json, content.get("schedule"))
    return schedule, store.convert_or_report(from_json, content.get("previous"))


@pyscript_compile
async def save(
    store: KeptFile, power_sensor: int, schedule: Schedule | None, previous: Schedule | None
) -> None:
    """Write the file."""
    await store.async_save(
        {
            "power_sensor": power_sensor,
            "schedule": kept.as_json(schedule),
            "previous": kept.as_json(previous),
        }
    )


@pyscript_compile
def from_json(item: dict[str, Any] | None) -> Schedule | None:
    """Return the schedule that `kept.as_json` wrote; raise what is wrong with it."""
    if item is None:
        return None
    values, soc = kept.numbers(item["values"]), kept.optional(kept.numbers, item["soc"])
    if item["unit"] not in UNITS or item["soc_unit"] not in quantities.ENERGY_UNITS:
        raise ValueError("expected units of power or energy")
    if soc is not None and (None in soc or len(soc) != len(values) + 1):
        raise ValueError("expected a state of charge at each interval's start, and at the end")
    return Schedule(
        start=kept.moment(item["start"]),
        resolution=kept.length(item["resolution"]),
        unit=item["unit"],
        values=values,
        soc_unit=item["soc_unit"],
        soc=soc,
        missed_targets=[
            {
                "field": kept.text(miss["field"]),
                "datetime": kept.moment(miss["datetime"]),
                "asked": kept.number(miss["asked"]),
                "reached": kept.number(miss["reached"]),
            }
            for miss in item["missed_targets"]
        ],
        cost=kept.optional(kept.number, item["cost"]),
        updated_at=kept.moment(item["updated_at"]),
        prices_known_until=kept.optional(kept.moment, item.get("prices_known_until")),
        assumed_prices=[
            [kept.number(start), kept.number(end)] for start, end in item.get("assumed_prices", [])
        ],
        warnings=[kept.text(warning) for warning in item.get("warnings", [])],
    )
