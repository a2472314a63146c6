"""Trigger a schedule, wait for its job, fetch it: the main question to FlexMeasures."""

import asyncio

import isodate

import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule as schedules
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_api.storage as storages

FIRST_POLL_SECONDS = 0.25
SLOWEST_POLL_SECONDS = 4
JOB_SECONDS = 300
FETCHED_AT_ONCE = 4


@pyscript_compile
async def power_sensor(link, sensor_id):
    """Return the power sensor; raise where it cannot hold a schedule."""
    sensor = await connection.sensor(link, sensor_id)
    if not sensor.resolution:
        raise errors.UnknownSensor(
            f"Sensor {sensor_id} is instantaneous: give a power sensor with a resolution such as 15 minutes"
        )
    if sensor.unit not in sensor_data.FLOW_UNITS:
        raise errors.UnknownSensor(
            f"power_sensor: sensor {sensor_id} is in {sensor.unit}, which is no power such as kW: give "
            f"the number of the device's power sensor"
        )
    return sensor


@pyscript_compile
async def plan(link, storage, flex_context, start, duration, unit, soc_unit, site, now):
    """Ask for the schedule of one storage device.

    `start` is shifted up to the power sensor's resolution; wishes beyond `duration` lengthen it.
    `site` is the asset that is planned as a whole, by default the device's parent, else its own.
    Consumption is positive. Raise a FlexMeasuresError.
    """
    sensor = await power_sensor(link, storage.power_sensor)
    start = schedules.shift_up(start, sensor.resolution, sensor.timezone)
    duration = lasting(storage, sensor, start, duration)
    flex_model = storages.flex_model(storage, start, start + duration)
    device = await connection.asset(link, sensor.asset)
    reply = await solve(
        link,
        site or device.get("parent_asset_id") or sensor.asset,
        {
            "start": start.isoformat(),
            "duration": isodate.duration_isoformat(duration),
            "flex-model": [flex_model],
            "flex-context": flex_context,
            "force-new-job-creation": True,
        },
        sensor.id,
        duration,
        "kW" if unit in quantities.ENERGY_UNITS else unit,
    )
    if not reply["values"]:
        raise errors.JobFailed("FlexMeasures made a schedule without a single value: see the server's log")
    with connection.understood(link):
        schedule = schedules.from_reply(reply, unit, now, soc_unit)
        soc = schedules.expected_soc(schedule, dict(device.get("flex_model") or {}) | flex_model)
    if soc is not None:
        scale = quantities.energy(1, soc_unit)
        schedule.soc = [quantities.tidy(each / scale) for each in soc]
        schedule.missed_targets = [
            miss | {name: quantities.tidy(miss[name] / scale) for name in ("asked", "reached")}
            for miss in missed_targets(schedule, soc, storage)
        ]
    return schedule


@pyscript_compile
def lasting(storage, sensor, start, duration):
    """Return a duration, or what it takes to reach a storage's last wish, on a sensor's clock."""
    last = storages.last_wish(storage)
    if last is None or last <= start + duration:
        return duration
    return schedules.shift_up(last, sensor.resolution, sensor.timezone) - start


@pyscript_compile
def missed_targets(schedule, soc, storage):
    """Return what the schedule does not reach, in Wh (`soc` is the expected state of charge in Wh)."""
    end = schedules.end(schedule)
    at_end = [] if storage.soc_at_end is None else [storages.Wish(end, end, storage.soc_at_end)]
    return [
        *schedules.missed(schedule, soc, "soc_targets", storage.soc_targets, lambda a, b: a - b),
        *schedules.missed(schedule, soc, "soc_minima", storage.soc_minima, lambda a, b: a - b),
        *schedules.missed(schedule, soc, "soc_at_end", at_end, lambda a, b: a - b),
        *schedules.missed(schedule, soc, "soc_maxima", storage.soc_maxima, lambda a, b: b - a),
    ]


@pyscript_compile
async def plan_site(link, site, devices, flex_context, start, duration, resolution, now):
    """Ask for the schedules of several devices in one trigger, so that the site's limits hold for all.

    Return a Schedule (W) for each power sensor. `start` is on the sensors' clock, `resolution` that of the
    plan. Raise a FlexMeasuresError.
    """
    job = await trigger(
        link,
        site,
        {
            "start": start.isoformat(),
            "duration": isodate.duration_isoformat(duration),
            "resolution": isodate.duration_isoformat(resolution),
            "flex-model": [storages.model_of(each, start, start + duration) for each in devices],
            "flex-context": flex_context,
            "force-new-job-creation": True,
        },
    )
    fetching = asyncio.Semaphore(FETCHED_AT_ONCE)

    async def fetch_one(sensor_id):
        async with fetching:
            reply = await fetch(link, job, sensor_id, duration, "kW")
        if not reply["values"]:
            raise errors.JobFailed(f"FlexMeasures made no value for sensor {sensor_id}: see the server's log")
        with connection.understood(link):
            return schedules.from_reply(reply, "W", now, "Wh")

    found = await asyncio.gather(*[fetch_one(each.power_sensor) for each in devices])
    return {each.power_sensor: schedule for each, schedule in zip(devices, found, strict=True)}


@pyscript_compile
async def solve(link, site, message, sensor_id, duration, unit):
    """Trigger a schedule, wait for it, and return the reply for one sensor."""
    return await fetch(link, await trigger(link, site, message), sensor_id, duration, unit)


@pyscript_compile
async def trigger(link, site, message):
    """Post a trigger to the site's asset, and return its job once that is finished.

    The message is posted as it is, since the client forces a new job only together with `prior`,
    which would also hide the newest prices from a server whose clock is ahead.
    """
    client = link.client
    answer, _status = await connection.ask(
        link, client.request(uri=f"assets/{site}/schedules/trigger", json_payload=message)
    )
    job = answer.get("job") or answer["schedule"]
    await connection.ask(
        link,
        client.wait_for_job(
            job,
            timeout=JOB_SECONDS,
            polling_interval=FIRST_POLL_SECONDS,
            max_polling_interval=SLOWEST_POLL_SECONDS,
        ),
    )
    return job


@pyscript_compile
async def fetch(link, job, sensor_id, duration, unit):
    """Return what a finished job has planned for one sensor."""
    return await connection.ask(
        link,
        link.client.get_schedule(sensor_id=sensor_id, schedule_id=job, duration=duration, unit=unit),
    )
