"""What simulated devices share: life by the clock, instructions, and s2-python's own connection."""

import asyncio
import json
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import partial
from itertools import chain, pairwise
from typing import Any, ClassVar, Self, TypedDict, cast, get_args
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5
from zoneinfo import ZoneInfo

from pydantic import BaseModel
from s2python.common import (
    Commodity,
    CommodityQuantity,
    ControlType,
    Duration,
    ReceptionStatusValues,
    RevokeObject,
    Role,
    RoleType,
)
from s2python.connection.asset_details import AssetDetails
from s2python.connection.async_ import CouldNotReceiveStatusReceptionError, S2AsyncConnection
from s2python.connection.async_.control_type.class_based import ResourceManagerHandler, S2ControlType
from s2python.connection.async_.medium.s2_medium import MediumClosedConnectionError
from s2python.connection.async_.medium.websocket import WebsocketClientMedium
from s2python.connection.types import S2ConnectionEventsAndMessages, SendOkayRunAsync
from s2python.message import S2Message, S2MessageWithID
from s2python.s2_parser import TYPE_TO_MESSAGE_CLASS, S2Parser

from tests.parts.s2_messages import Message, example

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LONGEST_LOG = 100_000
POWER = CommodityQuantity.ELECTRIC_POWER_L1
THREE_PHASES = CommodityQuantity.ELECTRIC_POWER_3_PHASE_SYMMETRIC
NOT_CONTROLABLE = ControlType.NOT_CONTROLABLE.value
AMSTERDAM = ZoneInfo("Europe/Amsterdam")
DISCONNECTED = (MediumClosedConnectionError, CouldNotReceiveStatusReceptionError)

type Curve = Callable[[datetime], float]
"""A function of time."""
type Telling = Coroutine[Any, Any, None]
"""What a device sends while a control type is active."""
type LogEntry[Doing] = tuple[datetime, Doing, float]
"""The end of a step, what the device did or had until then, and its power (W)."""


class Habit(Enum):
    """A deviation from S2 that Resource Managers in the field have."""

    ACTS_ON_RECEIPT = auto()
    """Execute an instruction on receipt, whatever its `execution_time`."""
    IGNORES_REVOCATION = auto()
    """Confirm a RevokeObject, and execute the instruction all the same."""
    SENDS_NULL = auto()
    """Send null for every optional field without a value, in every message."""
    REPORTS_UNDER_MESSAGE_ID = auto()
    """Name an instruction by its `message_id`, not its `id`, in InstructionStatusUpdate."""


class Device(ABC):
    """A device that sends what its active control type requires, until it is stopped or disconnected.

    It has no `habits` by default.
    """

    role: ClassVar[str]
    commodities: ClassVar[tuple[str, ...]] = ("ELECTRICITY",)
    provides_forecast: ClassVar[bool] = False
    as_json: frozenset[str] = frozenset()
    """The message types that s2-python's models would refuse or change; they are sent unchecked."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        name: str,
        resource_id: str | None = None,
        every: float | None = 1.0,
        quantity: str = POWER,
        further_quantities: Iterable[str] = (),
        habits: Iterable[Habit] = (),
    ) -> None:
        self.every = every
        self.habits = frozenset(habits)
        self.quantity = CommodityQuantity(quantity)
        self.control_type: str | None = None
        self.active = asyncio.Event()
        self._new_medium = partial(WebsocketClientMedium, url, bearer_token=token)
        self._details = AssetDetails(
            resource_id=UUID(resource_id) if resource_id else uuid4(),
            name=name,
            roles=[
                Role(role=RoleType(self.role), commodity=Commodity(commodity))
                for commodity in self.commodities
            ],
            instruction_processing_delay=Duration(root=0),
            provides_forecast=self.provides_forecast,
            provides_power_measurements=[self.quantity, *map(CommodityQuantity, further_quantities)],
        )

    async def __aenter__(self) -> Self:
        self._telling: list[asyncio.Task[None]] = []
        self._medium = self._new_medium()
        await self._medium.connect()
        self._connection = Connection(self._medium, sends_null=Habit.SENDS_NULL in self.habits)
        ResourceManagerHandler(self.control_types(), self._details).register_handlers(self._connection)
        self._running = asyncio.create_task(self._connection.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.stop()
        await self._medium.disconnect()
        with suppress(*DISCONNECTED):
            await self._running
        for telling in self._telling:
            with suppress(asyncio.CancelledError):
                await telling

    @abstractmethod
    def control_types(self) -> list[S2ControlType]:
        """Return the control types the device offers, the preferred one first."""

    def activate(self, control_type: str, telling: Telling) -> None:
        """Send the CEM what the control type requires."""
        self.control_type = control_type
        self._start(telling)
        self.active.set()

    def deactivate(self) -> None:
        """Stop sending."""
        self.control_type = None
        self.active.clear()
        for telling in self._telling:
            telling.cancel()

    async def say(self, message: Message) -> None:
        """Send a message, and wait until the CEM has confirmed it."""
        is_unchecked = message["message_type"] in self.as_json
        parsed = unchecked(message) if is_unchecked else S2Parser.parse_as_any_message(message)
        await self._connection.send_msg_and_await_reception_status(cast(S2MessageWithID, parsed))

    def _start(self, telling: Telling) -> None:
        task = asyncio.create_task(_while_connected(telling))
        task.add_done_callback(lambda _task: telling.close())
        self._telling.append(task)


async def _while_connected(telling: Telling) -> None:
    with suppress(*DISCONNECTED):
        await telling


@dataclass
class _Unchecked:
    """A message without one of s2-python's models: only what its connection uses of a message."""

    message: Message

    @property
    def message_id(self) -> UUID:
        """The id that its ReceptionStatus refers to."""
        return UUID(self.message["message_id"])

    def to_json(self) -> str:
        return json.dumps(self.message)


def unchecked(message: Message) -> S2Message:
    """Return a message for s2-python's connection that is sent without a check."""
    return cast(S2Message, _Unchecked(message))


class ControlledDevice(Device):
    """A device that is simulated along the clock and executes instructions at their time.

    It sends updates every `every` seconds, or with None only on `tell()`. `also` are control types that it
    offers after its own; without control it only measures and forecasts.
    """

    offers: ClassVar[dict[str, type["Controlled"]]]
    """Its own control types, the preferred one first."""

    def __init__(
        self,
        url: str,
        *,
        start: datetime | None = None,
        also: Iterable[str] = (NOT_CONTROLABLE,),
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self.moment = start or datetime.now(UTC)
        self.also = tuple(also)
        self.log: list[LogEntry[Any]] = [(self.moment, None, 0.0)]
        self.instructions: list[Message] = []
        self.revoked: set[str] = set()
        self.rejected: list[tuple[str, str]] = []
        self.violations: list[tuple[datetime, str | float]] = []
        """What the device should never have to do, or the fill level that a storage was driven to."""
        self._agenda: list[tuple[datetime, int, Message]] = []
        self._updates: list[Message] = []
        self._message_ids: dict[str, str] = {}
        self._before: str | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._before = None
        return await super().__aenter__()

    # Physics

    @property
    @abstractmethod
    def power(self) -> float:
        """The present power in W."""

    def advance(self, until: datetime) -> None:
        """Simulate the device up to a moment, executing instructions as they fall due."""
        while self.moment < until:
            self._step(until)
            self._settle()

    def energy(self, start: datetime, end: datetime) -> float:
        """Return the net energy consumed (Wh) between two moments, as far as the log goes back."""
        return sum(
            power * max(timedelta(), min(to, end) - max(since, start)) / HOUR
            for since, to, power in self._logged()
        )

    def cost(self, price: Curve) -> float:
        """Return the cost of the energy in the log (EUR) at a price in EUR/kWh."""
        return sum(power / 1000 * (to - since) / HOUR * price(since) for since, to, power in self._logged())

    def _logged(self) -> Iterator[tuple[datetime, datetime, float]]:
        for (since, _, _), (to, _, power) in pairwise(self.log):
            yield since, to, power

    def _step(self, until: datetime) -> None:
        """Simulate until something may change, to the next whole minute at most."""
        since, power, doing = self.moment, self.power, self._doing()
        ends = [moment for moment, _, _ in self._agenda[:1]]
        ends += [moment for moment in self._changes() if moment > since]
        self.moment = min(until, floor(since, MINUTE) + MINUTE, *ends)
        self._live((self.moment - since) / SECOND)
        self._note(since, doing, power)

    def _changes(self) -> Iterable[datetime]:
        """Return the moments at which something may change without an instruction."""
        return ()

    def _live(self, seconds: float) -> None:
        """Add up the effects of the past seconds, during which nothing changed."""

    @property
    @abstractmethod
    def doing(self) -> str:
        """What the device does now, in words."""

    def _doing(self) -> object:
        """Return what the log keeps of the present state, besides the power."""
        return self.doing

    def _note(self, since: datetime, doing: object, power: float) -> None:
        """Log a step, merged with the steps before it in the same minute if they are alike."""
        entry = (self.moment, doing, power)
        if len(self.log) > 1 and since != floor(since, MINUTE) and self._alike(self.log[-1], entry):
            self.log[-1] = entry
        else:
            self.log.append(entry)
        if len(self.log) > 2 * LONGEST_LOG:
            del self.log[:-LONGEST_LOG]

    def _alike(self, last: LogEntry[Any], entry: LogEntry[Any]) -> bool:
        return last[1:] == entry[1:]

    # Instructions

    @property
    def pending(self) -> list[Message]:
        """The instructions that are accepted and not yet executed, in order of execution."""
        return [instruction for _, _, instruction in self._agenda]

    def instruct(self, instruction: Message) -> str | None:
        """Accept an instruction, and execute it if it is due; else return why it is rejected."""
        self.instructions.append(instruction)
        if problem := self._problem(instruction):
            self.rejected.append((instruction["id"], problem))
            return problem
        self._message_ids[instruction["id"]] = instruction["message_id"]
        self._update(instruction["id"], "ACCEPTED")
        insort(self._agenda, (self.due(instruction), len(self.instructions), instruction))
        self._accepted(instruction)
        self._settle()
        return None

    def due(self, instruction: Message) -> datetime:
        """Return when the device executes an instruction that it receives now."""
        return self.moment if Habit.ACTS_ON_RECEIPT in self.habits else executed_at(instruction)

    @abstractmethod
    def _problem(self, instruction: Message) -> str | None:
        """Return which field of an instruction has an unknown id or is out of bounds, if any."""

    @abstractmethod
    def _execute(self, instruction: Message) -> str | None:
        """Execute an instruction that is due; return why it cannot be executed, if so."""

    def _accepted(self, instruction: Message) -> None:
        """Prepare for an instruction that was accepted."""

    def _dropped(self, instruction: Message) -> None:
        """Undo the preparation for an instruction that will not be executed."""

    def revoke(self, instruction_id: str) -> str | None:
        """Drop an instruction that is not yet executed; return an error if its id is unknown."""
        if Habit.IGNORES_REVOCATION in self.habits:
            return None
        if all(instruction["id"] != instruction_id for instruction in self.instructions):
            return f"object_id: {instruction_id} is no instruction"
        for entry in [entry for entry in self._agenda if entry[2]["id"] == instruction_id]:
            self._agenda.remove(entry)
            self._dropped(entry[2])
            self.revoked.add(instruction_id)
            self._update(instruction_id, "REVOKED")
        return None

    def _forget(self, instructions: list[Message]) -> None:
        """Drop pending instructions without a status update."""
        self._agenda = [entry for entry in self._agenda if entry[2] not in instructions]
        for instruction in instructions:
            self._dropped(instruction)

    def _settle(self) -> None:
        """End what is over, and execute the instructions that are due."""
        self._come_to_an_end()
        while self._agenda and self._agenda[0][0] <= self.moment:
            _, _, instruction = self._agenda.pop(0)
            if refusal := self._execute(instruction):
                self._dropped(instruction)
                self.rejected.append((instruction["id"], refusal))
                self._update(instruction["id"], "REJECTED")

    def _come_to_an_end(self) -> None:
        """End what is over, such as a transition."""

    def _update(self, instruction_id: str, status: str) -> None:
        by_message_id = Habit.REPORTS_UNDER_MESSAGE_ID in self.habits
        self._updates.append(
            example(
                "InstructionStatusUpdate",
                instruction_id=self._message_ids[instruction_id] if by_message_id else instruction_id,
                status_type=status,
                timestamp=self.moment.isoformat(),
            )
        )

    # Messages

    @property
    def is_controlled(self) -> bool:
        """Whether a control type is active under which there are instructions."""
        return self.control_type in self.offers

    def control_types(self) -> list[S2ControlType]:
        """Offer its own control types, then the others."""
        own = [kind(self, self._introduce) for kind in self.offers.values()]
        return own + [OTHERS[name](self, self._tell_all_rounds) for name in self.also]

    def activate(self, control_type: str, telling: Telling) -> None:
        """Start a control type without pending instructions; any left by another one are a violation."""
        self.advance(datetime.now(UTC))
        if self._before not in (None, control_type):
            for instruction in self.pending:
                self.violations.append(
                    (self.moment, f"{instruction['message_type']} {instruction['id']} was left behind")
                )
        self._forget(self.pending)
        self._updates.clear()
        super().activate(control_type, telling)
        self._begin(control_type)

    def _begin(self, control_type: str) -> None:
        """Prepare for a new session, or for a change of the control type."""

    def deactivate(self) -> None:
        """Stop sending."""
        self._before = self.control_type or self._before
        super().deactivate()

    async def tell(self) -> None:
        """Send at once what is new, and the measured power."""
        async with self._turn:
            self.advance(datetime.now(UTC))
            if self.is_controlled:
                await self._say_updates()
                for message in self._news():
                    await self.say(message)
            if self.control_type:
                for message in self._forecast_news():
                    await self.say(message)
                await self.say(measurement(self.moment, self._measured()))

    def report(self) -> None:
        """Send the pending InstructionStatusUpdates soon."""
        self._start(self._report())

    async def _report(self) -> None:
        async with self._turn:
            await self._say_updates()

    async def _say_updates(self) -> None:
        while self._updates:
            await self.say(self._updates.pop(0))

    async def _say_under_control(self, messages: Callable[[], Iterable[Message]]) -> None:
        """Send messages at once, if one of the device's own control types is active."""
        async with self._turn:
            if self.is_controlled:
                for message in messages():
                    await self.say(message)

    async def _introduce(self) -> None:
        """Send the introduction, then regular updates."""
        async with self._turn:
            self.advance(datetime.now(UTC))
            for message in self.introduction():
                await self.say(message)
        await self._tell_rounds()

    def introduction(self) -> Iterable[Message]:
        """Return the first messages: those that the active control type requires, and the forecast."""
        return chain(self._introduction(), self._forecast_news())

    async def _tell_all_rounds(self) -> None:
        """Send regular updates, the first one at once if there is a forecast to send."""
        if self.every is not None and self.provides_forecast:
            await self.tell()
        await self._tell_rounds()

    async def _tell_rounds(self) -> None:
        while self.every is not None:
            await asyncio.sleep(self.every)
            await self.tell()

    @abstractmethod
    def _introduction(self) -> Iterable[Message]:
        """Return the messages that the active control type requires at its start."""

    @abstractmethod
    def _news(self) -> Iterable[Message]:
        """Return messages about what changed since it was last sent."""

    def _forecast_news(self) -> Iterable[Message]:
        """Return the PowerForecast, when one is due."""
        return ()

    def _measured(self) -> dict[str, float]:
        """Return the present measurements, by commodity quantity."""
        return {self.quantity: self.power}


# Operation modes


type ActuatorState = tuple[str, float, str | None, datetime | None]
"""An actuator's mode, factor and previous mode, and the moment of the transition."""


@dataclass
class StateMachine:
    """An actuator of a description: its mode and factor, its transition and its timers.

    `ready` is when the current transition ends, if any; `under_way` are the ids of the instructions that
    wait for it. `timers` are the moments at which timers finish, by id; `timers_to_send` those started since
    their last status; `sent_state` is the state in the last status.
    """

    description: Message
    factor: float = 0.0
    previous: str | None = None
    changed: datetime | None = None
    ready: datetime | None = None
    under_way: list[str] = field(default_factory=list)
    timers: dict[str, datetime] = field(default_factory=dict)
    timers_to_send: list[str] = field(default_factory=list)
    sent_state: ActuatorState | None = None

    def __post_init__(self) -> None:
        self.modes: dict[str, Message] = {mode["id"]: mode for mode in self.description["operation_modes"]}
        self.transitions: dict[tuple[str, str], Message] = {
            (transition["from"], transition["to"]): transition
            for transition in self.description["transitions"]
        }
        self.mode = next(iter(self.modes))

    def between(self, ends: Message) -> float:
        """Return the value of a NumberRange at the present factor."""
        start: float = ends["start_of_range"]
        end: float = ends["end_of_range"]
        return start + self.factor * (end - start)

    def refusal(self, mode: str, moment: datetime, abnormal: bool) -> str | None:
        """Return why the device cannot go to a mode, or None if it can."""
        if mode == self.mode:
            return None
        names = f"{self.label(self.mode)} to {self.label(mode)}"
        transition = self.transitions.get((self.mode, mode))
        if transition is None:
            return f"no transition from {names}"
        if not abnormal and self.modes[mode]["abnormal_condition_only"]:
            return f"{self.label(mode)} is for abnormal conditions only"
        if not abnormal and transition["abnormal_condition_only"]:
            return f"the transition from {names} is for abnormal conditions only"
        for timer in transition["blocking_timers"]:
            if timer in self.timers and self.timers[timer] > moment:
                return f"a timer blocks the transition from {names} until {self.timers[timer]}"
        return None

    def leave(self, mode: str, moment: datetime) -> list[str]:
        """Start the transition to a mode; return the instructions whose transition is aborted."""
        transition = self.transitions[self.mode, mode]
        durations = {timer["id"]: timer["duration"] for timer in self.description["timers"]}
        for timer in transition["start_timers"]:
            self.timers[timer] = moment + durations[timer] * MILLISECOND
            self.timers_to_send.append(timer)
        duration = transition.get("transition_duration", 0) * MILLISECOND
        self.previous, self.mode, self.changed = self.mode, mode, moment
        self.ready = moment + duration if duration else None
        aborted, self.under_way = self.under_way, []
        return aborted

    def arrive(self) -> list[str]:
        """End the transition; return the instructions that waited for it."""
        self.ready = None
        done, self.under_way = self.under_way, []
        return done

    def jump(self, mode: str, factor: float, moment: datetime) -> None:
        """Go to a mode at once, regardless of transitions and timers."""
        if mode != self.mode:
            self.previous, self.mode, self.changed = self.mode, mode, moment
        self.factor, self.ready = factor, None

    def doing(self) -> str:
        """Return the mode and the factor in words, or the mode that a transition leads to."""
        if self.ready:
            return f"to {self.label(self.mode)}"
        return f"{self.label(self.mode)}, factor {self.factor:.2f}"

    def label(self, mode: str) -> str:
        """Return the label of a mode."""
        label: str = self.modes[mode].get("diagnostic_label", mode)
        return label

    def labelled(self, label: str) -> str:
        """Return the mode that has a label."""
        return next(mode for mode in self.modes if self.label(mode) == label)

    def state(self) -> ActuatorState:
        """Return what the status contains."""
        return self.mode, self.factor, self.previous, self.changed

    def status(self, message_type: str, **ids: str) -> Message:
        """Return a status message of a type, with the ids that it has."""
        self.sent_state = self.state()
        return {
            "message_type": message_type,
            "message_id": str(uuid4()),
            **ids,
            "active_operation_mode_id": self.mode,
            "operation_mode_factor": self.factor,
        } | (
            {"previous_operation_mode_id": self.previous, "transition_timestamp": self.changed.isoformat()}
            if self.changed
            else {}
        )

    def timer_status(self, message_type: str, timer: str, **ids: str) -> Message:
        """Return the status of a timer that was started."""
        return example(message_type, timer_id=timer, **ids, finished_at=self.timers[timer].isoformat())


class ModeDevice[Machine: StateMachine](ControlledDevice):
    """A device whose actuators are state machines: instructions take them from mode to mode."""

    prefix: ClassVar[str]
    """The prefix of its message types."""
    status_type: ClassVar[str] = "ActuatorStatus"
    mode_field: ClassVar[str] = "operation_mode_id"
    actuators: dict[str, Machine]
    description: Message

    def actuator_of(self, instruction: Message) -> Machine | None:
        """Return the actuator that an instruction is for, if it exists."""
        return self.actuators.get(instruction["actuator_id"])

    def ids_of(self, actuator: str) -> dict[str, str]:
        """Return the fields by which a message identifies an actuator."""
        return {"actuator_id": actuator}

    def instruction(
        self,
        mode: str,
        factor: float = 1.0,
        at: datetime | None = None,
        actuator: str | None = None,
        **changes: Any,
    ) -> Message:
        """Return an instruction for a mode, and an actuator if there are several, by their labels."""
        actuator_id, machine = self._labelled(actuator)
        return example(
            f"{self.prefix}.Instruction",
            **{
                "id": str(uuid4()),
                **self.ids_of(actuator_id),
                self.mode_field: machine.labelled(mode),
                "operation_mode_factor": factor,
                "execution_time": (at or self.moment).isoformat(),
            }
            | changes,
        )

    def _labelled(self, actuator: str | None) -> tuple[str, Machine]:
        return next(
            (actuator_id, machine)
            for actuator_id, machine in self.actuators.items()
            if actuator in (None, machine.description.get("diagnostic_label"))
        )

    def switch(self, mode: str, factor: float = 1.0, actuator: str | None = None) -> None:
        """Go to a mode at once, as when a user operates the device by hand."""
        _, machine = self._labelled(actuator)
        machine.jump(machine.labelled(mode), factor, self.moment)

    @property
    def doing(self) -> str:
        """The mode and factor of every actuator."""
        if len(self.actuators) == 1:
            return next(iter(self.actuators.values())).doing()
        return "; ".join(
            f"{machine.description['diagnostic_label']} {machine.doing()}"
            for machine in self.actuators.values()
        )

    def _problem(self, instruction: Message) -> str | None:
        machine = self.actuator_of(instruction)
        if machine is None:
            return f"actuator_id: {instruction['actuator_id']} is unknown"
        if instruction[self.mode_field] not in machine.modes:
            return f"{self.mode_field}: {instruction[self.mode_field]} is unknown"
        if not 0 <= instruction["operation_mode_factor"] <= 1:
            return f"operation_mode_factor: {instruction['operation_mode_factor']} is not in 0..1"
        return None

    def _changes(self) -> Iterable[datetime]:
        return (machine.ready for machine in self.actuators.values() if machine.ready)

    def _come_to_an_end(self) -> None:
        for machine in self.actuators.values():
            if machine.ready and machine.ready <= self.moment:
                for instruction_id in machine.arrive():
                    self._update(instruction_id, "SUCCEEDED")

    def _execute(self, instruction: Message) -> str | None:
        machine = self._instructed(instruction)
        mode = instruction[self.mode_field]
        if refusal := machine.refusal(mode, self.moment, instruction["abnormal_condition"]):
            return refusal
        self._update(instruction["id"], "STARTED")
        if mode != machine.mode:
            for instruction_id in machine.leave(mode, self.moment):
                self._update(instruction_id, "ABORTED")
        machine.factor = instruction["operation_mode_factor"]
        if machine.ready:
            machine.under_way.append(instruction["id"])
        else:
            self._update(instruction["id"], "SUCCEEDED")
        return None

    def _instructed(self, instruction: Message) -> Machine:
        """Return the actuator of an instruction that was accepted."""
        machine = self.actuator_of(instruction)
        assert machine is not None, instruction
        return machine

    def _begin(self, control_type: str) -> None:
        for machine in self.actuators.values():
            machine.under_way.clear()

    def _described(self) -> Message:
        """Return the SystemDescription, valid from now on."""
        return self.description | {"message_id": str(uuid4()), "valid_from": self.moment.isoformat()}

    def _statuses(self) -> Iterator[Message]:
        """Return the status of every actuator and of its running timers."""
        for actuator, machine in self.actuators.items():
            machine.timers_to_send.clear()
            yield machine.status(f"{self.prefix}.{self.status_type}", **self.ids_of(actuator))
            for timer, finished_at in machine.timers.items():
                if finished_at > self.moment:
                    yield machine.timer_status(f"{self.prefix}.TimerStatus", timer, **self.ids_of(actuator))

    def _status_news(self) -> Iterator[Message]:
        """Return the status of every actuator that changed, and of the timers that started."""
        for actuator, machine in self.actuators.items():
            if machine.state() != machine.sent_state:
                yield machine.status(f"{self.prefix}.{self.status_type}", **self.ids_of(actuator))
            while machine.timers_to_send:
                timer = machine.timers_to_send.pop(0)
                yield machine.timer_status(f"{self.prefix}.TimerStatus", timer, **self.ids_of(actuator))


class Rule(TypedDict, total=False):
    """A transition: the labels of the timers that it starts or is blocked by, its duration and cost (EUR)."""

    starts: Iterable[str]
    blocked_by: Iterable[str]
    seconds: float
    costs: float
    abnormal: bool


type Rules = Mapping[tuple[str, str], Rule]
"""Transitions by the labels of the modes that they lead from and to."""
type Timers = Mapping[str, timedelta]
"""The durations of timers by label."""


def transitions(
    label: str,
    ids: Mapping[str, str],
    modes: Iterable[str],
    rules: Rules,
    timers: Timers | None = None,
) -> Message:
    """Return the transitions and timers of a description, from labels; `ids` are the ids by label."""
    assert {mode for pair in rules for mode in pair} <= set(modes)
    return {
        "transitions": [
            {
                "id": named_id(label, since, to),
                "from": ids[since],
                "to": ids[to],
                "start_timers": [ids[timer] for timer in rule.get("starts", ())],
                "blocking_timers": [ids[timer] for timer in rule.get("blocked_by", ())],
                "transition_duration": round(rule.get("seconds", 0) * 1000),
                "abnormal_condition_only": rule.get("abnormal", False),
            }
            | ({"transition_costs": rule["costs"]} if "costs" in rule else {})
            for (since, to), rule in rules.items()
        ],
        "timers": [
            {"id": ids[timer], "diagnostic_label": timer, "duration": duration // MILLISECOND}
            for timer, duration in (timers or {}).items()
        ],
    }


def between_all(*modes: str, seconds: float = 0) -> dict[tuple[str, str], Rule]:
    """Return the transitions between every two modes."""
    return {(since, to): {"seconds": seconds} for since in modes for to in modes if since != to}


# Values


def floor(moment: datetime, period: timedelta) -> datetime:
    """Return the start of the period that a moment is in."""
    return moment - (moment - EPOCH) % period


def executed_at(instruction: Message) -> datetime:
    """Return the execution time of an instruction."""
    return datetime.fromisoformat(instruction["execution_time"])


def number_range(low: float, high: float) -> Message:
    """Return a NumberRange."""
    return {"start_of_range": low, "end_of_range": high}


def power_range(quantity: str, low: float, high: float | None = None) -> Message:
    """Return a PowerRange, of one value if no end is given."""
    return number_range(low, low if high is None else high) | {"commodity_quantity": quantity}


def measurement(moment: datetime, measured: dict[str, float]) -> Message:
    """Return a PowerMeasurement of values by commodity quantity."""
    return example(
        "PowerMeasurement",
        measurement_timestamp=moment.isoformat(),
        values=[{"value": value, "commodity_quantity": quantity} for quantity, value in measured.items()],
    )


def quarterly(curve: Curve, start: datetime) -> list[float]:
    """Return the means of a curve over the quarters of an hour of a day."""
    return [
        sum(curve(start + quarter * QUARTER + minute * MINUTE) for minute in range(15)) / 15
        for quarter in range(96)
    ]


def power_forecast(start: datetime, quantity: str, powers: Iterable[float]) -> Message:
    """Return a PowerForecast of powers (W) by quarter of an hour."""
    return example(
        "PowerForecast",
        start_time=start.isoformat(),
        elements=[
            {
                "duration": QUARTER // MILLISECOND,
                "power_values": [{"value_expected": power, "commodity_quantity": quantity}],
            }
            for power in powers
        ],
    )


def named_id(*names: str) -> str:
    """Return an id that is always the same for the same names."""
    return str(uuid5(NAMESPACE_URL, "/".join(names)))


# On the connection of s2-python


def with_nulls(value: object, model: type[BaseModel] | None) -> object:
    """Return a message, or a part of one, with null for the optional fields of its model that are absent."""
    if isinstance(value, list):
        return [with_nulls(item, model) for item in value]
    if not isinstance(value, dict) or model is None:
        return value
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    left_out = [
        name
        for name, field in fields.items()
        if name not in value and not field.is_required() and field.default is None
    ]
    present = {name: with_nulls(part, _model_of(fields[name].annotation)) for name, part in value.items()}
    return present | dict.fromkeys(left_out)


def _model_of(annotation: object) -> type[BaseModel] | None:
    """Return the model in an annotation: the model itself, that of an Optional, or that of a list's items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_of(argument) for argument in get_args(annotation))
    return next((model for model in models if model), None)


class Connection(S2AsyncConnection):
    """A connection that can refuse a message: s2-python itself only answers OK or PERMANENT_ERROR.

    With `sends_null`, optional fields without a value are sent as null.
    """

    def __init__(self, medium: WebsocketClientMedium, *, sends_null: bool = False) -> None:
        super().__init__(medium)
        self._refused: set[UUID] = set()
        self._sends_null = sends_null

    async def send_and_forget(self, s2_msg: S2Message) -> None:
        if self._sends_null:
            message = json.loads(s2_msg.to_json())
            model = TYPE_TO_MESSAGE_CLASS.get(message["message_type"])
            s2_msg = unchecked(cast(Message, with_nulls(message, model)))
        await super().send_and_forget(s2_msg)

    async def refuse(self, message_id: UUID, reason: str) -> None:
        """Answer INVALID_CONTENT instead of the OK that s2-python sends after every handler."""
        await self.respond_with_reception_status(message_id, ReceptionStatusValues.INVALID_CONTENT, reason)
        self._refused.add(message_id)

    async def respond_with_reception_status(
        self, subject_message_id: UUID, status: ReceptionStatusValues, diagnostic_label: str
    ) -> None:
        if subject_message_id in self._refused:
            self._refused.remove(subject_message_id)
            return
        await super().respond_with_reception_status(subject_message_id, status, diagnostic_label)


class DeviceControlType[D: Device](S2ControlType):
    """A control type: the device sends what it requires while it is active."""

    control_type: ClassVar[ControlType]

    def __init__(self, device: D, telling: Callable[[], Telling]) -> None:
        self.device = device
        self.telling = telling

    def get_protocol_control_type(self) -> ControlType:
        return self.control_type

    def register_handlers(self, connection: S2AsyncConnection) -> None:
        """Take no messages."""

    async def activate(self, connection: S2AsyncConnection) -> None:
        self.device.activate(self.control_type.value, self.telling())

    async def deactivate(self, connection: S2AsyncConnection) -> None:
        self.device.deactivate()


class NotControlable(DeviceControlType[Device]):
    """No control."""

    control_type = ControlType.NOT_CONTROLABLE


OTHERS = {NOT_CONTROLABLE: NotControlable}
"""Control types that any device can offer after its own."""


class Controlled(DeviceControlType[ControlledDevice]):
    """A control type with instructions, which the device executes while it is active."""

    instructions: ClassVar[tuple[type[S2MessageWithID], ...]]
    """The classes of the instructions; all can be revoked."""

    def register_handlers(self, connection: S2AsyncConnection) -> None:
        for instruction in self.instructions:
            connection.register_handler(instruction, self.handle_instruction)
        connection.register_handler(RevokeObject, self.handle_revocation)

    async def handle_instruction(
        self,
        connection: S2AsyncConnection,
        message: S2ConnectionEventsAndMessages,
        send_okay: SendOkayRunAsync,
    ) -> None:
        assert isinstance(message, self.instructions)
        instruction = message.to_json_dict()
        await self._answer(connection, message, send_okay, lambda: self.device.instruct(instruction))

    async def handle_revocation(
        self,
        connection: S2AsyncConnection,
        message: S2ConnectionEventsAndMessages,
        send_okay: SendOkayRunAsync,
    ) -> None:
        assert isinstance(message, RevokeObject)
        object_type, object_id = message.object_type.value, str(message.object_id)
        revocable = [kind.model_fields["message_type"].default for kind in self.instructions]

        def revoke() -> str | None:
            if object_type not in revocable:
                return f"object_type: there is no {object_type}"
            return self.device.revoke(object_id)

        await self._answer(connection, message, send_okay, revoke)

    async def _answer(
        self,
        connection: S2AsyncConnection,
        message: S2MessageWithID,
        send_okay: SendOkayRunAsync,
        obey: Callable[[], str | None],
    ) -> None:
        """Confirm a message of this control type, or refuse it; then report on the instructions."""
        assert isinstance(connection, Connection)
        assert send_okay is not None
        problem: str | None = f"{self.control_type.value} is not active"
        if self.device.control_type == self.control_type.value:
            self.device.advance(datetime.now(UTC))
            problem = obey()
        if problem:
            await connection.refuse(message.message_id, problem)
        await send_okay()
        if not problem:
            self.device.report()
