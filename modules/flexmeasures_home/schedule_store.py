"""The schedule in a file, so that it outlasts Home Assistant and the scripts."""

from dataclasses import asdict
from datetime import datetime, timedelta

from homeassistant.helpers.storage import Store

import flexmeasures_home.kept as kept
import flexmeasures_optimiser.schedule as schedules


@pyscript_compile
def new(hass):
    """Return the store."""
    return Store(hass, 1, "flexmeasures_for_pyscript.schedule", atomic_writes=True)


@pyscript_compile
async def load(store, power_sensor):
    """Return the schedule in force and the one before it, if they are for this power sensor."""
    found = await store.async_load() or {}
    if found.get("power_sensor") != power_sensor:
        return None, None
    return kept.read(recalled, found.get("schedule")), kept.read(recalled, found.get("previous"))


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
    until = found.get("prices_known_until")
    return schedules.Schedule(
        **found
        | {
            "prices_known_until": until and datetime.fromisoformat(until),
            "start": datetime.fromisoformat(found["start"]),
            "updated_at": datetime.fromisoformat(found["updated_at"]),
            "resolution": timedelta(seconds=found["resolution"]),
            "missed_targets": [
                miss | {"datetime": datetime.fromisoformat(miss["datetime"])}
                for miss in found["missed_targets"]
            ],
        }
    )
