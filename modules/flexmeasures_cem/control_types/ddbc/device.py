"""Demand driven based control: actuators and the demand, read from their messages.

The demand has no unit in S2: it is that of the supply.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.ddbc as messages

DESCRIPTION, FORECAST = messages.DESCRIPTION, "DDBC.AverageDemandRateForecast"
ACTUATOR_STATUS, TIMER_STATUS = "DDBC.ActuatorStatus", "DDBC.TimerStatus"
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


@pyscript_compile
def missing_message(memory):
    """Return which message is still missing to plan on, or None."""
    if (DESCRIPTION,) not in memory:
        return DESCRIPTION
    return None if messages.present_demand(memory) else messages.PRESENT_DEMAND


@pyscript_compile
def valid_from(memory):
    """Return from when on the description holds."""
    return memory[DESCRIPTION,].valid_from.timestamp()


@pyscript_compile
def read_device(memory):
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
        end = start + min(element.duration.root / 1000, transitions.MAX_SECONDS)
        if end > start:
            found.append((start, end, element.demand_rate_expected))
        start = end
    return found


@pyscript_compile
def commodities_of(found):
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of(found.actuators)


@pyscript_compile
def why_not_plannable(found):
    """Return why a device cannot be planned, or None."""
    ways = sum(
        max((len(listed) for listed in each.transitions.values()), default=0) for each in found.actuators
    )
    if len(found.actuators) > 1 and ways > MOST_WAYS:
        return f"its actuators have too many operation modes to be planned together ({ways} transitions)"
    if found.scale > modes.MAX_VALUE:
        return "its demand is beyond all sense"
    return modes.why_not_plannable(found.actuators)


@pyscript_compile
def last_deadline(_found):
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


@pyscript_compile
def read_state(found, memory, heard, plan, now):
    """Return what the device is now: as it told, or as it was told later.

    `heard` has when each actuator told its status last; `plan` is the one in force, or None.
    """
    actives = {}
    for each in found.actuators:
        status = memory.get((ACTUATOR_STATUS, each.id))
        finished = transitions.finished(memory, (TIMER_STATUS, each.id), now)
        told = plans.last_instructed(plan, now, each.id)
        actives[each.id] = transitions.active(each, status, finished, told, heard, now)
    return modes.State(now, actives)
