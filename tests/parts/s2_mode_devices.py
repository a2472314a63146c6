"""Simulated devices of operation modes without a storage: under OMBC and DDBC."""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Required, TypedDict

from s2python.common import CommodityQuantity, ControlType
from s2python.ddbc import DDBCInstruction
from s2python.ombc import OMBCInstruction

from tests.parts.s2_device import (
    AMSTERDAM,
    HOUR,
    MILLISECOND,
    MINUTE,
    POWER,
    QUARTER,
    SECOND,
    THREE_PHASES,
    Controlled,
    Curve,
    LogEntry,
    ModeDevice,
    Rule,
    Rules,
    StateMachine,
    Timers,
    between_all,
    floor,
    named_id,
    number_range,
    power_range,
    quarterly,
    transitions,
)
from tests.parts.s2_messages import Message, example

OMBC = ControlType.OPERATION_MODE_BASED_CONTROL.value
DDBC = ControlType.DEMAND_DRIVEN_BASED_CONTROL.value
GAS_FLOW = CommodityQuantity.NATURAL_GAS_FLOW_RATE
HEAT = CommodityQuantity.HEAT_THERMAL_POWER
ELECTRIC = "ELECTRIC."
KWH_PER_M3 = 9.77
"""The energy in natural gas (higher heating value)."""
SHORT = 0.02
"""The fraction of the demand that may be missing without a violation."""


class _Machine(StateMachine):
    """An actuator of which nothing flows during a transition."""

    def flow(self, quantity: str) -> float:
        """Return the flow of a commodity quantity, in its own unit (W, l/s, ...)."""
        if self.ready:
            return 0.0
        powers = self.modes[self.mode]["power_ranges"]
        return sum(self.between(power) for power in powers if power["commodity_quantity"] == quantity)

    def running_costs(self) -> float:
        """Return the running costs of the mode (EUR/s): the middle of their range."""
        costs = self.modes[self.mode].get("running_costs") or number_range(0, 0)
        return float(costs["start_of_range"] + costs["end_of_range"]) / 2


class _FlowingDevice[Machine: _Machine](ModeDevice[Machine]):
    """A device whose commodities flow, and whose costs arise, as its operation modes say."""

    role = "ENERGY_CONSUMER"

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.running_costs = 0.0
        """The running costs so far (EUR), without the commodities."""
        self.transition_costs = 0.0
        """The costs of transitions so far (EUR)."""

    @property
    def power(self) -> float:
        """The present power in W."""
        return self._flow(self.quantity)

    def _flow(self, quantity: str) -> float:
        return sum(machine.flow(quantity) for machine in self.actuators.values())

    def _live(self, seconds: float) -> None:
        self.running_costs += seconds * sum(machine.running_costs() for machine in self.actuators.values())

    def _execute(self, instruction: Message) -> str | None:
        machine = self._instructed(instruction)
        before = machine.mode
        if refusal := super()._execute(instruction):
            return refusal
        if machine.mode != before:
            passed = machine.transitions[before, machine.mode]
            self.transition_costs += passed.get("transition_costs", 0.0)
        return None

    def _introduction(self) -> Iterable[Message]:
        yield self._described()
        yield from self._statuses()

    def _news(self) -> Iterable[Message]:
        yield from self._status_news()


# Operation mode based control


class _OperationModeBased(Controlled):
    control_type = ControlType.OPERATION_MODE_BASED_CONTROL
    instructions = (OMBCInstruction,)


class OperationModeDevice(_FlowingDevice[_Machine]):
    """A device with an OMBC.SystemDescription, which starts in the first of its modes."""

    offers: ClassVar[dict[str, type[Controlled]]] = {OMBC: _OperationModeBased}
    prefix = "OMBC"
    status_type = "Status"

    def __init__(self, url: str, *, description: Message, **options: Any) -> None:
        quantity = description["operation_modes"][0]["power_ranges"][0]["commodity_quantity"]
        super().__init__(url, quantity=quantity, **options)
        self.description = description
        self.machine = _Machine(description)
        self.actuators = {"": self.machine}

    @property
    def mode(self) -> str:
        """The label of the active mode."""
        return self.machine.label(self.machine.mode)

    def actuator_of(self, instruction: Message) -> _Machine:
        """Return the device as a whole: it is the only actuator."""
        return self.machine

    def ids_of(self, actuator: str) -> dict[str, str]:
        """Return nothing: the messages are about the device as a whole."""
        return {}


class Mode(TypedDict, total=False):
    """An operation mode: its PowerRanges, running costs (EUR/h) and supply (a NumberRange)."""

    power_ranges: Required[list[Message]]
    per_hour: float
    supply: Message
    abnormal: bool


def operation_modes(
    label: str,
    modes: Mapping[str, Mode],
    rules: Rules,
    timers: Timers | None = None,
) -> Message:
    """Return operation modes, transitions and timers, from labels."""
    ids = {name: named_id(label, name) for name in (*modes, *(timers or {}))}
    return {
        "operation_modes": [
            {
                "id": ids[name],
                "diagnostic_label": name,
                "power_ranges": mode["power_ranges"],
                "running_costs": number_range(*[mode.get("per_hour", 0.0) / 3600] * 2),
                "abnormal_condition_only": mode.get("abnormal", False),
            }
            | ({"supply_range": mode["supply"]} if "supply" in mode else {})
            for name, mode in modes.items()
        ]
    } | transitions(label, ids, modes, rules, timers)


class HeatPump(OperationModeDevice):
    """A heat pump of 2.5 kW with minimum on and off times.

    Being off costs `comfort`, being on `wear` (EUR/h): running is worth it up to a price of
    (comfort - wear) / 2.5 EUR/kWh. It can have a `boost` mode (W), and has emergency heating of 6 kW.
    """

    def __init__(
        self,
        url: str,
        *,
        power: float = 2500.0,
        boost: float | None = None,
        comfort: float = 0.35,
        wear: float = 0.02,
        on_time: timedelta = 30 * MINUTE,
        off_time: timedelta = 20 * MINUTE,
        starting: timedelta = 30 * SECOND,
        name: str = "Heat pump",
        **options: Any,
    ) -> None:
        on, off = "minimum on time", "minimum off time"
        modes: dict[str, Mode] = {
            "off": {"power_ranges": [power_range(POWER, 0)], "per_hour": comfort},
            "on": {"power_ranges": [power_range(POWER, power)], "per_hour": wear},
            "emergency heat": {"power_ranges": [power_range(POWER, 6000)], "abnormal": True},
        }
        rules: dict[tuple[str, str], Rule] = {
            ("off", "on"): {"starts": [on], "blocked_by": [off], "seconds": starting / SECOND},
            ("on", "off"): {"starts": [off], "blocked_by": [on]},
            ("off", "emergency heat"): {"abnormal": True},
            ("on", "emergency heat"): {"abnormal": True},
            ("emergency heat", "off"): {},
        }
        if boost:
            modes["boost"] = {"power_ranges": [power_range(POWER, boost)], "per_hour": 2 * wear}
            rules |= between_all("on", "boost", seconds=10)
        fields = operation_modes(name, modes, rules, {on: on_time, off: off_time})
        description = example("OMBC.SystemDescription", **fields)
        super().__init__(url, description=description, name=name, **options)


class StepCharger(OperationModeDevice):
    """A charger of three steps (W), with transitions between neighbouring steps only.

    `worth` is the value of what each further step charges (EUR/kWh), a cost where it is not charged.
    """

    def __init__(
        self,
        url: str,
        *,
        steps: Iterable[float] = (3700.0, 7400.0, 11000.0),
        worth: Iterable[float] = (0.30, 0.25, 0.20),
        seconds: float = 10,
        name: str = "Step charger",
        **options: Any,
    ) -> None:
        powers = [0.0, *steps]
        labels = ["off", *(f"{power / 1000:g} kW" for power in powers[1:])]
        gains = [
            (upper - lower) / 1000 * value
            for (lower, upper), value in zip(pairwise(powers), worth, strict=True)
        ]
        modes: dict[str, Mode] = {
            label: {"power_ranges": [power_range(THREE_PHASES, power)], "per_hour": sum(gains[step:])}
            for step, (label, power) in enumerate(zip(labels, powers, strict=True))
        }
        rules: dict[tuple[str, str], Rule] = {
            pair: {"seconds": seconds}
            for lower, upper in pairwise(labels)
            for pair in ((lower, upper), (upper, lower))
        }
        description = example("OMBC.SystemDescription", **operation_modes(name, modes, rules))
        super().__init__(url, description=description, name=name, **options)


# Demand driven based control


class _DemandDriven(Controlled):
    control_type = ControlType.DEMAND_DRIVEN_BASED_CONTROL
    instructions = (DDBCInstruction,)


class _Source(_Machine):
    """An actuator that supplies the demand."""

    def supply(self) -> float:
        """Return the present supply."""
        return 0.0 if self.ready else self.between(self.modes[self.mode]["supply_range"])

    def come_near(self, demand: float, moment: datetime) -> None:
        """Go at once to the mode and factor that supply a demand, or else the most below it."""
        if self.ready:
            return
        best: tuple[float, str, float] | None = None
        for mode, described in self.modes.items():
            low, high = described["supply_range"].values()
            if described["abnormal_condition_only"] or low > demand:
                continue
            factor = min(1.0, (demand - low) / (high - low)) if high > low else 0.0
            reached = low + factor * (high - low)
            if best is None or reached > best[0]:
                best = (reached, mode, factor)
        if best:
            _, mode, factor = best
            self.jump(mode, factor, moment)


class Output(NamedTuple):
    """A log entry: what the device did, in words, and the flow of every further commodity quantity."""

    doing: str
    flows: tuple[tuple[str, float], ...]


class DemandDevice(_FlowingDevice[_Source]):
    """A device with a DDBC.SystemDescription, which supplies a demand as instructed.

    `demand` is evaluated every minute. The device sends a `forecast` of it, by default of the same; without
    `foretells` it sends the present demand instead, whenever that changes. Until its first instruction, and
    without control, each actuator in turn supplies what it can of the demand. With `official` the description
    follows the official schema instead of s2-python's.
    """

    offers: ClassVar[dict[str, type[Controlled]]] = {DDBC: _DemandDriven}
    prefix = "DDBC"
    log: list[LogEntry[Output]]

    def __init__(
        self,
        url: str,
        *,
        description: Message,
        demand: Curve,
        forecast: Curve | None = None,
        foretells: bool = True,
        official: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self.actuators = {source["id"]: _Source(source) for source in description["actuators"]}
        self.demand = demand
        self.forecast = (forecast or demand) if foretells else None
        self.as_json = frozenset({"DDBC.SystemDescription"}) if official else frozenset()
        self.official = official
        self.description = description
        self.unmet = 0.0
        """The demand that was not supplied, in the unit of the demand times hours."""
        self.surplus = 0.0
        """The supply beyond the demand, in the same unit."""
        self._by_itself = True
        self._short_since: datetime | None = None
        self._is_noted = False
        self._sent_demand = 0.0
        self._forecast_at = self.moment
        self._supply_by_itself()

    # Physics

    @property
    def supply(self) -> float:
        """The present supply."""
        return sum(machine.supply() for machine in self.actuators.values())

    def consumed(self, quantity: str) -> float:
        """Return the consumption in the log of a commodity quantity, in its unit times hours."""
        return sum(
            dict(output.flows).get(quantity, 0.0) * ((end - start) / HOUR)
            for (start, _, _), (end, output, _) in pairwise(self.log)
        )

    def _doing(self) -> Output:
        further = self._details.provides_power_measurements[1:]
        return Output(self.doing, tuple((quantity, self._flow(quantity)) for quantity in further))

    def _demanded(self) -> float:
        """Return the demand of the present minute."""
        return self.demand(floor(self.moment, MINUTE))

    def _step(self, until: datetime) -> None:
        since, demand, supply = self.moment, self._demanded(), self.supply
        super()._step(until)
        hours = (self.moment - since) / HOUR
        self.unmet += max(0.0, demand - supply) * hours
        self.surplus += max(0.0, supply - demand) * hours
        self._watch(since, supply < demand * (1 - SHORT))

    def _watch(self, since: datetime, is_short: bool) -> None:
        """Record a violation, once, if an instructed device misses the demand for more than a minute."""
        if not is_short or self._by_itself:
            self._short_since, self._is_noted = None, False
            return
        self._short_since = self._short_since or since
        if self.moment - self._short_since > MINUTE and not self._is_noted:
            self._is_noted = True
            self.violations.append((self._short_since, "the demand is not met"))

    def _come_to_an_end(self) -> None:
        super()._come_to_an_end()
        if self._by_itself:
            self._supply_by_itself()

    def _supply_by_itself(self) -> None:
        left = self._demanded()
        for machine in self.actuators.values():
            machine.come_near(left, self.moment)
            left = max(0.0, left - machine.supply())

    def _execute(self, instruction: Message) -> str | None:
        refusal = super()._execute(instruction)
        if not refusal:
            self._by_itself = False
        return refusal

    # Messages

    def _begin(self, control_type: str) -> None:
        super()._begin(control_type)
        if control_type not in self.offers:
            self._by_itself = True

    async def set_demand(self, demand: Curve, forecast: Curve | None = None) -> None:
        """Change the demand from now on, and send it with a forecast, by default of the same."""
        self.advance(datetime.now(UTC))
        self.demand = demand
        if self.forecast:
            self.forecast = forecast or demand
        await self._say_under_control(self._introduction)

    def _introduction(self) -> Iterable[Message]:
        yield from super()._introduction()
        if self.forecast:
            yield self._demand_forecast()

    def _news(self) -> Iterable[Message]:
        """Return messages about what changed; all of them every hour, or when the demand changed."""
        if self.forecast:
            is_old = self.moment >= self._forecast_at + HOUR
        else:
            is_old = abs(self._demanded() - self._sent_demand) > SHORT * self._sent_demand
        yield from self._introduction() if is_old else super()._news()

    def _described(self) -> Message:
        self._sent_demand = self._demanded()
        actuators = self.description["actuators"]
        convert = _officially if self.official else _as_s2_python_has_it
        return example(
            "DDBC.SystemDescription",
            valid_from=self.moment.isoformat(),
            actuators=[
                source | {"operation_modes": [convert(mode) for mode in source["operation_modes"]]}
                for source in actuators
            ],
            present_demand_rate=number_range(self._sent_demand, self._sent_demand),
            provides_average_demand_rate_forecast=self.forecast is not None,
        )

    def _demand_forecast(self) -> Message:
        """Return the DDBC.AverageDemandRateForecast: the means over the quarters of an hour of a day."""
        assert self.forecast is not None
        self._forecast_at = self.moment
        start = floor(self.moment, QUARTER)
        return example(
            "DDBC.AverageDemandRateForecast",
            start_time=start.isoformat(),
            elements=[
                {"duration": QUARTER // MILLISECOND, "demand_rate_expected": rate}
                for rate in quarterly(self.forecast, start)
            ],
        )

    def _measured(self) -> dict[str, float]:
        return {quantity: self._flow(quantity) for quantity in self._details.provides_power_measurements}


def _officially(mode: Message) -> Message:
    """Return an operation mode as the official schema has it."""
    return {"Id": mode["id"]} | {name: value for name, value in mode.items() if name != "id"}


def _as_s2_python_has_it(mode: Message) -> Message:
    """Return an operation mode as s2-python has it: its id twice, and a list of supply ranges."""
    return mode | {"Id": mode["id"], "supply_range": [mode["supply_range"]]}


def actuator(
    label: str,
    commodities: Iterable[str],
    modes: Mapping[str, Mode],
    rules: Rules,
    timers: Timers | None = None,
) -> Message:
    """Return a DDBC.ActuatorDescription whose modes have `id`; see `operation_modes`."""
    return {
        "id": named_id(label),
        "diagnostic_label": label,
        "supported_commodites": list(commodities),
    } | operation_modes(label, modes, rules, timers)


def heating(moment: datetime) -> float:
    """Return the heat that a house needs (kW) on a winter's day: from 2.6 at night up to 9."""
    middle = (floor(moment, QUARTER) + QUARTER / 2).astimezone(AMSTERDAM)
    hour = middle.hour + middle.minute / 60
    by_day = 5.0 + 1.5 * math.cos(2 * math.pi * (hour - 7) / 24)
    if time(6) <= middle.time() < time(8):
        return by_day + 2.5
    if middle.time() < time(6) or middle.time() >= time(22, 30):
        return by_day - 1.5
    return by_day


class HybridHeatPump(DemandDevice):
    """A heat pump of 2 to 8 kW (heat) with a gas boiler of 3 to 20 kW, for a demand of heat in kW.

    The heat pump's `cop` is given at 2 kW and at 8 kW.
    """

    commodities = ("ELECTRICITY", "GAS")

    def __init__(
        self,
        url: str,
        *,
        demand: Curve = heating,
        cop: tuple[float, float] = (4.0, 3.2),
        efficiency: float = 0.95,
        boiler_time: timedelta = 15 * MINUTE,
        name: str = "Hybrid heat pump",
        **options: Any,
    ) -> None:
        minimum = "minimum on time"
        pump = actuator(
            "heat pump",
            ["ELECTRICITY"],
            {
                "off": {"power_ranges": [power_range(POWER, 0)], "supply": number_range(0, 0)},
                "on": {
                    "power_ranges": [power_range(POWER, 2000 / cop[0], 8000 / cop[1])],
                    "supply": number_range(2, 8),
                },
            },
            between_all("off", "on", seconds=30),
        )
        flow = 1000 / 3600 / KWH_PER_M3 / efficiency
        boiler = actuator(
            "gas boiler",
            ["GAS", "ELECTRICITY"],
            {
                "off": {
                    "power_ranges": [power_range(GAS_FLOW, 0), power_range(POWER, 0)],
                    "supply": number_range(0, 0),
                },
                "on": {
                    "power_ranges": [power_range(GAS_FLOW, 3 * flow, 20 * flow), power_range(POWER, 50)],
                    "supply": number_range(3, 20),
                },
            },
            {
                ("off", "on"): {"starts": [minimum], "seconds": 10},
                ("on", "off"): {"blocked_by": [minimum], "seconds": 5},
            },
            {minimum: boiler_time},
        )
        super().__init__(
            url,
            description={"actuators": [pump, boiler]},
            demand=demand,
            further_quantities=[GAS_FLOW],
            name=name,
            **options,
        )

    @property
    def gas(self) -> float:
        """The gas that was used (m3)."""
        return self.consumed(GAS_FLOW) * 3600 / 1000

    def cost(self, price: Curve, gas_price: float = 0.0) -> float:
        """Return the cost of the energy in the log (EUR), at prices in EUR/kWh, and EUR/m3 of gas."""
        return super().cost(price) + self.gas * gas_price


class DistrictHeat(DemandDevice):
    """A heat exchanger of 15 kW with an electric boiler of three steps, for a demand of heat in kW."""

    commodities = ("ELECTRICITY", "HEAT")

    def __init__(
        self,
        url: str,
        *,
        demand: Curve = heating,
        exchanger: float = 15.0,
        steps: Iterable[float] = (3.0, 6.0, 9.0),
        name: str = "District heat",
        **options: Any,
    ) -> None:
        closed: Mode = {"power_ranges": [power_range(HEAT, 0)], "supply": number_range(0, 0)}
        opened: Mode = {
            "power_ranges": [power_range(HEAT, 0, exchanger * 1000)],
            "supply": number_range(0, exchanger),
        }
        labels = {"off": 0.0} | {f"{step:g} kW": step for step in steps}
        elements: dict[str, Mode] = {
            label: {
                "power_ranges": [power_range(THREE_PHASES, step * 1000)],
                "supply": number_range(step, step),
            }
            for label, step in labels.items()
        }
        description = {
            "actuators": [
                actuator(
                    "heat exchanger",
                    ["HEAT"],
                    {"closed": closed, "open": opened},
                    between_all("closed", "open", seconds=20),
                ),
                actuator("electric boiler", ["ELECTRICITY"], elements, between_all(*labels)),
            ]
        }
        super().__init__(
            url,
            description=description,
            demand=demand,
            quantity=THREE_PHASES,
            further_quantities=[HEAT],
            name=name,
            **options,
        )

    @property
    def heat(self) -> float:
        """The heat that was taken from the grid (kWh)."""
        return self.consumed(HEAT) / 1000

    def cost(self, price: Curve, heat_price: float = 0.0) -> float:
        """Return the cost of the energy in the log (EUR), at prices of electricity and heat in EUR/kWh."""
        return super().cost(price) + self.heat * heat_price
