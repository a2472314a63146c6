"""Power profile based control: which sequence of each container runs when, and what the device is told.

The choice is made here (ppbc_plan), not by FlexMeasures. A profile of which a container was aborted is over
as a whole, since its containers follow from each other. S2 says nothing of a sequence without
max_pause_before: any pause before it is allowed then; and none counts before a profile's first container.
Progress is taken as the time that a sequence has been at work; where a device adds its pauses, that is seen
and allowed for.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

import flexmeasures_cem.market as markets
import flexmeasures_cem.plans as plans
import flexmeasures_cem.ppbc_plan as searches
import flexmeasures_cem.transitions as transitions
import flexmeasures_s2.commodities as commodities

CONTROL_TYPE = "POWER_PROFILE_BASED_CONTROL"
DESCRIPTION, STATUS = "PPBC.PowerProfileDefinition", ("PPBC.PowerProfileStatus",)
CALL_FOR_A_PLAN = (DESCRIPTION,)
"""The messages that change the problem."""
TIME_TOLERANCE = 120.0
"""How much earlier or later than expected a sequence may end (s)."""
PAST_SECONDS = 3600.0
"""How long after its end_time a profile is still begun."""
LEAST_LATE = 1.0
"""How late is late (s)."""
MOST_SEGMENTS, MOST_INTERVALS = 350_000, 192
"""How many segments a profile's curves may have in a market of so many intervals: what takes some seconds."""
START, PAUSE, RESUME = "ScheduleInstruction", "StartInterruptionInstruction", "EndInterruptionInstruction"
LABELS = {START: "start", PAUSE: "pause", RESUME: "go on"}
WAITING, RUNNING, PAUSED, FINISHED, ABORTED = "WAITING", "RUNNING", "PAUSED", "FINISHED", "ABORTED"
KINDS = {
    "NOT_SCHEDULED": WAITING,
    "SCHEDULED": WAITING,
    "EXECUTING": RUNNING,
    "INTERRUPTED": PAUSED,
    "FINISHED": FINISHED,
    "ABORTED": ABORTED,
}


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(frozen=True)
    class Element:
        """Some time of a sequence: seconds, electric power (W), and (quantity, value) of all else."""

        seconds: float
        power: float
        others: tuple

    @dataclass(frozen=True)
    class Sequence:
        """One way to do a container's task; `pause` is how long may be waited before it at most (s)."""

        id: str
        elements: tuple
        seconds: float
        pause: float
        is_interruptible: bool
        is_abnormal: bool

    @dataclass(frozen=True)
    class Container:
        """The Sequences that one is to be chosen of, by id."""

        id: str
        sequences: dict

    @dataclass(frozen=True)
    class Profile:
        """What is to be done between two moments: Containers, in order."""

        id: str
        start: float
        end: float
        containers: tuple

    @dataclass(frozen=True)
    class Device:
        """The Profiles, by end_time, and the greatest power of any (W, without sign)."""

        profiles: tuple
        greatest: float

    @dataclass(frozen=True)
    class Phase:
        """How far a container is at a moment (`at`): its `kind`, and what is done (s).

        `since` is when it was told so, `begun` when its sequence began; 0 where that is not known. `at` is
        the end of what is FINISHED or ABORTED. `fee` is what another pause has to save; there is none where
        `is_steady`.
        """

        kind: str
        at: float
        sequence: str | None = None
        done: float = 0.0
        since: float = 0.0
        begun: float = 0.0
        fee: float | None = None
        is_steady: bool = False

    @dataclass(frozen=True)
    class State:
        """The Phase of each (profile, container) at a moment; `pledged` are profiles told to begin."""

        moment: float
        phases: dict
        pledged: set

    @dataclass(frozen=True)
    class Change:
        """What is told of a container at a moment; `power` (W) is expected from then on.

        `actuator` is (profile, container). `fee` and `is_steady` are those of the Phase that follows.
        """

        moment: float
        kind: str
        profile: str
        container: str
        sequence: str
        power: float
        actuator: tuple[str, str]
        fee: float
        is_steady: bool

    @dataclass
    class ProfilePlan(plans.Plan):
        """A Plan that was made for some State: its `moment`, and the Phases of all containers."""

        changes: list[Change]
        made: float = 0.0
        phases: Annotated[
            dict[tuple[str, str], Phase],
            PlainSerializer(lambda phases: list(phases.items())),
            BeforeValidator(lambda items: {tuple(key): phase for key, phase in items}),
        ] = field(default_factory=dict)

    return Element, Sequence, Container, Profile, Device, Phase, State, Change, ProfilePlan


Element, Sequence, Container, Profile, Device, Phase, State, Change, ProfilePlan = records()
PLAN = ProfilePlan
upcoming, missed = plans.upcoming, plans.missed


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    return None if any(key[0] == DESCRIPTION for key in memory) else DESCRIPTION


@pyscript_compile
def valid_from(_memory):
    """Return from when on the description holds: a definition does at once, it can be planned ahead."""
    return 0.0


@pyscript_compile
def device(memory):
    """Return the device that is described, with all profiles that it has told of."""
    profiles = [
        Profile(
            message.id,
            message.start_time.timestamp(),
            message.end_time.timestamp(),
            tuple(container(each) for each in message.power_sequences_containers),
        )
        for key, message in memory.items()
        if key[0] == DESCRIPTION
    ]
    powers = [
        abs(element.power)
        for profile in profiles
        for each in profile.containers
        for sequence in each.sequences.values()
        for element in sequence.elements
    ]
    ordered = sorted(profiles, key=lambda each: (each.end, each.start, each.id))
    return Device(tuple(ordered), max(powers, default=0.0))


@pyscript_compile
def container(described):
    """Return the Container that is described."""
    return Container(described.id, {each.id: sequence(each) for each in described.power_sequences})


@pyscript_compile
def sequence(described):
    """Return the Sequence that is described; its elements are joined where they are alike."""
    elements = []
    for each in described.elements:
        values = {value.commodity_quantity.value: value.value_expected for value in each.power_values}
        power = commodities.electric(values) or 0.0
        others = tuple(sorted((name, value) for name, value in values.items() if name in commodities.TARIFFS))
        seconds = min(each.duration.root / 1000, transitions.AGES)
        if elements and (elements[-1].power, elements[-1].others) == (power, others):
            seconds += elements.pop().seconds
        if seconds:
            elements.append(Element(seconds, power, others))
    pause = described.max_pause_before
    return Sequence(
        described.id,
        tuple(elements),
        sum(each.seconds for each in elements),
        math.inf if pause is None else min(pause.root / 1000, transitions.AGES),
        described.is_interruptible,
        described.abnormal_condition_only,
    )


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None where at least one of its profiles can be."""
    why = [misfit(each) for each in found.profiles]
    return why[-1] if why and all(why) else None


@pyscript_compile
def misfit(profile):
    """Return why a profile cannot be planned, or None."""
    intervals = min(max((profile.end - profile.start) / 900, 1.0), MOST_INTERVALS)
    total = following = 0.0
    for each in reversed(profile.containers):
        usable = usual(each)
        if not usable:
            return f"all sequences of container {each.id} are for an abnormal condition only"
        segments = [following + (len(one.elements) + 1) * intervals for one in usable]
        total, following = total + sum(segments), max(segments)
        if total > MOST_SEGMENTS:
            return (
                f"power profile {profile.id} has too many containers, sequences and elements to plan: about "
                f"{MOST_SEGMENTS // MOST_INTERVALS} elements are possible, less with many containers"
            )
    return None


@pyscript_compile
def usual(found):
    """Return the sequences of a container that are not for an abnormal condition only."""
    return [each for each in found.sequences.values() if not each.is_abnormal]


@pyscript_compile
def until(found):
    """Return the last moment that the plan has to look ahead to."""
    return max([each.end for each in found.profiles], default=0.0)


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return how far each container is now: as the device told, or as it was told later than that.

    `heard` has when the statuses were told last (None); `plan` is the one in force, or None.
    """
    told = statuses(memory[STATUS]) if STATUS in memory else {}
    heard_at = min(heard.get(None, getattr(plan, "made", now) if plan else now), now)
    phases = {}
    for profile in found.profiles:
        for each in profile.containers:
            key = profile.id, each.id
            phase = planned_phase(plan, each, key, heard_at)
            if key in told and (plan is None or key not in plan.phases or heard_at > plan.made):
                phase = heard_phase(each, phase, told[key], heard_at)
            elif plan and key in plan.phases:
                phase = plan.phases[key]
            phase = phase if phase.sequence in (None, *each.sequences) else Phase(WAITING, phase.at)
            phases[key] = advanced(each, phase, changes_of(plan, key), now)
    coming = {each.profile for each in plan.changes if each.moment > now} if plan else set()
    return State(now, phases, coming)


@pyscript_compile
def statuses(message):
    """Return a PowerProfileStatus by profile and container."""
    return {
        (each.power_profile_id, each.sequence_container_id): each
        for each in message.sequence_container_status
    }


@pyscript_compile
def changes_of(plan, key):
    """Return a plan's changes of a container."""
    return [each for each in plan.changes if each.actuator == key] if plan else []


@pyscript_compile
def planned_phase(plan, found, key, moment):
    """Return the Phase that a plan expects of a container at a moment."""
    phase = plan.phases.get(key) if plan else None
    if phase is None or phase.sequence not in (None, *found.sequences):
        phase = Phase(WAITING, moment)
    return advanced(found, phase, changes_of(plan, key), moment)


@pyscript_compile
def heard_phase(found, expected, status, moment):
    """Return the Phase that a status tells of; or what is expected, where that was told just before."""
    kind = KINDS[status.status.value]
    if (
        kind != expected.kind
        and expected.since > moment - plans.LAG_SECONDS
        and kind not in (FINISHED, ABORTED)
    ):
        return expected
    chosen = status.selected_sequence_id or expected.sequence
    chosen = chosen if chosen in found.sequences else None
    if kind in (WAITING, ABORTED):
        return Phase(kind, moment, chosen)
    if chosen is None:
        chosen = (usual(found) or list(found.sequences.values()))[0].id
    same = expected if expected.sequence == chosen and expected.kind != WAITING else None
    if kind == FINISHED:
        end = same.at if same and same.kind == FINISHED else moment
        return Phase(kind, end, chosen, fee=same and same.fee)
    done = min(progress(status, same, moment), found.sequences[chosen].seconds)
    begun = same.begun if same and same.begun else moment - done
    since = same.since if same and same.kind == kind else 0.0
    if same:
        return replace(same, kind=kind, at=moment, done=done, since=since, begun=begun)
    return Phase(kind, moment, chosen, done, since, begun)


@pyscript_compile
def progress(status, expected, moment):
    """Return how long a sequence has been at work (s), as a status tells.

    Who counts its pauses too is taken at what is expected.
    """
    if status.progress is None:
        return expected.done if expected else 0.0
    told = status.progress.root / 1000
    if expected and expected.begun:
        passed = moment - expected.begun
        paused = passed - expected.done
        if paused > plans.LAG_SECONDS * 2 and abs(told - passed) < min(
            abs(told - expected.done), TIME_TOLERANCE
        ):
            return expected.done
    return told


@pyscript_compile
def advanced(found, phase, changes, now):
    """Return a container's Phase now: as it was, with the changes that it was told since then."""
    for each in changes:
        if phase.at < each.moment <= now:
            phase = passed(found, phase, each.moment)
            if each.kind == START and phase.kind == WAITING and each.sequence in found.sequences:
                at = each.moment
                phase = Phase(RUNNING, at, each.sequence, 0.0, at, at, each.fee, each.is_steady)
            elif (each.kind, phase.kind) in ((PAUSE, RUNNING), (RESUME, PAUSED)):
                kind = PAUSED if each.kind == PAUSE else RUNNING
                phase = replace(phase, kind=kind, since=each.moment)
    return passed(found, phase, now)


@pyscript_compile
def passed(found, phase, moment):
    """Return a Phase at a later moment, when nothing was told meanwhile."""
    if phase.kind in (FINISHED, ABORTED) or moment <= phase.at:
        return phase
    if phase.kind != RUNNING:
        return replace(phase, at=moment)
    done, seconds = phase.done + moment - phase.at, found.sequences[phase.sequence].seconds
    if done >= seconds:
        return replace(phase, kind=FINISHED, at=moment - (done - seconds), done=seconds)
    return replace(phase, at=moment, done=done)


@pyscript_compile
def resumed(found: Device, plan: ProfilePlan, told: Any) -> ProfilePlan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot.

    What was to start meanwhile must have: by its status, or, where it tells none, since it was told to.
    """
    sequences = {
        (profile.id, each.id): each.sequences for profile in found.profiles for each in profile.containers
    }
    if not all(change.sequence in sequences.get(change.actuator, {}) for change in plan.changes):
        return None
    status = statuses(told.memory[STATUS]) if STATUS in told.memory else {}
    for change in plan.changes:
        if change.kind != START or change.moment > told.begin:
            continue
        known = status.get(change.actuator)
        was_sent = told.sent_until is None or change.moment <= told.sent_until
        if KINDS[known.status.value] == WAITING if known else not was_sent:
            return None
    return plan


@pyscript_compile
def problem(_found, _state, _means, _window):
    """Return None: FlexMeasures is asked nothing."""


@pyscript_compile
def follow(found, state, _wanted, market, tariffs):
    """Return the Plan: the cheapest courses of all profiles that are not over.

    Those that are under way come first, then those that are to end first; each one's power is a load to those
    that follow.
    """
    begin, cells, pieces = market[0].start, market, []
    made = ProfilePlan(begin, market[-1].end, [], [], made=state.moment, phases=dict(state.phases))
    known = [each for each in found.profiles if misfit(each) is None]
    for profile in sorted(known, key=lambda each: not is_under_way(each, state)):
        own, task, containers = remaining(profile, state, market, tariffs)
        if task:
            courses = searches.search(task, cells)
            tell(made, profile, containers, task, courses)
            for course in courses:
                own += searches.powers(course.option.parts, course.spans)
            end = courses[-1].spans[-1][1]
            if end > profile.end + LEAST_LATE:
                made.missed.append(plans.Missed(profile.end, 0.0, (end - profile.end) / 60))
        if own:
            made.cost += cost(cells, own)
            cells = loaded(cells, own)
            pieces += own
    made.changes.sort(key=lambda each: (each.moment, each.actuator))
    made.missed.sort(key=lambda each: each.moment)
    made.pieces = together(pieces)
    made.end = max([made.end, *[each[1] for each in made.pieces]])
    return made


@pyscript_compile
def phases_of(profile, state):
    """Return the Phases of a profile's containers, in order."""
    return [state.phases[profile.id, each.id] for each in profile.containers]


@pyscript_compile
def is_under_way(profile, state):
    """Tell whether a profile's sequence runs now, or is paused."""
    return any(each.kind in (RUNNING, PAUSED) for each in phases_of(profile, state))


@pyscript_compile
def remaining(profile, state, market, tariffs):
    """Return what is left of a profile: the pieces until the market begins, its Task, and the containers.

    The Task is None where nothing is left, or nothing that the market is to be used for yet.
    """
    begin, phases = market[0].start, phases_of(profile, state)
    begun = [place for place, each in enumerate(phases) if each.kind != WAITING]
    is_past = not begun and state.moment > profile.end + PAST_SECONDS and profile.id not in state.pledged
    if is_past or any(each.kind == ABORTED for each in phases):
        return [], None, []
    last = phases[begun[-1]] if begun else None
    following = profile.containers[begun[-1] + 1 if begun else 0 :]
    stages = [tuple(option(each, tariffs) for each in usual(one)) for one in following]
    own, held, previous, earliest = [], None, None, begin if begun else max(begin, profile.start)
    if last and last.kind in (RUNNING, PAUSED):
        current = profile.containers[begun[-1]]
        now, held = passed(current, last, begin), last.kind
        whole = option(current.sequences[last.sequence], tariffs)
        parts = [
            (start + state.moment - last.done, end + state.moment - last.done, part)
            for start, end, part in searches.powers(whole.parts, [(0.0, now.done)])
        ]
        own = [(max(start, state.moment), end, part) for start, end, part in parts if end > state.moment]
        if now.kind == FINISHED:
            held, previous = None, now.at
        else:
            following = (current, *following)
            stages.insert(0, (rest(whole, now),))
            earliest = max(begin, now.since + searches.LEAST_PAUSE) if held == PAUSED else begin
    elif last:
        previous = last.at
    deadline = last_end(profile, stages, earliest, market, held) if stages else None
    if deadline is None:
        return own, None, []
    return own, searches.Task(tuple(stages), earliest, deadline, previous, held, last and last.fee), following


@pyscript_compile
def last_end(profile, stages, earliest, market, held):
    """Return by when a profile is to end, None where it need not and cannot be planned in this market."""
    shortest = sum(min(searches.length(each.parts) for each in stage) for stage in stages)
    end = market[-1].end
    if profile.end > end:
        if earliest + shortest <= end:
            return end
        if held is None and profile.end - shortest >= end:
            return None
    return profile.end


@pyscript_compile
def option(found, tariffs):
    """Return a sequence as an Option, with what its other commodities cost."""
    return searches.Option(
        found.id,
        tuple(searches.Part(each.seconds, each.power, rate(each.others, tariffs)) for each in found.elements),
        found.pause,
        found.is_interruptible,
    )


@pyscript_compile
def rate(others, tariffs):
    """Return what quantities cost in an hour (currency), nothing where the tariff is not known."""
    return sum(markets.other_cost(name, value, tariffs) for name, value in others)


@pyscript_compile
def rest(whole, phase):
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
def tell(made, profile, containers, task, courses):
    """Add the changes that courses call for to a plan."""
    step = searches.LEAST_PAUSE
    for place, (each, course) in enumerate(zip(containers, courses, strict=True)):
        key, kind = (profile.id, each.id), START
        is_held = place == 0 and task.held is not None
        pieces = searches.powers(course.option.parts, course.spans)
        powers = {start: part.power for start, _end, part in pieces}
        start = course.spans[0][0]
        is_off_grid = len(course.spans) == 1 and abs(start - round(start / step) * step) > 1.0
        moments = []
        for begin, end in course.spans:
            moments += [(begin, kind, powers.get(begin, 0.0)), (end, PAUSE, 0.0)]
            kind = RESUME
        if is_held:
            made.phases[key] = replace(made.phases[key], fee=course.fee)
            moments = [(start, RESUME, moments[0][2]), *moments[1:]] if task.held == PAUSED else moments[1:]
        made.changes += [
            Change(moment, what, *key, course.option.sequence, power, key, course.fee, is_off_grid)
            for moment, what, power in moments[:-1]
        ]


@pyscript_compile
def cost(cells, pieces):
    """Return what pieces (start, end, Part) cost (currency); the last cell goes on for ever."""
    cells = [*cells[:-1], replace(cells[-1], end=math.inf)]
    return sum(
        markets.cost(cell, part.power, last - begin) + part.rate * (last - begin) / 3600
        for start, end, part in pieces
        for cell, begin, last in markets.overlapping(cells, start, end)
    )


@pyscript_compile
def loaded(cells, pieces):
    """Return a market with the power of pieces added to its load."""
    cuts, found = sorted({moment for piece in pieces for moment in piece[:2]}), []
    for cell in cells:
        moments = [cell.start, *[each for each in cuts if cell.start < each < cell.end], cell.end]
        for begin, end in pairwise(moments):
            powers = [part.power for start, last, part in pieces if start <= begin and last >= end]
            found.append(replace(cell, start=begin, end=end, load=cell.load + sum(powers)))
    return found


@pyscript_compile
def together(pieces):
    """Return pieces (start, end, Part) as (start, end, power), in order: what overlaps is added up."""
    moments, found = sorted({moment for piece in pieces for moment in piece[:2]}), []
    for begin, end in pairwise(moments):
        powers = [part.power for start, last, part in pieces if start <= begin and last >= end]
        if powers:
            found.append((begin, end, sum(powers)))
    return found


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return how a PowerProfileStatus departs from what the plan expects of the device now, or None."""
    if message.message_type != STATUS[0]:
        return None
    told = statuses(message)
    for profile in found.profiles:
        for each in profile.containers:
            key = profile.id, each.id
            if key in told and key in plan.phases:
                expected = planned_phase(plan, each, key, now)
                if why := differs(each, expected, told[key], now):
                    return f"container {each.id} {why}"
    return None


@pyscript_compile
def differs(found, expected, status, now):
    """Tell where a container's status is not what is expected of it now, or None."""
    kind, chosen = KINDS[status.status.value], status.selected_sequence_id
    if kind == expected.kind:
        if kind not in (RUNNING, PAUSED):
            return None
        if chosen and chosen != expected.sequence:
            return f"runs sequence {chosen}, expected was {expected.sequence}"
        ahead = progress(status, expected, now) - expected.done
        if kind == RUNNING and abs(ahead) > TIME_TOLERANCE:
            return f"is {abs(ahead) / 60:.0f} minutes {'ahead' if ahead > 0 else 'behind'}"
        return None
    if kind == FINISHED and expected.kind == RUNNING:
        left = found.sequences[expected.sequence].seconds - expected.done
        return f"has finished {left / 60:.0f} minutes early" if left > TIME_TOLERANCE else None
    if expected.kind == FINISHED and kind == RUNNING and now - expected.at <= TIME_TOLERANCE:
        return None
    if expected.kind == ABORTED or (expected.kind == FINISHED and kind == WAITING):
        return None
    if kind not in (FINISHED, ABORTED) and now - expected.since <= plans.LAG_SECONDS:
        return None
    return f"is {status.status.value}, expected was {expected.kind}"


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_departs(plan, power, now, tolerance(found))


@pyscript_compile
def tolerance(found):
    """Return by how much a power may depart (W)."""
    return plans.tolerance(found.greatest)


@pyscript_compile
def moved(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type != STATUS[0]:
        return False
    told = statuses(message)
    for profile in found.profiles:
        for each in profile.containers:
            status, phase = told.get((profile.id, each.id)), state.phases.get((profile.id, each.id))
            if status and phase and KINDS[status.status.value] != phase.kind:
                if state.moment - phase.since > plans.LAG_SECONDS:
                    return True
            elif status and phase and status.selected_sequence_id != phase.sequence and phase.kind == RUNNING:
                return True
    return False


@pyscript_compile
def message_type(change):
    """Return the type of the message that tells a change."""
    return f"PPBC.{change.kind}"


@pyscript_compile
def fields(change):
    """Return the fields of the instruction that a change calls for, but for its ids and execution_time."""
    return {
        "power_profile_id": change.profile,
        "sequence_container_id": change.container,
        "power_sequence_id": change.sequence,
        "abnormal_condition": False,
    }


@pyscript_compile
def alike(one, other):
    """Tell whether two changes come to the same instruction."""
    same = (one.kind, one.actuator, one.sequence) == (other.kind, other.actuator, other.sequence)
    return same and abs(one.moment - other.moment) < 1.0


@pyscript_compile
def describe(_found, change, _now):
    """Return what a change says, in short, with a label and the power expected (W)."""
    return {
        "message_type": message_type(change),
        **fields(change),
        "label": LABELS[change.kind],
        "power": round(change.power),
    }
