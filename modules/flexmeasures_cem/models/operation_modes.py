"""Operation modes in the site model: the ways between them, and what each takes and supplies by its factor."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import flexmeasures_cem.modes as modes
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.switching as switching
import flexmeasures_cem.transitions as transitions

LONGEST_CHAIN = 3
"""How many transitions are taken one after the other at most, as one Way."""
MAX_CHAINED_MODES = 6
"""With no more modes, chains are looked at even where there is a direct transition."""
WATTS = 1000.0
"""W in a kW."""
PER_CHANGE = 1e-5
"""What a change of mode has to save at least (currency)."""
EARLIER_PER_DAY = 1e-6
"""What a change costs less for each day that it is later (currency): of two as good, the later is left open."""


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Transitions one after the other: `moments` are when each begins, in seconds after the first."""

    origin: str | None
    steps: tuple
    moments: tuple


Chain = _Chain


@pyscript_compile
def chains_of(actuator: Any) -> list:
    """Return the Chains between an actuator's modes, so that no mode is passed twice."""
    found = [
        Chain(origin=origin, steps=(step,), moments=(0.0,))
        for origin, listed in actuator.transitions.items()
        if origin in actuator.modes
        for step in listed
    ]
    direct = {(each.origin, each.steps[-1].to) for each in found}
    longer = found
    for _length in range(LONGEST_CHAIN - 1):
        longer = [
            longer_chain
            for chain in longer
            for step in actuator.transitions.get(chain.steps[-1].to, ())
            if len(actuator.modes) <= MAX_CHAINED_MODES or (chain.origin, step.to) not in direct
            if (longer_chain := extended(actuator, chain, step))
        ]
        found = found + longer
    return found


@pyscript_compile
def extended(actuator: Any, chain: Any, step: Any) -> Any:
    """Return a Chain with one more transition, or None where that would have to wait, or turn back."""
    passed = {chain.origin, *[each.to for each in chain.steps]}
    started = {timer for each in chain.steps for timer in each.start_timers}
    waits = started & {timer for timer in step.blocking_timers if actuator.durations.get(timer)}
    if step.to in passed or waits:
        return None
    moment = chain.moments[-1] + chain.steps[-1].duration + transitions.MARGIN
    return Chain(origin=chain.origin, steps=(*chain.steps, step), moments=(*chain.moments, moment))


@pyscript_compile
def way_of(actuator: Any, numbers: dict, chain: Any) -> Any:
    """Return the switching.Way that a Chain is."""
    timed = list(zip(chain.steps, chain.moments, strict=True))
    starts = {
        timer: moment + actuator.durations[timer] for step, moment in timed for timer in step.start_timers
    }
    return switching.Way(
        origin=numbers[chain.origin],
        target=numbers[chain.steps[-1].to],
        seconds=chain.moments[-1] + chain.steps[-1].duration,
        cost=sum(step.cost for step in chain.steps) + PER_CHANGE * len(chain.steps),
        starts=tuple((timer, end) for timer, end in starts.items() if timer in actuator.blocking),
        blocked_by=tuple((timer, moment) for step, moment in timed for timer in step.blocking_timers),
    )


@pyscript_compile
def ways_in(actuator: Any, numbers: dict) -> list:
    """Return a (Way, Chain) to each permitted mode from an unknown one, which may take as long as any."""
    found = []
    for mode in actuator.modes.values():
        if not mode.is_permitted:
            continue
        listed = [step for steps in actuator.transitions.values() for step in steps if step.to == mode.id]
        timers = tuple({timer for step in listed for timer in step.start_timers})
        step = transitions.Transition(
            mode.id, max([each.duration for each in listed], default=0.0), timers, (), 0.0
        )
        starts = tuple((timer, actuator.durations[timer]) for timer in timers if timer in actuator.blocking)
        way = switching.Way(
            origin=None, target=numbers[mode.id], seconds=step.duration, cost=PER_CHANGE, starts=starts
        )
        found.append((way, Chain(origin=None, steps=(step,), moments=(0.0,))))
    return found


class _ActuatorModel:
    """An actuator's modes in a Site's program, in the order that its description has them.

    `share[n]` is which part of each step the mode runs; `factor[n]` its factor times that part (None: the
    factor changes nothing). An actuator has `modes` by id, each with `is_fixed` and, where some are for an
    abnormal condition, `is_permitted`; `transitions` by the mode that they start from; `durations` of timers.
    """

    @pyscript_compile
    def __init__(self, site, actuator, active, idle=()):
        """Begin with an Active; `idle` are the ids of modes that take and supply nothing at any factor."""
        self.site, self.actuator, self.active = site, actuator, active
        numbers = {mode: number for number, mode in enumerate(actuator.modes)}
        self.idle = {numbers[each] for each in idle}
        mode = numbers.get(active.mode)
        ways = [(way_of(actuator, numbers, chain), chain) for chain in chains_of(actuator)]
        if mode is None:
            ways += ways_in(actuator, numbers)
        self.ways = [way for way, _chain in ways]
        self.chains = {id(way): chain for way, chain in ways}
        present = switching.Present(mode=mode, ready=active.ready, timers=active.timers)
        self.switching = switching.Switching(site.program, site.grid, len(numbers), self.ways, present)
        self.share = self.switching.share
        self.factor = [
            self._factor(number, each.is_fixed) for number, each in enumerate(actuator.modes.values())
        ]
        for share, each in zip(self.share, actuator.modes.values(), strict=True):
            if not getattr(each, "is_permitted", True):
                site.program.pay(share * site.grid.hours * site.priorities.abnormal)

    @pyscript_compile
    def _factor(self, number, is_fixed):
        """Return the factor of a mode in each step, times the part of the step that it runs."""
        if is_fixed:
            return None
        factor = self.site.program.variables(self.site.grid.count, 0.0, 1.0)
        self.site.program.require(self.share[number] - factor, 0.0)
        return factor

    @pyscript_compile
    def output(self, ends):
        """Return the mean in each step of what the modes come to together, as an Expression.

        `ends` has what each comes to at a factor of 0 and of 1: numbers, or arrays over the steps.
        """
        parts = []
        for (low, high), share, factor in zip(ends, self.share, self.factor, strict=True):
            low, spread = np.asarray(low, float), np.asarray(high, float) - low
            if low.any():
                parts.append(share * low)
            if factor is not None and spread.any():
                parts.append(factor * spread)
        return linear.total(parts, self.site.grid.count)

    @pyscript_compile
    def moves(self, solution):
        """Return the modes.Moves (transitions with their moments) of a solution, in order."""
        taken, _modes = self.switching.course(solution)
        found, timers = [], dict(self.active.timers)
        for begin, way in taken:
            chain = self.chains[id(way)]
            for step, moment in zip(chain.steps, chain.moments, strict=True):
                start = begin + moment
                timers = timers | {each: start + self.actuator.durations[each] for each in step.start_timers}
                end = start + step.duration
                found.append(modes.Move(start, end, step.to, tuple(sorted(timers.items())), step.cost))
        return found

    @pyscript_compile
    def factors(self, solution):
        """Return the factor of each mode (by its id) in each step, as an array; of fixed ones none."""
        found = {}
        for mode, share, factor in zip(self.actuator.modes, self.share, self.factor, strict=True):
            if factor is not None:
                part = np.maximum(solution.of(share), 1e-9)
                found[mode] = np.clip(np.round(solution.of(factor) / part, 9), 0.0, 1.0)
        return found


ActuatorModel = _ActuatorModel


@pyscript_compile
def cuts(actuator, active):
    """Return moments (s since 1970) at which an edge of the grid lets an actuator go on at once."""
    ends = [end + transitions.MARGIN for end in active.timers.values()]
    return sorted({*ends, active.ready})


@pyscript_compile
def idle(actuator):
    """Return the ids of those modes (modes.Mode) that take, supply and cost nothing at any factor."""
    return {
        each.id
        for each in actuator.modes.values()
        if not each.cost and not any(end for both in each.ends for end in both)
    }
