"""Instructions of power profile based control."""

from typing import Any

import flexmeasures_cem.control_types.ppbc.device as devices

LABELS = {devices.START: "start", devices.PAUSE: "pause", devices.RESUME: "go on"}
SAME_SECONDS = 1.0
"""Instructions for moments that differ by less are the same."""


@pyscript_compile
def message_type(change: devices.Change) -> str:
    """Return the message_type of the instruction that a Change calls for."""
    return f"PPBC.{change.kind}"


@pyscript_compile
def instruction_fields(change: devices.Change) -> dict[str, Any]:
    """Return the fields of the instruction that a Change calls for, but for its ids and execution_time."""
    return {
        "power_profile_id": change.profile,
        "sequence_container_id": change.container,
        "power_sequence_id": change.sequence,
        "abnormal_condition": False,
    }


@pyscript_compile
def is_same_instruction(first: devices.Change, second: devices.Change) -> bool:
    """Return whether two Changes come to the same instruction."""
    is_same = (first.kind, first.actuator, first.sequence) == (second.kind, second.actuator, second.sequence)
    return is_same and abs(first.moment - second.moment) < SAME_SECONDS


@pyscript_compile
def describe(_device: devices.Device, change: devices.Change, _now: float) -> dict[str, Any]:
    """Return a Change in short, with a label and the power expected (W)."""
    return {
        "message_type": message_type(change),
        **instruction_fields(change),
        "label": LABELS[change.kind],
        "power": round(change.power),
    }
