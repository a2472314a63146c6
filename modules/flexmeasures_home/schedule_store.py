"""The schedule in a file, so that it outlasts Home Assistant and the scripts."""

from dataclasses import asdict
from typing import Any

import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule as schedules
import flexmeasures_home.kept as kept

UNITS = (*quantities.POWER_UNITS, *quantities.ENERGY_UNITS)


@pyscript_compile
def new(hass: Any, status: Any) -> Any:
    """Return the store."""
    return kept.KeptFile(hass, status, "schedule", "the schedule")


@pyscript_compile
async def load(store, power_sensor):
    """Return the schedule in force and the one before it, if they are for this power sensor."""
    found = await store.async_load()
    if found.get("power_sensor") != power_sensor:
        return None, None
    return store.read(recalled, found.get("schedule")), store.read(recalled, found.get("previous"))


@pyscript_compile
async def save(store, power_sensor, schedule, previous):
    """Write the file."""
    await store.async_save(
        {
            "power_sensor": power_sensor,
            "schedule": as_json(schedule),
            "previous": as_json(previous),
        }
    )


@pyscript_compile
def as_json(schedule):
    """Return a schedule as JSON's types."""
    if schedule is None:
        return None
    return asdict(schedule) | {
        "start": schedule.start.isoformat(),
        "updated_at": schedule.updated_at.isoformat(),
        "prices_known_until": schedule.prices_known_until and schedule.prices_known_until.isoformat(),
        "resolution": schedule.resolution.total_seconds(),
        "missed_targets": [
            miss | {"datetime": miss["datetime"].isoformat()} for miss in schedule.missed_targets
        ],
    }


@pyscript_compile
def recalled(found):
    """Return the schedule that `as_json` wrote."""
    if found is None:
        return None
    values, soc = kept.numbers(found["values"]), kept.optional(kept.numbers, found["soc"])
    if found["unit"] not in UNITS or found["soc_unit"] not in quantities.ENERGY_UNITS:
        raise ValueError("expected units of power or energy")
    if soc is not None and (None in soc or len(soc) != len(values) + 1):
        raise ValueError("expected a state of charge at each interval's start, and at the end")
    return schedules.Schedule(
        start=kept.moment(found["start"]),
        resolution=kept.length(found["resolution"]),
        unit=found["unit"],
        values=values,
        soc_unit=found["soc_unit"],
        soc=soc,
        missed_targets=[
            {
                "field": kept.text(miss["field"]),
                "datetime": kept.moment(miss["datetime"]),
                "asked": kept.number(miss["asked"]),
                "reached": kept.number(miss["reached"]),
            }
            for miss in found["missed_targets"]
        ],
        cost=kept.optional(kept.number, found["cost"]),
        updated_at=kept.moment(found["updated_at"]),
        prices_known_until=kept.optional(kept.moment, found.get("prices_known_until")),
        assumed_prices=[
            [kept.number(start), kept.number(end)] for start, end in found.get("assumed_prices", [])
        ],
        warnings=[kept.text(warning) for warning in found.get("warnings", [])],
    )
