"""Something that is in one of several modes, and goes from one to another by ways that take their time.

A way begins at a step's start, or ends there. On the way nothing runs. Timers that a way starts block others
until they finish; where that is within a step, the step's end counts.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.linear as linear
from flexmeasures_cem.optimisation.arrays import Floats, Integers, Mask, Numbers, as_list

MARGIN_SECONDS = 1.0
"""How long after the end of what blocks it now a way begins, since clocks differ."""
TOLERANCE_SECONDS = 1.5
"""By how much a way may begin late, if what blocks it ends so much after a step's start."""
MAX_SHORT_SHARE = 0.1
"""Which part of a usual step a way takes at most for which one placement at an edge is enough."""
MIN_WHOLE_SHARE = 1.0 - 1e-9
"""From which part of a step on a way takes all of it."""
MIN_CHANGE_SAVING = 1e-5
"""What a change of mode has to save at least (currency)."""
EARLINESS_COST = 1e-8
"""What a change costs more for each step that it is earlier (currency): the later of two as good is taken."""

Timer = str
"""The id of a timer."""


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How to go from one mode (its number; None: an unknown one) to another, by one change or several.

    `seconds` is how long that takes, `cost` what is paid for it (currency). `starts` has (timer, seconds)
    from the way's begin until each timer finishes that it starts, `blocked_by` (timer, seconds) from its
    begin until each must have finished.
    """

    origin: int | None
    target: int
    seconds: float = 0.0
    cost: float = 0.0
    starts: tuple[tuple[Timer, float], ...] = ()
    blocked_by: tuple[tuple[Timer, float], ...] = ()
    changes: int = 1

    @property
    @pyscript_compile
    def is_plain(self) -> bool:
        """Whether it takes no time, costs nothing, and has no timers."""
        return not (self.seconds or self.cost or self.starts or self.blocked_by)

    @pyscript_compile
    def replaces(self, way: "Way") -> bool:
        """Return whether this way does what another one does, whenever that could, at no more cost."""
        starts, blocked_by = dict(way.starts), dict(way.blocked_by)
        return (
            (self.origin, self.target) == (way.origin, way.target)
            and self.seconds <= way.seconds
            and self.cost <= way.cost
            and self.changes <= way.changes
            and all(seconds <= starts.get(timer, -1.0) for timer, seconds in self.starts)
            and all(seconds >= blocked_by.get(timer, math.inf) for timer, seconds in self.blocked_by)
        )


Way = _Way


@pyscript_compile
def without_replaced(ways: Sequence[Way]) -> list[Way]:
    """Return the ways that no other one replaces; of two alike the first."""
    groups: dict[tuple[int | None, int], list[Way]] = {}
    for way in ways:
        groups.setdefault((way.origin, way.target), []).append(way)
    replaced = set()
    for group in groups.values():
        for place, way in enumerate(group):
            earlier = [rival for rival in group[:place] if id(rival) not in replaced]
            later = [rival for rival in group[place + 1 :] if not way.replaces(rival)]
            if any(rival.replaces(way) for rival in earlier + later):
                replaced.add(id(way))
    return [way for way in ways if id(way) not in replaced]


@dataclass(frozen=True, kw_only=True)
class _Present:
    """The mode at the grid's start (None: unknown), when it is reached, and when each timer finishes.

    Moments are seconds since 1970.
    """

    mode: int | None
    ready: float = 0.0
    timers: Mapping[Any, float] = field(default_factory=dict)


Present = _Present


@dataclass(frozen=True, eq=False, kw_only=True)
class _Placement:
    """A way by the edges that it is taken at: `begins` and `ends` are its moments there (s since 1970).

    Its variables in `taken` are for the steps that follow each edge. Where it `is_punctual` it ends there.
    """

    way: Way
    is_punctual: Mask
    begins: Floats
    ends: Floats
    taken: linear.Expression


Placement = _Placement


@dataclass(eq=False, repr=False)
class _Switching:
    """The modes of an actuator over time, from the `present` one on.

    `active[mode]` is 1 in a step that begins in a mode or on the way to it, `running[mode]` where the mode
    runs at any time in the step, and `share[mode]` is which part of the step it runs. `gaps[mode]` has (0 or
    1, part of the step) for each way that takes some part of it.

    In `idle` modes it does not matter how long they run. With `is_prompt` no short way may be late by as much
    as it takes where something blocks it so long.
    """

    program: linear.Program
    grid: grids.TimeGrid
    mode_count: int
    ways: Sequence[Way]
    present: Present
    idle: Collection[int] = ()
    is_prompt: bool = False

    @pyscript_compile
    def __post_init__(self) -> None:
        program, grid, present = self.program, self.grid, self.present
        self.modes, self.ways = range(self.mode_count), without_replaced(self.ways)
        self.earliness_cost = np.asarray(EARLINESS_COST * np.arange(grid.count, 0, -1), float)
        self.placements: list[Placement] = []
        if present.mode is None and not any(way.origin is None for way in self.ways):
            self.active = [linear.constant(np.zeros(grid.count)) for _mode in self.modes]
        else:
            self.active = [program.variables(grid.count, 0.0, 1.0, whole=True) for _mode in self.modes]
            program.equate(linear.total(self.active, grid.count), 1.0)
            if self._is_free():
                self._go_freely()
            else:
                self._go_by_ways()
        self._hint_to_stay()
        self.running: list[linear.Expression] = []
        self.gaps: list[list[tuple[linear.Expression, Floats]]] = []
        self.share: list[linear.Expression] = []
        for mode in self.modes:
            self._run(mode)

    @pyscript_compile
    def _hint_to_stay(self) -> None:
        """Hint at what is always possible: to stay in the present mode."""
        if self.present.mode is not None:
            for mode in self.modes:
                stays = np.full(self.grid.count, float(self.present.mode == mode))
                self.program.hint(self.active[mode], stays)
            for placement in self.placements:
                self.program.hint(placement.taken, np.zeros(self.grid.count))

    @pyscript_compile
    def _is_free(self) -> bool:
        """Return whether any mode that can be reached can be so from any other, at once and for nothing."""
        pairs = {(way.origin, way.target) for way in self.ways if way.is_plain}
        targets = {way.target for way in self.ways}
        origins = [*self.modes, *([None] if self.present.mode is None else [])]
        return all(
            (origin, target) in pairs for origin in origins for target in targets if origin != target
        ) and all(way.is_plain for way in self.ways if way.origin is not None)

    @pyscript_compile
    def _before(self, mode: int) -> linear.Expression:
        """Return whether a mode is active before each step."""
        first = linear.constant([float(self.present.mode == mode)])
        return linear.joined([first, self.active[mode][:-1]])

    @pyscript_compile
    def _go_freely(self) -> None:
        """Keep a mode unless that saves as much as a change has to."""
        targets = {way.target for way in self.ways}
        for mode in self.modes:
            arrived = self.program.variables(self.grid.count, 0.0, 1.0 if mode in targets else 0.0)
            self.program.require(arrived - self.active[mode] + self._before(mode), 0.0)
            self.program.pay(arrived * (MIN_CHANGE_SAVING + self.earliness_cost))
        [held] = np.nonzero(self.grid.starts < self.present.ready - TOLERANCE_SECONDS)
        if self.present.mode is not None and len(held):
            self.program.require(self.active[self.present.mode][held], 1.0)

    @pyscript_compile
    def _go_by_ways(self) -> None:
        """Keep a mode unless a way is taken from it, where nothing blocks that, and pay for ways."""
        program, count = self.program, self.grid.count
        self.placements = [placement for way in self.ways for placement in self._placements(way)]
        for mode in self.modes:
            arrived = linear.total([placement.taken for placement in self._arriving(mode)], count)
            left = linear.total([placement.taken for placement in self._leaving(mode)], count)
            program.equate(self.active[mode], self._before(mode) + arrived - left)
            program.require(self._before(mode) - left, 0.0)
        for placement in self.placements:
            cost = placement.way.cost + MIN_CHANGE_SAVING * placement.way.changes
            program.pay(placement.taken * (cost + self.earliness_cost))
        self._block()

    @pyscript_compile
    def _arriving(self, mode: int) -> list[Placement]:
        """Return the Placements of ways to a mode."""
        return [placement for placement in self.placements if placement.way.target == mode]

    @pyscript_compile
    def _leaving(self, mode: int) -> list[Placement]:
        """Return the Placements of ways from a mode."""
        return [placement for placement in self.placements if placement.way.origin == mode]

    @pyscript_compile
    def _placements(self, way: Way) -> list[Placement]:
        """Return a way's Placements: begun at an edge, or, where that is of more use, ended at one.

        To end at an edge is of no use where an idle mode follows, to begin there where one was before that
        could have been left in time. One that takes a small part of a step has one Placement only.
        """
        edges, free = self.grid.starts, self._free_from(way) - TOLERANCE_SECONDS
        begun, in_time = edges >= free, edges - way.seconds >= edges[0]
        if way.origin is None:
            begun &= np.arange(self.grid.count) == 0
            in_time &= False
        if way.target in self.idle or not way.seconds:
            in_time &= False
        is_short = way.seconds <= MAX_SHORT_SHARE * np.median(self.grid.seconds)
        if is_short:
            before = np.concatenate([[edges[0]], edges[:-1]])
            in_time &= (edges - way.seconds >= np.maximum(free, before)) & (way.origin in self.idle)
            begins: Floats = np.where(in_time, edges - way.seconds, edges)
            return self._placed(way, begins, in_time, begun, self._is_choice(way))
        ended = in_time & (edges - way.seconds >= free)
        if way.origin in self.idle and not way.blocked_by:
            begun &= ~ended
        is_whole = self._is_choice(way) or bool((begun & ended).any())
        return [
            *self._placed(way, edges, np.full(len(edges), False), begun, is_whole),
            *self._placed(way, edges - way.seconds, np.full(len(edges), True), ended, is_whole),
        ]

    @pyscript_compile
    def _is_choice(self, way: Way) -> bool:
        """Return whether the modes alone do not determine if a way is taken: others lead there, too."""
        ends = way.origin, way.target
        return sum((rival.origin, rival.target) == ends for rival in self.ways) > 1

    @pyscript_compile
    def _placed(
        self, way: Way, begins: Floats, is_punctual: Mask, allowed: Mask, is_whole: bool
    ) -> list[Placement]:
        """Return the Placement of a way in the steps where it is allowed, in a list, if there is any."""
        if not allowed.any():
            return []
        taken = self.program.variables(self.grid.count, 0.0, allowed.astype(float), whole=is_whole)
        ends = begins + way.seconds
        return [Placement(way=way, is_punctual=is_punctual, begins=begins, ends=ends, taken=taken)]

    @pyscript_compile
    def _free_from(self, way: Way) -> float:
        """Return from when on the present timers, and a way that is under way, let a way begin."""
        timers, moments = self.present.timers, [-math.inf]
        for timer, offset in way.blocked_by:
            if timer in timers and timers[timer] > self.grid.starts[0] + offset:
                moments.append(timers[timer] + MARGIN_SECONDS - offset)
        if way.origin == self.present.mode and self.present.ready > self.grid.starts[0]:
            moments.append(self.present.ready + MARGIN_SECONDS)
        return max(moments)

    @pyscript_compile
    def _block(self) -> None:
        """Begin no way before the last has ended, nor while a timer blocks it that another has started."""
        for mode in self.modes:
            arriving = [(placement, placement.ends) for placement in self._arriving(mode)]
            leaving = [(placement, self._due(placement)) for placement in self._leaving(mode)]
            self._keep_apart(arriving, leaving, {mode})
        for timer in {timer for way in self.ways for timer, _seconds in way.blocked_by}:
            starting = [
                (placement, placement.begins + seconds)
                for placement in self.placements
                for started, seconds in placement.way.starts
                if started == timer and seconds
            ]
            blocked = [
                (placement, self._due(placement) + seconds)
                for placement in self.placements
                for blocking, seconds in placement.way.blocked_by
                if blocking == timer
            ]
            self._keep_apart(starting, blocked, self._held_by(timer))

    @pyscript_compile
    def _due(self, placement: Placement) -> Floats:
        """Return when nothing may block a way any more."""
        is_short = placement.is_punctual.any() and not placement.is_punctual.all()
        return self.grid.starts if is_short and not self.is_prompt else placement.begins

    @pyscript_compile
    def _held_by(self, timer: Timer) -> set[int] | None:
        """Return the modes that can be active while a timer runs, or None where it can be started again."""
        free = [way for way in self.ways if timer not in dict(way.blocked_by)]
        reached = {way.target for way in self.ways if timer in dict(way.starts)}
        for _mode in self.modes:
            reached |= {way.target for way in free if way.origin in reached}
        if any(way.origin in reached and timer in dict(way.starts) for way in free):
            return None
        return reached

    @pyscript_compile
    def _keep_apart(
        self,
        starting: Sequence[tuple[Placement, Floats]],
        blocked: Sequence[tuple[Placement, Floats]],
        held: set[int] | None,
    ) -> None:
        """Take a blocked way only where what starting ones start is over.

        A starting Placement comes with the moments when that ends, a blocked one with those by when it must
        have. It ends in one of the modes that are `held`, which are left by blocked ways only: so all are
        bound by one constraint for each step (None: by one for each pair of steps).
        """
        count = self.grid.count
        if not (starting and blocked):
            return
        latest = np.max([need for _placement, need in blocked], axis=0)
        before = np.concatenate([[-math.inf], latest[:-1]]) + TOLERANCE_SECONDS
        groups: dict[bytes, tuple[Floats, list[linear.Expression]]] = {}
        for placement, need in blocked:
            if held is None or placement.way.origin in held:
                groups.setdefault(need.tobytes(), (need, []))[1].append(placement.taken)
        for need, members in groups.values():
            bound, apart = linear.constant(np.zeros(count)), []
            for placement, finish in starting:
                rows, places = windows(finish, need + TOLERANCE_SECONDS)
                is_bound = finish[places] > before[rows] if held else np.full(len(rows), False)
                if is_bound.any():
                    bound = bound + placement.taken.gathered(rows[is_bound], places[is_bound], 1.0, count)
                if not is_bound.all():
                    apart.append((placement, rows[~is_bound], places[~is_bound]))
            taken = linear.total(members, count)
            if len(bound.columns):
                inside = linear.total([self._before(mode) for mode in held or ()], count)
                self.program.require((bound + taken - inside)[np.unique(bound.rows)], upper=0.0)
            if apart:
                self._keep_pairs_apart(taken, apart)

    @pyscript_compile
    def _keep_pairs_apart(
        self, taken: linear.Expression, apart: Sequence[tuple[Placement, Integers, Integers]]
    ) -> None:
        """Take a way in one step, or one of others (Placement, steps of the first, its own) in its own."""
        count = self.grid.count
        keys, places = np.unique(
            np.concatenate([rows * count + own for _placement, rows, own in apart]), return_inverse=True
        )
        both = taken.gathered(np.arange(len(keys)), keys // count, 1.0, len(keys))
        start = 0
        for placement, _rows, own in apart:
            both = both + placement.taken.gathered(places[start : start + len(own)], own, 1.0, len(keys))
            start += len(own)
        self.program.require(both, upper=1.0)

    @pyscript_compile
    def _run(self, mode: int) -> None:
        """Set when a mode runs: not on the way to it, nor on the way from it."""
        running, gaps = self.active[mode], list[tuple[linear.Expression, Floats]]()
        present = self.present
        if present.mode == mode and present.ready > self.grid.edges[0]:
            running = running - self.grid.shares(self.grid.edges[0], present.ready)
        share = running
        for placement in self.placements if share.constant.any() or len(share.columns) else ():
            way, is_punctual = placement.way, placement.is_punctual
            ends = (way.target, ~is_punctual), (way.origin, is_punctual)
            for allowed in [where for loser, where in ends if loser == mode and way.seconds]:
                for steps, places, part in self._taken_of(placement, allowed):
                    share = share - self._part(placement, steps, places, part)
                    whole = part >= MIN_WHOLE_SHARE
                    if whole.any():
                        running = running - self._part(placement, steps[whole], places[whole], 1.0)
                    if not whole.all():
                        steps, places, part = steps[~whole], places[~whole], part[~whole]
                        parts = np.zeros(self.grid.count)
                        parts[steps] = part
                        gaps.append((self._part(placement, steps, places, 1.0), parts))
        self.running.append(running)
        self.gaps.append(gaps)
        self.share.append(share)

    @pyscript_compile
    def _part(
        self, placement: Placement, steps: Integers, places: Integers, parts: Numbers
    ) -> linear.Expression:
        """Return parts of some steps where a way is taken at the edges at some places."""
        return placement.taken.gathered(steps, places, parts, self.grid.count)

    @pyscript_compile
    def _taken_of(self, placement: Placement, allowed: Mask) -> list[tuple[Integers, Integers, Floats]]:
        """Return (steps, places, parts): which parts of steps a way takes that is placed at allowed edges.

        There is one of these for each distance between a step and the edge.
        """
        taken: list[tuple[Integers, Integers, Floats]] = []
        edges, count = self.grid.edges, self.grid.count
        [places] = np.nonzero(allowed)
        directions = np.where(placement.is_punctual[places], -1, 1)
        steps = places - placement.is_punctual[places]
        while True:
            inside = (steps >= 0) & (steps < count)
            places, steps, directions = places[inside], steps[inside], directions[inside]
            overlap = np.minimum(placement.ends[places], edges[steps + 1]) - np.maximum(
                placement.begins[places], edges[steps]
            )
            inside = overlap > 0.0
            if not inside.any():
                return taken
            places, steps, directions = places[inside], steps[inside], directions[inside]
            taken.append((steps, places, overlap[inside] / self.grid.seconds[steps]))
            steps = steps + directions

    @pyscript_compile
    def course(self, solution: linear.Solution) -> list[tuple[float, Way]]:
        """Return (moment, Way) of each way that is taken, in order."""
        if self.placements:
            taken = {
                place: (float(placement.begins[place]), placement.way)
                for placement in self.placements
                for place in map(int, np.nonzero(solution.of(placement.taken) > 0.5)[0])
            }
            return [taken[place] for place in sorted(taken)]
        if not any(len(active.columns) for active in self.active):
            return []
        modes = list(map(int, np.argmax([solution.of(active) for active in self.active], axis=0)))
        by_pair = {(way.origin, way.target): way for way in self.ways}
        return [
            (start, by_pair[before, after])
            for start, before, after in zip(
                as_list(self.grid.starts), [self.present.mode, *modes[:-1]], modes, strict=True
            )
            if before != after
        ]


Switching = _Switching


@pyscript_compile
def windows(finish: Floats, need: Floats) -> tuple[Integers, Integers]:
    """Return (steps, earlier steps) of each pair where what the earlier starts finishes after it must."""
    steps = np.arange(len(need))
    first = np.minimum(np.searchsorted(finish, need, "right"), steps)
    lengths = steps - first
    rows = np.repeat(steps, lengths)
    offsets = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return rows, first[rows] + offsets
