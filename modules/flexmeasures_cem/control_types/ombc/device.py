"""Operation mode based control: a device of one actuator, read from its messages."""

from collections.abc import Mapping
from typing import Any

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.ombc as messages
from flexmeasures_s2.rules import Memory

DESCRIPTION, STATUS, TIMER_STATUS = messages.DESCRIPTION, messages.STATUS, messages.TIMER_STATUS


@pyscript_compile
def missing_message(memory: Memory) -> str | None:
    """Return which message is still missing to plan on, or None."""
    return None if (DESCRIPTION,) in memory else DESCRIPTION


@pyscript_compile
def valid_from(memory: Memory) -> float:
    """Return from when on the OMBC.SystemDescription holds (s since 1970)."""
    return float(memory[DESCRIPTION,].valid_from.timestamp())


@pyscript_compile
def read_device(memory: Memory) -> modes.Actuator:
    """Return the device of the OMBC.SystemDescription: one Actuator."""
    return modes.read(memory[DESCRIPTION,])


@pyscript_compile
def commodities_of(device: modes.Actuator) -> set[str]:
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of([device])


@pyscript_compile
def why_not_plannable(device: modes.Actuator) -> str | None:
    """Return why a device cannot be planned, or None."""
    return modes.why_not_plannable([device])


@pyscript_compile
def last_deadline(_device: modes.Actuator) -> float:
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


@pyscript_compile
def read_state(
    device: modes.Actuator,
    memory: Memory,
    status_received_at: Mapping[Any, float],
    plan: plans.Plan | None,
    now: float,
) -> modes.State:
    """Return the state of the device now: that of its status, or of an instruction since then.

    `status_received_at` has when the OMBC.Status came (s since 1970, by None, since there is one actuator);
    `plan` is the one in force, or None.
    """
    finished = transitions.finished(memory, (TIMER_STATUS,), now)
    change, status = plans.last_instructed(plan, now), memory.get((STATUS,))
    active = transitions.active(device, status, finished, change, status_received_at, now)
    return modes.State(now, {None: active})
