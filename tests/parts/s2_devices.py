"""Simulated devices under fill rate based control (FRBC), and a meter."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, ClassVar, NamedTuple

from s2python.common import ControlType
from s2python.connection.async_.control_type.class_based import S2ControlType
from s2python.frbc import FRBCInstruction

from tests.parts.s2_device import (
    AMSTERDAM,
    DAY,
    HOUR,
    MILLISECOND,
    POWER,
    QUARTER,
    SECOND,
    THREE_PHASES,
    Controlled,
    Curve,
    Device,
    LogEntry,
    ModeDevice,
    NotControlable,
    Rule,
    Rules,
    StateMachine,
    Timers,
    between_all,
    floor,
    measurement,
    named_id,
    number_range,
    power_forecast,
    quarterly,
    transitions,
)
from tests.parts.s2_messages import Message, example

STEP = timedelta(seconds=10)
OVERSHOOT = 0.001
"""How far beyond its range (as a fraction of it) a storage may be driven without a violation."""
FRBC = ControlType.FILL_RATE_BASED_CONTROL.value

type Target = Iterable[tuple[datetime, datetime, float, float]]
"""Fill level ranges: (start, end, lowest level, highest level)."""


class Meter(Device):
    """A consumer that cannot be controlled: it forecasts its power (W) once, then measures it."""

    role = "ENERGY_CONSUMER"
    provides_forecast = True

    def __init__(
        self,
        url: str,
        *,
        power: Curve = lambda _: 500.0,
        forecast: Curve | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self.power = power
        self.forecast = forecast or power

    def control_types(self) -> list[S2ControlType]:
        """Offer no control."""
        return [NotControlable(self, self._measure)]

    async def _measure(self) -> None:
        start = floor(datetime.now(UTC), QUARTER)
        powers = [self.forecast(start + number * QUARTER) for number in range(96)]
        await self.say(power_forecast(start, self.quantity, powers))
        while True:
            now = datetime.now(UTC)
            await self.say(measurement(now, {self.quantity: self.power(now)}))
            if self.every is None:
                return
            await asyncio.sleep(self.every)


class FillRateBased(Controlled):
    """Fill rate based control."""

    control_type = ControlType.FILL_RATE_BASED_CONTROL
    instructions = (FRBCInstruction,)


class StorageDevice(ModeDevice["_Actuator"]):
    """A device with an FRBC.SystemDescription, which executes instructions as far as its physics allow.

    Levels are in the unit of the description, rates in that unit per second. `usage` is the rate drawn from
    the storage, `forecast` the rate that the device forecasts; `leakage` has (low, high, rate). Without
    control the device only measures its power. `overshoot` is the fraction of its range by which it may be
    driven beyond an end without a violation.
    """

    role = "ENERGY_STORAGE"
    offers: ClassVar[dict[str, type[Controlled]]] = {FRBC: FillRateBased}
    prefix = "FRBC"
    mode_field = "operation_mode"
    log: list[LogEntry[float]]
    """The fill level and the power (W) at the end of every step."""

    def __init__(
        self,
        url: str,
        *,
        fill_level: float,
        description: Message | None = None,
        leakage: Iterable[tuple[float, float, float]] = (),
        usage: Curve | None = None,
        forecast: Curve | None = None,
        target: Target | None = None,
        overshoot: float = OVERSHOOT,
        **options: Any,
    ) -> None:
        description = description or self.description
        first = description["actuators"][0]["operation_modes"][0]["elements"][0]["power_ranges"][0]
        super().__init__(url, quantity=first["commodity_quantity"], **options)
        self.fill_level = fill_level
        self.leakage = sorted(leakage)
        self.usage: Curve = usage or (lambda _: 0.0)
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
        self.log = [(self.moment, fill_level, 0.0)]
        self.shortfalls: list[tuple[datetime, float]] = []

        self.actuators = {actuator["id"]: _Actuator(actuator) for actuator in description["actuators"]}
        fill_levels = description["storage"]["fill_level_range"]
        self._low: float = fill_levels["start_of_range"]
        self._high: float = fill_levels["end_of_range"]
        self._overshoot = overshoot * (self._high - self._low)
        self._bounds = sorted(
            {self._low, self._high}
            | {bound for low, high, _ in self.leakage for bound in (low, high)}
            | {bound for actuator in self.actuators.values() for bound in actuator.bounds()}
        )
        self._beyond = 0.0
        self._is_short = False
        self._sent_level = fill_level
        self._forecast_at = self.moment

    # Physics

    @property
    def power(self) -> float:
        """The present power in W."""
        return self._flow().power

    def _flow(self) -> "_Flow":
        """Return the present flow; at an end of the fill level range, actuators that lead beyond it stop."""
        flows = [actuator.flow(self.fill_level, self.quantity) for actuator in self.actuators.values()]
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
        """Return the sign of a rate if it would lead beyond the fill level range, else 0."""
        if rate > 0 and self.fill_level >= self._high:
            return 1
        if rate < 0 and self.fill_level <= self._low:
            return -1
        return 0

    def _leak(self) -> float:
        rates = [rate for low, high, rate in self.leakage if low <= self.fill_level <= high]
        return rates[-1] if rates else 0.0

    def _step(self, until: datetime) -> None:
        """Simulate until something may change, to the next whole STEP at most."""
        flow = self._flow()
        since = self.moment
        end = min(
            until,
            floor(since, STEP) + STEP,
            *(moment for moment, _, _ in self._agenda[:1]),
            *(actuator.ready for actuator in self.actuators.values() if actuator.ready),
        )
        if outward := self._outward(flow.rate):
            self.moment = end
            if outward < 0:
                self._fall_short(since, -flow.rate * ((end - since) / SECOND))
        else:
            self._move(flow.rate, end)
        self._is_short = outward < 0
        self._watch(flow.beyond * ((self.moment - since) / SECOND))
        self._note(since, self.fill_level, flow.power)

    def _move(self, rate: float, end: datetime) -> None:
        """Fill or drain until a moment, or until a level at which the rate may change."""
        seconds = (end - self.moment) / SECOND
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
        """Record a violation, once, if the instructions drive the level too far beyond an end."""
        if self._low + self._overshoot < self.fill_level < self._high - self._overshoot:
            self._beyond = 0.0
        before, self._beyond = self._beyond, self._beyond + beyond
        if before <= self._overshoot < self._beyond:
            outward = 1 if self.fill_level > (self._low + self._high) / 2 else -1
            self.violations.append((self.moment, self.fill_level + outward * self._beyond))

    def _alike(self, last: LogEntry[float], entry: LogEntry[float]) -> bool:
        return last[2] == entry[2]

    # Instructions

    def _execute(self, instruction: Message) -> str | None:
        if refusal := super()._execute(instruction):
            return refusal
        self._beyond = 0.0
        return None

    # Messages

    async def set_target(self, target: Target) -> None:
        """Change the target levels, and send them."""
        self.target = sorted(target)
        await self._say_under_control(lambda: [self._target_profile()])

    async def set_usage(self, usage: Curve, forecast: Curve | None = None) -> None:
        """Change the usage from now on, and send a forecast, by default of the same."""
        self.advance(datetime.now(UTC))
        self.usage = usage
        self.forecast = forecast or usage
        await self._say_under_control(lambda: [self._usage_forecast()])

    def _introduction(self) -> Iterable[Message]:
        yield self._described()
        yield from self._statuses()
        if self.leakage:
            yield example(
                "FRBC.LeakageBehaviour",
                valid_from=self.moment.isoformat(),
                elements=self._leakage_elements(),
            )
        if self.target is not None:
            yield self._target_profile()
        if self.forecast:
            yield self._usage_forecast()
        yield self._storage_status()

    def _news(self) -> Iterable[Message]:
        """Return messages about what changed since it was last sent; the forecast is renewed hourly."""
        yield from self._status_news()
        if self.forecast and self.moment >= self._forecast_at + HOUR:
            yield self._usage_forecast()
        if self.fill_level != self._sent_level:
            yield self._storage_status()

    def _storage_status(self) -> Message:
        self._sent_level = self.fill_level
        return example("FRBC.StorageStatus", present_fill_level=self.fill_level)

    def _leakage_elements(self) -> list[Message]:
        return [
            {"fill_level_range": number_range(low, high), "leakage_rate": rate}
            for low, high, rate in self.leakage
        ]

    def _target_profile(self) -> Message:
        """Return the FRBC.FillLevelTargetProfile from now on.

        It has the whole fill level range where there is no target, for a day if there is none at all.
        """
        start = moment = self.moment
        windows: list[tuple[timedelta, float, float]] = []
        for since, to, low, high in self.target or ():
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
                {"duration": round(duration / MILLISECOND), "fill_level_range": number_range(low, high)}
                for duration, low, high in windows
            ],
        )

    def _usage_forecast(self) -> Message:
        """Return the FRBC.UsageForecast: the means over the quarters of an hour of a day."""
        assert self.forecast is not None
        self._forecast_at = self.moment
        start = floor(self.moment, QUARTER)
        return example(
            "FRBC.UsageForecast",
            start_time=start.isoformat(),
            elements=[
                {"duration": QUARTER // MILLISECOND, "usage_rate_expected": rate}
                for rate in quarterly(self.forecast, start)
            ],
        )


class _Flow(NamedTuple):
    """Fill level per second, power (W), and fill level per second that instructions push beyond an end."""

    rate: float
    power: float
    beyond: float


class _Actuator(StateMachine):
    """An actuator of a storage."""

    def bounds(self) -> Iterator[float]:
        """Return the fill levels at which an element starts or ends."""
        for mode in self.modes.values():
            for element in mode["elements"]:
                yield from element["fill_level_range"].values()

    def flow(self, fill_level: float, quantity: str) -> tuple[float, float]:
        """Return the fill rate and the power (W); both are 0 during a transition."""
        if self.ready:
            return 0.0, 0.0
        elements = sorted(
            self.modes[self.mode]["elements"],
            key=lambda element: float(element["fill_level_range"]["start_of_range"]),
        )
        below = [
            element for element in elements if element["fill_level_range"]["start_of_range"] <= fill_level
        ]
        element = below[-1] if below else elements[0]
        powers = [power for power in element["power_ranges"] if power["commodity_quantity"] == quantity]
        return self.between(element["fill_rate"]), sum(map(self.between, powers))


# Descriptions


@dataclass(frozen=True)
class _Storage:
    """A storage that holds `capacity` Wh per unit of fill level; `efficiency` is one-way."""

    low: float
    high: float
    capacity: float
    efficiency: float
    quantity: str = POWER

    def element(self, powers: tuple[float, float], levels: tuple[float, float] | None = None) -> Message:
        """Return an FRBC.OperationModeElement from the powers (W) at factor 0 and 1."""
        return {
            "fill_level_range": number_range(*(levels or (self.low, self.high))),
            "fill_rate": number_range(*map(self._rate, powers)),
            "power_ranges": [number_range(*powers) | {"commodity_quantity": self.quantity}],
        }

    def _rate(self, power: float) -> float:
        stored = power * self.efficiency if power > 0 else power / self.efficiency
        return stored / self.capacity / 3600

    def describe(self, label: str, unit: str, *actuators: Message) -> Message:
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
                "fill_level_range": number_range(self.low, self.high),
            },
        )


def _actuator(
    label: str,
    modes: dict[str, list[Message]],
    rules: Rules,
    timers: Timers | None = None,
    ids: dict[str, str] | None = None,
) -> Message:
    """Return an FRBC.ActuatorDescription from labels, with `ids` by label where they are given."""
    timers = timers or {}
    ids = {name: named_id(label, name) for name in (label, *modes, *timers)} | (ids or {})
    return {
        "id": ids[label],
        "diagnostic_label": label,
        "supported_commodities": ["ELECTRICITY"],
        "operation_modes": [
            {
                "id": ids[mode],
                "diagnostic_label": mode,
                "elements": elements,
                "abnormal_condition_only": False,
            }
            for mode, elements in modes.items()
        ],
    } | transitions(label, ids, modes, rules, timers)


def _home_battery() -> Message:
    """Return a description with the ids of the example, so that the example instruction fits it."""
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
            between_all("idle", "charge", "discharge", seconds=2),
            ids={mode["diagnostic_label"]: mode["id"] for mode in inverter["operation_modes"]}
            | {"inverter": inverter["id"]},
        ),
    )


def _electric_vehicle() -> Message:
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


def _boiler() -> Message:
    water = _Storage(40, 65, capacity=233, efficiency=0.98)
    return water.describe(
        "water",
        "temperature, °C",
        _actuator(
            "heating element",
            {"off": [water.element((0, 0))], "on": [water.element((2500, 2500))]},
            between_all("off", "on"),
        ),
    )


def _twin_battery() -> Message:
    cells = _Storage(0, 8, capacity=1000, efficiency=0.94)
    on = "minimum on time"
    starting: Rule = {"starts": [on], "seconds": 5}
    stopping: Rule = {"blocked_by": [on], "seconds": 5}
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
            {("idle", mode): starting for mode in ("charge", "discharge")}
            | {(mode, "idle"): stopping for mode in ("charge", "discharge")},
            {on: timedelta(minutes=10)},
        ),
        _actuator(
            "small",
            {
                "idle": [cells.element((0, 0))],
                "charge": [cells.element((0, 1000))],
                "discharge": [cells.element((-1000, 0))],
            },
            between_all("idle", "charge", "discharge"),
        ),
    )


# Devices


class HomeBattery(StorageDevice):
    """A battery of 10 kWh (level in %) that charges and discharges at any power up to 5 kW."""

    description = _home_battery()

    def __init__(
        self, url: str, *, fill_level: float = 50.0, name: str = "Home battery", **options: Any
    ) -> None:
        super().__init__(url, fill_level=fill_level, name=name, **options)


Battery = HomeBattery


class ElectricVehicle(StorageDevice):
    """A car of 60 kWh (level in %) that needs 80 % at its departure."""

    description = _electric_vehicle()

    def __init__(
        self,
        url: str,
        *,
        departure: datetime | None = None,
        fill_level: float = 30.0,
        name: str = "Electric vehicle",
        **options: Any,
    ) -> None:
        if departure:
            options = {"target": [(departure, departure + HOUR, 80, 100)]} | options
        super().__init__(url, fill_level=fill_level, name=name, **options)


def warm_water(moment: datetime) -> float:
    """Return the rate at which a household cools its boiler (K/s): 12 K each morning and evening."""
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
        usage: Curve = warm_water,
        name: str = "Boiler",
        **options: Any,
    ) -> None:
        super().__init__(url, fill_level=fill_level, leakage=leakage, usage=usage, name=name, **options)


class TwinBattery(StorageDevice):
    """A battery of 8 kWh (level in kWh) with an inverter that is on or off, and one that is continuous."""

    description = _twin_battery()

    def __init__(
        self, url: str, *, fill_level: float = 4.0, name: str = "Twin battery", **options: Any
    ) -> None:
        super().__init__(url, fill_level=fill_level, name=name, **options)
