"""A day of simulated devices under our control: its clock, and what it would have cost otherwise."""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
from freezegun import freeze_time

import flexmeasures_cem.questions as questions
from tests.parts.flexmeasures_server import DAY_AHEAD
from tests.parts.s2_device import AMSTERDAM, HOUR, QUARTER, ControlledDevice

DAY = timedelta(hours=24)
BEGIN = 18
"""The hour (UTC) at which a day begins: the evening, and when plans roll on."""
ROLLING = 6 * 3600.0
"""How long a plan is used in the test (s), so that a day takes minutes."""
LEVELS = 400
"""Into how many steps the search for the optimum divides a storage."""


def consumed(moment: datetime) -> float:
    """Return what consumption costs (EUR/kWh)."""
    return DAY_AHEAD[moment.astimezone(AMSTERDAM).hour]


def following(moment: datetime, hour: int) -> datetime:
    """Return when an hour of the day comes next, in the moment's own time zone."""
    found = moment.replace(hour=hour, minute=0, second=0, microsecond=0)
    return found if found > moment else found + timedelta(days=1)


def next_evening() -> datetime:
    """Return when the day begins: always at the same hour, so that a day is the same whenever it is run."""
    return following(datetime.now(UTC), BEGIN)


async def posted(side, begin: datetime, price: Callable[[datetime], float]) -> int:
    """Return a new sensor that has an hourly price for four days."""
    server = side.server
    sensor = await asyncio.to_thread(server.add_sensor, "EUR/kWh", 60)
    values = [price(begin + place * HOUR) for place in range(96)]
    body = {"start": begin.isoformat(), "duration": "PT96H", "values": values, "unit": "EUR/kWh"}
    path, token = f"/api/v3_0/sensors/{sensor}/data", server.token()
    status, reply = await asyncio.to_thread(server.request, "POST", path, body, token)
    assert status in (200, 202), reply
    await side.stored(sensor, len(values))
    return sensor


@contextmanager
def moved_by_hand(monkeypatch, start: datetime):
    """Stop the clock at a moment, but not that of asyncio; it is moved by `move_to`."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", time.monotonic)
    with freeze_time(start) as clock:
        yield clock


def keep_measurements(home) -> None:
    """Have the outbox deliver nothing: a day's measurements in minutes would keep the server busy."""
    home.device.outbox.tasks[1].cancel()


@contextmanager
def a_day(monkeypatch, side, begin: datetime):
    """Give the S2 side of a home whose clock is moved by hand, and whose plans roll on slowly.

    They are sent ahead as a whole, since the clock jumps over the moments at which each instruction is due.
    """
    keep_measurements(side.home)
    with moved_by_hand(monkeypatch, begin) as clock:
        side.clock, side.begin = clock, begin
        side.site = side.home.device.resources.site
        side.site.rolling = ROLLING
        side.site.lead = math.inf
        yield side


async def settled(site, within: float = 300) -> None:
    """Wait until the planner has nothing to do at this moment."""
    real_time = asyncio.get_running_loop().time
    deadline = real_time() + within
    quiet = 0
    while quiet < 8:
        assert real_time() < deadline, "the planner did not come to rest"
        site.urged.set()
        site.asking_urged.set()
        await asyncio.sleep(0.02)
        moments = [site.due, site.asking_due and max(site.asking_due, questions.may_ask_at(site, site.now()))]
        is_due = any(moment is not None and moment <= site.now() for moment in moments)
        sending = any(found.sending.locked() for found in site.controlled.values())
        idle = not (is_due or sending or site.is_planning or site.is_asking)
        quiet = quiet + 1 if idle else 0


async def live_through(
    clock, site, devices: list[ControlledDevice], length: timedelta, step: timedelta
) -> None:
    """Let the devices live, tell and be told step by step; a second after each step is for plans."""
    end = datetime.now(UTC) + length
    while (now := datetime.now(UTC)) < end:
        clock.move_to(now + step - timedelta(seconds=now.timestamp() % step.total_seconds()))
        for device in devices:
            await device.tell()
        clock.move_to(datetime.now(UTC) + timedelta(seconds=2))
        await settled(site)


async def lived(day, *devices: ControlledDevice, length: timedelta = DAY) -> None:
    """Have devices live through the day, or its first part."""
    for device in devices:
        await asyncio.wait_for(device.active.wait(), 10)
        await device.tell()
    await day.home.until(lambda: len(day.site.controlled) == len(devices))
    await day.home.until(lambda: all(day.site.means(each.resource) for each in day.site.controlled.values()))
    day.clock.move_to(datetime.now(UTC) + timedelta(seconds=3))
    await settled(day.site)
    await live_through(day.clock, day.site, devices, day.begin + length - datetime.now(UTC), QUARTER)


def quarters(day) -> list[float]:
    """Return the prices of the day's quarters."""
    return [day.price(day.begin + place * QUARTER) for place in range(96)]


def report(record_property, name: str, **figures: float) -> None:
    """Print what a device's day cost (EUR), and keep it with the test's result."""
    for key, value in figures.items():
        record_property(f"{name}: {key}", round(float(value), 3))
    print(f"\n{name}: " + ", ".join(f"{key} EUR {value:.2f}" for key, value in figures.items()))


class Economy:
    """What a device's storage is worth by its best mode, and the cheapest day that it could have had."""

    def __init__(
        self, capacity: float, powers: list[float], efficiency: float, drain: Callable = lambda *_: 0.0
    ) -> None:
        """Take Wh from empty to full, possible powers (W), one-way efficiency, drain (W) by (moment, Wh)."""
        self.capacity, self.powers, self.efficiency, self.drain = capacity, powers, efficiency, drain

    def after(self, energy, power: float, moment: datetime):
        """Return the energy (Wh) after a quarter."""
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
        """Return the lowest cost (EUR) from `start` to at least `end` (Wh), above `least` by quarter."""
        grid = np.linspace(0, self.capacity, LEVELS + 1)
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
