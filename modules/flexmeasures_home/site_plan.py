"""The site's plan: what FlexMeasures is asked for all S2 devices together, and what is told of it."""

import asyncio
import logging
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import homeassistant.util.dt as dt_util

import flexmeasures_api.errors as errors
import flexmeasures_api.flexible_devices as storages
import flexmeasures_api.prices as tariffs
import flexmeasures_api.provisioning as provisioning
import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule_requests as schedule_requests
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.questions as questions
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.triggers as triggers
import flexmeasures_home.grid_connection as grid_connection
import flexmeasures_home.relay as relays
import flexmeasures_home.status as statuses

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
MATTER = "s2 plan"
POSTED_AT_ONCE = 4
MOST_OF_A_PLAN, MOST_MISSED = 24, 10
"""So that all attributes of a state stay under what the recorder takes (16,384 bytes)."""
JOULES_PER_WATT_HOUR = 3600.0
SCHEDULER = "scheduler"
"""The type of the data source that FlexMeasures' schedules are from."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(repr=False)
    class Asker:
        """How the site's plan is asked for: one question at a time, beside the app's own device.

        `planning` is the lock that all plans of the app are made under. `own_schedule()` returns the
        schedule of the app's own device, which counts as load that is given, or None. `warned` are the
        first words of the warnings on prices that the log has.
        """

        given: Any
        link: Any
        status: Any
        planning: Any
        own_schedule: Any
        site: int | None = None
        planner: Any = None
        warned: set = field(default_factory=set)

    return Asker


Asker = record()


@pyscript_compile
def new(asker, relay_of, unfit):
    """Return the site's planner, not yet started.

    `relay_of(resource)` returns a Resource Manager's relay; `unfit(resource, session, control_type)` is
    called when what it told cannot be planned under that.
    """
    given = asker.given
    asker.planner = sites.Site(
        partial(solve, asker),
        partial(prices, asker),
        lambda resource: means_of(relay_of(resource)),
        lambda resource: relay_of(resource).power,
        partial(own_power, asker),
        lambda resource: relays.want(relay_of(resource), "state"),
        lambda resource, text: tell(asker, relay_of(resource), text),
        unfit,
        lambda error: statuses.fail_with(asker.status, MATTER, error),
        lambda: statuses.succeed(asker.status, MATTER),
        given.schedule_duration.total_seconds(),
        grid_connection.of(given),
        lead=given.s2.instruction_lead,
        own_lead=lambda resource: relay_of(resource).instruction_lead,
        cycle_cost=lambda resource: relay_of(resource).cycle_cost,
        now=lambda: dt_util.utcnow().timestamp(),
        tariffs=given.s2.prices,
        rate_limit=asker.link.rate_limit,
    )
    return asker.planner


@pyscript_compile
async def solve(asker, problems, window, powers, limits):
    """Return the Schedule (W) of each power sensor; raise a FlexMeasuresError.

    `powers` maps the power sensors of other devices to what they are to have, which is posted first, and
    `limits` are the site's capacities that vary: see site.Site.
    """
    begin, length = datetime.fromtimestamp(window.start, UTC), timedelta(seconds=window.end - window.start)
    given, link = asker.given, asker.link
    async with asker.planning:
        asker.site = given.site or asker.site or await provisioning.site_of(link, given.power_sensor)
        tariff, price_fields = await site_prices(asker, begin, begin + length, given.flex_context or {})
        tell_prices(asker, tariff)
        context = storages.flex_context(
            price_fields,
            grid_connection.fields(given),
            limits_over_time(given.flex_context or {}, limits),
            await inflexible(asker, [each.power_sensor for each in problems], powers),
            given.flex_context,
        )
        step = timedelta(seconds=window.step)
        return await schedule_requests.schedule_site(
            link,
            asker.site,
            problems,
            flex_context=context,
            start=begin,
            duration=length,
            resolution=step,
            now=dt_util.utcnow(),
        )


@pyscript_compile
async def beside(asker, start, end, step, raw):
    """Return the flex-context's fields that count in what all but the app's own device are to have.

    They are for its own plan from `start` to `end`, in steps, beside the `raw` fields of the user. Raise a
    FlexMeasuresError.
    """
    site = asker.planner
    seconds = step.total_seconds()
    begin = max(start.timestamp(), site.now() // seconds * seconds)
    last = min(end.timestamp(), site.now() + questions.LONGEST_HORIZON)
    if not (site.controlled or site.others) or begin >= last:
        return {}
    window = sites.Window(begin, seconds, end.timestamp(), 1.0, math.inf, False)
    outlook = await loads.expected(site, {}, window)
    loads.remove_load(outlook, loads.OWN)
    powers, known = await loads.given(site, {}, replace(window, end=last))
    limits = await asyncio.to_thread(loads.limits, site.connection, outlook, known, window)
    return limits_over_time(raw, limits) | await inflexible(asker, [asker.given.power_sensor], powers)


@pyscript_compile
async def inflexible(asker, planned, powers):
    """Return the flex-context's fields that count other devices in, the app's own with its schedule too.

    `planned` are the power sensors of those that are planned themselves; for `powers` see `solve`.

    Of other devices old schedules do not count, which they may have from another control type.
    """
    own = asker.given.power_sensor
    references = {each: {"exclude-source-types": [SCHEDULER]} for each in powers if each != own}
    if asker.own_schedule() is not None and own not in planned:
        references[own] = {}
    posting = asyncio.Semaphore(POSTED_AT_ONCE)

    async def ready(sensor_id):
        async with posting:
            return await sensor_with(asker, sensor_id, powers.get(sensor_id) if sensor_id != own else None)

    found = await asyncio.gather(*[ready(each) for each in references])
    fields = {}
    for (sensor_id, reference), sensor in zip(references.items(), found, strict=True):
        if sensor:
            name = "inflexible-consumption" if sensor.sign > 0 else "inflexible-production"
            fields.setdefault(name, []).append({"sensor": sensor_id} | reference)
    return fields


@pyscript_compile
async def sensor_with(asker, sensor_id, powers):
    """Return the sensor of a given device, once the server has what that is to have.

    One that cannot be used is left out for an hour, and None is returned: it keeps no other device from its
    plan. Raise a FlexMeasuresError where the server cannot be asked at all.
    """
    try:
        sensor = await sensor_data.power_sensor(asker.link, sensor_id)
        if powers is not None:
            await post(asker.link, sensor, powers)
    except (errors.NoAccess, errors.UnknownSensor, errors.InvalidData) as error:
        LOGGER.warning("s2: sensor %s cannot be planned around: %s", sensor_id, error)
        asker.planner.unusable[sensor_id] = asker.planner.now() + sites.REFUSED_SECONDS
        triggers.plan_soon(asker.planner)
        return None
    return sensor


@pyscript_compile
async def post(link, sensor, powers):
    """Post what a device is to have (start, end, W), and have it stored; raise a FlexMeasuresError."""
    values = [power for _start, _end, power in powers]
    start, end, _power = powers[0]
    step = timedelta(seconds=end - start)
    begin = datetime.fromtimestamp(start, UTC)
    run = sensor_data.SensorData(
        sensor=sensor.id, start=begin, values=values, unit="W", step=step, sign=sensor_data.CONSUMPTION
    )
    if job := await sensor_data.post(link, run):
        await sensor_data.wait_until_stored(link, job)


@pyscript_compile
def own_power(asker, moment):
    """Return the power (W) that the app's own device is to have at a moment, 0 without a schedule."""
    schedule, at = asker.own_schedule(), datetime.fromtimestamp(moment, UTC)
    if schedule is None or not schedule.covers(at):
        return 0.0
    return schedule.powers_w[(at - schedule.start) // schedule.resolution]


@pyscript_compile
def limits_over_time(raw: dict[str, Any], limits: dict[str, list]) -> dict[str, Any]:
    """Return the fields of the site's capacities that vary, whose spans (start, end, W) are by their names.

    The user's own loads (`raw` fields) void what we know.
    """
    if any(name.startswith("inflexible") for name in raw):
        return {}
    return {
        grid_connection.FIELDS[name]: storages.power_field(
            [
                storages.PowerSpan(
                    datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC), power
                )
                for start, end, power in spans
            ]
        )
        for name, spans in limits.items()
    }


@pyscript_compile
async def prices(asker, start, end):
    """Return the PriceIntervals from `start` to `end` (s since 1970); raise a FlexMeasuresError.

    Where the user's raw fields have prices that only FlexMeasures reads, they are those of the sensors.
    """
    times = [datetime.fromtimestamp(moment, UTC) for moment in (start, end)]
    tariff, _fields = await site_prices(asker, *times, asker.given.flex_context or {})
    if tariff is None:
        tariff, _fields = await site_prices(asker, *times, {})
    statuses.succeed(asker.status, None)
    return tariff.feasible.intervals


@pyscript_compile
def tell_prices(asker: Any, tariff: Any) -> None:
    """Show until when the prices of a plan are known, and warn, once, of what was assumed."""
    if tariff is None:
        return
    until = tariff.known_until
    moment = None if until is None else datetime.fromtimestamp(until, UTC)
    statuses.show(asker.status, prices_known_until=moment and local(moment))
    texts = {text.split()[0]: text for text in tariffs.warnings(tariff, dt_util.get_default_time_zone())}
    for kind, text in texts.items():
        if kind not in asker.warned:
            LOGGER.warning("s2: %s", text)
    asker.warned = set(texts)


@pyscript_compile
async def site_prices(
    asker: Any, start: datetime, end: datetime, raw: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the Tariff (None: only FlexMeasures reads it) and the flex-context's prices of the site.

    Raise a FlexMeasuresError.
    """
    tariff, fields = await tariffs.for_plan(
        asker.link,
        consumption_sensor=asker.given.consumption_price_sensor,
        production_sensor=asker.given.production_price_sensor,
        flex_context=raw,
        start=start,
        end=end,
    )
    grid_connection.refuse_other_currency(asker.given, tariff)
    return tariff, fields


@pyscript_compile
def means_of(relay):
    """Return what a Resource Manager is planned with, or None while its power sensor is not known."""
    if relay.power_sensor is None:
        return None
    energy = relay.energy_per_fill_level
    return sites.PlanningSensors(
        relay.power_sensor.id,
        relay.power_sensor.resolution.total_seconds(),
        relay.soc_sensor and relay.soc_sensor.id,
        None if energy is None else energy * JOULES_PER_WATT_HOUR,
    )


@pyscript_compile
def tell(asker, relay, text):
    """Tell what keeps a Resource Manager from being planned, or that nothing does.

    With the last one that was controlled, what keeps the site from being planned is over, too.
    """
    name, resource_id = relay.resource.name, relay.resource.resource_id
    matter = f"{MATTER} of {resource_id}"
    if text is not None:
        statuses.fail(asker.status, matter, f"s2: {name} ({resource_id}): {text}", cause="not_planned")
        return
    is_over = not asker.planner.controlled
    for each in [matter, MATTER] if is_over else [matter]:
        if each in asker.status.problems:
            statuses.settle(asker.status, each)


@pyscript_compile
def attributes(site, resource, most=MOST_OF_A_PLAN, most_missed=MOST_MISSED):
    """Return what the planner adds to a Resource Manager's state; None for all of the plan."""
    found = site.controlled_of(resource)
    if found is None:
        return {}
    worth, current = found.worth, instructions.instruction_in_force(found, site.now())
    return {
        "instruction": current and in_local_time(current),
        "plan": [in_local_time(each) for each in instructions.next_instructions(found, site.now(), most)],
        "missed_targets": [in_local_time(each) for each in instructions.missed_targets(found)[:most_missed]],
        "planned_until": found.plan and local(plans.moment(found.plan.end)),
        "has_schedule": found.plan is not None and not found.is_fallback,
        "energy_per_fill_level": worth and quantities.rounded(worth.energy / JOULES_PER_WATT_HOUR / 1000),
    }


@pyscript_compile
def in_local_time(item):
    """Return an item with its moments as texts, in Home Assistant's time zone."""
    return {name: local(value) if isinstance(value, datetime) else value for name, value in item.items()}


@pyscript_compile
def local(moment):
    """Return a moment as a text, in Home Assistant's time zone."""
    return dt_util.as_local(moment).isoformat()
