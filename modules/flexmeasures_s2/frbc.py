"""Fill rate based control: what its messages refer to."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from s2python.frbc import (
    FRBCActuatorStatus,
    FRBCFillLevelTargetProfile,
    FRBCFillLevelTargetProfileElement,
    FRBCLeakageBehaviour,
    FRBCLeakageBehaviourElement,
    FRBCOperationModeElement,
    FRBCSystemDescription,
    FRBCTimerStatus,
)

import flexmeasures_s2.commodities as commodities
import flexmeasures_s2.errors as errors
import flexmeasures_s2.rules as rules

DESCRIPTION, LEAKAGE = "FRBC.SystemDescription", "FRBC.LeakageBehaviour"
ACTUATOR_STATUS, TIMER_STATUS = "FRBC.ActuatorStatus", "FRBC.TimerStatus"
NO_POWER_RANGE = "a supported commodity without a power range is taken to have no power"
GAP = "in a gap between fill levels, the element below the gap applies"


@pyscript_compile
def system_description(_memory: rules.Memory, message: FRBCSystemDescription) -> rules.Leniencies:
    """Check FRBC.SystemDescription; accept gaps between elements, and commodities without a range."""
    rules.check_range("storage.fill_level_range", message.storage.fill_level_range)
    leniencies: rules.Leniencies = {}
    for actuator_id, actuator in rules.by_id(message.actuators, "actuators").items():
        at = f"actuators {actuator_id}: "
        supported = {commodity.value for commodity in actuator.supported_commodities}
        rules.check_modes(at, actuator)
        for mode in actuator.operation_modes:
            elements = f"{at}operation mode {mode.id}: elements"
            for index, element in enumerate(mode.elements):
                field = f"{elements}[{index}]."
                rules.check_range(f"{field}fill_level_range", element.fill_level_range)
                rules.check_quantities(f"{field}power_ranges", element.power_ranges)
                if supported - commodities_of(element):
                    leniencies.setdefault(NO_POWER_RANGE, f"{field}power_ranges")
            if has_gap(elements, mode.elements):
                leniencies.setdefault(GAP, elements)
    return leniencies


@pyscript_compile
def commodities_of(element: FRBCOperationModeElement) -> set[str]:
    """Return the commodities that an element has power ranges of."""
    return {commodities.commodity_of(power.commodity_quantity.value) for power in element.power_ranges}


@pyscript_compile
def has_gap(field: str, elements: Iterable[FRBCOperationModeElement]) -> bool:
    """Return whether there is a gap between the fill levels of elements; they must not overlap."""
    levels = [element.fill_level_range for element in elements]
    ranges = sorted({(level.start_of_range, level.end_of_range) for level in levels})
    for (start, end), (next_start, next_end) in pairwise(ranges):
        if next_start < end:
            raise errors.InvalidContent(
                f"{field}: the fill_level_range {start:g} to {end:g} overlaps with "
                f"{next_start:g} to {next_end:g}"
            )
    return any(next_start > end for (_start, end), (next_start, _end) in pairwise(ranges))


@pyscript_compile
def actuator_status(memory: rules.Memory, message: FRBCActuatorStatus) -> None:
    """Check FRBC.ActuatorStatus."""
    rules.check_mode_status(rules.actuator_of(memory, DESCRIPTION, message), message)


@pyscript_compile
def timer_status(memory: rules.Memory, message: FRBCTimerStatus) -> None:
    """Check FRBC.TimerStatus."""
    rules.check_timer_status(rules.actuator_of(memory, DESCRIPTION, message), message)


@pyscript_compile
def fill_level_ranges(
    _memory: rules.Memory, message: FRBCFillLevelTargetProfile | FRBCLeakageBehaviour
) -> None:
    """Check the ranges of FRBC.FillLevelTargetProfile and FRBC.LeakageBehaviour."""
    elements: Sequence[FRBCFillLevelTargetProfileElement | FRBCLeakageBehaviourElement] = message.elements
    for number, element in enumerate(elements):
        rules.check_range(f"elements[{number}].fill_level_range", element.fill_level_range)


CHECKS: dict[str, rules.Check | None] = {
    DESCRIPTION: system_description,
    ACTUATOR_STATUS: actuator_status,
    TIMER_STATUS: timer_status,
    "FRBC.StorageStatus": None,
    "FRBC.FillLevelTargetProfile": fill_level_ranges,
    LEAKAGE: fill_level_ranges,
    "FRBC.UsageForecast": None,
}
KEYS = {ACTUATOR_STATUS: ("actuator_id",), TIMER_STATUS: ("actuator_id", "timer_id")}
