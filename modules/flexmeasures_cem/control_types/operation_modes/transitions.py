"""From one operation mode to another: over listed transitions, past the timers that block them.

Moments are seconds since 1970.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeIs

import flexmeasures_s2.rules as rules
import flexmeasures_s2.texts as texts

MARGIN_SECONDS = 1.0
"""The next transition begins this long after a timer or transition has finished, since clocks differ."""
SAME_FACTOR, SAME_SECONDS = 0.005, 1.0
"""Instructions that differ by less are the same instruction."""
MAX_SECONDS = 30 * 86_400.0
"""Longer than any plan: longer durations are cut to this."""
MAX_LABEL_CHARACTERS = 60


@dataclass(frozen=True)
class _Transition:
    """A transition to a mode: its duration (s), timers, and cost (currency)."""

    to: str
    duration: float
    start_timers: tuple[str, ...]
    blocking_timers: tuple[str, ...]
    cost: float


Transition = _Transition
Transitions = Mapping[str, Sequence[Transition]]
"""Transitions by the mode that they start from."""
Timers = dict[str, float]
"""By the timer's id: the moment at which the timer finishes, or its duration (s)."""
StatusTimes = Mapping[Any, float]
"""When statuses were received: by actuator (None: the only one), or by (actuator, timer)."""


class _Labelled(Protocol):
    """A part of a description with an id, and a label for users."""

    @property
    @pyscript_compile
    def id(self) -> Any:
        """Return the id: text, though s2-python declares a UUID."""

    @property
    @pyscript_compile
    def diagnostic_label(self) -> str | None:
        """Return the label, if it has one."""


Labelled = _Labelled


class _Mode(Protocol):
    """What operation modes have in common."""

    @property
    @pyscript_compile
    def id(self) -> str:
        """Return the id."""

    @property
    @pyscript_compile
    def label(self) -> str:
        """Return the label that users read."""

    @property
    @pyscript_compile
    def is_fixed(self) -> bool:
        """Return whether the factor changes nothing."""

    @property
    @pyscript_compile
    def is_permitted(self) -> bool:
        """Return whether the mode may be used in normal conditions."""


Mode = _Mode


class _Actuator(Protocol):
    """What actuators with operation modes have in common."""

    @property
    @pyscript_compile
    def id(self) -> str | None:
        """Return the id, or None where a device has only one actuator."""

    @property
    @pyscript_compile
    def label(self) -> str | None:
        """Return the label that users read, if the actuator has an id."""

    @property
    @pyscript_compile
    def modes(self) -> Mapping[str, Mode]:
        """Return the operation modes by id."""

    @property
    @pyscript_compile
    def transitions(self) -> Transitions:
        """Return the transitions, by the mode that they start from."""

    @property
    @pyscript_compile
    def durations(self) -> Timers:
        """Return how long each timer takes (s)."""


Actuator = _Actuator


@dataclass(frozen=True)
class _Step:
    """A transition that begins at `start` and is done at `end`."""

    start: float
    end: float
    to: str


Step = _Step


@dataclass(frozen=True)
class _Route:
    """The steps to a mode, the moment of arrival, their cost, and when each timer finishes then."""

    steps: tuple[Step, ...]
    arrival: float
    cost: float
    timers: Timers


Route = _Route


@dataclass(frozen=True)
class _Active:
    """An actuator's mode (None: unknown) and factor, reached at `ready`; when each timer finishes."""

    mode: str | None
    factor: float
    ready: float
    timers: dict[str, float]


Active = _Active


@dataclass(frozen=True)
class _Change:
    """An instruction to an actuator: the mode and factor from a moment on.

    `actuator` is None where a device has only one. `power` is the power (W) expected then; `active` is the
    state of the actuator that follows.
    """

    moment: float
    actuator: str | None
    mode: str
    factor: float
    power: float
    active: Active


Change = _Change


@pyscript_compile
def read(described_by: rules.Description) -> tuple[Transitions, Timers]:
    """Return the transitions of a description, and the durations of its timers (s).

    Transitions for an abnormal condition only are left out.
    """
    by_mode: dict[str, list[Transition]] = {}
    for described in described_by.transitions:
        if not described.abnormal_condition_only:
            transition = Transition(
                str(described.to),
                min(described.transition_duration.root / 1000, MAX_SECONDS)
                if described.transition_duration
                else 0.0,
                tuple(map(str, described.start_timers)),
                tuple(map(str, described.blocking_timers)),
                described.transition_costs or 0.0,
            )
            by_mode.setdefault(str(described.from_), []).append(transition)
    return by_mode, {
        str(timer.id): min(timer.duration.root / 1000, MAX_SECONDS) for timer in described_by.timers
    }


@pyscript_compile
def mode_of[ModeType](modes: Mapping[str, ModeType], mode_id: str | None) -> ModeType | None:
    """Return the operation mode with an id, or None if that is unknown (None) or not described."""
    return None if mode_id is None else modes.get(mode_id)


@pyscript_compile
def leaving(actuator: Actuator, mode_id: str | None) -> Sequence[Transition]:
    """Return the transitions of an actuator from a mode; none if the mode is unknown (None)."""
    return () if mode_id is None else actuator.transitions.get(mode_id, ())


@pyscript_compile
def is_timer_status(message: rules.ModeStatus | rules.TimerStatus) -> TypeIs[rules.TimerStatus]:
    """Return whether a status is of a timer."""
    return hasattr(message, "finished_at")


@pyscript_compile
def active(
    actuator: Actuator,
    status: rules.ModeStatus | None,
    finished: Timers,
    instructed: Change | None,
    status_received_at: StatusTimes,
    now: float,
) -> Active:
    """Return an actuator's Active: of its status (which may be None), or of a later instruction.

    `finished` has when each timer finishes by its TimerStatus, `instructed` is the last Change due by now, or
    None. A TimerStatus prevails over the timer's start that it was received after.
    """
    timers, factor, ready = dict(finished), 0.0, 0.0
    mode: str | None = None
    if status:
        mode, factor = str(status.active_operation_mode_id), status.operation_mode_factor
        began, ready, started = under_way(actuator, status, now)
        timers = latest(timers, not_reported_since(actuator, started, began, status_received_at))
    if (
        instructed
        and instructed.mode in actuator.modes
        and (status is None or instructed.moment > status_received_at.get(actuator.id, 0.0))
    ):
        mode, factor, ready = instructed.active.mode, instructed.active.factor, instructed.active.ready
    if instructed and instructed.mode == mode:
        timers = latest(
            timers,
            not_reported_since(actuator, instructed.active.timers, instructed.moment, status_received_at),
        )
    return Active(mode, factor, ready, {timer: end for timer, end in timers.items() if end > now})


@pyscript_compile
def not_reported_since(
    actuator: Actuator, timers: Timers, moment: float, status_received_at: StatusTimes
) -> Timers:
    """Return the timers without a TimerStatus since a moment."""
    return {
        timer: end
        for timer, end in timers.items()
        if status_received_at.get((actuator.id, timer), 0.0) < moment
    }


@pyscript_compile
def under_way(actuator: Actuator, status: rules.ModeStatus, now: float) -> tuple[float, float, Timers]:
    """Return when the transition of a status began, when it is done, and when its timers finish."""
    if status.transition_timestamp is None:
        return 0.0, 0.0, {}
    began = min(status.transition_timestamp.timestamp(), now + MAX_SECONDS)
    for transition in actuator.transitions.get(str(status.previous_operation_mode_id), ()):
        if transition.to == str(status.active_operation_mode_id):
            timers = {timer: began + actuator.durations[timer] for timer in transition.start_timers}
            return began, began + transition.duration, timers
    return began, began, {}


@pyscript_compile
def latest(timers: Timers, later: Timers) -> Timers:
    """Return when each timer finishes: the later of two moments."""
    return {timer: max(timers.get(timer, 0.0), later.get(timer, 0.0)) for timer in {**timers, **later}}


@pyscript_compile
def finished(memory: rules.Memory, key: rules.Key, now: float) -> Timers:
    """Return when each timer finishes, of the messages whose key is `key` and the timer's id."""
    return {
        key_of_timer[-1]: min(message.finished_at.timestamp(), now + MAX_SECONDS)
        for key_of_timer, message in memory.items()
        if key_of_timer[:-1] == key
    }


@pyscript_compile
def routes(
    transitions: Transitions,
    durations: Timers,
    permitted: Collection[str],
    mode: str,
    moment: float,
    timers: Timers,
) -> dict[str, Route]:
    """Return the fastest Route to each permitted mode that can be reached; of equally fast ones the cheapest.

    `timers` has when each running timer finishes.
    """
    reached: dict[str, Route] = {}
    none: tuple[Step, ...] = ()
    queue, number = [(moment, 0.0, 0, mode, none, timers)], 0
    while queue:
        arrival, cost, _number, at, steps, running = heapq.heappop(queue)
        if at in reached:
            continue
        reached[at] = Route(steps, arrival, cost, running)
        for transition in transitions.get(at, ()):
            if transition.to in reached or transition.to not in permitted:
                continue
            start = earliest(transition, arrival + MARGIN_SECONDS if steps else arrival, running)
            started = {timer: start + durations[timer] for timer in transition.start_timers}
            end, number = start + transition.duration, number + 1
            step = Step(start, end, transition.to)
            after = (end, cost + transition.cost, number, transition.to, (*steps, step), running | started)
            heapq.heappush(queue, after)
    return reached


@pyscript_compile
def earliest(transition: Transition, moment: float, timers: Timers) -> float:
    """Return the first moment, from `moment` on, at which no timer blocks a transition."""
    ends = [
        timers[timer] + MARGIN_SECONDS
        for timer in transition.blocking_timers
        if timers.get(timer, 0) > moment
    ]
    return max([moment, *ends])


@pyscript_compile
def is_same_instruction(change: Change, following: Change) -> bool:
    """Return whether two changes come to the same instruction."""
    return (
        change.actuator == following.actuator
        and change.mode == following.mode
        and abs(change.factor - following.factor) < SAME_FACTOR
        and abs(change.moment - following.moment) < SAME_SECONDS
    )


@pyscript_compile
def short_label(described: Labelled) -> str:
    """Return the label of an operation mode or actuator on one line, or its id."""
    return texts.label(described.diagnostic_label, MAX_LABEL_CHARACTERS) or texts.quoted(str(described.id))


@pyscript_compile
def label_of(actuators: Sequence[Actuator], change: Change) -> str:
    """Return the label of a change's operation mode, with the actuator's if there are several."""
    actuator = next((actuator for actuator in actuators if actuator.id == change.actuator), None)
    mode = mode_of(actuator.modes, change.mode) if actuator else None
    label = mode.label if mode else change.mode
    if len(actuators) > 1:
        return f"{actuator.label if actuator else change.actuator}: {label}"
    return label
