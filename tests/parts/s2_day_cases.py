"""Two days of simulated devices, with every device's cost, the lowest possible one, and that without control.

The first is of devices under fill rate based control, in Wh and W, the second of devices of all other control
types, in kWh and kW; costs are EUR.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

import numpy as np

from tests.parts.s2_day import (
    DAY,
    Array,
    Day,
    Economy,
    RecordProperty,
    consumed,
    following,
    quarters,
    report,
)
from tests.parts.s2_device import (
    AMSTERDAM,
    HOUR,
    MINUTE,
    QUARTER,
    THREE_PHASES,
    ControlledDevice,
    Curve,
)
from tests.parts.s2_devices import (
    Boiler,
    ElectricVehicle,
    HomeBattery,
    StorageDevice,
    TwinBattery,
    warm_water,
)
from tests.parts.s2_envelope_devices import EnvelopeCharger, PvInverter, sunny
from tests.parts.s2_messages import Message
from tests.parts.s2_mode_devices import (
    GAS_FLOW,
    HEAT,
    KWH_PER_M3,
    DemandDevice,
    DistrictHeat,
    HeatPump,
    HybridHeatPump,
    StepCharger,
    heating,
)
from tests.parts.s2_profile_devices import Dishwasher, Dryer, ProfileDevice, WashingMachine

HAIR = 0.06
"""The tolerance of costs (EUR), since the search for a storage's optimum is on a grid."""
SELDOM = timedelta(hours=6)
"""The time between forecasts in the test: every forecast causes a plan of the site."""
FEEDING_IN = {10: -0.02, 12: -0.08, 14: -0.05, 15: 0.0}
"""The price of feeding in (EUR/kWh) by the hour of the day, where it is not the price of consumption."""
SUN = 40_000.0
"""The peak of the sun (W): whenever feeding in yields nothing, it exceeds the site's consumption."""
GAS_PRICE, HEAT_PRICE = 0.60, 0.105
"""EUR/m3, EUR/kWh."""
MINUTES = 1440
LEAST_GAIN = 0.9
"""The fraction of the possible gain that a plan has to reach."""
ROUGH = 0.05
"""The fraction of it that the search for the optimum may miss, since its transitions take no time."""
ECO = [*[1.1] * 30, *[0.18] * 110, *[0.45] * 20]
QUICK = [*[2.2] * 20, *[0.3] * 30, *[0.6] * 10]
WASH = [*[2.0] * 20, *[0.12] * 40, *[1.8] * 15]
DRY = [0.8] * 25
DRYING = [*[2.0] * 80, *[0.3] * 20]
"""Programmes: kW by the minute."""
STEPS = [(0.0, 2.755), (3.7, 1.645), (7.4, 0.72), (11.0, 0.0)]
"""The step charger's powers (kW), and the cost of not charging more in an hour (EUR)."""


def check_obedience(devices: Iterable[ControlledDevice]) -> None:
    """Assert that devices were instructed, and could execute their instructions."""
    for device in devices:
        assert device.instructions, device
        assert device.rejected == [], device
        assert device.violations == [], (device, device.violations)


# Storages


@dataclass
class Storages:
    """The four devices of the first day; the car has to be charged at the departure."""

    battery: HomeBattery
    car: ElectricVehicle
    boiler: Boiler
    twin: TwinBattery
    departure: datetime

    @property
    def all(self) -> list[StorageDevice]:
        """The devices."""
        return [self.battery, self.car, self.boiler, self.twin]


@dataclass
class StorageCase:
    """A device after its day, and the cost (EUR) and the energy left (Wh) without control.

    `least` is the energy that it must have (Wh) after a number of quarters.
    """

    name: str
    device: StorageDevice
    economy: Economy
    cost_of_nothing: float
    left_by_nothing: float
    least: Callable[[int], float] = lambda _: 0.0


@asynccontextmanager
async def storages(day: Day, every: float | None) -> AsyncIterator[Storages]:
    """Connect the devices of the first day, which send updates every `every` seconds."""
    departure = (day.begin + timedelta(hours=9)).replace(minute=0, second=0)
    devices = Storages(
        HomeBattery(day.url, every=every),
        ElectricVehicle(day.url, every=every, departure=departure),
        Boiler(day.url, every=every),
        TwinBattery(day.url, every=every),
        departure,
    )
    async with devices.battery, devices.car, devices.boiler, devices.twin:
        yield devices


def check_storages(day: Day, devices: Storages, record_property: RecordProperty) -> None:
    """Report the costs of the day of the storages, and assert that they were used well."""
    cases = [
        home_battery("home battery", devices.battery),
        StorageCase(
            "twin battery",
            devices.twin,
            Economy(8000, [-4000, -3000, -1000, 0, 1000, 3000, 4000], 0.94),
            0,
            4000,
        ),
        charged_at_once(day, devices.car, devices.departure),
        kept_warm(day, devices.boiler),
    ]
    figures = {case.name: judged(day, case) for case in cases}
    for name, (cost, nothing, optimum) in figures.items():
        report(record_property, name, cost=cost, nothing=nothing, optimum=optimum)
    check_obedience(devices.all)
    assert level_at(devices.car, devices.departure) >= 79.5
    assert sum(units for _, units in devices.boiler.shortfalls) < 0.2
    for name, (cost, nothing, optimum) in figures.items():
        assert cost > optimum - 0.1 * (nothing - optimum) - HAIR, (
            f"{name}: the cost is below the optimum by more than its grid explains"
        )
        assert nothing - cost > 0.6 * (nothing - optimum) - HAIR, name


def home_battery(name: str, battery: HomeBattery) -> StorageCase:
    """Return the case of a home battery, which stays half full without control."""
    return StorageCase(name, battery, Economy(10_000, [-5000, -2500, 0, 2500, 5000], 0.95), 0, 5000)


def judged(day: Day, case: StorageCase) -> tuple[float, float, float]:
    """Return the cost of a day, that without control, and the lowest possible one (EUR).

    The difference in stored energy to that without control counts at the mean price.
    """
    prices = quarters(day)
    start = energy_in(case, case.device.log[0][1])
    end = energy_in(case, case.device.fill_level)
    worth = (end - case.left_by_nothing) / case.economy.efficiency / 1000 * sum(prices) / len(prices)
    optimum = case.economy.optimum(day.begin, prices, start, end, case.least)
    return case.device.cost(day.price), case.cost_of_nothing + worth, optimum


def energy_in(case: StorageCase, level: float) -> float:
    """Return the energy of a fill level (Wh) above the start of the range."""
    limits = case.device.description["storage"]["fill_level_range"]
    low, high = float(limits["start_of_range"]), float(limits["end_of_range"])
    return (level - low) / (high - low) * case.economy.capacity


def level_at(device: StorageDevice, moment: datetime) -> float:
    """Return the fill level that a device had at a moment."""
    return next(level for at, level, _power in device.log if at >= moment)


def charged_at_once(day: Day, car: ElectricVehicle, departure: datetime) -> StorageCase:
    """Return the case of a car, which without control charges immediately, at full power."""
    hours = 30_000 / 0.92 / 11_040
    cost = sum(price * 2.76 * min(1, max(0, hours * 4 - place)) for place, price in enumerate(quarters(day)))
    leaves = (departure - day.begin) // QUARTER
    economy = Economy(60_000, [0, 4140, 7500, 11_040], 0.92)
    least = partial(at_least_at, leaves)
    return StorageCase("electric vehicle", car, economy, cost, 48_000, least)


def at_least_at(leaves: int, quarter: int) -> float:
    """Return the energy that a car must have (Wh) after a number of quarters."""
    return 48_000.0 if quarter == leaves else 0.0


def kept_warm(day: Day, boiler: Boiler) -> StorageCase:
    """Return the case of a boiler, which without control a thermostat keeps as warm as it was."""
    thermostat = Boiler("ws://nowhere", start=day.begin)
    while thermostat.moment < day.begin + DAY:
        wanted = "on" if thermostat.fill_level < boiler.log[0][1] else "off"
        thermostat.instruct(thermostat.instruction(wanted))
        thermostat.advance(thermostat.moment + QUARTER)
    economy = Economy(25 * 233, [0, 2500], 0.98, boiler_drain)
    left = (thermostat.fill_level - 40) * 233
    return StorageCase("boiler", boiler, economy, thermostat.cost(day.price), left)


def boiler_drain(moment: datetime, energy: Array) -> Array:
    """Return the losses and usage of a boiler (W) at energies (Wh) above those at 40 °C."""
    level = 40 + energy / 233
    leak = np.where(level < 50, 0.3, 0.6) / 3600
    return (leak + warm_water(moment)) * 233 * 3600


# The other control types: prices and devices


def fed_in(moment: datetime) -> float:
    """Return the price of feeding in (EUR/kWh)."""
    return FEEDING_IN.get(moment.astimezone(AMSTERDAM).hour, consumed(moment))


def worth(moment: datetime) -> float:
    """Return the value of a kWh at the site (EUR): nothing where it would be curtailed otherwise."""
    return max(fed_in(moment), 0.0)


class Panels(PvInverter):
    """A solar inverter that rarely sends a forecast."""

    def _forecast_news(self) -> Iterable[Message]:
        is_early = self._forecast_at and self.moment < self._forecast_at + SELDOM
        return () if is_early else super()._forecast_news()


class Seldom(DemandDevice):
    """A device with a demand that rarely sends a forecast."""

    def _news(self) -> Iterable[Message]:
        is_due = self.moment >= self._forecast_at + SELDOM
        return self._introduction() if is_due else self._status_news()


class Hybrid(Seldom, HybridHeatPump):
    """A hybrid heat pump that rarely sends a forecast."""


class Station(Seldom, DistrictHeat):
    """District heat that rarely sends a forecast."""


@dataclass
class Household:
    """The devices of the second day, and the deadlines of those that have one."""

    pump: HeatPump
    stepper: StepCharger
    car: EnvelopeCharger
    washer: WashingMachine
    dishwasher: Dishwasher
    dryer: Dryer
    hybrid: Hybrid
    station: Station
    panels: Panels
    morning: datetime
    noon: datetime
    afternoon: datetime

    @property
    def consumers(self) -> list[ControlledDevice]:
        """All but the panels."""
        machines = self.washer, self.dishwasher, self.dryer
        return [self.pump, self.stepper, self.car, *machines, self.hybrid, self.station]

    @property
    def all(self) -> list[ControlledDevice]:
        """The devices."""
        return [*self.consumers, self.panels]

    @property
    def deadlines(self) -> list[tuple[ProfileDevice, datetime]]:
        """The machines and their deadlines."""
        return [(self.washer, self.afternoon), (self.dishwasher, self.morning), (self.dryer, self.noon)]


@asynccontextmanager
async def household(day: Day, every: float | None) -> AsyncIterator[Household]:
    """Connect the devices of the second day, which send updates every `every` seconds."""
    evening = day.begin.astimezone(AMSTERDAM)
    morning, afternoon = (following(evening, hour) for hour in (7, 17))
    noon = following(evening, 14) + timedelta(minutes=30)
    sun = sunny(SUN)
    devices = Household(
        HeatPump(day.url, every=every),
        StepCharger(day.url, every=every),
        EnvelopeCharger(day.url, every=every, departure=morning),
        WashingMachine(day.url, every=every, deadline=afternoon),
        Dishwasher(day.url, every=every, deadline=morning),
        Dryer(day.url, every=every, deadline=noon),
        Hybrid(day.url, every=every),
        Station(day.url, every=every),
        Panels(day.url, every=every, production=sun, lower=[(-SUN, 0.0)], quantity=THREE_PHASES),
        morning,
        noon,
        afternoon,
    )
    async with (
        devices.pump,
        devices.stepper,
        devices.car,
        devices.washer,
        devices.dishwasher,
        devices.dryer,
        devices.hybrid,
        devices.station,
        devices.panels,
    ):
        yield devices


# The devices' flows and costs


def by_minute(day: Day, device: ControlledDevice, quantity: str | None = None) -> Array:
    """Return a device's mean power (kW) in every minute of the day; or the flow of a quantity, in 1/1000."""
    means = np.zeros(MINUTES)
    for (since, _, _), (until, doing, power) in pairwise(device.log):
        minute = (since - day.begin) // MINUTE
        if minute < MINUTES:
            flow = dict(doing.flows)[quantity] if quantity else power
            means[minute] += flow / 1000 * ((until - since) / MINUTE)
    return means


def minutely(day: Day, price: Curve) -> Array:
    """Return a price, or another curve, at every minute of the day."""
    return np.array([price(day.begin + place * MINUTE) for place in range(MINUTES)])


def paid(day: Day, powers: Array) -> float:
    """Return the cost (EUR) of powers (kW) by the minute."""
    return float(powers @ minutely(day, day.price)) / 60


# The costs without control, and the lowest possible ones


@dataclass
class Case:
    """A device after its day: its cost, that without control, and the lowest possible one (EUR)."""

    name: str
    cost: float
    nothing: float
    optimum: float


def heated(day: Day, pump: HeatPump) -> Case:
    """Return the case of the heat pump, which without control is either on or off all day."""
    cost = paid(day, by_minute(day, pump)) + pump.running_costs + pump.transition_costs
    nothing = min(sum(2.5 * price / 4 for price in quarters(day)) + 0.02 * 24, 0.35 * 24)
    return Case("heat pump", cost, nothing, cheapest_heating(day))


def cheapest_heating(day: Day) -> float:
    """Return the lowest cost of the heat pump, searched backwards in steps of five minutes."""
    least_on, least_off = 6, 4
    ahead = {(is_on, age): 0.0 for is_on in (False, True) for age in range(1, 7)}

    def slot(is_on: bool, age: int, price: float) -> float:
        starts = 0.9 if is_on and age == 1 else 1.0
        hourly = 2.5 * price * starts + 0.02 if is_on else 0.35
        return hourly / 12 + ahead[is_on, min(age, 6)]

    for price in minutely(day, day.price)[::-5]:
        ahead = {
            (is_on, age): min(
                slot(is_on, age + 1, price),
                slot(not is_on, 1, price) if age >= (least_on if is_on else least_off) else np.inf,
            )
            for is_on, age in ahead
        }
    return ahead[False, 6]


def charged_by_steps(day: Day, charger: StepCharger) -> Case:
    """Return the case of the charger of three steps, which without control is always at its highest."""
    prices = quarters(day)
    cost = paid(day, by_minute(day, charger)) + charger.running_costs
    least = sum(min(power * price + loss for power, loss in STEPS) for price in prices) / 4
    return Case("step charger", cost, sum(11 * price for price in prices) / 4, least)


def charged_in_time(day: Day, charger: EnvelopeCharger, departure: datetime) -> Case:
    """Return the case of the car, which without control takes its 20 kWh immediately."""
    prices = quarters(day)[: (departure - day.begin) // QUARTER]
    at_once, least = filled(20.0, 11.04, prices), filled(20.0, 11.04, sorted(prices))
    return Case("envelope charger", paid(day, by_minute(day, charger)), at_once, least)


def filled(energy: float, power: float, prices: Iterable[float]) -> float:
    """Return the cost of an energy (kWh) at a power (kW), in successive quarters with these prices."""
    cost = 0.0
    for price in prices:
        part = min(energy, power / 4)
        energy, cost = energy - part, cost + part * price
    return cost


def costs_from(day: Day, programme: Sequence[float]) -> Array:
    """Return the cost of a programme (EUR) by the minute at which it begins."""
    return np.correlate(minutely(day, day.price), programme, "valid") / 60


def washed(day: Day, machine: WashingMachine, deadline: datetime) -> Case:
    """Return the case of the washing machine, which without control runs its long programme immediately."""
    last = (deadline - day.begin) // MINUTE
    eco, quick = costs_from(day, ECO), costs_from(day, QUICK)
    least = min(eco[: last - len(ECO) + 1].min(), quick[: last - len(QUICK) + 1].min())
    return Case("washing machine", paid(day, by_minute(day, machine)), eco[0], least)


def dishes_washed(day: Day, machine: Dishwasher, deadline: datetime) -> Case:
    """Return the case of the dishwasher, which without control runs immediately."""
    last = (deadline - day.begin) // MINUTE
    wash, dry = costs_from(day, WASH), costs_from(day, DRY)
    starts = range(last - len(WASH) - len(DRY) + 1)
    least = min(
        wash[start] + dry[start + len(WASH) + pause]
        for start in starts
        for pause in range(min(30, starts[-1] - start) + 1)
    )
    cost = paid(day, by_minute(day, machine))
    return Case("dishwasher", cost, wash[0] + dry[len(WASH)], least)


def dried(day: Day, dryer: Dryer, deadline: datetime) -> Case:
    """Return the case of the dryer, which without control runs immediately; at best it may pause at will."""
    prices = minutely(day, day.price)[: (deadline - day.begin) // MINUTE]
    powers = np.array(DRYING)
    ahead = np.full(len(powers) + 1, np.inf)
    ahead[-1] = 0.0
    for price in prices[::-1]:
        ahead[:-1] = np.minimum(ahead[:-1], powers * price / 60 + ahead[1:])
    cost = paid(day, by_minute(day, dryer))
    return Case("dryer", cost, costs_from(day, DRYING)[0], ahead[0])


def demands(day: Day) -> list[tuple[float, float]]:
    """Return the demand for heat (kW) and the price of electricity in every quarter."""
    return [(heating(day.begin + place * QUARTER), price) for place, price in enumerate(quarters(day))]


def heated_by_two(day: Day, pump: HybridHeatPump) -> Case:
    """Return the case of the hybrid heat pump, which without control uses gas alone or little of it."""

    def hourly(by_pump: float, by_gas: float, price: float) -> float:
        power = 0.5 + (by_pump - 2) / 3 if by_pump else 0.0
        return (power + (0.05 if by_gas else 0)) * price + by_gas * GAS_PRICE / KWH_PER_M3 / 0.95

    def ways(demand: float) -> Iterator[tuple[float, float]]:
        for by_pump in (0.0, *np.linspace(2, 8, 601), demand):
            by_gas = demand - by_pump
            if 0 <= by_pump <= 8 and (by_gas == 0 or 3 <= by_gas <= 20):
                yield by_pump, by_gas

    gas = sum(hourly(0, max(demand, 3), price) for demand, price in demands(day)) / 4
    pumped = sum(hourly(*max(ways(demand)), price) for demand, price in demands(day)) / 4
    least = sum(min(hourly(*way, price) for way in ways(demand)) for demand, price in demands(day)) / 4
    cubic_metres = by_minute(day, pump, GAS_FLOW).sum() * 60
    cost = paid(day, by_minute(day, pump)) + cubic_metres * GAS_PRICE
    return Case("hybrid heat pump", cost, min(gas, pumped), least)


def heated_from_afar(day: Day, station: DistrictHeat) -> Case:
    """Return the case of the district heat, which without control takes all heat from the grid."""
    least = sum(
        min(step * price + (demand - step) * HEAT_PRICE for step in (0, 3, 6, 9) if step <= demand)
        for demand, price in demands(day)
    )
    nothing = sum(demand * HEAT_PRICE for demand, _ in demands(day))
    heat = by_minute(day, station, HEAT).sum() / 60
    cost = paid(day, by_minute(day, station)) + heat * HEAT_PRICE
    return Case("district heat", cost, nothing / 4, least / 4)


def shone(day: Day, panels: PvInverter, load: Array) -> Case:
    """Return the case of the panels, with a load (kW) by the minute; without control nothing is curtailed.

    Where feeding in yields nothing or costs money, the production that the load takes is worth its price.
    """
    sun, costs, yields = sunlight(day, panels), minutely(day, consumed), minutely(day, fed_in)

    def cost(production: Array) -> float:
        net = load - production
        free = np.where(net > 0, costs, yields) * net
        return float(np.where(yields > 0, -production * yields, free).sum()) / 60

    best = np.where(yields < 0, np.minimum(sun, load), sun)
    return Case("solar panels", cost(-by_minute(day, panels)), cost(sun), cost(best))


def sunlight(day: Day, panels: PvInverter) -> Array:
    """Return the power available from the sun (kW) by the minute."""
    return minutely(day, panels.production) / 1000


def curtailed(day: Day, panels: PvInverter) -> dict[int, float]:
    """Return the curtailed energy (kWh) by the hour of the day in Amsterdam."""
    cut = (sunlight(day, panels) + by_minute(day, panels)).reshape(-1, 60).sum(axis=1) / 60
    return {(day.begin + place * HOUR).astimezone(AMSTERDAM).hour: energy for place, energy in enumerate(cut)}


def check_household(day: Day, devices: Household, record_property: RecordProperty) -> None:
    """Report the costs of the second day, and assert that every device did its work, and well."""
    load = np.sum([by_minute(day, device) for device in devices.consumers], axis=0)
    cases = [
        heated(day, devices.pump),
        charged_by_steps(day, devices.stepper),
        charged_in_time(day, devices.car, devices.morning),
        washed(day, devices.washer, devices.afternoon),
        dishes_washed(day, devices.dishwasher, devices.morning),
        dried(day, devices.dryer, devices.noon),
        heated_by_two(day, devices.hybrid),
        heated_from_afar(day, devices.station),
        shone(day, devices.panels, load),
    ]
    for case in cases:
        report(record_property, case.name, cost=case.cost, nothing=case.nothing, optimum=case.optimum)
    check_obedience(devices.all)
    assert devices.car.shortfalls == []
    assert devices.car.delivered >= 19_980
    assert [run.label for run in devices.washer.runs] in (["eco"], ["quick"])
    assert [run.label for run in devices.dishwasher.runs] == ["wash", "dry"]
    assert [run.label for run in devices.dryer.runs] == ["drying"]
    for machine, deadline in devices.deadlines:
        assert machine.runs[-1].end <= deadline
    for device in (devices.hybrid, devices.station):
        assert device.unmet < 0.1
        assert device.surplus < 0.1
    is_free = minutely(day, fed_in) <= 0
    assert (sunlight(day, devices.panels) > load)[is_free].all(), "else a kWh is worth something then"
    cut = curtailed(day, devices.panels)
    assert {hour for hour, energy in cut.items() if energy > 0.01} == {10, 12, 14}, cut
    for case in cases:
        possible = case.nothing - case.optimum
        assert possible > 0, case
        assert case.cost > case.optimum - ROUGH * possible, case
        assert case.nothing - case.cost > LEAST_GAIN * possible, case
