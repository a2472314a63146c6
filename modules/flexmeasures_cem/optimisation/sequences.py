"""Tasks of several stages, one after the other, each by one of some sequences of powers.

A sequence starts at one of some moments: each has a variable, and its power is spread exactly over the steps
that it touches. What that costs more than the mean power of a step does (own production or a limit that is
exceeded for a part of the step only) is added, as it is beside the given load alone. A sequence that may be
paused is cut into chunks, one for each slot of the clock.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import flexmeasures_cem.optimisation.linear as linear

STARTS_SECONDS = (300.0, 600.0, 900.0, 1800.0, 3600.0)
"""How far apart starts, and pauses, may be: by the clock, the finest with which there are not too many."""
MAX_STARTS = 1_000
"""How many starts all stages may have on the clock."""
MAX_MOMENTS = 500
"""How many moments a stage may start at."""
MAX_LATEST = 30
"""How many of these are so that all stages after it just end in time."""
MAX_CHUNKS = 2_000
"""How many chunks, times the slots each may be in, all stages may have."""
MIN_PAUSE_SECONDS = 300.0
"""How long a pause is at least."""
PAUSE_SAVING = 0.01
"""Which part of the cost without it a pause has to save at least."""
MIN_FEE = 1e-5
"""What a pause has to save at least (currency)."""
LATE_SECONDS = 1.0
"""How late is late."""
LATE_HOURS = 0.1
"""To be late at all counts as so many hours more."""
EARLIER_PER_HOUR = 1e-4
"""What an hour later costs more (currency): of two starts as good, the earlier is taken."""
TINY_COST = 1e-9
"""Costs that are less (currency) are none."""
TOLERANCE = 1e-3
"""Moments that are as near as this are the same (s)."""
SHORTEST_SECONDS = 0.5
"""What overlaps a step by less leaves its greatest power as it is."""
LATE_ROOM_SECONDS = 3600.0
"""How late a task may end that is within the site's limits by itself, to make room for others."""
RUNNING, PAUSED = "RUNNING", "PAUSED"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Sequence:
    """Elements one after the other: arrays of `seconds`, `powers` (kW), and other `rates` (currency/h).

    `longest_wait` is how long after the stage before it may start at most (s).
    """

    seconds: Any
    powers: Any
    rates: Any
    longest_wait: float = math.inf
    is_interruptible: bool = False

    @property
    @pyscript_compile
    def length(self) -> float:
        """How long it takes (s)."""
        return float(self.seconds.sum())

    @property
    @pyscript_compile
    def knots(self) -> Any:
        """When each element begins, and the last ends (s after the start)."""
        return np.concatenate([[0.0], np.cumsum(self.seconds)])

    @property
    @pyscript_compile
    def energies(self) -> Any:
        """What has been consumed at each of the knots (kWh)."""
        return np.concatenate([[0.0], np.cumsum(self.powers * self.seconds)]) / 3600

    @property
    @pyscript_compile
    def other_cost(self) -> float:
        """What it costs besides electricity (currency)."""
        return float((self.rates * self.seconds).sum()) / 3600

    @pyscript_compile
    def greatest(self, since: Any, until: Any, sign: float) -> Any:
        """Return the greatest power (kW) in a direction between two states of progress (s), or nothing."""
        last = np.searchsorted(self.knots, until - SHORTEST_SECONDS, "left")
        first = np.searchsorted(self.knots, since + SHORTEST_SECONDS, "right") - 1
        levels = [np.maximum(self.powers * sign, 0.0)]
        while len(levels[-1]) > 2 ** (len(levels) - 1):
            half = 2 ** (len(levels) - 1)
            levels.append(np.maximum(levels[-1][:-half], levels[-1][half:]))
        found = np.zeros(since.shape)
        for number, level in enumerate(levels):
            inside = (last - first >= 2**number) & (last - first < 2 ** (number + 1))
            ends = first[inside], last[inside] - 2**number
            found[inside] = np.maximum(level[ends[0]], level[ends[1]])
        return found * sign

    @pyscript_compile
    def part(self, done: float, until: float) -> Any:
        """Return the Sequence of what is between two states of progress (s)."""
        knots = np.clip(self.knots, done, until)
        seconds = np.diff(knots)
        kept = seconds > 0.0
        return Sequence(seconds=seconds[kept], powers=self.powers[kept], rates=self.rates[kept])


Sequence = _Sequence


@dataclass(frozen=True, eq=False, kw_only=True)
class _Spread:
    """A sequence in the `steps` that it touches: a row for each moment that it may begin at.

    `greatest` and `least` are its powers (kW) there or nothing, whichever is beyond the other, and `extra` is
    what it costs more than the `means` do (currency).
    """

    steps: Any
    means: Any
    greatest: Any
    least: Any
    extra: Any


Spread = _Spread


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be done by a `deadline`: for each of the `stages`, in order, one of its Sequences.

    It may start from `earliest` on, which moves with the clock where it is later than `released`. It is under
    way where `held` is RUNNING (from `earliest` on) or PAUSED. Else the first stage has to start within its
    longest wait after `previous` (None: there was nothing before). `fee` is what a pause has to save
    (currency; None: some part of the cost). `kept` has moments that stages (by number) may start at too, as
    the plan in force has them.
    """

    stages: tuple
    earliest: float
    deadline: float
    released: float = -math.inf
    previous: float | None = None
    held: str | None = None
    fee: float | None = None
    kept: Any = None


Task = _Task


@dataclass(eq=False, repr=False)
class _GivenLoad:
    """What power costs beside the given load alone: exactly, where the site's balance takes a step's mean."""

    site: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        site = self.site
        tariffs, shape = site.tariffs, (site.grid.count,)
        self.grid, self.penalty = site.grid, site.priorities.site_limit
        self.consumption_price, self.production_price = site.consumption_price, site.production_price
        self.load, self.curtailable, headroom, consumption, production = (
            np.broadcast_to(np.asarray(value, float), shape)
            for value in (
                tariffs.load,
                tariffs.curtailable,
                tariffs.headroom,
                tariffs.consumption_capacity,
                tariffs.production_capacity,
            )
        )
        self.most = np.maximum(consumption - headroom, self.load)
        self.least = -np.maximum(production - headroom, -self.load)
        self.is_limited = bool(np.isfinite(self.most).any() or np.isfinite(self.least).any())

    @pyscript_compile
    def hourly(self, power, steps, with_limits=True):
        """Return what powers (kW) in steps cost more in an hour (currency), with what limits count."""
        net = self.load[steps] + power
        cost = self._grid_cost(net, steps) - self._grid_cost(self.load[steps], steps)
        if not (with_limits and self.is_limited):
            return cost
        excess = np.maximum(net - self.most[steps], 0.0) + np.maximum(self.least[steps] - net, 0.0)
        return cost + self.penalty * excess

    @pyscript_compile
    def _grid_cost(self, net, steps):
        """Return what the site pays in an hour (currency) for its net power (kW)."""
        consumption, production = self.consumption_price[steps], self.production_price[steps]
        curtailable = self.curtailable[steps]
        least = np.where(
            consumption < 0, net + curtailable, np.minimum(net + curtailable, np.maximum(net, 0.0))
        )
        net = np.where((production < 0) & (curtailable > 0), least, net)
        return np.where(net > 0, consumption, production) * net

    @pyscript_compile
    def costs(self, sequence, begins, with_limits=True):
        """Return what a sequence costs (currency) from each of some moments on, with what limits count.

        The first and last step's tariffs hold before and after the grid too.
        """
        edges, count = self.grid.edges, self.grid.count
        if not len(sequence.powers):
            return np.zeros(len(begins))
        powers, places = np.unique(sequence.powers, return_inverse=True)
        rates = self.hourly(powers[:, None], np.arange(count)[None, :], with_limits)
        paid = np.concatenate(
            [np.zeros((len(powers), 1)), np.cumsum(rates * self.grid.hours, axis=1)], axis=1
        )
        moments = begins[:, None] + sequence.knots[None, :]
        steps = np.clip(np.searchsorted(edges, moments, "right") - 1, 0, count - 1)
        hours = (moments - edges[steps]) / 3600
        ends, starts = slice(1, None), slice(None, -1)
        until = [
            paid[places, steps[:, side]] + rates[places, steps[:, side]] * hours[:, side]
            for side in (ends, starts)
        ]
        return (until[0] - until[1]).sum(axis=1) + sequence.other_cost

    @pyscript_compile
    def spread(self, sequence, begins):
        """Return the Spread of a sequence over the steps that it touches, by when it begins."""
        edges, count = self.grid.edges, self.grid.count
        first = np.searchsorted(edges, begins, "right") - 1
        last = np.searchsorted(edges, begins + sequence.length, "left")
        width = max(int((last - first).max(initial=0)), 1)
        places = np.clip(first[:, None] + np.arange(width + 1)[None, :], 0, count)
        progress = np.clip(edges[places] - begins[:, None], 0.0, sequence.length)
        hours = np.diff(edges[places]) / 3600
        energies = np.diff(np.interp(progress, sequence.knots, sequence.energies))
        means = np.divide(energies, hours, out=np.zeros_like(hours), where=hours > 0)
        steps = np.minimum(places[:, :-1], count - 1)
        by_mean = (self.hourly(means, steps) * self.grid.hours[steps]).sum(axis=1)
        return Spread(
            steps=steps,
            means=means,
            greatest=sequence.greatest(progress[:, :-1], progress[:, 1:], 1.0) if self.is_limited else means,
            least=sequence.greatest(progress[:, :-1], progress[:, 1:], -1.0) if self.is_limited else means,
            extra=self.costs(sequence, begins) - by_mean,
        )


GivenLoad = _GivenLoad


@dataclass(eq=False, repr=False)
class _Steady:
    """A sequence without pauses: `began`, and `ended`, are variables for each of some moments."""

    number: Any
    sequence: Any
    begins: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        sequence, begins = self.sequence, self.begins
        self.begins, self.ends = begins, begins + sequence.length

    @pyscript_compile
    def enter(self, site, given, _fee):
        """Add the variables to a site's program; return its powers_of."""
        self.began = self.ended = site.program.variables(len(self.begins), 0.0, 1.0, whole=True)
        return powers_of(site, given, [(self.sequence, self.began, self.begins)])

    @pyscript_compile
    def spans(self, solution):
        """Return when it is at work (start, end), nothing where another is chosen."""
        [chosen] = np.nonzero(solution.of(self.began) > 0.5)
        return [(float(self.begins[place]), float(self.ends[place])) for place in chosen[:1]]


Steady = _Steady


@dataclass(eq=False, repr=False)
class _Pausing:
    """A sequence in chunks, each of which fills a slot of the clock but for the first and the last one.

    A chunk's places are the slots that it may be in, counted from the earliest: the chunk after it is in the
    same place, or after a pause in a later one. The chunks' variables are a flow from the first chunk to the
    last, so that they are whole by themselves mostly. It begins for a `surcharge` of so many fees.
    """

    number: Any
    sequence: Any
    slot: Any
    first_seconds: Any
    first_end: Any
    last_end: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        sequence, slot, first_seconds = self.sequence, self.slot, self.first_seconds
        first_end, last_end = self.first_end, self.last_end
        ends = np.arange(first_seconds, sequence.length - TOLERANCE, slot)
        self.progress = np.concatenate([[0.0], ends, [sequence.length]])
        self.chunks = len(self.progress) - 1
        earliest = first_end + (self.chunks - 2) * slot + self.progress[-1] - self.progress[-2]
        self.places = max(int((last_end - earliest + TOLERANCE) // slot) + 1, 0) if self.chunks > 1 else 0
        edges = first_end + np.arange(self.places) * slot
        self.starts = np.array(
            [edges - first_seconds, *[edges + number * slot for number in range(self.chunks - 1)]]
        )
        self.begins = self.starts[0]
        self.ends = self.starts[-1] + self.progress[-1] - self.progress[-2]
        self.allowed = np.full(self.places, True)
        self.surcharge = 0.0

    @property
    @pyscript_compile
    def size(self):
        """How many variables the chunks have."""
        return self.chunks * self.places

    @pyscript_compile
    def enter(self, site, given, fee):
        """Add the variables to a site's program, and pay a fee for each pause; return its powers_of."""
        program, shape = site.program, (self.chunks, self.places)
        upper = np.ones(shape)
        upper[0] = self.allowed
        self.at_work = program.variables(self.size, 0.0, upper.ravel(), whole=True)
        between = (self.chunks - 1) * self.places
        waits_on = np.ones((self.chunks - 1, self.places))
        waits_on[:, -1] = 0.0
        waiting, paused = (program.variables(between, 0.0, each) for each in (waits_on.ravel(), 1.0))
        earlier, later = self.at_work[: -self.places], self.at_work[self.places :]
        carried = np.arange(between) % self.places > 0
        before = linear.Expression(
            waiting.rows[carried], waiting.columns[carried] - 1, waiting.factors[carried], waiting.constant
        )
        program.equate(later + waiting, earlier + before)
        program.require(paused - earlier + later, 0.0)
        program.pay(paused * fee)
        self.began, self.ended = self.at_work[: self.places], self.at_work[-self.places :]
        program.pay(self.began * (self.surcharge * fee))
        parts = [
            (self.sequence.part(*self.progress[number : number + 2]), self.at_work[row], self.starts[number])
            for number in range(self.chunks)
            for row in [slice(number * self.places, (number + 1) * self.places)]
        ]
        return powers_of(site, given, parts)

    @pyscript_compile
    def spans(self, solution):
        """Return when it is at work (start, end), nothing where another is chosen."""
        values = solution.of(self.at_work).reshape(self.chunks, self.places)
        if values[0].max() < 0.5:
            return []
        found = []
        for number, place in enumerate(np.argmax(values, axis=1)):
            start = float(self.starts[number, place])
            end = start + float(self.progress[number + 1] - self.progress[number])
            if found and start - found[-1][1] < TOLERANCE:
                start = found.pop()[0]
            found.append((start, end))
        return found


Pausing = _Pausing


@pyscript_compile
def powers_of(site, given, parts):
    """Return the mean, greatest and least power (kW) of parts (Sequence, variables, moments they begin at).

    What these cost more than the means do is paid.
    """
    found = []
    for sequence, variables, begins in parts:
        spread = given.spread(sequence, begins)
        site.program.pay(variables * np.where(np.abs(spread.extra) > TINY_COST, spread.extra, 0.0))
        columns = np.broadcast_to(variables.columns[:, None], spread.steps.shape)
        found.append(
            [each.ravel() for each in (spread.steps, columns, spread.means, spread.greatest, spread.least)]
        )
    rows, columns, *values = (np.concatenate(each) for each in zip(*found, strict=True))
    none = np.zeros(site.grid.count)
    return [
        linear.Expression(rows[kept], columns[kept], each[kept], none)
        for each in values
        for kept in [each != 0]
    ]


@pyscript_compile
def distinct(*moments):
    """Return moments in order, each once."""
    ordered = np.sort(np.concatenate(moments))
    return ordered[np.concatenate([[True], np.diff(ordered) > TOLERANCE])] if len(ordered) else ordered


@pyscript_compile
def clock(first, last, seconds):
    """Return each moment of the clock from one to another, so many seconds apart."""
    numbers = np.arange(
        math.ceil((first - TOLERANCE) / seconds), math.floor((last + TOLERANCE) / seconds) + 1
    )
    return numbers * seconds


@pyscript_compile
def picked(variables, places):
    """Return some of the variables, nothing where the place is negative."""
    [rows] = np.nonzero(places >= 0)
    return linear.Expression(rows, variables.columns[places[rows]], np.ones(len(rows)), np.zeros(len(places)))


@pyscript_compile
def last_until(moments, until):
    """Return the place of the last of the moments until each of others, -1 where there is none."""
    return np.searchsorted(moments, until + TOLERANCE, "right") - 1


@dataclass(eq=False, repr=False)
class _Chain:
    """A Task in a Site's program, which it adds its `power` (kW) to. Of equal ones, `rank` 0 is first.

    Stages follow each other by what has begun and ended until each moment (cumulatively), which leaves the
    program's relaxation nearly whole.
    """

    site: Any
    task: Any
    rank: Any = 0

    @pyscript_compile
    def __post_init__(self) -> None:
        site, task, rank = self.site, self.task, self.rank
        self.site, self.task, self.given = site, task, GivenLoad(site)
        shortest = [min(each.length for each in stage) for stage in task.stages]
        self.ahead = np.cumsum([0.0, *shortest])[:-1]
        self.behind = sum(shortest) - self.ahead - shortest
        end = task.earliest + sum(shortest)
        self.last_end = task.deadline
        if end > task.deadline + TOLERANCE:
            self.last_end = task.earliest + sum(max(each.length for each in stage) for stage in task.stages)
        if self.given.is_limited:
            room = max(task.deadline, end) + LATE_ROOM_SECONDS
            self.last_end = max(float(site.grid.edges[-1]) if self._may_exceed() else room, self.last_end)
        self.step = self._step()
        self.moments, self.runs = [], []
        self._place()
        self.fee = self._fee()
        self._enter(1.0 + 0.5 / (1.0 + rank))

    @pyscript_compile
    def _may_exceed(self):
        """Tell whether the task and the given load alone can be beyond the site's limits until it ends."""
        powers = np.concatenate([each.powers for stage in self.task.stages for each in stage] + [np.zeros(1)])
        given, steps = self.given, slice(0, self.site.grid.step_at(self.last_end) + 1)
        is_above = given.load[steps] + powers.max() > given.most[steps]
        is_below = given.load[steps] + powers.min() < given.least[steps]
        return bool(is_above.any() or is_below.any())

    @pyscript_compile
    def _step(self):
        """Return how far apart starts are on the clock (s)."""
        waits = self.last_end - self.task.earliest - self.ahead - self.behind
        for seconds in STARTS_SECONDS:
            counts = [
                len(stage) * max(wait, 0.0) / seconds
                for stage, wait in zip(self.task.stages, waits, strict=True)
            ]
            if sum(counts) <= MAX_STARTS:
                return seconds
        return STARTS_SECONDS[-1]

    @pyscript_compile
    def _place(self):
        """Find the moments that each stage may start at, and its runs."""
        task = self.task
        pausing = sum(each.is_interruptible for stage in task.stages for each in stage)
        moments = np.array([task.earliest])
        if task.previous is not None:
            waits = [each.longest_wait for each in task.stages[0] if each.longest_wait < math.inf]
            moments = np.array([task.earliest, *[task.previous + wait for wait in waits]])
        latest = self._latest()
        for place, stage in enumerate(task.stages):
            first = task.earliest + self.ahead[place]
            last = self.last_end - self.behind[place]
            if not (place == 0 and task.held == RUNNING):
                by_clock = clock(first, last, self.step)
                kept = [(task.kept or {}).get(place, task.earliest)]
                moments = distinct(moments, by_clock, latest[place], kept)
            moments = thinned(
                moments[(moments > first - TOLERANCE) & (moments < last + TOLERANCE)], MAX_MOMENTS
            )
            runs = []
            for number, sequence in enumerate(stage):
                until = last - sequence.length
                if place == 0 and task.previous is not None:
                    until = min(until, max(task.previous + sequence.longest_wait, task.earliest))
                begins = moments[moments < until + TOLERANCE]
                if len(begins):
                    runs.append(Steady(number, sequence, begins))
                if sequence.is_interruptible:
                    runs += self._pausing(place, number, sequence, until, MAX_CHUNKS / pausing)
            self.moments.append(distinct(*[run.begins for run in runs]))
            self.runs.append(runs)
            if place + 1 < len(task.stages):
                ends = distinct(*[run.ends for run in runs])
                waits = {each.longest_wait for each in task.stages[place + 1]} - {math.inf, 0.0}
                moments = distinct(ends, *[ends + wait for wait in waits if len(ends) <= MAX_MOMENTS // 5])

    @pyscript_compile
    def _latest(self):
        """Return when each stage may start so that all that follow end at the deadline, without waits."""
        found, ends = [], np.array([self.task.deadline])
        for stage in reversed(self.task.stages):
            lengths = np.array([each.length for each in stage])
            ends = thinned(distinct((ends[:, None] - lengths[None, :]).ravel()), MAX_LATEST)
            found.insert(0, ends)
        return found

    @pyscript_compile
    def _pausing(self, place, number, sequence, until, most):
        """Return the Pausings of a sequence that starts until a moment, by how long the first chunk is."""
        task, grid = self.task, self.site.grid
        first, last_end = task.earliest + self.ahead[place], self.last_end - self.behind[place]
        is_running = place == 0 and task.held == RUNNING
        steps = grid.seconds[grid.step_at(first) : grid.step_at(last_end) + 1]
        finest = min(float(np.median(steps)), STARTS_SECONDS[-1]) - TOLERANCE
        for slot in [each for each in STARTS_SECONDS if each >= finest]:
            until_edge = slot - first % slot
            lengths = list(np.arange(slot, TOLERANCE, -max(slot / 3, MIN_PAUSE_SECONDS)))
            is_between = place == 0 and bool(first % STARTS_SECONDS[0] > TOLERANCE)
            for some in [[until_edge]] if is_running else [lengths, lengths[:1]]:
                found = []
                for seconds in some + [until_edge] * (is_between and not is_running):
                    first_end = math.ceil((first + seconds - TOLERANCE) / slot) * slot
                    run = Pausing(number, sequence, slot, float(seconds), first_end, last_end)
                    is_now = seconds == until_edge and (is_running or is_between)
                    run.allowed = run.begins < (first if is_now else until) + TOLERANCE
                    run.surcharge = float(is_now and not is_running)
                    if run.places > 1 and run.allowed.any():
                        found.append(run)
                if sum(run.size for run in found) <= most:
                    return found
        return []

    @pyscript_compile
    def _late_costs(self, ends):
        """Return what it costs (currency) that the last stage ends at each of some moments."""
        energies = [
            max(float((np.abs(each.powers) * each.seconds).sum()) / 3600 for each in stage)
            for stage in self.task.stages
        ]
        late = np.maximum(ends - self.task.deadline, 0.0)
        hours = np.where(late > LATE_SECONDS, late / 3600 + LATE_HOURS, 0.0)
        return hours * self.site.priorities.target * max(sum(energies), 1.0)

    @pyscript_compile
    def _fee(self):
        """Return what a pause has to save (currency)."""
        if self.task.fee is not None:
            return max(self.task.fee, MIN_FEE)
        if not any(isinstance(run, Pausing) for runs in self.runs for run in runs):
            return MIN_FEE
        total = 0.0
        for place, runs in enumerate(self.runs):
            least = None
            for run in runs:
                if isinstance(run, Steady):
                    costs = self.given.costs(run.sequence, run.begins)
                    if place + 1 == len(self.runs):
                        costs = costs + self._late_costs(run.ends)
                    cheapest = int(np.argmin(costs))
                    if least is None or costs[cheapest] < least[0]:
                        least = costs[cheapest], run.sequence, run.begins[cheapest : cheapest + 1]
            if least:
                total += float(self.given.costs(*least[1:], with_limits=False)[0])
        return max(PAUSE_SAVING * abs(total), MIN_FEE)

    @pyscript_compile
    def _enter(self, weight):
        """Add the variables and constraints to the program."""
        program, grid = self.site.program, self.site.grid
        powers, ended, ends = [], None, None
        for place, runs in enumerate(self.runs):
            entered = [run.enter(self.site, self.given, self.fee) for run in runs]
            powers.append([linear.total(each, grid.count) for each in zip(*entered, strict=True)])
            for run in runs:
                per_hour = EARLIER_PER_HOUR * weight / 3600
                program.pay(run.began * ((run.begins - grid.edges[0]) * per_hour))
                if isinstance(run, Pausing):
                    hours = (run.starts.ravel() - grid.edges[0]) * per_hour / run.chunks
                    program.pay(run.at_work * hours)
                if place + 1 == len(self.runs):
                    program.pay(run.ended * self._late_costs(run.ends))
                if place == 0 and self.task.held != RUNNING and isinstance(run, Steady):
                    self._stay(run)
            program.equate(linear.total([run.began.sum() for run in runs], 1), 1.0)
            if ended is not None:
                self._keep_order(place, ended, ends)
            if place + 1 < len(self.runs):
                ends = distinct(*[run.ends for run in runs])
                ended = self._until(ends, [(run.ended, run.ends) for run in runs])
        means, greatest, least = zip(*powers, strict=True)
        self.power = linear.total(means, grid.count)
        if self.given.is_limited:
            self.site.add(self.power, self._beyond(greatest, 1.0), self._beyond(least, -1.0))
        else:
            self.site.add(self.power)

    @pyscript_compile
    def _beyond(self, powers, sign):
        """Return how far the power may be beyond its mean in a direction (kW), by each stage's extreme ones.

        Stages do not run at the same time, so that the greatest of theirs counts.
        """
        if not any(len(each.columns) for each in powers):
            return None
        if len(powers) == 1:
            return (powers[0] - self.power) * sign
        extreme = self.site.program.variables(self.site.grid.count)
        for each in powers:
            self.site.program.require(extreme - each * sign, 0.0)
        return extreme - self.power * sign

    @pyscript_compile
    def _stay(self, run):
        """Let a start now be no better than one at the clock's moment before it was.

        Else what is planned for a moment of the clock would start in between, once that is now.
        """
        now = self.task.earliest
        before = max(math.floor(now / self.step) * self.step, self.task.released)
        if run.begins[0] < now + TOLERANCE and before < now - TOLERANCE:
            costs = self.given.costs(run.sequence, np.array([before, now]), with_limits=False)
            self.site.program.pay(run.began[:1] * max(float(costs[0] - costs[1]), 0.0))

    @pyscript_compile
    def _until(self, moments, pairs):
        """Return variables for how many of (variables, their moments) are chosen until each moment."""
        program, count = self.site.program, len(moments)
        reached = program.variables(count, 0.0, 1.0)
        added = []
        for variables, at in pairs:
            places = last_until(moments, at)
            added.append(linear.Expression(places, variables.columns, np.ones(len(places)), np.zeros(count)))
        before = picked(reached, np.arange(count) - 1)
        program.equate(reached, before + linear.total(added, count))
        return reached

    @pyscript_compile
    def _keep_order(self, place, ended, ends):
        """Have a stage start when the one before has ended, and within its longest wait, by its sequence."""
        program, runs = self.site.program, self.runs[place]
        moments = self.moments[place]
        begun = self._until(moments, [(run.began, run.begins) for run in runs])
        program.require(picked(ended, last_until(ends, moments)) - begun, 0.0)
        waits = sorted({run.sequence.longest_wait for run in runs})
        if waits[0] == math.inf:
            return
        started = []
        for wait in waits:
            pairs = [(run.began, run.begins) for run in runs if run.sequence.longest_wait == wait]
            own = moments if len(waits) == 1 else distinct(*[begins for _began, begins in pairs])
            reached = begun if len(waits) == 1 else self._until(own, pairs)
            started.append(picked(reached, last_until(own, ends + wait)))
        program.require(linear.total(started, len(ends)) - ended, 0.0)

    @pyscript_compile
    def course(self, solution):
        """Return (number of the sequence, its spans (start, end)) of each stage."""
        found = []
        for runs in self.runs:
            chosen = [(run.number, spans) for run in runs if (spans := run.spans(solution))]
            found.append(chosen[0])
        return found


Chain = _Chain


@pyscript_compile
def thinned(moments, count):
    """Return moments, the first of which is kept, without some where there are more than a count."""
    if len(moments) <= count:
        return moments
    return moments[np.linspace(0, len(moments) - 1, count).astype(int)]
