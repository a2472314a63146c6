"""Power envelope based control: what its messages refer to."""

from s2python.pebc import PEBCEnergyConstraint, PEBCPowerConstraints

import flexmeasures_s2.errors as errors
import flexmeasures_s2.rules as rules

POWER_CONSTRAINTS, ENERGY_CONSTRAINT = "PEBC.PowerConstraints", "PEBC.EnergyConstraint"
UPSIDE_DOWN = "start_of_range is above end_of_range: they are swapped"


@pyscript_compile
def power_constraints(_memory: rules.Memory, message: PEBCPowerConstraints) -> rules.Leniencies:
    """Check PEBC.PowerConstraints; accept a range_boundary that is upside down, as no factor refers to it."""
    rules.check_period("valid_until", message.valid_from, message.valid_until)
    for number, limit in enumerate(message.allowed_limit_ranges):
        if limit.range_boundary.start_of_range > limit.range_boundary.end_of_range:
            return {UPSIDE_DOWN: f"allowed_limit_ranges[{number}].range_boundary"}
    return {}


@pyscript_compile
def energy_constraint(_memory: rules.Memory, message: PEBCEnergyConstraint) -> None:
    """Check PEBC.EnergyConstraint."""
    rules.check_period("valid_until", message.valid_from, message.valid_until)
    lower, upper = message.lower_average_power, message.upper_average_power
    if lower > upper:
        raise errors.InvalidContent(
            f"lower_average_power: {lower:g} W is above the upper_average_power, {upper:g} W"
        )


CHECKS: dict[str, rules.Check | None] = {
    POWER_CONSTRAINTS: power_constraints,
    ENERGY_CONSTRAINT: energy_constraint,
}
KEYS = {POWER_CONSTRAINTS: ("id",), ENERGY_CONSTRAINT: ("id",)}
