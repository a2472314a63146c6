"""A device under operation mode based control, as a part of the site model."""

from dataclasses import dataclass
from typing import Any

import flexmeasures_cem.control_types.operation_modes.model as operation_modes
import flexmeasures_cem.control_types.operation_modes.modes as modes


@dataclass(eq=False, repr=False)
class _Part:
    """A device in a Site: its power (kW) there, and its Plan of a solution."""

    site: Any
    device: Any
    state: Any
    tariffs: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        site, device, state, tariffs = self.site, self.device, self.state, self.tariffs
        active = state.actuators[None]
        actuator = modes.as_it_is(device, active)
        idle = operation_modes.idle(actuator)
        self.model = operation_modes.ActuatorModel(site, actuator, active, idle)
        self.power = operation_modes.priced(self.model, tariffs)
        site.add(self.power)

    @pyscript_compile
    def plan(self, solution, market):
        """Return the Plan of a solution in a market (market.Intervals)."""
        plan, _pieces = operation_modes.plan_of(self.state, [self.model], self.tariffs, solution, market)
        return plan


Part = _Part


@pyscript_compile
def cuts(device: Any, state: Any) -> list:
    """Return moments (s since 1970) at which an edge of the grid helps: when it can go on."""
    return operation_modes.cuts([device], [state.actuators[None]])[: operation_modes.MAX_CUTS]


@pyscript_compile
def add(site: Any, device: Any, state: Any, _wanted: Any, tariffs: dict, _storage: Any = None) -> Part:
    """Add a device in a state (modes.State) to a Site; it follows no schedule, and has no storage."""
    return Part(site, device, state, tariffs)
