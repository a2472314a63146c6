"""Power envelope based control: what FlexMeasures is asked, and what the device is told.

Moments are seconds since 1970, power is W, consumption positive; amounts are of one side of an envelope, as
pebc_device has them.
"""

import math
import uuid
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import flexmeasures_api.flexible_devices as storages
import flexmeasures_cem.errors as errors
import flexmeasures_cem.forecasts as forecasts
import flexmeasures_cem.models.pebc as model
import flexmeasures_cem.pebc_device as devices
import flexmeasures_cem.pebc_plan as envelopes
import flexmeasures_cem.plans as plans
import flexmeasures_s2.commodities as commodities

CONTROL_TYPE = "POWER_ENVELOPE_BASED_CONTROL"
INSTRUCTION = "PEBC.Instruction"
CALL_FOR_A_PLAN = (devices.POWER_CONSTRAINTS, devices.ENERGY_CONSTRAINT, *devices.FORECAST)
"""The messages that change the problem."""
MOST_UPCOMING = 100
PLAN = envelopes.Plan
alike = envelopes.alike


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass(frozen=True)
    class Step:
        """One element of a Change: the limits from a moment on, and the power expected then."""

        moment: float
        power: float
        constraints: str
        limits: dict
        widest: dict
        actuator: str | None = None

    return Step


Step = record()


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    return None if devices.of_type(memory, devices.POWER_CONSTRAINTS) else devices.POWER_CONSTRAINTS


@pyscript_compile
def valid_from(memory):
    """Return from when on the first of its constraints hold."""
    return min(each.valid_from.timestamp() for each in devices.of_type(memory, devices.POWER_CONSTRAINTS))


@pyscript_compile
def device(memory):
    """Return the device that is described."""
    return devices.read(memory)


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None."""
    return found.flaw


@pyscript_compile
def until(found):
    """Return the last moment that the plan has to look ahead to, or 0.0."""
    return max([each.end for each in found.energies], default=0.0)


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return what the device was told by now; raise NotPlannable where no constraints hold any more.

    `heard` is not needed: a device tells nothing of its envelope.
    """
    if all(each.end <= now for each in found.constraints):
        raise errors.NotPlannable(
            f"its {devices.POWER_CONSTRAINTS} are not valid any more: it has to send new ones"
        )
    if plan is None:
        return envelopes.Condition(now, [], [])
    return envelopes.Condition(now, told_by(plan, now), plan.changes)


@pyscript_compile
def told_by(plan: envelopes.Plan, now: float) -> list:
    """Return the Elements that a device was told by now; the last of them are still to come."""
    told, executed = list(plan.told), [each for each in plan.changes if each.moment <= now]
    for place, change in enumerate(executed):
        end = executed[place + 1].moment if place + 1 < len(executed) else math.inf
        told += devices.between(change.elements, max(change.moment, plan.start), end)
    return told


@pyscript_compile
def resumed(found: devices.Device, plan: envelopes.Plan, told: Any) -> envelopes.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot.

    An envelope's course of time counts from when it is told: the one in force is told as what is left of it.
    """
    known, begin = {each.id for each in found.constraints}, told.begin
    last = plans.last_told(plan, begin)
    coming = [change for change in plan.changes if change.moment > begin]
    if last and (elements := devices.between(last.elements, begin, math.inf)):
        power = plans.power_at(plan, begin)
        coming.insert(0, replace(last, moment=begin, power=power, elements=elements))
    if not coming or not {change.constraints for change in coming} <= known:
        return None
    return replace(plan, changes=coming, told=devices.between(told_by(plan, begin), -math.inf, begin))


@pyscript_compile
def problem(found, state, means, window):
    """Return what FlexMeasures is asked, or None where nothing can be gained by it.

    That is a Storage of the energy that is deferred in one direction, or a Flow of production that can be
    curtailed.
    """
    needs = devices.needs_of(found, state.told, state.moment, window.end)
    sides = [side for side in devices.SIDES if any(capacities(found, needs, window, side, window.left))]
    if len(sides) == 1:
        return deferred(found, needs, means, window, sides[0])
    return None if sides else curtailable(found, means, window)


@pyscript_compile
def capacities(found, needs, window, side, left):
    """Return the mean power (W) that can be deferred in each step; of the first one a part is left."""
    begin = window.start + (1 - left) * window.step
    powers = [0.0] * round((window.end - window.start) / window.step)
    grid = [window.start + place * window.step for place in range(1, len(powers))]
    for start, end in pairwise(devices.boundaries(found, begin, window.end, grid)):
        constraints = devices.valid(found, (start + end) / 2)
        if devices.governed(start, end, constraints, needs, side):
            place = min(int(((start + end) / 2 - window.start) / window.step), len(powers) - 1)
            powers[place] += constraints.sides[side].ranges[-1][1] * (end - start) / window.step
    return [max(each, 0.0) for each in powers]


@pyscript_compile
def deferred(found, needs, means, window, side):
    """Return what a device defers as a Storage, to be filled in time or emptied; None where that is done."""
    modes = gap(found, needs, window, side) if window.with_modes else []
    powers = capacities(found, needs, window, side, 1.0 if modes else window.left)
    wishes = deadlines(found, [each for each in needs if each.side == side], powers, window)
    full = max([energy for _at, energy in wishes], default=0.0)
    if full <= model.MIN_MISSED_WH:
        return None
    spans = storages.as_spans(powers, window.start, window.step)
    consumes = side > 0
    made = [
        storages.SocEvent(plans.moment(at), plans.moment(at), energy if consumes else full - energy)
        for at, energy in wishes
    ]
    return storages.Storage(
        power_sensor=means.power_sensor,
        soc_at_start=0.0 if consumes else full,
        soc_min=0.0,
        soc_max=full,
        soc_minima=made if consumes else [],
        soc_maxima=[] if consumes else made,
        power_capacity=found.most if consumes else found.least,
        charging_efficiency=1.0,
        discharging_efficiency=1.0,
        storage_efficiency=1.0,
        consumption_capacity=spans if consumes else 0.0,
        production_capacity=0.0 if consumes else spans,
        operation_modes=modes,
    )


@pyscript_compile
def deadlines(found, needs, powers, window):
    """Return (moment on the grid, energy (Wh) that is to be allowed by then), as far as that can be."""
    reached, wishes = [(-math.inf, 0.0)], {}
    for each in needs:
        constraints = devices.valid(found, max(each.start, window.start)) or found.constraints[-1]
        most = constraints.sides[each.side].ranges[-1][1]
        own = devices.counted(constraints, each, most)
        left = each.left * most / own if own and own > 0 else 0.0
        before = max(energy for at, energy in reached if at <= each.start)
        total = max(before + left, max(energy for _at, energy in reached))
        reached.append((each.end, total))
        at = min(max(each.end // window.step * window.step, window.start + window.step), window.end)
        possible = sum(powers[: round((at - window.start) / window.step)]) * window.step / 3600
        wishes[at] = min(total, possible)
    return sorted(wishes.items())


@pyscript_compile
def gap(found, needs, window, side):
    """Return the ranges of power (W) that can be deferred, where they have gaps between them."""
    for start, end in pairwise(devices.boundaries(found, window.start, window.end, [])):
        constraints = devices.valid(found, (start + end) / 2)
        if devices.governed(start, end, constraints, needs, side):
            ranges = constraints.sides[side].ranges
            if len(ranges) == 1 and ranges[0][0] < plans.LEAST_WATTS:
                return []
            return sorted({(0.0, 0.0), *ranges} if side > 0 else {(0.0, 0.0), *devices.mirrored(ranges)})
    return []


@pyscript_compile
def curtailable(found, means, window):
    """Return the production that is forecast as a Flow, or None where none of it can be curtailed."""
    begin = window.start + (1 - window.left) * window.step
    powers = []
    for place in range(round((window.end - window.start) / window.step)):
        start = max(window.start + place * window.step, begin)
        end = window.start + (place + 1) * window.step
        power = forecasts.mean(found.forecast or (), start, end)
        powers.append(max(-power, 0.0) * (end - start) / window.step)
    can = [
        each
        for each in found.constraints
        if not each.is_deferred and each.start < window.end and each.end > begin
        if each.sides[-1].ranges[0][0] < each.sides[-1].ranges[-1][1]
    ]
    if not can or not any(powers):
        return None
    return storages.Flow(means.power_sensor, 0.0, storages.as_spans(powers, window.start, window.step))


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return None: no status tells of an envelope."""


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is outside the limits, and was so a moment before."""
    told = None
    for share in (1, 0.5, 0):
        limits = limits_told(plan, now - plans.LAG_SECONDS * share)
        upper, lower = (devices.allowed(limits or {}, commodities.ALL_PHASES, side) for side in devices.SIDES)
        if upper is None:
            return None
        if power > upper + tolerance(found):
            told = f"the power is {power:.0f} W, above the upper limit of {upper:.0f} W"
        elif power < -lower - tolerance(found):
            told = f"the power is {power:.0f} W, below the lower limit of {-lower:.0f} W"
        else:
            return None
    return told


@pyscript_compile
def limits_told(plan, moment):
    """Return the limits that a plan tells, or told, for a moment, or None."""
    change = plans.last_told(plan, moment)
    return devices.limits_at(change.elements if change else plan.told, moment)


@pyscript_compile
def tolerance(found):
    """Return by how much (W) a power may depart."""
    return plans.tolerance(max(found.most, found.least))


@pyscript_compile
def moved(found, state, message):
    """Return False: a device has no other state than what it was told."""
    return False


@pyscript_compile
def message_type(change):
    """Return the type of the instruction that a Change calls for."""
    return INSTRUCTION


@pyscript_compile
def fields(change):
    """Return the fields of the PEBC.Instruction that a Change calls for, but for its ids."""
    return {
        "power_constraints_id": change.constraints,
        "abnormal_condition": False,
        "power_envelopes": [
            {
                "id": str(uuid.uuid4()),
                "commodity_quantity": name,
                "power_envelope_elements": envelope(change, name),
            }
            for name in change.widest
        ],
    }


@pyscript_compile
def envelope(change, name):
    """Return the elements of a quantity's envelope; durations are in ms."""
    found, pieces = [], [(each.start, each.end, each.limits[name]) for each in change.elements]
    for start, end, (upper, lower) in envelopes.joined(pieces):
        duration = round(end * 1000) - round(start * 1000)
        found.append({"duration": duration, "upper_limit": upper, "lower_limit": lower})
    return found


@pyscript_compile
def describe(found, change, now):
    """Return what a Change says now, or from its moment on, or what a Step of it says."""
    step = step_of(change, max(now, change.moment)) if hasattr(change, "elements") else change
    names = devices.carriers(step.limits) or list(step.limits)[:1]
    return {
        "power_constraints_id": step.constraints,
        "commodity_quantity": " + ".join(names),
        "upper_limit": sum(step.limits[name][0] for name in names),
        "lower_limit": sum(step.limits[name][1] for name in names),
        "label": "unlimited" if envelopes.same(step.limits, step.widest) else "limited",
        "power": round(step.power),
    }


@pyscript_compile
def step_of(change, moment):
    """Return the Step that a Change is in at a moment."""
    limits = devices.limits_at(change.elements, moment) or change.elements[-1].limits
    return Step(moment, plans.power_at(change, moment), change.constraints, limits, change.widest)


@pyscript_compile
def upcoming(plan, now):
    """Return the Steps that are still to come, in order."""
    found = []
    for place, change in enumerate(plan.changes):
        end = plan.changes[place + 1].moment if place + 1 < len(plan.changes) else math.inf
        for each in change.elements:
            if now < each.start < end and len(found) < MOST_UPCOMING:
                found.append(step_of(change, each.start))
    return found


@pyscript_compile
def missed(plan):
    """Return the energy (kWh) that the plan leaves less room for than is asked: by when, and how much."""
    return [
        {
            "datetime": plans.moment(each.moment),
            "asked": round(each.asked / 1000, 3),
            "reached": round(each.reached / 1000, 3),
        }
        for each in plan.missed
    ]
