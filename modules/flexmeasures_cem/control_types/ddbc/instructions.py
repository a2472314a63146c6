"""Instructions of demand driven based control."""

from typing import Any

import flexmeasures_cem.control_types.ddbc.device as devices
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions

INSTRUCTION = "DDBC.Instruction"


@pyscript_compile
def present_changes(device: devices.Device, state: modes.State, moment: float) -> list[transitions.Change]:
    """Return the Changes at a moment to what each actuator does already that is in a permitted mode."""
    return modes.present_changes(device.actuators, state, moment)


@pyscript_compile
def message_type(_change: transitions.Change) -> str:
    """Return the message_type of the instruction that a Change calls for."""
    return INSTRUCTION


@pyscript_compile
def instruction_fields(change: transitions.Change) -> dict[str, Any]:
    """Return the fields of the DDBC.Instruction that a Change calls for, but for its ids and time."""
    return {"actuator_id": change.actuator, **modes.instruction_fields(change)}


@pyscript_compile
def describe(device: devices.Device, change: transitions.Change, _now: float) -> dict[str, Any]:
    """Return a Change in short, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of(device.actuators, change)
    return {**instruction_fields(change), "label": label, "power": round(change.power)}
