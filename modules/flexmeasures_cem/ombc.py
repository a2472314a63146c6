"""Operation mode based control: which mode a device is in, and when, at the least cost.

Nothing is asked of FlexMeasures but its prices: what a mode costs in each interval is known, and the choice
is made here, exactly.
"""

from typing import Any

import flexmeasures_cem.modes as modes
import flexmeasures_cem.plans as plans
import flexmeasures_cem.transitions as transitions

CONTROL_TYPE = "OPERATION_MODE_BASED_CONTROL"
INSTRUCTION = "OMBC.Instruction"
DESCRIPTION, STATUS, TIMER_STATUS = "OMBC.SystemDescription", "OMBC.Status", "OMBC.TimerStatus"
CALL_FOR_A_PLAN = (DESCRIPTION,)
"""The messages that change the problem."""
PLAN = plans.Plan
alike, upcoming, missed = transitions.alike, plans.upcoming, plans.missed


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    return None if (DESCRIPTION,) in memory else DESCRIPTION


@pyscript_compile
def valid_from(memory):
    """Return from when on the description holds."""
    return memory[DESCRIPTION,].valid_from.timestamp()


@pyscript_compile
def device(memory):
    """Return the device that is described: one Actuator."""
    return modes.read(memory[DESCRIPTION,])


@pyscript_compile
def commodities_of(found):
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of([found])


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None."""
    return modes.unfit([found])


@pyscript_compile
def until(_found):
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return what the device is now: as it told, or as it was told later.

    `heard` has when it told its status last; `plan` is the one in force, or None.
    """
    finished = transitions.finished(memory, (TIMER_STATUS,), now)
    told = plans.last_told(plan, now)
    active = transitions.active(found, memory.get((STATUS,)), finished, told, heard, now)
    return modes.Condition(now, {None: active})


@pyscript_compile
def problem(_found, _state, _means, _window):
    """Return what FlexMeasures is asked: nothing."""


@pyscript_compile
def present(found: modes.Actuator, state: modes.Condition, moment: float) -> list:
    """Return what the device does, as the Change at a moment that tells it to go on."""
    return modes.present([found], state, moment)


@pyscript_compile
def resumed(found: modes.Actuator, plan: plans.Plan, told: Any) -> plans.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot."""
    state = condition(found, told.memory, told.heard, None, told.now)
    return plans.resumed(plan, [found], state.actuators, told.begin)


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return how a status departs from what the plan expects of the device now, or None."""
    if message.message_type == STATUS:
        return modes.status_departs(found, message, plan, now, tolerance(found))
    if message.message_type == TIMER_STATUS:
        return modes.timer_departs(found, message, plan, now)
    return None


@pyscript_compile
def tolerance(found):
    """Return by how much a power may depart from the plan (W)."""
    return plans.tolerance(modes.greatest_power([found]))


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_departs(plan, power, now, tolerance(found))


@pyscript_compile
def moved(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type not in (STATUS, TIMER_STATUS):
        return False
    return modes.is_elsewhere(found, state.actuators[None], message, state.moment)


@pyscript_compile
def message_type(_change):
    """Return the message that a change is told with."""
    return INSTRUCTION


@pyscript_compile
def fields(change):
    """Return the fields of the OMBC.Instruction that a Change calls for, but for its ids and time."""
    return modes.fields(change)


@pyscript_compile
def describe(found, change, _now):
    """Return what a Change says, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of([found], change)
    return {**fields(change), "label": label, "power": round(change.power)}
