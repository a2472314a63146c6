"""What a site's devices are expected to consume, and what FlexMeasures is told of those it does not plan.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from s2python.common import PowerForecast

import flexmeasures_cem.cem as cems
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_cem.market as markets
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.site as sites

OWN = "own"
"""The app's own device."""
ABOVE = 1.001
"""Where given loads exceed a capacity of the site, it is raised to a little more than they are."""
LONGEST_STEP, FINEST_STEP = 900.0, 300.0
"""The time (s) between two samples of what is expected, at most and at least."""


@pyscript_compile
async def expected(site: sites.Site, chosen: Collection[Any], window: sites.Window) -> Any:
    """Return the Outlook of the site from now on, without the Controlled that are chosen."""
    sample = min(max(window.step, FINEST_STEP), LONGEST_STEP)
    found = outlooks.new(site.known_prices or [], window.start, window.end, sample, site.now())
    planned = [
        (controlled, controlled.plan)
        for controlled in site.controlled.values()
        if controlled.plan and controlled not in chosen
    ]
    told = [(each.resource_id, forecast_of(each)) for each in site.others.values()]

    def reckon() -> None:
        outlooks.put(found, OWN, outlooks.sampled(found, lambda begin, _length: site.own(begin)))
        for each, made in planned:
            add_load(found, each, made)
        for key, message in told:
            if message:
                outlooks.put(found, key, outlooks.sampled(found, partial(forecast_power, message)))

    await asyncio.to_thread(reckon)
    return found


@pyscript_compile
def forecast_of(resource: cems.Resource) -> Any:
    """Return the PowerForecast of a Resource Manager, or None."""
    return resource.session.memory.get(("PowerForecast",)) if resource.session else None


@pyscript_compile
def forecast_power(message: PowerForecast, start: float, length: float) -> float:
    """Return the mean power (W) that a PowerForecast tells of in some time."""
    return forecasts.power(message, start, start + length)


@pyscript_compile
def add_load(outlook: outlooks.Outlook, each: Any, made: Any) -> None:
    """Count what a plan expects of a device."""
    outlooks.put(outlook, each, *outlooks.of_pieces(outlook, made.pieces))


@pyscript_compile
def remove_load(outlook: outlooks.Outlook, each: Any) -> None:
    """Count a device no more."""
    outlooks.put(outlook, each, [0.0] * len(outlook.total))


@pyscript_compile
async def given(
    site: sites.Site, asked: dict[Any, Any], window: sites.Window
) -> tuple[dict[int, list[tuple[float, float, float]] | None], set[Any]]:
    """Return what FlexMeasures is told of those who are not asked about, by power sensor; and whom it knows.

    The first are powers (start, end, W), from now on; None for a device whose forecast the server has. The
    second are keys of an Outlook.
    """
    found: dict[int, list[tuple[float, float, float]] | None] = {}
    planned: dict[int, tuple[Any, float]] = {}
    known: set[Any] = {OWN}
    now = site.now()
    sensors = {each.problem.power_sensor for each in asked.values()}
    for resource in site.others.values():
        sensor, _step = usable(site, resource, now)
        if sensor and sensor not in sensors and forecast_of(resource):
            found[sensor] = None
            known.add(resource.resource_id)
    for controlled in site.controlled.values():
        sensor, step = usable(site, controlled.resource, now)
        if sensor and step and sensor not in sensors and controlled.plan and controlled not in asked:
            planned[sensor] = controlled.plan, step
            known.add(controlled)

    def reckon() -> dict[int, list[tuple[float, float, float]]]:
        return {sensor: planned_spans(plan, step, window, now) for sensor, (plan, step) in planned.items()}

    return found | await asyncio.to_thread(reckon), known


@pyscript_compile
def usable(site: sites.Site, resource: cems.Resource, now: float) -> tuple[int, float] | tuple[None, None]:
    """Return (power sensor, its resolution (s)) of a Resource Manager, or None twice if it has none."""
    means = site.means(resource)
    if means is None or site.unusable.get(means.power_sensor, 0.0) > now:
        return None, None
    return means.power_sensor, means.resolution


@pyscript_compile
def planned_spans(
    made: Any, step: float, window: sites.Window, now: float
) -> list[tuple[float, float, float]]:
    """Return what a plan expects from now on, as (start, end, power (W)) on the clock of a sensor."""
    start = window.start // step * step
    grid = outlooks.new([], start, window.end, step, now)
    powers, _most = outlooks.of_pieces(grid, made.pieces)
    return [(start + place * step, start + (place + 1) * step, power) for place, power in enumerate(powers)]


@pyscript_compile
def limits(
    connection: markets.Connection, outlook: outlooks.Outlook, known: Collection[Any], window: sites.Window
) -> dict[str, list[tuple[float, float, float]]]:
    """Return the capacities of a Connection that vary, by their names, as (start, end, W).

    They are less by the loads of the Outlook that FlexMeasures does not know (those of `known` it does), and
    by what all exceed their means at times. Of the first interval only a part is left, and powers are means
    over all of it, but for what is given. Where that exceeds a capacity, it is the capacity: else there would
    be no plan at all.
    """
    capacities_in: dict[str, Callable[[float, GivenStep], float]] = {
        "power_capacity": whole_capacity,
        "consumption_capacity": partial(capacity_in, direction=1),
        "production_capacity": partial(capacity_in, direction=-1),
    }
    found: dict[str, list[tuple[float, float, float]]] = {}
    steps: list[GivenStep] | None = None
    for name, varied in capacities_in.items():
        capacity = getattr(connection, name)
        if capacity is None:
            continue
        steps = steps or given_steps(outlook, known, window)
        spans = joined([(each.start, each.end, varied(capacity, each)) for each in steps])
        if spans != [(window.start, window.end, capacity)]:
            found[name] = spans
    return found


@dataclass(frozen=True, kw_only=True)
class _GivenStep:
    """What is given in a step (W): the load that FlexMeasures knows, and how far that is exceeded at most.

    `above` is how far in consumption, `below` in production; `left` is which part of the step is left.
    """

    start: float
    end: float
    left: float
    load: float
    above: float
    below: float


GivenStep = _GivenStep


@pyscript_compile
def given_steps(outlook: outlooks.Outlook, known: Collection[Any], window: sites.Window) -> list[GivenStep]:
    """Return the GivenSteps of a window; FlexMeasures knows the loads of an Outlook that are in `known`.

    How far production exceeds its mean at times is not known: that of consumption counts for it too.
    """
    unknown = [powers[0] for key, powers in outlook.powers.items() if key not in known]
    hidden = (
        [sum(samples) for samples in zip(*unknown, strict=True)] if unknown else [0.0] * len(outlook.total)
    )
    found = []
    for place in range(round((window.end - window.start) / window.step)):
        start, end = window.start + place * window.step, window.start + (place + 1) * window.step
        inside = outlooks.samples(outlook, start, end)
        told = [outlook.total[each] - hidden[each] for each in inside]
        rises = [outlook.most[each] - outlook.total[each] for each in inside]
        beyond = [
            max([rise + sign * hidden[each] for each, rise in zip(inside, rises, strict=True)])
            for sign in (1, -1)
        ]
        above, below = (max(each, 0.0) for each in beyond)
        left, load = window.left if not place else 1.0, sum(told) / len(told)
        found.append(GivenStep(start=start, end=end, left=left, load=load, above=above, below=below))
    return found


@pyscript_compile
def whole_capacity(capacity: float, step: GivenStep) -> float:
    """Return what is left in a step of a capacity (W) of both directions."""
    return max(capacity_in(capacity, step, 1), -step.load * ABOVE)


@pyscript_compile
def capacity_in(capacity: float, step: GivenStep, direction: int) -> float:
    """Return what is left in a step of a capacity (W) of consumption (direction 1) or production (-1)."""
    load, beyond = direction * step.load, step.above if direction > 0 else step.below
    left = step.left * (capacity - beyond) + (1 - step.left) * load
    return max(left, load * ABOVE, 0.0)


@pyscript_compile
def joined(spans: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Return spans (start, end, W) in order, with neighbours of the same power as one."""
    found: list[tuple[float, float, float]] = []
    for start, end, power in spans:
        if found and found[-1][2] == power:
            found[-1] = found[-1][0], end, power
        else:
            found.append((start, end, power))
    return found


@pyscript_compile
def keep_limits_at_first(
    connection: markets.Connection,
    all_powers: Collection[list[tuple[float, float, float]]],
    load: float,
) -> None:
    """Lower the powers in the rest of the first interval to a Connection's limits, beside a load (W)."""
    for sign, limit in ((1, connection.max_consumption), (-1, connection.max_production)):
        wanted = sum([max(sign * powers[0][2], 0.0) for powers in all_powers])
        others = sum([max(-sign * powers[0][2], 0.0) for powers in all_powers])
        most = max(limit - sign * load + others, 0.0)
        for powers in all_powers:
            start, end, power = powers[0]
            if sign * power > 0 and wanted > most:
                powers[0] = start, end, power * most / wanted
