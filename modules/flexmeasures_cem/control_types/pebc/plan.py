"""The plan of a device under power envelope based control: envelopes, and whether two of them are the same.

Moments are seconds since 1970, power is W, consumption positive; amounts are those of one side of an envelope
(see device.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import flexmeasures_cem.control_types.pebc.device as devices
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets

SAME_SHARE = 0.001
"""Limits that differ by less than this share are the same."""
MAX_ELEMENTS = 288
TAIL_SECONDS = 3600.0
"""An envelope replaces the same one in force if its limits last longer than that by more than this."""
MIN_COMPARED_SECONDS = 2.0
"""Differences between envelopes that last less than this are ignored."""
HISTORY_SECONDS = 172_800.0
"""Past envelopes are remembered for this long, or since the start of an energy constraint."""


@dataclass(frozen=True, eq=False)
class _Change:
    """An envelope from a moment on, under the constraints with the id `constraints`.

    `elements` are its limits, `widest` the limits of an unlimited envelope, `pieces` the expected powers, and
    `power` the first of these (W).
    """

    moment: float
    power: float
    constraints: str
    elements: list[devices.Element]
    widest: devices.Limits
    pieces: list[plans.PowerPiece]
    actuator: str | None = None


Change = _Change


@dataclass
class _Plan(plans.Plan):
    """A Plan, with the Elements that the device was instructed to keep before its start."""

    changes: list[Change]  # type: ignore[assignment]  # pydantic reads these from a plan that was kept
    instructed: list[devices.Element] = field(default_factory=list)


Plan = _Plan


@dataclass
class _Slot:
    """A time of a plan within an interval of the market: `forecast` and `power` are W.

    `amounts` are those allowed by side (W); on the `deferred` sides the device takes all of it.
    """

    start: float
    end: float
    constraints: devices.Constraints | None
    interval: markets.Interval
    forecast: float
    amounts: dict[int, float] = field(default_factory=dict)
    deferred: tuple[int, ...] = ()
    power: float = 0.0


Slot = _Slot


@pyscript_compile
def kept(changes: Iterable[Change], change: Change, begin: float) -> Change:
    """Return the Change that was instructed already, if it is the same as `change`, else `change`.

    At the plan's start (`begin`) that is the one in force, later the one that begins at the same moment.
    """
    before = [earlier for earlier in changes if earlier.moment <= change.moment + 1.0]
    if before and (change.moment == begin or before[-1].moment > change.moment - 1.0):
        return before[-1] if is_same_instruction(before[-1], change) else change
    return change


@pyscript_compile
def is_same_instruction(sent: Change, following: Change) -> bool:
    """Return whether an envelope that was sent has the same limits as one that begins then or later.

    It must last for at least half of the time of `following`; if that lasts for more than an hour longer, the
    additional time must be without limits.
    """
    begin, last = following.moment, following.elements[-1].end
    end = sent.elements[-1].end
    if sent.constraints != following.constraints or sent.moment > begin + 1.0 or end > last + TAIL_SECONDS:
        return False
    if end - begin < (last - begin) / 2:
        return False
    tail = devices.between(following.elements, end, last)
    if last - end > TAIL_SECONDS and not all(same(element.limits, following.widest) for element in tail):
        return False
    points = sorted(
        {element.start for change in (sent, following) for element in change.elements}
        | {begin, min(end, last)}
    )
    return all(
        same(
            devices.limits_at(sent.elements, (start + until) / 2),
            devices.limits_at(following.elements, (start + until) / 2),
        )
        for start, until in pairwise(points)
        if start >= begin and until <= min(end, last) and until - start > MIN_COMPARED_SECONDS
    )


@pyscript_compile
def same(limits: devices.Limits | None, other_limits: devices.Limits | None) -> bool:
    """Return whether limits by quantity are the same, with a tolerance."""
    if limits is None or other_limits is None or limits.keys() != other_limits.keys():
        return limits is other_limits
    return all(
        abs(value - other_value) <= max(plans.MIN_POWER_W, SAME_SHARE * abs(other_value))
        for name in limits
        for value, other_value in zip(limits[name], other_limits[name], strict=True)
    )


@pyscript_compile
def expected(slot: Slot) -> float:
    """Return the expected power (W): the deferred amounts, or the forecast within the limits."""
    if slot.constraints is None:
        return slot.forecast
    if slot.deferred:
        return sum(side * slot.amounts[side] for side in slot.deferred)
    return min(max(slot.forecast, -slot.amounts[-1]), slot.amounts[1])


@pyscript_compile
def joined[Value](pieces: Iterable[tuple[float, float, Value]]) -> list[tuple[float, float, Value]]:
    """Merge neighbouring pieces (start, end, value) of the same value."""
    merged: list[tuple[float, float, Value]] = []
    for start, end, value in pieces:
        if merged and merged[-1][2] == value and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end, value
        else:
            merged.append((start, end, value))
    return merged


@pyscript_compile
def changes_of(slots: Iterable[Slot], pieces: Sequence[plans.PowerPiece]) -> list[Change]:
    """Return a Change for each time with the same constraints."""
    runs: list[tuple[devices.Constraints, list[Slot]]] = []
    for slot in slots:
        if slot.constraints is None:
            continue
        if runs and runs[-1][0] is slot.constraints and runs[-1][1][-1].end == slot.start:
            runs[-1][1].append(slot)
        else:
            runs.append((slot.constraints, [slot]))
    return [change_of(constraints, run, pieces) for constraints, run in runs]


@pyscript_compile
def change_of(
    constraints: devices.Constraints, run: Sequence[Slot], pieces: Iterable[plans.PowerPiece]
) -> Change:
    """Return the Change of consecutive Slots under the same constraints."""
    start, end = run[0].start, run[-1].end
    inside = [
        replace(piece, start=max(piece.start, start), end=min(piece.end, end))
        for piece in pieces
        if piece.start < end and piece.end > start
    ]
    most = {side: constraints.sides[side].ranges[-1][1] for side in devices.SIDES}
    limits = [
        (slot.start, slot.end, devices.limits_of(constraints, slot.amounts))
        for slot in coarse(constraints, run)
    ]
    elements = [devices.Element(*limit) for limit in joined(limits)]
    return Change(
        start, inside[0].power_w, constraints.id, elements, devices.limits_of(constraints, most), inside
    )


@pyscript_compile
def coarse(constraints: devices.Constraints, slots: Iterable[Slot]) -> list[Slot]:
    """Merge Slots to at most MAX_ELEMENTS: first those of equal amounts, then distant ones."""
    coarser: list[Slot] = []
    for slot in slots:
        if coarser and coarser[-1].amounts == slot.amounts:
            coarser[-1] = replace(coarser[-1], end=slot.end)
        else:
            coarser.append(slot)
    if len(coarser) <= MAX_ELEMENTS:
        return coarser
    near = MAX_ELEMENTS // 2
    far, size = coarser[near:], -(-(len(coarser) - near) // near)
    return coarser[:near] + [
        together(constraints, far[place : place + size]) for place in range(0, len(far), size)
    ]


@pyscript_compile
def together(constraints: devices.Constraints, slots: Sequence[Slot]) -> Slot:
    """Return one Slot for several, with the greatest of their amounts that the site's limit leaves."""
    amounts = {
        side: min(
            max(slot.amounts[side] for slot in slots), min(ceiling(constraints, slot, side) for slot in slots)
        )
        for side in devices.SIDES
    }
    return replace(slots[0], end=slots[-1].end, amounts=amounts)


@pyscript_compile
def ceiling(constraints: devices.Constraints, slot: Slot, side: int) -> float:
    """Return the amount (W) that the site's limit leaves of one side."""
    ranges = constraints.sides[side].ranges
    interval = slot.interval
    capacity = interval.consumption_capacity if side > 0 else interval.production_capacity
    room = max(capacity - side * interval.load, 0.0)
    is_lost = side < 0 and not constraints.is_deferred and slot.forecast < 0
    may = min(ranges[-1][1], -slot.forecast) if is_lost else ranges[-1][1]
    return devices.down(ranges, room) if may > room else ranges[-1][1]


@pyscript_compile
def remembered(
    device: devices.Device, instructed: Iterable[devices.Element], now: float
) -> list[devices.Element]:
    """Return the past Elements to remember, with neighbours of the same limits merged."""
    first = min([now - HISTORY_SECONDS, *[energy.start for energy in device.energies if energy.end > now]])
    pieces = [
        (element.start, element.end, element.limits) for element in devices.between(instructed, first, now)
    ]
    return [devices.Element(*piece) for piece in joined(pieces)]
