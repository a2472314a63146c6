"""The site's plan: what FlexMeasures is asked for all S2 devices together, and what is told of it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import homeassistant.util.dt as dt_util

import flexmeasures_cem.planner as planners
import flexmeasures_home.relay as relays
import flexmeasures_home.status as statuses
import flexmeasures_optimiser.planning as planning
import flexmeasures_optimiser.provisioning as provisioning
import flexmeasures_optimiser.quantities as quantities
import flexmeasures_optimiser.schedule as schedules
import flexmeasures_optimiser.sensor_data as sensor_data
import flexmeasures_optimiser.storage as storages

MATTER = "s2 plan"
MOST_OF_A_PLAN, MOST_MISSED = 24, 10
"""So that all attributes of a state stay under what the recorder takes (16,384 bytes)."""
JOULES_PER_WATT_HOUR = 3600.0
SITE_POWER_CAPACITY = "site-power-capacity"


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Asker:
        """How the site's plan is asked for: one question at a time, beside the app's own device.

        `planning` is the lock that all plans of the app are made under. `own_schedule()` returns the
        schedule of the app's own device, which counts as load that is given, or None.
        """

        given: Any
        link: Any
        status: Any
        planning: Any
        own_schedule: Any
        site: int | None = None

    return Asker


Asker = record()


@pyscript_compile
def new(asker, relay_of):
    """Return the site's planner, not yet started; `relay_of(resource)` returns a Resource Manager's relay."""
    given = asker.given
    return planners.Site(
        partial(solve, asker),
        partial(prices, asker),
        lambda resource: means_of(relay_of(resource)),
        lambda resource: relay_of(resource).power,
        partial(own_power, asker),
        lambda resource: relays.want(relay_of(resource), "state"),
        lambda resource, text: tell(asker, relay_of(resource), text),
        lambda error: statuses.fail_with(asker.status, MATTER, error),
        lambda: statuses.succeed(asker.status, MATTER),
        given.schedule_duration.total_seconds(),
        given.site_power_capacity,
        now=lambda: dt_util.utcnow().timestamp(),
    )


@pyscript_compile
async def solve(asker, devices, start, duration, resolution, left):
    """Return the Schedule (W) of each power sensor; raise an OptimiserError."""
    begin, length = datetime.fromtimestamp(start, UTC), timedelta(seconds=duration)
    given, link = asker.given, asker.link
    async with asker.planning:
        asker.site = given.site or asker.site or await provisioning.site_of(link, given.power_sensor)
        own = await inflexible(asker, devices)
        step = timedelta(seconds=resolution)
        limit = {} if own else less_at_first(given, begin, begin + step, begin + length, left)
        context = storages.flex_context(
            given.consumption_price_sensor,
            given.production_price_sensor,
            given.site_power_capacity,
            limit,
            own,
            given.flex_context,
        )
        return await planning.plan_site(
            link, asker.site, devices, context, begin, length, step, dt_util.utcnow()
        )


@pyscript_compile
async def inflexible(asker, devices):
    """Return the flex-context's field that counts the schedule of the app's own device in, if it has one."""
    sensor_id = asker.given.power_sensor
    if sensor_id in [each.power_sensor for each in devices] or asker.own_schedule() is None:
        return {}
    sensor = await planning.power_sensor(asker.link, sensor_id)
    return {"inflexible-consumption" if sensor.sign > 0 else "inflexible-production": [{"sensor": sensor_id}]}


@pyscript_compile
def own_power(asker, moment):
    """Return the power (W) that the app's own device is to have at a moment, 0 without a schedule."""
    schedule, at = asker.own_schedule(), datetime.fromtimestamp(moment, UTC)
    if schedule is None or not schedules.covers(schedule, at):
        return 0.0
    return schedules.watts(schedule)[(at - schedule.start) // schedule.resolution]


@pyscript_compile
def less_at_first(given, start, second, end, left):
    """Return the site's limit where only a part (`left`) of the first interval is left, if it has one."""
    raw = given.flex_context or {}
    if given.site_power_capacity is None or left >= 1 or any(name.startswith("inflexible") for name in raw):
        return {}
    spans = [
        storages.Span(start, second, given.site_power_capacity * left),
        storages.Span(second, end, given.site_power_capacity),
    ]
    return {SITE_POWER_CAPACITY: storages.as_powers(spans)}


@pyscript_compile
async def prices(asker, start, end):
    """Return (start, end, price) as FlexMeasures knows the consumption price; raise an OptimiserError."""
    begin = datetime.fromtimestamp(start, UTC)
    length = timedelta(seconds=end - start)
    found = await sensor_data.read(asker.link, asker.given.consumption_price_sensor, begin, length)
    first, step = found["start"].timestamp(), found["resolution"].total_seconds()
    return [
        (first + place * step, first + (place + 1) * step, value)
        for place, value in enumerate(found["values"])
    ]


@pyscript_compile
def means_of(relay):
    """Return what a Resource Manager is planned with, or None while its power sensor is not known."""
    if relay.power_sensor is None:
        return None
    energy = relay.energy_per_fill_level
    return planners.Means(
        relay.power_sensor.id,
        relay.power_sensor.resolution.total_seconds(),
        relay.soc_sensor and relay.soc_sensor.id,
        None if energy is None else energy * JOULES_PER_WATT_HOUR,
    )


@pyscript_compile
def tell(asker, relay, text):
    """Tell what keeps a Resource Manager from being planned, or that nothing does."""
    name, resource_id = relay.resource.name, relay.resource.resource_id
    matter = f"{MATTER} of {resource_id}"
    if text is not None:
        statuses.fail(asker.status, matter, f"s2: {name} ({resource_id}): {text}", cause="not_planned")
    elif matter in asker.status.problems:
        statuses.settle(asker.status, matter)


@pyscript_compile
def attributes(site, resource):
    """Return what the planner adds to a Resource Manager's state."""
    found = planners.of(site, resource)
    if found is None:
        return {}
    worth, current = found.worth, planners.instruction_in_force(found, site.now())
    return {
        "instruction": current and in_local_time(current),
        "plan": [
            in_local_time(each) for each in planners.next_instructions(found, site.now(), MOST_OF_A_PLAN)
        ],
        "missed_targets": [in_local_time(each) for each in planners.missed_targets(found)[:MOST_MISSED]],
        "planned_until": found.plan and local(found.type.moment(found.plan.end)),
        "has_schedule": found.plan is not None and not found.is_fallback,
        "energy_per_fill_level": worth and quantities.tidy(worth.energy / JOULES_PER_WATT_HOUR / 1000),
    }


@pyscript_compile
def in_local_time(item):
    """Return an item with its moments as texts, in Home Assistant's time zone."""
    return {name: local(value) if isinstance(value, datetime) else value for name, value in item.items()}


@pyscript_compile
def local(moment):
    """Return a moment as a text, in Home Assistant's time zone."""
    return dt_util.as_local(moment).isoformat()
