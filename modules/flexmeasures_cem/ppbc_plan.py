"""When the containers of a power profile run, and which sequence of each: the cheapest there is.

The cost of a run is piecewise linear in its start, so it is worked out as such, from the last container back
to the first, and the plan is exact: what a start costs, with all that follows it, is a Curve. Only sequences
that are paused are searched on a grid, by how much of them is done.

Times are seconds since an origin of the search's own, power is W, cost is currency. A Curve's values are cost
with a penalty for exceeding the site's limit, which prevails over one for being late, and that over cost.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import flexmeasures_cem.errors as errors
import flexmeasures_cem.market as markets

LEAST_PAUSE = 300.0
"""The shortest pause within a sequence, and the finest grid of pauses (s)."""
LEAST_SAVING = 0.01
"""Which part of the cost of the run without it a pause has to save at least."""
STEPS = (LEAST_PAUSE, 600.0, 900.0, 1800.0, 3600.0)
"""How fine the grid of pauses may be (s): the finest with which there are not too many states."""
MOST_STATES = 120_000
"""How many states (moment and progress) the searches of a task's pauses may have."""
MOST_SEGMENTS = 600_000
"""How many segments the curves of a search may have in all: what takes some seconds."""
LATE, EXCESS = 1e4, 1e6
"""What an hour late and a Wh over the limit cost in hours of the dearest power."""
EXCESS_IN_TIME = 100.0
"""What a Wh over the limit costs likewise, where the end_time is kept anyway."""
LEAST_RATE = 0.001
"""Currency per hour."""
EPSILON = 1e-6
"""Shorter than any time that matters (s)."""
TIE = 1e-7
"""Costs that are as near as this (in hours of the dearest power) are the same."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(frozen=True)
    class Part:
        """Some time of a sequence: seconds, power (W), what else it costs (currency per hour)."""

        seconds: float
        power: float
        rate: float = 0.0

    @dataclass(frozen=True)
    class Option:
        """A sequence that a container may run, and how long after the one before at most (s)."""

        sequence: str
        parts: tuple
        pause: float = math.inf
        is_interruptible: bool = False

    @dataclass(frozen=True)
    class Task:
        """What is left of a profile: the Options of each container, in order.

        The first may start from `earliest` on, and has to by the end of its pause after `previous`, when the
        container before ended (None: there was none). It is under way where `held` is RUNNING (from
        `earliest` on) or PAUSED. `fee` is what a pause has to save, where that is settled.
        """

        stages: tuple
        earliest: float
        deadline: float
        previous: float | None = None
        held: str | None = None
        fee: float | None = None

    @dataclass(frozen=True)
    class Course:
        """How a container runs: its sequence, and when it is at work (start, end), pauses in between."""

        option: object
        spans: tuple
        fee: float

    @dataclass
    class Curve:
        """The least cost by moment: segments (x0, y0, x1, y1) apart from each other, and points (x, y)."""

        segments: list
        points: list
        starts: list = field(default_factory=list)

    @dataclass
    class Ground:
        """What a search is made on: the market's bounds and Intervals, and what penalties are (currency).

        `excess` is per Wh over the limit, `late` per s, `tie` is a cost that does not matter. `states` is how
        many states there may be for a sequence, `tallies` has the rates by power, `segments` counts those of
        all curves.
        """

        bounds: list
        cells: list
        excess: float
        late: float
        tie: float
        states: int
        tallies: dict = field(default_factory=dict)
        segments: int = 0

    @dataclass(frozen=True)
    class Pauses:
        """A search of pauses: the cost of running on from a grid's moment by progress (ms), and what is next.

        `following` has (place, progress): the place where the run goes on after a pause. To start between the
        grid's moments, at its first, has to save `fee` as well: so a plan stays as it is while time goes on.
        """

        grid: list
        running: list
        following: dict
        fee: float

    return Part, Option, Task, Course, Curve, Ground, Pauses


Part, Option, Task, Course, Curve, Ground, Pauses = records()


@pyscript_compile
def search(task, market):
    """Return the Courses of a task's containers, the cheapest there are.

    `market` has Intervals whose load is all else that runs; pauses begin and end at the clock's five minutes.
    Where the deadline cannot be kept, or only beyond the site's limit, it ends as early as can be. Raise
    NotPlannable where the search is too large.
    """
    origin = market[0].start // STEPS[-1] * STEPS[-1]
    task = moved(task, -origin)
    ground = ground_of(task, market, origin)
    grid = five_minutes(task.earliest, market[-1].end - origin)
    fee = task.fee
    can_pause = task.held == "PAUSED" or any(each.is_interruptible for each in options_of(task))
    found = None if task.held == "PAUSED" else chain(task, ground, None, 0.0, False)
    if can_pause:
        if fee is None:
            steady = found or chain(task, ground, None, 0.0, True)
            fee = LEAST_SAVING * abs(cost(ground, steady))
        fee = max(fee, ground.tie * 10)
        found = chain(task, ground, grid, fee, False)
    if found is None or excess(ground, found) > 1.0:
        ground = replace(ground, excess=ground.excess * EXCESS / EXCESS_IN_TIME, tallies={})
        found = chain(task, ground, grid if can_pause else None, fee or 0.0, True)
    return [
        Course(each.option, tuple((begin + origin, end + origin) for begin, end in each.spans), each.fee)
        for each in found
    ]


@pyscript_compile
def options_of(task):
    """Return all Options of a task."""
    return [option for stage in task.stages for option in stage]


@pyscript_compile
def length(parts):
    """Return how long parts take (s)."""
    return sum(each.seconds for each in parts)


@pyscript_compile
def moved(task, seconds):
    """Return a task some time later."""
    previous = None if task.previous is None else task.previous + seconds
    return replace(
        task, earliest=task.earliest + seconds, deadline=task.deadline + seconds, previous=previous
    )


@pyscript_compile
def ground_of(task, market, origin):
    """Return the Ground of a search: the market, going on as it ends for as long as the task may take."""
    longest = sum(max(length(option.parts) for option in stage) for stage in task.stages)
    last = max(market[-1].end - origin, task.deadline, task.earliest) + longest + LEAST_PAUSE
    cells = [*market, replace(market[-1], start=market[-1].end, end=last + origin)]
    bounds = [each.start - origin for each in cells] + [last]
    parts = {(part.power, part.rate) for option in options_of(task) for part in option.parts}
    rates = [abs(markets.cost(cell, power, 3600) + rate) for power, rate in parts for cell in cells]
    dearest = max(rates, default=0.0) + LEAST_RATE
    pausing = sum(option.is_interruptible for option in options_of(task))
    states = MOST_STATES // max(pausing, 1)
    return Ground(bounds, cells, dearest * EXCESS_IN_TIME, dearest * LATE / 3600, dearest * TIE, states)


@pyscript_compile
def tally(ground, part):
    """Return (rate per s, what is spent before) of a part's power in each cell, with penalties."""
    key = part.power, part.rate
    if key not in ground.tallies:
        rates, spent = [], [0.0]
        for place, cell in enumerate(ground.cells):
            hourly = markets.cost(cell, part.power, 3600) + part.rate
            rates.append((hourly + ground.excess * markets.excess(cell, part.power)) / 3600)
            spent.append(spent[-1] + rates[-1] * (ground.bounds[place + 1] - ground.bounds[place]))
        ground.tallies[key] = rates, spent
    return ground.tallies[key]


@pyscript_compile
def spent_until(ground, part, moment):
    """Return what a part's power costs until a moment, with penalties."""
    rates, spent = tally(ground, part)
    place = min(max(bisect_right(ground.bounds, moment) - 1, 0), len(rates) - 1)
    return spent[place] + rates[place] * (moment - ground.bounds[place])


@pyscript_compile
def of_run(ground, parts, ends, start, done=0.0, seconds=math.inf):
    """Return what it costs to run parts from a moment on, with penalties: from what is done, so long.

    `ends` has when each part ends, counted from the first one's start.
    """
    total, until, shift = 0.0, done + seconds, start - done
    place = bisect_right(ends, done)
    while place < len(parts) and ends[place] - parts[place].seconds < until:
        begin, end = max(ends[place] - parts[place].seconds, done), min(ends[place], until)
        total += spent_until(ground, parts[place], shift + end)
        total -= spent_until(ground, parts[place], shift + begin)
        place += 1
    return total


@pyscript_compile
def ends_of(parts):
    """Return when each part ends, counted from the first one's start (s)."""
    return list(accumulate(each.seconds for each in parts))


@pyscript_compile
def powers(parts, spans):
    """Return the pieces (start, end, Part) of parts that are run in some spans, one after the other."""
    found, worked, ends = [], 0.0, ends_of(parts)
    for start, end in spans:
        done = worked + end - start
        for part, until in zip(parts, ends, strict=True):
            begin, last = max(until - part.seconds, worked), min(until, done)
            if last > begin:
                found.append((start + begin - worked, start + last - worked, part))
        worked = done
    return found


@pyscript_compile
def cost(ground, courses):
    """Return what courses cost (currency), without any penalty."""
    plain = replace(ground, excess=0.0, tallies={})
    return sum(
        spent_until(plain, part, end) - spent_until(plain, part, start)
        for course in courses
        for start, end, part in powers(course.option.parts, course.spans)
    )


@pyscript_compile
def excess(ground, courses):
    """Return how far courses exceed the site's limit (Ws)."""
    total = 0.0
    for course in courses:
        for start, end, part in powers(course.option.parts, course.spans):
            place = max(bisect_right(ground.bounds, start) - 1, 0)
            while place < len(ground.cells) and ground.bounds[place] < end:
                seconds = min(end, ground.bounds[place + 1]) - max(start, ground.bounds[place])
                total += markets.excess(ground.cells[place], part.power) * seconds
                place += 1
    return total


@pyscript_compile
def chain(task, ground, grid, fee, is_late):
    """Return the Courses of a task, or None where they cannot end in time, and may not be late.

    `grid` has the moments for pauses, each of which costs `fee` more; without it there are none.
    """
    last = ground.bounds[-1]
    if is_late:
        end = max(task.deadline, task.earliest)
        by = end - task.deadline
        late = (by * ground.late, (by + last - end) * ground.late)
        after = curve([(task.earliest, 0.0, end, 0.0)] if end > task.earliest and not by else [])
        after = curve([*after.segments, (end, late[0], last, late[1])])
    elif task.deadline < task.earliest - EPSILON:
        return None
    else:
        last = max(task.deadline, task.earliest)
        after = curve([(task.earliest, 0.0, last, 0.0)], [(last, 0.0)])
    stages = []
    for place in range(len(task.stages) - 1, -1, -1):
        stage = []
        for option in task.stages[place]:
            held = task.held if place == 0 else None
            steady, pauses = of_option(option, ground, grid, fee, task, last, after, held, is_late)
            stage.append((option, steady, pauses))
            ground.segments += len(steady.segments)
            if ground.segments > MOST_SEGMENTS:
                raise errors.NotPlannable("the power profile has too many elements and sequences to plan")
        stages.insert(0, stage)
        if place:
            after = before(stage, task.earliest)
    return chosen(stages, task, ground, fee)


@pyscript_compile
def of_option(option, ground, grid, fee, task, last, after, held, is_late):
    """Return the Curve of starting an option and all that follows, and the Pauses that it may have."""
    seconds, first = length(option.parts), task.earliest
    steady = curve([])
    if first + seconds <= last + EPSILON and (held != "PAUSED" or is_late):
        until = first if held == "RUNNING" else max(last - seconds, first)
        steady = added(by_start(ground, option.parts, first, until), after, seconds)
    if grid is None or not (option.is_interruptible or held == "PAUSED") or seconds < EPSILON:
        return steady, None
    moments = coarse_enough([each for each in grid if first - EPSILON <= each < last], seconds, ground.states)
    if not moments:
        return steady, None
    is_between = moments[0] > first + EPSILON
    if is_between and option in task.stages[0]:
        moments = [first, *moments]
    extra = fee if is_between and held != "RUNNING" and moments[0] == first else 0.0
    return steady, with_pauses(option, ground, moments, fee, after, held == "RUNNING", extra)


@pyscript_compile
def chosen(stages, task, ground, fee):
    """Return the Courses that cost least: of equal ones, those that start first; None without any."""
    moment, found = task.earliest, []
    for place, stage in enumerate(stages):
        ways = []
        for number, (option, steady, pauses) in enumerate(stage):
            until = moment + option.pause
            if place == 0:
                until = math.inf if task.previous is None else max(task.previous + option.pause, moment)
            ways += [(y, x, number, False) for x, y in candidates(steady, moment, until)]
            ways += [(y, x, number, True) for x, y in within(starts(pauses), moment, until)]
        if not ways:
            return None
        least = min(way[0] for way in ways)
        near = [way for way in ways if way[0] <= least + ground.tie]
        _cost, start, number, is_paused = min(near, key=lambda way: (round(way[1], 3), way[3], way[2]))
        option, _steady, pauses = stage[number]
        spans = spans_of(pauses, option, start) if is_paused else [(start, start + length(option.parts))]
        found.append(Course(option, tuple(spans), fee))
        moment = spans[-1][1]
    return found


@pyscript_compile
def within(points, first, until):
    """Return the points (x, y) from one moment to another."""
    return [each for each in points if first - EPSILON <= each[0] <= until + EPSILON]


@pyscript_compile
def candidates(steady, first, until):
    """Return the points (x, y) where a Curve may be least between two moments."""
    found = within(steady.points, first, until)
    for x0, y0, x1, y1 in steady.segments:
        if x1 >= first - EPSILON and x0 <= until + EPSILON:
            for x in (x0, x1, first, until):
                if max(x0, first) - EPSILON <= x <= min(x1, until) + EPSILON:
                    found.append((x, value(x0, y0, x1, y1, x)))
    return found


@pyscript_compile
def before(stage, first):
    """Return the least cost of a stage's options by when the stage before it ends."""
    lists, points = [], []
    for option, steady, pauses in stage:
        both = curve(steady.segments, [*steady.points, *starts(pauses)])
        found = waiting(both, option.pause, first)
        lists.append(found.segments)
        points += found.points
    return curve(lowest(lists), points)


@pyscript_compile
def curve(segments, points=()):
    """Return a Curve of segments in order and points; what is no longer than a point is one."""
    proper = [each for each in segments if each[2] - each[0] > EPSILON]
    short = [(each[0], min(each[1], each[3])) for each in segments if each[2] - each[0] <= EPSILON]
    return Curve(proper, sorted([*points, *short]), [each[0] for each in proper])


@pyscript_compile
def value(x0, y0, x1, y1, x):
    """Return the value of a segment at a moment, within its ends."""
    if x <= x0:
        return y0
    return y1 if x >= x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@pyscript_compile
def at(found, x):
    """Return the value of a Curve at a moment, infinite where it has none."""
    place, least = bisect_right(found.starts, x + EPSILON) - 1, math.inf
    for each in found.segments[max(place - 1, 0) : place + 1]:
        if each[0] - EPSILON <= x <= each[2] + EPSILON:
            least = min(least, value(*each, x))
    place = bisect_left(found.points, (x - EPSILON, -math.inf))
    while place < len(found.points) and found.points[place][0] <= x + EPSILON:
        least = min(least, found.points[place][1])
        place += 1
    return least


@pyscript_compile
def by_start(ground, parts, first, last):
    """Return the Curve of what parts cost, without a pause, by when they start."""
    worth = of_run(ground, parts, ends_of(parts), first)
    if last - first <= EPSILON:
        return curve([], [(first, worth)])
    turns, slope, offset = {}, 0.0, 0.0
    for part in parts:
        rates, _spent = tally(ground, part)
        for shift, sign in ((offset + part.seconds, 1.0), (offset, -1.0)):
            place = min(bisect_right(ground.bounds, first + shift + EPSILON) - 1, len(rates) - 1)
            slope += sign * rates[place]
            while place + 1 < len(rates) and ground.bounds[place + 1] - shift < last:
                place += 1
                turn = sign * (rates[place] - rates[place - 1])
                if turn:
                    x = ground.bounds[place] - shift
                    turns[x] = turns.get(x, 0.0) + turn
        offset += part.seconds
    segments, x0 = [], first
    for x in [*sorted(turns), last]:
        if x - x0 > EPSILON:
            segments.append((x0, worth, x, worth + slope * (x - x0)))
            x0, worth = x, segments[-1][3]
        slope += turns.get(x, 0.0)
    return curve(segments)


@pyscript_compile
def added(run, after, seconds):
    """Return the Curve of a run's cost by its start and of what follows its end, some time later."""
    found, place = [], 0
    for x0, y0, x1, y1 in run.segments:
        while place < len(after.segments) and after.segments[place][2] - seconds <= x0:
            place += 1
        following = place
        while following < len(after.segments) and after.segments[following][0] - seconds < x1:
            z0, _w0, z1, _w1 = after.segments[following]
            left, right = max(x0, z0 - seconds), min(x1, z1 - seconds)
            if right - left > EPSILON:
                ends = [
                    value(x0, y0, x1, y1, x) + value(*after.segments[following], x + seconds)
                    for x in (left, right)
                ]
                join(found, left, ends[0], right, ends[1])
            following += 1
    points = [(x, y + at(after, x + seconds)) for x, y in run.points]
    points += [(x - seconds, y + at(run, x - seconds)) for x, y in after.points]
    if run.segments:
        points += [
            (x, at(run, x) + at(after, x + seconds)) for x in (run.segments[0][0], run.segments[-1][2])
        ]
    return curve(found, [each for each in points if each[1] < math.inf])


@pyscript_compile
def join(segments, x0, y0, x1, y1):
    """Add a segment, as a part of the last one where it goes on like that."""
    if segments:
        a0, b0, a1, b1 = segments[-1]
        slope, other = (b1 - b0) / (a1 - a0), (y1 - y0) / (x1 - x0)
        if abs(a1 - x0) < EPSILON and abs(b1 - y0) < 1e-12 and abs(slope - other) * (x1 - a0) < 1e-12:
            segments[-1] = a0, b0, x1, y1
            return
    segments.append((x0, y0, x1, y1))


@pyscript_compile
def waiting(found, pause, first):
    """Return the least of a Curve in the time (s) from each moment on, not before the first moment."""
    points = [(x, y) for x, y in found.points if min(pause, x - first) <= EPSILON and x >= first - EPSILON]
    if pause == math.inf:
        return curve(lowest([later(found.segments, first), steps(found.points, first)]), points)
    if pause <= EPSILON:
        return curve(cut(found.segments, first), points)
    ahead = [(x0 - pause, y0, x1 - pause, y1) for x0, y0, x1, y1 in found.segments]
    lows = [(x0, y0) if y0 <= y1 else (x1, y1) for x0, y0, x1, y1 in found.segments]
    between = lows_within(sorted([*lows, *found.points]), pause)
    return curve(lowest([cut(each, first) for each in (found.segments, ahead, between)]), points)


@pyscript_compile
def lows_within(points, pause):
    """Return the least of points in the time (s) from each moment on, as segments."""
    moments = sorted({moment for x, _y in points for moment in (x - pause, x)})
    found, place, lows = [], 0, deque()
    for left, right in pairwise(moments):
        while place < len(points) and points[place][0] - pause <= left:
            while lows and lows[-1][1] >= points[place][1]:
                lows.pop()
            lows.append(points[place])
            place += 1
        while lows and lows[0][0] <= left:
            lows.popleft()
        if lows and right - left > EPSILON:
            join(found, left, lows[0][1], right, lows[0][1])
    return found


@pyscript_compile
def cut(segments, first):
    """Return segments without what is before a moment."""
    return [
        (first, value(*each, first), each[2], each[3]) if each[0] < first else each
        for each in segments
        if each[2] > first + EPSILON
    ]


@pyscript_compile
def later(segments, first):
    """Return the least of segments from each moment on."""
    found, best, left = [], math.inf, None
    for x0, y0, x1, y1 in reversed(segments):
        if left is not None and left - x1 > EPSILON:
            found.append((x1, best, left, best))
        best = min(best, y1)
        if y0 < best:
            turn = x0 if y1 <= y0 else min(max(x0 + (best - y0) / (y1 - y0) * (x1 - x0), x0), x1)
            if x1 - turn > EPSILON:
                found.append((turn, best, x1, best))
            if turn - x0 > EPSILON:
                found.append((x0, y0, turn, best))
            best = y0
        else:
            found.append((x0, best, x1, best))
        left = x0
    if left is not None and left - first > EPSILON:
        found.append((first, best, left, best))
    merged = []
    for each in cut(reversed(found), first):
        join(merged, *each)
    return merged


@pyscript_compile
def steps(points, first):
    """Return the least of points from each moment on, as segments."""
    found, best, right = [], math.inf, None
    for x, y in reversed(points):
        if y < best:
            if right is not None and right - x > EPSILON:
                found.append((x, best, right, best))
            best, right = y, x
    if right is not None and right - first > EPSILON:
        found.append((first, best, right, best))
    return list(reversed(found))


@pyscript_compile
def lowest(lists):
    """Return the least of several lists of segments (each in order, apart from each other)."""
    lists = [each for each in lists if each]
    while len(lists) > 1:
        pairs = [lower(lists[place], lists[place + 1]) for place in range(0, len(lists) - 1, 2)]
        lists = pairs + (lists[-1:] if len(lists) % 2 else [])
    return lists[0] if lists else []


@pyscript_compile
def lower(one, other):
    """Return the least of two lists of segments."""
    moments = sorted({x for each in (*one, *other) for x in (each[0], each[2])})
    found, first, second = [], 0, 0
    for left, right in pairwise(moments):
        while first < len(one) and one[first][2] <= left:
            first += 1
        while second < len(other) and other[second][2] <= left:
            second += 1
        if right - left <= EPSILON:
            continue
        ends = [
            (value(*each, left), value(*each, right))
            for each in (*one[first : first + 1], *other[second : second + 1])
            if each[0] <= left
        ]
        if len(ends) == 2:
            (a0, a1), (b0, b1) = ends
            if (a0 - b0) * (a1 - b1) < 0:
                turn = left + (a0 - b0) / (a0 - b0 - a1 + b1) * (right - left)
                level = a0 + (a1 - a0) * (turn - left) / (right - left)
                if turn - left > EPSILON and right - turn > EPSILON:
                    join(found, left, min(a0, b0), turn, level)
                    join(found, turn, level, right, min(a1, b1))
                    continue
            ends = [(min(a0, b0), min(a1, b1))]
        if ends:
            join(found, left, ends[0][0], right, ends[0][1])
    return found


@pyscript_compile
def coarse_enough(moments, seconds, most):
    """Return the moments for pauses in a sequence so long (s): none where there are too many."""
    for step in STEPS:
        found = [each for each in moments if step == STEPS[0] or round(each) % step == 0]
        if len(found) * (seconds / step + 1) <= most:
            return found
    return []


@pyscript_compile
def five_minutes(first, last):
    """Return each fifth minute from one moment to another."""
    step = LEAST_PAUSE
    return [place * step for place in range(math.ceil((first - EPSILON) / step), math.floor(last / step) + 1)]


@pyscript_compile
def with_pauses(option, ground, grid, fee, after, is_running, extra):
    """Return the Pauses of an option: what it costs to run on from each moment, by what is done then.

    It starts at any moment of the grid, or where `is_running` at the first, and may pause at each later one;
    to start at the first costs `extra`.
    """
    parts, ends, total = option.parts, ends_of(option.parts), round(length(option.parts) * 1000)
    reached = progresses(grid, total, is_running)
    running, following, going_on = [{} for _ in grid], {}, {}
    resumed, noise = [{} for _ in range(len(grid) + 1)], ground.tie / 100
    for place in range(len(grid) - 1, -1, -1):
        now, start = {}, grid[place]
        step, until = step_of(grid, place), bisect_left(grid, start + LEAST_PAUSE - EPSILON)
        for done in reached[place]:
            seconds = min(total - done, step) / 1000
            rest = at(after, start + seconds) if total - done <= step else going_on[done + step]
            worth = rest + of_run(ground, parts, ends, start, done / 1000, seconds)
            running[place][done] = now[done] = worth
            best = resumed[place + 1].get(done, (math.inf, None))
            resumed[place][done] = (worth, place) if worth <= best[0] + noise else best
            if done and option.is_interruptible:
                paused, where = resumed[until].get(done, (math.inf, None))
                if fee + paused < worth - noise:
                    now[done], following[place, done] = fee + paused, where
        going_on = now
    return Pauses(grid, running, following, extra)


@pyscript_compile
def step_of(grid, place):
    """Return how long it is to a grid's next moment (ms)."""
    return round((grid[place + 1] - grid[place]) * 1000) if place + 1 < len(grid) else math.inf


@pyscript_compile
def progresses(grid, total, is_running):
    """Return what may be done (ms) of a sequence at each moment of a grid."""
    found, done = [], {0}
    for place, start in enumerate(grid):
        found.append(sorted(done))
        if place + 1 < len(grid):
            step = round((grid[place + 1] - start) * 1000)
            further = {each + step for each in done if each + step < total}
            done = further | (done - {0} if is_running else done)
    return found


@pyscript_compile
def starts(pauses):
    """Return the points (x, y) where a run may start that may be paused."""
    if pauses is None:
        return []
    found = [(x, costs[0]) for x, costs in zip(pauses.grid, pauses.running, strict=True) if 0 in costs]
    found[0] = found[0][0], found[0][1] + pauses.fee
    return [each for each in found if each[1] < math.inf]


@pyscript_compile
def spans_of(pauses, option, start):
    """Return when a run is at work (start, end) that starts at a moment of a grid."""
    total, grid = round(length(option.parts) * 1000), pauses.grid
    place = min(range(len(grid)), key=lambda each: abs(grid[each] - start))
    spans, begin, done = [], place, 0
    while total - done > step_of(grid, place):
        done += step_of(grid, place)
        place += 1
        if (place, done) in pauses.following:
            spans.append((grid[begin], grid[place]))
            begin = place = pauses.following[place, done]
    return [*spans, (grid[begin], grid[place] + (total - done) / 1000)]
