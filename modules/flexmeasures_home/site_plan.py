"""The site's plan: the request to FlexMeasures for all S2 devices, and the attributes of their plans."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
from flexmeasures_api.connection import Connection, Sensor
from flexmeasures_api.flexible_devices import Flow, PowerSpan, Storage
from flexmeasures_api.prices import PriceInterval, Tariff
from flexmeasures_api.schedule import Schedule
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.status import Status
from flexmeasures_home.telemetry import Telemetry
from flexmeasures_s2.session import Session

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
PROBLEM_KEY = "s2 plan"
MAX_PARALLEL_POSTS = 4
MAX_INSTRUCTIONS, MAX_MISSED_TARGETS = 24, 10
"""All attributes of a state stay under the recorder's limit (16,384 bytes)."""
JOULES_PER_WATT_HOUR = 3600.0
SCHEDULER = "scheduler"
"""The type of the data source of FlexMeasures' schedules."""
Powers = Sequence[tuple[float, float, float]]
"""Powers over time: (start, end, W), the times in seconds since 1970."""


@dataclass(repr=False, kw_only=True)
class _SitePlanRequest:
    """How FlexMeasures is asked for the site's plan: one request at a time, besides the app's own device.

    `planning` is the lock that all plans of the app are made under. `own_schedule()` returns the schedule of
    the app's own device, which is a fixed load, or None. `site` is the id of the site's asset, `planner` the
    `cem.site.Site`. `warned` has the first words of the warnings on prices that were logged.
    """

    given: Configuration
    link: Connection
    status: Status
    planning: asyncio.Lock
    own_schedule: Callable[[], Schedule | None]
    site: int | None = None
    planner: sites.Site = field(init=False)
    warned: set[str] = field(default_factory=set)


SitePlanRequest = _SitePlanRequest


@pyscript_compile
def new(
    plan_request: SitePlanRequest,
    telemetry_of: Callable[[Any], Telemetry],
    unfit: Callable[[Any, Session, str], None],
) -> sites.Site:
    """Return the site's planner, not yet started.

    `telemetry_of(resource)` returns a Resource Manager's telemetry; `unfit(resource, session, control_type)`
    is called when it cannot be planned under its control type.
    """
    given = plan_request.given
    plan_request.planner = sites.Site(
        partial(solve, plan_request),
        partial(prices, plan_request),
        lambda resource: planning_sensors_of(telemetry_of(resource)),
        lambda resource: telemetry_of(resource).power_w,
        partial(own_power, plan_request),
        lambda resource: telemetry_of(resource).show_soon(),
        lambda resource, text: show_obstacle(plan_request, telemetry_of(resource), text),
        unfit,
        lambda error: plan_request.status.fail_with(PROBLEM_KEY, error),
        lambda: plan_request.status.succeed(PROBLEM_KEY),
        given.schedule_duration.total_seconds(),
        grid_connection.of(given),
        lead=given.s2.instruction_lead,
        own_lead=lambda resource: telemetry_of(resource).instruction_lead,
        cycle_cost=lambda resource: telemetry_of(resource).cycle_cost,
        now=lambda: dt_util.utcnow().timestamp(),
        tariffs=given.s2.prices,
        rate_limit=plan_request.link.rate_limit,
    )
    return plan_request.planner


@pyscript_compile
async def solve(
    plan_request: SitePlanRequest,
    problems: Sequence[Storage | Flow],
    window: sites.Window,
    powers: dict[int, Powers | None],
    limits: dict[str, Powers],
) -> dict[int, Schedule]:
    """Return the Schedule (W) of each power sensor; raise a FlexMeasuresError.

    `powers` maps the power sensors of other devices to their planned powers, which are posted first, and
    `limits` are the site's capacities that vary: see site.Site.
    """
    begin, length = datetime.fromtimestamp(window.start, UTC), timedelta(seconds=window.end - window.start)
    given, link = plan_request.given, plan_request.link
    async with plan_request.planning:
        plan_request.site = (
            given.site or plan_request.site or await provisioning.site_of(link, given.power_sensor)
        )
        tariff, price_fields = await site_prices(
            plan_request, begin, begin + length, given.flex_context or {}
        )
        show_prices(plan_request, tariff)
        context = storages.flex_context(
            price_fields,
            grid_connection.fields(given),
            limits_over_time(given.flex_context or {}, limits),
            await inflexible(plan_request, [device.power_sensor for device in problems], powers),
            given.flex_context,
        )
        step = timedelta(seconds=window.step)
        return await schedule_requests.schedule_site(
            link,
            plan_request.site,
            problems,
            flex_context=context,
            start=begin,
            duration=length,
            resolution=step,
            now=dt_util.utcnow(),
        )


@pyscript_compile
async def other_loads(
    plan_request: SitePlanRequest, start: datetime, end: datetime, step: timedelta, raw: dict[str, Any]
) -> dict[str, Any]:
    """Return the flex-context's fields for the planned powers of all but the app's own device.

    They are for its own plan from `start` to `end`, besides the `raw` fields of the user. Raise a
    FlexMeasuresError.
    """
    site = plan_request.planner
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
    return limits_over_time(raw, limits) | await inflexible(
        plan_request, [plan_request.given.power_sensor], powers
    )


@pyscript_compile
async def inflexible(
    plan_request: SitePlanRequest, planned: Collection[int], powers: Mapping[int, Powers | None]
) -> dict[str, list[dict[str, Any]]]:
    """Return the flex-context's fields for devices that are not planned, among them the app's own.

    `planned` are the power sensors of the devices that are planned; for `powers` see `solve`. Old schedules
    of other devices are excluded: they may be from another control type.
    """
    own = plan_request.given.power_sensor
    references: dict[int, dict[str, Any]] = {
        sensor_id: {"exclude-source-types": [SCHEDULER]} for sensor_id in powers if sensor_id != own
    }
    if plan_request.own_schedule() is not None and own not in planned:
        references[own] = {}
    posting = asyncio.Semaphore(MAX_PARALLEL_POSTS)

    async def ready(sensor_id: int) -> Sensor | None:
        async with posting:
            return await sensor_with(
                plan_request, sensor_id, powers.get(sensor_id) if sensor_id != own else None
            )

    sensors = await asyncio.gather(*[ready(sensor_id) for sensor_id in references])
    fields: dict[str, list[dict[str, Any]]] = {}
    for (sensor_id, reference), sensor in zip(references.items(), sensors, strict=True):
        if sensor:
            name = "inflexible-consumption" if sensor.sign > 0 else "inflexible-production"
            fields.setdefault(name, []).append({"sensor": sensor_id} | reference)
    return fields


@pyscript_compile
async def sensor_with(plan_request: SitePlanRequest, sensor_id: int, powers: Powers | None) -> Sensor | None:
    """Return the sensor of a device that is not planned, once the server has stored its planned powers.

    Return None if it cannot be used: it is then left out for an hour, and the other devices are planned.
    Raise a FlexMeasuresError if the server cannot be asked at all.
    """
    try:
        sensor = await sensor_data.power_sensor(plan_request.link, sensor_id)
        if powers is not None:
            await post(plan_request.link, sensor, powers)
    except (errors.NoAccess, errors.UnknownSensor, errors.InvalidData) as error:
        LOGGER.warning("s2: sensor %s cannot be planned around: %s", sensor_id, error)
        plan_request.planner.unusable[sensor_id] = plan_request.planner.now() + sites.REFUSED_SECONDS
        triggers.plan_soon(plan_request.planner)
        return None
    return sensor


@pyscript_compile
async def post(link: Connection, sensor: Sensor, powers: Powers) -> None:
    """Post the planned powers of a device, and wait until they are stored; raise a FlexMeasuresError."""
    values: list[float | None] = [power for _start, _end, power in powers]
    start, end, _power = powers[0]
    step = timedelta(seconds=end - start)
    begin = datetime.fromtimestamp(start, UTC)
    data = sensor_data.SensorData(
        sensor=sensor.id, start=begin, values=values, unit="W", step=step, sign=sensor_data.CONSUMPTION
    )
    if job := await sensor_data.post(link, data):
        await sensor_data.wait_until_stored(link, job)


@pyscript_compile
def own_power(plan_request: SitePlanRequest, moment: float) -> float:
    """Return the planned power (W) of the app's own device at a moment, 0 without a schedule."""
    schedule, at = plan_request.own_schedule(), datetime.fromtimestamp(moment, UTC)
    if schedule is None or not schedule.covers(at):
        return 0.0
    return schedule.powers_w[(at - schedule.start) // schedule.resolution]


@pyscript_compile
def limits_over_time(raw: dict[str, Any], limits: Mapping[str, Powers]) -> dict[str, Any]:
    """Return the fields of the site's capacities that vary, which are given by their names.

    With the user's own loads among the `raw` fields, there are none: what is left for the others is unknown.
    """
    if any(name.startswith("inflexible") for name in raw):
        return {}
    return {
        grid_connection.FIELDS[name]: storages.power_field(
            [
                PowerSpan(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC), power)
                for start, end, power in spans
            ]
        )
        for name, spans in limits.items()
    }


@pyscript_compile
async def prices(plan_request: SitePlanRequest, start: float, end: float) -> list[PriceInterval]:
    """Return the PriceIntervals from `start` to `end` (s since 1970); raise a FlexMeasuresError.

    If the user's raw fields have prices that only FlexMeasures reads, they are those of the sensors.
    """
    begin, finish = datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)
    tariff, _fields = await site_prices(plan_request, begin, finish, plan_request.given.flex_context or {})
    if tariff is None:
        tariff, _fields = await site_prices(plan_request, begin, finish, {})
    plan_request.status.succeed(None)
    return tariff.feasible.intervals if tariff else []


@pyscript_compile
def show_prices(plan_request: SitePlanRequest, tariff: Tariff | None) -> None:
    """Show until when the prices of a plan are known, and log assumed prices once."""
    if tariff is None:
        return
    until = tariff.known_until
    moment = None if until is None else datetime.fromtimestamp(until, UTC)
    plan_request.status.show(prices_known_until=moment and local(moment))
    texts = {text.split()[0]: text for text in tariffs.warnings(tariff, dt_util.get_default_time_zone())}
    for kind, text in texts.items():
        if kind not in plan_request.warned:
            LOGGER.warning("s2: %s", text)
    plan_request.warned = set(texts)


@pyscript_compile
async def site_prices(
    plan_request: SitePlanRequest, start: datetime, end: datetime, raw: dict[str, Any]
) -> tuple[Tariff | None, dict[str, Any]]:
    """Return the Tariff (None: only FlexMeasures reads it) and the flex-context's prices of the site.

    Raise a FlexMeasuresError.
    """
    tariff, fields = await tariffs.for_plan(
        plan_request.link,
        consumption_sensor=plan_request.given.consumption_price_sensor,
        production_sensor=plan_request.given.production_price_sensor,
        flex_context=raw,
        start=start,
        end=end,
    )
    grid_connection.refuse_other_currency(plan_request.given, tariff)
    return tariff, fields


@pyscript_compile
def planning_sensors_of(telemetry: Telemetry) -> Any:
    """Return the sensors that a Resource Manager is planned with; None while its power sensor is unknown."""
    if telemetry.power_sensor is None:
        return None
    energy = telemetry.energy_per_fill_level
    return sites.PlanningSensors(
        telemetry.power_sensor.id,
        telemetry.power_sensor.resolution.total_seconds(),
        telemetry.soc_sensor.id if telemetry.soc_sensor else None,
        None if energy is None else energy * JOULES_PER_WATT_HOUR,
    )


@pyscript_compile
def show_obstacle(plan_request: SitePlanRequest, telemetry: Telemetry, text: str | None) -> None:
    """Show why a Resource Manager cannot be planned, or, with None, that it can be.

    With the last one that was controlled, a problem of the site's plan is resolved, too.
    """
    name, resource_id = telemetry.resource.name, telemetry.resource.resource_id
    problem_key = f"{PROBLEM_KEY} of {resource_id}"
    if text is not None:
        plan_request.status.fail(problem_key, f"s2: {name} ({resource_id}): {text}", cause="not_planned")
        return
    is_over = not plan_request.planner.controlled
    for key in [problem_key, PROBLEM_KEY] if is_over else [problem_key]:
        if key in plan_request.status.problems:
            plan_request.status.resolve(key)


@pyscript_compile
def attributes(
    site: sites.Site,
    resource: Any,
    max_instructions: int | None = MAX_INSTRUCTIONS,
    max_missed_targets: int | None = MAX_MISSED_TARGETS,
) -> dict[str, Any]:
    """Return the attributes of a Resource Manager's plan; a maximum of None means all."""
    found = site.controlled_of(resource)
    if found is None:
        return {}
    worth, current = found.worth, instructions.instruction_in_force(found, site.now())
    return {
        "instruction": current and in_local_time(current),
        "plan": [
            in_local_time(each)
            for each in instructions.next_instructions(found, site.now(), max_instructions)
        ],
        "missed_targets": [
            in_local_time(each) for each in instructions.missed_targets(found)[:max_missed_targets]
        ],
        "planned_until": found.plan and local(plans.moment(found.plan.end)),
        "has_schedule": found.plan is not None and not found.is_fallback,
        "energy_per_fill_level": worth and quantities.rounded(worth.energy / JOULES_PER_WATT_HOUR / 1000),
    }


@pyscript_compile
def in_local_time(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item with its moments as texts, in Home Assistant's time zone."""
    return {name: local(value) if isinstance(value, datetime) else value for name, value in item.items()}


@pyscript_compile
def local(moment: datetime) -> str:
    """Return a moment as a text, in Home Assistant's time zone."""
    return dt_util.as_local(moment).isoformat()
