"""From one operation mode to another: over listed transitions, past the timers that block them.

Moments are seconds since 1970.
"""

import heapq
from dataclasses import dataclass

MARGIN = 1.0
"""How long after a timer's or transition's end the next transition begins (s): clocks differ."""

SAME_FACTOR, SAME_SECONDS = 0.005, 1.0
"""Instructions that differ by less are the same."""
AGES = 30 * 86_400.0
"""Longer than any plan (s): what takes longer takes this long."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(frozen=True)
    class Transition:
        """A way to another mode: how long it takes (s), its timers, and what it costs."""

        to: str
        duration: float
        start_timers: tuple
        blocking_timers: tuple
        cost: float

    @dataclass(frozen=True)
    class Step:
        """A transition that begins at `start` and is done at `end`."""

        start: float
        end: float
        to: str

    @dataclass(frozen=True)
    class Route:
        """The steps to a mode, when it is reached, what that costs, and when each timer finishes then."""

        steps: tuple
        arrival: float
        cost: float
        timers: dict

    @dataclass(frozen=True)
    class Active:
        """An actuator's mode (None: not known) and factor, reached at `ready`; when its timers finish."""

        mode: str | None
        factor: float
        ready: float
        timers: dict

    @dataclass(frozen=True)
    class Change:
        """What an actuator is told to do at a moment: a mode and its factor.

        `actuator` is None where a device has only one. `power` is what is expected of it then; `active` is
        the actuator's state that follows.
        """

        moment: float
        actuator: str | None
        mode: str
        factor: float
        power: float
        active: Active

    return Transition, Step, Route, Active, Change


Transition, Step, Route, Active, Change = records()


@pyscript_compile
def read(described_by):
    """Return (transitions by the mode that they start from, timers' durations in s) of a description.

    What is for an abnormal condition only is left out.
    """
    found = {}
    for each in described_by.transitions:
        if not each.abnormal_condition_only:
            transition = Transition(
                each.to,
                min(each.transition_duration.root / 1000, AGES) if each.transition_duration else 0.0,
                tuple(each.start_timers),
                tuple(each.blocking_timers),
                each.transition_costs or 0.0,
            )
            found.setdefault(each.from_, []).append(transition)
    return found, {timer.id: min(timer.duration.root / 1000, AGES) for timer in described_by.timers}


@pyscript_compile
def routes(transitions, durations, permitted, mode, moment, timers):
    """Return the Route to each permitted mode that can be reached from a mode: the one that is there first.

    `timers` tells when each timer finishes that runs. Of ways that take as long, the cheapest is taken.
    """
    found, queue, number = {}, [(moment, 0.0, 0, mode, (), timers)], 0
    while queue:
        arrival, cost, _number, at, steps, running = heapq.heappop(queue)
        if at in found:
            continue
        found[at] = Route(steps, arrival, cost, running)
        for each in transitions.get(at, ()):
            if each.to in found or each.to not in permitted:
                continue
            start = earliest(each, arrival + MARGIN if steps else arrival, running)
            started = {timer: start + durations[timer] for timer in each.start_timers}
            end, number = start + each.duration, number + 1
            step = Step(start, end, each.to)
            after = (end, cost + each.cost, number, each.to, (*steps, step), running | started)
            heapq.heappush(queue, after)
    return found


@pyscript_compile
def earliest(transition, moment, timers):
    """Return when a transition can begin, from a moment on."""
    ends = [timers[each] + MARGIN for each in transition.blocking_timers if timers.get(each, 0) > moment]
    return max([moment, *ends])


@pyscript_compile
def alike(one, other):
    """Tell whether two changes come to the same instruction."""
    return (
        one.actuator == other.actuator
        and one.mode == other.mode
        and abs(one.factor - other.factor) < SAME_FACTOR
        and abs(one.moment - other.moment) < SAME_SECONDS
    )
