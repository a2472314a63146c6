"""What a control type is: the facts and functions that the planning of its devices needs.

Moments are seconds since 1970, power is W of electricity, consumption positive. `memory` has the messages in
force of a session, by their keys. `device`, `state`, `plan` and `change` are of the control type's own kinds,
and a `message` is one of several models: so they are declared as Any.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites
import flexmeasures_s2.rules as rules

Described = dict[str, Any]
"""Fields of an instruction, or what users read of it."""
Schedule = Sequence[tuple[float, float, float]]
"""The powers (start, end, W) of a schedule."""


class _PlanningSensors(Protocol):
    """What FlexMeasures knows a device by, and what is configured of its storage."""

    @property
    @pyscript_compile
    def power_sensor(self) -> int:
        """Return the number of the power sensor."""

    @property
    @pyscript_compile
    def resolution(self) -> float:
        """Return the resolution (s) of the power sensor."""

    @property
    @pyscript_compile
    def soc_sensor(self) -> int | None:
        """Return the number of the sensor that gets the planned state of charge, if there is one."""

    @property
    @pyscript_compile
    def energy(self) -> float | None:
        """Return what a unit of the fill level is configured to be worth (J), or None."""


PlanningSensors = _PlanningSensors


class _PlanningWindow(Protocol):
    """The time that FlexMeasures plans."""

    @property
    @pyscript_compile
    def start(self) -> float:
        """Return the moment at which the window begins."""

    @property
    @pyscript_compile
    def step(self) -> float:
        """Return how long a step is (s)."""

    @property
    @pyscript_compile
    def end(self) -> float:
        """Return the moment at which the window ends."""

    @property
    @pyscript_compile
    def left(self) -> float:
        """Return which part of the first step is left."""

    @property
    @pyscript_compile
    def share(self) -> float:
        """Return how much each device has of what the site may consume (W)."""

    @property
    @pyscript_compile
    def with_modes(self) -> bool:
        """Return whether FlexMeasures' operation modes may be asked for."""


PlanningWindow = _PlanningWindow


class _Reconnection(Protocol):
    """What a device has sent at the moment `now`, after it has connected again."""

    @property
    @pyscript_compile
    def memory(self) -> rules.Memory:
        """Return the messages."""

    @property
    @pyscript_compile
    def heard(self) -> transitions.StatusTimes:
        """Return when the statuses came."""

    @property
    @pyscript_compile
    def now(self) -> float:
        """Return the moment."""

    @property
    @pyscript_compile
    def begin(self) -> float:
        """Return from when on the device can be instructed."""

    @property
    @pyscript_compile
    def sent_until(self) -> float | None:
        """Return up to which moment of execution the plan's instructions were sent; None: all of them."""


Reconnection = _Reconnection


class _SitePart(Protocol):
    """A device in the program of a site."""

    @pyscript_compile
    def plan(self, solution: linear.Solution, market: Sequence[markets.Interval], /) -> Any:
        """Return the plan that a solution comes to in a market."""


SitePart = _SitePart


class _AddToSite(Protocol):
    """Adds a device to the program of a site."""

    @pyscript_compile
    def __call__(
        self,
        site: sites.Site,
        device: Any,
        state: Any,
        schedule: Schedule | None,
        tariffs: Mapping[str, float],
        storage_terms: markets.StorageTerms,
        /,
    ) -> SitePart:
        """Return the part of the program that makes the plan."""


AddToSite = _AddToSite


@dataclass(frozen=True, kw_only=True)
class _ControlType:
    """A control type of S2, and how a device is planned under it.

    Facts: its `name` in S2, the `describing_messages` that change the problem, the class of its plans,
    `flexibility` (the device of least is planned first), whether an actuator `keeps_mode` until the next
    instruction, whether instructions are `sent_when_planned` (a start, or an envelope over time), and whether
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

    missing_message: Callable[[rules.Memory], str | None]
    valid_from: Callable[[rules.Memory], float]
    read_device: Callable[[rules.Memory], Any]
    why_not_plannable: Callable[[Any], str | None]
    last_deadline: Callable[[Any], float]
    read_state: Callable[[Any, rules.Memory, transitions.StatusTimes, Any, float], Any]
    commodities_of: Callable[[Any], set[str]] | None = None

    grid_edges: Callable[[Any, Any], list[float]]
    add_to_site: AddToSite
    flex_model: Callable[[Any, Any, PlanningSensors, PlanningWindow], Any] | None = None
    energy_per_fill_level: Callable[[Any, float | None], Any] | None = None

    message_type: Callable[[Any], str]
    instruction_fields: Callable[[Any], Described]
    describe: Callable[[Any, Any, float], Described]
    is_same_instruction: Callable[[Any, Any], bool]
    upcoming: Callable[[Any, float], Sequence[Any]]
    missed_targets: Callable[[Any], list[Described]]
    present_changes: Callable[[Any, Any, float], Sequence[Any]] | None = None

    planned_power: Callable[[Any, float, float], float]
    deviation: Callable[[Any, Any, Any, float], str | None]
    power_deviation: Callable[[Any, Any, float, float], str | None]
    power_tolerance: Callable[[Any], float]
    has_changed: Callable[[Any, Any, Any], bool]
    resumed: Callable[[Any, Any, Reconnection], Any]


ControlType = _ControlType
