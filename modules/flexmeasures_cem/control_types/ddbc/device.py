"""Demand driven based control: actuators and the demand, read from their messages.

The demand has no unit in S2: it is that of the supply. Moments are seconds since 1970.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from s2python.ddbc import DDBCAverageDemandRateForecast

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.ddbc as messages
from flexmeasures_s2.rules import Memory

DESCRIPTION, FORECAST = messages.DESCRIPTION, "DDBC.AverageDemandRateForecast"
ACTUATOR_STATUS, TIMER_STATUS = messages.ACTUATOR_STATUS, messages.TIMER_STATUS
MAX_TRANSITIONS = 60
"""How many transitions several actuators may have together, of the mode of each that has the most."""
DemandPiece = tuple[float, float, float]
"""From when until when a demand rate is forecast: start, end, rate."""


@dataclass(kw_only=True)
class _Device:
    """Actuators, and the demand: (least, most) at present, and DemandPieces as it is forecast.

    `present_at` is when the present demand was sent, and `present_until` the end of the interval for which it
    was planned with. `starts` is when each of the forecast's elements starts; `scale` is the greatest supply
    or demand.
    """

    actuators: list[modes.Actuator]
    present: tuple[float, float]
    present_at: float
    forecast: list[DemandPiece] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    scale: float = 0.0
    present_until: float = math.inf

    @property
    @pyscript_compile
    def usual(self) -> float:
        """The demand rate where none is forecast: the middle of the present one."""
        return (self.present[0] + self.present[1]) / 2

    @pyscript_compile
    def demand(self, start: float, end: float, is_present: bool) -> float:
        """Return the mean demand rate between two moments: as forecast, or else as it is at present.

        For the present, the forecast is kept within the present demand, but where another of its elements has
        begun since that was sent.
        """
        total, covered_seconds = 0.0, 0.0
        first = max(bisect_right(self.starts, start) - 1, 0)
        for begin, until, rate in self.forecast[first : bisect_left(self.starts, end)]:
            seconds = min(end, until) - max(start, begin)
            if seconds > 0:
                if is_present and begin <= self.present_at:
                    rate = min(max(rate, self.present[0]), self.present[1])
                total, covered_seconds = total + rate * seconds, covered_seconds + seconds
        rest_seconds = end - start - covered_seconds
        return (total + self.usual * max(rest_seconds, 0.0)) / (end - start)


Device = _Device


@pyscript_compile
def missing_message(memory: Memory) -> str | None:
    """Return which message is still missing to plan on, or None."""
    if (DESCRIPTION,) not in memory:
        return DESCRIPTION
    return None if messages.present_demand(memory) else messages.PRESENT_DEMAND


@pyscript_compile
def valid_from(memory: Memory) -> float:
    """Return from when on the DDBC.SystemDescription holds."""
    return float(memory[DESCRIPTION,].valid_from.timestamp())


@pyscript_compile
def read_device(memory: Memory) -> Device:
    """Return the device of the DDBC.SystemDescription, with its demand."""
    description, latest = memory[DESCRIPTION,], messages.present_demand(memory)
    present = latest.present_demand_rate
    present_at = description.valid_from if latest is description else latest.received_at
    device = Device(
        actuators=[modes.read(actuator, actuator.id) for actuator in description.actuators],
        present=(present.start_of_range, present.end_of_range),
        present_at=present_at.timestamp(),
        forecast=read_forecast(memory.get((FORECAST,))),
    )
    device.starts = [start for start, _end, _rate in device.forecast]
    supplies = [
        max((abs(end) for mode in actuator.modes.values() for end in mode.supply), default=0.0)
        for actuator in device.actuators
    ]
    demands = [abs(rate) for rate in (*device.present, *[rate for _start, _end, rate in device.forecast])]
    device.scale = max(sum(supplies), max(demands))
    return device


@pyscript_compile
def read_forecast(forecast: DDBCAverageDemandRateForecast | None) -> list[DemandPiece]:
    """Return a DemandPiece for each element of a forecast, none without one."""
    if forecast is None:
        return []
    pieces: list[DemandPiece] = []
    start = forecast.start_time.timestamp()
    for element in forecast.elements:
        end = start + min(element.duration.root / 1000, transitions.MAX_SECONDS)
        if end > start:
            pieces.append((start, end, element.demand_rate_expected))
        start = end
    return pieces


@pyscript_compile
def commodities_of(device: Device) -> set[str]:
    """Return the commodities, other than electricity, that the device takes."""
    return modes.commodities_of(device.actuators)


@pyscript_compile
def why_not_plannable(device: Device) -> str | None:
    """Return why a device cannot be planned, or None."""
    count = sum(
        max((len(listed) for listed in actuator.transitions.values()), default=0)
        for actuator in device.actuators
    )
    if len(device.actuators) > 1 and count > MAX_TRANSITIONS:
        return f"its actuators have too many operation modes to be planned together ({count} transitions)"
    if device.scale > modes.MAX_VALUE:
        return (
            f"its supply or demand of {device.scale:g} is outside the supported range ({modes.MAX_VALUE:g})"
        )
    return modes.why_not_plannable(device.actuators)


@pyscript_compile
def last_deadline(_device: Device) -> float:
    """Return the last moment that the plan has to look ahead to: there is none."""
    return 0.0


@pyscript_compile
def read_state(
    device: Device,
    memory: Memory,
    status_received_at: Mapping[Any, float],
    plan: plans.Plan | None,
    now: float,
) -> modes.State:
    """Return the state of the device now: that of its statuses, or of instructions since then.

    `status_received_at` has when the DDBC.ActuatorStatus of each actuator came, by its id; `plan` is the one
    in force, or None.
    """
    actives = {}
    for actuator in device.actuators:
        status = memory.get((ACTUATOR_STATUS, str(actuator.id)))
        finished = transitions.finished(memory, (TIMER_STATUS, str(actuator.id)), now)
        change = plans.last_instructed(plan, now, actuator.id)
        active = transitions.active(actuator, status, finished, change, status_received_at, now)
        actives[actuator.id] = active
    return modes.State(now, actives)
