"""Simulated devices, on the connection that s2-python has for resource managers."""

import asyncio
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import partial
from itertools import pairwise
from typing import ClassVar, NamedTuple, Self
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5
from zoneinfo import ZoneInfo

from s2python.common import (
    CommodityQuantity,
    ControlType,
    Duration,
    ReceptionStatusValues,
    RevokableObjects,
    RevokeObject,
    Role,
)
from s2python.connection.asset_details import AssetDetails
from s2python.connection.async_ import CouldNotReceiveStatusReceptionError, S2AsyncConnection
from s2python.connection.async_.control_type.class_based import (
    FRBCControlType,
    NoControlControlType,
    ResourceManagerHandler,
    S2ControlType,
)
from s2python.connection.async_.medium.s2_medium import MediumClosedConnectionError
from s2python.connection.async_.medium.websocket import WebsocketClientMedium
from s2python.s2_parser import S2Parser

from tests.parts.s2_messages import example

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
STEP = timedelta(seconds=10)
MINUTE = timedelta(minutes=1)
QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
HAIR = 0.001
LONGEST_LOG = 100_000
POWER = CommodityQuantity.ELECTRIC_POWER_L1
THREE_PHASES = CommodityQuantity.ELECTRIC_POWER_3_PHASE_SYMMETRIC
FRBC = ControlType.FILL_RATE_BASED_CONTROL
AMSTERDAM = ZoneInfo("Europe/Amsterdam")
DISCONNECTED = (MediumClosedConnectionError, CouldNotReceiveStatusReceptionError)

Usage = Callable[[datetime], float]
Target = Iterable[tuple[datetime, datetime, float, float]]


class Device(ABC):
    """A device that tells what its active control type calls for, until it is stopped or disconnected."""

    role: ClassVar[str]
    provides_forecast = False

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        name: str,
        resource_id: str | None = None,
        every: float | None = 1.0,
        quantity: str = POWER,
    ) -> None:
        self.every = every
        self.quantity = CommodityQuantity(quantity)
        self.control_type: str | None = None
        self.active = asyncio.Event()
        self._new_medium = partial(WebsocketClientMedium, url, bearer_token=token)
        self._details = AssetDetails(
            resource_id=UUID(resource_id) if resource_id else uuid4(),
            name=name,
            roles=[Role(role=self.role, commodity="ELECTRICITY")],
            instruction_processing_delay=Duration(root=0),
            provides_forecast=self.provides_forecast,
            provides_power_measurements=[self.quantity],
        )

    async def __aenter__(self) -> Self:
        self._telling: list[asyncio.Task] = []
        self._medium = self._new_medium()
        await self._medium.connect()
        self._connection = _Connection(self._medium)
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

    def activate(self, control_type: str, telling: Coroutine) -> None:
        """Tell the CEM what the control type calls for."""
        self.control_type = control_type
        self._start(telling)
        self.active.set()

    def deactivate(self) -> None:
        """Fall silent."""
        self.control_type = None
        self.active.clear()
        for telling in self._telling:
            telling.cancel()

    async def say(self, message: dict) -> None:
        """Send a message, and wait until the CEM has confirmed it."""
        await self._connection.send_msg_and_await_reception_status(S2Parser.parse_as_any_message(message))

    def _start(self, telling: Coroutine) -> None:
        self._telling.append(asyncio.create_task(_while_connected(telling)))


async def _while_connected(telling: Coroutine) -> None:
    with suppress(*DISCONNECTED):
        await telling


class Meter(Device):
    """A consumer that cannot be controlled: it forecasts its power in W once, then measures it."""

    role = "ENERGY_CONSUMER"
    provides_forecast = True

    def __init__(
        self,
        url: str,
        *,
        power: Callable[[datetime], float] = lambda _: 500.0,
        forecast: Callable[[datetime], float] | None = None,
        **options,
    ) -> None:
        super().__init__(url, **options)
        self.power = power
        self.forecast = forecast or power

    def control_types(self) -> list[S2ControlType]:
        """Offer no control."""
        return [_NotControlable(self, self._measure)]

    async def _measure(self) -> None:
        start = _floor(datetime.now(UTC), QUARTER)
        await self.say(
            example(
                "PowerForecast",
                start_time=start.isoformat(),
                elements=[
                    {
                        "duration": QUARTER // MILLISECOND,
                        "power_values": [
                            {
                                "value_expected": self.forecast(start + i * QUARTER),
                                "commodity_quantity": self.quantity,
                            }
                        ],
                    }
                    for i in range(96)
                ],
            )
        )
        while True:
            now = datetime.now(UTC)
            await self.say(_measurement(now, self.quantity, self.power(now)))
            await asyncio.sleep(self.every)


class StorageDevice(Device):
    """A device of an FRBC.SystemDescription, which follows its instructions as its physics allow.

    Levels are in the unit of the description, rates in that unit per second. `usage` is what is drawn from
    the storage, `forecast` what the device tells of it; `leakage` has (low, high, rate) and `target`
    (start, end, low, high). A round is told each `every` seconds, or with None only on `tell()`. Without
    control the device only measures its power.
    """

    role = "ENERGY_STORAGE"
    description: dict

    def __init__(
        self,
        url: str,
        *,
        fill_level: float,
        description: dict | None = None,
        leakage: Iterable[tuple[float, float, float]] = (),
        usage: Usage | None = None,
        forecast: Usage | None = None,
        target: Target | None = None,
        start: datetime | None = None,
        **options,
    ) -> None:
        description = description or self.description
        first = description["actuators"][0]["operation_modes"][0]["elements"][0]["power_ranges"][0]
        super().__init__(url, quantity=first["commodity_quantity"], **options)
        self.fill_level = fill_level
        self.leakage = sorted(leakage)
        self.usage = usage or (lambda _: 0.0)
        self.forecast = forecast or usage
        self.target = None if target is None else sorted(target)
        self.description = description | {
            "storage": description["storage"]
            | {
                "provides_leakage_behaviour": bool(self.leakage),
                "provides_fill_level_target_profile": self.target is not None,
                "provides_usage_forecast": self.forecast is not None,
            }
        }
        self.moment = start or datetime.now(UTC)
        self.log: list[tuple[datetime, float, float]] = [(self.moment, fill_level, 0.0)]
        self.instructions: list[dict] = []
        self.revoked: set[str] = set()
        self.rejected: list[tuple[str, str]] = []
        self.violations: list[tuple[datetime, float]] = []
        self.shortfalls: list[tuple[datetime, float]] = []

        self._actuators = {each["id"]: _Actuator(each) for each in description["actuators"]}
        whole = description["storage"]["fill_level_range"]
        self._low, self._high = whole["start_of_range"], whole["end_of_range"]
        self._hair = HAIR * (self._high - self._low)
        self._bounds = sorted(
            {self._low, self._high}
            | {bound for low, high, _ in self.leakage for bound in (low, high)}
            | {bound for actuator in self._actuators.values() for bound in actuator.bounds()}
        )
        self._agenda: list[tuple[datetime, int, dict]] = []
        self._beyond = 0.0
        self._is_short = False
        self._updates: list[dict] = []
        self._told_level = fill_level
        self._forecast_at = self.moment
        self._turn = asyncio.Lock()

    # Physics

    @property
    def power(self) -> float:
        """The present power in W."""
        return self._flow().power

    def advance(self, until: datetime) -> None:
        """Let time pass: carry out the instructions that are due, and fill, drain and leak meanwhile."""
        while self.moment < until:
            self._step(until)
            self._settle()

    def energy(self, start: datetime, end: datetime) -> float:
        """Return the energy in Wh that was consumed, less what was produced, as far as the log goes back."""
        return sum(
            power * max(timedelta(), min(to, end) - max(since, start)) / HOUR
            for since, to, power in self._logged()
        )

    def cost(self, price: Callable[[datetime], float]) -> float:
        """Return what the energy in the log costs (EUR), at a price in EUR/kWh."""
        return sum(power / 1000 * (to - since) / HOUR * price(since) for since, to, power in self._logged())

    def _logged(self) -> Iterator[tuple[datetime, datetime, float]]:
        for (since, _, _), (to, _, power) in pairwise(self.log):
            yield since, to, power

    def _flow(self) -> "_Flow":
        """Return what flows now; at an end of the storage, nothing flows that would lead beyond it."""
        flows = [actuator.flow(self.fill_level, self.quantity) for actuator in self._actuators.values()]
        drain = self._leak() + self.usage(self.moment)
        driven = sum(rate for rate, _ in flows)
        outward = self._outward(driven - drain)
        allowed = [(rate, power) for rate, power in flows if rate * outward <= 0]
        return _Flow(
            rate=sum(rate for rate, _ in allowed) - drain,
            power=sum(power for _, power in allowed),
            beyond=abs(driven - drain) if driven * outward > 0 else 0.0,
        )

    def _outward(self, rate: float) -> int:
        """Return the direction of a rate, if it would lead out of the storage's range, else 0."""
        if rate > 0 and self.fill_level >= self._high:
            return 1
        if rate < 0 and self.fill_level <= self._low:
            return -1
        return 0

    def _leak(self) -> float:
        found = [rate for low, high, rate in self.leakage if low <= self.fill_level <= high]
        return found[-1] if found else 0.0

    def _step(self, until: datetime) -> None:
        """Let time pass until something may change, STEP at most."""
        flow = self._flow()
        since = self.moment
        end = min(
            until,
            _floor(since, STEP) + STEP,
            *(moment for moment, _, _ in self._agenda[:1]),
            *(actuator.ready for actuator in self._actuators.values() if actuator.ready),
        )
        if outward := self._outward(flow.rate):
            self.moment = end
            if outward < 0:
                self._fall_short(since, -flow.rate * ((end - since) / timedelta(seconds=1)))
        else:
            self._move(flow.rate, end)
        self._is_short = outward < 0
        self._watch(flow.beyond * ((self.moment - since) / timedelta(seconds=1)))
        self._note(since, flow.power)

    def _move(self, rate: float, end: datetime) -> None:
        """Fill or drain until a moment, or until the level where the rate may change."""
        seconds = (end - self.moment) / timedelta(seconds=1)
        reached = self.fill_level + rate * seconds
        passed = [
            bound
            for bound in self._bounds
            if self.fill_level < bound < reached or reached < bound < self.fill_level
        ]
        if not passed:
            self.moment, self.fill_level = end, reached
            return
        bound = min(passed, key=lambda bound: abs(bound - self.fill_level))
        needed = timedelta(seconds=(bound - self.fill_level) / rate)
        self.moment = min(end, self.moment + max(needed, timedelta.resolution))
        self.fill_level = bound

    def _fall_short(self, since: datetime, units: float) -> None:
        if self._is_short:
            since, before = self.shortfalls.pop()
            units += before
        self.shortfalls.append((since, units))

    def _watch(self, beyond: float) -> None:
        """Note a violation, once, if the instructions drive the level more than a hair beyond an end."""
        if self._low + self._hair < self.fill_level < self._high - self._hair:
            self._beyond = 0.0
        before, self._beyond = self._beyond, self._beyond + beyond
        if before <= self._hair < self._beyond:
            outward = 1 if self.fill_level > (self._low + self._high) / 2 else -1
            self.violations.append((self.moment, self.fill_level + outward * self._beyond))

    def _note(self, since: datetime, power: float) -> None:
        """Log a step, as one with those before it in the same minute at the same power."""
        entry = (self.moment, self.fill_level, power)
        if len(self.log) > 1 and self.log[-1][2] == power and since != _floor(since, MINUTE):
            self.log[-1] = entry
        else:
            self.log.append(entry)
        if len(self.log) > 2 * LONGEST_LOG:
            del self.log[:-LONGEST_LOG]

    # Instructions

    @property
    def pending(self) -> list[dict]:
        """The instructions that are accepted and not yet carried out, in order of execution."""
        return [instruction for _, _, instruction in self._agenda]

    def instruction(
        self,
        mode: str,
        factor: float = 1.0,
        at: datetime | None = None,
        actuator: str | None = None,
        **changes,
    ) -> dict:
        """Return an FRBC.Instruction for a mode, and an actuator if there are several, by their labels."""
        described = next(
            each for each in self.description["actuators"] if actuator in (None, each["diagnostic_label"])
        )
        return example(
            "FRBC.Instruction",
            **{
                "id": str(uuid4()),
                "actuator_id": described["id"],
                "operation_mode": next(
                    each["id"] for each in described["operation_modes"] if each["diagnostic_label"] == mode
                ),
                "operation_mode_factor": factor,
                "execution_time": (at or self.moment).isoformat(),
            }
            | changes,
        )

    def instruct(self, instruction: dict) -> str | None:
        """Accept an instruction, and carry it out if it is due; return what is wrong with it, if anything."""
        self.instructions.append(instruction)
        actuator = self._actuators.get(instruction["actuator_id"])
        if actuator is None:
            problem = f"actuator_id: {instruction['actuator_id']} is unknown"
        elif instruction["operation_mode"] not in actuator.modes:
            problem = f"operation_mode: {instruction['operation_mode']} is unknown"
        elif not 0 <= instruction["operation_mode_factor"] <= 1:
            problem = f"operation_mode_factor: {instruction['operation_mode_factor']} is not in 0..1"
        else:
            self._update(instruction["id"], "ACCEPTED")
            at = datetime.fromisoformat(instruction["execution_time"])
            insort(self._agenda, (at, len(self.instructions), instruction))
            self._settle()
            return None
        self.rejected.append((instruction["id"], problem))
        return problem

    def revoke(self, instruction_id: str) -> str | None:
        """Drop an instruction that is not yet carried out; return what is wrong if it was never given."""
        if all(instruction["id"] != instruction_id for instruction in self.instructions):
            return f"object_id: {instruction_id} is no instruction"
        left = [entry for entry in self._agenda if entry[2]["id"] != instruction_id]
        if len(left) < len(self._agenda):
            self._agenda = left
            self.revoked.add(instruction_id)
            self._update(instruction_id, "REVOKED")
        return None

    def _settle(self) -> None:
        """End the transitions that are done, and carry out the instructions that are due."""
        for actuator in self._actuators.values():
            if actuator.ready and actuator.ready <= self.moment:
                for instruction_id in actuator.arrive():
                    self._update(instruction_id, "SUCCEEDED")
        while self._agenda and self._agenda[0][0] <= self.moment:
            _, _, instruction = self._agenda.pop(0)
            self._execute(instruction)

    def _execute(self, instruction: dict) -> None:
        actuator = self._actuators[instruction["actuator_id"]]
        mode = instruction["operation_mode"]
        if refusal := actuator.refusal(mode, self.moment, instruction["abnormal_condition"]):
            self.rejected.append((instruction["id"], refusal))
            self._update(instruction["id"], "REJECTED")
            return
        self._update(instruction["id"], "STARTED")
        if mode != actuator.mode:
            for instruction_id in actuator.leave(mode, self.moment):
                self._update(instruction_id, "ABORTED")
        actuator.factor = instruction["operation_mode_factor"]
        self._beyond = 0.0
        if actuator.ready:
            actuator.under_way.append(instruction["id"])
        else:
            self._update(instruction["id"], "SUCCEEDED")

    def _update(self, instruction_id: str, status: str) -> None:
        self._updates.append(
            example(
                "InstructionStatusUpdate",
                instruction_id=instruction_id,
                status_type=status,
                timestamp=self.moment.isoformat(),
            )
        )

    # Messages

    def control_types(self) -> list[S2ControlType]:
        """Offer control by fill rate, or none."""
        return [_FillRateBased(self, self._introduce), _NotControlable(self, self._tell_rounds)]

    def activate(self, control_type: str, telling: Coroutine) -> None:
        """Begin anew, without the instructions from before."""
        self._agenda.clear()
        self._updates.clear()
        for actuator in self._actuators.values():
            actuator.under_way.clear()
        super().activate(control_type, telling)

    async def tell(self) -> None:
        """Tell a round at once: what is new, and the power."""
        async with self._turn:
            self.advance(datetime.now(UTC))
            if self.control_type == FRBC.value:
                await self._say_updates()
                for message in self._news():
                    await self.say(message)
            if self.control_type:
                await self.say(_measurement(self.moment, self.quantity, self.power))

    async def set_target(self, target: Target) -> None:
        """Aim at other levels, and tell so."""
        self.target = sorted(target)
        await self._say_under_control(self._target_profile)

    async def set_usage(self, usage: Usage, forecast: Usage | None = None) -> None:
        """Use the storage otherwise from now on, and tell a forecast: the same, unless it is given."""
        self.advance(datetime.now(UTC))
        self.usage = usage
        self.forecast = forecast or usage
        await self._say_under_control(self._usage_forecast)

    def report(self) -> None:
        """Tell soon what became of the instructions."""
        self._start(self._report())

    async def _report(self) -> None:
        async with self._turn:
            await self._say_updates()

    async def _say_updates(self) -> None:
        while self._updates:
            await self.say(self._updates.pop(0))

    async def _say_under_control(self, message: Callable[[], dict]) -> None:
        async with self._turn:
            if self.control_type == FRBC.value:
                await self.say(message())

    async def _introduce(self) -> None:
        """Tell all there is to know, then each round."""
        async with self._turn:
            self.advance(datetime.now(UTC))
            for message in self._introduction():
                await self.say(message)
        await self._tell_rounds()

    async def _tell_rounds(self) -> None:
        while self.every is not None:
            await asyncio.sleep(self.every)
            await self.tell()

    def _introduction(self) -> Iterator[dict]:
        now = self.moment.isoformat()
        yield self.description | {"message_id": str(uuid4()), "valid_from": now}
        for actuator in self._actuators.values():
            actuator.untold.clear()
            yield actuator.status()
            for timer, finished_at in actuator.timers.items():
                if finished_at > self.moment:
                    yield actuator.timer_status(timer)
        if self.leakage:
            yield example("FRBC.LeakageBehaviour", valid_from=now, elements=self._leakage_elements())
        if self.target is not None:
            yield self._target_profile()
        if self.forecast:
            yield self._usage_forecast()
        yield self._storage_status()

    def _news(self) -> Iterator[dict]:
        """Return what changed since it was told; the forecast is renewed each hour."""
        for actuator in self._actuators.values():
            if actuator.state() != actuator.told:
                yield actuator.status()
            while actuator.untold:
                yield actuator.timer_status(actuator.untold.pop(0))
        if self.forecast and self.moment >= self._forecast_at + HOUR:
            yield self._usage_forecast()
        if self.fill_level != self._told_level:
            yield self._storage_status()

    def _storage_status(self) -> dict:
        self._told_level = self.fill_level
        return example("FRBC.StorageStatus", present_fill_level=self.fill_level)

    def _leakage_elements(self) -> list[dict]:
        return [
            {"fill_level_range": _range(low, high), "leakage_rate": rate} for low, high, rate in self.leakage
        ]

    def _target_profile(self) -> dict:
        """Return the target from now on: the whole storage where there is none.

        Without any it is the whole storage for a day.
        """
        start = moment = self.moment
        windows = []
        for since, to, low, high in self.target:
            if since > moment:
                windows.append((since - moment, self._low, self._high))
            if to > moment:
                windows.append((to - max(since, moment), low, high))
                moment = to
        windows = windows or [(DAY, self._low, self._high)]
        return example(
            "FRBC.FillLevelTargetProfile",
            start_time=start.isoformat(),
            elements=[
                {"duration": round(duration / MILLISECOND), "fill_level_range": _range(low, high)}
                for duration, low, high in windows
            ],
        )

    def _usage_forecast(self) -> dict:
        """Return the means over quarters of an hour, for a day."""
        self._forecast_at = self.moment
        start = _floor(self.moment, QUARTER)
        return example(
            "FRBC.UsageForecast",
            start_time=start.isoformat(),
            elements=[
                {
                    "duration": QUARTER // MILLISECOND,
                    "usage_rate_expected": sum(
                        self.forecast(start + quarter * QUARTER + minute * MINUTE) for minute in range(15)
                    )
                    / 15,
                }
                for quarter in range(96)
            ],
        )


class _Flow(NamedTuple):
    """What flows: fill level per second, W, and by how much per second instructions push beyond an end."""

    rate: float
    power: float
    beyond: float


@dataclass
class _Actuator:
    """An actuator of a description: its mode and factor, its transition and its timers.

    `ready` is when a transition ends, if one is under way; `under_way` are the instructions that wait for
    it. `timers` say when they finish; `untold` are those started since they were told.
    """

    description: dict
    factor: float = 0.0
    previous: str | None = None
    changed: datetime | None = None
    ready: datetime | None = None
    under_way: list[str] = field(default_factory=list)
    timers: dict[str, datetime] = field(default_factory=dict)
    untold: list[str] = field(default_factory=list)
    told: tuple | None = None

    def __post_init__(self) -> None:
        self.modes = {mode["id"]: mode for mode in self.description["operation_modes"]}
        self.transitions = {(each["from"], each["to"]): each for each in self.description["transitions"]}
        self.mode = next(iter(self.modes))

    def bounds(self) -> Iterator[float]:
        """Return the fill levels at which an element starts or ends."""
        for mode in self.modes.values():
            for element in mode["elements"]:
                yield from element["fill_level_range"].values()

    def flow(self, fill_level: float, quantity: str) -> tuple[float, float]:
        """Return the fill rate, and the power in W: nothing while a transition is under way."""
        if self.ready:
            return 0.0, 0.0
        elements = sorted(
            self.modes[self.mode]["elements"], key=lambda each: each["fill_level_range"]["start_of_range"]
        )
        below = [each for each in elements if each["fill_level_range"]["start_of_range"] <= fill_level]
        element = below[-1] if below else elements[0]
        powers = [each for each in element["power_ranges"] if each["commodity_quantity"] == quantity]
        return self._between(element["fill_rate"]), sum(map(self._between, powers))

    def _between(self, ends: dict) -> float:
        return ends["start_of_range"] + self.factor * (ends["end_of_range"] - ends["start_of_range"])

    def refusal(self, mode: str, moment: datetime, abnormal: bool) -> str | None:
        """Return why the device does not go to a mode, or None if it does."""
        if mode == self.mode:
            return None
        names = f"{self._label(self.mode)} to {self._label(mode)}"
        transition = self.transitions.get((self.mode, mode))
        if transition is None:
            return f"no transition from {names}"
        if not abnormal and self.modes[mode]["abnormal_condition_only"]:
            return f"{self._label(mode)} is for abnormal conditions only"
        if not abnormal and transition["abnormal_condition_only"]:
            return f"the transition from {names} is for abnormal conditions only"
        for timer in transition["blocking_timers"]:
            if timer in self.timers and self.timers[timer] > moment:
                return f"a timer blocks the transition from {names} until {self.timers[timer]}"
        return None

    def leave(self, mode: str, moment: datetime) -> list[str]:
        """Start the transition to a mode; return the instructions whose transition this ends."""
        transition = self.transitions[self.mode, mode]
        durations = {timer["id"]: timer["duration"] for timer in self.description["timers"]}
        for timer in transition["start_timers"]:
            self.timers[timer] = moment + durations[timer] * MILLISECOND
            self.untold.append(timer)
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

    def _label(self, mode: str) -> str:
        return self.modes[mode].get("diagnostic_label", mode)

    def state(self) -> tuple:
        """Return what an FRBC.ActuatorStatus tells."""
        return self.mode, self.factor, self.previous, self.changed

    def status(self) -> dict:
        """Return the FRBC.ActuatorStatus."""
        self.told = self.state()
        return {
            "message_type": "FRBC.ActuatorStatus",
            "message_id": str(uuid4()),
            "actuator_id": self.description["id"],
            "active_operation_mode_id": self.mode,
            "operation_mode_factor": self.factor,
        } | (
            {"previous_operation_mode_id": self.previous, "transition_timestamp": self.changed.isoformat()}
            if self.changed
            else {}
        )

    def timer_status(self, timer: str) -> dict:
        """Return the FRBC.TimerStatus of a timer that was started."""
        return example(
            "FRBC.TimerStatus",
            timer_id=timer,
            actuator_id=self.description["id"],
            finished_at=self.timers[timer].isoformat(),
        )


# Descriptions


def _floor(moment: datetime, period: timedelta) -> datetime:
    return moment - (moment - EPOCH) % period


def _range(low: float, high: float) -> dict:
    return {"start_of_range": low, "end_of_range": high}


def _measurement(moment: datetime, quantity: str, power: float) -> dict:
    return example(
        "PowerMeasurement",
        measurement_timestamp=moment.isoformat(),
        values=[{"value": power, "commodity_quantity": quantity}],
    )


def _id(*names: str) -> str:
    return str(uuid5(NAMESPACE_URL, "/".join(names)))


@dataclass(frozen=True)
class _Storage:
    """A storage of which one unit of fill level holds `capacity` Wh, charged and discharged with losses."""

    low: float
    high: float
    capacity: float
    efficiency: float
    quantity: str = POWER

    def element(self, powers: tuple[float, float], levels: tuple[float, float] | None = None) -> dict:
        """Return an FRBC.OperationModeElement from the powers (W) at factor 0 and 1."""
        return {
            "fill_level_range": _range(*(levels or (self.low, self.high))),
            "fill_rate": _range(*map(self._rate, powers)),
            "power_ranges": [_range(*powers) | {"commodity_quantity": self.quantity}],
        }

    def _rate(self, power: float) -> float:
        stored = power * self.efficiency if power > 0 else power / self.efficiency
        return stored / self.capacity / 3600

    def describe(self, label: str, unit: str, *actuators: dict) -> dict:
        """Return the FRBC.SystemDescription."""
        return example(
            "FRBC.SystemDescription",
            actuators=list(actuators),
            storage={
                "diagnostic_label": label,
                "fill_level_label": unit,
                "provides_leakage_behaviour": False,
                "provides_fill_level_target_profile": False,
                "provides_usage_forecast": False,
                "fill_level_range": _range(self.low, self.high),
            },
        )


def _actuator(
    label: str,
    modes: dict[str, list[dict]],
    transitions: dict[tuple[str, str], dict],
    timers: dict[str, timedelta] | None = None,
    ids: dict[str, str] | None = None,
) -> dict:
    """Return an FRBC.ActuatorDescription from labels; a transition names its timers."""
    timers = timers or {}
    of = {name: _id(label, name) for name in (label, *modes, *timers)} | (ids or {})
    return {
        "id": of[label],
        "diagnostic_label": label,
        "supported_commodities": ["ELECTRICITY"],
        "operation_modes": [
            {
                "id": of[mode],
                "diagnostic_label": mode,
                "elements": elements,
                "abnormal_condition_only": False,
            }
            for mode, elements in modes.items()
        ],
        "transitions": [
            {
                "id": _id(label, since, to),
                "from": of[since],
                "to": of[to],
                "start_timers": [of[timer] for timer in rule.get("starts", ())],
                "blocking_timers": [of[timer] for timer in rule.get("blocked_by", ())],
                "transition_duration": rule.get("seconds", 0) * 1000,
                "abnormal_condition_only": False,
            }
            for (since, to), rule in transitions.items()
        ],
        "timers": [
            {"id": of[timer], "diagnostic_label": timer, "duration": duration // MILLISECOND}
            for timer, duration in timers.items()
        ],
    }


def _between_all(*modes: str, seconds: int = 0) -> dict[tuple[str, str], dict]:
    return {(since, to): {"seconds": seconds} for since in modes for to in modes if since != to}


def _home_battery() -> dict:
    """Describe it with the ids of the example, so that the example of an instruction fits."""
    [inverter] = example("FRBC.SystemDescription")["actuators"]
    cells = _Storage(0, 100, capacity=100, efficiency=0.95)
    return cells.describe(
        "cells",
        "state of charge, %",
        _actuator(
            "inverter",
            {
                "idle": [cells.element((0, 0))],
                "charge": [cells.element((0, 5000), (0, 90)), cells.element((0, 2000), (90, 100))],
                "discharge": [cells.element((-5000, 0))],
            },
            _between_all("idle", "charge", "discharge", seconds=2),
            ids={mode["diagnostic_label"]: mode["id"] for mode in inverter["operation_modes"]}
            | {"inverter": inverter["id"]},
        ),
    )


def _electric_vehicle() -> dict:
    cells = _Storage(0, 100, capacity=600, efficiency=0.92, quantity=THREE_PHASES)
    on, off = "minimum on time", "minimum off time"
    return cells.describe(
        "cells",
        "state of charge, %",
        _actuator(
            "charger",
            {"off": [cells.element((0, 0))], "charge": [cells.element((4140, 11040))]},
            {
                ("off", "charge"): {"starts": [on], "blocked_by": [off]},
                ("charge", "off"): {"starts": [off], "blocked_by": [on]},
            },
            {on: timedelta(minutes=5), off: timedelta(minutes=5)},
        ),
    )


def _boiler() -> dict:
    water = _Storage(40, 65, capacity=233, efficiency=0.98)
    return water.describe(
        "water",
        "temperature, °C",
        _actuator(
            "heating element",
            {"off": [water.element((0, 0))], "on": [water.element((2500, 2500))]},
            _between_all("off", "on"),
        ),
    )


def _twin_battery() -> dict:
    cells = _Storage(0, 8, capacity=1000, efficiency=0.94)
    on = "minimum on time"
    return cells.describe(
        "cells",
        "kWh",
        _actuator(
            "big",
            {
                "idle": [cells.element((0, 0))],
                "charge": [cells.element((3000, 3000))],
                "discharge": [cells.element((-3000, -3000))],
            },
            {("idle", mode): {"starts": [on], "seconds": 5} for mode in ("charge", "discharge")}
            | {(mode, "idle"): {"blocked_by": [on], "seconds": 5} for mode in ("charge", "discharge")},
            {on: timedelta(minutes=10)},
        ),
        _actuator(
            "small",
            {
                "idle": [cells.element((0, 0))],
                "charge": [cells.element((0, 1000))],
                "discharge": [cells.element((-1000, 0))],
            },
            _between_all("idle", "charge", "discharge"),
        ),
    )


# Devices


class HomeBattery(StorageDevice):
    """A battery of 10 kWh (level in %) that charges and discharges at any power up to 5 kW."""

    description = _home_battery()

    def __init__(self, url: str, *, fill_level: float = 50.0, name: str = "Home battery", **options) -> None:
        super().__init__(url, fill_level=fill_level, name=name, **options)


Battery = HomeBattery


class ElectricVehicle(StorageDevice):
    """A car of 60 kWh (level in %) that is to be at 80 % at its departure."""

    description = _electric_vehicle()

    def __init__(
        self,
        url: str,
        *,
        departure: datetime | None = None,
        fill_level: float = 30.0,
        name: str = "Electric vehicle",
        **options,
    ) -> None:
        if departure:
            options = {"target": [(departure, departure + HOUR, 80, 100)]} | options
        super().__init__(url, fill_level=fill_level, name=name, **options)


def warm_water(moment: datetime) -> float:
    """Return how fast a household cools its boiler (K/s): 12 K in the morning, and 12 K in the evening."""
    now = moment.astimezone(AMSTERDAM).time()
    if time(6, 30) <= now < time(8):
        return 12 / 5400
    if time(18, 30) <= now < time(21):
        return 12 / 9000
    return 0.0


class Boiler(StorageDevice):
    """A boiler of 200 l (level in °C) whose heating element is on or off."""

    role = "ENERGY_CONSUMER"
    description = _boiler()

    def __init__(
        self,
        url: str,
        *,
        fill_level: float = 55.0,
        leakage: Iterable[tuple[float, float, float]] = ((40, 50, 0.3 / 3600), (50, 65, 0.6 / 3600)),
        usage: Usage = warm_water,
        name: str = "Boiler",
        **options,
    ) -> None:
        super().__init__(url, fill_level=fill_level, leakage=leakage, usage=usage, name=name, **options)


class TwinBattery(StorageDevice):
    """A battery of 8 kWh (level in kWh) with an inverter that is on or off, and one that is continuous."""

    description = _twin_battery()

    def __init__(self, url: str, *, fill_level: float = 4.0, name: str = "Twin battery", **options) -> None:
        super().__init__(url, fill_level=fill_level, name=name, **options)


# On the connection of s2-python


class _Connection(S2AsyncConnection):
    """A connection on which a message can be refused: s2-python itself only answers OK, or gives up."""

    def __init__(self, medium: WebsocketClientMedium) -> None:
        super().__init__(medium)
        self._refused: set[UUID] = set()

    async def refuse(self, message_id: UUID, reason: str) -> None:
        """Answer INVALID_CONTENT, and not with the OK that s2-python sends after each handler."""
        await self.respond_with_reception_status(message_id, ReceptionStatusValues.INVALID_CONTENT, reason)
        self._refused.add(message_id)

    async def respond_with_reception_status(
        self, subject_message_id: UUID, status: ReceptionStatusValues, diagnostic_label: str
    ) -> None:
        if subject_message_id in self._refused:
            self._refused.remove(subject_message_id)
            return
        await super().respond_with_reception_status(subject_message_id, status, diagnostic_label)


class _OfDevice:
    """What our control types share: the device tells what is called for while one is active."""

    def __init__(self, device: Device, telling: Callable[[], Coroutine]) -> None:
        self.device = device
        self.telling = telling

    async def activate(self, _: S2AsyncConnection) -> None:
        self.device.activate(self.get_protocol_control_type().value, self.telling())

    async def deactivate(self, _: S2AsyncConnection) -> None:
        self.device.deactivate()


class _NotControlable(_OfDevice, NoControlControlType):
    pass


class _FillRateBased(_OfDevice, FRBCControlType):
    def register_handlers(self, connection: _Connection) -> None:
        super().register_handlers(connection)
        connection.register_handler(RevokeObject, self.handle_revocation)

    async def handle_instruction(self, connection: _Connection, message, send_okay) -> None:
        await self._answer(
            connection, message, send_okay, lambda: self.device.instruct(message.to_json_dict())
        )

    async def handle_revocation(self, connection: _Connection, message, send_okay) -> None:
        def revoke() -> str | None:
            if message.object_type is not RevokableObjects.FRBC_Instruction:
                return f"object_type: there is no {message.object_type.value}"
            return self.device.revoke(str(message.object_id))

        await self._answer(connection, message, send_okay, revoke)

    async def _answer(
        self, connection: _Connection, message, send_okay, obey: Callable[[], str | None]
    ) -> None:
        """Confirm a message of this control type, or refuse it; tell afterwards what became of it."""
        if self.device.control_type != FRBC.value:
            problem = "fill rate based control is not active"
        else:
            self.device.advance(datetime.now(UTC))
            problem = obey()
        if problem:
            await connection.refuse(message.message_id, problem)
        await send_okay()
        if not problem:
            self.device.report()
