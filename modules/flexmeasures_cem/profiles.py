"""Power profiles: what a device is to run, as it describes it, and how far it is.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

import flexmeasures_cem.plans as plans
import flexmeasures_cem.transitions as transitions
import flexmeasures_s2.commodities as commodities

DESCRIPTION = "PPBC.PowerProfileDefinition"
START, PAUSE, RESUME = "ScheduleInstruction", "StartInterruptionInstruction", "EndInterruptionInstruction"
WAITING, RUNNING, PAUSED, FINISHED, ABORTED = "WAITING", "RUNNING", "PAUSED", "FINISHED", "ABORTED"


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
        """The Phase of each (profile, container) at a moment; `pledged` are profiles told to begin.

        `starts` are when a container is planned to start, or to go on.
        """

        moment: float
        phases: dict
        pledged: set
        starts: dict = field(default_factory=dict)

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
