"""Trigger a schedule, wait for its job and fetch it: FlexMeasures' scheduling endpoints."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import isodate

import flexmeasures_api.error_mapping as error_mapping
import flexmeasures_api.errors as errors
import flexmeasures_api.flexible_devices as flexible_devices
import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule as schedules
import flexmeasures_api.sensor_clock as sensor_clock
import flexmeasures_api.sensor_data as sensor_data
from flexmeasures_api.connection import Connection, Sensor
from flexmeasures_api.flexible_devices import Flow, SocEvent, Storage
from flexmeasures_api.schedule import Schedule

FIRST_POLL_SECONDS = 0.25
JOB_SECONDS = 300
"""How soon a job is polled, and how long it may take: the first one of a worker takes some seconds."""
MAX_CONCURRENT_FETCHES = 4


@pyscript_compile
async def schedule_storage(
    connection: Connection,
    storage: Storage,
    *,
    flex_context: Mapping[str, Any],
    start: datetime,
    duration: timedelta,
    unit: str,
    soc_unit: str,
    site_id: int | None,
    now: datetime,
) -> Schedule:
    """Return a new schedule of one storage device, in `unit` and `soc_unit`; raise a FlexMeasuresError.

    `start` is shifted up to the power sensor's clock; targets beyond `duration` lengthen it. `site_id` is the
    asset that is planned as a whole, by default the parent of the device's asset, else that asset.
    """
    sensor = await sensor_data.power_sensor(connection, storage.power_sensor)
    start = sensor_clock.ceil(start, sensor.resolution, sensor.timezone)
    duration = duration_to_last_target(storage, sensor, start, duration)
    flex_model = flexible_devices.storage_entry(storage, start, start + duration)
    asset = await connection.asset(sensor.asset)
    job = await trigger(
        connection,
        site_id or asset.get("parent_asset_id") or sensor.asset,
        {
            "start": start.isoformat(),
            "duration": isodate.duration_isoformat(duration),
            "flex-model": [flex_model],
            "flex-context": flex_context,
            "force-new-job-creation": True,
        },
    )
    power_unit = "kW" if unit in quantities.ENERGY_UNITS else unit
    answer = await fetch(connection, job, sensor.id, duration, power_unit)
    if not answer["values"]:
        raise errors.JobFailed("FlexMeasures made a schedule without a single value: see the server's log")
    with error_mapping.reading_answer(connection.host):
        schedule = schedules.from_answer(answer, unit=unit, now=now, soc_unit=soc_unit)
        soc_wh = schedules.expected_soc(schedule, dict(asset.get("flex_model") or {}) | flex_model)
    if soc_wh is not None:
        scale = quantities.energy(1, soc_unit)
        schedule.soc = [quantities.rounded(level / scale) for level in soc_wh]
        schedule.missed_targets = [
            missed | {name: quantities.rounded(missed[name] / scale) for name in ("asked", "reached")}
            for missed in missed_targets(schedule, soc_wh, storage)
        ]
    return schedule


@pyscript_compile
def duration_to_last_target(
    storage: Storage, sensor: Sensor, start: datetime, duration: timedelta
) -> timedelta:
    """Return the duration, or what it takes to reach a storage's last target, on the sensor's clock."""
    last = flexible_devices.last_soc_event_end(storage)
    if last is None or last <= start + duration:
        return duration
    return sensor_clock.ceil(last, sensor.resolution, sensor.timezone) - start


@pyscript_compile
def missed_targets(schedule: Schedule, soc_wh: Sequence[float], storage: Storage) -> list[dict[str, Any]]:
    """Return what the schedule does not reach, in Wh, of the storage's targets, minima, maxima and end."""
    end = schedule.end
    at_end = [] if storage.soc_at_end is None else [SocEvent(end, end, storage.soc_at_end)]
    return [
        *schedules.missed_events(schedule, soc_wh, "soc_targets", storage.soc_targets, lambda a, b: a - b),
        *schedules.missed_events(schedule, soc_wh, "soc_minima", storage.soc_minima, lambda a, b: a - b),
        *schedules.missed_events(schedule, soc_wh, "soc_at_end", at_end, lambda a, b: a - b),
        *schedules.missed_events(schedule, soc_wh, "soc_maxima", storage.soc_maxima, lambda a, b: b - a),
    ]


@pyscript_compile
async def schedule_site(
    connection: Connection,
    site_id: int,
    devices: Sequence[Storage | Flow],
    *,
    flex_context: Mapping[str, Any],
    start: datetime,
    duration: timedelta,
    resolution: timedelta,
    now: datetime,
) -> dict[int, Schedule]:
    """Return new schedules (W) of several devices by power sensor, from one trigger: limits hold for all.

    `start` is on the clock of all the sensors, `resolution` that of the plan. Raise a FlexMeasuresError.
    """
    job = await trigger(
        connection,
        site_id,
        {
            "start": start.isoformat(),
            "duration": isodate.duration_isoformat(duration),
            "resolution": isodate.duration_isoformat(resolution),
            "flex-model": [
                flexible_devices.flex_model_entry(device, start, start + duration) for device in devices
            ],
            "flex-context": flex_context,
            "force-new-job-creation": True,
        },
    )
    fetching = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)

    async def fetch_one(sensor_id: int) -> Schedule:
        async with fetching:
            answer = await fetch(connection, job, sensor_id, duration, "kW")
        if not answer["values"]:
            raise errors.JobFailed(f"FlexMeasures made no value for sensor {sensor_id}: see the server's log")
        with error_mapping.reading_answer(connection.host):
            return schedules.from_answer(answer, unit="W", now=now, soc_unit="Wh")

    results = await asyncio.gather(*[fetch_one(device.power_sensor) for device in devices])
    return {device.power_sensor: schedule for device, schedule in zip(devices, results, strict=True)}


@pyscript_compile
async def trigger(connection: Connection, site_id: int, message: Mapping[str, Any]) -> str:
    """Post a trigger to the site's asset, and return the id of its job once that is finished.

    The message is posted as it is, since the client forces a new job only together with `prior`, which would
    also hide the newest prices from a server whose clock is ahead.
    """
    answer, _status = await connection.request(
        connection.client.request(uri=f"assets/{site_id}/schedules/trigger", json_payload=message)
    )
    job = str(answer.get("job") or answer["schedule"])
    await connection.wait_for_job(job, seconds=JOB_SECONDS, first_poll_seconds=FIRST_POLL_SECONDS)
    return job


@pyscript_compile
async def fetch(
    connection: Connection, job: str, sensor_id: int, duration: timedelta, unit: str
) -> dict[str, Any]:
    """Return FlexMeasures' answer with the schedule of one sensor, once the job is finished."""
    answer: dict[str, Any] = await connection.request(
        connection.client.get_schedule(sensor_id=sensor_id, schedule_id=job, duration=duration, unit=unit)
    )
    return answer
