"""A day of simulated devices under our control: its clock, and the costs to compare it with."""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from freezegun.api import FrozenDateTimeFactory

import flexmeasures_cem.site.questions as questions
from tests.parts.flexmeasures_server import DAY_AHEAD, FlexMeasuresServer
from tests.parts.s2_device import AMSTERDAM, HOUR, QUARTER, ControlledDevice, Curve
from tests.parts.virtual_time import moved_by_hand

type Array = npt.NDArray[np.float64]
type RecordProperty = Callable[[str, object], None]

DAY = timedelta(hours=24)
BEGIN = 18
"""The hour (UTC) at which a day begins: the evening, at which plans are renewed, too."""
ROLLING = 6 * 3600.0
"""The time between renewals of the plan in the test (s), so that a day takes minutes."""
LEVELS = 400
"""The number of steps into which the search for the optimum divides a storage."""


class Home(Protocol):
    """A home whose app runs, as the tests of the app have it."""

    @property
    def device(self) -> Any:
        """The app's only device."""

    async def until(self, condition: Callable[[], object], seconds: float = 90) -> None:
        """Wait until a condition holds."""


class Side(Protocol):
    """The S2 side of a home, as the tests of the app have it."""

    home: Home
    server: FlexMeasuresServer
    url: str

    async def stored(self, sensor: int, count: int) -> object:
        """Wait until the server has a number of values of a sensor."""


class Day(Protocol):
    """When a day begins, where devices connect, and the value of a kWh at its site (EUR)."""

    begin: datetime
    url: str
    price: Curve


@dataclass
class DayAtHome:
    """A Day at a home whose clock is moved by hand; `site` is the planner's."""

    home: Home
    site: Any
    clock: FrozenDateTimeFactory
    begin: datetime
    url: str
    price: Curve


def consumed(moment: datetime) -> float:
    """Return the price of consumption (EUR/kWh)."""
    return DAY_AHEAD[moment.astimezone(AMSTERDAM).hour]


def following(moment: datetime, hour: int) -> datetime:
    """Return the next moment at an hour of the day, in the moment's own time zone."""
    same_day = moment.replace(hour=hour, minute=0, second=0, microsecond=0)
    return same_day if same_day > moment else same_day + timedelta(days=1)


def next_evening() -> datetime:
    """Return the next start of a day, always at the same hour, so that all runs of a day are alike."""
    return following(datetime.now(UTC), BEGIN)


async def posted(side: Side, begin: datetime, price: Curve) -> int:
    """Return a new sensor with an hourly price for four days."""
    server = side.server
    sensor: int = await asyncio.to_thread(server.add_sensor, "EUR/kWh", 60)
    values = [price(begin + place * HOUR) for place in range(96)]
    body = {"start": begin.isoformat(), "duration": "PT96H", "values": values, "unit": "EUR/kWh"}
    path, token = f"/api/v3_0/sensors/{sensor}/data", server.token()
    status, reply = await asyncio.to_thread(server.request, "POST", path, body, token)
    assert status in (200, 202), reply
    await side.stored(sensor, len(values))
    return sensor


def keep_measurements(home: Home) -> None:
    """Stop the outbox: the measurements of a day within minutes would keep the server busy."""
    home.device.outbox.tasks[1].cancel()


@contextmanager
def a_day(monkeypatch: pytest.MonkeyPatch, side: Side, begin: datetime, price: Curve) -> Iterator[DayAtHome]:
    """Give a day at a home from a moment on.

    Plans are renewed rarely, and sent ahead as a whole, since the clock jumps over the execution times.
    """
    keep_measurements(side.home)
    site = side.home.device.resources.site
    site.rolling = ROLLING
    site.lead = math.inf
    with moved_by_hand(monkeypatch, begin) as clock:
        yield DayAtHome(side.home, site, clock, begin, side.url, price)


async def settled(site: Any, within: float = 300) -> None:
    """Wait until the planner has nothing to do at this moment."""
    real_time = asyncio.get_running_loop().time
    deadline = real_time() + within
    quiet = 0
    while quiet < 8:
        assert real_time() < deadline, f"the planner was still busy after {within:.0f} s"
        site.urged.set()
        site.asking_urged.set()
        await asyncio.sleep(0.02)
        moments = [site.due, site.asking_due and max(site.asking_due, questions.may_ask_at(site, site.now()))]
        is_due = any(moment is not None and moment <= site.now() for moment in moments)
        sending = any(controlled.sending.locked() for controlled in site.controlled.values())
        idle = not (is_due or sending or site.is_planning or site.is_asking)
        quiet = quiet + 1 if idle else 0


async def live_through(
    clock: FrozenDateTimeFactory,
    site: Any,
    devices: Iterable[ControlledDevice],
    length: timedelta,
    step: timedelta,
) -> None:
    """Simulate the devices step by step: they send updates, and two seconds later the site plans."""
    end = datetime.now(UTC) + length
    while (now := datetime.now(UTC)) < end:
        clock.move_to(now + step - timedelta(seconds=now.timestamp() % step.total_seconds()))
        for device in devices:
            await device.tell()
        clock.move_to(datetime.now(UTC) + timedelta(seconds=2))
        await settled(site)


async def lived(day: DayAtHome, *devices: ControlledDevice, length: timedelta = DAY) -> None:
    """Simulate devices for the day, or its first part."""
    for device in devices:
        await asyncio.wait_for(device.active.wait(), 10)
        await device.tell()
    await day.home.until(lambda: len(day.site.controlled) == len(devices))
    await day.home.until(
        lambda: all(day.site.means(controlled.resource) for controlled in day.site.controlled.values())
    )
    day.clock.move_to(datetime.now(UTC) + timedelta(seconds=3))
    await settled(day.site)
    await live_through(day.clock, day.site, devices, day.begin + length - datetime.now(UTC), QUARTER)


def quarters(day: Day) -> list[float]:
    """Return the prices of the day's quarters of an hour."""
    return [day.price(day.begin + place * QUARTER) for place in range(96)]


def report(record_property: RecordProperty, name: str, **figures: float) -> None:
    """Print the costs of a device's day (EUR), and record them with the test's result."""
    for key, value in figures.items():
        record_property(f"{name}: {key}", round(float(value), 3))
    print(f"\n{name}: " + ", ".join(f"{key} EUR {value:.2f}" for key, value in figures.items()))


class Economy:
    """The energy balance of a storage, and the lowest possible cost of its day."""

    def __init__(
        self,
        capacity: float,
        powers: list[float],
        efficiency: float,
        drain: Callable[[datetime, Array], float | Array] = lambda *_: 0.0,
    ) -> None:
        """Take Wh from empty to full, possible powers (W), one-way efficiency, drain (W) by (moment, Wh)."""
        self.capacity, self.powers, self.efficiency, self.drain = capacity, powers, efficiency, drain

    def after(self, energy: Array, power: float, moment: datetime) -> Array:
        """Return energies (Wh) after a quarter of an hour."""
        stored = power * self.efficiency if power > 0 else power / self.efficiency
        return energy + (stored - self.drain(moment, energy)) / 4

    def optimum(
        self,
        begin: datetime,
        prices: list[float],
        start: float,
        end: float,
        least: Callable[[int], float] = lambda _: 0.0,
    ) -> float:
        """Return the lowest cost (EUR) from `start` to at least `end` (Wh), with `least` (Wh) by quarter."""
        grid = np.linspace(0, self.capacity, LEVELS + 1, dtype=np.float64)
        value = np.where(grid >= end - self.capacity / LEVELS, 0.0, np.inf)
        for quarter in reversed(range(len(prices))):
            moment = begin + quarter * QUARTER
            best = np.full(LEVELS + 1, np.inf)
            for power in self.powers:
                then = self.after(grid, power, moment)
                inside = (then >= least(quarter + 1) - 1e-6) & (then <= self.capacity + 1e-6)
                ahead = np.interp(then, grid, np.where(np.isinf(value), 1e6, value))
                cost = power / 4000 * prices[quarter] + np.where(inside, ahead, np.inf)
                best = np.minimum(best, cost)
            value = best
        return float(np.interp(start, grid, value))
