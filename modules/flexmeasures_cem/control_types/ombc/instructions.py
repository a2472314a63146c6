"""Instructions of operation mode based control."""

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions

INSTRUCTION = "OMBC.Instruction"


@pyscript_compile
def present_changes(found: modes.Actuator, state: modes.State, moment: float) -> list:
    """Return what the device does, as the Change at a moment that tells it to go on."""
    return modes.present_changes([found], state, moment)


@pyscript_compile
def message_type(_change):
    """Return the message that a change is told with."""
    return INSTRUCTION


@pyscript_compile
def instruction_fields(change):
    """Return the fields of the OMBC.Instruction that a Change calls for, but for its ids and time."""
    return modes.instruction_fields(change)


@pyscript_compile
def describe(found, change, _now):
    """Return what a Change says, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of([found], change)
    return {**instruction_fields(change), "label": label, "power": round(change.power)}
