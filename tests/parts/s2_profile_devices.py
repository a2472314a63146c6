"""Simulated devices under power profile based control (PPBC): programmes with a deadline."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, NamedTuple
from uuid import uuid4

from s2python.common import ControlType
from s2python.ppbc import (
    PPBCEndInterruptionInstruction,
    PPBCScheduleInstruction,
    PPBCStartInterruptionInstruction,
)

from tests.parts.s2_device import (
    MILLISECOND,
    MINUTE,
    SECOND,
    Controlled,
    ControlledDevice,
    named_id,
)
from tests.parts.s2_messages import Message, example

PPBC = ControlType.POWER_PROFILE_BASED_CONTROL.value
SCHEDULE = "PPBC.ScheduleInstruction"
INTERRUPT = "PPBC.StartInterruptionInstruction"
CONTINUE = "PPBC.EndInterruptionInstruction"
STATUS = "PPBC.PowerProfileStatus"
TOLERANCE = SECOND
"""By how much a pause or a deadline may be exceeded."""


class _ProfileBased(Controlled):
    control_type = ControlType.POWER_PROFILE_BASED_CONTROL
    instructions = (
        PPBCScheduleInstruction,
        PPBCStartInterruptionInstruction,
        PPBCEndInterruptionInstruction,
    )


class Sequence(NamedTuple):
    """A power sequence: one alternative to run a container, with elements of a duration and a power (W)."""

    label: str
    elements: tuple[tuple[timedelta, float], ...]
    is_interruptible: bool = False
    max_pause_before: timedelta | None = None
    abnormal_only: bool = False

    @property
    def duration(self) -> timedelta:
        """The duration without interruptions."""
        return sum((duration for duration, _ in self.elements), timedelta())

    def power(self, progress: timedelta) -> float:
        """Return the power (W) at a progress."""
        for duration, power in self.elements:
            if progress < duration:
                return power
            progress -= duration
        return 0.0

    def ends(self) -> Iterator[timedelta]:
        """Yield the progress at which each element ends."""
        progress = timedelta()
        for duration, _ in self.elements:
            progress += duration
            yield progress


class Run(NamedTuple):
    """A sequence that was run, and when it began and ended."""

    label: str
    start: datetime
    end: datetime


@dataclass
class Container:
    """A sequence container of a profile: its alternative sequences, and the progress of the selected one."""

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

    @property
    def running(self) -> Sequence:
        """The sequence of a container that is being run."""
        assert self.selected is not None, self.label
        return self.sequences[self.selected]

    def labelled(self, label: str | None) -> str:
        """Return the id of the sequence that has a label, by default of the first one."""
        return next(key for key, sequence in self.sequences.items() if label in (None, sequence.label))


@dataclass
class Profile:
    """A power profile: containers to run in order between two moments, and their progress."""

    start: datetime
    deadline: datetime
    containers: dict[str, Container]
    id: str = field(default_factory=lambda: str(uuid4()))
    is_late: bool = False

    def is_over(self) -> bool:
        """Return whether all containers are finished or aborted."""
        return all(container.status in ("FINISHED", "ABORTED") for container in self.containers.values())

    def has_begun(self) -> bool:
        """Return whether any container was started."""
        return any(container.began for container in self.containers.values())

    def before(self, container: Container) -> list[Container]:
        """Return the containers that precede one."""
        containers = list(self.containers.values())
        return containers[: containers.index(container)]

    def definition(self) -> Message:
        """Return the PPBC.PowerProfileDefinition."""
        return example(
            "PPBC.PowerProfileDefinition",
            id=self.id,
            start_time=self.start.isoformat(),
            end_time=self.deadline.isoformat(),
        )

    def statuses(self) -> list[Message]:
        """Return the status of every container."""
        return [
            {"power_profile_id": self.id, "sequence_container_id": container.id, "status": container.status}
            | ({"selected_sequence_id": container.selected} if container.selected else {})
            | ({"progress": round(container.progress / MILLISECOND)} if container.began else {})
            for container in self.containers.values()
        ]


type Steps = Mapping[str, tuple[Sequence, ...]]
"""Containers by label, each with its alternative sequences."""
type _States = list[tuple[str, str, str | None]]
"""The id, status and selected sequence of every container."""


class ProfileDevice(ControlledDevice):
    """A device that runs the power profiles that it announces, as scheduled.

    `steps` are its containers by label, each with its alternative sequences. With a `deadline` it announces
    a profile from now until then at its start. Violations are a container that is not finished at the
    deadline, that is started before its profile or before its predecessors, which is refused, and a pause
    that is too long.
    """

    role = "ENERGY_CONSUMER"
    offers: ClassVar[dict[str, type[Controlled]]] = {PPBC: _ProfileBased}
    as_json = frozenset({STATUS})
    programme: ClassVar[Steps] = {}
    """The default of `steps`."""

    def __init__(
        self,
        url: str,
        *,
        steps: Steps | None = None,
        deadline: datetime | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self.steps = steps or self.programme
        self.runs: list[Run] = []
        self.profiles: dict[str, Profile] = {}
        self._sent_states: _States = []
        if deadline:
            self._add(self.moment, deadline)

    def _add(self, start: datetime, deadline: datetime) -> Profile:
        containers = {}
        for label, sequences in self.steps.items():
            container_id = str(uuid4())
            by_id = {named_id(container_id, sequence.label): sequence for sequence in sequences}
            containers[container_id] = Container(container_id, label, by_id)
        profile = Profile(start, deadline, containers)
        self.profiles[profile.id] = profile
        return profile

    @property
    def profile(self) -> Profile | None:
        """The profile that was announced last, if any."""
        return next(reversed(self.profiles.values()), None)

    # Physics

    @property
    def running(self) -> tuple[Profile, Container] | None:
        """The profile and container that are being run, or are interrupted."""
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
        return container.running.power(container.progress) if container.status == "EXECUTING" else 0.0

    @property
    def doing(self) -> str:
        """The container and sequence that are being run, and their status."""
        if not self.running:
            return "nothing"
        _, container = self.running
        return f"{container.label}: {container.running.label}, {container.status.lower()}"

    def _changes(self) -> Iterator[datetime]:
        for profile in self.profiles.values():
            yield profile.deadline + TOLERANCE
        if self.running:
            _, container = self.running
            if container.status == "EXECUTING":
                for end in container.running.ends():
                    yield self.moment + end - container.progress

    def _live(self, seconds: float) -> None:
        if self.running:
            _, container = self.running
            if container.status == "EXECUTING":
                container.progress += seconds * SECOND

    def _come_to_an_end(self) -> None:
        if self.running:
            _, container = self.running
            if container.progress >= container.running.duration:
                self._finish(container, "FINISHED", "SUCCEEDED")
        for profile in self.profiles.values():
            is_late = self.moment >= profile.deadline + TOLERANCE and not profile.is_over()
            if is_late and not profile.is_late:
                profile.is_late = True
                undone = [part.label for part in profile.containers.values() if part.status != "FINISHED"]
                self.violations.append((profile.deadline, f"not done in time: {', '.join(undone)}"))

    def _finish(self, container: Container, status: str, instruction_status: str) -> None:
        assert container.began is not None
        container.status, container.ended = status, self.moment
        self.runs.append(Run(container.running.label, container.began, self.moment))
        self._update(container.instruction_id, instruction_status)

    def abort(self) -> None:
        """Abort the profile that is being run, as when a user opens the door."""
        if self.running:
            profile, container = self.running
            self._finish(container, "ABORTED", "ABORTED")
            for later in profile.containers.values():
                if not later.began:
                    later.status = "ABORTED"
            self._forget_instructions_of(profile)

    # Instructions

    def _forget_instructions_of(self, profile: Profile) -> None:
        self._forget([pending for pending in self.pending if pending["power_profile_id"] == profile.id])

    def instruction(
        self,
        sequence: str | None = None,
        at: datetime | None = None,
        container: str | None = None,
        kind: str = SCHEDULE,
        **changes: Any,
    ) -> Message:
        """Return an instruction for the last profile; container and sequence are given by their labels."""
        profile = self.profile
        assert profile is not None, "no profile was announced"
        part = next(part for part in profile.containers.values() if container in (None, part.label))
        return example(
            kind,
            **{
                "id": str(uuid4()),
                "power_profile_id": profile.id,
                "sequence_container_id": part.id,
                "power_sequence_id": part.labelled(sequence),
                "execution_time": (at or self.moment).isoformat(),
            }
            | changes,
        )

    def _instructed(self, instruction: Message) -> tuple[Profile, Container]:
        profile = self.profiles[instruction["power_profile_id"]]
        return profile, profile.containers[instruction["sequence_container_id"]]

    def _problem(self, instruction: Message) -> str | None:
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

    def _accepted(self, instruction: Message) -> None:
        _, container = self._instructed(instruction)
        if instruction["message_type"] == SCHEDULE and not container.began:
            container.status, container.selected = "SCHEDULED", instruction["power_sequence_id"]

    def _dropped(self, instruction: Message) -> None:
        """Withdraw the schedule of a container, or fall back to another pending instruction for it."""
        _, container = self._instructed(instruction)
        if container.status != "SCHEDULED" or instruction["message_type"] != SCHEDULE:
            return
        left = [
            pending
            for pending in self.pending
            if pending["message_type"] == SCHEDULE and pending["sequence_container_id"] == container.id
        ]
        container.status = "SCHEDULED" if left else "NOT_SCHEDULED"
        container.selected = left[0]["power_sequence_id"] if left else None

    def _execute(self, instruction: Message) -> str | None:
        act = {SCHEDULE: self._start_running, INTERRUPT: self._interrupt, CONTINUE: self._continue}
        return act[instruction["message_type"]](instruction, *self._instructed(instruction))

    def _start_running(self, instruction: Message, profile: Profile, container: Container) -> str | None:
        sequence = container.sequences[instruction["power_sequence_id"]]
        if container.began:
            return f"{container.label} was begun before"
        if sequence.abnormal_only and not instruction["abnormal_condition"]:
            return f"{sequence.label} is for abnormal conditions only"
        if self.running:
            return f"{self.running[1].label} is still running"
        if self.moment < profile.start:
            return self._violated(f"{container.label} is to begin before {profile.start}")
        undone = [part.label for part in profile.before(container) if part.status != "FINISHED"]
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
        if before and before[-1].ended and sequence.max_pause_before is not None:
            pause = self.moment - before[-1].ended
            if pause > sequence.max_pause_before + TOLERANCE:
                self._violated(f"a pause of {pause} before {container.label} is too long")

    def _interrupt(self, instruction: Message, _: Profile, container: Container) -> str | None:
        return self._switch(instruction, container, "EXECUTING", "INTERRUPTED")

    def _continue(self, instruction: Message, _: Profile, container: Container) -> str | None:
        return self._switch(instruction, container, "INTERRUPTED", "EXECUTING")

    def _switch(self, instruction: Message, container: Container, since: str, to: str) -> str | None:
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
        """Announce a profile between a moment (by default now) and a deadline, and send it.

        It replaces the profiles that have not begun.
        """
        self.advance(datetime.now(UTC))
        for profile in [profile for profile in self.profiles.values() if not profile.has_begun()]:
            self._forget_instructions_of(profile)
            del self.profiles[profile.id]
            await self._say_under_control(partial(_revocations, profile.id))
        announced = self._add(start or self.moment, deadline)
        await self._say_under_control(lambda: [self._definition(announced), self._status()])
        return announced

    def _begin(self, control_type: str) -> None:
        """Keep the profiles that are not over, but none of the instructions."""
        self.profiles = {key: profile for key, profile in self.profiles.items() if not profile.is_over()}
        for profile in self.profiles.values():
            for container in profile.containers.values():
                container.instruction_id = None

    def _introduction(self) -> Iterable[Message]:
        for profile in self.profiles.values():
            yield self._definition(profile)
        if self.profiles:
            yield self._status()

    def _news(self) -> Iterable[Message]:
        """Return the status, if more than the progress has changed since it was last sent."""
        return [self._status()] if self.profiles and self._states() != self._sent_states else []

    def _definition(self, profile: Profile) -> Message:
        return profile.definition() | {
            "power_sequences_containers": [
                {
                    "id": container.id,
                    "power_sequences": [
                        self._sequence(key, sequence) for key, sequence in container.sequences.items()
                    ],
                }
                for container in profile.containers.values()
            ]
        }

    def _sequence(self, sequence_id: str, sequence: Sequence) -> Message:
        message: Message = {
            "id": sequence_id,
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
            message["max_pause_before"] = sequence.max_pause_before // MILLISECOND
        return message

    def _states(self) -> _States:
        return [
            (container.id, container.status, container.selected)
            for profile in self.profiles.values()
            for container in profile.containers.values()
        ]

    def _status(self) -> Message:
        self._sent_states = self._states()
        statuses = [status for profile in self.profiles.values() for status in profile.statuses()]
        return example(STATUS, sequence_container_status=statuses)


def _revocations(profile_id: str) -> list[Message]:
    return [example("RevokeObject", object_type="PPBC.PowerProfileDefinition", object_id=profile_id)]


def _sequence(label: str, *elements: tuple[float, float], **options: Any) -> Sequence:
    """Return a sequence of elements (minutes, W)."""
    return Sequence(label, tuple((minutes * MINUTE, power) for minutes, power in elements), **options)


# Devices


class WashingMachine(ProfileDevice):
    """A washing machine with a long programme of low power, and a short one of high power."""

    programme: ClassVar[Steps] = {
        "laundry": (
            _sequence("eco", (30, 1100), (110, 180), (20, 450)),
            _sequence("quick", (20, 2200), (30, 300), (10, 600)),
        )
    }

    def __init__(self, url: str, *, name: str = "Washing machine", **options: Any) -> None:
        super().__init__(url, name=name, **options)


class Dishwasher(ProfileDevice):
    """A dishwasher, which washes and then dries, after a pause of at most half an hour."""

    programme: ClassVar[Steps] = {
        "wash": (_sequence("wash", (20, 2000), (40, 120), (15, 1800)),),
        "dry": (_sequence("dry", (25, 800), max_pause_before=30 * MINUTE),),
    }

    def __init__(self, url: str, *, name: str = "Dishwasher", **options: Any) -> None:
        super().__init__(url, name=name, **options)


class Dryer(ProfileDevice):
    """A tumble dryer, which can be interrupted."""

    programme: ClassVar[Steps] = {
        "drying": (_sequence("drying", (80, 2000), (20, 300), is_interruptible=True),)
    }

    def __init__(self, url: str, *, name: str = "Dryer", **options: Any) -> None:
        super().__init__(url, name=name, **options)


class PoolPump(ProfileDevice):
    """A pump that has to run for six hours, with any number of interruptions."""

    programme: ClassVar[Steps] = {"filtering": (_sequence("filtering", (360, 800), is_interruptible=True),)}

    def __init__(self, url: str, *, name: str = "Pool pump", **options: Any) -> None:
        super().__init__(url, name=name, **options)
