"""Power profiles: what a device is to run, as it describes it, and how far it is.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.commodities as commodities

DESCRIPTION = "PPBC.PowerProfileDefinition"
START, PAUSE, RESUME = "ScheduleInstruction", "StartInterruptionInstruction", "EndInterruptionInstruction"
WAITING, RUNNING, PAUSED, FINISHED, ABORTED = "WAITING", "RUNNING", "PAUSED", "FINISHED", "ABORTED"


@dataclass(frozen=True)
class _Element:
    """Some time of a sequence: seconds, electric power (W), and (quantity, value) of all else."""

    seconds: float
    power: float
    others: tuple


Element = _Element


@dataclass(frozen=True)
class _Sequence:
    """One way to do a container's task; `pause` is how long may be waited before it at most (s)."""

    id: str
    elements: tuple
    seconds: float
    pause: float
    is_interruptible: bool
    is_abnormal: bool


Sequence = _Sequence


@dataclass(frozen=True)
class _Container:
    """The Sequences that one is to be chosen of, by id."""

    id: str
    sequences: dict


Container = _Container


@dataclass(frozen=True)
class _Profile:
    """What is to be done between two moments: Containers, in order."""

    id: str
    start: float
    end: float
    containers: tuple


Profile = _Profile


@dataclass(frozen=True)
class _Device:
    """The Profiles, by end_time, and the greatest power of any (W, without sign)."""

    profiles: tuple
    greatest: float


Device = _Device


@dataclass(frozen=True)
class _Phase:
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


Phase = _Phase


@dataclass(frozen=True)
class _State:
    """The Phase of each (profile, container) at a moment; `pledged` are profiles told to begin.

    `starts` are when a container is planned to start, or to go on.
    """

    moment: float
    phases: dict
    pledged: set
    starts: dict = field(default_factory=dict)


State = _State


@dataclass(frozen=True)
class _Change:
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


Change = _Change


@pyscript_compile
def phases_as_list(phases: dict[tuple[str, str], Phase]) -> list[tuple[tuple[str, str], Phase]]:
    """Return Phases by profile and container as JSON can have them."""
    return list(phases.items())


@pyscript_compile
def phases_by_container(items: list[tuple[list[str], Any]]) -> dict[tuple[str, ...], Any]:
    """Return what `phases_as_list` made, by profile and container."""
    return {tuple(key): phase for key, phase in items}


@dataclass
class _ProfilePlan(plans.Plan):
    """A Plan that was made for some State: its `moment`, and the Phases of all containers."""

    changes: list[Change]
    made: float = 0.0
    phases: Annotated[
        dict[tuple[str, str], Phase],
        PlainSerializer(phases_as_list),
        BeforeValidator(phases_by_container),
    ] = field(default_factory=dict)


ProfilePlan = _ProfilePlan


@pyscript_compile
def read_device(memory):
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
        seconds = min(each.duration.root / 1000, transitions.MAX_SECONDS)
        if elements and (elements[-1].power, elements[-1].others) == (power, others):
            seconds += elements.pop().seconds
        if seconds:
            elements.append(Element(seconds, power, others))
    pause = described.max_pause_before
    return Sequence(
        described.id,
        tuple(elements),
        sum(each.seconds for each in elements),
        math.inf if pause is None else min(pause.root / 1000, transitions.MAX_SECONDS),
        described.is_interruptible,
        described.abnormal_condition_only,
    )


@pyscript_compile
def misfit(profile):
    """Return why a profile cannot be planned, or None."""
    for each in profile.containers:
        if not usual(each):
            return f"all sequences of container {each.id} are for an abnormal condition only"
    return None


@pyscript_compile
def usual(found):
    """Return the sequences of a container that are not for an abnormal condition only."""
    return [each for each in found.sequences.values() if not each.is_abnormal]


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


STATUS = ("PPBC.PowerProfileStatus",)
TIME_TOLERANCE = 120.0
"""How much earlier or later than expected a sequence may end (s)."""
KINDS = {
    "NOT_SCHEDULED": WAITING,
    "SCHEDULED": WAITING,
    "EXECUTING": RUNNING,
    "INTERRUPTED": PAUSED,
    "FINISHED": FINISHED,
    "ABORTED": ABORTED,
}
read_device = read_device


@pyscript_compile
def missing_message(memory):
    """Return which message is still missing to plan on, or None."""
    return None if any(key[0] == DESCRIPTION for key in memory) else DESCRIPTION


@pyscript_compile
def valid_from(_memory):
    """Return from when on the description holds: a definition does at once, it can be planned ahead."""
    return 0.0


@pyscript_compile
def why_not_plannable(found):
    """Return why a device cannot be planned, or None where at least one of its profiles can be."""
    why = [misfit(each) for each in found.profiles]
    return why[-1] if why and all(why) else None


@pyscript_compile
def last_deadline(found):
    """Return the last moment that the plan has to look ahead to."""
    return max([each.end for each in found.profiles], default=0.0)


@pyscript_compile
def read_state(found, memory, heard, plan, now):
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
    coming = [each for each in plan.changes if each.moment > now] if plan else []
    starts = {each.actuator: each.moment for each in reversed(coming) if each.kind in (START, RESUME)}
    return State(now, phases, {each.profile for each in coming}, starts)


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
