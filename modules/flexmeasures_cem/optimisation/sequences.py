"""Tasks of several stages, one after the other, each by one of some sequences of powers.

A sequence starts at one of some moments: each has a variable, and its power is spread exactly over the steps
that it touches. What that costs more than the mean power of a step does (own production or a limit that is
exceeded for a part of the step only) is added, as it is beside the given load alone. A sequence that may be
paused is cut into chunks, one for each slot of the clock.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.site as sites
from flexmeasures_cem.optimisation.arrays import Floats, Integers, Mask, Numbers

# How large the program gets
STARTS_SECONDS = (300.0, 600.0, 900.0, 1800.0, 3600.0)
"""How far apart starts, and pauses, may be: by the clock, the finest with which there are not too many."""
MAX_STARTS = 1_000
"""How many starts all stages may have on the clock."""
MAX_MOMENTS = 500
"""How many moments a stage may start at."""
MAX_LATEST_MOMENTS = 30
"""How many of these are so that all stages after it just end in time."""
MAX_CHUNK_PLACES = 2_000
"""How many chunks, times the slots each may be in, all stages may have."""

# Pauses
MIN_PAUSE_SECONDS = 300.0
"""How long a pause is at least."""
MIN_PAUSE_SAVING_SHARE = 0.01
"""Which part of the cost without it a pause has to save at least."""
MIN_FEE = 1e-5
"""What a pause has to save at least (currency)."""

# Being late
LATE_SECONDS = 1.0
"""How late is late."""
LATENESS_HOURS = 0.1
"""To be late at all counts as so many hours more."""
MAX_YIELD_SECONDS = 3600.0
"""How late a task may end that is within the site's limits by itself, to make room for others."""
DELAY_COST_PER_HOUR = 1e-4
"""What an hour later costs more (currency): of two starts as good, the earlier is taken."""

# What counts as equal
MIN_COST = 1e-9
"""Costs that are less (currency) are none."""
TOLERANCE_SECONDS = 1e-3
"""Moments that are as near as this are the same."""
MIN_OVERLAP_SECONDS = 0.5
"""What overlaps a step by less leaves its greatest power as it is."""

RUNNING, PAUSED = "RUNNING", "PAUSED"
Span = tuple[float, float]
"""From when until when something is at work (s since 1970)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Sequence:
    """Elements one after the other: arrays of `seconds`, `powers` (kW), and other `rates` (currency/h).

    `longest_wait` is how long after the stage before it may start at most (s).
    """

    seconds: Floats
    powers: Floats
    rates: Floats
    longest_wait: float = math.inf
    is_interruptible: bool = False

    @property
    @pyscript_compile
    def length(self) -> float:
        """The length of all elements (s)."""
        return float(self.seconds.sum())

    @property
    @pyscript_compile
    def knots(self) -> Floats:
        """The begin of each element, and the end of the last (s after the start)."""
        return np.concatenate([[0.0], np.cumsum(self.seconds)])

    @property
    @pyscript_compile
    def energies(self) -> Floats:
        """The energy that is consumed until each of the knots (kWh)."""
        return np.concatenate([[0.0], np.cumsum(self.powers * self.seconds)]) / 3600

    @property
    @pyscript_compile
    def other_cost(self) -> float:
        """The cost of all but electricity (currency)."""
        return float((self.rates * self.seconds).sum()) / 3600

    @pyscript_compile
    def greatest(self, since: Floats, until: Floats, sign: float) -> Floats:
        """Return the greatest power (kW) in a direction between two states of progress (s), or nothing."""
        last = np.searchsorted(self.knots, until - MIN_OVERLAP_SECONDS, "left")
        first = np.searchsorted(self.knots, since + MIN_OVERLAP_SECONDS, "right") - 1
        levels: list[Floats] = [np.maximum(self.powers * sign, 0.0)]
        while len(levels[-1]) > 2 ** (len(levels) - 1):
            half = 2 ** (len(levels) - 1)
            levels.append(np.maximum(levels[-1][:-half], levels[-1][half:]))
        greatest = np.zeros(since.shape)
        for number, level in enumerate(levels):
            inside = (last - first >= 2**number) & (last - first < 2 ** (number + 1))
            greatest[inside] = np.maximum(level[first[inside]], level[last[inside] - 2**number])
        return greatest * sign

    @pyscript_compile
    def part(self, done: float, until: float) -> "Sequence":
        """Return the Sequence of what is between two states of progress (s)."""
        seconds = np.diff(np.clip(self.knots, done, until))
        kept = seconds > 0.0
        return Sequence(seconds=seconds[kept], powers=self.powers[kept], rates=self.rates[kept])


Sequence = _Sequence


@dataclass(frozen=True, eq=False, kw_only=True)
class _Spread:
    """A sequence in the `steps` that it touches: a row for each moment that it may begin at.

    `greatest` and `least` are its powers (kW) there or nothing, whichever is beyond the other, and `extra` is
    what it costs more than the `means` do (currency).
    """

    steps: Integers
    means: Floats
    greatest: Floats
    least: Floats
    extra: Floats


Spread = _Spread


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be done by a `deadline`: for each of the `stages`, in order, one of its Sequences.

    It may start from `earliest` on, which moves with the clock where it is later than `released`. It is under
    way where `held` is RUNNING (from `earliest` on) or PAUSED. Else the first stage has to start within its
    longest wait after `previous` (None: there was nothing before). `fee` is what a pause has to save
    (currency; None: some part of the cost). `kept` has moments that stages (by number) may start at too, as
    the plan in force has them. Moments are seconds since 1970.
    """

    stages: tuple[tuple[Sequence, ...], ...]
    earliest: float
    deadline: float
    released: float = -math.inf
    previous: float | None = None
    held: str | None = None
    fee: float | None = None
    kept: Mapping[int, float] = field(default_factory=dict)


Task = _Task


@dataclass(eq=False, repr=False)
class _GivenLoad:
    """What power costs beside the given load alone: exactly, where the site's balance takes a step's mean."""

    site: sites.Site

    @pyscript_compile
    def __post_init__(self) -> None:
        site, tariffs = self.site, self.site.tariffs
        self.grid, self.penalty = site.grid, site.priorities.site_limit
        self.consumption_price, self.production_price = site.consumption_price, site.production_price
        self.load, self.curtailable = site.by_step(tariffs.load), site.by_step(tariffs.curtailable)
        headroom = site.by_step(tariffs.headroom)
        consumption = site.by_step(tariffs.consumption_capacity)
        production = site.by_step(tariffs.production_capacity)
        self.most: Floats = np.maximum(consumption - headroom, self.load)
        self.least: Floats = -np.maximum(production - headroom, -self.load)
        self.is_limited = bool(np.isfinite(self.most).any() or np.isfinite(self.least).any())

    @pyscript_compile
    def hourly(self, power: Floats, steps: Integers, with_limits: bool = True) -> Floats:
        """Return what powers (kW) in steps cost more in an hour (currency), with what limits count."""
        net = self.load[steps] + power
        cost = self._grid_cost(net, steps) - self._grid_cost(self.load[steps], steps)
        if not (with_limits and self.is_limited):
            return cost
        excess: Floats = np.maximum(net - self.most[steps], 0.0) + np.maximum(self.least[steps] - net, 0.0)
        return cost + self.penalty * excess

    @pyscript_compile
    def _grid_cost(self, net: Floats, steps: Integers) -> Floats:
        """Return what the site pays in an hour (currency) for its net power (kW)."""
        consumption, production = self.consumption_price[steps], self.production_price[steps]
        curtailable = self.curtailable[steps]
        least = np.where(
            consumption < 0, net + curtailable, np.minimum(net + curtailable, np.maximum(net, 0.0))
        )
        left = np.where((production < 0) & (curtailable > 0), least, net)
        price: Floats = np.where(left > 0, consumption, production)
        return np.asarray(price * left)

    @pyscript_compile
    def costs(self, sequence: Sequence, begins: Floats, with_limits: bool = True) -> Floats:
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
        until_end, until_start = (
            paid[places, steps[:, side]] + rates[places, steps[:, side]] * hours[:, side]
            for side in (slice(1, None), slice(None, -1))
        )
        return np.asarray((until_end - until_start).sum(axis=1) + sequence.other_cost)

    @pyscript_compile
    def spread(self, sequence: Sequence, begins: Floats) -> Spread:
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
Powers = tuple[linear.Expression, linear.Expression, linear.Expression]
"""The mean, greatest and least power (kW) of each step."""


@pyscript_compile
def powers_of(
    site: sites.Site, given: GivenLoad, parts: list[tuple[Sequence, linear.Expression, Floats]]
) -> Powers:
    """Return the Powers of parts (Sequence, variables, moments they begin at).

    What these cost more than the means do is paid.
    """
    entries = []
    for sequence, variables, begins in parts:
        spread = given.spread(sequence, begins)
        site.program.pay(variables * np.where(np.abs(spread.extra) > MIN_COST, spread.extra, 0.0))
        columns = np.broadcast_to(variables.columns[:, None], spread.steps.shape)
        arrays = spread.steps, columns, spread.means, spread.greatest, spread.least
        entries.append([array.ravel() for array in arrays])
    rows, columns, *powers = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
    none = np.zeros(site.grid.count)
    means, greatest, least = (
        linear.Expression(rows[kept], columns[kept], power[kept], none)
        for power in powers
        for kept in [power != 0]
    )
    return means, greatest, least


@dataclass(eq=False, repr=False)
class _Steady:
    """A sequence without pauses: `began`, and `ended`, are variables for each of the moments it may begin at.

    `number` is its place among those of its stage.
    """

    number: int
    sequence: Sequence
    begins: Floats

    @pyscript_compile
    def __post_init__(self) -> None:
        self.ends = self.begins + self.sequence.length

    @pyscript_compile
    def enter(self, site: sites.Site, given: GivenLoad, _fee: float) -> Powers:
        """Add the variables to a site's program; return its Powers."""
        self.began = self.ended = site.program.variables(len(self.begins), 0.0, 1.0, whole=True)
        return powers_of(site, given, [(self.sequence, self.began, self.begins)])

    @pyscript_compile
    def spans(self, solution: linear.Solution) -> list[Span]:
        """Return when the sequence is at work, nothing where another one is chosen."""
        [chosen] = np.nonzero(solution.of(self.began) > 0.5)
        return [(float(self.begins[place]), float(self.ends[place])) for place in chosen[:1]]


Steady = _Steady


@dataclass(eq=False, repr=False)
class _Pausing:
    """A sequence in chunks, each of which fills a slot of the clock but for the first and the last one.

    A chunk's places are the slots (of `slot_seconds`) that it may be in, counted from the earliest: the chunk
    after it is in the same place, or after a pause in a later one. The chunks' variables are a flow from the
    first chunk (of `first_seconds`, that ends at `first_end` at the earliest) to the last, so that they are
    whole by themselves mostly. It begins for a `surcharge` of so many fees.
    """

    number: int
    sequence: Sequence
    slot_seconds: float
    first_seconds: float
    first_end: float
    last_end: float

    @pyscript_compile
    def __post_init__(self) -> None:
        sequence, slot, first_seconds = self.sequence, self.slot_seconds, self.first_seconds
        first_end, last_end = self.first_end, self.last_end
        ends = np.arange(first_seconds, sequence.length - TOLERANCE_SECONDS, slot)
        self.progress: Floats = np.concatenate([[0.0], ends, [sequence.length]])
        self.chunks = len(self.progress) - 1
        earliest = first_end + (self.chunks - 2) * slot + self.progress[-1] - self.progress[-2]
        slots = int((last_end - earliest + TOLERANCE_SECONDS) // slot) + 1
        self.places = max(slots, 0) if self.chunks > 1 else 0
        edges = first_end + np.arange(self.places) * slot
        self.starts: Floats = np.array(
            [edges - first_seconds, *[edges + number * slot for number in range(self.chunks - 1)]]
        )
        self.begins: Floats = self.starts[0]
        self.ends: Floats = self.starts[-1] + self.progress[-1] - self.progress[-2]
        self.allowed: Mask = np.full(self.places, True)
        self.surcharge = 0.0

    @property
    @pyscript_compile
    def size(self) -> int:
        """The number of variables of all chunks."""
        return self.chunks * self.places

    @pyscript_compile
    def enter(self, site: sites.Site, given: GivenLoad, fee: float) -> Powers:
        """Add the variables to a site's program, and pay a fee for each pause; return its Powers."""
        program, shape = site.program, (self.chunks, self.places)
        upper = np.ones(shape)
        upper[0] = self.allowed
        self.at_work = program.variables(self.size, 0.0, upper.ravel(), whole=True)
        between = (self.chunks - 1) * self.places
        waits_on = np.ones((self.chunks - 1, self.places))
        waits_on[:, -1] = 0.0
        waiting = program.variables(between, 0.0, waits_on.ravel())
        paused = program.variables(between, 0.0, 1.0)
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
    def spans(self, solution: linear.Solution) -> list[Span]:
        """Return when the sequence is at work, nothing where another one is chosen."""
        values = solution.of(self.at_work).reshape(self.chunks, self.places)
        if values[0].max() < 0.5:
            return []
        spans: list[Span] = []
        for number, place in enumerate(np.argmax(values, axis=1)):
            start = float(self.starts[number, place])
            end = start + float(self.progress[number + 1] - self.progress[number])
            if spans and start - spans[-1][1] < TOLERANCE_SECONDS:
                start = spans.pop()[0]
            spans.append((start, end))
        return spans


Pausing = _Pausing
Run = Steady | Pausing


@pyscript_compile
def distinct(*moments: Numbers) -> Floats:
    """Return moments in order, each once."""
    ordered: Floats = np.sort(np.concatenate(moments))
    if not len(ordered):
        return ordered
    is_first: Mask = np.concatenate([[True], np.diff(ordered) > TOLERANCE_SECONDS])
    return ordered[is_first]


@pyscript_compile
def clock(first: float, last: float, seconds: float) -> Floats:
    """Return each moment of the clock from one to another, so many seconds apart."""
    start = math.ceil((first - TOLERANCE_SECONDS) / seconds)
    end = math.floor((last + TOLERANCE_SECONDS) / seconds)
    return np.asarray(np.arange(start, end + 1) * seconds, float)


@pyscript_compile
def picked(variables: linear.Expression, places: Integers) -> linear.Expression:
    """Return some of the variables, nothing where the place is negative."""
    [rows] = np.nonzero(places >= 0)
    return linear.Expression(rows, variables.columns[places[rows]], np.ones(len(rows)), np.zeros(len(places)))


@pyscript_compile
def last_until(moments: Floats, until: Floats) -> Integers:
    """Return the place of the last of the moments until each of others, -1 where there is none."""
    return np.searchsorted(moments, until + TOLERANCE_SECONDS, "right") - 1


@dataclass(eq=False, repr=False)
class _Chain:
    """A Task in a Site's program, which it adds its `power` (kW) to. Of equal ones, `rank` 0 is first.

    Stages follow each other by what has begun and ended until each moment (cumulatively), which leaves the
    program's relaxation nearly whole.
    """

    site: sites.Site
    task: Task
    rank: int = 0

    @pyscript_compile
    def __post_init__(self) -> None:
        site, task = self.site, self.task
        self.given = GivenLoad(site)
        shortest = [min(sequence.length for sequence in stage) for stage in task.stages]
        self.ahead: Floats = np.cumsum([0.0, *shortest])[:-1]
        self.behind: Floats = sum(shortest) - self.ahead - shortest
        end = task.earliest + sum(shortest)
        self.last_end = task.deadline
        if end > task.deadline + TOLERANCE_SECONDS:
            longest = [max(sequence.length for sequence in stage) for stage in task.stages]
            self.last_end = task.earliest + sum(longest)
        if self.given.is_limited:
            room = max(task.deadline, end) + MAX_YIELD_SECONDS
            self.last_end = max(float(site.grid.edges[-1]) if self._may_exceed() else room, self.last_end)
        self.clock_seconds = self._clock_seconds()
        self.moments: list[Floats] = []
        self.runs: list[list[Run]] = []
        self._place()
        self.fee = self._fee()
        self._enter(1.0 + 0.5 / (1.0 + self.rank))

    @pyscript_compile
    def _may_exceed(self) -> bool:
        """Return whether the task and the given load alone can be beyond the limits until the task ends."""
        powers = np.concatenate(
            [sequence.powers for stage in self.task.stages for sequence in stage] + [np.zeros(1)]
        )
        given, steps = self.given, slice(0, self.site.grid.step_at(self.last_end) + 1)
        is_above = given.load[steps] + powers.max() > given.most[steps]
        is_below = given.load[steps] + powers.min() < given.least[steps]
        return bool(is_above.any() or is_below.any())

    @pyscript_compile
    def _clock_seconds(self) -> float:
        """Return how far apart starts are on the clock."""
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
    def _place(self) -> None:
        """Find the moments that each stage may start at, and its runs."""
        task = self.task
        pausing = sum(sequence.is_interruptible for stage in task.stages for sequence in stage)
        moments = np.array([task.earliest])
        if task.previous is not None:
            waits = [sequence.longest_wait for sequence in task.stages[0]]
            latest_starts = [task.previous + wait for wait in waits if wait < math.inf]
            moments = np.array([task.earliest, *latest_starts])
        latest = self._latest()
        for place, stage in enumerate(task.stages):
            first = task.earliest + self.ahead[place]
            last = self.last_end - self.behind[place]
            if not (place == 0 and task.held == RUNNING):
                by_clock = clock(first, last, self.clock_seconds)
                kept = [task.kept.get(place, task.earliest)]
                moments = distinct(moments, by_clock, latest[place], kept)
            is_inside = (moments > first - TOLERANCE_SECONDS) & (moments < last + TOLERANCE_SECONDS)
            moments = thinned(moments[is_inside], MAX_MOMENTS)
            runs: list[Run] = []
            for number, sequence in enumerate(stage):
                until = last - sequence.length
                if place == 0 and task.previous is not None:
                    until = min(until, max(task.previous + sequence.longest_wait, task.earliest))
                begins = moments[moments < until + TOLERANCE_SECONDS]
                if len(begins):
                    runs.append(Steady(number, sequence, begins))
                if sequence.is_interruptible:
                    runs += self._pausing(place, number, sequence, until, MAX_CHUNK_PLACES / pausing)
            self.moments.append(distinct(*[run.begins for run in runs]))
            self.runs.append(runs)
            if place + 1 < len(task.stages):
                ends = distinct(*[run.ends for run in runs])
                delays = {sequence.longest_wait for sequence in task.stages[place + 1]} - {math.inf, 0.0}
                moments = distinct(ends, *[ends + wait for wait in delays if len(ends) <= MAX_MOMENTS // 5])

    @pyscript_compile
    def _latest(self) -> list[Floats]:
        """Return when each stage may start so that all that follow end at the deadline, without waits."""
        latest: list[Floats] = []
        ends = np.array([self.task.deadline])
        for stage in reversed(self.task.stages):
            lengths = np.array([sequence.length for sequence in stage])
            ends = thinned(distinct((ends[:, None] - lengths[None, :]).ravel()), MAX_LATEST_MOMENTS)
            latest.insert(0, ends)
        return latest

    @pyscript_compile
    def _pausing(
        self, place: int, number: int, sequence: Sequence, until: float, max_size: float
    ) -> list[Pausing]:
        """Return the Pausings of a sequence that starts until a moment, by how long the first chunk is."""
        task, grid = self.task, self.site.grid
        first, last_end = task.earliest + self.ahead[place], self.last_end - self.behind[place]
        is_running = place == 0 and task.held == RUNNING
        steps = grid.seconds[grid.step_at(first) : grid.step_at(last_end) + 1]
        finest = min(float(np.median(steps)), STARTS_SECONDS[-1]) - TOLERANCE_SECONDS
        for slot in [seconds for seconds in STARTS_SECONDS if seconds >= finest]:
            until_edge = slot - first % slot
            lengths = list(np.arange(slot, TOLERANCE_SECONDS, -max(slot / 3, MIN_PAUSE_SECONDS)))
            is_between = place == 0 and bool(first % STARTS_SECONDS[0] > TOLERANCE_SECONDS)
            for firsts in [[until_edge]] if is_running else [lengths, lengths[:1]]:
                runs: list[Pausing] = []
                for seconds in firsts + [until_edge] * (is_between and not is_running):
                    first_end = math.ceil((first + seconds - TOLERANCE_SECONDS) / slot) * slot
                    run = Pausing(number, sequence, slot, float(seconds), first_end, last_end)
                    is_now = seconds == until_edge and (is_running or is_between)
                    run.allowed = run.begins < (first if is_now else until) + TOLERANCE_SECONDS
                    run.surcharge = float(is_now and not is_running)
                    if run.places > 1 and run.allowed.any():
                        runs.append(run)
                if sum(run.size for run in runs) <= max_size:
                    return runs
        return []

    @pyscript_compile
    def _late_costs(self, ends: Floats) -> Floats:
        """Return what it costs (currency) that the last stage ends at each of some moments."""
        energies = [
            max(float((np.abs(sequence.powers) * sequence.seconds).sum()) / 3600 for sequence in stage)
            for stage in self.task.stages
        ]
        late: Floats = np.maximum(ends - self.task.deadline, 0.0)
        hours = np.where(late > LATE_SECONDS, late / 3600 + LATENESS_HOURS, 0.0)
        return hours * self.site.priorities.target * max(sum(energies), 1.0)

    @pyscript_compile
    def _fee(self) -> float:
        """Return what a pause has to save (currency)."""
        if self.task.fee is not None:
            return max(self.task.fee, MIN_FEE)
        if not any(isinstance(run, Pausing) for runs in self.runs for run in runs):
            return MIN_FEE
        total = 0.0
        for place, runs in enumerate(self.runs):
            cheapest: tuple[float, Steady, int] | None = None
            for run in runs:
                if isinstance(run, Steady):
                    costs = self.given.costs(run.sequence, run.begins)
                    if place + 1 == len(self.runs):
                        costs = costs + self._late_costs(run.ends)
                    start = int(np.argmin(costs))
                    if cheapest is None or costs[start] < cheapest[0]:
                        cheapest = float(costs[start]), run, start
            if cheapest:
                _cost, run, start = cheapest
                begin = run.begins[start : start + 1]
                total += float(self.given.costs(run.sequence, begin, with_limits=False)[0])
        return max(MIN_PAUSE_SAVING_SHARE * abs(total), MIN_FEE)

    @pyscript_compile
    def _enter(self, weight: float) -> None:
        """Add the variables and constraints to the program."""
        program, grid = self.site.program, self.site.grid
        cost_per_second = DELAY_COST_PER_HOUR * weight / 3600
        powers: list[Powers] = []
        ended: linear.Expression | None = None
        ends: Floats = np.zeros(0)
        for place, runs in enumerate(self.runs):
            entered = [run.enter(self.site, self.given, self.fee) for run in runs]
            mean, greatest, least = (
                linear.total(of_runs, grid.count) for of_runs in zip(*entered, strict=True)
            )
            powers.append((mean, greatest, least))
            for run in runs:
                program.pay(run.began * ((run.begins - grid.edges[0]) * cost_per_second))
                if isinstance(run, Pausing):
                    delays = run.starts.ravel() - grid.edges[0]
                    program.pay(run.at_work * (delays * cost_per_second / run.chunks))
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
        self.power = linear.total([mean for mean, _greatest, _least in powers], grid.count)
        if self.given.is_limited:
            above = self._beyond([greatest for _mean, greatest, _least in powers], 1.0)
            below = self._beyond([least for _mean, _greatest, least in powers], -1.0)
            self.site.add(self.power, above, below)
        else:
            self.site.add(self.power)

    @pyscript_compile
    def _beyond(self, powers: list[linear.Expression], sign: float) -> linear.Expression | None:
        """Return how far the power may be beyond its mean in a direction (kW), by each stage's extreme ones.

        Stages do not run at the same time, so that the greatest of theirs counts.
        """
        if not any(len(power.columns) for power in powers):
            return None
        if len(powers) == 1:
            return (powers[0] - self.power) * sign
        extreme = self.site.program.variables(self.site.grid.count)
        for power in powers:
            self.site.program.require(extreme - power * sign, 0.0)
        return extreme - self.power * sign

    @pyscript_compile
    def _stay(self, run: Steady) -> None:
        """Let a start now be no better than one at the clock's moment before it was.

        Else what is planned for a moment of the clock would start in between, once that is now.
        """
        now = self.task.earliest
        before = max(math.floor(now / self.clock_seconds) * self.clock_seconds, self.task.released)
        if run.begins[0] < now + TOLERANCE_SECONDS and before < now - TOLERANCE_SECONDS:
            costs = self.given.costs(run.sequence, np.array([before, now]), with_limits=False)
            self.site.program.pay(run.began[:1] * max(float(costs[0] - costs[1]), 0.0))

    @pyscript_compile
    def _until(self, moments: Floats, pairs: list[tuple[linear.Expression, Floats]]) -> linear.Expression:
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
    def _keep_order(self, place: int, ended: linear.Expression, ends: Floats) -> None:
        """Have a stage start when the one before has ended, and within its longest wait, by its sequence.

        `ended` is how many have until each of the moments `ends`.
        """
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
    def course(self, solution: linear.Solution) -> list[tuple[int, list[Span]]]:
        """Return (number of the sequence, its Spans) of each stage."""
        course: list[tuple[int, list[Span]]] = []
        for runs in self.runs:
            chosen = [(run.number, spans) for run in runs if (spans := run.spans(solution))]
            course.append(chosen[0])
        return course


Chain = _Chain


@pyscript_compile
def thinned(moments: Floats, count: int) -> Floats:
    """Return moments, the first of which is kept, without some where there are more than a count."""
    if len(moments) <= count:
        return moments
    places: Integers = np.linspace(0, len(moments) - 1, count).astype(int)
    return moments[places]
