"""Demand driven based control: what its messages refer to."""

from typing import Any

from s2python.ddbc import DDBCActuatorStatus, DDBCSystemDescription, DDBCTimerStatus

import flexmeasures_s2.errors as errors
import flexmeasures_s2.rules as rules

DESCRIPTION, PRESENT_DEMAND = "DDBC.SystemDescription", "DDBC.PresentDemandStatus"
ACTUATOR_STATUS, TIMER_STATUS = "DDBC.ActuatorStatus", "DDBC.TimerStatus"


@pyscript_compile
def system_description(memory: rules.Memory, message: DDBCSystemDescription) -> None:
    """Check DDBC.SystemDescription."""
    present_demand_status(memory, message)
    for actuator_id, actuator in rules.by_id(message.actuators, "actuators").items():
        at = f"actuators {actuator_id}: "
        rules.check_modes(at, actuator)
        for mode in actuator.operation_modes:
            field = f"{at}operation mode {mode.id}: "
            rules.check_quantities(f"{field}power_ranges", mode.power_ranges)
            if not mode.supply_range:
                raise errors.InvalidContent(f"{field}supply_range: expected a range")


@pyscript_compile
def present_demand_status(_memory: rules.Memory, message: Any) -> None:
    """Check DDBC.PresentDemandStatus, or the demand rate of a description: S2 1.0.0 has none there."""
    if message.present_demand_rate is not None:
        rules.check_range("present_demand_rate", message.present_demand_rate)


@pyscript_compile
def present_demand(memory: rules.Memory) -> Any:
    """Return the latest message with a present_demand_rate, or None.

    It is a DDBC.PresentDemandStatus, or up to S2 0.0.2-beta a DDBC.SystemDescription.
    """
    latest = None
    for message in memory.values():  # in the order in which they came into force
        if message.message_type in (DESCRIPTION, PRESENT_DEMAND) and message.present_demand_rate is not None:
            latest = message
    return latest


@pyscript_compile
def actuator_status(memory: rules.Memory, message: DDBCActuatorStatus) -> None:
    """Check DDBC.ActuatorStatus."""
    rules.check_mode_status(rules.actuator_of(memory, DESCRIPTION, message), message)


@pyscript_compile
def timer_status(memory: rules.Memory, message: DDBCTimerStatus) -> None:
    """Check DDBC.TimerStatus."""
    rules.check_timer_status(rules.actuator_of(memory, DESCRIPTION, message), message)


CHECKS: dict[str, rules.Check | None] = {
    DESCRIPTION: system_description,
    PRESENT_DEMAND: present_demand_status,
    ACTUATOR_STATUS: actuator_status,
    TIMER_STATUS: timer_status,
    "DDBC.AverageDemandRateForecast": None,
}
KEYS = {ACTUATOR_STATUS: ("actuator_id",), TIMER_STATUS: ("actuator_id", "timer_id")}
