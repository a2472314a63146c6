"""Simulated devices under power envelope based control (PEBC), with inner controllers of their own."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple
from uuid import uuid4

from s2python.common import CommodityQuantity, ControlType
from s2python.pebc import PEBCInstruction

from tests.parts.s2_device import (
    AMSTERDAM,
    HOUR,
    MILLISECOND,
    MINUTE,
    QUARTER,
    THREE_PHASES,
    Controlled,
    ControlledDevice,
    Curve,
    floor,
    number_range,
    power_forecast,
    quarterly,
)
from tests.parts.s2_devices import FRBC, FillRateBased, HomeBattery
from tests.parts.s2_messages import Message, example

PEBC = ControlType.POWER_ENVELOPE_BASED_CONTROL.value
UPPER, LOWER = "UPPER_LIMIT", "LOWER_LIMIT"
SHORT = 0.001
"""The fraction of a car's energy that may be missing without a shortfall."""
TOLERANCE = 0.001
"""The difference (W, Wh) that comes from rounding alone."""

type Ranges = Iterable[tuple[float, float]]
"""Powers (W): (lowest, highest)."""
type Element = tuple[timedelta, float, float]
"""An element of an envelope: its duration, lower and upper limit (W)."""


class _EnvelopeBased(Controlled):
    control_type = ControlType.POWER_ENVELOPE_BASED_CONTROL
    instructions = (PEBCInstruction,)


class Limits(NamedTuple):
    """The limits (W) of an element of an envelope, between two moments."""

    start: datetime
    end: datetime
    lower: float
    upper: float


@dataclass
class Envelope:
    """The limits that a device allows for its power, and those in force.

    `upper` and `lower` are the allowed ranges (W); those of `abnormal` (limit type, low, high) are for
    abnormal conditions. The elements of an instruction that is executed late count from its execution time.
    """

    quantity: CommodityQuantity
    consequence: str
    upper: list[tuple[float, float]]
    lower: list[tuple[float, float]]
    abnormal: list[tuple[str, float, float]] = field(default_factory=list)
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    id: str = field(default_factory=lambda: str(uuid4()))
    elements: list[Limits] = field(default_factory=list)
    instruction_id: str | None = None

    def constraints(self, now: datetime) -> Message:
        """Return the PEBC.PowerConstraints."""
        ranges = [(UPPER, low, high, False) for low, high in self.upper]
        ranges += [(LOWER, low, high, False) for low, high in self.lower]
        ranges += [(limit_type, low, high, True) for limit_type, low, high in self.abnormal]
        message = example(
            "PEBC.PowerConstraints",
            id=self.id,
            valid_from=(self.valid_from or now).isoformat(),
            consequence_type=self.consequence,
            allowed_limit_ranges=[
                {
                    "commodity_quantity": self.quantity,
                    "limit_type": limit_type,
                    "range_boundary": number_range(low, high),
                    "abnormal_condition_only": abnormal,
                }
                for limit_type, low, high, abnormal in ranges
            ],
        )
        del message["valid_until"]
        return message | ({"valid_until": self.valid_until.isoformat()} if self.valid_until else {})

    def instruction(self, at: datetime, elements: Iterable[Element], **changes: Any) -> Message:
        """Return a PEBC.Instruction."""
        return example(
            "PEBC.Instruction",
            **{
                "id": str(uuid4()),
                "execution_time": at.isoformat(),
                "power_constraints_id": self.id,
                "power_envelopes": [
                    {
                        "id": str(uuid4()),
                        "commodity_quantity": self.quantity.value,
                        "power_envelope_elements": [
                            {
                                "duration": round(duration / MILLISECOND),
                                "lower_limit": lower,
                                "upper_limit": upper,
                            }
                            for duration, lower, upper in elements
                        ],
                    }
                ],
            }
            | changes,
        )

    def problem(self, instruction: Message) -> str | None:
        """Return what is wrong with a PEBC.Instruction, if anything."""
        if instruction["power_constraints_id"] != self.id:
            return f"power_constraints_id: {instruction['power_constraints_id']} is unknown"
        quantities = [envelope["commodity_quantity"] for envelope in instruction["power_envelopes"]]
        if quantities != [self.quantity]:
            return f"power_envelopes: expected one, of {self.quantity.value}, got {quantities}"
        [envelope] = instruction["power_envelopes"]
        abnormal = instruction["abnormal_condition"]
        for number, element in enumerate(envelope["power_envelope_elements"]):
            upper, lower = element["upper_limit"], element["lower_limit"]
            name = f"power_envelope_elements[{number}]"
            if lower > upper:
                return f"{name}: the lower_limit {lower} is above the upper_limit {upper}"
            if not _is_within(upper, self._allowed(UPPER, abnormal)):
                return f"{name}.upper_limit: {upper} is not in the allowed ranges"
            if not _is_within(lower, self._allowed(LOWER, abnormal)):
                return f"{name}.lower_limit: {lower} is not in the allowed ranges"
        return None

    def _allowed(self, limit_type: str, abnormal: bool) -> list[tuple[float, float]]:
        normal = self.upper if limit_type == UPPER else self.lower
        further = [(low, high) for kind, low, high in self.abnormal if kind == limit_type and abnormal]
        return [*normal, *further]

    def refusal(self, moment: datetime) -> str | None:
        """Return why no envelope can begin now, if none can."""
        if self.valid_from and moment < self.valid_from:
            return f"the power constraints hold from {self.valid_from} only"
        if self.valid_until and moment >= self.valid_until:
            return f"the power constraints held until {self.valid_until}"
        return None

    def begin(self, instruction: Message, moment: datetime) -> None:
        """Replace the limits in force by those of an instruction, from a moment on."""
        self.instruction_id = instruction["id"]
        self.elements = []
        for element in instruction["power_envelopes"][0]["power_envelope_elements"]:
            end = moment + element["duration"] * MILLISECOND
            self.elements.append(Limits(moment, end, element["lower_limit"], element["upper_limit"]))
            moment = end

    def lift(self) -> str | None:
        """End the limits in force; return the instruction that they came from, if any."""
        self.elements = []
        ended, self.instruction_id = self.instruction_id, None
        return ended

    def limits(self, moment: datetime) -> tuple[float, float]:
        """Return the lower and upper limit at a moment (W): the widest allowed if none is in force."""
        for element in self.elements:
            if element.start <= moment < element.end:
                return element.lower, element.upper
        return min(low for low, _ in self.lower), max(high for _, high in self.upper)

    @property
    def end(self) -> datetime | None:
        """When the limits in force end, if there are any."""
        return self.elements[-1].end if self.elements else None


def _is_within(value: float, ranges: Ranges) -> bool:
    return any(low - TOLERANCE <= value <= high + TOLERANCE for low, high in ranges)


class EnvelopeDevice(ControlledDevice):
    """A device that keeps its power within the envelopes that it is instructed.

    An envelope that ends without a successor is a violation.
    """

    offers: ClassVar[dict[str, type[Controlled]]] = {PEBC: _EnvelopeBased}
    envelope: Envelope

    def instruction(self, *elements: Element, at: datetime | None = None, **changes: Any) -> Message:
        """Return a PEBC.Instruction."""
        return self.envelope.instruction(at or self.moment, elements, **changes)

    @property
    def doing(self) -> str:
        """The limits in force."""
        lower, upper = self.envelope.limits(self.moment)
        return f"{lower:.0f} to {upper:.0f} W"

    async def constrain(
        self,
        *,
        lower: Ranges | None = None,
        upper: Ranges | None = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> None:
        """Replace the allowed limits from now on, and send them."""
        self.advance(datetime.now(UTC))
        before = self.envelope
        self._forget(self.pending)
        self.envelope = Envelope(
            before.quantity,
            before.consequence,
            list(before.upper if upper is None else upper),
            list(before.lower if lower is None else lower),
            valid_from=valid_from,
            valid_until=valid_until,
        )
        revocation = example("RevokeObject", object_type="PEBC.PowerConstraints", object_id=before.id)
        await self._say_under_control(lambda: [revocation, self.envelope.constraints(self.moment)])

    def _changes(self) -> Iterable[datetime]:
        return (element.end for element in self.envelope.elements)

    def _come_to_an_end(self) -> None:
        if self.envelope.end and self.envelope.end <= self.moment:
            has_successor = any(at <= self.moment for at, _, _ in self._agenda)
            if not has_successor and self._is_in_use():
                self.violations.append((self.envelope.end, "the envelope came to its end"))
            self._update(self.envelope.lift(), "SUCCEEDED")

    def _is_in_use(self) -> bool:
        """Whether there is something to limit."""
        return True

    def _problem(self, instruction: Message) -> str | None:
        return self.envelope.problem(instruction)

    def _execute(self, instruction: Message) -> str | None:
        if refusal := self.envelope.refusal(self.moment):
            return refusal
        if replaced := self.envelope.lift():
            self._update(replaced, "SUCCEEDED")
        self.envelope.begin(instruction, self.due(instruction))
        self._update(instruction["id"], "STARTED")
        self._come_to_an_end()
        return None

    def _begin(self, control_type: str) -> None:
        """Lift the limits under another control type or in a new session; forget the instruction."""
        if control_type != PEBC or self._before is not None:
            self.envelope.lift()
        self.envelope.instruction_id = None

    def _introduction(self) -> Iterable[Message]:
        yield self.envelope.constraints(self.moment)

    def _news(self) -> Iterable[Message]:
        return ()

    def _update(self, instruction_id: str | None, status: str) -> None:
        if instruction_id:
            super()._update(instruction_id, status)


# A solar inverter


def sunny(peak: float = 4000.0, rise: float = 6.5, fall: float = 19.5) -> Curve:
    """Return the production (W) of a day without clouds, between two hours in Amsterdam."""

    def production(moment: datetime) -> float:
        local = moment.astimezone(AMSTERDAM)
        hour = local.hour + local.minute / 60 + local.second / 3600
        share = (hour - rise) / (fall - rise)
        return peak * math.sin(math.pi * share) ** 1.3 if 0 < share < 1 else 0.0

    return production


class PvInverter(EnvelopeDevice):
    """A solar inverter that can be curtailed, as far as its `lower` ranges (W) allow; the energy is lost.

    `production` is the power available (W, positive), evaluated every minute; the device sends a `forecast`
    of it every hour, by default of the same.
    """

    role = "ENERGY_PRODUCER"
    provides_forecast = True

    def __init__(
        self,
        url: str,
        *,
        production: Curve | None = None,
        forecast: Curve | None = None,
        lower: Ranges = ((-5000.0, 0.0),),
        name: str = "Solar panels",
        **options: Any,
    ) -> None:
        super().__init__(url, name=name, **options)
        self.production = production or sunny()
        self.forecast = forecast or self.production
        self.envelope = Envelope(self.quantity, "VANISH", [(0.0, 0.0)], list(lower))
        self.curtailed = 0.0
        """The energy that was curtailed (Wh)."""
        self._forecast_at: datetime | None = None

    @property
    def available(self) -> float:
        """The power available in the present minute (W)."""
        return max(0.0, self.production(floor(self.moment, MINUTE)))

    @property
    def power(self) -> float:
        """The present power (W), negative."""
        lower, _ = self.envelope.limits(self.moment)
        return max(-self.available, min(lower, 0.0)) + 0.0

    def _step(self, until: datetime) -> None:
        since, cut = self.moment, self.available + self.power
        super()._step(until)
        self.curtailed += cut * ((self.moment - since) / HOUR)

    def earned(self, price: Curve) -> float:
        """Return what the production in the log earned (EUR) at a price in EUR/kWh."""
        return -self.cost(price)

    async def set_production(self, production: Curve, forecast: Curve | None = None) -> None:
        """Change the production from now on, and send a forecast, by default of the same."""
        self.advance(datetime.now(UTC))
        self.production, self.forecast = production, forecast or production
        self._forecast_at = None
        await self.tell()

    def _begin(self, control_type: str) -> None:
        super()._begin(control_type)
        self._forecast_at = None

    def _forecast_news(self) -> Iterable[Message]:
        if self._forecast_at is None or self.moment >= self._forecast_at + HOUR:
            self._forecast_at = self.moment
            start = floor(self.moment, QUARTER)
            yield power_forecast(start, self.quantity, [-power for power in quarterly(self.forecast, start)])


# A charger


class EnvelopeCharger(EnvelopeDevice):
    """A charger that charges a car as fast as its envelope allows; curtailed energy is deferred.

    The car takes `energy` (Wh) until its departure; without one there is no car. It charges between the
    powers `least` and `most` (W). A car that leaves with less energy is a shortfall.
    """

    role = "ENERGY_CONSUMER"

    def __init__(
        self,
        url: str,
        *,
        energy: float = 20_000.0,
        departure: datetime | None = None,
        least: float = 4140.0,
        most: float = 11_040.0,
        quantity: str = THREE_PHASES,
        name: str = "Envelope charger",
        **options: Any,
    ) -> None:
        super().__init__(url, quantity=quantity, name=name, **options)
        self.least, self.most = least, most
        self.envelope = Envelope(self.quantity, "DEFER", [(0.0, 0.0), (least, most)], [(0.0, 0.0)])
        self.departure = departure
        self.wanted = energy
        """The energy that the car needs until its departure (Wh)."""
        self.delivered = 0.0
        """The energy that the car received (Wh)."""
        self.shortfalls: list[tuple[datetime, float]] = []
        self._constraint_id: str | None = None

    @property
    def left(self) -> float:
        """The energy that the car still takes (Wh)."""
        return max(0.0, self.wanted - self.delivered) if self.departure else 0.0

    @property
    def power(self) -> float:
        """The present power in W."""
        _, upper = self.envelope.limits(self.moment)
        return min(upper, self.most) if upper >= self.least and self._is_in_use() else 0.0

    def _is_in_use(self) -> bool:
        return self.left > TOLERANCE

    def _changes(self) -> Iterator[datetime]:
        yield from super()._changes()
        if self.departure:
            yield self.departure
        if self.power:
            yield self.moment + math.ceil(self.left / self.power * HOUR / MILLISECOND) * MILLISECOND

    def _step(self, until: datetime) -> None:
        since, power = self.moment, self.power
        super()._step(until)
        self.delivered = min(self.wanted, self.delivered + power * ((self.moment - since) / HOUR))

    def _come_to_an_end(self) -> None:
        if self.departure and self.departure <= self.moment:
            if self.left > self.wanted * SHORT:
                self.shortfalls.append((self.departure, self.left))
            self.departure = None
        super()._come_to_an_end()

    async def plug_in(self, departure: datetime, energy: float) -> None:
        """Connect a car that takes an energy (Wh) until its departure, and send the constraint."""
        self.advance(datetime.now(UTC))
        self.departure, self.wanted, self.delivered = departure, energy, 0.0
        await self._say_under_control(lambda: [self._energy_constraint(departure)])

    async def unplug(self) -> None:
        """Disconnect the car, and revoke its constraint."""
        self.advance(datetime.now(UTC))
        self.departure = None
        if self._constraint_id:
            await self._say_under_control(lambda: [self._revocation()])

    def _revocation(self) -> Message:
        revoked, self._constraint_id = self._constraint_id, None
        return example("RevokeObject", object_type="PEBC.EnergyConstraint", object_id=revoked)

    def _begin(self, control_type: str) -> None:
        super()._begin(control_type)
        self._constraint_id = None

    def _introduction(self) -> Iterable[Message]:
        yield from super()._introduction()
        if self.departure:
            yield self._energy_constraint(self.departure)

    def _energy_constraint(self, departure: datetime) -> Message:
        """Return the PEBC.EnergyConstraint of the car: the mean power from now until its departure."""
        self._constraint_id = str(uuid4())
        mean = self.left / ((departure - self.moment) / HOUR)
        return example(
            "PEBC.EnergyConstraint",
            id=self._constraint_id,
            valid_from=self.moment.isoformat(),
            valid_until=departure.isoformat(),
            upper_average_power=mean,
            lower_average_power=mean,
            commodity_quantity=self.quantity,
        )


# A battery with two control types


class VersatileBattery(HomeBattery):
    """A battery that can be controlled by fill rate, and by power envelope: then it is idle within it."""

    offers: ClassVar[dict[str, type[Controlled]]] = {FRBC: FillRateBased, PEBC: _EnvelopeBased}

    def __init__(self, url: str, *, name: str = "Versatile battery", **options: Any) -> None:
        super().__init__(url, name=name, **options)
        self.envelope = Envelope(self.quantity, "DEFER", [(0.0, 5000.0)], [(-5000.0, 0.0)])

    def envelope_instruction(self, *elements: Element, at: datetime | None = None, **changes: Any) -> Message:
        """Return a PEBC.Instruction."""
        return self.envelope.instruction(at or self.moment, elements, **changes)

    def _problem(self, instruction: Message) -> str | None:
        if _is_envelope(instruction):
            return self.envelope.problem(instruction)
        return super()._problem(instruction)

    def _execute(self, instruction: Message) -> str | None:
        if not _is_envelope(instruction):
            return super()._execute(instruction)
        if replaced := self.envelope.lift():
            self._update(replaced, "SUCCEEDED")
        self.envelope.begin(instruction, self.due(instruction))
        self._update(instruction["id"], "STARTED")
        return None

    def _begin(self, control_type: str) -> None:
        """Be idle when control by envelope begins, and forget the envelope when it ends."""
        super()._begin(control_type)
        self.envelope.lift()
        if control_type == PEBC:
            self.switch("idle")

    async def _say_under_control(self, messages: Callable[[], Iterable[Message]]) -> None:
        """Send news of the storage under control by fill rate only."""
        if self.control_type == FRBC:
            await super()._say_under_control(messages)

    def _introduction(self) -> Iterable[Message]:
        if self.control_type == PEBC:
            return [self.envelope.constraints(self.moment)]
        return super()._introduction()

    def _news(self) -> Iterable[Message]:
        return () if self.control_type == PEBC else super()._news()


def _is_envelope(instruction: Message) -> bool:
    return bool(instruction["message_type"] == "PEBC.Instruction")
