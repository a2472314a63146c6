"""Operation mode based control: a device of one actuator, read from its messages."""

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans

DESCRIPTION, STATUS, TIMER_STATUS = "OMBC.SystemDescription", "OMBC.Status", "OMBC.TimerStatus"


@pyscript_compile
def missing_message(memory):
    """Return which message is still missing to plan on, or None."""
    return None if (DESCRIPTION,) in memory else DESCRIPTION


@pyscript_compile
def valid_from(memory):
    """Return from when on the description holds."""
    return memory[DESCRIPTION,].valid_from.timestamp()


@pyscript_compile
def read_device(memory):
    """Return the device that is described: one Actuator."""
    return modes.read(memory[DESCRIPTION,])


@pyscript_compile
def commodities_of(found):
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of([found])


@pyscript_compile
def why_not_plannable(found):
    """Return why a device cannot be planned, or None."""
    return modes.why_not_plannable([found])


@pyscript_compile
def last_deadline(_found):
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


@pyscript_compile
def read_state(found, memory, heard, plan, now):
    """Return what the device is now: as it told, or as it was told later.

    `heard` has when it told its status last; `plan` is the one in force, or None.
    """
    finished = transitions.finished(memory, (TIMER_STATUS,), now)
    told = plans.last_instructed(plan, now)
    active = transitions.active(found, memory.get((STATUS,)), finished, told, heard, now)
    return modes.State(now, {None: active})
