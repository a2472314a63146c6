"""Something that is in one of several modes, and goes from one to another by ways that take their time.

A way begins at a step's start, or ends there. On the way nothing runs. Timers that a way starts block others
until they finish; where those are no multiple of a step, they count as longer, never as shorter.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import flexmeasures_cem.optimisation.linear as linear

MARGIN_SECONDS = 1.0
"""How long after the end of what blocks it now a way begins, since clocks differ."""
ROUNDING_SECONDS = 1e-3
"""What ends by so much later than another begins ends with it."""


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How to go from one mode (its number; None: an unknown one) to another, over others perhaps.

    `seconds` is how long that takes, `cost` what is paid for it. `starts` has (timer, seconds) from the way's
    begin until each timer finishes that it starts, `blocked_by` (timer, seconds) from its begin until each
    must have finished.
    """

    origin: int | None
    target: int
    seconds: float = 0.0
    cost: float = 0.0
    starts: tuple = ()
    blocked_by: tuple = ()


Way = _Way


@dataclass(frozen=True, kw_only=True)
class _Present:
    """The mode at the grid's start (None: unknown), when it is reached, and when each timer finishes."""

    mode: int | None
    ready: float = 0.0
    timers: Any = None


Present = _Present


@dataclass(frozen=True, eq=False, kw_only=True)
class _Placement:
    """A way by the edges that it is taken at: `begins` and `ends` are its moments there.

    Its variables in `taken` are for the steps that follow each edge.
    """

    way: Way
    begins: Any
    ends: Any
    taken: Any


Placement = _Placement


class _Switching:
    """The modes of an actuator over time.

    `active[mode]` is 1 in a step that begins in a mode (an Expression), `share[mode]` which part of the step
    the mode runs. `forbidden` are modes that no way may lead to.
    """

    @pyscript_compile
    def __init__(self, program, grid, mode_count, ways, present):
        self.program, self.grid, self.present = program, grid, present
        self.modes = range(mode_count)
        count = grid.count
        self.active = [program.variables(count, 0.0, 1.0, whole=True) for _mode in self.modes]
        self.placements = [each for way in ways for each in self._placements(way)]
        self._go_by_ways()
        self._block()
        self.share = [self._share(mode) for mode in self.modes]

    @pyscript_compile
    def _placements(self, way):
        """Return a way's Placements: begun at an edge, and, where it takes time, ended at one."""
        edges, count = self.grid.starts, self.grid.count
        placed = [(edges, edges + way.seconds)]
        if way.seconds and way.origin is not None:
            placed.append((edges - way.seconds, edges))
        found = []
        for number, (begins, ends) in enumerate(placed):
            allowed = begins >= edges[0] if number else np.full(count, True)
            allowed &= begins >= self._free_from(way)
            if way.origin is None:
                allowed &= np.arange(count) == 0
            if allowed.any():
                taken = self.program.variables(count, 0.0, allowed.astype(float), whole=True)
                found.append(Placement(way=way, begins=begins, ends=ends, taken=taken))
        return found

    @pyscript_compile
    def _free_from(self, way):
        """Return from when on the present timers, and a way that is under way, let a way begin."""
        timers, moments = self.present.timers or {}, [-math.inf]
        for timer, offset in way.blocked_by:
            if timer in timers and timers[timer] > self.grid.starts[0] + offset:
                moments.append(timers[timer] + MARGIN_SECONDS - offset)
        if way.origin == self.present.mode and self.present.ready > self.grid.starts[0]:
            moments.append(self.present.ready + MARGIN_SECONDS)
        return max(moments)

    @pyscript_compile
    def _go_by_ways(self):
        """Keep a mode unless a way is taken from it, and be in one mode at a time."""
        program, count = self.program, self.grid.count
        for mode in self.modes:
            first = linear.constant([float(self.present.mode == mode)])
            before = linear.joined([first, self.active[mode][:-1]])
            arrived = linear.total([each.taken for each in self.placements if each.way.target == mode], count)
            left = linear.total([each.taken for each in self.placements if each.way.origin == mode], count)
            program.equate(self.active[mode], before + arrived - left)
        program.equate(linear.total(self.active, count), 1.0)
        program.require(linear.total([each.taken for each in self.placements], count), upper=1.0)
        for each in self.placements:
            if each.way.cost:
                program.pay(each.taken * each.way.cost)

    @pyscript_compile
    def _block(self):
        """Begin no way before the last has ended, nor while a timer blocks it that another has started."""
        for mode in self.modes:
            leaving = [each for each in self.placements if each.way.origin == mode]
            arriving = [each for each in self.placements if each.way.target == mode]
            for each in leaving:
                timers = [(None, 0.0), *each.way.blocked_by]
                for timer, offset in timers:
                    starters = arriving if timer is None else self.placements
                    is_bound = timer is None or all(timer in dict(other.way.blocked_by) for other in leaving)
                    self._keep_apart(each, offset, timer, starters, mode if is_bound else None)

    @pyscript_compile
    def _keep_apart(self, blocked, offset, timer, starters, mode):
        """Take a blocked way only where each other that starts its timer (None: takes time) is over.

        Where all ways from its mode are blocked by the timer, those that arrive there bind it together.
        """
        count = self.grid.count
        held, others = linear.constant(np.zeros(count)), []
        for each in starters:
            seconds = each.way.seconds if timer is None else dict(each.way.starts).get(timer)
            if not seconds:
                continue
            finish = each.begins + seconds - ROUNDING_SECONDS
            conflict = np.tril(finish[None, :] > blocked.begins[:, None] + offset, -1)
            if not conflict.any():
                continue
            if mode is not None and each.way.target == mode:
                held = held + each.taken.times(conflict)
            else:
                others.append((each, conflict))
        if len(held.columns):
            before = linear.joined([linear.constant([1.0]), self.active[mode][:-1]])
            self.program.require(held + blocked.taken - before, upper=0.0)
        for each, conflict in others:
            for lag in range(1, count):
                met = np.diagonal(conflict, -lag)
                if met.any():
                    both = blocked.taken[lag:] + each.taken[:-lag]
                    self.program.require(both[met], upper=1.0)

    @pyscript_compile
    def _share(self, mode):
        """Return which part of each step a mode runs: not on the way to it, nor on the way from it."""
        share = self.active[mode]
        edges = self.grid.edges
        for each in self.placements:
            begins_there = each.begins[-1] == edges[-2]
            loses = each.way.target if begins_there else each.way.origin
            if loses == mode and each.way.seconds:
                starts = np.maximum(edges[:-1, None], each.begins[None, :])
                ends = np.minimum(edges[1:, None], each.ends[None, :])
                share = share - each.taken.times(np.maximum(ends - starts, 0.0) / self.grid.seconds[:, None])
        if self.present.mode == mode and self.present.ready > edges[0]:
            share = share - self.grid.shares(edges[0], self.present.ready)
        return share

    @pyscript_compile
    def course(self, solution):
        """Return (moment, Way) of each way that is taken, and the mode of each step."""
        taken = [
            (float(each.begins[place]), each.way)
            for each in self.placements
            for place in np.nonzero(solution.of(each.taken) > 0.5)[0]
        ]
        modes = np.argmax([solution.of(each) for each in self.active], axis=0)
        return sorted(taken, key=lambda each: each[0]), modes.tolist()


Switching = _Switching
