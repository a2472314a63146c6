"""A device under fill rate based control, read from its messages, and the simulation of its fill level.

Moments are seconds since 1970, fill rates fill level per second, power W of electricity, consumption
positive. At a fill level that no element covers, the nearest element counts.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from s2python.frbc import (
    FRBCActuatorDescription,
    FRBCFillLevelTargetProfile,
    FRBCLeakageBehaviour,
    FRBCOperationMode,
    FRBCSystemDescription,
    FRBCUsageForecast,
    FRBCUsageForecastElement,
)

import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.commodities as commodities
import flexmeasures_s2.rules as rules
from flexmeasures_cem.control_types.memory import latest

DESCRIPTION, STATUS = "FRBC.SystemDescription", "FRBC.StorageStatus"
ACTUATOR_STATUS, TIMER_STATUS = "FRBC.ActuatorStatus", "FRBC.TimerStatus"
LEAKAGE, USAGE, TARGETS = "FRBC.LeakageBehaviour", "FRBC.UsageForecast", "FRBC.FillLevelTargetProfile"
RANGE_MARGIN = 0.002
"""A plan keeps this distance (part of the storage's range) from the range's ends: a safety margin."""
FIXED_FACTOR = 1.0
"""The factor to send for a mode in which the factor changes nothing."""
MIN_RANGE, MAX_VALUE = 1e-9, 1e9
"""The supported range of fill levels; the greatest power (W), and rate (storage's ranges per second)."""
MAX_MODE_PAIRS = 10_000
"""Pairs of a mode with a mode or transition: devices with more cannot be planned in time."""
STANDSTILL_RATE = 1e-9
"""Below this rate (storage's ranges per second) the fill level stands still."""


@dataclass(frozen=True)
class _Element:
    """The rates and powers (W) of an operation mode between two fill levels, at a factor of 0, and of 1.

    `cost` is that of running (currency per hour), without the commodities.
    """

    bottom: float
    top: float
    rates: tuple[float, float]
    powers: tuple[float, float]
    cost: float


Element = _Element


@dataclass(frozen=True)
class _Mode:
    """An operation mode with its elements by fill level, and the fill levels at which they begin.

    With `is_fixed` the factor changes nothing.
    """

    id: str
    label: str
    elements: tuple[Element, ...]
    bottoms: tuple[float, ...]
    is_fixed: bool
    is_permitted: bool = True


Mode = _Mode
Transitions = transitions.Transitions
Timers = transitions.Timers


@dataclass
class _Actuator:
    """An actuator with its permitted modes by id; `transitions` by the mode that they start from.

    `blocking` are the timers that matter.
    """

    id: str
    label: str
    modes: dict[str, Mode]
    transitions: Transitions
    durations: Timers
    blocking: frozenset[str] = frozenset()


Actuator = _Actuator


@dataclass
class _Device:
    """A storage with its actuators (the most efficient first), leakage, usage and targets.

    `leakage` holds (bottom, top, rate), `usage` (start, end, rate), `targets` (start, end, lowest,
    highest level). `edges` are the fill levels, and `moments` the times, at which any rate may change.
    A plan keeps the level between `floor` and `ceiling`, a little within the range. `max_filling_w` and
    `max_emptying_w` are the greatest powers (W, both positive) of all actuators together; `step_w` is the
    widest gap between the powers of one.
    """

    bottom: float
    top: float
    actuators: list[Actuator]
    leakage: list[tuple[float, float, float]] = field(default_factory=list)
    usage: list[tuple[float, float, float]] = field(default_factory=list)
    targets: list[tuple[float, float, float, float]] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    floor: float = 0.0
    ceiling: float = 0.0
    max_filling_w: float = 0.0
    max_emptying_w: float = 0.0
    step_w: float = 0.0


Device = _Device


@dataclass(frozen=True)
class _Setting:
    """An actuator's mode (None: in transition) and factor from a moment on."""

    start: float
    mode: Mode | None
    factor: float


Setting = _Setting


@dataclass(frozen=True)
class _LevelPiece(plans.PowerPiece):
    """Some time of the same power, in which the fill level moves at the same rate."""

    start_level: float
    end_level: float


LevelPiece = _LevelPiece


@dataclass
class _Run:
    """A simulated time: the level at its end, the electric energy (J), and the pieces.

    `below` and `above` are how far the level was below the floor and above the ceiling, `hit` is the moment
    at which it was first driven beyond.
    """

    level: float
    energy: float
    pieces: list[LevelPiece]
    below: float
    above: float
    hit: float | None


Run = _Run


@dataclass
class _FillLevelEnergy:
    """The energy (J) that a unit of fill level stores, and the efficiencies of charging and discharging."""

    energy: float
    charging: float
    discharging: float


FillLevelEnergy = _FillLevelEnergy


@dataclass
class _State:
    """The state of a device at a moment: its fill level, and the Active of each actuator by its id."""

    moment: float
    level: float
    actuators: dict[str, transitions.Active]


State = _State


@pyscript_compile
def read(
    description: FRBCSystemDescription,
    leakage: FRBCLeakageBehaviour | None,
    usage: FRBCUsageForecast | None,
    targets: FRBCFillLevelTargetProfile | None,
) -> Device:
    """Return the Device that its messages describe; all but the FRBC.SystemDescription may be None."""
    limits = description.storage.fill_level_range
    actuators = [read_actuator(described) for described in description.actuators]
    device = Device(limits.start_of_range, limits.end_of_range, actuators)
    if leakage:
        device.leakage = [
            (
                element.fill_level_range.start_of_range,
                element.fill_level_range.end_of_range,
                element.leakage_rate,
            )
            for element in sorted(
                leakage.elements, key=lambda element: element.fill_level_range.start_of_range
            )
        ]
    if usage:
        spans = of_profile(usage)
        device.usage = [(start, end, element.usage_rate_expected) for start, end, element in spans]
        device.moments = [spans[0][0], *[end for _start, end, _each in spans]]
    if targets:
        device.targets = [
            (start, end, element.fill_level_range.start_of_range, element.fill_level_range.end_of_range)
            for start, end, element in of_profile(targets)
        ]
    margin = RANGE_MARGIN * (device.top - device.bottom)
    device.floor, device.ceiling = device.bottom + margin, device.top - margin
    edges = {device.bottom, device.floor, device.ceiling, device.top}
    for bottom, top, _rate in device.leakage:
        edges |= {bottom, top}
    for actuator in actuators:
        for mode in actuator.modes.values():
            for element in mode.elements:
                edges |= {element.bottom, element.top}
    device.edges = sorted(edges)
    actuators.sort(key=lambda actuator: preference(device, actuator))
    device.max_filling_w, device.max_emptying_w = greatest_power(device, 1), greatest_power(device, -1)
    device.step_w = max(greatest_step(device, actuator) for actuator in actuators)
    return device


@pyscript_compile
def why_out_of_range(device: Device) -> str | None:
    """Return which value of a device is outside the supported range, or None."""
    span = device.top - device.bottom
    if not MIN_RANGE < span < MAX_VALUE:
        return (
            f"the storage's fill_level_range, {device.bottom:g} to {device.top:g}, is not between "
            f"{MIN_RANGE:g} and {MAX_VALUE:g} wide"
        )
    work = 0
    for actuator in device.actuators:
        moves = sum(len(listed) for listed in actuator.transitions.values())
        work += len(actuator.modes) * (len(actuator.modes) + moves)
        for mode in actuator.modes.values():
            for element in mode.elements:
                if max(abs(power) for power in element.powers) > MAX_VALUE:
                    return (
                        f"operation mode {mode.label}: a power is outside the supported range "
                        f"({MAX_VALUE:g} W)"
                    )
                if max(abs(rate) for rate in element.rates) > MAX_VALUE * span:
                    return (
                        f"operation mode {mode.label}: a fill_rate is outside the supported range "
                        f"({MAX_VALUE * span:g} per second)"
                    )
    storage_rates = [rate for _start, _end, rate in (*device.leakage, *device.usage)]
    if max([abs(rate) for rate in storage_rates], default=0.0) > MAX_VALUE * span:
        return (
            f"a leakage_rate or usage_rate is outside the supported range ({MAX_VALUE * span:g} per second)"
        )
    return "it has too many operation modes and transitions" if work > MAX_MODE_PAIRS else None


@pyscript_compile
def greatest_rates(
    description: FRBCSystemDescription, leakage: FRBCLeakageBehaviour | None, usage: FRBCUsageForecast | None
) -> tuple[float, float]:
    """Return how fast the fill level can rise and fall (per second, both positive) in any modes.

    All messages but the FRBC.SystemDescription may be None.
    """
    rise = fall = 0.0
    for actuator in description.actuators:
        rates = [
            rate
            for mode in actuator.operation_modes
            for element in mode.elements
            for rate in (element.fill_rate.start_of_range, element.fill_rate.end_of_range)
        ]
        rise, fall = rise + max([0.0, *rates]), fall - min([0.0, *rates])
    falls = [element.leakage_rate for element in leakage.elements] if leakage else []
    rise, fall = rise - min([0.0, *falls]), fall + max([0.0, *falls])
    falls = [rate for element in usage.elements for rate in usage_rates(element)] if usage else []
    return rise - min([0.0, *falls]), fall + max([0.0, *falls])


@pyscript_compile
def usage_rates(element: FRBCUsageForecastElement) -> list[float]:
    """Return the expected usage_rate of an element, and its limits if there are any."""
    limits = element.usage_rate_upper_limit, element.usage_rate_lower_limit
    return [rate for rate in (element.usage_rate_expected, *limits) if rate is not None]


@pyscript_compile
def greatest_power(device: Device, sign: int) -> float:
    """Return the greatest power (W) of filling (1) or of emptying (-1), of all actuators together."""
    parts = [per_level(device, actuator, sign) for actuator in device.actuators]
    return sum(energy_and_power[1] for energy_and_power in parts if energy_and_power)


@pyscript_compile
def greatest_step(device: Device, actuator: Actuator) -> float:
    """Return the widest gap (W) between the powers that an actuator can have, at any fill level."""
    widest = 0.0
    for level in device.edges:
        ranges = sorted(tuple(sorted(element_at(mode, level).powers)) for mode in actuator.modes.values())
        top = ranges[0][1] if ranges else 0.0
        for low, high in ranges:
            widest, top = max(widest, low - top), max(top, high)
    return widest


@pyscript_compile
def of_profile(message: Any) -> list[tuple[float, float, Any]]:
    """Return (start, end, element) of each element of a profile."""
    start = message.start_time.timestamp()
    spans = []
    for element in message.elements:
        end = start + element.duration.root / 1000
        spans.append((start, end, element))
        start = end
    return spans


@pyscript_compile
def read_actuator(described: FRBCActuatorDescription) -> Actuator:
    """Return the Actuator of a description, without the modes for an abnormal condition."""
    moves, durations = transitions.read(described)
    modes = [read_mode(mode) for mode in described.operation_modes if not mode.abnormal_condition_only]
    label = transitions.short_label(described)
    blocking = frozenset(
        timer for listed in moves.values() for transition in listed for timer in transition.blocking_timers
    )
    return Actuator(str(described.id), label, {mode.id: mode for mode in modes}, moves, durations, blocking)


@pyscript_compile
def read_mode(described: FRBCOperationMode) -> Mode:
    """Return the Mode of an FRBC.OperationMode."""
    elements = []
    for element in sorted(described.elements, key=lambda element: element.fill_level_range.start_of_range):
        starts = {power.commodity_quantity.value: power.start_of_range for power in element.power_ranges}
        ends = {power.commodity_quantity.value: power.end_of_range for power in element.power_ranges}
        costs = element.running_costs
        elements.append(
            Element(
                element.fill_level_range.start_of_range,
                element.fill_level_range.end_of_range,
                (element.fill_rate.start_of_range, element.fill_rate.end_of_range),
                (commodities.electric(starts) or 0.0, commodities.electric(ends) or 0.0),
                (costs.start_of_range + costs.end_of_range) * 1800 if costs else 0.0,
            )
        )
    bottoms = tuple(element.bottom for element in elements)
    is_fixed = all(start == end for element in elements for start, end in (element.rates, element.powers))
    return Mode(str(described.id), transitions.short_label(described), tuple(elements), bottoms, is_fixed)


@pyscript_compile
def element_at(mode: Mode, level: float, upwards: bool = True) -> Element:
    """Return a mode's element at a fill level; at a border the upper one, or the lower (not `upwards`)."""
    bisect = bisect_right if upwards else bisect_left
    return mode.elements[max(0, bisect(mode.bottoms, level) - 1)]


@pyscript_compile
def rate_of(element: Element, factor: float) -> float:
    """Return the fill rate at a factor."""
    return element.rates[0] + factor * (element.rates[1] - element.rates[0])


@pyscript_compile
def power_of(element: Element, factor: float) -> float:
    """Return the power at a factor."""
    return element.powers[0] + factor * (element.powers[1] - element.powers[0])


@pyscript_compile
def leak_at(device: Device, level: float, upwards: bool = True) -> float:
    """Return the leakage rate at a fill level."""
    for bottom, top, rate in device.leakage:
        if level < top or (level == top and not upwards):
            return rate if level > bottom or (level == bottom and upwards) else 0.0
    return 0.0


@pyscript_compile
def motion(
    device: Device, level: float, settings: Iterable[Setting], usage: float
) -> tuple[float, float, float | None]:
    """Return (rate, power, next edge or None) at a level, by the settings of the actuators.

    A level that is driven to an edge from both sides stays there.
    """
    up = [(element_at(setting.mode, level), setting.factor) for setting in settings if setting.mode]
    down = [(element_at(setting.mode, level, False), setting.factor) for setting in settings if setting.mode]
    rising = sum(rate_of(*part) for part in up) - leak_at(device, level) - usage
    falling = sum(rate_of(*part) for part in down) - leak_at(device, level, False) - usage
    still = STANDSTILL_RATE * (device.top - device.bottom)
    if rising > still:
        place = bisect_right(device.edges, level)
        edge = device.edges[place] if place < len(device.edges) else None
        return rising, sum(power_of(*part) for part in up), edge
    if falling < -still:
        place = bisect_left(device.edges, level) - 1
        return falling, sum(power_of(*part) for part in down), device.edges[place] if place >= 0 else None
    return 0.0, sum(power_of(*part) for part in down), None


@pyscript_compile
def run(
    device: Device, level: float, timelines: Sequence[Sequence[Setting]], start: float, end: float
) -> Run:
    """Simulate the storage from `start` to `end`; `timelines` has the Settings of each actuator, in order."""
    moments = {start, end}
    for line in timelines:
        moments |= {setting.start for setting in line if start < setting.start < end}
    moments.update(device.moments[bisect_right(device.moments, start) : bisect_left(device.moments, end)])
    first, energy = level, 0.0
    pieces: list[LevelPiece] = []
    hit: float | None = None
    lowest = highest = level
    for begin, until in pairwise(sorted(moments)):
        settings = [setting_at(line, begin) for line in timelines]
        usage = usage_at(device, begin)
        moment = begin
        while moment < until:
            rate, power, edge = motion(device, level, settings, usage)
            if hit is None and (
                (rate > 0 and level >= device.ceiling) or (rate < 0 and level <= device.floor)
            ):
                hit = moment
            after, reached = until, level + rate * (until - moment)
            if edge is not None and (reached - edge) * rate >= 0:
                after, reached = max(moment + (edge - level) / rate, math.nextafter(moment, until)), edge
            after = min(after, until)
            pieces.append(LevelPiece(moment, after, power, level, reached))
            energy += power * (after - moment)
            moment, level = after, reached
            lowest, highest = min(lowest, level), max(highest, level)
    below = max(0.0, min(device.floor, first) - lowest)
    above = max(0.0, highest - max(device.ceiling, first))
    return Run(level, energy, pieces, below, above, hit)


@pyscript_compile
def setting_at(line: Sequence[Setting], moment: float) -> Setting:
    """Return the Setting that holds at a moment."""
    current = line[0]
    for setting in line:
        if setting.start > moment:
            break
        current = setting
    return current


@pyscript_compile
def usage_at(device: Device, moment: float) -> float:
    """Return the forecast usage rate at a moment."""
    place = bisect_right(device.moments, moment) - 1
    return device.usage[place][2] if 0 <= place < len(device.usage) else 0.0


@pyscript_compile
def mildest(mode: Mode, level: float) -> float:
    """Return the factor at which a mode moves the fill level least, at a fill level."""
    if mode.is_fixed:
        return FIXED_FACTOR
    start, end = element_at(mode, level).rates
    if start == end or start * end > 0:
        return 0.0 if abs(start) <= abs(end) else 1.0
    return -start / (end - start)


@pyscript_compile
def per_level(device: Device, actuator: Actuator, sign: int) -> tuple[float, float] | None:
    """Return (energy (J) of one unit of fill level, greatest power (W)) of filling (1) or emptying (-1).

    The energy is the mean over the storage's range, in the mode with the greatest power. None if no mode
    does so.
    """
    best = None
    for mode in actuator.modes.values():
        energy = width = power = 0.0
        for element in mode.elements:
            ends = [
                (sign * rate, sign * watts) for rate, watts in zip(element.rates, element.powers, strict=True)
            ]
            rate, watts = max(ends, key=lambda pair: pair[1])
            span = min(element.top, device.top) - max(element.bottom, device.bottom)
            if rate > 0 and watts > 0 and span > 0:
                energy, width, power = energy + span * watts / rate, width + span, max(power, watts)
        if width and (best is None or power > best[1]):
            best = energy / width, power
    return best


@pyscript_compile
def preference(device: Device, actuator: Actuator) -> tuple[float, float, bool]:
    """Sort key: the most efficient actuator comes first; of equal ones that with fixed powers."""
    filling, emptying = per_level(device, actuator, 1), per_level(device, actuator, -1)
    needs = filling[0] if filling else math.inf
    yields = emptying[0] if emptying else 0.0
    fixed = any(
        element.powers[0] == element.powers[1] != 0
        for mode in actuator.modes.values()
        for element in mode.elements
    )
    return float(f"{needs:.2g}"), -float(f"{yields:.2g}"), not fixed


@pyscript_compile
def fill_level_energy(device: Device, energy_per_fill_level: float | None = None) -> FillLevelEnergy | None:
    """Return the FillLevelEnergy of a device, or None if no electric power moves its fill level.

    `energy_per_fill_level` (J) is the configured energy. Without it, charging and discharging are taken to be
    equally efficient; a device that can only charge (or discharge) is taken to do so without losses.
    """
    needs, yields = of_all(device, 1), of_all(device, -1)
    if not (needs or yields):
        return None
    if energy_per_fill_level is not None:
        return FillLevelEnergy(
            energy_per_fill_level,
            energy_per_fill_level / needs if needs else 1.0,
            min(yields, needs or yields, energy_per_fill_level) / energy_per_fill_level if yields else 1.0,
        )
    if needs and yields:
        share = min(math.sqrt(yields / needs), 1.0)
        return FillLevelEnergy(needs * share, share, share)
    return FillLevelEnergy(needs or yields or 0.0, 1.0, 1.0)


@pyscript_compile
def of_all(device: Device, sign: int) -> float | None:
    """Return the electric energy (J) per unit of fill level with all actuators at work, or None."""
    parts = [part for actuator in device.actuators if (part := per_level(device, actuator, sign))]
    rate = sum(power / energy for energy, power in parts)
    return sum(power for _energy, power in parts) / rate if rate else None


@pyscript_compile
def missing_message(memory: rules.Memory) -> str | None:
    """Return which message is still missing to plan on, or None."""
    needed = (DESCRIPTION, STATUS)
    return next((message_type for message_type in needed if latest(memory, message_type) is None), None)


@pyscript_compile
def valid_from(memory: rules.Memory) -> float:
    """Return from when on the description holds."""
    return float(latest(memory, DESCRIPTION).valid_from.timestamp())


@pyscript_compile
def read_device(memory: rules.Memory) -> Device:
    """Return the device that is described."""
    description, leakage, usage, targets = (
        latest(memory, message_type) for message_type in (DESCRIPTION, LEAKAGE, USAGE, TARGETS)
    )
    return read(description, leakage, usage, targets)


@pyscript_compile
def why_not_plannable(device: Device) -> str | None:
    """Return why a device cannot be planned, or None."""
    if fill_level_energy(device) is None:
        return "no operation mode fills or empties it by electric power"
    return why_out_of_range(device)


@pyscript_compile
def read_state(
    device: Device,
    memory: rules.Memory,
    status_received_at: transitions.StatusTimes,
    plan: plans.ModePlan | None,
    now: float,
) -> State:
    """Return the state of the device now: by its statuses, or by later instructions.

    `plan` is the one in force, or None.
    """
    actives = {}
    for actuator in device.actuators:
        status = latest(memory, ACTUATOR_STATUS, actuator.id)
        finished = transitions.finished(memory, (TIMER_STATUS, actuator.id), now)
        instructed = plans.last_instructed(plan, now, actuator.id)
        actives[actuator.id] = transitions.active(
            actuator, status, finished, instructed, status_received_at, now
        )
    return State(now, latest(memory, STATUS).present_fill_level, actives)


@pyscript_compile
def last_deadline(device: Device) -> float:
    """Return the end of the last fill level target, or 0."""
    return max([end for _start, end, *_levels in device.targets], default=0.0)
