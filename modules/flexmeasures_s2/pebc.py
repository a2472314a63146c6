"""Power envelope based control: what its messages refer to."""

import flexmeasures_s2.content as content
import flexmeasures_s2.errors as errors


@pyscript_compile
def power_constraints(_memory, message):
    """Check PEBC.PowerConstraints."""
    content.in_time("valid_until", message.valid_from, message.valid_until)
    for number, limit in enumerate(message.allowed_limit_ranges):
        content.ordered(f"allowed_limit_ranges[{number}].range_boundary", limit.range_boundary)


@pyscript_compile
def energy_constraint(_memory, message):
    """Check PEBC.EnergyConstraint."""
    content.in_time("valid_until", message.valid_from, message.valid_until)
    if message.lower_average_power > message.upper_average_power:
        raise errors.InvalidContent("lower_average_power: it is above upper_average_power")


CHECKS = {"PEBC.PowerConstraints": power_constraints, "PEBC.EnergyConstraint": energy_constraint}
KEYS = {"PEBC.PowerConstraints": ("id",), "PEBC.EnergyConstraint": ("id",)}
