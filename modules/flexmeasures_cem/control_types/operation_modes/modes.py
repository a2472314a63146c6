"""Actuators of OMBC and DDBC: their operation modes, and how they deviate from a plan.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from s2python.ddbc import DDBCActuatorDescription, DDBCActuatorStatus, DDBCOperationMode
from s2python.ombc import OMBCOperationMode, OMBCStatus, OMBCSystemDescription

import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
import flexmeasures_s2.commodities as commodities
import flexmeasures_s2.rules as rules

MAX_VALUE = 1e9
"""The greatest supported power (W), flow, supply and cost."""
FIXED_FACTOR = 1.0
"""The factor to send for a mode in which the factor changes nothing."""
FACTOR_TOLERANCE = 0.1
"""A factor may deviate from the plan by this."""
MAX_MODES, MAX_TRANSITIONS = 50, 300
"""Devices with more cannot be planned in time."""


Ends = tuple[float, float]
"""What a quantity is at a factor of 0, and of 1."""
Flow = tuple[str, float, float]
"""A commodity quantity, and what is taken of that at a factor of 0, and of 1."""
Transitions = transitions.Transitions
Timers = transitions.Timers
Tariffs = Mapping[str, float]
"""What commodities but electricity cost (currency per unit), by their names."""


@dataclass(frozen=True)
class _Mode:
    """An operation mode: its power (W) and supply at a factor of 0, and of 1.

    `flows` are those of commodities other than electricity; `cost` is that of running (currency per hour).
    """

    id: str
    label: str
    is_permitted: bool
    powers: Ends
    flows: tuple[Flow, ...]
    supply: Ends
    cost: float

    @property
    @pyscript_compile
    def is_fixed(self) -> bool:
        """Whether the factor changes nothing."""
        return all(start == end for start, end in self.ends)

    @property
    @pyscript_compile
    def ends(self) -> list[tuple[float, float]]:
        """The power, supply and flows, in their own units, at a factor of 0 and of 1."""
        return [self.powers, self.supply, *[(start, end) for _quantity, start, end in self.flows]]


Mode = _Mode


@dataclass
class _Actuator:
    """An actuator with all its modes by id; `transitions` by the mode that they start from.

    `blocking` are the timers that matter. `id` is None where a device has only one.
    """

    id: str | None
    modes: dict[str, Mode]
    transitions: Transitions
    durations: Timers
    blocking: frozenset[str]
    label: str | None = None


Actuator = _Actuator


@dataclass
class _State:
    """The state of a device at a moment: the Active of each actuator by its id."""

    moment: float
    actuators: dict[str | None, transitions.Active]


State = _State


@dataclass(frozen=True)
class _Move:
    """A transition from `start` to `end`, and when the timers finish that matter then."""

    start: float
    end: float
    to: str
    timers: tuple[tuple[str, float], ...]
    cost: float


Move = _Move


@pyscript_compile
def read(
    described_by: DDBCActuatorDescription | OMBCSystemDescription, actuator_id: str | None = None
) -> Actuator:
    """Return the Actuator of an OMBC.SystemDescription or a DDBC.ActuatorDescription.

    The cost of a transition includes the running costs of the dearer of its two modes for its duration: so a
    transition never pays by the time that it takes.
    """
    described: Sequence[DDBCOperationMode | OMBCOperationMode] = described_by.operation_modes
    modes = [read_mode(mode) for mode in described]
    ways, durations = transitions.read(described_by)
    costs = {mode.id: mode.cost / 3600 for mode in modes}
    permitted = {mode.id for mode in modes if mode.is_permitted}
    ways = {
        start: [
            replace(
                transition,
                cost=transition.cost + transition.duration * max(costs[transition.to], costs.get(start, 0.0)),
            )
            for transition in listed
            if transition.to in permitted and transition.to != start
        ]
        for start, listed in ways.items()
    }
    blocking = {
        timer for listed in ways.values() for transition in listed for timer in transition.blocking_timers
    }
    label = transitions.short_label(cast(DDBCActuatorDescription, described_by)) if actuator_id else None
    by_id = {mode.id: mode for mode in modes}
    return Actuator(actuator_id, by_id, ways, durations, frozenset(blocking), label)


@pyscript_compile
def read_mode(mode: DDBCOperationMode | OMBCOperationMode) -> Mode:
    """Return the Mode of an OMBC or DDBC OperationMode."""
    ranges = {power_range.commodity_quantity.value: power_range for power_range in mode.power_ranges}
    starts = {quantity: power_range.start_of_range for quantity, power_range in ranges.items()}
    ends = {quantity: power_range.end_of_range for quantity, power_range in ranges.items()}
    flows = tuple(
        (quantity, starts[quantity], ends[quantity])
        for quantity in sorted(ranges)
        if quantity in commodities.TARIFFS
    )
    supplied = (getattr(mode, "supply_range", None) or [None])[0]
    costs = mode.running_costs
    return Mode(
        str(mode.id),
        transitions.short_label(mode),
        not mode.abnormal_condition_only,
        (commodities.electric(starts) or 0.0, commodities.electric(ends) or 0.0),
        flows,
        (supplied.start_of_range, supplied.end_of_range) if supplied else (0.0, 0.0),
        (costs.start_of_range + costs.end_of_range) / 2 * 3600 if costs else 0.0,
    )


@pyscript_compile
def commodities_of(actuators: Iterable[Actuator]) -> set[str]:
    """Return the commodities other than electricity that actuators consume, by the names of their tariffs."""
    modes = [mode for actuator in actuators for mode in actuator.modes.values()]
    return {commodities.TARIFFS[quantity][0] for mode in modes for quantity, *_ends in mode.flows}


@pyscript_compile
def why_not_plannable(actuators: Sequence[Actuator]) -> str | None:
    """Return why a device with these actuators cannot be planned, or None."""
    count = sum(len(listed) for actuator in actuators for listed in actuator.transitions.values())
    if count > MAX_TRANSITIONS or sum(len(actuator.modes) for actuator in actuators) > MAX_MODES:
        return f"it has too many operation modes, with {count} transitions, to be planned in time"
    if not any(mode.is_permitted for actuator in actuators for mode in actuator.modes.values()):
        return "all its operation modes are for an abnormal condition only"
    for actuator in actuators:
        costs = [transition.cost for listed in actuator.transitions.values() for transition in listed]
        if any(abs(cost) > MAX_VALUE for cost in costs):
            return f"its transitions: a cost is outside the supported range ({MAX_VALUE:g})"
        for mode in actuator.modes.values():
            flows = [value for _quantity, *values in mode.flows for value in values]
            if any(abs(value) > MAX_VALUE for value in (*mode.powers, *flows, *mode.supply, mode.cost)):
                return (
                    f"operation mode {mode.label}: a power, supply or cost is outside the supported range "
                    f"({MAX_VALUE:g})"
                )
    return None


@pyscript_compile
def greatest_power(actuators: Iterable[Actuator]) -> float:
    """Return the greatest power of all actuators together (W), in either direction."""
    return sum(
        max((abs(power) for mode in actuator.modes.values() for power in mode.powers), default=0.0)
        for actuator in actuators
    )


@pyscript_compile
def as_it_is(actuator: Actuator, now: transitions.Active) -> Actuator:
    """Return an actuator with its present factor fixed, if its mode is for an abnormal condition."""
    mode = transitions.mode_of(actuator.modes, now.mode)
    if mode is None or mode.is_permitted:
        return actuator
    fixed = replace(
        mode,
        powers=(at(mode.powers, now.factor),) * 2,
        flows=tuple((quantity, *(at(ends, now.factor),) * 2) for quantity, *ends in mode.flows),
        supply=(at(mode.supply, now.factor),) * 2,
    )
    return replace(actuator, modes=actuator.modes | {mode.id: fixed})


@pyscript_compile
def at(ends: Sequence[float], factor: float) -> float:
    """Return a quantity at a factor."""
    return ends[0] + factor * (ends[1] - ends[0])


@pyscript_compile
def other_cost(mode: Mode, tariffs: Tariffs) -> Ends:
    """Return the cost of a mode (currency per hour) at a factor of 0 and of 1, without electricity."""
    costs = [mode.cost, mode.cost]
    for quantity, *ends in mode.flows:
        costs = [
            cost + markets.other_cost(quantity, end, tariffs) for cost, end in zip(costs, ends, strict=True)
        ]
    return costs[0], costs[1]


@pyscript_compile
def change(
    actuator: Actuator, moment: float, mode: str, factor: float, ready: float, timers: transitions.Timers
) -> transitions.Change:
    """Return the Change to a mode and factor."""
    power = at(actuator.modes[mode].powers, factor)
    return transitions.Change(
        moment, actuator.id, mode, factor, power, transitions.Active(mode, factor, ready, timers)
    )


@pyscript_compile
def present_changes(actuators: Iterable[Actuator], state: State, moment: float) -> list[transitions.Change]:
    """Return the Changes that keep actuators in their present modes; none for abnormal conditions."""
    changes = []
    for actuator in actuators:
        active = state.actuators[actuator.id]
        mode = transitions.mode_of(actuator.modes, active.mode)
        if mode and mode.is_permitted:
            factor = FIXED_FACTOR if mode.is_fixed else active.factor
            changes.append(change(actuator, moment, mode.id, factor, active.ready, active.timers))
    return changes


@pyscript_compile
def status_deviation(
    actuator: Actuator,
    status: DDBCActuatorStatus | OMBCStatus,
    plan: plans.Plan,
    now: float,
    tolerance: float | None = None,
) -> str | None:
    """Return how a status deviates from the latest instruction, or None; a lag is tolerated.

    With a `tolerance` (W), and without an instruction, the power of the mode is compared to the plan.
    """
    mode, factor = actuator.modes.get(str(status.active_operation_mode_id)), status.operation_mode_factor
    change: transitions.Change | None = plans.last_instructed(plan, now, actuator.id)
    if mode is None or (change and change.mode not in actuator.modes):
        return "an operation mode is active that was not described when it was planned"
    if change is None:
        _began, done, _timers = transitions.under_way(actuator, status, now)
        if tolerance is None or now - done < plans.LAG_SECONDS or now - plan.start < plans.LAG_SECONDS:
            return None
        power = at(mode.powers, factor)
        if plans.measured_power_deviation(plan, power, now, tolerance):
            return f"{mode.label} is active at {power:.0f} W, expected was {plans.power_at(plan, now):.0f} W"
        return None
    if now - max(change.moment, change.active.ready) < plans.LAG_SECONDS:
        return None
    expected = actuator.modes[change.mode]
    if mode.id != expected.id:
        return f"{mode.label} is active, expected was {expected.label}"
    if not mode.is_fixed and abs(factor - change.factor) > FACTOR_TOLERANCE:
        return f"{mode.label} has the factor {factor:g}, expected was {change.factor:g}"
    return None


@pyscript_compile
def timer_deviation(
    actuator: Actuator, message: rules.TimerStatus, plan: plans.Plan, now: float
) -> str | None:
    """Return why a TimerStatus blocks the next planned change, or None."""
    ends = message.finished_at.timestamp()
    before: transitions.Change | None = plans.last_instructed(plan, now, actuator.id)
    mode = before.mode if before else None
    for change in plan.changes:
        if change.actuator != actuator.id or change.moment <= now or change.mode == mode:
            continue
        starts = [mode] if mode else list(actuator.transitions)
        ways = [
            way for start in starts for way in actuator.transitions.get(start, ()) if way.to == change.mode
        ]
        blocked = [way for way in ways if str(message.timer_id) in way.blocking_timers]
        if blocked and len(blocked) == len(ways) and change.moment < ends:
            return f"a timer blocks {actuator.modes[change.mode].label} longer than expected"
        return None
    return None


@pyscript_compile
def is_elsewhere(
    actuator: Actuator,
    before: transitions.Active,
    message: rules.ModeStatus | rules.TimerStatus,
    moment: float,
) -> bool:
    """Return whether a status has another mode than the Active at a moment, or a timer that ends later."""
    if transitions.is_timer_status(message):
        timer_id = str(message.timer_id)
        expected = max(before.timers.get(timer_id, 0.0), moment)
        ends = message.finished_at.timestamp()
        return timer_id in actuator.blocking and ends > expected + transitions.MARGIN_SECONDS
    return str(message.active_operation_mode_id) != before.mode


@pyscript_compile
def instruction_fields(change: transitions.Change) -> dict[str, Any]:
    """Return the fields of an OMBC or DDBC instruction, without its ids and execution_time."""
    return {
        "operation_mode_id": change.mode,
        "operation_mode_factor": round(change.factor, 6) + 0.0,
        "abnormal_condition": False,
    }
