"""Fill rate based control: what its messages refer to."""

import flexmeasures_s2.commodities as commodities
import flexmeasures_s2.content as content
import flexmeasures_s2.errors as errors

DESCRIPTION, LEAKAGE = "FRBC.SystemDescription", "FRBC.LeakageBehaviour"


@pyscript_compile
def system_description(_memory, message):
    """Check FRBC.SystemDescription."""
    content.ordered("storage.fill_level_range", message.storage.fill_level_range)
    for number, actuator in content.by_id(message.actuators, "actuators").items():
        at = f"actuators {number}: "
        supported = {each.value for each in actuator.supported_commodities}
        for mode in content.modes_and_transitions(at, actuator).values():
            for index, element in enumerate(mode.elements):
                field = f"{at}operation mode {mode.id}: elements[{index}]."
                content.ordered(f"{field}fill_level_range", element.fill_level_range)
                content.once_per_quantity(f"{field}power_ranges", element.power_ranges)
                covered = {
                    commodities.commodity_of(each.commodity_quantity.value) for each in element.power_ranges
                }
                if missing := supported - covered:
                    raise errors.InvalidContent(f"{field}power_ranges: there is none for {missing.pop()}")


@pyscript_compile
def actuator_status(memory, message):
    """Check FRBC.ActuatorStatus."""
    actuator = content.actuator(memory, DESCRIPTION, message)
    content.mode_status({mode.id: mode for mode in actuator.operation_modes}, message)


@pyscript_compile
def timer_status(memory, message):
    """Check FRBC.TimerStatus."""
    content.timer(content.actuator(memory, DESCRIPTION, message), message)


@pyscript_compile
def of_fill_levels(_memory, message):
    """Check the ranges of FRBC.FillLevelTargetProfile and FRBC.LeakageBehaviour."""
    for number, element in enumerate(message.elements):
        content.ordered(f"elements[{number}].fill_level_range", element.fill_level_range)


CHECKS = {
    DESCRIPTION: system_description,
    "FRBC.ActuatorStatus": actuator_status,
    "FRBC.TimerStatus": timer_status,
    "FRBC.StorageStatus": None,
    "FRBC.FillLevelTargetProfile": of_fill_levels,
    LEAKAGE: of_fill_levels,
    "FRBC.UsageForecast": None,
}
KEYS = {"FRBC.ActuatorStatus": ("actuator_id",), "FRBC.TimerStatus": ("actuator_id", "timer_id")}
