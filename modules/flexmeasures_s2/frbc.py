"""Fill rate based control: what its messages refer to."""

from itertools import pairwise

import flexmeasures_s2.commodities as commodities
import flexmeasures_s2.content as content
import flexmeasures_s2.errors as errors

DESCRIPTION, LEAKAGE = "FRBC.SystemDescription", "FRBC.LeakageBehaviour"
NO_POWER_RANGE = "a supported commodity without a range counts as no power of it"
GAP = "in a gap between fill levels, the element below holds"


@pyscript_compile
def system_description(_memory: dict, message: object) -> dict:
    """Check FRBC.SystemDescription; return the first gap between elements, and commodity without a range."""
    content.ordered("storage.fill_level_range", message.storage.fill_level_range)
    leniencies = {}
    for number, actuator in content.by_id(message.actuators, "actuators").items():
        at = f"actuators {number}: "
        supported = {each.value for each in actuator.supported_commodities}
        for mode in content.modes_and_transitions(at, actuator).values():
            of_mode = f"{at}operation mode {mode.id}: "
            for index, element in enumerate(mode.elements):
                field = f"{of_mode}elements[{index}]."
                content.ordered(f"{field}fill_level_range", element.fill_level_range)
                content.once_per_quantity(f"{field}power_ranges", element.power_ranges)
                covered = {
                    commodities.commodity_of(each.commodity_quantity.value) for each in element.power_ranges
                }
                if supported - covered:
                    leniencies.setdefault(NO_POWER_RANGE, f"{field}power_ranges")
            if has_gap(f"{of_mode}elements", mode.elements):
                leniencies.setdefault(GAP, f"{of_mode}elements")
    return leniencies


@pyscript_compile
def has_gap(field: str, elements: list) -> bool:
    """Return whether the fill levels of elements leave a gap; raise InvalidContent where they overlap."""
    ranges = sorted(
        {(each.fill_level_range.start_of_range, each.fill_level_range.end_of_range) for each in elements}
    )
    for (start, end), (following, last) in pairwise(ranges):
        if following < end:
            raise errors.InvalidContent(
                f"{field}: the fill_level_range {start:g} to {end:g} overlaps with {following:g} to {last:g}"
            )
    return any(following > end for (_start, end), (following, _last) in pairwise(ranges))


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
