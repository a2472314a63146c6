"""Operation mode based control: what its messages refer to."""

from s2python.ombc import OMBCStatus, OMBCSystemDescription, OMBCTimerStatus

import flexmeasures_s2.rules as rules

DESCRIPTION, STATUS, TIMER_STATUS = "OMBC.SystemDescription", "OMBC.Status", "OMBC.TimerStatus"


@pyscript_compile
def system_description(_memory: rules.Memory, message: OMBCSystemDescription) -> None:
    """Check OMBC.SystemDescription."""
    rules.check_modes("", message)
    for mode in message.operation_modes:
        rules.check_quantities(f"operation mode {mode.id}: power_ranges", mode.power_ranges)


@pyscript_compile
def status(memory: rules.Memory, message: OMBCStatus) -> None:
    """Check OMBC.Status."""
    rules.check_mode_status(rules.description_of(memory, DESCRIPTION), message)


@pyscript_compile
def timer_status(memory: rules.Memory, message: OMBCTimerStatus) -> None:
    """Check OMBC.TimerStatus."""
    rules.check_timer_status(rules.description_of(memory, DESCRIPTION), message)


CHECKS: dict[str, rules.Check | None] = {
    DESCRIPTION: system_description,
    STATUS: status,
    TIMER_STATUS: timer_status,
}
KEYS = {TIMER_STATUS: ("timer_id",)}
