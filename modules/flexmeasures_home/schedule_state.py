"""A schedule as a Home Assistant state: the value that is due now, and the schedule as attributes."""

from datetime import datetime, tzinfo
from typing import Any

import homeassistant.util.dt as dt_util
import isodate
from homeassistant.const import STATE_UNKNOWN
from homeassistant.helpers.entity import StateInfo
from homeassistant.helpers.json import json_bytes

import flexmeasures_api.quantities as quantities
from flexmeasures_api.schedule import Schedule

ENTITY_ID = "sensor.flexmeasures_schedule"
FRIENDLY_NAME = "FlexMeasures Schedule"
MAX_BYTES = 16_300
"""The recorder drops attributes of more than 16,384 bytes."""
MAX_MISSED_TARGETS = 50
MAX_WARNINGS = 10
STATE_INFO: StateInfo = {"unrecorded_attributes": frozenset({"schedule", "soc"})}
"""Attributes that the recorder leaves out, since each schedule has new ones."""


@pyscript_compile
def due(schedule: Schedule | None, previous: Schedule | None, moment: datetime) -> float | str:
    """Return the state: the value of the interval that contains the moment, else `unknown`.

    Before a schedule's start the previous one holds, if it covers the moment.
    """
    value = None
    if schedule is not None:
        value = schedule.value_at(moment)
        if moment < schedule.start and previous is not None:
            value = previous.value_at(moment)
    return STATE_UNKNOWN if value is None else value


@pyscript_compile
def next_change(schedule: Schedule | None, previous: Schedule | None, moment: datetime) -> datetime | None:
    """Return when the state has to be updated next, or None after the schedule's end."""
    if schedule is None:
        return None
    boundary = schedule.next_boundary(moment)
    if moment < schedule.start and previous is not None:
        earlier = previous.next_boundary(moment)
        return min(boundary, earlier) if boundary and earlier else boundary
    return boundary


@pyscript_compile
def response(schedule: Schedule, zone: tzinfo) -> dict[str, Any]:
    """Return the whole schedule as a service's response, times in the given zone."""
    return {
        "schedule": [
            {"start": start.astimezone(zone).isoformat(), "value": value}
            for start, value in zip(schedule.starts, schedule.values, strict=True)
        ],
        "start": schedule.start.astimezone(zone).isoformat(),
        "duration": isodate.duration_isoformat(schedule.end - schedule.start),
        "resolution": isodate.duration_isoformat(schedule.resolution),
        "unit": schedule.unit,
        "soc": schedule.soc,
        "soc_unit": schedule.soc_unit,
        "missed_targets": [
            miss | {"datetime": miss["datetime"].astimezone(zone).isoformat()}
            for miss in schedule.missed_targets
        ],
        "cost": schedule.cost,
        "prices_known_until": local(schedule.prices_known_until),
        "warnings": schedule.warnings,
    }


@pyscript_compile
def local(moment: datetime | None) -> str | None:
    """Return a moment as text in Home Assistant's time zone, or None."""
    return None if moment is None else dt_util.as_local(moment).isoformat()


@pyscript_compile
def naming(unit: str) -> dict[str, str]:
    """Return the attributes that describe the state to Home Assistant.

    The energy of an interval is not a meter reading, as statistics would assume: it has no state class.
    """
    is_energy = unit in quantities.ENERGY_UNITS
    return {
        "unit_of_measurement": unit,
        "device_class": "energy" if is_energy else "power",
        **({} if is_energy else {"state_class": "measurement"}),
        "friendly_name": FRIENDLY_NAME,
    }


@pyscript_compile
def attributes(schedule: Schedule, zone: tzinfo) -> dict[str, Any]:
    """Return the state's attributes; the schedule is cut at its end to what the recorder takes."""
    whole = response(schedule, zone)
    entries, soc = whole.pop("schedule"), whole.pop("soc")
    others = {
        "start": whole["start"],
        "duration": whole["duration"],
        "resolution": whole["resolution"],
        "soc_unit": whole["soc_unit"],
        "missed_targets": whole["missed_targets"][:MAX_MISSED_TARGETS],
        "prices_known_until": whole["prices_known_until"],
        "warnings": whole["warnings"][:MAX_WARNINGS],
        "updated_at": schedule.updated_at.astimezone(zone).isoformat(),
        **naming(schedule.unit),
    }

    def with_entries(count: int) -> dict[str, Any]:
        return others | {
            "schedule": entries[:count],
            "soc": None if soc is None else soc[: count + 1],
        }

    fits, too_many = 0, len(entries) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if len(json_bytes(with_entries(middle))) <= MAX_BYTES:
            fits = middle
        else:
            too_many = middle
    return with_entries(fits)
