"""Actuators whose modes take a power, as a part of the site model: OMBC has one of them, DDBC several."""

from collections.abc import Sequence
from dataclasses import dataclass

import flexmeasures_cem.control_types.operation_modes.model as operation_modes
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites


@dataclass(eq=False, repr=False)
class _SitePart:
    """Actuators in a Site: their `power` (kW) there, and their Plan of a solution.

    `possible` are the actuators with what their modes can do from the `state` on, and `models` theirs.
    """

    site: sites.Site
    actuators: Sequence[modes.Actuator]
    state: modes.State
    tariffs: markets.Tariffs
    is_momentary: bool = False

    @pyscript_compile
    def __post_init__(self) -> None:
        actives = [self.state.actuators[actuator.id] for actuator in self.actuators]
        self.possible = [
            modes.as_it_is(actuator, active) for actuator, active in zip(self.actuators, actives, strict=True)
        ]
        self.models = [
            operation_modes.ActuatorModel(
                self.site, actuator, active, operation_modes.idle(actuator), self.is_momentary
            )
            for actuator, active in zip(self.possible, actives, strict=True)
        ]
        powers = [operation_modes.priced(model, self.tariffs) for model in self.models]
        self.power = linear.total(powers, self.site.grid.count)
        self.site.add(self.power)

    @pyscript_compile
    def plan(self, solution: linear.Solution, market: Sequence[markets.Interval]) -> plans.Plan:
        """Return the Plan of a solution in a market."""
        plan, _pieces = self.plan_and_pieces(solution, market)
        return plan

    @pyscript_compile
    def plan_and_pieces(
        self, solution: linear.Solution, market: Sequence[markets.Interval]
    ) -> tuple[plans.Plan, list[operation_modes.Piece]]:
        """Return the Plan of a solution in a market, and the Pieces that it comes from."""
        return operation_modes.plan_of(self.state, self.models, self.tariffs, solution, market)


SitePart = _SitePart
