"""Rules that several control types share, on what a message says: each raises InvalidContent."""

import flexmeasures_s2.errors as errors


@pyscript_compile
def known(found, field, value, what):
    """Return what an id refers to, of `found` by their ids."""
    if value not in found:
        raise errors.InvalidContent(f"{field}: there is no {what} {value}")
    return found[value]


@pyscript_compile
def by_id(items, field):
    """Return items by their ids, each of which must be there once."""
    found = {item.id: item for item in items}
    if len(found) < len(items):
        ids = [item.id for item in items]
        twice = next(each for each in ids if ids.count(each) > 1)
        raise errors.InvalidContent(f"{field}: the id {twice} is there more than once")
    return found


@pyscript_compile
def factor(message):
    """Check an operation_mode_factor."""
    if not 0 <= message.operation_mode_factor <= 1:
        raise errors.InvalidContent(
            f"operation_mode_factor: expected 0 to 1, got {message.operation_mode_factor}"
        )


@pyscript_compile
def ordered(field, number_range):
    """Check that a range does not end before its start."""
    if number_range.start_of_range > number_range.end_of_range:
        raise errors.InvalidContent(
            f"{field}: start_of_range {number_range.start_of_range} is above "
            f"end_of_range {number_range.end_of_range}"
        )


@pyscript_compile
def in_time(field, start, end):
    """Check that a period does not end before its start."""
    if end is not None and end < start:
        raise errors.InvalidContent(f"{field}: {end.isoformat()} is before {start.isoformat()}")


@pyscript_compile
def described(memory, message_type):
    """Return the description that a message refers to."""
    found = memory.get((message_type,))
    if found is None:
        raise errors.InvalidContent(f"message_type: it refers to a {message_type}, which was not sent yet")
    return found


@pyscript_compile
def once_per_quantity(field, power_values):
    """Check that there is one value or range per commodity quantity."""
    quantities = [each.commodity_quantity.value for each in power_values]
    if len(set(quantities)) < len(quantities):
        raise errors.InvalidContent(f"{field}: a commodity_quantity is there more than once")


@pyscript_compile
def modes_and_transitions(field, described_by):
    """Check the operation modes, timers and transitions of an actuator, or of a whole device."""
    modes = by_id(described_by.operation_modes, f"{field}operation_modes")
    timers = by_id(described_by.timers, f"{field}timers")
    by_id(described_by.transitions, f"{field}transitions")
    for number, transition in enumerate(described_by.transitions):
        at = f"{field}transitions[{number}]"
        known(modes, f"{at}.from", transition.from_, "operation mode")
        known(modes, f"{at}.to", transition.to, "operation mode")
        for name in ("start_timers", "blocking_timers"):
            for timer in getattr(transition, name):
                known(timers, f"{at}.{name}", timer, "timer")
    return modes


@pyscript_compile
def mode_status(modes, message):
    """Check which operation modes a status says are and were active."""
    factor(message)
    known(modes, "active_operation_mode_id", message.active_operation_mode_id, "operation mode")
    if message.previous_operation_mode_id is not None:
        known(modes, "previous_operation_mode_id", message.previous_operation_mode_id, "operation mode")


@pyscript_compile
def actuator(memory, message_type, message):
    """Return the actuator that a message refers to."""
    actuators = {each.id: each for each in described(memory, message_type).actuators}
    return known(actuators, "actuator_id", message.actuator_id, "actuator")


@pyscript_compile
def timer(described_by, message):
    """Check that a timer is one of an actuator's, or of a whole device's."""
    known({each.id: each for each in described_by.timers}, "timer_id", message.timer_id, "timer")
