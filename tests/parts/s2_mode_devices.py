"""Simulated devices of operation modes without a storage: under OMBC, and under DDBC."""

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import ClassVar, NamedTuple

from s2python.common import CommodityQuantity, ControlType
from s2python.connection.async_.control_type.class_based import DDBCControlType, OMBCControlType

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
    ModeDevice,
    StateMachine,
    between_all,
    floor,
    named_id,
    number_range,
    power_range,
    quarterly,
    transitions,
)
from tests.parts.s2_messages import example

OMBC = ControlType.OPERATION_MODE_BASED_CONTROL.value
DDBC = ControlType.DEMAND_DRIVEN_BASED_CONTROL.value
GAS_FLOW = CommodityQuantity.NATURAL_GAS_FLOW_RATE
HEAT = CommodityQuantity.HEAT_THERMAL_POWER
ELECTRIC = "ELECTRIC."
KWH_PER_M3 = 9.77
"""The energy in natural gas."""
SHORT = 0.02
"""Which part of the demand may be missing without a violation."""


class _Machine(StateMachine):
    """An actuator, of which nothing flows while a transition is under way."""

    def flow(self, quantity: str) -> float:
        """Return what flows of a commodity quantity: W, l/s, ..., as its unit is."""
        if self.ready:
            return 0.0
        powers = self.modes[self.mode]["power_ranges"]
        return sum(self.between(each) for each in powers if each["commodity_quantity"] == quantity)

    def running_costs(self) -> float:
        """Return what it costs to be in the mode, in EUR/s: the middle of what it may be."""
        costs = self.modes[self.mode].get("running_costs") or number_range(0, 0)
        return (costs["start_of_range"] + costs["end_of_range"]) / 2


class _FlowingDevice(ModeDevice):
    """A device of operation modes whose commodities flow as the modes say, and cost as they say."""

    role = "ENERGY_CONSUMER"

    def __init__(self, url: str, **options) -> None:
        super().__init__(url, **options)
        self.running_costs = 0.0
        """What being in the modes has cost (EUR), without the commodities."""
        self.transition_costs = 0.0
        """What going from mode to mode has cost (EUR)."""

    @property
    def power(self) -> float:
        """The present power in W."""
        return self._flow(self.quantity)

    def _flow(self, quantity: str) -> float:
        return sum(machine.flow(quantity) for machine in self.actuators.values())

    def _live(self, seconds: float) -> None:
        self.running_costs += seconds * sum(each.running_costs() for each in self.actuators.values())

    def _execute(self, instruction: dict) -> str | None:
        machine = self.actuator_of(instruction)
        before = machine.mode
        if refusal := super()._execute(instruction):
            return refusal
        if machine.mode != before:
            passed = machine.transitions[before, machine.mode]
            self.transition_costs += passed.get("transition_costs", 0.0)
        return None

    def _introduction(self) -> Iterator[dict]:
        yield self._described()
        yield from self._statuses()

    def _news(self) -> Iterator[dict]:
        yield from self._status_news()


# Operation mode based control


class _OperationModeBased(Controlled, OMBCControlType):
    revokable = ("OMBC.Instruction",)


class OperationModeDevice(_FlowingDevice):
    """A device of an OMBC.SystemDescription, which is first in the first of its modes."""

    offers: ClassVar = {OMBC: _OperationModeBased}
    prefix = "OMBC"
    status_type = "Status"

    def __init__(self, url: str, *, description: dict, **options) -> None:
        quantity = description["operation_modes"][0]["power_ranges"][0]["commodity_quantity"]
        super().__init__(url, quantity=quantity, **options)
        self.description = description
        self.machine = _Machine(description)
        self.actuators = {"": self.machine}

    @property
    def mode(self) -> str:
        """The label of the active mode."""
        return self.machine.label(self.machine.mode)

    def actuator_of(self, instruction: dict) -> StateMachine:
        """Return the only one: the device as a whole."""
        return self.machine

    def ids_of(self, actuator: str) -> dict[str, str]:
        """Return nothing: the messages are about the device as a whole."""
        return {}


def operation_modes(
    label: str,
    modes: dict[str, dict],
    rules: dict[tuple[str, str], dict],
    timers: dict[str, timedelta] | None = None,
) -> dict:
    """Return operation modes, transitions and timers, from labels.

    A mode has `power_ranges`, and maybe `per_hour` (EUR), `supply` (a NumberRange) and `abnormal`.
    """
    of = {name: named_id(label, name) for name in (*modes, *(timers or {}))}
    return {
        "operation_modes": [
            {
                "id": of[name],
                "diagnostic_label": name,
                "power_ranges": mode["power_ranges"],
                "running_costs": number_range(*[mode.get("per_hour", 0.0) / 3600] * 2),
                "abnormal_condition_only": mode.get("abnormal", False),
            }
            | ({"supply_range": mode["supply"]} if "supply" in mode else {})
            for name, mode in modes.items()
        ]
    } | transitions(label, of, modes, rules, timers)


class HeatPump(OperationModeDevice):
    """A heat pump of 2.5 kW that is on or off, each for some time at least.

    To be off costs comfort, to be on wears it (EUR/h): it is worth its power up to a price of
    (comfort - wear) / 2.5 kWh. With `boost` (W) it can do more; in an emergency, 6 kW of plain heating.
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
        **options,
    ) -> None:
        on, off = "minimum on time", "minimum off time"
        modes = {
            "off": {"power_ranges": [power_range(POWER, 0)], "per_hour": comfort},
            "on": {"power_ranges": [power_range(POWER, power)], "per_hour": wear},
            "emergency heat": {"power_ranges": [power_range(POWER, 6000)], "abnormal": True},
        }
        rules = {
            ("off", "on"): {"starts": [on], "blocked_by": [off], "seconds": starting / SECOND},
            ("on", "off"): {"starts": [off], "blocked_by": [on]},
            ("off", "emergency heat"): {"abnormal": True},
            ("on", "emergency heat"): {"abnormal": True},
            ("emergency heat", "off"): {},
        }
        if boost:
            modes["boost"] = {"power_ranges": [power_range(POWER, boost)], "per_hour": 2 * wear}
            rules |= between_all("on", "boost", seconds=10)
        described = operation_modes(name, modes, rules, {on: on_time, off: off_time})
        description = example("OMBC.SystemDescription", **described)
        super().__init__(url, description=description, name=name, **options)


class StepCharger(OperationModeDevice):
    """A charger of three steps, which goes from each to its neighbours only.

    `worth` is what each step more is worth (EUR/kWh): what is not charged costs as much.
    """

    def __init__(
        self,
        url: str,
        *,
        steps: Iterable[float] = (3700.0, 7400.0, 11000.0),
        worth: Iterable[float] = (0.30, 0.25, 0.20),
        seconds: float = 10,
        name: str = "Step charger",
        **options,
    ) -> None:
        powers = [0.0, *steps]
        labels = ["off", *(f"{power / 1000:g} kW" for power in powers[1:])]
        gains = [
            (upper - lower) / 1000 * each
            for (lower, upper), each in zip(pairwise(powers), worth, strict=True)
        ]
        modes = {
            label: {"power_ranges": [power_range(THREE_PHASES, power)], "per_hour": sum(gains[step:])}
            for step, (label, power) in enumerate(zip(labels, powers, strict=True))
        }
        rules = {
            pair: {"seconds": seconds}
            for one, other in pairwise(labels)
            for pair in ((one, other), (other, one))
        }
        description = example("OMBC.SystemDescription", **operation_modes(name, modes, rules))
        super().__init__(url, description=description, name=name, **options)


# Demand driven based control


class _DemandDriven(Controlled, DDBCControlType):
    revokable = ("DDBC.Instruction",)


class _Source(_Machine):
    """An actuator that supplies what is demanded."""

    def supply(self) -> float:
        """Return what it supplies now."""
        return 0.0 if self.ready else self.between(self.modes[self.mode]["supply_range"])

    def come_near(self, demand: float, moment: datetime) -> None:
        """Go at once to the mode and factor that supply a demand, or else come nearest from below."""
        if self.ready:
            return
        best = None
        for mode, described in self.modes.items():
            low, high = described["supply_range"].values()
            if described["abnormal_condition_only"] or low > demand:
                continue
            factor = min(1.0, (demand - low) / (high - low)) if high > low else 0.0
            reached = low + factor * (high - low)
            if best is None or reached > best[0]:
                best = (reached, mode, factor)
        if best:
            self.jump(*best[1:], moment)


class Output(NamedTuple):
    """What a device did until a moment of its log: in words, and what flowed of each further quantity."""

    doing: str
    flows: tuple[tuple[str, float], ...]


class DemandDevice(_FlowingDevice):
    """A device of a DDBC.SystemDescription, which supplies what is demanded as far as it is instructed to.

    `demand` is what is demanded at a moment; it is looked at each minute. `forecast` is what the device
    tells of it, the same unless it is given; without `foretells` it tells none, and the present demand
    when that changes. Until it is instructed, and without control, each actuator in turn supplies what it
    can of the demand. `official` sends the description as the official schema has it, and not as s2-python
    has it.
    """

    offers: ClassVar = {DDBC: _DemandDriven}
    prefix = "DDBC"

    def __init__(
        self,
        url: str,
        *,
        description: dict,
        demand: Curve,
        forecast: Curve | None = None,
        foretells: bool = True,
        official: bool = False,
        **options,
    ) -> None:
        super().__init__(url, **options)
        self.actuators = {each["id"]: _Source(each) for each in description["actuators"]}
        self.demand = demand
        self.forecast = (forecast or demand) if foretells else None
        self.as_json = frozenset({"DDBC.SystemDescription"}) if official else frozenset()
        self.official = official
        self.description = description
        self.unmet = 0.0
        """What was demanded and not supplied, in the unit of the demand times hours."""
        self.surplus = 0.0
        """What was supplied and not demanded, in the same unit."""
        self._by_itself = True
        self._short_since: datetime | None = None
        self._is_noted = False
        self._told_demand = 0.0
        self._forecast_at = self.moment
        self._supply_by_itself()

    # Physics

    @property
    def supply(self) -> float:
        """The present supply."""
        return sum(machine.supply() for machine in self.actuators.values())

    def consumed(self, quantity: str) -> float:
        """Return how much of a quantity was consumed as far as the log goes back: its unit times hours."""
        return sum(
            dict(self.log[place][1].flows).get(quantity, 0.0)
            * ((self.log[place][0] - self.log[place - 1][0]) / HOUR)
            for place in range(1, len(self.log))
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
        lasted = self.moment - since
        self.unmet += max(0.0, demand - supply) * (lasted / HOUR)
        self.surplus += max(0.0, supply - demand) * (lasted / HOUR)
        self._watch(since, supply < demand * (1 - SHORT))

    def _watch(self, since: datetime, is_short: bool) -> None:
        """Note a violation, once, if an instructed device does not meet the demand for more than a minute."""
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

    def _execute(self, instruction: dict) -> str | None:
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
        """Demand otherwise from now on, and tell so: a forecast of the same, unless it is given."""
        self.advance(datetime.now(UTC))
        self.demand = demand
        if self.forecast:
            self.forecast = forecast or demand
        await self._say_under_control(self._introduction)

    def _introduction(self) -> Iterator[dict]:
        yield from super()._introduction()
        if self.forecast:
            yield self._demand_forecast()

    def _news(self) -> Iterator[dict]:
        """Return what changed since it was told, or all anew: each hour, or when the demand changed."""
        if self.forecast:
            is_old = self.moment >= self._forecast_at + HOUR
        else:
            is_old = abs(self._demanded() - self._told_demand) > SHORT * self._told_demand
        yield from self._introduction() if is_old else super()._news()

    def _described(self) -> dict:
        self._told_demand = self._demanded()
        actuators = self.description["actuators"]
        made = _officially if self.official else _as_s2_python_has_it
        return example(
            "DDBC.SystemDescription",
            valid_from=self.moment.isoformat(),
            actuators=[
                each | {"operation_modes": [made(mode) for mode in each["operation_modes"]]}
                for each in actuators
            ],
            present_demand_rate=number_range(self._told_demand, self._told_demand),
            provides_average_demand_rate_forecast=self.forecast is not None,
        )

    def _demand_forecast(self) -> dict:
        """Return the means over quarters of an hour, for a day."""
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


def _officially(mode: dict) -> dict:
    """Return an operation mode as the official schema has it."""
    return {"Id": mode["id"]} | {name: value for name, value in mode.items() if name != "id"}


def _as_s2_python_has_it(mode: dict) -> dict:
    """Return an operation mode as s2-python has it: its id twice, and a list of supply ranges."""
    return mode | {"Id": mode["id"], "supply_range": [mode["supply_range"]]}


def actuator(label: str, commodities: Iterable[str], *modes_and_more) -> dict:
    """Return a DDBC.ActuatorDescription whose modes have `id`; see `operation_modes`."""
    return {
        "id": named_id(label),
        "diagnostic_label": label,
        "supported_commodites": list(commodities),
    } | operation_modes(label, *modes_and_more)


def heating(moment: datetime) -> float:
    """Return what a house needs (kW) on a winter's day: 2.6 at the least, by night, and up to 9."""
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

    The heat pump's `cop` is (at 2 kW, at 8 kW).
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
        **options,
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
        """Return what the energy in the log costs (EUR), at a price in EUR/kWh, and of gas in EUR/m3."""
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
        **options,
    ) -> None:
        closed = {"power_ranges": [power_range(HEAT, 0)], "supply": number_range(0, 0)}
        opened = {
            "power_ranges": [power_range(HEAT, 0, exchanger * 1000)],
            "supply": number_range(0, exchanger),
        }
        labels = {"off": 0.0} | {f"{step:g} kW": step for step in steps}
        elements = {
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
        """Return what the energy in the log costs (EUR), at prices of electricity and heat in EUR/kWh."""
        return super().cost(price) + self.heat * heat_price
