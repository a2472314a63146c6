"""Instructions of power envelope based control."""

import math
import uuid
from dataclasses import dataclass
from typing import Any

import flexmeasures_cem.control_types.pebc.device as devices
import flexmeasures_cem.control_types.pebc.plan as pebc_plan
import flexmeasures_cem.control_types.plans as plans

INSTRUCTION = "PEBC.Instruction"
MAX_UPCOMING = 100


@dataclass(frozen=True)
class _Step:
    """One element of a Change: the limits from a moment on, and the power (W) expected then."""

    moment: float
    power: float
    constraints: str
    limits: devices.Limits
    widest: devices.Limits
    actuator: str | None = None


Step = _Step


@pyscript_compile
def message_type(change: pebc_plan.Change) -> str:
    """Return the type of the instruction of a Change."""
    return INSTRUCTION


@pyscript_compile
def instruction_fields(change: pebc_plan.Change) -> dict[str, Any]:
    """Return the fields of the PEBC.Instruction of a Change, without its ids and execution_time."""
    return {
        "power_constraints_id": change.constraints,
        "abnormal_condition": False,
        "power_envelopes": [
            {
                "id": str(uuid.uuid4()),
                "commodity_quantity": name,
                "power_envelope_elements": envelope(change, name),
            }
            for name in change.widest
        ],
    }


@pyscript_compile
def envelope(change: pebc_plan.Change, name: str) -> list[dict[str, Any]]:
    """Return the elements of a quantity's envelope; durations are in ms."""
    envelope_elements, pieces = (
        [],
        [(element.start, element.end, element.limits[name]) for element in change.elements],
    )
    for start, end, (upper, lower) in pebc_plan.joined(pieces):
        duration = round(end * 1000) - round(start * 1000)
        envelope_elements.append({"duration": duration, "upper_limit": upper, "lower_limit": lower})
    return envelope_elements


@pyscript_compile
def describe(_device: devices.Device, change: pebc_plan.Change | Step, now: float) -> dict[str, Any]:
    """Return a Step, or the present (or first) Step of a Change, as users read it."""
    step = change if isinstance(change, Step) else step_of(change, max(now, change.moment))
    names = devices.carriers(step.limits) or list(step.limits)[:1]
    return {
        "power_constraints_id": step.constraints,
        "commodity_quantity": " + ".join(names),
        "upper_limit": sum(step.limits[name][0] for name in names),
        "lower_limit": sum(step.limits[name][1] for name in names),
        "label": "unlimited" if pebc_plan.same(step.limits, step.widest) else "limited",
        "power": round(step.power),
    }


@pyscript_compile
def step_of(change: pebc_plan.Change, moment: float) -> Step:
    """Return the Step of a Change at a moment."""
    limits = devices.limits_at(change.elements, moment) or change.elements[-1].limits
    return Step(moment, plans.power_at(change, moment), change.constraints, limits, change.widest)


@pyscript_compile
def upcoming(plan: pebc_plan.Plan, now: float) -> list[Step]:
    """Return the Steps after `now`, in order."""
    steps: list[Step] = []
    for place, change in enumerate(plan.changes):
        end = plan.changes[place + 1].moment if place + 1 < len(plan.changes) else math.inf
        for element in change.elements:
            if now < element.start < end and len(steps) < MAX_UPCOMING:
                steps.append(step_of(change, element.start))
    return steps


@pyscript_compile
def missed_targets(plan: pebc_plan.Plan) -> list[dict[str, Any]]:
    """Return the missed energy constraints (kWh) of a plan as users read them."""
    return [
        {
            "datetime": plans.moment(missed.moment),
            "asked": round(missed.asked / 1000, 3),
            "reached": round(missed.reached / 1000, 3),
        }
        for missed in plan.missed
    ]
