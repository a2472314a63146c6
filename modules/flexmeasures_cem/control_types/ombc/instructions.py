"""Instructions of operation mode based control."""

from typing import Any

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions

INSTRUCTION = "OMBC.Instruction"


@pyscript_compile
def present_changes(device: modes.Actuator, state: modes.State, moment: float) -> list[transitions.Change]:
    """Return the Change at a moment to what the device does already, if it is in a permitted mode."""
    return modes.present_changes([device], state, moment)


@pyscript_compile
def message_type(_change: transitions.Change) -> str:
    """Return the message_type of the instruction that a Change calls for."""
    return INSTRUCTION


@pyscript_compile
def instruction_fields(change: transitions.Change) -> dict[str, Any]:
    """Return the fields of the OMBC.Instruction that a Change calls for, but for its ids and time."""
    return modes.instruction_fields(change)


@pyscript_compile
def describe(device: modes.Actuator, change: transitions.Change, _now: float) -> dict[str, Any]:
    """Return a Change in short, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of([device], change)
    return {**instruction_fields(change), "label": label, "power": round(change.power)}
