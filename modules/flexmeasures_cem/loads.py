"""What a site's devices are expected to consume, and what FlexMeasures is told of those it does not plan.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Any

import flexmeasures_cem.forecasts as forecasts
import flexmeasures_cem.outlook as outlooks

OWN = "own"
"""The app's own device."""
ABOVE = 1.001
"""Where given loads exceed the site's limit, it is raised to a little more than they are."""
LONGEST_STEP, FINEST_STEP = 900.0, 300.0
"""The time (s) between two samples of what is expected, at most and at least."""


@pyscript_compile
async def expected(site: Any, chosen: Collection, window: Any) -> Any:
    """Return the Outlook of the site from now on, without the Controlled that are chosen."""
    sample = min(max(window.step, FINEST_STEP), LONGEST_STEP)
    found = outlooks.new(site.known_prices or [], window.start, window.end, sample, site.now())
    planned = [(each, each.plan) for each in site.controlled.values() if each.plan and each not in chosen]
    told = [(each.resource_id, forecast_of(each)) for each in site.others.values()]

    def reckon() -> None:
        outlooks.put(found, OWN, outlooks.sampled(found, lambda begin, _length: site.own(begin)))
        for each, made in planned:
            take_in(found, each, made)
        for key, message in told:
            if message:
                outlooks.put(found, key, outlooks.sampled(found, partial(forecast_power, message)))

    await asyncio.to_thread(reckon)
    return found


@pyscript_compile
def forecast_of(resource):
    """Return the PowerForecast of a Resource Manager, or None."""
    return resource.session.memory.get(("PowerForecast",)) if resource.session else None


@pyscript_compile
def forecast_power(message, start, length):
    """Return the mean power (W) that a PowerForecast tells of in some time."""
    return forecasts.power(message, start, start + length)


@pyscript_compile
def take_in(outlook, each, made):
    """Count what a plan expects of a device."""
    outlooks.put(outlook, each, *outlooks.of_pieces(outlook, made.pieces))


@pyscript_compile
def take_out(outlook, each):
    """Count a device no more."""
    outlooks.put(outlook, each, [0.0] * len(outlook.total))


@pyscript_compile
async def given(site: Any, asked: dict, window: Any) -> tuple[dict, set]:
    """Return what FlexMeasures is told of those who are not asked about, by power sensor; and whom it knows.

    The first are powers (start, end, W), from now on; None for a device whose forecast the server has. The
    second are keys of an Outlook.
    """
    found, planned, known = {}, {}, {OWN}
    now = site.now()
    sensors = {each.problem.power_sensor for each in asked.values()}
    for resource in site.others.values():
        sensor, _step = usable(site, resource, now)
        if sensor and sensor not in sensors and forecast_of(resource):
            found[sensor] = None
            known.add(resource.resource_id)
    for each in site.controlled.values():
        sensor, step = usable(site, each.resource, now)
        if sensor and sensor not in sensors and each.plan and each not in asked:
            planned[sensor] = each.plan, step
            known.add(each)

    def reckon():
        return {sensor: planned_spans(plan, step, window, now) for sensor, (plan, step) in planned.items()}

    return found | await asyncio.to_thread(reckon), known


@pyscript_compile
def usable(site, resource, now):
    """Return (power sensor, its resolution (s)) of a Resource Manager, or None twice if it has none."""
    means = site.means(resource)
    if means is None or site.unusable.get(means.power_sensor, 0.0) > now:
        return None, None
    return means.power_sensor, means.resolution


@pyscript_compile
def planned_spans(made, step, window, now):
    """Return what a plan expects from now on, as (start, end, power (W)) on the clock of a sensor."""
    start = window.start // step * step
    grid = outlooks.new([], start, window.end, step, now)
    powers, _most = outlooks.of_pieces(grid, made.pieces)
    return [(start + place * step, start + (place + 1) * step, power) for place, power in enumerate(powers)]


@pyscript_compile
def limits(limit, outlook, known, window):
    """Return the site's limit as (start, end, W) where it varies, else None; the Outlook has what is given.

    It is less by the loads that FlexMeasures does not know, and by what all exceed their means at times. Of
    the first interval only a part is left, and powers are means over all of it, but for what is given.
    Where that exceeds the limit, it is the limit: else there would be no plan at all.
    """
    if limit is None:
        return None
    unknown = [powers[0] for key, powers in outlook.powers.items() if key not in known]
    hidden = (
        [sum(samples) for samples in zip(*unknown, strict=True)] if unknown else [0.0] * len(outlook.total)
    )
    found = []
    for place in range(round((window.end - window.start) / window.step)):
        start, end = window.start + place * window.step, window.start + (place + 1) * window.step
        inside = outlooks.samples(outlook, start, end)
        told = [outlook.total[each] - hidden[each] for each in inside]
        load = sum(told) / len(told)
        rises = max([outlook.most[each] - total for each, total in zip(inside, told, strict=True)])
        left = limit - max(rises, 0.0)
        if not place:
            left = window.left * left + (1 - window.left) * load
        left = max(left, abs(load) * ABOVE)
        if found and found[-1][2] == left:
            found[-1] = found[-1][0], end, left
        else:
            found.append((start, end, left))
    return None if found == [(window.start, window.end, limit)] else found


@pyscript_compile
def keep_limit_at_first(limit, all_powers, load):
    """Lower the powers in the rest of the first interval to the limit (W), beside a load (W)."""
    if limit is None:
        return
    for sign in (1, -1):
        wanted = sum([max(sign * powers[0][2], 0.0) for powers in all_powers])
        others = sum([max(-sign * powers[0][2], 0.0) for powers in all_powers])
        most = max(limit - sign * load + others, 0.0)
        for powers in all_powers:
            start, end, power = powers[0]
            if sign * power > 0 and wanted > most:
                powers[0] = start, end, power * most / wanted
