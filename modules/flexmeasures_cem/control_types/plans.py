"""Plans: the changes that a device is instructed to make, and the power that is expected meanwhile.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import flexmeasures_cem.control_types.operation_modes.transitions as transitions

LAG_SECONDS = 30
"""A device may deviate from the plan for this long after a change."""
POWER_TOLERANCE_SHARE = 0.1
"""A power may deviate from the plan by this share of the greatest power."""
MIN_POWER_W = 1.0


@dataclass(frozen=True)
class _Missed:
    """A target that the plan misses: its moment, the value asked for, and the value reached."""

    moment: float
    asked: float
    reached: float


Missed = _Missed


@dataclass(frozen=True)
class _PowerPiece:
    """Some time in which the power that is expected stays the same."""

    start: float
    end: float
    power_w: float


PowerPiece = _PowerPiece


@dataclass
class _Plan:
    """Changes in order of their moments, and the expected power as PowerPieces, in order.

    A change has at least a `moment` and the `power` (W) expected from then on. `cost` is the expected cost
    (currency), `other_cost` the part of it that is not for electricity.
    """

    start: float
    end: float
    changes: list[transitions.Change]
    pieces: list[PowerPiece]
    missed: list[Missed] = field(default_factory=list)
    cost: float = 0.0
    other_cost: float = 0.0


Plan = _Plan


class _Expectation(Protocol):
    """Anything with expected powers: a plan, or an envelope of it."""

    @property
    @pyscript_compile
    def pieces(self) -> Sequence[PowerPiece]:
        """Return the pieces."""


Expectation = _Expectation


class _ChangingPlan(Protocol):
    """A plan with changes, in order of their moments, of the control type's own kind."""

    @property
    @pyscript_compile
    def start(self) -> float:
        """Return the moment at which the plan begins."""

    @property
    @pyscript_compile
    def changes(self) -> Sequence[Any]:
        """Return the changes."""


ChangingPlan = _ChangingPlan


class _ModePlan(Protocol):
    """A plan whose changes are from one operation mode or factor to another."""

    @property
    @pyscript_compile
    def start(self) -> float:
        """Return the moment at which the plan begins."""

    @property
    @pyscript_compile
    def changes(self) -> Sequence[transitions.Change]:
        """Return the changes."""


ModePlan = _ModePlan


@pyscript_compile
def start_of(piece: PowerPiece) -> float:
    """Return the moment that a piece starts at."""
    return piece.start


@pyscript_compile
def power_at(plan: Expectation, moment: float) -> float:
    """Return the expected power (W) at a moment, 0 outside the plan."""
    place = bisect_right(plan.pieces, moment, key=start_of) - 1
    is_planned = place >= 0 and moment < plan.pieces[place].end
    return plan.pieces[place].power_w if is_planned else 0.0


@pyscript_compile
def mean_power(plan: Expectation, start: float, end: float) -> float:
    """Return the mean expected power (W) from `start` to `end`."""
    energy = sum(
        piece.power_w * max(0.0, min(piece.end, end) - max(piece.start, start)) for piece in plan.pieces
    )
    return energy / (end - start)


@pyscript_compile
def merged(pieces: Iterable[PowerPiece]) -> list[PowerPiece]:
    """Merge neighbouring pieces of the same power."""
    joined: list[PowerPiece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.power_w == piece.power_w and last.end == piece.start:
            joined[-1] = replace(last, end=piece.end)
        else:
            joined.append(piece)
    return joined


@pyscript_compile
def last_instructed(plan: ChangingPlan | None, now: float, actuator: str | None = None) -> Any:
    """Return the last change (of an actuator) that was due by `now`, or None."""
    changes = [change for change in plan.changes if change.moment <= now] if plan else []
    matching = [change for change in changes if actuator in (None, change.actuator)]
    return matching[-1] if matching else None


@pyscript_compile
def resumed[P: ModePlan](
    plan: P,
    actuators: Sequence[transitions.Actuator],
    actives: Mapping[Any, transitions.Active],
    begin: float,
) -> P | None:
    """Return the plan if a device can resume it after a reconnection, else None.

    The device must have the planned operation modes, and its `actuators` must be in the mode that is due, or
    have a transition to it that no timer blocks. `actives` has the Active of each actuator by its id.
    """
    modes = {actuator.id: actuator.modes for actuator in actuators}
    if not all(change.mode in modes.get(change.actuator, {}) for change in plan.changes):
        return None
    for actuator in actuators:
        due: transitions.Change | None = last_instructed(plan, begin, actuator.id)
        active = actives[actuator.id]
        if due is None or active.mode in (None, due.mode):
            continue
        ways = [way for way in transitions.leaving(actuator, active.mode) if way.to == due.mode]
        is_free = [transitions.earliest(way, begin, active.timers) <= begin for way in ways]
        if active.ready > begin or not any(is_free):
            return None
    return plan


@pyscript_compile
def is_settling(plan: ChangingPlan, now: float, actuator: str | None = None) -> bool:
    """Return whether a device, or one of its actuators, may not have executed its latest instruction yet."""
    change = last_instructed(plan, now, actuator)
    active = getattr(change, "active", None)
    begins = [plan.start, *([change.moment] if change else []), *([active.ready] if active else [])]
    return bool(now - max(begins) < LAG_SECONDS)


@pyscript_compile
def power_tolerance(greatest: float) -> float:
    """Return the tolerated deviation (W) for a device's greatest power (W)."""
    return max(POWER_TOLERANCE_SHARE * greatest, MIN_POWER_W)


@pyscript_compile
def power_deviation(power: float, expected: float, tolerance: float) -> str | None:
    """Return how a power (W) deviates from the expected one, or None."""
    if abs(power - expected) > tolerance:
        return f"the power is {power:.0f} W, expected was {expected:.0f} W"
    return None


@pyscript_compile
def measured_power_deviation(plan: Expectation, power: float, now: float, tolerance: float) -> str | None:
    """Return how a measured power (W) deviates from the plan of now and of LAG_SECONDS ago, or None."""
    expected = [power_at(plan, now - LAG_SECONDS * part) for part in (0, 0.5, 1)]
    departs = [power_deviation(power, power_w, tolerance) for power_w in expected]
    return departs[0] if all(departs) else None


@pyscript_compile
def upcoming(plan: ChangingPlan, now: float) -> list[Any]:
    """Return the changes after `now`."""
    return [change for change in plan.changes if change.moment > now]


@pyscript_compile
def missed_targets(plan: Plan) -> list[dict[str, Any]]:
    """Return the missed targets as users read them."""
    return [
        {
            "datetime": moment(missed.moment),
            "asked": round(missed.asked, 3),
            "reached": round(missed.reached, 3),
        }
        for missed in plan.missed
    ]


@pyscript_compile
def moment(seconds: float) -> datetime:
    """Return a moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
