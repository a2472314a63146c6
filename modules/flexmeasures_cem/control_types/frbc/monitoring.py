"""Fill rate based control: how a device deviates from its plan."""

from typing import Any

from s2python.frbc import FRBCActuatorStatus

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.plan as frbc_plan
import flexmeasures_cem.control_types.plans as plans

LEVEL_TOLERANCE = 0.02
"""A fill level may deviate from the plan by this part of the storage's range."""


@pyscript_compile
def planned_power(plan: frbc_plan.Plan | None, start: float, length: float) -> float:
    """Return the mean planned power (W) of some seconds, 0 without a plan or outside it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def deviation(device: devices.Device, plan: frbc_plan.Plan, message: Any, now: float) -> str | None:
    """Return how a status deviates from the plan, or None."""
    kind = message.message_type
    if kind == devices.STATUS:
        return level_deviation(device, plan, message.present_fill_level, now)
    if kind == devices.ACTUATOR_STATUS:
        return mode_deviation(device, plan, message, now)
    return None


@pyscript_compile
def has_changed(device: devices.Device, state: devices.State, message: Any) -> bool:
    """Return whether the fill level of a status differs from that of the planned state."""
    tolerance = LEVEL_TOLERANCE * (device.top - device.bottom)
    if message.message_type != devices.STATUS:
        return False
    return bool(abs(message.present_fill_level - state.level) > tolerance)


@pyscript_compile
def level_deviation(device: devices.Device, plan: frbc_plan.Plan, level: float, now: float) -> str | None:
    """Return how a fill level deviates from the plan, or None."""
    expected = frbc_plan.level_at(plan, now)
    if abs(level - expected) > LEVEL_TOLERANCE * (device.top - device.bottom):
        return f"the fill level is {level:g}, expected was {expected:g}"
    return None


@pyscript_compile
def mode_deviation(
    device: devices.Device, plan: frbc_plan.Plan, message: FRBCActuatorStatus, now: float
) -> str | None:
    """Return how an actuator's status deviates from its latest instruction, or None; a lag is tolerated."""
    instructed = [
        change for change in plan.changes if change.actuator == message.actuator_id and change.moment <= now
    ]
    actuator = next((actuator for actuator in device.actuators if actuator.id == message.actuator_id), None)
    if actuator is None or not instructed or now - instructed[-1].moment < plans.LAG_SECONDS:
        return None
    mode = actuator.modes.get(str(message.active_operation_mode_id))
    last = instructed[-1]
    if mode is None:
        return "an operation mode is active that no instruction may ask for"
    level = frbc_plan.level_at(plan, now)
    power = devices.power_of(devices.element_at(mode, level), message.operation_mode_factor)
    expected_w = devices.power_of(devices.element_at(actuator.modes[last.mode], level), last.factor)
    return plans.power_deviation(power, expected_w, power_tolerance(device)) or (
        f"{mode.label} is active, expected was {actuator.modes[last.mode].label}"
        if mode.id != last.mode
        else None
    )


@pyscript_compile
def power_deviation(device: devices.Device, plan: frbc_plan.Plan, power: float, now: float) -> str | None:
    """Return how a measured power (W) deviates from the plan of now and of shortly before, or None."""
    recently = [frbc_plan.power_at(plan, now - plans.LAG_SECONDS * part) for part in (0, 0.5, 1)]
    departs = [plans.power_deviation(power, expected_w, power_tolerance(device)) for expected_w in recently]
    return departs[0] if all(departs) else None


@pyscript_compile
def power_tolerance(device: devices.Device) -> float:
    """Return the tolerated deviation of the power (W)."""
    return plans.power_tolerance(max(device.max_filling_w, device.max_emptying_w))


@pyscript_compile
def resumed(
    device: devices.Device, plan: frbc_plan.Plan, reconnection: base.Reconnection
) -> frbc_plan.Plan | None:
    """Return the plan if the device can resume it after a reconnection, else None."""
    state = devices.read_state(device, reconnection.memory, reconnection.heard, None, reconnection.now)
    if level_deviation(device, plan, state.level, reconnection.now):
        return None
    return plans.resumed(plan, device.actuators, state.actuators, reconnection.begin)
