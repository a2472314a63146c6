"""Demand driven based control: how a device deviates from its plan."""

from typing import Any

import flexmeasures_cem.control_types.ddbc.device as devices
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.ddbc as messages

DEMAND_TOLERANCE = 0.02
"""By which part of the greatest supply or demand the present demand may differ from what was planned with."""


@pyscript_compile
def resumed(found: devices.Device, plan: plans.Plan, told: Any) -> plans.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot."""
    state = devices.read_state(found, told.memory, told.heard, None, told.now)
    return plans.resumed(plan, found.actuators, state.actuators, told.begin)


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def deviation(found, plan, message, now):
    """Return how a status departs from what the plan expects of the device now, or None."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_deviation(found, message, now)
    actuator = actuator_of(found, getattr(message, "actuator_id", None))
    if actuator and message.message_type == devices.ACTUATOR_STATUS:
        alone = power_tolerance(found) if len(found.actuators) == 1 else None
        return modes.status_deviation(actuator, message, plan, now, alone)
    if actuator and message.message_type == devices.TIMER_STATUS:
        return modes.timer_deviation(actuator, message, plan, now)
    return None


@pyscript_compile
def demand_deviation(found: devices.Device, message: object, now: float) -> str | None:
    """Return how the present demand departs from the one that was planned with, or None."""
    present = message.present_demand_rate
    planned = found.demand(now, now + 1.0, now < found.present_until)
    allowed = DEMAND_TOLERANCE * found.scale
    if present.start_of_range - allowed <= planned <= present.end_of_range + allowed:
        return None
    told = f"{present.start_of_range:g} to {present.end_of_range:g}"
    return f"the present demand rate is {told}, expected was {planned:g}"


@pyscript_compile
def actuator_of(found, actuator_id):
    """Return an actuator by its id, or None."""
    return next((each for each in found.actuators if each.id == actuator_id), None)


@pyscript_compile
def power_tolerance(found):
    """Return by how much a power may depart from the plan (W)."""
    return plans.power_tolerance(modes.greatest_power(found.actuators))


@pyscript_compile
def power_deviation(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_deviation(plan, power, now, power_tolerance(found))


@pyscript_compile
def has_changed(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_deviation(found, message, state.moment) is not None
    actuator = actuator_of(found, getattr(message, "actuator_id", None))
    if actuator is None or message.message_type not in (devices.ACTUATOR_STATUS, devices.TIMER_STATUS):
        return False
    return modes.is_elsewhere(actuator, state.actuators[actuator.id], message, state.moment)
