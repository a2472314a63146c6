"""Actuators that have operation modes, and the best way through those: an exact search over time.

Time is cut into steps in which prices, loads and needs stay the same. A transition begins at a step's start,
or as soon as what blocks it ends; during it there is neither power nor supply. What is reached the best way
is kept for every mode and timer (dynamic programming); of very many, the best.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from itertools import pairwise

import flexmeasures_cem.market as markets
import flexmeasures_cem.plans as plans
import flexmeasures_cem.transitions as transitions
import flexmeasures_s2.commodities as commodities

GREATEST = 1e9
"""Beyond this, powers (W), flows, supplies and costs are no sense."""
MINUTE = 60.0
FIXED_FACTOR = 1.0
"""The factor that is told where it changes nothing."""
FACTOR_TOLERANCE = 0.1
"""By how much a factor may depart from the plan."""
PER_CHANGE, PER_DAY = 1e-6, 1e-8
"""What a change, and that it comes a day earlier, must save at least (currency)."""
PER_RESTLESS_HOUR = 3e-5
"""What it counts to take nothing for an hour in a mode that could take something (currency)."""
NOTHING = 1e-9
MOST_WORK = 80_000
"""How many ways to spend a step are looked at, at most, in a whole search."""
MOST_PATHS = 64
"""How many ways through other modes are looked at, at most, in a step."""
FEW_MODES = 6
"""With no more in a lone actuator, ways through others are looked at even where there is a direct one."""
FEW_COURSES = 12
"""How many Courses of several actuators are kept at least, where that leaves room to look at each."""
MOST_MODES, MOST_TRANSITIONS = 50, 300
"""How many a device may have to be planned in time."""
MOST_AHEAD = 2
"""How many ends of steps a transition is timed for that begins in one step."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(frozen=True)
    class Mode:
        """An operation mode by its factor: what it takes and supplies at 0, and at 1.

        `flows` has (commodity quantity, at 0, at 1) of what is not electric; `cost` is that of running
        (currency per hour).
        """

        id: str
        label: str
        is_permitted: bool
        powers: tuple
        flows: tuple
        supply: tuple
        cost: float

        @property
        def is_fixed(self) -> bool:
            """Whether the factor changes nothing."""
            return all(start == end for start, end in self.ends)

        @property
        def ends(self) -> list[tuple[float, float]]:
            """What it takes and supplies, in whatever unit, at 0 and at 1."""
            return [self.powers, self.supply, *[(start, end) for _quantity, start, end in self.flows]]

    @dataclass
    class Actuator:
        """An actuator with all its modes by id; `transitions` by the mode that they start from.

        `blocking` are the timers that matter. `id` is None where a device has only one.
        """

        id: str | None
        modes: dict
        transitions: dict
        durations: dict
        blocking: frozenset
        label: str | None = None

    @dataclass
    class Condition:
        """What a device is at a moment: each actuator's Active, by its id."""

        moment: float
        actuators: dict

    @dataclass
    class Span:
        """A step in time, with its market.Interval and the demand; `settled` has what is known of it.

        `ahead` are the ends of this step and of later ones at which a transition may be timed to end.
        """

        start: float
        end: float
        interval: object
        demand: float = 0.0
        ahead: list = field(default_factory=list)
        settled: dict = field(default_factory=dict)

    @dataclass(frozen=True)
    class Rates:
        """What is paid in an hour (currency) with each actuator's mode at a factor, and what is amiss.

        `excess` is that of the site's limit (W), `shortfall` and `surplus` those of the supply.
        """

        excess: float
        shortfall: float
        surplus: float
        cost: float
        power: float
        supply: float
        factors: tuple

    @dataclass(frozen=True)
    class Move:
        """A transition from `start` to `end`, and when the timers finish that matter then."""

        start: float
        end: float
        to: str
        timers: tuple
        cost: float

    @dataclass(frozen=True)
    class Path:
        """A way to spend a step: (until, mode or None) of each part of it, its Moves, and what follows."""

        segments: tuple
        moves: tuple
        after: tuple
        cost: float

    @dataclass(frozen=True)
    class Course:
        """A way up to a moment: each actuator's (mode, ready, timers), what is amiss and paid, and its past.

        `amiss` is (seconds in modes for an abnormal condition, excess in Ws, shortfall, surplus).
        """

        actives: tuple
        amiss: tuple
        cost: float
        before: object
        paths: tuple

    @dataclass(frozen=True)
    class Piece:
        """Some time in which each actuator's mode (None: in transition) and factor stay the same."""

        start: float
        end: float
        modes: tuple
        rates: Rates
        span: Span

    @dataclass(frozen=True)
    class Rating:
        """What Courses are rated by: see `search`. The earlier a change before the `horizon`, the worse.

        `enough` is how many Paths through other modes are looked at.
        """

        actuators: list
        settle: object
        order: object
        horizon: float
        enough: int

    return Mode, Actuator, Condition, Span, Rates, Move, Path, Course, Piece, Rating


Mode, Actuator, Condition, Span, Rates, Move, Path, Course, Piece, Rating = records()


@pyscript_compile
def read(described_by, actuator_id=None):
    """Return the Actuator that an actuator's, or a whole device's, description describes.

    A transition costs the running costs of the dearer of its two modes, too: no time is saved by it.
    """
    found = [read_mode(each) for each in described_by.operation_modes]
    ways, durations = transitions.read(described_by)
    costs = {each.id: each.cost / 3600 for each in found}
    permitted = {each.id for each in found if each.is_permitted}
    ways = {
        start: [
            replace(each, cost=each.cost + each.duration * max(costs[each.to], costs.get(start, 0.0)))
            for each in listed
            if each.to in permitted and each.to != start
        ]
        for start, listed in ways.items()
    }
    blocking = {timer for listed in ways.values() for each in listed for timer in each.blocking_timers}
    label = transitions.short_label(described_by) if actuator_id else None
    by_id = {each.id: each for each in found}
    return Actuator(actuator_id, by_id, ways, durations, frozenset(blocking), label)


@pyscript_compile
def read_mode(mode):
    """Return the Mode that an operation mode describes."""
    ranges = {each.commodity_quantity.value: each for each in mode.power_ranges}
    starts = {quantity: each.start_of_range for quantity, each in ranges.items()}
    ends = {quantity: each.end_of_range for quantity, each in ranges.items()}
    flows = tuple((each, starts[each], ends[each]) for each in sorted(ranges) if each in commodities.TARIFFS)
    supplied = (getattr(mode, "supply_range", None) or [None])[0]
    costs = mode.running_costs
    return Mode(
        mode.id,
        transitions.short_label(mode),
        not mode.abnormal_condition_only,
        (commodities.electric(starts) or 0.0, commodities.electric(ends) or 0.0),
        flows,
        (supplied.start_of_range, supplied.end_of_range) if supplied else (0.0, 0.0),
        (costs.start_of_range + costs.end_of_range) / 2 * 3600 if costs else 0.0,
    )


@pyscript_compile
def commodities_of(actuators):
    """Return the commodities, other than electricity, that actuators take, as they are paid."""
    modes = [mode for each in actuators for mode in each.modes.values()]
    return {commodities.TARIFFS[quantity][0] for mode in modes for quantity, *_ends in mode.flows}


@pyscript_compile
def unfit(actuators):
    """Return why a device of such actuators cannot be planned, or None."""
    count = sum(len(listed) for each in actuators for listed in each.transitions.values())
    if count > MOST_TRANSITIONS or sum(len(each.modes) for each in actuators) > MOST_MODES:
        return f"it has too many operation modes, with {count} transitions, to be planned in time"
    if not any(mode.is_permitted for each in actuators for mode in each.modes.values()):
        return "all its operation modes are for an abnormal condition only"
    for actuator in actuators:
        costs = [each.cost for listed in actuator.transitions.values() for each in listed]
        if any(abs(each) > GREATEST for each in costs):
            return "a transition of it costs more than is sense"
        for mode in actuator.modes.values():
            flows = [value for _quantity, *values in mode.flows for value in values]
            if any(abs(each) > GREATEST for each in (*mode.powers, *flows, *mode.supply, mode.cost)):
                return f"its operation mode {mode.label} has a power, supply or cost beyond all sense"
    return None


@pyscript_compile
def greatest_power(actuators):
    """Return the greatest power of all actuators together (W), in either direction."""
    return sum(
        max((abs(power) for mode in each.modes.values() for power in mode.powers), default=0.0)
        for each in actuators
    )


@pyscript_compile
def as_it_is(actuator, now):
    """Return an actuator whose mode, where it is for an abnormal condition, has only the factor in force."""
    mode = actuator.modes.get(now.mode)
    if mode is None or mode.is_permitted:
        return actuator
    fixed = replace(
        mode,
        powers=(at(mode.powers, now.factor),) * 2,
        flows=tuple((quantity, *(at(ends, now.factor),) * 2) for quantity, *ends in mode.flows),
        supply=(at(mode.supply, now.factor),) * 2,
    )
    return replace(actuator, modes=actuator.modes | {mode.id: fixed})


@pyscript_compile
def at(ends, factor):
    """Return a quantity at a factor."""
    return ends[0] + factor * (ends[1] - ends[0])


@pyscript_compile
def other_cost(mode, tariffs):
    """Return what a mode costs in an hour at a factor of 0 and of 1 (currency), but for electricity."""
    costs = [mode.cost, mode.cost]
    for quantity, *ends in mode.flows:
        costs = [
            cost + markets.other_cost(quantity, end, tariffs) for cost, end in zip(costs, ends, strict=True)
        ]
    return tuple(costs)


@pyscript_compile
def spans(market, cuts=(), is_punctual=False):
    """Return a Span for each interval, cut at some moments; with `is_punctual` transitions are timed."""
    found = []
    for interval in market:
        inside = cuts[bisect_right(cuts, interval.start) : bisect_left(cuts, interval.end)]
        edges = [interval.start, *inside, interval.end]
        for start, end in pairwise(edges):
            if end > start:
                found.append(Span(start, end, interval))
    ends = [each.end for each in found]
    for place, each in enumerate(found):
        each.ahead = ends[place:] if is_punctual else []
    return found


@pyscript_compile
def search(actuators, condition, steps, settle, scale=1.0):
    """Return the best Course through all steps (Spans).

    `settle(span, modes)` returns the Rates of modes (None: in transition) with their best factors; `scale`
    is what supply is measured by. First in rank is to leave modes for an abnormal condition, then the site's
    limit, then shortfall, then surplus, and last what it costs.
    """
    begin = steps[0].start
    actives = tuple(clipped(each, condition.actuators[each.id], begin) for each in actuators)
    courses = [Course(actives, (0.0, 0.0, 0.0, 0.0), 0.0, None, ())]
    fans = [1 + max((len(ways) for ways in each.transitions.values()), default=0) for each in actuators]
    most = max(MOST_WORK // len(steps) // len(actuators) ** 2, 2)
    fewest = len(actuators[0].modes) + 1 if len(actuators) == 1 else 2
    enough = min(MOST_PATHS, most // fewest) if len(actuators) == 1 else 0
    rating = Rating(actuators, settle, ranking(scale), steps[-1].end, enough)
    for number, step in enumerate(steps):
        ways, following = {}, steps[number + 1] if number + 1 < len(steps) else None
        combined = [(course, ()) for course in courses]
        for place in range(len(actuators)):
            combined = [
                (course, (*chosen, each))
                for course, chosen in combined
                for each in ways_of(rating, ways, place, course, step)
            ]
            room = max(most // fans[place + 1], 2) if place + 1 < len(actuators) else most
            if len(combined) > room:
                combined = best_so_far(rating, combined, place, ways, step, following, room)
        found = [
            extended(rating, course, joint, step)
            for course, chosen in combined
            for joint in (chosen, *handed_over(actuators, course, chosen, step))
        ]
        kept = max(most // math.prod(fans), min(most // max(fans), FEW_COURSES), fewest)
        courses = undominated(rating, found, following, kept)
    return min(courses, key=rating.order)


@pyscript_compile
def ways_of(rating, ways, place, course, step):
    """Return the Paths of an actuator through a step, which are sought once for each state of it."""
    key = place, course.actives[place]
    if key not in ways:
        ways[key] = paths(rating.actuators[place], course.actives[place], step, rating.enough)
    return ways[key]


@pyscript_compile
def ranking(scale):
    """Return by what Courses are ordered; what is less than can be told of is left out."""
    quantum = max(scale, NOTHING) * 1e-3

    def order(course):
        abnormal, excess, shortfall, surplus = course.amiss
        return (
            round(abnormal),
            round(excess),
            round(shortfall / quantum),
            round(surplus / quantum),
            course.cost,
        )

    return order


@pyscript_compile
def clipped(actuator, found, moment):
    """Return (mode, ready, timers) of an Active, as far as they matter from a moment on."""
    timers = tuple(
        sorted(
            (each, end) for each, end in found.timers.items() if each in actuator.blocking and end > moment
        )
    )
    ready = found.ready if found.ready + transitions.MARGIN > moment else 0.0
    return (found.mode if found.mode in actuator.modes else None), ready, timers


@pyscript_compile
def paths(actuator, found, step, enough):
    """Return the Paths through a step from (mode, ready, timers): to stay is the first.

    Where the mode is not known, every permitted one is at hand, and one is taken at once.
    """
    mode, ready, timers = found
    if mode is None:
        moves = [
            into(actuator, each.id, timers, step) for each in actuator.modes.values() if each.is_permitted
        ]
        if moves:
            return [path(actuator, found, (move,), step) for move in moves]
    made = [path(actuator, found, (), step)]
    if ready >= step.end:
        return made
    routes = [(mode, ready, dict(timers), ())]
    reached = {}
    is_exact = enough and len(actuator.modes) <= FEW_MODES
    most = enough or len(actuator.modes)
    while routes:
        at_mode, at_ready, running, moves = routes.pop(0)
        passed = {mode, *[each.to for each in moves]}
        for each in actuator.transitions.get(at_mode, ()):
            if each.to in passed or (moves and len(made) > most):
                continue
            free = max(step.start, at_ready + transitions.MARGIN if at_ready else step.start)
            first = transitions.earliest(each, free, running)
            begins = [first] if first < step.end else []
            begins += [] if moves else punctual(each, first, step)
            for start in begins:
                move = moved(actuator, each, running, start)
                if moves and is_detour(move, reached.get(each.to, ()), is_exact):
                    continue
                reached.setdefault(each.to, []).append(move)
                made.append(path(actuator, found, (*moves, move), step))
                if move.end < step.end and start == first:
                    routes.append((each.to, move.end, dict(move.timers), (*moves, move)))
    return made


@pyscript_compile
def into(actuator, mode_id, timers, step):
    """Return the Move to a mode from an unknown one: it may take as long as any, and start any timer."""
    ways = [each for listed in actuator.transitions.values() for each in listed if each.to == mode_id]
    duration = max((each.duration for each in ways), default=0.0)
    running = transitions.latest(
        dict(timers),
        {timer: step.start + actuator.durations[timer] for each in ways for timer in each.start_timers},
    )
    return Move(step.start, step.start + duration, mode_id, tuple(sorted(running.items())), 0.0)


@pyscript_compile
def punctual(transition, first, step):
    """Return when else a transition may begin in a step: so that it is done when a step ends."""
    if not transition.duration:
        return []
    low = bisect_right(step.ahead, max(first, step.start) + transition.duration)
    high = bisect_left(step.ahead, step.end + transition.duration)
    return [end - transition.duration for end in step.ahead[low:high][:MOST_AHEAD]]


@pyscript_compile
def moved(actuator, transition, timers, start):
    """Return the Move of a transition that starts at a moment."""
    started = {each: start + actuator.durations[each] for each in transition.start_timers}
    running = tuple(sorted((timers | started).items()))
    return Move(start, start + transition.duration, transition.to, running, transition.cost)


@pyscript_compile
def is_detour(move, others, is_exact):
    """Tell whether a mode is reached as soon and as cheaply another way, with no timer later.

    If it is not to be told exactly, any other way is as good.
    """
    if others and not is_exact:
        return True
    for each in others:
        ends = dict(move.timers)
        is_as_good = each.end <= move.end and each.cost <= move.cost
        is_prompt = move.start - each.start <= MINUTE
        if is_as_good and is_prompt and all(end <= ends.get(timer, 0.0) for timer, end in each.timers):
            return True
    return False


@pyscript_compile
def path(actuator, found, moves, step):
    """Return the Path of Moves from (mode, ready, timers)."""
    mode, ready, timers = found
    segments = [(ready, None)] if ready > step.start else []
    for move in moves:
        segments += [(move.start, mode), (move.end, None)]
        mode, ready, timers = move.to, move.end, move.timers
    segments.append((math.inf, mode))
    kept, last = [], step.start
    for until, each in segments:
        if last < step.end and until > last:
            last = min(until, step.end)
            kept.append((last, each))
    running = tuple(each for each in timers if each[1] > step.end and each[0] in actuator.blocking)
    after = mode, ready if ready + transitions.MARGIN > step.end else 0.0, running
    return Path(tuple(kept), moves, after, sum(each.cost for each in moves))


@pyscript_compile
def best_so_far(rating, combined, place, ways, step, following, most):
    """Return the best of ways to spend a step in which the last actuators stay as they are: so many."""
    ranked, modes = [], {}
    for number, (course, chosen) in enumerate(combined):
        later = range(place + 1, len(rating.actuators))
        rest = [ways_of(rating, ways, each, course, step)[0] for each in later]
        made = extended(rating, course, (*chosen, *rest), step)
        rank = rating.order(foreseen(rating, made, following))
        ranked.append((rank, number, tuple(each[0] for each in made.actives)))
    ranked.sort()
    for each in ranked:
        modes.setdefault(each[2], each)
    first = list(modes.values())[: most // 2]
    numbers = {each[1] for each in first}
    others = [each for each in ranked if each[1] not in numbers]
    return [combined[number] for _order, number, _modes in [*first, *others][:most]]


@pyscript_compile
def handed_over(actuators, course, chosen, step):
    """Return the same ways to spend a step with a Move of one actuator put off until another's is done."""
    if not step.ahead:
        return []
    moving = [place for place, each in enumerate(chosen) if each.moves]
    found = []
    for place in moving if len(moving) > 1 else []:
        done = max(chosen[other].moves[-1].end for other in moving if other != place)
        first = chosen[place].moves[0]
        if len(chosen[place].moves) > 1 or not first.start < done < step.end:
            continue
        mode, _ready, timers = course.actives[place]
        listed = actuators[place].transitions.get(mode, ())
        for each in [each for each in listed if each.to == first.to and each.cost == first.cost][:1]:
            if transitions.earliest(each, done, dict(timers)) == done:
                put_off = path(
                    actuators[place],
                    course.actives[place],
                    (moved(actuators[place], each, dict(timers), done),),
                    step,
                )
                found.append((*chosen[:place], put_off, *chosen[place + 1 :]))
    return found


@pyscript_compile
def parts(chosen, step):
    """Return (start, end, modes) of each part of a step in which no mode changes."""
    lines = [each.segments for each in chosen]
    places, start, made = [0] * len(lines), step.start, []
    while start < step.end:
        now = [line[place] for line, place in zip(lines, places, strict=True)]
        end = min([until for until, _mode in now])
        made.append((start, end, tuple([mode for _until, mode in now])))
        for number, (until, _mode) in enumerate(now):
            if until <= end:
                places[number] += 1
        start = end
    return made


@pyscript_compile
def extended(rating, course, chosen, step):
    """Return the Course that follows when a step is spent in a way, one Path for each actuator."""
    amiss, cost = course.amiss, course.cost
    for start, end, found in parts(chosen, step):
        amiss, cost = added(rating, amiss, cost, step, found, end - start)
    for each in chosen:
        for move in each.moves:
            cost += move.cost + PER_CHANGE + PER_DAY * (rating.horizon - move.start) / 86_400
    return Course(tuple(each.after for each in chosen), amiss, cost, course, chosen)


@pyscript_compile
def added(rating, amiss, cost, step, found, seconds):
    """Return what is amiss and what is paid, with some time in modes added."""
    if found not in step.settled:
        wrong = sum(
            1.0
            for each, mode in zip(rating.actuators, found, strict=True)
            if mode is not None and not each.modes[mode].is_permitted
        )
        rates = rating.settle(step, found)
        step.settled[found] = wrong, rates, restless(rating.actuators, found, rates.factors)
    wrong, rates, count = step.settled[found]
    abnormal, excess, shortfall, surplus = amiss
    amiss = (
        abnormal + wrong * seconds,
        excess + rates.excess * seconds,
        shortfall + rates.shortfall * seconds,
        surplus + rates.surplus * seconds,
    )
    return amiss, cost + (rates.cost + PER_RESTLESS_HOUR * count) * seconds / 3600


@pyscript_compile
def restless(actuators: list, found: tuple, factors: tuple) -> int:
    """Return how many actuators take and supply nothing in a mode that can do otherwise."""
    modes = [None if mode is None else each.modes[mode] for each, mode in zip(actuators, found, strict=True)]
    return sum(
        mode is not None and not mode.is_fixed and all(abs(at(ends, factor)) < NOTHING for ends in mode.ends)
        for mode, factor in zip(modes, factors, strict=True)
    )


@pyscript_compile
def undominated(rating, found, following, most):
    """Return the Courses that none other is as good as: in the same modes, with no timer later; so many."""
    kept = {}
    for _rank, place in sorted([(rating.order(each), place) for place, each in enumerate(found)]):
        course = found[place]
        listed = kept.setdefault(tuple((mode, ready) for mode, ready, _timers in course.actives), [])
        running = [dict(timers) for _mode, _ready, timers in course.actives]
        if not any(is_no_later(each, running) for each in listed):
            listed.append(course)
    every = [each for listed in kept.values() for each in listed]
    if len(every) <= most:
        return every
    ranks = [rating.order(foreseen(rating, each, following)) for each in every]
    firsts = {id(listed[0]) for listed in kept.values()}
    order = sorted((id(each) not in firsts, ranks[place], place) for place, each in enumerate(every))
    return [every[place] for _is_later, _rank, place in order[:most]]


@pyscript_compile
def foreseen(rating, course, following):
    """Return a Course with what comes of it in the step that follows, if all modes stay."""
    if following is None:
        return course
    found = tuple(mode for mode, _ready, _timers in course.actives)
    amiss, cost = added(rating, course.amiss, course.cost, following, found, following.end - following.start)
    return Course(course.actives, amiss, cost, course.before, course.paths)


@pyscript_compile
def is_no_later(course, running):
    """Tell whether each timer of a Course finishes no later than another's."""
    for (_mode, _ready, timers), others in zip(course.actives, running, strict=True):
        for timer, end in timers:
            if end > others.get(timer, 0.0):
                return False
    return True


@pyscript_compile
def history(course):
    """Return the Paths of each step on the way to a Course, in order."""
    found = []
    while course.before is not None:
        found.append(course.paths)
        course = course.before
    return found[::-1]


@pyscript_compile
def plan(actuators, condition, steps, settle, rate, scale=1.0):
    """Return (Plan, Pieces) of the best way through all steps.

    `rate(span, modes, factors)` returns the Rates of factors that are given: one that is in force is kept
    where it does as well.
    """
    chosen = history(search(actuators, condition, steps, settle, scale))
    factors = {each.id: condition.actuators[each.id].factor for each in actuators}
    actives = [condition.actuators[each.id] for each in actuators]
    last = [each.mode for each in actives]
    pieces, cost = [], 0.0
    for step, together in zip(steps, chosen, strict=True):
        for start, end, found in parts(together, step):
            rates = step.settled[found][1]
            same = tuple(
                factors[each.id] if mode == before else factor
                for each, mode, before, factor in zip(actuators, found, last, rates.factors, strict=True)
            )
            rates = steady(rates, rate(step, found, same), scale)
            for place, (actuator, mode) in enumerate(zip(actuators, found, strict=True)):
                if mode is not None:
                    factors[actuator.id], last[place] = rates.factors[place], mode
            pieces.append(Piece(start, end, found, rates, step))
            cost += rates.cost * (end - start) / 3600
        cost += sum(each.cost for each in together)
    changes = []
    for place, actuator in enumerate(actuators):
        moves = [move for together in chosen for move in together[place].moves]
        changes += told(actuator, place, actives[place], moves, pieces)
    changes.sort(key=moment_of)
    begin = steps[0].start
    powers = [(each.start, each.end, each.rates.power) for each in pieces]
    if condition.moment < begin:
        powers.insert(0, (condition.moment, begin, power_before(actuators, condition)))
    made = plans.Plan(condition.moment, steps[-1].end, changes, merged(powers), [], cost)
    return made, pieces


@pyscript_compile
def moment_of(change):
    """Return the moment of a change."""
    return change.moment


@pyscript_compile
def steady(best, same, scale):
    """Return the Rates of the factors that are in force, where they are no worse, else the best."""
    quantum = max(scale, NOTHING) * 1e-6
    if (
        same.excess <= best.excess + 1e-3
        and same.shortfall <= best.shortfall + quantum
        and same.surplus <= best.surplus + quantum
        and same.cost <= best.cost + NOTHING
    ):
        return same
    return best


@pyscript_compile
def power_before(actuators, condition):
    """Return the power (W) of what is active now."""
    power = 0.0
    for actuator in actuators:
        now = condition.actuators[actuator.id]
        if now.mode in actuator.modes and now.ready <= condition.moment:
            power += at(actuator.modes[now.mode].powers, now.factor)
    return power


@pyscript_compile
def merged(pieces):
    """Return pieces (start, end, power), with those of the same power made one."""
    made = []
    for start, end, power in pieces:
        if made and made[-1][2] == power and made[-1][1] == start:
            made[-1] = made[-1][0], end, power
        else:
            made.append((start, end, power))
    return made


@pyscript_compile
def told(actuator, place, now, moves, pieces):
    """Return the Changes that an actuator is told: its Moves, and where its factor changes between."""
    found, timers, mode, factor, ready = [], dict(now.timers), now.mode, now.factor, now.ready
    left = list(moves)
    for piece in pieces:
        while left and left[0].start <= piece.start:
            move = left.pop(0)
            mode, ready, timers = move.to, move.end, dict(move.timers)
            is_fixed = actuator.modes[mode].is_fixed
            factor = FIXED_FACTOR if is_fixed else factor_from(pieces, place, move)
            found.append(change(actuator, move.start, mode, factor, ready, timers))
        if piece.modes[place] != mode or mode is None:
            continue
        if actuator.modes[mode].is_fixed or not actuator.modes[mode].is_permitted:
            continue
        if abs(piece.rates.factors[place] - factor) > NOTHING:
            factor = piece.rates.factors[place]
            found.append(change(actuator, piece.start, mode, factor, ready, timers))
    return found


@pyscript_compile
def factor_from(pieces, place, move):
    """Return the factor that a mode is reached with."""
    for piece in pieces:
        if piece.end > move.end and piece.modes[place] == move.to:
            return piece.rates.factors[place]
    return 0.0


@pyscript_compile
def change(actuator, moment, mode, factor, ready, timers):
    """Return the Change to a mode and factor."""
    power = at(actuator.modes[mode].powers, factor)
    return transitions.Change(
        moment, actuator.id, mode, factor, power, transitions.Active(mode, factor, ready, timers)
    )


@pyscript_compile
def present(actuators: list, state: Condition, moment: float) -> list:
    """Return what each actuator does, as the Change at a moment that tells it to go on, where that may be."""
    changes = []
    for actuator in actuators:
        active = state.actuators[actuator.id]
        mode = actuator.modes.get(active.mode)
        if mode and mode.is_permitted:
            factor = FIXED_FACTOR if mode.is_fixed else active.factor
            changes.append(change(actuator, moment, mode.id, factor, active.ready, active.timers))
    return changes


@pyscript_compile
def status_departs(actuator, status, plan, now, tolerance=None):
    """Tell where an actuator does not do what it was told; what it did shortly before counts too.

    With a `tolerance` (W), and nothing told yet, its power counts.
    """
    mode, factor = actuator.modes.get(status.active_operation_mode_id), status.operation_mode_factor
    change = plans.last_told(plan, now, actuator.id)
    if mode is None or (change and change.mode not in actuator.modes):
        return "an operation mode is active that was not described when it was planned"
    if change is None:
        _began, done, _timers = transitions.under_way(actuator, status, now)
        if tolerance is None or now - done < plans.LAG_SECONDS or now - plan.start < plans.LAG_SECONDS:
            return None
        power = at(mode.powers, factor)
        if plans.measured_power_departs(plan, power, now, tolerance):
            return f"{mode.label} is active at {power:.0f} W, expected was {plans.power_at(plan, now):.0f} W"
        return None
    if now - max(change.moment, change.active.ready) < plans.LAG_SECONDS:
        return None
    expected = actuator.modes[change.mode]
    if mode.id != expected.id:
        return f"{mode.label} is active, expected was {expected.label}"
    if not mode.is_fixed and abs(factor - change.factor) > FACTOR_TOLERANCE:
        return f"{mode.label} has the factor {factor:g}, expected was {change.factor:g}"
    return None


@pyscript_compile
def timer_departs(actuator, message, plan, now):
    """Tell where a timer blocks what is to be done next."""
    ends = message.finished_at.timestamp()
    before = plans.last_told(plan, now, actuator.id)
    mode = before.mode if before else None
    for each in plan.changes:
        if each.actuator != actuator.id or each.moment <= now or each.mode == mode:
            continue
        starts = [mode] if mode else list(actuator.transitions)
        ways = [way for start in starts for way in actuator.transitions.get(start, ()) if way.to == each.mode]
        blocked = [way for way in ways if message.timer_id in way.blocking_timers]
        if blocked and len(blocked) == len(ways) and each.moment < ends:
            return f"a timer blocks {actuator.modes[each.mode].label} longer than expected"
        return None
    return None


@pyscript_compile
def is_elsewhere(actuator, before, message, moment):
    """Tell whether a status is of another mode, or of a later end of a timer, than the Active at a moment."""
    if hasattr(message, "finished_at"):
        expected = max(before.timers.get(message.timer_id, 0.0), moment)
        ends = message.finished_at.timestamp()
        return message.timer_id in actuator.blocking and ends > expected + transitions.MARGIN
    return message.active_operation_mode_id != before.mode


@pyscript_compile
def fields(change):
    """Return the fields of an instruction that a Change calls for, but for its ids and time."""
    return {
        "operation_mode_id": change.mode,
        "operation_mode_factor": round(change.factor, 6) + 0.0,
        "abnormal_condition": False,
    }
