"""Power profiles: what a device is to run, as it describes it, and how far it is.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer
from s2python.ppbc import PPBCPowerProfileStatus, PPBCPowerSequence, PPBCPowerSequenceContainer

import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_s2.commodities as commodities
from flexmeasures_s2.rules import Memory

DESCRIPTION, STATUS = "PPBC.PowerProfileDefinition", ("PPBC.PowerProfileStatus",)
START, PAUSE, RESUME = "ScheduleInstruction", "StartInterruptionInstruction", "EndInterruptionInstruction"
WAITING, RUNNING, PAUSED, FINISHED, ABORTED = "WAITING", "RUNNING", "PAUSED", "FINISHED", "ABORTED"
KINDS = {
    "NOT_SCHEDULED": WAITING,
    "SCHEDULED": WAITING,
    "EXECUTING": RUNNING,
    "INTERRUPTED": PAUSED,
    "FINISHED": FINISHED,
    "ABORTED": ABORTED,
}
"""The kind of Phase that each PPBCPowerSequenceStatus is."""
TIME_TOLERANCE_SECONDS = 120.0
"""How much earlier or later than expected a sequence may end."""
ContainerKey = tuple[str, str]
"""The ids of a profile and of a container of it."""


@dataclass(frozen=True)
class _Element:
    """Some time of a sequence: seconds, electric power (W), and (quantity, value) of all else."""

    seconds: float
    power: float
    others: tuple[tuple[str, float], ...]


Element = _Element


@dataclass(frozen=True)
class _Sequence:
    """One way to do a container's task; `pause` is how long may be waited before it at most (s)."""

    id: str
    elements: tuple[Element, ...]
    seconds: float
    pause: float
    is_interruptible: bool
    is_abnormal: bool


Sequence = _Sequence


@dataclass(frozen=True)
class _Container:
    """The Sequences of which one is to be chosen, by id."""

    id: str
    sequences: dict[str, Sequence]


Container = _Container


@dataclass(frozen=True)
class _Profile:
    """What is to be done between two moments: Containers, in order."""

    id: str
    start: float
    end: float
    containers: tuple[Container, ...]


Profile = _Profile


@dataclass(frozen=True)
class _Device:
    """The Profiles, by end_time, and the greatest power of any (W, without sign)."""

    profiles: tuple[Profile, ...]
    greatest: float


Device = _Device


@dataclass(frozen=True)
class _Phase:
    """How far a container is at a moment (`at`): its `kind`, and what is done (s).

    `since` is when that was instructed, `begun` when its sequence began; 0 where that is not known. `at` is
    the end of what is FINISHED or ABORTED. `fee` is what another pause has to save (currency); there is none
    where `is_steady`.
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
class _Report:
    """What a PPBC.PowerProfileStatus has of a container: its `status`, and the `kind` of Phase that is.

    `sequence` is the selected one, and `progress_seconds` how long that has run, where the device says so.
    """

    status: str
    kind: str
    sequence: str | None
    progress_seconds: float | None


Report = _Report


@dataclass(frozen=True)
class _State:
    """The Phase of each container at a moment; `pledged` are profiles that are instructed to begin.

    `starts` are when a container is planned to start, or to go on.
    """

    moment: float
    phases: dict[ContainerKey, Phase]
    pledged: set[str]
    starts: dict[ContainerKey, float] = field(default_factory=dict)


State = _State


@dataclass(frozen=True)
class _Change:
    """What a container is instructed to do at a moment; `power` (W) is expected from then on.

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
    """Return Phases by profile and container, from their form in JSON (`phases_as_list`)."""
    return {tuple(key): phase for key, phase in items}


@dataclass
class _ProfilePlan(plans.Plan):
    """A Plan that was made for some State: its `moment`, and the Phases of all containers."""

    changes: list[Change]  # type: ignore[assignment]  # pydantic reads these from a plan that was kept
    made: float = 0.0
    phases: Annotated[
        dict[tuple[str, str], Phase],
        PlainSerializer(phases_as_list),
        BeforeValidator(phases_by_container),
    ] = field(default_factory=dict)


ProfilePlan = _ProfilePlan


@pyscript_compile
def missing_message(memory: Memory) -> str | None:
    """Return which message is still missing to plan on, or None."""
    return None if any(key[0] == DESCRIPTION for key in memory) else DESCRIPTION


@pyscript_compile
def valid_from(_memory: Memory) -> float:
    """Return from when on the description holds: a definition does at once, it can be planned ahead."""
    return 0.0


@pyscript_compile
def read_device(memory: Memory) -> Device:
    """Return the device with the profiles of all its PPBC.PowerProfileDefinitions."""
    profiles = [
        Profile(
            message.id,
            message.start_time.timestamp(),
            message.end_time.timestamp(),
            tuple(read_container(container) for container in message.power_sequences_containers),
        )
        for key, message in memory.items()
        if key[0] == DESCRIPTION
    ]
    powers = [
        abs(element.power)
        for profile in profiles
        for container in profile.containers
        for sequence in container.sequences.values()
        for element in sequence.elements
    ]
    ordered = sorted(profiles, key=lambda profile: (profile.end, profile.start, profile.id))
    return Device(tuple(ordered), max(powers, default=0.0))


@pyscript_compile
def read_container(described: PPBCPowerSequenceContainer) -> Container:
    """Return the Container of a description."""
    sequences = [read_sequence(sequence) for sequence in described.power_sequences]
    return Container(str(described.id), {sequence.id: sequence for sequence in sequences})


@pyscript_compile
def read_sequence(described: PPBCPowerSequence) -> Sequence:
    """Return the Sequence of a description; its elements are joined where they are alike."""
    elements: list[Element] = []
    for element in described.elements:
        values = {value.commodity_quantity.value: value.value_expected for value in element.power_values}
        power = commodities.electric(values) or 0.0
        others = tuple(sorted((name, value) for name, value in values.items() if name in commodities.TARIFFS))
        seconds = min(element.duration.root / 1000, transitions.MAX_SECONDS)
        if elements and (elements[-1].power, elements[-1].others) == (power, others):
            seconds += elements.pop().seconds
        if seconds:
            elements.append(Element(seconds, power, others))
    pause = described.max_pause_before
    return Sequence(
        str(described.id),
        tuple(elements),
        sum(element.seconds for element in elements),
        math.inf if pause is None else min(pause.root / 1000, transitions.MAX_SECONDS),
        described.is_interruptible,
        described.abnormal_condition_only,
    )


@pyscript_compile
def why_not_plannable(device: Device) -> str | None:
    """Return why a device cannot be planned, or None where at least one of its profiles can be."""
    reasons = [why_profile_not_plannable(profile) for profile in device.profiles]
    return reasons[-1] if reasons and all(reasons) else None


@pyscript_compile
def why_profile_not_plannable(profile: Profile) -> str | None:
    """Return why a profile cannot be planned, or None."""
    for container in profile.containers:
        if not permitted(container):
            return f"all sequences of container {container.id} are for an abnormal condition only"
    return None


@pyscript_compile
def permitted(container: Container) -> list[Sequence]:
    """Return the sequences of a container that are not for an abnormal condition only."""
    return [sequence for sequence in container.sequences.values() if not sequence.is_abnormal]


@pyscript_compile
def last_deadline(device: Device) -> float:
    """Return the last moment that the plan has to look ahead to."""
    return max([profile.end for profile in device.profiles], default=0.0)


@pyscript_compile
def read_state(
    device: Device,
    memory: Memory,
    status_received_at: Mapping[Any, float],
    plan: ProfilePlan | None,
    now: float,
) -> State:
    """Return how far each container is now: by its status, or by instructions since then.

    `status_received_at` has when the statuses came last (by None); `plan` is the one in force, or None.
    """
    reports = read_reports(memory[STATUS]) if STATUS in memory else {}
    received_at = min(status_received_at.get(None, plan.made if plan else now), now)
    phases = {}
    for profile in device.profiles:
        for container in profile.containers:
            key = profile.id, container.id
            phase = planned_phase(plan, container, key, received_at)
            if key in reports and (plan is None or key not in plan.phases or received_at > plan.made):
                phase = reported_phase(container, phase, reports[key], received_at)
            elif plan and key in plan.phases:
                phase = plan.phases[key]
            phase = phase if phase.sequence in (None, *container.sequences) else Phase(WAITING, phase.at)
            phases[key] = advanced(container, phase, changes_of(plan, key), now)
    coming = [change for change in plan.changes if change.moment > now] if plan else []
    starts = {change.actuator: change.moment for change in reversed(coming) if change.kind in (START, RESUME)}
    return State(now, phases, {change.profile for change in coming}, starts)


@pyscript_compile
def read_reports(message: PPBCPowerProfileStatus) -> dict[ContainerKey, Report]:
    """Return what a PPBC.PowerProfileStatus has of each container."""
    reports = {}
    for described in message.sequence_container_status:
        sequence_id, progress = described.selected_sequence_id, described.progress
        reports[str(described.power_profile_id), str(described.sequence_container_id)] = Report(
            described.status.value,
            KINDS[described.status.value],
            None if sequence_id is None else str(sequence_id),
            None if progress is None else seconds_of(progress),
        )
    return reports


@pyscript_compile
def seconds_of(duration: Any) -> float:
    """Return the seconds of a Duration."""
    return float(duration.root / 1000)  # s2-python declares the progress of a container as an id


@pyscript_compile
def changes_of(plan: ProfilePlan | None, key: ContainerKey) -> list[Change]:
    """Return a plan's changes of a container."""
    return [change for change in plan.changes if change.actuator == key] if plan else []


@pyscript_compile
def planned_phase(plan: ProfilePlan | None, container: Container, key: ContainerKey, moment: float) -> Phase:
    """Return the Phase that a plan expects of a container at a moment."""
    phase = plan.phases.get(key) if plan else None
    if phase is None or phase.sequence not in (None, *container.sequences):
        phase = Phase(WAITING, moment)
    return advanced(container, phase, changes_of(plan, key), moment)


@pyscript_compile
def reported_phase(container: Container, expected: Phase, report: Report, moment: float) -> Phase:
    """Return the Phase of a status; or the expected one, where that was instructed just before."""
    kind = report.kind
    if (
        kind != expected.kind
        and expected.since > moment - plans.LAG_SECONDS
        and kind not in (FINISHED, ABORTED)
    ):
        return expected
    chosen = report.sequence or expected.sequence
    chosen = chosen if chosen in container.sequences else None
    if kind in (WAITING, ABORTED):
        return Phase(kind, moment, chosen)
    if chosen is None:
        chosen = (permitted(container) or list(container.sequences.values()))[0].id
    same = expected if expected.sequence == chosen and expected.kind != WAITING else None
    if kind == FINISHED:
        end = same.at if same and same.kind == FINISHED else moment
        return Phase(kind, end, chosen, fee=same.fee if same else None)
    done = min(done_seconds(report, same, moment), container.sequences[chosen].seconds)
    begun = same.begun if same and same.begun else moment - done
    since = same.since if same and same.kind == kind else 0.0
    if same:
        return replace(same, kind=kind, at=moment, done=done, since=since, begun=begun)
    return Phase(kind, moment, chosen, done, since, begun)


@pyscript_compile
def done_seconds(report: Report, expected: Phase | None, moment: float) -> float:
    """Return how long a sequence has been at work, by a status.

    Where that seems to count the pauses too, it is the expected time.
    """
    reported = report.progress_seconds
    if reported is None:
        return expected.done if expected else 0.0
    if expected and expected.begun:
        since_begun = moment - expected.begun
        paused = since_begun - expected.done
        tolerance = min(abs(reported - expected.done), TIME_TOLERANCE_SECONDS)
        if paused > plans.LAG_SECONDS * 2 and abs(reported - since_begun) < tolerance:
            return expected.done
    return reported


@pyscript_compile
def advanced(container: Container, phase: Phase, changes: Iterable[Change], now: float) -> Phase:
    """Return a container's Phase now, from an earlier one on, with the changes that were due since then."""
    for change in changes:
        if phase.at < change.moment <= now:
            phase = phase_at(container, phase, change.moment)
            if change.kind == START and phase.kind == WAITING and change.sequence in container.sequences:
                at = change.moment
                phase = Phase(RUNNING, at, change.sequence, 0.0, at, at, change.fee, change.is_steady)
            elif (change.kind, phase.kind) in ((PAUSE, RUNNING), (RESUME, PAUSED)):
                kind = PAUSED if change.kind == PAUSE else RUNNING
                phase = replace(phase, kind=kind, since=change.moment)
    return phase_at(container, phase, now)


@pyscript_compile
def phase_at(container: Container, phase: Phase, moment: float) -> Phase:
    """Return a Phase at a later moment, without a change meanwhile."""
    if phase.kind in (FINISHED, ABORTED) or moment <= phase.at:
        return phase
    if phase.kind != RUNNING or phase.sequence is None:
        return replace(phase, at=moment)
    done, seconds = phase.done + moment - phase.at, container.sequences[phase.sequence].seconds
    if done >= seconds:
        return replace(phase, kind=FINISHED, at=moment - (done - seconds), done=seconds)
    return replace(phase, at=moment, done=done)
