"""Rules about the content of messages that several control types share: each raises InvalidContent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from s2python.common import NumberRange, PowerForecastValue, PowerRange
from s2python.ddbc import DDBCActuatorDescription, DDBCActuatorStatus, DDBCOperationMode, DDBCTimerStatus
from s2python.frbc import FRBCActuatorDescription, FRBCActuatorStatus, FRBCOperationMode, FRBCTimerStatus
from s2python.ombc import OMBCOperationMode, OMBCStatus, OMBCSystemDescription, OMBCTimerStatus

import flexmeasures_s2.errors as errors

Key = tuple[str, ...]
"""What a message is remembered by: its message_type, and the ids that tell it from others of that type."""
Memory = Mapping[Key, Any]
"""The latest message of each key; its model depends on the message_type."""
Leniencies = dict[str, str]
"""What is accepted although S2 does not allow it, and the field where it occurs first."""
Check = Callable[[Memory, Any], Leniencies | None]
"""Checks a message against the memory; raises InvalidContent, and returns what it accepts leniently."""
Description = FRBCActuatorDescription | DDBCActuatorDescription | OMBCSystemDescription
OperationMode = FRBCOperationMode | DDBCOperationMode | OMBCOperationMode
ModeStatus = FRBCActuatorStatus | DDBCActuatorStatus | OMBCStatus
TimerStatus = FRBCTimerStatus | DDBCTimerStatus | OMBCTimerStatus
ActuatorMessage = FRBCActuatorStatus | FRBCTimerStatus | DDBCActuatorStatus | DDBCTimerStatus


class _Identified(Protocol):
    """A part of a message that other parts, or other messages, refer to by its id."""

    @property
    @pyscript_compile
    def id(self) -> object:
        """Return the id: text, though s2-python declares a UUID."""


Identified = _Identified


@pyscript_compile
def lookup[Item](items: Mapping[str, Item], field: str, item_id: object, noun: str) -> Item:
    """Return the item that the id in a field refers to; `noun` says what it should be."""
    item = items.get(str(item_id))
    if item is None:
        raise errors.InvalidContent(f"{field}: there is no {noun} {item_id}")
    return item


@pyscript_compile
def by_id[Item: Identified](items: Sequence[Item], field: str) -> dict[str, Item]:
    """Return items by their ids, which must be unique."""
    items_by_id = {str(item.id): item for item in items}
    if len(items_by_id) < len(items):
        ids = [str(item.id) for item in items]
        duplicate = next(item_id for item_id in ids if ids.count(item_id) > 1)
        raise errors.InvalidContent(f"{field}: the id {duplicate} occurs more than once")
    return items_by_id


@pyscript_compile
def check_range(field: str, number_range: NumberRange) -> None:
    """Check that a range does not end below its start."""
    if number_range.start_of_range > number_range.end_of_range:
        raise errors.InvalidContent(
            f"{field}: start_of_range {number_range.start_of_range} is above "
            f"end_of_range {number_range.end_of_range}"
        )


@pyscript_compile
def check_period(field: str, start: datetime, end: datetime | None) -> None:
    """Check that a period does not end before its start; `field` is that of its end."""
    if end is not None and end < start:
        raise errors.InvalidContent(f"{field}: {end.isoformat()} is before {start.isoformat()}")


@pyscript_compile
def check_quantities(field: str, values: Iterable[PowerRange | PowerForecastValue]) -> None:
    """Check that there is at most one value or range per commodity_quantity."""
    quantities = [value.commodity_quantity.value for value in values]
    if len(set(quantities)) < len(quantities):
        raise errors.InvalidContent(f"{field}: a commodity_quantity occurs more than once")


@pyscript_compile
def check_modes(field: str, description: Description) -> None:
    """Check the operation modes, timers and transitions of an actuator, or of an OMBC device."""
    modes: Mapping[str, OperationMode] = by_id(description.operation_modes, f"{field}operation_modes")
    timers = by_id(description.timers, f"{field}timers")
    by_id(description.transitions, f"{field}transitions")
    for number, transition in enumerate(description.transitions):
        at = f"{field}transitions[{number}]"
        lookup(modes, f"{at}.from", transition.from_, "operation mode")
        lookup(modes, f"{at}.to", transition.to, "operation mode")
        for timer_id in transition.start_timers:
            lookup(timers, f"{at}.start_timers", timer_id, "timer")
        for timer_id in transition.blocking_timers:
            lookup(timers, f"{at}.blocking_timers", timer_id, "timer")


@pyscript_compile
def check_mode_status(description: Description, status: ModeStatus) -> None:
    """Check which operation modes a status says are and were active, and its factor."""
    factor = status.operation_mode_factor
    if not 0 <= factor <= 1:
        raise errors.InvalidContent(f"operation_mode_factor: expected 0 to 1, got {factor}")
    modes = {str(mode.id): mode for mode in description.operation_modes}
    lookup(modes, "active_operation_mode_id", status.active_operation_mode_id, "operation mode")
    previous = status.previous_operation_mode_id
    if previous is not None:
        lookup(modes, "previous_operation_mode_id", previous, "operation mode")


@pyscript_compile
def check_timer_status(description: Description, status: TimerStatus) -> None:
    """Check that the timer of a status is one of an actuator's, or of an OMBC device's."""
    timers = {str(timer.id): timer for timer in description.timers}
    lookup(timers, "timer_id", status.timer_id, "timer")


@pyscript_compile
def description_of(memory: Memory, message_type: str) -> Any:
    """Return the description that a message refers to, a model of `message_type`."""
    description = memory.get((message_type,))
    if description is None:
        raise errors.InvalidContent(f"message_type: it refers to a {message_type}, which was not sent yet")
    return description


@pyscript_compile
def actuator_of(memory: Memory, message_type: str, message: ActuatorMessage) -> Any:
    """Return the actuator that a message refers to, as the description of `message_type` has it."""
    actuators = {str(actuator.id): actuator for actuator in description_of(memory, message_type).actuators}
    return lookup(actuators, "actuator_id", message.actuator_id, "actuator")
