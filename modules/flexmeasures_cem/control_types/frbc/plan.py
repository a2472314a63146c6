"""The plan of a device under fill rate based control: changes, expected fill levels, missed targets.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

from bisect import bisect_right
from dataclasses import dataclass

import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans


@dataclass(frozen=True)
class _Target:
    """A fill level target that is missed: its time and range, and the worst level with its moment.

    `lack` is how far the target is missed: at the worst, plus in the mean of the time.
    """

    start: float
    end: float
    lowest: float
    highest: float
    reached: float
    moment: float
    lack: float


Target = _Target


@dataclass
class _Plan:
    """Changes in order of their moments, the expected powers and levels, and the missed targets.

    After `end` the device stays at rest. `cost` is the expected cost (currency), `other_cost` the part of it
    that is not for electricity. The storage gains `gained_kwh` until the end, each worth `value_per_kwh` then
    (currency).
    """

    start: float
    end: float
    changes: list[transitions.Change]
    pieces: list[devices.LevelPiece]
    missed: list[Target]
    cost: float = 0.0
    other_cost: float = 0.0
    gained_kwh: float = 0.0
    value_per_kwh: float = 0.0


Plan = _Plan


@pyscript_compile
def missed_targets(device: devices.Device, plan: Plan) -> list[Target]:
    """Return the targets that a plan misses, and where the fill level leaves the storage's range."""
    hair = 1.5 * devices.RANGE_MARGIN * (device.top - device.bottom)
    missed = []
    whole = (plan.start, plan.end, device.bottom, device.top)
    for start, end, lowest, highest in [*device.targets, whole]:
        first, last = max(start, plan.start), min(end, plan.end)
        if first > last or (first == last and end > start):
            continue
        levels = levels_between(plan, first, last)
        low, high = (
            min(levels, key=lambda moment_and_level: moment_and_level[1]),
            max(levels, key=lambda moment_and_level: moment_and_level[1]),
        )
        lowest, highest = max(lowest, device.bottom), min(highest, device.top)
        worst, reached, moment = max((lowest - low[1], low[1], low[0]), (high[1] - highest, high[1], high[0]))
        if worst > hair:
            lack = worst + mean_lack(plan, first, last, lowest, highest)
            missed.append(Target(first, last, lowest, highest, reached, moment, lack))
    return missed


@pyscript_compile
def mean_lack(plan: Plan, first: float, last: float, lowest: float, highest: float) -> float:
    """Return how far the fill level is outside a range, in the mean of a time."""
    total = 0.0
    for piece in plan.pieces:
        length = min(piece.end, last) - max(piece.start, first)
        if length > 0:
            level = (piece.start_level + piece.end_level) / 2
            total += length * max(lowest - level, level - highest, 0.0)
    return total / (last - first) if last > first else 0.0


@pyscript_compile
def levels_between(plan: Plan, first: float, last: float) -> list[tuple[float, float]]:
    """Return (moment, fill level) at the start and end of a time, and at the borders of pieces in between."""
    levels = [(first, level_at(plan, first)), (last, level_at(plan, last))]
    for piece in plan.pieces:
        if first < piece.start < last:
            levels.append((piece.start, piece.start_level))
    return levels


@pyscript_compile
def piece_at(plan: Plan, moment: float) -> devices.LevelPiece:
    """Return the piece at a moment; before the plan the first, after it the last."""
    return plan.pieces[max(0, bisect_right(plan.pieces, moment, key=plans.start_of) - 1)]


@pyscript_compile
def level_at(plan: Plan, moment: float) -> float:
    """Return the expected fill level at a moment."""
    piece = piece_at(plan, moment)
    share = min(max((moment - piece.start) / (piece.end - piece.start), 0.0), 1.0)
    return piece.start_level + share * (piece.end_level - piece.start_level)


@pyscript_compile
def power_at(plan: Plan, moment: float) -> float:
    """Return the expected power (W) at a moment."""
    return piece_at(plan, moment).power_w
