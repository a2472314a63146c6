"""Simulated devices under power profile based control: what has to be done by a deadline."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, NamedTuple
from uuid import uuid4

from s2python.common import ControlType
from s2python.connection.async_.control_type.class_based import PPBCControlType
from s2python.ppbc import PPBCEndInterruptionInstruction, PPBCStartInterruptionInstruction

from tests.parts.s2_device import (
    MILLISECOND,
    MINUTE,
    SECOND,
    Controlled,
    ControlledDevice,
    named_id,
)
from tests.parts.s2_messages import example

PPBC = ControlType.POWER_PROFILE_BASED_CONTROL.value
SCHEDULE = "PPBC.ScheduleInstruction"
INTERRUPT = "PPBC.StartInterruptionInstruction"
CONTINUE = "PPBC.EndInterruptionInstruction"
STATUS = "PPBC.PowerProfileStatus"
TOLERANCE = SECOND
"""By how much a pause or a deadline may be exceeded."""


class _ProfileBased(Controlled, PPBCControlType):
    revokable = (SCHEDULE, INTERRUPT, CONTINUE)
    further = (PPBCStartInterruptionInstruction, PPBCEndInterruptionInstruction)


class Sequence(NamedTuple):
    """One of the ways to do something: elements of a duration and a power (W)."""

    label: str
    elements: tuple[tuple[timedelta, float], ...]
    is_interruptible: bool = False
    max_pause_before: timedelta | None = None
    abnormal_only: bool = False

    @property
    def duration(self) -> timedelta:
        """How long it takes without interruptions."""
        return sum((duration for duration, _ in self.elements), timedelta())

    def power(self, progress: timedelta) -> float:
        """Return the power (W) after some time of it."""
        for duration, power in self.elements:
            if progress < duration:
                return power
            progress -= duration
        return 0.0

    def ends(self) -> Iterator[timedelta]:
        """Return after how long each of its elements ends."""
        passed = timedelta()
        for duration, _ in self.elements:
            passed += duration
            yield passed


class Run(NamedTuple):
    """What was done, and when it began and ended."""

    label: str
    start: datetime
    end: datetime


@dataclass
class Container:
    """A part of a profile, which is done by one of its sequences, and how far that is."""

    id: str
    label: str
    sequences: dict[str, Sequence]
    status: str = "NOT_SCHEDULED"
    selected: str | None = None
    progress: timedelta = timedelta()
    began: datetime | None = None
    ended: datetime | None = None
    instruction_id: str | None = None

    @property
    def sequence(self) -> Sequence | None:
        """The sequence that was selected."""
        return self.sequences[self.selected] if self.selected else None

    def labelled(self, label: str | None) -> str:
        """Return the sequence that has a label; without one, the first."""
        return next(each for each, sequence in self.sequences.items() if label in (None, sequence.label))


@dataclass
class Profile:
    """What has to be done between two moments, and how far that is."""

    start: datetime
    deadline: datetime
    containers: dict[str, Container]
    id: str = field(default_factory=lambda: str(uuid4()))
    is_late: bool = False

    def is_over(self) -> bool:
        """Say whether there is nothing left to do."""
        return all(each.status in ("FINISHED", "ABORTED") for each in self.containers.values())

    def has_begun(self) -> bool:
        """Say whether anything of it was begun."""
        return any(each.began for each in self.containers.values())

    def before(self, container: Container) -> list[Container]:
        """Return the containers that come before one."""
        each = list(self.containers.values())
        return each[: each.index(container)]

    def definition(self) -> dict:
        """Return the PPBC.PowerProfileDefinition."""
        return example(
            "PPBC.PowerProfileDefinition",
            id=self.id,
            start_time=self.start.isoformat(),
            end_time=self.deadline.isoformat(),
        )

    def statuses(self) -> list[dict]:
        """Return each container's status."""
        return [
            {"power_profile_id": self.id, "sequence_container_id": each.id, "status": each.status}
            | ({"selected_sequence_id": each.selected} if each.selected else {})
            | ({"progress": round(each.progress / MILLISECOND)} if each.began else {})
            for each in self.containers.values()
        ]


class ProfileDevice(ControlledDevice):
    """A device that does what it announces, by a deadline, when it is scheduled to.

    `steps` are its containers by label, each with its alternative sequences. What is announced at the
    beginning is to be done between now and `deadline`; without one, nothing is. Violations are what is not
    done at its deadline, what is begun before it may be, or before what comes first, and a pause that is
    too long. All but the last are not done either.
    """

    role = "ENERGY_CONSUMER"
    offers: ClassVar = {PPBC: _ProfileBased}
    as_json = frozenset({STATUS})
    steps: dict[str, tuple[Sequence, ...]]

    def __init__(
        self,
        url: str,
        *,
        steps: dict[str, tuple[Sequence, ...]] | None = None,
        deadline: datetime | None = None,
        **options,
    ) -> None:
        super().__init__(url, **options)
        self.steps = steps or self.steps
        self.runs: list[Run] = []
        self.profiles: dict[str, Profile] = {}
        self._told: list[dict] = []
        if deadline:
            self._add(self.moment, deadline)

    def _add(self, start: datetime, deadline: datetime) -> Profile:
        containers = {}
        for label, sequences in self.steps.items():
            number = str(uuid4())
            by_id = {named_id(number, sequence.label): sequence for sequence in sequences}
            containers[number] = Container(number, label, by_id)
        profile = Profile(start, deadline, containers)
        self.profiles[profile.id] = profile
        return profile

    @property
    def profile(self) -> Profile | None:
        """What was announced last, if anything was."""
        return next(reversed(self.profiles.values()), None)

    # Physics

    @property
    def running(self) -> tuple[Profile, Container] | None:
        """What is being done, or is interrupted."""
        for profile in self.profiles.values():
            for container in profile.containers.values():
                if container.status in ("EXECUTING", "INTERRUPTED"):
                    return profile, container
        return None

    @property
    def power(self) -> float:
        """The present power in W."""
        if not self.running:
            return 0.0
        _, container = self.running
        return container.sequence.power(container.progress) if container.status == "EXECUTING" else 0.0

    @property
    def doing(self) -> str:
        """What is being done, and whether it is interrupted."""
        if not self.running:
            return "nothing"
        _, container = self.running
        return f"{container.label}: {container.sequence.label}, {container.status.lower()}"

    def _changes(self) -> Iterator[datetime]:
        for profile in self.profiles.values():
            yield profile.deadline + TOLERANCE
        if self.running:
            _, container = self.running
            if container.status == "EXECUTING":
                for end in container.sequence.ends():
                    yield self.moment + end - container.progress

    def _live(self, seconds: float) -> None:
        if self.running:
            _, container = self.running
            if container.status == "EXECUTING":
                container.progress += seconds * SECOND

    def _come_to_an_end(self) -> None:
        if self.running:
            _, container = self.running
            if container.progress >= container.sequence.duration:
                self._finish(container, "FINISHED", "SUCCEEDED")
        for profile in self.profiles.values():
            late = self.moment >= profile.deadline + TOLERANCE and not profile.is_over()
            if late and not profile.is_late:
                profile.is_late = True
                undone = [each.label for each in profile.containers.values() if each.status != "FINISHED"]
                self.violations.append((profile.deadline, f"not done in time: {', '.join(undone)}"))

    def _finish(self, container: Container, status: str, told: str) -> None:
        container.status, container.ended = status, self.moment
        self.runs.append(Run(container.sequence.label, container.began, self.moment))
        self._update(container.instruction_id, told)

    def abort(self) -> None:
        """Stop what is being done, as one who opens the door: it will not be done, nor what comes after."""
        if self.running:
            profile, container = self.running
            self._finish(container, "ABORTED", "ABORTED")
            for each in profile.containers.values():
                if not each.began:
                    each.status = "ABORTED"
            self._forget_instructions_of(profile)

    # Instructions

    def _forget_instructions_of(self, profile: Profile) -> None:
        self._forget([each for each in self.pending if each["power_profile_id"] == profile.id])

    def instruction(
        self,
        sequence: str | None = None,
        at: datetime | None = None,
        container: str | None = None,
        kind: str = SCHEDULE,
        **changes,
    ) -> dict:
        """Return an instruction for what was announced last: a container and a sequence by their labels."""
        found = next(each for each in self.profile.containers.values() if container in (None, each.label))
        return example(
            kind,
            **{
                "id": str(uuid4()),
                "power_profile_id": self.profile.id,
                "sequence_container_id": found.id,
                "power_sequence_id": found.labelled(sequence),
                "execution_time": (at or self.moment).isoformat(),
            }
            | changes,
        )

    def _found(self, instruction: dict) -> tuple[Profile, Container]:
        profile = self.profiles[instruction["power_profile_id"]]
        return profile, profile.containers[instruction["sequence_container_id"]]

    def _problem(self, instruction: dict) -> str | None:
        if instruction["power_profile_id"] not in self.profiles:
            return f"power_profile_id: {instruction['power_profile_id']} is unknown"
        profile = self.profiles[instruction["power_profile_id"]]
        if instruction["sequence_container_id"] not in profile.containers:
            return f"sequence_container_id: {instruction['sequence_container_id']} is unknown"
        container = profile.containers[instruction["sequence_container_id"]]
        if instruction["power_sequence_id"] not in container.sequences:
            return f"power_sequence_id: {instruction['power_sequence_id']} is unknown"
        sequence = container.sequences[instruction["power_sequence_id"]]
        if instruction["message_type"] != SCHEDULE and not sequence.is_interruptible:
            return f"power_sequence_id: {sequence.label} cannot be interrupted"
        return None

    def _accepted(self, instruction: dict) -> None:
        _, container = self._found(instruction)
        if instruction["message_type"] == SCHEDULE and not container.began:
            container.status, container.selected = "SCHEDULED", instruction["power_sequence_id"]

    def _dropped(self, instruction: dict) -> None:
        """Be scheduled no longer, or as an instruction says that is still to come."""
        _, container = self._found(instruction)
        if container.status != "SCHEDULED" or instruction["message_type"] != SCHEDULE:
            return
        left = [
            each
            for each in self.pending
            if each["message_type"] == SCHEDULE and each["sequence_container_id"] == container.id
        ]
        container.status = "SCHEDULED" if left else "NOT_SCHEDULED"
        container.selected = left[0]["power_sequence_id"] if left else None

    def _execute(self, instruction: dict) -> str | None:
        act = {SCHEDULE: self._start_running, INTERRUPT: self._interrupt, CONTINUE: self._continue}
        return act[instruction["message_type"]](instruction, *self._found(instruction))

    def _start_running(self, instruction: dict, profile: Profile, container: Container) -> str | None:
        sequence = container.sequences[instruction["power_sequence_id"]]
        if container.began:
            return f"{container.label} was begun before"
        if sequence.abnormal_only and not instruction["abnormal_condition"]:
            return f"{sequence.label} is for abnormal conditions only"
        if self.running:
            return f"{self.running[1].label} is still running"
        if self.moment < profile.start:
            return self._violated(f"{container.label} is to begin before {profile.start}")
        undone = [each.label for each in profile.before(container) if each.status != "FINISHED"]
        if undone:
            return self._violated(f"{container.label} is to begin before {', '.join(undone)}")
        self._watch_pause(profile, container, sequence)
        container.status, container.selected = "EXECUTING", instruction["power_sequence_id"]
        container.began, container.instruction_id = self.moment, instruction["id"]
        self._update(instruction["id"], "STARTED")
        return None

    def _violated(self, text: str) -> str:
        self.violations.append((self.moment, text))
        return text

    def _watch_pause(self, profile: Profile, container: Container, sequence: Sequence) -> None:
        before = profile.before(container)
        if before and sequence.max_pause_before is not None:
            pause = self.moment - before[-1].ended
            if pause > sequence.max_pause_before + TOLERANCE:
                self._violated(f"a pause of {pause} before {container.label} is too long")

    def _interrupt(self, instruction: dict, _: Profile, container: Container) -> str | None:
        return self._switch(instruction, container, "EXECUTING", "INTERRUPTED")

    def _continue(self, instruction: dict, _: Profile, container: Container) -> str | None:
        return self._switch(instruction, container, "INTERRUPTED", "EXECUTING")

    def _switch(self, instruction: dict, container: Container, since: str, to: str) -> str | None:
        if container.status != since or container.selected != instruction["power_sequence_id"]:
            return f"{container.label} is {container.status}, and not {since}"
        container.status = to
        self._update(instruction["id"], "STARTED")
        self._update(instruction["id"], "SUCCEEDED")
        return None

    def _update(self, instruction_id: str | None, status: str) -> None:
        if instruction_id:
            super()._update(instruction_id, status)

    # Messages

    async def announce(self, deadline: datetime, start: datetime | None = None) -> Profile:
        """Have something to do between a moment (now) and a deadline, and tell so.

        It replaces what was announced before and was not yet begun.
        """
        self.advance(datetime.now(UTC))
        for profile in [each for each in self.profiles.values() if not each.has_begun()]:
            self._forget_instructions_of(profile)
            del self.profiles[profile.id]
            await self._say_under_control(lambda number=profile.id: [_revocation(number)])
        announced = self._add(start or self.moment, deadline)
        await self._say_under_control(lambda: [self._definition(announced), self._status()])
        return announced

    def _begin(self, control_type: str) -> None:
        """Keep what is left to do, but none of the instructions."""
        self.profiles = {each.id: each for each in self.profiles.values() if not each.is_over()}
        for profile in self.profiles.values():
            for container in profile.containers.values():
                container.instruction_id = None

    def _introduction(self) -> Iterator[dict]:
        for profile in self.profiles.values():
            yield self._definition(profile)
        if self.profiles:
            yield self._status()

    def _news(self) -> Iterable[dict]:
        """Return the status, if it is another than was told, but for the progress."""
        return [self._status()] if self.profiles and self._states() != self._told else []

    def _definition(self, profile: Profile) -> dict:
        return profile.definition() | {
            "power_sequences_containers": [
                {
                    "id": container.id,
                    "power_sequences": [
                        self._sequence(number, sequence) for number, sequence in container.sequences.items()
                    ],
                }
                for container in profile.containers.values()
            ]
        }

    def _sequence(self, number: str, sequence: Sequence) -> dict:
        made = {
            "id": number,
            "elements": [
                {
                    "duration": duration // MILLISECOND,
                    "power_values": [{"value_expected": power, "commodity_quantity": self.quantity}],
                }
                for duration, power in sequence.elements
            ],
            "is_interruptible": sequence.is_interruptible,
            "abnormal_condition_only": sequence.abnormal_only,
        }
        if sequence.max_pause_before is not None:
            made["max_pause_before"] = sequence.max_pause_before // MILLISECOND
        return made

    def _states(self) -> list[tuple]:
        return [
            (container.id, container.status, container.selected)
            for profile in self.profiles.values()
            for container in profile.containers.values()
        ]

    def _status(self) -> dict:
        self._told = self._states()
        statuses = [each for profile in self.profiles.values() for each in profile.statuses()]
        return example(STATUS, sequence_container_status=statuses)


def _revocation(number: str) -> dict:
    return example("RevokeObject", object_type="PPBC.PowerProfileDefinition", object_id=number)


def _sequence(label: str, *elements: tuple[float, float], **options) -> Sequence:
    """Return a sequence of elements (minutes, W)."""
    return Sequence(label, tuple((minutes * MINUTE, power) for minutes, power in elements), **options)


# Devices


class WashingMachine(ProfileDevice):
    """A washing machine with a long programme that takes little, and a short one that takes much."""

    steps: ClassVar = {
        "laundry": (
            _sequence("eco", (30, 1100), (110, 180), (20, 450)),
            _sequence("quick", (20, 2200), (30, 300), (10, 600)),
        )
    }

    def __init__(self, url: str, *, name: str = "Washing machine", **options) -> None:
        super().__init__(url, name=name, **options)


class Dishwasher(ProfileDevice):
    """A dishwasher, which washes and then dries, after a pause of half an hour at the most."""

    steps: ClassVar = {
        "wash": (_sequence("wash", (20, 2000), (40, 120), (15, 1800)),),
        "dry": (_sequence("dry", (25, 800), max_pause_before=30 * MINUTE),),
    }

    def __init__(self, url: str, *, name: str = "Dishwasher", **options) -> None:
        super().__init__(url, name=name, **options)


class Dryer(ProfileDevice):
    """A tumble dryer, which can be interrupted."""

    steps: ClassVar = {"drying": (_sequence("drying", (80, 2000), (20, 300), is_interruptible=True),)}

    def __init__(self, url: str, *, name: str = "Dryer", **options) -> None:
        super().__init__(url, name=name, **options)


class PoolPump(ProfileDevice):
    """A pump that is to run for six hours, in as many parts as may be."""

    steps: ClassVar = {"filtering": (_sequence("filtering", (360, 800), is_interruptible=True),)}

    def __init__(self, url: str, *, name: str = "Pool pump", **options) -> None:
        super().__init__(url, name=name, **options)
