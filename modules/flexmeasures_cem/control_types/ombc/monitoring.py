"""Operation mode based control: how a device deviates from its plan."""

from typing import Any

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.ombc.device as devices
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.plans as plans


@pyscript_compile
def resumed(device: modes.Actuator, plan: plans.Plan, reconnection: "base.Reconnection") -> plans.Plan | None:
    """Return the plan that a device goes on with after it has reconnected, or None where it cannot."""
    memory, received_at = reconnection.memory, reconnection.heard
    state = devices.read_state(device, memory, received_at, None, reconnection.now)
    return plans.resumed(plan, [device], state.actuators, reconnection.begin)


@pyscript_compile
def planned_power(plan: plans.Plan | None, start: float, seconds: float) -> float:
    """Return the mean power (W) that a plan has from a moment on, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + seconds) if plan else 0.0


@pyscript_compile
def deviation(device: modes.Actuator, plan: plans.Plan, message: Any, now: float) -> str | None:
    """Return how an OMBC.Status or OMBC.TimerStatus deviates from the plan now, or None."""
    if message.message_type == devices.STATUS:
        return modes.status_deviation(device, message, plan, now, power_tolerance(device))
    if message.message_type == devices.TIMER_STATUS:
        return modes.timer_deviation(device, message, plan, now)
    return None


@pyscript_compile
def power_tolerance(device: modes.Actuator) -> float:
    """Return by how much a power may deviate from the plan (W)."""
    return plans.power_tolerance(modes.greatest_power([device]))


@pyscript_compile
def power_deviation(device: modes.Actuator, plan: plans.Plan, power: float, now: float) -> str | None:
    """Return how a measured power (W) deviates from the plan now and shortly before, or None."""
    return plans.measured_power_deviation(plan, power, now, power_tolerance(device))


@pyscript_compile
def has_changed(device: modes.Actuator, state: modes.State, message: Any) -> bool:
    """Return whether an OMBC.Status or OMBC.TimerStatus is of another state than a plan was asked for."""
    if message.message_type not in (devices.STATUS, devices.TIMER_STATUS):
        return False
    return modes.is_elsewhere(device, state.actuators[device.id], message, state.moment)
