"""Power profiles in the site model: a sequence for each container, one container after the other.

A profile of which a container was aborted is over; what is under way goes on, what is long past is not begun.
Profiles are planned together, whichever ends first.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.ppbc.device as devices
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.sequences as sequences
import flexmeasures_cem.optimisation.site as sites

MAX_PAST_SECONDS = 3600.0
"""How long after its end_time a profile is still begun."""
LATE_SECONDS = 1.0
"""How late is late."""
MAX_STEP_SECONDS, MAX_EDGES = 900.0, 192
"""How long the steps of the grid are at most while a profile may run, and how many edges that may add."""
CLOCK_TOLERANCE_SECONDS = 1.0
"""How near to a moment of the clock a start is that counts as being at it."""
MIN_COVERED_SHARE = 1e-9
"""The least part of a step that a division is by."""
WATTS = 1000.0
"""W in a kW."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some time of a sequence: seconds, power (W), and what all but electricity costs (currency per hour)."""

    seconds: float
    power: float
    rate: float = 0.0


Part = _Part
Piece = tuple[float, float, Part]
"""From when until when a Part is at work (s since 1970): start, end, part."""


@dataclass(frozen=True, kw_only=True)
class _Option:
    """What is left of a sequence: its Parts, how long it may wait at most (s), whether it may be paused."""

    sequence: str
    parts: tuple[Part, ...]
    longest_wait: float = math.inf
    is_interruptible: bool = False

    @property
    @pyscript_compile
    def seconds(self) -> float:
        """The length of all parts."""
        return sum(part.seconds for part in self.parts)


Option = _Option


@dataclass(frozen=True, kw_only=True)
class _Remaining:
    """What is left of a profile: `running` are the Pieces until the grid begins.

    `task` is for the `containers` that `stages` have Options of; it is None where nothing is left, or nothing
    that is to be planned yet.
    """

    running: tuple[Piece, ...] = ()
    containers: tuple[devices.Container, ...] = ()
    stages: tuple[tuple[Option, ...], ...] = ()
    task: sequences.Task | None = None


Remaining = _Remaining
Run = tuple[Option, list[sequences.Span]]
"""The Option that a container is done by, and when that is at work."""


@dataclass(frozen=True, kw_only=True)
class _ProfilePart:
    """A profile in a Site's program: what is left of it, and the sequences.Chain of that, if there is one."""

    profile: devices.Profile
    remaining: Remaining
    chain: sequences.Chain | None

    @pyscript_compile
    def runs(self, solution: linear.Solution) -> list[Run]:
        """Return the Run of each container that is left, by a solution."""
        course = self.chain.course(solution) if self.chain else []
        return [
            (stage[number], spans)
            for stage, (number, spans) in zip(self.remaining.stages, course, strict=True)
        ]


ProfilePart = _ProfilePart


@pyscript_compile
def grid_edges(device: devices.Device, state: devices.State) -> list[float]:
    """Return the moments where the grid needs an edge: each quarter of an hour while a profile may run."""
    ends = [profile.end for profile in plannable(device) if profile.end > state.moment]
    if not ends:
        return []
    first = math.floor(state.moment / MAX_STEP_SECONDS) + 1
    last = min(math.ceil(max(ends) / MAX_STEP_SECONDS), first + MAX_EDGES)
    return [number * MAX_STEP_SECONDS for number in range(first, last + 1)]


@pyscript_compile
def plannable(device: devices.Device) -> list[devices.Profile]:
    """Return the profiles of a device that can be planned."""
    return [profile for profile in device.profiles if devices.why_profile_not_plannable(profile) is None]


@pyscript_compile
def add_to_site(
    site: sites.Site,
    device: devices.Device,
    state: devices.State,
    schedule: Sequence[tuple[float, float, float]] | None,
    tariffs: markets.Tariffs,
    _storage_terms: markets.StorageTerms = markets.AS_DESCRIBED,
) -> "DevicePart":
    """Add a device's profiles to a Site; it has no storage."""
    return DevicePart(site, device, state, schedule, tariffs)


@dataclass(eq=False, repr=False)
class _DevicePart:
    """A device's profiles in a Site's program. `schedule` has (start, end, W) to be followed, or is None."""

    site: sites.Site
    device: devices.Device
    state: devices.State
    schedule: Sequence[tuple[float, float, float]] | None
    tariffs: markets.Tariffs

    @pyscript_compile
    def __post_init__(self) -> None:
        edges = self.site.grid.edges
        self.parts: list[ProfilePart] = []
        for rank, profile in enumerate(plannable(self.device)):
            left = remaining(profile, self.state, float(edges[0]), float(edges[-1]), self.tariffs)
            chain = sequences.Chain(self.site, left.task, rank) if left.task else None
            self.parts.append(ProfilePart(profile=profile, remaining=left, chain=chain))
        if self.schedule:
            self._follow(self.schedule)

    @pyscript_compile
    def _follow(self, schedule: Sequence[tuple[float, float, float]]) -> None:
        """Depart from a schedule (start, end, W) as little as can be, where it has a power."""
        grid = self.site.grid
        powers = [part.chain.power for part in self.parts if part.chain]
        covered = grid.means([(start, end, 1.0) for start, end, _power in schedule])
        means = grid.means([(start, end, power / WATTS) for start, end, power in schedule])
        scheduled = np.where(covered > 0.0, means / np.maximum(covered, MIN_COVERED_SHARE), np.nan)
        self.site.track(linear.total(powers, grid.count), scheduled)

    @pyscript_compile
    def plan(self, solution: linear.Solution, market: Sequence[markets.Interval]) -> devices.ProfilePlan:
        """Return the ProfilePlan of a solution, with its cost in a market."""
        intervals = list(market)
        pieces: list[Piece] = []
        plan = devices.ProfilePlan(
            market[0].start, market[-1].end, [], [], made=self.state.moment, phases=dict(self.state.phases)
        )
        for part in self.parts:
            own, runs = list(part.remaining.running), part.runs(solution)
            if part.chain:
                instruct(plan, part, runs, part.chain.fee)
                for option, spans in runs:
                    own += pieces_of(option.parts, spans)
                _option, spans = runs[-1]
                late_seconds = spans[-1][1] - part.profile.end
                if spans[-1][1] > part.profile.end + LATE_SECONDS:
                    plan.missed.append(plans.Missed(part.profile.end, 0.0, late_seconds / 60))
            if own:
                plan.cost += cost(intervals, own)
                plan.other_cost += other_cost(own)
                intervals = loaded(intervals, own)
                pieces += own
        plan.changes.sort(key=lambda change: (change.moment, change.actuator))
        plan.missed.sort(key=lambda missed: missed.moment)
        plan.pieces = together(pieces)
        plan.end = max([plan.end, *[end for _start, end, _part in pieces]])
        return plan


DevicePart = _DevicePart


@pyscript_compile
def remaining(
    profile: devices.Profile, state: devices.State, begin: float, end: float, tariffs: markets.Tariffs
) -> Remaining:
    """Return what is Remaining of a profile, from when the grid begins until it ends."""
    phases = [state.phases[profile.id, container.id] for container in profile.containers]
    begun = [place for place, phase in enumerate(phases) if phase.kind != devices.WAITING]
    is_past = not begun and state.moment > profile.end + MAX_PAST_SECONDS and profile.id not in state.pledged
    if is_past or any(phase.kind == devices.ABORTED for phase in phases):
        return Remaining()
    last = phases[begun[-1]] if begun else None
    containers = profile.containers[begun[-1] + 1 if begun else 0 :]
    stages = [
        tuple(option(sequence, tariffs) for sequence in devices.permitted(container))
        for container in containers
    ]
    running: tuple[Piece, ...] = ()
    held: str | None = None
    previous: float | None = None
    released = profile.start
    if last and last.kind in (devices.RUNNING, devices.PAUSED) and last.sequence is not None:
        current = profile.containers[begun[-1]]
        now, held = devices.phase_at(current, last, begin), last.kind
        whole = option(current.sequences[last.sequence], tariffs)
        running = until_now(whole, last, now, state.moment)
        if now.kind == devices.FINISHED:
            held, previous, released = None, now.at, now.at
        else:
            containers = (current, *containers)
            stages.insert(0, (rest(whole, now),))
            released = now.since + sequences.MIN_PAUSE_SECONDS if held == devices.PAUSED else begin
    elif last:
        previous = released = last.at
    earliest = max(begin, released)
    starts, keys = state.starts, [(profile.id, container.id) for container in containers]
    deadline = last_end(profile, stages, earliest, end, held) if stages else None
    if deadline is None:
        return Remaining(running=running)
    task = sequences.Task(
        stages=tuple(tuple(sequence_of(choice) for choice in stage) for stage in stages),
        earliest=earliest,
        deadline=deadline,
        released=released,
        previous=previous,
        held=held,
        fee=last.fee if last else None,
        kept={place: starts[key] for place, key in enumerate(keys) if key in starts},
    )
    return Remaining(running=running, containers=containers, stages=tuple(stages), task=task)


@pyscript_compile
def until_now(whole: Option, phase: devices.Phase, now: devices.Phase, moment: float) -> tuple[Piece, ...]:
    """Return the Pieces of what runs, from a moment until the Phase that is `now`."""
    shift = moment - phase.done
    pieces = [
        (start + shift, end + shift, part) for start, end, part in pieces_of(whole.parts, [(0.0, now.done)])
    ]
    return tuple((max(start, moment), end, part) for start, end, part in pieces if end > moment)


@pyscript_compile
def last_end(
    profile: devices.Profile,
    stages: Iterable[Iterable[Option]],
    earliest: float,
    end: float,
    held: str | None,
) -> float | None:
    """Return by when a profile is to end, None where it need not and cannot be planned on the grid."""
    shortest = sum(min(choice.seconds for choice in stage) for stage in stages)
    if profile.end > end:
        if earliest + shortest <= end:
            return end
        if held is None and profile.end - shortest >= end:
            return None
    return profile.end


@pyscript_compile
def option(sequence: devices.Sequence, tariffs: markets.Tariffs) -> Option:
    """Return a sequence as an Option, with what its commodities but electricity cost."""
    parts = [
        Part(
            seconds=element.seconds,
            power=element.power,
            rate=sum(markets.other_cost(name, value, tariffs) for name, value in element.others),
        )
        for element in sequence.elements
    ]
    return Option(
        sequence=sequence.id,
        parts=tuple(parts),
        longest_wait=sequence.pause,
        is_interruptible=sequence.is_interruptible,
    )


@pyscript_compile
def rest(whole: Option, phase: devices.Phase) -> Option:
    """Return what is left of an Option after a Phase."""
    seconds, parts = phase.done, []
    for part in whole.parts:
        left = part.seconds - seconds
        seconds = max(-left, 0.0)
        if left > 0:
            parts.append(replace(part, seconds=min(left, part.seconds)))
    can_pause = whole.is_interruptible and not phase.is_steady
    return replace(whole, parts=tuple(parts), is_interruptible=can_pause)


@pyscript_compile
def sequence_of(option: Option) -> sequences.Sequence:
    """Return an Option as the site model's Sequence."""
    return sequences.Sequence(
        seconds=np.array([part.seconds for part in option.parts]),
        powers=np.array([part.power / WATTS for part in option.parts]),
        rates=np.array([part.rate for part in option.parts]),
        longest_wait=option.longest_wait,
        is_interruptible=option.is_interruptible,
    )


@pyscript_compile
def pieces_of(parts: Sequence[Part], spans: Iterable[sequences.Span]) -> list[Piece]:
    """Return the Pieces of Parts that run in some spans, one after the other."""
    pieces: list[Piece] = []
    worked = 0.0
    for start, end in spans:
        done, until = worked + end - start, 0.0
        for part in parts:
            since, until = until, until + part.seconds
            begin, last = max(since, worked), min(until, done)
            if last > begin:
                pieces.append((start + begin - worked, start + last - worked, part))
        worked = done
    return pieces


@pyscript_compile
def instruct(plan: devices.ProfilePlan, part: ProfilePart, runs: Sequence[Run], fee: float) -> None:
    """Add the changes to a plan that the Runs of a profile's containers call for."""
    held = part.remaining.task.held if part.remaining.task else None
    for place, (container, (choice, spans)) in enumerate(zip(part.remaining.containers, runs, strict=True)):
        key, kind = (part.profile.id, container.id), devices.START
        powers = {start: piece.power for start, _end, piece in pieces_of(choice.parts, spans)}
        start = spans[0][0]
        is_steady = len(spans) == 1 and not is_on_clock(start)
        moments = []
        for begin, end in spans:
            moments += [(begin, kind, powers.get(begin, 0.0)), (end, devices.PAUSE, 0.0)]
            kind = devices.RESUME
        if place == 0 and held is not None:
            plan.phases[key] = replace(plan.phases[key], fee=fee)
            is_paused = held == devices.PAUSED
            moments = [(start, devices.RESUME, moments[0][2])] * is_paused + moments[1:]
        plan.changes += [
            devices.Change(moment, kind, *key, choice.sequence, power, key, fee, is_steady)
            for moment, kind, power in moments[:-1]
        ]


@pyscript_compile
def is_on_clock(moment: float) -> bool:
    """Return whether a moment is one of the finest clock that sequences start by."""
    step = sequences.STARTS_SECONDS[0]
    return abs(moment - round(moment / step) * step) <= CLOCK_TOLERANCE_SECONDS


@pyscript_compile
def cost(intervals: Sequence[markets.Interval], pieces: Sequence[Piece]) -> float:
    """Return what Pieces cost (currency); the last interval goes on for ever."""
    endless = [*intervals[:-1], replace(intervals[-1], end=math.inf)]
    return other_cost(pieces) + sum(
        markets.cost(interval, part.power, last - begin)
        for start, end, part in pieces
        for interval, begin, last in markets.overlapping(endless, start, end)
    )


@pyscript_compile
def other_cost(pieces: Iterable[Piece]) -> float:
    """Return what Pieces cost (currency), but for electricity."""
    return sum(part.rate * (end - start) / 3600 for start, end, part in pieces)


@pyscript_compile
def loaded(intervals: Iterable[markets.Interval], pieces: Sequence[Piece]) -> list[markets.Interval]:
    """Return a market with the power of Pieces added to its load."""
    edges, intervals_with_load = edges_of(pieces), []
    for interval in intervals:
        inside = [edge for edge in edges if interval.start < edge < interval.end]
        for begin, end in pairwise([interval.start, *inside, interval.end]):
            load = interval.load + sum(powers_between(pieces, begin, end))
            intervals_with_load.append(replace(interval, start=begin, end=end, load=load))
    return intervals_with_load


@pyscript_compile
def together(pieces: Sequence[Piece]) -> list[plans.PowerPiece]:
    """Return Pieces as plans.PowerPieces, in order: what overlaps is added up."""
    return [
        plans.PowerPiece(begin, end, sum(powers))
        for begin, end in pairwise(edges_of(pieces))
        if (powers := powers_between(pieces, begin, end))
    ]


@pyscript_compile
def edges_of(pieces: Iterable[Piece]) -> list[float]:
    """Return the moments that Pieces start or end at, in order."""
    return sorted({moment for start, end, _part in pieces for moment in (start, end)})


@pyscript_compile
def powers_between(pieces: Iterable[Piece], begin: float, end: float) -> list[float]:
    """Return the powers (W) of the Pieces that are at work all the time between two moments."""
    return [part.power for start, last, part in pieces if start <= begin and last >= end]
