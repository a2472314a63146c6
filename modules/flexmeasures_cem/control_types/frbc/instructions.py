"""Instructions of fill rate based control: those of a plan, and those of a service call."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from s2python.frbc import FRBCActuatorDescription, FRBCOperationMode

import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.plan as frbc_plan
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.errors as errors
import flexmeasures_s2.rules as rules
import flexmeasures_s2.texts as texts
from flexmeasures_cem.control_types.memory import latest

INSTRUCTION = "FRBC.Instruction"
NEXT_SECONDS = 1.0
"""An instruction without an execution_time is executed this long after the call."""


@pyscript_compile
def instruction_fields(change: transitions.Change) -> dict[str, Any]:
    """Return the fields of the FRBC.Instruction of a Change, without its ids and execution_time."""
    return {
        "actuator_id": change.actuator,
        "operation_mode": change.mode,
        "operation_mode_factor": round(change.factor, 6) + 0.0,
        "abnormal_condition": False,
    }


@pyscript_compile
def message_type(_change: transitions.Change) -> str:
    """Return the type of the instruction of a Change."""
    return INSTRUCTION


@pyscript_compile
def describe(device: devices.Device, change: transitions.Change, _now: float) -> dict[str, Any]:
    """Return a Change as users read it, with the label of its operation mode and the expected power (W)."""
    label = transitions.label_of(device.actuators, change)
    return {**instruction_fields(change), "label": label, "power": round(change.power)}


@pyscript_compile
def missed_targets(plan: frbc_plan.Plan) -> list[dict[str, Any]]:
    """Return the missed fill level targets of a plan as users read them."""
    return [
        {
            "datetime": plans.moment(missed.moment),
            "asked": missed.lowest if missed.reached < missed.lowest else missed.highest,
            "reached": round(missed.reached, 3),
        }
        for missed in plan.missed
    ]


@pyscript_compile
def present_changes(device: devices.Device, state: devices.State, moment: float) -> list[transitions.Change]:
    """Return the Changes that keep actuators in their present modes; none for abnormal conditions."""
    changes = []
    for actuator in device.actuators:
        active = state.actuators[actuator.id]
        if mode := transitions.mode_of(actuator.modes, active.mode):
            factor = devices.FIXED_FACTOR if mode.is_fixed else active.factor
            power = devices.power_of(devices.element_at(mode, state.level), factor)
            changes.append(transitions.Change(moment, actuator.id, mode.id, factor, power, active))
    return changes


@pyscript_compile
def refuse_without_description(memory: rules.Memory) -> None:
    """Raise InvalidInstruction as long as there is no FRBC.SystemDescription."""
    if latest(memory, devices.DESCRIPTION) is None:
        raise errors.InvalidInstruction(
            f"resource_id: it has not sent {devices.DESCRIPTION} yet: call again later"
        )


@pyscript_compile
def checked(
    memory: rules.Memory, state: devices.State | None, call: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Return the fields of the FRBC.Instruction of a service call; raise InvalidInstruction.

    The operation mode is given by its id or label; without an `actuator_id` there must be only one actuator.
    There must be a transition from the active mode, which no timer blocks at the execution_time.
    """
    refuse_without_description(memory)
    actuators = latest(memory, devices.DESCRIPTION).actuators
    names = ids_and_labels(actuators)
    asked = call.get("actuator_id")
    if asked is None and len(actuators) > 1:
        raise errors.InvalidInstruction(f"actuator_id: there are several, give one of {names}")
    actuator = next(
        (actuator for actuator in actuators if asked in (None, actuator.id, actuator.diagnostic_label)), None
    )
    if actuator is None:
        raise errors.InvalidInstruction(f"actuator_id: there is no {texts.quoted(asked)!r}, but {names}")
    is_abnormal = call.get("abnormal_condition", False)
    mode = mode_of(actuator, call["operation_mode"])
    if mode.abnormal_condition_only and not is_abnormal:
        raise errors.InvalidInstruction(
            f"operation_mode: {transitions.short_label(mode)} is for an abnormal condition only: in that "
            f"case give abnormal_condition: true"
        )
    executed = call["execution_time"].timestamp() if "execution_time" in call else now + NEXT_SECONDS
    if executed < now - NEXT_SECONDS:
        raise errors.InvalidInstruction(
            f"execution_time: {call['execution_time'].isoformat()} is past: leave it out for now"
        )
    if state:
        check_transition(actuator, mode, is_abnormal, state.actuators[str(actuator.id)], executed)
    return {
        "id": call.get("id") or call.get("message_id") or str(uuid.uuid4()),
        "actuator_id": actuator.id,
        "operation_mode": mode.id,
        "message_id": call.get("message_id"),
        "operation_mode_factor": call.get("operation_mode_factor", 1.0),
        "execution_time": plans.moment(max(executed, now + NEXT_SECONDS)),
        "abnormal_condition": is_abnormal,
    }


@pyscript_compile
def ids_and_labels(described: Iterable[transitions.Labelled]) -> str:
    """Return the ids and labels of the first modes or actuators."""
    return texts.few(f"{texts.quoted(item.id)} ({transitions.short_label(item)})" for item in described)


@pyscript_compile
def mode_of(actuator: FRBCActuatorDescription, id_or_label: str) -> FRBCOperationMode:
    """Return an actuator's mode by its id or label."""
    modes = actuator.operation_modes
    matching = [mode for mode in modes if mode.id == id_or_label] or [
        mode for mode in modes if mode.diagnostic_label == id_or_label
    ]
    if len(matching) != 1:
        wrong = "several are called" if matching else "there is no"
        raise errors.InvalidInstruction(
            f"operation_mode: {wrong} {texts.quoted(id_or_label)!r}, but {ids_and_labels(modes)}"
        )
    return matching[0]


@pyscript_compile
def check_transition(
    actuator: FRBCActuatorDescription,
    mode: FRBCOperationMode,
    is_abnormal: bool,
    state: transitions.Active,
    executed: float,
) -> None:
    """Raise InvalidInstruction if no transition leads to a mode, or a timer blocks it when executed."""
    if state.mode in (None, str(mode.id)):
        return
    if state.mode not in [str(described.id) for described in actuator.operation_modes]:
        return
    ways = [
        transition
        for transition in actuator.transitions
        if str(transition.from_) == state.mode
        and transition.to == mode.id
        and (is_abnormal or not transition.abnormal_condition_only)
    ]
    if not ways:
        names = {
            str(described.id): transitions.short_label(described) for described in actuator.operation_modes
        }
        reachable = {
            names[str(transition.to)]
            for transition in actuator.transitions
            if str(transition.from_) == state.mode
        }
        raise errors.InvalidInstruction(
            f"operation_mode: from {names[state.mode]}, which is active, there is no transition to "
            f"{names[str(mode.id)]}; there is one to {texts.few(sorted(reachable)) or 'none'}"
        )
    free = min(
        max([state.timers.get(str(timer), 0.0) for timer in way.blocking_timers], default=0) for way in ways
    )
    if free > executed:
        raise errors.InvalidInstruction(
            f"operation_mode: a timer blocks the transition until {plans.moment(free).isoformat()}: give "
            f"a later execution_time"
        )


@pyscript_compile
def change_of(
    device: devices.Device, state: devices.State, given: Mapping[str, Any]
) -> tuple[transitions.Change, devices.Mode] | tuple[None, None]:
    """Return (Change, mode) of an instruction, or (None, None) for a mode that no plan may use."""
    actuator = next(actuator for actuator in device.actuators if actuator.id == given["actuator_id"])
    mode = actuator.modes.get(given["operation_mode"])
    if mode is None:
        return None, None
    before, factor, at = state.actuators[actuator.id], given["operation_mode_factor"], given["execution_time"]
    power = devices.power_of(devices.element_at(mode, state.level), factor)
    active = transitions.Active(mode.id, factor, at.timestamp(), before.timers)
    for transition in transitions.leaving(actuator, before.mode):
        if transition.to == mode.id:
            end = at.timestamp() + transition.duration
            timers = {timer: at.timestamp() + actuator.durations[timer] for timer in transition.start_timers}
            active = transitions.Active(mode.id, factor, end, before.timers | timers)
    return transitions.Change(at.timestamp(), actuator.id, mode.id, factor, power, active), mode
