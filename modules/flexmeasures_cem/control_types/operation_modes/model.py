"""Operation modes in the site model: the ways between modes, and their powers by the factor."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.arrays as arrays
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites
import flexmeasures_cem.optimisation.switching as switching

MAX_CHAIN_LENGTH = 3
"""Transitions that follow each other in one Way, at most."""
MAX_CHAINED_MODES = 4
"""With more modes, chains are not considered where a direct transition starts other timers."""
MAX_WAYS = 400
"""Ways of several transitions, at most."""
MAX_CUTS = 8
"""Edges that are added to the grid, at most."""
WATTS = 1000.0
"""W in a kW."""
STEADY_COST = 1e-6
"""A change of the factor by 1 must save at least this (currency)."""
IDLING_COST = 3e-4
"""Penalty (currency per hour) for a mode at no power while an idle mode exists."""
IDLING_FACTOR = 0.05
"""A factor this far from that of no power counts as some power."""
SAME_FACTOR = 1e-6
"""Factors that differ by less are the same."""

Array = NDArray[np.float64]
EndsOverTime = Sequence[float] | Sequence[Array]
"""What a mode comes to at a factor of 0, and of 1: numbers, or arrays over the steps."""
Numbers = Mapping[str | None, int]
"""The number of a mode by its id; an unknown mode (None) has no number."""


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Consecutive transitions; `moments` has their begins (s after the first one's)."""

    origin: str | None
    steps: tuple[transitions.Transition, ...]
    moments: tuple[float, ...]

    @property
    @pyscript_compile
    def seconds(self) -> float:
        """The duration of all transitions together."""
        return self.moments[-1] + self.steps[-1].duration


Chain = _Chain


@pyscript_compile
def chains_of(actuator: transitions.Actuator) -> list[Chain]:
    """Return the Chains between an actuator's modes, without repeating a mode; direct ones first."""
    direct = [
        Chain(origin=origin, steps=(step,), moments=(0.0,))
        for origin, listed in actuator.transitions.items()
        if origin in actuator.modes
        for step in listed
        if step.to in actuator.modes and step.to != origin
    ]
    longer_chains, longer = [], direct
    for _length in range(MAX_CHAIN_LENGTH - 1):
        longer = [
            longer_chain
            for chain in longer
            for step in actuator.transitions.get(chain.steps[-1].to, ())
            if step.to in actuator.modes
            if (longer_chain := extended(actuator, chain, step))
        ][: MAX_WAYS * MAX_CHAIN_LENGTH]
        longer_chains += longer
    longer_chains.sort(key=seconds_of)
    return direct + longer_chains[:MAX_WAYS]


@pyscript_compile
def seconds_of(chain: Chain) -> float:
    """Sort key: the duration of a Chain (s)."""
    return chain.seconds


@pyscript_compile
def extended(actuator: transitions.Actuator, chain: Chain, step: transitions.Transition) -> Chain | None:
    """Return a Chain with one more transition, or None if that would have to wait or repeat a mode."""
    passed = {chain.origin, *[passed_step.to for passed_step in chain.steps]}
    started = {timer for passed_step in chain.steps for timer in passed_step.start_timers}
    waits = started & {timer for timer in step.blocking_timers if actuator.durations.get(timer)}
    if step.to in passed or waits:
        return None
    moment = chain.seconds + transitions.MARGIN_SECONDS
    return Chain(origin=chain.origin, steps=(*chain.steps, step), moments=(*chain.moments, moment))


@pyscript_compile
def way_of(actuator: transitions.Actuator, numbers: Numbers, chain: Chain) -> switching.Way:
    """Return the switching.Way that a Chain is."""
    starts: dict[str, float] = {}
    blocked_by: dict[str, float] = {}
    for step, moment in zip(chain.steps, chain.moments, strict=True):
        for timer in step.blocking_timers:
            blocked_by.setdefault(timer, moment)
        for timer in step.start_timers:
            starts[timer] = moment + actuator.durations[timer]
    blocking = blocking_timers(actuator)
    return switching.Way(
        origin=numbers.get(chain.origin),
        target=numbers[chain.steps[-1].to],
        seconds=chain.seconds,
        cost=sum(step.cost for step in chain.steps),
        starts=tuple((timer, end) for timer, end in starts.items() if timer in blocking),
        blocked_by=tuple(blocked_by.items()),
        changes=len(chain.steps),
    )


@pyscript_compile
def ways_of(actuator: transitions.Actuator, numbers: Numbers) -> list[tuple[switching.Way, Chain]]:
    """Return (Way, Chain) of the ways between an actuator's modes that the model considers."""
    ways = [(way_of(actuator, numbers, chain), chain) for chain in chains_of(actuator)]
    if len(actuator.modes) <= MAX_CHAINED_MODES:
        return ways
    direct: dict[tuple[int | None, int], list[switching.Way]] = {}
    for way, chain in ways:
        if len(chain.steps) == 1:
            direct.setdefault((way.origin, way.target), []).append(replace(way, starts=()))
    return [
        (way, chain)
        for way, chain in ways
        if len(chain.steps) == 1
        or not any(rival.replaces(way) for rival in direct.get((way.origin, way.target), ()))
    ]


@pyscript_compile
def blocking_timers(actuator: transitions.Actuator) -> set[str]:
    """Return the ids of the timers that block any transition."""
    listed = [step for steps in actuator.transitions.values() for step in steps]
    return {timer for step in listed for timer in step.blocking_timers}


@pyscript_compile
def ways_in(actuator: transitions.Actuator, numbers: Numbers) -> list[tuple[switching.Way, Chain]]:
    """Return (Way, Chain) from an unknown mode to each permitted one; the longest transition counts."""
    ways = []
    for mode in actuator.modes.values():
        if not is_permitted(mode):
            continue
        listed = [step for steps in actuator.transitions.values() for step in steps if step.to == mode.id]
        timers = tuple({timer for step in listed for timer in step.start_timers})
        duration = max([transition.duration for transition in listed], default=0.0)
        step = transitions.Transition(mode.id, duration, timers, (), 0.0)
        chain = Chain(origin=None, steps=(step,), moments=(0.0,))
        ways.append((way_of(actuator, numbers, chain), chain))
    return ways


@pyscript_compile
def is_permitted(mode: transitions.Mode) -> bool:
    """Return whether a mode is not for an abnormal condition only."""
    return getattr(mode, "is_permitted", True)


@dataclass(eq=False, repr=False)
class _ActuatorModel:
    """An actuator's modes in a Site's program, in the order of its description.

    `share[n]` is the part of each step in which mode n runs; `factor[n]` its factor times that part (None:
    the factor changes nothing). With `is_momentary`, `momentary[n]` is the factor while the mode runs.
    """

    site: sites.Site
    actuator: transitions.Actuator
    active: transitions.Active
    idle_modes: Collection[str] = ()
    is_momentary: bool = False

    @pyscript_compile
    def __post_init__(self) -> None:
        """Begin with an Active; `idle_modes` are the ids of modes that take and supply nothing."""
        site, actuator, active = self.site, self.actuator, self.active
        numbers: dict[str | None, int] = {mode: number for number, mode in enumerate(actuator.modes)}
        mode = numbers.get(active.mode)
        ways = ways_of(actuator, numbers)
        if mode is None:
            ways += ways_in(actuator, numbers)
        self.chains = {id(way): chain for way, chain in ways}
        self.ways = [way for way, _chain in ways]
        self.idle = {numbers[mode_id] for mode_id in self.idle_modes}
        present = switching.Present(mode=mode, ready=active.ready, timers=active.timers)
        self.switching = switching.Switching(
            site.program, site.grid, len(numbers), self.ways, present, self.idle, self.is_momentary
        )
        self.share, self.running = self.switching.share, self.switching.running
        self.factor: list[linear.Expression | None] = []
        self.momentary: list[linear.Expression | None] = []
        self.products: dict[int, linear.Expression] = {}
        for number, described in enumerate(actuator.modes.values()):
            self._vary(number, described)
            if not is_permitted(described):
                site.program.pay(self.share[number] * site.grid.hours * site.priorities.abnormal)

    @pyscript_compile
    def _vary(self, number: int, mode: transitions.Mode) -> None:
        """Let the factor of a mode vary between steps, where that saves something."""
        if mode.is_fixed:
            self.factor.append(None)
            self.momentary.append(None)
            return
        program, grid = self.site.program, self.site.grid
        factor = momentary = program.variables(grid.count, 0.0, 1.0)
        if self.is_momentary:
            program.require(self.running[number] - momentary, 0.0)
            for taken, parts in self.switching.gaps[number]:
                product = self._product(momentary, taken, parts)
                factor = factor - product * parts
                self.products[id(taken)] = product
        else:
            program.require(self.share[number] - factor, 0.0)
        in_force = self.active.factor if mode.id == self.active.mode else 0.0
        steps = momentary - linear.joined([linear.constant([in_force]), momentary[:-1]])
        change = program.variables(grid.count)
        program.require(change - steps, 0.0)
        program.require(change + steps, 0.0)
        program.pay(change * STEADY_COST)
        self.factor.append(factor)
        self.momentary.append(momentary)

    @pyscript_compile
    def _product(
        self, factor: linear.Expression, taken: linear.Expression, parts: Array
    ) -> linear.Expression:
        """Return the factor times whether a way is taken, in the steps that the way takes part of."""
        program, [where] = self.site.program, np.nonzero(parts)
        factor, taken = factor[where], taken[where]
        product = program.variables(len(where), 0.0, 1.0)
        program.require(taken - product, 0.0)
        program.require(factor - product, 0.0)
        program.require(product - factor - taken, -1.0)
        return product.gathered(where, np.arange(len(where)), 1.0, len(parts))

    @pyscript_compile
    def prefer_idle(self, nothing_at: Iterable[float | None]) -> None:
        """Make idle modes preferable to other modes at no power.

        `nothing_at` has, by mode, the factor (0 or 1) at which the mode has no power, or None.
        """
        for share, factor, place in zip(self.share, self.factor, nothing_at, strict=True):
            if factor is not None and place is not None and self.idle:
                idling = self.site.program.variables(self.site.grid.count, 0.0, 1.0)
                some = factor if place == 0.0 else share - factor
                self.site.program.require(idling - share + some * (1 / IDLING_FACTOR), 0.0)
                self.site.program.pay(idling * self.site.grid.hours * IDLING_COST)

    @pyscript_compile
    def output(self, ends: Sequence[EndsOverTime]) -> linear.Expression:
        """Return the mean in each step of a quantity (power, rate, cost …), summed over the modes.

        `ends` has, by mode, the quantity at a factor of 0 and of 1: numbers, or arrays over the steps.
        """
        return self._output(ends, self.share, self.factor)

    @pyscript_compile
    def keep_room(self, ends: Sequence[Sequence[float]]) -> None:
        """Keep room within the site's limits for the full power of a mode that runs for part of a step.

        `ends` has, by mode, the power (kW) at a factor of 0 and of 1: the greater counts.
        """
        for direction in (1, -1):
            beyond = [
                (running - share) * greatest
                for running, share, gaps, both in zip(
                    self.running, self.share, self.switching.gaps, ends, strict=True
                )
                if gaps and (greatest := max(direction * end for end in both)) > 0.0
            ]
            if beyond:
                self.site.exceed(direction, linear.total(beyond, self.site.grid.count))

    @pyscript_compile
    def momentary_output(self, ends: Sequence[EndsOverTime]) -> linear.Expression:
        """Return a quantity in each step while no transition is under way, summed over the modes."""
        return self._output(ends, self.running, self.momentary)

    @pyscript_compile
    def losses(self, ends: Sequence[Sequence[float]]) -> list[tuple[linear.Expression, Array]]:
        """Return (quantity of the mode, part of the step) that transitions take from modes, for all steps.

        The quantity is 0 where the transition is not made.
        """
        losses = []
        for (low, high), gaps, factor in zip(ends, self.switching.gaps, self.momentary, strict=True):
            for taken, parts in gaps:
                lost = [taken * low] if low else []
                if factor is not None and high != low:
                    lost.append(self.products[id(taken)] * (high - low))
                if lost:
                    losses.append((linear.total(lost, len(parts)), parts))
        return losses

    @pyscript_compile
    def _output(
        self,
        ends: Sequence[EndsOverTime],
        shares: Sequence[linear.Expression],
        factors: Sequence[linear.Expression | None],
    ) -> linear.Expression:
        """Return a quantity summed over modes, by their shares of each step and factors."""
        parts = []
        for (low, high), share, factor in zip(ends, shares, factors, strict=True):
            low, spread = np.asarray(low, float), np.asarray(high, float) - low
            if low.any():
                parts.append(share * low)
            if factor is not None and spread.any():
                parts.append(factor * spread)
        return linear.total(parts, self.site.grid.count)

    @pyscript_compile
    def moves(self, solution: linear.Solution) -> list[modes.Move]:
        """Return the modes.Moves (transitions with their moments) of a solution, in order.

        A transition that a timer still blocks for some seconds is delayed by these.
        """
        moves, timers, ready = [], dict(self.active.timers), self.active.ready
        for begin, way in self.switching.course(solution):
            chain = self.chains[id(way)]
            for step, moment in zip(chain.steps, chain.moments, strict=True):
                free = max(begin + moment, ready + transitions.MARGIN_SECONDS if ready else 0.0)
                start = transitions.earliest(step, free, timers)
                started = {timer: start + self.actuator.durations[timer] for timer in step.start_timers}
                timers, ready = timers | started, start + step.duration
                moves.append(modes.Move(start, ready, step.to, tuple(sorted(timers.items())), step.cost))
        return moves

    @pyscript_compile
    def factors(self, solution: linear.Solution) -> dict[str, Array]:
        """Return the factor in each step by the id of the mode; modes with a fixed factor are left out.

        In steps in which the mode does not run, the factor is the one before, or else the one that follows.
        """
        factors = {}
        for mode, share, factor in zip(self.actuator.modes, self.share, self.factor, strict=True):
            if factor is None:
                continue
            part: Array = solution.of(share)
            [runs] = np.nonzero(part > 1e-6)
            if len(runs):
                values: Array = np.clip(np.round(solution.of(factor)[runs] / part[runs], 9), 0.0, 1.0)
                latest = np.maximum(np.searchsorted(runs, np.arange(len(part)), "right") - 1, 0)
                factors[mode] = values[latest]
            else:
                factors[mode] = np.zeros(len(part))
        return factors


ActuatorModel = _ActuatorModel
Part = tuple[ActuatorModel, list[modes.Move]]
"""An actuator's ActuatorModel, and its Moves by a solution."""


@pyscript_compile
def cuts(actuators: Sequence[transitions.Actuator], actives: Sequence[transitions.Active]) -> list[float]:
    """Return moments (s since 1970) at which an edge of the grid lets actuators go on at once."""
    ends = set()
    for actuator, active in zip(actuators, actives, strict=True):
        blocking = blocking_timers(actuator)
        ends |= {
            end + transitions.MARGIN_SECONDS for timer, end in active.timers.items() if timer in blocking
        }
        ends |= {active.ready, active.ready + transitions.MARGIN_SECONDS} if active.ready else set()
    return sorted(ends)


@pyscript_compile
def actuator_of(model: ActuatorModel) -> modes.Actuator:
    """Return the actuator of an ActuatorModel of OMBC or DDBC."""
    return cast(modes.Actuator, model.actuator)


@pyscript_compile
def priced(model: ActuatorModel, tariffs: modes.Tariffs) -> linear.Expression:
    """Return the power (kW) of an ActuatorModel of OMBC or DDBC, and add its other costs."""
    described = actuator_of(model).modes.values()
    costs = model.output([modes.other_cost(mode, tariffs) for mode in described])
    model.site.program.pay(costs * model.site.grid.hours)
    model.prefer_idle([nothing_at(mode) for mode in described])
    powers = [[end / WATTS for end in mode.powers] for mode in described]
    model.keep_room(powers)
    return model.output(powers)


@pyscript_compile
def idle(actuator: modes.Actuator) -> set[str]:
    """Return the ids of the permitted modes with neither power, supply nor cost at any factor."""
    return {
        mode.id
        for mode in actuator.modes.values()
        if not mode.cost and is_permitted(mode) and not any(end for both in mode.ends for end in both)
    }


@pyscript_compile
def nothing_at(mode: modes.Mode) -> float | None:
    """Return the factor, 0 or 1, at which a mode has neither power nor supply, or None."""
    for place in (0, 1):
        if not any(ends[place] for ends in mode.ends):
            return float(place)
    return None


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A time in which the modes (None: in transition) and factors of all actuators stay the same."""

    start: float
    end: float
    modes: tuple[str | None, ...]
    factors: tuple[float, ...]
    interval: markets.Interval


Piece = _Piece


@pyscript_compile
def pieces_of(
    parts: Sequence[Part], solution: linear.Solution, market: Sequence[markets.Interval]
) -> list[Piece]:
    """Return the Pieces of a solution, in order."""
    first, last = market[0].start, market[-1].end
    lines = [line_of(model, moves, solution) for model, moves in parts]
    edges = {first, last, *[interval.start for interval in market]}
    edges |= {start for line in lines for start, _mode, _factor in line if first < start < last}
    starts = [[start for start, _mode, _factor in line] for line in lines]
    begins = [interval.start for interval in market]
    pieces, ordered = [], sorted(edges)
    for start, end in pairwise(ordered):
        now = [
            line[max(bisect_right(times, start) - 1, 0)] for line, times in zip(lines, starts, strict=True)
        ]
        interval = market[bisect_right(begins, start) - 1]
        each_mode, each_factor = tuple([mode for _s, mode, _f in now]), tuple([f for _s, _m, f in now])
        pieces.append(Piece(start=start, end=end, modes=each_mode, factors=each_factor, interval=interval))
    return pieces


@pyscript_compile
def line_of(
    model: ActuatorModel, moves: Sequence[modes.Move], solution: linear.Solution
) -> list[tuple[float, str | None, float]]:
    """Return (start, mode or None, factor) of an actuator in order, from a solution's factors."""
    edges, factors = arrays.as_list(model.site.grid.starts), model.factors(solution)
    active = model.active
    mode, factor = (active.mode if active.mode in model.actuator.modes else None), active.factor
    settings = [(-np.inf, mode if active.ready <= edges[0] else None), (active.ready, mode)]
    for move in moves:
        settings += [(move.start, None), (move.end, move.to)]
    times = [start for start, _mode in settings]
    line, before = [], mode
    for start in sorted({*edges, *[time for time in times if time > edges[0]]}):
        mode = settings[bisect_right(times, start) - 1][1]
        if mode in factors:
            planned_factor = float(factors[mode][max(bisect_right(edges, start) - 1, 0)])
            is_same = before == mode and abs(planned_factor - factor) <= SAME_FACTOR
            factor = factor if is_same else planned_factor
        elif mode is not None and mode != active.mode:
            factor = modes.FIXED_FACTOR
        if mode is not None:
            before = mode
        line.append((start, mode, factor))
    return line


@pyscript_compile
def plan_of(
    state: modes.State,
    models: Sequence[ActuatorModel],
    tariffs: modes.Tariffs,
    solution: linear.Solution,
    market: Sequence[markets.Interval],
) -> tuple[plans.Plan, list[Piece]]:
    """Return (plans.Plan, Pieces) of a solution; `models` are those of a device's actuators."""
    parts = [(model, model.moves(solution)) for model in models]
    pieces = pieces_of(parts, solution, market)
    powers = [plans.PowerPiece(piece.start, piece.end, power_of(models, piece)) for piece in pieces]
    electricity_cost, other_costs = 0.0, sum(move.cost for _model, moves in parts for move in moves)
    for piece, power in zip(pieces, powers, strict=True):
        seconds = piece.end - piece.start
        electricity_cost += markets.cost(piece.interval, power.power_w, seconds)
        other_costs += other_cost(models, piece, tariffs) * seconds / 3600
    changes = [
        change
        for place, (model, moves) in enumerate(parts)
        for change in changes_of(model, place, moves, pieces)
    ]
    changes.sort(key=moment_of)
    if state.moment < pieces[0].start:
        before = power_before(models, state.moment)
        powers.insert(0, plans.PowerPiece(state.moment, pieces[0].start, before))
    cost = electricity_cost + other_costs
    plan = plans.Plan(state.moment, pieces[-1].end, changes, plans.merged(powers), [], cost, other_costs)
    return plan, pieces


@pyscript_compile
def moment_of(change: transitions.Change) -> float:
    """Return the moment of a change."""
    return change.moment


@pyscript_compile
def settings_of(models: Sequence[ActuatorModel], piece: Piece) -> list[tuple[modes.Mode, float]]:
    """Return (modes.Mode, factor) of the actuators that are not in transition in a Piece."""
    return [
        (actuator_of(model).modes[mode], factor)
        for model, mode, factor in zip(models, piece.modes, piece.factors, strict=True)
        if mode is not None
    ]


@pyscript_compile
def power_of(models: Sequence[ActuatorModel], piece: Piece) -> float:
    """Return the power (W) of all actuators in a Piece."""
    return sum(modes.at(mode.powers, factor) for mode, factor in settings_of(models, piece))


@pyscript_compile
def other_cost(models: Sequence[ActuatorModel], piece: Piece, tariffs: modes.Tariffs) -> float:
    """Return the cost of a Piece (currency per hour), without electricity."""
    return sum(
        modes.at(modes.other_cost(mode, tariffs), factor) for mode, factor in settings_of(models, piece)
    )


@pyscript_compile
def power_before(models: Sequence[ActuatorModel], moment: float) -> float:
    """Return the power (W) of the active modes at a moment before all changes."""
    active_modes = [
        (transitions.mode_of(actuator_of(model).modes, model.active.mode), model.active) for model in models
    ]
    return sum(
        modes.at(mode.powers, now.factor) for mode, now in active_modes if mode and now.ready <= moment
    )


@pyscript_compile
def changes_of(
    model: ActuatorModel, place: int, moves: Sequence[modes.Move], pieces: Sequence[Piece]
) -> list[transitions.Change]:
    """Return the Changes of an actuator: its Moves, and the changes of its factor in between."""
    actuator, active = actuator_of(model), model.active
    changes, left = [], list(moves)
    timers, mode, factor, ready = dict(active.timers), active.mode, active.factor, active.ready
    for piece in pieces:
        while left and left[0].start <= piece.start:
            move = left.pop(0)
            mode, ready, timers = move.to, move.end, dict(move.timers)
            is_fixed = actuator.modes[mode].is_fixed
            factor = modes.FIXED_FACTOR if is_fixed else factor_from(pieces, place, move)
            changes.append(modes.change(actuator, move.start, mode, factor, ready, timers))
        if piece.modes[place] != mode or mode is None:
            continue
        if actuator.modes[mode].is_fixed or not actuator.modes[mode].is_permitted:
            continue
        if abs(piece.factors[place] - factor) > SAME_FACTOR:
            factor = piece.factors[place]
            changes.append(modes.change(actuator, piece.start, mode, factor, ready, timers))
    return changes


@pyscript_compile
def factor_from(pieces: Iterable[Piece], place: int, move: modes.Move) -> float:
    """Return the factor with which a Move reaches its mode."""
    for piece in pieces:
        if piece.end > move.end and piece.modes[place] == move.to:
            return float(piece.factors[place])
    return 0.0
