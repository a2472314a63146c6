"""Power envelope based control: what its messages refer to."""

import flexmeasures_s2.content as content
import flexmeasures_s2.errors as errors

UPSIDE_DOWN = "its start_of_range is above its end_of_range: it is put in order"


@pyscript_compile
def power_constraints(_memory: dict, message: object) -> dict:
    """Check PEBC.PowerConstraints; return the first range that is upside down: no factor belongs to it."""
    content.in_time("valid_until", message.valid_from, message.valid_until)
    for number, limit in enumerate(message.allowed_limit_ranges):
        if limit.range_boundary.start_of_range > limit.range_boundary.end_of_range:
            return {UPSIDE_DOWN: f"allowed_limit_ranges[{number}].range_boundary"}
    return {}


@pyscript_compile
def energy_constraint(_memory, message):
    """Check PEBC.EnergyConstraint."""
    content.in_time("valid_until", message.valid_from, message.valid_until)
    if message.lower_average_power > message.upper_average_power:
        raise errors.InvalidContent("lower_average_power: it is above upper_average_power")


CHECKS = {"PEBC.PowerConstraints": power_constraints, "PEBC.EnergyConstraint": energy_constraint}
KEYS = {"PEBC.PowerConstraints": ("id",), "PEBC.EnergyConstraint": ("id",)}
