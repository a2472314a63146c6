"""Operation mode based control: how a device deviates from its plan."""

from typing import Any

import flexmeasures_cem.control_types.ombc.device as devices
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.plans as plans


@pyscript_compile
def resumed(found: modes.Actuator, plan: plans.Plan, told: Any) -> plans.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot."""
    state = devices.read_state(found, told.memory, told.heard, None, told.now)
    return plans.resumed(plan, [found], state.actuators, told.begin)


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def deviation(found, plan, message, now):
    """Return how a status departs from what the plan expects of the device now, or None."""
    if message.message_type == devices.STATUS:
        return modes.status_deviation(found, message, plan, now, power_tolerance(found))
    if message.message_type == devices.TIMER_STATUS:
        return modes.timer_deviation(found, message, plan, now)
    return None


@pyscript_compile
def power_tolerance(found):
    """Return by how much a power may depart from the plan (W)."""
    return plans.power_tolerance(modes.greatest_power([found]))


@pyscript_compile
def power_deviation(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_deviation(plan, power, now, power_tolerance(found))


@pyscript_compile
def has_changed(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type not in (devices.STATUS, devices.TIMER_STATUS):
        return False
    return modes.is_elsewhere(found, state.actuators[None], message, state.moment)
