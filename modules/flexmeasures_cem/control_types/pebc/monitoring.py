"""Power envelope based control: how a device deviates from its plan."""

import math
from dataclasses import replace
from typing import Any

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.pebc.device as devices
import flexmeasures_cem.control_types.pebc.plan as pebc_plan
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.commodities as commodities


@pyscript_compile
def resumed(
    device: devices.Device, plan: pebc_plan.Plan, reconnection: base.Reconnection
) -> pebc_plan.Plan | None:
    """Return the plan if the device can resume it after a reconnection, else None.

    An envelope counts from its execution_time: of the one in force, the rest is to be sent.
    """
    valid_ids, begin = {constraints.id for constraints in device.constraints}, reconnection.begin
    last = plans.last_instructed(plan, begin)
    coming = [change for change in plan.changes if change.moment > begin]
    if last and (elements := devices.between(last.elements, begin, math.inf)):
        power = plans.power_at(plan, begin)
        coming.insert(0, replace(last, moment=begin, power=power, elements=elements))
    if not coming or not {change.constraints for change in coming} <= valid_ids:
        return None
    return replace(
        plan, changes=coming, instructed=devices.between(devices.instructed_by(plan, begin), -math.inf, begin)
    )


@pyscript_compile
def planned_power(plan: pebc_plan.Plan | None, start: float, length: float) -> float:
    """Return the mean planned power (W) of some seconds, 0 without a plan or outside it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def deviation(_device: devices.Device, plan: pebc_plan.Plan, message: Any, now: float) -> None:
    """Return None: there is no status of an envelope."""


@pyscript_compile
def power_deviation(device: devices.Device, plan: pebc_plan.Plan, power: float, now: float) -> str | None:
    """Return how a measured power (W) violates the limits of now and of shortly before, or None."""
    deviation_text = None
    for share in (1, 0.5, 0):
        limits = instructed_limits(plan, now - plans.LAG_SECONDS * share)
        upper, lower = (devices.allowed(limits or {}, commodities.ALL_PHASES, side) for side in devices.SIDES)
        if upper is None or lower is None:
            return None
        if power > upper + power_tolerance(device):
            deviation_text = f"the power is {power:.0f} W, above the upper limit of {upper:.0f} W"
        elif power < -lower - power_tolerance(device):
            deviation_text = f"the power is {power:.0f} W, below the lower limit of {-lower:.0f} W"
        else:
            return None
    return deviation_text


@pyscript_compile
def instructed_limits(plan: pebc_plan.Plan, moment: float) -> devices.Limits | None:
    """Return the instructed limits at a moment, or None."""
    change = plans.last_instructed(plan, moment)
    return devices.limits_at(change.elements if change else plan.instructed, moment)


@pyscript_compile
def power_tolerance(device: devices.Device) -> float:
    """Return the tolerated deviation of the power (W)."""
    return plans.power_tolerance(max(device.max_consumption_w, device.max_production_w))


@pyscript_compile
def has_changed(_device: devices.Device, state: devices.State, message: Any) -> bool:
    """Return False: the state has nothing but instructions."""
    return False
