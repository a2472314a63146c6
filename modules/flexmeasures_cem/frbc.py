"""Fill rate based control: what FlexMeasures is asked, and what the device is told.

A fill level has no unit in S2: the energy (J) of one unit is configured, or else follows from power and fill
rate. The state of charge is the energy above the start of the storage's fill_level_range.
"""

import math
import uuid
from typing import Any

import flexmeasures_api.flexible_devices as storages
import flexmeasures_cem.errors as errors
import flexmeasures_cem.frbc_device as devices
import flexmeasures_cem.frbc_plan as frbc_plan
import flexmeasures_cem.plans as plans
import flexmeasures_cem.transitions as transitions
import flexmeasures_s2.texts as texts

CONTROL_TYPE = "FILL_RATE_BASED_CONTROL"
INSTRUCTION = "FRBC.Instruction"
DESCRIPTION, STATUS = ("FRBC.SystemDescription",), ("FRBC.StorageStatus",)
ACTUATOR_STATUS, TIMER_STATUS = "FRBC.ActuatorStatus", "FRBC.TimerStatus"
LEAKAGE, USAGE, TARGETS = (
    ("FRBC.LeakageBehaviour",),
    ("FRBC.UsageForecast",),
    ("FRBC.FillLevelTargetProfile",),
)
CALL_FOR_A_PLAN = (*DESCRIPTION, *LEAKAGE, *USAGE, *TARGETS)
"""The messages that change the problem."""
LEVEL_TOLERANCE = 0.02
"""By which part of the storage's range a fill level may depart from the plan."""
MOST_LEAKAGE = 10.0
"""Nothing is left of a storage that leaks more in a step (exponent)."""
NEXT_SECONDS = 1.0
"""How far ahead an instruction is that is to be executed now."""
ALMOST = 0.98
"""Which part of what could be had at full power a usage may take, so that there is a plan."""
PLAN = frbc_plan.Plan
alike, upcoming, worth = transitions.alike, plans.upcoming, devices.worth


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    return next((each[0] for each in (DESCRIPTION, STATUS) if each not in memory), None)


@pyscript_compile
def valid_from(memory):
    """Return from when on the description holds."""
    return memory[DESCRIPTION].valid_from.timestamp()


@pyscript_compile
def device(memory):
    """Return the device that is described."""
    return devices.read(memory[DESCRIPTION], memory.get(LEAKAGE), memory.get(USAGE), memory.get(TARGETS))


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None."""
    if worth(found) is None:
        return "no operation mode fills or empties it by electric power"
    return devices.unfit(found)


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return what the device is now: as it told, or as it was told later.

    `heard` has when each actuator told its status last; `plan` is the one in force, or None.
    """
    actives = {}
    for each in found.actuators:
        status = memory.get((ACTUATOR_STATUS, each.id))
        finished = transitions.finished(memory, (TIMER_STATUS, each.id), now)
        told = plans.last_told(plan, now, each.id)
        actives[each.id] = transitions.active(each, status, finished, told, heard, now)
    return frbc_plan.Condition(now, memory[STATUS].present_fill_level, actives)


@pyscript_compile
def until(found):
    """Return when the last target ends, or 0."""
    return max([end for _start, end, *_levels in found.targets], default=0.0)


@pyscript_compile
def problem(found, state, means, window):
    """Return the device as FlexMeasures' problem: a Storage, over a Window.

    The first interval has begun: only what is left of it counts, so its powers are means over all of it.
    That is not so with operation modes, which are asked for where power has steps.
    """
    value = worth(found, means.energy)
    start, step, end = window.start, window.step, window.end
    energy = value.energy / 3600
    span = found.top - found.bottom
    most, least = found.most, found.least
    modes = operation_modes(found) if window.with_modes else []
    left = 1.0 if modes else window.left
    keeps = storage_efficiency(found, step)

    def of_level(level):
        return min(max(level - found.bottom, 0.0), span) * energy

    wishes = [
        (max(begin // step * step, start), min(-(-until // step) * step, end), lowest, highest)
        for begin, until, lowest, highest in found.targets
        if until > start and begin < end
    ]
    soc = max(state.level - found.bottom, 0.0) * energy
    used = soc_usage(found, value.energy, state.moment, start, step, end)
    gain = min(most, window.share) * value.charging * step / 3600
    return storages.Storage(
        power_sensor=means.power_sensor,
        soc_sensor=means.soc_sensor,
        soc_at_start=soc,
        soc_min=0.0,
        soc_max=span * energy,
        soc_minima=[
            storages.SocEvent(plans.moment(begin), plans.moment(until), of_level(lowest))
            for begin, until, lowest, _highest in wishes
            if lowest > found.bottom
        ],
        soc_maxima=[
            storages.SocEvent(plans.moment(begin), plans.moment(until), of_level(highest))
            for begin, until, _lowest, highest in wishes
            if highest < found.top
        ],
        power_capacity=max(most, least),
        charging_efficiency=value.charging,
        discharging_efficiency=value.discharging,
        storage_efficiency=keeps ** (means.resolution / step),
        consumption_capacity=less_at_first(most, left, start, step, end),
        production_capacity=less_at_first(least, left, start, step, end),
        soc_usage=storages.as_spans(
            coverable(used, soc, gain, gain * left, keeps, span * energy, step), start, step
        ),
        operation_modes=modes,
    )


@pyscript_compile
def less_at_first(power, left, start, step, end):
    """Return a power, or Spans where only a part (`left`) of the first interval is left."""
    if left >= 1.0 or not power:
        return power
    return [
        storages.PowerSpan(plans.moment(start), plans.moment(start + step), power * left),
        storages.PowerSpan(plans.moment(start + step), plans.moment(end), power),
    ]


@pyscript_compile
def storage_efficiency(found, step):
    """Return what a step (s) leaves of the state of charge, by leakage.

    FlexMeasures' losses are a fixed share of what is stored; S2's are a rate for each range of fill levels.
    The share is taken that comes nearest to those rates over the whole range (least squares).
    """
    product = square = 0.0
    for bottom, top, rate in found.leakage:
        low, high = (min(max(each, found.bottom), found.top) - found.bottom for each in (bottom, top))
        product += rate * (high**2 - low**2) / 2
        square += (high**3 - low**3) / 3
    return math.exp(-min(max(product / square * step, 0.0), MOST_LEAKAGE)) if square > 0 else 1.0


@pyscript_compile
def soc_usage(found, energy, now, start, step, end):
    """Return the mean power (W) of the usage forecast in each step, from now on."""
    powers = []
    coming = [each for each in found.usage if each[1] > now and each[0] < end and each[2]]
    for place in range(round((end - start) / step) if coming else 0):
        begin = max(start + place * step, now)
        until = start + (place + 1) * step
        inside = [
            (min(until, last) - max(begin, first)) * rate
            for first, last, rate in coming
            if first < until and last > begin
        ]
        powers.append(sum(inside) / step * energy)
    return powers


@pyscript_compile
def coverable(powers, soc, gain, first_gain, keeps, full, step):
    """Return the usage (W) that the device can serve: FlexMeasures has no plan at all for more.

    `soc` is the state of charge (Wh) now, `gain` what a step of full power adds to it.
    """
    served, hours = [], step / 3600
    for power in powers:
        most = soc * keeps + (gain if served else first_gain)
        taken = min(power, ALMOST * most / hours)
        soc = min(most - taken * hours, full)
        served.append(taken)
    return served


@pyscript_compile
def operation_modes(found):
    """Return the ranges of power of a device whose power has steps, else nothing.

    That is so for one actuator with a gap between its powers; several share the power among them.
    """
    if len(found.actuators) != 1 or found.step < plans.LEAST_WATTS:
        return []
    middle = (found.bottom + found.top) / 2
    elements = [devices.element_at(mode, middle) for mode in found.actuators[0].modes.values()]
    return sorted({tuple(sorted(each.powers)) for each in elements})


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return frbc_plan.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return how a status departs from what the plan expects of the device now, or None."""
    kind = message.message_type
    if kind == STATUS[0]:
        return level_departs(found, plan, message.present_fill_level, now)
    if kind == ACTUATOR_STATUS:
        return mode_departs(found, plan, message, now)
    return None


@pyscript_compile
def moved(found, state, message):
    """Tell whether a status tells of another fill level than a plan was asked for."""
    tolerance = LEVEL_TOLERANCE * (found.top - found.bottom)
    return message.message_type == STATUS[0] and abs(message.present_fill_level - state.level) > tolerance


@pyscript_compile
def level_departs(found, plan, level, now):
    """Tell where a fill level is not what is expected."""
    expected = frbc_plan.level_at(plan, now)
    if abs(level - expected) > LEVEL_TOLERANCE * (found.top - found.bottom):
        return f"the fill level is {level:g}, expected was {expected:g}"
    return None


@pyscript_compile
def mode_departs(found, plan, message, now):
    """Tell where an actuator does not do what it was told; what it did shortly before counts too."""
    told = [each for each in plan.changes if each.actuator == message.actuator_id and each.moment <= now]
    actuator = next((each for each in found.actuators if each.id == message.actuator_id), None)
    if actuator is None or not told or now - told[-1].moment < plans.LAG_SECONDS:
        return None
    mode = actuator.modes.get(message.active_operation_mode_id)
    last = told[-1]
    if mode is None:
        return "an operation mode is active that no instruction may ask for"
    level = frbc_plan.level_at(plan, now)
    power = devices.power_of(devices.element_at(mode, level), message.operation_mode_factor)
    wanted = devices.power_of(devices.element_at(actuator.modes[last.mode], level), last.factor)
    return plans.power_departs(power, wanted, tolerance(found)) or (
        f"{mode.label} is active, expected was {actuator.modes[last.mode].label}"
        if mode.id != last.mode
        else None
    )


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    recently = [frbc_plan.power_at(plan, now - plans.LAG_SECONDS * part) for part in (0, 0.5, 1)]
    departs = [plans.power_departs(power, each, tolerance(found)) for each in recently]
    return departs[0] if all(departs) else None


@pyscript_compile
def tolerance(found):
    """Return by how much a power may depart from the plan (W)."""
    return plans.tolerance(max(found.most, found.least))


@pyscript_compile
def fields(change):
    """Return the fields of the FRBC.Instruction that a Change calls for, but for its ids."""
    return {
        "actuator_id": change.actuator,
        "operation_mode": change.mode,
        "operation_mode_factor": round(change.factor, 6) + 0.0,
        "abnormal_condition": False,
    }


@pyscript_compile
def message_type(_change):
    """Return the type of the message that a Change calls for."""
    return INSTRUCTION


@pyscript_compile
def describe(found, change, _now):
    """Return what a Change says, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of(found.actuators, change)
    return {**fields(change), "label": label, "power": round(change.power)}


@pyscript_compile
def missed(plan):
    """Return the fill levels that a plan does not reach: when, what was wanted, and what is expected."""
    return [
        {
            "datetime": plans.moment(each.moment),
            "asked": each.lowest if each.reached < each.lowest else each.highest,
            "reached": round(each.reached, 3),
        }
        for each in plan.missed
    ]


@pyscript_compile
def present(found: devices.Device, state: frbc_plan.Condition, moment: float) -> list:
    """Return what each actuator does, as the Change at a moment that tells it to go on, where that may be."""
    changes = []
    for actuator in found.actuators:
        active = state.actuators[actuator.id]
        if mode := actuator.modes.get(active.mode):
            factor = devices.FIXED_FACTOR if mode.is_fixed else active.factor
            power = devices.power_of(devices.element_at(mode, state.level), factor)
            changes.append(transitions.Change(moment, actuator.id, mode.id, factor, power, active))
    return changes


@pyscript_compile
def resumed(found: devices.Device, plan: frbc_plan.Plan, told: Any) -> frbc_plan.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot."""
    state = condition(found, told.memory, told.heard, None, told.now)
    if level_departs(found, plan, state.level, told.now):
        return None
    return plans.resumed(plan, found.actuators, state.actuators, told.begin)


@pyscript_compile
def refuse_without_description(memory):
    """Raise InvalidInstruction where nothing is described yet."""
    if DESCRIPTION not in memory:
        raise errors.InvalidInstruction(
            f"resource_id: it has not sent {DESCRIPTION[0]} yet: call again later"
        )


@pyscript_compile
def checked(memory, state, call, now):
    """Return the fields of the FRBC.Instruction that a call asks for; raise InvalidInstruction.

    A mode is given by its id or label; without `actuator_id` it is the only actuator's. From the mode
    that is active there must be a transition, and no timer may block it at the execution_time.
    """
    if DESCRIPTION not in memory:
        raise errors.InvalidInstruction(
            f"resource_id: it has not sent {DESCRIPTION[0]} yet: call again later"
        )
    actuators = memory[DESCRIPTION].actuators
    names = ids_and_labels(actuators)
    wanted = call.get("actuator_id")
    if wanted is None and len(actuators) > 1:
        raise errors.InvalidInstruction(f"actuator_id: there are several, give one of {names}")
    actuator = next((each for each in actuators if wanted in (None, each.id, each.diagnostic_label)), None)
    if actuator is None:
        raise errors.InvalidInstruction(f"actuator_id: there is no {texts.quoted(wanted)!r}, but {names}")
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
        check_transition(actuator, mode, is_abnormal, state.actuators[actuator.id], executed)
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
def ids_and_labels(described: list) -> str:
    """Return the ids of modes or actuators, with their labels, of the first of them."""
    return texts.few(f"{texts.quoted(each.id)} ({transitions.short_label(each)})" for each in described)


@pyscript_compile
def mode_of(actuator, wanted):
    """Return an actuator's mode by its id or label."""
    modes = actuator.operation_modes
    found = [each for each in modes if each.id == wanted] or [
        each for each in modes if each.diagnostic_label == wanted
    ]
    if len(found) != 1:
        wrong = "several are called" if found else "there is no"
        raise errors.InvalidInstruction(
            f"operation_mode: {wrong} {texts.quoted(wanted)!r}, but {ids_and_labels(modes)}"
        )
    return found[0]


@pyscript_compile
def check_transition(actuator, mode, is_abnormal, state, executed):
    """Refuse a mode that there is no transition to at a moment, as far as is known."""
    if state.mode in (None, mode.id) or state.mode not in [each.id for each in actuator.operation_modes]:
        return
    ways = [
        each
        for each in actuator.transitions
        if each.from_ == state.mode
        and each.to == mode.id
        and (is_abnormal or not each.abnormal_condition_only)
    ]
    if not ways:
        names = {each.id: transitions.short_label(each) for each in actuator.operation_modes}
        reachable = {names[each.to] for each in actuator.transitions if each.from_ == state.mode}
        raise errors.InvalidInstruction(
            f"operation_mode: from {names[state.mode]}, which is active, there is no transition to "
            f"{names[mode.id]}; there is one to {texts.few(sorted(reachable)) or 'none'}"
        )
    free = min(max([state.timers.get(each, 0) for each in way.blocking_timers], default=0) for way in ways)
    if free > executed:
        raise errors.InvalidInstruction(
            f"operation_mode: a timer blocks the transition until {plans.moment(free).isoformat()}: give "
            f"a later execution_time"
        )


@pyscript_compile
def change_of(found, state, given):
    """Return (Change, mode) that an instruction's fields mean, or None twice where no plan may ask for it."""
    actuator = next(each for each in found.actuators if each.id == given["actuator_id"])
    mode = actuator.modes.get(given["operation_mode"])
    if mode is None:
        return None, None
    before, factor, at = state.actuators[actuator.id], given["operation_mode_factor"], given["execution_time"]
    power = devices.power_of(devices.element_at(mode, state.level), factor)
    active = transitions.Active(mode.id, factor, at.timestamp(), before.timers)
    for each in actuator.transitions.get(before.mode, ()):
        if each.to == mode.id:
            end = at.timestamp() + each.duration
            timers = {timer: at.timestamp() + actuator.durations[timer] for timer in each.start_timers}
            active = transitions.Active(mode.id, factor, end, before.timers | timers)
    return transitions.Change(at.timestamp(), actuator.id, mode.id, factor, power, active), mode
