"""Power profiles in the site model: a sequence for each container, one container after the other.

A profile of which a container was aborted is over; what is under way goes on, what is long past is not begun.
Profiles are planned together, whichever ends first.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.ppbc.device as profiles
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.sequences as sequences

PAST_SECONDS = 3600.0
"""How long after its end_time a profile is still begun."""
LATE_SECONDS = 1.0
"""How late is late."""
CUT_SECONDS, MAX_CUTS = 900.0, 192
"""How long the steps of the grid are at most while a profile may run."""
WATTS = 1000.0
"""W in a kW."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some time of a sequence: seconds, power (W), what else it costs (currency per hour)."""

    seconds: float
    power: float
    rate: float = 0.0


Part = _Part


@dataclass(frozen=True, kw_only=True)
class _Option:
    """What is left of a sequence: its Parts, how long it may wait at most (s), whether it may be paused."""

    sequence: str
    parts: tuple
    longest_wait: float = math.inf
    is_interruptible: bool = False

    @property
    @pyscript_compile
    def seconds(self) -> float:
        """How long it takes."""
        return sum(each.seconds for each in self.parts)


Option = _Option


@dataclass(frozen=True, kw_only=True)
class _Remaining:
    """What is left of a profile: `running` are the pieces (start, end, Part) until the grid begins.

    `task` is for the `containers` that `stages` have Options of; it is None where nothing is left, or nothing
    that is to be planned yet.
    """

    running: tuple = ()
    containers: tuple = ()
    stages: tuple = ()
    task: Any = None


Remaining = _Remaining


@pyscript_compile
def cuts(device: Any, state: Any) -> list[float]:
    """Return the moments where the grid needs an edge: each quarter of an hour while a profile may run."""
    ends = [each.end for each in device.profiles if each.end > state.moment and not profiles.misfit(each)]
    if not ends:
        return []
    first = math.floor(state.moment / CUT_SECONDS) + 1
    last = min(math.ceil(max(ends) / CUT_SECONDS), first + MAX_CUTS)
    return [number * CUT_SECONDS for number in range(first, last + 1)]


@pyscript_compile
def add(site: Any, device: Any, state: Any, wanted: Any, tariffs: dict, _storage: Any = None) -> Any:
    """Add a device's profiles to a site; it has no storage."""
    return DeviceModel(site, device, state, wanted, tariffs)


@dataclass(eq=False, repr=False)
class _DeviceModel:
    """A device's profiles in a Site's program: a sequences.Chain for each of which something is left."""

    site: Any
    device: Any
    state: Any
    wanted: Any
    tariffs: Any

    @pyscript_compile
    def __post_init__(self) -> None:
        site, device, state, wanted, tariffs = self.site, self.device, self.state, self.wanted, self.tariffs
        self.state, self.parts = state, []
        edges = site.grid.edges
        found = [each for each in device.profiles if profiles.misfit(each) is None]
        for rank, profile in enumerate(found):
            left = remaining(profile, state, float(edges[0]), float(edges[-1]), tariffs)
            chain = sequences.Chain(site, left.task, rank) if left.task else None
            self.parts.append((profile, left, chain))
        if wanted:
            self._follow(site, wanted)

    @pyscript_compile
    def _follow(self, site, wanted):
        """Depart from a schedule (start, end, W) as little as can be, where there is one."""
        powers = [chain.power for _profile, _left, chain in self.parts if chain]
        covered = site.grid.means([(start, end, 1.0) for start, end, _power in wanted])
        means = site.grid.means([(start, end, power / WATTS) for start, end, power in wanted])
        known = np.where(covered > 0.0, means / np.maximum(covered, 1e-9), np.nan)
        site.track(linear.total(powers, site.grid.count), known)

    @pyscript_compile
    def plan(self, solution, market):
        """Return the ProfilePlan that a solution is; its cost is what it costs in a market."""
        state, cells, pieces = self.state, market, []
        made = profiles.ProfilePlan(
            market[0].start, market[-1].end, [], [], made=state.moment, phases=dict(state.phases)
        )
        for profile, left, chain in self.parts:
            own = list(left.running)
            if chain:
                course = chain.course(solution)
                chosen = [stage[number] for stage, (number, _spans) in zip(left.stages, course, strict=True)]
                runs = [(option, spans) for option, (_number, spans) in zip(chosen, course, strict=True)]
                tell(made, profile, left, runs, chain.fee)
                for option, spans in runs:
                    own += pieces_of(option.parts, spans)
                end = runs[-1][1][-1][1]
                if end > profile.end + LATE_SECONDS:
                    made.missed.append(plans.Missed(profile.end, 0.0, (end - profile.end) / 60))
            if own:
                made.cost += cost(cells, own)
                made.other_cost += other_cost(own)
                cells = loaded(cells, own)
                pieces += own
        made.changes.sort(key=lambda change: (change.moment, change.actuator))
        made.missed.sort(key=lambda missed: missed.moment)
        made.pieces = together(pieces)
        made.end = max([made.end, *[piece.end for piece in made.pieces]])
        return made


DeviceModel = _DeviceModel


@pyscript_compile
def remaining(profile: Any, state: Any, begin: float, end: float, tariffs: dict) -> Any:
    """Return what is Remaining of a profile, from when the grid begins until it ends."""
    phases = [state.phases[profile.id, container.id] for container in profile.containers]
    begun = [place for place, phase in enumerate(phases) if phase.kind != profiles.WAITING]
    is_past = not begun and state.moment > profile.end + PAST_SECONDS and profile.id not in state.pledged
    if is_past or any(phase.kind == profiles.ABORTED for phase in phases):
        return Remaining()
    last = phases[begun[-1]] if begun else None
    containers = profile.containers[begun[-1] + 1 if begun else 0 :]
    stages = [tuple(option(each, tariffs) for each in profiles.usual(one)) for one in containers]
    running, held, previous, released = (), None, None, profile.start
    if last and last.kind in (profiles.RUNNING, profiles.PAUSED):
        current = profile.containers[begun[-1]]
        now, held = profiles.passed(current, last, begin), last.kind
        whole = option(current.sequences[last.sequence], tariffs)
        running = until_now(whole, last, now, state.moment)
        if now.kind == profiles.FINISHED:
            held, previous, released = None, now.at, now.at
        else:
            containers = (current, *containers)
            stages.insert(0, (rest(whole, now),))
            released = now.since + sequences.MIN_PAUSE_SECONDS if held == profiles.PAUSED else begin
    elif last:
        previous = released = last.at
    earliest = max(begin, released)
    starts, keys = state.starts, [(profile.id, container.id) for container in containers]
    deadline = last_end(profile, stages, earliest, end, held) if stages else None
    if deadline is None:
        return Remaining(running=running)
    task = sequences.Task(
        stages=tuple(tuple(sequence_of(each) for each in stage) for stage in stages),
        earliest=earliest,
        deadline=deadline,
        released=released,
        previous=previous,
        held=held,
        fee=last and last.fee,
        kept={place: starts[key] for place, key in enumerate(keys) if key in starts},
    )
    return Remaining(running=running, containers=containers, stages=tuple(stages), task=task)


@pyscript_compile
def until_now(whole: Any, phase: Any, now: Any, moment: float) -> tuple:
    """Return the pieces (start, end, Part) of what runs, from a moment until what is `now`."""
    shift = moment - phase.done
    pieces = [
        (start + shift, end + shift, part) for start, end, part in pieces_of(whole.parts, [(0.0, now.done)])
    ]
    return tuple((max(start, moment), end, part) for start, end, part in pieces if end > moment)


@pyscript_compile
def last_end(profile: Any, stages: list, earliest: float, end: float, held: str | None) -> float | None:
    """Return by when a profile is to end, None where it need not and cannot be planned on the grid."""
    shortest = sum(min(each.seconds for each in stage) for stage in stages)
    if profile.end > end:
        if earliest + shortest <= end:
            return end
        if held is None and profile.end - shortest >= end:
            return None
    return profile.end


@pyscript_compile
def option(sequence: Any, tariffs: dict) -> Any:
    """Return a sequence as an Option, with what its other commodities cost."""
    parts = [
        Part(
            seconds=each.seconds,
            power=each.power,
            rate=sum(markets.other_cost(name, value, tariffs) for name, value in each.others),
        )
        for each in sequence.elements
    ]
    return Option(
        sequence=sequence.id,
        parts=tuple(parts),
        longest_wait=sequence.pause,
        is_interruptible=sequence.is_interruptible,
    )


@pyscript_compile
def rest(whole: Any, phase: Any) -> Any:
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
def sequence_of(option: Any) -> Any:
    """Return an Option as the site model's Sequence."""
    return sequences.Sequence(
        seconds=np.array([part.seconds for part in option.parts]),
        powers=np.array([part.power / WATTS for part in option.parts]),
        rates=np.array([part.rate for part in option.parts]),
        longest_wait=option.longest_wait,
        is_interruptible=option.is_interruptible,
    )


@pyscript_compile
def pieces_of(parts: Any, spans: Any) -> list:
    """Return the pieces (start, end, Part) of Parts that run in some spans, one after the other."""
    found, worked = [], 0.0
    for start, end in spans:
        done, until = worked + end - start, 0.0
        for part in parts:
            since, until = until, until + part.seconds
            begin, last = max(since, worked), min(until, done)
            if last > begin:
                found.append((start + begin - worked, start + last - worked, part))
        worked = done
    return found


@pyscript_compile
def tell(made: Any, profile: Any, left: Any, runs: list, fee: float) -> None:
    """Add the changes to a plan that runs (Option, spans) of a profile's containers call for."""
    step, held = sequences.STARTS_SECONDS[0], left.task.held
    for place, (container, (option, spans)) in enumerate(zip(left.containers, runs, strict=True)):
        key, kind = (profile.id, container.id), profiles.START
        is_held = place == 0 and held is not None
        powers = {start: part.power for start, _end, part in pieces_of(option.parts, spans)}
        start = spans[0][0]
        is_off_clock = len(spans) == 1 and abs(start - round(start / step) * step) > 1.0
        moments = []
        for begin, end in spans:
            moments += [(begin, kind, powers.get(begin, 0.0)), (end, profiles.PAUSE, 0.0)]
            kind = profiles.RESUME
        if is_held:
            made.phases[key] = replace(made.phases[key], fee=fee)
            is_paused = held == profiles.PAUSED
            moments = [(start, profiles.RESUME, moments[0][2])] * is_paused + moments[1:]
        made.changes += [
            profiles.Change(moment, what, *key, option.sequence, power, key, fee, is_off_clock)
            for moment, what, power in moments[:-1]
        ]


@pyscript_compile
def cost(cells: list, pieces: list) -> float:
    """Return what pieces (start, end, Part) cost (currency); the last cell goes on for ever."""
    cells = [*cells[:-1], replace(cells[-1], end=math.inf)]
    return other_cost(pieces) + sum(
        markets.cost(cell, part.power, last - begin)
        for start, end, part in pieces
        for cell, begin, last in markets.overlapping(cells, start, end)
    )


@pyscript_compile
def other_cost(pieces: list) -> float:
    """Return what pieces (start, end, Part) cost (currency), but for electricity."""
    return sum(part.rate * (end - start) / 3600 for start, end, part in pieces)


@pyscript_compile
def loaded(cells: list, pieces: list) -> list:
    """Return a market with the power of pieces added to its load."""
    edges, found = sorted({moment for piece in pieces for moment in piece[:2]}), []
    for cell in cells:
        moments = [cell.start, *[edge for edge in edges if cell.start < edge < cell.end], cell.end]
        for begin, end in pairwise(moments):
            powers = [part.power for start, last, part in pieces if start <= begin and last >= end]
            found.append(replace(cell, start=begin, end=end, load=cell.load + sum(powers)))
    return found


@pyscript_compile
def together(pieces: list) -> list:
    """Return pieces (start, end, Part) as plans.PowerPieces, in order: what overlaps is added up."""
    moments, found = sorted({moment for piece in pieces for moment in piece[:2]}), []
    for begin, end in pairwise(moments):
        powers = [part.power for start, last, part in pieces if start <= begin and last >= end]
        if powers:
            found.append(plans.PowerPiece(begin, end, sum(powers)))
    return found
