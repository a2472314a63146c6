"""Demand driven based control: how a device deviates from its plan."""

from typing import Any

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.ddbc.device as devices
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.ddbc as messages

DEMAND_TOLERANCE_SHARE = 0.02
"""By which part of the greatest supply or demand the present demand may differ from the planned one."""


@pyscript_compile
def resumed(device: devices.Device, plan: plans.Plan, reconnection: "base.Reconnection") -> plans.Plan | None:
    """Return the plan that a device goes on with after it has reconnected, or None where it cannot."""
    memory, received_at = reconnection.memory, reconnection.heard
    state = devices.read_state(device, memory, received_at, None, reconnection.now)
    return plans.resumed(plan, device.actuators, state.actuators, reconnection.begin)


@pyscript_compile
def planned_power(plan: plans.Plan | None, start: float, seconds: float) -> float:
    """Return the mean power (W) that a plan has from a moment on, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + seconds) if plan else 0.0


@pyscript_compile
def deviation(device: devices.Device, plan: plans.Plan, message: Any, now: float) -> str | None:
    """Return how a status, or the present demand, deviates from the plan now, or None."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_deviation(device, message, now)
    actuator = actuator_of(device, getattr(message, "actuator_id", None))
    if actuator and message.message_type == devices.ACTUATOR_STATUS:
        tolerance_w = power_tolerance(device) if len(device.actuators) == 1 else None
        return modes.status_deviation(actuator, message, plan, now, tolerance_w)
    if actuator and message.message_type == devices.TIMER_STATUS:
        return modes.timer_deviation(actuator, message, plan, now)
    return None


@pyscript_compile
def demand_deviation(device: devices.Device, message: Any, now: float) -> str | None:
    """Return how the demand of a DDBC.PresentDemandStatus deviates from the planned one, or None."""
    present = message.present_demand_rate
    planned = device.demand(now, now + 1.0, now < device.present_until)
    tolerance = DEMAND_TOLERANCE_SHARE * device.scale
    if present.start_of_range - tolerance <= planned <= present.end_of_range + tolerance:
        return None
    reported = f"{present.start_of_range:g} to {present.end_of_range:g}"
    return f"the present demand rate is {reported}, expected was {planned:g}"


@pyscript_compile
def actuator_of(device: devices.Device, actuator_id: str | None) -> modes.Actuator | None:
    """Return an actuator by its id, or None."""
    return next((actuator for actuator in device.actuators if actuator.id == actuator_id), None)


@pyscript_compile
def power_tolerance(device: devices.Device) -> float:
    """Return by how much a power may deviate from the plan (W)."""
    return plans.power_tolerance(modes.greatest_power(device.actuators))


@pyscript_compile
def power_deviation(device: devices.Device, plan: plans.Plan, power: float, now: float) -> str | None:
    """Return how a measured power (W) deviates from the plan now and shortly before, or None."""
    return plans.measured_power_deviation(plan, power, now, power_tolerance(device))


@pyscript_compile
def has_changed(device: devices.Device, state: modes.State, message: Any) -> bool:
    """Return whether a status, or the present demand, is another one than a plan was asked for."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_deviation(device, message, state.moment) is not None
    actuator = actuator_of(device, getattr(message, "actuator_id", None))
    if actuator is None or message.message_type not in (devices.ACTUATOR_STATUS, devices.TIMER_STATUS):
        return False
    return modes.is_elsewhere(actuator, state.actuators[actuator.id], message, state.moment)
