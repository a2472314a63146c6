"""Demand driven based control: which modes supply a demand, and how much each, at the least cost.

The demand has no unit in S2: it is that of the supply. It is met at every moment where that can be; the
choice is made here, by FlexMeasures' prices and the tariffs of other commodities.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any

import flexmeasures_cem.modes as modes
import flexmeasures_cem.plans as plans
import flexmeasures_cem.transitions as transitions
import flexmeasures_s2.ddbc as messages

CONTROL_TYPE = "DEMAND_DRIVEN_BASED_CONTROL"
INSTRUCTION = "DDBC.Instruction"
DESCRIPTION, FORECAST = messages.DESCRIPTION, "DDBC.AverageDemandRateForecast"
ACTUATOR_STATUS, TIMER_STATUS = "DDBC.ActuatorStatus", "DDBC.TimerStatus"
CALL_FOR_A_PLAN = (DESCRIPTION, FORECAST)
"""The messages that change the problem; a DDBC.PresentDemandStatus does where it departs from the plan."""
PLAN = plans.Plan
DEMAND_TOLERANCE = 0.02
"""By which part of the greatest supply or demand the present demand may differ from what was planned with."""
MOST_WAYS = 60
"""How many transitions its actuators may have together, counting each one's mode of the most."""


@dataclass(kw_only=True)
class _Device:
    """Actuators, and the demand: (least, most) at present, and (start, end, rate) as it is forecast.

    `told` is of when the present demand is, and `present_until` the end of the interval for which it was
    planned with. `starts` is when each of the forecast's elements starts; `scale` is the greatest supply or
    demand.
    """

    actuators: list
    present: tuple
    told: float
    forecast: list = field(default_factory=list)
    starts: list = field(default_factory=list)
    scale: float = 0.0
    present_until: float = math.inf

    @property
    @pyscript_compile
    def usual(self) -> float:
        """The demand rate where none is forecast: the middle of the present one."""
        return (self.present[0] + self.present[1]) / 2

    @pyscript_compile
    def demand(self, start: float, end: float, is_present: bool) -> float:
        """Return the mean demand rate of some time: as forecast, or else as it is at present.

        For the present, the forecast is kept within what is told of it, but where another of its elements has
        begun since.
        """
        total, covered = 0.0, 0.0
        first = max(bisect_right(self.starts, start) - 1, 0)
        for begin, until_, rate in self.forecast[first : bisect_left(self.starts, end)]:
            length = min(end, until_) - max(start, begin)
            if length > 0:
                if is_present and begin <= self.told:
                    rate = min(max(rate, self.present[0]), self.present[1])
                total, covered = total + rate * length, covered + length
        rest = end - start - covered
        return (total + self.usual * max(rest, 0.0)) / (end - start)


Device = _Device
alike, upcoming, missed = transitions.alike, plans.upcoming, plans.missed


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    if (DESCRIPTION,) not in memory:
        return DESCRIPTION
    return None if messages.present_demand(memory) else messages.PRESENT_DEMAND


@pyscript_compile
def valid_from(memory):
    """Return from when on the description holds."""
    return memory[DESCRIPTION,].valid_from.timestamp()


@pyscript_compile
def device(memory):
    """Return the device that is described, with its demand."""
    description, latest = memory[DESCRIPTION,], messages.present_demand(memory)
    present = latest.present_demand_rate
    told = description.valid_from if latest is description else latest.received_at
    found = Device(
        actuators=[modes.read(each, each.id) for each in description.actuators],
        present=(present.start_of_range, present.end_of_range),
        told=told.timestamp(),
        forecast=read_forecast(memory.get((FORECAST,))),
    )
    found.starts = [each[0] for each in found.forecast]
    supplies = [
        max((abs(end) for mode in each.modes.values() for end in mode.supply), default=0.0)
        for each in found.actuators
    ]
    demands = [abs(each) for each in (*found.present, *[each[2] for each in found.forecast])]
    found.scale = max(sum(supplies), max(demands))
    return found


@pyscript_compile
def read_forecast(message):
    """Return (start, end, demand rate) of each element of a forecast, which may be None."""
    found = []
    start = message.start_time.timestamp() if message else 0.0
    for element in message.elements if message else ():
        end = start + min(element.duration.root / 1000, transitions.AGES)
        if end > start:
            found.append((start, end, element.demand_rate_expected))
        start = end
    return found


@pyscript_compile
def commodities_of(found):
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of(found.actuators)


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None."""
    ways = sum(
        max((len(listed) for listed in each.transitions.values()), default=0) for each in found.actuators
    )
    if len(found.actuators) > 1 and ways > MOST_WAYS:
        return f"its actuators have too many operation modes to be planned together ({ways} transitions)"
    if found.scale > modes.GREATEST:
        return "its demand is beyond all sense"
    return modes.unfit(found.actuators)


@pyscript_compile
def until(_found):
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


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
    return modes.Condition(now, actives)


@pyscript_compile
def problem(_found, _state, _means, _window):
    """Return what FlexMeasures is asked: nothing."""


@pyscript_compile
def present(found: Device, state: modes.Condition, moment: float) -> list:
    """Return what each actuator does, as the Change at a moment that tells it to go on."""
    return modes.present(found.actuators, state, moment)


@pyscript_compile
def resumed(found: Device, plan: plans.Plan, told: Any) -> plans.Plan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot."""
    state = condition(found, told.memory, told.heard, None, told.now)
    return plans.resumed(plan, found.actuators, state.actuators, told.begin)


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return how a status departs from what the plan expects of the device now, or None."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_departs(found, message, now)
    actuator = actuator_of(found, getattr(message, "actuator_id", None))
    if actuator and message.message_type == ACTUATOR_STATUS:
        alone = tolerance(found) if len(found.actuators) == 1 else None
        return modes.status_departs(actuator, message, plan, now, alone)
    if actuator and message.message_type == TIMER_STATUS:
        return modes.timer_departs(actuator, message, plan, now)
    return None


@pyscript_compile
def demand_departs(found: Device, message: object, now: float) -> str | None:
    """Return how the present demand departs from the one that was planned with, or None."""
    present = message.present_demand_rate
    planned = found.demand(now, now + 1.0, now < found.present_until)
    allowed = DEMAND_TOLERANCE * found.scale
    if present.start_of_range - allowed <= planned <= present.end_of_range + allowed:
        return None
    told = f"{present.start_of_range:g} to {present.end_of_range:g}"
    return f"the present demand rate is {told}, expected was {planned:g}"


@pyscript_compile
def actuator_of(found, actuator_id):
    """Return an actuator by its id, or None."""
    return next((each for each in found.actuators if each.id == actuator_id), None)


@pyscript_compile
def tolerance(found):
    """Return by how much a power may depart from the plan (W)."""
    return plans.tolerance(modes.greatest_power(found.actuators))


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_departs(plan, power, now, tolerance(found))


@pyscript_compile
def moved(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type == messages.PRESENT_DEMAND:
        return demand_departs(found, message, state.moment) is not None
    actuator = actuator_of(found, getattr(message, "actuator_id", None))
    if actuator is None or message.message_type not in (ACTUATOR_STATUS, TIMER_STATUS):
        return False
    return modes.is_elsewhere(actuator, state.actuators[actuator.id], message, state.moment)


@pyscript_compile
def message_type(_change):
    """Return the message that a change is told with."""
    return INSTRUCTION


@pyscript_compile
def fields(change):
    """Return the fields of the DDBC.Instruction that a Change calls for, but for its ids and time."""
    return {"actuator_id": change.actuator, **modes.fields(change)}


@pyscript_compile
def describe(found, change, _now):
    """Return what a Change says, with the label of its operation mode and the power expected (W)."""
    label = transitions.label_of(found.actuators, change)
    return {**fields(change), "label": label, "power": round(change.power)}
