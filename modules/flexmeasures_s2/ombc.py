"""Operation mode based control: what its messages refer to."""

import flexmeasures_s2.content as content

DESCRIPTION = "OMBC.SystemDescription"


@pyscript_compile
def system_description(_memory, message):
    """Check OMBC.SystemDescription."""
    for mode in content.modes_and_transitions("", message).values():
        content.once_per_quantity(f"operation mode {mode.id}: power_ranges", mode.power_ranges)


@pyscript_compile
def status(memory, message):
    """Check OMBC.Status."""
    modes = content.described(memory, DESCRIPTION).operation_modes
    content.mode_status({mode.id: mode for mode in modes}, message)


@pyscript_compile
def timer_status(memory, message):
    """Check OMBC.TimerStatus."""
    content.timer(content.described(memory, DESCRIPTION), message)


CHECKS = {DESCRIPTION: system_description, "OMBC.Status": status, "OMBC.TimerStatus": timer_status}
KEYS = {"OMBC.TimerStatus": ("timer_id",)}
