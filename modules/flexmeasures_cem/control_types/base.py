"""What a control type is: the facts and functions that the planning of its devices needs.

Moments are seconds since 1970, power is W of electricity, consumption positive. `memory` has the
messages in force of a session, by their keys; `device` and `state` are of the control type's own kinds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class _ControlType:
    """A control type of S2, and how a device is planned under it.

    Facts: its `name` in S2, the `describing_messages` that change the problem, the class of its plans,
    `flexibility` (the device of least is planned first), whether an actuator `keeps_mode` until it is told
    another one, whether instructions are `sent_when_planned` (a start, or an envelope over time), and whether
    an instruction `has_own_timing`, so that it is sent no later than that.

    The device (device.py): `missing_message(memory)` that is still to come, or None; `valid_from(memory)`;
    `read_device(memory)`; `why_not_plannable(device)`, or None; the `last_deadline(device)` that a plan has
    to reach, or 0; `read_state(device, memory, status_received_at, plan, now)`; `commodities_of(device)`
    beside electricity.

    The model (model.py): `grid_edges(device, state)` where something may change within a step;
    `add_to_site(site, device, state, schedule, tariffs, storage_terms)`, which returns the part of the site's
    program that makes the plan; `flex_model(device, state, sensors, window)` for FlexMeasures, or None where
    it is never asked; `energy_per_fill_level(device, configured)` of a storage (J, or None).

    Instructions (instructions.py): `message_type(change)`, `instruction_fields(change)`,
    `describe(device, change, now)`, `is_same_instruction(one, other)`, `upcoming(plan, now)`,
    `missed_targets(plan)`, and `present_changes(device, state, moment)` to what it does already.

    Monitoring (monitoring.py): `planned_power(plan, start, seconds)`; `deviation(device, plan, message, now)`
    and `power_deviation(device, plan, power, now)` in words, or None; `power_tolerance(device)`;
    `has_changed(device, state, message)` since it was planned; `resumed(device, plan, reconnection)`, the
    plan to go on with after a reconnect, or None.
    """

    name: str
    describing_messages: tuple[str, ...]
    plan_class: type
    flexibility: int
    keeps_mode: bool = False
    sent_when_planned: bool = False
    has_own_timing: bool = False

    missing_message: Callable[..., str | None]
    valid_from: Callable[..., float]
    read_device: Callable[..., Any]
    why_not_plannable: Callable[..., str | None]
    last_deadline: Callable[..., float]
    read_state: Callable[..., Any]
    commodities_of: Callable[..., Any] | None = None

    grid_edges: Callable[..., list[float]]
    add_to_site: Callable[..., Any]
    flex_model: Callable[..., Any] | None = None
    energy_per_fill_level: Callable[..., Any] | None = None

    message_type: Callable[..., str]
    instruction_fields: Callable[..., dict[str, Any]]
    describe: Callable[..., dict[str, Any]]
    is_same_instruction: Callable[..., bool]
    upcoming: Callable[..., list[Any]]
    missed_targets: Callable[..., list[dict[str, Any]]]
    present_changes: Callable[..., list[Any]] | None = None

    planned_power: Callable[..., float]
    deviation: Callable[..., str | None]
    power_deviation: Callable[..., str | None]
    power_tolerance: Callable[..., float]
    has_changed: Callable[..., bool]
    resumed: Callable[..., Any]


ControlType = _ControlType
