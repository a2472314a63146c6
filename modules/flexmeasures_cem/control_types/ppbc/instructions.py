"""Instructions of power profile based control."""

import flexmeasures_cem.control_types.ppbc.device as profiles

LABELS = {profiles.START: "start", profiles.PAUSE: "pause", profiles.RESUME: "go on"}


@pyscript_compile
def message_type(change):
    """Return the type of the message that tells a change."""
    return f"PPBC.{change.kind}"


@pyscript_compile
def instruction_fields(change):
    """Return the fields of the instruction that a change calls for, but for its ids and execution_time."""
    return {
        "power_profile_id": change.profile,
        "sequence_container_id": change.container,
        "power_sequence_id": change.sequence,
        "abnormal_condition": False,
    }


@pyscript_compile
def is_same_instruction(one, other):
    """Tell whether two changes come to the same instruction."""
    same = (one.kind, one.actuator, one.sequence) == (other.kind, other.actuator, other.sequence)
    return same and abs(one.moment - other.moment) < 1.0


@pyscript_compile
def describe(_found, change, _now):
    """Return what a change says, in short, with a label and the power expected (W)."""
    return {
        "message_type": message_type(change),
        **instruction_fields(change),
        "label": LABELS[change.kind],
        "power": round(change.power),
    }
