"""Devices of all control types but FRBC live through a day at one site, planned by the real server."""

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest

from tests.apps.flexmeasures.conftest import Side
from tests.parts.s2_day import (
    a_day,
    consumed,
    following,
    lived,
    next_evening,
    posted,
    quarters,
    report,
)
from tests.parts.s2_device import AMSTERDAM, HOUR, MINUTE, QUARTER, THREE_PHASES
from tests.parts.s2_envelope_devices import EnvelopeCharger, PvInverter, sunny
from tests.parts.s2_mode_devices import (
    GAS_FLOW,
    HEAT,
    KWH_PER_M3,
    DistrictHeat,
    HeatPump,
    HybridHeatPump,
    StepCharger,
    heating,
)
from tests.parts.s2_profile_devices import Dishwasher, Dryer, WashingMachine

SELDOM = timedelta(hours=6)
"""How long a forecast holds in the test: each one calls for a plan of the site."""
FEEDING_IN = {10: -0.02, 12: -0.08, 14: -0.05, 15: 0.0}
"""What feeding in yields (EUR/kWh) by the hour of the day, where that is not the price of consumption."""
SUN = 40_000.0
"""The sun's peak (W): whenever feeding in yields nothing, there is more than all the others take."""
GAS_PRICE, HEAT_PRICE = 0.60, 0.105
MINUTES = 1440
LEAST_GAIN = 0.9
"""Which part of the possible gain a plan has to reach."""
ROUGH = 0.05
"""Which part of it the search for the optimum may miss, since there transitions take no time."""
ECO = [*[1.1] * 30, *[0.18] * 110, *[0.45] * 20]
QUICK = [*[2.2] * 20, *[0.3] * 30, *[0.6] * 10]
WASH = [*[2.0] * 20, *[0.12] * 40, *[1.8] * 15]
DRY = [0.8] * 25
DRYING = [*[2.0] * 80, *[0.3] * 20]
"""Programmes: kW by the minute."""
STEPS = [(0.0, 2.755), (3.7, 1.645), (7.4, 0.72), (11.0, 0.0)]
"""The step charger's powers (kW), and what comes of what is not charged in an hour (EUR)."""


def fed_in(moment):
    """Return what feeding in yields (EUR/kWh)."""
    return FEEDING_IN.get(moment.astimezone(AMSTERDAM).hour, consumed(moment))


def worth(moment):
    """Return what a kWh is worth at the site: nothing where it would be curtailed otherwise."""
    return max(fed_in(moment), 0.0)


@pytest.fixture
async def day(monkeypatch, start, app_config, flexmeasures_server):
    """Give the S2 side of a home without a power limit, on the next evening."""
    begin = next_evening()
    bare = Side(None, app_config, flexmeasures_server)
    config = app_config | {
        "consumption_price_sensor": await posted(bare, begin, consumed),
        "production_price_sensor": await posted(bare, begin, fed_in),
        "s2": app_config["s2"] | {"prices": {"gas": GAS_PRICE, "heat": HEAT_PRICE}},
    }
    home = await start(config)
    await home.checked()
    with a_day(monkeypatch, Side(home, config, flexmeasures_server), begin) as side:
        side.price = worth
        yield side


class Panels(PvInverter):
    """A solar inverter that seldom forecasts."""

    def _forecast_news(self):
        is_early = self._forecast_at and self.moment < self._forecast_at + SELDOM
        return () if is_early else super()._forecast_news()


class Seldom:
    """A device with a demand that it seldom forecasts."""

    def _news(self):
        is_due = self.moment >= self._forecast_at + SELDOM
        return self._introduction() if is_due else self._status_news()


class Hybrid(Seldom, HybridHeatPump):
    """A hybrid heat pump that seldom forecasts."""


class Station(Seldom, DistrictHeat):
    """District heat that seldom forecasts."""


# What devices had


def by_minute(day, device, quantity=None):
    """Return a device's mean power (kW) in each minute of the day; or the flow of a quantity, in 1/1000."""
    found = np.zeros(MINUTES)
    for (since, _, _), (until, doing, power) in pairwise(device.log):
        place = (since - day.begin) // MINUTE
        if place < MINUTES:
            had = dict(doing.flows)[quantity] if quantity else power
            found[place] += had / 1000 * ((until - since) / MINUTE)
    return found


def minutely(day, price):
    """Return a price, or another curve, at each minute of the day."""
    return np.array([price(day.begin + place * MINUTE) for place in range(MINUTES)])


def paid(day, powers):
    """Return what powers (kW) by the minute are worth (EUR)."""
    return float(powers @ minutely(day, day.price)) / 60


# What could have been


@dataclass
class Case:
    """A device after its day: what it cost, what doing nothing costs, and the least (EUR)."""

    name: str
    cost: float
    nothing: float
    optimum: float


def heated(day, pump):
    """Return the case of the heat pump, which is on all day, or else off, where nothing is done."""
    cost = paid(day, by_minute(day, pump)) + pump.running_costs + pump.transition_costs
    nothing = min(sum(2.5 * price / 4 for price in quarters(day)) + 0.02 * 24, 0.35 * 24)
    return Case("heat pump", cost, nothing, cheapest_heating(day))


def cheapest_heating(day):
    """Return the lowest cost of the heat pump, searched backwards in steps of five minutes."""
    least_on, least_off = 6, 4
    ahead = dict.fromkeys([(is_on, age) for is_on in (False, True) for age in range(1, 7)], 0.0)
    for price in minutely(day, day.price)[::-5]:

        def slot(is_on, age, price=price, ahead=ahead):
            starts = 0.9 if is_on and age == 1 else 1.0
            hourly = 2.5 * price * starts + 0.02 if is_on else 0.35
            return hourly / 12 + ahead[is_on, min(age, 6)]

        ahead = {
            (is_on, age): min(
                slot(is_on, age + 1),
                slot(not is_on, 1) if age >= (least_on if is_on else least_off) else np.inf,
            )
            for is_on, age in ahead
        }
    return ahead[False, 6]


def charged_by_steps(day, charger):
    """Return the case of the charger of three steps, which always is at its highest without control."""
    prices = quarters(day)
    cost = paid(day, by_minute(day, charger)) + charger.running_costs
    least = sum(min(power * price + loss for power, loss in STEPS) for price in prices) / 4
    return Case("step charger", cost, sum(11 * price for price in prices) / 4, least)


def charged_in_time(day, charger, departure):
    """Return the case of the car, which without control takes its 20 kWh at once."""
    prices = quarters(day)[: (departure - day.begin) // QUARTER]
    at_once, least = (filled(20.0, 11.04, each) for each in (prices, sorted(prices)))
    return Case("envelope charger", paid(day, by_minute(day, charger)), at_once, least)


def filled(energy, power, prices):
    """Return the cost of an energy (kWh) at a power (kW), in quarters of these prices one after the other."""
    cost = 0.0
    for price in prices:
        part = min(energy, power / 4)
        energy, cost = energy - part, cost + part * price
    return cost


def costs_from(day, programme):
    """Return what a programme costs (EUR) if it begins at each minute."""
    return np.correlate(minutely(day, day.price), programme, "valid") / 60


def washed(day, machine, deadline):
    """Return the case of the washing machine, which runs its long programme at once without control."""
    last = (deadline - day.begin) // MINUTE
    eco, quick = costs_from(day, ECO), costs_from(day, QUICK)
    least = min(eco[: last - len(ECO) + 1].min(), quick[: last - len(QUICK) + 1].min())
    return Case("washing machine", paid(day, by_minute(day, machine)), eco[0], least)


def dishes_washed(day, machine, deadline):
    """Return the case of the dishwasher, which runs at once without control."""
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


def dried(day, dryer, deadline):
    """Return the case of the dryer, which without control runs at once; at best it may pause at will."""
    prices = minutely(day, day.price)[: (deadline - day.begin) // MINUTE]
    powers = np.array(DRYING)
    ahead = np.full(len(powers) + 1, np.inf)
    ahead[-1] = 0.0
    for price in prices[::-1]:
        ahead[:-1] = np.minimum(ahead[:-1], powers * price / 60 + ahead[1:])
    cost = paid(day, by_minute(day, dryer))
    return Case("dryer", cost, costs_from(day, DRYING)[0], ahead[0])


def demands(day):
    """Return the demand for heat in each quarter (kW), and the price of electricity."""
    return [(heating(day.begin + place * QUARTER), price) for place, price in enumerate(quarters(day))]


def heated_by_two(day, pump):
    """Return the case of the hybrid heat pump, which uses gas alone or as little of it as it can."""

    def hourly(by_pump, by_gas, price):
        power = 0.5 + (by_pump - 2) / 3 if by_pump else 0.0
        return (power + (0.05 if by_gas else 0)) * price + by_gas * GAS_PRICE / KWH_PER_M3 / 0.95

    def ways(demand):
        for by_pump in (0.0, *np.linspace(2, 8, 601), demand):
            by_gas = demand - by_pump
            if 0 <= by_pump <= 8 and (by_gas == 0 or 3 <= by_gas <= 20):
                yield by_pump, by_gas

    gas = sum(hourly(0, max(demand, 3), price) for demand, price in demands(day)) / 4
    pumped = sum(hourly(*max(ways(demand)), price) for demand, price in demands(day)) / 4
    least = sum(min(hourly(*each, price) for each in ways(demand)) for demand, price in demands(day)) / 4
    cubic_metres = by_minute(day, pump, GAS_FLOW).sum() * 60
    cost = paid(day, by_minute(day, pump)) + cubic_metres * GAS_PRICE
    return Case("hybrid heat pump", cost, min(gas, pumped), least)


def heated_from_afar(day, station):
    """Return the case of the district heat, which without control takes all from the grid."""
    least = sum(
        min(step * price + (demand - step) * HEAT_PRICE for step in (0, 3, 6, 9) if step <= demand)
        for demand, price in demands(day)
    )
    nothing = sum(demand * HEAT_PRICE for demand, _ in demands(day))
    heat = by_minute(day, station, HEAT).sum() / 60
    cost = paid(day, by_minute(day, station)) + heat * HEAT_PRICE
    return Case("district heat", cost, nothing / 4, least / 4)


def shone(day, panels, load):
    """Return the case of the panels, beside a load (kW) by the minute; they are not curtailed by nothing.

    Where feeding in yields nothing, or costs, what the load takes is free, but beyond the sun it is not.
    """
    sun, costs, yields = sunlight(day, panels), minutely(day, consumed), minutely(day, fed_in)

    def cost(production):
        net = load - production
        free = np.where(net > 0, costs, yields) * net
        return float(np.where(yields > 0, -production * yields, free).sum()) / 60

    had = -by_minute(day, panels)
    best = np.where(yields < 0, np.minimum(sun, load), sun)
    return Case("solar panels", cost(had), cost(sun), cost(best))


def sunlight(day, panels):
    """Return what the sun gives (kW) by the minute."""
    return minutely(day, panels.production) / 1000


# The day


def curtailed(day, panels):
    """Return what was cut (kWh) in each hour of the day, by the hour in Amsterdam."""
    cut = (sunlight(day, panels) + by_minute(day, panels)).reshape(-1, 60).sum(axis=1) / 60
    return {(day.begin + place * HOUR).astimezone(AMSTERDAM).hour: each for place, each in enumerate(cut)}


async def test_devices_of_each_control_type_live_through_a_day(day, record_property):
    evening = day.begin.astimezone(AMSTERDAM)
    morning, afternoon = (following(evening, hour) for hour in (7, 17))
    noon = following(evening, 14) + timedelta(minutes=30)
    async with (
        HeatPump(day.url, every=None) as pump,
        StepCharger(day.url, every=None) as stepper,
        EnvelopeCharger(day.url, every=None, departure=morning) as car,
        WashingMachine(day.url, every=None, deadline=afternoon) as washer,
        Dishwasher(day.url, every=None, deadline=morning) as dishwasher,
        Dryer(day.url, every=None, deadline=noon) as dryer,
        Hybrid(day.url, every=None) as hybrid,
        Station(day.url, every=None) as station,
        Panels(
            day.url, every=None, production=sunny(SUN), lower=[(-SUN, 0.0)], quantity=THREE_PHASES
        ) as panels,
    ):
        consumers = pump, stepper, car, washer, dishwasher, dryer, hybrid, station
        await lived(day, *consumers, panels)
        load = sum(by_minute(day, each) for each in consumers)
        cases = [
            heated(day, pump),
            charged_by_steps(day, stepper),
            charged_in_time(day, car, morning),
            washed(day, washer, afternoon),
            dishes_washed(day, dishwasher, morning),
            dried(day, dryer, noon),
            heated_by_two(day, hybrid),
            heated_from_afar(day, station),
            shone(day, panels, load),
        ]
        for case in cases:
            report(record_property, case.name, cost=case.cost, nothing=case.nothing, optimum=case.optimum)
        for device in (*consumers, panels):
            assert device.instructions
            assert device.rejected == []
            assert device.violations == []
        assert car.shortfalls == []
        assert car.delivered >= 19_980
        assert [run.label for run in washer.runs] in (["eco"], ["quick"])
        assert [run.label for run in dishwasher.runs] == ["wash", "dry"]
        assert [run.label for run in dryer.runs] == ["drying"]
        for machine, deadline in ((washer, afternoon), (dishwasher, morning), (dryer, noon)):
            assert machine.runs[-1].end <= deadline
        for device in (hybrid, station):
            assert device.unmet < 0.1
            assert device.surplus < 0.1
        is_free = minutely(day, fed_in) <= 0
        assert (sunlight(day, panels) > load)[is_free].all(), "else a kWh is worth something then"
        cut = curtailed(day, panels)
        assert {hour for hour, energy in cut.items() if energy > 0.01} == {10, 12, 14}
        for case in cases:
            possible = case.nothing - case.optimum
            assert possible > 0
            assert case.cost > case.optimum - ROUGH * possible, case.name
            assert case.nothing - case.cost > LEAST_GAIN * possible, case.name
