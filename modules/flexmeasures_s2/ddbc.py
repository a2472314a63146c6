"""Demand driven based control: what its messages refer to."""

import flexmeasures_s2.content as content
import flexmeasures_s2.errors as errors

DESCRIPTION, PRESENT_DEMAND = "DDBC.SystemDescription", "DDBC.PresentDemandStatus"


@pyscript_compile
def system_description(_memory, message):
    """Check DDBC.SystemDescription."""
    present_demand_status(_memory, message)
    for number, actuator in content.by_id(message.actuators, "actuators").items():
        for mode in content.modes_and_transitions(f"actuators {number}: ", actuator).values():
            field = f"actuators {number}: operation mode {mode.id}: "
            content.once_per_quantity(f"{field}power_ranges", mode.power_ranges)
            if not mode.supply_range:
                raise errors.InvalidContent(f"{field}supply_range: expected a range")


@pyscript_compile
def present_demand_status(_memory: dict, message: object) -> None:
    """Check DDBC.PresentDemandStatus, or what a description says of the demand; newer ones say nothing."""
    if message.present_demand_rate is not None:
        content.ordered("present_demand_rate", message.present_demand_rate)


@pyscript_compile
def present_demand(memory: dict) -> object | None:
    """Return the latest message with a demand rate: a DDBC.PresentDemandStatus, or a description; or None."""
    latest = None
    for message in memory.values():  # in the order in which they came into force
        if message.message_type in (DESCRIPTION, PRESENT_DEMAND) and message.present_demand_rate is not None:
            latest = message
    return latest


@pyscript_compile
def actuator_status(memory, message):
    """Check DDBC.ActuatorStatus."""
    actuator = content.actuator(memory, DESCRIPTION, message)
    content.mode_status({mode.id: mode for mode in actuator.operation_modes}, message)


@pyscript_compile
def timer_status(memory, message):
    """Check DDBC.TimerStatus."""
    content.timer(content.actuator(memory, DESCRIPTION, message), message)


CHECKS = {
    DESCRIPTION: system_description,
    PRESENT_DEMAND: present_demand_status,
    "DDBC.ActuatorStatus": actuator_status,
    "DDBC.TimerStatus": timer_status,
    "DDBC.AverageDemandRateForecast": None,
}
KEYS = {"DDBC.ActuatorStatus": ("actuator_id",), "DDBC.TimerStatus": ("actuator_id", "timer_id")}
